//! One replica's view of a shared ledger.

use std::sync::Arc;
use std::sync::atomic::Ordering;

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
use tokio::sync::RwLockReadGuard;

use super::Shared;

/// See [`Shared::replica`].
pub struct Replica {
    pub(super) number: usize,
    pub(super) shared: Arc<Shared>,
}

type Ledger<'a> = RwLockReadGuard<'a, Arc<LedgerStore>>;

impl Replica {
    /// For what every replica may do.
    async fn any(&self) -> Result<Ledger<'_>, StoreError> {
        if self.shared.is_away.load(Ordering::SeqCst) {
            return Err(StoreError::Away("connection refused".to_owned()));
        }
        let ledger = self.shared.ledger.read().await;
        Ok(RwLockReadGuard::map(ledger, |ledger| {
            ledger.as_ref().expect("it is open")
        }))
    }

    /// For what only the leader may do.
    async fn leading(&self) -> Result<Ledger<'_>, StoreError> {
        let ledger = self.any().await?;
        if self.shared.is_led_by(self.number) {
            return Ok(ledger);
        }
        self.shared.not_leading.fetch_add(1, Ordering::SeqCst);
        Err(StoreError::NotLeading)
    }

    /// After something that the leader is to hear of.
    fn told<T>(&self, done: Result<T, StoreError>) -> Result<T, StoreError> {
        if done.is_ok()
            && !self.shared.is_led_by(self.number)
            && let Some(news) = &*self.shared.news.lock().unwrap()
        {
            news.send_replace(());
        }
        done
    }
}

#[async_trait]
impl Store for Replica {
    async fn lead(&self) -> Result<Term, StoreError> {
        drop(self.any().await?);
        let mut leader = self.shared.leader.subscribe();
        let mine = |leader: &Option<(usize, _)>| matches!(leader, Some((number, _)) if *number == self.number);
        let ended = match &*leader.wait_for(mine).await.unwrap() {
            Some((_, ended)) => ended.clone(),
            None => unreachable!("it is mine"),
        };
        let (term, news) = Term::new(ended);
        *self.shared.news.lock().unwrap() = Some(news);
        Ok(term)
    }

    fn is_shared(&self) -> bool {
        true
    }

    async fn append(&self, source: &SourceName, page: Page, now: Millis) -> Result<(), StoreError> {
        let appended = self.any().await?.append(source, page, now).await;
        self.told(appended)
    }

    async fn has_sent_property(
        &self,
        source: &SourceName,
        property: &str,
    ) -> Result<bool, StoreError> {
        let ledger = self.any().await?;
        ledger.has_sent_property(source, property).await
    }

    async fn note_property(&self, source: &SourceName, property: &str) -> Result<(), StoreError> {
        let ledger = self.any().await?;
        ledger.note_property(source, property).await
    }

    async fn assemble(
        &self,
        pages: usize,
        people: usize,
        now: Millis,
    ) -> Result<Assembled, StoreError> {
        let ledger = self.leading().await?;
        assert!(!self.shared.fold_panics.load(Ordering::SeqCst), "broken");
        ledger.assemble(pages, people, now).await
    }

    async fn waiting_pages(&self) -> Result<u64, StoreError> {
        self.any().await?.waiting_pages().await
    }

    async fn page_people(
        &self,
        pages: Vec<(SessionRef, u32)>,
    ) -> Result<Vec<PagePeople>, StoreError> {
        self.any().await?.page_people(pages).await
    }

    async fn rename_people(
        &self,
        session: SessionRef,
        page: u32,
        now: Millis,
    ) -> Result<(), StoreError> {
        let ledger = self.leading().await?;
        ledger.rename_people(session, page, now).await
    }

    async fn place_people(
        &self,
        cohort: CohortRef,
        people: Vec<(PersonHash, String)>,
    ) -> Result<(), StoreError> {
        self.leading().await?.place_people(cohort, people).await
    }

    async fn count_removals(&self, chunk: Chunk) -> Result<Counted, StoreError> {
        self.any().await?.count_removals(chunk).await
    }

    async fn judge(
        &self,
        session: SessionRef,
        layers: Vec<SessionRef>,
        judgement: Judgement,
    ) -> Result<(), StoreError> {
        let ledger = self.leading().await?;
        ledger.judge(session, layers, judgement).await
    }

    async fn apply(&self, chunk: Chunk, now: Millis) -> Result<Applied, StoreError> {
        self.leading().await?.apply(chunk, now).await
    }

    async fn finish(
        &self,
        session: SessionRef,
        recognised: Recognised,
        now: Millis,
    ) -> Result<(), StoreError> {
        let ledger = self.leading().await?;
        ledger.finish(session, recognised, now).await
    }

    async fn adopt_keys(&self, now: Millis) -> Result<(), StoreError> {
        let ledger = self.leading().await?;
        self.shared.adopted.fetch_add(1, Ordering::SeqCst);
        if self.shared.key_is_taken.load(Ordering::SeqCst) {
            return Err(StoreError::KeyTaken {
                key: "power_users".to_owned(),
                cohort: "one".to_owned(),
                holder: "another".to_owned(),
            });
        }
        ledger.adopt_keys(now).await
    }

    async fn exchange(
        &self,
        destination: &DestinationName,
        settle: Vec<Settlement>,
        after: Option<Arc<str>>,
        limit: usize,
        now: Millis,
    ) -> Result<Claims, StoreError> {
        let ledger = self.leading().await.inspect_err(|_| {
            self.shared.late_exchanges.fetch_add(1, Ordering::SeqCst);
        })?;
        let unsent = settle
            .iter()
            .filter(|settled| settled.outcome == Outcome::Unsent);
        let unsent = unsent.count();
        let claims = ledger
            .exchange(destination, settle, after, limit, now)
            .await;
        self.shared.given_back.fetch_add(unsent, Ordering::SeqCst);
        claims
    }

    async fn follow_routes(&self, limit: usize, now: Millis) -> Result<bool, StoreError> {
        self.leading().await?.follow_routes(limit, now).await
    }

    async fn count_calls(
        &self,
        destination: &DestinationName,
        order: CallOrder,
        now: Millis,
    ) -> Result<CallsCounted, StoreError> {
        let ledger = self.leading().await?;
        ledger.count_calls(destination, order, now).await
    }

    async fn unproven_through(&self, destination: &DestinationName) -> Result<i64, StoreError> {
        self.leading().await?.unproven_through(destination).await
    }

    async fn proved(&self, destination: &DestinationName, through: i64) -> Result<(), StoreError> {
        self.leading().await?.proved(destination, through).await
    }

    async fn doubt(&self, destination: &DestinationName, now: Millis) -> Result<u64, StoreError> {
        self.leading().await?.doubt(destination, now).await
    }

    async fn order_resync(
        &self,
        order: ResyncOrder,
        now: Millis,
    ) -> Result<Option<u64>, StoreError> {
        let ordered = self.any().await?.order_resync(order, now).await;
        self.told(ordered)
    }

    async fn cancel_resync(&self, scope: ResyncScope) -> Result<Option<u64>, StoreError> {
        let cancelled = self.any().await?.cancel_resync(scope).await;
        self.told(cancelled)
    }

    async fn resync_some(
        &self,
        destination: &DestinationName,
        room: ResyncRoom,
        now: Millis,
    ) -> Result<ResyncStep, StoreError> {
        let ledger = self.leading().await?;
        ledger.resync_some(destination, room, now).await
    }

    async fn resyncs(&self) -> Result<Vec<ResyncView>, StoreError> {
        self.any().await?.resyncs().await
    }

    async fn canary_memory(
        &self,
        destination: &DestinationName,
    ) -> Result<CanaryMemory, StoreError> {
        self.any().await?.canary_memory(destination).await
    }

    async fn remember_canary(
        &self,
        destination: &DestinationName,
        memory: CanaryMemory,
    ) -> Result<(), StoreError> {
        let ledger = self.leading().await?;
        ledger.remember_canary(destination, memory).await
    }

    async fn cohorts(&self) -> Result<Vec<CohortView>, StoreError> {
        self.any().await?.cohorts().await
    }

    async fn member(&self, identifier: &str) -> Result<Vec<MembershipView>, StoreError> {
        self.any().await?.member(identifier).await
    }

    async fn dead_letters(&self, limit: usize) -> Result<Vec<DeadLetter>, StoreError> {
        self.any().await?.dead_letters(limit).await
    }

    async fn retry_dead_letters(
        &self,
        filter: DeadLetterFilter,
        now: Millis,
    ) -> Result<u64, StoreError> {
        let retried = self.any().await?.retry_dead_letters(filter, now).await;
        self.told(retried)
    }

    async fn drop_dead_letters(
        &self,
        filter: DeadLetterFilter,
        now: Millis,
    ) -> Result<u64, StoreError> {
        let dropped = self.any().await?.drop_dead_letters(filter, now).await;
        self.told(dropped)
    }

    fn note_refused(&self, source: &SourceName, page: &Page, now: Millis) {
        if let Ok(ledger) = self.shared.ledger.try_read()
            && let Some(ledger) = &*ledger
        {
            ledger.note_refused(source, page, now);
        }
    }

    async fn decide_held(
        &self,
        source: &SourceName,
        cohort_id: &str,
        decision: HoldDecision,
        now: Millis,
    ) -> Result<Option<u64>, StoreError> {
        let ledger = self.any().await?;
        self.told(ledger.decide_held(source, cohort_id, decision, now).await)
    }

    async fn retire(
        &self,
        source: &SourceName,
        cohort_id: &str,
        now: Millis,
    ) -> Result<Option<u64>, StoreError> {
        let retiring = self.any().await?.retire(source, cohort_id, now).await;
        self.told(retiring)
    }

    async fn pause_cohort(
        &self,
        source: &SourceName,
        cohort_id: &str,
        pauses: bool,
        now: Millis,
    ) -> Result<Option<u64>, StoreError> {
        let ledger = self.any().await?;
        self.told(ledger.pause_cohort(source, cohort_id, pauses, now).await)
    }

    async fn pause_destination(
        &self,
        destination: &DestinationName,
        pauses: bool,
        now: Millis,
    ) -> Result<Option<u64>, StoreError> {
        let ledger = self.any().await?;
        self.told(ledger.pause_destination(destination, pauses, now).await)
    }

    async fn paused_destinations(&self) -> Result<Vec<DestinationName>, StoreError> {
        self.any().await?.paused_destinations().await
    }

    async fn unwritten(&self, month: Month) -> Result<Unwritten, StoreError> {
        self.any().await?.unwritten(month).await
    }

    async fn follow_pauses(&self, limit: usize) -> Result<bool, StoreError> {
        self.leading().await?.follow_pauses(limit).await
    }

    async fn forget(&self, identifier: &str, traits: bool, now: Millis) -> Result<u64, StoreError> {
        let ledger = self.any().await?;
        self.told(ledger.forget(identifier, traits, now).await)
    }

    fn ledger_id(&self) -> &str {
        &self.shared.id
    }

    fn log_hash_key(&self) -> &[u8; 32] {
        &self.shared.hash_key
    }

    async fn ready(&self) -> Result<(), StoreError> {
        self.any().await?.ready().await
    }

    /// The ledger is the others' too; a term of this replica is over.
    async fn close(&self) {
        if self.shared.is_led_by(self.number) {
            self.shared.end().await;
        }
    }
}
