//! Mixpanel's wire types → [`Page`]. Pure, and the only place that knows this payload.
//!
//! [`parse`] streams: no tree is built, an identifier is copied only once it is known to be kept,
//! and nothing leaves a member but its identifier and, where that is no `mixpanel_distinct_id`, a
//! hash of this one. How odd payloads are read:
//!
//! - Ids are strings or whole numbers, and keep the text they were sent with, so that numbers above
//!   2^53 survive. `1.0` and `1e3` are not usable as ids: which text the application identifies
//!   with cannot be known from them.
//! - A lone surrogate (`\ud800`) in a member matters only in its ids; in a cohort's name it becomes
//!   U+FFFD, in an id of the envelope it is an error.
//! - A key twice in the envelope is an error, twice in a member the last counts. `members` stands
//!   in `parameters` or beside it; in both it is a key twice.
//! - A person is not an identifier. Where identifiers come from another property, two people can
//!   share one, and the page on which somebody leaves may lack it: such a member is still
//!   [`set aside`](Page::set_aside), but the roster keeps the person.
//! - `page_info` is proof of completeness, so what cannot be true (page 0, page 4 of 3, a missing
//!   half) is an error rather than ignored; only an absent or null one means 'complete in itself'.

mod envelope;
mod error;
#[cfg(test)]
mod fixtures;
mod identifier;
mod member;
#[cfg(test)]
mod tests;
mod text;

use std::sync::Arc;

pub use envelope::parse;
pub use error::{ParseError, Rejected};
pub(crate) use text::is_space;

use crate::cohort::Action;
use crate::roster::Roster;

/// The property that Mixpanel sends on every member of its own accord: its own id of the person.
pub const DEFAULT_IDENTIFIER_PROPERTY: &str = "mixpanel_distinct_id";

/// Which property of a member becomes the Flagsmith identifier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentifierRules {
    properties: Vec<String>,
    anonymous: Anonymous,
    /// Written once, because every page carries it.
    description: Arc<str>,
}

impl IdentifierRules {
    /// Rules of at least one property.
    pub fn new(
        properties: impl IntoIterator<Item: Into<String>>,
        anonymous: Anonymous,
    ) -> IdentifierRules {
        let properties: Vec<String> = properties.into_iter().map(Into::into).collect();
        let fate = match anonymous {
            Anonymous::Skip => "skipped",
            Anonymous::Keep => "kept",
        };
        IdentifierRules {
            description: format!("{}; anonymous ids {fate}", properties.join(",")).into(),
            properties,
            anonymous,
        }
    }

    /// Property names; the first that is usable on a member wins.
    pub fn properties(&self) -> &[String] {
        &self.properties
    }

    /// What to do with ids that begin with `$device:`.
    pub fn anonymous(&self) -> Anonymous {
        self.anonymous
    }

    /// Whether identifiers can come from elsewhere than Mixpanel's own id of a person, so that
    /// people have to be told apart beside them.
    pub fn maps_people(&self) -> bool {
        self.properties != [DEFAULT_IDENTIFIER_PROPERTY]
    }

    /// The rules in a few words, different for different rules: no name holds a comma, because the
    /// setting is split there.
    pub fn describe(&self) -> Arc<str> {
        Arc::clone(&self.description)
    }
}

impl Default for IdentifierRules {
    fn default() -> Self {
        IdentifierRules::new([DEFAULT_IDENTIFIER_PROPERTY], Anonymous::default())
    }
}

/// What to do with ids of people who never logged in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Anonymous {
    /// Such an id is not usable.
    #[default]
    Skip,
    /// Such an id is as good as any.
    Keep,
}

/// One authentic, well-formed request of Mixpanel, reduced to what is kept of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// What is asked for.
    pub action: Action,
    /// `mixpanel_project_id`; empty where it is missing.
    pub project_id: String,
    /// `mixpanel_cohort_id`, as text.
    pub cohort_id: String,
    /// `mixpanel_cohort_name`; the id serves where it is missing or blank.
    pub cohort_name: Option<String>,
    /// `mixpanel_session_id`; without one the page stands alone.
    pub session_id: Option<String>,
    /// `page_info`; without one the page is complete in itself.
    pub page_info: Option<PageInfo>,
    /// Who is on the page, as far as it can be known: usable identifiers and, where
    /// [`IdentifierRules::maps_people`], the people whose they are.
    pub roster: Roster,
    /// [`IdentifierRules::describe`] of the rules under which the page was read.
    pub identified_by: Arc<str>,
    /// Members on the page, usable or not, repeats included.
    pub members_received: usize,
    /// Members without a usable identifier, by reason (only reasons that occurred).
    pub set_aside: Vec<(SetAside, usize)>,
}

/// A page, and what its members carried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parsed {
    /// What is kept.
    pub page: Page,
    /// For each of [`IdentifierRules::properties`], in order: whether any member has that key, with
    /// whatever value.
    pub property_seen: Vec<bool>,
}

impl Parsed {
    /// Whether the page has members and none of them carries any identifier property. Where the
    /// source never sent one either, the answer is [`Rejected::property_absent`].
    pub fn property_is_absent(&self) -> bool {
        self.page.members_received > 0 && !self.property_seen.contains(&true)
    }
}

/// Where a page stands in its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageInfo {
    /// `page_count`: the 1-based number of this page.
    pub number: u32,
    /// `total_pages`.
    pub total: u32,
}

/// Why a member's identifier cannot be sent to Flagsmith.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SetAside {
    /// None of the identifier properties is there, or each is null or neither a string nor a whole
    /// number.
    Missing,
    /// Empty or white space only.
    Blank,
    /// Over 1,024 UTF-8 bytes (the limit of Flagsmith's Edge API; Core takes 2,000 characters).
    TooLong,
    /// A NUL character, which Flagsmith refuses.
    Nul,
    /// White space at an end, which Flagsmith trims: it would name another identity.
    Padded,
    /// A lone surrogate, which no UTF-8 can carry.
    Surrogate,
    /// `$device:…` under [`Anonymous::Skip`].
    Anonymous,
}

impl SetAside {
    /// The word for it in metrics, in the admin API and in the ledger.
    pub const fn as_str(self) -> &'static str {
        match self {
            SetAside::Missing => "missing",
            SetAside::Blank => "blank",
            SetAside::TooLong => "too_long",
            SetAside::Nul => "nul",
            SetAside::Padded => "padded",
            SetAside::Surrogate => "surrogate",
            SetAside::Anonymous => "anonymous",
        }
    }

    /// The reason that a word stands for.
    pub fn parse(word: &str) -> Option<Self> {
        [
            SetAside::Missing,
            SetAside::Blank,
            SetAside::TooLong,
            SetAside::Nul,
            SetAside::Padded,
            SetAside::Surrogate,
            SetAside::Anonymous,
        ]
        .into_iter()
        .find(|reason| reason.as_str() == word)
    }
}
