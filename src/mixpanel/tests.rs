//! The parser as a whole: its rules one by one, and against a naive model.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::*;
use crate::roster::{Entry, PersonHash};

fn rules(properties: &[&str]) -> IdentifierRules {
    IdentifierRules::new(properties.iter().copied(), Anonymous::Skip)
}

/// Identifiers that are themselves the people.
fn identifiers<const N: usize>(identifiers: [&str; N]) -> Roster {
    Roster::of_identifiers(identifiers)
}

/// Identifiers, each with the distinct id of the person.
pub(super) fn people(rows: &[(&str, Option<&str>)]) -> Roster {
    let mut entries: Vec<_> = rows
        .iter()
        .map(|(identifier, distinct_id)| Entry {
            identifier,
            person: distinct_id.map(PersonHash::of),
        })
        .collect();
    entries.sort_unstable();
    Roster::from_sorted(entries)
}

fn parsed(body: &str) -> Parsed {
    parse(body.as_bytes(), &IdentifierRules::default()).unwrap_or_else(|r| panic!("{body}: {r}"))
}

fn refused(body: &str) -> Rejected {
    match parse(body.as_bytes(), &IdentifierRules::default()) {
        Ok(parsed) => panic!("{body} was taken as {parsed:?}"),
        Err(rejected) => rejected,
    }
}

/// A body whose `parameters` hold a cohort id and what is given.
fn with(parameters: &str) -> String {
    format!(r#"{{"action":"add_members","parameters":{{"mixpanel_cohort_id":"7",{parameters}}}}}"#)
}

fn with_members(members: &str) -> String {
    with(&format!(r#""members":{members}"#))
}

#[test]
fn everything_but_action_cohort_and_members_may_be_missing() {
    let page = parsed(r#"{"action":"members","parameters":{"mixpanel_cohort_id":7,"members":[]}}"#);
    assert_eq!(
        page,
        Parsed {
            page: Page {
                action: Action::Members,
                project_id: String::new(),
                cohort_id: "7".to_owned(),
                cohort_name: None,
                session_id: None,
                page_info: None,
                roster: Roster::default(),
                identified_by: "mixpanel_distinct_id; anonymous ids skipped".into(),
                members_received: 0,
                set_aside: vec![],
            },
            property_seen: vec![false],
        }
    );
    assert!(!page.property_is_absent(), "an empty page proves nothing");
}

#[test]
fn refusals_say_why_and_repeat_the_action() {
    let deep = format!(
        r#"{{"action":"members","x":{}{}}}"#,
        "[".repeat(200_000),
        "]".repeat(200_000)
    );
    let long = with_members("[]").replace(r#""7""#, &format!(r#""{}""#, "7".repeat(256)));
    let members = Some("add_members");
    for (body, action, part) in [
        ("", None, "not JSON"),
        ("hello", None, "not JSON"),
        ("[]", None, "must be objects"),
        (r#"{"action":"members""#, Some("members"), "not JSON"),
        (r#"{"action":"members"} x"#, Some("members"), "not JSON"),
        ("\u{feff}{}", None, "not JSON"),
        (&deep, Some("members"), "deeper than 128"),
        ("{}", None, "no 'action'"),
        (r#"{"action":null}"#, None, "no 'action'"),
        (
            r#"{"action":"ping"}"#,
            Some("ping"),
            "unknown action 'ping'",
        ),
        (r#"{"action":"Members"}"#, Some("Members"), "unknown action"),
        (r#"{"action":"\ud800"}"#, None, "unknown action"),
        (
            r#"{"action":"members","mixpanel_cohort_id":"7","members":[]}"#,
            Some("members"),
            "no 'parameters'",
        ),
        (
            r#"{"parameters":null,"action":"members"}"#,
            Some("members"),
            "must be objects",
        ),
        (&with_members("{}"), members, "must be objects"),
        (&with_members("null"), members, "must be objects"),
        (&with(r#""x":1"#), members, "no 'members'"),
        (
            r#"{"action":"add_members","parameters":{"members":[]}}"#,
            members,
            "no mixpanel_cohort_id",
        ),
        (
            &with_members("[]").replace(r#""7""#, "null"),
            members,
            "no mixpanel_cohort_id",
        ),
        (
            &with_members("[]").replace(r#""7""#, r#"" \u001f""#),
            members,
            "no mixpanel_cohort_id",
        ),
        (
            &with_members("[]").replace(r#""7""#, "7.0"),
            members,
            "mixpanel_cohort_id is neither a string nor a whole number",
        ),
        (
            &with_members("[]").replace(r#""7""#, r#""7\u0000""#),
            members,
            "mixpanel_cohort_id holds a NUL",
        ),
        (
            &with_members("[]").replace(r#""7""#, r#""\udfff""#),
            members,
            "mixpanel_cohort_id holds a lone surrogate",
        ),
        (&long, members, "mixpanel_cohort_id is longer than 255"),
        (
            &with(r#""members":[],"mixpanel_session_id":[]"#),
            members,
            "mixpanel_session_id is neither",
        ),
    ] {
        let rejected = refused(body);
        let message = rejected.to_string();
        assert!(message.contains(part), "{message:?} lacks {part:?}");
        assert_eq!(rejected.action.as_deref(), action, "{message}");
    }
}

#[test]
fn a_body_that_is_no_text_is_refused() {
    let rejected = parse(b"{\"action\":\"\xff\"}", &IdentifierRules::default()).unwrap_err();
    assert!(matches!(rejected.error, ParseError::NotUtf8 { offset: 11 }));
    let rejected = parse(b"\x1f\x8b\x08\0", &rules(&["mixpanel_distinct_id"])).unwrap_err();
    assert!(matches!(rejected.error, ParseError::Compressed));
}

#[test]
fn a_refusal_repeats_no_value() {
    for body in [
        r#"{"action":"members","parameters":{"members":"secret@quay.example"}}"#,
        r#"{"action":"members","parameters":"secret@quay.example"}"#,
        r#"{"action":"members","parameters":{"members":[{"email":"secret@quay.example"}"#,
    ] {
        assert!(!refused(body).to_string().contains("secret"), "{body}");
    }
}

#[test]
fn a_long_action_is_neither_echoed_nor_shown_whole() {
    let rejected = refused(&format!(r#"{{"action":"{}"}}"#, "x".repeat(5_000)));
    assert_eq!(rejected.action, None);
    assert!(rejected.to_string().len() < 250);
}

#[test]
fn a_key_twice_in_the_envelope_is_refused() {
    for (body, key, place) in [
        (
            r#"{"action":"members","action":"members"}"#,
            "action",
            "the body",
        ),
        (
            r#"{"\u0061ction":"members","action":"members"}"#,
            "action",
            "the body",
        ),
        (r#"{"x":1,"y":2,"x":1}"#, "x", "the body"),
        (
            &with(r#""members":[],"mixpanel_cohort_id":"7""#),
            "mixpanel_cohort_id",
            "'parameters'",
        ),
        (
            &with(r#""members":[],"members":[]"#),
            "members",
            "'parameters'",
        ),
        (
            &with(r#""members":[],"extra":0,"extra":0"#),
            "extra",
            "'parameters'",
        ),
        (
            &with(r#""page_info":{"page_count":1,"page_count":2,"total_pages":3},"members":[]"#),
            "page_count",
            "'page_info'",
        ),
        (
            r#"{"action":"members","members":[],"parameters":{"members":[]}}"#,
            "members",
            "the envelope",
        ),
    ] {
        assert_eq!(
            refused(body).to_string(),
            format!("the key '{key}' occurs twice in {place}")
        );
    }
}

#[test]
fn a_key_twice_in_a_member_counts_as_the_last_one() {
    let page = parsed(&with_members(
        r#"[{"mixpanel_distinct_id":"a","mixpanel_distinct_id":"b"},
            {"mixpanel_distinct_id":"c","mixpanel_distinct\u005fid":null}]"#,
    ))
    .page;
    assert_eq!(page.roster, identifiers(["b"]));
    assert_eq!(page.set_aside, [(SetAside::Missing, 1)]);
}

#[test]
fn members_may_stand_beside_parameters() {
    for body in [
        r#"{"action":"members","members":[{"mixpanel_distinct_id":1}],"parameters":{"mixpanel_cohort_id":"7"}}"#,
        r#"{"parameters":{"mixpanel_cohort_id":"7"},"members":[{"mixpanel_distinct_id":1}],"action":"members"}"#,
    ] {
        assert_eq!(parsed(body).page.roster, identifiers(["1"]));
    }
}

#[test]
fn page_info_is_read_or_refused() {
    let page_info = |json: &str| {
        parse(
            with(&format!(r#""members":[],"page_info":{json}"#)).as_bytes(),
            &IdentifierRules::default(),
        )
        .map(|parsed| parsed.page.page_info)
    };
    let two_of_three = Some(PageInfo {
        number: 2,
        total: 3,
    });
    for (json, expected) in [
        (r#"{"page_count":2,"total_pages":3}"#, two_of_three),
        (r#"{"page_count":"2","total_pages":"3"}"#, two_of_three),
        (
            r#"{"x":{"page_count":9},"page_count":2,"total_pages":3}"#,
            two_of_three,
        ),
        ("null", None),
    ] {
        assert_eq!(page_info(json).unwrap(), expected, "{json}");
    }
    for json in [
        r#"{}"#,
        r#"[]"#,
        r#""1""#,
        r#"{"page_count":1}"#,
        r#"{"total_pages":1}"#,
        r#"{"page_count":0,"total_pages":1}"#,
        r#"{"page_count":4,"total_pages":3}"#,
        r#"{"page_count":1.0,"total_pages":1}"#,
        r#"{"page_count":-1,"total_pages":1}"#,
        r#"{"page_count":"+1","total_pages":"1"}"#,
        r#"{"page_count":"","total_pages":"1"}"#,
        r#"{"page_count":1,"total_pages":10000001}"#,
        r#"{"page_count":1,"total_pages":99999999999999999999}"#,
        r#"{"page_count":true,"total_pages":true}"#,
    ] {
        let rejected = page_info(json).unwrap_err();
        assert!(
            matches!(rejected.error, ParseError::PageInfo(_)),
            "{json}: {rejected}"
        );
    }
}

#[test]
fn a_name_is_kept_readable_and_never_an_error() {
    let name = |json: &str| {
        parsed(&with(&format!(
            r#""members":[],"mixpanel_cohort_name":{json}"#
        )))
        .page
        .cohort_name
    };
    for (json, expected) in [
        (r#""Trial 🚀""#, Some("Trial 🚀")),
        (r#""a\u0000b""#, Some("ab")),
        (r#""a\ud800b""#, Some("a\u{fffd}\u{fffd}\u{fffd}b")),
        ("2024", Some("2024")),
        (r#""  ""#, None),
        ("null", None),
        ("[1]", None),
        ("1.5", None),
    ] {
        assert_eq!(name(json).as_deref(), expected, "{json}");
    }
    let long = name(&format!(r#""{}""#, "é".repeat(300))).unwrap();
    assert_eq!(long.chars().count(), 255);
}

#[test]
fn one_bad_member_never_fails_its_page() {
    let page = parsed(&with_members(
        r#"[1, "x", "\ud800", null, true, [], [{"mixpanel_distinct_id":"no"}], 1e999,
            {}, {"mixpanel_distinct_id":1.0}, {"mixpanel_distinct_id":{}},
            {"mixpanel_distinct_id":"\ud800"},
            {"mixpanel_distinct_id":"ok1","note":"\ud800","\udc00":1,"n":1e999},
            {"mixpanel_distinct_id":"ok\u0032"}]"#,
    ))
    .page;
    assert_eq!(page.roster, identifiers(["ok1", "ok2"]));
    assert_eq!(page.members_received, 14);
    assert_eq!(
        page.set_aside,
        [(SetAside::Missing, 11), (SetAside::Surrogate, 1)]
    );
}

#[test]
fn the_first_usable_property_wins() {
    let rules = rules(&["$user_id", "mixpanel_distinct_id", "User ID"]);
    let body = with_members(
        r#"[{"mixpanel_distinct_id":"b","$user_id":"a"},
            {"mixpanel_distinct_id":"$device:1","User ID":"c"},
            {"$user_id":null,"mixpanel_distinct_id":"$device:2"},
            {"$user_id":" d","mixpanel_distinct_id":"$device:3"},
            {"$user_id":" d","mixpanel_distinct_id":"e"},
            {"email":"x"}]"#,
    );
    let page = parse(body.as_bytes(), &rules).unwrap().page;
    assert_eq!(
        page.roster,
        people(&[
            ("", Some("$device:2")),
            ("", Some("$device:3")),
            ("a", Some("b")),
            ("c", Some("$device:1")),
            ("e", Some("e")),
        ])
    );
    assert_eq!(
        page.set_aside,
        [
            (SetAside::Missing, 1),
            (SetAside::Padded, 1),
            (SetAside::Anonymous, 1)
        ]
    );
}

#[test]
fn anonymous_ids_may_be_kept() {
    let rules = IdentifierRules::new([DEFAULT_IDENTIFIER_PROPERTY], Anonymous::Keep);
    let body = with_members(r#"[{"mixpanel_distinct_id":"$device:1"}]"#);
    let page = parse(body.as_bytes(), &rules).unwrap().page;
    assert_eq!(page.roster, identifiers(["$device:1"]));
}

#[test]
fn a_property_counts_as_sent_whatever_its_value() {
    let rules = rules(&["$user_id", "id"]);
    let seen = |members: &str| parse(with_members(members).as_bytes(), &rules).unwrap();
    assert!(seen(r#"[{"email":"x"},7]"#).property_is_absent());
    assert_eq!(seen(r#"[{"id":null}]"#).property_seen, [false, true]);
    assert!(!seen(r#"[{"id":null}]"#).property_is_absent());
    let message = Rejected::property_absent(Action::Members, &rules).to_string();
    assert!(message.contains("'$user_id' or 'id'") && message.contains("'Properties to Export'"));
}

#[test]
fn two_people_may_share_an_identifier_and_one_may_come_twice() {
    let rules = rules(&["account"]);
    let body = with_members(
        r#"[{"account":"acme","mixpanel_distinct_id":"ann"},
            {"account":"acme","mixpanel_distinct_id":"bob"},
            {"mixpanel_distinct_id":"ann","account":"acm\u0065","email":"x"},
            {"account":"acme"},
            {"account":"quay","mixpanel_distinct_id":"ann"}]"#,
    );
    let page = parse(body.as_bytes(), &rules).unwrap().page;
    assert_eq!(
        page.roster,
        people(&[
            ("acme", None),
            ("acme", Some("ann")),
            ("acme", Some("bob")),
            ("quay", Some("ann")),
        ])
    );
    assert_eq!(page.members_received, 5);
    assert_eq!(page.set_aside, []);
}

#[test]
fn a_member_without_an_identifier_can_still_leave() {
    let rules = rules(&["account"]);
    let body = with_members(
        r#"[{"mixpanel_distinct_id":"ann"},
            {"account":" ","mixpanel_distinct_id":"ann"},
            {"account":" x","mixpanel_distinct_id":7},
            {"account":null,"mixpanel_distinct_id":" "},
            {"account":"\ud800","mixpanel_distinct_id":"\ud800"},
            {"mixpanel_distinct_id":null}, {"mixpanel_distinct_id":1.0}, 7]"#,
    );
    let page = parse(body.as_bytes(), &rules).unwrap().page;
    assert_eq!(page.roster, people(&[("", Some("ann")), ("", Some("7"))]));
    assert_eq!(page.members_received, 8);
    assert_eq!(
        page.set_aside,
        [
            (SetAside::Missing, 5),
            (SetAside::Blank, 1),
            (SetAside::Padded, 1),
            (SetAside::Surrogate, 1)
        ]
    );
}

#[test]
fn of_a_distinct_id_twice_the_last_counts() {
    let body = with_members(
        r#"[{"mixpanel_distinct_id":"ann","account":"a","mixpanel_distinct_id":"bob"},
            {"mixpanel_distinct_id":"ann","account":"b","mixpanel_distinct\u005fid":null}]"#,
    );
    let page = parse(body.as_bytes(), &rules(&["account"])).unwrap().page;
    assert_eq!(page.roster, people(&[("a", Some("bob")), ("b", None)]));
}

#[test]
fn the_distinct_id_is_no_configured_property_unless_it_is() {
    let body = with_members(r#"[{"mixpanel_distinct_id":"ann"}]"#);
    let parsed = parse(body.as_bytes(), &rules(&["account"])).unwrap();
    assert_eq!(parsed.property_seen, [false]);
    assert!(parsed.property_is_absent());
    assert_eq!(parsed.page.roster, people(&[("", Some("ann"))]));

    let chain = rules(&["account", "mixpanel_distinct_id"]);
    let parsed = parse(body.as_bytes(), &chain).unwrap();
    assert_eq!(parsed.property_seen, [false, true]);
    assert_eq!(parsed.page.roster, people(&[("ann", Some("ann"))]));
}

#[test]
fn a_distinct_id_leaves_the_parser_as_a_hash_only() {
    let body = with_members(r#"[{"account":"a","mixpanel_distinct_id":"hush-1"}]"#);
    let parsed = parse(body.as_bytes(), &rules(&["account"])).unwrap();
    let stored = String::from_utf8_lossy(parsed.page.roster.as_bytes()).into_owned();
    assert!(!stored.contains("hush"), "{stored}");
}

#[test]
fn only_mixpanels_own_id_alone_needs_no_people() {
    for (properties, maps_people) in [
        (&["mixpanel_distinct_id"][..], false),
        (&["$user_id"], true),
        (&["$user_id", "mixpanel_distinct_id"], true),
        (&["mixpanel_distinct_id", "$user_id"], true),
    ] {
        assert_eq!(
            rules(properties).maps_people(),
            maps_people,
            "{properties:?}"
        );
    }
    assert!(!IdentifierRules::new(["mixpanel_distinct_id"], Anonymous::Keep).maps_people());
}

#[test]
fn a_page_says_under_which_rules_it_was_read() {
    let chain = ["$user_id", "mixpanel_distinct_id"];
    for (rules, expected) in [
        (
            IdentifierRules::default(),
            "mixpanel_distinct_id; anonymous ids skipped",
        ),
        (
            IdentifierRules::new(chain, Anonymous::Skip),
            "$user_id,mixpanel_distinct_id; anonymous ids skipped",
        ),
        (
            IdentifierRules::new(chain, Anonymous::Keep),
            "$user_id,mixpanel_distinct_id; anonymous ids kept",
        ),
    ] {
        let page = parse(with_members("[]").as_bytes(), &rules).unwrap().page;
        assert_eq!(&*page.identified_by, expected);
        assert!(std::sync::Arc::ptr_eq(
            &page.identified_by,
            &rules.describe()
        ));
    }
}

/// What a member comes to: an identifier, empty where it has none, and a distinct id.
type Person = (String, Option<String>);

/// What the parser must find, the slow way. Of strings and numbers only those that a `Value` can
/// hold exactly.
fn model(
    members: &[Value],
    properties: &[String],
) -> (BTreeSet<Person>, BTreeMap<SetAside, usize>) {
    let space = |c: char| c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c);
    let text = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) if number.is_i64() || number.is_u64() => Some(number.to_string()),
        _ => None,
    };
    let verdict = |value: &Value| {
        let text = text(value).ok_or(SetAside::Missing)?;
        let trimmed = text.trim_matches(space);
        Err(match () {
            () if trimmed.is_empty() => SetAside::Blank,
            () if text.len() > 1_024 => SetAside::TooLong,
            () if text.contains('\0') => SetAside::Nul,
            () if trimmed != text => SetAside::Padded,
            () if text.starts_with("$device:") => SetAside::Anonymous,
            () => return Ok(text),
        })
    };
    let mut people = BTreeSet::new();
    let mut set_aside = BTreeMap::new();
    for member in members {
        let verdicts: Vec<_> = properties
            .iter()
            .filter_map(|property| member.get(property))
            .map(verdict)
            .collect();
        let distinct_id = member
            .get("mixpanel_distinct_id")
            .filter(|_| properties != ["mixpanel_distinct_id"])
            .and_then(text)
            .filter(|id| !id.chars().all(space));
        if let Some(identifier) = verdicts.iter().flatten().next() {
            people.insert((identifier.clone(), distinct_id));
        } else {
            people.extend(distinct_id.map(|id| (String::new(), Some(id))));
            let reason = verdicts
                .iter()
                .filter_map(|verdict| verdict.as_ref().err())
                .find(|reason| **reason != SetAside::Missing)
                .unwrap_or(&SetAside::Missing);
            *set_aside.entry(*reason).or_insert(0) += 1;
        }
    }
    (people, set_aside)
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => "[a-c]{1,2}",
        2 => any::<String>(),
        1 => "[ \\x00\\x1c\\x1f\u{a0}\u{200b}a]{0,3}",
        1 => "\\$device:[0-9]{0,2}",
        1 => "[é\u{308}x]{500,530}",
    ]
}

fn scalar() -> impl Strategy<Value = Value> {
    prop_oneof![
        6 => text().prop_map(Value::from),
        2 => any::<i64>().prop_map(Value::from),
        1 => any::<u64>().prop_map(Value::from),
        1 => Just(json!(0.5)),
        1 => Just(Value::Null),
        1 => any::<bool>().prop_map(Value::from),
    ]
}

fn member() -> impl Strategy<Value = Value> {
    let value = prop_oneof![
        8 => scalar(),
        1 => prop::collection::vec(scalar(), 0..3).prop_map(Value::from),
        1 => scalar().prop_map(|inner| json!({ "mixpanel_distinct_id": inner })),
    ];
    let name = prop_oneof![
        4 => Just("mixpanel_distinct_id".to_owned()),
        3 => Just("$user_id".to_owned()),
        2 => any::<String>(),
    ];
    prop_oneof![
        9 => prop::collection::btree_map(name, value, 0..4)
            .prop_map(|fields| Value::Object(fields.into_iter().collect::<Map<_, _>>())),
        1 => scalar(),
    ]
}

proptest! {
    #[test]
    fn agrees_with_a_naive_model(
        members in prop::collection::vec(member(), 0..12),
        cohort_id in "[0-9]{1,8}",
        name in prop::option::of("\\PC{1,20}[a-z]"),
        session in prop::option::of("[a-f0-9-]{1,36}"),
        place in prop::option::of((1_u32..50, 0_u32..50, any::<bool>())),
        action in prop::sample::select(vec![Action::Members, Action::AddMembers, Action::RemoveMembers]),
        beside in any::<bool>(),
        pretty in any::<bool>(),
        properties in prop::sample::select(vec![
            &["mixpanel_distinct_id"][..], &["$user_id"], &["$user_id", "mixpanel_distinct_id"],
        ]),
    ) {
        let rules = rules(properties);
        let mut body = json!({"action": action.as_str(), "parameters": {
            "mixpanel_cohort_id": cohort_id, "mixpanel_cohort_name": name, "mixpanel_session_id": session,
        }});
        if let Some((number, more, as_text)) = place {
            let total = number + more;
            body["parameters"]["page_info"] = if as_text {
                json!({"page_count": number.to_string(), "total_pages": total.to_string()})
            } else {
                json!({"page_count": number, "total_pages": total})
            };
        }
        let home = if beside { &mut body } else { &mut body["parameters"] };
        home["members"] = Value::from(members.clone());
        let text = if pretty { serde_json::to_string_pretty(&body) } else { serde_json::to_string(&body) };

        let parsed = parse(text.unwrap().as_bytes(), &rules).unwrap();

        let (found, set_aside) = model(&members, &rules.properties);
        let rows: Vec<_> = found.iter().map(|(id, person)| (id.as_str(), person.as_deref())).collect();
        let seen = |property: &String| members.iter().any(|member| member.get(property).is_some());
        prop_assert_eq!(parsed, Parsed {
            page: Page {
                action,
                project_id: String::new(),
                cohort_id,
                cohort_name: name,
                session_id: session,
                page_info: place.map(|(number, more, _)| PageInfo { number, total: number + more }),
                roster: people(&rows),
                identified_by: rules.describe(),
                members_received: members.len(),
                set_aside: set_aside.into_iter().collect(),
            },
            property_seen: rules.properties.iter().map(seen).collect(),
        });
    }

    #[test]
    fn nothing_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse(&bytes, &IdentifierRules::default());
    }

    #[test]
    fn nothing_made_of_json_makes_it_panic(
        pieces in prop::collection::vec(prop::sample::select(vec![
            "{", "}", "[", "]", ",", ":", "\"", "\\", "\\ud800", "\\u", "null", "1", "-", ".5", "e9",
            "\"action\":", "\"members\":", "\"members\"", "\"parameters\":{", "\"page_info\":",
            "\"mixpanel_cohort_id\":", "{\"mixpanel_distinct_id\":", " ", "\u{0}", "é",
        ]), 0..40)
    ) {
        let _ = parse(pieces.concat().as_bytes(), &IdentifierRules::default());
    }

    #[test]
    fn a_damaged_payload_never_panics(cut in 0_usize..400, byte in any::<u8>()) {
        let mut body = with(r#""page_info":{"page_count":1,"total_pages":"2"},"mixpanel_cohort_name":"a\ud800","members":[{"mixpanel_distinct_id":"\ud83d\ude80","x":[1,{"y":null}]}]"#).into_bytes();
        let at = cut % body.len();
        body[at] = byte;
        let _ = parse(&body, &IdentifierRules::default());
        body.truncate(at);
        prop_assert!(parse(&body, &IdentifierRules::default()).is_err());
    }
}
