//! Moves a ledger from a SQLite file into a PostgreSQL database.
//!
//! Table by table, in the order of the primary keys, in pieces. How far that is goes with each piece, in
//! the same transaction, so a copy that was killed goes on where its last piece ended. Nobody else
//! touches either side meanwhile: the file's lock is held, and whoever opens a database whose copy is
//! unfinished is refused. At the end both sides are read again and compared; only then does the file
//! say that it was moved, and only after that is the database one to be used.

use std::fs::File;
use std::path::Path;

use serde::{Deserialize, Serialize};

mod error;
mod meta;
mod tables;

pub use error::MoveError;

use super::database::{Connection, OptionalRow, Sqlite, params};
use super::{PostgresUrl, StoreError, postgres, sqlite};
use crate::clock::Millis;
use crate::rfc3339;
use tables::{KeyPart, Sum, TABLES, Table};

/// Rows of a piece at most: some tenths of a second.
const PIECE_ROWS: usize = 10_000;

/// In the target, for as long as the copy is unfinished: of which ledger it is.
const COPYING_FROM: &str = "copying_from";

/// In the target, for as long as the copy is unfinished: how far it is.
const COPIED_THROUGH: &str = "copied_through";

/// In the target afterwards: since when.
const MOVED_HERE: &str = "moved_here";

/// In the source afterwards: where to and when.
pub(super) const MOVED_TO: &str = "moved_to";

/// How far it is.
#[derive(Clone, Copy, Debug)]
pub struct MoveProgress {
    /// Which table.
    pub table: &'static str,
    /// Whether it is being compared, rather than copied.
    pub is_compared: bool,
    /// Rows so far, of all tables; compared ones are counted on both sides.
    pub rows: u64,
    /// Rows that there are to copy, or to compare.
    pub total: u64,
}

/// A table on both sides.
#[derive(Clone, Debug)]
pub struct Compared {
    /// Which.
    pub table: &'static str,
    /// Rows in the source and in the target.
    pub rows: [u64; 2],
    /// SHA-256 of them in the order of their keys, in hex.
    pub checksums: [String; 2],
}

impl Compared {
    fn of(table: &'static str, sums: [Sum; 2]) -> Self {
        Compared {
            table,
            rows: sums.map(|sum| sum.rows),
            checksums: sums.map(|sum| sqlite::hex(&sum.checksum)),
        }
    }

    /// Whether both sides have the same.
    pub fn is_same(&self) -> bool {
        self.rows[0] == self.rows[1] && self.checksums[0] == self.checksums[1]
    }
}

/// What came of it.
#[derive(Debug)]
pub enum Moved {
    /// It was moved.
    Now(Vec<Compared>),
    /// It had been before, on that day.
    Before(String),
    /// Both sides differ: the target stays unfinished.
    Differs(Vec<Compared>),
}

/// How far a copy is: `table` is `None` when all of them are there.
#[derive(Serialize, Deserialize)]
struct Position {
    table: Option<String>,
    behind: Option<Vec<KeyPart>>,
    rows: u64,
}

/// Whether a copy into this database was begun and not ended.
pub(super) fn is_unfinished(target: &Connection) -> Result<bool, StoreError> {
    Ok(meta::get(target, COPYING_FROM)?.is_some())
}

/// The source, which nobody else has open.
struct Source {
    connection: Connection,
    path: String,
    ledger_id: String,
    moved_to: Option<String>,
    _lock: File,
}

impl Source {
    /// Opens it and brings its schema up to date, as a start of the service would.
    fn open(path: &Path) -> Result<Self, MoveError> {
        if !path.is_file() {
            return Err(MoveError::NoSource(path.into()));
        }
        let lock = sqlite::lock(path)?;
        let mut file = Sqlite::connect(path).map_err(StoreError::from)?;
        sqlite::migrate(file.inner())?;
        let ledger_id = sqlite::secret(file.inner(), "ledger_id")?;
        sqlite::secret(file.inner(), "log_hash_key")?;
        let moved_to = sqlite::moved_to(file.inner())?;
        Ok(Source {
            connection: Connection::Sqlite(file),
            path: path.display().to_string(),
            ledger_id: sqlite::hex(&ledger_id),
            moved_to,
            _lock: lock,
        })
    }

    fn tables(&self) -> Result<Vec<Table>, StoreError> {
        let tables = TABLES.iter().map(|name| Table::of(&self.connection, name));
        tables.collect()
    }
}

/// Takes back that the ledger of a file was moved; whether it said so.
///
/// # Errors
/// Where the file is not there, or in use.
pub fn take_back(path: &Path) -> Result<bool, MoveError> {
    let source = Source::open(path)?;
    let forget = "DELETE FROM meta WHERE key = ?1";
    let forgotten = source.connection.execute(forget, [MOVED_TO]);
    Ok(forgotten.map_err(StoreError::from)? > 0)
}

/// Moves the ledger of a file into a database, or goes on with that. Tells `watch` how far it is after
/// each piece, and stops where that returns false. To be called where blocking is allowed.
///
/// # Errors
/// As [`MoveError`] says. What was copied stays, and the next call goes on from there.
pub fn move_ledger(
    path: &Path,
    target: &PostgresUrl,
    now: Millis,
    watch: &mut dyn FnMut(MoveProgress) -> bool,
) -> Result<Moved, MoveError> {
    let source = Source::open(path)?;
    let place = target.place();
    let (connection, begun) =
        postgres::open_for_copy(target, |connection| begin(&source, connection, &place))?;
    let position = match begun {
        Begun::Done(at) => return Ok(Moved::Before(at)),
        Begun::At(position) => position,
    };
    let mut copy = Copy {
        source: &source.connection,
        target: &connection,
        tables: source.tables()?,
        position,
        watch,
    };
    copy.copy()?;
    let compared = copy.compare()?;
    if !compared.iter().all(Compared::is_same) {
        return Ok(Moved::Differs(compared));
    }
    // The source first: were the target free before, a kill in between would leave two ledgers that
    // may both be used.
    let at = rfc3339::utc(now);
    meta::set(&source.connection, MOVED_TO, &format!("{place} on {at}"))?;
    connection.begin().map_err(StoreError::from)?;
    meta::set(&connection, MOVED_HERE, &at)?;
    connection
        .execute(
            "DELETE FROM meta WHERE key IN (?1, ?2)",
            [COPYING_FROM, COPIED_THROUGH],
        )
        .map_err(StoreError::from)?;
    connection.commit().map_err(StoreError::from)?;
    Ok(Moved::Now(compared))
}

enum Begun {
    At(Position),
    Done(String),
}

/// Finds out what the target holds, and marks it.
fn begin(source: &Source, target: &Connection, place: &str) -> Result<Begun, MoveError> {
    let place = place.to_owned();
    if let Some(of) = meta::get(target, COPYING_FROM)? {
        if of != source.ledger_id {
            let ledger = of.get(..16).unwrap_or(&of).to_owned();
            return Err(MoveError::OfAnother { place, ledger });
        }
        let through = meta::get(target, COPIED_THROUGH)?.unwrap_or_default();
        let position = serde_json::from_str(&through);
        return Ok(Begun::At(position.map_err(|_| {
            StoreError::Failed(format!("{COPIED_THROUGH} is damaged"))
        })?));
    }
    if meta::get(target, "ledger_id")?.as_ref() == Some(&source.ledger_id) {
        let at = meta::get(target, MOVED_HERE)?.unwrap_or_default();
        return match source.moved_to {
            Some(_) => Ok(Begun::Done(at)),
            None => Err(MoveError::CopiedBefore { place, at }),
        };
    }
    for table in TABLES.iter().chain(&["meta"]) {
        let any = format!("SELECT 1 FROM {table} LIMIT 1");
        let any = target.query_row(&any, (), |_| Ok(())).optional();
        if any.map_err(StoreError::from)?.is_some() {
            return Err(MoveError::Occupied(place));
        }
    }
    if let Some(to) = source.moved_to.clone() {
        let path = source.path.clone();
        return Err(MoveError::MovedBefore { path, to });
    }
    let position = Position {
        table: Some(TABLES[0].to_owned()),
        behind: None,
        rows: 0,
    };
    meta::set(target, COPYING_FROM, &source.ledger_id)?;
    meta::set(target, COPIED_THROUGH, &position.text()?)?;
    Ok(Begun::At(position))
}

impl Position {
    fn text(&self) -> Result<String, StoreError> {
        serde_json::to_string(self).map_err(|error| StoreError::Failed(error.to_string()))
    }
}

struct Copy<'a> {
    source: &'a Connection,
    target: &'a Connection,
    tables: Vec<Table>,
    position: Position,
    watch: &'a mut dyn FnMut(MoveProgress) -> bool,
}

impl Copy<'_> {
    /// Copies what is not there yet.
    fn copy(&mut self) -> Result<(), MoveError> {
        let Some(at) = self.position.table.clone() else {
            return Ok(());
        };
        let mut total = 0;
        for table in &self.tables {
            total += table.count(self.source)?;
        }
        let first = self.tables.iter().position(|table| table.name == at);
        let first = first.ok_or_else(|| StoreError::Failed(format!("there is no table {at}")))?;
        for number in first..self.tables.len() {
            while self.copy_piece(number, total)? {}
        }
        Ok(())
    }

    /// Copies the next piece of a table; whether there may be another.
    fn copy_piece(&mut self, number: usize, total: u64) -> Result<bool, MoveError> {
        let table = &self.tables[number];
        let behind = self.position.behind.as_deref();
        let piece = table.piece(self.source, behind, PIECE_ROWS)?;
        if piece.has_nul() {
            return Err(MoveError::Nul(table.name));
        }
        let rows = self.position.rows + piece.rows as u64;
        let last = table.last_key(&piece);
        let is_over = last.is_none();
        let next = match last {
            Some(_) => Some(table.name),
            None => self.tables.get(number + 1).map(|table| table.name),
        };
        let position = Position {
            table: next.map(str::to_owned),
            behind: last,
            rows,
        };

        self.target.begin().map_err(StoreError::from)?;
        table.insert(self.target, &piece)?;
        if next.is_none() {
            meta::copy(self.source, self.target)?;
            meta::continue_numbers(self.source, self.target)?;
        }
        // Else somebody else was here.
        let moved_on = self.target.execute(
            "UPDATE meta SET value = ?3 WHERE key = ?1 AND value = ?2",
            params![COPIED_THROUGH, self.position.text()?, position.text()?],
        );
        if moved_on.map_err(StoreError::from)? != 1 {
            return Err(MoveError::NotAlone);
        }
        self.target.commit().map_err(StoreError::from)?;

        self.position = position;
        self.tell(table_of(&self.tables, number), false, rows, total)?;
        Ok(!is_over)
    }

    /// Reads everything again on both sides.
    fn compare(&mut self) -> Result<Vec<Compared>, MoveError> {
        let mut compared = Vec::new();
        let mut total = 0;
        for table in &self.tables {
            total += table.count(self.source)? + table.count(self.target)?;
        }
        let mut rows = 0;
        for number in 0..self.tables.len() {
            let name = table_of(&self.tables, number);
            let mut sums = Vec::new();
            for side in [self.source, self.target] {
                let mut stopped = false;
                let watch = &mut *self.watch;
                let sum = self.tables[number].sum(side, PIECE_ROWS, |more| {
                    rows += more;
                    stopped |= !watch(MoveProgress {
                        table: name,
                        is_compared: true,
                        rows,
                        total,
                    });
                })?;
                if stopped {
                    return Err(MoveError::Stopped);
                }
                sums.push(sum);
            }
            compared.push(Compared::of(name, [sums[0], sums[1]]));
        }
        let sums = [meta::sum(self.source)?, meta::sum(self.target)?];
        compared.push(Compared::of("meta", sums));
        Ok(compared)
    }

    fn tell(
        &mut self,
        table: &'static str,
        is_compared: bool,
        rows: u64,
        total: u64,
    ) -> Result<(), MoveError> {
        let progress = MoveProgress {
            table,
            is_compared,
            rows,
            total,
        };
        match (self.watch)(progress) {
            true => Ok(()),
            false => Err(MoveError::Stopped),
        }
    }
}

fn table_of(tables: &[Table], number: usize) -> &'static str {
    tables[number].name
}
