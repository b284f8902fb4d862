//! Where the settings lead the cohorts of a ledger, beside what they are there now.

use super::routes::Following;
use crate::cohort::{DestinationName, SourceName};
use crate::route::{Routed, Routes};
use crate::store::database::{Connection, OptionalRow};
use crate::store::{CohortRef, Database, GoesNowhere, RouteChange, StoreError};

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
        .prepare_cached("SELECT name, id FROM destination ORDER BY id")?
        .query_map((), |row| {
            let name = DestinationName::from(row.get::<String>(0)?.as_str());
            Ok((name, row.get::<i64>(1)?))
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

    let mut pair = connection.prepare_cached(
        "SELECT is_wanted, state FROM route WHERE cohort = ?1 AND destination = ?2",
    )?;
    let mut statement = connection.prepare_cached(
        "SELECT id, source, project_id, cohort_id, name FROM cohort ORDER BY source, cohort_id",
    )?;
    let cohorts = statement.query_map((), |row| {
        let text = |column| row.get::<String>(column);
        Ok((row.get(0)?, [text(1)?, text(2)?, text(3)?, text(4)?]))
    })?;
    let (mut pairs, mut nowhere) = (Vec::new(), Vec::new());
    for cohort in cohorts {
        let (number, [source, project_id, cohort_id, name]) = cohort?;
        let cohort = CohortRef(number);
        let routed = Routed {
            source: &source,
            project_id: &project_id,
            cohort_id: &cohort_id,
            name: &name,
        };
        let before = pairs.len();
        for (place, (name, id)) in all.iter().zip(&ids).enumerate() {
            let (was_led, state) = match id {
                Some(id) => pair
                    .query_row([cohort.0, *id], |row| Ok((row.get(0)?, row.get(1)?)))
                    .optional()?
                    .unwrap_or((false, 0)),
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
    database: &Database,
    destinations: &[DestinationName],
    routes: &Routes,
) -> Result<(Vec<RouteChange>, Vec<GoesNowhere>), StoreError> {
    let connection = database.reader()?;
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
