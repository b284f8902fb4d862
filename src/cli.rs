//! The command line. Values of settings stay raw text here: [`config`](crate::config) reads them
//! together with the variables, so that all faults are told at once.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::FalseyValueParser;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use secrecy::SecretString;

use crate::config::setting::{self, Setting};
use crate::http::admin::views::Decision;
use crate::operator::{Action, ResyncOf, Selection};

mod ledger;
mod pause;

pub use ledger::{BackupArgs, MigrateArgs};
pub use pause::PauseArgs;

/// What follows the flags in `--help` of commands that have settings.
const SETTINGS_NOTES: &str = "\
A flag beats its variable, and an empty variable counts as not set. A variable with _FILE at its \
end names a file that holds the value. A variable COHORT_BRIDGE_… that is not known is a fault.
Durations are a whole number and ms, s, m or h (50ms, 1s, 15m); sizes are bytes or a whole number \
and kB, MB, GB, KiB, MiB or GiB.
RUST_LOG says which log lines are wanted, such as debug or cohort_bridge::dispatch=trace \
[default: info]; other libraries never say more than info.";

/// Turns Mixpanel cohort webhooks into boolean traits in Flagsmith.
#[derive(Debug, Parser)]
#[command(name = "cohort-bridge", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What `cohort-bridge` can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the service: webhook listener, delivery to Flagsmith, admin listener.
    #[command(after_help = SETTINGS_NOTES)]
    Serve(ServeArgs),
    /// Watch it work, without an account or settings, against a stand-in Flagsmith.
    Demo(DemoArgs),
    /// Send recorded webhooks to a running service as Mixpanel would.
    Replay(ReplayArgs),
    /// Check all settings, the ledger, the Flagsmith key, and that a written trait stays.
    #[command(after_help = SETTINGS_NOTES)]
    Check(ServeArgs),
    /// Ask the service on this machine whether it is well, within 5 s: exit 0 if so, else 1.
    Health(HealthArgs),
    /// Copy a SQLite ledger into a new file, also while the service uses it.
    Backup(BackupArgs),
    /// Move a SQLite ledger, which nobody uses, into an empty PostgreSQL database; run again, it goes on.
    MigrateStore(MigrateArgs),
    /// An operator's action on a running service.
    #[command(flatten)]
    Operator(OperatorCommand),
}

/// The settings of `serve` and `check`, as written on the command line.
#[derive(Args, Clone, Debug, Default)]
pub struct ServeArgs {
    /// Where the public webhook listener binds.
    #[arg(long, value_name = "IP:PORT")]
    pub listen: Option<String>,
    /// Where the admin listener binds: health, metrics, status page, admin API.
    #[arg(long, value_name = "IP:PORT")]
    pub admin_listen: Option<String>,
    /// Bearer token of admin calls that change anything or name a person; without one they work on loopback only.
    #[arg(long, value_name = "TOKEN")]
    pub admin_token: Option<SecretString>,
    /// Where the ledger is kept: sqlite:// and the path of a file, which is created where missing, or postgres://user:password@host/database.
    #[arg(long, value_name = "URL")]
    pub database_url: Option<SecretString>,
    /// Who may send webhooks by HTTP Basic; several, for rotation, are separated by space or newline.
    #[arg(long, value_name = "USER:PASSWORD")]
    pub webhook_basic_auth: Option<SecretString>,
    /// Secrets of signed webhooks, whsec_…; several, for rotation, are separated by space or newline.
    #[arg(long, value_name = "SECRET")]
    pub webhook_signing_secret: Option<SecretString>,
    /// Let anyone send webhooks; without it, no credentials means no start [flag only] [default: off].
    #[arg(long)]
    pub allow_unauthenticated: bool,
    /// Base of the Flagsmith SDK API.
    #[arg(long, value_name = "URL")]
    pub flagsmith_api_url: Option<String>,
    /// Key of the Flagsmith environment, a server-side one (ser.…).
    #[arg(long, value_name = "KEY")]
    pub flagsmith_environment_key: Option<SecretString>,
    /// By which endpoint traits are written: sdk is POST identities/, core-bulk is PUT traits/bulk/ of a Flagsmith of your own.
    #[arg(long, value_name = "sdk|core-bulk")]
    pub flagsmith_kind: Option<String>,
    /// Allow a Flagsmith API URL without TLS outside private networks.
    #[arg(long)]
    pub allow_http: bool,
    /// PEM file of certificate authorities that Flagsmith's certificate may be signed by, beside those of the machine.
    #[arg(long, value_name = "PATH")]
    pub ca_file: Option<String>,
    /// Which property of a member is its Flagsmith identifier; of several, separated by comma, the first usable one.
    #[arg(long, value_name = "NAMES")]
    pub identifier_property: Option<String>,
    /// How a new cohort's trait key is made, of {name}, {id} and {project}.
    #[arg(long, value_name = "TEMPLATE")]
    pub trait_key: Option<String>,
    /// What becomes of ids that begin with $device: skip sets them aside, keep sends them.
    #[arg(long, value_name = "skip|keep")]
    pub anonymous: Option<String>,
    /// Hold a session's removals until somebody approves them: above 1000 people, above 30% of the cohort, or above both as in 1000,30%.
    #[arg(long, value_name = "PEOPLE,PERCENT")]
    pub hold_removals_above: Option<String>,
    /// What becomes of a leaver's trait: false sets it to false, delete removes it.
    #[arg(long, value_name = "false|delete")]
    pub on_leave: Option<String>,
    /// How long after a time-out or a lost reply Flagsmith may still apply the write.
    #[arg(long, value_name = "DURATION")]
    pub late_write_window: Option<String>,
    /// What a write's answer without traits means: halt delivery, or stored where the environment hides sensitive data.
    #[arg(long, value_name = "halt|stored")]
    pub blank_echo: Option<String>,
    /// How often a canary trait proves that what is written stays, at least 10s.
    #[arg(long, value_name = "DURATION")]
    pub canary_interval: Option<String>,
    /// Open connections of the webhook listener at most.
    #[arg(long, value_name = "CONNECTIONS")]
    pub max_connections: Option<String>,
    /// How long a change may wait so that several cohorts of one identity share one call.
    #[arg(long, value_name = "DURATION")]
    pub linger: Option<String>,
    /// Concurrent calls to a destination at most.
    #[arg(long, value_name = "CALLS")]
    pub max_in_flight: Option<String>,
    /// Calls a second to a destination at most; a fraction allows fewer than one.
    #[arg(long, value_name = "RATE")]
    pub max_calls_per_second: Option<String>,
    /// Calls to a destination a calendar month (UTC) at most; delivery halts before it makes more.
    #[arg(long, value_name = "CALLS")]
    pub call_budget: Option<String>,
    /// Take pages in and call nobody, to show what would be called: see plan.
    #[arg(long)]
    pub dry_run: bool,
    /// Size of a webhook's body at most, from 64KiB to 1GiB.
    #[arg(long, value_name = "SIZE")]
    pub max_body_size: Option<String>,
    /// How long a stop waits for what is in flight, at most 10m.
    #[arg(long, value_name = "DURATION")]
    pub shutdown_grace: Option<String>,
    /// How log lines look on standard error.
    #[arg(long, value_name = "text|json")]
    pub log_format: Option<String>,
    /// TOML file of what does not fit on a command line: several sources and destinations, and which trait some cohorts get.
    #[arg(long, value_name = "PATH")]
    pub config: Option<String>,
}

/// How `demo` ends.
#[derive(Args, Clone, Debug)]
pub struct DemoArgs {
    /// Stay up, with the status page, until Ctrl-C.
    #[arg(long, env = "COHORT_BRIDGE_STAY", hide_env_values = true, value_parser = FalseyValueParser::new())]
    pub stay: bool,
}

/// What `health` asks, as written on the command line.
#[derive(Args, Clone, Debug, Default)]
pub struct HealthArgs {
    /// Where the service's admin listener binds; one on all addresses is asked on loopback.
    #[arg(long, value_name = "IP:PORT")]
    pub admin_listen: Option<String>,
    /// Ask whether pages can be taken in (/readyz), not only whether the process runs (/livez).
    #[arg(long, env = "COHORT_BRIDGE_READY", hide_env_values = true, value_parser = FalseyValueParser::new())]
    pub ready: bool,
}

/// The settings of `replay`, as written on the command line.
#[derive(Args, Clone, Debug)]
pub struct ReplayArgs {
    /// The webhook to send to.
    #[arg(long, value_name = "URL")]
    pub url: Option<String>,
    /// Authenticate by HTTP Basic, as Mixpanel does.
    #[arg(long, value_name = "USER:PASSWORD")]
    pub basic_auth: Option<SecretString>,
    /// Sign requests by Standard Webhooks with this whsec_… secret, as relays do.
    #[arg(long, value_name = "SECRET")]
    pub signing_secret: Option<SecretString>,
    /// Pages a second at most.
    #[arg(long, value_name = "N")]
    pub rate: Option<String>,
    /// Files (one payload, a JSON array of payloads, or NDJSON), folders in name order, or - for standard input.
    #[arg(value_name = "PATH", required = true)]
    pub paths: Vec<PathBuf>,
}

/// How an operator's command reaches the service and shows what it learns.
#[derive(Args, Clone, Debug, Default)]
pub struct OperatorArgs {
    /// The admin listener.
    #[arg(long, value_name = "URL")]
    pub admin_url: Option<String>,
    /// The service's admin token; other users see flags, so better set the variable.
    #[arg(long, value_name = "TOKEN")]
    pub admin_token: Option<SecretString>,
    /// Print the admin API's JSON as it came.
    #[arg(long, env = "COHORT_BRIDGE_JSON", hide_env_values = true, value_parser = FalseyValueParser::new())]
    pub json: bool,
}

/// An operator's action on a running service.
#[derive(Debug, Subcommand)]
pub enum OperatorCommand {
    /// Traits that could not be written: list them, try them again, or drop them.
    DeadLetters {
        /// What to do with them.
        #[command(subcommand)]
        command: DeadLettersCommand,
    },
    /// Write every trait of a cohort or a destination again, behind whatever is new.
    Resync(ResyncArgs),
    /// Let every member of a cohort leave, and then forget it but for its trait key.
    Retire(CohortArgs),
    /// Write nothing of a cohort, or nothing to a destination, until it is resumed.
    Pause(PauseArgs),
    /// Write again what is wanted by now.
    Resume(PauseArgs),
    /// Show how many calls it takes to write what is pending.
    Plan {
        /// How to reach the service.
        #[command(flatten)]
        operator: OperatorArgs,
    },
    /// Removals that wait for a decision: show them, approve them, or discard them.
    HeldRemovals {
        /// What to do with them.
        #[command(subcommand)]
        command: HeldRemovalsCommand,
    },
    /// Show every cohort and where its delivery stands.
    Cohorts {
        /// How to reach the service.
        #[command(flatten)]
        operator: OperatorArgs,
    },
    /// Show the cohorts of one person and where their delivery stands.
    Member {
        /// The Flagsmith identifier.
        #[arg(value_name = "ID")]
        identifier: String,
        /// How to reach the service.
        #[command(flatten)]
        operator: OperatorArgs,
    },
    /// Erase one person from the ledger; who is still in a cohort comes back with its next full sync.
    Forget {
        /// The Flagsmith identifier.
        #[arg(value_name = "ID")]
        identifier: String,
        /// Remove the person's traits from Flagsmith too; without it they stay there as they are.
        #[arg(long)]
        delete_traits: bool,
        /// How to reach the service.
        #[command(flatten)]
        operator: OperatorArgs,
    },
}

/// Which cohort is meant.
#[derive(Args, Clone, Debug)]
pub struct CohortArgs {
    /// The cohort's source, such as default.
    #[arg(value_name = "SOURCE")]
    pub source: String,
    /// Mixpanel's id of the cohort.
    #[arg(value_name = "COHORT_ID")]
    pub cohort_id: String,
    /// How to reach the service.
    #[command(flatten)]
    pub operator: OperatorArgs,
}

/// What is to be written again, or no longer.
#[derive(Args, Clone, Debug)]
pub struct ResyncArgs {
    /// The cohort's source, such as default.
    #[arg(
        value_name = "SOURCE",
        requires = "cohort_id",
        required_unless_present = "destination"
    )]
    pub source: Option<String>,
    /// Mixpanel's id of the cohort.
    #[arg(value_name = "COHORT_ID")]
    pub cohort_id: Option<String>,
    /// Only at this destination; without a cohort, all cohorts that go there.
    #[arg(long, value_name = "NAME")]
    pub destination: Option<String>,
    /// Calls a second that this may cause at most, below what the destination takes; fractions too.
    #[arg(long, value_name = "RATE", value_parser = rate)]
    pub max_calls_per_second: Option<f64>,
    /// Cancel it instead, as far as it was not reached.
    #[arg(long, conflicts_with = "max_calls_per_second")]
    pub cancel: bool,
    /// How to reach the service.
    #[command(flatten)]
    pub operator: OperatorArgs,
}

fn rate(value: &str) -> Result<f64, String> {
    let rate = value.parse().ok();
    rate.filter(|rate: &f64| *rate > 0.0 && rate.is_finite())
        .ok_or_else(|| "give a number of calls a second above 0, such as 20 or 0.5".to_owned())
}

impl ResyncArgs {
    fn into_action(self) -> (OperatorArgs, Action) {
        let of = match (self.source.zip(self.cohort_id), self.destination) {
            (Some((source, cohort_id)), destination) => ResyncOf::Cohort {
                source,
                cohort_id,
                destination,
            },
            // Without a cohort there is a destination.
            (None, destination) => ResyncOf::Destination(destination.unwrap_or_default()),
        };
        let action = if self.cancel {
            Action::CancelResync(of)
        } else {
            Action::Resync {
                of,
                max_calls_per_second: self.max_calls_per_second,
            }
        };
        (self.operator, action)
    }
}

/// What to do with held removals.
#[derive(Debug, Subcommand)]
pub enum HeldRemovalsCommand {
    /// Show how many there are, and since when.
    Show(CohortArgs),
    /// They are right: these people leave the cohort.
    Approve(CohortArgs),
    /// They are wrong: these people keep the trait until the next full sync.
    Discard(CohortArgs),
}

/// What to do with dead letters.
#[derive(Debug, Subcommand)]
pub enum DeadLettersCommand {
    /// Show them, oldest first.
    List {
        /// How to reach the service.
        #[command(flatten)]
        operator: OperatorArgs,
    },
    /// Try them again.
    Retry(DeadLetterArgs),
    /// Drop them: the traits stay as Flagsmith has them.
    Drop(DeadLetterArgs),
}

/// Which dead letters are meant: all of them, unless a flag narrows it.
#[derive(Args, Clone, Debug)]
pub struct DeadLetterArgs {
    /// Only those of this destination.
    #[arg(long, value_name = "NAME")]
    pub destination: Option<String>,
    /// Only those of this person.
    #[arg(long, value_name = "ID")]
    pub identifier: Option<String>,
    /// How to reach the service.
    #[command(flatten)]
    pub operator: OperatorArgs,
}

impl OperatorCommand {
    /// How to reach the service, and what to ask of it.
    pub fn into_action(self) -> (OperatorArgs, Action) {
        let selection = |destination, identifier| Selection {
            destination,
            identifier,
        };
        match self {
            OperatorCommand::DeadLetters { command } => match command {
                DeadLettersCommand::List { operator } => (operator, Action::DeadLetters),
                DeadLettersCommand::Retry(args) => (
                    args.operator,
                    Action::RetryDeadLetters(selection(args.destination, args.identifier)),
                ),
                DeadLettersCommand::Drop(args) => (
                    args.operator,
                    Action::DropDeadLetters(selection(args.destination, args.identifier)),
                ),
            },
            OperatorCommand::Resync(args) => args.into_action(),
            OperatorCommand::Retire(CohortArgs {
                source,
                cohort_id,
                operator,
            }) => (operator, Action::Retire { source, cohort_id }),
            OperatorCommand::Pause(args) => args.into_action(true),
            OperatorCommand::Resume(args) => args.into_action(false),
            OperatorCommand::Plan { operator } => (operator, Action::Plan),
            OperatorCommand::HeldRemovals { command } => command.into_action(),
            OperatorCommand::Cohorts { operator } => (operator, Action::Cohorts),
            OperatorCommand::Member {
                identifier,
                operator,
            } => (operator, Action::Member { identifier }),
            OperatorCommand::Forget {
                identifier,
                delete_traits,
                operator,
            } => {
                let forget = Action::Forget {
                    identifier,
                    delete_traits,
                };
                (operator, forget)
            }
        }
    }
}

impl HeldRemovalsCommand {
    fn into_action(self) -> (OperatorArgs, Action) {
        let (cohort, decision) = match self {
            HeldRemovalsCommand::Show(cohort) => (cohort, None),
            HeldRemovalsCommand::Approve(cohort) => (cohort, Some(Decision::Approve)),
            HeldRemovalsCommand::Discard(cohort) => (cohort, Some(Decision::Discard)),
        };
        let CohortArgs {
            source,
            cohort_id,
            operator,
        } = cohort;
        let action = match decision {
            None => Action::HeldRemovals { source, cohort_id },
            Some(decision) => Action::DecideHeldRemovals {
                source,
                cohort_id,
                decision,
            },
        };
        (operator, action)
    }
}

/// Reads this process's command line; on wrong usage says what is right and exits 2.
pub fn parse() -> Cli {
    try_parse_from(std::env::args_os()).unwrap_or_else(|error| error.exit())
}

/// Reads a command line, its first word being the program's name.
///
/// # Errors
///
/// What is wrong with it, or the text of `--help` and `--version`.
pub fn try_parse_from<I, T>(arguments: I) -> Result<Cli, clap::Error>
where
    I: IntoIterator<Item = T>,
    T: Into<OsString> + Clone,
{
    command()
        .try_get_matches_from(arguments)
        .and_then(|matches| Cli::from_arg_matches(&matches))
}

/// The command line with each setting's variable and default in its help.
pub fn command() -> clap::Command {
    let mut command =
        Cli::command().mut_subcommand("replay", |replay| with_notes(replay, setting::REPLAY));
    command = command.mut_subcommand("health", |health| with_notes(health, setting::HEALTH));
    command = command.mut_subcommand("backup", |backup| with_notes(backup, setting::BACKUP));
    command = command.mut_subcommand("migrate-store", |it| with_notes(it, setting::MIGRATE));
    for name in ["dead-letters", "held-removals"] {
        command = command.mut_subcommand(name, |group| {
            group.mut_subcommands(|action| with_notes(action, setting::OPERATOR))
        });
    }
    for name in ["serve", "check"] {
        command = command.mut_subcommand(name, |serve| with_notes(serve, setting::SERVE));
    }
    for name in [
        "resync", "retire", "pause", "resume", "plan", "cohorts", "member", "forget",
    ] {
        command = command.mut_subcommand(name, |action| with_notes(action, setting::OPERATOR));
    }
    command
}

fn with_notes(command: clap::Command, settings: &[Setting]) -> clap::Command {
    command.mut_args(|argument| {
        let flag = argument.get_long().map(|long| format!("--{long}"));
        let setting = settings
            .iter()
            .find(|setting| flag.as_deref() == Some(setting.flag));
        match (setting, argument.get_help().map(ToString::to_string)) {
            (Some(setting), Some(help)) => argument.help(format!("{help} {}", setting.help_note())),
            _ => argument,
        }
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// The help of a command, by flag: its line, signature included.
    fn help_lines(command_name: &str) -> BTreeMap<String, String> {
        let mut command = command().term_width(0);
        let help = command
            .find_subcommand_mut(command_name)
            .expect("the command exists")
            .clone()
            .term_width(0)
            .render_long_help()
            .to_string();
        let mut lines: BTreeMap<String, String> = BTreeMap::new();
        let mut flag = String::new();
        for line in help.lines().map(str::trim) {
            if let Some(start) = line.find("--").filter(|_| line.starts_with('-')) {
                flag = line[start..]
                    .split([' ', ','])
                    .next()
                    .unwrap_or("")
                    .to_owned();
            }
            let kept = lines.entry(flag.clone()).or_default();
            kept.push_str(line);
            kept.push(' ');
        }
        lines
    }

    #[test]
    fn the_definition_is_sound() {
        command().debug_assert();
    }

    /// Flag, unit, variable and default of each setting, as the interface fixes them.
    const SERVE: &[(&str, &str, &str, &str)] = &[
        (
            "--listen",
            "<IP:PORT>",
            "COHORT_BRIDGE_LISTEN",
            "0.0.0.0:8080",
        ),
        (
            "--admin-listen",
            "<IP:PORT>",
            "COHORT_BRIDGE_ADMIN_LISTEN",
            "127.0.0.1:9090",
        ),
        (
            "--admin-token",
            "<TOKEN>",
            "COHORT_BRIDGE_ADMIN_TOKEN, COHORT_BRIDGE_ADMIN_TOKEN_FILE",
            "none",
        ),
        (
            "--database-url",
            "<URL>",
            "DATABASE_URL, DATABASE_URL_FILE",
            "sqlite://cohort-bridge.db",
        ),
        (
            "--webhook-basic-auth",
            "<USER:PASSWORD>",
            "COHORT_BRIDGE_WEBHOOK_BASIC_AUTH, COHORT_BRIDGE_WEBHOOK_BASIC_AUTH_FILE",
            "none",
        ),
        (
            "--webhook-signing-secret",
            "<SECRET>",
            "COHORT_BRIDGE_WEBHOOK_SIGNING_SECRET, COHORT_BRIDGE_WEBHOOK_SIGNING_SECRET_FILE",
            "none",
        ),
        (
            "--flagsmith-api-url",
            "<URL>",
            "COHORT_BRIDGE_FLAGSMITH_API_URL",
            "https://edge.api.flagsmith.com/api/v1/",
        ),
        (
            "--flagsmith-kind",
            "<sdk|core-bulk>",
            "COHORT_BRIDGE_FLAGSMITH_KIND",
            "sdk",
        ),
        ("--allow-http", "", "COHORT_BRIDGE_ALLOW_HTTP", "false"),
        ("--ca-file", "<PATH>", "COHORT_BRIDGE_CA_FILE", "none"),
        (
            "--identifier-property",
            "<NAMES>",
            "COHORT_BRIDGE_IDENTIFIER_PROPERTY",
            "mixpanel_distinct_id",
        ),
        (
            "--trait-key",
            "<TEMPLATE>",
            "COHORT_BRIDGE_TRAIT_KEY",
            "mixpanel_cohort_{name}",
        ),
        (
            "--anonymous",
            "<skip|keep>",
            "COHORT_BRIDGE_ANONYMOUS",
            "skip",
        ),
        (
            "--hold-removals-above",
            "<PEOPLE,PERCENT>",
            "COHORT_BRIDGE_HOLD_REMOVALS_ABOVE",
            "none",
        ),
        (
            "--on-leave",
            "<false|delete>",
            "COHORT_BRIDGE_ON_LEAVE",
            "false",
        ),
        (
            "--late-write-window",
            "<DURATION>",
            "COHORT_BRIDGE_LATE_WRITE_WINDOW",
            "60s",
        ),
        (
            "--blank-echo",
            "<halt|stored>",
            "COHORT_BRIDGE_BLANK_ECHO",
            "halt",
        ),
        (
            "--canary-interval",
            "<DURATION>",
            "COHORT_BRIDGE_CANARY_INTERVAL",
            "15m",
        ),
        (
            "--max-connections",
            "<CONNECTIONS>",
            "COHORT_BRIDGE_MAX_CONNECTIONS",
            "4096",
        ),
        ("--linger", "<DURATION>", "COHORT_BRIDGE_LINGER", "1s"),
        (
            "--max-in-flight",
            "<CALLS>",
            "COHORT_BRIDGE_MAX_IN_FLIGHT",
            "64",
        ),
        (
            "--max-calls-per-second",
            "<RATE>",
            "COHORT_BRIDGE_MAX_CALLS_PER_SECOND",
            "none",
        ),
        (
            "--call-budget",
            "<CALLS>",
            "COHORT_BRIDGE_CALL_BUDGET",
            "none",
        ),
        ("--dry-run", "", "COHORT_BRIDGE_DRY_RUN", "false"),
        (
            "--max-body-size",
            "<SIZE>",
            "COHORT_BRIDGE_MAX_BODY_SIZE",
            "16MiB",
        ),
        (
            "--shutdown-grace",
            "<DURATION>",
            "COHORT_BRIDGE_SHUTDOWN_GRACE",
            "25s",
        ),
        (
            "--log-format",
            "<text|json>",
            "COHORT_BRIDGE_LOG_FORMAT",
            "text on a terminal, else json",
        ),
        ("--config", "<PATH>", "COHORT_BRIDGE_CONFIG", "none"),
    ];

    #[test]
    fn help_shows_every_setting_with_unit_variable_and_default() {
        for command_name in ["serve", "check"] {
            let lines = help_lines(command_name);
            for (flag, unit, variable, default) in SERVE {
                let line = &lines[*flag];
                assert!(line.contains(unit), "{line}");
                assert!(
                    line.contains(&format!("[env: {variable}] [default: {default}]")),
                    "{line}"
                );
            }
            let key = &lines["--flagsmith-environment-key"];
            assert!(key.contains("[env: COHORT_BRIDGE_FLAGSMITH_ENVIRONMENT_KEY, COHORT_BRIDGE_FLAGSMITH_ENVIRONMENT_KEY_FILE] [required, unless the settings file names destinations]"), "{key}");
            assert!(lines["--allow-unauthenticated"].contains("[flag only]"));
        }
    }

    #[test]
    fn every_flag_of_serve_is_in_the_tables() {
        let lines = help_lines("serve");
        let flags = lines.keys().filter(|flag| !flag.is_empty()).count();
        // The table, the key that is required, the flag without a variable, and --help.
        assert_eq!(flags, SERVE.len() + 3);
        assert_eq!(setting::SERVE.len(), SERVE.len() + 1);
    }

    #[test]
    fn help_of_the_other_commands_shows_variables_and_defaults() {
        for command_name in [
            "cohorts", "member", "resync", "forget", "plan", "pause", "resume",
        ] {
            let lines = help_lines(command_name);
            assert!(
                lines["--admin-url"]
                    .contains("[env: COHORT_BRIDGE_ADMIN_URL] [default: http://127.0.0.1:9090]")
            );
            assert!(lines["--admin-token"].contains("[env: COHORT_BRIDGE_ADMIN_TOKEN, "));
            assert!(lines["--json"].contains("[env: COHORT_BRIDGE_JSON]"));
        }
        let lines = help_lines("health");
        assert!(
            lines["--admin-listen"]
                .contains("[env: COHORT_BRIDGE_ADMIN_LISTEN] [default: 127.0.0.1:9090]")
        );
        assert!(lines["--ready"].contains("[env: COHORT_BRIDGE_READY]"));
        let lines = help_lines("replay");
        for (flag, variable) in [
            ("--url", "URL"),
            ("--basic-auth", "BASIC_AUTH"),
            ("--signing-secret", "SIGNING_SECRET"),
            ("--rate", "RATE"),
        ] {
            assert!(
                lines[flag].contains(&format!("[env: COHORT_BRIDGE_{variable}")),
                "{flag}"
            );
        }
        let lines = help_lines("backup");
        assert!(lines["--database-url"].contains("[env: DATABASE_URL, DATABASE_URL_FILE]"));
        let lines = help_lines("migrate-store");
        assert!(lines["--from"].contains("[env: COHORT_BRIDGE_FROM] [default: DATABASE_URL]"));
        assert!(lines["--to"].contains("[env: COHORT_BRIDGE_TO, COHORT_BRIDGE_TO_FILE]"));
        for (group, name) in [("dead-letters", "drop"), ("held-removals", "approve")] {
            let help = command()
                .find_subcommand_mut(group)
                .expect("the command exists")
                .find_subcommand_mut(name)
                .expect("the command exists")
                .render_long_help()
                .to_string();
            assert!(help.contains("COHORT_BRIDGE_ADMIN_URL"), "{help}");
        }
    }

    #[test]
    fn every_command_of_the_interface_is_read() {
        for line in [
            "serve",
            "serve --listen 127.0.0.1:0 --allow-unauthenticated --allow-http",
            "check --log-format text",
            "health",
            "health --ready --admin-listen [::1]:9090",
            "demo",
            "demo --stay",
            "replay fixtures",
            "replay --url http://h --basic-auth u:p --signing-secret whsec_x --rate 5 a b -",
            "dead-letters list",
            "dead-letters retry --destination default",
            "dead-letters drop --identifier x --json",
            "resync default 42",
            "cohorts --admin-url http://h:1 --admin-token t",
            "member someone",
            "forget someone",
            "forget someone --delete-traits",
            "retire default 42",
            "plan --json",
            "backup --to copy.db --database-url sqlite://ledger.db",
            "migrate-store --from sqlite://ledger.db --to postgres://u:p@h/d",
            "held-removals show default 42",
            "held-removals approve default 42 --json",
            "held-removals discard default 42 --admin-url http://h:1",
        ] {
            let words = std::iter::once("cohort-bridge").chain(line.split(' '));
            assert!(try_parse_from(words).is_ok(), "{line}");
        }
    }

    #[test]
    fn wrong_usage_exits_2() {
        for line in [
            "",
            "fly",
            "serve --lisen 0.0.0.0:1",
            "serve extra",
            "health --listen 0.0.0.0:1",
            "replay",
            "resync default",
            "retire default",
            "held-removals",
            "held-removals default 42",
            "held-removals approve default",
            "forget",
            "member",
            "dead-letters",
            "cohorts --listen 0.0.0.0:1",
        ] {
            let words = ["cohort-bridge"].into_iter().chain(line.split_whitespace());
            let error = try_parse_from(words).expect_err(line);
            assert_eq!(error.exit_code(), 2, "{line}");
        }
        let help = try_parse_from(["cohort-bridge", "serve", "--help"]).expect_err("help");
        assert_eq!(help.exit_code(), 0);
    }

    #[test]
    fn operator_commands_become_actions() {
        let action = |line: &str| {
            let words = std::iter::once("cohort-bridge").chain(line.split(' '));
            match try_parse_from(words).expect("valid").command {
                Command::Operator(command) => command.into_action().1,
                other => panic!("not an operator's command: {other:?}"),
            }
        };
        assert_eq!(action("cohorts"), Action::Cohorts);
        assert_eq!(action("plan"), Action::Plan);
        assert_eq!(action("dead-letters list"), Action::DeadLetters);
        assert_eq!(
            action("dead-letters retry --destination a --identifier b"),
            Action::RetryDeadLetters(Selection {
                destination: Some("a".into()),
                identifier: Some("b".into()),
            })
        );
        assert_eq!(
            action("dead-letters drop"),
            Action::DropDeadLetters(Selection::default())
        );
        let cohort = |destination: Option<&str>| ResyncOf::Cohort {
            source: "eu".into(),
            cohort_id: "7".into(),
            destination: destination.map(str::to_owned),
        };
        assert_eq!(
            action("resync eu 7"),
            Action::Resync {
                of: cohort(None),
                max_calls_per_second: None
            }
        );
        assert_eq!(
            action("resync eu 7 --destination b --max-calls-per-second 0.5"),
            Action::Resync {
                of: cohort(Some("b")),
                max_calls_per_second: Some(0.5)
            }
        );
        assert_eq!(
            action("resync --destination b --cancel"),
            Action::CancelResync(ResyncOf::Destination("b".into()))
        );
        for wrong in [
            "resync",
            "resync eu",
            "resync eu --destination b",
            "resync eu 7 --cancel --max-calls-per-second 2",
            "resync eu 7 --max-calls-per-second 0",
            "resync eu 7 --max-calls-per-second inf",
        ] {
            let line = format!("cohort-bridge {wrong}");
            try_parse_from(line.split(' ')).expect_err(wrong);
        }
        assert_eq!(
            action("member x"),
            Action::Member {
                identifier: "x".into()
            }
        );
        for (line, delete_traits) in [("forget x", false), ("forget x --delete-traits", true)] {
            let forget = Action::Forget {
                identifier: "x".into(),
                delete_traits,
            };
            assert_eq!(action(line), forget);
        }
        let (source, cohort_id) = ("eu".to_owned(), "7".to_owned());
        assert_eq!(
            action("held-removals show eu 7"),
            Action::HeldRemovals {
                source: source.clone(),
                cohort_id: cohort_id.clone()
            }
        );
        for (word, decision) in [
            ("approve", Decision::Approve),
            ("discard", Decision::Discard),
        ] {
            assert_eq!(
                action(&format!("held-removals {word} eu 7")),
                Action::DecideHeldRemovals {
                    source: source.clone(),
                    cohort_id: cohort_id.clone(),
                    decision
                }
            );
        }
        assert_eq!(action("retire eu 7"), Action::Retire { source, cohort_id });
    }

    #[test]
    fn secrets_are_not_in_debug_output() {
        let cli = try_parse_from([
            "cohort-bridge",
            "serve",
            "--admin-token=hush",
            "--webhook-basic-auth=u:hush",
            "--webhook-signing-secret=hush",
            "--flagsmith-environment-key=hush",
            "--database-url=postgres://u:hush@h/d",
        ])
        .expect("valid");
        assert!(!format!("{cli:?}").contains("hush"));
    }
}
