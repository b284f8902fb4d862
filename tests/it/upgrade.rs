//! Ledgers of earlier versions under the present program.

use std::path::Path;

use cohort_bridge::calls::Calls;
use cohort_bridge::roster::Roster;
use cohort_bridge::store::{DeadLetterFilter, Store};
use rusqlite::{Connection, params};

use crate::support::fast_temp_dir;
use crate::support::ledger::{Ledger, START, member};
use crate::support::resyncs::bring_up_all;

const VERSION_1: &str = include_str!("../../src/store/migrations/sqlite/0001_ledger.sql");
const VERSION_2: &str = include_str!("../../src/store/migrations/sqlite/0002_exact_membership.sql");

const VERSIONS_3_TO_7: [&str; 5] = [
    include_str!("../../src/store/migrations/sqlite/0003_express_lane.sql"),
    include_str!("../../src/store/migrations/sqlite/0004_unproven.sql"),
    include_str!("../../src/store/migrations/sqlite/0005_runs_in_a_window.sql"),
    include_str!("../../src/store/migrations/sqlite/0006_routes.sql"),
    include_str!("../../src/store/migrations/sqlite/0007_calls.sql"),
];

/// A page's people as version 1 wrote them.
fn roster(identifiers: &[&str]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for identifier in identifiers {
        let mut length = identifier.len();
        while length >= 0x80 {
            bytes.push((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        bytes.push(length as u8);
        bytes.extend_from_slice(identifier.as_bytes());
    }
    bytes
}

/// Whom a page of version 1 names, and where it stands.
struct OldPage<'a> {
    seq: i64,
    cohort: &'a str,
    action: &'a str,
    session: &'a str,
    at: (u32, u32),
    people: &'a [&'a str],
}

fn insert_page(connection: &Connection, page: OldPage<'_>) {
    use sha2::{Digest, Sha256};
    let roster = roster(page.people);
    connection
        .execute(
            "INSERT INTO inbox (seq, source, project_id, cohort_id, cohort_name, action, session_id, page, total_pages, received_at, fingerprint, roster)
             VALUES (?1, 'default', '1', ?2, NULL, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
            params![
                page.seq,
                page.cohort,
                page.action,
                page.session,
                page.at.0,
                page.at.1,
                START,
                &Sha256::digest(&roster)[..16],
                roster
            ],
        )
        .unwrap();
}

/// Cohort 7: ann and bob are members, cyd left; bob's trait is not delivered yet, dan's never will
/// be. Of a full sync one page of two is there. Cohort 8: a full sync is whole and not applied.
fn write_version_1(path: &Path, long: &str) {
    let connection = Connection::open(path).unwrap();
    connection.execute_batch(VERSION_1).unwrap();
    connection.pragma_update(None, "user_version", 1).unwrap();
    connection
        .execute_batch(&format!(
            "INSERT INTO meta VALUES ('taken_through', 3), ('brought_up:default', {START} - 99);
             INSERT INTO destination VALUES (1, 'default');
             INSERT INTO cohort VALUES (1, 'default', '1', '7', 'seven', 'old_key', {START}, 3, 1);
             INSERT INTO cohort VALUES (2, 'default', '1', '8', 'eight', 'other_key', {START}, 1, 0);
             INSERT INTO member VALUES (1, 'ann', 1), (1, 'bob', 1), (1, 'cyd', 0), (1, 'dan', 1), (2, 'old', 1);
             INSERT INTO pending (destination, identifier, cohort, member, told, since) VALUES (1, 'bob', 1, 1, NULL, {START});
             INSERT INTO backlog VALUES (1, 1, 1, {START} / 1000, 1);
             INSERT INTO dead_letter (destination, identifier, cohort, member, since, error) VALUES (1, 'dan', 1, 1, {START}, '400');
             INSERT INTO session VALUES (1, 1, 'members', 'first', 3, 0, 1, {START} - 9, {START}, NULL);
             INSERT INTO session VALUES (2, 1, 'members', 'open', 0, 0, 2, {START}, NULL, NULL);
             INSERT INTO session VALUES (3, 2, 'members', 'whole', 1, 0, 1, {START}, {START}, NULL);
             INSERT INTO session VALUES (4, 2, 'add_members', 'half', 0, 1, 2, {START}, NULL, NULL);"
        ))
        .unwrap();
    for (seq, cohort, action, session, at, people) in [
        (1, "7", "members", "open", (1, 2), &["ann", long][..]),
        (2, "8", "members", "whole", (1, 1), &["eve"]),
        (3, "8", "add_members", "half", (1, 2), &["fay"]),
        (4, "7", "members", "open", (2, 2), &["bob"]),
    ] {
        insert_page(
            &connection,
            OldPage {
                seq,
                cohort,
                action,
                session,
                at,
                people,
            },
        );
    }
    connection
        .execute_batch(
            "INSERT INTO session_page SELECT 2, 1, fingerprint, seq FROM inbox WHERE seq = 1;
             INSERT INTO session_page SELECT 3, 1, fingerprint, seq FROM inbox WHERE seq = 2;
             INSERT INTO session_page SELECT 4, 1, fingerprint, seq FROM inbox WHERE seq = 3;",
        )
        .unwrap();
}

fn upgraded(long: &str) -> Ledger {
    let folder = fast_temp_dir();
    write_version_1(&folder.path().join("ledger.db"), long);
    Ledger::over(folder, Default::default(), None)
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_known_is_kept() {
    let ledger = upgraded("long");
    let cohorts = ledger.store().cohorts().await.unwrap();
    let seven = &cohorts[0];
    assert_eq!((seven.members, seven.left), (3, 1));
    assert_eq!(&*seven.trait_key, "old_key");
    assert_eq!(seven.needs_full_sync, None);
    assert_eq!(seven.session.as_ref().unwrap().id, "open");
    let delivery = &seven.destinations[0];
    assert_eq!((delivery.pending, delivery.dead), (1, 1));
    assert!(!delivery.ready, "bob is still to be delivered");
    assert_eq!(ledger.trait_of("ann").await, Some(true));
    assert_eq!(ledger.trait_of("bob").await, None);
    assert_eq!(ledger.trait_of("cyd").await, Some(false));
    let letters = ledger.store().dead_letters(10).await.unwrap();
    assert_eq!(letters.len(), 1);
    assert_eq!(
        (&*letters[0].identifier, &*letters[0].trait_key),
        ("dan", "old_key")
    );
    let all = DeadLetterFilter::default();
    assert_eq!(
        ledger.store().retry_dead_letters(all, START).await.unwrap(),
        1
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destination_that_was_being_brought_up_is_so_still() {
    let folder = fast_temp_dir();
    let path = folder.path().join("ledger.db");
    write_version_1(&path, "long");
    let connection = Connection::open(&path).unwrap();
    let deleted = connection.execute("DELETE FROM meta WHERE key = 'brought_up:default'", []);
    assert_eq!(deleted, Ok(1));
    drop(connection);
    let ledger = Ledger::over(folder, Default::default(), None);
    // Nothing is known of what it holds, but that it was told of dan in vain.
    assert_eq!(ledger.trait_of("ann").await, None);
    let now = START + 1_000;
    while ledger.store().follow_routes(1, now).await.unwrap() {}
    let cohorts = ledger.store().cohorts().await.unwrap();
    let pending: Vec<_> = cohorts
        .iter()
        .map(|cohort| (cohort.destinations[0].pending, cohort.destinations[0].dead))
        .collect();
    assert_eq!(pending, [(4, 0), (1, 0)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_are_counted_from_then_on() {
    let ledger = upgraded("long");
    let mut calls = Calls::new(Some(1_000), START);
    let order = calls.order(START).unwrap();
    let counted = ledger
        .store()
        .count_calls(&"default".into(), order, START)
        .await
        .unwrap();
    assert_eq!((counted.calls, counted.leased), (5, 5));
    assert_eq!(counted.since, START);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waited_before_can_be_paused_and_resumed() {
    let ledger = upgraded("long");
    let (store, source, name) = (ledger.store(), "default".into(), "default".into());
    let due = async || {
        while store.follow_pauses(1).await.unwrap() {}
        let claims = store.exchange(&name, Vec::new(), None, 9, START);
        claims.await.unwrap().claims.len()
    };
    for (pauses, claims) in [(true, 0), (false, 1)] {
        let paused = store.pause_cohort(&source, "7", pauses, START).await;
        assert_eq!(paused.unwrap(), Some(1), "bob");
        assert_eq!(store.cohorts().await.unwrap()[0].paused, pauses);
        assert_eq!(due().await, claims);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_pages_take_effect() {
    // More than 127 bytes: its number took two.
    let long = "long".repeat(40);
    let ledger = upgraded(&long);
    ledger.settle().await;
    assert_eq!(
        ledger
            .with_trait(&["ann", "bob", "cyd", "dan", "eve", "fay", "old", &long])
            .await,
        format!("ann bob eve {long}")
    );
    assert_eq!(ledger.trait_of("old").await, Some(false));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_the_upgrade_interrupts_goes_on() {
    let ledger = upgraded("long");
    ledger.settle().await;
    let half = |number, people: &'static str| {
        let ledger = &ledger;
        async move {
            let page = serde_json::json!({
                "action": "add_members",
                "parameters": {
                    "mixpanel_project_id": "1", "mixpanel_cohort_id": "8",
                    "mixpanel_cohort_name": "eight", "mixpanel_session_id": "half",
                    "page_info": {"total_pages": 2, "page_count": number},
                    "members": [member(people)],
                }
            });
            let rules = Default::default();
            let body = page.to_string();
            let page = cohort_bridge::mixpanel::parse(body.as_bytes(), &rules)
                .unwrap()
                .page;
            ledger
                .store()
                .append(&"default".into(), page, START + 1_000)
                .await
                .unwrap();
            ledger.settle().await;
        }
    };
    // Page 1 again, as it was: it is known by its fingerprint.
    half(1, "fay").await;
    half(2, "gil").await;
    assert_eq!(
        ledger.with_trait(&["eve", "fay", "gil"]).await,
        "eve fay gil"
    );
}

/// Of version 2: a hundred join, and behind them all one leaves.
#[tokio::test(flavor = "multi_thread")]
async fn who_waited_to_leave_waits_no_longer_behind_all_others() {
    let folder = fast_temp_dir();
    let connection = Connection::open(folder.path().join("ledger.db")).unwrap();
    connection
        .execute_batch(&format!(
            "{VERSION_1}; {VERSION_2};
             PRAGMA user_version = 2;
             INSERT INTO destination VALUES (1, 'default');
             INSERT INTO trait VALUES (1, 'seven', 1);
             INSERT INTO cohort (id, source, project_id, cohort_id, name, trait, identified_by, last_heard_at)
                 VALUES (1, 'default', '1', '7', 'seven', 1, '', {START});
             WITH RECURSIVE number (n) AS (VALUES (0) UNION ALL SELECT n + 1 FROM number WHERE n < 99)
             INSERT INTO pending (destination, identifier, trait, wanted, told, since)
                 SELECT 1, format('ann%02d', n), 1, 1, 0, {START} FROM number;
             INSERT INTO pending (destination, identifier, trait, wanted, told, since) VALUES (1, 'zoe', 1, 0, 1, {START});
             INSERT INTO backlog VALUES (1, 1, 1, {START} / 1000, 100), (1, 1, 0, {START} / 1000, 1);"
        ))
        .unwrap();
    drop(connection);
    let ledger = Ledger::over(folder, Default::default(), None);
    let name = "default".into();
    let claims = ledger
        .store()
        .exchange(&name, Vec::new(), None, 4, START)
        .await
        .unwrap()
        .claims;
    let called: Vec<_> = claims.iter().map(|claim| &*claim.identifier).collect();
    assert_eq!(called, ["zoe", "ann00", "ann01", "ann02"]);
}

/// Of version 2: an accepted run that added ann, and began again under its ids, which is held against
/// it; the next run names somebody else.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_was_doubted_is_still() {
    let folder = fast_temp_dir();
    let connection = Connection::open(folder.path().join("ledger.db")).unwrap();
    connection
        .execute_batch(&format!(
            "PRAGMA foreign_keys = OFF; {VERSION_1}; {VERSION_2};
             PRAGMA user_version = 2;
             INSERT INTO destination VALUES (1, 'default');
             INSERT INTO trait VALUES (1, 'seven', 1);
             INSERT INTO source (name, sends_empty_halves, heard_at, awake_since) VALUES ('default', 1, {START}, {START});
             INSERT INTO cohort (id, source, project_id, cohort_id, name, trait, identified_by, last_heard_at, first_applied_at,
                                 members, run, run_heard_at, resumed_at, run_began_at, accepted_run, is_doubted)
                 VALUES (1, 'default', '1', '7', 'seven', 1, '', {START}, {START}, 1, 2, {START}, {START}, {START}, 1, 1);
             INSERT INTO member VALUES (1, 'ann', x'', 1);
             INSERT INTO session (id, cohort, action, session_id, state, effect, total_pages, heard_at, completed_at, run, began_at, whole_at_seq)
                 VALUES (1, 1, 'add_members', 'a', 4, 3, 1, {START}, {START}, 1, {START}, 1),
                        (2, 1, 'remove_members', 'r', 4, 4, 1, {START}, {START}, 1, {START}, 2);
             INSERT INTO session_page (session, page, fingerprint, inbox_seq, heard_at) VALUES (1, 1, x'00', 1, {START}), (2, 1, x'01', 2, {START});"
        ))
        .unwrap();
    for (seq, action, people) in [(1, "add_members", &["ann"][..]), (2, "remove_members", &[])] {
        let roster = Roster::of_identifiers(people.iter().copied());
        connection
            .execute(
                "INSERT INTO inbox (seq, source, project_id, cohort_id, action, session_id, page, total_pages, received_at, fingerprint, roster)
                 VALUES (?1, 'default', '1', '7', ?2, 'a', 1, 1, ?3, x'00', ?4)",
                params![seq, action, START, roster.as_bytes()],
            )
            .unwrap();
    }
    connection
        .execute_batch("INSERT INTO meta VALUES ('taken_through', 2)")
        .unwrap();
    drop(connection);
    let ledger = Ledger::over(folder, Default::default(), None);
    ledger.run("b", &[member("bob")], &[]).await;
    assert_eq!(ledger.with_trait(&["ann", "bob"]).await, "bob");
    let runs = ledger.cohort().await.runs;
    assert_eq!((runs.accepted, runs.undone), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_after_the_upgrade_is_kept_until_it_is_proved() {
    let ledger = upgraded("long");
    ledger.settle().await;
    let destination = "default".into();
    let store = ledger.store();
    let mark = store.unproven_through(&destination).await.unwrap();
    assert!(mark > 0);
    let doubted = store.doubt(&destination, START).await.unwrap();
    assert!(doubted > 0);
    assert_eq!(store.doubt(&destination, START).await.unwrap(), 0);
}

/// Of version 7: everything is being written again, and is in the middle of the second cohort.
#[tokio::test(flavor = "multi_thread")]
async fn everything_that_was_being_written_again_is_from_where_it_stood() {
    let folder = fast_temp_dir();
    let connection = Connection::open(folder.path().join("ledger.db")).unwrap();
    let versions = [VERSION_1, VERSION_2].into_iter().chain(VERSIONS_3_TO_7);
    for version in versions {
        connection.execute_batch(version).unwrap();
    }
    connection
        .execute_batch(
            r#"PRAGMA user_version = 7;
             INSERT INTO destination (id, name) VALUES (1, 'default'), (2, 'elsewhere');
             INSERT INTO meta VALUES ('rewrite:default', '{"cohort":2,"after":"bob"}');"#,
        )
        .unwrap();
    for cohort in 1..=3 {
        connection
            .execute_batch(&format!(
                "INSERT INTO trait VALUES ({cohort}, 'key {cohort}', {cohort});
                 INSERT INTO cohort (id, source, project_id, cohort_id, name, trait, identified_by, last_heard_at, members, leavers)
                     VALUES ({cohort}, 'default', '1', '{cohort}', '', {cohort}, '', {START}, 2, 1);
                 INSERT INTO member VALUES ({cohort}, 'ann', x'', 1), ({cohort}, 'bob', x'', 1), ({cohort}, 'cyd', x'', 0);
                 INSERT INTO route (cohort, destination, is_wanted, state, since) VALUES ({cohort}, 1, 1, 2, 0);"
            ))
            .unwrap();
    }
    drop(connection);
    let ledger = Ledger::over(folder, Default::default(), None);
    let name = "default".into();
    bring_up_all(&**ledger.store(), &name, START).await;
    let claims = ledger
        .store()
        .exchange(&name, Vec::new(), None, 10, START)
        .await
        .unwrap()
        .claims;
    let written: Vec<_> = claims
        .iter()
        .map(|claim| {
            let keys = claim.traits.iter().map(|claimed| &*claimed.trait_key);
            (&*claim.identifier, keys.collect::<Vec<_>>())
        })
        .collect();
    assert_eq!(
        written,
        [
            ("ann", vec!["key 3"]),
            ("bob", vec!["key 3"]),
            ("cyd", vec!["key 2", "key 3"]),
        ]
    );
}
