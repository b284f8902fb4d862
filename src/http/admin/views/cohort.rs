//! Cohorts, and what is decided on them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::clock::Millis;
use crate::cohort::Action;
use crate::rfc3339;
use crate::status::{FULL_SYNC_HOW, full_sync_reason, oldest_pending_ms};
use crate::store::{
    CohortStanding, CohortView, DeliveryView, FullSyncReason, HeldRemovals, HoldDecision,
    RunCounts, SessionView,
};

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
    /// The name before that; null where the cohort was never renamed.
    #[schema(required)]
    pub former_name: Option<String>,
    /// Whether its pages take effect.
    pub state: StandingWord,
    /// Whether none of its traits is written until it is resumed.
    pub paused: bool,
    /// Flagsmith's trait for it.
    pub trait_key: String,
    /// People in it.
    pub members: u64,
    /// When a page of it last arrived, RFC 3339.
    pub last_heard_at: String,
    /// The session last heard.
    #[schema(required)]
    pub session: Option<SessionReply>,
    /// Why who is in it here may not be who is in it in Mixpanel; null where there is no reason to
    /// think so.
    #[schema(required)]
    pub needs_full_sync: Option<FullSyncReply>,
    /// Removals that wait for a decision; null where none do.
    #[schema(required)]
    pub held_removals: Option<HeldRemovalsReply>,
    /// Members that cannot have the trait, of the last full sync and all joins since, by reason: the
    /// words of the metric `cohort_bridge_members_set_aside_total`.
    pub set_aside: BTreeMap<String, u64>,
    /// Runs of differences, by what became of them.
    pub runs: RunsReply,
    /// What each destination that it goes to knows of it; empty where no route leads it anywhere.
    pub destinations: Vec<DeliveryReply>,
}

impl CohortReply {
    fn of(cohort: CohortView, now: Millis) -> Self {
        CohortReply {
            source: cohort.source.to_string(),
            cohort_id: cohort.cohort_id,
            project_id: cohort.project_id,
            name: cohort.name,
            former_name: cohort.former_name,
            state: cohort.standing.into(),
            paused: cohort.paused,
            trait_key: cohort.trait_key.to_string(),
            members: cohort.members,
            last_heard_at: rfc3339::utc(cohort.last_heard_at),
            session: cohort.session.map(SessionReply::from),
            needs_full_sync: cohort.needs_full_sync.as_ref().map(FullSyncReply::from),
            held_removals: cohort.held.map(|held| HeldRemovalsReply::of(Some(held))),
            set_aside: cohort
                .set_aside
                .into_iter()
                .map(|(reason, members)| (reason.as_str().to_owned(), members))
                .collect(),
            runs: cohort.runs.into(),
            destinations: cohort
                .destinations
                .iter()
                .map(|delivery| DeliveryReply::of(delivery, now))
                .collect(),
        }
    }
}

/// Whether a cohort is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum StandingWord {
    /// Its pages take effect.
    Followed,
    /// Retired, and its leavers are not all delivered yet.
    Retiring,
    /// Forgotten but for its trait key; a whole full sync brings it back.
    Retired,
}

impl From<CohortStanding> for StandingWord {
    fn from(standing: CohortStanding) -> Self {
        match standing {
            CohortStanding::Followed => StandingWord::Followed,
            CohortStanding::Retiring => StandingWord::Retiring,
            CohortStanding::Retired => StandingWord::Retired,
        }
    }
}

/// Why a cohort needs a full sync, and how to come by one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FullSyncReply {
    /// A sentence.
    pub reason: String,
    /// What to do in Mixpanel.
    pub how: String,
}

impl From<&FullSyncReason> for FullSyncReply {
    fn from(reason: &FullSyncReason) -> Self {
        FullSyncReply {
            reason: full_sync_reason(reason),
            how: FULL_SYNC_HOW.to_owned(),
        }
    }
}

/// Removals that wait for a decision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HeldRemovalsReply {
    /// People whose trait stays `true` until then.
    pub held: u64,
    /// Mixpanel's id of the session that would remove them; null where it has none.
    #[schema(required)]
    pub session: Option<String>,
    /// Since when the first of them are held, RFC 3339; null where none are.
    #[schema(required)]
    pub since: Option<String>,
}

impl HeldRemovalsReply {
    /// What is held, `None` being nothing.
    pub fn of(held: Option<HeldRemovals>) -> Self {
        match held {
            Some(held) => HeldRemovalsReply {
                held: held.held,
                session: Some(held.session).filter(|session| !session.is_empty()),
                since: Some(rfc3339::utc(held.since)),
            },
            None => HeldRemovalsReply {
                held: 0,
                session: None,
                since: None,
            },
        }
    }
}

/// The body of `held-removals`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DecisionOrder {
    /// What becomes of the removals.
    pub decision: Decision,
}

/// What becomes of held removals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// They are right: the traits go.
    Approve,
    /// They are wrong: the traits stay until the next full sync.
    Discard,
}

impl From<Decision> for HoldDecision {
    fn from(decision: Decision) -> Self {
        match decision {
            Decision::Approve => HoldDecision::Approve,
            Decision::Discard => HoldDecision::Discard,
        }
    }
}

/// The answer to a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Decided {
    /// As sent.
    pub decision: Decision,
    /// People it is about.
    pub held: u64,
}

/// The answer to `retire`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Retiring {
    /// Members that leave.
    pub retiring: u64,
}

/// Runs of differences, by what became of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RunsReply {
    /// Both halves came.
    pub accepted: u64,
    /// Begun again by Mixpanel before both halves had come: taken back.
    pub dropped: u64,
    /// Accepted, then contradicted by the next: taken back.
    pub undone: u64,
}

impl From<RunCounts> for RunsReply {
    fn from(runs: RunCounts) -> Self {
        RunsReply {
            accepted: runs.accepted,
            dropped: runs.dropped,
            undone: runs.undone,
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
    /// Traits that are not yet as wanted, under a former key of the cohort too.
    pub pending: u64,
    /// Traits that cannot be written, as above.
    pub dead: u64,
    /// Age of the oldest pending change; null where there is none.
    #[schema(required)]
    pub oldest_pending_seconds: Option<i64>,
    /// Whether the cohort's first session is whole and delivered. Until it is, somebody without the
    /// trait is not known to be outside the cohort.
    pub ready: bool,
}

impl DeliveryReply {
    fn of(delivery: &DeliveryView, now: Millis) -> Self {
        DeliveryReply {
            name: delivery.name.to_string(),
            written: delivery.written,
            pending: delivery.pending,
            dead: delivery.dead,
            oldest_pending_seconds: oldest_pending_ms(delivery, now).map(|ms| ms / 1_000),
            ready: delivery.ready,
        }
    }
}
