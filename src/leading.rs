//! Folding and delivering, for as long as this process is the one that may.
//!
//! | state | what goes on here, beside the listeners | what ends it |
//! |---|---|---|
//! | standby | nothing | a [`Term`], or the stop |
//! | preparing, where others share the ledger | cohorts get the keys of the settings, pauses are read | it is done |
//! | at work | fold, deliveries, plans | the end of the term, or the stop |
//!
//! At a stop, the calls under way are settled and the claims are given back. Where the term ends, the
//! ledger takes neither: the calls under way are waited for, so that the next term has each of them
//! end before it begins, and all that was held in memory is dropped. Whoever leads then finds in the
//! ledger what a kill would have left there.

use std::sync::Arc;

use anyhow::anyhow;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::clock::{Clock, Millis};
use crate::dispatch::Delivery;
use crate::fold::Fold;
use crate::planner::Planner;
use crate::sharing::Sharing;
use crate::status::{DestinationHealth, Health};
use crate::store::{Store, StoreError, Term};

/// How long to wait after the store failed.
const AFTER_FAILURE: Millis = 1_000;

/// What this process does while it leads.
pub struct Leader {
    /// The ledger.
    pub store: Arc<dyn Store>,
    /// For every wait.
    pub clock: Arc<dyn Clock>,
    /// Where it is told whether it leads.
    pub health: Arc<Health>,
    /// Every destination of the settings.
    pub destinations: Vec<Arc<DestinationHealth>>,
    /// Delivery to each.
    pub deliveries: Vec<Delivery>,
    /// Tells what dry runs would do.
    pub planner: Arc<Planner>,
    /// What other replicas bring about; `None` where there are none.
    pub sharing: Option<Arc<Sharing>>,
    /// Where it is told that a loop ended before it was to: at once, whatever calls are under way.
    pub failed: Option<oneshot::Sender<anyhow::Error>>,
}

impl Leader {
    /// Folds and delivers in every term that it is given, until `stop`.
    ///
    /// # Errors
    /// Where the settings give a cohort the key of another.
    pub async fn run(mut self, stop: CancellationToken) -> anyhow::Result<()> {
        while self.failed.is_some()
            && let Some(term) = self.next_term(&stop).await
        {
            let until = term.ended().child_token();
            let leading = self.lead(&term, &until);
            tokio::pin!(leading);
            tokio::select! {
                led = &mut leading => {
                    led?;
                    continue;
                }
                () = stop.cancelled() => until.cancel(),
            }
            leading.await?;
        }
        // Who is told of a failure stops it.
        stop.cancelled().await;
        Ok(())
    }

    /// Waits until it may lead; `None` where it is stopped.
    async fn next_term(&self, stop: &CancellationToken) -> Option<Term> {
        let mut told = None;
        loop {
            match stop.run_until_cancelled(self.store.lead()).await? {
                Ok(term) => return Some(term),
                Err(error) => {
                    // It may be away for hours.
                    let error = error.to_string();
                    if told.as_ref() != Some(&error) {
                        tracing::error!(%error, "it cannot be told who folds and delivers: it is asked every second");
                        told = Some(error);
                    }
                }
            }
            let again = self.clock.now() + AFTER_FAILURE;
            stop.run_until_cancelled(self.clock.sleep_until(again))
                .await?;
        }
    }

    /// A whole term, or as much of it as there is before `until`.
    async fn lead(&mut self, term: &Term, until: &CancellationToken) -> anyhow::Result<()> {
        if self.sharing.is_some() {
            self.health.leads_until(term.ended().clone());
            tracing::info!("this replica folds and delivers from now on");
        }
        if self.prepare(until).await? {
            self.work(term, until).await;
        }
        if term.ended().is_cancelled() {
            for destination in &self.destinations {
                destination.stand_by();
            }
            tracing::info!("on standby: another replica may fold and deliver");
        }
        Ok(())
    }

    /// What comes before everything else of a term where others share the ledger; whether the term
    /// outlives it.
    async fn prepare(&self, until: &CancellationToken) -> Result<bool, StoreError> {
        let Some(sharing) = &self.sharing else {
            return Ok(true);
        };
        loop {
            let preparing = async {
                self.store.adopt_keys(self.clock.now()).await?;
                // Before the first call: another replica may have paused a destination.
                sharing.read_pauses().await
            };
            match until.run_until_cancelled(preparing).await {
                None => return Ok(false),
                Some(Ok(())) => return Ok(true),
                Some(Err(error @ StoreError::KeyTaken { .. })) => return Err(error),
                Some(Err(_)) if until.is_cancelled() => return Ok(false),
                Some(Err(error)) => {
                    tracing::error!(%error, "fold and delivery wait: the ledger cannot be written");
                }
            }
            let again = self.clock.now() + AFTER_FAILURE;
            let slept = until.run_until_cancelled(self.clock.sleep_until(again));
            if slept.await.is_none() {
                return Ok(false);
            }
        }
    }

    /// Folds and delivers until `until`.
    async fn work(&mut self, term: &Term, until: &CancellationToken) {
        let mut loops = JoinSet::new();
        let fold = Fold::new(Arc::clone(&self.store), Arc::clone(&self.clock));
        loops.spawn(fold.run(Arc::clone(&self.health), until.clone()));
        let planner = Arc::clone(&self.planner);
        loops.spawn(planner.tell_at_rest(Arc::clone(&self.health), until.clone()));
        if let Some(sharing) = &self.sharing {
            loops.spawn(Arc::clone(sharing).heed(term.news(), until.clone()));
            loops.spawn(Arc::clone(sharing).recall(term.news(), until.clone()));
        }
        let mut deliveries = JoinSet::new();
        for delivery in self.deliveries.drain(..) {
            let health = Arc::clone(&self.health);
            deliveries.spawn(delivery.run(health, term.clone(), until.clone()));
        }

        // They run until they are stopped. One that panicked would leave pages unfolded or traits
        // undelivered, silently; a restart is safe at any moment.
        let failed = tokio::select! {
            biased;
            () = until.cancelled() => None,
            Some(ended) = loops.join_next() => early(until, &ended),
            Some(ended) = deliveries.join_next() => {
                let early = early(until, &ended.as_ref().map(drop));
                self.deliveries.extend(ended);
                early
            }
        };
        if term.ended().is_cancelled() {
            tracing::warn!(
                "this replica's term is over: calls under way end, and are made again by whoever leads"
            );
        }
        self.tell_failed(failed);
        until.cancel();
        while let Some(ended) = deliveries.join_next().await {
            self.tell_failed(early(until, &ended.as_ref().map(drop)));
            self.deliveries.extend(ended);
        }
        while loops.join_next().await.is_some() {}
    }

    fn tell_failed(&mut self, failed: Option<anyhow::Error>) {
        if let Some(error) = failed
            && let Some(failed) = self.failed.take()
        {
            // Nobody listens any more where it is stopped anyway.
            let _ = failed.send(error);
        }
    }
}

/// What is wrong where a loop ended; nothing where all of them are to end by now.
fn early<E: std::fmt::Debug>(
    until: &CancellationToken,
    ended: &Result<(), E>,
) -> Option<anyhow::Error> {
    match ended {
        Ok(()) if until.is_cancelled() => None,
        ended => Some(anyhow!("a loop of the service ended: {ended:?}")),
    }
}
