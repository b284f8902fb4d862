//! What the store shows to people, by way of the admin API.

use std::sync::Arc;

use crate::clock::Millis;
use crate::cohort::{Action, DestinationName, SourceName};
use crate::mixpanel::SetAside;

/// A cohort as the admin API shows it.
#[derive(Clone, Debug)]
pub struct CohortView {
    /// Its source.
    pub source: SourceName,
    /// Mixpanel's id.
    pub cohort_id: String,
    /// Mixpanel's project.
    pub project_id: String,
    /// The name last heard.
    pub name: String,
    /// The name before that, where the cohort was renamed.
    pub former_name: Option<String>,
    /// Whether it is followed, or retired.
    pub standing: CohortStanding,
    /// Whether none of its traits is written until it is resumed.
    pub paused: bool,
    /// Fixed at first sight.
    pub trait_key: Arc<str>,
    /// People in it.
    pub members: u64,
    /// People known to have left it.
    pub left: u64,
    /// When a page of it last arrived.
    pub last_heard_at: Millis,
    /// The session last heard.
    pub session: Option<SessionView>,
    /// Why who is in it here may not be who is in it in Mixpanel until the next full sync; `None`
    /// where there is no reason to think so.
    pub needs_full_sync: Option<FullSyncReason>,
    /// Leavers whose trait stays `true` until somebody decides.
    pub held: Option<HeldRemovals>,
    /// Members that cannot have the trait, by reason: of the last full sync and all joins since.
    pub set_aside: Vec<(SetAside, u64)>,
    /// Runs of differences, by what became of them.
    pub runs: RunCounts,
    /// What each destination knows of it.
    pub destinations: Vec<DeliveryView>,
}

/// Whether a cohort is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CohortStanding {
    /// Its pages take effect.
    Followed,
    /// Retired, and its leavers are not all delivered yet.
    Retiring,
    /// Forgotten but for its trait key; a whole full sync brings it back.
    Retired,
}

/// Why a cohort needs a full sync.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FullSyncReason {
    /// Its people were identified by other rules than the settings' now.
    IdentifiedOtherwise {
        /// The rules of its last full sync.
        was: String,
        /// The rules of the settings.
        now: String,
    },
}

/// A cohort that the settings give another trait key than it has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyChange {
    /// Its source.
    pub source: SourceName,
    /// Mixpanel's id.
    pub cohort_id: String,
    /// The name last heard.
    pub name: String,
    /// The key that it has.
    pub former_key: String,
    /// The key that it is to have.
    pub key: String,
}

/// What the settings change in where cohorts go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteChange {
    /// Where to.
    pub destination: DestinationName,
    /// Cohorts that go there.
    pub cohorts: usize,
    /// Of those, the ones that are still to be brought up from the ledger.
    pub begin: usize,
    /// Cohorts that go there no longer.
    pub end: usize,
}

/// A cohort that no route leads anywhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GoesNowhere {
    /// Its source.
    pub source: SourceName,
    /// Mixpanel's id.
    pub cohort_id: String,
    /// The name last heard.
    pub name: String,
}

/// Removals that wait for a decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldRemovals {
    /// People whose trait stays `true`.
    pub held: u64,
    /// Mixpanel's id of the session that would remove them (the last one); empty where it has none.
    pub session: String,
    /// Since when the first of them are held.
    pub since: Millis,
}

/// Runs of differences, by what became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RunCounts {
    /// Both halves came.
    pub accepted: u64,
    /// Begun again by Mixpanel before both halves had come: taken back.
    pub dropped: u64,
    /// Accepted, then contradicted by the next: taken back.
    pub undone: u64,
}

/// An operator's decision on held removals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HoldDecision {
    /// They are right: the traits go.
    Approve,
    /// They are wrong: the traits stay until the next full sync.
    Discard,
}

/// A session as the admin API shows it.
#[derive(Clone, Debug)]
pub struct SessionView {
    /// Mixpanel's id; empty for a page without one.
    pub id: String,
    /// What it asks for.
    pub action: Action,
    /// Pages held.
    pub pages_received: u32,
    /// Pages there are.
    pub pages_total: u32,
    /// When it took effect.
    pub completed_at: Option<Millis>,
}

/// What one destination knows of one cohort.
#[derive(Clone, Debug)]
pub struct DeliveryView {
    /// The destination.
    pub name: DestinationName,
    /// Members whose trait is known to be `true` there.
    pub written: u64,
    /// Traits that are not yet as wanted, under a former key of the cohort too.
    pub pending: u64,
    /// Traits that cannot be written, as above.
    pub dead: u64,
    /// When the oldest pending change was made.
    pub oldest_pending_at: Option<Millis>,
    /// Whether the cohort's first session is whole and delivered: until then, a person without the
    /// trait is not known to be outside the cohort.
    pub ready: bool,
}

/// One cohort of one person.
#[derive(Clone, Debug)]
pub struct MembershipView {
    /// The cohort's source.
    pub source: SourceName,
    /// Mixpanel's id.
    pub cohort_id: String,
    /// The trait that stands for it.
    pub trait_key: Arc<str>,
    /// Whether the person is in it.
    pub member: bool,
    /// What each destination knows.
    pub destinations: Vec<MembershipDelivery>,
}

/// What one destination knows of one person's cohort.
#[derive(Clone, Debug)]
pub struct MembershipDelivery {
    /// The destination.
    pub name: DestinationName,
    /// The value it is known to hold; `None` where it is absent or not known.
    pub written: Option<bool>,
    /// Where delivery stands.
    pub state: DeliveryState,
    /// The last failure.
    pub error: Option<String>,
}

/// Where the delivery of one trait stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeliveryState {
    /// As wanted.
    Written,
    /// On its way.
    Pending,
    /// Given up until an operator retries it.
    Dead,
}

/// A trait that could not be written.
#[derive(Clone, Debug)]
pub struct DeadLetter {
    /// Where to.
    pub destination: DestinationName,
    /// Whose.
    pub identifier: String,
    /// Which cohort's source.
    pub source: SourceName,
    /// Which cohort.
    pub cohort_id: String,
    /// Which trait.
    pub trait_key: Arc<str>,
    /// Whether the person is in the cohort.
    pub member: bool,
    /// Why.
    pub error: String,
    /// Since when.
    pub since: Millis,
}

/// Which dead letters an operator means; `None` means any.
#[derive(Clone, Debug, Default)]
pub struct DeadLetterFilter {
    /// Only of this destination.
    pub destination: Option<String>,
    /// Only of this person.
    pub identifier: Option<String>,
}
