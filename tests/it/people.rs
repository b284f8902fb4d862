//! A person is not an identifier: where another property than the distinct id identifies, people
//! share identifiers, change them, and come without them.

use std::collections::BTreeMap;
use std::time::Duration;

use cohort_bridge::mixpanel::{Anonymous, IdentifierRules, SetAside};
use cohort_bridge::store::FullSyncReason;
use serde_json::{Value, json};

use crate::support::ledger::{Ledger, member};

const IDENTIFIERS: [&str; 4] = ["u1", "u2", "u3", "u4"];

fn by_user_id() -> IdentifierRules {
    IdentifierRules::new(["$user_id"], Anonymous::Skip)
}

/// A person who goes by an identifier.
fn who(person: &str, identifier: &str) -> Value {
    json!({"mixpanel_distinct_id": person, "$user_id": identifier})
}

/// A ledger that knows these people.
async fn knowing(people: &[Value]) -> Ledger {
    let ledger = Ledger::new(by_user_id(), None);
    ledger.session("members", "base", people).await;
    ledger
}

async fn with_trait(ledger: &Ledger) -> String {
    ledger.with_trait(&IDENTIFIERS).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shared_identifier_keeps_the_trait_while_anybody_holds_it() {
    let ledger = knowing(&[who("ann", "u1"), who("bob", "u1")]).await;
    assert_eq!(ledger.cohort().await.members, 1, "the trait is one");
    ledger.run("one", &[], &[who("ann", "u1")]).await;
    assert_eq!(with_trait(&ledger).await, "u1");
    ledger.run("two", &[], &[who("bob", "u1")]).await;
    assert_eq!(with_trait(&ledger).await, "");
    assert_eq!(ledger.trait_of("u1").await, Some(false));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_leaves_without_the_property_leaves() {
    let ledger = knowing(&[who("ann", "u1"), who("bob", "u2")]).await;
    ledger.run("one", &[], &[member("ann")]).await;
    assert_eq!(with_trait(&ledger).await, "u2");
    ledger
        .run("two", &[who("cyd", "u3")], &[member("bob")])
        .await;
    assert_eq!(with_trait(&ledger).await, "u3");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_added_under_another_identifier_leaves_the_old_one() {
    let ledger = knowing(&[who("ann", "u1"), who("bob", "u2"), who("cyd", "u2")]).await;
    ledger
        .run("one", &[who("ann", "u3"), who("bob", "u4")], &[])
        .await;
    assert_eq!(with_trait(&ledger).await, "u2 u3 u4", "cyd holds u2");
    assert_eq!(ledger.trait_of("u1").await, Some(false));
    ledger
        .run("two", &[], &[member("ann"), member("cyd")])
        .await;
    assert_eq!(with_trait(&ledger).await, "u4");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_sync_knows_a_new_identifier() {
    let ledger = knowing(&[who("ann", "u1"), who("bob", "u2"), who("cyd", "u2")]).await;
    let people = [who("ann", "u3"), who("bob", "u4"), who("cyd", "u2")];
    ledger.session("members", "next", &people).await;
    assert_eq!(with_trait(&ledger).await, "u2 u3 u4");
    ledger
        .run("one", &[], &[member("ann"), member("bob")])
        .await;
    assert_eq!(with_trait(&ledger).await, "u2");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_sync_keeps_whom_it_names_without_the_property() {
    let ledger = knowing(&[who("ann", "u1"), who("bob", "u2")]).await;
    ledger
        .session("members", "next", &[member("ann"), member("stranger")])
        .await;
    assert_eq!(with_trait(&ledger).await, "u1");
    assert_eq!(ledger.cohort().await.members, 1);
    assert_eq!(
        ledger.set_aside().await,
        [(SetAside::Missing, 1)],
        "the stranger"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_known_is_not_set_aside() {
    let mut ledger = knowing(&[who("ann", "u1"), who("bob", "u2")]).await;
    ledger
        .run("one", &[], &[member("ann"), who("bob", " ")])
        .await;
    assert_eq!(ledger.set_aside().await, []);
    let back = [member("ann"), member("bob"), member("cyd"), who("dan", "")];
    ledger.run("two", &back, &[]).await;
    assert_eq!(with_trait(&ledger).await, "u1 u2");
    let strangers = [(SetAside::Blank, 1), (SetAside::Missing, 1)];
    assert_eq!(ledger.set_aside().await, strangers);

    // So after kills, and where it takes many pieces.
    ledger.clock.advance(Duration::from_secs(1_800));
    ledger.page("members", "next", (1, 1), &back).await;
    let mut fold = ledger.new_fold().in_pieces_of(1);
    for _ in 0..3 {
        fold.step().await.unwrap();
    }
    drop(fold);
    ledger.fold_with_kills(4).await;
    ledger.settle().await;
    assert_eq!(with_trait(&ledger).await, "u1 u2");
    assert_eq!(ledger.set_aside().await, strangers);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_page_may_name_an_identifier_twice() {
    let people = [
        who("ann", "u1"),
        who("bob", "u1"),
        who("ann", "u1"),
        who("cyd", "u2"),
    ];
    let ledger = knowing(&people).await;
    assert_eq!(ledger.cohort().await.members, 2);
    let ledger = knowing(&[]).await;
    ledger.run("one", &people, &[]).await;
    assert_eq!(ledger.cohort().await.members, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn those_set_aside_are_counted_since_the_last_full_sync() {
    let odd = [
        who("ann", "u1"),
        member("bob"),
        member("cyd"),
        who("dan", " "),
        who("eve", "$device:1"),
    ];
    let ledger = knowing(&odd).await;
    use SetAside::{Anonymous, Blank, Missing, Padded};
    assert_eq!(
        ledger.set_aside().await,
        [(Anonymous, 1), (Blank, 1), (Missing, 2)]
    );
    ledger
        .run("one", &[member("fay"), who("gil", "u2 ")], &[member("bob")])
        .await;
    assert_eq!(
        ledger.set_aside().await,
        [(Anonymous, 1), (Blank, 1), (Missing, 3), (Padded, 1)]
    );
    ledger
        .session("members", "next", &[who("ann", "u1"), who("dan", "")])
        .await;
    assert_eq!(ledger.set_aside().await, [(Blank, 1)]);
    ledger.session("members", "last", &[who("ann", "u1")]).await;
    assert_eq!(ledger.set_aside().await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_sync_under_new_rules_puts_everything_right() {
    let mut ledger = Ledger::new(IdentifierRules::default(), None);
    let everybody = ["ann", "bob", "u3", "u1", "u2"];
    ledger
        .session("members", "base", &["ann", "bob", "u3"].map(member))
        .await;
    ledger.identify_by(by_user_id());
    assert_eq!(
        ledger.cohort().await.needs_full_sync,
        Some(FullSyncReason::IdentifiedOtherwise {
            was: IdentifierRules::default().describe().to_string(),
            now: by_user_id().describe().to_string(),
        })
    );
    // Known by the identifier alone, and by no person.
    ledger.run("one", &[], &[who("u3", "u3")]).await;
    assert_eq!(ledger.with_trait(&everybody).await, "ann bob");
    assert!(ledger.cohort().await.needs_full_sync.is_some());
    ledger
        .session("members", "next", &[who("ann", "u1"), who("bob", "u2")])
        .await;
    assert_eq!(ledger.cohort().await.needs_full_sync, None);
    assert_eq!(ledger.with_trait(&everybody).await, "u1 u2");
    assert_eq!(ledger.trait_of("ann").await, Some(false));
    ledger.run("two", &[], &[member("ann")]).await;
    assert_eq!(ledger.with_trait(&everybody).await, "u2");
}

/// Whoever is named by a held full sync under new rules, and then leaves, has nobody held beside
/// them who keeps the trait.
async fn leave_after_a_held_full_sync(
    was: (IdentifierRules, [Value; 3]),
    now: (IdentifierRules, Value),
) {
    let (rules, people) = was;
    let mut ledger = Ledger::new(rules, Some("1"));
    ledger.session("members", "base", &people).await;
    let (rules, stays) = now;
    ledger.identify_by(rules);
    ledger
        .session("members", "next", std::slice::from_ref(&stays))
        .await;
    assert_eq!(ledger.held().await.unwrap().0, 2);
    assert_eq!(with_trait(&ledger).await, "u1 u2 u3");
    ledger.run("one", &[], &[stays]).await;
    assert_eq!(with_trait(&ledger).await, "u1 u2");
    assert_eq!(ledger.held().await.unwrap().0, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_held_full_sync_knows_whom_other_rules_named() {
    let by_distinct_id = IdentifierRules::default();
    leave_after_a_held_full_sync(
        (by_distinct_id.clone(), ["u1", "u2", "u3"].map(member)),
        (by_user_id(), who("cyd", "u3")),
    )
    .await;
    leave_after_a_held_full_sync(
        (
            by_user_id(),
            [who("ann", "u1"), who("bob", "u2"), who("cyd", "u3")],
        ),
        (by_distinct_id, member("u3")),
    )
    .await;
}

/// Who is a member in Mixpanel, and the identifier last heard of each.
#[derive(Clone, Default)]
struct Model(BTreeMap<usize, (bool, Option<&'static str>)>);

impl Model {
    fn is_member(&self, person: usize) -> bool {
        self.0.get(&person).is_some_and(|(member, _)| *member)
    }

    fn hear(&mut self, person: usize, member: bool, identifier: Option<&'static str>) {
        let known = self.0.entry(person).or_default();
        known.1 = identifier.or(known.1);
        known.0 = member;
    }

    fn with_trait(&self) -> String {
        let held = |identifier: &&str| {
            let mut people = self.0.values();
            people.any(|(member, by)| *member && *by == Some(*identifier))
        };
        let with: Vec<_> = IDENTIFIERS.into_iter().filter(held).collect();
        with.join(" ")
    }
}

fn some_people(random: &mut fastrand::Rng) -> Vec<usize> {
    (0..5).filter(|_| random.bool()).collect()
}

fn json_of(person: usize, identifier: Option<&str>) -> Value {
    let person = format!("person{person}");
    identifier.map_or_else(|| member(&person), |identifier| who(&person, identifier))
}

async fn live(seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut ledger = Ledger::new(by_user_id(), None);
    let mut model = Model::default();
    let mut history = Vec::new();
    for step in 0..20 {
        ledger.clock.advance(Duration::from_secs(1_800));
        let mut sessions = Vec::new();
        let people = some_people(&mut random);
        let name = |random: &mut fastrand::Rng| match random.u8(0..5) {
            0 => None,
            _ => random.choice(IDENTIFIERS),
        };
        let page = |people: &[usize], random: &mut fastrand::Rng| -> Vec<_> {
            people
                .iter()
                .map(|person| (*person, name(random)))
                .collect()
        };
        if step == 0 || random.u8(0..4) == 0 {
            sessions.push(("members", page(&people, &mut random)));
        } else {
            // Differences: who joins was not in, who leaves was.
            let (left, joined): (Vec<_>, Vec<_>) = people
                .into_iter()
                .partition(|person| model.is_member(*person));
            sessions.push(("add_members", page(&joined, &mut random)));
            sessions.push(("remove_members", page(&left, &mut random)));
        }
        for (action, people) in &sessions {
            if *action == "members" {
                model.0.values_mut().for_each(|known| known.0 = false);
            }
            for (person, identifier) in people {
                match *action {
                    // What a leaver's page says of the identifier is not taken over.
                    "remove_members" => model.hear(*person, false, None),
                    _ => model.hear(*person, true, *identifier),
                }
            }
            let members: Vec<_> = people
                .iter()
                .map(|(person, by)| json_of(*person, *by))
                .collect();
            ledger
                .page(action, &format!("s{step}"), (1, 1), &members)
                .await;
        }
        history.push(sessions);
        if random.u8(0..3) == 0 {
            // A life takes at least as many steps as a full sync of one piece: fewer would never end.
            ledger.fold_with_kills(random.usize(4..8)).await;
        }
        ledger.settle().await;
        assert_eq!(
            with_trait(&ledger).await,
            model.with_trait(),
            "seed {seed}: {history:#?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_happens_a_trait_is_true_while_a_member_holds_it() {
    for seed in 0..60 {
        live(seed).await;
    }
}
