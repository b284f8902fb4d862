//! What the admin listener answers where it does not do as asked.

use actix_web::http::StatusCode;
use actix_web::http::header::{HeaderValue, WWW_AUTHENTICATE};
use actix_web::{HttpResponse, ResponseError};
use tokio::task::JoinError;

use super::views::ErrorReply;
use crate::store::StoreError;

/// Why an admin call was not done.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// No token came, or another one.
    #[error("send the admin token as 'Authorization: Bearer <token>'")]
    Unauthorized,
    /// Without a token only the machine itself may do this.
    #[error(
        "refused: the admin listener is not on loopback and has no token; set COHORT_BRIDGE_ADMIN_TOKEN"
    )]
    TokenNeeded,
    /// A browser was led here under another name (DNS rebinding).
    #[error(
        "refused: without an admin token the Host header must be localhost or a loopback address"
    )]
    ForeignHost,
    /// A page of another site asks (cross-site request forgery).
    #[error("refused: the request comes from a page of another origin")]
    ForeignOrigin,
    /// Nothing answers at that path.
    #[error("not found")]
    NotFound,
    /// Something answers there, but not to that method.
    #[error("method not allowed")]
    MethodNotAllowed,
    /// The ledger does not know the cohort.
    #[error("no such cohort: GET /api/v1/cohorts names those that were heard of")]
    UnknownCohort,
    /// The settings have no such destination.
    #[error("no such destination: GET /api/v1/status names those of the settings")]
    UnknownDestination,
    /// The ledger does not know the person.
    #[error("nothing is known of this person")]
    UnknownPerson,
    /// The query of a `DELETE` is another.
    #[error("send no query, or ?traits=delete to have the traits removed from Flagsmith too")]
    ForgetQuery,
    /// The query of writing a cohort again is another.
    #[error("send no query, or ?destination=NAME to mean that destination alone")]
    ResyncQuery,
    /// The body is no decision.
    #[error(r#"send {{"decision":"approve"}} or {{"decision":"discard"}} ({0})"#)]
    Decision(#[source] serde_json::Error),
    /// The body is not what the call takes.
    #[error("the body is not understood: {0}")]
    Body(#[from] serde_json::Error),
    /// The ledger failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The call's task ended before its work did.
    #[error("the work was interrupted")]
    Interrupted(#[from] JoinError),
    /// The metrics could not be written out.
    #[error("the metrics cannot be encoded: {0}")]
    Metrics(#[from] prometheus::Error),
}

impl ResponseError for AdminError {
    fn status_code(&self) -> StatusCode {
        match self {
            AdminError::Unauthorized => StatusCode::UNAUTHORIZED,
            AdminError::TokenNeeded | AdminError::ForeignHost | AdminError::ForeignOrigin => {
                StatusCode::FORBIDDEN
            }
            AdminError::NotFound
            | AdminError::UnknownCohort
            | AdminError::UnknownDestination
            | AdminError::UnknownPerson => StatusCode::NOT_FOUND,
            AdminError::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            AdminError::ForgetQuery
            | AdminError::ResyncQuery
            | AdminError::Decision(_)
            | AdminError::Body(_) => StatusCode::BAD_REQUEST,
            AdminError::Store(_) => StatusCode::SERVICE_UNAVAILABLE,
            AdminError::Interrupted(_) | AdminError::Metrics(_) => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
        }
    }

    fn error_response(&self) -> HttpResponse {
        let status = self.status_code();
        if status.is_server_error() {
            tracing::error!(error = %self, "an admin call failed");
        }
        let mut response = HttpResponse::build(status);
        if let AdminError::Unauthorized = self {
            response.insert_header((WWW_AUTHENTICATE, HeaderValue::from_static("Bearer")));
        }
        response.json(ErrorReply {
            error: self.to_string(),
        })
    }
}
