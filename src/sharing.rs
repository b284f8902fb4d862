//! What replicas that share a ledger have to learn of each other. One of them folds and delivers;
//! each takes in pages and operators' orders.

use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::clock::{Clock, Millis};
use crate::status::{DestinationHealth, Health};
use crate::store::{Store, StoreError};

/// How often it is counted what others append and fold, in milliseconds.
const LOOK_EVERY: Millis = 2_000;

/// How often claims are given back at most, in milliseconds: the news do not say whether somebody
/// ordered something or only a page came, and each time costs what a claim costs.
const RECALL_EVERY: Millis = 5_000;

/// Learns it.
pub struct Sharing {
    /// Where it stands.
    pub store: Arc<dyn Store>,
    /// For every wait.
    pub clock: Arc<dyn Clock>,
    /// Who is told of pages.
    pub health: Arc<Health>,
    /// Who is told of orders.
    pub destinations: Vec<Arc<DestinationHealth>>,
}

impl Sharing {
    /// Keeps the count of waiting pages and the pauses, whoever leads, until `stop`.
    pub async fn follow(self: Arc<Self>, stop: CancellationToken) {
        while let Some(looked) = stop.run_until_cancelled(self.look()).await {
            if let Err(error) = looked {
                // Who is not ready says so, and why.
                tracing::debug!(%error, "the ledger cannot be read");
            }
        }
    }

    async fn look(&self) -> Result<(), StoreError> {
        self.clock.sleep_until(self.clock.now() + LOOK_EVERY).await;
        let counted = self.health.pages_counted();
        let waiting = self.store.waiting_pages().await?;
        self.health.pages_wait(waiting, counted);
        self.read_pauses().await
    }

    /// Takes over which destinations are paused.
    ///
    /// # Errors
    /// Where the ledger cannot be read.
    pub async fn read_pauses(&self) -> Result<(), StoreError> {
        // Nobody's order comes between what is read and what is told.
        let mut alone = Vec::new();
        for destination in &self.destinations {
            alone.push(destination.pausing().lock().await);
        }
        let paused = self.store.paused_destinations().await?;
        for destination in &self.destinations {
            destination.set_paused(paused.contains(destination.name()));
        }
        Ok(())
    }

    /// Has whoever folds and delivers here look for what other replicas took in, until `stop`.
    pub async fn heed(self: Arc<Self>, mut news: watch::Receiver<()>, stop: CancellationToken) {
        while next(&mut news, &stop).await.is_some() {
            self.health.order_given();
            self.health.ledger_changed();
            for destination in &self.destinations {
                destination.resync_ordered();
            }
            let read = stop.run_until_cancelled(self.read_pauses()).await;
            if let Some(Err(error)) = read {
                tracing::debug!(%error, "pauses cannot be read: they are soon again");
            }
        }
    }

    /// Has what was claimed looked at again, since it may not be wanted any more, until `stop`.
    pub async fn recall(self: Arc<Self>, mut news: watch::Receiver<()>, stop: CancellationToken) {
        while next(&mut news, &stop).await.is_some() {
            for destination in &self.destinations {
                destination.operator_acted();
            }
            let again = self.clock.now() + RECALL_EVERY;
            stop.run_until_cancelled(self.clock.sleep_until(again))
                .await;
        }
    }
}

/// Waits for news; `None` where it is stopped.
async fn next(news: &mut watch::Receiver<()>, stop: &CancellationToken) -> Option<()> {
    let changed = async {
        if news.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    stop.run_until_cancelled(changed).await
}
