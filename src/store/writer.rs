//! The one thread that writes, and its group commit.
//!
//! SQLite has one writer at a time. Instead of letting callers queue for its lock, one thread owns
//! the connection and takes whatever waits into one transaction: a hundred pages share one
//! `fsync`. Pages go first, so that the front door's time does not depend on the fold.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::database::Connection;
use super::ledger::state::Ledger;
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
    closed: bool,
}

#[derive(Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    arrived: Condvar,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // A job that panics does so outside the lock; the queue itself is always whole.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next job; waits for one, and is `None` once closed and empty.
    fn take(&self) -> Option<Job> {
        let mut waiting = self.lock();
        loop {
            if let Some(job) = waiting.next() {
                return Some(job);
            }
            if waiting.closed {
                return None;
            }
            waiting = self
                .arrived
                .wait(waiting)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Waiting {
    fn next(&mut self) -> Option<Job> {
        self.pages.pop_front().or_else(|| self.work.pop_front())
    }
}

/// A handle to the writing thread.
pub struct Writer {
    queue: Arc<Queue>,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
}

impl Writer {
    /// Starts the thread.
    pub fn start(ledger: Ledger) -> std::io::Result<Self> {
        let queue = Arc::new(Queue::default());
        let theirs = Arc::clone(&queue);
        let thread = std::thread::Builder::new()
            .name("ledger-writer".into())
            .spawn(move || {
                let _end = EndWithThread;
                run(ledger, &theirs);
            })?;
        Ok(Writer {
            queue,
            thread: Mutex::new(Some(thread)),
        })
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
        {
            let mut waiting = self.queue.lock();
            if waiting.closed {
                return answered;
            }
            match urgency {
                Urgency::Page => waiting.pages.push_back(job),
                Urgency::Work => waiting.work.push_back(job),
            }
        }
        self.queue.arrived.notify_one();
        answered
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

impl Drop for Writer {
    fn drop(&mut self) {
        self.close();
    }
}

/// Ends the process where a writing thread panics: nothing could be written any more, and a restart,
/// which is safe at any moment, mends what this cannot.
pub(super) struct EndWithThread;

impl Drop for EndWithThread {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!("the ledger's writer panicked: the process ends");
            std::process::abort();
        }
    }
}

fn run(mut ledger: Ledger, queue: &Queue) {
    while let Some(first) = queue.take() {
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
    queue: &Queue,
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
        let Some(job) = queue.lock().next() else {
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
