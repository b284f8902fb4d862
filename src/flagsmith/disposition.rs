//! What an answer of Flagsmith means for the write that asked for it. Pure.
//!
//! The table is Flagsmith's measured behaviour (Core 2.265.0) and what proxies before it are known
//! to say. Two rules decide doubtful cases: nothing becomes a dead letter unless the answer is
//! about the fields sent, and nothing counts as written unless Flagsmith shows it.

use std::time::{Duration, UNIX_EPOCH};

use reqwest::StatusCode;
use reqwest::header::{CONTENT_TYPE, DATE, HeaderMap, HeaderName, LOCATION, RETRY_AFTER};
use serde_json::Value;

use crate::clock::Millis;

/// The longest wait that a `Retry-After` may ask for: a canary's default interval. Without a cap a
/// proxy's wrong date could stop a destination for years.
pub const MAX_RETRY_AFTER: Duration = Duration::from_secs(15 * 60);

/// Characters of an answer that an error quotes: enough for Flagsmith's sentences.
pub(super) const EXCERPT_CHARS: usize = 200;

/// Bytes of an answer that are looked at for an excerpt.
pub(super) const EXCERPT_BYTES: usize = 4096;

/// What a person should look at when the address is wrong.
const URL_SETTING: &str = "the API address (COHORT_BRIDGE_FLAGSMITH_API_URL)";

/// What a person should look at when the key is wrong.
const KEY_SETTING: &str = "the environment key (COHORT_BRIDGE_FLAGSMITH_ENVIRONMENT_KEY)";

/// Why nothing stays where the organisation stores no traits.
///
/// Its switch is not in the dashboard.
pub(super) const STORES_NO_TRAITS: &str = "the Flagsmith organisation stores no traits: switch on \
     'Persist trait data' of the organisation, on the admin site (/admin/, Organisations) of a \
     self-hosted Flagsmith; on its SaaS, ask Flagsmith's support";

/// Why nothing stays where a client-side key may not set traits.
pub(super) const CLIENT_KEY_BARRED: &str = "Flagsmith drops traits sent with this client-side key: \
     use a server-side key (it begins with 'ser.'), or switch on 'Allow client SDKs to set user \
     traits' (in newer versions 'Persist traits when using client-side SDK keys') in the \
     environment's SDK settings";

/// What became of a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// Flagsmith shows every trait as sent.
    Written {
        /// A first sending broke off and was repeated; Flagsmith may still apply the first after
        /// a later, different write.
        may_land_late: bool,
    },
    /// Try again later.
    Later {
        /// What the trouble is about.
        scope: Scope,
        /// What Flagsmith asked for, at most [`MAX_RETRY_AFTER`].
        retry_after: Option<Duration>,
        /// Flagsmith may still apply this write.
        may_land_late: bool,
        /// For a person.
        error: String,
    },
    /// Flagsmith will never take these fields: a dead letter.
    Refused {
        /// For a person.
        error: String,
    },
    /// Nothing can be written to this destination until a person changes something.
    Halt {
        /// For a person: what is wrong and what to switch.
        reason: String,
    },
    /// A 200 that shows other traits but not every one as sent.
    NotStored {
        /// For a person; names the trait key, never the identifier.
        error: String,
    },
    /// A 200 that shows no traits at all although some were set: either nothing was stored or the
    /// environment hides sensitive data.
    /// [`Flagsmith::judge_blank_echo`](super::Flagsmith::judge_blank_echo) tells which.
    BlankEcho {
        /// As in [`Disposition::Written`].
        may_land_late: bool,
    },
}

/// What a passing trouble is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The destination as a whole: every other call would meet it.
    Destination,
    /// Possibly this identity alone: Flagsmith answers 500 to some that will never work.
    Identity,
}

/// Why a call, to whichever endpoint, did not bring a 200.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    Later {
        scope: Scope,
        retry_after: Option<Duration>,
        may_land_late: bool,
        error: String,
    },
    Refused {
        error: String,
    },
    Halt {
        reason: String,
    },
}

impl Trouble {
    /// The same, saying `…` where Flagsmith quoted the identifier: identifiers name people and
    /// stay out of logs. Very short ones are left, for they occur in any sentence.
    pub fn without(mut self, identifier: &str) -> Self {
        let (Trouble::Later { error: said, .. }
        | Trouble::Refused { error: said }
        | Trouble::Halt { reason: said }) = &mut self;
        if identifier.len() > 3 && said.contains(identifier) {
            *said = said.replace(identifier, "…");
        }
        self
    }
}

impl Disposition {
    /// As [`Trouble::without`].
    pub(super) fn without(mut self, identifier: &str) -> Self {
        if let Disposition::Halt { reason } = &mut self
            && identifier.len() > 3
        {
            *reason = reason.replace(identifier, "…");
        }
        self
    }
}

impl From<Trouble> for Disposition {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::Later {
                scope,
                retry_after,
                may_land_late,
                error,
            } => Disposition::Later {
                scope,
                retry_after,
                may_land_late,
                error,
            },
            Trouble::Refused { error } => Disposition::Refused { error },
            Trouble::Halt { reason } => Disposition::Halt { reason },
        }
    }
}

/// An answer, read whole.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
    /// A first sending broke off before this answer came.
    pub repeated: bool,
}

impl Answer {
    /// The answer itself if it is a 200, else what it means. `now` serves where a `Retry-After`
    /// date comes without the server's own `Date`.
    pub fn ok(self, now: Millis) -> Result<Answer, Trouble> {
        if self.status == StatusCode::OK {
            Ok(self)
        } else {
            Err(self.trouble(now))
        }
    }

    fn trouble(&self, now: Millis) -> Trouble {
        let code = self.status.as_u16();
        let halt = |reason: String| Trouble::Halt { reason };
        let later = |scope, may_land_late| Trouble::Later {
            scope,
            retry_after: retry_after(&self.headers, now),
            may_land_late: may_land_late || self.repeated,
            error: format!("Flagsmith answered {code}{}", self.quoted()),
        };
        match code {
            400 | 422 => self.bad_request(),
            403 => halt(self.forbidden()),
            401 | 407 => halt(format!(
                "Flagsmith, or a proxy before it, wants other credentials ({code}{}): check \
                 {KEY_SETTING}",
                self.quoted()
            )),
            300..=399 => halt(format!(
                "Flagsmith answered with a redirect ({code}) to '{}', and a write that follows \
                 one is lost: set {URL_SETTING} to where it leads, scheme and final slash included",
                self.location()
            )),
            404 | 410 => halt(format!(
                "there is no Flagsmith API at this address ({code}{}): {URL_SETTING} should end \
                 in /api/v1/",
                self.quoted()
            )),
            405 | 406 | 411 | 413 | 414 | 415 | 431 | 501 | 505 => halt(format!(
                "Flagsmith, or a proxy before it, does not take the request as it is sent \
                 ({code}{}): check {URL_SETTING} and what stands between",
                self.quoted()
            )),
            // A gateway's 408 says nothing about what Flagsmith still does with the request.
            408 => later(Scope::Identity, true),
            409 => later(Scope::Identity, false),
            425 | 429 => later(Scope::Destination, false),
            // Flagsmith itself, done and failed: a database outage and an identity that can never
            // be stored look the same.
            500 => later(Scope::Identity, false),
            // A gateway lost patience with this call.
            504 | 524 => later(Scope::Identity, true),
            // Nobody was reached behind the gateway.
            521 => later(Scope::Destination, false),
            // Gateways also say 502 and 503 when the connection broke after the request was sent.
            502..=599 => later(Scope::Destination, true),
            _ => halt(format!(
                "{code} is not an answer of Flagsmith's{}: check {URL_SETTING}",
                self.quoted()
            )),
        }
    }

    /// Only an answer that is about fields is about the identity.
    fn bad_request(&self) -> Trouble {
        let code = self.status.as_u16();
        match serde_json::from_slice::<Value>(&self.body) {
            Ok(Value::Object(fields)) => match fields.get("detail").and_then(Value::as_str) {
                Some(detail) if detail.starts_with("JSON parse error") => Trouble::Halt {
                    reason: format!(
                        "what is sent does not reach Flagsmith whole ({code}{}): check what \
                         stands between",
                        self.quoted()
                    ),
                },
                _ => Trouble::Refused {
                    error: format!("Flagsmith refused it: {code}{}", self.quoted()),
                },
            },
            Ok(Value::Array(_)) => Trouble::Refused {
                error: format!("Flagsmith refused it: {code}{}", self.quoted()),
            },
            _ => Trouble::Halt {
                reason: format!(
                    "Flagsmith, or a proxy before it, refuses every request ({code}{}): the host \
                     name of {URL_SETTING} must be in Flagsmith's DJANGO_ALLOWED_HOSTS",
                    self.quoted()
                ),
            },
        }
    }

    fn forbidden(&self) -> String {
        let said = excerpt(&self.body);
        let lower = said.to_lowercase();
        if lower.contains("disabled from serving flags") {
            "Flagsmith has stopped this organisation (403 'Organisation is disabled from serving \
             flags.'), as it does above the plan's limit: pay or raise the plan; delivery goes on \
             by itself afterwards"
                .to_owned()
        } else if lower.contains("not authorised to store traits") {
            STORES_NO_TRAITS.to_owned()
        } else if lower.contains("environment key") {
            format!(
                "Flagsmith does not know {KEY_SETTING} (403 '{said}'): set it to a server-side \
                 key of the environment; a new key works after a minute at most"
            )
        } else if self.is_json() {
            format!("Flagsmith forbids it (403 '{said}'): check {KEY_SETTING}")
        } else {
            format!(
                "something before Flagsmith forbids it (403{}): let the calls through to \
                 {URL_SETTING}",
                self.quoted()
            )
        }
    }

    /// Whether it is labelled as JSON.
    pub fn is_json(&self) -> bool {
        self.header(&CONTENT_TYPE).contains("json")
    }

    /// The redirect's target without its query, which may hold an identifier.
    fn location(&self) -> &str {
        let target = self.header(&LOCATION);
        target
            .split_once(['?', '#'])
            .map_or(target, |(path, _)| path)
    }

    fn header(&self, name: &HeaderName) -> &str {
        text(&self.headers, name).unwrap_or_default()
    }

    /// The excerpt, ready to follow the status.
    fn quoted(&self) -> String {
        match excerpt(&self.body) {
            said if said.is_empty() => said,
            said => format!(" '{said}'"),
        }
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// The start of an answer for an error: `detail` if it has one, the title if it is a page.
///
/// A page's text is never quoted: Django's debug pages hold the whole request.
pub(super) fn excerpt(body: &[u8]) -> String {
    let start = String::from_utf8_lossy(&body[..body.len().min(EXCERPT_BYTES)]);
    let start = start.trim();
    let said = if let Ok(value) = serde_json::from_str::<Value>(start) {
        match value.get("detail").and_then(Value::as_str) {
            Some(detail) => detail.to_owned(),
            None => value.to_string(),
        }
    } else if start.starts_with('<') {
        title(start).unwrap_or("a page").to_owned()
    } else {
        start.to_owned()
    };
    said.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(EXCERPT_CHARS)
        .collect()
}

fn title(page: &str) -> Option<&str> {
    let (_, rest) = page.split_once("<title>")?;
    let (title, _) = rest.split_once("</title>")?;
    Some(title.trim())
}

/// `Retry-After` in either of its forms, at most [`MAX_RETRY_AFTER`]; `None` where it is missing
/// or unreadable. A date is taken relative to the server's `Date`, so that clocks need not agree.
fn retry_after(headers: &HeaderMap, now: Millis) -> Option<Duration> {
    let value = text(headers, &RETRY_AFTER)?.trim();
    let wait = if !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit()) {
        Duration::from_secs(value.parse().unwrap_or(u64::MAX))
    } else {
        let until = httpdate::parse_http_date(value).ok()?;
        let sent = text(headers, &DATE)
            .and_then(|date| httpdate::parse_http_date(date).ok())
            .unwrap_or(UNIX_EPOCH + Duration::from_millis(now.max(0).unsigned_abs()));
        until.duration_since(sent).unwrap_or_default()
    };
    Some(wait.min(MAX_RETRY_AFTER))
}

#[cfg(test)]
mod tests {
    use super::*;
    use reqwest::header::HeaderValue;

    const JSON: &str = "application/json";
    const HTML: &str = "text/html; charset=utf-8";
    const SERVER_ERROR: &str =
        "\n<!doctype html>\n<html><head>\n  <title>Server Error (500)</title>\n</head></html>";

    fn answer(status: u16, content_type: &'static str, body: &str) -> Answer {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        Answer {
            status: StatusCode::from_u16(status).unwrap(),
            headers,
            body: body.into(),
            repeated: false,
        }
    }

    #[derive(Debug, PartialEq)]
    enum Kind {
        Refused,
        Halt,
        Destination { late: bool },
        Identity { late: bool },
    }

    fn kind(trouble: &Trouble) -> Kind {
        match trouble {
            Trouble::Refused { .. } => Kind::Refused,
            Trouble::Halt { .. } => Kind::Halt,
            &Trouble::Later {
                scope,
                may_land_late: late,
                ..
            } => match scope {
                Scope::Destination => Kind::Destination { late },
                Scope::Identity => Kind::Identity { late },
            },
        }
    }

    fn said(trouble: Trouble) -> String {
        match trouble {
            Trouble::Refused { error } | Trouble::Later { error, .. } => error,
            Trouble::Halt { reason } => reason,
        }
    }

    #[test]
    fn every_status_has_its_disposition() {
        use Kind::*;
        let key = r#"{"detail":"Invalid or missing Environment Key"}"#;
        let no_key = r#"{"detail":"Invalid or missing Environment key"}"#;
        let stopped = r#"{"detail":"Organisation is disabled from serving flags."}"#;
        let unstored = r#"{"detail":"Organisation is not authorised to store traits."}"#;
        let field =
            r#"{"traits":[{"trait_key":["Ensure this field has no more than 200 characters."]}]}"#;
        let row = r#"[{"identity":{"identifier":["This field may not be blank."]}}]"#;
        let list = r#"{"non_field_errors":["Invalid data. Expected a dictionary, but got list."]}"#;
        let bad = "<title>Bad Request (400)</title>";
        let gone = "<html><title>Not Found</title></html>";
        let media = r#"{"detail":"Unsupported media type \"\" in request."}"#;
        let method = r#"{"detail":"Method \"PUT\" not allowed."}"#;
        let parse = r#"{"detail":"JSON parse error - Expecting value"}"#;
        let table = [
            (201, JSON, "{}", Halt, "201 is not an answer"),
            (202, JSON, "", Halt, "202 is not an answer"),
            (204, JSON, "", Halt, "204 is not an answer"),
            (206, JSON, "{}", Halt, "206"),
            (301, HTML, "", Halt, "redirect"),
            (302, HTML, "", Halt, "redirect"),
            (304, HTML, "", Halt, "redirect"),
            (307, HTML, "", Halt, "redirect"),
            (308, HTML, "", Halt, "redirect"),
            (400, JSON, field, Refused, "no more than 200 characters"),
            (400, JSON, row, Refused, "may not be blank"),
            (400, JSON, list, Refused, "Expected a dictionary"),
            (400, JSON, parse, Halt, "does not reach Flagsmith whole"),
            (400, HTML, bad, Halt, "DJANGO_ALLOWED_HOSTS"),
            (400, HTML, "", Halt, "DJANGO_ALLOWED_HOSTS"),
            (401, JSON, r#"{"detail":"no"}"#, Halt, "ENVIRONMENT_KEY"),
            (402, JSON, "", Halt, "402"),
            (403, JSON, key, Halt, "does not know the environment key"),
            (403, JSON, no_key, Halt, "does not know the environment key"),
            (
                403,
                JSON,
                stopped,
                Halt,
                "Organisation is disabled from serving flags.",
            ),
            (403, JSON, unstored, Halt, "stores no traits"),
            (403, JSON, r#"{"detail":"Not today"}"#, Halt, "Not today"),
            (
                403,
                HTML,
                "<title>Blocked</title>",
                Halt,
                "something before Flagsmith",
            ),
            (404, HTML, gone, Halt, "should end in /api/v1/"),
            (405, JSON, method, Halt, "not allowed"),
            (406, JSON, "", Halt, "406"),
            (407, HTML, "", Halt, "credentials"),
            (408, HTML, "", Identity { late: true }, "408"),
            (409, JSON, "", Identity { late: false }, "409"),
            (410, HTML, "", Halt, "/api/v1/"),
            (411, HTML, "", Halt, "411"),
            (413, HTML, "", Halt, "413"),
            (414, HTML, "", Halt, "414"),
            (415, JSON, media, Halt, "Unsupported media type"),
            (418, HTML, "", Halt, "418"),
            (
                422,
                JSON,
                r#"{"detail":[{"loc":["body"],"msg":"long"}]}"#,
                Refused,
                "long",
            ),
            (422, HTML, "", Halt, "422"),
            (425, HTML, "", Destination { late: false }, "425"),
            (429, HTML, "", Destination { late: false }, "429"),
            (431, HTML, "", Halt, "431"),
            (
                500,
                HTML,
                SERVER_ERROR,
                Identity { late: false },
                "Server Error (500)",
            ),
            (501, HTML, "", Halt, "501"),
            (502, HTML, "", Destination { late: true }, "502"),
            (503, HTML, "", Destination { late: true }, "503"),
            (504, HTML, "", Identity { late: true }, "504"),
            (505, HTML, "", Halt, "505"),
            (507, HTML, "", Destination { late: true }, "507"),
            (520, HTML, "", Destination { late: true }, "520"),
            (521, HTML, "", Destination { late: false }, "521"),
            (524, HTML, "", Identity { late: true }, "524"),
            (599, HTML, "", Destination { late: true }, "599"),
            (700, HTML, "", Halt, "700"),
        ];
        for (status, content_type, body, expected, words) in table {
            let Err(trouble) = answer(status, content_type, body).ok(0) else {
                panic!("{status} counts as a 200")
            };
            assert_eq!(kind(&trouble), expected, "{status} {body}");
            let said = said(trouble);
            assert!(said.contains(words), "{status}: {said}");
        }
        assert!(answer(200, JSON, "{}").ok(0).is_ok());
    }

    #[test]
    fn a_repeated_sending_may_land_late_whatever_the_answer() {
        let mut answer = answer(429, HTML, "");
        answer.repeated = true;
        let Err(trouble) = answer.ok(0) else { panic!() };
        assert_eq!(kind(&trouble), Kind::Destination { late: true });
    }

    #[test]
    fn a_quoted_identifier_is_left_out() {
        let body = r#"{"identifier":["'ann@example.com' is taken"]}"#;
        let Err(trouble) = answer(400, JSON, body).ok(0) else {
            panic!()
        };
        let said = said(trouble.without("ann@example.com"));
        assert!(said.contains("'…' is taken"), "{said}");
    }

    #[test]
    fn a_redirect_names_its_target_without_the_query() {
        let mut answer = answer(301, HTML, "");
        let target = "https://f.example/api/v1/identities/?identifier=ann";
        answer
            .headers
            .insert(LOCATION, HeaderValue::from_static(target));
        let Err(trouble) = answer.ok(0) else { panic!() };
        let said = said(trouble);
        assert!(
            said.contains("'https://f.example/api/v1/identities/'"),
            "{said}"
        );
        assert!(!said.contains("ann"), "{said}");
    }

    #[test]
    fn retry_after_is_read_in_both_forms_and_clamped() {
        let now = 1_795_444_591_000; // 2026-11-23 14:36:31 UTC, in milliseconds
        let table = [
            (None, None, None),
            (Some("7"), None, Some(7)),
            (Some(" 0 "), None, Some(0)),
            (Some("900"), None, Some(900)),
            (Some("901"), None, Some(900)),
            (Some("99999999999999999999999999"), None, Some(900)),
            (Some("-1"), None, None),
            (Some("1.5"), None, None),
            (Some(""), None, None),
            (Some("soon"), None, None),
            (Some("Mon, 23 Nov 2026 14:36:41 GMT"), None, Some(10)),
            (Some("Mon, 23 Nov 2026 14:36:21 GMT"), None, Some(0)),
            (Some("Tue, 01 Jan 2126 00:00:00 GMT"), None, Some(900)),
            (
                Some("Mon, 23 Nov 2026 10:00:05 GMT"),
                Some("Mon, 23 Nov 2026 10:00:00 GMT"),
                Some(5),
            ),
        ];
        for (value, date, expected) in table {
            let mut headers = HeaderMap::new();
            if let Some(value) = value {
                headers.insert(RETRY_AFTER, HeaderValue::from_static(value));
            }
            if let Some(date) = date {
                headers.insert(DATE, HeaderValue::from_static(date));
            }
            let expected = expected.map(Duration::from_secs);
            assert_eq!(retry_after(&headers, now), expected, "{value:?} {date:?}");
        }
    }

    #[test]
    fn an_excerpt_is_short_and_quotes_no_page() {
        assert_eq!(excerpt(SERVER_ERROR.as_bytes()), "Server Error (500)");
        assert_eq!(excerpt(b"<p>secret</p>"), "a page");
        assert_eq!(excerpt(br#"{"detail":"x\ny"}"#), "x y");
        assert_eq!(excerpt(br#"{"a":["b"]}"#), r#"{"a":["b"]}"#);
        assert_eq!(excerpt(&[0xff; 9000]).chars().count(), EXCERPT_CHARS);
        assert_eq!(excerpt(b""), "");
    }
}
