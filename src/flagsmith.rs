//! The client of one Flagsmith environment: every answer becomes a [`Disposition`].
//!
//! It sends and judges; when to try again is the dispatcher's business. The one exception is a
//! connection that breaks off before any answer, which an idle connection closed by the server
//! looks like: such a call is repeated at once, once, because every call here may be repeated.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use reqwest::{Client, Method, redirect};
use secrecy::{ExposeSecret, SecretString};
use serde::ser::{Serialize, SerializeStruct, Serializer};
use serde_json::Value;
use url::{Host, Url};

use crate::cohort::{DestinationName, Target};
use crate::config::{BlankEcho, Destination, Kind};
use crate::meter::Meter;

mod authorities;
mod bulk;
mod disposition;
mod echo;
mod storage;
mod transport;

pub use authorities::Authorities;
pub use bulk::{BulkAnswer, BulkVerdict, Group, MAX_ROWS};
use disposition::{Answer, Trouble};
pub use disposition::{Disposition, MAX_RETRY_AFTER, Scope};
pub use storage::{BlankVerdict, CANARY, Storage};
pub use transport::Call;
use transport::Observer;

/// Flagsmith's header for the environment key.
const ENVIRONMENT_KEY: HeaderName = HeaderName::from_static("x-environment-key");

/// How long a connection may lie idle before it is not used again: gunicorn closes idle
/// connections after 2 s, which leaves half a second for the request's way.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_millis(1500);

/// Why the client could not be built, or a read brought nothing.
#[derive(Debug, thiserror::Error)]
pub enum FlagsmithError {
    /// The environment key is empty or holds what no header may hold.
    #[error(
        "the environment key must be printable ASCII and not empty \
         (COHORT_BRIDGE_FLAGSMITH_ENVIRONMENT_KEY)"
    )]
    Key,
    /// The API address is no base that paths can be joined to.
    #[error(
        "the API address must begin with http:// or https:// and end in a slash \
         (COHORT_BRIDGE_FLAGSMITH_API_URL)"
    )]
    Url,
    /// The HTTP client could not be set up, for want of root certificates for example.
    #[error("the HTTP client could not be set up")]
    Client(#[source] reqwest::Error),
    /// A passing trouble: try again later.
    #[error("{error}")]
    Later {
        /// What Flagsmith asked for, at most [`MAX_RETRY_AFTER`].
        retry_after: Option<Duration>,
        /// For a person.
        error: String,
    },
    /// Flagsmith does not take this identifier.
    #[error("{error}")]
    Refused {
        /// For a person.
        error: String,
    },
    /// A person has to change something.
    #[error("{reason}")]
    Halt {
        /// For a person: what is wrong and what to switch.
        reason: String,
    },
}

impl From<Trouble> for FlagsmithError {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::Later {
                retry_after, error, ..
            } => FlagsmithError::Later { retry_after, error },
            Trouble::Refused { error } => FlagsmithError::Refused { error },
            Trouble::Halt { reason } => FlagsmithError::Halt { reason },
        }
    }
}

/// What bounds a call.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// For a connection to stand, TLS included.
    pub connect_timeout: Duration,
    /// For a whole call, answer read. Flagsmith stalls for 5–8 s once a minute on a database that
    /// was never analysed, and works on after its client has left: patience is cheaper.
    pub call_timeout: Duration,
    /// For a whole call of `traits/bulk/`, answer read. Flagsmith goes through the rows one by
    /// one: measured under load, a hundred take 0.8 s and a thousand 10 s; a stall of 8 s and a
    /// queue of such calls come on top, and giving up early leaves every row in doubt.
    pub bulk_timeout: Duration,
    /// How long an HTTP/2 connection with calls under way may be silent before it is asked whether
    /// it is still there, and how long the answer to that may take. Flagsmith's stalls are no such
    /// silence: whoever holds the connection answers that.
    pub http2_silence: Duration,
    /// Bytes of an answer that are read. Every answer carries the environment's flags: 400 flags
    /// (Edge's limit) with values of 20,000 characters (the limit of one) make 8 MB.
    pub max_answer_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connect_timeout: Duration::from_secs(5),
            call_timeout: Duration::from_secs(30),
            bulk_timeout: Duration::from_secs(60),
            http2_silence: Duration::from_secs(5),
            max_answer_bytes: 16 * 1024 * 1024,
        }
    }
}

/// The client of one destination. Clones share their connections; hold one a destination.
#[derive(Clone)]
pub struct Flagsmith {
    name: DestinationName,
    http: Client,
    headers: HeaderMap,
    identities: Url,
    bulk: Url,
    bulk_timeout: Duration,
    kind: Kind,
    blank_echo: BlankEcho,
    max_answer_bytes: usize,
    observer: Option<Observer>,
    meter: Option<Arc<Meter>>,
}

impl fmt::Debug for Flagsmith {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The address may hold a password, the headers hold the key.
        f.debug_struct("Flagsmith")
            .field("name", &self.name)
            .field("host", &self.identities.host_str())
            .finish_non_exhaustive()
    }
}

impl Flagsmith {
    /// A client with the usual [`Limits`].
    ///
    /// # Errors
    ///
    /// When the key or the address cannot be used, or TLS cannot be set up. No call is made.
    pub fn new(destination: &Destination) -> Result<Self, FlagsmithError> {
        Self::with_limits(destination, Limits::default())
    }

    /// A client with limits of its own.
    ///
    /// # Errors
    ///
    /// As [`Flagsmith::new`].
    pub fn with_limits(destination: &Destination, limits: Limits) -> Result<Self, FlagsmithError> {
        let base = &destination.api_url;
        if !matches!(base.scheme(), "http" | "https") || !base.path().ends_with('/') {
            return Err(FlagsmithError::Url);
        }
        let join = |path| base.join(path).map_err(|_| FlagsmithError::Url);
        let mut builder = Client::builder()
            .redirect(redirect::Policy::none())
            .referer(false)
            .connect_timeout(limits.connect_timeout)
            .timeout(limits.call_timeout)
            .pool_max_idle_per_host(destination.max_in_flight)
            .pool_idle_timeout(POOL_IDLE_TIMEOUT)
            .tcp_nodelay(true)
            // Over HTTP/2 all calls share a connection: one that is dead must be noticed, or each
            // call would wait for its time limit on it.
            .http2_keep_alive_interval(limits.http2_silence)
            .http2_keep_alive_timeout(limits.http2_silence);
        if base.scheme() == "http" {
            // Without TLS there is nothing to load root certificates for, and images without any
            // must still work.
            builder = builder.tls_certs_only(std::iter::empty());
        } else if let Some(authorities) = &destination.authorities {
            builder = builder.tls_certs_merge(authorities.certificates());
        }
        if is_loopback(base) {
            builder = builder.no_proxy();
        }
        Ok(Flagsmith {
            name: destination.name.clone(),
            http: builder.build().map_err(FlagsmithError::Client)?,
            headers: headers(destination.environment_key.expose_secret())?,
            identities: join("identities/")?,
            bulk: join("traits/bulk/")?,
            bulk_timeout: limits.bulk_timeout,
            kind: destination.kind,
            blank_echo: destination.blank_echo,
            max_answer_bytes: limits.max_answer_bytes,
            observer: None,
            meter: None,
        })
    }

    /// The same client, over the same connections, with another environment key.
    ///
    /// # Errors
    ///
    /// [`FlagsmithError::Key`].
    pub fn with_key(&self, key: &SecretString) -> Result<Self, FlagsmithError> {
        Ok(Flagsmith {
            headers: headers(key.expose_secret())?,
            ..self.clone()
        })
    }

    /// Has every HTTP call reported to `observer`, repeated ones too.
    pub fn observed_by(mut self, observer: impl Fn(Call) + Send + Sync + 'static) -> Self {
        self.observer = Some(Arc::new(observer));
        self
    }

    /// Has every HTTP call pass `meter`, repeated ones too.
    pub fn metered_by(mut self, meter: Arc<Meter>) -> Self {
        self.meter = Some(meter);
        self
    }

    /// Brings the traits of one identity to their targets in one call. Keys must differ: of a key
    /// sent twice Flagsmith may show one value and store the other. Without traits no call is made.
    ///
    /// In an environment that shows no traits a deletion counts as written unseen; the canary is
    /// what finds a key there that may not write.
    pub async fn write(&self, identifier: &str, traits: &[(&str, Target)]) -> Disposition {
        if traits.is_empty() {
            return Disposition::Written {
                may_land_late: false,
            };
        }
        let body = match identity_body(identifier, traits) {
            Ok(body) => body,
            Err(trouble) => return trouble.into(),
        };
        let answer = self.answer(&Method::POST, &self.identities, Some(&body));
        let answer = match answer.await {
            Ok(answer) => answer,
            Err(trouble) => return trouble.without(identifier).into(),
        };
        let is_repeated = answer.repeated;
        let judged = match answer.ok(transport::now()) {
            Ok(answer) => echo::judge(&answer.body, identifier, traits)
                .without(identifier)
                .without(self.key()),
            Err(trouble) => trouble.without(identifier).into(),
        };
        match is_repeated {
            true => mark_late(judged),
            false => judged,
        }
    }

    /// The stored traits of an identity as Flagsmith shows them. Creates the identity where it is
    /// unknown, as every such read does.
    ///
    /// # Errors
    ///
    /// [`FlagsmithError::Later`], [`FlagsmithError::Refused`] or [`FlagsmithError::Halt`].
    pub async fn read(&self, identifier: &str) -> Result<Vec<(String, Value)>, FlagsmithError> {
        self.read_traits(identifier)
            .await
            .map_err(|trouble| trouble.without(identifier).into())
    }

    /// The answer to reading an identity.
    async fn show(&self, identifier: &str) -> Result<Answer, Trouble> {
        let mut url = self.identities.clone();
        url.query_pairs_mut().append_pair("identifier", identifier);
        self.call(&Method::GET, &url, None).await
    }

    async fn read_traits(&self, identifier: &str) -> Result<Vec<(String, Value)>, Trouble> {
        let answer = self.show(identifier).await?;
        echo::traits(&answer.body, identifier).map_err(|trouble| trouble.without(self.key()))
    }
}

/// A first sending broke off, so whatever the second brought, the first may still be applied.
fn mark_late(disposition: Disposition) -> Disposition {
    match disposition {
        // The next call meets the same, and nothing of it lands late.
        Disposition::Refused { error }
        | Disposition::NotStored { error }
        | Disposition::Halt { reason: error } => Disposition::Later {
            scope: Scope::Identity,
            retry_after: None,
            may_land_late: true,
            error,
        },
        mut other => {
            if let Disposition::Written { may_land_late }
            | Disposition::BlankEcho { may_land_late }
            | Disposition::Later { may_land_late, .. } = &mut other
            {
                *may_land_late = true;
            }
            other
        }
    }
}

fn headers(key: &str) -> Result<HeaderMap, FlagsmithError> {
    if key.trim().is_empty() {
        return Err(FlagsmithError::Key);
    }
    let mut key = HeaderValue::from_str(key).map_err(|_| FlagsmithError::Key)?;
    key.set_sensitive(true);
    let json = HeaderValue::from_static("application/json");
    let agent = HeaderValue::from_static(concat!("cohort-bridge/", env!("CARGO_PKG_VERSION")));
    Ok(HeaderMap::from_iter([
        (USER_AGENT, agent),
        (ENVIRONMENT_KEY, key),
        (CONTENT_TYPE, json.clone()),
        (ACCEPT, json),
    ]))
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

/// A trait as it is sent.
struct Sent<'a, V>(&'a str, V);

impl<V: Serialize> Serialize for Sent<'_, V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut sent = serializer.serialize_struct("Sent", 2)?;
        sent.serialize_field("trait_key", self.0)?;
        sent.serialize_field("trait_value", &self.1)?;
        sent.end()
    }
}

struct SentAll<'a>(&'a [(&'a str, Target)]);

impl Serialize for SentAll<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(
            self.0
                .iter()
                .map(|&(key, target)| Sent(key, target.trait_value())),
        )
    }
}

#[derive(serde::Serialize)]
struct Identity<'a, T> {
    identifier: &'a str,
    traits: T,
}

fn identity_body(identifier: &str, traits: &[(&str, Target)]) -> Result<Bytes, Trouble> {
    json(&Identity {
        identifier,
        traits: SentAll(traits),
    })
}

fn json(value: &impl Serialize) -> Result<Bytes, Trouble> {
    let body = serde_json::to_vec(value).map_err(|error| Trouble::Refused {
        error: format!("it cannot be written as JSON: {error}"),
    })?;
    Ok(body.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cohort::OnLeave;

    fn destination(url: &str, key: &str) -> Destination {
        Destination {
            name: "default".into(),
            api_url: url.parse().unwrap(),
            authorities: None,
            environment_key: key.into(),
            kind: Kind::Sdk,
            on_leave: OnLeave::False,
            blank_echo: BlankEcho::Halt,
            linger: Duration::ZERO,
            max_in_flight: 1,
            max_calls_per_second: None,
            call_budget: None,
            dry_run: false,
            late_write_window: Duration::ZERO,
            canary_interval: Duration::ZERO,
        }
    }

    #[test]
    fn the_body_is_what_flagsmith_documents() {
        let traits = [
            ("a\"", Target::True),
            ("b", Target::False),
            ("c", Target::Absent),
        ];
        let body = String::from_utf8(identity_body("ü\n", &traits).unwrap().into()).unwrap();
        assert_eq!(
            body,
            r#"{"identifier":"ü\n","traits":[{"trait_key":"a\"","trait_value":true},{"trait_key":"b","trait_value":false},{"trait_key":"c","trait_value":null}]}"#
        );
    }

    #[test]
    fn an_unusable_key_or_address_is_refused_at_once() {
        let url = "http://127.0.0.1:1/api/v1/";
        for key in ["", " ", "a\nb", "a\0"] {
            let refused = Flagsmith::new(&destination(url, key));
            assert!(matches!(refused, Err(FlagsmithError::Key)), "{key:?}");
        }
        for url in ["http://127.0.0.1:1/api/v1", "ftp://127.0.0.1/", "data:x"] {
            let refused = Flagsmith::new(&destination(url, "key"));
            assert!(matches!(refused, Err(FlagsmithError::Url)), "{url}");
        }
    }

    #[test]
    fn debug_shows_neither_key_nor_password() {
        let client =
            Flagsmith::new(&destination("http://me:pass@127.0.0.1:1/api/v1/", "ser.k")).unwrap();
        let shown = format!("{client:?} {:?}", client.headers);
        assert!(
            !shown.contains("ser.k") && !shown.contains("pass"),
            "{shown}"
        );
    }

    #[test]
    fn the_addresses_end_in_a_slash() {
        let client = Flagsmith::new(&destination("http://localhost/x/api/v1/", "k")).unwrap();
        assert_eq!(client.identities.path(), "/x/api/v1/identities/");
        assert_eq!(client.bulk.path(), "/x/api/v1/traits/bulk/");
    }
}
