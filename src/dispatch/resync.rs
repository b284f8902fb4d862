//! Writing again what was ordered to be, a piece at a time: the next one is made pending once most of
//! the last are delivered. So fresh changes have little before them, an order can be cancelled while
//! it runs, and nothing is made pending for a destination that takes nothing.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::{AFTER_FAILURE, Dispatch};
use crate::clock::Millis;
use crate::config::Kind;
use crate::rate::Rate;
use crate::store::{ResyncRoom, ResyncStep, ResyncView, StoreError};

/// Traits of one piece: a few milliseconds of a transaction.
const ROWS_AT_ONCE: usize = 1_024;

/// Traits that may be ahead while a further piece is made pending: at some thousand calls a second,
/// what is called for while that happens.
const ROWS_AHEAD: usize = 1_024;

/// Calls in bulk of one piece at most.
const BULK_CALLS_AT_ONCE: usize = 4;

/// What comes before the next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wait {
    Nothing,
    /// Calls that end, or a gate that opens.
    Room,
    Time(Millis),
    Order,
}

/// Keeps an order to its rate.
#[derive(Default)]
struct Pacer(Option<(f64, Rate)>);

impl Pacer {
    fn set(&mut self, per_second: Option<f64>, now: Millis) {
        self.0 = per_second.map(|per_second| (per_second, Rate::new(per_second, now)));
    }

    /// What may be made pending now, `rows_a_call` in bulk; and where that is nothing, until when.
    fn room(&mut self, rows_a_call: Option<usize>, now: Millis) -> (ResyncRoom, Option<Millis>) {
        let unpaced = ResyncRoom {
            max_calls_per_second: None,
            identities: usize::MAX,
            rows: ROWS_AT_ONCE,
            identities_ahead: usize::MAX,
            rows_ahead: ROWS_AHEAD,
        };
        let Some((per_second, rate)) = &mut self.0 else {
            return (unpaced, None);
        };
        let max_calls_per_second = Some(*per_second);
        if let Some(at) = rate.wait_until(now) {
            let none = ResyncRoom {
                max_calls_per_second,
                rows: 0,
                ..unpaced
            };
            return (none, Some(at));
        }
        let calls = rate.ready(now).max(1);
        // No more than a second's: what is ahead goes out at once where a gate opens again.
        let calls_ahead = per_second.ceil() as usize;
        let room = match rows_a_call {
            None => ResyncRoom {
                max_calls_per_second,
                identities: calls,
                identities_ahead: calls_ahead,
                ..unpaced
            },
            Some(rows) => ResyncRoom {
                max_calls_per_second,
                rows: rows * calls.min(BULK_CALLS_AT_ONCE),
                rows_ahead: ROWS_AHEAD.min(rows.saturating_mul(calls_ahead)),
                ..unpaced
            },
        };
        (room, None)
    }

    fn take(&mut self, calls: usize, now: Millis) {
        if let Some((_, rate)) = &mut self.0 {
            for _ in 0..calls {
                rate.take(now);
            }
        }
    }
}

impl Dispatch {
    /// Carries out what [`Store::order_resync`](crate::store::Store::order_resync) ordered, in this
    /// process or an earlier one.
    pub(super) async fn write_again_on_and_on(self: Arc<Self>, stop: CancellationToken) {
        let mut pacer = Pacer::default();
        while !stop.is_cancelled() {
            let now = self.clock.now();
            let wait = match self.write_some_again(&mut pacer, now).await {
                Ok(wait) => wait,
                Err(error) => {
                    self.tell_ledger_failed(&error, "writing again waits: the ledger failed");
                    Wait::Time(now + AFTER_FAILURE)
                }
            };
            let waited = async {
                match wait {
                    Wait::Nothing => {}
                    Wait::Room => self.may_bring_up.notified().await,
                    Wait::Time(at) => self.clock.sleep_until(at).await,
                    Wait::Order => std::future::pending().await,
                }
            };
            tokio::select! {
                () = waited => {}
                () = self.health.resync_is_ordered() => {}
                () = stop.cancelled() => {}
            }
        }
    }

    async fn write_some_again(&self, pacer: &mut Pacer, now: Millis) -> Result<Wait, StoreError> {
        let rows_a_call = {
            let desk = self.desk();
            if !desk.gate.is_open() || self.meter.used_up().is_some() {
                return Ok(Wait::Room);
            }
            match self.destination.kind {
                Kind::Sdk => None,
                Kind::CoreBulk => Some(desk.width.rows()),
            }
        };
        let (room, until) = pacer.room(rows_a_call, now);
        let step = self.store.resync_some(&self.destination.name, room, now);
        Ok(match step.await? {
            ResyncStep::Idle => Wait::Order,
            ResyncStep::Full => until.map_or(Wait::Room, Wait::Time),
            ResyncStep::Paced(per_second) => {
                pacer.set(per_second, now);
                Wait::Nothing
            }
            ResyncStep::BroughtUp {
                begun,
                identities,
                rows,
            } => {
                let calls = rows_a_call.map_or(identities, |most| rows.div_ceil(most));
                pacer.take(calls, now);
                if let Some(order) = &begun {
                    tell("is", order);
                }
                self.brought_up.notify_one();
                Wait::Nothing
            }
            ResyncStep::Ended(order) => {
                tell("was", &order);
                Wait::Nothing
            }
        })
    }
}

fn tell(is: &str, order: &ResyncView) {
    let ResyncView {
        destination,
        cohort,
        max_calls_per_second,
        of: traits,
        ..
    } = order;
    match cohort {
        Some((source, cohort_id)) => {
            tracing::info!(%destination, %source, cohort_id, traits, max_calls_per_second, "a cohort {is} written again");
        }
        None => {
            tracing::info!(%destination, traits, max_calls_per_second, "everything {is} written again");
        }
    }
}
