//! Durable answers: how many members a second the real binary takes in, and how long one answer
//! takes, beside the disk's own limit for the same bytes in the same run.

mod support;

use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use support::*;

const MEMBERS: usize = 1_000;

struct Run {
    members_per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
    max_ms: f64,
}

fn run(service: &Service, connections: usize, pages: usize, session: &str) -> Run {
    // Prepared beforehand, so that the generator costs little beside what is measured.
    let prepared: Vec<Vec<u8>> = (1..=pages.min(2_000))
        .map(|number| {
            webhook(&page(
                "members",
                session,
                session,
                number,
                pages + 1,
                MEMBERS,
                Ids::Sequential,
            ))
        })
        .collect();
    let next = AtomicUsize::new(0);
    let times = Mutex::new(Vec::new());
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..connections {
            scope.spawn(|| {
                let mut connection = Connection::to(service.webhook);
                let mut own = Vec::new();
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    if at >= pages {
                        break;
                    }
                    let sent = Instant::now();
                    let (status, body) = connection.send(&prepared[at % prepared.len()]);
                    own.push(sent.elapsed());
                    assert_eq!(status, 200, "{body}");
                }
                times.lock().unwrap().extend(own);
            });
        }
    });
    let took = begun.elapsed();
    let mut times = times.into_inner().unwrap();
    times.sort();
    Run {
        members_per_second: (pages * MEMBERS) as f64 / took.as_secs_f64(),
        p50_ms: quantile_ms(&times, 0.5),
        p99_ms: quantile_ms(&times, 0.99),
        max_ms: quantile_ms(&times, 1.0),
    }
}

/// Appends and syncs one page after the other: what the disk allows at one connection.
fn raw_sync(folder: &std::path::Path) -> (f64, f64) {
    let mut file = std::fs::File::create(folder.join("raw")).expect("a file");
    let bytes = vec![7_u8; 14 * MEMBERS];
    let mut times: Vec<Duration> = (0..300)
        .map(|_| {
            let begun = Instant::now();
            file.write_all(&bytes)
                .and_then(|()| file.sync_data())
                .expect("the disk writes");
            begun.elapsed()
        })
        .collect();
    times.sort();
    (quantile_ms(&times, 0.5), quantile_ms(&times, 0.99))
}

fn main() {
    let folder = disk_folder();
    let (raw_p50_ms, raw_p99_ms) = raw_sync(folder.path());
    let service = Service::start(
        &folder.path().join("ledger.db"),
        "http://127.0.0.1:9/api/v1/",
    );
    run(&service, 8, 200, "warm");
    let one = run(&service, 1, 1_000, "one");
    let many = run(&service, 32, 8_000, "many");
    println!(
        "{}",
        serde_json::json!({
            "bench": "front_door",
            "members_a_page": MEMBERS,
            "raw_write_and_sync_p50_ms": raw_p50_ms,
            "raw_write_and_sync_p99_ms": raw_p99_ms,
            "one_connection": {"members_per_second": one.members_per_second.round(), "p50_ms": one.p50_ms, "p99_ms": one.p99_ms, "max_ms": one.max_ms},
            "32_connections": {"members_per_second": many.members_per_second.round(), "p50_ms": many.p50_ms, "p99_ms": many.p99_ms, "max_ms": many.max_ms},
            "resident_peak_mb": service.peak_resident() as f64 / 1e6,
        })
    );
    service.terminate();
}
