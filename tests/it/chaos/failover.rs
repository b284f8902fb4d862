//! Another server takes the place of the primary.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::database::recovered;
use super::load::{Load, seed, slow_calls, webhooks};
use super::{leads, variables};
use crate::support::eventually;
use crate::support::postgres::{Postgres, ROLE};
use crate::support::process::Process;
use crate::support::service::stand_in;

/// The URL names both servers, the standby first.
async fn promoted(leave: impl AsyncFn(&Postgres)) {
    let Some(primary) = Postgres::start().await else {
        return;
    };
    let database = primary.fresh_database().await;
    let standby = primary.standby().await;
    let (first, second, name) = (standby.port(), primary.port(), database.name());
    let url = format!("postgres://{ROLE}@127.0.0.1:{first},127.0.0.1:{second}/{name}");
    // It goes with its servers.
    std::mem::forget(database);
    let stand_in = Arc::new(stand_in());
    let seed = seed();
    let mut dice = fastrand::Rng::with_seed(seed);
    slow_calls(&stand_in, dice.u64(..));
    let settings = variables(&url, &stand_in, &[]);
    let replicas = [
        Process::serve(&settings).await,
        Process::serve(&settings).await,
    ];
    let load = Load::new(&stand_in, webhooks(&replicas));
    let senders = load.start(&mut dice);
    load.more_pages(20).await;
    let refused = load.answered(503);
    leave(&primary).await;
    eventually("a page is refused", async || {
        (load.answered(503) > refused).then_some(())
    })
    .await;
    standby.promote().await;
    recovered(&load, &stand_in, &replicas, 0, Instant::now()).await;
    load.more_pages(20).await;
    let acknowledged = senders.stop().await;
    load.assert_right(&acknowledged, Duration::ZERO).await;
    let statuses: Vec<_> = load.answers().into_keys().collect();
    assert_eq!(statuses, [200, 503], "seed {seed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_is_promoted_when_the_primary_dies() {
    promoted(Postgres::kill).await;
}

/// Connections to the one before stay open.
#[tokio::test(flavor = "multi_thread")]
async fn a_standby_is_promoted_when_the_primary_takes_nothing_any_more() {
    promoted(Postgres::only_read).await;
}

/// A machine that was cut off from its power does not even refuse.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_says_nothing_is_passed_over() {
    let Some(postgres) = Postgres::start().await else {
        return;
    };
    let database = postgres.fresh_database().await;
    // Whoever connects is never answered.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (first, second) = (silent.local_addr().unwrap().port(), postgres.port());
    let name = database.name();
    let url = format!("postgres://{ROLE}@127.0.0.1:{first},127.0.0.1:{second}/{name}");
    let stand_in = stand_in();
    let service = Process::serve(&variables(&url, &stand_in, &[])).await;
    eventually("it leads", async || leads(&service).await.then_some(())).await;
}
