//! What is still to be written, counted row by row beside the writer.

use std::collections::HashMap;

use super::read::waiting_pages;
use super::state::{settled, told_stored};
use crate::cohort::{DestinationName, OnLeave, SourceName, Wanted};
use crate::month::Month;
use crate::plan::{Load, Unwritten, UnwrittenOf, UnwrittenThere};
use crate::store::StoreError;
use crate::store::database::{Connection, OptionalRow, params};

/// What else may become pending of what the ledger holds already, but for the waiting pages.
const UNDER_WAY: &str = "
    SELECT 1 FROM route WHERE state IN (1, 3) OR state IN (0, 4) AND is_wanted = 1 OR state = 2 AND is_wanted = 0
    UNION ALL SELECT 1 FROM meta WHERE key IN ('parking', 'returning')
    UNION ALL SELECT 1 FROM erasure
    UNION ALL SELECT 1 FROM cohort WHERE standing = 1 OR hold_decision IS NOT NULL";

/// A cohort while its rows are counted.
struct Counted {
    of: UnwrittenOf,
    /// The last of the identities that were counted, by number.
    seen: u64,
}

/// What is pending at the destinations of the settings, by name.
pub fn unwritten(
    connection: &Connection,
    on_leave: &HashMap<String, OnLeave>,
    month: Month,
) -> Result<Unwritten, StoreError> {
    connection.at_one_moment(|| unwritten_now(connection, on_leave, month))
}

fn unwritten_now(
    connection: &Connection,
    on_leave: &HashMap<String, OnLeave>,
    month: Month,
) -> Result<Unwritten, StoreError> {
    let waiting_pages = waiting_pages(connection)?;
    let mut is_under_way = waiting_pages > 0 || connection.prepare_cached(UNDER_WAY)?.exists(())?;
    let known = connection
        .prepare_cached("SELECT id, name FROM destination ORDER BY id")?
        .query_map((), |row| Ok((row.get(0)?, row.get::<String>(1)?)))?
        .collect::<Result<Vec<(i64, String)>, _>>()?;
    let mut destinations = Vec::new();
    for (id, name) in known {
        let Some(on_leave) = on_leave.get(&name) else {
            continue;
        };
        let ordered = ordered(connection, id)?;
        is_under_way |= ordered.is_some();
        let calls_made = connection
            .prepare_cached("SELECT calls FROM calls WHERE destination = ?1 AND month = ?2")?
            .query_row(params![id, month.to_string()], |row| row.get(0))
            .optional()?;
        let (mut load, cohorts) = count(connection, id, *on_leave)?;
        // Whose they are, and which are pending anyway, the walk will tell.
        load.identities += ordered.unwrap_or(0);
        load.traits += ordered.unwrap_or(0);
        destinations.push(UnwrittenThere {
            name: DestinationName::from(name.as_str()),
            load,
            calls_made: calls_made.unwrap_or(0),
            cohorts,
        });
    }
    Ok(Unwritten {
        waiting_pages,
        is_under_way,
        destinations,
    })
}

/// How many traits at most the orders to write again are still to make pending; `None` where there
/// are none, but of paused cohorts.
fn ordered(connection: &Connection, destination: i64) -> Result<Option<u64>, StoreError> {
    let orders = connection
        .prepare_cached(
            "SELECT r.cohort = 0, c.paused_at IS NOT NULL, CASE WHEN r.total > r.brought_up THEN r.total - r.brought_up ELSE 0 END FROM resync r
             LEFT JOIN cohort c ON c.id = r.cohort WHERE r.destination = ?1 AND r.state = 0",
        )?
        .query_map([destination], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?))
        })?
        .collect::<Result<Vec<(bool, bool, u64)>, _>>()?;
    let sum = |of: fn(bool, bool) -> bool| {
        let some = orders
            .iter()
            .filter(|(is_of_all, waits, _)| of(*is_of_all, *waits));
        some.map(|(_, _, traits)| *traits)
            .reduce(|sum, traits| sum + traits)
    };
    // What single cohorts are about, everything is about as well.
    Ok(match sum(|is_of_all, _| is_of_all) {
        Some(all) => Some(all.saturating_sub(sum(|_, waits| waits).unwrap_or(0))),
        None => sum(|_, waits| !waits),
    })
}

fn count(
    connection: &Connection,
    destination: i64,
    on_leave: OnLeave,
) -> Result<(Load, Vec<UnwrittenOf>), StoreError> {
    let mut cohorts = cohorts(connection)?;
    let of_trait: HashMap<i64, i64> = connection
        .prepare_cached("SELECT id, cohort FROM trait WHERE cohort IS NOT NULL")?
        .query_map((), |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<Result<_, _>>()?;
    let mut rows = connection.prepare_cached(
        "SELECT identifier, trait, wanted FROM pending
         WHERE destination = ?1 AND (told IS NULL OR told <> CASE wanted WHEN 1 THEN 1 WHEN 0 THEN ?2 ELSE 0 END)
         ORDER BY identifier, trait",
    )?;
    let after_leaving = told_stored(settled(Wanted::Left, on_leave));
    let mut load = Load::default();
    let mut number = 0;
    // What is parked stands behind, by the same order of identities.
    for place in [destination, -destination] {
        let (mut last, mut is_counted) = (String::new(), false);
        rows.scan(params![place, after_leaving], |row| {
            let identifier = row.text(0)?;
            if last != identifier {
                number += 1;
                is_counted = false;
                last.clear();
                last.push_str(identifier);
            }
            let is_erased = row.get::<i64>(2)? == 2;
            let cohort = of_trait
                .get(&row.get(1)?)
                .and_then(|cohort| cohorts.get_mut(cohort));
            let waits = cohort.as_ref().is_some_and(|cohort| cohort.of.paused) && !is_erased;
            if let Some(cohort) = cohort {
                cohort.of.load.traits += 1;
                cohort.of.load.identities += u64::from(cohort.seen != number);
                cohort.seen = number;
            }
            if !waits {
                load.traits += 1;
                load.identities += u64::from(!std::mem::replace(&mut is_counted, true));
            }
            Ok::<_, StoreError>(true)
        })?;
    }
    let mut cohorts: Vec<_> = cohorts
        .into_values()
        .map(|cohort| cohort.of)
        .filter(|cohort| cohort.load.traits > 0)
        .collect();
    cohorts.sort_by(|one, other| {
        (&one.source.0, &one.cohort_id).cmp(&(&other.source.0, &other.cohort_id))
    });
    Ok((load, cohorts))
}

/// Every cohort by its number, nothing counted yet.
fn cohorts(connection: &Connection) -> Result<HashMap<i64, Counted>, StoreError> {
    Ok(connection
        .prepare_cached("SELECT id, source, cohort_id, name, paused_at IS NOT NULL FROM cohort")?
        .query_map((), |row| {
            let of = UnwrittenOf {
                source: SourceName::from(row.get::<String>(1)?.as_str()),
                cohort_id: row.get(2)?,
                name: row.get(3)?,
                paused: row.get(4)?,
                load: Load::default(),
            };
            Ok((row.get(0)?, Counted { of, seen: 0 }))
        })?
        .collect::<Result<_, _>>()?)
}
