//! PostgreSQL goes away and comes back under load, and stands still.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cohort_bridge::standin::StandIn;
use serde_json::json;

use super::load::{Load, seed, slow_calls, webhooks};
use super::{ms, rounds, variables};
use crate::support::eventually;
use crate::support::pages::{key, page_without_info};
use crate::support::postgres::Postgres;
use crate::support::process::Process;
use crate::support::service::{PASSWORD, USER, client, stand_in};

/// How long after PostgreSQL is back the next page is taken in.
const RECOVERS_WITHIN_MS: u64 = 5_000;

/// How long a page may be kept waiting for its 503 by a database that stands still.
const REFUSED_WITHIN_MS: u64 = 15_000;

async fn replicas(postgres: &Postgres, stand_in: &StandIn, count: usize) -> Vec<Process> {
    let database = postgres.fresh_database().await;
    let others = [("COHORT_BRIDGE_MAX_IN_FLIGHT", "8")];
    let variables = variables(database.url(), stand_in, &others);
    // It is needed for as long as the server is there, and goes with it.
    std::mem::forget(database);
    let mut replicas = Vec::new();
    for _ in 0..count {
        replicas.push(Process::serve(&variables).await);
    }
    replicas
}

/// Tells each replica of somebody new until it is heard, and waits until Flagsmith hears of all of them.
/// How long that took from when on, in milliseconds.
pub(super) async fn recovered(
    load: &Load,
    stand_in: &StandIn,
    replicas: &[Process],
    round: usize,
    since: Instant,
) -> (u64, u64) {
    let told = |replica: usize| format!("told-{round}-{replica}");
    let mut heard_ms = 0;
    for (number, replica) in replicas.iter().enumerate() {
        let page = page_without_info("add_members", "told", &[told(number)]).to_string();
        eventually("a page is taken in", async || {
            let status = load.attempt(&replica.webhook_url(), &page).await;
            (status == 200).then_some(())
        })
        .await;
        heard_ms = ms(since);
    }
    eventually("they are delivered", async || {
        let is_there = |number| {
            let traits = stand_in.identity(&told(number)).unwrap_or_default();
            traits.get(&key("told")) == Some(&json!(true))
        };
        (0..replicas.len()).all(is_there).then_some(())
    })
    .await;
    (heard_ms, ms(since))
}

async fn comes_back(count: usize) {
    let Some(postgres) = Postgres::start().await else {
        return;
    };
    let stand_in = Arc::new(stand_in());
    let seed = seed();
    let mut dice = fastrand::Rng::with_seed(seed);
    slow_calls(&stand_in, dice.u64(..));
    let replicas = replicas(&postgres, &stand_in, count).await;
    let load = Load::new(&stand_in, webhooks(&replicas));
    let senders = load.start(&mut dice);
    let (mut heard_ms, mut delivered_ms) = (Vec::new(), Vec::new());
    for round in 0..rounds(3, 20) {
        load.more_pages(dice.u64(5..30)).await;
        let refused = load.answered(503);
        match round % 2 {
            0 => postgres.kill().await,
            _ => postgres.stop().await,
        }
        eventually("a page is refused", async || {
            (load.answered(503) > refused).then_some(())
        })
        .await;
        postgres.start_again().await;
        let up = Instant::now();
        let (heard, delivered) = recovered(&load, &stand_in, &replicas, round, up).await;
        heard_ms.push(heard);
        delivered_ms.push(delivered);
        assert!(senders.are_well(), "seed {seed}");
    }
    let acknowledged = senders.stop().await;
    load.assert_right(&acknowledged, Duration::ZERO).await;
    let worst = stand_in.max_in_flight_per_identity();
    println!(
        "{}",
        json!({
            "setting": "PostgreSQL killed and restarted in turn",
            "replicas": count,
            "pages": load.pages(),
            "answers": format!("{:?}", load.answers()),
            "taken_in_ms": heard_ms,
            "delivered_ms": delivered_ms,
            "changes": acknowledged.changes,
            "calls": load.counted_calls(),
            "calls_at_once": worst,
        })
    );
    let statuses: Vec<_> = load.answers().into_keys().collect();
    assert_eq!(statuses, [200, 503], "seed {seed}");
    let slowest = heard_ms.iter().max().unwrap();
    assert!(*slowest <= RECOVERS_WITHIN_MS, "{slowest} ms, seed {seed}");
    assert!(worst <= 1, "{worst} calls for one identity at once");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_by_one_replica_when_postgresql_comes_back() {
    comes_back(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_by_two_replicas_when_postgresql_comes_back() {
    comes_back(2).await;
}

/// The server and its children, which are in groups of their own.
fn family(server: u32) -> Vec<u32> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_child = |process: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
        let parent = stat
            .rsplit_once(") ")
            .and_then(|(_, rest)| rest.split(' ').nth(1));
        parent == Some(&server.to_string())
    };
    std::iter::once(server)
        .chain(numbers.filter(is_child))
        .collect()
}

fn signal_all(processes: &[u32], name: &str) {
    for process in processes {
        // A child may have ended by itself.
        let _ = std::process::Command::new("kill")
            .args([&format!("-{name}"), &process.to_string()])
            .stderr(std::process::Stdio::null())
            .status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgresql_that_stands_still_has_pages_refused_in_time() {
    let Some(postgres) = Postgres::start().await else {
        return;
    };
    let stand_in = Arc::new(stand_in());
    let replicas = replicas(&postgres, &stand_in, 1).await;
    let load = Load::new(&stand_in, webhooks(&replicas));
    let start = Instant::now();
    recovered(&load, &stand_in, &replicas, 0, start).await;

    let server = postgres.daemon().pid();
    let stopped = family(server);
    signal_all(&stopped, "STOP");
    let patient = client();
    let mut refused_ms = Vec::new();
    for number in 0..3 {
        let page = page_without_info("add_members", "told", &[format!("refused-{number}")]);
        let request = patient.post(replicas[0].webhook_url());
        let request = request.basic_auth(USER, Some(PASSWORD));
        let sent = Instant::now();
        let answer = request.body(page.to_string()).send().await.unwrap();
        assert_eq!(answer.status(), 503);
        refused_ms.push(ms(sent));
    }
    signal_all(&stopped, "CONT");
    let up = Instant::now();
    let (heard, delivered) = recovered(&load, &stand_in, &replicas, 1, up).await;
    println!(
        "{}",
        json!({
            "setting": "PostgreSQL stood still",
            "refused_ms": refused_ms,
            "taken_in_ms": heard,
            "delivered_ms": delivered,
        })
    );
    let slowest = refused_ms.iter().max().unwrap();
    assert!(*slowest <= REFUSED_WITHIN_MS, "{slowest} ms");
    assert!(heard <= RECOVERS_WITHIN_MS, "{heard} ms");
}
