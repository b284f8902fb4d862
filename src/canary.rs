//! What a canary proves, and of what. Pure.
//!
//! Flagsmith's processes keep the settings of a key and of its organisation for a while. So after a
//! switch is turned, some of them still store what others drop, and the canary may meet either. A write
//! is proved by a good canary that began [`SETTINGS_SPREAD_IN`] after it: by then every process goes by
//! the settings under which it was made. And after a bad canary the good ones have to last as long.
//!
//! The canary's value names the ledger that wrote it and counts. So what is there before the next one
//! is written tells whether this is still the environment that was told what the ledger knows.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock::{Millis, millis};

/// How long Flagsmith's processes may go by old settings: they keep them for 60 s, and up to 67 s were
/// measured.
pub const SETTINGS_SPREAD_IN: Duration = Duration::from_secs(75);

/// What the ledger remembers of a destination's canaries.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CanaryMemory {
    /// Why nothing that is written stays, since a canary found that out; `None` while all is well.
    pub doubted: Option<String>,
    /// Canaries that were good and could be read back.
    pub number: u64,
    /// An environment that does not hold what it was told was found; nothing followed yet.
    pub found: Option<Why>,
    /// Other ledgers whose canaries were found, and followed by writing everything again.
    pub others: Vec<String>,
    /// A hash of the address and the key under which they were found.
    pub settings: String,
}

/// Where the log of what is unproven stood, and when.
#[derive(Debug, Default)]
pub struct Marks(VecDeque<(Millis, i64)>);

impl Marks {
    /// The log was emptied otherwise.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Remembers where the log stands at `now`, before a canary is sent.
    pub fn take(&mut self, now: Millis, mark: i64) {
        for (at, _) in &mut self.0 {
            // Written down before the clock was set back.
            *at = now.min(*at);
        }
        self.0.push_back((now, mark));
    }

    /// Up to where a good canary that began at `began` proves the log.
    pub fn proved_by(&mut self, began: Millis) -> Option<i64> {
        let mut proved = None;
        while let Some((at, mark)) = self.0.front()
            && *at <= began - millis(SETTINGS_SPREAD_IN)
        {
            proved = Some(*mark);
            self.0.pop_front();
        }
        proved
    }
}

/// How often the canary is asked again while delivery looks suspicious, could not be judged or is
/// halted.
pub const CANARY_AGAIN: Duration = Duration::from_secs(15);

/// After how many calls that counted as written the canary is asked, so that the log of what is
/// unproven stays short: a few megabytes.
pub const PROVE_AFTER_CALLS: usize = 100_000;

/// Other ledgers that are remembered at most.
const MOST_OTHERS: usize = 16;

/// Who writes a canary. Two destinations of one ledger may lead to one environment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Writer<'a> {
    /// The ledger's name.
    pub ledger: &'a str,
    /// The destination's.
    pub destination: &'a str,
}

/// A canary's value: which ledger wrote it, how many of its canaries were good with it, when, and of
/// which destination.
pub fn value(writer: Writer<'_>, number: u64, now: Millis) -> String {
    let Writer {
        ledger,
        destination,
    } = writer;
    format!("{ledger} {number} {now} {destination}")
}

/// Who wrote a canary's value, and its number; `None` where no bridge did. What an earlier version
/// wrote has neither number nor destination.
fn read(value: &str) -> Option<(&str, Option<(u64, &str)>)> {
    let fields: Vec<_> = value.splitn(4, ' ').collect();
    match fields[..] {
        [ledger, number, _at, destination] => {
            Some((ledger, Some((number.parse().ok()?, destination))))
        }
        [ledger, at] if ledger != "check" => at.parse::<u64>().ok().map(|_| (ledger, None)),
        _ => None,
    }
}

/// Where a canary was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Environment {
    /// The last good canary is there.
    Known,
    /// Nothing speaks against it being the same.
    Same,
    /// It does not hold what it was told, as [`Why`] says: everything has to be written again.
    Other(Why),
    /// Where other bridges write too, as it has turned out again and again.
    Shared {
        /// The other bridge's ledger.
        with: String,
    },
}

/// Why an environment does not hold what it was told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Why {
    /// The canary is gone.
    Empty,
    /// Another ledger's canary is there.
    AnotherLedger(String),
    /// A canary is there that this ledger wrote before the last one.
    Earlier,
    /// A canary is there that this ledger will write some time: it was put back to an earlier state.
    Later,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::Empty => f.write_str(
                "this environment no longer holds the canary that was written to it: it was emptied, or the environment key or the API address points at another one",
            ),
            Why::AnotherLedger(ledger) => write!(
                f,
                "this environment holds the canary of another ledger ({ledger}): the environment key or the API address points at another one than before, or a second bridge writes to this one"
            ),
            Why::Earlier => f.write_str(
                "this environment holds an earlier canary of this ledger: the environment key or the API address points at one that it wrote to before, or the environment was restored from a backup",
            ),
            Why::Later => f.write_str(
                "this environment was told more than the ledger knows: the ledger was restored from a backup",
            ),
        }
    }
}

impl CanaryMemory {
    /// What the canary that is there before the next one is written says of the environment.
    /// `is_first` before delivery, which begins anew with every key, had a good one: only then can the
    /// environment be one that the ledger knows from before.
    pub fn judge(&self, writer: Writer<'_>, shown: Option<&str>, is_first: bool) -> Environment {
        let ledger = writer.ledger;
        let Some(shown) = shown else {
            return match self.number {
                0 => Environment::Same,
                _ => Environment::Other(Why::Empty),
            };
        };
        match read(shown) {
            Some((theirs, _)) if theirs != ledger => {
                if self.others.iter().any(|other| other == theirs) {
                    Environment::Shared {
                        with: theirs.to_owned(),
                    }
                } else {
                    Environment::Other(Why::AnotherLedger(theirs.to_owned()))
                }
            }
            // It tells of the other destination's environment alone.
            Some((_, Some((_, destination)))) if destination != writer.destination => {
                Environment::Same
            }
            Some((_, Some((number, _)))) if number == self.number => Environment::Known,
            // One more than is remembered: killed in between.
            Some((_, Some((number, _)))) if number > self.number + 1 => match is_first {
                true => Environment::Other(Why::Later),
                false => Environment::Shared {
                    with: ledger.to_owned(),
                },
            },
            // In between, a canary whose call timed out may land late.
            Some((_, Some((number, _)))) if number < self.number && is_first => {
                Environment::Other(Why::Earlier)
            }
            _ => Environment::Same,
        }
    }

    /// A canary was good and could be read back.
    pub fn succeeded(&mut self) {
        self.number += 1;
    }

    /// What follows from an environment that does not hold what it was told was done. Next time
    /// the other ledger is no news, but another bridge.
    pub fn followed(&mut self, why: Why) {
        self.found = None;
        if let Why::AnotherLedger(ledger) = why {
            self.others.push(ledger);
            if self.others.len() > MOST_OTHERS {
                self.others.remove(0);
            }
        }
    }

    /// Another address or key: whoever wrote to the environment of the former ones may be met again.
    pub fn settings_are(&mut self, settings: String) {
        if self.settings != settings {
            self.settings = settings;
            self.others.clear();
        }
    }
}

/// Whether canaries that are good since `since` have been so for long enough, at `now`.
pub fn is_mended(since: Millis, now: Millis) -> bool {
    // The clock may have been set back.
    !(0..millis(SETTINGS_SPREAD_IN)).contains(&(now - since))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPREAD: Millis = 75_000;

    #[test]
    fn a_canary_proves_what_is_old_enough() {
        let mut marks = Marks::default();
        marks.take(0, 3);
        assert_eq!(marks.proved_by(0), None);
        marks.take(SPREAD - 1, 7);
        assert_eq!(marks.proved_by(SPREAD - 1), None);
        assert_eq!(marks.proved_by(SPREAD), Some(3));
        assert_eq!(marks.proved_by(SPREAD), None, "once");
        marks.take(SPREAD, 9);
        assert_eq!(marks.proved_by(3 * SPREAD), Some(9));
    }

    const OURS: Writer<'_> = Writer {
        ledger: "ours",
        destination: "here",
    };

    fn judged(memory: &CanaryMemory, shown: Option<&str>, is_first: bool) -> Environment {
        memory.judge(OURS, shown, is_first)
    }

    #[test]
    fn what_is_there_tells_the_environment() {
        use Environment::{Known, Other, Same};
        let new = CanaryMemory::default();
        let known = CanaryMemory {
            number: 7,
            ..CanaryMemory::default()
        };
        let shared = || Environment::Shared {
            with: "ours".to_owned(),
        };
        let theirs = || Other(Why::AnotherLedger("theirs".to_owned()));
        let table = [
            // (number of good canaries, what is there, at the start, later)
            (&new, None, Same, Same),
            (&known, None, Other(Why::Empty), Other(Why::Empty)),
            (&known, Some("ours 7 1000 here"), Known, Known),
            // Killed before it was remembered.
            (&known, Some("ours 8 1000 here"), Same, Same),
            (&known, Some("ours 6 1000 here"), Other(Why::Earlier), Same),
            (
                &known,
                Some("ours 9 1000 here"),
                Other(Why::Later),
                shared(),
            ),
            (&new, Some("ours 1 1000 here"), Same, Same),
            (&new, Some("ours 2 1000 here"), Other(Why::Later), shared()),
            (&known, Some("theirs 7 1000 here"), theirs(), theirs()),
            (&new, Some("theirs 1 1000 here"), theirs(), theirs()),
            // Of an earlier version.
            (&known, Some("ours 1800000000000"), Same, Same),
            (&known, Some("theirs 1800000000000"), theirs(), theirs()),
            (&known, Some("check 1800000000000"), Same, Same),
            // Of another destination with the same environment.
            (&known, Some("ours 3 1000 there too"), Same, Same),
            // Of nobody.
            (&known, Some(""), Same, Same),
            (&known, Some("a b c d"), Same, Same),
            (&known, Some("ours x 1000 here"), Same, Same),
        ];
        for (memory, shown, first, later) in table {
            assert_eq!(judged(memory, shown, true), first, "{shown:?}");
            assert_eq!(judged(memory, shown, false), later, "{shown:?}");
        }
        let value = value(OURS, 7, 1_000);
        assert_eq!(judged(&known, Some(&value), true), Known);
    }

    #[test]
    fn another_ledger_is_followed_once_while_the_settings_stay() {
        let mut memory = CanaryMemory::default();
        memory.settings_are("one".into());
        for other in 0..=MOST_OTHERS {
            let ledger = format!("other{other}");
            let value = value(
                Writer {
                    ledger: &ledger,
                    destination: "here",
                },
                3,
                0,
            );
            let found = judged(&memory, Some(&value), false);
            assert_eq!(
                found,
                Environment::Other(Why::AnotherLedger(ledger.clone()))
            );
            memory.followed(Why::AnotherLedger(ledger.clone()));
            let found = judged(&memory, Some(&value), true);
            assert_eq!(found, Environment::Shared { with: ledger });
        }
        assert_eq!(memory.others.len(), MOST_OTHERS);
        memory.settings_are("one".into());
        assert_eq!(memory.others.len(), MOST_OTHERS);
        memory.settings_are("two".into());
        assert_eq!(memory.others.len(), 0);
    }

    #[test]
    fn a_clock_set_back_proves_nothing_too_early_and_strands_nothing() {
        let mut marks = Marks::default();
        marks.take(1_000_000, 3);
        marks.take(0, 5);
        assert_eq!(marks.proved_by(SPREAD - 1), None);
        assert_eq!(marks.proved_by(SPREAD), Some(5));
        assert!(!is_mended(0, SPREAD - 1));
        assert!(is_mended(0, SPREAD));
        assert!(is_mended(1_000_000, 0));
    }
}
