//! The members of a page: out of each an identifier and whose it is, nothing else.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::identifier::{person, usable};
use super::{DEFAULT_IDENTIFIER_PROPERTY, IdentifierRules, SetAside};
use crate::roster::{Entry, PersonHash, Roster};

/// What was read of an array of members.
pub(super) struct Members<'a, 'r> {
    rules: &'r IdentifierRules,
    /// The identifier properties, and behind them the distinct id, which may be one of them too.
    looked_for: Vec<&'r str>,
    /// Which of those says who the member is; none where the identifier does.
    person: Option<usize>,
    entries: Vec<(Cow<'a, str>, Option<PersonHash>)>,
    pub(super) received: usize,
    pub(super) set_aside: BTreeMap<SetAside, usize>,
    /// By identifier property.
    pub(super) property_seen: Vec<bool>,
    /// The values of the member at hand, by what is looked for; kept to be used again for the next
    /// one.
    values: Vec<Option<&'a RawValue>>,
}

impl<'a, 'r> Members<'a, 'r> {
    pub(super) fn new(rules: &'r IdentifierRules) -> Self {
        let mut looked_for: Vec<&str> = rules.properties.iter().map(String::as_str).collect();
        // A name is found at its first place: here only where it is no identifier property.
        looked_for.push(DEFAULT_IDENTIFIER_PROPERTY);
        let person = looked_for
            .iter()
            .position(|property| *property == DEFAULT_IDENTIFIER_PROPERTY)
            .filter(|_| rules.maps_people());
        Members {
            rules,
            person,
            entries: Vec::new(),
            received: 0,
            set_aside: BTreeMap::new(),
            property_seen: vec![false; rules.properties.len()],
            values: vec![None; looked_for.len()],
            looked_for,
        }
    }

    /// Whoever can be told apart, each once.
    pub(super) fn into_roster(mut self) -> Roster {
        self.entries.sort_unstable();
        self.entries.dedup();
        let entries = self.entries.iter();
        Roster::from_sorted(entries.map(|(identifier, person)| Entry {
            identifier,
            person: *person,
        }))
    }

    fn take_in(&mut self, member: &'a RawValue) -> serde_json::Result<()> {
        self.received += 1;
        self.values.fill(None);
        if member.get().starts_with('{') {
            serde_json::Deserializer::from_str(member.get()).deserialize_map(Member(self))?;
        }
        let person = self.person.and_then(|at| self.values[at]).and_then(person);
        match self.identifier() {
            Ok(identifier) => self.entries.push((identifier, person)),
            Err(reason) => {
                *self.set_aside.entry(reason).or_default() += 1;
                // The page on which somebody leaves may lack what named them when they came.
                if person.is_some() {
                    self.entries.push((Cow::Borrowed(""), person));
                }
            }
        }
        Ok(())
    }

    /// The first usable property's identifier; else the first reason that says more than
    /// [`SetAside::Missing`].
    fn identifier(&self) -> Result<Cow<'a, str>, SetAside> {
        let mut first_reason = SetAside::Missing;
        let values = &self.values[..self.rules.properties.len()];
        for value in values.iter().flatten() {
            match usable(value, self.rules.anonymous) {
                Ok(identifier) => return Ok(identifier),
                Err(reason) if first_reason == SetAside::Missing => first_reason = reason,
                Err(_) => {}
            }
        }
        Err(first_reason)
    }
}

impl<'de> DeserializeSeed<'de> for &mut Members<'de, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for &mut Members<'de, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of members")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        // Raw first: a member may be no object at all, and that must not fail its page.
        while let Some(member) = members.next_element::<&RawValue>()? {
            self.take_in(member).map_err(A::Error::custom)?;
        }
        Ok(())
    }
}

/// One member that is an object. Of a key that comes twice the last value counts.
struct Member<'m, 'a, 'r>(&'m mut Members<'a, 'r>);

impl<'de> Visitor<'de> for Member<'_, 'de, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a member")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut properties: A) -> Result<(), A::Error> {
        let members = self.0;
        while let Some(known) = properties.next_key_seed(Property(&members.looked_for))? {
            match known {
                Some(index) => {
                    if let Some(seen) = members.property_seen.get_mut(index) {
                        *seen = true;
                    }
                    members.values[index] = Some(properties.next_value()?);
                }
                None => {
                    properties.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }
}

/// A property's name, as its place among those looked for. Read as bytes: a name may hold what a
/// `str` cannot.
struct Property<'m>(&'m [&'m str]);

impl<'de> DeserializeSeed<'de> for Property<'_> {
    type Value = Option<usize>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_bytes(self)
    }
}

impl Visitor<'_> for Property<'_> {
    type Value = Option<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a property's name")
    }

    fn visit_bytes<E: Error>(self, name: &[u8]) -> Result<Self::Value, E> {
        Ok(self
            .0
            .iter()
            .position(|property| property.as_bytes() == name))
    }
}
