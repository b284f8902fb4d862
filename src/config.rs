//! Typed settings with units; all faults reported at once.
//!
//! A flag beats its variable; a secret's variable with `_FILE` at its end names a file that holds
//! the value; an empty variable counts as not set; an unknown `COHORT_BRIDGE_…` variable is a
//! fault. [`setting`] is the table that `--help` and the readers share.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use secrecy::SecretString;
use url::Url;

pub use self::client::{AdminEndpoint, HealthQuestion, ReplaySettings};
pub use self::environment::Environment;
pub use self::moving::{BackupSettings, MigrateSettings};
pub use self::reader::{ConfigError, Fault};
pub use self::rolling::{News, RefusedFile, SecretFile, SecretFiles, Seen};
pub use crate::store::Database;

use crate::cohort::{DestinationName, OnLeave, SourceName};
use crate::flagsmith::Authorities;
use crate::guard::RemovalGuard;
use crate::http::authenticate::Credentials;
use crate::mixpanel::IdentifierRules;
use crate::route::Routes;
use crate::trait_key::{ExplicitKey, TraitKeyTemplate};

mod client;
mod environment;
mod file;
mod files;
mod layers;
mod moving;
mod parse;
mod parts;
mod reader;
mod rolling;
mod serve;
pub mod setting;
mod source;

/// Everything `serve` needs, checked.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where the public webhook listener binds.
    pub listen: SocketAddr,
    /// Where the admin listener binds.
    pub admin_listen: SocketAddr,
    /// The bearer token of changing admin calls.
    pub admin_token: Option<SecretString>,
    /// Where the ledger is.
    pub database: Database,
    /// Mixpanel connections; at least one.
    pub sources: Vec<Arc<Source>>,
    /// Flagsmith environments; at least one.
    pub destinations: Vec<Arc<Destination>>,
    /// Which cohorts go to which of them.
    pub routes: Routes,
    /// Open connections the webhook listener holds at most.
    pub max_connections: usize,
    /// Bytes of a webhook's body at most.
    pub max_body_bytes: usize,
    /// How long SIGTERM waits for what is in flight.
    pub shutdown_grace: Duration,
    /// How log lines look.
    pub log_format: LogFormat,
    /// Which log lines are wanted, as in `RUST_LOG`.
    pub log_filter: String,
    /// What is allowed but unwise, a sentence each; to be logged at the start.
    pub warnings: Vec<String>,
}

/// One Mixpanel connection.
#[derive(Clone, Debug)]
pub struct Source {
    /// As in the webhook's path.
    pub name: SourceName,
    /// Who may send.
    pub credentials: Credentials,
    /// Which property of a member is the Flagsmith identifier.
    pub identifier: IdentifierRules,
    /// How the trait key of a new cohort is made.
    pub trait_key: TraitKeyTemplate,
    /// The trait keys of cohorts that the settings file names.
    pub explicit_keys: Vec<ExplicitKey>,
    /// Which removals wait until somebody approves them; without it none do.
    pub hold_removals_above: Option<RemovalGuard>,
}

/// One Flagsmith environment.
#[derive(Clone, Debug)]
pub struct Destination {
    /// As in metrics and the admin API.
    pub name: DestinationName,
    /// Base of the SDK API, ending in a slash, such as `https://edge.api.flagsmith.com/api/v1/`.
    pub api_url: Url,
    /// Authorities that may have signed its certificate, beside those of the machine.
    pub authorities: Option<Authorities>,
    /// Sent as `X-Environment-Key`.
    pub environment_key: SecretString,
    /// By which of Flagsmith's endpoints traits are written.
    pub kind: Kind,
    /// What a leaver's trait becomes.
    pub on_leave: OnLeave,
    /// What a blank echo means where it cannot be judged.
    pub blank_echo: BlankEcho,
    /// How long a change may wait so that several cohorts of one identity share one call.
    pub linger: Duration,
    /// Concurrent calls at most.
    pub max_in_flight: usize,
    /// Calls a second at most; without it as many as the destination answers.
    pub max_calls_per_second: Option<f64>,
    /// Calls a calendar month (UTC) at most; without it as many as there is reason for.
    pub call_budget: Option<u64>,
    /// Whether nobody is called, to show what would be.
    pub dry_run: bool,
    /// How long after a time-out Flagsmith may still apply the write.
    pub late_write_window: Duration,
    /// How often the canary proves that a written trait stays.
    pub canary_interval: Duration,
}

/// By which of Flagsmith's endpoints traits are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Kind {
    /// `POST identities/`, one identity a call: what every Flagsmith has.
    #[default]
    Sdk,
    /// `PUT traits/bulk/`, about a hundred traits a call: only a Flagsmith of one's own (Core).
    CoreBulk,
}

impl Kind {
    /// The words for it in settings.
    pub const WORDS: [(&'static str, Kind); 2] =
        [("sdk", Kind::Sdk), ("core-bulk", Kind::CoreBulk)];

    /// Reads one of [`Kind::WORDS`].
    ///
    /// # Errors
    ///
    /// What to write instead.
    pub fn parse(value: &str) -> Result<Self, String> {
        parse::one_of(&Self::WORDS)(value)
    }
}

/// What `"traits":[]` in an answer to a write means where `traits/bulk/` cannot tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum BlankEcho {
    /// Not stored: stop and say so.
    #[default]
    Halt,
    /// Stored: the environment hides sensitive data.
    Stored,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For a person at a terminal.
    Text,
    /// One JSON object a line.
    Json,
}
