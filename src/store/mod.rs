//! The store: the inbox of pages and the ledger of membership, behind one trait.
//!
//! What is promised at each arrow:
//!
//! - [`Store::append`] returns once the page is on disk.
//! - [`Store::assemble`] and [`Store::apply`] are transactions: a kill between two of them loses
//!   nothing and repeats nothing.
//! - [`Store::exchange`] makes claims durable before it returns them: whatever is killed after
//!   that is found as [`Told::Unknown`] and asserted again.

use std::sync::Arc;

use async_trait::async_trait;

use crate::clock::Millis;
use crate::cohort::{Action, DestinationName, OnLeave, SourceName, Target, Told};
use crate::mixpanel::Page;
use crate::roster::{Damaged, Roster};
use crate::trait_key::TraitKeyTemplate;

pub mod sqlite;
mod views;

pub use views::{
    CohortView, DeadLetter, DeadLetterFilter, DeliveryState, DeliveryView, MembershipDelivery,
    MembershipView, SessionView,
};

/// How long a session may stay silent before it can no longer take effect: Mixpanel keeps the
/// snapshot of the last successful sync for 3 days, and sends everything again after that.
pub const SESSION_EXPIRES: std::time::Duration = std::time::Duration::from_secs(3 * 24 * 3600);

/// A cohort's number in this ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CohortRef(pub i64);

/// A session's number in this ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionRef(pub i64);

/// Why the store could not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is no room on the disk; nothing was written.
    #[error("the disk that holds the ledger is full")]
    Full,
    /// Another process has the ledger open.
    #[error(
        "the ledger {path} is in use by another cohort-bridge{holder}: stop it first, or give this one a file of its own with DATABASE_URL"
    )]
    InUse {
        /// The ledger's file.
        path: String,
        /// ` (process 12)` where it is known.
        holder: String,
    },
    /// A newer version of the program wrote the ledger.
    #[error(
        "the ledger has schema version {found}, this program knows {known}: run the version that wrote it, or a newer one"
    )]
    Newer {
        /// In the file.
        found: i64,
        /// In the program.
        known: i64,
    },
    /// The SQLite library is too old to be trusted with a write-ahead log.
    #[error("SQLite {0} can corrupt a write-ahead log; 3.51.3 or newer is needed")]
    OldSqlite(String),
    /// The store is closing.
    #[error("the ledger is closed")]
    Closed,
    /// Anything else the database said.
    #[error("the ledger failed: {0}")]
    Failed(String),
    /// A stored page cannot be read.
    #[error(transparent)]
    Damaged(#[from] Damaged),
    /// A file of the ledger could not be used.
    #[error("{path} cannot be used")]
    Io {
        /// Which file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
}

impl StoreError {
    /// The same error for another caller of the same transaction.
    pub(crate) fn again(&self) -> Self {
        match self {
            StoreError::Full => StoreError::Full,
            StoreError::Closed => StoreError::Closed,
            other => StoreError::Failed(other.to_string()),
        }
    }
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DiskFull) => StoreError::Full,
            _ => StoreError::Failed(error.to_string()),
        }
    }
}

/// A cohort's rules that the settings give, by source.
#[derive(Clone, Debug)]
pub struct SourceRules {
    /// The source.
    pub name: SourceName,
    /// How the trait key of a new cohort is made.
    pub trait_key: TraitKeyTemplate,
}

/// A destination's rules that the ledger needs.
#[derive(Clone, Debug)]
pub struct DestinationRules {
    /// The destination.
    pub name: DestinationName,
    /// What a leaver's trait becomes.
    pub on_leave: OnLeave,
    /// Milliseconds a change may wait for company.
    pub linger_ms: Millis,
    /// Milliseconds in which a write without a reply may still land.
    pub late_write_ms: Millis,
}

/// What happened when pages were taken out of the inbox.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Assembled {
    /// Pages taken.
    pub pages: usize,
    /// Whether a session became whole and waits for [`Store::apply`].
    pub whole: bool,
}

/// A session all of whose pages are there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WholeSession {
    /// Its number.
    pub session: SessionRef,
    /// Its cohort.
    pub cohort: CohortRef,
    /// What it does to the cohort.
    pub effect: Effect,
    /// Everything up to and with this identifier has been applied.
    pub applied_through: Option<String>,
    /// Numbers of its pages, ascending.
    pub pages: Vec<u32>,
}

/// What a whole session does to a cohort.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The session's people are the cohort.
    Replace,
    /// The session's people are in the cohort.
    Add,
    /// The session's people are not in the cohort.
    Remove,
}

impl Effect {
    /// The effect of a whole session; a `members` page that cannot prove to be everything only adds.
    pub fn of(action: Action, proves_completeness: bool) -> Self {
        match action {
            Action::Members if proves_completeness => Effect::Replace,
            Action::Members | Action::AddMembers => Effect::Add,
            Action::RemoveMembers => Effect::Remove,
        }
    }
}

/// A piece of a whole session, in key order.
#[derive(Clone, Debug)]
pub struct Chunk {
    /// The session.
    pub session: SessionRef,
    /// Its cohort.
    pub cohort: CohortRef,
    /// What it does.
    pub effect: Effect,
    /// Where the piece begins: behind this identifier.
    pub after: Option<String>,
    /// The session's identifiers of the piece, ascending, each once.
    pub identifiers: Roster,
    /// Whether no identifier of the session follows.
    pub last: bool,
}

/// How far a chunk was applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Applied {
    /// The session is done.
    Done,
    /// Everything up to and with this identifier is done.
    Through(String),
}

/// One identity taken for one call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Flagsmith's identifier.
    pub identifier: Arc<str>,
    /// All its changed traits.
    pub traits: Vec<ClaimedTrait>,
    /// Calls for this identity that failed before.
    pub attempts: u32,
}

/// One trait of a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimedTrait {
    /// The cohort it stands for.
    pub cohort: CohortRef,
    /// Its name in Flagsmith.
    pub trait_key: Arc<str>,
    /// The state to bring about.
    pub target: Target,
    /// What the destination was known to hold before the claim.
    pub told: Told,
}

/// How a claim ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settlement {
    /// The claim.
    pub claim: Claim,
    /// What became of it.
    pub outcome: Outcome,
}

/// What became of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Flagsmith proved to hold all its traits.
    Written {
        /// Whether an earlier sending of the same may still land, later.
        may_land_late: bool,
    },
    /// No call was made: everything is as it was.
    Unsent,
    /// To be tried again at `due_at`.
    Retry {
        /// When.
        due_at: Millis,
        /// Whether this counts as one of the identity's own failures.
        counts: bool,
        /// Whether the write may still land late.
        may_land_late: bool,
        /// For people.
        error: Arc<str>,
    },
    /// Will never work.
    Dead {
        /// For people.
        error: Arc<str>,
    },
}

/// Claims, and when there will be more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claims {
    /// What was taken.
    pub claims: Vec<Claim>,
    /// Where the next sweep starts; `None` once the end was reached.
    pub resume_after: Option<Arc<str>>,
    /// The earliest time at which something passed over will be due.
    pub next_due: Option<Millis>,
}

/// The inbox and the ledger.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Writes a page down. On `Ok` it survives a power cut.
    async fn append(&self, source: &SourceName, page: Page, now: Millis) -> Result<(), StoreError>;

    /// Whether `source` ever sent a member that carries `property`.
    async fn has_sent_property(
        &self,
        source: &SourceName,
        property: &str,
    ) -> Result<bool, StoreError>;

    /// Remembers that `source` sends `property`.
    async fn note_property(&self, source: &SourceName, property: &str) -> Result<(), StoreError>;

    /// Takes at most `limit` pages out of the inbox, in order, into their sessions; stops behind
    /// the page that makes a session whole.
    async fn assemble(&self, limit: usize, now: Millis) -> Result<Assembled, StoreError>;

    /// Pages that wait to be folded: those not yet taken, and one for each whole session.
    async fn waiting_pages(&self) -> Result<u64, StoreError>;

    /// The session that waits to be applied.
    async fn whole_session(&self) -> Result<Option<WholeSession>, StoreError>;

    /// The identifiers of one held page.
    async fn page_roster(&self, session: SessionRef, page: u32) -> Result<Roster, StoreError>;

    /// Makes a piece of a whole session true in the ledger.
    async fn apply(&self, chunk: Chunk, now: Millis) -> Result<Applied, StoreError>;

    /// Ends sessions that nothing was heard of for [`SESSION_EXPIRES`], and drops at most `limit`
    /// pages of ended ones. Returns how much it did; zero when there is nothing left.
    async fn tidy(&self, limit: usize, now: Millis) -> Result<usize, StoreError>;

    /// Settles calls that ended, then claims at most `limit` identities that are due, in
    /// identifier order behind `after`; one durable transaction.
    async fn exchange(
        &self,
        destination: &DestinationName,
        settle: Vec<Settlement>,
        after: Option<Arc<str>>,
        limit: usize,
        now: Millis,
    ) -> Result<Claims, StoreError>;

    /// Makes everything pending for a destination that this ledger never delivered to; once.
    async fn bring_up(&self, destination: &DestinationName, now: Millis)
    -> Result<u64, StoreError>;

    /// Every cohort, in order of source and id.
    async fn cohorts(&self) -> Result<Vec<CohortView>, StoreError>;

    /// Every cohort the ledger knows of one person.
    async fn member(&self, identifier: &str) -> Result<Vec<MembershipView>, StoreError>;

    /// Dead letters, oldest first, at most `limit`.
    async fn dead_letters(&self, limit: usize) -> Result<Vec<DeadLetter>, StoreError>;

    /// Makes dead letters pending again; returns how many.
    async fn retry_dead_letters(
        &self,
        filter: DeadLetterFilter,
        now: Millis,
    ) -> Result<u64, StoreError>;

    /// Forgets dead letters; returns how many.
    async fn drop_dead_letters(
        &self,
        filter: DeadLetterFilter,
        now: Millis,
    ) -> Result<u64, StoreError>;

    /// Makes every trait of a cohort pending again; `None` where there is no such cohort.
    async fn resync(
        &self,
        source: &SourceName,
        cohort_id: &str,
        now: Millis,
    ) -> Result<Option<u64>, StoreError>;

    /// A random name of this ledger, made when it was created.
    fn ledger_id(&self) -> &str;

    /// The secret under which identifiers are hashed for logs, made when the ledger was created.
    fn log_hash_key(&self) -> &[u8; 32];

    /// Fails where a page could not be written down now.
    async fn ready(&self) -> Result<(), StoreError>;

    /// Finishes what was begun and lets the ledger go.
    async fn close(&self);
}
