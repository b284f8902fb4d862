//! How many identities are claimed ahead of the calls: as many as calls end for within 50 to 100 ms.
//! Pure.
//!
//! What lies on the desk is older than what the ledger says by now: a newer change of the person
//! would cost a second call, and a change that must not wait stands behind it. Before a server that
//! takes ten calls a second, a desk of a thousand would be two minutes of that. And whatever of it
//! was called for or not at a kill is called for again: the ledger learns of both at once, when the
//! desk is filled up.

use crate::clock::Millis;
use crate::config::Kind;
use crate::flagsmith::MAX_ROWS;

/// Identities claimed ahead, at most: some tens of milliseconds of work at full speed.
const MOST: usize = 1_024;

/// Identities claimed in one transaction at most: with more it would take longer than the 5 ms that
/// pages may have to wait for, with fewer there would be more of them than disks like to sync.
pub(super) const BATCH: usize = 256;

/// Identities claimed ahead at least, however slowly calls end: the desk is filled up at half of it,
/// and a batch of one would never look at what is new. In bulk, calls' worth of them.
const LEAST: usize = 4;

/// Milliseconds in which calls are counted; the last two spans count.
const SPAN: Millis = 50;

/// How long a desk may lie before what is too much on it is given back.
pub(super) const STALE_AFTER: Millis = 2_000;

/// Counts identities whose calls ended.
#[derive(Clone, Debug)]
pub(super) struct Depth {
    /// What `least` never is below.
    floor: usize,
    least: usize,
    span_began: Millis,
    in_this_span: usize,
    in_the_last: usize,
}

impl Depth {
    /// For calls of one identity each, or of some hundred.
    pub(super) fn new(kind: Kind, now: Millis) -> Self {
        let floor = match kind {
            Kind::Sdk => LEAST,
            Kind::CoreBulk => LEAST * MAX_ROWS,
        };
        Depth {
            floor,
            least: floor,
            span_began: now,
            in_this_span: 0,
            in_the_last: 0,
        }
    }

    /// The calls of so many identities ended.
    pub(super) fn ended(&mut self, identities: usize, now: Millis) {
        self.turn_to(now);
        self.in_this_span += identities;
    }

    /// Callers stood before an empty desk: the ledger was slower than they were.
    pub(super) fn ran_dry(&mut self) {
        self.least = (self.least * 2).min(MOST);
    }

    /// The desk was filled up in time.
    pub(super) fn kept_up(&mut self) {
        self.least = (self.least / 2).max(self.floor);
    }

    /// What was claimed lay for long.
    pub(super) fn calm_down(&mut self) {
        self.least = self.floor;
    }

    /// How many to have ahead now.
    pub(super) fn wanted(&mut self, now: Millis) -> usize {
        self.turn_to(now);
        (self.in_the_last + self.in_this_span).clamp(self.least, MOST)
    }

    fn turn_to(&mut self, now: Millis) {
        let since = now.saturating_sub(self.span_began);
        if (0..SPAN).contains(&since) {
            return;
        }
        // A clock that was set begins again.
        let is_next = (SPAN..2 * SPAN).contains(&since);
        self.in_the_last = if is_next { self.in_this_span } else { 0 };
        self.in_this_span = 0;
        self.span_began = now;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn it_follows_the_calls_and_forgets_a_pause() {
        let mut depth = Depth::new(Kind::Sdk, 0);
        assert_eq!(depth.wanted(0), LEAST);
        for call in 0..100 {
            depth.ended(1, call);
        }
        assert_eq!(depth.wanted(99), 100);
        assert_eq!(depth.wanted(110), 50);
        assert_eq!(depth.wanted(60_000), LEAST);
    }

    #[test]
    fn calls_that_take_no_time_fill_the_desk() {
        let mut depth = Depth::new(Kind::Sdk, 7);
        depth.ended(5_000, 7);
        assert_eq!(depth.wanted(7), MOST);
    }

    #[test]
    fn a_slow_ledger_is_asked_for_more_until_it_keeps_up() {
        let mut depth = Depth::new(Kind::Sdk, 0);
        for _ in 0..20 {
            depth.ran_dry();
        }
        assert_eq!(depth.wanted(0), MOST);
        for _ in 0..20 {
            depth.kept_up();
        }
        assert_eq!(depth.wanted(0), LEAST);
    }

    #[test]
    fn in_bulk_there_are_always_whole_calls() {
        let mut depth = Depth::new(Kind::CoreBulk, 0);
        depth.kept_up();
        assert!(depth.wanted(0) / 2 >= MAX_ROWS);
        depth.ran_dry();
        depth.calm_down();
        assert!(depth.wanted(60_000) / 2 >= MAX_ROWS);
    }

    #[test]
    fn a_clock_that_is_set_stops_nothing() {
        let mut depth = Depth::new(Kind::Sdk, 1_000_000);
        depth.ended(50, 1_000_000);
        assert_eq!(depth.wanted(5), LEAST);
        depth.ended(50, 6);
        assert_eq!(depth.wanted(7), 50);
    }

    proptest! {
        /// Against a list of when every call ended.
        #[test]
        fn what_ended_in_the_last_moments_is_claimed_ahead(gaps in prop::collection::vec(0_i64..40, 1..200)) {
            let mut depth = Depth::new(Kind::Sdk, 0);
            let mut now = 0;
            let mut ended = Vec::new();
            for gap in gaps {
                now += gap;
                depth.ended(1, now);
                ended.push(now);
                let within = |span| ended.iter().filter(|at| now - **at < span).count();
                let wanted = depth.wanted(now);
                prop_assert!(wanted <= within(3 * SPAN).max(LEAST));
                prop_assert!(wanted >= within(1).clamp(LEAST, MOST));
            }
        }
    }
}
