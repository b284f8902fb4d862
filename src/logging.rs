//! Log lines on standard error, and the form in which identifiers may appear in them.

use std::fmt;
use std::io::{self, IsTerminal};

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use tracing::level_filters::LevelFilter;
use tracing::{Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::{FilterExt, Targets};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::registry::Registry;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

use crate::config::LogFormat;

/// Which log lines are wanted where `RUST_LOG` does not say.
pub const DEFAULT_FILTER: &str = "info";

/// What the targets of this program's own lines begin with.
const OWN_TARGET: &str = "cohort_bridge";

/// Bytes of an identifier's hash that are shown: among a hundred million people two share one with
/// a chance of 1 in 3,700.
const SHOWN_HASH_BYTES: usize = 8;

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// The filter is not one.
    #[error("the log filter is not usable: {0}")]
    Filter(String),
    /// Logging was set up before.
    #[error("logging is already set up")]
    AlreadySet(#[from] TryInitError),
}

/// Sends log lines to standard error for the rest of the process.
///
/// # Errors
///
/// [`LoggingError::Filter`] where [`check_filter`] would refuse the filter;
/// [`LoggingError::AlreadySet`] the second time.
pub fn init(format: LogFormat, filter: &str) -> Result<(), LoggingError> {
    // Colours are for eyes alone, and not for those who asked for none (no-color.org).
    let colours = io::stderr().is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    subscriber(format, filter, colours, io::stderr)?.try_init()?;
    Ok(())
}

/// Whether `filter` can be used as `RUST_LOG`.
///
/// # Errors
///
/// What would be right. A bare word that is no level is refused, although the syntax takes it for
/// a target: with `RUST_LOG=inof` nothing would be logged.
pub fn check_filter(filter: &str) -> Result<(), String> {
    const ADVICE: &str =
        "write error, warn, info, debug, trace or off, or targets such as cohort_bridge=debug";

    let stray_word = !filter.contains('[')
        && filter.split(',').any(|directive| {
            !directive.is_empty()
                && !directive.contains('=')
                && !directive.starts_with(OWN_TARGET)
                && directive.parse::<LevelFilter>().is_err()
        });
    if stray_word {
        return Err(ADVICE.to_owned());
    }
    EnvFilter::builder()
        .parse(filter)
        .map(|_| ())
        .map_err(|error| format!("{ADVICE} ({error})"))
}

/// Below `info`, HTTP and TLS libraries write down headers, bodies and URLs, secrets and people
/// included. Whatever the filter asks for, only this program's own lines go deeper.
fn ceiling() -> Targets {
    Targets::new()
        .with_default(Level::INFO)
        .with_target(OWN_TARGET, Level::TRACE)
        // An ERROR line for every stranger who does not speak HTTP.
        .with_target("actix_http::h1::dispatcher", LevelFilter::OFF)
}

fn subscriber<W>(
    format: LogFormat,
    filter: &str,
    colours: bool,
    writer: W,
) -> Result<impl Subscriber + Send + Sync + 'static, LoggingError>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    check_filter(filter).map_err(LoggingError::Filter)?;
    let wanted = EnvFilter::builder()
        .parse(filter)
        .map_err(|error| LoggingError::Filter(error.to_string()))?;
    let lines = tracing_subscriber::fmt::layer().with_writer(writer);
    let lines: Box<dyn Layer<Registry> + Send + Sync> = match format {
        LogFormat::Text => lines.with_ansi(colours).boxed(),
        LogFormat::Json => lines
            .json()
            .flatten_event(true)
            .with_span_list(false)
            .boxed(),
    };
    Ok(tracing_subscriber::registry().with(lines.with_filter(wanted.and(ceiling()))))
}

/// Turns identifiers into what logs may show: the same person is recognised from line to line,
/// and without the ledger's key nobody learns who it is.
#[derive(Clone)]
pub struct IdentifierHash {
    keyed: Hmac<Sha256>,
}

impl IdentifierHash {
    /// Hashes under the ledger's own key.
    pub fn new(key: &[u8; 32]) -> Self {
        // HMAC fills a short key with zeros to the block, so this is the same key (RFC 2104).
        let mut block = [0; 64];
        block[..key.len()].copy_from_slice(key);
        IdentifierHash {
            keyed: Hmac::new(&block.into()),
        }
    }

    /// The form of `identifier` that may be logged.
    pub fn of(&self, identifier: &str) -> HashedIdentifier {
        let mac = self
            .keyed
            .clone()
            .chain_update(identifier)
            .finalize()
            .into_bytes();
        let mut shown = [0; SHOWN_HASH_BYTES];
        shown.copy_from_slice(&mac[..SHOWN_HASH_BYTES]);
        HashedIdentifier(shown)
    }
}

impl fmt::Debug for IdentifierHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdentifierHash").finish_non_exhaustive()
    }
}

/// An identifier as logs may show it: 16 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct HashedIdentifier([u8; SHOWN_HASH_BYTES]);

impl fmt::Display for HashedIdentifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for HashedIdentifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0
                .lock()
                .expect("not poisoned")
                .extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: LogFormat, filter: &str, log: impl FnOnce()) -> String {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = subscriber(format, filter, false, move || writer.clone()).expect("usable");
        tracing::subscriber::with_default(subscriber, log);
        let bytes = lines.0.lock().expect("not poisoned").clone();
        String::from_utf8(bytes).expect("UTF-8")
    }

    #[test]
    fn other_libraries_never_go_below_info() {
        for filter in [
            "trace",
            "hyper=trace,h2=trace,reqwest=trace,rustls=trace,actix_http=trace,cohort_bridge=trace",
            "trace,hyper::proto::h1=trace,[{authorization}]=trace",
        ] {
            for format in [LogFormat::Text, LogFormat::Json] {
                let text = logged(format, filter, || {
                    tracing::trace!(target: "hyper::proto::h1", "hush");
                    tracing::debug!(target: "h2::codec", authorization = "hush");
                    tracing::trace!(target: "reqwest::connect", "hush");
                    tracing::debug!(target: "rustls::client", "hush");
                    tracing::trace!(target: "actix_http::h1", "hush");
                    tracing::trace!(target: "some_library_of_tomorrow", "hush");
                    let span =
                        tracing::trace_span!(target: "hyper", "call", authorization = "hush");
                    span.in_scope(|| tracing::trace!(target: "cohort_bridge::dispatch", "our own"));
                    tracing::info!(target: "hyper", "a word of theirs");
                });
                assert!(!text.contains("hush"), "{filter}: {text}");
                assert!(text.contains("our own"), "{filter}: {text}");
                assert!(
                    !filter.starts_with("trace") || text.contains("a word of theirs"),
                    "{text}"
                );
            }
        }
    }

    #[test]
    fn the_filter_holds_for_our_own_lines() {
        let log = || {
            tracing::debug!(target: "cohort_bridge::fold", "deep");
            tracing::info!(target: "cohort_bridge::fold", "plain");
            tracing::warn!(target: "cohort_bridge::dispatch", "grave");
        };
        let text = logged(LogFormat::Text, DEFAULT_FILTER, log);
        assert!(!text.contains("deep") && text.contains("plain") && text.contains("grave"));
        let text = logged(LogFormat::Text, "warn,cohort_bridge::fold=debug", log);
        assert!(text.contains("deep") && text.contains("plain") && text.contains("grave"));
        assert_eq!(logged(LogFormat::Text, "off", log), "");
    }

    #[test]
    fn json_lines_are_objects_with_fields_on_top_and_the_span() {
        let text = logged(LogFormat::Json, "info", || {
            let span =
                tracing::info_span!(target: "cohort_bridge::http", "request", request_id = "r1");
            span.in_scope(
                || tracing::info!(target: "cohort_bridge::http", status = 200, "answered"),
            );
        });
        let line: serde_json::Value = serde_json::from_str(text.trim_end()).expect("one object");
        assert_eq!(line["level"], "INFO");
        assert_eq!(line["message"], "answered");
        assert_eq!(line["status"], 200);
        assert_eq!(line["span"]["request_id"], "r1");
    }

    #[test]
    fn filters() {
        for filter in [
            "info",
            "DEBUG",
            "off",
            "warn,cohort_bridge=trace",
            "cohort_bridge::fold",
            "3",
            "[request{source=default}]=debug",
        ] {
            assert_eq!(check_filter(filter), Ok(()), "{filter}");
        }
        for filter in [
            "inof",
            "info,verbose",
            "cohort_bridge=loud",
            "a=b=c",
            "[x",
            "info, hyper=warn",
        ] {
            let fault = check_filter(filter).expect_err(filter);
            assert!(fault.contains("cohort_bridge=debug"), "{fault}");
        }
    }

    #[test]
    fn hashes_are_truncated_hmac_sha256() {
        // RFC 4231, test case 2, whose key is shorter than ours: zeros make up the difference.
        let mut key = [0; 32];
        key[..4].copy_from_slice(b"Jefe");
        let hash = IdentifierHash::new(&key);
        assert_eq!(
            hash.of("what do ya want for nothing?").to_string(),
            "5bdcc146bf60754e"
        );
    }

    #[test]
    fn hashes_depend_on_key_and_identifier_alone() {
        let (one, other) = (IdentifierHash::new(&[1; 32]), IdentifierHash::new(&[2; 32]));
        assert_eq!(one.of("a"), one.clone().of("a"));
        assert_ne!(one.of("a"), one.of("b"));
        assert_ne!(one.of("a"), other.of("a"));
        assert_eq!(one.of("").to_string().len(), 16);
        assert_eq!(format!("{:?}", one), "IdentifierHash { .. }");
    }
}
