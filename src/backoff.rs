//! When to try again. Pure: the caller brings the attempt, the advice and the dice.

use std::time::Duration;

use crate::clock::{Millis, millis};

/// The first wait is at most this.
pub const FIRST: Duration = Duration::from_secs(1);

/// No wait of our own choosing is longer: a person who watches should not have to guess.
pub const LONGEST: Duration = Duration::from_secs(5 * 60);

/// No wait that a server asks for is longer. A wrong `Retry-After` must not stop delivery for a day.
pub const LONGEST_ADVISED: Duration = Duration::from_secs(15 * 60);

/// How long to wait before attempt number `attempt` (the first repetition is 1).
///
/// Full jitter: anywhere between nothing and the exponential bound, as `dice` in `0.0..1.0` says,
/// so that many identities that failed together do not come back together. A server's advice is a
/// lower bound, up to [`LONGEST_ADVISED`].
pub fn delay_before(attempt: u32, advised: Option<Duration>, dice: f64) -> Duration {
    let doubled = 2_u32.saturating_pow(attempt.saturating_sub(1).min(20));
    let bound = FIRST.saturating_mul(doubled).min(LONGEST);
    let own = bound.mul_f64(dice.clamp(0.0, 1.0));
    own.max(advised.unwrap_or_default().min(LONGEST_ADVISED))
}

/// Whether something put off until `due_at` is due.
///
/// No wait is ever longer than [`LONGEST_ADVISED`]; a time farther away was written down before
/// the clock was set back, and counts as reached.
pub fn is_due(due_at: Millis, now: Millis) -> bool {
    due_at <= now || due_at.saturating_sub(now) > millis(LONGEST_ADVISED)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_bound_doubles_and_is_capped() {
        let longest = |attempt| delay_before(attempt, None, 1.0);
        assert_eq!(longest(1), Duration::from_secs(1));
        assert_eq!(longest(2), Duration::from_secs(2));
        assert_eq!(longest(6), Duration::from_secs(32));
        assert_eq!(longest(40), LONGEST);
        assert_eq!(longest(u32::MAX), LONGEST);
        assert_eq!(delay_before(9, None, 0.0), Duration::ZERO);
    }

    #[test]
    fn advice_is_a_lower_bound_within_reason() {
        let advised = |seconds| delay_before(1, Some(Duration::from_secs(seconds)), 0.0);
        assert_eq!(advised(7), Duration::from_secs(7));
        assert_eq!(advised(86_400), LONGEST_ADVISED);
    }

    #[test]
    fn a_clock_set_back_does_not_put_a_retry_into_next_year() {
        let hour = 3_600_000;
        assert!(is_due(1_000, 1_000));
        assert!(!is_due(61_000, 1_000));
        assert!(is_due(24 * hour, hour));
    }

    proptest! {
        #[test]
        fn every_wait_comes_due(attempt: u32, advised in prop::option::of(0_u64..1 << 40), dice in 0.0..1.0_f64, now in 0_i64..1 << 44) {
            let delay = delay_before(attempt, advised.map(Duration::from_secs), dice);
            prop_assert!(delay <= LONGEST_ADVISED);
            prop_assert!(is_due(now + millis(delay), now + millis(delay)));
        }
    }
}
