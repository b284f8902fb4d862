//! Plans: asks the ledger what is still to be written, and says what that takes.

use std::sync::Arc;

use futures_util::future::select_all;
use tokio_util::sync::CancellationToken;

use crate::clock::{Clock, Millis};
use crate::config::Destination;
use crate::month::Month;
use crate::plan::{Cost, Terms, Unwritten, UnwrittenThere};
use crate::status::{DestinationHealth, DestinationStatus, Health};
use crate::store::{Store, StoreError};

/// How long there is silence between two plans of a dry run, in milliseconds: one looks at everything
/// pending.
const TELL_EVERY: Millis = 60_000;

/// Makes plans.
pub struct Planner {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    destinations: Vec<(Terms, Arc<DestinationHealth>)>,
    /// However many ask: each plan looks at everything pending.
    one_at_a_time: tokio::sync::Mutex<()>,
}

/// A plan.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Pages that wait to be folded.
    pub waiting_pages: u64,
    /// Whether nothing will be added to it but by a further page.
    pub is_complete: bool,
    /// Every destination of the settings.
    pub destinations: Vec<Planned>,
}

/// What is planned for one destination.
#[derive(Clone, Debug)]
pub struct Planned {
    /// How it is called.
    pub terms: Terms,
    /// How it is doing.
    pub status: DestinationStatus,
    /// What is to be written.
    pub unwritten: UnwrittenThere,
    /// What that takes.
    pub cost: Cost,
}

impl From<&Destination> for Terms {
    fn from(destination: &Destination) -> Self {
        Terms {
            kind: destination.kind,
            max_calls_per_second: destination.max_calls_per_second,
            call_budget: destination.call_budget,
        }
    }
}

impl Planner {
    /// Plans for these destinations.
    pub fn new(
        store: Arc<dyn Store>,
        clock: Arc<dyn Clock>,
        destinations: Vec<(Terms, Arc<DestinationHealth>)>,
    ) -> Self {
        Planner {
            store,
            clock,
            destinations,
            one_at_a_time: tokio::sync::Mutex::default(),
        }
    }

    /// What is to be called now.
    ///
    /// # Errors
    /// Where the ledger cannot be read.
    pub async fn plan(&self) -> Result<Plan, StoreError> {
        let _alone = self.one_at_a_time.lock().await;
        let month = Month::of(self.clock.now());
        let Unwritten {
            waiting_pages,
            is_under_way,
            destinations,
        } = self.store.unwritten(month).await?;
        let planned = destinations.into_iter().filter_map(|unwritten| {
            let (terms, health) = self
                .destinations
                .iter()
                .find(|(_, health)| *health.name() == unwritten.name)?;
            let status = health.status();
            // The ledger counts calls that are leased and were not made.
            let made = status
                .calls
                .map_or(unwritten.calls_made, |calls| calls.made);
            Some(Planned {
                terms: *terms,
                cost: Cost::of(unwritten.load, *terms, month, made),
                status,
                unwritten,
            })
        });
        Ok(Plan {
            waiting_pages,
            is_complete: !is_under_way,
            destinations: planned.collect(),
        })
    }

    /// Tells what a dry run would call, whenever the fold came to rest or something was ordered to be
    /// written again, and not more than once a minute.
    pub async fn tell_at_rest(self: Arc<Self>, health: Arc<Health>, stop: CancellationToken) {
        let all = self.destinations.iter().map(|(_, health)| health);
        let dry: Vec<_> = all.filter(|health| health.status().dry_run).collect();
        while !dry.is_empty() && !stop.is_cancelled() {
            let ordered = dry.iter().map(|there| Box::pin(there.resync_is_ordered()));
            tokio::select! {
                () = health.fold_came_to_rest() => {}
                _ = select_all(ordered) => {}
                () = stop.cancelled() => return,
            }
            match self.plan().await {
                Ok(plan) => self.tell(&plan),
                Err(error) => tracing::warn!(%error, "no plan: the ledger cannot be read"),
            }
            tokio::select! {
                () = self.clock.sleep_until(self.clock.now() + TELL_EVERY) => {}
                () = stop.cancelled() => return,
            }
        }
        stop.cancelled().await;
    }

    fn tell(&self, plan: &Plan) {
        for planned in plan
            .destinations
            .iter()
            .filter(|there| there.status.dry_run)
        {
            let Planned {
                status,
                unwritten,
                cost,
                ..
            } = planned;
            if let Some((_, health)) = self
                .destinations
                .iter()
                .find(|(_, health)| *health.name() == status.name)
            {
                health.set_planned_calls(cost.calls);
            }
            tracing::info!(
                destination = %status.name,
                calls = cost.calls,
                identities = unwritten.load.identities,
                traits = unwritten.load.traits,
                cohorts = unwritten.cohorts.len(),
                at_least_seconds = cost.seconds,
                budget_left = cost.budget.map(|budget| budget.left),
                is_complete = plan.is_complete,
                "dry run: calls that would be made"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::clock::ManualClock;
    use crate::config::Kind;
    use crate::http::stub_store::StubStore;

    /// Lets everything run that can.
    async fn all_rest() {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_dry_run_tells_at_rest_and_once_a_minute_at_most() {
        for is_dry in [true, false] {
            let store = Arc::new(StubStore::default());
            let clock = ManualClock::at(0);
            let there = Arc::new(DestinationHealth::new("production".into()));
            if is_dry {
                there.set_dry_run();
            }
            let terms = Terms {
                kind: Kind::Sdk,
                max_calls_per_second: None,
                call_budget: None,
            };
            let destinations = vec![(terms, Arc::clone(&there))];
            let planner = Planner::new(store.clone(), Arc::new(clock.clone()), destinations);
            let health = Arc::new(Health::new(1));
            let stop = CancellationToken::new();
            let telling =
                tokio::spawn(Arc::new(planner).tell_at_rest(Arc::clone(&health), stop.clone()));
            let plans = |wanted: usize| {
                let found = store.orders.lock().unwrap().len();
                assert_eq!(found, if is_dry { wanted } else { 0 });
            };
            all_rest().await;
            plans(0);
            for _ in 0..3 {
                health.fold_rests();
                all_rest().await;
                plans(1);
            }
            clock.advance(Duration::from_secs(60));
            all_rest().await;
            plans(2);
            clock.advance(Duration::from_secs(60));
            all_rest().await;
            plans(2);
            if is_dry {
                there.resync_ordered();
                all_rest().await;
            }
            plans(3);
            assert_eq!(there.status().planned_calls, is_dry.then_some(4));
            stop.cancel();
            telling.await.unwrap();
        }
    }
}
