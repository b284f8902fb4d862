//! The stand-in answers as the recorded server did, and behaves as it was measured to.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use cohort_bridge::standin::{Environment, Fault, StandIn, StandInOptions, Switch};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::support::{RawAnswer, raw};

#[derive(Deserialize)]
struct Recorded {
    name: String,
    request: RecordedRequest,
    response: RecordedResponse,
}

#[derive(Deserialize)]
struct RecordedRequest {
    method: String,
    path: String,
    headers: BTreeMap<String, String>,
    body: Value,
}

#[derive(Deserialize)]
struct RecordedResponse {
    status: u16,
    headers: BTreeMap<String, String>,
    body: Value,
}

/// The recorded pairs in the order of their numbers.
fn recorded() -> Vec<Recorded> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/contract");
    let mut paths: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    paths
        .iter()
        .map(|path| serde_json::from_slice(&fs::read(path).unwrap()).unwrap())
        .collect()
}

/// The environments of the recording, with the placeholders of their keys as keys.
fn recording_stand_in() -> StandIn {
    let environment = |name: &str, flags, switches: &[Switch]| Environment {
        client_key: format!("<{name}_CLIENT_KEY>"),
        server_key: format!("<{name}_SERVER_KEY>"),
        flags,
        switches: switches.to_vec(),
    };
    use Switch::{ClientMaySetTraits, Stopped, StoresTraits};
    StandIn::start(StandInOptions {
        environments: vec![
            environment("MAIN", 1, &[ClientMaySetTraits, StoresTraits]),
            environment("STOPPED", 1, &[ClientMaySetTraits, StoresTraits, Stopped]),
            environment("NOCLIENT", 1, &[StoresTraits]),
            environment("NOPERSIST", 0, &[ClientMaySetTraits]),
        ],
        ..StandInOptions::default()
    })
    .unwrap()
}

fn send(stand_in: &StandIn, request: &RecordedRequest) -> RawAnswer {
    let headers: Vec<_> = request.headers.clone().into_iter().collect();
    let body = match &request.body {
        Value::Null => Vec::new(),
        body => body.to_string().into_bytes(),
    };
    let (method, path) = (&request.method, &request.path);
    raw(stand_in.address(), method, path, &headers, &body)
}

/// A call of our own, with the main server key.
fn call(stand_in: &StandIn, method: &str, path: &str, body: &str) -> (u16, Value) {
    call_with(
        stand_in,
        method,
        path,
        "<MAIN_SERVER_KEY>",
        "application/json",
        body,
    )
}

fn call_with(
    stand_in: &StandIn,
    method: &str,
    path: &str,
    key: &str,
    content_type: &str,
    body: &str,
) -> (u16, Value) {
    let headers = [("X-Environment-Key", key), ("Content-Type", content_type)]
        .map(|(name, value)| (name.to_owned(), value.to_owned()));
    let answer = raw(stand_in.address(), method, path, &headers, body.as_bytes());
    (answer.status, parsed(&answer.body))
}

fn parsed(body: &[u8]) -> Value {
    serde_json::from_slice(body)
        .unwrap_or_else(|_| Value::from(String::from_utf8(body.to_vec()).unwrap()))
}

fn write(stand_in: &StandIn, body: Value) -> (u16, Value) {
    call(stand_in, "POST", IDENTITIES, &body.to_string())
}

fn bulk(stand_in: &StandIn, body: Value) -> (u16, Value) {
    call(stand_in, "PUT", BULK, &body.to_string())
}

const IDENTITIES: &str = "/api/v1/identities/";
const BULK: &str = "/api/v1/traits/bulk/";

/// The state a recorded pair starts from and no earlier pair brings about.
fn prepare(stand_in: &StandIn, name: &str) {
    let body = match name {
        "identities-duplicate-key-answer-differs-from-store" => {
            json!({"identifier": "dup-445483",
                "traits": [{"trait_key": "other", "trait_value": 1}]})
        }
        "identities-get-segment-member-flag-on" => {
            json!({"identifier": "user-445483",
                "traits": [{"trait_key": "mixpanel_cohort_power_users", "trait_value": true}]})
        }
        _ => return,
    };
    assert_eq!(write(stand_in, body).0, 200);
}

/// Replaces what no two servers share, and only where it is not null.
fn without_numbers(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(without_numbers),
        Value::Object(fields) => {
            for (name, value) in fields {
                match name.as_str() {
                    "id" | "environment" | "feature_segment" if value.is_number() => {
                        *value = Value::from(0);
                    }
                    "created_date" if value.is_string() => *value = Value::from(""),
                    // An invented identifier: 32 or 64 hexadecimal digits.
                    "identifier" => {
                        let text = value.as_str().unwrap_or_default();
                        if text.len() >= 32 && text.bytes().all(|b| b.is_ascii_hexdigit()) {
                            *value = Value::from(text.len());
                        }
                    }
                    _ => without_numbers(value),
                }
            }
        }
        _ => {}
    }
}

#[test]
fn recorded_answers_are_given() {
    let stand_in = recording_stand_in();
    let pairs = recorded();
    assert_eq!(pairs.len(), 20);
    for pair in pairs {
        let name = &pair.name;
        prepare(&stand_in, name);
        let answer = send(&stand_in, &pair.request);
        assert_eq!(answer.status, pair.response.status, "{name}");
        assert_eq!(
            answer.content_type, pair.response.headers["Content-Type"],
            "{name}"
        );
        assert_eq!(
            answer.location.as_ref(),
            pair.response.headers.get("Location"),
            "{name}"
        );
        let mut body = parsed(&answer.body);
        let mut expected = pair.response.body;
        without_numbers(&mut body);
        without_numbers(&mut expected);
        assert_eq!(body, expected, "{name}");
    }
}

#[test]
fn the_recorded_calls_leave_what_they_should() {
    let stand_in = recording_stand_in();
    for pair in recorded() {
        prepare(&stand_in, &pair.name);
        send(&stand_in, &pair.request);
    }
    let main = json!({
        "user-445483": {"mixpanel_cohort_power_users": true, "mixpanel_cohort_beta": true},
        // The first of the two values is kept although the answer showed the second.
        "dup-445483": {"other": 1, "mixpanel_cohort_power_users": true},
        "new-445483": {"mixpanel_cohort_power_users": true},
    });
    assert_eq!(json!(stand_in.identities()), main);
    for dropped in ["<NOCLIENT_CLIENT_KEY>", "<NOPERSIST_SERVER_KEY>"] {
        let known = json!(stand_in.identities_of(dropped));
        assert_eq!(known, json!({"user-445483": {}}), "{dropped}");
    }
    assert!(stand_in.identities_of("<STOPPED_SERVER_KEY>").is_empty());
}

#[test]
fn requests_that_store_nothing_under_a_200() {
    let stand_in = recording_stand_in();
    let row = json!([{"trait_key": "t", "trait_value": true}]);
    for body in [
        json!({"traits": row}),
        json!({"identifier": null, "traits": row}),
        json!({"identifier": " \u{a0}\u{1f}", "traits": row}),
        json!({"identifier": "ann", "transient": true, "traits": row}),
    ] {
        let (status, answer) = write(&stand_in, body.clone());
        assert_eq!(status, 200, "{body}");
        assert_eq!(answer["traits"][0]["transient"], true, "{body}");
    }
    assert_eq!(call(&stand_in, "POST", IDENTITIES, "").0, 200);
    assert_eq!(call(&stand_in, "PUT", BULK, ""), (200, json!([])));
    assert_eq!(
        call(&stand_in, "GET", IDENTITIES, ""),
        (200, json!({"detail": "Missing identifier"}))
    );
    assert!(stand_in.identities().is_empty());

    let transient = json!([{"trait_key": "t", "trait_value": true, "transient": true}]);
    let (_, answer) = write(&stand_in, json!({"identifier": "ann", "traits": transient}));
    assert_eq!(answer["traits"][0]["transient"], true);
    assert_eq!(json!(stand_in.identities()), json!({"ann": {}}));
}

#[test]
fn identifiers_are_trimmed_on_writing_only() {
    let stand_in = recording_stand_in();
    let row = json!([{"trait_key": " t\u{1c}", "trait_value": false}]);
    let padded = "\u{a0}\t ann \u{1e}\n";
    let (_, answer) = write(&stand_in, json!({"identifier": padded, "traits": row}));
    assert_eq!(answer["identifier"], "ann");
    let delete = json!([{"identity": {"identifier": " ann "}, "trait_key": "t",
        "trait_value": null}]);
    assert_eq!(bulk(&stand_in, delete), (200, json!([])));
    assert_eq!(json!(stand_in.identities()), json!({"ann": {"t": false}}));
    call(
        &stand_in,
        "GET",
        "/api/v1/identities/?identifier=%20ann+",
        "",
    );
    assert_eq!(
        json!(stand_in.identities()),
        json!({"ann": {"t": false}, " ann ": {}})
    );
}

#[test]
fn what_is_refused_and_how() {
    let stand_in = recording_stand_in();
    let long = |length: usize| "k".repeat(length);
    let one = |key: Value, value: Value| json!({"identifier": "ann", "traits": [{"trait_key": key, "trait_value": value}]});
    let error = |field: &str, said: &str| json!({"traits": [{ field: [said] }]});
    let table = [
        (
            one(json!(""), json!(true)),
            400,
            error("trait_key", "This field may not be blank."),
        ),
        (
            one(json!(null), json!(true)),
            400,
            error("trait_key", "This field may not be null."),
        ),
        (
            one(json!(true), json!(true)),
            400,
            error("trait_key", "Not a valid string."),
        ),
        (
            one(json!("a\0"), json!(true)),
            400,
            error("trait_key", "Null characters are not allowed."),
        ),
        (
            one(json!("t"), json!(long(2001))),
            400,
            error(
                "trait_value",
                "Value string is too long. Must be less than 2000 character",
            ),
        ),
        (
            json!({"identifier": "ann", "traits": [{"trait_key": "t"}]}),
            400,
            error("trait_value", "This field is required."),
        ),
        (
            json!({"identifier": "ann", "traits": [{"trait_key": "t", "trait_value": true},
                {"trait_key": "", "trait_value": true}]}),
            400,
            json!({"traits": [{}, {"trait_key": ["This field may not be blank."]}]}),
        ),
        (
            json!({"identifier": "ann", "traits": null}),
            400,
            json!({"traits": ["This field may not be null."]}),
        ),
        (
            json!({"identifier": true}),
            400,
            json!({"identifier": ["Not a valid string."]}),
        ),
        (
            json!({"identifier": "a\0"}),
            400,
            json!({"identifier": ["Null characters are not allowed."]}),
        ),
        (
            json!([]),
            400,
            json!({"non_field_errors":
                ["Invalid data. Expected a dictionary, but got list."]}),
        ),
    ];
    for (body, status, answer) in table {
        assert_eq!(write(&stand_in, body.clone()), (status, answer), "{body}");
    }
    for value in [json!(2_147_483_648_i64), json!("a\0")] {
        assert_eq!(write(&stand_in, one(json!("t"), value)).0, 500);
    }
    assert!(stand_in.identities().is_empty());
    for fine in [
        json!(2_147_483_647),
        json!(long(2000)),
        json!(1.5),
        json!("x"),
    ] {
        assert_eq!(write(&stand_in, one(json!(long(200)), fine)).0, 200);
    }

    let post = |content_type, body| {
        let key = "<MAIN_SERVER_KEY>";
        call_with(&stand_in, "POST", IDENTITIES, key, content_type, body).0
    };
    assert_eq!(post("application/json", "{"), 400);
    assert_eq!(post("application/json", "\u{feff}{}"), 400);
    assert_eq!(post("application/json; charset=utf-8", "{}"), 200);
    assert_eq!(post("text/plain", "{}"), 415);
    assert_eq!(post("application/json", &"[".repeat(1000)), 500);
    let not_allowed = |method: &str| json!({"detail": format!("Method \"{method}\" not allowed.")});
    assert_eq!(
        call(&stand_in, "PUT", IDENTITIES, "{}"),
        (405, not_allowed("PUT"))
    );
    assert_eq!(
        call(&stand_in, "POST", BULK, "[]"),
        (405, not_allowed("POST"))
    );
    assert_eq!(call(&stand_in, "POST", "/api/v1/nothing/", "{}").0, 404);
    assert_eq!(
        call_with(&stand_in, "POST", IDENTITIES, "", "application/json", "{}"),
        (403, json!({"detail": "Invalid or missing Environment key"}))
    );
}

#[test]
fn a_new_identity_with_a_key_twice_is_created_empty() {
    let stand_in = recording_stand_in();
    let rows = json!([{"trait_key": "t", "trait_value": true},
        {"trait_key": "t", "trait_value": false}]);
    let body = json!({"identifier": "ann", "traits": rows});
    assert_eq!(write(&stand_in, body.clone()).0, 500);
    assert_eq!(json!(stand_in.identities()), json!({"ann": {}}));
    // Now it is known: the answer shows the last, the first is kept; then the last wins.
    assert_eq!(
        write(&stand_in, body.clone()).1["traits"][0]["trait_value"],
        false
    );
    assert_eq!(json!(stand_in.identities()), json!({"ann": {"t": true}}));
    write(&stand_in, body);
    assert_eq!(json!(stand_in.identities()), json!({"ann": {"t": false}}));
}

#[test]
fn bulk_deletes_first_and_stops_midway() {
    let stand_in = recording_stand_in();
    let row = |identifier: &str, key: &str, value: Value| json!({"identity": {"identifier": identifier}, "trait_key": key, "trait_value": value});
    bulk(
        &stand_in,
        json!([row("ann", "t", json!(true)), row("bob", "t", json!(true))]),
    );

    // A 400: the deletion stays done, no row is set.
    let bad = json!([
        row("ann", "t", json!(null)),
        row("new", "t", json!(true)),
        row("", "t", json!(true)),
    ]);
    // Errors are counted without the deletions.
    let blank = json!({"identity": {"identifier": ["This field may not be blank."]}});
    assert_eq!(bulk(&stand_in, bad), (400, json!([{}, blank])));
    assert_eq!(
        json!(stand_in.identities()),
        json!({"ann": {}, "bob": {"t": true}})
    );

    // A 500 midway: a prefix stays, the failing identity is created empty.
    let overlong = "k".repeat(201);
    let midway = json!([
        row("one", "t", json!(true)),
        row("two", &overlong, json!(true)),
        row("three", "t", json!(true)),
    ]);
    assert_eq!(bulk(&stand_in, midway).0, 500);
    let expected = json!({"ann": {}, "bob": {"t": true}, "one": {"t": true}, "two": {}});
    assert_eq!(json!(stand_in.identities()), expected);

    // Set and deleted in one call: the set wins. Twice new: the first is kept, both are shown.
    let both = json!([row("ann", "t", json!(true)), row("ann", "t", json!(null))]);
    bulk(&stand_in, both);
    assert_eq!(stand_in.identity("ann").unwrap()["t"], true);
    let twice = json!([row("ann", "u", json!(true)), row("ann", "u", json!(false))]);
    assert_eq!(
        bulk(&stand_in, twice.clone()).1.as_array().unwrap().len(),
        2
    );
    assert_eq!(stand_in.identity("ann").unwrap()["u"], true);
    bulk(&stand_in, twice);
    assert_eq!(stand_in.identity("ann").unwrap()["u"], false);

    let detail = json!({"detail": "Invalid request data"});
    assert_eq!(bulk(&stand_in, json!({})), (400, detail.clone()));
    assert_eq!(bulk(&stand_in, json!(["x"])), (400, detail));
    let overlong = row(&"i".repeat(2001), "t", json!(true));
    let said = "Ensure this field has no more than 2000 characters.";
    assert_eq!(
        bulk(&stand_in, json!([overlong])),
        (400, json!([{"identity": {"identifier": [said]}}]))
    );
}

/// The database's index takes some 2,700 bytes, and more where they can be compressed.
#[test]
fn an_identifier_that_no_index_row_holds_is_a_server_error() {
    let stand_in = recording_stand_in();
    let han = |count: u32| -> String {
        (0..count)
            .filter_map(|n| char::from_u32(0x4e00 + n * 7))
            .collect()
    };
    let row = |identifier: &str| json!({"identity": {"identifier": identifier}, "trait_key": "t", "trait_value": true});
    let one = |identifier: &str| json!({"identifier": identifier, "traits": [{"trait_key": "t", "trait_value": true}]});
    let (fits, too_long, same) = (han(895), han(905), "😀".repeat(2_000));
    assert_eq!((fits.len(), too_long.len()), (2_685, 2_715));
    for (identifier, status) in [(&fits, 200), (&too_long, 500), (&same, 200)] {
        assert_eq!(write(&stand_in, one(identifier)).0, status);
    }
    // In bulk whatever stands before it is written, and nothing behind it.
    let midway = json!([row("before"), row(&too_long), row("behind")]);
    assert_eq!(bulk(&stand_in, midway).0, 500);
    assert!(stand_in.identity("before").is_some());
    assert!(stand_in.identity(&too_long).is_none() && stand_in.identity("behind").is_none());
}

#[test]
fn a_server_error_for_one_identity_leaves_what_stands_before_it_written() {
    let stand_in = recording_stand_in();
    let row = |identifier: &str, value: Value| json!({"identity": {"identifier": identifier}, "trait_key": "t", "trait_value": value});
    bulk(&stand_in, json!([row("gone", json!(true))]));
    stand_in.fault(Fault::Refuse("sick".into()));
    let rows = json!([
        row("one", json!(true)),
        row("sick", json!(true)),
        row("three", json!(true)),
        row("gone", json!(null)),
    ]);
    assert_eq!(bulk(&stand_in, rows).0, 500);
    let expected = json!({"gone": {}, "one": {"t": true}, "sick": {}});
    assert_eq!(json!(stand_in.identities()), expected);
    assert_eq!(bulk(&stand_in, json!([row("three", json!(true))])).0, 200);
    let sick = json!({"identifier": "sick", "traits": []});
    assert_eq!(write(&stand_in, sick).0, 500);
}

#[test]
fn an_environment_that_hides_sensitive_data_stores_and_shows_nothing() {
    let stand_in = recording_stand_in();
    stand_in.switch("<MAIN_SERVER_KEY>", Switch::HidesSensitiveData, true);
    let rows = json!([{"trait_key": "t", "trait_value": true}]);
    let (status, answer) = write(&stand_in, json!({"identifier": "ann", "traits": rows}));
    assert_eq!((status, &answer["traits"]), (200, &json!([])));
    assert_eq!(json!(stand_in.identities()), json!({"ann": {"t": true}}));
    let path = "/api/v1/identities/?identifier=ann";
    assert_eq!(call(&stand_in, "GET", path, "").1["traits"], json!([]));
}
