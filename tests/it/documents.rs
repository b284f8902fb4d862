//! What is written for people agrees with the program: README, `deploy/`, licences.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command as Process;

use cohort_bridge::cli::{self, Command};
use cohort_bridge::config::setting::{self, Fallback, Setting};
use cohort_bridge::config::{Environment, Settings};
use cohort_bridge::http::admin::openapi;
use cohort_bridge::route::Routed;
use serde_json::Value;
use utoipa::OpenApi;

use crate::support::front::Authority;

fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn text_of(path: &str) -> String {
    fs::read_to_string(top().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Every document that names settings, with its path.
fn documents() -> Vec<(PathBuf, String)> {
    let mut paths = vec![
        top().join("README.md"),
        top().join("CHANGELOG.md"),
        top().join("fixtures/README.md"),
    ];
    let deploy = crate::deploy::files_below("deploy");
    paths.extend(deploy.into_iter().map(|path| top().join(path)));
    paths
        .into_iter()
        .map(|path| {
            let text = fs::read_to_string(&path).unwrap();
            (path, text)
        })
        .collect()
}

/// A table's cells, row by row, of the rows that begin with `start`.
fn rows<'a>(text: &'a str, start: &'a str) -> impl Iterator<Item = Vec<&'a str>> {
    text.lines()
        .filter(move |line| line.starts_with(start))
        .map(|line| {
            line.trim_matches('|')
                .split(" | ")
                .map(str::trim)
                .collect::<Vec<_>>()
        })
}

#[test]
fn the_settings_table_is_the_programs() {
    let readme = text_of("README.md");
    let written: Vec<[String; 3]> = rows(&readme, "| `--")
        .map(|cells| {
            assert_eq!(cells.len(), 4, "{cells:?}");
            assert!(cells[3].ends_with('.'), "{cells:?}");
            [cells[0], cells[1], cells[2]].map(str::to_owned)
        })
        .filter(|cells| cells[0] != "`--allow-unauthenticated`")
        .collect();
    let real: Vec<[String; 3]> = setting::SERVE.iter().map(row_of).collect();
    assert_eq!(written, real);
    assert!(readme.contains("| `--allow-unauthenticated` | – (flag only) | off |"));
}

#[test]
fn the_admin_api_table_is_the_programs() {
    let readme = text_of("README.md");
    let written: BTreeSet<String> = rows(&readme, "| `GET /")
        .chain(rows(&readme, "| `POST /"))
        .chain(rows(&readme, "| `DELETE /"))
        .map(|cells| cells[0].to_owned())
        .collect();

    let document = serde_json::to_value(openapi::Document::openapi()).unwrap();
    let paths = document["paths"].as_object().unwrap().iter();
    let real: BTreeSet<String> = paths
        .flat_map(|(path, calls)| {
            calls
                .as_object()
                .unwrap()
                .iter()
                .map(move |(method, call)| {
                    let mark = if call["security"].is_array() {
                        " *"
                    } else {
                        ""
                    };
                    format!("`{} {path}`{mark}", method.to_uppercase())
                })
        })
        .collect();
    assert_eq!(written, real);
}

fn row_of(setting: &Setting) -> [String; 3] {
    let variable = match setting.file_variable() {
        Some(_) => format!("`{}`, `…_FILE`", setting.variable),
        None => format!("`{}`", setting.variable),
    };
    let default = match setting.fallback {
        Fallback::Value(value) => format!("`{value}`"),
        Fallback::Described(words) => words.to_owned(),
        Fallback::Required => setting::REQUIRED.to_owned(),
    };
    [format!("`{}`", setting.flag), variable, default]
}

#[test]
fn every_variable_that_is_named_exists() {
    let known: BTreeSet<String> = setting::variables().collect();
    let mut named = 0;
    for (path, text) in documents() {
        for (at, _) in text.match_indices("COHORT_BRIDGE_") {
            let name: String = text[at..]
                .chars()
                .take_while(|c| c.is_ascii_uppercase() || *c == '_')
                .collect();
            // `COHORT_BRIDGE_…` means any of them, as does `COHORT_BRIDGE_%s` in the chart.
            if !text[at + name.len()..].starts_with(['…', '%']) {
                assert!(known.contains(&name), "{name} in {}", path.display());
                named += 1;
            }
        }
    }
    assert!(named > setting::SERVE.len());
}

/// The lines of the shell blocks of a document, continued lines joined.
pub fn shell_lines(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let mut in_block = false;
    let mut continued = false;
    for line in text.lines() {
        if line.starts_with("```") {
            in_block = line == "```sh";
        } else if in_block {
            let (part, goes_on) = match line.strip_suffix('\\') {
                Some(part) => (part, true),
                None => (line, false),
            };
            match lines.last_mut().filter(|_| continued) {
                Some(last) => last.push_str(part.trim_start()),
                None => lines.push(part.to_owned()),
            }
            continued = goes_on;
        }
    }
    lines
}

/// The words of a shell line; single quotes only, which is all that the documents use.
fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quoted = false;
    for character in line.chars() {
        match character {
            '\'' => quoted = !quoted,
            ' ' if !quoted => words.push(String::new()),
            other => words.last_mut().unwrap().push(other),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

#[test]
fn every_command_shown_is_one_that_the_program_takes() {
    let mut seen = BTreeSet::new();
    for (path, text) in documents() {
        for line in shell_lines(&text) {
            let Some(arguments) = line
                .strip_prefix("cargo run --release -- ")
                .or_else(|| line.strip_prefix("cargo run -- "))
                .or_else(|| line.strip_prefix("cohort-bridge "))
                .or_else(|| line.split_once(" -- cohort-bridge ").map(|(_, rest)| rest))
                .or_else(|| {
                    line.split_once("exec cohort-bridge cohort-bridge ")
                        .map(|(_, rest)| rest)
                })
            else {
                continue;
            };
            let arguments = words(arguments);
            seen.insert(arguments[0].clone());
            let line_of = ["cohort-bridge".to_owned()].into_iter().chain(arguments);
            if let Err(error) = cli::try_parse_from(line_of) {
                panic!("{}: {line}\n{error}", path.display());
            }
        }
    }
    for command in [
        "demo",
        "serve",
        "check",
        "replay",
        "cohorts",
        "resync",
        "retire",
        "held-removals",
        "plan",
        "pause",
        "resume",
        "forget",
        "health",
        "backup",
        "migrate-store",
    ] {
        assert!(seen.contains(command), "{command} is shown nowhere");
    }
}

#[test]
fn the_first_command_is_the_demo_and_the_tests_are_one_line() {
    let readme = text_of("README.md");
    assert_eq!(shell_lines(&readme)[0], "cargo run -- demo");
    let (_, tests) = readme.split_once("\n## Tests\n").unwrap();
    let (tests, _) = tests.split_once("\n## ").unwrap();
    let [command] = &shell_lines(tests)[..] else {
        panic!("one line, please:\n{tests}");
    };
    assert!(command.starts_with("cargo test"), "{command}");
}

/// What a heading is called in links, as GitHub makes it.
fn anchor(heading: &str) -> String {
    heading
        .to_lowercase()
        .chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
        .map(|c| if c == ' ' { '-' } else { c })
        .collect()
}

#[test]
fn every_link_leads_somewhere() {
    let mut followed = 0;
    for (path, text) in documents() {
        if path.extension().is_none_or(|ending| ending != "md") {
            continue;
        }
        for link in text.split("](").skip(1) {
            let target = link.split(')').next().unwrap();
            if target.starts_with("https://") {
                continue;
            }
            let (file, heading) = target.split_once('#').unwrap_or((target, ""));
            let file = match file {
                "" => path.clone(),
                file => path.parent().unwrap().join(file),
            };
            assert!(file.exists(), "{target} in {}", path.display());
            if !heading.is_empty() {
                let found = fs::read_to_string(&file)
                    .unwrap()
                    .lines()
                    .filter(|line| line.starts_with('#'))
                    .any(|line| anchor(line.trim_start_matches('#').trim()) == heading);
                assert!(found, "{target} in {}", path.display());
            }
            followed += 1;
        }
    }
    assert!(followed > 10);
}

#[test]
fn every_metric_of_the_readme_is_the_programs() {
    let metrics = cohort_bridge::metrics::Metrics::new().unwrap();
    let snapshot = cohort_bridge::status::StatusSnapshot {
        now: 0,
        leading: true,
        backlog_pages: 0,
        refusal: None,
        refused_secrets: Vec::new(),
        destinations: Vec::new(),
        cohorts: Ok(Vec::new()),
    };
    // Whatever has no labels is rendered before anything happens; the others are looked for in
    // the source, which is where their names are written.
    let rendered = metrics.render(&snapshot).unwrap() + &text_of("src/metrics.rs");
    let readme = text_of("README.md");
    let mut names = 0;
    for cells in rows(&readme, "| `cohort_bridge_") {
        let name = cells[0].trim_matches('`');
        assert!(rendered.contains(name), "{name}");
        names += 1;
    }
    assert!(names >= 12);
    for line in rendered.lines() {
        if let Some(name) = line.strip_prefix("# TYPE ") {
            let name = name.split(' ').next().unwrap();
            assert!(readme.contains(&format!("| `{name}` |")), "{name}");
        }
    }
}

/// What the program makes of these variables and nothing else.
fn settings_of(variables: &[(String, String)]) -> Settings {
    let Command::Serve(args) = cli::try_parse_from(["cohort-bridge", "serve"])
        .unwrap()
        .command
    else {
        panic!("serve is serve");
    };
    let environment: Environment = variables.iter().cloned().collect();
    Settings::from_args(&args, &environment).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn the_example_environment_starts_the_service() {
    let text = text_of("deploy/cohort-bridge.example.env");
    let pairs = |line: &str| {
        let (name, value) = line.split_once('=')?;
        let is_name = name.chars().all(|c| c.is_ascii_uppercase() || c == '_');
        is_name.then(|| (name.to_owned(), value.to_owned()))
    };
    let given: Vec<_> = text.lines().filter_map(pairs).collect();
    assert_eq!(given.len(), 4);
    assert_eq!(settings_of(&given).warnings, Vec::<String>::new());

    let proposals: Vec<_> = text
        .lines()
        .filter_map(|line| pairs(line.strip_prefix('#')?))
        .collect();
    assert!(!proposals.is_empty());
    for (variable, value) in proposals {
        let setting = setting::SERVE
            .iter()
            .find(|setting| setting.variable == variable)
            .unwrap_or_else(|| panic!("{variable} is no setting"));
        let default = match setting.fallback {
            Fallback::Value(default) => default,
            Fallback::Described(_) | Fallback::Required => "",
        };
        assert_eq!(value, default, "{variable}");
    }
}

/// What the program makes of a settings file of this text. Whatever files it names are there.
fn settings_file(text: &str) -> Settings {
    let folder = tempfile::tempdir().unwrap();
    for (name, secret) in [
        ("production.key", "ser.production"),
        ("staging.key", "ser.staging"),
        ("default.password", "mixpanel:secret"),
        ("eu.password", "mixpanel:secret"),
        ("eu.whsec", "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"),
    ] {
        std::fs::write(folder.path().join(name), secret).unwrap();
    }
    let authority = Authority::new().pem();
    std::fs::write(folder.path().join("flagsmith-ca.pem"), authority).unwrap();
    let path = folder.path().join("settings.toml");
    std::fs::write(&path, text).unwrap();
    let path = path.to_str().unwrap().to_owned();
    settings_of(&[("COHORT_BRIDGE_CONFIG".to_owned(), path)])
}

/// By source, the trait keys of its cohorts.
fn explicit_keys(settings: &Settings) -> Vec<(&str, &str, &str)> {
    let keys = settings.sources.iter().flat_map(|source| {
        let keys = source.explicit_keys.iter();
        keys.map(|key| (&*source.name.0, &*key.cohort_id, &*key.trait_key))
    });
    keys.collect()
}

fn destination_names(settings: &Settings) -> Vec<&str> {
    let destinations = settings.destinations.iter();
    destinations
        .map(|destination| &*destination.name.0)
        .collect()
}

#[test]
fn the_settings_files_shown_are_ones_that_the_program_takes() {
    let example = settings_file(&text_of("deploy/cohort-bridge.example.toml"));
    assert_eq!(
        explicit_keys(&example),
        [
            ("default", "5518203", "trial_power_users"),
            ("eu", "5518377", "churn_risk")
        ]
    );
    assert_eq!(destination_names(&example), ["production", "staging"]);
    assert_eq!(example.warnings, Vec::<String>::new());
    let goes = |source, cohort_id, name| {
        let cohort = Routed {
            source,
            project_id: "2914407",
            cohort_id,
            name,
        };
        let to = example.destinations.iter();
        let to = to.filter(|to| example.routes.lead(cohort, &to.name));
        to.map(|to| &*to.name.0).collect::<Vec<_>>()
    };
    assert_eq!(goes("eu", "5518377", "x"), ["production", "staging"]);
    assert_eq!(goes("eu", "1", "Trial users"), ["production", "staging"]);
    assert_eq!(goes("eu", "1", "x"), [""; 0]);
    assert_eq!(goes("default", "1", "x"), ["production"]);

    let readme = text_of("README.md");
    let shown: Vec<&str> = readme
        .split("```toml\n")
        .skip(1)
        .map(|rest| rest.split("```").next().unwrap())
        .collect();
    let [shown] = shown[..] else {
        panic!("one settings file in the README, please: {shown:?}");
    };
    let shown = settings_file(shown);
    assert_eq!(
        explicit_keys(&shown),
        [("eu", "5518203", "trial_power_users")]
    );
    assert_eq!(destination_names(&shown), ["production", "staging"]);
    assert_eq!(shown.warnings, Vec::<String>::new());
}

#[test]
fn the_example_settings_file_and_the_readme_show_every_key() {
    let file = text_of("deploy/cohort-bridge.example.toml");
    let readme = text_of("README.md");
    let of_the_service = [
        "--listen",
        "--admin-listen",
        "--admin-token",
        "--database-url",
        "--max-connections",
        "--max-body-size",
        "--shutdown-grace",
        "--log-format",
        "--config",
    ];
    let settings = setting::SERVE.iter();
    for setting in settings.filter(|setting| !of_the_service.contains(&setting.flag)) {
        let key = setting.key();
        let is_shown = file.lines().any(|line| {
            let given = line.split_once(" = ").map(|(given, _)| given);
            given.is_some_and(|given| given == key || given.strip_suffix("_file") == Some(&*key))
        });
        assert!(is_shown, "{key} is not in the example");
        assert!(
            readme.contains(&format!("`{key}`")),
            "{key} is not in the README"
        );
    }
}

/// Whether `expression` can be met with the `allowed` licences; SPDX, and the older `/` for OR.
fn is_allowed(expression: &str, allowed: &BTreeSet<String>) -> bool {
    let spaced = expression
        .replace('(', " ( ")
        .replace(')', " ) ")
        .replace('/', " OR ");
    let mut words = spaced.split_whitespace().peekable();
    let met = either(&mut words, allowed);
    assert_eq!(words.next(), None, "{expression}");
    met
}

type Words<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

fn either(words: &mut Words<'_>, allowed: &BTreeSet<String>) -> bool {
    let mut met = both(words, allowed);
    while words.next_if_eq(&"OR").is_some() {
        met |= both(words, allowed);
    }
    met
}

fn both(words: &mut Words<'_>, allowed: &BTreeSet<String>) -> bool {
    let mut met = one(words, allowed);
    while words.next_if_eq(&"AND").is_some() {
        met &= one(words, allowed);
    }
    met
}

fn one(words: &mut Words<'_>, allowed: &BTreeSet<String>) -> bool {
    match words.next() {
        Some("(") => {
            let met = either(words, allowed);
            assert_eq!(words.next(), Some(")"));
            met
        }
        Some(licence) => match words.next_if_eq(&"WITH") {
            Some(_) => {
                let exception = words.next().unwrap();
                allowed.contains(&format!("{licence} WITH {exception}"))
            }
            None => allowed.contains(licence),
        },
        None => panic!("an expression ends early"),
    }
}

#[test]
fn licence_expressions_are_understood() {
    let allowed: BTreeSet<String> = ["MIT", "ISC"].map(str::to_owned).into();
    for expression in [
        "MIT",
        "Unlicense/MIT",
        "GPL-3.0 OR MIT",
        "MIT AND (ISC OR GPL-3.0)",
        "GPL-3.0 AND GPL-2.0 OR MIT",
        "Apache-2.0 WITH LLVM-exception OR MIT",
    ] {
        assert!(is_allowed(expression, &allowed), "{expression}");
    }
    for expression in [
        "GPL-3.0",
        "MIT AND GPL-3.0",
        "MIT AND (GPL-2.0 OR GPL-3.0)",
        "MIT WITH some-exception",
    ] {
        assert!(!is_allowed(expression, &allowed), "{expression}");
    }
}

#[test]
fn every_dependency_has_a_licence_that_deny_toml_allows() {
    let deny = text_of("deny.toml");
    let (_, list) = deny.split_once("allow = [").unwrap();
    let allowed: BTreeSet<String> = list
        .split(']')
        .next()
        .unwrap()
        .split('"')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect();

    let packages = packages();
    assert!(packages.len() > 100);
    for (name, expression) in &packages {
        assert!(is_allowed(expression, &allowed), "{name}: {expression}");
    }
    for licence in &allowed {
        let others: BTreeSet<String> = allowed.iter().filter(|l| *l != licence).cloned().collect();
        assert!(
            packages
                .iter()
                .any(|(_, expression)| !is_allowed(expression, &others)),
            "{licence} is allowed for nothing"
        );
    }
}

/// Everything that is built on this machine, with its licence.
fn packages() -> Vec<(String, String)> {
    let rustc = Process::new("rustc").arg("-vV").output().unwrap();
    let version = String::from_utf8(rustc.stdout).unwrap();
    let host = version
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .unwrap();
    let output = Process::new(env!("CARGO"))
        .current_dir(top())
        .args(["metadata", "--format-version=1", "--locked", "--offline"])
        .args(["--filter-platform", host])
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    metadata["packages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|package| {
            let field = |key: &str| package[key].as_str().unwrap_or("nothing").to_owned();
            (field("name"), field("license"))
        })
        .collect()
}
