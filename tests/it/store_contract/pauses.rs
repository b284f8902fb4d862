//! Cohorts and destinations that an operator paused.

use cohort_bridge::cohort::Action::RemoveMembers;
use cohort_bridge::cohort::Target;
use cohort_bridge::store::{DeliveryState, ResyncStep};

use super::{names, odd};
use crate::support::bench::written;
use crate::support::resyncs::{cohort_at, order, room};
use crate::support::stores::{Stores, callees, destination, everywhere, source};

async fn pause(stores: &Stores, cohort: &str, pauses: bool) -> Option<u64> {
    let paused = stores
        .store()
        .pause_cohort(&source(), cohort, pauses, stores.now())
        .await;
    paused.unwrap()
}

/// Pieces of so many traits and a kill after each; how many there were.
async fn follow(stores: &mut Stores, limit: usize) -> usize {
    let mut pieces = 0;
    while stores.store().follow_pauses(limit).await.unwrap() {
        pieces += 1;
        stores.reopen().await;
    }
    pieces
}

pub async fn nothing_is_claimed_of_a_paused_cohort(stores: &mut Stores) {
    let everybody = odd();
    let all = names(&everybody);
    let count = all.len() as u64;
    stores.full("c", "s", &all).await;
    stores.full("d", "s", &all[..2]).await;
    assert_eq!(pause(stores, "no such", true).await, None);
    assert_eq!(pause(stores, "c", true).await, Some(count));
    assert_eq!(pause(stores, "c", true).await, Some(count), "it is already");
    // Before any of it was moved out of the way; the other trait goes alone.
    let mut before = stores.claim().await;
    before.sort_by(|one, other| one.identifier.cmp(&other.identifier));
    assert_eq!(callees(&before), all[..2]);
    assert!(before.iter().all(|claim| claim.traits.len() == 1));
    stores
        .exchange(before.into_iter().map(written).collect())
        .await;
    stores.reopen().await;
    assert!(stores.claim().await.is_empty());
    assert!(follow(stores, 1).await > all.len() / 2);
    assert!(stores.claim().await.is_empty());
    assert!(stores.cohort("c").await.paused);
    assert!(!stores.cohort("d").await.paused);
    assert_eq!(stores.pending("c").await, (count, 0));
    let of_first = stores.member(all[0]).await.remove(0);
    assert_eq!(of_first.destinations[0].state, DeliveryState::Pending);

    // It is folded as ever.
    stores.half(RemoveMembers, "c", "r", &all[..1]).await;
    assert_eq!(stores.cohort("c").await.members, count - 1);
    assert!(stores.claim().await.is_empty());

    assert_eq!(pause(stores, "c", false).await, Some(count));
    assert!(follow(stores, 1).await > all.len() / 2);
    assert!(!stores.cohort("c").await.paused);
    let mut calls = stores.deliver().await;
    calls.sort_by(|one, other| one.identifier.cmp(&other.identifier));
    assert_eq!(callees(&calls), all);
    assert_eq!(calls[0].traits[0].target, Target::False);
    assert_eq!(follow(stores, 1).await, 0);
}

pub async fn a_person_is_erased_in_spite_of_a_pause(stores: &mut Stores) {
    stores.full("c", "s", &["ann", "bob"]).await;
    stores.deliver().await;
    pause(stores, "c", true).await;
    follow(stores, 10).await;
    stores.full("c", "t", &["cyd"]).await;
    let forgotten = stores.store().forget("ann", true, stores.now()).await;
    assert_eq!(forgotten.unwrap(), 1);
    stores.fold().await;
    let claim = stores.claim_one().await;
    assert_eq!(&*claim.identifier, "ann");
    assert_eq!(claim.traits[0].target, Target::Absent);
}

pub async fn an_order_of_a_paused_cohort_waits(stores: &mut Stores) {
    stores.full("c", "s", &["ann", "bob"]).await;
    stores.full("d", "s", &["ann"]).await;
    stores.deliver().await;
    pause(stores, "c", true).await;
    follow(stores, 10).await;
    for cohort in ["c", "d"] {
        order(
            &**stores.store(),
            cohort_at(cohort, None),
            None,
            stores.now(),
        )
        .await;
    }
    let step = async |stores: &Stores| {
        let step = stores
            .store()
            .resync_some(&everywhere(), room(10), stores.now())
            .await;
        step.unwrap()
    };
    let first = step(stores).await;
    let ResyncStep::BroughtUp { begun, rows, .. } = first else {
        panic!("{first:?}");
    };
    assert_eq!((begun.unwrap().cohort.unwrap().1, rows), ("d".into(), 1));
    stores.deliver().await;
    assert!(matches!(step(stores).await, ResyncStep::Ended(_)));
    assert_eq!(step(stores).await, ResyncStep::Full);
    pause(stores, "c", false).await;
    follow(stores, 10).await;
    let second = step(stores).await;
    assert!(
        matches!(second, ResyncStep::BroughtUp { rows: 2, .. }),
        "{second:?}"
    );
}

pub async fn a_destination_is_paused_until_it_is_resumed(stores: &mut Stores) {
    stores.rules.destinations.push(destination("Zürich"));
    stores.reopen().await;
    stores.full("c", "s", &["ann", "bob"]).await;
    stores.deliver().await;
    let pause = async |stores: &Stores, name: &str, pauses| {
        let paused = stores
            .store()
            .pause_destination(&name.into(), pauses, stores.now())
            .await;
        paused.unwrap()
    };
    let paused = async |stores: &Stores| stores.store().paused_destinations().await.unwrap();
    assert_eq!(pause(stores, "zürich", true).await, None);
    assert_eq!(paused(stores).await, []);
    assert_eq!(pause(stores, "Zürich", true).await, Some(2));
    assert_eq!(pause(stores, "default", true).await, Some(0));
    stores.reopen().await;
    let mut both = paused(stores).await;
    both.sort();
    assert_eq!(both, ["Zürich".into(), "default".into()]);
    assert_eq!(pause(stores, "default", false).await, Some(0));
    assert_eq!(pause(stores, "default", false).await, Some(0));
    assert_eq!(paused(stores).await, ["Zürich".into()]);
    assert_eq!(pause(stores, "Zürich", false).await, Some(2));
    stores.reopen().await;
    assert_eq!(paused(stores).await, []);
}
