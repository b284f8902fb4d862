//! One id a request: in the log, in the answer, and from the caller where it gave one.

use std::sync::Arc;

use actix_web::body::MessageBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::header::{HeaderName, HeaderValue};
use actix_web::middleware::Next;
use actix_web::{Error, HttpMessage};
use tracing::{Instrument, error_span, field};

use crate::clock::Stopwatch;

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Characters; enough for a UUID or a trace id, too few to fill a log.
const MAX_LENGTH: usize = 64;

/// Middleware: gives the request its id and a span, starts its [`Stopwatch`], and sends the id back.
///
/// The span carries the pattern of the route, never the path: paths name people.
pub async fn request_id(
    request: ServiceRequest,
    next: Next<impl MessageBody>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let id: Arc<str> = request
        .headers()
        .get(X_REQUEST_ID)
        .and_then(acceptable)
        .map_or_else(fresh, Arc::from);
    // At the highest level, so that a filter which drops INFO keeps the id of every warning.
    let span = error_span!(
        "request",
        request_id = &*id,
        method = request.method().as_str(),
        route = request.match_pattern().as_deref().unwrap_or("none"),
        status = field::Empty,
    );
    request.extensions_mut().insert(Stopwatch::start());

    let mut response = next.call(request).instrument(span.clone()).await?;

    span.record("status", response.status().as_u16());
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(X_REQUEST_ID, id);
    }
    Ok(response)
}

/// The caller's id, where it can be neither markup nor a forged line in a log.
fn acceptable(id: &HeaderValue) -> Option<&str> {
    let id = id.to_str().ok()?;
    let fits = (1..=MAX_LENGTH).contains(&id.len())
        && id
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    fits.then_some(id)
}

fn fresh() -> Arc<str> {
    format!("{:032x}", fastrand::u128(..)).into()
}

#[cfg(test)]
mod tests {
    use actix_web::middleware::from_fn;
    use actix_web::{App, HttpResponse, test, web};

    use super::*;

    async fn answered_id(sent: Option<&str>, path: &str) -> String {
        let app = test::init_service(
            App::new()
                .wrap(from_fn(request_id))
                .route("/known", web::get().to(HttpResponse::Ok)),
        )
        .await;
        let mut request = test::TestRequest::get().uri(path);
        if let Some(id) = sent {
            request = request.insert_header((X_REQUEST_ID, id));
        }
        let response = test::call_service(&app, request.to_request()).await;
        let id = response.headers().get(X_REQUEST_ID).unwrap();
        id.to_str().unwrap().to_owned()
    }

    #[actix_web::test]
    async fn a_callers_id_comes_back() {
        assert_eq!(answered_id(Some("a.B_c-9"), "/known").await, "a.B_c-9");
        let longest = "a".repeat(MAX_LENGTH);
        assert_eq!(answered_id(Some(&longest), "/known").await, longest);
    }

    #[actix_web::test]
    async fn an_id_that_could_be_something_else_is_replaced() {
        let too_long = "a".repeat(MAX_LENGTH + 1);
        for sent in [None, Some(""), Some("a b"), Some("<b>"), Some(&*too_long)] {
            let id = answered_id(sent, "/known").await;
            assert_eq!(id.len(), 32, "{sent:?}");
            assert!(id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{sent:?}");
        }
    }

    #[actix_web::test]
    async fn unknown_paths_get_one_too() {
        assert_eq!(answered_id(None, "/unknown").await.len(), 32);
    }
}
