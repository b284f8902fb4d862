//! When a trait that is not there means that the person is not in the cohort.

use cohort_bridge::cohort::{Action, DestinationName};
use cohort_bridge::store::{CohortStanding, Store};
use cohort_bridge::trait_key::ExplicitKey;
use serde_json::json;

use crate::support::bench::{Bench, HALF_AN_HOUR, page};
use crate::support::pages;
use crate::support::service::spawn_plain_app;

/// Whether the cohort is ready in the destination of that name.
async fn ready(bench: &Bench, destination: &str) -> bool {
    let cohort = bench.cohort("c").await;
    let mut views = cohort.destinations.iter();
    views
        .find(|view| &*view.name.0 == destination)
        .expect("the destination is there")
        .ready
}

#[tokio::test]
async fn a_cohort_is_ready_once_its_first_session_is_whole_and_delivered() {
    let mut bench = Bench::new();
    let first = |number, person| page(Action::Members, "c", "s", (number, 2), &[person]);
    bench.take(first(1, "ann")).await;
    assert!(!ready(&bench, "default").await, "a page is missing");
    bench.take(first(2, "bob")).await;
    assert!(!ready(&bench, "default").await, "not delivered");
    bench.deliver().await;
    assert!(ready(&bench, "default").await);

    bench.clock.advance(HALF_AN_HOUR);
    bench
        .take(page(Action::AddMembers, "c", "a", (1, 1), &["sue"]))
        .await;
    assert_eq!(bench.cohort("c").await.destinations[0].pending, 1);
    assert!(ready(&bench, "default").await, "a later change");

    bench.retire("c").await;
    bench.fold().await;
    bench.deliver().await;
    bench.fold().await;
    assert_eq!(bench.cohort("c").await.standing, CohortStanding::Retired);
    assert!(!ready(&bench, "default").await, "forgotten");
}

#[tokio::test]
async fn a_cohort_of_nobody_is_ready_at_once() {
    let bench = Bench::new();
    bench.full("c", "s", &[]).await;
    assert!(ready(&bench, "default").await);
}

#[tokio::test]
async fn a_further_destination_is_ready_once_everything_was_delivered_there() {
    let mut bench = Bench::new();
    bench.full("c", "s", &["ann"]).await;
    bench.deliver().await;
    bench.clock.advance(HALF_AN_HOUR);
    bench.destination.name = DestinationName::from("other");
    bench.reopen().await;
    bench.fold().await;
    assert!(!ready(&bench, "other").await);
    bench.deliver().await;
    assert!(ready(&bench, "other").await);
}

#[tokio::test]
async fn a_cohort_with_another_key_is_ready_once_that_is_delivered() {
    let mut bench = Bench::new();
    bench.full("c", "s", &["ann"]).await;
    bench.deliver().await;
    bench.clock.advance(HALF_AN_HOUR);
    bench.source.explicit_keys.push(ExplicitKey {
        project_id: None,
        cohort_id: "c".into(),
        trait_key: "other".into(),
    });
    bench.reopen().await;
    bench.store().adopt_keys(bench.now()).await.unwrap();
    assert!(!ready(&bench, "default").await);
    bench.deliver().await;
    assert!(ready(&bench, "default").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_admin_api_says_whether_a_cohort_is_ready() {
    let service = spawn_plain_app().await;
    let send = async |number, person: &str| {
        let page = pages::page("members", "c", "s", (number, 2), &[person]);
        service.send(&page).await;
        service.settled().await;
        service.cohorts().await[0]["destinations"][0]["ready"].clone()
    };
    assert_eq!(send(1, "ann").await, json!(false));
    assert_eq!(send(2, "bob").await, json!(true));
    let openapi = service.get("/openapi.json").await.json();
    let ready = &openapi["components"]["schemas"]["DeliveryReply"]["properties"]["ready"];
    assert_eq!(ready["type"], "boolean", "{ready}");
    service.stop().await;
}
