//! Copies of a ledger in use, and a service that starts from one.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use cohort_bridge::cohort::Action;
use cohort_bridge::standin::StandIn;

use crate::support::eventually;
use crate::support::fast_temp_dir;
use crate::support::pages::{page, people};
use crate::support::postgres::Postgres;
use crate::support::process::{Ended, Process, Variables, run, serve_variables};
use crate::support::programs::{folder_with, skip};
use crate::support::service::{PASSWORD, USER, client, stand_in};
use crate::support::stores::{Kind, Stores};

/// The settings of a service over that file, whatever store other tests are about.
fn settings(ledger: &Path, stand_in: &StandIn) -> Variables {
    let mut variables = serve_variables(ledger, &stand_in.url());
    variables.insert("DATABASE_URL".into(), url(ledger));
    variables
}

fn url(ledger: &Path) -> String {
    format!("sqlite://{}", ledger.display())
}

fn back_up(ledger: &Path, to: &Path) -> Ended {
    let variables = [("DATABASE_URL".to_owned(), url(ledger))].into();
    run(&["backup", "--to", to.to_str().unwrap()], &variables)
}

/// A full sync of one page, answered with 200.
async fn send(webhook: std::net::SocketAddr, cohort: &str, session: &str, names: &[String]) {
    let page = page("members", cohort, session, (1, 1), names);
    let request = client().post(format!("http://{webhook}/webhooks/mixpanel"));
    let request = request.basic_auth(USER, Some(PASSWORD));
    let answer = request.body(page.to_string()).send().await.unwrap();
    assert_eq!(answer.status(), 200);
}

async fn is_told(stand_in: &StandIn, person: &str, key: &str, value: bool) {
    eventually("it is told", async || {
        let identity = stand_in.identity(person)?;
        (identity.get(key)? == value).then_some(())
    })
    .await;
}

/// Sends a cohort after the other until it is told to stop; those that were answered.
async fn send_on_and_on(
    webhook: std::net::SocketAddr,
    enough: Arc<AtomicBool>,
    answered: Arc<Mutex<Vec<String>>>,
) {
    for number in 0.. {
        if enough.load(Ordering::Relaxed) {
            return;
        }
        let cohort = format!("load-{number}");
        send(webhook, &cohort, "s", &people("q", 50)).await;
        answered.lock().unwrap().push(cohort);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_that_was_acknowledged_before_it_began_is_in_it() {
    let folder = fast_temp_dir();
    let (ledger, copy) = (
        folder.path().join("ledger.db"),
        folder.path().join("copy.db"),
    );
    let stand_in = stand_in();
    let mut process = Process::serve(&settings(&ledger, &stand_in)).await;
    let everybody = people("p", 30);
    send(process.webhook, "c", "before", &everybody).await;
    let enough = Arc::new(AtomicBool::new(false));
    let answered = Arc::new(Mutex::new(Vec::new()));
    let load = send_on_and_on(process.webhook, enough.clone(), answered.clone());
    let load = tokio::spawn(load);
    let count = || answered.lock().unwrap().len();
    eventually("there is load", async || (count() > 20).then_some(())).await;

    let before: Vec<String> = answered.lock().unwrap().clone();
    let ended = {
        let (ledger, copy) = (ledger.clone(), copy.clone());
        tokio::task::spawn_blocking(move || back_up(&ledger, &copy))
    };
    let ended = ended.await.unwrap();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.stdout.contains("checked and on disk"), "{ended:?}");
    let during = count();
    eventually("the service goes on", async || {
        (count() > during).then_some(())
    })
    .await;
    enough.store(true, Ordering::Relaxed);
    load.await.unwrap();
    // What only the lost ledger knows: half of them leave, and one joins.
    let mut after = everybody[..15].to_vec();
    after.push("joined".to_owned());
    send(process.webhook, "c", "after", &after).await;
    is_told(&stand_in, &everybody[29], "mixpanel_cohort_c", false).await;
    is_told(&stand_in, "joined", "mixpanel_cohort_c", true).await;
    process.terminate();
    assert_eq!(process.ended().await, Some(0));

    let mode = std::fs::metadata(&copy).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let beside: Vec<_> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.contains("copy") || name.contains("backup"))
        .collect();
    assert_eq!(beside, ["copy.db"], "one file, and nothing beside it");

    // Restored as the page says: nothing of the lost ledger stays beside it.
    for ending in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{}{ending}", ledger.display()));
    }
    std::fs::rename(&copy, &ledger).unwrap();
    let process = Process::serve(&settings(&ledger, &stand_in)).await;
    let cohorts = format!("http://{}/api/v1/cohorts", process.admin);
    eventually("every page that was acknowledged is known", async || {
        let reply = client()
            .get(&cohorts)
            .send()
            .await
            .ok()?
            .text()
            .await
            .ok()?;
        let known = |cohort: &String| reply.contains(&format!("\"{cohort}\""));
        (before.iter().all(known) && reply.contains("\"c\"")).then_some(())
    })
    .await;

    // Then everything again, and a full sync of what Mixpanel has by now.
    let admin = format!("http://{}", process.admin);
    let ordered = run(
        &["resync", "--destination", "default"],
        &[("COHORT_BRIDGE_ADMIN_URL".to_owned(), admin)].into(),
    );
    assert_eq!(ordered.code, Some(0), "{ordered:?}");
    send(process.webhook, "c", "full", &after).await;
    for person in &everybody[..15] {
        is_told(&stand_in, person, "mixpanel_cohort_c", true).await;
    }
    for person in &everybody[15..] {
        is_told(&stand_in, person, "mixpanel_cohort_c", false).await;
    }
    is_told(&stand_in, "joined", "mixpanel_cohort_c", true).await;
}

#[test]
fn a_backup_is_a_new_file_or_none() {
    let folder = fast_temp_dir();
    let ledger = folder.path().join("ledger.db");
    let there = folder.path().join("there.db");
    let missing = back_up(&ledger, &folder.path().join("copy.db"));
    assert_eq!(missing.code, Some(1), "{missing:?}");
    assert!(missing.stderr.contains("there is no ledger"), "{missing:?}");
    assert!(!ledger.exists());

    std::fs::write(&ledger, "").unwrap();
    std::fs::write(&there, "mine").unwrap();
    let exists = back_up(&ledger, &there);
    assert_eq!(exists.code, Some(1), "{exists:?}");
    assert!(exists.stderr.contains("is there already"), "{exists:?}");
    assert_eq!(std::fs::read(&there).unwrap(), b"mine");

    let nowhere = back_up(&ledger, &folder.path().join("nowhere/copy.db"));
    assert_eq!(nowhere.code, Some(1), "{nowhere:?}");
    let files = std::fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(files, 2, "nothing was left behind");
}

#[test]
fn a_damaged_ledger_makes_no_backup() {
    let folder = fast_temp_dir();
    let (ledger, copy) = (
        folder.path().join("ledger.db"),
        folder.path().join("copy.db"),
    );
    let connection = rusqlite::Connection::open(&ledger).unwrap();
    connection
        .execute_batch(
            "CREATE TABLE t (n INTEGER PRIMARY KEY, word TEXT);
             CREATE INDEX t_word ON t (word);
             WITH RECURSIVE number (n) AS (VALUES (0) UNION ALL SELECT n + 1 FROM number WHERE n < 999)
             INSERT INTO t SELECT n, format('word %d', n) FROM number;",
        )
        .unwrap();
    connection.close().unwrap();
    assert_eq!(back_up(&ledger, &copy).code, Some(0));
    let mut bytes = std::fs::read(&ledger).unwrap();
    let at = bytes
        .windows(8)
        .position(|bytes| bytes == b"word 500")
        .unwrap();
    bytes[at] = b'x';
    std::fs::write(&ledger, bytes).unwrap();
    let second = folder.path().join("second.db");
    let ended = back_up(&ledger, &second);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("the copy is damaged"), "{ended:?}");
    assert!(!second.exists());
}

#[test]
fn a_database_is_backed_up_by_its_own_tool() {
    let variables = [(
        "DATABASE_URL".to_owned(),
        "postgres://u:hush@127.0.0.1:1/d".to_owned(),
    )];
    let ended = run(&["backup", "--to", "/nowhere/copy"], &variables.into());
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert!(ended.stderr.contains("pg_dump"), "{ended:?}");
    assert!(!ended.stderr.contains("hush"), "{ended:?}");
}

/// As `LEDGER.md` says.
const DUMP: &str = "pg_dump --format=custom --file=backup.dump";
const RESTORE: &str = "pg_restore --exit-on-error --single-transaction --no-owner --dbname";

/// Runs a line of PostgreSQL's tools with a URL.
fn tool(folder: &Path, line: &str, url: &str, last: Option<&str>) {
    let words: Vec<&str> = line.split(' ').chain([url]).chain(last).collect();
    let programs = folder_with(&[words[0]]).unwrap();
    let mut command = std::process::Command::new(programs.join(words[0]));
    let status = command.args(&words[1..]).current_dir(folder).status();
    assert!(status.unwrap().success(), "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_is_dumped_and_restored() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/LEDGER.md");
    let page = std::fs::read_to_string(page).unwrap();
    assert!(page.contains(DUMP) && page.contains(RESTORE));
    let Some(postgres) = Postgres::shared().await else {
        return;
    };
    if folder_with(&["pg_dump", "pg_restore"]).is_none() {
        return skip("PostgreSQL's client is not installed (Debian package postgresql-client)");
    }
    let mut stores = Stores::new(Kind::Postgres).await.unwrap();
    stores.full("7", "a", &["ann", "é", "\u{ff21}", "😀"]).await;
    stores.deliver().await;
    stores.half(Action::RemoveMembers, "7", "b", &["é"]).await;
    let folder = fast_temp_dir();
    tool(folder.path(), DUMP, stores.url(), None);
    stores.full("7", "lost", &["bob"]).await;

    let database = postgres.fresh_database().await;
    tool(folder.path(), RESTORE, database.url(), Some("backup.dump"));
    let mut restored = stores.over(database).await;
    assert_eq!(restored.store().ledger_id(), stores.store().ledger_id());
    for _ in 0..2 {
        let everybody = ["ann", "bob", "é", "😀"];
        assert_eq!(restored.members("7", &everybody).await, ["ann", "😀"]);
        restored.reopen().await;
    }
    restored.full("7", "mends", &["bob"]).await;
    assert_eq!(restored.members("7", &["ann", "bob"]).await, ["bob"]);
    stores.kill();
}
