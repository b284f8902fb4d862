//! What an operator does to the ledger.

use super::express::FEW;
use super::pending::{Late, Tally, Unheard};
use super::state::{Ledger, wanted_from};
use crate::clock::Millis;
use crate::cohort::{Target, Told, Wanted};
use crate::store::database::{Connection, may_exist, params};
use crate::store::{CohortRef, DeadLetterFilter, StoreError, TraitRef};

/// A dead letter that was taken out.
struct Taken {
    destination: i64,
    identifier: String,
    number: TraitRef,
    wanted: Wanted,
    late: Late,
}

/// When the youngest dead letter died: in the future where the clock was set back since.
pub fn youngest_dead_letter(connection: &Connection) -> Result<Millis, StoreError> {
    Ok(connection
        .prepare_cached("SELECT coalesce(max(since), 0) FROM dead_letter")?
        .query_row((), |row| row.get(0))?)
}

impl Ledger {
    /// Takes at most `limit` dead letters out that are not younger than `until`: what dies again
    /// meanwhile is not meant.
    fn take_dead_letters(
        &self,
        filter: &DeadLetterFilter,
        limit: usize,
        until: Millis,
    ) -> Result<Vec<Taken>, StoreError> {
        let named = [filter.identifier.as_deref(), filter.destination.as_deref()];
        if !named.into_iter().flatten().all(may_exist) {
            return Ok(Vec::new());
        }
        Ok(self
            .connection
            .prepare_cached(
                "DELETE FROM dead_letter WHERE (destination, identifier, trait) IN (
                     SELECT destination, identifier, trait FROM dead_letter
                     WHERE (?1 IS NULL OR destination = (SELECT id FROM destination WHERE name = ?1))
                       AND (?2 IS NULL OR identifier = ?2)
                       AND since <= ?3
                     LIMIT ?4)
                 RETURNING destination, identifier, trait, wanted, sent, late_until",
            )?
            .query_map(params![filter.destination, filter.identifier, until, i64::try_from(limit).unwrap_or(i64::MAX)], |row| {
                Ok(Taken {
                    destination: row.get(0)?,
                    identifier: row.get(1)?,
                    number: TraitRef(row.get(2)?),
                    wanted: wanted_from(row.get(3)?),
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
        until: Millis,
        now: Millis,
    ) -> Result<usize, StoreError> {
        let letters = self.take_dead_letters(filter, limit, until)?;
        // Somebody looks on.
        let express_at = (letters.len() <= FEW).then_some(now);
        for letter in &letters {
            let unheard = Unheard {
                identifier: &letter.identifier,
                wanted: letter.wanted,
                told: Told::Unknown,
                late: letter.late,
                express_at,
            };
            self.insert_pending(letter.destination, letter.number, unheard, now)?;
            let mut tally = Tally::new(letter.destination);
            tally.add(letter.number, letter.wanted, now, 1);
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
        until: Millis,
    ) -> Result<usize, StoreError> {
        Ok(self.take_dead_letters(filter, limit, until)?.len())
    }

    /// Makes at most `limit` traits of a cohort pending, behind `after`, whatever the destination was
    /// told; the last of these people, where some may follow.
    pub(super) fn assert_some(
        &mut self,
        destination: usize,
        cohort: CohortRef,
        after: Option<&str>,
        limit: usize,
        now: Millis,
    ) -> Result<Option<String>, StoreError> {
        let number = self.trait_of(cohort)?;
        let id = self.destinations[destination].id;
        let people = self
            .connection
            .prepare_cached(
                "SELECT identifier, max(CASE WHEN standing > 0 THEN 1 ELSE 0 END) FROM member WHERE cohort = ?1 AND identifier > coalesce(?2, '')
                 GROUP BY identifier ORDER BY identifier LIMIT ?3",
            )?
            .query_map(params![cohort.0, after, i64::try_from(limit).unwrap_or(i64::MAX)], |row| {
                Ok((row.get::<String>(0)?, Wanted::of(row.get(1)?)))
            })?
            .collect::<Result<Vec<_>, _>>()?;
        let mut tally = Tally::new(id);
        for (identifier, wanted) in &people {
            self.assert_again(destination, identifier, number, *wanted, now, &mut tally)?;
        }
        self.count(&tally)?;
        let last = (people.len() == limit)
            .then(|| people.last().map(|(identifier, _)| identifier.clone()));
        Ok(last.flatten())
    }

    /// Makes one trait pending, whatever the destination was told: as it is wanted where it is
    /// pending already, else as `wanted`. Where the last call failed, the next one waits as long as
    /// it did. Whether it was to be written already.
    pub(super) fn assert_again(
        &mut self,
        destination: usize,
        identifier: &str,
        number: TraitRef,
        wanted: Wanted,
        now: Millis,
        tally: &mut Tally,
    ) -> Result<bool, StoreError> {
        let state = &mut self.destinations[destination];
        let (id, on_leave) = (state.id, state.rules.on_leave);
        if let Some(call) = state.in_flight.get_mut(identifier) {
            call.told_is_void = true;
        }
        match self.pending_row(id, identifier, number)? {
            Some(held) => {
                let place = self.found_at(id, identifier, number)?;
                self.connection
                    .prepare_cached("UPDATE pending SET told = NULL, due_at = CASE WHEN error IS NULL THEN NULL ELSE due_at END WHERE destination = ?1 AND identifier = ?2 AND trait = ?3")?
                    .execute(params![place, identifier, number.0])?;
                let was_to_be = held.told.needs_write(Target::of(held.wanted, on_leave));
                if !was_to_be {
                    tally.add(number, held.wanted, held.since, 1);
                }
                Ok(was_to_be)
            }
            None => {
                let late = self.take_dead(id, identifier, number)?.unwrap_or_default();
                let unheard = Unheard {
                    identifier,
                    wanted,
                    told: Told::Unknown,
                    late,
                    express_at: None,
                };
                self.insert_pending(id, number, unheard, now)?;
                tally.add(number, wanted, now, 1);
                Ok(false)
            }
        }
    }
}
