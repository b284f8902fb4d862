//! The alert rules ask for what a running service really tells.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::yaml::{document_in, list, word};
use crate::support::pages::page;
use crate::support::service::{Service, spawn_app, stand_in};

const CHART: &str = "deploy/helm/cohort-bridge/alerts.yaml";
const KUSTOMIZE: &str = "deploy/kustomize/components/monitoring/prometheusrule.yaml";

/// Labels that Prometheus adds to whatever it scrapes in a cluster.
const PROMETHEUS_ADDS: [&str; 2] = ["namespace", "job"];

pub fn rules() -> Vec<Value> {
    let groups = document_in(CHART);
    let groups = list(&groups["groups"]);
    groups
        .iter()
        .flat_map(|group| list(&group["rules"]).to_vec())
        .collect()
}

#[test]
fn kustomize_has_the_alerts_of_the_chart() {
    assert_eq!(
        document_in(KUSTOMIZE)["spec"]["groups"],
        document_in(CHART)["groups"]
    );
}

/// What a service that was sent good and bad pages tells: the labels of each metric.
async fn told() -> BTreeMap<String, BTreeSet<String>> {
    let service: Service = spawn_app(stand_in(), |setup| {
        setup.destination.call_budget = Some(1_000);
    })
    .await;
    service
        .send(&page("members", "c", "s", (1, 1), &["ann"]))
        .await;
    service.settled().await;
    assert_eq!(service.post("{}").await.status, 400);
    let text = service.get("/metrics").await.text;
    let series = text.lines().filter(|line| !line.starts_with('#'));
    series
        .map(|line| {
            let (series, _) = line.rsplit_once(' ').unwrap();
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            let labels = labels
                .split("\",")
                .filter_map(|label| label.split_once("=\""));
            (
                name.to_owned(),
                labels.map(|(label, _)| label.to_owned()).collect(),
            )
        })
        .collect()
}

/// The words of a PromQL expression that are names, quoted texts left out.
fn names(expression: &str) -> Vec<&str> {
    let unquoted = expression.split('"').step_by(2);
    let words =
        unquoted.flat_map(|part| part.split(|c: char| !c.is_ascii_alphanumeric() && c != '_'));
    words
        .filter(|word| word.starts_with(|c: char| c.is_ascii_alphabetic()))
        .collect()
}

#[tokio::test]
async fn alerts_are_about_metrics_that_there_are() {
    let told = told().await;
    assert!(told.len() > 15, "{told:?}");
    let mut alerted = BTreeSet::new();
    for rule in rules() {
        let expression = word(&rule["expr"]);
        let names = names(expression);
        let metrics: Vec<&str> = names
            .iter()
            .copied()
            .filter(|name| name.contains("bridge"))
            .collect();
        assert!(!metrics.is_empty(), "{expression}");
        let mut labels: BTreeSet<&str> = BTreeSet::new();
        for metric in &metrics {
            let of_metric = told
                .get(*metric)
                .unwrap_or_else(|| panic!("{metric} is not told"));
            labels.extend(of_metric.iter().map(String::as_str));
            alerted.insert((*metric).to_owned());
        }
        // Whatever is neither a metric nor PromQL's own must be a label of theirs.
        let promql = [
            "absent",
            "max",
            "sum",
            "count",
            "by",
            "time",
            "increase",
            "changes",
            "max_over_time",
            "or",
            "unless",
            "offset",
        ];
        for name in names {
            let is_known = metrics.contains(&name)
                || promql.contains(&name)
                || PROMETHEUS_ADDS.contains(&name);
            assert!(is_known || labels.contains(name), "{name} in {expression}");
        }
        // And whatever the words about it show is left by the expression's `by`.
        let kept: Vec<&str> = expression
            .split("by (")
            .skip(1)
            .flat_map(|rest| rest.split(')').next().unwrap().split(", "))
            .collect();
        for text in rule["annotations"].as_object().unwrap().values() {
            for label in word(text).split("$labels.").skip(1) {
                let label = label.split(' ').next().unwrap();
                assert!(kept.contains(&label), "{label} is not left by {expression}");
            }
        }
    }
    for metric in [
        "cohort_bridge_build_info",
        "cohort_bridge_leading",
        "cohort_bridge_destination_halted",
        "cohort_bridge_oldest_pending_seconds",
        "cohort_bridge_dead",
        "cohort_bridge_last_heard_timestamp_seconds",
        "cohort_bridge_inbox_pages",
        "cohort_bridge_held_removals",
        "cohort_bridge_call_budget",
        "cohort_bridge_paused",
        "cohort_bridge_cohort_paused",
        "cohort_bridge_secrets_refused",
    ] {
        assert!(alerted.contains(metric), "no alert on {metric}");
    }
}

#[test]
fn no_alert_is_about_one_replica_of_several() {
    for rule in rules() {
        let expression = word(&rule["expr"]);
        let is_of_all = expression.contains(" by (namespace") || expression.contains("absent(");
        assert!(is_of_all, "{expression}");
        for one in ["pod", "instance", "container", "node"] {
            assert!(!names(expression).contains(&one), "{one} in {expression}");
        }
        // Each replica counts its own calls and pages, and may know the whole ledger's gauges.
        for summed in expression.split("sum by ").skip(1) {
            let (_, summed) = summed.split_once(')').unwrap();
            let metric = names(summed)
                .into_iter()
                .find(|name| name.contains("bridge"));
            let metric = metric.unwrap();
            assert!(
                metric.ends_with("_total") || metric == "cohort_bridge_leading",
                "{metric} is added up in {expression}"
            );
        }
    }
}

#[test]
fn every_alert_has_a_name_a_severity_and_words() {
    let mut seen = BTreeSet::new();
    for rule in rules() {
        let name = word(&rule["alert"]).to_owned();
        assert!(name.starts_with("CohortBridge"), "{name}");
        let severity = &rule["labels"]["severity"];
        assert!(
            [json!("warning"), json!("critical")].contains(severity),
            "{name}"
        );
        for text in ["summary", "description"] {
            assert!(
                word(&rule["annotations"][text]).ends_with('.'),
                "{name}: {text}"
            );
        }
        assert!(seen.insert(name), "twice");
    }
}

#[test]
fn the_backlog_is_told_before_pages_are_refused() {
    let rules = rules();
    let mut rules = rules.iter();
    let backlog = rules
        .find(|rule| rule["alert"] == "CohortBridgeBacklog")
        .unwrap();
    let (_, limit) = word(&backlog["expr"]).rsplit_once("> ").unwrap();
    let limit: u64 = limit.parse().unwrap();
    assert!(limit < cohort_bridge::status::BACKLOG_LIMIT_PAGES);
}

#[test]
fn commands_in_alerts_are_ones_that_the_program_takes() {
    let mut shown = 0;
    for rule in rules() {
        let description = word(&rule["annotations"]["description"]).to_owned();
        for command in description.split('`').skip(1).step_by(2) {
            let command = command.replace("{{ $labels.source }}", "default");
            let command = command.replace("{{ $labels.cohort_id }}", "1");
            let command = command.replace("{{ $labels.destination }}", "default");
            let parsed = cohort_bridge::cli::try_parse_from(command.split(' '));
            parsed.unwrap_or_else(|error| panic!("{command}: {error}"));
            shown += 1;
        }
    }
    assert_eq!(shown, 5);
}
