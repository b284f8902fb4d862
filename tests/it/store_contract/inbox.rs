//! Pages, from when they are written down to when they are taken into their sessions.

use std::time::Duration;

use cohort_bridge::cohort::Action::{AddMembers, Members, RemoveMembers};
use cohort_bridge::mixpanel::SetAside;
use cohort_bridge::roster::{Entry, PersonHash, Roster};
use cohort_bridge::store::{Effect, SESSION_EXPIRES};

use super::{odd, odd_texts};
use crate::support::bench::{HALF_AN_HOUR, page};
use crate::support::eventually;
use crate::support::stores::{Stores, source};

pub async fn pages_are_taken_in_the_order_in_which_they_came(stores: &mut Stores) {
    let store = stores.store().clone();
    let waiting = async || store.waiting_pages().await.unwrap();
    assert_eq!(waiting().await, 0);
    // Neither by session nor by number.
    for (cohort, session, place) in [
        ("c", "s", (2, 2)),
        ("d", "t", (1, 1)),
        ("c", "s", (1, 2)),
        ("e", "u", (1, 2)),
    ] {
        stores
            .append(page(Members, cohort, session, place, &["ann"]))
            .await;
    }
    assert_eq!(waiting().await, 4);
    let assemble = async |pages| store.assemble(pages, 10, stores.now()).await.unwrap();
    let first = assemble(1).await;
    assert_eq!((first.pages, first.notes), (1, 0));
    assert!(first.whole.is_none() && first.is_anything());
    assert_eq!(waiting().await, 3);

    // Up to the one that makes a session whole, however many might be taken.
    let second = assemble(100).await;
    let whole = second.whole.unwrap();
    assert_eq!((second.pages, whole.effect), (1, Effect::Replace));
    assert_eq!(whole.pages, [1]);
    assert_eq!(waiting().await, 3, "a whole session is one");
    // It is given again, and no page is taken, until it has taken effect.
    let again = assemble(100).await;
    assert_eq!(again.pages, 0);
    assert_eq!(again.whole.unwrap().session, whole.session);
    store
        .finish(whole.session, Default::default(), stores.now())
        .await
        .unwrap();
    assert_eq!(waiting().await, 2);

    let third = assemble(100).await;
    assert_eq!((third.pages, third.whole.unwrap().pages), (1, vec![1, 2]));
    stores.fold().await;
    assert_eq!(waiting().await, 0);
    let ids = store.cohorts().await.unwrap().into_iter();
    let received: Vec<_> = ids
        .map(|cohort| {
            let session = cohort.session.unwrap();
            let is_over = session.completed_at.is_some();
            (cohort.cohort_id, session.pages_received, is_over)
        })
        .collect();
    let expected = [("c", 2, true), ("d", 1, true), ("e", 1, false)];
    let expected = expected.map(|(id, pages, is_over)| (id.to_owned(), pages, is_over));
    assert_eq!(received, expected);
    assert!(!assemble(100).await.is_anything());
}

/// Many write at once while pages are taken, and each of them in order.
pub async fn no_page_is_passed_over_while_many_come_at_once(stores: &mut Stores) {
    const SENDERS: usize = 8;
    const PAGES: u32 = 12;
    let now = stores.now();
    let mut sending = tokio::task::JoinSet::new();
    for sender in 0..SENDERS {
        let store = stores.store().clone();
        sending.spawn(async move {
            let id = sender.to_string();
            for number in 1..=PAGES {
                let person = format!("{number:02} {id}");
                let one = page(Members, &id, "s", (number, PAGES), &[&person]);
                store.append(&source(), one, now).await.unwrap();
            }
        });
    }
    let (mut taken, mut sent) = (0, false);
    loop {
        let assembled = stores.store().assemble(3, 10, now).await.unwrap();
        taken += assembled.pages;
        if let Some(whole) = assembled.whole {
            let session = whole.session;
            let finished = stores
                .store()
                .finish(session, Default::default(), now)
                .await;
            finished.unwrap();
        } else if assembled.pages == 0 && sent {
            break;
        }
        sent = sent || sending.try_join_next().is_none() && sending.is_empty();
    }
    assert_eq!(taken, SENDERS * PAGES as usize);
    let cohorts = stores.store().cohorts().await.unwrap();
    let over = cohorts.iter().filter(|cohort| {
        let session = cohort.session.as_ref().unwrap();
        session.completed_at.is_some() && session.pages_received == PAGES
    });
    assert_eq!(over.count(), SENDERS);
}

pub async fn a_page_outlives_a_kill_whatever_is_on_it(stores: &mut Stores) {
    let everybody = odd();
    let mut with_people = Vec::new();
    for (number, identifier) in everybody.iter().enumerate() {
        let person = (number % 2 == 0).then(|| PersonHash::of(identifier));
        with_people.push((identifier.as_str(), person));
    }
    let entries = with_people.iter();
    let roster = Roster::from_sorted(entries.map(|(identifier, person)| Entry {
        identifier,
        person: *person,
    }));
    let sent = |text: &str, roster: &Roster| {
        let mut sent = page(Members, text, text, (1, 1), &[]);
        sent.project_id = text.into();
        sent.identified_by = text.into();
        sent.cohort_name = Some(format!("{text} name"));
        sent.roster = roster.clone();
        sent
    };
    for text in odd_texts() {
        stores.append_to(text, sent(text, &roster)).await;
        stores.reopen().await;
    }
    let texts = odd_texts();
    let waiting = stores.store().waiting_pages().await.unwrap();
    assert_eq!(waiting, texts.len() as u64);
    for text in &texts {
        let assembled = stores.store().assemble(10, 10, stores.now()).await.unwrap();
        let whole = assembled.whole.unwrap();
        assert!(whole.maps_people);
        let people = stores.store().page_people(vec![(whole.session, 1)]).await;
        assert_eq!(people.unwrap()[0].roster, roster);
        let finished = stores
            .store()
            .finish(whole.session, Default::default(), stores.now())
            .await;
        finished.unwrap();
        let cohort = stores.cohort(text).await;
        assert_eq!(&*cohort.source.0, *text);
        assert_eq!(cohort.project_id, *text);
        assert_eq!(cohort.name, format!("{text} name"));
        assert_eq!(cohort.session.unwrap().id, *text);
    }
}

pub async fn what_a_page_lacks_is_not_made_up(stores: &mut Stores) {
    let mut bare = page(AddMembers, "c", "", (1, 1), &["ann"]);
    bare.cohort_name = None;
    bare.session_id = None;
    bare.page_info = None;
    bare.project_id = String::new();
    stores.append(bare).await;
    stores.reopen().await;
    let assembled = stores.store().assemble(10, 10, stores.now()).await.unwrap();
    let effect = assembled.whole.unwrap().effect;
    assert_eq!(effect, Effect::of_page_alone(AddMembers));
    stores.fold().await;
    let cohort = stores.cohort("c").await;
    assert_eq!((&*cohort.name, &*cohort.project_id), ("c", ""));
    assert_eq!((cohort.former_name, cohort.members), (None, 1));
    assert_eq!(cohort.session.unwrap().id, "");
}

pub async fn the_times_of_pages_are_exact(stores: &mut Stores) {
    // Neither is a double nor a date of every calendar.
    for at in [-9_007_199_254_740_993, 0, 9_007_199_254_740_993] {
        let id = at.to_string();
        let told = page(Members, &id, "s", (1, 1), &["ann"]);
        stores.store().append(&source(), told, at).await.unwrap();
    }
    stores.reopen().await;
    stores.fold().await;
    for cohort in stores.store().cohorts().await.unwrap() {
        assert_eq!(cohort.last_heard_at.to_string(), cohort.cohort_id);
    }
}

pub async fn members_set_aside_are_counted_by_reason(stores: &mut Stores) {
    let all = [
        SetAside::Missing,
        SetAside::Blank,
        SetAside::TooLong,
        SetAside::Nul,
        SetAside::Padded,
        SetAside::Surrogate,
        SetAside::Anonymous,
    ];
    let mut full = page(Members, "c", "s", (1, 1), &[]);
    full.set_aside = (1..)
        .map(|n: usize| n * 1_000)
        .zip(all)
        .map(|(n, r)| (r, n))
        .collect();
    stores.append(full).await;
    stores.reopen().await;
    stores.fold().await;
    let mut joined = page(AddMembers, "c", "t", (1, 1), &["ann"]);
    joined.set_aside = vec![(SetAside::Nul, 1)];
    stores.take(joined).await;
    let mut counted = stores.cohort("c").await.set_aside;
    counted.sort_unstable();
    let expected = [1_000, 2_000, 3_000, 4_001, 5_000, 6_000, 7_000];
    assert_eq!(counted, all.into_iter().zip(expected).collect::<Vec<_>>());
    stores.full("c", "u", &["ann"]).await;
    assert_eq!(stores.cohort("c").await.set_aside, []);
}

pub async fn a_refused_page_is_noted_before_the_next(stores: &mut Stores) {
    stores.full("c", "base", &["old"]).await;
    stores.wait(HALF_AN_HOUR);
    stores.half(AddMembers, "c", "a1", &["new"]).await;
    stores.half(RemoveMembers, "c", "r1", &["old"]).await;
    let refused = page(AddMembers, "c", "a1", (1, 1), &["new"]);
    let store = stores.store();
    store.note_refused(&source(), &refused, stores.now());
    stores.wait(HALF_AN_HOUR);
    let next = page(AddMembers, "c", "a2", (1, 1), &["sue"]);
    stores.append(next).await;
    stores.reopen().await;
    // A note is no page that waits.
    assert_eq!(stores.store().waiting_pages().await.unwrap(), 1);
    let assembled = stores.store().assemble(10, 10, stores.now()).await.unwrap();
    assert_eq!((assembled.pages, assembled.notes), (2, 1));
    stores.fold().await;
    let cohort = stores.cohort("c").await;
    assert_eq!((cohort.runs.accepted, cohort.runs.undone), (1, 1));
    let everybody = ["new", "old", "sue"];
    assert_eq!(stores.members("c", &everybody).await, ["old", "sue"]);
}

/// The note speaks against what came before it, and not against the page that is taken in the end.
pub async fn a_refused_page_that_comes_once_more_counts(stores: &mut Stores) {
    stores.full("c", "base", &["old"]).await;
    stores.wait(HALF_AN_HOUR);
    stores.half(AddMembers, "c", "a1", &["new"]).await;
    stores.half(RemoveMembers, "c", "r1", &["old"]).await;
    let again = page(AddMembers, "c", "a1", (1, 1), &["new"]);
    let now = stores.now();
    let store = stores.store();
    store.note_refused(&source(), &again, now);
    store.append(&source(), again, now).await.unwrap();
    stores.wait(HALF_AN_HOUR);
    stores.half(AddMembers, "c", "a2", &["sue"]).await;
    let runs = stores.cohort("c").await.runs;
    assert_eq!((runs.accepted, runs.undone), (1, 0));
    let everybody = ["new", "old", "sue"];
    assert_eq!(stores.members("c", &everybody).await, ["new", "sue"]);
}

/// Nobody waits for it, and no page need come.
pub async fn a_note_of_a_refused_page_is_written_down_soon(stores: &mut Stores) {
    let refused = page(AddMembers, "c", "a", (1, 1), &["ann"]);
    let now = stores.now();
    stores.store().note_refused(&source(), &refused, now);
    eventually("the note", async || {
        let assembled = stores.store().assemble(10, 10, now).await.unwrap();
        assert_eq!(assembled.pages, assembled.notes);
        (assembled.notes == 1).then_some(())
    })
    .await;
    stores.fold().await;
    assert!(stores.member("ann").await.is_empty());
}

pub async fn a_session_that_stays_silent_ends(stores: &mut Stores) {
    stores.full("c", "base", &["ann"]).await;
    let half = |number| page(Members, "c", "s", (number, 2), &["bob"]);
    stores.take(half(1)).await;
    stores.wait(SESSION_EXPIRES - Duration::from_millis(1));
    let now = stores.now();
    let tidied = stores.store().assemble(10, 10, now).await.unwrap().tidied;
    assert!(!tidied, "not yet");
    stores.wait(Duration::from_millis(2));
    let now = stores.now();
    let assembled = stores.store().assemble(10, 10, now).await.unwrap();
    assert!(assembled.tidied && assembled.pages == 0);
    stores.reopen().await;
    stores.take(half(2)).await;
    assert_eq!(stores.members("c", &["ann", "bob"]).await, ["ann"]);
}

pub async fn properties_are_remembered_by_source(stores: &mut Stores) {
    let texts = odd_texts();
    for property in &texts {
        let has = stores.store().has_sent_property(&source(), property).await;
        assert!(!has.unwrap(), "{property}");
        for _ in 0..2 {
            let noted = stores.store().note_property(&source(), property).await;
            noted.unwrap();
        }
    }
    stores.reopen().await;
    let has = async |of: &str, property: &str| {
        let has = stores.store().has_sent_property(&of.into(), property).await;
        has.unwrap()
    };
    for property in &texts {
        assert!(has("default", property).await, "{property}");
        assert!(!has("other", property).await, "{property}");
        assert!(!has("DEFAULT", property).await, "{property}");
    }
    for other in ["", "z", "A", "%", "_"] {
        assert!(!has("default", other).await, "{other}");
    }
}
