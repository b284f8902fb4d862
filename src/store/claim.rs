//! What delivery takes from the ledger, and what it brings back.

use std::sync::Arc;

use super::TraitRef;
use crate::clock::Millis;
use crate::cohort::{Target, Told};

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
        /// Whether the write may still land late.
        may_land_late: bool,
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
