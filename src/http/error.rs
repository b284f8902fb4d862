//! Mixpanel's answers: the success, and [`ReceiveError`] with what Mixpanel makes of each.

use actix_web::http::StatusCode;
use actix_web::http::header::{RETRY_AFTER, WWW_AUTHENTICATE};
use actix_web::{HttpResponse, ResponseError};
use serde::Serialize;

use super::credentials::Unauthenticated;
use crate::cohort::Action;
use crate::mixpanel::Rejected;
use crate::status::Refusal;
use crate::store::StoreError;

/// Seconds after which a sender may try again. Mixpanel keeps its own times (5 tries in 60 s); this
/// is for relays.
const RETRY_AFTER_SECONDS: u32 = 5;

/// How to authenticate (RFC 7617).
const CHALLENGE: &str = r#"Basic realm="cohort-bridge", charset="UTF-8""#;

/// Why a webhook is not answered with success.
///
/// Our own trouble never wears 400, 401, 403 or 404: those make Mixpanel pause the sync and send
/// e-mails.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// 404. Mixpanel pauses the sync and e-mails: the URL or the method is wrong.
    #[error("nothing answers here: webhooks are sent with POST to /webhooks/mixpanel")]
    NothingHere,
    /// 404. Mixpanel pauses the sync and e-mails: the URL is wrong and has to be registered again.
    #[error("no source of this name: check the end of the webhook's URL")]
    UnknownSource,
    /// 401. Mixpanel pauses the sync and e-mails.
    #[error(transparent)]
    Unauthenticated(#[from] Unauthenticated),
    /// 413. What Mixpanel does is not documented. The way out is a higher `--max-body-size`.
    #[error("the body is over the limit of {limit_bytes} bytes")]
    TooLarge {
        /// The limit.
        limit_bytes: usize,
    },
    /// 408. What Mixpanel does is not documented.
    #[error("the body did not arrive within {seconds} s")]
    TooSlow {
        /// The limit.
        seconds: u64,
    },
    /// 408: the connection broke within the body. Nobody hears the answer.
    #[error("the body broke off")]
    BrokenOff,
    /// 400. Mixpanel pauses the sync and e-mails; the message is what people read.
    #[error(transparent)]
    Rejected(#[from] Rejected),
    /// 503: the page could not be written down. Mixpanel tries 5 times in 60 s, then at the next
    /// sync, from the top.
    #[error("{cause}; {page} was not stored. Mixpanel will retry.")]
    NotStored {
        /// What was asked for.
        action: Action,
        /// Which page of which cohort, in words.
        page: String,
        /// Why.
        cause: NotStored,
    },
    /// 503: the request could not be looked at. As above.
    #[error("the service is not able to take webhooks now. Mixpanel will retry.")]
    Unavailable,
}

/// Why a page was not stored. The messages are for strangers.
#[derive(Debug, thiserror::Error)]
pub enum NotStored {
    /// The ledger failed; how is for our own log, as it may name files.
    #[error("{}", said_publicly(.0))]
    Ledger(#[source] StoreError),
    /// No page is taken in at the moment.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The work ended before the page was stored.
    #[error("the work was interrupted")]
    Interrupted,
}

/// What a stranger may know of the ledger's trouble.
fn said_publicly(error: &StoreError) -> &'static str {
    match error {
        StoreError::Full => "the disk that holds the ledger is full",
        StoreError::Closed => "the service is stopping",
        StoreError::Away(_) => "the database cannot be reached",
        StoreError::InUse { .. }
        | StoreError::Moved { .. }
        | StoreError::Newer { .. }
        | StoreError::KeyTaken { .. }
        | StoreError::NotLeading
        | StoreError::OldSqlite(_)
        | StoreError::Unfinished(_)
        | StoreError::Failed(_)
        | StoreError::Damaged(_)
        | StoreError::Io { .. } => "the ledger cannot be written",
    }
}

impl ReceiveError {
    /// The action as sent, where it could be read.
    pub fn action(&self) -> Option<&str> {
        match self {
            ReceiveError::Rejected(rejected) => rejected.action.as_deref(),
            ReceiveError::NotStored { action, .. } => Some(action.as_str()),
            ReceiveError::NothingHere
            | ReceiveError::UnknownSource
            | ReceiveError::Unauthenticated(_)
            | ReceiveError::TooLarge { .. }
            | ReceiveError::TooSlow { .. }
            | ReceiveError::BrokenOff
            | ReceiveError::Unavailable => None,
        }
    }

    /// What the ledger said, for our own log.
    pub fn ledger_error(&self) -> Option<&StoreError> {
        match self {
            ReceiveError::NotStored {
                cause: NotStored::Ledger(error),
                ..
            } => Some(error),
            _ => None,
        }
    }
}

impl ResponseError for ReceiveError {
    fn status_code(&self) -> StatusCode {
        match self {
            ReceiveError::NothingHere | ReceiveError::UnknownSource => StatusCode::NOT_FOUND,
            ReceiveError::Unauthenticated(_) => StatusCode::UNAUTHORIZED,
            ReceiveError::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            ReceiveError::TooSlow { .. } | ReceiveError::BrokenOff => StatusCode::REQUEST_TIMEOUT,
            ReceiveError::Rejected(_) => StatusCode::BAD_REQUEST,
            ReceiveError::NotStored { .. } | ReceiveError::Unavailable => {
                StatusCode::SERVICE_UNAVAILABLE
            }
        }
    }

    fn error_response(&self) -> HttpResponse {
        let status = self.status_code();
        let mut response = HttpResponse::build(status);
        match status {
            StatusCode::UNAUTHORIZED => {
                response.insert_header((WWW_AUTHENTICATE, CHALLENGE));
            }
            StatusCode::SERVICE_UNAVAILABLE => {
                response.insert_header((RETRY_AFTER, RETRY_AFTER_SECONDS));
            }
            _ => {}
        }
        response.json(Reply {
            action: self.action(),
            status: "failure",
            error: Some(Fault {
                message: self.to_string(),
                code: status.as_u16(),
            }),
        })
    }
}

/// The answer to a page that is durably recorded.
pub fn success(action: Action) -> HttpResponse {
    HttpResponse::Ok().json(Reply {
        action: Some(action.as_str()),
        status: "success",
        error: None,
    })
}

/// An answer in Mixpanel's shape.
#[derive(Serialize)]
struct Reply<'a> {
    action: Option<&'a str>,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Fault>,
}

#[derive(Serialize)]
struct Fault {
    message: String,
    code: u16,
}

#[cfg(test)]
mod tests {
    use actix_web::body::to_bytes;
    use serde_json::{Value, json};

    use super::*;
    use crate::mixpanel::{IdentifierRules, ParseError};

    async fn json_of(response: HttpResponse) -> Value {
        serde_json::from_slice(&to_bytes(response.into_body()).await.unwrap()).unwrap()
    }

    #[actix_web::test]
    async fn every_variant_answers_in_mixpanels_shape() {
        let unknown = || Rejected {
            action: Some("ping".to_owned()),
            error: ParseError::UnknownAction("ping".to_owned()),
        };
        let action = Action::AddMembers;
        let not_stored = |cause| ReceiveError::NotStored {
            action,
            page: "page 2 of 3 for cohort 7".to_owned(),
            cause,
        };
        let broken = StoreError::Io {
            path: "/private/ledger.db".to_owned(),
            source: std::io::Error::other("x"),
        };
        for (error, code, sent, header) in [
            (ReceiveError::UnknownSource, 404, Value::Null, None),
            (
                Unauthenticated::Wrong.into(),
                401,
                Value::Null,
                Some(("www-authenticate", CHALLENGE)),
            ),
            (
                ReceiveError::TooLarge { limit_bytes: 5 },
                413,
                Value::Null,
                None,
            ),
            (
                ReceiveError::TooSlow { seconds: 10 },
                408,
                Value::Null,
                None,
            ),
            (ReceiveError::BrokenOff, 408, Value::Null, None),
            (unknown().into(), 400, json!("ping"), None),
            (
                Rejected::property_absent(action, &IdentifierRules::default()).into(),
                400,
                json!("add_members"),
                None,
            ),
            (
                not_stored(NotStored::Ledger(broken)),
                503,
                json!("add_members"),
                Some(("retry-after", "5")),
            ),
            (
                not_stored(Refusal::ShuttingDown.into()),
                503,
                json!("add_members"),
                Some(("retry-after", "5")),
            ),
            (
                ReceiveError::Unavailable,
                503,
                Value::Null,
                Some(("retry-after", "5")),
            ),
        ] {
            let response = error.error_response();
            assert_eq!(response.status(), code, "{error}");
            for name in ["www-authenticate", "retry-after"] {
                let expected = header.filter(|(of, _)| *of == name).map(|(_, value)| value);
                let found = response.headers().get(name).map(|v| v.to_str().unwrap());
                assert_eq!(found, expected, "{error}");
            }
            let body = json_of(response).await;
            let message = error.to_string();
            assert!(!message.contains("private"), "{message}");
            assert_eq!(
                body,
                json!({"action": sent, "status": "failure",
                       "error": {"message": message, "code": code}})
            );
        }
    }

    #[actix_web::test]
    async fn success_is_two_fields() {
        assert_eq!(
            json_of(success(Action::RemoveMembers)).await,
            json!({"action": "remove_members", "status": "success"})
        );
    }
}
