//! A ledger that replicas share: SQLite's, with terms that the test gives and ends.
//!
//! At each new term the ledger is opened anew, so that whoever leads finds what a kill would have
//! left: nothing that the one before held in memory.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use cohort_bridge::app::App;
use cohort_bridge::clock::ManualClock;
use cohort_bridge::config::Destination;
use cohort_bridge::standin::StandIn;
use cohort_bridge::store::{DestinationRules, LedgerStore, SourceRules, Store};
use tokio::sync::{Notify, RwLock, watch};
use tokio_util::sync::CancellationToken;

use super::process::Variables;
use super::service::{Service, Setup, serve, settings, settings_of_files};
use super::{fast_temp_dir, open_ledger};

mod replica;

pub use replica::Replica;

/// See the module.
pub struct Shared {
    ledger: RwLock<Option<Arc<LedgerStore>>>,
    destination: DestinationRules,
    path: PathBuf,
    _folder: tempfile::TempDir,
    id: String,
    hash_key: [u8; 32],
    /// Whose term it is.
    leader: watch::Sender<Option<(usize, CancellationToken)>>,
    news: Mutex<Option<watch::Sender<()>>>,
    is_away: AtomicBool,
    key_is_taken: AtomicBool,
    fold_panics: AtomicBool,
    adopted: AtomicUsize,
    not_leading: AtomicUsize,
    late_exchanges: AtomicUsize,
    given_back: AtomicUsize,
}

impl Shared {
    /// Nobody leads.
    pub fn new(destination: &Destination) -> Arc<Self> {
        let destination = DestinationRules {
            name: destination.name.clone(),
            on_leave: destination.on_leave,
            linger_ms: destination.linger.as_millis() as i64,
            late_write_ms: destination.late_write_window.as_millis() as i64,
        };
        let folder = fast_temp_dir();
        let path = folder.path().join("ledger.db");
        let ledger = open_ledger(&path, SourceRules::named("default"), destination.clone());
        Arc::new(Shared {
            id: ledger.ledger_id().to_owned(),
            hash_key: *ledger.log_hash_key(),
            ledger: RwLock::new(Some(ledger)),
            destination,
            path,
            _folder: folder,
            leader: watch::Sender::new(None),
            news: Mutex::default(),
            is_away: AtomicBool::new(false),
            key_is_taken: AtomicBool::new(false),
            fold_panics: AtomicBool::new(false),
            adopted: AtomicUsize::new(0),
            not_leading: AtomicUsize::new(0),
            late_exchanges: AtomicUsize::new(0),
            given_back: AtomicUsize::new(0),
        })
    }

    /// The store as one replica sees it.
    pub fn replica(self: &Arc<Self>, number: usize) -> Arc<Replica> {
        Arc::new(Replica {
            number,
            shared: Arc::clone(self),
        })
    }

    /// Gives the next term to a replica, and ends the one before.
    pub async fn give(&self, replica: usize) {
        self.end().await;
        let mut ledger = self.ledger.write().await;
        if let Some(before) = ledger.take() {
            before.close().await;
        }
        let source = SourceRules::named("default");
        *ledger = Some(open_ledger(&self.path, source, self.destination.clone()));
        let term = (replica, CancellationToken::new());
        self.leader.send_replace(Some(term));
    }

    /// Ends the term, once what is being written is.
    pub async fn end(&self) {
        let _nothing_is_written = self.ledger.write().await;
        if let Some((_, ended)) = self.leader.send_replace(None) {
            ended.cancel();
        }
    }

    /// Whether the database is away.
    pub fn is_away(&self, away: bool) {
        self.is_away.store(away, Ordering::SeqCst);
    }

    /// From now on a key of the settings is taken.
    pub fn take_key(&self) {
        self.key_is_taken.store(true, Ordering::SeqCst);
    }

    /// Has the fold panic at its next step.
    pub fn break_fold(&self) {
        self.fold_panics.store(true, Ordering::SeqCst);
    }

    /// How often keys were adopted.
    pub fn adopted(&self) -> usize {
        self.adopted.load(Ordering::SeqCst)
    }

    /// How often somebody was told that another leads.
    pub fn not_leading(&self) -> usize {
        self.not_leading.load(Ordering::SeqCst)
    }

    /// How often that was who wanted to settle or to claim.
    pub fn late_exchanges(&self) -> usize {
        self.late_exchanges.load(Ordering::SeqCst)
    }

    /// Claims that nobody was called for.
    pub fn given_back(&self) -> usize {
        self.given_back.load(Ordering::SeqCst)
    }

    fn is_led_by(&self, replica: usize) -> bool {
        let leader = self.leader.borrow();
        matches!(&*leader, Some((number, _)) if *number == replica)
    }
}

/// Starts a replica over a ledger that it shares with others.
pub async fn spawn_replica(
    store: Arc<dyn Store>,
    stand_in: &Arc<StandIn>,
    clock: &ManualClock,
    change: impl FnOnce(&mut Setup),
) -> Service {
    let folder = fast_temp_dir();
    let settings = settings(&folder, stand_in, change);
    let app = App::over(store, settings, Arc::new(clock.clone())).await;
    serve(folder, Arc::clone(stand_in), clock.clone(), app.unwrap())
}

/// The same, with settings by variable, whose files it looks at again when told so.
pub async fn spawn_replica_of_files(
    store: Arc<dyn Store>,
    stand_in: &Arc<StandIn>,
    clock: &ManualClock,
    variables: &Variables,
) -> (Service, Arc<Notify>) {
    let folder = fast_temp_dir();
    let (settings, secrets, wanted) = settings_of_files(&folder, stand_in, variables);
    let app = App::over(store, settings, Arc::new(clock.clone())).await;
    let app = app.unwrap().keeping_up(secrets);
    let service = serve(folder, Arc::clone(stand_in), clock.clone(), app);
    (service, wanted)
}
