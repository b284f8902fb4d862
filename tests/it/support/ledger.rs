//! The ledger alone, with pages as Mixpanel sends them and a destination that takes everything.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cohort_bridge::clock::{Clock, ManualClock, Millis};
use cohort_bridge::cohort::{DestinationName, SourceName};
use cohort_bridge::fold::{Fold, Step};
use cohort_bridge::guard::RemovalGuard;
use cohort_bridge::mixpanel::{self, IdentifierRules, SetAside};
use cohort_bridge::store::LedgerStore;
use cohort_bridge::store::{
    CohortView, DestinationRules, HoldDecision, Outcome, Settlement, SourceRules, Store,
};
use serde_json::{Value, json};

use super::{fast_temp_dir, open_ledger};

/// When every ledger begins.
pub const START: Millis = 1_800_000_000_000;

/// A ledger in a folder of its own, with one cohort, `7`.
pub struct Ledger {
    folder: tempfile::TempDir,
    source: SourceRules,
    rules: IdentifierRules,
    pub clock: ManualClock,
    store: Option<Arc<LedgerStore>>,
}

/// A member known by the distinct id alone.
pub fn member(distinct_id: &str) -> Value {
    json!({"mixpanel_distinct_id": distinct_id})
}

impl Ledger {
    pub fn new(rules: IdentifierRules, guard: Option<&str>) -> Self {
        Ledger::over(fast_temp_dir(), rules, guard)
    }

    /// A ledger over the `ledger.db` that the folder may hold.
    pub fn over(folder: tempfile::TempDir, rules: IdentifierRules, guard: Option<&str>) -> Self {
        let mut ledger = Ledger {
            source: SourceRules {
                identified_by: rules.describe(),
                hold_removals_above: guard.map(|text| RemovalGuard::parse(text).unwrap()),
                ..SourceRules::named("default")
            },
            folder,
            rules,
            clock: ManualClock::at(START),
            store: None,
        };
        ledger.restart();
        ledger
    }

    pub fn path(&self) -> PathBuf {
        self.folder.path().join("ledger.db")
    }

    pub fn store(&self) -> &Arc<LedgerStore> {
        self.store.as_ref().unwrap()
    }

    /// Kills and starts again.
    pub fn restart(&mut self) {
        self.store = None;
        let destination = DestinationRules {
            name: destination(),
            on_leave: Default::default(),
            linger_ms: 0,
            late_write_ms: 60_000,
        };
        let path: &Path = &self.path();
        self.store = Some(open_ledger(path, self.source.clone(), destination));
    }

    /// Starts again with other settings.
    pub fn identify_by(&mut self, rules: IdentifierRules) {
        self.source.identified_by = rules.describe();
        self.rules = rules;
        self.restart();
    }

    /// Writes a page down.
    pub async fn page(
        &self,
        action: &str,
        session: &str,
        (number, total): (u32, u32),
        members: &[Value],
    ) {
        let body = json!({
            "action": action,
            "parameters": {
                "mixpanel_project_id": "1",
                "mixpanel_cohort_id": "7",
                "mixpanel_cohort_name": "seven",
                "mixpanel_session_id": session,
                "page_info": {"total_pages": total, "page_count": number},
                "members": members,
            }
        });
        let page = mixpanel::parse(body.to_string().as_bytes(), &self.rules)
            .unwrap()
            .page;
        self.store()
            .append(&SourceName::from("default"), page, self.clock.now())
            .await
            .unwrap();
    }

    /// A session of one page, half an hour after the last, folded and delivered.
    pub async fn session(&self, action: &str, session: &str, members: &[Value]) {
        self.clock.advance(Duration::from_secs(1_800));
        self.page(action, session, (1, 1), members).await;
        self.settle().await;
    }

    /// A run: both its halves.
    pub async fn run(&self, session: &str, joined: &[Value], left: &[Value]) {
        self.session("add_members", session, joined).await;
        self.clock.advance(Duration::from_secs(1));
        self.page("remove_members", session, (1, 1), left).await;
        self.settle().await;
    }

    /// A fold as a new process has it.
    pub fn new_fold(&self) -> Fold {
        let clock: Arc<dyn Clock> = Arc::new(self.clock.clone());
        Fold::new(self.store().clone(), clock)
    }

    /// Folds, with a kill after every `steps` steps; how many there were.
    pub async fn fold_with_kills(&mut self, steps: usize) -> usize {
        let mut kills = 0;
        loop {
            let mut fold = self.new_fold();
            for _ in 0..steps {
                if fold.step().await.unwrap() == Step::Idle {
                    return kills;
                }
            }
            drop(fold);
            self.restart();
            kills += 1;
        }
    }

    /// Folds and delivers all there is.
    pub async fn settle(&self) {
        self.new_fold().run_until_idle().await.unwrap();
        let name = destination();
        let mut settle = Vec::new();
        loop {
            let exchanged = self.store().exchange(
                &name,
                std::mem::take(&mut settle),
                None,
                1_000,
                self.clock.now(),
            );
            let claims = exchanged.await.unwrap().claims;
            if claims.is_empty() {
                return;
            }
            settle.extend(claims.into_iter().map(|claim| Settlement {
                claim,
                outcome: Outcome::Written {
                    may_land_late: false,
                },
            }));
        }
    }

    pub async fn cohort(&self) -> CohortView {
        self.store().cohorts().await.unwrap().remove(0)
    }

    pub async fn set_aside(&self) -> Vec<(SetAside, u64)> {
        self.cohort().await.set_aside
    }

    /// How many are held, by which session, since when.
    pub async fn held(&self) -> Option<(u64, String, Millis)> {
        let held = self.cohort().await.held?;
        Some((held.held, held.session, held.since))
    }

    pub async fn decide(&self, decision: HoldDecision) -> Option<u64> {
        let source = SourceName::from("default");
        let now = self.clock.now();
        let held = self.store().decide_held(&source, "7", decision, now).await;
        self.settle().await;
        held.unwrap()
    }

    /// The trait as it was last delivered.
    pub async fn trait_of(&self, identifier: &str) -> Option<bool> {
        let memberships = self.store().member(identifier).await.unwrap();
        memberships.first()?.destinations[0].written
    }

    /// Those of `everybody` whose trait is `true`, in words.
    pub async fn with_trait(&self, everybody: &[&str]) -> String {
        let mut with = Vec::new();
        for identifier in everybody {
            if self.trait_of(identifier).await == Some(true) {
                with.push(*identifier);
            }
        }
        with.join(" ")
    }
}

fn destination() -> DestinationName {
    DestinationName::from("default")
}
