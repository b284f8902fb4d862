//! Orders of an operator that take a while: held removals that are decided on, cohorts that are
//! retired, and people who are [erased](super::erasures). They are written down at once and carried
//! out by the fold, a little at a time, between sessions and never beside one.

use super::apply::{Changes, people_behind};
use super::cohorts::{FOLLOWED, FORGOTTEN, LEFT, RETIRING};
use super::membership::Standing;
use super::state::Ledger;
use crate::clock::Millis;
use crate::cohort::SourceName;
use crate::store::database::{OptionalRow, may_exist, params};
use crate::store::{CohortRef, HoldDecision, StoreError};

impl Ledger {
    /// Decides on held removals of cohorts; how many people are held.
    pub fn decide_held(
        &mut self,
        cohorts: &[CohortRef],
        decision: HoldDecision,
    ) -> Result<u64, StoreError> {
        let stored = match decision {
            HoldDecision::Approve => 1,
            HoldDecision::Discard => 2,
        };
        self.may_have_orders = true;
        let mut held = 0;
        for cohort in cohorts {
            held += self
                .connection
                .prepare_cached(
                    "UPDATE cohort SET hold_decision = ?2, walked_through = NULL WHERE id = ?1 AND held > 0 AND standing = ?3 RETURNING held",
                )?
                .query_row(params![cohort.0, stored, FOLLOWED], |row| row.get::<u64>(0))
                .optional()?
                .unwrap_or(0);
        }
        Ok(held)
    }

    /// Retires cohorts; how many people have the trait.
    pub fn retire(&mut self, cohorts: &[CohortRef]) -> Result<u64, StoreError> {
        self.may_have_orders = true;
        let mut people = 0;
        for cohort in cohorts {
            people += self
                .connection
                .prepare_cached(
                    "UPDATE cohort SET standing = ?2, walked_through = NULL, hold_decision = NULL, held_session = NULL, held_since = NULL,
                            began_again = NULL, first_applied_at = NULL
                     WHERE id = ?1 AND standing = ?3 RETURNING members + held + kept",
                )?
                .query_row(params![cohort.0, RETIRING, FOLLOWED], |row| row.get::<u64>(0))
                .optional()?
                .unwrap_or(0);
            self.connection
                .prepare_cached(
                    "UPDATE session SET state = 3, is_closed = 1, is_witness = 0 WHERE cohort = ?1 AND (state <> 3 OR is_witness = 1)",
                )?
                .execute([cohort.0])?;
        }
        self.last_session = None;
        Ok(people)
    }

    /// Carries out a piece of an order, of about `limit` people; whether there was one.
    pub fn carry_out(&mut self, limit: usize, now: Millis) -> Result<bool, StoreError> {
        if !self.may_have_orders || self.is_session_under_way()? {
            return Ok(false);
        }
        let is_there = self.erase_some(now)?
            || self.decide_some(limit, now)?
            || self.retire_some(limit, now)?;
        self.may_have_orders = is_there;
        Ok(is_there)
    }

    /// Whether a session was applied in part, before a kill, say: what is decided on its removals
    /// is meant for all of them.
    fn is_session_under_way(&self) -> Result<bool, StoreError> {
        Ok(self
            .connection
            .prepare_cached(
                "SELECT 1 FROM session WHERE state = 1 AND applied_through IS NOT NULL",
            )?
            .exists(())?)
    }

    fn decide_some(&mut self, limit: usize, now: Millis) -> Result<bool, StoreError> {
        let order = self
            .connection
            .prepare_cached(
                "SELECT id, hold_decision, walked_through FROM cohort WHERE hold_decision IS NOT NULL LIMIT 1",
            )?
            .query_row((), |row| {
                Ok((
                    CohortRef(row.get(0)?),
                    row.get::<i64>(1)?,
                    row.get::<Option<String>>(2)?,
                ))
            })
            .optional()?;
        let Some((cohort, decision, after)) = order else {
            return Ok(false);
        };
        let becomes = match decision {
            1 => Standing::Left,
            _ => Standing::Kept,
        };
        // `standing >= 2` is what the index is made of.
        let identifiers = self.identifiers(
            "SELECT DISTINCT identifier FROM member WHERE cohort = ?1 AND identifier > coalesce(?2, '') AND standing >= 2 AND standing = 2 ORDER BY identifier LIMIT ?3",
            cohort,
            after.as_deref(),
            limit,
        )?;
        let last = self.change_standings(cohort, &identifiers, now, |standing| match standing {
            Standing::Held => becomes,
            other => other,
        })?;
        if identifiers.len() == limit {
            self.walked(cohort, last)?;
        } else {
            self.connection
                .prepare_cached(
                    "UPDATE cohort SET hold_decision = NULL, walked_through = NULL, held_session = NULL, held_since = NULL WHERE id = ?1",
                )?
                .execute([cohort.0])?;
        }
        Ok(true)
    }

    fn retire_some(&mut self, limit: usize, now: Millis) -> Result<bool, StoreError> {
        let order = self
            .connection
            .prepare_cached("SELECT id, walked_through FROM cohort WHERE standing = ?1 LIMIT 1")?
            .query_row([RETIRING], |row| {
                Ok((CohortRef(row.get(0)?), row.get::<Option<String>>(1)?))
            })
            .optional()?;
        let Some((cohort, after)) = order else {
            return Ok(false);
        };
        let identifiers = self.identifiers(
            "SELECT DISTINCT identifier FROM member WHERE cohort = ?1 AND identifier > coalesce(?2, '') ORDER BY identifier LIMIT ?3",
            cohort,
            after.as_deref(),
            limit,
        )?;
        let last = self.change_standings(cohort, &identifiers, now, |_| Standing::Left)?;
        if identifiers.len() == limit {
            self.walked(cohort, last)?;
        } else {
            self.connection
                .prepare_cached(
                    "UPDATE cohort SET standing = ?2, walked_through = NULL WHERE id = ?1",
                )?
                .execute([cohort.0, LEFT])?;
            // Once people are forgotten, what was written may still be watched, in case an older
            // call lands after all.
            self.connection
                .prepare_cached(
                    "INSERT INTO meta (key, value) SELECT 'strangers:' || trait, 1 FROM cohort WHERE id = ?1 ON CONFLICT (key) DO NOTHING",
                )?
                .execute([cohort.0])?;
        }
        Ok(true)
    }

    fn identifiers(
        &self,
        sql: &str,
        cohort: CohortRef,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<String>, StoreError> {
        Ok(self
            .connection
            .prepare_cached(sql)?
            .query_map(
                params![cohort.0, after, i64::try_from(limit).unwrap_or(i64::MAX)],
                |row| row.get(0),
            )?
            .collect::<Result<_, _>>()?)
    }

    /// Changes what people are to a cohort; the last of them.
    fn change_standings(
        &mut self,
        cohort: CohortRef,
        identifiers: &[String],
        now: Millis,
        becomes: impl Fn(Standing) -> Standing,
    ) -> Result<Option<String>, StoreError> {
        let mut changes = Changes::default();
        for identifier in identifiers {
            let mut people = people_behind(&self.connection, cohort, identifier)?;
            for person in &mut people {
                person.now = person.was.map(&becomes);
            }
            changes.push(identifier, &people);
        }
        self.change_cohort(cohort, &changes, now)?;
        Ok(identifiers.last().cloned())
    }

    fn walked(&self, cohort: CohortRef, through: Option<String>) -> Result<(), StoreError> {
        self.connection
            .prepare_cached("UPDATE cohort SET walked_through = ?2 WHERE id = ?1")?
            .execute(params![cohort.0, through])?;
        Ok(())
    }

    /// Forgets the people of a retired cohort once every destination knows that they left.
    pub(super) fn forget_retired(&mut self, limit: usize) -> Result<usize, StoreError> {
        let cohort = self
            .connection
            .prepare_cached(
                "SELECT id FROM cohort WHERE standing = ?1 AND NOT EXISTS (
                     SELECT 1 FROM destination d JOIN trait t ON t.cohort = cohort.id JOIN backlog b ON b.destination = d.id AND b.trait = t.id AND b.rows > 0) LIMIT 1",
            )?
            .query_row([LEFT], |row| row.get(0).map(CohortRef))
            .optional()?;
        let Some(cohort) = cohort else {
            return Ok(0);
        };
        let people = self.forget_people(cohort, limit)?;
        let holders = self
            .connection
            .prepare_cached(
                "DELETE FROM holder WHERE (cohort, person) IN (SELECT cohort, person FROM holder WHERE cohort = ?1 LIMIT ?2)",
            )?
            .execute(params![cohort.0, i64::try_from(limit).unwrap_or(i64::MAX)])?;
        if people + holders == 0 {
            self.connection
                .prepare_cached("DELETE FROM set_aside WHERE cohort = ?1")?
                .execute([cohort.0])?;
            self.connection
                .prepare_cached(
                    "UPDATE cohort SET standing = ?2, members = 0, leavers = 0, held = 0, kept = 0, first_applied_at = NULL WHERE id = ?1",
                )?
                .execute([cohort.0, FORGOTTEN])?;
        }
        Ok(people + holders + 1)
    }

    /// Forgets leavers, and counts them out: a full sync may come before all are forgotten.
    fn forget_people(&self, cohort: CohortRef, limit: usize) -> Result<usize, StoreError> {
        let identifiers = self.identifiers(
            "SELECT DISTINCT identifier FROM member WHERE cohort = ?1 AND identifier > coalesce(?2, '') LIMIT ?3",
            cohort,
            None,
            limit,
        )?;
        let mut delete = self
            .connection
            .prepare_cached("DELETE FROM member WHERE cohort = ?1 AND identifier = ?2")?;
        for identifier in &identifiers {
            delete.execute(params![cohort.0, identifier])?;
        }
        self.connection
            .prepare_cached("UPDATE cohort SET leavers = leavers - ?2 WHERE id = ?1")?
            .execute(params![cohort.0, identifiers.len() as i64])?;
        Ok(identifiers.len())
    }

    /// The cohorts an operator means; `None` where there are none.
    pub fn meant(
        &self,
        source: &SourceName,
        cohort_id: &str,
    ) -> Result<Option<Vec<CohortRef>>, StoreError> {
        if !may_exist(cohort_id) {
            return Ok(None);
        }
        let cohorts = self.cohorts_named(source, cohort_id)?;
        Ok((!cohorts.is_empty()).then_some(cohorts))
    }
}
