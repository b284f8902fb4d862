//! Standard Webhooks signatures (<https://www.standardwebhooks.com>): HMAC-SHA256 over
//! `id.timestamp.body`. Mixpanel signs nothing; relays and `replay` do.

use std::fmt;
use std::time::Duration;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use base64::prelude::BASE64_STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use subtle::{Choice, ConstantTimeEq};

use crate::clock::{Millis, millis};

/// How far a timestamp may be off, either way: the specification's customary five minutes.
pub const TOLERANCE: Duration = Duration::from_secs(5 * 60);

/// How a secret is marked in its text form.
pub const SECRET_PREFIX: &str = "whsec_";

/// Bytes of a secret, from the specification.
const SECRET_BYTES: std::ops::RangeInclusive<usize> = 24..=64;

/// How a symmetric signature is marked in `webhook-signature`.
const SIGNATURE_PREFIX: &str = "v1,";

/// Secrets are handed round with and without their padding.
const PADDING_OPTIONAL: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The key that a sender and this service share, ready to sign with.
#[derive(Clone)]
pub struct SigningSecret(Hmac<Sha256>);

/// What is wrong with a secret's text. Never repeats it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// Perhaps another kind of secret was pasted.
    #[error("does not begin with {SECRET_PREFIX}")]
    Prefix,
    /// Perhaps it was cut off.
    #[error("is not base64 behind {SECRET_PREFIX}")]
    Base64,
    /// Too short to be safe, or not a secret at all.
    #[error("holds {bytes} bytes; Standard Webhooks asks for 24 to 64")]
    Length {
        /// Bytes found.
        bytes: usize,
    },
}

/// Why a signature does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// A header is not what the specification asks for.
    #[error("the webhook-id or webhook-timestamp header is malformed")]
    Malformed,
    /// Too old or too far ahead: a recording, or a clock that is wrong.
    #[error(
        "webhook-timestamp is more than {} minutes off: is a clock wrong?",
        TOLERANCE.as_secs() / 60
    )]
    Stale,
    /// Signed with another secret, or changed on its way.
    #[error("no signature in webhook-signature matches")]
    Mismatch,
}

/// The three headers of a signed webhook.
#[derive(Clone, Copy, Debug)]
pub struct Signed<'a> {
    /// `webhook-id`.
    pub id: &'a str,
    /// `webhook-timestamp`: seconds since the Unix epoch.
    pub timestamp: &'a str,
    /// `webhook-signature`: `v1,<base64>`, several separated by spaces.
    pub signatures: &'a str,
}

impl SigningSecret {
    /// Reads `whsec_<base64>`.
    ///
    /// # Errors
    ///
    /// [`SecretError`] where it is none.
    pub fn parse(text: &str) -> Result<Self, SecretError> {
        let encoded = text
            .strip_prefix(SECRET_PREFIX)
            .ok_or(SecretError::Prefix)?;
        let key = PADDING_OPTIONAL
            .decode(encoded)
            .map_err(|_| SecretError::Base64)?;
        let wrong_length = SecretError::Length { bytes: key.len() };
        if !SECRET_BYTES.contains(&key.len()) {
            return Err(wrong_length);
        }
        Hmac::new_from_slice(&key)
            .map(SigningSecret)
            .map_err(|_| wrong_length)
    }

    /// The entry for `webhook-signature`; `timestamp` in seconds since the Unix epoch.
    pub fn sign(&self, id: &str, timestamp: i64, body: &[u8]) -> String {
        let digest = self.digest(id, &timestamp.to_string(), body);
        format!("{SIGNATURE_PREFIX}{}", BASE64_STANDARD.encode(digest))
    }

    fn digest(&self, id: &str, timestamp: &str, body: &[u8]) -> [u8; 32] {
        let mut mac = self.0.clone();
        for part in [id.as_bytes(), b".", timestamp.as_bytes(), b".", body] {
            mac.update(part);
        }
        mac.finalize().into_bytes().into()
    }
}

impl fmt::Debug for SigningSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningSecret([redacted])")
    }
}

impl Signed<'_> {
    /// Whether the headers could belong to a valid signature at all; needs no body.
    ///
    /// # Errors
    ///
    /// [`SignatureError::Malformed`] or [`SignatureError::Stale`].
    pub fn check_age(&self, now: Millis) -> Result<(), SignatureError> {
        // A dot in the id would let bytes move between id and timestamp under one signature.
        if self.id.is_empty() || self.id.contains('.') {
            return Err(SignatureError::Malformed);
        }
        let sent_at = self
            .timestamp
            .parse::<Millis>()
            .ok()
            .and_then(|seconds| seconds.checked_mul(1_000))
            .ok_or(SignatureError::Malformed)?;
        if now.abs_diff(sent_at) > millis(TOLERANCE).unsigned_abs() {
            return Err(SignatureError::Stale);
        }
        Ok(())
    }

    /// Checks every signature against every secret, in a time that does not tell which one matched.
    ///
    /// # Errors
    ///
    /// [`SignatureError`]; signatures of other versions than `v1` never match.
    pub fn verify(
        &self,
        secrets: &[SigningSecret],
        body: &[u8],
        now: Millis,
    ) -> Result<(), SignatureError> {
        self.check_age(now)?;
        let given: Vec<[u8; 32]> = self
            .signatures
            .split(' ')
            .filter_map(|entry| entry.strip_prefix(SIGNATURE_PREFIX))
            .filter_map(|encoded| BASE64_STANDARD.decode(encoded).ok()?.try_into().ok())
            .collect();
        let mut matched = Choice::from(0);
        for secret in secrets {
            let expected = secret.digest(self.id, self.timestamp, body);
            for signature in &given {
                matched |= expected.ct_eq(signature);
            }
        }
        if bool::from(matched) {
            Ok(())
        } else {
            Err(SignatureError::Mismatch)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    // The specification's published vector.
    const SECRET: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
    const ID: &str = "msg_27UH4WbU6Z5A5EzD8u03UvzRbpk";
    const TIMESTAMP: i64 = 1_649_367_553;
    const BODY: &[u8] = br#"{"email":"test@example.com","username":"test_user"}"#;
    const SIGNATURE: &str = "v1,tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw=";

    fn secret() -> SigningSecret {
        SigningSecret::parse(SECRET).unwrap()
    }

    fn verify(signed: Signed<'_>, now_seconds: i64) -> Result<(), SignatureError> {
        let other = SigningSecret::parse(&format!("whsec_{}", "A".repeat(32))).unwrap();
        signed.verify(&[other, secret()], BODY, now_seconds * 1_000)
    }

    const SIGNED: Signed<'static> = Signed {
        id: ID,
        timestamp: "1649367553",
        signatures: SIGNATURE,
    };

    #[test]
    fn the_published_vector() {
        assert_eq!(secret().sign(ID, TIMESTAMP, BODY), SIGNATURE);
        assert_eq!(verify(SIGNED, TIMESTAMP), Ok(()));
    }

    #[test]
    fn one_good_signature_among_others_is_enough() {
        let signatures = format!("v1a,xyz v1,AAAA v1,!! {SIGNATURE} v2,{}", &SIGNATURE[3..]);
        let signatures = signatures.as_str();
        assert_eq!(
            verify(
                Signed {
                    signatures,
                    ..SIGNED
                },
                TIMESTAMP
            ),
            Ok(())
        );
    }

    #[test]
    fn anything_else_is_refused() {
        let mismatch = Err(SignatureError::Mismatch);
        let malformed = Err(SignatureError::Malformed);
        for (signed, expected) in [
            (
                Signed {
                    signatures: "",
                    ..SIGNED
                },
                mismatch,
            ),
            (
                Signed {
                    signatures: &SIGNATURE[3..],
                    ..SIGNED
                },
                mismatch,
            ),
            (
                Signed {
                    signatures: &SIGNATURE[..20],
                    ..SIGNED
                },
                mismatch,
            ),
            (
                Signed {
                    signatures: "v1,",
                    ..SIGNED
                },
                mismatch,
            ),
            (
                Signed {
                    id: "msg_other",
                    ..SIGNED
                },
                mismatch,
            ),
            (
                Signed {
                    timestamp: "1649367554",
                    ..SIGNED
                },
                mismatch,
            ),
            (
                Signed {
                    timestamp: "01649367553",
                    ..SIGNED
                },
                mismatch,
            ),
            (Signed { id: "", ..SIGNED }, malformed),
            (
                Signed {
                    id: "a.b",
                    ..SIGNED
                },
                malformed,
            ),
            (
                Signed {
                    timestamp: "",
                    ..SIGNED
                },
                malformed,
            ),
            (
                Signed {
                    timestamp: "1649367553.0",
                    ..SIGNED
                },
                malformed,
            ),
            (
                Signed {
                    timestamp: "9223372036854775807",
                    ..SIGNED
                },
                malformed,
            ),
        ] {
            assert_eq!(verify(signed, TIMESTAMP), expected, "{signed:?}");
        }
        assert_eq!(
            SIGNED.verify(&[secret()], b"{}", TIMESTAMP * 1_000),
            mismatch
        );
        assert_eq!(SIGNED.verify(&[], BODY, TIMESTAMP * 1_000), mismatch);
    }

    #[test]
    fn five_minutes_either_way() {
        for (off, expected) in [
            (300, Ok(())),
            (-300, Ok(())),
            (301, Err(SignatureError::Stale)),
            (-301, Err(SignatureError::Stale)),
        ] {
            assert_eq!(verify(SIGNED, TIMESTAMP + off), expected, "{off}");
        }
    }

    #[test]
    fn secrets_are_checked_and_never_shown() {
        let error = |text: &str| SigningSecret::parse(text).unwrap_err();
        assert_eq!(
            error("C2FVsBQIhrscChlQIMV+b5sSYspob7oD"),
            SecretError::Prefix
        );
        assert_eq!(error("whsec_%%%"), SecretError::Base64);
        assert_eq!(error("whsec_AAAA"), SecretError::Length { bytes: 3 });
        assert_eq!(
            error(&format!("whsec_{}", "A".repeat(88))),
            SecretError::Length { bytes: 66 }
        );
        assert!(SigningSecret::parse(&format!("whsec_{}", "A".repeat(34))).is_ok());
        assert_eq!(format!("{:?}", secret()), "SigningSecret([redacted])");
    }

    proptest! {
        #[test]
        fn what_is_signed_verifies_until_it_is_changed(
            id in "msg_[a-zA-Z0-9]{1,20}",
            timestamp in 0_i64..4_000_000_000,
            mut body in prop::collection::vec(any::<u8>(), 1..64),
            flip in any::<prop::sample::Index>(),
        ) {
            let signatures = secret().sign(&id, timestamp, &body);
            let timestamp_text = timestamp.to_string();
            let signed = Signed { id: &id, timestamp: &timestamp_text, signatures: &signatures };
            prop_assert_eq!(signed.verify(&[secret()], &body, timestamp * 1_000), Ok(()));
            let at = flip.index(body.len());
            body[at] ^= 1;
            prop_assert_eq!(
                signed.verify(&[secret()], &body, timestamp * 1_000),
                Err(SignatureError::Mismatch)
            );
        }
    }
}
