//! One way to talk to either database.
//!
//! The ledger's rules are written once, in SQL that both understand: parameters are `?1`, booleans are
//! stored as numbers, nothing depends on what a column holds beside its type. Statements are prepared
//! once by SQLite; PostgreSQL parses them each time, so that nothing is left in a session and a pooler
//! may give each transaction another one.

use std::sync::LazyLock;
use std::time::Duration;

pub(super) mod postgres;
mod row;
pub(super) mod sets;
pub(super) mod sqlite;
mod value;

pub(super) use postgres::Postgres;
pub(super) use row::Row;
pub(super) use sqlite::Sqlite;
pub(super) use value::{ToValue, Value};

use super::StoreError;

/// Parameters of different types, in order.
macro_rules! params {
    ($($value:expr),* $(,)?) => {
        &[$(&$value as &dyn $crate::store::database::ToValue),*] as &[&dyn $crate::store::database::ToValue]
    };
}
pub(super) use params;

/// Sorts behind every identifier, which has 1,024 bytes at most.
pub(super) static BEHIND_ALL: LazyLock<String> = LazyLock::new(|| "\u{10FFFF}".repeat(257));

/// Whether a stored text may be this one: none has a NUL character, which PostgreSQL could not store, and
/// of which pages are free.
pub(super) fn may_exist(text: &str) -> bool {
    !text.contains('\0')
}

/// Why a statement failed.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    /// A row was asked for, and there is none.
    #[error("no row")]
    NoRow,
    /// A column holds something else than was asked for.
    #[error("column {0} holds something else")]
    Unexpected(usize),
    /// A column holds what this program never writes.
    #[error("{0}")]
    Damaged(String),
    /// SQLite said so.
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
    /// PostgreSQL said so, or could not be asked.
    #[error("{}", postgres::words(.0))]
    Postgres(#[from] tokio_postgres::Error),
    /// A setting of PostgreSQL would let it lose what it said was written.
    #[error(
        "PostgreSQL runs with {0} = off, and would lose acknowledged pages in a crash: set it to on"
    )]
    NotDurable(&'static str),
    /// PostgreSQL did not answer within that time.
    #[error("PostgreSQL did not answer within {} s", .0.as_secs())]
    Silent(Duration),
    /// The connection was lost in the middle of a transaction.
    #[error("the connection was lost")]
    Lost,
}

impl From<DatabaseError> for StoreError {
    fn from(error: DatabaseError) -> Self {
        match error {
            DatabaseError::Sqlite(error)
                if error.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull) =>
            {
                StoreError::Full
            }
            DatabaseError::Postgres(error) => postgres::store_error(&error),
            away @ (DatabaseError::Silent(_) | DatabaseError::Lost) => {
                StoreError::Away(away.to_string())
            }
            other => StoreError::Failed(other.to_string()),
        }
    }
}

/// Parameters of a statement.
pub(super) trait Params {
    /// Each of them, in order.
    fn values(&self) -> impl Iterator<Item = Value<'_>>;
}

impl Params for &[&dyn ToValue] {
    fn values(&self) -> impl Iterator<Item = Value<'_>> {
        self.iter().map(|value| value.to_value())
    }
}

impl<T: ToValue, const N: usize> Params for [T; N] {
    fn values(&self) -> impl Iterator<Item = Value<'_>> {
        self.iter().map(ToValue::to_value)
    }
}

impl Params for &[Value<'_>] {
    fn values(&self) -> impl Iterator<Item = Value<'_>> {
        self.iter().copied()
    }
}

/// No parameters.
impl Params for () {
    fn values(&self) -> impl Iterator<Item = Value<'_>> {
        std::iter::empty()
    }
}

/// A connection to either.
pub(super) enum Connection {
    Sqlite(Sqlite),
    Postgres(Box<Postgres>),
}

/// A statement of either.
pub(super) enum Statement<'a> {
    Sqlite(rusqlite::CachedStatement<'a>),
    Postgres(&'a Postgres, String),
}

impl Connection {
    /// A statement that is run again and again.
    pub(super) fn prepare_cached<'a>(&'a self, sql: &str) -> Result<Statement<'a>, DatabaseError> {
        Ok(match self {
            Connection::Sqlite(sqlite) => Statement::Sqlite(sqlite.connection.prepare_cached(sql)?),
            Connection::Postgres(postgres) => {
                Statement::Postgres(postgres, postgres::translated(sql))
            }
        })
    }

    /// Runs a statement once; returns how many rows it wrote.
    pub(super) fn execute(&self, sql: &str, params: impl Params) -> Result<usize, DatabaseError> {
        self.prepare_cached(sql)?.execute(params)
    }

    /// Runs a query once, and reads its first row.
    pub(super) fn query_row<T>(
        &self,
        sql: &str,
        params: impl Params,
        read: impl FnOnce(&Row<'_>) -> Result<T, DatabaseError>,
    ) -> Result<T, DatabaseError> {
        self.prepare_cached(sql)?.query_row(params, read)
    }

    /// Runs a statement over one table for each of many rows, and reads what it finds or returns, in no
    /// order, with the place of the row that it was for. PostgreSQL runs it once, with all rows joined to
    /// the table: so none of them may see what it does for another, and it can have no aggregates.
    pub(super) fn each_of<T, E: From<DatabaseError>, const VALUES: usize>(
        &self,
        sql: &str,
        rows: &[T],
        values: impl for<'a> Fn(&'a T) -> [Value<'a>; VALUES],
        mut read: impl FnMut(usize, &Row<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        if rows.is_empty() {
            return Ok(());
        }
        match self {
            Connection::Sqlite(_) => {
                let mut statement = self.prepare_cached(sql)?;
                for (at, row) in rows.iter().enumerate() {
                    statement.scan(values(row), |row| read(at, row).map(|()| true))?;
                }
                Ok(())
            }
            Connection::Postgres(postgres) => {
                let columns = sets::columns(rows.iter().map(values));
                let sql = sets::joined(&postgres::translated(sql), &columns);
                let values: Vec<_> = columns.iter().map(Value::Set).collect();
                postgres.scan(&sql, &values, &mut |row| {
                    let place: usize = row.last()?;
                    read(place - 1, row).map(|()| true)
                })
            }
        }
    }

    /// Runs statements without parameters.
    pub(super) fn execute_batch(&self, sql: &str) -> Result<(), DatabaseError> {
        match self {
            Connection::Sqlite(sqlite) => Ok(sqlite.connection.execute_batch(sql)?),
            Connection::Postgres(postgres) => postgres.batch(sql),
        }
    }

    /// Runs a statement without parameters that is run again and again.
    pub(super) fn run(&self, sql: &str) -> Result<(), DatabaseError> {
        match self {
            Connection::Sqlite(sqlite) => sqlite.run(sql),
            Connection::Postgres(postgres) => postgres.batch(sql),
        }
    }

    /// Begins a transaction that writes.
    pub(super) fn begin(&self) -> Result<(), DatabaseError> {
        match self {
            Connection::Sqlite(sqlite) => sqlite.run("BEGIN IMMEDIATE"),
            Connection::Postgres(postgres) => postgres.begin(),
        }
    }

    /// Ends the transaction, durably.
    pub(super) fn commit(&self) -> Result<(), DatabaseError> {
        match self {
            Connection::Sqlite(sqlite) => sqlite.run("COMMIT"),
            Connection::Postgres(postgres) => postgres.commit(),
        }
    }

    /// Undoes what the transaction at hand did.
    pub(super) fn rollback(&self) -> Result<(), DatabaseError> {
        match self {
            Connection::Sqlite(sqlite) => sqlite.run("ROLLBACK"),
            Connection::Postgres(postgres) => postgres.rollback(),
        }
    }

    /// Whether a transaction is open. SQLite gives one up by itself where the disk is full or failing,
    /// and PostgreSQL with the connection.
    pub(super) fn is_in_transaction(&self) -> bool {
        match self {
            Connection::Sqlite(sqlite) => sqlite.is_in_transaction(),
            Connection::Postgres(postgres) => postgres.is_in_transaction(),
        }
    }

    /// Reads everything as it was at one moment.
    pub(super) fn at_one_moment<T>(
        &self,
        read: impl FnOnce() -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        match self {
            Connection::Sqlite(sqlite) => sqlite.run("BEGIN")?,
            Connection::Postgres(postgres) => postgres.begin_snapshot()?,
        }
        let result = read();
        self.rollback()?;
        result
    }

    /// Whether several processes may write to it.
    pub(super) fn is_shared(&self) -> bool {
        matches!(self, Connection::Postgres(_))
    }
}

impl Statement<'_> {
    /// Runs it; returns how many rows it wrote.
    pub(super) fn execute(&mut self, params: impl Params) -> Result<usize, DatabaseError> {
        match self {
            Statement::Sqlite(statement) => {
                bind(statement, &params)?;
                Ok(statement.raw_execute()?)
            }
            Statement::Postgres(postgres, sql) => {
                let values: Vec<_> = params.values().collect();
                let rows = postgres.execute(sql, &values)?;
                Ok(usize::try_from(rows).unwrap_or(usize::MAX))
            }
        }
    }

    /// Whether it finds anything.
    pub(super) fn exists(&mut self, params: impl Params) -> Result<bool, DatabaseError> {
        let found = self.query_row(params, |_| Ok(())).optional()?;
        Ok(found.is_some())
    }

    /// Reads the first row.
    pub(super) fn query_row<T>(
        &mut self,
        params: impl Params,
        read: impl FnOnce(&Row<'_>) -> Result<T, DatabaseError>,
    ) -> Result<T, DatabaseError> {
        let mut read = Some(read);
        let mut found = None;
        self.scan(params, |row| {
            if let Some(read) = read.take() {
                found = Some(read(row)?);
            }
            Ok::<_, DatabaseError>(false)
        })?;
        found.ok_or(DatabaseError::NoRow)
    }

    /// Reads every row.
    pub(super) fn query_map<T>(
        &mut self,
        params: impl Params,
        mut read: impl FnMut(&Row<'_>) -> Result<T, DatabaseError>,
    ) -> Result<std::vec::IntoIter<Result<T, DatabaseError>>, DatabaseError> {
        let mut found = Vec::new();
        self.scan(params, |row| {
            found.push(read(row));
            Ok::<_, DatabaseError>(true)
        })?;
        Ok(found.into_iter())
    }

    /// Reads one row after the other for as long as `read` wants more. It must not ask the same
    /// connection meanwhile.
    pub(super) fn scan<E: From<DatabaseError>>(
        &mut self,
        params: impl Params,
        mut read: impl FnMut(&Row<'_>) -> Result<bool, E>,
    ) -> Result<(), E> {
        match self {
            Statement::Sqlite(statement) => {
                bind(statement, &params)?;
                let mut rows = statement.raw_query();
                while let Some(row) = rows.next().map_err(DatabaseError::from)? {
                    if !read(&Row::Sqlite(row))? {
                        break;
                    }
                }
                Ok(())
            }
            Statement::Postgres(postgres, sql) => {
                let values: Vec<_> = params.values().collect();
                postgres.scan(sql, &values, &mut read)
            }
        }
    }
}

fn bind(
    statement: &mut rusqlite::Statement<'_>,
    params: &impl Params,
) -> Result<(), DatabaseError> {
    for (index, value) in (1..).zip(params.values()) {
        statement.raw_bind_parameter(index, value)?;
    }
    Ok(())
}

/// Of [`Connection::each_of`], where nothing is to be read.
pub(super) fn nothing(_: usize, _: &Row<'_>) -> Result<(), StoreError> {
    Ok(())
}

/// Where there need not be a row.
pub(super) trait OptionalRow<T> {
    /// `None` where there is none.
    fn optional(self) -> Result<Option<T>, DatabaseError>;
}

impl<T> OptionalRow<T> for Result<T, DatabaseError> {
    fn optional(self) -> Result<Option<T>, DatabaseError> {
        match self {
            Ok(value) => Ok(Some(value)),
            Err(DatabaseError::NoRow) => Ok(None),
            Err(error) => Err(error),
        }
    }
}
