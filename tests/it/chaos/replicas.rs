//! Two replicas, of which the one that leads is killed and stopped in turn.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cohort_bridge::standin::StandIn;
use serde_json::json;

use super::load::{Load, calls_as_on_a_small_server, seed, webhooks};
use super::{leader, leads, ms, rounds, seconds, variables};
use crate::support::eventually;
use crate::support::postgres::{Postgres, connected};
use crate::support::process::{Process, Variables};
use crate::support::service::stand_in;

/// Calls of a stopped process land after it goes on; it is asserted again after this.
const LATE_WRITE_WINDOW: Duration = Duration::from_secs(12);

/// `COHORT_BRIDGE_MAX_IN_FLIGHT`.
const MAX_IN_FLIGHT: u64 = 8;

struct Pair {
    stand_in: Arc<StandIn>,
    variables: Variables,
    replicas: Vec<Process>,
    load: Arc<Load>,
    database_url: String,
    /// How long nobody led, in milliseconds.
    gaps_ms: Vec<u64>,
    /// Identities that were claimed and not settled whenever somebody was killed or stopped.
    unsettled: u64,
}

impl Pair {
    async fn start(database_url: &str, seed: u64) -> Self {
        let stand_in = Arc::new(stand_in());
        calls_as_on_a_small_server(&stand_in, seed);
        let window = format!("{}s", LATE_WRITE_WINDOW.as_secs());
        let in_flight = MAX_IN_FLIGHT.to_string();
        let others = [
            ("COHORT_BRIDGE_LATE_WRITE_WINDOW", window.as_str()),
            ("COHORT_BRIDGE_MAX_IN_FLIGHT", &in_flight),
        ];
        let variables = variables(database_url, &stand_in, &others);
        let replicas = vec![
            Process::serve(&variables).await,
            Process::serve(&variables).await,
        ];
        Pair {
            load: Load::new(&stand_in, webhooks(&replicas)),
            stand_in,
            variables,
            replicas,
            database_url: database_url.to_owned(),
            gaps_ms: Vec::new(),
            unsettled: 0,
        }
    }

    /// Waits until calls are made, and then for a random moment.
    async fn random_moment(&self, dice: &mut fastrand::Rng) {
        let calls = self.load.counted_calls() + dice.u64(1..3 * self.load.wave());
        let most = Duration::from_secs(rounds(4, 15) as u64);
        let called = eventually("calls", async || {
            (self.load.counted_calls() >= calls).then_some(())
        });
        // Where nothing happens any more, that is a moment too.
        let _ = tokio::time::timeout(most, called).await;
        tokio::time::sleep(Duration::from_micros(dice.u64(0..5_000))).await;
    }

    /// Counts what was claimed and not settled: made or not, the next one makes these calls.
    async fn count_unsettled(&mut self) {
        let count = "SELECT count(*) FROM pending WHERE told IS NULL AND sent <> 0 AND identifier LIKE 'w%'";
        let client = connected(&self.database_url).await;
        let counted: i64 = client.query_one(count, &[]).await.unwrap().get(0);
        self.unsettled += u64::try_from(counted).unwrap();
    }

    /// Kills the one that leads; it is started again, as Kubernetes does.
    async fn kill_leader(&mut self) {
        let leading = leader(&self.replicas, &[0, 1]).await;
        self.replicas[leading].kill();
        let killed = Instant::now();
        self.count_unsettled().await;
        self.replicas[leading] = Process::serve(&self.variables).await;
        self.load.aim(webhooks(&self.replicas));
        leader(&self.replicas, &[0, 1]).await;
        self.gaps_ms.push(ms(killed));
        self.assert_one_call_at_a_time();
    }

    /// Stops the one that leads until the other one has led for a while.
    async fn stop_leader(&mut self, dice: &mut fastrand::Rng) {
        let leading = leader(&self.replicas, &[0, 1]).await;
        self.assert_one_call_at_a_time();
        self.replicas[leading].signal("STOP");
        let stopped = Instant::now();
        self.count_unsettled().await;
        leader(&self.replicas, &[1 - leading]).await;
        self.gaps_ms.push(ms(stopped));
        self.random_moment(dice).await;
        self.replicas[leading].signal("CONT");
        eventually("it knows that its term is over", async || {
            let status = self.replicas[leading].get("/api/v1/status").await.json();
            let there = &status["destinations"][0];
            let is_over = there["state"] == "standby" && there["in_flight"] == 0;
            (is_over && status["leading"] == false).then_some(())
        })
        .await;
        assert!(leads(&self.replicas[1 - leading]).await);
        // What it had begun met what the other one did: that cannot be helped.
        self.stand_in.forget_calls();
    }

    fn assert_one_call_at_a_time(&self) {
        let worst = self.stand_in.max_in_flight_per_identity();
        assert!(worst <= 1, "{worst} calls for one identity at once");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_killed_and_stopped_in_turn_lose_nothing() {
    let Some(postgres) = Postgres::shared().await else {
        return;
    };
    let database = postgres.fresh_database().await;
    let seed = seed();
    let mut dice = fastrand::Rng::with_seed(seed);
    let mut pair = Pair::start(database.url(), dice.u64(..)).await;
    let senders = pair.load.start(&mut dice);

    let begun = Instant::now();
    let lasts = Duration::from_secs(seconds().unwrap_or(1));
    let (mut kills, mut stops) = (0_u64, 0_u64);
    while begun.elapsed() < lasts {
        pair.random_moment(&mut dice).await;
        pair.kill_leader().await;
        kills += 1;
        pair.random_moment(&mut dice).await;
        pair.stop_leader(&mut dice).await;
        stops += 1;
        assert!(senders.are_well(), "seed {seed}");
    }
    let acknowledged = senders.stop().await;
    pair.load
        .assert_right(&acknowledged, LATE_WRITE_WINDOW)
        .await;
    pair.assert_one_call_at_a_time();

    let calls = pair.load.counted_calls();
    let repeated = calls.saturating_sub(acknowledged.changes);
    println!(
        "{}",
        json!({
            "setting": "two replicas, the leader killed and stopped in turn",
            "seconds": begun.elapsed().as_secs(),
            "kills": kills,
            "stops": stops,
            "pages": pair.load.pages(),
            "answers": format!("{:?}", pair.load.answers()),
            "changes": acknowledged.changes,
            "calls": calls,
            "repeated": repeated,
            "unsettled_then": pair.unsettled,
            "nobody_led_ms": pair.gaps_ms,
        })
    );
    // What may have been made is made again; where that changed meanwhile, once more when nothing can
    // land late.
    let asserted_again = match seconds() {
        Some(_) => acknowledged.changes / 200 + MAX_IN_FLIGHT * (kills + stops),
        // There are too few changes for a share of them.
        None => 2 * pair.unsettled,
    };
    assert!(
        repeated <= asserted_again,
        "{repeated} repeated calls, seed {seed}"
    );
    let letters = pair.replicas[0].get("/api/v1/dead-letters").await.json();
    assert_eq!(letters["dead_letters"], json!([]));
}
