//! `cohort-bridge check`: is everything that `serve` needs there, and does a written trait stay?

use std::io::Write;

use crate::clock::Clock;
use crate::config::{Database, Destination, Settings};
use crate::flagsmith::{CANARY, Flagsmith, Storage};
use crate::store::StoreError;
use crate::store::sqlite::schema_version;

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
    rows.push(ledger(settings).await);
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

async fn ledger(settings: &Settings) -> Row {
    let Database::Sqlite(path) = &settings.database;
    let what = "ledger".to_owned();
    let opened = crate::app::open_store(settings);
    match opened {
        Ok(store) => {
            let ready = store.ready().await;
            store.close().await;
            Row {
                what,
                works: ready.is_ok(),
                detail: match ready {
                    Ok(()) => format!("{}: opened, migrated and written to", path.display()),
                    Err(error) => error.to_string(),
                },
            }
        }
        Err(error) => match (error.downcast_ref::<StoreError>(), schema_version(path)) {
            // A service that runs beside the check is no fault.
            (Some(StoreError::InUse { .. }), Ok(Some(version))) => Row {
                what,
                works: true,
                detail: format!(
                    "{}: in use by a running service, schema version {version}",
                    path.display()
                ),
            },
            _ => Row {
                what,
                works: false,
                detail: format!("{error:#}"),
            },
        },
    }
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
        Storage::Fails { reason } => (false, reason),
        Storage::Unreachable { error, .. } => (false, format!("cannot be reached: {error}")),
    };
    Row {
        what,
        works,
        detail,
    }
}
