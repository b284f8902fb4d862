//! Brings the people of all pages of a session into one ascending order, in little memory.
//!
//! A full sync of ten million people is applied as one walk along the ledger, whose rows lie in
//! identifier order too: sequential pages instead of random ones. So the session is sorted first,
//! by runs that fit in memory and spill to an unnamed temporary file.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};

use crate::roster::{Entry, Roster};

/// Bytes of identifiers a run may have: with their spans, about 14 MiB at ten bytes each.
const RUN_BYTES: usize = 8 * 1024 * 1024;

/// Read-ahead of each run during the merge.
const READ_AHEAD_BYTES: usize = 64 * 1024;

/// Gathers identifiers.
#[derive(Default)]
pub struct Sorter {
    bytes: Vec<u8>,
    spans: Vec<(u32, u16)>,
    runs: Vec<File>,
    run_bytes: Option<usize>,
}

impl Sorter {
    /// A sorter whose runs have at most `run_bytes` bytes of identifiers.
    pub fn with_run_bytes(run_bytes: usize) -> Self {
        Sorter {
            run_bytes: Some(run_bytes),
            ..Sorter::default()
        }
    }

    /// Takes a page in.
    ///
    /// # Errors
    /// Where the temporary file cannot be written.
    pub fn add(&mut self, page: &Roster) -> io::Result<()> {
        let identifiers = page.iter().map(|entry| entry.identifier);
        for identifier in identifiers.filter(|identifier| !identifier.is_empty()) {
            // A run ends far below 4 GiB, and an identifier has 1,024 bytes at most.
            self.spans
                .push((self.bytes.len() as u32, identifier.len() as u16));
            self.bytes.extend_from_slice(identifier.as_bytes());
        }
        if self.bytes.len() >= self.run_bytes.unwrap_or(RUN_BYTES) {
            self.spill()?;
        }
        Ok(())
    }

    /// The identifiers, ascending, each once.
    ///
    /// # Errors
    /// Where the temporary file cannot be written or read.
    pub fn finish(mut self) -> io::Result<Sorted> {
        if self.runs.is_empty() {
            self.sort();
            return Ok(Sorted {
                source: Source::Memory {
                    bytes: self.bytes,
                    spans: self.spans.into_iter(),
                },
                last: None,
            });
        }
        self.spill()?;
        self.bytes = Vec::new();
        self.spans = Vec::new();
        let mut merge = Merge {
            runs: self
                .runs
                .into_iter()
                .map(|run| BufReader::with_capacity(READ_AHEAD_BYTES, run))
                .collect(),
            heads: BinaryHeap::new(),
        };
        for run in 0..merge.runs.len() {
            merge.refill(run)?;
        }
        Ok(Sorted {
            source: Source::Merge(merge),
            last: None,
        })
    }

    fn sort(&mut self) {
        let bytes = &self.bytes;
        // Stable: pages are ascending already, and a merge sort makes use of that.
        self.spans
            .sort_by(|left, right| span(bytes, *left).cmp(span(bytes, *right)));
    }

    fn spill(&mut self) -> io::Result<()> {
        if self.spans.is_empty() {
            return Ok(());
        }
        self.sort();
        let mut out = io::BufWriter::new(tempfile::tempfile()?);
        for at in &self.spans {
            let identifier = span(&self.bytes, *at);
            out.write_all(&at.1.to_le_bytes())?;
            out.write_all(identifier)?;
        }
        let mut run = out.into_inner().map_err(io::IntoInnerError::into_error)?;
        run.seek(SeekFrom::Start(0))?;
        self.runs.push(run);
        self.bytes.clear();
        self.spans.clear();
        Ok(())
    }
}

fn span(bytes: &[u8], (start, length): (u32, u16)) -> &[u8] {
    &bytes[start as usize..start as usize + usize::from(length)]
}

/// Identifiers in ascending order.
pub struct Sorted {
    source: Source,
    last: Option<Vec<u8>>,
}

enum Source {
    Memory {
        bytes: Vec<u8>,
        spans: std::vec::IntoIter<(u32, u16)>,
    },
    Merge(Merge),
}

struct Merge {
    runs: Vec<BufReader<File>>,
    heads: BinaryHeap<Reverse<(Vec<u8>, usize)>>,
}

impl Merge {
    fn refill(&mut self, run: usize) -> io::Result<()> {
        let mut length = [0; 2];
        match self.runs[run].read_exact(&mut length) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error),
        }
        let mut identifier = vec![0; usize::from(u16::from_le_bytes(length))];
        self.runs[run].read_exact(&mut identifier)?;
        self.heads.push(Reverse((identifier, run)));
        Ok(())
    }
}

impl Sorted {
    /// The next at most `limit` identifiers greater than `after`; empty at the end.
    ///
    /// # Errors
    /// Where the temporary file cannot be read.
    pub fn take(&mut self, limit: usize, after: Option<&str>) -> io::Result<Roster> {
        let mut roster = Roster::default();
        while roster.len() < limit {
            let Some(identifier) = self.next()? else {
                break;
            };
            let is_new = self.last.as_deref().is_none_or(|last| last != identifier)
                && after.is_none_or(|after| after.as_bytes() < identifier.as_slice());
            if is_new {
                let text = std::str::from_utf8(&identifier)
                    .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
                roster.push(Entry {
                    identifier: text,
                    person: None,
                });
                self.last = Some(identifier);
            }
        }
        Ok(roster)
    }

    fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        match &mut self.source {
            Source::Memory { bytes, spans } => Ok(spans.next().map(|at| span(bytes, at).to_vec())),
            Source::Merge(merge) => {
                let Some(Reverse((identifier, run))) = merge.heads.pop() else {
                    return Ok(None);
                };
                merge.refill(run)?;
                Ok(Some(identifier))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::roster::PersonHash;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn pages_become_one_ascending_set(
            pages in prop::collection::vec(prop::collection::btree_set("[a-f]{1,4}", 0..30), 0..12),
            run_bytes in 1_usize..200,
            limit in 1_usize..40,
        ) {
            let mut sorter = Sorter::with_run_bytes(run_bytes);
            for page in &pages {
                sorter.add(&Roster::of_identifiers(page.iter().map(String::as_str))).unwrap();
            }
            let mut sorted = sorter.finish().unwrap();
            let mut all = Vec::new();
            loop {
                let piece = sorted.take(limit, None).unwrap();
                if piece.is_empty() {
                    break;
                }
                all.extend(piece.iter().map(|entry| entry.identifier.to_owned()));
            }
            let expected: BTreeSet<String> = pages.into_iter().flatten().collect();
            prop_assert_eq!(all, expected.into_iter().collect::<Vec<_>>());
        }
    }

    #[test]
    fn what_is_done_is_passed_over() {
        let mut sorter = Sorter::default();
        sorter
            .add(&Roster::of_identifiers(["a", "b", "c"]))
            .unwrap();
        let rest = sorter.finish().unwrap().take(10, Some("b")).unwrap();
        assert_eq!(rest, Roster::of_identifiers(["c"]));
    }

    #[test]
    fn an_identifier_of_two_people_is_one_and_no_identifier_is_none() {
        let entry = |identifier, person: u8| Entry {
            identifier,
            person: Some(PersonHash([person; 16])),
        };
        let page = Roster::from_sorted([entry("", 1), entry("a", 1), entry("a", 2)]);
        let mut sorter = Sorter::default();
        sorter.add(&page).unwrap();
        let found = sorter.finish().unwrap().take(10, None).unwrap();
        assert_eq!(found, Roster::of_identifiers(["a"]));
    }
}
