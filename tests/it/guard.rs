//! Sessions that take the trait from more people than the settings allow wait for a person.

use cohort_bridge::cohort::Action;
use cohort_bridge::fold::Step;
use cohort_bridge::guard::RemovalGuard;
use cohort_bridge::store::{HoldDecision, Store};
use serde_json::{Value, json};

use crate::support::ledger::{Ledger, START, member};
use crate::support::pages::{key, page};
use crate::support::service::{client, spawn_app, stand_in};

const EVERYBODY: [&str; 7] = ["a", "b", "c", "d", "e", "f", "new"];

fn members(names: &str) -> Vec<Value> {
    names.split_whitespace().map(member).collect()
}

/// A ledger that knows a to f as members, and holds more than two removals.
async fn guarded() -> Ledger {
    let ledger = Ledger::new(Default::default(), Some("2"));
    ledger
        .session("members", "base", &members("a b c d e f"))
        .await;
    ledger
}

/// As [`guarded`]; then a full sync left out d, e and f, and is held.
async fn holding() -> Ledger {
    let ledger = guarded().await;
    ledger
        .session("members", "cut", &members("a b c new"))
        .await;
    assert_eq!(ledger.held().await.unwrap().0, 3);
    ledger
}

async fn with_trait(ledger: &Ledger) -> String {
    ledger.with_trait(&EVERYBODY).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_held_full_sync_adds_and_takes_from_nobody() {
    let ledger = holding().await;
    assert_eq!(with_trait(&ledger).await, "a b c d e f new");
    let at = START + 2 * 1_800_000;
    assert_eq!(ledger.held().await, Some((3, "cut".into(), at)));
    let cohort = ledger.cohort().await;
    assert_eq!((cohort.members, cohort.left), (4, 0));
    assert_eq!(cohort.destinations[0].pending, 0);
    assert_eq!(cohort.session.unwrap().action, Action::Members);
    let membership = ledger.store().member("d").await.unwrap().remove(0);
    assert!(!membership.member, "Mixpanel says that d left");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_sync_at_the_limit_is_not_held() {
    let ledger = guarded().await;
    ledger.session("members", "cut", &members("a b c d")).await;
    assert_eq!(ledger.held().await, None);
    assert_eq!(with_trait(&ledger).await, "a b c d");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_approved_leaves() {
    let ledger = holding().await;
    assert_eq!(ledger.decide(HoldDecision::Approve).await, Some(3));
    assert_eq!(with_trait(&ledger).await, "a b c new");
    assert_eq!(ledger.trait_of("d").await, Some(false));
    assert_eq!(ledger.held().await, None);
    let cohort = ledger.cohort().await;
    assert_eq!((cohort.members, cohort.left), (4, 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_discarded_stays_until_the_next_full_sync() {
    let ledger = holding().await;
    assert_eq!(ledger.decide(HoldDecision::Discard).await, Some(3));
    assert_eq!(with_trait(&ledger).await, "a b c d e f new");
    assert_eq!(ledger.held().await, None);
    // Nothing is held any more, so nothing can be approved.
    assert_eq!(ledger.decide(HoldDecision::Approve).await, Some(0));
    assert_eq!(with_trait(&ledger).await, "a b c d e f new");

    ledger
        .session("members", "again", &members("a b c new"))
        .await;
    assert_eq!(
        ledger
            .held()
            .await
            .map(|(held, session, _)| (held, session)),
        Some((3, "again".into()))
    );
    ledger.decide(HoldDecision::Discard).await;
    ledger
        .session("members", "fewer", &members("a b c d new"))
        .await;
    assert_eq!(ledger.held().await, None);
    assert_eq!(with_trait(&ledger).await, "a b c d new");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_full_sync_makes_a_hold_moot() {
    let ledger = holding().await;
    ledger
        .session("members", "all", &members("a b c d e f new"))
        .await;
    assert_eq!(ledger.held().await, None);
    assert_eq!(ledger.cohort().await.members, 7);
    assert_eq!(ledger.decide(HoldDecision::Approve).await, Some(0));
    assert_eq!(with_trait(&ledger).await, "a b c d e f new");

    let ledger = holding().await;
    ledger
        .session("members", "most", &members("a b c d new"))
        .await;
    assert_eq!(ledger.held().await, None);
    assert_eq!(with_trait(&ledger).await, "a b c d new");

    // A hold after it is as old as itself.
    ledger.session("members", "later", &members("a")).await;
    let at = START + 4 * 1_800_000;
    assert_eq!(ledger.held().await, Some((4, "later".into(), at)));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_added_again_is_held_no_more() {
    let ledger = holding().await;
    ledger.run("back", &members("d"), &[]).await;
    assert_eq!(ledger.held().await.unwrap().0, 2);
    assert_eq!(ledger.decide(HoldDecision::Approve).await, Some(2));
    assert_eq!(with_trait(&ledger).await, "a b c d new");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_full_sync_is_held_whatever_the_limit() {
    let ledger = Ledger::new(Default::default(), Some("1000,30%"));
    ledger.session("members", "nobody", &[]).await;
    assert_eq!(ledger.held().await, None, "there is nobody to hold");
    ledger.session("members", "base", &members("a")).await;
    ledger.session("members", "empty", &[]).await;
    assert_eq!(ledger.held().await.unwrap().0, 1);
    assert_eq!(with_trait(&ledger).await, "a");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_half_is_held_above_the_limit_alone() {
    let ledger = guarded().await;
    ledger.run("two", &[], &members("a b")).await;
    assert_eq!(ledger.held().await, None);
    assert_eq!(with_trait(&ledger).await, "c d e f");
    ledger.run("three", &[], &members("c d e")).await;
    assert_eq!(
        ledger
            .held()
            .await
            .map(|(held, session, _)| (held, session)),
        Some((3, "three".into()))
    );
    assert_eq!(with_trait(&ledger).await, "c d e f");
    ledger.decide(HoldDecision::Approve).await;
    assert_eq!(with_trait(&ledger).await, "f");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_session_that_would_remove_them_is_named() {
    let ledger = holding().await;
    let (_, _, since) = ledger.held().await.unwrap();
    ledger
        .session("members", "again", &members("a b c new"))
        .await;
    assert_eq!(ledger.held().await, Some((3, "again".into(), since)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decision_on_half_a_session_is_one_on_all_of_it() {
    for (decision, with, left) in [
        (HoldDecision::Approve, "a c e new", 3),
        (HoldDecision::Discard, "a b c d e f new", 0),
    ] {
        let ledger = guarded().await;
        ledger
            .page("members", "cut", (1, 1), &members("a c e new"))
            .await;
        let mut fold = ledger.new_fold().in_pieces_of(2);
        while ledger.held().await.is_none() {
            fold.step().await.unwrap();
        }
        drop(fold);
        assert_eq!(ledger.decide(decision).await, Some(1), "{decision:?}");
        assert_eq!(with_trait(&ledger).await, with, "{decision:?}");
        assert_eq!(ledger.held().await, None, "{decision:?}");
        assert_eq!(ledger.cohort().await.left, left, "{decision:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_change_nothing_about_what_is_held() {
    let everybody: Vec<String> = (0..10_000)
        .map(|number| format!("usr_{number:05}"))
        .collect();
    let those = |names: &[String]| names.iter().map(|name| member(name)).collect::<Vec<_>>();
    // Half of the people go: all are held, though each piece of them alone is below the limit.
    let mut ledger = Ledger::new(Default::default(), Some("4900"));
    ledger.session("members", "base", &those(&everybody)).await;
    ledger
        .page("members", "cut", (1, 1), &those(&everybody[..5_000]))
        .await;
    let mut kills = 0;
    loop {
        let mut fold = ledger.new_fold();
        let mut steps = 0;
        while steps < 3 && fold.step().await.unwrap() != Step::Idle {
            steps += 1;
        }
        drop(fold);
        if steps < 3 {
            break;
        }
        ledger.restart();
        kills += 1;
        assert_eq!(ledger.cohort().await.left, 0, "after kill {kills}");
    }
    assert!(kills > 1, "it is applied in pieces");
    assert_eq!(ledger.held().await.unwrap().0, 5_000);
    let source = "default".into();
    let approve = HoldDecision::Approve;
    ledger
        .store()
        .decide_held(&source, "7", approve, START)
        .await
        .unwrap();
    assert!(ledger.fold_with_kills(1).await > 1, "so is the decision");
    assert_eq!(ledger.held().await, None);
    let cohort = ledger.cohort().await;
    assert_eq!((cohort.members, cohort.left), (5_000, 5_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_sees_what_is_held_and_approves() {
    let service = spawn_app(stand_in(), |setup| {
        setup.source.hold_removals_above = Some(RemovalGuard::parse("1").unwrap());
    })
    .await;
    let full = |session, people: &[&str]| page("members", "c", session, (1, 1), people);
    service.send(&full("base", &["ann", "bob", "cyd"])).await;
    service.settled().await;
    service.send(&full("cut", &["ann"])).await;
    service.settled().await;
    let path = "/api/v1/cohorts/default/c/held-removals";
    let held = service.get(path).await.json();
    assert_eq!(
        (&held["held"], &held["session"]),
        (&json!(2), &json!("cut"))
    );
    assert_eq!(service.stored("bob", &key("c")), Some(true));
    let metric = |count| {
        format!("cohort_bridge_held_removals{{cohort_id=\"c\",source=\"default\"}} {count}")
    };
    let metrics = service.get("/metrics").await.text;
    assert!(metrics.contains(&metric(2)), "{metrics}");

    let url = format!("http://{}{path}", service.admin);
    let decided = client()
        .post(url)
        .json(&json!({"decision": "approve"}))
        .send()
        .await
        .unwrap();
    assert_eq!(
        decided.json::<Value>().await.unwrap(),
        json!({"decision": "approve", "held": 2})
    );
    crate::support::eventually("the traits go", async || {
        let gone = ["bob", "cyd"].map(|person| service.stored(person, &key("c")));
        (gone == [Some(false); 2]).then_some(())
    })
    .await;
    assert_eq!(service.stored("ann", &key("c")), Some(true));
    assert_eq!(service.get(path).await.json()["held"], 0);
    let metrics = service.get("/metrics").await.text;
    assert!(metrics.contains(&metric(0)), "{metrics}");
    service.stop().await;
}
