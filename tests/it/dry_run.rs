//! `--dry-run`, the plan, and pauses of a running service.

use std::time::Duration;

use cohort_bridge::clock::Clock;
use cohort_bridge::config::Kind;
use cohort_bridge::month::Month;
use cohort_bridge::plan::Load;
use cohort_bridge::standin::{Endpoint, StandIn};
use cohort_bridge::store::{ResyncScope, Store};
use serde_json::{Value, json};

use crate::support::bench::Bench;
use crate::support::eventually;
use crate::support::pages::{key, page, people};
use crate::support::resyncs::{bring_up_all, cohort_at, order};
use crate::support::service::{Answer, Service, Setup, client, spawn_app, stand_in};

/// Every HTTP call that reached Flagsmith.
fn calls(stand_in: &StandIn) -> u64 {
    stand_in.calls().values().sum()
}

async fn dry(change: impl FnOnce(&mut Setup)) -> Service {
    spawn_app(stand_in(), |setup| {
        setup.destination.dry_run = true;
        change(setup);
    })
    .await
}

async fn plan(service: &Service) -> Value {
    service.get("/api/v1/plan").await.json()
}

async fn send(service: &Service, cohort: &str, session: &str, members: &[String]) {
    service
        .send(&page("members", cohort, session, (1, 1), members))
        .await;
}

/// The calls that wrote traits, once all is delivered and the canary is done.
async fn trait_calls(service: &Service) -> u64 {
    service.settled().await;
    eventually("the canary is read back", async || {
        (service.stand_in.calls_to(Endpoint::Read) >= 2).then_some(())
    })
    .await;
    service.stand_in.calls_to(Endpoint::Write) - 1
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_calls_nobody_and_the_next_start_calls_as_often_as_was_planned() {
    let everybody = people("p", 90);
    let service = dry(|setup| {
        setup.destination.max_calls_per_second = Some(20.0);
        setup.destination.call_budget = Some(1_000);
    })
    .await;
    for (cohort, members) in [("a", 0..60), ("b", 30..90), ("c", 50..55)] {
        send(&service, cohort, "s", &everybody[members]).await;
    }
    // Changes before the first call cost none.
    send(&service, "c", "t", &everybody[50..52]).await;
    service.folded().await;

    let planned = plan(&service).await;
    let there = &planned["destinations"][0];
    assert_eq!(planned["complete"], true, "{planned}");
    assert_eq!(there["dry_run"], true);
    let figures = ["identities", "traits", "calls", "seconds"].map(|key| there[key].as_u64());
    // Whoever left c again is told so: nothing is known of what an earlier ledger wrote.
    assert_eq!(figures, [Some(90), Some(125), Some(90), Some(5)]);
    assert_eq!(
        there["budget"],
        json!({"month": "2027-01", "left": 1_000, "enough": true})
    );
    let cohorts = there["cohorts"].as_array().unwrap().iter();
    let alone: Vec<_> = cohorts
        .map(|cohort| (cohort["traits"].as_u64(), cohort["calls_alone"].as_u64()))
        .collect();
    let each = [60, 60, 5].map(|figure| (Some(figure), Some(figure)));
    assert_eq!(alone, each);

    // Neither a canary nor anything else, however long.
    for _ in 0..30 {
        service.clock.advance(Duration::from_secs(120));
        service.folded().await;
    }
    assert_eq!(calls(&service.stand_in), 0);
    let status = service.get("/api/v1/status").await.json();
    let destination = &status["destinations"][0];
    assert_eq!(destination["state"], "ok");
    assert_eq!(destination["dry_run"], true);
    let metrics = service.get("/metrics").await.text;
    let oldest = "cohort_bridge_oldest_pending_seconds{destination=\"default\"} 0\n";
    assert!(metrics.contains(oldest), "{metrics}");
    eventually("the status page tells the calls", async || {
        let page = service.get("/").await.text;
        page.contains("dry run: 90 calls would be made")
            .then_some(())
    })
    .await;

    let service = service.restarted(|_| {}).await;
    assert_eq!(trait_calls(&service).await, 90);
    assert_eq!(service.stored("p0000", &key("a")), Some(true));
    assert_eq!(service.stored("p0053", &key("c")), Some(false));
    let planned = plan(&service).await;
    assert_eq!(planned["destinations"][0]["calls"], 0);
    assert_eq!(planned["destinations"][0]["cohorts"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn in_bulk_a_hundred_traits_are_a_call() {
    let service = dry(|setup| setup.destination.kind = Kind::CoreBulk).await;
    let everybody = people("p", 150);
    send(&service, "a", "s", &everybody).await;
    send(&service, "b", "s", &everybody[..51]).await;
    service.folded().await;
    let planned = plan(&service).await;
    let there = &planned["destinations"][0];
    assert_eq!(there["kind"], "core-bulk");
    assert_eq!(
        (&there["traits"], &there["calls"]),
        (&json!(201), &json!(3))
    );
    assert_eq!(there["cohorts"][1]["calls_alone"], 1);
    assert_eq!(there["budget"], Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_leaves_out_what_is_paused() {
    let service = dry(|_| {}).await;
    let everybody = people("p", 30);
    send(&service, "a", "s", &everybody[..20]).await;
    send(&service, "b", "s", &everybody[10..]).await;
    service.folded().await;
    service.order("/api/v1/cohorts/default/a/pause").await;
    let figures = async || {
        eventually("the rows are put aside or brought back", async || {
            let plan = plan(&service).await;
            (plan["complete"] == true).then(|| {
                let there = &plan["destinations"][0];
                let a = &there["cohorts"][0];
                let figures = [&there["calls"], &there["traits"], &a["calls_alone"]];
                (
                    figures.map(|figure| figure.as_u64().unwrap()),
                    a["paused"] == true,
                )
            })
        })
        .await
    };
    assert_eq!(figures().await, ([20, 20, 20], true));
    service.order("/api/v1/cohorts/default/a/resume").await;
    assert_eq!(figures().await, ([30, 40, 20], false));
}

#[tokio::test]
async fn a_plan_has_at_most_what_is_being_written_again_and_is_not_complete() {
    let mut bench = Bench::new();
    bench.full("a", "one", &["ann", "bob", "cyd"]).await;
    bench.full("b", "one", &["ann", "dan"]).await;
    bench.deliver().await;
    let name = bench.destination.name.clone();
    let plan = async |bench: &Bench| {
        let plan = bench.store().unwritten(Month::of(bench.now())).await;
        let plan = plan.unwrap();
        let Load { identities, traits } = plan.destinations[0].load;
        (identities, traits, plan.is_under_way)
    };
    let pause = async |bench: &Bench, pauses| {
        let source = "default".into();
        let paused = bench
            .store()
            .pause_cohort(&source, "a", pauses, bench.now());
        assert!(paused.await.unwrap().is_some());
        bench.fold().await;
    };
    assert_eq!(plan(&bench).await, (0, 0, false));
    let everything = ResyncScope::Destination(name.clone());
    order(&**bench.store(), everything.clone(), None, bench.now()).await;
    assert_eq!(plan(&bench).await, (5, 5, true));
    // Of single cohorts too, that is all there is.
    order(&**bench.store(), cohort_at("a", None), None, bench.now()).await;
    assert_eq!(plan(&bench).await, (5, 5, true));
    pause(&bench, true).await;
    assert_eq!(plan(&bench).await, (2, 2, true), "a is paused");
    bring_up_all(&**bench.store(), &name, bench.now()).await;
    assert_eq!(plan(&bench).await, (2, 2, false), "pending by now");
    bench.deliver().await;
    pause(&bench, false).await;
    assert_eq!(plan(&bench).await, (3, 3, true));
    bench.store().cancel_resync(everything).await.unwrap();
    assert_eq!(plan(&bench).await, (0, 0, false));
}

fn writes_of_a(service: &Service) -> u64 {
    service.stand_in.calls_by_trait()[&key("a")]
}

/// Everybody of `a` is told, and everything is ordered at a call a second. Returns the calls so far.
async fn order_slowly(service: &Service) -> u64 {
    let before = writes_of_a(service);
    let url = format!(
        "http://{}/api/v1/destinations/default/resync",
        service.admin
    );
    let rate = json!({"max_calls_per_second": 1}).to_string();
    let answer = client().post(url).body(rate).send().await.unwrap();
    assert_eq!(Answer::of(answer).await.json(), json!({"pending": 30}));
    before
}

/// They are called for at that rate, from now on; the first may have been called already.
async fn is_written_slowly(service: &Service, before: u64) {
    let since = service.clock.now();
    service
        .time_passes("all is called for again", async || {
            writes_of_a(service) >= before + 30
        })
        .await;
    let took = service.clock.now() - since;
    service
        .time_passes("all is written again", async || {
            let status = service.get("/api/v1/status").await.json();
            status["destinations"][0]["resync"].is_null() && service.is_settled().await
        })
        .await;
    // A second's calls may go out at once.
    assert!(took >= 25_000, "{took} ms for thirty");
    assert_eq!(writes_of_a(service) - before, 30);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_orders_rate_outlives_a_dry_run() {
    let service = spawn_app(stand_in(), |_| {}).await;
    service.canary_is_done().await;
    send(&service, "a", "s", &people("p", 30)).await;
    service.settled_in_time().await;
    let service = service
        .restarted(|setup| setup.destination.dry_run = true)
        .await;
    service.folded().await;
    eventually("the status page tells a plan", async || {
        let page = service.get("/").await.text;
        page.contains("dry run: 0 calls would be made")
            .then_some(())
    })
    .await;
    let before = order_slowly(&service).await;
    let planned = plan(&service).await;
    assert_eq!(planned["destinations"][0]["calls"], 30, "{planned}");
    assert_eq!(planned["complete"], false);
    service
        .time_passes("the status page tells it", async || {
            let page = service.get("/").await.text;
            page.contains("dry run: 30 calls would be made")
        })
        .await;
    assert_eq!(service.pending().await, 0);
    let service = service.restarted(|_| {}).await;
    is_written_slowly(&service, before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_orders_rate_outlives_a_pause_of_its_cohort() {
    let service = spawn_app(stand_in(), |_| {}).await;
    service.canary_is_done().await;
    send(&service, "a", "s", &people("p", 30)).await;
    service.settled_in_time().await;
    service.order("/api/v1/cohorts/default/a/pause").await;
    service.folded().await;
    let before = order_slowly(&service).await;
    for _ in 0..60 {
        service.clock.advance(Duration::from_secs(1));
        service.folded().await;
    }
    assert_eq!(service.pending().await, 0);
    let status = service.get("/api/v1/status").await.json();
    let resync = &status["destinations"][0]["resync"];
    assert_eq!(resync["cohort"]["cohort_id"], "a");
    assert_eq!(resync["done"], 0);
    service.order("/api/v1/cohorts/default/a/resume").await;
    is_written_slowly(&service, before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_destination_is_not_called_until_it_is_resumed() {
    let service = spawn_app(stand_in(), |_| {}).await;
    service.canary_is_done().await;
    let path = "/api/v1/destinations/default";
    let reply = service.order(&format!("{path}/pause")).await;
    assert_eq!(reply, json!({"paused": true, "pending": 0}));
    let everybody = people("p", 20);
    send(&service, "a", "s", &everybody).await;
    service.folded().await;
    let stands_still = async |service: &Service| {
        for _ in 0..30 {
            service.clock.advance(Duration::from_secs(120));
            service.folded().await;
        }
        let status = service.get("/api/v1/status").await.json();
        assert_eq!(status["destinations"][0]["paused"], true);
        assert_eq!(calls(&service.stand_in), 0, "canary included");
        let metrics = service.get("/metrics").await.text;
        for line in [
            "cohort_bridge_paused{destination=\"default\"} 1",
            "cohort_bridge_pending{destination=\"default\"} 20",
            "cohort_bridge_oldest_pending_seconds{destination=\"default\"} 0",
        ] {
            assert!(metrics.contains(line), "{line} is not in {metrics}");
        }
    };
    stands_still(&service).await;
    // A start sends a canary otherwise.
    let service = service.restarted(|_| {}).await;
    stands_still(&service).await;
    let reply = service.order(&format!("{path}/resume")).await;
    assert_eq!(reply, json!({"paused": false, "pending": 20}));
    assert_eq!(trait_calls(&service).await, 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_claimed_and_waits_for_its_turn_is_not_called_either() {
    let service = spawn_app(stand_in(), |setup| {
        setup.destination.max_calls_per_second = Some(1.0);
    })
    .await;
    send(&service, "a", "s", &people("p", 20)).await;
    service
        .time_passes("some calls", async || {
            service.stand_in.calls_to(Endpoint::Write) >= 4
        })
        .await;
    service.order("/api/v1/destinations/default/pause").await;
    // Whatever was under way ends.
    eventually("no call under way", async || {
        let status = service.get("/api/v1/status").await.json();
        (status["destinations"][0]["in_flight"] == 0).then_some(())
    })
    .await;
    let before = calls(&service.stand_in);
    for _ in 0..60 {
        service.clock.advance(Duration::from_secs(2));
        service.folded().await;
    }
    assert_eq!(calls(&service.stand_in), before);
    // Everybody leaves: what was claimed before that is stale.
    send(&service, "a", "t", &[]).await;
    service.folded().await;
    let writes = service.stand_in.calls_to(Endpoint::Write);
    service.order("/api/v1/destinations/default/resume").await;
    service.settled_in_time().await;
    let more = service.stand_in.calls_to(Endpoint::Write) - writes;
    assert_eq!(more, 20, "one a person");
    for person in people("p", 20) {
        assert_eq!(service.stored(&person, &key("a")), Some(false));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resumed_cohort_is_delivered_by_itself() {
    let service = spawn_app(stand_in(), |_| {}).await;
    send(&service, "a", "s", &people("p", 20)).await;
    service.settled().await;
    service.order("/api/v1/cohorts/default/a/pause").await;
    send(&service, "a", "t", &people("p", 10)).await;
    send(&service, "b", "s", &people("p", 5)).await;
    eventually("the other cohort is delivered", async || {
        (service.stored("p0004", &key("b")) == Some(true)).then_some(())
    })
    .await;
    assert_eq!(service.stored("p0019", &key("a")), Some(true));
    let service = service.restarted(|_| {}).await;
    let cohorts = service.cohorts().await;
    assert_eq!(
        (&cohorts[0]["paused"], &cohorts[1]["paused"]),
        (&json!(true), &json!(false))
    );
    assert_eq!(service.pending().await, 10);
    service.order("/api/v1/cohorts/default/a/resume").await;
    service.settled().await;
    assert_eq!(service.stored("p0019", &key("a")), Some(false));
    let unknown = service.get("/api/v1/cohorts/default/a/pause").await;
    assert_eq!(unknown.status, 405);
}
