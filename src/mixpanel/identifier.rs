//! Whether a text can be a Flagsmith identifier, and whether it names a person of Mixpanel's.

use std::borrow::Cow;

use serde_json::value::RawValue;

use super::text::{Scalar, is_space};
use super::{Anonymous, SetAside};
use crate::roster::PersonHash;

/// UTF-8 bytes of an identifier at most: the limit of Flagsmith's Edge API, which is the narrower
/// of the two (Core takes 2,000 characters).
pub(super) const MAX_IDENTIFIER_BYTES: usize = 1_024;

/// How Mixpanel marks the id of a device whose owner never logged in (simplified identity merge).
const DEVICE_PREFIX: &str = "$device:";

/// The identifier in a property's value, or why it is none.
pub(super) fn usable(raw: &RawValue, anonymous: Anonymous) -> Result<Cow<'_, str>, SetAside> {
    let text = match Scalar::of(raw) {
        Scalar::Text(text) => text,
        Scalar::Surrogate(_) => return Err(SetAside::Surrogate),
        Scalar::Null | Scalar::Other => return Err(SetAside::Missing),
    };
    if text.chars().all(is_space) {
        Err(SetAside::Blank)
    } else if text.len() > MAX_IDENTIFIER_BYTES {
        Err(SetAside::TooLong)
    } else if text.contains('\0') {
        Err(SetAside::Nul)
    } else if text.starts_with(is_space) || text.ends_with(is_space) {
        Err(SetAside::Padded)
    } else if anonymous == Anonymous::Skip && text.starts_with(DEVICE_PREFIX) {
        Err(SetAside::Anonymous)
    } else {
        Ok(text)
    }
}

/// The person in the value of `mixpanel_distinct_id`. Flagsmith never sees this id, so nothing that
/// it would refuse matters; only a blank one could be anybody's.
pub(super) fn person(raw: &RawValue) -> Option<PersonHash> {
    match Scalar::of(raw) {
        Scalar::Text(text) if !text.chars().all(is_space) => Some(PersonHash::of(&text)),
        Scalar::Text(_) | Scalar::Surrogate(_) | Scalar::Null | Scalar::Other => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(value: &str) -> Result<String, SetAside> {
        let json = serde_json::to_string(value).unwrap();
        let raw: &RawValue = serde_json::from_str(&json).unwrap();
        usable(raw, Anonymous::Skip).map(Cow::into_owned)
    }

    #[test]
    fn every_reason() {
        for (value, reason) in [
            ("", SetAside::Blank),
            (" \u{1c}\u{3000}\t", SetAside::Blank),
            ("a\0b", SetAside::Nul),
            ("\0", SetAside::Nul),
            (" a", SetAside::Padded),
            ("a\n", SetAside::Padded),
            ("a\u{1f}", SetAside::Padded),
            ("\u{85}a", SetAside::Padded),
            ("$device:", SetAside::Anonymous),
            ("$device:18c5", SetAside::Anonymous),
        ] {
            assert_eq!(verdict(value), Err(reason), "{value:?}");
        }
    }

    #[test]
    fn what_looks_odd_but_is_fine_is_kept_byte_for_byte() {
        for value in [
            "0007",
            "a b",
            "\u{200b}a\u{feff}",
            "Zoe\u{308}",
            "Zo\u{eb}",
            "device:1",
            "x$device:1",
            "\u{1}a",
            "a\"\\/",
        ] {
            assert_eq!(verdict(value).as_deref(), Ok(value));
        }
    }

    #[test]
    fn the_limit_counts_bytes() {
        assert!(verdict(&"é".repeat(512)).is_ok());
        assert_eq!(
            verdict(&format!("{}x", "é".repeat(512))),
            Err(SetAside::TooLong)
        );
    }

    #[test]
    fn a_person_is_whatever_is_not_blank() {
        let long = format!(r#""{}""#, "x".repeat(5_000));
        for (json, id) in [
            (r#""usr_1""#, "usr_1"),
            (r#""us\u0072_1""#, "usr_1"),
            (r#"" usr_1""#, " usr_1"),
            (r#""$device:1""#, "$device:1"),
            (r#""a\u0000b""#, "a\0b"),
            ("9007199254740993", "9007199254740993"),
            (r#""0007""#, "0007"),
            (&long, &*"x".repeat(5_000)),
        ] {
            let raw: &RawValue = serde_json::from_str(json).unwrap();
            assert_eq!(person(raw), Some(PersonHash::of(id)), "{json}");
        }
        for json in [
            r#""""#,
            r#"" \u001f""#,
            r#""\ud800""#,
            "null",
            "1.0",
            "1e3",
            "true",
            "[1]",
            "{}",
        ] {
            let raw: &RawValue = serde_json::from_str(json).unwrap();
            assert_eq!(person(raw), None, "{json}");
        }
    }
}
