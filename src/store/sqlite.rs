//! The ledger's file: its schema, its secrets, and who may have it open.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rusqlite::{Connection, OptionalExtension, params};

use super::database::Sqlite;
use super::moving::MOVED_TO;
use crate::roster::{Damaged, Roster};
use crate::store::StoreError;

/// Migrations, in order; the file's `user_version` says how many it has had.
const MIGRATIONS: [&str; 9] = [
    include_str!("migrations/sqlite/0001_ledger.sql"),
    include_str!("migrations/sqlite/0002_exact_membership.sql"),
    include_str!("migrations/sqlite/0003_express_lane.sql"),
    include_str!("migrations/sqlite/0004_unproven.sql"),
    include_str!("migrations/sqlite/0005_runs_in_a_window.sql"),
    include_str!("migrations/sqlite/0006_routes.sql"),
    include_str!("migrations/sqlite/0007_calls.sql"),
    include_str!("migrations/sqlite/0008_pauses.sql"),
    include_str!("migrations/sqlite/0009_resyncs.sql"),
];

/// The schema version of a ledger that this program has opened.
pub const SCHEMA_VERSION: i64 = MIGRATIONS.len() as i64;

/// The schema version of a ledger that may be in use; `None` where there is no file.
pub fn schema_version(path: &Path) -> Result<Option<i64>, StoreError> {
    if !path.exists() {
        return Ok(None);
    }
    let mut reader = Sqlite::connect_reader(path)?;
    Ok(Some(user_version(reader.inner())?))
}

fn user_version(connection: &Connection) -> Result<i64, StoreError> {
    Ok(connection.query_row("PRAGMA user_version", [], |row| row.get(0))?)
}

pub(super) fn migrate(connection: &mut Connection) -> Result<(), StoreError> {
    let found = user_version(connection)?;
    if found > SCHEMA_VERSION {
        return Err(StoreError::Newer {
            found,
            known: SCHEMA_VERSION,
        });
    }
    for (number, migration) in (1_i64..).zip(MIGRATIONS) {
        if number > found {
            let transaction = connection.transaction()?;
            transaction.execute_batch(migration)?;
            if number == 2 {
                rewrite_rosters(&transaction)?;
            }
            transaction.pragma_update(None, "user_version", number)?;
            transaction.commit()?;
        }
    }
    Ok(())
}

/// Writes stored pages as they are since version 2, and their fingerprints with them: else a page
/// that comes again would seem to have other people.
fn rewrite_rosters(connection: &Connection) -> Result<(), StoreError> {
    let mut next =
        connection.prepare("SELECT seq, roster FROM inbox WHERE seq > ?1 ORDER BY seq LIMIT 1")?;
    let mut rewrite =
        connection.prepare("UPDATE inbox SET roster = ?2, fingerprint = ?3 WHERE seq = ?1")?;
    let mut hold =
        connection.prepare("UPDATE session_page SET fingerprint = ?2 WHERE inbox_seq = ?1")?;
    let mut last = i64::MIN;
    loop {
        let page = next
            .query_row([last], |row| Ok((row.get(0)?, row.get::<_, Vec<u8>>(1)?)))
            .optional()?;
        let Some((seq, bytes)) = page else {
            return Ok(());
        };
        let roster = roster_of_version_1(&bytes)?;
        let fingerprint = roster.fingerprint();
        rewrite.execute(params![seq, roster.as_bytes(), &fingerprint[..]])?;
        hold.execute(params![seq, &fingerprint[..]])?;
        last = seq;
    }
}

/// In version 1 an identifier was its bytes behind their number (LEB128), and people were unknown.
fn roster_of_version_1(bytes: &[u8]) -> Result<Roster, Damaged> {
    let mut identifiers = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let (identifier, next) = identifier_of_version_1(bytes, at).ok_or(Damaged(at))?;
        identifiers.push(identifier);
        at = next;
    }
    Ok(Roster::of_identifiers(identifiers))
}

fn identifier_of_version_1(bytes: &[u8], at: usize) -> Option<(&str, usize)> {
    let (mut length, mut shift, mut start) = (0_usize, 0, at);
    loop {
        let byte = *bytes.get(start)?;
        start += 1;
        length |= usize::from(byte & 0x7f).checked_shl(shift)?;
        shift += 7;
        if byte & 0x80 == 0 {
            break;
        }
    }
    let end = start.checked_add(length).filter(|_| length > 0)?;
    let identifier = std::str::from_utf8(bytes.get(start..end)?).ok()?;
    Some((identifier, end))
}

/// 32 random bytes, made once for a ledger.
pub(super) fn secret(connection: &Connection, name: &str) -> Result<[u8; 32], StoreError> {
    let mut fresh = [0_u8; 32];
    getrandom::fill(&mut fresh).map_err(|error| StoreError::Failed(error.to_string()))?;
    connection.execute(
        "INSERT INTO meta (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO NOTHING",
        rusqlite::params![name, &fresh[..]],
    )?;
    Ok(
        connection.query_row("SELECT value FROM meta WHERE key = ?1", [name], |row| {
            row.get(0)
        })?,
    )
}

/// Where the ledger was moved to, and when.
pub(super) fn moved_to(connection: &Connection) -> Result<Option<String>, StoreError> {
    let to = "SELECT value FROM meta WHERE key = ?1";
    Ok(connection
        .query_row(to, [MOVED_TO], |row| row.get(0))
        .optional()?)
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Creates the ledger so that only its owner can read who is in which cohort; SQLite gives the
/// files beside it the same mode.
pub(super) fn make_private(path: &Path) -> Result<(), StoreError> {
    File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map(drop)
        .map_err(|source| StoreError::Io {
            path: path.display().to_string(),
            source,
        })
}

/// One process a ledger. A lock on a file beside it: closing any handle of the ledger itself would
/// drop the locks that SQLite holds on it.
pub(super) fn lock(path: &Path) -> Result<File, StoreError> {
    let lock_path = path.with_added_extension("lock");
    let io = |source| StoreError::Io {
        path: lock_path.display().to_string(),
        source,
    };
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&lock_path)
        .map_err(io)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(std::fs::TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let _ = file.read_to_string(&mut holder);
            let holder = holder.trim();
            return Err(StoreError::InUse {
                path: path.display().to_string(),
                holder: if holder.is_empty() {
                    String::new()
                } else {
                    format!(" (process {holder})")
                },
            });
        }
        Err(std::fs::TryLockError::Error(source)) => return Err(io(source)),
    }
    // Only for the message above; a full disk must not keep the service from starting.
    let _ = file
        .set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| writeln!(file, "{}", std::process::id()));
    Ok(file)
}

#[cfg(test)]
mod tests {
    use rusqlite::StatementStatus;

    use super::super::database::sqlite::STATEMENTS_KEPT;
    use super::super::database::{Connection as Either, Sqlite};
    use super::super::ledger::people::{HELD_PAGE, page_people};
    use super::super::ledger::sessions::PAGES_TO_DROP;
    use super::super::ledger::state::Ledger;
    use super::*;
    use crate::store::SessionRef;

    /// How often a statement ran, and how often it was prepared again.
    fn runs_and_repreparations(connection: &Connection, sql: &str) -> (i32, i32) {
        let statement = connection.prepare_cached(sql).unwrap();
        let of = |status| statement.get_status(status);
        (of(StatementStatus::Run), of(StatementStatus::RePrepare))
    }

    fn run_others(connection: &Connection) {
        for number in 0..STATEMENTS_KEPT - 1 {
            let other = connection.prepare_cached(&format!("SELECT {number}"));
            assert!(other.unwrap().exists([]).unwrap());
        }
    }

    #[test]
    fn a_statement_is_prepared_once_whatever_is_bound_to_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger.db");
        let mut sqlite = Sqlite::connect(&path).unwrap();
        migrate(sqlite.inner()).unwrap();

        let mut ledger = Ledger::new(
            Either::Sqlite(sqlite),
            Vec::new(),
            Vec::new(),
            Default::default(),
        )
        .unwrap();
        for limit in 1..=3 {
            ledger.tidy(limit, 0).unwrap();
        }
        let Either::Sqlite(written) = &mut ledger.connection else {
            unreachable!("opened as such");
        };
        let written = runs_and_repreparations(written.inner(), PAGES_TO_DROP);
        assert_eq!(written, (3, 0));

        let mut reader = Either::Sqlite(Sqlite::connect_reader(&path).unwrap());
        for number in 1..=3 {
            let missing = page_people(&reader, SessionRef(number), 1);
            assert!(missing.is_err());
        }
        let Either::Sqlite(reader) = &mut reader else {
            unreachable!("opened as such");
        };
        run_others(reader.inner());
        let read = runs_and_repreparations(reader.inner(), HELD_PAGE);
        assert_eq!(read, (3, 0));
    }
}
