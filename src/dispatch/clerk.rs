//! The clerk: keeps the desk between the ledger and the callers.

use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::depth::{BATCH, STALE_AFTER};
use super::{AFTER_FAILURE, Desk, Dispatch, given_back};
use crate::clock::{Millis, millis};
use crate::store::{Claims, Settlement};

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
    /// When the desk was last filled up, or seen to lie for long.
    filled_at: Millis,
    /// The last batch had as many identities as were asked for.
    found_all: bool,
}

/// What the clerk asks of the ledger next.
struct Errand {
    settle: Vec<Settlement>,
    after: Option<Arc<str>>,
    limit: usize,
    probe: bool,
}

impl Dispatch {
    pub(super) async fn keep_the_desk(
        &self,
        mut changes: watch::Receiver<()>,
        stop: CancellationToken,
    ) {
        let mut clerk = Clerk::new();
        let mut pauses = self.health.pauses();
        let mut acts = self.health.acts();
        while !stop.is_cancelled() {
            // Calls may have ended, or the gate opened.
            self.may_bring_up.notify_one();
            let now = self.clock.now();
            // What was claimed before may not be wanted any more.
            let is_recalled = acts.has_changed().unwrap_or(false);
            acts.mark_unchanged();
            let errand = self.next_errand(&mut clerk, is_recalled, now);
            if let Some(errand) = errand {
                self.run_errand(&mut clerk, errand, now).await;
                continue;
            }
            let wake = clerk.wake_at(&self.desk(), now);
            tokio::select! {
                () = self.news.notified() => {}
                // A pause that is over again was perhaps met by callers alone.
                Ok(()) = pauses.changed() => self.work.notify_waiters(),
                Ok(()) = acts.changed() => acts.mark_changed(),
                () = self.asserted_again.notified() => clerk.ledger_changed(self.clock.now() + millis(self.destination.linger)),
                () = self.brought_up.notified() => clerk.ledger_changed(self.clock.now()),
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

    fn next_errand(&self, clerk: &mut Clerk, is_recalled: bool, now: Millis) -> Option<Errand> {
        let mut desk = self.desk();
        let stands_still = self.health.is_paused() || self.meter.used_up().is_some();
        if stands_still || is_recalled {
            // Whatever is due then, delivery starts from the beginning.
            desk.give_back_beyond(0);
            clerk.sweep = Sweep::At(None);
            clerk.next_due = None;
        }
        if clerk.held_off_until(now).is_some() {
            return None;
        }
        let probe = !desk.gate.is_open();
        if !probe {
            clerk.last_probed = None;
        }
        let may_call = desk.limit(now) > 0;
        if probe && may_call && !desk.waiting.is_empty() {
            // The probe's time came while it lay there.
            self.work.notify_waiters();
        }
        let limit = if stands_still {
            0
        } else if probe {
            usize::from(may_call && desk.calling == 0 && desk.waiting.is_empty())
        } else {
            clerk.look_at(&mut desk, now);
            if clerk.is_sweeping(now) {
                clerk.room_on(&mut desk, now)
            } else {
                0
            }
        };
        let after = match &clerk.sweep {
            _ if probe => clerk.probed.clone(),
            Sweep::At(after) => after.clone(),
            Sweep::Resting(_) => None,
        };
        let settle_now =
            desk.unsettled.is_enough() || desk.unsettled.is_due(now) || desk.waiting.is_empty();
        if limit == 0 && (desk.unsettled.is_empty() || !settle_now) {
            return None;
        }
        Some(Errand {
            settle: desk.unsettled.take(),
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
                if limit > 0 {
                    clerk.filled_at = now;
                    clerk.found_all = claims.claims.len() >= limit;
                }
                clerk.swept(limit, &claims);
                self.put_on_the_desk(claims);
            }
            Err(error) => {
                self.tell_ledger_failed(&error, "delivery waits: the ledger cannot be written");
                clerk.not_before = now + AFTER_FAILURE;
                self.desk().unsettled.put_back(settle, now);
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
            desk.unsettled
                .give_back(claims.claims.into_iter().map(given_back));
        }
    }

    /// Gives back what was claimed and not called for; after the term, forgets it.
    pub(super) async fn settle_the_rest(&self) {
        let now = self.clock.now();
        let settle: Vec<_> = {
            let mut desk = self.desk();
            let waiting: Vec<_> = desk.waiting.drain(..).collect();
            let ended = desk.unsettled.take();
            ended
                .into_iter()
                .chain(waiting.into_iter().map(given_back))
                .collect()
        };
        if settle.is_empty() || self.term.is_over() {
            return;
        }
        let settled = self
            .store
            .exchange(&self.destination.name, settle, None, 0, now)
            .await;
        if let Err(error) = settled
            && !self.term.is_over()
        {
            tracing::warn!(destination = %self.destination.name, %error, "the last calls could not be settled: they will be made again");
        }
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
            filled_at: Millis::MIN,
            found_all: false,
        }
    }

    /// Where the desk has lain for long, calls take longer than when it was filled: what is too
    /// much on it by now is given back.
    fn look_at(&mut self, desk: &mut Desk, now: Millis) {
        if (self.filled_at..self.filled_at.saturating_add(STALE_AFTER)).contains(&now) {
            return;
        }
        self.filled_at = now;
        desk.depth.calm_down();
        let wanted = desk.depth.wanted(now);
        desk.give_back_beyond(wanted);
    }

    /// How many more identities the desk should hold.
    fn room_on(&self, desk: &mut Desk, now: Millis) -> usize {
        desk.low = desk.depth.wanted(now) / 2;
        if desk.waiting.len() > desk.low {
            return 0;
        }
        let callers_wait = desk.waiting.is_empty() && desk.calling < desk.limit(now);
        if !callers_wait {
            desk.depth.kept_up();
        } else if self.found_all {
            desk.depth.ran_dry();
        }
        let wanted = desk.depth.wanted(now);
        wanted.saturating_sub(desk.waiting.len()).min(BATCH)
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
            let lies_long = (!desk.waiting.is_empty()).then(|| self.filled_at + STALE_AFTER);
            let rests = match &self.sweep {
                Sweep::Resting(until) => *until,
                // Mid-sweep with a full desk: a caller will say when there is room.
                Sweep::At(_) => None,
            };
            rests
                .filter(|at| *at > now)
                .into_iter()
                .chain(lies_long)
                .chain(desk.unsettled.due_at())
                .min()
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
