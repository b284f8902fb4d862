//! Why the store could not do it.

use super::database::DatabaseError;
use crate::roster::Damaged;

/// Why the store could not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is no room on the disk; nothing was written.
    #[error("the disk that holds the ledger is full")]
    Full,
    /// Another process has the ledger open.
    #[error(
        "the ledger {path} is in use by another cohort-bridge{holder}: stop it first, or give this one a file of its own with DATABASE_URL"
    )]
    InUse {
        /// The ledger's file.
        path: String,
        /// ` (process 12)` where it is known.
        holder: String,
    },
    /// The settings give a key that somebody else has.
    #[error(
        "the trait key {key:?} cannot be given to {cohort}: {holder} has it; give that cohort a key of its own in the settings file too, or choose another"
    )]
    KeyTaken {
        /// The key.
        key: String,
        /// To whom it should be given.
        cohort: String,
        /// Who has it.
        holder: String,
    },
    /// A newer version of the program wrote the ledger.
    #[error(
        "the ledger has schema version {found}, this program knows {known}: run the version that wrote it, or a newer one"
    )]
    Newer {
        /// In the file.
        found: i64,
        /// In the program.
        known: i64,
    },
    /// The ledger is in a database now.
    #[error(
        "the ledger {path} was moved to {to}, and what happened since is there: set DATABASE_URL to that database; to go back to this file as it was then, run cohort-bridge migrate-store --take-back, and afterwards write everything again with resync"
    )]
    Moved {
        /// The ledger's file.
        path: String,
        /// Where to, and when.
        to: String,
    },
    /// A ledger is being copied into this database, or that was never ended.
    #[error(
        "the copy of a ledger into the database {0} is not finished: run cohort-bridge migrate-store again until it says that the ledger is moved, or drop and create the database"
    )]
    Unfinished(String),
    /// The SQLite library is too old to be trusted with a write-ahead log.
    #[error("SQLite {0} can corrupt a write-ahead log; 3.51.3 or newer is needed")]
    OldSqlite(String),
    /// Another process folds and delivers.
    #[error("another replica folds and delivers")]
    NotLeading,
    /// The database cannot be reached now.
    #[error("the database cannot be reached: {0}")]
    Away(String),
    /// The store is closing.
    #[error("the ledger is closed")]
    Closed,
    /// Anything else the database said.
    #[error("the ledger failed: {0}")]
    Failed(String),
    /// A stored page cannot be read.
    #[error(transparent)]
    Damaged(#[from] Damaged),
    /// A file of the ledger could not be used.
    #[error("{path} cannot be used")]
    Io {
        /// Which file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
}

impl StoreError {
    /// The same error for another caller of the same transaction.
    pub(crate) fn again(&self) -> Self {
        match self {
            StoreError::Full => StoreError::Full,
            StoreError::Closed => StoreError::Closed,
            StoreError::NotLeading => StoreError::NotLeading,
            StoreError::Away(why) => StoreError::Away(why.clone()),
            other => StoreError::Failed(other.to_string()),
        }
    }
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        DatabaseError::from(error).into()
    }
}
