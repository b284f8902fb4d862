//! Delivery before a stand-in with good and bad days: what is called, how often, and what is
//! stored in the end.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cohort_bridge::clock::{Clock, ManualClock, Millis};
use cohort_bridge::cohort::OnLeave;
use cohort_bridge::config::{BlankEcho, Destination};
use cohort_bridge::dispatch::{ATTEMPTS, Dispatch, Parts};
use cohort_bridge::flagsmith::{CANARY, Flagsmith, Limits};
use cohort_bridge::fold::{Fold, Step};
use cohort_bridge::gate::OUTAGE_AFTER;
use cohort_bridge::logging::IdentifierHash;
use cohort_bridge::metrics::Metrics;
use cohort_bridge::mixpanel::{IdentifierRules, parse};
use cohort_bridge::standin::{Call, Endpoint, Fault, StandIn, StandInOptions, Switch};
use cohort_bridge::status::{BACKLOG_LIMIT_PAGES, DestinationHealth, Health};
use cohort_bridge::store::{DestinationRules, Outcome, Settlement, SourceRules, Store};
use secrecy::SecretString;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::support::pages::{key, page, page_without_info, people};
use crate::support::service::{START, Service, spawn_app, spawn_plain_app, stand_in};
use crate::support::{
    calls_are_held, destination, environment, eventually, fast_temp_dir, open_ledger, shared_ledger,
};

/// Calls that were made, by identifier and time; the canary's are left out.
#[derive(Clone, Default)]
struct Record(Arc<Mutex<Vec<(String, Millis)>>>);

impl Record {
    fn times(&self, person: &str) -> Vec<Millis> {
        let calls = self.0.lock().unwrap();
        let of_person = calls.iter().filter(|(identifier, _)| identifier == person);
        of_person.map(|(_, at)| *at).collect()
    }

    fn len(&self) -> usize {
        self.0.lock().unwrap().len()
    }
}

/// Records every call of delivery, and lets `rule` decide what it meets.
fn recorded(
    service: &Service,
    rule: impl Fn(&Call<'_>) -> Option<Fault> + Send + Sync + 'static,
) -> Record {
    let record = Record::default();
    let (calls, clock) = (record.clone(), service.clock.clone());
    service.stand_in.fault_for(move |call| {
        if call.identifier == CANARY {
            return None;
        }
        let mut calls = calls.0.lock().unwrap();
        calls.push((call.identifier.to_owned(), clock.now()));
        drop(calls);
        rule(call)
    });
    record
}

fn full_sync(session: &str, people: &[String]) -> Vec<Value> {
    let pages = people.chunks(100);
    let total = pages.len() as u32;
    (1..)
        .zip(pages)
        .map(|(number, people)| page("members", "c", session, (number, total), people))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_sync_that_changes_nothing_makes_no_call() {
    let service = spawn_plain_app().await;
    service.canary_is_done().await;
    let everybody = people("p", 300);
    for page in full_sync("first", &everybody) {
        service.send(&page).await;
    }
    service.settled().await;
    assert_eq!(service.stand_in.calls_to(Endpoint::Write), 300);
    service.stand_in.forget_calls();

    for session in ["first", "second", "third"] {
        for page in full_sync(session, &everybody) {
            service.send(&page).await;
        }
        service.settled().await;
    }
    service
        .send(&page("add_members", "c", "fourth", (1, 1), &everybody))
        .await;
    service.settled().await;
    assert_eq!(service.stand_in.calls(), Default::default());

    let one_less = &everybody[1..];
    for page in full_sync("fifth", one_less) {
        service.send(&page).await;
    }
    service.settled().await;
    assert_eq!(service.stand_in.calls_to(Endpoint::Write), 1);
    assert_eq!(service.stored("p0000", &key("c")), Some(false));
}

#[tokio::test(flavor = "multi_thread")]
async fn all_that_changed_for_a_person_goes_in_one_call() {
    let service = spawn_app(stand_in(), |setup| {
        setup.destination.linger = Duration::from_secs(1);
    })
    .await;
    service.canary_is_done().await;
    let everybody = people("p", 40);
    for cohort in ["one", "two", "three"] {
        service
            .send(&page("members", cohort, "s", (1, 1), &everybody))
            .await;
    }
    service.folded().await;
    assert_eq!(service.stand_in.calls(), Default::default(), "it lingers");
    service.clock.advance(Duration::from_secs(1));
    service.settled().await;
    assert_eq!(service.stand_in.calls_to(Endpoint::Write), 40);
    for person in &everybody {
        let traits = service.stand_in.identity(person).unwrap();
        let expected = json!({"mixpanel_cohort_one": true, "mixpanel_cohort_two": true, "mixpanel_cohort_three": true});
        assert_eq!(json!(traits), expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_one_person_at_most_one_call_is_under_way() {
    const PEOPLE: usize = 500;
    let service = spawn_app(stand_in(), |setup| setup.destination.max_in_flight = 16).await;
    service.canary_is_done().await;
    service
        .stand_in
        .fault(Fault::Delay(Duration::from_millis(3)));
    let everybody = people("p", PEOPLE);
    let half: Vec<_> = everybody.iter().step_by(2).cloned().collect();
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
    service.settled().await;
    for (at, person) in everybody.iter().enumerate() {
        let member = at % 2 == 1;
        for cohort in ["a", "b"] {
            assert_eq!(service.stored(person, &key(cohort)), Some(member));
        }
    }
    assert_eq!(service.stand_in.max_in_flight_per_identity(), 1);
    let most = service.stand_in.max_in_flight();
    // The canary and a call's own room may overlap.
    assert!((2..=17).contains(&most), "{most}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_held_back_holds_back_the_next_one_of_that_person_alone() {
    let service = spawn_plain_app().await;
    service.canary_is_done().await;
    let record = recorded(&service, |call| {
        (call.identifier == "slow").then_some(Fault::Hold)
    });
    service
        .send(&page_without_info("add_members", "a", &["slow"]))
        .await;
    calls_are_held(&service.stand_in, 1).await;
    // Newer wishes for the same person, and others beside.
    service
        .send(&page_without_info("add_members", "b", &["slow", "quick"]))
        .await;
    service
        .send(&page_without_info("remove_members", "a", &["slow"]))
        .await;
    eventually("the others do not wait", async || {
        service.stored("quick", &key("b"))
    })
    .await;
    service.folded().await;
    assert_eq!(record.times("slow").len(), 1);
    service.stand_in.clear_faults();
    service.stand_in.release();
    service.settled().await;
    assert_eq!(service.stored("slow", &key("a")), Some(false));
    assert_eq!(service.stored("slow", &key("b")), Some(true));
    assert_eq!(service.stand_in.max_in_flight_per_identity(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_key_halts_until_it_works_again() {
    let service = spawn_plain_app().await;
    service.canary_is_done().await;
    service.stand_in.fault(Fault::unknown_key());
    let everybody = people("p", 50);
    service
        .send(&page("members", "c", "s", (1, 1), &everybody))
        .await;
    let reason = eventually("delivery halts", async || {
        let (state, reason) = service.destination().await;
        (state == "halted").then_some(reason)
    })
    .await;
    assert!(
        reason.contains("COHORT_BRIDGE_FLAGSMITH_ENVIRONMENT_KEY"),
        "{reason}"
    );
    assert!(!reason.contains("ser.server-key"), "{reason}");

    // Ten minutes of it: a probe now and then, and never a dead letter.
    service
        .time_passes("ten minutes", async || service.elapsed_ms() > 600_000)
        .await;
    let calls = service.stand_in.calls_to(Endpoint::Write);
    assert!((2..=80).contains(&calls), "{calls} calls in ten minutes");
    assert_eq!(service.dead_letters().await, [] as [Value; 0]);
    assert_eq!(service.destination().await.0, "halted");
    let metrics = service.get("/metrics").await.text;
    assert!(
        metrics.contains("cohort_bridge_destination_halted{destination=\"default\"} 1"),
        "{metrics}"
    );
    assert_eq!(service.get("/readyz").await.status, 200);

    service.stand_in.clear_faults();
    service.settled_in_time().await;
    assert_eq!(service.destination().await, ("ok".into(), String::new()));
    for person in &everybody {
        assert_eq!(service.stored(person, &key("c")), Some(true));
    }
    assert_eq!(service.dead_letters().await, [] as [Value; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_organisation_halts_too() {
    let service = spawn_app(
        StandIn::start(StandInOptions {
            environments: vec![environment(
                "main",
                &[Switch::StoresTraits, Switch::Stopped],
            )],
            ..StandInOptions::default()
        })
        .unwrap(),
        |setup| setup.destination.environment_key = SecretString::from("ser.main"),
    )
    .await;
    service
        .send(&page_without_info("add_members", "c", &["ann", "bob"]))
        .await;
    eventually("delivery halts", async || {
        (service.destination().await.0 == "halted").then_some(())
    })
    .await;
    service.stand_in.switch("ser.main", Switch::Stopped, false);
    service.settled_in_time().await;
    assert_eq!(service.stored("bob", &key("c")), Some(true));
    assert_eq!(service.dead_letters().await, [] as [Value; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_flagsmith_will_never_take_is_a_dead_letter_and_stops_nobody() {
    let service = spawn_plain_app().await;
    let refusal = r#"{"traits":[{"trait_value":["no"]}]}"#;
    let record = recorded(&service, move |call| {
        (call.identifier == "bad").then(|| Fault::answer(400, refusal))
    });
    service
        .send(&page("members", "c", "s", (1, 1), &["ann", "bad", "zoe"]))
        .await;
    service.settled_in_time().await;
    assert_eq!(record.times("bad").len(), 1, "once is enough");
    for person in ["ann", "zoe"] {
        assert_eq!(service.stored(person, &key("c")), Some(true));
    }
    assert_eq!(service.stored("bad", &key("c")), None);

    let letters = service.dead_letters().await;
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0]["identifier"], "bad");
    let member = service.get("/api/v1/members/bad").await.json();
    let delivery = &member["cohorts"][0]["destinations"][0];
    assert_eq!(delivery["state"], "dead");
    assert_eq!(member["cohorts"][0]["member"], true);
    let error = delivery["error"].as_str().unwrap();
    assert!(error.contains("400"), "{error}");
    let cohort = &service.cohorts().await[0];
    assert_eq!(cohort["destinations"][0]["dead"], 1);
    assert_eq!(cohort["destinations"][0]["written"], 2);

    service.stand_in.clear_faults();
    assert_eq!(
        service.order("/api/v1/dead-letters/retry").await["retried"],
        1
    );
    service.settled_in_time().await;
    assert_eq!(service.stored("bad", &key("c")), Some(true));
    assert_eq!(service.dead_letters().await, [] as [Value; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_who_always_fails_is_a_dead_letter_while_others_succeed() {
    if shared_ledger::is_wanted() {
        // The clock moves with every look, and a look over PostgreSQL takes longer than the test bears.
        return;
    }
    let service = spawn_plain_app().await;
    let record = recorded(&service, |call| {
        (call.identifier == "sick").then(|| Fault::status(500))
    });
    service
        .send(&page_without_info("add_members", "c", &["sick"]))
        .await;
    let mut round = 0;
    service
        .time_passes("the dead letter", async || {
            round += 1;
            let action = ["remove_members", "add_members"][round % 2];
            let well = format!("well{}", round % 5);
            service.send(&page_without_info(action, "c", &[well])).await;
            service.clock.advance(Duration::from_secs(2));
            service.dead_letters().await.len() == 1
        })
        .await;
    assert_eq!(record.times("sick").len(), ATTEMPTS as usize);
    assert_eq!(service.dead_letters().await[0]["identifier"], "sick");
    service.settled_in_time().await;
    assert_eq!(
        record.times("sick").len(),
        ATTEMPTS as usize,
        "nothing tries it again"
    );
    // Whatever is new about the person is news for Flagsmith too.
    service.stand_in.clear_faults();
    service
        .send(&page_without_info("remove_members", "c", &["sick"]))
        .await;
    service.settled_in_time().await;
    assert_eq!(service.stored("sick", &key("c")), Some(false));
    assert_eq!(service.dead_letters().await, [] as [Value; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_is_nobodys_fault_and_costs_a_call_a_second() {
    let service = spawn_app(stand_in(), |setup| setup.destination.max_in_flight = 8).await;
    service.canary_is_done().await;
    let record = recorded(&service, |_| Some(Fault::status(500)));
    let everybody = people("p", 40);
    for page in full_sync("s", &everybody) {
        service.send(&page).await;
    }
    eventually("delivery backs off", async || {
        (service.destination().await.0 == "backing_off").then_some(())
    })
    .await;
    let burst = record.len();
    assert!(burst <= OUTAGE_AFTER as usize + 8, "{burst} calls at once");
    let begun = service.elapsed_ms();
    // Ten minutes, some fifteen probes of everyone: more than anyone's attempts.
    service
        .time_passes("ten minutes", async || {
            service.elapsed_ms() - begun > 600_000
        })
        .await;
    let probes = record.len() - burst;
    let seconds = (service.elapsed_ms() - begun) / 1_000;
    assert!(probes > 100, "{probes} probes in {seconds} s");
    assert!(
        probes as Millis <= seconds + 8,
        "{probes} probes in {seconds} s"
    );
    let mut probed: Vec<_> = record.0.lock().unwrap().clone();
    probed.sort();
    probed.dedup_by(|one, other| one.0 == other.0);
    assert!(
        probed.len() > 30,
        "one person could be to blame: {}",
        probed.len()
    );
    assert_eq!(service.dead_letters().await, [] as [Value; 0]);

    service.stand_in.clear_faults();
    service.settled_in_time().await;
    for person in &everybody {
        assert_eq!(service.stored(person, &key("c")), Some(true), "{person}");
    }
    assert_eq!(service.dead_letters().await, [] as [Value; 0]);
    assert_eq!(service.destination().await.0, "ok");
}

#[tokio::test(flavor = "multi_thread")]
async fn after_an_outage_calls_begin_one_by_one() {
    const CEILING: usize = 16;
    let service = spawn_app(stand_in(), |setup| {
        setup.destination.max_in_flight = CEILING
    })
    .await;
    service.canary_is_done().await;
    service.stand_in.fault(Fault::status(503));
    service
        .send(&page("members", "c", "s", (1, 1), &people("p", 400)))
        .await;
    eventually("delivery backs off", async || {
        (service.destination().await.0 == "backing_off").then_some(())
    })
    .await;
    service.stand_in.forget_calls();
    // Every answer takes long enough to be overlapped; the first ones must not be.
    let early = Arc::new(Mutex::new(Vec::new()));
    let overlapping = Arc::new(Mutex::new(0_usize));
    let (seen, now) = (early.clone(), overlapping.clone());
    service.stand_in.fault_for(move |call| {
        if call.endpoint == Endpoint::Write && call.identifier != CANARY {
            *now.lock().unwrap() += 1;
            seen.lock().unwrap().push(call.identifier.to_owned());
        }
        Some(Fault::Delay(Duration::from_millis(2)))
    });
    let first = async || early.lock().unwrap().len() >= 2;
    service.time_passes("the first calls", first).await;
    assert!(
        service.stand_in.max_in_flight() <= 3,
        "a server that just came back is flooded: {}",
        service.stand_in.max_in_flight()
    );
    service.settled_in_time().await;
    assert!(service.stand_in.max_in_flight() > 4, "it never speeds up");
}

#[tokio::test(flavor = "multi_thread")]
async fn retry_after_is_honoured() {
    let service = spawn_plain_app().await;
    service.canary_is_done().await;
    let record = recorded(&service, |call| {
        (call.number == 1).then(|| Fault::too_many("7"))
    });
    service
        .send(&page_without_info("add_members", "c", &["ann"]))
        .await;
    eventually("the first call", async || (record.len() == 1).then_some(())).await;
    // Others wait as well: the advice is the server's, not one person's.
    service
        .send(&page_without_info("add_members", "c", &["bob"]))
        .await;
    service.settled_in_time().await;
    for person in ["ann", "bob"] {
        assert_eq!(service.stored(person, &key("c")), Some(true));
    }
    let ann = record.times("ann");
    assert_eq!(ann.len(), 2);
    assert!(ann[1] - ann[0] >= 7_000, "{ann:?}");
    assert!(record.times("bob")[0] - ann[0] >= 7_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn flagsmith_may_be_down_from_the_start() {
    let stand_in = stand_in();
    stand_in.stop().await;
    let service = spawn_app(stand_in, |_| {}).await;
    let everybody = people("p", 120);
    for page in full_sync("s", &everybody) {
        service.send(&page).await;
    }
    service
        .send(&page_without_info("remove_members", "c", &["p0000"]))
        .await;
    eventually("delivery backs off", async || {
        (service.destination().await.0 == "backing_off").then_some(())
    })
    .await;
    assert_eq!(service.get("/readyz").await.status, 200);
    service
        .time_passes("five minutes", async || service.elapsed_ms() > 300_000)
        .await;
    service.stand_in.resume().unwrap();
    service.settled_in_time().await;
    for person in &everybody {
        let member = person != "p0000";
        assert_eq!(service.stored(person, &key("c")), Some(member), "{person}");
    }
    assert_eq!(service.dead_letters().await, [] as [Value; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reply_lost_after_storing_does_no_harm() {
    for lost in [Fault::CloseAfterStoring, Fault::Truncate] {
        let service = spawn_plain_app().await;
        service.canary_is_done().await;
        let met = Mutex::new(HashSet::new());
        let fault = lost.clone();
        // The first two sendings of everyone, since one break is repeated at once.
        recorded(&service, move |call| {
            let mut met = met.lock().unwrap();
            let number = call.number % 2;
            met.insert((call.identifier.to_owned(), number))
                .then(|| fault.clone())
        });
        let everybody = people("p", 30);
        service
            .send(&page("members", "c", "s", (1, 1), &everybody))
            .await;
        service.settled_in_time().await;
        service
            .send(&page("remove_members", "c", "r", (1, 1), &everybody[..5]))
            .await;
        service.settled_in_time().await;
        for (at, person) in everybody.iter().enumerate() {
            assert_eq!(
                service.stored(person, &key("c")),
                Some(at >= 5),
                "{person} {lost:?}"
            );
        }
        assert_eq!(service.dead_letters().await, [] as [Value; 0]);
        service.stop().await;
    }
}

/// One environment with these switches, called with its client or its server key.
/// A service before such an environment; whatever fails does so from the first canary on.
async fn spawn_before(
    switches: &[Switch],
    key: &str,
    blank_echo: BlankEcho,
    fails: fn(&Call<'_>) -> Option<Fault>,
) -> Service {
    let stand_in = StandIn::start(StandInOptions {
        environments: vec![environment("main", switches)],
        ..StandInOptions::default()
    })
    .unwrap();
    stand_in.fault_for(fails);
    spawn_app(stand_in, |setup| {
        setup.destination.environment_key = SecretString::from(key);
        setup.destination.blank_echo = blank_echo;
        setup.destination.max_in_flight = 1;
    })
    .await
}

async fn halted(service: &Service) -> String {
    eventually("delivery halts", async || {
        let (state, reason) = service.destination().await;
        (state == "halted").then_some(reason)
    })
    .await
}

/// The canary finds nothing out, so that delivery has to.
fn without_canary(call: &Call<'_>) -> Option<Fault> {
    (call.identifier == CANARY).then(|| Fault::status(503))
}

#[tokio::test(flavor = "multi_thread")]
async fn hidden_traits_are_judged_by_bulk_once() {
    let service = spawn_before(
        &[Switch::StoresTraits, Switch::HidesSensitiveData],
        "ser.main",
        BlankEcho::Halt,
        without_canary,
    )
    .await;
    service
        .time_passes("the canary fails", async || service.elapsed_ms() > 20_000)
        .await;
    service.stand_in.forget_calls();
    let everybody = people("p", 40);
    service
        .send(&page("members", "c", "s", (1, 1), &everybody))
        .await;
    service.settled_in_time().await;
    assert_eq!(service.stand_in.calls_to(Endpoint::Bulk), 1);
    for person in &everybody {
        assert_eq!(service.stored(person, &key("c")), Some(true));
    }
    assert_eq!(service.destination().await.0, "ok");
    service.stand_in.forget_calls();
    service
        .send(&page("members", "c", "s2", (1, 1), &everybody))
        .await;
    service.settled().await;
    assert_eq!(service.stand_in.calls_to(Endpoint::Bulk), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_barred_client_key_halts_and_says_which_key_to_use() {
    for switches in [
        vec![Switch::StoresTraits],
        vec![Switch::StoresTraits, Switch::HidesSensitiveData],
    ] {
        let service = spawn_before(&switches, "client-main", BlankEcho::Halt, without_canary).await;
        service
            .send(&page_without_info("add_members", "c", &["ann"]))
            .await;
        let reason = halted(&service).await;
        assert!(reason.contains("use a server-side key"), "{reason}");
        assert_eq!(service.dead_letters().await, [] as [Value; 0]);
        // Mended in Flagsmith: nobody has to touch the service.
        service.stand_in.clear_faults();
        service
            .stand_in
            .switch("client-main", Switch::ClientMaySetTraits, true);
        service.settled_in_time().await;
        assert_eq!(service.stored("ann", &key("c")), Some(true));
        service.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_organisation_that_stores_no_traits_is_found_by_the_canary() {
    let service = spawn_before(&[], "ser.main", BlankEcho::Halt, |_| None).await;
    let reason = halted_in_time(&service).await;
    assert!(reason.contains("stores no traits"), "{reason}");
    service
        .send(&page_without_info("add_members", "c", &["ann"]))
        .await;
    service.folded().await;
    service
        .stand_in
        .switch("ser.main", Switch::StoresTraits, true);
    service.settled_in_time().await;
    assert_eq!(service.stored("ann", &key("c")), Some(true));
}

async fn halted_in_time(service: &Service) -> String {
    service
        .time_passes("delivery halts", async || {
            service.destination().await.0 == "halted"
        })
        .await;
    service.destination().await.1
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nothing_can_judge_a_blank_echo_the_setting_does() {
    let no_bulk = |call: &Call<'_>| match call.endpoint {
        Endpoint::Bulk => Some(Fault::status(404)),
        _ => without_canary(call),
    };
    let switches = [Switch::StoresTraits, Switch::HidesSensitiveData];
    let halting = spawn_before(&switches, "ser.main", BlankEcho::Halt, no_bulk).await;
    halting
        .send(&page_without_info("add_members", "c", &["ann"]))
        .await;
    let reason = halted(&halting).await;
    assert!(
        reason.contains("COHORT_BRIDGE_BLANK_ECHO=stored"),
        "{reason}"
    );
    assert!(!halting.is_settled().await);
    assert_eq!(halting.dead_letters().await, [] as [Value; 0]);

    let trusting = spawn_before(&switches, "ser.main", BlankEcho::Stored, no_bulk).await;
    trusting
        .send(&page_without_info("add_members", "c", &["ann", "bob"]))
        .await;
    trusting.settled_in_time().await;
    assert_eq!(trusting.stored("bob", &key("c")), Some(true));
    assert_eq!(trusting.destination().await.0, "ok");
}

#[tokio::test(flavor = "multi_thread")]
async fn leavers_are_deleted_where_the_setting_says_so() {
    let service = spawn_app(stand_in(), |setup| {
        setup.destination.on_leave = OnLeave::Delete;
        setup.destination.linger = Duration::from_secs(1);
    })
    .await;
    service.canary_is_done().await;
    service
        .send(&page("members", "c", "s1", (1, 1), &["ann", "bob"]))
        .await;
    service.settled_in_time().await;
    service
        .send(&page("remove_members", "c", "s2", (1, 1), &["bob"]))
        .await;
    service.settled_in_time().await;
    assert_eq!(service.stored("ann", &key("c")), Some(true));
    let bob = service.stand_in.identity("bob").unwrap();
    assert!(!bob.contains_key(&key("c")), "{bob:?}");

    // Came and went before anyone was told: there is nothing to delete.
    service.stand_in.forget_calls();
    service
        .send(&page("add_members", "c", "s3", (1, 1), &["cyd"]))
        .await;
    service.folded().await;
    service
        .send(&page("remove_members", "c", "s4", (1, 1), &["cyd"]))
        .await;
    service.folded().await;
    service.settled_in_time().await;
    assert_eq!(service.stand_in.calls(), Default::default());
    assert_eq!(service.stand_in.identity("cyd"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_leaver_gets_the_leavers_value_once() {
    for on_leave in [OnLeave::False, OnLeave::Delete] {
        let service = spawn_app(stand_in(), |setup| setup.destination.on_leave = on_leave).await;
        service.canary_is_done().await;
        for session in ["s1", "s2", "s3"] {
            service
                .send(&page("remove_members", "c", session, (1, 1), &["ann"]))
                .await;
            service.settled().await;
        }
        assert_eq!(service.stand_in.calls_to(Endpoint::Write), 1);
        let expected = match on_leave {
            OnLeave::False => Some(false),
            OnLeave::Delete => None,
        };
        assert_eq!(service.stored("ann", &key("c")), expected);
        service.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_flips_during_an_outage_are_one_call_after_it() {
    let service = spawn_plain_app().await;
    service.canary_is_done().await;
    service.stand_in.stop().await;
    // Over PostgreSQL each asks the server some hundred times, and proves no more.
    let flips = if shared_ledger::is_wanted() {
        100
    } else {
        1_000
    };
    for n in 0..flips {
        let action = ["add_members", "remove_members"][n % 2];
        service
            .send(&page(action, "c", &format!("s{n}"), (1, 1), &["ann"]))
            .await;
    }
    service.folded().await;
    let record = recorded(&service, |_| None);
    service.stand_in.resume().unwrap();
    service.settled_in_time().await;
    assert_eq!(service.stored("ann", &key("c")), Some(false));
    assert_eq!(record.times("ann").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_echo_without_the_trait_as_sent_is_not_written() {
    let service = spawn_plain_app().await;
    service.canary_is_done().await;
    let echo =
        r#"{"flags":[],"traits":[{"id":1,"trait_key":"mixpanel_cohort_c","trait_value":false}]}"#;
    let met = Mutex::new(0);
    let record = recorded(&service, move |call| {
        if call.identifier != "ann" {
            return None;
        }
        let mut met = met.lock().unwrap();
        *met += 1;
        (*met <= 2).then(|| Fault::answer(200, echo))
    });
    service
        .send(&page_without_info("add_members", "c", &["ann"]))
        .await;
    service.settled_in_time().await;
    assert_eq!(record.times("ann").len(), 3);
    assert_eq!(service.stored("ann", &key("c")), Some(true));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_set_back_strands_no_retry() {
    const YEAR: Duration = Duration::from_secs(365 * 24 * 3_600);
    let service = spawn_plain_app().await;
    service.canary_is_done().await;
    service.clock.advance(YEAR);
    let record = recorded(&service, |call| {
        (call.number <= 1).then(|| Fault::too_many("600"))
    });
    service
        .send(&page_without_info("add_members", "c", &["ann"]))
        .await;
    eventually("the first call", async || (record.len() == 1).then_some(())).await;
    service.clock.set(START);
    service.settled_in_time().await;
    assert_eq!(service.stored("ann", &key("c")), Some(true));
    assert!(
        service.clock.now() < START + 3_600_000,
        "it waited for {} s",
        (service.clock.now() - START) / 1_000
    );
}

/// Fold and delivery without listeners, before a client that loses patience at once.
pub(crate) struct Impatient {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) clock: ManualClock,
    health: Arc<Health>,
    there: Arc<DestinationHealth>,
    stop: CancellationToken,
    running: tokio::task::JoinSet<()>,
    destination: Arc<Destination>,
    _folder: tempfile::TempDir,
}

impl Impatient {
    fn before(stand_in: &StandIn) -> Self {
        Self::with_patience(stand_in, Duration::from_millis(150))
    }

    fn with_patience(stand_in: &StandIn, patience: Duration) -> Self {
        Self::towards(destination(&stand_in.url(), "ser.server-key"), patience)
    }

    pub(crate) fn towards(destination: Destination, patience: Duration) -> Self {
        let folder = fast_temp_dir();
        let clock = ManualClock::at(START);
        let destination = Arc::new(destination);
        let rules = DestinationRules {
            name: destination.name.clone(),
            on_leave: destination.on_leave,
            linger_ms: 0,
            late_write_ms: 60_000,
        };
        let source = SourceRules::named("default");
        let path = folder.path().join("ledger.db");
        let store: Arc<dyn Store> = open_ledger(&path, source, rules);
        let limits = Limits {
            call_timeout: patience,
            bulk_timeout: patience,
            ..Limits::default()
        };
        let metrics = Metrics::new().unwrap();
        let there = Arc::new(DestinationHealth::new(destination.name.clone()));
        let dispatch = Dispatch::new(Parts {
            store: store.clone(),
            clock: Arc::new(clock.clone()),
            destination: destination.clone(),
            client: Flagsmith::with_limits(&destination, limits).unwrap(),
            health: there.clone(),
            metrics: metrics.destination(&destination.name),
            hash: IdentifierHash::new(store.log_hash_key()),
        });
        let health = Arc::new(Health::new(BACKLOG_LIMIT_PAGES));
        let stop = CancellationToken::new();
        let mut running = tokio::task::JoinSet::new();
        let fold = Fold::new(store.clone(), Arc::new(clock.clone()));
        running.spawn(fold.run(health.clone(), stop.clone()));
        running.spawn(Arc::new(dispatch).run(health.ledger_changes(), stop.clone()));
        Impatient {
            store,
            clock,
            health,
            there,
            stop,
            running,
            destination,
            _folder: folder,
        }
    }

    pub(crate) async fn send(&self, page: &Value) {
        let parsed = parse(page.to_string().as_bytes(), &IdentifierRules::default()).unwrap();
        let now = self.clock.now();
        self.store
            .append(&"default".into(), parsed.page, now)
            .await
            .unwrap();
        self.health.page_appended();
    }

    pub(crate) async fn pending(&self) -> u64 {
        let cohorts = self.store.cohorts().await.unwrap();
        let deliveries = cohorts.iter().flat_map(|cohort| &cohort.destinations);
        deliveries.map(|delivery| delivery.pending).sum()
    }

    pub(crate) async fn stop(mut self) {
        self.stop.cancel();
        while self.running.join_next().await.is_some() {}
        self.store.close().await;
        assert_eq!(&*self.destination.name.0, "default");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_write_that_lands_late_does_not_win() {
    let stand_in = stand_in();
    let met = Mutex::new(HashSet::new());
    stand_in.fault_for(move |call| {
        let first = met.lock().unwrap().insert(call.identifier.to_owned());
        (call.identifier == "ann" && first).then_some(Fault::LandLate)
    });
    let delivery = Impatient::before(&stand_in);
    let ann = |stand_in: &StandIn| stand_in.identity("ann")?.get(&key("c"))?.as_bool();
    delivery
        .send(&page("add_members", "c", "s1", (1, 1), &["ann"]))
        .await;
    calls_are_held(&stand_in, 1).await;
    delivery
        .send(&page("remove_members", "c", "s2", (1, 1), &["ann"]))
        .await;
    eventually("the newer value is written", async || {
        delivery.clock.advance(Duration::from_millis(100));
        (ann(&stand_in) == Some(false)).then_some(())
    })
    .await;
    assert_eq!(stand_in.land_late_writes(), 1);
    assert_eq!(ann(&stand_in), Some(true), "the old write won for now");
    eventually("the newer value is written again", async || {
        delivery.clock.advance(Duration::from_secs(1));
        (ann(&stand_in) == Some(false) && delivery.pending().await == 0).then_some(())
    })
    .await;
    delivery.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_hang_are_given_up_and_made_again() {
    let stand_in = stand_in();
    let met = Mutex::new(HashSet::new());
    stand_in.fault_for(move |call| {
        let first = met.lock().unwrap().insert(call.identifier.to_owned());
        (call.identifier != CANARY && first).then_some(Fault::Hang)
    });
    let delivery = Impatient::before(&stand_in);
    let everybody = people("p", 20);
    delivery
        .send(&page("members", "c", "s1", (1, 1), &everybody))
        .await;
    eventually("everything is written", async || {
        delivery.clock.advance(Duration::from_millis(500));
        let written = everybody.iter().all(|person| {
            let traits = stand_in.identity(person).unwrap_or_default();
            traits.get(&key("c")) == Some(&json!(true))
        });
        (written && delivery.pending().await == 0).then_some(())
    })
    .await;
    delivery.stop().await;
}

#[tokio::test]
async fn the_ledger_says_when_a_retry_is_due() {
    let folder = fast_temp_dir();
    let rules = DestinationRules {
        name: "default".into(),
        on_leave: OnLeave::False,
        linger_ms: 0,
        late_write_ms: 60_000,
    };
    let source = SourceRules::named("default");
    let path = folder.path().join("ledger.db");
    let store: Arc<dyn Store> = open_ledger(&path, source, rules);
    let body = page_without_info("add_members", "c", &["ann"]).to_string();
    let parsed = parse(body.as_bytes(), &IdentifierRules::default()).unwrap();
    store
        .append(&"default".into(), parsed.page, START)
        .await
        .unwrap();
    let mut fold = Fold::new(store.clone(), Arc::new(ManualClock::at(START)));
    while fold.step().await.unwrap() != Step::Idle {}
    let destination = "default".into();
    let claims = store
        .exchange(&destination, Vec::new(), None, 10, START)
        .await
        .unwrap();
    let settlement = Settlement {
        claim: claims.claims[0].clone(),
        outcome: Outcome::Retry {
            due_at: START + 5_000,
            counts: true,
            may_land_late: false,
            error: "500".into(),
        },
    };
    // Nothing is claimed beside, so nothing but the settlement itself can tell.
    let settled = store
        .exchange(&destination, vec![settlement], None, 0, START)
        .await
        .unwrap();
    assert_eq!(settled.next_due, Some(START + 5_000));
    store.close().await;
}

/// The grace may end before a call that hangs does; what had ended by then must not be made again.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_written_is_settled_while_other_calls_hang() {
    let stand_in = stand_in();
    let calls = Arc::new(AtomicUsize::new(0));
    let called = calls.clone();
    stand_in.fault_for(move |call| {
        let hangs = call.identifier != CANARY && called.fetch_add(1, Ordering::SeqCst) >= 20;
        hangs.then_some(Fault::Hang)
    });
    let mut delivery = Impatient::with_patience(&stand_in, Duration::from_secs(600));
    let everybody = people("p", 300);
    delivery
        .send(&page("members", "c", "s1", (1, 1), &everybody))
        .await;
    eventually("all calls under way hang", async || {
        let under_way = delivery.there.status().in_flight;
        (under_way > 0 && calls.load(Ordering::SeqCst) == 20 + under_way).then_some(())
    })
    .await;
    delivery.stop.cancel();
    eventually("what was written is settled", async || {
        (delivery.pending().await == 280).then_some(())
    })
    .await;
    delivery.running.abort_all();
    delivery.stop().await;
}

/// A kill would have it called for again.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_written_is_settled_soon_however_much_is_claimed() {
    let service = spawn_app(stand_in(), |setup| setup.destination.max_in_flight = 1).await;
    service.canary_is_done().await;
    let record = recorded(&service, |_| Some(Fault::Hold));
    let page = page_without_info("add_members", "c", &people("p", 300));
    service.send(&page).await;
    let under_way = async |calls: usize| {
        eventually("the call is under way", async || {
            (record.len() == calls).then_some(())
        })
        .await;
        calls_are_held(&service.stand_in, 1).await;
    };
    for written in 1..=20 {
        under_way(written).await;
        service.stand_in.release();
        // Others wait behind it.
        under_way(written + 1).await;
        service.clock.advance(Duration::from_millis(20));
        eventually("the end of the call is settled", async || {
            (service.pending().await == 300 - written as u64).then_some(())
        })
        .await;
    }
    service.stand_in.clear_faults();
    service.stand_in.release();
    service.settled().await;
}
