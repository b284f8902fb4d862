//! What `pause` and `resume` are about.

use clap::Args;

use super::OperatorArgs;
use crate::operator::{Action, Pausable};

/// What is to be paused or resumed: a cohort or a destination.
#[derive(Args, Clone, Debug)]
pub struct PauseArgs {
    /// The cohort's source, such as default.
    #[arg(
        value_name = "SOURCE",
        required_unless_present = "destination",
        conflicts_with = "destination"
    )]
    pub source: Option<String>,
    /// Mixpanel's id of the cohort.
    #[arg(value_name = "COHORT_ID", required_unless_present = "destination")]
    pub cohort_id: Option<String>,
    /// Instead of a cohort, this destination with all of its cohorts.
    #[arg(long, value_name = "NAME")]
    pub destination: Option<String>,
    /// How to reach the service.
    #[command(flatten)]
    pub operator: OperatorArgs,
}

impl PauseArgs {
    pub(super) fn into_action(self, pauses: bool) -> (OperatorArgs, Action) {
        let what = match self.destination {
            Some(name) => Pausable::Destination { name },
            // Neither can be missing then.
            None => Pausable::Cohort {
                source: self.source.unwrap_or_default(),
                cohort_id: self.cohort_id.unwrap_or_default(),
            },
        };
        (self.operator, Action::Pause { what, pauses })
    }
}

#[cfg(test)]
mod tests {
    use crate::cli::{Command, try_parse_from};
    use crate::operator::{Action, Pausable};

    fn action(line: &str) -> Result<Action, clap::Error> {
        let words = std::iter::once("cohort-bridge").chain(line.split(' '));
        match try_parse_from(words)?.command {
            Command::Operator(command) => Ok(command.into_action().1),
            other => panic!("not an operator's command: {other:?}"),
        }
    }

    #[test]
    fn it_is_a_cohort_or_a_destination() {
        let cohort = || Pausable::Cohort {
            source: "eu".into(),
            cohort_id: "7".into(),
        };
        let destination = || Pausable::Destination { name: "us".into() };
        for (line, what, pauses) in [
            ("pause eu 7", cohort(), true),
            ("resume eu 7", cohort(), false),
            ("pause --destination us", destination(), true),
            ("resume --destination us --json", destination(), false),
        ] {
            let expected = Action::Pause { what, pauses };
            assert_eq!(action(line).unwrap(), expected, "{line}");
        }
        for line in [
            "pause",
            "pause eu",
            "resume eu 7 --destination us",
            "pause eu --destination us",
        ] {
            assert_eq!(action(line).unwrap_err().exit_code(), 2, "{line}");
        }
    }
}
