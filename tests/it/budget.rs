//! `--call-budget`: counted durably, never passed, and full again next month.

use std::time::Duration;

use cohort_bridge::standin::{Endpoint, Fault, StandIn};
use serde_json::{Value, json};

use crate::support::pages::{key, page, page_without_info, people};
use crate::support::process::{Process, serve_variables};
use crate::support::service::{PASSWORD, Service, USER, client, spawn_app, stand_in};
use crate::support::{eventually, fast_temp_dir};

/// Every HTTP call that reached Flagsmith.
fn calls(stand_in: &StandIn) -> u64 {
    let all = [Endpoint::Write, Endpoint::Read, Endpoint::Bulk];
    all.iter()
        .map(|endpoint| stand_in.calls_to(*endpoint))
        .sum()
}

async fn service(budget: Option<u64>) -> Service {
    let service = spawn_app(stand_in(), |setup| setup.destination.call_budget = budget).await;
    eventually("the canary is read back", async || {
        // Looked at before, and read back after.
        (service.stand_in.calls_to(Endpoint::Read) >= 2).then_some(())
    })
    .await;
    service
}

/// How many of these have a trait in Flagsmith.
fn written(service: &Service, people: &[String]) -> usize {
    let has_trait = |person: &&String| service.stored(person, &key("c")).is_some();
    people.iter().filter(has_trait).count()
}

/// Waits for the last calls under way; there are that many in all, and no more.
async fn all_used(service: &Service, budget: u64) {
    eventually("every call of the budget", async || {
        (calls(&service.stand_in) >= budget).then_some(())
    })
    .await;
    assert_eq!(calls(&service.stand_in), budget);
}

async fn reported(service: &Service) -> Value {
    let status = service.get("/api/v1/status").await.json();
    status["destinations"][0]["calls"].clone()
}

async fn halted(service: &Service) -> String {
    eventually("the budget is used up", async || {
        let (state, reason) = service.destination().await;
        (state == "halted").then_some(reason)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn delivery_halts_at_the_last_call_and_says_so() {
    let service = service(Some(60)).await;
    let everybody = people("p", 200);
    service
        .send(&page("members", "c", "s", (1, 1), &everybody))
        .await;
    let reason = halted(&service).await;
    for words in [
        "2027-01",
        "60 calls",
        "2027-02-01T00:00:00",
        "--call-budget",
    ] {
        assert!(reason.contains(words), "{words} is not in {reason}");
    }
    all_used(&service, 60).await;
    eventually("every answer", async || {
        (written(&service, &everybody) == 57).then_some(())
    })
    .await;
    assert_eq!(written(&service, &everybody), 57);
    assert_eq!(
        reported(&service).await,
        // Within a first day, as much again is expected of every other day: from the 15th at 8.00
        // there are 16 and two thirds.
        json!({"month": "2027-01", "made": 60, "budget": 60, "forecast": 60 + 1_000 + 143})
    );
    let metrics = service.get("/metrics").await.text;
    for line in [
        "cohort_bridge_calls_this_month{destination=\"default\"} 60",
        "cohort_bridge_call_budget{destination=\"default\"} 60",
        "cohort_bridge_destination_halted{destination=\"default\"} 1",
    ] {
        assert!(metrics.contains(line), "{line} is not in {metrics}");
    }
    // Neither probes nor the canary.
    for _ in 0..30 {
        service.clock.advance(Duration::from_secs(120));
        assert_eq!(service.destination().await.0, "halted");
    }
    assert_eq!(calls(&service.stand_in), 60);
    assert_eq!(service.dead_letters().await, [] as [Value; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_higher_budget_goes_on_where_the_lower_one_ended() {
    let service = service(Some(60)).await;
    let everybody = people("p", 200);
    service
        .send(&page("members", "c", "s", (1, 1), &everybody))
        .await;
    halted(&service).await;
    let service = service
        .restarted(|setup| setup.destination.call_budget = Some(101))
        .await;
    all_used(&service, 101).await;
    halted(&service).await;
    let service = service.restarted(|_| {}).await;
    service.settled().await;
    assert_eq!(written(&service, &everybody), 200);
    eventually("every call is counted", async || {
        (reported(&service).await["made"] == calls(&service.stand_in)).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn next_month_delivery_goes_on_by_itself() {
    let service = service(Some(60)).await;
    let everybody = people("p", 100);
    service
        .send(&page("members", "c", "s", (1, 1), &everybody))
        .await;
    halted(&service).await;
    all_used(&service, 60).await;
    service.clock.advance(Duration::from_secs(16 * 86_400));
    assert!(halted(&service).await.contains("2027-01"));
    all_used(&service, 60).await;
    service.clock.advance(Duration::from_secs(86_400));
    service.settled_in_time().await;
    assert_eq!(service.destination().await.0, "ok");
    assert_eq!(written(&service, &everybody), 100);
    let reported = reported(&service).await;
    assert_eq!(reported["month"], "2027-02");
    assert_eq!(reported["made"], calls(&service.stand_in) - 60);
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_are_counted_without_a_budget_too() {
    let service = service(None).await;
    service.canary_is_done().await;
    service.stand_in.script([Fault::CloseBeforeStoring]);
    service
        .send(&page_without_info("add_members", "c", &["ann", "bob"]))
        .await;
    service.settled_in_time().await;
    // The canary's, and a call that was repeated.
    let made = 3 + calls(&service.stand_in);
    assert_eq!(made, 6);
    assert_eq!(reported(&service).await["made"], made);
    assert_eq!(reported(&service).await["budget"], Value::Null);
    let service = service.restarted(|_| {}).await;
    eventually("the canary", async || {
        (reported(&service).await["made"] == made + 3).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_kill_passes_the_budget() {
    const BUDGET: u64 = 400;
    const KILLS: u64 = 8;
    const IN_FLIGHT: u64 = 4;
    let folder = fast_temp_dir();
    let stand_in = stand_in();
    let mut variables = serve_variables(&folder.path().join("ledger.db"), &stand_in.url());
    for (name, value) in [
        ("COHORT_BRIDGE_CALL_BUDGET", BUDGET),
        ("COHORT_BRIDGE_MAX_IN_FLIGHT", IN_FLIGHT),
    ] {
        variables.insert(name.to_owned(), value.to_string());
    }
    let mut process = Process::serve(&variables).await;
    let body = page("members", "c", "s", (1, 1), &people("p", 1_000));
    let sent = client()
        .post(process.webhook_url())
        .basic_auth(USER, Some(PASSWORD))
        .body(body.to_string());
    assert_eq!(sent.send().await.unwrap().status(), 200);
    for kill in 1..=KILLS {
        eventually("some calls", async || {
            (calls(&stand_in) >= kill * 40).then_some(())
        })
        .await;
        process.kill();
        process = Process::serve(&variables).await;
    }
    eventually("the budget is used up", async || {
        let status = process.get("/api/v1/status").await.json();
        (status["destinations"][0]["state"] == "halted").then_some(())
    })
    .await;
    let made = calls(&stand_in);
    assert!(made <= BUDGET, "{made} calls");
    // A lease is two calls here; calls under way may not have left.
    let wasted = KILLS * (2 + IN_FLIGHT);
    assert!(made + wasted >= BUDGET, "{made} calls");
}
