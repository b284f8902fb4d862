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

/// One half of a run: Mixpanel sends a difference as who joined and who left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Half {
    /// `add_members`.
    Add,
    /// `remove_members`.
    Remove,
}

impl Half {
    /// What it says of the people it names.
    pub const fn is_member(self) -> bool {
        matches!(self, Half::Add)
    }

    /// The other half of a run.
    pub const fn partner(self) -> Self {
        match self {
            Half::Add => Half::Remove,
            Half::Remove => Half::Add,
        }
    }

    /// The half that an action is; `None` for a full sync.
    pub const fn of(action: Action) -> Option<Self> {
        match action {
            Action::Members => None,
            Action::AddMembers => Some(Half::Add),
            Action::RemoveMembers => Some(Half::Remove),
        }
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

/// What a person is to a cohort, as its trait should show.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Wanted {
    /// Not, or no longer, in it.
    Left,
    /// In it.
    Member,
    /// To be erased: no trait may remain, whatever becomes of leavers.
    Erased,
}

impl Wanted {
    /// Of a member or a leaver.
    pub const fn of(member: bool) -> Self {
        if member { Wanted::Member } else { Wanted::Left }
    }
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
    /// The state wanted for somebody, under the destination's rule for leavers.
    pub const fn of(wanted: Wanted, on_leave: OnLeave) -> Self {
        match (wanted, on_leave) {
            (Wanted::Member, _) => Target::True,
            (Wanted::Left, OnLeave::False) => Target::False,
            (Wanted::Left, OnLeave::Delete) | (Wanted::Erased, _) => Target::Absent,
        }
    }

    /// For whom this state is usually wanted.
    pub const fn meant(self, on_leave: OnLeave) -> Wanted {
        match (self, on_leave) {
            (Target::True, _) => Wanted::Member,
            (Target::False, _) | (Target::Absent, OnLeave::Delete) => Wanted::Left,
            (Target::Absent, OnLeave::False) => Wanted::Erased,
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
