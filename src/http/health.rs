//! What Kubernetes asks.

use actix_web::{HttpResponse, web};
use serde_json::json;

use super::Admin;

/// The program runs.
pub async fn livez() -> HttpResponse {
    HttpResponse::Ok().json(json!({"status": "ok"}))
}

/// Pages can be taken in, whatever Flagsmith answers; 503 with the reason where they cannot.
pub async fn readyz(admin: web::Data<Admin>) -> HttpResponse {
    let reason = match admin.health.refusal() {
        Some(refusal) => Some(refusal.to_string()),
        None => admin.store.ready().await.err().map(|e| e.to_string()),
    };
    match reason {
        None => HttpResponse::Ok().json(json!({"status": "ready"})),
        Some(reason) => HttpResponse::ServiceUnavailable()
            .json(json!({"status": "not ready", "reason": reason})),
    }
}
