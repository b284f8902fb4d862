//! Fold and delivery without listeners, before a stand-in and with a clock that the test moves;
//! can be killed and started again.

use std::sync::Arc;
use std::time::Duration;

use cohort_bridge::clock::{Clock, ManualClock};
use cohort_bridge::config::Destination;
use cohort_bridge::dispatch::{Dispatch, Parts};
use cohort_bridge::flagsmith::{Flagsmith, Limits};
use cohort_bridge::fold::Fold;
use cohort_bridge::logging::IdentifierHash;
use cohort_bridge::metrics::Metrics;
use cohort_bridge::mixpanel::{IdentifierRules, parse};
use cohort_bridge::standin::StandIn;
use cohort_bridge::status::{BACKLOG_LIMIT_PAGES, DestinationHealth, DestinationStatus, Health};
use cohort_bridge::store::{DestinationRules, ResyncScope, ResyncView, SourceRules, Store, Term};
use serde_json::Value;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::pages::key;
use super::service::START;
use super::{eventually, fast_temp_dir, open_ledger, resyncs};

/// See the module.
pub struct Bridge {
    pub stand_in: Arc<StandIn>,
    pub clock: ManualClock,
    pub destination: Destination,
    pub limits: Limits,
    pub prove_after_calls: usize,
    /// The end of the term.
    pub ended: CancellationToken,
    folder: tempfile::TempDir,
    running: Option<Running>,
}

struct Running {
    store: Arc<dyn Store>,
    health: Arc<Health>,
    destination: Arc<DestinationHealth>,
    stop: CancellationToken,
    loops: JoinSet<()>,
}

impl Bridge {
    /// Not yet running.
    pub fn before(stand_in: Arc<StandIn>, key: &str) -> Self {
        Bridge {
            clock: ManualClock::at(START),
            destination: super::destination(&stand_in.url(), key),
            limits: Limits::default(),
            prove_after_calls: cohort_bridge::canary::PROVE_AFTER_CALLS,
            ended: CancellationToken::new(),
            stand_in,
            folder: fast_temp_dir(),
            running: None,
        }
    }

    /// Starts the loops over the ledger of the folder.
    pub fn start(&mut self) {
        let destination = Arc::new(self.destination.clone());
        let rules = DestinationRules {
            name: destination.name.clone(),
            on_leave: destination.on_leave,
            linger_ms: destination.linger.as_millis() as i64,
            late_write_ms: destination.late_write_window.as_millis() as i64,
        };
        let path = self.ledger();
        let store: Arc<dyn Store> = open_ledger(&path, SourceRules::named("default"), rules);
        let metrics = Metrics::new().unwrap();
        let health = Arc::new(DestinationHealth::new(destination.name.clone()));
        let parts = Parts {
            store: store.clone(),
            clock: Arc::new(self.clock.clone()),
            destination: destination.clone(),
            client: Flagsmith::with_limits(&destination, self.limits).unwrap(),
            health: health.clone(),
            metrics: metrics.destination(&destination.name),
            hash: IdentifierHash::new(store.log_hash_key()),
        };
        let dispatch = Dispatch::within(parts, Term::new(self.ended.clone()).0)
            .proving_after(self.prove_after_calls);
        let pages = Arc::new(Health::new(BACKLOG_LIMIT_PAGES));
        let stop = CancellationToken::new();
        let mut loops = JoinSet::new();
        let fold = Fold::new(store.clone(), Arc::new(self.clock.clone()));
        loops.spawn(fold.run(pages.clone(), stop.clone()));
        loops.spawn(Arc::new(dispatch).run(pages.ledger_changes(), stop.clone()));
        self.running = Some(Running {
            store,
            health: pages,
            destination: health,
            stop,
            loops,
        });
    }

    /// The ledger's file.
    pub fn ledger(&self) -> std::path::PathBuf {
        self.folder.path().join("ledger.db")
    }

    fn running(&self) -> &Running {
        self.running.as_ref().expect("it runs")
    }

    /// Where delivery tells how it goes.
    pub fn health(&self) -> Arc<DestinationHealth> {
        Arc::clone(&self.running().destination)
    }

    /// How delivery goes.
    pub fn status(&self) -> DestinationStatus {
        self.running().destination.status()
    }

    /// Why delivery is halted.
    pub fn halted(&self) -> Option<String> {
        let status = self.status();
        let reason = status.state.reason().map(str::to_owned);
        reason.filter(|_| status.state.as_str() == "halted")
    }

    /// What somebody should look at.
    pub fn warning(&self) -> String {
        self.status()
            .warning
            .as_deref()
            .unwrap_or_default()
            .to_owned()
    }

    /// A copy of the ledger of a bridge that does not run.
    pub fn backup(&self) -> Vec<u8> {
        std::fs::read(self.ledger()).unwrap()
    }

    /// Puts it back.
    pub fn restore(&self, backup: &[u8]) {
        std::fs::write(self.ledger(), backup).unwrap();
    }

    /// Ends everything at once: what is under way stays as it is.
    pub async fn kill(&mut self) {
        let mut running = self.running.take().expect("it runs");
        running.loops.abort_all();
        while running.loops.join_next().await.is_some() {}
        running.store.close().await;
    }

    /// Stops in an orderly way.
    pub async fn stop(&mut self) {
        let mut running = self.running.take().expect("it runs");
        running.stop.cancel();
        while running.loops.join_next().await.is_some() {}
        running.store.close().await;
    }

    /// A page as Mixpanel sends it.
    pub async fn send(&self, page: &Value) {
        let parsed = parse(page.to_string().as_bytes(), &IdentifierRules::default()).unwrap();
        let now = self.clock.now();
        let running = self.running();
        let source = "default".into();
        let appended = running.store.append(&source, parsed.page, now);
        appended.await.unwrap();
        running.health.page_appended();
    }

    /// Has something written again; how many traits.
    pub async fn resync(&self, scope: ResyncScope, max_calls_per_second: Option<f64>) -> u64 {
        let running = self.running();
        let now = self.clock.now();
        let ordered = resyncs::order(&*running.store, scope, max_calls_per_second, now).await;
        running.destination.resync_ordered();
        ordered.expect("a known cohort")
    }

    /// Has it written again no longer; how many traits.
    pub async fn cancel_resync(&self, scope: ResyncScope) -> u64 {
        let running = self.running();
        let cancelled = running.store.cancel_resync(scope).await.unwrap();
        running.destination.resync_ordered();
        cancelled.expect("a known cohort")
    }

    /// How far it is.
    pub async fn resyncing(&self) -> Option<ResyncView> {
        self.running().store.resyncs().await.unwrap().pop()
    }

    /// Pauses a cohort, as an operator does.
    pub async fn pause_cohort(&self, cohort: &str) {
        let running = self.running();
        let (source, now) = ("default".into(), self.clock.now());
        let paused = running.store.pause_cohort(&source, cohort, true, now).await;
        assert!(paused.unwrap().is_some());
        running.destination.operator_acted();
    }

    /// What is not yet written.
    pub async fn pending(&self) -> u64 {
        let cohorts = self.running().store.cohorts().await.unwrap();
        let deliveries = cohorts.iter().flat_map(|cohort| &cohort.destinations);
        deliveries.map(|delivery| delivery.pending).sum()
    }

    /// What counts as written.
    pub async fn written(&self) -> u64 {
        let cohorts = self.running().store.cohorts().await.unwrap();
        let deliveries = cohorts.iter().flat_map(|cohort| &cohort.destinations);
        deliveries.map(|delivery| delivery.written).sum()
    }

    /// Whether nothing is left to fold or to deliver.
    pub async fn is_settled(&self) -> bool {
        let running = self.running();
        let rests = running.health.backlog() == 0;
        // Where others append too, the count is put right by a clock that stands still here.
        (rests || running.store.is_shared())
            && running.store.waiting_pages().await.unwrap() == 0
            && self.pending().await == 0
    }

    /// Waits until nothing is left to do; the clock stands still.
    pub async fn settled(&self) {
        eventually("everything delivered", async || {
            self.is_settled().await.then_some(())
        })
        .await;
    }

    /// Lets a second pass at each look until `condition` holds.
    pub async fn time_passes(&self, what: &str, mut condition: impl AsyncFnMut() -> bool) {
        eventually(what, async || {
            if condition().await {
                return Some(());
            }
            self.clock.advance(Duration::from_secs(1));
            None
        })
        .await;
    }

    /// The ledger's name.
    pub fn ledger_id(&self) -> String {
        self.running().store.ledger_id().to_owned()
    }

    /// The value of a person's trait in the environment of this bridge's key.
    pub fn stored(&self, person: &str, cohort: &str) -> Option<bool> {
        use secrecy::ExposeSecret;
        let key_of_environment = self.destination.environment_key.expose_secret();
        let identities = self.stand_in.identities_of(key_of_environment);
        identities.get(person)?.get(&key(cohort))?.as_bool()
    }
}
