//! Whether a written trait really stays, which the answer to a write cannot prove: an
//! organisation that stores no traits echoes them all the same.

use std::time::Duration;

use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::bulk::{self, NO_BULK};
use super::disposition::{CLIENT_KEY_BARRED, STORES_NO_TRAITS, Trouble, excerpt};
use super::transport::now;
use super::{Flagsmith, Identity, Sent, echo, json};
use crate::config::{BlankEcho, Kind};

pub use crate::trait_key::CANARY;

/// Waits before a read that missed the canary is repeated: the read may have come from a replica
/// that lags behind.
const READ_AGAIN_AFTER: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(1)];

/// What a blank echo turned out to mean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BlankVerdict {
    /// The trait is stored: the environment hides sensitive data.
    Stored,
    /// The trait is not stored, nor will any other be until a person changes something.
    NotStored {
        /// For a person: what to switch.
        reason: String,
    },
    /// There is no `traits/bulk/` here to judge by: the destination's
    /// [`BlankEcho`] setting decides.
    Unavailable,
    /// It could not be found out now.
    Later {
        /// What Flagsmith asked for, at most [`MAX_RETRY_AFTER`](super::MAX_RETRY_AFTER).
        retry_after: Option<Duration>,
        /// Flagsmith may still apply this write.
        may_land_late: bool,
        /// For a person.
        error: String,
    },
}

/// What the canary found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Storage {
    /// A trait that is written can be read back.
    Stays,
    /// A trait that is written is stored, but never shown: the environment hides sensitive data.
    StaysBlank,
    /// Calls are answered as if what they write were stored, and nothing stays.
    NotStored {
        /// For a person: what is wrong and what to switch.
        reason: String,
    },
    /// Every answer says that the canary was stored, and reading it back shows something else:
    /// reads lag behind, somebody else writes the canary, or something answers in Flagsmith's place.
    Unseen {
        /// The canary's value as it was shown.
        shown: Option<String>,
        /// For a person.
        error: String,
    },
    /// The call is refused, as any other would be.
    Fails {
        /// For a person: what is wrong and what to change.
        reason: String,
    },
    /// It could not be found out now.
    Unreachable {
        /// What Flagsmith asked for, at most [`MAX_RETRY_AFTER`](super::MAX_RETRY_AFTER).
        retry_after: Option<Duration>,
        /// For a person.
        error: String,
    },
}

impl From<Trouble> for Storage {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::Later {
                retry_after, error, ..
            } => Storage::Unreachable { retry_after, error },
            Trouble::Refused { error: reason } | Trouble::Halt { reason } => {
                Storage::Fails { reason }
            }
        }
    }
}

/// One row of `traits/bulk/`.
#[derive(Serialize)]
struct Row<'a> {
    identity: RowIdentity<'a>,
    trait_key: &'a str,
    trait_value: &'a Value,
}

#[derive(Serialize)]
struct RowIdentity<'a> {
    identifier: &'a str,
}

#[derive(Deserialize)]
struct ShownRow {
    identity: ShownIdentity,
    trait_key: String,
    trait_value: Value,
}

#[derive(Deserialize)]
struct ShownIdentity {
    identifier: String,
}

impl Flagsmith {
    /// Finds out what a [`Disposition::BlankEcho`](super::Disposition::BlankEcho) meant by writing one of its traits again with
    /// a one-row `PUT traits/bulk/`, which does not pretend.
    pub async fn judge_blank_echo(
        &self,
        identifier: &str,
        trait_key: &str,
        value: bool,
    ) -> BlankVerdict {
        self.judge_by_bulk(identifier, trait_key, &Value::Bool(value))
            .await
    }

    async fn judge_by_bulk(
        &self,
        identifier: &str,
        trait_key: &str,
        trait_value: &Value,
    ) -> BlankVerdict {
        let rows = [Row {
            identity: RowIdentity { identifier },
            trait_key,
            trait_value,
        }];
        let body = match json(&rows) {
            Ok(body) => body,
            Err(trouble) => return trouble.into(),
        };
        let answer = match self.answer(&Method::PUT, &self.bulk, Some(&body)).await {
            Ok(answer) => answer,
            Err(trouble) => return trouble.into(),
        };
        match answer.status.as_u16() {
            200 => judge_rows(&answer.body, &rows[0]),
            // Core has a page, `POST traits/` a sentence, for the same refusal.
            400 if !answer.is_json() || mentions(&answer.body, "client key") => {
                BlankVerdict::NotStored {
                    reason: CLIENT_KEY_BARRED.to_owned(),
                }
            }
            404 | 405 | 410 => BlankVerdict::Unavailable,
            _ => match answer.ok(now()) {
                Err(trouble) => trouble.without(identifier).into(),
                Ok(_) => BlankVerdict::Unavailable,
            },
        }
    }

    /// The canary's value as it is shown now; `None` where there is none, or none is shown.
    ///
    /// # Errors
    /// [`Storage::Fails`] and [`Storage::Unreachable`].
    pub async fn canary(&self) -> Result<Option<String>, Storage> {
        match self.read_traits(CANARY).await {
            Ok(read) => Ok(canary_in(&read).and_then(Value::as_str).map(str::to_owned)),
            Err(trouble) => Err(trouble.without(self.key()).into()),
        }
    }

    /// Writes `value` to the [`CANARY`] and reads it back. `value` must differ from what earlier
    /// calls wrote, else an old value would pass for the new one.
    pub async fn probe_storage(&self, value: &str) -> Storage {
        self.probe_storage_of(CANARY, value).await
    }

    /// The same with the canary's trait on another identity.
    pub async fn probe_storage_of(&self, identifier: &str, value: &str) -> Storage {
        match self.try_probe(identifier, value).await {
            Ok(found) => found,
            Err(trouble) => trouble.without(self.key()).into(),
        }
    }

    async fn try_probe(&self, identifier: &str, value: &str) -> Result<Storage, Trouble> {
        let wanted = Value::from(value);
        let echo_is_blank = match self.kind {
            Kind::Sdk => Some(self.write_canary(identifier, value).await?),
            // As everything else is written there, so that it proves that way.
            Kind::CoreBulk => match self.write_canary_in_bulk(identifier, &wanted).await? {
                BlankVerdict::Stored => None,
                BlankVerdict::NotStored { reason } => return Ok(Storage::NotStored { reason }),
                BlankVerdict::Later {
                    retry_after, error, ..
                } => return Ok(Storage::Unreachable { retry_after, error }),
                BlankVerdict::Unavailable => {
                    let reason = NO_BULK.to_owned();
                    return Ok(Storage::Fails { reason });
                }
            },
        };
        let mut waits = READ_AGAIN_AFTER.into_iter();
        loop {
            let answer = match self.show(identifier).await {
                // The same key wrote a moment ago: a refused read says nothing about storage.
                Err(Trouble::Halt { reason }) => {
                    return Ok(Storage::Unreachable {
                        retry_after: None,
                        error: format!("the canary was written and cannot be read back: {reason}"),
                    });
                }
                other => other?,
            };
            let read = match echo::traits(&answer.body, identifier) {
                Ok(read) => read,
                Err(Trouble::Halt { reason: error } | Trouble::Refused { error }) => {
                    return Ok(Storage::Unseen { shown: None, error });
                }
                Err(later) => return Err(later),
            };
            let shown = canary_in(&read);
            if shown == Some(&wanted) {
                return Ok(Storage::Stays);
            }
            let blank = read.is_empty() && echo_is_blank.unwrap_or(waits.len() == 0);
            // Two blanks are no lag.
            let wait = if blank { None } else { waits.next() };
            match wait {
                Some(wait) => tokio::time::sleep(wait).await,
                None => {
                    let shown = shown.and_then(Value::as_str).map(str::to_owned);
                    return Ok(self.why_unseen(identifier, blank, &wanted, shown).await);
                }
            }
        }
    }

    /// Whether the echo of the written canary shows nothing at all.
    async fn write_canary(&self, identifier: &str, value: &str) -> Result<bool, Trouble> {
        let body = json(&Identity {
            identifier,
            traits: [Sent(CANARY, value)],
        })?;
        let answer = self
            .call(&Method::POST, &self.identities, Some(&body))
            .await?;
        Ok(echo::traits(&answer.body, identifier)?.is_empty())
    }

    /// What the echo of the canary shows; unlike the identities endpoint, this one says outright where
    /// it does not store, and so nothing will have counted as written.
    async fn write_canary_in_bulk(
        &self,
        identifier: &str,
        value: &Value,
    ) -> Result<BlankVerdict, Trouble> {
        let row = Row {
            identity: RowIdentity { identifier },
            trait_key: CANARY,
            trait_value: value,
        };
        let body = json(&[&row])?;
        let answer = self.answer(&Method::PUT, &self.bulk, Some(&body)).await?;
        match answer.status.as_u16() {
            404 | 405 | 410 => Ok(BlankVerdict::Unavailable),
            400 if bulk::bars_client(&answer, self.key()) => Err(Trouble::Halt {
                reason: CLIENT_KEY_BARRED.to_owned(),
            }),
            _ => Ok(judge_rows(&answer.ok(now())?.body, &row)),
        }
    }

    /// Why the canary cannot be read back, judged by `traits/bulk/`.
    async fn why_unseen(
        &self,
        identifier: &str,
        blank: bool,
        wanted: &Value,
        shown: Option<String>,
    ) -> Storage {
        match self.judge_by_bulk(identifier, CANARY, wanted).await {
            BlankVerdict::Stored if blank => Storage::StaysBlank,
            BlankVerdict::Stored => Storage::Unseen {
                shown,
                error: "Flagsmith says that it stored the canary, but reading it back shows \
                        something else"
                    .to_owned(),
            },
            BlankVerdict::NotStored { reason } => Storage::NotStored { reason },
            BlankVerdict::Later {
                retry_after, error, ..
            } => Storage::Unreachable { retry_after, error },
            BlankVerdict::Unavailable if !blank => Storage::NotStored {
                reason: format!("a written trait cannot be read back: {STORES_NO_TRAITS}"),
            },
            BlankVerdict::Unavailable => match self.blank_echo {
                BlankEcho::Stored => Storage::StaysBlank,
                BlankEcho::Halt => Storage::NotStored {
                    reason: format!(
                        "Flagsmith shows no traits and cannot be asked whether it stores them. \
                         Either {CLIENT_KEY_BARRED}; or, where the environment hides sensitive \
                         data, set COHORT_BRIDGE_BLANK_ECHO=stored"
                    ),
                },
            },
        }
    }
}

impl From<Trouble> for BlankVerdict {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::Later {
                retry_after,
                may_land_late,
                error,
                ..
            } => BlankVerdict::Later {
                retry_after,
                may_land_late,
                error,
            },
            Trouble::Halt { reason } => BlankVerdict::NotStored { reason },
            // About this row alone, which says nothing about the others.
            Trouble::Refused { error } => BlankVerdict::Later {
                retry_after: None,
                may_land_late: false,
                error,
            },
        }
    }
}

fn canary_in(read: &[(String, Value)]) -> Option<&Value> {
    let canary = read.iter().find(|(key, _)| key == CANARY);
    canary.map(|(_, value)| value)
}

fn judge_rows(body: &[u8], sent: &Row<'_>) -> BlankVerdict {
    match serde_json::from_slice::<Vec<ShownRow>>(body) {
        Ok(rows) if rows.is_empty() => BlankVerdict::NotStored {
            reason: "Flagsmith answered 200 without the row that was sent, as it does when the \
                     body of a request does not reach it: something between drops it, or sends \
                     it chunked"
                .to_owned(),
        },
        Ok(rows)
            if rows.iter().all(|row| {
                row.identity.identifier == sent.identity.identifier
                    && row.trait_key == sent.trait_key
                    && row.trait_value == *sent.trait_value
            }) =>
        {
            BlankVerdict::Stored
        }
        Ok(_) => BlankVerdict::NotStored {
            reason: "Flagsmith answered 200 with a row other than the one sent".to_owned(),
        },
        Err(error) if error.is_eof() && body.first() == Some(&b'[') => BlankVerdict::Later {
            retry_after: None,
            may_land_late: false,
            error: "Flagsmith's answer (200) breaks off".to_owned(),
        },
        Err(_) => BlankVerdict::NotStored {
            reason: format!(
                "the answer of traits/bulk/ (200 '{}') is not Flagsmith's: check the API address \
                 (COHORT_BRIDGE_FLAGSMITH_API_URL) and what stands before Flagsmith",
                excerpt(body)
            ),
        },
    }
}

fn mentions(body: &[u8], words: &str) -> bool {
    excerpt(body).contains(words)
}
