//! Calls per second at most: a token bucket in the time that is passed in. Pure.

use crate::clock::Millis;

/// What may be called at once after a pause: what the rate allows in a tenth of a second, so that
/// calls need not keep step with the clock's milliseconds; at least one call.
const BURST_SECONDS: f64 = 0.1;

/// Less than any rate adds in a millisecond; sums of fractions are off by less.
const NEARLY: f64 = 1e-9;

/// A bucket that fills at a rate.
#[derive(Clone, Debug)]
pub struct Rate {
    per_second: f64,
    burst: f64,
    tokens: f64,
    at: Millis,
}

impl Rate {
    /// A full bucket; `per_second` must be more than nought.
    pub fn new(per_second: f64, now: Millis) -> Self {
        let burst = (per_second * BURST_SECONDS).max(1.0);
        Rate {
            per_second,
            burst,
            tokens: burst,
            at: now,
        }
    }

    /// When the next call may be made; `None`: now.
    pub fn wait_until(&mut self, now: Millis) -> Option<Millis> {
        self.fill(now);
        let missing = 1.0 - NEARLY - self.tokens;
        if missing <= 0.0 {
            return None;
        }
        let wait = (missing / self.per_second * 1_000.0).ceil();
        // Saturates: a float becomes the nearest whole number.
        Some(now.saturating_add((wait as Millis).max(1)))
    }

    /// How many calls may be made at once now.
    pub fn ready(&mut self, now: Millis) -> usize {
        self.fill(now);
        // Saturates at nought where calls are to be made up for.
        (self.tokens + NEARLY) as usize
    }

    /// A call is made, allowed or not: what could not wait is made up for by those that can.
    pub fn take(&mut self, now: Millis) {
        self.fill(now);
        self.tokens -= 1.0;
    }

    fn fill(&mut self, now: Millis) {
        // A clock set back brings nothing, and takes nothing away.
        let elapsed = now.saturating_sub(self.at).max(0);
        self.at = now;
        let more = elapsed as f64 / 1_000.0 * self.per_second;
        self.tokens = (self.tokens + more).min(self.burst);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Calls as soon as it is allowed, until `end`; gives back when.
    fn calls(rate: &mut Rate, mut now: Millis, end: Millis) -> Vec<Millis> {
        let mut calls = Vec::new();
        loop {
            match rate.wait_until(now) {
                None => {
                    rate.take(now);
                    calls.push(now);
                }
                Some(at) => {
                    assert!(at > now);
                    now = at;
                }
            }
            if now >= end {
                return calls;
            }
        }
    }

    #[test]
    fn a_slow_rate_is_kept_to_the_millisecond() {
        let mut rate = Rate::new(0.5, 0);
        assert_eq!(calls(&mut rate, 0, 10_000), [0, 2_000, 4_000, 6_000, 8_000]);
    }

    #[test]
    fn to_ask_in_between_postpones_nothing() {
        for asked in 1..2_000 {
            let mut rate = Rate::new(0.5, 0);
            rate.take(0);
            assert_eq!(rate.wait_until(asked), Some(2_000), "asked at {asked}");
            assert_eq!(rate.wait_until(2_000), None, "asked at {asked}");
        }
    }

    #[test]
    fn what_could_not_wait_is_made_up_for() {
        let mut rate = Rate::new(10.0, 0);
        for _ in 0..5 {
            rate.take(0);
        }
        assert_eq!(rate.wait_until(0), Some(500));
        assert_eq!(rate.wait_until(500), None);
    }

    #[test]
    fn a_clock_set_back_neither_stops_nor_floods() {
        let mut rate = Rate::new(10.0, 1_000_000);
        rate.take(1_000_000);
        assert_eq!(rate.wait_until(0), Some(100));
        assert_eq!(calls(&mut rate, 100, 1_100).len(), 10);
        // An hour ahead: no more than after any pause.
        let ahead = 3_600_000;
        let at_once = calls(&mut rate, ahead, ahead + 100);
        assert_eq!(at_once.iter().filter(|at| **at == ahead).count(), 1);
    }

    proptest! {
        #[test]
        fn any_rate_is_kept_and_used_up(
            per_second in 0.001..20_000.0_f64,
            pauses in prop::collection::vec(0_i64..5_000, 1..8),
        ) {
            let mut rate = Rate::new(per_second, 0);
            let burst = (per_second / 10.0).max(1.0);
            let mut now = 0;
            for pause in pauses {
                now += pause;
                let made = calls(&mut rate, now, now + 2_000).len() as f64;
                prop_assert!(made <= burst + per_second * 2.0 + 1.0, "{made}");
                prop_assert!(made >= (per_second * 2.0).floor() - 2.0 - per_second / 1_000.0, "{made}");
                now += 2_000;
            }
        }
    }
}
