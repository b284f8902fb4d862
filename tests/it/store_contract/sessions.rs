//! Whole sessions, judged and made true piece by piece.

use cohort_bridge::cohort::Action::{AddMembers, Members, RemoveMembers};
use cohort_bridge::cohort::Target;
use cohort_bridge::roster::Roster;
use cohort_bridge::run::Fate;
use cohort_bridge::sorted::{Items, Sorted, Sorter};
use cohort_bridge::store::{Applied, Chunk, Effect, Judgement, OWN_ROLE, RunCounts, WholeSession};

use super::{names, odd};
use crate::support::bench::{HALF_AN_HOUR, page};
use crate::support::stores::{Stores, callees};

/// The session that waits.
async fn whole(stores: &Stores) -> WholeSession {
    let assembled = stores.store().assemble(128, 10, stores.now()).await;
    *assembled.unwrap().whole.expect("a whole session")
}

/// Its people, in order.
async fn people_of(stores: &Stores, whole: &WholeSession) -> Sorted {
    let pages = whole.pages.iter().map(|page| (whole.session, *page));
    let pages = stores.store().page_people(pages.collect()).await.unwrap();
    let mut sorter = Sorter::default();
    for page in pages {
        sorter.add(&page.roster, OWN_ROLE).unwrap();
    }
    sorter.finish().unwrap()
}

/// A piece of it.
fn piece(whole: &WholeSession, after: Option<&str>, people: Items, last: bool) -> Chunk {
    Chunk {
        session: whole.session,
        cohort: whole.cohort,
        effect: whole.effect,
        layers: Vec::new(),
        holds_removals: false,
        after: after.map(str::to_owned),
        people,
        last,
        finishes: false,
        recognised: Default::default(),
    }
}

pub async fn a_full_sync_is_made_true_in_pieces_over_kills(stores: &mut Stores) {
    let everybody = odd();
    stores.full("c", "first", &names(&everybody)).await;
    stores.deliver().await;
    let (stay, leave): (Vec<_>, Vec<_>) = everybody
        .iter()
        .map(String::as_str)
        .enumerate()
        .partition(|(at, _)| at % 2 == 0);
    let leave: Vec<_> = leave.into_iter().map(|(_, person)| person).collect();
    let mut stay: Vec<_> = stay.into_iter().map(|(_, person)| person).collect();
    // In front of all, in the middle, and behind all.
    let new = ["\u{1}", "b", "\u{10ffff}"];
    stay.extend(new);
    let (one, two) = stay.split_at(3);
    stores
        .append(page(Members, "c", "second", (1, 2), one))
        .await;
    stores
        .append(page(Members, "c", "second", (2, 2), two))
        .await;

    let found = whole(stores).await;
    assert_eq!(
        (found.effect, &*found.pages),
        (Effect::Replace, &[1, 2][..])
    );
    assert_eq!(found.population, everybody.len() as u64);
    assert_eq!((&found.applied_through, &found.judgement), (&None, &None));
    assert!(found.layers.is_empty() && found.witnesses.is_empty());
    assert!(!found.is_left_out && !found.maps_people && found.guard.is_none());

    // Counted whole and in pieces, and nothing changes by it.
    let all = people_of(stores, &found).await.take(10_000, None).unwrap();
    let count = async |after: Option<&str>, people: Items, last| {
        let counted = stores
            .store()
            .count_removals(piece(&found, after, people, last))
            .await;
        counted.unwrap()
    };
    for _ in 0..2 {
        let counted = count(None, all.clone(), true).await;
        assert_eq!(
            (counted.removals, counted.through),
            (leave.len() as u64, None)
        );
    }
    let (mut sorted, mut after, mut removals) = (people_of(stores, &found).await, None, 0);
    loop {
        let people = sorted.take(1, None).unwrap();
        let last = sorted.is_at_end().unwrap();
        let upto = people.last_identifier().map(str::to_owned);
        let counted = count(after.as_deref(), people, last).await;
        removals += counted.removals;
        after = counted.through;
        if last {
            assert_eq!(after, None);
            break;
        }
        assert_eq!(after, upto);
    }
    assert_eq!(removals, leave.len() as u64);
    assert_eq!(stores.cohort("c").await.members, everybody.len() as u64);

    loop {
        let found = whole(stores).await;
        let after = found.applied_through.as_deref();
        let mut sorted = people_of(stores, &found).await;
        let people = sorted.take(1, after).unwrap();
        let last = sorted.is_at_end().unwrap();
        let upto = people.last_identifier().map(str::to_owned);
        let chunk = piece(&found, after, people, last);
        let applied = stores.store().apply(chunk, stores.now()).await.unwrap();
        stores.reopen().await;
        if last {
            assert_eq!(applied, Applied::Done);
            break;
        }
        assert_eq!(applied, Applied::Through(upto.unwrap()));
    }
    // All of it is true, and it has still to be said that it has taken effect.
    let found = whole(stores).await;
    assert_eq!(stores.store().waiting_pages().await.unwrap(), 1);
    let finish = async |stores: &Stores| {
        let finished = stores
            .store()
            .finish(found.session, Default::default(), stores.now())
            .await;
        finished.unwrap();
    };
    finish(stores).await;
    stores.reopen().await;
    finish(stores).await;
    assert_eq!(stores.store().waiting_pages().await.unwrap(), 0);
    assert!(
        stores
            .cohort("c")
            .await
            .session
            .unwrap()
            .completed_at
            .is_some()
    );

    stay.sort_unstable();
    let mut known: Vec<_> = names(&everybody);
    known.extend(new);
    known.sort_unstable();
    assert_eq!(stores.members("c", &known).await, stay);
    let cohort = stores.cohort("c").await;
    let counts = (cohort.members, cohort.left);
    assert_eq!(counts, (stay.len() as u64, leave.len() as u64));
    let mut calls: Vec<_> = stores.deliver().await;
    calls.sort_by(|one, other| one.identifier.cmp(&other.identifier));
    let mut expected: Vec<_> = leave
        .iter()
        .map(|person| (*person, Target::False))
        .collect();
    expected.extend(new.map(|person| (person, Target::True)));
    expected.sort_unstable_by_key(|(person, _)| *person);
    let called: Vec<_> = calls
        .iter()
        .map(|claim| (&*claim.identifier, claim.traits[0].target))
        .collect();
    assert_eq!(called, expected);
}

/// What is over changes nothing any more: the piece of a process that was slow, say.
pub async fn a_piece_of_a_session_that_is_over_changes_nothing(stores: &mut Stores) {
    stores.full("c", "first", &["ann"]).await;
    stores
        .append(page(Members, "c", "second", (1, 1), &["bob"]))
        .await;
    let found = whole(stores).await;
    let people = people_of(stores, &found).await.take(10, None).unwrap();
    let chunk = piece(&found, None, people, true);
    stores.fold().await;
    stores.full("c", "third", &["cyd"]).await;
    let applied = stores.store().apply(chunk, stores.now()).await.unwrap();
    assert_eq!(applied, Applied::Done);
    let members = stores.members("c", &["ann", "bob", "cyd"]).await;
    assert_eq!(members, ["cyd"]);
}

pub async fn a_full_sync_of_nobody_empties_a_cohort_in_bounded_pieces(stores: &mut Stores) {
    // More than one piece may look at.
    let everybody: Vec<_> = (0..9_000).map(|number| format!("{number:04}é")).collect();
    stores.full("c", "first", &names(&everybody)).await;
    stores
        .append(page(Members, "c", "second", (1, 1), &[]))
        .await;
    let found = whole(stores).await;
    let (mut after, mut removals) = (None::<String>, 0);
    loop {
        let chunk = piece(&found, after.as_deref(), Items::default(), true);
        let counted = stores.store().count_removals(chunk).await.unwrap();
        removals += counted.removals;
        after = counted.through;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(removals, 9_000);
    let (mut after, mut pieces) = (None::<String>, 0);
    loop {
        pieces += 1;
        let chunk = piece(&found, after.as_deref(), Items::default(), true);
        let applied = stores.store().apply(chunk, stores.now()).await.unwrap();
        match applied {
            Applied::Done => break,
            Applied::Through(through) => {
                assert!(after.is_none_or(|after| after < through));
                after = Some(through);
            }
        }
    }
    assert!(pieces > 1);
    stores.fold().await;
    let cohort = stores.cohort("c").await;
    assert_eq!((cohort.members, cohort.left), (0, 9_000));
    assert_eq!(cohort.destinations[0].pending, 9_000);
}

pub async fn differences_name_people_in_and_out(stores: &mut Stores) {
    let everybody = odd();
    let all = names(&everybody);
    let (out, stay) = all.split_at(all.len() / 2);
    // A half is nobody's where its page is empty.
    stores.half(AddMembers, "c", "a0", &[]).await;
    stores.half(RemoveMembers, "c", "r0", &[]).await;
    assert_eq!(stores.cohort("c").await.members, 0);
    for session in ["a1", "again"] {
        stores.wait(HALF_AN_HOUR);
        stores
            .append(page(AddMembers, "c", session, (1, 1), &all))
            .await;
        stores.fold_with_kills(1).await;
    }
    assert_eq!(stores.members("c", &all).await, all);
    let mut calls = stores.deliver().await;
    calls.sort_by(|one, other| one.identifier.cmp(&other.identifier));
    assert_eq!(callees(&calls), all, "each once");

    stores
        .append(page(RemoveMembers, "c", "r1", (1, 1), out))
        .await;
    stores.fold_with_kills(1).await;
    assert_eq!(stores.members("c", &all).await, stay);
    // Who was never heard of, and leaves, may have had the trait.
    let strangers = ["b", "\u{10ffff}"];
    let alone = |action, people: &[&str]| {
        let mut alone = page(action, "c", "", (1, 1), people);
        alone.session_id = None;
        alone
    };
    stores.deliver().await;
    stores.take(alone(RemoveMembers, &strangers)).await;
    let calls = stores.deliver().await;
    let targets: Vec<_> = calls.iter().map(|claim| claim.traits[0].target).collect();
    assert_eq!(targets, [Target::False; 2]);
    // A page alone that calls itself a full sync only adds.
    stores.take(alone(Members, &strangers)).await;
    let cohort = stores.cohort("c").await;
    assert_eq!(cohort.members as usize, stay.len() + strangers.len());
}

pub async fn what_was_judged_is_kept(stores: &mut Stores) {
    stores.full("c", "base", &["ann"]).await;
    stores.wait(HALF_AN_HOUR);
    // A source that sends empty halves; then one that failed.
    stores.half(AddMembers, "c", "a0", &[]).await;
    stores.half(RemoveMembers, "c", "r0", &[]).await;
    stores.wait(HALF_AN_HOUR);
    stores.half(AddMembers, "c", "a1", &["new"]).await;
    stores.wait(HALF_AN_HOUR);
    stores
        .append(page(AddMembers, "c", "a2", (1, 1), &["sue"]))
        .await;
    let found = whole(stores).await;
    assert_eq!(found.judgement, None);
    // Of the accepted run both halves, and the one that failed.
    let failed: Vec<_> = found
        .layers
        .iter()
        .map(|found| {
            matches!(
                found.layer.question,
                cohort_bridge::run::Question::Failed { .. }
            )
        })
        .collect();
    assert_eq!(failed.iter().filter(|failed| **failed).count(), 1);
    let last = found.layers.last().unwrap();
    assert_eq!((&*last.pages, failed.last()), (&[1][..], Some(&true)));
    let people = stores.store().page_people(vec![(last.session, 1)]).await;
    assert_eq!(people.unwrap()[0].roster, Roster::of_identifiers(["new"]));

    let fates = failed.iter().map(|failed| match failed {
        true => Fate::Dropped,
        false => Fate::Stays,
    });
    let judgement = Judgement {
        fates: fates.collect(),
        holds_removals: true,
    };
    let layers = found.layers.iter().map(|found| found.session);
    let layers: Vec<_> = layers.collect();
    for _ in 0..2 {
        let judged = stores
            .store()
            .judge(found.session, layers.clone(), judgement.clone())
            .await;
        judged.unwrap();
    }
    stores.reopen().await;
    assert_eq!(whole(stores).await.judgement, Some(judgement));
    stores.fold_with_kills(1).await;
    let cohort = stores.cohort("c").await;
    let counts = RunCounts {
        accepted: 1,
        dropped: 1,
        undone: 0,
    };
    assert_eq!(cohort.runs, counts);
    let members = stores.members("c", &["ann", "new", "sue"]).await;
    assert_eq!(members, ["ann", "sue"]);
    assert_eq!(cohort.held.unwrap().held, 1, "new keeps the trait");
}
