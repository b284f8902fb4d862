//! The settings of `serve` and `check`, read and checked against each other.

use std::net::SocketAddr;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};

use super::environment::Environment;
use super::files::Files;
use super::layers::Layers;
use super::parts::read_parts;
use super::reader::{ConfigError, Faulted, Reader};
use super::setting;
use super::{BlankEcho, Destination, Kind, LogFormat, Settings, parse};
use crate::backoff::LONGEST_ADVISED;
use crate::cli::ServeArgs;
use crate::cohort::OnLeave;
use crate::logging;

/// The variable that says which log lines are wanted.
const RUST_LOG: &str = "RUST_LOG";

/// What Flagsmith's server-side keys begin with.
const SERVER_SIDE_KEY: &str = "ser.";

/// Flagsmith's own cloud, whose documentation says that `traits/bulk/` is deprecated there.
const EDGE_HOST: &str = "edge.api.flagsmith.com";

/// Connections at most: beyond this no process gets file descriptors.
const MOST_CONNECTIONS: usize = 1_000_000;

/// Concurrent calls at most: well within the 28,000 or so client ports that Linux has towards one
/// address.
const MOST_IN_FLIGHT: usize = 10_000;

/// Calls a month at most: more than any rate could make.
const MOST_CALLS: usize = 1_000_000_000_000;

/// Bytes of a body that must be let in: Mixpanel's page of 1,000 bare ids is about this.
const LEAST_BODY_BYTES: usize = 64 * 1024;

/// Bytes of a body at most: it is held in memory.
const MOST_BODY_BYTES: usize = 1024 * 1024 * 1024;

/// A grace at most: no supervisor waits longer before it kills.
const LONGEST_GRACE: Duration = Duration::from_secs(10 * 60);

/// The canary writes to Flagsmith, which bills calls.
const SHORTEST_CANARY: Duration = Duration::from_secs(10);

/// Any other waiting time at most: one that is longer is a typing error.
const LONGEST_WAIT: Duration = Duration::from_secs(24 * 60 * 60);

impl Settings {
    /// Reads what `serve` and `check` need.
    ///
    /// # Errors
    ///
    /// Every fault of every setting, and every unknown `COHORT_BRIDGE_…` variable, in one
    /// [`ConfigError`].
    pub fn from_args(args: &ServeArgs, environment: &Environment) -> Result<Self, ConfigError> {
        Self::from_files(args, environment, &Files::default())
    }

    /// The same, where `files` may have been read before.
    pub(super) fn from_files(
        args: &ServeArgs,
        environment: &Environment,
        files: &Files,
    ) -> Result<Self, ConfigError> {
        let mut reader = Reader::new(environment, files);
        let settings = read(&mut reader, args, environment);
        reader.finish(settings)
    }
}

/// Reads all settings before it gives up on any, so that no fault hides another.
fn read(
    reader: &mut Reader<'_>,
    args: &ServeArgs,
    environment: &Environment,
) -> Result<Settings, Faulted> {
    let mut warnings = Vec::new();

    let listen = reader.value(&setting::LISTEN, args.listen.as_deref(), parse::address);
    let admin_listen = reader.value(
        &setting::ADMIN_LISTEN,
        args.admin_listen.as_deref(),
        parse::address,
    );
    let admin_token = reader.optional(
        &setting::ADMIN_TOKEN,
        exposed(&args.admin_token),
        parse::header_secret,
    );
    let database = reader.value(
        &setting::DATABASE_URL,
        exposed(&args.database_url),
        parse::database,
    );
    let parts = read_parts(reader, args, &mut warnings);
    let max_connections = reader.value(
        &setting::MAX_CONNECTIONS,
        args.max_connections.as_deref(),
        parse::count(1..=MOST_CONNECTIONS),
    );
    let max_body_bytes = reader.value(
        &setting::MAX_BODY_SIZE,
        args.max_body_size.as_deref(),
        parse::size(LEAST_BODY_BYTES..=MOST_BODY_BYTES),
    );
    let shutdown_grace = reader.value(
        &setting::SHUTDOWN_GRACE,
        args.shutdown_grace.as_deref(),
        parse::duration(Duration::ZERO..=LONGEST_GRACE),
    );
    let log_format = reader.optional(
        &setting::LOG_FORMAT,
        args.log_format.as_deref(),
        parse::one_of(&[("text", LogFormat::Text), ("json", LogFormat::Json)]),
    );
    let log_filter = read_log_filter(reader, environment);

    if let (Ok(listen), Ok(admin)) = (listen, admin_listen) {
        if clash(listen, admin) {
            reader.fault::<()>(
                &setting::ADMIN_LISTEN,
                format!(
                    "cannot be \"{admin}\": {} ({}) takes that port; give it another",
                    setting::LISTEN.flag,
                    setting::LISTEN.variable,
                ),
            )?;
        }
        if !admin.ip().to_canonical().is_loopback() && matches!(admin_token, Ok(None)) {
            warnings.push(format!(
                "the admin listener on {admin} has no token: actions that change anything and \
                 reads that name a person are refused there; set {}",
                setting::ADMIN_TOKEN.variable,
            ));
        }
    }

    Ok(Settings {
        listen: listen?,
        admin_listen: admin_listen?,
        admin_token: admin_token?,
        database: database?,
        sources: parts.sources?,
        destinations: parts.destinations?,
        routes: parts.routes,
        max_connections: max_connections?,
        max_body_bytes: max_body_bytes?,
        shutdown_grace: shutdown_grace?,
        log_format: log_format?.unwrap_or(if environment.stderr_is_terminal {
            LogFormat::Text
        } else {
            LogFormat::Json
        }),
        log_filter: log_filter?,
        warnings,
    })
}

/// The settings of one destination; whatever is read here may stand in its table of the settings
/// file too, under the flag's name.
pub(super) fn read_destination(
    reader: &mut Layers<'_, '_, '_>,
    name: Result<String, Faulted>,
    args: &ServeArgs,
    warnings: &mut Vec<String>,
) -> Result<Destination, Faulted> {
    let allow_http = reader.value(
        &setting::ALLOW_HTTP,
        args.allow_http.then_some("true"),
        parse::boolean,
    );
    // A faulty permission is a fault already; it must not raise a second one about the URL.
    let api_url = reader.value(
        &setting::FLAGSMITH_API_URL,
        args.flagsmith_api_url.as_deref(),
        parse::flagsmith_url(allow_http.unwrap_or(true)),
    );
    let authorities = reader.optional(
        &setting::CA_FILE,
        args.ca_file.as_deref(),
        parse::authorities(reader.files()),
    );
    let environment_key = reader.value(
        &setting::FLAGSMITH_ENVIRONMENT_KEY,
        exposed(&args.flagsmith_environment_key),
        parse::header_secret,
    );
    let kind = reader.value(
        &setting::FLAGSMITH_KIND,
        args.flagsmith_kind.as_deref(),
        Kind::parse,
    );
    let on_leave = reader.value(
        &setting::ON_LEAVE,
        args.on_leave.as_deref(),
        parse::one_of(&[("false", OnLeave::False), ("delete", OnLeave::Delete)]),
    );
    let blank_echo = reader.value(
        &setting::BLANK_ECHO,
        args.blank_echo.as_deref(),
        parse::one_of(&[("halt", BlankEcho::Halt), ("stored", BlankEcho::Stored)]),
    );
    let linger = reader.value(
        &setting::LINGER,
        args.linger.as_deref(),
        // A time farther ahead would count as written before the clock was set back.
        parse::duration(Duration::ZERO..=LONGEST_ADVISED),
    );
    let max_in_flight = reader.value(
        &setting::MAX_IN_FLIGHT,
        args.max_in_flight.as_deref(),
        parse::count(1..=MOST_IN_FLIGHT),
    );
    let max_calls_per_second = reader.optional(
        &setting::MAX_CALLS_PER_SECOND,
        args.max_calls_per_second.as_deref(),
        parse::rate("calls"),
    );
    let call_budget = reader.optional(
        &setting::CALL_BUDGET,
        args.call_budget.as_deref(),
        parse::count(1..=MOST_CALLS),
    );
    let dry_run = reader.value(
        &setting::DRY_RUN,
        args.dry_run.then_some("true"),
        parse::boolean,
    );
    let late_write_window = reader.value(
        &setting::LATE_WRITE_WINDOW,
        args.late_write_window.as_deref(),
        // A time farther ahead would count as written before the clock was set back.
        parse::duration(Duration::ZERO..=LONGEST_ADVISED),
    );
    let canary_interval = reader.value(
        &setting::CANARY_INTERVAL,
        args.canary_interval.as_deref(),
        parse::duration(SHORTEST_CANARY..=LONGEST_WAIT),
    );
    // Reported with the rest even where the URL was not judged by it.
    allow_http?;

    let whose = match &name {
        Ok(name) if reader.is_table() => format!("destination {name}: "),
        _ => String::new(),
    };
    if let Ok(url) = &api_url
        && url.scheme() == "http"
        && !parse::is_near(url)
    {
        warnings.push(format!(
            "{whose}--allow-http: the Flagsmith environment key and all traits travel unencrypted"
        ));
    }
    if let Ok(key) = &environment_key
        && !key.expose_secret().starts_with(SERVER_SIDE_KEY)
    {
        warnings.push(format!(
            "{whose}the Flagsmith environment key is not a server-side one ({SERVER_SIDE_KEY}…): \
             writes stop where client SDKs may not set traits, and where they may, anyone with the \
             key can"
        ));
    }

    if let Ok(true) = dry_run {
        warnings.push(format!(
            "{whose}{}: nothing is written to Flagsmith",
            setting::DRY_RUN.flag,
        ));
    }
    if let (Ok(url), Ok(Kind::CoreBulk)) = (&api_url, kind)
        && url.host_str() == Some(EDGE_HOST)
    {
        warnings.push(format!(
            "{whose}{} core-bulk is for a Flagsmith of your own: {EDGE_HOST} has given up traits/bulk/ \
             and may take it away; sdk costs one call an identity there",
            setting::FLAGSMITH_KIND.flag,
        ));
    }

    Ok(Destination {
        name: name?.as_str().into(),
        api_url: api_url?,
        authorities: authorities?,
        environment_key: environment_key?,
        kind: kind?,
        on_leave: on_leave?,
        blank_echo: blank_echo?,
        linger: linger?,
        max_in_flight: max_in_flight?,
        max_calls_per_second: max_calls_per_second?,
        call_budget: call_budget?.map(|calls| calls as u64),
        dry_run: dry_run?,
        late_write_window: late_write_window?,
        canary_interval: canary_interval?,
    })
}

fn read_log_filter(reader: &mut Reader<'_>, environment: &Environment) -> Result<String, Faulted> {
    let Some(filter) = environment.get(RUST_LOG) else {
        return Ok(logging::DEFAULT_FILTER.to_owned());
    };
    let filter = filter.to_string_lossy();
    match logging::check_filter(&filter) {
        Ok(()) => Ok(filter.into_owned()),
        Err(advice) => {
            reader.note(
                RUST_LOG.to_owned(),
                format!("cannot be {filter:?}: {advice}"),
            );
            Err(Faulted)
        }
    }
}

/// Whether two listeners want one port of one address.
fn clash(a: SocketAddr, b: SocketAddr) -> bool {
    a.port() == b.port()
        && a.port() != 0
        && (a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified())
}

/// A secret's text.
pub(super) fn exposed(secret: &Option<SecretString>) -> Option<&str> {
    secret.as_ref().map(ExposeSecret::expose_secret)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::path::{Path, PathBuf};

    use clap::Parser;

    use super::*;
    use crate::cohort::SourceName;
    use crate::config::Database;
    use crate::config::setting::{Exposure, Setting};
    use crate::mixpanel::Anonymous;
    use crate::trait_key::{ExplicitKey, TraitKeyTemplate};

    #[derive(Parser)]
    struct Serve {
        #[command(flatten)]
        args: ServeArgs,
    }

    /// What lets the service start, as variables.
    const ENOUGH: &[(&str, &str)] = &[
        ("COHORT_BRIDGE_WEBHOOK_BASIC_AUTH", "mixpanel:hush"),
        ("COHORT_BRIDGE_FLAGSMITH_ENVIRONMENT_KEY", "ser.hush"),
    ];

    fn settings(flags: &[&str], variables: &[(&str, &str)]) -> Result<Settings, ConfigError> {
        let args = Serve::parse_from([&["x"], flags].concat()).args;
        Settings::from_args(&args, &variables.iter().copied().collect())
    }

    /// The settings of [`ENOUGH`], then these; a later variable replaces an earlier one.
    fn with(flags: &[&str], variables: &[(&str, &str)]) -> Result<Settings, ConfigError> {
        settings(flags, &[ENOUGH, variables].concat())
    }

    fn faults(flags: &[&str], variables: &[(&str, &str)]) -> Vec<String> {
        let error = with(flags, variables).expect_err("a fault");
        assert!(!error.to_string().contains("hush"), "{error}");
        error.faults().iter().map(ToString::to_string).collect()
    }

    fn secret_file(content: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
        file.write_all(content).expect("room");
        file
    }

    #[test]
    fn defaults_are_the_interfaces() {
        let settings = with(&[], &[]).expect("enough");
        assert_eq!(settings.listen.to_string(), "0.0.0.0:8080");
        assert_eq!(settings.admin_listen.to_string(), "127.0.0.1:9090");
        assert!(settings.admin_token.is_none());
        assert_eq!(
            settings.database,
            Database::Sqlite(PathBuf::from("cohort-bridge.db"))
        );
        assert_eq!(settings.max_connections, 4096);
        assert_eq!(settings.max_body_bytes, 16 * 1024 * 1024);
        assert_eq!(settings.shutdown_grace, Duration::from_secs(25));
        assert_eq!(settings.log_format, LogFormat::Json);
        assert_eq!(settings.log_filter, "info");
        assert_eq!(settings.warnings, Vec::<String>::new());

        let [source] = &settings.sources[..] else {
            panic!("one source");
        };
        assert_eq!(source.name, SourceName::from("default"));
        assert_eq!(source.identifier.properties(), ["mixpanel_distinct_id"]);
        assert_eq!(source.identifier.anonymous(), Anonymous::Skip);
        assert_eq!(source.trait_key, TraitKeyTemplate::default());
        assert_eq!(source.explicit_keys, []);
        assert_eq!(source.hold_removals_above, None);

        let [destination] = &settings.destinations[..] else {
            panic!("one destination");
        };
        assert_eq!(destination.name, "default".into());
        assert_eq!(
            destination.api_url.as_str(),
            "https://edge.api.flagsmith.com/api/v1/"
        );
        assert_eq!(destination.environment_key.expose_secret(), "ser.hush");
        assert_eq!(destination.kind, Kind::Sdk);
        assert_eq!(destination.on_leave, OnLeave::False);
        assert_eq!(destination.blank_echo, BlankEcho::Halt);
        assert_eq!(destination.linger, Duration::from_secs(1));
        assert_eq!(destination.max_in_flight, 64);
        assert_eq!(destination.late_write_window, Duration::from_secs(60));
        assert_eq!(destination.canary_interval, Duration::from_secs(900));
    }

    /// One setting: two values, what each becomes as far as it can be seen, and one that is a fault.
    struct Row {
        setting: Setting,
        values: [&'static str; 2],
        seen: fn(&Settings) -> String,
        becomes: [&'static str; 2],
        bad: &'static str,
    }

    const fn row(
        setting: Setting,
        values: [&'static str; 2],
        seen: fn(&Settings) -> String,
        becomes: [&'static str; 2],
        bad: &'static str,
    ) -> Row {
        Row {
            setting,
            values,
            seen,
            becomes,
            bad,
        }
    }

    fn token(settings: &Settings) -> String {
        exposed(&settings.admin_token).unwrap_or("none").to_owned()
    }

    /// For values that their own module tests.
    fn unseen(_: &Settings) -> String {
        String::new()
    }

    const TWO_SIGNING_SECRETS: &str =
        "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD\nwhsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oE";

    #[rustfmt::skip]
const ROWS: &[Row] = &[
    row(setting::LISTEN, ["127.0.0.1:1", "[::1]:2"], |s| s.listen.to_string(), ["127.0.0.1:1", "[::1]:2"], "localhost:80"),
    row(setting::ADMIN_LISTEN, ["127.0.0.1:3", "127.0.0.1:0"], |s| s.admin_listen.to_string(), ["127.0.0.1:3", "127.0.0.1:0"], "9090"),
    row(setting::ADMIN_TOKEN, ["one", "two"], token, ["one", "two"], "hush hush"),
    row(setting::DATABASE_URL, ["sqlite:a", "sqlite:///b"], |s| format!("{:?}", s.database), [r#"Sqlite("a")"#, r#"Sqlite("/b")"#], "mysql://u:hush@h/d"),
    row(setting::WEBHOOK_BASIC_AUTH, ["a:b", "a:b\nc:d e:f"], unseen, ["", ""], "hush"),
    row(setting::WEBHOOK_SIGNING_SECRET, ["whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD", TWO_SIGNING_SECRETS], unseen, ["", ""], "whsec_hush!"),
    row(setting::FLAGSMITH_API_URL, ["https://a.example", "http://b:1/x"], |s| s.destinations[0].api_url.to_string(), ["https://a.example/", "http://b:1/x/"], "https://u:hush@h.example/"),
    row(setting::FLAGSMITH_ENVIRONMENT_KEY, ["ser.one", "two"], |s| s.destinations[0].environment_key.expose_secret().to_owned(), ["ser.one", "two"], "ser.hush\u{e9}"),
    row(setting::FLAGSMITH_KIND, ["sdk", "core-bulk"], |s| format!("{:?}", s.destinations[0].kind), ["Sdk", "CoreBulk"], "bulk"),
    row(setting::IDENTIFIER_PROPERTY, ["a,b", "$user_id"], |s| s.sources[0].identifier.properties().join("+"), ["a+b", "$user_id"], "a,a"),
    row(setting::TRAIT_KEY, ["x_{id}", "y_{name}"], unseen, ["", ""], "no_placeholder"),
    row(setting::ANONYMOUS, ["skip", "keep"], |s| format!("{:?}", s.sources[0].identifier.anonymous()), ["Skip", "Keep"], "Keep"),
    row(setting::HOLD_REMOVALS_ABOVE, ["1000,30%", "0"], |s| format!("{:?}", s.sources[0].hold_removals_above), ["Some(RemovalGuard { members: Some(1000), percent_hundredths: Some(3000) })", "Some(RemovalGuard { members: Some(0), percent_hundredths: None })"], "30 percent"),
    row(setting::ON_LEAVE, ["false", "delete"], |s| format!("{:?}", s.destinations[0].on_leave), ["False", "Delete"], "true"),
    row(setting::LATE_WRITE_WINDOW, ["0s", "2m"], |s| format!("{:?}", s.destinations[0].late_write_window), ["0ns", "120s"], "25h"),
    row(setting::BLANK_ECHO, ["halt", "stored"], |s| format!("{:?}", s.destinations[0].blank_echo), ["Halt", "Stored"], "store"),
    row(setting::CANARY_INTERVAL, ["10s", "24h"], |s| format!("{:?}", s.destinations[0].canary_interval), ["10s", "86400s"], "9999ms"),
    row(setting::MAX_CONNECTIONS, ["1", "1000000"], |s| s.max_connections.to_string(), ["1", "1000000"], "1000001"),
    row(setting::LINGER, ["50ms", "0ms"], |s| format!("{:?}", s.destinations[0].linger), ["50ms", "0ns"], "50"),
    row(setting::MAX_IN_FLIGHT, ["1", "10000"], |s| s.destinations[0].max_in_flight.to_string(), ["1", "10000"], "0"),
    row(setting::MAX_CALLS_PER_SECOND, ["0.5", "100"], |s| format!("{:?}", s.destinations[0].max_calls_per_second), ["Some(0.5)", "Some(100.0)"], "0"),
    row(setting::CALL_BUDGET, ["1", "1000000000000"], |s| format!("{:?}", s.destinations[0].call_budget), ["Some(1)", "Some(1000000000000)"], "1e6"),
    row(setting::MAX_BODY_SIZE, ["64KiB", "1GiB"], |s| s.max_body_bytes.to_string(), ["65536", "1073741824"], "65535"),
    row(setting::SHUTDOWN_GRACE, ["10m", "0s"], |s| format!("{:?}", s.shutdown_grace), ["600s", "0ns"], "601s"),
    row(setting::LOG_FORMAT, ["text", "json"], |s| format!("{:?}", s.log_format), ["Text", "Json"], "yaml"),
];

    #[test]
    fn every_setting_is_in_the_table_or_in_a_test_of_its_own() {
        let own = [
            setting::ALLOW_HTTP,
            setting::CA_FILE,
            setting::DRY_RUN,
            setting::CONFIG,
        ];
        let tested: Vec<&str> = ROWS
            .iter()
            .map(|row| &row.setting)
            .chain(&own)
            .map(|s| s.flag)
            .collect();
        for setting in setting::SERVE {
            assert!(tested.contains(&setting.flag), "{}", setting.flag);
        }
    }

    #[test]
    fn a_dry_run_is_of_all_destinations_or_of_one() {
        let dry = |flags: &[&str], variables: &[(&str, &str)]| {
            let settings = with(flags, variables).expect("good");
            let warned = settings
                .warnings
                .iter()
                .any(|said| said.contains("--dry-run"));
            let dry_run = settings.destinations[0].dry_run;
            assert_eq!(warned, dry_run, "{:?}", settings.warnings);
            dry_run
        };
        assert!(!dry(&[], &[]));
        assert!(dry(&["--dry-run"], &[("COHORT_BRIDGE_DRY_RUN", "false")]));
        assert!(dry(&[], &[("COHORT_BRIDGE_DRY_RUN", "true")]));
        let found = faults(&[], &[("COHORT_BRIDGE_DRY_RUN", "maybe")]);
        assert!(found[0].contains("--dry-run"), "{found:?}");

        let table = |name: &str, more: &str| {
            format!("[[destinations]]\nname = '{name}'\nenvironment_key = 'ser.hush'\n{more}\n")
        };
        let text = table("a", "dry_run = true") + &table("b", "dry_run = false") + &table("c", "");
        let file = secret_file(text.as_bytes());
        let path = file.path().to_str().expect("UTF-8");
        for (for_all, expected) in [
            ("false", [true, false, false]),
            ("true", [true, false, true]),
        ] {
            let variables = [ENOUGH[0], ("COHORT_BRIDGE_DRY_RUN", for_all)];
            let settings = settings(&["--config", path], &variables).expect("good");
            let dry: Vec<_> = settings
                .destinations
                .iter()
                .map(|there| there.dry_run)
                .collect();
            assert_eq!(dry, expected);
        }
    }

    #[test]
    fn settings_of_a_source_or_destination_are_keys_of_its_table_which_win() {
        let mut of_the_service = Vec::new();
        for row in ROWS {
            let Setting { flag, variable, .. } = row.setting;
            let key = row.setting.key();
            for (value, expected) in row.values.iter().zip(row.becomes) {
                let read = |kind: &str, least: &[(&str, &str)]| {
                    let least = least.iter().filter(|(least, _)| *least != key);
                    let lines = least.map(|(key, value)| format!("{key} = {value:?}\n"));
                    let lines: String = lines.collect();
                    let text = format!("[[{kind}]]\nname = 'a'\n{lines}{key} = {value:?}\n");
                    let file = secret_file(text.as_bytes());
                    let path = file.path().to_str().expect("UTF-8");
                    let other = match kind {
                        "sources" => ENOUGH[1],
                        _ => ENOUGH[0],
                    };
                    let for_all = row.setting.exposure != Exposure::Secret;
                    let for_all = for_all.then_some((variable, row.values[0]));
                    let variables: Vec<_> = [other].into_iter().chain(for_all).collect();
                    settings(&["--config", path], &variables)
                };
                let source = read("sources", &[("basic_auth", "a:b")]);
                let destination = read("destinations", &[("environment_key", "ser.k")]);
                match (source, destination) {
                    (Ok(settings), Err(_)) | (Err(_), Ok(settings)) => {
                        assert_eq!((row.seen)(&settings), expected, "{flag}");
                    }
                    (Err(error), Err(_)) => {
                        assert!(error.to_string().contains("is not known in"), "{error}");
                        of_the_service.push(flag);
                    }
                    (Ok(_), Ok(_)) => panic!("{flag} is a key of both"),
                }
            }
        }
        of_the_service.dedup();
        assert_eq!(
            of_the_service,
            [
                "--listen",
                "--admin-listen",
                "--admin-token",
                "--database-url",
                "--max-connections",
                "--max-body-size",
                "--shutdown-grace",
                "--log-format",
            ]
        );
    }

    #[test]
    fn each_setting_has_a_flag_and_a_variable_and_the_flag_wins() {
        for row in ROWS {
            let Setting { flag, variable, .. } = row.setting;
            for (value, expected) in row.values.iter().zip(row.becomes) {
                let by_flag = with(&[&format!("{flag}={value}")], &[]).expect(flag);
                assert_eq!((row.seen)(&by_flag), expected, "{flag}");
                let by_variable = with(&[], &[(variable, value)]).expect(variable);
                assert_eq!((row.seen)(&by_variable), expected, "{variable}");
                let by_both =
                    with(&[&format!("{flag}={value}")], &[(variable, row.bad)]).expect(flag);
                assert_eq!((row.seen)(&by_both), expected, "{flag} over {variable}");
            }
        }
    }

    #[test]
    fn a_faulty_setting_is_named_by_flag_and_variable() {
        for row in ROWS {
            let Setting { flag, variable, .. } = row.setting;
            for found in [
                faults(
                    &[&format!("{flag}={}", row.bad)],
                    &[(variable, row.values[0])],
                ),
                faults(&[], &[(variable, row.bad)]),
            ] {
                assert_eq!(found.len(), 1, "{found:?}");
                assert!(
                    found[0].starts_with(&format!("{flag} ({variable}) ")),
                    "{found:?}"
                );
            }
            let found = faults(&[&format!("{flag}=")], &[]);
            assert!(found[0].contains("is empty"), "{found:?}");
        }
    }

    #[test]
    fn an_empty_variable_counts_as_not_set() {
        let defaults = with(&[], &[]).expect("enough");
        for row in ROWS {
            if ENOUGH
                .iter()
                .any(|(variable, _)| *variable == row.setting.variable)
            {
                continue;
            }
            for empty in ["", "\n"] {
                let settings = with(&[], &[(row.setting.variable, empty)]).expect("not set");
                assert_eq!((row.seen)(&settings), (row.seen)(&defaults));
            }
        }
        let found = faults(&[], &[("COHORT_BRIDGE_FLAGSMITH_ENVIRONMENT_KEY", "")]);
        assert!(found[0].contains("is required"), "{found:?}");
    }

    #[test]
    fn secrets_come_from_files_too() {
        for (row, bad) in ROWS
            .iter()
            .filter_map(|row| Some((row, row.setting.file_variable()?)))
        {
            let Setting { variable, .. } = row.setting;
            let without = |extra: &[(&str, &str)]| {
                let others: Vec<_> = ENOUGH
                    .iter()
                    .filter(|(name, _)| *name != variable)
                    .copied()
                    .collect();
                settings(&["--allow-unauthenticated"], &[&others[..], extra].concat())
            };
            let file = secret_file(format!("{}\r\n\n", row.values[0]).as_bytes());
            let path = file.path().to_str().expect("UTF-8");
            let read = without(&[(&bad, path)]).expect(variable);
            assert_eq!((row.seen)(&read), row.becomes[0], "{variable}");
            // The empty variable beside it is not set.
            let read = without(&[(&bad, path), (variable, "")]).expect(variable);
            assert_eq!((row.seen)(&read), row.becomes[0], "{variable}");

            let error = without(&[(&bad, path), (variable, row.values[0])]).expect_err("both");
            assert!(error.to_string().contains("is given twice"), "{error}");
            assert_eq!(error.faults().len(), 1, "{error}");

            for (content, trouble) in [
                (&b""[..], "it is empty"),
                (b"\n", "it is empty"),
                (b"\xff", "it is not UTF-8"),
                (&[b'x'; 70_000], "longer than"),
            ] {
                let file = secret_file(content);
                let path = file.path().to_str().expect("UTF-8");
                let error = without(&[(&bad, path)]).expect_err(trouble).to_string();
                assert!(error.contains(trouble) && error.contains(path), "{error}");
            }
            let error = without(&[(&bad, "/nowhere/at/all")])
                .expect_err("no file")
                .to_string();
            assert!(error.contains("/nowhere/at/all"), "{error}");
        }
    }

    #[test]
    fn only_secrets_have_files() {
        let files = ROWS.iter().filter_map(|row| row.setting.file_variable());
        assert_eq!(
            files.collect::<Vec<_>>(),
            [
                "COHORT_BRIDGE_ADMIN_TOKEN_FILE",
                "DATABASE_URL_FILE",
                "COHORT_BRIDGE_WEBHOOK_BASIC_AUTH_FILE",
                "COHORT_BRIDGE_WEBHOOK_SIGNING_SECRET_FILE",
                "COHORT_BRIDGE_FLAGSMITH_ENVIRONMENT_KEY_FILE",
            ]
        );
        let found = faults(&[], &[("COHORT_BRIDGE_LINGER_FILE", "x")]);
        assert!(found[0].contains("only a secret"), "{found:?}");
    }

    #[test]
    fn all_faults_come_at_once() {
        let error = settings(
            &["--listen", "nowhere", "--linger", "1"],
            &[
                ("COHORT_BRIDGE_ADMIN_TOKEN", "hush hush"),
                (
                    "COHORT_BRIDGE_WEBHOOK_SIGNING_SECRET_FILE",
                    "/nowhere/at/all",
                ),
                ("COHORT_BRIDGE_MAX_BODY_SIZE", "99999999999999999999GiB"),
                ("COHORT_BRIDGE_ON_LEAVE", "remove"),
                ("COHORT_BRIDGE_MAX_INFLIGHT", "3"),
                ("DATABASE_URL", "mysql://u:hush@h/d"),
                ("RUST_LOG", "inof"),
            ],
        )
        .expect_err("faults");
        let text = error.to_string();
        assert!(text.starts_with("the settings have 10 faults:\n"), "{text}");
        for expected in [
            r#"  --listen (COHORT_BRIDGE_LISTEN) cannot be "nowhere": write an IP address"#,
            r#"  --linger (COHORT_BRIDGE_LINGER) cannot be "1": write a whole number and a unit"#,
            "  --admin-token (COHORT_BRIDGE_ADMIN_TOKEN) cannot be used: ",
            "  --webhook-signing-secret (COHORT_BRIDGE_WEBHOOK_SIGNING_SECRET) cannot be read from the file /nowhere/at/all",
            "  --max-body-size (COHORT_BRIDGE_MAX_BODY_SIZE) cannot be ",
            r#"  --on-leave (COHORT_BRIDGE_ON_LEAVE) cannot be "remove": write false or delete"#,
            "  COHORT_BRIDGE_MAX_INFLIGHT is not a setting: did you mean COHORT_BRIDGE_MAX_IN_FLIGHT?",
            "  --database-url (DATABASE_URL) cannot be used: write sqlite:// and the path",
            "  --flagsmith-environment-key (COHORT_BRIDGE_FLAGSMITH_ENVIRONMENT_KEY) is required",
            "  RUST_LOG cannot be \"inof\": write error, warn",
        ] {
            assert!(text.contains(expected), "{expected} is not in {text}");
        }
        assert!(!text.contains("hush"), "{text}");
        assert!(!format!("{error:?}").contains("hush"), "{error:?}");
    }

    #[test]
    fn without_credentials_there_is_no_start_unless_it_is_wanted() {
        let key = ENOUGH[1];
        let error = settings(&[], &[key])
            .expect_err("no credentials")
            .to_string();
        for way_out in [
            "--webhook-basic-auth (COHORT_BRIDGE_WEBHOOK_BASIC_AUTH)",
            "--webhook-signing-secret (COHORT_BRIDGE_WEBHOOK_SIGNING_SECRET)",
            "--allow-unauthenticated",
        ] {
            assert!(error.contains(way_out), "{error}");
        }
        let open = settings(&["--allow-unauthenticated"], &[key]).expect("wanted");
        assert!(open.warnings[0].contains("--allow-unauthenticated"));
        let closed = with(&["--allow-unauthenticated"], &[]).expect("enough");
        assert!(
            closed.warnings[0].contains("no effect"),
            "{:?}",
            closed.warnings
        );

        let blank = settings(
            &["--allow-unauthenticated"],
            &[key, ("COHORT_BRIDGE_WEBHOOK_BASIC_AUTH", " \t ")],
        )
        .expect_err("blank credentials are a mistake");
        assert!(blank.to_string().contains("is empty"), "{blank}");
        let variable = settings(&[], &[key, ("COHORT_BRIDGE_ALLOW_UNAUTHENTICATED", "true")]);
        assert!(
            variable
                .expect_err("flag only")
                .to_string()
                .contains("as a flag only")
        );
    }

    #[test]
    fn plain_http_over_the_internet_has_to_be_allowed() {
        let public = "--flagsmith-api-url=http://flags.example/api/v1/";
        assert!(faults(&[public], &[])[0].contains("--allow-http"));
        assert!(
            faults(&[public], &[("COHORT_BRIDGE_ALLOW_HTTP", "false")])[0].contains("--allow-http")
        );
        for (flags, variables) in [
            (&[public, "--allow-http"][..], &[][..]),
            (&[public], &[("COHORT_BRIDGE_ALLOW_HTTP", "true")]),
            (
                &[public, "--allow-http"],
                &[("COHORT_BRIDGE_ALLOW_HTTP", "false")],
            ),
        ] {
            let settings = with(flags, variables).expect("allowed");
            assert!(
                settings.warnings[0].contains("unencrypted"),
                "{:?}",
                settings.warnings
            );
        }
        let found = faults(&[public], &[("COHORT_BRIDGE_ALLOW_HTTP", "yes")]);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("write true or false"), "{found:?}");
    }

    #[test]
    fn the_settings_file_is_read() {
        let file = secret_file(b"[[cohorts]]\nid = '5518203'\ntrait_key = 'trial'\n");
        let path = file.path().to_str().expect("UTF-8");
        let expected = ExplicitKey {
            project_id: None,
            cohort_id: "5518203".to_owned(),
            trait_key: "trial".to_owned(),
        };
        for settings in [
            with(&["--config", path], &[]),
            with(&[], &[("COHORT_BRIDGE_CONFIG", path)]),
            with(&["--config", path], &[("COHORT_BRIDGE_CONFIG", "/nowhere")]),
        ] {
            assert_eq!(
                settings.expect("good").sources[0].explicit_keys,
                std::slice::from_ref(&expected)
            );
        }
        assert!(with(&[], &[("COHORT_BRIDGE_CONFIG", "")]).is_ok());
    }

    #[test]
    fn the_settings_files_faults_come_with_all_others() {
        let file = secret_file(b"[[cohorts]]\nid = 1\n\n[[routs]]\n");
        let path = file.path().to_str().expect("UTF-8");
        let found = faults(
            &["--linger=1", "--config", path],
            &[("COHORT_BRIDGE_X", "")],
        );
        assert_eq!(found.len(), 5, "{found:?}");
        let names = format!("--config (COHORT_BRIDGE_CONFIG) names {path}; line ");
        for line in ["1: [[cohorts]] needs trait_key", "2: id ", "4: \"routs\" "] {
            let beginning = format!("{names}{line}");
            assert!(
                found.iter().any(|fault| fault.starts_with(&beginning)),
                "{line}: {found:?}"
            );
        }
    }

    #[test]
    fn a_settings_file_that_cannot_be_read_is_a_fault() {
        let folder = tempfile::tempdir().expect("a folder");
        let binary = secret_file(b"\xff");
        let long = secret_file(&[b'#'; 300_000]);
        for (path, trouble) in [
            (Path::new("/nowhere/at/all"), "No such file"),
            (folder.path(), "directory"),
            (binary.path(), "it is not UTF-8"),
            (long.path(), "longer than"),
        ] {
            let path = path.to_str().expect("UTF-8");
            let [found] = &faults(&["--config", path], &[])[..] else {
                panic!("one fault of {path}");
            };
            let beginning = format!("--config (COHORT_BRIDGE_CONFIG) names {path}, which cannot");
            assert!(
                found.starts_with(&beginning) && found.contains(trouble),
                "{found}"
            );
        }
    }

    #[test]
    fn the_listeners_cannot_share_a_port() {
        for (listen, admin, shared) in [
            ("127.0.0.1:8080", "127.0.0.1:8080", true),
            ("0.0.0.0:8080", "127.0.0.1:8080", true),
            ("127.0.0.1:8080", "[::]:8080", true),
            ("127.0.0.1:8080", "127.0.0.2:8080", false),
            ("127.0.0.1:0", "127.0.0.1:0", false),
        ] {
            let flags = ["--listen", listen, "--admin-listen", admin];
            assert_eq!(with(&flags, &[]).is_err(), shared, "{listen} {admin}");
        }
        let flags = ["--listen=127.0.0.1:1", "--admin-listen=127.0.0.1:1"];
        assert!(faults(&flags, &[])[0].starts_with("--admin-listen (COHORT_BRIDGE_ADMIN_LISTEN) "));
        // The clash does not hide what else is wrong.
        assert_eq!(faults(&flags, &[("COHORT_BRIDGE_LINGER", "x")]).len(), 2);
    }

    #[test]
    fn unwise_settings_are_warned_of() {
        let warned = |flags: &[&str], word: &str| {
            let warnings = with(flags, &[]).expect("allowed").warnings;
            warnings.iter().any(|warning| warning.contains(word))
        };
        let own = "--flagsmith-api-url=https://flagsmith.example/api/v1/";
        assert!(warned(&["--flagsmith-kind=core-bulk"], "traits/bulk/"));
        assert!(!warned(
            &["--flagsmith-kind=core-bulk", own],
            "traits/bulk/"
        ));
        assert!(!warned(&["--flagsmith-kind=sdk"], "traits/bulk/"));
        assert!(warned(
            &["--admin-listen=0.0.0.0:9090"],
            "COHORT_BRIDGE_ADMIN_TOKEN"
        ));
        assert!(!warned(
            &["--admin-listen=0.0.0.0:9090", "--admin-token=t"],
            "COHORT_BRIDGE_ADMIN_TOKEN"
        ));
        assert!(!warned(
            &["--admin-listen=[::1]:9090"],
            "COHORT_BRIDGE_ADMIN_TOKEN"
        ));
        assert!(warned(
            &["--flagsmith-environment-key=client"],
            "server-side"
        ));
    }

    #[test]
    fn rust_log_is_read_and_checked() {
        let filter = "warn,cohort_bridge=trace";
        assert_eq!(
            with(&[], &[("RUST_LOG", filter)])
                .expect("valid")
                .log_filter,
            filter
        );
        assert!(faults(&[], &[("RUST_LOG", "inof")])[0].starts_with("RUST_LOG cannot be"));
    }

    #[test]
    fn log_format_follows_the_terminal() {
        let args = Serve::parse_from(["x"]).args;
        for (terminal, format) in [(true, LogFormat::Text), (false, LogFormat::Json)] {
            let mut environment: Environment = ENOUGH.iter().copied().collect();
            environment.stderr_is_terminal = terminal;
            let settings = Settings::from_args(&args, &environment).expect("enough");
            assert_eq!(settings.log_format, format);
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_variable_that_is_not_utf8_is_a_fault() {
        use std::ffi::{OsStr, OsString};
        use std::os::unix::ffi::OsStrExt;

        let variables = ENOUGH
            .iter()
            .map(|&(name, value)| (name, OsString::from(value)))
            .chain([(
                "COHORT_BRIDGE_LINGER",
                OsStr::from_bytes(b"\xff").to_owned(),
            )]);
        let args = Serve::parse_from(["x"]).args;
        let error = Settings::from_args(&args, &variables.collect()).expect_err("a fault");
        assert!(error.to_string().contains("is not UTF-8"), "{error}");
    }

    #[test]
    fn kubernetes_service_variables_do_no_harm() {
        assert!(
            with(
                &[],
                &[
                    ("COHORT_BRIDGE_SERVICE_HOST", "10.0.0.1"),
                    ("COHORT_BRIDGE_PORT", "tcp://10.0.0.1:80")
                ]
            )
            .is_ok()
        );
        assert_eq!(faults(&[], &[("COHORT_BRIDGE_PORT", "8080")]).len(), 1);
    }

    #[test]
    fn settings_can_be_logged() {
        let settings = with(&["--admin-token=hush"], &[]).expect("enough");
        assert!(!format!("{settings:?}").contains("hush"));
    }
}
