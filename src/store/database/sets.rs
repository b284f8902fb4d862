//! Many rows as the parameters of one statement, for PostgreSQL: an array a column.

use std::error::Error;

use bytes::BytesMut;
use tokio_postgres::types::{IsNull, ToSql, Type, to_sql_checked};

use super::Value;

/// The values of one column.
#[derive(Debug)]
pub enum Column<'a> {
    Integers(Vec<Option<i64>>),
    Reals(Vec<Option<f64>>),
    Texts(Vec<Option<&'a str>>),
    Blobs(Vec<Option<&'a [u8]>>),
}

/// Rows, column by column; of no rows, no columns.
pub fn columns<'a, const VALUES: usize>(
    rows: impl Iterator<Item = [Value<'a>; VALUES]>,
) -> Vec<Column<'a>> {
    let mut columns: Vec<Column<'a>> = Vec::new();
    for row in rows {
        if columns.is_empty() {
            columns.extend(row.iter().map(Column::of_type));
        }
        for (column, value) in columns.iter_mut().zip(row) {
            column.push(value);
        }
    }
    columns
}

/// The columns as a table; the first parameter is `$first`.
pub fn unnest(columns: &[Column<'_>], first: usize) -> String {
    let arrays: Vec<_> = columns
        .iter()
        .zip(first..)
        .map(|(column, number)| format!("${number}::{}", column.sql_type()))
        .collect();
    format!("unnest({})", arrays.join(", "))
}

/// A statement over one table, in PostgreSQL's words, that is run for all rows at once: `$2` is their
/// second column. Where it finds or returns anything, the last column is the place of the row that it
/// was for, from 1 on.
pub fn joined(sql: &str, columns: &[Column<'_>]) -> String {
    const PLACE: &str = ", rows.place";
    let names: String = (1..=columns.len())
        .map(|at| format!("row_{at}, "))
        .collect();
    let rows = format!(
        "{} WITH ORDINALITY AS rows ({names}place)",
        unnest(columns, 1)
    );
    let sql = sql.replace('$', "rows.row_");
    let (before, after) = sql.split_once(" WHERE ").unwrap_or((&sql, "TRUE"));
    let place = if after.contains(" RETURNING ") {
        PLACE
    } else {
        ""
    };
    match before.split_once(" FROM ") {
        _ if before.starts_with("UPDATE ") => {
            format!("{before} FROM {rows} WHERE {after}{place}")
        }
        Some(("DELETE", table)) => {
            format!("DELETE FROM {table} USING {rows} WHERE {after}{place}")
        }
        Some((found, table)) => format!("{found}{PLACE} FROM {table}, {rows} WHERE {after}"),
        None => unreachable!("{sql} is over no table"),
    }
}

impl<'a> Column<'a> {
    fn of_type(value: &Value<'a>) -> Self {
        match value {
            Value::Integer(_) | Value::Set(_) => Column::Integers(Vec::new()),
            Value::Real(_) => Column::Reals(Vec::new()),
            Value::Text(_) => Column::Texts(Vec::new()),
            Value::Blob(_) => Column::Blobs(Vec::new()),
        }
    }

    fn push(&mut self, value: Value<'a>) {
        match (self, value) {
            (Column::Integers(column), Value::Integer(value)) => column.push(value),
            (Column::Reals(column), Value::Real(value)) => column.push(value),
            (Column::Texts(column), Value::Text(value)) => column.push(value),
            (Column::Blobs(column), Value::Blob(value)) => column.push(value),
            (column, value) => unreachable!("{value:?} in a column of {}", column.sql_type()),
        }
    }

    fn sql_type(&self) -> &'static str {
        match self {
            Column::Integers(_) => "int8[]",
            Column::Reals(_) => "float8[]",
            Column::Texts(_) => "text[]",
            Column::Blobs(_) => "bytea[]",
        }
    }

    pub(super) fn column_type(&self) -> Type {
        match self {
            Column::Integers(_) => Type::INT8_ARRAY,
            Column::Reals(_) => Type::FLOAT8_ARRAY,
            Column::Texts(_) => Type::TEXT_ARRAY,
            Column::Blobs(_) => Type::BYTEA_ARRAY,
        }
    }
}

impl ToSql for Column<'_> {
    fn to_sql(
        &self,
        column: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        match self {
            Column::Integers(values) => values.to_sql(column, out),
            Column::Reals(values) => values.to_sql(column, out),
            Column::Texts(values) => values.to_sql(column, out),
            Column::Blobs(values) => values.to_sql(column, out),
        }
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    to_sql_checked!();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_is_joined_to_all_rows() {
        let rows = [[Value::from(1), Value::from("a")]; 2];
        let columns = columns(rows.into_iter());
        let rows = "unnest($1::int8[], $2::text[]) WITH ORDINALITY AS rows (row_1, row_2, place)";
        for (one, all) in [
            (
                "DELETE FROM t WHERE a = $1 AND b = $2 RETURNING c",
                format!(
                    "DELETE FROM t USING {rows} WHERE a = rows.row_1 AND b = rows.row_2 RETURNING c, rows.place"
                ),
            ),
            (
                "UPDATE t SET b = $2 WHERE a = $1",
                format!("UPDATE t SET b = rows.row_2 FROM {rows} WHERE a = rows.row_1"),
            ),
            (
                "SELECT c FROM t WHERE a = $1 AND b = $2",
                format!(
                    "SELECT c, rows.place FROM t, {rows} WHERE a = rows.row_1 AND b = rows.row_2"
                ),
            ),
        ] {
            assert_eq!(joined(one, &columns), all);
        }
    }
}
