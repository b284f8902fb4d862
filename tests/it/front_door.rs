//! The public listener: who may come in, what is taken in, and what every refusal looks like.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use cohort_bridge::http::authenticate::Credentials;
use cohort_bridge::signature::SigningSecret;
use serde_json::{Value, json};

use crate::support::pages::{page, page_without_info};
use crate::support::service::{
    Answer, PASSWORD, START, Service, USER, client, source, spawn_app, spawn_plain_app, stand_in,
};
use crate::support::shared_ledger;
use crate::support::{eventually, fast_temp_dir};

const SECRET: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
const NEW_SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const OTHER_SECRET: &str = "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

/// A request written byte by byte, answered as text.
fn wire(address: SocketAddr, path: &str, headers: &[u8], body: &[u8]) -> String {
    let mut connection = TcpStream::connect(address).unwrap();
    let mut request = format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n",
        body.len()
    )
    .into_bytes();
    request.extend_from_slice(headers);
    request.extend_from_slice(b"\r\n");
    request.extend_from_slice(body);
    connection.write_all(&request).unwrap();
    let mut answer = Vec::new();
    // A server that refuses early may reset the connection behind its answer.
    let _ = connection.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

fn status_of(answer: &str) -> u16 {
    let status = answer.split(' ').nth(1);
    status
        .and_then(|status| status.parse().ok())
        .unwrap_or_else(|| panic!("no status: {answer:?}"))
}

fn basic(pair: &[u8]) -> Vec<u8> {
    header(format!("authorization: Basic {}", BASE64_STANDARD.encode(pair)).as_bytes())
}

fn header(line: &[u8]) -> Vec<u8> {
    [line, b"\r\n"].concat()
}

fn signed(secret: &str, timestamp: i64, body: &[u8]) -> Vec<u8> {
    let signature = SigningSecret::parse(secret)
        .unwrap()
        .sign("msg_1", timestamp, body);
    signature_headers("msg_1", &timestamp.to_string(), &signature)
}

fn signature_headers(id: &str, timestamp: &str, signature: &str) -> Vec<u8> {
    format!(
        "webhook-id: {id}\r\nwebhook-timestamp: {timestamp}\r\nwebhook-signature: {signature}\r\n"
    )
    .into_bytes()
}

fn assert_unauthenticated(name: &str, answer: &str) {
    assert_eq!(status_of(answer), 401, "{name}: {answer}");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let head = head.to_ascii_lowercase();
    assert!(
        head.contains("\r\nwww-authenticate: basic "),
        "{name}: {head}"
    );
    let body: Value = serde_json::from_str(body).unwrap();
    assert_eq!(body["action"], Value::Null, "{name}");
    assert_eq!(body["status"], "failure", "{name}");
    assert_eq!(body["error"]["code"], 401, "{name}");
    let message = body["error"]["message"].as_str().unwrap();
    assert!(!message.is_empty(), "{name}");
    assert!(!message.contains(PASSWORD), "{name}: {message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn basic_credentials_open_the_door_and_nothing_near_them_does() {
    let service = spawn_app(stand_in(), |setup| {
        let pairs = "mixpanel:pass:word\nnew:p\u{e4}ss";
        setup.source = source("default", Credentials::parse_basic(pairs).unwrap());
    })
    .await;
    let body = page_without_info("add_members", "c", &["ann"]).to_string();
    let good = BASE64_STANDARD.encode("mixpanel:pass:word");
    let ask = |headers: &[u8]| {
        wire(
            service.webhook,
            "/webhooks/mixpanel",
            headers,
            body.as_bytes(),
        )
    };

    let let_in: [(&str, Vec<u8>); 6] = [
        ("the first pair", basic(b"mixpanel:pass:word")),
        (
            "the second pair, not ASCII",
            basic("new:p\u{e4}ss".as_bytes()),
        ),
        (
            "a lower-case scheme",
            header(format!("authorization: basic {good}").as_bytes()),
        ),
        (
            "an upper-case scheme",
            header(format!("AUTHORIZATION: BASIC {good}").as_bytes()),
        ),
        (
            "several spaces",
            header(format!("authorization: Basic   {good}").as_bytes()),
        ),
        (
            "beside a signature that is none",
            [
                basic(b"mixpanel:pass:word"),
                signature_headers("a", "b", "c"),
            ]
            .concat(),
        ),
    ];
    for (name, headers) in let_in {
        assert_eq!(status_of(&ask(&headers)), 200, "{name}");
    }

    let two = [basic(b"mixpanel:pass:word"), basic(b"new:other")].concat();
    let kept_out: [(&str, Vec<u8>); 19] = [
        ("nothing", Vec::new()),
        ("another password", basic(b"mixpanel:word:pass")),
        ("another user", basic(b"Mixpanel:pass:word")),
        (
            "user of one pair, password of another",
            basic("mixpanel:p\u{e4}ss".as_bytes()),
        ),
        ("a beginning", basic(b"mixpanel:pass:wor")),
        ("a continuation", basic(b"mixpanel:pass:word ")),
        ("no colon", basic(b"mixpanel")),
        ("nothing inside", basic(b"")),
        ("NUL inside", basic(b"mixpanel:pass:word\0")),
        ("NUL before", basic(b"\0mixpanel:pass:word")),
        ("not UTF-8 inside", basic(b"mixpanel:\xff\xfe")),
        (
            "not ASCII",
            header("authorization: Basic p\u{e4}ss".as_bytes()),
        ),
        ("not UTF-8", header(b"authorization: Basic \xff\xfe\x80")),
        (
            "not ASCII, scheme",
            header("authorization: B\u{e4}sic x".as_bytes()),
        ),
        ("bad base64", header(b"authorization: Basic !!!!")),
        (
            "cut base64",
            header(format!("authorization: Basic {}", &good[..good.len() - 1]).as_bytes()),
        ),
        (
            "another scheme",
            header(format!("authorization: Bearer {good}").as_bytes()),
        ),
        (
            "no scheme",
            header(format!("authorization: {good}").as_bytes()),
        ),
        ("twice", two),
    ];
    for (name, headers) in kept_out {
        assert_unauthenticated(name, &ask(&headers));
    }
    let long = [
        "authorization: Basic ".as_bytes(),
        "QUFB".repeat(1_000).as_bytes(),
    ]
    .concat();
    assert_unauthenticated("very long", &ask(&header(&long)));

    service.folded().await;
    let stored = stored_pages(service).await;
    assert_eq!(stored.cohorts, 1, "only the pages let in are stored");
}

#[tokio::test(flavor = "multi_thread")]
async fn signatures_open_the_door_within_five_minutes() {
    let service = spawn_app(stand_in(), |setup| {
        let secrets = format!("{SECRET} {NEW_SECRET}");
        setup.source = source("default", Credentials::parse_signing(&secrets).unwrap());
        setup.more_sources = vec![source(
            "both",
            Credentials::parse_basic("mixpanel:pass:word")
                .unwrap()
                .and(Credentials::parse_signing(SECRET).unwrap()),
        )];
    })
    .await;
    let text = page_without_info("add_members", "c", &["ann"]).to_string();
    let body = text.as_bytes();
    let now = START / 1_000;
    let ask =
        |headers: &[u8], body: &[u8]| wire(service.webhook, "/webhooks/mixpanel", headers, body);
    let sign = |secret: &str| {
        SigningSecret::parse(secret)
            .unwrap()
            .sign("msg_1", now, body)
    };

    let mixed = format!("v2,x {} {}", sign(OTHER_SECRET), sign(SECRET));
    let let_in = [
        ("first secret", signed(SECRET, now, body)),
        ("second secret", signed(NEW_SECRET, now, body)),
        ("five minutes old", signed(SECRET, now - 300, body)),
        ("five minutes ahead", signed(SECRET, now + 300, body)),
        (
            "one signature of several",
            signature_headers("msg_1", &now.to_string(), &mixed),
        ),
    ];
    for (name, headers) in let_in {
        assert_eq!(status_of(&ask(&headers, body)), 200, "{name}");
    }

    let good = sign(SECRET);
    let timestamp = now.to_string();
    let kept_out: [(&str, Vec<u8>, &[u8]); 15] = [
        ("nothing", Vec::new(), body),
        ("stale", signed(SECRET, now - 301, body), body),
        ("from the future", signed(SECRET, now + 301, body), body),
        ("another secret", signed(OTHER_SECRET, now, body), body),
        ("a changed body", signed(SECRET, now, b"{}"), body),
        ("a byte more", signed(SECRET, now, body), b"{} "),
        (
            "another id",
            signature_headers("msg_2", &timestamp, &good),
            body,
        ),
        (
            "another time",
            signature_headers("msg_1", &(now + 1).to_string(), &good),
            body,
        ),
        ("no time", signature_headers("msg_1", "soon", &good), body),
        (
            "a time beyond numbers",
            signature_headers("msg_1", "99999999999999999999999", &good),
            body,
        ),
        (
            "no version",
            signature_headers("msg_1", &timestamp, &good[3..]),
            body,
        ),
        (
            "another version",
            signature_headers("msg_1", &timestamp, &good.replace("v1,", "v1a,")),
            body,
        ),
        (
            "bad base64",
            signature_headers("msg_1", &timestamp, "v1,!!"),
            body,
        ),
        (
            "a short one",
            signature_headers("msg_1", &timestamp, "v1,AAAA"),
            body,
        ),
        (
            "not ASCII",
            signature_headers("msg_1", &timestamp, "v1,p\u{e4}ss"),
            body,
        ),
    ];
    for (name, headers, body) in kept_out {
        assert_unauthenticated(name, &ask(&headers, body));
    }

    let both = |headers: &[u8]| {
        status_of(&wire(
            service.webhook,
            "/webhooks/mixpanel/both",
            headers,
            body,
        ))
    };
    assert_eq!(both(&basic(b"mixpanel:pass:word")), 200);
    assert_eq!(both(&signed(SECRET, now, body)), 200);
    assert_eq!(both(&signed(NEW_SECRET, now, body)), 401);
    assert_eq!(both(&basic(b"mixpanel:wrong")), 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_raw_nul_in_a_header_is_nobodys_proof() {
    let service = spawn_plain_app().await;
    let answer = wire(
        service.webhook,
        "/webhooks/mixpanel",
        &header(b"authorization: Basic bWl4\0cGFuZWw6"),
        b"{}",
    );
    // HTTP itself forbids it, so no handler ever sees the request.
    let status = status_of(&answer);
    assert!(status == 401 || status == 400, "{answer}");
    assert_eq!(service.cohorts().await, [] as [Value; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_answers_but_the_webhooks() {
    let service = spawn_app(stand_in(), |setup| {
        setup.more_sources = vec![source("open", Credentials::open())];
    })
    .await;
    let page = page_without_info("add_members", "c", &["ann"]).to_string();
    let http = client();
    let base = format!("http://{}", service.webhook);
    let ask = async |method: &str, path: &str| {
        let request = http.request(method.parse().unwrap(), format!("{base}{path}"));
        let request = request.basic_auth(USER, Some(PASSWORD)).body(page.clone());
        Answer::of(request.send().await.unwrap()).await
    };

    assert_eq!(ask("POST", "/webhooks/mixpanel").await.status, 200);
    assert_eq!(ask("POST", "/webhooks/mixpanel/default").await.status, 200);
    assert_eq!(ask("POST", "/webhooks/mixpanel/open").await.status, 200);
    let nowhere = [
        ("POST", "/webhooks/mixpanel/nobody"),
        ("POST", "/webhooks/mixpanel/"),
        ("POST", "/webhooks/mixpanel/default/more"),
        ("POST", "/webhooks"),
        ("POST", "/"),
        ("GET", "/webhooks/mixpanel"),
        ("PUT", "/webhooks/mixpanel"),
        ("DELETE", "/webhooks/mixpanel/default"),
        ("GET", "/"),
        ("GET", "/livez"),
        ("GET", "/readyz"),
        ("GET", "/metrics"),
        ("GET", "/api/v1/cohorts"),
    ];
    for (method, path) in nowhere {
        let answer = ask(method, path).await;
        assert_eq!(answer.status, 404, "{method} {path}");
        let body = answer.json();
        assert_eq!(body["status"], "failure", "{method} {path}");
        assert_eq!(body["error"]["code"], 404, "{method} {path}");
    }
    assert_eq!(ask("HEAD", "/webhooks/mixpanel").await.status, 404);

    service.settled().await;
    let cohorts = service.cohorts().await;
    let sources: Vec<_> = cohorts.iter().map(|cohort| &cohort["source"]).collect();
    assert_eq!(
        sources,
        ["default", "open"],
        "a cohort belongs to its source"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_may_be_as_long_as_the_limit_and_no_byte_longer() {
    const LIMIT: usize = 2_000;
    let service = spawn_app(stand_in(), |setup| setup.max_body_bytes = LIMIT).await;
    let mut body = page_without_info("add_members", "c", &["ann"]).to_string();
    body.push_str(&" ".repeat(LIMIT - body.len()));
    assert_eq!(service.post(body.clone()).await.status, 200);
    service.folded().await;

    body.push(' ');
    let announced = service.post(body.replace("\"c\"", "\"d\"")).await;
    let headers = basic(format!("{USER}:{PASSWORD}").as_bytes());
    let chunked = {
        let mut connection = TcpStream::connect(service.webhook).unwrap();
        let head = [
            b"POST /webhooks/mixpanel HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n".as_slice(),
            &headers,
            format!("\r\n{:x}\r\n{body}\r\n0\r\n\r\n", body.len()).as_bytes(),
        ]
        .concat();
        connection.write_all(&head).unwrap();
        let mut answer = Vec::new();
        let _ = connection.read_to_end(&mut answer);
        String::from_utf8(answer).unwrap()
    };
    assert_eq!(announced.status, 413, "{announced:?}");
    assert_eq!(announced.json()["error"]["code"], 413);
    assert_eq!(announced.json()["action"], Value::Null);
    assert_eq!(status_of(&chunked), 413);
    let stranger = wire(service.webhook, "/webhooks/mixpanel", b"", body.as_bytes());
    assert_eq!(
        status_of(&stranger),
        401,
        "a stranger does not learn the limit"
    );

    service.folded().await;
    assert_eq!(stored_pages(service).await.cohorts, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_does_not_arrive_is_given_up_after_ten_seconds() {
    let service = spawn_plain_app().await;
    let body = page_without_info("add_members", "c", &["ann"]).to_string();
    let (first, rest) = body.split_at(20);
    let begin = || {
        let mut connection = TcpStream::connect(service.webhook).unwrap();
        connection.set_nonblocking(false).unwrap();
        let head = [
            format!(
                "POST /webhooks/mixpanel HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n",
                body.len()
            )
            .as_bytes(),
            &basic(format!("{USER}:{PASSWORD}").as_bytes()),
            b"\r\n",
            first.as_bytes(),
        ]
        .concat();
        connection.write_all(&head).unwrap();
        connection
    };

    let mut slow = begin();
    service.clock.advance(Duration::from_secs(9));
    slow.write_all(rest.as_bytes()).unwrap();
    let mut answer = String::new();
    slow.read_to_string(&mut answer).unwrap();
    assert_eq!(status_of(&answer), 200, "slow is not too slow");

    let mut stalled = begin();
    stalled.set_nonblocking(true).unwrap();
    let mut answer = Vec::new();
    eventually("an answer to half a body", async || {
        service.clock.advance(Duration::from_secs(2));
        let mut chunk = [0; 1_024];
        match stalled.read(&mut chunk) {
            Ok(read) => answer.extend_from_slice(&chunk[..read]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => panic!("{error}"),
        }
        answer.ends_with(b"}").then_some(())
    })
    .await;
    let answer = String::from_utf8(answer).unwrap();
    assert_eq!(status_of(&answer), 408);
    let body: Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
    assert_eq!(body["error"]["code"], 408);
    assert_eq!(
        body["error"]["message"],
        "the body did not arrive within 10 s"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_over_the_limit_wait_at_the_door() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// Far longer than an answer takes, so that none within it means none.
    const NO_ANSWER: Duration = Duration::from_millis(500);
    const LIMIT: usize = 4;
    let service = spawn_app(stand_in(), |setup| setup.max_connections = LIMIT).await;
    // A sender with good credentials keeps its connection, whatever its payload.
    let credentials = BASE64_STANDARD.encode(format!("{USER}:{PASSWORD}"));
    let request = format!(
        "POST /webhooks/mixpanel HTTP/1.1\r\nhost: x\r\nauthorization: Basic {credentials}\r\ncontent-length: 0\r\n\r\n"
    );
    let mut answered = Vec::new();
    let mut byte = [0; 1];
    let mut waiting = loop {
        let mut connection = tokio::net::TcpStream::connect(service.webhook)
            .await
            .unwrap();
        connection.write_all(request.as_bytes()).await.unwrap();
        let first_byte = tokio::time::timeout(NO_ANSWER, connection.read_exact(&mut byte)).await;
        match first_byte {
            Ok(read) => {
                read.unwrap();
                answered.push(connection);
            }
            Err(_) => break connection,
        }
        assert!(answered.len() < 4 * LIMIT, "no limit at all");
    };
    // Each worker takes its share.
    assert!((1..=LIMIT).contains(&answered.len()), "{}", answered.len());
    answered.clear();
    waiting.read_exact(&mut byte).await.unwrap();
    assert_eq!(&byte, b"H", "its turn came");
}

/// What a service left behind.
#[derive(Debug, PartialEq, Eq)]
struct Stored {
    cohorts: u32,
    sessions: u32,
    pages: u32,
    members: u32,
}

/// Stops the service and looks into its ledger.
async fn stored_pages(service: Service) -> Stored {
    let path = service.ledger();
    let _folder = service.stop().await;
    let count = |table: &str| {
        let rows = shared_ledger::number(&path, &format!("SELECT count(*) FROM {table}"));
        rows as u32
    };
    Stored {
        cohorts: count("cohort"),
        sessions: count("session"),
        pages: count("inbox"),
        members: count("member"),
    }
}

fn with(change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut page = page("members", "c1", "s1", (1, 1), &["ann"]);
    change(&mut page);
    page.to_string().into_bytes()
}

fn deep(levels: usize) -> Vec<u8> {
    format!(
        r#"{{"action":"members","parameters":{{"mixpanel_cohort_id":"c1","members":[{{"mixpanel_distinct_id":"ann","x":{}1{}}}]}}}}"#,
        "[".repeat(levels),
        "]".repeat(levels)
    )
    .into_bytes()
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_is_refused_in_words_and_leaves_nothing() {
    let service = spawn_plain_app().await;
    let good = String::from_utf8(with(|_| {})).unwrap();
    let latin_1 = good.replace("Surname", "M\u{fc}ller");
    let latin_1: Vec<u8> = latin_1.chars().map(|c| c as u32 as u8).collect();
    let members = json!("members");
    let null = Value::Null;
    let table: Vec<(&str, Vec<u8>, &Value)> = vec![
        ("nothing", b"".to_vec(), &null),
        ("not JSON", b"action=members&x=1".to_vec(), &null),
        ("NUL alone", b"\0".to_vec(), &null),
        ("NUL in the middle", good.replace("Surname", "Sur\0name").into_bytes(), &members),
        ("NUL behind", [good.as_bytes(), b"\0"].concat(), &members),
        ("invalid UTF-8", latin_1, &null),
        ("cut off", good.as_bytes()[..good.len() / 2].to_vec(), &members),
        ("more behind", format!("{good}{{}}").into_bytes(), &members),
        ("200,000 deep", deep(200_000), &members),
        ("200,000 deep and never closed", "[".repeat(200_000).into_bytes(), &null),
        ("200,000 objects deep", "{\"a\":".repeat(200_000).into_bytes(), &null),
        ("an array", b"[]".to_vec(), &null),
        ("a string", b"\"members\"".to_vec(), &null),
        ("null", b"null".to_vec(), &null),
        ("empty", b"{}".to_vec(), &null),
        (
            "a key twice in the envelope",
            good.replacen("{\"action\":", "{\"action\":\"members\",\"action\":", 1).into_bytes(),
            &members,
        ),
        (
            "a key twice in the parameters",
            good.replacen(
                "\"mixpanel_cohort_id\":",
                "\"mixpanel_cohort_id\":\"c2\",\"mixpanel_cohort_id\":",
                1,
            )
            .into_bytes(),
            &members,
        ),
        (
            "members twice",
            good.replacen("\"members\":[", "\"members\":[],\"members\":[", 1).into_bytes(),
            &members,
        ),
        ("no action", with(|page| drop(page.as_object_mut().unwrap().remove("action"))), &null),
        ("action null", with(|page| page["action"] = Value::Null), &null),
        ("flat", br#"{"action":"members","mixpanel_cohort_id":"c1","members":[{"mixpanel_distinct_id":"ann"}]}"#.to_vec(), &members),
        ("parameters a string", with(|page| page["parameters"] = json!("x")), &members),
        ("members an object", with(|page| page["parameters"]["members"] = json!({})), &members),
        (
            "no members",
            with(|page| drop(page["parameters"].as_object_mut().unwrap().remove("members"))),
            &members,
        ),
        (
            "no cohort id",
            with(|page| {
                drop(page["parameters"].as_object_mut().unwrap().remove("mixpanel_cohort_id"));
            }),
            &members,
        ),
        ("cohort id null", with(|page| page["parameters"]["mixpanel_cohort_id"] = Value::Null), &members),
        ("cohort id blank", with(|page| page["parameters"]["mixpanel_cohort_id"] = json!(" ")), &members),
        ("page 4 of 3", with(|page| page["parameters"]["page_info"] = json!({"total_pages": 3, "page_count": 4})), &members),
        ("page 0 of 3", with(|page| page["parameters"]["page_info"] = json!({"total_pages": 3, "page_count": 0})), &members),
    ];
    for (name, body, action) in table {
        let answer = service.post(body).await;
        assert_eq!(answer.status, 400, "{name}: {answer:?}");
        let reply = answer.json();
        let object = reply.as_object().unwrap();
        assert_eq!(object.len(), 3, "{name}: {reply}");
        assert_eq!(reply["action"], *action, "{name}");
        assert_eq!(reply["status"], "failure", "{name}");
        assert_eq!(reply["error"]["code"], 400, "{name}");
        let message = reply["error"]["message"].as_str().unwrap();
        assert!(
            !message.is_empty() && !message.contains("ann"),
            "{name}: {message}"
        );
    }
    let unknown = service
        .post(with(|page| page["action"] = json!("ping")))
        .await;
    assert_eq!(
        (unknown.status, &unknown.json()["action"]),
        (400, &json!("ping"))
    );
    let flat = service
        .post(r#"{"action":"add_members","mixpanel_cohort_id":"c1","members":[]}"#)
        .await;
    assert_eq!(
        (flat.status, &flat.json()["action"]),
        (400, &json!("add_members"))
    );

    assert_eq!(service.cohorts().await, [] as [Value; 0]);
    assert!(service.is_folded().await);
    assert_eq!(service.get("/readyz").await.status, 200);
    let stand_in = service.stand_in.clone();
    let nothing = Stored {
        cohorts: 0,
        sessions: 0,
        pages: 0,
        members: 0,
    };
    assert_eq!(stored_pages(service).await, nothing);
    assert!(!stand_in.identities().contains_key("ann"));
}

#[tokio::test(flavor = "multi_thread")]
async fn after_bad_input_good_input_is_taken_in() {
    let service = spawn_plain_app().await;
    for _ in 0..20 {
        assert_eq!(service.post(deep(200_000)).await.status, 400);
        assert_eq!(service.post(b"\xff".to_vec()).await.status, 400);
    }
    let nested = service.post(deep(60)).await;
    assert_eq!(nested.status, 200, "{nested:?}");
    let odd = json!({"action": "add_members", "parameters": {"mixpanel_cohort_id": "c1"},
    "members": [
        {"mixpanel_distinct_id": "nul\0inside"}, {"mixpanel_distinct_id": ""},
        {"mixpanel_distinct_id": null}, {"mixpanel_distinct_id": "\u{1c}ann"},
        {"mixpanel_distinct_id": 9_007_199_254_740_993_u64}, {"mixpanel_distinct_id": "bob"},
        {"mixpanel_distinct_id": "$device:1"}, {"mixpanel_distinct_id": "x".repeat(1_025)},
    ]});
    service.send(&odd).await;
    let twice = r#"{"action":"add_members","parameters":{"mixpanel_cohort_id":"c1","members":[{"mixpanel_distinct_id":"first","mixpanel_distinct_id":"last"},{"mixpanel_distinct_id":"lone \ud800 surrogate"}]}}"#;
    assert_eq!(service.post(twice).await.status, 200);
    service.settled().await;
    let known: Vec<_> = service.stand_in.identities().into_keys().collect();
    assert_eq!(
        known,
        [
            "9007199254740993",
            "ann",
            "bob",
            "cohort_bridge_canary",
            "last"
        ]
    );
    let metrics = service.get("/metrics").await.text;
    for (reason, count) in [("nul", 1), ("blank", 1), ("missing", 1), ("padded", 1)] {
        let found = metrics.lines().any(|line| {
            line.starts_with("cohort_bridge_members_set_aside_total")
                && line.contains(reason)
                && line.ends_with(&format!(" {count}"))
        });
        assert!(found, "{reason}: {metrics}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_absent_property_is_refused_only_before_it_was_ever_sent() {
    let service = spawn_plain_app().await;
    let wrong_export = json!({"action": "members", "parameters": {
        "mixpanel_cohort_id": "c1", "mixpanel_session_id": "s1",
        "page_info": {"total_pages": 2, "page_count": 1},
        "members": [{"email": "ann@mail.example"}, {"email": "bob@mail.example"}]}});
    let refused = service.post(wrong_export.to_string()).await;
    assert_eq!(refused.status, 400);
    assert_eq!(refused.json()["action"], "members");
    let message = refused.json()["error"]["message"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(message.contains("'mixpanel_distinct_id'"), "{message}");
    assert!(message.contains("Properties to Export"), "{message}");
    assert!(!message.contains("@mail"), "{message}");
    assert_eq!(service.cohorts().await, [] as [Value; 0]);

    // An empty page says nothing about properties, and one anonymous person is no wrong export.
    service
        .send(&page("add_members", "c2", "s", (1, 1), &[] as &[&str]))
        .await;
    service
        .send(&page("members", "c2", "s", (1, 1), &["$device:1"]))
        .await;
    // Now the property was sent once, if unusably.
    assert_eq!(service.post(wrong_export.to_string()).await.status, 200);
    service.settled().await;
    assert_eq!(service.cohorts().await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_is_on_disk_before_it_is_answered() {
    let service = spawn_plain_app().await;
    service.stand_in.stop().await;
    for n in 0..5 {
        service
            .send(&page_without_info("add_members", "c", &[format!("p{n}")]))
            .await;
        let counted = "SELECT (SELECT count(*) FROM inbox) + (SELECT count(*) FROM member)";
        if shared_ledger::is_wanted() {
            // Others see what is committed.
            assert!(shared_ledger::number(&service.ledger(), counted) > n);
            continue;
        }
        // A copy at this very moment holds what a kill would leave.
        let copy = fast_temp_dir();
        for ending in ["", "-wal"] {
            let name = format!("ledger.db{ending}");
            let from = service.ledger().with_file_name(&name);
            std::fs::copy(from, copy.path().join(&name)).unwrap();
        }
        let known = shared_ledger::number(&copy.path().join("ledger.db"), counted);
        assert!(known > n, "{known} after {} pages", n + 1);
    }
}
