//! Where pages are written down in PostgreSQL: by a thread of its own, many with a statement.
//!
//! Replicas share the inbox, and its numbers are the order in which pages are folded. A number is given
//! when a row is inserted, but the row can be seen only once it is committed; so that none becomes visible
//! behind a higher one, a lock lasts from the one to the other. It is taken by the statement itself, and
//! not by a transaction in which this process could be stopped.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use super::StoreError;
use super::database::sets::{columns, unnest};
use super::database::{Postgres, Value};
use super::ledger::inbox::{COLUMNS, InboxPage};
use super::refusals::Refusals;
use super::writer::EndWithThread;

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
    closed: bool,
}

#[derive(Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    arrived: Condvar,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next pages; waits for something to do, and is `None` once closed and empty.
    fn take(&self) -> Option<Vec<Page>> {
        let mut waiting = self.lock();
        while waiting.pages.is_empty() && !std::mem::take(&mut waiting.has_refusals) {
            if waiting.closed {
                return None;
            }
            waiting = self
                .arrived
                .wait(waiting)
                .unwrap_or_else(PoisonError::into_inner);
        }
        let mut bytes = 0;
        let fit = waiting.pages.iter().take_while(|(page, _)| {
            let before = bytes;
            bytes += page.bytes();
            before < MOST_BYTES
        });
        let fit = fit.count();
        Some(waiting.pages.drain(..fit).collect())
    }
}

/// A handle to the thread.
pub struct Appender {
    queue: Arc<Queue>,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
}

impl Appender {
    /// Starts the thread.
    pub fn start(postgres: Postgres, refusals: Refusals) -> std::io::Result<Self> {
        let queue = Arc::new(Queue::default());
        let theirs = Arc::clone(&queue);
        let postgres = postgres.with_patience(PATIENCE);
        let thread = std::thread::Builder::new()
            .name("inbox-writer".into())
            .spawn(move || {
                let _end = EndWithThread;
                while let Some(pages) = theirs.take() {
                    write_down(&postgres, &refusals, pages);
                }
            })?;
        Ok(Appender {
            queue,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Writes a page down; returns once it is durable. It is written though the caller goes away.
    pub async fn append(&self, page: InboxPage) -> Result<(), StoreError> {
        let (answer, answered) = oneshot::channel();
        self.order(|waiting| waiting.pages.push_back((page, answer)));
        answered.await.unwrap_or(Err(StoreError::Closed))
    }

    /// Has the refusals written down that are remembered; nobody waits for it.
    pub fn note_refusals(&self) {
        self.order(|waiting| waiting.has_refusals = true);
    }

    fn order(&self, what: impl FnOnce(&mut Waiting)) {
        let mut waiting = self.queue.lock();
        if !waiting.closed {
            what(&mut waiting);
            drop(waiting);
            self.queue.arrived.notify_one();
        }
    }

    /// Finishes what waits and ends the thread.
    pub fn close(&self) {
        self.queue.lock().closed = true;
        self.queue.arrived.notify_one();
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(thread) = thread {
            // A panic there was reported by its hook.
            let _ = thread.join();
        }
    }
}

impl Drop for Appender {
    fn drop(&mut self) {
        self.close();
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
