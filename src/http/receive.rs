//! The front door: an authentic body becomes a page in the inbox, and only then an answer.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use actix_web::{HttpMessage, HttpRequest, HttpResponse, ResponseError, web};
use tracing::field;

use super::Detached;
use super::authenticate::{Authentic, DEFAULT_SOURCE, Intake};
use super::error::{self, NotStored, ReceiveError};
use crate::clock::{Clock, Millis, Stopwatch};
use crate::cohort::{Action, SourceName};
use crate::config::Source;
use crate::metrics::{Metrics, UNKNOWN_SOURCE};
use crate::mixpanel::{self, Page, Parsed, Rejected};
use crate::roster::Roster;
use crate::status::Health;
use crate::store::Store;

/// Bytes. A body of this size takes some milliseconds to parse; a larger one would make the other
/// connections of the same worker wait, and is parsed elsewhere.
const PARSE_INLINE_BELOW_BYTES: usize = 1024 * 1024;

/// Everything the front door needs behind authentication.
pub struct Receiver {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    detached: Detached,
    seen: SeenProperties,
}

/// What [`Receiver`] is made of.
pub struct ReceiverParts {
    /// Where pages are written down.
    pub store: Arc<dyn Store>,
    /// When they came.
    pub clock: Arc<dyn Clock>,
    /// Whether they are taken in.
    pub health: Arc<Health>,
    /// Where they are counted.
    pub metrics: Arc<Metrics>,
    /// Where they are written down though the client has gone.
    pub detached: Detached,
}

impl Receiver {
    /// A front door that nothing came through yet.
    pub fn new(parts: ReceiverParts) -> Self {
        Receiver {
            store: parts.store,
            clock: parts.clock,
            health: parts.health,
            metrics: parts.metrics,
            detached: parts.detached,
            seen: SeenProperties::default(),
        }
    }

    /// Writes the page down, or says why Mixpanel has to send it again or to change it.
    async fn record(&self, reading: Reading) -> Result<(), ReceiveError> {
        let Reading {
            source,
            parsed,
            receipt,
        } = reading;
        if let Some(refusal) = self.health.refusal() {
            return Err(receipt.not_stored(refusal.into()));
        }
        self.require_identifier_property(&source, &parsed, &receipt)
            .await?;
        self.store
            .append(&source.name, parsed.page, self.clock.now())
            .await
            .map_err(|error| receipt.not_stored(NotStored::Ledger(error)))?;
        self.health.page_appended();
        let page = &receipt.page;
        self.metrics.page_recorded(
            &receipt.source,
            page.action,
            page.members_received,
            &page.set_aside,
        );
        Ok(())
    }

    /// One anonymous person alone on a page must not pause a sync, a wrongly set up export must:
    /// told apart by whether the source ever sent one of the properties.
    async fn require_identifier_property(
        &self,
        source: &Source,
        parsed: &Parsed,
        receipt: &Receipt,
    ) -> Result<(), ReceiveError> {
        let properties = source.identifier.properties();
        for (property, &on_page) in properties.iter().zip(&parsed.property_seen) {
            if on_page && !self.seen.contains(&source.name, property) {
                self.store
                    .note_property(&source.name, property)
                    .await
                    .map_err(|error| receipt.not_stored(NotStored::Ledger(error)))?;
                self.seen.insert(&source.name, property);
            }
        }
        if !parsed.property_is_absent() {
            return Ok(());
        }
        for property in properties {
            if self.has_sent(&source.name, property, receipt).await? {
                return Ok(());
            }
        }
        Err(ReceiveError::Rejected(Rejected::property_absent(
            receipt.page.action,
            &source.identifier,
        )))
    }

    async fn has_sent(
        &self,
        source: &SourceName,
        property: &str,
        receipt: &Receipt,
    ) -> Result<bool, ReceiveError> {
        if self.seen.contains(source, property) {
            return Ok(true);
        }
        let sent = self
            .store
            .has_sent_property(source, property)
            .await
            .map_err(|error| receipt.not_stored(NotStored::Ledger(error)))?;
        if sent {
            self.seen.insert(source, property);
        }
        Ok(sent)
    }

    /// Counts and logs the one outcome of a request, and has our own trouble with a page remembered:
    /// Mixpanel then does not take its run for a success.
    fn conclude(
        &self,
        source: &str,
        receipt: Option<&Receipt>,
        outcome: &Result<(), ReceiveError>,
        stopwatch: Stopwatch,
    ) {
        let action = match (receipt, outcome) {
            (Some(receipt), _) => Some(receipt.page.action.as_str()),
            (None, Err(error)) => error.action(),
            (None, Ok(())) => None,
        };
        let status = match outcome {
            Ok(()) => 200,
            Err(error) => error.status_code().as_u16(),
        };
        if let (Some(receipt), Err(ReceiveError::NotStored { .. })) = (receipt, outcome) {
            // A page that came since may have been taken in elsewhere: then that was the last answer.
            self.store
                .note_refused(&receipt.source, &receipt.page, receipt.came_at);
        }
        let elapsed = stopwatch.elapsed();
        self.metrics
            .webhook_answered(source, action, status, elapsed);

        let took_ms = elapsed.as_micros() as f64 / 1_000.0;
        macro_rules! log_page {
            ($level:ident, $receipt:ident, $($more:tt)*) => {
                tracing::$level!(
                    source,
                    cohort_id = $receipt.page.cohort_id,
                    action,
                    session = $receipt.page.session_id,
                    page = $receipt.page.page_info.map(|info| info.number),
                    total_pages = $receipt.page.page_info.map(|info| info.total),
                    members = $receipt.page.members_received,
                    set_aside = $receipt.set_aside_members(),
                    status,
                    took_ms,
                    $($more)*
                )
            };
        }
        match (outcome, receipt) {
            (Ok(()), Some(receipt)) => log_page!(info, receipt, "page recorded"),
            (Err(error), Some(receipt)) => {
                let ledger_error = error.ledger_error().map(field::display);
                log_page!(warn, receipt, ledger_error, error = %error, "page refused");
            }
            (Err(error), None) => {
                tracing::warn!(source, status, took_ms, error = %error, "request refused");
            }
            (Ok(()), None) => {}
        }
    }
}

/// The source in the path, where it is one of the settings.
fn source_label(request: &HttpRequest) -> SourceName {
    let name = request.match_info().get("source").unwrap_or(DEFAULT_SOURCE);
    let name = SourceName::from(name);
    request
        .app_data::<web::Data<Intake>>()
        .filter(|intake| intake.sources.get(&name).is_some())
        .map_or_else(|| UNKNOWN_SOURCE.into(), |_| name)
}

/// `POST /webhooks/mixpanel[/{source}]`.
pub async fn receive(
    request: HttpRequest,
    receiver: web::Data<Receiver>,
    authentic: Result<Authentic, ReceiveError>,
) -> HttpResponse {
    let stopwatch = stopwatch(&request);
    let source = source_label(&request);
    let receiver = receiver.into_inner();

    let reading = match authentic {
        Ok(authentic) => read(authentic, receiver.clock.now()).await,
        Err(error) => Err(error),
    };
    let reading = match reading {
        Ok(reading) => reading,
        Err(error) => {
            let response = error.error_response();
            receiver.conclude(&source.0, None, &Err(error), stopwatch);
            return response;
        }
    };

    let receipt = reading.receipt.clone();
    let detached = receiver.detached.clone();
    let recorded = detached.run({
        let receiver = receiver.clone();
        let receipt = receipt.clone();
        let source = source.clone();
        async move {
            let outcome = receiver.record(reading).await;
            receiver.conclude(&source.0, Some(&receipt), &outcome, stopwatch);
            outcome
        }
    });
    let outcome = recorded.await.unwrap_or_else(|_| {
        let outcome = Err(receipt.not_stored(NotStored::Interrupted));
        receiver.conclude(&source.0, Some(&receipt), &outcome, stopwatch);
        outcome
    });
    answer(receipt.page.action, outcome)
}

/// Everything else on the public listener.
pub async fn not_found(request: HttpRequest, receiver: web::Data<Receiver>) -> HttpResponse {
    let error = ReceiveError::NothingHere;
    let response = error.error_response();
    receiver.conclude(UNKNOWN_SOURCE, None, &Err(error), stopwatch(&request));
    response
}

/// The request's, from before it was authenticated.
fn stopwatch(request: &HttpRequest) -> Stopwatch {
    request
        .extensions()
        .get::<Stopwatch>()
        .copied()
        .unwrap_or_else(Stopwatch::start)
}

fn answer(action: Action, outcome: Result<(), ReceiveError>) -> HttpResponse {
    match outcome {
        Ok(()) => error::success(action),
        Err(error) => error.error_response(),
    }
}

/// A page of a known sender.
struct Reading {
    source: Arc<Source>,
    parsed: Parsed,
    receipt: Arc<Receipt>,
}

async fn read(authentic: Authentic, came_at: Millis) -> Result<Reading, ReceiveError> {
    let Authentic { source, body, .. } = authentic;
    let parsed = if body.len() < PARSE_INLINE_BELOW_BYTES {
        mixpanel::parse(&body, &source.identifier)
    } else {
        let source = source.clone();
        web::block(move || mixpanel::parse(&body, &source.identifier))
            .await
            .map_err(|_| ReceiveError::Unavailable)?
    };
    let parsed = parsed.map_err(ReceiveError::Rejected)?;
    let receipt = Arc::new(Receipt::of(&source.name, &parsed.page, came_at));
    Ok(Reading {
        source,
        parsed,
        receipt,
    })
}

/// What is said of a page once its people are out of sight.
#[derive(Debug)]
struct Receipt {
    source: SourceName,
    /// Without its people.
    page: Page,
    came_at: Millis,
}

impl Receipt {
    fn of(source: &SourceName, page: &Page, came_at: Millis) -> Self {
        Receipt {
            source: source.clone(),
            came_at,
            // Field by field: a clone would copy every person first.
            page: Page {
                action: page.action,
                project_id: page.project_id.clone(),
                cohort_id: page.cohort_id.clone(),
                cohort_name: page.cohort_name.clone(),
                session_id: page.session_id.clone(),
                page_info: page.page_info,
                identified_by: page.identified_by.clone(),
                roster: Roster::default(),
                members_received: page.members_received,
                set_aside: page.set_aside.clone(),
            },
        }
    }

    fn set_aside_members(&self) -> usize {
        self.page.set_aside.iter().map(|(_, members)| members).sum()
    }

    fn not_stored(&self, cause: NotStored) -> ReceiveError {
        ReceiveError::NotStored {
            action: self.page.action,
            page: self.to_string(),
            cause,
        }
    }
}

impl fmt::Display for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.page.page_info {
            Some(info) => write!(f, "page {} of {}", info.number, info.total)?,
            None => f.write_str("a page")?,
        }
        write!(f, " for cohort {}", self.page.cohort_id)
    }
}

/// Identifier properties that sources were seen to send; the store remembers them for good.
#[derive(Debug, Default)]
struct SeenProperties(RwLock<HashMap<SourceName, HashSet<String>>>);

impl SeenProperties {
    fn contains(&self, source: &SourceName, property: &str) -> bool {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(source)
            .is_some_and(|properties| properties.contains(property))
    }

    fn insert(&self, source: &SourceName, property: &str) {
        self.0
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(source.clone())
            .or_default()
            .insert(property.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use actix_web::App;
    use actix_web::body::to_bytes;
    use actix_web::dev::ServiceResponse;
    use actix_web::http::{Method, StatusCode};
    use actix_web::middleware::from_fn;
    use actix_web::test::{TestRequest, call_service, init_service};
    use futures_util::poll;
    use serde_json::{Value, json};
    use tokio::runtime::Handle;

    use super::*;
    use crate::clock::ManualClock;
    use crate::http::stub_intake::{BASIC, intake};
    use crate::http::stub_store::StubStore;
    use crate::http::{configure_webhook, request_id};
    use crate::roster::Roster;
    use crate::store::StoreError;

    struct Door {
        store: Arc<StubStore>,
        health: Arc<Health>,
        metrics: Arc<Metrics>,
        detached: Detached,
    }

    impl Door {
        fn to(store: StubStore) -> Self {
            Door {
                store: Arc::new(store),
                health: Arc::new(Health::new(2)),
                metrics: Arc::new(Metrics::new().unwrap()),
                detached: Detached::on(Handle::current()),
            }
        }

        async fn app(&self) -> impl AsyncFn(TestRequest) -> ServiceResponse {
            let receiver = web::Data::new(Receiver::new(ReceiverParts {
                store: self.store.clone(),
                clock: Arc::new(ManualClock::at(1_000)),
                health: self.health.clone(),
                metrics: self.metrics.clone(),
                detached: self.detached.clone(),
            }));
            let intake = web::Data::new(intake(&["default", "eu"], &["uid", "crm"]));
            let app = init_service(
                App::new()
                    .wrap(from_fn(request_id))
                    .configure(|config| configure_webhook(config, intake, receiver)),
            )
            .await;
            async move |request: TestRequest| {
                let response = call_service(&app, request.to_request()).await;
                response.map_into_boxed_body()
            }
        }

        async fn post(&self, path: &str, body: &Value) -> (StatusCode, Value) {
            let app = self.app().await;
            reply(app(request(path, body)).await).await
        }

        fn counted(&self, line: &str) -> bool {
            let snapshot = crate::status::StatusSnapshot {
                leading: true,
                now: 0,
                backlog_pages: 0,
                refusal: None,
                refused_secrets: vec![],
                destinations: vec![],
                cohorts: Ok(vec![]),
            };
            let text = self.metrics.render(&snapshot).unwrap();
            text.lines().any(|l| l == line)
        }
    }

    fn request(path: &str, body: &Value) -> TestRequest {
        TestRequest::post()
            .uri(path)
            .insert_header(("authorization", BASIC))
            .set_payload(body.to_string())
    }

    async fn reply(response: ServiceResponse) -> (StatusCode, Value) {
        assert!(response.headers().contains_key("x-request-id"));
        let status = response.status();
        let body = to_bytes(response.into_body()).await.unwrap();
        (status, serde_json::from_slice(&body).unwrap())
    }

    fn page(members: Value) -> Value {
        json!({"action": "members", "parameters": {
            "mixpanel_project_id": "2914407", "mixpanel_cohort_id": "5518203",
            "mixpanel_cohort_name": "Trial power users", "mixpanel_session_id": "s1",
            "page_info": {"total_pages": 3, "page_count": 2}, "members": members}})
    }

    const PATH: &str = "/webhooks/mixpanel";

    #[actix_web::test]
    async fn a_page_is_answered_once_it_is_written_down() {
        let door = Door::to(StubStore::default());
        let sent = page(json!([{"uid": "a"}, {"uid": null}]));
        let (status, body) = door.post("/webhooks/mixpanel/eu", &sent).await;
        assert_eq!(status, 200);
        assert_eq!(body, json!({"action": "members", "status": "success"}));
        let pages = door.store.pages.lock().unwrap();
        assert_eq!(pages.len(), 1);
        assert_eq!(&*pages[0].0.0, "eu");
        assert_eq!(pages[0].1.roster, Roster::of_identifiers(["a"]));
        assert_eq!(door.health.backlog(), 1);
        for line in [
            r#"cohort_bridge_webhook_requests_total{action="members",source="eu",status="200"} 1"#,
            r#"cohort_bridge_members_received_total{action="members",source="eu"} 2"#,
            r#"cohort_bridge_members_set_aside_total{reason="missing",source="eu"} 1"#,
        ] {
            assert!(door.counted(line), "{line}");
        }
    }

    #[actix_web::test]
    async fn a_large_page_is_taken_in_too() {
        let door = Door::to(StubStore::default());
        let long = "x".repeat(PARSE_INLINE_BELOW_BYTES);
        let (status, _) = door
            .post(PATH, &page(json!([{"uid": "a", "about": long}])))
            .await;
        assert_eq!(status, 200);
    }

    #[actix_web::test]
    async fn a_full_disk_is_mixpanels_sign_to_try_again() {
        let door = Door::to(StubStore::default());
        door.store.properties.lock().unwrap().insert("uid".into());
        let app = door.app().await;
        door.store.fail_with(Some(|| StoreError::Full));
        let response = app(request(PATH, &page(json!([])))).await;
        assert!(response.headers().contains_key("retry-after"));
        let (status, body) = reply(response).await;
        assert_eq!(status, 503);
        assert_eq!(
            body,
            json!({"action": "members", "status": "failure", "error": {"code": 503,
                "message": "the disk that holds the ledger is full; page 2 of 3 for cohort 5518203 was not stored. Mixpanel will retry."}})
        );
        assert_eq!(door.health.backlog(), 0);
        assert!(!door.counted(
            r#"cohort_bridge_members_received_total{action="members",source="default"} 0"#
        ));

        door.store.fail_with(None);
        let again = app(request(PATH, &page(json!([])))).await;
        assert_eq!(again.status(), 200);
    }

    #[actix_web::test]
    async fn other_trouble_of_the_store_is_told_to_the_log_alone() {
        let log = crate::http::stub_log::Log::default();
        let _guard = log.capture();
        let door = Door::to(StubStore::failing(|| StoreError::Io {
            path: "/secret/path".into(),
            source: std::io::ErrorKind::Other.into(),
        }));
        let (status, body) = door.post(PATH, &page(json!([{"uid": "a"}]))).await;
        assert_eq!(status, 503);
        assert!(!body.to_string().contains("secret"));
        let lines = log.lines();
        assert_eq!(lines.len(), 1, "{lines:?}");
        let line: Value = serde_json::from_str(&lines[0]).unwrap();
        assert_eq!(line["level"], "WARN");
        let ledger_error = line["fields"]["ledger_error"].as_str().unwrap();
        assert!(ledger_error.contains("/secret/path"));
    }

    #[actix_web::test]
    async fn over_the_backlogs_limit_and_at_shutdown_nothing_is_taken_in() {
        let door = Door::to(StubStore::default());
        let sent = page(json!([]));
        door.health.page_appended();
        assert_eq!(door.post(PATH, &sent).await.0, 200);
        let (status, body) = door.post(PATH, &sent).await;
        assert_eq!(status, 503);
        assert_eq!(body["action"], "members");
        door.health.pages_folded(2);
        assert_eq!(door.post(PATH, &sent).await.0, 200);
        door.health.shut_down();
        assert_eq!(door.post(PATH, &sent).await.0, 503);
        assert_eq!(door.store.pages.lock().unwrap().len(), 2);
    }

    #[actix_web::test]
    async fn a_property_that_was_never_sent_is_a_fault_of_the_export() {
        let door = Door::to(StubStore::default());
        let (status, body) = door.post(PATH, &page(json!([{"mail": 1}]))).await;
        assert_eq!(status, 400);
        assert_eq!(body["action"], "members");
        let message = body["error"]["message"].as_str().unwrap();
        assert!(message.contains("uid") && message.contains("Properties to Export"));
        assert!(door.store.pages.lock().unwrap().is_empty());
        assert_eq!(door.post(PATH, &page(json!([]))).await.0, 200);
    }

    #[actix_web::test]
    async fn a_property_sent_before_excuses_a_page_without_it() {
        let without = page(json!([{"mail": 1}]));

        // Sent in an earlier run of the program.
        let door = Door::to(StubStore::default());
        door.store.properties.lock().unwrap().insert("crm".into());
        assert_eq!(door.post(PATH, &without).await.0, 200);

        // Sent in this one; noted once, whatever its value.
        let door = Door::to(StubStore::default());
        let app = door.app().await;
        for body in [
            page(json!([{"crm": null}])),
            page(json!([{"crm": "c"}])),
            without,
        ] {
            door.health.pages_folded(1);
            let response = app(request(PATH, &body)).await;
            assert_eq!(response.status(), 200, "{body}");
        }
        assert_eq!(*door.store.notes.lock().unwrap(), ["crm"]);
    }

    #[actix_web::test]
    async fn a_note_that_failed_is_made_again() {
        let door = Door::to(StubStore::failing(|| StoreError::Full));
        let app = door.app().await;
        let sent = page(json!([{"uid": "a"}]));
        let refused = app(request(PATH, &sent)).await;
        assert_eq!(refused.status(), 503);
        door.store.fail_with(None);
        let taken = app(request(PATH, &sent)).await;
        assert_eq!(taken.status(), 200);
        assert_eq!(*door.store.notes.lock().unwrap(), ["uid"]);
    }

    #[actix_web::test]
    async fn a_reset_of_the_client_does_not_stop_the_append() {
        let mut store = StubStore::default();
        store.gate = tokio::sync::Semaphore::new(0);
        let door = Door::to(store);
        let app = door.app().await;
        {
            let mut call = Box::pin(app(request(PATH, &page(json!([{"uid": "a"}])))));
            while door.store.appending() == 0 {
                assert!(matches!(poll!(&mut call), Poll::Pending));
                tokio::task::yield_now().await;
            }
        }
        door.store.gate.add_permits(1);
        door.detached.finish().await;
        assert_eq!(door.store.pages.lock().unwrap().len(), 1);
        assert!(door.counted(
            r#"cohort_bridge_webhook_requests_total{action="members",source="default",status="200"} 1"#
        ));
    }

    #[actix_web::test]
    async fn a_panic_in_the_store_is_our_own_trouble() {
        let door = Door::to(StubStore::failing(|| panic!("a fault of the program")));
        let (status, body) = door.post(PATH, &page(json!([]))).await;
        assert_eq!(status, 503);
        assert_eq!(body["error"]["code"], 503);
    }

    #[actix_web::test]
    async fn our_own_trouble_with_a_page_is_noted_once_and_nothing_else_is() {
        let good = page(json!([{"uid": "a"}]));
        let empty = page(json!([]));
        let absent = page(json!([{"mail": 1}]));
        let unknown = json!({"action": "explode", "parameters": {}});
        let full: fn() -> StoreError = || StoreError::Full;
        let panics: fn() -> StoreError = || panic!("a fault of the program");
        let works = |_: &Door| {};
        let backlog = |door: &Door| door.health.pages_found(2);
        let shut_down = |door: &Door| door.health.shut_down();
        type Trouble = fn(&Door);
        for (failure, trouble, sent, status) in [
            (None, works as Trouble, &good, 200),
            (None, works, &absent, 400),
            (None, works, &unknown, 400),
            (Some(full), works, &unknown, 400),
            // Where the property is noted, where the page is appended, where it is looked up.
            (Some(full), works, &good, 503),
            (Some(full), works, &empty, 503),
            (Some(full), works, &absent, 503),
            (Some(panics), works, &empty, 503),
            (None, backlog, &good, 503),
            (None, shut_down, &good, 503),
        ] {
            let door = Door::to(StubStore::default());
            door.store.fail_with(failure);
            trouble(&door);
            let answer = door.post("/webhooks/mixpanel/eu", sent).await;
            assert_eq!(answer.0, status, "{answer:?}");
            let refused = door.store.refused.lock().unwrap();
            assert_eq!(refused.len(), usize::from(status == 503), "{answer:?}");
            for (source, page) in refused.iter() {
                assert_eq!(&*source.0, "eu");
                assert_eq!(page.cohort_id, "5518203");
                assert_eq!(page.session_id.as_deref(), Some("s1"));
                assert_eq!(page.page_info.unwrap().number, 2);
                assert!(page.roster.is_empty());
            }
        }
    }

    #[actix_web::test]
    async fn a_stranger_is_not_noted() {
        let door = Door::to(StubStore::failing(|| StoreError::Full));
        let app = door.app().await;
        let request = TestRequest::post()
            .uri(PATH)
            .set_payload(page(json!([{"uid": "a"}])).to_string());
        assert_eq!(app(request).await.status(), 401);
        assert!(door.store.refused.lock().unwrap().is_empty());
    }

    #[actix_web::test]
    async fn a_refusal_is_counted_under_names_that_are_bounded() {
        let door = Door::to(StubStore::default());
        let unknown = json!({"action": "explode", "parameters": {}});
        let (status, body) = door.post(PATH, &unknown).await;
        assert_eq!(status, 400);
        assert_eq!(body["action"], "explode");
        assert_eq!(door.post("/webhooks/mixpanel/us", &unknown).await.0, 404);
        for line in [
            r#"cohort_bridge_webhook_requests_total{action="other",source="default",status="400"} 1"#,
            r#"cohort_bridge_webhook_requests_total{action="other",source="unknown",status="404"} 1"#,
        ] {
            assert!(door.counted(line), "{line}");
        }
    }

    #[actix_web::test]
    async fn an_unauthentic_request_reaches_nothing() {
        let door = Door::to(StubStore::default());
        let app = door.app().await;
        let request = TestRequest::post()
            .uri(PATH)
            .set_payload(page(json!([{"uid": "a"}])).to_string());
        let (status, body) = reply(app(request).await).await;
        assert_eq!(status, 401);
        assert_eq!(body["action"], Value::Null);
        assert!(door.store.pages.lock().unwrap().is_empty());
    }

    #[actix_web::test]
    async fn nothing_else_answers_but_404() {
        let door = Door::to(StubStore::default());
        let app = door.app().await;
        for (method, path) in [
            (Method::GET, "/webhooks/mixpanel"),
            (Method::PUT, "/webhooks/mixpanel/eu"),
            (Method::HEAD, "/webhooks/mixpanel"),
            (Method::OPTIONS, "/webhooks/mixpanel"),
            (Method::POST, "/webhooks/mixpanel/"),
            (Method::POST, "/webhooks/mixpanel/eu/more"),
            (Method::GET, "/"),
            (Method::GET, "/metrics"),
            (Method::GET, "/livez"),
        ] {
            let request = TestRequest::with_uri(path)
                .method(method.clone())
                .insert_header(("authorization", BASIC));
            let (status, body) = reply(app(request).await).await;
            assert_eq!(status, 404, "{method} {path}");
            assert_eq!(body["error"]["code"], 404, "{method} {path}");
        }
    }

    #[actix_web::test]
    async fn the_log_tells_of_the_page_and_of_no_person() {
        let log = crate::http::stub_log::Log::default();
        let _guard = log.capture();
        let door = Door::to(StubStore::default());
        let sent = page(json!([{"uid": "usr_secret", "email": "e@example.com"}]));
        let app = door.app().await;
        app(request(PATH, &sent).insert_header(("x-request-id", "my-id"))).await;
        let lines = log.lines();
        assert_eq!(lines.len(), 1, "{lines:?}");
        let line: Value = serde_json::from_str(&lines[0]).unwrap();
        assert_eq!(line["level"], "INFO");
        assert_eq!(line["span"]["request_id"], "my-id");
        assert_eq!(line["span"]["route"], PATH);
        let fields = &line["fields"];
        for (field, value) in [
            ("source", json!("default")),
            ("cohort_id", json!("5518203")),
            ("action", json!("members")),
            ("session", json!("s1")),
            ("page", json!(2)),
            ("total_pages", json!(3)),
            ("members", json!(1)),
            ("set_aside", json!(0)),
            ("status", json!(200)),
        ] {
            assert_eq!(fields[field], value, "{field}");
        }
        assert!(fields["took_ms"].is_number());
        assert!(!lines[0].contains("secret") && !lines[0].contains("example.com"));
    }
}
