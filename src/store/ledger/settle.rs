//! Settling calls that ended: what was proved is known, the rest is asserted again.

use super::exchange::soonest;
use super::pending::{Late, Tally};
use super::state::{Ledger, sent_bit, told_stored, wanted_from, wanted_stored};
use crate::backoff::is_due;
use crate::clock::Millis;
use crate::cohort::{Target, Told, Wanted};
use crate::store::database::{OptionalRow, nothing, params};
use crate::store::{ClaimedTrait, Outcome, Settlement, StoreError, TraitRef};
use crate::unproven::Unproven;

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

/// What is written for all at the end.
#[derive(Default)]
struct Later<'a> {
    retries: Vec<Retry<'a>>,
    unsent: Vec<Unsent<'a>>,
}

/// A call that is to be made again.
struct Retry<'a> {
    place: i64,
    identifier: &'a str,
    number: TraitRef,
    due_at: Millis,
    counts: bool,
    late_until: Option<Millis>,
    error: &'a str,
    sent: i64,
}

/// A call that was not made.
struct Unsent<'a> {
    place: i64,
    identifier: &'a str,
    number: TraitRef,
    told: Told,
}

impl Ledger {
    /// Settles calls; gives back when the first of what is left of them is due.
    pub(super) fn settle(
        &mut self,
        destination: usize,
        settlements: &[Settlement],
        now: Millis,
    ) -> Result<Option<Millis>, StoreError> {
        let id = self.destinations[destination].id;
        let mut tally = Tally::new(id);
        let mut unproven = Unproven::default();
        let mut written = Vec::new();
        let mut open = Vec::new();
        let mut done = self
            .delete_as_written(destination, settlements)?
            .into_iter();
        let mut later = Later::default();
        for settlement in settlements {
            let identifier = &*settlement.claim.identifier;
            let call = self.destinations[destination].in_flight.get(identifier);
            let mut more_to_do = call.is_some_and(|call| call.passed_over);
            for claimed in &settlement.claim.traits {
                let done = match ends_with(&settlement.outcome) {
                    true => done.next().flatten(),
                    false => None,
                };
                let settled = match done {
                    Some((wanted, since)) => {
                        tally.add(claimed.number, wanted, since, -1);
                        Settled::Done
                    }
                    None => self.settle_trait(
                        destination,
                        identifier,
                        claimed,
                        &settlement.outcome,
                        now,
                        &mut tally,
                        &mut later,
                    )?,
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
        self.settle_all_retries(&later.retries)?;
        self.settle_all_unsent(destination, &later.unsent, &mut tally)?;
        let left_due = self.due_of(destination, &open)?;
        self.log_unproven(id, &unproven)?;
        self.count(&tally)?;
        Ok(left_due)
    }

    #[allow(clippy::too_many_arguments)]
    fn settle_trait<'a>(
        &self,
        destination: usize,
        identifier: &'a str,
        claimed: &'a ClaimedTrait,
        outcome: &'a Outcome,
        now: Millis,
        tally: &mut Tally,
        later: &mut Later<'a>,
    ) -> Result<Settled, StoreError> {
        match outcome {
            Outcome::Written { may_land_late } => {
                return self.settle_written(
                    destination,
                    identifier,
                    claimed,
                    *may_land_late,
                    now,
                    tally,
                );
            }
            Outcome::Retry {
                due_at,
                counts,
                may_land_late,
                error,
            } => {
                let late_until =
                    may_land_late.then(|| now + self.destinations[destination].rules.late_write_ms);
                later.retries.push(self.settle_retry(
                    destination,
                    identifier,
                    claimed,
                    *due_at,
                    *counts,
                    late_until,
                    error,
                    tally,
                )?);
            }
            Outcome::Unsent => {
                later
                    .unsent
                    .push(self.settle_unsent(destination, identifier, claimed)?);
            }
            Outcome::Dead {
                may_land_late,
                error,
            } => {
                let late_until =
                    may_land_late.then(|| now + self.destinations[destination].rules.late_write_ms);
                self.settle_dead(
                    destination,
                    identifier,
                    claimed,
                    error,
                    late_until,
                    now,
                    tally,
                )?;
            }
        }
        Ok(Settled::Open)
    }

    /// The short way of [`Ledger::settle_written`], for all at once: those who did not change meanwhile,
    /// and of whom no other call may still land. Gives back, for each trait that [ends](ends_with) with
    /// its call, what was wanted and since when its row was pending; `None` where that takes more.
    fn delete_as_written(
        &self,
        destination: usize,
        settlements: &[Settlement],
    ) -> Result<Vec<Option<(Wanted, Millis)>>, StoreError> {
        let state = &self.destinations[destination];
        let on_leave = state.rules.on_leave;
        let mut rows = Vec::new();
        let written = settlements
            .iter()
            .filter(|settlement| ends_with(&settlement.outcome));
        for settlement in written {
            for claimed in &settlement.claim.traits {
                let identifier = &*settlement.claim.identifier;
                let place = self.found_at(state.id, identifier, claimed.number)?;
                rows.push((place, identifier, claimed));
            }
        }
        let mut done = vec![None; rows.len()];
        self.connection.each_of(
            "DELETE FROM pending WHERE destination = ?1 AND identifier = ?2 AND trait = ?3
             AND wanted = ?4 AND sent = ?5 AND late_until IS NULL RETURNING wanted, since",
            &rows,
            |(place, identifier, claimed)| {
                [
                    (*place).into(),
                    (*identifier).into(),
                    claimed.number.0.into(),
                    wanted_stored(claimed.target.meant(on_leave)).into(),
                    sent_bit(claimed.target).into(),
                ]
            },
            |at, row| {
                done[at] = Some((wanted_from(row.get(0)?), row.get(1)?));
                Ok::<_, StoreError>(())
            },
        )?;
        Ok(done)
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

    /// The destination holds the value. Usually that is all; it is not where the person changed
    /// meanwhile, or where an older call may still land on top: then the row stays until that is
    /// no longer possible.
    fn settle_written(
        &self,
        destination: usize,
        identifier: &str,
        claimed: &ClaimedTrait,
        may_land_late: bool,
        now: Millis,
        tally: &mut Tally,
    ) -> Result<Settled, StoreError> {
        let state = &self.destinations[destination];
        let place = self.found_at(state.id, identifier, claimed.number)?;
        let key = params![place, identifier, claimed.number.0];
        let Some((wanted, since, sent, late_until)) = self
            .connection
            .prepare_cached(
                "SELECT wanted, since, sent, late_until FROM pending WHERE destination = ?1 AND identifier = ?2 AND trait = ?3",
            )?
            .query_row(key, |row| {
                Ok((
                    wanted_from(row.get(0)?),
                    row.get::<Millis>(1)?,
                    row.get::<Option<i64>>(2)?.unwrap_or(0),
                    row.get::<Option<Millis>>(3)?,
                ))
            })
            .optional()?
        else {
            // The person was erased while the call was under way.
            return Ok(Settled::Open);
        };
        let claimed_at = state
            .in_flight
            .get(identifier)
            .map_or(now, |call| call.claimed_at);
        let late_until = late_until
            .filter(|until| !is_due(*until, claimed_at))
            .max(may_land_late.then(|| now + state.rules.late_write_ms));
        let told = Told::Known(claimed.target);
        let target = Target::of(wanted, state.rules.on_leave);
        // What is wanted by now goes out at once; what only has to be looked at again waits.
        let due_at = late_until.filter(|_| !told.needs_write(target));
        let overwritable = late_until.is_some() && sent & !sent_bit(claimed.target) != 0;
        if overwritable {
            self.connection
                .prepare_cached(
                    "UPDATE pending SET due_at = ?4, express_at = coalesce(?4, express_at), late_until = ?5, attempts = 0, error = NULL, resync = NULL WHERE destination = ?1 AND identifier = ?2 AND trait = ?3",
                )?
                .execute(params![place, identifier, claimed.number.0, due_at, late_until])?;
            return Ok(Settled::Written);
        }
        if told.needs_write(target) || late_until.is_some() {
            self.connection
                .prepare_cached(
                    "UPDATE pending SET told = ?4, sent = ?5, late_until = ?6, due_at = ?7, express_at = coalesce(?7, express_at), attempts = 0, error = NULL, resync = NULL
                     WHERE destination = ?1 AND identifier = ?2 AND trait = ?3",
                )?
                .execute(params![
                    place,
                    identifier,
                    claimed.number.0,
                    told_stored(told),
                    late_until.map(|_| sent_bit(claimed.target)),
                    late_until,
                    due_at,
                ])?;
        } else {
            self.delete_pending(state.id, identifier, claimed.number)?;
        }
        if !told.needs_write(target) {
            tally.add(claimed.number, wanted, since, -1);
        }
        Ok(Settled::Written)
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

    #[allow(clippy::too_many_arguments)]
    fn settle_retry<'a>(
        &self,
        destination: usize,
        identifier: &'a str,
        claimed: &ClaimedTrait,
        due_at: Millis,
        counts: bool,
        late_until: Option<Millis>,
        error: &'a str,
        tally: &mut Tally,
    ) -> Result<Retry<'a>, StoreError> {
        let id = self.destinations[destination].id;
        let number = claimed.number;
        if late_until.is_some()
            && let Some(row) = self.pending_row(id, identifier, number)?
            && !row.told.needs_write(Target::of(
                row.wanted,
                self.destinations[destination].rules.on_leave,
            ))
        {
            // It was erased and named again under the call; what landed is not what is known.
            tally.add(number, row.wanted, row.since, 1);
        }
        Ok(Retry {
            place: self.found_at(id, identifier, number)?,
            identifier,
            number,
            due_at,
            counts,
            late_until,
            error,
            sent: sent_bit(claimed.target),
        })
    }

    fn settle_all_retries(&self, retries: &[Retry<'_>]) -> Result<(), StoreError> {
        // Where this call left nothing behind and none before it did, nothing can land late. Where
        // something may, somebody has to say otherwise in time; else the sweep's rows stay its own.
        self.connection.each_of(
            "UPDATE pending SET due_at = ?4, attempts = attempts + ?5, error = ?6,
                    late_until = coalesce(?7, late_until),
                    told = CASE WHEN ?7 IS NULL THEN told END,
                    sent = CASE WHEN ?7 IS NOT NULL THEN coalesce(sent, 0) | ?8
                                WHEN late_until IS NULL THEN NULL ELSE sent END,
                    express_at = CASE WHEN coalesce(?7, late_until, express_at) IS NULL THEN NULL ELSE ?4 END
             WHERE destination = ?1 AND identifier = ?2 AND trait = ?3",
            retries,
            |retry| {
                [
                    retry.place.into(),
                    retry.identifier.into(),
                    retry.number.0.into(),
                    retry.due_at.into(),
                    i64::from(retry.counts).into(),
                    retry.error.into(),
                    retry.late_until.into(),
                    retry.sent.into(),
                ]
            },
            nothing,
        )
    }

    /// No call was made, so what was known is known again, where it still holds.
    fn settle_unsent<'a>(
        &self,
        destination: usize,
        identifier: &'a str,
        claimed: &ClaimedTrait,
    ) -> Result<Unsent<'a>, StoreError> {
        let state = &self.destinations[destination];
        Ok(Unsent {
            place: self.found_at(state.id, identifier, claimed.number)?,
            identifier,
            number: claimed.number,
            told: match state.in_flight.get(identifier) {
                Some(call) if call.told_is_void => Told::Unknown,
                _ => claimed.told,
            },
        })
    }

    fn settle_all_unsent(
        &self,
        destination: usize,
        unsent: &[Unsent<'_>],
        tally: &mut Tally,
    ) -> Result<(), StoreError> {
        let on_leave = self.destinations[destination].rules.on_leave;
        self.connection.each_of(
            "UPDATE pending SET told = ?4,
                    sent = CASE WHEN ?4 IS NOT NULL AND late_until IS NULL THEN NULL ELSE sent END
             WHERE destination = ?1 AND identifier = ?2 AND trait = ?3
             RETURNING wanted, since",
            unsent,
            |unsent| {
                [
                    unsent.place.into(),
                    unsent.identifier.into(),
                    unsent.number.0.into(),
                    told_stored(unsent.told).into(),
                ]
            },
            |at, row| {
                let Unsent { number, told, .. } = unsent[at];
                let (wanted, since) = (wanted_from(row.get(0)?), row.get(1)?);
                // The person changed back meanwhile: there is nothing left to say.
                if !told.needs_write(Target::of(wanted, on_leave)) {
                    tally.add(number, wanted, since, -1);
                }
                Ok(())
            },
        )
    }

    #[allow(clippy::too_many_arguments)]
    fn settle_dead(
        &self,
        destination: usize,
        identifier: &str,
        claimed: &ClaimedTrait,
        error: &str,
        late_until: Option<Millis>,
        now: Millis,
        tally: &mut Tally,
    ) -> Result<(), StoreError> {
        let id = self.destinations[destination].id;
        let place = self.found_at(id, identifier, claimed.number)?;
        if self.begins_anew(destination, place, identifier, claimed, late_until, now)? {
            return Ok(());
        }
        let removed = self
            .connection
            .prepare_cached(
                "DELETE FROM pending WHERE destination = ?1 AND identifier = ?2 AND trait = ?3 RETURNING wanted, since, sent, late_until",
            )?
            .query_row(params![place, identifier, claimed.number.0], |row| {
                let late = Late {
                    sent: row.get(2)?,
                    until: row.get(3)?,
                };
                Ok((wanted_from(row.get(0)?), row.get::<Millis>(1)?, late))
            })
            .optional()?;
        if let Some((wanted, since, late)) = removed {
            tally.add(claimed.number, wanted, since, -1);
            self.connection
                .prepare_cached(
                    "INSERT INTO dead_letter (destination, identifier, trait, wanted, since, error, sent, late_until) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
                     ON CONFLICT (destination, identifier, trait) DO UPDATE SET wanted = excluded.wanted, since = excluded.since,
                         error = excluded.error, sent = excluded.sent, late_until = excluded.late_until",
                )?
                .execute(params![id, identifier, claimed.number.0, wanted_stored(wanted), now, error, late.sent, late.until.max(late_until)])?;
        }
        Ok(())
    }

    /// Whether another value is wanted by now than the one that can never be written: nobody knows
    /// that of the new one, which was never sent.
    fn begins_anew(
        &self,
        destination: usize,
        place: i64,
        identifier: &str,
        claimed: &ClaimedTrait,
        late_until: Option<Millis>,
        now: Millis,
    ) -> Result<bool, StoreError> {
        let on_leave = self.destinations[destination].rules.on_leave;
        let wanted = self
            .connection
            .prepare_cached(
                "SELECT wanted FROM pending WHERE destination = ?1 AND identifier = ?2 AND trait = ?3",
            )?
            .query_row(params![place, identifier, claimed.number.0], |row| {
                Ok(wanted_from(row.get(0)?))
            })
            .optional()?;
        if wanted.is_none_or(|wanted| Target::of(wanted, on_leave) == claimed.target) {
            return Ok(false);
        }
        self.connection
            .prepare_cached(
                "UPDATE pending SET due_at = ?4, express_at = ?4, attempts = 0, error = NULL,
                        late_until = CASE WHEN late_until IS NULL OR late_until < ?5 THEN ?5 ELSE late_until END,
                        sent = CASE WHEN coalesce(late_until, ?5) IS NOT NULL THEN sent END
                 WHERE destination = ?1 AND identifier = ?2 AND trait = ?3",
            )?
            .execute(params![
                place,
                identifier,
                claimed.number.0,
                now,
                late_until
            ])?;
        Ok(true)
    }
}
