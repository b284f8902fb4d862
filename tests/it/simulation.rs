//! The real parser, ledger and fold against a simulated Mixpanel.
//!
//! `TEST_SIMULATIONS` sets how many cohorts each test simulates; `TEST_SEED` repeats one of them.
//! `cargo test --test it simulation -- --nocapture` prints how many cohorts end wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use cohort_bridge::clock::{Clock, ManualClock, Millis, millis};
use cohort_bridge::cohort::{DestinationName, SourceName, Target};
use cohort_bridge::fold::Fold;
use cohort_bridge::mixpanel::{IdentifierRules, parse};
use cohort_bridge::run::PAUSE;
use cohort_bridge::store::LedgerStore;
use cohort_bridge::store::{
    DestinationRules, Outcome, SESSION_EXPIRES, Settlement, SourceRules, Store,
};
use fastrand::Rng;
use serde_json::json;

use crate::membership_model::{Arrival, Model};
use crate::mixpanel::connection::{Connection, RUN_EVERY_MS, Receiver};
use crate::mixpanel::evidence::{Evidence, Wrong};
use crate::mixpanel::knobs::Knobs;
use crate::mixpanel::network::Faults;
use crate::mixpanel::protocol::{Mixpanel, Person, SNAPSHOT_LIVES_MS};
use crate::support::{fast_temp_dir, open_ledger};

/// When every simulation begins.
pub const START: Millis = 1_800_000_000_000;

/// Runs of a disturbed cohort before it is left in peace.
const DISTURBED_RUNS: usize = 60;

/// Further ones before it is left in peace again.
const DISTURBED_AGAIN: usize = 5;

/// The most cohorts that may be wrong after an undisturbed difference because nothing they could
/// have known it by was ever sent; a share from 0 to 1.
const MOST_SILENT: f64 = 0.009;

/// Of so many cohorts a share says something.
const ENOUGH_FOR_A_SHARE: usize = 1_000;

/// The service without its listener, and a Flagsmith that takes every write.
struct Here {
    _dir: tempfile::TempDir,
    path: PathBuf,
    clock: ManualClock,
    /// `None` only while it is dead.
    store: Option<Arc<LedgerStore>>,
    rng: Rng,
    flagsmith: BTreeMap<String, bool>,
}

impl Here {
    fn new(rng: &mut Rng) -> Self {
        let dir = fast_temp_dir();
        let path = dir.path().join("ledger.db");
        Here {
            _dir: dir,
            store: Some(Here::open(&path)),
            path,
            clock: ManualClock::at(START),
            rng: rng.fork(),
            flagsmith: BTreeMap::new(),
        }
    }

    fn open(path: &std::path::Path) -> Arc<LedgerStore> {
        let source = SourceRules::named("default");
        let destination = DestinationRules {
            name: DestinationName::from("default"),
            on_leave: Default::default(),
            linger_ms: 0,
            late_write_ms: 60_000,
        };
        open_ledger(path, source, destination)
    }

    fn store(&self) -> &Arc<LedgerStore> {
        self.store.as_ref().unwrap()
    }

    fn fold(&self) -> Fold {
        Fold::new(self.store().clone(), Arc::new(self.clock.clone()))
    }

    /// Folds for a while, and is cut off wherever that is.
    async fn fold_some(&mut self) {
        let mut fold = self.fold();
        for _ in 0..self.rng.usize(0..5) {
            fold.step().await.unwrap();
        }
    }

    async fn deliver(&mut self) {
        let now = self.clock.now();
        let destination = DestinationName::from("default");
        let mut settle = Vec::new();
        loop {
            let done = std::mem::take(&mut settle);
            let claims = self
                .store()
                .exchange(&destination, done, None, 1_000, now)
                .await
                .unwrap()
                .claims;
            if claims.is_empty() {
                return;
            }
            for claim in claims {
                for claimed in &claim.traits {
                    let value = claimed.target == Target::True;
                    self.flagsmith.insert(claim.identifier.to_string(), value);
                }
                let outcome = Outcome::Written {
                    may_land_late: false,
                };
                settle.push(Settlement { claim, outcome });
            }
        }
    }
}

impl Receiver for Here {
    async fn receive(&mut self, body: &[u8], now: Millis) {
        self.clock.set(now);
        let page = parse(body, &IdentifierRules::default()).unwrap().page;
        self.store()
            .append(&SourceName::from("default"), page, now)
            .await
            .unwrap();
        match self.rng.u8(0..4) {
            0 | 1 => {}
            2 => self.fold_some().await,
            _ => self.fold().run_until_idle().await.unwrap(),
        }
    }

    async fn refuse(&mut self, body: &[u8], now: Millis) {
        self.clock.set(now);
        let page = parse(body, &IdentifierRules::default()).unwrap().page;
        let source = SourceName::from("default");
        self.store().note_refused(&source, &page, now);
    }

    async fn kill(&mut self, now: Millis) {
        self.clock.set(now);
        self.fold_some().await;
        self.store = None;
        self.store = Some(Here::open(&self.path));
    }

    async fn rest(&mut self, now: Millis) {
        self.clock.set(now);
        self.fold().run_until_idle().await.unwrap();
        // Whole sessions not yet applied count as well.
        assert_eq!(self.store().waiting_pages().await.unwrap(), 0);
        // Not at once, so that changes meet changes that were never delivered.
        if self.rng.u8(0..4) == 0 {
            self.deliver().await;
        }
    }
}

/// The naive model in the receiver's place.
struct Naive {
    model: Model,
    ids: BTreeMap<String, u32>,
}

impl Naive {
    fn arrive(&mut self, body: &[u8], now: Millis, is_refused: bool) {
        let page = parse(body, &IdentifierRules::default()).unwrap().page;
        let next = self.ids.len() as u32;
        let id = *self
            .ids
            .entry(page.session_id.clone().unwrap())
            .or_insert(next);
        let info = page.page_info.unwrap();
        let people = page
            .roster
            .iter()
            .map(|entry| {
                let text = entry.identifier;
                let number = match text.strip_prefix("usr_") {
                    Some(number) => number.parse::<u64>().unwrap(),
                    None => text.parse::<u64>().unwrap() - ((1 << 53) + 1),
                };
                number as u8
            })
            .collect();
        let arrival = Arrival {
            action: page.action,
            place: Some((id, info.number, info.total)),
            people,
            is_refused,
        };
        self.model.arrive(0, now, &arrival);
    }
}

impl Receiver for Naive {
    async fn receive(&mut self, body: &[u8], now: Millis) {
        self.arrive(body, now, false);
    }

    async fn refuse(&mut self, body: &[u8], now: Millis) {
        self.arrive(body, now, true);
    }

    async fn kill(&mut self, _: Millis) {}

    async fn rest(&mut self, now: Millis) {
        self.model.rest(now);
    }
}

/// A receiver that can be asked how it ended.
pub trait Held: Receiver + Sized {
    fn start(rng: &mut Rng) -> Self;

    /// Who is in the cohort here.
    async fn cohort(&mut self, mixpanel: &Mixpanel) -> BTreeSet<Person>;

    /// Whatever else it shows agrees with that.
    async fn assert_agrees(&self, _mixpanel: &Mixpanel, _here: &BTreeSet<Person>) {}
}

impl Held for Here {
    fn start(rng: &mut Rng) -> Self {
        Here::new(rng)
    }

    async fn cohort(&mut self, mixpanel: &Mixpanel) -> BTreeSet<Person> {
        self.deliver().await;
        Mixpanel::population()
            .filter(|person| self.flagsmith.get(&mixpanel.identifier(*person)) == Some(&true))
            .collect()
    }

    async fn assert_agrees(&self, mixpanel: &Mixpanel, here: &BTreeSet<Person>) {
        let store = self.store();
        let cohorts = store.cohorts().await.unwrap();
        assert_eq!(cohorts.len(), 1);
        assert_eq!(cohorts[0].members, here.len() as u64);
        assert_eq!(cohorts[0].destinations[0].pending, 0);
        for person in Mixpanel::population() {
            let identifier = mixpanel.identifier(person);
            let memberships = store.member(&identifier).await.unwrap();
            let is_member = memberships.iter().any(|membership| membership.member);
            assert_eq!(is_member, here.contains(&person), "{identifier}");
        }
    }
}

impl Held for Naive {
    fn start(rng: &mut Rng) -> Self {
        let _ = rng.fork();
        Naive {
            model: Model::default(),
            ids: BTreeMap::new(),
        }
    }

    async fn cohort(&mut self, _: &Mixpanel) -> BTreeSet<Person> {
        let cohort = self.model.cohorts.get(&0);
        cohort
            .map(|cohort| cohort.members().into_iter().map(Person::from).collect())
            .unwrap_or_default()
    }
}

type Simulated<H = Here> = Connection<H>;

impl<H: Held> Simulated<H> {
    fn start(knobs: Knobs, faults: Faults, rng: &mut Rng) -> Self {
        let mixpanel = Mixpanel::new(knobs, rng);
        let here = H::start(rng);
        Connection::new(mixpanel, here, faults, START, rng)
    }

    /// Who is wrong now.
    async fn wrong(&mut self) -> Vec<Wrong> {
        let here = self.receiver.cohort(&self.mixpanel).await;
        self.history.judge(self.mixpanel.cohort(), &here)
    }

    async fn assert_exact(&mut self, when: &str) {
        let wrong = self.wrong().await;
        assert!(
            wrong.is_empty(),
            "{when}, with {:#?}: {wrong:?}",
            self.mixpanel.knobs()
        );
    }

    /// Whichever way Mixpanel comes to send everything, undisturbed.
    async fn full_sync(&mut self, rng: &mut Rng) {
        if rng.bool() {
            self.mixpanel.reconnect();
        } else {
            self.pass(SNAPSHOT_LIVES_MS).await;
        }
        assert!(self.run().await);
        assert!(self.history.last_was_full());
    }
}

/// Names the seed where the simulation fails.
pub struct ShowsSeed(pub u64);

impl Drop for ShowsSeed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the simulation failed with TEST_SEED={}", self.0);
        }
    }
}

/// The seeds of a test that simulates `count` cohorts of its own accord.
pub fn seeds(count: u64) -> std::ops::Range<u64> {
    let variable = |name| {
        let value = std::env::var(name).ok()?;
        Some(
            value
                .parse()
                .unwrap_or_else(|_| panic!("{name} is no number")),
        )
    };
    match variable("TEST_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..variable("TEST_SIMULATIONS").unwrap_or(count),
    }
}

#[tokio::test]
async fn undisturbed_runs_are_exact_whatever_mixpanel_chooses() {
    for knobs in Knobs::all() {
        let mut rng = Rng::with_seed(0);
        let mut cohort = Simulated::<Here>::start(knobs, Faults::none(), &mut rng);
        for run in 0..4 {
            assert!(cohort.run().await);
            cohort.assert_exact(&format!("after run {run}")).await;
        }
        cohort.full_sync(&mut rng).await;
        cohort.assert_exact("after a full sync").await;
        assert!(cohort.run().await);
        cohort
            .assert_exact("after a difference to a full sync")
            .await;
    }
}

#[tokio::test]
async fn runs_that_mixpanel_takes_for_a_success_are_exact() {
    for seed in seeds(30) {
        let _shown = ShowsSeed(seed);
        let mut rng = Rng::with_seed(seed);
        let faults = Faults::without_loss(&mut rng);
        let mut cohort = Simulated::<Here>::start(Knobs::from_bits(rng.u8(..)), faults, &mut rng);
        for run in 0..20 {
            assert!(cohort.run().await);
            cohort.assert_exact(&format!("after run {run}")).await;
        }
        cohort.calm_down().await;
        cohort.assert_exact("after the last straggler").await;
        let here = cohort.receiver.cohort(&cohort.mixpanel).await;
        cohort.receiver.assert_agrees(&cohort.mixpanel, &here).await;
    }
}

/// How a number of cohorts ended.
#[derive(Default)]
struct Tally {
    cohorts: usize,
    /// Of which the undisturbed run was a full sync, because the snapshot had expired.
    full: usize,
    wrong_cohorts: usize,
    /// With somebody wrong of whom the messages held the evidence.
    evident_cohorts: usize,
    /// Their seeds.
    evident: Vec<u64>,
    ghosts: usize,
    people: BTreeMap<Evidence, usize>,
}

impl Tally {
    fn add(&mut self, other: Tally) {
        self.cohorts += other.cohorts;
        self.full += other.full;
        self.wrong_cohorts += other.wrong_cohorts;
        self.evident_cohorts += other.evident_cohorts;
        self.evident.extend(other.evident);
        self.ghosts += other.ghosts;
        for (evidence, people) in other.people {
            *self.people.entry(evidence).or_default() += people;
        }
    }

    fn count(&mut self, seed: u64, wrong: &[Wrong]) {
        self.cohorts += 1;
        self.wrong_cohorts += usize::from(!wrong.is_empty());
        let is_evident = wrong.iter().any(|wrong| wrong.evidence.was_there());
        self.evident_cohorts += usize::from(is_evident);
        self.evident.extend(is_evident.then_some(seed));
        self.ghosts += wrong.iter().filter(|wrong| wrong.is_ghost).count();
        for wrong in wrong {
            *self.people.entry(wrong.evidence).or_default() += 1;
        }
    }

    /// Wrong although the messages held no evidence of it.
    fn silent_cohorts(&self) -> usize {
        self.wrong_cohorts - self.evident_cohorts
    }

    /// One line of JSON.
    fn print(&self, setting: &str) {
        let people: BTreeMap<_, _> = self
            .people
            .iter()
            .map(|(evidence, people)| (format!("{evidence:?}"), people))
            .collect();
        let line = json!({
            "setting": setting,
            "cohorts": self.cohorts,
            "disturbed_runs_each": DISTURBED_RUNS,
            "undisturbed_runs_each": 1,
            "undisturbed_was_full": self.full,
            "wrong": self.wrong_cohorts,
            "evident": self.evident_cohorts,
            "evident_seeds": self.evident,
            "people_by_evidence": people,
            "ghosts": self.ghosts,
        });
        println!("{line}");
    }
}

/// Simulates each seed, as many at a time as the machine has cores.
pub fn on_every_core<T: Send>(
    seeds: std::ops::Range<u64>,
    simulate: impl AsyncFn(u64) -> T + Sync,
) -> Vec<T> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    let simulated = std::thread::scope(|scope| {
        let on_core = |core| {
            let seeds = seeds.clone().filter(move |seed| seed % cores == core);
            let simulate = &simulate;
            scope.spawn(move || {
                let mut runtime = tokio::runtime::Builder::new_current_thread();
                let runtime = runtime.enable_all().build().unwrap();
                let simulated = seeds.map(|seed| runtime.block_on(simulate(seed)));
                simulated.collect::<Vec<_>>()
            })
        };
        let threads: Vec<_> = (0..cores).map(on_core).collect();
        let joined = threads.into_iter().map(|thread| thread.join());
        joined.collect::<Result<Vec<_>, _>>()
    });
    let simulated = simulated.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    simulated.into_iter().flatten().collect()
}

/// Disturbs cohorts, and leaves each in peace for one run, then for a full sync.
fn disturb<H: Held>(seeds: std::ops::Range<u64>, faults: fn(&mut Rng) -> Faults) -> Tally {
    let tallies = on_every_core(seeds, async |seed| {
        let mut tally = Tally::default();
        disturb_one::<H>(seed, faults, &mut tally).await;
        tally
    });
    let mut all = Tally::default();
    for tally in tallies {
        all.add(tally);
    }
    all
}

async fn disturb_one<H: Held>(seed: u64, faults: fn(&mut Rng) -> Faults, tally: &mut Tally) {
    let _shown = ShowsSeed(seed);
    let mut rng = Rng::with_seed(seed);
    let faults = faults(&mut rng);
    let knobs = Knobs::from_bits(rng.u8(..));
    let mut cohort = Simulated::<H>::start(knobs, faults.clone(), &mut rng);
    for _ in 0..DISTURBED_RUNS {
        cohort.run().await;
    }
    cohort.calm_down().await;
    assert!(cohort.run().await);
    // That no half follows is known once the run is over.
    cohort.pass(millis(PAUSE) + 1).await;
    cohort.receiver.rest(cohort.now).await;
    let wrong = cohort.wrong().await;
    tally.count(seed, &wrong);
    if cohort.history.last_was_full() {
        tally.full += 1;
        cohort
            .assert_exact("after a full sync that came of itself")
            .await;
    }
    cohort.full_sync(&mut rng).await;
    cohort.assert_exact("after the next full sync").await;
    assert!(cohort.run().await);
    cohort
        .assert_exact("after a difference to a full sync")
        .await;

    cohort.faults = faults;
    for _ in 0..DISTURBED_AGAIN {
        cohort.run().await;
    }
    cohort.calm_down().await;
    cohort.full_sync(&mut rng).await;
    cohort
        .assert_exact("after a full sync without a difference before")
        .await;
    let here = cohort.receiver.cohort(&cohort.mixpanel).await;
    cohort.receiver.assert_agrees(&cohort.mixpanel, &here).await;
}

/// Nobody is wrong against the evidence, and few without.
fn assert_exact_where_evident(tally: &Tally) {
    assert_eq!(tally.people.get(&Evidence::Unexplained), None);
    assert_eq!(
        tally.evident_cohorts, 0,
        "wrong although the messages held the evidence, with TEST_SEED: {:?}",
        tally.evident
    );
    if tally.cohorts >= ENOUGH_FOR_A_SHARE {
        let share = tally.silent_cohorts() as f64 / tally.cohorts as f64;
        assert!(
            share <= MOST_SILENT,
            "{} of {} cohorts wrong without evidence",
            tally.silent_cohorts(),
            tally.cohorts
        );
    }
}

#[test]
fn a_full_sync_mends_everything() {
    let tally = disturb::<Here>(seeds(60), Faults::harsh);
    tally.print("pages lost");
    assert_exact_where_evident(&tally);
}

/// The same without a ledger, which is fast enough for many: that the ledger does as the model does
/// is what [`crate::fold_model`] is about.
#[test]
fn the_rules_are_exact_where_there_is_evidence() {
    let tally = disturb::<Naive>(seeds(1_000), Faults::harsh);
    tally.print("pages lost, the rules alone");
    assert_exact_where_evident(&tally);
}

#[test]
fn a_full_sync_mends_what_old_pages_did() {
    let tally = disturb::<Here>(seeds(20), Faults::harsh_with_strays);
    tally.print("pages lost, old ones after new ones");
}

#[tokio::test]
async fn pages_of_superseded_sessions_change_nothing() {
    for seed in seeds(20) {
        let _shown = ShowsSeed(seed);
        let mut rng = Rng::with_seed(seed);
        let faults = Faults::harsh_with_strays(&mut rng);
        let knobs = Knobs {
            // Old and new pages of one id cannot be told apart, and only a newer session of the
            // same action supersedes an older one.
            same_id_on_restart: false,
            leaves_out_empty_halves: false,
            ..Knobs::from_bits(rng.u8(..))
        };
        let mut cohort = Simulated::<Here>::start(knobs, faults, &mut rng);
        for _ in 0..15 {
            cohort.run().await;
        }
        cohort.calm_down().await;
        cohort.mixpanel.reconnect();
        assert!(cohort.run().await && cohort.run().await);
        cohort
            .assert_exact("after a full sync and a difference")
            .await;
        let since = cohort.now - millis(SESSION_EXPIRES) / 2;
        cohort.repeat_all(since).await;
        cohort.assert_exact("after all old pages came again").await;
    }
}

/// The pages of a sync, as requests.
fn bodies(mixpanel: &mut Mixpanel, now: Millis) -> Vec<Vec<u8>> {
    let sync = mixpanel.begin(now);
    let pages = sync.halves.iter().flat_map(|half| {
        let pages = 0..half.pages.len();
        pages.map(|page| mixpanel.body(half, page))
    });
    pages.collect()
}

#[tokio::test]
async fn a_full_sync_whose_session_expired_starts_again_under_its_old_id() {
    let mut rng = Rng::with_seed(0);
    let knobs = Knobs {
        same_id_on_restart: true,
        ..Knobs::from_bits(0)
    };
    let mut mixpanel = Mixpanel::new(knobs, &mut rng);
    let mut here = Here::new(&mut rng);
    let later = START + SNAPSHOT_LIVES_MS + RUN_EVERY_MS;

    let pages = bodies(&mut mixpanel, START);
    here.receive(&pages[0], START).await;
    here.rest(START).await;
    here.rest(later).await;
    for page in bodies(&mut mixpanel, later) {
        here.receive(&page, later).await;
    }
    here.rest(later).await;
    assert_eq!(here.cohort(&mixpanel).await, *mixpanel.cohort());
}
