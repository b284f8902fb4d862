//! What becomes of a person whose calls fail for good.

use std::time::Duration;

use cohort_bridge::cohort::Target;
use cohort_bridge::store::{Claim, DeadLetterFilter, Outcome, Settlement, Store};

use crate::support::bench::{Bench, written};

fn dead(claim: Claim, may_land_late: bool) -> Settlement {
    let error = "failed eight times".into();
    let outcome = Outcome::Dead {
        may_land_late,
        error,
    };
    Settlement { claim, outcome }
}

/// A ledger whose calls of before its start cannot land any more.
async fn settled_bench() -> Bench {
    let mut bench = Bench::new();
    bench.full("before", "one", &["zed"]).await;
    bench.deliver().await;
    bench.clock.advance(Duration::from_secs(600));
    bench
}

/// The last failure was a time-out: the call may land over what is written next.
#[tokio::test]
async fn the_call_that_makes_a_dead_letter_may_land_late_too() {
    let mut bench = settled_bench().await;
    bench.full("c", "one", &["ann"]).await;
    let claim = bench.exchange(Vec::new()).await.claims.remove(0);
    bench.exchange(vec![dead(claim.clone(), true)]).await;
    bench.full("c", "two", &[]).await;
    let newer = bench.deliver().await;
    assert_eq!(newer[0].traits[0].target, Target::False);
    bench.hear(&claim);
    bench.clock.advance(Duration::from_secs(61));
    let again = bench.deliver().await;
    assert_eq!(again.len(), 1, "it is asserted once more");
    assert_eq!(again[0].traits[0].target, Target::False);
    assert_eq!(bench.deliver().await, []);
}

#[tokio::test]
async fn a_value_that_was_never_sent_is_no_dead_letter() {
    let bench = Bench::new();
    bench.full("c", "one", &["ann", "bob"]).await;
    let claims = bench.exchange(Vec::new()).await.claims;
    bench.full("c", "two", &["bob"]).await;
    let settle = claims.into_iter().map(|claim| match &*claim.identifier {
        "ann" => dead(claim, false),
        _ => written(claim),
    });
    let calls = bench.exchange(settle.collect()).await.claims;
    assert!(bench.store().dead_letters(9).await.unwrap().is_empty());
    assert_eq!(bench.cohort("c").await.destinations[0].pending, 1);
    assert_eq!(calls.len(), 1);
    assert_eq!(
        (calls[0].attempts, calls[0].traits[0].target),
        (0, Target::False)
    );
    let settle = calls.into_iter().map(written);
    bench.exchange(settle.collect()).await;
    assert_eq!(bench.cohort("c").await.destinations[0].pending, 0);
}

/// A call under way when a person is erased, and named again before it ends without an answer.
#[tokio::test]
async fn a_call_from_before_an_erasure_is_watched_too() {
    let mut bench = settled_bench().await;
    bench.full("c", "one", &["ann"]).await;
    let claim = bench.exchange(Vec::new()).await.claims.remove(0);
    let forgotten = bench.store().forget("ann", false, bench.now());
    forgotten.await.unwrap();
    bench.fold().await;
    bench.full("c", "two", &["ann"]).await;
    let outcome = Outcome::Retry {
        due_at: bench.now(),
        counts: true,
        may_land_late: true,
        error: "no answer".into(),
    };
    let lost = Settlement {
        claim: claim.clone(),
        outcome,
    };
    // The person leaves before anybody calls again.
    let name = &bench.destination.name;
    let settled = bench
        .store()
        .exchange(name, vec![lost], None, 0, bench.now());
    settled.await.unwrap();
    bench.full("c", "three", &[]).await;
    bench.deliver().await;
    bench.hear(&claim);
    bench.clock.advance(Duration::from_secs(61));
    bench.deliver().await;
    let key = &claim.traits[0].trait_key;
    assert!(bench.holding(key, true).is_empty());
}

#[tokio::test]
async fn they_can_be_retried_and_dropped_after_the_clock_was_set_back() {
    let bench = Bench::new();
    bench.full("c", "one", &["ann", "bob"]).await;
    let claims = bench.exchange(Vec::new()).await.claims;
    let settle = claims.into_iter().map(|claim| dead(claim, false));
    bench.exchange(settle.collect()).await;
    bench.clock.set(bench.now() - 3_600_000);
    let of = |identifier: &str| DeadLetterFilter {
        identifier: Some(identifier.into()),
        ..DeadLetterFilter::default()
    };
    let retried = bench.store().retry_dead_letters(of("ann"), bench.now());
    assert_eq!(retried.await.unwrap(), 1);
    let dropped = bench.store().drop_dead_letters(of("bob"), bench.now());
    assert_eq!(dropped.await.unwrap(), 1);
}
