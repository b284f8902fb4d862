//! Settling calls that ended: what was proved is known, the rest is asserted again.

use rusqlite::{OptionalExtension, params};

use super::exchange::soonest;
use super::pending::{Late, Tally};
use super::state::{Ledger, sent_bit, told_stored, wanted_from, wanted_stored};
use crate::backoff::is_due;
use crate::clock::Millis;
use crate::cohort::{Target, Told, Wanted};
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
        let mut left_due = None;
        for settlement in settlements {
            let identifier = &*settlement.claim.identifier;
            let call = self.destinations[destination].in_flight.get(identifier);
            let mut more_to_do = call.is_some_and(|call| call.passed_over);
            for claimed in &settlement.claim.traits {
                let settled = self.settle_trait(
                    destination,
                    identifier,
                    claimed,
                    &settlement.outcome,
                    now,
                    &mut tally,
                )?;
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
                left_due = soonest(left_due, self.due_of(destination, identifier)?);
            }
        }
        self.log_unproven(id, &unproven)?;
        self.count(&tally)?;
        Ok(left_due)
    }

    fn settle_trait(
        &self,
        destination: usize,
        identifier: &str,
        claimed: &ClaimedTrait,
        outcome: &Outcome,
        now: Millis,
        tally: &mut Tally,
    ) -> Result<Settled, StoreError> {
        match outcome {
            Outcome::Written { may_land_late } => {
                if !may_land_late
                    && let Some((wanted, since)) =
                        self.delete_as_written(destination, identifier, claimed)?
                {
                    tally.add(claimed.number, wanted, since, -1);
                    return Ok(Settled::Done);
                }
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
                self.settle_retry(
                    destination,
                    identifier,
                    claimed,
                    *due_at,
                    *counts,
                    late_until,
                    error,
                    tally,
                )?;
            }
            Outcome::Unsent => self.settle_unsent(destination, identifier, claimed, tally)?,
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

    /// The short way of [`Ledger::settle_written`], in one statement: the person did not change
    /// meanwhile, and no other call may still land. Gives back since when the row was pending.
    fn delete_as_written(
        &self,
        destination: usize,
        identifier: &str,
        claimed: &ClaimedTrait,
    ) -> Result<Option<(Wanted, Millis)>, StoreError> {
        let state = &self.destinations[destination];
        let wanted = claimed.target.meant(state.rules.on_leave);
        Ok(self
            .connection
            .prepare_cached(
                "DELETE FROM pending WHERE destination = ?1 AND identifier = ?2 AND trait = ?3
                 AND wanted = ?4 AND sent = ?5 AND late_until IS NULL RETURNING since",
            )?
            .query_row(
                params![
                    self.found_at(state.id, identifier, claimed.number)?,
                    identifier,
                    claimed.number.0,
                    wanted_stored(wanted),
                    sent_bit(claimed.target)
                ],
                |row| Ok((wanted, row.get(0)?)),
            )
            .optional()?)
    }

    /// When the first row of an identity is due.
    fn due_of(&self, destination: usize, identifier: &str) -> Result<Option<Millis>, StoreError> {
        let state = &self.destinations[destination];
        Ok(self
            .connection
            .prepare_cached(
                "SELECT min(coalesce(due_at, since + ?3)) FROM pending WHERE destination = ?1 AND identifier = ?2",
            )?
            .query_row(params![state.id, identifier, state.rules.linger_ms], |row| row.get(0))?)
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
                    row.get::<_, Millis>(1)?,
                    row.get::<_, Option<i64>>(2)?.unwrap_or(0),
                    row.get::<_, Option<Millis>>(3)?,
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
    fn settle_retry(
        &self,
        destination: usize,
        identifier: &str,
        claimed: &ClaimedTrait,
        due_at: Millis,
        counts: bool,
        late_until: Option<Millis>,
        error: &str,
        tally: &mut Tally,
    ) -> Result<(), StoreError> {
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
        // Where this call left nothing behind and none before it did, nothing can land late. Where
        // something may, somebody has to say otherwise in time; else the sweep's rows stay its own.
        self.connection
            .prepare_cached(
                "UPDATE pending SET due_at = ?4, attempts = attempts + ?5, error = ?6,
                        late_until = coalesce(?7, late_until),
                        told = CASE WHEN ?7 IS NULL THEN told END,
                        sent = CASE WHEN ?7 IS NOT NULL THEN coalesce(sent, 0) | ?8
                                    WHEN late_until IS NULL THEN NULL ELSE sent END,
                        express_at = CASE WHEN coalesce(?7, late_until, express_at) IS NULL THEN NULL ELSE ?4 END
                 WHERE destination = ?1 AND identifier = ?2 AND trait = ?3",
            )?
            .execute(params![
                self.found_at(id, identifier, number)?,
                identifier,
                number.0,
                due_at,
                counts,
                error,
                late_until,
                sent_bit(claimed.target)
            ])?;
        Ok(())
    }

    /// No call was made, so what was known is known again, where it still holds.
    fn settle_unsent(
        &self,
        destination: usize,
        identifier: &str,
        claimed: &ClaimedTrait,
        tally: &mut Tally,
    ) -> Result<(), StoreError> {
        let state = &self.destinations[destination];
        let call = state.in_flight.get(identifier);
        let told = match call {
            Some(call) if call.told_is_void => Told::Unknown,
            _ => claimed.told,
        };
        let left = self
            .connection
            .prepare_cached(
                "UPDATE pending SET told = ?4,
                        sent = CASE WHEN ?4 IS NOT NULL AND late_until IS NULL THEN NULL ELSE sent END
                 WHERE destination = ?1 AND identifier = ?2 AND trait = ?3
                 RETURNING wanted, since",
            )?
            .query_row(
                params![
                    self.found_at(state.id, identifier, claimed.number)?,
                    identifier,
                    claimed.number.0,
                    told_stored(told)
                ],
                |row| Ok((wanted_from(row.get(0)?), row.get::<_, Millis>(1)?)),
            )
            .optional()?;
        if let Some((wanted, since)) = left {
            // The person changed back meanwhile: there is nothing left to say.
            if !told.needs_write(Target::of(wanted, state.rules.on_leave)) {
                tally.add(claimed.number, wanted, since, -1);
            }
        }
        Ok(())
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
                Ok((wanted_from(row.get(0)?), row.get::<_, Millis>(1)?, late))
            })
            .optional()?;
        if let Some((wanted, since, late)) = removed {
            tally.add(claimed.number, wanted, since, -1);
            self.connection
                .prepare_cached(
                    "INSERT OR REPLACE INTO dead_letter (destination, identifier, trait, wanted, since, error, sent, late_until) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
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
                        late_until = max(coalesce(late_until, ?5), coalesce(?5, late_until)),
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
