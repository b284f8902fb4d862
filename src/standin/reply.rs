//! Answers, made by hand: they are what the stand-in's time goes into.

use serde::Serialize;
use serde_json::Value;

/// The trait whose `true` turns the first flag on, as in the recorded environment.
const SEGMENT_TRAIT: &str = "mixpanel_cohort_power_users";

/// What a flag's feature looks like, less its opening and its name.
const FEATURE_REST: &str = r#","created_date":"2026-11-23T14:21:44.907151Z","description":null,"initial_value":null,"default_enabled":false,"type":"STANDARD"},"feature_state_value":null,"#;

/// The same in an environment that hides sensitive data.
const FEATURE_REST_HIDDEN: &str = r#","created_date":null,"description":null,"initial_value":null,"default_enabled":null,"type":null},"feature_state_value":null,"#;

/// An answer.
#[derive(Debug)]
pub(super) struct Reply {
    pub status: u16,
    pub content_type: &'static str,
    pub location: Option<String>,
    pub body: Vec<u8>,
}

const JSON: &str = "application/json";
const HTML: &str = "text/html; charset=utf-8";

impl Reply {
    pub fn json(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Reply {
            status,
            content_type: JSON,
            location: None,
            body: body.into(),
        }
    }

    pub fn value(status: u16, body: &Value) -> Self {
        Reply::json(status, body.to_string())
    }

    pub fn detail(status: u16, detail: &str) -> Self {
        Reply::value(status, &serde_json::json!({ "detail": detail }))
    }

    /// Django's page for a status.
    pub fn page(status: u16) -> Self {
        Reply::html(status, page(status))
    }

    pub fn html(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Reply {
            status,
            content_type: HTML,
            location: None,
            body: body.into(),
        }
    }

    pub fn redirect(location: String) -> Self {
        Reply {
            location: Some(location),
            ..Reply::html(301, "")
        }
    }
}

/// Django's page for a status.
pub(super) fn page(status: u16) -> String {
    let name = match status {
        400 => "Bad Request (400)".to_owned(),
        404 => "Not Found".to_owned(),
        500 => "Server Error (500)".to_owned(),
        other => format!("Error ({other})"),
    };
    format!(
        "\n<!doctype html>\n<html lang=\"en\">\n<head>\n  <title>{name}</title>\n</head>\n<body>\n  \
         <h1>{name}</h1><p></p>\n</body>\n</html>\n"
    )
}

/// A trait as an answer shows it.
pub(super) struct Shown<'a> {
    /// `None` for one that was not read back from the store.
    pub id: Option<u64>,
    pub key: &'a str,
    pub value: &'a Value,
    pub transient: bool,
}

/// How an environment shows itself.
#[derive(Clone, Copy)]
pub(super) struct View {
    /// From 1.
    pub environment: usize,
    pub flags: usize,
    pub hidden: bool,
}

/// The body of an answer about an identity.
pub(super) fn identity(identifier: &str, shown: &[Shown<'_>], view: View) -> Vec<u8> {
    let mut out = Vec::with_capacity(160 + 100 * shown.len() + 320 * view.flags);
    out.extend_from_slice(br#"{"identifier":"#);
    push(&mut out, identifier);
    out.extend_from_slice(br#","traits":["#);
    if !view.hidden {
        for (index, entry) in shown.iter().enumerate() {
            out.extend_from_slice(if index == 0 {
                br#"{"id":"#
            } else {
                br#",{"id":"#
            });
            push(&mut out, &entry.id);
            out.extend_from_slice(br#","trait_key":"#);
            push(&mut out, entry.key);
            out.extend_from_slice(br#","trait_value":"#);
            push(&mut out, entry.value);
            out.extend_from_slice(br#","transient":"#);
            push(&mut out, &entry.transient);
            out.push(b'}');
        }
    }
    out.extend_from_slice(br#"],"flags":["#);
    let is_member = shown
        .iter()
        .any(|entry| entry.key == SEGMENT_TRAIT && *entry.value == Value::Bool(true));
    for index in 0..view.flags {
        push_flag(&mut out, index, is_member && index == 0, view);
    }
    out.extend_from_slice(b"]}");
    out
}

fn push_flag(out: &mut Vec<u8>, index: usize, enabled: bool, view: View) {
    if index > 0 {
        out.push(b',');
    }
    out.extend_from_slice(br#"{"id":"#);
    push(out, &(!view.hidden).then_some(index + 1));
    out.extend_from_slice(br#","feature":{"id":"#);
    push(out, &(index + 1));
    out.extend_from_slice(br#","name":"#);
    if index == 0 {
        out.extend_from_slice(br#""power_user_banner""#);
    } else {
        push(out, &format!("flag_{index}"));
    }
    let rest = if view.hidden {
        FEATURE_REST_HIDDEN
    } else {
        FEATURE_REST
    };
    out.extend_from_slice(rest.as_bytes());
    out.extend_from_slice(br#""environment":"#);
    push(out, &(!view.hidden).then_some(view.environment));
    out.extend_from_slice(br#","identity":null,"feature_segment":"#);
    push(out, &(enabled && !view.hidden).then_some(1));
    out.extend_from_slice(br#","enabled":"#);
    push(out, &enabled);
    out.extend_from_slice(br#","variant":null}"#);
}

/// Writing JSON into memory cannot fail for what is written here.
fn push<T: Serialize + ?Sized>(out: &mut Vec<u8>, value: &T) {
    let _ = serde_json::to_writer(out, value);
}
