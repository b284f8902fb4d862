//! The ledger and the fold with several destinations, each a Flagsmith that takes every write.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use cohort_bridge::clock::{Clock, ManualClock, Millis};
use cohort_bridge::cohort::{Action, DestinationName, OnLeave, SourceName};
use cohort_bridge::fold::{Fold, Step};
use cohort_bridge::route::{NamePattern, Route, Routes, Which};
use cohort_bridge::store::LedgerStore;
use cohort_bridge::store::{
    Claim, CohortView, DestinationRules, Outcome, Settlement, SourceRules, Store,
};
use cohort_bridge::trait_key::TraitKeyTemplate;

use super::bench::{START, page, written};
use super::{fast_temp_dir, open_routed_ledger, shared_ledger};

/// Milliseconds in which a write without a reply may still land.
pub const LATE_MS: Millis = 60_000;

/// What one environment holds: values by trait key and person.
pub type Held = BTreeMap<(String, String), bool>;

pub struct Routed {
    folder: tempfile::TempDir,
    pub clock: ManualClock,
    pub source: SourceRules,
    pub destinations: Vec<&'static str>,
    pub routes: Routes,
    pub on_leave: OnLeave,
    store: Option<Arc<LedgerStore>>,
    held: BTreeMap<&'static str, Held>,
}

/// A route of cohorts whose names match, or of any.
pub fn route(names: Option<&str>, destinations: &[&str]) -> Route {
    Route {
        source: None,
        project_id: None,
        cohorts: names.map(|names| vec![Which::Name(NamePattern::parse(names))]),
        destinations: destinations.iter().map(|name| (*name).into()).collect(),
    }
}

impl Routed {
    /// Trait keys are the cohorts' ids, behind `c`.
    pub fn new(destinations: &[&'static str]) -> Self {
        let mut routed = Routed {
            folder: fast_temp_dir(),
            clock: ManualClock::at(START),
            source: SourceRules {
                trait_key: TraitKeyTemplate::parse("c{id}").unwrap(),
                ..SourceRules::named("default")
            },
            destinations: destinations.to_vec(),
            routes: Routes::default(),
            on_leave: OnLeave::False,
            store: None,
            held: BTreeMap::new(),
        };
        routed.open();
        routed
    }

    pub fn path(&self) -> PathBuf {
        self.folder.path().join("ledger.db")
    }

    pub fn store(&self) -> &Arc<LedgerStore> {
        self.store.as_ref().expect("the ledger is open")
    }

    pub fn open(&mut self) {
        let destinations = self.destinations.iter().map(|name| DestinationRules {
            name: DestinationName::from(*name),
            on_leave: self.on_leave,
            linger_ms: 0,
            late_write_ms: LATE_MS,
        });
        self.store = Some(open_routed_ledger(
            &self.path(),
            vec![self.source.clone()],
            destinations.collect(),
            self.routes.clone(),
        ));
    }

    /// Kills it and starts it again under the rules as they are now.
    pub fn restart(&mut self) {
        self.store = None;
        self.open();
    }

    pub fn new_fold(&self) -> Fold {
        Fold::new(self.store().clone(), Arc::new(self.clock.clone()))
    }

    pub async fn fold(&self) {
        self.new_fold().run_until_idle().await.unwrap();
    }

    /// So many steps of the fold, fewer where nothing is left to do.
    pub async fn fold_steps(&self, steps: usize) {
        let mut fold = self.new_fold();
        for _ in 0..steps {
            if fold.step().await.unwrap() == Step::Idle {
                return;
            }
        }
    }

    /// A whole full sync of a cohort of that id and name, written down.
    pub async fn append(&self, (id, name): (&str, &str), session: &str, people: &[&str]) {
        let mut page = page(Action::Members, id, session, (1, 1), people);
        page.cohort_name = Some(name.into());
        let source = SourceName::from("default");
        let appended = self.store().append(&source, page, self.clock.now());
        appended.await.unwrap();
    }

    /// The same, and folded.
    pub async fn full(&self, cohort: (&str, &str), session: &str, people: &[&str]) {
        self.append(cohort, session, people).await;
        self.fold().await;
    }

    /// Settles calls of a destination and makes the next ones: their claims.
    pub async fn exchange(
        &self,
        destination: &str,
        settle: Vec<Settlement>,
        limit: usize,
    ) -> Vec<Claim> {
        let (name, now) = (DestinationName::from(destination), self.clock.now());
        let claims = self.store().exchange(&name, settle, None, limit, now);
        claims.await.unwrap().claims
    }

    /// An environment takes a call.
    pub fn hear(&mut self, destination: &'static str, claim: &Claim) {
        let held = self.held.entry(destination).or_default();
        for claimed in &claim.traits {
            let key = (claimed.trait_key.to_string(), claim.identifier.to_string());
            match claimed.target.trait_value() {
                Some(value) => held.insert(key, value),
                None => held.remove(&key),
            };
        }
    }

    /// Makes every call to a destination that there is to make; how many.
    pub async fn deliver(&mut self, destination: &'static str) -> usize {
        let (mut calls, mut settle) = (0, Vec::new());
        loop {
            let claims = self.exchange(destination, std::mem::take(&mut settle), 1_000);
            let claims = claims.await;
            if claims.is_empty() {
                return calls;
            }
            for claim in claims {
                self.hear(destination, &claim);
                settle.push(written(claim));
                calls += 1;
            }
        }
    }

    /// What an environment holds.
    pub fn held(&self, destination: &str) -> Held {
        self.held.get(destination).cloned().unwrap_or_default()
    }

    /// Who has a trait there that says `true`.
    pub fn holding(&self, destination: &str, key: &str) -> Vec<String> {
        let held = self.held(destination).into_iter();
        held.filter(|((held, _), value)| held == key && *value)
            .map(|((_, person), _)| person)
            .collect()
    }

    pub async fn cohort(&self, id: &str) -> CohortView {
        let cohorts = self.store().cohorts().await.unwrap();
        let found = cohorts.into_iter().find(|cohort| cohort.cohort_id == id);
        found.unwrap_or_else(|| panic!("cohort {id}"))
    }

    /// Where a cohort goes.
    pub async fn goes(&self, id: &str) -> Vec<String> {
        let cohort = self.cohort(id).await;
        let names = cohort.destinations.iter();
        names.map(|delivery| delivery.name.to_string()).collect()
    }

    /// What the ledger says is pending for a cohort there.
    pub async fn pending(&self, id: &str, destination: &str) -> u64 {
        let cohort = self.cohort(id).await;
        let mut deliveries = cohort.destinations.iter();
        let found = deliveries.find(|delivery| &*delivery.name.0 == destination);
        found.map_or(0, |delivery| delivery.pending)
    }

    /// How many rows a table of the ledger has.
    pub fn rows(&mut self, table: &str) -> u64 {
        self.store = None;
        let rows = shared_ledger::number(&self.path(), &format!("SELECT count(*) FROM {table}"));
        self.open();
        rows as u64
    }
}

/// That call failed for good.
pub fn dead(claim: Claim) -> Settlement {
    let outcome = Outcome::Dead {
        may_land_late: false,
        error: "400".into(),
    };
    Settlement { claim, outcome }
}
