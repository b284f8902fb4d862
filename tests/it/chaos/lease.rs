//! Nobody leads for longer than the lease lasts, nor stands in the way of others for long.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cohort_bridge::clock::SystemClock;
use cohort_bridge::cohort::Action::{AddMembers, Members};
use cohort_bridge::fold::Fold;
use cohort_bridge::route::Routes;
use cohort_bridge::store::{Claim, LedgerStore, SourceRules, Store, StoreError, Term};
use tokio_postgres::Client;

use super::variables;
use crate::support::bench::{START, page};
use crate::support::eventually;
use crate::support::pages::{page_without_info, people};
use crate::support::postgres::{Database, Postgres, connected};
use crate::support::process::Process;
use crate::support::service::{PASSWORD, USER, client, stand_in};
use crate::support::shared_ledger::parsed;
use crate::support::stores::{destination, everywhere, source};

/// Opens a ledger, as a replica does.
pub async fn open(database_url: &str) -> Arc<LedgerStore> {
    let url = parsed(database_url);
    let opening = move || {
        let (sources, destinations) = (SourceRules::named("default"), destination("default"));
        LedgerStore::connect(&url, vec![sources], vec![destinations], Routes::default())
    };
    let opened = tokio::task::spawn_blocking(opening).await.unwrap();
    Arc::new(opened.unwrap())
}

/// Waits until somebody waits for a lock that another client has.
pub async fn somebody_waits(observer: &Client) {
    let waiting = "SELECT count(*) FROM pg_stat_activity
                   WHERE datname = current_database() AND wait_event_type = 'Lock'";
    eventually("somebody waits for the lock", async || {
        let row = observer.query_one(waiting, &[]).await.unwrap();
        (row.get::<_, i64>(0) > 0).then_some(())
    })
    .await;
}

/// Two stores on a database, of which the first leads and has claimed somebody.
pub struct Two {
    pub database: Database,
    pub observer: Client,
    pub first: Arc<LedgerStore>,
    pub second: Arc<LedgerStore>,
    pub claims: Vec<Claim>,
    /// The first one's.
    pub term: Term,
}

impl Two {
    pub async fn new() -> Option<Self> {
        let database = Postgres::shared().await?.fresh_database().await;
        let (first, second) = (open(database.url()).await, open(database.url()).await);
        let term = first.lead().await.unwrap();
        first.adopt_keys(START).await.unwrap();
        let some = page(Members, "c", "s", (1, 1), &["ann", "bob"]);
        first.append(&source(), some, START).await.unwrap();
        let folding: Arc<dyn Store> = first.clone();
        let mut fold = Fold::new(folding, Arc::new(SystemClock));
        fold.run_until_idle().await.unwrap();
        let claims = claim(&first).await.unwrap();
        assert_eq!(claims.len(), 2);
        Some(Two {
            observer: connected(database.url()).await,
            database,
            first,
            second,
            claims,
            term,
        })
    }
}

pub async fn claim(store: &LedgerStore) -> Result<Vec<Claim>, StoreError> {
    let name = everywhere();
    let claims = store.exchange(&name, Vec::new(), None, 100, START);
    Ok(claims.await?.claims)
}

/// However long the database takes to say that it could not be renewed.
#[tokio::test(flavor = "multi_thread")]
async fn a_term_that_cannot_be_renewed_is_over_before_the_lease_is() {
    let Some(two) = Two::new().await else {
        return;
    };
    let begun = Instant::now();
    let other = connected(two.database.url()).await;
    other
        .batch_execute("BEGIN; SELECT FROM term FOR UPDATE")
        .await
        .unwrap();
    two.term.ended().cancelled().await;
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(11), "{took:?}");
    other.batch_execute("ROLLBACK").await.unwrap();
}

/// Its own, or of somebody else whom it waits for.
#[tokio::test(flavor = "multi_thread")]
async fn a_term_outlives_a_transaction_that_takes_long() {
    let Some(two) = Two::new().await else {
        return;
    };
    let barrier = connected(two.database.url()).await;
    barrier
        .batch_execute("BEGIN; LOCK TABLE pending IN ACCESS EXCLUSIVE MODE")
        .await
        .unwrap();
    let first = Arc::clone(&two.first);
    let claiming = tokio::spawn(async move { claim(&first).await });
    somebody_waits(&two.observer).await;
    for _ in 0..2 {
        let until = lasts_until(&two.observer).await;
        eventually("it is renewed", async || {
            (lasts_until(&two.observer).await > until).then_some(())
        })
        .await;
    }
    barrier.batch_execute("ROLLBACK").await.unwrap();
    claiming.await.unwrap().expect("it leads");
    assert!(!two.term.is_over());
}

/// Until when somebody leads, in seconds.
async fn lasts_until(observer: &Client) -> f64 {
    let until = "SELECT extract(epoch FROM expires_at)::float8 FROM term";
    observer.query_one(until, &[]).await.unwrap().get(0)
}

/// A leader stands still while it has the row that all others need.
#[tokio::test(flavor = "multi_thread")]
async fn who_stands_still_amid_a_transaction_stops_nobody_for_long() {
    let Some(postgres) = Postgres::shared().await else {
        return;
    };
    let database = postgres.fresh_database().await;
    let leader = Process::serve(&variables(database.url(), &stand_in(), &[])).await;
    let observer = connected(database.url()).await;
    eventually("it leads", async || {
        super::leads(&leader).await.then_some(())
    })
    .await;
    let barrier = connected(database.url()).await;
    barrier
        .batch_execute("BEGIN; LOCK TABLE session IN ACCESS EXCLUSIVE MODE")
        .await
        .unwrap();
    let page = page_without_info("add_members", "c", &people("p", 3)).to_string();
    let request = client().post(leader.webhook_url());
    let request = request.basic_auth(USER, Some(PASSWORD)).body(page);
    assert_eq!(request.send().await.unwrap().status(), 200);
    somebody_waits(&observer).await;
    leader.signal("STOP");
    barrier.batch_execute("ROLLBACK").await.unwrap();

    let beside = open(database.url()).await;
    let asked = Instant::now();
    let paused = beside.pause_destination(&everywhere(), true, START).await;
    assert!(paused.unwrap().is_some());
    let took = asked.elapsed();
    println!("an order waited for {took:?} behind a process that stands still");
    assert!(took < Duration::from_secs(8), "{took:?}");
    let some = page_of(7);
    let appended = Instant::now();
    beside.append(&source(), some, START).await.unwrap();
    assert!(
        appended.elapsed() < Duration::from_secs(2),
        "pages wait for nobody"
    );
    leader.signal("CONT");
}

fn page_of(number: u32) -> cohort_bridge::mixpanel::Page {
    page(AddMembers, "d", "s", (number, number), &["dan"])
}
