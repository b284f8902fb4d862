//! Which cohorts are followed for which destinations: a row of `route` for each pair.
//!
//! While a pair is followed, nothing pending means that the destination was told what the ledger
//! says. A route that the settings add makes everybody of the cohort pending first, since nothing is
//! known of what the destination holds; one that they take away drops what is pending, and leaves
//! the traits as they are. Both are walks, a piece a transaction, each written down: a kill goes on
//! where it was. They are the fold's to take, between its steps.
//!
//! What the settings say is looked up by the name that a cohort has: at the start and when it is
//! renamed.

use super::cohorts::CohortKey;
use super::leads::leads;
use super::state::Ledger;
use crate::backoff::LONGEST_ADVISED;
use crate::clock::{Millis, millis};
use crate::route::Routed;
use crate::store::database::{BEHIND_ALL, OptionalRow, params};
use crate::store::{CohortRef, StoreError};

const NEVER: i64 = 0;
const BEGINNING: i64 = 1;
const FOLLOWED: i64 = 2;
const ENDING: i64 = 3;
const ENDED: i64 = 4;

/// Milliseconds that a call may still be under way when its cohort is no longer followed, with room:
/// the longest time limit is 60 s.
const CALL_MS: Millis = 120_000;

/// Rows of `pending` that one piece looks at while cohorts are forgotten.
const ROWS_A_PIECE: usize = 8_192;

/// What a cohort is to a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Following {
    /// The destination was never told anything of it.
    Never,
    /// It is told of every change, and of everybody, one after the other.
    Beginning,
    /// It is told of every change.
    Always,
    /// It was told once, and what it holds now is not known.
    NoLonger,
}

impl Following {
    /// Of `route.state`.
    pub(super) fn from_stored(state: i64) -> Self {
        match state {
            NEVER => Following::Never,
            BEGINNING => Following::Beginning,
            FOLLOWED => Following::Always,
            _ => Following::NoLonger,
        }
    }

    /// Whether the destination hears of changes.
    pub(super) fn hears(self) -> bool {
        matches!(self, Following::Beginning | Following::Always)
    }
}

impl Ledger {
    /// What a cohort is to a destination.
    pub(super) fn following(
        &self,
        destination: usize,
        cohort: CohortRef,
    ) -> Result<Following, StoreError> {
        let state = self
            .connection
            .prepare_cached("SELECT state FROM route WHERE cohort = ?1 AND destination = ?2")?
            .query_row([cohort.0, self.destinations[destination].id], |row| {
                row.get::<i64>(0)
            })
            .optional()?;
        Ok(Following::from_stored(state.unwrap_or(NEVER)))
    }

    /// Writes down where the settings lead every cohort that there is.
    pub(super) fn look_up_routes(&mut self) -> Result<(), StoreError> {
        let names = self.destinations.iter().map(|state| &state.rules.name);
        let names: Vec<_> = names.cloned().collect();
        let leads = leads(&self.connection, &names, &self.routes)?;
        for lead in leads.pairs {
            if let Some(destination) = lead.destination
                && lead.is_led != lead.was_led
            {
                self.want(lead.cohort, destination, lead.is_led, NEVER, 0)?;
            }
        }
        Ok(())
    }

    /// A cohort is new: it is followed from its first page on.
    pub(super) fn follow_new(
        &mut self,
        cohort: CohortRef,
        key: &CohortKey,
        name: &str,
        now: Millis,
    ) -> Result<(), StoreError> {
        for destination in 0..self.destinations.len() {
            if self.is_led(destination, key, name) {
                let id = self.destinations[destination].id;
                self.want(cohort, id, true, FOLLOWED, now)?;
            }
        }
        Ok(())
    }

    /// A cohort has another name: the settings may lead it elsewhere.
    pub(super) fn follow_renamed(
        &mut self,
        cohort: CohortRef,
        key: &CohortKey,
        name: &str,
    ) -> Result<(), StoreError> {
        for destination in 0..self.destinations.len() {
            let is_led = self.is_led(destination, key, name);
            self.want(cohort, self.destinations[destination].id, is_led, NEVER, 0)?;
        }
        self.may_reroute = true;
        Ok(())
    }

    fn is_led(&self, destination: usize, key: &CohortKey, name: &str) -> bool {
        let routed = Routed {
            source: &key.source.0,
            project_id: &key.project_id,
            cohort_id: &key.cohort_id,
            name,
        };
        let destination = &self.destinations[destination].rules.name;
        self.routes.lead(routed, destination)
    }

    /// Notes where the settings lead; `state` is that of a pair that there was not yet.
    fn want(
        &self,
        cohort: CohortRef,
        destination: i64,
        is_wanted: bool,
        state: i64,
        since: Millis,
    ) -> Result<(), StoreError> {
        self.connection
            .prepare_cached(
                "INSERT INTO route (cohort, destination, is_wanted, state, since) VALUES (?1, ?2, ?3, ?4, ?5)
                 ON CONFLICT (cohort, destination) DO UPDATE SET is_wanted = excluded.is_wanted",
            )?
            .execute(params![cohort.0, destination, is_wanted, state, since])?;
        Ok(())
    }

    /// Does a piece of what it takes to follow the cohorts that the settings lead somewhere, and no
    /// others; whether there was anything to do.
    pub fn follow_routes(&mut self, limit: usize, now: Millis) -> Result<bool, StoreError> {
        Ok(self.end_some(now)?
            || self.end_all(now)?
            || self.bring_up_some(limit, now)?
            || self.begin_all(now)?)
    }

    /// Stops following whatever the settings lead to a destination no longer.
    fn end_all(&mut self, now: Millis) -> Result<bool, StoreError> {
        let destination: Option<(i64, String)> = self
            .connection
            .prepare_cached(
                "SELECT d.id, d.name FROM route r JOIN destination d ON d.id = r.destination
                 WHERE r.state IN (?1, ?2) AND r.is_wanted = 0 LIMIT 1",
            )?
            .query_row([BEGINNING, FOLLOWED], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        let Some((id, name)) = destination else {
            return Ok(false);
        };
        let cohorts = self
            .connection
            .prepare_cached(
                "UPDATE route SET state = ?4, since = ?5, walked_through = NULL
                 WHERE state IN (?1, ?2) AND is_wanted = 0 AND destination = ?3",
            )?
            .execute(params![BEGINNING, FOLLOWED, id, ENDING, now])?;
        self.connection
            .prepare_cached("UPDATE destination SET forgotten_through = NULL WHERE id = ?1")?
            .execute([id])?;
        tracing::warn!(
            destination = name,
            cohorts,
            "the settings lead these cohorts there no longer: what is pending is dropped, and traits stay as they are"
        );
        Ok(true)
    }

    /// Drops a piece of what is pending at a destination for cohorts that are not followed there any
    /// more. Whom an operator wants erased stays: that is promised.
    fn end_some(&mut self, now: Millis) -> Result<bool, StoreError> {
        let destination: Option<(i64, Option<String>)> = self
            .connection
            .prepare_cached(
                "SELECT d.id, d.forgotten_through FROM route r JOIN destination d ON d.id = r.destination
                 WHERE r.state = ?1 LIMIT 1",
            )?
            .query_row([ENDING], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        let Some((id, after)) = destination else {
            return Ok(false);
        };
        if self.end_dead_letters(id)? {
            return Ok(true);
        }
        // Of what is parked too.
        let mut through: Option<String> = None;
        for place in [id, -id] {
            let full: Option<String> = self
                .connection
                .prepare_cached(
                    "SELECT identifier FROM pending WHERE destination = ?1 AND identifier > coalesce(?2, '')
                     ORDER BY identifier LIMIT 1 OFFSET ?3",
                )?
                .query_row(params![place, after, ROWS_A_PIECE - 1], |row| row.get(0))
                .optional()?;
            through = through.into_iter().chain(full).min();
        }
        self.connection
            .prepare_cached(
                "DELETE FROM pending WHERE destination IN (?1, -?1) AND identifier > coalesce(?2, '') AND identifier <= ?3 AND wanted <> 2
                 AND trait IN (SELECT t.id FROM route r JOIN trait t ON t.cohort = r.cohort WHERE r.state = ?4 AND r.destination = ?1)",
            )?
            .execute(params![id, after, through.as_deref().unwrap_or(&BEHIND_ALL), ENDING])?;
        if through.is_some() {
            self.connection
                .prepare_cached("UPDATE destination SET forgotten_through = ?2 WHERE id = ?1")?
                .execute(params![id, through])?;
            return Ok(true);
        }
        self.connection
            .prepare_cached(
                "DELETE FROM backlog WHERE destination = ?1 AND wanted <> 2
                 AND trait IN (SELECT t.id FROM route r JOIN trait t ON t.cohort = r.cohort WHERE r.state = ?2 AND r.destination = ?1)",
            )?
            .execute([id, ENDING])?;
        self.connection
            .prepare_cached(
                "UPDATE route SET state = ?3, since = ?4 WHERE state = ?1 AND destination = ?2",
            )?
            .execute(params![ENDING, id, ENDED, now])?;
        Ok(true)
    }

    /// Drops dead letters of these cohorts; whether there were any.
    fn end_dead_letters(&self, destination: i64) -> Result<bool, StoreError> {
        let dropped = self
            .connection
            .prepare_cached(
                "DELETE FROM dead_letter WHERE (destination, identifier, trait) IN (
                     SELECT destination, identifier, trait FROM dead_letter
                     WHERE destination = ?1 AND wanted <> 2
                     AND trait IN (SELECT t.id FROM route r JOIN trait t ON t.cohort = r.cohort WHERE r.state = ?2 AND r.destination = ?1)
                     LIMIT ?3)",
            )?
            .execute(params![destination, ENDING, ROWS_A_PIECE])?;
        Ok(dropped > 0)
    }

    /// Begins to follow whatever the settings lead to a destination. Where a cohort was followed
    /// before, not until the last call of that time can have landed.
    fn begin_all(&mut self, now: Millis) -> Result<bool, StoreError> {
        let mut any = false;
        for state in &self.destinations {
            let ended_before = now - state.rules.late_write_ms - CALL_MS;
            // As `is_due` has it: beyond this the clock was set back.
            let ended_after = ended_before + millis(LONGEST_ADVISED);
            let cohorts = self
                .connection
                .prepare_cached(
                    "UPDATE route SET state = ?3, since = ?4, walked_through = NULL
                     WHERE (state = ?1 OR state = ?2 AND since NOT BETWEEN ?5 + 1 AND ?6) AND is_wanted = 1 AND destination = ?7",
                )?
                .execute(params![NEVER, ENDED, BEGINNING, now, ended_before, ended_after, state.id])?;
            if cohorts > 0 {
                tracing::info!(
                    destination = %state.rules.name, cohorts,
                    "the destination is brought up from the ledger"
                );
                any = true;
            }
        }
        Ok(any)
    }

    /// Makes a piece of a cohort pending for a destination that begins to follow it.
    fn bring_up_some(&mut self, limit: usize, now: Millis) -> Result<bool, StoreError> {
        let pair: Option<(i64, i64, Option<String>)> = self
            .connection
            .prepare_cached(
                "SELECT cohort, destination, walked_through FROM route WHERE state = ?1 AND is_wanted = 1 LIMIT 1",
            )?
            .query_row([BEGINNING], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
            .optional()?;
        let Some((cohort, id, after)) = pair else {
            return Ok(false);
        };
        let destination = self.destinations.iter().position(|state| state.id == id);
        let last = match destination {
            Some(destination) => {
                self.assert_some(destination, CohortRef(cohort), after.as_deref(), limit, now)?
            }
            None => None,
        };
        let state = match last {
            Some(_) => BEGINNING,
            None => FOLLOWED,
        };
        self.connection
            .prepare_cached(
                "UPDATE route SET state = ?3, since = ?4, walked_through = ?5 WHERE cohort = ?1 AND destination = ?2",
            )?
            .execute(params![cohort, id, state, now, last])?;
        Ok(true)
    }
}
