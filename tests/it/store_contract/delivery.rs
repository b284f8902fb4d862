//! Claims and how they end.

use std::time::Duration;

use cohort_bridge::clock::Millis;
use cohort_bridge::cohort::Action::{AddMembers, RemoveMembers};
use cohort_bridge::cohort::{OnLeave, Target, Told};
use cohort_bridge::store::{Claim, DeliveryState, Outcome};

use super::{names, odd};
use crate::support::bench::written;
use crate::support::pages::people;
use crate::support::stores::{
    Stores, callees, dead, destination, done, everywhere, retry, written_late,
};

/// Everybody is pending and may wait: what was written is doubted.
async fn backlog(stores: &Stores, people: &[&str]) {
    stores.full("c", "base", people).await;
    stores.deliver().await;
    doubt(stores, people).await;
}

async fn doubt(stores: &Stores, people: &[&str]) {
    let doubted = stores.store().doubt(&everywhere(), stores.now()).await;
    assert_eq!(doubted.unwrap(), people.len() as u64);
}

fn told(claim: &Claim) -> Told {
    claim.traits[0].told
}

fn target(claim: &Claim) -> Target {
    claim.traits[0].target
}

/// What a claim of ann's brought about.
async fn state(stores: &Stores) -> (DeliveryState, Option<bool>, Option<String>) {
    let of = stores.member("ann").await.remove(0).destinations.remove(0);
    (of.state, of.written, of.error)
}

pub async fn who_may_wait_is_claimed_in_identifier_order(stores: &mut Stores) {
    let everybody = odd();
    let all = names(&everybody);
    backlog(stores, &all).await;
    for limit in [1, 3, 7] {
        let (mut called, mut after) = (Vec::new(), None);
        loop {
            let claims = stores
                .exchange_some(Vec::new(), after.as_deref(), limit)
                .await;
            assert!(claims.claims.len() <= limit);
            let resume = claims.resume_after.clone();
            if let (Some(resume), Some(last)) = (&resume, claims.claims.last()) {
                assert_eq!(*resume, last.identifier);
            }
            called.extend(claims.claims);
            match resume {
                Some(resume) => after = Some(resume),
                None => break,
            }
        }
        assert_eq!(callees(&called), all, "{limit} at a time");
        stores.settle(called, done()).await;
        doubt(stores, &all).await;
    }
    // Who comes before it waits for the next sweep.
    let middle = all[all.len() / 2];
    let claims = stores.exchange_some(Vec::new(), Some(middle), 10_000).await;
    assert_eq!(callees(&claims.claims), all[all.len() / 2 + 1..]);
    let claims = stores.exchange_some(Vec::new(), None, 10_000).await;
    assert_eq!(callees(&claims.claims), all[..=all.len() / 2]);
}

pub async fn what_must_not_wait_comes_first_and_leaves_a_place_in_four(stores: &mut Stores) {
    let waiting = people("p", 40);
    let waiting = names(&waiting);
    backlog(stores, &waiting).await;
    let joining = people("zoe", 20);
    stores.half(AddMembers, "d", "a", &names(&joining)).await;
    stores.half(RemoveMembers, "c", "r", &waiting[30..31]).await;
    // Nobody is looked for where nothing may be claimed.
    let none = stores.exchange_some(Vec::new(), None, 0).await;
    assert!(none.claims.is_empty() && none.resume_after.is_none());
    // One alone is the sweep's.
    let one = stores.exchange_some(Vec::new(), None, 1).await;
    assert_eq!(callees(&one.claims), waiting[..1]);
    let eight = stores
        .exchange_some(Vec::new(), one.resume_after.as_deref(), 8)
        .await;
    let called = callees(&eight.claims);
    let (first, swept) = called.split_at(6);
    assert!(first.contains(&waiting[30]), "{called:?}");
    let joined = first.iter().filter(|person| person.starts_with("zoe"));
    assert_eq!(joined.count(), 5, "{called:?}");
    assert_eq!(swept, &waiting[1..3]);
    // After a kill they come first as before.
    stores.reopen().await;
    let again = stores.exchange_some(Vec::new(), None, 8).await;
    let again = callees(&again.claims);
    assert!(again[..6].contains(&waiting[30]), "{again:?}");
    assert_eq!(again[6..], waiting[..2]);
}

pub async fn removals_go_first_and_joins_still_go(stores: &mut Stores) {
    let (leavers, joiners) = (people("leaver", 100), people("joiner", 100));
    stores.full("c", "s", &names(&leavers)).await;
    stores.deliver().await;
    stores.half(RemoveMembers, "c", "r", &names(&leavers)).await;
    stores.wait(Duration::from_secs(60));
    // The joins are the newer ones.
    stores.half(AddMembers, "c", "a", &names(&joiners)).await;
    let claims = stores.exchange_some(Vec::new(), None, 32).await.claims;
    let first = &claims[..24];
    let removals = first.iter().filter(|claim| target(claim) == Target::False);
    assert_eq!(removals.count(), 21, "one place in eight is kept for joins");
}

/// A large change of one cohort does not delay a small one of another.
pub async fn cohorts_take_turns(stores: &mut Stores) {
    let many = people("a", 300);
    for cohort in ["small", "loud", "louder", "loudest"] {
        let joining: Vec<_> = match cohort {
            "small" => vec!["zoe".to_owned()],
            loud => many
                .iter()
                .map(|person| format!("{person} {loud}"))
                .collect(),
        };
        stores.half(AddMembers, cohort, "a", &names(&joining)).await;
        stores.wait(Duration::from_secs(1));
    }
    let (mut called, mut settle) = (Vec::new(), Vec::new());
    for _ in 0..2 {
        let settled = std::mem::take(&mut settle);
        let claims = stores.exchange_some(settled, None, 4).await.claims;
        called.extend(claims.iter().map(|claim| claim.identifier.to_string()));
        settle.extend(claims.into_iter().map(written));
    }
    for one_of in ["zoe", "loud", "louder", "loudest"] {
        let heard = called.iter().any(|person| person.ends_with(one_of));
        assert!(heard, "{one_of} in {called:?}");
    }
}

pub async fn one_call_at_a_time_carries_all_of_an_identity(stores: &mut Stores) {
    stores.full("c", "s", &["ann", "bob"]).await;
    stores.full("d", "s", &["ann"]).await;
    let mut claims = stores.claim().await;
    claims.sort_by(|one, other| one.identifier.cmp(&other.identifier));
    assert_eq!(callees(&claims), ["ann", "bob"]);
    let (ann, bob) = (claims.remove(0), claims.remove(0));
    let keys: Vec<_> = ann.traits.iter().map(|of| &*of.trait_key).collect();
    assert_eq!(keys, ["mixpanel_cohort_c", "mixpanel_cohort_d"]);
    assert_eq!((ann.attempts, ann.traits[0].target), (0, Target::True));
    assert_eq!(told(&ann), Told::Known(Target::Absent));

    stores.full("e", "s", &["ann"]).await;
    stores.full("c", "t", &["bob"]).await;
    assert!(stores.claim().await.is_empty(), "both are called for");
    // Bob's end brings nobody on, ann's brings the rest of her.
    let settled = stores.settle(vec![bob], done()).await;
    assert_eq!((settled.next_due, settled.claims.len()), (None, 0));
    let settled = stores.settle(vec![ann], done()).await;
    assert!(settled.next_due.is_some_and(|due| due <= stores.now()));
    let rest = stores.claim_one().await;
    let rest: Vec<_> = rest
        .traits
        .iter()
        .map(|of| (&*of.trait_key, of.target, of.told))
        .collect();
    let known = Told::Known;
    assert_eq!(
        rest,
        [
            ("mixpanel_cohort_c", Target::False, known(Target::True)),
            ("mixpanel_cohort_e", Target::True, known(Target::Absent)),
        ]
    );
}

pub async fn what_was_under_way_at_a_kill_is_asserted_again(stores: &mut Stores) {
    stores.full("c", "s", &["ann"]).await;
    let first = stores.claim_one().await;
    assert_eq!(told(&first), Told::Known(Target::Absent));
    assert_eq!(state(stores).await, (DeliveryState::Pending, None, None));
    stores.reopen().await;
    assert_eq!(stores.pending("c").await, (1, 0));
    let again = stores.claim_one().await;
    assert_eq!(
        (told(&again), target(&again)),
        (Told::Unknown, Target::True)
    );
    assert_eq!(again.attempts, 0);
    stores.settle(vec![again], done()).await;
    let held = (DeliveryState::Written, Some(true), None);
    assert_eq!(state(stores).await, held);
    stores.reopen().await;
    assert_eq!(state(stores).await, held);
    assert_eq!(stores.pending("c").await, (0, 0));
    assert!(stores.claim().await.is_empty());
}

/// A call of an earlier process has no known end: it may land on top of a later one.
pub async fn what_an_earlier_process_sent_may_land_late(stores: &mut Stores) {
    stores.full("c", "s", &["ann"]).await;
    stores.claim_one().await;
    stores.reopen().await;
    stores.half(RemoveMembers, "c", "r", &["ann"]).await;
    let removal = stores.claim_one().await;
    assert_eq!(
        (told(&removal), target(&removal)),
        (Told::Unknown, Target::False)
    );
    stores.settle(vec![removal], done()).await;
    assert!(stores.claim().await.is_empty(), "not before it may have");
    stores.wait_for_late_writes();
    let again = stores.claim_one().await;
    assert_eq!(
        (told(&again), target(&again)),
        (Told::Unknown, Target::False)
    );
    stores.settle(vec![again], done()).await;
    stores.wait_for_late_writes();
    assert!(stores.claim().await.is_empty());
    assert_eq!(stores.pending("c").await, (0, 0));
}

pub async fn what_may_land_late_is_watched(stores: &mut Stores) {
    let late = |due_at| Outcome::Retry {
        due_at,
        counts: true,
        may_land_late: true,
        error: "no answer".into(),
    };
    stores.full("c", "s", &["ann"]).await;
    let join = stores.claim_one().await;
    let now = stores.now();
    stores.settle(vec![join], late(now)).await;
    stores.half(RemoveMembers, "c", "r", &["ann"]).await;
    let removal = stores.claim_one().await;
    assert_eq!(
        (told(&removal), target(&removal)),
        (Told::Unknown, Target::False)
    );
    let settled = stores.settle(vec![removal], done()).await;
    let until = now + stores.rules.destinations[0].late_write_ms;
    assert_eq!(settled.next_due, Some(until));
    let passed_over = stores.exchange(Vec::new()).await;
    assert!(passed_over.claims.is_empty());
    assert_eq!(passed_over.next_due, Some(until));
    stores.wait_for_late_writes();
    let again = stores.claim_one().await;
    assert_eq!(target(&again), Target::False);
    stores.settle(vec![again], done()).await;
    assert_eq!(stores.pending("c").await, (0, 0));

    // The same value twice cannot harm; it is watched, and no call is made for that.
    stores.wait_for_late_writes();
    stores.half(AddMembers, "c", "a", &["ann"]).await;
    let join = stores.claim_one().await;
    let until = stores.now() + stores.rules.destinations[0].late_write_ms;
    stores.settle(vec![join], written_late()).await;
    assert_eq!(stores.pending("c").await, (0, 0));
    stores.reopen().await;
    assert_eq!(stores.exchange(Vec::new()).await.next_due, Some(until));
    assert_eq!(
        state(stores).await,
        (DeliveryState::Written, Some(true), None)
    );
    stores.wait_for_late_writes();
    let over = stores.exchange(Vec::new()).await;
    assert!(over.claims.is_empty() && over.next_due.is_none());
}

pub async fn a_call_that_was_not_made_changes_nothing(stores: &mut Stores) {
    stores.full("c", "s", &["ann"]).await;
    let first = stores.claim_one().await;
    stores.settle(vec![first.clone()], Outcome::Unsent).await;
    let again = stores.claim_one().await;
    assert_eq!(again, first, "known as before, and no attempt");
    stores.settle(vec![again], done()).await;
    // Who changed back meanwhile needs no call.
    stores.half(RemoveMembers, "c", "r", &["ann"]).await;
    let removal = stores.claim_one().await;
    stores.half(AddMembers, "c", "a", &["ann"]).await;
    stores.settle(vec![removal], Outcome::Unsent).await;
    assert_eq!(stores.pending("c").await, (0, 0));
    assert!(stores.claim().await.is_empty());
    stores.reopen().await;
    assert!(stores.claim().await.is_empty());
}

pub async fn a_call_that_failed_is_made_again_when_it_is_due(stores: &mut Stores) {
    stores.full("c", "s", &["ann"]).await;
    let first = stores.claim_one().await;
    let due_at = stores.now() + 5_000;
    let settled = stores.settle(vec![first], retry(due_at, true)).await;
    assert_eq!(settled.next_due, Some(due_at));
    let failed = (DeliveryState::Pending, None, Some("503".into()));
    assert_eq!(state(stores).await, failed);
    stores.reopen().await;
    assert_eq!(state(stores).await, failed);
    let early = stores.exchange(Vec::new()).await;
    assert!(early.claims.is_empty());
    assert_eq!(early.next_due, Some(due_at));
    stores.wait(Duration::from_millis(5_000));
    let second = stores.claim_one().await;
    assert_eq!((second.attempts, told(&second)), (1, Told::Unknown));
    let now = stores.now();
    stores.settle(vec![second], retry(now, false)).await;
    let third = stores.claim_one().await;
    assert_eq!(third.attempts, 1, "that was not the identity's own failure");
    stores.settle(vec![third], retry(now, true)).await;
    assert_eq!(stores.claim_one().await.attempts, 2);
}

/// A time beyond all waits was written down before the clock was set back.
pub async fn the_time_of_a_retry_may_be_any(stores: &mut Stores) {
    stores.full("c", "s", &["ann"]).await;
    for due_at in [Millis::MAX, Millis::MIN, 0, -1] {
        let claim = stores.claim_one().await;
        let settled = stores.settle(vec![claim], retry(due_at, true)).await;
        assert_eq!(settled.next_due, Some(due_at));
        stores.reopen().await;
    }
    assert_eq!(stores.claim_one().await.attempts, 4);
}

pub async fn a_call_that_will_never_work_is_given_up(stores: &mut Stores) {
    stores.full("c", "s", &["ann", "bob"]).await;
    let (ann, bob): (Vec<_>, Vec<_>) = stores
        .claim()
        .await
        .into_iter()
        .partition(|claim| &*claim.identifier == "ann");
    let error = "400: 'ann' \\ \"é\" 😀";
    let settled = stores.settle(ann, dead(error)).await;
    assert_eq!(settled.next_due, None);
    stores.settle(bob, done()).await;
    stores.reopen().await;
    assert!(stores.claim().await.is_empty());
    assert_eq!(stores.pending("c").await, (0, 1));
    assert_eq!(
        state(stores).await,
        (DeliveryState::Dead, None, Some(error.into()))
    );
    assert_eq!(stores.cohort("c").await.destinations[0].written, 1);
    // Another value was never sent.
    stores.half(RemoveMembers, "c", "r", &["ann"]).await;
    assert_eq!(stores.pending("c").await, (1, 0));
    let removal = stores.claim_one().await;
    assert_eq!(
        (told(&removal), target(&removal)),
        (Told::Unknown, Target::False)
    );
    // What changes while the call is under way begins anew.
    stores.half(AddMembers, "c", "a", &["ann"]).await;
    stores.settle(vec![removal], dead("400")).await;
    let join = stores.claim_one().await;
    assert_eq!((join.attempts, target(&join)), (0, Target::True));
}

pub async fn destinations_go_by_their_own_rules(stores: &mut Stores) {
    stores.rules.destinations[0].linger_ms = 1_500;
    let mut second = destination("Zürich '\\");
    second.on_leave = OnLeave::Delete;
    stores.rules.destinations.push(second);
    stores.reopen().await;
    stores.full("c", "s", &["ann"]).await;
    // The first waits for company.
    let early = stores.exchange(Vec::new()).await;
    let due_at = stores.now() + 1_500;
    assert_eq!((early.claims.len(), early.next_due), (0, Some(due_at)));
    let join = stores.exchange_at("Zürich '\\", Vec::new(), None, 10).await;
    assert_eq!(callees(&join.claims), ["ann"]);
    let settle = join.claims.into_iter().map(written).collect();
    let settled = stores.exchange_at("Zürich '\\", settle, None, 10).await;
    assert!(settled.claims.is_empty());
    stores.wait(Duration::from_millis(1_500));
    assert_eq!(target(&stores.claim_one().await), Target::True);

    stores.half(RemoveMembers, "c", "r", &["ann"]).await;
    let leave = stores.exchange_at("Zürich '\\", Vec::new(), None, 10).await;
    assert_eq!(target(&leave.claims[0]), Target::Absent);
    assert_eq!(told(&leave.claims[0]), Told::Known(Target::True));
    let names = stores.cohort("c").await.destinations.into_iter();
    let names: Vec<_> = names.map(|delivery| delivery.name.to_string()).collect();
    assert_eq!(names, ["default", "Zürich '\\"]);
    let unknown = stores
        .store()
        .exchange(&"zürich".into(), Vec::new(), None, 10, stores.now())
        .await;
    unknown.unwrap_err();
}

/// Many calls end together, each in its way.
pub async fn calls_that_end_together_end_each_in_its_way(stores: &mut Stores) {
    let everybody = odd();
    stores.full("c", "s", &names(&everybody)).await;
    let claims = stores.claim().await;
    let due_at = stores.now() + 1_000;
    let outcomes = [done(), dead("400"), retry(due_at, true), Outcome::Unsent];
    let mut settle = Vec::new();
    let mut expected = [0_usize; 4];
    for (at, claim) in claims.into_iter().enumerate() {
        expected[at % 4] += 1;
        let mut settlement = written(claim);
        settlement.outcome = outcomes[at % 4].clone();
        settle.push(settlement);
    }
    // What was not sent may go again in the same exchange.
    let next = stores.exchange(settle).await;
    assert_eq!(next.claims.len(), expected[3]);
    assert_eq!(next.next_due, Some(due_at).min(next.next_due));
    stores.reopen().await;
    let pending = (expected[2] + expected[3]) as u64;
    assert_eq!(stores.pending("c").await, (pending, expected[1] as u64));
    stores.wait(Duration::from_millis(1_000));
    let mut retried = stores.claim().await;
    assert_eq!(retried.len() as u64, pending);
    retried.retain(|claim| claim.attempts == 1);
    assert_eq!(retried.len(), expected[2]);
}
