//! The settings file: what does not fit on a command line, in TOML.
//!
//! Every key is taken out of its table by name, so that what is left is known to be a slip of the
//! finger, and every table is read to its end, so that no fault hides another. A further table is
//! one more field of [`SettingsFile`] and one more function like [`read_cohorts`]. Faults quote
//! values: nothing in the file is secret.

use std::fmt;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::reader::{Faulted, quoted};
use super::serve::DEFAULT_NAME;
use crate::cohort::SourceName;
use crate::flagsmith::CANARY;
use crate::trait_key::{self, ExplicitKey};

/// Bytes of a settings file at most: room for thousands of cohorts, and `/dev/zero` is longer.
pub(super) const MAX_FILE_BYTES: u64 = 256 * 1024;

/// What the file says, table by table.
#[derive(Debug, Default, PartialEq)]
pub(super) struct SettingsFile {
    /// `[[cohorts]]`, in the file's order.
    pub(super) cohorts: Vec<CohortRule>,
}

/// One `[[cohorts]]`: which trait a cohort gets.
#[derive(Debug, PartialEq)]
pub(super) struct CohortRule {
    /// The source that sends the cohort.
    pub(super) source: SourceName,
    /// The cohort and its trait.
    pub(super) key: ExplicitKey,
}

/// A fault and where it is.
#[derive(Debug, PartialEq)]
pub(super) struct FileFault {
    /// Counted from 1.
    line: usize,
    /// What is wrong and what would be right.
    message: String,
}

impl fmt::Display for FileFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.message)
    }
}

/// Reads the file's text; its rules are about these sources.
///
/// # Errors
/// All faults, from the first line to the last.
pub(super) fn parse(text: &str, sources: &[&str]) -> Result<SettingsFile, Vec<FileFault>> {
    let mut faults = Faults {
        text,
        found: Vec::new(),
    };
    let (document, broken) = DeTable::parse_recoverable(text);
    if !broken.is_empty() {
        for error in broken {
            let at = error.span().map_or(0, |span| span.start);
            faults.note(at, format!("it is not TOML: {}", error.message()));
        }
        // What can be made of broken TOML lacks keys that are there.
        return Err(faults.in_order());
    }
    let mut top = Table {
        name: "the file",
        at: 0,
        left: document.into_inner(),
    };
    let cohorts = top.tables("cohorts", "[[cohorts]]", &mut faults);
    top.end(&["cohorts"], &mut faults);
    let file = SettingsFile {
        cohorts: read_cohorts(cohorts, sources, &mut faults),
    };
    if faults.found.is_empty() {
        Ok(file)
    } else {
        Err(faults.in_order())
    }
}

fn read_cohorts(
    tables: Vec<Table<'_>>,
    sources: &[&str],
    faults: &mut Faults<'_>,
) -> Vec<CohortRule> {
    let mut rules = Vec::new();
    let mut cohorts: Vec<Spanned<Cohort>> = Vec::new();
    let mut keys: Vec<Spanned<String>> = Vec::new();
    for mut table in tables {
        let cohort = read_cohort(&mut table, sources, faults);
        let trait_key = table.value("trait_key", None, faults, key);
        table.end(&["source", "project", "id", "trait_key"], faults);

        // Each is judged, whatever is wrong with the other.
        if let Ok(cohort) = &cohort {
            once(&mut cohorts, cohort, Cohort::may_be, "this cohort", faults);
        }
        if let Ok(key) = &trait_key {
            once(&mut keys, key, String::eq, "this trait_key", faults);
        }
        if let (Ok(cohort), Ok(trait_key)) = (cohort, trait_key) {
            let cohort = cohort.into_inner();
            rules.push(CohortRule {
                source: cohort.source,
                key: ExplicitKey {
                    project_id: cohort.project_id,
                    cohort_id: cohort.cohort_id,
                    trait_key: trait_key.into_inner(),
                },
            });
        }
    }
    rules
}

/// The cohort that a rule is for, where the rule begins.
fn read_cohort(
    table: &mut Table<'_>,
    sources: &[&str],
    faults: &mut Faults<'_>,
) -> Result<Spanned<Cohort>, Faulted> {
    let source = table.value("source", Some(DEFAULT_NAME), faults, one_of(sources));
    let project_id = table.optional("project", faults, id);
    let cohort_id = table.value("id", None, faults, id);
    let cohort = Cohort {
        source: source?.into_inner(),
        project_id: project_id?.map(Spanned::into_inner),
        cohort_id: cohort_id?.into_inner(),
    };
    Ok(Spanned::new(table.at..table.at, cohort))
}

/// Notes a fault where the same is there already, and remembers it where not.
fn once<T: Clone>(
    seen: &mut Vec<Spanned<T>>,
    value: &Spanned<T>,
    same: fn(&T, &T) -> bool,
    what: &str,
    faults: &mut Faults<'_>,
) {
    let earlier = seen
        .iter()
        .find(|other| same(other.get_ref(), value.get_ref()));
    match earlier {
        Some(earlier) => {
            let line = faults.line(earlier.span().start);
            let message = format!("{what} is on line {line} already: give it once");
            faults.note(value.span().start, message);
        }
        None => seen.push(value.clone()),
    }
}

/// What a rule is for.
#[derive(Clone)]
struct Cohort {
    source: SourceName,
    project_id: Option<String>,
    cohort_id: String,
}

impl Cohort {
    /// Whether both rules would hold for one cohort; one without a project is for any.
    fn may_be(&self, other: &Cohort) -> bool {
        let both = self.project_id.as_ref().zip(other.project_id.as_ref());
        self.source == other.source
            && self.cohort_id == other.cohort_id
            && both.is_none_or(|(one, another)| one == another)
    }
}

/// A source's name.
fn one_of(sources: &[&str]) -> impl FnOnce(&str) -> Result<SourceName, String> {
    |name| {
        sources
            .contains(&name)
            .then(|| name.into())
            .ok_or_else(|| format!("there is no such source: write {}", sources.join(" or ")))
    }
}

/// An id of Mixpanel's.
fn id(text: &str) -> Result<String, String> {
    if text.is_empty() || text.contains(|c: char| c.is_control() || c.is_whitespace()) {
        Err("write Mixpanel's id, without white space".to_owned())
    } else {
        Ok(text.to_owned())
    }
}

/// A trait key of its own.
fn key(text: &str) -> Result<String, String> {
    if text == CANARY {
        return Err("the canary has this key: choose another".to_owned());
    }
    trait_key::check_key(text).map(|()| text.to_owned())
}

/// What is wrong with the file, and where.
struct Faults<'t> {
    text: &'t str,
    found: Vec<(usize, String)>,
}

impl Faults<'_> {
    fn note(&mut self, at: usize, message: String) {
        self.found.push((at, message));
    }

    fn line(&self, at: usize) -> usize {
        let before = self.text.as_bytes().iter().take(at);
        1 + before.filter(|byte| **byte == b'\n').count()
    }

    fn in_order(mut self) -> Vec<FileFault> {
        self.found.sort();
        self.found
            .iter()
            .map(|(at, message)| FileFault {
                line: self.line(*at),
                message: message.clone(),
            })
            .collect()
    }
}

/// A table while it is read.
struct Table<'t> {
    /// What faults call it.
    name: &'static str,
    /// Where it begins, in bytes.
    at: usize,
    /// What nobody has asked for yet.
    left: DeTable<'t>,
}

impl<'t> Table<'t> {
    /// A text, `default` where it is not given; a fault where there is none.
    fn value<T>(
        &mut self,
        key: &str,
        default: Option<&str>,
        faults: &mut Faults<'_>,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<Spanned<T>, Faulted> {
        let given = self.text(key, faults)?;
        let at = self.at;
        match given.or(default.map(|text| Spanned::new(at..at, text.to_owned()))) {
            Some(text) => parsed(key, &text, faults, parse),
            None => {
                faults.note(at, format!("{} needs {key}", self.name));
                Err(Faulted)
            }
        }
    }

    /// A text, `None` where it is not given.
    fn optional<T>(
        &mut self,
        key: &str,
        faults: &mut Faults<'_>,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<Option<Spanned<T>>, Faulted> {
        self.text(key, faults)?
            .map(|text| parsed(key, &text, faults, parse))
            .transpose()
    }

    /// The tables under `[[key]]`; none where there is no such key.
    fn tables(&mut self, key: &str, name: &'static str, faults: &mut Faults<'_>) -> Vec<Table<'t>> {
        let Some(value) = self.left.remove(key) else {
            return Vec::new();
        };
        let at = value.span().start;
        let DeValue::Array(values) = value.into_inner() else {
            faults.note(at, format!("{key} cannot be given like this: write {name}"));
            return Vec::new();
        };
        let mut tables = Vec::new();
        for value in values {
            let at = value.span().start;
            match value.into_inner() {
                DeValue::Table(left) => tables.push(Table { name, at, left }),
                _ => faults.note(at, format!("{key} cannot be given like this: write {name}")),
            }
        }
        tables
    }

    /// Whatever was not asked for is unknown.
    fn end(self, known: &[&str], faults: &mut Faults<'_>) {
        for (key, _) in &self.left {
            let (name, known) = (self.name, known.join(", "));
            let message = format!(
                "{} is not known in {name}: there is {known}",
                quoted(key.get_ref())
            );
            faults.note(key.span().start, message);
        }
    }

    fn text(
        &mut self,
        key: &str,
        faults: &mut Faults<'_>,
    ) -> Result<Option<Spanned<String>>, Faulted> {
        let Some(value) = self.left.remove(key) else {
            return Ok(None);
        };
        let span = value.span();
        match value.into_inner() {
            DeValue::String(text) => Ok(Some(Spanned::new(span, text.into_owned()))),
            other => {
                let kind = other.type_str();
                let message = format!("{key} cannot be of type {kind}: write a string, in quotes");
                faults.note(span.start, message);
                Err(Faulted)
            }
        }
    }
}

fn parsed<T>(
    key: &str,
    text: &Spanned<String>,
    faults: &mut Faults<'_>,
    parse: impl FnOnce(&str) -> Result<T, String>,
) -> Result<Spanned<T>, Faulted> {
    match parse(text.get_ref()) {
        Ok(value) => Ok(Spanned::new(text.span(), value)),
        Err(advice) => {
            let message = format!("{key} cannot be {}: {advice}", quoted(text.get_ref()));
            faults.note(text.span().start, message);
            Err(Faulted)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rules(text: &str) -> Vec<CohortRule> {
        parse(text, &["default", "eu"]).expect(text).cohorts
    }

    fn faults(text: &str) -> Vec<String> {
        let faults = parse(text, &["default", "eu"]).expect_err(text);
        faults.iter().map(ToString::to_string).collect()
    }

    /// A rule for this cohort, its keys and values as they are written.
    fn rule(pairs: &[(&str, &str)]) -> String {
        let lines = pairs
            .iter()
            .map(|(key, value)| format!("{key} = {value}\n"));
        ["[[cohorts]]\n".to_owned()]
            .into_iter()
            .chain(lines)
            .collect()
    }

    #[test]
    fn rules_are_read_as_written() {
        let text = "\u{feff}# A comment.\r\n\
            [[cohorts]]\r\nid = \"7\"\r\ntrait_key = 'Trial users ü'\r\n\
            [[cohorts]]\nsource = \"eu\"\nproject = \"2914407\"\nid = \"7\"\ntrait_key = \"b\"\n";
        let expected = |source: &str, project_id: Option<&str>, trait_key: &str| CohortRule {
            source: source.into(),
            key: ExplicitKey {
                project_id: project_id.map(str::to_owned),
                cohort_id: "7".to_owned(),
                trait_key: trait_key.to_owned(),
            },
        };
        assert_eq!(
            rules(text),
            [
                expected("default", None, "Trial users ü"),
                expected("eu", Some("2914407"), "b"),
            ]
        );
        assert_eq!(
            rules(r#"cohorts = [{ id = "7", trait_key = "c" }]"#),
            [expected("default", None, "c")]
        );
        for nothing in ["", "# nothing\n", "cohorts = []"] {
            assert_eq!(rules(nothing), [], "{nothing:?}");
        }
    }

    #[test]
    fn every_fault_comes_with_its_line() {
        let text = r#"
colour = "red"
[[cohorts]]
id = 5518203
trait_key = true
[[cohorts]]
source = "us"
id = ""
trait_key = "$.plan"
name = "Trial"
[[cohorts]]
[[cohorts]]
id = "1"
trait_key = "a"
[[cohorts]]
project = "2"
trait_key = "a"
id = "1"
[[source]]
"#;
        assert_eq!(
            faults(text),
            [
                r#"line 2: "colour" is not known in the file: there is cohorts"#,
                "line 4: id cannot be of type integer: write a string, in quotes",
                "line 5: trait_key cannot be of type boolean: write a string, in quotes",
                r#"line 7: source cannot be "us": there is no such source: write default or eu"#,
                r#"line 8: id cannot be "": write Mixpanel's id, without white space"#,
                r#"line 9: trait_key cannot be "$.plan": it may not begin with `$.`, which Flagsmith's segments read as a path"#,
                r#"line 10: "name" is not known in [[cohorts]]: there is source, project, id, trait_key"#,
                "line 11: [[cohorts]] needs id",
                "line 11: [[cohorts]] needs trait_key",
                "line 15: this cohort is on line 12 already: give it once",
                "line 17: this trait_key is on line 14 already: give it once",
                r#"line 19: "source" is not known in the file: there is cohorts"#,
            ]
        );
    }

    #[test]
    fn the_canary_keeps_its_key() {
        let found = faults(&rule(&[
            ("id", "'1'"),
            ("trait_key", "'cohort_bridge_canary'"),
        ]));
        assert_eq!(found.len(), 1);
        assert!(
            found[0].starts_with("line 3: ") && found[0].contains("canary"),
            "{found:?}"
        );
    }

    #[test]
    fn what_is_not_a_list_of_tables_is_told_so() {
        for text in ["cohorts = 1", "[cohorts]\nid = '1'", "cohorts = ['1']"] {
            let found = faults(text);
            assert_eq!(found.len(), 1, "{found:?}");
            assert!(
                found[0].contains("line 1: cohorts cannot be given like this"),
                "{found:?}"
            );
        }
    }

    #[test]
    fn what_is_not_toml_is_told_with_every_line() {
        let found =
            faults("[[cohorts]]\nid = \"1\n\nproject = \n[[cohorts]]\nid = '1'\nid = '2'\n");
        for (fault, line) in found.iter().zip([2, 4, 7]) {
            assert!(
                fault.starts_with(&format!("line {line}: it is not TOML: ")),
                "{found:?}"
            );
        }
        assert_eq!(found.len(), 3, "{found:?}");
    }

    #[test]
    fn a_cohort_has_one_rule_however_it_is_written() {
        let pair = |one: &[(&str, &str)], other: &[(&str, &str)]| {
            let with = |key: &'static str, pairs: &[(&str, &str)]| {
                rule(&[pairs, &[("id", "'1'"), ("trait_key", key)]].concat())
            };
            parse(
                &(with("'a'", one) + &with("'b'", other)),
                &["default", "eu"],
            )
            .is_ok()
        };
        for (one, other, apart) in [
            (&[][..], &[][..], false),
            (&[], &[("source", "'default'")], false),
            (&[], &[("source", "'eu'")], true),
            (&[("project", "'5'")], &[("project", "'6'")], true),
            (&[("project", "'5'")], &[("project", "'5'")], false),
            (&[("project", "'5'")], &[], false),
            (&[("project", "'5'")], &[("source", "'eu'")], true),
        ] {
            assert_eq!(pair(one, other), apart, "{one:?} {other:?}");
            assert_eq!(pair(other, one), apart, "{other:?} {one:?}");
        }
        let (one, other) = (
            [("id", "'1'"), ("trait_key", "'a'")],
            [("id", "'2'"), ("source", "'eu'"), ("trait_key", "'a'")],
        );
        assert_eq!(faults(&(rule(&one) + &rule(&other))).len(), 1);
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "\\PC*|(\\[\\[cohorts\\]\\]\n|id = |\"|a|'1'\n|trait_key=|\\{|[\\[\\]],|\n|ü){0,20}") {
            if let Err(faults) = parse(&text, &["default"]) {
                prop_assert!(!faults.is_empty());
                let lines = text.matches('\n').count() + 1;
                prop_assert!(faults.iter().all(|fault| (1..=lines).contains(&fault.line)));
            }
        }
    }
}
