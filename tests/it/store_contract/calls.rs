//! The calls of a month.

use cohort_bridge::calls::{CallOrder, CallsCounted};
use cohort_bridge::clock::Millis;
use cohort_bridge::month::Month;

use crate::support::bench::START;
use crate::support::stores::{Stores, destination, everywhere};

/// In the month of [`START`].
fn order(add: i64, lease: u64, budget: Option<u64>) -> CallOrder {
    CallOrder {
        month: Month::of(START),
        add,
        lease,
        budget,
    }
}

fn counted(calls: u64, leased: u64, since: Millis) -> CallsCounted {
    CallsCounted {
        calls,
        leased,
        since,
    }
}

async fn count(stores: &Stores, of: &str, order: CallOrder) -> CallsCounted {
    let counted = stores
        .store()
        .count_calls(&of.into(), order, stores.now())
        .await;
    counted.unwrap()
}

pub async fn calls_are_leased_as_far_as_the_budget_goes(stores: &mut Stores) {
    let budget = Some(100);
    let first = count(stores, "default", order(5, 10, budget)).await;
    assert_eq!(first, counted(15, 10, START));
    stores.reopen().await;
    stores.wait(std::time::Duration::from_secs(7));
    // Three were leased and not made.
    let second = count(stores, "default", order(-3, 200, budget)).await;
    assert_eq!(second, counted(100, 88, START), "since the first");
    let none = count(stores, "default", order(0, 1, budget)).await;
    assert_eq!(none, counted(100, 0, START));
    // Made all the same.
    let beyond = count(stores, "default", order(7, 5, budget)).await;
    assert_eq!(beyond, counted(107, 0, START));
    let more = count(stores, "default", order(0, 5, Some(u64::MAX))).await;
    assert_eq!(more, counted(112, 5, START));
}

/// Whoever leases at the same time, no more is leased than there is.
pub async fn a_budget_is_not_leased_twice(stores: &mut Stores) {
    let now = stores.now();
    let mut leasing = tokio::task::JoinSet::new();
    for _ in 0..10 {
        let store = stores.store().clone();
        leasing.spawn(async move {
            let mut leased = 0;
            for _ in 0..5 {
                let order = order(0, 3, Some(100));
                let counted = store.count_calls(&everywhere(), order, now).await;
                leased += counted.unwrap().leased;
            }
            leased
        });
    }
    let leased: u64 = leasing.join_all().await.into_iter().sum();
    assert_eq!(leased, 100);
    let all = count(stores, "default", order(0, 0, Some(100))).await;
    assert_eq!(all.calls, 100);
}

pub async fn calls_are_counted_without_a_budget(stores: &mut Stores) {
    let first = count(stores, "default", order(40, 0, None)).await;
    assert_eq!(first, counted(40, 0, START));
    let unleased = count(stores, "default", order(1, 10, None)).await;
    assert_eq!(
        unleased,
        counted(41, 0, START),
        "there is nothing to lease of"
    );
    stores.reopen().await;
    assert_eq!(count(stores, "default", order(0, 0, None)).await.calls, 41);
    // Never below nought.
    assert_eq!(
        count(stores, "default", order(-1_000, 0, None)).await.calls,
        0
    );
    let many = count(stores, "default", order(i64::MAX, 0, None)).await;
    assert_eq!(many.calls, i64::MAX as u64);
}

pub async fn each_month_and_destination_has_a_count(stores: &mut Stores) {
    stores.rules.destinations.push(destination("é '\\"));
    stores.reopen().await;
    let next = CallOrder {
        month: Month::of(Month::of(START).ends()),
        ..order(3, 0, None)
    };
    assert_eq!(count(stores, "default", order(1, 0, None)).await.calls, 1);
    assert_eq!(count(stores, "é '\\", order(2, 0, None)).await.calls, 2);
    stores.wait(std::time::Duration::from_secs(1));
    let new = count(stores, "default", next).await;
    assert_eq!(new, counted(3, 0, START + 1_000));
    assert_eq!(count(stores, "default", order(0, 0, None)).await.calls, 1);
    // Given back where nothing was counted yet.
    let before = CallOrder {
        month: Month::of(Month::of(START).begins() - 1),
        ..order(-5, 0, None)
    };
    assert_eq!(count(stores, "default", before).await.calls, 0);

    let unwritten = stores.store().unwritten(Month::of(START)).await.unwrap();
    let made = unwritten.destinations.iter();
    let made: Vec<_> = made
        .map(|there| (&*there.name.0, there.calls_made))
        .collect();
    assert_eq!(made, [("default", 1), ("é '\\", 2)]);
    let unknown = stores
        .store()
        .count_calls(&"e".into(), order(1, 0, None), stores.now())
        .await;
    unknown.unwrap_err();
}
