//! How many calls at once delivery makes, by what it hears.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cohort_bridge::standin::{Endpoint, Fault};

use crate::support::eventually;
use crate::support::pages::{key, page, page_without_info, people};
use crate::support::service::{Service, spawn_app, stand_in};

async fn service(max_in_flight: usize) -> Service {
    let service = spawn_app(stand_in(), |setup| {
        setup.destination.max_in_flight = max_in_flight;
    })
    .await;
    service.canary_is_done().await;
    service
}

async fn limit(service: &Service) -> u64 {
    let status = service.get("/api/v1/status").await.json();
    status["destinations"][0]["in_flight_limit"]
        .as_u64()
        .unwrap()
}

/// Has so many people written, each call after a few milliseconds, so that calls overlap.
async fn write(service: &Service, cohort: &str, count: usize) {
    service
        .stand_in
        .fault(Fault::Delay(Duration::from_millis(3)));
    service
        .send(&page("members", cohort, "s", (1, 1), &people("p", count)))
        .await;
    service.settled_in_time().await;
}

/// Writes until as many calls are made at once as are allowed; on a busy machine that takes longer.
async fn reach(service: &Service, allowed: u64) {
    for round in 0..20 {
        if limit(service).await == allowed {
            return;
        }
        write(service, &format!("{}-{round}", limit(service).await), 400).await;
    }
    panic!("no more than {} calls at once", limit(service).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_bears_it_gets_all_that_is_allowed() {
    let service = service(16).await;
    assert_eq!(limit(&service).await, 4);
    reach(&service, 16).await;
    service.stand_in.forget_calls();
    write(&service, "c", 400).await;
    let most = service.stand_in.max_in_flight();
    assert!((12..=17).contains(&most), "{most}");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_wave_of_refusals_halves_the_limit() {
    let service = service(16).await;
    reach(&service, 16).await;
    let waves = Arc::new(AtomicU32::new(0));
    let heard = waves.clone();
    service.stand_in.fault_for(move |call| {
        let is_refused = call.identifier == "ann";
        heard.fetch_add(is_refused.into(), Ordering::SeqCst);
        is_refused.then(|| Fault::status(429))
    });
    service
        .send(&page_without_info("add_members", "d", &["ann"]))
        .await;
    for wave in 1..=3 {
        service
            .time_passes("one more wave", async || {
                waves.load(Ordering::SeqCst) >= wave
            })
            .await;
        // While the clock stands still no more come than are on their way.
        eventually("each has halved the limit", async || {
            let halved = (16_u64 >> waves.load(Ordering::SeqCst)).max(1);
            (limit(&service).await == halved).then_some(())
        })
        .await;
        assert_eq!(service.destination().await.0, "ok");
    }
    service.stand_in.clear_faults();
    service.settled_in_time().await;
    assert_eq!(service.stored("ann", &key("d")), Some(true));

    reach(&service, 16).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_queues_is_not_flooded() {
    const SERVICE: Duration = Duration::from_millis(20);
    let service = service(64).await;
    // Two workers: each call takes its place behind the others.
    let free_at = Mutex::new([Instant::now(); 2]);
    service.stand_in.fault_for(move |_| {
        let mut free_at = free_at.lock().unwrap();
        let worker = free_at.iter_mut().min().unwrap();
        *worker = Instant::now().max(*worker) + SERVICE;
        Some(Fault::Delay(*worker - Instant::now()))
    });
    service
        .send(&page("members", "c", "s", (1, 1), &people("p", 300)))
        .await;
    eventually("a third of them are written", async || {
        (service.stand_in.calls_to(Endpoint::Write) >= 100).then_some(())
    })
    .await;
    service.stand_in.forget_calls();
    service.settled_in_time().await;
    // Without a pace there would be 64.
    let most = service.stand_in.max_in_flight();
    assert!(most <= 12, "{most} calls at once");
}
