//! Whether a destination is called now. Pure. How many times at once, [`pace`](crate::pace) says.
//!
//! One identity that fails is that identity's trouble; when everything fails, that is an outage,
//! and calling more often mends nothing. The gate tells them apart by the row of failures without
//! a success between them:
//!
//! | state | what goes out | what ends it |
//! |---|---|---|
//! | open | as many calls as the pace allows | [`OUTAGE_AFTER`] failures in a row, or a reason to halt |
//! | outage | one call a second, the next identity each time | a success: open, at one call at once |
//! | asked to wait (`Retry-After`) | nothing until then | the time, then as an outage |
//! | halted | one call, at growing intervals up to [`LONGEST_HALT_PROBE`] | a success |
//!
//! After a closure the pace begins anew, so that a server that just came back is not flooded.

use std::sync::Arc;
use std::time::Duration;

use crate::backoff::LONGEST_ADVISED;
use crate::clock::{Millis, millis};
use crate::status::DestinationState;

/// Failures in a row, with no success between them, that make an outage.
pub const OUTAGE_AFTER: u32 = 5;

/// How often an outage is probed.
pub const PROBE_EVERY: Duration = Duration::from_secs(1);

/// How often a halted destination is probed at least. Flagsmith's processes keep a key's settings
/// for 60 s, so looking more often sees nothing new.
pub const LONGEST_HALT_PROBE: Duration = Duration::from_secs(15);

/// How often an outage is probed at least where the probes only ever find one identity: it may be
/// that identity alone.
pub const LONGEST_LONE_PROBE: Duration = Duration::from_secs(60);

/// What a call told about the destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Signal {
    /// It works.
    Success,
    /// This call failed.
    Failure {
        /// How long the server asked to be left alone.
        advised: Option<Duration>,
        /// For people; names nobody.
        reason: Arc<str>,
    },
    /// No call can work until somebody mends something.
    Halt {
        /// For people; names nobody.
        reason: Arc<str>,
        /// Whether only the canary can tell that it works again: a call's answer looks right
        /// although nothing is stored.
        canary: bool,
    },
}

#[derive(Clone, Debug)]
struct Closed {
    halted: bool,
    canary: bool,
    reason: Arc<str>,
    probe_at: Millis,
    interval: Duration,
}

/// The state of one destination.
#[derive(Clone, Debug, Default)]
pub struct Gate {
    failures_in_a_row: u32,
    closed: Option<Closed>,
}

impl Gate {
    /// An open gate.
    pub fn new() -> Self {
        Gate::default()
    }

    /// Calls that may be under way now, for all that is known of the destination's troubles.
    pub fn limit(&self, now: Millis) -> usize {
        match &self.closed {
            None => usize::MAX,
            Some(closed) if !closed.canary && is_reached(closed.probe_at, now) => 1,
            Some(_) => 0,
        }
    }

    /// When a closed gate next lets a probe through; `None` while it is open, or where only the
    /// canary can open it.
    pub fn probe_at(&self) -> Option<Millis> {
        self.closed
            .as_ref()
            .filter(|closed| !closed.canary)
            .map(|closed| closed.probe_at)
    }

    /// Whether calls go out freely.
    pub fn is_open(&self) -> bool {
        self.closed.is_none()
    }

    /// Whether a failure now is one of the identity's own: others succeed.
    pub fn failures_count(&self) -> bool {
        self.closed.is_none() && self.failures_in_a_row < OUTAGE_AFTER
    }

    /// Whether the canary should be asked now.
    pub fn wants_canary(&self) -> bool {
        self.closed.as_ref().is_some_and(|closed| closed.canary)
    }

    /// Takes in what a call told.
    pub fn record(&mut self, signal: Signal, now: Millis) {
        match signal {
            Signal::Success => self.succeeded(),
            Signal::Failure { advised, reason } => self.failed(advised, reason, now),
            Signal::Halt { reason, canary } => self.halt(reason, canary, now),
        }
    }

    /// The canary's trait stays.
    pub fn canary_succeeded(&mut self) {
        if self.wants_canary() {
            self.reopen();
        }
    }

    /// A probe found only the identity that the last one found: it may be that identity alone, and
    /// every call costs.
    pub fn probe_was_lone(&mut self) {
        if let Some(closed) = self.closed.as_mut().filter(|closed| !closed.halted) {
            closed.interval = (closed.interval * 2).min(LONGEST_LONE_PROBE);
        }
    }

    /// As the admin API says it.
    pub fn state(&self) -> DestinationState {
        match &self.closed {
            None => DestinationState::Ok,
            Some(closed) if closed.halted => DestinationState::Halted {
                reason: Arc::clone(&closed.reason),
            },
            Some(closed) => DestinationState::BackingOff {
                reason: Arc::clone(&closed.reason),
            },
        }
    }

    fn succeeded(&mut self) {
        self.failures_in_a_row = 0;
        match &self.closed {
            // A call's success proves nothing where answers look right and nothing is stored.
            Some(closed) if closed.canary => {}
            Some(_) => self.reopen(),
            None => {}
        }
    }

    fn reopen(&mut self) {
        self.closed = None;
        self.failures_in_a_row = 0;
    }

    fn failed(&mut self, advised: Option<Duration>, reason: Arc<str>, now: Millis) {
        self.failures_in_a_row = self.failures_in_a_row.saturating_add(1);
        if let Some(closed) = &mut self.closed {
            if !closed.canary {
                let wait = closed.interval.max(advised.unwrap_or_default());
                closed.probe_at = now + millis(wait.min(LONGEST_ADVISED));
                if closed.halted {
                    closed.interval = (closed.interval * 2).min(LONGEST_HALT_PROBE);
                } else {
                    closed.reason = reason;
                }
            }
            return;
        }
        if advised.is_some() || self.failures_in_a_row >= OUTAGE_AFTER {
            let wait = PROBE_EVERY.max(advised.unwrap_or_default());
            self.closed = Some(Closed {
                halted: false,
                canary: false,
                reason,
                probe_at: now + millis(wait.min(LONGEST_ADVISED)),
                interval: PROBE_EVERY,
            });
        }
    }

    fn halt(&mut self, reason: Arc<str>, canary: bool, now: Millis) {
        let interval = match &self.closed {
            Some(closed) if closed.halted => (closed.interval * 2).min(LONGEST_HALT_PROBE),
            _ => PROBE_EVERY,
        };
        let canary = canary || self.wants_canary();
        self.closed = Some(Closed {
            halted: true,
            canary,
            reason,
            probe_at: now + millis(interval),
            interval,
        });
    }
}

/// A time that lies farther ahead than any wait was written before the clock was set back.
fn is_reached(at: Millis, now: Millis) -> bool {
    crate::backoff::is_due(at, now)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure() -> Signal {
        Signal::Failure {
            advised: None,
            reason: "500".into(),
        }
    }

    fn halt(canary: bool) -> Signal {
        Signal::Halt {
            reason: "wrong key".into(),
            canary,
        }
    }

    fn closed() -> Gate {
        let mut gate = Gate::new();
        for _ in 0..OUTAGE_AFTER {
            gate.record(failure(), 0);
        }
        gate
    }

    #[test]
    fn single_failures_between_successes_are_the_identitys_own() {
        let mut gate = Gate::new();
        for _ in 0..100 {
            assert!(gate.failures_count());
            gate.record(failure(), 0);
            gate.record(Signal::Success, 0);
        }
        assert!(gate.is_open());
    }

    #[test]
    fn an_outage_is_probed_once_a_second_until_a_success() {
        let mut gate = closed();
        assert_eq!(gate.limit(999), 0);
        assert_eq!(gate.limit(1_000), 1);
        gate.record(failure(), 1_000);
        assert_eq!(gate.limit(1_999), 0);
        assert!(!gate.failures_count());
        assert_eq!(gate.limit(2_000), 1);
        gate.record(Signal::Success, 2_000);
        assert!(gate.is_open());
        assert_eq!(gate.limit(2_000), usize::MAX);
    }

    #[test]
    fn advice_closes_at_once_and_is_clamped() {
        let mut gate = Gate::new();
        let advised = |seconds| Signal::Failure {
            advised: Some(Duration::from_secs(seconds)),
            reason: "429".into(),
        };
        gate.record(advised(7), 0);
        assert_eq!((gate.limit(6_999), gate.limit(7_000)), (0, 1));
        gate.record(advised(1 << 40), 7_000);
        assert_eq!(gate.probe_at(), Some(7_000 + millis(LONGEST_ADVISED)));
    }

    #[test]
    fn a_halt_is_probed_ever_less_often_and_a_success_ends_it() {
        let mut gate = Gate::new();
        let mut now = 0;
        for expected in [1_000, 2_000, 4_000, 8_000, 15_000, 15_000] {
            gate.record(halt(false), now);
            assert_eq!(gate.probe_at(), Some(now + expected));
            assert_eq!(gate.state().as_str(), "halted");
            now += expected;
        }
        gate.record(Signal::Success, now);
        assert_eq!(gate.state(), DestinationState::Ok);
    }

    #[test]
    fn what_only_the_canary_can_see_only_the_canary_ends() {
        let mut gate = Gate::new();
        gate.record(halt(true), 0);
        gate.record(Signal::Success, 5);
        gate.record(failure(), 5);
        assert_eq!((gate.limit(60_000), gate.wants_canary()), (0, true));
        gate.canary_succeeded();
        assert!(gate.is_open());
    }

    #[test]
    fn a_lone_probe_grows_rare() {
        let mut gate = closed();
        for _ in 0..10 {
            gate.record(failure(), 0);
            gate.probe_was_lone();
        }
        assert_eq!(gate.probe_at(), Some(millis(LONGEST_LONE_PROBE)));
    }

    #[test]
    fn a_clock_set_back_does_not_keep_the_gate_closed() {
        let gate = closed();
        assert_eq!(gate.limit(-millis(Duration::from_secs(86_400))), 1);
    }
}
