//! Why a payload is refused, in words for the person who reads Mixpanel's e-mail.

use super::IdentifierRules;
use crate::cohort::Action;

/// Characters of a sender's own text that a message repeats at most.
const SHOWN_CHARACTERS: usize = 64;

/// A payload that is refused, with what the reply needs.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct Rejected {
    /// `action` as sent, where it could be read.
    pub action: Option<String>,
    /// What is wrong.
    pub error: ParseError,
}

impl Rejected {
    /// The refusal of a page on which [`Parsed::property_is_absent`](super::Parsed), from a source
    /// that never sent the property.
    pub fn property_absent(action: Action, rules: &IdentifierRules) -> Self {
        Rejected {
            action: Some(action.as_str().to_owned()),
            error: ParseError::PropertyAbsent {
                properties: rules
                    .properties
                    .iter()
                    .map(|property| format!("'{property}'"))
                    .collect::<Vec<_>>()
                    .join(" or "),
            },
        }
    }
}

/// What is wrong with a payload. No message repeats anything of a member.
#[derive(Debug, thiserror::Error)]
pub enum ParseError {
    /// The body begins as gzip does.
    #[error("the body is compressed: send it as plain JSON, without Content-Encoding")]
    Compressed,
    /// The body is no text.
    #[error("the body is not UTF-8 (byte {offset})")]
    NotUtf8 {
        /// Where the first invalid byte is, from 0.
        offset: usize,
    },
    /// Brackets within brackets without end.
    #[error("the body nests deeper than {limit} levels")]
    TooDeep {
        /// Levels that are read.
        limit: usize,
    },
    /// The body is no JSON.
    #[error("the body is not JSON: {0}")]
    NotJson(serde_json::Error),
    /// JSON of another shape.
    #[error(
        "not a cohort payload: the body and its 'parameters' must be objects and 'members' an array (line {line}, column {column})"
    )]
    WrongShape {
        /// Of the surprise, from 1.
        line: usize,
        /// Of the surprise, from 1.
        column: usize,
    },
    /// Two values for one thing: which one counts would be a guess.
    #[error("the key '{key}' occurs twice in {place}")]
    DuplicateKey {
        /// The key, shortened.
        key: String,
        /// Which object it is in.
        place: &'static str,
    },
    /// There is nothing to do.
    #[error("not a cohort payload: no 'action'")]
    NoAction,
    /// Something that Mixpanel does not send.
    #[error(
        "unknown action '{0}': only 'members', 'add_members' and 'remove_members' are understood"
    )]
    UnknownAction(
        /// As sent, shortened.
        String,
    ),
    /// A body whose fields lie flat, for example.
    #[error("not a cohort payload: no 'parameters'")]
    NoParameters,
    /// Neither in `parameters` nor beside it.
    #[error("not a cohort payload: no 'members' (an empty page sends an empty array)")]
    NoMembers,
    /// Absent, null or blank.
    #[error("no mixpanel_cohort_id: it is needed to tell cohorts apart")]
    NoCohortId,
    /// An id of the envelope that cannot be kept.
    #[error("{field} {fault}")]
    UnusableId {
        /// Which.
        field: &'static str,
        /// What is wrong with it.
        fault: &'static str,
    },
    /// `page_info` that cannot be true.
    #[error("page_info makes no sense: {0}")]
    PageInfo(
        /// In which way.
        &'static str,
    ),
    /// No member says who it is.
    #[error(
        "no member carries the property {properties}, which is to become the Flagsmith identifier: tick it under 'Properties to Export' in Mixpanel, or name another one with COHORT_BRIDGE_IDENTIFIER_PROPERTY"
    )]
    PropertyAbsent {
        /// The properties looked for, in words.
        properties: String,
    },
}

impl From<serde_json::Error> for ParseError {
    fn from(error: serde_json::Error) -> Self {
        // The text of a data error repeats the value that surprised it, which may be a person's.
        if error.is_data() {
            ParseError::WrongShape {
                line: error.line(),
                column: error.column(),
            }
        } else {
            ParseError::NotJson(error)
        }
    }
}

/// `text` as a message may repeat it.
pub(super) fn shown(text: &str) -> String {
    text.chars()
        .filter(|character| !character.is_control())
        .take(SHOWN_CHARACTERS)
        .collect()
}
