//! Which trait stands for which cohort, and what happens when the settings say otherwise.

use std::time::Duration;

use cohort_bridge::cohort::{Action, OnLeave, Target};
use cohort_bridge::flagsmith::CANARY;
use cohort_bridge::store::{Claim, CohortStanding, Outcome, Settlement, Store, StoreError};
use cohort_bridge::trait_key::{ExplicitKey, TraitKeyTemplate};
use serde_json::json;

use crate::support::bench::{Bench, changes, page, set, written};
use crate::support::fast_temp_dir;
use crate::support::pages;
use crate::support::process::{Process, run, serve_variables};
use crate::support::service::{PASSWORD, USER, client, stand_in};

fn give(cohort: &str, key: &str) -> ExplicitKey {
    ExplicitKey {
        project_id: None,
        cohort_id: cohort.into(),
        trait_key: key.into(),
    }
}

/// A ledger of which the settings give cohorts these keys.
fn bench_of(keys: &[(&str, &str)]) -> Bench {
    Bench::with(|source, _| source.explicit_keys = explicit(keys))
}

fn explicit(keys: &[(&str, &str)]) -> Vec<ExplicitKey> {
    keys.iter().map(|(cohort, key)| give(cohort, key)).collect()
}

/// Opens the ledger again with these keys in the settings.
async fn adopt(bench: &mut Bench, keys: &[(&str, &str)]) -> Result<(), StoreError> {
    bench.source.explicit_keys = explicit(keys);
    bench.reopen().await;
    bench.store().adopt_keys(bench.now()).await
}

async fn key_of(bench: &Bench, cohort: &str) -> String {
    bench.cohort(cohort).await.trait_key.to_string()
}

fn callees(calls: &[Claim]) -> Vec<&str> {
    calls.iter().map(|call| &*call.identifier).collect()
}

#[tokio::test]
async fn a_new_cohort_gets_the_key_that_the_settings_give() {
    let mut bench = bench_of(&[("c", "vip")]);
    bench.store().adopt_keys(bench.now()).await.unwrap();
    bench.full("c", "s", &["ann"]).await;
    assert_eq!(key_of(&bench, "c").await, "vip");
    bench.deliver().await;
    assert_eq!(bench.holding("vip", true), set(&["ann"]));
}

#[tokio::test]
async fn a_made_up_key_is_never_one_of_the_settings_nor_the_canarys() {
    let bench = Bench::with(|source, _| {
        source.trait_key = TraitKeyTemplate::parse("cohort_bridge_{name}").unwrap();
        source.explicit_keys = explicit(&[("later", "cohort_bridge_vip")]);
    });
    bench.full("vip", "s", &["ann"]).await;
    assert_eq!(key_of(&bench, "vip").await, "cohort_bridge_vip_vip");
    bench.full("later", "s", &["ann"]).await;
    assert_eq!(key_of(&bench, "later").await, "cohort_bridge_vip");
    bench.full("canary", "s", &["ann"]).await;
    assert_ne!(key_of(&bench, "canary").await, CANARY);
}

#[tokio::test]
async fn another_key_takes_the_old_ones_place_in_one_call_a_person() {
    let mut bench = Bench::new();
    bench.full("c", "s1", &["ann", "bob", "old"]).await;
    bench.full("c", "s2", &["ann", "bob"]).await;
    bench.deliver().await;
    adopt(&mut bench, &[("c", "vip")]).await.unwrap();
    assert_eq!(key_of(&bench, "c").await, "vip");
    let calls = bench.deliver().await;
    let both = [
        ("mixpanel_cohort_c".to_owned(), Target::False),
        ("vip".to_owned(), Target::True),
    ];
    for person in ["ann", "bob"] {
        let calls: Vec<_> = calls
            .iter()
            .filter(|call| &*call.identifier == person)
            .collect();
        assert_eq!(calls.len(), 1, "{person}");
        assert_eq!(changes(calls[0]), both.clone().into(), "{person}");
    }
    assert_eq!(bench.holding("vip", true), set(&["ann", "bob"]));
    assert_eq!(bench.holding("mixpanel_cohort_c", true), set(&[]));

    // The cohort goes on under the new key.
    bench.full("c", "s3", &["ann"]).await;
    bench.deliver().await;
    assert_eq!(bench.holding("vip", true), set(&["ann"]));
    assert_eq!(bench.holding("mixpanel_cohort_c", true), set(&[]));
}

#[tokio::test]
async fn what_is_left_to_do_for_a_former_key_is_its_cohorts() {
    let mut bench = Bench::new();
    bench.full("c", "s", &["ann", "bob"]).await;
    bench.deliver().await;
    adopt(&mut bench, &[("c", "vip")]).await.unwrap();
    let counts = async |bench: &Bench| {
        let delivery = bench.cohort("c").await.destinations.remove(0);
        (delivery.pending, delivery.dead, delivery.written)
    };
    assert_eq!(counts(&bench).await, (4, 0, 0));
    // The new key is taken, the old one never will be.
    let claims = bench.exchange(Vec::new()).await.claims;
    let (old, new): (Vec<_>, Vec<_>) = claims
        .into_iter()
        .flat_map(|claim| {
            claim.traits.clone().into_iter().map(move |claimed| Claim {
                traits: vec![claimed],
                ..claim.clone()
            })
        })
        .partition(|claim| &*claim.traits[0].trait_key == "mixpanel_cohort_c");
    bench.exchange(new.into_iter().map(written).collect()).await;
    assert_eq!(counts(&bench).await, (2, 0, 2));
    let dead = old.into_iter().map(|claim| Settlement {
        claim,
        outcome: Outcome::Dead {
            may_land_late: false,
            error: "400".into(),
        },
    });
    bench.exchange(dead.collect()).await;
    assert_eq!(counts(&bench).await, (0, 2, 2));
    let letters = bench.store().dead_letters(10).await.unwrap();
    assert_eq!(letters[0].cohort_id, "c");

    // Whoever takes the key over has the rest of it.
    adopt(&mut bench, &[("c", "vip"), ("d", "mixpanel_cohort_c")])
        .await
        .unwrap();
    bench.full("d", "s", &["sue"]).await;
    assert_eq!(counts(&bench).await, (0, 0, 2));
    let delivery = bench.cohort("d").await.destinations.remove(0);
    assert_eq!((delivery.pending, delivery.dead), (1, 2));
}

#[tokio::test]
async fn where_leavers_lose_the_trait_so_do_those_of_the_old_key() {
    let mut bench = Bench::with(|_, destination| destination.on_leave = OnLeave::Delete);
    bench.full("c", "s", &["ann"]).await;
    bench.deliver().await;
    adopt(&mut bench, &[("c", "vip")]).await.unwrap();
    bench.deliver().await;
    assert_eq!(bench.holding("vip", true), set(&["ann"]));
    assert!(bench.flagsmith["mixpanel_cohort_c"].is_empty());
}

#[tokio::test]
async fn a_cohort_is_not_retired_before_its_former_key_is_gone() {
    let mut bench = Bench::with(|_, destination| destination.on_leave = OnLeave::Delete);
    bench.full("c", "s", &["ann"]).await;
    bench.deliver().await;
    adopt(&mut bench, &[("c", "vip")]).await.unwrap();
    bench.retire("c").await;
    bench.fold().await;
    let cohort = bench.cohort("c").await;
    assert_eq!(cohort.destinations[0].pending, 1);
    assert_eq!(cohort.standing, CohortStanding::Retiring);
    bench.deliver().await;
    bench.fold().await;
    assert_eq!(bench.cohort("c").await.standing, CohortStanding::Retired);
}

#[tokio::test]
async fn a_key_that_changes_before_all_is_delivered_leaves_nobody_behind() {
    let mut bench = Bench::new();
    bench.full("c", "s", &["ann", "bob"]).await;
    let claimed = bench.exchange(Vec::new()).await.claims;
    // Both calls land, and nobody hears of it.
    claimed.iter().for_each(|claim| bench.hear(claim));
    adopt(&mut bench, &[("c", "vip")]).await.unwrap();
    bench.deliver().await;
    assert_eq!(bench.holding("vip", true), set(&["ann", "bob"]));
    assert_eq!(bench.holding("mixpanel_cohort_c", true), set(&[]));
}

#[tokio::test]
async fn two_cohorts_swap_keys_and_who_is_in_both_is_not_called() {
    let mut bench = bench_of(&[("c", "one"), ("d", "two")]);
    bench.full("c", "s", &["ann", "both"]).await;
    bench.full("d", "s", &["bob", "both"]).await;
    bench.deliver().await;
    adopt(&mut bench, &[("c", "two"), ("d", "one")])
        .await
        .unwrap();
    assert_eq!(key_of(&bench, "c").await, "two");
    assert_eq!(key_of(&bench, "d").await, "one");
    let calls = bench.deliver().await;
    assert_eq!(callees(&calls), ["ann", "bob"]);
    assert_eq!(bench.holding("one", true), set(&["bob", "both"]));
    assert_eq!(bench.holding("two", true), set(&["ann", "both"]));
}

#[tokio::test]
async fn who_joins_before_the_key_of_their_other_cohort_is_gone_gets_it() {
    let mut bench = bench_of(&[("c", "one"), ("d", "two")]);
    bench.full("c", "s", &["ann", "old"]).await;
    bench.full("d", "s", &["bob"]).await;
    bench.deliver().await;
    adopt(&mut bench, &[("c", "two"), ("d", "one")])
        .await
        .unwrap();
    bench.full("d", "t", &["ann", "bob"]).await;
    bench.deliver().await;
    assert_eq!(bench.holding("one", true), set(&["ann", "bob"]));
    assert_eq!(bench.holding("two", true), set(&["ann", "old"]));

    // So for a cohort that is first heard of after another one lost the key.
    adopt(&mut bench, &[("c", "three"), ("e", "two")])
        .await
        .unwrap();
    bench.full("e", "s", &["ann", "eve"]).await;
    bench.deliver().await;
    assert_eq!(bench.holding("two", true), set(&["ann", "eve"]));
    assert_eq!(bench.holding("three", true), set(&["ann", "old"]));
}

#[tokio::test]
async fn a_move_that_is_killed_again_and_again_ends_right() {
    let mut bench = Bench::new();
    let everybody = pages::people("usr", 5_000);
    let everybody: Vec<_> = everybody.iter().map(String::as_str).collect();
    bench.full("c", "s", &everybody).await;
    bench.deliver().await;
    bench.source.explicit_keys = explicit(&[("c", "vip")]);
    for kill in 1..=5 {
        bench.reopen().await;
        // Polled once: one piece is ordered, and nobody waits for it.
        let now = bench.now();
        let piece = tokio::time::timeout(Duration::ZERO, bench.store().adopt_keys(now));
        assert!(piece.await.is_err(), "more is to be done");
        bench.store().ready().await.unwrap();
        let key = key_of(&bench, "c").await;
        assert_eq!(key, "mixpanel_cohort_c", "after kill {kill}");
    }
    adopt(&mut bench, &[("c", "vip")]).await.unwrap();
    adopt(&mut bench, &[("c", "vip")]).await.unwrap();
    assert_eq!(key_of(&bench, "c").await, "vip");
    assert_eq!(bench.deliver().await.len(), 5_000);
    assert_eq!(bench.holding("vip", true).len(), 5_000);
    assert_eq!(bench.holding("mixpanel_cohort_c", true), set(&[]));
}

#[tokio::test]
async fn a_destination_brought_up_before_and_after_half_a_move_ends_right() {
    let mut bench = Bench::new();
    let everybody = pages::people("usr", 5_000);
    let everybody: Vec<_> = everybody.iter().map(String::as_str).collect();
    bench.full("c", "s", &everybody).await;
    bench.deliver().await;
    bench.flagsmith.clear();
    bench.destination.name = "other".into();
    bench.reopen().await;
    let now = bench.now();
    // It begins, and a first piece is pending.
    for _ in 0..2 {
        assert!(bench.store().follow_routes(2_048, now).await.unwrap());
    }
    bench.source.explicit_keys = explicit(&[("c", "vip")]);
    bench.reopen().await;
    let piece = tokio::time::timeout(Duration::ZERO, bench.store().adopt_keys(now));
    assert!(piece.await.is_err(), "more is to be done");
    bench.reopen().await;
    bench.store().adopt_keys(now).await.unwrap();
    bench.fold().await;
    bench.deliver().await;
    assert_eq!(bench.holding("vip", true).len(), 5_000);
    assert_eq!(bench.holding("mixpanel_cohort_c", true), set(&[]));
}

#[tokio::test]
async fn a_key_that_another_cohort_keeps_is_refused_with_both_names() {
    let mut bench = Bench::new();
    bench.full("holder", "s", &["ann"]).await;
    bench.full("wants", "s", &["bob"]).await;
    bench.deliver().await;
    let refused = adopt(&mut bench, &[("wants", "mixpanel_cohort_holder")]).await;
    let Err(StoreError::KeyTaken {
        key,
        cohort,
        holder,
    }) = refused
    else {
        panic!("{refused:?}");
    };
    assert_eq!(key, "mixpanel_cohort_holder");
    assert!(cohort.contains("wants"), "{cohort}");
    assert!(holder.contains("holder"), "{holder}");
    assert_eq!(key_of(&bench, "holder").await, "mixpanel_cohort_holder");
    assert_eq!(key_of(&bench, "wants").await, "mixpanel_cohort_wants");
    assert_eq!(bench.deliver().await, []);
}

#[tokio::test]
async fn an_entry_that_is_taken_out_leaves_the_key() {
    let mut bench = bench_of(&[("c", "vip")]);
    bench.full("c", "s", &["ann"]).await;
    bench.deliver().await;
    adopt(&mut bench, &[]).await.unwrap();
    assert_eq!(key_of(&bench, "c").await, "vip");
    assert_eq!(bench.deliver().await, []);
}

#[tokio::test]
async fn a_retired_cohorts_key_stays_reserved() {
    let mut bench = Bench::new();
    bench.full("c", "s", &["ann"]).await;
    bench.deliver().await;
    bench.retire("c").await;
    bench.fold().await;
    bench.deliver().await;
    bench.fold().await;
    let mut other = page(Action::Members, "d", "s", (1, 1), &["ann"]);
    other.cohort_name = Some("c".into());
    bench.take(other).await;
    assert_eq!(key_of(&bench, "d").await, "mixpanel_cohort_c_d");
    let refused = adopt(&mut bench, &[("d", "mixpanel_cohort_c")]).await;
    assert!(
        matches!(refused, Err(StoreError::KeyTaken { .. })),
        "{refused:?}"
    );
}

#[tokio::test]
async fn a_rename_in_mixpanel_shows_both_names_and_keeps_the_key() {
    let bench = Bench::new();
    bench.full("c", "s", &["ann"]).await;
    assert_eq!(bench.cohort("c").await.former_name, None);
    let mut renamed = page(Action::AddMembers, "c", "a", (1, 1), &["bob"]);
    renamed.cohort_name = Some("Gold".into());
    bench.take(renamed).await;
    let cohort = bench.cohort("c").await;
    assert_eq!(cohort.name, "Gold");
    assert_eq!(cohort.former_name.as_deref(), Some("c"));
    assert_eq!(&*cohort.trait_key, "mixpanel_cohort_c");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_with_another_settings_file_moves_the_trait() {
    let folder = fast_temp_dir();
    let stand_in = stand_in();
    let file = folder.path().join("settings.toml");
    let mut variables = serve_variables(&folder.path().join("ledger.db"), &stand_in.url());
    variables.insert("COHORT_BRIDGE_CONFIG".into(), file.display().to_string());
    let write = |key: &str| {
        let text = format!("[[cohorts]]\nid = \"c\"\ntrait_key = \"{key}\"\n");
        std::fs::write(&file, text).unwrap();
    };
    write("vip");
    let mut process = Process::serve(&variables).await;
    let page = pages::page("members", "c", "s", (1, 1), &["ann"]);
    let request = client()
        .post(process.webhook_url())
        .basic_auth(USER, Some(PASSWORD))
        .body(page.to_string());
    assert_eq!(request.send().await.unwrap().status(), 200);
    process.settled().await;
    assert_eq!(stand_in.identity("ann").unwrap()["vip"], json!(true));
    process.terminate();
    assert_eq!(process.ended().await, Some(0));

    write("gold");
    let process = Process::serve(&variables).await;
    process.settled().await;
    let ann = stand_in.identity("ann").unwrap();
    assert_eq!((&ann["gold"], &ann["vip"]), (&json!(true), &json!(false)));
}

#[tokio::test(flavor = "multi_thread")]
async fn check_says_what_a_start_with_another_settings_file_would_do() {
    let folder = fast_temp_dir();
    let stand_in = stand_in();
    let file = folder.path().join("settings.toml");
    let mut variables = serve_variables(&folder.path().join("ledger.db"), &stand_in.url());
    let mut process = Process::serve(&variables).await;
    for cohort in ["c", "d"] {
        let page = pages::page("members", cohort, "s", (1, 1), &["ann"]);
        let request = client()
            .post(process.webhook_url())
            .basic_auth(USER, Some(PASSWORD))
            .body(page.to_string());
        assert_eq!(request.send().await.unwrap().status(), 200);
    }
    process.settled().await;
    variables.insert("COHORT_BRIDGE_CONFIG".into(), file.display().to_string());
    let check = |key: &str| {
        let text = format!("[[cohorts]]\nid = \"c\"\ntrait_key = \"{key}\"\n");
        std::fs::write(&file, text).unwrap();
        run(&["check"], &variables)
    };
    let stays = "mixpanel_cohort_c";
    for is_running in [true, false] {
        if !is_running {
            process.terminate();
            assert_eq!(process.ended().await, Some(0));
        }
        let plain = check(stays);
        assert_eq!(plain.code, Some(0), "{plain:?}");
        assert!(!plain.stdout.contains("trait key"), "{}", plain.stdout);
        let moves = check("vip");
        assert_eq!(moves.code, Some(0), "{moves:?}");
        let row = "\"vip\" takes the place of \"mixpanel_cohort_c\" at the next start";
        assert!(moves.stdout.contains(row), "{}", moves.stdout);
        let taken = check("mixpanel_cohort_d");
        assert_eq!(taken.code, Some(1), "{taken:?}");
        let row = "cannot be given to cohort c of source default: cohort d of source default (d)";
        assert!(taken.stdout.contains(row), "{}", taken.stdout);
    }
    // It was said only.
    check(stays);
    let process = Process::serve(&variables).await;
    process.settled().await;
    let keys = stand_in.identity("ann").unwrap();
    assert!(!keys.contains_key("vip"), "{keys:?}");
}
