//! Paused cohorts in the ledger: folded as ever, written not at all, and brought to what is wanted
//! once when they are resumed.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use cohort_bridge::cohort::{DestinationName, SourceName, Target};
use cohort_bridge::route::Routes;
use cohort_bridge::standin::Endpoint;
use cohort_bridge::store::{
    Claim, CohortStanding, DeadLetterFilter, DeliveryState, Outcome, ResyncRoom, ResyncScope,
    ResyncStep, Settlement, Store,
};
use cohort_bridge::trait_key::ExplicitKey;

use crate::support::bench::{Bench, changes, set, written};
use crate::support::bridge::Bridge;
use crate::support::eventually;
use crate::support::pages::{page_without_info, people};
use crate::support::resyncs::{cohort_at, order};
use crate::support::routed::{Routed, route};
use crate::support::service::stand_in;
use crate::support::shared_ledger;

fn key(cohort: &str) -> String {
    format!("mixpanel_cohort_{cohort}")
}

async fn pause(bench: &Bench, cohort: &str, pauses: bool) -> Option<u64> {
    let source = SourceName::from("default");
    let paused = bench
        .store()
        .pause_cohort(&source, cohort, pauses, bench.now());
    paused.await.unwrap()
}

/// Two cohorts, `a` and `b`, of whom everything is delivered, and `a` is paused.
async fn paused(a: &[&str], b: &[&str]) -> Bench {
    let mut bench = Bench::new();
    bench.full("a", "a1", a).await;
    bench.full("b", "b1", b).await;
    bench.deliver().await;
    assert_eq!(pause(&bench, "a", true).await, Some(0));
    bench
}

/// Person and trait of every change that calls carry.
fn carried(calls: &[Claim]) -> Vec<(String, String, Target)> {
    let each = calls.iter().flat_map(|claim| {
        changes(claim)
            .into_iter()
            .map(|(key, target)| (claim.identifier.to_string(), key, target))
    });
    each.collect()
}

#[tokio::test]
async fn nothing_of_it_is_written_though_it_is_folded_and_others_are_delivered() {
    let mut bench = paused(&["ann", "bob"], &["bob"]).await;
    bench.full("a", "a2", &["bob", "cyd", "dan"]).await;
    bench.full("b", "b2", &["cyd"]).await;
    let a = bench.cohort("a").await;
    assert!(a.paused && !bench.cohort("b").await.paused);
    assert_eq!((a.members, a.destinations[0].pending), (3, 3));
    // cyd joined both: only the other cohort's trait goes.
    let carried = carried(&bench.deliver().await);
    assert_eq!(
        carried,
        [
            ("bob".into(), key("b"), Target::False),
            ("cyd".into(), key("b"), Target::True)
        ]
    );
    let cyd = bench.store().member("cyd").await.unwrap();
    let states: Vec<_> = cyd
        .iter()
        .map(|membership| (membership.member, membership.destinations[0].state))
        .collect();
    assert_eq!(
        states,
        [
            (true, DeliveryState::Pending),
            (true, DeliveryState::Written)
        ]
    );

    assert_eq!(pause(&bench, "a", false).await, Some(3));
    bench.fold().await;
    let calls = bench.deliver().await;
    assert_eq!(calls.len(), 3, "{calls:?}");
    assert_eq!(
        bench.holding(&key("a"), true),
        set(&["bob", "cyd", "dan"]),
        "as wanted by now"
    );
    assert!(!bench.cohort("a").await.paused);
    assert_eq!(bench.cohort("a").await.destinations[0].pending, 0);
    assert_eq!(bench.rows("pending").await, 0);
}

#[tokio::test]
async fn what_was_pending_before_waits_too_and_company_goes_alone() {
    let mut bench = Bench::new();
    bench.full("a", "a1", &["ann", "bob"]).await;
    bench.full("b", "b1", &["ann"]).await;
    assert_eq!(pause(&bench, "a", true).await, Some(2));
    // Before a single row of it was put aside.
    let before = bench.exchange(Vec::new()).await.claims;
    assert_eq!(
        carried(&before),
        [("ann".into(), key("b"), Target::True)],
        "bob waits, and so does ann's other trait"
    );
    bench.fold().await;
    let settle = before.into_iter().map(written).collect();
    assert_eq!(bench.exchange(settle).await.claims, []);
    pause(&bench, "a", false).await;
    bench.fold().await;
    assert_eq!(bench.deliver().await.len(), 2);
}

#[tokio::test]
async fn a_hundred_flips_are_one_call_or_none() {
    for (last, expected) in [(&["ann", "bob"][..], 0), (&["ann"], 1)] {
        let mut bench = paused(&["ann", "bob"], &[]).await;
        for flip in 0..50 {
            for (half, people) in [("out", &["ann"][..]), ("in", &["ann", "bob"])] {
                bench.full("a", &format!("{half} {flip}"), people).await;
                assert_eq!(bench.deliver().await, []);
            }
        }
        bench.full("a", "last", last).await;
        pause(&bench, "a", false).await;
        bench.fold().await;
        assert_eq!(bench.deliver().await.len(), expected);
        assert_eq!(bench.holding(&key("a"), true), set(last));
    }
}

#[tokio::test]
async fn a_claim_under_way_finishes() {
    let retry = || Outcome::Retry {
        due_at: 0,
        counts: true,
        may_land_late: false,
        error: "503".into(),
    };
    let dead = || Outcome::Dead {
        may_land_late: false,
        error: "400".into(),
    };
    let done = || Outcome::Written {
        may_land_late: false,
    };
    for (outcome, left) in [(done(), 0), (retry(), 1), (Outcome::Unsent, 1), (dead(), 0)] {
        let mut bench = Bench::new();
        bench.full("a", "a1", &["ann"]).await;
        let mut claims = bench.exchange(Vec::new()).await.claims;
        let claim = claims.pop().unwrap();
        pause(&bench, "a", true).await;
        bench.fold().await;
        let letters = usize::from(outcome == dead());
        let settle = vec![Settlement { claim, outcome }];
        assert_eq!(bench.exchange(settle).await.claims, []);
        assert_eq!(bench.store().dead_letters(9).await.unwrap().len(), letters);
        assert_eq!(bench.cohort("a").await.destinations[0].pending, left);
        assert_eq!(bench.rows("pending").await, left);
        pause(&bench, "a", false).await;
        bench.fold().await;
        assert_eq!(bench.deliver().await.len() as u64, left);
    }
}

/// A write that may still land keeps its trait watched; while it is paused nobody looks, and then it
/// is asserted once more.
#[tokio::test]
async fn a_late_write_is_mended_after_the_pause() {
    let mut bench = Bench::new();
    bench.full("a", "a1", &["ann"]).await;
    let claim = bench.exchange(Vec::new()).await.claims.remove(0);
    let late = claim.clone();
    let lost = Outcome::Retry {
        due_at: bench.now() + 5_000,
        counts: true,
        may_land_late: true,
        error: "no answer".into(),
    };
    bench
        .exchange(vec![Settlement {
            claim,
            outcome: lost,
        }])
        .await;
    pause(&bench, "a", true).await;
    bench.full("a", "a2", &["bob"]).await;
    bench.clock.advance(Duration::from_secs(30));
    bench.hear(&late);
    assert_eq!(bench.deliver().await, []);
    bench.clock.advance(Duration::from_secs(60));
    assert_eq!(bench.deliver().await, []);
    pause(&bench, "a", false).await;
    bench.fold().await;
    bench.deliver().await;
    bench.clock.advance(Duration::from_secs(61));
    bench.deliver().await;
    assert_eq!(bench.holding(&key("a"), true), set(&["bob"]));
    assert_eq!(bench.holding(&key("a"), false), set(&["ann"]));
    assert_eq!(bench.rows("pending").await, 0);
}

#[tokio::test]
async fn a_kill_at_any_piece_changes_nothing() {
    let everybody: Vec<_> = (0..40).map(|n| format!("p{n:02}")).collect();
    let everybody: Vec<_> = everybody.iter().map(String::as_str).collect();
    let mut bench = Bench::new();
    bench.full("a", "a1", &everybody).await;
    bench.full("b", "b1", &everybody[..10]).await;
    let mut kills = 0;
    for pauses in [true, false] {
        assert_eq!(pause(&bench, "a", pauses).await, Some(40));
        bench.reopen().await;
        while bench.store().follow_pauses(8).await.unwrap() {
            if pauses {
                // Whatever is put aside and whatever is not: none of it is claimed.
                let claims = bench.exchange(Vec::new()).await.claims;
                assert!(carried(&claims).iter().all(|(_, of, _)| *of == key("b")));
                let unsent = |claim| Settlement {
                    claim,
                    outcome: Outcome::Unsent,
                };
                let name = bench.destination.name.clone();
                let settle = claims.into_iter().map(unsent).collect();
                let exchanged = bench.store().exchange(&name, settle, None, 0, bench.now());
                exchanged.await.unwrap();
            }
            bench.reopen().await;
            kills += 1;
        }
        assert_eq!(bench.cohort("a").await.paused, pauses);
    }
    assert!(kills >= 12, "{kills} pieces");
    assert_eq!(bench.rows("parked").await, 0);
    assert_eq!(bench.deliver().await.len(), 40);
    assert_eq!(bench.holding(&key("a"), true).len(), 40);
    assert_eq!(bench.rows("pending").await, 0);
}

/// More rows than one claim looks at lie before the only one that may be claimed.
#[tokio::test]
async fn a_claim_never_comes_across_what_is_parked() {
    const MANY: usize = 20_000;
    let many: Vec<_> = (0..MANY).map(|n| format!("p{n:05}")).collect();
    let many: BTreeSet<_> = many.iter().map(String::as_str).collect();
    let many: Vec<_> = many.into_iter().collect();
    for before in [true, false] {
        a_claim_passes(&many, before).await;
    }
}

async fn a_claim_passes(many: &[&str], is_paused_before: bool) {
    let bench = Bench::new();
    if is_paused_before {
        bench.full("a", "a1", &many[..1]).await;
        pause(&bench, "a", true).await;
    }
    bench.full("a", "a2", many).await;
    pause(&bench, "a", true).await;
    bench.fold().await;
    bench.full("b", "b1", &["zoe"]).await;
    // Alone, the sweep is asked.
    let claims = bench
        .store()
        .exchange(&bench.destination.name, Vec::new(), None, 1, bench.now());
    let claims = claims.await.unwrap();
    assert_eq!(
        carried(&claims.claims),
        [("zoe".into(), key("b"), Target::True)]
    );
    let name = bench.destination.name.clone();
    let after = claims.resume_after;
    let rest = bench
        .store()
        .exchange(&name, Vec::new(), after, 256, bench.now());
    let rest = rest.await.unwrap();
    assert_eq!((rest.claims, rest.resume_after), (Vec::new(), None));
}

#[tokio::test]
async fn whoever_is_erased_is_erased_from_flagsmith_all_the_same() {
    let mut bench = paused(&["ann", "bob", "eve"], &[]).await;
    bench.full("a", "a2", &["ann", "bob", "cyd", "dan"]).await;
    bench.fold().await;
    for (person, traits) in [("ann", true), ("cyd", true), ("dan", false), ("eve", true)] {
        let now = bench.now();
        assert_eq!(
            bench.store().forget(person, traits, now).await.unwrap(),
            1,
            "{person}"
        );
    }
    bench.fold().await;
    let mut calls = carried(&bench.deliver().await);
    // Of cyd and dan Flagsmith was never told.
    let absent = |person: &str| (person.to_owned(), key("a"), Target::Absent);
    calls.sort_by(|one, other| one.0.cmp(&other.0));
    assert_eq!(calls, [absent("ann"), absent("eve")]);
    assert_eq!(bench.rows("pending").await, 0);
    // Whoever comes back while the order is still to be delivered is a paused member again.
    let now = bench.now();
    bench.store().forget("bob", true, now).await.unwrap();
    bench.fold().await;
    bench.full("a", "a3", &["bob"]).await;
    assert_eq!(bench.deliver().await, []);
    pause(&bench, "a", false).await;
    bench.fold().await;
    bench.deliver().await;
    assert_eq!(bench.holding(&key("a"), true), set(&["bob"]));
}

/// Room for one call at the rate of the orders below.
const SLOWLY: ResyncRoom = ResyncRoom {
    max_calls_per_second: Some(1.0),
    identities: 1,
    rows: 100,
    identities_ahead: 1,
    rows_ahead: 100,
};

async fn step(bench: &Bench, room: ResyncRoom) -> ResyncStep {
    let name = &bench.destination.name;
    let step = bench.store().resync_some(name, room, bench.now());
    step.await.unwrap()
}

/// Whose traits calls carry, of all steps that there are at the rate of the orders below.
async fn written_slowly(bench: &mut Bench) -> Vec<(String, String)> {
    let mut called = Vec::new();
    loop {
        match step(bench, SLOWLY).await {
            ResyncStep::BroughtUp { identities, .. } => assert!(identities <= 1),
            ResyncStep::Ended(_) => {}
            ResyncStep::Full | ResyncStep::Idle => return called,
            ResyncStep::Paced(rate) => panic!("{rate:?}"),
        }
        let calls = bench.deliver().await;
        assert!(calls.len() <= 1, "{calls:?}");
        let traits = carried(&calls).into_iter();
        called.extend(traits.map(|(person, key, _)| (person, key)));
    }
}

#[tokio::test]
async fn orders_wait_for_the_resumption() {
    let name: DestinationName = "default".into();
    for scope in [cohort_at("a", None), ResyncScope::Destination(name.clone())] {
        let is_all = scope != cohort_at("a", None);
        let mut bench = paused(&["ann", "bob"], &["bob", "cyd"]).await;
        let ordered = order(&**bench.store(), scope, Some(1.0), bench.now()).await;
        assert_eq!(ordered, Some(if is_all { 4 } else { 2 }));
        // Another's goes on meanwhile.
        let of_b = cohort_at("b", None);
        order(&**bench.store(), of_b, Some(1.0), bench.now()).await;
        let of_b = ["bob", "cyd"].map(|person| (person.to_owned(), key("b")));
        assert_eq!(written_slowly(&mut bench).await, of_b);
        assert_eq!(bench.cohort("a").await.destinations[0].pending, 0);
        let waits = bench.store().resyncs().await.unwrap();
        let of_a = Some((SourceName::from("default"), "a".to_owned()));
        assert_eq!(waits.len(), 1, "{waits:?}");
        assert_eq!(waits[0].cohort, of_a);
        assert_eq!((waits[0].done, waits[0].of), (0, 2));
        assert_eq!(waits[0].max_calls_per_second, Some(1.0));
        bench.reopen().await;
        pause(&bench, "a", false).await;
        bench.fold().await;
        assert_eq!(bench.deliver().await, []);
        let other = ResyncRoom {
            max_calls_per_second: None,
            ..SLOWLY
        };
        assert_eq!(step(&bench, other).await, ResyncStep::Paced(Some(1.0)));
        let of_a = ["ann", "bob"].map(|person| (person.to_owned(), key("a")));
        assert_eq!(written_slowly(&mut bench).await, of_a);
        assert_eq!(bench.rows("resync").await, 0);
    }
}

/// A cohort that is paused and resumed while everything is walked: nobody is missed, and nobody
/// called for twice.
#[tokio::test]
async fn everything_leaves_behind_what_is_paused_meanwhile() {
    let people = ["p1", "p2", "p3", "p4", "p5", "p6"];
    for resumed_after in 2..=people.len() {
        for cancels in [false, true] {
            let is_left_behind = resumed_after > 2;
            let mut bench = Bench::new();
            bench.full("a", "a1", &people).await;
            bench.full("b", "b1", &people).await;
            bench.deliver().await;
            let everything = ResyncScope::Destination("default".into());
            let now = bench.now();
            order(&**bench.store(), everything, Some(1.0), now).await;
            let mut called = Vec::new();
            for steps in 0..people.len() {
                match steps {
                    2 => assert!(pause(&bench, "a", true).await.is_some()),
                    3 if cancels => {
                        let cancelled = bench.store().cancel_resync(cohort_at("a", None));
                        // Everything came by p3, without a.
                        assert_eq!(cancelled.await.unwrap(), Some(u64::from(is_left_behind)));
                    }
                    _ => {}
                }
                if steps == resumed_after {
                    pause(&bench, "a", false).await;
                }
                bench.fold().await;
                step(&bench, SLOWLY).await;
                called.extend(carried(&bench.deliver().await));
            }
            pause(&bench, "a", false).await;
            bench.fold().await;
            let mut called: Vec<_> = called
                .into_iter()
                .map(|(person, key, _)| (person, key))
                .collect();
            called.extend(written_slowly(&mut bench).await);
            assert_eq!(bench.rows("resync").await, 0);
            called.sort();
            let wanted: Vec<_> = people
                .iter()
                .flat_map(|person| ["a", "b"].map(|cohort| ((*person).to_owned(), key(cohort))))
                .filter(|(person, of)| {
                    let is_cancelled = cancels && is_left_behind && person == "p3";
                    !(is_cancelled && *of == key("a"))
                })
                .collect();
            assert_eq!(called, wanted, "{resumed_after} {cancels}");
        }
    }
}

/// What a canary doubts is pending at once, and waits as it is.
#[tokio::test]
async fn what_is_doubted_waits_for_the_resumption() {
    let mut bench = paused(&["ann", "bob"], &[]).await;
    let name = bench.destination.name.clone();
    bench.store().doubt(&name, bench.now()).await.unwrap();
    assert_eq!(bench.deliver().await, []);
    pause(&bench, "a", false).await;
    bench.fold().await;
    assert_eq!(bench.deliver().await.len(), 2);
}

/// What an order made pending and nobody called for before the pause is still the order's.
#[tokio::test]
async fn an_order_is_not_over_while_some_of_it_is_put_aside() {
    let mut bench = paused(&["ann", "bob"], &[]).await;
    pause(&bench, "a", false).await;
    bench.fold().await;
    let now = bench.now();
    order(&**bench.store(), cohort_at("a", None), Some(1.0), now).await;
    let both = ResyncRoom {
        identities: 2,
        ..SLOWLY
    };
    let brought_up = step(&bench, both).await;
    assert!(matches!(brought_up, ResyncStep::BroughtUp { .. }));
    pause(&bench, "a", true).await;
    bench.fold().await;
    assert_eq!(bench.deliver().await, []);
    assert_eq!(step(&bench, SLOWLY).await, ResyncStep::Full);
    let view = bench.store().resyncs().await.unwrap().remove(0);
    assert_eq!((view.done, view.of), (0, 2));
    pause(&bench, "a", false).await;
    bench.fold().await;
    assert_eq!(bench.deliver().await.len(), 2);
    assert!(matches!(step(&bench, SLOWLY).await, ResyncStep::Ended(_)));
}

#[tokio::test]
async fn a_dead_letter_that_is_retried_waits() {
    let mut bench = Bench::new();
    bench.full("a", "a1", &["ann"]).await;
    let claim = bench.exchange(Vec::new()).await.claims.remove(0);
    let outcome = Outcome::Dead {
        may_land_late: false,
        error: "400".into(),
    };
    bench.exchange(vec![Settlement { claim, outcome }]).await;
    pause(&bench, "a", true).await;
    bench.fold().await;
    let all = DeadLetterFilter::default();
    let retried = bench.store().retry_dead_letters(all, bench.now());
    assert_eq!(retried.await.unwrap(), 1);
    assert_eq!(bench.deliver().await, []);
    pause(&bench, "a", false).await;
    bench.fold().await;
    assert_eq!(bench.deliver().await.len(), 1);
}

#[tokio::test]
async fn a_retired_cohort_leaves_when_it_is_resumed() {
    let mut bench = paused(&["ann", "bob"], &[]).await;
    assert_eq!(bench.retire("a").await, Some(2));
    bench.fold().await;
    assert_eq!(bench.deliver().await, []);
    assert_eq!(bench.cohort("a").await.standing, CohortStanding::Retiring);
    pause(&bench, "a", false).await;
    bench.fold().await;
    assert_eq!(bench.deliver().await.len(), 2);
    bench.fold().await;
    assert_eq!(bench.cohort("a").await.standing, CohortStanding::Retired);
}

/// Two cohorts swap their keys: whose trait it is says whether it is written.
#[tokio::test]
async fn a_trait_that_passes_on_is_paused_as_its_new_cohort_is() {
    let mut bench = paused(&["ann"], &["bob"]).await;
    bench.fold().await;
    bench.source.explicit_keys = [("a", "b"), ("b", "a")]
        .map(|(cohort, of)| ExplicitKey {
            project_id: None,
            cohort_id: cohort.into(),
            trait_key: key(of),
        })
        .into();
    bench.reopen().await;
    let now = bench.now();
    bench.store().adopt_keys(now).await.unwrap();
    bench.fold().await;
    bench.deliver().await;
    assert_eq!(bench.holding(&key("a"), true), set(&["bob"]));
    assert_eq!(bench.holding(&key("b"), true), set(&["bob"]), "not yet");
    pause(&bench, "a", false).await;
    bench.fold().await;
    bench.deliver().await;
    assert_eq!(bench.holding(&key("b"), true), set(&["ann"]));
}

#[tokio::test]
async fn it_can_be_said_twice_and_of_whom_nobody_heard_not_at_all() {
    let mut bench = paused(&["ann"], &[]).await;
    assert_eq!(pause(&bench, "a", true).await, Some(0));
    assert_eq!(pause(&bench, "nobody", true).await, None);
    bench.full("a", "a3", &["bob"]).await;
    for _ in 0..2 {
        assert_eq!(pause(&bench, "a", false).await, Some(2));
        bench.fold().await;
    }
    assert_eq!(bench.deliver().await.len(), 2);
    let unknown = "nowhere".into();
    let store = bench.store();
    let paused = store.pause_destination(&unknown, true, bench.now()).await;
    assert_eq!(paused.unwrap(), None);
}

#[tokio::test]
async fn a_paused_destination_is_remembered() {
    let mut bench = Bench::new();
    bench.full("a", "a1", &["ann"]).await;
    let name = bench.destination.name.clone();
    for pauses in [true, true, false, false] {
        let paused = bench.store().pause_destination(&name, pauses, bench.now());
        assert_eq!(paused.await.unwrap(), Some(1));
        bench.reopen().await;
        let names = bench.store().paused_destinations().await.unwrap();
        assert_eq!(names, vec![name.clone(); usize::from(pauses)]);
    }
}

/// What is parked of a cohort goes with its route, and what is not parked of others stays.
#[tokio::test]
async fn a_route_that_ends_drops_what_is_parked() {
    let everybody: Vec<_> = (0..9_000).map(|n| format!("p{n:04}")).collect();
    let everybody: Vec<_> = everybody.iter().map(String::as_str).collect();
    let mut bench = Routed::new(&["x", "y"]);
    bench.full(("1", "one"), "s", &everybody).await;
    bench.full(("2", "two"), "s", &["ann", "zoe"]).await;
    let source = SourceName::from("default");
    for cohort in ["1", "2"] {
        let paused = bench.store().pause_cohort(&source, cohort, true, 0).await;
        assert!(paused.unwrap().is_some());
    }
    bench.fold().await;
    bench.routes = Routes::of(vec![route(Some("one"), &["x"]), route(None, &["x", "y"])]);
    bench.restart();
    bench.fold().await;
    assert_eq!(bench.rows("pending"), 9_000 + 2 + 2);
    for cohort in ["1", "2"] {
        let resumed = bench.store().pause_cohort(&source, cohort, false, 0).await;
        assert!(resumed.unwrap().is_some());
    }
    bench.fold().await;
    assert_eq!(bench.deliver("x").await, 9_002);
    assert_eq!(bench.deliver("y").await, 2);
}

/// At a low rate claims lie on the desk for long.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_claimed_before_is_given_back() {
    let stand_in = Arc::new(stand_in());
    let mut bridge = Bridge::before(stand_in.clone(), "ser.server-key");
    bridge.destination.max_calls_per_second = Some(0.1);
    bridge.start();
    bridge
        .send(&page_without_info("add_members", "c", &people("p", 20)))
        .await;
    bridge
        .time_passes("some calls", async || {
            stand_in.calls_to(Endpoint::Write) >= 3
        })
        .await;
    bridge.pause_cohort("c").await;
    let ledger = bridge.ledger();
    eventually("all is given back", async || {
        let claimed = "SELECT count(*) FROM pending WHERE sent IS NOT NULL";
        (shared_ledger::number(&ledger, claimed) == 0).then_some(())
    })
    .await;
    bridge.stop().await;
}
