//! Cohorts that are retired, and people who are forgotten.

use cohort_bridge::cohort::{Action, OnLeave};
use cohort_bridge::store::{CohortStanding, Outcome, Settlement, Store};
use serde_json::json;

use crate::support::bench::{Bench, HALF_AN_HOUR, page, set, written};
use crate::support::process::{Process, Variables, run, serve_variables};
use crate::support::service::{Answer, PASSWORD, USER, client, spawn_plain_app, stand_in};
use crate::support::{fast_temp_dir, pages};

const KEY: &str = "mixpanel_cohort_c";

/// A cohort of ann and bob, delivered.
async fn delivered() -> Bench {
    let mut bench = Bench::new();
    bench.full("c", "base", &["ann", "bob"]).await;
    bench.deliver().await;
    bench
}

async fn standing(bench: &Bench) -> CohortStanding {
    bench.cohort("c").await.standing
}

/// As [`delivered`], and then retired and forgotten.
async fn retired() -> Bench {
    let mut bench = delivered().await;
    assert_eq!(bench.retire("c").await, Some(2));
    bench.fold().await;
    bench.deliver().await;
    bench.fold().await;
    assert_eq!(standing(&bench).await, CohortStanding::Retired);
    bench
}

#[tokio::test]
async fn every_member_of_a_retired_cohort_leaves_and_is_forgotten() {
    let mut bench = delivered().await;
    assert_eq!(bench.retire("c").await, Some(2));
    assert_eq!(bench.retire("unknown").await, None);
    bench.fold().await;
    assert_eq!(standing(&bench).await, CohortStanding::Retiring);
    bench.deliver().await;
    assert_eq!(bench.holding(KEY, false), set(&["ann", "bob"]));
    assert_eq!(bench.holding(KEY, true), set(&[]));
    bench.fold().await;
    let cohort = bench.cohort("c").await;
    assert_eq!(cohort.standing, CohortStanding::Retired);
    assert_eq!((cohort.members, cohort.left), (0, 0));
    assert_eq!(&*cohort.trait_key, KEY);
    assert_eq!(bench.rows("member").await, 0);
    assert_eq!(bench.rows("holder").await, 0);
}

#[tokio::test]
async fn differences_of_a_retired_cohort_change_nothing() {
    let mut bench = delivered().await;
    bench.retire("c").await;
    let sessions = [(Action::AddMembers, "a"), (Action::RemoveMembers, "r")];
    for (action, session) in sessions {
        bench
            .append(page(action, "c", session, (1, 1), &["sue"]))
            .await;
    }
    bench.fold().await;
    bench.deliver().await;
    bench.fold().await;
    bench.clock.advance(HALF_AN_HOUR);
    bench
        .take(page(Action::AddMembers, "c", "a2", (1, 1), &["ann"]))
        .await;
    assert_eq!(bench.deliver().await, []);
    assert_eq!(bench.holding(KEY, true), set(&[]));
    assert_eq!(standing(&bench).await, CohortStanding::Retired);
}

#[tokio::test]
async fn a_whole_full_sync_brings_a_cohort_back_under_its_key() {
    let mut bench = retired().await;
    let first = page(Action::Members, "c", "back", (1, 2), &["ann"]);
    bench.take(first).await;
    assert_eq!(standing(&bench).await, CohortStanding::Retired);
    let second = page(Action::Members, "c", "back", (2, 2), &["sue"]);
    bench.take(second).await;
    bench.deliver().await;
    let cohort = bench.cohort("c").await;
    assert_eq!(cohort.standing, CohortStanding::Followed);
    assert_eq!((cohort.members, &*cohort.trait_key), (2, KEY));
    assert_eq!(bench.holding(KEY, true), set(&["ann", "sue"]));
    assert_eq!(bench.holding(KEY, false), set(&["bob"]));
    bench.clock.advance(HALF_AN_HOUR);
    bench
        .take(page(Action::AddMembers, "c", "a", (1, 1), &["tom"]))
        .await;
    bench.deliver().await;
    assert_eq!(bench.holding(KEY, true), set(&["ann", "sue", "tom"]));
}

#[tokio::test]
async fn a_full_sync_that_comes_while_everybody_leaves_wins() {
    let mut bench = delivered().await;
    bench.retire("c").await;
    bench.fold().await;
    assert_eq!(standing(&bench).await, CohortStanding::Retiring);
    bench.full("c", "back", &["ann", "sue"]).await;
    bench.deliver().await;
    bench.fold().await;
    assert_eq!(standing(&bench).await, CohortStanding::Followed);
    assert_eq!(bench.cohort("c").await.members, 2);
    assert_eq!(bench.holding(KEY, true), set(&["ann", "sue"]));
    assert_eq!(bench.holding(KEY, false), set(&["bob"]));
}

#[tokio::test]
async fn a_cohort_that_comes_back_while_a_late_write_may_land_is_taken_in() {
    let mut bench = delivered().await;
    bench.retire("c").await;
    bench.fold().await;
    let claims = bench.exchange(Vec::new()).await.claims;
    claims.iter().for_each(|claim| bench.hear(claim));
    let outcome = Outcome::Written {
        may_land_late: true,
    };
    let watched = claims.into_iter().map(|claim| Settlement {
        claim,
        outcome: outcome.clone(),
    });
    bench.exchange(watched.collect()).await;
    bench.fold().await;
    bench.full("c", "back", &["ann"]).await;
    bench.deliver().await;
    bench.clock.advance(HALF_AN_HOUR);
    bench.deliver().await;
    assert_eq!(bench.holding(KEY, true), set(&["ann"]));
    assert_eq!(bench.holding(KEY, false), set(&["bob"]));
    bench.fold().await;
    bench.retire("c").await;
    bench.fold().await;
    bench.deliver().await;
    bench.fold().await;
    assert_eq!(standing(&bench).await, CohortStanding::Retired);
    assert_eq!(bench.rows("member").await, 0);
}

#[tokio::test]
async fn a_cohort_that_comes_back_when_half_of_it_is_forgotten_counts_right() {
    let mut bench = Bench::new();
    bench
        .full("c", "base", &["ann", "bob", "cyd", "dan", "eve"])
        .await;
    bench.deliver().await;
    bench.retire("c").await;
    bench.fold().await;
    bench.deliver().await;
    bench.store().assemble(2, 2, bench.now()).await.unwrap();
    assert_eq!(standing(&bench).await, CohortStanding::Retiring);
    bench.full("c", "back", &["ann", "eve"]).await;
    let cohort = bench.cohort("c").await;
    assert_eq!((cohort.members, cohort.left), (2, 2));
}

#[tokio::test]
async fn nothing_names_a_forgotten_person_any_more() {
    let mut bench = Bench::new();
    let people = &["ann", "zelda-of-hyrule"];
    bench.full("c", "base", people).await;
    // A dead letter in one cohort, a pending change in another, a held page and a waiting one.
    let claims = bench.exchange(Vec::new()).await.claims;
    let outcome = || Outcome::Dead {
        may_land_late: false,
        error: "400".into(),
    };
    let dead = claims.into_iter().map(|claim| Settlement {
        claim,
        outcome: outcome(),
    });
    bench.exchange(dead.collect()).await;
    bench.full("d", "base", people).await;
    bench
        .take(page(Action::AddMembers, "c", "a", (1, 2), people))
        .await;
    bench
        .append(page(Action::AddMembers, "d", "a", (1, 2), people))
        .await;
    assert!(bench.mentions("zelda-of-hyrule").await);

    let forget = bench.store().forget("zelda-of-hyrule", false, bench.now());
    assert_eq!(forget.await.unwrap(), 2);
    bench.fold().await;
    assert!(!bench.mentions("zelda-of-hyrule").await);
    assert!(bench.mentions("ann").await);
    for cohort in ["c", "d"] {
        assert_eq!(bench.cohort(cohort).await.members, 1);
    }
    let letters = bench.store().dead_letters(10).await.unwrap();
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0].identifier, "ann");
    let calls = bench.deliver().await;
    assert!(
        calls.iter().all(|call| &*call.identifier == "ann"),
        "{calls:?}"
    );
}

#[tokio::test]
async fn to_forget_somebody_without_the_traits_takes_no_call() {
    let mut bench = delivered().await;
    let forget = bench.store().forget("ann", false, bench.now());
    assert_eq!(forget.await.unwrap(), 1);
    bench.fold().await;
    assert_eq!(bench.deliver().await, []);
    assert_eq!(bench.holding(KEY, true), set(&["ann", "bob"]));
    assert!(bench.store().member("ann").await.unwrap().is_empty());
}

#[tokio::test]
async fn to_forget_somebody_with_the_traits_takes_them_away_whatever_leavers_get() {
    for on_leave in [OnLeave::False, OnLeave::Delete] {
        let mut bench = Bench::with(|_, destination| destination.on_leave = on_leave);
        bench.full("c", "base", &["ann", "bob"]).await;
        bench.deliver().await;
        bench
            .store()
            .forget("ann", true, bench.now())
            .await
            .unwrap();
        bench.fold().await;
        assert_eq!(bench.deliver().await.len(), 1);
        assert!(!bench.flagsmith[KEY].contains_key("ann"));
        assert_eq!(bench.holding(KEY, true), set(&["bob"]));
        assert_eq!(bench.cohort("c").await.destinations[0].pending, 0);
        bench.prove().await;
        assert!(!bench.mentions("ann").await);
    }
}

#[tokio::test]
async fn somebody_forgotten_during_a_call_has_no_trait_in_the_end() {
    let mut bench = Bench::new();
    bench.full("c", "base", &["ann", "bob"]).await;
    let claims = bench.exchange(Vec::new()).await.claims;
    bench
        .store()
        .forget("ann", true, bench.now())
        .await
        .unwrap();
    bench.fold().await;
    claims.iter().for_each(|claim| bench.hear(claim));
    let settled = bench
        .exchange(claims.into_iter().map(written).collect())
        .await;
    assert_eq!(settled.claims.len(), 1, "the erasure is due at once");
    for claim in settled.claims {
        bench.hear(&claim);
        bench.exchange(vec![written(claim)]).await;
    }
    assert!(!bench.flagsmith[KEY].contains_key("ann"));
    assert_eq!(bench.holding(KEY, true), set(&["bob"]));
    assert_eq!(bench.deliver().await, []);
    bench.prove().await;
    assert!(!bench.mentions("ann").await);
}

#[tokio::test]
async fn somebody_forgotten_without_the_traits_during_a_call_is_not_called_again() {
    let mut bench = Bench::new();
    bench.full("c", "base", &["ann"]).await;
    let claims = bench.exchange(Vec::new()).await.claims;
    bench
        .store()
        .forget("ann", false, bench.now())
        .await
        .unwrap();
    bench.fold().await;
    bench
        .exchange(claims.into_iter().map(written).collect())
        .await;
    assert_eq!(bench.deliver().await, []);
    assert_eq!(bench.cohort("c").await.destinations[0].pending, 0);
    assert!(!bench.mentions("ann").await);
}

#[tokio::test]
async fn somebody_forgotten_comes_back_when_mixpanel_names_them() {
    for is_delivered in [true, false] {
        let mut bench = delivered().await;
        bench
            .store()
            .forget("ann", true, bench.now())
            .await
            .unwrap();
        bench.fold().await;
        if is_delivered {
            bench.deliver().await;
        }
        bench
            .take(page(Action::AddMembers, "c", "a", (1, 1), &["ann"]))
            .await;
        bench.deliver().await;
        assert_eq!(bench.holding(KEY, true), set(&["ann", "bob"]));
        assert_eq!(bench.cohort("c").await.members, 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_admin_api_retires_a_cohort_and_forgets_a_person() {
    let service = spawn_plain_app().await;
    for cohort in ["c", "d"] {
        let page = pages::page("members", cohort, "s", (1, 1), &["ann", "bob"]);
        service.send(&page).await;
    }
    service.settled().await;
    service.order("/api/v1/cohorts/default/c/retire").await;
    service
        .time_passes("retired", async || {
            service.cohorts().await[0]["state"] == "retired"
        })
        .await;
    assert_eq!(service.stored("ann", KEY), Some(false));
    assert_eq!(service.stored("ann", &pages::key("d")), Some(true));

    let url = format!("http://{}/api/v1/members/bob?traits=delete", service.admin);
    let answer = Answer::of(client().delete(url).send().await.unwrap()).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    service
        .time_passes("forgotten", async || {
            service.stored("bob", &pages::key("d")).is_none()
        })
        .await;
    assert_eq!(service.stored("ann", &pages::key("d")), Some(true));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_retires_a_cohort_and_forgets_a_person() {
    let folder = fast_temp_dir();
    let stand_in = stand_in();
    let variables = serve_variables(&folder.path().join("ledger.db"), &stand_in.url());
    let process = Process::serve(&variables).await;
    for cohort in ["c", "d"] {
        let page = pages::page("members", cohort, "s", (1, 1), &["ann", "bob"]);
        let request = client()
            .post(process.webhook_url())
            .basic_auth(USER, Some(PASSWORD))
            .body(page.to_string());
        assert_eq!(request.send().await.unwrap().status(), 200);
    }
    process.settled().await;
    let operate = |arguments: &[&str]| {
        let url = ("COHORT_BRIDGE_ADMIN_URL".to_owned(), process.admin_url("/"));
        let ended = run(arguments, &Variables::from([url]));
        assert_eq!(ended.code, Some(0), "{ended:?}");
    };
    let value = |person: &str, cohort: &str| {
        let traits = stand_in.identity(person)?;
        traits.get(&pages::key(cohort)).cloned()
    };
    operate(&["retire", "default", "c"]);
    crate::support::eventually("ann left", async || {
        (value("ann", "c") == Some(json!(false))).then_some(())
    })
    .await;
    operate(&["forget", "bob", "--delete-traits"]);
    crate::support::eventually("bob has no trait", async || {
        value("bob", "d").is_none().then_some(())
    })
    .await;
    assert_eq!(value("ann", "d"), Some(json!(true)));
}
