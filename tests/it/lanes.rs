//! Who is called for first while much is pending.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cohort_bridge::clock::{Clock, Millis};
use cohort_bridge::cohort::Action::{AddMembers, Members, RemoveMembers};
use cohort_bridge::flagsmith::CANARY;
use cohort_bridge::standin::Fault;
use cohort_bridge::store::{Claim, Outcome, Settlement, Store};
use serde_json::json;

use crate::support::bench::{Bench, page as roster_page};
use crate::support::pages::{key, page, page_without_info, people};
use crate::support::service::{Service, spawn_app, stand_in};
use crate::support::{calls_are_held, eventually};

/// More than enter the lane of a cohort's first sync.
const BACKLOG: usize = 50_000;

/// `a00000` and on: they come before every other name.
fn backlog() -> Vec<String> {
    (0..BACKLOG).map(|number| format!("a{number:05}")).collect()
}

fn names(people: &[String]) -> Vec<&str> {
    people.iter().map(String::as_str).collect()
}

/// Everybody of `big` is pending.
async fn bench_behind() -> Bench {
    let bench = Bench::new();
    let everybody = backlog();
    bench.full("big", "first", &names(&everybody)).await;
    bench
}

async fn exchange(bench: &Bench, settle: Vec<Settlement>, limit: usize) -> Vec<Claim> {
    let name = &bench.destination.name;
    let exchanged = bench
        .store()
        .exchange(name, settle, None, limit, bench.now());
    exchanged.await.unwrap().claims
}

fn called(claims: &[Claim]) -> BTreeSet<&str> {
    claims.iter().map(|claim| &*claim.identifier).collect()
}

async fn difference(bench: &Bench, add: bool, cohort: &str, session: &str, people: &[&str]) {
    let action = if add { AddMembers } else { RemoveMembers };
    bench
        .take(roster_page(action, cohort, session, (1, 1), people))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_new_is_in_the_next_batch_at_any_backlog() {
    let mut bench = Bench::new();
    bench
        .full("other", "before", &["stays", "zoe leaves"])
        .await;
    bench.deliver().await;
    let everybody = backlog();
    bench.full("big", "first", &names(&everybody)).await;
    difference(&bench, true, "other", "new", &["zoe joins"]).await;
    difference(&bench, false, "other", "new", &["zoe leaves"]).await;
    difference(&bench, true, "big", "new", &["zoe is late"]).await;
    // Had not been told yet that she is in.
    difference(&bench, false, "big", "new", &["a49999"]).await;
    let claims = exchange(&bench, Vec::new(), 8).await;
    let called = called(&claims);
    for person in ["zoe joins", "zoe leaves", "zoe is late", "a49999"] {
        assert!(called.contains(person), "{person}: {called:?}");
    }
    assert_eq!(claims.len(), 8);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sweep_goes_on_however_much_is_new() {
    let bench = bench_behind().await;
    let new = people("z", 900);
    difference(&bench, true, "other", "new", &names(&new)).await;
    let claims = exchange(&bench, Vec::new(), 40).await;
    let called = called(&claims);
    assert!(called.contains("a00000"), "{called:?}");
    let swept = called.iter().filter(|person| **person < "a00100");
    assert_eq!(swept.count(), 10, "{called:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_identity_alone_is_the_sweeps() {
    let bench = bench_behind().await;
    difference(&bench, true, "other", "new", &["zoe"]).await;
    let claims = exchange(&bench, Vec::new(), 1).await;
    assert_eq!(called(&claims), BTreeSet::from(["a00000"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn within_a_cohort_removals_go_first_and_joins_still_go() {
    let mut bench = Bench::new();
    let leavers = people("leaver", 400);
    bench.full("c", "first", &names(&leavers)).await;
    bench.deliver().await;
    // The removals are the older ones.
    difference(&bench, false, "c", "run", &names(&leavers)).await;
    bench.clock.advance(Duration::from_secs(60));
    difference(
        &bench,
        true,
        "c",
        "later run",
        &names(&people("joiner", 400)),
    )
    .await;
    let claims = exchange(&bench, Vec::new(), 64).await;
    let of_lane = &claims[..48];
    let removals = of_lane
        .iter()
        .filter(|claim| claim.identifier.starts_with("leaver"))
        .count();
    assert_eq!((removals, of_lane.len()), (42, 48));
}

#[tokio::test(flavor = "multi_thread")]
async fn cohorts_take_turns() {
    let bench = bench_behind().await;
    difference(&bench, true, "small", "run", &["zoe"]).await;
    bench.clock.advance(Duration::from_secs(1));
    for cohort in ["loud", "louder"] {
        let many = people(cohort, 1_000);
        difference(&bench, true, cohort, "run", &names(&many)).await;
    }
    // Four cohorts, and three places.
    let mut settle = Vec::new();
    let mut called = BTreeSet::new();
    for _ in 0..2 {
        let claims = exchange(&bench, std::mem::take(&mut settle), 4).await;
        called.extend(claims.iter().map(|claim| claim.identifier.to_string()));
        settle.extend(claims.into_iter().map(crate::support::bench::written));
    }
    assert!(called.contains("zoe"), "{called:?}");
    for cohort in ["loud0", "louder0"] {
        let heard = called.iter().any(|person| person.starts_with(cohort));
        assert!(heard, "{cohort} in {called:?}");
    }
    // Not only the sweep's.
    let mut of_big = called.iter().filter(|person| person.starts_with('a'));
    assert!(
        of_big.any(|person| person.as_str() > "a00100"),
        "{called:?}"
    );
}

/// A full sync with one more and one less is no large change.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_sync_brings_few_changes_of_a_large_cohort_by_the_lane() {
    let bench = bench_behind().await;
    let mut everybody = backlog();
    everybody.push("zoe".into());
    everybody.remove(25_000);
    bench.full("big", "second", &names(&everybody)).await;
    let claims = exchange(&bench, Vec::new(), 8).await;
    let called = called(&claims);
    assert!(called.contains("zoe"), "{called:?}");
    // It had never been said that this one is in.
    assert!(called.contains("a25000"), "{called:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_sync_stays_out_of_the_lane_but_for_its_beginning() {
    let mut bench = bench_behind().await;
    let on_lane = bench.rows("pending WHERE express_at IS NOT NULL").await;
    // The last piece of it may be small.
    assert!((8_192..8_448).contains(&on_lane), "{on_lane}");
    assert_eq!(bench.rows("pending").await, BACKLOG as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_does_not_send_them_back_to_the_end() {
    let mut bench = bench_behind().await;
    difference(&bench, true, "other", "new", &["zoe"]).await;
    let claims = exchange(&bench, Vec::new(), 8).await;
    assert!(called(&claims).contains("zoe"));
    // Under way: nobody is called for twice at once.
    let claims = exchange(&bench, Vec::new(), 8).await;
    assert!(!called(&claims).contains("zoe"));
    bench.reopen().await;
    let claims = exchange(&bench, Vec::new(), 8).await;
    assert!(called(&claims).contains("zoe"));
}

/// Ends the call of `zoe` like this, the others well.
fn ended(claims: Vec<Claim>, outcome: &Outcome) -> Vec<Settlement> {
    let settlements = claims.into_iter().map(|claim| {
        let is_hers = &*claim.identifier == "zoe";
        let settlement = crate::support::bench::written(claim);
        Settlement {
            outcome: if is_hers {
                outcome.clone()
            } else {
                settlement.outcome
            },
            claim: settlement.claim,
        }
    });
    settlements.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_failed_is_tried_again_in_time_at_any_backlog() {
    let bench = bench_behind().await;
    difference(&bench, true, "other", "new", &["zoe"]).await;
    let claims = exchange(&bench, Vec::new(), 8).await;
    let failed = Outcome::Retry {
        due_at: bench.now() + 3_000,
        counts: true,
        may_land_late: false,
        error: "500".into(),
    };
    let claims = exchange(&bench, ended(claims, &failed), 8).await;
    assert!(!called(&claims).contains("zoe"), "not yet");
    bench.clock.advance(Duration::from_secs(3));
    let claims = exchange(&bench, Vec::new(), 8).await;
    assert!(called(&claims).contains("zoe"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_that_somebody_retries_does_not_wait_for_the_sweep() {
    let bench = bench_behind().await;
    difference(&bench, true, "other", "new", &["zoe"]).await;
    let claims = exchange(&bench, Vec::new(), 8).await;
    let dead = Outcome::Dead {
        may_land_late: false,
        error: "400".into(),
    };
    exchange(&bench, ended(claims, &dead), 0).await;
    let retried = bench
        .store()
        .retry_dead_letters(Default::default(), bench.now());
    assert_eq!(retried.await.unwrap(), 1);
    let claims = exchange(&bench, Vec::new(), 8).await;
    assert!(called(&claims).contains("zoe"));
}

/// The sweep took it, and what it left behind has to be contradicted in time.
#[tokio::test(flavor = "multi_thread")]
async fn what_may_land_late_is_asserted_again_in_time_at_any_backlog() {
    let bench = Bench::new();
    let mut everybody = backlog();
    everybody.push("zoe".into());
    let (before, after) = everybody.split_at(20_000);
    bench.full("big", "first", &names(before)).await;
    bench
        .take(roster_page(Members, "more", "first", (1, 1), &names(after)))
        .await;
    let claims = bench
        .store()
        .exchange(
            &bench.destination.name,
            Vec::new(),
            Some("a49999".into()),
            1,
            bench.now(),
        )
        .await
        .unwrap()
        .claims;
    assert_eq!(called(&claims), BTreeSet::from(["zoe"]));
    let lost = Outcome::Retry {
        due_at: bench.now() + 1_000,
        counts: true,
        may_land_late: true,
        error: "no answer".into(),
    };
    exchange(&bench, ended(claims, &lost), 0).await;
    bench.clock.advance(Duration::from_secs(1));
    let claims = exchange(&bench, Vec::new(), 8).await;
    assert!(called(&claims).contains("zoe"), "the next attempt");
    let written = Outcome::Written {
        may_land_late: true,
    };
    exchange(&bench, ended(claims, &written), 0).await;
    let again = bench.clock.now() + 60_000;
    bench.clock.set(again);
    let claims = exchange(&bench, Vec::new(), 8).await;
    // Its own value is all that could still have landed, so there is nothing to say any more.
    assert!(!called(&claims).contains("zoe"));
    let hers = bench.store().member("zoe").await.unwrap();
    assert_eq!(hers[0].destinations[0].written, Some(true));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lane_lingers_too() {
    let bench = Bench::with(|_, destination| destination.linger_ms = 1_000);
    let everybody = backlog();
    bench.full("big", "first", &names(&everybody)).await;
    bench.clock.advance(Duration::from_secs(5));
    difference(&bench, true, "one", "new", &["zoe"]).await;
    let claims = exchange(&bench, Vec::new(), 8).await;
    assert!(!called(&claims).contains("zoe"), "she waits for company");
    bench.clock.advance(Duration::from_millis(900));
    difference(&bench, true, "two", "new", &["zoe"]).await;
    bench.clock.advance(Duration::from_millis(100));
    let claims = exchange(&bench, Vec::new(), 8).await;
    let hers = claims.iter().find(|claim| &*claim.identifier == "zoe");
    assert_eq!(hers.unwrap().traits.len(), 2, "both in one call");
}

/// A service before a Flagsmith that takes so many calls a second: each call moves the clock on.
struct Slow {
    service: Service,
    calls: Arc<Mutex<Vec<(String, Millis)>>>,
    each_ms: u64,
}

impl Slow {
    async fn taking(calls_a_second: u64, at_once: usize) -> Self {
        let service = spawn_app(stand_in(), |setup| {
            setup.destination.linger = Duration::from_secs(1);
            setup.destination.max_in_flight = at_once;
        })
        .await;
        service.canary_is_done().await;
        Slow {
            service,
            calls: Arc::default(),
            each_ms: 1_000 / calls_a_second,
        }
    }

    fn go_on(&self) {
        self.go_on_at(self.each_ms);
    }

    fn go_on_at(&self, each_ms: u64) {
        let (clock, calls) = (self.service.clock.clone(), Arc::clone(&self.calls));
        let each = Duration::from_millis(each_ms);
        self.service.stand_in.fault_for(move |call| {
            if call.identifier != CANARY {
                let mut calls = calls.lock().unwrap();
                clock.advance(each);
                calls.push((call.identifier.to_owned(), clock.now()));
            }
            None
        });
        self.service.stand_in.release();
    }

    /// A first sync of many is folded, and nothing of it delivered.
    async fn fall_behind(&self) {
        let service = &self.service;
        service.stand_in.fault(Fault::Hold);
        let everybody = backlog();
        let pages = everybody.chunks(2_000);
        let total = pages.len() as u32;
        for (number, people) in (1..).zip(pages) {
            service
                .send(&page("members", "big", "first", (number, total), people))
                .await;
        }
        service.folded().await;
        service.clock.advance(Duration::from_secs(2));
    }

    /// Time stands still: no call ends.
    async fn halt(&self) {
        self.service.stand_in.fault(Fault::Hold);
        calls_are_held(&self.service.stand_in, 1).await;
    }

    async fn called(&self, person: &str) -> Millis {
        eventually(person, async || {
            let calls = self.calls.lock().unwrap();
            let found = calls.iter().find(|(called, _)| called == person);
            found.map(|(_, at)| *at)
        })
        .await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_change_reaches_a_slow_flagsmith_within_five_seconds() {
    let slow = Slow::taking(10, 4).await;
    let service = &slow.service;
    let regulars = people("regular", 20);
    for cohort in ["small", "big"] {
        service
            .send(&page("members", cohort, "first", (1, 1), &regulars))
            .await;
    }
    service.settled_in_time().await;
    service.stand_in.fault(Fault::Hold);
    let everybody = backlog();
    let pages = everybody.chunks(2_000).chain([&regulars[..]]);
    let total = everybody.len() as u32 / 2_000 + 1;
    for (number, people) in (1..).zip(pages) {
        service
            .send(&page("members", "big", "second", (number, total), people))
            .await;
    }
    service.folded().await;
    service.clock.advance(Duration::from_secs(2));
    slow.go_on();
    // Half a minute of it, so that the desk is as it is behind a backlog.
    eventually("delivery goes on", async || {
        (slow.calls.lock().unwrap().len() >= 300).then_some(())
    })
    .await;

    for round in 0..3 {
        slow.halt().await;
        let since = service.clock.now();
        let new = [
            ("add_members", "small", format!("zoe {round}")),
            ("remove_members", "small", format!("regular000{round}")),
            ("remove_members", "big", format!("regular001{round}")),
            ("remove_members", "big", format!("a4999{round}")),
            ("add_members", "big", format!("zoe too {round}")),
        ];
        // Pages that stand alone: half a run would be taken back when the next one begins.
        for (action, cohort, person) in &new {
            service
                .send(&page_without_info(action, cohort, &[person]))
                .await;
        }
        service.folded().await;
        slow.go_on();
        for (_, cohort, person) in &new {
            let took = slow.called(person).await - since;
            assert!(took <= 5_000, "{person} of {cohort} waited for {took} ms");
        }
    }
    assert_eq!(service.stored("zoe 0", &key("small")), Some(true));
    assert_eq!(service.stored("regular0000", &key("small")), Some(false));
    assert_eq!(service.stored("regular0010", &key("big")), Some(false));
    let left = json!(service.stand_in.identity("a49990"));
    assert_eq!(left, json!({key("big"): false}));
    // The backlog is still there.
    assert!(service.stand_in.identity("a30000").is_none());
}

/// A thousand may lie on the desk of a Flagsmith that takes a thousand a second.
#[tokio::test(flavor = "multi_thread")]
async fn what_lies_on_the_desk_is_given_back_when_calls_become_slow() {
    let slow = Slow::taking(10, 4).await;
    let service = &slow.service;
    slow.fall_behind().await;
    slow.go_on_at(1);
    eventually("the desk is full", async || {
        (slow.calls.lock().unwrap().len() >= 5_000).then_some(())
    })
    .await;
    slow.halt().await;
    let since = service.clock.now();
    service
        .send(&page("add_members", "small", "run", (1, 1), &["zoe"]))
        .await;
    service.folded().await;
    slow.go_on();
    let took = slow.called("zoe").await - since;
    // A second to linger, two until it shows; the rest is this machine's, as calls go on meanwhile. A
    // full desk would be twice as much and more.
    assert!(took <= 40_000, "{took} ms");
}
