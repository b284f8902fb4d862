//! How PostgreSQL runs the ledger's statements while it has not counted the rows yet.

use std::collections::BTreeSet;

use cohort_bridge::store::Outcome;

use crate::moving::history::history;
use crate::support::pages;
use crate::support::postgres::{Postgres, connected};
use crate::support::stores::{Kind, Stores, done};

/// Tables with a row for each person, or for each page of them.
const LARGE: [&str; 7] = [
    "pending",
    "member",
    "holder",
    "inbox",
    "session_page",
    "dead_letter",
    "fate",
];

/// A statement's text and how it was run.
struct Run<'a> {
    statement: &'a str,
    plan: Vec<&'a str>,
    /// Rows are compared with each other one by one.
    compares_each: bool,
}

/// What `auto_explain` wrote down.
fn runs(log: &str) -> Vec<Run<'_>> {
    let mut runs = Vec::new();
    for entry in log.split("Query Text: ").skip(1) {
        let lines: Vec<_> = entry.lines().collect();
        let is_node = |line: &&&str| line.contains("(cost=");
        runs.push(Run {
            statement: lines[0],
            plan: lines.iter().filter(is_node).copied().collect(),
            compares_each: lines.iter().any(|line| line.contains("Join Filter:")),
        });
    }
    runs
}

/// A server that writes down how it ran each statement, and counts no rows by itself.
async fn explaining() -> Option<Postgres> {
    Postgres::start_with(&[
        ("shared_preload_libraries", "auto_explain"),
        ("auto_explain.log_min_duration", "0"),
        ("autovacuum", "off"),
    ])
    .await
}

/// A million rows that came within a minute were not counted yet.
#[tokio::test(flavor = "multi_thread")]
async fn no_large_table_is_sorted_or_read_whole_for_a_piece_of_it() {
    let Some(postgres) = explaining().await else {
        return;
    };
    let database = postgres.fresh_database().await;
    let nothing = Stores::new(Kind::Sqlite).await.unwrap();
    let mut stores = nothing.over(database).await;
    let people = pages::people("usr", 3_000);
    let people: Vec<&str> = people.iter().map(String::as_str).collect();
    for cohort in ["a", "b"] {
        stores.full(cohort, "one", &people).await;
    }
    let mut after = None;
    for _ in 0..4 {
        let claims = stores
            .exchange_some(Vec::new(), after.as_deref(), 256)
            .await;
        after = claims.resume_after;
        stores.settle(claims.claims, done()).await;
    }
    history(&mut stores, 3).await;
    stores.full("a", "two", &people[5..]).await;
    stores.deliver().await;
    stores.shut().await;

    let log = postgres.daemon().log();
    let mut slow = BTreeSet::new();
    for Run {
        statement, plan, ..
    } in runs(&log)
    {
        let is_on = |node: &str, table: &str| node.contains(&format!(" on {table} "));
        let large = |node: &str| LARGE.into_iter().any(|table| is_on(node, table));
        if !plan.iter().any(|node| large(node)) {
            continue;
        }
        for node in plan {
            let is_whole = node.contains("Seq Scan") || node.contains("Bitmap Heap Scan");
            if node.contains("Sort") || is_whole && large(node) {
                slow.insert(format!("{node} | {statement}"));
            }
        }
    }
    let slow: Vec<_> = slow.into_iter().collect();
    assert!(slow.is_empty(), "{}", slow.join("\n"));
}

/// Of some fifty rows each was one that may be written over late, and that is what is known when there are
/// thousands: none of them seems to be settled by its call.
#[tokio::test(flavor = "multi_thread")]
async fn no_piece_is_compared_with_each_row_of_a_table_that_was_counted_when_it_was_small() {
    let Some(postgres) = explaining().await else {
        return;
    };
    let database = postgres.fresh_database().await;
    let counting = connected(database.url()).await;
    let nothing = Stores::new(Kind::Sqlite).await.unwrap();
    let stores = nothing.over(database).await;
    let people = pages::people("usr", 3_000);
    let people: Vec<&str> = people.iter().map(String::as_str).collect();
    stores.full("a", "one", &people[..50]).await;
    let claims = stores.claim().await;
    let may_land_late = true;
    stores
        .settle(claims, Outcome::Written { may_land_late })
        .await;
    counting.batch_execute("ANALYZE").await.unwrap();
    stores.full("b", "one", &people).await;
    assert_eq!(stores.deliver().await.len(), 3_000);

    let log = postgres.daemon().log();
    let of_pending = |run: &Run<'_>| run.plan.iter().any(|node| node.contains(" on pending "));
    let runs: Vec<_> = runs(&log).into_iter().filter(of_pending).collect();
    assert!(!runs.is_empty());
    for Run {
        statement,
        plan,
        compares_each,
    } in runs
    {
        assert!(!compares_each, "{statement}\n{}", plan.join("\n"));
    }
}
