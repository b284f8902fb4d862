//! `cohort-bridge health`: one question to the admin listener, for supervisors that run a command
//! and cannot ask over HTTP themselves. An image without a shell has no other program to ask with.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use reqwest::{StatusCode, redirect};
use serde::Deserialize;

use crate::config::HealthQuestion;

/// How long the whole question may take: supervisors give a check some seconds, and a service that
/// needs longer than this is not well.
pub const LIMIT: Duration = Duration::from_secs(5);

/// Why the service does not count as healthy.
#[derive(Debug, thiserror::Error)]
pub enum HealthError {
    /// The HTTP client could not be made.
    #[error("the HTTP client could not be set up")]
    Client(#[source] reqwest::Error),
    /// Nothing answered there.
    #[error("{url} cannot be reached; is the service running, and is --admin-listen right?")]
    Unreachable {
        /// What was asked.
        url: String,
        /// What happened.
        #[source]
        source: reqwest::Error,
    },
    /// The connection stands, the answer did not come.
    #[error("{url} did not answer within {} ms", limit.as_millis())]
    Silent {
        /// What was asked.
        url: String,
        /// How long it was waited for.
        limit: Duration,
    },
    /// The service says that it is not well.
    #[error("{url} answered {status}: {reason}")]
    Unwell {
        /// What was asked.
        url: String,
        /// Anything but 200.
        status: StatusCode,
        /// The service's own words.
        reason: String,
    },
}

/// Asks the admin listener; what it says when all is well.
///
/// # Errors
///
/// Anything but 200 within `limit`.
pub async fn ask(question: &HealthQuestion, limit: Duration) -> Result<String, HealthError> {
    // No redirect and no proxy: the question is for the process beside this one.
    let client = reqwest::Client::builder()
        .redirect(redirect::Policy::none())
        .no_proxy()
        // It is asked over plain HTTP: the machine's certificates need not be read for that.
        .tls_certs_only(std::iter::empty())
        .timeout(limit)
        .build()
        .map_err(HealthError::Client)?;
    let url = url_of(question);
    let failed = |source: reqwest::Error| {
        let url = url.clone();
        if source.is_timeout() {
            HealthError::Silent { url, limit }
        } else {
            let source = source.without_url();
            HealthError::Unreachable { url, source }
        }
    };
    let response = client.get(&url).send().await.map_err(failed)?;
    let status = response.status();
    let text = response.text().await.map_err(failed)?;
    if status == StatusCode::OK {
        return Ok(format!("{url} answered 200"));
    }
    let reason = reason_of(&text);
    Err(HealthError::Unwell {
        url,
        status,
        reason,
    })
}

fn url_of(question: &HealthQuestion) -> String {
    let path = if question.ready { "readyz" } else { "livez" };
    format!("http://{}/{path}", reachable(question.admin_listen))
}

/// Where a listener of that address is reached from the same machine: one that takes connections
/// from everywhere takes them on loopback.
fn reachable(listen: SocketAddr) -> SocketAddr {
    match listen {
        SocketAddr::V4(address) if address.ip().is_unspecified() => {
            (Ipv4Addr::LOCALHOST, address.port()).into()
        }
        SocketAddr::V6(address) if address.ip().is_unspecified() => {
            (Ipv6Addr::LOCALHOST, address.port()).into()
        }
        address => address,
    }
}

/// The service's own words, where the answer is the service's.
fn reason_of(text: &str) -> String {
    #[derive(Deserialize)]
    struct Reply {
        reason: Option<String>,
    }

    serde_json::from_str(text)
        .ok()
        .and_then(|reply: Reply| reply.reason)
        .unwrap_or_else(|| "no reason given".to_owned())
}

#[cfg(test)]
mod tests {
    use std::error::Error;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::task::JoinHandle;

    use super::*;

    /// Answers one request with `answer`; the task returns the request's first line.
    async fn listener(answer: &'static str) -> (SocketAddr, JoinHandle<String>) {
        let socket = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = socket.local_addr().expect("bound");
        let request = tokio::spawn(async move {
            let (mut stream, _) = socket.accept().await.expect("a connection");
            let mut bytes = Vec::new();
            while !bytes.ends_with(b"\r\n\r\n") {
                bytes.push(stream.read_u8().await.expect("a request"));
            }
            let written = stream.write_all(answer.as_bytes()).await;
            written.expect("the answer is taken");
            let text = String::from_utf8_lossy(&bytes);
            text.lines().next().unwrap_or_default().to_owned()
        });
        (address, request)
    }

    fn question(admin_listen: SocketAddr, ready: bool) -> HealthQuestion {
        HealthQuestion {
            admin_listen,
            ready,
        }
    }

    #[tokio::test]
    async fn a_service_that_answers_200_is_well() {
        for (ready, path) in [(false, "/livez"), (true, "/readyz")] {
            let answer = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
            let (address, request) = listener(answer).await;
            let said = ask(&question(address, ready), LIMIT).await.expect("well");
            assert_eq!(said, format!("http://{address}{path} answered 200"));
            let line = request.await.expect("asked");
            assert_eq!(line, format!("GET {path} HTTP/1.1"));
        }
    }

    #[tokio::test]
    async fn a_service_that_is_not_ready_says_why() {
        let answer = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 46\r\n\r\n{\"status\":\"not ready\",\"reason\":\"disk is full\"}";
        let (address, _) = listener(answer).await;
        let error = ask(&question(address, true), LIMIT).await.expect_err("503");
        let expected =
            format!("http://{address}/readyz answered 503 Service Unavailable: disk is full");
        assert_eq!(error.to_string(), expected);
    }

    #[tokio::test]
    async fn what_is_not_200_is_not_well() {
        for answer in [
            "HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1/\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 204 No Content\r\n\r\n",
            "HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\nno",
        ] {
            let (address, _) = listener(answer).await;
            let error = ask(&question(address, false), LIMIT).await;
            let error = error.expect_err(answer).to_string();
            assert!(error.ends_with(": no reason given"), "{error}");
        }
    }

    #[tokio::test]
    async fn nobody_there_is_told_with_the_setting_to_look_at() {
        let free = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = free.local_addr().expect("bound");
        drop(free);
        let error = ask(&question(address, false), LIMIT).await;
        let error = error.expect_err("nobody listens");
        assert!(error.source().is_some());
        let error = error.to_string();
        assert!(
            error.contains(&format!("http://{address}/livez")),
            "{error}"
        );
        assert!(error.contains("--admin-listen"), "{error}");
    }

    #[tokio::test]
    async fn a_service_that_hangs_is_not_waited_for() {
        // It takes the connection, into the backlog, and never answers.
        let socket = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = socket.local_addr().expect("bound");
        let limit = Duration::from_millis(50);
        let error = ask(&question(address, false), limit).await;
        let error = error.expect_err("silence").to_string();
        assert_eq!(
            error,
            format!("http://{address}/livez did not answer within 50 ms")
        );
    }

    #[test]
    fn a_listener_for_everybody_is_asked_on_loopback() {
        for (listen, asked) in [
            ("0.0.0.0:9090", "http://127.0.0.1:9090/livez"),
            ("[::]:9090", "http://[::1]:9090/livez"),
            ("127.0.0.1:1", "http://127.0.0.1:1/livez"),
            ("[::1]:1", "http://[::1]:1/livez"),
            ("10.1.2.3:9090", "http://10.1.2.3:9090/livez"),
        ] {
            let listen = listen.parse().expect("an address");
            assert_eq!(url_of(&question(listen, false)), asked);
        }
    }
}
