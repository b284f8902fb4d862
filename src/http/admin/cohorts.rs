//! The calls about cohorts.

use actix_web::web;

use super::openapi::{Interrupted, LedgerFailed, Refused};
use super::views::{CohortsReply, Decided, DecisionOrder, ErrorReply, HeldRemovalsReply, Retiring};
use super::{Admin, AdminError, Operator, order};
use crate::cohort::SourceName;
use crate::store::{CohortView, HeldRemovals};

/// The cohorts heard of.
#[utoipa::path(
    get,
    path = "/api/v1/cohorts",
    responses((status = 200, description = "All of them.", body = CohortsReply), LedgerFailed)
)]
pub async fn cohorts(admin: web::Data<Admin>) -> Result<web::Json<CohortsReply>, AdminError> {
    let cohorts = admin.store.cohorts().await?;
    Ok(web::Json(CohortsReply::of(cohorts, admin.clock.now())))
}

/// The removals of a cohort that wait for a decision.
#[utoipa::path(
    get,
    path = "/api/v1/cohorts/{source}/{cohort_id}/held-removals",
    params(
        ("source" = String, Path, description = "The cohort's source."),
        ("cohort_id" = String, Path, description = "Mixpanel's id."),
    ),
    responses(
        (status = 200, description = "Also where none are held.", body = HeldRemovalsReply),
        (status = 404, description = "No such cohort.", body = ErrorReply),
        LedgerFailed,
    )
)]
pub async fn held_removals(
    admin: web::Data<Admin>,
    path: web::Path<(String, String)>,
) -> Result<web::Json<HeldRemovalsReply>, AdminError> {
    let (source, cohort_id) = path.into_inner();
    let mut cohorts = admin.store.cohorts().await?;
    cohorts.retain(|cohort| *cohort.source.0 == *source && cohort.cohort_id == cohort_id);
    if cohorts.is_empty() {
        return Err(AdminError::UnknownCohort);
    }
    Ok(web::Json(HeldRemovalsReply::of(held_of(cohorts))))
}

/// What is held of cohorts that share source and id: a decision is about all of them, whatever
/// project they are of.
fn held_of(cohorts: Vec<CohortView>) -> Option<HeldRemovals> {
    let held = cohorts.into_iter().filter_map(|cohort| cohort.held);
    held.reduce(|one, other| HeldRemovals {
        held: one.held + other.held,
        since: one.since.min(other.since),
        session: other.session,
    })
}

/// Decides on the held removals of a cohort.
#[utoipa::path(
    post,
    path = "/api/v1/cohorts/{source}/{cohort_id}/held-removals",
    params(
        ("source" = String, Path, description = "The cohort's source."),
        ("cohort_id" = String, Path, description = "Mixpanel's id."),
    ),
    request_body(content = DecisionOrder, content_type = "application/json"),
    responses(
        (status = 200, description = "It will be carried out.", body = Decided),
        (status = 400, description = "The body is not understood.", body = ErrorReply),
        (status = 404, description = "No such cohort.", body = ErrorReply),
        Refused, LedgerFailed, Interrupted,
    ),
    security(("admin_token" = []))
)]
pub async fn decide_held_removals(
    _: Operator,
    admin: web::Data<Admin>,
    path: web::Path<(String, String)>,
    body: web::Bytes,
) -> Result<web::Json<Decided>, AdminError> {
    let DecisionOrder { decision } = order(&body).map_err(AdminError::Decision)?;
    let (source, cohort_id) = path.into_inner();
    let store = admin.store.clone();
    let now = admin.clock.now();
    admin
        .change(async move {
            let source = SourceName::from(source.as_str());
            let decision = decision.into();
            store.decide_held(&source, &cohort_id, decision, now).await
        })
        .await?
        .map(|held| web::Json(Decided { decision, held }))
        .ok_or(AdminError::UnknownCohort)
}

/// Lets every member of a cohort leave, and then forgets it but for its trait key.
#[utoipa::path(
    post,
    path = "/api/v1/cohorts/{source}/{cohort_id}/retire",
    params(
        ("source" = String, Path, description = "The cohort's source."),
        ("cohort_id" = String, Path, description = "Mixpanel's id."),
    ),
    responses(
        (status = 200, description = "Its members will leave.", body = Retiring),
        (status = 404, description = "No such cohort.", body = ErrorReply),
        Refused, LedgerFailed, Interrupted,
    ),
    security(("admin_token" = []))
)]
pub async fn retire(
    _: Operator,
    admin: web::Data<Admin>,
    path: web::Path<(String, String)>,
) -> Result<web::Json<Retiring>, AdminError> {
    let (source, cohort_id) = path.into_inner();
    let store = admin.store.clone();
    let now = admin.clock.now();
    admin
        .change(async move {
            let source = SourceName::from(source.as_str());
            store.retire(&source, &cohort_id, now).await
        })
        .await?
        .map(|retiring| web::Json(Retiring { retiring }))
        .ok_or(AdminError::UnknownCohort)
}

#[cfg(test)]
mod tests {
    use actix_web::http::StatusCode;
    use serde_json::json;

    use crate::http::admin::tests::Desk;
    use crate::http::stub_store::{cohort, troubled_cohort};
    use crate::store::CohortStanding;

    #[actix_web::test]
    async fn cohorts_have_the_promised_shape() {
        let (status, body) = Desk::on_loopback().get("/api/v1/cohorts").await;
        assert_eq!(status, 200);
        assert_eq!(
            body,
            json!({"cohorts": [{
                "source": "default", "cohort_id": "7", "project_id": "2914407",
                "name": "Trial power users 7", "former_name": null,
                "state": "followed", "paused": false, "trait_key": "mixpanel_cohort_7",
                "members": 1_234_567, "last_heard_at": "1970-01-01T00:01:30.000Z",
                "session": {"id": "s1", "action": "members", "pages_received": 2,
                    "pages_total": 3, "completed_at": null},
                "needs_full_sync": null, "held_removals": null, "set_aside": {},
                "runs": {"accepted": 0, "dropped": 0, "undone": 0},
                "destinations": [{"name": "production", "written": 90, "pending": 5, "dead": 1,
                    "oldest_pending_seconds": 60, "ready": false}]}]})
        );
    }

    #[actix_web::test]
    async fn a_cohort_in_trouble_says_what_and_what_to_do() {
        let desk = Desk::on_loopback();
        *desk.store.cohorts.lock().unwrap() = vec![troubled_cohort("7")];
        let (_, body) = desk.get("/api/v1/cohorts").await;
        let cohort = &body["cohorts"][0];
        for (key, value) in [
            ("former_name", json!("Old <b>name")),
            (
                "needs_full_sync",
                json!({
                    "reason": "The identifier rules changed from 'email' to '$user_id, email'.",
                    "how": "In Mixpanel, disconnect the cohort from this connection and connect it again."}),
            ),
            (
                "held_removals",
                json!({"held": 1_204, "session": "s0", "since": "1970-01-01T00:00:30.000Z"}),
            ),
            ("set_aside", json!({"anonymous": 1_500, "too_long": 2})),
            ("runs", json!({"accepted": 40, "dropped": 2, "undone": 1})),
        ] {
            assert_eq!(cohort[key], value, "{key}");
        }
    }

    #[actix_web::test]
    async fn a_cohort_says_whether_it_is_followed() {
        for (standing, word) in [
            (CohortStanding::Followed, "followed"),
            (CohortStanding::Retiring, "retiring"),
            (CohortStanding::Retired, "retired"),
        ] {
            let desk = Desk::on_loopback();
            desk.store.cohorts.lock().unwrap()[0].standing = standing;
            let (_, body) = desk.get("/api/v1/cohorts").await;
            assert_eq!(body["cohorts"][0]["state"], word);
        }
    }

    #[actix_web::test]
    async fn held_removals_are_shown() {
        let desk = Desk::on_loopback();
        let path = "/api/v1/cohorts/default/7/held-removals";
        let (status, body) = desk.get(path).await;
        assert_eq!(status, 200);
        assert_eq!(body, json!({"held": 0, "session": null, "since": null}));

        let mut elsewhere = troubled_cohort("7");
        elsewhere.source = "eu".into();
        let mut unnamed = troubled_cohort("7");
        let held = unnamed.held.as_mut().unwrap();
        (held.session, held.since, held.held) = (String::new(), 20_000, 2);
        *desk.store.cohorts.lock().unwrap() = vec![troubled_cohort("7"), elsewhere, cohort("8")];
        let (_, body) = desk.get(path).await;
        assert_eq!(
            body,
            json!({"held": 1_204, "session": "s0", "since": "1970-01-01T00:00:30.000Z"})
        );
        // Another project's cohort of the same id.
        desk.store.cohorts.lock().unwrap().push(unnamed);
        let (_, body) = desk.get(path).await;
        assert_eq!(
            body,
            json!({"held": 1_206, "session": null, "since": "1970-01-01T00:00:20.000Z"})
        );
    }

    #[actix_web::test]
    async fn held_removals_are_decided_on() {
        let desk = Desk::on_loopback();
        let path = "/api/v1/cohorts/default/7/held-removals";
        for word in ["approve", "discard"] {
            let order = json!({"decision": word}).to_string();
            let (status, body) = desk.post(path, &order).await;
            assert_eq!(status, 200);
            assert_eq!(body, json!({"decision": word, "held": 1_204}));
        }
        for body in [
            "",
            "{}",
            "[\"approve\"]",
            r#"{"decision": "aprove"}"#,
            r#"{"decision": null}"#,
            r#"{"decision": "approve", "also": 1}"#,
        ] {
            let (status, reply) = desk.post(path, body).await;
            assert_eq!(status, 400, "{body}");
            let error = reply["error"].as_str().unwrap();
            for right in [r#"{"decision":"approve"}"#, r#"{"decision":"discard"}"#] {
                assert!(error.contains(right), "{error}");
            }
        }
        assert_eq!(
            *desk.store.orders.lock().unwrap(),
            ["Approve default 7", "Discard default 7"]
        );
    }

    #[actix_web::test]
    async fn a_cohort_is_retired() {
        let desk = Desk::on_loopback();
        let (status, body) = desk.post("/api/v1/cohorts/default/7/retire", "").await;
        assert_eq!((status, body), (StatusCode::OK, json!({"retiring": 8})));
        assert_eq!(*desk.store.orders.lock().unwrap(), ["retire default 7"]);
    }

    #[actix_web::test]
    async fn an_unknown_cohort_is_said_to_be_one() {
        let desk = Desk::on_loopback();
        for (call, order) in [
            ("resync", ""),
            ("retire", ""),
            ("held-removals", r#"{"decision": "approve"}"#),
        ] {
            let path = format!("/api/v1/cohorts/default/8/{call}");
            let (status, body) = desk.post(&path, order).await;
            assert_eq!(status, 404, "{call}");
            assert_eq!(
                body,
                json!({"error": "no such cohort: GET /api/v1/cohorts names those that were heard of"})
            );
        }
        for of in ["default/8", "eu/7"] {
            let path = format!("/api/v1/cohorts/{of}/held-removals");
            let (status, body) = desk.get(&path).await;
            assert_eq!(status, 404, "{of}");
            assert_eq!(
                body,
                json!({"error": "no such cohort: GET /api/v1/cohorts names those that were heard of"})
            );
        }
    }
}
