//! What calls counted as written, until a canary proves that what is written stays.

use super::pending::Tally;
use super::routes::Following;
use super::state::Ledger;
use crate::canary::CanaryMemory;
use crate::clock::Millis;
use crate::cohort::{DestinationName, Target, Wanted};
use crate::store::database::{Connection, OptionalRow, params};
use crate::store::{CohortRef, StoreError, TraitRef};
use crate::unproven::Unproven;

/// Rows that one transaction forgets: their pages are some megabytes at most.
const FORGOTTEN_AT_ONCE: usize = 128;

/// Rows that one transaction makes pending again: each is of up to 256 calls.
const DOUBTED_AT_ONCE: i64 = 4;

/// Where a destination's log stands: everything up to this is in it or was proved.
pub fn unproven_through(
    connection: &Connection,
    destination: &DestinationName,
) -> Result<i64, StoreError> {
    Ok(connection
        .prepare_cached(
            "SELECT coalesce(max(seq), 0) FROM unproven WHERE destination = (SELECT id FROM destination WHERE name = ?1)",
        )?
        .query_row([destination.to_string()], |row| row.get(0))?)
}

/// What is remembered of a destination's canaries.
pub fn canary_memory(
    connection: &Connection,
    destination: &DestinationName,
) -> Result<CanaryMemory, StoreError> {
    let stored: Option<String> = connection
        .prepare_cached("SELECT value FROM meta WHERE key = 'canary:' || ?1")?
        .query_row([destination.to_string()], |row| row.get(0))
        .optional()?;
    match stored {
        None => Ok(CanaryMemory::default()),
        Some(stored) => serde_json::from_str(&stored).map_err(unreadable),
    }
}

fn unreadable(error: serde_json::Error) -> StoreError {
    StoreError::Failed(format!("what is known of canaries is damaged: {error}"))
}

impl Ledger {
    /// Remembers of a destination's canaries.
    pub fn remember_canary(
        &self,
        destination: &DestinationName,
        memory: &CanaryMemory,
    ) -> Result<(), StoreError> {
        let stored = serde_json::to_string(memory).map_err(unreadable)?;
        self.connection
            .prepare_cached(
                "INSERT INTO meta (key, value) VALUES ('canary:' || ?1, ?2) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
            )?
            .execute(params![destination.to_string(), stored])?;
        Ok(())
    }

    /// Adds what a transaction counted as written.
    pub(super) fn log_unproven(
        &self,
        destination: i64,
        unproven: &Unproven,
    ) -> Result<(), StoreError> {
        if unproven.is_empty() {
            return Ok(());
        }
        self.connection
            .prepare_cached("INSERT INTO unproven (destination, traits) VALUES (?1, ?2)")?
            .execute(params![destination, unproven.as_bytes()])?;
        Ok(())
    }

    /// Forgets a piece of what was proved; whether more is left of it.
    pub fn proved(&mut self, destination: usize, through: i64) -> Result<bool, StoreError> {
        let forgotten = self
            .connection
            .prepare_cached(
                "DELETE FROM unproven WHERE seq IN (SELECT seq FROM unproven WHERE destination = ?1 AND seq <= ?2 LIMIT ?3)",
            )?
            .execute(params![
                self.destinations[destination].id,
                through,
                FORGOTTEN_AT_ONCE as i64
            ])?;
        Ok(forgotten == FORGOTTEN_AT_ONCE)
    }

    /// Makes a piece of what is unproven pending again; how many traits, and `None` where nothing
    /// was left.
    pub fn doubt_some(
        &mut self,
        destination: usize,
        now: Millis,
    ) -> Result<Option<u64>, StoreError> {
        let id = self.destinations[destination].id;
        let rows = self
            .connection
            .prepare_cached(
                "SELECT seq, traits FROM unproven WHERE destination = ?1 ORDER BY seq LIMIT ?2",
            )?
            .query_map(params![id, DOUBTED_AT_ONCE], |row| {
                Ok((row.get::<i64>(0)?, row.get::<Vec<u8>>(1)?))
            })?
            .collect::<Result<Vec<_>, _>>()?;
        if rows.is_empty() {
            return Ok(None);
        }
        let mut tally = Tally::new(id);
        let mut traits = 0;
        for (seq, bytes) in rows {
            for entry in Unproven::entries(&bytes)? {
                for (number, target) in entry.traits {
                    let number = TraitRef(number.cast_signed());
                    if self.doubt(
                        destination,
                        entry.identifier,
                        number,
                        target,
                        now,
                        &mut tally,
                    )? {
                        traits += 1;
                    }
                }
            }
            self.connection
                .prepare_cached("DELETE FROM unproven WHERE seq = ?1")?
                .execute([seq])?;
        }
        self.count(&tally)?;
        Ok(Some(traits))
    }

    /// Makes one trait pending again; `false` where nobody wants it any more.
    fn doubt(
        &mut self,
        destination: usize,
        identifier: &str,
        number: TraitRef,
        target: Target,
        now: Millis,
        tally: &mut Tally,
    ) -> Result<bool, StoreError> {
        let id = self.destinations[destination].id;
        let is_dead = self
            .connection
            .prepare_cached(
                "SELECT 1 FROM dead_letter WHERE destination = ?1 AND identifier = ?2 AND trait = ?3",
            )?
            .exists(params![id, identifier, number.0])?;
        if is_dead {
            // Whoever tries it again knows that anything is possible.
            return Ok(false);
        }
        let following = self.following_trait(destination, number)?;
        let wanted = match following {
            Following::Beginning | Following::Always => self.wanted_of(identifier, number)?,
            // What was told of it was a former cohort's.
            Following::Never => None,
            // It may stay as it is, but where somebody was erased.
            Following::NoLonger if target != Target::Absent => return Ok(false),
            Following::NoLonger => None,
        };
        let wanted = match (wanted, target) {
            (Some(wanted), _) => wanted,
            // The cohort forgot its leavers, or the trait is no longer its own: it left all the same.
            (None, Target::False) => Wanted::Left,
            (None, Target::Absent) => Wanted::Erased,
            (None, Target::True) => return Ok(false),
        };
        if wanted == Wanted::Left {
            self.connection
                .prepare_cached(
                    "INSERT INTO meta (key, value) VALUES ('strangers:' || ?1, 1) ON CONFLICT (key) DO NOTHING",
                )?
                .execute([number.0])?;
        }
        self.assert_again(destination, identifier, number, wanted, now, tally)?;
        Ok(true)
    }

    /// What the trait's cohort is to a destination.
    fn following_trait(
        &self,
        destination: usize,
        number: TraitRef,
    ) -> Result<Following, StoreError> {
        let cohort: Option<i64> = self
            .connection
            .prepare_cached("SELECT cohort FROM trait WHERE id = ?1")?
            .query_row([number.0], |row| row.get(0))
            .optional()?
            .flatten();
        match cohort {
            Some(cohort) => self.following(destination, CohortRef(cohort)),
            None => Ok(Following::Never),
        }
    }

    /// What the trait's cohort wants of somebody; `None` where it has none or knows nothing of them.
    fn wanted_of(&self, identifier: &str, number: TraitRef) -> Result<Option<Wanted>, StoreError> {
        Ok(self
            .connection
            .prepare_cached(
                "SELECT max(CASE WHEN m.standing > 0 THEN 1 ELSE 0 END) FROM trait t JOIN cohort c ON c.id = t.cohort AND c.trait = t.id
                 JOIN member m ON m.cohort = c.id AND m.identifier = ?1 WHERE t.id = ?2",
            )?
            .query_row(params![identifier, number.0], |row| {
                row.get::<Option<bool>>(0)
            })?
            .map(Wanted::of))
    }

    /// Takes an erased person out of the log.
    pub(super) fn erase_from_log(&self, identifier: &str) -> Result<(), StoreError> {
        let rows = self
            .connection
            .prepare_cached(if self.connection.is_shared() {
                "SELECT seq, traits FROM unproven WHERE position(?1 IN traits) > 0"
            } else {
                "SELECT seq, traits FROM unproven WHERE instr(traits, ?1) > 0"
            })?
            .query_map([identifier.as_bytes()], |row| {
                Ok((row.get::<i64>(0)?, row.get::<Vec<u8>>(1)?))
            })?
            .collect::<Result<Vec<_>, _>>()?;
        for (seq, bytes) in rows {
            // A row that is empty now keeps its number.
            if let Some(rest) = Unproven::without(&bytes, identifier)? {
                self.connection
                    .prepare_cached("UPDATE unproven SET traits = ?2 WHERE seq = ?1")?
                    .execute(params![seq, rest.as_bytes()])?;
            }
        }
        Ok(())
    }
}
