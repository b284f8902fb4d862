//! Sources and destinations: those of the settings file, or one of each by flags and variables.

use std::path::Path;
use std::sync::Arc;

use super::file::table::Faults;
use super::file::{CohortRule, MAX_FILE_BYTES, NamedTable, SettingsFile};
use super::files::Counts;
use super::layers::{Layers, Place};
use super::reader::{Faulted, Reader};
use super::serve::read_destination;
use super::source::read_source;
use super::{Destination, Source, setting};
use crate::cli::ServeArgs;
use crate::route::Routes;

/// The source that `POST /webhooks/mixpanel` belongs to, and the destination that goes with it.
pub(super) const DEFAULT_NAME: &str = "default";

/// What there may be several of.
pub(super) struct Parts {
    pub(super) sources: Result<Vec<Arc<Source>>, Faulted>,
    pub(super) destinations: Result<Vec<Arc<Destination>>, Faulted>,
    pub(super) routes: Routes,
}

/// Reads the settings file, and with it all sources and destinations.
pub(super) fn read_parts(
    reader: &mut Reader<'_>,
    args: &ServeArgs,
    warnings: &mut Vec<String>,
) -> Parts {
    let (path, text) = match read_settings_file(reader, args) {
        Ok(Some((path, text))) => (path, Ok(text)),
        Ok(None) => (String::new(), Ok(String::new())),
        Err(Faulted) => (String::new(), Err(Faulted)),
    };
    let mut file = match &text {
        Ok(text) => SettingsFile::parse(text),
        Err(Faulted) => SettingsFile::unreadable(),
    };
    let folder = Path::new(&path).parent().unwrap_or(Path::new(""));
    let cohorts = std::mem::take(&mut file.cohorts);
    let routes = file.routes.take().map(Routes::of).unwrap_or_default();
    let mut kind = Kind {
        faults: &mut file.faults,
        folder,
        otherwise: match file.is_understood {
            true => || Place::Flags,
            false => || Place::Unknown,
        },
    };
    let sources = kind.each(reader, &mut file.sources, |layers, name| {
        read_source(layers, name, args, warnings)
    });
    let destinations = kind.each(reader, &mut file.destinations, |layers, name| {
        read_destination(layers, name, args, warnings)
    });
    for fault in file.faults.in_order() {
        reader.note(setting::CONFIG.names(), format!("names {path}; {fault}"));
    }
    for destination in destinations.iter().flatten() {
        if !routes.mention(&destination.name) {
            let name = &destination.name;
            warnings.push(format!(
                "destination {name}: no route leads there, so nothing is written to it"
            ));
        }
    }
    Parts {
        routes,
        sources: sources.map(|sources| with_keys(sources, cohorts)),
        destinations: destinations.map(|all| all.into_iter().map(Arc::new).collect()),
    }
}

/// The path and the text of the settings file; `None` where none is named.
fn read_settings_file(
    reader: &mut Reader<'_>,
    args: &ServeArgs,
) -> Result<Option<(String, String)>, Faulted> {
    let path = reader.optional(&setting::CONFIG, args.config.as_deref(), |path| {
        Ok(path.to_owned())
    })?;
    let Some(path) = path else {
        return Ok(None);
    };
    let file = Path::new(&path);
    let (setting, counts) = (setting::CONFIG.flag, Counts::FromTheStart);
    match reader.files.text(file, MAX_FILE_BYTES, setting, counts) {
        Ok(text) => Ok(Some((path, text))),
        Err(trouble) => reader.fault(
            &setting::CONFIG,
            format!("names {path}, which cannot be read: {trouble}"),
        ),
    }
}

/// Where the settings of a kind of thing are.
struct Kind<'f, 't> {
    faults: &'f mut Faults<'t>,
    folder: &'f Path,
    /// Where there are no tables.
    otherwise: fn() -> Place<'static, 'static>,
}

impl<'t> Kind<'_, 't> {
    /// Reads each table of the kind, or what takes their place; all before it gives up on any.
    fn each<T>(
        &mut self,
        reader: &mut Reader<'_>,
        tables: &mut Option<Vec<NamedTable<'t>>>,
        mut read: impl FnMut(&mut Layers<'_, '_, '_>, Result<String, Faulted>) -> Result<T, Faulted>,
    ) -> Result<Vec<T>, Faulted> {
        let Some(tables) = tables.take() else {
            let mut layers = Layers::new(reader, (self.otherwise)());
            return Ok(vec![read(&mut layers, Ok(DEFAULT_NAME.to_owned()))?]);
        };
        let mut all = Vec::new();
        for NamedTable { name, mut table } in tables {
            let place = Place::Table {
                table: &mut table,
                faults: self.faults,
                folder: self.folder,
            };
            all.push(read(&mut Layers::new(reader, place), name));
            table.end(self.faults);
        }
        all.into_iter().collect()
    }
}

/// Gives the sources the keys of their cohorts.
fn with_keys(mut sources: Vec<Source>, cohorts: Vec<CohortRule>) -> Vec<Arc<Source>> {
    for rule in cohorts {
        if let Some(source) = sources.iter_mut().find(|source| source.name == rule.source) {
            source.explicit_keys.push(rule.key);
        }
    }
    sources.into_iter().map(Arc::new).collect()
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use secrecy::ExposeSecret;

    use super::*;
    use crate::config::{ConfigError, Settings};
    use crate::mixpanel::Anonymous;
    use crate::route::Routed;

    #[derive(Parser)]
    struct Serve {
        #[command(flatten)]
        args: ServeArgs,
    }

    /// What a file may leave out when it has tables of the other kind.
    const SOURCE: &str = "[[sources]]\nname = 'a'\nbasic_auth = 'u:hush'\n";
    const DESTINATION: &str = "[[destinations]]\nname = 'b'\nenvironment_key = 'ser.hush'\n";

    /// The settings of a file, these flags and these variables.
    fn read(
        text: &str,
        flags: &[&str],
        variables: &[(&str, &str)],
    ) -> Result<Settings, ConfigError> {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("key"), "ser.from-file\n").expect("room");
        std::fs::write(folder.path().join("bad"), "hush hush\n").expect("room");
        let path = folder.path().join("settings.toml");
        std::fs::write(&path, text).expect("room");
        let path = path.to_str().expect("UTF-8");
        let args = Serve::parse_from([&["x", "--config", path], flags].concat()).args;
        Settings::from_args(&args, &variables.iter().copied().collect())
    }

    /// What is wrong, without the words that name the file.
    fn faults(text: &str, flags: &[&str], variables: &[(&str, &str)]) -> Vec<String> {
        let error = read(text, flags, variables).expect_err(text);
        assert!(!error.to_string().contains("hush"), "{error}");
        let in_file = |fault: String| match fault.split_once("; line ") {
            Some((_, rest)) => format!("line {rest}"),
            None => fault,
        };
        let faults = error.faults().iter().map(ToString::to_string);
        faults.map(in_file).collect()
    }

    #[test]
    fn several_sources_and_destinations_are_read() {
        let text = "
            [[sources]]
            name = 'default'
            basic_auth = 'u:p'
            trait_key = 'x_{id}'
            [[sources]]
            name = 'eu'
            signing_secret = 'whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD'
            anonymous = 'keep'
            [[cohorts]]
            source = 'eu'
            id = '1'
            trait_key = 'one'
            [[destinations]]
            name = 'production'
            environment_key_file = 'key'
            max_in_flight = 7
            [[destinations]]
            name = 'staging'
            environment_key = 'ser.staging'
            api_url = 'http://flags.example/api/v1'
            allow_http = true
            linger = '5s'
        ";
        let variables = [
            ("COHORT_BRIDGE_LINGER", "3s"),
            ("COHORT_BRIDGE_MAX_IN_FLIGHT", "9"),
        ];
        let settings = read(text, &["--identifier-property=email"], &variables).expect("good");
        let [first, eu] = &settings.sources[..] else {
            panic!("two sources");
        };
        assert_eq!((&*first.name.0, &*eu.name.0), ("default", "eu"));
        assert_eq!(first.identifier.properties(), ["email"]);
        assert_eq!(eu.identifier.properties(), ["email"]);
        assert_eq!(first.identifier.anonymous(), Anonymous::Skip);
        assert_eq!(eu.identifier.anonymous(), Anonymous::Keep);
        assert_ne!(first.trait_key, eu.trait_key);
        assert_eq!(first.explicit_keys, []);
        assert_eq!(eu.explicit_keys[0].trait_key, "one");

        let [production, staging] = &settings.destinations[..] else {
            panic!("two destinations");
        };
        assert_eq!(&*production.name.0, "production");
        assert_eq!(production.environment_key.expose_secret(), "ser.from-file");
        assert_eq!((production.max_in_flight, staging.max_in_flight), (7, 9));
        assert_eq!(
            (production.linger.as_secs(), staging.linger.as_secs()),
            (3, 5)
        );
        assert_eq!(staging.api_url.as_str(), "http://flags.example/api/v1/");
        let [warning] = &settings.warnings[..] else {
            panic!("one warning: {:?}", settings.warnings);
        };
        assert!(
            warning.starts_with("destination staging: --allow-http"),
            "{warning}"
        );
        assert!(!format!("{settings:?}").contains("ser."));
    }

    #[test]
    fn every_fault_of_the_tables_comes_with_its_line_and_without_secrets() {
        let text = "\
[[sources]]
name = 'a b'
basic_auth = 'hush'
signing_secret = 'whsec_hush!'
[[sources]]
name = 'eu'
anonymous = 'never'
hold_removals_above = '30 percent'
pasword = 'hush'
[[sources]]
basic_auth = ['hush']
[[destinations]]
name = 'one'
environment_key = 'ser.hush'
environment_key_file = 'key'
api_url = 'https://u:hush@h.example'
linger = 5
[[destinations]]
name = 'two'
environment_key_file = 'bad'
max_in_flight = [1]
[[destinations]]
name = 'three'
environment_key_file = 'nowhere'
[[destinations]]
name = 'one'
allow_http = 'yes'
";
        let found = faults(text, &["--canary-interval=1s"], &[]);
        let expected = [
            "line 2: name cannot be \"a b\": write letters",
            "line 3: basic_auth cannot be used: pair 1 has no colon",
            "line 4: signing_secret cannot be used: ",
            "line 5: basic_auth (or basic_auth_file) of [[sources]] is missing and so is signing_secret: ",
            "line 7: anonymous cannot be \"never\": write skip or keep",
            "line 8: hold_removals_above cannot be \"30 percent\": ",
            "line 9: \"pasword\" is not known in [[sources]]: there is name, basic_auth, basic_auth_file, signing_secret, ",
            "line 10: [[sources]] needs name",
            "line 11: basic_auth cannot be of type array: write a string, in quotes",
            "line 15: environment_key_file is given beside environment_key: give one of them",
            "line 16: api_url cannot be used: ",
            "line 17: linger cannot be \"5\": write a whole number and a unit",
            "line 20: environment_key_file names ",
            "line 21: max_in_flight cannot be of type array: write it as for --max-in-flight",
            "line 24: environment_key_file names ",
            "line 25: environment_key (or environment_key_file) of [[destinations]] is required",
            "line 26: this destination is on line 13 already: give it once",
            "line 27: allow_http cannot be \"yes\": write true or false",
        ];
        // A flag that holds for all is told of once.
        assert!(found[0].starts_with("--canary-interval "), "{found:#?}");
        assert_eq!(found.len(), expected.len() + 1, "{found:#?}");
        for (found, expected) in found[1..].iter().zip(expected) {
            assert!(found.starts_with(expected), "{expected:?}: {found:?}");
        }
    }

    #[test]
    fn what_is_not_toml_shows_no_secret_and_hides_no_table() {
        for text in [
            "[[destinations]]\nname = 'a'\nenvironment_key = ser.hush\n",
            "[[destinations]]\nname = 'a'\nenvironment_key = \"ser.hush\n",
            "[[destinations]]\nenvironment_key = 'hush'\nenvironment_key = 'hush'\n",
            "[[sources]]\nbasic_auth = 'u:hush' 'hush'\n",
            "[[sources]]\nbasic_auth = hush:hush\n",
            "[[sources]]\nbasic_auth = 'u:hu\u{1}hush'\n",
            "[[sources]]\nbasic_auth = \"\\hush\"\n",
            "[[sources]\nbasic_auth = 'hush'\n",
            "[sources.hush]\n[[sources]]\nbasic_auth = 'hush'\n",
        ] {
            // Nor is anything missing that may stand in the file.
            let found = faults(text, &[], &[]);
            assert!(!found.is_empty());
            for fault in &found {
                assert!(fault.contains("it is not TOML"), "{text}: {fault}");
            }
        }
    }

    #[test]
    fn secrets_are_given_one_way() {
        let everything = SOURCE.to_owned() + DESTINATION;
        assert!(read(&everything, &[], &[]).is_ok());
        for (flags, variables) in [
            (&["--flagsmith-environment-key=ser.hush"][..], &[][..]),
            (
                &[],
                &[("COHORT_BRIDGE_FLAGSMITH_ENVIRONMENT_KEY", "ser.hush")],
            ),
            (
                &[],
                &[("COHORT_BRIDGE_FLAGSMITH_ENVIRONMENT_KEY_FILE", "key")],
            ),
            (&["--webhook-basic-auth=u:hush"], &[]),
            (
                &[],
                &[("COHORT_BRIDGE_WEBHOOK_SIGNING_SECRET", "whsec_hush")],
            ),
        ] {
            let found = faults(&everything, flags, variables);
            assert_eq!(found.len(), 1, "{found:?}");
            assert!(
                found[0].contains(") cannot be given beside [["),
                "{found:?}"
            );
        }
        // The kind that has no tables is told of by flags, as ever.
        let key = ("COHORT_BRIDGE_FLAGSMITH_ENVIRONMENT_KEY", "ser.hush");
        let settings = read(SOURCE, &[], &[key]).expect("enough");
        assert_eq!(&*settings.destinations[0].name.0, "default");
        let settings = read(DESTINATION, &["--webhook-basic-auth=u:p"], &[]).expect("enough");
        assert_eq!(&*settings.sources[0].name.0, "default");
        assert!(faults(SOURCE, &[], &[])[0].contains("--flagsmith-environment-key"));
        assert!(faults(DESTINATION, &[], &[])[0].contains("--webhook-basic-auth"));
    }

    #[test]
    fn a_source_is_open_where_that_is_wanted() {
        let text = SOURCE.to_owned() + DESTINATION + "[[sources]]\nname = 'open'\n";
        assert_eq!(faults(&text, &[], &[]).len(), 1);
        let settings = read(&text, &["--allow-unauthenticated"], &[]).expect("wanted");
        let open: Vec<bool> = settings
            .sources
            .iter()
            .map(|source| source.credentials.is_open())
            .collect();
        assert_eq!(open, [false, true]);
        let warning = &settings.warnings[0];
        assert!(warning.contains("/webhooks/mixpanel/open "), "{warning}");
    }

    const ROUTES: &str = "\
[[destinations]]
name = 'one'
environment_key = 'ser.hush'
[[destinations]]
name = 'two'
environment_key = 'ser.hush'
";

    #[test]
    fn routes_are_read_as_written() {
        let text = ROUTES.to_owned()
            + "
            [[routes]]
            source = 'a'
            project = '7'
            cohort_ids = ['1', '2']
            cohort_names = ['Trial *']
            destinations = ['one', 'two']
            [[routes]]
            destinations = []
            "
            + SOURCE;
        let settings = read(&text, &[], &[]).expect("good");
        let goes = |source, project_id, cohort_id, name| {
            let cohort = Routed {
                source,
                project_id,
                cohort_id,
                name,
            };
            settings.routes.lead(cohort, &"two".into())
        };
        assert!(goes("a", "7", "2", "x") && goes("a", "7", "3", "Trial x"));
        assert!(!goes("b", "7", "2", "x") && !goes("a", "8", "2", "x"));
        assert!(!goes("a", "7", "3", "x"));
        assert_eq!(settings.warnings, Vec::<String>::new());

        let text = ROUTES.to_owned() + SOURCE + "[[routes]]\ndestinations = ['one']\n";
        let warnings = read(&text, &[], &[]).expect("good").warnings;
        let warning = "destination two: no route leads there, so nothing is written to it";
        assert_eq!(warnings, [warning]);
        let without = read(&(ROUTES.to_owned() + SOURCE), &[], &[]).expect("good");
        assert_eq!(without.routes, Routes::default());
    }

    #[test]
    fn every_fault_of_the_routes_comes_with_its_line() {
        let text = ROUTES.to_owned()
            + "\
[[routes]]
source = 'b'
cohort_ids = ['', '1', 2, '1']
cohort_names = 'Trial *'
destinations = ['one', 'three', 'one']
[[routes]]
cohort_ids = []
destination = ['one']
[[routes]]
cohort_ids = []
destinations = ['one', 'one']
[[routes]]
cohort_names = ['']
destinations = []
" + SOURCE;
        assert_eq!(
            faults(&text, &[], &[]),
            [
                "line 8: source cannot be \"b\": there is no such source: write a",
                "line 9: cohort_ids cannot be \"\": write Mixpanel's id, without white space",
                "line 9: cohort_ids cannot hold a value of type integer: write strings, in quotes",
                "line 10: cohort_names cannot be given like this: write [\"…\", \"…\"]",
                "line 11: destinations cannot be \"three\": there is no such destination: write one or two",
                "line 12: [[routes]] needs destinations, [] for nowhere",
                "line 14: \"destination\" is not known in [[routes]]: there is source, project, cohort_ids, cohort_names, destinations",
                "line 15: no cohort comes to this route: write some in cohort_ids or cohort_names, or leave both out for any",
                "line 17: \"one\" in destinations is on line 17 already: give it once",
                "line 19: cohort_names cannot be \"\": write a name, in which * stands for any characters and ? for one",
            ]
        );
    }

    #[test]
    fn a_route_behind_one_that_takes_all_is_a_fault() {
        let text = ROUTES.to_owned()
            + "\
[[routes]]
cohort_names = ['*']
destinations = ['one']
[[routes]]
source = 'a'
destinations = ['two']
" + SOURCE;
        let expected = "line 10: no cohort comes to this route: the one on line 7 takes all of its own; put this one before it, or take it away";
        assert_eq!(faults(&text, &[], &[]), [expected]);
    }

    #[test]
    fn rules_are_about_sources_that_there_are() {
        let rule = "[[cohorts]]\nid = '1'\ntrait_key = 'k'\n";
        let text = |source: &str| SOURCE.to_owned() + DESTINATION + rule + source;
        let found = faults(&text(""), &[], &[]);
        assert_eq!(found, ["line 7: [[cohorts]] needs source"]);
        let found = faults(&text("source = 'b'"), &[], &[]);
        assert_eq!(
            found,
            ["line 10: source cannot be \"b\": there is no such source: write a"]
        );
        assert!(read(&text("source = 'a'"), &[], &[]).is_ok());
    }
}
