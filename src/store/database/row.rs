//! What a query finds.

use rusqlite::types::ValueRef;
use tokio_postgres::types::Type;

use super::DatabaseError;

/// A row of either database.
pub enum Row<'a> {
    Sqlite(&'a rusqlite::Row<'a>),
    Postgres(&'a tokio_postgres::Row),
}

/// What a column holds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Cell<'a> {
    Null,
    Integer(i64),
    Real(f64),
    Text(&'a str),
    Blob(&'a [u8]),
}

impl Row<'_> {
    /// Reads a column.
    pub fn get<T: FromCell>(&self, column: usize) -> Result<T, DatabaseError> {
        T::from_cell(self.cell(column)?).ok_or(DatabaseError::Unexpected(column))
    }

    /// Reads a column that holds text, in place.
    pub fn text(&self, column: usize) -> Result<&str, DatabaseError> {
        match self.cell(column)? {
            Cell::Text(text) => Ok(text),
            _ => Err(DatabaseError::Unexpected(column)),
        }
    }

    /// Reads a column that holds bytes, in place.
    pub fn blob(&self, column: usize) -> Result<&[u8], DatabaseError> {
        match self.cell(column)? {
            Cell::Blob(bytes) => Ok(bytes),
            _ => Err(DatabaseError::Unexpected(column)),
        }
    }

    /// Reads the last column.
    pub fn last<T: FromCell>(&self) -> Result<T, DatabaseError> {
        let columns = match self {
            Row::Sqlite(row) => row.as_ref().column_count(),
            Row::Postgres(row) => row.len(),
        };
        self.get(columns - 1)
    }

    fn cell(&self, column: usize) -> Result<Cell<'_>, DatabaseError> {
        match self {
            Row::Sqlite(row) => Ok(match row.get_ref(column)? {
                ValueRef::Null => Cell::Null,
                ValueRef::Integer(value) => Cell::Integer(value),
                ValueRef::Real(value) => Cell::Real(value),
                ValueRef::Text(bytes) => Cell::Text(
                    std::str::from_utf8(bytes).map_err(|_| DatabaseError::Unexpected(column))?,
                ),
                ValueRef::Blob(bytes) => Cell::Blob(bytes),
            }),
            Row::Postgres(row) => {
                let found = match *row.columns()[column].type_() {
                    Type::INT8 => row.try_get::<_, Option<i64>>(column)?.map(Cell::Integer),
                    Type::INT4 => row
                        .try_get::<_, Option<i32>>(column)?
                        .map(|value| Cell::Integer(value.into())),
                    Type::BOOL => row
                        .try_get::<_, Option<bool>>(column)?
                        .map(|value| Cell::Integer(value.into())),
                    Type::FLOAT8 => row.try_get::<_, Option<f64>>(column)?.map(Cell::Real),
                    Type::TEXT | Type::VARCHAR | Type::NAME => {
                        row.try_get::<_, Option<&str>>(column)?.map(Cell::Text)
                    }
                    Type::BYTEA => row.try_get::<_, Option<&[u8]>>(column)?.map(Cell::Blob),
                    _ => return Err(DatabaseError::Unexpected(column)),
                };
                Ok(found.unwrap_or(Cell::Null))
            }
        }
    }
}

/// What a column can be read as.
pub trait FromCell: Sized {
    /// `None` where the column holds something else.
    fn from_cell(cell: Cell<'_>) -> Option<Self>;
}

macro_rules! integers {
    ($($type:ty),*) => {$(
        impl FromCell for $type {
            fn from_cell(cell: Cell<'_>) -> Option<Self> {
                match cell {
                    Cell::Integer(value) => value.try_into().ok(),
                    _ => None,
                }
            }
        }
    )*};
}
integers!(i64, u32, u64, usize);

impl FromCell for bool {
    fn from_cell(cell: Cell<'_>) -> Option<Self> {
        i64::from_cell(cell).map(|value| value != 0)
    }
}

impl FromCell for f64 {
    fn from_cell(cell: Cell<'_>) -> Option<Self> {
        match cell {
            Cell::Real(value) => Some(value),
            _ => None,
        }
    }
}

impl FromCell for String {
    fn from_cell(cell: Cell<'_>) -> Option<Self> {
        match cell {
            Cell::Text(text) => Some(text.to_owned()),
            _ => None,
        }
    }
}

impl FromCell for Vec<u8> {
    fn from_cell(cell: Cell<'_>) -> Option<Self> {
        match cell {
            Cell::Blob(bytes) => Some(bytes.to_owned()),
            _ => None,
        }
    }
}

impl<const N: usize> FromCell for [u8; N] {
    fn from_cell(cell: Cell<'_>) -> Option<Self> {
        match cell {
            Cell::Blob(bytes) => bytes.try_into().ok(),
            _ => None,
        }
    }
}

impl<T: FromCell> FromCell for Option<T> {
    fn from_cell(cell: Cell<'_>) -> Option<Self> {
        match cell {
            Cell::Null => Some(None),
            cell => T::from_cell(cell).map(Some),
        }
    }
}
