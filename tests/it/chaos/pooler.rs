//! Two replicas behind a PgBouncer that gives each transaction a connection, and has two of them.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::load::{Load, seed, webhooks};
use super::{leader, variables};
use crate::support::eventually;
use crate::support::pages::{key, page_without_info};
use crate::support::pgbouncer::PgBouncer;
use crate::support::postgres::Postgres;
use crate::support::process::Process;
use crate::support::service::{client, stand_in};

#[tokio::test(flavor = "multi_thread")]
async fn everything_works_behind_a_pooler_with_few_connections() {
    let Some(postgres) = Postgres::shared().await else {
        return;
    };
    let Some(bouncer) = PgBouncer::start_with(postgres, 2).await else {
        return;
    };
    let database = postgres.fresh_database().await;
    let stand_in = Arc::new(stand_in());
    let variables = variables(&bouncer.url_of(&database), &stand_in, &[]);
    let mut replicas = vec![
        Process::serve(&variables).await,
        Process::serve(&variables).await,
    ];
    let load = Load::new(&stand_in, webhooks(&replicas));
    let senders = load.start(&mut fastrand::Rng::with_seed(seed()));
    load.more_pages(20).await;

    // An order at the one that does not lead.
    let leading = leader(&replicas, &[0, 1]).await;
    let standby = &replicas[1 - leading];
    let order = async |replica: &Process, what: &str| {
        let url = replica.admin_url(&format!("/api/v1/destinations/default/{what}"));
        let answer = client().post(url).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{what}");
    };
    let is_told = |person: &str| {
        let traits = stand_in.identity(person).unwrap_or_default();
        traits.get(&key("told")) == Some(&json!(true))
    };
    let tell = async |replica: &Process, person: &str| {
        let page = page_without_info("add_members", "told", &[person]).to_string();
        assert_eq!(load.attempt(&replica.webhook_url(), &page).await, 200);
    };
    order(standby, "pause").await;
    eventually("the leader hears of it", async || {
        let status = replicas[leading].get("/api/v1/status").await.json();
        (status["destinations"][0]["paused"] == true).then_some(())
    })
    .await;
    tell(standby, "ann").await;
    order(standby, "resume").await;
    eventually("delivered", async || is_told("ann").then_some(())).await;

    // The term changes hands: at once where it is given up.
    replicas[leading].terminate();
    load.aim(webhooks(&replicas[1 - leading..2 - leading]));
    assert_eq!(replicas[leading].ended().await, Some(0));
    leader(&replicas, &[1 - leading]).await;
    replicas[leading] = Process::serve(&variables).await;
    load.aim(webhooks(&replicas));
    tell(&replicas[leading], "bob").await;
    eventually("delivered", async || is_told("bob").then_some(())).await;

    load.more_pages(10).await;
    let acknowledged = senders.stop().await;
    load.assert_right(&acknowledged, Duration::ZERO).await;
    let said: String = replicas.iter().map(Process::output).collect();
    assert!(!said.contains("\"level\":\"ERROR\""), "{said}");
}
