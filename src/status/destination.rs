//! How delivery to one destination goes.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::sync::{Notify, watch};

use super::held;
use crate::calls::CallsView;
use crate::clock::Millis;
use crate::cohort::DestinationName;
use crate::meter::Meter;
use crate::store::ResyncView;

/// How delivery to one destination goes.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum DestinationState {
    /// Calls go out.
    #[default]
    Ok,
    /// Calls fail; fewer go out, and later.
    BackingOff {
        /// For people; names nobody.
        reason: Arc<str>,
    },
    /// No calls but probes until somebody mends the destination.
    Halted {
        /// For people; names nobody.
        reason: Arc<str>,
    },
    /// Another replica delivers, and knows.
    Standby,
}

/// Why nothing more is known on [standby](DestinationState::Standby).
const ON_STANDBY: &str = "another replica folds and delivers";

impl DestinationState {
    /// The word of the admin API.
    pub const fn as_str(&self) -> &'static str {
        match self {
            DestinationState::Ok => "ok",
            DestinationState::BackingOff { .. } => "backing_off",
            DestinationState::Halted { .. } => "halted",
            DestinationState::Standby => "standby",
        }
    }

    /// Why it is not [`DestinationState::Ok`].
    pub fn reason(&self) -> Option<&str> {
        match self {
            DestinationState::Ok => None,
            DestinationState::BackingOff { reason } | DestinationState::Halted { reason } => {
                Some(reason)
            }
            DestinationState::Standby => Some(ON_STANDBY),
        }
    }
}

/// One destination's state: the dispatcher writes it, the admin listener reads it.
pub struct DestinationHealth {
    name: DestinationName,
    state: Mutex<DestinationState>,
    warning: Mutex<Option<Arc<str>>>,
    in_flight: AtomicUsize,
    in_flight_limit: AtomicUsize,
    meter: Mutex<Option<Arc<Meter>>>,
    paused: watch::Sender<bool>,
    pausing: tokio::sync::Mutex<()>,
    dry_run: AtomicBool,
    planned_calls: Mutex<Option<u64>>,
    resync_ordered: Notify,
    acts: watch::Sender<()>,
    canary: Mutex<CanaryView>,
}

/// How the canaries of a destination go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CanaryView {
    /// When the last one began whose trait stayed, since the start.
    pub stayed_at: Option<Millis>,
    /// When the next one is sent at the latest; `None` while one is under way.
    pub next_at: Option<Millis>,
}

impl DestinationHealth {
    /// A destination of which nothing bad is known.
    pub fn new(name: DestinationName) -> Self {
        DestinationHealth {
            name,
            state: Mutex::default(),
            warning: Mutex::default(),
            in_flight: AtomicUsize::new(0),
            in_flight_limit: AtomicUsize::new(0),
            meter: Mutex::default(),
            resync_ordered: Notify::new(),
            acts: watch::Sender::new(()),
            canary: Mutex::default(),
            paused: watch::Sender::new(false),
            pausing: tokio::sync::Mutex::default(),
            dry_run: AtomicBool::new(false),
            planned_calls: Mutex::default(),
        }
    }

    /// Which destination.
    pub fn name(&self) -> &DestinationName {
        &self.name
    }

    /// Says how delivery goes. Returns whether that is news, so that it is logged once.
    pub fn set(&self, state: DestinationState) -> bool {
        let mut held = held(&self.state);
        let news = *held != state;
        *held = state;
        news
    }

    /// Says that delivery begins again: nothing bad is known of what it leads to now.
    pub fn begin_again(&self) {
        self.set(DestinationState::Ok);
        self.warn(None);
        *held(&self.canary) = CanaryView::default();
    }

    /// Says that another process may deliver from now on: nothing is known any more.
    pub fn stand_by(&self) {
        self.begin_again();
        *held(&self.meter) = None;
        *held(&self.planned_calls) = None;
        self.set_in_flight(0);
        self.set_in_flight_limit(0);
    }

    /// Says what somebody should look at, though calls go out; `None` where there is nothing.
    pub fn warn(&self, warning: Option<Arc<str>>) {
        *held(&self.warning) = warning;
    }

    /// Says how many calls are under way.
    pub fn set_in_flight(&self, calls: usize) {
        self.in_flight.store(calls, Ordering::Relaxed);
    }

    /// Says how many calls may be under way.
    pub fn set_in_flight_limit(&self, calls: usize) {
        self.in_flight_limit.store(calls, Ordering::Relaxed);
    }

    /// Says that a canary that began then stays.
    pub fn canary_stayed(&self, began: Millis) {
        held(&self.canary).stayed_at = Some(began);
    }

    /// Says when the next canary is sent; `None` where one is under way.
    pub fn set_next_canary(&self, at: Option<Millis>) {
        held(&self.canary).next_at = at;
    }

    /// Says what its calls pass.
    pub fn set_meter(&self, meter: Arc<Meter>) {
        *held(&self.meter) = Some(meter);
    }

    /// Says whether an operator paused it: no call begins while it is paused.
    pub fn set_paused(&self, paused: bool) {
        self.paused
            .send_if_modified(|held| std::mem::replace(held, paused) != paused);
    }

    /// Whether an operator paused it.
    pub fn is_paused(&self) -> bool {
        *self.paused.borrow()
    }

    /// Says when it is paused and when it is resumed.
    pub fn pauses(&self) -> watch::Receiver<bool> {
        self.paused.subscribe()
    }

    /// Held while pausing is written down and told: of two orders at once, the one that is written
    /// last must be told last.
    pub fn pausing(&self) -> &tokio::sync::Mutex<()> {
        &self.pausing
    }

    /// Says that nothing is called, to show what would be.
    pub fn set_dry_run(&self) {
        self.dry_run.store(true, Ordering::Relaxed);
    }

    /// Says how many calls it would take to write what is pending.
    pub fn set_planned_calls(&self, calls: u64) {
        *held(&self.planned_calls) = Some(calls);
    }

    /// Something is to be written again, or no longer.
    pub fn resync_ordered(&self) {
        self.resync_ordered.notify_one();
    }

    /// An operator changed something in the ledger: there may be something to write again, and what
    /// was claimed before may not be wanted any more.
    pub fn operator_acted(&self) {
        self.resync_ordered();
        self.acts.send_replace(());
    }

    /// Says when an operator changed something.
    pub fn acts(&self) -> watch::Receiver<()> {
        self.acts.subscribe()
    }

    /// Returns when that was said since the last call; for one alone, the dispatcher or, in a dry run,
    /// whoever tells the plan.
    pub async fn resync_is_ordered(&self) {
        self.resync_ordered.notified().await;
    }

    /// The state now; what is written again, the ledger knows.
    pub fn status(&self) -> DestinationStatus {
        DestinationStatus {
            name: self.name.clone(),
            state: held(&self.state).clone(),
            warning: held(&self.warning).clone(),
            in_flight: self.in_flight.load(Ordering::Relaxed),
            in_flight_limit: self.in_flight_limit.load(Ordering::Relaxed),
            calls: held(&self.meter).as_ref().map(|meter| meter.view()),
            resync: None,
            canary: *held(&self.canary),
            paused: self.is_paused(),
            dry_run: self.dry_run.load(Ordering::Relaxed),
            planned_calls: *held(&self.planned_calls),
        }
    }
}

/// One destination at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct DestinationStatus {
    /// Which destination.
    pub name: DestinationName,
    /// How delivery goes.
    pub state: DestinationState,
    /// What somebody should look at, though calls go out.
    pub warning: Option<Arc<str>>,
    /// Calls under way.
    pub in_flight: usize,
    /// Calls that the pace allows at once.
    pub in_flight_limit: usize,
    /// The calls of this month; `None` before delivery began.
    pub calls: Option<CallsView>,
    /// What is being written again.
    pub resync: Option<ResyncView>,
    /// How the canaries go.
    pub canary: CanaryView,
    /// Whether an operator paused it.
    pub paused: bool,
    /// Whether nothing is called, to show what would be.
    pub dry_run: bool,
    /// Calls that a dry run found it would take, when the fold last came to rest or something was
    /// ordered to be written again.
    pub planned_calls: Option<u64>,
}

impl DestinationStatus {
    /// The same where another replica delivers: what only that one knows is left out.
    pub fn on_standby(self) -> Self {
        DestinationStatus {
            state: DestinationState::Standby,
            warning: None,
            in_flight_limit: 0,
            calls: None,
            canary: CanaryView::default(),
            planned_calls: None,
            ..self
        }
    }

    /// Whether what is pending there waits because somebody wants it so.
    pub fn waits_as_wanted(&self) -> bool {
        self.paused || self.dry_run
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_known_of_what_another_key_leads_to() {
        let health = DestinationHealth::new("production".into());
        let before = health.status();
        health.set(DestinationState::Halted {
            reason: "wrong key".into(),
        });
        health.warn(Some("two bridges".into()));
        health.canary_stayed(1);
        health.set_next_canary(Some(2));
        assert_ne!(health.status(), before);
        health.begin_again();
        assert_eq!(health.status(), before);
        health.set_planned_calls(3);
        health.set_in_flight(1);
        health.set_in_flight_limit(2);
        health.stand_by();
        assert_eq!(health.status(), before);
    }
}
