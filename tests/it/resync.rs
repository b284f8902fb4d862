//! What a destination was told is written again, beside what is new.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cohort_bridge::clock::{Clock, Millis};
use cohort_bridge::cohort::OnLeave;
use cohort_bridge::flagsmith::CANARY;
use cohort_bridge::standin::{Endpoint, Fault, StandIn};
use cohort_bridge::store::{Outcome, ResyncRoom, ResyncScope, ResyncStep, Settlement, Store};
use serde_json::{Value, json};

use crate::support::bench::{Bench, set, written};
use crate::support::bridge::Bridge;
use crate::support::pages::{key, page, page_without_info, people};
use crate::support::process::{Process, Variables, run, serve_variables};
use crate::support::resyncs::{bring_up_all, cohort_at, order, room};
use crate::support::service::{Answer, PASSWORD, Service, USER, client, spawn_app, stand_in};
use crate::support::shared_ledger;
use crate::support::{calls_are_held, eventually, fast_temp_dir};

/// More than are ahead at once.
const MANY: usize = 5_000;

/// Traits of the first piece.
const PIECE: usize = 1_024;

/// Calls that ended, and that a kill may forget: they are settled together.
const SETTLED_AT_ONCE: usize = 256;

fn everything() -> ResyncScope {
    ResyncScope::Destination("default".into())
}

/// Who was called for, in order, and when.
#[derive(Clone, Default)]
struct Calls(Arc<Mutex<Vec<(String, Millis)>>>);

impl Calls {
    /// Hears of all calls from now on; they meet `fault`.
    fn to(
        stand_in: &StandIn,
        clock: impl Clock + 'static,
        fault: impl Fn() -> Option<Fault> + Send + Sync + 'static,
    ) -> Self {
        let calls = Calls::default();
        let seen = calls.clone();
        stand_in.fault_for(move |call| {
            if call.identifier == CANARY {
                return None;
            }
            let now = clock.now();
            seen.0
                .lock()
                .unwrap()
                .push((call.identifier.to_owned(), now));
            fault()
        });
        calls
    }

    fn len(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    fn of_each(&self) -> BTreeMap<String, usize> {
        let mut of_each = BTreeMap::new();
        for (person, _) in &*self.0.lock().unwrap() {
            *of_each.entry(person.clone()).or_default() += 1;
        }
        of_each
    }

    /// When somebody was first called for.
    fn first(&self, person: &str) -> Option<Millis> {
        let calls = self.0.lock().unwrap();
        let found = calls.iter().find(|(called, _)| called == person);
        found.map(|(_, at)| *at)
    }
}

/// A running bridge that told everybody of these cohorts.
async fn told(cohorts: &[(&str, &[String])]) -> Bridge {
    let mut bridge = Bridge::before(Arc::new(stand_in()), "ser.server-key");
    bridge.start();
    eventually("the first canary", async || {
        (bridge.stand_in.calls_to(Endpoint::Read) >= 2).then_some(())
    })
    .await;
    for (cohort, people) in cohorts {
        for people in people.chunks(1_000) {
            bridge
                .send(&page_without_info("add_members", cohort, people))
                .await;
        }
    }
    bridge.settled().await;
    bridge
}

async fn ended(bridge: &Bridge) {
    eventually("all is written again", async || {
        let is_over = bridge.resyncing().await.is_none() && bridge.pending().await == 0;
        is_over.then_some(())
    })
    .await;
}

/// Waits until a first piece is pending, and nothing of it ends.
async fn first_piece_is_held(bridge: &Bridge) {
    calls_are_held(&bridge.stand_in, 1).await;
    eventually("a first piece", async || {
        (bridge.pending().await == PIECE as u64).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_written_again_in_one_call_a_person() {
    let (c, d) = (people("p", 1_500), people("p", 3_000));
    let bridge = told(&[("c", &c), ("d", &d[1_000..])]).await;
    bridge
        .send(&page_without_info("remove_members", "c", &c[..10]))
        .await;
    bridge.settled().await;
    // Somebody did it behind our back; the canary does not look meanwhile.
    bridge.stand_in.wipe("ser.server-key");
    let calls = Calls::to(&bridge.stand_in, bridge.clock.clone(), || None);
    assert_eq!(bridge.resync(everything(), None).await, 3_500);
    ended(&bridge).await;
    let of_each = calls.of_each();
    assert_eq!((of_each.len(), calls.len()), (3_000, 3_000));
    let identities = bridge.stand_in.identities();
    for (number, person) in d.iter().enumerate() {
        let stored = |cohort: &str| identities[person].get(&key(cohort))?.as_bool();
        let is_in_c = (number < 1_500).then_some(number >= 10);
        assert_eq!(stored("c"), is_in_c, "{person}");
        let is_in_d = (number >= 1_000).then_some(true);
        assert_eq!(stored("d"), is_in_d, "{person}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_further_piece_waits_until_the_last_is_mostly_delivered() {
    let everybody = people("p", MANY);
    let bridge = told(&[("c", &everybody)]).await;
    let calls = Calls::to(&bridge.stand_in, bridge.clock.clone(), || Some(Fault::Hold));
    assert_eq!(bridge.resync(cohort_at("c", None), None).await, MANY as u64);
    first_piece_is_held(&bridge).await;
    let view = bridge.resyncing().await.unwrap();
    assert_eq!((view.done, view.of), (0, MANY as u64));
    assert_eq!(view.cohort, Some(("default".into(), "c".into())));
    bridge.stand_in.fault_for(|_| None);
    let again = Calls::to(&bridge.stand_in, bridge.clock.clone(), || None);
    bridge.stand_in.release();
    let mut most = 0;
    eventually("all is written again", async || {
        most = most.max(bridge.pending().await);
        bridge.resyncing().await.is_none().then_some(())
    })
    .await;
    ended(&bridge).await;
    assert!(most < 2 * PIECE as u64, "{most} were ahead");
    assert_eq!(calls.len() + again.len(), MANY, "one call for everybody");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_cancelled_is_not_reached() {
    let everybody = people("p", MANY);
    let bridge = told(&[("c", &everybody), ("d", &everybody[..50])]).await;
    for scope in [cohort_at("c", None), everything()] {
        let calls = Calls::to(&bridge.stand_in, bridge.clock.clone(), || Some(Fault::Hold));
        bridge.resync(scope.clone(), None).await;
        first_piece_is_held(&bridge).await;
        let all = bridge.resyncing().await.unwrap().of;
        let cancelled = bridge.cancel_resync(scope.clone()).await;
        assert_eq!(cancelled, all - PIECE as u64, "{scope:?}");
        assert_eq!(bridge.resyncing().await, None);
        assert_eq!(bridge.cancel_resync(scope).await, 0);
        let again = Calls::to(&bridge.stand_in, bridge.clock.clone(), || None);
        bridge.stand_in.release();
        ended(&bridge).await;
        // Of everything, fifty people have two traits.
        let reached = PIECE - usize::from(all > MANY as u64) * 50;
        assert_eq!(calls.len() + again.len(), reached);
    }
}

#[tokio::test]
async fn what_everything_reaches_all_the_same_is_not_cancelled() {
    let mut bench = Bench::new();
    bench.full("a", "first", &["p1", "p2", "p3", "p4"]).await;
    bench.full("b", "first", &["p1", "p5"]).await;
    bench.deliver().await;
    let store = Arc::clone(bench.store());
    let name = bench.destination.name.clone();
    let order_a = async || order(&*store, cohort_at("a", None), None, bench.now()).await;
    let cancel_a = async || store.cancel_resync(cohort_at("a", None)).await.unwrap();
    let step = async || {
        let step = store.resync_some(&name, room(2), bench.now());
        step.await.unwrap()
    };
    order(&*store, everything(), None, bench.now()).await;
    order_a().await;
    assert_eq!(cancel_a().await, Some(0), "everything is still to come");
    // Both of p1, then p2 and p3, both of a.
    for _ in 0..2 {
        assert!(matches!(step().await, ResyncStep::BroughtUp { .. }));
    }
    order_a().await;
    assert_eq!(cancel_a().await, Some(3), "p1, p2 and p3 were before it");
    bring_up_all(&*store, &name, bench.now()).await;
    assert_eq!(bench.deliver().await.len(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_ordered_again_begins_anew_and_doubles_nobody_who_was_not_reached() {
    let everybody = people("p", MANY);
    let bridge = told(&[("c", &everybody)]).await;
    let held = Calls::to(&bridge.stand_in, bridge.clock.clone(), || Some(Fault::Hold));
    bridge.resync(cohort_at("c", None), None).await;
    first_piece_is_held(&bridge).await;
    bridge.resync(cohort_at("c", None), None).await;
    let calls = Calls::to(&bridge.stand_in, bridge.clock.clone(), || None);
    bridge.stand_in.release();
    ended(&bridge).await;
    let (of_each, held) = (calls.of_each(), held.of_each());
    for (number, person) in everybody.iter().enumerate() {
        let calls =
            of_each.get(person).copied().unwrap_or(0) + held.get(person).copied().unwrap_or(0);
        let most = if number < PIECE { 2 } else { 1 };
        assert!((1..=most).contains(&calls), "{calls} calls for {person}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_in_the_middle_misses_nobody_and_doubles_only_what_was_not_settled() {
    let everybody = people("p", MANY);
    let mut bridge = told(&[("c", &everybody), ("d", &everybody[..100])]).await;
    let calls = Calls::to(&bridge.stand_in, bridge.clock.clone(), || None);
    bridge.resync(cohort_at("c", None), None).await;
    bridge.resync(cohort_at("d", None), None).await;
    let kills = 4;
    for kill in 1..=kills {
        eventually("some calls", async || {
            (calls.len() >= kill * MANY / 6).then_some(())
        })
        .await;
        bridge.kill().await;
        bridge.start();
    }
    ended(&bridge).await;
    let of_each = calls.of_each();
    assert_eq!(of_each.len(), MANY, "everybody");
    let most = MANY + 100 + kills * (bridge.destination.max_in_flight + SETTLED_AT_ONCE);
    assert!(calls.len() <= most, "{} calls, {most} at most", calls.len());
    bridge.stop().await;
}

/// Orders, one after the other, as `name of cohort or *`, and whom they are for.
#[tokio::test(flavor = "multi_thread")]
async fn several_orders_wait_for_each_other_and_single_cohorts_go_first() {
    let bench = Bench::new();
    for (cohort, people) in [("a", ["a1", "x"]), ("b", ["b1", "x"]), ("c", ["c1", "x"])] {
        bench.full(cohort, "first", &people).await;
    }
    let mut bench = bench;
    bench.deliver().await;
    let store = Arc::clone(bench.store());
    let name = bench.destination.name.clone();
    for scope in [everything(), cohort_at("c", None), cohort_at("b", None)] {
        order(&*store, scope, None, bench.now()).await.unwrap();
    }
    let mut waited = Vec::new();
    let mut walked = Vec::new();
    loop {
        match store
            .resync_some(&name, room(1), bench.now())
            .await
            .unwrap()
        {
            ResyncStep::Idle => break,
            ResyncStep::BroughtUp { begun, .. } => {
                if let Some(begun) = begun {
                    waited.push(store.resyncs().await.unwrap()[0].waiting);
                    walked.push(begun.cohort.map(|(_, id)| id));
                }
            }
            ResyncStep::Ended(_) => {}
            other => panic!("{other:?}"),
        }
        for claim in bench.deliver().await {
            for claimed in &claim.traits {
                walked.push(Some(format!("{} {}", claim.identifier, claimed.trait_key)));
            }
        }
    }
    let walked: Vec<_> = walked
        .iter()
        .map(|one| one.as_deref().unwrap_or("*"))
        .collect();
    assert_eq!(
        walked,
        [
            "c",
            "c1 mixpanel_cohort_c",
            "x mixpanel_cohort_c",
            "b",
            "b1 mixpanel_cohort_b",
            "x mixpanel_cohort_b",
            "*",
            "a1 mixpanel_cohort_a",
            "x mixpanel_cohort_a",
        ]
    );
    assert_eq!(waited, [2, 1, 0]);
}

#[tokio::test]
async fn what_is_pending_anyway_is_ahead_too_and_an_order_over_it_not_over() {
    let mut bench = Bench::new();
    bench.full("c", "one", &["ann", "bob", "cyd"]).await;
    // In vain: ann waits for a minute.
    let claims = bench.exchange(Vec::new()).await.claims;
    let due_at = bench.now() + 60_000;
    let failed = claims.into_iter().map(|claim| Settlement {
        outcome: match &*claim.identifier {
            "ann" => Outcome::Retry {
                due_at,
                counts: true,
                may_land_late: false,
                error: "503".into(),
            },
            _ => Outcome::Unsent,
        },
        claim,
    });
    let name = bench.destination.name.clone();
    let failed = failed.collect();
    let settled = bench.store().exchange(&name, failed, None, 0, bench.now());
    settled.await.unwrap();
    order(&**bench.store(), everything(), Some(1.0), bench.now()).await;
    let room = ResyncRoom {
        max_calls_per_second: Some(1.0),
        identities: 1,
        rows: 2,
        identities_ahead: 1,
        rows_ahead: 100,
    };
    let step = async |bench: &Bench| {
        let step = bench.store().resync_some(&name, room, bench.now());
        step.await.unwrap()
    };
    let first = step(&bench).await;
    let nothing_new = (0, 0);
    let ResyncStep::BroughtUp {
        identities, rows, ..
    } = first
    else {
        panic!("{first:?}");
    };
    assert_eq!((identities, rows), nothing_new);
    assert_eq!(step(&bench).await, ResyncStep::Full);
    let done = async |bench: &Bench| bench.store().resyncs().await.unwrap()[0].done;
    assert_eq!(done(&bench).await, 0);
    // All but ann, whose time has not come.
    let called = bench.deliver().await;
    assert_eq!(called.len(), 2, "{called:?}");
    assert_eq!(done(&bench).await, 1);
    assert_eq!(step(&bench).await, ResyncStep::Full);
    bench.clock.advance(Duration::from_secs(60));
    assert_eq!(bench.deliver().await.len(), 1);
    while step(&bench).await != ResyncStep::Idle {
        bench.deliver().await;
    }
    assert_eq!(bench.rows("resync").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_members_leavers_and_dead_letters_and_nobody_erased() {
    for on_leave in [OnLeave::False, OnLeave::Delete] {
        let mut bench = Bench::with(|_, destination| destination.on_leave = on_leave);
        bench
            .full("c", "first", &["ann", "bob", "cyd", "dan", "eve"])
            .await;
        let claims = bench.exchange(Vec::new()).await.claims;
        let ended = claims.into_iter().map(|claim| {
            let is_dead = &*claim.identifier == "dan";
            let settlement = written(claim);
            if is_dead {
                let error = "400".into();
                let outcome = Outcome::Dead {
                    may_land_late: false,
                    error,
                };
                return Settlement {
                    outcome,
                    ..settlement
                };
            }
            settlement
        });
        bench.exchange(ended.collect()).await;
        bench.full("c", "second", &["ann", "dan", "eve"]).await;
        let store = Arc::clone(bench.store());
        store.forget("eve", true, bench.now()).await.unwrap();
        bench.fold().await;
        bench.deliver().await;
        bench.flagsmith.clear();
        for (person, value) in [("ann", false), ("bob", true), ("cyd", true)] {
            let traits = bench.flagsmith.entry(key("c")).or_default();
            traits.insert(person.to_owned(), value);
        }
        let ordered = order(&*store, cohort_at("c", None), None, bench.now()).await;
        assert_eq!(ordered, Some(4));
        bring_up_all(&*store, &bench.destination.name, bench.now()).await;
        let calls = bench.deliver().await;
        assert_eq!(calls.len(), 4);
        assert_eq!(bench.holding(&key("c"), true), set(&["ann", "dan"]));
        let left = match on_leave {
            OnLeave::False => set(&["bob", "cyd"]),
            OnLeave::Delete => set(&[]),
        };
        assert_eq!(bench.holding(&key("c"), false), left);
        assert_eq!(store.dead_letters(9).await.unwrap().len(), 0);
    }
}

/// A service whose clock moves on with each call, by a tenth of a second.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_change_reaches_a_slow_flagsmith_within_five_seconds_meanwhile() {
    let service = spawn_app(stand_in(), |setup| {
        setup.destination.linger = Duration::from_secs(1);
        setup.destination.max_in_flight = 4;
    })
    .await;
    service.canary_is_done().await;
    let everybody = people("p", MANY);
    let pages = everybody.chunks(1_000);
    for (number, people) in (1..).zip(pages) {
        service
            .send(&page("members", "big", "first", (number, 5), people))
            .await;
    }
    service.settled_in_time().await;
    service.order("/api/v1/cohorts/default/big/resync").await;
    let clock = service.clock.clone();
    let slow = move || {
        clock.advance(Duration::from_millis(100));
        None
    };
    let calls = Calls::to(&service.stand_in, service.clock.clone(), slow);
    eventually("it goes on", async || (calls.len() >= 300).then_some(())).await;
    service.stand_in.fault(Fault::Hold);
    calls_are_held(&service.stand_in, 1).await;
    let since = service.clock.now();
    let new = [
        ("add_members", "small", "zoe"),
        ("add_members", "big", "zoe too"),
        ("remove_members", "big", "p4999"),
    ];
    for (action, cohort, person) in new {
        service
            .send(&page_without_info(action, cohort, &[person]))
            .await;
    }
    service.folded().await;
    let clock = service.clock.clone();
    let slow = move || {
        clock.advance(Duration::from_millis(100));
        None
    };
    let calls = Calls::to(&service.stand_in, service.clock.clone(), slow);
    service.stand_in.release();
    for (_, cohort, person) in new {
        let called = eventually(person, async || calls.first(person)).await;
        let took = called - since;
        assert!(took <= 5_000, "{person} of {cohort} waited for {took} ms");
    }
    assert!(resync_of(&service).await["done"].as_u64().unwrap() < MANY as u64 / 2);
}

async fn resync_of(service: &Service) -> Value {
    let status = service.get("/api/v1/status").await.json();
    status["destinations"][0]["resync"].clone()
}

async fn ask(service: &Service, method: reqwest::Method, path: &str, body: Value) -> Answer {
    let url = format!("http://{}{path}", service.admin);
    let request = client().request(method, url).body(body.to_string());
    Answer::of(request.send().await.unwrap()).await
}

/// A service that told `c` of so many people.
async fn service_that_told(people: &[String], budget: Option<u64>) -> Service {
    let service = spawn_app(stand_in(), |setup| setup.destination.call_budget = budget).await;
    eventually("the canary is read back", async || {
        (service.stand_in.calls_to(Endpoint::Read) >= 2).then_some(())
    })
    .await;
    service
        .send(&page("members", "c", "s", (1, 1), people))
        .await;
    service
}

#[tokio::test(flavor = "multi_thread")]
async fn its_rate_is_its_own() {
    if shared_ledger::is_wanted() {
        // The clock moves with every look, however long the ledger takes meanwhile.
        return;
    }
    let everybody = people("p", 40);
    let service = service_that_told(&everybody, None).await;
    service.settled_in_time().await;
    let calls = Calls::to(&service.stand_in, service.clock.clone(), || None);
    let (since, path) = (service.clock.now(), "/api/v1/destinations/default/resync");
    let rate = json!({"max_calls_per_second": 4});
    let answer = ask(&service, reqwest::Method::POST, path, rate).await;
    assert_eq!(answer.json(), json!({"pending": 40}));
    let mut shown = Value::Null;
    service
        .time_passes("half of it", async || {
            shown = resync_of(&service).await;
            shown["done"].as_u64() >= Some(20)
        })
        .await;
    assert_eq!(shown["of"], 40);
    assert_eq!(shown["cohort"], Value::Null);
    assert_eq!(shown["max_calls_per_second"], 4.0);
    // What is new does not wait for it. The walk is behind these.
    let new = people("new", 30);
    let new_since = service.clock.now();
    service
        .send(&page_without_info("add_members", "d", &new))
        .await;
    service
        .time_passes("what is new", async || {
            service.folded().await;
            new.iter().all(|person| calls.first(person).is_some())
        })
        .await;
    let took = service.clock.now() - new_since;
    assert!(took <= 3_000, "{took} ms");
    service
        .time_passes("all of it", async || {
            resync_of(&service).await.is_null() && service.is_settled().await
        })
        .await;
    assert_eq!(calls.len(), 70);
    let mut times: Vec<_> = everybody
        .iter()
        .filter_map(|person| calls.first(person))
        .collect();
    times.sort_unstable();
    let within = |from: Millis| {
        let within = times.iter().filter(|at| (from..from + 1_000).contains(*at));
        within.count()
    };
    let most = times.iter().map(|from| within(*from)).max();
    // A second's calls may be ahead where time jumps.
    assert!(most <= Some(9), "{most:?} in a second");
    let took = times.last().unwrap() - since;
    assert!((9_000..20_000).contains(&took), "{took} ms");
}

#[tokio::test(flavor = "multi_thread")]
async fn it_does_not_go_on_where_nothing_is_taken() {
    // Used up by the canary and all but one.
    for budget in [Some(43), None] {
        let everybody = people("p", 41);
        let service = service_that_told(&everybody, budget).await;
        if budget.is_none() {
            service.settled().await;
            service.stand_in.fault(Fault::unknown_key());
            service
                .send(&page_without_info("remove_members", "c", &["p0000"]))
                .await;
        }
        service
            .time_passes("halted", async || service.destination().await.0 == "halted")
            .await;
        service
            .time_passes("all but one", async || service.pending().await == 1)
            .await;
        let path = "/api/v1/cohorts/default/c/resync";
        assert_eq!(service.order(path).await, json!({"pending": 41}));
        for _ in 0..60 {
            service.clock.advance(Duration::from_secs(1));
            assert_eq!(service.destination().await.0, "halted");
            assert_eq!(service.pending().await, 1, "{budget:?}");
        }
        assert_eq!(resync_of(&service).await["done"], 0);
        let service = match budget {
            Some(_) => {
                service
                    .restarted(|setup| setup.destination.call_budget = Some(1_000))
                    .await
            }
            None => {
                service.stand_in.clear_faults();
                service
            }
        };
        service
            .time_passes("all of it", async || {
                resync_of(&service).await.is_null() && service.is_settled().await
            })
            .await;
        let writes = service.stand_in.calls_by_trait()[&key("c")];
        // The one that waited is called for once.
        assert!(writes >= 81, "{writes} for {budget:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_real_binary_is_killed_in_the_middle_and_told_to_stop() {
    let folder = fast_temp_dir();
    let stand_in = stand_in();
    let mut variables = serve_variables(&folder.path().join("ledger.db"), &stand_in.url());
    variables.insert("COHORT_BRIDGE_MAX_IN_FLIGHT".to_owned(), "4".to_owned());
    variables.insert(
        "COHORT_BRIDGE_LATE_WRITE_WINDOW".to_owned(),
        "1s".to_owned(),
    );
    variables.insert("RUST_LOG".to_owned(), "info".to_owned());
    let mut process = Process::serve(&variables).await;
    let everybody = people("p", 6_000);
    for people in everybody.chunks(1_000) {
        let page = page_without_info("add_members", "c", people);
        let request = client()
            .post(process.webhook_url())
            .basic_auth(USER, Some(PASSWORD))
            .body(page.to_string());
        assert_eq!(request.send().await.unwrap().status(), 200);
    }
    process.settled().await;
    let clock = cohort_bridge::clock::SystemClock;
    let calls = Calls::to(&stand_in, clock, || {
        Some(Fault::Delay(Duration::from_millis(1)))
    });
    assert_eq!(
        operate(&process, &["resync", "--destination", "default"]),
        "6000 to be written again\n"
    );
    let kills = 3;
    for kill in 1..=kills {
        eventually("some calls", async || {
            (calls.len() >= kill * 1_500).then_some(())
        })
        .await;
        process.kill();
        process = Process::serve(&variables).await;
    }
    process.line("everything was written again").await;
    process.settled().await;
    let of_each = calls.of_each();
    assert_eq!(of_each.len(), 6_000, "everybody");
    let most = 6_000 + kills * (4 + SETTLED_AT_ONCE);
    assert!(calls.len() <= most, "{} calls", calls.len());

    stand_in.fault_for(|_| Some(Fault::Hold));
    operate(
        &process,
        &["resync", "default", "c", "--max-calls-per-second", "0.001"],
    );
    process.line("a cohort is written again").await;
    let status = process.get("/api/v1/status").await.json();
    let shown = &status["destinations"][0]["resync"];
    assert_eq!(
        shown["cohort"],
        json!({"source": "default", "cohort_id": "c"})
    );
    let cancelled = operate(&process, &["resync", "default", "c", "--cancel"]);
    assert_eq!(cancelled, "5999 not to be written again after all\n");
    stand_in.release();
}

fn operate(process: &Process, arguments: &[&str]) -> String {
    let url = process.admin_url("/");
    let variables = Variables::from([("COHORT_BRIDGE_ADMIN_URL".to_owned(), url)]);
    let ended = run(arguments, &variables);
    assert_eq!(ended.code, Some(0), "{arguments:?}: {ended:?}");
    ended.stdout
}
