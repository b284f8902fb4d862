//! Making everything pending again for one destination, cohort by cohort, a piece a transaction.

use rusqlite::{OptionalExtension, params};
use serde::{Deserialize, Serialize};

use super::ledger::Ledger;
use crate::clock::Millis;
use crate::cohort::DestinationName;
use crate::store::{CohortRef, StoreError};

/// Where it stands: everything before is done.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Walk {
    /// A cohort's number, or less than the next one's.
    cohort: i64,
    /// The last of its people who are done.
    after: Option<String>,
}

impl Ledger {
    /// Orders it, from the beginning.
    pub fn order_rewrite(&self, destination: &DestinationName) -> Result<(), StoreError> {
        self.note_rewrite(destination, &Walk::default())
    }

    /// A piece of what was ordered; whether anything was left to do.
    pub fn rewrite_some(
        &mut self,
        destination: &DestinationName,
        limit: usize,
        now: Millis,
    ) -> Result<bool, StoreError> {
        let stored: Option<String> = self
            .connection
            .prepare_cached("SELECT value FROM meta WHERE key = 'rewrite:' || ?1")?
            .query_row([destination.to_string()], |row| row.get(0))
            .optional()?;
        let Some(stored) = stored else {
            return Ok(false);
        };
        let walk: Walk = serde_json::from_str(&stored).map_err(unreadable)?;
        let cohort: Option<i64> = self
            .connection
            .prepare_cached("SELECT min(id) FROM cohort WHERE id >= ?1")?
            .query_row([walk.cohort], |row| row.get(0))?;
        let Some(cohort) = cohort else {
            self.connection
                .prepare_cached("DELETE FROM meta WHERE key = 'rewrite:' || ?1")?
                .execute([destination.to_string()])?;
            return Ok(false);
        };
        // The cohort may be gone of which it was.
        let after = walk.after.filter(|_| cohort == walk.cohort);
        let index = self.destination(destination)?;
        // Whatever the destination hears nothing of is asserted anew should it be led there again.
        let last = if self.following(index, CohortRef(cohort))?.hears() {
            self.resync_some(index, CohortRef(cohort), after.as_deref(), limit, now)?
                .1
        } else {
            None
        };
        let next = match last {
            Some(_) => Walk {
                cohort,
                after: last,
            },
            None => Walk {
                cohort: cohort + 1,
                after: None,
            },
        };
        self.note_rewrite(destination, &next)?;
        Ok(true)
    }

    fn note_rewrite(&self, destination: &DestinationName, walk: &Walk) -> Result<(), StoreError> {
        let stored = serde_json::to_string(walk).map_err(unreadable)?;
        self.connection
            .prepare_cached(
                "INSERT OR REPLACE INTO meta (key, value) VALUES ('rewrite:' || ?1, ?2)",
            )?
            .execute(params![destination.to_string(), stored])?;
        Ok(())
    }
}

fn unreadable(error: serde_json::Error) -> StoreError {
    StoreError::Failed(format!(
        "how far everything was written again is damaged: {error}"
    ))
}
