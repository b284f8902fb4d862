//! A full sync of ten million members into the real binary while Flagsmith is down (the worst
//! case: all of them stay pending): memory, size of the ledger, time to fold, time to restart, time to
//! claim a batch.
//! `BENCH_MEMBERS` and `BENCH_IDS=random` change what is sent.

mod support;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use cohort_bridge::clock::{Clock, SystemClock};
use cohort_bridge::route::Routes;
use cohort_bridge::store::{
    Database, DestinationRules, LedgerStore, Outcome, PostgresUrl, Settlement, SourceRules, Store,
};
use support::*;

const MEMBERS_A_PAGE: usize = 1_000;

/// Identities that dispatch claims in one transaction at full speed.
const CLAIMS: usize = 256;

/// Sends one session over 8 connections; how long it took.
fn send_all(service: &Service, session: &str, pages: usize, ids: Ids) -> Duration {
    let next = AtomicUsize::new(1);
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut connection = Connection::to(service.webhook);
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number > pages {
                        break;
                    }
                    let body = page(
                        "members",
                        "full",
                        session,
                        number,
                        pages,
                        MEMBERS_A_PAGE,
                        ids,
                    );
                    let (status, body) = connection.send(&webhook(&body));
                    assert_eq!(status, 200, "{body}");
                }
            });
        }
    });
    begun.elapsed()
}

/// Claims a million at most, each batch as dispatch does it at full speed: the last one is settled and
/// the next one claimed in one durable transaction. How long each took.
fn claim_batches(ledger: &std::path::Path, members: usize) -> Vec<Duration> {
    let rules = DestinationRules {
        name: "default".into(),
        on_leave: Default::default(),
        linger_ms: 0,
        late_write_ms: 60_000,
    };
    let source = SourceRules::named("default");
    let name = rules.name.clone();
    let place = match database_url(ledger).strip_prefix("sqlite://") {
        Some(path) => Database::Sqlite(path.into()),
        None => Database::Postgres(Box::new(
            PostgresUrl::parse(&database_url(ledger), |_| true).expect("a PostgreSQL URL"),
        )),
    };
    let store = LedgerStore::open_at(&place, vec![source], vec![rules], Routes::default())
        .expect("the ledger opens");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let clock = SystemClock;
    let _term = runtime.block_on(store.lead()).expect("the lead");
    let (mut settle, mut after) = (Vec::new(), None);
    let mut took = Vec::new();
    for _ in 0..members.min(1_000_000) / CLAIMS {
        let begun = Instant::now();
        let exchange = store.exchange(&name, settle, after, CLAIMS, clock.now());
        let claims = runtime.block_on(exchange).expect("claims");
        took.push(begun.elapsed());
        assert!(!claims.claims.is_empty(), "nothing is left to claim");
        after = claims.resume_after;
        settle = claims
            .claims
            .into_iter()
            .map(|claim| Settlement {
                claim,
                outcome: Outcome::Written {
                    may_land_late: false,
                },
            })
            .collect();
    }
    runtime.block_on(store.close());
    took.sort();
    took
}

fn main() {
    let members: usize = std::env::var("BENCH_MEMBERS")
        .ok()
        .and_then(|count| count.parse().ok())
        .unwrap_or(10_000_000);
    let ids = match std::env::var("BENCH_IDS").as_deref() {
        Ok("random") => Ids::Random,
        _ => Ids::Sequential,
    };
    let pages = members / MEMBERS_A_PAGE;
    let folder = disk_folder();
    let ledger = folder.path().join("ledger.db");
    let service = Service::start(&ledger, "http://127.0.0.1:9/api/v1/");

    let received_in = send_all(&service, "full", pages, ids);

    // Meanwhile the front door must go on answering.
    let folding = Instant::now();
    let mut answers = Vec::new();
    let mut connection = Connection::to(service.webhook);
    let heartbeat = webhook(&page("add_members", "other", "heartbeat", 1, 1, 0, ids));
    loop {
        for _ in 0..20 {
            let sent = Instant::now();
            assert_eq!(connection.send(&heartbeat).0, 200);
            answers.push(sent.elapsed());
            std::thread::sleep(Duration::from_millis(5));
        }
        // What the heartbeats themselves leave waiting does not count.
        let status = service.json("/api/v1/cohorts");
        let folded = status["cohorts"].as_array().is_some_and(|cohorts| {
            cohorts
                .iter()
                .any(|cohort| cohort["members"].as_u64() == Some(members as u64))
        });
        if folded {
            break;
        }
    }
    let folded_in = folding.elapsed();
    answers.sort();
    // The same again: nothing changes, so it costs a walk along the ledger and no call.
    send_all(&service, "again", pages, ids);
    let folding = Instant::now();
    while service.json("/api/v1/status")["backlog"] != 0 {
        std::thread::sleep(Duration::from_millis(20));
    }
    let unchanged_in = folding.elapsed();
    let (peak, resident) = (service.peak_resident(), service.resident());
    service.terminate();

    let (page_count, free, page_size) = if !ledger.exists() {
        (0, 0, 0)
    } else {
        let connection = rusqlite::Connection::open(&ledger).expect("the ledger opens");
        let pragma = |name: &str| -> i64 {
            connection
                .query_row(&format!("PRAGMA {name}"), [], |row| row.get(0))
                .expect("a pragma")
        };
        (
            pragma("page_count"),
            pragma("freelist_count"),
            pragma("page_size"),
        )
    };
    let in_use = (page_count - free) * page_size;
    let again = Service::start(&ledger, "http://127.0.0.1:9/api/v1/");
    let restarted_in = again.started_in;
    again.terminate();
    let claims = claim_batches(&ledger, members);
    println!(
        "{}",
        serde_json::json!({
            "bench": "full_sync",
            "members": members,
            "identifier_bytes": identifier(ids, 1).len(),
            "received_seconds": received_in.as_secs_f64(),
            "received_members_per_second": (members as f64 / received_in.as_secs_f64()).round(),
            "folded_seconds": folded_in.as_secs_f64(),
            "folded_members_per_second": (members as f64 / folded_in.as_secs_f64()).round(),
            "unchanged_folded_seconds": unchanged_in.as_secs_f64(),
            "answers_while_folding_p50_ms": quantile_ms(&answers, 0.5),
            "answers_while_folding_p99_ms": quantile_ms(&answers, 0.99),
            "answers_while_folding_max_ms": quantile_ms(&answers, 1.0),
            "resident_peak_mb": peak as f64 / 1e6,
            "ledger_bytes_in_use_a_member": in_use as f64 / members as f64,
            "resident_with_all_pending_mb": resident as f64 / 1e6,
            "restart_seconds": restarted_in.as_secs_f64(),
            "claims_a_batch": CLAIMS,
            "claim_batch_p50_ms": quantile_ms(&claims, 0.5),
            "claim_batch_p99_ms": quantile_ms(&claims, 0.99),
            "claim_batch_max_ms": quantile_ms(&claims, 1.0),
        })
    );
}
