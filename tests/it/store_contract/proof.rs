//! What counts as written until it is proved, and what is remembered of canaries.

use cohort_bridge::canary::{CanaryMemory, Why};
use cohort_bridge::cohort::Action::RemoveMembers;
use cohort_bridge::cohort::{Target, Told};
use cohort_bridge::store::Outcome;

use super::{names, odd, odd_texts};
use crate::support::stores::{Stores, callees, destination, done, everywhere};

async fn mark(stores: &Stores) -> i64 {
    stores
        .store()
        .unproven_through(&everywhere())
        .await
        .unwrap()
}

async fn doubt(stores: &Stores) -> u64 {
    let doubted = stores.store().doubt(&everywhere(), stores.now()).await;
    doubted.unwrap()
}

pub async fn what_was_not_proved_can_be_doubted(stores: &mut Stores) {
    let everybody = odd();
    let all = names(&everybody);
    assert_eq!(doubt(stores).await, 0);
    let nothing = mark(stores).await;
    stores.store().proved(&everywhere(), nothing).await.unwrap();
    stores.full("c", "s", &all).await;
    stores.deliver().await;
    let first = mark(stores).await;
    assert!(first > nothing);
    stores.reopen().await;
    assert_eq!(mark(stores).await, first);
    stores.full("d", "s", &all[..3]).await;
    stores.deliver().await;
    assert!(mark(stores).await > first);

    // Up to the mark, and nothing behind it.
    stores.store().proved(&everywhere(), first).await.unwrap();
    stores.reopen().await;
    assert_eq!(doubt(stores).await, 3);
    assert_eq!(doubt(stores).await, 0, "it is pending already");
    stores.reopen().await;
    assert_eq!(stores.pending("d").await, (3, 0));
    assert_eq!(stores.pending("c").await, (0, 0));
    let claims = stores.claim().await;
    assert_eq!(callees(&claims), all[..3]);
    assert!(
        claims
            .iter()
            .all(|claim| claim.traits[0].told == Told::Unknown)
    );
    stores.settle(claims, done()).await;
    stores.prove().await;
    assert_eq!(doubt(stores).await, 0);
}

pub async fn what_is_doubted_is_asserted_as_it_is_wanted_now(stores: &mut Stores) {
    stores.full("c", "s", &["ann", "bob", "cyd"]).await;
    stores.deliver().await;
    stores.half(RemoveMembers, "c", "r", &["bob"]).await;
    // A call is under way: what is known of it holds no longer.
    let removal = stores.claim_one().await;
    assert_eq!(removal.traits[0].told, Told::Known(Target::True));
    assert_eq!(doubt(stores).await, 3);
    stores.settle(vec![removal], Outcome::Unsent).await;
    let mut claims = stores.claim().await;
    claims.sort_by(|one, other| one.identifier.cmp(&other.identifier));
    let claimed: Vec<_> = claims
        .iter()
        .map(|claim| {
            (
                &*claim.identifier,
                claim.traits[0].target,
                claim.traits[0].told,
            )
        })
        .collect();
    let unknown = |person, target| (person, target, Told::Unknown);
    let expected = [
        unknown("ann", Target::True),
        unknown("bob", Target::False),
        unknown("cyd", Target::True),
    ];
    assert_eq!(claimed, expected);
}

pub async fn each_destination_is_proved_by_itself(stores: &mut Stores) {
    stores.rules.destinations.push(destination("other"));
    stores.reopen().await;
    let store = stores.store().clone();
    stores.full("c", "s", &["ann", "bob"]).await;
    stores.deliver().await;
    stores.deliver_to("other").await;
    let other = "other".into();
    let mark = store.unproven_through(&other).await.unwrap();
    store.proved(&other, mark).await.unwrap();
    assert_eq!(store.doubt(&other, stores.now()).await.unwrap(), 0);
    assert_eq!(doubt(stores).await, 2);
    assert!(stores.deliver_to("other").await.is_empty());
    assert_eq!(stores.deliver().await.len(), 2);
}

/// More than one transaction proves or doubts.
pub async fn many_are_proved_and_doubted(stores: &mut Stores) {
    let everybody = crate::support::pages::people("p", 3_000);
    stores.full("c", "s", &names(&everybody)).await;
    for claims in stores.claim().await.chunks(10) {
        stores.settle(claims.to_vec(), done()).await;
    }
    let all = mark(stores).await;
    assert_eq!(doubt(stores).await, 3_000);
    assert_eq!(stores.pending("c").await, (3_000, 0));
    for claims in stores.claim().await.chunks(10) {
        stores.settle(claims.to_vec(), done()).await;
    }
    assert!(mark(stores).await > all, "a mark is not given twice");
    stores.prove().await;
    assert_eq!(doubt(stores).await, 0);
}

pub async fn canaries_are_remembered_by_destination(stores: &mut Stores) {
    stores.rules.destinations.push(destination("Default"));
    stores.reopen().await;
    let remembered = async |stores: &Stores, of: &str| {
        let memory = stores.store().canary_memory(&of.into()).await;
        memory.unwrap()
    };
    assert_eq!(remembered(stores, "default").await, CanaryMemory::default());
    let texts = odd_texts();
    let mut memory = CanaryMemory {
        doubted: Some(texts.concat()),
        number: u64::MAX,
        found: Some(Why::AnotherLedger(texts[0].into())),
        others: texts.iter().map(|text| (*text).to_owned()).collect(),
        settings: texts.concat(),
    };
    for found in [Some(Why::Empty), Some(Why::Earlier), memory.found.clone()] {
        memory.found = found;
        let written = stores
            .store()
            .remember_canary(&everywhere(), memory.clone())
            .await;
        written.unwrap();
        stores.reopen().await;
        assert_eq!(remembered(stores, "default").await, memory);
    }
    assert_eq!(remembered(stores, "Default").await, CanaryMemory::default());
    let forgotten = CanaryMemory::default();
    let written = stores
        .store()
        .remember_canary(&everywhere(), forgotten.clone())
        .await;
    written.unwrap();
    assert_eq!(remembered(stores, "default").await, forgotten);
}
