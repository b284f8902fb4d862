//! Calls that were not carried out, or of which that is not known.

use super::{Called, Settling};
use crate::clock::Millis;
use crate::cohort::{Target, Told};
use crate::store::StoreError;
use crate::store::database::{OptionalRow, nothing, params};
use crate::store::ledger::pending::Late;
use crate::store::ledger::state::{sent_bit, told_stored, wanted_from, wanted_stored};

/// A call that is to be made again.
pub(super) struct Retry<'a> {
    pub(super) called: Called<'a>,
    pub(super) place: i64,
    pub(super) due_at: Millis,
    /// Whether it is one of the attempts after which an identity is given up.
    pub(super) counts: bool,
    pub(super) late_until: Option<Millis>,
    pub(super) error: &'a str,
}

/// A call that was not made.
pub(super) struct Unsent<'a> {
    called: Called<'a>,
    place: i64,
    told: Told,
}

impl<'a> Settling<'a> {
    pub(super) fn retry(&mut self, retry: Retry<'a>) -> Result<(), StoreError> {
        let number = retry.called.claimed.number;
        let state = self.state();
        if retry.late_until.is_some()
            && let Some(row) = self
                .ledger
                .pending_row(state.id, retry.called.identifier, number)?
            && !row
                .told
                .needs_write(Target::of(row.wanted, state.rules.on_leave))
        {
            // It was erased and named again under the call; what landed is not what is known.
            self.tally.add(number, row.wanted, row.since, 1);
        }
        self.retries.push(retry);
        Ok(())
    }

    pub(super) fn write_retries(&self) -> Result<(), StoreError> {
        // Where this call left nothing behind and none before it did, nothing can land late. Where
        // something may, somebody has to say otherwise in time; else the sweep's rows stay its own.
        self.ledger.connection.each_of(
            "UPDATE pending SET due_at = ?4, attempts = attempts + ?5, error = ?6,
                    late_until = coalesce(?7, late_until),
                    told = CASE WHEN ?7 IS NULL THEN told END,
                    sent = CASE WHEN ?7 IS NOT NULL THEN coalesce(sent, 0) | ?8
                                WHEN late_until IS NULL THEN NULL ELSE sent END,
                    express_at = CASE WHEN coalesce(?7, late_until, express_at) IS NULL THEN NULL ELSE ?4 END
             WHERE destination = ?1 AND identifier = ?2 AND trait = ?3",
            &self.retries,
            |retry| {
                let Called {
                    identifier,
                    claimed,
                } = retry.called;
                [
                    retry.place.into(),
                    identifier.into(),
                    claimed.number.0.into(),
                    retry.due_at.into(),
                    i64::from(retry.counts).into(),
                    retry.error.into(),
                    retry.late_until.into(),
                    sent_bit(claimed.target).into(),
                ]
            },
            nothing,
        )
    }

    /// No call was made, so what was known is known again, where it still holds.
    pub(super) fn unsent(&mut self, called: Called<'a>) -> Result<(), StoreError> {
        let told = match self.state().in_flight.get(called.identifier) {
            Some(call) if call.told_is_void => Told::Unknown,
            _ => called.claimed.told,
        };
        let place = self.place_of(called)?;
        self.unsent.push(Unsent {
            called,
            place,
            told,
        });
        Ok(())
    }

    pub(super) fn write_unsent(&mut self) -> Result<(), StoreError> {
        let on_leave = self.state().rules.on_leave;
        let (unsent, tally) = (&self.unsent, &mut self.tally);
        self.ledger.connection.each_of(
            "UPDATE pending SET told = ?4,
                    sent = CASE WHEN ?4 IS NOT NULL AND late_until IS NULL THEN NULL ELSE sent END
             WHERE destination = ?1 AND identifier = ?2 AND trait = ?3
             RETURNING wanted, since",
            unsent,
            |unsent| {
                [
                    unsent.place.into(),
                    unsent.called.identifier.into(),
                    unsent.called.claimed.number.0.into(),
                    told_stored(unsent.told).into(),
                ]
            },
            |at, row| {
                let Unsent { called, told, .. } = &unsent[at];
                let (wanted, since) = (wanted_from(row.get(0)?), row.get(1)?);
                // The person changed back meanwhile: there is nothing left to say.
                if !told.needs_write(Target::of(wanted, on_leave)) {
                    tally.add(called.claimed.number, wanted, since, -1);
                }
                Ok(())
            },
        )
    }

    /// The value can never be written.
    pub(super) fn dead(
        &mut self,
        called: Called<'_>,
        late_until: Option<Millis>,
        error: &str,
    ) -> Result<(), StoreError> {
        let place = self.place_of(called)?;
        if self.begins_anew(place, called, late_until)? {
            return Ok(());
        }
        let (identifier, number) = (called.identifier, called.claimed.number);
        let connection = &self.ledger.connection;
        let removed = connection
            .prepare_cached(
                "DELETE FROM pending WHERE destination = ?1 AND identifier = ?2 AND trait = ?3 RETURNING wanted, since, sent, late_until",
            )?
            .query_row(params![place, identifier, number.0], |row| {
                let late = Late {
                    sent: row.get(2)?,
                    until: row.get(3)?,
                };
                Ok((wanted_from(row.get(0)?), row.get::<Millis>(1)?, late))
            })
            .optional()?;
        if let Some((wanted, since, late)) = removed {
            self.tally.add(number, wanted, since, -1);
            connection
                .prepare_cached(
                    "INSERT INTO dead_letter (destination, identifier, trait, wanted, since, error, sent, late_until) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
                     ON CONFLICT (destination, identifier, trait) DO UPDATE SET wanted = excluded.wanted, since = excluded.since,
                         error = excluded.error, sent = excluded.sent, late_until = excluded.late_until",
                )?
                .execute(params![
                    self.state().id,
                    identifier,
                    number.0,
                    wanted_stored(wanted),
                    self.now,
                    error,
                    late.sent,
                    late.until.max(late_until)
                ])?;
        }
        Ok(())
    }

    /// Whether another value is wanted by now than the one that can never be written: nobody knows
    /// that of the new one, which was never sent.
    fn begins_anew(
        &self,
        place: i64,
        called: Called<'_>,
        late_until: Option<Millis>,
    ) -> Result<bool, StoreError> {
        let on_leave = self.state().rules.on_leave;
        let (identifier, number) = (called.identifier, called.claimed.number);
        let connection = &self.ledger.connection;
        let wanted = connection
            .prepare_cached(
                "SELECT wanted FROM pending WHERE destination = ?1 AND identifier = ?2 AND trait = ?3",
            )?
            .query_row(params![place, identifier, number.0], |row| {
                Ok(wanted_from(row.get(0)?))
            })
            .optional()?;
        if wanted.is_none_or(|wanted| Target::of(wanted, on_leave) == called.claimed.target) {
            return Ok(false);
        }
        connection
            .prepare_cached(
                "UPDATE pending SET due_at = ?4, express_at = ?4, attempts = 0, error = NULL,
                        late_until = CASE WHEN late_until IS NULL OR late_until < ?5 THEN ?5 ELSE late_until END,
                        sent = CASE WHEN coalesce(late_until, ?5) IS NOT NULL THEN sent END
                 WHERE destination = ?1 AND identifier = ?2 AND trait = ?3",
            )?
            .execute(params![place, identifier, number.0, self.now, late_until])?;
        Ok(true)
    }
}
