//! Times as people and other programs read them.

use crate::clock::Millis;

/// Milliseconds of a day.
pub(crate) const MS_PER_DAY: i64 = 86_400_000;
/// 0000-01-01T00:00:00.000Z, the first time RFC 3339 can write.
const FIRST_MS: Millis = -62_167_219_200_000;
/// 9999-12-31T23:59:59.999Z, the last time RFC 3339 can write.
const LAST_MS: Millis = 253_402_300_799_999;

/// `at` in UTC, to the millisecond: `2026-08-01T09:30:00.000Z`. Times that four digits of a year
/// cannot hold become the nearest that they can.
pub fn utc(at: Millis) -> String {
    let at = at.clamp(FIRST_MS, LAST_MS);
    let (year, month, day) = civil_from_days(at.div_euclid(MS_PER_DAY));
    let ms = at.rem_euclid(MS_PER_DAY);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:03}Z",
        ms / 3_600_000,
        ms / 60_000 % 60,
        ms / 1_000 % 60,
        ms % 1_000
    )
}

/// Year, month and day of a day counted from 1970-01-01, in the proleptic Gregorian calendar.
/// Source: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`.
pub(crate) fn civil_from_days(days: i64) -> (i64, i64, i64) {
    // Years begin in March there, so that the leap day is a year's last.
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12 + 1;
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day)
}

/// The inverse of [`civil_from_days`], from the same source.
pub(crate) fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = year - i64::from(month <= 2);
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_times() {
        for (at, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (-1, "1969-12-31T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (951_868_800_000, "2000-03-01T00:00:00.000Z"),
            (1_649_367_553_042, "2022-04-07T21:39:13.042Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
            (4_107_542_399_999, "2100-02-28T23:59:59.999Z"),
            (FIRST_MS, "0000-01-01T00:00:00.000Z"),
            (LAST_MS, "9999-12-31T23:59:59.999Z"),
            (Millis::MIN, "0000-01-01T00:00:00.000Z"),
            (Millis::MAX, "9999-12-31T23:59:59.999Z"),
        ] {
            assert_eq!(utc(at), text);
        }
    }

    /// The calendar's own definition, one day at a time.
    fn next_day((year, month, day): (i64, i64, i64)) -> (i64, i64, i64) {
        let leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
        let length = match month {
            2 if leap => 29,
            2 => 28,
            4 | 6 | 9 | 11 => 30,
            _ => 31,
        };
        match (month, day) {
            (12, 31) => (year + 1, 1, 1),
            (_, day) if day == length => (year, month + 1, 1),
            _ => (year, month, day + 1),
        }
    }

    #[test]
    fn every_day_of_four_centuries_follows_the_one_before() {
        for day in -146_097..146_097 {
            assert_eq!(civil_from_days(day + 1), next_day(civil_from_days(day)));
        }
    }

    proptest! {
        #[test]
        fn text_sorts_as_time_does(a in FIRST_MS..=LAST_MS, b in FIRST_MS..=LAST_MS) {
            prop_assert_eq!(a.cmp(&b), utc(a).cmp(&utc(b)));
        }
    }
}
