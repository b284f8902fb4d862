//! When a connection of the public listener ends.
//!
//! actix bounds the first head of a connection and nothing after it: a chunked body that nobody
//! reads is drained without end, and a second head may take for ever. A stranger could hold every
//! connection with that. So who is refused gets no second request, and a body that was not read to
//! its end closes the connection.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use actix_web::body::{BodySize, BoxBody, MessageBody};
use actix_web::dev::{Payload, ServiceRequest, ServiceResponse};
use actix_web::error::PayloadError;
use actix_web::http::{ConnectionType, StatusCode};
use actix_web::middleware::Next;
use actix_web::web::Bytes;
use actix_web::{Error, HttpMessage};
use futures_util::Stream;

/// Middleware: keeps the connection only where the request was read whole and its sender is known.
pub async fn closing(
    mut request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let payload = Shared(Rc::new(RefCell::new(request.take_payload())));
    request.set_payload(Payload::Stream {
        payload: Box::pin(payload.clone()),
    });
    let mut response = next.call(request).await?;
    if matches!(
        response.status(),
        StatusCode::UNAUTHORIZED
            | StatusCode::NOT_FOUND
            | StatusCode::REQUEST_TIMEOUT
            | StatusCode::PAYLOAD_TOO_LARGE
    ) {
        let head = response.response_mut().head_mut();
        head.set_connection_type(ConnectionType::Close);
    }
    Ok(response.map_body(|_, body| Held {
        body: body.boxed(),
        _payload: payload,
    }))
}

/// A request's body that outlives its reader.
#[derive(Clone)]
struct Shared(Rc<RefCell<Payload>>);

impl Stream for Shared {
    type Item = Result<Bytes, PayloadError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Pin::new(&mut *self.0.borrow_mut()).poll_next(cx)
    }
}

/// An answer that keeps its request's body until it is sent: actix drains a dropped body without a
/// deadline, and closes the connection after one that is still there and not at its end.
struct Held {
    body: BoxBody,
    _payload: Shared,
}

impl MessageBody for Held {
    type Error = <BoxBody as MessageBody>::Error;

    fn size(&self) -> BodySize {
        self.body.size()
    }

    fn poll_next(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Self::Error>>> {
        Pin::new(&mut self.body).poll_next(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use actix_web::middleware::from_fn;
    use actix_web::{App, HttpResponse, HttpServer, web};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;
    use tokio::time::timeout;

    use super::*;

    /// Longer than actix waits for a client that it closes on (1 s), shorter than a keep-alive (5 s).
    const PATIENCE: Duration = Duration::from_secs(3);

    /// What a server answers that reads bodies under `/read` only; `None` while it keeps the
    /// connection.
    async fn answered(sent: &str) -> Option<String> {
        let server = HttpServer::new(|| {
            App::new()
                .wrap(from_fn(closing))
                .route(
                    "/read",
                    web::post().to(async |_: web::Bytes| HttpResponse::Ok()),
                )
                .default_service(web::to(async || HttpResponse::NotFound().body("no")))
        })
        .workers(1)
        .disable_signals()
        .bind("127.0.0.1:0")
        .unwrap();
        let address = server.addrs()[0];
        let server = server.run();
        let handle = server.handle();
        actix_web::rt::spawn(server);
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(sent.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let closed = timeout(PATIENCE, client.read_to_end(&mut answer)).await;
        handle.stop(false).await;
        closed.is_ok().then(|| String::from_utf8(answer).unwrap())
    }

    #[actix_web::test]
    async fn an_unread_chunked_body_does_not_hold_the_connection() {
        let head = "POST /x HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx";
        let answer = answered(head).await.expect("closed");
        assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
    }

    #[actix_web::test]
    async fn who_is_refused_gets_no_second_request() {
        let two = "GET /x HTTP/1.1\r\nhost: x\r\n\r\nP";
        let answer = answered(two).await.expect("closed");
        assert!(answer.contains("connection: close"), "{answer}");
    }

    #[actix_web::test]
    async fn who_is_let_in_keeps_the_connection() {
        let whole = "POST /read HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n\r\nx";
        assert_eq!(answered(whole).await, None);
    }
}
