//! `cohort-bridge check`: is everything that `serve` needs there, and does a written trait stay?

use std::io::Write;
use std::path::Path;

use crate::app::{all_source_rules, open_store};
use crate::clock::Clock;
use crate::config::{Database, Destination, Settings};
use crate::flagsmith::{CANARY, Flagsmith, Storage};
use crate::store::sqlite::{SCHEMA_VERSION, key_changes, schema_version};
use crate::store::{KeyChange, StoreError};

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
    let Database::Sqlite(path) = &settings.database;
    let row = |works, detail| Row {
        what: "ledger".into(),
        works,
        detail,
    };
    let error = match open_store(settings) {
        Ok(store) => {
            let ledger = match store.ready().await {
                Ok(()) => row(
                    true,
                    format!("{}: opened, migrated and written to", path.display()),
                ),
                Err(error) => row(false, error.to_string()),
            };
            let trait_keys = trait_keys(settings, path);
            store.close().await;
            return [ledger].into_iter().chain(trait_keys).collect();
        }
        Err(error) => error,
    };
    match (error.downcast_ref::<StoreError>(), schema_version(path)) {
        // A service that runs beside the check is no fault.
        (Some(StoreError::InUse { .. }), Ok(Some(version))) => {
            let detail = format!(
                "{}: in use by a running service, schema version {version}",
                path.display()
            );
            let is_known = version == SCHEMA_VERSION;
            let trait_keys = is_known.then(|| trait_keys(settings, path));
            let rows = [row(true, detail)].into_iter();
            rows.chain(trait_keys.into_iter().flatten()).collect()
        }
        _ => vec![row(false, format!("{error:#}"))],
    }
}

/// What the next start makes of the trait keys in the settings file. Read beside whoever has the
/// ledger open; it is `serve` that changes them.
fn trait_keys(settings: &Settings, path: &Path) -> Vec<Row> {
    let row = |works, detail| Row {
        what: "trait key".into(),
        works,
        detail,
    };
    match key_changes(path, &all_source_rules(settings)) {
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
    let (works, detail) = match client.probe_storage(&value).await {
        Storage::Stays => (
            true,
            format!("the key works; trait {CANARY} written to identity {CANARY} and read back"),
        ),
        Storage::StaysBlank => (
            true,
            format!(
                "the key works; the environment hides sensitive data, so trait {CANARY} of identity {CANARY} is stored and not shown"
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
