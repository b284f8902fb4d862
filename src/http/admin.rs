//! The admin listener: how the service is doing, and what an operator can do about it.
//!
//! Handlers that change something or name a person take an [`Operator`], which only
//! [`AdminAccess`] gives out.

use std::sync::Arc;

use actix_web::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use actix_web::{HttpRequest, HttpResponse, web};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::clock::Clock;
use crate::metrics::Metrics;
use crate::planner::Planner;
use crate::status::{DestinationHealth, DestinationStatus, Health, StatusSnapshot};
use crate::store::{DeadLetterFilter, ResyncView, Store, StoreError};

use super::{Detached, status_page as page};

mod access;
pub mod cohorts;
mod error;
pub mod openapi;
pub mod pauses;
pub mod plan;
pub mod resync;
pub mod views;

pub use access::{AdminAccess, Operator};
pub use error::AdminError;
use openapi::{Interrupted, LedgerFailed, Refused};
use views::{
    DeadLetterOrder, DeadLettersReply, DestinationReply, Dropped, ErrorReply, ForgetQuery,
    Forgotten, MemberReply, RefusedSecretReply, Retried, StatusReply,
};

/// Dead letters one answer shows at most; the oldest come first, and `retry` and `drop` reach all.
const DEAD_LETTERS_SHOWN: usize = 1_000;

/// Everything the admin listener shows and moves.
pub struct Admin {
    /// The ledger.
    pub store: Arc<dyn Store>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Whether pages are taken in.
    pub health: Arc<Health>,
    /// Every destination of the settings.
    pub destinations: Vec<Arc<DestinationHealth>>,
    /// What Prometheus scrapes.
    pub metrics: Arc<Metrics>,
    /// What it would take to deliver.
    pub planner: Arc<Planner>,
    /// Where changes run on though the client has gone.
    pub detached: Detached,
    /// Who may change things.
    pub access: Arc<AdminAccess>,
}

impl Admin {
    async fn snapshot(&self) -> StatusSnapshot {
        let cohorts = self.store.cohorts().await.map_err(|error| {
            tracing::warn!(%error, "the ledger cannot be read");
            error.to_string().into()
        });
        // Where the ledger cannot be read, that is said above.
        let mut resyncs = self.store.resyncs().await.unwrap_or_default();
        let leading = self.health.is_leading();
        StatusSnapshot {
            now: self.clock.now(),
            leading,
            backlog_pages: self.backlog().await,
            refusal: self.health.refusal(),
            refused_secrets: self.health.refused_secrets(),
            destinations: self
                .destinations
                .iter()
                .map(|destination| {
                    let own = |view: &mut ResyncView| view.destination == *destination.name();
                    let status = DestinationStatus {
                        resync: resyncs.extract_if(.., own).next(),
                        ..destination.status()
                    };
                    match leading {
                        true => status,
                        false => status.on_standby(),
                    }
                })
                .collect(),
            cohorts,
        }
    }

    /// Pages that wait to be folded. Where others append and fold too, what is counted here lags behind.
    async fn backlog(&self) -> u64 {
        let counted = self.health.backlog();
        match self.store.is_shared() {
            true => self.store.waiting_pages().await.unwrap_or(counted),
            false => counted,
        }
    }

    /// A destination of the settings.
    fn destination(&self, name: &str) -> Result<&Arc<DestinationHealth>, AdminError> {
        let mut known = self.destinations.iter();
        known
            .find(|health| &*health.name().0 == name)
            .ok_or(AdminError::UnknownDestination)
    }

    /// Runs a change to its end, even if the client goes away.
    async fn change<T, C>(&self, change: C) -> Result<T, AdminError>
    where
        T: Send + 'static,
        C: Future<Output = Result<T, StoreError>> + Send + 'static,
    {
        let health = Arc::clone(&self.health);
        let destinations = self.destinations.clone();
        // Telling is part of it: whoever gave the order may be gone by then.
        let told = async move {
            let changed = change.await?;
            health.ledger_changed();
            health.order_given();
            for destination in destinations {
                destination.operator_acted();
            }
            Ok(changed)
        };
        self.detached.run(told).await?
    }
}

/// What Prometheus scrapes.
#[utoipa::path(
    get,
    path = "/metrics",
    responses(
        (status = 200, description = "Every metric, in Prometheus's text format.", body = String,
            content_type = "text/plain"),
        Interrupted,
    )
)]
pub async fn metrics(admin: web::Data<Admin>) -> Result<HttpResponse, AdminError> {
    let text = admin.metrics.render(&admin.snapshot().await)?;
    Ok(HttpResponse::Ok()
        .insert_header((CONTENT_TYPE, Metrics::CONTENT_TYPE))
        .body(text))
}

/// The status page.
#[utoipa::path(
    get,
    path = "/",
    responses((status = 200, description = "The page, without scripts.", body = String,
        content_type = "text/html"))
)]
pub async fn status_page(admin: web::Data<Admin>) -> HttpResponse {
    HttpResponse::Ok()
        .insert_header((CONTENT_TYPE, "text/html; charset=utf-8"))
        .insert_header((CONTENT_SECURITY_POLICY, page::CONTENT_SECURITY_POLICY))
        .insert_header((CACHE_CONTROL, "no-store"))
        .insert_header(("x-content-type-options", "nosniff"))
        .body(page::render(&admin.snapshot().await))
}

/// How the ledger and the destinations are doing.
#[utoipa::path(
    get,
    path = "/api/v1/status",
    responses((status = 200, description = "Also where they are doing badly.", body = StatusReply))
)]
pub async fn status(admin: web::Data<Admin>) -> web::Json<StatusReply> {
    let ledger = admin.store.ready().await;
    let snapshot = admin.snapshot().await;
    web::Json(StatusReply {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ledger: ledger.map_or_else(|error| error.to_string(), |()| "ok".to_owned()),
        leading: snapshot.leading,
        backlog: snapshot.backlog_pages,
        refused_secrets: snapshot
            .refused_secrets
            .iter()
            .map(RefusedSecretReply::from)
            .collect(),
        destinations: snapshot
            .destinations
            .iter()
            .map(|destination| DestinationReply::of(destination, &snapshot))
            .collect(),
    })
}

/// The cohorts of one person; an identifier that nobody has is in none.
#[utoipa::path(
    get,
    path = "/api/v1/members/{identifier}",
    params(("identifier" = String, Path, description = "Flagsmith's identifier, percent-encoded.")),
    responses(
        (status = 200, description = "All of them, left ones included.", body = MemberReply),
        Refused, LedgerFailed,
    ),
    security(("admin_token" = []))
)]
pub async fn member(
    _: Operator,
    admin: web::Data<Admin>,
    identifier: web::Path<String>,
) -> Result<web::Json<MemberReply>, AdminError> {
    let identifier = identifier.into_inner();
    let cohorts = admin.store.member(&identifier).await?;
    Ok(web::Json(MemberReply::of(identifier, cohorts)))
}

/// Erases one person from the ledger. Who is still in a cohort comes back with Mixpanel's next full
/// sync.
#[utoipa::path(
    delete,
    path = "/api/v1/members/{identifier}",
    params(
        ("identifier" = String, Path, description = "Flagsmith's identifier, percent-encoded."),
        ForgetQuery,
    ),
    responses(
        (status = 200, description = "The person is forgotten.", body = Forgotten),
        (status = 400, description = "The query is not understood.", body = ErrorReply),
        (status = 404, description = "Nothing was known of the person.", body = ErrorReply),
        Refused, LedgerFailed, Interrupted,
    ),
    security(("admin_token" = []))
)]
pub async fn forget(
    _: Operator,
    admin: web::Data<Admin>,
    identifier: web::Path<String>,
    request: HttpRequest,
) -> Result<web::Json<Forgotten>, AdminError> {
    let query = web::Query::<ForgetQuery>::from_query(request.query_string())
        .map_err(|_| AdminError::ForgetQuery)?;
    let traits = query.traits.is_some();
    let store = admin.store.clone();
    let now = admin.clock.now();
    let forgotten = admin
        .change(async move { store.forget(&identifier, traits, now).await })
        .await?;
    match forgotten {
        0 => Err(AdminError::UnknownPerson),
        forgotten => Ok(web::Json(Forgotten { forgotten })),
    }
}

/// The traits that could not be written: the oldest thousand.
#[utoipa::path(
    get,
    path = "/api/v1/dead-letters",
    responses(
        (status = 200, description = "Oldest first.", body = DeadLettersReply),
        Refused, LedgerFailed,
    ),
    security(("admin_token" = []))
)]
pub async fn dead_letters(
    _: Operator,
    admin: web::Data<Admin>,
) -> Result<web::Json<DeadLettersReply>, AdminError> {
    let letters = admin.store.dead_letters(DEAD_LETTERS_SHOWN).await?;
    Ok(web::Json(DeadLettersReply::of(letters)))
}

/// Tries dead letters again: all, or those that the body names.
#[utoipa::path(
    post,
    path = "/api/v1/dead-letters/retry",
    // By reference: an `Option` here would also allow `null`.
    request_body(
        content = ref("#/components/schemas/DeadLetterOrder"),
        content_type = "application/json",
        description = "None means all.",
    ),
    responses(
        (status = 200, description = "They are pending again.", body = Retried),
        (status = 400, description = "The body is not understood.", body = ErrorReply),
        Refused, LedgerFailed, Interrupted,
    ),
    security(("admin_token" = []))
)]
pub async fn retry_dead_letters(
    _: Operator,
    admin: web::Data<Admin>,
    body: web::Bytes,
) -> Result<web::Json<Retried>, AdminError> {
    let filter = filter(&body)?;
    let store = admin.store.clone();
    let now = admin.clock.now();
    let retried = admin
        .change(async move { store.retry_dead_letters(filter, now).await })
        .await?;
    Ok(web::Json(Retried { retried }))
}

/// Gives dead letters up for good: all, or those that the body names.
#[utoipa::path(
    post,
    path = "/api/v1/dead-letters/drop",
    // By reference: an `Option` here would also allow `null`.
    request_body(
        content = ref("#/components/schemas/DeadLetterOrder"),
        content_type = "application/json",
        description = "None means all.",
    ),
    responses(
        (status = 200, description = "They are gone.", body = Dropped),
        (status = 400, description = "The body is not understood.", body = ErrorReply),
        Refused, LedgerFailed, Interrupted,
    ),
    security(("admin_token" = []))
)]
pub async fn drop_dead_letters(
    _: Operator,
    admin: web::Data<Admin>,
    body: web::Bytes,
) -> Result<web::Json<Dropped>, AdminError> {
    let filter = filter(&body)?;
    let store = admin.store.clone();
    let now = admin.clock.now();
    let dropped = admin
        .change(async move { store.drop_dead_letters(filter, now).await })
        .await?;
    Ok(web::Json(Dropped { dropped }))
}

/// Everything that is not there.
pub async fn not_found() -> Result<HttpResponse, AdminError> {
    Err(AdminError::NotFound)
}

/// A path that is there, asked in another way.
pub async fn method_not_allowed() -> Result<HttpResponse, AdminError> {
    Err(AdminError::MethodNotAllowed)
}

/// No body means all dead letters; a misspelt key must not.
fn filter(body: &[u8]) -> Result<DeadLetterFilter, AdminError> {
    if body.is_empty() {
        return Ok(DeadLetterFilter::default());
    }
    let order: DeadLetterOrder = order(body)?;
    Ok(DeadLetterFilter {
        destination: order.destination,
        identifier: order.identifier,
    })
}

/// A body that is an object. By way of a map: serde would read an array as the values of an
/// object's keys, and an empty one as a filter without conditions.
fn order<T: DeserializeOwned>(body: &[u8]) -> Result<T, serde_json::Error> {
    let object: Map<String, Value> = serde_json::from_slice(body)?;
    T::deserialize(Value::Object(object))
}

#[cfg(test)]
mod tests {
    use actix_web::App;
    use actix_web::dev::ServiceResponse;
    use actix_web::http::{Method, StatusCode};
    use actix_web::test::{TestRequest, call_service, init_service, read_body};
    use secrecy::SecretString;
    use serde_json::json;
    use tokio::runtime::Handle;

    use super::*;
    use crate::clock::ManualClock;
    use crate::config::Kind;
    use crate::http::configure_admin;
    use futures_util::FutureExt;

    use crate::http::stub_store::StubStore;
    use crate::meter::{Allowance, Meter};
    use crate::plan::Terms;
    use crate::status::{DestinationState, RefusedSecret};

    pub(super) struct Desk {
        pub(super) store: Arc<StubStore>,
        pub(super) admin: web::Data<Admin>,
    }

    impl Desk {
        pub(super) fn at(bound: &str, token: Option<&str>) -> Self {
            let token = token.map(SecretString::from);
            let store = Arc::new(StubStore::default());
            let destination = DestinationHealth::new("production".into());
            destination.set(DestinationState::Halted {
                reason: "wrong key".into(),
            });
            destination.set_in_flight(2);
            destination.set_in_flight_limit(16);
            destination.canary_stayed(1_000);
            let clock = Arc::new(ManualClock::at(100_000));
            let allowance = Allowance {
                per_month: Some(1_000),
                ..Allowance::default()
            };
            destination.set_meter(Arc::new(Meter::new(clock, allowance)));
            let destination = Arc::new(destination);
            let clock = Arc::new(ManualClock::at(100_000));
            let terms = Terms {
                kind: Kind::Sdk,
                max_calls_per_second: Some(0.5),
                call_budget: Some(3),
            };
            let planned = vec![(terms, Arc::clone(&destination))];
            let planner = Planner::new(store.clone(), clock.clone(), planned);
            let admin = web::Data::new(Admin {
                store: store.clone(),
                clock,
                planner: Arc::new(planner),
                health: Arc::new(Health::new(1)),
                destinations: vec![destination],
                metrics: Arc::new(Metrics::new().unwrap()),
                detached: Detached::on(Handle::current()),
                access: Arc::new(AdminAccess::new(token.as_ref(), bound.parse().unwrap())),
            });
            Desk { store, admin }
        }

        pub(super) fn on_loopback() -> Self {
            Desk::at("127.0.0.1:9090", None)
        }

        pub(super) async fn call(&self, request: TestRequest) -> ServiceResponse {
            let admin = self.admin.clone();
            let app =
                init_service(App::new().configure(|config| configure_admin(config, admin))).await;
            call_service(&app, request.to_request()).await
        }

        pub(super) async fn ask(
            &self,
            method: Method,
            path: &str,
            body: &str,
        ) -> (StatusCode, Value) {
            let request = TestRequest::with_uri(path)
                .method(method)
                .insert_header(("host", "localhost:9090"))
                .set_payload(body.to_owned());
            let response = self.call(request).await;
            let status = response.status();
            let body = read_body(response).await;
            (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
        }

        pub(super) async fn get(&self, path: &str) -> (StatusCode, Value) {
            self.ask(Method::GET, path, "").await
        }

        pub(super) async fn post(&self, path: &str, body: &str) -> (StatusCode, Value) {
            self.ask(Method::POST, path, body).await
        }
    }

    #[actix_web::test]
    async fn a_member_has_the_promised_shape() {
        let (status, body) = Desk::on_loopback().get("/api/v1/members/usr_1").await;
        assert_eq!(status, 200);
        assert_eq!(
            body,
            json!({"identifier": "usr_1", "cohorts": [{
                "source": "default", "cohort_id": "7", "trait_key": "mixpanel_cohort_7",
                "member": true,
                "destinations": [{"name": "production", "written": null, "state": "pending",
                    "error": "503"}]}]})
        );
    }

    #[actix_web::test]
    async fn an_identifier_is_decoded_once() {
        for (path, identifier) in [
            ("a%2Fb", "a/b"),
            ("a%252Fb", "a%2Fb"),
            ("a%25b", "a%b"),
            ("a+b", "a+b"),
            ("a%2Bb", "a+b"),
            ("a%20b", "a b"),
            ("a%3Fb%23", "a?b#"),
            ("%C3%A9@x", "é@x"),
        ] {
            let desk = Desk::on_loopback();
            let (_, body) = desk.get(&format!("/api/v1/members/{path}")).await;
            assert_eq!(body["identifier"], identifier, "{path}");
            assert_eq!(
                *desk.store.orders.lock().unwrap(),
                [format!("member {identifier}")]
            );
        }
    }

    #[actix_web::test]
    async fn a_person_is_forgotten_as_asked() {
        let desk = Desk::on_loopback();
        for (path, status, body) in [
            ("usr_1", 200, json!({"forgotten": 2})),
            ("usr_1?traits=delete", 200, json!({"forgotten": 2})),
            (
                "usr%2F2",
                404,
                json!({"error": "nothing is known of this person"}),
            ),
        ] {
            let path = format!("/api/v1/members/{path}");
            let answer = desk.ask(Method::DELETE, &path, "").await;
            assert_eq!((answer.0.as_u16(), answer.1), (status, body), "{path}");
        }
        for query in [
            "traits=keep",
            "traits=",
            "traits",
            "trait=delete",
            "traits=delete&now",
        ] {
            let path = format!("/api/v1/members/usr_1?{query}");
            let (status, body) = desk.ask(Method::DELETE, &path, "").await;
            assert_eq!(status, 400, "{query}");
            let error = body["error"].as_str().unwrap();
            assert!(error.contains("?traits=delete"), "{error}");
        }
        assert_eq!(
            *desk.store.orders.lock().unwrap(),
            [
                "forget usr_1",
                "forget usr_1 and its traits",
                "forget usr/2"
            ]
        );
    }

    #[actix_web::test]
    async fn dead_letters_have_the_promised_shape() {
        let (status, body) = Desk::on_loopback().get("/api/v1/dead-letters").await;
        assert_eq!(status, 200);
        assert_eq!(
            body,
            json!({"dead_letters": [{
                "destination": "production", "identifier": "usr_1", "source": "default",
                "cohort_id": "7", "trait_key": "mixpanel_cohort_7", "member": true,
                "error": "400", "since": "1970-01-01T00:00:00.000Z"}]})
        );
    }

    #[actix_web::test]
    async fn status_has_the_promised_shape() {
        let desk = Desk::on_loopback();
        let (status, body) = desk.get("/api/v1/status").await;
        assert_eq!(status, 200);
        assert_eq!(
            body,
            json!({"version": env!("CARGO_PKG_VERSION"), "ledger": "ok", "leading": true,
                "backlog": 0,
                "refused_secrets": [],
                "destinations": [{"name": "production", "state": "halted",
                    "reason": "wrong key", "paused": false, "dry_run": false, "warning": null,
                    "in_flight": 2, "in_flight_limit": 16,
                    "calls": {"month": "1970-01", "made": 0, "budget": 1_000, "forecast": 5},
                    "canary": {"stayed_at": "1970-01-01T00:00:01.000Z", "next_at": null},
                    "resync": null}]})
        );
        desk.admin.health.stands_by();
        let (_, body) = desk.get("/api/v1/status").await;
        assert_eq!(body["leading"], false);
        assert_eq!(
            body["destinations"][0],
            json!({"name": "production", "state": "standby",
                "reason": "another replica folds and delivers", "paused": false,
                "dry_run": false, "warning": null, "in_flight": 2, "in_flight_limit": 0,
                "calls": null, "canary": {"stayed_at": null, "next_at": null},
                "resync": null})
        );
        desk.admin.health.set_refused_secrets(vec![RefusedSecret {
            setting: "COHORT_BRIDGE_ADMIN_TOKEN_FILE".into(),
            file: "/run/token".into(),
            reason: "it is empty".into(),
            since: 1_000,
        }]);
        desk.store.fail_with(Some(|| StoreError::Full));
        let (_, body) = desk.get("/api/v1/status").await;
        assert_eq!(
            body["refused_secrets"],
            json!([{"setting": "COHORT_BRIDGE_ADMIN_TOKEN_FILE", "file": "/run/token",
                "reason": "it is empty", "since": "1970-01-01T00:00:01.000Z"}])
        );
        assert_eq!(body["ledger"], StoreError::Full.to_string());
    }

    #[actix_web::test]
    async fn an_order_whose_client_went_away_is_told_all_the_same() {
        let desk = Desk::on_loopback();
        let (go, gate) = tokio::sync::oneshot::channel::<()>();
        let change = async move {
            let _ = gate.await;
            Ok(())
        };
        let destination = &desk.admin.destinations[0];
        let acts = destination.acts();
        let changes = desk.admin.health.ledger_changes();
        assert!(desk.admin.change(change).now_or_never().is_none());
        assert!(!acts.has_changed().unwrap());
        go.send(()).unwrap();
        desk.admin.detached.finish().await;
        assert!(acts.has_changed().unwrap());
        assert!(destination.resync_is_ordered().now_or_never().is_some());
        assert!(changes.has_changed().unwrap());
        assert!(desk.admin.health.fold_is_wanted().now_or_never().is_some());
    }

    #[actix_web::test]
    async fn dead_letters_are_retried_and_dropped_as_asked() {
        let desk = Desk::on_loopback();
        let (_, body) = desk.post("/api/v1/dead-letters/retry", "").await;
        assert_eq!(body, json!({"retried": 4}));
        let only = r#"{"destination": "production", "identifier": "usr_1"}"#;
        let (_, body) = desk.post("/api/v1/dead-letters/drop", only).await;
        assert_eq!(body, json!({"dropped": 5}));
        assert_eq!(
            *desk.store.orders.lock().unwrap(),
            [
                "retry None None",
                r#"drop Some("production") Some("usr_1")"#
            ]
        );
    }

    #[actix_web::test]
    async fn a_misspelt_filter_does_not_mean_everything() {
        let desk = Desk::on_loopback();
        for body in [r#"{"identifer": "usr_1"}"#, "[]", "usr_1"] {
            let (status, reply) = desk.post("/api/v1/dead-letters/drop", body).await;
            assert_eq!(status, 400, "{body}");
            assert!(reply["error"].is_string(), "{body}");
        }
        assert!(desk.store.orders.lock().unwrap().is_empty());
    }

    #[actix_web::test]
    async fn the_ledgers_trouble_is_a_503() {
        let desk = Desk::on_loopback();
        desk.store.fail_with(Some(|| StoreError::Full));
        let (status, body) = desk.get("/api/v1/cohorts").await;
        assert_eq!(status, 503);
        assert_eq!(body["error"], StoreError::Full.to_string());
        let (status, _) = desk.post("/api/v1/cohorts/default/7/resync", "").await;
        assert_eq!(status, 503);
    }

    #[actix_web::test]
    async fn what_changes_or_names_a_person_is_guarded_and_nothing_else() {
        let desk = Desk::at("0.0.0.0:9090", Some("tok-en"));
        let guarded = [
            (Method::GET, "/api/v1/members/usr_1", ""),
            (Method::DELETE, "/api/v1/members/usr_1", ""),
            (Method::GET, "/api/v1/dead-letters", ""),
            (Method::POST, "/api/v1/dead-letters/retry", ""),
            (Method::POST, "/api/v1/dead-letters/drop", ""),
            (Method::POST, "/api/v1/cohorts/default/7/resync", ""),
            (Method::POST, "/api/v1/cohorts/default/7/retire", ""),
            (
                Method::POST,
                "/api/v1/cohorts/default/7/held-removals",
                r#"{"decision": "approve"}"#,
            ),
        ];
        for (method, path, body) in guarded {
            let request = TestRequest::with_uri(path)
                .method(method.clone())
                .set_payload(body);
            let refused = desk.call(request).await;
            assert_eq!(refused.status(), 401, "{path}");
            assert_eq!(
                refused.headers().get("www-authenticate").unwrap(),
                "Bearer",
                "{path}"
            );
            let request = TestRequest::with_uri(path)
                .method(method.clone())
                .insert_header(("authorization", "Bearer tok-en"))
                .set_payload(body);
            assert_eq!(desk.call(request).await.status(), 200, "{path}");

            let unguarded = Desk::at("0.0.0.0:9090", None);
            let (status, body) = unguarded.ask(method, path, body).await;
            assert_eq!(status, 403, "{path}");
            let error = body["error"].as_str().unwrap();
            assert!(error.contains("COHORT_BRIDGE_ADMIN_TOKEN"), "{path}");
            assert!(unguarded.store.orders.lock().unwrap().is_empty(), "{path}");
        }
        for path in [
            "/",
            "/livez",
            "/readyz",
            "/metrics",
            "/api/v1/status",
            "/api/v1/cohorts",
            "/api/v1/cohorts/default/7/held-removals",
        ] {
            assert_eq!(desk.get(path).await.0, 200, "{path}");
        }
    }

    #[actix_web::test]
    async fn a_page_of_another_origin_changes_nothing() {
        let desk = Desk::on_loopback();
        for header in [
            ("origin", "https://evil.example.com"),
            ("host", "evil.example.com"),
        ] {
            let request = TestRequest::post()
                .uri("/api/v1/dead-letters/drop")
                .insert_header(("host", "localhost:9090"))
                .insert_header(header);
            assert_eq!(desk.call(request).await.status(), 403, "{header:?}");
        }
        assert!(desk.store.orders.lock().unwrap().is_empty());
    }

    #[actix_web::test]
    async fn readiness_is_whether_pages_can_be_taken_in() {
        let desk = Desk::on_loopback();
        assert_eq!(desk.get("/readyz").await.0, 200);
        desk.store.fail_with(Some(|| StoreError::Full));
        let (status, body) = desk.get("/readyz").await;
        assert_eq!(status, 503);
        assert_eq!(body["reason"], StoreError::Full.to_string());
        desk.store.fail_with(None);
        desk.admin.health.page_appended();
        assert_eq!(desk.get("/readyz").await.0, 503);
        desk.admin.health.pages_folded(1);
        assert_eq!(desk.get("/readyz").await.0, 200);
        desk.admin.health.shut_down();
        assert_eq!(desk.get("/readyz").await.0, 503);
        assert_eq!(desk.get("/livez").await.0, 200);
    }

    #[actix_web::test]
    async fn the_status_page_can_run_nothing_and_names_nobody() {
        let desk = Desk::on_loopback();
        let response = desk.call(TestRequest::get().uri("/")).await;
        assert_eq!(response.status(), 200);
        assert_eq!(
            response.headers().get("content-security-policy").unwrap(),
            "default-src 'none'; style-src 'unsafe-inline'"
        );
        let page = read_body(response).await;
        let page = std::str::from_utf8(&page).unwrap();
        assert!(page.starts_with("<!DOCTYPE html>"));
        assert!(page.contains("Trial power users 7"));
        assert!(!page.contains("<script") && !page.contains("usr_1"));
    }

    #[actix_web::test]
    async fn an_unreadable_ledger_does_not_blind_the_scrape() {
        let desk = Desk::on_loopback();
        desk.store.fail_with(Some(|| StoreError::Full));
        for path in ["/metrics", "/"] {
            assert_eq!(desk.get(path).await.0, 200, "{path}");
        }
    }

    #[actix_web::test]
    async fn what_is_not_there_is_said_in_json() {
        let desk = Desk::on_loopback();
        for path in ["/nothing", "/api/v1/nothing", "/api/v1/members/"] {
            let (status, body) = desk.get(path).await;
            assert_eq!(status, 404, "{path}");
            assert_eq!(body, json!({"error": "not found"}), "{path}");
        }
        let (status, body) = desk.post("/api/v1/cohorts", "").await;
        assert_eq!(status, 405);
        assert_eq!(body, json!({"error": "method not allowed"}));
    }
}
