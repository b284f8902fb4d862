//! What is handed to a statement.

use std::error::Error;
use std::sync::Arc;

use bytes::BytesMut;
use rusqlite::types::{Null, ToSqlOutput, ValueRef};
use tokio_postgres::types::{IsNull, ToSql, Type, to_sql_checked};

use super::sets::Column;

/// A parameter. What may be missing says of which type it would be.
#[derive(Clone, Copy, Debug)]
pub enum Value<'a> {
    Integer(Option<i64>),
    Real(Option<f64>),
    Text(Option<&'a str>),
    Blob(Option<&'a [u8]>),
    /// Many of one type; for PostgreSQL alone.
    Set(&'a Column<'a>),
}

impl Value<'_> {
    /// Its type in PostgreSQL.
    pub(super) fn column_type(&self) -> Type {
        match self {
            Value::Integer(_) => Type::INT8,
            Value::Real(_) => Type::FLOAT8,
            Value::Text(_) => Type::TEXT,
            Value::Blob(_) => Type::BYTEA,
            Value::Set(column) => column.column_type(),
        }
    }
}

impl From<i64> for Value<'_> {
    fn from(value: i64) -> Self {
        Value::Integer(Some(value))
    }
}

impl From<Option<i64>> for Value<'_> {
    fn from(value: Option<i64>) -> Self {
        Value::Integer(value)
    }
}

impl<'a> From<&'a str> for Value<'a> {
    fn from(value: &'a str) -> Self {
        Value::Text(Some(value))
    }
}

impl<'a> From<&'a [u8]> for Value<'a> {
    fn from(value: &'a [u8]) -> Self {
        Value::Blob(Some(value))
    }
}

impl rusqlite::ToSql for Value<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(match *self {
            Value::Integer(Some(value)) => ToSqlOutput::Borrowed(ValueRef::Integer(value)),
            Value::Real(Some(value)) => ToSqlOutput::Borrowed(ValueRef::Real(value)),
            Value::Text(Some(value)) => ToSqlOutput::Borrowed(ValueRef::Text(value.as_bytes())),
            Value::Blob(Some(value)) => ToSqlOutput::Borrowed(ValueRef::Blob(value)),
            _ => ToSqlOutput::from(Null),
        })
    }
}

impl ToSql for Value<'_> {
    fn to_sql(
        &self,
        column: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        match self {
            Value::Integer(value) => value.to_sql(column, out),
            Value::Real(value) => value.to_sql(column, out),
            Value::Text(value) => value.to_sql(column, out),
            Value::Blob(value) => value.to_sql(column, out),
            Value::Set(values) => values.to_sql(column, out),
        }
    }

    fn accepts(_: &Type) -> bool {
        // It is sent as what it is: see `column_type`.
        true
    }

    to_sql_checked!();
}

/// What can be a parameter.
pub trait ToValue {
    /// As one.
    fn to_value(&self) -> Value<'_>;
}

impl ToValue for Value<'_> {
    fn to_value(&self) -> Value<'_> {
        *self
    }
}

macro_rules! integers {
    ($($type:ty),*) => {$(
        impl ToValue for $type {
            fn to_value(&self) -> Value<'_> {
                // No count of ours comes near.
                Value::Integer(Some(i64::try_from(*self).unwrap_or(i64::MAX)))
            }
        }
    )*};
}
integers!(i32, i64, u32, u64, usize);

impl ToValue for bool {
    fn to_value(&self) -> Value<'_> {
        Value::Integer(Some(i64::from(*self)))
    }
}

impl ToValue for f64 {
    fn to_value(&self) -> Value<'_> {
        Value::Real(Some(*self))
    }
}

impl ToValue for str {
    fn to_value(&self) -> Value<'_> {
        Value::Text(Some(self))
    }
}

impl ToValue for String {
    fn to_value(&self) -> Value<'_> {
        Value::Text(Some(self))
    }
}

impl ToValue for Arc<str> {
    fn to_value(&self) -> Value<'_> {
        Value::Text(Some(self))
    }
}

impl ToValue for [u8] {
    fn to_value(&self) -> Value<'_> {
        Value::Blob(Some(self))
    }
}

impl ToValue for Vec<u8> {
    fn to_value(&self) -> Value<'_> {
        Value::Blob(Some(self))
    }
}

impl<const N: usize> ToValue for [u8; N] {
    fn to_value(&self) -> Value<'_> {
        Value::Blob(Some(self))
    }
}

impl<T: ToValue + ?Sized> ToValue for &T {
    fn to_value(&self) -> Value<'_> {
        (**self).to_value()
    }
}

/// What a missing value would be.
pub trait Typed {
    /// Of this type.
    const MISSING: Value<'static>;
}

macro_rules! missing {
    ($($type:ty => $kind:ident),*) => {$(
        impl Typed for $type {
            const MISSING: Value<'static> = Value::$kind(None);
        }
    )*};
}
missing!(i32 => Integer, i64 => Integer, u32 => Integer, u64 => Integer, usize => Integer, bool => Integer, f64 => Real, str => Text, String => Text, Arc<str> => Text, [u8] => Blob, Vec<u8> => Blob);

impl<T: Typed + ?Sized> Typed for &T {
    const MISSING: Value<'static> = T::MISSING;
}

impl<T: ToValue + Typed> ToValue for Option<T> {
    fn to_value(&self) -> Value<'_> {
        self.as_ref().map_or(T::MISSING, ToValue::to_value)
    }
}
