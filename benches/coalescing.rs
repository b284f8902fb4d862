//! How few calls it takes, by the real service: cohorts that share people, a cohort that is sent again
//! unchanged, one member who changes a thousand times during an outage, and an outage with a million
//! changes. `BENCH_COHORT_MEMBERS` and `BENCH_CHANGES` change the scale, `BENCH_CALLS_PER_SECOND` the
//! permitted rate after the outage.

mod support;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use cohort_bridge::standin::{Endpoint, StandIn, StandInOptions};
use support::*;

const COHORTS: usize = 10;
const MEMBERS_A_PAGE: usize = 1_000;
const FLIPS: usize = 1_000;
const RUNS: usize = 12;

fn scale(variable: &str, usual: usize) -> usize {
    std::env::var(variable)
        .ok()
        .and_then(|count| count.parse().ok())
        .unwrap_or(usual)
}

/// A session of whoever has these numbers, over 8 connections.
fn send_session(service: &Service, action: &str, cohort: &str, session: &str, people: &[usize]) {
    // Nobody is a page as well.
    let pages: Vec<_> = match people {
        [] => vec![people],
        _ => people.chunks(MEMBERS_A_PAGE).collect(),
    };
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut connection = Connection::to(service.webhook);
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(people) = pages.get(at) else {
                        break;
                    };
                    let place = (at + 1, pages.len());
                    let body = page_of(action, cohort, session, place, people, Ids::Sequential);
                    let (status, body) = connection.send(&webhook(&body));
                    assert_eq!(status, 200, "{body}");
                }
            });
        }
    });
}

fn wait_until(mut is_so: impl FnMut() -> bool) {
    while !is_so() {
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn is_folded(service: &Service) -> bool {
    service.json("/api/v1/status")["backlog"] == 0
}

fn pending(service: &Service) -> u64 {
    let status = service.json("/api/v1/cohorts");
    let cohorts = status["cohorts"].as_array().into_iter().flatten();
    cohorts
        .filter_map(|cohort| cohort["destinations"][0]["pending"].as_u64())
        .sum()
}

fn wait_until_settled(service: &Service) {
    wait_until(|| is_folded(service));
    wait_until(|| pending(service) == 0);
}

/// Ten cohorts, one after the other: half of each is in all of them.
fn members(cohort: usize, each: usize) -> Vec<usize> {
    let own = each / 2 * (cohort + 1);
    (0..each / 2).chain(own..own + each / 2).collect()
}

fn main() {
    let each = scale("BENCH_COHORT_MEMBERS", 100_000);
    let changes = scale("BENCH_CHANGES", 1_000_000);
    let permitted = scale("BENCH_CALLS_PER_SECOND", 5_000);
    let folder = disk_folder();
    let standin = StandIn::start(StandInOptions::default()).expect("the stand-in starts");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime");

    // The linger is what says how long cohorts may come one after the other.
    let linger_seconds = 10 + each * COHORTS / 50_000;
    let linger = format!("{linger_seconds}s");
    let service = Service::start_with(
        &folder.path().join("cohorts.db"),
        &standin.url(),
        &[("COHORT_BRIDGE_LINGER", &linger)],
    );
    let began = Instant::now();
    for cohort in 0..COHORTS {
        let people = members(cohort, each);
        send_session(&service, "members", &format!("c{cohort}"), "first", &people);
        wait_until(|| is_folded(&service));
    }
    let synced_in = began.elapsed();
    wait_until_settled(&service);
    let distinct = each / 2 * (COHORTS + 1);
    let calls = standin.calls_to(Endpoint::Write);

    standin.forget_calls();
    for cohort in 0..COHORTS {
        let people = members(cohort, each);
        send_session(&service, "members", &format!("c{cohort}"), "again", &people);
    }
    wait_until_settled(&service);
    std::thread::sleep(Duration::from_secs(2));
    let unchanged_calls = standin.calls_to(Endpoint::Write);
    service.terminate();

    // An environment of its own: another ledger's canary would have everything written again.
    let standin = StandIn::start(StandInOptions::default()).expect("the stand-in starts");
    let service = Service::start_with(
        &folder.path().join("outage.db"),
        &standin.url(),
        &[("COHORT_BRIDGE_MAX_CALLS_PER_SECOND", &permitted.to_string())],
    );
    wait_until(|| standin.calls_to(Endpoint::Write) > 0);
    runtime.block_on(standin.stop());
    for flip in 0..FLIPS {
        let session = format!("flip {flip}");
        let (joins, leaves): (&[usize], &[usize]) = match flip % 2 {
            0 => (&[0], &[]),
            _ => (&[], &[0]),
        };
        send_session(&service, "add_members", "flip", &session, joins);
        send_session(&service, "remove_members", "flip", &session, leaves);
    }
    // Twelve runs, as Mixpanel makes them in six hours: of those who join in one, half leave in the
    // next.
    let joins = changes * 2 / (3 * RUNS - 1);
    let began = Instant::now();
    for run in 0..RUNS {
        let first = 1 + run * joins;
        let joined: Vec<_> = (first..first + joins).collect();
        let left: Vec<_> = match run {
            0 => Vec::new(),
            _ => (first - joins..first - joins + joins / 2).collect(),
        };
        let session = format!("run {run}");
        send_session(&service, "add_members", "outage", &session, &joined);
        send_session(&service, "remove_members", "outage", &session, &left);
    }
    wait_until(|| is_folded(&service));
    let outage = began.elapsed();
    let changed = pending(&service);
    standin.forget_calls();
    standin.resume().expect("the port is free");
    wait_until(|| standin.calls_to(Endpoint::Write) > 1);
    let began = Instant::now();
    wait_until(|| pending(&service) == 0);
    let drained_in = began.elapsed();
    let outage_calls = standin.calls_to(Endpoint::Write);
    let flip_calls = standin
        .calls_by_trait()
        .get("mixpanel_cohort_bench_flip")
        .copied();
    let resident = service.peak_resident();
    service.terminate();

    println!(
        "{}",
        serde_json::json!({
            "bench": "coalescing",
            "cohorts": COHORTS,
            "members_each": each,
            "linger_seconds": linger_seconds,
            "synced_seconds": synced_in.as_secs_f64(),
            "distinct_identities": distinct,
            "calls": calls,
            "calls_a_distinct_identity": calls as f64 / distinct as f64,
            "calls_where_nothing_changed": unchanged_calls,
            "calls_for_1000_flips": flip_calls,
            "outage_changes": joins * RUNS + joins / 2 * (RUNS - 1) + FLIPS,
            "outage_changed_identities": changed,
            "outage_took_seconds": outage.as_secs_f64(),
            "outage_calls": outage_calls,
            "calls_a_changed_identity": outage_calls as f64 / changed as f64,
            "permitted_calls_a_second": permitted,
            "drained_seconds": drained_in.as_secs_f64(),
            "ratio_to_permitted": drained_in.as_secs_f64() * permitted as f64 / changed as f64,
            "resident_peak_mb": resident as f64 / 1e6,
        })
    );
}
