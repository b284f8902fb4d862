//! Who folds and delivers, where several processes share a ledger.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// The time in which this process folds and delivers, alone of all that share the ledger: see
/// [`Store::lead`](super::Store::lead).
#[derive(Clone, Debug)]
pub struct Term {
    ended: CancellationToken,
    news: watch::Receiver<()>,
    /// `None`: for ever.
    lasts_until: Arc<Mutex<Option<Instant>>>,
}

impl Term {
    /// A term, and where it is told that another process changed something.
    pub fn new(ended: CancellationToken) -> (Self, watch::Sender<()>) {
        let (tell, news) = watch::channel(());
        let term = Term {
            ended,
            news,
            lasts_until: Arc::default(),
        };
        (term, tell)
    }

    /// One that ends with the process.
    pub fn for_ever() -> Self {
        Term::new(CancellationToken::new()).0
    }

    /// Cancelled when it is over: nothing that is folded or settled after that is taken.
    pub fn ended(&self) -> &CancellationToken {
        &self.ended
    }

    /// Whether it is over: cancelled, or not renewed in time. Who was stopped for a while may be the
    /// first to know.
    pub fn is_over(&self) -> bool {
        let lasts_until = self.lasts_until.lock();
        let lasts_until = *lasts_until.unwrap_or_else(PoisonError::into_inner);
        self.ended.is_cancelled() || lasts_until.is_some_and(|until| Instant::now() >= until)
    }

    /// Renews it.
    pub(super) fn lasts_until(&self, until: Instant) {
        let lasts_until = self.lasts_until.lock();
        *lasts_until.unwrap_or_else(PoisonError::into_inner) = Some(until);
    }

    /// Says when another process may have changed something: a page came, an operator ordered. Where
    /// the ledger is not shared, never.
    pub fn news(&self) -> watch::Receiver<()> {
        self.news.clone()
    }
}
