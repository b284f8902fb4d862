//! The table of settings: flag, variable and default of each, once for `--help` and for reading.

/// One setting: a flag and the variable that stands in for it.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// With its dashes, such as `--listen`.
    pub flag: &'static str,
    /// The environment variable.
    pub variable: &'static str,
    /// What holds where neither is given.
    pub fallback: Fallback,
    /// How its value is treated.
    pub exposure: Exposure,
    /// Whether it names a file: in the settings file a relative path begins in that file's folder.
    pub names_file: bool,
}

/// What holds where a setting is not given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fallback {
    /// This value, as it would be written.
    Value(&'static str),
    /// Something that only words describe.
    Described(&'static str),
    /// Nothing: it must be given, here or for each destination of the settings file.
    Required,
}

/// How freely a setting's value may be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exposure {
    /// Faults quote it.
    Plain,
    /// A URL, in which people hide passwords: faults do not quote it.
    Url,
    /// Never shown; may come from a file that the variable with `_FILE` at its end names.
    Secret,
}

/// What documents say of a setting that must be given.
pub const REQUIRED: &str = "required, unless the settings file names destinations";

impl Setting {
    const fn new(flag: &'static str, variable: &'static str, fallback: Fallback) -> Self {
        Setting {
            flag,
            variable,
            fallback,
            exposure: Exposure::Plain,
            names_file: false,
        }
    }

    const fn url(mut self) -> Self {
        self.exposure = Exposure::Url;
        self
    }

    const fn path(mut self) -> Self {
        self.names_file = true;
        self
    }

    const fn secret(mut self) -> Self {
        self.exposure = Exposure::Secret;
        self
    }

    /// What faults call it: flag and variable.
    pub fn names(&self) -> String {
        format!("{} ({})", self.flag, self.variable)
    }

    /// Its key in the tables of the settings file: the flag's name, as far as the table does not say
    /// it.
    pub fn key(&self) -> String {
        let name = self.flag.trim_start_matches('-');
        let name = name
            .strip_prefix("webhook-")
            .or_else(|| name.strip_prefix("flagsmith-"))
            .unwrap_or(name);
        name.replace('-', "_")
    }

    /// The variable that names a file with the value; secrets alone have one.
    pub fn file_variable(&self) -> Option<String> {
        (self.exposure == Exposure::Secret).then(|| format!("{}_FILE", self.variable))
    }

    /// The end of the setting's line in `--help`, such as `[env: X] [default: Y]`.
    pub fn help_note(&self) -> String {
        let variables = match self.file_variable() {
            Some(file) => format!("{}, {file}", self.variable),
            None => self.variable.to_owned(),
        };
        match self.fallback {
            Fallback::Value(default) | Fallback::Described(default) => {
                format!("[env: {variables}] [default: {default}]")
            }
            Fallback::Required => format!("[env: {variables}] [{REQUIRED}]"),
        }
    }
}

use Fallback::{Described, Required, Value};

/// What most optional settings fall back to.
const NONE: Fallback = Described("none");

pub(crate) const LISTEN: Setting =
    Setting::new("--listen", "COHORT_BRIDGE_LISTEN", Value("0.0.0.0:8080"));
pub(crate) const ADMIN_LISTEN: Setting = Setting::new(
    "--admin-listen",
    "COHORT_BRIDGE_ADMIN_LISTEN",
    Value("127.0.0.1:9090"),
);
pub(crate) const ADMIN_TOKEN: Setting =
    Setting::new("--admin-token", "COHORT_BRIDGE_ADMIN_TOKEN", NONE).secret();
pub(crate) const DATABASE_URL: Setting = Setting::new(
    "--database-url",
    "DATABASE_URL",
    Value("sqlite://cohort-bridge.db"),
)
.secret();
pub(crate) const WEBHOOK_BASIC_AUTH: Setting = Setting::new(
    "--webhook-basic-auth",
    "COHORT_BRIDGE_WEBHOOK_BASIC_AUTH",
    NONE,
)
.secret();
pub(crate) const WEBHOOK_SIGNING_SECRET: Setting = Setting::new(
    "--webhook-signing-secret",
    "COHORT_BRIDGE_WEBHOOK_SIGNING_SECRET",
    NONE,
)
.secret();
pub(crate) const FLAGSMITH_API_URL: Setting = Setting::new(
    "--flagsmith-api-url",
    "COHORT_BRIDGE_FLAGSMITH_API_URL",
    Value("https://edge.api.flagsmith.com/api/v1/"),
)
.url();
pub(crate) const FLAGSMITH_ENVIRONMENT_KEY: Setting = Setting::new(
    "--flagsmith-environment-key",
    "COHORT_BRIDGE_FLAGSMITH_ENVIRONMENT_KEY",
    Required,
)
.secret();
pub(crate) const FLAGSMITH_KIND: Setting = Setting::new(
    "--flagsmith-kind",
    "COHORT_BRIDGE_FLAGSMITH_KIND",
    Value("sdk"),
);
pub(crate) const ALLOW_HTTP: Setting =
    Setting::new("--allow-http", "COHORT_BRIDGE_ALLOW_HTTP", Value("false"));
pub(crate) const CA_FILE: Setting = Setting::new("--ca-file", "COHORT_BRIDGE_CA_FILE", NONE).path();
pub(crate) const IDENTIFIER_PROPERTY: Setting = Setting::new(
    "--identifier-property",
    "COHORT_BRIDGE_IDENTIFIER_PROPERTY",
    Value("mixpanel_distinct_id"),
);
pub(crate) const TRAIT_KEY: Setting = Setting::new(
    "--trait-key",
    "COHORT_BRIDGE_TRAIT_KEY",
    Value("mixpanel_cohort_{name}"),
);
pub(crate) const ANONYMOUS: Setting =
    Setting::new("--anonymous", "COHORT_BRIDGE_ANONYMOUS", Value("skip"));
pub(crate) const HOLD_REMOVALS_ABOVE: Setting = Setting::new(
    "--hold-removals-above",
    "COHORT_BRIDGE_HOLD_REMOVALS_ABOVE",
    NONE,
);
pub(crate) const ON_LEAVE: Setting =
    Setting::new("--on-leave", "COHORT_BRIDGE_ON_LEAVE", Value("false"));
pub(crate) const LATE_WRITE_WINDOW: Setting = Setting::new(
    "--late-write-window",
    "COHORT_BRIDGE_LATE_WRITE_WINDOW",
    Value("60s"),
);
pub(crate) const BLANK_ECHO: Setting =
    Setting::new("--blank-echo", "COHORT_BRIDGE_BLANK_ECHO", Value("halt"));
pub(crate) const CANARY_INTERVAL: Setting = Setting::new(
    "--canary-interval",
    "COHORT_BRIDGE_CANARY_INTERVAL",
    Value("15m"),
);
pub(crate) const MAX_CONNECTIONS: Setting = Setting::new(
    "--max-connections",
    "COHORT_BRIDGE_MAX_CONNECTIONS",
    Value("4096"),
);
pub(crate) const LINGER: Setting = Setting::new("--linger", "COHORT_BRIDGE_LINGER", Value("1s"));
pub(crate) const MAX_IN_FLIGHT: Setting = Setting::new(
    "--max-in-flight",
    "COHORT_BRIDGE_MAX_IN_FLIGHT",
    Value("64"),
);
pub(crate) const MAX_CALLS_PER_SECOND: Setting = Setting::new(
    "--max-calls-per-second",
    "COHORT_BRIDGE_MAX_CALLS_PER_SECOND",
    NONE,
);
pub(crate) const CALL_BUDGET: Setting =
    Setting::new("--call-budget", "COHORT_BRIDGE_CALL_BUDGET", NONE);
pub(crate) const DRY_RUN: Setting =
    Setting::new("--dry-run", "COHORT_BRIDGE_DRY_RUN", Value("false"));
pub(crate) const MAX_BODY_SIZE: Setting = Setting::new(
    "--max-body-size",
    "COHORT_BRIDGE_MAX_BODY_SIZE",
    Value("16MiB"),
);
pub(crate) const SHUTDOWN_GRACE: Setting = Setting::new(
    "--shutdown-grace",
    "COHORT_BRIDGE_SHUTDOWN_GRACE",
    Value("25s"),
);
pub(crate) const LOG_FORMAT: Setting = Setting::new(
    "--log-format",
    "COHORT_BRIDGE_LOG_FORMAT",
    Described("text on a terminal, else json"),
);
pub(crate) const CONFIG: Setting = Setting::new("--config", "COHORT_BRIDGE_CONFIG", NONE);

pub(crate) const ADMIN_URL: Setting = Setting::new(
    "--admin-url",
    "COHORT_BRIDGE_ADMIN_URL",
    Value("http://127.0.0.1:9090"),
)
.url();

pub(crate) const REPLAY_URL: Setting = Setting::new(
    "--url",
    "COHORT_BRIDGE_URL",
    Value("http://127.0.0.1:8080/webhooks/mixpanel"),
)
.url();
pub(crate) const REPLAY_BASIC_AUTH: Setting =
    Setting::new("--basic-auth", "COHORT_BRIDGE_BASIC_AUTH", NONE).secret();
pub(crate) const REPLAY_SIGNING_SECRET: Setting =
    Setting::new("--signing-secret", "COHORT_BRIDGE_SIGNING_SECRET", NONE).secret();
pub(crate) const REPLAY_RATE: Setting =
    Setting::new("--rate", "COHORT_BRIDGE_RATE", Described("no limit"));

pub(crate) const FROM: Setting =
    Setting::new("--from", "COHORT_BRIDGE_FROM", Described("DATABASE_URL")).url();
pub(crate) const TO: Setting =
    Setting::new("--to", "COHORT_BRIDGE_TO", Described("required")).secret();

/// The settings of `serve` and `check`, but for `--allow-unauthenticated`, which has no variable.
pub const SERVE: &[Setting] = &[
    LISTEN,
    ADMIN_LISTEN,
    ADMIN_TOKEN,
    DATABASE_URL,
    WEBHOOK_BASIC_AUTH,
    WEBHOOK_SIGNING_SECRET,
    FLAGSMITH_API_URL,
    FLAGSMITH_ENVIRONMENT_KEY,
    FLAGSMITH_KIND,
    ALLOW_HTTP,
    CA_FILE,
    IDENTIFIER_PROPERTY,
    TRAIT_KEY,
    ANONYMOUS,
    HOLD_REMOVALS_ABOVE,
    ON_LEAVE,
    LATE_WRITE_WINDOW,
    BLANK_ECHO,
    CANARY_INTERVAL,
    MAX_CONNECTIONS,
    LINGER,
    MAX_IN_FLIGHT,
    MAX_CALLS_PER_SECOND,
    CALL_BUDGET,
    DRY_RUN,
    MAX_BODY_SIZE,
    SHUTDOWN_GRACE,
    LOG_FORMAT,
    CONFIG,
];

/// The settings of the operator's commands.
pub const OPERATOR: &[Setting] = &[ADMIN_URL, ADMIN_TOKEN];

/// The settings of `health`.
pub const HEALTH: &[Setting] = &[ADMIN_LISTEN];

/// The settings of `replay`.
pub const REPLAY: &[Setting] = &[
    REPLAY_URL,
    REPLAY_BASIC_AUTH,
    REPLAY_SIGNING_SECRET,
    REPLAY_RATE,
];

/// The settings of `backup`.
pub const BACKUP: &[Setting] = &[DATABASE_URL];

/// The settings of `migrate-store`.
pub const MIGRATE: &[Setting] = &[FROM, TO];

/// Variables of switches that the command line reads by itself.
const SWITCHES: &[&str] = &[
    "COHORT_BRIDGE_STAY",
    "COHORT_BRIDGE_JSON",
    "COHORT_BRIDGE_READY",
];

/// Every variable that any command knows, those of files included.
pub fn variables() -> impl Iterator<Item = String> {
    [SERVE, OPERATOR, REPLAY, MIGRATE]
        .into_iter()
        .flatten()
        .flat_map(|setting| {
            std::iter::once(setting.variable.to_owned()).chain(setting.file_variable())
        })
        .chain(SWITCHES.iter().map(|&variable| variable.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_the_flags_in_capitals() {
        for setting in [SERVE, OPERATOR, REPLAY, MIGRATE].into_iter().flatten() {
            let capitals = setting.flag[2..].to_uppercase().replace('-', "_");
            let expected = match setting.flag {
                "--database-url" => capitals,
                _ => format!("COHORT_BRIDGE_{capitals}"),
            };
            assert_eq!(setting.variable, expected);
        }
    }
}
