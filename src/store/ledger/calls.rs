//! The calls of a month.

use super::state::Ledger;
use crate::calls::{CallOrder, CallsCounted};
use crate::clock::Millis;
use crate::store::StoreError;
use crate::store::database::params;

impl Ledger {
    /// Counts calls that were made, and leases as many as are wanted and the budget allows.
    pub fn count_calls(
        &mut self,
        destination: usize,
        order: CallOrder,
        now: Millis,
    ) -> Result<CallsCounted, StoreError> {
        let id = self.destinations[destination].id;
        let month = order.month.to_string();
        let (calls, since) = self
            .connection
            .prepare_cached(
                "INSERT INTO calls (destination, month, calls, since) VALUES (?1, ?2, CASE WHEN ?3 < 0 THEN 0 ELSE ?3 END, ?4)
                 ON CONFLICT (destination, month) DO UPDATE SET calls = CASE WHEN calls.calls + ?3 < 0 THEN 0 ELSE calls.calls + ?3 END RETURNING calls, since",
            )?
            .query_row(params![id, month, order.add, now], |row| {
                Ok((row.get::<u64>(0)?, row.get(1)?))
            })?;
        let room = order
            .budget
            .map_or(0, |budget| budget.saturating_sub(calls));
        let leased = order.lease.min(room);
        if leased > 0 {
            self.connection
                .prepare_cached(
                    "UPDATE calls SET calls = calls + ?3 WHERE destination = ?1 AND month = ?2",
                )?
                .execute(params![id, month, leased])?;
        }
        Ok(CallsCounted {
            calls: calls + leased,
            leased,
            since,
        })
    }
}
