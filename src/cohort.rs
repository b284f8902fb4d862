//! The words of the domain: actions, names, and what a destination was told about one person.
//!
//! Nothing here does I/O; everything here is small enough to be a value.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What one Mixpanel request asks for.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// The whole cohort: replaces what is held.
    Members,
    /// People who joined since the last successful sync.
    AddMembers,
    /// People who left since the last successful sync.
    RemoveMembers,
}

impl Action {
    /// The word on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Action::Members => "members",
            Action::AddMembers => "add_members",
            Action::RemoveMembers => "remove_members",
        }
    }

    /// Reads the word on the wire; `None` for an action that is not Mixpanel's.
    pub fn parse(word: &str) -> Option<Self> {
        [Action::Members, Action::AddMembers, Action::RemoveMembers]
            .into_iter()
            .find(|action| action.as_str() == word)
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The name of a source (a Mixpanel connection), as in the webhook's path.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct SourceName(pub Arc<str>);

impl From<&str> for SourceName {
    fn from(name: &str) -> Self {
        SourceName(name.into())
    }
}

impl fmt::Display for SourceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of a destination (a Flagsmith environment).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct DestinationName(pub Arc<str>);

impl From<&str> for DestinationName {
    fn from(name: &str) -> Self {
        DestinationName(name.into())
    }
}

impl fmt::Display for DestinationName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a leaver's trait becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum OnLeave {
    /// The trait is set to `false`.
    #[default]
    False,
    /// The trait is removed.
    Delete,
}

/// The state a destination should be in for one person and one cohort.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// The trait is `true`.
    True,
    /// The trait is `false`.
    False,
    /// There is no such trait.
    Absent,
}

impl Target {
    /// The state wanted for a member (`true`) or a leaver, under the destination's rule for leavers.
    pub const fn of(member: bool, on_leave: OnLeave) -> Self {
        match (member, on_leave) {
            (true, _) => Target::True,
            (false, OnLeave::False) => Target::False,
            (false, OnLeave::Delete) => Target::Absent,
        }
    }

    /// The `trait_value` that brings this state about: `null` deletes.
    pub const fn trait_value(self) -> Option<bool> {
        match self {
            Target::True => Some(true),
            Target::False => Some(false),
            Target::Absent => None,
        }
    }
}

/// What a destination is known to hold for one person and one cohort.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Told {
    /// It was proved to hold this.
    Known(Target),
    /// Anything is possible: a call is under way, its reply was lost, or the ledger is younger
    /// than the trait may be.
    Unknown,
}

impl Told {
    /// Whether a call is needed to bring the destination to `target`.
    pub fn needs_write(self, target: Target) -> bool {
        self != Told::Known(target)
    }
}
