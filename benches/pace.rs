//! Delivery by the real service to a Flagsmith that takes 50 ms over every answer, however many it is
//! asked, and to one of eight workers that takes 80 ms and queues the rest: both beside what they
//! could answer at most, and the first beside a bare reqwest loop.

#[path = "support/bare.rs"]
mod bare;
mod support;

use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use bare::bare;
use cohort_bridge::standin::{Fault, StandIn, StandInOptions};
use support::*;

const IN_FLIGHT: usize = 64;

/// What the elastic Flagsmith takes over an answer.
const DELAY: Duration = Duration::from_millis(50);

/// Calls to it: half a minute, so that the beginning weighs little.
const DELAYED_CALLS: usize = 40_000;

/// Workers of the small Flagsmith.
const WORKERS: usize = 8;

/// What each takes over an answer.
const SERVICE: Duration = Duration::from_millis(80);

/// Calls to it: half a minute.
const QUEUED_CALLS: usize = 3_000;

/// Delivers what [`fill`] left; calls a second.
fn deliver(ledger: &Path, standin: &StandIn, calls: usize) -> f64 {
    standin.forget_calls();
    let service = Service::start(ledger, &standin.url());
    let calls_per_second = rate_until(standin, calls);
    while is_pending(&service) {
        std::thread::sleep(Duration::from_millis(20));
    }
    service.terminate();
    calls_per_second
}

fn report(bench: &str, calls_per_second: f64, limit: f64, bare: Option<f64>, standin: &StandIn) {
    println!(
        "{}",
        serde_json::json!({
            "bench": bench,
            "calls_per_second": calls_per_second.round(),
            "limit_calls_per_second": limit.round(),
            "ratio_to_limit": calls_per_second / limit,
            "bare_reqwest_calls_per_second": bare.map(f64::round),
            "ratio_to_bare_reqwest": bare.map(|bare| calls_per_second / bare),
            "most_in_flight": standin.max_in_flight(),
        })
    );
}

fn main() {
    let folder = disk_folder();
    let standin = StandIn::start(StandInOptions::default()).expect("the stand-in starts");

    let ledger = folder.path().join("delayed.db");
    fill(&ledger, DELAYED_CALLS);
    standin.fault(Fault::Delay(DELAY));
    let delivered = deliver(&ledger, &standin, DELAYED_CALLS);
    let limit = IN_FLIGHT as f64 / DELAY.as_secs_f64();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let raw = runtime.block_on(bare(&standin.url(), DELAYED_CALLS / 2, IN_FLIGHT));
    report(
        "delivery, 50 ms an answer",
        delivered,
        limit,
        Some(raw),
        &standin,
    );

    let ledger = folder.path().join("queued.db");
    standin.clear_faults();
    fill(&ledger, QUEUED_CALLS);
    let free_at = Mutex::new([Instant::now(); WORKERS]);
    standin.fault_for(move |_| {
        let now = Instant::now();
        let mut free_at = free_at.lock().ok()?;
        let worker = free_at.iter_mut().min()?;
        *worker = now.max(*worker) + SERVICE;
        Some(Fault::Delay(*worker - now))
    });
    let delivered = deliver(&ledger, &standin, QUEUED_CALLS);
    let limit = WORKERS as f64 / SERVICE.as_secs_f64();
    report(
        "delivery, 8 workers of 80 ms",
        delivered,
        limit,
        None,
        &standin,
    );
}
