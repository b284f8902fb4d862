//! Where cohorts go.

use std::time::Duration;

use cohort_bridge::cohort::Action::Members;
use cohort_bridge::cohort::{Target, Told};
use cohort_bridge::route::Routes;
use cohort_bridge::store::DeliveryState;

use super::{names, odd};
use crate::support::bench::page;
use crate::support::routed::route;
use crate::support::stores::{Stores, callees, dead, destination};

/// After so long, all calls of a cohort that was led elsewhere have ended.
const ALL_CALLS_ENDED: Duration = Duration::from_secs(5 * 60);

/// Where a cohort goes.
async fn goes(stores: &Stores, id: &str) -> Vec<String> {
    let cohort = stores.cohort(id).await;
    let names = cohort.destinations.iter();
    names.map(|delivery| delivery.name.to_string()).collect()
}

/// Pieces of so many people and a kill after each; how many there were.
async fn follow(stores: &mut Stores, people: usize) -> usize {
    let mut pieces = 0;
    while stores
        .store()
        .follow_routes(people, stores.now())
        .await
        .unwrap()
    {
        pieces += 1;
        stores.reopen().await;
    }
    pieces
}

async fn two(stores: &mut Stores) {
    stores.rules.destinations = vec![destination("a"), destination("b")];
    stores.reopen().await;
}

pub async fn routes_of_the_settings_are_followed(stores: &mut Stores) {
    two(stores).await;
    let everybody = odd();
    let all = names(&everybody);
    stores.full("c", "s", &all).await;
    assert_eq!(goes(stores, "c").await, ["a", "b"]);
    assert_eq!(stores.deliver_to("a").await.len(), all.len());
    // One given up and the others pending.
    let one = stores.exchange_at("b", Vec::new(), None, 1).await.claims;
    let settle = one
        .into_iter()
        .map(|claim| cohort_bridge::store::Settlement {
            claim,
            outcome: dead("400"),
        });
    stores.exchange_at("b", settle.collect(), None, 0).await;
    assert_eq!(follow(stores, 1).await, 0);

    // To `b` no longer: what is pending there is dropped.
    stores.rules.routes = Routes::of(vec![route(None, &["a"])]);
    stores.reopen().await;
    assert!(follow(stores, 1).await > 0);
    assert_eq!(goes(stores, "c").await, ["a"]);
    assert!(stores.deliver_to("b").await.is_empty());
    assert!(stores.store().dead_letters(10).await.unwrap().is_empty());
    assert!(
        stores.deliver_to("a").await.is_empty(),
        "nothing changed there"
    );
    stores.full("c", "t", &all[1..]).await;
    assert_eq!(callees(&stores.deliver_to("a").await), all[..1]);
    assert!(stores.deliver_to("b").await.is_empty());

    // There again, and not before the last call of then has ended.
    stores.rules.routes = Routes::default();
    stores.reopen().await;
    assert_eq!(follow(stores, 2).await, 0);
    stores.wait(ALL_CALLS_ENDED);
    assert!(follow(stores, 2).await > all.len() / 2);
    assert_eq!(goes(stores, "c").await, ["a", "b"]);
    let mut claims = stores.deliver_to("b").await;
    claims.sort_by(|one, other| one.identifier.cmp(&other.identifier));
    assert_eq!(callees(&claims), all, "leavers too");
    for claim in &claims {
        let wanted = if *claim.identifier == *all[0] {
            Target::False
        } else {
            Target::True
        };
        let of = &claim.traits[0];
        assert_eq!((of.target, of.told), (wanted, Told::Unknown));
    }
    assert!(stores.deliver_to("a").await.is_empty());
}

/// While a destination is brought up, whoever was not come to yet is pending.
pub async fn a_destination_is_brought_up_in_identifier_order(stores: &mut Stores) {
    two(stores).await;
    stores.rules.routes = Routes::of(vec![route(None, &["a"])]);
    stores.reopen().await;
    stores.full("c", "s", &["Z", "a", "é", "😀"]).await;
    stores.deliver_to("a").await;
    stores.rules.routes = Routes::default();
    stores.reopen().await;
    let follow = async |people| {
        let followed = stores.store().follow_routes(people, stores.now()).await;
        assert!(followed.unwrap());
    };
    follow(2).await;
    follow(2).await;
    let claims = stores.exchange_at("b", Vec::new(), None, 10).await.claims;
    assert_eq!(callees(&claims), ["Z", "a"]);
    let delivery = stores.cohort("c").await.destinations.remove(1);
    assert!(!delivery.ready);
    let states: Vec<_> = stores.member("é").await[0]
        .destinations
        .iter()
        .map(|of| (of.state, of.written))
        .collect();
    assert_eq!(
        states,
        [
            (DeliveryState::Written, Some(true)),
            (DeliveryState::Pending, None)
        ]
    );
    while stores.store().follow_routes(2, stores.now()).await.unwrap() {}
    let claims = stores.exchange_at("b", Vec::new(), None, 10).await.claims;
    assert_eq!(callees(&claims), ["é", "😀"]);
}

pub async fn a_cohort_that_is_renamed_may_go_elsewhere(stores: &mut Stores) {
    two(stores).await;
    stores.rules.routes = Routes::of(vec![route(Some("Zürich*"), &["b"]), route(None, &["a"])]);
    stores.reopen().await;
    let named = |name: &str, session| {
        let mut named = page(Members, "c", session, (1, 1), &["ann"]);
        named.cohort_name = Some(name.into());
        named
    };
    stores.take(named("zürich", "s")).await;
    assert_eq!(goes(stores, "c").await, ["a"]);
    stores.deliver_to("a").await;
    stores.append(named("Zürich '😀", "t")).await;
    let assembled = stores.store().assemble(10, 10, stores.now()).await.unwrap();
    assert!(assembled.may_reroute);
    assert!(follow(stores, 10).await > 0);
    stores.fold().await;
    let cohort = stores.cohort("c").await;
    assert_eq!(cohort.name, "Zürich '😀");
    assert_eq!(cohort.former_name.as_deref(), Some("zürich"));
    assert_eq!(goes(stores, "c").await, ["b"]);
    assert_eq!(callees(&stores.deliver_to("b").await), ["ann"]);
}
