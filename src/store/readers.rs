//! Connections that read beside the one who writes.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Semaphore;

use super::database::Connection;
use super::{Database, StoreError};

/// Idle connections kept open.
const IDLE: usize = 2;

/// Connections that read from a server at most.
const MOST_TO_SERVER: usize = 3;

/// Connections to a PostgreSQL server that a process has at most: two that write, one that says that this
/// process is alive, and those that read.
pub const MOST_CONNECTIONS: usize = 3 + MOST_TO_SERVER;

/// A pool; clones share it.
#[derive(Clone)]
pub struct Readers {
    database: Arc<Database>,
    /// One for each query under way.
    room: Arc<Semaphore>,
    /// `None` once closed.
    idle: Arc<Mutex<Option<Vec<Connection>>>>,
}

impl Readers {
    /// With no connection yet.
    pub fn new(database: Database) -> Self {
        let most = match &database {
            Database::Sqlite(_) => Semaphore::MAX_PERMITS,
            Database::Postgres(_) => MOST_TO_SERVER,
        };
        Self::at_most(most, database)
    }

    /// A single one.
    pub fn one(database: Database) -> Self {
        Self::at_most(1, database)
    }

    fn at_most(connections: usize, database: Database) -> Self {
        Readers {
            room: Arc::new(Semaphore::new(connections)),
            database: Arc::new(database),
            idle: Arc::new(Mutex::new(Some(Vec::new()))),
        }
    }

    /// Whether other processes may write meanwhile.
    pub fn is_shared(&self) -> bool {
        matches!(*self.database, Database::Postgres(_))
    }

    /// Runs a query where it may block. It goes on though the caller goes away.
    pub async fn read<R, F>(&self, query: F) -> Result<R, StoreError>
    where
        R: Send + 'static,
        F: FnOnce(&Connection) -> Result<R, StoreError> + Send + 'static,
    {
        let room = Arc::clone(&self.room).acquire_owned().await;
        let pool = self.clone();
        let reading = tokio::task::spawn_blocking(move || {
            // Given up last: the connection is kept, or closed, before another may be opened.
            let _room = room;
            let idle = pool.lock().as_mut().map(Vec::pop);
            let connection = match idle.ok_or(StoreError::Closed)? {
                Some(connection) => connection,
                None => pool.database.reader()?,
            };
            let result = query(&connection);
            if let Some(idle) = pool.lock().as_mut().filter(|idle| idle.len() < IDLE) {
                idle.push(connection);
            }
            result
        });
        reading.await.unwrap_or(Err(StoreError::Closed))
    }

    /// Closes those that are idle, and opens no more.
    pub fn close(&self) {
        self.lock().take();
    }

    fn lock(&self) -> MutexGuard<'_, Option<Vec<Connection>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
