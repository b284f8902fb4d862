//! The same tests over PostgreSQL: with `TEST_STORE=postgres`, whatever opens a ledger in a file opens a
//! database of its own instead, for as long as the file's folder is there.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use cohort_bridge::route::Routes;
use cohort_bridge::store::{
    Database as Place, DestinationRules, LedgerStore, PostgresUrl, SourceRules, Store,
};

use rusqlite::types::ValueRef;
use tokio_postgres::{SimpleQueryMessage, SimpleQueryRow};

use super::postgres::{Database, Postgres, connected};

/// Whether the tests run over PostgreSQL.
pub fn is_wanted() -> bool {
    std::env::var("TEST_STORE").is_ok_and(|store| store == "postgres")
}

static DATABASES: Mutex<Option<HashMap<PathBuf, Arc<Database>>>> = Mutex::new(None);

/// The URL of the database that stands for a file.
pub fn url_of(path: &Path) -> String {
    let path = path.to_path_buf();
    aside(move || async move {
        let known = |path: &Path| {
            let mut databases = DATABASES.lock().unwrap_or_else(PoisonError::into_inner);
            let databases = databases.get_or_insert_default();
            // Tests that are over need theirs no more.
            databases.retain(|path, _| path.parent().is_some_and(Path::exists));
            databases.get(path).cloned()
        };
        if let Some(database) = known(&path) {
            return database.url().to_owned();
        }
        let postgres = Postgres::shared()
            .await
            .expect("TEST_STORE=postgres needs PostgreSQL");
        let database = Arc::new(postgres.fresh_database().await);
        let url = database.url().to_owned();
        let mut databases = DATABASES.lock().unwrap_or_else(PoisonError::into_inner);
        databases.get_or_insert_default().insert(path, database);
        url
    })
}

/// Where the settings say that the ledger of that file is.
pub fn place_of(path: &Path) -> Place {
    match is_wanted() {
        true => Place::Postgres(parsed(&url_of(path))),
        false => Place::Sqlite(path.into()),
    }
}

/// As in `DATABASE_URL`.
pub fn database_url(path: &Path) -> String {
    match is_wanted() {
        true => url_of(path),
        false => format!("sqlite://{}", path.display()),
    }
}

pub fn parsed(url: &str) -> Box<PostgresUrl> {
    Box::new(PostgresUrl::parse(url, |_| true).unwrap())
}

/// Opens the database that stands for a file, and leads.
pub fn open(
    path: &Path,
    sources: Vec<SourceRules>,
    destinations: Vec<DestinationRules>,
    routes: Routes,
) -> LedgerStore {
    let url = url_of(path);
    let runtime = tokio::runtime::Handle::current();
    aside(move || async move {
        let place = parsed(&url);
        let opening = move || LedgerStore::connect(&place, sources, destinations, routes);
        let store = tokio::task::spawn_blocking(opening).await.unwrap();
        let store = store.expect("the ledger opens");
        expire_lease(&url).await;
        let _test = runtime.enter();
        store.lead().await.expect("the term begins");
        store
    })
}

/// The same, where the database stands for a file: who was killed is not waited for.
pub fn expire_lease_of_the_killed(url: &str) {
    let databases = DATABASES.lock().unwrap_or_else(PoisonError::into_inner);
    let is_ours = databases
        .iter()
        .flat_map(HashMap::values)
        .any(|database| database.url() == url);
    drop(databases);
    if is_ours {
        aside(|| async {
            let client = connected(url).await;
            // Before the first start there is none.
            let expire = "UPDATE term SET expires_at = '-infinity'";
            let _ = client.batch_execute(expire).await;
        });
    }
}

/// As if whoever led had been silent for long enough.
pub async fn expire_lease(url: &str) {
    let client = connected(url).await;
    let expire = "UPDATE term SET expires_at = '-infinity'";
    client.batch_execute(expire).await.unwrap();
}

/// Runs something on a thread and runtime of its own: the test's own may be waiting for it.
fn aside<T: Send, F: Future<Output = T>>(work: impl FnOnce() -> F + Send) -> T {
    let run = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(work())
    };
    std::thread::scope(|scope| scope.spawn(run).join().unwrap())
}

/// What a query finds in the ledger that a file stands for, as text; what is missing is empty.
pub fn look(path: &Path, sql: &str) -> Vec<Vec<String>> {
    if !is_wanted() {
        return look_into_file(path, sql);
    }
    let url = url_of(path);
    aside(move || async move {
        let found = connected(&url).await.simple_query(sql).await.unwrap();
        let rows = found.iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        });
        let text = |row: &SimpleQueryRow, at| row.get(at).unwrap_or_default().to_owned();
        rows.map(|row| (0..row.len()).map(|at| text(row, at)).collect())
            .collect()
    })
}

fn look_into_file(path: &Path, sql: &str) -> Vec<Vec<String>> {
    let ledger = rusqlite::Connection::open(path).unwrap();
    let mut statement = ledger.prepare(sql).unwrap();
    let columns = statement.column_count();
    let text = |row: &rusqlite::Row<'_>, at| {
        Ok(match row.get_ref(at)? {
            ValueRef::Null => String::new(),
            ValueRef::Integer(value) => value.to_string(),
            ValueRef::Real(value) => value.to_string(),
            ValueRef::Text(bytes) | ValueRef::Blob(bytes) => {
                String::from_utf8_lossy(bytes).into_owned()
            }
        })
    };
    let rows = statement.query_map([], |row| (0..columns).map(|at| text(row, at)).collect());
    rows.unwrap().collect::<Result<_, _>>().unwrap()
}

/// The number that a query finds.
pub fn number(path: &Path, sql: &str) -> i64 {
    look(path, sql)[0][0].parse().unwrap()
}

/// Whether the text is anywhere in the ledger's tables. Nobody may have it open.
pub fn mentions(path: &Path, text: &str) -> bool {
    if !is_wanted() {
        return file_mentions(path, text);
    }
    let hex: String = text.bytes().map(|byte| format!("{byte:02x}")).collect();
    let tables = "SELECT tablename FROM pg_tables WHERE schemaname = 'public'";
    look(path, tables).iter().any(|table| {
        let rows = look(path, &format!("SELECT t::text FROM {} t", table[0]));
        let mut cells = rows.iter().flatten();
        cells.any(|row| row.contains(text) || row.contains(&hex))
    })
}

fn file_mentions(path: &Path, text: &str) -> bool {
    let copy = path.with_file_name("copy.db");
    let ledger = rusqlite::Connection::open(path).unwrap();
    let into = copy.display().to_string();
    ledger.execute("VACUUM INTO ?1", [into]).unwrap();
    drop(ledger);
    let bytes = std::fs::read(&copy).unwrap();
    std::fs::remove_file(&copy).unwrap();
    bytes
        .windows(text.len())
        .any(|window| window == text.as_bytes())
}
