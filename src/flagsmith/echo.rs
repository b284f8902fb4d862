//! What the identities endpoint shows of an identity, and whether that proves a write. Pure.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::disposition::{Disposition, Scope, Trouble, excerpt};
use crate::cohort::Target;

/// The part of the answer that matters here. The flags are skipped, and fields may be missing:
/// the Edge API leaves some out.
#[derive(Deserialize)]
struct Echo<'a> {
    #[serde(borrow, default)]
    identifier: Option<Text<'a>>,
    #[serde(borrow, default)]
    traits: Option<Vec<Shown<'a>>>,
}

#[derive(Deserialize)]
struct Shown<'a> {
    #[serde(borrow)]
    trait_key: Text<'a>,
    #[serde(borrow)]
    trait_value: &'a RawValue,
    #[serde(default)]
    transient: bool,
}

/// Text that is copied only where JSON escapes it; an `Option<Cow>` would always be copied.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// Whether the body of a 200 proves that `traits` were written to `identifier`.
///
/// Of a trait key shown more than once every showing must be as sent: Flagsmith does not say which
/// of them it keeps.
pub(super) fn judge(body: &[u8], identifier: &str, traits: &[(&str, Target)]) -> Disposition {
    let shown = match read_echo(body, identifier) {
        Ok(shown) => shown,
        Err(trouble) => return trouble.into(),
    };
    if shown.is_empty() && traits.iter().any(|&(_, target)| target != Target::Absent) {
        return Disposition::BlankEcho {
            may_land_late: false,
        };
    }
    for &(key, target) in traits {
        if let Err(what) = shows(&shown, key, target) {
            return Disposition::NotStored {
                error: format!("Flagsmith answered 200, but the trait '{key}' {what}"),
            };
        }
    }
    Disposition::Written {
        may_land_late: false,
    }
}

fn shows(shown: &[Shown<'_>], key: &str, target: Target) -> Result<(), &'static str> {
    let wanted = match target {
        Target::True => Some("true"),
        Target::False => Some("false"),
        Target::Absent => None,
    };
    let mut found = false;
    for entry in shown.iter().filter(|entry| entry.trait_key.0 == key) {
        found = true;
        match wanted {
            None => return Err("is still there"),
            Some(wanted) if entry.trait_value.get() != wanted => return Err("has another value"),
            Some(_) if entry.transient => return Err("is transient: used once and not stored"),
            Some(_) => {}
        }
    }
    if wanted.is_some() && !found {
        return Err("is not there");
    }
    Ok(())
}

/// The traits that the body of a 200 shows of `identifier`.
pub(super) fn traits(body: &[u8], identifier: &str) -> Result<Vec<(String, Value)>, Trouble> {
    let shown = read_echo(body, identifier)?;
    Ok(shown
        .into_iter()
        .filter(|entry| !entry.transient)
        .map(|entry| {
            let value = serde_json::from_str(entry.trait_value.get()).unwrap_or_default();
            (entry.trait_key.0.into_owned(), value)
        })
        .collect())
}

fn read_echo<'a>(body: &'a [u8], identifier: &str) -> Result<Vec<Shown<'a>>, Trouble> {
    let echo: Echo<'a> = match serde_json::from_slice(body) {
        Ok(echo) => echo,
        // It began as Flagsmith's do and was cut on the way.
        Err(error) if error.is_eof() && body.first() == Some(&b'{') => {
            return Err(Trouble::Later {
                scope: Scope::Identity,
                retry_after: None,
                may_land_late: false,
                error: "Flagsmith's answer (200) breaks off".to_owned(),
            });
        }
        Err(_) => return Err(foreign(body)),
    };
    match &echo.identifier {
        Some(Text(named)) if named == identifier => Ok(echo.traits.unwrap_or_default()),
        Some(Text(named)) if !named.is_empty() && identifier.contains(&**named) => {
            Err(Trouble::Refused {
                error: "Flagsmith shortened the identifier: it would name another identity"
                    .to_owned(),
            })
        }
        Some(_) => Err(Trouble::Halt {
            reason: "Flagsmith answered 200 for another identity, as it does when the body of a \
                     request does not reach it: something between drops it, or sends it chunked"
                .to_owned(),
        }),
        None if echo.traits.is_some() => Err(Trouble::Halt {
            reason: "the answer (200) names no identity, as the Flagsmith Edge Proxy's, which \
                     stores no traits: set COHORT_BRIDGE_FLAGSMITH_API_URL to Flagsmith itself"
                .to_owned(),
        }),
        None => Err(foreign(body)),
    }
}

fn foreign(body: &[u8]) -> Trouble {
    Trouble::Halt {
        reason: format!(
            "the answer (200 '{}') is not Flagsmith's: check the API address \
             (COHORT_BRIDGE_FLAGSMITH_API_URL) and what stands before Flagsmith",
            excerpt(body)
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Target::{Absent, False, True};
    use proptest::prelude::*;
    use serde_json::json;

    const WRITTEN: Disposition = Disposition::Written {
        may_land_late: false,
    };
    const BLANK: Disposition = Disposition::BlankEcho {
        may_land_late: false,
    };

    fn judged(traits: Value, sent: &[(&str, Target)]) -> Disposition {
        let body = json!({"identifier": "ann", "traits": traits, "flags": [{"id": 1}]});
        judge(body.to_string().as_bytes(), "ann", sent)
    }

    fn entry(key: &str, value: impl Into<Value>) -> Value {
        json!({"id": null, "trait_key": key, "trait_value": value.into(), "transient": false})
    }

    #[test]
    fn written_is_what_is_shown_as_sent() {
        let table = [
            (json!([entry("a", true)]), vec![("a", True)], true),
            (json!([entry("a", false)]), vec![("a", False)], true),
            (
                json!([entry("b", 1), entry("a", true)]),
                vec![("a", True)],
                true,
            ),
            (
                json!([entry("a", true), entry("b", false)]),
                vec![("b", False), ("a", True)],
                true,
            ),
            (
                json!([entry("b", true)]),
                vec![("b", True), ("a", Absent)],
                true,
            ),
            (json!([entry("b", true)]), vec![("a", Absent)], true),
            (json!([]), vec![("a", Absent)], true),
            (
                json!([{"trait_key": "a", "trait_value": true}]),
                vec![("a", True)],
                true,
            ),
            (
                json!([entry("a", true), entry("a", true)]),
                vec![("a", True)],
                true,
            ),
            (json!([entry("a", false)]), vec![("a", True)], false),
            (json!([entry("a", "true")]), vec![("a", True)], false),
            (json!([entry("a", 1)]), vec![("a", True)], false),
            (json!([entry("a", Value::Null)]), vec![("a", False)], false),
            (json!([entry("A", true)]), vec![("a", True)], false),
            (
                json!([entry("b", true)]),
                vec![("b", True), ("a", True)],
                false,
            ),
            (json!([entry("a", true)]), vec![("a", Absent)], false),
            (json!([entry("a", Value::Null)]), vec![("a", Absent)], false),
            (
                json!([entry("a", true), entry("a", false)]),
                vec![("a", True)],
                false,
            ),
            (
                json!([entry("a", false), entry("a", true)]),
                vec![("a", True)],
                false,
            ),
            (
                json!([{"trait_key": "a", "trait_value": true, "transient": true}]),
                vec![("a", True)],
                false,
            ),
        ];
        for (traits, sent, written) in table {
            let disposition = judged(traits.clone(), &sent);
            if written {
                assert_eq!(disposition, WRITTEN, "{traits} {sent:?}");
            } else {
                let stored = matches!(disposition, Disposition::NotStored { .. });
                assert!(stored, "{traits} {sent:?}: {disposition:?}");
            }
        }
    }

    #[test]
    fn a_blank_echo_of_a_set_trait_is_neither() {
        assert_eq!(judged(json!([]), &[("a", True)]), BLANK);
        assert_eq!(judged(json!([]), &[("b", Absent), ("a", False)]), BLANK);
        assert_eq!(
            judge(br#"{"identifier":"ann"}"#, "ann", &[("a", True)]),
            BLANK
        );
    }

    #[test]
    fn what_is_not_flagsmiths_halts() {
        let bodies = [
            "",
            "<!doctype html><title>Sign in</title>",
            "[]",
            "null",
            "17",
            "{}",
            r#"{"detail":"Missing identifier"}"#,
            r#"{"traits":[{"trait_key":"a","trait_value":true}],"flags":[]}"#,
            r#"{"identifier":null,"traits":[]}"#,
            r#"{"identifier":"5296722254e5467395f9ebef848e1093","traits":[]}"#,
            r#"{"identifier":"ann ","traits":[]}"#,
            r#"{"identifier":7,"traits":[]}"#,
            r#"{"identifier":"ann","traits":{}}"#,
            r#"{"identifier":"ann","traits":[]} tail"#,
        ];
        for body in bodies {
            let disposition = judge(body.as_bytes(), "ann", &[("a", True)]);
            assert!(
                matches!(disposition, Disposition::Halt { .. }),
                "{body}: {disposition:?}"
            );
        }
    }

    #[test]
    fn an_identifier_that_flagsmith_trims_is_its_own_trouble() {
        let body = br#"{"identifier":"ann","traits":[{"trait_key":"a","trait_value":true}]}"#;
        let disposition = judge(body, "ann\u{1c}", &[("a", True)]);
        assert!(
            matches!(disposition, Disposition::Refused { .. }),
            "{disposition:?}"
        );
    }

    #[test]
    fn an_answer_cut_anywhere_is_never_written() {
        let whole = br#"{"identifier":"ann","traits":[{"id":1,"trait_key":"a","trait_value":true,"transient":false}],"flags":[]}"#;
        assert_eq!(judge(whole, "ann", &[("a", True)]), WRITTEN);
        for length in 1..whole.len() {
            let disposition = judge(&whole[..length], "ann", &[("a", True)]);
            let later = matches!(
                disposition,
                Disposition::Later {
                    scope: Scope::Identity,
                    ..
                }
            );
            assert!(later, "{length}: {disposition:?}");
        }
    }

    #[test]
    fn traits_are_read_with_their_values() {
        let body = br#"{"identifier":"a\u0026b","traits":[{"trait_key":"x","trait_value":"1.0"},
            {"trait_key":"y","trait_value":null,"transient":true}]}"#;
        let read = traits(body, "a&b").unwrap();
        assert_eq!(read, [("x".to_owned(), Value::from("1.0"))]);
    }

    fn target() -> impl Strategy<Value = Target> {
        prop_oneof![Just(True), Just(False), Just(Absent)]
    }

    proptest! {
        /// Written exactly when a store that holds what is shown holds what was sent.
        #[test]
        fn written_agrees_with_a_model(
            identifier in "\\PC{1,12}",
            shown in proptest::collection::btree_map("[a-c]{1,2}", any::<bool>(), 1..6),
            sent in proptest::collection::btree_map("[a-c]{1,2}", target(), 1..4),
        ) {
            let entries: Vec<Value> = shown.iter().map(|(key, &value)| entry(key, value)).collect();
            let body = json!({"identifier": identifier, "traits": entries}).to_string();
            let rows: Vec<(&str, Target)> = sent.iter().map(|(k, &t)| (k.as_str(), t)).collect();
            let agrees = sent.iter().all(|(key, target)| {
                shown.get(key).copied() == target.trait_value()
            });
            prop_assert_eq!(judge(body.as_bytes(), &identifier, &rows) == WRITTEN, agrees);
        }

        /// Whatever comes back, nothing panics and nothing but an echo counts.
        #[test]
        fn no_bytes_panic(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_ne!(judge(&body, "ann", &[("a", True)]), WRITTEN);
        }
    }
}
