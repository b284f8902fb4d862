//! The real binary, killed again and again while pages arrive and traits go out.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cohort_bridge::flagsmith::CANARY;
use cohort_bridge::standin::{Fault, StandIn};
use serde_json::json;
use tokio::sync::watch;

use crate::support::pages::{key, page, page_without_info, people};
use crate::support::process::{Process, serve_variables};
use crate::support::service::{PASSWORD, USER, client, stand_in};
use crate::support::{eventually, fast_temp_dir, shared_ledger};

/// Over PostgreSQL each start takes longer.
fn kills() -> u64 {
    if shared_ledger::is_wanted() { 40 } else { 200 }
}

const COHORTS: [&str; 3] = ["one", "two", "three"];
/// The one whose differences are pages that stand alone.
const ALONE: &str = "three";
const PEOPLE: usize = 60;

/// What a cohort's sender knows to be true, once every page was answered with 200.
#[derive(Default)]
struct Model {
    members: BTreeSet<String>,
    named: BTreeSet<String>,
}

/// What the senders, the stand-in and the killer share.
#[derive(Clone)]
struct Shared {
    webhook: watch::Receiver<String>,
    /// Pages answered and calls seen.
    events: Arc<AtomicU64>,
    enough: Arc<AtomicBool>,
}

impl Shared {
    /// Sends a page until it is taken in, as Mixpanel does, only with less patience.
    async fn send(&self, http: &reqwest::Client, page: String) {
        loop {
            let mut address = self.webhook.clone();
            let url = address.borrow_and_update().clone();
            let request = http
                .post(url)
                .basic_auth(USER, Some(PASSWORD))
                .body(page.clone());
            if let Ok(answer) = request.send().await {
                assert_eq!(answer.status(), 200, "to {page}");
                self.events.fetch_add(1, Ordering::Relaxed);
                return;
            }
            // Killed: the next process has another address.
            address.changed().await.unwrap();
        }
    }
}

async fn send_on_and_on(shared: Shared, cohort: &'static str, mut dice: fastrand::Rng) -> Model {
    let http = client();
    let everybody = people("p", PEOPLE);
    let mut model = Model::default();
    for session in 0.. {
        if shared.enough.load(Ordering::Relaxed) {
            break;
        }
        let size = dice.usize(0..PEOPLE);
        let people: Vec<_> = dice.choose_multiple(&everybody, size);
        model.named.extend(people.iter().copied().cloned());
        let session = format!("{cohort}-{session}");
        if dice.bool() {
            send_session(
                &shared, &http, "members", cohort, &session, &people, &mut dice,
            )
            .await;
            model.members = people.into_iter().cloned().collect();
        } else if cohort == ALONE {
            let page = page_without_info("add_members", cohort, &people);
            shared.send(&http, page.to_string()).await;
            model.members.extend(people.into_iter().cloned());
        } else {
            // A run, as Mixpanel sends it: who joins was not in, who leaves was.
            let (left, joined): (Vec<_>, Vec<_>) = people
                .into_iter()
                .partition(|person| model.members.contains(*person));
            for (action, people) in [("add_members", &joined), ("remove_members", &left)] {
                send_session(&shared, &http, action, cohort, &session, people, &mut dice).await;
            }
            model.members.extend(joined.into_iter().cloned());
            model.members.retain(|person| !left.contains(&person));
        }
    }
    model
}

/// All pages of a session, in any order.
async fn send_session(
    shared: &Shared,
    http: &reqwest::Client,
    action: &str,
    cohort: &str,
    session: &str,
    people: &[&String],
    dice: &mut fastrand::Rng,
) {
    let total = dice.u32(1..5);
    let mut numbers: Vec<_> = (1..=total).collect();
    dice.shuffle(&mut numbers);
    for number in numbers {
        let on_page: Vec<_> = people
            .iter()
            .zip((1..=total).cycle())
            .filter(|(_, at)| *at == number)
            .map(|(person, _)| person)
            .collect();
        let page = page(action, cohort, session, (number, total), &on_page);
        shared.send(http, page.to_string()).await;
    }
}

/// Every call takes a random while, and a reply is lost now and then.
fn trouble(stand_in: &StandIn, events: Arc<AtomicU64>, seed: u64) {
    let dice = Mutex::new(fastrand::Rng::with_seed(seed));
    stand_in.fault_for(move |call| {
        if call.identifier == CANARY {
            return None;
        }
        events.fetch_add(1, Ordering::Relaxed);
        let mut dice = dice.lock().unwrap();
        match dice.u8(0..40) {
            0 => Some(Fault::CloseAfterStoring),
            1 => Some(Fault::status(502)),
            2..12 => Some(Fault::Delay(Duration::from_micros(dice.u64(0..5_000)))),
            _ => None,
        }
    });
}

/// Waits for a random number of events and a random while: the moment is what is tried out.
async fn random_moment(events: &AtomicU64, dice: &mut fastrand::Rng) {
    let at = events.load(Ordering::Relaxed) + dice.u64(0..60);
    let until = async {
        let mut interval = tokio::time::interval(Duration::from_millis(1));
        while events.load(Ordering::Relaxed) < at {
            interval.tick().await;
        }
    };
    // Where nothing happens any more, that is a moment too.
    let _ = tokio::time::timeout(Duration::from_millis(300), until).await;
    tokio::time::sleep(Duration::from_micros(dice.u64(0..4_000))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_by_any_number_of_kills() {
    let number = |variable: &str| std::env::var(variable).ok()?.parse::<u64>().ok();
    let kills = number("TEST_KILLS").unwrap_or(kills());
    let seed = number("TEST_SEED").unwrap_or_else(|| fastrand::u64(..));
    println!("{kills} kills, TEST_SEED={seed}");
    let mut dice = fastrand::Rng::with_seed(seed);

    let folder = fast_temp_dir();
    let stand_in = stand_in();
    let mut variables = serve_variables(&folder.path().join("ledger.db"), &stand_in.url());
    for (name, value) in [
        // What a killed process had under way lands within a moment here.
        ("COHORT_BRIDGE_LATE_WRITE_WINDOW", "1s"),
        ("COHORT_BRIDGE_MAX_IN_FLIGHT", "8"),
    ] {
        variables.insert(name.to_owned(), value.to_owned());
    }

    let mut process = Process::serve(&variables).await;
    let (address, webhook) = watch::channel(process.webhook_url());
    let shared = Shared {
        webhook,
        events: Arc::default(),
        enough: Arc::default(),
    };
    trouble(&stand_in, shared.events.clone(), dice.u64(..));
    let senders: Vec<_> = COHORTS
        .into_iter()
        .map(|cohort| tokio::spawn(send_on_and_on(shared.clone(), cohort, dice.fork())))
        .collect();
    for _ in 0..kills {
        random_moment(&shared.events, &mut dice).await;
        process.kill();
        process = Process::serve(&variables).await;
        address.send_replace(process.webhook_url());
    }
    shared.enough.store(true, Ordering::Relaxed);
    let mut models = BTreeMap::new();
    for (cohort, sender) in COHORTS.into_iter().zip(senders) {
        models.insert(cohort, sender.await.unwrap());
    }
    stand_in.clear_faults();
    process.settled().await;

    assert!(models.values().all(|model| !model.named.is_empty()));
    let wrong = || {
        let people = models.iter().flat_map(|(cohort, model)| {
            let named = model.named.iter();
            named.map(move |person| (*cohort, person, model.members.contains(person)))
        });
        let wrong = people.filter(|(cohort, person, member)| {
            let traits = stand_in.identity(person).unwrap_or_default();
            traits.get(&key(cohort)) != Some(&json!(member))
        });
        wrong.collect::<Vec<_>>()
    };
    // What a killed process sent may land last, and is then put right.
    let mended = async || wrong().is_empty().then_some(());
    if tokio::time::timeout(
        Duration::from_secs(10),
        eventually("the last state", mended),
    )
    .await
    .is_err()
    {
        panic!("seed {seed}: {:?}", wrong());
    }
    let letters = process.get("/api/v1/dead-letters").await.json();
    assert_eq!(letters["dead_letters"], json!([]), "seed {seed}");
}
