//! How many connections a replica has at most.

use std::sync::Arc;

use cohort_bridge::cohort::Action::AddMembers;
use cohort_bridge::store::{MOST_CONNECTIONS, Store};
use tokio::task::JoinSet;

use super::lease::open;
use crate::support::bench::{START, page};
use crate::support::eventually;
use crate::support::postgres::{Postgres, connected};
use crate::support::stores::source;

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_has_no_more_connections_than_it_says_however_many_ask() {
    let Some(postgres) = Postgres::shared().await else {
        return;
    };
    let database = postgres.fresh_database().await;
    let store = open(database.url()).await;
    store.lead().await.unwrap();
    let append = |session: &'static str| {
        let store = Arc::clone(&store);
        let page = page(AddMembers, "c", session, (1, 1), &["ann"]);
        async move { store.append(&source(), page, START).await.unwrap() }
    };
    append("a").await;

    // Whoever reads the cohorts waits until this is over.
    let mut locking = connected(database.url()).await;
    let lock = locking.transaction().await.unwrap();
    lock.batch_execute("LOCK TABLE cohort").await.unwrap();
    let mut asking = JoinSet::new();
    for _ in 0..20 {
        let store = Arc::clone(&store);
        asking.spawn(async move { store.cohorts().await.unwrap() });
    }
    let observer = connected(database.url()).await;
    let count = async || -> i64 {
        let counted = "SELECT count(*) FROM pg_stat_activity
                       WHERE datname = current_database() AND application_name = 'cohort-bridge'";
        observer.query_one(counted, &[]).await.unwrap().get(0)
    };
    eventually("all of them are there", async || {
        (count().await >= MOST_CONNECTIONS as i64).then_some(())
    })
    .await;
    append("b").await;
    assert_eq!(count().await, MOST_CONNECTIONS as i64);

    lock.commit().await.unwrap();
    assert_eq!(asking.join_all().await.len(), 20);
}
