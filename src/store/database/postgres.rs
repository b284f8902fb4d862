//! A PostgreSQL connection that is used by one thread at a time, and blocks it.

use std::cell::{Cell, RefCell};
use std::fmt::Write as _;
use std::time::Duration;

use futures_util::TryStreamExt;
use tokio::runtime::Runtime;
use tokio::task::{JoinHandle, yield_now};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::{DatabaseError, Row, Value};
use crate::store::{PostgresUrl, StoreError};

/// How long a statement may take: a database that does not answer is one that is away.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long it may take to connect to a server.
const CONNECT_PATIENCE: Duration = Duration::from_secs(3);

/// After how long the server ends a transaction of which it hears nothing: who stands still in the
/// middle of one would stop everybody else.
const IDLE_IN_TRANSACTION_MS: u32 = 5_000;

/// How long a transaction waits for another one's rows.
const LOCK_PATIENCE_MS: u32 = 15_000;

/// How each transaction is run. In the ledger every statement of a transaction is a small piece of a table,
/// looked up or walked in the order of an index. PostgreSQL knows that only once it has counted the
/// rows, some minutes after a table of none became one of millions; until then it would sort them all
/// for each piece. Hash joins stay: a table that is taken for empty would be gone through once for each
/// row of a piece without them.
const IN_PIECES: &str = "SET LOCAL enable_sort = off; SET LOCAL enable_bitmapscan = off; SET LOCAL enable_seqscan = off; \
     SET LOCAL jit = off";

const DURABILITY: &str = "SELECT current_setting('fsync'), current_setting('synchronous_commit'), current_setting('full_page_writes')";

/// A connection. Nothing is left in its session between two transactions.
pub struct Postgres {
    url: PostgresUrl,
    patience: Duration,
    tls: Option<MakeRustlsConnect>,
    /// `None` only while it is dropped.
    runtime: Option<Runtime>,
    session: RefCell<Option<Session>>,
    in_transaction: Cell<bool>,
}

/// What there is of it on the network, until this is dropped, whatever is being asked.
struct Session {
    client: Client,
    driver: JoinHandle<Result<(), tokio_postgres::Error>>,
    /// See [`PostgresUrl::epoch`].
    epoch: u64,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Postgres {
    /// Connects when it is first asked, and again whenever the connection was lost outside of a
    /// transaction. To be asked where blocking is allowed.
    pub fn new(url: PostgresUrl) -> Result<Self, DatabaseError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| DatabaseError::Damaged(error.to_string()))?;
        Ok(Postgres {
            tls: url.tls().map_err(DatabaseError::Damaged)?,
            url,
            patience: PATIENCE,
            runtime: Some(runtime),
            session: RefCell::new(None),
            in_transaction: Cell::new(false),
        })
    }

    /// Takes it for away where a statement takes longer than this.
    pub fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Whether nothing can be asked of it any more.
    fn is_lost(&self) -> bool {
        let session = self.session.borrow();
        session
            .as_ref()
            .is_none_or(|session| session.client.is_closed())
    }

    /// Whether it may be to a server that is not the primary any more.
    fn is_of_the_past(&self) -> bool {
        let session = self.session.borrow();
        session
            .as_ref()
            .is_some_and(|session| session.epoch != self.url.epoch())
    }

    /// Drops the connection, with whatever is being asked or was begun.
    fn hang_up(&self) {
        self.session.replace(None);
        self.look_after();
    }

    /// Lets the connection learn what became of it: it is driven only while something is asked.
    fn look_after(&self) {
        self.block_on(async {
            // Once to hear what the system knows, once for the connection to act on it.
            for _ in 0..2 {
                yield_now().await;
            }
        });
    }

    fn connect_if_lost(&self) -> Result<(), DatabaseError> {
        if self.in_transaction.get() {
            return Ok(());
        }
        if self.is_of_the_past() {
            self.hang_up();
        }
        if !self.is_lost() {
            self.look_after();
        }
        if !self.is_lost() {
            return Ok(());
        }
        let session = self.block_on(self.connect_to_primary())?;
        self.session.replace(Some(session));
        Ok(())
    }

    async fn connect_to_primary(&self) -> Result<Session, DatabaseError> {
        let mut error = DatabaseError::Lost;
        for (number, server) in self.url.servers() {
            let connecting = tokio::time::timeout(CONNECT_PATIENCE, self.connect(server));
            error = match connecting.await {
                Ok(Ok(mut session)) => {
                    session.epoch = self.url.is_primary(number, session.epoch);
                    return Ok(session);
                }
                Ok(Err(careless @ DatabaseError::NotDurable(_))) => return Err(careless),
                Ok(Err(error)) => error,
                Err(_) => DatabaseError::Silent(CONNECT_PATIENCE),
            };
        }
        Err(error)
    }

    async fn connect(&self, server: &Config) -> Result<Session, DatabaseError> {
        let epoch = self.url.epoch();
        // A connection is driven while this thread waits for an answer; its error is that of the
        // query at hand.
        let (client, driver) = match self.tls.clone() {
            None => {
                let (client, connection) = server.connect(NoTls).await?;
                (client, tokio::spawn(connection))
            }
            Some(tls) => {
                let (client, connection) = server.connect(tls).await?;
                (client, tokio::spawn(connection))
            }
        };
        let session = Session {
            client,
            driver,
            epoch,
        };
        must_be_durable(&session.client).await?;
        Ok(session)
    }

    /// Whether a transaction was begun and neither committed nor rolled back.
    pub fn is_in_transaction(&self) -> bool {
        self.in_transaction.get() && !self.is_lost()
    }

    /// Begins to read everything as it is now.
    pub fn begin_snapshot(&self) -> Result<(), DatabaseError> {
        self.end_the_last();
        self.batch("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")?;
        self.in_transaction.set(true);
        Ok(())
    }

    /// A transaction that nobody ended was given up, with its connection.
    fn end_the_last(&self) {
        if self.in_transaction.replace(false) {
            self.hang_up();
        }
    }

    /// Begins a transaction.
    pub fn begin(&self) -> Result<(), DatabaseError> {
        let [] = self.begin_with("SELECT")?;
        Ok(())
    }

    /// Begins a transaction with a query without parameters, and reads its one row.
    pub fn begin_with<const COLUMNS: usize>(
        &self,
        query: &str,
    ) -> Result<[Option<String>; COLUMNS], DatabaseError> {
        self.end_the_last();
        let sql = format!(
            "BEGIN; SET LOCAL idle_in_transaction_session_timeout = {IDLE_IN_TRANSACTION_MS}; SET LOCAL lock_timeout = {LOCK_PATIENCE_MS}; {IN_PIECES}; {query}"
        );
        let found = self.wait_for(async |client| client.simple_query(&sql).await);
        let found = found.inspect_err(|_| {
            if !self.is_lost() {
                // Where even that fails, it is.
                let _ = self.batch("ROLLBACK");
            }
        })?;
        self.in_transaction.set(true);
        let row = found.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        });
        let column = |at| row.and_then(|row| row.get(at).map(str::to_owned));
        Ok(std::array::from_fn(column))
    }

    /// Ends it, durably. Where that fails it may have come about all the same.
    pub fn commit(&self) -> Result<(), DatabaseError> {
        let committed = self.batch("COMMIT");
        self.in_transaction.set(false);
        committed
    }

    /// Undoes it.
    pub fn rollback(&self) -> Result<(), DatabaseError> {
        let undone = self.batch("ROLLBACK");
        self.in_transaction.set(false);
        undone
    }

    /// Runs statements without parameters.
    pub fn batch(&self, sql: &str) -> Result<(), DatabaseError> {
        self.wait_for(async |client| client.batch_execute(sql).await)
    }

    /// Runs a statement; returns how many rows it wrote.
    pub fn execute(&self, sql: &str, values: &[Value<'_>]) -> Result<u64, DatabaseError> {
        let values = typed(values);
        self.wait_for(async |client| client.execute_typed(sql, &values).await)
    }

    /// Reads one row after the other for as long as `read` wants more.
    pub fn scan<E: From<DatabaseError>>(
        &self,
        sql: &str,
        values: &[Value<'_>],
        read: &mut impl FnMut(&Row<'_>) -> Result<bool, E>,
    ) -> Result<(), E> {
        let values = typed(values);
        let mut failed = None;
        self.wait_for(async |client| {
            let rows = client.query_typed_raw(sql, values).await?;
            let mut rows = std::pin::pin!(rows);
            while let Some(row) = rows.try_next().await? {
                match read(&Row::Postgres(&row)) {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(error) => {
                        failed = Some(error);
                        break;
                    }
                }
            }
            Ok(())
        })?;
        failed.map_or(Ok(()), Err)
    }

    fn block_on<T>(&self, asking: impl Future<Output = T>) -> T {
        match &self.runtime {
            Some(runtime) => runtime.block_on(asking),
            None => unreachable!("it is dropped"),
        }
    }

    fn wait_for<T>(
        &self,
        ask: impl AsyncFnOnce(&Client) -> Result<T, tokio_postgres::Error>,
    ) -> Result<T, DatabaseError> {
        self.connect_if_lost()?;
        let session = self.session.borrow();
        let Some(Session { client, .. }) = &*session else {
            return Err(DatabaseError::Lost);
        };
        let asking = async { tokio::time::timeout(self.patience, ask(client)).await };
        let answer = match self.block_on(asking) {
            Ok(Err(error)) if error.code() == Some(&SqlState::READ_ONLY_SQL_TRANSACTION) => {
                self.url.is_no_primary();
                Err(DatabaseError::from(error))
            }
            Ok(answer) => return Ok(answer?),
            Err(_) => Err(DatabaseError::Silent(self.patience)),
        };
        // What is asked next would wait behind this, or another server takes it by now.
        drop(session);
        self.hang_up();
        answer
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Also where nobody may block.
            runtime.shutdown_background();
        }
    }
}

/// An answer of ours is a promise; some settings of the database would break it.
async fn must_be_durable(client: &Client) -> Result<(), DatabaseError> {
    let settings = ["fsync", "synchronous_commit", "full_page_writes"];
    let found = client.query_typed(DURABILITY, &[]).await?;
    let found = found.first().ok_or(DatabaseError::NoRow)?;
    for (at, setting) in settings.into_iter().enumerate() {
        if found.try_get::<_, &str>(at)? == "off" {
            return Err(DatabaseError::NotDurable(setting));
        }
    }
    Ok(())
}

fn typed<'a>(values: &'a [Value<'_>]) -> Vec<(&'a (dyn ToSql + Sync), Type)> {
    values
        .iter()
        .map(|value| (value as &(dyn ToSql + Sync), value.column_type()))
        .collect()
}

/// SQLite's form of a statement in PostgreSQL's: `$1` for `?1`, and no advice as to which index or in
/// which order.
pub fn translated(sql: &str) -> String {
    const INDEX: &str = "INDEXED BY ";
    const ORDER: &str = "CROSS JOIN ";
    let mut rest = sql;
    let mut translated = String::with_capacity(sql.len());
    while let Some(at) = rest.find(['?', 'I', 'C']) {
        translated.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(behind) = rest.strip_prefix('?') {
            translated.push('$');
            rest = behind;
        } else if let Some(behind) = rest.strip_prefix(INDEX) {
            let name = behind.find(|c: char| !c.is_alphanumeric() && c != '_');
            rest = behind[name.unwrap_or(behind.len())..].trim_start_matches(' ');
        } else if let Some(behind) = rest.strip_prefix(ORDER) {
            translated.push_str("JOIN ");
            rest = behind;
        } else {
            translated.push_str(&rest[..1]);
            rest = &rest[1..];
        }
    }
    translated.push_str(rest);
    translated
}

/// What PostgreSQL said, in its own words.
pub(super) fn words(error: &tokio_postgres::Error) -> String {
    let Some(said) = error.as_db_error() else {
        let mut words = error.to_string();
        let mut source = std::error::Error::source(error);
        while let Some(cause) = source {
            let _ = write!(words, ": {cause}");
            source = cause.source();
        }
        return words;
    };
    // Not the detail: it may name people.
    format!("{} ({})", said.message(), said.code().code())
}

pub(super) fn store_error(error: &tokio_postgres::Error) -> StoreError {
    let Some(code) = error.code() else {
        return StoreError::Away(words(error));
    };
    if *code == SqlState::DISK_FULL {
        return StoreError::Full;
    }
    let is_away = [
        SqlState::ADMIN_SHUTDOWN,
        SqlState::CRASH_SHUTDOWN,
        SqlState::CANNOT_CONNECT_NOW,
        SqlState::TOO_MANY_CONNECTIONS,
        SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT,
        SqlState::READ_ONLY_SQL_TRANSACTION,
        SqlState::LOCK_NOT_AVAILABLE,
    ];
    // 08: connection exceptions.
    if is_away.contains(code) || code.code().starts_with("08") {
        StoreError::Away(words(error))
    } else {
        StoreError::Failed(words(error))
    }
}

#[cfg(test)]
mod tests {
    use super::translated;

    #[test]
    fn parameters_are_numbered_in_both_and_advice_is_left_out() {
        for (sqlite, postgres) in [
            ("SELECT 1", "SELECT 1"),
            (
                "SELECT a FROM t WHERE b = ?1 AND c > ?12",
                "SELECT a FROM t WHERE b = $1 AND c > $12",
            ),
            (
                "SELECT 1 FROM pending INDEXED BY pending_express WHERE x = ?1 LIMIT 1",
                "SELECT 1 FROM pending WHERE x = $1 LIMIT 1",
            ),
            (
                "SELECT 1 FROM pending p INDEXED BY pending_resync\n     ON p.x IN (?1, -?1)",
                "SELECT 1 FROM pending p \n     ON p.x IN ($1, -$1)",
            ),
            (
                "SELECT 1 FROM a CROSS JOIN b ON b.x = a.x AND b.y = ?1",
                "SELECT 1 FROM a JOIN b ON b.x = a.x AND b.y = $1",
            ),
            ("INSERT INTO t VALUES (?1)", "INSERT INTO t VALUES ($1)"),
        ] {
            assert_eq!(translated(sqlite), postgres);
        }
    }
}
