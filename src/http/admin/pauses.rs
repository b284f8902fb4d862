//! The calls that pause and resume cohorts and destinations.

use std::sync::Arc;

use actix_web::web;

use super::openapi::{Interrupted, LedgerFailed, Refused};
use super::views::{ErrorReply, PauseReply};
use super::{Admin, AdminError, Operator};
use crate::cohort::{DestinationName, SourceName};

/// Pauses a cohort: it is folded as ever, and none of its traits is written until it is resumed.
#[utoipa::path(
    post,
    path = "/api/v1/cohorts/{source}/{cohort_id}/pause",
    params(
        ("source" = String, Path, description = "The cohort's source."),
        ("cohort_id" = String, Path, description = "Mixpanel's id."),
    ),
    responses(
        (status = 200, description = "It is paused, if it was not already.", body = PauseReply),
        (status = 404, description = "No such cohort.", body = ErrorReply),
        Refused, LedgerFailed, Interrupted,
    ),
    security(("admin_token" = []))
)]
pub async fn pause_cohort(
    _: Operator,
    admin: web::Data<Admin>,
    path: web::Path<(String, String)>,
) -> Result<web::Json<PauseReply>, AdminError> {
    cohort(&admin, path.into_inner(), true).await
}

/// Resumes a cohort: what is wanted by now is written.
#[utoipa::path(
    post,
    path = "/api/v1/cohorts/{source}/{cohort_id}/resume",
    params(
        ("source" = String, Path, description = "The cohort's source."),
        ("cohort_id" = String, Path, description = "Mixpanel's id."),
    ),
    responses(
        (status = 200, description = "It is not paused, whether or not it was.", body = PauseReply),
        (status = 404, description = "No such cohort.", body = ErrorReply),
        Refused, LedgerFailed, Interrupted,
    ),
    security(("admin_token" = []))
)]
pub async fn resume_cohort(
    _: Operator,
    admin: web::Data<Admin>,
    path: web::Path<(String, String)>,
) -> Result<web::Json<PauseReply>, AdminError> {
    cohort(&admin, path.into_inner(), false).await
}

/// Pauses a destination: nothing is called until it is resumed.
#[utoipa::path(
    post,
    path = "/api/v1/destinations/{name}/pause",
    params(("name" = String, Path, description = "The destination's name in the settings.")),
    responses(
        (status = 200, description = "It is paused, if it was not already.", body = PauseReply),
        (status = 404, description = "No such destination.", body = ErrorReply),
        Refused, LedgerFailed, Interrupted,
    ),
    security(("admin_token" = []))
)]
pub async fn pause_destination(
    _: Operator,
    admin: web::Data<Admin>,
    name: web::Path<String>,
) -> Result<web::Json<PauseReply>, AdminError> {
    destination(&admin, name.as_str().into(), true).await
}

/// Resumes a destination: what is wanted by now is written.
#[utoipa::path(
    post,
    path = "/api/v1/destinations/{name}/resume",
    params(("name" = String, Path, description = "The destination's name in the settings.")),
    responses(
        (status = 200, description = "It is not paused, whether or not it was.", body = PauseReply),
        (status = 404, description = "No such destination.", body = ErrorReply),
        Refused, LedgerFailed, Interrupted,
    ),
    security(("admin_token" = []))
)]
pub async fn resume_destination(
    _: Operator,
    admin: web::Data<Admin>,
    name: web::Path<String>,
) -> Result<web::Json<PauseReply>, AdminError> {
    destination(&admin, name.as_str().into(), false).await
}

async fn cohort(
    admin: &Admin,
    (source, cohort_id): (String, String),
    paused: bool,
) -> Result<web::Json<PauseReply>, AdminError> {
    let store = admin.store.clone();
    let now = admin.clock.now();
    let pending = admin
        .change(async move {
            let source = SourceName::from(source.as_str());
            let pending = store.pause_cohort(&source, &cohort_id, paused, now).await?;
            if let Some(pending) = pending {
                tracing::info!(%source, cohort_id, paused, pending, "cohort paused or resumed");
            }
            Ok(pending)
        })
        .await?
        .ok_or(AdminError::UnknownCohort)?;
    Ok(web::Json(PauseReply { paused, pending }))
}

async fn destination(
    admin: &Admin,
    name: DestinationName,
    paused: bool,
) -> Result<web::Json<PauseReply>, AdminError> {
    let health = Arc::clone(admin.destination(&name.0)?);
    let store = admin.store.clone();
    let now = admin.clock.now();
    let pending = admin
        .change(async move {
            let _alone = health.pausing().lock().await;
            let pending = store.pause_destination(&name, paused, now).await?;
            if let Some(pending) = pending {
                health.set_paused(paused);
                tracing::info!(destination = %name, paused, pending, "destination paused or resumed");
            }
            Ok(pending)
        })
        .await?
        .ok_or(AdminError::UnknownDestination)?;
    Ok(web::Json(PauseReply { paused, pending }))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::http::admin::tests::Desk;
    use crate::store::StoreError;

    #[actix_web::test]
    async fn a_cohort_is_paused_and_resumed() {
        let desk = Desk::on_loopback();
        for (word, paused) in [("pause", true), ("resume", false)] {
            let (status, body) = desk
                .post(&format!("/api/v1/cohorts/default/7/{word}"), "")
                .await;
            assert_eq!(
                (status.as_u16(), body),
                (200, json!({"paused": paused, "pending": 9}))
            );
            let (status, body) = desk
                .post(&format!("/api/v1/cohorts/default/8/{word}"), "")
                .await;
            assert_eq!(status, 404);
            assert!(body["error"].as_str().unwrap().contains("/api/v1/cohorts"));
        }
        assert_eq!(
            *desk.store.orders.lock().unwrap(),
            [
                "pause default 7",
                "pause default 8",
                "resume default 7",
                "resume default 8"
            ]
        );
    }

    #[actix_web::test]
    async fn a_destination_is_paused_and_resumed_and_says_so() {
        let desk = Desk::on_loopback();
        for (word, paused) in [("pause", true), ("resume", false)] {
            let (status, body) = desk
                .post(&format!("/api/v1/destinations/production/{word}"), "")
                .await;
            assert_eq!(
                (status.as_u16(), body),
                (200, json!({"paused": paused, "pending": 10}))
            );
            let (_, body) = desk.get("/api/v1/status").await;
            assert_eq!(body["destinations"][0]["paused"], paused);
            assert_eq!(
                body["destinations"][0]["state"], "halted",
                "the fixed words stay"
            );
            let (status, body) = desk
                .post(&format!("/api/v1/destinations/x/{word}"), "")
                .await;
            assert_eq!(status, 404);
            assert!(body["error"].as_str().unwrap().contains("/api/v1/status"));
        }
    }

    #[actix_web::test]
    async fn what_is_not_written_down_is_not_told() {
        let desk = Desk::on_loopback();
        desk.store.fail_with(Some(|| StoreError::Full));
        let (status, _) = desk.post("/api/v1/destinations/production/pause", "").await;
        assert_eq!(status, 503);
        assert!(!desk.admin.destinations[0].is_paused());
    }
}
