//! The inbox that replicas share: its order, and pages whose sender goes away.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::TcpStream;
use std::sync::Arc;

use base64::Engine;
use cohort_bridge::cohort::Action::AddMembers;
use cohort_bridge::store::Store;
use serde_json::json;
use tokio::task::JoinSet;

use super::lease::{open, somebody_waits};
use super::variables;
use crate::support::bench::{START, page};
use crate::support::eventually;
use crate::support::pages::{key, page_without_info};
use crate::support::postgres::{Postgres, connected};
use crate::support::process::Process;
use crate::support::service::{PASSWORD, USER, client, stand_in};
use crate::support::stores::source;

const SENDERS: usize = 16;
const PAGES: u32 = 40;

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_two_replicas_become_visible_in_the_order_of_their_numbers() {
    let Some(postgres) = Postgres::shared().await else {
        return;
    };
    let database = postgres.fresh_database().await;
    let stores = [open(database.url()).await, open(database.url()).await];
    // A while between a number and the moment at which it can be seen.
    let slow = "CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS
                'BEGIN PERFORM pg_sleep(random() * 0.004); RETURN NULL; END';
                CREATE TRIGGER dawdle AFTER INSERT ON inbox FOR EACH STATEMENT EXECUTE FUNCTION dawdle()";
    connected(database.url())
        .await
        .batch_execute(slow)
        .await
        .unwrap();
    let mut sending = JoinSet::new();
    for sender in 0..SENDERS {
        let store = Arc::clone(&stores[sender % 2]);
        let other = Arc::clone(&stores[(sender + 1) % 2]);
        sending.spawn(async move {
            let cohort = sender.to_string();
            for number in 1..=PAGES {
                // Each waits for the one before, and may go to the other replica.
                let store = if fastrand::bool() { &store } else { &other };
                let one = page(AddMembers, &cohort, "s", (number, PAGES), &["ann"]);
                store.append(&source(), one, START).await.unwrap();
            }
        });
    }
    let reader = connected(database.url()).await;
    let all = "SELECT seq, cohort_id, page::BIGINT FROM inbox ORDER BY seq";
    let mut seen: BTreeMap<i64, (String, i64)> = BTreeMap::new();
    let mut looks = 0;
    loop {
        let done = sending.try_join_next().is_none() && sending.is_empty();
        let rows = reader.query(all, &[]).await.unwrap();
        let last = seen.keys().next_back().copied().unwrap_or(0);
        for row in &rows {
            let seq: i64 = row.get(0);
            let is_new = seen.insert(seq, (row.get(1), row.get(2))).is_none();
            assert!(!is_new || seq > last, "{seq} came to light after {last}");
        }
        looks += 1;
        if done {
            break;
        }
    }
    assert!(looks > 5, "{looks} looks");
    assert_eq!(seen.len(), SENDERS * PAGES as usize);
    let mut pages: BTreeMap<&str, Vec<i64>> = BTreeMap::new();
    for (cohort, page) in seen.values() {
        pages.entry(cohort).or_default().push(*page);
    }
    let in_order: Vec<_> = (1..=i64::from(PAGES)).collect();
    assert!(pages.values().all(|pages| *pages == in_order), "{pages:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_is_written_down_though_its_sender_goes_away_meanwhile() {
    let Some(postgres) = Postgres::shared().await else {
        return;
    };
    let database = postgres.fresh_database().await;
    let stand_in = stand_in();
    let service = Process::serve(&variables(database.url(), &stand_in, &[])).await;
    let observer = connected(database.url()).await;
    for (round, person) in ["ann", "bob", "cid"].into_iter().enumerate() {
        let barrier = connected(database.url()).await;
        barrier
            .batch_execute("BEGIN; LOCK TABLE inbox IN EXCLUSIVE MODE")
            .await
            .unwrap();
        let page = page_without_info("add_members", "c", &[person]).to_string();
        let pair = base64::engine::general_purpose::STANDARD.encode(format!("{USER}:{PASSWORD}"));
        let mut sender = TcpStream::connect(service.webhook).unwrap();
        let head = format!(
            "POST /webhooks/mixpanel HTTP/1.1\r\nHost: x\r\nAuthorization: Basic {pair}\r\nContent-Length: {}\r\n\r\n",
            page.len()
        );
        sender.write_all(head.as_bytes()).unwrap();
        sender.write_all(page.as_bytes()).unwrap();
        somebody_waits(&observer).await;
        drop(sender);
        barrier.batch_execute("ROLLBACK").await.unwrap();
        let told = |person: &str| {
            let traits = stand_in.identity(person).unwrap_or_default();
            traits.get(&key("c")) == Some(&json!(true))
        };
        eventually("it was taken in", async || told(person).then_some(())).await;

        // And the next one.
        let next = format!("next-{round}");
        let page = page_without_info("add_members", "c", &[&next]).to_string();
        let request = client().post(service.webhook_url());
        let request = request.basic_auth(USER, Some(PASSWORD)).body(page);
        assert_eq!(request.send().await.unwrap().status(), 200);
        eventually("the next one too", async || told(&next).then_some(())).await;
    }
}
