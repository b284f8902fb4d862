//! A [`Roster`]: identifiers in ascending order, each once, in one piece of memory.
//!
//! The form in which pages lie in the inbox and move through the fold: each identifier is its
//! length in bytes (LEB128) and its UTF-8 bytes. A thousand identifiers are one allocation.

use sha2::{Digest, Sha256};

/// Identifiers, ascending in byte order, each once.
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
    /// Takes identifiers that are ascending already.
    pub fn from_sorted<'a>(identifiers: impl IntoIterator<Item = &'a str>) -> Self {
        let mut roster = Roster::default();
        for identifier in identifiers {
            roster.push(identifier);
        }
        roster
    }

    /// Adds one that is greater than all before it.
    pub fn push(&mut self, identifier: &str) {
        let mut length = identifier.len();
        while length >= 0x80 {
            self.bytes.push((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        self.bytes.push(length as u8);
        self.bytes.extend_from_slice(identifier.as_bytes());
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

    /// How many there are.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The identifiers, ascending.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        let mut at = 0;
        std::iter::from_fn(move || {
            let (identifier, next) = split(&self.bytes, at)?;
            at = next;
            Some(identifier)
        })
    }

    /// A fingerprint of the content: 16 bytes of SHA-256.
    pub fn fingerprint(&self) -> [u8; 16] {
        let mut fingerprint = [0; 16];
        fingerprint.copy_from_slice(&Sha256::digest(&self.bytes)[..16]);
        fingerprint
    }
}

/// The identifier at `at` and where the next one begins; `None` at the end or where damaged.
fn split(bytes: &[u8], at: usize) -> Option<(&str, usize)> {
    let mut length = 0_usize;
    let mut shift = 0;
    let mut start = at;
    loop {
        let byte = *bytes.get(start)?;
        start += 1;
        length |= usize::from(byte & 0x7f).checked_shl(shift)?;
        shift += 7;
        if byte & 0x80 == 0 {
            break;
        }
    }
    let end = start.checked_add(length)?;
    let identifier = std::str::from_utf8(bytes.get(start..end)?).ok()?;
    Some((identifier, end))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_goes_in_comes_out(identifiers in prop::collection::btree_set(".{0,300}", 0..40)) {
            let roster = Roster::from_sorted(identifiers.iter().map(String::as_str));
            prop_assert_eq!(roster.len(), identifiers.len());
            let again = Roster::from_bytes(roster.as_bytes().to_vec()).unwrap();
            prop_assert_eq!(again.iter().map(String::from).collect::<BTreeSet<_>>(), identifiers);
            prop_assert_eq!(again.fingerprint(), roster.fingerprint());
            prop_assert_eq!(again, roster);
        }

        #[test]
        fn damage_is_an_error_not_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(roster) = Roster::from_bytes(bytes) {
                prop_assert_eq!(roster.iter().count(), roster.len());
            }
        }
    }

    #[test]
    fn a_cut_page_is_damaged() {
        let roster = Roster::from_sorted(["ab", "cd"]);
        let cut = roster.as_bytes()[..5].to_vec();
        assert_eq!(Roster::from_bytes(cut), Err(Damaged(3)));
    }
}
