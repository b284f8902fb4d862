//! Delivery with `PUT traits/bulk/`: how many calls it takes, and what is stored and called for
//! when one of a hundred rows, or all of them, fail.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cohort_bridge::clock::Millis;
use cohort_bridge::cohort::OnLeave;
use cohort_bridge::config::{Destination, Kind};
use cohort_bridge::dispatch::ATTEMPTS;
use cohort_bridge::flagsmith::{CANARY, Flagsmith, MAX_ROWS, Storage};
use cohort_bridge::gate::OUTAGE_AFTER;
use cohort_bridge::standin::{Call, Endpoint, Fault, StandIn, StandInOptions, Switch};
use secrecy::SecretString;
use serde_json::{Value, json};

use crate::delivery::Impatient;
use crate::support::bridge::Bridge;
use crate::support::pages::{key, page, page_without_info, people};
use crate::support::process::{Process, serve_variables};
use crate::support::service::{PASSWORD, Service, USER, client, spawn_app, stand_in};
use crate::support::shared_ledger;
use crate::support::{
    calls_are_held, destination, environment, eventually, fast_temp_dir, stand_in_of_all_kinds,
};

/// Calls of delivery: whom they were for. The canary's are left out.
#[derive(Clone, Default)]
struct Record(Arc<Mutex<Vec<Vec<String>>>>);

impl Record {
    fn calls(&self) -> Vec<Vec<String>> {
        self.0.lock().unwrap().clone()
    }

    fn about(&self, person: &str) -> usize {
        let calls = self.calls();
        calls
            .iter()
            .filter(|people| people.iter().any(|named| named == person))
            .count()
    }
}

/// Records every call of delivery, and lets `rule` decide what it meets.
fn recorded(
    service: &Service,
    rule: impl Fn(&Call<'_>) -> Option<Fault> + Send + Sync + 'static,
) -> Record {
    let record = Record::default();
    let calls = record.clone();
    service.stand_in.fault_for(move |call| {
        if call.is_about(CANARY) {
            return None;
        }
        let mut calls = calls.0.lock().unwrap();
        calls.push(call.identifiers.to_vec());
        drop(calls);
        rule(call)
    });
    record
}

async fn spawn_bulk() -> Service {
    spawn_bulk_with(|_| {}).await
}

/// A service that lingers for a second, so that what is sent before goes together.
async fn spawn_bulk_with(change: impl FnOnce(&mut Destination)) -> Service {
    let service = spawn_app(stand_in(), |setup| {
        setup.destination.kind = Kind::CoreBulk;
        setup.destination.linger = Duration::from_secs(1);
        change(&mut setup.destination);
    })
    .await;
    service.canary_is_done().await;
    service
}

async fn send_all(service: &Service, cohort: &str, people: &[String]) {
    let pages = people.chunks(100);
    let total = pages.len() as u32;
    for (number, people) in (1..).zip(pages) {
        service
            .send(&page("members", cohort, "s", (number, total), people))
            .await;
    }
    service.folded().await;
}

fn assert_all(service: &Service, people: &[String], cohort: &str, value: Option<bool>) {
    for person in people {
        assert_eq!(service.stored(person, &key(cohort)), value, "{person}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_identities_are_ten_calls() {
    let service = spawn_bulk().await;
    let everybody = people("p", 1_000);
    send_all(&service, "c", &everybody).await;
    assert_eq!(service.stand_in.calls(), BTreeMap::new(), "it lingers");
    let record = recorded(&service, |_| None);
    service.settled_in_time().await;
    assert_all(&service, &everybody, "c", Some(true));
    let calls = record.calls();
    assert!((10..=20).contains(&calls.len()), "{} calls", calls.len());
    assert!(calls.iter().all(|people| people.len() <= MAX_ROWS));
    assert_eq!(service.stand_in.calls_to(Endpoint::Write), 0);
    // Known by now: nothing to say.
    service.stand_in.forget_calls();
    for page_of in ["t", "u"] {
        service
            .send(&page("add_members", "c", page_of, (1, 1), &everybody[..90]))
            .await;
    }
    service.settled_in_time().await;
    assert_eq!(service.stand_in.calls(), BTreeMap::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn all_traits_of_an_identity_go_in_one_call() {
    let service = spawn_bulk().await;
    let everybody = people("p", 150);
    for cohort in ["one", "two", "three"] {
        send_all(&service, cohort, &everybody).await;
    }
    let record = recorded(&service, |_| None);
    service.settled_in_time().await;
    for cohort in ["one", "two", "three"] {
        assert_all(&service, &everybody, cohort, Some(true));
    }
    let calls = record.calls();
    // 450 rows, 33 identities with three rows each to a call.
    assert!((5..=10).contains(&calls.len()), "{} calls", calls.len());
    assert!(calls.iter().all(|people| people.len() <= MAX_ROWS / 3));
    for person in &everybody {
        assert_eq!(record.about(person), 1, "{person}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn leavers_are_deleted_and_nobody_is_created() {
    let service = spawn_bulk_with(|destination| destination.on_leave = OnLeave::Delete).await;
    let everybody = people("p", 50);
    send_all(&service, "c", &everybody).await;
    service.settled_in_time().await;
    let (left, stayed) = everybody.split_at(20);
    // One of them was never told to Flagsmith.
    let leavers: Vec<_> = left.iter().cloned().chain(["never".to_owned()]).collect();
    service.stand_in.forget_calls();
    service
        .send(&page("remove_members", "c", "r", (1, 1), &leavers))
        .await;
    service.settled_in_time().await;
    assert_all(&service, stayed, "c", Some(true));
    for person in left {
        assert_eq!(service.stand_in.identity(person), Some(BTreeMap::new()));
    }
    assert_eq!(service.stand_in.identity("never"), None);
    assert_eq!(service.stand_in.calls_to(Endpoint::Bulk), 1);
    assert_eq!(service.dead_letters().await, [] as [Value; 0]);
}

/// Flagsmith's refusal of the rows of these people, where each has one.
fn refusal(call: &Call<'_>, bad: &[&str]) -> Option<Fault> {
    let error = json!({"trait_value": ["no"]});
    let errors = call.identifiers.iter().map(|named| {
        if bad.contains(&named.as_str()) {
            error.clone()
        } else {
            json!({})
        }
    });
    let errors: Vec<_> = errors.collect();
    let is_refused = errors.contains(&error);
    is_refused.then(|| Fault::answer(400, Value::Array(errors).to_string()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_is_named_is_a_dead_letter_and_the_others_are_sent_again() {
    let service = spawn_bulk_with(|destination| destination.max_in_flight = 1).await;
    let everybody = people("p", 100);
    let bad = ["p0003", "p0042", "p0099"];
    let record = recorded(&service, move |call| refusal(call, &bad));
    send_all(&service, "c", &everybody).await;
    service.settled_in_time().await;
    let letters = service.dead_letters().await;
    let mut dead: Vec<_> = letters
        .iter()
        .map(|letter| letter["identifier"].as_str().unwrap())
        .collect();
    dead.sort_unstable();
    assert_eq!(dead, bad);
    let error = letters[0]["error"].as_str().unwrap();
    assert!(
        error.contains("trait_value") && error.contains("400"),
        "{error}"
    );
    for person in &everybody {
        let value = (!bad.contains(&person.as_str())).then_some(true);
        assert_eq!(service.stored(person, &key("c")), value, "{person}");
    }
    let sizes: Vec<_> = record.calls().iter().map(Vec::len).collect();
    assert_eq!(sizes, [100, 97]);
    assert_eq!(service.destination().await.0, "ok");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_poisoned_identity_of_a_hundred_is_found_and_the_others_are_written() {
    if shared_ledger::is_wanted() {
        // The clock moves with every look, and a look over PostgreSQL takes longer than the test bears.
        return;
    }
    let service = spawn_bulk_with(|destination| destination.max_in_flight = 1).await;
    let everybody = people("p", 100);
    let record = recorded(&service, |call| {
        call.is_about("p0042")
            .then(|| Fault::Refuse("p0042".into()))
    });
    send_all(&service, "c", &everybody).await;
    service.clock.advance(Duration::from_secs(1));
    eventually("the others are written", async || {
        let cohort = &service.cohorts().await[0];
        (cohort["destinations"][0]["written"] == 99).then_some(())
    })
    .await;
    let is_alone = |people: &Vec<String>| *people == ["p0042"];
    eventually("it is found", async || {
        record.calls().iter().any(is_alone).then_some(())
    })
    .await;
    let calls = record.calls();
    assert!(calls.len() <= 2 * 7 + 1, "{} calls", calls.len());
    assert_eq!(service.destination().await.0, "ok");
    let others: Vec<_> = everybody
        .iter()
        .filter(|person| *person != "p0042")
        .cloned()
        .collect();
    assert_all(&service, &others, "c", Some(true));

    // It is given up while others succeed, and nobody who shared a call with it is.
    let mut round = 0;
    service
        .time_passes("the dead letter", async || {
            round += 1;
            let action = ["remove_members", "add_members"][round % 2];
            let well = format!("well{}", round % 5);
            service.send(&page_without_info(action, "d", &[well])).await;
            service.clock.advance(Duration::from_secs(2));
            !service.dead_letters().await.is_empty()
        })
        .await;
    service.settled_in_time().await;
    let letters = service.dead_letters().await;
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0]["identifier"], "p0042");
    let alone = record
        .calls()
        .iter()
        .filter(|people| **people == ["p0042"])
        .count();
    assert_eq!(alone, ATTEMPTS as usize);
    assert_all(&service, &others, "c", Some(true));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_of_poisoned_identities_holds_up_nobody_for_long() {
    if shared_ledger::is_wanted() {
        // The clock moves with every look, and a look over PostgreSQL takes longer than the test bears.
        return;
    }
    let service = spawn_bulk_with(|destination| destination.max_in_flight = 2).await;
    let everybody = people("p", 400);
    let is_bad = |person: &str| person.ends_with('7');
    recorded(&service, move |call| {
        let bad = call.identifiers.iter().find(|person| is_bad(person))?;
        Some(Fault::Refuse(bad.clone()))
    });
    send_all(&service, "c", &everybody).await;
    let begun = service.elapsed_ms();
    service
        .time_passes("the good ones are written", async || {
            service.cohorts().await[0]["destinations"][0]["written"] == 360
        })
        .await;
    let took = service.elapsed_ms() - begun;
    assert!(took < 300_000, "{took} ms");
    for person in &everybody {
        let value = (!is_bad(person)).then_some(true);
        assert_eq!(service.stored(person, &key("c")), value, "{person}");
    }
    for letter in service.dead_letters().await {
        assert!(is_bad(letter["identifier"].as_str().unwrap()), "{letter}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_is_not_hammered_and_is_nobodys_fault() {
    const CALLERS: usize = 4;
    let service = spawn_bulk_with(|destination| destination.max_in_flight = CALLERS).await;
    let everybody = people("p", 1_000);
    let record = recorded(&service, |_| Some(Fault::status(500)));
    send_all(&service, "c", &everybody).await;
    service.clock.advance(Duration::from_secs(1));
    eventually("delivery backs off", async || {
        (service.destination().await.0 == "backing_off").then_some(())
    })
    .await;
    let burst = record.calls().len();
    // A call and two halves each, before any of them can tell.
    let most = CALLERS * 4 + OUTAGE_AFTER as usize;
    assert!(burst <= most, "{burst} calls at once");
    let begun = service.elapsed_ms();
    service
        .time_passes("five minutes", async || {
            service.elapsed_ms() - begun > 300_000
        })
        .await;
    let probes = record.calls().split_off(burst);
    let seconds = (service.elapsed_ms() - begun) / 1_000;
    assert!(
        probes.len() as Millis <= seconds + CALLERS as Millis,
        "{} probes in {seconds} s",
        probes.len()
    );
    // What was under way when it closed apart, a probe is one identity.
    let wide = probes.iter().filter(|people| people.len() > 1).count();
    assert!(wide <= CALLERS, "{wide}");
    assert_eq!(service.dead_letters().await, [] as [Value; 0]);

    let record = recorded(&service, |_| None);
    service.settled_in_time().await;
    assert_all(&service, &everybody, "c", Some(true));
    assert_eq!(service.dead_letters().await, [] as [Value; 0]);
    let calls = record.calls();
    // A probe, and then no more at once than it can have proved to be borne.
    let sizes: Vec<_> = calls.iter().map(Vec::len).collect();
    assert_eq!(sizes[0], 1, "{sizes:?}");
    assert!(sizes[1] <= 2 && sizes[2] <= 4, "{sizes:?}");
    assert!(calls.len() < 60, "{} calls", calls.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_busy_is_given_less_at_a_time() {
    let service = spawn_bulk_with(|destination| destination.max_in_flight = 1).await;
    let everybody = people("p", 300);
    let met = Mutex::new(false);
    let record = recorded(&service, move |_| {
        let is_first = !std::mem::replace(&mut *met.lock().unwrap(), true);
        is_first.then(|| Fault::status(503))
    });
    send_all(&service, "c", &everybody).await;
    service.settled_in_time().await;
    assert_all(&service, &everybody, "c", Some(true));
    let sizes: Vec<_> = record.calls().iter().map(Vec::len).collect();
    assert!(sizes[0] > 50 && sizes[1] <= 50, "{sizes:?}");
    assert_eq!(service.dead_letters().await, [] as [Value; 0]);
}

/// A part of a call that was given up may have been written: a row of it that is wanted as it was
/// before has to be asserted all the same.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_given_up_half_way_is_not_taken_to_be_as_before() {
    let service = spawn_bulk_with(|destination| destination.max_in_flight = 1).await;
    let everybody = people("p", 100);
    send_all(&service, "c", &everybody).await;
    service.settled_in_time().await;
    let met = Mutex::new(false);
    let record = recorded(&service, move |call| {
        let is_first = !std::mem::replace(&mut *met.lock().unwrap(), true);
        // All but the last are written, then nothing works.
        Some(match call.identifiers.last() {
            Some(last) if is_first => Fault::Refuse(last.clone()),
            _ => Fault::status(500),
        })
    });
    service
        .send(&page("remove_members", "c", "r", (1, 1), &everybody))
        .await;
    service.folded().await;
    service.clock.advance(Duration::from_secs(1));
    eventually("delivery backs off", async || {
        (service.destination().await.0 == "backing_off").then_some(())
    })
    .await;
    let first = &record.calls()[0];
    assert!(first.len() > 8, "{first:?}");
    assert_all(&service, &first[..first.len() - 1], "c", Some(false));
    service
        .send(&page("add_members", "c", "a", (1, 1), &everybody))
        .await;
    service.folded().await;
    service.stand_in.clear_faults();
    service.settled_in_time().await;
    assert_all(&service, &everybody, "c", Some(true));
}

async fn halted(service: &Service) -> String {
    service
        .time_passes("delivery halts", async || {
            service.destination().await.0 == "halted"
        })
        .await;
    service.destination().await.1
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_a_person_can_mend_halts_and_names_the_switch() {
    for (switch, key_used, words) in [
        (Switch::StoresTraits, "ser.main", "stores no traits"),
        (
            Switch::ClientMaySetTraits,
            "client-main",
            "use a server-side key",
        ),
    ] {
        let all = [Switch::StoresTraits, Switch::ClientMaySetTraits];
        let on: Vec<_> = all.into_iter().filter(|other| *other != switch).collect();
        for canary_works in [true, false] {
            let stand_in = StandIn::start(StandInOptions {
                environments: vec![environment("main", &on)],
                ..StandInOptions::default()
            })
            .unwrap();
            if !canary_works {
                // So that delivery has to find out by itself.
                stand_in.fault_for(|call| call.is_about(CANARY).then(|| Fault::status(503)));
            }
            let service = spawn_app(stand_in, |setup| {
                setup.destination.kind = Kind::CoreBulk;
                setup.destination.environment_key = SecretString::from(key_used);
            })
            .await;
            service
                .send(&page("members", "c", "s", (1, 1), &["ann", "bob"]))
                .await;
            let reason = halted(&service).await;
            assert!(reason.contains(words), "{reason}");
            assert_eq!(service.dead_letters().await, [] as [Value; 0]);
            service.stand_in.clear_faults();
            service.stand_in.switch("ser.main", switch, true);
            service.settled_in_time().await;
            assert_eq!(service.stored("ann", &key("c")), Some(true));
            assert_eq!(service.stored("bob", &key("c")), Some(true));
            assert_eq!(service.dead_letters().await, [] as [Value; 0]);
            service.stop().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_without_the_rows_or_the_endpoint_halts() {
    for (fault, words) in [
        (Fault::answer(200, "[]"), "does not reach it"),
        (Fault::log_in_page(), "is not Flagsmith's"),
        (Fault::status(404), "COHORT_BRIDGE_FLAGSMITH_KIND=sdk"),
    ] {
        let service = spawn_bulk().await;
        let record = recorded(&service, move |_| Some(fault.clone()));
        send_all(&service, "c", &people("p", 10)).await;
        let reason = halted(&service).await;
        assert!(reason.contains(words), "{reason}");
        assert!(!record.calls().is_empty());
        let record = recorded(&service, |_| None);
        service.settled_in_time().await;
        assert_all(&service, &people("p", 10), "c", Some(true));
        assert_eq!(service.dead_letters().await, [] as [Value; 0]);
        assert!(record.calls().len() < 10);
        service.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_one_identity_at_most_one_call_is_under_way() {
    const PEOPLE: usize = 500;
    let service = spawn_bulk_with(|destination| {
        destination.max_in_flight = 8;
        destination.linger = Duration::ZERO;
    })
    .await;
    let everybody = people("p", PEOPLE);
    let half: Vec<_> = everybody.iter().step_by(2).cloned().collect();
    let number = Mutex::new(0);
    recorded(&service, move |_| {
        let mut number = number.lock().unwrap();
        *number += 1;
        // A failure now and then, so that calls are split too.
        Some(match *number % 5 {
            0 => Fault::status(500),
            _ => Fault::Delay(Duration::from_millis(3)),
        })
    });
    for round in 0..12 {
        for cohort in ["a", "b"] {
            let (action, people) = match round % 3 {
                0 => ("add_members", &everybody),
                1 => ("remove_members", &half),
                _ => ("add_members", &half),
            };
            let session = format!("s{round}");
            service
                .send(&page(action, cohort, &session, (1, 1), people))
                .await;
        }
    }
    for cohort in ["a", "b"] {
        service
            .send(&page("remove_members", cohort, "end", (1, 1), &half))
            .await;
    }
    service.settled_in_time().await;
    for (at, person) in everybody.iter().enumerate() {
        for cohort in ["a", "b"] {
            assert_eq!(service.stored(person, &key(cohort)), Some(at % 2 == 1));
        }
    }
    assert_eq!(service.stand_in.max_in_flight_per_identity(), 1);
    assert!(service.stand_in.max_in_flight() > 1);
    assert_eq!(service.dead_letters().await, [] as [Value; 0]);
}

fn bulk_destination(stand_in: &StandIn) -> Destination {
    Destination {
        kind: Kind::CoreBulk,
        ..destination(&stand_in.url(), "ser.server-key")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_a_call_that_timed_out_may_land_late_and_do_not_win() {
    let stand_in = stand_in();
    let met = Mutex::new(HashSet::new());
    stand_in.fault_for(move |call| {
        // The first call of anybody, whoever it is for.
        let is_first = !call.is_about(CANARY) && met.lock().unwrap().insert("any");
        is_first.then_some(Fault::LandLate)
    });
    let delivery = Impatient::towards(bulk_destination(&stand_in), Duration::from_millis(150));
    let everybody = people("p", 20);
    let of = |person: &String| stand_in.identity(person)?.get(&key("c"))?.as_bool();
    delivery
        .send(&page("add_members", "c", "s1", (1, 1), &everybody))
        .await;
    calls_are_held(&stand_in, 1).await;
    delivery
        .send(&page("remove_members", "c", "s2", (1, 1), &everybody))
        .await;
    eventually("the newer values are written", async || {
        delivery.clock.advance(Duration::from_millis(100));
        everybody
            .iter()
            .all(|person| of(person) == Some(false))
            .then_some(())
    })
    .await;
    assert_eq!(stand_in.land_late_writes(), 1);
    assert!(
        everybody.iter().any(|person| of(person) == Some(true)),
        "the old call won for now"
    );
    eventually("the newer values are written again", async || {
        delivery.clock.advance(Duration::from_secs(1));
        let right = everybody.iter().all(|person| of(person) == Some(false));
        (right && delivery.pending().await == 0).then_some(())
    })
    .await;
    delivery.stop().await;
}

/// A bridge to a destination in bulk, of one caller.
fn bridge(stand_in: &Arc<StandIn>) -> Bridge {
    let mut bridge = Bridge::before(Arc::clone(stand_in), "ser.server-key");
    bridge.destination.kind = Kind::CoreBulk;
    bridge.destination.max_in_flight = 1;
    bridge
}

/// The rows that were sent again without the refused one are still those of the call before, which
/// broke off.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_left_of_a_call_that_may_land_late_may_land_late_too() {
    let stand_in = Arc::new(stand_in());
    let calls = AtomicUsize::new(0);
    stand_in.fault_for(move |call| {
        if call.is_about(CANARY) {
            return None;
        }
        match calls.fetch_add(1, Ordering::SeqCst) {
            0 => Some(Fault::CloseAndLandLate),
            _ => refusal(call, &["p0003"]),
        }
    });
    let mut bridge = bridge(&stand_in);
    bridge.start();
    let everybody = people("p", 20);
    bridge
        .send(&page_without_info("add_members", "c", &everybody))
        .await;
    bridge.settled().await;
    assert_eq!(bridge.stored("p0000", "c"), Some(true));
    bridge
        .send(&page_without_info("remove_members", "c", &everybody))
        .await;
    eventually("the newer value is written", async || {
        (bridge.stored("p0000", "c") == Some(false)).then_some(())
    })
    .await;
    assert_eq!(stand_in.land_late_writes(), 1);
    assert_eq!(bridge.stored("p0000", "c"), Some(true), "the old call won");
    bridge
        .time_passes("it is written again", async || {
            bridge.stored("p0000", "c") == Some(false)
        })
        .await;
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_in_the_middle_of_a_split_call_ends_it() {
    let stand_in = Arc::new(stand_in());
    let mut bridge = bridge(&stand_in);
    bridge.start();
    let health = bridge.health();
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    stand_in.fault_for(move |call| {
        if call.is_about(CANARY) {
            return None;
        }
        if counted.fetch_add(1, Ordering::SeqCst) == 0 {
            health.set_paused(true);
        }
        refusal(call, &["p0003"])
    });
    let everybody = people("p", 20);
    bridge
        .send(&page_without_info("add_members", "c", &everybody))
        .await;
    eventually(
        "the first call is answered and all is put back",
        async || (calls.load(Ordering::SeqCst) > 0 && bridge.status().in_flight == 0).then_some(()),
    )
    .await;
    assert_eq!(calls.load(Ordering::SeqCst), 1);
    assert_eq!(bridge.stored("p0000", "c"), None);
    bridge.health().set_paused(false);
    bridge
        .time_passes("the rest is written", async || bridge.is_settled().await)
        .await;
    assert_eq!(bridge.stored("p0000", "c"), Some(true));
    bridge.stop().await;
}

/// A call of one row takes less time than one of a hundred, whatever the server has to do.
#[tokio::test(flavor = "multi_thread")]
async fn short_calls_do_not_make_the_long_ones_look_slow() {
    let service = spawn_bulk_with(|destination| destination.max_in_flight = 8).await;
    let _ = recorded(&service, |call| {
        let took = 2 * call.identifiers.len() as u64;
        Some(Fault::Delay(Duration::from_millis(took)))
    });
    for person in people("short", 40) {
        service
            .send(&page_without_info("add_members", "short", &[person]))
            .await;
        service.settled_in_time().await;
    }
    send_all(&service, "long", &people("long", 6_000)).await;
    service.settled_in_time().await;
    let status = service.get("/api/v1/status").await.json();
    assert_eq!(status["destinations"][0]["in_flight_limit"], 8);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_identity_that_makes_flagsmith_hang_is_found_alone() {
    let stand_in = stand_in();
    let hung = Arc::new(Mutex::new(Vec::new()));
    let seen = hung.clone();
    stand_in.fault_for(move |call| {
        call.is_about("p0007").then(|| {
            seen.lock().unwrap().push(call.identifiers.len());
            Fault::Hang
        })
    });
    let delivery = Impatient::towards(bulk_destination(&stand_in), Duration::from_millis(100));
    let everybody = people("p", 60);
    delivery
        .send(&page("members", "c", "s1", (1, 1), &everybody))
        .await;
    let mut round = 0;
    eventually(
        "everybody else is written, and it is given up",
        async || {
            round += 1;
            let action = ["remove_members", "add_members"][round % 2];
            let well = format!("well{}", round % 5);
            delivery
                .send(&page_without_info(action, "d", &[well]))
                .await;
            delivery.clock.advance(Duration::from_secs(2));
            let dead = delivery.store.dead_letters(100).await.unwrap();
            (!dead.is_empty()).then_some(())
        },
    )
    .await;
    eventually("nothing is left", async || {
        delivery.clock.advance(Duration::from_secs(2));
        (delivery.pending().await == 0).then_some(())
    })
    .await;
    let dead = delivery.store.dead_letters(100).await.unwrap();
    assert_eq!(dead.len(), 1, "{dead:?}");
    for person in everybody.iter().filter(|person| *person != "p0007") {
        let stored = stand_in.identity(person).unwrap();
        assert_eq!(stored.get(&key("c")), Some(&json!(true)), "{person}");
    }
    let sizes = hung.lock().unwrap().clone();
    assert_eq!(sizes.len(), ATTEMPTS as usize, "{sizes:?}");
    assert!(sizes[3..].iter().all(|size| *size == 1), "{sizes:?}");
    delivery.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_in_the_middle_of_a_call_loses_nothing() {
    let stand_in = stand_in();
    let folder = fast_temp_dir();
    let mut variables = serve_variables(&folder.path().join("ledger.db"), &stand_in.url());
    for (name, value) in [
        ("COHORT_BRIDGE_FLAGSMITH_KIND", "core-bulk"),
        ("COHORT_BRIDGE_LATE_WRITE_WINDOW", "5s"),
        ("COHORT_BRIDGE_MAX_IN_FLIGHT", "2"),
    ] {
        variables.insert(name.to_owned(), value.to_owned());
    }
    stand_in.fault_for(|call| (!call.is_about(CANARY)).then_some(Fault::Hold));
    let send = async |service: &Process, page: Value| {
        let request = client().post(service.webhook_url());
        let request = request.basic_auth(USER, Some(PASSWORD));
        let answer = request.body(page.to_string()).send().await.unwrap();
        assert_eq!(answer.status(), 200);
    };
    let everybody = people("p", 150);
    let mut service = Process::serve(&variables).await;
    send(&service, page("members", "c", "s", (1, 1), &everybody)).await;
    calls_are_held(&stand_in, 2).await;
    service.kill();

    stand_in.clear_faults();
    let service = Process::serve(&variables).await;
    send(
        &service,
        page("remove_members", "c", "r", (1, 1), &everybody[..70]),
    )
    .await;
    let of = |person: &String| stand_in.identity(person)?.get(&key("c"))?.as_bool();
    eventually("the newer values are written", async || {
        let is_right = |(at, person)| of(person) == Some(at >= 70);
        everybody.iter().enumerate().all(is_right).then_some(())
    })
    .await;
    // What the killed process sent lands now, over the newer values.
    stand_in.release();
    eventually("the old calls win for now", async || {
        (of(&everybody[0]) == Some(true)).then_some(())
    })
    .await;
    service.settled().await;
    for (at, person) in everybody.iter().enumerate() {
        assert_eq!(of(person), Some(at >= 70), "{person}");
    }
    assert_eq!(stand_in.identities().len(), 151, "the canary's is one more");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_canary_goes_the_same_way() {
    let stand_in = stand_in_of_all_kinds();
    for (key, expected) in [
        ("ser.main", Ok(Storage::Stays)),
        ("client-main", Ok(Storage::Stays)),
        ("ser.barred", Ok(Storage::Stays)),
        ("client-barred", Err("use a server-side key")),
        ("ser.hiding", Ok(Storage::StaysBlank)),
        ("ser.forgetful", Err("stores no traits")),
    ] {
        let destination = Destination {
            kind: Kind::CoreBulk,
            ..destination(&stand_in.url(), key)
        };
        let client = Flagsmith::new(&destination).unwrap();
        let found = client.probe_storage("ledger 1").await;
        match expected {
            Ok(expected) => assert_eq!(found, expected, "{key}"),
            Err(words) => {
                let Storage::Fails { reason } = found else {
                    panic!("{key}: {found:?}");
                };
                assert!(reason.contains(words), "{key}: {reason}");
            }
        }
    }
    assert_eq!(stand_in.calls_to(Endpoint::Write), 0);
    stand_in.fault_for(|call| (call.endpoint == Endpoint::Bulk).then(|| Fault::status(404)));
    let client = Flagsmith::new(&Destination {
        kind: Kind::CoreBulk,
        ..destination(&stand_in.url(), "ser.main")
    });
    let Storage::Fails { reason } = client.unwrap().probe_storage("ledger 2").await else {
        panic!("it writes without the endpoint");
    };
    assert!(
        reason.contains("COHORT_BRIDGE_FLAGSMITH_KIND=sdk"),
        "{reason}"
    );
}
