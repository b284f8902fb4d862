//! What other people's programs say of `deploy/`.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use super::alerts;
use super::chart::CHART;
use super::fit::Bundle;
use super::rendered::{BASE, BASE_POSTGRESQL, OVERLAY, OVERLAY_POSTGRESQL};
use super::yaml::{documents, top};
use crate::support::programs::skip;

/// The oldest and the newest Kubernetes that the manifests are held to.
const VERSIONS: [&str; 2] = ["1.30", "1.37"];

fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let found = std::env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|it| it.is_file());
    if found.is_none() {
        skip(&format!("{name} is not installed"));
    }
    found
}

/// Runs a program to its end with this standard input, in the repository's top folder.
fn run(command: &mut Command, input: &str) -> Output {
    let pipes = command
        .current_dir(top())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut child = pipes.stderr(Stdio::piped()).spawn().unwrap();
    // It may end without having read it.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

/// Why something is wrong, or what a program printed.
type Verdict = Result<String, String>;

/// Asks tests/deploy_tools.py; `None` where a package that it needs is missing.
fn ask(arguments: &[&str], input: &Value) -> Option<Verdict> {
    let python = program("python3")?;
    let script = top().join("tests/deploy_tools.py");
    let output = run(
        Command::new(python).arg(script).args(arguments),
        &input.to_string(),
    );
    let said = String::from_utf8(output.stdout).unwrap();
    match output.status.code() {
        Some(0) => Some(Ok(said)),
        Some(1) if !said.is_empty() => Some(Err(said)),
        Some(3) => {
            skip(&format!("{} is not installed", said.trim()));
            None
        }
        code => panic!("{code:?}: {}", String::from_utf8_lossy(&output.stderr)),
    }
}

/// What Kustomize makes of a folder.
pub fn kustomized(folder: &str) -> Option<Bundle> {
    let output = run(
        Command::new(program("kubectl")?).args(["kustomize", folder]),
        "",
    );
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{folder}: {errors}");
    Some(Bundle(documents(
        &String::from_utf8(output.stdout).unwrap(),
    )))
}

/// What Helm makes of the chart with these values.
pub fn rendered(values: &Value) -> Option<Result<Bundle, String>> {
    let order = json!({"name": "cohort-bridge", "namespace": "cohort-bridge", "values": values});
    Some(ask(&["render", CHART], &order)?.map(|texts| {
        let texts: Vec<String> = serde_json::from_str(&texts).unwrap();
        Bundle(texts.iter().flat_map(|text| documents(text)).collect())
    }))
}

/// Holds objects to Kubernetes' own schemas, unknown fields included.
pub fn assert_valid(bundle: &Bundle) {
    for version in VERSIONS {
        match ask(&["validate", version], &json!(bundle.0)) {
            Some(Err(faults)) => panic!("{faults}"),
            Some(Ok(_)) => {}
            None => return,
        }
    }
}

#[test]
fn kubernetes_takes_the_kustomize_bases() {
    assert_valid(&super::everything());
    for folder in [BASE, OVERLAY, BASE_POSTGRESQL, OVERLAY_POSTGRESQL] {
        if let Some(bundle) = kustomized(folder) {
            bundle.fits_the_program();
            assert_valid(&bundle);
        }
    }
}

#[test]
fn kubernetes_schemas_refuse_what_is_wrong() {
    let mut bundle = super::everything();
    let deployment = bundle
        .0
        .iter_mut()
        .find(|it| it["kind"] == "Deployment")
        .unwrap();
    deployment["spec"]["template"]["spec"]["containers"][0]["imagePolicy"] = json!("Always");
    if let Some(verdict) = ask(&["validate", VERSIONS[1]], &json!(bundle.0)) {
        let faults = verdict.expect_err("there is no such field");
        assert!(faults.contains("imagePolicy"), "{faults}");
    }
}

#[test]
fn helm_finds_nothing_amiss_in_the_chart() {
    if let Some(Err(faults)) = ask(&["lint", CHART], &json!(null)) {
        panic!("{faults}");
    }
}

#[test]
fn prometheus_can_read_the_alerts() {
    let rules = alerts::rules();
    let expressions: Vec<&Value> = rules.iter().map(|rule| &rule["expr"]).collect();
    if let Some(Err(faults)) = ask(&["promql"], &json!(expressions)) {
        panic!("{faults}");
    }
}

#[test]
fn hadolint_finds_nothing_amiss_in_the_dockerfile() {
    let Some(hadolint) = program("hadolint") else {
        return;
    };
    let output = run(Command::new(hadolint).arg("deploy/Dockerfile"), "");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
}
