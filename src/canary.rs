//! What a canary proves, and of what. Pure.
//!
//! Flagsmith's processes keep the settings of a key and of its organisation for a while. So after a
//! switch is turned, some of them still store what others drop, and the canary may meet either. A write
//! is proved by a good canary that began [`SETTINGS_SPREAD_IN`] after it: by then every process goes by
//! the settings under which it was made. And after a bad canary the good ones have to last as long.

use std::collections::VecDeque;
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
