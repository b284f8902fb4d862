//! How the service is doing: what the loops report and the admin listener shows.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::clock::Millis;
use crate::cohort::DestinationName;
use crate::number::Number;
use crate::store::{CohortStanding, CohortView, DeliveryView, FullSyncReason};

mod destination;

pub use destination::{CanaryView, DestinationHealth, DestinationState, DestinationStatus};

/// Pages that may wait in the inbox before Mixpanel is asked to come back later: ten full syncs
/// of its largest cohort (10 million users in pages of 1,000), some gigabytes on disk.
pub const BACKLOG_LIMIT_PAGES: u64 = 100_000;

/// What a lock holds, also where whoever held it panicked: each is set in one step.
fn held<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether pages can be taken in. Shared by the front door, the fold and the shutdown.
#[derive(Debug)]
pub struct Health {
    arrived: Notify,
    changes: watch::Sender<()>,
    rested: Notify,
    inbox_waiting: AtomicI64,
    backlog_limit: u64,
    shutting_down: AtomicBool,
    /// Until when this process leads; `None` where it does not.
    leads_until: Mutex<Option<CancellationToken>>,
    refused_secrets: Mutex<Vec<RefusedSecret>>,
}

/// A secret file that changed and cannot be used; what stood in it before is still in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedSecret {
    /// Which setting names it.
    pub setting: String,
    /// Its path.
    pub file: String,
    /// What is wrong with it; no secret is in it.
    pub reason: String,
    /// Since when it cannot be used.
    pub since: Millis,
}

/// Why pages are not taken in at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The service is about to stop.
    #[error("the service is shutting down")]
    ShuttingDown,
    /// More pages wait than the limit allows.
    #[error("{waiting} pages wait to be folded, the limit is {limit}")]
    Backlog {
        /// Pages in the inbox.
        waiting: u64,
        /// Pages it may hold.
        limit: u64,
    },
}

impl Health {
    /// A service that takes pages in until `backlog_limit` of them wait, and leads.
    pub fn new(backlog_limit: u64) -> Self {
        Health {
            arrived: Notify::new(),
            changes: watch::Sender::new(()),
            rested: Notify::new(),
            inbox_waiting: AtomicI64::new(0),
            backlog_limit,
            shutting_down: AtomicBool::new(false),
            leads_until: Mutex::new(Some(CancellationToken::new())),
            refused_secrets: Mutex::default(),
        }
    }

    /// A page was written to the inbox.
    pub fn page_appended(&self) {
        self.inbox_waiting.fetch_add(1, Ordering::Relaxed);
        self.arrived.notify_one();
    }

    /// An operator ordered something that the fold carries out.
    pub fn order_given(&self) {
        self.arrived.notify_one();
    }

    /// Returns when a page or an order came since the last call; for the fold alone.
    pub async fn fold_is_wanted(&self) {
        self.arrived.notified().await;
    }

    /// The ledger changed: something may have to be delivered.
    pub fn ledger_changed(&self) {
        self.changes.send_replace(());
    }

    /// Says when the ledger changed, to as many as ask; no change is missed.
    pub fn ledger_changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// The fold did all there was to do.
    pub fn fold_rests(&self) {
        self.rested.notify_one();
    }

    /// Returns when the fold came to rest since the last call; for one alone.
    pub async fn fold_came_to_rest(&self) {
        self.rested.notified().await;
    }

    /// Pages that an earlier run left.
    pub fn pages_found(&self, count: u64) {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        self.inbox_waiting.fetch_add(count, Ordering::Relaxed);
    }

    /// `count` pages found their place in the ledger.
    pub fn pages_folded(&self, count: usize) {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        self.inbox_waiting.fetch_sub(count, Ordering::Relaxed);
    }

    /// What was counted so far: to be taken before the store is asked for [`Health::pages_wait`].
    pub fn pages_counted(&self) -> i64 {
        self.inbox_waiting.load(Ordering::Relaxed)
    }

    /// So many pages wait, whoever appended and folded them. What happened here since
    /// [`Health::pages_counted`] counts beside that: twice perhaps, until the next time.
    pub fn pages_wait(&self, waiting: u64, counted: i64) {
        let waiting = i64::try_from(waiting).unwrap_or(i64::MAX);
        self.inbox_waiting
            .fetch_add(waiting.saturating_sub(counted), Ordering::Relaxed);
    }

    /// Another process folds and delivers.
    pub fn stands_by(&self) {
        *held(&self.leads_until) = None;
    }

    /// This process folds and delivers until `ended`.
    pub fn leads_until(&self, ended: CancellationToken) {
        *held(&self.leads_until) = Some(ended);
    }

    /// Whether this process folds and delivers.
    pub fn is_leading(&self) -> bool {
        let until = held(&self.leads_until);
        until.as_ref().is_some_and(|ended| !ended.is_cancelled())
    }

    /// Pages that wait to be folded.
    pub fn backlog(&self) -> u64 {
        // Below zero for a moment where a page was folded before its append was counted.
        let waiting = self.inbox_waiting.load(Ordering::Relaxed);
        u64::try_from(waiting).unwrap_or(0)
    }

    /// From now on pages are refused and the service is not ready.
    pub fn shut_down(&self) {
        self.shutting_down.store(true, Ordering::Release);
    }

    /// Says which secret files cannot be used.
    pub fn set_refused_secrets(&self, refused: Vec<RefusedSecret>) {
        *held(&self.refused_secrets) = refused;
    }

    /// Which secret files cannot be used.
    pub fn refused_secrets(&self) -> Vec<RefusedSecret> {
        held(&self.refused_secrets).clone()
    }

    /// Why a page would be refused now; `None` while pages are taken in.
    pub fn refusal(&self) -> Option<Refusal> {
        if self.shutting_down.load(Ordering::Acquire) {
            return Some(Refusal::ShuttingDown);
        }
        let waiting = self.backlog();
        (waiting >= self.backlog_limit).then_some(Refusal::Backlog {
            waiting,
            limit: self.backlog_limit,
        })
    }
}

/// Everything the metrics and the status page show, at one moment.
#[derive(Clone, Debug)]
pub struct StatusSnapshot {
    /// When it was taken.
    pub now: Millis,
    /// Whether this process folds and delivers.
    pub leading: bool,
    /// Pages that wait in the inbox.
    pub backlog_pages: u64,
    /// Why pages are not taken in; `None` while they are.
    pub refusal: Option<Refusal>,
    /// Secret files that changed and cannot be used.
    pub refused_secrets: Vec<RefusedSecret>,
    /// Every destination of the settings.
    pub destinations: Vec<DestinationStatus>,
    /// Every cohort of the ledger, or why the ledger could not be read.
    pub cohorts: Result<Vec<CohortView>, Arc<str>>,
}

/// What is still to do for one destination, over all cohorts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outstanding {
    /// Traits not yet as wanted.
    pub pending: u64,
    /// Traits that cannot be written.
    pub dead: u64,
    /// Of the pending ones, those that wait because somebody paused their cohort or destination, or
    /// wants a dry run.
    pub paused: u64,
    /// Age of the oldest pending change that does not wait because somebody wants it so, in
    /// milliseconds.
    pub oldest_pending_ms: Option<Millis>,
}

impl StatusSnapshot {
    /// The cohorts; none where the ledger could not be read.
    pub fn known_cohorts(&self) -> &[CohortView] {
        self.cohorts.as_deref().unwrap_or_default()
    }

    /// Calls to a destination by the end of the month, as far as can be told.
    pub fn forecast(&self, destination: &DestinationStatus) -> Option<u64> {
        self.cohorts.as_ref().ok()?;
        let pending = self.outstanding(&destination.name).pending;
        Some(destination.calls?.forecast(pending, self.now))
    }

    /// What is still to do for one destination.
    pub fn outstanding(&self, destination: &DestinationName) -> Outstanding {
        let waits_as_wanted = self
            .destinations
            .iter()
            .any(|status| status.name == *destination && status.waits_as_wanted());
        let mut sum = Outstanding::default();
        for cohort in self.known_cohorts() {
            let here = |delivery: &&DeliveryView| delivery.name == *destination;
            for delivery in cohort.destinations.iter().filter(here) {
                sum.pending += delivery.pending;
                sum.dead += delivery.dead;
                if waits_as_wanted || cohort.paused {
                    sum.paused += delivery.pending;
                } else {
                    sum.oldest_pending_ms = sum
                        .oldest_pending_ms
                        .max(oldest_pending_ms(delivery, self.now));
                }
            }
        }
        sum
    }
}

/// Age of a cohort's oldest pending change at `now`, in milliseconds; never negative, even after
/// the clock was set back.
pub fn oldest_pending_ms(delivery: &DeliveryView, now: Millis) -> Option<Millis> {
    delivery
        .oldest_pending_at
        .map(|since| now.saturating_sub(since).max(0))
}

/// What to know of a cohort first: of everything that is true of it, the most urgent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CohortState {
    /// Whoever has no trait is known to be outside.
    Ready,
    /// No route leads it to a destination.
    GoesNowhere,
    /// Its first session is not whole, or not delivered.
    Arriving,
    /// Who is in it here may not be who is in it in Mixpanel.
    NeedsFullSync,
    /// So many people keep their trait until somebody decides.
    Held(u64),
    /// Its members are leaving.
    Retiring,
    /// Forgotten but for its trait key.
    Retired,
}

impl CohortState {
    /// The most urgent of what is said of a cohort; `ready` is `None` where it goes nowhere.
    pub fn of(
        standing: CohortStanding,
        held: u64,
        needs_full_sync: bool,
        ready: Option<bool>,
    ) -> Self {
        match standing {
            CohortStanding::Retired => CohortState::Retired,
            CohortStanding::Retiring => CohortState::Retiring,
            CohortStanding::Followed if held > 0 => CohortState::Held(held),
            CohortStanding::Followed if needs_full_sync => CohortState::NeedsFullSync,
            CohortStanding::Followed => match ready {
                Some(true) => CohortState::Ready,
                Some(false) => CohortState::Arriving,
                None => CohortState::GoesNowhere,
            },
        }
    }
}

impl From<&CohortView> for CohortState {
    fn from(cohort: &CohortView) -> Self {
        CohortState::of(
            cohort.standing,
            cohort.held.as_ref().map_or(0, |held| held.held),
            cohort.needs_full_sync.is_some(),
            (!cohort.destinations.is_empty())
                .then(|| cohort.destinations.iter().all(|delivery| delivery.ready)),
        )
    }
}

impl fmt::Display for CohortState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CohortState::Ready => f.write_str("ready"),
            CohortState::GoesNowhere => f.write_str("goes nowhere"),
            CohortState::Arriving => f.write_str("arriving"),
            CohortState::NeedsFullSync => f.write_str("needs full sync"),
            CohortState::Held(held) => write!(f, "held {}", Number(*held)),
            CohortState::Retiring => f.write_str("retiring"),
            CohortState::Retired => f.write_str("retired"),
        }
    }
}

/// Why a cohort needs a full sync, as a sentence.
pub fn full_sync_reason(reason: &FullSyncReason) -> String {
    match reason {
        FullSyncReason::IdentifiedOtherwise { was, now } => {
            format!("The identifier rules changed from '{was}' to '{now}'.")
        }
    }
}

/// How to come by a full sync: Mixpanel makes one for a new sync only.
pub const FULL_SYNC_HOW: &str =
    "In Mixpanel, disconnect the cohort from this connection and connect it again.";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::stub_store::{cohort, troubled_cohort};

    #[test]
    fn the_most_urgent_of_a_cohort_is_its_state() {
        use CohortStanding::{Followed, Retired, Retiring};
        for (standing, held, needs_full_sync, ready, word) in [
            (Followed, 0, false, Some(true), "ready"),
            (Followed, 0, false, Some(false), "arriving"),
            (Followed, 0, false, None, "goes nowhere"),
            (Followed, 0, true, Some(false), "needs full sync"),
            (Followed, 1_204, true, Some(true), "held 1,204"),
            (Retiring, 1, true, Some(false), "retiring"),
            (Retired, 0, true, Some(true), "retired"),
        ] {
            let state = CohortState::of(standing, held, needs_full_sync, ready);
            assert_eq!(state.to_string(), word);
        }
    }

    #[test]
    fn a_cohort_is_ready_where_it_is_ready_everywhere() {
        let mut cohort = cohort("7");
        cohort.destinations.push(cohort.destinations[0].clone());
        for (ready, state) in [
            ([false, true], CohortState::Arriving),
            ([true, true], CohortState::Ready),
        ] {
            for (delivery, ready) in cohort.destinations.iter_mut().zip(ready) {
                delivery.ready = ready;
            }
            assert_eq!(CohortState::from(&cohort), state);
        }
        let held = CohortState::from(&troubled_cohort("7"));
        assert_eq!(held, CohortState::Held(1_204));
    }

    #[test]
    fn pages_are_refused_from_the_limit_on_and_taken_again_below_it() {
        let health = Health::new(2);
        health.page_appended();
        assert_eq!(health.refusal(), None);
        health.page_appended();
        assert_eq!(
            health.refusal(),
            Some(Refusal::Backlog {
                waiting: 2,
                limit: 2
            })
        );
        health.pages_folded(1);
        assert_eq!(health.refusal(), None);
    }

    #[test]
    fn pages_of_an_earlier_run_count() {
        let health = Health::new(2);
        health.pages_found(7);
        health.pages_folded(8);
        assert_eq!(health.backlog(), 0);
        health.page_appended();
        health.page_appended();
        assert_eq!(health.backlog(), 1);
    }

    #[test]
    fn what_others_append_and_fold_counts_too_and_an_append_here_at_once() {
        let health = Health::new(10);
        health.pages_found(4);
        let counted = health.pages_counted();
        health.page_appended();
        health.pages_wait(7, counted);
        assert_eq!(
            health.backlog(),
            8,
            "the append may be among the seven or not"
        );
        health.pages_wait(7, health.pages_counted());
        assert_eq!(health.backlog(), 7);
        health.pages_folded(9);
        health.pages_wait(1, health.pages_counted());
        assert_eq!(health.backlog(), 1);
    }

    #[test]
    fn it_leads_until_its_term_is_over() {
        let health = Health::new(1);
        assert!(health.is_leading(), "alone");
        health.stands_by();
        assert!(!health.is_leading());
        let ended = CancellationToken::new();
        health.leads_until(ended.clone());
        assert!(health.is_leading());
        ended.cancel();
        assert!(!health.is_leading());
    }

    #[test]
    fn a_shutdown_is_the_reason_that_is_given() {
        let health = Health::new(0);
        health.shut_down();
        assert_eq!(health.refusal(), Some(Refusal::ShuttingDown));
    }

    #[test]
    fn only_a_change_of_state_is_news() {
        let health = DestinationHealth::new("production".into());
        let halted = DestinationState::Halted {
            reason: "wrong key".into(),
        };
        assert!(!health.set(DestinationState::Ok));
        assert!(health.set(halted.clone()));
        assert!(!health.set(halted));
        assert_eq!(health.status().state.as_str(), "halted");
        assert_eq!(health.status().state.reason(), Some("wrong key"));
    }
}
