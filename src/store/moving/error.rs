//! Why a ledger was not moved.

use std::path::PathBuf;

use crate::store::StoreError;

/// Why a ledger was not moved.
#[derive(Debug, thiserror::Error)]
pub enum MoveError {
    /// Either side failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is no such file.
    #[error("there is no ledger {}", .0.display())]
    NoSource(PathBuf),
    /// The target is no empty database.
    #[error(
        "the database {0} is not empty: a ledger is moved into a new database; where a service was already started on this one, stop it, and drop and create the database"
    )]
    Occupied(String),
    /// The target holds a part of another ledger.
    #[error(
        "the database {place} holds the unfinished copy of another ledger ({ledger}): go on with that, or drop and create the database"
    )]
    OfAnother {
        /// Which database.
        place: String,
        /// The name of the ledger.
        ledger: String,
    },
    /// The target holds a former state of this ledger.
    #[error(
        "the database {place} holds this ledger as it was on {at}, and both may have changed since: to move it anew, drop and create the database; to use what is there, point DATABASE_URL at it"
    )]
    CopiedBefore {
        /// Which database.
        place: String,
        /// When it was copied.
        at: String,
    },
    /// The source was moved somewhere else.
    #[error(
        "the ledger {path} was moved to {to}, and what happened since is there: move it from here again only after cohort-bridge migrate-store --take-back"
    )]
    MovedBefore {
        /// The source.
        path: String,
        /// Where to, and when.
        to: String,
    },
    /// Another process copies into the same database.
    #[error("another migrate-store is copying into the same database")]
    NotAlone,
    /// A text that PostgreSQL cannot hold.
    #[error(
        "the table {0} holds a text with a NUL character, which PostgreSQL cannot keep: this ledger has to stay where it is"
    )]
    Nul(&'static str),
    /// Whoever watched it wanted so.
    #[error("stopped; run it again to go on")]
    Stopped,
}
