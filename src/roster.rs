//! A [`Roster`]: the members of a page in ascending order, each once, in one piece of memory.
//!
//! The form in which pages lie in the inbox and move through the fold. An [`Entry`] is a head
//! (LEB128 of the identifier's bytes times two, plus one where a person follows), the person's hash
//! and the identifier in UTF-8. A thousand entries are one allocation, and one without a person
//! costs a byte more than its identifier.

use sha2::{Digest, Sha256};

/// Bytes of a SHA-256 that are kept. Among ten million people, Mixpanel's limit of a cohort, two
/// share a hash of this length less than once in 10^24 cohorts; all 32 would double what an entry
/// with a person adds.
const HASH_BYTES: usize = 16;

/// A person of Mixpanel's: 16 bytes of SHA-256 of a `mixpanel_distinct_id`, which itself is kept
/// nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PersonHash(pub [u8; HASH_BYTES]);

impl PersonHash {
    /// Of the id's text as it was sent: `7` and `0007` are two people.
    pub fn of(distinct_id: &str) -> Self {
        PersonHash(digest(distinct_id.as_bytes()))
    }
}

/// One member of a page. Its order is that of identifiers in bytes, then of people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry<'a> {
    /// The Flagsmith identifier; empty where the page carries none that can be used, and then
    /// there is a person.
    pub identifier: &'a str,
    /// Who it is for Mixpanel; without one the identifier is the person.
    pub person: Option<PersonHash>,
}

/// Entries, ascending, each once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Roster {
    bytes: Vec<u8>,
    count: usize,
}

/// A stored roster is damaged.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a stored page is damaged at byte {0}")]
pub struct Damaged(pub usize);

impl Roster {
    /// Takes entries that are ascending already.
    pub fn from_sorted<'a>(entries: impl IntoIterator<Item = Entry<'a>>) -> Self {
        let mut roster = Roster::default();
        for entry in entries {
            roster.push(entry);
        }
        roster
    }

    /// Takes identifiers that are ascending already and are themselves the people.
    pub fn of_identifiers<'a>(identifiers: impl IntoIterator<Item = &'a str>) -> Self {
        Roster::from_sorted(identifiers.into_iter().map(|identifier| Entry {
            identifier,
            person: None,
        }))
    }

    /// Adds one that is greater than all before it.
    pub fn push(&mut self, entry: Entry<'_>) {
        debug_assert!(names_somebody(&entry), "an entry names nobody");
        let mut head = entry.identifier.len() << 1 | usize::from(entry.person.is_some());
        while head >= 0x80 {
            self.bytes.push((head & 0x7f) as u8 | 0x80);
            head >>= 7;
        }
        self.bytes.push(head as u8);
        if let Some(PersonHash(hash)) = &entry.person {
            self.bytes.extend_from_slice(hash);
        }
        self.bytes.extend_from_slice(entry.identifier.as_bytes());
        self.count += 1;
    }

    /// Reads the stored form.
    ///
    /// # Errors
    /// [`Damaged`] where it is not what [`Roster::as_bytes`] gave.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, Damaged> {
        let mut count = 0;
        let mut at = 0;
        while at < bytes.len() {
            let (_, next) = split(&bytes, at).ok_or(Damaged(at))?;
            at = next;
            count += 1;
        }
        Ok(Roster { bytes, count })
    }

    /// The stored form.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The entries, ascending.
    pub fn iter(&self) -> impl Iterator<Item = Entry<'_>> {
        let mut at = 0;
        std::iter::from_fn(move || {
            let (entry, next) = split(&self.bytes, at)?;
            at = next;
            Some(entry)
        })
    }

    /// The same entries but for those of one identifier.
    pub fn without(&self, identifier: &str) -> Roster {
        Roster::from_sorted(self.iter().filter(|entry| entry.identifier != identifier))
    }

    /// A fingerprint of the content: 16 bytes of SHA-256.
    pub fn fingerprint(&self) -> [u8; 16] {
        digest(&self.bytes)
    }
}

/// An entry with neither identifier nor person could not be told from any other such.
fn names_somebody(entry: &Entry<'_>) -> bool {
    !entry.identifier.is_empty() || entry.person.is_some()
}

fn digest(bytes: &[u8]) -> [u8; HASH_BYTES] {
    let mut digest = [0; HASH_BYTES];
    digest.copy_from_slice(&Sha256::digest(bytes)[..HASH_BYTES]);
    digest
}

/// The entry at `at` and where the next one begins; `None` at the end or where damaged.
fn split(bytes: &[u8], at: usize) -> Option<(Entry<'_>, usize)> {
    let mut head = 0_usize;
    let mut shift = 0;
    let mut start = at;
    loop {
        let byte = *bytes.get(start)?;
        start += 1;
        head |= usize::from(byte & 0x7f).checked_shl(shift)?;
        shift += 7;
        if byte & 0x80 == 0 {
            break;
        }
    }
    let mut rest = &bytes[start..];
    let person = if head & 1 == 1 {
        let (hash, behind) = rest.split_first_chunk()?;
        rest = behind;
        Some(PersonHash(*hash))
    } else {
        None
    };
    let identifier = std::str::from_utf8(rest.get(..head >> 1)?).ok()?;
    let entry = Entry { identifier, person };
    let next = bytes.len() - rest.len() + identifier.len();
    names_somebody(&entry).then_some((entry, next))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// Few identifiers and fewer people, so that they meet.
    fn entries() -> impl Strategy<Value = BTreeSet<(String, Option<PersonHash>)>> {
        let identifier = prop_oneof![3 => "[a-c]{0,2}", 1 => ".{0,300}"];
        let person = prop::option::of((0_u8..4).prop_map(|person| PersonHash([person; 16])));
        prop::collection::btree_set((identifier, person), 0..40).prop_map(|mut entries| {
            entries.remove(&(String::new(), None));
            entries
        })
    }

    fn roster(entries: &BTreeSet<(String, Option<PersonHash>)>) -> Roster {
        Roster::from_sorted(entries.iter().map(|(identifier, person)| Entry {
            identifier,
            person: *person,
        }))
    }

    fn owned(roster: &Roster) -> Vec<(String, Option<PersonHash>)> {
        roster
            .iter()
            .map(|entry| (entry.identifier.to_owned(), entry.person))
            .collect()
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out(entries in entries()) {
            let roster = roster(&entries);
            prop_assert_eq!(roster.len(), entries.len());
            prop_assert_eq!(roster.is_empty(), entries.is_empty());
            prop_assert!(roster.iter().is_sorted());
            let again = Roster::from_bytes(roster.as_bytes().to_vec()).unwrap();
            prop_assert_eq!(owned(&again), entries.into_iter().collect::<Vec<_>>());
            prop_assert_eq!(again.fingerprint(), roster.fingerprint());
            prop_assert_eq!(again, roster);
        }

        #[test]
        fn without_drops_one_identifier_and_nothing_else(entries in entries(), identifier in "[a-c]{0,2}") {
            let rest = roster(&entries).without(&identifier);
            let expected: Vec<_> = entries.into_iter().filter(|(other, _)| *other != identifier).collect();
            prop_assert_eq!(rest.len(), expected.len());
            prop_assert_eq!(owned(&rest), expected);
        }

        #[test]
        fn damage_is_an_error_not_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(roster) = Roster::from_bytes(bytes) {
                prop_assert_eq!(roster.iter().count(), roster.len());
            }
        }

        #[test]
        fn a_damaged_roster_is_an_error_not_a_panic(
            entries in entries(),
            at in any::<prop::sample::Index>(),
            byte in any::<u8>(),
        ) {
            let mut bytes = roster(&entries).as_bytes().to_vec();
            if !bytes.is_empty() {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            if let Ok(roster) = Roster::from_bytes(bytes) {
                prop_assert_eq!(roster.iter().count(), roster.len());
                prop_assert!(roster.iter().all(|entry| names_somebody(&entry)));
            }
        }
    }

    #[test]
    fn without_a_person_an_entry_costs_one_byte_more_than_its_identifier() {
        for length in [1, 12, 36, 63] {
            let identifier = "x".repeat(length);
            let roster = Roster::of_identifiers([&*identifier]);
            assert_eq!(roster.as_bytes().len(), length + 1);
        }
        let roster = Roster::from_sorted([Entry {
            identifier: "ab",
            person: Some(PersonHash([7; 16])),
        }]);
        assert_eq!(roster.as_bytes()[..2], [2 << 1 | 1, 7]);
        assert_eq!(roster.as_bytes().len(), 1 + 16 + 2);
    }

    #[test]
    fn people_are_hashed_as_ever() {
        // The first half of `printf usr_40031 | sha256sum`: a ledger holds such hashes for years.
        let hash = PersonHash::of("usr_40031").0;
        let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "2a23aa631366dffd3d9b2804f3e1faa1");
        assert_ne!(PersonHash::of("7"), PersonHash::of("0007"));
    }

    #[test]
    fn a_cut_page_is_damaged() {
        let roster = Roster::of_identifiers(["ab", "cd"]);
        let cut = roster.as_bytes()[..5].to_vec();
        assert_eq!(Roster::from_bytes(cut), Err(Damaged(3)));
        let person = Entry {
            identifier: "",
            person: Some(PersonHash([1; 16])),
        };
        let roster = Roster::from_sorted([person]);
        let cut = roster.as_bytes()[..16].to_vec();
        assert_eq!(Roster::from_bytes(cut), Err(Damaged(0)));
    }

    #[test]
    fn an_entry_that_names_nobody_is_damaged() {
        assert_eq!(Roster::from_bytes(vec![2, b'a', 0]), Err(Damaged(2)));
    }

    #[test]
    fn a_head_that_never_ends_or_overflows_is_damaged() {
        for bytes in [
            vec![0xff; 8],
            vec![0xff; 40],
            [&[0xfe; 9][..], &[1]].concat(),
        ] {
            assert_eq!(Roster::from_bytes(bytes), Err(Damaged(0)));
        }
    }
}
