//! Callers of a Flagsmith of one's own: one call for some hundred traits, and what its answer means
//! for each of the identities in it.
//!
//! An identity is in one call at a time, and all of it in the same. A call that fails without
//! saying for whom is made again for its halves by the same caller, in its own place among the
//! calls at once, until [`Split`] has found who is to blame or the gate has closed. Nothing is taken
//! to be written, or not written, on account of a failure: whoever was in a failed call and not in
//! a later one that succeeded is still unknown to the ledger.

use std::sync::Arc;
use std::time::Duration;

use super::call::{final_outcome, heard};
use super::split::{Part, Split, rows_beside};
use super::{Desk, Dispatch};
use crate::backoff::delay_before;
use crate::clock::{Stopwatch, millis};
use crate::flagsmith::{BulkVerdict, Disposition, Group, MAX_ROWS};
use crate::gate::Signal;
use crate::pace::{Heard, Ticket};
use crate::store::{Claim, Outcome, Settlement};

/// Rows of a call whose time is held against that of others: a call takes the longer the more rows
/// it has, which says nothing of the server's load.
const FULL_ROWS: usize = MAX_ROWS - MAX_ROWS / 4;

/// The identities of one call, by their numbers, until they are settled.
struct Open {
    claims: Vec<Option<Claim>>,
    /// Whose traits one of the calls so far may still change.
    may_land_late: Vec<bool>,
}

/// What a call came to.
struct Ended {
    settled: Vec<(Claim, Outcome)>,
    signals: Vec<Signal>,
    heard: Heard,
    /// Whether calls should be smaller.
    is_too_wide: bool,
}

impl Dispatch {
    pub(super) async fn call_in_bulk_on_and_on(self: Arc<Self>) {
        while let Some((claims, ticket)) = self.next(Desk::take_together).await {
            self.deliver_in_bulk(claims, ticket).await;
        }
    }

    async fn deliver_in_bulk(&self, claims: Vec<Claim>, mut ticket: Ticket) {
        let mut split = Split::of(claims.len());
        let mut open = Open {
            may_land_late: vec![false; claims.len()],
            claims: claims.into_iter().map(Some).collect(),
        };
        while let Some(part) = split.next() {
            let stopwatch = Stopwatch::start();
            let answer = self.client.write_bulk(&open.groups(&part)).await;
            let took = stopwatch.elapsed();
            for &member in &part.members {
                open.may_land_late[member] |= answer.may_land_late;
            }
            let ended = self.judge(answer.verdict, part, &mut split, &mut open, took);
            match self.record_in_bulk(ended, ticket) {
                Some(next) => ticket = next,
                None => break,
            }
        }
        let left = split.rest().filter_map(|member| open.take(member));
        let settled = left.map(|(claim, late)| self.undecided(claim, late));
        self.let_go(settled.collect());
    }

    /// What an answer means for the identities of its call, and which of them are called for again.
    fn judge(
        &self,
        verdict: BulkVerdict,
        part: Part,
        split: &mut Split,
        open: &mut Open,
        took: Duration,
    ) -> Ended {
        let mut ended = Ended {
            settled: Vec::new(),
            signals: Vec::new(),
            heard: Heard::Nothing,
            is_too_wide: false,
        };
        match verdict {
            BulkVerdict::Shown(of_each) => {
                if open.rows(&part) >= FULL_ROWS {
                    ended.heard = Heard::Answer(took);
                }
                for (&member, disposition) in part.members.iter().zip(of_each) {
                    ended.signals.extend(self.settle(
                        member,
                        disposition,
                        open,
                        &mut ended.settled,
                    ));
                }
                // One that is as it should be proves that Flagsmith works.
                let works = ended.signals.contains(&Signal::Success);
                ended
                    .signals
                    .retain(|signal| !works || *signal == Signal::Success);
                ended.signals.truncate(1);
            }
            BulkVerdict::Named(of_each) => {
                let refused: Vec<_> = part.members.iter().copied().zip(of_each).collect();
                for (member, error) in &refused {
                    if let Some(error) = error {
                        let error = error.clone();
                        self.settle(
                            *member,
                            Disposition::Refused { error },
                            open,
                            &mut ended.settled,
                        );
                    }
                }
                split.again_without(part, |member| open.claims[member].is_none());
                // It answered, and knows what it talks about.
                ended.signals.push(Signal::Success);
            }
            BulkVerdict::Unnamed(disposition) => {
                let failed = split.failed(&part);
                if failed.count > u32::from(failed.alone) {
                    ended.is_too_wide = true;
                    ended.heard = Heard::Failure;
                }
                let signal = signal_of(&disposition);
                if failed.alone {
                    self.settle(part.members[0], disposition, open, &mut ended.settled);
                }
                ended
                    .signals
                    .extend((0..failed.count).map(|_| signal.clone()));
            }
            BulkVerdict::Failed(disposition) => {
                ended.is_too_wide = matches!(disposition, Disposition::Later { .. });
                ended.heard = heard(&disposition, took);
                ended.signals.push(signal_of(&disposition));
                for member in part.members {
                    self.settle(member, disposition.clone(), open, &mut ended.settled);
                }
            }
        }
        ended
    }

    /// Settles one identity of a call; what that tells of the destination.
    fn settle(
        &self,
        member: usize,
        disposition: Disposition,
        open: &mut Open,
        settled: &mut Vec<(Claim, Outcome)>,
    ) -> Option<Signal> {
        let (claim, late) = open.take(member)?;
        let (outcome, signal) = self.outcome_of(&claim, disposition);
        settled.push((claim, may_land_late(outcome, late)));
        Some(signal)
    }

    /// Of somebody whose part of a call was given up: Flagsmith may have written it or not.
    fn undecided(&self, claim: Claim, may_land_late: bool) -> (Claim, Outcome) {
        let wait = delay_before(claim.attempts + 1, None, fastrand::f64());
        let outcome = Outcome::Retry {
            due_at: self.clock.now() + millis(wait),
            counts: false,
            may_land_late,
            error: "a call for several identities failed, and was given up before it was known for whom".into(),
        };
        (claim, outcome)
    }

    /// Takes in what a call came to; the ticket for the next one of its caller, where that may go on
    /// with what is left.
    fn record_in_bulk(&self, ended: Ended, ticket: Ticket) -> Option<Ticket> {
        let Ended {
            settled,
            signals,
            heard,
            is_too_wide,
        } = ended;
        let mut desk = self.desk();
        let now = self.clock.now();
        let before = desk.before(now);
        let settled: Vec<_> = settled
            .into_iter()
            .map(|(claim, outcome)| {
                let outcome = final_outcome(outcome, claim.attempts, &desk.gate);
                Settlement { claim, outcome }
            })
            .collect();
        if is_too_wide {
            desk.width.failed();
        }
        desk.pace.ended(ticket, heard, now);
        desk.depth.ended(settled.len(), now);
        for signal in signals {
            if signal == Signal::Success {
                desk.width.succeeded();
            }
            desk.record(signal, now);
        }
        self.health.set_in_flight_limit(desk.pace.limit());
        self.put_down(&mut desk, settled, now);
        self.tell_state(self.state(&desk.gate));
        let under_way = desk.calling;
        let next = (desk.gate.is_open()
            && !desk.closing
            && !self.health.is_paused()
            && !self.term.is_over())
        .then(|| desk.pace.begun(under_way));
        self.wake_after(desk, before, now);
        next
    }

    /// Ends a caller's turn; `left` is what it gave up.
    fn let_go(&self, left: Vec<(Claim, Outcome)>) {
        let mut desk = self.desk();
        desk.calling -= 1;
        self.health.set_in_flight(desk.calling);
        let now = self.clock.now();
        let before = desk.before(now);
        let left = left.into_iter();
        self.put_down(
            &mut desk,
            left.map(|(claim, outcome)| Settlement { claim, outcome }),
            now,
        );
        self.wake_after(desk, before, now);
    }
}

impl Desk {
    /// Whoever goes into one call: as many as there is room for, and all traits of each.
    fn take_together(&mut self) -> Option<Vec<Claim>> {
        let mut most = self.width.rows();
        let mut rows = 0;
        let mut together = Vec::new();
        while let Some(claim) = self.waiting.front() {
            most = most.min(rows_beside(claim.attempts));
            rows += claim.traits.len();
            if rows > most && !together.is_empty() {
                break;
            }
            together.extend(self.waiting.pop_front());
        }
        (!together.is_empty()).then_some(together)
    }
}

impl Open {
    fn groups(&self, part: &Part) -> Vec<Group<'_>> {
        let claims = part
            .members
            .iter()
            .filter_map(|&at| self.claims[at].as_ref());
        claims
            .map(|claim| Group {
                identifier: &claim.identifier,
                traits: claim
                    .traits
                    .iter()
                    .map(|claimed| (&*claimed.trait_key, claimed.target))
                    .collect(),
            })
            .collect()
    }

    /// Rows of what is open in a part.
    fn rows(&self, part: &Part) -> usize {
        let claims = part
            .members
            .iter()
            .filter_map(|&at| self.claims[at].as_ref());
        claims.map(|claim| claim.traits.len()).sum()
    }

    fn take(&mut self, member: usize) -> Option<(Claim, bool)> {
        let claim = self.claims[member].take()?;
        Some((claim, self.may_land_late[member]))
    }
}

/// The same, where an earlier call of the identity may still land.
fn may_land_late(mut outcome: Outcome, late: bool) -> Outcome {
    if let Outcome::Written { may_land_late }
    | Outcome::Retry { may_land_late, .. }
    | Outcome::Dead { may_land_late, .. } = &mut outcome
    {
        *may_land_late |= late;
    }
    outcome
}

/// What a failure tells of the destination.
fn signal_of(disposition: &Disposition) -> Signal {
    match disposition {
        Disposition::Later {
            retry_after, error, ..
        } => failure(*retry_after, error),
        Disposition::NotStored { error } => failure(None, error),
        Disposition::Halt { reason } => Signal::Halt {
            reason: reason.as_str().into(),
            canary: false,
        },
        Disposition::Written { .. }
        | Disposition::BlankEcho { .. }
        | Disposition::Refused { .. } => Signal::Success,
    }
}

fn failure(advised: Option<Duration>, error: &str) -> Signal {
    Signal::Failure {
        advised,
        reason: error.into(),
    }
}
