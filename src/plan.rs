//! What it would take to write everything that is pending: calls, time, and what they are beside the
//! budget. Pure.

use crate::cohort::{DestinationName, SourceName};
use crate::config::Kind;
use crate::flagsmith::MAX_ROWS;
use crate::month::Month;

/// How much is to be written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Different identities.
    pub identities: u64,
    /// Their traits.
    pub traits: u64,
}

impl Load {
    /// Calls that carry it: one an identity, or in bulk as few as they can be.
    pub fn calls(self, kind: Kind) -> u64 {
        match kind {
            Kind::Sdk => self.identities,
            Kind::CoreBulk => self.traits.div_ceil(MAX_ROWS as u64),
        }
    }
}

/// What the ledger says is still to be written. What is ordered to be written again and not pending yet
/// is in a destination's load as one identity a trait, which is the most that it can be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unwritten {
    /// Pages that wait to be folded.
    pub waiting_pages: u64,
    /// Whether more may become pending without another page: of waiting ones, of an operator's orders,
    /// of routes.
    pub is_under_way: bool,
    /// What is pending, by destination.
    pub destinations: Vec<UnwrittenThere>,
}

/// The same for one destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnwrittenThere {
    /// Which.
    pub name: DestinationName,
    /// All of it, without paused cohorts, and what is to be written again.
    pub load: Load,
    /// Calls of the month so far.
    pub calls_made: u64,
    /// Cohorts of which anything is to be written.
    pub cohorts: Vec<UnwrittenOf>,
}

/// The same for one cohort there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnwrittenOf {
    /// Its source.
    pub source: SourceName,
    /// Mixpanel's id.
    pub cohort_id: String,
    /// The name last heard.
    pub name: String,
    /// Whether it waits to be resumed.
    pub paused: bool,
    /// Were it alone.
    pub load: Load,
}

/// What a destination is called under.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Terms {
    /// What a call carries.
    pub kind: Kind,
    /// Calls a second at most.
    pub max_calls_per_second: Option<f64>,
    /// Calls a month at most.
    pub call_budget: Option<u64>,
}

/// What it would take at one destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// Calls.
    pub calls: u64,
    /// Seconds at the highest rate allowed; `None` where it is not limited.
    pub seconds: Option<u64>,
    /// Beside the budget; `None` where there is none.
    pub budget: Option<BudgetLeft>,
}

/// What is left of a month's budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BudgetLeft {
    /// Which month.
    pub month: Month,
    /// Calls.
    pub left: u64,
    /// Whether all could be written within it.
    pub is_enough: bool,
}

impl Cost {
    /// Of a load under these terms, when so many calls were made already.
    pub fn of(load: Load, terms: Terms, month: Month, made: u64) -> Self {
        let calls = load.calls(terms.kind);
        Cost {
            calls,
            seconds: terms
                .max_calls_per_second
                .map(|rate| (calls as f64 / rate).ceil() as u64),
            budget: terms.call_budget.map(|budget| {
                let left = budget.saturating_sub(made);
                BudgetLeft {
                    month,
                    left,
                    is_enough: calls <= left,
                }
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOAD: Load = Load {
        identities: 250,
        traits: 301,
    };

    fn cost(kind: Kind, rate: Option<f64>, budget: Option<u64>, made: u64) -> Cost {
        let terms = Terms {
            kind,
            max_calls_per_second: rate,
            call_budget: budget,
        };
        Cost::of(LOAD, terms, Month::of(0), made)
    }

    #[test]
    fn a_call_is_for_an_identity_or_for_as_many_traits_as_fit() {
        assert_eq!(cost(Kind::Sdk, None, None, 0).calls, 250);
        assert_eq!(MAX_ROWS, 100, "else the next figure is another");
        assert_eq!(cost(Kind::CoreBulk, None, None, 0).calls, 4);
        assert_eq!(Load::default().calls(Kind::CoreBulk), 0);
    }

    #[test]
    fn the_time_is_that_of_the_rate_rounded_up() {
        assert_eq!(cost(Kind::Sdk, None, None, 0).seconds, None);
        assert_eq!(cost(Kind::Sdk, Some(100.0), None, 0).seconds, Some(3));
        assert_eq!(cost(Kind::Sdk, Some(0.5), None, 0).seconds, Some(500));
    }

    #[test]
    fn the_budget_is_enough_up_to_its_last_call() {
        let left = |made| {
            let budget = cost(Kind::Sdk, None, Some(1_000), made).budget.unwrap();
            (budget.left, budget.is_enough)
        };
        assert_eq!(cost(Kind::Sdk, None, None, 9).budget, None);
        assert_eq!(left(0), (1_000, true));
        assert_eq!(left(750), (250, true));
        assert_eq!(left(751), (249, false));
        assert_eq!(left(2_000), (0, false));
    }
}
