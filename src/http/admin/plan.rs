//! The call that says what it takes to deliver.

use actix_web::web;

use super::openapi::LedgerFailed;
use super::views::PlanReply;
use super::{Admin, AdminError};

/// What it takes to write everything that is pending: calls, time, and what they are beside the
/// budget.
#[utoipa::path(
    get,
    path = "/api/v1/plan",
    responses(
        (status = 200, description = "Also where nothing is to be called.", body = PlanReply),
        LedgerFailed,
    )
)]
pub async fn plan(admin: web::Data<Admin>) -> Result<web::Json<PlanReply>, AdminError> {
    Ok(web::Json(admin.planner.plan().await?.into()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::http::admin::tests::Desk;

    #[actix_web::test]
    async fn a_plan_has_the_promised_shape() {
        let (status, body) = Desk::on_loopback().get("/api/v1/plan").await;
        assert_eq!(status, 200);
        assert_eq!(
            body,
            json!({"waiting_pages": 0, "complete": true, "destinations": [{
                "name": "production", "kind": "sdk", "dry_run": false, "paused": false,
                "identities": 4, "traits": 5, "calls": 4, "seconds": 8,
                "budget": {"month": "1970-01", "left": 3, "enough": false},
                "cohorts": [{"source": "default", "cohort_id": "7", "name": "Trial power users 7",
                    "paused": false, "traits": 5, "calls_alone": 4}]}]})
        );
    }
}
