//! What an operator does to the ledger.

use rusqlite::params;

use super::ledger::Ledger;
use super::pending::{Late, Tally};
use crate::clock::Millis;
use crate::cohort::{SourceName, Target, Told};
use crate::store::{CohortRef, DeadLetterFilter, StoreError};

/// A dead letter that was taken out.
struct Taken {
    destination: i64,
    identifier: String,
    cohort: CohortRef,
    member: bool,
    late: Late,
}

impl Ledger {
    /// Takes at most `limit` dead letters out that are not younger than `ordered_at`: what dies again
    /// meanwhile is not meant.
    fn take_dead_letters(
        &self,
        filter: &DeadLetterFilter,
        limit: usize,
        ordered_at: Millis,
    ) -> Result<Vec<Taken>, StoreError> {
        Ok(self
            .connection
            .prepare_cached(
                "DELETE FROM dead_letter WHERE (destination, identifier, cohort) IN (
                     SELECT destination, identifier, cohort FROM dead_letter
                     WHERE (?1 IS NULL OR destination = (SELECT id FROM destination WHERE name = ?1))
                       AND (?2 IS NULL OR identifier = ?2)
                       AND since <= ?3
                     LIMIT ?4)
                 RETURNING destination, identifier, cohort, member, sent, late_until",
            )?
            .query_map(params![filter.destination, filter.identifier, ordered_at, i64::try_from(limit).unwrap_or(i64::MAX)], |row| {
                Ok(Taken {
                    destination: row.get(0)?,
                    identifier: row.get(1)?,
                    cohort: CohortRef(row.get(2)?),
                    member: row.get(3)?,
                    late: Late {
                        sent: row.get(4)?,
                        until: row.get(5)?,
                    },
                })
            })?
            .collect::<Result<_, _>>()?)
    }

    /// Makes at most `limit` dead letters pending again; returns how many.
    pub fn retry_dead_letters(
        &mut self,
        filter: &DeadLetterFilter,
        limit: usize,
        now: Millis,
    ) -> Result<usize, StoreError> {
        let letters = self.take_dead_letters(filter, limit, now)?;
        for letter in &letters {
            self.insert_pending(
                letter.destination,
                &letter.identifier,
                letter.cohort,
                letter.member,
                Told::Unknown,
                letter.late,
                now,
            )?;
            let mut tally = Tally::new(letter.destination);
            tally.add(letter.cohort, letter.member, now, 1);
            self.count(&tally)?;
        }
        Ok(letters.len())
    }

    /// Forgets at most `limit` dead letters; returns how many. The trait stays as it is in Flagsmith
    /// until the person's next change.
    pub fn drop_dead_letters(
        &mut self,
        filter: &DeadLetterFilter,
        limit: usize,
        now: Millis,
    ) -> Result<usize, StoreError> {
        Ok(self.take_dead_letters(filter, limit, now)?.len())
    }

    /// Makes at most `limit` traits of a cohort pending again, behind `after`. Returns how many
    /// people it looked at and the last of them.
    pub fn resync_some(
        &mut self,
        destination: usize,
        cohort: CohortRef,
        after: Option<&str>,
        limit: usize,
        now: Millis,
    ) -> Result<(u64, Option<String>), StoreError> {
        let id = self.destinations[destination].id;
        let on_leave = self.destinations[destination].rules.on_leave;
        let people = self
            .connection
            .prepare_cached(
                "SELECT identifier, member FROM member WHERE cohort = ?1 AND identifier > coalesce(?2, '') ORDER BY identifier LIMIT ?3",
            )?
            .query_map(params![cohort.0, after, i64::try_from(limit).unwrap_or(i64::MAX)], |row| {
                Ok((row.get::<_, String>(0)?, row.get::<_, bool>(1)?))
            })?
            .collect::<Result<Vec<_>, _>>()?;
        let mut tally = Tally::new(id);
        for (identifier, member) in &people {
            match self.pending_row(id, identifier, cohort)? {
                Some(held) => {
                    self.connection
                        .prepare_cached("UPDATE pending SET told = NULL, due_at = NULL WHERE destination = ?1 AND identifier = ?2 AND cohort = ?3")?
                        .execute(params![id, identifier, cohort.0])?;
                    if !held.told.needs_write(Target::of(held.member, on_leave)) {
                        tally.add(cohort, held.member, held.since, 1);
                    }
                }
                None => {
                    let late = self.take_dead(id, identifier, cohort)?.unwrap_or_default();
                    self.insert_pending(id, identifier, cohort, *member, Told::Unknown, late, now)?;
                    tally.add(cohort, *member, now, 1);
                }
            }
        }
        self.count(&tally)?;
        let last = (people.len() == limit)
            .then(|| people.last().map(|(identifier, _)| identifier.clone()));
        Ok((people.len() as u64, last.flatten()))
    }

    /// The cohorts of that name (of several projects, possibly).
    pub fn cohorts_named(
        &self,
        source: &SourceName,
        cohort_id: &str,
    ) -> Result<Vec<CohortRef>, StoreError> {
        Ok(self
            .connection
            .prepare_cached("SELECT id FROM cohort WHERE source = ?1 AND cohort_id = ?2")?
            .query_map(params![&*source.0, cohort_id], |row| {
                row.get(0).map(CohortRef)
            })?
            .collect::<Result<_, _>>()?)
    }

    /// Every cohort.
    pub fn all_cohorts(&self) -> Result<Vec<CohortRef>, StoreError> {
        Ok(self
            .connection
            .prepare_cached("SELECT id FROM cohort")?
            .query_map([], |row| row.get(0).map(CohortRef))?
            .collect::<Result<_, _>>()?)
    }
}
