//! Where pages are written down in PostgreSQL: by a thread of its own, many with a statement.
//!
//! Replicas share the inbox, and its numbers are the order in which pages are folded. A number is given
//! when a row is inserted, but the row can be seen only once it is committed; so that none becomes visible
//! behind a higher one, a lock lasts from the one to the other. It is taken by the statement itself, and
//! not by a transaction in which this process could be stopped.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::sync::oneshot;

use super::StoreError;
use super::database::sets::{columns, unnest};
use super::database::{Postgres, Value};
use super::ledger::inbox::{COLUMNS, InboxPage};
use super::refusals::Refusals;
use super::worker::{Queue, Worker};

/// Bytes of rosters that one statement writes, about.
const MOST_BYTES: usize = 8 * 1024 * 1024;

/// How long a page may take to be written down: whoever sent it waits, and may send it to a replica that
/// reaches the database.
const PATIENCE: Duration = Duration::from_secs(10);

/// The lock under which numbers are given.
const NUMBERS_LOCK: i64 = 0x636f_686f_7274_0002;

type Page = (InboxPage, oneshot::Sender<Result<(), StoreError>>);

#[derive(Default)]
struct Waiting {
    pages: VecDeque<Page>,
    /// Refusals are to be written down, whether or not a page comes.
    has_refusals: bool,
}

impl Waiting {
    /// As many pages as one statement writes.
    fn next(&mut self) -> Option<Vec<Page>> {
        if self.pages.is_empty() && !std::mem::take(&mut self.has_refusals) {
            return None;
        }
        let mut bytes = 0;
        let fit = self.pages.iter().take_while(|(page, _)| {
            let before = bytes;
            bytes += page.bytes();
            before < MOST_BYTES
        });
        let fit = fit.count();
        Some(self.pages.drain(..fit).collect())
    }
}

/// A handle to the thread.
pub struct Appender(Worker<Waiting>);

impl Appender {
    /// Starts the thread.
    pub fn start(postgres: Postgres, refusals: Refusals) -> std::io::Result<Self> {
        let postgres = postgres.with_patience(PATIENCE);
        let work = move |queue: &Queue<Waiting>| {
            while let Some(pages) = queue.take(Waiting::next) {
                write_down(&postgres, &refusals, pages);
            }
        };
        Worker::start("inbox-writer", work).map(Appender)
    }

    /// Writes a page down; returns once it is durable. It is written though the caller goes away.
    pub async fn append(&self, page: InboxPage) -> Result<(), StoreError> {
        let (answer, answered) = oneshot::channel();
        self.0
            .order(|waiting| waiting.pages.push_back((page, answer)));
        answered.await.unwrap_or(Err(StoreError::Closed))
    }

    /// Has the refusals written down that are remembered; nobody waits for it.
    pub fn note_refusals(&self) {
        self.0.order(|waiting| waiting.has_refusals = true);
    }

    /// Finishes what waits and ends the thread.
    pub fn close(&self) {
        self.0.close();
    }
}

fn write_down(postgres: &Postgres, refusals: &Refusals, pages: Vec<Page>) {
    // They came before the pages, and one of those may be the very one that was refused.
    let noted = refusals.take();
    let (pages, answers): (Vec<_>, Vec<_>) = pages.into_iter().unzip();
    let rows = noted.refusals().iter().chain(&pages);
    let written = insert(postgres, rows);
    if written.is_ok() {
        noted.keep();
    }
    // Before anybody can send the page again.
    drop(noted);
    for answer in answers {
        let result = written.as_ref().copied().map_err(StoreError::again);
        // The caller may be gone; the page is written all the same.
        let _ = answer.send(result);
    }
}

fn insert<'a>(
    postgres: &Postgres,
    pages: impl Iterator<Item = &'a InboxPage>,
) -> Result<(), StoreError> {
    let set_aside: Vec<_> = pages.map(|page| (page, page.set_aside())).collect();
    let columns = columns(
        set_aside
            .iter()
            .map(|(page, set_aside)| page.values(set_aside)),
    );
    if columns.is_empty() {
        return Ok(());
    }
    let names = COLUMNS.join(", ");
    let sql = format!(
        "WITH numbers AS MATERIALIZED (SELECT pg_advisory_xact_lock($1))
         INSERT INTO inbox ({names})
         SELECT {names} FROM numbers, {} WITH ORDINALITY AS pages ({names}, place) ORDER BY place",
        unnest(&columns, 2)
    );
    let lock = Value::Integer(Some(NUMBERS_LOCK));
    let values: Vec<_> = std::iter::once(lock)
        .chain(columns.iter().map(Value::Set))
        .collect();
    postgres.execute(&sql, &values)?;
    Ok(())
}
