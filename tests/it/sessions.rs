//! What pages, in whichever order they come, make of a cohort; seen in Flagsmith.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::support::pages::{key, page, page_without_info};
use crate::support::service::{Service, spawn_plain_app};

const NOBODY: &[&str] = &[];

/// Sends pages and waits for what they bring about.
async fn after(service: &Service, pages: &[Value]) {
    for page in pages {
        service.send(page).await;
    }
    service.settled().await;
}

/// Who has the cohort's trait with this value in Flagsmith.
fn with_value(service: &Service, cohort: &str, value: bool) -> BTreeSet<String> {
    let key = key(cohort);
    let everybody = service.stand_in.identities();
    everybody
        .into_iter()
        .filter(|(_, traits)| traits.get(&key) == Some(&json!(value)))
        .map(|(person, _)| person)
        .collect()
}

fn assert_cohort(service: &Service, cohort: &str, members: &[&str], leavers: &[&str]) {
    let set = |people: &[&str]| people.iter().map(|&person| person.to_owned()).collect();
    assert_eq!(
        with_value(service, cohort, true),
        set(members),
        "members of {cohort}"
    );
    assert_eq!(
        with_value(service, cohort, false),
        set(leavers),
        "leavers of {cohort}"
    );
}

fn full(session: &str, at: (u32, u32), people: &[&str]) -> Value {
    page("members", "c", session, at, people)
}

/// A service that knows ann, bob and old as members of `c`.
async fn spawn_with_base() -> Service {
    let service = spawn_plain_app().await;
    after(&service, &[full("base", (1, 1), &["ann", "bob", "old"])]).await;
    assert_cohort(&service, "c", &["ann", "bob", "old"], &[]);
    service
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_may_come_in_any_order_and_again() {
    let orders: [&[u32]; 5] = [
        &[1, 2, 3],
        &[3, 2, 1],
        &[2, 3, 2, 3, 1],
        &[3, 3, 3, 1, 1, 2, 2, 1, 3],
        &[1, 3, 1, 2, 1],
    ];
    for order in orders {
        let service = spawn_with_base().await;
        let of = |number: u32| {
            let people: &[&str] = match number {
                1 => &["ann", "new1"],
                2 => &["bob"],
                _ => &["new2", "ann"],
            };
            full("s", (number, 3), people)
        };
        let pages: Vec<_> = order.iter().map(|&number| of(number)).collect();
        after(&service, &pages).await;
        assert_cohort(&service, "c", &["ann", "bob", "new1", "new2"], &["old"]);
        service.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sync_with_a_hole_proves_nothing_about_leavers() {
    let service = spawn_with_base().await;
    after(
        &service,
        &[full("s", (1, 3), &["ann"]), full("s", (3, 3), &["new"])],
    )
    .await;
    assert!(with_value(&service, "c", false).is_empty(), "nobody left");
    let session = &service.cohorts().await[0]["session"];
    assert_eq!(
        (&session["pages_received"], &session["pages_total"]),
        (&json!(2), &json!(3))
    );
    assert_eq!(session["completed_at"], Value::Null);
    after(&service, &[full("s", (2, 3), &["cyd"])]).await;
    assert_cohort(&service, "c", &["ann", "cyd", "new"], &["bob", "old"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_with_other_people_begins_a_new_pass() {
    let service = spawn_with_base().await;
    // Page 2 comes with other people, so page 3 is of the old pass and has to come again.
    let pages = [
        full("s", (1, 3), &["ann"]),
        full("s", (3, 3), &["gone"]),
        full("s", (2, 3), &["x1"]),
    ];
    after(&service, &pages[..2]).await;
    after(&service, &pages[2..]).await;
    assert_cohort(&service, "c", &["ann", "gone", "x1"], &["bob", "old"]);
    after(&service, &[full("s", (2, 3), &["x2"])]).await;
    assert!(
        !with_value(&service, "c", false).contains("x1"),
        "not proved yet"
    );
    after(&service, &[full("s", (3, 3), &["x3"])]).await;
    assert_cohort(
        &service,
        "c",
        &["ann", "x2", "x3"],
        &["bob", "gone", "old", "x1"],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_session_supersedes_an_unfinished_one_of_its_action_alone() {
    let service = spawn_with_base().await;
    after(
        &service,
        &[
            full("older", (1, 2), &["lost"]),
            full("newer", (1, 2), &["ann", "bob"]),
            page("remove_members", "c", "half", (1, 2), &["ann"]),
            page("add_members", "c", "older", (1, 2), &["sue"]),
            full("older", (2, 2), &["lost too"]),
        ],
    )
    .await;
    assert!(with_value(&service, "c", false).is_empty());
    assert!(
        !with_value(&service, "c", true).contains("lost too"),
        "too late"
    );
    after(&service, &[full("newer", (2, 2), &["cyd"])]).await;
    assert!(!with_value(&service, "c", true).contains("lost"));
    assert!(with_value(&service, "c", false).contains("old"));
    // The other actions' sessions are still open, and take effect.
    after(
        &service,
        &[
            page("remove_members", "c", "half", (2, 2), NOBODY),
            page("add_members", "c", "older", (2, 2), &["tom"]),
        ],
    )
    .await;
    let members = with_value(&service, "c", true);
    for person in ["bob", "cyd", "sue", "tom"] {
        assert!(members.contains(person), "{person} in {members:?}");
    }
    assert!(!members.contains("ann"));
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_of_different_cohorts_projects_and_sources_are_different() {
    let service = spawn_plain_app().await;
    let mut other_project = page("members", "c", "s", (2, 2), &["zoe"]);
    other_project["parameters"]["mixpanel_project_id"] = json!("another");
    after(
        &service,
        &[
            full("s", (1, 2), &["ann"]),
            page("members", "d", "s", (2, 2), &["bob"]),
            other_project,
        ],
    )
    .await;
    let cohorts = service.cohorts().await;
    assert_eq!(cohorts.len(), 3);
    assert!(
        cohorts
            .iter()
            .all(|cohort| cohort["session"]["completed_at"].is_null())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_latest_total_counts_and_held_pages_stay() {
    let service = spawn_with_base().await;
    after(
        &service,
        &[full("s", (1, 2), &["ann"]), full("s", (2, 3), &["bob"])],
    )
    .await;
    assert!(
        with_value(&service, "c", false).is_empty(),
        "it grew: not whole"
    );
    after(&service, &[full("s", (3, 3), &["cyd"])]).await;
    assert_cohort(&service, "c", &["ann", "bob", "cyd"], &["old"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn differences_take_effect_when_their_session_is_whole() {
    let service = spawn_with_base().await;
    after(
        &service,
        &[page("remove_members", "c", "r", (2, 2), &["old"])],
    )
    .await;
    assert!(
        with_value(&service, "c", false).is_empty(),
        "half a removal"
    );
    after(
        &service,
        &[page("remove_members", "c", "r", (1, 2), &["bob"])],
    )
    .await;
    assert_cohort(&service, "c", &["ann"], &["bob", "old"]);
    after(&service, &[page("add_members", "c", "r", (1, 2), &["bob"])]).await;
    after(&service, &[page("add_members", "c", "r", (2, 2), &["new"])]).await;
    assert_cohort(&service, "c", &["ann", "bob", "new"], &["old"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn members_without_page_info_only_adds() {
    let service = spawn_with_base().await;
    after(
        &service,
        &[
            page_without_info("members", "c", &["new"]),
            page_without_info("members", "c", NOBODY),
        ],
    )
    .await;
    assert_cohort(&service, "c", &["ann", "bob", "new", "old"], &[]);
    after(
        &service,
        &[page_without_info("remove_members", "c", &["old"])],
    )
    .await;
    after(&service, &[page_without_info("add_members", "c", &["sue"])]).await;
    assert_cohort(&service, "c", &["ann", "bob", "new", "sue"], &["old"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn empty_differences_are_heard_and_cost_nothing() {
    let service = spawn_with_base().await;
    service.canary_is_done().await;
    let before = service.cohorts().await[0]["last_heard_at"].clone();
    service.clock.advance(std::time::Duration::from_secs(60));
    for n in 0..10 {
        let session = format!("run{n}");
        after(
            &service,
            &[
                page("add_members", "c", &session, (1, 1), NOBODY),
                page("remove_members", "c", &session, (1, 1), NOBODY),
            ],
        )
        .await;
    }
    assert_eq!(service.stand_in.calls(), Default::default());
    assert_ne!(service.cohorts().await[0]["last_heard_at"], before);
    assert_cohort(&service, "c", &["ann", "bob", "old"], &[]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_full_sync_empties_the_cohort() {
    let service = spawn_with_base().await;
    after(&service, &[full("s", (1, 1), NOBODY)]).await;
    assert_cohort(&service, "c", &[], &["ann", "bob", "old"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rename_changes_the_name_and_not_the_key() {
    let service = spawn_with_base().await;
    let mut renamed = page("add_members", "c", "s", (1, 1), &["new"]);
    renamed["parameters"]["mixpanel_cohort_name"] = json!("Something Else");
    after(&service, &[renamed]).await;
    let cohort = &service.cohorts().await[0];
    assert_eq!(cohort["name"], "Something Else");
    assert_eq!(cohort["trait_key"], "mixpanel_cohort_c");
    assert_cohort(&service, "c", &["ann", "bob", "new", "old"], &[]);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_cohorts_whose_keys_collide_the_later_one_gets_its_id() {
    let service = spawn_plain_app().await;
    let named = |id: &str, name: Value| {
        let mut page = page("members", id, "s", (1, 1), &["ann"]);
        page["parameters"]["mixpanel_cohort_name"] = name;
        page
    };
    after(
        &service,
        &[
            named("11", json!("Power users!")),
            named("22", json!("POWER--users")),
            named("33", json!("\u{1f389}")),
            named("44", Value::Null),
            named("55", json!("x".repeat(400))),
        ],
    )
    .await;
    let cohorts = service.cohorts().await;
    let mut keys: Vec<_> = cohorts
        .iter()
        .map(|cohort| cohort["trait_key"].as_str().unwrap())
        .collect();
    let long = keys.pop().unwrap();
    assert_eq!(
        keys,
        [
            "mixpanel_cohort_power_users",
            "mixpanel_cohort_power_users_22",
            "mixpanel_cohort_33",
            "mixpanel_cohort_44"
        ]
    );
    assert_eq!(long.chars().count(), 200);
    assert_eq!(service.stand_in.identity("ann").unwrap().len(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lone_device_id_pauses_no_sync() {
    let service = spawn_plain_app().await;
    service
        .send(&page("members", "c", "s", (1, 1), &["$device:abc"]))
        .await;
    service.settled().await;
    assert_eq!(service.cohorts().await[0]["members"], 0);
    assert!(
        service
            .get("/metrics")
            .await
            .text
            .contains("cohort_bridge_members_set_aside_total")
    );
    assert_eq!(service.stand_in.identity("$device:abc"), None);
}
