//! What Kubernetes asks.

use actix_web::{HttpResponse, web};

use super::Admin;
use super::admin::views::HealthReply;

/// Whether the program runs.
#[utoipa::path(
    get,
    path = "/livez",
    responses((status = 200, description = "It runs.", body = HealthReply))
)]
pub async fn livez() -> HttpResponse {
    HttpResponse::Ok().json(HealthReply {
        status: "ok".to_owned(),
        reason: None,
    })
}

/// Whether pages can be taken in, whatever Flagsmith answers.
#[utoipa::path(
    get,
    path = "/readyz",
    responses(
        (status = 200, description = "They can.", body = HealthReply),
        (status = 503, description = "They cannot; the reason says why.", body = HealthReply),
    )
)]
pub async fn readyz(admin: web::Data<Admin>) -> HttpResponse {
    let reason = match admin.health.refusal() {
        Some(refusal) => Some(refusal.to_string()),
        None => admin.store.ready().await.err().map(|e| e.to_string()),
    };
    match reason {
        None => HttpResponse::Ok().json(HealthReply {
            status: "ready".to_owned(),
            reason: None,
        }),
        Some(reason) => HttpResponse::ServiceUnavailable().json(HealthReply {
            status: "not ready".to_owned(),
            reason: Some(reason),
        }),
    }
}
