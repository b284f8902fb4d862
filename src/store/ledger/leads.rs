//! Where the settings lead the cohorts of a ledger, beside what they are there now.

use std::path::Path;

use rusqlite::Connection;

use super::routes::Following;
use crate::cohort::{DestinationName, SourceName};
use crate::route::{Routed, Routes};
use crate::store::sqlite::connect_reader;
use crate::store::{CohortRef, GoesNowhere, RouteChange, StoreError};

/// A cohort and a destination.
pub(super) struct Lead {
    pub(super) cohort: CohortRef,
    /// The destination's number in the ledger; `None` where it is new to it.
    pub(super) destination: Option<i64>,
    /// Its place among those that were asked about.
    place: usize,
    /// Whether the settings lead there.
    pub(super) is_led: bool,
    /// Whether they did so when that was last written down.
    pub(super) was_led: bool,
    following: Following,
}

/// Where the settings lead everything.
pub(super) struct Leads {
    /// Every pair of a cohort and a destination.
    pub(super) pairs: Vec<Lead>,
    /// The destinations by place: those of the settings, then those that the ledger alone knows, to
    /// which nothing leads.
    destinations: Vec<DestinationName>,
    nowhere: Vec<GoesNowhere>,
}

/// Looks everything up.
pub(super) fn leads(
    connection: &Connection,
    destinations: &[DestinationName],
    routes: &Routes,
) -> Result<Leads, StoreError> {
    let known = connection
        .prepare("SELECT name, id FROM destination ORDER BY id")?
        .query_map([], |row| {
            let name = DestinationName::from(row.get::<_, String>(0)?.as_str());
            Ok((name, row.get::<_, i64>(1)?))
        })?
        .collect::<Result<Vec<_>, _>>()?;
    let others = known.iter().map(|(name, _)| name);
    let others = others.filter(|name| !destinations.contains(name));
    let all: Vec<DestinationName> = destinations.iter().chain(others).cloned().collect();
    let ids: Vec<Option<i64>> = all
        .iter()
        .map(|name| {
            known
                .iter()
                .find(|(other, _)| other == name)
                .map(|(_, id)| *id)
        })
        .collect();

    let mut pair = connection
        .prepare("SELECT is_wanted, state FROM route WHERE cohort = ?1 AND destination = ?2")?;
    let mut statement = connection.prepare(
        "SELECT id, source, project_id, cohort_id, name FROM cohort ORDER BY source, cohort_id",
    )?;
    let mut rows = statement.query([])?;
    let (mut pairs, mut nowhere) = (Vec::new(), Vec::new());
    while let Some(row) = rows.next()? {
        let cohort = CohortRef(row.get(0)?);
        let text = |column: usize| row.get_ref(column)?.as_str().map_err(rusqlite::Error::from);
        let routed = Routed {
            source: text(1)?,
            project_id: text(2)?,
            cohort_id: text(3)?,
            name: text(4)?,
        };
        let before = pairs.len();
        for (place, (name, id)) in all.iter().zip(&ids).enumerate() {
            let (was_led, state) = match id {
                Some(id) => {
                    let mut rows = pair.query([cohort.0, *id])?;
                    match rows.next()? {
                        Some(row) => (row.get(0)?, row.get(1)?),
                        None => (false, 0),
                    }
                }
                None => (false, 0),
            };
            pairs.push(Lead {
                cohort,
                destination: *id,
                place,
                is_led: place < destinations.len() && routes.lead(routed, name),
                was_led,
                following: Following::from_stored(state),
            });
        }
        if !pairs[before..].iter().any(|lead| lead.is_led) {
            nowhere.push(GoesNowhere {
                source: SourceName::from(routed.source),
                cohort_id: routed.cohort_id.to_owned(),
                name: routed.name.to_owned(),
            });
        }
    }
    Ok(Leads {
        pairs,
        destinations: all,
        nowhere,
    })
}

/// What the next start would change in where the cohorts of a ledger go, which may be in use, and
/// those that go nowhere; changes nothing.
///
/// # Errors
/// Where the ledger cannot be read.
pub fn route_changes(
    path: &Path,
    destinations: &[DestinationName],
    routes: &Routes,
) -> Result<(Vec<RouteChange>, Vec<GoesNowhere>), StoreError> {
    let connection = connect_reader(path)?;
    let Leads {
        pairs,
        destinations,
        nowhere,
    } = leads(&connection, destinations, routes)?;
    let changes = destinations
        .into_iter()
        .enumerate()
        .map(|(place, destination)| {
            let count = |which: fn(&Lead) -> bool| {
                let there = pairs.iter().filter(|lead| lead.place == place);
                there.filter(|lead| which(lead)).count()
            };
            RouteChange {
                destination,
                cohorts: count(|lead| lead.is_led),
                begin: count(|lead| lead.is_led && lead.following != Following::Always),
                end: count(|lead| !lead.is_led && lead.following.hears()),
            }
        });
    Ok((changes.collect(), nowhere))
}
