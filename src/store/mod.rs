//! The store: the inbox of pages and the ledger of membership, behind one trait.
//!
//! What is promised at each arrow:
//!
//! - [`Store::append`] returns once the page is on disk.
//! - [`Store::assemble`] and [`Store::apply`] are transactions: a kill between two of them loses
//!   nothing and repeats nothing.
//! - [`Store::exchange`] makes claims durable before it returns them: whatever is killed after
//!   that is found as [`Told::Unknown`] and asserted again.
//! - What [`Store::exchange`] settles as written is kept until [`Store::proved`]; [`Store::doubt`]
//!   makes it pending again.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;

use crate::calls::{CallOrder, CallsCounted};
use crate::canary::CanaryMemory;
use crate::clock::Millis;
use crate::cohort::{Action, DestinationName, Half, OnLeave, SourceName, Target, Told};
use crate::guard::RemovalGuard;
use crate::layers::Word;
use crate::mixpanel::{IdentifierRules, Page, SetAside};
use crate::month::Month;
use crate::plan::Unwritten;
use crate::roster::{Damaged, PersonHash, Roster};
use crate::run::{self, Fate};
use crate::sorted::{Items, Roles};
use crate::trait_key::{ExplicitKey, TraitKeyTemplate};

mod resyncs;
pub mod sqlite;
mod views;

pub use resyncs::{ResyncOrder, ResyncRoom, ResyncScope, ResyncStep, ResyncView};
pub use views::{
    CohortStanding, CohortView, DeadLetter, DeadLetterFilter, DeliveryState, DeliveryView,
    FullSyncReason, GoesNowhere, HeldRemovals, HoldDecision, KeyChange, MembershipDelivery,
    MembershipView, RouteChange, RunCounts, SessionView,
};

/// How long a session may stay silent before it can no longer take effect: Mixpanel keeps the
/// snapshot of the last successful sync for 3 days, and sends everything again after that.
pub const SESSION_EXPIRES: std::time::Duration = std::time::Duration::from_secs(3 * 24 * 3600);

/// A cohort's number in this ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CohortRef(pub i64);

/// A trait's number in this ledger: a trait key, whosever it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TraitRef(pub i64);

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
    /// The settings give a key that somebody else has.
    #[error(
        "the trait key {key:?} cannot be given to {cohort}: {holder} has it; give that cohort a key of its own in the settings file too, or choose another"
    )]
    KeyTaken {
        /// The key.
        key: String,
        /// To whom it should be given.
        cohort: String,
        /// Who has it.
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
    /// Keys that the settings give.
    pub explicit_keys: Vec<ExplicitKey>,
    /// The rules by which its people are identified now, as pages carry them.
    pub identified_by: Arc<str>,
    /// When removals are held.
    pub hold_removals_above: Option<RemovalGuard>,
}

impl SourceRules {
    /// A source for which the settings say nothing in particular.
    pub fn named(name: &str) -> Self {
        SourceRules {
            name: SourceName::from(name),
            trait_key: TraitKeyTemplate::default(),
            explicit_keys: Vec::new(),
            identified_by: IdentifierRules::default().describe(),
            hold_removals_above: None,
        }
    }
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

/// What the fold had to do: see [`Store::assemble`].
#[derive(Clone, Debug, Default)]
pub struct Assembled {
    /// Whether a piece of an operator's order was carried out, and nothing else.
    pub carried_out: bool,
    /// Pages taken, and notes of refused ones.
    pub pages: usize,
    /// Of those, notes.
    pub notes: usize,
    /// The session that waits for [`Store::apply`]; the last of the pages made it whole, where any
    /// were taken.
    pub whole: Option<Box<WholeSession>>,
    /// Whether there was something to tidy, and nothing else to do.
    pub tidied: bool,
    /// Whether a cohort was renamed, so that there may be something for [`Store::follow_routes`].
    pub may_reroute: bool,
}

impl Assembled {
    /// Whether there was anything to do.
    pub fn is_anything(&self) -> bool {
        self.carried_out || self.pages > 0 || self.whole.is_some() || self.tidied
    }
}

/// A session all of whose pages are there.
#[derive(Clone, Debug)]
pub struct WholeSession {
    /// Its number.
    pub session: SessionRef,
    /// Its cohort.
    pub cohort: CohortRef,
    /// What it does to the cohort.
    pub effect: Effect,
    /// Its run.
    pub run: i64,
    /// Whether nobody sent it: the half of a run that was left out, because there is nobody in it.
    pub is_left_out: bool,
    /// Everything up to and with this identifier has been applied.
    pub applied_through: Option<String>,
    /// Numbers of its pages, ascending.
    pub pages: Vec<u32>,
    /// The halves of runs that it finds, in the order in which they became whole.
    pub layers: Vec<FoundLayer>,
    /// Sessions that never became whole, and may speak against the layers.
    pub witnesses: Vec<Witness>,
    /// What becomes of it and of the layers; `None` before it was judged.
    pub judgement: Option<Judgement>,
    /// When its removals are to be held.
    pub guard: Option<RemovalGuard>,
    /// People whose trait is wanted before it takes effect.
    pub population: u64,
    /// Whether its people may have other identifiers than their distinct ids.
    pub maps_people: bool,
}

/// Half of a run that took effect and may be taken back.
#[derive(Clone, Debug)]
pub struct FoundLayer {
    /// Its number.
    pub session: SessionRef,
    /// Numbers of its pages.
    pub pages: Vec<u32>,
    /// What it says and what is asked of it.
    pub layer: run::Layer,
}

/// A session that ended before it was whole.
#[derive(Clone, Debug)]
pub struct Witness {
    /// Its number.
    pub session: SessionRef,
    /// Numbers of its pages.
    pub pages: Vec<u32>,
    /// What it says.
    pub half: Half,
    /// Its run.
    pub run: i64,
}

/// What is decided once before a session takes effect; kept, so that a kill in the middle changes
/// nothing about it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Judgement {
    /// What becomes of each layer, in order.
    pub fates: Vec<Fate>,
    /// Whether those who leave keep their trait until somebody decides.
    pub holds_removals: bool,
}

/// What a whole session does to a cohort.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The session's people are the cohort.
    Replace,
    /// One half of a run.
    Half(Half),
    /// A page that stands alone: its people are (not) in the cohort.
    Alone(Half),
}

impl Effect {
    /// The effect of a session that is told by its pages.
    pub fn of(action: Action) -> Self {
        Half::of(action).map_or(Effect::Replace, Effect::Half)
    }

    /// The effect of a page that stands alone; one of a full sync, which cannot prove to be
    /// everything, only adds.
    pub fn of_page_alone(action: Action) -> Self {
        Effect::Alone(Half::of(action).unwrap_or(Half::Add))
    }

    /// Whether it is a difference that says of its people that they are in.
    pub fn brings_in(self) -> bool {
        matches!(self, Effect::Half(Half::Add) | Effect::Alone(Half::Add))
    }

    /// Whether it is a difference that says of its people that they are out.
    pub fn takes_away(self) -> bool {
        matches!(
            self,
            Effect::Half(Half::Remove) | Effect::Alone(Half::Remove)
        )
    }

    /// What it says of somebody who is (not) in the session.
    pub fn word(self, is_in: bool) -> Word {
        match self {
            Effect::Replace => Word::Full { is_in },
            Effect::Half(half) if is_in => Word::Half(half),
            Effect::Alone(half) if is_in => Word::Alone(half),
            Effect::Half(_) | Effect::Alone(_) => Word::None,
        }
    }
}

/// The role of the session's own people in its chunks; layer *n* of the chunk has bit *n*.
pub const OWN_ROLE: Roles = 1 << 31;

/// Layers that a session can find at most: two of each accepted run that can be undone, two tentative
/// ones of earlier runs and one of its own, and some to be safe.
pub const MOST_LAYERS: usize = 12;

/// A piece of a whole session, in key order.
#[derive(Clone, Debug)]
pub struct Chunk {
    /// The session.
    pub session: SessionRef,
    /// Its cohort.
    pub cohort: CohortRef,
    /// What it does.
    pub effect: Effect,
    /// The layers that have a say, in order.
    pub layers: Vec<ChunkLayer>,
    /// Whether those who leave keep their trait until somebody decides.
    pub holds_removals: bool,
    /// Where the piece begins: behind this identifier.
    pub after: Option<String>,
    /// The people of the piece, ascending.
    pub people: Items,
    /// Whether nobody follows.
    pub last: bool,
    /// Whether the session has taken effect with it: else [`Store::finish`] says so.
    pub finishes: bool,
    /// Of all its pages.
    pub recognised: Recognised,
}

/// A layer as a chunk needs it.
#[derive(Clone, Copy, Debug)]
pub struct ChunkLayer {
    /// Its session.
    pub session: SessionRef,
    /// What it says.
    pub half: Half,
    /// Whether it is taken back.
    pub is_dropped: bool,
}

/// Members without a usable identifier who are known by another page, by the reason for which they
/// would be set aside.
pub type Recognised = BTreeMap<SetAside, u64>;

/// The people of a held page.
#[derive(Clone, Debug, Default)]
pub struct PagePeople {
    /// Whoever has an identifier.
    pub roster: Roster,
    /// Those of them whose identifier is not the page's.
    pub recognised: Recognised,
}

/// How far a chunk was applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Applied {
    /// To its end, and that of the session.
    Done,
    /// Everything up to and with this identifier is done.
    Through(String),
}

/// How many people a chunk would take the trait from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counted {
    /// People who leave.
    pub removals: u64,
    /// How far was counted; `None`: to the end.
    pub through: Option<String>,
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
    /// Its number.
    pub number: TraitRef,
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

    /// Looks for what the fold has to do next: a piece, of about `people` people, of what an operator
    /// ordered is carried out; else the session that waits to be applied is given back; else at most
    /// `pages` pages are taken out of the inbox, in order, into their sessions, up to the one that
    /// makes a session whole; else there is a little tidying: sessions that nothing was heard of for
    /// [`SESSION_EXPIRES`] end, and about `pages` pages of ended ones are dropped.
    async fn assemble(
        &self,
        pages: usize,
        people: usize,
        now: Millis,
    ) -> Result<Assembled, StoreError>;

    /// Pages that wait to be folded: those not yet taken, and one for each whole session.
    async fn waiting_pages(&self) -> Result<u64, StoreError>;

    /// The people of held pages. Where they may have other identifiers than their distinct ids,
    /// whoever is known goes by the identifier under which the ledger has them: on a full sync's
    /// page, only those whom it gives none.
    async fn page_people(
        &self,
        pages: Vec<(SessionRef, u32)>,
    ) -> Result<Vec<PagePeople>, StoreError>;

    /// Takes over the identifiers that the page of an `add_members` session gives: a property is
    /// what it is, whether or not Mixpanel counts the run. Can be repeated.
    async fn rename_people(
        &self,
        session: SessionRef,
        page: u32,
        now: Millis,
    ) -> Result<(), StoreError>;

    /// Takes over the identifiers of a full sync, in person order. Can be repeated.
    async fn place_people(
        &self,
        cohort: CohortRef,
        people: Vec<(PersonHash, String)>,
    ) -> Result<(), StoreError>;

    /// How many people a piece of a whole session would take the trait from; changes nothing.
    async fn count_removals(&self, chunk: Chunk) -> Result<Counted, StoreError>;

    /// Writes down what becomes of a whole session and of the layers that it finds.
    async fn judge(
        &self,
        session: SessionRef,
        layers: Vec<SessionRef>,
        judgement: Judgement,
    ) -> Result<(), StoreError>;

    /// Makes a piece of a whole session true in the ledger.
    async fn apply(&self, chunk: Chunk, now: Millis) -> Result<Applied, StoreError>;

    /// The session has taken effect.
    async fn finish(
        &self,
        session: SessionRef,
        recognised: Recognised,
        now: Millis,
    ) -> Result<(), StoreError>;

    /// Gives every cohort the trait key that the settings give it; for each one that changes, the
    /// old trait leaves. To be called before anything else is done with the ledger.
    ///
    /// Fails with [`StoreError::KeyTaken`] where a key belongs to a cohort that keeps it.
    async fn adopt_keys(&self, now: Millis) -> Result<(), StoreError>;

    /// Settles calls that ended, then claims at most `limit` identities that are due; one durable
    /// transaction. Up to three of four are those that must not wait, which come first; the others
    /// come in identifier order behind `after`, and so does one alone.
    async fn exchange(
        &self,
        destination: &DestinationName,
        settle: Vec<Settlement>,
        after: Option<Arc<str>>,
        limit: usize,
        now: Millis,
    ) -> Result<Claims, StoreError>;

    /// Does a piece, of about `limit` people, of what it takes to follow the cohorts that the
    /// settings lead to a destination, and no others: everybody of a further one becomes pending;
    /// what is pending of one that goes there no longer is dropped. Returns whether there was
    /// anything to do.
    async fn follow_routes(&self, limit: usize, now: Millis) -> Result<bool, StoreError>;

    /// Counts calls that were made to a destination, and leases as many as are wanted and the budget
    /// allows; one durable transaction.
    async fn count_calls(
        &self,
        destination: &DestinationName,
        order: CallOrder,
        now: Millis,
    ) -> Result<CallsCounted, StoreError>;

    /// Where the log of what was counted as written stands: a mark for [`Store::proved`].
    async fn unproven_through(&self, destination: &DestinationName) -> Result<i64, StoreError>;

    /// Everything counted as written up to the mark was proved to stay: the log forgets it.
    async fn proved(&self, destination: &DestinationName, through: i64) -> Result<(), StoreError>;

    /// Makes everything counted as written, and not proved since, pending again, in pieces: after a
    /// kill another call goes on. Returns how many traits.
    async fn doubt(&self, destination: &DestinationName, now: Millis) -> Result<u64, StoreError>;

    /// Orders that a cohort, or everything, is written again; [`Store::resync_some`] does it, in this
    /// process or a later one. Where the same is ordered already, it begins anew. Returns how many
    /// traits that are, by the cohorts' counters; `None` where there is no such cohort.
    async fn order_resync(
        &self,
        order: ResyncOrder,
        now: Millis,
    ) -> Result<Option<u64>, StoreError>;

    /// Cancels such orders: of a cohort its own, of a destination all. What was made pending already
    /// is written. Returns how many traits were not reached; `None` where there is no such cohort.
    async fn cancel_resync(&self, scope: ResyncScope) -> Result<Option<u64>, StoreError>;

    /// A step of what was ordered for a destination, where there is room for one: a piece is made
    /// pending again, whatever the destination was told. Killed anywhere, it goes on where it was.
    async fn resync_some(
        &self,
        destination: &DestinationName,
        room: ResyncRoom,
        now: Millis,
    ) -> Result<ResyncStep, StoreError>;

    /// How far the orders of each destination are that has any.
    async fn resyncs(&self) -> Result<Vec<ResyncView>, StoreError>;

    /// What is remembered of the destination's canaries.
    async fn canary_memory(
        &self,
        destination: &DestinationName,
    ) -> Result<CanaryMemory, StoreError>;

    /// Remembers it.
    async fn remember_canary(
        &self,
        destination: &DestinationName,
        memory: CanaryMemory,
    ) -> Result<(), StoreError>;

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

    /// Says that a page of a known sender was answered with our own trouble: evidence that Mixpanel
    /// does not take the run for a success. Written down as soon as can be, and before whatever
    /// page is appended next; a kill before that forgets it.
    fn note_refused(&self, source: &SourceName, page: &Page, now: Millis);

    /// Decides on the removals of a cohort that are held; how many there are, `None` where there
    /// is no such cohort. They are carried out by the fold.
    async fn decide_held(
        &self,
        source: &SourceName,
        cohort_id: &str,
        decision: HoldDecision,
        now: Millis,
    ) -> Result<Option<u64>, StoreError>;

    /// Lets every member of a cohort leave, and then forgets it but for its trait key; how many
    /// members it has, `None` where there is no such cohort. Carried out by the fold.
    async fn retire(
        &self,
        source: &SourceName,
        cohort_id: &str,
        now: Millis,
    ) -> Result<Option<u64>, StoreError>;

    /// Pauses a cohort or resumes it, for good until it is said otherwise; how many of its traits are
    /// pending, `None` where there is no such cohort. While it is paused, it is folded as ever and
    /// [`Store::exchange`] claims none of its traits, but to erase a person.
    async fn pause_cohort(
        &self,
        source: &SourceName,
        cohort_id: &str,
        pauses: bool,
        now: Millis,
    ) -> Result<Option<u64>, StoreError>;

    /// Pauses a destination or resumes it, for good until it is said otherwise; how many traits are
    /// pending there, `None` where the settings have no such destination. Whoever delivers to it has
    /// to see to it that nobody is called.
    async fn pause_destination(
        &self,
        destination: &DestinationName,
        pauses: bool,
        now: Millis,
    ) -> Result<Option<u64>, StoreError>;

    /// The destinations that are paused.
    async fn paused_destinations(&self) -> Result<Vec<DestinationName>, StoreError>;

    /// What is still to be written to the destinations of the settings, and how many calls were made
    /// to each in a month. Looks at everything pending.
    async fn unwritten(&self, month: Month) -> Result<Unwritten, StoreError>;

    /// Moves a piece, of about `limit` pending traits, out of the way of claims, or back: what pausing
    /// and resuming cohorts takes. Returns whether there was anything to do; killed anywhere, it goes
    /// on where it was.
    async fn follow_pauses(&self, limit: usize) -> Result<bool, StoreError>;

    /// Erases one person from the ledger, and with `traits` from Flagsmith too; returns of how many
    /// cohorts anything was known.
    async fn forget(&self, identifier: &str, traits: bool, now: Millis) -> Result<u64, StoreError>;

    /// A random name of this ledger, made when it was created.
    fn ledger_id(&self) -> &str;

    /// The secret under which identifiers are hashed for logs, made when the ledger was created.
    fn log_hash_key(&self) -> &[u8; 32];

    /// Fails where a page could not be written down now.
    async fn ready(&self) -> Result<(), StoreError>;

    /// Finishes what was begun and lets the ledger go.
    async fn close(&self);
}
