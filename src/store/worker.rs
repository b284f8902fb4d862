//! A thread that does what waits for it, until it is told to end.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// A handle to the thread. Dropped, it finishes what waits and ends.
pub struct Worker<W> {
    queue: Arc<Queue<W>>,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
}

/// What waits for the thread, in whatever order the work itself keeps.
pub struct Queue<W> {
    waiting: Mutex<Waiting<W>>,
    arrived: Condvar,
}

#[derive(Default)]
struct Waiting<W> {
    work: W,
    closed: bool,
}

impl<W> Queue<W> {
    fn lock(&self) -> MutexGuard<'_, Waiting<W>> {
        // Work that panics does so outside the lock; the queue itself is always whole.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What `next` finds; waits until there is something, and is `None` once closed and empty.
    pub fn take<T>(&self, mut next: impl FnMut(&mut W) -> Option<T>) -> Option<T> {
        let mut waiting = self.lock();
        loop {
            let found = next(&mut waiting.work);
            if found.is_some() || waiting.closed {
                return found;
            }
            waiting = self
                .arrived
                .wait(waiting)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// What `next` finds now.
    pub fn take_now<T>(&self, next: impl FnOnce(&mut W) -> Option<T>) -> Option<T> {
        next(&mut self.lock().work)
    }
}

impl<W: Default + Send + 'static> Worker<W> {
    /// Starts a thread that runs `work` with its queue.
    pub fn start(
        name: &str,
        work: impl FnOnce(&Queue<W>) + Send + 'static,
    ) -> std::io::Result<Self> {
        let queue = Arc::new(Queue {
            waiting: Mutex::default(),
            arrived: Condvar::new(),
        });
        let theirs = Arc::clone(&queue);
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                let _end = EndWithThread;
                work(&theirs);
            })?;
        Ok(Worker {
            queue,
            thread: Mutex::new(Some(thread)),
        })
    }
}

impl<W> Worker<W> {
    /// Has something added to what waits; not where it is closed.
    pub fn order(&self, add: impl FnOnce(&mut W)) {
        let mut waiting = self.queue.lock();
        if !waiting.closed {
            add(&mut waiting.work);
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

impl<W> Drop for Worker<W> {
    fn drop(&mut self) {
        self.close();
    }
}

/// Ends the process where the thread panics: nothing could be written any more, and a restart, which
/// is safe at any moment, mends what this cannot.
struct EndWithThread;

impl Drop for EndWithThread {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!("a writer of the ledger panicked: the process ends");
            std::process::abort();
        }
    }
}
