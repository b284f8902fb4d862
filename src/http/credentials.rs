//! Who may send: HTTP Basic pairs and Standard Webhooks secrets.

use std::fmt;

use actix_web::http::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

use crate::clock::Millis;
use crate::signature::{SecretError, SignatureError, Signed, SigningSecret};

static WEBHOOK_ID: HeaderName = HeaderName::from_static("webhook-id");
static WEBHOOK_TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
static WEBHOOK_SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");

/// What a source accepts as proof. Empty credentials accept nothing.
///
/// Several pairs and several secrets may be valid at once, so that they can be rotated. Only digests
/// of the pairs are kept: they are compared by digest, so that neither length nor a common beginning
/// shows in the time it takes.
#[derive(Clone, Default)]
pub struct Credentials {
    basic: Vec<[u8; 32]>,
    signing: Vec<SigningSecret>,
    open: bool,
}

/// What is wrong with configured credentials. Never repeats them; positions count from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialsError {
    /// Nothing but white space.
    #[error("is empty")]
    Empty,
    /// Perhaps only the password was given.
    #[error("pair {position} has no colon: user:password is wanted")]
    NoColon {
        /// Which pair.
        position: usize,
    },
    /// `user:` or `:password`.
    #[error("pair {position} lacks its user or its password")]
    HalfEmpty {
        /// Which pair.
        position: usize,
    },
    /// A secret that is none.
    #[error("secret {position} {fault}")]
    Secret {
        /// Which secret.
        position: usize,
        /// What is wrong with it.
        fault: SecretError,
    },
}

/// How a request proved to be authentic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// Nothing was asked for.
    Open,
    /// HTTP Basic.
    Basic,
    /// A Standard Webhooks signature over the body.
    Signature,
}

/// Why a request is not authentic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unauthenticated {
    /// No credentials of a kind that this source takes.
    #[error("credentials are missing: set user and password of the webhook in Mixpanel")]
    Missing,
    /// A header that cannot be read, or comes twice.
    #[error("the credentials in the request are malformed")]
    Malformed,
    /// Another user, password or both.
    #[error("wrong user or password")]
    Wrong,
    /// A signature that does not count.
    #[error(transparent)]
    Signature(#[from] SignatureError),
}

impl Credentials {
    /// Takes everything, for `--allow-unauthenticated`.
    pub fn open() -> Self {
        Credentials {
            open: true,
            ..Credentials::default()
        }
    }

    /// Reads `user:password` pairs, separated by white space.
    ///
    /// # Errors
    ///
    /// [`CredentialsError`] for the first pair that is none.
    pub fn parse_basic(text: &str) -> Result<Self, CredentialsError> {
        let basic = text
            .split_whitespace()
            .zip(1..)
            .map(|(pair, position)| match pair.split_once(':') {
                None => Err(CredentialsError::NoColon { position }),
                Some(("", _) | (_, "")) => Err(CredentialsError::HalfEmpty { position }),
                Some(_) => Ok(digest(pair.as_bytes())),
            })
            .collect::<Result<Vec<_>, _>>()?;
        if basic.is_empty() {
            return Err(CredentialsError::Empty);
        }
        Ok(Credentials {
            basic,
            ..Credentials::default()
        })
    }

    /// Reads `whsec_…` secrets, separated by white space.
    ///
    /// # Errors
    ///
    /// [`CredentialsError`] for the first secret that is none.
    pub fn parse_signing(text: &str) -> Result<Self, CredentialsError> {
        let signing = text
            .split_whitespace()
            .zip(1..)
            .map(|(secret, position)| {
                SigningSecret::parse(secret)
                    .map_err(|fault| CredentialsError::Secret { position, fault })
            })
            .collect::<Result<Vec<_>, _>>()?;
        if signing.is_empty() {
            return Err(CredentialsError::Empty);
        }
        Ok(Credentials {
            signing,
            ..Credentials::default()
        })
    }

    /// Takes what either takes; open only where both are.
    #[must_use]
    pub fn and(mut self, other: Credentials) -> Self {
        self.basic.extend(other.basic);
        self.signing.extend(other.signing);
        self.open &= other.open;
        self
    }

    /// Whether everything is taken.
    pub fn is_open(&self) -> bool {
        self.open
    }

    /// Whether nothing is taken.
    pub fn is_empty(&self) -> bool {
        !self.open && self.basic.is_empty() && self.signing.is_empty()
    }

    /// Whether a request is authentic.
    ///
    /// # Errors
    ///
    /// [`Unauthenticated`], whatever the headers hold.
    pub fn verify(
        &self,
        headers: &HeaderMap,
        body: &[u8],
        now: Millis,
    ) -> Result<Proof, Unauthenticated> {
        match self.admit(headers, now)? {
            Some(proof) => Ok(proof),
            None => {
                let (id, timestamp, signatures) =
                    signature_headers(headers)?.ok_or(Unauthenticated::Missing)?;
                let signed = Signed {
                    id,
                    timestamp,
                    signatures,
                };
                signed.verify(&self.signing, body, now)?;
                Ok(Proof::Signature)
            }
        }
    }

    /// What the headers alone decide: the proof; or that only a signature over the body can still
    /// be one (`None`).
    ///
    /// # Errors
    ///
    /// [`Unauthenticated`] where no body could make the request authentic.
    pub fn admit(
        &self,
        headers: &HeaderMap,
        now: Millis,
    ) -> Result<Option<Proof>, Unauthenticated> {
        if self.open {
            return Ok(Some(Proof::Open));
        }
        let refusal = match self.verify_basic(headers) {
            Ok(()) => return Ok(Some(Proof::Basic)),
            Err(refusal) => refusal,
        };
        if self.signing.is_empty() {
            return Err(refusal);
        }
        let Some((id, timestamp, signatures)) = signature_headers(headers)? else {
            return Err(refusal);
        };
        let signed = Signed {
            id,
            timestamp,
            signatures,
        };
        signed.check_age(now)?;
        Ok(None)
    }

    fn verify_basic(&self, headers: &HeaderMap) -> Result<(), Unauthenticated> {
        let presented = only(headers, &AUTHORIZATION)?.ok_or(Unauthenticated::Missing)?;
        let presented = digest(&basic_pair(presented).ok_or(Unauthenticated::Malformed)?);
        let matched = self.basic.iter().fold(Choice::from(0), |matched, pair| {
            matched | pair.ct_eq(&presented)
        });
        if bool::from(matched) {
            Ok(())
        } else {
            Err(Unauthenticated::Wrong)
        }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("basic_pairs", &self.basic.len())
            .field("signing_secrets", &self.signing.len())
            .field("open", &self.open)
            .finish()
    }
}

fn digest(pair: &[u8]) -> [u8; 32] {
    Sha256::digest(pair).into()
}

/// The `user:password` of an `Authorization` header; the scheme's case does not matter (RFC 9110,
/// 11.1).
fn basic_pair(header: &HeaderValue) -> Option<Vec<u8>> {
    let header = header.as_bytes();
    let space = header.iter().position(|byte| *byte == b' ')?;
    let (scheme, encoded) = header.split_at(space);
    if !scheme.eq_ignore_ascii_case(b"basic") {
        return None;
    }
    BASE64_STANDARD.decode(encoded.trim_ascii()).ok()
}

/// Id, timestamp and signatures; `None` where nothing is signed.
fn signature_headers(headers: &HeaderMap) -> Result<Option<(&str, &str, &str)>, Unauthenticated> {
    let read = |name| {
        only(headers, name)?
            .map(|value| value.to_str().map_err(|_| Unauthenticated::Malformed))
            .transpose()
    };
    let Some(signatures) = read(&WEBHOOK_SIGNATURE)? else {
        return Ok(None);
    };
    match (read(&WEBHOOK_ID)?, read(&WEBHOOK_TIMESTAMP)?) {
        (Some(id), Some(timestamp)) => Ok(Some((id, timestamp, signatures))),
        _ => Err(Unauthenticated::Malformed),
    }
}

/// The one value of a header. Of two, a proxy may have checked the other.
fn only<'h>(
    headers: &'h HeaderMap,
    name: &HeaderName,
) -> Result<Option<&'h HeaderValue>, Unauthenticated> {
    let mut values = headers.get_all(name);
    match (values.next(), values.next()) {
        (value, None) => Ok(value),
        _ => Err(Unauthenticated::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
    const SIGNATURE: &str = "v1,tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw=";
    const BODY: &[u8] = br#"{"email":"test@example.com","username":"test_user"}"#;
    const NOW: Millis = 1_649_367_553_000;

    fn headers(pairs: &[(&str, &[u8])]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(
                HeaderName::from_bytes(name.as_bytes()).unwrap(),
                HeaderValue::from_bytes(value).unwrap(),
            );
        }
        headers
    }

    fn basic(pair: &[u8]) -> Vec<u8> {
        format!("Basic {}", BASE64_STANDARD.encode(pair)).into_bytes()
    }

    fn both() -> Credentials {
        Credentials::parse_basic("old:one\nnew:tw:o")
            .unwrap()
            .and(Credentials::parse_signing(SECRET).unwrap())
    }

    fn verify_basic(authorization: &[u8]) -> Result<Proof, Unauthenticated> {
        both().verify(&headers(&[("authorization", authorization)]), BODY, NOW)
    }

    #[test]
    fn every_configured_pair_is_taken() {
        assert_eq!(verify_basic(&basic(b"old:one")), Ok(Proof::Basic));
        assert_eq!(verify_basic(&basic(b"new:tw:o")), Ok(Proof::Basic));
        for scheme in ["basic", "BASIC", "bAsIc"] {
            let header = format!("{scheme}  {}", BASE64_STANDARD.encode("old:one"));
            assert_eq!(verify_basic(header.as_bytes()), Ok(Proof::Basic));
        }
    }

    #[test]
    fn whatever_else_the_header_holds_is_a_refusal() {
        for pair in [
            &b""[..],
            b":",
            b"old",
            b"old:",
            b":one",
            b"old:on",
            b"old:one ",
            b"old:one\0",
            b"\0",
            b"new:one",
            "öld:one".as_bytes(),
            b"\xff\xfe",
            &[b'x'; 9_000],
        ] {
            assert_eq!(verify_basic(&basic(pair)), Err(Unauthenticated::Wrong));
        }
        let good = BASE64_STANDARD.encode("old:one");
        for header in [
            String::new(),
            "Basic".to_owned(),
            "Basic".to_owned() + &good,
            format!("Bearer {good}"),
            format!("Basic {}", &good[1..]),
            format!("Basic {good}="),
            format!("Basic {good} {good}"),
            "Basic b2xkOm9uZ*==".to_owned(),
            "Basic öld".to_owned(),
        ] {
            assert_eq!(
                verify_basic(header.as_bytes()),
                Err(Unauthenticated::Malformed),
                "{header}"
            );
        }
    }

    #[test]
    fn a_header_that_comes_twice_is_refused() {
        let good = basic(b"old:one");
        let twice = headers(&[("authorization", &good), ("authorization", &good)]);
        assert_eq!(
            both().verify(&twice, BODY, NOW),
            Err(Unauthenticated::Malformed)
        );
    }

    fn signed(changes: &[(&str, Option<&[u8]>)]) -> HeaderMap {
        let mut pairs: Vec<(&str, &[u8])> = vec![
            ("webhook-id", b"msg_27UH4WbU6Z5A5EzD8u03UvzRbpk"),
            ("webhook-timestamp", b"1649367553"),
            ("webhook-signature", SIGNATURE.as_bytes()),
        ];
        for (name, value) in changes {
            pairs.retain(|(kept, _)| kept != name);
            pairs.extend(value.map(|value| (*name, value)));
        }
        headers(&pairs)
    }

    #[test]
    fn the_published_signature_is_proof() {
        assert_eq!(both().verify(&signed(&[]), BODY, NOW), Ok(Proof::Signature));
        assert_eq!(both().admit(&signed(&[]), NOW), Ok(None));
        // A wrong pair beside a good signature is a proxy's own business.
        let with_basic = signed(&[("authorization", Some(b"Basic eDp5"))]);
        assert_eq!(both().verify(&with_basic, BODY, NOW), Ok(Proof::Signature));
    }

    #[test]
    fn a_signature_that_does_not_count_is_a_refusal() {
        for (changes, expected) in [
            (("webhook-signature", None), Unauthenticated::Missing),
            (("webhook-id", None), Unauthenticated::Malformed),
            (("webhook-timestamp", None), Unauthenticated::Malformed),
            (
                ("webhook-id", Some(&b"\xff"[..])),
                Unauthenticated::Malformed,
            ),
            (
                ("webhook-signature", Some(b"v1,AAAA")),
                SignatureError::Mismatch.into(),
            ),
            (
                ("webhook-timestamp", Some(b"1649360000")),
                SignatureError::Stale.into(),
            ),
        ] {
            assert_eq!(
                both().verify(&signed(&[changes]), BODY, NOW),
                Err(expected),
                "{changes:?}"
            );
        }
        let basic_only = Credentials::parse_basic("old:one").unwrap();
        assert_eq!(
            basic_only.verify(&signed(&[]), BODY, NOW),
            Err(Unauthenticated::Missing)
        );
        let other_body = both().verify(&signed(&[]), b"{}", NOW);
        assert_eq!(other_body, Err(SignatureError::Mismatch.into()));
    }

    #[test]
    fn headers_alone_refuse_what_no_body_can_save() {
        let nothing = headers(&[]);
        assert_eq!(both().admit(&nothing, NOW), Err(Unauthenticated::Missing));
        let old = signed(&[("webhook-timestamp", Some(b"1649360000"))]);
        assert_eq!(both().admit(&old, NOW), Err(SignatureError::Stale.into()));
    }

    #[test]
    fn open_takes_everything_and_empty_nothing() {
        let nothing = headers(&[]);
        assert_eq!(
            Credentials::open().verify(&nothing, BODY, NOW),
            Ok(Proof::Open)
        );
        let empty = Credentials::default();
        assert!(empty.is_empty());
        assert!(empty.verify(&nothing, BODY, NOW).is_err());
        assert!(
            empty
                .verify(&headers(&[("authorization", &basic(b":"))]), BODY, NOW)
                .is_err()
        );
        assert!(!Credentials::open().and(both()).is_open());
    }

    #[test]
    fn faults_name_the_place_and_not_the_secret() {
        for (text, error) in [
            (" \n", CredentialsError::Empty),
            ("a:b hunter2", CredentialsError::NoColon { position: 2 }),
            ("hunter2:", CredentialsError::HalfEmpty { position: 1 }),
            (":hunter2", CredentialsError::HalfEmpty { position: 1 }),
        ] {
            assert_eq!(Credentials::parse_basic(text).unwrap_err(), error);
            assert!(!error.to_string().contains("hunter2"));
        }
        let two = format!("{SECRET} hunter2");
        assert_eq!(
            Credentials::parse_signing(&two).unwrap_err().to_string(),
            "secret 2 does not begin with whsec_"
        );
        assert_eq!(
            Credentials::parse_signing("").unwrap_err(),
            CredentialsError::Empty
        );
        let shown = format!("{:?}", both());
        assert_eq!(
            shown,
            "Credentials { basic_pairs: 2, signing_secrets: 1, open: false }"
        );
    }
}
