//! The admin listener's OpenAPI document, derived from its handlers and views.

use actix_web::{Responder, web};
use utoipa::openapi::OpenApi as Tree;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{IntoResponses, Modify, OpenApi};

use super::views::{DeadLetterOrder, ErrorReply, ResyncRate};
use super::{cohorts, pauses, plan, resync};
use crate::http::{admin, health};

/// The document; its title and version are the crate's.
#[derive(OpenApi)]
#[openapi(
    info(description = "The admin listener of cohort-bridge."),
    paths(
        admin::status_page,
        health::livez,
        health::readyz,
        admin::metrics,
        admin::openapi::openapi,
        admin::status,
        cohorts::cohorts,
        resync::resync_cohort,
        resync::cancel_cohort,
        resync::resync_destination,
        resync::cancel_destination,
        cohorts::held_removals,
        cohorts::decide_held_removals,
        cohorts::retire,
        pauses::pause_cohort,
        pauses::resume_cohort,
        pauses::pause_destination,
        pauses::resume_destination,
        plan::plan,
        admin::member,
        admin::forget,
        admin::dead_letters,
        admin::retry_dead_letters,
        admin::drop_dead_letters,
    ),
    components(schemas(DeadLetterOrder, ResyncRate)),
    modifiers(&AdminToken)
)]
pub struct Document;

/// How an operator proves to be one; the name is the one that the handlers' `security` gives.
struct AdminToken;

impl Modify for AdminToken {
    fn modify(&self, document: &mut Tree) {
        let scheme = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some(
                "The admin token. Where none is set, a listener on loopback takes the call \
                 without, and any other refuses it.",
            ))
            .build();
        document
            .components
            .get_or_insert_default()
            .add_security_scheme("admin_token", SecurityScheme::Http(scheme));
    }
}

/// What a call that needs an [`Operator`](super::Operator) answers to anybody else.
#[derive(IntoResponses)]
pub enum Refused {
    /// The admin token is missing or another.
    #[response(status = 401)]
    Unauthorized(ErrorReply),
    /// No admin token is set, and the call does not come from this machine.
    #[response(status = 403)]
    Forbidden(ErrorReply),
}

/// What a call that needs the ledger answers without it.
#[derive(IntoResponses)]
#[response(status = 503, description = "The ledger cannot be used.")]
pub struct LedgerFailed(pub ErrorReply);

/// What a call answers whose work broke off.
#[derive(IntoResponses)]
#[response(status = 500, description = "The work was not done to its end.")]
pub struct Interrupted(pub ErrorReply);

/// This document.
#[utoipa::path(
    get,
    path = "/openapi.json",
    responses((status = 200, description = "OpenAPI 3.1.", body = Object))
)]
pub async fn openapi() -> impl Responder {
    web::Json(Document::openapi())
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use actix_web::http::Method;
    use actix_web::http::header::CONTENT_TYPE;
    use actix_web::test::{TestRequest, read_body};
    use serde_json::{Value, json};

    use super::*;
    use crate::cohort::Action;
    use crate::http::ADMIN_ROUTES;
    use crate::http::admin::tests::Desk;
    use crate::http::admin::views::*;
    use crate::http::stub_store::{cohort, troubled_cohort};
    use crate::store::{RunCounts, StoreError};

    struct Call {
        method: Method,
        path: String,
        operation: Value,
    }

    impl Call {
        /// The path of a cohort and a person that the stub knows.
        fn real_path(&self) -> String {
            self.path
                .replace("{source}", "default")
                .replace("{cohort_id}", "7")
                .replace("{identifier}", "usr_1")
                .replace("{name}", "production")
        }

        /// A body that is right, where the call takes one.
        fn right_body(&self) -> &'static str {
            match self.operation["requestBody"]["required"] {
                Value::Bool(true) => r#"{"decision": "discard"}"#,
                _ => "",
            }
        }

        fn needs_token(&self) -> bool {
            match &self.operation["security"] {
                Value::Null => false,
                security => {
                    assert_eq!(*security, json!([{"admin_token": []}]), "{}", self.path);
                    true
                }
            }
        }
    }

    fn document() -> Value {
        serde_json::to_value(Document::openapi()).unwrap()
    }

    fn calls(document: &Value) -> Vec<Call> {
        let paths = document["paths"].as_object().unwrap();
        let calls = paths.iter().flat_map(|(path, operations)| {
            let operations = operations.as_object().unwrap();
            operations.iter().map(|(method, operation)| Call {
                method: method.to_uppercase().parse().unwrap(),
                path: path.clone(),
                operation: operation.clone(),
            })
        });
        calls.collect()
    }

    /// Holds `value` to `schema`. A keyword that is not known here fails, rather than passes.
    fn fits(document: &Value, schema: &Value, value: &Value) -> Result<(), String> {
        let wrong = |what: &str| Err(format!("{what}: {value} is not {schema}"));
        for (keyword, rule) in schema.as_object().unwrap() {
            match keyword.as_str() {
                "description" => {}
                "$ref" => {
                    let pointer = rule.as_str().unwrap().strip_prefix('#').unwrap();
                    let target = document
                        .pointer(pointer)
                        .ok_or("a reference leads nowhere")?;
                    fits(document, target, value)?;
                }
                "type" => {
                    let one = std::slice::from_ref(rule);
                    let types = rule.as_array().map_or(one, Vec::as_slice);
                    let is = |name: &Value| match name.as_str().unwrap() {
                        "null" => value.is_null(),
                        "boolean" => value.is_boolean(),
                        "integer" => value.is_i64() || value.is_u64(),
                        "number" => value.is_number(),
                        "string" => value.is_string(),
                        "array" => value.is_array(),
                        "object" => value.is_object(),
                        other => panic!("type {other}"),
                    };
                    if !types.iter().any(is) {
                        return wrong("type");
                    }
                }
                "format" => assert!(["int32", "int64", "double"].contains(&rule.as_str().unwrap())),
                "minimum" => {
                    assert_eq!(*rule, 0);
                    if value.as_i64().is_some_and(|number| number < 0) {
                        return wrong("minimum");
                    }
                }
                "exclusiveMinimum" => {
                    assert_eq!(rule.as_f64(), Some(0.0));
                    if value.as_f64().is_some_and(|number| number <= 0.0) {
                        return wrong("exclusiveMinimum");
                    }
                }
                "enum" => {
                    if !rule.as_array().unwrap().contains(value) {
                        return wrong("enum");
                    }
                }
                "oneOf" => {
                    let schemas = rule.as_array().unwrap().iter();
                    if schemas
                        .filter(|one| fits(document, one, value).is_ok())
                        .count()
                        != 1
                    {
                        return wrong("oneOf");
                    }
                }
                "items" => {
                    for item in value.as_array().into_iter().flatten() {
                        fits(document, rule, item)?;
                    }
                }
                "required" => {
                    for name in rule.as_array().unwrap() {
                        if value.get(name.as_str().unwrap()).is_none() {
                            return wrong(&format!("{name} is missing"));
                        }
                    }
                }
                "properties" => {
                    for (name, value) in value.as_object().into_iter().flatten() {
                        match rule.get(name) {
                            Some(schema) => fits(document, schema, value)?,
                            None => return wrong(&format!("{name} is not documented")),
                        }
                    }
                }
                "propertyNames" => assert_eq!(*rule, json!({"type": "string"})),
                "additionalProperties" if *rule == false => {}
                "additionalProperties" => {
                    assert!(schema["properties"].is_null(), "{schema}");
                    for value in value.as_object().into_iter().flat_map(|map| map.values()) {
                        fits(document, rule, value)?;
                    }
                }
                other => panic!("keyword {other}"),
            }
        }
        Ok(())
    }

    /// Makes a call and holds the answer to what the document says of it; the status.
    async fn ask(desk: &Desk, document: &Value, call: &Call, path: &str, body: &str) -> u16 {
        let request = TestRequest::with_uri(path)
            .method(call.method.clone())
            .insert_header(("host", "localhost:9090"))
            .set_payload(body.to_owned());
        let response = desk.call(request).await;
        let status = response.status().as_u16();
        let documented = &call.operation["responses"][status.to_string()];
        assert!(documented.is_object(), "{path} answers {status}");

        let (media, content) = documented["content"]
            .as_object()
            .and_then(|content| content.iter().next())
            .unwrap();
        let real = response.headers().get(CONTENT_TYPE).unwrap().to_str();
        assert_eq!(real.unwrap().split(';').next().unwrap(), media, "{path}");
        let body = read_body(response).await;
        let value = serde_json::from_slice(&body)
            .unwrap_or_else(|_| Value::from(std::str::from_utf8(&body).unwrap()));
        if let Err(fault) = fits(document, &content["schema"], &value) {
            panic!("{path}, {status}: {fault}");
        }
        status
    }

    #[test]
    fn every_route_is_in_the_document_and_nothing_else() {
        let document = document();
        let calls = calls(&document);
        let written: BTreeSet<&str> = calls.iter().map(|call| call.path.as_str()).collect();
        let real: BTreeSet<&str> = ADMIN_ROUTES.iter().map(|(path, _)| *path).collect();
        assert_eq!(written, real);
        // As many calls as routes: the methods are then right if the calls are answered.
        assert_eq!(calls.len(), ADMIN_ROUTES.len());
    }

    #[actix_web::test]
    async fn every_call_is_answered_as_documented() {
        let document = document();
        for call in calls(&document) {
            let path = call.real_path();
            let body = call.right_body();
            let mut seen = BTreeSet::new();

            let desk = Desk::on_loopback();
            *desk.store.cohorts.lock().unwrap() = vec![troubled_cohort("7"), cohort("9")];
            let answered = ask(&desk, &document, &call, &path, body).await;
            assert_eq!(answered, 200, "{path}");
            seen.insert(200);
            let other = path.replace("/7/", "/8/").replace("usr_1", "usr_2");
            let other = other.replace("/production/", "/nowhere/");
            seen.insert(ask(&desk, &document, &call, &other, body).await);
            seen.insert(ask(&desk, &document, &call, &path, "[]").await);
            let odd = format!("{path}?traits=keep");
            seen.insert(ask(&desk, &document, &call, &odd, body).await);
            desk.store.fail_with(Some(|| StoreError::Full));
            seen.insert(ask(&desk, &document, &call, &path, body).await);

            let guarded = Desk::at("0.0.0.0:9090", Some("tok-en"));
            let status = ask(&guarded, &document, &call, &path, body).await;
            assert_eq!(status == 401, call.needs_token(), "{path}");
            seen.insert(status);
            let closed = Desk::at("0.0.0.0:9090", None);
            seen.insert(ask(&closed, &document, &call, &path, body).await);

            let documented = call.operation["responses"].as_object().unwrap().keys();
            for status in documented.map(|status| status.parse().unwrap()) {
                // 500 takes a panic.
                let shown = status == 500 || seen.contains(&status);
                assert!(shown, "{path} never answers {status}");
            }
        }
    }

    #[actix_web::test]
    async fn a_body_is_taken_where_the_document_says_so() {
        let document = document();
        for call in calls(&document) {
            let body = &call.operation["requestBody"];
            let is_filter = call.path.starts_with("/api/v1/dead-letters/");
            let is_decision = call.method == Method::POST && call.path.ends_with("/held-removals");
            let is_rate = call.method == Method::POST && call.path.ends_with("/resync");
            let takes_one = is_filter || is_decision || is_rate;
            assert_eq!(body.is_object(), takes_one, "{}", call.path);
            if body.is_null() {
                continue;
            }
            assert_eq!(body["required"] == true, is_decision, "{}", call.path);
            let schema = &body["content"]["application/json"]["schema"];
            for order in [
                json!({}),
                json!({"destination": "production", "identifier": "usr_1"}),
                json!({"destination": null}),
                json!({"destination": 1}),
                json!({"identifer": "usr_1"}),
                json!({"max_calls_per_second": 2}),
                json!({"max_calls_per_second": 0.5}),
                json!({"max_calls_per_second": null}),
                json!({"max_calls_per_second": 0}),
                json!({"max_calls_per_second": -0.5}),
                json!({"max_calls_per_second": "2"}),
                json!({"decision": "approve"}),
                json!({"decision": "discard"}),
                json!({"decision": "keep"}),
                json!({"decision": null}),
                json!({"decision": "approve", "identifier": "usr_1"}),
                json!(["approve"]),
                json!([]),
                json!(null),
            ] {
                let desk = Desk::on_loopback();
                let path = call.real_path();
                let status = ask(&desk, &document, &call, &path, &order.to_string()).await;
                let fits = fits(&document, schema, &order).is_ok();
                assert_eq!(status, if fits { 200 } else { 400 }, "{order}");
            }
        }
    }

    #[test]
    fn what_may_be_null_may_be_null() {
        let document = document();
        let delivery = DeliveryReply {
            name: "production".into(),
            written: 0,
            pending: 0,
            dead: 0,
            oldest_pending_seconds: None,
            ready: true,
        };
        let session = SessionReply {
            id: None,
            action: Action::RemoveMembers,
            pages_received: 1,
            pages_total: 1,
            completed_at: None,
        };
        let cohort = |session| CohortReply {
            source: "default".into(),
            cohort_id: "7".into(),
            project_id: "1".into(),
            name: "Seven".into(),
            former_name: None,
            state: StandingWord::Retiring,
            paused: true,
            trait_key: "seven".into(),
            members: 0,
            last_heard_at: "1970-01-01T00:00:00.000Z".into(),
            session,
            needs_full_sync: None,
            held_removals: None,
            set_aside: BTreeMap::new(),
            runs: RunCounts::default().into(),
            destinations: vec![delivery.clone()],
        };
        let destination = DestinationReply {
            name: "production".into(),
            state: "ok".into(),
            reason: None,
            paused: true,
            dry_run: true,
            warning: None,
            in_flight: 0,
            in_flight_limit: 64,
            calls: None,
            canary: CanaryReply {
                stayed_at: None,
                next_at: None,
            },
            resync: None,
        };
        let everything = ResyncReply {
            done: 0,
            of: 1,
            cohort: None,
            max_calls_per_second: None,
            waiting: 0,
        };
        for (name, value) in [
            ("CohortReply", json!(cohort(None))),
            ("CohortReply", json!(cohort(Some(session)))),
            ("DestinationReply", json!(destination)),
            ("HeldRemovalsReply", json!(HeldRemovalsReply::of(None))),
            ("DeadLetterOrder", json!(DeadLetterOrder::default())),
            ("ResyncRate", json!(ResyncRate::default())),
            ("ResyncReply", json!(everything)),
        ] {
            let schema = &document["components"]["schemas"][name];
            assert_eq!(fits(&document, schema, &value), Ok(()), "{name}");
        }
    }

    #[test]
    fn only_these_keys_may_be_missing() {
        let document = document();
        let mut optional = BTreeSet::new();
        for (name, schema) in document["components"]["schemas"].as_object().unwrap() {
            for key in schema["properties"].as_object().into_iter().flatten() {
                let required = schema["required"].as_array();
                if !required.is_some_and(|required| required.iter().any(|one| one == key.0)) {
                    optional.insert(format!("{name}.{}", key.0));
                }
            }
        }
        let expected = [
            "DeadLetterOrder.destination",
            "DeadLetterOrder.identifier",
            "HealthReply.reason",
            "ResyncRate.max_calls_per_second",
        ];
        assert_eq!(optional, expected.map(str::to_owned).into());
    }

    #[test]
    fn the_head_is_the_crates() {
        let document = document();
        assert!(document["openapi"].as_str().unwrap().starts_with("3.1."));
        assert_eq!(document["info"]["title"], env!("CARGO_PKG_NAME"));
        assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
        let scheme = &document["components"]["securitySchemes"]["admin_token"];
        assert_eq!(scheme["type"], "http");
        assert_eq!(scheme["scheme"], "bearer");
    }

    #[test]
    fn the_parameters_are_those_of_the_path() {
        for call in calls(&document()) {
            let in_path: Vec<&str> = call
                .path
                .split('/')
                .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
                .collect();
            let parameters = call.operation["parameters"].as_array();
            let written: Vec<&str> = parameters
                .into_iter()
                .flatten()
                .filter(|one| match one["in"].as_str().unwrap() {
                    "path" => {
                        assert_eq!(one["required"], true);
                        true
                    }
                    "query" => {
                        let name = match call.path.ends_with("/resync") {
                            true => "destination",
                            false => "traits",
                        };
                        assert_eq!(
                            (&one["name"], &one["required"]),
                            (&json!(name), &json!(false))
                        );
                        false
                    }
                    other => panic!("a parameter in {other}"),
                })
                .map(|one| one["name"].as_str().unwrap())
                .collect();
            assert_eq!(written, in_path, "{}", call.path);
        }
    }
}
