//! What the store shows.

use std::time::Duration;

use cohort_bridge::cohort::Action;
use cohort_bridge::cohort::Action::{Members, RemoveMembers};
use cohort_bridge::month::Month;
use cohort_bridge::plan::{Load, UnwrittenOf};
use cohort_bridge::store::{
    DeadLetterFilter, DeliveryState, FullSyncReason, RunCounts, SourceRules,
};

use super::{names, odd_texts};
use crate::support::bench::{HALF_AN_HOUR, START, page};
use crate::support::pages::people;
use crate::support::resyncs::{cohort_at, order};
use crate::support::stores::{Stores, callees, dead, destination, source};

pub async fn cohorts_come_in_order_of_source_and_id(stores: &mut Stores) {
    let texts = odd_texts();
    let mut both = Vec::new();
    for source in &texts {
        for id in &texts {
            both.push(((*source).to_owned(), (*id).to_owned()));
        }
    }
    // Not in the order in which they are told.
    for (source, id) in both.iter().rev() {
        stores
            .append_to(source, page(Members, id, "s", (1, 1), &["ann"]))
            .await;
    }
    stores.fold().await;
    let ids =
        |cohort: cohort_bridge::store::CohortView| (cohort.source.to_string(), cohort.cohort_id);
    let cohorts = stores.store().cohorts().await.unwrap();
    assert_eq!(cohorts.into_iter().map(ids).collect::<Vec<_>>(), both);
    let of_ann = stores.member("ann").await.into_iter();
    let of_ann = of_ann.map(|of| (of.source.to_string(), of.cohort_id));
    assert_eq!(of_ann.collect::<Vec<_>>(), both);
    let mut keys: Vec<_> = stores.member("ann").await;
    keys.sort_by(|one, other| one.trait_key.cmp(&other.trait_key));
    keys.dedup_by(|one, other| one.trait_key == other.trait_key);
    assert_eq!(keys.len(), both.len(), "each has a key of its own");
}

pub async fn a_cohort_shows_where_it_stands(stores: &mut Stores) {
    stores.full("c", "s", &["ann", "bob", "old"]).await;
    let fresh = stores.cohort("c").await;
    assert!(!fresh.destinations[0].ready);
    assert_eq!(fresh.destinations[0].oldest_pending_at, Some(START));
    assert_eq!(fresh.destinations[0].written, 0);
    stores.deliver().await;
    stores.wait(HALF_AN_HOUR);
    stores.half(RemoveMembers, "c", "r", &["old"]).await;
    stores
        .append(page(Action::AddMembers, "c", "a", (2, 3), &["new"]))
        .await;
    stores.fold().await;
    stores.reopen().await;
    let cohort = stores.cohort("c").await;
    assert_eq!((cohort.members, cohort.left), (2, 1));
    assert_eq!(&*cohort.trait_key, "mixpanel_cohort_c");
    assert_eq!(cohort.last_heard_at, stores.now());
    assert_eq!(cohort.runs, RunCounts::default());
    assert_eq!((cohort.held, cohort.needs_full_sync), (None, None));
    assert!(!cohort.paused);
    let session = cohort.session.unwrap();
    assert_eq!((&*session.id, session.action), ("a", Action::AddMembers));
    assert_eq!((session.pages_received, session.pages_total), (1, 3));
    assert_eq!(session.completed_at, None);
    let delivery = &cohort.destinations[0];
    assert_eq!(
        (delivery.written, delivery.pending, delivery.dead),
        (2, 1, 0)
    );
    assert_eq!(delivery.oldest_pending_at, Some(stores.now()));
    assert!(delivery.ready, "all of its first session is delivered");

    let of_old = stores.member("old").await.remove(0);
    assert!(!of_old.member);
    let there = &of_old.destinations[0];
    assert_eq!(
        (there.state, there.written),
        (DeliveryState::Pending, Some(true))
    );
    let there = stores.member("ann").await.remove(0).destinations.remove(0);
    assert_eq!(
        (there.state, there.written),
        (DeliveryState::Written, Some(true))
    );
    stores.deliver().await;
    let there = stores.member("old").await.remove(0).destinations.remove(0);
    assert_eq!(
        (there.state, there.written),
        (DeliveryState::Written, Some(false))
    );
    assert!(stores.member("nobody").await.is_empty());
    for other in ["ANN", "an", "ann ", "%", "_nn", ""] {
        assert!(stores.member(other).await.is_empty(), "{other}");
    }
}

pub async fn other_rules_of_identity_ask_for_a_full_sync(stores: &mut Stores) {
    stores.full("c", "s", &["ann"]).await;
    let was = stores.rules.sources[0].identified_by.to_string();
    stores.rules.sources[0].identified_by = "é, 'other' \\".into();
    stores.reopen().await;
    let reason = FullSyncReason::IdentifiedOtherwise {
        was,
        now: "é, 'other' \\".into(),
    };
    assert_eq!(stores.cohort("c").await.needs_full_sync, Some(reason));
    let mut full = page(Members, "c", "t", (1, 1), &["ann"]);
    full.identified_by = "é, 'other' \\".into();
    stores.take(full).await;
    assert_eq!(stores.cohort("c").await.needs_full_sync, None);
}

/// Dead letters of these people, each a second after the one before.
async fn bury(stores: &Stores, people: &[&str]) {
    let mut claims = stores.claim().await;
    for person in people {
        let (hers, others): (Vec<_>, Vec<_>) = claims
            .into_iter()
            .partition(|claim| claim.identifier.as_ref() == *person);
        assert_eq!(hers.len(), 1, "{person}");
        stores.settle(hers, dead(&format!("400: {person}"))).await;
        stores.wait(Duration::from_secs(1));
        claims = others;
    }
    assert!(claims.is_empty(), "{claims:?}");
}

pub async fn dead_letters_come_oldest_first(stores: &mut Stores) {
    // Neither by identifier nor as they were told.
    let order = ["b", "é", "Z", "😀", "a"];
    stores.full("c \\'é", "s", &order).await;
    bury(stores, &order).await;
    stores.reopen().await;
    let letters = stores.store().dead_letters(usize::MAX).await.unwrap();
    let whose: Vec<_> = letters.iter().map(|letter| &*letter.identifier).collect();
    assert_eq!(whose, order);
    for (number, letter) in letters.iter().enumerate() {
        assert_eq!(&*letter.destination.0, "default");
        assert_eq!(letter.source, source());
        assert_eq!(letter.cohort_id, "c \\'é");
        assert_eq!(*letter.trait_key, *stores.cohort("c \\'é").await.trait_key);
        assert!(letter.member);
        assert_eq!(letter.error, format!("400: {}", letter.identifier));
        assert_eq!(letter.since, START + 1_000 * number as i64);
    }
    let two = stores.store().dead_letters(2).await.unwrap();
    assert_eq!(two.len(), 2);
    assert_eq!((&*two[0].identifier, &*two[1].identifier), ("b", "é"));
    assert!(stores.store().dead_letters(0).await.unwrap().is_empty());
}

pub async fn dead_letters_are_retried_and_dropped_by_filter(stores: &mut Stores) {
    stores.rules.destinations.push(destination("other"));
    stores.reopen().await;
    let everybody = ["'a' \\", "A", "a", "é", "😀"];
    stores.full("c", "s", &everybody).await;
    bury(stores, &everybody).await;
    let store = stores.store().clone();
    let filter = |destination: Option<&str>, identifier: Option<&str>| DeadLetterFilter {
        destination: destination.map(str::to_owned),
        identifier: identifier.map(str::to_owned),
    };
    let retry = async |filter| {
        store
            .retry_dead_letters(filter, stores.now())
            .await
            .unwrap()
    };
    let drop = async |filter| store.drop_dead_letters(filter, stores.now()).await.unwrap();
    let left = async || {
        let letters = store.dead_letters(100).await.unwrap().into_iter();
        letters.map(|letter| letter.identifier).collect::<Vec<_>>()
    };
    for nobodys in [
        filter(Some("other"), None),
        filter(Some("no such"), Some("a")),
        filter(None, Some("e")),
        filter(None, Some("%")),
    ] {
        assert_eq!(retry(nobodys.clone()).await, 0);
        assert_eq!(drop(nobodys).await, 0);
    }
    assert_eq!(retry(filter(None, Some("a"))).await, 1);
    assert_eq!(left().await, ["'a' \\", "A", "é", "😀"]);
    let claim = stores.claim_one().await;
    assert_eq!((&*claim.identifier, claim.attempts), ("a", 0));
    assert_eq!(claim.traits[0].told, cohort_bridge::cohort::Told::Unknown);
    assert_eq!(drop(filter(Some("default"), Some("'a' \\"))).await, 1);
    assert_eq!(left().await, ["A", "é", "😀"]);
    assert_eq!(retry(filter(Some("default"), None)).await, 3);
    assert_eq!(left().await, Vec::<String>::new());
    let mut claims = stores.claim().await;
    claims.sort_by(|one, other| one.identifier.cmp(&other.identifier));
    assert_eq!(callees(&claims), ["A", "é", "😀"]);
    stores.settle(claims, dead("again")).await;
    // Those who died after the clock was set back are meant too.
    stores.clock.set(START - 1_000_000);
    let now = stores.now();
    let all = DeadLetterFilter::default();
    assert_eq!(store.drop_dead_letters(all, now).await.unwrap(), 3);
    assert_eq!(left().await, Vec::<String>::new());
    assert_eq!(stores.pending("c").await, (1, 0), "that of a, under way");
}

/// More than one transaction retries or drops.
pub async fn many_dead_letters_are_retried_and_dropped(stores: &mut Stores) {
    let everybody = people("p", 4_500);
    stores.full("c", "s", &names(&everybody)).await;
    let all = DeadLetterFilter::default;
    for times in 0..2 {
        let claims = stores.claim().await;
        assert_eq!(claims.len(), 4_500, "{times}");
        stores.settle(claims, dead("400")).await;
        assert_eq!(stores.pending("c").await, (0, 4_500));
        let now = stores.now();
        if times == 0 {
            let retried = stores.store().retry_dead_letters(all(), now).await;
            assert_eq!(retried.unwrap(), 4_500);
        } else {
            let dropped = stores.store().drop_dead_letters(all(), now).await;
            assert_eq!(dropped.unwrap(), 4_500);
        }
    }
    assert_eq!(stores.pending("c").await, (0, 0));
    assert!(stores.claim().await.is_empty());
}

fn load(identities: u64, traits: u64) -> Load {
    Load { identities, traits }
}

pub async fn what_is_unwritten_is_counted(stores: &mut Stores) {
    stores.rules.sources.push(SourceRules::named("other"));
    stores.reopen().await;
    let unwritten = async |stores: &Stores| {
        let unwritten = stores.store().unwritten(Month::of(START)).await;
        unwritten.unwrap()
    };
    let nothing = unwritten(stores).await;
    assert_eq!((nothing.waiting_pages, nothing.is_under_way), (0, false));
    assert_eq!(&*nothing.destinations[0].name.0, "default");
    assert_eq!(nothing.destinations[0].load, Load::default());

    stores
        .append(page(Members, "d", "s", (1, 1), &["Z", "a"]))
        .await;
    let waiting = unwritten(stores).await;
    assert_eq!((waiting.waiting_pages, waiting.is_under_way), (1, true));
    stores.fold().await;
    stores.full("c", "s", &["a", "é"]).await;
    stores
        .append_to("other", page(Members, "c", "s", (1, 1), &["é"]))
        .await;
    stores.fold().await;
    let mut paused = stores
        .store()
        .pause_cohort(&source(), "d", true, stores.now())
        .await;
    assert_eq!(paused.unwrap(), Some(2));
    for is_followed in [false, true] {
        let there = unwritten(stores).await;
        assert_eq!(there.is_under_way, !is_followed);
        let there = &there.destinations[0];
        assert_eq!(there.load, load(2, 3), "without the paused one");
        let of = |source: &str, id: &str, paused, load| UnwrittenOf {
            source: source.into(),
            cohort_id: id.into(),
            name: id.into(),
            paused,
            load,
        };
        let cohorts = [
            of("default", "c", false, load(2, 2)),
            of("default", "d", true, load(2, 2)),
            of("other", "c", false, load(1, 1)),
        ];
        assert_eq!(there.cohorts, cohorts);
        stores.fold().await;
    }
    paused = stores
        .store()
        .pause_cohort(&source(), "d", false, stores.now())
        .await;
    assert_eq!(paused.unwrap(), Some(2));
    stores.fold().await;
    assert_eq!(stores.deliver().await.len(), 3);
    let there = unwritten(stores).await;
    assert_eq!(
        (there.is_under_way, there.destinations[0].load),
        (false, load(0, 0))
    );
    assert!(there.destinations[0].cohorts.is_empty());
    // What is ordered to be written again counts one identity a trait.
    order(&**stores.store(), cohort_at("d", None), None, stores.now()).await;
    let there = unwritten(stores).await;
    assert_eq!(
        (there.is_under_way, there.destinations[0].load),
        (true, load(2, 2))
    );
}
