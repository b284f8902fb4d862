//! When a session's removals are held back until somebody approves them.
//!
//! A mistake in Mixpanel (a cohort's rule edited, a property renamed) arrives as people leaving,
//! and as many calls to Flagsmith as there were people.

/// Hundredths of a percent in a percent: enough for `0.01%`, and whole numbers compare exactly.
const HUNDREDTHS: u64 = 100;

/// Digits that a percentage may have behind its point, as [`HUNDREDTHS`] has room for.
const MOST_DECIMALS: usize = 2;

/// The most people a session may remove unasked; at least one of the limits is there.
///
/// | written | held |
/// |---|---|
/// | `1000` | more than 1,000 people |
/// | `30%` | more than 30 % of the cohort |
/// | `1000,30%` | more than 1,000 people who are also more than 30 % of the cohort |
/// | `0` | whoever is removed |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemovalGuard {
    members: Option<u64>,
    percent_hundredths: Option<u64>,
}

impl RemovalGuard {
    /// Reads `1000`, `30%`, or both separated by a comma, in either order.
    ///
    /// # Errors
    /// Says in words what would be right.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut guard = RemovalGuard {
            members: None,
            percent_hundredths: None,
        };
        for limit in text.split(',').map(str::trim) {
            let (place, value) = match limit.strip_suffix('%') {
                Some(percent) => (&mut guard.percent_hundredths, hundredths(percent)),
                None => (&mut guard.members, digits(limit)),
            };
            let value = value.ok_or(
                "write a number of people such as 1000, a percentage from 0% to 100% such as 30% \
                 or 2.5%, or both as 1000,30%",
            )?;
            if place.replace(value).is_some() {
                return Err("give each limit once: 1000, 30% or 1000,30%".to_owned());
            }
        }
        Ok(guard)
    }

    /// Whether `removals` out of `members` people, as many as there were before, must be held.
    ///
    /// `empties` says that the session is a full sync with nobody in it: whatever the limits, that
    /// is more often a mistake than a wish.
    pub fn holds(&self, removals: u64, members: u64, empties: bool) -> bool {
        let above_members = self.members.is_none_or(|limit| removals > limit);
        let above_percent = self.percent_hundredths.is_none_or(|limit| {
            u128::from(removals) * u128::from(100 * HUNDREDTHS)
                > u128::from(limit) * u128::from(members)
        });
        removals > 0 && (empties || (above_members && above_percent))
    }
}

/// `2.5` as 250: a percentage from 0 to 100 in hundredths.
fn hundredths(percent: &str) -> Option<u64> {
    let (whole, decimals) = match percent.split_once('.') {
        Some((_, "")) => return None,
        Some(parts) => parts,
        None => (percent, ""),
    };
    if decimals.len() > MOST_DECIMALS {
        return None;
    }
    let decimals = digits(&format!("{decimals:0<MOST_DECIMALS$}"))?;
    digits(whole)?
        .checked_mul(HUNDREDTHS)?
        .checked_add(decimals)
        .filter(|&hundredths| hundredths <= 100 * HUNDREDTHS)
}

/// Digits alone: `u64`'s own parser takes a plus sign.
fn digits(text: &str) -> Option<u64> {
    text.bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| text.parse().ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn guard(text: &str) -> RemovalGuard {
        RemovalGuard::parse(text).expect(text)
    }

    #[test]
    fn held_is_what_is_above_every_limit_given() {
        for (text, removals, members, held) in [
            ("1000", 1_000, 1_000, false),
            ("1000", 1_001, 5_000_000, true),
            ("30%", 30, 100, false),
            ("30%", 31, 100, true),
            ("30%", 3, 10, false),
            ("30%", 1, 3, true),
            ("2.5%", 25, 1_000, false),
            ("2.5%", 26, 1_000, true),
            ("0.01%", 1, 10_000, false),
            ("0.01%", 2, 10_000, true),
            ("1000,30%", 1_001, 10_000, false),
            ("1000,30%", 999, 1_000, false),
            ("1000,30%", 1_001, 3_000, true),
            ("0", 1, 1_000_000, true),
            ("0%", 1, 1_000_000, true),
            ("0", 0, 10, false),
            ("100%", 10, 10, false),
            ("30%", u64::MAX, u64::MAX, true),
        ] {
            assert_eq!(
                guard(text).holds(removals, members, false),
                held,
                "{removals} of {members} with {text}"
            );
        }
    }

    #[test]
    fn a_full_sync_with_nobody_in_it_is_held_if_it_removes_anyone() {
        for text in ["1000000", "100%", "1000000,100%"] {
            assert!(guard(text).holds(1, 1, true), "{text}");
            assert!(!guard(text).holds(0, 0, true), "{text}");
        }
    }

    #[test]
    fn limits_come_in_either_order_each_once() {
        for text in ["30%,1000", "1000, 30.00%", " 1000 ,030.0%"] {
            assert_eq!(guard(text), guard("1000,30%"), "{text}");
        }
        for text in ["1000,1000", "30%,20%", "1,2%,3"] {
            let fault = RemovalGuard::parse(text).expect_err(text);
            assert!(fault.contains("once"), "{text}: {fault}");
        }
        for text in [
            "",
            ",",
            "1000,",
            ",30%",
            "%",
            ".5%",
            "5.%",
            "1.5",
            "-1",
            "+1",
            "1e3",
            "30 %",
            "30%%",
            "100.01%",
            "101%",
            "0.001%",
            "1_000",
            "1.000,5",
            "NaN%",
            "none",
            "١",
            "18446744073709551616",
            "18446744073709551615%",
        ] {
            let fault = RemovalGuard::parse(text).expect_err(text);
            assert!(fault.contains("1000,30%"), "{text}: {fault}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[0-9.,%+ -]{0,12}|\\PC*") {
            let _ = RemovalGuard::parse(&text);
        }

        #[test]
        fn more_removals_are_never_held_less(
            (members, removals) in (1..u64::MAX).prop_flat_map(|members| (Just(members), 1..=members)),
            (people, percent) in (any::<u64>(), 0..=100_u64),
            empties in any::<bool>(),
        ) {
            let both = guard(&format!("{people},{percent}%"));
            prop_assert!(!both.holds(removals - 1, members, empties) || both.holds(removals, members, empties));
            let (by_people, by_percent) = (guard(&people.to_string()), guard(&format!("{percent}%")));
            prop_assert_eq!(
                both.holds(removals, members, false),
                by_people.holds(removals, members, false) && by_percent.holds(removals, members, false)
            );
        }
    }
}
