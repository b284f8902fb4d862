//! Calendar months in UTC, by which calls are budgeted. Pure.

use std::fmt;

use crate::clock::Millis;
use crate::rfc3339::{MS_PER_DAY, civil_from_days, days_from_civil};

/// A month.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Month {
    year: i64,
    month: i64,
    begins: Millis,
    ends: Millis,
}

impl Month {
    /// The month of a time.
    pub fn of(at: Millis) -> Self {
        let (year, month, _) = civil_from_days(at.div_euclid(MS_PER_DAY));
        let next = match month {
            12 => (year + 1, 1),
            _ => (year, month + 1),
        };
        let begins = |(year, month)| days_from_civil(year, month, 1).saturating_mul(MS_PER_DAY);
        Month {
            year,
            month,
            begins: begins((year, month)),
            ends: begins(next),
        }
    }

    /// Its first millisecond.
    pub fn begins(self) -> Millis {
        self.begins
    }

    /// The next month's first millisecond.
    pub fn ends(self) -> Millis {
        self.ends
    }

    /// Whether a time lies in it.
    pub fn contains(self, at: Millis) -> bool {
        (self.begins..self.ends).contains(&at)
    }
}

impl fmt::Display for Month {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}-{:02}", self.year, self.month)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::rfc3339::utc;

    #[test]
    fn known_months() {
        for (at, name, begins, ends) in [
            (0, "1970-01", "1970-01-01", "1970-02-01"),
            (-1, "1969-12", "1969-12-01", "1970-01-01"),
            (951_782_400_000, "2000-02", "2000-02-01", "2000-03-01"),
            (1_800_000_000_000, "2027-01", "2027-01-01", "2027-02-01"),
        ] {
            let month = Month::of(at);
            assert_eq!(month.to_string(), name);
            assert_eq!(utc(month.begins()), format!("{begins}T00:00:00.000Z"));
            assert_eq!(utc(month.ends()), format!("{ends}T00:00:00.000Z"));
        }
    }

    proptest! {
        #[test]
        fn every_time_is_in_one_month(at in -50_000_000_000_000..200_000_000_000_000_i64) {
            let month = Month::of(at);
            prop_assert!(month.contains(at));
            prop_assert_eq!(month.to_string(), utc(at)[..7].to_owned());
            prop_assert_eq!(Month::of(month.begins()), month);
            prop_assert_eq!(Month::of(month.ends() - 1), month);
            prop_assert_eq!(Month::of(month.ends()).begins(), month.ends());
        }
    }
}
