//! A ledger in a store of each kind, and what a test of the [`Store`] contract does to it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use cohort_bridge::clock::{Clock, ManualClock, Millis};
use cohort_bridge::cohort::{Action, DestinationName, SourceName};
use cohort_bridge::fold::{Fold, Step};
use cohort_bridge::mixpanel::Page;
use cohort_bridge::route::Routes;
use cohort_bridge::store::{
    Claim, Claims, CohortView, DestinationRules, LedgerStore, MembershipView, Outcome, Settlement,
    SourceRules, Store, StoreError, Term,
};

use super::bench::{START, page, written};
use super::noting::{Noted, Noting};
use super::postgres::{Database, Postgres};
use super::shared_ledger::{expire_lease, parsed};
use super::{LOOK_EVERY, PATIENCE, fast_temp_dir};

mod moved;

/// A kind of store that keeps the contract. One more: a variant here, an arm in [`Data::new`] and in
/// [`Data::open`], and a line beside `contracts!(tests!(sqlite: …))`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A file.
    Sqlite,
    /// A database of its own.
    Postgres,
}

/// Where a ledger lies, for as long as a test takes: a folder, or a database of its own on a server
/// whose URL the environment gives.
enum Data {
    Sqlite(tempfile::TempDir),
    Postgres(Box<Database>),
}

/// What the settings say.
#[derive(Clone, Debug)]
pub struct Rules {
    pub sources: Vec<SourceRules>,
    pub destinations: Vec<DestinationRules>,
    pub routes: Routes,
}

impl Data {
    /// A place where no ledger is yet; `None` where there is no such database on this machine.
    async fn new(kind: Kind) -> Option<Self> {
        Some(match kind {
            Kind::Sqlite => Data::Sqlite(fast_temp_dir()),
            Kind::Postgres => {
                Data::Postgres(Box::new(Postgres::shared().await?.fresh_database().await))
            }
        })
    }

    /// Whoever led was silent for long enough.
    async fn expire_lease(&self) {
        if let Data::Postgres(database) = self {
            expire_lease(database.url()).await;
        }
    }

    /// Opens the ledger that is there, or a new one.
    async fn open(&self, rules: Rules) -> Result<Arc<dyn Store>, StoreError> {
        let Rules {
            sources,
            destinations,
            routes,
        } = rules;
        match self {
            Data::Sqlite(folder) => {
                let path = folder.path().join("ledger.db");
                let store = LedgerStore::open_routed(&path, sources, destinations, routes)?;
                Ok(Arc::new(store))
            }
            Data::Postgres(database) => {
                let url = parsed(database.url());
                let opening = tokio::task::spawn_blocking(move || {
                    LedgerStore::connect(&url, sources, destinations, routes)
                });
                Ok(Arc::new(opening.await.unwrap()?))
            }
        }
    }
}

/// A ledger that can be killed and opened again, and a clock that stands still. Where nothing else is
/// said, the source, the destination and the project are `default`, `default` and `1`.
pub struct Stores {
    kind: Kind,
    data: Data,
    pub rules: Rules,
    pub clock: ManualClock,
    /// `None` only while it is closed.
    store: Option<Arc<dyn Store>>,
    /// As long as it lives.
    term: Option<Term>,
    noted: Noted,
}

/// A destination's rules at their plainest.
pub fn destination(name: &str) -> DestinationRules {
    DestinationRules {
        name: name.into(),
        on_leave: Default::default(),
        linger_ms: 0,
        late_write_ms: 60_000,
    }
}

/// The source of whatever names none.
pub fn source() -> SourceName {
    "default".into()
}

/// The destination of whatever names none.
pub fn everywhere() -> DestinationName {
    "default".into()
}

impl Stores {
    /// A ledger in which nothing is, opened; `None` where that kind cannot be had.
    pub async fn new(kind: Kind) -> Option<Self> {
        let mut stores = Stores {
            kind,
            data: Data::new(kind).await?,
            rules: Rules {
                sources: vec![SourceRules::named("default")],
                destinations: vec![destination("default")],
                routes: Routes::default(),
            },
            clock: ManualClock::at(START),
            store: None,
            term: None,
            noted: Noted::default(),
        };
        stores.open().await.unwrap();
        Some(stores)
    }

    /// Another ledger of the same kind.
    pub async fn another(&self) -> Self {
        Stores::new(self.kind).await.unwrap()
    }

    /// The methods that were called so far.
    pub fn noted(&self) -> BTreeSet<&'static str> {
        self.noted.all()
    }

    pub fn store(&self) -> &Arc<dyn Store> {
        self.store.as_ref().expect("the ledger is open")
    }

    /// The time in which it folds and delivers.
    pub fn term(&self) -> Term {
        self.term.clone().expect("the ledger is open")
    }

    /// Opens the ledger once more, as another process would.
    pub async fn beside(&self) -> Result<Arc<dyn Store>, StoreError> {
        self.data.open(self.rules.clone()).await
    }

    /// Opens it under the rules as they are now, as a process that starts does: it leads before it
    /// adopts keys, and that before all else.
    pub async fn open(&mut self) -> Result<(), StoreError> {
        let opening = async {
            let mut interval = tokio::time::interval(LOOK_EVERY);
            loop {
                interval.tick().await;
                match self.beside().await {
                    // A test that starts a process holds a copy of the lock between fork and exec.
                    Err(StoreError::InUse { .. }) => {}
                    opened => return opened,
                }
            }
        };
        let store = tokio::time::timeout(PATIENCE, opening);
        let store = store.await.expect("the ledger is free some time")?;
        let noting = Arc::new(Noting::of(Arc::clone(&store), self.noted.clone()));
        self.term = Some(noting.lead().await?);
        self.store = Some(noting);
        // What every start does makes no test one of that.
        store.adopt_keys(self.now()).await
    }

    /// Lets go of it, with whatever it has in hand.
    pub fn kill(&mut self) {
        self.term = None;
        self.store = None;
    }

    /// Kills it and opens it again over the same data.
    pub async fn reopen(&mut self) {
        self.kill();
        self.expire_lease().await;
        self.open().await.unwrap();
    }

    /// Whoever led was silent for long enough.
    pub async fn expire_lease(&self) {
        self.data.expire_lease().await;
    }

    pub fn now(&self) -> Millis {
        self.clock.now()
    }

    pub fn wait(&self, duration: Duration) {
        self.clock.advance(duration);
    }

    pub async fn append(&self, page: Page) {
        self.append_to("default", page).await;
    }

    pub async fn append_to(&self, source: &str, page: Page) {
        let appended = self.store().append(&source.into(), page, self.now()).await;
        appended.unwrap();
    }

    pub fn new_fold(&self) -> Fold {
        Fold::new(Arc::clone(self.store()), Arc::new(self.clock.clone()))
    }

    pub async fn fold(&self) {
        self.new_fold().run_until_idle().await.unwrap();
    }

    /// Folds, and kills after every step.
    pub async fn fold_with_kills(&mut self, pieces: usize) {
        loop {
            let mut fold = self.new_fold().in_pieces_of(pieces);
            // With fewer a fold never comes beyond what it does again after a kill.
            for _ in 0..4 {
                if fold.step().await.unwrap() == Step::Idle {
                    return;
                }
            }
            drop(fold);
            self.reopen().await;
        }
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

    /// A half of a run.
    pub async fn half(&self, action: Action, cohort: &str, session: &str, people: &[&str]) {
        self.take(page(action, cohort, session, (1, 1), people))
            .await;
    }

    /// Settles calls, and claims whatever is due.
    pub async fn exchange(&self, settle: Vec<Settlement>) -> Claims {
        self.exchange_some(settle, None, 10_000).await
    }

    pub async fn exchange_some(
        &self,
        settle: Vec<Settlement>,
        after: Option<&str>,
        limit: usize,
    ) -> Claims {
        self.exchange_at("default", settle, after, limit).await
    }

    pub async fn exchange_at(
        &self,
        destination: &str,
        settle: Vec<Settlement>,
        after: Option<&str>,
        limit: usize,
    ) -> Claims {
        let (name, after) = (destination.into(), after.map(Arc::from));
        let claims = self
            .store()
            .exchange(&name, settle, after, limit, self.now())
            .await;
        claims.unwrap()
    }

    /// All that is due, claimed.
    pub async fn claim(&self) -> Vec<Claim> {
        self.exchange(Vec::new()).await.claims
    }

    /// The one claim that there is.
    pub async fn claim_one(&self) -> Claim {
        let mut claims = self.claim().await;
        assert_eq!(claims.len(), 1, "{claims:?}");
        claims.remove(0)
    }

    /// Calls that ended so.
    pub async fn settle(&self, claims: Vec<Claim>, outcome: Outcome) -> Claims {
        let settle = claims.into_iter().map(|claim| Settlement {
            claim,
            outcome: outcome.clone(),
        });
        self.exchange_some(settle.collect(), None, 0).await
    }

    /// Makes every call that there is to make, and all of them succeed.
    pub async fn deliver(&self) -> Vec<Claim> {
        self.deliver_to("default").await
    }

    pub async fn deliver_to(&self, destination: &str) -> Vec<Claim> {
        let (mut calls, mut settle) = (Vec::new(), Vec::new());
        loop {
            let settled = std::mem::take(&mut settle);
            let claims = self.exchange_at(destination, settled, None, 10_000).await;
            if claims.claims.is_empty() {
                return calls;
            }
            calls.extend(claims.claims.iter().cloned());
            settle = claims.claims.into_iter().map(written).collect();
        }
    }

    /// Everything counted as written so far was proved to stay.
    pub async fn prove(&self) {
        let mark = self.store().unproven_through(&everywhere()).await.unwrap();
        self.store().proved(&everywhere(), mark).await.unwrap();
    }

    pub async fn cohort(&self, id: &str) -> CohortView {
        let cohorts = self.store().cohorts().await.unwrap();
        let found = cohorts.into_iter().find(|cohort| cohort.cohort_id == id);
        found.unwrap_or_else(|| panic!("cohort {id}"))
    }

    pub async fn member(&self, identifier: &str) -> Vec<MembershipView> {
        self.store().member(identifier).await.unwrap()
    }

    /// The cohorts that a person is in, or has left.
    pub async fn is_in(&self, identifier: &str) -> BTreeMap<String, bool> {
        let memberships = self.member(identifier).await.into_iter();
        memberships.map(|of| (of.cohort_id, of.member)).collect()
    }

    /// Those of these who are in a cohort.
    pub async fn members<'a>(&self, cohort: &str, everybody: &[&'a str]) -> Vec<&'a str> {
        let mut members = Vec::new();
        for identifier in everybody {
            if self.is_in(identifier).await.get(cohort) == Some(&true) {
                members.push(*identifier);
            }
        }
        members
    }

    /// Traits pending and dead at the destination, of a cohort.
    pub async fn pending(&self, cohort: &str) -> (u64, u64) {
        let delivery = self.cohort(cohort).await.destinations.remove(0);
        (delivery.pending, delivery.dead)
    }

    /// Waits until what an earlier call may still bring about is over.
    pub fn wait_for_late_writes(&self) {
        let late_ms = self.rules.destinations[0].late_write_ms;
        self.wait(Duration::from_millis(late_ms.unsigned_abs() + 1));
    }
}

/// That call succeeded, and an earlier sending of it may still land.
pub fn written_late() -> Outcome {
    Outcome::Written {
        may_land_late: true,
    }
}

/// That call succeeded.
pub fn done() -> Outcome {
    Outcome::Written {
        may_land_late: false,
    }
}

/// That call failed for good.
pub fn dead(error: &str) -> Outcome {
    Outcome::Dead {
        may_land_late: false,
        error: error.into(),
    }
}

/// That call is to be made again, and left nothing behind.
pub fn retry(due_at: Millis, counts: bool) -> Outcome {
    Outcome::Retry {
        due_at,
        counts,
        may_land_late: false,
        error: "503".into(),
    }
}

/// Whom calls are for, in order.
pub fn callees(claims: &[Claim]) -> Vec<&str> {
    claims.iter().map(|claim| &*claim.identifier).collect()
}
