//! Large sessions: applied in pieces, killed between any two of them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use cohort_bridge::clock::{Clock, ManualClock};
use cohort_bridge::cohort::{Action, DestinationName, OnLeave, SourceName, Target, Wanted};
use cohort_bridge::fold::{Fold, Step};
use cohort_bridge::mixpanel::{IdentifierRules, Page, PageInfo};
use cohort_bridge::roster::Roster;
use cohort_bridge::store::LedgerStore;
use cohort_bridge::store::{DestinationRules, SourceRules, Store};

use crate::support::{fast_temp_dir, open_ledger};

const NOW: i64 = 1_800_000_000_000;

fn open(path: &Path) -> Arc<LedgerStore> {
    let source = SourceRules::named("default");
    let destination = DestinationRules {
        name: DestinationName::from("default"),
        on_leave: Default::default(),
        linger_ms: 0,
        late_write_ms: 60_000,
    };
    open_ledger(path, source, destination)
}

fn people(numbers: impl IntoIterator<Item = u32>) -> BTreeSet<String> {
    numbers
        .into_iter()
        // Scattered, so that pages overlap in order.
        .map(|number| format!("{:08x}", number.wrapping_mul(2_654_435_761)))
        .collect()
}

async fn send(store: &LedgerStore, session: &str, people: &BTreeSet<String>) {
    let everyone: Vec<_> = people.iter().cloned().collect();
    let pages: Vec<_> = everyone.chunks(1_000).map(<[_]>::to_vec).collect();
    let pages = if pages.is_empty() {
        vec![Vec::new()]
    } else {
        pages
    };
    for (number, identifiers) in (1..).zip(&pages) {
        let page = Page {
            action: Action::Members,
            project_id: "1".into(),
            cohort_id: "7".into(),
            cohort_name: Some("Large".into()),
            session_id: Some(session.into()),
            page_info: Some(PageInfo {
                number,
                total: pages.len() as u32,
            }),
            members_received: identifiers.len(),
            roster: Roster::of_identifiers(identifiers.iter().map(String::as_str)),
            identified_by: IdentifierRules::default().describe(),
            set_aside: Vec::new(),
        };
        store
            .append(&SourceName::from("default"), page, NOW)
            .await
            .unwrap();
    }
}

/// Folds, with a kill after every `steps` steps; returns how many there were.
async fn fold(store: &mut Arc<LedgerStore>, path: &Path, steps: usize) -> usize {
    let clock: Arc<dyn Clock> = Arc::new(ManualClock::at(NOW));
    let mut kills = 0;
    loop {
        let mut fold = Fold::new(store.clone(), Arc::clone(&clock));
        for _ in 0..steps {
            if fold.step().await.unwrap() == Step::Idle {
                return kills;
            }
        }
        drop(fold);
        kills += 1;
        *store = {
            // The lock on the file goes with the last handle.
            let closing = std::mem::replace(store, open_elsewhere());
            drop(closing);
            open(path)
        };
    }
}

/// A placeholder while the real ledger is closed.
fn open_elsewhere() -> Arc<LedgerStore> {
    let dir = fast_temp_dir();
    open(&dir.path().join("elsewhere.db"))
}

async fn members(store: &LedgerStore) -> (u64, u64, u64) {
    let cohort = store.cohorts().await.unwrap().remove(0);
    (cohort.members, cohort.left, cohort.destinations[0].pending)
}

/// What the destination is to hear, of each person.
async fn wanted(store: &LedgerStore) -> BTreeMap<String, Target> {
    let destination = DestinationName::from("default");
    let mut wanted = BTreeMap::new();
    let mut after = None;
    loop {
        let exchanged = store.exchange(&destination, Vec::new(), after, 10_000, NOW);
        let claims = exchanged.await.unwrap();
        for claim in claims.claims {
            wanted.insert(claim.identifier.to_string(), claim.traits[0].target);
        }
        after = claims.resume_after;
        if after.is_none() {
            return wanted;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_replace_is_exact_whenever_it_is_killed() {
    let dir = fast_temp_dir();
    let path = dir.path().join("ledger.db");
    let mut store = open(&path);
    let first = people(0..30_000);
    let second = people(20_000..45_000);

    send(&store, "one", &first).await;
    assert!(fold(&mut store, &path, 4).await > 0);
    assert_eq!(members(&store).await, (30_000, 0, 30_000));

    send(&store, "two", &second).await;
    assert!(fold(&mut store, &path, 4).await > 0);
    // Nothing was delivered, and on-leave is `false`: everybody ever seen is to be told.
    assert_eq!(members(&store).await, (25_000, 20_000, 45_000));
    let is_second = |person: &String| {
        let target = Target::of(Wanted::of(second.contains(person)), OnLeave::False);
        (person.clone(), target)
    };
    let expected: BTreeMap<_, _> = first.union(&second).map(is_second).collect();
    assert!(wanted(&store).await == expected);
    for (person, expected) in [(0, false), (19_999, false), (20_000, true), (44_999, true)] {
        let identifier = people([person]).pop_first().unwrap();
        assert_eq!(
            store.member(&identifier).await.unwrap()[0].member,
            expected,
            "{person}"
        );
    }

    send(&store, "three", &BTreeSet::new()).await;
    assert!(
        fold(&mut store, &path, 2).await > 0,
        "nobody leaves in one piece"
    );
    assert_eq!(members(&store).await, (0, 45_000, 45_000));
}
