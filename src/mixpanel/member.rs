//! The members of a page: one identifier out of each, nothing else.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::identifier::usable;
use super::{IdentifierRules, SetAside};

/// What was read of an array of members.
pub(super) struct Members<'a, 'r> {
    rules: &'r IdentifierRules,
    identifiers: Vec<Cow<'a, str>>,
    pub(super) received: usize,
    set_aside: BTreeMap<SetAside, usize>,
    pub(super) property_seen: Vec<bool>,
    /// The values of the member at hand, by property; kept to be used again for the next one.
    values: Vec<Option<&'a RawValue>>,
}

impl<'a, 'r> Members<'a, 'r> {
    pub(super) fn new(rules: &'r IdentifierRules) -> Self {
        Members {
            rules,
            identifiers: Vec::new(),
            received: 0,
            set_aside: BTreeMap::new(),
            property_seen: vec![false; rules.properties.len()],
            values: vec![None; rules.properties.len()],
        }
    }

    /// Usable identifiers in ascending byte order, each once; members set aside, by reason.
    pub(super) fn finish(mut self) -> (Vec<String>, Vec<(SetAside, usize)>) {
        self.identifiers.sort_unstable();
        self.identifiers.dedup();
        (
            self.identifiers.into_iter().map(Cow::into_owned).collect(),
            self.set_aside.into_iter().collect(),
        )
    }

    fn take_in(&mut self, member: &'a RawValue) -> serde_json::Result<()> {
        self.received += 1;
        self.values.fill(None);
        if member.get().starts_with('{') {
            serde_json::Deserializer::from_str(member.get()).deserialize_map(Member(self))?;
        }
        match self.identifier() {
            Ok(identifier) => self.identifiers.push(identifier),
            Err(reason) => *self.set_aside.entry(reason).or_default() += 1,
        }
        Ok(())
    }

    /// The first usable property's identifier; else the first reason that says more than
    /// [`SetAside::Missing`].
    fn identifier(&self) -> Result<Cow<'a, str>, SetAside> {
        let mut first_reason = SetAside::Missing;
        for value in self.values.iter().flatten() {
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
        while let Some(known) = properties.next_key_seed(Property(&members.rules.properties))? {
            match known {
                Some(index) => {
                    members.property_seen[index] = true;
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
struct Property<'r>(&'r [String]);

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
