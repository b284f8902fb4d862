//! The one thread that writes, and its group commit.
//!
//! SQLite has one writer at a time. Instead of letting callers queue for its lock, one thread owns
//! the connection and takes whatever waits into one transaction: a hundred pages share one
//! `fsync`. Pages go first, so that the front door's time does not depend on the fold.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::database::Connection;
use super::ledger::state::Ledger;
use super::worker::{Queue, Worker};
use crate::store::StoreError;

/// Work that waits longer than this for company delays an answer; below it the `fsync` dominates.
const TRANSACTION_BUDGET: Duration = Duration::from_millis(5);

/// Which queue a job waits in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// A webhook waits for the answer.
    Page,
    /// Everything else.
    Work,
}

/// Runs once the transaction is over, with the ledger, and with how it ended.
type Reply = Box<dyn FnOnce(&mut Ledger, Result<(), &StoreError>) + Send>;
/// Runs inside the transaction; or learns that none could begin.
type Job = Box<dyn FnOnce(Result<&mut Ledger, &StoreError>) -> Reply + Send>;

#[derive(Default)]
struct Waiting {
    pages: VecDeque<Job>,
    work: VecDeque<Job>,
}

impl Waiting {
    fn next(&mut self) -> Option<Job> {
        self.pages.pop_front().or_else(|| self.work.pop_front())
    }
}

/// A handle to the writing thread.
pub struct Writer(Worker<Waiting>);

impl Writer {
    /// Starts the thread.
    pub fn start(ledger: Ledger) -> std::io::Result<Self> {
        Worker::start("ledger-writer", move |queue| run(ledger, queue)).map(Writer)
    }

    /// Runs `job` in a transaction and returns once that is durable.
    ///
    /// `confirmed` runs on the writer after the commit, for what the ledger keeps in memory only.
    /// The job is not cancelled when the caller goes away.
    pub async fn write<R, J, C>(
        &self,
        urgency: Urgency,
        job: J,
        confirmed: C,
    ) -> Result<R, StoreError>
    where
        R: Send + 'static,
        J: FnOnce(&mut Ledger) -> Result<R, StoreError> + Send + 'static,
        C: FnOnce(&mut Ledger, &R) + Send + 'static,
    {
        self.order(urgency, job, confirmed)
            .await
            .unwrap_or(Err(StoreError::Closed))
    }

    /// As [`Writer::write`], for whoever need not wait. The receiver learns nothing where the writer
    /// is closed.
    pub fn order<R, J, C>(
        &self,
        urgency: Urgency,
        job: J,
        confirmed: C,
    ) -> oneshot::Receiver<Result<R, StoreError>>
    where
        R: Send + 'static,
        J: FnOnce(&mut Ledger) -> Result<R, StoreError> + Send + 'static,
        C: FnOnce(&mut Ledger, &R) + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |ledger| {
            let result = match ledger {
                Ok(ledger) => undone_where_it_fails(ledger, job),
                Err(error) => Err(error.again()),
            };
            Box::new(move |ledger, committed| {
                let result = match committed {
                    Ok(()) => result,
                    Err(error) => Err(result.err().unwrap_or_else(|| error.again())),
                };
                if let Ok(value) = &result {
                    confirmed(ledger, value);
                }
                // The caller may be gone; the work is done all the same.
                let _ = answer.send(result);
            })
        });
        self.0.order(|waiting| match urgency {
            Urgency::Page => waiting.pages.push_back(job),
            Urgency::Work => waiting.work.push_back(job),
        });
        answered
    }

    /// Finishes what waits and ends the thread.
    pub fn close(&self) {
        self.0.close();
    }
}

fn run(mut ledger: Ledger, queue: &Queue<Waiting>) {
    while let Some(first) = queue.take(Waiting::next) {
        let (replies, outcome) = transaction(&mut ledger, first, queue);
        for reply in replies {
            reply(&mut ledger, outcome.as_ref().map(|_| ()));
        }
        if let Connection::Sqlite(sqlite) = &ledger.connection {
            sqlite.keep_log_short();
        }
    }
    if let Connection::Sqlite(sqlite) = &ledger.connection {
        sqlite.checkpoint();
    }
}

fn transaction(
    ledger: &mut Ledger,
    first: Job,
    queue: &Queue<Waiting>,
) -> (Vec<Reply>, Result<(), StoreError>) {
    if let Err(error) = ledger.begin() {
        return (vec![first(Err(&error))], Err(error));
    }
    let start = Instant::now();
    let mut replies = vec![first(Ok(ledger))];
    if ledger.connection.is_shared() {
        // One at a time: to share a commit saves less there than a savepoint for each costs. Where the
        // job failed, the transaction is over.
        let outcome = match ledger.connection.is_in_transaction() {
            true => commit(ledger),
            false => Ok(()),
        };
        return (replies, outcome);
    }
    // A transaction may be given up; what ran after that would stand alone.
    while ledger.connection.is_in_transaction() && start.elapsed() < TRANSACTION_BUDGET {
        let Some(job) = queue.take_now(Waiting::next) else {
            break;
        };
        replies.push(job(Ok(ledger)));
    }
    let outcome = commit(ledger);
    (replies, outcome)
}

fn commit(ledger: &mut Ledger) -> Result<(), StoreError> {
    if !ledger.connection.is_in_transaction() {
        ledger.forget_cached();
        return Err(given_up(&ledger.connection));
    }
    ledger.commit().inspect_err(|_| {
        ledger.forget_cached();
        if ledger.connection.is_in_transaction() {
            // Where even that fails, the next BEGIN says so.
            let _ = ledger.connection.rollback();
        }
        if ledger.connection.is_shared() {
            // It may have come about all the same: what is remembered of calls may be wrong.
            ledger.end_term();
        }
    })
}

/// Runs a job so that its failure undoes its own writes and no others.
fn undone_where_it_fails<R>(
    ledger: &mut Ledger,
    job: impl FnOnce(&mut Ledger) -> Result<R, StoreError>,
) -> Result<R, StoreError> {
    if ledger.connection.is_shared() {
        return job(ledger).inspect_err(|_| {
            ledger.forget_cached();
            // Where even that fails, the next BEGIN says so.
            let _ = ledger.connection.rollback();
        });
    }
    ledger.connection.run("SAVEPOINT job")?;
    let result = job(ledger);
    if !ledger.connection.is_in_transaction() {
        return Err(result.err().unwrap_or(given_up(&ledger.connection)));
    }
    if result.is_err() {
        ledger.forget_cached();
        ledger.connection.run("ROLLBACK TO job")?;
    }
    ledger.connection.run("RELEASE job")?;
    result
}

/// Why a transaction is over before it was committed.
fn given_up(connection: &Connection) -> StoreError {
    match connection {
        Connection::Sqlite(_) => StoreError::Full,
        Connection::Postgres(_) => StoreError::Away("the connection was lost".into()),
    }
}
