//! What a ledger knows beside its tables: as it is in SQLite, and as text in PostgreSQL.

use std::collections::BTreeMap;

use rusqlite::types::ValueRef;
use sha2::{Digest, Sha256};

use super::tables::Sum;
use super::{COPIED_THROUGH, COPYING_FROM, MOVED_HERE, MOVED_TO};
use crate::store::database::{Connection, OptionalRow, Row, params};
use crate::store::{StoreError, sqlite};

/// Tables whose rows are numbered, and the column with the number.
const NUMBERED: [(&str, &str); 7] = [
    ("trait", "id"),
    ("cohort", "id"),
    ("session", "id"),
    ("destination", "id"),
    ("inbox", "seq"),
    ("unproven", "seq"),
    ("resync", "id"),
];

/// What a key holds that holds text.
pub fn get(connection: &Connection, key: &str) -> Result<Option<String>, StoreError> {
    let value = "SELECT value FROM meta WHERE key = ?1";
    Ok(connection
        .query_row(value, [key], |row| row.get(0))
        .optional()?)
}

pub fn set(connection: &Connection, key: &str, value: &str) -> Result<(), StoreError> {
    connection.execute(
        "INSERT INTO meta (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        [key, value],
    )?;
    Ok(())
}

/// All of it but for the marks of a move, as PostgreSQL has it.
fn all(connection: &Connection) -> Result<BTreeMap<String, String>, StoreError> {
    let mut all = BTreeMap::new();
    connection
        .prepare_cached("SELECT key, value FROM meta")?
        .scan((), |row| {
            let key: String = row.get(0)?;
            if ![COPYING_FROM, COPIED_THROUGH, MOVED_HERE, MOVED_TO].contains(&&*key) {
                all.insert(key, text(row, 1)?);
            }
            Ok::<_, StoreError>(true)
        })?;
    Ok(all)
}

/// Numbers in figures, bytes in hex.
fn text(row: &Row<'_>, column: usize) -> Result<String, StoreError> {
    let Row::Sqlite(row) = row else {
        return Ok(row.get(column)?);
    };
    match row.get_ref(column)? {
        ValueRef::Integer(number) => Ok(number.to_string()),
        ValueRef::Text(bytes) => Ok(String::from_utf8_lossy(bytes).into_owned()),
        ValueRef::Blob(bytes) => Ok(sqlite::hex(bytes)),
        ValueRef::Null | ValueRef::Real(_) => {
            Err(StoreError::Failed("meta holds something else".into()))
        }
    }
}

pub fn copy(source: &Connection, target: &Connection) -> Result<(), StoreError> {
    for (key, value) in all(source)? {
        set(target, &key, &value)?;
    }
    Ok(())
}

pub fn sum(connection: &Connection) -> Result<Sum, StoreError> {
    let all = all(connection)?;
    let mut hash = Sha256::new();
    for text in all.iter().flat_map(|(key, value)| [key, value]) {
        hash.update((text.len() as u64).to_be_bytes());
        hash.update(text);
    }
    Ok(Sum {
        rows: all.len() as u64,
        checksum: hash.finalize().into(),
    })
}

/// Has PostgreSQL give numbers behind all that SQLite ever gave: marks from before name some of which no
/// row is left.
pub fn continue_numbers(source: &Connection, target: &Connection) -> Result<(), StoreError> {
    for (table, column) in NUMBERED {
        let given = "SELECT seq FROM sqlite_sequence WHERE name = ?1";
        let given: Option<i64> = source
            .query_row(given, [table], |row| row.get(0))
            .optional()?;
        let largest = format!("SELECT max({column}) FROM {table}");
        let largest: Option<i64> = source.query_row(&largest, (), |row| row.get(0))?;
        if let Some(last) = given.max(largest).filter(|last| *last > 0) {
            target.query_row(
                "SELECT setval(pg_get_serial_sequence(?1, ?2), ?3)",
                params![table, column, last],
                |_| Ok(()),
            )?;
        }
    }
    Ok(())
}
