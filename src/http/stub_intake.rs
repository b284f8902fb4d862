//! Sources that one known sender may send to.

use std::sync::Arc;

use crate::clock::ManualClock;
use crate::config::Source;
use crate::http::authenticate::{BODY_DEADLINE, Credentials, Intake, Sources};
use crate::mixpanel::{Anonymous, IdentifierRules};
use crate::trait_key::TraitKeyTemplate;

/// `user:pass`.
pub(crate) const BASIC: &str = "Basic dXNlcjpwYXNz";

/// An intake of these sources, each with these identifier properties.
pub(crate) fn intake(sources: &[&str], properties: &[&str]) -> Intake {
    let source = |&name: &&str| {
        Arc::new(Source {
            name: name.into(),
            credentials: Credentials::parse_basic("user:pass").unwrap(),
            identifier: IdentifierRules::new(properties.iter().copied(), Anonymous::Skip),
            trait_key: TraitKeyTemplate::default(),
            explicit_keys: Vec::new(),
            hold_removals_above: None,
        })
    };
    Intake {
        sources: Arc::new(Sources::new(sources.iter().map(source))),
        max_body_bytes: 16 * 1024 * 1024,
        body_deadline: BODY_DEADLINE,
        clock: Arc::new(ManualClock::at(0)),
    }
}
