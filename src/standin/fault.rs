//! Bad days, as data.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;

use super::lock;
use super::traffic::Endpoint;

/// What a call meets instead of an ordinary answer.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Nothing: an ordinary answer, to let a call of a script pass.
    Pass,
    /// This answer; nothing is stored.
    Answer {
        /// The status.
        status: u16,
        /// The `Retry-After` header.
        retry_after: Option<String>,
        /// JSON if it begins with `{` or `[`, else a page.
        body: String,
    },
    /// An ordinary answer after this long.
    Delay(Duration),
    /// An ordinary answer after [`StandIn::release`](super::StandIn::release).
    Hold,
    /// The database refuses this identity: a 500, and in bulk whatever comes before it is written.
    Refuse(String),
    /// No answer ever; nothing is stored.
    Hang,
    /// The connection closes; nothing is stored.
    CloseBeforeStoring,
    /// The connection closes without an answer after everything was stored.
    CloseAfterStoring,
    /// Everything is stored; the answer stops half-way and the connection closes.
    Truncate,
    /// No answer ever; stored by
    /// [`StandIn::land_late_writes`](super::StandIn::land_late_writes).
    LandLate,
    /// The connection closes without an answer; stored as [`Fault::LandLate`].
    CloseAndLandLate,
    /// A 200 made of the request alone, as a proxy or a mock answers that stands in Flagsmith's
    /// place: traits are shown as sent, a read shows none. Nothing is stored.
    Mimic,
}

impl Fault {
    /// An answer of this status with Django's page for it.
    pub fn status(status: u16) -> Self {
        Fault::Answer {
            status,
            retry_after: None,
            body: super::reply::page(status),
        }
    }

    /// An answer of this status and body.
    pub fn answer(status: u16, body: impl Into<String>) -> Self {
        Fault::Answer {
            status,
            retry_after: None,
            body: body.into(),
        }
    }

    /// A 429 with this `Retry-After`.
    pub fn too_many(retry_after: impl Into<String>) -> Self {
        Fault::Answer {
            status: 429,
            retry_after: Some(retry_after.into()),
            body: r#"{"detail":"Request was throttled."}"#.to_owned(),
        }
    }

    /// The 403 for an unknown key, as if the key had been deleted.
    pub fn unknown_key() -> Self {
        Fault::answer(403, r#"{"detail":"Invalid or missing Environment Key"}"#)
    }

    /// A 200 that a proxy's log-in page gives.
    pub fn log_in_page() -> Self {
        Fault::answer(200, "<!doctype html><title>Log in</title>")
    }
}

/// A call as a rule sees it.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// 1 for the first call that met faults, script or rule.
    pub number: u64,
    /// Which endpoint.
    pub endpoint: Endpoint,
    /// The identifier as sent, of the first row in bulk; empty where there is none.
    pub identifier: &'a str,
    /// All identifiers as sent, each once; several in bulk only.
    pub identifiers: &'a [String],
}

impl Call<'_> {
    /// Whether it is about this identity, among others or alone.
    pub fn is_about(&self, identifier: &str) -> bool {
        self.identifiers.iter().any(|named| named == identifier)
    }
}

pub(super) type Rule = Arc<dyn Fn(&Call<'_>) -> Option<Fault> + Send + Sync>;

/// What is to go wrong, and what is held because of it.
#[derive(Default)]
pub(super) struct Faults {
    /// Whether a script or a rule is there: the one thing a call on a good day looks at.
    armed: AtomicBool,
    number: AtomicU64,
    script: Mutex<VecDeque<Fault>>,
    rule: Mutex<Option<Rule>>,
    released: watch::Sender<u64>,
    held: watch::Sender<usize>,
}

impl Faults {
    pub fn armed(&self) -> bool {
        self.armed.load(Ordering::Acquire)
    }

    pub fn script(&self, faults: impl IntoIterator<Item = Fault>) {
        lock(&self.script).extend(faults);
        self.armed.store(true, Ordering::Release);
    }

    pub fn set_rule(&self, rule: Option<Rule>) {
        *lock(&self.rule) = rule;
        self.armed.store(true, Ordering::Release);
    }

    pub fn clear(&self) {
        lock(&self.script).clear();
        *lock(&self.rule) = None;
        self.armed.store(false, Ordering::Release);
    }

    pub fn next(&self, endpoint: Endpoint, identifiers: &[String]) -> Fault {
        let number = self.number.fetch_add(1, Ordering::Relaxed) + 1;
        if let Some(fault) = lock(&self.script).pop_front() {
            return fault;
        }
        let rule = lock(&self.rule).clone();
        let call = Call {
            number,
            endpoint,
            identifier: identifiers.first().map(String::as_str).unwrap_or_default(),
            identifiers,
        };
        rule.and_then(|rule| rule(&call)).unwrap_or(Fault::Pass)
    }

    pub async fn wait_for_held(&self, count: usize) {
        // The sender lives as long as `self`, so waiting cannot fail.
        let _ = self.held.subscribe().wait_for(|held| *held >= count).await;
    }

    pub fn release(&self) {
        self.released.send_modify(|times| *times += 1);
    }

    /// Holds until the next release.
    pub async fn hold(&self) {
        // Subscribed before it counts as held, so that no release in between is missed.
        let mut released = self.released.subscribe();
        let _held = self.hold_mark();
        let _ = released.changed().await;
    }

    /// Holds for ever.
    pub async fn hang(&self) -> ! {
        let _held = self.hold_mark();
        std::future::pending().await
    }

    fn hold_mark(&self) -> HeldMark<'_> {
        self.held.send_modify(|held| *held += 1);
        HeldMark(&self.held)
    }
}

struct HeldMark<'a>(&'a watch::Sender<usize>);

impl Drop for HeldMark<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|held| *held -= 1);
    }
}
