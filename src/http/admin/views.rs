//! The admin API's JSON: what the listener writes is what the command line reads.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::clock::Millis;
use crate::cohort::Action;
use crate::rfc3339;
use crate::status::{DestinationStatus, oldest_pending_ms};
use crate::store::{
    CohortView, DeadLetter, DeliveryState, DeliveryView, MembershipDelivery, MembershipView,
    SessionView,
};

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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StatusReply {
    /// The program's.
    pub version: String,
    /// `ok`, or why the ledger cannot be used.
    pub ledger: String,
    /// Pages that wait in the inbox.
    pub backlog: u64,
    /// Every destination of the settings.
    pub destinations: Vec<DestinationReply>,
}

/// One destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DestinationReply {
    /// Which.
    pub name: String,
    /// `ok`, `backing_off` or `halted`.
    pub state: String,
    /// Why it is not `ok`.
    #[schema(required)]
    pub reason: Option<String>,
    /// Calls under way.
    pub in_flight: usize,
}

impl From<DestinationStatus> for DestinationReply {
    fn from(status: DestinationStatus) -> Self {
        DestinationReply {
            name: status.name.to_string(),
            state: status.state.as_str().to_owned(),
            reason: status.state.reason().map(str::to_owned),
            in_flight: status.in_flight,
        }
    }
}

/// The cohorts heard of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CohortsReply {
    /// In order of source and id.
    pub cohorts: Vec<CohortReply>,
}

impl CohortsReply {
    /// The cohorts as they are at `now`.
    pub fn of(cohorts: Vec<CohortView>, now: Millis) -> Self {
        CohortsReply {
            cohorts: cohorts
                .into_iter()
                .map(|cohort| CohortReply::of(cohort, now))
                .collect(),
        }
    }
}

/// One cohort.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CohortReply {
    /// Its source.
    pub source: String,
    /// Mixpanel's id.
    pub cohort_id: String,
    /// Mixpanel's project.
    pub project_id: String,
    /// The name last heard.
    pub name: String,
    /// Flagsmith's trait for it.
    pub trait_key: String,
    /// People in it.
    pub members: u64,
    /// When a page of it last arrived, RFC 3339.
    pub last_heard_at: String,
    /// The session last heard.
    #[schema(required)]
    pub session: Option<SessionReply>,
    /// What each destination knows of it.
    pub destinations: Vec<DeliveryReply>,
}

impl CohortReply {
    fn of(cohort: CohortView, now: Millis) -> Self {
        CohortReply {
            source: cohort.source.to_string(),
            cohort_id: cohort.cohort_id,
            project_id: cohort.project_id,
            name: cohort.name,
            trait_key: cohort.trait_key.to_string(),
            members: cohort.members,
            last_heard_at: rfc3339::utc(cohort.last_heard_at),
            session: cohort.session.map(SessionReply::from),
            destinations: cohort
                .destinations
                .iter()
                .map(|delivery| DeliveryReply::of(delivery, now))
                .collect(),
        }
    }
}

/// The session of a cohort last heard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SessionReply {
    /// Mixpanel's id; null for a page without one.
    #[schema(required)]
    pub id: Option<String>,
    /// What it asks for.
    pub action: Action,
    /// Pages held.
    pub pages_received: u32,
    /// Pages there are.
    pub pages_total: u32,
    /// When it took effect, RFC 3339.
    #[schema(required)]
    pub completed_at: Option<String>,
}

impl From<SessionView> for SessionReply {
    fn from(session: SessionView) -> Self {
        SessionReply {
            id: Some(session.id).filter(|id| !id.is_empty()),
            action: session.action,
            pages_received: session.pages_received,
            pages_total: session.pages_total,
            completed_at: session.completed_at.map(rfc3339::utc),
        }
    }
}

/// What one destination knows of one cohort.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DeliveryReply {
    /// Which destination.
    pub name: String,
    /// Members whose trait is known to be `true` there.
    pub written: u64,
    /// People whose trait is not yet as wanted.
    pub pending: u64,
    /// People whose trait cannot be written.
    pub dead: u64,
    /// Age of the oldest pending change; null where there is none.
    #[schema(required)]
    pub oldest_pending_seconds: Option<i64>,
}

impl DeliveryReply {
    fn of(delivery: &DeliveryView, now: Millis) -> Self {
        DeliveryReply {
            name: delivery.name.to_string(),
            written: delivery.written,
            pending: delivery.pending,
            dead: delivery.dead,
            oldest_pending_seconds: oldest_pending_ms(delivery, now).map(|ms| ms / 1_000),
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

/// The answer to `resync`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Pending {
    /// Traits pending again.
    pub pending: u64,
}
