//! What a replica is told that does not lead, or what changes while none does.

use std::time::Duration;

use cohort_bridge::clock::ManualClock;
use serde_json::json;

use super::{
    Replicas, add, all_callers_call, hold, leading, no_call_is_under_way, release, status,
};
use crate::support::pages::{key, page_without_info, people};
use crate::support::process::Variables;
use crate::support::service::{START, Service};
use crate::support::shared::{Shared, spawn_replica_of_files};
use crate::support::{destination, eventually, fast_temp_dir, ordinary_stand_in};

const TOKEN: &str = "COHORT_BRIDGE_ADMIN_TOKEN_FILE";
const KEY: &str = "COHORT_BRIDGE_FLAGSMITH_ENVIRONMENT_KEY_FILE";

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_was_rolled_between_two_terms_is_the_one_of_the_next() {
    let stand_in = ordinary_stand_in(&["main", "other"]);
    let clock = ManualClock::at(START);
    let shared = Shared::new(&destination(&stand_in.url(), "ser.main"));
    let files = fast_temp_dir();
    let write = |name: &str, text: &str| std::fs::write(files.path().join(name), text).unwrap();
    let path = |name: &str| {
        (
            name.to_owned(),
            files.path().join(name).display().to_string(),
        )
    };
    write(KEY, "ser.main");
    write(TOKEN, "old");
    let variables = Variables::from([path(KEY), path(TOKEN)]);
    let store = shared.replica(0);
    let (service, wanted) = spawn_replica_of_files(store, &stand_in, &clock, &variables).await;
    shared.give(0).await;
    let everybody = people("p", 5);
    add(&service, "c", &everybody).await;
    service.settled_in_time().await;
    service.canary_is_done().await;
    shared.end().await;

    write(KEY, "ser.other");
    write(TOKEN, "new");
    wanted.notify_one();
    let path = "/api/v1/dead-letters";
    let taken = async || service.get_as("new", path).await.status == 200;
    service.time_passes("taken", taken).await;
    let before = stand_in.identities_of("ser.main");
    let more = people("q", 5);
    add(&service, "c", &more).await;
    shared.give(0).await;
    let everybody = [everybody, more].concat();
    let all_there = async || {
        let there = stand_in.identities_of("ser.other");
        let told = |person| there.get(person)?.get(&key("c"));
        everybody
            .iter()
            .all(|person| told(person) == Some(&json!(true)))
    };
    service.time_passes("all there", all_there).await;
    let after = stand_in.identities_of("ser.main");
    assert_eq!(after, before, "not even a canary");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operators_pause_at_a_standby_reaches_the_leader() {
    let replicas = Replicas::led(|_| {}).await;
    let [a, b] = &replicas.both;
    let everybody = people("p", 5);
    b.order("/api/v1/destinations/default/pause").await;
    let is_paused =
        async |service: &Service| status(service).await["destinations"][0]["paused"] == true;
    eventually("paused", async || is_paused(a).await.then_some(())).await;
    add(a, "c", &everybody).await;
    a.folded().await;
    assert_eq!(replicas.calls("c"), 0);
    b.order("/api/v1/destinations/default/resume").await;
    a.settled().await;
    assert!(replicas.has_all("c", &everybody));

    // Whoever leads next knows of it before the first call, whoever was told.
    replicas.shared.end().await;
    a.order("/api/v1/destinations/default/pause").await;
    add(a, "d", &everybody).await;
    replicas.shared.give(1).await;
    replicas.leads(1).await;
    eventually("folded", async || {
        let cohorts = b.cohorts().await;
        (cohorts.len() == 2 && cohorts[1]["members"] == 5).then_some(())
    })
    .await;
    assert!(is_paused(b).await);
    assert_eq!(replicas.calls("d"), 0);
    // And whoever does not lead is told within seconds.
    b.order("/api/v1/destinations/default/resume").await;
    a.time_passes("told", async || !is_paused(a).await).await;
    b.settled_in_time().await;
    replicas.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operators_order_at_a_standby_is_carried_out_by_the_leader() {
    let replicas = Replicas::led(|setup| setup.destination.max_in_flight = 1).await;
    let [a, b] = &replicas.both;
    add(a, "c", &people("p", 5)).await;
    a.settled().await;
    // The clock stands still, so that the second order meets no recall.
    for calls in [10, 15] {
        b.order("/api/v1/cohorts/default/c/resync").await;
        eventually("written again", async || {
            (replicas.calls("c") == calls).then_some(())
        })
        .await;
        a.settled().await;
    }

    // What was claimed before a pause is given back.
    a.time_passes("a while", async || a.elapsed_ms() > 20_000)
        .await;
    hold(&replicas.stand_in);
    add(a, "d", &people("q", 5)).await;
    all_callers_call(a).await;
    let before = replicas.shared.given_back();
    b.order("/api/v1/cohorts/default/d/pause").await;
    eventually("given back", async || {
        (replicas.shared.given_back() > before).then_some(())
    })
    .await;
    release(&replicas.stand_in);
    no_call_is_under_way(a).await;
    assert_eq!(replicas.calls("d"), 1);
    b.order("/api/v1/cohorts/default/d/resume").await;
    a.settled_in_time().await;
    assert_eq!(replicas.calls("d"), 5);
    replicas.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_term_outlives_a_database_that_was_away() {
    let replicas = Replicas::led(|_| {}).await;
    let [a, _] = &replicas.both;
    replicas.shared.is_away(true);
    assert_eq!(a.get("/readyz").await.status, 503);
    let page = page_without_info("add_members", "c", &["ann"]);
    assert_eq!(a.post(page.to_string()).await.status, 503);
    replicas.clock.advance(Duration::from_secs(30));
    replicas.shared.is_away(false);
    add(a, "c", &people("p", 5)).await;
    a.settled_in_time().await;
    assert!(replicas.has_all("c", &people("p", 5)));
    assert!(leading(a).await);
    replicas.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_taken_ends_the_process_that_leads() {
    let replicas = Replicas::led(|_| {}).await;
    replicas.shared.take_key();
    replicas.shared.give(1).await;
    let [a, b] = replicas.both;
    let failed = b.failed().await;
    assert!(
        failed.contains("\"power_users\" cannot be given"),
        "{failed}"
    );
    assert_eq!(a.get("/readyz").await.status, 200);
    a.stop().await;
}
