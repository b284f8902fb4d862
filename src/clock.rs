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

/// A clock that moves when it is told to; for tests and simulations. As with a real one, who sleeps
/// sleeps for a span of time, however the clock is set meanwhile.
#[derive(Clone, Debug)]
pub struct ManualClock {
    hands: Arc<watch::Sender<Hands>>,
}

#[derive(Clone, Copy, Debug)]
struct Hands {
    now: Millis,
    elapsed: Millis,
}

impl ManualClock {
    /// A clock that stands at `now`.
    pub fn at(now: Millis) -> Self {
        ManualClock {
            hands: Arc::new(watch::Sender::new(Hands { now, elapsed: 0 })),
        }
    }

    /// Lets time pass, and wakes who slept long enough.
    pub fn advance(&self, by: Duration) {
        self.hands.send_modify(|hands| {
            hands.now += millis(by);
            hands.elapsed += millis(by);
        });
    }

    /// Sets the clock, back as well as forward; no time passes.
    pub fn set(&self, now: Millis) {
        self.hands.send_modify(|hands| hands.now = now);
    }
}

#[async_trait]
impl Clock for ManualClock {
    fn now(&self) -> Millis {
        self.hands.borrow().now
    }

    async fn sleep_until(&self, deadline: Millis) {
        let mut hands = self.hands.subscribe();
        let Hands { now, elapsed } = *hands.borrow();
        let end = elapsed.saturating_add(deadline.saturating_sub(now).max(0));
        // The sender lives as long as `self`, so waiting cannot fail.
        let _ = hands.wait_for(|hands| hands.elapsed >= end).await;
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
