//! Rows written many with a statement: to begin and end one for each of ten million people takes as
//! long as the rows themselves.

use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, Statement};

use crate::store::StoreError;

/// Rows that one statement inserts: with 32 it takes longer, and 128 save nothing more.
const ROWS_A_STATEMENT: usize = 64;

/// An INSERT of rows with so many values.
pub(super) struct Insert<const VALUES: usize> {
    one: String,
    many: String,
}

impl<const VALUES: usize> Insert<VALUES> {
    /// Into `table (columns)`.
    pub(super) fn into(table: &str) -> Self {
        let row = format!("({})", ["?"; VALUES].join(", "));
        // FAIL: whatever runs is undone with its job. The default would undo the statement alone, and
        // for that keep a journal of every one.
        let sql = |rows: &[&str]| format!("INSERT OR FAIL INTO {table} VALUES {}", rows.join(", "));
        Insert {
            one: sql(&[&row]),
            many: sql(&[row.as_str(); ROWS_A_STATEMENT]),
        }
    }

    /// Inserts the `values` of each of `rows`.
    pub(super) fn all<T>(
        &self,
        connection: &Connection,
        rows: &[T],
        values: impl for<'a> Fn(&'a T) -> [ValueRef<'a>; VALUES],
    ) -> Result<(), StoreError> {
        let (many, few) = rows.as_chunks::<ROWS_A_STATEMENT>();
        if !many.is_empty() {
            let mut statement = connection.prepare_cached(&self.many)?;
            for rows in many {
                insert(&mut statement, rows, &values)?;
            }
        }
        if !few.is_empty() {
            let mut statement = connection.prepare_cached(&self.one)?;
            for row in few {
                insert(&mut statement, std::slice::from_ref(row), &values)?;
            }
        }
        Ok(())
    }
}

fn insert<T, const VALUES: usize>(
    statement: &mut Statement<'_>,
    rows: &[T],
    values: impl for<'a> Fn(&'a T) -> [ValueRef<'a>; VALUES],
) -> Result<(), StoreError> {
    for (index, value) in (1..).zip(rows.iter().flat_map(values)) {
        statement.raw_bind_parameter(index, ToSqlOutput::Borrowed(value))?;
    }
    statement.raw_execute()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_there_once_however_many_there_are() {
        let connection = Connection::open_in_memory().unwrap();
        connection
            .execute_batch("CREATE TABLE t (number INTEGER PRIMARY KEY, word TEXT, hash BLOB)")
            .unwrap();
        let insert = Insert::into("t (number, word, hash)");
        for count in [0, 1, 63, 64, 65, 128, 200] {
            let rows: Vec<(i64, String)> = (0..count).map(|n| (n, format!("word {n}"))).collect();
            let result = insert.all(&connection, &rows, |(number, word)| {
                let hash = (number % 3 == 0).then_some(word.as_bytes());
                [
                    ValueRef::Integer(*number),
                    word.as_str().into(),
                    hash.into(),
                ]
            });
            result.unwrap();
            let found: Vec<(i64, String)> = connection
                .prepare("DELETE FROM t RETURNING number, word, hash IS NOT NULL")
                .unwrap()
                .query_map([], |row| {
                    let number: i64 = row.get(0)?;
                    assert_eq!(row.get::<_, bool>(2)?, number % 3 == 0);
                    Ok((number, row.get(1)?))
                })
                .unwrap()
                .collect::<Result<_, _>>()
                .unwrap();
            assert_eq!(found, rows);
        }
    }
}
