//! The ledger's database in PostgreSQL: its address, its schema, its secrets.

use super::database::{Connection, OptionalRow, Postgres, params};
use super::ledger_store::Secrets;
use super::moving::{self, MoveError};
use super::sqlite::hex;
use super::{PostgresUrl, StoreError};

/// A step of the schema. Steps only add, so that a replica of the version before goes on until it is
/// replaced, and may even start again meanwhile.
struct Migration {
    sql: &'static str,
    /// The oldest schema version whose programs can go on after it.
    works_from: i64,
}

/// Migrations, in order; `schema_version` says how many the database has had.
const MIGRATIONS: [Migration; 1] = [Migration {
    sql: include_str!("migrations/postgres/0001_ledger.sql"),
    works_from: 1,
}];

/// Whoever brings the schema up to date holds this lock: replicas may start at once.
const MIGRATION_LOCK: i64 = 0x636f_686f_7274_0001;

/// Connects, brings the schema up to date, and gives a new ledger its secrets.
pub(super) fn open(url: &PostgresUrl) -> Result<(Connection, Secrets), StoreError> {
    prepared(url, |connection| {
        if moving::is_unfinished(connection)? {
            return Err(StoreError::Unfinished(url.place()));
        }
        Ok(Secrets {
            ledger_id: secret(connection, "ledger_id")?,
            log_hash_key: secret(connection, "log_hash_key")?,
        })
    })
}

/// The same for a database that a ledger is copied into: its secrets come with it.
pub fn open_for_copy<T>(
    url: &PostgresUrl,
    begin: impl FnOnce(&Connection) -> Result<T, MoveError>,
) -> Result<(Connection, T), MoveError> {
    prepared(url, begin)
}

/// Within the lock of the schema nobody else opens the database: what is found there stays so until it
/// is marked.
fn prepared<T, E: From<StoreError>>(
    url: &PostgresUrl,
    begin: impl FnOnce(&Connection) -> Result<T, E>,
) -> Result<(Connection, T), E> {
    let postgres = Postgres::new(url.clone()).map_err(StoreError::from)?;
    let connection = Connection::Postgres(Box::new(postgres));
    connection.begin().map_err(StoreError::from)?;
    migrate(&connection)?;
    let begun = begin(&connection)?;
    connection.commit().map_err(StoreError::from)?;
    Ok((connection, begun))
}

fn migrate(connection: &Connection) -> Result<(), StoreError> {
    connection
        .prepare_cached("SELECT pg_advisory_xact_lock(?1)")?
        .execute([MIGRATION_LOCK])?;
    connection.run(
        "CREATE TABLE IF NOT EXISTS schema_version (version BIGINT NOT NULL, works_from BIGINT NOT NULL)",
    )?;
    let (found, needed): (i64, i64) = connection.query_row(
        "SELECT coalesce(max(version), 0), coalesce(max(works_from), 0) FROM schema_version",
        (),
        |row| Ok((row.get(0)?, row.get(1)?)),
    )?;
    let known = MIGRATIONS.len() as i64;
    if needed > known {
        return Err(StoreError::Newer { found, known });
    }
    for (number, migration) in (1_i64..).zip(MIGRATIONS) {
        if number > found {
            connection.execute_batch(migration.sql)?;
            connection.execute(
                "INSERT INTO schema_version (version, works_from) VALUES (?1, ?2)",
                [number, migration.works_from],
            )?;
        }
    }
    Ok(())
}

/// 32 random bytes, made once for a ledger.
fn secret(connection: &Connection, name: &str) -> Result<[u8; 32], StoreError> {
    let mut fresh = [0_u8; 32];
    getrandom::fill(&mut fresh).map_err(|error| StoreError::Failed(error.to_string()))?;
    connection.execute(
        "INSERT INTO meta (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO NOTHING",
        params![name, hex(&fresh)],
    )?;
    let stored = connection
        .query_row("SELECT value FROM meta WHERE key = ?1", [name], |row| {
            row.get::<String>(0)
        })
        .optional()?;
    stored
        .and_then(|stored| unhex(&stored))
        .ok_or_else(|| StoreError::Failed(format!("{name} is damaged")))
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let bytes: Option<Vec<u8>> = (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok())
        .collect();
    bytes?.try_into().ok()
}
