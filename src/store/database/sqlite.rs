//! A SQLite connection, and its write-ahead log.

use std::cell::Cell;
use std::path::Path;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use super::DatabaseError;

/// KiB of page cache of the writing connection: the inner pages of a ledger of ten million members
/// fit, and the process stays far below its limit.
const WRITER_CACHE_KIB: i64 = 24 * 1024;

/// Bytes of the write-ahead log at which it is copied into the file.
const CHECKPOINT_BYTES: u64 = 16 * 1024 * 1024;

/// How long a connection waits for a lock.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);

/// Prepared statements that a connection keeps: more than there are different ones.
pub const STATEMENTS_KEPT: usize = 256;

/// A connection.
pub struct Sqlite {
    pub(super) connection: Connection,
    /// Bytes of the write-ahead log at which it is next copied into the file.
    checkpoint_at_bytes: Cell<u64>,
}

impl Sqlite {
    /// Opens a file for writing, with the settings that durability needs.
    pub fn connect(path: &Path) -> Result<Self, DatabaseError> {
        let connection = Connection::open(path)?;
        connection.busy_timeout(LOCK_PATIENCE)?;
        keep_statements(&connection)?;
        connection.execute_batch(&format!(
            // FULL: in WAL mode NORMAL does not sync on commit, and a power cut would lose an
            // acknowledged page.
            "PRAGMA journal_mode = WAL;
             PRAGMA synchronous = FULL;
             PRAGMA foreign_keys = OFF;
             PRAGMA wal_autocheckpoint = 0;
             PRAGMA temp_store = MEMORY;
             PRAGMA cache_size = -{WRITER_CACHE_KIB};"
        ))?;
        Ok(Self::of(connection))
    }

    /// Opens a file for reading beside the one who writes.
    pub fn connect_reader(path: &Path) -> Result<Self, DatabaseError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(LOCK_PATIENCE)?;
        keep_statements(&connection)?;
        Ok(Self::of(connection))
    }

    /// Takes a connection over as it is.
    pub fn of(connection: Connection) -> Self {
        Sqlite {
            connection,
            checkpoint_at_bytes: Cell::new(CHECKPOINT_BYTES),
        }
    }

    /// What only SQLite has.
    pub fn inner(&mut self) -> &mut Connection {
        &mut self.connection
    }

    pub(super) fn is_in_transaction(&self) -> bool {
        !self.connection.is_autocommit()
    }

    pub(super) fn run(&self, sql: &str) -> Result<(), DatabaseError> {
        self.connection.prepare_cached(sql)?.execute([])?;
        Ok(())
    }

    /// Copies the write-ahead log into the file once it is long. Waits for nobody: beside a reader
    /// that stays (a backup, say) the log grows by as much again before the next attempt.
    pub fn keep_log_short(&self) {
        if self.log_bytes() >= self.checkpoint_at_bytes.get() {
            self.checkpoint();
            self.checkpoint_at_bytes
                .set(self.log_bytes() + CHECKPOINT_BYTES);
        }
    }

    fn log_bytes(&self) -> u64 {
        self.connection
            .path()
            .and_then(|path| std::fs::metadata(format!("{path}-wal")).ok())
            .map_or(0, |file| file.len())
    }

    /// Copies the write-ahead log into the file and starts it again, as far as readers let it.
    pub fn checkpoint(&self) {
        // A failure (a full disk, say) leaves the log as it is: nothing is lost, a later call
        // tries again.
        let copied = self
            .connection
            .busy_timeout(Duration::ZERO)
            .and_then(|()| {
                self.connection
                    .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
            })
            .and(self.connection.busy_timeout(LOCK_PATIENCE));
        if let Err(error) = copied {
            tracing::debug!(%error, "the write-ahead log could not be copied into the ledger");
        }
    }
}

/// Has a connection prepare each statement once: to prepare one takes longer than to run it.
fn keep_statements(connection: &Connection) -> rusqlite::Result<()> {
    connection.set_prepared_statement_cache_capacity(STATEMENTS_KEPT);
    // Else SQLite prepares a statement again wherever its plan might depend on a value that is bound
    // (a LIMIT, say); nothing here has more than one plan.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    Ok(())
}
