//! Trait keys that the settings give.

use std::collections::BTreeMap;

use cohort_bridge::cohort::Target;
use cohort_bridge::store::StoreError;
use cohort_bridge::trait_key::ExplicitKey;

use super::{names, odd};
use crate::support::bench::changes;
use crate::support::stores::{Stores, callees};

fn give(stores: &mut Stores, keys: &[(&str, &str)]) {
    let keys = keys.iter().map(|(cohort, key)| ExplicitKey {
        project_id: None,
        cohort_id: (*cohort).into(),
        trait_key: (*key).into(),
    });
    stores.rules.sources[0].explicit_keys = keys.collect();
}

async fn keys(stores: &Stores) -> BTreeMap<String, String> {
    let cohorts = stores.store().cohorts().await.unwrap().into_iter();
    cohorts
        .map(|cohort| (cohort.cohort_id, cohort.trait_key.to_string()))
        .collect()
}

fn expect(keys: &[(&str, &str)]) -> BTreeMap<String, String> {
    let keys = keys.iter();
    keys.map(|(cohort, key)| ((*cohort).into(), (*key).into()))
        .collect()
}

pub async fn keys_of_the_settings_are_adopted(stores: &mut Stores) {
    let everybody = odd();
    let all = names(&everybody);
    give(stores, &[("c", "vip '\\ é"), ("d", "VIP '\\ é")]);
    stores.reopen().await;
    stores.full("c", "s", &all).await;
    stores.full("d", "s", &all[..1]).await;
    let before = expect(&[("c", "vip '\\ é"), ("d", "VIP '\\ é")]);
    assert_eq!(keys(stores).await, before);
    assert_eq!(stores.deliver().await.len(), all.len());

    // They change places.
    give(stores, &[("c", "VIP '\\ é"), ("d", "vip '\\ é")]);
    stores.reopen().await;
    let after = expect(&[("c", "VIP '\\ é"), ("d", "vip '\\ é")]);
    assert_eq!(keys(stores).await, after);
    let calls = stores.deliver().await;
    assert_eq!(callees(&calls), all[1..], "the first is in both");
    for call in &calls {
        let both = [
            ("VIP '\\ é".to_owned(), Target::True),
            ("vip '\\ é".to_owned(), Target::False),
        ];
        assert_eq!(changes(call), both.into(), "{}", call.identifier);
    }
    // Once more changes nothing, nor does a start.
    stores.store().adopt_keys(stores.now()).await.unwrap();
    stores.reopen().await;
    assert_eq!(keys(stores).await, after);
    assert!(stores.deliver().await.is_empty());
    assert_eq!(stores.cohort("c").await.members, all.len() as u64);
}

pub async fn a_key_that_somebody_keeps_is_not_given(stores: &mut Stores) {
    stores.full("c", "s", &["ann"]).await;
    stores.deliver().await;
    let before = keys(stores).await;
    let taken = before["c"].clone();
    give(stores, &[("other", &taken)]);
    stores.kill();
    for _ in 0..2 {
        let opened = stores.open().await;
        let Err(StoreError::KeyTaken {
            key,
            cohort,
            holder,
        }) = opened
        else {
            panic!("{opened:?}");
        };
        assert_eq!(key, taken);
        assert!(cohort.contains("other"), "{cohort}");
        assert!(holder.contains('c'), "{holder}");
        let again = stores.store().adopt_keys(stores.now()).await;
        assert!(
            matches!(again, Err(StoreError::KeyTaken { .. })),
            "{again:?}"
        );
        stores.kill();
    }
    give(stores, &[("other", &taken), ("c", "own")]);
    stores.open().await.unwrap();
    assert_eq!(keys(stores).await, expect(&[("c", "own")]));
    stores.full("other", "s", &["bob"]).await;
    assert_eq!(
        keys(stores).await,
        expect(&[("c", "own"), ("other", &taken)])
    );
}
