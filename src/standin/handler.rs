//! From HTTP to [`Ask`] and back, through whatever is to go wrong.

use std::any::Any;
use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

use actix_web::dev::Extensions;
use actix_web::http::header::{self, HeaderMap, HeaderName};
use actix_web::http::{StatusCode, Version};
use actix_web::web::{Bytes, Data, Payload};
use actix_web::{HttpRequest, HttpResponse};
use futures_util::StreamExt;

use super::ask::{Accept, Ask};
use super::fault::Fault;
use super::reply::Reply;
use super::world::World;

const ENVIRONMENT_KEY: HeaderName = HeaderName::from_static("x-environment-key");

/// The connection's socket, to break it with.
pub(super) struct Wire(TcpStream);

impl Wire {
    /// Sends these bytes past the HTTP server, then closes the connection.
    fn cut(&self, last: &[u8]) {
        // A client that has gone has nothing to be told.
        let _ = (&self.0).write_all(last);
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

pub(super) fn keep_wire(connection: &dyn Any, data: &mut Extensions) {
    if let Some(stream) = connection.downcast_ref::<actix_web::rt::net::TcpStream>()
        && let Ok(socket) = stream.as_fd().try_clone_to_owned()
    {
        data.insert(Wire(TcpStream::from(socket)));
    }
}

pub(super) async fn handle(
    request: HttpRequest,
    payload: Payload,
    world: Data<World>,
) -> HttpResponse {
    if world.down.load(Ordering::SeqCst) {
        return cut(&request, b"");
    }
    let body = read(payload).await;
    let ask = ask(&request, body);
    let endpoint = ask.endpoint();
    if !world.faults.armed() && !world.traffic.is_busy() {
        let reply = ask.answer(&world);
        world.traffic.count(endpoint, reply.status);
        return response(reply);
    }
    let identifiers = ask.identifiers();
    let in_flight = world.traffic.begin(&identifiers);
    let fault = if world.faults.armed() {
        world.faults.next(endpoint, &identifiers)
    } else {
        Fault::Pass
    };
    let reply = match fault {
        Fault::Pass => ask.answer(&world),
        Fault::Refuse(identifier) => ask.answer_unless(&world, Some(&identifier)),
        Fault::Delay(delay) => {
            actix_web::rt::time::sleep(delay).await;
            ask.answer(&world)
        }
        Fault::Hold => {
            world.faults.hold().await;
            ask.answer(&world)
        }
        Fault::Answer {
            status,
            retry_after,
            body,
        } => {
            world.traffic.count(endpoint, status);
            let mut response = response(if body.starts_with(['{', '[']) {
                Reply::json(status, body)
            } else {
                Reply::html(status, body)
            });
            if let Some(value) = retry_after.and_then(|value| value.parse().ok()) {
                response.headers_mut().insert(header::RETRY_AFTER, value);
            }
            return response;
        }
        Fault::Hang | Fault::LandLate => {
            world.traffic.count(endpoint, 0);
            if matches!(fault, Fault::LandLate) {
                world.keep_late(ask.into_owned());
            }
            // To its sender the call ends with a time-out of which nothing is heard here.
            drop(in_flight);
            world.faults.hang().await
        }
        Fault::Mimic => ask.mimic(),
        Fault::CloseAndLandLate => {
            world.traffic.count(endpoint, 0);
            world.keep_late(ask.into_owned());
            drop(in_flight);
            return cut(&request, b"");
        }
        Fault::CloseBeforeStoring => {
            world.traffic.count(endpoint, 0);
            drop(in_flight);
            return cut(&request, b"");
        }
        Fault::CloseAfterStoring => {
            ask.answer(&world);
            world.traffic.count(endpoint, 0);
            drop(in_flight);
            return cut(&request, b"");
        }
        Fault::Truncate => {
            let reply = ask.answer(&world);
            world.traffic.count(endpoint, reply.status);
            drop(in_flight);
            return cut(&request, &half(&reply));
        }
    };
    world.traffic.count(endpoint, reply.status);
    response(reply)
}

/// The body; a chunk of its own is not copied.
async fn read(payload: Payload) -> Bytes {
    let mut payload = payload.into_inner();
    let Some(Ok(first)) = payload.next().await else {
        return Bytes::new();
    };
    let mut whole: Option<Vec<u8>> = None;
    while let Some(Ok(chunk)) = payload.next().await {
        whole
            .get_or_insert_with(|| first.to_vec())
            .extend_from_slice(&chunk);
    }
    whole.map_or(first, Bytes::from)
}

fn ask(request: &HttpRequest, body: Bytes) -> Ask<'_> {
    let headers = request.headers();
    let accept = match text(headers, &header::ACCEPT) {
        None => Accept::Json,
        Some(accept) if accept.contains("text/html") => Accept::Page,
        Some(accept)
            if ["application/json", "*/*", "application/*"]
                .iter()
                .any(|kind| accept.contains(kind)) =>
        {
            Accept::Json
        }
        Some(_) => Accept::Other,
    };
    Ask {
        method: request.method().clone(),
        path: request.path().into(),
        query: request.query_string().into(),
        key: text(headers, &ENVIRONMENT_KEY).map(|key| key.trim().into()),
        accept,
        content_type: text(headers, &header::CONTENT_TYPE)
            .unwrap_or_default()
            .into(),
        chunked: headers.contains_key(header::TRANSFER_ENCODING),
        body,
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn response(reply: Reply) -> HttpResponse {
    let status = StatusCode::from_u16(reply.status).unwrap_or(StatusCode::OK);
    let mut response = HttpResponse::build(status);
    response.insert_header((header::CONTENT_TYPE, reply.content_type));
    if let Some(location) = reply.location {
        response.insert_header((header::LOCATION, location));
    }
    response.body(reply.body)
}

/// The answer's head, and half of its body.
fn half(reply: &Reply) -> Vec<u8> {
    let mut bytes = format!(
        "{:?} {} OK\r\ncontent-type: {}\r\ncontent-length: {}\r\n\r\n",
        Version::HTTP_11,
        reply.status,
        reply.content_type,
        reply.body.len()
    )
    .into_bytes();
    bytes.extend_from_slice(&reply.body[..reply.body.len() / 2]);
    bytes
}

fn cut(request: &HttpRequest, last: &[u8]) -> HttpResponse {
    if let Some(wire) = request.conn_data::<Wire>() {
        wire.cut(last);
    }
    // Goes nowhere: the connection is closed.
    HttpResponse::Ok().finish()
}
