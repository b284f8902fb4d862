//! Replicas that share a PostgreSQL database, in real processes, while something goes wrong.
//!
//! Short by default. `TEST_CHAOS_SECONDS=300` has replicas killed and stopped for that long, and
//! everything else done as often as fits; with `--nocapture` each test prints what it measured.

mod connections;
mod database;
mod durability;
mod failover;
mod inbox;
mod lease;
mod load;
mod pooler;
mod replicas;
mod rolling;
mod stale;
mod tls;

use std::time::{Duration, Instant};

use cohort_bridge::standin::StandIn;

use crate::support::eventually;
use crate::support::process::{Process, Variables, serve_variables};
use crate::support::service::client;

/// Seconds that the long tests are to last; `None` where they are to be short.
fn seconds() -> Option<u64> {
    std::env::var("TEST_CHAOS_SECONDS").ok()?.parse().ok()
}

/// How often something is done: seldom, or that often where tests may be long.
fn rounds(short: usize, long: usize) -> usize {
    seconds().map_or(short, |_| long)
}

/// The settings of a replica over that database.
fn variables(database_url: &str, stand_in: &StandIn, others: &[(&str, &str)]) -> Variables {
    let nowhere = std::path::Path::new("nowhere/ledger.db");
    let mut variables = serve_variables(nowhere, &stand_in.url());
    let database = ("DATABASE_URL", database_url);
    for (name, value) in others.iter().chain([&database]) {
        variables.insert((*name).to_owned(), (*value).to_owned());
    }
    variables
}

/// Whether a replica says that it leads; `false` where it says nothing.
async fn leads(replica: &Process) -> bool {
    let url = replica.admin_url("/api/v1/status");
    let asking = client().get(url).timeout(Duration::from_secs(2)).send();
    let Ok(answer) = asking.await else {
        return false;
    };
    let status = answer.json::<serde_json::Value>().await;
    status.is_ok_and(|status| status["leading"] == true)
}

/// Waits until one of these replicas leads; which one.
async fn leader(replicas: &[Process], among: &[usize]) -> usize {
    eventually("a replica leads", async || {
        for &number in among {
            if leads(&replicas[number]).await {
                return Some(number);
            }
        }
        None
    })
    .await
}

/// Milliseconds, for people.
fn ms(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap()
}
