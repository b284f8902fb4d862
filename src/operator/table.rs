//! Columns for people.

use std::fmt;

/// Rows of text under headings, each column as wide as its widest cell.
pub(super) struct Table<const COLUMNS: usize> {
    rows: Vec<[String; COLUMNS]>,
}

impl<const COLUMNS: usize> Table<COLUMNS> {
    /// A table that has headings only.
    pub(super) fn new(headings: [&str; COLUMNS]) -> Self {
        Table {
            rows: vec![headings.map(str::to_owned)],
        }
    }

    /// Adds a row. Cells may come from anyone: what a terminal would obey is made visible.
    pub(super) fn push(&mut self, cells: [String; COLUMNS]) {
        self.rows.push(cells.map(|cell| printable(&cell)));
    }
}

impl<const COLUMNS: usize> fmt::Display for Table<COLUMNS> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut widths = [0; COLUMNS];
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = cell.chars().count().max(*width);
            }
        }
        for row in &self.rows {
            let line: Vec<String> = row
                .iter()
                .zip(widths)
                .map(|(cell, width)| format!("{cell:width$}"))
                .collect();
            writeln!(f, "{}", line.join("  ").trim_end())?;
        }
        Ok(())
    }
}

/// `text` with control characters, and those that turn the direction of writing, escaped.
pub(super) fn printable(text: &str) -> String {
    let turns = |c: char| matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let mut printable = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() || turns(c) {
            printable.extend(c.escape_default());
        } else {
            printable.push(c);
        }
    }
    printable
}

/// Milliseconds since the Unix epoch as `2026-01-31 12:00:00Z`.
pub(super) fn utc(millis: i64) -> String {
    const DAY_SECONDS: i64 = 86_400;

    let seconds = millis.div_euclid(1_000);
    let (days, second) = (
        seconds.div_euclid(DAY_SECONDS),
        seconds.rem_euclid(DAY_SECONDS),
    );
    let (year, month, day) = civil(days);
    format!(
        "{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}Z",
        second / 3_600,
        second / 60 % 60,
        second % 60
    )
}

/// Year, month and day of a day since the Unix epoch, after Howard Hinnant's `civil_from_days`:
/// eras of 400 years, and years that begin in March so that a leap day is the last.
fn civil(days: i64) -> (i64, i64, i64) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(["A", "LONG HEADING", "C"]);
        table.push(["größer".into(), "x".into(), "1".into()]);
        table.push(["b".into(), "y".into(), String::new()]);
        assert_eq!(
            table.to_string(),
            "A       LONG HEADING  C\n\
             größer  x             1\n\
             b       y\n"
        );
    }

    #[test]
    fn a_cell_cannot_command_the_terminal() {
        let mut table = Table::new(["A"]);
        table.push(["\x1b[2J\n\u{202e}\u{9b}é".into()]);
        assert_eq!(table.to_string(), "A\n\\u{1b}[2J\\n\\u{202e}\\u{9b}é\n");
    }

    #[test]
    fn times() {
        for (millis, text) in [
            (0, "1970-01-01 00:00:00Z"),
            (-1, "1969-12-31 23:59:59Z"),
            (951_782_400_000, "2000-02-29 00:00:00Z"),
            (1_649_367_553_999, "2022-04-07 21:39:13Z"),
            (4_107_542_400_000, "2100-03-01 00:00:00Z"),
        ] {
            assert_eq!(utc(millis), text);
        }
        for extreme in [i64::MIN, i64::MAX] {
            utc(extreme);
        }
    }
}
