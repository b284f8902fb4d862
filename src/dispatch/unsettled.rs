//! Calls that ended and that the ledger does not know of yet. Pure.
//!
//! Whatever lies here at a kill is called for again, so it does not lie long; and since each
//! settlement is a sync of the disk, those of a busy time share one.

use crate::clock::Millis;
use crate::store::Settlement;

/// Calls settled in one transaction at most, while others go on.
const ENOUGH: usize = 256;

/// How long the end of a call waits for those of others, in milliseconds.
const WITHIN: Millis = 20;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Unsettled {
    settlements: Vec<Settlement>,
    /// When the first of the calls ended.
    since: Option<Millis>,
}

impl Unsettled {
    /// A call ended.
    pub(super) fn push(&mut self, settlement: Settlement, now: Millis) {
        self.since.get_or_insert(now);
        self.settlements.push(settlement);
    }

    /// What was claimed and not called for: that can wait.
    pub(super) fn give_back(&mut self, unsent: impl IntoIterator<Item = Settlement>) {
        self.settlements.extend(unsent);
    }

    /// All of it, to be settled.
    pub(super) fn take(&mut self) -> Vec<Settlement> {
        self.since = None;
        std::mem::take(&mut self.settlements)
    }

    /// What could not be settled.
    pub(super) fn put_back(&mut self, unsettled: Vec<Settlement>, now: Millis) {
        self.since.get_or_insert(now);
        self.settlements.extend(unsettled);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.settlements.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.settlements.len()
    }

    /// Whether there is enough for a transaction of its own.
    pub(super) fn is_enough(&self) -> bool {
        self.len() >= ENOUGH
    }

    /// When it is to be settled at the latest; `None` where it can wait.
    pub(super) fn due_at(&self) -> Option<Millis> {
        self.since.map(|since| since.saturating_add(WITHIN))
    }

    /// Whether it has waited for long enough; also where the clock was set.
    pub(super) fn is_due(&self, now: Millis) -> bool {
        self.since
            .is_some_and(|since| !(since..since.saturating_add(WITHIN)).contains(&now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Claim, Outcome};

    fn settlement() -> Settlement {
        let claim = Claim {
            identifier: "ann".into(),
            traits: Vec::new(),
            attempts: 0,
        };
        let outcome = Outcome::Unsent;
        Settlement { claim, outcome }
    }

    #[test]
    fn the_first_call_says_when_all_are_settled() {
        let mut unsettled = Unsettled::default();
        unsettled.push(settlement(), 100);
        unsettled.push(settlement(), 119);
        assert_eq!(unsettled.due_at(), Some(120));
        assert!(!unsettled.is_due(119) && unsettled.is_due(120));
        assert_eq!(unsettled.take().len(), 2);
        assert_eq!(unsettled.due_at(), None);
        unsettled.push(settlement(), 150);
        assert_eq!(unsettled.due_at(), Some(170));
    }

    #[test]
    fn what_was_not_called_for_can_wait_and_what_could_not_be_settled_cannot() {
        let mut unsettled = Unsettled::default();
        unsettled.give_back([settlement(), settlement()]);
        assert_eq!((unsettled.len(), unsettled.due_at()), (2, None));
        assert!(!unsettled.is_due(i64::MAX));
        let all = unsettled.take();
        assert!(unsettled.is_empty());
        unsettled.put_back(all, 7);
        assert_eq!((unsettled.len(), unsettled.due_at()), (2, Some(27)));
    }

    #[test]
    fn a_clock_that_is_set_back_holds_nothing_up() {
        let mut unsettled = Unsettled::default();
        unsettled.push(settlement(), 1_000_000);
        assert!(unsettled.is_due(5));
    }

    #[test]
    fn with_enough_there_is_no_waiting() {
        let mut unsettled = Unsettled::default();
        for _ in 0..ENOUGH - 1 {
            unsettled.push(settlement(), 0);
        }
        assert!(!unsettled.is_enough());
        unsettled.push(settlement(), 0);
        assert!(unsettled.is_enough());
    }
}
