//! Who lost the lead can change nothing, whenever that is; nor can a refusal that another replica's success
//! has overtaken.

use std::sync::Arc;

use cohort_bridge::calls::CallOrder;
use cohort_bridge::clock::SystemClock;
use cohort_bridge::cohort::Action::{AddMembers, RemoveMembers};
use cohort_bridge::fold::Fold;
use cohort_bridge::month::Month;
use cohort_bridge::store::{Store, StoreError};
use tokio_postgres::Client;

use super::lease::{Two, claim, somebody_waits};
use crate::support::bench::{START, page, written};
use crate::support::postgres::connected;
use crate::support::shared_ledger::expire_lease;
use crate::support::stores::{everywhere, source};

/// All that the ledger holds, but for until when a term lasts.
async fn contents(observer: &Client) -> Vec<String> {
    let names = "SELECT tablename::TEXT FROM pg_tables WHERE schemaname = 'public' ORDER BY 1";
    let mut contents = Vec::new();
    for table in observer.query(names, &[]).await.unwrap() {
        let table: String = table.get(0);
        let row = match table.as_str() {
            "term" => "t.token::TEXT",
            _ => "t::TEXT",
        };
        let all =
            format!("SELECT coalesce(string_agg({row}, ' ' ORDER BY t::TEXT), '') FROM {table} t");
        let all: String = observer.query_one(&all, &[]).await.unwrap().get(0);
        contents.push(format!("{table}: {all}"));
    }
    contents
}

/// The first one's settlement of what it had claimed.
fn settle(two: &Two) -> tokio::task::JoinHandle<Result<(), StoreError>> {
    let store = Arc::clone(&two.first);
    let settle = two.claims.iter().cloned().map(written).collect();
    tokio::spawn(async move {
        let settled = store.exchange(&everywhere(), settle, None, 0, START).await;
        settled.map(drop)
    })
}

fn assert_refused<T: std::fmt::Debug>(answer: Result<T, StoreError>) {
    assert!(matches!(answer, Err(StoreError::NotLeading)), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_led_once_settles_claims_folds_and_counts_nothing() {
    let Some(two) = Two::new().await else {
        return;
    };
    let Two { first, second, .. } = &two;
    expire_lease(two.database.url()).await;
    second.lead().await.unwrap();
    let theirs = claim(second).await.unwrap();
    assert_eq!(theirs.len(), 2, "of calls under way nobody knows the end");
    let some = page(AddMembers, "c", "t", (1, 1), &["cid"]);
    second.append(&source(), some, START).await.unwrap();

    let before = contents(&two.observer).await;
    assert_refused(settle(&two).await.unwrap());
    assert_refused(claim(first).await);
    assert_refused(first.assemble(10, 10, START).await);
    assert_refused(first.adopt_keys(START).await);
    assert_refused(first.follow_pauses(10).await);
    assert_refused(first.follow_routes(10, START).await);
    assert_refused(first.doubt(&everywhere(), START).await);
    let order = CallOrder {
        month: Month::of(START),
        add: 5,
        lease: 5,
        budget: None,
    };
    assert_refused(first.count_calls(&everywhere(), order, START).await);
    assert_eq!(contents(&two.observer).await, before);
    assert!(two.term.is_over() && two.term.ended().is_cancelled());

    // The second one's count.
    let settle = theirs.into_iter().map(written).collect();
    let settled = second.exchange(&everywhere(), settle, None, 0, START).await;
    settled.unwrap();
    let member = second.member("ann").await.unwrap();
    assert_eq!(member[0].destinations[0].written, Some(true));
}

/// It is already in the transaction, and waits for the row that says who leads.
#[tokio::test(flavor = "multi_thread")]
async fn who_loses_the_lead_amid_a_transaction_settles_nothing() {
    let Some(two) = Two::new().await else {
        return;
    };
    let other = connected(two.database.url()).await;
    other
        .batch_execute("BEGIN; SELECT FROM lease FOR UPDATE")
        .await
        .unwrap();
    let before = contents(&two.observer).await;
    let settling = settle(&two);
    somebody_waits(&two.observer).await;
    other
        .batch_execute(
            "UPDATE term SET token = 'another', expires_at = 'infinity';
             UPDATE lease SET token = 'another'; COMMIT",
        )
        .await
        .unwrap();
    assert_refused(settling.await.unwrap());
    let mut after = contents(&two.observer).await;
    let is_lead = |table: &String| table.starts_with("lease: ") || table.starts_with("term: ");
    after.retain(|table| !is_lead(table));
    let before: Vec<_> = before.into_iter().filter(|it| !is_lead(it)).collect();
    assert_eq!(after, before);
}

/// A replica refused a page and could not write that down before another one took the page in: the last
/// answer was a success.
#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_that_is_written_down_late_speaks_against_no_run() {
    let Some(two) = Two::new().await else {
        return;
    };
    let Two { first, second, .. } = &two;
    let folding: Arc<dyn Store> = first.clone();
    let mut fold = Fold::new(folding, Arc::new(SystemClock));
    for (number, joins) in [(1, "cid"), (2, "dan"), (3, "eve")] {
        let at = START + number * 1_800_000;
        let id = format!("run{number}");
        let add = page(AddMembers, "c", &id, (1, 1), &[joins]);
        let remove = page(RemoveMembers, "c", &id, (1, 1), &[]);
        second
            .append(&source(), add.clone(), at + 2_000)
            .await
            .unwrap();
        second.append(&source(), remove, at + 3_000).await.unwrap();
        first.note_refused(&source(), &add, at);
        // The note is written down before it.
        let other = page(AddMembers, "other", &id, (1, 1), &["zoe"]);
        first.append(&source(), other, at + 4_000).await.unwrap();
        fold.run_until_idle().await.unwrap();
    }
    for person in ["ann", "cid", "dan", "eve"] {
        let member = first.member(person).await.unwrap();
        assert!(member[0].member, "{person}");
    }
}
