//! Settling calls that ended: what was proved is known, the rest is asserted again.
//!
//! Nearly every call was carried out, and nothing changed meanwhile: all of those are settled by one
//! statement. What is left goes the long way, a trait at a time.

use self::failed::{Retry, Unsent};
use super::exchange::soonest;
use super::pending::Tally;
use super::state::{DestinationState, Ledger, sent_bit, wanted_from, wanted_stored};
use crate::clock::Millis;
use crate::cohort::Wanted;
use crate::store::database::params;
use crate::store::{ClaimedTrait, Outcome, Settlement, StoreError, TraitRef};
use crate::unproven::Unproven;

mod failed;
mod written;

/// What settling a trait came to.
enum Settled {
    /// It is written and its row gone, as nearly always.
    Done,
    /// It is written, and there is more to do or to watch.
    Written,
    /// Anything else.
    Open,
}

/// Whether nothing of the call can come any more, as nearly always.
fn ends_with(outcome: &Outcome) -> bool {
    matches!(
        outcome,
        Outcome::Written {
            may_land_late: false
        }
    )
}

/// A trait of a call that ended.
#[derive(Clone, Copy)]
struct Called<'a> {
    identifier: &'a str,
    claimed: &'a ClaimedTrait,
}

/// Calls of one destination that are settled together.
struct Settling<'a> {
    ledger: &'a Ledger,
    destination: usize,
    now: Millis,
    tally: Tally,
    /// Written for all at the end, as are those of `unsent`.
    retries: Vec<Retry<'a>>,
    unsent: Vec<Unsent<'a>>,
}

impl Ledger {
    /// Settles calls; gives back when the first of what is left of them is due.
    pub(super) fn settle(
        &mut self,
        destination: usize,
        settlements: &[Settlement],
        now: Millis,
    ) -> Result<Option<Millis>, StoreError> {
        let mut settling = Settling::new(self, destination, now);
        let mut unproven = Unproven::default();
        let mut written = Vec::new();
        let mut open = Vec::new();
        let mut done = settling.delete_as_written(settlements)?.into_iter();
        for Settlement { claim, outcome } in settlements {
            let identifier = &*claim.identifier;
            let call = settling.state().in_flight.get(identifier);
            let mut more_to_do = call.is_some_and(|call| call.passed_over);
            for claimed in &claim.traits {
                let called = Called {
                    identifier,
                    claimed,
                };
                let done = match ends_with(outcome) {
                    true => done.next().flatten(),
                    false => None,
                };
                let settled = match done {
                    Some((wanted, since)) => {
                        settling.tally.add(claimed.number, wanted, since, -1);
                        Settled::Done
                    }
                    None => settling.settle_trait(called, outcome)?,
                };
                if let Settled::Done | Settled::Written = settled {
                    written.push((claimed.number.0.cast_unsigned(), claimed.target));
                }
                more_to_do |= !matches!(settled, Settled::Done);
            }
            if !written.is_empty() {
                unproven.push(identifier, &written);
                written.clear();
            }
            if more_to_do {
                open.push(identifier);
            }
        }
        let id = settling.state().id;
        settling.end()?;
        self.log_unproven(id, &unproven)?;
        self.due_of(destination, &open)
    }

    /// When the first row of any of these identities is due.
    fn due_of(
        &self,
        destination: usize,
        identifiers: &[&str],
    ) -> Result<Option<Millis>, StoreError> {
        let state = &self.destinations[destination];
        let mut due = None;
        self.connection.each_of(
            "SELECT coalesce(due_at, since + ?3) FROM pending WHERE destination = ?1 AND identifier = ?2",
            identifiers,
            |identifier| {
                [
                    state.id.into(),
                    (*identifier).into(),
                    state.rules.linger_ms.into(),
                ]
            },
            |_, row| {
                due = soonest(due, row.get(0)?);
                Ok::<_, StoreError>(())
            },
        )?;
        Ok(due)
    }

    pub(super) fn delete_pending(
        &self,
        destination: i64,
        identifier: &str,
        number: TraitRef,
    ) -> Result<(), StoreError> {
        self.connection
            .prepare_cached(
                "DELETE FROM pending WHERE destination = ?1 AND identifier = ?2 AND trait = ?3",
            )?
            .execute(params![
                self.found_at(destination, identifier, number)?,
                identifier,
                number.0
            ])?;
        Ok(())
    }
}

impl<'a> Settling<'a> {
    fn new(ledger: &'a Ledger, destination: usize, now: Millis) -> Self {
        Settling {
            ledger,
            destination,
            now,
            tally: Tally::new(ledger.destinations[destination].id),
            retries: Vec::new(),
            unsent: Vec::new(),
        }
    }

    fn state(&self) -> &'a DestinationState {
        &self.ledger.destinations[self.destination]
    }

    /// Where the row of a trait is kept.
    fn place_of(&self, called: Called<'_>) -> Result<i64, StoreError> {
        let number = called.claimed.number;
        self.ledger
            .found_at(self.state().id, called.identifier, number)
    }

    /// Until when a call that ended now may land, where it may.
    fn late_until(&self, may_land_late: bool) -> Option<Millis> {
        may_land_late.then(|| self.now + self.state().rules.late_write_ms)
    }

    /// The short way for all at once: those who did not change meanwhile, and of whom no other call may
    /// still land. Gives back, for each trait that [ends](ends_with) with its call, what was wanted and
    /// since when its row was pending; `None` where that takes more.
    fn delete_as_written(
        &self,
        settlements: &[Settlement],
    ) -> Result<Vec<Option<(Wanted, Millis)>>, StoreError> {
        let on_leave = self.state().rules.on_leave;
        let mut rows = Vec::new();
        let written = settlements
            .iter()
            .filter(|settlement| ends_with(&settlement.outcome));
        for Settlement { claim, .. } in written {
            for claimed in &claim.traits {
                let called = Called {
                    identifier: &claim.identifier,
                    claimed,
                };
                rows.push((self.place_of(called)?, called));
            }
        }
        let mut done = vec![None; rows.len()];
        self.ledger.connection.each_of(
            "DELETE FROM pending WHERE destination = ?1 AND identifier = ?2 AND trait = ?3
             AND wanted = ?4 AND sent = ?5 AND late_until IS NULL RETURNING wanted, since",
            &rows,
            |(place, called)| {
                [
                    (*place).into(),
                    called.identifier.into(),
                    called.claimed.number.0.into(),
                    wanted_stored(called.claimed.target.meant(on_leave)).into(),
                    sent_bit(called.claimed.target).into(),
                ]
            },
            |at, row| {
                done[at] = Some((wanted_from(row.get(0)?), row.get(1)?));
                Ok::<_, StoreError>(())
            },
        )?;
        Ok(done)
    }

    fn settle_trait(
        &mut self,
        called: Called<'a>,
        outcome: &'a Outcome,
    ) -> Result<Settled, StoreError> {
        match outcome {
            Outcome::Written { may_land_late } => return self.written(called, *may_land_late),
            Outcome::Retry {
                due_at,
                counts,
                may_land_late,
                error,
            } => {
                let late_until = self.late_until(*may_land_late);
                let retry = Retry {
                    called,
                    place: self.place_of(called)?,
                    due_at: *due_at,
                    counts: *counts,
                    late_until,
                    error,
                };
                self.retry(retry)?;
            }
            Outcome::Unsent => self.unsent(called)?,
            Outcome::Dead {
                may_land_late,
                error,
            } => self.dead(called, self.late_until(*may_land_late), error)?,
        }
        Ok(Settled::Open)
    }

    /// Writes down what is written for all at once.
    fn end(mut self) -> Result<(), StoreError> {
        self.write_retries()?;
        self.write_unsent()?;
        self.ledger.count(&self.tally)
    }
}
