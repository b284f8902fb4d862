//! The canary: proves now and then that a written trait stays.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio_util::sync::CancellationToken;

use super::Dispatch;
use crate::clock::{Millis, millis};
use crate::flagsmith::Storage;
use crate::gate::Signal;

/// How soon the canary is asked again where it could not be answered, or found nothing stored.
const CANARY_AGAIN: Millis = 15_000;

impl Dispatch {
    /// Proves now and then that a written trait stays.
    pub(super) async fn send_canaries(self: Arc<Self>, stop: CancellationToken) {
        while !stop.is_cancelled() {
            let again = match self.client.probe_storage(&self.canary_value()).await {
                Storage::Stays => {
                    self.canary_stays(false);
                    millis(self.destination.canary_interval)
                }
                Storage::StaysBlank => {
                    self.canary_stays(true);
                    millis(self.destination.canary_interval)
                }
                Storage::Fails { reason } => {
                    let mut desk = self.desk();
                    let signal = Signal::Halt {
                        reason: reason.into(),
                        canary: true,
                    };
                    desk.record(signal, self.clock.now());
                    self.tell_state(desk.gate.state());
                    drop(desk);
                    self.news.notify_one();
                    CANARY_AGAIN
                }
                // Delivery itself will notice; the canary only has to be asked again.
                Storage::Unreachable { error, .. } => {
                    tracing::debug!(destination = %self.destination.name, %error, "canary not answered");
                    CANARY_AGAIN
                }
            };
            let at = self.clock.now() + again;
            tokio::select! {
                () = self.clock.sleep_until(at) => {}
                () = stop.cancelled() => {}
            }
        }
    }

    /// Names this ledger, and is another one each time.
    fn canary_value(&self) -> String {
        format!("{} {}", self.store.ledger_id(), self.clock.now())
    }

    fn canary_stays(&self, blank: bool) {
        self.blank_is_stored.store(blank, Ordering::Relaxed);
        let mut desk = self.desk();
        desk.canary_succeeded();
        self.tell_state(desk.gate.state());
        drop(desk);
        self.news.notify_one();
    }
}
