//! Payloads from files, sent through the front door as Mixpanel would send them: one after another,
//! with Mixpanel's own retries.

mod payloads;
mod report;

use std::io::{IsTerminal as _, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use reqwest::header::{CONTENT_TYPE, HeaderValue};
use reqwest::{Client, StatusCode, redirect};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use url::Url;

use crate::clock::{Clock, millis};
use crate::config::ReplaySettings;
use crate::signature::{SecretError, SigningSecret};
pub use payloads::{Payload, PayloadFile, STDIN, files, payloads_in};
use report::Line;

/// Where a receiver on this machine listens by default.
pub const DEFAULT_URL: &str = "http://127.0.0.1:8080/webhooks/mixpanel";

/// Mixpanel's waits before it tries again after 429, 5xx or no answer: five tries in 60 s, each wait
/// twice the one before (Mixpanel documents number, time and kind; the exact waits are ours).
const RETRY_DELAYS: [Duration; 5] = [
    Duration::from_secs(2),
    Duration::from_secs(4),
    Duration::from_secs(8),
    Duration::from_secs(16),
    Duration::from_secs(30),
];

/// How long one answer may take. Mixpanel documents no limit; the receiver's own for a body is 10 s.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Bytes of an answer that are read: Mixpanel's shape needs a few hundred.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// What to send where, and as whom.
#[derive(Clone)]
pub struct Replay {
    /// The webhook.
    pub url: Url,
    /// `user:password`.
    pub basic_auth: Option<BasicAuth>,
    /// Signs every attempt.
    pub signing_secret: Option<SigningSecret>,
    /// Pages a second at most; as fast as answers come without it.
    pub rate: Option<f64>,
    /// The folder from which on names of files are shown; all of the name without it.
    pub shown_from: Option<PathBuf>,
    /// For retries, rate and signatures.
    pub clock: Arc<dyn Clock>,
}

/// A user and a password for HTTP Basic.
#[derive(Clone, Debug)]
pub struct BasicAuth {
    user: String,
    password: SecretString,
}

impl std::str::FromStr for BasicAuth {
    type Err = ReplayError;

    fn from_str(pair: &str) -> Result<Self, ReplayError> {
        let (user, password) = pair.split_once(':').ok_or(ReplayError::BasicAuth)?;
        Ok(BasicAuth {
            user: user.to_owned(),
            password: password.into(),
        })
    }
}

/// How it went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Payloads that were answered, retries not counted.
    pub sent: usize,
    /// Answered with `success`.
    pub succeeded: usize,
    /// Answered with anything else, after the retries where there are any.
    pub refused: usize,
}

/// Why replaying ended early, or could not begin.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// No colon.
    #[error("--basic-auth wants USER:PASS")]
    BasicAuth,
    /// Not a secret of the Standard Webhooks kind.
    #[error("--signing-secret {0}")]
    Secret(#[from] SecretError),
    /// Neither http nor https.
    #[error("--url must begin with http:// or https://")]
    Url,
    /// Nothing to send.
    #[error(
        "no payloads in {path}: .json, .ndjson and .jsonl files are looked for, not in its subfolders"
    )]
    Empty {
        /// The folder.
        path: PathBuf,
    },
    /// A file that cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// No line can be written.
    #[error("cannot write the report")]
    Write(#[from] std::io::Error),
    /// No client can be made.
    #[error("cannot make an HTTP client")]
    Client(#[source] reqwest::Error),
    /// Nobody answered, for as long as Mixpanel tries.
    #[error("no answer from {url} to {payload}, retries included: is the receiver running?")]
    NoAnswer {
        /// The webhook.
        url: String,
        /// What was being sent.
        payload: String,
        /// The last failure.
        source: reqwest::Error,
    },
}

/// One answer of a receiver.
#[derive(Debug)]
struct Answer {
    status: StatusCode,
    /// Whether it says `success` under a 2xx.
    success: bool,
    /// What went wrong, in the receiver's words.
    message: Option<String>,
}

/// An answer in Mixpanel's shape, as far as it matters here.
#[derive(Default, Deserialize)]
struct Reply {
    #[serde(default)]
    status: String,
    error: Option<Fault>,
}

#[derive(Deserialize)]
struct Fault {
    #[serde(default)]
    message: String,
}

impl Replay {
    /// What the settings say.
    ///
    /// # Errors
    ///
    /// [`ReplayError::Secret`] for a signing secret that is none.
    pub fn new(settings: &ReplaySettings, clock: Arc<dyn Clock>) -> Result<Self, ReplayError> {
        let basic_auth = settings
            .basic_auth
            .as_ref()
            .map(|pair| pair.expose_secret().parse())
            .transpose()?;
        let signing_secret = settings
            .signing_secret
            .as_ref()
            .map(|secret| SigningSecret::parse(secret.expose_secret()))
            .transpose()?;
        Ok(Replay {
            url: settings.url.clone(),
            basic_auth,
            signing_secret,
            rate: settings.rate,
            shown_from: None,
            clock,
        })
    }

    /// Sends what is in `paths`, in order, and writes a line for each answer to `out`. A refusal
    /// does not keep the rest from being sent.
    ///
    /// # Errors
    ///
    /// [`ReplayError`] where something cannot be read, written or reached.
    pub async fn run(
        &self,
        paths: &[PathBuf],
        out: &mut (dyn Write + Send),
    ) -> Result<Summary, ReplayError> {
        let files = files(paths)?;
        let client = self.client()?;
        let bar = progress_bar();
        let mut turn_us = self.clock.now().saturating_mul(1_000);
        let mut summary = Summary::default();
        for file in &files {
            let payloads = payloads_in(file)?;
            bar.inc_length(payloads.len() as u64);
            for mut payload in payloads {
                payload.name = self.shown(&payload.name);
                turn_us = self.wait_for_turn(turn_us).await;
                let answer = self.deliver(&client, &payload, &bar).await?;
                summary.sent += 1;
                if answer.success {
                    summary.succeeded += 1;
                } else {
                    summary.refused += 1;
                }
                let line = Line::of(&payload, &answer);
                bar.suspend(|| writeln!(out, "{line}"))?;
                bar.inc(1);
            }
        }
        bar.finish_and_clear();
        Ok(summary)
    }

    fn shown(&self, name: &str) -> String {
        let below = self
            .shown_from
            .as_ref()
            .and_then(|folder| Path::new(name).strip_prefix(folder).ok());
        below.map_or_else(|| name.to_owned(), |below| below.display().to_string())
    }

    fn client(&self) -> Result<Client, ReplayError> {
        if !matches!(self.url.scheme(), "http" | "https") {
            return Err(ReplayError::Url);
        }
        let mut client = Client::builder()
            .redirect(redirect::Policy::none())
            .timeout(ANSWER_TIMEOUT);
        if is_loopback(&self.url) {
            client = client.no_proxy();
        }
        client.build().map_err(ReplayError::Client)
    }

    /// Waits for the turn at `turn_us` and returns the next one, in microseconds since the epoch.
    /// Counted from when the turn is taken, so that an outage is not followed by a burst.
    async fn wait_for_turn(&self, turn_us: i64) -> i64 {
        let Some(rate) = self.rate else {
            return turn_us;
        };
        let due_at = turn_us.saturating_add(999).div_euclid(1_000);
        self.clock.sleep_until(due_at).await;
        let taken_us = turn_us.max(self.clock.now().saturating_mul(1_000));
        taken_us.saturating_add((1_000_000.0 / rate) as i64)
    }

    /// Sends one payload until there is an answer that Mixpanel would take as final.
    async fn deliver(
        &self,
        client: &Client,
        payload: &Payload,
        bar: &ProgressBar,
    ) -> Result<Answer, ReplayError> {
        // One message: a retry keeps its id.
        let id = format!("msg_{:032x}", fastrand::u128(..));
        let mut delays = RETRY_DELAYS.iter();
        loop {
            let result = self.attempt(client, &id, payload).await;
            let retryable = match &result {
                Ok(answer) => {
                    answer.status == StatusCode::TOO_MANY_REQUESTS
                        || answer.status.is_server_error()
                }
                Err(_) => true,
            };
            match (delays.next(), result) {
                (Some(delay), result) if retryable => {
                    let why = match result {
                        Ok(answer) => answer.status.to_string(),
                        Err(_) => "no answer".to_owned(),
                    };
                    bar.set_message(format!("{why}, again in {} s", delay.as_secs()));
                    let due_at = self.clock.now().saturating_add(millis(*delay));
                    self.clock.sleep_until(due_at).await;
                    bar.set_message("");
                }
                (_, Ok(answer)) => return Ok(answer),
                (_, Err(error)) => {
                    return Err(ReplayError::NoAnswer {
                        url: shown(&self.url),
                        payload: payload.name.clone(),
                        source: error.without_url(),
                    });
                }
            }
        }
    }

    async fn attempt(
        &self,
        client: &Client,
        id: &str,
        payload: &Payload,
    ) -> Result<Answer, reqwest::Error> {
        let mut request = client
            .post(self.url.clone())
            .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
            .body(payload.bytes.clone());
        if let Some(BasicAuth { user, password }) = &self.basic_auth {
            request = request.basic_auth(user, Some(password.expose_secret()));
        }
        if let Some(secret) = &self.signing_secret {
            let timestamp = self.clock.now().div_euclid(1_000);
            request = request
                .header("webhook-id", id)
                .header("webhook-timestamp", timestamp)
                .header(
                    "webhook-signature",
                    secret.sign(id, timestamp, &payload.bytes),
                );
        }
        let mut response = request.send().await?;
        let status = response.status();
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await? {
            body.extend_from_slice(&chunk);
            if body.len() > MAX_ANSWER_BYTES {
                break;
            }
        }
        let reply: Reply = serde_json::from_slice(&body).unwrap_or_default();
        let success = status.is_success() && reply.status == "success";
        Ok(Answer {
            status,
            success,
            message: match reply.error {
                Some(fault) => Some(fault.message),
                None if success => None,
                None => Some("not an answer in Mixpanel's shape".to_owned()),
            },
        })
    }
}

impl Summary {
    /// Whether every payload was answered with `success`.
    pub fn is_success(&self) -> bool {
        self.refused == 0
    }
}

/// On a terminal only; standard output stays a plain list of answers.
fn progress_bar() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {per_sec} {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(0).with_style(style)
}

/// A proxy has no way to what listens on this machine.
fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        Some(url::Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

/// `url` without what may be secret in it.
fn shown(url: &Url) -> String {
    format!("{}{}", url.origin().ascii_serialization(), url.path())
}

#[cfg(test)]
mod tests;
