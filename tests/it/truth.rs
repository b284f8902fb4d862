//! Flagsmith answers 200 to much that it does not store: what the canary finds out, when, and what
//! becomes of what counted as written.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use cohort_bridge::clock::{Clock, Millis};
use cohort_bridge::flagsmith::CANARY;
use cohort_bridge::standin::{Endpoint, Fault, StandIn, StandInOptions, Switch};
use cohort_bridge::store::{Outcome, Settlement, Store};

use crate::support::bridge::Bridge;
use crate::support::ledger::{Ledger, member};
use crate::support::pages::{key, page, page_without_info, people};
use crate::support::shared_ledger;
use crate::support::{environment, eventually, ordinary_stand_in};

/// One ordinary environment with a client and a server key.
fn stand_in() -> Arc<StandIn> {
    ordinary_stand_in(&["main"])
}

/// A running bridge whose first canary was good.
async fn bridge(stand_in: &Arc<StandIn>, change: impl FnOnce(&mut Bridge)) -> Bridge {
    let mut bridge = Bridge::before(Arc::clone(stand_in), "ser.main");
    change(&mut bridge);
    bridge.start();
    canaries_rest(&bridge).await;
    bridge
}

/// Canaries that were read back.
fn read_back(bridge: &Bridge) -> u64 {
    // Each is looked at before, too.
    bridge.stand_in.calls_to(Endpoint::Read) / 2
}

/// Waits until so many canaries were read back in all; the clock stands still.
async fn canaries(bridge: &Bridge, count: u64) {
    eventually("a canary", async || {
        (read_back(bridge) >= count).then_some(())
    })
    .await;
}

/// Waits until no canary is under way nor due, so that none meets what comes next halfway.
async fn canaries_rest(bridge: &Bridge) {
    eventually("no canary is under way", async || {
        let next_at = bridge.status().canary.next_at?;
        (next_at > bridge.clock.now()).then_some(())
    })
    .await;
}

/// Lets time pass, so much at a time, until so many canaries more were judged.
async fn more_canaries(bridge: &Bridge, count: u64, step: Duration) {
    canaries_rest(bridge).await;
    let before = read_back(bridge);
    while read_back(bridge) < before + count {
        bridge.clock.advance(step);
        canaries_rest(bridge).await;
    }
}

/// Lets time pass until delivery is halted, and whatever follows from the canary is done.
async fn halted_in_time(bridge: &Bridge) -> String {
    let reason = eventually("delivery halts", async || {
        let halted = bridge.halted();
        if halted.is_none() {
            bridge.clock.advance(Duration::from_secs(15));
        }
        halted
    })
    .await;
    canaries_rest(bridge).await;
    reason
}

async fn settled_in_time(bridge: &Bridge) {
    bridge
        .time_passes("everything delivered", async || bridge.is_settled().await)
        .await;
}

fn rows_of(path: &std::path::Path, sql: &str) -> i64 {
    shared_ledger::number(path, sql)
}

/// Whether an entry of the log of calls names somebody, in SQL.
fn is_named(person: &str) -> String {
    match shared_ledger::is_wanted() {
        true => format!("position('{person}'::bytea IN traits) > 0"),
        false => format!("instr(traits, CAST('{person}' AS BLOB)) > 0"),
    }
}

const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn an_organisation_that_stops_storing_loses_nothing() {
    let stand_in = stand_in();
    let mut bridge = bridge(&stand_in, |_| {}).await;
    let everybody = people("p", 300);
    bridge
        .send(&page("members", "c", "s1", (1, 1), &everybody))
        .await;
    bridge.settled().await;
    // Two canaries, a quarter of an hour apart, prove it.
    more_canaries(&bridge, 3, 5 * MINUTE).await;

    stand_in.switch("ser.main", Switch::StoresTraits, false);
    let (leave, stay) = everybody.split_at(40);
    bridge
        .send(&page("remove_members", "c", "s2", (1, 1), leave))
        .await;
    bridge
        .send(&page("add_members", "c", "s2", (1, 1), &["new1", "new2"]))
        .await;
    bridge.settled().await;
    assert_eq!(bridge.written().await, 302 - 40, "the answers look right");
    assert_eq!(bridge.stored("new1", "c"), None);

    let reason = halted_in_time(&bridge).await;
    assert!(reason.contains("'Persist trait data'"), "{reason}");
    eventually(
        "what was not stored counts as written no longer",
        async || (bridge.pending().await == 42).then_some(()),
    )
    .await;

    // It is killed, and the switch put right before it comes back.
    bridge.kill().await;
    stand_in.forget_calls();
    stand_in.switch("ser.main", Switch::StoresTraits, true);
    bridge.start();
    settled_in_time(&bridge).await;
    for person in leave {
        assert_eq!(bridge.stored(person, "c"), Some(false), "{person}");
    }
    for person in stay.iter().map(String::as_str).chain(["new1", "new2"]) {
        assert_eq!(bridge.stored(person, "c"), Some(true), "{person}");
    }
    let calls = stand_in.calls_by_trait();
    let of_canary = stand_in.calls_to(Endpoint::Write) - 42;
    assert!(of_canary < 12, "{of_canary} canaries, {calls:?}");
    // Of those who were proved nobody is written again; of the others somebody may be, whose call had
    // no known end when it was killed.
    let again = calls[&key("c")] - 300 - 42;
    assert_eq!(again, 0, "{again} calls more");
    assert_eq!(bridge.halted(), None);
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_doubt_outlives_a_kill_before_the_last_of_it_is_pending() {
    let stand_in = stand_in();
    let mut bridge = bridge(&stand_in, |_| {}).await;
    stand_in.switch("ser.main", Switch::StoresTraits, false);
    halted_in_time(&bridge).await;
    bridge.kill().await;
    let doubted =
        "SELECT count(*) FROM meta WHERE key LIKE 'canary:%' AND value LIKE '%\"doubted\":\"%'";
    assert_eq!(rows_of(&bridge.ledger(), doubted), 1);

    // As if it had been killed before anything was pending again.
    stand_in.switch("ser.main", Switch::StoresTraits, true);
    let ledger = bridge.ledger();
    let doubt = |why: &str| {
        let set = match shared_ledger::is_wanted() {
            true => format!("jsonb_set(value::jsonb, '{{doubted}}', '{why}')::text"),
            false => format!("json_set(value, '$.doubted', json('{why}'))"),
        };
        let doubt = format!("UPDATE meta SET value = {set} WHERE key LIKE 'canary:%'");
        shared_ledger::look(&ledger, &doubt);
    };
    doubt("null");
    bridge.start();
    let everybody = people("p", 30);
    bridge
        .send(&page_without_info("add_members", "c", &everybody))
        .await;
    bridge.settled().await;
    bridge.kill().await;
    doubt("\"it stores no traits\"");
    bridge.start();
    eventually("it begins halted", async || bridge.halted()).await;
    bridge
        .time_passes("delivery goes on", async || bridge.halted().is_none())
        .await;
    bridge.settled().await;
    assert_eq!(stand_in.calls_by_trait()[&key("c")], 60, "everybody again");
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_canary_right_after_a_write_does_not_prove_it() {
    let stand_in = stand_in();
    let mut bridge = bridge(&stand_in, |bridge| {
        bridge.destination.canary_interval = Duration::from_secs(30);
    })
    .await;
    // The process that takes ann's call goes by the new setting, the canary's by the old one.
    stand_in.switch("ser.main", Switch::StoresTraits, false);
    bridge
        .send(&page_without_info("add_members", "c", &["ann"]))
        .await;
    bridge.settled().await;
    stand_in.switch("ser.main", Switch::StoresTraits, true);
    more_canaries(&bridge, 1, Duration::from_secs(1)).await;
    assert_eq!(bridge.halted(), None);
    stand_in.switch("ser.main", Switch::StoresTraits, false);
    halted_in_time(&bridge).await;
    stand_in.switch("ser.main", Switch::StoresTraits, true);
    settled_in_time(&bridge).await;
    assert_eq!(bridge.stored("ann", "c"), Some(true));
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn delivery_goes_on_once_every_process_of_flagsmith_must_have_noticed() {
    let stand_in = stand_in();
    let mut bridge = bridge(&stand_in, |_| {}).await;
    stand_in.switch("ser.main", Switch::StoresTraits, false);
    halted_in_time(&bridge).await;
    bridge
        .send(&page_without_info("add_members", "c", &["ann"]))
        .await;
    stand_in.forget_calls();
    stand_in.switch("ser.main", Switch::StoresTraits, true);
    let mended_at = bridge.clock.now();
    bridge
        .time_passes("a canary stays", async || {
            bridge
                .halted()
                .is_some_and(|reason| reason.contains("By now a canary stays"))
        })
        .await;
    settled_in_time(&bridge).await;
    let waited = bridge.clock.now() - mended_at;
    assert!((75_000..150_000).contains(&waited), "{waited} ms");
    assert_eq!(bridge.stored("ann", "c"), Some(true));
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspicious_answer_has_the_canary_asked_within_a_minute() {
    let no_trait = r#"{"identifier":"bob","traits":[{"trait_key":"x","trait_value":1}]}"#;
    let suspicious = [
        Fault::answer(200, no_trait),
        Fault::answer(200, r#"{"identifier":"bob","traits":[]}"#),
        Fault::log_in_page(),
        Fault::unknown_key(),
    ];
    for fault in suspicious {
        let stand_in = stand_in();
        let mut bridge = bridge(&stand_in, |bridge| {
            bridge.destination.canary_interval = Duration::from_secs(24 * 3_600);
        })
        .await;
        stand_in.switch("ser.main", Switch::StoresTraits, false);
        bridge
            .send(&page_without_info("add_members", "c", &["ann"]))
            .await;
        bridge.settled().await;
        let met = AtomicUsize::new(0);
        let meets = fault.clone();
        stand_in.fault_for(move |call| {
            let first = call.identifier == "bob" && met.fetch_add(1, Ordering::SeqCst) == 0;
            first.then(|| meets.clone())
        });
        let suspicious_at = bridge.clock.now();
        bridge
            .send(&page_without_info("add_members", "c", &["bob"]))
            .await;
        let reads = stand_in.calls_to(Endpoint::Read);
        bridge
            .time_passes("the canary is asked", async || {
                stand_in.calls_to(Endpoint::Read) > reads
            })
            .await;
        let took = bridge.clock.now() - suspicious_at;
        assert!(took <= 60_000, "{took} ms after {fault:?}");
        eventually("the canary finds out", async || {
            let reason = bridge.halted().unwrap_or_default();
            reason.contains("stores no traits").then_some(())
        })
        .await;
        canaries_rest(&bridge).await;
        stand_in.switch("ser.main", Switch::StoresTraits, true);
        settled_in_time(&bridge).await;
        for person in ["ann", "bob"] {
            assert_eq!(bridge.stored(person, "c"), Some(true), "{fault:?}");
        }
        bridge.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_set_back_delays_no_suspicion() {
    let stand_in = stand_in();
    let mut bridge = bridge(&stand_in, |_| {}).await;
    stand_in.fault_for(|call| {
        let bobs = r#"{"identifier":"bob","traits":[{"trait_key":"x","trait_value":1}]}"#;
        (call.identifier == "bob").then(|| Fault::answer(200, bobs))
    });
    bridge.clock.set(bridge.clock.now() - 3_600_000);
    let reads = stand_in.calls_to(Endpoint::Read);
    let suspicious_at = bridge.clock.now();
    bridge
        .send(&page_without_info("add_members", "c", &["bob"]))
        .await;
    bridge
        .time_passes("the canary is asked", async || {
            stand_in.calls_to(Endpoint::Read) > reads
        })
        .await;
    let took = bridge.clock.now() - suspicious_at;
    assert!(took <= 60_000, "{took} ms");
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn suspicion_without_end_asks_the_canary_every_quarter_of_a_minute() {
    let stand_in = stand_in();
    let mut bridge = bridge(&stand_in, |_| {}).await;
    let odd = r#"{"identifier":"bob","traits":[{"trait_key":"x","trait_value":1}]}"#;
    let canaries = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&canaries);
    stand_in.fault_for(move |call| {
        if call.identifier == CANARY && call.endpoint == Endpoint::Write {
            counted.fetch_add(1, Ordering::SeqCst);
        }
        (call.identifier == "bob").then(|| Fault::answer(200, odd))
    });
    bridge
        .send(&page_without_info("add_members", "c", &["bob"]))
        .await;
    let begun = bridge.clock.now();
    let passed = async || bridge.clock.now() - begun > 600_000;
    bridge.time_passes("ten minutes", passed).await;
    let asked = canaries.load(Ordering::SeqCst);
    assert!((1..=41).contains(&asked), "{asked} canaries in ten minutes");
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_writes_have_the_canary_asked_and_the_log_cut() {
    let stand_in = stand_in();
    let mut bridge = bridge(&stand_in, |bridge| {
        bridge.prove_after_calls = 100;
        bridge.destination.canary_interval = Duration::from_secs(24 * 3_600);
    })
    .await;
    let send = async |prefix: &str| {
        bridge
            .send(&page_without_info("add_members", "c", &people(prefix, 100)))
            .await;
        bridge.settled().await;
    };
    send("p").await;
    canaries(&bridge, 2).await;
    let log = || rows_of(&bridge.ledger(), "SELECT count(*) FROM unproven");
    assert!(log() > 0, "too young to be proved");
    for (count, prefix) in [(3, "q"), (4, "r")] {
        bridge.clock.advance(Duration::from_secs(75));
        send(prefix).await;
        canaries(&bridge, count).await;
    }
    let named = is_named("p0000");
    let oldest = format!(
        "SELECT count(*) FROM (SELECT traits FROM unproven ORDER BY seq LIMIT 1) AS oldest WHERE {named}"
    );
    eventually("the log is cut", async || {
        (rows_of(&bridge.ledger(), &oldest) == 0).then_some(())
    })
    .await;
    bridge.stop().await;
}

fn members(people: &[&str]) -> Vec<serde_json::Value> {
    people.iter().map(|person| member(person)).collect()
}

const FIRST_SEQ: &str = "SELECT count(*) FROM unproven";

/// A ledger whose destination was told of ann (in), bob (left) and cyd (in).
async fn told() -> Ledger {
    let ledger = Ledger::new(Default::default(), None);
    ledger
        .session("members", "s1", &members(&["ann", "bob", "cyd"]))
        .await;
    ledger
        .session("remove_members", "s2", &members(&["bob"]))
        .await;
    ledger
}

async fn doubt(ledger: &Ledger) -> u64 {
    let now: Millis = ledger.clock.now();
    ledger.store().doubt(&"default".into(), now).await.unwrap()
}

async fn pending(ledger: &Ledger) -> u64 {
    ledger.cohort().await.destinations[0].pending
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_proved_is_not_doubted() {
    let mut ledger = told().await;
    let store = ledger.store();
    let mark = store.unproven_through(&"default".into()).await.unwrap();
    store.proved(&"default".into(), mark).await.unwrap();
    ledger.session("members", "s3", &members(&["dan"])).await;
    ledger.restart();
    // Three left, dan came.
    assert_eq!(doubt(&ledger).await, 3);
    assert_eq!(pending(&ledger).await, 3);
    assert_eq!(doubt(&ledger).await, 0, "once");
    ledger.settle().await;
    assert_eq!(
        ledger.with_trait(&["ann", "bob", "cyd", "dan"]).await,
        "dan"
    );
    assert_eq!(ledger.trait_of("ann").await, Some(false));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_changed_meanwhile_is_written_as_is_wanted_now() {
    let ledger = told().await;
    // Not told yet: ann leaves, bob comes back.
    ledger.clock.advance(Duration::from_secs(1_800));
    ledger
        .page("remove_members", "s3", (1, 1), &members(&["ann"]))
        .await;
    ledger
        .page("add_members", "s3", (1, 1), &members(&["bob"]))
        .await;
    ledger.new_fold().run_until_idle().await.unwrap();
    assert_eq!(pending(&ledger).await, 2);
    doubt(&ledger).await;
    assert_eq!(pending(&ledger).await, 3);
    ledger.settle().await;
    assert_eq!(pending(&ledger).await, 0);
    assert_eq!(ledger.with_trait(&["ann", "bob", "cyd"]).await, "bob cyd");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_erased_person_is_in_no_log() {
    let ledger = told().await;
    let now = ledger.clock.now();
    let store = ledger.store();
    store.forget("ann", false, now).await.unwrap();
    ledger.settle().await;
    let named = format!("SELECT count(*) FROM unproven WHERE {}", is_named("ann"));
    assert_eq!(rows_of(&ledger.path(), &named), 0);
    assert_ne!(rows_of(&ledger.path(), FIRST_SEQ), 0);
    assert_eq!(doubt(&ledger).await, 3, "bob twice, cyd once");
    // Of bob there are two entries and one row.
    assert_eq!(pending(&ledger).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_erasure_in_flagsmith_that_was_not_stored_is_made_again() {
    let ledger = told().await;
    let now = ledger.clock.now();
    ledger.store().forget("ann", true, now).await.unwrap();
    ledger.settle().await;
    doubt(&ledger).await;
    let exchanged = ledger
        .store()
        .exchange(&"default".into(), Vec::new(), None, 10, now)
        .await
        .unwrap();
    let targets: Vec<_> = exchanged
        .claims
        .iter()
        .map(|claim| format!("{} {:?}", claim.identifier, claim.traits[0].target))
        .collect();
    assert_eq!(targets, ["ann Absent", "bob False", "cyd True"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_left_a_retired_cohort_leaves_again() {
    let ledger = told().await;
    let now = ledger.clock.now();
    ledger
        .store()
        .retire(&"default".into(), "7", now)
        .await
        .unwrap();
    ledger.settle().await;
    while ledger
        .store()
        .assemble(1_000, 1, now)
        .await
        .unwrap()
        .is_anything()
    {}
    assert_eq!(rows_of(&ledger.path(), "SELECT count(*) FROM member"), 0);
    doubt(&ledger).await;
    // A cohort that comes back finds what is still to be said of its former people.
    ledger.session("members", "s9", &members(&["ann"])).await;
    assert_eq!(pending(&ledger).await, 0);
    assert_eq!(ledger.with_trait(&["ann", "bob", "cyd"]).await, "ann");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_was_not_made_brings_nothing_back_that_is_doubted() {
    let ledger = told().await;
    let now = ledger.clock.now();
    ledger
        .page("remove_members", "s3", (1, 1), &members(&["ann"]))
        .await;
    ledger.new_fold().run_until_idle().await.unwrap();
    let name = "default".into();
    let store = ledger.store();
    let claims = store.exchange(&name, Vec::new(), None, 10, now).await;
    let claim = claims.unwrap().claims.remove(0);
    assert_eq!(&*claim.identifier, "ann");
    doubt(&ledger).await;
    let unsent = Settlement {
        claim,
        outcome: Outcome::Unsent,
    };
    store
        .exchange(&name, vec![unsent], None, 0, now)
        .await
        .unwrap();
    // What ann was told before the call was as it is wanted now, but it was not stored.
    ledger
        .page("add_members", "s4", (1, 1), &members(&["ann"]))
        .await;
    ledger.new_fold().run_until_idle().await.unwrap();
    assert_eq!(pending(&ledger).await, 3);
}

/// What answers as if it stored what it does not, and what brings it to reason.
struct Liar {
    name: &'static str,
    key: &'static str,
    switches: &'static [Switch],
    begin: fn(&StandIn),
    end: fn(&StandIn),
    reason: &'static str,
}

const LIARS: [Liar; 5] = [
    Liar {
        name: "an organisation that stores no traits",
        key: "ser.main",
        switches: &[Switch::StoresTraits],
        begin: |stand_in| stand_in.switch("ser.main", Switch::StoresTraits, false),
        end: |stand_in| stand_in.switch("ser.main", Switch::StoresTraits, true),
        reason: "'Persist trait data'",
    },
    Liar {
        name: "the same where sensitive data are hidden",
        key: "ser.main",
        switches: &[Switch::StoresTraits, Switch::HidesSensitiveData],
        begin: |stand_in| stand_in.switch("ser.main", Switch::StoresTraits, false),
        end: |stand_in| stand_in.switch("ser.main", Switch::StoresTraits, true),
        reason: "'Persist trait data'",
    },
    Liar {
        name: "a barred client key where sensitive data are hidden",
        key: "client-main",
        switches: &[
            Switch::StoresTraits,
            Switch::ClientMaySetTraits,
            Switch::HidesSensitiveData,
        ],
        begin: |stand_in| stand_in.switch("ser.main", Switch::ClientMaySetTraits, false),
        end: |stand_in| stand_in.switch("ser.main", Switch::ClientMaySetTraits, true),
        reason: "'Allow client SDKs to set user traits'",
    },
    Liar {
        name: "something that answers in Flagsmith's place",
        key: "ser.main",
        switches: &[Switch::StoresTraits],
        begin: |stand_in| stand_in.fault(Fault::Mimic),
        end: StandIn::clear_faults,
        reason: "something before Flagsmith answers in its place",
    },
    Liar {
        name: "something that answers writes in Flagsmith's place",
        key: "ser.main",
        switches: &[Switch::StoresTraits],
        begin: |stand_in| {
            stand_in.fault_for(|call| (call.endpoint != Endpoint::Read).then_some(Fault::Mimic));
        },
        end: StandIn::clear_faults,
        reason: "something before Flagsmith answers in its place",
    },
];

#[tokio::test(flavor = "multi_thread")]
async fn whatever_only_seems_to_store_is_found_out_and_all_is_written_once_it_does() {
    for liar in LIARS {
        let name = liar.name;
        let stand_in = Arc::new(
            StandIn::start(StandInOptions {
                environments: vec![environment("main", liar.switches)],
                ..StandInOptions::default()
            })
            .unwrap(),
        );
        let mut bridge = bridge(&stand_in, |bridge| {
            bridge.destination.environment_key = liar.key.into();
        })
        .await;
        let before = people("p", 30);
        bridge
            .send(&page_without_info("add_members", "c", &before))
            .await;
        bridge.settled().await;
        more_canaries(&bridge, 3, 5 * MINUTE).await;

        (liar.begin)(&stand_in);
        bridge
            .send(&page_without_info("remove_members", "c", &before[..10]))
            .await;
        bridge.settled().await;
        assert_eq!(bridge.stored("p0000", "c"), Some(true), "{name}");
        let reason = halted_in_time(&bridge).await;
        assert!(reason.contains(liar.reason), "{name}: {reason}");
        eventually("nothing counts as written", async || {
            (bridge.pending().await == 10).then_some(())
        })
        .await;

        (liar.end)(&stand_in);
        settled_in_time(&bridge).await;
        for (at, person) in before.iter().enumerate() {
            assert_eq!(
                bridge.stored(person, "c"),
                Some(at >= 10),
                "{name}: {person}"
            );
        }
        let calls = stand_in.calls_by_trait();
        assert_eq!(
            calls[&key("c")],
            40,
            "{name}: nothing else is written again"
        );
        assert_eq!(bridge.warning(), "", "{name}");
        bridge.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hidden_data_that_are_stored_are_no_reason_to_halt() {
    let stand_in = stand_in();
    let mut bridge = bridge(&stand_in, |_| {}).await;
    bridge
        .send(&page_without_info("add_members", "c", &["ann"]))
        .await;
    bridge.settled().await;
    // The canary that was there is shown no longer: it is no other environment for that.
    stand_in.switch("ser.main", Switch::HidesSensitiveData, true);
    bridge
        .send(&page_without_info("add_members", "c", &["bob"]))
        .await;
    bridge.settled().await;
    more_canaries(&bridge, 3, 5 * MINUTE).await;
    assert_eq!((bridge.halted(), bridge.warning()), (None, String::new()));
    assert!(bridge.is_settled().await);
    assert_eq!(
        stand_in.calls_by_trait()[&key("c")],
        3,
        "bob is judged by a second call"
    );
    assert_eq!(bridge.stored("bob", "c"), Some(true));
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_in_page_counts_for_nothing() {
    let stand_in = stand_in();
    let mut bridge = bridge(&stand_in, |_| {}).await;
    stand_in.fault(Fault::log_in_page());
    bridge
        .send(&page_without_info("add_members", "c", &["ann", "bob"]))
        .await;
    let reason = halted_in_time(&bridge).await;
    assert!(reason.contains("is not Flagsmith's"), "{reason}");
    assert_eq!(bridge.written().await, 0);
    stand_in.clear_faults();
    settled_in_time(&bridge).await;
    assert_eq!(bridge.written().await, 2);
    assert_eq!(stand_in.calls_by_trait()[&key("c")], 2);
    bridge.stop().await;
}
