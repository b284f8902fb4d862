//! Keeps the count of calls in the ledger.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::{AFTER_FAILURE, Dispatch};
use crate::calls::{CallOrder, CallsCounted};
use crate::gate::Gate;
use crate::number::Number;
use crate::rfc3339::utc;
use crate::status::DestinationState;

impl Dispatch {
    /// Learns what was called this month; calls that have a budget wait for that.
    pub(super) async fn open_the_count(&self, stop: &CancellationToken) {
        while !stop.is_cancelled()
            && let Some(order) = self.meter.order()
        {
            self.carry_out(order, stop).await;
        }
    }

    /// Writes calls down and leases new ones, for as long as calls are made: whoever waits for a
    /// grant must have it, though the service stops.
    pub(super) async fn keep_the_count(self: Arc<Self>, no_more_calls: CancellationToken) {
        while !no_more_calls.is_cancelled() {
            if let Some(order) = self.meter.order() {
                self.carry_out(order, &no_more_calls).await;
                continue;
            }
            tokio::select! {
                () = self.meter.wait_for_order() => {}
                () = no_more_calls.cancelled() => {}
            }
            self.tell_state(self.state(&self.desk().gate));
            self.news.notify_one();
        }
    }

    /// No more calls are made.
    pub(super) async fn close_the_count(&self) {
        let order = self.meter.last_order();
        if order.add != 0 {
            self.count(order).await;
        }
    }

    async fn carry_out(&self, order: CallOrder, stop: &CancellationToken) {
        let counted = self.count(order).await;
        let has_failed = counted.is_none();
        self.meter.answer(order, counted);
        self.tell_state(self.state(&self.desk().gate));
        // There may be calls to make, or claims to give back.
        self.work.notify_waiters();
        self.news.notify_one();
        if has_failed {
            tokio::select! {
                () = self.clock.sleep_until(self.clock.now() + AFTER_FAILURE) => {}
                () = stop.cancelled() => {}
            }
        }
    }

    async fn count(&self, order: CallOrder) -> Option<CallsCounted> {
        let name = &self.destination.name;
        match self.store.count_calls(name, order, self.clock.now()).await {
            Ok(counted) => Some(counted),
            Err(error) => {
                self.tell_ledger_failed(
                    &error,
                    "calls cannot be counted: the ledger cannot be written",
                );
                None
            }
        }
    }

    /// How delivery goes, all told.
    pub(super) fn state(&self, gate: &Gate) -> DestinationState {
        match (self.meter.used_up(), self.destination.call_budget) {
            (Some(month), Some(budget)) => DestinationState::Halted {
                reason: format!(
                    "the call budget of {month}, {} calls, is used up: delivery goes on at {}, or \
                     when the service is started with a higher --call-budget \
                     (COHORT_BRIDGE_CALL_BUDGET)",
                    Number(budget),
                    utc(month.ends()),
                )
                .into(),
            },
            _ => gate.state(),
        }
    }
}
