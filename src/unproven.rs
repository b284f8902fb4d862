//! [`Unproven`]: which traits of whom a transaction counted as written, in one piece of memory.
//!
//! Flagsmith's answer showed them, which proves little where it answers as if it stored what it does
//! not. So they are kept until a canary proved that what is written stays. An entry is an identifier
//! (LEB128 of its bytes, then UTF-8) and its traits (LEB128 of their count; of each one's number times
//! four, plus what was written). An identity with one trait costs three bytes more than its
//! identifier.

use crate::cohort::Target;
use crate::roster::Damaged;

/// What was written to one identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Flagsmith's identifier.
    pub identifier: &'a str,
    /// Numbers of traits and what they were made.
    pub traits: Vec<(u64, Target)>,
}

/// Entries, in the order in which they came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unproven {
    bytes: Vec<u8>,
}

impl Unproven {
    /// Adds an entry. Numbers of traits are less than 2^62: a ledger counts them from 1.
    pub fn push(&mut self, identifier: &str, traits: &[(u64, Target)]) {
        self.number(identifier.len() as u64);
        self.bytes.extend_from_slice(identifier.as_bytes());
        self.number(traits.len() as u64);
        for (number, target) in traits {
            let code = match target {
                Target::Absent => 0,
                Target::True => 1,
                Target::False => 2,
            };
            self.number(number << 2 | code);
        }
    }

    fn number(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.bytes.push((number & 0x7f) as u8 | 0x80);
            number >>= 7;
        }
        self.bytes.push(number as u8);
    }

    /// The stored form.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Reads the stored form.
    ///
    /// # Errors
    /// [`Damaged`] where it is not what [`Unproven::as_bytes`] gave.
    pub fn entries(bytes: &[u8]) -> Result<Vec<Entry<'_>>, Damaged> {
        let mut entries = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            let (entry, next) = entry(bytes, at).ok_or(Damaged(at))?;
            entries.push(entry);
            at = next;
        }
        Ok(entries)
    }

    /// The stored form less the entries of one identifier; `None` where there are none of it.
    ///
    /// # Errors
    /// As [`Unproven::entries`].
    pub fn without(bytes: &[u8], identifier: &str) -> Result<Option<Self>, Damaged> {
        let entries = Unproven::entries(bytes)?;
        if entries.iter().all(|entry| entry.identifier != identifier) {
            return Ok(None);
        }
        let mut rest = Unproven::default();
        for entry in entries {
            if entry.identifier != identifier {
                rest.push(entry.identifier, &entry.traits);
            }
        }
        Ok(Some(rest))
    }
}

/// The entry at `at` and where the next one begins; `None` where it is damaged.
fn entry(bytes: &[u8], at: usize) -> Option<(Entry<'_>, usize)> {
    let (length, start) = number(bytes, at)?;
    let end = start.checked_add(usize::try_from(length).ok()?)?;
    let identifier = std::str::from_utf8(bytes.get(start..end)?).ok()?;
    let (count, mut at) = number(bytes, end)?;
    let mut traits = Vec::new();
    for _ in 0..count {
        let (trait_and_code, next) = number(bytes, at)?;
        at = next;
        let target = match trait_and_code & 3 {
            0 => Target::Absent,
            1 => Target::True,
            2 => Target::False,
            _ => return None,
        };
        traits.push((trait_and_code >> 2, target));
    }
    Some((Entry { identifier, traits }, at))
}

fn number(bytes: &[u8], mut at: usize) -> Option<(u64, usize)> {
    let mut number = 0_u64;
    for shift in (0..u64::BITS).step_by(7) {
        let byte = *bytes.get(at)?;
        at += 1;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some((number, at));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Owned = Vec<(String, Vec<(u64, Target)>)>;

    fn entries() -> impl Strategy<Value = Owned> {
        let target = prop_oneof![
            Just(Target::Absent),
            Just(Target::True),
            Just(Target::False)
        ];
        let number = prop_oneof![9 => 0_u64..300, 1 => Just((1_u64 << 62) - 1)];
        let traits = prop::collection::vec((number, target), 0..4);
        let identifier = prop_oneof![3 => "[a-c]{0,2}", 1 => ".{0,300}"];
        prop::collection::vec((identifier, traits), 0..40)
    }

    fn written(entries: &Owned) -> Unproven {
        let mut unproven = Unproven::default();
        for (identifier, traits) in entries {
            unproven.push(identifier, traits);
        }
        unproven
    }

    fn owned(unproven: &Unproven) -> Owned {
        Unproven::entries(unproven.as_bytes())
            .unwrap()
            .into_iter()
            .map(|entry| (entry.identifier.to_owned(), entry.traits))
            .collect()
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out(entries in entries()) {
            let unproven = written(&entries);
            prop_assert_eq!(unproven.is_empty(), entries.is_empty());
            prop_assert_eq!(owned(&unproven), entries);
        }

        #[test]
        fn without_drops_one_identifier_and_nothing_else(entries in entries(), identifier in "[a-c]{0,2}") {
            let rest = Unproven::without(written(&entries).as_bytes(), &identifier).unwrap();
            let expected: Owned = entries.iter().filter(|(other, _)| *other != identifier).cloned().collect();
            match rest {
                Some(rest) => {
                    prop_assert!(expected.len() < entries.len());
                    prop_assert_eq!(owned(&rest), expected);
                }
                None => prop_assert_eq!(expected, entries),
            }
        }

        #[test]
        fn damage_is_an_error_not_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Unproven::entries(&bytes);
        }
    }

    #[test]
    fn one_trait_costs_three_bytes_beside_the_identifier() {
        let mut unproven = Unproven::default();
        unproven.push("ann", &[(7, Target::True)]);
        assert_eq!(unproven.as_bytes(), [3, b'a', b'n', b'n', 1, 7 << 2 | 1]);
    }

    #[test]
    fn a_cut_entry_is_damaged() {
        let mut unproven = Unproven::default();
        unproven.push("ann", &[(7, Target::True)]);
        unproven.push("bob", &[(7, Target::False)]);
        let cut = &unproven.as_bytes()[..10];
        assert_eq!(Unproven::entries(cut), Err(Damaged(6)));
    }
}
