//! Delivery by the real service beside a bare reqwest loop with the same body and the same number
//! in flight, against the same stand-in, in the same run; and wrk's where it is installed.

#[path = "support/bare.rs"]
mod bare;
mod support;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use bare::{bare, bare_bulk};
use cohort_bridge::standin::{Endpoint, StandIn, StandInOptions};
use support::*;

const IN_FLIGHT: usize = 64;

/// In bulk, as a self-hosted Flagsmith would be called.
const BULK_IN_FLIGHT: usize = 8;

fn calls() -> usize {
    std::env::var("BENCH_CALLS")
        .ok()
        .and_then(|count| count.parse().ok())
        .unwrap_or(400_000)
}

/// Rows a second in bulk, and calls made.
fn deliver_in_bulk(ledger: &Path, standin: &StandIn, identities: usize) -> (f64, u64) {
    standin.forget_calls();
    let in_flight = BULK_IN_FLIGHT.to_string();
    let settings = [
        ("COHORT_BRIDGE_FLAGSMITH_KIND", "core-bulk"),
        ("COHORT_BRIDGE_MAX_IN_FLIGHT", in_flight.as_str()),
    ];
    let service = Service::start_with(ledger, &standin.url(), &settings);
    let begun = Instant::now();
    while is_pending(&service) {
        std::thread::sleep(Duration::from_millis(5));
    }
    let rows_per_second = identities as f64 / begun.elapsed().as_secs_f64();
    service.terminate();
    (rows_per_second, standin.calls_to(Endpoint::Bulk))
}

fn wrk(url: &str, folder: &std::path::Path) -> Option<f64> {
    let script = folder.join("post.lua");
    std::fs::write(
        &script,
        r#"
local n = 0
request = function()
  n = n + 1
  local body = string.format('{"identifier":"usr_%08d","traits":[{"trait_key":"mixpanel_cohort_bench_wrk","trait_value":true}]}', n % 400000)
  return wrk.format("POST", "/api/v1/identities/", {["x-environment-key"]="ser.server-key", ["content-type"]="application/json", ["accept"]="application/json"}, body)
end
"#,
    )
    .ok()?;
    let output = Command::new("wrk")
        .args(["-t1", "-c64", "-d5s", "-s"])
        .arg(&script)
        .arg(url)
        .output()
        .ok()?;
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .find_map(|line| line.strip_prefix("Requests/sec:"))
        .and_then(|rate| rate.trim().parse().ok())
}

fn main() {
    let calls = calls();
    let folder = disk_folder();
    let standin = StandIn::start(StandInOptions::default()).expect("the stand-in starts");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(bare(&standin.url(), calls / 10, IN_FLIGHT));
    let before = runtime.block_on(bare(&standin.url(), calls, IN_FLIGHT));

    // The service finds its work in the ledger.
    let ledger = folder.path().join("ledger.db");
    fill(&ledger, calls);
    standin.forget_calls();
    let service = Service::start(&ledger, &standin.url());
    let delivered = rate_until(&standin, calls);
    let cpu = service.cpu_seconds();
    while is_pending(&service) {
        std::thread::sleep(Duration::from_millis(20));
    }
    let resident = service.peak_resident();
    service.terminate();
    let made = standin.calls_to(Endpoint::Write);

    let after = runtime.block_on(bare(&standin.url(), calls, IN_FLIGHT));
    let raw = (before + after) / 2.0;
    let wrk = wrk(&standin.url(), folder.path());
    println!(
        "{}",
        serde_json::json!({
            "bench": "delivery",
            "identities": calls,
            "in_flight": IN_FLIGHT,
            "calls_per_second": delivered.round(),
            "bare_reqwest_calls_per_second": raw.round(),
            "ratio_to_bare_reqwest": delivered / raw,
            "wrk_calls_per_second": wrk,
            "ratio_to_wrk": wrk.map(|wrk| delivered / wrk),
            "cpu_ms_a_1000_members": cpu * 1e6 / calls as f64,
            "resident_peak_mb": resident as f64 / 1e6,
            "calls_made": made,
        })
    );

    let raw = runtime.block_on(bare_bulk(&standin.url(), calls, BULK_IN_FLIGHT));
    let ledger = folder.path().join("bulk.db");
    fill(&ledger, calls);
    let (delivered, calls_made) = deliver_in_bulk(&ledger, &standin, calls);
    println!(
        "{}",
        serde_json::json!({
            "bench": "delivery_in_bulk",
            "identities": calls,
            "in_flight": BULK_IN_FLIGHT,
            "rows_per_second": delivered.round(),
            "bare_reqwest_rows_per_second": raw.round(),
            "ratio_to_bare_reqwest": delivered / raw,
            "calls_made": calls_made,
        })
    );
}
