//! People whose identifier is another property than Mixpanel's own id of them.

use std::collections::BTreeMap;

use cohort_bridge::cohort::Action;
use cohort_bridge::cohort::Action::{AddMembers, Members, RemoveMembers};
use cohort_bridge::mixpanel::{Page, SetAside};
use cohort_bridge::roster::{Entry, PersonHash, Roster};
use cohort_bridge::store::{PagePeople, WholeSession};

use crate::support::bench::{HALF_AN_HOUR, page};
use crate::support::stores::Stores;

/// Identifiers, and whose they are; without one where that is empty.
type People<'a> = &'a [(&'a str, &'a str)];

fn roster(people: People<'_>) -> Roster {
    let mut people: Vec<_> = people
        .iter()
        .map(|(identifier, person)| (*identifier, Some(PersonHash::of(person))))
        .collect();
    people.sort_unstable();
    Roster::from_sorted(people.iter().map(|(identifier, person)| Entry {
        identifier,
        person: *person,
    }))
}

fn told(action: Action, session: &str, people: People<'_>) -> Page {
    let mut told = page(action, "c", session, (1, 1), &[]);
    let nameless = people.iter().filter(|(id, _)| id.is_empty()).count();
    told.roster = roster(people);
    told.members_received = people.len();
    told.set_aside = (nameless > 0)
        .then_some((SetAside::Missing, nameless))
        .into_iter()
        .collect();
    told
}

async fn whole(stores: &Stores) -> WholeSession {
    let assembled = stores.store().assemble(128, 10, stores.now()).await;
    *assembled.unwrap().whole.expect("a whole session")
}

async fn people_of(stores: &Stores, whole: &WholeSession) -> PagePeople {
    let people = stores.store().page_people(vec![(whole.session, 1)]).await;
    people.unwrap().remove(0)
}

const EVERYBODY: [&str; 6] = ["Ü 1", "Ü 2", "Ü 3", "Ü 4", "ü 1", "😀"];

pub async fn people_go_by_the_identifier_that_the_ledger_knows(stores: &mut Stores) {
    stores
        .append(told(
            Members,
            "base",
            &[("Ü 1", "ann"), ("Ü 2", "bob"), ("", "cyd"), ("", "who")],
        ))
        .await;
    let base = whole(stores).await;
    assert!(base.maps_people);
    // Of nobody anything is known.
    let people = people_of(stores, &base).await;
    let named = [("Ü 1", "ann"), ("Ü 2", "bob")];
    assert_eq!(people.roster, roster(&named));
    assert_eq!(people.recognised, BTreeMap::new());

    // Another identifier of ann's than the page has; the page of a full sync knows better.
    let mut placed = vec![
        (PersonHash::of("ann"), "ü 1".to_owned()),
        (PersonHash::of("cyd"), "😀".to_owned()),
    ];
    placed.sort_unstable();
    for _ in 0..2 {
        let place = stores
            .store()
            .place_people(base.cohort, placed.clone())
            .await;
        place.unwrap();
    }
    stores.reopen().await;
    let people = people_of(stores, &base).await;
    let named = [("Ü 1", "ann"), ("Ü 2", "bob"), ("😀", "cyd")];
    assert_eq!(people.roster, roster(&named));
    assert_eq!(people.recognised, BTreeMap::from([(SetAside::Missing, 1)]));

    stores.fold_with_kills(1).await;
    let members = stores.members("c", &EVERYBODY).await;
    assert_eq!(members, ["Ü 1", "Ü 2", "😀"]);
    // Who is recognised is not set aside.
    let set_aside = stores.cohort("c").await.set_aside;
    assert_eq!(set_aside, [(SetAside::Missing, 1)]);

    // Who leaves without an identifier leaves.
    stores.wait(HALF_AN_HOUR);
    let leaving = told(RemoveMembers, "r1", &[("", "ann"), ("Ü 4", "bob")]);
    stores.append(leaving).await;
    let found = whole(stores).await;
    let people = people_of(stores, &found).await;
    let named = [("Ü 1", "ann"), ("Ü 2", "bob")];
    assert_eq!(people.roster, roster(&named), "as the ledger has them");
    assert_eq!(people.recognised, BTreeMap::from([(SetAside::Missing, 1)]));
    stores.fold_with_kills(1).await;
    assert_eq!(stores.members("c", &EVERYBODY).await, ["😀"]);
}

pub async fn several_pages_are_answered_in_the_order_asked(stores: &mut Stores) {
    for number in [1, 2, 3] {
        let mut told = told(Members, "base", &[(EVERYBODY[number], "ann")]);
        let info = told.page_info.as_mut().unwrap();
        (info.number, info.total) = (number as u32, 3);
        stores.append(told).await;
    }
    let session = whole(stores).await.session;
    let pages = [3, 1, 2, 1].map(|number| (session, number));
    let people = stores.store().page_people(pages.to_vec()).await.unwrap();
    let expected = [3, 1, 2, 1].map(|number| roster(&[(EVERYBODY[number], "ann")]));
    let rosters: Vec<_> = people.into_iter().map(|people| people.roster).collect();
    assert_eq!(rosters, expected);
    let none = stores.store().page_people(Vec::new()).await.unwrap();
    assert!(none.is_empty());
}

pub async fn another_identifier_takes_its_person_along(stores: &mut Stores) {
    let base = [("Ü 1", "ann"), ("Ü 2", "bob"), ("Ü 2", "cyd")];
    stores.append(told(Members, "base", &base)).await;
    stores.fold().await;
    stores.deliver().await;
    stores.wait(HALF_AN_HOUR);
    let joining = told(AddMembers, "a1", &[("Ü 3", "ann"), ("Ü 4", "bob")]);
    stores.append(joining).await;
    let found = whole(stores).await;
    let known = people_of(stores, &found).await.roster;
    assert_eq!(known, roster(&[("Ü 1", "ann"), ("Ü 2", "bob")]));
    for _ in 0..2 {
        let renamed = stores
            .store()
            .rename_people(found.session, 1, stores.now())
            .await;
        renamed.unwrap();
        stores.reopen().await;
    }
    let known = people_of(stores, &found).await.roster;
    assert_eq!(known, roster(&[("Ü 3", "ann"), ("Ü 4", "bob")]));
    // Before the session takes effect, and cyd still goes by the one that she shared.
    let members = stores.members("c", &EVERYBODY).await;
    assert_eq!(members, ["Ü 2", "Ü 3", "Ü 4"]);
    assert!(!stores.is_in("Ü 1").await["c"]);
    stores.fold().await;
    let members = stores.members("c", &EVERYBODY).await;
    assert_eq!(members, ["Ü 2", "Ü 3", "Ü 4"]);
    assert_eq!(stores.cohort("c").await.members, 3);
}
