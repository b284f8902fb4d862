//! A copy of a SQLite ledger, made while the service may be using it.

use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rusqlite::Connection;
use rusqlite::backup::{Backup, StepResult};

use super::database::Sqlite;

/// Why there is no backup.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// There is no such file.
    #[error("there is no ledger {}", .0.display())]
    NoLedger(PathBuf),
    /// A backup is never written over anything.
    #[error("{} is there already: name another file", .0.display())]
    Exists(PathBuf),
    /// The copy would be of no use.
    #[error("the copy is damaged, and so perhaps is the ledger: {0}")]
    Damaged(String),
    /// SQLite said so.
    #[error("the ledger cannot be copied: {0}")]
    Sqlite(#[from] rusqlite::Error),
    /// The system said so.
    #[error("{path} cannot be written: {source}")]
    Io {
        /// Which file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
}

/// What was written.
#[derive(Clone, Copy, Debug)]
pub struct BackedUp {
    /// Bytes of the copy.
    pub bytes: u64,
    /// The ledger's schema version.
    pub schema_version: i64,
}

/// Copies a ledger as it is at one moment into a new file that only its owner can read. It is there,
/// checked and on disk, or not at all. To be called where blocking is allowed.
///
/// # Errors
/// As [`BackupError`] says.
pub fn back_up(ledger: &Path, to: &Path) -> Result<BackedUp, BackupError> {
    if !ledger.is_file() {
        return Err(BackupError::NoLedger(ledger.into()));
    }
    // Before all the work; it counts in the end.
    if to.symlink_metadata().is_ok() {
        return Err(BackupError::Exists(to.into()));
    }
    let io = |source| BackupError::Io {
        path: to.display().to_string(),
        source,
    };
    let folder = match to.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    // Beside its final place, so that it can be moved there at once.
    let copy = tempfile::Builder::new()
        .prefix(".cohort-bridge-backup-")
        .permissions(PermissionsExt::from_mode(0o600))
        .tempfile_in(folder)
        .map_err(io)?;
    let schema_version = write(ledger, copy.path())?;
    copy.as_file().sync_all().map_err(io)?;
    let bytes = copy.as_file().metadata().map_err(io)?.len();
    copy.persist_noclobber(to).map_err(|error| {
        match error.error.kind() == std::io::ErrorKind::AlreadyExists {
            true => BackupError::Exists(to.into()),
            false => io(error.error),
        }
    })?;
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(io)?;
    Ok(BackedUp {
        bytes,
        schema_version,
    })
}

/// Copies and checks; the schema version.
fn write(ledger: &Path, to: &Path) -> Result<i64, BackupError> {
    let mut reader = Sqlite::connect_reader(ledger).map_err(sqlite_error)?;
    let mut copy = Connection::open(to)?;
    {
        let backup = Backup::new(reader.inner(), &mut copy)?;
        // In one step, which sees one moment. In several the writer would have it begin again with every
        // commit; in this mode of the log it need not wait either way.
        match backup.step(-1)? {
            StepResult::Done => {}
            other => return Err(BackupError::Damaged(format!("{other:?}"))),
        }
    }
    // Nothing is left beside the file: whoever moves it moves all of it.
    copy.query_row("PRAGMA journal_mode = DELETE", [], |_| Ok(()))?;
    let check: String = copy.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))?;
    if check != "ok" {
        return Err(BackupError::Damaged(check));
    }
    let version = copy.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    copy.close().map_err(|(_, error)| error)?;
    Ok(version)
}

fn sqlite_error(error: super::database::DatabaseError) -> BackupError {
    match error {
        super::database::DatabaseError::Sqlite(error) => error.into(),
        other => BackupError::Damaged(other.to_string()),
    }
}
