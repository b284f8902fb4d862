//! Which identities of a failed call are to blame, and how many may share one. Pure.
//!
//! A failed call is halved until the identity to blame is alone. Of `n` identities with `b` to
//! blame that takes at most `2 b (⌈log2 n⌉ + 1) + 1` calls. The halves of all that failed go before
//! quarters, so that the good ones among them speak up in between.
//!
//! A failure tells the gate nothing while the fault may be one identity's: it is held back until
//! the other half was tried. Where that fails too, both count, so that an outage is known for what
//! it is after five calls, as everywhere else.

use std::collections::VecDeque;

use crate::flagsmith::MAX_ROWS;

/// What is left of a call: parts of it that have to be called for.
#[derive(Debug)]
pub(super) struct Split {
    parts: VecDeque<Part>,
}

/// Some of the identities, by their numbers in the first call.
#[derive(Debug)]
pub(super) struct Part {
    /// Ascending; at least one.
    pub members: Vec<usize>,
    place: Place,
}

/// Where a part comes from.
#[derive(Clone, Copy, Debug)]
enum Place {
    /// It is everything.
    Whole,
    /// A half whose other half comes next.
    First {
        /// Failures held back: the whole's.
        held: u32,
    },
    /// A half whose other half was before it.
    Second {
        /// Failures held back: the whole's, the other half's.
        held: u32,
        /// Whether the other half failed.
        other_failed: bool,
    },
}

/// What a failed part comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Failed {
    /// It was one identity, which is to blame if anybody is.
    pub alone: bool,
    /// Failures that the gate is to hear of.
    pub count: u32,
}

impl Split {
    /// A call for `count` identities.
    pub fn of(count: usize) -> Self {
        let whole = Part {
            members: (0..count).collect(),
            place: Place::Whole,
        };
        Split {
            parts: VecDeque::from_iter((count > 0).then_some(whole)),
        }
    }

    /// The part to call for next.
    pub fn next(&mut self) -> Option<Part> {
        self.parts.pop_front()
    }

    /// The same part again without those for whom `is_refused`.
    pub fn again_without(&mut self, mut part: Part, is_refused: impl Fn(usize) -> bool) {
        part.members.retain(|member| !is_refused(*member));
        if !part.members.is_empty() {
            self.parts.push_front(part);
        }
    }

    /// The part failed, and any one of it may be to blame. Its halves come later.
    pub fn failed(&mut self, part: &Part) -> Failed {
        let alone = part.members.len() == 1;
        let (held, count) = match part.place {
            Place::Whole => (1, 0),
            Place::First { held } => {
                let held = held + u32::from(!alone);
                if let Some(other) = self.parts.front_mut() {
                    other.place = Place::Second {
                        held,
                        other_failed: true,
                    };
                }
                (0, 0)
            }
            Place::Second {
                held,
                other_failed: true,
            } => (0, held + u32::from(!alone)),
            Place::Second {
                other_failed: false,
                ..
            } => (0, 0),
        };
        if !alone {
            let (first, second) = part.members.split_at(part.members.len() / 2);
            let half = |members: &[usize], place| Part {
                members: members.to_vec(),
                place,
            };
            self.parts.push_back(half(first, Place::First { held }));
            let place = Place::Second {
                held,
                other_failed: false,
            };
            self.parts.push_back(half(second, place));
        }
        Failed {
            alone,
            count: count + u32::from(alone),
        }
    }

    /// Everybody who was not called for again.
    pub fn rest(self) -> impl Iterator<Item = usize> {
        self.parts.into_iter().flat_map(|part| part.members)
    }
}

/// How many rows a call may have now.
///
/// Where calls fail in a way that is not one identity's, they become smaller, as the number of
/// calls at once does, so that a slow server is given less at a time, and a crowd of bad identities
/// cannot look like an outage for long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Width(usize);

impl Width {
    pub fn new() -> Self {
        Width(MAX_ROWS)
    }

    /// Rows.
    pub fn rows(self) -> usize {
        self.0
    }

    /// A call succeeded.
    pub fn succeeded(&mut self) {
        self.0 = (self.0 * 2).min(MAX_ROWS);
    }

    /// A call failed.
    pub fn failed(&mut self) {
        self.0 = (self.0 / 2).max(1);
    }

    /// The gate closed: what opens it again is one identity's call.
    pub fn closed(&mut self) {
        self.0 = 1;
    }
}

/// How many rows a call may have that carries an identity which failed `attempts` times: a quarter
/// for each. One that makes Flagsmith hang is so found alone at the fourth failure, long before it
/// is given up, and those who were with it are not.
pub(super) fn rows_beside(attempts: u32) -> usize {
    let quartered = attempts.saturating_mul(2).min(usize::BITS - 1);
    (MAX_ROWS >> quartered).max(1)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::dispatch::ATTEMPTS;
    use crate::gate::{Gate, OUTAGE_AFTER, Signal};

    /// How a bad identity fails.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Bad {
        /// The call is refused and the identity named.
        Named,
        /// The call fails, and nobody is named.
        Unnamed,
    }

    /// A server that writes row by row, in one transaction each: whatever stands before a row that
    /// fails is written, and of a refused call nothing.
    struct Server {
        bad: Vec<Option<Bad>>,
        written: BTreeSet<usize>,
        calls: usize,
    }

    impl Server {
        fn call(&mut self, members: &[usize]) -> Result<(), Option<Vec<usize>>> {
            self.calls += 1;
            let is_named = |member: &&usize| self.bad[**member] == Some(Bad::Named);
            let named: Vec<_> = members.iter().filter(is_named).copied().collect();
            if !named.is_empty() {
                return Err(Some(named));
            }
            for &member in members {
                if self.bad[member].is_some() {
                    return Err(None);
                }
                self.written.insert(member);
            }
            Ok(())
        }
    }

    /// Isolates by the rules; who was refused, who failed alone, and what the gate heard.
    fn isolate(server: &mut Server) -> (BTreeSet<usize>, BTreeSet<usize>, Gate) {
        let mut gate = Gate::new();
        let (mut refused, mut alone) = (BTreeSet::new(), BTreeSet::new());
        // Written as far as the sender knows.
        let mut shown = BTreeSet::new();
        let mut split = Split::of(server.bad.len());
        while let Some(part) = split.next() {
            match server.call(&part.members) {
                Ok(()) => {
                    shown.extend(part.members);
                    gate.record(Signal::Success, 0);
                }
                Err(Some(named)) => {
                    refused.extend(named.iter().copied());
                    split.again_without(part, |member| named.contains(&member));
                    gate.record(Signal::Success, 0);
                }
                Err(None) => {
                    let failed = split.failed(&part);
                    if failed.alone {
                        alone.extend(part.members);
                    }
                    for _ in 0..failed.count {
                        let reason = "500".into();
                        gate.record(
                            Signal::Failure {
                                advised: None,
                                reason,
                            },
                            0,
                        );
                    }
                }
            }
        }
        assert!(shown.is_subset(&server.written));
        (refused, alone, gate)
    }

    fn bad() -> impl Strategy<Value = Option<Bad>> {
        prop_oneof![
            30 => Just(None),
            1 => Just(Some(Bad::Named)),
            1 => Just(Some(Bad::Unnamed)),
        ]
    }

    fn log2_up(count: usize) -> usize {
        count.next_power_of_two().trailing_zeros() as usize
    }

    proptest! {
        /// Every good one is written, every bad one found, in few calls.
        #[test]
        fn the_bad_are_found_and_the_good_are_written(bad in prop::collection::vec(bad(), 1..140)) {
            let all = |kind| (0..bad.len()).filter(|&at| bad[at] == kind).collect::<BTreeSet<_>>();
            let unnamed = all(Some(Bad::Unnamed));
            let mut server = Server { bad: bad.clone(), written: BTreeSet::new(), calls: 0 };
            let (refused, alone, _) = isolate(&mut server);
            prop_assert_eq!(&refused, &all(Some(Bad::Named)));
            prop_assert_eq!(&alone, &unnamed);
            prop_assert_eq!(&server.written, &all(None));
            let most = 2 * unnamed.len() * (log2_up(bad.len()) + 1) + 1
                + usize::from(!refused.is_empty());
            prop_assert!(server.calls <= most, "{} calls, {most} allowed", server.calls);
        }

        /// One bad identity, wherever it stands, is one failure to the gate.
        #[test]
        fn one_bad_identity_is_no_outage(count in 2..140_usize, at: prop::sample::Index) {
            let mut bad = vec![None; count];
            bad[at.index(count)] = Some(Bad::Unnamed);
            let mut split = Split::of(count);
            let mut heard = 0;
            let mut server = Server { bad, written: BTreeSet::new(), calls: 0 };
            while let Some(part) = split.next() {
                if server.call(&part.members).is_err() {
                    heard += split.failed(&part).count;
                }
            }
            prop_assert_eq!(heard, 1);
        }

        /// Where everything fails, the gate knows after as many calls as elsewhere.
        #[test]
        fn an_outage_is_known_after_five_calls(count in 1..140_usize) {
            let mut split = Split::of(count);
            let (mut calls, mut heard) = (0, 0);
            while heard < OUTAGE_AFTER && let Some(part) = split.next() {
                calls += 1;
                heard += split.failed(&part).count;
            }
            // A few identities are fewer calls than that.
            prop_assert!(calls <= OUTAGE_AFTER, "{calls} calls");
            if count >= 4 {
                prop_assert!(heard >= OUTAGE_AFTER);
            }
        }

        /// Whatever was not called for again when it was given up is there in the end.
        #[test]
        fn nobody_is_forgotten(count in 0..140_usize, fails in prop::collection::vec(any::<bool>(), 0..40)) {
            let mut split = Split::of(count);
            let mut seen = Vec::new();
            for fails in fails {
                let Some(part) = split.next() else { break };
                if !fails || split.failed(&part).alone {
                    seen.extend(part.members);
                }
            }
            seen.extend(split.rest());
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..count).collect::<Vec<_>>());
        }
    }

    #[test]
    fn two_bad_ones_close_no_gate() {
        for first in 0..100 {
            for second in first + 1..100 {
                let mut bad = vec![None; 100];
                bad[first] = Some(Bad::Unnamed);
                bad[second] = Some(Bad::Unnamed);
                let mut server = Server {
                    bad,
                    written: BTreeSet::new(),
                    calls: 0,
                };
                let (_, alone, gate) = isolate(&mut server);
                assert_eq!(alone.len(), 2);
                assert!(gate.is_open(), "{first} {second}");
            }
        }
    }

    #[test]
    fn the_width_follows_what_calls_meet() {
        let mut width = Width::new();
        assert_eq!(width.rows(), MAX_ROWS);
        width.failed();
        assert_eq!(width.rows(), 50);
        (0..10).for_each(|_| width.failed());
        assert_eq!(width.rows(), 1);
        (0..7).for_each(|_| width.succeeded());
        assert_eq!(width.rows(), MAX_ROWS);
        width.closed();
        assert_eq!(width.rows(), 1);
    }

    #[test]
    fn whoever_is_given_up_was_alone() {
        let rows: Vec<_> = (0..=4).map(rows_beside).collect();
        assert_eq!(rows, [100, 25, 6, 1, 1]);
        assert_eq!(rows_beside(ATTEMPTS - 1), 1);
        assert_eq!(rows_beside(u32::MAX), 1);
    }
}
