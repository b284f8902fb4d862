//! What may have happened to a ledger before it is moved.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use cohort_bridge::calls::CallOrder;
use cohort_bridge::canary::CanaryMemory;
use cohort_bridge::cohort::Action;
use cohort_bridge::guard::RemovalGuard;
use cohort_bridge::month::Month;
use cohort_bridge::store::{HoldDecision, Outcome, ResyncScope, Settlement};
use rusqlite::Connection;

use crate::support::bench::page;
use crate::support::resyncs;
use crate::support::stores::{Stores, dead, destination, done, everywhere, retry, source};

const COHORTS: [&str; 3] = ["7", "8", "9"];

/// Names in whose order databases differ.
const NAMES: [&str; 8] = ["Z", "a", "a b", "é", "_", "\\x41", "😀", "\u{ff21}"];

fn everybody() -> Vec<String> {
    let numbered = |name: &&str| (0..4).map(|n| format!("{name}{n}")).collect::<Vec<_>>();
    NAMES.iter().flat_map(numbered).collect()
}

/// With what the sessions of a history begin that comes after a move.
const AFTERWARDS: &str = "then ";

/// A history by dice; the same for the same seed.
pub async fn history(stores: &mut Stores, seed: u64) {
    steps(stores, seed, "").await;
}

/// One that comes after a move.
pub async fn later_history(stores: &mut Stores, seed: u64) {
    steps(stores, seed, AFTERWARDS).await;
}

async fn steps(stores: &mut Stores, seed: u64, when: &str) {
    stores.rules.sources[0].hold_removals_above = Some(RemovalGuard::parse("6").unwrap());
    if stores.rules.destinations.len() == 1 {
        stores.rules.destinations.push(destination("second"));
    }
    stores.reopen().await;
    let mut dice = fastrand::Rng::with_seed(seed);
    for number in 0..70 {
        step(stores, &mut dice, &format!("{when}{seed}-{number}")).await;
        let passed = dice.u64(0..1_200);
        stores.wait(Duration::from_secs(passed));
    }
}

async fn step(stores: &Stores, dice: &mut fastrand::Rng, session: &str) {
    let everybody = everybody();
    let size = dice.usize(1..12);
    let people: Vec<&str> = dice
        .choose_multiple(&everybody, size)
        .into_iter()
        .map(String::as_str)
        .collect();
    let cohort = COHORTS[dice.usize(0..COHORTS.len())];
    let (store, now) = (stores.store(), stores.now());
    let (source, second) = (source(), "second".into());
    match dice.u8(0..18) {
        0 | 1 => stores.full(cohort, session, &people).await,
        2 => {
            stores
                .half(Action::AddMembers, cohort, session, &people)
                .await;
        }
        3 => {
            stores
                .half(Action::RemoveMembers, cohort, session, &people)
                .await;
        }
        4 => {
            let half = page(Action::AddMembers, cohort, session, (1, 2), &people);
            stores.take(half).await;
        }
        5 => {
            let waits = page(Action::Members, cohort, session, (1, 1), &people);
            stores.append(waits).await;
        }
        6 => drop(stores.claim().await),
        7..=9 => {
            let name = ["default", "second"][dice.usize(0..2)];
            // All there are: which of several that waited equally long come first nobody promises.
            let claims = stores.exchange_at(name, Vec::new(), None, 10_000).await;
            let dice = dice.u64(..);
            let settle = claims.claims.into_iter().map(|claim| Settlement {
                outcome: outcome(&claim.identifier, dice, now),
                claim,
            });
            let settle = settle.collect();
            stores.exchange_at(name, settle, None, 0).await;
        }
        10 => {
            let pauses = dice.bool();
            let paused = store.pause_cohort(&source, cohort, pauses, now);
            paused.await.unwrap();
            while store.follow_pauses(100).await.unwrap() {}
        }
        11 => {
            let scope = match dice.bool() {
                true => resyncs::cohort_at(cohort, None),
                false => ResyncScope::Destination(everywhere()),
            };
            let rate = dice.bool().then_some(0.3);
            resyncs::order(&**store, scope, rate, now).await;
        }
        12 => drop(store.forget(people[0], dice.bool(), now).await.unwrap()),
        13 => drop(store.retire(&source, cohort, now).await.unwrap()),
        14 => {
            let decision = match dice.bool() {
                true => HoldDecision::Approve,
                false => HoldDecision::Discard,
            };
            let decided = store.decide_held(&source, cohort, decision, now);
            decided.await.unwrap();
        }
        15 => {
            let pauses = dice.bool();
            let paused = store.pause_destination(&second, pauses, now);
            paused.await.unwrap();
        }
        16 => stores.prove().await,
        _ => notes(stores, dice, cohort, session).await,
    }
}

/// What becomes of a person's call, in whatever order they are made.
fn outcome(person: &str, dice: u64, now: i64) -> Outcome {
    let name = person
        .bytes()
        .fold(dice, |sum, byte| sum.wrapping_add(byte.into()));
    match fastrand::Rng::with_seed(name).u8(0..5) {
        0 => dead("400"),
        1 => retry(now + 5_000, true),
        2 => Outcome::Unsent,
        _ => done(),
    }
}

/// What is remembered beside people.
async fn notes(stores: &Stores, dice: &mut fastrand::Rng, cohort: &str, session: &str) {
    let (store, now) = (stores.store(), stores.now());
    store.note_property(&source(), "e-mäil").await.unwrap();
    let refused = page(Action::AddMembers, cohort, session, (2, 2), &["ann"]);
    // Written down some time soon: not where another ledger is to come to the same meanwhile.
    if !session.starts_with(AFTERWARDS) {
        store.note_refused(&source(), &refused, now);
    }
    let memory = CanaryMemory {
        number: dice.u64(1..99),
        others: vec!["other".to_owned()],
        settings: "\"é\"".to_owned(),
        ..Default::default()
    };
    let name = everywhere();
    store.remember_canary(&name, memory).await.unwrap();
    let order = CallOrder {
        month: Month::of(now),
        add: 3,
        lease: 5,
        budget: Some(1_000),
    };
    store.count_calls(&name, order, now).await.unwrap();
}

/// All that a ledger shows.
pub async fn snapshot(stores: &Stores) -> String {
    let store = stores.store();
    let mut text = format!("{} {:?}\n", store.ledger_id(), store.log_hash_key());
    let mut show = |what: &dyn std::fmt::Debug| writeln!(text, "{what:?}").unwrap();
    show(&store.cohorts().await.unwrap());
    show(&store.waiting_pages().await.unwrap());
    // Those that are equally old come in any order.
    let mut letters = store.dead_letters(1_000).await.unwrap();
    letters.sort_by_key(|letter| format!("{letter:?}"));
    show(&letters);
    show(&store.resyncs().await.unwrap());
    show(&store.paused_destinations().await.unwrap());
    show(&store.unwritten(Month::of(stores.now())).await.unwrap());
    show(&store.canary_memory(&everywhere()).await.unwrap());
    let source = source();
    show(&store.has_sent_property(&source, "e-mäil").await.unwrap());
    let mut people = BTreeMap::new();
    for person in everybody() {
        people.insert(person.clone(), stores.member(&person).await);
    }
    show(&people);
    text
}

/// Puts something into each table of a closed ledger in which nothing is, and many members into one.
pub fn everything(file: &Path, members: u32) {
    let connection = Connection::open(file).unwrap();
    let names = {
        let sql =
            "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'";
        let mut statement = connection.prepare(sql).unwrap();
        let names = statement.query_map([], |row| row.get(0)).unwrap();
        names.map(Result::unwrap).collect::<Vec<String>>()
    };
    for name in names {
        let any = format!("SELECT 1 FROM \"{name}\"");
        if connection.prepare(&any).unwrap().exists([]).unwrap() {
            continue;
        }
        let sql = "SELECT type FROM pragma_table_info(?1) ORDER BY cid";
        let mut statement = connection.prepare(sql).unwrap();
        let types = statement
            .query_map([&name], |row| row.get::<_, String>(0))
            .unwrap();
        let values = types.map(|of| match &*of.unwrap() {
            "INTEGER" => "7",
            "REAL" => "0.1",
            "TEXT" => "'\u{1}é\u{10ffff}'",
            "BLOB" => "x'00ff27'",
            other => panic!("{other}"),
        });
        let values: Vec<&str> = values.collect();
        let insert = format!("INSERT INTO \"{name}\" VALUES ({})", values.join(", "));
        connection.execute_batch(&insert).unwrap();
    }
    connection
        .execute_batch(&format!(
            "WITH RECURSIVE number (n) AS (VALUES (0) UNION ALL SELECT n + 1 FROM number WHERE n < {members})
             INSERT INTO member SELECT 1, format('many %06d', n), x'', 1 FROM number;"
        ))
        .unwrap();
    connection.close().unwrap();
}
