//! `--max-calls-per-second`: every HTTP call counts.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cohort_bridge::clock::{Clock, Millis};
use cohort_bridge::standin::Fault;

use crate::support::eventually;
use crate::support::pages::{page, page_without_info, people};
use crate::support::service::{Service, spawn_app, stand_in};

/// When calls were made, the canary's too.
#[derive(Clone, Default)]
struct Times(Arc<Mutex<Vec<Millis>>>);

impl Times {
    fn of(service: &Service) -> Self {
        let times = Times::default();
        let (seen, clock) = (times.clone(), service.clock.clone());
        service.stand_in.fault_for(move |_| {
            seen.0.lock().unwrap().push(clock.now());
            None
        });
        times
    }

    fn len(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    /// The most calls in any second.
    fn most_in_a_second(&self) -> usize {
        let mut times = self.0.lock().unwrap().clone();
        times.sort_unstable();
        let within = |from: Millis| {
            let within = times.iter().filter(|at| (from..from + 1_000).contains(*at));
            within.count()
        };
        times.iter().map(|from| within(*from)).max().unwrap_or(0)
    }
}

async fn service(rate: f64) -> Service {
    let service = spawn_app(stand_in(), |setup| {
        setup.destination.max_calls_per_second = Some(rate);
        setup.destination.max_in_flight = 32;
    })
    .await;
    service.canary_is_done().await;
    service
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rate_is_kept_and_used_up() {
    let service = service(20.0).await;
    let times = Times::of(&service);
    service
        .send(&page("members", "c", "s", (1, 1), &people("p", 200)))
        .await;
    service.folded().await;
    // The canary took one call more than may go out at once.
    service.clock.advance(Duration::from_millis(50));
    for calls in 1..=60 {
        service.clock.advance(Duration::from_millis(50));
        eventually("one more call", async || {
            (times.len() >= calls).then_some(())
        })
        .await;
    }
    assert_eq!(times.len(), 60);
    // After a pause, a tenth of a second's worth goes out at once, and no more.
    service.clock.advance(Duration::from_secs(10));
    eventually("two more calls", async || (times.len() >= 62).then_some(())).await;
    assert_eq!(times.most_in_a_second(), 20);
    service.settled_in_time().await;
    assert_eq!(times.len(), 200);
    assert!(times.most_in_a_second() <= 22);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fraction_allows_fewer_than_one_a_second() {
    let service = service(0.5).await;
    let times = Times::of(&service);
    service
        .send(&page_without_info(
            "add_members",
            "c",
            &["ann", "bob", "cyd"],
        ))
        .await;
    service.folded().await;
    // The canary took three calls, of which two could not wait.
    service.clock.advance(Duration::from_secs(4));
    for calls in 1..=3 {
        service.clock.advance(Duration::from_millis(1_999));
        service.folded().await;
        assert_eq!(times.len(), calls - 1);
        service.clock.advance(Duration::from_millis(1));
        eventually("one more call", async || {
            (times.len() >= calls).then_some(())
        })
        .await;
    }
    service.settled().await;
    assert_eq!(service.elapsed_ms(), 10_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_cannot_wait_are_made_up_for() {
    const RATE: usize = 10;
    let service = service(RATE as f64).await;
    // Every call breaks off and is repeated at once: two HTTP calls each.
    let times = Times::default();
    let seen = times.clone();
    let clock = service.clock.clone();
    let flip = Mutex::new(HashMap::<String, bool>::new());
    service.stand_in.fault_for(move |call| {
        seen.0.lock().unwrap().push(clock.now());
        let mut flip = flip.lock().unwrap();
        let repeated = flip.entry(call.identifier.to_owned()).or_default();
        *repeated = !*repeated;
        repeated.then_some(Fault::CloseBeforeStoring)
    });
    service
        .send(&page("members", "c", "s", (1, 1), &people("p", 50)))
        .await;
    service
        .time_passes("a hundred calls", async || times.len() >= 100)
        .await;
    let elapsed = service.elapsed_ms();
    assert!(elapsed >= 9_000, "100 calls in {elapsed} ms");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_takes_long_does_not_hold_up_the_next() {
    let service = service(10.0).await;
    service.clock.advance(Duration::from_secs(10));
    service.stand_in.fault(Fault::Hold);
    service
        .send(&page_without_info(
            "add_members",
            "c",
            &["ann", "bob", "cyd", "dan"],
        ))
        .await;
    for held in 1..=4 {
        // Less than a call's time-out, which would let the next one in.
        let held = tokio::time::timeout(Duration::from_secs(20), service.stand_in.held(held));
        held.await.expect("the next call");
        service.clock.advance(Duration::from_millis(100));
    }
    service.stand_in.clear_faults();
    service.stand_in.release();
    service.settled_in_time().await;
}
