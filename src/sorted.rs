//! Brings the people of all pages of some sessions into one ascending order, in little memory.
//!
//! A full sync of ten million people is applied as one walk along the ledger, whose rows lie in
//! identifier order too: sequential pages instead of random ones. So the session is sorted first,
//! by runs that fit in memory and spill to an unnamed temporary file. Where several sessions have a
//! say (layers that are taken back, say), they are sorted together, and each person carries the
//! roles in which they are named.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};

use crate::roster::{Entry, PersonHash, Roster};

/// Bytes of keys a run may have: with their spans, about 16 MiB at ten bytes each.
const RUN_BYTES: usize = 8 * 1024 * 1024;

/// Read-ahead of each run during the merge.
const READ_AHEAD_BYTES: usize = 64 * 1024;

/// Between an identifier and a person: smaller than whatever an identifier may hold (a NUL is set
/// aside), so that keys sort as pairs do.
const SEPARATOR: u8 = 0;

/// Bytes of a [`PersonHash`].
const PERSON_BYTES: usize = 16;

/// In which of the sorted sessions somebody is named, a bit each.
pub type Roles = u32;

/// One person of some sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Item<'a> {
    /// Flagsmith's identifier.
    pub identifier: &'a str,
    /// The person, where that is not the identifier.
    pub person: Option<PersonHash>,
    /// Where they are named.
    pub roles: Roles,
}

/// People in ascending order, each once, in one piece of memory.
#[derive(Clone, Debug, Default)]
pub struct Items {
    keys: Vec<u8>,
    ends: Vec<(u32, Roles)>,
}

impl Items {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// One of them.
    pub fn get(&self, index: usize) -> Option<Item<'_>> {
        let (end, roles) = *self.ends.get(index)?;
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before].0);
        Some(item(&self.keys[start as usize..end as usize], roles))
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = Item<'_>> {
        let mut start = 0;
        self.ends.iter().map(move |(end, roles)| {
            let key = &self.keys[start..*end as usize];
            start = *end as usize;
            item(key, *roles)
        })
    }

    /// The last identifier.
    pub fn last_identifier(&self) -> Option<&str> {
        Some(self.get(self.len().checked_sub(1)?)?.identifier)
    }

    /// Those behind an identifier.
    pub fn behind(&self, identifier: &str) -> Items {
        let mut rest = Items::default();
        for item in self.iter().filter(|item| item.identifier > identifier) {
            rest.push(&key(item.identifier, item.person), item.roles);
        }
        rest
    }

    fn push(&mut self, key: &[u8], roles: Roles) {
        self.keys.extend_from_slice(key);
        // A chunk ends far below 4 GiB.
        self.ends.push((self.keys.len() as u32, roles));
    }
}

fn key(identifier: &str, person: Option<PersonHash>) -> Vec<u8> {
    let mut key = Vec::with_capacity(identifier.len() + 1 + PERSON_BYTES);
    append_key(&mut key, identifier, person);
    key
}

fn append_key(bytes: &mut Vec<u8>, identifier: &str, person: Option<PersonHash>) {
    bytes.extend_from_slice(identifier.as_bytes());
    if let Some(person) = person {
        bytes.push(SEPARATOR);
        bytes.extend_from_slice(&person.0);
    }
}

/// The bytes of a key that are the identifier.
fn identifier_bytes(key: &[u8]) -> &[u8] {
    match key.len().checked_sub(PERSON_BYTES + 1) {
        Some(end) if key[end] == SEPARATOR => &key[..end],
        _ => key,
    }
}

fn item(key: &[u8], roles: Roles) -> Item<'_> {
    let identifier = identifier_bytes(key);
    let person = (identifier.len() < key.len()).then(|| {
        let mut hash = [0; PERSON_BYTES];
        hash.copy_from_slice(&key[identifier.len() + 1..]);
        PersonHash(hash)
    });
    Item {
        // Keys are made of `str`s.
        identifier: std::str::from_utf8(identifier).unwrap_or_default(),
        person,
        roles,
    }
}

/// Where a key lies in a run, and its roles.
#[derive(Clone, Copy)]
struct Span {
    start: u32,
    length: u16,
    roles: Roles,
}

impl Span {
    fn of(self, bytes: &[u8]) -> &[u8] {
        &bytes[self.start as usize..self.start as usize + usize::from(self.length)]
    }
}

/// Gathers people.
#[derive(Default)]
pub struct Sorter {
    bytes: Vec<u8>,
    spans: Vec<Span>,
    runs: Vec<File>,
    run_bytes: Option<usize>,
}

impl Sorter {
    /// A sorter whose runs have at most `run_bytes` bytes of keys.
    pub fn with_run_bytes(run_bytes: usize) -> Self {
        Sorter {
            run_bytes: Some(run_bytes),
            ..Sorter::default()
        }
    }

    /// Takes a page in. Whoever has no identifier on it is passed over.
    ///
    /// # Errors
    /// Where the temporary file cannot be written.
    pub fn add(&mut self, page: &Roster, roles: Roles) -> io::Result<()> {
        for Entry { identifier, person } in page.iter() {
            if identifier.is_empty() {
                continue;
            }
            let start = self.bytes.len();
            append_key(&mut self.bytes, identifier, person);
            // A run ends far below 4 GiB, and an identifier has 1,024 bytes at most.
            self.spans.push(Span {
                start: start as u32,
                length: (self.bytes.len() - start) as u16,
                roles,
            });
        }
        if self.bytes.len() >= self.run_bytes.unwrap_or(RUN_BYTES) {
            self.spill()?;
        }
        Ok(())
    }

    /// Bytes of people taken in so far, in memory or not.
    pub fn bytes(&self) -> usize {
        self.bytes.len() + self.runs.len() * self.run_bytes.unwrap_or(RUN_BYTES)
    }

    /// The people, ascending, each once.
    ///
    /// # Errors
    /// Where the temporary file cannot be written or read.
    pub fn finish(mut self) -> io::Result<Sorted> {
        if self.runs.is_empty() {
            self.sort();
            return Ok(Sorted {
                source: Source::Memory {
                    bytes: self.bytes,
                    spans: self.spans,
                    next: 0,
                },
                ahead: None,
            });
        }
        self.spill()?;
        let merge = Merge::of(self.runs)?;
        Ok(Sorted {
            source: Source::Merge(merge),
            ahead: None,
        })
    }

    fn sort(&mut self) {
        let bytes = &self.bytes;
        // Stable: pages are ascending already, and a merge sort makes use of that.
        self.spans
            .sort_by(|left, right| left.of(bytes).cmp(right.of(bytes)));
    }

    fn spill(&mut self) -> io::Result<()> {
        if self.spans.is_empty() {
            return Ok(());
        }
        self.sort();
        let mut out = io::BufWriter::new(tempfile::tempfile()?);
        for at in &self.spans {
            out.write_all(&at.length.to_le_bytes())?;
            out.write_all(&at.roles.to_le_bytes())?;
            out.write_all(at.of(&self.bytes))?;
        }
        self.runs
            .push(out.into_inner().map_err(io::IntoInnerError::into_error)?);
        self.bytes.clear();
        self.spans.clear();
        Ok(())
    }
}

/// People in ascending order, to be read once or again.
pub struct Sorted {
    source: Source,
    /// Read already, and belonging to the next piece.
    ahead: Option<(Vec<u8>, Roles)>,
}

enum Source {
    Memory {
        bytes: Vec<u8>,
        spans: Vec<Span>,
        next: usize,
    },
    Merge(Merge),
}

struct Merge {
    runs: Vec<BufReader<File>>,
    heads: BinaryHeap<Reverse<(Vec<u8>, usize, Roles)>>,
    /// Memory of a key that was taken, for the next one.
    spare: Vec<u8>,
}

impl Merge {
    fn of(runs: Vec<File>) -> io::Result<Self> {
        let mut merge = Merge {
            runs: runs
                .into_iter()
                .map(|run| BufReader::with_capacity(READ_AHEAD_BYTES, run))
                .collect(),
            heads: BinaryHeap::new(),
            spare: Vec::new(),
        };
        merge.rewind()?;
        Ok(merge)
    }

    fn rewind(&mut self) -> io::Result<()> {
        self.heads.clear();
        for run in 0..self.runs.len() {
            self.runs[run].seek(SeekFrom::Start(0))?;
            self.refill(run)?;
        }
        Ok(())
    }

    fn refill(&mut self, run: usize) -> io::Result<()> {
        let mut head = [0; 6];
        match self.runs[run].read_exact(&mut head) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error),
        }
        let [low, high, roles @ ..] = head;
        let length = u16::from_le_bytes([low, high]);
        let mut key = std::mem::take(&mut self.spare);
        key.resize(usize::from(length), 0);
        self.runs[run].read_exact(&mut key)?;
        let roles = Roles::from_le_bytes(roles);
        self.heads.push(Reverse((key, run, roles)));
        Ok(())
    }
}

impl Sorted {
    /// The next people with an identifier greater than `after`: at least `limit`, and all of the
    /// last identifier; fewer at the end.
    ///
    /// # Errors
    /// Where the temporary file cannot be read.
    pub fn take(&mut self, limit: usize, after: Option<&str>) -> io::Result<Items> {
        let mut items = Items::default();
        let mut last: Option<(Vec<u8>, Roles)> = None;
        loop {
            let next = match self.ahead.take() {
                Some(next) => Some(next),
                None => self.next()?,
            };
            let Some((key, roles)) = next else {
                break;
            };
            if after.is_some_and(|after| identifier_bytes(&key) <= after.as_bytes()) {
                self.reuse(key);
                continue;
            }
            match &mut last {
                Some((same, all_roles)) if *same == key => {
                    *all_roles |= roles;
                    self.reuse(key);
                }
                Some((before, _))
                    if items.len() + 1 >= limit
                        && identifier_bytes(before) != identifier_bytes(&key) =>
                {
                    self.ahead = Some((key, roles));
                    break;
                }
                _ => {
                    if let Some((before, roles)) = last.replace((key, roles)) {
                        items.push(&before, roles);
                        self.reuse(before);
                    }
                }
            }
        }
        if let Some((key, roles)) = last {
            items.push(&key, roles);
        }
        Ok(items)
    }

    /// Whether everybody was taken.
    ///
    /// # Errors
    /// Where the temporary file cannot be read.
    pub fn is_at_end(&mut self) -> io::Result<bool> {
        if self.ahead.is_none() {
            self.ahead = self.next()?;
        }
        Ok(self.ahead.is_none())
    }

    /// Goes back to the first.
    ///
    /// # Errors
    /// Where the temporary file cannot be read.
    pub fn rewind(&mut self) -> io::Result<()> {
        self.ahead = None;
        match &mut self.source {
            Source::Memory { next, .. } => *next = 0,
            Source::Merge(merge) => merge.rewind()?,
        }
        Ok(())
    }

    fn next(&mut self) -> io::Result<Option<(Vec<u8>, Roles)>> {
        match &mut self.source {
            Source::Memory { bytes, spans, next } => {
                let Some(at) = spans.get(*next) else {
                    return Ok(None);
                };
                *next += 1;
                Ok(Some((at.of(bytes).to_vec(), at.roles)))
            }
            Source::Merge(merge) => {
                let Some(Reverse((key, run, roles))) = merge.heads.pop() else {
                    return Ok(None);
                };
                merge.refill(run)?;
                Ok(Some((key, roles)))
            }
        }
    }

    fn reuse(&mut self, key: Vec<u8>) {
        if let Source::Merge(merge) = &mut self.source {
            merge.spare = key;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    type Person = (String, Option<u8>);

    fn roster(people: &std::collections::BTreeSet<Person>) -> Roster {
        Roster::from_sorted(people.iter().map(|(identifier, person)| Entry {
            identifier,
            person: person.map(|byte| PersonHash([byte; 16])),
        }))
    }

    fn owned(item: Item<'_>) -> (Person, Roles) {
        let person = item.person.map(|person| person.0[0]);
        ((item.identifier.to_owned(), person), item.roles)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        #[test]
        fn pages_become_one_ascending_set(
            pages in prop::collection::vec(
                (prop::collection::btree_set(("[a-f]{1,4}", prop::option::of(0_u8..3)), 0..30), 0_u32..3),
                0..12,
            ),
            run_bytes in 1_usize..200,
            limit in 1_usize..40,
        ) {
            let mut sorter = Sorter::with_run_bytes(run_bytes);
            let mut expected = BTreeMap::<Person, Roles>::new();
            for (page, role) in &pages {
                sorter.add(&roster(page), 1 << role).unwrap();
                for person in page {
                    *expected.entry(person.clone()).or_default() |= 1 << role;
                }
            }
            let expected: Vec<_> = expected.into_iter().collect();
            let mut sorted = sorter.finish().unwrap();
            for _ in 0..2 {
                let mut all = Vec::new();
                loop {
                    let piece = sorted.take(limit, None).unwrap();
                    let Some((last, _)) = piece.iter().last().map(owned) else {
                        break;
                    };
                    prop_assert_eq!(piece.last_identifier(), Some(&*last.0));
                    all.extend(piece.iter().map(owned));
                    // No identifier is torn apart.
                    let rest = &expected[all.len()..];
                    prop_assert!(rest.first().is_none_or(|((next, _), _)| *next != last.0));
                    prop_assert!(rest.is_empty() || piece.len() >= limit);
                }
                prop_assert_eq!(&all, &expected);
                sorted.rewind().unwrap();
            }
        }
    }

    #[test]
    fn what_is_done_is_passed_over() {
        let mut sorter = Sorter::default();
        sorter
            .add(&Roster::of_identifiers(["a", "b", "c"]), 1)
            .unwrap();
        let rest = sorter.finish().unwrap().take(10, Some("b")).unwrap();
        let identifiers = |items: &Items| -> Vec<String> {
            items
                .iter()
                .map(|item| item.identifier.to_owned())
                .collect()
        };
        assert_eq!(identifiers(&rest), ["c"]);
        assert_eq!(identifiers(&rest.behind("b")), ["c"]);
        assert_eq!(identifiers(&rest.behind("c")), [""; 0]);
    }
}
