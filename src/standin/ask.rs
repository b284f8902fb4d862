//! A request, and how Flagsmith reads it.

use std::borrow::Cow;
use std::collections::HashSet;

use actix_web::http::Method;
use actix_web::web::Bytes;
use serde_json::{Value, json};

use super::reply::Reply;
use super::traffic::Endpoint;
use super::validate::{BulkRow, Identify, bulk_row, identify, plain};
use super::world::{KeyKind, LiveEnvironment, Switch, World};

const IDENTITIES: &str = "/api/v1/identities/";
const BULK: &str = "/api/v1/traits/bulk/";

/// A request, whole.
#[derive(Clone, Debug)]
pub(super) struct Ask<'a> {
    pub method: Method,
    pub path: Cow<'a, str>,
    pub query: Cow<'a, str>,
    pub key: Option<Cow<'a, str>>,
    pub accept: Accept,
    pub content_type: Cow<'a, str>,
    /// With `Transfer-Encoding: chunked`, whose body Flagsmith does not read.
    pub chunked: bool,
    pub body: Bytes,
}

/// What the client wants back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Accept {
    Json,
    Page,
    Other,
}

impl Ask<'_> {
    /// The same, to be kept beyond the request.
    pub fn into_owned(self) -> Ask<'static> {
        let own = |text: Cow<'_, str>| Cow::Owned(text.into_owned());
        Ask {
            method: self.method,
            path: own(self.path),
            query: own(self.query),
            key: self.key.map(own),
            accept: self.accept,
            content_type: own(self.content_type),
            chunked: self.chunked,
            body: self.body,
        }
    }

    pub fn endpoint(&self) -> Endpoint {
        match (&self.method, &*self.path) {
            (&Method::POST, IDENTITIES) => Endpoint::Write,
            (&Method::GET, IDENTITIES) => Endpoint::Read,
            (&Method::PUT, BULK) => Endpoint::Bulk,
            _ => Endpoint::Other,
        }
    }

    /// The identifiers it is about, as sent, each once; at least one, if only an empty one.
    pub fn identifiers(&self) -> Vec<String> {
        if self.endpoint() == Endpoint::Read {
            return vec![self.queried().unwrap_or_default()];
        }
        let body: Value = serde_json::from_slice(&self.body).unwrap_or_default();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let Value::Array(rows) = &body else {
            return vec![text(&body["identifier"])];
        };
        let mut seen = HashSet::new();
        let named = rows.iter().map(|row| text(&row["identity"]["identifier"]));
        let named: Vec<_> = named.filter(|name| seen.insert(name.clone())).collect();
        if named.is_empty() {
            vec![String::new()]
        } else {
            named
        }
    }

    /// Does what it asks for.
    pub fn answer(&self, world: &World) -> Reply {
        self.answer_unless(world, None)
    }

    /// Does what it asks for, unless it comes to write to `refused`, which the database refuses.
    pub fn answer_unless(&self, world: &World, refused: Option<&str>) -> Reply {
        if matches!(&*self.path, "/api/v1/identities" | "/api/v1/traits/bulk") {
            let query = if self.query.is_empty() { "" } else { "?" };
            return Reply::redirect(format!("{}/{query}{}", self.path, self.query));
        }
        if !matches!(&*self.path, IDENTITIES | BULK) {
            return Reply::page(404);
        }
        if self.accept == Accept::Other {
            return Reply::detail(406, "Could not satisfy the request Accept header.");
        }
        let Some(key) = self.key.as_deref().filter(|key| !key.is_empty()) else {
            return Reply::detail(403, "Invalid or missing Environment key");
        };
        let Some((environment, kind)) = world.environment(key) else {
            return Reply::detail(403, "Invalid or missing Environment Key");
        };
        if environment.is(Switch::Stopped) {
            return Reply::detail(403, "Organisation is disabled from serving flags.");
        }
        let reply = match self.endpoint() {
            Endpoint::Write if refused.is_some_and(|refused| self.identifiers() == [refused]) => {
                Reply::page(500)
            }
            Endpoint::Write => self.identify(environment, kind),
            Endpoint::Read => match self.queried().filter(|named| !named.is_empty()) {
                Some(identifier) => environment.read(&identifier),
                None => Reply::detail(200, "Missing identifier"),
            },
            Endpoint::Bulk => self.bulk(environment, kind, refused),
            Endpoint::Other => {
                Reply::detail(405, &format!("Method \"{}\" not allowed.", self.method))
            }
        };
        if self.accept == Accept::Page {
            return Reply::html(reply.status, "<!doctype html><title>Flagsmith</title>");
        }
        reply
    }

    /// The answer of something that knows no more than the request.
    pub fn mimic(&self) -> Reply {
        match self.queried() {
            Some(identifier) => Reply::value(200, &json!({"identifier": identifier, "traits": []})),
            None => Reply::json(200, self.body.to_vec()),
        }
    }

    fn queried(&self) -> Option<String> {
        url::form_urlencoded::parse(self.query.as_bytes())
            .filter(|(name, _)| name == "identifier")
            .last()
            .map(|(_, value)| value.into_owned())
    }

    /// The body as Django hands it on: none of it where it was chunked.
    fn seen_body(&self) -> &[u8] {
        if self.chunked { &[] } else { &self.body }
    }

    fn parsed(&self) -> Result<Value, Reply> {
        let is_json = self.content_type.split(';').next().map(str::trim);
        if !is_json.is_some_and(|kind| kind.eq_ignore_ascii_case("application/json")) {
            let said = format!(
                "Unsupported media type \"{}\" in request.",
                self.content_type
            );
            return Err(Reply::detail(415, &said));
        }
        serde_json::from_slice(self.seen_body()).map_err(|error| {
            let said = error.to_string();
            if said.contains("recursion limit") {
                Reply::page(500)
            } else {
                Reply::detail(400, &format!("JSON parse error - {said}"))
            }
        })
    }

    fn identify(&self, environment: &LiveEnvironment, key: KeyKind) -> Reply {
        let body = self.seen_body();
        if body.is_empty() {
            return environment.identify(
                key,
                Identify {
                    identifier: None,
                    traits: Vec::new(),
                    transient: false,
                },
            );
        }
        if self.content_type == "application/json"
            && let Some(ask) = plain(body)
        {
            return environment.identify(key, ask);
        }
        let body = match self.parsed() {
            Ok(body) => body,
            Err(reply) => return reply,
        };
        match identify(&body) {
            Ok(ask) => environment.identify(key, ask),
            Err(reply) => reply,
        }
    }

    fn bulk(&self, environment: &LiveEnvironment, key: KeyKind, refused: Option<&str>) -> Reply {
        if environment.bars(key) {
            return Reply::page(400);
        }
        if !environment.is(Switch::StoresTraits) {
            return Reply::detail(403, "Organisation is not authorised to store traits.");
        }
        if self.seen_body().is_empty() {
            return Reply::json(200, "[]");
        }
        let rows = match self.parsed() {
            Ok(Value::Array(rows)) if rows.iter().all(Value::is_object) => rows,
            Ok(_) => return Reply::detail(400, "Invalid request data"),
            Err(reply) => return reply,
        };
        // Deletions run first, and stay done whatever becomes of the rest.
        let (nulls, sets): (Vec<Value>, Vec<Value>) = rows
            .into_iter()
            .partition(|row| row["trait_value"].is_null());
        for row in &nulls {
            match (
                row["identity"]["identifier"].as_str(),
                row["trait_key"].as_str(),
            ) {
                (Some(identifier), Some(key)) if !identifier.contains('\0') => {
                    environment.delete(identifier, key);
                }
                _ => return Reply::page(500),
            }
        }
        let checked: Vec<Result<BulkRow<'_>, Value>> = sets.iter().map(bulk_row).collect();
        if checked.iter().any(Result::is_err) {
            let errors: Vec<Value> = checked
                .into_iter()
                .map(|row| row.err().unwrap_or_else(|| json!({})))
                .collect();
            return Reply::value(400, &Value::Array(errors));
        }
        let rows: Vec<BulkRow<'_>> = checked.into_iter().flatten().collect();
        if environment.set_rows(&rows, refused).is_err() {
            return Reply::page(500);
        }
        let echo: Vec<Value> = rows
            .iter()
            .map(|row| {
                json!({"identity": {"identifier": row.identifier}, "trait_value": row.value,
                    "trait_key": row.key})
            })
            .collect();
        Reply::value(200, &Value::Array(echo))
    }
}
