//! People whom an operator wants erased: from the pages that wait, from the ledger, and from what
//! each destination does not know yet.

use std::collections::BTreeSet;

use super::apply::{Changes, people_behind};
use super::membership::{Change, Standing};
use super::pending::{Again, Tally, Unheard};
use super::routes::Following;
use super::state::{Ledger, settled};
use crate::clock::Millis;
use crate::cohort::{Target, Told, Wanted};
use crate::roster::Roster;
use crate::store::database::{OptionalRow, may_exist, params};
use crate::store::{CohortRef, StoreError, TraitRef};

/// Pages looked through for a person at a time.
const PAGES_A_PIECE: usize = 64;

impl Ledger {
    /// Orders a person's erasure; of how many cohorts anything is known.
    pub fn order_erasure(&mut self, identifier: &str, traits: bool) -> Result<u64, StoreError> {
        if !may_exist(identifier) {
            return Ok(0);
        }
        let known: u64 = self
            .connection
            .prepare_cached(
                "SELECT count(*) FROM cohort c
                 WHERE EXISTS (SELECT 1 FROM member m WHERE m.cohort = c.id AND m.identifier = ?1)
                    OR EXISTS (SELECT 1 FROM destination d JOIN pending p ON p.destination IN (d.id, -d.id) AND p.identifier = ?1 AND p.trait = c.trait)
                    OR EXISTS (SELECT 1 FROM destination d JOIN dead_letter l ON l.destination = d.id AND l.identifier = ?1 AND l.trait = c.trait)",
            )?
            .query_row([identifier], |row| row.get(0))?;
        self.connection
            .prepare_cached(
                "INSERT INTO erasure (identifier, traits) VALUES (?1, ?2)
                 ON CONFLICT (identifier) DO UPDATE SET traits = CASE WHEN erasure.traits <> 0 THEN 1 ELSE excluded.traits END, walked_through = 0",
            )?
            .execute(params![identifier, traits])?;
        self.may_have_orders = true;
        Ok(known)
    }

    /// A piece of the oldest order; whether there was one.
    pub(super) fn erase_some(&mut self, now: Millis) -> Result<bool, StoreError> {
        let order = self
            .connection
            .prepare_cached("SELECT identifier, traits, walked_through FROM erasure LIMIT 1")?
            .query_row((), |row| {
                Ok((
                    row.get::<String>(0)?,
                    row.get::<bool>(1)?,
                    row.get::<i64>(2)?,
                ))
            })
            .optional()?;
        let Some((identifier, traits, walked_through)) = order else {
            return Ok(false);
        };
        if let Some(last) = self.erase_from_pages(&identifier, walked_through)? {
            self.connection
                .prepare_cached("UPDATE erasure SET walked_through = ?2 WHERE identifier = ?1")?
                .execute(params![identifier, last])?;
            return Ok(true);
        }
        self.erase(&identifier, traits, now)?;
        self.connection
            .prepare_cached("DELETE FROM erasure WHERE identifier = ?1")?
            .execute([identifier])?;
        Ok(true)
    }

    /// Takes a person out of the next pages; the last of them.
    fn erase_from_pages(
        &mut self,
        identifier: &str,
        after: i64,
    ) -> Result<Option<i64>, StoreError> {
        let pages = self
            .connection
            .prepare_cached("SELECT seq, roster FROM inbox WHERE seq > ?1 ORDER BY seq LIMIT ?2")?
            .query_map(
                params![after, i64::try_from(PAGES_A_PIECE).unwrap_or(i64::MAX)],
                |row| Ok((row.get::<i64>(0)?, row.get::<Vec<u8>>(1)?)),
            )?
            .collect::<Result<Vec<_>, _>>()?;
        let last = pages.last().map(|(seq, _)| *seq);
        for (seq, roster) in pages {
            let roster = Roster::from_bytes(roster)?;
            let without = roster.without(identifier);
            if without.len() < roster.len() {
                // The fingerprint stays: the page is still told apart from others.
                self.connection
                    .prepare_cached("UPDATE inbox SET roster = ?2 WHERE seq = ?1")?
                    .execute(params![seq, without.as_bytes()])?;
            }
        }
        Ok(last)
    }

    fn erase(&mut self, identifier: &str, traits: bool, now: Millis) -> Result<(), StoreError> {
        let mut was = Vec::new();
        for cohort in self.all_cohorts()? {
            let mut people = people_behind(&self.connection, cohort, identifier)?;
            if people.is_empty() {
                continue;
            }
            for person in &mut people {
                person.now = None;
                if let Some(person) = person.person {
                    self.connection
                        .prepare_cached("DELETE FROM holder WHERE cohort = ?1 AND person = ?2")?
                        .execute(params![cohort.0, &person.0[..]])?;
                }
            }
            let is_wanted = Change::of(&people).was.is_some_and(Standing::is_wanted);
            was.push((self.trait_of(cohort)?, cohort, is_wanted));
            let mut changes = Changes::default();
            changes.push(identifier, &people);
            self.change_cohort(cohort, &changes, now)?;
        }
        self.connection
            .prepare_cached("DELETE FROM layer_mark WHERE identifier = ?1")?
            .execute([identifier])?;
        self.erase_from_log(identifier)?;
        for destination in 0..self.destinations.len() {
            self.erase_from_destination(destination, identifier, traits, &was, now)?;
        }
        Ok(())
    }

    /// Forgets what a destination does not know of a person, or makes it forget the person.
    fn erase_from_destination(
        &mut self,
        destination: usize,
        identifier: &str,
        traits: bool,
        was: &[(TraitRef, CohortRef, bool)],
        now: Millis,
    ) -> Result<(), StoreError> {
        let state = &self.destinations[destination];
        let (id, on_leave) = (state.id, state.rules.on_leave);
        let mut numbers: BTreeSet<TraitRef> = was.iter().map(|(number, ..)| *number).collect();
        for table in ["pending", "dead_letter"] {
            let mut statement = self.connection.prepare_cached(&format!(
                "SELECT trait FROM {table} WHERE destination IN (?1, -?1) AND identifier = ?2"
            ))?;
            let rows =
                statement.query_map(params![id, identifier], |row| row.get(0).map(TraitRef))?;
            for number in rows {
                numbers.insert(number?);
            }
        }
        let mut tally = Tally::new(id);
        for number in numbers {
            let dead = self.take_dead(id, identifier, number)?;
            let held = self.pending_row(id, identifier, number)?;
            match held {
                Some(held) if traits => {
                    self.change_held(
                        id,
                        &[Again {
                            identifier,
                            number,
                            wanted: Wanted::Erased,
                            express_at: Some(now),
                            held,
                        }],
                        on_leave,
                        &mut tally,
                    )?;
                    if let Some(call) = self.destinations[destination].in_flight.get_mut(identifier)
                    {
                        call.passed_over = true;
                    }
                }
                Some(held) => {
                    if held.told.needs_write(Target::of(held.wanted, on_leave)) {
                        tally.add(number, held.wanted, held.since, -1);
                    }
                    self.delete_pending(id, identifier, number)?;
                }
                None if traits => {
                    let known = was.iter().find(|(known, ..)| *known == number);
                    let following = match known {
                        Some((_, cohort, _)) => self.following(destination, *cohort)?,
                        None => Following::NoLonger,
                    };
                    let told = match (dead, known, following) {
                        (None, Some((.., is_wanted)), Following::Always) => {
                            settled(Wanted::of(*is_wanted), on_leave)
                        }
                        (None, _, Following::Never) => Told::Known(Target::Absent),
                        _ => Told::Unknown,
                    };
                    if told.needs_write(Target::Absent) {
                        let late = dead.unwrap_or_default();
                        let unheard = Unheard {
                            identifier,
                            wanted: Wanted::Erased,
                            told,
                            late,
                            express_at: Some(now),
                        };
                        self.insert_pending(id, number, unheard, now)?;
                        tally.add(number, Wanted::Erased, now, 1);
                    }
                }
                None => {}
            }
        }
        self.count(&tally)
    }
}
