//! Delivery: brings what a destination was told to what is wanted.
//!
//! Level-triggered, as a Kubernetes controller is. A desk holds identities that were claimed in
//! the ledger; callers take them from there, one call an identity; what ended is settled in the
//! same transaction that claims more. So the cost of the ledger is shared by some hundred calls,
//! and a kill leaves nothing that looks written and is not.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::backoff::delay_before;
use crate::clock::{Clock, Millis, millis};
use crate::config::{BlankEcho, Destination};
use crate::flagsmith::{BlankVerdict, Disposition, Flagsmith, Scope, Storage};
use crate::gate::{Gate, Signal};
use crate::logging::IdentifierHash;
use crate::metrics::{DestinationMetrics, WriteOutcome};
use crate::status::{DestinationHealth, DestinationState};
use crate::store::{Claim, Claims, Outcome, Settlement, Store};

/// Identities claimed ahead of the calls, at most: some tens of milliseconds of work at full
/// speed, and few enough that what is claimed is fresh.
const DESK: usize = 1_024;

/// The desk is filled up again when it holds no more than this.
const DESK_LOW: usize = DESK / 2;

/// Calls settled in one transaction at most, while others go on.
const SETTLE_AT: usize = 256;

/// Failures of one identity, while others succeed, after which it is a dead letter: about two
/// minutes of waiting. Flagsmith answers 500 to some identities for ever.
pub const ATTEMPTS: u32 = 8;

/// How long to wait after the ledger failed.
const AFTER_FAILURE: Millis = 1_000;

/// How soon the canary is asked again where it could not be answered, or found nothing stored.
const CANARY_AGAIN: Millis = 15_000;

/// Delivers to one destination.
pub struct Dispatch {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    destination: Arc<Destination>,
    client: Flagsmith,
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
}

/// What [`Dispatch`] is made of.
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
    ended: Vec<Settlement>,
    gate: Gate,
    calling: usize,
    closing: bool,
}

impl Desk {
    /// Takes in what a call told. Where that closes the gate, what waits is given back: it would
    /// be stale when the gate opens, and the ledger knows better then.
    fn record(&mut self, signal: Signal, now: Millis) {
        let was_open = self.gate.is_open();
        self.gate.record(signal, now);
        if was_open && !self.gate.is_open() {
            self.ended.extend(self.waiting.drain(..).map(given_back));
        }
    }
}

/// Where the sweep through the pending identities stands.
enum Sweep {
    /// Behind this identifier.
    At(Option<Arc<str>>),
    /// At the end; something will be due then.
    Resting(Option<Millis>),
}

/// The clerk's memory between two exchanges with the ledger.
struct Clerk {
    sweep: Sweep,
    /// The earliest time at which what this sweep passed over is due.
    next_due: Option<Millis>,
    /// The next probe is for an identity behind this one.
    probed: Option<Arc<str>>,
    /// The identity of the last probe, while the gate is closed.
    last_probed: Option<Arc<str>>,
    not_before: Millis,
}

/// What the clerk asks of the ledger next.
struct Errand {
    settle: Vec<Settlement>,
    after: Option<Arc<str>>,
    limit: usize,
    probe: bool,
}

impl Dispatch {
    /// Delivery that was not begun yet.
    pub fn new(parts: Parts) -> Self {
        let Parts {
            store,
            clock,
            destination,
            client,
            health,
            metrics,
            hash,
        } = parts;
        let gate = Gate::new(destination.max_in_flight);
        Dispatch {
            store,
            clock,
            destination,
            client,
            health,
            metrics,
            hash,
            desk: Mutex::new(Desk {
                waiting: VecDeque::new(),
                ended: Vec::new(),
                gate,
                calling: 0,
                closing: false,
            }),
            work: Notify::new(),
            news: Notify::new(),
            blank_is_stored: AtomicBool::new(false),
        }
    }

    /// Delivers until `stop`; then finishes the calls under way and gives back the rest. `changes`
    /// says that the ledger changed.
    pub async fn run(self: Arc<Self>, changes: watch::Receiver<()>, stop: CancellationToken) {
        let mut callers = JoinSet::new();
        for _ in 0..self.destination.max_in_flight {
            callers.spawn(Arc::clone(&self).call_on_and_on());
        }
        let canary = tokio::spawn(Arc::clone(&self).send_canaries(stop.clone()));
        self.keep_the_desk(changes, stop).await;
        // At once: the grace may end before a call that hangs does.
        self.settle_the_rest().await;
        while callers.join_next().await.is_some() {}
        // Its call, if one is under way, changes nothing that is waited for.
        canary.abort();
        self.settle_the_rest().await;
    }

    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn keep_the_desk(&self, mut changes: watch::Receiver<()>, stop: CancellationToken) {
        let mut clerk = Clerk::new();
        while !stop.is_cancelled()
            && let Err(error) = self
                .store
                .bring_up(&self.destination.name, self.clock.now())
                .await
        {
            tracing::error!(destination = %self.destination.name, %error, "delivery waits: the destination could not be brought up from the ledger");
            tokio::select! {
                () = self.clock.sleep_until(self.clock.now() + AFTER_FAILURE) => {}
                () = stop.cancelled() => {}
            }
        }
        while !stop.is_cancelled() {
            let now = self.clock.now();
            let errand = self.next_errand(&mut clerk, now);
            if let Some(errand) = errand {
                self.run_errand(&mut clerk, errand, now).await;
                continue;
            }
            let wake = clerk.wake_at(&self.desk(), now);
            tokio::select! {
                () = self.news.notified() => {}
                Ok(()) = changes.changed() => clerk.ledger_changed(self.clock.now() + millis(self.destination.linger)),
                () = self.sleep_until(wake) => {}
                () = stop.cancelled() => {}
            }
        }
        self.desk().closing = true;
        self.work.notify_waiters();
    }

    async fn sleep_until(&self, wake: Option<Millis>) {
        match wake {
            Some(at) => self.clock.sleep_until(at).await,
            None => std::future::pending().await,
        }
    }

    fn next_errand(&self, clerk: &mut Clerk, now: Millis) -> Option<Errand> {
        let mut desk = self.desk();
        if clerk.held_off_until(now).is_some() {
            return None;
        }
        let probe = !desk.gate.is_open();
        if !probe {
            clerk.last_probed = None;
        }
        let may_call = desk.gate.limit(now) > 0;
        if probe && may_call && !desk.waiting.is_empty() {
            // The probe's time came while it lay there.
            self.work.notify_waiters();
        }
        let limit = if probe {
            usize::from(may_call && desk.calling == 0 && desk.waiting.is_empty())
        } else if desk.waiting.len() <= DESK_LOW {
            DESK - desk.waiting.len()
        } else {
            0
        };
        let after = match &clerk.sweep {
            _ if probe => clerk.probed.clone(),
            Sweep::At(after) => after.clone(),
            Sweep::Resting(_) => None,
        };
        let limit = if probe || clerk.is_sweeping(now) {
            limit
        } else {
            0
        };
        let settle_now = desk.ended.len() >= SETTLE_AT || desk.waiting.is_empty();
        if limit == 0 && (desk.ended.is_empty() || !settle_now) {
            return None;
        }
        Some(Errand {
            settle: std::mem::take(&mut desk.ended),
            after,
            limit,
            probe,
        })
    }

    async fn run_errand(&self, clerk: &mut Clerk, errand: Errand, now: Millis) {
        let Errand {
            settle,
            after,
            limit,
            probe,
        } = errand;
        let exchanged = self
            .store
            .exchange(
                &self.destination.name,
                settle.clone(),
                after.clone(),
                limit,
                now,
            )
            .await;
        match exchanged {
            Ok(claims) if probe => self.probe(clerk, limit, after, claims, now),
            Ok(claims) => {
                clerk.swept(limit, &claims);
                self.put_on_the_desk(claims);
            }
            Err(error) => {
                tracing::error!(destination = %self.destination.name, %error, "delivery waits: the ledger cannot be written");
                clerk.not_before = now + AFTER_FAILURE;
                self.desk().ended.extend(settle);
            }
        }
    }

    /// A closed gate lets one identity through at a time, another one each time.
    fn probe(
        &self,
        clerk: &mut Clerk,
        limit: usize,
        after: Option<Arc<str>>,
        claims: Claims,
        now: Millis,
    ) {
        // Whatever is due, delivery starts from the beginning when the gate opens.
        clerk.sweep = Sweep::At(None);
        clerk.next_due = None;
        if limit == 0 {
            return;
        }
        match claims.claims.first() {
            Some(claim) => {
                let identifier = Some(Arc::clone(&claim.identifier));
                let mut desk = self.desk();
                if identifier == clerk.last_probed {
                    desk.gate.probe_was_lone();
                }
                clerk.probed = identifier.clone();
                clerk.last_probed = identifier;
                desk.waiting.extend(claims.claims);
                drop(desk);
                self.work.notify_waiters();
            }
            None if after.is_some() => clerk.probed = None,
            // Nothing is due: look again when something is, or when the fold brought something.
            None => clerk.not_before = now + AFTER_FAILURE,
        }
    }

    fn put_on_the_desk(&self, claims: Claims) {
        if claims.claims.is_empty() {
            return;
        }
        let mut desk = self.desk();
        if desk.gate.is_open() {
            desk.waiting.extend(claims.claims);
            drop(desk);
            self.work.notify_waiters();
        } else {
            // The gate closed while the ledger was asked.
            desk.ended.extend(claims.claims.into_iter().map(given_back));
        }
    }

    async fn call_on_and_on(self: Arc<Self>) {
        while let Some(claim) = self.next_claim().await {
            let (outcome, signal) = self.deliver(&claim).await;
            self.ended(claim, outcome, signal);
        }
    }

    /// The next identity to call for; `None` when the desk is closing.
    async fn next_claim(&self) -> Option<Claim> {
        loop {
            // Registered before looking, so that no wake-up is missed.
            let woken = self.work.notified();
            tokio::pin!(woken);
            woken.as_mut().enable();
            {
                let mut desk = self.desk();
                if desk.closing {
                    return None;
                }
                if desk.calling < desk.gate.limit(self.clock.now())
                    && let Some(claim) = desk.waiting.pop_front()
                {
                    desk.calling += 1;
                    self.health.set_in_flight(desk.calling);
                    if desk.waiting.len() == DESK_LOW {
                        self.news.notify_one();
                    }
                    return Some(claim);
                }
            }
            woken.await;
        }
    }

    fn ended(&self, claim: Claim, outcome: Outcome, signal: Signal) {
        let traits = claim.traits.len() as u64;
        let mut desk = self.desk();
        let now = self.clock.now();
        desk.calling -= 1;
        self.health.set_in_flight(desk.calling);
        let outcome = match outcome {
            Outcome::Retry {
                due_at,
                counts,
                may_land_late,
                error,
            } => {
                let counts = counts && desk.gate.failures_count();
                if counts && claim.attempts + 1 >= ATTEMPTS {
                    Outcome::Dead { error }
                } else {
                    Outcome::Retry {
                        due_at,
                        counts,
                        may_land_late,
                        error,
                    }
                }
            }
            ended => ended,
        };
        let was_open = desk.gate.is_open();
        let limit = desk.gate.limit(now);
        desk.record(signal, now);
        let grew = desk.gate.limit(now) > limit;
        self.tell(&claim, &outcome, &desk.gate);
        self.metrics
            .traits_settled(metric_of(&outcome, &desk.gate), traits);
        desk.ended.push(Settlement { claim, outcome });
        let clerk_needed = desk.ended.len() >= SETTLE_AT
            || desk.waiting.is_empty()
            || was_open != desk.gate.is_open();
        drop(desk);
        if clerk_needed {
            self.news.notify_one();
        }
        if grew {
            self.work.notify_waiters();
        }
    }

    fn tell(&self, claim: &Claim, outcome: &Outcome, gate: &Gate) {
        if let Outcome::Dead { error } = outcome {
            tracing::warn!(
                destination = %self.destination.name,
                identity = %self.hash.of(&claim.identifier),
                %error,
                "dead letter: this identity cannot be written"
            );
        }
        self.tell_state(gate.state());
    }

    fn tell_state(&self, state: DestinationState) {
        if !self.health.set(state.clone()) {
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
        }
    }

    async fn deliver(&self, claim: &Claim) -> (Outcome, Signal) {
        let traits: Vec<_> = claim
            .traits
            .iter()
            .map(|claimed| (&*claimed.trait_key, claimed.target))
            .collect();
        let disposition = self.client.write(&claim.identifier, &traits).await;
        match disposition {
            Disposition::Written { may_land_late } => written(may_land_late),
            Disposition::BlankEcho { may_land_late } => {
                self.judge_blank_echo(claim, may_land_late).await
            }
            Disposition::Later {
                scope,
                retry_after,
                may_land_late,
                error,
            } => self.later(
                claim,
                scope == Scope::Identity,
                retry_after,
                may_land_late,
                error.into(),
            ),
            Disposition::NotStored { error } => self.later(claim, true, None, false, error.into()),
            // The identity is to blame, and the destination answered.
            Disposition::Refused { error } => (
                Outcome::Dead {
                    error: error.into(),
                },
                Signal::Success,
            ),
            Disposition::Halt { reason } => self.halted(reason.into()),
        }
    }

    async fn judge_blank_echo(&self, claim: &Claim, may_land_late: bool) -> (Outcome, Signal) {
        if self.blank_is_stored.load(Ordering::Relaxed) {
            return written(may_land_late);
        }
        let set = claim.traits.iter().find_map(|claimed| {
            let value = claimed.target.trait_value()?;
            Some((&*claimed.trait_key, value))
        });
        // Only a call that sets something can have a blank echo.
        let Some((trait_key, value)) = set else {
            return written(may_land_late);
        };
        match self
            .client
            .judge_blank_echo(&claim.identifier, trait_key, value)
            .await
        {
            BlankVerdict::Stored => {
                self.blank_is_stored.store(true, Ordering::Relaxed);
                tracing::info!(destination = %self.destination.name, "the environment hides sensitive data: blank answers are taken as written");
                written(may_land_late)
            }
            BlankVerdict::NotStored { reason } => self.halted(reason.into()),
            BlankVerdict::Unavailable => match self.destination.blank_echo {
                BlankEcho::Stored => written(may_land_late),
                BlankEcho::Halt => self.halted(BLANK_ECHO.into()),
            },
            BlankVerdict::Later {
                retry_after,
                may_land_late,
                error,
            } => self.later(claim, true, retry_after, may_land_late, error.into()),
        }
    }

    fn later(
        &self,
        claim: &Claim,
        counts: bool,
        advised: Option<std::time::Duration>,
        may_land_late: bool,
        error: Arc<str>,
    ) -> (Outcome, Signal) {
        let wait = delay_before(claim.attempts + 1, advised, fastrand::f64());
        let outcome = Outcome::Retry {
            due_at: self.clock.now() + millis(wait),
            counts,
            may_land_late,
            error: Arc::clone(&error),
        };
        (
            outcome,
            Signal::Failure {
                advised,
                reason: error,
            },
        )
    }

    fn halted(&self, reason: Arc<str>) -> (Outcome, Signal) {
        let outcome = Outcome::Retry {
            due_at: self.clock.now(),
            counts: false,
            may_land_late: false,
            error: Arc::clone(&reason),
        };
        (
            outcome,
            Signal::Halt {
                reason,
                canary: false,
            },
        )
    }

    /// Gives back what was claimed and not called for.
    async fn settle_the_rest(&self) {
        let now = self.clock.now();
        let settle: Vec<_> = {
            let mut desk = self.desk();
            let waiting: Vec<_> = desk.waiting.drain(..).collect();
            let ended = std::mem::take(&mut desk.ended);
            ended
                .into_iter()
                .chain(waiting.into_iter().map(given_back))
                .collect()
        };
        if settle.is_empty() {
            return;
        }
        let settled = self
            .store
            .exchange(&self.destination.name, settle, None, 0, now)
            .await;
        if let Err(error) = settled {
            tracing::warn!(destination = %self.destination.name, %error, "the last calls could not be settled: they will be made again");
        }
    }

    /// Proves now and then that a written trait stays.
    async fn send_canaries(self: Arc<Self>, stop: CancellationToken) {
        while !stop.is_cancelled() {
            let again = match self.client.probe_storage(&self.canary_value()).await {
                Storage::Stays => {
                    self.canary_stays(false);
                    millis(self.destination.canary_interval)
                }
                Storage::StaysBlank => {
                    self.canary_stays(true);
                    millis(self.destination.canary_interval)
                }
                Storage::Fails { reason } => {
                    let mut desk = self.desk();
                    let signal = Signal::Halt {
                        reason: reason.into(),
                        canary: true,
                    };
                    desk.record(signal, self.clock.now());
                    self.tell_state(desk.gate.state());
                    drop(desk);
                    self.news.notify_one();
                    CANARY_AGAIN
                }
                // Delivery itself will notice; the canary only has to be asked again.
                Storage::Unreachable { error, .. } => {
                    tracing::debug!(destination = %self.destination.name, %error, "canary not answered");
                    CANARY_AGAIN
                }
            };
            let at = self.clock.now() + again;
            tokio::select! {
                () = self.clock.sleep_until(at) => {}
                () = stop.cancelled() => {}
            }
        }
    }

    /// Names this ledger, and is another one each time.
    fn canary_value(&self) -> String {
        format!("{} {}", self.store.ledger_id(), self.clock.now())
    }

    fn canary_stays(&self, blank: bool) {
        self.blank_is_stored.store(blank, Ordering::Relaxed);
        let mut desk = self.desk();
        desk.gate.canary_succeeded();
        self.tell_state(desk.gate.state());
        drop(desk);
        self.news.notify_one();
    }
}

/// Why a blank answer that nothing can judge stops delivery.
const BLANK_ECHO: &str = "Flagsmith's answers show no traits, and this Flagsmith has no traits/bulk/ to tell why: \
     either the key may not set traits (use a server-side key), or the environment hides sensitive data \
     (then set COHORT_BRIDGE_BLANK_ECHO=stored)";

fn written(may_land_late: bool) -> (Outcome, Signal) {
    (Outcome::Written { may_land_late }, Signal::Success)
}

fn given_back(claim: Claim) -> Settlement {
    Settlement {
        claim,
        outcome: Outcome::Unsent,
    }
}

fn metric_of(outcome: &Outcome, gate: &Gate) -> WriteOutcome {
    match outcome {
        Outcome::Written { .. } => WriteOutcome::Written,
        Outcome::Dead { .. } => WriteOutcome::Dead,
        Outcome::Retry { .. } if matches!(gate.state(), DestinationState::Halted { .. }) => {
            WriteOutcome::Halted
        }
        Outcome::Retry { .. } | Outcome::Unsent => WriteOutcome::Retry,
    }
}

impl Clerk {
    fn new() -> Self {
        Clerk {
            sweep: Sweep::At(None),
            next_due: None,
            probed: None,
            last_probed: None,
            not_before: Millis::MIN,
        }
    }

    fn is_sweeping(&mut self, now: Millis) -> bool {
        if let Sweep::Resting(Some(until)) = self.sweep
            && crate::backoff::is_due(until, now)
        {
            self.sweep = Sweep::At(None);
            self.next_due = None;
        }
        matches!(self.sweep, Sweep::At(_))
    }

    /// What the fold changed now is due at `at` at the earliest.
    fn ledger_changed(&mut self, at: Millis) {
        self.due_at(Some(at));
    }

    fn due_at(&mut self, at: Option<Millis>) {
        self.next_due = self.next_due.into_iter().chain(at).min();
        if let Sweep::Resting(until) = &mut self.sweep {
            *until = self.next_due;
        }
    }

    fn swept(&mut self, limit: usize, claims: &Claims) {
        self.due_at(claims.next_due);
        if limit > 0 {
            self.sweep = match &claims.resume_after {
                Some(after) => Sweep::At(Some(Arc::clone(after))),
                None => Sweep::Resting(self.next_due),
            };
        }
    }

    fn wake_at(&self, desk: &Desk, now: Millis) -> Option<Millis> {
        let at = if desk.gate.is_open() {
            match &self.sweep {
                Sweep::Resting(until) => *until,
                // Mid-sweep with a full desk: a caller will say when there is room.
                Sweep::At(_) => None,
            }
        } else if desk.calling > 0 {
            // The end of the probe says when to go on.
            None
        } else {
            desk.gate.probe_at()
        };
        // Whatever lies in the past was looked at already and is waited for otherwise.
        let held_off = self.held_off_until(now);
        at.max(at.and(held_off)).filter(|at| *at > now).or(held_off)
    }

    /// Until when to leave the ledger alone, where it failed or had nothing to probe with.
    fn held_off_until(&self, now: Millis) -> Option<Millis> {
        Some(self.not_before).filter(|at| *at > now && *at - now <= AFTER_FAILURE)
    }
}
