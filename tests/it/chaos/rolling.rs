//! A rolling restart of two replicas behind a proxy, as a Deployment makes it: Mixpanel notices nothing.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::load::{Load, seed, slow_calls};
use super::{rounds, variables};
use crate::support::nginx::Nginx;
use crate::support::postgres::Postgres;
use crate::support::process::Process;
use crate::support::service::stand_in;

/// Whether the proxy learns of a stop before the replica does: the time that `preStop` gives.
async fn restarts(proxy_knows: bool) {
    let Some(postgres) = Postgres::shared().await else {
        return;
    };
    let database = postgres.fresh_database().await;
    let stand_in = Arc::new(stand_in());
    let mut dice = fastrand::Rng::with_seed(seed());
    slow_calls(&stand_in, dice.u64(..));
    let variables = variables(database.url(), &stand_in, &[]);
    let mut replicas = vec![
        Process::serve(&variables).await,
        Process::serve(&variables).await,
    ];
    let all = |replicas: &[Process]| replicas.iter().map(|it| it.webhook).collect::<Vec<_>>();
    let Some(nginx) = Nginx::start(&all(&replicas)).await else {
        return;
    };
    let webhook = format!("http://{}/webhooks/mixpanel", nginx.address());
    let load = Load::new(&stand_in, vec![webhook]);
    let senders = load.start(&mut dice);
    let rounds = rounds(2, 10);
    for number in (0..2 * rounds).map(|step| step % 2) {
        load.more_pages(dice.u64(3..12)).await;
        if proxy_knows {
            nginx.set_upstreams(&[replicas[1 - number].webhook]).await;
        }
        replicas[number].terminate();
        assert_eq!(replicas[number].ended().await, Some(0));
        // Ready before the next one goes.
        replicas[number] = Process::serve(&variables).await;
        nginx.set_upstreams(&all(&replicas)).await;
        assert!(senders.are_well());
    }
    let acknowledged = senders.stop().await;
    load.assert_right(&acknowledged, Duration::ZERO).await;
    let (answers, calls) = (load.answers(), load.counted_calls());
    println!(
        "{}",
        json!({
            "setting": "a rolling restart behind a proxy",
            "proxy_knows_before": proxy_knows,
            "restarts": 2 * rounds,
            "answers": format!("{answers:?}"),
            "changes": acknowledged.changes,
            "calls": calls,
        })
    );
    assert!(answers.keys().all(|status| *status == 200), "{answers:?}");
    assert_eq!(calls, acknowledged.changes, "nothing is called for twice");
    assert!(stand_in.max_in_flight_per_identity() <= 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_is_not_noticed_by_mixpanel() {
    restarts(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_is_not_noticed_where_the_proxy_learns_of_it_by_itself() {
    restarts(false).await;
}
