//! Cohorts and destinations that an operator paused.
//!
//! What is pending of a paused cohort's traits is *parked*: its rows have the destination's number
//! below nought, so that the sweep and the express lane, which go by that number, never come across
//! them, however many there are. Parking what is there already, and bringing it back, are walks, a
//! piece a transaction, each written down: a kill goes on where it was. While a walk is under way a
//! row may be in either place, and a claim passes over what is not parked yet.
//!
//! Everything else finds a row by [`Ledger::found_at`] and puts one by [`Ledger::home`]. Whom an operator
//! wants erased is never parked: that is promised.
//!
//! A paused destination keeps its rows where they are: nobody claims for it.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::state::Ledger;
use crate::clock::Millis;
use crate::cohort::{DestinationName, Wanted};
use crate::store::database::{BEHIND_ALL, Connection, OptionalRow, params};
use crate::store::{CohortRef, StoreError, TraitRef};

const PARKING: i64 = 1;
const PARKED: i64 = 2;
const RETURNING: i64 = 3;

/// The traits of which rows may be parked, and whether new ones are.
#[derive(Debug)]
pub(super) struct Parking(HashMap<TraitRef, bool>);

impl Parking {
    /// Whether rows of a trait may stand in either place.
    pub(super) fn knows(&self, number: TraitRef) -> bool {
        self.0.contains_key(&number)
    }

    /// Whether what is wanted of a trait must not be called for.
    pub(super) fn holds(&self, number: TraitRef, wanted: Wanted) -> bool {
        wanted != Wanted::Erased && self.0.get(&number) == Some(&true)
    }
}

/// Where a walk stands: everything before is done.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Walk {
    /// A destination's number, or less than the next one's.
    destination: i64,
    /// The last of the identities that are done there.
    after: Option<String>,
}

/// Which way a walk moves rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Out,
    Back,
}

impl Way {
    const fn key(self) -> &'static str {
        match self {
            Way::Out => "parking",
            Way::Back => "returning",
        }
    }
}

impl Ledger {
    /// Pauses cohorts or resumes them; how many of their traits are pending.
    pub fn pause_cohorts(
        &mut self,
        cohorts: &[CohortRef],
        pauses: bool,
        now: Millis,
    ) -> Result<u64, StoreError> {
        let mut pending = 0;
        for cohort in cohorts {
            self.connection
                .prepare_cached(
                    "UPDATE cohort SET paused_at = CASE WHEN ?2 <> 0 THEN coalesce(paused_at, ?3) END WHERE id = ?1",
                )?
                .execute(params![cohort.0, pauses, now])?;
            pending += self
                .connection
                .prepare_cached(
                    "SELECT CAST(coalesce(sum(b.rows), 0) AS BIGINT) FROM destination d JOIN trait t ON t.cohort = ?1
                     JOIN backlog b ON b.destination = d.id AND b.trait = t.id",
                )?
                .query_row([cohort.0], |row| row.get::<u64>(0))?;
        }
        self.look_up_pauses()?;
        Ok(pending)
    }

    /// Pauses a destination of the settings or resumes it; how many traits are pending there, `None`
    /// where there is no such destination.
    pub fn pause_destination(
        &mut self,
        name: &DestinationName,
        pauses: bool,
        now: Millis,
    ) -> Result<Option<u64>, StoreError> {
        let state = self
            .destinations
            .iter()
            .find(|state| state.rules.name == *name);
        let Some(state) = state else {
            return Ok(None);
        };
        self.connection
            .prepare_cached(
                "UPDATE destination SET paused_at = CASE WHEN ?2 <> 0 THEN coalesce(paused_at, ?3) END WHERE id = ?1",
            )?
            .execute(params![state.id, pauses, now])?;
        let pending = self
            .connection
            .prepare_cached(
                "SELECT CAST(coalesce(sum(rows), 0) AS BIGINT) FROM backlog WHERE destination = ?1",
            )?
            .query_row([state.id], |row| row.get(0))?;
        Ok(Some(pending))
    }

    /// Writes down which traits are to be parked and which to be brought back: whenever a cohort is
    /// paused or resumed, and when a trait passed to another cohort.
    pub(super) fn look_up_pauses(&mut self) -> Result<(), StoreError> {
        self.parking.take();
        let out = self
            .connection
            .prepare_cached(
                "INSERT INTO parked (trait, state)
                     SELECT t.id, ?1 FROM cohort c JOIN trait t ON t.cohort = c.id WHERE c.paused_at IS NOT NULL
                 ON CONFLICT (trait) DO UPDATE SET state = excluded.state WHERE parked.state = ?2",
            )?
            .execute([PARKING, RETURNING])?;
        let back = self
            .connection
            .prepare_cached(
                "UPDATE parked SET state = ?1 WHERE state <> ?1 AND trait NOT IN (
                     SELECT t.id FROM cohort c JOIN trait t ON t.cohort = c.id WHERE c.paused_at IS NOT NULL)",
            )?
            .execute([RETURNING])?;
        for (way, traits) in [(Way::Out, out), (Way::Back, back)] {
            if traits > 0 {
                self.note_walk(way, &Walk::default())?;
                self.may_reroute = true;
            }
        }
        Ok(())
    }

    /// Moves a piece, of about `limit` rows looked at, of what is to be parked or brought back;
    /// whether there was anything to do.
    pub fn follow_pauses(&mut self, limit: usize) -> Result<bool, StoreError> {
        Ok(self.park_some(Way::Back, limit)? || self.park_some(Way::Out, limit)?)
    }

    fn park_some(&mut self, way: Way, limit: usize) -> Result<bool, StoreError> {
        let stored: Option<String> = self
            .connection
            .prepare_cached("SELECT value FROM meta WHERE key = ?1")?
            .query_row([way.key()], |row| row.get(0))
            .optional()?;
        let Some(stored) = stored else {
            return Ok(false);
        };
        let walk: Walk = serde_json::from_str(&stored).map_err(unreadable)?;
        let destination: Option<i64> = self
            .connection
            .prepare_cached("SELECT min(id) FROM destination WHERE id >= ?1")?
            .query_row([walk.destination], |row| row.get(0))?;
        let Some(destination) = destination else {
            self.end_walk(way)?;
            return Ok(true);
        };
        let after = walk.after.filter(|_| destination == walk.destination);
        let last = self.walk_piece(way, destination, after.as_deref(), limit)?;
        let next = match last {
            Some(_) => Walk {
                destination,
                after: last,
            },
            None => Walk {
                destination: destination + 1,
                after: None,
            },
        };
        self.note_walk(way, &next)?;
        Ok(true)
    }

    /// The last identity that is done; `None` where all of the destination are.
    fn walk_piece(
        &self,
        way: Way,
        destination: i64,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Option<String>, StoreError> {
        let from = match way {
            Way::Out => destination,
            Way::Back => -destination,
        };
        let through: Option<String> = self
            .connection
            .prepare_cached(
                "SELECT identifier FROM pending WHERE destination = ?1 AND identifier > coalesce(?2, '')
                 ORDER BY identifier LIMIT 1 OFFSET ?3",
            )?
            .query_row(params![from, after, limit.saturating_sub(1)], |row| row.get(0))
            .optional()?;
        let whom = match way {
            Way::Out => "wanted <> 2 AND trait IN",
            Way::Back => "trait NOT IN",
        };
        self.connection
            .prepare_cached(&format!(
                "UPDATE pending SET destination = -destination
                 WHERE destination = ?1 AND identifier > coalesce(?2, '') AND identifier <= ?3
                 AND {whom} (SELECT trait FROM parked WHERE state <> {RETURNING})",
            ))?
            .execute(params![
                from,
                after,
                through.as_deref().unwrap_or(&BEHIND_ALL)
            ])?;
        Ok(through)
    }

    fn end_walk(&mut self, way: Way) -> Result<(), StoreError> {
        match way {
            Way::Out => self
                .connection
                .prepare_cached("UPDATE parked SET state = ?1 WHERE state = ?2")?
                .execute([PARKED, PARKING])?,
            Way::Back => self
                .connection
                .prepare_cached("DELETE FROM parked WHERE state = ?1")?
                .execute([RETURNING])?,
        };
        self.parking.take();
        self.connection
            .prepare_cached("DELETE FROM meta WHERE key = ?1")?
            .execute([way.key()])?;
        Ok(())
    }

    fn note_walk(&self, way: Way, walk: &Walk) -> Result<(), StoreError> {
        let stored = serde_json::to_string(walk).map_err(unreadable)?;
        self.connection
            .prepare_cached("INSERT INTO meta (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = excluded.value")?
            .execute([way.key(), stored.as_str()])?;
        Ok(())
    }

    pub(super) fn parking(&self) -> Result<&Parking, StoreError> {
        if let Some(parking) = self.parking.get() {
            return Ok(parking);
        }
        let parking = self
            .connection
            .prepare_cached("SELECT trait, state <> ?1 FROM parked")?
            .query_map([RETURNING], |row| Ok((TraitRef(row.get(0)?), row.get(1)?)))?
            .collect::<Result<_, _>>()?;
        Ok(self.parking.get_or_init(|| Parking(parking)))
    }

    /// Whether what is wanted of a trait must not be called for.
    pub(super) fn is_parked(&self, number: TraitRef, wanted: Wanted) -> Result<bool, StoreError> {
        Ok(self.parking()?.holds(number, wanted))
    }

    /// The destination's number in `pending` for a row in which that is wanted.
    pub(super) fn home(
        &self,
        destination: i64,
        number: TraitRef,
        wanted: Wanted,
    ) -> Result<i64, StoreError> {
        Ok(match self.is_parked(number, wanted)? {
            true => -destination,
            false => destination,
        })
    }

    /// The destination's number in `pending` under which a row is there now; any, where there is none.
    pub(super) fn found_at(
        &self,
        destination: i64,
        identifier: &str,
        number: TraitRef,
    ) -> Result<i64, StoreError> {
        if !self.parking()?.knows(number) {
            return Ok(destination);
        }
        let place = self
            .connection
            .prepare_cached(
                "SELECT destination FROM pending WHERE destination IN (?1, -?1) AND identifier = ?2 AND trait = ?3",
            )?
            .query_row(params![destination, identifier, number.0], |row| row.get(0))
            .optional()?;
        Ok(place.unwrap_or(destination))
    }

    /// Brings a row that is in one place to where it belongs by what is wanted in it now.
    pub(super) fn bring_home(
        &self,
        destination: i64,
        place: i64,
        identifier: &str,
        number: TraitRef,
        wanted: Wanted,
    ) -> Result<(), StoreError> {
        let home = self.home(destination, number, wanted)?;
        if home != place {
            self.connection
                .prepare_cached(
                    "UPDATE pending SET destination = ?4 WHERE destination = ?1 AND identifier = ?2 AND trait = ?3",
                )?
                .execute(params![place, identifier, number.0, home])?;
        }
        Ok(())
    }
}

/// The destinations that are paused.
pub fn paused_destinations(connection: &Connection) -> Result<Vec<DestinationName>, StoreError> {
    Ok(connection
        .prepare_cached("SELECT name FROM destination WHERE paused_at IS NOT NULL")?
        .query_map((), |row| {
            Ok(DestinationName::from(row.get::<String>(0)?.as_str()))
        })?
        .collect::<Result<_, _>>()?)
}

fn unreadable(error: serde_json::Error) -> StoreError {
    StoreError::Failed(format!(
        "how far pending traits were put aside is damaged: {error}"
    ))
}
