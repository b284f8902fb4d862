//! How few calls it takes: the figures of `benches/coalescing.rs` on a small scale.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cohort_bridge::clock::{Clock, Millis};
use cohort_bridge::flagsmith::CANARY;
use cohort_bridge::gate::OUTAGE_AFTER;
use cohort_bridge::standin::{Endpoint, Fault};

use crate::support::eventually;
use crate::support::pages::{key, page, people};
use crate::support::service::{Service, spawn_app, stand_in};

const PAGE: usize = 500;

async fn send_session(
    service: &Service,
    action: &str,
    cohort: &str,
    session: &str,
    people: &[String],
) {
    let pages = people.chunks(PAGE);
    let total = pages.len() as u32;
    for (number, people) in (1..).zip(pages) {
        service
            .send(&page(action, cohort, session, (number, total), people))
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_cohorts_one_after_the_other_cost_a_person_one_call() {
    const EACH: usize = 2_000;
    let service = spawn_app(stand_in(), |setup| {
        setup.destination.linger = Duration::from_secs(600);
        // Its calls are not delivery's.
        setup.destination.canary_interval = Duration::from_secs(24 * 3_600);
    })
    .await;
    service.canary_is_done().await;
    let cohorts: Vec<_> = (0..10).map(|n| format!("cohort{n}")).collect();
    let members = |cohort: &str| {
        let own = people(cohort, EACH / 2);
        [people("shared", EACH / 2), own].concat()
    };
    for cohort in &cohorts {
        send_session(&service, "members", cohort, "first", &members(cohort)).await;
        service.folded().await;
        service.clock.advance(Duration::from_secs(30));
    }
    // Nobody's ten minutes are over.
    assert_eq!(service.stand_in.calls_to(Endpoint::Write), 0);
    service.clock.advance(Duration::from_secs(600));
    service.settled().await;
    let distinct = EACH / 2 * (1 + cohorts.len());
    assert_eq!(service.stand_in.calls_to(Endpoint::Write), distinct as u64);
    let shared = service.stand_in.identity("shared0007").unwrap();
    assert_eq!(shared.len(), cohorts.len());

    service.stand_in.forget_calls();
    for cohort in &cohorts {
        send_session(&service, "members", cohort, "again", &members(cohort)).await;
    }
    service.folded().await;
    service.clock.advance(Duration::from_secs(700));
    service.settled().await;
    assert_eq!(service.stand_in.calls_to(Endpoint::Write), 0);
}

/// Calls of delivery: whom, when, and whether it was answered well.
type Calls = Arc<Mutex<Vec<(String, Millis)>>>;

/// Records every call, lets it meet `fault`, and lets `each` pass with it.
fn record(service: &Service, calls: &Calls, fault: Option<Fault>, each: Duration) {
    let (calls, clock) = (Arc::clone(calls), service.clock.clone());
    service.stand_in.fault_for(move |call| {
        if call.identifier != CANARY {
            let mut calls = calls.lock().unwrap();
            clock.advance(each);
            calls.push((call.identifier.to_owned(), clock.now()));
        }
        fault.clone()
    });
}

/// Six hours of changes while Flagsmith is down, a run every half hour, as Mixpanel sends them.
#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_six_hours_costs_each_changed_person_one_call() {
    const RUNS: usize = 12;
    const EACH: Duration = Duration::from_millis(10);
    const LAST: u64 = 40;
    let service = spawn_app(stand_in(), |setup| {
        setup.destination.linger = Duration::from_secs(1);
    })
    .await;
    service.canary_is_done().await;
    let old = people("old", 1_200);
    send_session(&service, "members", "c", "first", &old).await;
    service.settled_in_time().await;

    let down = Calls::default();
    record(&service, &down, Some(Fault::status(503)), Duration::ZERO);
    let began = service.clock.now();
    let mut changed = HashSet::new();
    let mut changes = 0;
    for run in 0..RUNS {
        let session = format!("run{run}");
        // Some leave, some are new, and some go to and fro.
        let joins = [
            people(&format!("new{run}x"), 250),
            old[..50 * (run % 2)].to_vec(),
        ]
        .concat();
        let leaves = [
            old[100 + run * 90..100 + (run + 1) * 90].to_vec(),
            old[..50 * ((run + 1) % 2)].to_vec(),
        ]
        .concat();
        changes += joins.len() + leaves.len();
        send_session(&service, "add_members", "c", &session, &joins).await;
        send_session(&service, "remove_members", "c", &session, &leaves).await;
        changed.extend(joins);
        changed.extend(leaves);
        service.folded().await;
        // Ten seconds looked at closely, and half an hour.
        let steps = [(100, 100), (30_000, 60)];
        for (step_ms, steps) in steps {
            for _ in 0..steps {
                service.clock.advance(Duration::from_millis(step_ms));
                // Time for a probe, where one is due.
                service.is_folded().await;
            }
        }
    }
    assert!(changes > 4_000, "{changes}");
    let outage = service.clock.now() - began;
    assert!(outage >= 6 * 3_600_000);
    let probes = down.lock().unwrap().clone();
    let at_once = OUTAGE_AFTER as usize + 8;
    assert!(probes.len() > at_once + RUNS, "{}", probes.len());
    for two in probes[at_once..].windows(2) {
        let took = two[1].1 - two[0].1;
        assert!(took >= 1_000, "probes {took} ms apart");
    }

    let up = Calls::default();
    record(&service, &up, None, EACH);
    service
        .time_passes("Flagsmith is back", async || !up.lock().unwrap().is_empty())
        .await;
    // Only calls let time pass, until what failed as a probe waits for its time.
    eventually("nearly everything is delivered", async || {
        (service.pending().await <= LAST).then_some(())
    })
    .await;
    service.settled_in_time().await;
    let calls = up.lock().unwrap().clone();
    let most = changed.len() as f64 * 1.01;
    assert!(
        calls.len() as f64 <= most,
        "{} calls for {} people",
        calls.len(),
        changed.len()
    );
    let took = calls[calls.len() - 1 - LAST as usize].1 - calls[0].1;
    let permitted = changed.len() as f64 * EACH.as_millis() as f64;
    assert!(
        took as f64 <= permitted * 1.1,
        "{took} ms of {permitted} ms"
    );
    for (person, member) in [("new3x0007", true), ("old0105", false), ("old0007", true)] {
        assert_eq!(service.stored(person, &key("c")), Some(member), "{person}");
    }
}
