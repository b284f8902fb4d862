//! The store: the inbox of pages and the ledger of membership, behind one trait.
//!
//! What is promised at each arrow:
//!
//! - [`Store::append`] returns once the page is on disk.
//! - [`Store::assemble`] and [`Store::apply`] are transactions: a kill between two of them loses
//!   nothing and repeats nothing.
//! - [`Store::exchange`] makes claims durable before it returns them: whatever is killed after
//!   that is found as [`Told::Unknown`](crate::cohort::Told::Unknown) and asserted again.
//! - What [`Store::exchange`] settles as written is kept until [`Store::proved`]; [`Store::doubt`]
//!   makes it pending again.
//! - Where several processes share a ledger, one at a time folds and delivers, between
//!   [`Store::lead`] and the end of its [`Term`]; each takes in pages and operator's orders.

use std::sync::Arc;

use async_trait::async_trait;

use crate::calls::{CallOrder, CallsCounted};
use crate::canary::CanaryMemory;
use crate::clock::Millis;
use crate::cohort::{DestinationName, SourceName};
use crate::mixpanel::Page;
use crate::month::Month;
use crate::plan::Unwritten;
use crate::roster::PersonHash;

mod appender;
mod backup;
mod claim;
mod database;
mod error;
mod ledger;
mod ledger_store;
mod moving;
mod place;
mod postgres;
mod postgres_url;
mod readers;
mod refusals;
mod resyncs;
mod rules;
mod session;
mod sqlite;
mod term;
mod terms;
mod views;
mod worker;
mod writer;

pub use backup::{BackedUp, BackupError, back_up};
pub use claim::{Claim, ClaimedTrait, Claims, Outcome, Settlement};
pub use error::StoreError;
pub use ledger::keys::key_changes;
pub use ledger::leads::route_changes;
pub use ledger_store::LedgerStore;
pub use moving::{Compared, MoveError, MoveProgress, Moved, move_ledger, take_back};
pub use place::Database;
pub use postgres_url::PostgresUrl;
pub use readers::MOST_CONNECTIONS;
pub use resyncs::{ResyncOrder, ResyncRoom, ResyncScope, ResyncStep, ResyncView};
pub use rules::{DestinationRules, SourceRules};
pub use session::{
    Applied, Assembled, Chunk, ChunkLayer, Counted, Effect, FoundLayer, Judgement, MOST_LAYERS,
    OWN_ROLE, PagePeople, Recognised, WholeSession, Witness,
};
pub use sqlite::{SCHEMA_VERSION, schema_version};
pub use term::Term;
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

/// The inbox and the ledger.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Waits until this process may fold and deliver, and gives its term. Whatever folds or settles
    /// needs one, and fails with [`StoreError::NotLeading`] where another process has it.
    async fn lead(&self) -> Result<Term, StoreError>;

    /// Whether other processes may use the same ledger meanwhile.
    fn is_shared(&self) -> bool;

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
    /// process or a later one, and of a paused cohort not until it is resumed. Where the same is
    /// ordered already, it begins anew. Returns how many traits that are, by the cohorts' counters;
    /// `None` where there is no such cohort.
    async fn order_resync(
        &self,
        order: ResyncOrder,
        now: Millis,
    ) -> Result<Option<u64>, StoreError>;

    /// Cancels such orders: of a cohort its own, of a destination all. What was made pending already
    /// is written. Returns how many traits are not reached then, nor by an order of everything that
    /// there is; `None` where there is no such cohort.
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

    /// What is still to be written to the destinations of the settings, and to be written again, and
    /// how many calls were made to each in a month. Looks at everything pending.
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
