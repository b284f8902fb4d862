//! Mixpanel at work on several cohorts: each page goes to any replica, and again until it is answered
//! with 200. What was acknowledged is remembered by the naive model of a set.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cohort_bridge::flagsmith::CANARY;
use cohort_bridge::standin::{Fault, StandIn};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::rounds;
use crate::support::eventually;
use crate::support::pages::{key, page, people};
use crate::support::process::Process;
use crate::support::service::{PASSWORD, USER};

/// Cohorts whose few people come and go all the time.
const CHURNING: [&str; 2] = ["one", "two"];
const PEOPLE: usize = 60;

/// The cohort of which every call is counted: who joins or leaves waits until the last change was
/// delivered, so that each change is one call.
const COUNTED: &str = "counted";
/// Who joins it at once; in long tests there are enough for a share of them to be told.
const WAVES: [usize; 2] = [150, 1_500];

/// How long a page is waited for, before it is sent again; less than Mixpanel does.
const PATIENCE: Duration = Duration::from_secs(4);

/// The wait before a page is sent again; less than Mixpanel's.
const RETRY_AFTER: Duration = Duration::from_millis(50);

/// The rest of a churning cohort between two sessions: what comes is to be folded at once, or a wave would
/// wait behind it.
const REST: Duration = Duration::from_millis(1_500);

/// What is sent where, and what became of it.
pub struct Load {
    stand_in: Arc<StandIn>,
    http: reqwest::Client,
    targets: Mutex<Vec<String>>,
    /// Answers by status; 0 is none.
    answers: Mutex<BTreeMap<u16, u64>>,
    enough: AtomicBool,
    pages: AtomicU64,
    wave: usize,
}

/// The senders at work.
pub struct Senders {
    load: Arc<Load>,
    churning: Vec<JoinHandle<Model>>,
    counted: JoinHandle<Counted>,
}

/// What a cohort's sender knows to be true.
#[derive(Default)]
struct Model {
    members: BTreeSet<String>,
    named: BTreeSet<String>,
}

#[derive(Default)]
struct Counted {
    model: Model,
    changes: u64,
}

/// All that was acknowledged.
pub struct Acknowledged {
    models: Vec<(&'static str, Model)>,
    /// Calls that the counted cohort needed.
    pub changes: u64,
}

/// Webhook addresses of replicas.
pub fn webhooks(replicas: &[Process]) -> Vec<String> {
    replicas.iter().map(Process::webhook_url).collect()
}

impl Load {
    pub fn new(stand_in: &Arc<StandIn>, targets: Vec<String>) -> Arc<Self> {
        // A connection is used once: a proxy that is told of other replicas closes those that are idle, and
        // whoever sends on one just then hears nothing.
        let http = reqwest::Client::builder().no_proxy().timeout(PATIENCE);
        let http = http.pool_max_idle_per_host(0);
        Arc::new(Load {
            stand_in: Arc::clone(stand_in),
            http: http.build().unwrap(),
            targets: Mutex::new(targets),
            answers: Mutex::default(),
            enough: AtomicBool::new(false),
            pages: AtomicU64::new(0),
            wave: rounds(WAVES[0], WAVES[1]),
        })
    }

    /// Where pages go from now on.
    pub fn aim(&self, targets: Vec<String>) {
        *self.targets.lock().unwrap() = targets;
    }

    /// How often each status was answered so far; 0 is no answer.
    pub fn answers(&self) -> BTreeMap<u16, u64> {
        self.answers.lock().unwrap().clone()
    }

    pub fn answered(&self, status: u16) -> u64 {
        self.answers().get(&status).copied().unwrap_or(0)
    }

    /// Pages acknowledged so far.
    pub fn pages(&self) -> u64 {
        self.pages.load(Ordering::Relaxed)
    }

    /// Waits until so many pages more were acknowledged.
    pub async fn more_pages(&self, count: u64) {
        let wanted = self.pages() + count;
        eventually("pages are acknowledged", async || {
            (self.pages() >= wanted).then_some(())
        })
        .await;
    }

    /// Sends a page once; the status of the answer, or 0.
    pub async fn attempt(&self, url: &str, page: &str) -> u16 {
        let request = self.http.post(url).basic_auth(USER, Some(PASSWORD));
        let answer = request.body(page.to_owned()).send().await;
        let status = answer.map_or(0, |answer| answer.status().as_u16());
        *self.answers.lock().unwrap().entry(status).or_default() += 1;
        status
    }

    async fn send(&self, dice: &mut fastrand::Rng, page: &Value) {
        let page = page.to_string();
        loop {
            let target = dice.choice(&*self.targets.lock().unwrap()).cloned();
            let status = self.attempt(&target.unwrap(), &page).await;
            assert!([0, 200, 503].contains(&status), "{status} to {page}");
            if status == 200 {
                self.pages.fetch_add(1, Ordering::Relaxed);
                return;
            }
            tokio::time::sleep(RETRY_AFTER).await;
        }
    }

    /// All pages of a session, in any order.
    async fn session<S: AsRef<str>>(
        &self,
        dice: &mut fastrand::Rng,
        action: &str,
        (cohort, session): (&str, &str),
        people: &[S],
    ) {
        let total = dice.u32(1..5);
        let mut numbers: Vec<_> = (1..=total).collect();
        dice.shuffle(&mut numbers);
        for number in numbers {
            let on_page = people.iter().zip((1..=total).cycle());
            let on_page: Vec<_> = on_page
                .filter(|(_, at)| *at == number)
                .map(|(person, _)| person.as_ref())
                .collect();
            let page = page(action, cohort, session, (number, total), &on_page);
            self.send(dice, &page).await;
        }
    }

    fn is_enough(&self) -> bool {
        self.enough.load(Ordering::Relaxed)
    }

    async fn churn(self: Arc<Self>, cohort: &'static str, mut dice: fastrand::Rng) -> Model {
        let everybody = people(&format!("{cohort}-"), PEOPLE);
        let mut model = Model::default();
        for session in 0.. {
            tokio::time::sleep(REST).await;
            if self.is_enough() {
                break;
            }
            let some = dice.usize(0..PEOPLE);
            let some: Vec<_> = dice.choose_multiple(&everybody, some);
            model.named.extend(some.iter().copied().cloned());
            let session = format!("{cohort}-{session}");
            let place = (cohort, session.as_str());
            if dice.u8(0..4) == 0 {
                self.session(&mut dice, "members", place, &some).await;
                model.members = some.into_iter().cloned().collect();
                continue;
            }
            // A run, as Mixpanel sends it: who joins was not in, who leaves was.
            let (left, joined): (Vec<_>, Vec<_>) = some
                .into_iter()
                .partition(|person| model.members.contains(*person));
            self.session(&mut dice, "add_members", place, &joined).await;
            self.session(&mut dice, "remove_members", place, &left)
                .await;
            model.members.extend(joined.into_iter().cloned());
            model.members.retain(|person| !left.contains(&person));
        }
        model
    }

    async fn waves(self: Arc<Self>, mut dice: fastrand::Rng) -> Counted {
        let mut counted = Counted::default();
        // Who joins stays for a wave more, as people stay for longer than a late write takes.
        let mut stays: VecDeque<Vec<String>> = VecDeque::from([Vec::new(), Vec::new()]);
        for wave in 0.. {
            if self.is_enough() {
                break;
            }
            let session = format!("wave-{wave}");
            let place = (COUNTED, session.as_str());
            let joined = people(&format!("w{wave}-"), self.wave);
            let left = stays.pop_front().unwrap_or_default();
            if wave == 0 {
                self.session(&mut dice, "members", place, &joined).await;
            } else {
                self.session(&mut dice, "add_members", place, &joined).await;
                self.session(&mut dice, "remove_members", place, &left)
                    .await;
            }
            counted.changes += (joined.len() + left.len()) as u64;
            for person in left {
                counted.model.members.remove(&person);
            }
            counted.model.named.extend(joined.iter().cloned());
            counted.model.members.extend(joined.iter().cloned());
            self.delivered(&joined, &counted.model).await;
            stays.push_back(joined);
        }
        counted
    }

    async fn delivered(&self, people: &[String], model: &Model) {
        let mut interval = tokio::time::interval(Duration::from_millis(10));
        let mut all = people.iter().peekable();
        while let Some(person) = all.peek() {
            if self.is_wrong(COUNTED, person, model) {
                interval.tick().await;
            } else {
                all.next();
            }
        }
    }

    fn is_wrong(&self, cohort: &str, person: &str, model: &Model) -> bool {
        let traits = self.stand_in.identity(person).unwrap_or_default();
        traits.get(&key(cohort)) != Some(&json!(model.members.contains(person)))
    }

    /// Begins to send.
    pub fn start(self: &Arc<Self>, dice: &mut fastrand::Rng) -> Senders {
        let churn = |cohort| tokio::spawn(Arc::clone(self).churn(cohort, dice.fork()));
        Senders {
            churning: CHURNING.into_iter().map(churn).collect(),
            counted: tokio::spawn(Arc::clone(self).waves(dice.fork())),
            load: Arc::clone(self),
        }
    }

    /// Who is not as was acknowledged.
    fn wrong<'a>(&self, acknowledged: &'a Acknowledged) -> Vec<(&'static str, &'a String)> {
        let people = acknowledged
            .models
            .iter()
            .flat_map(|(cohort, model)| model.named.iter().map(move |who| (*cohort, who, model)));
        people
            .filter(|(cohort, person, model)| self.is_wrong(cohort, person, model))
            .map(|(cohort, person, _)| (cohort, person))
            .collect()
    }

    /// Waits until everybody is as was acknowledged, and stays so for that long.
    pub async fn assert_right(&self, acknowledged: &Acknowledged, stays: Duration) {
        let right = async || self.wrong(acknowledged).is_empty().then_some(());
        let right = eventually("the last state", right);
        if tokio::time::timeout(Duration::from_secs(50), right)
            .await
            .is_err()
        {
            panic!("wrong: {:?}", self.wrong(acknowledged));
        }
        // What is late comes by then, and is put right.
        let until = tokio::time::Instant::now() + stays;
        tokio::time::sleep_until(until).await;
        let wrong = self.wrong(acknowledged);
        assert!(wrong.is_empty(), "wrong again: {wrong:?}");
    }

    /// How many join the counted cohort at once.
    pub fn wave(&self) -> u64 {
        self.wave as u64
    }

    /// Calls of the counted cohort.
    pub fn counted_calls(&self) -> u64 {
        let calls = self.stand_in.calls_by_trait();
        calls.get(&key(COUNTED)).copied().unwrap_or(0)
    }
}

impl Senders {
    /// Whether all of them are at work; they end only where one found something wrong.
    pub fn are_well(&self) -> bool {
        !self.counted.is_finished() && !self.churning.iter().any(JoinHandle::is_finished)
    }

    /// Ends the load with whole sessions.
    pub async fn stop(self) -> Acknowledged {
        self.load.enough.store(true, Ordering::Relaxed);
        let mut models = Vec::new();
        for (cohort, sender) in CHURNING.into_iter().zip(self.churning) {
            models.push((cohort, sender.await.unwrap()));
        }
        let Counted { model, changes } = self.counted.await.unwrap();
        models.push((COUNTED, model));
        assert!(models.iter().all(|(_, model)| !model.named.is_empty()));
        Acknowledged { models, changes }
    }
}

/// Calls take a while, some long enough to be met by whatever goes wrong.
pub fn slow_calls(stand_in: &StandIn, seed: u64) {
    calls_take(stand_in, seed, |dice| {
        let most = if dice.u8(0..20) == 0 { 100_000 } else { 5_000 };
        Duration::from_micros(dice.u64(0..most))
    });
}

/// Calls take as long as a small Flagsmith of one's own needs for them: with eight at a time, it takes
/// some 130 a second.
pub fn calls_as_on_a_small_server(stand_in: &StandIn, seed: u64) {
    calls_take(stand_in, seed, |dice| {
        Duration::from_millis(dice.u64(20..100))
    });
}

fn calls_take(
    stand_in: &StandIn,
    seed: u64,
    long: impl Fn(&mut fastrand::Rng) -> Duration + Send + Sync + 'static,
) {
    let dice = Mutex::new(fastrand::Rng::with_seed(seed));
    stand_in.fault_for(move |call| {
        let is_counted = call.identifier != CANARY;
        is_counted.then(|| Fault::Delay(long(&mut dice.lock().unwrap())))
    });
}

/// A number that another run can be given with `TEST_SEED`.
pub fn seed() -> u64 {
    let given = std::env::var("TEST_SEED").ok();
    let seed = given.and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    println!("TEST_SEED={seed}");
    seed
}
