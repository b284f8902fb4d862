//! JSON text, read without losing what Rust's strings cannot hold.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, Visitor};
use serde_json::value::RawValue;

/// A JSON string as WTF-8: UTF-8 but for lone surrogates, which serde_json refuses in a `str` and
/// hands out in bytes.
pub(super) struct Wtf8<'a>(pub Cow<'a, [u8]>);

impl<'de> Deserialize<'de> for Wtf8<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes;
        impl<'de> Visitor<'de> for Bytes {
            type Value = Wtf8<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_bytes<E: Error>(self, bytes: &'de [u8]) -> Result<Self::Value, E> {
                Ok(Wtf8(Cow::Borrowed(bytes)))
            }

            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Self::Value, E> {
                Ok(Wtf8(Cow::Owned(bytes.to_vec())))
            }
        }
        deserializer.deserialize_bytes(Bytes)
    }
}

/// What a JSON value can be where a string or a whole number is wanted.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Scalar<'a> {
    /// A string's content, or a whole number as it was written.
    Text(Cow<'a, str>),
    /// A string with lone surrogates, as WTF-8.
    Surrogate(Vec<u8>),
    /// `null`.
    Null,
    /// Anything else, numbers with a fraction or an exponent included.
    Other,
}

impl<'a> Scalar<'a> {
    pub(super) fn of(raw: &'a RawValue) -> Self {
        let json = raw.get();
        match json.as_bytes() {
            [b'"', .., b'"'] => {
                let content = &json[1..json.len() - 1];
                if content.as_bytes().contains(&b'\\') {
                    Self::unescaped(json)
                } else {
                    Scalar::Text(Cow::Borrowed(content))
                }
            }
            b"null" => Scalar::Null,
            [b'-' | b'0'..=b'9', digits @ ..] if digits.iter().all(u8::is_ascii_digit) => {
                Scalar::Text(Cow::Borrowed(json))
            }
            _ => Scalar::Other,
        }
    }

    fn unescaped(json: &'a str) -> Self {
        match serde_json::from_str::<Wtf8<'_>>(json) {
            Ok(Wtf8(bytes)) => match String::from_utf8(bytes.into_owned()) {
                Ok(text) => Scalar::Text(Cow::Owned(text)),
                Err(error) => Scalar::Surrogate(error.into_bytes()),
            },
            Err(_) => Scalar::Other,
        }
    }
}

/// White space as Python's `str.strip` sees it, which is how Flagsmith trims an identifier.
/// Unicode's `White_Space` and U+001C to U+001F, which Python counts by their bidirectional class.
pub(crate) fn is_space(character: char) -> bool {
    character.is_whitespace() || matches!(character, '\u{1c}'..='\u{1f}')
}

/// Whether nesting stays within `limit` brackets. Needs no stack and looks at each byte once; what
/// it says of text that is not JSON does not matter.
pub(super) fn nests_within(json: &[u8], limit: usize) -> bool {
    let mut depth = 0_usize;
    let mut bytes = json.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => {
                while let Some(byte) = bytes.next() {
                    match byte {
                        b'"' => break,
                        b'\\' => {
                            bytes.next();
                        }
                        _ => {}
                    }
                }
            }
            b'[' | b'{' => {
                depth += 1;
                if depth > limit {
                    return false;
                }
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn white_space_is_pythons() {
        // From `[c for c in range(0x110000) if chr(c).isspace()]` of Python 3.11.
        let python: Vec<u32> = [0x09..=0x0d, 0x1c..=0x20, 0x85..=0x85, 0xa0..=0xa0]
            .into_iter()
            .chain([0x1680..=0x1680, 0x2000..=0x200a, 0x2028..=0x2029])
            .chain([0x202f..=0x202f, 0x205f..=0x205f, 0x3000..=0x3000])
            .flatten()
            .collect();
        let ours: Vec<u32> = ('\0'..=char::MAX)
            .filter(|character| is_space(*character))
            .map(u32::from)
            .collect();
        assert_eq!(ours, python);
    }

    #[test]
    fn nesting_ignores_brackets_in_strings() {
        assert!(nests_within(br#"[["[[[\"[[["]]"#, 2));
        assert!(!nests_within(br#"[["\\",[]]]"#, 2));
        assert!(nests_within(b"[][][]{}{}", 1));
        assert!(nests_within(b"]]]]\"\\", 1));
    }

    #[test]
    fn scalars_keep_their_text() {
        let scalar = |json: &'static str| -> String {
            let raw: &RawValue = serde_json::from_str(json).unwrap();
            format!("{:?}", Scalar::of(raw))
        };
        for (json, expected) in [
            (r#""""#, r#"Text("")"#),
            (r#""a""#, r#"Text("a")"#),
            (r#""\u00e9\ud83d\ude80""#, r#"Text("é🚀")"#),
            (r#""\ud800""#, "Surrogate([237, 160, 128])"),
            (
                r#""\ude80\ud83d""#,
                "Surrogate([237, 186, 128, 237, 160, 189])",
            ),
            ("9007199254740993", r#"Text("9007199254740993")"#),
            ("-7", r#"Text("-7")"#),
            ("1.0", "Other"),
            ("1e3", "Other"),
            ("null", "Null"),
            ("true", "Other"),
            ("[1]", "Other"),
        ] {
            assert_eq!(scalar(json), expected, "{json}");
        }
    }
}
