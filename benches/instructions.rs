//! Instructions that the real service executes for each delivered trait, counted by callgrind: a figure
//! that no other load on the machine touches. The ledger, the call and the check of its answer are in
//! it, the kernel is not. `BENCH_CALLS` changes the scale.

mod support;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use cohort_bridge::standin::{Endpoint, StandIn, StandInOptions};
use support::*;

/// Instructions from the start to the end of a service that delivers to so many identities.
fn instructions(folder: &Path, identities: usize) -> u64 {
    let ledger = folder.join(format!("{identities}.db"));
    fill(&ledger, identities);
    // Its own: before another ledger's canary everything would be written again.
    let standin = StandIn::start(StandInOptions::default()).expect("the stand-in starts");
    let counts = folder.join(format!("{identities}.callgrind"));
    let mut callgrind = Command::new("valgrind");
    callgrind
        .arg("--tool=callgrind")
        .arg(format!("--callgrind-out-file={}", counts.display()))
        .arg(env!("CARGO_BIN_EXE_cohort-bridge"));
    let service = Service::start_as(callgrind, &ledger, &standin.url(), &[]);
    while is_pending(&service) {
        std::thread::sleep(Duration::from_millis(200));
    }
    service.terminate();
    assert!(standin.calls_to(Endpoint::Write) >= identities as u64);
    std::fs::read_to_string(counts)
        .expect("callgrind wrote its counts")
        .lines()
        .find_map(|line| line.strip_prefix("totals: ")?.trim().parse().ok())
        .expect("callgrind wrote a total")
}

fn main() {
    if Command::new("valgrind").arg("--version").output().is_err() {
        eprintln!("skipped: valgrind is not installed");
        return;
    }
    let identities = std::env::var("BENCH_CALLS")
        .ok()
        .and_then(|count| count.parse().ok())
        .unwrap_or(20_000_usize);
    let folder = disk_folder();
    // What a start takes is in both.
    let some = instructions(folder.path(), identities / 2);
    let more = instructions(folder.path(), identities);
    println!(
        "{}",
        serde_json::json!({
            "bench": "instructions",
            "identities": identities,
            "instructions_a_delivered_trait": (more - some) / (identities - identities / 2) as u64,
        })
    );
}
