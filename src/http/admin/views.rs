//! The admin API's JSON: what the listener writes is what the command line reads.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::rfc3339;
use crate::status::{DestinationStatus, RefusedSecret, StatusSnapshot};
use crate::store::{DeadLetter, DeliveryState, MembershipDelivery, MembershipView};

mod cohort;
mod pause;
mod plan;
mod resync;

pub use cohort::{
    CohortReply, CohortsReply, Decided, Decision, DecisionOrder, DeliveryReply, FullSyncReply,
    HeldRemovalsReply, Retiring, RunsReply, SessionReply, StandingWord,
};
pub use pause::PauseReply;
pub use plan::{BudgetReply, PlanReply, PlannedCohortReply, PlannedReply};
pub use resync::{Cancelled, Pending, ResyncOf, ResyncQuery, ResyncRate, ResyncReply};

/// The answer to a probe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HealthReply {
    /// `ok`, `ready` or `not ready`.
    pub status: String,
    /// Why it is not ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// The answer to a call that was not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorReply {
    /// Why.
    pub error: String,
}

/// How the ledger and the destinations are doing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StatusReply {
    /// The program's.
    pub version: String,
    /// `ok`, or why the ledger cannot be used.
    pub ledger: String,
    /// Whether this process folds and delivers; false where another replica does.
    pub leading: bool,
    /// Pages that wait in the inbox.
    pub backlog: u64,
    /// Secret files that changed and cannot be used; what stood in them before is in force.
    pub refused_secrets: Vec<RefusedSecretReply>,
    /// Every destination of the settings.
    pub destinations: Vec<DestinationReply>,
}

/// A secret file that changed and cannot be used.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RefusedSecretReply {
    /// The variable, or the key of the settings file, that names it.
    pub setting: String,
    /// Its path.
    pub file: String,
    /// What is wrong with it.
    pub reason: String,
    /// Since when it cannot be used.
    pub since: String,
}

impl From<&RefusedSecret> for RefusedSecretReply {
    fn from(refused: &RefusedSecret) -> Self {
        RefusedSecretReply {
            setting: refused.setting.clone(),
            file: refused.file.clone(),
            reason: refused.reason.clone(),
            since: rfc3339::utc(refused.since),
        }
    }
}

/// One destination.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DestinationReply {
    /// Which.
    pub name: String,
    /// `ok`, `backing_off` or `halted`; `standby` where another replica delivers, which alone knows.
    pub state: String,
    /// Why it is not `ok`.
    #[schema(required)]
    pub reason: Option<String>,
    /// Whether an operator paused it: nothing is called until it is resumed.
    pub paused: bool,
    /// Whether nothing is called, to show what would be.
    pub dry_run: bool,
    /// What somebody should look at, though calls go out.
    #[schema(required)]
    pub warning: Option<String>,
    /// Calls under way.
    pub in_flight: usize,
    /// Calls that may be under way at once: what the destination was found to bear.
    pub in_flight_limit: usize,
    /// The calls of this month; null before delivery began, and on standby.
    #[schema(required)]
    pub calls: Option<CallsReply>,
    /// What is being written again; null where nothing is.
    #[schema(required)]
    pub resync: Option<ResyncReply>,
    /// How the canaries go.
    pub canary: CanaryReply,
}

/// The canaries of a destination since the start: writes that are read back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CanaryReply {
    /// When the last one was sent that stayed; null where none was yet.
    #[schema(required)]
    pub stayed_at: Option<String>,
    /// When the next one is sent at the latest; null while one is under way.
    #[schema(required)]
    pub next_at: Option<String>,
}

/// The calls of a calendar month (UTC): every HTTP request to Flagsmith.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CallsReply {
    /// Which, such as `2026-11`.
    pub month: String,
    /// Calls made so far.
    pub made: u64,
    /// Calls allowed; null where there is no budget.
    #[schema(required)]
    pub budget: Option<u64>,
    /// Calls by the end of the month: those made, as many a day as so far, and one for each pending
    /// change; null where the ledger cannot be read.
    #[schema(required)]
    pub forecast: Option<u64>,
}

impl DestinationReply {
    /// One destination of a snapshot.
    pub fn of(status: &DestinationStatus, snapshot: &StatusSnapshot) -> Self {
        DestinationReply {
            name: status.name.to_string(),
            state: status.state.as_str().to_owned(),
            reason: status.state.reason().map(str::to_owned),
            paused: status.paused,
            dry_run: status.dry_run,
            warning: status.warning.as_deref().map(str::to_owned),
            in_flight: status.in_flight,
            in_flight_limit: status.in_flight_limit,
            calls: status.calls.map(|calls| CallsReply {
                month: calls.month.to_string(),
                made: calls.made,
                budget: calls.budget,
                forecast: snapshot.forecast(status),
            }),
            resync: status.resync.as_ref().map(ResyncReply::from),
            canary: CanaryReply {
                stayed_at: status.canary.stayed_at.map(rfc3339::utc),
                next_at: status.canary.next_at.map(rfc3339::utc),
            },
        }
    }
}

/// The cohorts of one person.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MemberReply {
    /// Whose.
    pub identifier: String,
    /// Every cohort that the ledger knows of the person, left ones included.
    pub cohorts: Vec<MembershipReply>,
}

impl MemberReply {
    /// The cohorts of one person.
    pub fn of(identifier: String, cohorts: Vec<MembershipView>) -> Self {
        MemberReply {
            identifier,
            cohorts: cohorts.into_iter().map(MembershipReply::from).collect(),
        }
    }
}

/// One cohort of one person.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MembershipReply {
    /// The cohort's source.
    pub source: String,
    /// Mixpanel's id.
    pub cohort_id: String,
    /// Flagsmith's trait for it.
    pub trait_key: String,
    /// Whether the person is in it.
    pub member: bool,
    /// What each destination knows.
    pub destinations: Vec<MembershipDeliveryReply>,
}

impl From<MembershipView> for MembershipReply {
    fn from(membership: MembershipView) -> Self {
        MembershipReply {
            source: membership.source.to_string(),
            cohort_id: membership.cohort_id,
            trait_key: membership.trait_key.to_string(),
            member: membership.member,
            destinations: membership
                .destinations
                .into_iter()
                .map(MembershipDeliveryReply::from)
                .collect(),
        }
    }
}

/// What one destination knows of one person's cohort.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MembershipDeliveryReply {
    /// Which destination.
    pub name: String,
    /// The value it is known to hold; null where the trait is absent or not known.
    #[schema(required)]
    pub written: Option<bool>,
    /// Where delivery stands.
    pub state: DeliveryWord,
    /// The last failure.
    #[schema(required)]
    pub error: Option<String>,
}

impl From<MembershipDelivery> for MembershipDeliveryReply {
    fn from(delivery: MembershipDelivery) -> Self {
        MembershipDeliveryReply {
            name: delivery.name.to_string(),
            written: delivery.written,
            state: delivery.state.into(),
            error: delivery.error,
        }
    }
}

/// Where the delivery of one trait stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeliveryWord {
    /// As wanted.
    Written,
    /// On its way.
    Pending,
    /// Given up until an operator retries it.
    Dead,
}

impl From<DeliveryState> for DeliveryWord {
    fn from(state: DeliveryState) -> Self {
        match state {
            DeliveryState::Written => DeliveryWord::Written,
            DeliveryState::Pending => DeliveryWord::Pending,
            DeliveryState::Dead => DeliveryWord::Dead,
        }
    }
}

/// The query of forgetting a person.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ForgetQuery {
    /// Has the traits removed from Flagsmith too; without it they stay there as they are.
    #[param(inline)]
    pub traits: Option<TraitsOfTheForgotten>,
}

/// What becomes of the traits of a forgotten person.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TraitsOfTheForgotten {
    /// They are removed from Flagsmith.
    Delete,
}

/// The answer to forgetting a person.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Forgotten {
    /// Cohorts of which anything was known.
    pub forgotten: u64,
}

/// The traits that could not be written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DeadLettersReply {
    /// Oldest first.
    pub dead_letters: Vec<DeadLetterReply>,
}

impl DeadLettersReply {
    /// The letters in the order given.
    pub fn of(letters: Vec<DeadLetter>) -> Self {
        DeadLettersReply {
            dead_letters: letters.into_iter().map(DeadLetterReply::from).collect(),
        }
    }
}

/// A trait that could not be written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DeadLetterReply {
    /// Where to.
    pub destination: String,
    /// Whose.
    pub identifier: String,
    /// Which cohort's source.
    pub source: String,
    /// Which cohort.
    pub cohort_id: String,
    /// Which trait.
    pub trait_key: String,
    /// Whether the person is in the cohort.
    pub member: bool,
    /// Why.
    pub error: String,
    /// Since when, RFC 3339.
    pub since: String,
}

impl From<DeadLetter> for DeadLetterReply {
    fn from(letter: DeadLetter) -> Self {
        DeadLetterReply {
            destination: letter.destination.to_string(),
            identifier: letter.identifier,
            source: letter.source.to_string(),
            cohort_id: letter.cohort_id,
            trait_key: letter.trait_key.to_string(),
            member: letter.member,
            error: letter.error,
            since: rfc3339::utc(letter.since),
        }
    }
}

/// The body of `dead-letters/retry` and `dead-letters/drop`; a missing key means any.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DeadLetterOrder {
    /// Only of this destination.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination: Option<String>,
    /// Only of this person.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identifier: Option<String>,
}

/// The answer to `dead-letters/retry`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Retried {
    /// Traits pending again.
    pub retried: u64,
}

/// The answer to `dead-letters/drop`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Dropped {
    /// Traits given up for good.
    pub dropped: u64,
}
