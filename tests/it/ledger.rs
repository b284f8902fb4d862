//! The ledger under conditions that a generated history does not bring about.

use std::sync::Arc;

use cohort_bridge::clock::{Clock, ManualClock};
use cohort_bridge::cohort::{Action, DestinationName, SourceName};
use cohort_bridge::fold::Fold;
use cohort_bridge::mixpanel::{IdentifierRules, Page, PageInfo};
use cohort_bridge::roster::Roster;
use cohort_bridge::sorted::Sorter;
use cohort_bridge::store::LedgerStore;
use cohort_bridge::store::{
    Chunk, DeadLetterFilter, DestinationRules, OWN_ROLE, Outcome, Settlement, SourceRules, Store,
};

use crate::support::{eventually, fast_temp_dir, open_ledger, shared_ledger};

const NOW: i64 = 1_800_000_000_000;

struct Ledger {
    folder: tempfile::TempDir,
    store: Arc<LedgerStore>,
}

fn name() -> DestinationName {
    DestinationName::from("default")
}

impl Ledger {
    fn new() -> Self {
        let folder = fast_temp_dir();
        let source = SourceRules::named("default");
        let destination = DestinationRules {
            name: name(),
            on_leave: Default::default(),
            linger_ms: 0,
            late_write_ms: 60_000,
        };
        let store = open_ledger(&folder.path().join("ledger.db"), source, destination);
        Ledger { folder, store }
    }

    async fn append(
        &self,
        cohort: &str,
        session: &str,
        number: u32,
        total: u32,
        people: &[String],
    ) {
        let page = Page {
            action: Action::AddMembers,
            project_id: "1".into(),
            cohort_id: cohort.into(),
            cohort_name: None,
            session_id: Some(session.into()),
            page_info: Some(PageInfo { number, total }),
            roster: Roster::of_identifiers(people.iter().map(String::as_str)),
            identified_by: IdentifierRules::default().describe(),
            members_received: people.len(),
            set_aside: Vec::new(),
        };
        self.store
            .append(&SourceName::from("default"), page, NOW)
            .await
            .unwrap();
    }

    async fn fold(&self) {
        let clock: Arc<dyn Clock> = Arc::new(ManualClock::at(NOW));
        Fold::new(self.store.clone(), clock)
            .run_until_idle()
            .await
            .unwrap();
    }

    async fn claim(&self, limit: usize) -> cohort_bridge::store::Claims {
        self.store
            .exchange(&name(), Vec::new(), None, limit, NOW)
            .await
            .unwrap()
    }
}

fn people(count: usize) -> Vec<String> {
    (0..count)
        .map(|number| format!("usr_{number:07}"))
        .collect()
}

/// A call is claimed and, in the same transaction, the fold gives the person another cohort. Sweeps
/// pass the busy identity over; somebody must say that it is due when the call has ended.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_in_the_transaction_of_the_claim_is_not_forgotten() {
    let ledger = Ledger::new();
    let store = &ledger.store;
    ledger.append("7", "one", 1, 1, &people(1)).await;
    ledger.fold().await;
    ledger.append("8", "two", 1, 1, &people(1)).await;
    let whole = store.assemble(10, 10, NOW).await.unwrap().whole.unwrap();
    let mut sorter = Sorter::default();
    let pages = store.page_people(vec![(whole.session, 1)]).await;
    let page = pages.unwrap().remove(0);
    sorter.add(&page.roster, OWN_ROLE).unwrap();
    let chunk = Chunk {
        session: whole.session,
        cohort: whole.cohort,
        effect: whole.effect,
        layers: Vec::new(),
        holds_removals: false,
        after: None,
        people: sorter.finish().unwrap().take(10, None).unwrap(),
        last: true,
        finishes: true,
        recognised: page.recognised,
    };
    // The writer takes what waits into one transaction.
    let name = name();
    let claim = store.exchange(&name, Vec::new(), None, 10, NOW);
    let (_, claims, _) = tokio::join!(store.ready(), claim, store.apply(chunk, NOW));
    let settle: Vec<_> = claims
        .unwrap()
        .claims
        .into_iter()
        .map(|claim| Settlement {
            claim,
            outcome: Outcome::Written {
                may_land_late: false,
            },
        })
        .collect();
    assert_eq!(settle[0].claim.traits.len(), 1);
    assert!(ledger.claim(10).await.claims.is_empty(), "it is in flight");
    let settled = store.exchange(&name, settle, None, 0, NOW).await.unwrap();
    assert_eq!(settled.next_due, Some(NOW));
    assert_eq!(ledger.claim(10).await.claims.len(), 1);
}

/// A backup or a shell that reads for long must not stop the front door.
#[tokio::test(flavor = "multi_thread")]
async fn a_long_reader_does_not_hold_up_pages() {
    if shared_ledger::is_wanted() {
        // It is about SQLite's write-ahead log.
        return;
    }
    let ledger = Ledger::new();
    ledger.append("7", "one", 1, 1, &people(10)).await;
    let reader = rusqlite::Connection::open(ledger.folder.path().join("ledger.db")).unwrap();
    reader.execute_batch("BEGIN").unwrap();
    let _: i64 = reader
        .query_row("SELECT count(*) FROM inbox", [], |row| row.get(0))
        .unwrap();
    let long_names: Vec<_> = (0..1_000)
        .map(|number| format!("{number:04}{}", "x".repeat(900)))
        .collect();
    // Enough for several attempts to shorten the log; each used to wait for ten seconds.
    let begun = std::time::Instant::now();
    for number in 1..=60 {
        ledger.append("7", "large", number, 100, &long_names).await;
    }
    assert!(begun.elapsed().as_secs() < 10, "{:?}", begun.elapsed());
}

/// An operator's order about very many letters is carried out in many transactions.
#[tokio::test(flavor = "multi_thread")]
async fn all_dead_letters_are_retried_and_dropped_however_many() {
    let ledger = Ledger::new();
    ledger.append("7", "one", 1, 1, &people(5_000)).await;
    ledger.fold().await;
    let bury = async || {
        let claims = ledger.claim(10_000).await.claims;
        assert_eq!(claims.len(), 5_000);
        let settle = claims.into_iter().map(|claim| Settlement {
            claim,
            outcome: Outcome::Dead {
                may_land_late: false,
                error: "400".into(),
            },
        });
        let settle: Vec<_> = settle.collect();
        // As many at a time as delivery does.
        for some in settle.chunks(256) {
            let destination = name();
            let settled = ledger
                .store
                .exchange(&destination, some.to_vec(), None, 0, NOW);
            settled.await.unwrap();
        }
    };
    let counts = async || {
        let delivery = ledger.store.cohorts().await.unwrap()[0].destinations[0].clone();
        (delivery.pending, delivery.dead)
    };
    bury().await;
    assert_eq!(counts().await, (0, 5_000));
    let all = DeadLetterFilter::default;
    assert_eq!(
        ledger.store.retry_dead_letters(all(), NOW).await.unwrap(),
        5_000
    );
    assert_eq!(counts().await, (5_000, 0));
    bury().await;
    let one = DeadLetterFilter {
        identifier: Some("usr_0000042".into()),
        ..all()
    };
    assert_eq!(ledger.store.drop_dead_letters(one, NOW).await.unwrap(), 1);
    assert_eq!(
        ledger.store.drop_dead_letters(all(), NOW).await.unwrap(),
        4_999
    );
    assert_eq!(counts().await, (0, 0));
    eventually("nothing is left to claim", async || {
        ledger.claim(10).await.claims.is_empty().then_some(())
    })
    .await;
}
