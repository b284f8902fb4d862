//! The settings of the commands that talk to a running service.

use std::net::SocketAddr;
use std::path::PathBuf;

use secrecy::{ExposeSecret, SecretString};
use url::Url;

use super::environment::Environment;
use super::files::Files;
use super::reader::{ConfigError, Reader};
use super::{parse, setting};
use crate::cli::{HealthArgs, OperatorArgs, ReplayArgs};
use crate::signature::SigningSecret;

/// Where the admin API is and who asks.
#[derive(Clone, Debug)]
pub struct AdminEndpoint {
    /// The admin listener's base, ending in a slash.
    pub url: Url,
    /// The bearer token of changing calls and of reads that name a person.
    pub token: Option<SecretString>,
}

impl AdminEndpoint {
    /// Reads what the operator's commands need.
    ///
    /// # Errors
    ///
    /// All faults at once, as [`Settings::from_args`](super::Settings::from_args) does.
    pub fn from_args(args: &OperatorArgs, environment: &Environment) -> Result<Self, ConfigError> {
        let files = Files::default();
        let mut reader = Reader::new(environment, &files);
        let url = reader.value(
            &setting::ADMIN_URL,
            args.admin_url.as_deref(),
            parse::base_url,
        );
        let token = reader.optional(
            &setting::ADMIN_TOKEN,
            args.admin_token.as_ref().map(ExposeSecret::expose_secret),
            parse::header_secret,
        );
        let endpoint = url.and_then(|url| Ok(AdminEndpoint { url, token: token? }));
        reader.finish(endpoint)
    }
}

/// What `health` asks, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthQuestion {
    /// Where the admin listener binds, as the service itself is told.
    pub admin_listen: SocketAddr,
    /// Whether pages can be taken in, rather than whether the process runs.
    pub ready: bool,
}

impl HealthQuestion {
    /// Reads what `health` needs.
    ///
    /// # Errors
    ///
    /// All faults at once, as [`Settings::from_args`](super::Settings::from_args) does.
    pub fn from_args(args: &HealthArgs, environment: &Environment) -> Result<Self, ConfigError> {
        let files = Files::default();
        let mut reader = Reader::new(environment, &files);
        let admin_listen = reader.value(
            &setting::ADMIN_LISTEN,
            args.admin_listen.as_deref(),
            parse::address,
        );
        let question = admin_listen.map(|admin_listen| HealthQuestion {
            admin_listen,
            ready: args.ready,
        });
        reader.finish(question)
    }
}

/// What `replay` sends, where to and how.
#[derive(Clone, Debug)]
pub struct ReplaySettings {
    /// The webhook's URL.
    pub url: Url,
    /// `user:password`, sent as Mixpanel sends it.
    pub basic_auth: Option<SecretString>,
    /// `whsec_…`: requests are signed as relays sign them.
    pub signing_secret: Option<SecretString>,
    /// Pages a second at most; positive. `None`: as fast as the answers come.
    pub rate: Option<f64>,
    /// Files and folders; `-` is standard input.
    pub paths: Vec<PathBuf>,
}

impl ReplaySettings {
    /// Reads what `replay` needs.
    ///
    /// # Errors
    ///
    /// All faults at once, as [`Settings::from_args`](super::Settings::from_args) does.
    pub fn from_args(args: &ReplayArgs, environment: &Environment) -> Result<Self, ConfigError> {
        let files = Files::default();
        let mut reader = Reader::new(environment, &files);
        let url = reader.value(&setting::REPLAY_URL, args.url.as_deref(), parse::web_url);
        let basic_auth = reader.optional(
            &setting::REPLAY_BASIC_AUTH,
            args.basic_auth.as_ref().map(ExposeSecret::expose_secret),
            user_and_password,
        );
        let signing_secret = reader.optional(
            &setting::REPLAY_SIGNING_SECRET,
            args.signing_secret
                .as_ref()
                .map(ExposeSecret::expose_secret),
            signing_secret,
        );
        let rate = reader.optional(
            &setting::REPLAY_RATE,
            args.rate.as_deref(),
            parse::rate("pages"),
        );
        let settings = url.and_then(|url| {
            Ok(ReplaySettings {
                url,
                basic_auth: basic_auth?,
                signing_secret: signing_secret?,
                rate: rate?,
                paths: args.paths.clone(),
            })
        });
        reader.finish(settings)
    }
}

fn signing_secret(value: &str) -> Result<SecretString, String> {
    SigningSecret::parse(value)
        .map(|_| SecretString::from(value))
        .map_err(|fault| format!("it {fault}"))
}

fn user_and_password(value: &str) -> Result<SecretString, String> {
    match value.split_once(':') {
        Some((user, _)) if !user.is_empty() => Ok(SecretString::from(value)),
        _ => Err("write user:password".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Operator {
        #[command(flatten)]
        args: OperatorArgs,
    }

    #[derive(Parser)]
    struct Health {
        #[command(flatten)]
        args: HealthArgs,
    }

    #[derive(Parser)]
    struct Replay {
        #[command(flatten)]
        args: ReplayArgs,
    }

    fn endpoint(
        flags: &[&str],
        variables: &[(&str, &str)],
    ) -> Result<(String, Option<String>), ConfigError> {
        let arguments = Operator::parse_from([&["x"], flags].concat());
        AdminEndpoint::from_args(&arguments.args, &variables.iter().copied().collect()).map(
            |endpoint| {
                let token = endpoint.token.map(|token| token.expose_secret().to_owned());
                (endpoint.url.into(), token)
            },
        )
    }

    fn replay(flags: &[&str], variables: &[(&str, &str)]) -> Result<ReplaySettings, ConfigError> {
        let arguments = Replay::parse_from([&["x", "fixtures"], flags].concat());
        ReplaySettings::from_args(&arguments.args, &variables.iter().copied().collect())
    }

    #[test]
    fn the_admin_endpoint_defaults_to_loopback_without_a_token() {
        let endpoint = endpoint(&[], &[]).expect("defaults are valid");
        assert_eq!(endpoint, ("http://127.0.0.1:9090/".to_owned(), None));
    }

    #[test]
    fn flags_beat_variables() {
        let variables = [
            ("COHORT_BRIDGE_ADMIN_URL", "http://variable:1"),
            ("COHORT_BRIDGE_ADMIN_TOKEN", "variable"),
        ];
        let (url, token) = endpoint(&[], &variables).expect("valid");
        assert_eq!(
            (url.as_str(), token.as_deref()),
            ("http://variable:1/", Some("variable"))
        );
        let flags = ["--admin-url", "http://flag:2", "--admin-token", "flag"];
        let (url, token) = endpoint(&flags, &variables).expect("valid");
        assert_eq!(
            (url.as_str(), token.as_deref()),
            ("http://flag:2/", Some("flag"))
        );
    }

    #[test]
    fn faults_of_the_admin_endpoint_come_together() {
        let error = endpoint(
            &[],
            &[
                ("COHORT_BRIDGE_ADMIN_URL", "http://u:hush@h"),
                ("COHORT_BRIDGE_ADMIN_TOKEN", "hush hush"),
                ("COHORT_BRIDGE_ADMIN_TOKNE", "hush"),
            ],
        )
        .expect_err("three faults");
        assert_eq!(error.faults().len(), 3, "{error}");
        assert!(!error.to_string().contains("hush"), "{error}");
    }

    #[test]
    fn health_asks_where_the_service_listens() {
        let asked = |flags: &[&str], variables: &[(&str, &str)]| {
            let arguments = Health::parse_from([&["x"], flags].concat());
            HealthQuestion::from_args(&arguments.args, &variables.iter().copied().collect())
        };
        let everybody = [("COHORT_BRIDGE_ADMIN_LISTEN", "0.0.0.0:1")];
        for (flags, variables, listen, ready) in [
            (&[][..], &[][..], "127.0.0.1:9090", false),
            (&["--ready"], &everybody, "0.0.0.0:1", true),
            (&["--admin-listen", "[::1]:2"], &everybody, "[::1]:2", false),
        ] {
            let expected = HealthQuestion {
                admin_listen: listen.parse().expect("an address"),
                ready,
            };
            assert_eq!(asked(flags, variables).expect("valid"), expected);
        }
        let slips = [
            ("COHORT_BRIDGE_ADMIN_LISTEN", "9090"),
            ("COHORT_BRIDGE_ADMIN_LITSEN", "127.0.0.1:9090"),
        ];
        let error = asked(&[], &slips).expect_err("two faults");
        assert_eq!(error.faults().len(), 2, "{error}");
    }

    #[test]
    fn replay_reads_flags_and_variables() {
        let settings = replay(&[], &[]).expect("defaults are valid");
        assert_eq!(
            settings.url.as_str(),
            "http://127.0.0.1:8080/webhooks/mixpanel"
        );
        assert_eq!(settings.paths, [PathBuf::from("fixtures")]);
        assert!(settings.basic_auth.is_none() && settings.rate.is_none());

        let settings = replay(
            &["--rate", "2.5", "--basic-auth", "u:p:q"],
            &[
                ("COHORT_BRIDGE_RATE", "1"),
                (
                    "COHORT_BRIDGE_URL",
                    "https://h.example/webhooks/mixpanel/eu",
                ),
                (
                    "COHORT_BRIDGE_SIGNING_SECRET",
                    "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD",
                ),
            ],
        )
        .expect("valid");
        assert_eq!(settings.rate, Some(2.5));
        assert_eq!(
            settings.url.as_str(),
            "https://h.example/webhooks/mixpanel/eu"
        );
        assert_eq!(settings.basic_auth.expect("given").expose_secret(), "u:p:q");
        assert_eq!(
            settings.signing_secret.expect("given").expose_secret(),
            "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"
        );
    }

    #[test]
    fn faults_of_replay_come_together() {
        let flags = ["--rate", "0", "--basic-auth", "hush", "--url", "x"];
        let error = replay(&flags, &[]).expect_err("three faults");
        assert_eq!(error.faults().len(), 3, "{error}");
        assert!(!error.to_string().contains("hush"), "{error}");
    }
}
