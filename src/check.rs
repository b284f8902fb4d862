//! `cohort-bridge check`: is everything that `serve` needs there, and does a written trait stay?

use std::io::Write;

use crate::app::{all_source_rules, open_store};
use crate::clock::Clock;
use crate::cohort::Target;
use crate::config::{Database, Destination, Settings};
use crate::flagsmith::{CANARY, Disposition, Flagsmith, Storage};
use crate::route::Routes;
use crate::store::{KeyChange, RouteChange, StoreError};
use crate::store::{SCHEMA_VERSION, key_changes, route_changes, schema_version};

/// The identity that is written to: the canary's own value is what `serve` knows an environment by.
const CHECKED: &str = "cohort_bridge_check";

/// One row of the table.
struct Row {
    what: String,
    works: bool,
    detail: String,
}

/// Checks the settings' ledger and destinations, prints a table, and says whether all is well.
///
/// # Errors
/// Where the table cannot be written.
pub async fn check(
    settings: &Settings,
    clock: &dyn Clock,
    out: &mut dyn Write,
) -> std::io::Result<bool> {
    let mut rows = vec![Row {
        what: "settings".into(),
        works: true,
        detail: format!(
            "{} source(s), {} destination(s)",
            settings.sources.len(),
            settings.destinations.len()
        ),
    }];
    rows.extend(settings.warnings.iter().map(|warning| Row {
        what: "warning".into(),
        works: true,
        detail: warning.clone(),
    }));
    rows.extend(ledger(settings).await);
    for destination in &settings.destinations {
        rows.push(storage(destination, clock).await);
    }
    let width = rows.iter().map(|row| row.what.len()).max().unwrap_or(0);
    for row in &rows {
        let mark = if row.works { "ok  " } else { "FAIL" };
        writeln!(out, "{mark}  {:width$}  {}", row.what, row.detail)?;
    }
    Ok(rows.iter().all(|row| row.works))
}

async fn ledger(settings: &Settings) -> Vec<Row> {
    let database = &settings.database;
    let row = |works, detail| Row {
        what: "ledger".into(),
        works,
        detail,
    };
    let error = match open_store(settings).await {
        Ok(store) => {
            let ledger = match store.ready().await {
                Ok(()) => row(true, format!("{database}: opened, migrated and written to")),
                Err(error) => row(false, error.to_string()),
            };
            let next_start = next_start(settings).await;
            store.close().await;
            return [ledger].into_iter().chain(next_start).collect();
        }
        Err(error) => error,
    };
    let version = match database {
        Database::Sqlite(path) => schema_version(path).ok().flatten(),
        Database::Postgres(_) => None,
    };
    match (error.downcast_ref::<StoreError>(), version) {
        // A service that runs beside the check is no fault.
        (Some(StoreError::InUse { .. }), Some(version)) => {
            let detail =
                format!("{database}: in use by a running service, schema version {version}");
            let is_known = version == SCHEMA_VERSION;
            let mut rows = vec![row(true, detail)];
            if is_known {
                rows.extend(next_start(settings).await);
            }
            rows
        }
        _ => vec![row(false, format!("{error:#}"))],
    }
}

/// What the next start makes of the ledger.
async fn next_start(settings: &Settings) -> Vec<Row> {
    let settings = settings.clone();
    let looking = tokio::task::spawn_blocking(move || {
        let mut rows = trait_keys(&settings);
        rows.extend(routes(&settings));
        rows
    });
    looking.await.unwrap_or_default()
}

/// Where cohorts go, as far as not everything goes everywhere as it did.
fn routes(settings: &Settings) -> Vec<Row> {
    let row = |works, detail| Row {
        what: "route".into(),
        works,
        detail,
    };
    let destinations = settings.destinations.iter();
    let destinations: Vec<_> = destinations.map(|there| there.name.clone()).collect();
    let (changes, nowhere) =
        match route_changes(&settings.database, &destinations, &settings.routes) {
            Ok(found) => found,
            Err(error) => return vec![row(false, error.to_string())],
        };
    let is_plain = settings.routes == Routes::default();
    let changes = changes
        .iter()
        .filter(|change| !is_plain || change.begin + change.end > 0)
        .filter_map(route_change)
        .map(|detail| row(true, detail));
    let nowhere = nowhere.iter().map(|cohort| {
        let detail = format!(
            "cohort {} of source {} ({}): no route leads it anywhere",
            cohort.cohort_id, cohort.source, cohort.name
        );
        row(true, detail)
    });
    changes.chain(nowhere).collect()
}

fn route_change(change: &RouteChange) -> Option<String> {
    let RouteChange {
        destination,
        cohorts,
        begin,
        end,
    } = change;
    let begin = (*begin > 0).then(|| format!("brings up {begin} of them from the ledger"));
    let end = (*end > 0).then(|| {
        format!(
            "drops what is pending of {end} that go there no longer; their traits stay as they are"
        )
    });
    let does: Vec<String> = begin.into_iter().chain(end).collect();
    match (cohorts, does.is_empty()) {
        (0, true) => None,
        (_, true) => Some(format!("destination {destination}: {cohorts} cohort(s)")),
        _ => Some(format!(
            "destination {destination}: {cohorts} cohort(s); the next start {}",
            does.join(" and ")
        )),
    }
}

/// What the next start makes of the trait keys in the settings file. Read beside whoever has the
/// ledger open; it is `serve` that changes them.
fn trait_keys(settings: &Settings) -> Vec<Row> {
    let row = |works, detail| Row {
        what: "trait key".into(),
        works,
        detail,
    };
    match key_changes(&settings.database, &all_source_rules(settings)) {
        Ok(changes) => changes
            .iter()
            .map(|change| row(true, at_next_start(change)))
            .collect(),
        Err(error) => vec![row(false, error.to_string())],
    }
}

fn at_next_start(change: &KeyChange) -> String {
    format!(
        "cohort {} of source {} ({}): {:?} takes the place of {:?} at the next start",
        change.cohort_id, change.source, change.name, change.key, change.former_key
    )
}

async fn storage(destination: &Destination, clock: &dyn Clock) -> Row {
    let what = format!("destination {}", destination.name);
    if destination.dry_run {
        return Row {
            what,
            works: true,
            detail: "not asked, since this is a dry run".into(),
        };
    }
    let client = match Flagsmith::new(destination) {
        Ok(client) => client,
        Err(error) => {
            return Row {
                what,
                works: false,
                detail: error.to_string(),
            };
        }
    };
    let value = format!("check {}", clock.now());
    let found = client.probe_storage_of(CHECKED, &value).await;
    // The identity stays: the API of the SDKs cannot remove one.
    let removed = client.write(CHECKED, &[(CANARY, Target::Absent)]).await;
    let left = match removed {
        Disposition::Written { .. } => "removed again",
        _ => "could not be removed again",
    };
    let (works, detail) = match found {
        Storage::Stays => (
            true,
            format!(
                "the key works; trait {CANARY} written to identity {CHECKED}, read back and {left}"
            ),
        ),
        Storage::StaysBlank => (
            true,
            format!(
                "the key works; the environment hides sensitive data, so trait {CANARY} of identity {CHECKED} was stored and not shown, and {left}"
            ),
        ),
        Storage::NotStored { reason } | Storage::Fails { reason } => (false, reason),
        Storage::Unseen { error, .. } => (false, error),
        Storage::Unreachable { error, .. } => (false, format!("cannot be reached: {error}")),
    };
    Row {
        what,
        works,
        detail,
    }
}
