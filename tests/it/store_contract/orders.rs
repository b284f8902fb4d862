//! What an operator orders, and the fold carries out.

use cohort_bridge::cohort::Action::{AddMembers, Members};
use cohort_bridge::cohort::{Target, Told};
use cohort_bridge::guard::RemovalGuard;
use cohort_bridge::store::{CohortStanding, HeldRemovals, HoldDecision};

use super::{names, odd};
use crate::support::bench::{HALF_AN_HOUR, changes, page, written};
use crate::support::stores::{Stores, callees, dead, source};

/// A ledger that holds more than two removals, and holds all but the first of these.
async fn holding(stores: &mut Stores, everybody: &[&str]) {
    stores.rules.sources[0].hold_removals_above = Some(RemovalGuard::parse("2").unwrap());
    stores.reopen().await;
    stores.full("c", "base", everybody).await;
    stores.deliver().await;
    stores.wait(HALF_AN_HOUR);
    stores.full("c", "cut \\ 'é'", &everybody[..1]).await;
    let held = HeldRemovals {
        held: everybody.len() as u64 - 1,
        session: "cut \\ 'é'".into(),
        since: stores.now(),
    };
    assert_eq!(stores.cohort("c").await.held, Some(held));
}

async fn decide(stores: &Stores, cohort: &str, decision: HoldDecision) -> Option<u64> {
    let decided = stores
        .store()
        .decide_held(&source(), cohort, decision, stores.now())
        .await;
    decided.unwrap()
}

/// Pieces of about so many people, and a kill after each; how many there were.
async fn carry_out(stores: &mut Stores, people: usize) -> usize {
    let mut pieces = 0;
    loop {
        let assembled = stores.store().assemble(1, people, stores.now()).await;
        if !assembled.unwrap().carried_out {
            return pieces;
        }
        pieces += 1;
        stores.reopen().await;
    }
}

pub async fn held_removals_wait_for_a_decision(stores: &mut Stores) {
    let everybody = odd();
    let all = names(&everybody);
    let held = all.len() as u64 - 1;
    holding(stores, &all).await;
    // They left, and keep the trait.
    assert_eq!(stores.members("c", &all).await, all[..1]);
    assert!(stores.deliver().await.is_empty());
    stores.reopen().await;
    assert_eq!(stores.cohort("c").await.held.unwrap().held, held);

    assert_eq!(decide(stores, "no such", HoldDecision::Approve).await, None);
    assert_eq!(decide(stores, "c", HoldDecision::Approve).await, Some(held));
    stores.reopen().await;
    assert_eq!(stores.cohort("c").await.held.unwrap().held, held);
    assert!(carry_out(stores, 3).await > 3);
    let cohort = stores.cohort("c").await;
    assert_eq!((cohort.held, cohort.left), (None, held));
    let mut calls = stores.deliver().await;
    calls.sort_by(|one, other| one.identifier.cmp(&other.identifier));
    assert_eq!(callees(&calls), all[1..]);
    let mut targets = calls.iter().map(|claim| claim.traits[0].target);
    assert!(targets.all(|target| target == Target::False));
    assert_eq!(decide(stores, "c", HoldDecision::Approve).await, Some(0));
}

pub async fn held_removals_may_be_wrong(stores: &mut Stores) {
    let everybody = odd();
    let all = names(&everybody);
    let held = all.len() as u64 - 1;
    holding(stores, &all).await;
    assert_eq!(decide(stores, "c", HoldDecision::Discard).await, Some(held));
    carry_out(stores, 4).await;
    assert_eq!(stores.cohort("c").await.held, None);
    assert!(stores.deliver().await.is_empty());
    // Until the next full sync.
    stores.full("c", "again", &all[..1]).await;
    assert_eq!(stores.cohort("c").await.held.unwrap().held, held);
    stores.full("c", "back", &all).await;
    assert_eq!(stores.cohort("c").await.held, None);
    assert!(stores.deliver().await.is_empty(), "they had it all along");
}

pub async fn a_retired_cohort_is_forgotten_but_for_its_key(stores: &mut Stores) {
    let everybody = odd();
    let all = names(&everybody);
    stores.full("c", "base", &all).await;
    stores.full("d", "base", &all[..1]).await;
    stores.deliver().await;
    let retire = async |stores: &Stores, cohort| {
        let retired = stores.store().retire(&source(), cohort, stores.now()).await;
        retired.unwrap()
    };
    assert_eq!(retire(stores, "no such").await, None);
    assert_eq!(retire(stores, "c").await, Some(all.len() as u64));
    stores.reopen().await;
    let standing = async |stores: &Stores| stores.cohort("c").await.standing;
    assert_eq!(standing(stores).await, CohortStanding::Retiring);
    assert_eq!(retire(stores, "c").await, Some(0), "it is already");
    assert!(carry_out(stores, 3).await > 3);
    assert_eq!(standing(stores).await, CohortStanding::Retiring);
    // Everybody is remembered until it is delivered.
    assert_eq!(stores.is_in(all[0]).await.len(), 2);
    assert_eq!(stores.deliver().await.len(), all.len());
    stores.fold().await;
    stores.reopen().await;
    let cohort = stores.cohort("c").await;
    assert_eq!(cohort.standing, CohortStanding::Retired);
    assert_eq!((cohort.members, cohort.left), (0, 0));
    for person in &all[1..] {
        assert!(stores.member(person).await.is_empty(), "{person}");
    }
    assert_eq!(stores.members("d", &all).await, all[..1]);

    // Only a full sync brings it back.
    stores.half(AddMembers, "c", "a", &["ann"]).await;
    assert_eq!(standing(stores).await, CohortStanding::Retired);
    assert!(stores.member("ann").await.is_empty());
    stores.full("c", "new", &["ann"]).await;
    let back = stores.cohort("c").await;
    assert_eq!(back.standing, CohortStanding::Followed);
    assert_eq!((back.members, back.trait_key), (1, cohort.trait_key));
}

async fn forget(stores: &Stores, identifier: &str, traits: bool) -> u64 {
    let forgotten = stores
        .store()
        .forget(identifier, traits, stores.now())
        .await;
    forgotten.unwrap()
}

/// Somebody of each kind: a member, a leaver, pending, given up, and on a page that waits.
async fn known_everywhere(stores: &Stores, who: &str) {
    stores.full("member", "s", &[who, "bob"]).await;
    stores.full("left", "s", &[who, "bob"]).await;
    stores.full("dead", "s", &[who]).await;
    stores.deliver().await;
    stores.full("left", "t", &["bob"]).await;
    stores.full("dead", "t", &[]).await;
    let (hers, others): (Vec<_>, Vec<_>) = stores
        .claim()
        .await
        .into_iter()
        .partition(|claim| &*claim.identifier == who);
    assert!(others.is_empty());
    stores.settle(hers, dead("400")).await;
    stores.full("pending", "s", &[who]).await;
    let waiting = page(Members, "waiting", "s", (1, 1), &[who, "bob"]);
    stores.append(waiting).await;
}

pub async fn a_person_is_forgotten_in_the_ledger(stores: &mut Stores) {
    let who = "é' \\ \"😀\" %";
    known_everywhere(stores, who).await;
    assert_eq!(forget(stores, "nobody", false).await, 0);
    assert_eq!(forget(stores, who, false).await, 4);
    stores.reopen().await;
    carry_out(stores, 1).await;
    stores.fold().await;
    assert!(stores.member(who).await.is_empty());
    assert!(stores.store().dead_letters(10).await.unwrap().is_empty());
    // The page that waited was about bob alone.
    assert_eq!(stores.cohort("waiting").await.members, 1);
    assert_eq!(stores.cohort("member").await.members, 1);
    let calls = stores.deliver().await;
    assert_eq!(callees(&calls), ["bob"], "her traits stay as they are");
    assert_eq!(forget(stores, who, false).await, 0);
}

pub async fn a_person_is_forgotten_in_flagsmith_too(stores: &mut Stores) {
    let who = "Zoë\\";
    known_everywhere(stores, who).await;
    assert_eq!(forget(stores, who, true).await, 4);
    // What is said later takes nothing back.
    assert_eq!(forget(stores, who, false).await, 4);
    stores.reopen().await;
    carry_out(stores, 1).await;
    assert!(stores.member(who).await.is_empty());
    let claims = stores.claim().await;
    assert_eq!(callees(&claims), [who]);
    let targets: Vec<_> = changes(&claims[0]).into_values().collect();
    // Of `pending` it is known that there is no such trait.
    assert_eq!(targets, [Target::Absent; 3]);
    let settled = stores.exchange(vec![written(claims[0].clone())]).await;
    assert!(settled.claims.is_empty());
    stores.fold().await;
    assert_eq!(callees(&stores.deliver().await), ["bob"]);
    // What was sent before the kill may have landed since: that is said once more, and then no more.
    stores.wait_for_late_writes();
    assert_eq!(callees(&stores.deliver().await), [who]);
    stores.wait_for_late_writes();
    assert!(stores.claim().await.is_empty());
    assert_eq!(forget(stores, who, true).await, 0);
}

/// What is under way is not taken back, and its end brings the erasure on.
pub async fn a_person_is_forgotten_while_called_for(stores: &mut Stores) {
    stores.full("c", "s", &["ann"]).await;
    let claim = stores.claim_one().await;
    assert_eq!(forget(stores, "ann", true).await, 1);
    stores.fold().await;
    assert!(stores.claim().await.is_empty());
    let settled = stores.exchange_some(vec![written(claim)], None, 0).await;
    assert!(settled.next_due.is_some_and(|due| due <= stores.now()));
    let erasure = stores.claim_one().await;
    assert_eq!(erasure.traits[0].target, Target::Absent);
    assert_eq!(erasure.traits[0].told, Told::Known(Target::True));
    stores
        .settle(vec![erasure], crate::support::stores::done())
        .await;
    assert!(stores.claim().await.is_empty());
    assert!(stores.member("ann").await.is_empty());
}

/// A NUL is set aside at intake, and an operator may still write one.
pub async fn nobody_has_an_identifier_with_a_nul(stores: &mut Stores) {
    stores.full("c", "s", &["ann"]).await;
    let store = stores.store().clone();
    for nul in ["\0", "ann\0", "c\0"] {
        assert!(store.member(nul).await.unwrap().is_empty());
        assert_eq!(forget(stores, nul, true).await, 0);
        let now = stores.now();
        assert_eq!(store.retire(&source(), nul, now).await.unwrap(), None);
        let paused = store.pause_cohort(&source(), nul, true, now).await;
        assert_eq!(paused.unwrap(), None);
        assert_eq!(decide(stores, nul, HoldDecision::Approve).await, None);
        let filter = cohort_bridge::store::DeadLetterFilter {
            destination: Some(nul.into()),
            identifier: Some(nul.into()),
        };
        let retried = store.retry_dead_letters(filter.clone(), now).await;
        assert_eq!(retried.unwrap(), 0);
        assert_eq!(store.drop_dead_letters(filter, now).await.unwrap(), 0);
    }
    stores.fold().await;
    assert_eq!(stores.members("c", &["ann"]).await, ["ann"]);
}
