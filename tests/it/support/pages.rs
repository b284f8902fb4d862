//! Pages as Mixpanel sends them.

use serde_json::{Value, json};

/// A page of a session. The cohort's name is its id, so its trait key is
/// `mixpanel_cohort_{cohort}`.
pub fn page<S: AsRef<str>>(
    action: &str,
    cohort: &str,
    session: &str,
    (number, total): (u32, u32),
    people: &[S],
) -> Value {
    let mut page = page_without_info(action, cohort, people);
    page["parameters"]["mixpanel_session_id"] = json!(session);
    page["parameters"]["page_info"] = json!({"total_pages": total, "page_count": number});
    page
}

/// A page without `page_info` and session.
pub fn page_without_info<S: AsRef<str>>(action: &str, cohort: &str, people: &[S]) -> Value {
    let members: Vec<_> = people
        .iter()
        .map(|person| {
            let person = person.as_ref();
            json!({
                "mixpanel_distinct_id": person,
                "email": format!("{person}@mail.example"),
                "first_name": "Forename",
                "last_name": "Surname",
            })
        })
        .collect();
    json!({
        "action": action,
        "parameters": {
            "mixpanel_project_id": "2914407",
            "mixpanel_cohort_id": cohort,
            "mixpanel_cohort_name": cohort,
            "mixpanel_cohort_description": "",
            "members": members,
        }
    })
}

/// The trait key of a cohort of [`page`].
pub fn key(cohort: &str) -> String {
    format!("mixpanel_cohort_{}", cohort.to_lowercase())
}

/// `PREFIX0000`, `PREFIX0001`, …
pub fn people(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|n| format!("{prefix}{n:04}")).collect()
}
