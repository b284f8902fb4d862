//! Who folds and delivers, where several processes share a ledger.

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// The time in which this process folds and delivers, alone of all that share the ledger: see
/// [`Store::lead`](super::Store::lead).
#[derive(Clone, Debug)]
pub struct Term {
    ended: CancellationToken,
    news: watch::Receiver<()>,
}

impl Term {
    /// A term, and where it is told that another process changed something.
    pub fn new(ended: CancellationToken) -> (Self, watch::Sender<()>) {
        let (tell, news) = watch::channel(());
        (Term { ended, news }, tell)
    }

    /// Cancelled when it is over: nothing that is folded or settled after that is taken.
    pub fn ended(&self) -> &CancellationToken {
        &self.ended
    }

    /// Says when another process may have changed something: a page came, an operator ordered. Where
    /// the ledger is not shared, never.
    pub fn news(&self) -> watch::Receiver<()> {
        self.news.clone()
    }
}
