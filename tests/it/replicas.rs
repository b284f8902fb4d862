//! Replicas that share a ledger: each takes in pages and orders, one folds and delivers.

use std::sync::Arc;
use std::time::Duration;

use cohort_bridge::clock::ManualClock;
use cohort_bridge::sharing::Sharing;
use cohort_bridge::standin::{Call, Endpoint, Environment, Fault, StandIn};
use cohort_bridge::status::Health;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::support::bridge::Bridge;
use crate::support::pages::{key, page_without_info, people};
use crate::support::service::{START, Service, Setup, stand_in};
use crate::support::shared::{Shared, spawn_replica};
use crate::support::{destination, eventually};

mod orders;

/// Two replicas; nobody leads.
struct Replicas {
    stand_in: Arc<StandIn>,
    clock: ManualClock,
    shared: Arc<Shared>,
    both: [Service; 2],
}

impl Replicas {
    async fn new(change: impl Fn(&mut Setup)) -> Self {
        let stand_in = Arc::new(stand_in());
        let clock = ManualClock::at(START);
        let there = destination(&stand_in.url(), &Environment::default().server_key);
        let shared = Shared::new(&there);
        let a = spawn_replica(shared.replica(0), &stand_in, &clock, &change).await;
        let b = spawn_replica(shared.replica(1), &stand_in, &clock, &change).await;
        Replicas {
            stand_in,
            clock,
            shared,
            both: [a, b],
        }
    }

    /// The same, the first of which leads, and its canary is done.
    async fn led(change: impl Fn(&mut Setup)) -> Self {
        let replicas = Replicas::new(change).await;
        replicas.shared.give(0).await;
        replicas.leads(0).await;
        replicas.both[0].canary_is_done().await;
        replicas
    }

    /// Waits until a replica knows that it leads.
    async fn leads(&self, replica: usize) {
        eventually("it leads", async || {
            leading(&self.both[replica]).await.then_some(())
        })
        .await;
    }

    fn has_all(&self, cohort: &str, people: &[String]) -> bool {
        let there = self.stand_in.identities();
        let told = |person| there.get(person)?.get(&key(cohort));
        people
            .iter()
            .all(|person| told(person) == Some(&json!(true)))
    }

    fn calls(&self, cohort: &str) -> u64 {
        let calls = self.stand_in.calls_by_trait();
        calls.get(&key(cohort)).copied().unwrap_or(0)
    }

    async fn stop(self) {
        for service in self.both {
            service.stop().await;
        }
    }
}

async fn status(service: &Service) -> Value {
    service.get("/api/v1/status").await.json()
}

async fn leading(service: &Service) -> bool {
    status(service).await["leading"] == true
}

async fn in_flight(service: &Service) -> u64 {
    let status = status(service).await;
    status["destinations"][0]["in_flight"].as_u64().unwrap()
}

/// Waits until as many calls are held as there may be; how many.
async fn all_callers_call(service: &Service) -> u64 {
    eventually("as many calls as may be", async || {
        let status = status(service).await;
        let there = &status["destinations"][0];
        let (calls, limit) = (&there["in_flight"], &there["in_flight_limit"]);
        (calls == limit).then(|| calls.as_u64()).flatten()
    })
    .await
}

async fn no_call_is_under_way(service: &Service) {
    eventually("no call under way", async || {
        (in_flight(service).await == 0).then_some(())
    })
    .await;
}

/// Holds whatever is written from now on.
fn hold(stand_in: &StandIn) {
    stand_in.fault_for(|call: &Call<'_>| (call.endpoint == Endpoint::Write).then_some(Fault::Hold));
}

fn release(stand_in: &StandIn) {
    stand_in.clear_faults();
    stand_in.release();
}

async fn add(service: &Service, cohort: &str, people: &[String]) {
    let page = page_without_info("add_members", cohort, people);
    service.send(&page).await;
}

async fn metrics(service: &Service) -> String {
    service.get("/metrics").await.text
}

#[tokio::test(flavor = "multi_thread")]
async fn while_nobody_leads_pages_are_taken_in_and_nothing_is_called() {
    let replicas = Replicas::new(|_| {}).await;
    let everybody = people("p", 5);
    add(&replicas.both[0], "c", &everybody).await;
    for service in &replicas.both {
        assert_eq!(service.get("/readyz").await.status, 200);
        let said = status(service).await;
        assert_eq!(said["leading"], false);
        let there = &said["destinations"][0];
        assert_eq!(there["state"], "standby");
        assert_eq!(there["reason"], "another replica folds and delivers");
        assert_eq!(there["calls"], Value::Null);
        let told = metrics(service).await;
        assert!(told.contains("cohort_bridge_leading 0\n"), "{told}");
        assert!(!told.contains("cohort_bridge_destination_halted{"));
        let page = service.get("/").await.text;
        assert!(page.contains("standby: another replica folds and delivers"));
    }
    let [a, b] = &replicas.both;
    for service in &replicas.both {
        assert_eq!(
            status(service).await["backlog"],
            1,
            "at once, wherever it came"
        );
    }
    assert!(replicas.stand_in.calls().is_empty());
    assert_eq!(replicas.shared.adopted(), 0);

    replicas.shared.give(1).await;
    b.settled().await;
    assert!(replicas.has_all("c", &everybody));
    assert_eq!(replicas.shared.adopted(), 1);
    assert_eq!(status(a).await["backlog"], 0, "folded elsewhere");
    assert!(!leading(a).await && leading(b).await);
    assert_eq!(a.cohorts().await[0]["destinations"][0]["written"], 5);
    let told = metrics(b).await;
    assert!(told.contains("cohort_bridge_leading 1\n"), "{told}");
    assert!(told.contains("cohort_bridge_destination_halted{destination=\"default\"} 0"));
    replicas.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_that_others_take_in_and_fold_count_towards_the_limit() {
    let replicas = Replicas::new(|_| {}).await;
    let health = Arc::new(Health::new(1));
    let sharing = Arc::new(Sharing {
        store: replicas.shared.replica(1),
        clock: Arc::new(replicas.clock.clone()),
        health: Arc::clone(&health),
        destinations: Vec::new(),
    });
    let stop = CancellationToken::new();
    let following = tokio::spawn(sharing.follow(stop.clone()));
    let [a, b] = &replicas.both;
    add(a, "c", &people("p", 5)).await;
    a.time_passes("no more", async || health.refusal().is_some())
        .await;
    replicas.shared.give(1).await;
    b.settled().await;
    a.time_passes("more", async || health.refusal().is_none())
        .await;
    stop.cancel();
    following.await.unwrap();
    replicas.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_standby_took_in_is_folded_at_once_where_it_is_led() {
    let replicas = Replicas::led(|_| {}).await;
    for round in 0..3 {
        let some = people(&format!("p{round}-"), 20);
        add(&replicas.both[1], "c", &some).await;
        // The clock stands still.
        eventually("all there", async || {
            replicas.has_all("c", &some).then_some(())
        })
        .await;
    }
    replicas.both[0].settled().await;
    assert_eq!(replicas.calls("c"), 60);
    replicas.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_term_that_ends_amid_calls_begins_no_more_and_the_other_replica_makes_them() {
    let replicas = Replicas::led(|_| {}).await;
    let everybody = people("p", 40);
    let [a, b] = &replicas.both;
    hold(&replicas.stand_in);
    add(b, "c", &everybody).await;
    let begun = all_callers_call(a).await;
    replicas.shared.end().await;
    let said = status(a).await;
    assert_eq!(
        (&said["leading"], &said["destinations"][0]["state"]),
        (&json!(false), &json!("standby"))
    );
    release(&replicas.stand_in);
    no_call_is_under_way(a).await;
    replicas.clock.advance(Duration::from_secs(10));
    assert_eq!(replicas.calls("c"), begun, "no call begins after the term");
    assert_eq!(a.pending().await, 40, "and none of them counts");
    let late = replicas.shared.late_exchanges();
    assert!(late <= 1, "{late}: the one that the end overtook");
    let refused = replicas.shared.not_leading();
    assert!(refused <= 4, "{refused} times nobody was heard");

    replicas.shared.give(1).await;
    b.settled_in_time().await;
    assert!(replicas.has_all("c", &everybody));
    // And back, to whom nothing of the first term is left.
    replicas.shared.give(0).await;
    let more = people("q", 10);
    add(b, "c", &more).await;
    a.time_passes("all there", async || replicas.has_all("c", &more))
        .await;
    let worst = replicas.stand_in.max_in_flight_per_identity();
    assert_eq!(worst, 1, "calls for one identity at once");
    replicas.stop().await;
}

/// Whoever is slow to notice, and whatever the ledger would still take.
#[tokio::test(flavor = "multi_thread")]
async fn after_a_term_nothing_is_called_and_nothing_settled_before_anybody_stops() {
    let stand_in = Arc::new(stand_in());
    let key = Environment::default().server_key;
    let mut bridge = Bridge::before(Arc::clone(&stand_in), &key);
    bridge.start();
    hold(&stand_in);
    let everybody = people("p", 40);
    bridge
        .send(&page_without_info("add_members", "c", &everybody))
        .await;
    let held = eventually("as many calls as may be", async || {
        let status = bridge.status();
        (status.in_flight == status.in_flight_limit).then_some(status.in_flight)
    })
    .await;
    bridge.ended.cancel();
    release(&stand_in);
    eventually("no call under way", async || {
        (bridge.status().in_flight == 0).then_some(())
    })
    .await;
    bridge.clock.advance(Duration::from_secs(10));
    bridge
        .send(&page_without_info("add_members", "d", &["ann"]))
        .await;
    eventually("folded", async || {
        (bridge.pending().await == 41).then_some(())
    })
    .await;
    bridge.stop().await;
    let told = |person| {
        stand_in
            .identity(person)
            .is_some_and(|traits| !traits.is_empty())
    };
    let called = everybody.iter().filter(|person| told(person)).count();
    assert_eq!(called, held);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_budget_that_is_used_up_holds_up_no_end_of_a_term() {
    let replicas = Replicas::led(|setup| setup.destination.call_budget = Some(6)).await;
    let [a, b] = &replicas.both;
    add(b, "c", &people("p", 10)).await;
    let used_up = async || a.destination().await.0 == "halted";
    a.time_passes("used up", used_up).await;
    replicas.shared.give(1).await;
    replicas.leads(1).await;
    let used_up = async || b.destination().await.0 == "halted";
    b.time_passes("used up there too", used_up).await;
    assert_eq!(a.destination().await.0, "standby");
    replicas.shared.give(0).await;
    replicas.leads(0).await;
    replicas.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn terms_that_change_all_the_time_lose_nothing() {
    let replicas = Replicas::led(|_| {}).await;
    let mut last = [false; 30];
    let everybody = people("p", last.len());
    for round in 0..24_usize {
        let (joins, stride) = (round % 3 != 2, 2 + round % 5);
        let some: Vec<_> = (round % stride..last.len()).step_by(stride).collect();
        for at in &some {
            last[*at] = joins;
        }
        let names: Vec<_> = some.iter().map(|at| &everybody[*at]).collect();
        let action = if joins {
            "add_members"
        } else {
            "remove_members"
        };
        let page = page_without_info(action, "c", &names);
        replicas.both[round % 2].send(&page).await;
        if round % 4 == 1 {
            replicas.shared.end().await;
        } else {
            replicas.shared.give(round / 2 % 2).await;
        }
        replicas.clock.advance(Duration::from_millis(700));
    }
    replicas.shared.give(1).await;
    let b = &replicas.both[1];
    let all_right = || {
        let mut all = everybody.iter().zip(last);
        all.all(|(person, joined)| b.stored(person, &key("c")).unwrap_or(false) == joined)
    };
    // What the other one took in last is counted here within seconds.
    let done = async || all_right() && b.is_settled().await;
    b.time_passes("all right", done).await;
    b.time_passes("a while", async || b.elapsed_ms() > 120_000)
        .await;
    assert!(all_right(), "and so it stays");
    replicas.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_ends_a_replica_at_once_that_waits_for_a_term() {
    let replicas = Replicas::led(|_| {}).await;
    let [a, b] = replicas.both;
    // The clock stands still: a grace would never be over.
    b.stop().await;
    add(&a, "c", &people("p", 3)).await;
    a.settled().await;
    replicas.shared.is_away(true);
    replicas.shared.end().await;
    a.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_stopped_leaves_nothing_to_be_made_again() {
    let Replicas {
        stand_in,
        shared,
        both: [a, b],
        ..
    } = Replicas::led(|_| {}).await;
    hold(&stand_in);
    let everybody = people("p", 30);
    add(&a, "c", &everybody).await;
    all_callers_call(&a).await;
    let stopping = tokio::spawn(a.stop());
    release(&stand_in);
    stopping.await.unwrap();
    shared.give(1).await;
    b.settled_in_time().await;
    let calls = stand_in.calls_by_trait()[&key("c")];
    assert_eq!(calls, 30, "each was called for once");
    b.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_loop_that_panics_ends_the_process_whatever_calls_are_under_way() {
    let replicas = Replicas::led(|_| {}).await;
    hold(&replicas.stand_in);
    let [a, b] = replicas.both;
    add(&a, "c", &people("p", 10)).await;
    all_callers_call(&a).await;
    replicas.shared.break_fold();
    add(&b, "c", &people("q", 1)).await;
    eventually("no pages are taken in", async || {
        (a.get("/readyz").await.status == 503).then_some(())
    })
    .await;
    // The grace is over.
    replicas.clock.advance(Duration::from_secs(5));
    let failed = a.failed().await;
    assert!(failed.contains("a loop of the service ended"), "{failed}");
    b.stop().await;
}
