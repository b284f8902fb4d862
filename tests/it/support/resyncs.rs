//! What is written again, ordered and walked without a dispatcher.

use cohort_bridge::clock::Millis;
use cohort_bridge::cohort::DestinationName;
use cohort_bridge::store::{ResyncOrder, ResyncRoom, ResyncScope, ResyncStep, Store};

/// A cohort of the source `default`, at one destination or wherever it goes.
pub fn cohort_at(cohort_id: &str, destination: Option<&str>) -> ResyncScope {
    ResyncScope::Cohort {
        source: "default".into(),
        cohort_id: cohort_id.to_owned(),
        destination: destination.map(DestinationName::from),
    }
}

/// Room for so many traits, however many are ahead.
pub fn room(rows: usize) -> ResyncRoom {
    ResyncRoom {
        max_calls_per_second: None,
        identities: usize::MAX,
        rows,
        identities_ahead: usize::MAX,
        rows_ahead: usize::MAX,
    }
}

/// Orders it; how many traits.
pub async fn order(
    store: &dyn Store,
    scope: ResyncScope,
    max_calls_per_second: Option<f64>,
    now: Millis,
) -> Option<u64> {
    let order = ResyncOrder {
        scope,
        max_calls_per_second,
    };
    store.order_resync(order, now).await.unwrap()
}

/// Makes all pending that is ordered for a destination.
pub async fn bring_up_all(store: &dyn Store, destination: &DestinationName, now: Millis) {
    loop {
        let step = store.resync_some(destination, room(100), now);
        match step.await.unwrap() {
            ResyncStep::Idle | ResyncStep::Full => return,
            ResyncStep::BroughtUp { .. } | ResyncStep::Ended(_) => {}
            ResyncStep::Paced(rate) => panic!("a rate of {rate:?}"),
        }
    }
}
