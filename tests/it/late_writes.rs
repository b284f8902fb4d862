//! Writes without a reply that land late, over newer values.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cohort_bridge::clock::{Clock, Millis};
use cohort_bridge::flagsmith::{CANARY, Limits};
use cohort_bridge::standin::{Endpoint, Fault, StandIn, StandInOptions, Switch};

use crate::support::bridge::Bridge;
use crate::support::environment;
use crate::support::pages::page_without_info;

/// How late a write lands at most.
const LATE_BY: Duration = Duration::from_secs(30);

fn number(variable: &str, default: u64) -> u64 {
    let value = std::env::var(variable).ok();
    value
        .and_then(|value| value.parse().ok())
        .unwrap_or(default)
}

/// What is decided about writes while they arrive.
struct Chance {
    random: fastrand::Rng,
    /// When those that are kept back land, oldest first.
    due: Vec<Millis>,
    /// How many are still to be kept back.
    left: u64,
}

impl Chance {
    fn fault(&mut self, now: Millis) -> Option<Fault> {
        // One in four: more would pass for an outage.
        if self.left == 0 || self.random.u8(0..4) > 0 {
            return None;
        }
        self.left -= 1;
        let late = self.random.i64(0..=LATE_BY.as_millis() as i64);
        self.due.push(now + late);
        // Most connections break; of some calls nothing is heard until the client loses patience.
        Some(match self.random.u8(..) {
            0 => Fault::LandLate,
            _ => Fault::CloseAndLandLate,
        })
    }
}

/// Lands what is due, in any order. The stand-in has one worker, so it keeps them in this order too.
fn land(stand_in: &StandIn, chance: &Mutex<Chance>, now: Millis) {
    let mut chance = chance.lock().unwrap();
    loop {
        let due: Vec<_> = (0..chance.due.len())
            .filter(|at| chance.due[*at] <= now)
            .collect();
        let Some(at) = chance.random.choice(due) else {
            return;
        };
        if !stand_in.land_late_write(at) {
            // It was decided and is not kept yet.
            return;
        }
        chance.due.remove(at);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_that_land_late_leave_nobody_wrong() {
    let late_writes = number("TEST_LATE_WRITES", 500);
    let seed = number("TEST_SEED", fastrand::u64(..));
    println!("TEST_SEED={seed} TEST_LATE_WRITES={late_writes}");
    let stand_in = Arc::new(
        StandIn::start(StandInOptions {
            environments: vec![environment("main", &[Switch::StoresTraits])],
            ..StandInOptions::default()
        })
        .unwrap(),
    );
    let mut bridge = Bridge::before(Arc::clone(&stand_in), "ser.main");
    bridge.destination.max_in_flight = 64;
    bridge.limits = Limits {
        call_timeout: Duration::from_millis(300),
        ..Limits::default()
    };
    bridge.start();
    let mut random = fastrand::Rng::with_seed(seed);
    let chance = Arc::new(Mutex::new(Chance {
        random: random.fork(),
        due: Vec::new(),
        left: late_writes,
    }));
    let (decide, clock) = (Arc::clone(&chance), bridge.clock.clone());
    stand_in.fault_for(move |call| {
        let is_delivery = call.endpoint == Endpoint::Write && call.identifier != CANARY;
        is_delivery.then(|| decide.lock().unwrap().fault(clock.now()))?
    });

    let people: Vec<_> = (0..late_writes.div_ceil(8).max(10))
        .map(|n| format!("p{n:05}"))
        .collect();
    let mut wanted: BTreeMap<&str, bool> = BTreeMap::new();
    let mut look = tokio::time::interval(Duration::from_millis(2));
    // In each second of the clock some change their mind, while late writes land.
    while chance.lock().unwrap().left > 0 {
        let joins = random.bool();
        let some: Vec<_> = people.iter().filter(|_| random.u8(0..8) == 0).collect();
        for person in &some {
            wanted.insert(person, joins);
        }
        let action = ["remove_members", "add_members"][usize::from(joins)];
        bridge.send(&page_without_info(action, "c", &some)).await;
        for _ in 0..random.u8(1..8) {
            look.tick().await;
            bridge.clock.advance(Duration::from_secs(1));
            land(&stand_in, &chance, bridge.clock.now());
        }
    }
    // The last of them land, and the window after that ends.
    let end = bridge.clock.now() + 120_000;
    bridge
        .time_passes("everything delivered", async || {
            land(&stand_in, &chance, bridge.clock.now());
            bridge.clock.now() > end && bridge.is_settled().await
        })
        .await;
    assert_eq!(chance.lock().unwrap().due.len(), 0);
    let stored = stand_in.identities();
    let wrong: Vec<_> = wanted
        .iter()
        .filter(|(person, joins)| {
            let value = stored
                .get(**person)
                .and_then(|traits| traits.get("mixpanel_cohort_c"));
            value.and_then(serde_json::Value::as_bool) != Some(**joins)
        })
        .collect();
    assert_eq!(wrong.len(), 0, "TEST_SEED={seed}: {wrong:?}");
    assert_eq!(stand_in.max_in_flight_per_identity(), 1, "TEST_SEED={seed}");
    bridge.stop().await;
}
