//! Which cohorts go to which destinations, and what becomes of them when that changes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use cohort_bridge::clock::Clock;
use cohort_bridge::cohort::{DestinationName, OnLeave};
use cohort_bridge::route::{self, Routes};
use cohort_bridge::store::{DeliveryState, ResyncScope, Store};
use cohort_bridge::trait_key::ExplicitKey;
use proptest::prelude::*;

use crate::support::pages;
use crate::support::resyncs::{bring_up_all, cohort_at, order};
use crate::support::routed::{LATE_MS, Routed, dead, route};

/// Until the last call of a route that was taken away can have landed.
const LONG_AFTER: Duration = Duration::from_millis(LATE_MS as u64 + 120_000);

fn to(destinations: &[&str]) -> Routes {
    Routes::of(vec![route(None, destinations)])
}

#[tokio::test]
async fn a_cohort_goes_where_its_route_leads_and_nowhere_else() {
    let mut bench = Routed::new(&["a", "b"]);
    bench.routes = Routes::of(vec![
        route(Some("Trial *"), &["a"]),
        route(Some("Paying"), &["a", "b"]),
    ]);
    bench.restart();
    bench.full(("1", "Trial users"), "s", &["ann"]).await;
    bench.full(("2", "Paying"), "s", &["bob"]).await;
    bench.full(("3", "Others"), "s", &["cyd"]).await;
    assert_eq!(bench.goes("1").await, ["a"]);
    assert_eq!(bench.goes("2").await, ["a", "b"]);
    assert_eq!(bench.goes("3").await, [""; 0]);
    assert_eq!(bench.deliver("a").await, 2);
    assert_eq!(bench.deliver("b").await, 1);
    assert_eq!(bench.holding("a", "c1"), ["ann"]);
    assert_eq!(bench.holding("b", "c2"), ["bob"]);
    let ann = bench.store().member("ann").await.unwrap();
    let names = ann[0].destinations.iter().map(|there| &*there.name.0);
    assert_eq!(names.collect::<Vec<_>>(), ["a"]);
}

#[tokio::test]
async fn a_destination_added_later_is_brought_up_without_a_sync_though_killed_at_every_step() {
    let mut bench = Routed::new(&["a"]);
    let everybody = pages::people("usr", 10_000);
    let everybody: Vec<_> = everybody.iter().map(String::as_str).collect();
    bench.full(("1", "one"), "s", &everybody).await;
    bench.full(("2", "two"), "s", &["ann", "bob"]).await;
    bench.full(("2", "two"), "t", &["ann"]).await;
    assert_eq!(bench.deliver("a").await, 10_002);
    bench.destinations.push("b");
    bench.restart();
    let mut kills = 0;
    while bench.pending("1", "b").await + bench.pending("2", "b").await < 10_002 {
        // One step, and a piece of delivery, between two kills: nothing is written twice.
        bench.fold_steps(1).await;
        bench.deliver("b").await;
        bench.restart();
        kills += 1;
        if bench.held("b").len() == 10_002 {
            break;
        }
    }
    assert!(kills > 5, "{kills}");
    bench.fold().await;
    assert_eq!(bench.deliver("b").await, 0, "each trait once");
    assert_eq!(bench.held("b"), bench.held("a"));
    assert_eq!(bench.deliver("a").await, 0);
    bench.restart();
    bench.fold().await;
    assert_eq!(bench.deliver("b").await, 0);
}

#[tokio::test]
async fn whoever_changes_while_a_destination_is_brought_up_ends_right() {
    let mut bench = Routed::new(&["a"]);
    let everybody = pages::people("usr", 5_000);
    let everybody: Vec<_> = everybody.iter().map(String::as_str).collect();
    bench.full(("1", "one"), "s", &everybody).await;
    bench.deliver("a").await;
    bench.destinations.push("b");
    bench.restart();
    // It begins, and a first piece is pending.
    bench.fold_steps(2).await;
    let last = bench.store().member(everybody[4_999]).await.unwrap();
    let at_b = &last[0].destinations[1];
    assert_eq!((&*at_b.name.0, at_b.state), ("b", DeliveryState::Pending));
    assert_eq!(at_b.written, None);
    assert!(!bench.cohort("1").await.destinations[1].ready);
    bench.deliver("b").await;
    let (left, stayed) = everybody.split_at(2_500);
    let mut now_in = stayed[..2_000].to_vec();
    now_in.push(left[0]);
    bench.full(("1", "one"), "t", &now_in).await;
    bench.deliver("a").await;
    bench.deliver("b").await;
    assert_eq!(bench.held("b"), bench.held("a"));
    assert_eq!(bench.holding("b", "c1").len(), 2_001);
    let cohort = bench.cohort("1").await;
    assert!(cohort.destinations.iter().all(|there| there.ready));
}

#[tokio::test]
async fn a_route_that_is_taken_away_drops_what_is_pending_and_leaves_the_traits() {
    let mut bench = Routed::new(&["a", "b"]);
    bench.full(("1", "one"), "s", &["ann", "bob"]).await;
    bench.full(("2", "two"), "s", &["ann", "bob"]).await;
    bench.deliver("a").await;
    bench.deliver("b").await;
    let before = bench.held("b");
    bench.full(("1", "one"), "t", &["ann", "cyd", "dan"]).await;
    bench.full(("2", "two"), "t", &["ann"]).await;
    // A dead letter is one of the things pending.
    let first = bench.exchange("b", vec![], 1).await;
    let first: Vec<_> = first.into_iter().map(dead).collect();
    bench.exchange("b", first, 0).await;
    let dead_letters = bench.store().dead_letters(9).await.unwrap();
    assert_eq!(dead_letters.len(), 2, "of both cohorts: {dead_letters:?}");

    bench.routes = Routes::of(vec![route(Some("one"), &["a"]), route(None, &["a", "b"])]);
    bench.restart();
    bench.fold().await;
    assert_eq!(bench.goes("1").await, ["a"]);
    assert_eq!(bench.deliver("b").await, 0, "cohort 2 has its dead letter");
    assert_eq!(bench.held("b"), before);
    let dead_letters = bench.store().dead_letters(9).await.unwrap();
    assert_eq!(dead_letters.len(), 1, "{dead_letters:?}");
    assert_eq!(dead_letters[0].cohort_id, "2");
    bench.deliver("a").await;
    assert_eq!(bench.holding("a", "c1"), ["ann", "cyd", "dan"]);
    assert_eq!(bench.rows("pending"), 0);
    assert_eq!(bench.rows("backlog"), 0);
}

#[tokio::test]
async fn a_route_that_comes_back_asserts_everything_again_once_nothing_can_land_late() {
    let mut bench = Routed::new(&["a", "b"]);
    bench.full(("1", "one"), "s", &["ann", "bob"]).await;
    bench.deliver("b").await;
    // A call is under way when the route goes.
    bench.full(("1", "one"), "t", &["ann", "cyd"]).await;
    let under_way = bench.exchange("b", vec![], 1).await;
    bench.routes = to(&["a"]);
    bench.restart();
    bench.fold().await;
    bench.full(("1", "one"), "u", &["ann", "dan"]).await;
    bench.routes = Routes::default();
    bench.restart();
    bench.fold().await;
    assert_eq!(bench.goes("1").await, ["a"]);
    assert_eq!(bench.deliver("b").await, 0);
    // It lands late.
    bench.clock.advance(LONG_AFTER - Duration::from_millis(1));
    bench.fold().await;
    assert_eq!(bench.deliver("b").await, 0);
    bench.hear("b", &under_way[0]);
    bench.clock.advance(Duration::from_millis(1));
    bench.fold().await;
    assert_eq!(bench.goes("1").await, ["a", "b"]);
    // Everybody whom the ledger knows: ann and dan are in, bob and cyd left.
    assert_eq!(bench.deliver("b").await, 4);
    assert_eq!(bench.holding("b", "c1"), ["ann", "dan"]);
}

#[tokio::test]
async fn a_destination_that_was_out_of_the_settings_is_brought_up_again() {
    let mut bench = Routed::new(&["a", "b"]);
    bench.full(("1", "one"), "s", &["ann", "bob"]).await;
    bench.deliver("a").await;
    bench.deliver("b").await;
    bench.destinations = vec!["a"];
    bench.restart();
    bench.full(("1", "one"), "t", &["ann"]).await;
    bench.full(("1", "one"), "u", &["ann", "cyd"]).await;
    assert_eq!(bench.goes("1").await, ["a"]);
    bench.destinations.push("b");
    bench.clock.advance(LONG_AFTER);
    bench.restart();
    bench.fold().await;
    bench.deliver("a").await;
    bench.deliver("b").await;
    assert_eq!(bench.held("b"), bench.held("a"));
}

#[tokio::test]
async fn a_renamed_cohort_goes_where_its_new_name_leads() {
    let mut bench = Routed::new(&["a", "b"]);
    bench.routes = Routes::of(vec![route(Some("Trial *"), &["a"]), route(None, &["b"])]);
    bench.restart();
    bench.full(("1", "Trial users"), "s", &["ann", "bob"]).await;
    bench.deliver("a").await;
    bench.full(("1", "Users"), "t", &["ann", "cyd"]).await;
    assert_eq!(bench.goes("1").await, ["b"]);
    assert_eq!(bench.deliver("a").await, 0);
    assert_eq!(bench.holding("a", "c1"), ["ann", "bob"], "as they were");
    assert_eq!(bench.deliver("b").await, 3);
    assert_eq!(bench.holding("b", "c1"), ["ann", "cyd"]);
    // And back again: what it holds may be anything by now.
    bench.clock.advance(LONG_AFTER);
    bench.full(("1", "Trial users"), "u", &["cyd"]).await;
    bench.clock.advance(LONG_AFTER);
    bench.fold().await;
    assert_eq!(bench.goes("1").await, ["a"]);
    bench.deliver("a").await;
    assert_eq!(bench.holding("a", "c1"), ["cyd"]);
}

#[tokio::test]
async fn people_are_erased_wherever_a_trait_of_theirs_may_be() {
    let mut bench = Routed::new(&["once", "now", "never"]);
    bench.routes = to(&["once"]);
    bench.restart();
    bench.full(("1", "one"), "s", &["ann", "bob"]).await;
    bench.deliver("once").await;
    bench.routes = to(&["now"]);
    bench.restart();
    bench.fold().await;
    bench.deliver("now").await;
    let now = bench.clock.now();
    assert_eq!(bench.store().forget("ann", true, now).await.unwrap(), 1);
    bench.fold().await;
    // What is promised is kept, though nothing leads there any more.
    bench.routes = to(&["never"]);
    bench.restart();
    bench.fold().await;
    assert_eq!(bench.deliver("once").await, 1);
    assert_eq!(bench.deliver("now").await, 1);
    for destination in ["once", "now"] {
        assert_eq!(bench.holding(destination, "c1"), ["bob"], "{destination}");
    }
    bench.deliver("never").await;
    assert_eq!(bench.holding("never", "c1"), ["bob"]);
    assert!(
        !bench
            .held("never")
            .keys()
            .any(|(_, person)| person == "ann")
    );
}

#[tokio::test]
async fn a_key_that_passes_on_is_right_in_each_destination() {
    for on_leave in [OnLeave::False, OnLeave::Delete] {
        let mut bench = Routed::new(&["a", "b", "c"]);
        bench.on_leave = on_leave;
        bench.routes = Routes::of(vec![
            route(Some("one"), &["a", "c"]),
            route(Some("two"), &["b", "c"]),
        ]);
        bench.source.explicit_keys = keys(&[("1", "vip"), ("2", "other")]);
        bench.restart();
        bench.full(("1", "one"), "s", &["ann", "bob"]).await;
        bench.full(("2", "two"), "s", &["bob", "cyd"]).await;
        for destination in ["a", "b", "c"] {
            bench.deliver(destination).await;
        }
        bench.source.explicit_keys = keys(&[("1", "other"), ("2", "vip")]);
        bench.restart();
        let now = bench.clock.now();
        bench.store().adopt_keys(now).await.unwrap();
        bench.fold().await;
        for destination in ["a", "b", "c"] {
            bench.deliver(destination).await;
        }
        let nobody = [""; 0];
        assert_eq!(bench.holding("a", "other"), ["ann", "bob"]);
        assert_eq!(bench.holding("a", "vip"), nobody);
        assert_eq!(bench.holding("b", "vip"), ["bob", "cyd"]);
        assert_eq!(bench.holding("b", "other"), nobody);
        assert_eq!(bench.holding("c", "other"), ["ann", "bob"]);
        assert_eq!(bench.holding("c", "vip"), ["bob", "cyd"]);
        // Nobody is told of what never was there.
        let is_told = |destination: &str, key: &str, person: &str| {
            let held = bench.held(destination);
            held.contains_key(&(key.to_owned(), person.to_owned()))
        };
        assert!(!is_told("b", "vip", "ann") && !is_told("a", "other", "cyd"));
    }
}

fn keys(pairs: &[(&str, &str)]) -> Vec<ExplicitKey> {
    let keys = pairs.iter().map(|(id, key)| ExplicitKey {
        project_id: None,
        cohort_id: (*id).to_owned(),
        trait_key: (*key).to_owned(),
    });
    keys.collect()
}

#[tokio::test]
async fn what_is_doubted_is_asserted_again_only_where_the_cohort_goes() {
    let mut bench = Routed::new(&["a", "b"]);
    bench.full(("1", "one"), "s", &["ann", "bob"]).await;
    bench.full(("1", "one"), "t", &["ann"]).await;
    bench.deliver("a").await;
    bench.deliver("b").await;
    bench.routes = to(&["a"]);
    bench.restart();
    bench.fold().await;
    let now = bench.clock.now();
    let mut doubted = Vec::new();
    for destination in ["a", "b"] {
        let name = DestinationName::from(destination);
        doubted.push(bench.store().doubt(&name, now).await.unwrap());
    }
    assert_eq!(doubted, [2, 0]);
    assert_eq!(bench.deliver("a").await, 2);
    assert_eq!(bench.deliver("b").await, 0);
}

#[tokio::test]
async fn a_resync_is_of_the_destinations_where_the_cohort_goes() {
    let mut bench = Routed::new(&["a", "b"]);
    bench.routes = to(&["a"]);
    bench.restart();
    bench.full(("1", "one"), "s", &["ann", "bob"]).await;
    bench.deliver("a").await;
    for (scope, traits) in [
        (cohort_at("1", None), 2),
        (cohort_at("1", Some("a")), 2),
        (cohort_at("1", Some("b")), 0),
        (ResyncScope::Destination("a".into()), 2),
        (ResyncScope::Destination("b".into()), 0),
    ] {
        let destinations = ["a", "b"].map(DestinationName::from);
        let store = bench.store();
        let ordered = order(&**store, scope.clone(), None, bench.clock.now()).await;
        assert_eq!(ordered, Some(traits), "{scope:?}");
        for destination in &destinations {
            bring_up_all(&**store, destination, bench.clock.now()).await;
        }
        assert_eq!(bench.deliver("a").await as u64, traits, "{scope:?}");
        assert_eq!(bench.deliver("b").await, 0);
    }
}

/// What may happen.
#[derive(Clone, Debug)]
enum Op {
    /// A full sync of a cohort under a name.
    Sync(usize, usize, BTreeSet<usize>),
    /// Other routes: for each name, to which destinations.
    Reroute([BTreeSet<usize>; 3]),
    /// A destination is in the settings, or not.
    Settings(usize, bool),
    Fold(usize),
    Deliver(usize),
    Kill,
    Wait,
}

const DESTINATIONS: [&str; 2] = ["a", "b"];
const NAMES: [&str; 3] = ["x", "xy", "y"];
const PEOPLE: [&str; 5] = ["ann", "bob", "cyd", "dan", "eve"];
const COHORTS: [&str; 2] = ["1", "2"];

fn op() -> impl Strategy<Value = Op> {
    let some_of = |most: usize| prop::collection::btree_set(0..most, 0..=most);
    prop_oneof![
        4 => (0..2_usize, 0..3_usize, some_of(5)).prop_map(|(c, n, p)| Op::Sync(c, n, p)),
        2 => [some_of(2), some_of(2), some_of(2)].prop_map(Op::Reroute),
        1 => (0..2_usize, any::<bool>()).prop_map(|(d, is)| Op::Settings(d, is)),
        3 => (1..6_usize).prop_map(Op::Fold),
        3 => (0..2_usize).prop_map(Op::Deliver),
        1 => Just(Op::Kill),
        1 => Just(Op::Wait),
    ]
}

/// The routes, and beside them what they should mean.
struct World {
    bench: Routed,
    /// By name, where cohorts go.
    leads: [BTreeSet<usize>; 3],
    /// By cohort: name and members.
    cohorts: BTreeMap<usize, (usize, BTreeSet<usize>)>,
    sessions: usize,
}

impl World {
    async fn run(&mut self, op: Op) {
        let bench = &mut self.bench;
        match op {
            Op::Sync(cohort, name, people) => {
                let ids: Vec<_> = people.iter().map(|person| PEOPLE[*person]).collect();
                let session = format!("s{}", self.sessions);
                self.sessions += 1;
                bench
                    .append((COHORTS[cohort], NAMES[name]), &session, &ids)
                    .await;
                self.cohorts.insert(cohort, (name, people));
            }
            Op::Reroute(leads) => {
                let routes = NAMES.iter().zip(&leads).map(|(name, to)| {
                    let to: Vec<_> = to.iter().map(|at| DESTINATIONS[*at]).collect();
                    route(Some(name), &to)
                });
                bench.routes = Routes::of(routes.collect());
                self.leads = leads;
                bench.restart();
            }
            Op::Settings(destination, is_there) => {
                let name = DESTINATIONS[destination];
                bench.destinations.retain(|other| *other != name);
                if is_there {
                    bench.destinations.push(name);
                }
                bench.restart();
            }
            Op::Fold(steps) => bench.fold_steps(steps).await,
            Op::Deliver(destination) => {
                let name = DESTINATIONS[destination];
                if bench.destinations.contains(&name) {
                    bench.deliver(name).await;
                }
            }
            Op::Kill => bench.restart(),
            Op::Wait => bench.clock.advance(LONG_AFTER),
        }
    }

    async fn check(mut self) -> Result<(), TestCaseError> {
        let bench = &mut self.bench;
        for _ in 0..2 {
            bench.fold().await;
            bench.clock.advance(LONG_AFTER);
        }
        bench.fold().await;
        for name in DESTINATIONS {
            if !bench.destinations.contains(&name) {
                continue;
            }
            bench.deliver(name).await;
            let place = DESTINATIONS
                .iter()
                .position(|other| *other == name)
                .unwrap();
            for (cohort, (cohort_name, members)) in &self.cohorts {
                if !self.leads[*cohort_name].contains(&place) {
                    continue;
                }
                let mut expected: Vec<_> = members.iter().map(|person| PEOPLE[*person]).collect();
                expected.sort_unstable();
                let key = format!("c{}", COHORTS[*cohort]);
                prop_assert_eq!(bench.holding(name, &key), expected, "{} at {}", key, name);
            }
        }
        // Nothing is left over of what goes nowhere.
        prop_assert_eq!(bench.rows("pending"), 0);
        prop_assert_eq!(bench.rows("backlog"), 0);
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_history_of_routes_ends_right(ops in prop::collection::vec(op(), 1..40), deletes in any::<bool>()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut bench = Routed::new(&DESTINATIONS);
            bench.on_leave = if deletes { OnLeave::Delete } else { OnLeave::False };
            let everywhere = BTreeSet::from([0, 1]);
            let mut world = World {
                bench,
                leads: [everywhere.clone(), everywhere.clone(), everywhere],
                cohorts: BTreeMap::new(),
                sessions: 0,
            };
            world.bench.restart();
            for op in ops {
                world.run(op).await;
            }
            world.check().await
        })?;
    }
}

#[test]
fn the_rule_is_the_first_route_that_matches() {
    let routes = Routes::of(vec![route(Some("x"), &["a"]), route(Some("x*"), &["b"])]);
    let cohort = route::Routed {
        source: "default",
        project_id: "1",
        cohort_id: "1",
        name: "x",
    };
    let b = DestinationName::from("b");
    assert!(!routes.lead(cohort, &b));
    assert!(routes.lead(
        route::Routed {
            name: "xy",
            ..cohort
        },
        &b
    ));
}
