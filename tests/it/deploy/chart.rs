//! The Helm chart, as far as it can be read without Helm.

use std::collections::BTreeSet;

use cohort_bridge::config::setting::{self, Exposure};
use serde_json::Value;

use super::yaml::{document_in, files_below, list, text_of, word};

pub const CHART: &str = "deploy/helm/cohort-bridge";

/// Settings that the chart sets itself, from other values or for good.
const THE_CHARTS_OWN: [&str; 5] = [
    "listen",
    "admin-listen",
    "database-url",
    "shutdown-grace",
    "config",
];

fn values() -> Value {
    document_in(&format!("{CHART}/values.yaml"))
}

fn schema() -> Value {
    serde_json::from_str(&text_of(&format!("{CHART}/values.schema.json"))).unwrap()
}

fn names(of: impl Fn(&setting::Setting) -> bool) -> BTreeSet<String> {
    let settings = setting::SERVE.iter().filter(|setting| of(setting));
    let names = settings.map(|setting| setting.flag.trim_start_matches('-').to_owned());
    names
        .filter(|name| !THE_CHARTS_OWN.contains(&&**name))
        .collect()
}

#[test]
fn the_chart_is_of_this_version() {
    let chart = document_in(&format!("{CHART}/Chart.yaml"));
    assert_eq!(chart["appVersion"], env!("CARGO_PKG_VERSION"));
    assert_eq!(chart["name"], env!("CARGO_PKG_NAME"));
    // The first that can sleep in preStop without a shell.
    assert_eq!(chart["kubeVersion"], ">=1.30.0-0");
}

#[test]
fn values_can_set_every_setting_and_no_other() {
    let schema = schema();
    let settings = schema["properties"]["settings"]["properties"]
        .as_object()
        .unwrap();
    let secrets = list(&schema["properties"]["secret"]["properties"]["keys"]["items"]["enum"]);
    let settings: BTreeSet<String> = settings.keys().cloned().collect();
    let secrets: BTreeSet<String> = secrets.iter().map(|it| word(it).to_owned()).collect();
    assert_eq!(settings, names(|it| it.exposure != Exposure::Secret));
    assert_eq!(secrets, names(|it| it.exposure == Exposure::Secret));
}

/// Holds the schema's properties to the values' keys, below `path`.
fn compare(values: &Value, schema: &Value, path: &str) {
    let Some(properties) = schema["properties"].as_object() else {
        return;
    };
    assert_eq!(schema["additionalProperties"], false, "{path}");
    let values = values
        .as_object()
        .unwrap_or_else(|| panic!("{path} is no table"));
    if values.is_empty() {
        // What may be there and is not, by default.
        return;
    }
    let there: BTreeSet<&String> = values.keys().collect();
    // Helm itself adds it, where the chart is part of another.
    let known: BTreeSet<&String> = properties.keys().filter(|key| *key != "global").collect();
    assert_eq!(there, known, "{path}");
    for (key, value) in values {
        compare(value, &properties[key], &format!("{path}.{key}"));
    }
}

#[test]
fn the_schema_knows_every_value() {
    compare(&values(), &schema(), "");
}

#[test]
fn every_value_has_a_comment() {
    let text = text_of(&format!("{CHART}/values.yaml"));
    let mut before = "";
    let mut in_list_at = None;
    let mut commented = 0;
    for line in text.lines() {
        let indent = line.len() - line.trim_start().len();
        let content = line.trim_start();
        let in_list = in_list_at.is_some_and(|at| indent > at);
        if content.starts_with('-') {
            in_list_at = in_list_at.filter(|at| indent > *at).or(Some(indent));
        } else if !in_list && !content.is_empty() {
            in_list_at = None;
            if !content.starts_with('#') {
                assert!(before.starts_with('#'), "no comment on {content}");
                commented += 1;
            }
        }
        before = content;
    }
    assert!(commented > 40, "{commented}");
}

#[test]
fn every_value_is_used_and_every_value_used_is_there() {
    let templates = files_below(&format!("{CHART}/templates"));
    let templates: String = templates.iter().map(|path| text_of(path)).collect();
    let values = values();
    for key in values.as_object().unwrap().keys() {
        assert!(
            templates.contains(&format!(".Values.{key}")),
            "{key} is for nothing"
        );
    }
    for used in templates.split(".Values.").skip(1) {
        let path = used
            .split(|c: char| !c.is_ascii_alphanumeric() && c != '.')
            .next()
            .unwrap();
        let pointer = format!("/{}", path.trim_end_matches('.').replace('.', "/"));
        assert!(values.pointer(&pointer).is_some(), "{path}");
    }
}
