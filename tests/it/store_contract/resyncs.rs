//! What is ordered to be written again.

use cohort_bridge::cohort::Told;
use cohort_bridge::store::{ResyncRoom, ResyncScope, ResyncStep, ResyncView};

use super::{names, odd};
use crate::support::resyncs::{cohort_at, order, room};
use crate::support::stores::{Stores, callees, destination, done, everywhere};

fn everything() -> ResyncScope {
    ResyncScope::Destination(everywhere())
}

async fn step(stores: &Stores, room: ResyncRoom) -> ResyncStep {
    let step = stores
        .store()
        .resync_some(&everywhere(), room, stores.now())
        .await;
    step.unwrap()
}

async fn ordered(stores: &Stores, scope: ResyncScope) -> Option<u64> {
    order(&**stores.store(), scope, None, stores.now()).await
}

async fn views(stores: &Stores) -> Vec<ResyncView> {
    stores.store().resyncs().await.unwrap()
}

fn view(cohort: Option<&str>, done: u64, of: u64, waiting: u64) -> ResyncView {
    ResyncView {
        destination: everywhere(),
        cohort: cohort.map(|cohort| ("default".into(), cohort.to_owned())),
        max_calls_per_second: None,
        done,
        of,
        waiting,
    }
}

/// A piece of so many identities and traits.
fn brought_up(begun: Option<ResyncView>, identities: usize, rows: usize) -> ResyncStep {
    ResyncStep::BroughtUp {
        begun,
        identities,
        rows,
    }
}

pub async fn a_cohort_is_written_again_over_kills(stores: &mut Stores) {
    let everybody = odd();
    let all = names(&everybody);
    let count = all.len() as u64;
    stores.full("c", "s", &all).await;
    stores.full("d", "s", &all).await;
    stores.deliver().await;
    assert_eq!(step(stores, room(2)).await, ResyncStep::Idle);
    assert_eq!(views(stores).await, []);
    assert_eq!(ordered(stores, cohort_at("no such", None)).await, None);
    assert_eq!(ordered(stores, cohort_at("c", None)).await, Some(count));
    stores.reopen().await;
    let begun = view(Some("c"), 0, count, 0);
    assert_eq!(views(stores).await, std::slice::from_ref(&begun));
    let first = step(stores, room(2)).await;
    assert_eq!(first, brought_up(Some(begun), 2, 2));
    stores.reopen().await;
    assert_eq!(stores.pending("c").await, (2, 0));
    let claims = stores.claim().await;
    assert_eq!(callees(&claims), all[..2]);
    assert!(
        claims
            .iter()
            .all(|claim| claim.traits[0].told == Told::Unknown)
    );
    stores.settle(claims, done()).await;
    assert_eq!(views(stores).await, [view(Some("c"), 2, count, 0)]);
    let mut rest = Vec::new();
    let ended = loop {
        match step(stores, room(3)).await {
            ResyncStep::BroughtUp { begun, .. } => assert_eq!(begun, None),
            ResyncStep::Full => {
                let claims = stores.claim().await;
                rest.extend(claims.iter().map(|claim| claim.identifier.to_string()));
                stores.settle(claims, done()).await;
            }
            ResyncStep::Ended(ended) => break ended,
            other => panic!("{other:?}"),
        }
        stores.reopen().await;
    };
    assert_eq!(rest, all[2..], "in identifier order, each once");
    assert_eq!(ended, view(Some("c"), count, count, 0));
    assert_eq!(step(stores, room(3)).await, ResyncStep::Idle);
    assert_eq!(stores.pending("d").await, (0, 0));
}

pub async fn everything_is_written_again_in_one_call_a_person(stores: &mut Stores) {
    stores.full("c", "s", &["Z", "a", "é"]).await;
    stores.full("d", "s", &["a", "é", "😀"]).await;
    stores.deliver().await;
    assert_eq!(ordered(stores, everything()).await, Some(6));
    let first = step(
        stores,
        ResyncRoom {
            identities: 2,
            ..room(100)
        },
    )
    .await;
    assert_eq!(first, brought_up(Some(view(None, 0, 6, 0)), 2, 3));
    let claims = stores.claim().await;
    assert_eq!(callees(&claims), ["Z", "a"]);
    let traits: Vec<_> = claims.iter().map(|claim| claim.traits.len()).collect();
    assert_eq!(traits, [1, 2]);
    stores.settle(claims, done()).await;
    // A cohort's own order goes before it, and whom it reaches is left out by it.
    assert_eq!(ordered(stores, cohort_at("d", None)).await, Some(3));
    assert_eq!(
        step(stores, room(100)).await,
        brought_up(Some(view(Some("d"), 0, 3, 0)), 3, 3)
    );
    assert_eq!(step(stores, room(100)).await, brought_up(None, 1, 1));
    let claims = stores.claim().await;
    assert_eq!(callees(&claims), ["a", "é", "😀"]);
    let traits: Vec<_> = claims.iter().map(|claim| claim.traits.len()).collect();
    assert_eq!(traits, [1, 2, 1]);
    stores.settle(claims, done()).await;
    let mut ended = 0;
    while let ResyncStep::Ended(_) = step(stores, room(100)).await {
        ended += 1;
    }
    assert_eq!(ended, 2);
    assert_eq!(views(stores).await, []);
}

pub async fn a_step_goes_no_further_than_there_is_room(stores: &mut Stores) {
    let everybody = ["a", "b", "c", "d"];
    stores.full("c", "s", &everybody).await;
    stores.deliver().await;
    let rate = Some(0.1 + 0.2);
    let traits = order(&**stores.store(), cohort_at("c", None), rate, stores.now());
    assert_eq!(traits.await, Some(4));
    stores.reopen().await;
    // Meant for another rate.
    assert_eq!(step(stores, room(100)).await, ResyncStep::Paced(rate));
    let paced = ResyncRoom {
        max_calls_per_second: rate,
        ..room(100)
    };
    assert_eq!(
        step(stores, ResyncRoom { rows: 0, ..paced }).await,
        ResyncStep::Full
    );
    let two = ResyncRoom { rows: 2, ..paced };
    let ResyncStep::BroughtUp { begun, .. } = step(stores, two).await else {
        panic!("there is room");
    };
    assert_eq!(begun.unwrap().max_calls_per_second, rate);
    let ahead = ResyncRoom {
        rows_ahead: 2,
        ..paced
    };
    assert_eq!(step(stores, ahead).await, ResyncStep::Full);
    let ahead = ResyncRoom {
        identities_ahead: 2,
        ..paced
    };
    assert_eq!(step(stores, ahead).await, ResyncStep::Full);
    let ahead = ResyncRoom {
        rows_ahead: 3,
        ..paced
    };
    assert_eq!(step(stores, ahead).await, brought_up(None, 2, 2));
}

pub async fn what_is_ordered_again_begins_anew(stores: &mut Stores) {
    stores.full("c", "s", &["a", "b", "c"]).await;
    stores.deliver().await;
    assert_eq!(ordered(stores, cohort_at("c", None)).await, Some(3));
    step(stores, room(2)).await;
    stores.deliver().await;
    assert_eq!(ordered(stores, cohort_at("c", None)).await, Some(3));
    assert_eq!(views(stores).await, [view(Some("c"), 0, 3, 0)]);
    let again = step(stores, room(100)).await;
    assert_eq!(again, brought_up(Some(view(Some("c"), 0, 3, 0)), 3, 3));
    assert_eq!(stores.deliver().await.len(), 3);
}

pub async fn what_is_cancelled_is_not_reached(stores: &mut Stores) {
    stores.full("c", "s", &["a", "b", "c"]).await;
    stores.full("d", "s", &["a"]).await;
    stores.deliver().await;
    let cancel = async |stores: &Stores, scope| {
        let cancelled = stores.store().cancel_resync(scope).await;
        cancelled.unwrap()
    };
    assert_eq!(cancel(stores, cohort_at("no such", None)).await, None);
    assert_eq!(cancel(stores, cohort_at("c", None)).await, Some(0));
    assert_eq!(ordered(stores, cohort_at("c", None)).await, Some(3));
    assert_eq!(ordered(stores, cohort_at("d", None)).await, Some(1));
    assert_eq!(views(stores).await, [view(Some("c"), 0, 3, 1)]);
    step(stores, room(1)).await;
    // What was made pending is written.
    assert_eq!(cancel(stores, cohort_at("c", None)).await, Some(2));
    stores.reopen().await;
    assert_eq!(views(stores).await, [view(Some("d"), 0, 1, 0)]);
    assert_eq!(callees(&stores.deliver().await), ["a"]);
    // Of a destination all.
    assert_eq!(ordered(stores, everything()).await, Some(4));
    assert_eq!(ordered(stores, cohort_at("c", None)).await, Some(3));
    assert_eq!(cancel(stores, everything()).await, Some(4));
    assert_eq!(step(stores, room(100)).await, ResyncStep::Idle);
    assert!(stores.deliver().await.is_empty());
}

pub async fn an_order_may_be_for_one_destination(stores: &mut Stores) {
    stores.rules.destinations.push(destination("other"));
    stores.reopen().await;
    stores.full("c", "s", &["a", "b"]).await;
    stores.deliver().await;
    stores.deliver_to("other").await;
    let there = cohort_at("c", Some("other"));
    assert_eq!(ordered(stores, there.clone()).await, Some(2));
    assert_eq!(step(stores, room(100)).await, ResyncStep::Idle);
    let [ordered_there] = &views(stores).await[..] else {
        panic!("one");
    };
    assert_eq!(&*ordered_there.destination.0, "other");
    assert_eq!(stores.store().cancel_resync(there).await.unwrap(), Some(2));
    assert_eq!(ordered(stores, cohort_at("c", None)).await, Some(4));
    let names: Vec<_> = views(stores)
        .await
        .into_iter()
        .map(|view| view.destination)
        .collect();
    assert_eq!(names, ["default".into(), "other".into()]);
    assert_eq!(
        step(stores, room(100)).await,
        brought_up(Some(view(Some("c"), 0, 2, 0)), 2, 2)
    );
    let elsewhere = ResyncScope::Destination("no such".into());
    stores.store().cancel_resync(elsewhere).await.unwrap_err();
}
