//! The envelope round the members: what is asked for, of which cohort, and where the page stands.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::error::shown;
use super::member::Members;
use super::text::{Scalar, Wtf8, is_space, nests_within};
use super::{IdentifierRules, Page, PageInfo, ParseError, Parsed, Rejected};
use crate::cohort::Action;

/// Levels of brackets that are read. Mixpanel's own payload has four, and a property of a People
/// profile may bring its own; serde_json's customary limit.
const MAX_DEPTH: usize = 128;

/// Bytes of an action that a reply repeats at most: beyond that it is no word of anybody's.
const MAX_ACTION_BYTES: usize = 256;

/// Bytes of an id in the envelope at most; Mixpanel's are a few digits or a UUID.
const MAX_ENVELOPE_ID_BYTES: usize = 255;

/// Characters of a cohort's name that are kept; Mixpanel's own names are shorter.
const MAX_NAME_CHARACTERS: usize = 255;

/// Pages of a session at most: one for each of the 10 million users that Mixpanel allows a cohort.
const MAX_PAGES: u32 = 10_000_000;

/// How gzip begins (RFC 1952, section 2.3.1).
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// Reads a webhook's body.
///
/// # Errors
///
/// [`Rejected`] where the body is no cohort payload. A member that cannot be used is never an error:
/// it is counted in [`Page::set_aside`].
pub fn parse(body: &[u8], rules: &IdentifierRules) -> Result<Parsed, Rejected> {
    let text = std::str::from_utf8(body).map_err(|error| Rejected {
        action: None,
        error: if body.starts_with(&GZIP) {
            ParseError::Compressed
        } else {
            ParseError::NotUtf8 {
                offset: error.valid_up_to(),
            }
        },
    })?;
    read(text, rules).map_err(|error| Rejected {
        action: action_as_sent(text),
        error,
    })
}

fn read(text: &str, rules: &IdentifierRules) -> Result<Parsed, ParseError> {
    if !nests_within(text.as_bytes(), MAX_DEPTH) {
        return Err(ParseError::TooDeep { limit: MAX_DEPTH });
    }
    let mut envelope = Envelope::new(rules);
    let mut json = serde_json::Deserializer::from_str(text);
    let read = json
        .deserialize_map(Body(&mut envelope))
        .and_then(|()| json.end());
    match read {
        Ok(()) => envelope.finish(),
        Err(error) => Err(envelope.fault.take().unwrap_or_else(|| error.into())),
    }
}

/// The fields of the envelope as they stand in the body.
struct Envelope<'a, 'r> {
    rules: &'r IdentifierRules,
    action: Option<&'a RawValue>,
    has_parameters: bool,
    project_id: Option<&'a RawValue>,
    cohort_id: Option<&'a RawValue>,
    cohort_name: Option<&'a RawValue>,
    session_id: Option<&'a RawValue>,
    page_info: Option<&'a RawValue>,
    members: Option<Members<'a, 'r>>,
    /// Why reading was broken off, where that was not serde_json's finding.
    fault: Option<ParseError>,
}

impl<'a, 'r> Envelope<'a, 'r> {
    fn new(rules: &'r IdentifierRules) -> Self {
        Envelope {
            rules,
            action: None,
            has_parameters: false,
            project_id: None,
            cohort_id: None,
            cohort_name: None,
            session_id: None,
            page_info: None,
            members: None,
            fault: None,
        }
    }

    fn break_off<E: Error>(&mut self, fault: ParseError) -> E {
        self.fault = Some(fault);
        E::custom("broken off")
    }

    fn read_members<A: MapAccess<'a>>(&mut self, map: &mut A) -> Result<(), A::Error> {
        if self.members.is_some() {
            return Err(self.break_off(duplicate(b"members", "the envelope")));
        }
        map.next_value_seed(self.members.insert(Members::new(self.rules)))
    }

    fn finish(self) -> Result<Parsed, ParseError> {
        let action = match self.action.map(Scalar::of) {
            Some(Scalar::Text(word)) => {
                Action::parse(&word).ok_or_else(|| ParseError::UnknownAction(shown(&word)))?
            }
            Some(Scalar::Surrogate(bytes)) => {
                let word = String::from_utf8_lossy(&bytes);
                return Err(ParseError::UnknownAction(shown(&word)));
            }
            Some(Scalar::Null | Scalar::Other) | None => return Err(ParseError::NoAction),
        };
        if !self.has_parameters {
            return Err(ParseError::NoParameters);
        }
        let cohort_id = id("mixpanel_cohort_id", self.cohort_id)?.ok_or(ParseError::NoCohortId)?;
        let project_id = id("mixpanel_project_id", self.project_id)?.unwrap_or_default();
        let session_id = id("mixpanel_session_id", self.session_id)?;
        let page_info = self.page_info.map_or(Ok(None), page_info)?;
        let members = self.members.ok_or(ParseError::NoMembers)?;

        Ok(Parsed {
            property_seen: members.property_seen.clone(),
            page: Page {
                action,
                project_id,
                cohort_id,
                cohort_name: self.cohort_name.and_then(name),
                session_id,
                page_info,
                identified_by: self.rules.describe(),
                members_received: members.received,
                set_aside: members
                    .set_aside
                    .iter()
                    .map(|(&reason, &count)| (reason, count))
                    .collect(),
                roster: members.into_roster(),
            },
        })
    }
}

/// The keys of one object of the envelope, each allowed once. Compared without their escapes.
struct Keys<'a> {
    place: &'static str,
    seen: HashSet<Cow<'a, [u8]>>,
}

impl<'a> Keys<'a> {
    fn of(place: &'static str) -> Self {
        Keys {
            place,
            seen: HashSet::new(),
        }
    }

    fn admit(&mut self, key: Cow<'a, [u8]>) -> Result<(), ParseError> {
        if self.seen.contains(&key) {
            return Err(duplicate(&key, self.place));
        }
        self.seen.insert(key);
        Ok(())
    }
}

fn duplicate(key: &[u8], place: &'static str) -> ParseError {
    ParseError::DuplicateKey {
        key: shown(&String::from_utf8_lossy(key)),
        place,
    }
}

/// The outermost object.
struct Body<'e, 'a, 'r>(&'e mut Envelope<'a, 'r>);

impl<'de> Visitor<'de> for Body<'_, 'de, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a cohort payload")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let envelope = self.0;
        let mut keys = Keys::of("the body");
        while let Some(Wtf8(key)) = map.next_key()? {
            keys.admit(key.clone())
                .map_err(|fault| envelope.break_off(fault))?;
            match &*key {
                b"action" => envelope.action = Some(map.next_value()?),
                b"parameters" => map.next_value_seed(Parameters(envelope))?,
                b"members" => envelope.read_members(&mut map)?,
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }
}

/// The object `parameters`.
struct Parameters<'e, 'a, 'r>(&'e mut Envelope<'a, 'r>);

impl<'de> DeserializeSeed<'de> for Parameters<'_, 'de, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Parameters<'_, 'de, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let envelope = self.0;
        envelope.has_parameters = true;
        let mut keys = Keys::of("'parameters'");
        while let Some(Wtf8(key)) = map.next_key()? {
            keys.admit(key.clone())
                .map_err(|fault| envelope.break_off(fault))?;
            let field = match &*key {
                b"mixpanel_project_id" => &mut envelope.project_id,
                b"mixpanel_cohort_id" => &mut envelope.cohort_id,
                b"mixpanel_cohort_name" => &mut envelope.cohort_name,
                b"mixpanel_session_id" => &mut envelope.session_id,
                b"page_info" => &mut envelope.page_info,
                b"members" => {
                    envelope.read_members(&mut map)?;
                    continue;
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
            };
            *field = Some(map.next_value()?);
        }
        Ok(())
    }
}

/// An id of the envelope: `None` where it is absent, null or blank.
fn id(field: &'static str, raw: Option<&RawValue>) -> Result<Option<String>, ParseError> {
    let unusable = |fault| Err(ParseError::UnusableId { field, fault });
    let text = match raw.map(Scalar::of) {
        Some(Scalar::Text(text)) => text,
        Some(Scalar::Null) | None => return Ok(None),
        Some(Scalar::Surrogate(_)) => return unusable("holds a lone surrogate"),
        Some(Scalar::Other) => return unusable("is neither a string nor a whole number"),
    };
    if text.len() > MAX_ENVELOPE_ID_BYTES {
        unusable("is longer than 255 bytes")
    } else if text.contains('\0') {
        unusable("holds a NUL character")
    } else if text.chars().all(is_space) {
        Ok(None)
    } else {
        Ok(Some(text.into_owned()))
    }
}

/// A cohort's name. It only has to be readable, so nothing about it is an error; NUL goes, because
/// a PostgreSQL text cannot hold it.
fn name(raw: &RawValue) -> Option<String> {
    let text = match Scalar::of(raw) {
        Scalar::Text(text) => text,
        Scalar::Surrogate(bytes) => String::from_utf8_lossy(&bytes).into_owned().into(),
        Scalar::Null | Scalar::Other => return None,
    };
    let name: String = text
        .chars()
        .filter(|character| *character != '\0')
        .take(MAX_NAME_CHARACTERS)
        .collect();
    (!name.chars().all(is_space)).then_some(name)
}

fn page_info(raw: &RawValue) -> Result<Option<PageInfo>, ParseError> {
    #[derive(Default)]
    struct Fields<'a> {
        number: Option<&'a RawValue>,
        total: Option<&'a RawValue>,
        fault: Option<ParseError>,
    }

    impl<'de> Visitor<'de> for &mut Fields<'de> {
        type Value = ();

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
            let mut keys = Keys::of("'page_info'");
            while let Some(Wtf8(key)) = map.next_key()? {
                keys.admit(key.clone()).map_err(|fault| {
                    self.fault = Some(fault);
                    A::Error::custom("broken off")
                })?;
                match &*key {
                    b"page_count" => self.number = Some(map.next_value()?),
                    b"total_pages" => self.total = Some(map.next_value()?),
                    _ => {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
            }
            Ok(())
        }
    }

    if raw.get() == "null" {
        return Ok(None);
    }
    let mut fields = Fields::default();
    let read = serde_json::Deserializer::from_str(raw.get()).deserialize_map(&mut fields);
    if read.is_err() {
        return Err(fields
            .fault
            .unwrap_or(ParseError::PageInfo("it is not an object")));
    }
    let (Some(number), Some(total)) = (
        fields.number.and_then(page_number),
        fields.total.and_then(page_number),
    ) else {
        return Err(ParseError::PageInfo(
            "page_count and total_pages must be whole numbers from 1 to 10,000,000",
        ));
    };
    if number > total {
        return Err(ParseError::PageInfo("page_count is above total_pages"));
    }
    Ok(Some(PageInfo { number, total }))
}

/// A number of pages, from a number or a string of digits.
fn page_number(raw: &RawValue) -> Option<u32> {
    match Scalar::of(raw) {
        Scalar::Text(text) if text.bytes().all(|byte| byte.is_ascii_digit()) => text
            .parse()
            .ok()
            .filter(|number| (1..=MAX_PAGES).contains(number)),
        _ => None,
    }
}

/// The action of a body that is refused, for the reply; as far as the body can be read at all.
fn action_as_sent(text: &str) -> Option<String> {
    struct Sent<'a>(Option<&'a RawValue>);

    impl<'de> Visitor<'de> for &mut Sent<'de> {
        type Value = ();

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
            while let Some(Wtf8(key)) = map.next_key()? {
                if *key == *b"action" {
                    self.0 = Some(map.next_value()?);
                    break;
                }
                map.next_value::<IgnoredAny>()?;
            }
            Ok(())
        }
    }

    let mut sent = Sent(None);
    // What the rest of the body holds is not this function's concern.
    let _ = serde_json::Deserializer::from_str(text).deserialize_map(&mut sent);
    match Scalar::of(sent.0?) {
        Scalar::Text(word) if word.len() <= MAX_ACTION_BYTES => Some(word.into_owned()),
        _ => None,
    }
}
