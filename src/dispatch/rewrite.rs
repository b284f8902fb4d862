//! Making everything pending again that the destination should hold, a piece at a time.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::{AFTER_FAILURE, Dispatch};

/// People that one transaction looks at: a few milliseconds.
const PEOPLE_AT_ONCE: usize = 2_048;

impl Dispatch {
    /// Carries out what [`Store::order_rewrite`](crate::store::Store::order_rewrite) ordered, in this
    /// process or an earlier one.
    pub(super) async fn write_everything_again(self: Arc<Self>, stop: CancellationToken) {
        let destination = &self.destination.name;
        while !stop.is_cancelled() {
            let now = self.clock.now();
            let rewritten = self
                .store
                .rewrite_some(destination, PEOPLE_AT_ONCE, now)
                .await;
            match rewritten {
                Ok(true) => self.asserted_again.notify_one(),
                Ok(false) => {
                    tokio::select! {
                        () = self.rewrite_ordered.notified() => {}
                        () = stop.cancelled() => {}
                    }
                }
                Err(error) => {
                    tracing::error!(%destination, %error, "writing everything again waits: the ledger failed");
                    tokio::select! {
                        () = self.clock.sleep_until(now + AFTER_FAILURE) => {}
                        () = stop.cancelled() => {}
                    }
                }
            }
        }
    }
}
