//! Calls that were carried out, and after which something is left to do.

use super::{Called, Settled, Settling};
use crate::backoff::is_due;
use crate::clock::Millis;
use crate::cohort::{Target, Told, Wanted};
use crate::store::StoreError;
use crate::store::database::{OptionalRow, params};
use crate::store::ledger::state::{sent_bit, told_stored, wanted_from};

/// The row of a trait that was called for.
struct Row {
    wanted: Wanted,
    since: Millis,
    sent: i64,
    late_until: Option<Millis>,
}

impl Settling<'_> {
    /// The destination holds the value. Usually that is all; it is not where the person changed
    /// meanwhile, or where an older call may still land on top: then the row stays until that is
    /// no longer possible.
    pub(super) fn written(
        &mut self,
        called: Called<'_>,
        may_land_late: bool,
    ) -> Result<Settled, StoreError> {
        let Called {
            identifier,
            claimed,
        } = called;
        let place = self.place_of(called)?;
        let Some(row) = self.row_at(place, called)? else {
            // The person was erased while the call was under way.
            return Ok(Settled::Open);
        };
        let state = self.state();
        let call = state.in_flight.get(identifier);
        let claimed_at = call.map_or(self.now, |call| call.claimed_at);
        let late_until = row
            .late_until
            .filter(|until| !is_due(*until, claimed_at))
            .max(self.late_until(may_land_late));
        let told = Told::Known(claimed.target);
        let needs_write = told.needs_write(Target::of(row.wanted, state.rules.on_leave));
        // What is wanted by now goes out at once; what only has to be looked at again waits.
        let due_at = late_until.filter(|_| !needs_write);
        let overwritable = late_until.is_some() && row.sent & !sent_bit(claimed.target) != 0;
        if overwritable {
            self.ledger.connection
                .prepare_cached(
                    "UPDATE pending SET due_at = ?4, express_at = coalesce(?4, express_at), late_until = ?5, attempts = 0, error = NULL, resync = NULL WHERE destination = ?1 AND identifier = ?2 AND trait = ?3",
                )?
                .execute(params![place, identifier, claimed.number.0, due_at, late_until])?;
            return Ok(Settled::Written);
        }
        if needs_write || late_until.is_some() {
            self.ledger.connection
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
            self.ledger
                .delete_pending(state.id, identifier, claimed.number)?;
        }
        if !needs_write {
            self.tally.add(claimed.number, row.wanted, row.since, -1);
        }
        Ok(Settled::Written)
    }

    fn row_at(&self, place: i64, called: Called<'_>) -> Result<Option<Row>, StoreError> {
        let key = params![place, called.identifier, called.claimed.number.0];
        let row = self
            .ledger
            .connection
            .prepare_cached(
                "SELECT wanted, since, sent, late_until FROM pending WHERE destination = ?1 AND identifier = ?2 AND trait = ?3",
            )?
            .query_row(key, |row| {
                Ok(Row {
                    wanted: wanted_from(row.get(0)?),
                    since: row.get(1)?,
                    sent: row.get::<Option<i64>>(2)?.unwrap_or(0),
                    late_until: row.get(3)?,
                })
            })
            .optional()?;
        Ok(row)
    }
}
