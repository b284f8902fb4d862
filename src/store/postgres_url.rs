//! Where a PostgreSQL database is, and how it is reached.

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use rustls_platform_verifier::ConfigVerifierExt;
use secrecy::{ExposeSecret, SecretString};
use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode, TargetSessionAttrs};
use tokio_postgres_rustls::MakeRustlsConnect;

/// After how long without a sign of life the system gives a connection up.
const SILENCE: Duration = Duration::from_secs(10);

/// How long a machine may take to answer at all, before another address of its name is tried: what is lost
/// on the way is sent again after a second.
const MACHINE_PATIENCE: Duration = Duration::from_secs(2);

/// A URL such as `postgres://user:password@host:5432/database?sslmode=verify-full&sslrootcert=ca.pem`.
#[derive(Clone)]
pub struct PostgresUrl {
    text: SecretString,
    /// The servers it names, each alone; one at least.
    servers: Vec<Config>,
    /// Clones share it.
    primary: Arc<Primary>,
    tls: Tls,
}

/// What is known of the server that takes writes.
#[derive(Default)]
struct Primary {
    /// Its number, when somebody connected last.
    server: AtomicUsize,
    /// Counts how often another one was found, or the one that was known took no more.
    changes: AtomicU64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Tls {
    Off,
    /// Signed by an authority that the machine trusts.
    Platform,
    /// Signed by an authority of this file.
    Authorities(PathBuf),
}

impl PostgresUrl {
    /// Reads one. Where it does not say whether to use TLS, that is used but for hosts that
    /// `is_private`; where it is used, the server has to prove who it is.
    ///
    /// # Errors
    /// Says what is wrong with it, and not what it holds.
    pub fn parse(text: &str, is_private: impl Fn(&str) -> bool) -> Result<Self, String> {
        let (place, options) = text.split_once('?').unwrap_or((text, ""));
        let (mut mode, mut authorities, mut others) = (None, None, Vec::new());
        for option in options.split('&').filter(|option| !option.is_empty()) {
            match option.split_once('=') {
                Some(("sslmode", value)) => mode = Some(value),
                Some(("sslrootcert", path)) => authorities = Some(decoded(path)?),
                _ => others.push(option),
            }
        }
        let rest = match others.is_empty() {
            true => place.to_owned(),
            false => format!("{place}?{}", others.join("&")),
        };
        let mut config = Config::from_str(&rest).map_err(|error| without_values(&error, &rest))?;
        if config.get_hosts().is_empty() || config.get_dbname().is_none() {
            return Err(
                "name the host and the database: postgres://user:password@host:5432/database"
                    .into(),
            );
        }
        let is_private = config.get_hosts().iter().all(|host| match host {
            Host::Tcp(name) => is_private(name),
            Host::Unix(_) => true,
        });
        let tls = match (mode, authorities) {
            (Some("disable"), None) => Tls::Off,
            (Some("disable"), Some(_)) => return Err("sslmode=disable uses no sslrootcert".into()),
            (None, None) if is_private => Tls::Off,
            (Some("require" | "verify-ca" | "verify-full") | None, Some(path)) => Tls::Authorities(path.into()),
            (Some("require" | "verify-ca" | "verify-full") | None, None) => Tls::Platform,
            (Some(_), _) => return Err("sslmode is disable, require or verify-full; with the last two the server's certificate is verified".into()),
        };
        config.ssl_mode(match tls {
            Tls::Off => SslMode::Disable,
            _ => SslMode::Require,
        });
        if config.get_application_name().is_none() {
            config.application_name("cohort-bridge");
        }
        // Of several hosts the primary, whichever it is by now.
        config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        config.keepalives_idle(SILENCE).tcp_user_timeout(SILENCE);
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(MACHINE_PATIENCE);
        }
        let servers = (0..config.get_hosts().len()).map(|at| alone(&config, at));
        Ok(PostgresUrl {
            text: text.into(),
            servers: servers.collect(),
            primary: Arc::default(),
            tls,
        })
    }

    /// Where it is, for messages: neither user nor password.
    pub fn place(&self) -> String {
        let hosts = self.servers.iter().flat_map(Config::get_hosts);
        let hosts = hosts.map(|host| match host {
            Host::Tcp(name) => name.clone(),
            Host::Unix(path) => path.display().to_string(),
        });
        let hosts: Vec<_> = hosts.collect();
        let database = self.servers.first().and_then(Config::get_dbname);
        format!("{}/{}", hosts.join(","), database.unwrap_or_default())
    }

    /// The servers, with their numbers, in the order in which to try them: first the one that was the
    /// primary last.
    pub(super) fn servers(&self) -> impl Iterator<Item = (usize, &Config)> {
        let first = self.primary.server.load(Ordering::Acquire);
        let all = self.servers.iter().enumerate();
        all.clone().skip(first).chain(all.take(first))
    }

    /// Whose connections are no older than this number are to the primary, as far as is known. Another
    /// may read on from a server that is none any more, and that takes no notice of it.
    pub(super) fn epoch(&self) -> u64 {
        self.primary.changes.load(Ordering::Acquire)
    }

    /// A server turned out to be the primary, to whom somebody began to connect in that epoch; which
    /// one the connection belongs to.
    pub(super) fn is_primary(&self, server: usize, epoch: u64) -> u64 {
        if self.primary.server.swap(server, Ordering::AcqRel) == server {
            return epoch;
        }
        let changes = &self.primary.changes;
        match changes.compare_exchange(epoch, epoch + 1, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => epoch + 1,
            // Somebody knows better by now.
            Err(_) => epoch,
        }
    }

    /// The primary takes no more.
    pub(super) fn is_no_primary(&self) {
        self.primary.changes.fetch_add(1, Ordering::AcqRel);
    }

    /// How TLS is spoken; `None` where it is not.
    pub(super) fn tls(&self) -> Result<Option<MakeRustlsConnect>, String> {
        let config = match &self.tls {
            Tls::Off => return Ok(None),
            Tls::Platform => {
                ClientConfig::with_platform_verifier().map_err(|error| error.to_string())?
            }
            Tls::Authorities(path) => {
                let unusable = |error: &dyn std::fmt::Display| {
                    format!(
                        "the authorities of {} (sslrootcert): {error}",
                        path.display()
                    )
                };
                let mut roots = RootCertStore::empty();
                let certificates = CertificateDer::pem_file_iter(path).map_err(|e| unusable(&e))?;
                for certificate in certificates {
                    let certificate = certificate.map_err(|error| unusable(&error))?;
                    roots.add(certificate).map_err(|error| unusable(&error))?;
                }
                if roots.is_empty() {
                    return Err(unusable(&"there is no certificate in it"));
                }
                ClientConfig::builder()
                    .with_root_certificates(Arc::new(roots))
                    .with_no_client_auth()
            }
        };
        Ok(Some(MakeRustlsConnect::new(config)))
    }
}

impl PartialEq for PostgresUrl {
    fn eq(&self, other: &Self) -> bool {
        self.text.expose_secret() == other.text.expose_secret()
    }
}

impl Eq for PostgresUrl {}

impl std::fmt::Debug for PostgresUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PostgresUrl({})", self.place())
    }
}

/// One server of several: the library would leave those behind a silent one no time.
fn alone(config: &Config, at: usize) -> Config {
    let mut one = Config::new();
    if let Some(user) = config.get_user() {
        one.user(user);
    }
    if let Some(password) = config.get_password() {
        one.password(password);
    }
    if let Some(name) = config.get_dbname() {
        one.dbname(name);
    }
    if let Some(options) = config.get_options() {
        one.options(options);
    }
    if let Some(name) = config.get_application_name() {
        one.application_name(name);
    }
    match config.get_hosts().get(at) {
        Some(Host::Tcp(name)) => one.host(name),
        Some(Host::Unix(path)) => one.host_path(path),
        None => &mut one,
    };
    if let Some(address) = config.get_hostaddrs().get(at) {
        one.hostaddr(*address);
    }
    let ports = config.get_ports();
    if let Some(port) = ports.get(at).or(ports.first()) {
        one.port(*port);
    }
    if let Some(timeout) = config.get_connect_timeout() {
        one.connect_timeout(*timeout);
    }
    if let Some(timeout) = config.get_tcp_user_timeout() {
        one.tcp_user_timeout(*timeout);
    }
    if let Some(interval) = config.get_keepalives_interval() {
        one.keepalives_interval(interval);
    }
    if let Some(retries) = config.get_keepalives_retries() {
        one.keepalives_retries(retries);
    }
    one.keepalives(config.get_keepalives())
        .keepalives_idle(config.get_keepalives_idle())
        .ssl_mode(config.get_ssl_mode())
        .ssl_negotiation(config.get_ssl_negotiation())
        .channel_binding(config.get_channel_binding())
        .target_session_attrs(config.get_target_session_attrs())
        .clone()
}

fn decoded(text: &str) -> Result<String, String> {
    let query = format!("x={text}");
    url::form_urlencoded::parse(query.as_bytes())
        .next()
        .map(|(_, value)| value.into_owned())
        .filter(|value| !value.is_empty())
        .ok_or_else(|| "sslrootcert names a file".into())
}

/// The library's words may hold a part of the URL: an option's name is one, unless what looks like options
/// is the rest of a password that was not percent-encoded.
fn without_values(error: &tokio_postgres::Error, url: &str) -> String {
    let cause = std::error::Error::source(error).map(ToString::to_string);
    let is_option = |cause: &String| cause.starts_with("unknown option");
    let unknown = cause.filter(|cause| is_option(cause) && url.matches('@').count() < 2);
    unknown.unwrap_or_else(|| {
        "write postgres://user:password@host:5432/database, with special characters of user and password percent-encoded".into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the settings read it: names without a dot are of this network.
    fn parse(text: &str) -> Result<PostgresUrl, String> {
        PostgresUrl::parse(text, |host| !host.contains('.') || host.starts_with("127."))
    }

    fn tls_of(text: &str) -> Tls {
        parse(text).unwrap().tls
    }

    fn file() -> Tls {
        Tls::Authorities("/etc/ca.pem".into())
    }

    #[test]
    fn whether_tls_is_spoken_is_told_or_follows_from_the_host() {
        for (url, expected) in [
            ("postgres://u:p@db/x", Tls::Off),
            ("postgresql://u:p@127.0.0.1:5433/x", Tls::Off),
            ("postgres://u:p@db.example.com/x", Tls::Platform),
            ("postgres://u:p@db,db.example.com/x", Tls::Platform),
            ("postgres://u:p@db.example.com/x?sslmode=disable", Tls::Off),
            ("postgres://u:p@db/x?sslmode=require", Tls::Platform),
            ("postgres://u:p@db/x?sslmode=verify-ca", Tls::Platform),
            ("postgres://u:p@db/x?sslmode=verify-full", Tls::Platform),
            ("postgres://u:p@db/x?sslrootcert=/etc/ca.pem", file()),
            (
                "postgres://u:p@db/x?sslrootcert=%2Fetc%2Fca.pem&sslmode=require",
                file(),
            ),
            (
                "postgres://u:p@db/x?sslmode=verify-full&sslrootcert=/etc/ca.pem",
                file(),
            ),
        ] {
            assert_eq!(tls_of(url), expected, "{url}");
            let mode = parse(url).unwrap().servers[0].get_ssl_mode();
            let expected = match expected {
                Tls::Off => SslMode::Disable,
                _ => SslMode::Require,
            };
            assert_eq!(mode, expected, "{url}");
        }
    }

    #[test]
    fn a_url_that_is_no_use_says_why() {
        for (url, words) in [
            (
                "postgres://u:hush@db/x?sslmode=prefer",
                "sslmode is disable, require or",
            ),
            (
                "postgres://u:hush@db/x?sslmode=allow",
                "sslmode is disable, require or",
            ),
            (
                "postgres://u:hush@db/x?sslmode=",
                "sslmode is disable, require or",
            ),
            (
                "postgres://u:hush@db/x?sslmode=disable&sslrootcert=/etc/ca.pem",
                "uses no sslrootcert",
            ),
            ("postgres://u:hush@db/x?sslrootcert=", "names a file"),
            (
                "postgres://u:hush@db/x?no_such=1",
                "unknown option `no_such`",
            ),
            ("postgres://u:hush@db", "name the host and the database"),
            ("postgres://u:hush@db/", "name the host and the database"),
            ("postgres:///x", "name the host and the database"),
            ("postgres://u:hush@db:port/x", "percent-encoded"),
            // Passwords that were not encoded.
            ("postgres://u:a@b?hush=1@db/x", "percent-encoded"),
            ("postgres://u:a/hush@db/x", ""),
            ("postgres://u:a?hush@db/x", ""),
            ("postgres://u:a#hush@db/x", ""),
            ("postgres://u:hush:a@db/x", ""),
        ] {
            match parse(url) {
                Err(said) => {
                    assert!(said.contains(words), "{url}: {said}");
                    assert!(!said.contains("hush"), "{url}: {said}");
                }
                Ok(read) => {
                    assert!(words.is_empty(), "{url}: {read:?}");
                    assert!(!read.place().contains("hush"), "{url}: {read:?}");
                }
            }
        }
    }

    #[test]
    fn user_and_password_are_never_shown() {
        let url = parse("postgres://somebody:hush@db:5433,other/ledger?connect_timeout=5").unwrap();
        assert_eq!(url.place(), "db,other/ledger");
        assert_eq!(format!("{url:?}"), "PostgresUrl(db,other/ledger)");
        assert_eq!(url.servers[0].get_password(), Some(&b"hush"[..]));
        assert_eq!(url.servers[0].get_user(), Some("somebody"));
        assert_eq!(url.servers[0].get_application_name(), Some("cohort-bridge"));
        assert_ne!(
            url,
            parse("postgres://somebody:hush2@db:5433,other/ledger").unwrap()
        );
        let named = parse("postgres://u@db/x?application_name=mine").unwrap();
        assert_eq!(named.servers[0].get_application_name(), Some("mine"));
    }

    #[test]
    fn authorities_that_cannot_be_used_are_told_with_their_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.pem");
        let url = format!("postgres://u:hush@db/x?sslrootcert={}", path.display());
        let refused = || match parse(&url).unwrap().tls() {
            Err(said) => said,
            Ok(_) => panic!("it is no use"),
        };
        assert!(
            refused().contains("ca.pem (sslrootcert): "),
            "{}",
            refused()
        );
        std::fs::write(&path, "no certificate").unwrap();
        assert!(
            refused().ends_with("there is no certificate in it"),
            "{}",
            refused()
        );
        let damaged = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        std::fs::write(&path, damaged).unwrap();
        assert!(
            refused().contains("ca.pem (sslrootcert): "),
            "{}",
            refused()
        );
        assert!(!refused().contains("hush"));
    }

    #[test]
    fn several_servers_are_tried_one_by_one_the_primary_first() {
        let url = parse("postgres://u:hush@a:1,b:2/db").unwrap();
        let order = |url: &PostgresUrl| {
            let place =
                |server: &Config| (server.get_hosts().to_vec(), server.get_ports().to_vec());
            url.servers()
                .map(|(_, server)| place(server))
                .collect::<Vec<_>>()
        };
        let (a, b) = (
            (vec![Host::Tcp("a".into())], vec![1]),
            (vec![Host::Tcp("b".into())], vec![2]),
        );
        assert_eq!(order(&url), [a.clone(), b.clone()]);
        assert_eq!(url.is_primary(0, url.epoch()), 0);
        assert_eq!(url.clone().is_primary(1, 0), 1);
        assert_eq!((order(&url), url.epoch()), (vec![b, a], 1));
        assert_eq!(url.is_primary(1, 1), 1);
    }

    #[test]
    fn who_connected_while_the_primary_was_left_connects_again() {
        let url = parse("postgres://u:hush@a:1,b:2/db").unwrap();
        let began = url.epoch();
        url.is_no_primary();
        assert_ne!(url.is_primary(1, began), url.epoch());
    }

    #[test]
    fn nothing_that_is_said_of_all_servers_is_lost_on_one() {
        let options = "options=-c%20x%3Dy&application_name=mine&sslmode=require&sslnegotiation=direct&hostaddr=10.0.0.1\
                       &connect_timeout=7&tcp_user_timeout=8&keepalives=0&keepalives_idle=9&keepalives_interval=3\
                       &keepalives_retries=4&channel_binding=require&target_session_attrs=read-write";
        let all: Config = format!("postgres://u:hush@a:1/db?{options}")
            .parse()
            .unwrap();
        assert_eq!(alone(&all, 0), all);
    }
}
