//! Rows written many with a statement: to begin and end one for each of ten million people takes as
//! long as the rows themselves.

use crate::store::StoreError;
use crate::store::database::sets::{columns, unnest};
use crate::store::database::{Connection, Postgres, Statement, Value};

/// Rows that one statement inserts in SQLite: with 32 it takes longer, and 128 save nothing more.
const ROWS_A_STATEMENT: usize = 64;

/// An INSERT of rows with so many values.
pub(super) struct Insert<const VALUES: usize> {
    table: &'static str,
    one: String,
    many: String,
}

impl<const VALUES: usize> Insert<VALUES> {
    /// Into `table (columns)`.
    pub(super) fn into(table: &'static str) -> Self {
        let row = format!("({})", ["?"; VALUES].join(", "));
        // FAIL: whatever runs is undone with its job. The default would undo the statement alone, and
        // for that keep a journal of every one.
        let sql = |rows: &[&str]| format!("INSERT OR FAIL INTO {table} VALUES {}", rows.join(", "));
        Insert {
            table,
            one: sql(&[&row]),
            many: sql(&[row.as_str(); ROWS_A_STATEMENT]),
        }
    }

    /// Inserts the `values` of each of `rows`.
    pub(super) fn all<T>(
        &self,
        connection: &Connection,
        rows: &[T],
        values: impl for<'a> Fn(&'a T) -> [Value<'a>; VALUES],
    ) -> Result<(), StoreError> {
        match connection {
            Connection::Postgres(postgres) => self.all_at_once(postgres, rows, values),
            Connection::Sqlite(_) => self.in_pieces(connection, rows, values),
        }
    }

    fn all_at_once<T>(
        &self,
        postgres: &Postgres,
        rows: &[T],
        values: impl for<'a> Fn(&'a T) -> [Value<'a>; VALUES],
    ) -> Result<(), StoreError> {
        if !rows.is_empty() {
            let columns = columns(rows.iter().map(values));
            let sql = format!(
                "INSERT INTO {} SELECT * FROM {}",
                self.table,
                unnest(&columns, 1)
            );
            let values: Vec<_> = columns.iter().map(Value::Set).collect();
            postgres.execute(&sql, &values)?;
        }
        Ok(())
    }

    fn in_pieces<T>(
        &self,
        connection: &Connection,
        rows: &[T],
        values: impl for<'a> Fn(&'a T) -> [Value<'a>; VALUES],
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
    values: impl for<'a> Fn(&'a T) -> [Value<'a>; VALUES],
) -> Result<(), StoreError> {
    let values: Vec<_> = rows.iter().flat_map(values).collect();
    statement.execute(&values[..])?;
    Ok(())
}
#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::database::Sqlite;

    #[test]
    fn every_row_is_there_once_however_many_there_are() {
        let connection =
            Connection::Sqlite(Sqlite::of(rusqlite::Connection::open_in_memory().unwrap()));
        connection
            .execute_batch("CREATE TABLE t (number INTEGER PRIMARY KEY, word TEXT, hash BLOB)")
            .unwrap();
        let insert = Insert::into("t (number, word, hash)");
        for count in [0, 1, 63, 64, 65, 128, 200] {
            let rows: Vec<(i64, String)> = (0..count).map(|n| (n, format!("word {n}"))).collect();
            let result = insert.all(&connection, &rows, |(number, word)| {
                let hash = (number % 3 == 0).then_some(word.as_bytes());
                [
                    Value::Integer(Some(*number)),
                    Value::Text(Some(word)),
                    Value::Blob(hash),
                ]
            });
            result.unwrap();
            let found: Vec<(i64, String)> = connection
                .prepare_cached("DELETE FROM t RETURNING number, word, hash IS NOT NULL")
                .unwrap()
                .query_map((), |row| {
                    let number: i64 = row.get(0)?;
                    assert_eq!(row.get::<bool>(2)?, number % 3 == 0);
                    Ok((number, row.get(1)?))
                })
                .unwrap()
                .collect::<Result<_, _>>()
                .unwrap();
            assert_eq!(found, rows);
        }
    }
}
