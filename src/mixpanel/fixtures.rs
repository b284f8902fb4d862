//! `fixtures/`, each against what must be read of it, and the story they tell together.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::tests::people;
use super::*;
use crate::replay::{self, Payload};

const TRIAL: &str = "5518203";
const DEVICE: &str = "18c5f0a17b3e4c-0d1e2f3a4b5c6d-1d525637-1fa400-18c5f0a17b4f00";

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn payloads(name: &str) -> Vec<Payload> {
    let prefix = format!("{}/", folder(name).display());
    replay::files(&[folder(name)])
        .unwrap()
        .iter()
        .flat_map(|file| replay::payloads_in(file).unwrap())
        .map(|payload| Payload {
            name: payload.name.replace(&prefix, ""),
            ..payload
        })
        .collect()
}

fn page(payload: &Payload) -> Page {
    parse(&payload.bytes, &IdentifierRules::default())
        .unwrap_or_else(|rejected| panic!("{}: {rejected}", payload.name))
        .page
}

/// Number of the file, action, cohort, first letters of the session, page of pages, identifiers.
type Row = (
    &'static str,
    Action,
    &'static str,
    &'static str,
    Option<(u32, u32)>,
    &'static [&'static str],
);

#[rustfmt::skip]
const PAGES: &[Row] = {
    use Action::{AddMembers as Add, Members as All, RemoveMembers as Remove};
    &[
        ("01", All, TRIAL, "7b0c", Some((1, 3)), &["usr_40011", "usr_40012"]),
        ("02", All, TRIAL, "7b0c", Some((3, 3)), &["usr_40023"]),
        ("03", All, TRIAL, "7b0c", Some((3, 3)), &["usr_40023"]),
        ("04", All, TRIAL, "7b0c", Some((2, 3)), &["usr_40021", "usr_40022"]),
        ("05", Add, TRIAL, "2f9d", Some((1, 1)), &["usr_40025"]),
        ("06", Remove, TRIAL, "2f9d", Some((1, 1)), &["usr_40012"]),
        ("07", Add, TRIAL, "5a4d", Some((1, 1)), &[]),
        ("08", Remove, TRIAL, "5a4d", Some((1, 1)), &[]),
        ("09", Add, TRIAL, "f0a9", Some((1, 1)), &["usr_40031", "usr_40037"]),
        ("09", Remove, TRIAL, "f0a9", Some((1, 1)), &[]),
        ("10", Add, TRIAL, "92c0", Some((1, 1)), &[DEVICE, "mob:9f2ac47d11e0"]),
        ("10", Remove, TRIAL, "92c0", Some((1, 1)), &[]),
        ("11", Add, TRIAL, "1cb7", Some((1, 1)), &["usr_40050"]),
        ("11", Remove, TRIAL, "1cb7", Some((1, 1)), &[]),
        ("12", Add, "5518290", "c3a0", Some((1, 1)), &["0007140095", "7140093", "9007199254740993"]),
        ("13", Remove, "5518290", "c3a0", Some((1, 1)), &["9007199254740993"]),
        ("14", All, "6044117", "e1f6", None, &["88231", "88240"]),
        ("15", All, "6044117", "aa51", Some((1, 2)), &["88231"]),
        ("15", All, "6044117", "aa51", Some((2, 2)), &["88252"]),
        ("16", Add, "5599001", "3d6c", Some((1, 1)), &["usr_40061", "usr_40062"]),
        ("17", Remove, "5599001", "3d6c", Some((1, 1)), &["usr_40062"]),
        ("18", All, "5518377", "b7f2", Some((1, 1)), &["usr_40011", "usr_40080"]),
        ("19", All, "5520144", "d41c", Some((1, 1)), &["usr_40072", "usr_A0071", "usr_a0071", "zoe\u{308}", "zo\u{eb}"]),
        ("20", Add, "5533410", "", None, &["usr_40090"]),
        ("21", All, "5531002", "0c3f", Some((1, 1)), &["usr_40021", "usr_40101"]),
        ("22", All, "5531002", "6f1e", Some((1, 1)), &[]),
        ("23", All, TRIAL, "e90b", Some((1, 2)), &["usr_40011", "usr_40021"]),
        ("24", All, TRIAL, "e90b", Some((2, 2)), &["usr_40023", "usr_40050"]),
    ]
};

#[test]
fn each_is_read_as_it_should_be() {
    let payloads = payloads("fixtures");
    assert_eq!(payloads.len(), PAGES.len());
    for (payload, (number, action, cohort_id, session, info, identifiers)) in
        payloads.iter().zip(PAGES)
    {
        let name = &payload.name;
        let page = page(payload);
        assert!(name.starts_with(number), "{name}");
        assert_eq!(page.action, *action, "{name}");
        assert_eq!(page.cohort_id, *cohort_id, "{name}");
        let session_id = page.session_id.unwrap_or_default();
        assert_eq!(&session_id[..session_id.len().min(4)], *session, "{name}");
        let expected_info = info.map(|(number, total)| PageInfo { number, total });
        assert_eq!(page.page_info, expected_info, "{name}");
        let expected = Roster::of_identifiers(identifiers.iter().copied());
        assert_eq!(page.roster, expected, "{name}");
        let set_aside: &[(SetAside, usize)] = match *number {
            "09" if *action == Action::AddMembers => &[
                (SetAside::Missing, 3),
                (SetAside::Blank, 2),
                (SetAside::Padded, 1),
            ],
            "10" if *action == Action::AddMembers => &[(SetAside::Anonymous, 1)],
            _ => &[],
        };
        assert_eq!(page.set_aside, set_aside, "{name}");
    }
}

#[test]
fn names_and_projects_are_kept_as_sent() {
    let found: BTreeMap<String, (String, Option<String>)> = payloads("fixtures")
        .iter()
        .map(page)
        .map(|page| (page.cohort_id, (page.project_id, page.cohort_name)))
        .collect();
    let expected = [
        (TRIAL, "2914407", Some("Trial power users (Q4, EMEA) 🚀")),
        ("5518290", "2914407", Some("Churn risk")),
        ("5518377", "2914407", Some("Annual plan, admins")),
        ("5520144", "2914407", Some("Beta Ünïted")),
        ("5531002", "2914407", Some("Beta testers")),
        ("5533410", "", None),
        ("5599001", "2914407", Some("Brand-new cohort")),
        ("6044117", "3120988", Some("Activación – semana 1")),
    ]
    .map(|(cohort_id, project_id, name)| {
        let name = name.map(str::to_owned);
        (cohort_id.to_owned(), (project_id.to_owned(), name))
    });
    assert_eq!(found, BTreeMap::from(expected));
}

/// The first page of a fixture, read under `properties`: against identifiers with the distinct id
/// of each, and against the members set aside.
fn assert_read(
    number: &str,
    properties: &[&str],
    expected: &[(&str, Option<&str>)],
    set_aside: &[(SetAside, usize)],
) {
    let payloads = payloads("fixtures");
    let payload = payloads
        .iter()
        .find(|payload| payload.name.starts_with(number))
        .unwrap();
    let rules = IdentifierRules::new(properties.iter().copied(), Anonymous::Skip);
    let page = parse(&payload.bytes, &rules).unwrap().page;
    assert_eq!(page.roster, people(expected), "{number} {properties:?}");
    assert_eq!(page.set_aside, set_aside, "{number} {properties:?}");
}

#[test]
fn people_are_told_apart_where_identifiers_come_from_another_property() {
    use SetAside::{Anonymous, Blank, Missing, Padded};

    assert_read(
        "09",
        &["$user_id"],
        &[
            ("", Some("usr_40031")),
            ("", Some(" usr_40034")),
            ("", Some("usr_40037")),
            ("usr_40035", None),
        ],
        &[(Missing, 7)],
    );
    assert_read(
        "09",
        &["$user_id", "mixpanel_distinct_id"],
        &[
            ("", Some(" usr_40034")),
            ("usr_40031", Some("usr_40031")),
            ("usr_40035", None),
            ("usr_40037", Some("usr_40037")),
        ],
        &[(Missing, 2), (Blank, 2), (Padded, 1)],
    );
    assert_read(
        "09",
        &["$user_id", "mixpanel_distinct_id", "User ID"],
        &[
            ("", Some(" usr_40034")),
            ("usr_40031", Some("usr_40031")),
            ("usr_40035", None),
            ("usr_40036", None),
            ("usr_40037", Some("usr_40037")),
        ],
        &[(Missing, 1), (Blank, 2), (Padded, 1)],
    );
    let everybody = [
        ("", Some("$device:18c5f0a1-7b3e-4c22-9b6a-2f0d8a4b7e19")),
        ("usr_40041", Some(DEVICE)),
        ("usr_40042", Some("mob:9f2ac47d11e0")),
    ];
    assert_read("10", &["$user_id"], &everybody, &[(Missing, 1)]);
    assert_read(
        "10",
        &["$user_id", "mixpanel_distinct_id"],
        &everybody,
        &[(Anonymous, 1)],
    );
}

fn identifiers(roster: &Roster) -> Vec<String> {
    roster
        .iter()
        .map(|entry| entry.identifier.to_owned())
        .collect()
}

/// What the story comes to: per cohort, who is in it and who has left. The README of the fixtures
/// says the same.
#[test]
fn the_story_ends_with_some_in_and_some_out() {
    let mut held: BTreeMap<String, BTreeMap<String, bool>> = BTreeMap::new();
    let mut collected: BTreeMap<String, BTreeMap<u32, Vec<String>>> = BTreeMap::new();
    for page in payloads("fixtures").iter().map(page) {
        let cohort = held.entry(page.cohort_id).or_default();
        if let (Action::Members, Some(info)) = (page.action, page.page_info) {
            let session = collected
                .entry(page.session_id.unwrap_or_default())
                .or_default();
            session.insert(info.number, identifiers(&page.roster));
            if session.len() == info.total as usize {
                cohort.values_mut().for_each(|member| *member = false);
                cohort.extend(session.values().flatten().map(|id| (id.clone(), true)));
            }
        } else {
            let member = page.action != Action::RemoveMembers;
            cohort.extend(identifiers(&page.roster).into_iter().map(|id| (id, member)));
        }
    }
    let counts: Vec<(&str, usize, usize)> = held
        .iter()
        .map(|(cohort_id, people)| {
            let members = people.values().filter(|member| **member).count();
            (cohort_id.as_str(), members, people.len() - members)
        })
        .collect();
    assert_eq!(
        counts,
        [
            (TRIAL, 4, 7),
            ("5518290", 2, 1),
            ("5518377", 2, 0),
            ("5520144", 5, 0),
            ("5531002", 0, 2),
            ("5533410", 1, 0),
            ("5599001", 1, 1),
            ("6044117", 2, 1),
        ]
    );
    let readme = std::fs::read_to_string(folder("fixtures/README.md")).unwrap();
    for (cohort_id, members, left) in counts {
        let row = format!("| {cohort_id} | {members} | {left} |");
        assert!(readme.contains(&row), "the README lacks {row:?}");
    }
}

#[test]
fn each_that_is_meant_to_be_refused_is() {
    let payloads = payloads("fixtures/refused");
    let expected = [
        (Some("ping"), "unknown action 'ping'"),
        (None, "not JSON"),
        (Some("add_members"), "not JSON"),
        (Some("add_members"), "no mixpanel_cohort_id"),
        (Some("add_members"), "no mixpanel_cohort_id"),
        (Some("remove_members"), "'action' occurs twice in the body"),
        (Some("members"), "no 'parameters'"),
        (Some("add_members"), "no 'members'"),
        (Some("members"), "page_count is above total_pages"),
        (None, "not UTF-8"),
        (Some("add_members"), "deeper than 128"),
    ];
    assert_eq!(payloads.len(), expected.len() + 1);
    for (payload, (action, message)) in payloads.iter().zip(expected) {
        let rejected = parse(&payload.bytes, &IdentifierRules::default()).expect_err(&payload.name);
        assert_eq!(rejected.action.as_deref(), action, "{}", payload.name);
        let found = rejected.to_string();
        assert!(found.contains(message), "{}: {found}", payload.name);
    }
    // The last is well-formed: only the source's history decides.
    let last = parse(&payloads[expected.len()].bytes, &IdentifierRules::default()).unwrap();
    assert!(last.property_is_absent());
}

#[test]
fn the_readme_names_every_file() {
    let readme = std::fs::read_to_string(folder("fixtures/README.md")).unwrap();
    for payload in payloads("fixtures")
        .iter()
        .chain(&payloads("fixtures/refused"))
    {
        let file = payload.name.split(':').next().unwrap();
        assert!(readme.contains(&format!("`{file}`")), "{file}");
    }
}
