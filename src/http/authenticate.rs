//! Authentication as an extractor: [`Authentic`] is the only way to a webhook's body, so no handler
//! can forget it.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use actix_web::dev::Payload;
use actix_web::http::header::CONTENT_LENGTH;
use actix_web::web::{Bytes, BytesMut, Data};
use actix_web::{FromRequest, HttpRequest};
use futures_util::StreamExt as _;
use futures_util::future::LocalBoxFuture;

pub use super::credentials::{Credentials, CredentialsError, Proof, Unauthenticated};
use super::error::ReceiveError;
use crate::clock::{Clock, millis};
use crate::cohort::SourceName;
use crate::config::Source;

/// The source of the path without a name.
pub const DEFAULT_SOURCE: &str = "default";

/// How long a whole body may take, from the end of the headers on.
pub const BODY_DEADLINE: Duration = Duration::from_secs(10);

/// Bytes reserved for a body before any of it has arrived: enough for a page of 1,000 members with
/// their customary properties, and little enough that a claimed length costs nothing.
const RESERVED_BYTES: usize = 256 * 1024;

/// The sources of the settings. Their credentials may change while the service runs; a request is
/// held to those that were in force when its head was read.
#[derive(Debug)]
pub struct Sources(RwLock<HashMap<SourceName, Arc<Source>>>);

impl Sources {
    /// These.
    pub fn new(sources: impl IntoIterator<Item = Arc<Source>>) -> Self {
        Sources(RwLock::new(by_name(sources)))
    }

    /// The same, with other credentials.
    pub fn replace(&self, sources: impl IntoIterator<Item = Arc<Source>>) {
        let sources = by_name(sources);
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = sources;
    }

    /// The source of that name.
    pub fn get(&self, name: &SourceName) -> Option<Arc<Source>> {
        let sources = self.0.read().unwrap_or_else(PoisonError::into_inner);
        sources.get(name).cloned()
    }
}

fn by_name(sources: impl IntoIterator<Item = Arc<Source>>) -> HashMap<SourceName, Arc<Source>> {
    let sources = sources.into_iter();
    sources
        .map(|source| (source.name.clone(), source))
        .collect()
}

/// What the extractor needs; the webhook listener's app data.
pub struct Intake {
    /// Who may send what.
    pub sources: Arc<Sources>,
    /// Bytes of a body at most.
    pub max_body_bytes: usize,
    /// [`BODY_DEADLINE`], but in tests.
    pub body_deadline: Duration,
    /// For the deadline and for the age of signatures.
    pub clock: Arc<dyn Clock>,
}

/// The body of a request that proved who sent it. Nothing but the extractor can make one.
#[derive(Debug)]
pub struct Authentic {
    /// Who sent it.
    pub source: Arc<Source>,
    /// The raw bytes.
    pub body: Bytes,
    proof: Proof,
}

impl Authentic {
    /// How it was proved.
    pub fn proof(&self) -> Proof {
        self.proof
    }
}

impl FromRequest for Authentic {
    type Error = ReceiveError;
    type Future = LocalBoxFuture<'static, Result<Self, ReceiveError>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let request = request.clone();
        let payload = payload.take();
        Box::pin(async move {
            let intake = request
                .app_data::<Data<Intake>>()
                .ok_or(ReceiveError::Unavailable)?;
            intake.receive(&request, payload).await
        })
    }
}

impl Intake {
    /// Source, then what headers decide, then size, then the body, then its signature: each before
    /// the next costs anything.
    async fn receive(
        &self,
        request: &HttpRequest,
        payload: Payload,
    ) -> Result<Authentic, ReceiveError> {
        let name = request.match_info().get("source").unwrap_or(DEFAULT_SOURCE);
        let source = self
            .sources
            .get(&SourceName::from(name))
            .ok_or(ReceiveError::UnknownSource)?;
        let admitted = source
            .credentials
            .admit(request.headers(), self.clock.now())?;
        let body = self.read(request, payload).await?;
        let proof = match admitted {
            Some(proof) => proof,
            None => source
                .credentials
                .verify(request.headers(), &body, self.clock.now())?,
        };
        Ok(Authentic {
            source,
            body,
            proof,
        })
    }

    async fn read(&self, request: &HttpRequest, payload: Payload) -> Result<Bytes, ReceiveError> {
        let deadline = self.clock.now().saturating_add(millis(self.body_deadline));
        tokio::select! {
            biased;
            body = self.read_all(request, payload) => body,
            () = self.clock.sleep_until(deadline) => Err(ReceiveError::TooSlow {
                seconds: self.body_deadline.as_secs(),
            }),
        }
    }

    async fn read_all(
        &self,
        request: &HttpRequest,
        mut payload: Payload,
    ) -> Result<Bytes, ReceiveError> {
        let too_large = || ReceiveError::TooLarge {
            limit_bytes: self.max_body_bytes,
        };
        let announced = request
            .headers()
            .get(CONTENT_LENGTH)
            .and_then(|length| length.to_str().ok()?.parse::<u64>().ok())
            .map_or(0, |length| usize::try_from(length).unwrap_or(usize::MAX));
        if announced > self.max_body_bytes {
            return Err(too_large());
        }
        let mut body = BytesMut::with_capacity(announced.min(RESERVED_BYTES));
        while let Some(chunk) = payload.next().await {
            let chunk = chunk.map_err(|_| ReceiveError::BrokenOff)?;
            if chunk.len() > self.max_body_bytes - body.len() {
                return Err(too_large());
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body.freeze())
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use actix_web::error::PayloadError;
    use actix_web::http::StatusCode;
    use actix_web::test::{TestRequest, call_service, init_service, read_body};
    use actix_web::{App, HttpResponse, HttpServer, web};
    use futures_util::stream;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;

    use super::*;
    use crate::clock::{ManualClock, SystemClock};
    use crate::mixpanel::IdentifierRules;
    use crate::trait_key::TraitKeyTemplate;

    const SECRET: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
    const VECTOR_BODY: &str = r#"{"email":"test@example.com","username":"test_user"}"#;
    const NOW: i64 = 1_649_367_553_000;
    const LIMIT: usize = 64;

    fn source(name: &str, credentials: Credentials) -> Arc<Source> {
        Arc::new(Source {
            name: SourceName::from(name),
            credentials,
            identifier: IdentifierRules::default(),
            trait_key: TraitKeyTemplate::default(),
            explicit_keys: Vec::new(),
            hold_removals_above: None,
        })
    }

    fn intake(clock: Arc<dyn Clock>) -> Data<Intake> {
        Data::new(Intake {
            sources: Arc::new(Sources::new([
                source("default", Credentials::parse_basic("mix:panel").unwrap()),
                source("relay", Credentials::parse_signing(SECRET).unwrap()),
                source("open", Credentials::open()),
            ])),
            max_body_bytes: LIMIT,
            body_deadline: BODY_DEADLINE,
            clock,
        })
    }

    /// Answers with what reached the handler.
    async fn echo(authentic: Authentic) -> HttpResponse {
        HttpResponse::Ok()
            .insert_header(("x-source", authentic.source.name.to_string()))
            .body(authentic.body)
    }

    fn routes(config: &mut web::ServiceConfig) {
        config
            .route("/webhooks/mixpanel", web::post().to(echo))
            .route("/webhooks/mixpanel/{source}", web::post().to(echo));
    }

    async fn ask(request: TestRequest) -> (StatusCode, String) {
        let app = App::new()
            .app_data(intake(Arc::new(ManualClock::at(NOW))))
            .configure(routes);
        let response = call_service(&init_service(app).await, request.to_request()).await;
        let status = response.status();
        let body = read_body(response).await;
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    fn post(path: &str) -> TestRequest {
        TestRequest::post().uri(&format!("/webhooks/mixpanel{path}"))
    }

    const GOOD: (&str, &str) = ("authorization", "Basic bWl4OnBhbmVs");

    #[actix_web::test]
    async fn an_authentic_body_arrives_as_sent() {
        let body = "\0{not json\u{ff}";
        let request = post("").insert_header(GOOD).set_payload(body);
        assert_eq!(ask(request).await, (StatusCode::OK, body.to_owned()));
        let request = post("/default").insert_header(GOOD).set_payload(body);
        assert_eq!(ask(request).await.0, StatusCode::OK);
        let request = post("/open").set_payload(body);
        assert_eq!(ask(request).await.0, StatusCode::OK);
    }

    #[actix_web::test]
    async fn the_published_signature_opens_the_door() {
        let request = || {
            post("/relay")
                .insert_header(("webhook-id", "msg_27UH4WbU6Z5A5EzD8u03UvzRbpk"))
                .insert_header(("webhook-timestamp", "1649367553"))
                .insert_header((
                    "webhook-signature",
                    "v1,tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw=",
                ))
        };
        let (status, body) = ask(request().set_payload(VECTOR_BODY)).await;
        assert_eq!((status, body.as_str()), (StatusCode::OK, VECTOR_BODY));
        let (status, body) = ask(request().set_payload("{}")).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED);
        assert!(body.starts_with(r#"{"action":null,"status":"failure","error":{"#));
    }

    #[actix_web::test]
    async fn strangers_get_no_further() {
        let (status, body) = ask(post("/nobody").insert_header(GOOD)).await;
        assert_eq!(status, StatusCode::NOT_FOUND);
        assert!(body.contains(r#""code":404"#));
        for request in [
            post(""),
            post("").insert_header(("authorization", "Basic bWl4OnBhbmVx")),
            post("").insert_header(("authorization", "Bearer bWl4OnBhbmVs")),
            post("").insert_header(GOOD).append_header(GOOD),
            post("/relay").insert_header(GOOD),
        ] {
            assert_eq!(ask(request).await.0, StatusCode::UNAUTHORIZED);
        }
    }

    #[actix_web::test]
    async fn one_byte_over_the_limit_is_too_much() {
        for (length, status) in [
            (LIMIT, StatusCode::OK),
            (LIMIT + 1, StatusCode::PAYLOAD_TOO_LARGE),
        ] {
            let request = post("").insert_header(GOOD).set_payload("x".repeat(length));
            assert_eq!(ask(request).await.0, status, "{length}");
        }
    }

    type Chunk = Result<Bytes, PayloadError>;

    async fn extract(
        request: TestRequest,
        intake: Data<Intake>,
        chunks: impl futures_util::Stream<Item = Chunk> + 'static,
    ) -> Result<Authentic, ReceiveError> {
        let request = request.app_data(intake).to_http_request();
        let mut payload = Payload::from(
            Box::pin(chunks) as std::pin::Pin<Box<dyn futures_util::Stream<Item = Chunk>>>
        );
        Authentic::from_request(&request, &mut payload).await
    }

    #[actix_web::test]
    async fn a_body_without_a_length_is_stopped_while_it_is_read() {
        let endless = stream::repeat_with(|| Ok(Bytes::from_static(b"0123456789")));
        let result = extract(
            post("").insert_header(GOOD),
            intake(Arc::new(ManualClock::at(NOW))),
            endless,
        )
        .await;
        assert!(matches!(
            result,
            Err(ReceiveError::TooLarge { limit_bytes: LIMIT })
        ));
    }

    /// A body that must not be asked for.
    fn untouchable() -> impl futures_util::Stream<Item = Chunk> {
        stream::poll_fn(|_| panic!("the body was read"))
    }

    #[actix_web::test]
    async fn what_headers_decide_costs_no_reading() {
        let intake = || intake(Arc::new(ManualClock::at(NOW)));
        let refused = extract(post(""), intake(), untouchable()).await;
        assert!(matches!(refused, Err(ReceiveError::Unauthenticated(_))));
        let refused = extract(
            post("")
                .insert_header(GOOD)
                .insert_header(("content-length", "65")),
            intake(),
            untouchable(),
        )
        .await;
        assert!(matches!(refused, Err(ReceiveError::TooLarge { .. })));
    }

    #[actix_web::test]
    async fn a_body_has_ten_seconds_in_all() {
        let clock = ManualClock::at(NOW);
        // Nine seconds pass with each byte: a deadline between two bytes would never strike.
        let dripping = {
            let clock = clock.clone();
            stream::repeat_with(move || clock.advance(Duration::from_secs(9))).then(|()| async {
                tokio::task::yield_now().await;
                Ok(Bytes::from_static(b"x"))
            })
        };
        let result = extract(
            post("").insert_header(GOOD),
            intake(Arc::new(clock)),
            dripping,
        )
        .await;
        assert!(matches!(result, Err(ReceiveError::TooSlow { seconds: 10 })));
    }

    #[actix_web::test]
    async fn a_body_that_breaks_off_is_not_the_senders_fault() {
        let result = extract(
            post("").insert_header(GOOD),
            intake(Arc::new(ManualClock::at(NOW))),
            stream::iter([Err(PayloadError::Incomplete(None))]),
        )
        .await;
        assert!(matches!(result, Err(ReceiveError::BrokenOff)));
    }

    #[actix_web::test]
    async fn without_its_app_data_the_door_stays_shut() {
        let request = post("").insert_header(GOOD).to_http_request();
        let result = Authentic::from_request(&request, &mut Payload::None).await;
        assert!(matches!(result, Err(ReceiveError::Unavailable)));
    }

    async fn listen() -> SocketAddr {
        let data = intake(Arc::new(SystemClock));
        let server = HttpServer::new(move || App::new().app_data(data.clone()).configure(routes))
            .workers(1)
            .disable_signals()
            .bind("127.0.0.1:0")
            .unwrap();
        let address = server.addrs()[0];
        actix_web::rt::spawn(server.run());
        address
    }

    async fn exchange(address: SocketAddr, head: &[u8], body: &[u8]) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(head).await.unwrap();
        // The listener may stop reading early; its answer is what counts.
        let _ = stream.write_all(body).await;
        let mut answer = Vec::new();
        while !answer.ends_with(b"}}") && stream.read_buf(&mut answer).await.is_ok_and(|n| n > 0) {}
        String::from_utf8_lossy(&answer).into_owned()
    }

    #[actix_web::test]
    async fn a_refusal_reaches_who_is_still_sending() {
        let address = listen().await;
        let body = vec![b'x'; 4 << 20];
        for (header, status) in [
            ("authorization: Basic bWl4OnBhbmVx", "401"),
            ("authorization: Basic \u{e9}", "401"),
            ("authorization: Basic bWl4OnBhbmVs", "413"),
        ] {
            let head = format!(
                "POST /webhooks/mixpanel HTTP/1.1\r\nhost: x\r\n{header}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                body.len()
            );
            let answer = exchange(address, head.as_bytes(), &body).await;
            let expected = format!("HTTP/1.1 {status} ");
            assert!(answer.starts_with(&expected), "{header}: {answer:?}");
            assert!(answer.contains(&format!(r#""code":{status}"#)));
        }
    }

    #[actix_web::test]
    async fn odd_bytes_in_the_header_are_a_refusal() {
        let address = listen().await;
        for value in [&b"Basic \xff\xfe"[..], b"Basic \x80", b"", b"Basic AA"] {
            let mut head =
                b"POST /webhooks/mixpanel HTTP/1.1\r\nhost: x\r\nauthorization: ".to_vec();
            head.extend_from_slice(value);
            head.extend_from_slice(b"\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            let answer = exchange(address, &head, b"").await;
            assert!(answer.starts_with("HTTP/1.1 401 "), "{value:?}: {answer:?}");
        }
    }
}
