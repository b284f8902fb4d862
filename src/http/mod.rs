//! The two listeners: the public one for Mixpanel's webhooks, the admin one for people,
//! Prometheus and Kubernetes.

use actix_web::{Resource, Route, web};

use admin::{cohorts, pauses, plan, resync};
use authenticate::Intake;
use receive::Receiver;

pub mod admin;
pub mod authenticate;
pub mod closing;
pub mod credentials;
pub mod detached;
pub mod error;
pub mod health;
pub mod receive;
pub mod request_id;
pub mod status_page;
#[cfg(test)]
pub(crate) mod stub_intake;
#[cfg(test)]
pub(crate) mod stub_log;
#[cfg(test)]
pub(crate) mod stub_store;

pub use admin::Admin;
pub use closing::closing;
pub use detached::Detached;
pub use request_id::request_id;

/// The public listener's routes. Nothing else answers there but 404.
pub fn configure_webhook(
    config: &mut web::ServiceConfig,
    intake: web::Data<Intake>,
    receiver: web::Data<Receiver>,
) {
    let webhook = |path: &str| {
        web::resource(path)
            .route(web::post().to(receive::receive))
            .default_service(web::to(receive::not_found))
    };
    config
        .app_data(intake)
        .app_data(receiver)
        .service(webhook("/webhooks/mixpanel"))
        .service(webhook("/webhooks/mixpanel/{source}"))
        .default_service(web::to(receive::not_found));
}

/// A path, as actix and OpenAPI both write it, and what answers one of its methods.
type AdminRoute = (&'static str, fn() -> Route);

/// The admin listener's routes, those of one path beside each other. One that is missing from
/// [`admin::openapi`] fails a test.
const ADMIN_ROUTES: [AdminRoute; 24] = [
    ("/", || web::get().to(admin::status_page)),
    ("/livez", || web::get().to(health::livez)),
    ("/readyz", || web::get().to(health::readyz)),
    ("/metrics", || web::get().to(admin::metrics)),
    ("/openapi.json", || web::get().to(admin::openapi::openapi)),
    ("/api/v1/status", || web::get().to(admin::status)),
    ("/api/v1/cohorts", || web::get().to(cohorts::cohorts)),
    ("/api/v1/cohorts/{source}/{cohort_id}/resync", || {
        web::post().to(resync::resync_cohort)
    }),
    ("/api/v1/cohorts/{source}/{cohort_id}/resync", || {
        web::delete().to(resync::cancel_cohort)
    }),
    ("/api/v1/destinations/{name}/resync", || {
        web::post().to(resync::resync_destination)
    }),
    ("/api/v1/destinations/{name}/resync", || {
        web::delete().to(resync::cancel_destination)
    }),
    ("/api/v1/cohorts/{source}/{cohort_id}/held-removals", || {
        web::get().to(cohorts::held_removals)
    }),
    ("/api/v1/cohorts/{source}/{cohort_id}/held-removals", || {
        web::post().to(cohorts::decide_held_removals)
    }),
    ("/api/v1/cohorts/{source}/{cohort_id}/retire", || {
        web::post().to(cohorts::retire)
    }),
    ("/api/v1/cohorts/{source}/{cohort_id}/pause", || {
        web::post().to(pauses::pause_cohort)
    }),
    ("/api/v1/cohorts/{source}/{cohort_id}/resume", || {
        web::post().to(pauses::resume_cohort)
    }),
    ("/api/v1/destinations/{name}/pause", || {
        web::post().to(pauses::pause_destination)
    }),
    ("/api/v1/destinations/{name}/resume", || {
        web::post().to(pauses::resume_destination)
    }),
    ("/api/v1/plan", || web::get().to(plan::plan)),
    ("/api/v1/members/{identifier}", || {
        web::get().to(admin::member)
    }),
    ("/api/v1/members/{identifier}", || {
        web::delete().to(admin::forget)
    }),
    ("/api/v1/dead-letters", || {
        web::get().to(admin::dead_letters)
    }),
    ("/api/v1/dead-letters/retry", || {
        web::post().to(admin::retry_dead_letters)
    }),
    ("/api/v1/dead-letters/drop", || {
        web::post().to(admin::drop_dead_letters)
    }),
];

/// Registers the admin listener's routes.
pub fn configure_admin(config: &mut web::ServiceConfig, admin: web::Data<Admin>) {
    config
        .app_data(admin)
        .default_service(web::to(admin::not_found));
    for routes in ADMIN_ROUTES.chunk_by(|one, next| one.0 == next.0) {
        config.service(only(routes));
    }
}

/// A path that answers the methods of its routes; any other gets a JSON 405.
fn only(routes: &[AdminRoute]) -> Resource {
    let (path, _) = routes[0];
    routes
        .iter()
        .fold(web::resource(path), |resource, (_, route)| {
            resource.route(route())
        })
        .default_service(web::to(admin::method_not_allowed))
}
