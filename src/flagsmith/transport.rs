//! One HTTP call: sent, read whole, repeated once where the connection broke off.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{HeaderMap, HeaderValue, LOCATION};
use reqwest::{Method, Request, StatusCode};
use tokio::time::Instant;
use url::Url;

use super::disposition::{Answer, EXCERPT_BYTES, Scope, Trouble};
use super::{ENVIRONMENT_KEY, Flagsmith};
use crate::clock::{Clock, Millis, SystemClock};

/// Bytes. Flagsmith's keys have 22 and more; a shorter word could be any word of an answer.
const SHORTEST_HIDDEN_KEY_BYTES: usize = 8;

/// One HTTP call that ended, for metrics.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// The answer's status; `None` where no answer came.
    pub status: Option<u16>,
    /// From sending until the answer was read.
    pub elapsed: Duration,
}

pub(super) type Observer = Arc<dyn Fn(Call) + Send + Sync>;

impl Flagsmith {
    /// A 200, read whole; or why there is none.
    pub(super) async fn call(
        &self,
        method: &Method,
        url: &Url,
        body: Option<&Bytes>,
    ) -> Result<Answer, Trouble> {
        self.answer(method, url, body).await?.ok(now())
    }

    /// The answer, whatever its status, read whole; or why there is none.
    pub(super) async fn answer(
        &self,
        method: &Method,
        url: &Url,
        body: Option<&Bytes>,
    ) -> Result<Answer, Trouble> {
        self.answer_within(None, method, url, body).await
    }

    /// As [`Flagsmith::answer`], within a time of its own instead of the client's.
    pub(super) async fn answer_within(
        &self,
        limit: Option<Duration>,
        method: &Method,
        url: &Url,
        body: Option<&Bytes>,
    ) -> Result<Answer, Trouble> {
        match self.attempt(limit, method, url, body).await {
            Err(Broken {
                before_any_answer: true,
                ..
            }) => match self.attempt(limit, method, url, body).await {
                Ok(answer) => Ok(Answer {
                    repeated: true,
                    ..answer
                }),
                Err(broken) => Err(broken.trouble(true)),
            },
            other => other.map_err(|broken| broken.trouble(false)),
        }
    }

    async fn attempt(
        &self,
        limit: Option<Duration>,
        method: &Method,
        url: &Url,
        body: Option<&Bytes>,
    ) -> Result<Answer, Broken> {
        let mut request = Request::new(method.clone(), url.clone());
        *request.headers_mut() = self.headers.clone();
        *request.timeout_mut() = limit;
        // Bytes, never a stream: a chunked body is ignored under a 200.
        *request.body_mut() = body.map(|body| body.clone().into());
        if let Some(meter) = &self.meter
            && !meter.pay().await
        {
            return Err(Broken::unpaid());
        }
        let begun = Instant::now();
        let mut status = None;
        let ended = self.exchange(request, &mut status).await;
        if let Some(observer) = &self.observer {
            observer(Call {
                status,
                elapsed: begun.elapsed(),
            });
        }
        ended
    }

    async fn exchange(&self, request: Request, status: &mut Option<u16>) -> Result<Answer, Broken> {
        let mut response = self.http.execute(request).await.map_err(Broken::sending)?;
        *status = Some(response.status().as_u16());
        let announced = response.content_length().unwrap_or(0);
        let announced = usize::try_from(announced).unwrap_or(usize::MAX);
        if announced > self.max_answer_bytes {
            return Err(Broken::too_large(self.max_answer_bytes));
        }
        let mut body = Vec::with_capacity(announced);
        while let Some(chunk) = response.chunk().await.map_err(Broken::reading)? {
            if chunk.len() > self.max_answer_bytes - body.len() {
                return Err(Broken::too_large(self.max_answer_bytes));
            }
            body.extend_from_slice(&chunk);
        }
        let mut headers = std::mem::take(response.headers_mut());
        // What a 200 says is data; `without` sees to its errors.
        if response.status() != StatusCode::OK {
            self.hide_key(&mut headers, &mut body);
        }
        Ok(Answer {
            status: response.status(),
            headers,
            body,
            repeated: false,
        })
    }

    /// The environment key.
    pub(super) fn key(&self) -> &str {
        let key = self.headers.get(ENVIRONMENT_KEY);
        key.and_then(|key| key.to_str().ok()).unwrap_or_default()
    }

    /// Whoever answers may quote the request, and what an answer says goes to the log and the
    /// status page: the key must not be in it.
    fn hide_key(&self, headers: &mut HeaderMap, body: &mut Vec<u8>) {
        let key = self.key().as_bytes();
        if key.len() < SHORTEST_HIDDEN_KEY_BYTES {
            return;
        }
        let shown = &body[..body.len().min(EXCERPT_BYTES)];
        if let Some(hidden) = without(shown, key) {
            let rest = shown.len();
            body.splice(..rest, hidden);
        }
        if let Some(hidden) = headers
            .get(LOCATION)
            .and_then(|target| without(target.as_bytes(), key))
            .and_then(|hidden| HeaderValue::from_bytes(&hidden).ok())
        {
            headers.insert(LOCATION, hidden);
        }
    }
}

/// `text` with dots for every `key`; `None` where there is none.
fn without(text: &[u8], key: &[u8]) -> Option<Vec<u8>> {
    let mut hidden = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.windows(key.len()).position(|part| part == key) {
        hidden.extend_from_slice(&rest[..at]);
        hidden.extend_from_slice(b"...");
        rest = &rest[at + key.len()..];
    }
    (rest.len() < text.len()).then(|| {
        hidden.extend_from_slice(rest);
        hidden
    })
}

/// A call without a whole answer.
struct Broken {
    trouble: Trouble,
    /// The connection broke before any answer: possibly an idle connection that the server closed.
    before_any_answer: bool,
}

impl Broken {
    fn sending(error: reqwest::Error) -> Self {
        let unsent = error.is_connect() || error.is_builder();
        let timed_out = error.is_timeout();
        Broken {
            trouble: Trouble::Later {
                // An identity can make Flagsmith slow or kill its worker; it cannot make it
                // unreachable.
                scope: if unsent {
                    Scope::Destination
                } else {
                    Scope::Identity
                },
                retry_after: None,
                may_land_late: !unsent,
                error: chain(error),
            },
            before_any_answer: !unsent && !timed_out,
        }
    }

    /// No call was made.
    fn unpaid() -> Self {
        Broken {
            trouble: Trouble::Later {
                scope: Scope::Destination,
                retry_after: None,
                may_land_late: false,
                error: "the call budget of this month is used up".to_owned(),
            },
            before_any_answer: false,
        }
    }

    /// The head of an answer came, so Flagsmith is done with the request: nothing lands late.
    fn reading(error: reqwest::Error) -> Self {
        Broken {
            trouble: Trouble::Later {
                scope: Scope::Identity,
                retry_after: None,
                may_land_late: false,
                error: format!("Flagsmith's answer breaks off: {}", chain(error)),
            },
            before_any_answer: false,
        }
    }

    fn too_large(limit: usize) -> Self {
        Broken {
            trouble: Trouble::Halt {
                reason: format!(
                    "the answer is over {limit} bytes: check the API address \
                     (COHORT_BRIDGE_FLAGSMITH_API_URL)"
                ),
            },
            before_any_answer: false,
        }
    }

    fn trouble(self, repeated: bool) -> Trouble {
        let mut trouble = self.trouble;
        if let Trouble::Later { may_land_late, .. } = &mut trouble {
            *may_land_late |= repeated;
        }
        trouble
    }
}

/// The error and what caused it, without the address, which may hold an identifier.
fn chain(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

pub(super) fn now() -> Millis {
    SystemClock.now()
}

#[cfg(test)]
mod tests {
    use super::without;

    #[test]
    fn a_quoted_key_is_hidden_wherever_it_stands() {
        for (text, hidden) in [
            ("", None),
            ("ser.ke", None),
            ("ser.key", Some("...")),
            ("a ser.key, ser.key b", Some("a ..., ... b")),
        ] {
            let found = without(text.as_bytes(), b"ser.key");
            assert_eq!(found.as_deref(), hidden.map(str::as_bytes), "{text}");
        }
    }
}
