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
    let exact = crate::rfc3339::utc(millis);
    match exact.split_once('.') {
        Some((seconds, _)) => format!("{}Z", seconds.replace('T', " ")),
        None => exact,
    }
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
