//! The operator's commands: one request to the admin API each, its answer as a table.

use std::io::{self, Write};
use std::time::Duration;

use reqwest::header::CONTENT_TYPE;
use reqwest::{Method, StatusCode, redirect};
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use url::Url;

use crate::config::AdminEndpoint;
use crate::http::admin::views::{Decision, DecisionOrder, ResyncRate};

mod answer;
mod plan;
mod table;

/// How long to wait for a connection: the listener is near or not there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long to wait for an answer: trying a million dead letters again is one call.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);

/// What an operator asks of a running service.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Show every cohort.
    Cohorts,
    /// Show one person's cohorts.
    Member {
        /// The Flagsmith identifier.
        identifier: String,
    },
    /// Show traits that could not be written.
    DeadLetters,
    /// Try dead letters again.
    RetryDeadLetters(Selection),
    /// Drop dead letters.
    DropDeadLetters(Selection),
    /// Write every trait of a cohort or a destination again.
    Resync {
        /// Whose.
        of: ResyncOf,
        /// Calls a second that this may cause at most.
        max_calls_per_second: Option<f64>,
    },
    /// Cancel that, as far as it was not reached.
    CancelResync(ResyncOf),
    /// Let every member of a cohort leave, and forget it.
    Retire {
        /// The cohort's source.
        source: String,
        /// Mixpanel's id of the cohort.
        cohort_id: String,
    },
    /// Pause a cohort or a destination, or resume it.
    Pause {
        /// Which.
        what: Pausable,
        /// Paused, not resumed.
        pauses: bool,
    },
    /// Show what it takes to write what is pending.
    Plan,
    /// Show the removals of a cohort that are held.
    HeldRemovals {
        /// The cohort's source.
        source: String,
        /// Mixpanel's id of the cohort.
        cohort_id: String,
    },
    /// Decide on them.
    DecideHeldRemovals {
        /// The cohort's source.
        source: String,
        /// Mixpanel's id of the cohort.
        cohort_id: String,
        /// What becomes of them.
        decision: Decision,
    },
    /// Erase one person.
    Forget {
        /// The Flagsmith identifier.
        identifier: String,
        /// From Flagsmith too.
        delete_traits: bool,
    },
}

/// What can be paused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pausable {
    /// One cohort, wherever it goes.
    Cohort {
        /// The cohort's source.
        source: String,
        /// Mixpanel's id of the cohort.
        cohort_id: String,
    },
    /// One destination, with all of its cohorts.
    Destination {
        /// Its name.
        name: String,
    },
}

/// What is to be written again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ResyncOf {
    /// One cohort.
    Cohort {
        /// The cohort's source.
        source: String,
        /// Mixpanel's id of the cohort.
        cohort_id: String,
        /// At this destination alone.
        destination: Option<String>,
    },
    /// Every cohort that goes to this destination.
    Destination(String),
}

/// Which dead letters are meant; `None` means any.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Selection {
    /// Only those of this destination.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination: Option<String>,
    /// Only those of this person.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identifier: Option<String>,
}

/// How an answer is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// For people.
    Table,
    /// The admin API's JSON as it came.
    Json,
}

/// Why an operator's command failed.
#[derive(Debug, thiserror::Error)]
pub enum OperatorError {
    /// The value is no path segment: `""`, `"."` or `".."`, which every URL parser swallows.
    #[error("{0:?} cannot be named in a URL")]
    Unnameable(String),
    /// The base cannot carry a path.
    #[error("the admin URL cannot be used")]
    Url(#[from] url::ParseError),
    /// The HTTP client could not be made.
    #[error("the HTTP client could not be set up")]
    Client(#[source] reqwest::Error),
    /// No answer came.
    #[error("the admin listener at {url} did not answer; is it running, and is --admin-url right?")]
    Unreachable {
        /// The listener's base.
        url: Url,
        /// What happened.
        #[source]
        source: reqwest::Error,
    },
    /// The token is missing or wrong.
    #[error(
        "the admin listener wants the admin token ({status}: {message}): give --admin-token or set COHORT_BRIDGE_ADMIN_TOKEN"
    )]
    Unauthorised {
        /// 401 or 403.
        status: StatusCode,
        /// What the service says.
        message: String,
    },
    /// The service did not do it.
    #[error("the admin listener answered {status}: {message}")]
    Refused {
        /// Any other status but success.
        status: StatusCode,
        /// What the service says.
        message: String,
    },
    /// The answer is not the admin API's.
    #[error("the answer is not the admin API's; is --admin-url right?")]
    Unintelligible(#[from] serde_json::Error),
    /// The answer could not be printed.
    #[error("the answer could not be printed")]
    Print(#[source] io::Error),
}

/// Asks the service behind `endpoint` for `action` and prints its answer to `out`.
///
/// # Errors
///
/// Anything but a success that could be shown. That `out` closed early, as `head` does, is none.
pub async fn run(
    action: &Action,
    endpoint: &AdminEndpoint,
    output: Output,
    out: &mut impl Write,
) -> Result<(), OperatorError> {
    let answer = ask(action, endpoint).await?;
    let mut text = match output {
        Output::Json => answer,
        Output::Table => answer::shown(action, &answer)?,
    };
    if !text.ends_with('\n') {
        text.push('\n');
    }
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(OperatorError::Print(error)),
        _ => Ok(()),
    }
}

async fn ask(action: &Action, endpoint: &AdminEndpoint) -> Result<String, OperatorError> {
    // No redirect and no proxy: the token goes to the admin listener or nowhere.
    let client = reqwest::Client::builder()
        .redirect(redirect::Policy::none())
        .no_proxy()
        .connect_timeout(CONNECT_TIMEOUT)
        .timeout(ANSWER_TIMEOUT)
        .build()
        .map_err(OperatorError::Client)?;
    let mut request = client.request(action.method(), action.url(&endpoint.url)?);
    if let Some(token) = &endpoint.token {
        request = request.bearer_auth(token.expose_secret());
    }
    if let Some(body) = action.body()? {
        request = request.header(CONTENT_TYPE, "application/json").body(body);
    }
    let unreachable = |source: reqwest::Error| OperatorError::Unreachable {
        url: endpoint.url.clone(),
        source: source.without_url(),
    };
    let response = request.send().await.map_err(unreachable)?;
    let status = response.status();
    let text = response.text().await.map_err(unreachable)?;
    if status.is_success() {
        return Ok(text);
    }
    let message = message_of(&text, status);
    Err(match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            OperatorError::Unauthorised { status, message }
        }
        _ => OperatorError::Refused { status, message },
    })
}

impl Action {
    fn method(&self) -> Method {
        match self {
            Action::Cohorts
            | Action::Plan
            | Action::Member { .. }
            | Action::DeadLetters
            | Action::HeldRemovals { .. } => Method::GET,
            Action::RetryDeadLetters(_)
            | Action::DropDeadLetters(_)
            | Action::Resync { .. }
            | Action::Retire { .. }
            | Action::Pause { .. }
            | Action::DecideHeldRemovals { .. } => Method::POST,
            Action::Forget { .. } | Action::CancelResync(_) => Method::DELETE,
        }
    }

    /// The JSON to send along, where there is something to say.
    fn body(&self) -> Result<Option<String>, serde_json::Error> {
        match self {
            Action::RetryDeadLetters(selection) | Action::DropDeadLetters(selection)
                if *selection != Selection::default() =>
            {
                serde_json::to_string(selection).map(Some)
            }
            Action::DecideHeldRemovals { decision, .. } => {
                let order = DecisionOrder {
                    decision: *decision,
                };
                serde_json::to_string(&order).map(Some)
            }
            Action::Resync {
                max_calls_per_second: rate @ Some(_),
                ..
            } => {
                let rate = ResyncRate {
                    max_calls_per_second: *rate,
                };
                serde_json::to_string(&rate).map(Some)
            }
            _ => Ok(None),
        }
    }

    fn url(&self, base: &Url) -> Result<Url, OperatorError> {
        let path = match self {
            Action::Cohorts => "cohorts".to_owned(),
            Action::Member { identifier } => format!("members/{}", segment(identifier)?),
            Action::Forget {
                identifier,
                delete_traits,
            } => {
                let query = if *delete_traits { "?traits=delete" } else { "" };
                format!("members/{}{query}", segment(identifier)?)
            }
            Action::DeadLetters => "dead-letters".to_owned(),
            Action::RetryDeadLetters(_) => "dead-letters/retry".to_owned(),
            Action::DropDeadLetters(_) => "dead-letters/drop".to_owned(),
            Action::Resync { of, .. } | Action::CancelResync(of) => of.path()?,
            Action::Retire { source, cohort_id } => of_cohort(source, cohort_id, "retire")?,
            Action::Plan => "plan".to_owned(),
            Action::Pause { what, pauses } => {
                let call = if *pauses { "pause" } else { "resume" };
                match what {
                    Pausable::Cohort { source, cohort_id } => of_cohort(source, cohort_id, call)?,
                    Pausable::Destination { name } => {
                        format!("destinations/{}/{call}", segment(name)?)
                    }
                }
            }
            Action::HeldRemovals { source, cohort_id }
            | Action::DecideHeldRemovals {
                source, cohort_id, ..
            } => of_cohort(source, cohort_id, "held-removals")?,
        };
        Ok(base.join(&format!("api/v1/{path}"))?)
    }
}

impl ResyncOf {
    fn path(&self) -> Result<String, OperatorError> {
        match self {
            ResyncOf::Destination(name) => Ok(format!("destinations/{}/resync", segment(name)?)),
            ResyncOf::Cohort {
                source,
                cohort_id,
                destination,
            } => {
                let path = of_cohort(source, cohort_id, "resync")?;
                Ok(match destination {
                    // What is right in a path is right in a query.
                    Some(name) => format!("{path}?destination={}", segment(name)?),
                    None => path,
                })
            }
        }
    }
}

fn of_cohort(source: &str, cohort_id: &str, call: &str) -> Result<String, OperatorError> {
    Ok(format!(
        "cohorts/{}/{}/{call}",
        segment(source)?,
        segment(cohort_id)?
    ))
}

/// One path segment, percent-encoded but for what RFC 3986 calls unreserved. `Url` by itself would
/// drop tabs and newlines, and so name another person.
fn segment(value: &str) -> Result<String, OperatorError> {
    if matches!(value, "" | "." | "..") {
        return Err(OperatorError::Unnameable(value.to_owned()));
    }
    let mut encoded = String::with_capacity(value.len());
    for byte in value.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                encoded.push(char::from(byte));
            }
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    Ok(encoded)
}

/// The service's own words, or the status's where the answer is somebody else's.
fn message_of(text: &str, status: StatusCode) -> String {
    #[derive(Deserialize)]
    struct Refusal {
        error: String,
    }

    match serde_json::from_str::<Refusal>(text) {
        Ok(refusal) => table::printable(&refusal.error),
        Err(_) => format!(
            "no reason given ({})",
            status.canonical_reason().unwrap_or("unknown status")
        ),
    }
}

#[cfg(test)]
mod tests {
    use secrecy::SecretString;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::task::JoinHandle;

    use super::*;

    /// Answers one request; the task returns the request as it came.
    async fn listener(answer: &str) -> (AdminEndpoint, JoinHandle<String>) {
        let socket = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}/", socket.local_addr().expect("bound"));
        let answer = answer.to_owned();
        let request = tokio::spawn(async move {
            let (mut stream, _) = socket.accept().await.expect("a connection");
            let mut bytes = Vec::new();
            loop {
                let text = String::from_utf8_lossy(&bytes).to_lowercase();
                if let Some((head, body)) = text.split_once("\r\n\r\n") {
                    let length = head
                        .split("content-length: ")
                        .nth(1)
                        .and_then(|rest| rest.lines().next()?.parse().ok());
                    if body.len() >= length.unwrap_or(0) {
                        break;
                    }
                }
                if stream.read_buf(&mut bytes).await.expect("readable") == 0 {
                    break;
                }
            }
            stream.write_all(answer.as_bytes()).await.expect("writable");
            String::from_utf8(bytes).expect("UTF-8")
        });
        let endpoint = AdminEndpoint {
            url: Url::parse(&url).expect("a URL"),
            token: None,
        };
        (endpoint, request)
    }

    fn http(status: &str, body: &str) -> String {
        let length = body.len();
        format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}")
    }

    /// The request that `action` makes and what is printed when `body` comes back.
    async fn exchange(action: Action, body: &str) -> (String, String) {
        let (endpoint, request) = listener(&http("200 OK", body)).await;
        let mut printed = Vec::new();
        run(&action, &endpoint, Output::Table, &mut printed)
            .await
            .expect("success");
        let printed = String::from_utf8(printed).expect("UTF-8");
        (request.await.expect("a request"), printed)
    }

    async fn failure(answer: &str) -> OperatorError {
        let (endpoint, _request) = listener(answer).await;
        run(&Action::Cohorts, &endpoint, Output::Table, &mut Vec::new())
            .await
            .expect_err("no success")
    }

    #[tokio::test]
    async fn cohorts_are_a_row_for_each_destination() {
        let (request, printed) = exchange(
        Action::Cohorts,
        r#"{"cohorts":[{"source":"default","cohort_id":"42","project_id":"7","name":"Power users",
            "trait_key":"mixpanel_cohort_power_users","members":3,"last_heard_at":0,
            "state":"followed","held_removals":{"held":1204,"session":null,"since":"x"},
            "session":{"id":"s","action":"members","pages_received":1,"pages_total":4,"completed_at":null},
            "destinations":[
              {"name":"eu","written":2,"pending":1,"dead":0,"oldest_pending_seconds":12.4},
              {"name":"us","written":3,"pending":0,"dead":0,"oldest_pending_seconds":null}]},
           {"source":"default","cohort_id":"43","project_id":"7","name":null,"trait_key":"t",
            "members":0,"last_heard_at":"2026-01-01T00:00:00Z","session":null,"destinations":[]}]}"#,
    )
    .await;
        assert!(
            request.starts_with("GET /api/v1/cohorts HTTP/1.1\r\n"),
            "{request}"
        );
        let lines: Vec<&str> = printed.lines().collect();
        assert_eq!(lines.len(), 4, "{printed}");
        assert!(lines[0].starts_with("SOURCE   COHORT  NAME"), "{printed}");
        let columns = lines[1]
            .split("  ")
            .map(str::trim)
            .filter(|cell| !cell.is_empty());
        assert_eq!(
            columns.collect::<Vec<_>>(),
            [
                "default",
                "42",
                "Power users",
                "mixpanel_cohort_power_users",
                "3",
                "held 1,204",
                "1970-01-01 00:00:00Z",
                "members 1/4",
                "eu",
                "2",
                "1",
                "0",
                "12s"
            ]
        );
        assert!(lines[2].contains(" us "), "{printed}");
        assert!(lines[3].contains("2026-01-01T00:00:00Z"), "{printed}");
    }

    #[tokio::test]
    async fn a_pause_says_what_waits_and_a_resumption_what_goes() {
        let cohort = Pausable::Cohort {
            source: "eu".into(),
            cohort_id: "a/b".into(),
        };
        let destination = Pausable::Destination {
            name: "production".into(),
        };
        for (what, path) in [
            (cohort, "cohorts/eu/a%2Fb"),
            (destination, "destinations/production"),
        ] {
            for (pauses, call, said) in [
                (true, "pause", "paused: 2 traits wait"),
                (false, "resume", "resumed: 2 traits to be written"),
            ] {
                let action = Action::Pause {
                    what: what.clone(),
                    pauses,
                };
                let answer = format!(r#"{{"paused":{pauses},"pending":2}}"#);
                let (request, printed) = exchange(action, &answer).await;
                let line = format!("POST /api/v1/{path}/{call} HTTP/1.1\r\n");
                assert!(request.starts_with(&line), "{request}");
                assert_eq!(printed.trim(), said);
            }
        }
    }

    /// The column STATE of a cohort with these keys, delivered to two destinations.
    async fn states(keys: &str) -> [String; 2] {
        let answer = format!(
            r#"{{"cohorts":[{{"source":"s","cohort_id":"1","name":"n","trait_key":"t","members":0,{keys}
            "destinations":[{{"name":"a","written":0,"pending":0,"dead":0,"ready":true}},
                {{"name":"b","written":0,"pending":0,"dead":0,"ready":false}}]}}]}}"#
        );
        let (_, printed) = exchange(Action::Cohorts, &answer).await;
        let lines: Vec<&str> = printed.lines().collect();
        let column = |name| lines[0].find(name).expect("a heading");
        let range = column("STATE")..column("LAST HEARD");
        [1, 2].map(|row| lines[row][range.clone()].trim().to_owned())
    }

    #[tokio::test]
    async fn the_state_is_the_most_urgent_that_is_true_there() {
        let sync = r#""needs_full_sync":{"reason":"r","how":"h"},"#;
        for (keys, here, there) in [
            (r#""state":"followed","#.to_owned(), "ready", "arriving"),
            (
                r#""state":"followed","paused":true,"#.to_owned(),
                "ready, paused",
                "arriving, paused",
            ),
            (
                format!(r#""state":"followed",{sync}"#),
                "needs full sync",
                "needs full sync",
            ),
            (
                format!(r#""state":"followed",{sync}"held_removals":{{"held":2}},"#),
                "held 2",
                "held 2",
            ),
            (
                format!(r#""state":"retiring",{sync}"#),
                "retiring",
                "retiring",
            ),
            (r#""state":"retired","#.to_owned(), "retired", "retired"),
            (r#""state":"unheard of","#.to_owned(), "-", "-"),
            // An older service.
            (String::new(), "-", "-"),
        ] {
            assert_eq!(states(&keys).await, [here, there], "{keys}");
        }
    }

    #[tokio::test]
    async fn held_removals_are_shown_and_decided_on() {
        let (source, cohort_id) = ("eu west".to_owned(), "4/2".to_owned());
        let path = "/api/v1/cohorts/eu%20west/4%2F2/held-removals HTTP";
        let show = Action::HeldRemovals {
            source: source.clone(),
            cohort_id: cohort_id.clone(),
        };
        for (answer, text) in [
            (
                r#"{"held":0,"session":null,"since":null}"#,
                "no removals are held\n",
            ),
            (
                r#"{"held":1204,"session":"s\u001b","since":"2026-01-01T00:00:00.000Z"}"#,
                "1,204 removals are held since 2026-01-01T00:00:00.000Z (session s\\u{1b})\n",
            ),
            (
                r#"{"held":1,"session":null,"since":"2026-01-01T00:00:00.000Z"}"#,
                "1 removal is held since 2026-01-01T00:00:00.000Z\n",
            ),
        ] {
            let (request, printed) = exchange(show.clone(), answer).await;
            assert!(request.starts_with(&format!("GET {path}")), "{request}");
            assert_eq!(printed, text);
        }
        for (decision, word, text) in [
            (Decision::Approve, "approve", "1,204 people leave\n"),
            (
                Decision::Discard,
                "discard",
                "1,204 people stay until the next full sync\n",
            ),
        ] {
            let decide = Action::DecideHeldRemovals {
                source: source.clone(),
                cohort_id: cohort_id.clone(),
                decision,
            };
            let answer = format!(r#"{{"decision":"{word}","held":1204}}"#);
            let (request, printed) = exchange(decide, &answer).await;
            assert!(request.starts_with(&format!("POST {path}")), "{request}");
            let body = format!(r#"{{"decision":"{word}"}}"#);
            assert!(request.ends_with(&body), "{request}");
            assert_eq!(printed, text);
        }
    }

    #[tokio::test]
    async fn a_cohort_is_retired() {
        let retire = Action::Retire {
            source: "eu".into(),
            cohort_id: "4/2".into(),
        };
        let (request, printed) = exchange(retire, r#"{"retiring":1204}"#).await;
        assert!(
            request.starts_with("POST /api/v1/cohorts/eu/4%2F2/retire HTTP"),
            "{request}"
        );
        assert_eq!(
            printed,
            "1,204 members leave, then the cohort is forgotten\n"
        );
    }

    #[tokio::test]
    async fn a_member_is_asked_for_by_the_very_bytes_of_the_identifier() {
        let identifier = "a/b%2F c?#\t\n+é\\".to_owned();
        let (request, printed) = exchange(
            Action::Member { identifier },
            r#"{"identifier":"x","cohorts":[{"source":"default","cohort_id":"42","trait_key":"t",
            "member":true,"destinations":[{"name":"default","written":null,"state":"dead",
            "error":"400 bad\u001b[2J"}]}]}"#,
        )
        .await;
        assert!(
            request.starts_with(
                "GET /api/v1/members/a%2Fb%252F%20c%3F%23%09%0A%2B%C3%A9%5C HTTP/1.1\r\n"
            ),
            "{request}"
        );
        assert!(
            printed.contains(
                "default  42      t          true    default      -        dead   400 bad\\u{1b}[2J"
            ),
            "{printed}"
        );
    }

    #[tokio::test]
    async fn what_every_url_parser_swallows_is_refused() {
        let (endpoint, _request) = listener("").await;
        for identifier in ["", ".", ".."] {
            let action = Action::Forget {
                identifier: identifier.to_owned(),
                delete_traits: true,
            };
            let error = run(&action, &endpoint, Output::Table, &mut Vec::new())
                .await
                .expect_err(identifier);
            assert!(matches!(error, OperatorError::Unnameable(_)), "{error}");
        }
    }

    #[tokio::test]
    async fn dead_letters_are_listed_retried_and_dropped() {
        let (request, printed) = exchange(
        Action::DeadLetters,
        r#"{"dead_letters":[{"destination":"default","identifier":"p","source":"s","cohort_id":"1",
            "trait_key":"t","member":false,"error":"400","since":1000}]}"#,
    )
    .await;
        assert!(
            request.starts_with("GET /api/v1/dead-letters HTTP"),
            "{request}"
        );
        assert!(printed.contains("1970-01-01 00:00:01Z"), "{printed}");

        let selection = Selection {
            destination: Some("default".into()),
            identifier: Some("p".into()),
        };
        let (request, printed) =
            exchange(Action::RetryDeadLetters(selection), r#"{"retried":3}"#).await;
        assert!(
            request.starts_with("POST /api/v1/dead-letters/retry HTTP"),
            "{request}"
        );
        assert!(
            request.ends_with(r#"{"destination":"default","identifier":"p"}"#),
            "{request}"
        );
        assert_eq!(printed, "3 to be tried again\n");

        let all = Action::DropDeadLetters(Selection::default());
        let (request, printed) = exchange(all, r#"{"dropped":2}"#).await;
        assert!(
            request.starts_with("POST /api/v1/dead-letters/drop HTTP"),
            "{request}"
        );
        assert!(request.ends_with("\r\n\r\n"), "{request}");
        assert_eq!(printed, "2 dropped\n");
    }

    #[tokio::test]
    async fn a_cohort_is_resynced_and_a_person_forgotten() {
        let cohort = |destination: Option<&str>| ResyncOf::Cohort {
            source: "eu west".into(),
            cohort_id: "4/2".into(),
            destination: destination.map(str::to_owned),
        };
        let path = "/api/v1/cohorts/eu%20west/4%2F2/resync";
        for (of, max_calls_per_second, path, body) in [
            (cohort(None), None, path.to_owned(), ""),
            (
                cohort(Some("a&b")),
                Some(0.5),
                format!("{path}?destination=a%26b"),
                r#"{"max_calls_per_second":0.5}"#,
            ),
            (
                ResyncOf::Destination("us 1".into()),
                None,
                "/api/v1/destinations/us%201/resync".to_owned(),
                "",
            ),
        ] {
            let cancel = Action::CancelResync(of.clone());
            let resync = Action::Resync {
                of,
                max_calls_per_second,
            };
            let (request, printed) = exchange(resync, r#"{"pending":12}"#).await;
            let line = format!("POST {path} HTTP");
            assert!(request.starts_with(&line), "{request}");
            assert_eq!(request.split_once("\r\n\r\n").unwrap().1, body);
            assert_eq!(printed, "12 to be written again\n");
            let (request, printed) = exchange(cancel, r#"{"cancelled":7}"#).await;
            let line = format!("DELETE {path} HTTP");
            assert!(request.starts_with(&line), "{request}");
            assert_eq!(printed, "7 not to be written again after all\n");
        }

        for (delete_traits, path) in [(false, "p%3F"), (true, "p%3F?traits=delete")] {
            let forget = Action::Forget {
                identifier: "p?".into(),
                delete_traits,
            };
            let (request, printed) = exchange(forget, r#"{"forgotten":2}"#).await;
            let line = format!("DELETE /api/v1/members/{path} HTTP");
            assert!(request.starts_with(&line), "{request}");
            assert_eq!(printed, "forgotten in 2 cohorts\n");
        }
    }

    #[tokio::test]
    async fn the_token_is_sent_and_a_path_in_the_base_kept() {
        let (mut endpoint, request) = listener(&http("200 OK", r#"{"cohorts":[]}"#)).await;
        endpoint.token = Some(SecretString::from("hush"));
        endpoint.url = endpoint.url.join("behind/a/gateway/").expect("a URL");
        let mut printed = Vec::new();
        run(&Action::Cohorts, &endpoint, Output::Table, &mut printed)
            .await
            .expect("success");
        let request = request.await.expect("a request");
        assert!(
            request.starts_with("GET /behind/a/gateway/api/v1/cohorts HTTP"),
            "{request}"
        );
        assert!(
            request.contains("authorization: Bearer hush\r\n"),
            "{request}"
        );
        assert_eq!(printed, b"no cohort has been heard of\n");
    }

    #[tokio::test]
    async fn json_is_printed_as_it_came() {
        let body = r#"{"cohorts":[], "more": 1}"#;
        let (endpoint, _request) = listener(&http("200 OK", body)).await;
        let mut printed = Vec::new();
        run(&Action::Cohorts, &endpoint, Output::Json, &mut printed)
            .await
            .expect("success");
        assert_eq!(printed, format!("{body}\n").as_bytes());
    }

    #[tokio::test]
    async fn refusals_say_what_the_service_says() {
        let error = failure(&http("404 Not Found", r#"{"error":"no such cohort"}"#)).await;
        assert_eq!(
            error.to_string(),
            "the admin listener answered 404 Not Found: no such cohort"
        );
        let error = failure(&http("502 Bad Gateway", "<html>")).await;
        assert!(matches!(error, OperatorError::Refused { .. }), "{error}");
        for status in ["401 Unauthorized", "403 Forbidden"] {
            let error = failure(&http(status, r#"{"error":"token"}"#)).await;
            assert!(
                error.to_string().contains("COHORT_BRIDGE_ADMIN_TOKEN"),
                "{error}"
            );
        }
    }

    #[tokio::test]
    async fn a_redirect_is_not_followed() {
        let answer = "HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        let error = failure(answer).await;
        assert!(
            matches!(
                error,
                OperatorError::Refused {
                    status: StatusCode::FOUND,
                    ..
                }
            ),
            "{error}"
        );
    }

    #[tokio::test]
    async fn other_answers_and_none_are_told_apart() {
        let error = failure(&http("200 OK", "<html>")).await;
        assert!(matches!(error, OperatorError::Unintelligible(_)), "{error}");

        let (endpoint, request) = listener("").await;
        request.abort();
        let _ = request.await;
        let error = run(&Action::Cohorts, &endpoint, Output::Table, &mut Vec::new())
            .await
            .expect_err("nobody listens");
        assert!(
            matches!(error, OperatorError::Unreachable { .. }),
            "{error}"
        );
    }
}
