//! A ledger moves from a file into a database, whole.

use std::path::{Path, PathBuf};

use cohort_bridge::store::{
    Claim, Database as Place, LedgerStore, MoveError, MoveProgress, Moved, StoreError, move_ledger,
    take_back,
};
use rusqlite::Connection;

use crate::support::eventually;
use crate::support::postgres::{Database, Postgres, connected};
use crate::support::shared_ledger::parsed;
use crate::support::stores::{Kind, Stores};

mod binary;
pub mod history;

use history::{everything, history, later_history, snapshot};

/// When ledgers are moved.
const NOW: i64 = 1_800_000_000_000;

/// Moves it, once it is free: another test that starts a process holds a copy of the lock between fork
/// and exec.
async fn moved(
    file: &Path,
    database: &Database,
    watch: impl FnMut(MoveProgress) -> bool + Clone + Send + 'static,
) -> Result<Moved, MoveError> {
    eventually("the ledger is free", async || {
        let (file, url, mut watch) = (file.to_owned(), parsed(database.url()), watch.clone());
        let moving = move || move_ledger(&file, &url, NOW, &mut watch);
        match tokio::task::spawn_blocking(moving).await.unwrap() {
            Err(MoveError::Store(StoreError::InUse { .. })) => None,
            moved => Some(moved),
        }
    })
    .await
}

async fn moved_whole(file: &Path, database: &Database) {
    let moved = moved(file, database, |_| true).await;
    assert!(matches!(moved, Ok(Moved::Now(_))), "{moved:?}");
}

/// Opens a ledger as a start of the service does, and closes it.
async fn opened(place: Place) -> Result<(), StoreError> {
    eventually("the ledger is free", async || {
        let place = place.clone();
        let opening = move || {
            let opened = LedgerStore::open_at(&place, Vec::new(), Vec::new(), Default::default());
            opened.map(drop)
        };
        match tokio::task::spawn_blocking(opening).await.unwrap() {
            Err(StoreError::InUse { .. }) => None,
            opened => Some(opened),
        }
    })
    .await
}

/// Everybody who is called, by identifier: who comes first of those that waited equally long is up to
/// each database.
async fn called(stores: &Stores) -> Vec<Claim> {
    let mut calls = stores.deliver().await;
    calls.sort_by(|one, other| one.identifier.cmp(&other.identifier));
    calls
}

/// A ledger whose every table has something, closed, and an empty database.
async fn full_file() -> Option<(Stores, Database)> {
    file_of(25_000).await
}

/// The same with so many members besides.
async fn file_of(members: u32) -> Option<(Stores, Database)> {
    let postgres = Postgres::shared().await?;
    let mut stores = Stores::new(Kind::Sqlite).await?;
    history(&mut stores, 1).await;
    stores.shut().await;
    everything(&stores.file(), members);
    Some((stores, postgres.fresh_database().await))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_known_is_known_and_goes_on_alike() {
    let Some(postgres) = Postgres::shared().await else {
        return;
    };
    for seed in 0..6 {
        let mut stores = Stores::new(Kind::Sqlite).await.unwrap();
        history(&mut stores, seed).await;
        let before = snapshot(&stores).await;
        stores.shut().await;
        let mut twin = stores.twin().await;
        let database = postgres.fresh_database().await;
        moved_whole(&stores.file(), &database).await;

        let mut there = stores.over(database).await;
        assert_eq!(snapshot(&there).await, before, "seed {seed}");
        let (one, other) = (called(&twin).await, called(&there).await);
        assert_eq!(one, other, "seed {seed}: the same is claimed");
        for stores in [&mut twin, &mut there] {
            later_history(stores, seed + 1_000).await;
        }
        assert_eq!(
            snapshot(&there).await,
            snapshot(&twin).await,
            "seed {seed}: and the same becomes of it"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_number_that_was_given_is_not_given_again() {
    let Some(postgres) = Postgres::shared().await else {
        return;
    };
    let mut stores = Stores::new(Kind::Sqlite).await.unwrap();
    for session in ["a", "b", "c"] {
        stores.full("7", session, &["ann"]).await;
    }
    stores.shut().await;
    let connection = Connection::open(stores.file()).unwrap();
    let gone = "DELETE FROM session_page; DELETE FROM inbox; DELETE FROM unproven;";
    connection.execute_batch(gone).unwrap();
    connection.close().unwrap();
    let database = postgres.fresh_database().await;
    moved_whole(&stores.file(), &database).await;
    let there = stores.over(database).await;
    there.full("7", "d", &["bob"]).await;
    // A page with a number up to the last that was taken would wait for ever.
    assert_eq!(there.members("7", &["ann", "bob"]).await, ["bob"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_is_stopped_after_any_piece_goes_on() {
    let Some((stores, database)) = full_file().await else {
        return;
    };
    let mut stops = 0;
    let compared = loop {
        // As a kill: what was copied stays, the rest is not.
        match moved(&stores.file(), &database, |at| at.is_compared).await {
            Ok(Moved::Now(compared)) => break compared,
            Err(MoveError::Stopped) => stops += 1,
            other => panic!("{other:?}"),
        }
        let refused = opened(Place::Postgres(parsed(database.url()))).await;
        assert!(
            matches!(refused, Err(StoreError::Unfinished(_))),
            "{refused:?}"
        );
        assert!(stops < 200, "it comes to no end");
    };
    let tables = compared.len();
    assert!(stops > tables, "{stops}");
    let rows = compared.iter().find(|table| table.table == "member");
    assert!(rows.unwrap().rows[1] > 25_000, "several pieces");
    let all = compared.iter().all(|table| table.rows[1] > 0);
    assert!(all, "{compared:?}");
    opened(Place::Postgres(parsed(database.url())))
        .await
        .unwrap();
}

/// The names of a file's tables.
fn tables_of(file: &Path) -> Vec<String> {
    let connection = Connection::open(file).unwrap();
    let mut statement = connection
        .prepare("SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY name")
        .unwrap();
    let names = statement.query_map([], |row| row.get(0)).unwrap();
    names.map(Result::unwrap).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_table_and_no_column_is_left_behind() {
    let Some((stores, database)) = full_file().await else {
        return;
    };
    let Ok(Moved::Now(compared)) = moved(&stores.file(), &database, |_| true).await else {
        panic!("it moves");
    };
    let mut names: Vec<&str> = compared.iter().map(|table| table.table).collect();
    names.sort_unstable();
    assert_eq!(names, tables_of(&stores.file()));
    let client = connected(database.url()).await;
    let connection = Connection::open(stores.file()).unwrap();
    for name in names {
        let sql = "SELECT name FROM pragma_table_info(?1) ORDER BY name";
        let mut statement = connection.prepare(sql).unwrap();
        let columns = statement.query_map([name], |row| row.get(0)).unwrap();
        let columns: Vec<String> = columns.map(Result::unwrap).collect();
        let sql = "SELECT column_name::text FROM information_schema.columns WHERE table_schema = 'public' AND table_name = $1 ORDER BY column_name::text COLLATE \"C\"";
        let rows = client.query(sql, &[&name]).await.unwrap();
        let there: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        assert_eq!(columns, there, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_changed_in_the_target_is_found() {
    for (change, table) in [
        (
            "UPDATE member SET standing = 3 WHERE identifier = 'many 012345'",
            "member",
        ),
        (
            "UPDATE pending SET told = 0 WHERE ctid = (SELECT min(ctid) FROM pending)",
            "pending",
        ),
        ("DELETE FROM route", "route"),
        (
            "UPDATE meta SET value = 'ff' || substr(value, 3) WHERE key = 'log_hash_key'",
            "meta",
        ),
        ("UPDATE trait SET key = key || ' '", "trait"),
        ("UPDATE inbox SET roster = roster || '\\x00'", "inbox"),
    ] {
        let Some((stores, database)) = full_file().await else {
            return;
        };
        let copied = moved(&stores.file(), &database, |at| !at.is_compared).await;
        assert!(matches!(copied, Err(MoveError::Stopped)), "{copied:?}");
        let client = connected(database.url()).await;
        assert!(client.execute(change, &[]).await.unwrap() > 0, "{change}");

        let moved = moved(&stores.file(), &database, |_| true).await;
        let Ok(Moved::Differs(compared)) = moved else {
            panic!("{change}: {moved:?}");
        };
        let different: Vec<&str> = compared
            .iter()
            .filter(|table| !table.is_same())
            .map(|table| table.table)
            .collect();
        assert_eq!(different, [table]);
        let refused = opened(Place::Postgres(parsed(database.url()))).await;
        assert!(matches!(refused, Err(StoreError::Unfinished(_))));
        opened(Place::Sqlite(stores.file())).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_an_empty_database_is_moved_into() {
    let Some((stores, database)) = full_file().await else {
        return;
    };
    let (other, _) = full_file().await.unwrap();
    let place = || Place::Postgres(parsed(database.url()));
    let fresh = Postgres::shared().await.unwrap().fresh_database().await;
    opened(Place::Postgres(parsed(fresh.url()))).await.unwrap();
    let refused = moved(&stores.file(), &fresh, |_| true).await;
    assert!(
        matches!(refused, Err(MoveError::Occupied(_))),
        "{refused:?}"
    );

    let begun = moved(&other.file(), &database, |_| false).await;
    assert!(matches!(begun, Err(MoveError::Stopped)));
    let refused = moved(&stores.file(), &database, |_| true).await;
    assert!(
        matches!(refused, Err(MoveError::OfAnother { .. })),
        "{refused:?}"
    );
    moved_whole(&other.file(), &database).await;
    opened(place()).await.unwrap();
    let refused = moved(&stores.file(), &database, |_| true).await;
    assert!(
        matches!(refused, Err(MoveError::Occupied(_))),
        "{refused:?}"
    );

    let missing = PathBuf::from("/nowhere/ledger.db");
    let refused = moved(&missing, &database, |_| true).await;
    assert!(matches!(refused, Err(MoveError::NoSource(_))));
    assert!(!missing.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_in_use_is_not_moved() {
    let Some(postgres) = Postgres::shared().await else {
        return;
    };
    let stores = Stores::new(Kind::Sqlite).await.unwrap();
    let database = postgres.fresh_database().await;
    let (file, url) = (stores.file(), parsed(database.url()));
    let moving = move || move_ledger(&file, &url, NOW, &mut |_| true);
    let refused = tokio::task::spawn_blocking(moving).await.unwrap();
    assert!(
        matches!(refused, Err(MoveError::Store(StoreError::InUse { .. }))),
        "{refused:?}"
    );
    opened(Place::Postgres(parsed(database.url())))
        .await
        .expect("nothing was begun");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_was_moved_is_used_again_only_on_purpose() {
    let Some((stores, database)) = full_file().await else {
        return;
    };
    moved_whole(&stores.file(), &database).await;
    let file = || Place::Sqlite(stores.file());
    let refused = opened(file()).await;
    let Err(StoreError::Moved { to, .. }) = &refused else {
        panic!("{refused:?}");
    };
    assert!(to.ends_with(" on 2027-01-15T08:00:00.000Z"), "{to}");
    assert!(to.contains(database.name()), "{to}");

    let again = moved(&stores.file(), &database, |_| true).await;
    let Ok(Moved::Before(at)) = again else {
        panic!("{again:?}");
    };
    assert_eq!(at, "2027-01-15T08:00:00.000Z");
    let third = Postgres::shared().await.unwrap().fresh_database().await;
    let elsewhere = moved(&stores.file(), &third, |_| true).await;
    assert!(
        matches!(elsewhere, Err(MoveError::MovedBefore { .. })),
        "{elsewhere:?}"
    );

    assert!(take_back(&stores.file()).unwrap());
    assert!(!take_back(&stores.file()).unwrap());
    opened(file()).await.unwrap();
    // Two ledgers by now: neither is taken for the other.
    let again = moved(&stores.file(), &database, |_| true).await;
    assert!(
        matches!(again, Err(MoveError::CopiedBefore { .. })),
        "{again:?}"
    );
    moved_whole(&stores.file(), &third).await;
}

/// A kill between the two marks, of which the file's is set first.
#[tokio::test(flavor = "multi_thread")]
async fn of_two_marks_the_files_is_first() {
    let Some((stores, database)) = full_file().await else {
        return;
    };
    let copied = moved(&stores.file(), &database, |at| !at.is_compared).await;
    assert!(matches!(copied, Err(MoveError::Stopped)));
    let connection = Connection::open(stores.file()).unwrap();
    let mark = "INSERT INTO meta (key, value) VALUES ('moved_to', 'there on that day')";
    connection.execute_batch(mark).unwrap();
    connection.close().unwrap();
    moved_whole(&stores.file(), &database).await;
    opened(Place::Postgres(parsed(database.url())))
        .await
        .unwrap();
}
