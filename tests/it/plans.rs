//! How PostgreSQL runs the ledger's statements while it has not counted the rows yet.

use std::collections::BTreeSet;

use crate::moving::history::history;
use crate::support::pages;
use crate::support::postgres::Postgres;
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
        });
    }
    runs
}

/// A million rows that came within a minute were not counted yet.
#[tokio::test(flavor = "multi_thread")]
async fn no_large_table_is_sorted_or_read_whole_for_a_piece_of_it() {
    let settings = [
        ("shared_preload_libraries", "auto_explain"),
        ("auto_explain.log_min_duration", "0"),
        ("autovacuum", "off"),
    ];
    let Some(postgres) = Postgres::start_with(&settings).await else {
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
    for Run { statement, plan } in runs(&log) {
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
