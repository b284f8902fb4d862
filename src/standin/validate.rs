//! What Flagsmith's serializers take and refuse, and with which words.

use std::borrow::Cow;

use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value, json};

use super::reply::Reply;

/// Characters of an identifier (the database's column).
pub(super) const MAX_IDENTIFIER_CHARS: usize = 2000;
/// Characters of a trait key (the database's column).
pub(super) const MAX_TRAIT_KEY_CHARS: usize = 200;
/// Characters of a string value.
const MAX_VALUE_CHARS: usize = 2000;

/// Bytes of an identifier that fit into a row of the database's index as they are: 2,685 were
/// measured to do and 2,715 not to.
const MAX_INDEXED_BYTES: usize = 2700;

const BLANK: &str = "This field may not be blank.";
const NULL: &str = "This field may not be null.";
const REQUIRED: &str = "This field is required.";
const NOT_A_STRING: &str = "Not a valid string.";
const NUL_INSIDE: &str = "Null characters are not allowed.";

/// `POST identities/`, validated.
#[derive(Clone, Debug)]
pub(super) struct Identify<'a> {
    /// `None` where it is blank, null or missing.
    pub identifier: Option<Cow<'a, str>>,
    pub traits: Vec<SentTrait<'a>>,
    pub transient: bool,
}

#[derive(Clone, Debug)]
pub(super) struct SentTrait<'a> {
    pub key: Cow<'a, str>,
    /// `None` deletes.
    pub value: Option<Value>,
    pub transient: bool,
}

/// A set row of `PUT traits/bulk/`, validated.
#[derive(Clone, Debug)]
pub(super) struct BulkRow<'a> {
    pub identifier: Cow<'a, str>,
    pub key: Cow<'a, str>,
    pub value: Value,
}

impl BulkRow<'_> {
    pub fn overflows(&self) -> bool {
        overflows(&self.value)
    }
}

/// The shape that the bridge sends, read without a tree; anything else takes the long way.
pub(super) fn plain(body: &[u8]) -> Option<Identify<'_>> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Plain<'a> {
        #[serde(borrow)]
        identifier: Cow<'a, str>,
        #[serde(borrow)]
        traits: Vec<PlainTrait<'a>>,
    }

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct PlainTrait<'a> {
        #[serde(borrow)]
        trait_key: Cow<'a, str>,
        #[serde(deserialize_with = "present")]
        trait_value: Option<bool>,
    }

    /// An `Option` that may be null but not missing.
    fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<bool>, D::Error> {
        Option::deserialize(deserializer)
    }

    let plain: Plain<'_> = serde_json::from_slice(body).ok()?;
    let is_plain = |text: &str, max: usize| {
        !text.is_empty() && text.len() <= max && !text.contains('\0') && strip(text) == text
    };
    let usable = is_plain(&plain.identifier, MAX_IDENTIFIER_CHARS)
        && plain
            .traits
            .iter()
            .all(|sent| is_plain(&sent.trait_key, MAX_TRAIT_KEY_CHARS));
    usable.then(|| Identify {
        identifier: Some(plain.identifier),
        traits: plain
            .traits
            .into_iter()
            .map(|sent| SentTrait {
                key: sent.trait_key,
                value: sent.trait_value.map(Value::Bool),
                transient: false,
            })
            .collect(),
        transient: false,
    })
}

/// The body of `POST identities/`.
pub(super) fn identify(body: &Value) -> Result<Identify<'_>, Reply> {
    let Value::Object(fields) = body else {
        let said = format!(
            "Invalid data. Expected a dictionary, but got {}.",
            python_type(body)
        );
        return Err(Reply::value(400, &json!({"non_field_errors": [said]})));
    };
    let mut errors = Map::new();
    let identifier = match fields.get("identifier") {
        None | Some(Value::Null) => None,
        Some(value) => match text(value) {
            Ok(identifier) => Some(identifier).filter(|identifier| !identifier.is_empty()),
            Err(said) => {
                errors.insert("identifier".to_owned(), json!([said]));
                None
            }
        },
    };
    let mut traits = Vec::new();
    match fields.get("traits") {
        None => {}
        Some(Value::Null) => {
            errors.insert("traits".to_owned(), json!([NULL]));
        }
        Some(Value::Array(rows)) => {
            let checked: Vec<_> = rows.iter().map(sent_trait).collect();
            if checked.iter().any(Result::is_err) {
                let said = checked
                    .into_iter()
                    .map(|row| row.err().unwrap_or_else(|| json!({})))
                    .collect();
                errors.insert("traits".to_owned(), Value::Array(said));
            } else {
                traits = checked.into_iter().flatten().collect();
            }
        }
        Some(other) => {
            let said = format!(
                "Expected a list of items but got type \"{}\".",
                python_type(other)
            );
            errors.insert("traits".to_owned(), json!({"non_field_errors": [said]}));
        }
    }
    if !errors.is_empty() {
        return Err(Reply::value(400, &Value::Object(errors)));
    }
    // The database refuses what validation lets through.
    if traits
        .iter()
        .any(|sent| sent.value.as_ref().is_some_and(overflows))
    {
        return Err(Reply::page(500));
    }
    Ok(Identify {
        identifier,
        traits,
        transient: fields.get("transient") == Some(&Value::Bool(true)),
    })
}

fn sent_trait(row: &Value) -> Result<SentTrait<'_>, Value> {
    let key = trait_key(row).and_then(|key| {
        if key.chars().count() > MAX_TRAIT_KEY_CHARS {
            Err("Ensure this field has no more than 200 characters.")
        } else {
            Ok(key)
        }
    });
    let value = match row.get("trait_value") {
        None => Err(REQUIRED),
        Some(Value::Null) => Ok(None),
        Some(value) => trait_value(value).map(Some),
    };
    match (key, value) {
        (Ok(key), Ok(value)) => Ok(SentTrait {
            key,
            value,
            transient: row.get("transient") == Some(&Value::Bool(true)),
        }),
        (key, value) => {
            let mut errors = Map::new();
            if let Err(said) = key {
                errors.insert("trait_key".to_owned(), json!([said]));
            }
            if let Err(said) = value {
                errors.insert("trait_value".to_owned(), json!([said]));
            }
            Err(Value::Object(errors))
        }
    }
}

/// A set row of `PUT traits/bulk/`; `Err` holds its entry in the array of errors.
pub(super) fn bulk_row(row: &Value) -> Result<BulkRow<'_>, Value> {
    let mut errors = Map::new();
    let identifier = match &row["identity"] {
        Value::Object(identity) => match identity.get("identifier") {
            None => Err(json!({"identifier": [REQUIRED]})),
            Some(Value::Null) => Err(json!({"identifier": [NULL]})),
            Some(value) => match text(value) {
                Ok(named) if named.is_empty() => Err(json!({"identifier": [BLANK]})),
                Ok(named) if named.chars().count() > MAX_IDENTIFIER_CHARS => Err(json!({
                    "identifier": ["Ensure this field has no more than 2000 characters."]
                })),
                Ok(named) => Ok(named),
                Err(said) => Err(json!({"identifier": [said]})),
            },
        },
        _ => Err(json!([REQUIRED])),
    };
    let key = trait_key(row);
    let value = trait_value(&row["trait_value"]);
    match (identifier, key, value) {
        (Ok(identifier), Ok(key), Ok(value)) => Ok(BulkRow {
            identifier,
            key,
            value,
        }),
        (identifier, key, value) => {
            if let Err(said) = identifier {
                errors.insert("identity".to_owned(), said);
            }
            if let Err(said) = value {
                errors.insert("trait_value".to_owned(), json!([said]));
            }
            if let Err(said) = key {
                errors.insert("trait_key".to_owned(), json!([said]));
            }
            Err(Value::Object(errors))
        }
    }
}

fn trait_key(row: &Value) -> Result<Cow<'_, str>, &'static str> {
    match row.get("trait_key") {
        None => Err(REQUIRED),
        Some(Value::Null) => Err(NULL),
        Some(value) => match text(value)? {
            key if key.is_empty() => Err(BLANK),
            key => Ok(key),
        },
    }
}

fn trait_value(value: &Value) -> Result<Value, &'static str> {
    match value {
        Value::String(text) if text.chars().count() > MAX_VALUE_CHARS => {
            Err("Value string is too long. Must be less than 2000 character")
        }
        Value::Array(_) | Value::Object(_) => Ok(Value::String(value.to_string())),
        other => Ok(other.clone()),
    }
}

/// Whether an identifier is too long for the database's index. What is longer fits where it can be
/// compressed; here that is text of few different characters, which is near enough.
pub(super) fn overflows_index(identifier: &str) -> bool {
    if identifier.len() <= MAX_INDEXED_BYTES {
        return false;
    }
    let mut characters: Vec<char> = identifier.chars().collect();
    let all = characters.len();
    characters.sort_unstable();
    characters.dedup();
    characters.len() > all / 8
}

/// Whether the database refuses a value: a number outside 32 bits, or NUL in a text.
fn overflows(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Number(number) => {
            let fits = |number| i32::try_from(number).is_ok();
            !(number.is_f64() || number.as_i64().is_some_and(fits))
        }
        _ => false,
    }
}

/// A text field as Django REST framework reads it: trimmed, numbers made text.
fn text(value: &Value) -> Result<Cow<'_, str>, &'static str> {
    match value {
        Value::String(text) if text.contains('\0') => Err(NUL_INSIDE),
        Value::String(text) => Ok(strip(text).into()),
        Value::Number(number) => Ok(number.to_string().into()),
        _ => Err(NOT_A_STRING),
    }
}

/// Python's `str.strip`, whose white space is Unicode's and the four separators of ASCII.
fn strip(text: &str) -> &str {
    text.trim_matches(|c: char| c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c))
}

fn python_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "NoneType",
        Value::Bool(_) => "bool",
        Value::Number(number) if number.is_f64() => "float",
        Value::Number(_) => "int",
        Value::String(_) => "str",
        Value::Array(_) => "list",
        Value::Object(_) => "dict",
    }
}
