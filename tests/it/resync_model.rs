//! Orders to write again, against a naive model: sets of who is owed a call by which order.

use std::collections::BTreeSet;

use cohort_bridge::store::{ResyncRoom, ResyncScope, ResyncStep, Store};
use proptest::prelude::*;

use crate::support::bench::{Bench, written};
use crate::support::resyncs::{cohort_at, order};
use crate::support::shared_ledger;

/// Who is in which cohort.
const COHORTS: [(&str, &[&str]); 3] = [
    ("a", &["p0", "p1", "p2", "p3", "p4", "p5", "p6", "p7"]),
    ("b", &["p1", "p3", "p5", "p8", "p9"]),
    ("c", &["p0", "p9"]),
];

/// A person's trait.
type Pair = (String, String);

#[derive(Clone, Debug)]
enum Op {
    Order(Option<usize>),
    Cancel(Option<usize>),
    /// So many traits, while fewer than that are ahead.
    Step(usize, usize),
    Deliver(usize),
    Kill,
}

fn op() -> impl Strategy<Value = Op> {
    let scope = prop::option::of(0..COHORTS.len());
    prop_oneof![
        2 => scope.clone().prop_map(Op::Order),
        1 => scope.prop_map(Op::Cancel),
        8 => (1_usize..5, 1_usize..12).prop_map(|(rows, ahead)| Op::Step(rows, ahead)),
        4 => (1_usize..6).prop_map(Op::Deliver),
        1 => Just(Op::Kill),
    ]
}

/// Who is owed a call.
#[derive(Default)]
struct Model {
    /// By an order of everything.
    by_all: BTreeSet<Pair>,
    /// By one of their cohort's.
    by_cohort: [BTreeSet<Pair>; COHORTS.len()],
    /// Who was reached already when it was ordered again: they are called for, once or twice.
    may: BTreeSet<Pair>,
}

fn pairs_of(cohort: usize) -> BTreeSet<Pair> {
    let (cohort, people) = COHORTS[cohort];
    let pair = |person: &&str| ((*person).to_owned(), format!("mixpanel_cohort_{cohort}"));
    people.iter().map(pair).collect()
}

impl Model {
    fn order(&mut self, of: Option<usize>, pending: &BTreeSet<Pair>) {
        let all: BTreeSet<_> = match of {
            Some(cohort) => pairs_of(cohort),
            None => (0..COHORTS.len()).flat_map(pairs_of).collect(),
        };
        self.may.extend(all.intersection(pending).cloned());
        let owed = all.difference(pending).cloned().collect();
        match of {
            Some(cohort) => self.by_cohort[cohort] = owed,
            None => {
                self.by_all = owed;
                self.by_cohort = Default::default();
            }
        }
    }

    fn cancel(&mut self, of: Option<usize>) {
        match of {
            Some(cohort) => self.by_cohort[cohort].clear(),
            None => {
                self.by_all.clear();
                self.by_cohort = Default::default();
            }
        }
    }

    /// Somebody became pending; whether anybody owed it.
    fn reached(&mut self, pair: &Pair) -> bool {
        let mut is_owed = self.by_all.remove(pair);
        for owed in &mut self.by_cohort {
            is_owed |= owed.remove(pair);
        }
        is_owed || self.may.contains(pair)
    }

    fn owed(&self) -> usize {
        let by_cohort: usize = self.by_cohort.iter().map(BTreeSet::len).sum();
        self.by_all.len() + by_cohort
    }
}

fn scope(of: Option<usize>) -> ResyncScope {
    match of {
        Some(cohort) => cohort_at(COHORTS[cohort].0, None),
        None => ResyncScope::Destination("default".into()),
    }
}

/// The ledger, and what is pending in it.
struct World {
    bench: Bench,
    pending: BTreeSet<Pair>,
}

impl World {
    async fn new() -> Self {
        let mut bench = Bench::new();
        for (cohort, people) in COHORTS {
            bench.full(cohort, "first", people).await;
        }
        bench.deliver().await;
        World {
            bench,
            pending: BTreeSet::new(),
        }
    }

    /// A step; who became pending.
    async fn step(&mut self, rows: usize, rows_ahead: usize) -> (ResyncStep, BTreeSet<Pair>) {
        let room = ResyncRoom {
            max_calls_per_second: None,
            identities: usize::MAX,
            rows,
            identities_ahead: usize::MAX,
            rows_ahead,
        };
        let store = self.bench.store();
        let name = &self.bench.destination.name;
        let step = store
            .resync_some(name, room, self.bench.now())
            .await
            .unwrap();
        let pending = self.look().await;
        let new = pending.difference(&self.pending).cloned().collect();
        self.pending = pending;
        (step, new)
    }

    /// What is pending: asked of the ledger by way of all claims, which are given back.
    async fn look(&self) -> BTreeSet<Pair> {
        let pairs = "SELECT identifier, key FROM pending JOIN trait ON trait.id = pending.trait";
        let pairs = shared_ledger::look(&self.bench.path(), pairs);
        let pairs = pairs.into_iter().map(<[String; 2]>::try_from);
        pairs.map(|pair| pair.unwrap().into()).collect()
    }

    async fn deliver(&mut self, calls: usize) {
        let name = self.bench.destination.name.clone();
        let store = self.bench.store();
        let now = self.bench.now();
        let claims = store.exchange(&name, Vec::new(), None, calls, now).await;
        let settle = claims.unwrap().claims.into_iter().map(written).collect();
        let settled = store.exchange(&name, settle, None, 0, now).await;
        settled.unwrap();
        self.pending = self.look().await;
    }
}

async fn hold(ops: Vec<Op>) -> Result<(), TestCaseError> {
    let mut world = World::new().await;
    let mut model = Model::default();
    let finish = std::iter::repeat_n([Op::Step(3, 9), Op::Deliver(20)], 60).flatten();
    for op in ops.into_iter().chain(finish) {
        match op {
            Op::Order(of) => {
                let (store, now) = (world.bench.store(), world.bench.now());
                let ordered = order(&**store, scope(of), None, now).await;
                let traits = |cohort: usize| COHORTS[cohort].1.len();
                let all = of.map_or_else(|| (0..COHORTS.len()).map(traits).sum(), traits);
                prop_assert_eq!(ordered, Some(all as u64));
                model.order(of, &world.pending);
            }
            Op::Cancel(of) => {
                world.bench.store().cancel_resync(scope(of)).await.unwrap();
                model.cancel(of);
            }
            Op::Step(rows, ahead) => {
                let before = world.pending.len();
                let (step, new) = world.step(rows, ahead).await;
                // One person at least, who may have three traits.
                prop_assert!(new.len() <= rows.max(3));
                prop_assert!(new.is_empty() || before < ahead, "{} ahead", before);
                for pair in &new {
                    prop_assert!(model.reached(pair), "{:?} for nobody: {:?}", pair, step);
                }
            }
            Op::Deliver(calls) => world.deliver(calls).await,
            Op::Kill => world.bench.reopen().await,
        }
    }
    prop_assert_eq!(model.owed(), 0);
    prop_assert_eq!(world.step(1, 1).await.0, ResyncStep::Idle);
    prop_assert_eq!(world.bench.rows("resync").await, 0);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn nobody_is_missed_and_nobody_called_for_whom_no_order_reaches(
        ops in prop::collection::vec(op(), 1..60),
    ) {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(hold(ops))?;
    }
}
