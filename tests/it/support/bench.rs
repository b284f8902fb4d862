//! The ledger and the fold without listeners, and a Flagsmith that takes every write.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cohort_bridge::clock::{Clock, ManualClock, Millis};
use cohort_bridge::cohort::{Action, DestinationName, SourceName, Target};
use cohort_bridge::fold::Fold;
use cohort_bridge::mixpanel::{IdentifierRules, Page, PageInfo};
use cohort_bridge::roster::Roster;
use cohort_bridge::store::LedgerStore;
use cohort_bridge::store::{
    Claim, Claims, CohortView, DestinationRules, Outcome, Settlement, SourceRules, Store,
};

use super::{fast_temp_dir, open_ledger, shared_ledger};

pub const START: Millis = 1_800_000_000_000;

/// Mixpanel's time from run to run.
pub const HALF_AN_HOUR: Duration = Duration::from_secs(30 * 60);

pub struct Bench {
    folder: tempfile::TempDir,
    pub clock: ManualClock,
    pub source: SourceRules,
    pub destination: DestinationRules,
    /// `None` only while it is closed.
    store: Option<Arc<LedgerStore>>,
    /// What Flagsmith holds: people and values by trait key.
    pub flagsmith: BTreeMap<String, BTreeMap<String, bool>>,
}

/// A page of a session; the cohort's name is its id.
pub fn page(
    action: Action,
    cohort: &str,
    session: &str,
    (number, total): (u32, u32),
    people: &[&str],
) -> Page {
    let people: BTreeSet<_> = people.iter().copied().collect();
    Page {
        action,
        project_id: "1".into(),
        cohort_id: cohort.into(),
        cohort_name: Some(cohort.into()),
        session_id: Some(session.into()),
        page_info: Some(PageInfo { number, total }),
        members_received: people.len(),
        roster: Roster::of_identifiers(people),
        identified_by: IdentifierRules::default().describe(),
        set_aside: Vec::new(),
    }
}

/// That call did what it was to do.
pub fn written(claim: Claim) -> Settlement {
    let outcome = Outcome::Written {
        may_land_late: false,
    };
    Settlement { claim, outcome }
}

/// People, to compare with.
pub fn set(people: &[&str]) -> BTreeSet<String> {
    people.iter().map(|&person| person.to_owned()).collect()
}

impl Bench {
    pub fn new() -> Self {
        Bench::with(|_, _| {})
    }

    pub fn with(change: impl FnOnce(&mut SourceRules, &mut DestinationRules)) -> Self {
        let mut source = SourceRules::named("default");
        let mut destination = DestinationRules {
            name: DestinationName::from("default"),
            on_leave: Default::default(),
            linger_ms: 0,
            late_write_ms: 60_000,
        };
        change(&mut source, &mut destination);
        let mut bench = Bench {
            folder: fast_temp_dir(),
            clock: ManualClock::at(START),
            source,
            destination,
            store: None,
            flagsmith: BTreeMap::new(),
        };
        bench.open();
        bench
    }

    pub fn path(&self) -> PathBuf {
        self.folder.path().join("ledger.db")
    }

    pub fn store(&self) -> &Arc<LedgerStore> {
        self.store.as_ref().expect("the ledger is open")
    }

    pub fn open(&mut self) {
        let (source, destination) = (self.source.clone(), self.destination.clone());
        self.store = Some(open_ledger(&self.path(), source, destination));
    }

    pub async fn close(&mut self) {
        let store = self.store.take().expect("the ledger is open");
        store.close().await;
    }

    /// Closes the ledger and opens it under the rules as they are now.
    pub async fn reopen(&mut self) {
        self.close().await;
        self.open();
    }

    pub fn now(&self) -> Millis {
        self.clock.now()
    }

    pub async fn append(&self, page: Page) {
        let source = SourceName::from("default");
        self.store()
            .append(&source, page, self.now())
            .await
            .unwrap();
    }

    pub async fn fold(&self) {
        let clock = Arc::new(self.clock.clone());
        let mut fold = Fold::new(self.store().clone(), clock);
        fold.run_until_idle().await.unwrap();
    }

    /// A page comes and is folded.
    pub async fn take(&self, page: Page) {
        self.append(page).await;
        self.fold().await;
    }

    /// A whole full sync.
    pub async fn full(&self, cohort: &str, session: &str, people: &[&str]) {
        self.take(page(Action::Members, cohort, session, (1, 1), people))
            .await;
    }

    pub async fn exchange(&self, settle: Vec<Settlement>) -> Claims {
        let name = &self.destination.name;
        let claims = self
            .store()
            .exchange(name, settle, None, 10_000, self.now());
        claims.await.unwrap()
    }

    /// Flagsmith takes a call.
    pub fn hear(&mut self, claim: &Claim) {
        for claimed in &claim.traits {
            let people = self
                .flagsmith
                .entry(claimed.trait_key.to_string())
                .or_default();
            match claimed.target.trait_value() {
                Some(value) => people.insert(claim.identifier.to_string(), value),
                None => people.remove(&*claim.identifier),
            };
        }
    }

    /// Makes every call there is to make; gives them back.
    pub async fn deliver(&mut self) -> Vec<Claim> {
        let mut calls = Vec::new();
        let mut settle = Vec::new();
        loop {
            let claims = self.exchange(std::mem::take(&mut settle)).await.claims;
            if claims.is_empty() {
                return calls;
            }
            for claim in claims {
                self.hear(&claim);
                calls.push(claim.clone());
                settle.push(written(claim));
            }
        }
    }

    /// Whose trait of that key has that value in Flagsmith.
    pub fn holding(&self, key: &str, value: bool) -> BTreeSet<String> {
        let people = self.flagsmith.get(key).into_iter().flatten();
        people
            .filter(|(_, held)| **held == value)
            .map(|(person, _)| person.clone())
            .collect()
    }

    pub async fn cohort(&self, id: &str) -> CohortView {
        let cohorts = self.store().cohorts().await.unwrap();
        let found = cohorts.into_iter().find(|cohort| cohort.cohort_id == id);
        found.unwrap_or_else(|| panic!("cohort {id}"))
    }

    pub async fn retire(&self, cohort: &str) -> Option<u64> {
        let source = SourceName::from("default");
        let retired = self.store().retire(&source, cohort, self.now());
        retired.await.unwrap()
    }

    /// As a good canary does: what counts as written stays.
    pub async fn prove(&self) {
        let destination = "default".into();
        let mark = self.store().unproven_through(&destination).await.unwrap();
        self.store().proved(&destination, mark).await.unwrap();
    }

    /// Whether the text is anywhere in the ledger's tables.
    pub async fn mentions(&mut self, text: &str) -> bool {
        self.close().await;
        let mentions = shared_ledger::mentions(&self.path(), text);
        self.open();
        mentions
    }

    /// How many rows a table of the ledger has.
    pub async fn rows(&mut self, table: &str) -> u64 {
        self.close().await;
        let rows = shared_ledger::number(&self.path(), &format!("SELECT count(*) FROM {table}"));
        self.open();
        rows as u64
    }
}

/// The one trait of a call and what it is to become.
pub fn changes(claim: &Claim) -> BTreeMap<String, Target> {
    let traits = claim.traits.iter();
    traits
        .map(|claimed| (claimed.trait_key.to_string(), claimed.target))
        .collect()
}
