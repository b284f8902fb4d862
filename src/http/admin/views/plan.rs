//! The plan: what it takes to write everything that is pending.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::config::Kind;
use crate::plan::{BudgetLeft, UnwrittenOf};
use crate::planner::{Plan, Planned};

/// What it takes to write everything that is pending.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PlanReply {
    /// Pages that wait to be folded; what they bring is not in the plan.
    pub waiting_pages: u64,
    /// Whether nothing will be added to it but by a further page. While something is being written
    /// again it is false, and what of that is not pending yet is in the figures of its destination: a
    /// person for each trait, at most.
    pub complete: bool,
    /// Every destination of the settings.
    pub destinations: Vec<PlannedReply>,
}

/// What it takes at one destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PlannedReply {
    /// Which destination.
    pub name: String,
    /// `sdk` or `core-bulk`.
    pub kind: String,
    /// Whether nothing is called, to show what would be.
    pub dry_run: bool,
    /// Whether an operator paused it.
    pub paused: bool,
    /// Different people to be written, without paused cohorts.
    pub identities: u64,
    /// Traits to be written, without paused cohorts.
    pub traits: u64,
    /// Calls that this takes; in bulk, as few as they can be. Canaries come on top.
    pub calls: u64,
    /// How long at `--max-calls-per-second`, at least; null where the rate is not limited.
    #[schema(required)]
    pub seconds: Option<u64>,
    /// Beside the call budget; null where there is none.
    #[schema(required)]
    pub budget: Option<BudgetReply>,
    /// Cohorts of which anything is to be written.
    pub cohorts: Vec<PlannedCohortReply>,
}

/// What is left of a month's call budget.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BudgetReply {
    /// Which month, such as `2026-11`.
    pub month: String,
    /// Calls left.
    pub left: u64,
    /// Whether all could be written within it.
    pub enough: bool,
}

/// What one cohort takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PlannedCohortReply {
    /// Its source.
    pub source: String,
    /// Mixpanel's id.
    pub cohort_id: String,
    /// The name last heard.
    pub name: String,
    /// Whether it is paused: then it is not in the destination's figures.
    pub paused: bool,
    /// Traits to be written.
    pub traits: u64,
    /// Calls that it would take alone; people of several cohorts are one call for all of them.
    pub calls_alone: u64,
}

impl From<Plan> for PlanReply {
    fn from(plan: Plan) -> Self {
        PlanReply {
            waiting_pages: plan.waiting_pages,
            complete: plan.is_complete,
            destinations: plan
                .destinations
                .into_iter()
                .map(PlannedReply::from)
                .collect(),
        }
    }
}

impl From<Planned> for PlannedReply {
    fn from(planned: Planned) -> Self {
        let Planned {
            terms,
            status,
            unwritten,
            cost,
        } = planned;
        let words = Kind::WORDS.iter().find(|(_, kind)| *kind == terms.kind);
        PlannedReply {
            name: status.name.to_string(),
            kind: words.map_or("", |(word, _)| word).to_owned(),
            dry_run: status.dry_run,
            paused: status.paused,
            identities: unwritten.load.identities,
            traits: unwritten.load.traits,
            calls: cost.calls,
            seconds: cost.seconds,
            budget: cost.budget.map(BudgetReply::from),
            cohorts: unwritten
                .cohorts
                .into_iter()
                .map(|cohort| PlannedCohortReply::of(cohort, terms.kind))
                .collect(),
        }
    }
}

impl From<BudgetLeft> for BudgetReply {
    fn from(budget: BudgetLeft) -> Self {
        BudgetReply {
            month: budget.month.to_string(),
            left: budget.left,
            enough: budget.is_enough,
        }
    }
}

impl PlannedCohortReply {
    fn of(cohort: UnwrittenOf, kind: Kind) -> Self {
        PlannedCohortReply {
            source: cohort.source.to_string(),
            cohort_id: cohort.cohort_id,
            name: cohort.name,
            paused: cohort.paused,
            traits: cohort.load.traits,
            calls_alone: cohort.load.calls(kind),
        }
    }
}
