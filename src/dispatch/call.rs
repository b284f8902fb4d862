//! The callers: one call an identity, and what its answer means for the identity and the destination.

use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use super::{Before, Desk, Dispatch};
use crate::backoff::delay_before;
use crate::clock::{Millis, Stopwatch, millis};
use crate::config::BlankEcho;
use crate::flagsmith::{BlankVerdict, Disposition, Scope};
use crate::gate::{Gate, Signal};
use crate::meter::NotNow;
use crate::metrics::WriteOutcome;
use crate::pace::{Heard, Ticket};
use crate::status::DestinationState;
use crate::store::{Claim, Outcome, Settlement};

/// Failures of one identity, while others succeed, after which it is a dead letter: about two
/// minutes of waiting. Flagsmith answers 500 to some identities for ever.
pub const ATTEMPTS: u32 = 8;

/// Why a blank answer that nothing can judge stops delivery.
const BLANK_ECHO: &str = "Flagsmith's answers show no traits, and this Flagsmith has no traits/bulk/ to tell why: \
     either the key may not set traits (use a server-side key), or the environment hides sensitive data \
     (then set COHORT_BRIDGE_BLANK_ECHO=stored)";

/// What a caller does next.
enum Next<T> {
    /// Calls for whom it took.
    Call(T, Ticket),
    /// Waits until it is woken, or until this time.
    Wait(Option<Millis>),
    /// Ends.
    End,
}

impl Dispatch {
    pub(super) async fn call_on_and_on(self: Arc<Self>) {
        while let Some((claim, ticket)) = self.next(|desk| desk.waiting.pop_front()).await {
            let (outcome, signal, heard) = self.deliver(&claim).await;
            self.ended(claim, outcome, signal, (ticket, heard));
        }
    }

    /// What `take` takes from the desk for the next call; `None` when the desk is closing.
    pub(super) async fn next<T>(
        &self,
        take: impl Fn(&mut Desk) -> Option<T>,
    ) -> Option<(T, Ticket)> {
        loop {
            // Registered before looking, so that no wake-up is missed.
            let woken = self.work.notified();
            tokio::pin!(woken);
            woken.as_mut().enable();
            let time = match self.take(&take) {
                Next::Call(taken, ticket) => return Some((taken, ticket)),
                Next::End => return None,
                Next::Wait(time) => time,
            };
            let Some(time) = time else {
                woken.await;
                continue;
            };
            tokio::select! {
                () = self.clock.sleep_until(time) => {}
                () = woken => {}
            }
            self.desk().is_timed = false;
        }
    }

    fn take<T>(&self, take: impl Fn(&mut Desk) -> Option<T>) -> Next<T> {
        let mut desk = self.desk();
        if desk.closing || self.term.is_over() {
            return Next::End;
        }
        // Of a pause the clerk hears too: it gives back what waits, and wakes callers when it is over.
        if desk.calling >= desk.limit(self.clock.now())
            || desk.waiting.is_empty()
            || self.health.is_paused()
        {
            return Next::Wait(None);
        }
        match self.meter.promise() {
            Ok(()) => {}
            Err(NotNow::Until(time)) => {
                // One caller waits for the time; the others wait for that one.
                let is_first = !std::mem::replace(&mut desk.is_timed, true);
                return Next::Wait(is_first.then_some(time));
            }
            // Whoever keeps the count wakes all.
            Err(NotNow::Ungranted) => return Next::Wait(None),
        }
        let waiting = desk.waiting.len();
        let Some(taken) = take(&mut desk) else {
            return Next::Wait(None);
        };
        desk.calling += 1;
        let under_way = desk.calling;
        let ticket = desk.pace.begun(under_way);
        self.health.set_in_flight(under_way);
        if waiting > desk.low && desk.waiting.len() <= desk.low {
            self.news.notify_one();
        }
        if self.meter.is_limited() {
            self.work.notify_one();
        }
        Next::Call(taken, ticket)
    }

    fn ended(
        &self,
        claim: Claim,
        outcome: Outcome,
        signal: Signal,
        (ticket, heard): (Ticket, Heard),
    ) {
        let mut desk = self.desk();
        let now = self.clock.now();
        desk.calling -= 1;
        desk.depth.ended(1, now);
        self.health.set_in_flight(desk.calling);
        let outcome = final_outcome(outcome, claim.attempts, &desk.gate);
        let before = desk.before(now);
        desk.pace.ended(ticket, heard, now);
        desk.record(signal, now);
        self.health.set_in_flight_limit(desk.pace.limit());
        self.tell_state(self.state(&desk.gate));
        self.put_down(&mut desk, [Settlement { claim, outcome }], now);
        self.wake_after(desk, before, now);
    }

    /// Leaves what ended for the clerk.
    pub(super) fn put_down(
        &self,
        desk: &mut Desk,
        ended: impl IntoIterator<Item = Settlement>,
        now: Millis,
    ) {
        // It became of them what whoever leads next makes of them.
        if self.term.is_over() {
            return;
        }
        for settlement in ended {
            let Settlement { claim, outcome } = &settlement;
            self.tell_dead(claim, outcome);
            self.metrics
                .traits_settled(metric_of(outcome, &desk.gate), claim.traits.len() as u64);
            if let Outcome::Written { .. } = outcome {
                desk.unproven_calls += 1;
            }
            desk.unsettled.push(settlement, now);
        }
    }

    /// Wakes whom the end of a call concerns.
    pub(super) fn wake_after(&self, mut desk: MutexGuard<'_, Desk>, before: Before, now: Millis) {
        let grew = desk.limit(now) > before.limit;
        let clerk_needed = before.settle_at != desk.unsettled.due_at()
            || desk.unsettled.is_enough()
            || desk.waiting.is_empty()
            || before.is_open != desk.gate.is_open();
        let proof_wanted = desk.unproven_calls >= self.prove_after_calls;
        if proof_wanted {
            desk.unproven_calls = 0;
        }
        drop(desk);
        if clerk_needed {
            self.news.notify_one();
        }
        if grew {
            self.work.notify_waiters();
        }
        if proof_wanted {
            self.proof_wanted.notify_one();
        }
    }

    fn tell_dead(&self, claim: &Claim, outcome: &Outcome) {
        if let Outcome::Dead { error, .. } = outcome {
            tracing::warn!(
                destination = %self.destination.name,
                identity = %self.hash.of(&claim.identifier),
                %error,
                "dead letter: this identity cannot be written"
            );
        }
    }

    async fn deliver(&self, claim: &Claim) -> (Outcome, Signal, Heard) {
        let traits: Vec<_> = claim
            .traits
            .iter()
            .map(|claimed| (&*claimed.trait_key, claimed.target))
            .collect();
        let stopwatch = Stopwatch::start();
        let disposition = self.client.write(&claim.identifier, &traits).await;
        let heard = heard(&disposition, stopwatch.elapsed());
        let (outcome, signal) = match disposition {
            Disposition::BlankEcho { may_land_late } => {
                self.judge_blank_echo(claim, may_land_late).await
            }
            other => self.outcome_of(claim, other),
        };
        (outcome, signal, heard)
    }

    /// What an answer means for the identity that it is about, and for the destination.
    pub(super) fn outcome_of(&self, claim: &Claim, disposition: Disposition) -> (Outcome, Signal) {
        match disposition {
            Disposition::Written { may_land_late } => written(may_land_late),
            // Not judged by a second call.
            Disposition::BlankEcho { may_land_late } => {
                self.later(claim, true, None, may_land_late, BLANK_ECHO.into())
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
            Disposition::NotStored { error } => {
                self.suspicion.notify_one();
                self.later(claim, true, None, false, error.into())
            }
            // The identity is to blame, and the destination answered.
            Disposition::Refused { error } => (
                Outcome::Dead {
                    may_land_late: false,
                    error: error.into(),
                },
                Signal::Success,
            ),
            Disposition::Halt { reason } => {
                self.suspicion.notify_one();
                self.halted(reason.into())
            }
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
        self.suspicion.notify_one();
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
        advised: Option<Duration>,
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
}

/// What an answer tells of the server's load.
pub(super) fn heard(disposition: &Disposition, took: Duration) -> Heard {
    match disposition {
        Disposition::Written { .. } | Disposition::BlankEcho { .. } => Heard::Answer(took),
        Disposition::Later {
            scope: Scope::Destination,
            ..
        } => Heard::Busy,
        Disposition::Later {
            scope: Scope::Identity,
            ..
        } => Heard::Failure,
        Disposition::NotStored { .. } | Disposition::Refused { .. } | Disposition::Halt { .. } => {
            Heard::Nothing
        }
    }
}

/// An outcome as it is settled: a failure is the identity's own only while others succeed, and of
/// those there is a last one.
pub(super) fn final_outcome(outcome: Outcome, attempts: u32, gate: &Gate) -> Outcome {
    match outcome {
        Outcome::Retry {
            due_at,
            counts,
            may_land_late,
            error,
        } => {
            let counts = counts && gate.failures_count();
            if counts && attempts + 1 >= ATTEMPTS {
                Outcome::Dead {
                    may_land_late,
                    error,
                }
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
    }
}

fn written(may_land_late: bool) -> (Outcome, Signal) {
    (Outcome::Written { may_land_late }, Signal::Success)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_failure_keeps_what_is_known_of_it() {
        for may_land_late in [false, true] {
            let failed = Outcome::Retry {
                due_at: 7,
                counts: true,
                may_land_late,
                error: "no answer".into(),
            };
            assert_eq!(
                final_outcome(failed.clone(), ATTEMPTS - 1, &Gate::new()),
                Outcome::Dead {
                    may_land_late,
                    error: "no answer".into(),
                }
            );
            let earlier = final_outcome(failed.clone(), ATTEMPTS - 2, &Gate::new());
            assert_eq!(earlier, failed);
        }
    }
}
