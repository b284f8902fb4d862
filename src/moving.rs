//! The commands that are about a ledger as a whole: `backup` and `migrate-store`.

use std::io::{self, IsTerminal, Write};

use indicatif::{ProgressBar, ProgressStyle};

use crate::clock::Millis;
use crate::config::{BackupSettings, MigrateSettings};
use crate::number::{Number, counted};
use crate::store::{Compared, MoveProgress, Moved, PostgresUrl, back_up, move_ledger, take_back};

/// Figures of a checksum that are shown: enough to tell two apart.
const SHOWN: usize = 16;

/// Copies the ledger. To be called where blocking is allowed.
///
/// # Errors
///
/// Where it cannot be copied or written.
pub fn backup(settings: &BackupSettings, out: &mut dyn Write) -> anyhow::Result<()> {
    let BackupSettings { ledger, to } = settings;
    let done = back_up(ledger, to)?;
    writeln!(
        out,
        "{}: {}, schema version {}, checked and on disk",
        to.display(),
        counted(done.bytes, "byte", "bytes"),
        done.schema_version
    )?;
    Ok(())
}

/// Moves the ledger, or takes that back; whether all is well. To be called where blocking is allowed.
///
/// # Errors
///
/// Where it cannot be moved, or not all of it by now.
pub fn migrate(
    settings: &MigrateSettings,
    now: Millis,
    out: &mut dyn Write,
) -> anyhow::Result<bool> {
    let from = settings.from.display();
    let Some(to) = &settings.to else {
        let words = match take_back(&settings.from)? {
            true => {
                "can be used again, as it was when it was moved; afterwards write everything again with resync"
            }
            false => "was not moved, and can be used as it is",
        };
        writeln!(out, "{from} {words}")?;
        return Ok(true);
    };
    match copied(settings, to, now)? {
        Moved::Before(at) => {
            writeln!(
                out,
                "{from} is moved already: to {} on {at}; nothing was done",
                to.place()
            )?;
            Ok(true)
        }
        Moved::Differs(compared) => {
            write!(out, "{}", table(&compared))?;
            writeln!(
                out,
                "{from} and {} are not the same, and the copy counts as unfinished: something else wrote there; drop and create the database, and run this again",
                to.place()
            )?;
            Ok(false)
        }
        Moved::Now(compared) => {
            write!(out, "{}", table(&compared))?;
            let rows = compared.iter().map(|table| table.rows[0]).sum();
            writeln!(
                out,
                "{} moved from {from} to {}, and the same on both sides\nset DATABASE_URL to that database and start the service; it refuses {from} from now on, which is kept as it is",
                counted(rows, "row", "rows"),
                to.place()
            )?;
            Ok(true)
        }
    }
}

fn copied(settings: &MigrateSettings, to: &PostgresUrl, now: Millis) -> anyhow::Result<Moved> {
    let mut shown = Shown::new();
    let moved = move_ledger(&settings.from, to, now, &mut |progress| {
        shown.show(progress);
        true
    });
    shown.bar.finish_and_clear();
    Ok(moved?)
}

/// How far it is, on standard error: a bar for who sits before it, else a line a table and million rows.
struct Shown {
    bar: ProgressBar,
    told: Option<(&'static str, bool, u64)>,
}

impl Shown {
    fn new() -> Self {
        if !io::stderr().is_terminal() {
            return Shown {
                bar: ProgressBar::hidden(),
                told: None,
            };
        }
        let style = ProgressStyle::with_template("{msg:24} {bar:30} {pos}/{len} {per_sec} {eta}")
            .unwrap_or_else(|_| ProgressStyle::default_bar());
        Shown {
            bar: ProgressBar::new(0).with_style(style),
            told: None,
        }
    }

    fn show(&mut self, progress: MoveProgress) {
        let MoveProgress {
            table,
            is_compared,
            rows,
            total,
        } = progress;
        let verb = if is_compared { "comparing" } else { "copying" };
        self.bar.set_length(total);
        self.bar.set_position(rows);
        self.bar.set_message(format!("{verb} {table}"));
        let stands = (table, is_compared, rows / 1_000_000);
        if self.bar.is_hidden() && self.told != Some(stands) {
            self.told = Some(stands);
            let (rows, total) = (Number(rows), Number(total));
            // It goes on though nobody listens.
            let _ = writeln!(io::stderr(), "{verb} {table}: {rows} of {total} rows");
        }
    }
}

/// What was compared, a line a table.
fn table(compared: &[Compared]) -> String {
    let mut lines = vec![[
        "table".to_owned(),
        "rows".to_owned(),
        "sha-256".to_owned(),
        String::new(),
    ]];
    for table in compared {
        let [rows, rows_there] = table.rows.map(|rows| Number(rows).to_string());
        let [sum, sum_there] = table
            .checksums
            .each_ref()
            .map(|sum| sum.get(..SHOWN).unwrap_or(sum).to_owned());
        lines.push(match table.is_same() {
            true => [table.table.to_owned(), rows, sum, "same".to_owned()],
            false => [
                table.table.to_owned(),
                format!("{rows} / {rows_there}"),
                format!("{sum} / {sum_there}"),
                "DIFFERENT".to_owned(),
            ],
        });
    }
    let width = |column: usize| {
        let cells = lines.iter().map(|line| line[column].len());
        cells.max().unwrap_or(0)
    };
    let widths = [width(0), width(1), width(2)];
    let mut text = String::new();
    for [name, rows, sum, verdict] in &lines {
        let line = format!(
            "{name:0$}  {rows:>1$}  {sum:2$}  {verdict}",
            widths[0], widths[1], widths[2]
        );
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_is_seen() {
        let compared = |table, rows, sums: [&str; 2]| Compared {
            table,
            rows,
            checksums: sums.map(|sum| sum.repeat(64)),
        };
        let text = table(&[
            compared("member", [1_234, 1_234], ["a", "a"]),
            compared("pending", [3, 2], ["b", "c"]),
        ]);
        let expected = "\
table     rows  sha-256                              
member   1,234  aaaaaaaaaaaaaaaa                     same
pending  3 / 2  bbbbbbbbbbbbbbbb / cccccccccccccccc  DIFFERENT
";
        let lines = |text: &str| -> Vec<String> {
            text.lines()
                .map(|line| line.trim_end().to_owned())
                .collect()
        };
        assert_eq!(lines(&text), lines(expected));
    }
}
