//! Where the ledger is kept.

use std::path::PathBuf;

use super::database::{Connection, Postgres, Sqlite};
use super::{PostgresUrl, StoreError};

/// Where the ledger is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Database {
    /// One SQLite file, created where missing.
    Sqlite(PathBuf),
    /// A PostgreSQL database, which several replicas may share.
    Postgres(Box<PostgresUrl>),
}

impl Database {
    /// A connection that reads. Where it may block.
    pub(super) fn reader(&self) -> Result<Connection, StoreError> {
        Ok(match self {
            Database::Sqlite(path) => Connection::Sqlite(Sqlite::connect_reader(path)?),
            Database::Postgres(url) => {
                Connection::Postgres(Box::new(Postgres::new(PostgresUrl::clone(url))?))
            }
        })
    }
}

impl std::fmt::Display for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Database::Sqlite(path) => path.display().fmt(f),
            Database::Postgres(url) => f.write_str(&url.place()),
        }
    }
}
