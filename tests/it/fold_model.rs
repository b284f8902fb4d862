//! The real ledger and fold, through their public interface, against the naive model of
//! [`crate::membership_model`]: 100,000 histories of about 60 operations at most, kills in between.
//!
//! `TEST_HISTORIES` sets how many; `TEST_SEED` repeats one of them (`7`), or some (`0..100`:
//! those that share a ledger).

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cohort_bridge::clock::{Clock, ManualClock, Millis};
use cohort_bridge::cohort::{Action, SourceName};
use cohort_bridge::fold::{Fold, Step};
use cohort_bridge::mixpanel::{IdentifierRules, Page, PageInfo};
use cohort_bridge::roster::Roster;
use cohort_bridge::route::Routes;
use cohort_bridge::store::LedgerStore;
use cohort_bridge::store::Store;
use fastrand::Rng;

use crate::membership_model::{Arrival, Model};
use crate::support::{fast_temp_dir, open_routed_ledger};

const START: Millis = 1_800_000_000_000;
const MINUTE: Millis = 60_000;

/// People of a history.
const PEOPLE: u8 = 6;

/// Operations of a history at most.
const MOST_OPERATIONS: usize = 60;

/// Histories played without TEST_HISTORIES.
const HISTORIES: u64 = 100_000;

/// Histories that share a ledger, one after the other, each with a source of its own: making one
/// takes longer than a history. They share their people, too, who are looked up once for all.
const HISTORIES_A_LEDGER: u64 = 100;

/// One thing that happens.
#[derive(Clone, Debug)]
enum Op {
    /// A page is written down, so long after the one before.
    Arrive(Millis, u8, Arrival),
    /// The fold takes some steps, and is killed.
    FoldSome(usize),
    /// The fold takes everything in.
    Fold,
    /// The cohort is retired, once everything is taken in.
    Retire(u8),
}

fn people(rng: &mut Rng) -> BTreeSet<u8> {
    (0..PEOPLE).filter(|_| rng.u8(0..4) == 0).collect()
}

fn pause(rng: &mut Rng) -> Millis {
    match rng.u8(0..20) {
        0..15 => 1_000,
        15 | 16 => 2 * MINUTE,
        17 => 12 * MINUTE,
        _ => 31 * MINUTE,
    }
}

/// A page of any session at all.
fn any_page(rng: &mut Rng) -> Arrival {
    let action = match rng.u8(0..9) {
        0 => Action::Members,
        1..5 => Action::AddMembers,
        _ => Action::RemoveMembers,
    };
    let total = *rng.choice(&[1, 1, 2, 3]).unwrap();
    let place = (rng.u8(..), rng.u32(1..=total), total);
    Arrival {
        action,
        place: (rng.u8(0..12) > 0).then_some((u32::from(place.0 % 4), place.1, place.2)),
        people: people(rng),
        is_refused: rng.u8(0..16) == 0,
    }
}

/// What Mixpanel would send: both halves of a run, or a full sync; sometimes not all of it.
fn run(id: u32, cohort: u8, rng: &mut Rng) -> Vec<Op> {
    let mut pages = Vec::new();
    let actions: &[Action] = match rng.u8(0..8) {
        0 => &[Action::Members],
        1..5 => &[Action::AddMembers, Action::RemoveMembers],
        _ => &[Action::RemoveMembers, Action::AddMembers],
    };
    for action in actions {
        let total = *rng.choice(&[1, 1, 1, 2]).unwrap();
        for number in 1..=total {
            pages.push(Arrival {
                action: *action,
                place: Some((id, number, total)),
                people: people(rng),
                is_refused: false,
            });
        }
    }
    match rng.u8(0..6) {
        0 => {
            pages.pop();
        }
        1 => {
            pages.remove(0);
        }
        2 => rng.shuffle(&mut pages),
        _ => {}
    }
    let mut after = if rng.bool() { 30 * MINUTE } else { pause(rng) };
    let arrive = |arrival| {
        let by = std::mem::replace(&mut after, 1_000);
        Op::Arrive(by, cohort, arrival)
    };
    pages.into_iter().map(arrive).collect()
}

fn history(seed: u64) -> Vec<Op> {
    let mut rng = Rng::with_seed(seed);
    // Short ones are many: most faults need few pages, and some need a long past.
    let length = 1 + (rng.f64().powi(3) * MOST_OPERATIONS as f64) as usize;
    let is_orderly = rng.bool();
    let mut id = 10;
    let mut ops = Vec::new();
    while ops.len() < length {
        let cohort = u8::from(rng.u8(0..5) == 0);
        match rng.u8(0..40) {
            0..4 => ops.push(Op::Fold),
            4..7 => ops.push(Op::FoldSome(rng.usize(0..6))),
            7 if rng.u8(0..4) == 0 => ops.push(Op::Retire(cohort)),
            7..30 if is_orderly => {
                id += u32::from(rng.u8(0..4) > 0);
                ops.extend(run(id, cohort, &mut rng));
            }
            _ => ops.push(Op::Arrive(pause(&mut rng), cohort, any_page(&mut rng))),
        }
    }
    ops.truncate(MOST_OPERATIONS);
    ops
}

/// A history that was played: what its source's cohorts should be.
struct Played {
    seed: u64,
    source: SourceName,
    model: Model,
    ended_at: Millis,
}

/// A ledger that histories share.
struct Shared {
    dir: tempfile::TempDir,
    store: Option<Arc<LedgerStore>>,
    clock: ManualClock,
    played: Vec<Played>,
    rules: IdentifierRules,
}

impl Shared {
    fn new() -> Self {
        let dir = fast_temp_dir();
        Shared {
            store: Some(open(dir.path())),
            dir,
            clock: ManualClock::at(START),
            played: Vec::new(),
            rules: IdentifierRules::default(),
        }
    }

    fn store(&self) -> &Arc<LedgerStore> {
        self.store.as_ref().unwrap()
    }

    /// One history.
    async fn play(&mut self, seed: u64, ops: &[Op]) {
        let _naming = NameWherePanicking(seed);
        let source = SourceName::from(&*format!("s{}", self.played.len()));
        let mut model = Model::default();
        let mut rng = Rng::with_seed(ops.len() as u64);
        // A kill forgets which page was refused last, until another one is written down.
        let mut is_noted = false;
        let mut arriving: Vec<(Page, Millis)> = Vec::new();
        for op in ops {
            let is_page = matches!(op, Op::Arrive(_, _, arrival) if !arrival.is_refused);
            if !is_page {
                self.append_all(&source, &mut arriving).await;
            }
            match op {
                Op::Arrive(by, cohort, arrival) => {
                    let now = self.clock.now() + by;
                    self.clock.set(now);
                    model.arrive(*cohort, now, arrival);
                    is_noted = arrival.is_refused;
                    let page = self.page(*cohort, arrival);
                    if arrival.is_refused {
                        self.store().note_refused(&source, &page, now);
                    } else {
                        arriving.push((page, now));
                    }
                }
                Op::FoldSome(steps) => {
                    let mut fold = self.fold(1);
                    for _ in 0..*steps {
                        fold.step().await.unwrap();
                    }
                    if !is_noted && rng.u8(0..50) == 0 {
                        drop(fold);
                        self.store = None;
                        self.store = Some(open(self.dir.path()));
                    }
                }
                Op::Fold => {
                    self.fold_all().await;
                    model.rest(self.clock.now());
                }
                // A note that is not written down yet would come after it.
                Op::Retire(_) if is_noted => {}
                Op::Retire(cohort) => {
                    self.fold_all().await;
                    model.rest(self.clock.now());
                    let id = cohort.to_string();
                    let now = self.clock.now();
                    let retired = self.store().retire(&source, &id, now).await.unwrap();
                    // The note of a refused page alone is not written down yet.
                    if let Some(cohort) =
                        model.cohorts.get_mut(cohort).filter(|_| retired.is_some())
                    {
                        cohort.retire();
                    }
                }
            }
        }
        self.append_all(&source, &mut arriving).await;
        self.fold_all().await;
        self.played.push(Played {
            seed,
            source,
            model,
            ended_at: self.clock.now(),
        });
    }

    /// A history with a ledger of its own; what is wrong at its end.
    async fn play_alone(seed: u64, ops: &[Op]) -> Result<(), Wrong> {
        let mut alone = Shared::new();
        alone.play(seed, ops).await;
        alone.compare().await
    }

    /// Writes pages down in order, as many as can be in one transaction.
    async fn append_all(&self, source: &SourceName, pages: &mut Vec<(Page, Millis)>) {
        let store = self.store();
        let appends = pages
            .drain(..)
            .map(|(page, now)| store.append(source, page, now));
        for appended in futures_util::future::join_all(appends).await {
            appended.unwrap();
        }
    }

    fn fold(&self, people: usize) -> Fold {
        Fold::new(self.store().clone(), Arc::new(self.clock.clone())).in_pieces_of(people)
    }

    async fn fold_all(&self) {
        let mut fold = self.fold(2);
        while fold.step().await.unwrap() != Step::Idle {}
    }

    fn page(&self, cohort: u8, arrival: &Arrival) -> Page {
        Page {
            action: arrival.action,
            project_id: "1".into(),
            cohort_id: cohort.to_string(),
            cohort_name: None,
            session_id: arrival.place.map(|(id, _, _)| id.to_string()),
            page_info: arrival
                .place
                .map(|(_, number, total)| PageInfo { number, total }),
            roster: Roster::of_identifiers(
                arrival
                    .people
                    .iter()
                    .map(|person| identifier(*person))
                    .collect::<Vec<_>>()
                    .iter()
                    .map(String::as_str),
            ),
            identified_by: self.rules.describe(),
            members_received: arrival.people.len(),
            set_aside: Vec::new(),
        }
    }

    /// Looks up everybody; the first history that ended otherwise than its model.
    async fn compare(&mut self) -> Result<(), Wrong> {
        // Whatever run was under way is over by now.
        self.clock.set(self.clock.now() + 30 * MINUTE);
        self.fold_all().await;
        for played in &mut self.played {
            played.model.rest(played.ended_at + 30 * MINUTE);
        }
        for person in 0..PEOPLE {
            let mut here: BTreeMap<SourceName, BTreeSet<(u8, bool)>> = BTreeMap::new();
            for membership in self.store().member(&identifier(person)).await.unwrap() {
                let cohort = membership.cohort_id.parse().unwrap();
                let of_source = here.entry(membership.source).or_default();
                of_source.insert((cohort, membership.member));
            }
            for played in &self.played {
                let mut here = here.remove(&played.source).unwrap_or_default();
                let mut there = BTreeSet::new();
                for (number, cohort) in &played.model.cohorts {
                    if cohort.was_retired {
                        // Whether leavers are remembered depends on when it was tidied.
                        here.remove(&(*number, false));
                    }
                    let is_member = cohort.is_member(person);
                    if is_member || (cohort.known.contains(&person) && !cohort.was_retired) {
                        there.insert((*number, is_member));
                    }
                }
                if here != there {
                    return Err(Wrong {
                        seed: played.seed,
                        what: format!(
                            "person {person}: (cohort, member) is {here:?}, not {there:?}"
                        ),
                    });
                }
            }
            assert!(here.is_empty(), "nobody sent {here:?}");
        }
        Ok(())
    }
}

fn identifier(person: u8) -> String {
    format!("usr_{person}")
}

/// A history that ended otherwise than its model.
#[derive(Debug)]
struct Wrong {
    seed: u64,
    what: String,
}

/// Says which history it was that made the store or the model panic.
struct NameWherePanicking(u64);

impl Drop for NameWherePanicking {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("in TEST_SEED={}", self.0);
        }
    }
}

fn open(dir: &Path) -> Arc<LedgerStore> {
    // No destination: this is about who is a member.
    open_routed_ledger(
        &dir.join("ledger.db"),
        Vec::new(),
        Vec::new(),
        Routes::default(),
    )
}

/// Has the other threads begin with nothing more.
struct EndAllWherePanicking<'a>(&'a AtomicU64);

impl Drop for EndAllWherePanicking<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.store(u64::MAX / 2, Ordering::Relaxed);
        }
    }
}

/// Leaves out whatever is not needed for it to fail.
async fn shrink(seed: u64, mut ops: Vec<Op>) -> Vec<Op> {
    let mut index = 0;
    while index < ops.len() {
        let mut fewer = ops.clone();
        fewer.remove(index);
        if Shared::play_alone(seed, &fewer).await.is_err() {
            ops = fewer;
        } else {
            index += 1;
        }
    }
    ops
}

/// Plays histories on one ledger.
async fn play_together(seeds: Range<u64>) {
    let mut shared = Shared::new();
    for seed in seeds.clone() {
        shared.play(seed, &history(seed)).await;
    }
    let Err(Wrong { seed, what }) = shared.compare().await else {
        return;
    };
    let ops = history(seed);
    if Shared::play_alone(seed, &ops).await.is_ok() {
        panic!("TEST_SEED={seed}: {what}; not alone, but in TEST_SEED={seeds:?}");
    }
    let ops = shrink(seed, ops).await;
    let again = Shared::play_alone(seed, &ops).await;
    let ops: Vec<_> = ops.iter().map(|op| format!("{op:?}")).collect();
    panic!(
        "TEST_SEED={seed}: {what}; shrunk to {again:?}:\n{}",
        ops.join("\n")
    );
}

/// The histories to play.
fn seeds() -> Range<u64> {
    if let Ok(seed) = std::env::var("TEST_SEED") {
        return match seed.split_once("..") {
            Some((first, end)) => first.parse().unwrap()..end.parse().unwrap(),
            None => seed.parse().unwrap()..seed.parse::<u64>().unwrap() + 1,
        };
    }
    let count = std::env::var("TEST_HISTORIES").ok();
    let count = count.and_then(|count| count.parse().ok());
    0..count.unwrap_or(HISTORIES)
}

#[test]
fn every_history_ends_with_the_right_members() {
    let seeds = seeds();
    let next = AtomicU64::new(seeds.start);
    let play = || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let _end = EndAllWherePanicking(&next);
        loop {
            let first = next.fetch_add(HISTORIES_A_LEDGER, Ordering::Relaxed);
            if first >= seeds.end {
                return;
            }
            let end = seeds.end.min(first + HISTORIES_A_LEDGER);
            runtime.block_on(play_together(first..end));
        }
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(play);
        }
    });
}
