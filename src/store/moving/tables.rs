//! The tables of a ledger, read in the order of their primary keys from either database.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::store::StoreError;
use crate::store::database::sets::Column;
use crate::store::database::{Connection, Row, Value};

/// What is copied row by row, in this order: who is referred to comes first. `meta` is not among them,
/// since it is written otherwise in PostgreSQL, nor are the lease and its term, which are the database's own.
pub const TABLES: [&str; 24] = [
    "trait",
    "cohort",
    "source",
    "source_property",
    "destination",
    "inbox",
    "set_aside",
    "session",
    "session_page",
    "refusal",
    "fate",
    "layer_mark",
    "member",
    "holder",
    "key_move",
    "erasure",
    "pending",
    "backlog",
    "dead_letter",
    "unproven",
    "route",
    "calls",
    "parked",
    "resync",
];

/// Bytes of a piece after which it ends: pages have megabytes.
const PIECE_BYTES: usize = 8 * 1024 * 1024;

/// Rows that are read at a time where each may have megabytes: what PostgreSQL has begun to send it
/// sends.
const LARGE_ROWS: usize = 64;

/// A table, as SQLite has it.
pub struct Table {
    pub name: &'static str,
    columns: Vec<(String, Kind)>,
    /// Which columns are the primary key.
    key: Vec<usize>,
}

#[derive(Clone, Copy)]
enum Kind {
    Integer,
    Real,
    Text,
    Blob,
}

/// Part of a row's key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum KeyPart {
    #[serde(rename = "number")]
    Integer(i64),
    #[serde(rename = "text")]
    Text(String),
    #[serde(rename = "bytes")]
    Blob(Vec<u8>),
}

/// Rows, column by column.
pub struct Piece {
    columns: Vec<Cells>,
    pub rows: usize,
    bytes: usize,
}

enum Cells {
    Integers(Vec<Option<i64>>),
    Reals(Vec<Option<f64>>),
    Texts(Vec<Option<String>>),
    Blobs(Vec<Option<Vec<u8>>>),
}

/// How many rows a table has, and what is in them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sum {
    pub rows: u64,
    pub checksum: [u8; 32],
}

impl Table {
    /// As the source has it.
    pub fn of(source: &Connection, name: &'static str) -> Result<Self, StoreError> {
        let (mut columns, mut key) = (Vec::new(), Vec::new());
        source
            .prepare_cached("SELECT name, type, pk FROM pragma_table_info(?1) ORDER BY cid")?
            .scan([name], |row| {
                let place: usize = row.get(2)?;
                if place > 0 {
                    key.push((place, columns.len()));
                }
                let kind = match row.text(1)? {
                    "INTEGER" => Kind::Integer,
                    "REAL" => Kind::Real,
                    "TEXT" => Kind::Text,
                    "BLOB" => Kind::Blob,
                    other => {
                        return Err(StoreError::Failed(format!(
                            "{name} has a column of {other}"
                        )));
                    }
                };
                columns.push((row.get(0)?, kind));
                Ok(true)
            })?;
        key.sort_unstable();
        if key.is_empty() {
            return Err(StoreError::Failed(format!("there is no table {name}")));
        }
        let key = key.into_iter().map(|(_, column)| column).collect();
        Ok(Table { name, columns, key })
    }

    /// How many rows it has.
    pub fn count(&self, connection: &Connection) -> Result<u64, StoreError> {
        let sql = format!("SELECT count(*) FROM {}", self.name);
        Ok(connection.query_row(&sql, (), |row| row.get(0))?)
    }

    /// The next rows behind a key, `most` of them or as many as are large.
    pub fn piece(
        &self,
        connection: &Connection,
        behind: Option<&[KeyPart]>,
        most: usize,
    ) -> Result<Piece, StoreError> {
        let most = match self.name {
            "inbox" => most.min(LARGE_ROWS),
            _ => most,
        };
        let sql = self.select(behind.is_some(), most);
        let values: Vec<_> = behind.into_iter().flatten().map(KeyPart::value).collect();
        let mut piece = Piece::of(&self.columns);
        connection
            .prepare_cached(&sql)?
            .scan(&values[..], |row| piece.take(row))?;
        Ok(piece)
    }

    fn select(&self, has_key: bool, most: usize) -> String {
        let key: Vec<&str> = self.key.iter().map(|&at| &*self.columns[at].0).collect();
        let key = key.join(", ");
        let behind = match has_key {
            true => {
                let values: Vec<_> = (1..=self.key.len()).map(|n| format!("?{n}")).collect();
                format!("WHERE ({key}) > ({}) ", values.join(", "))
            }
            false => String::new(),
        };
        let columns = self.column_names();
        let name = self.name;
        format!("SELECT {columns} FROM {name} {behind}ORDER BY {key} LIMIT {most}")
    }

    fn column_names(&self) -> String {
        let names: Vec<&str> = self.columns.iter().map(|(name, _)| &**name).collect();
        names.join(", ")
    }

    /// The key of a piece's last row.
    pub fn last_key(&self, piece: &Piece) -> Option<Vec<KeyPart>> {
        let last = piece.rows.checked_sub(1)?;
        let parts = self.key.iter().map(|&column| match &piece.columns[column] {
            Cells::Integers(cells) => cells[last].map(KeyPart::Integer),
            Cells::Texts(cells) => cells[last].clone().map(KeyPart::Text),
            Cells::Blobs(cells) => cells[last].clone().map(KeyPart::Blob),
            Cells::Reals(_) => None,
        });
        parts.collect()
    }

    /// Writes a piece into PostgreSQL.
    pub fn insert(&self, target: &Connection, piece: &Piece) -> Result<(), StoreError> {
        use crate::store::database::sets::unnest;

        if piece.rows == 0 {
            return Ok(());
        }
        let columns: Vec<_> = piece.columns.iter().map(Cells::column).collect();
        // Who numbers rows by himself takes the numbers that they have.
        let numbered = match self.name {
            "inbox" => "OVERRIDING SYSTEM VALUE ",
            _ => "",
        };
        let sql = format!(
            "INSERT INTO {} ({}) {numbered}SELECT * FROM {}",
            self.name,
            self.column_names(),
            unnest(&columns, 1)
        );
        let values: Vec<_> = columns.iter().map(Value::Set).collect();
        target.execute(&sql, &values[..])?;
        Ok(())
    }

    /// Counts and sums up what is in it, row by row in the order of the key.
    pub fn sum(
        &self,
        connection: &Connection,
        most: usize,
        mut count: impl FnMut(u64),
    ) -> Result<Sum, StoreError> {
        let (mut hash, mut rows, mut behind) = (Sha256::new(), 0, None);
        loop {
            let piece = self.piece(connection, behind.as_deref(), most)?;
            let Some(last) = self.last_key(&piece) else {
                let checksum = hash.finalize().into();
                return Ok(Sum { rows, checksum });
            };
            piece.hash(&mut hash);
            rows += piece.rows as u64;
            count(piece.rows as u64);
            behind = Some(last);
        }
    }
}

impl KeyPart {
    fn value(&self) -> Value<'_> {
        match self {
            KeyPart::Integer(value) => Value::from(*value),
            KeyPart::Text(value) => Value::from(&**value),
            KeyPart::Blob(value) => Value::from(&**value),
        }
    }
}

impl Piece {
    fn of(columns: &[(String, Kind)]) -> Self {
        let columns = columns.iter().map(|(_, kind)| match kind {
            Kind::Integer => Cells::Integers(Vec::new()),
            Kind::Real => Cells::Reals(Vec::new()),
            Kind::Text => Cells::Texts(Vec::new()),
            Kind::Blob => Cells::Blobs(Vec::new()),
        });
        Piece {
            columns: columns.collect(),
            rows: 0,
            bytes: 0,
        }
    }

    /// Takes a row in; whether there is room for another.
    fn take(&mut self, row: &Row<'_>) -> Result<bool, StoreError> {
        for (number, cells) in self.columns.iter_mut().enumerate() {
            match cells {
                Cells::Integers(cells) => cells.push(row.get(number)?),
                Cells::Reals(cells) => cells.push(row.get(number)?),
                Cells::Texts(cells) => {
                    let text: Option<String> = row.get(number)?;
                    self.bytes += text.as_ref().map_or(0, String::len);
                    cells.push(text);
                }
                Cells::Blobs(cells) => {
                    let bytes: Option<Vec<u8>> = row.get(number)?;
                    self.bytes += bytes.as_ref().map_or(0, Vec::len);
                    cells.push(bytes);
                }
            }
        }
        self.rows += 1;
        Ok(self.bytes < PIECE_BYTES)
    }

    /// Whether a text has a NUL character.
    pub fn has_nul(&self) -> bool {
        self.columns.iter().any(|cells| match cells {
            Cells::Texts(texts) => texts.iter().flatten().any(|text| text.contains('\0')),
            _ => false,
        })
    }

    fn hash(&self, hash: &mut Sha256) {
        for row in 0..self.rows {
            for cells in &self.columns {
                cells.hash(row, hash);
            }
        }
    }
}

impl Cells {
    fn column(&self) -> Column<'_> {
        match self {
            Cells::Integers(cells) => Column::Integers(cells.clone()),
            Cells::Reals(cells) => Column::Reals(cells.clone()),
            Cells::Texts(cells) => Column::Texts(cells.iter().map(Option::as_deref).collect()),
            Cells::Blobs(cells) => Column::Blobs(cells.iter().map(Option::as_deref).collect()),
        }
    }

    /// What a cell holds, so that no two rows that differ are written alike.
    fn hash(&self, row: usize, hash: &mut Sha256) {
        let (tag, bytes): (u8, Option<&[u8]>) = match self {
            Cells::Integers(cells) => return number(1, cells[row].map(i64::to_be_bytes), hash),
            Cells::Reals(cells) => return number(2, cells[row].map(f64::to_be_bytes), hash),
            Cells::Texts(cells) => (3, cells[row].as_ref().map(String::as_bytes)),
            Cells::Blobs(cells) => (4, cells[row].as_deref()),
        };
        match bytes {
            None => hash.update([0]),
            Some(bytes) => {
                hash.update([tag]);
                hash.update((bytes.len() as u64).to_be_bytes());
                hash.update(bytes);
            }
        }
    }
}

fn number(tag: u8, bytes: Option<[u8; 8]>, hash: &mut Sha256) {
    match bytes {
        None => hash.update([0]),
        Some(bytes) => {
            hash.update([tag]);
            hash.update(bytes);
        }
    }
}
