//! Time, passed in. This file holds the crate's only `now()`s: [`SystemClock`] for points in time,
//! [`Stopwatch`] for spans of it.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use tokio::sync::watch;

/// Milliseconds since the Unix epoch.
pub type Millis = i64;

/// A source of time that a test can drive.
#[async_trait]
pub trait Clock: Send + Sync + 'static {
    /// Wall-clock time in milliseconds since the Unix epoch.
    fn now(&self) -> Millis;

    /// Returns once [`Clock::now`] has reached `deadline`.
    async fn sleep_until(&self, deadline: Millis);
}

/// `duration` in whole milliseconds, saturating.
pub fn millis(duration: Duration) -> Millis {
    Millis::try_from(duration.as_millis()).unwrap_or(Millis::MAX)
}

/// The machine's clock.
#[derive(Debug, Default)]
pub struct SystemClock;

#[async_trait]
impl Clock for SystemClock {
    fn now(&self) -> Millis {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map(millis)
            .unwrap_or(0)
    }

    async fn sleep_until(&self, deadline: Millis) {
        let left = deadline.saturating_sub(self.now()).max(0);
        tokio::time::sleep(Duration::from_millis(left.unsigned_abs())).await;
    }
}

/// A clock that moves when it is told to; for tests and simulations.
#[derive(Clone, Debug)]
pub struct ManualClock {
    now: Arc<watch::Sender<Millis>>,
}

impl ManualClock {
    /// A clock that stands at `now`.
    pub fn at(now: Millis) -> Self {
        ManualClock {
            now: Arc::new(watch::Sender::new(now)),
        }
    }

    /// Moves the clock forward and wakes who waited for the time reached.
    pub fn advance(&self, by: Duration) {
        self.now.send_modify(|now| *now += millis(by));
    }

    /// Sets the clock, back as well as forward.
    pub fn set(&self, now: Millis) {
        self.now.send_replace(now);
    }
}

#[async_trait]
impl Clock for ManualClock {
    fn now(&self) -> Millis {
        *self.now.borrow()
    }

    async fn sleep_until(&self, deadline: Millis) {
        // The sender lives as long as `self`, so waiting cannot fail.
        let _ = self.now.subscribe().wait_for(|now| *now >= deadline).await;
    }
}

/// Measures how long something took; steps of the wall clock do not touch it.
#[derive(Clone, Copy, Debug)]
pub struct Stopwatch(Instant);

impl Stopwatch {
    /// Starts measuring.
    pub fn start() -> Self {
        Stopwatch(Instant::now())
    }

    /// Time since the start.
    pub fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
}
