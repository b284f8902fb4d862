//! Delivery: brings what a destination was told to what is wanted.
//!
//! Level-triggered, as a Kubernetes controller is. A desk holds identities that were claimed in
//! the ledger, as many as calls end for within a tenth of a second; callers take them from there, one
//! call an identity, or one call for many where the destination takes them in bulk; what ended is
//! settled in the same transaction that claims more. So the cost of the ledger is shared by many
//! calls where there are many, a kill leaves nothing that looks written and is not, and little to be
//! called for again.

use std::collections::VecDeque;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::depth::Depth;
use self::unsettled::Unsettled;
use crate::canary::PROVE_AFTER_CALLS;
use crate::clock::{Clock, Millis};
use crate::config::{Destination, Kind};
use crate::flagsmith::Flagsmith;
use crate::gate::{Gate, Signal};
use crate::logging::IdentifierHash;
use crate::meter::{Allowance, Meter};
use crate::metrics::DestinationMetrics;
use crate::pace::Pace;
use crate::status::{DestinationHealth, DestinationState};
use crate::store::{Claim, Outcome, Settlement, Store, StoreError, Term};

mod bulk;
mod call;
mod canary;
mod clerk;
mod count;
mod delivery;
mod depth;
mod resync;
mod split;
mod unsettled;

pub use call::ATTEMPTS;
pub use delivery::{Delivery, Rekey};
use split::Width;

/// How long to wait after the ledger failed.
const AFTER_FAILURE: Millis = 1_000;

/// Delivers to one destination.
pub struct Dispatch {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    destination: Arc<Destination>,
    client: Flagsmith,
    meter: Arc<Meter>,
    health: Arc<DestinationHealth>,
    metrics: DestinationMetrics,
    hash: IdentifierHash,
    desk: Mutex<Desk>,
    /// Wakes callers: there is work, or room for one more call.
    work: Notify,
    /// Wakes the clerk: something ended, or the desk runs low.
    news: Notify,
    /// A blank echo was judged to be a stored trait.
    blank_is_stored: AtomicBool,
    /// Wakes the clerk: what was settled is pending again.
    asserted_again: Notify,
    /// Wakes the clerk: something was made pending again that waits for nothing.
    brought_up: Notify,
    /// Wakes who makes things pending again: there may be room for more.
    may_bring_up: Notify,
    /// Wakes the canary: an answer does not look as if it were stored, or Flagsmith's.
    suspicion: Notify,
    /// Wakes the canary: much is unproven.
    proof_wanted: Notify,
    prove_after_calls: usize,
    /// From then on the ledger takes nothing, and nobody is to be called.
    term: Term,
}

/// What [`Dispatch`] is made of.
#[derive(Clone)]
pub struct Parts {
    /// Where it is known what is wanted.
    pub store: Arc<dyn Store>,
    /// For every wait.
    pub clock: Arc<dyn Clock>,
    /// Where to.
    pub destination: Arc<Destination>,
    /// How.
    pub client: Flagsmith,
    /// Where it is told how it goes.
    pub health: Arc<DestinationHealth>,
    /// Where it is counted.
    pub metrics: DestinationMetrics,
    /// How identities appear in logs.
    pub hash: IdentifierHash,
}

/// What lies between the ledger and the calls.
struct Desk {
    waiting: VecDeque<Claim>,
    /// It is filled up again when it holds no more than this.
    low: usize,
    depth: Depth,
    unsettled: Unsettled,
    /// Whether to call.
    gate: Gate,
    /// How many times at once.
    pace: Pace,
    /// How much a call may carry; in bulk only.
    width: Width,
    calling: usize,
    /// A caller waits for the time of the next call.
    is_timed: bool,
    closing: bool,
    /// Calls that counted as written since the canary was last asked for that reason.
    unproven_calls: usize,
}

/// How a desk was before the end of a call was taken in.
struct Before {
    is_open: bool,
    limit: usize,
    settle_at: Option<Millis>,
}

impl Desk {
    fn new(kind: Kind, max_in_flight: usize, now: Millis) -> Self {
        Desk {
            waiting: VecDeque::new(),
            low: 0,
            depth: Depth::new(kind, now),
            unsettled: Unsettled::default(),
            gate: Gate::new(),
            pace: Pace::new(max_in_flight),
            width: Width::new(),
            calling: 0,
            is_timed: false,
            closing: false,
            unproven_calls: 0,
        }
    }

    /// Takes in what a call told. Where the gate is closed then, what waits is given back, a probe
    /// too: it would be stale when the gate opens, and the ledger knows better then.
    fn record(&mut self, signal: Signal, now: Millis) {
        let was_open = self.gate.is_open();
        self.gate.record(signal, now);
        match (was_open, self.gate.is_open()) {
            (_, false) => {
                if was_open {
                    self.width.closed();
                }
                self.give_back_beyond(0);
            }
            (false, true) => self.pace.restart(),
            (true, true) => {}
        }
    }

    /// The canary's trait stays.
    fn canary_succeeded(&mut self) {
        let was_open = self.gate.is_open();
        self.gate.canary_succeeded();
        if !was_open && self.gate.is_open() {
            self.pace.restart();
        }
    }

    fn before(&self, now: Millis) -> Before {
        Before {
            is_open: self.gate.is_open(),
            limit: self.limit(now),
            settle_at: self.unsettled.due_at(),
        }
    }

    /// Leaves the first so many of what waits.
    fn give_back_beyond(&mut self, left: usize) {
        let too_many = left.min(self.waiting.len())..;
        self.unsettled
            .give_back(self.waiting.drain(too_many).map(given_back));
    }

    /// Calls that may be under way now.
    fn limit(&self, now: Millis) -> usize {
        self.gate.limit(now).min(self.pace.limit())
    }
}

impl Dispatch {
    /// Delivery that was not begun yet.
    pub fn new(parts: Parts) -> Self {
        Dispatch::within(parts, Term::for_ever())
    }

    /// Delivery that was not begun yet, in that term.
    pub fn within(parts: Parts, term: Term) -> Self {
        let Parts {
            store,
            clock,
            destination,
            client,
            health,
            metrics,
            hash,
        } = parts;
        let allowance = Allowance {
            per_second: destination.max_calls_per_second,
            per_month: destination.call_budget,
        };
        let meter = Arc::new(Meter::within(Arc::clone(&clock), allowance, term.clone()));
        if destination.dry_run {
            health.set_dry_run();
        } else {
            health.set_meter(Arc::clone(&meter));
        }
        let client = client.metered_by(Arc::clone(&meter));
        let desk = Desk::new(destination.kind, destination.max_in_flight, clock.now());
        health.set_in_flight_limit(desk.pace.limit());
        Dispatch {
            store,
            clock,
            destination,
            client,
            meter,
            health,
            metrics,
            hash,
            desk: Mutex::new(desk),
            work: Notify::new(),
            news: Notify::new(),
            blank_is_stored: AtomicBool::new(false),
            asserted_again: Notify::new(),
            brought_up: Notify::new(),
            may_bring_up: Notify::new(),
            suspicion: Notify::new(),
            proof_wanted: Notify::new(),
            prove_after_calls: PROVE_AFTER_CALLS,
            term,
        }
    }

    /// Has the canary asked after so many calls that counted as written, instead of
    /// [`PROVE_AFTER_CALLS`].
    pub fn proving_after(mut self, calls: usize) -> Self {
        self.prove_after_calls = calls;
        self
    }

    /// Delivers until `stop`; then finishes the calls under way and gives back the rest, where the term
    /// is not over. `changes` says that the ledger changed. A dry run calls nobody.
    pub async fn run(self: Arc<Self>, changes: watch::Receiver<()>, stop: CancellationToken) {
        if self.destination.dry_run {
            // What is ordered to be written again stays ordered: pending, all of it would be called for
            // at once when the dry run is over, whatever its rate.
            stop.cancelled().await;
            return;
        }
        let Some(watch) = self.recall_canaries(&stop).await else {
            return;
        };
        self.open_the_count(&stop).await;
        let no_more_calls = CancellationToken::new();
        let mut count = JoinSet::new();
        count.spawn(Arc::clone(&self).keep_the_count(no_more_calls.clone()));
        let mut callers = JoinSet::new();
        for _ in 0..self.destination.max_in_flight {
            let caller = Arc::clone(&self);
            match self.destination.kind {
                Kind::Sdk => callers.spawn(caller.call_on_and_on()),
                Kind::CoreBulk => callers.spawn(caller.call_in_bulk_on_and_on()),
            };
        }
        // Dropped with this future, it ends with it.
        let mut canary = JoinSet::new();
        // With the term too: a canary of ours would lie over that of whoever leads next.
        let canaries = Arc::clone(&self).send_canaries(watch, stop.clone());
        canary.spawn(
            self.term
                .ended()
                .clone()
                .run_until_cancelled_owned(canaries),
        );
        let again = Arc::clone(&self).write_again_on_and_on(stop.clone());
        canary.spawn(self.term.ended().clone().run_until_cancelled_owned(again));
        self.keep_the_desk(changes, stop).await;
        // At once: the grace may end before a call that hangs does.
        self.settle_the_rest().await;
        while callers.join_next().await.is_some() {}
        // Its call, if one is under way, changes nothing that is waited for.
        canary.abort_all();
        no_more_calls.cancel();
        count.join_next().await;
        self.close_the_count().await;
        self.settle_the_rest().await;
    }

    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell_state(&self, state: DestinationState) {
        // Of calls that were not to be made any more nobody wants to know.
        if self.term.is_over() || !self.health.set(state.clone()) {
            return;
        }
        let destination = &self.destination.name;
        match state {
            DestinationState::Ok => tracing::info!(%destination, "destination works"),
            DestinationState::BackingOff { reason } => {
                tracing::warn!(%destination, %reason, "destination fails: delivery waits and probes");
            }
            DestinationState::Halted { reason } => {
                tracing::error!(%destination, %reason, "destination halted until somebody mends it");
            }
            // That is told of a whole replica.
            DestinationState::Standby => {}
        }
    }

    /// Says that the ledger failed, where that is not because the term is over: that is said once.
    fn tell_ledger_failed(&self, error: &StoreError, so: &str) {
        let destination = &self.destination.name;
        if self.term.is_over() {
            tracing::debug!(%destination, %error, "after the term: {so}");
        } else {
            tracing::error!(%destination, %error, "{so}");
        }
    }
}

fn given_back(claim: Claim) -> Settlement {
    Settlement {
        claim,
        outcome: Outcome::Unsent,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nobody would call for it once the gate opens again: the callers were told of it before.
    #[test]
    fn a_probe_that_still_lies_there_when_the_canary_halts_delivery_is_given_back() {
        let mut desk = Desk::new(Kind::Sdk, 8, 0);
        for _ in 0..crate::gate::OUTAGE_AFTER {
            let reason = "503".into();
            let advised = None;
            desk.record(Signal::Failure { advised, reason }, 0);
        }
        assert!(!desk.gate.is_open());
        desk.waiting.push_back(Claim {
            identifier: "ann".into(),
            traits: Vec::new(),
            attempts: 0,
        });
        let reason = "stores no traits".into();
        let canary = true;
        desk.record(Signal::Halt { reason, canary }, 1);
        assert!(desk.waiting.is_empty());
        assert_eq!(desk.unsettled.len(), 1);
    }
}
