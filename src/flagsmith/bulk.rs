//! `PUT traits/bulk/`: the traits of many identities in one call, and what its answer means for
//! each of them. The judging is pure.
//!
//! As measured on Core 2.265.0 (the Edge API has given the endpoint up):
//!
//! - Rows with `null` delete, and run first; they are neither trimmed nor shown, and create nobody.
//! - The answer to the others is an echo of what was sent, not of what is stored: that the traits
//!   stay is proved by the canary alone. An empty echo of rows that were sent means that the body
//!   never arrived; where nothing but deletions was sent, it is all there is to see.
//! - Nothing is atomic. A 400 names rows and has written none of them, but has deleted; a 500 names
//!   nobody and leaves a part written. So after a failure nothing is known of any row.

use std::borrow::Cow;

use reqwest::{Method, StatusCode};
use serde::ser::{Serialize, Serializer};
use serde::{Deserialize, Serialize as SerializeDerive};
use serde_json::Value;
use serde_json::value::RawValue;

use super::disposition::{
    Answer, CLIENT_KEY_BARRED, Disposition, EXCERPT_CHARS, Scope, Trouble, excerpt,
};
use super::transport::now;
use super::{Flagsmith, json};
use crate::clock::Millis;
use crate::cohort::Target;
use crate::mixpanel::is_space;

/// Rows a call: a thousand hold one of Flagsmith's threads for 10 s under load, and a hundred in
/// each of eight calls gave the most rows a second.
pub const MAX_ROWS: usize = 100;

/// What Flagsmith's secret keys begin with.
const SERVER_SIDE_KEY: &str = "ser.";

/// What a person should look at where the endpoint is missing.
pub(super) const NO_BULK: &str = "there is no traits/bulk/ at this address, as only a Flagsmith of \
     one's own has it: set COHORT_BRIDGE_FLAGSMITH_KIND=sdk, or check the API address \
     (COHORT_BRIDGE_FLAGSMITH_API_URL), which should end in /api/v1/";

/// The traits of one identity in a call; at least one, and no key twice.
#[derive(Clone, Debug)]
pub struct Group<'a> {
    /// Whose.
    pub identifier: &'a str,
    /// Keys and what they are to become.
    pub traits: Vec<(&'a str, Target)>,
}

/// What became of a call, group by group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BulkAnswer {
    /// A first sending broke off, or no answer came: Flagsmith may still apply the rows later.
    pub may_land_late: bool,
    /// What Flagsmith says.
    pub verdict: BulkVerdict,
}

/// What Flagsmith says of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BulkVerdict {
    /// A 200: what it shows of each group, in order.
    Shown(Vec<Disposition>),
    /// A refusal that names rows: why, for each group at fault. Nothing is known of the others.
    Named(Vec<Option<String>>),
    /// A failure that any one of the groups may have caused, and what it means for a group that
    /// was alone in the call.
    Unnamed(Disposition),
    /// A failure of the whole call.
    Failed(Disposition),
}

impl Flagsmith {
    /// Brings the traits of several identities to their targets in one call. No identifier may
    /// come twice.
    pub async fn write_bulk(&self, groups: &[Group<'_>]) -> BulkAnswer {
        if let Some(named) = padded(groups) {
            return BulkAnswer {
                may_land_late: false,
                verdict: BulkVerdict::Named(named),
            };
        }
        let answer = match json(&Rows(groups)) {
            Ok(body) => {
                let limit = Some(self.bulk_timeout);
                self.answer_within(limit, &Method::PUT, &self.bulk, Some(&body))
                    .await
            }
            Err(trouble) => Err(trouble),
        };
        let judged = match answer {
            Ok(answer) => judge(answer, groups, self.key(), now()),
            Err(trouble) => failed(trouble),
        };
        judged.without(groups, self.key())
    }
}

impl BulkAnswer {
    /// The same, with `…` where identifiers or the environment key were quoted.
    fn without(mut self, groups: &[Group<'_>], key: &str) -> Self {
        let (BulkVerdict::Failed(disposition) | BulkVerdict::Unnamed(disposition)) =
            &mut self.verdict
        else {
            return self;
        };
        let (Disposition::Later { error: said, .. }
        | Disposition::Refused { error: said }
        | Disposition::Halt { reason: said }) = disposition
        else {
            return self;
        };
        for secret in groups.iter().map(|group| group.identifier).chain([key]) {
            hide(said, secret);
        }
        self
    }
}

/// Very short words are left, for they occur in any sentence.
fn hide(said: &mut String, secret: &str) {
    if secret.len() > 3 && said.contains(secret) {
        *said = said.replace(secret, "…");
    }
}

/// Whoever Flagsmith would take for somebody else: it trims rows that set, and not those that
/// delete. Such identifiers and keys are set aside long before.
fn padded(groups: &[Group<'_>]) -> Option<Vec<Option<String>>> {
    let is_padded = |text: &str| text.starts_with(is_space) || text.ends_with(is_space);
    let of_group = |group: &Group<'_>| {
        is_padded(group.identifier) || group.traits.iter().any(|(key, _)| is_padded(key))
    };
    groups.iter().any(of_group).then(|| {
        let said = "white space at an end of the identifier or of a trait key, which Flagsmith \
                    takes away: it would name another one";
        let named = groups.iter();
        named
            .map(|group| of_group(group).then(|| said.to_owned()))
            .collect()
    })
}

/// One row as it is sent.
#[derive(SerializeDerive)]
struct Row<'a> {
    identity: RowIdentity<'a>,
    trait_key: &'a str,
    trait_value: Option<bool>,
}

#[derive(SerializeDerive)]
struct RowIdentity<'a> {
    identifier: &'a str,
}

/// All rows, those of one identity side by side.
struct Rows<'a>(&'a [Group<'a>]);

impl Serialize for Rows<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().flat_map(|group| {
            group.traits.iter().map(|&(trait_key, target)| Row {
                identity: RowIdentity {
                    identifier: group.identifier,
                },
                trait_key,
                trait_value: target.trait_value(),
            })
        }))
    }
}

/// A row as it is shown.
#[derive(Deserialize)]
struct Shown<'a> {
    #[serde(borrow)]
    identity: ShownIdentity<'a>,
    #[serde(borrow)]
    trait_key: Cow<'a, str>,
    #[serde(borrow)]
    trait_value: &'a RawValue,
}

#[derive(Deserialize)]
struct ShownIdentity<'a> {
    #[serde(borrow)]
    identifier: Cow<'a, str>,
}

/// Rows that set something, with the number of their group: all that answers are about.
fn sets<'a>(groups: &'a [Group<'a>]) -> impl Iterator<Item = (usize, &'a str, &'a str, bool)> {
    groups.iter().enumerate().flat_map(|(number, group)| {
        group.traits.iter().filter_map(move |&(key, target)| {
            let value = target.trait_value()?;
            Some((number, group.identifier, key, value))
        })
    })
}

/// What an answer means. `key` is the environment key it was asked with.
fn judge(answer: Answer, groups: &[Group<'_>], key: &str, now: Millis) -> BulkAnswer {
    let may_land_late = answer.repeated;
    let verdict = match answer.status.as_u16() {
        200 => judge_echo(&answer.body, groups, may_land_late),
        400 if bars_client(&answer, key) => halt(CLIENT_KEY_BARRED.to_owned()),
        400 => match named(&answer.body, groups) {
            Some(named) => BulkVerdict::Named(named),
            None => return whole(answer, now),
        },
        404 | 405 | 410 => halt(NO_BULK.to_owned()),
        _ => return whole(answer, now),
    };
    BulkAnswer {
        may_land_late,
        verdict,
    }
}

/// Whether a 400 says that a client-side key may not set traits. Core has a page for it, which it
/// also has for a host that it does not know; a server-side key is never barred.
pub(super) fn bars_client(answer: &Answer, key: &str) -> bool {
    excerpt(&answer.body).contains("client key")
        || !answer.is_json() && !key.starts_with(SERVER_SIDE_KEY)
}

/// An answer that says nothing of single rows.
fn whole(answer: Answer, now: Millis) -> BulkAnswer {
    let is_fault = answer.status == StatusCode::INTERNAL_SERVER_ERROR;
    let may_land_late = answer.repeated;
    match answer.ok(now) {
        // Flagsmith is done and failed: an outage and a single row look the same.
        Err(trouble) if is_fault => BulkAnswer {
            may_land_late,
            verdict: BulkVerdict::Unnamed(trouble.into()),
        },
        Err(trouble) => {
            let answer = failed(trouble);
            BulkAnswer {
                may_land_late: may_land_late || answer.may_land_late,
                ..answer
            }
        }
        Ok(answer) => BulkAnswer {
            may_land_late,
            verdict: halt(foreign(&answer.body)),
        },
    }
}

fn failed(trouble: Trouble) -> BulkAnswer {
    BulkAnswer {
        may_land_late: matches!(
            trouble,
            Trouble::Later {
                may_land_late: true,
                ..
            }
        ),
        verdict: match trouble {
            Trouble::Refused { .. } => BulkVerdict::Unnamed(trouble.into()),
            Trouble::Later { .. } | Trouble::Halt { .. } => BulkVerdict::Failed(trouble.into()),
        },
    }
}

/// The groups at fault by an array of errors, which has an entry for each row that sets something,
/// an empty one where nothing is wrong; `None` where it is not that.
fn named(body: &[u8], groups: &[Group<'_>]) -> Option<Vec<Option<String>>> {
    let errors: Vec<serde_json::Map<String, Value>> = serde_json::from_slice(body).ok()?;
    if errors.len() != sets(groups).count() || errors.iter().all(|error| error.is_empty()) {
        return None;
    }
    let mut named = vec![None; groups.len()];
    for ((number, identifier, ..), error) in sets(groups).zip(errors) {
        if !error.is_empty() && named[number].is_none() {
            let mut said = Value::Object(error).to_string();
            hide(&mut said, identifier);
            let said: String = said.chars().take(EXCERPT_CHARS).collect();
            named[number] = Some(format!("Flagsmith refused it: 400 '{said}'"));
        }
    }
    Some(named)
}

fn judge_echo(body: &[u8], groups: &[Group<'_>], may_land_late: bool) -> BulkVerdict {
    let shown: Vec<Shown<'_>> = match serde_json::from_slice(body) {
        Ok(shown) => shown,
        Err(error) if error.is_eof() && body.first() == Some(&b'[') => {
            return BulkVerdict::Failed(Disposition::Later {
                scope: Scope::Identity,
                retry_after: None,
                may_land_late,
                error: "Flagsmith's answer (200) breaks off".to_owned(),
            });
        }
        Err(_) => return halt(foreign(body)),
    };
    let sent = sets(groups).count();
    if shown.is_empty() && sent > 0 {
        return halt(
            "Flagsmith answered 200 without the rows that were sent, as it does when the body of a \
             request does not reach it: something between drops it, or sends it chunked"
                .to_owned(),
        );
    }
    if shown.len() != sent {
        return halt(format!(
            "Flagsmith answered 200 with {} rows where {sent} were sent: check what stands between",
            shown.len()
        ));
    }
    let written = Disposition::Written { may_land_late };
    let mut of_each = vec![written.clone(); groups.len()];
    for ((number, identifier, key, value), row) in sets(groups).zip(&shown) {
        let named = &*row.identity.identifier;
        if named != identifier {
            if named.is_empty() || !identifier.contains(named) {
                return halt(
                    "Flagsmith answered 200 with rows of other identities than those sent: check \
                     what stands between"
                        .to_owned(),
                );
            }
            of_each[number] = Disposition::Refused {
                error: "Flagsmith shortened the identifier: it would name another identity"
                    .to_owned(),
            };
        } else if of_each[number] == written
            && (row.trait_key != key || row.trait_value.get() != value.to_string())
        {
            of_each[number] = Disposition::NotStored {
                error: format!("Flagsmith answered 200, but shows the trait '{key}' otherwise"),
            };
        }
    }
    BulkVerdict::Shown(of_each)
}

fn halt(reason: String) -> BulkVerdict {
    BulkVerdict::Failed(Disposition::Halt { reason })
}

fn foreign(body: &[u8]) -> String {
    format!(
        "the answer of traits/bulk/ (200 '{}') is not Flagsmith's: check the API address \
         (COHORT_BRIDGE_FLAGSMITH_API_URL) and what stands before Flagsmith",
        excerpt(body)
    )
}

#[cfg(test)]
mod tests {
    use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
    use serde_json::json;

    use super::*;
    use Target::{Absent, False, True};

    const SERVER_KEY: &str = "ser.server-key";
    const PAGE: &str = "<!doctype html><title>Bad Request (400)</title>";
    const WRITTEN: Disposition = Disposition::Written {
        may_land_late: false,
    };

    fn group<'a>(identifier: &'a str, traits: &[(&'a str, Target)]) -> Group<'a> {
        Group {
            identifier,
            traits: traits.to_vec(),
        }
    }

    /// Two traits of ann's, one of bob's that goes, one of cyd's.
    fn groups() -> [Group<'static>; 3] {
        [
            group("ann@example", &[("a", True), ("b", False)]),
            group("bob@example", &[("a", Absent)]),
            group("cyd@example", &[("b", Absent), ("a", True)]),
        ]
    }

    fn row(identifier: &str, key: &str, value: impl Into<Value>) -> Value {
        json!({"identity": {"identifier": identifier}, "trait_value": value.into(), "trait_key": key})
    }

    /// What Flagsmith echoes of [`groups`].
    fn echo() -> Vec<Value> {
        vec![
            row("ann@example", "a", true),
            row("ann@example", "b", false),
            row("cyd@example", "a", true),
        ]
    }

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

    fn judged_with(key: &str, status: u16, body: &str) -> BulkVerdict {
        let content_type = if body.starts_with(['[', '{']) {
            "application/json"
        } else {
            "text/html; charset=utf-8"
        };
        let groups = groups();
        let judged = judge(answer(status, content_type, body), &groups, key, 0);
        judged.without(&groups, key).verdict
    }

    fn judged(status: u16, body: &Value) -> BulkVerdict {
        judged_with(SERVER_KEY, status, &body.to_string())
    }

    fn halt_reason(verdict: BulkVerdict) -> String {
        match verdict {
            BulkVerdict::Failed(Disposition::Halt { reason }) => reason,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_body_is_what_flagsmith_documents() {
        let body = String::from_utf8(json(&Rows(&groups()[..2])).unwrap().into()).unwrap();
        assert_eq!(
            body,
            r#"[{"identity":{"identifier":"ann@example"},"trait_key":"a","trait_value":true},{"identity":{"identifier":"ann@example"},"trait_key":"b","trait_value":false},{"identity":{"identifier":"bob@example"},"trait_key":"a","trait_value":null}]"#
        );
    }

    #[test]
    fn the_echo_of_every_row_that_sets_is_written() {
        let verdict = judged(200, &json!(echo()));
        assert_eq!(verdict, BulkVerdict::Shown(vec![WRITTEN; 3]));
        // Deletions alone show nothing.
        let gone = [group("bob@example", &[("a", Absent)])];
        let verdict = judge_echo(b"[]", &gone, false);
        assert_eq!(verdict, BulkVerdict::Shown(vec![WRITTEN]));
    }

    #[test]
    fn another_value_or_key_is_that_identitys_own_trouble() {
        for other in [
            row("cyd@example", "a", false),
            row("cyd@example", "a", "true"),
            row("cyd@example", "b", true),
        ] {
            let mut shown = echo();
            shown[2] = other;
            let BulkVerdict::Shown(of_each) = judged(200, &json!(shown)) else {
                panic!("{shown:?}");
            };
            assert_eq!(of_each[..2], [WRITTEN, WRITTEN]);
            let not_stored = matches!(of_each[2], Disposition::NotStored { .. });
            assert!(not_stored, "{:?}", of_each[2]);
        }
        let mut shown = echo();
        shown[0] = row("ann", "a", true);
        let BulkVerdict::Shown(of_each) = judged(200, &json!(shown)) else {
            panic!("{shown:?}");
        };
        assert!(matches!(of_each[0], Disposition::Refused { .. }));
        assert_eq!(of_each[1..], [WRITTEN, WRITTEN]);
    }

    #[test]
    fn an_echo_of_anything_else_halts() {
        let mut strangers = echo();
        strangers[2] = row("zoe", "a", true);
        let mut swapped = echo();
        swapped.swap(0, 2);
        for (body, words) in [
            (json!([]).to_string(), "does not reach it"),
            (json!(echo()[..2]).to_string(), "2 rows where 3 were sent"),
            (json!(strangers).to_string(), "other identities"),
            (json!(swapped).to_string(), "other identities"),
            ("{}".to_owned(), "not Flagsmith's"),
            (PAGE.to_owned(), "not Flagsmith's"),
            (String::new(), "not Flagsmith's"),
        ] {
            let reason = halt_reason(judged_with(SERVER_KEY, 200, &body));
            assert!(reason.contains(words), "{body}: {reason}");
        }
    }

    #[test]
    fn an_answer_cut_anywhere_is_never_written() {
        let whole = json!(echo()).to_string();
        for length in 1..whole.len() {
            let verdict = judged_with(SERVER_KEY, 200, &whole[..length]);
            let later = matches!(verdict, BulkVerdict::Failed(Disposition::Later { .. }));
            assert!(later, "{length}: {verdict:?}");
        }
    }

    /// Flagsmith takes the deletions out before it looks at the rows.
    #[test]
    fn a_refusal_counts_only_the_rows_that_set() {
        let blank = json!({"identity": {"identifier": ["'cyd@example' may not be blank."]}});
        let verdict = judged(400, &json!([{}, {}, blank]));
        let BulkVerdict::Named(named) = verdict else {
            panic!("{verdict:?}");
        };
        assert_eq!(named[..2], [None, None]);
        let said = named[2].as_ref().unwrap();
        assert!(said.contains("'…' may not be blank."), "{said}");

        // One bad row is enough, and the first is quoted.
        let verdict = judged(400, &json!([{"x": 1}, {"y": 1}, {}]));
        let BulkVerdict::Named(named) = verdict else {
            panic!("{verdict:?}");
        };
        assert!(named[0].as_ref().unwrap().contains("\"x\""), "{named:?}");
        assert_eq!(named[1..], [None, None]);
    }

    #[test]
    fn a_refusal_that_names_nobody_may_be_anybodys() {
        for body in [
            json!({"detail": "Invalid request data"}),
            json!([]),
            json!([{}, {}, {}]),
            json!([{}, {}, {}, {"a": 1}]),
            json!([{"a": 1}]),
            json!(["a", "b", "c"]),
        ] {
            let verdict = judged(400, &body);
            let unnamed = matches!(verdict, BulkVerdict::Unnamed(Disposition::Refused { .. }));
            assert!(unnamed, "{body}: {verdict:?}");
        }
        let verdict = judged_with(SERVER_KEY, 500, "<title>Server Error (500)</title>");
        let expected = Disposition::Later {
            scope: Scope::Identity,
            retry_after: None,
            may_land_late: false,
            error: "Flagsmith answered 500 'Server Error (500)'".to_owned(),
        };
        assert_eq!(verdict, BulkVerdict::Unnamed(expected));
    }

    #[test]
    fn what_nobody_but_a_person_can_mend_halts() {
        let unstored = json!({"detail": "Organisation is not authorised to store traits."});
        let no_client = json!([{"non_field_errors":
            ["Setting traits not allowed with client key."]}]);
        let cut = json!({"detail": "JSON parse error - Expecting value"});
        for (key, status, body, words) in [
            ("client-key", 400, PAGE.to_owned(), "use a server-side key"),
            (SERVER_KEY, 400, PAGE.to_owned(), "DJANGO_ALLOWED_HOSTS"),
            (SERVER_KEY, 400, no_client.to_string(), "server-side key"),
            (
                SERVER_KEY,
                400,
                cut.to_string(),
                "does not reach Flagsmith whole",
            ),
            (SERVER_KEY, 403, unstored.to_string(), "stores no traits"),
            (
                SERVER_KEY,
                404,
                PAGE.to_owned(),
                "COHORT_BRIDGE_FLAGSMITH_KIND=sdk",
            ),
            (
                SERVER_KEY,
                405,
                "{}".to_owned(),
                "COHORT_BRIDGE_FLAGSMITH_KIND=sdk",
            ),
            (SERVER_KEY, 301, String::new(), "redirect"),
        ] {
            let reason = halt_reason(judged_with(key, status, &body));
            assert!(reason.contains(words), "{status} {body}: {reason}");
        }
    }

    #[test]
    fn other_failures_are_the_whole_calls() {
        for (status, late) in [(429, false), (503, true), (504, true), (408, true)] {
            let answer = judge(answer(status, "text/html", ""), &groups(), SERVER_KEY, 0);
            assert_eq!(answer.may_land_late, late, "{status}");
            let later = matches!(
                answer.verdict,
                BulkVerdict::Failed(Disposition::Later { .. })
            );
            assert!(later, "{status}: {answer:?}");
        }
    }

    #[test]
    fn after_a_repeated_sending_every_row_may_land_late() {
        for (status, body) in [
            (200, json!(echo()).to_string()),
            (400, json!([{}, {"a": 1}, {}]).to_string()),
            (500, PAGE.to_owned()),
            (429, PAGE.to_owned()),
        ] {
            let answer = Answer {
                repeated: true,
                ..answer(status, "application/json", &body)
            };
            assert!(
                judge(answer, &groups(), SERVER_KEY, 0).may_land_late,
                "{status}"
            );
        }
    }

    #[test]
    fn white_space_that_flagsmith_would_trim_is_refused_unsent() {
        assert_eq!(padded(&groups()), None);
        for (identifier, key) in [(" ann", "a"), ("ann\u{1f}", "a"), ("ann", "a\u{a0}")] {
            let groups = [
                group("bob", &[("a", True)]),
                group(identifier, &[(key, Absent)]),
            ];
            let named = padded(&groups).unwrap();
            assert!(named[0].is_none() && named[1].is_some(), "{named:?}");
        }
    }
}
