//! One line for each answer.

use std::fmt;

use super::{Answer, Payload};
use crate::mixpanel::{self, IdentifierRules};

/// Columns: status, verdict, action, cohort, members, file; behind them what went wrong.
pub(super) struct Line<'a> {
    payload: &'a Payload,
    answer: &'a Answer,
    action: String,
    cohort: String,
    members: String,
}

impl<'a> Line<'a> {
    pub(super) fn of(payload: &'a Payload, answer: &'a Answer) -> Self {
        let (action, cohort, members) =
            match mixpanel::parse(&payload.bytes, &IdentifierRules::default()) {
                Ok(mixpanel::Parsed { page, .. }) => {
                    let plural = if page.members_received == 1 { "" } else { "s" };
                    (
                        page.action.to_string(),
                        format!("cohort {}", page.cohort_id),
                        format!("{} member{plural}", page.members_received),
                    )
                }
                Err(rejected) => (
                    rejected.action.unwrap_or_else(|| "-".to_owned()),
                    "-".to_owned(),
                    "-".to_owned(),
                ),
            };
        Line {
            payload,
            answer,
            action,
            cohort,
            members,
        }
    }
}

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.answer.success {
            "success"
        } else {
            "failure"
        };
        write!(
            f,
            "{} {verdict}  {:<14}  {:<14}  {:>12}  {}",
            self.answer.status.as_u16(),
            printable(&self.action),
            printable(&self.cohort),
            self.members,
            printable(&self.payload.name),
        )?;
        match &self.answer.message {
            Some(message) => write!(f, "  {}", printable(message)),
            None => Ok(()),
        }
    }
}

/// Without control characters: a terminal obeys them, and they come from elsewhere.
fn printable(text: &str) -> String {
    text.chars()
        .map(|character| {
            if character.is_control() {
                ' '
            } else {
                character
            }
        })
        .collect()
}
