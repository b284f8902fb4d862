//! Ledgers of every version, older and newer than the program.

use std::collections::BTreeMap;
use std::path::Path;

use cohort_bridge::store::{Database, LedgerStore, SCHEMA_VERSION, Store, StoreError};
use rusqlite::Connection;
use rusqlite::types::Value;

use crate::support::postgres::{Postgres, connected};
use crate::support::process::{run, serve_variables};
use crate::support::shared_ledger::parsed;
use crate::support::{eventually, fast_temp_dir};

/// Every step of the schema, in order.
fn migrations() -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/store/migrations/sqlite");
    let files = std::fs::read_dir(folder).unwrap();
    let mut files: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    files.sort();
    let texts = files.iter().map(std::fs::read_to_string);
    texts.map(Result::unwrap).collect()
}

/// A ledger as the first version left it, brought to a later version.
fn write_version(path: &Path, version: usize) {
    let connection = Connection::open(path).unwrap();
    let (first, later) = migrations()
        .split_first()
        .map(|(a, b)| (a.clone(), b.to_vec()))
        .unwrap();
    connection.execute_batch(&first).unwrap();
    connection
        .execute_batch(
            "PRAGMA foreign_keys = OFF;
             INSERT INTO meta VALUES ('ledger_id', zeroblob(32)), ('log_hash_key', zeroblob(32)), ('taken_through', 9), ('brought_up:default', 5);
             INSERT INTO destination VALUES (1, 'default');
             INSERT INTO cohort VALUES (1, 'default', '1', '7', 'seven', 'old_key', 99, 2, 1);
             INSERT INTO member VALUES (1, 'ann', 1), (1, 'bob', 1), (1, 'cyd', 0);
             INSERT INTO pending (destination, identifier, cohort, member, told, since) VALUES (1, 'bob', 1, 1, NULL, 99), (1, 'cyd', 1, 0, 1, 99);
             INSERT INTO backlog VALUES (1, 1, 1, 0, 1), (1, 1, 0, 0, 1);
             INSERT INTO dead_letter (destination, identifier, cohort, member, since, error) VALUES (1, 'dan', 1, 1, 99, '400');
             INSERT INTO session VALUES (1, 1, 'members', 'first', 3, 0, 1, 90, 99, NULL);",
        )
        .unwrap();
    for migration in &later[..version - 1] {
        connection.execute_batch(migration).unwrap();
    }
    connection
        .pragma_update(None, "user_version", version)
        .unwrap();
    connection.close().unwrap();
}

/// Opens a file as a start of the service does, and closes it again.
async fn opened(path: &Path) -> Result<(), StoreError> {
    eventually("the ledger is free", async || {
        match LedgerStore::open(path, Vec::new(), Vec::new()) {
            Err(StoreError::InUse { .. }) => None,
            opened => Some(opened.map(drop)),
        }
    })
    .await
}

/// All that is in a file: rows by table, and what its columns are called.
fn contents(path: &Path) -> BTreeMap<String, (Vec<String>, Vec<Vec<Value>>)> {
    let connection = Connection::open(path).unwrap();
    let sql = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'";
    let mut names = connection.prepare(sql).unwrap();
    let names = names.query_map([], |row| row.get::<_, String>(0)).unwrap();
    let contents = names.map(|name| {
        let name = name.unwrap();
        let mut statement = connection
            .prepare(&format!("SELECT * FROM \"{name}\""))
            .unwrap();
        let columns: Vec<String> = statement.column_names().map(str::to_owned).collect();
        let count = columns.len();
        let rows = statement.query_map([], |row| (0..count).map(|n| row.get(n)).collect());
        let rows = rows.unwrap().map(Result::unwrap).collect();
        (name, (columns, rows))
    });
    contents.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_former_version_becomes_the_present_one() {
    let versions = migrations().len();
    assert_eq!(versions as i64, SCHEMA_VERSION);
    let mut present = None;
    for version in (1..=versions).rev() {
        let folder = fast_temp_dir();
        let path = folder.path().join("ledger.db");
        write_version(&path, version);
        opened(&path).await.unwrap();
        let found = contents(&path);
        assert_eq!(found["member"].1.len(), 3);
        assert_eq!(found["dead_letter"].1.len(), 1);
        let present = present.get_or_insert_with(|| found.clone());
        assert_eq!(found, *present, "from version {version}");
        let connection = Connection::open(&path).unwrap();
        let now: i64 = connection
            .query_row("PRAGMA user_version", [], |row| row.get(0))
            .unwrap();
        assert_eq!(now, SCHEMA_VERSION);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_program_leaves_a_newer_file_alone() {
    let folder = fast_temp_dir();
    let path = folder.path().join("ledger.db");
    opened(&path).await.unwrap();
    let connection = Connection::open(&path).unwrap();
    let newer = SCHEMA_VERSION + 1;
    connection
        .pragma_update(None, "user_version", newer)
        .unwrap();
    connection.close().unwrap();
    let before = contents(&path);
    let refused = opened(&path).await;
    assert!(
        matches!(refused, Err(StoreError::Newer { found, known }) if (found, known) == (newer, newer - 1)),
        "{refused:?}"
    );
    let mut variables = serve_variables(&path, "http://127.0.0.1:1");
    variables.insert(
        "DATABASE_URL".into(),
        format!("sqlite://{}", path.display()),
    );
    let words = format!(
        "the ledger has schema version {newer}, this program knows {SCHEMA_VERSION}: run the version that wrote it, or a newer one"
    );
    let served = eventually("the ledger is free", async || {
        let ended = run(&["serve"], &variables);
        (!ended.stderr.contains("is in use by another")).then_some(ended)
    })
    .await;
    assert_eq!(served.code, Some(1), "{served:?}");
    assert!(served.stderr.contains(&words), "{served:?}");
    assert_eq!(contents(&path), before);
}

/// Opens a database as a start of the service does; the ledger's name.
async fn connecting(url: &str) -> Result<String, StoreError> {
    let place = Database::Postgres(parsed(url));
    let opening = move || {
        let store = LedgerStore::open_at(&place, Vec::new(), Vec::new(), Default::default())?;
        Ok(store.ledger_id().to_owned())
    };
    tokio::task::spawn_blocking(opening).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_starts_again_while_a_newer_one_is_there() {
    let Some(postgres) = Postgres::shared().await else {
        return;
    };
    let database = postgres.fresh_database().await;
    let name = connecting(database.url()).await.unwrap();
    let client = connected(database.url()).await;
    let newest = "SELECT max(version) FROM schema_version";
    let known: i64 = client.query_one(newest, &[]).await.unwrap().get(0);
    let step = "INSERT INTO schema_version (version, works_from) VALUES ($1, $2)";
    // Steps that only add: whoever knew the first can go on with all of them.
    for version in [known + 1, known + 2] {
        client.execute(step, &[&version, &known]).await.unwrap();
        assert_eq!(connecting(database.url()).await.unwrap(), name);
    }
    let last: i64 = client.query_one(newest, &[]).await.unwrap().get(0);
    assert_eq!(last, known + 2, "an older program takes nothing back");

    client
        .execute(step, &[&(known + 3), &(known + 1)])
        .await
        .unwrap();
    // It stays so, whatever comes after.
    client.execute(step, &[&(known + 4), &1_i64]).await.unwrap();
    let refused = connecting(database.url()).await;
    assert!(
        matches!(refused, Err(StoreError::Newer { found, known: knows }) if (found, knows) == (known + 4, known)),
        "{refused:?}"
    );
    let mut variables = serve_variables(Path::new("unused"), "http://127.0.0.1:1");
    variables.insert("DATABASE_URL".into(), database.url().to_owned());
    let served = tokio::task::spawn_blocking(move || run(&["serve"], &variables));
    let served = served.await.unwrap();
    assert_eq!(served.code, Some(1), "{served:?}");
    assert!(
        served.stderr.contains("run the version that wrote it"),
        "{served:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_that_start_at_once_make_one_ledger() {
    let Some(postgres) = Postgres::shared().await else {
        return;
    };
    let database = postgres.fresh_database().await;
    let mut starting = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let url = database.url().to_owned();
        starting.spawn(async move { connecting(&url).await });
    }
    let names: Vec<_> = starting.join_all().await;
    let names: Vec<String> = names.into_iter().map(Result::unwrap).collect();
    assert!(names.iter().all(|name| *name == names[0]), "{names:?}");
    let client = connected(database.url()).await;
    let steps = "SELECT count(*), count(DISTINCT version) FROM schema_version";
    let steps = client.query_one(steps, &[]).await.unwrap();
    assert_eq!(steps.get::<_, i64>(0), steps.get::<_, i64>(1));
}
