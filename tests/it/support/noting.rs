//! A store that notes which of its methods are called, and does what another store does.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use cohort_bridge::calls::{CallOrder, CallsCounted};
use cohort_bridge::canary::CanaryMemory;
use cohort_bridge::clock::Millis;
use cohort_bridge::cohort::{DestinationName, SourceName};
use cohort_bridge::mixpanel::Page;
use cohort_bridge::month::Month;
use cohort_bridge::plan::Unwritten;
use cohort_bridge::roster::PersonHash;
use cohort_bridge::store::*;

/// The names of methods that were called.
#[derive(Clone, Debug, Default)]
pub struct Noted(Arc<Mutex<BTreeSet<&'static str>>>);

impl Noted {
    /// All of them.
    pub fn all(&self) -> BTreeSet<&'static str> {
        let noted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        noted.clone()
    }
}

/// See the module.
pub struct Noting {
    store: Arc<dyn Store>,
    noted: Noted,
}

impl Noting {
    pub fn of(store: Arc<dyn Store>, noted: Noted) -> Self {
        Noting { store, noted }
    }

    /// Notes a call, and gives whom it is passed on to.
    fn called(&self, method: &'static str) -> &dyn Store {
        let noted = self.noted.0.lock();
        noted.unwrap_or_else(PoisonError::into_inner).insert(method);
        &*self.store
    }
}

#[async_trait]
impl Store for Noting {
    async fn lead(&self) -> Result<Term, StoreError> {
        self.called("lead").lead().await
    }

    fn is_shared(&self) -> bool {
        self.called("is_shared").is_shared()
    }

    async fn append(&self, source: &SourceName, page: Page, now: Millis) -> Result<(), StoreError> {
        self.called("append").append(source, page, now).await
    }

    async fn has_sent_property(
        &self,
        source: &SourceName,
        property: &str,
    ) -> Result<bool, StoreError> {
        self.called("has_sent_property")
            .has_sent_property(source, property)
            .await
    }

    async fn note_property(&self, source: &SourceName, property: &str) -> Result<(), StoreError> {
        self.called("note_property")
            .note_property(source, property)
            .await
    }

    async fn assemble(
        &self,
        pages: usize,
        people: usize,
        now: Millis,
    ) -> Result<Assembled, StoreError> {
        self.called("assemble").assemble(pages, people, now).await
    }

    async fn waiting_pages(&self) -> Result<u64, StoreError> {
        self.called("waiting_pages").waiting_pages().await
    }

    async fn page_people(
        &self,
        pages: Vec<(SessionRef, u32)>,
    ) -> Result<Vec<PagePeople>, StoreError> {
        self.called("page_people").page_people(pages).await
    }

    async fn rename_people(
        &self,
        session: SessionRef,
        page: u32,
        now: Millis,
    ) -> Result<(), StoreError> {
        self.called("rename_people")
            .rename_people(session, page, now)
            .await
    }

    async fn place_people(
        &self,
        cohort: CohortRef,
        people: Vec<(PersonHash, String)>,
    ) -> Result<(), StoreError> {
        self.called("place_people")
            .place_people(cohort, people)
            .await
    }

    async fn count_removals(&self, chunk: Chunk) -> Result<Counted, StoreError> {
        self.called("count_removals").count_removals(chunk).await
    }

    async fn judge(
        &self,
        session: SessionRef,
        layers: Vec<SessionRef>,
        judgement: Judgement,
    ) -> Result<(), StoreError> {
        self.called("judge").judge(session, layers, judgement).await
    }

    async fn apply(&self, chunk: Chunk, now: Millis) -> Result<Applied, StoreError> {
        self.called("apply").apply(chunk, now).await
    }

    async fn finish(
        &self,
        session: SessionRef,
        recognised: Recognised,
        now: Millis,
    ) -> Result<(), StoreError> {
        self.called("finish").finish(session, recognised, now).await
    }

    async fn adopt_keys(&self, now: Millis) -> Result<(), StoreError> {
        self.called("adopt_keys").adopt_keys(now).await
    }

    async fn exchange(
        &self,
        destination: &DestinationName,
        settle: Vec<Settlement>,
        after: Option<Arc<str>>,
        limit: usize,
        now: Millis,
    ) -> Result<Claims, StoreError> {
        self.called("exchange")
            .exchange(destination, settle, after, limit, now)
            .await
    }

    async fn follow_routes(&self, limit: usize, now: Millis) -> Result<bool, StoreError> {
        self.called("follow_routes").follow_routes(limit, now).await
    }

    async fn count_calls(
        &self,
        destination: &DestinationName,
        order: CallOrder,
        now: Millis,
    ) -> Result<CallsCounted, StoreError> {
        self.called("count_calls")
            .count_calls(destination, order, now)
            .await
    }

    async fn unproven_through(&self, destination: &DestinationName) -> Result<i64, StoreError> {
        self.called("unproven_through")
            .unproven_through(destination)
            .await
    }

    async fn proved(&self, destination: &DestinationName, through: i64) -> Result<(), StoreError> {
        self.called("proved").proved(destination, through).await
    }

    async fn doubt(&self, destination: &DestinationName, now: Millis) -> Result<u64, StoreError> {
        self.called("doubt").doubt(destination, now).await
    }

    async fn order_resync(
        &self,
        order: ResyncOrder,
        now: Millis,
    ) -> Result<Option<u64>, StoreError> {
        self.called("order_resync").order_resync(order, now).await
    }

    async fn cancel_resync(&self, scope: ResyncScope) -> Result<Option<u64>, StoreError> {
        self.called("cancel_resync").cancel_resync(scope).await
    }

    async fn resync_some(
        &self,
        destination: &DestinationName,
        room: ResyncRoom,
        now: Millis,
    ) -> Result<ResyncStep, StoreError> {
        self.called("resync_some")
            .resync_some(destination, room, now)
            .await
    }

    async fn resyncs(&self) -> Result<Vec<ResyncView>, StoreError> {
        self.called("resyncs").resyncs().await
    }

    async fn canary_memory(
        &self,
        destination: &DestinationName,
    ) -> Result<CanaryMemory, StoreError> {
        self.called("canary_memory")
            .canary_memory(destination)
            .await
    }

    async fn remember_canary(
        &self,
        destination: &DestinationName,
        memory: CanaryMemory,
    ) -> Result<(), StoreError> {
        self.called("remember_canary")
            .remember_canary(destination, memory)
            .await
    }

    async fn cohorts(&self) -> Result<Vec<CohortView>, StoreError> {
        self.called("cohorts").cohorts().await
    }

    async fn member(&self, identifier: &str) -> Result<Vec<MembershipView>, StoreError> {
        self.called("member").member(identifier).await
    }

    async fn dead_letters(&self, limit: usize) -> Result<Vec<DeadLetter>, StoreError> {
        self.called("dead_letters").dead_letters(limit).await
    }

    async fn retry_dead_letters(
        &self,
        filter: DeadLetterFilter,
        now: Millis,
    ) -> Result<u64, StoreError> {
        self.called("retry_dead_letters")
            .retry_dead_letters(filter, now)
            .await
    }

    async fn drop_dead_letters(
        &self,
        filter: DeadLetterFilter,
        now: Millis,
    ) -> Result<u64, StoreError> {
        self.called("drop_dead_letters")
            .drop_dead_letters(filter, now)
            .await
    }

    fn note_refused(&self, source: &SourceName, page: &Page, now: Millis) {
        self.called("note_refused").note_refused(source, page, now)
    }

    async fn decide_held(
        &self,
        source: &SourceName,
        cohort_id: &str,
        decision: HoldDecision,
        now: Millis,
    ) -> Result<Option<u64>, StoreError> {
        self.called("decide_held")
            .decide_held(source, cohort_id, decision, now)
            .await
    }

    async fn retire(
        &self,
        source: &SourceName,
        cohort_id: &str,
        now: Millis,
    ) -> Result<Option<u64>, StoreError> {
        self.called("retire").retire(source, cohort_id, now).await
    }

    async fn pause_cohort(
        &self,
        source: &SourceName,
        cohort_id: &str,
        pauses: bool,
        now: Millis,
    ) -> Result<Option<u64>, StoreError> {
        self.called("pause_cohort")
            .pause_cohort(source, cohort_id, pauses, now)
            .await
    }

    async fn pause_destination(
        &self,
        destination: &DestinationName,
        pauses: bool,
        now: Millis,
    ) -> Result<Option<u64>, StoreError> {
        self.called("pause_destination")
            .pause_destination(destination, pauses, now)
            .await
    }

    async fn paused_destinations(&self) -> Result<Vec<DestinationName>, StoreError> {
        self.called("paused_destinations")
            .paused_destinations()
            .await
    }

    async fn unwritten(&self, month: Month) -> Result<Unwritten, StoreError> {
        self.called("unwritten").unwritten(month).await
    }

    async fn follow_pauses(&self, limit: usize) -> Result<bool, StoreError> {
        self.called("follow_pauses").follow_pauses(limit).await
    }

    async fn forget(&self, identifier: &str, traits: bool, now: Millis) -> Result<u64, StoreError> {
        self.called("forget").forget(identifier, traits, now).await
    }

    fn ledger_id(&self) -> &str {
        self.called("ledger_id").ledger_id()
    }

    fn log_hash_key(&self) -> &[u8; 32] {
        self.called("log_hash_key").log_hash_key()
    }

    async fn ready(&self) -> Result<(), StoreError> {
        self.called("ready").ready().await
    }

    async fn close(&self) {
        self.called("close").close().await
    }
}
