//! A store that handlers can be tested on: it holds pages and the facts it was given, no ledger.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use tokio::sync::Semaphore;

use crate::calls::{CallOrder, CallsCounted};
use crate::canary::CanaryMemory;
use crate::clock::Millis;
use crate::cohort::{Action, DestinationName, SourceName};
use crate::mixpanel::{Page, SetAside};
use crate::month::Month;
use crate::plan::{Load, Unwritten, UnwrittenOf, UnwrittenThere};
use crate::roster::PersonHash;
use crate::store::*;

type Failure = fn() -> StoreError;

/// See the module.
pub(crate) struct StubStore {
    pub pages: Mutex<Vec<(SourceName, Page)>>,
    pub properties: Mutex<HashSet<String>>,
    pub notes: Mutex<Vec<String>>,
    pub fail: Mutex<Option<Failure>>,
    pub orders: Mutex<Vec<String>>,
    pub refused: Mutex<Vec<(SourceName, Page)>>,
    pub cohorts: Mutex<Vec<CohortView>>,
    pub resyncs: Mutex<Vec<ResyncView>>,
    /// A permit for each page that may be appended.
    pub gate: Semaphore,
    appending: AtomicUsize,
}

impl Default for StubStore {
    fn default() -> Self {
        StubStore {
            pages: Mutex::default(),
            properties: Mutex::default(),
            notes: Mutex::default(),
            fail: Mutex::default(),
            orders: Mutex::default(),
            refused: Mutex::default(),
            cohorts: Mutex::new(vec![cohort("7")]),
            resyncs: Mutex::default(),
            gate: Semaphore::new(1_000),
            appending: AtomicUsize::new(0),
        }
    }
}

impl StubStore {
    pub fn failing(failure: Failure) -> Self {
        let store = StubStore::default();
        store.fail_with(Some(failure));
        store
    }

    pub fn fail_with(&self, failure: Option<Failure>) {
        *self.fail.lock().unwrap() = failure;
    }

    /// Appends that were asked for.
    pub fn appending(&self) -> usize {
        self.appending.load(Ordering::SeqCst)
    }

    fn works(&self) -> Result<(), StoreError> {
        self.fail
            .lock()
            .unwrap()
            .map_or(Ok(()), |failure| Err(failure()))
    }

    fn ordered(&self, order: String) {
        self.orders.lock().unwrap().push(order);
    }
}

fn named(scope: &ResyncScope) -> String {
    match scope {
        ResyncScope::Destination(name) => format!("everything at {name}"),
        ResyncScope::Cohort {
            source,
            cohort_id,
            destination,
        } => {
            let at = destination.as_ref();
            let at = at.map_or(String::new(), |name| format!(" at {name}"));
            format!("{source} {cohort_id}{at}")
        }
    }
}

fn is_known(scope: &ResyncScope) -> bool {
    match scope {
        ResyncScope::Destination(_) => true,
        ResyncScope::Cohort { cohort_id, .. } => cohort_id == "7",
    }
}

/// A cohort half-way through its first full sync.
pub(crate) fn cohort(id: &str) -> CohortView {
    CohortView {
        source: "default".into(),
        cohort_id: id.into(),
        project_id: "2914407".into(),
        name: format!("Trial power users {id}"),
        former_name: None,
        standing: CohortStanding::Followed,
        paused: false,
        trait_key: format!("mixpanel_cohort_{id}").into(),
        members: 1_234_567,
        left: 3,
        last_heard_at: 90_000,
        session: Some(SessionView {
            id: "s1".into(),
            action: Action::Members,
            pages_received: 2,
            pages_total: 3,
            completed_at: None,
        }),
        needs_full_sync: None,
        held: None,
        set_aside: vec![],
        runs: RunCounts::default(),
        destinations: vec![DeliveryView {
            name: "production".into(),
            written: 90,
            pending: 5,
            dead: 1,
            oldest_pending_at: Some(40_000),
            ready: false,
        }],
    }
}

/// A cohort of which there is everything to tell.
pub(crate) fn troubled_cohort(id: &str) -> CohortView {
    CohortView {
        former_name: Some("Old <b>name".into()),
        needs_full_sync: Some(FullSyncReason::IdentifiedOtherwise {
            was: "email".into(),
            now: "$user_id, email".into(),
        }),
        held: Some(HeldRemovals {
            held: 1_204,
            session: "s0".into(),
            since: 30_000,
        }),
        set_aside: vec![(SetAside::Anonymous, 1_500), (SetAside::TooLong, 2)],
        runs: RunCounts {
            accepted: 40,
            dropped: 2,
            undone: 1,
        },
        ..cohort(id)
    }
}

#[async_trait]
impl Store for StubStore {
    async fn lead(&self) -> Result<Term, StoreError> {
        unreachable!("the handlers neither fold nor deliver")
    }

    fn is_shared(&self) -> bool {
        false
    }

    async fn append(&self, source: &SourceName, page: Page, _: Millis) -> Result<(), StoreError> {
        self.appending.fetch_add(1, Ordering::SeqCst);
        self.gate.acquire().await.unwrap().forget();
        self.works()?;
        self.pages.lock().unwrap().push((source.clone(), page));
        Ok(())
    }

    async fn has_sent_property(&self, _: &SourceName, property: &str) -> Result<bool, StoreError> {
        self.works()?;
        Ok(self.properties.lock().unwrap().contains(property))
    }

    async fn note_property(&self, _: &SourceName, property: &str) -> Result<(), StoreError> {
        self.works()?;
        self.notes.lock().unwrap().push(property.to_owned());
        Ok(())
    }

    async fn assemble(&self, _: usize, _: usize, _: Millis) -> Result<Assembled, StoreError> {
        unreachable!()
    }

    async fn count_calls(
        &self,
        _: &DestinationName,
        _: CallOrder,
        _: Millis,
    ) -> Result<CallsCounted, StoreError> {
        unreachable!("the handlers call nobody")
    }

    async fn waiting_pages(&self) -> Result<u64, StoreError> {
        Ok(0)
    }

    async fn page_people(&self, _: Vec<(SessionRef, u32)>) -> Result<Vec<PagePeople>, StoreError> {
        unreachable!()
    }

    async fn apply(&self, _: Chunk, _: Millis) -> Result<Applied, StoreError> {
        unreachable!()
    }

    async fn rename_people(&self, _: SessionRef, _: u32, _: Millis) -> Result<(), StoreError> {
        unreachable!("the handlers know no sessions")
    }

    async fn place_people(
        &self,
        _: CohortRef,
        _: Vec<(PersonHash, String)>,
    ) -> Result<(), StoreError> {
        unreachable!("the handlers know no people")
    }

    async fn count_removals(&self, _: Chunk) -> Result<Counted, StoreError> {
        unreachable!("the handlers know no sessions")
    }

    async fn judge(
        &self,
        _: SessionRef,
        _: Vec<SessionRef>,
        _: Judgement,
    ) -> Result<(), StoreError> {
        unreachable!("the handlers know no sessions")
    }

    async fn finish(&self, _: SessionRef, _: Recognised, _: Millis) -> Result<(), StoreError> {
        unreachable!("the handlers know no sessions")
    }

    async fn adopt_keys(&self, _: Millis) -> Result<(), StoreError> {
        Ok(())
    }

    async fn follow_routes(&self, _: usize, _: Millis) -> Result<bool, StoreError> {
        unreachable!()
    }

    async fn close(&self) {}

    async fn exchange(
        &self,
        _: &DestinationName,
        _: Vec<Settlement>,
        _: Option<Arc<str>>,
        _: usize,
        _: Millis,
    ) -> Result<Claims, StoreError> {
        unreachable!()
    }

    async fn unproven_through(&self, _: &DestinationName) -> Result<i64, StoreError> {
        unreachable!("the handlers send no canaries")
    }

    async fn proved(&self, _: &DestinationName, _: i64) -> Result<(), StoreError> {
        unreachable!("the handlers send no canaries")
    }

    async fn doubt(&self, _: &DestinationName, _: Millis) -> Result<u64, StoreError> {
        unreachable!("the handlers send no canaries")
    }

    async fn order_resync(&self, order: ResyncOrder, _: Millis) -> Result<Option<u64>, StoreError> {
        self.works()?;
        let rate = order.max_calls_per_second;
        let rate = rate.map_or(String::new(), |rate| format!(", {rate} a second"));
        self.ordered(format!("resync {}{rate}", named(&order.scope)));
        Ok(is_known(&order.scope).then_some(6))
    }

    async fn cancel_resync(&self, scope: ResyncScope) -> Result<Option<u64>, StoreError> {
        self.works()?;
        self.ordered(format!("no resync {}", named(&scope)));
        Ok(is_known(&scope).then_some(5))
    }

    async fn resync_some(
        &self,
        _: &DestinationName,
        _: ResyncRoom,
        _: Millis,
    ) -> Result<ResyncStep, StoreError> {
        unreachable!("the handlers carry nothing out")
    }

    async fn resyncs(&self) -> Result<Vec<ResyncView>, StoreError> {
        self.works()?;
        Ok(self.resyncs.lock().unwrap().clone())
    }

    async fn canary_memory(&self, _: &DestinationName) -> Result<CanaryMemory, StoreError> {
        unreachable!("the handlers send no canaries")
    }

    async fn remember_canary(
        &self,
        _: &DestinationName,
        _: CanaryMemory,
    ) -> Result<(), StoreError> {
        unreachable!("the handlers send no canaries")
    }

    async fn cohorts(&self) -> Result<Vec<CohortView>, StoreError> {
        self.works()?;
        Ok(self.cohorts.lock().unwrap().clone())
    }

    async fn member(&self, identifier: &str) -> Result<Vec<MembershipView>, StoreError> {
        self.works()?;
        self.ordered(format!("member {identifier}"));
        Ok(vec![MembershipView {
            source: "default".into(),
            cohort_id: "7".into(),
            trait_key: "mixpanel_cohort_7".into(),
            member: true,
            destinations: vec![MembershipDelivery {
                name: "production".into(),
                written: None,
                state: DeliveryState::Pending,
                error: Some("503".into()),
            }],
        }])
    }

    async fn dead_letters(&self, _: usize) -> Result<Vec<DeadLetter>, StoreError> {
        self.works()?;
        Ok(vec![DeadLetter {
            destination: "production".into(),
            identifier: "usr_1".into(),
            source: "default".into(),
            cohort_id: "7".into(),
            trait_key: "mixpanel_cohort_7".into(),
            member: true,
            error: "400".into(),
            since: 0,
        }])
    }

    async fn retry_dead_letters(
        &self,
        filter: DeadLetterFilter,
        _: Millis,
    ) -> Result<u64, StoreError> {
        self.works()?;
        self.ordered(format!(
            "retry {:?} {:?}",
            filter.destination, filter.identifier
        ));
        Ok(4)
    }

    async fn drop_dead_letters(
        &self,
        filter: DeadLetterFilter,
        _: Millis,
    ) -> Result<u64, StoreError> {
        self.works()?;
        self.ordered(format!(
            "drop {:?} {:?}",
            filter.destination, filter.identifier
        ));
        Ok(5)
    }

    fn note_refused(&self, source: &SourceName, page: &Page, _: Millis) {
        let refusal = (source.clone(), page.clone());
        self.refused.lock().unwrap().push(refusal);
    }

    async fn decide_held(
        &self,
        source: &SourceName,
        cohort_id: &str,
        decision: HoldDecision,
        _: Millis,
    ) -> Result<Option<u64>, StoreError> {
        self.works()?;
        self.ordered(format!("{decision:?} {source} {cohort_id}"));
        Ok((cohort_id == "7").then_some(1_204))
    }

    async fn retire(
        &self,
        source: &SourceName,
        cohort_id: &str,
        _: Millis,
    ) -> Result<Option<u64>, StoreError> {
        self.works()?;
        self.ordered(format!("retire {source} {cohort_id}"));
        Ok((cohort_id == "7").then_some(8))
    }

    async fn pause_cohort(
        &self,
        source: &SourceName,
        cohort_id: &str,
        pauses: bool,
        _: Millis,
    ) -> Result<Option<u64>, StoreError> {
        self.works()?;
        let what = if pauses { "pause" } else { "resume" };
        self.ordered(format!("{what} {source} {cohort_id}"));
        Ok((cohort_id == "7").then_some(9))
    }

    async fn pause_destination(
        &self,
        destination: &DestinationName,
        pauses: bool,
        _: Millis,
    ) -> Result<Option<u64>, StoreError> {
        self.works()?;
        let what = if pauses { "pause" } else { "resume" };
        self.ordered(format!("{what} {destination}"));
        Ok((&*destination.0 == "production").then_some(10))
    }

    async fn paused_destinations(&self) -> Result<Vec<DestinationName>, StoreError> {
        self.works()?;
        Ok(Vec::new())
    }

    async fn unwritten(&self, _: Month) -> Result<Unwritten, StoreError> {
        self.works()?;
        self.ordered("plan".into());
        let load = Load {
            identities: 4,
            traits: 5,
        };
        let cohorts = self.cohorts.lock().unwrap().clone().into_iter();
        let cohorts = cohorts.map(|cohort| UnwrittenOf {
            source: cohort.source,
            cohort_id: cohort.cohort_id,
            name: cohort.name,
            paused: cohort.paused,
            load,
        });
        Ok(Unwritten {
            waiting_pages: 0,
            is_under_way: false,
            destinations: vec![UnwrittenThere {
                name: "production".into(),
                load,
                calls_made: 0,
                cohorts: cohorts.collect(),
            }],
        })
    }

    async fn follow_pauses(&self, _: usize) -> Result<bool, StoreError> {
        unreachable!("the handlers move nothing")
    }

    async fn forget(&self, identifier: &str, traits: bool, _: Millis) -> Result<u64, StoreError> {
        self.works()?;
        let traits = if traits { " and its traits" } else { "" };
        self.ordered(format!("forget {identifier}{traits}"));
        Ok(if identifier == "usr_1" { 2 } else { 0 })
    }

    fn ledger_id(&self) -> &str {
        "stub"
    }

    fn log_hash_key(&self) -> &[u8; 32] {
        &[0; 32]
    }

    async fn ready(&self) -> Result<(), StoreError> {
        self.works()
    }
}
