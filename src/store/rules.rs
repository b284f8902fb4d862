//! What the settings say that the ledger needs.

use std::sync::Arc;

use crate::clock::Millis;
use crate::cohort::{DestinationName, OnLeave, SourceName};
use crate::guard::RemovalGuard;
use crate::mixpanel::IdentifierRules;
use crate::trait_key::{ExplicitKey, TraitKeyTemplate};

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
