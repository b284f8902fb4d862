//! The real binary, over HTTP, against a simulated Mixpanel on a bad network: killed in the middle
//! of runs, it ends with Flagsmith equal to the cohort.
//!
//! Mixpanel's time is virtual, the binary's is not: no silence tells it where a run ended. What
//! hangs on silence is in [`crate::simulation`]; here a sync that starts again has a new session
//! id, and a full sync mends the rest. `TEST_SIMULATIONS` and `TEST_SEED` are as there, and
//! `cargo test --test it simulation_over_http -- --nocapture` prints what happened.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use cohort_bridge::clock::Millis;
use cohort_bridge::standin::{Fault, StandIn};
use fastrand::Rng;
use serde_json::{Value, json};

use crate::mixpanel::connection::{Connection, Receiver};
use crate::mixpanel::knobs::Knobs;
use crate::mixpanel::network::Faults;
use crate::mixpanel::protocol::{Mixpanel, Person};
use crate::simulation::{START, ShowsSeed, on_every_core, seeds};
use crate::support::process::{Process, Variables, serve_variables};
use crate::support::service::{Answer, PASSWORD, USER, client, stand_in};
use crate::support::{eventually, fast_temp_dir};

/// Runs of a disturbed cohort before it is left in peace.
const DISTURBED_RUNS: usize = 30;

/// How long what a killed process sent may take to be put right, once nothing is pending.
const MENDED_WITHIN: Duration = Duration::from_secs(10);

/// The trait key of the simulated cohort.
const KEY: &str = "mixpanel_cohort_trial_power_users";

/// The running binary and what stands around it.
struct Binary {
    process: Process,
    variables: Variables,
    http: reqwest::Client,
    stand_in: Arc<StandIn>,
    pages: u64,
    kills: u64,
    _folder: tempfile::TempDir,
}

impl Binary {
    async fn start(rng: &mut Rng) -> Self {
        let folder = fast_temp_dir();
        let stand_in = stand_in();
        let mut variables = serve_variables(&folder.path().join("ledger.db"), &stand_in.url());
        // What a killed process had under way lands within a moment here.
        let window = ("COHORT_BRIDGE_LATE_WRITE_WINDOW", "1s");
        variables.insert(window.0.to_owned(), window.1.to_owned());
        // Calls take a while, so that kills meet some under way.
        let dice = Mutex::new(rng.fork());
        stand_in.fault_for(move |_| {
            let delay = dice.lock().unwrap().u64(0..5_000);
            Some(Fault::Delay(Duration::from_micros(delay)))
        });
        Binary {
            process: Process::serve(&variables).await,
            variables,
            http: client(),
            stand_in: Arc::new(stand_in),
            pages: 0,
            kills: 0,
            _folder: folder,
        }
    }
}

impl Receiver for Binary {
    async fn receive(&mut self, body: &[u8], _: Millis) {
        let request = self.http.post(self.process.webhook_url());
        let request = request
            .basic_auth(USER, Some(PASSWORD))
            .header("content-type", "application/json")
            .body(body.to_vec());
        let answer = Answer::of(request.send().await.unwrap()).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        self.pages += 1;
    }

    /// Something before the binary answers: nothing reaches it.
    async fn refuse(&mut self, _: &[u8], _: Millis) {}

    async fn kill(&mut self, _: Millis) {
        self.process.kill();
        self.process = Process::serve(&self.variables).await;
        self.kills += 1;
    }

    /// Delivery goes on meanwhile, so that changes meet changes that were not delivered yet.
    async fn rest(&mut self, _: Millis) {
        let url = self.process.admin_url("/api/v1/status");
        eventually("every page folded", async || {
            let answer = Answer::of(self.http.get(&url).send().await.unwrap()).await;
            (answer.json()["backlog"] == 0).then_some(())
        })
        .await;
    }
}

impl Connection<Binary> {
    /// Whose trait is wrong now.
    fn wrong(&self) -> Vec<Person> {
        let is_true = |person| {
            let identifier = self.mixpanel.identifier(person);
            let traits = self.receiver.stand_in.identity(&identifier);
            traits.is_some_and(|traits| traits.get(KEY) == Some(&Value::Bool(true)))
        };
        let people = Mixpanel::population();
        let wrong =
            people.filter(|&person| is_true(person) != self.mixpanel.cohort().contains(&person));
        wrong.collect()
    }

    async fn assert_exact(&self, when: &str) {
        self.receiver.process.settled().await;
        // What a killed process sent may land last, and is then put right.
        let mended = async || self.wrong().is_empty().then_some(());
        let mended = eventually("Flagsmith equal to the cohort", mended);
        if tokio::time::timeout(MENDED_WITHIN, mended).await.is_err() {
            panic!(
                "{when}, with {:#?}: wrong are {:?}",
                self.mixpanel.knobs(),
                self.wrong()
            );
        }
    }
}

/// What one cohort went through.
struct Ended {
    pages: u64,
    kills: u64,
    wrong_before_full_sync: usize,
}

async fn disturb(seed: u64) -> Ended {
    let _shown = ShowsSeed(seed);
    let mut rng = Rng::with_seed(seed);
    let faults = Faults {
        // Every twelfth of them is a kill.
        hiccups: 0.5,
        outage_ms: 20e3..2.0 * 3_600e3,
        ..Faults::harsh(&mut rng)
    };
    let knobs = Knobs {
        same_id_on_restart: false,
        ..Knobs::from_bits(rng.u8(..))
    };
    let mixpanel = Mixpanel::new(knobs, &mut rng);
    let binary = Binary::start(&mut rng).await;
    let mut cohort = Connection::new(mixpanel, binary, faults, START, &mut rng);
    for _ in 0..DISTURBED_RUNS {
        cohort.run().await;
    }
    cohort.calm_down().await;
    cohort.receiver.stand_in.clear_faults();
    assert!(cohort.run().await);
    cohort.receiver.process.settled().await;
    let wrong_before_full_sync = cohort.wrong().len();

    cohort.mixpanel.reconnect();
    assert!(cohort.run().await);
    assert!(cohort.history.last_was_full());
    cohort.assert_exact("after a full sync").await;
    assert!(cohort.run().await);
    cohort
        .assert_exact("after a difference to a full sync")
        .await;
    let letters = cohort.receiver.process.get("/api/v1/dead-letters").await;
    assert_eq!(letters.json()["dead_letters"], json!([]));
    Ended {
        pages: cohort.receiver.pages,
        kills: cohort.receiver.kills,
        wrong_before_full_sync,
    }
}

#[test]
fn killed_in_the_middle_of_runs_it_ends_equal_to_the_cohort() {
    let ended = on_every_core(seeds(5), disturb);
    let sum = |of: fn(&Ended) -> u64| ended.iter().map(of).sum::<u64>();
    let kills = sum(|ended| ended.kills);
    let line = json!({
        "setting": "the binary over HTTP",
        "cohorts": ended.len(),
        "disturbed_runs_each": DISTURBED_RUNS,
        "pages": sum(|ended| ended.pages),
        "kills": kills,
        "wrong_before_full_sync": sum(|ended| u64::from(ended.wrong_before_full_sync > 0)),
        "people_wrong_before_full_sync": sum(|ended| ended.wrong_before_full_sync as u64),
    });
    println!("{line}");
    assert!(kills > 0, "nothing was killed");
}
