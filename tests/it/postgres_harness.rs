//! What tests with PostgreSQL stand on: its servers come up, and none is left behind.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Command, Stdio};

use tokio_postgres::types::Type;

use crate::support::daemon::{Daemon, is_running};
use crate::support::nginx::Nginx;
use crate::support::pgbouncer::PgBouncer;
use crate::support::postgres::{Postgres, connected};
use crate::support::{eventually, ordinary_stand_in, raw};

/// Without a prepared statement, as PgBouncer needs it.
async fn answer(url: &str, question: &str) -> String {
    let rows = connected(url).await.query_typed(question, &[]).await;
    rows.unwrap()[0].get(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn databases_are_apart_and_belong_to_an_ordinary_role() {
    let Some(postgres) = Postgres::shared().await else {
        return;
    };
    let (one, two) = tokio::join!(postgres.fresh_database(), postgres.fresh_database());
    let (one, two) = (connected(one.url()).await, connected(two.url()).await);
    one.batch_execute("CREATE TABLE t ()").await.unwrap();
    two.batch_execute("CREATE TABLE t ()").await.unwrap();
    let role = "SELECT rolsuper FROM pg_roles WHERE rolname = current_user";
    let is_superuser: bool = one.query_one(role, &[]).await.unwrap().get(0);
    assert!(!is_superuser);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_goes_with_its_test() {
    let Some(postgres) = Postgres::shared().await else {
        return;
    };
    let (kept, dropped) = tokio::join!(postgres.fresh_database(), postgres.fresh_database());
    let _client = connected(dropped.url()).await;
    let name = dropped.name();
    let count = format!("SELECT count(*)::TEXT FROM pg_database WHERE datname = '{name}'");
    assert_eq!(answer(kept.url(), &count).await, "1");
    drop(dropped);
    eventually("it is gone", async || {
        (answer(kept.url(), &count).await == "0").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_committed_outlives_a_restart_and_a_kill() {
    let Some(postgres) = Postgres::start().await else {
        return;
    };
    let database = postgres.fresh_database().await;
    let client = connected(database.url()).await;
    let first = "CREATE TABLE t (n INT); INSERT INTO t VALUES (1)";
    client.batch_execute(first).await.unwrap();
    postgres.restart().await;
    eventually("the connection is gone", async || {
        client.is_closed().then_some(())
    })
    .await;
    let client = connected(database.url()).await;
    client
        .batch_execute("INSERT INTO t VALUES (2)")
        .await
        .unwrap();
    postgres.kill().await;
    postgres.start_again().await;
    let sum = answer(database.url(), "SELECT sum(n)::TEXT FROM t").await;
    assert_eq!(sum, "3");
}

#[tokio::test(flavor = "multi_thread")]
async fn commits_are_durable_unless_a_test_wants_otherwise() {
    let Some(postgres) = Postgres::shared().await else {
        return;
    };
    let database = postgres.fresh_database().await;
    assert_eq!(answer(database.url(), "SHOW fsync").await, "on");
    let settings = [("fsync", "off"), ("synchronous_commit", "off")];
    let careless = Postgres::start_with(&settings).await.unwrap();
    let database = careless.fresh_database().await;
    assert_eq!(answer(database.url(), "SHOW fsync").await, "off");
    assert_eq!(
        answer(database.url(), "SHOW synchronous_commit").await,
        "off"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn pgbouncer_gives_each_transaction_a_connection() {
    let Some(postgres) = Postgres::shared().await else {
        return;
    };
    let Some(bouncer) = PgBouncer::start(postgres).await else {
        return;
    };
    let database = postgres.fresh_database().await;
    let url = bouncer.url_of(&database);
    let client = connected(&url).await;
    let two = (&2_i32 as _, Type::INT4);
    let rows = client.query_typed("SELECT 1 + $1", &[two]).await.unwrap();
    assert_eq!(rows[0].get::<_, i32>(0), 3);

    // Another client is given the same connection, with what the first left there.
    let left = "SET search_path = elsewhere";
    client.batch_execute(left).await.unwrap();
    assert_eq!(answer(&url, "SHOW search_path").await, "elsewhere");
}

/// Asks `stand_in` by way of a proxy.
fn status_by(proxy: SocketAddr) -> u16 {
    raw(proxy, "GET", "/api/v1/flags/", &[], b"").status
}

#[tokio::test(flavor = "multi_thread")]
async fn nginx_asks_the_replica_that_is_there() {
    let stand_in = ordinary_stand_in(&["main"]);
    let there = stand_in.address();
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr();
    let gone = gone.unwrap();
    let Some(nginx) = Nginx::start(&[gone, there]).await else {
        return;
    };
    let direct = status_by(there);
    for _ in 0..4 {
        assert_eq!(status_by(nginx.address()), direct);
    }
    nginx.set_upstreams(&[gone]).await;
    assert_eq!(status_by(nginx.address()), 502);
    nginx.set_upstreams(&[there]).await;
    assert_eq!(status_by(nginx.address()), direct);
}

/// The server's process and its folder.
fn traces(daemon: &Daemon) -> (u32, std::path::PathBuf) {
    (daemon.pid(), daemon.folder().to_owned())
}

fn assert_gone((pid, folder): &(u32, std::path::PathBuf)) {
    assert!(!is_running(*pid), "{pid}");
    assert!(!folder.exists(), "{}", folder.display());
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_left_of_what_is_dropped() {
    if let Some(postgres) = Postgres::start().await {
        let database = postgres.fresh_database().await;
        let _client = connected(database.url()).await;
        let server = traces(postgres.daemon());
        if let Some(bouncer) = PgBouncer::start(&postgres).await {
            let traces = traces(bouncer.daemon());
            drop(bouncer);
            assert_gone(&traces);
        }
        drop(postgres);
        assert_gone(&server);
    }
    let nobody = SocketAddr::from(([127, 0, 0, 1], 9));
    if let Some(nginx) = Nginx::start(&[nobody]).await {
        let traces = traces(nginx.daemon());
        drop(nginx);
        assert_gone(&traces);
    }
}

/// Where the process of tests that is to be killed writes what it started.
const TRACES: &str = "TEST_TRACES_OF_A_SERVER";

#[tokio::test(flavor = "multi_thread")]
async fn to_be_killed_with_a_server() {
    let Some(file) = std::env::var_os(TRACES) else {
        return;
    };
    let postgres = Postgres::start().await.unwrap();
    let (pid, folder) = traces(postgres.daemon());
    std::fs::write(file, format!("{pid} {}\n", folder.display())).unwrap();
    std::future::pending::<()>().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_left_when_the_tests_are_killed() {
    if Postgres::shared().await.is_none() {
        return;
    }
    let folder = crate::support::fast_temp_dir();
    let file = folder.path().join("traces");
    let mut tests = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "postgres_harness::to_be_killed_with_a_server"])
        .env(TRACES, &file)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let (pid, folder) = eventually("a server of other tests", async || {
        let text = std::fs::read_to_string(&file).ok()?;
        let (pid, folder) = text.strip_suffix('\n')?.split_once(' ')?;
        Some((pid.parse().unwrap(), folder.to_owned()))
    })
    .await;
    assert!(is_running(pid));
    tests.kill().unwrap();
    tests.wait().unwrap();
    eventually("nothing is left", async || {
        (!is_running(pid) && !Path::new(&folder).exists()).then_some(())
    })
    .await;
}
