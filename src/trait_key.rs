//! How a cohort's trait key is made: once, at first sight, and never again.
//!
//! A rename in Mixpanel changes the name that is shown; the key is what segments in Flagsmith
//! refer to, so it stays.

use sha2::{Digest, Sha256};

/// Characters a trait key may have (Flagsmith refuses 201 with a 400 on `identities/`).
pub const MAX_TRAIT_KEY_CHARACTERS: usize = 200;

/// The identity and the trait key of the canary; no cohort gets it.
pub const CANARY: &str = "cohort_bridge_canary";

/// Characters of an id or a source's name that a suffix may take; longer ones are hashed, so that
/// suffixes always leave room for the name.
const MAX_SUFFIX_CHARACTERS: usize = 60;

/// Literal characters of a template; the rest of the key is for the name.
const MAX_LITERAL_CHARACTERS: usize = 100;

/// What segments would read as a path into the identity.
const PATH_BEGINS: &str = "$.";

/// A cohort's key as the settings file gives it, instead of one made of the cohort's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExplicitKey {
    /// The project's id in Mixpanel; `None` means that any project's cohort of this id is meant.
    pub project_id: Option<String>,
    /// The cohort's id in Mixpanel.
    pub cohort_id: String,
    /// The trait's key, exactly.
    pub trait_key: String,
}

/// Whether Flagsmith stores this key as it is written and its segments find it.
///
/// # Errors
/// Says in words what is wrong with it.
pub fn check_key(key: &str) -> Result<(), String> {
    if key.is_empty() {
        Err("it may not be empty".into())
    } else if key.chars().count() > MAX_TRAIT_KEY_CHARACTERS {
        Err(format!(
            "it may have {MAX_TRAIT_KEY_CHARACTERS} characters at most"
        ))
    } else if key.contains(char::is_control) {
        Err("it may not have control characters".into())
    } else if key.trim() != key {
        Err("it may not have white space at an end, which Flagsmith takes away".into())
    } else {
        check_beginning(key)
    }
}

fn check_beginning(key: &str) -> Result<(), String> {
    if key.starts_with(PATH_BEGINS) {
        return Err(format!(
            "it may not begin with `{PATH_BEGINS}`, which Flagsmith's segments read as a path"
        ));
    }
    Ok(())
}

/// A pattern with `{name}`, `{id}` and `{project}`, such as `mixpanel_cohort_{name}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraitKeyTemplate(Vec<Piece>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Literal(String),
    Name,
    Id,
    Project,
}

impl Default for TraitKeyTemplate {
    fn default() -> Self {
        TraitKeyTemplate(vec![Piece::Literal("mixpanel_cohort_".into()), Piece::Name])
    }
}

/// What is known of a cohort when its key is made.
#[derive(Clone, Copy, Debug)]
pub struct Naming<'a> {
    /// The cohort's name in Mixpanel; may be empty.
    pub name: &'a str,
    /// The cohort's id.
    pub id: &'a str,
    /// The project's id; may be empty.
    pub project: &'a str,
    /// The source's name.
    pub source: &'a str,
}

impl TraitKeyTemplate {
    /// Reads a template.
    ///
    /// # Errors
    /// Says in words what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some(open) = rest.find('{') {
            if open > 0 {
                pieces.push(Piece::Literal(rest[..open].into()));
            }
            let close = rest[open..]
                .find('}')
                .ok_or_else(|| format!("the `{{` in {text:?} is never closed"))?;
            pieces.push(match &rest[open + 1..open + close] {
                "name" => Piece::Name,
                "id" => Piece::Id,
                "project" => Piece::Project,
                other => {
                    return Err(format!(
                        "{{{other}}} is not known: use {{name}}, {{id}} or {{project}}"
                    ));
                }
            });
            rest = &rest[open + close + 1..];
        }
        if !rest.is_empty() {
            pieces.push(Piece::Literal(rest.into()));
        }
        if !pieces.contains(&Piece::Name) && !pieces.contains(&Piece::Id) {
            return Err("it needs {name} or {id}, or every cohort would share one key".into());
        }
        let literal: String = pieces
            .iter()
            .filter_map(|piece| match piece {
                Piece::Literal(literal) => Some(literal.as_str()),
                _ => None,
            })
            .collect();
        if literal.chars().count() > MAX_LITERAL_CHARACTERS {
            return Err(format!(
                "its fixed part may have {MAX_LITERAL_CHARACTERS} characters at most"
            ));
        }
        if literal.contains(|c: char| c.is_control() || c.is_whitespace() || c == '}') {
            return Err(
                "its fixed part may not have white space, control characters or `}`".into(),
            );
        }
        check_beginning(text)?;
        Ok(TraitKeyTemplate(pieces))
    }

    /// The key for a cohort: the template, then `_{id}`, then the source's name, then a number,
    /// until it is not `taken`.
    pub fn key_for(&self, cohort: Naming<'_>, mut taken: impl FnMut(&str) -> bool) -> String {
        let base = self.render(cohort);
        let with_id = format!("_{}", suffix(cohort.id));
        let with_source = format!("{with_id}_{}", suffix(cohort.source));
        let mut number = 1_u64;
        let mut candidate = shortened(&base, "");
        let mut endings = [with_id, with_source.clone()].into_iter();
        while taken(&candidate) {
            let ending = endings.next().unwrap_or_else(|| {
                number += 1;
                format!("{with_source}_{number}")
            });
            candidate = shortened(&base, &ending);
        }
        candidate
    }

    fn render(&self, cohort: Naming<'_>) -> String {
        self.0
            .iter()
            .map(|piece| match piece {
                Piece::Literal(literal) => literal.clone(),
                Piece::Name => match slug(&cohort.name.to_lowercase()) {
                    name if name.is_empty() => suffix(cohort.id),
                    name => name,
                },
                Piece::Id => suffix(cohort.id),
                Piece::Project => suffix(cohort.project),
            })
            .collect()
    }
}

/// `base` cut so that it fits with `ending` behind it.
fn shortened(base: &str, ending: &str) -> String {
    let room = MAX_TRAIT_KEY_CHARACTERS.saturating_sub(ending.chars().count());
    let mut key: String = base.chars().take(room).collect();
    key.push_str(ending);
    key
}

/// Runs of anything but ASCII letters and digits become `_`; none at the ends.
fn slug(text: &str) -> String {
    text.split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|part| !part.is_empty())
        .collect::<Vec<_>>()
        .join("_")
}

fn suffix(text: &str) -> String {
    let plain = slug(text);
    if plain.is_empty() || plain.len() > MAX_SUFFIX_CHARACTERS {
        let digest = Sha256::digest(text.as_bytes());
        return digest[..8]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
    }
    plain
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn naming<'a>(name: &'a str, id: &'a str) -> Naming<'a> {
        Naming {
            name,
            id,
            project: "2914407",
            source: "default",
        }
    }

    fn key(name: &str, id: &str, taken: &[&str]) -> String {
        TraitKeyTemplate::default().key_for(naming(name, id), |key| taken.contains(&key))
    }

    #[test]
    fn names_become_slugs() {
        for (name, expected) in [
            ("Trial power users", "mixpanel_cohort_trial_power_users"),
            (
                "Activación – semana 1",
                "mixpanel_cohort_activaci_n_semana_1",
            ),
            ("  (Q4, EMEA) 🚀 ", "mixpanel_cohort_q4_emea"),
            ("__x__", "mixpanel_cohort_x"),
            ("🚀", "mixpanel_cohort_77"),
            ("", "mixpanel_cohort_77"),
        ] {
            assert_eq!(key(name, "77", &[]), expected, "{name:?}");
        }
    }

    #[test]
    fn a_collision_adds_the_id_then_the_source_then_a_number() {
        let mut taken = vec!["mixpanel_cohort_a"];
        assert_eq!(key("A", "7", &taken), "mixpanel_cohort_a_7");
        taken.push("mixpanel_cohort_a_7");
        assert_eq!(key("A", "7", &taken), "mixpanel_cohort_a_7_default");
        taken.push("mixpanel_cohort_a_7_default");
        assert_eq!(key("A", "7", &taken), "mixpanel_cohort_a_7_default_2");
    }

    #[test]
    fn templates_are_checked() {
        for bad in [
            "",
            "fixed",
            "{name",
            "{nom}",
            "a b{id}",
            "$.{id}",
            &"x".repeat(101),
        ] {
            assert!(TraitKeyTemplate::parse(bad).is_err(), "{bad:?}");
        }
        let template = TraitKeyTemplate::parse("mp_{project}_{id}").unwrap();
        assert_eq!(
            template.key_for(naming("x", "5"), |_| false),
            "mp_2914407_5"
        );
    }

    #[test]
    fn keys_that_somebody_chose_are_checked() {
        for good in ["a", "Trial users (Q4)", "ü$.x", "$x", &"ü".repeat(200)] {
            assert_eq!(check_key(good), Ok(()), "{good:?}");
        }
        for (bad, word) in [
            ("", "empty"),
            (&*"ü".repeat(201), "200 characters"),
            (" a", "white space"),
            ("a\u{2003}", "white space"),
            (" ", "white space"),
            ("a\n", "control"),
            ("a\0b", "control"),
            ("a\u{7f}", "control"),
            ("$.plan", "path"),
        ] {
            let fault = check_key(bad).expect_err(bad);
            assert!(fault.contains(word), "{bad:?}: {fault}");
        }
    }

    proptest! {
        #[test]
        fn keys_are_unique_short_and_acceptable(cohorts in prop::collection::vec((".{0,300}", "[0-9a-z ]{1,200}"), 1..30)) {
            let mut taken = HashSet::new();
            for (name, id) in &cohorts {
                let key = TraitKeyTemplate::default().key_for(naming(name, id), |key| taken.contains(key));
                prop_assert!(key.chars().count() <= MAX_TRAIT_KEY_CHARACTERS);
                prop_assert!(key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'));
                prop_assert_eq!(check_key(&key), Ok(()));
                prop_assert!(taken.insert(key));
            }
        }
    }
}
