//! The settings file: what does not fit on a command line, in TOML.
//!
//! Every key is taken out of its [table](table::Table) by name, so that what is left is known to be
//! a slip of the finger, and every table is read to its end, so that no fault hides another. A
//! further kind of table is one more field of [`SettingsFile`] and one more function like
//! [`read_cohorts`]; a further key of a source or a destination is a further setting, which
//! [`Layers`](super::layers::Layers) finds in its table by itself. Faults quote values, but those of
//! URLs and secrets.

use toml::Spanned;
use toml::de::DeTable;

use self::routes::read_routes;
use self::table::{Faults, Table, once};
use super::parse;
use super::parts::DEFAULT_NAME;
use super::reader::Faulted;
use crate::cohort::SourceName;
use crate::flagsmith::CANARY;
use crate::route::Route;
use crate::trait_key::{self, ExplicitKey};

mod routes;
pub(super) mod table;

/// Bytes of a settings file at most: room for thousands of cohorts, and `/dev/zero` is longer.
pub(super) const MAX_FILE_BYTES: u64 = 256 * 1024;

/// The file, table by table, while it is read.
pub(super) struct SettingsFile<'t> {
    /// What was found wrong with it so far.
    pub(super) faults: Faults<'t>,
    /// Whether it is known which tables there are: it could be read and is TOML.
    pub(super) is_understood: bool,
    /// `[[sources]]`; `None` where there are none, and the flags tell of the only one.
    pub(super) sources: Option<Vec<NamedTable<'t>>>,
    /// `[[destinations]]`; as with the sources.
    pub(super) destinations: Option<Vec<NamedTable<'t>>>,
    /// `[[cohorts]]`, in the file's order.
    pub(super) cohorts: Vec<CohortRule>,
    /// `[[routes]]`; `None` where there are none.
    pub(super) routes: Option<Vec<Route>>,
}

/// The table of a source or a destination.
pub(super) struct NamedTable<'t> {
    /// Its name, as far as it can be used.
    pub(super) name: Result<String, Faulted>,
    /// The rest of it.
    pub(super) table: Table<'t>,
}

/// One `[[cohorts]]`: which trait a cohort gets.
#[derive(Debug, PartialEq)]
pub(super) struct CohortRule {
    /// The source that sends the cohort.
    pub(super) source: SourceName,
    /// The cohort and its trait.
    pub(super) key: ExplicitKey,
}

impl<'t> SettingsFile<'t> {
    /// Reads the file's text, but for what the tables of sources and destinations hold beside their
    /// names.
    pub(super) fn parse(text: &'t str) -> Self {
        let mut faults = Faults::of(text);
        let (document, broken) = DeTable::parse_recoverable(text);
        if !broken.is_empty() {
            for error in broken {
                let at = error.span().map_or(0, |span| span.start);
                faults.note(at, format!("it is not TOML: {}", error.message()));
            }
            // What can be made of broken TOML lacks keys that are there.
            return SettingsFile {
                faults,
                ..SettingsFile::unreadable()
            };
        }
        let mut top = Table::new("the file", 0, document.into_inner());
        let sources = top.tables("sources", "[[sources]]", &mut faults);
        let destinations = top.tables("destinations", "[[destinations]]", &mut faults);
        let cohorts = top.tables("cohorts", "[[cohorts]]", &mut faults);
        let routes = top.tables("routes", "[[routes]]", &mut faults);
        top.end(&mut faults);

        let sources = named(sources, "this source", &mut faults);
        let destinations = named(destinations, "this destination", &mut faults);
        let cohorts = read_cohorts(cohorts.unwrap_or_default(), &names(&sources), &mut faults);
        let routes = routes.map(|tables| {
            read_routes(tables, &names(&sources), &names(&destinations), &mut faults)
        });
        SettingsFile {
            faults,
            is_understood: true,
            sources,
            destinations,
            cohorts,
            routes,
        }
    }

    /// Stands for a file of which nothing is known.
    pub(super) fn unreadable() -> Self {
        SettingsFile {
            faults: Faults::of(""),
            is_understood: false,
            sources: None,
            destinations: None,
            cohorts: Vec::new(),
            routes: None,
        }
    }
}

/// Reads the names of tables; each may be there once.
fn named<'t>(
    tables: Option<Vec<Table<'t>>>,
    what: &str,
    faults: &mut Faults<'_>,
) -> Option<Vec<NamedTable<'t>>> {
    let mut seen = Vec::new();
    let read = |mut table: Table<'t>| {
        let name = table.value("name", None, faults, parse::name);
        if let Ok(name) = &name {
            once(&mut seen, name, String::eq, what, faults);
        }
        NamedTable {
            name: name.map(Spanned::into_inner),
            table,
        }
    };
    Some(tables?.into_iter().map(read).collect())
}

/// The names that other tables may refer to.
fn names<'n>(tables: &'n Option<Vec<NamedTable<'_>>>) -> Vec<&'n str> {
    let Some(tables) = tables else {
        return vec![DEFAULT_NAME];
    };
    let mut names = Vec::new();
    for name in tables.iter().filter_map(|table| table.name.as_deref().ok()) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
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
        table.end(faults);

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
    let default = sources.contains(&DEFAULT_NAME).then_some(DEFAULT_NAME);
    let source = table.value("source", default, faults, one_of(sources, "source"));
    let project_id = table.optional("project", faults, id);
    let cohort_id = table.value("id", None, faults, id);
    let cohort = Cohort {
        source: source?.into_inner(),
        project_id: project_id?.map(Spanned::into_inner),
        cohort_id: cohort_id?.into_inner(),
    };
    Ok(Spanned::new(table.at..table.at, cohort))
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

/// The name of a source or destination that there is.
fn one_of<T: for<'n> From<&'n str>>(
    names: &[&str],
    what: &str,
) -> impl FnOnce(&str) -> Result<T, String> {
    move |name| {
        let advice = || format!("there is no such {what}: write {}", names.join(" or "));
        names
            .contains(&name)
            .then(|| name.into())
            .ok_or_else(advice)
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What rules may be about; behind them, so that the lines of a test's text are its own.
    const SOURCES: &str = "\n[[sources]]\nname = 'default'\n[[sources]]\nname = 'eu'\n";

    fn rules(text: &str) -> Vec<CohortRule> {
        let text = text.to_owned() + SOURCES;
        let file = SettingsFile::parse(&text);
        assert_eq!(file.faults.in_order(), [], "{text}");
        file.cohorts
    }

    fn faults(text: &str) -> Vec<String> {
        let text = text.to_owned() + SOURCES;
        let faults = SettingsFile::parse(&text).faults.in_order();
        assert!(!faults.is_empty(), "{text}");
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
[[sources]]
name = "-x"
[[destinations]]
name = "a"
[[destinations]]
name = "a"
[[destinations]]
"#;
        assert_eq!(
            faults(text),
            [
                r#"line 2: "colour" is not known in the file: there is sources, destinations, cohorts, routes"#,
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
                r#"line 19: "source" is not known in the file: there is sources, destinations, cohorts, routes"#,
                r#"line 21: name cannot be "-x": write letters a-z, digits, and - _ . behind the first one, 63 at most"#,
                "line 25: this destination is on line 23 already: give it once",
                "line 26: [[destinations]] needs name",
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
            let text = with("'a'", one) + &with("'b'", other) + SOURCES;
            SettingsFile::parse(&text).faults.in_order().is_empty()
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
            let file = SettingsFile::parse(&text);
            let faults = file.faults.in_order();
            prop_assert!(file.is_understood || !faults.is_empty());
            let lines = text.matches('\n').count() + 1;
            prop_assert!(faults.iter().all(|fault| (1..=lines).contains(&fault.line)));
        }
    }
}
