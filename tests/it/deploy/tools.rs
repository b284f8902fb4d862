//! What other people's programs say of `deploy/`.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use super::alerts;
use super::chart::CHART;
use super::fit::Bundle;
use super::yaml::{documents, text_of, top};
use crate::support::programs::skip;

/// The oldest and the newest Kubernetes that the manifests are held to.
const VERSIONS: [&str; 2] = ["1.30", "1.37"];

/// `kustomization.yaml` with everything in it, and the values that say the same to Helm.
const OVERLAY: &str = "deploy/kustomize/overlays/example";

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
fn kustomized(folder: &str) -> Option<Bundle> {
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
fn rendered(values: &Value) -> Option<Result<Bundle, String>> {
    let order = json!({"name": "cohort-bridge", "namespace": "cohort-bridge", "values": values});
    Some(ask(&["render", CHART], &order)?.map(|texts| {
        let texts: Vec<String> = serde_json::from_str(&texts).unwrap();
        Bundle(texts.iter().flat_map(|text| documents(text)).collect())
    }))
}

/// The values that make of the chart what the example overlay makes of the bases.
fn as_the_overlay() -> Value {
    json!({
        "image": {"repository": "registry.example.com/cohort-bridge"},
        "settings": {"flagsmith-api-url": "https://edge.api.flagsmith.com/api/v1/"},
        "ingress": {"enabled": true},
        "monitoring": {"serviceMonitor": {"enabled": true}, "alerts": {"enabled": true}},
    })
}

/// Objects by kind and name, without what only Helm or only an overlay says of them.
fn in_substance(bundle: &Bundle) -> BTreeMap<(String, String), Value> {
    let mut things = BTreeMap::new();
    for thing in &bundle.0 {
        let mut thing = thing.clone();
        let metadata = thing["metadata"].as_object_mut().unwrap();
        metadata.remove("namespace");
        let labels = metadata["labels"].as_object_mut().unwrap();
        labels.remove("helm.sh/chart");
        labels.remove("app.kubernetes.io/managed-by");
        if let Some(annotations) = metadata.get_mut("annotations") {
            let annotations = annotations.as_object_mut().unwrap();
            annotations.remove("helm.sh/resource-policy");
            if annotations.is_empty() {
                metadata.remove("annotations");
            }
        }
        let name = |value: &Value| value.as_str().unwrap().to_owned();
        let key = (name(&thing["kind"]), name(&thing["metadata"]["name"]));
        assert_eq!(things.insert(key, thing), None, "twice");
    }
    things
}

fn assert_same(helm: &Bundle, kustomize: &Bundle) {
    let (helm, kustomize) = (in_substance(helm), in_substance(kustomize));
    let keys = |of: &BTreeMap<_, _>| of.keys().cloned().collect::<Vec<(String, String)>>();
    assert_eq!(keys(&helm), keys(&kustomize));
    for (key, thing) in &helm {
        assert_eq!(thing, &kustomize[key], "{key:?}");
    }
}

/// Holds objects to Kubernetes' own schemas, unknown fields included.
fn assert_valid(bundle: &Bundle) {
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
    for folder in ["deploy/kustomize/base", OVERLAY] {
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
fn helm_makes_by_default_what_the_base_is() {
    let Some(helm) = rendered(&json!({})) else {
        return;
    };
    let helm = helm.unwrap();
    helm.fits_the_program();
    assert_valid(&helm);
    if let Some(kustomize) = kustomized("deploy/kustomize/base") {
        assert_same(&helm, &kustomize);
    }
}

#[test]
fn helm_makes_with_everything_what_the_example_overlay_is() {
    let Some(helm) = rendered(&as_the_overlay()) else {
        return;
    };
    let helm = helm.unwrap();
    helm.fits_the_program();
    assert_valid(&helm);
    if let Some(kustomize) = kustomized(OVERLAY) {
        assert_same(&helm, &kustomize);
    }
}

#[test]
fn helm_passes_on_what_values_say() {
    let values = json!({
        "fullnameOverride": "flags",
        "secret": {"name": "mine", "keys": ["admin-token"]},
        "settingsFile": {"secret": "mine-too"},
        "settings": {"max-in-flight": "7", "log-format": "text"},
        "logFilter": "debug",
        "preStopSeconds": 10,
        "shutdownGraceSeconds": 60,
        "service": {"port": 8000},
        "adminService": {"port": 9000},
        "podAnnotations": {"a": "b"},
        "nodeSelector": {"disk": "ssd"},
        "tolerations": [{"key": "k", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "imagePullSecrets": ["pull"],
        "persistence": {"storageClass": "fast", "size": "20Gi", "accessModes": ["ReadWriteOncePod"]},
        "networkPolicy": {"webhookNamespaces": ["traefik", "other"]},
        "extraVolumes": [{"name": "ca", "configMap": {"name": "ca"}}],
        "extraVolumeMounts": [{"name": "ca", "mountPath": "/etc/ca"}],
    });
    let Some(helm) = rendered(&values) else {
        return;
    };
    let helm = helm.unwrap();
    helm.fits_the_program();
    assert_valid(&helm);
    let settings = helm.settings();
    assert_eq!(settings.shutdown_grace.as_secs(), 60);
    assert_eq!(settings.destinations[0].max_in_flight, 7);
    assert_eq!(settings.sources.len(), 1);
    let pod = &helm.one("Deployment")["spec"]["template"]["spec"];
    assert_eq!(pod["terminationGracePeriodSeconds"], 75);
    assert_eq!(pod["nodeSelector"], json!({"disk": "ssd"}));
    assert_eq!(
        helm.one("PersistentVolumeClaim")["metadata"]["name"],
        "flags"
    );
    let own = rendered(&json!({
        "persistence": {"existingClaim": "mine"},
        "networkPolicy": {"enabled": false},
        "image": {"digest": format!("sha256:{}", "0".repeat(64))},
    }));
    let own = own.expect("it was there").unwrap();
    assert_valid(&own);
    for kind in [
        "PersistentVolumeClaim",
        "NetworkPolicy",
        "Ingress",
        "ServiceMonitor",
    ] {
        assert!(own.all(kind).is_empty(), "{kind}");
    }
    assert!(
        own.0
            .iter()
            .any(|it| it.to_string().contains(r#""claimName":"mine""#))
    );
    assert!(
        own.0
            .iter()
            .any(|it| it.to_string().contains("cohort-bridge@sha256:000"))
    );
}

#[test]
fn helm_takes_the_values_that_the_steps_show() {
    let readme = text_of("deploy/README.md");
    let (_, shown) = readme.split_once("```yaml\n").unwrap();
    let values = documents(shown.split("```").next().unwrap());
    if let Some(helm) = rendered(&values[0]) {
        let helm = helm.unwrap();
        helm.fits_the_program();
        helm.one("Ingress");
    }
}

#[test]
fn helm_refuses_values_that_are_none() {
    for (wrong, told) in [
        (json!({"settings": {"trait-kee": "x"}}), "trait-kee"),
        // Helm reads large numbers as 1e+06.
        (
            json!({"settings": {"call-budget": 1_000_000}}),
            "call-budget",
        ),
        (
            json!({"settings": {"database-url": "postgres://"}}),
            "database-url",
        ),
        (
            json!({"secret": {"keys": ["webhook-basic-auht"]}}),
            "secret",
        ),
        (json!({"replicaCount": 2}), "replicaCount"),
        (
            json!({"persistence": {"accessModes": ["ReadWriteMany"]}}),
            "accessModes",
        ),
    ] {
        match rendered(&wrong) {
            Some(Ok(_)) => panic!("{wrong} is taken"),
            Some(Err(message)) => assert!(message.contains(told), "{message}"),
            None => return,
        }
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
