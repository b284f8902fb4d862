//! A store from its opening to its end.

use std::sync::Arc;

use cohort_bridge::cohort::Action::AddMembers;
use cohort_bridge::store::StoreError;

use crate::support::bench::page;
use crate::support::eventually;
use crate::support::stores::{Stores, source};

pub async fn a_ledger_has_a_name_and_a_key_of_its_own(stores: &mut Stores) {
    let own = |stores: &Stores| {
        let store = stores.store();
        (store.ledger_id().to_owned(), *store.log_hash_key())
    };
    let first = own(stores);
    assert!(!first.0.is_empty());
    assert!(!first.0.contains(' '), "the canary's value is split there");
    assert_ne!(first.1, [0; 32]);
    stores.reopen().await;
    assert_eq!(own(stores), first);
    stores.store().close().await;
    stores.reopen().await;
    assert_eq!(own(stores), first);
    let other = own(&stores.another().await);
    assert_ne!(other.0, first.0);
    assert_ne!(other.1, first.1);
}

/// Alone with a ledger that is not shared, and in turn with one that is.
pub async fn one_process_at_a_time_folds(stores: &mut Stores) {
    let term = stores.term();
    let store = Arc::clone(stores.store());
    let folds = async || store.assemble(1, 1, stores.now()).await;
    folds().await.unwrap();
    assert!(!term.ended().is_cancelled());
    if !store.is_shared() {
        let second = stores.beside().await.map(drop);
        assert!(
            matches!(second, Err(StoreError::InUse { .. })),
            "{second:?}"
        );
        assert!(!term.news().has_changed().unwrap_or(false));
        return;
    }
    let second = stores.beside().await.unwrap();
    assert!(second.is_shared());
    let mut news = term.news();
    news.mark_unchanged();
    let told = page(AddMembers, "c", "s", (1, 1), &["ann"]);
    second.append(&source(), told, stores.now()).await.unwrap();
    eventually("the leader is told", async || {
        news.has_changed().unwrap().then_some(())
    })
    .await;
    let not_theirs = second.assemble(1, 1, stores.now()).await;
    assert!(
        matches!(not_theirs, Err(StoreError::NotLeading)),
        "{not_theirs:?}"
    );
    drop((store, term));
    stores.kill();
    stores.expire_lease().await;
    second.lead().await.unwrap();
    let taken = second.assemble(1, 1, stores.now()).await.unwrap();
    assert_eq!(taken.pages, 1);
}

pub async fn a_store_is_ready_until_it_is_closed(stores: &mut Stores) {
    let store = Arc::clone(stores.store());
    store.ready().await.unwrap();
    store.ready().await.unwrap();
    assert_eq!(store.waiting_pages().await.unwrap(), 0);
    store.close().await;
    let ready = store.ready().await;
    assert!(matches!(ready, Err(StoreError::Closed)), "{ready:?}");
    drop((store, ready));
    stores.reopen().await;
    stores.store().ready().await.unwrap();
}

/// What returned is there, what did not is there or not, and nothing is taken after the end.
pub async fn what_was_begun_is_finished_before_the_end(stores: &mut Stores) {
    let store = Arc::clone(stores.store());
    let now = stores.now();
    let mut appending = Vec::new();
    for number in 0..50 {
        let store = Arc::clone(&store);
        appending.push(tokio::spawn(async move {
            let one = page(AddMembers, "c", &format!("s{number}"), (1, 1), &["ann"]);
            store.append(&source(), one, now).await
        }));
    }
    appending.remove(0).await.unwrap().unwrap();
    store.close().await;
    let mut taken = 1;
    for append in appending {
        match append.await.unwrap() {
            Ok(()) => taken += 1,
            Err(StoreError::Closed) => {}
            Err(other) => panic!("{other}"),
        }
    }
    let late = page(AddMembers, "c", "late", (1, 1), &["ann"]);
    let late = store.append(&source(), late, now).await;
    assert!(matches!(late, Err(StoreError::Closed)), "{late:?}");
    // Once more changes nothing.
    store.close().await;
    drop((store, late));
    stores.reopen().await;
    assert_eq!(stores.store().waiting_pages().await.unwrap(), taken);
}
