//! Against a small receiver that answers as it is told.

use std::collections::VecDeque;
use std::sync::Mutex;

use actix_web::http::header::HeaderMap;
use actix_web::{App, HttpRequest, HttpResponse, HttpServer, web};
use async_trait::async_trait;

use super::*;
use crate::clock::{ManualClock, Millis};
use crate::http::authenticate::{Credentials, Proof};

const SECRET: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
const PAGE: &str = r#"{"action":"add_members","parameters":{"mixpanel_cohort_id":"7","members":[{"mixpanel_distinct_id":"usr_40021"}]}}"#;
const SUCCESS: (u16, &str) = (200, r#"{"action":"add_members","status":"success"}"#);
const NOW: Millis = 1_790_000_000_000;

/// A clock that jumps to what it is asked to wait for.
#[derive(Clone)]
struct Jumping(ManualClock);

#[async_trait]
impl Clock for Jumping {
    fn now(&self) -> Millis {
        self.0.now()
    }

    async fn sleep_until(&self, deadline: Millis) {
        if deadline > self.now() {
            self.0.set(deadline);
        }
    }
}

struct Seen {
    at: Millis,
    headers: HeaderMap,
    body: Vec<u8>,
}

struct Receiver {
    url: Url,
    clock: Jumping,
    seen: Arc<Mutex<Vec<Seen>>>,
    folder: tempfile::TempDir,
}

impl Receiver {
    /// Gives `answers` in turn, then successes.
    fn answering(answers: &[(u16, &str)]) -> Self {
        let clock = Jumping(ManualClock::at(NOW));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let answers: VecDeque<(u16, String)> = answers
            .iter()
            .map(|(status, body)| (*status, body.to_string()))
            .collect();
        let state = web::Data::new((Mutex::new(answers), Arc::clone(&seen), clock.clone()));
        type State = (
            Mutex<VecDeque<(u16, String)>>,
            Arc<Mutex<Vec<Seen>>>,
            Jumping,
        );
        async fn answer(
            request: HttpRequest,
            body: web::Bytes,
            state: web::Data<State>,
        ) -> HttpResponse {
            let (answers, seen, clock) = &**state;
            seen.lock().unwrap().push(Seen {
                at: clock.now(),
                headers: request.headers().clone(),
                body: body.to_vec(),
            });
            let (status, body) = answers
                .lock()
                .unwrap()
                .pop_front()
                .unwrap_or((SUCCESS.0, SUCCESS.1.to_owned()));
            HttpResponse::build(actix_web::http::StatusCode::from_u16(status).unwrap())
                .insert_header(("location", "/elsewhere"))
                .body(body)
        }
        let server = HttpServer::new(move || {
            App::new()
                .app_data(state.clone())
                .default_service(web::to(answer))
        })
        .workers(1)
        .disable_signals()
        .bind("127.0.0.1:0")
        .unwrap();
        let url = format!("http://{}/webhooks/mixpanel", server.addrs()[0]);
        actix_web::rt::spawn(server.run());
        Receiver {
            url: url.parse().unwrap(),
            clock,
            seen,
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn with_file(self, name: &str, content: &[u8]) -> Self {
        std::fs::write(self.folder.path().join(name), content).unwrap();
        self
    }

    fn replay(&self) -> Replay {
        Replay {
            url: self.url.clone(),
            basic_auth: None,
            signing_secret: None,
            rate: None,
            shown_from: None,
            clock: Arc::new(self.clock.clone()),
        }
    }

    async fn run(&self, replay: Replay) -> (Result<Summary, ReplayError>, String) {
        let mut out = Vec::new();
        let result = replay.run(&[self.folder.path().to_owned()], &mut out).await;
        let out = String::from_utf8(out).unwrap();
        let folder = format!("{}/", self.folder.path().display());
        (result, out.replace(&folder, ""))
    }

    /// Seconds after the start at which requests came.
    fn seconds(&self) -> Vec<i64> {
        let seen = self.seen.lock().unwrap();
        seen.iter().map(|seen| (seen.at - NOW) / 1_000).collect()
    }
}

fn summary(sent: usize, succeeded: usize) -> Summary {
    Summary {
        sent,
        succeeded,
        refused: sent - succeeded,
    }
}

#[actix_web::test]
async fn payloads_go_out_in_order_and_byte_for_byte() {
    let receiver = Receiver::answering(&[])
        .with_file("2.json", b"\xffnot json\n")
        .with_file("1.ndjson", format!("{PAGE}\n\n{PAGE}\n").as_bytes())
        .with_file("3.json", format!("[{PAGE}]").as_bytes());
    let (result, out) = receiver.run(receiver.replay()).await;
    assert_eq!(result.unwrap(), summary(4, 4));
    let seen = receiver.seen.lock().unwrap();
    let bodies: Vec<&[u8]> = seen.iter().map(|seen| seen.body.as_slice()).collect();
    let page = PAGE.as_bytes();
    assert_eq!(bodies, [page, page, b"\xffnot json\n", page]);
    for seen in seen.iter() {
        let length = seen.headers.get("content-length").unwrap();
        assert_eq!(length.to_str().unwrap(), seen.body.len().to_string());
        assert_eq!(
            seen.headers.get("content-type").unwrap(),
            "application/json"
        );
        assert!(!seen.headers.contains_key("authorization"));
        assert!(!seen.headers.contains_key("transfer-encoding"));
    }
    assert_eq!(
        out,
        "200 success  add_members     cohort 7            1 member  1.ndjson:1\n\
         200 success  add_members     cohort 7            1 member  1.ndjson:3\n\
         200 success  -               -                          -  2.json\n\
         200 success  add_members     cohort 7            1 member  3.json:1\n"
    );
}

#[actix_web::test]
async fn a_refusal_is_final_and_the_rest_is_sent() {
    let refusal =
        r#"{"action":null,"status":"failure","error":{"message":"no\u001b[31m","code":1}}"#;
    for (status, body) in [
        (400, refusal),
        (401, refusal),
        (413, refusal),
        (302, ""),
        (200, refusal),
        (200, "OK"),
    ] {
        let receiver = Receiver::answering(&[(status, body)])
            .with_file("1.json", PAGE.as_bytes())
            .with_file("2.json", PAGE.as_bytes());
        let (result, out) = receiver.run(receiver.replay()).await;
        let result = result.unwrap();
        assert_eq!(result, summary(2, 1), "{status} {body}");
        assert!(!result.is_success());
        assert_eq!(receiver.seconds(), [0, 0]);
        let first = out.lines().next().unwrap();
        assert!(first.starts_with(&format!("{status} failure  add_members")));
        let message = if body == refusal {
            "no [31m"
        } else {
            "not an answer in Mixpanel's shape"
        };
        assert!(first.ends_with(message), "{first}");
    }
}

#[actix_web::test]
async fn trouble_is_retried_as_mixpanel_does() {
    let receiver = Receiver::answering(&[(503, ""), (429, ""), (500, "")])
        .with_file("1.json", PAGE.as_bytes());
    let (result, out) = receiver.run(receiver.replay()).await;
    assert_eq!(result.unwrap(), summary(1, 1));
    assert_eq!(receiver.seconds(), [0, 2, 6, 14]);
    assert_eq!(out.lines().count(), 1);
}

#[actix_web::test]
async fn five_retries_in_a_minute_and_no_more() {
    let receiver = Receiver::answering(&[(503, ""); 6])
        .with_file("1.json", PAGE.as_bytes())
        .with_file("2.json", PAGE.as_bytes());
    let (result, out) = receiver.run(receiver.replay()).await;
    assert_eq!(result.unwrap(), summary(2, 1));
    assert_eq!(receiver.seconds(), [0, 2, 6, 14, 30, 60, 60]);
    assert!(out.starts_with("503 failure"));
}

#[actix_web::test]
async fn where_nobody_answers_it_ends() {
    let receiver = Receiver::answering(&[]).with_file("1.json", PAGE.as_bytes());
    let unused = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = unused.local_addr().unwrap();
    drop(unused);
    let replay = Replay {
        url: format!("http://user:hunter2@{address}/x?key=hunter2")
            .parse()
            .unwrap(),
        ..receiver.replay()
    };
    let (result, _) = receiver.run(replay).await;
    let error = result.unwrap_err();
    assert!(matches!(error, ReplayError::NoAnswer { .. }));
    assert!(!format!("{error} {error:?}").contains("hunter2"));
    assert_eq!(receiver.clock.now() - NOW, 60_000);
}

#[actix_web::test]
async fn every_attempt_is_signed_and_keeps_its_id() {
    let receiver = Receiver::answering(&[(503, "")])
        .with_file("1.json", PAGE.as_bytes())
        .with_file("2.json", PAGE.as_bytes());
    let replay = Replay {
        signing_secret: Some(SigningSecret::parse(SECRET).unwrap()),
        ..receiver.replay()
    };
    let (result, _) = receiver.run(replay).await;
    assert_eq!(result.unwrap(), summary(2, 2));
    let credentials = Credentials::parse_signing(SECRET).unwrap();
    let seen = receiver.seen.lock().unwrap();
    for seen in seen.iter() {
        assert_eq!(
            credentials.verify(&seen.headers, &seen.body, seen.at),
            Ok(Proof::Signature)
        );
    }
    let ids: Vec<_> = seen
        .iter()
        .map(|seen| seen.headers.get("webhook-id").unwrap())
        .collect();
    assert_eq!(ids[0], ids[1]);
    assert_ne!(ids[1], ids[2]);
    assert_ne!(
        seen[0].headers.get("webhook-timestamp"),
        seen[1].headers.get("webhook-timestamp")
    );
}

#[actix_web::test]
async fn basic_credentials_are_sent() {
    let receiver = Receiver::answering(&[]).with_file("1.json", PAGE.as_bytes());
    let replay = Replay {
        basic_auth: Some("mix:pa:nel".parse().unwrap()),
        ..receiver.replay()
    };
    receiver.run(replay).await.0.unwrap();
    let credentials = Credentials::parse_basic("mix:pa:nel").unwrap();
    let seen = receiver.seen.lock().unwrap();
    assert_eq!(
        credentials.verify(&seen[0].headers, b"", NOW),
        Ok(Proof::Basic)
    );
}

#[actix_web::test]
async fn a_rate_spreads_the_pages_and_an_outage_makes_no_burst() {
    let lines = format!("{PAGE}\n").repeat(5);
    let receiver =
        Receiver::answering(&[SUCCESS, SUCCESS, (503, "")]).with_file("1.ndjson", lines.as_bytes());
    let replay = Replay {
        rate: Some(2.0),
        shown_from: None,
        ..receiver.replay()
    };
    receiver.run(replay).await.0.unwrap();
    let seen = receiver.seen.lock().unwrap();
    let at: Vec<Millis> = seen.iter().map(|seen| seen.at - NOW).collect();
    assert_eq!(at, [0, 500, 1_000, 3_000, 3_000, 3_500]);
}

#[actix_web::test]
async fn what_cannot_work_is_said_at_once() {
    let receiver = Receiver::answering(&[]).with_file("1.json", b"{}");
    let replay = Replay {
        url: "ftp://quay.example/".parse().unwrap(),
        ..receiver.replay()
    };
    assert!(matches!(
        receiver.run(replay).await.0,
        Err(ReplayError::Url)
    ));
    let error = "hunter2".parse::<BasicAuth>().unwrap_err();
    assert!(!error.to_string().contains("hunter2"));
    let shown = format!("{:?}", "u:hunter2".parse::<BasicAuth>().unwrap());
    assert!(!shown.contains("hunter2"));
}
