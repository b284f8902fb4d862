//! What is in `deploy/` agrees with the program, as far as a machine without a cluster can tell.
//!
//! What other people's programs have to say (Kubernetes' schemas, Helm, Kustomize, hadolint) is in
//! [`tools`], and skipped in words where they are not installed.

mod alerts;
mod chart;
mod fit;
mod image;
mod tools;
mod yaml;

use serde_json::Value;

use crate::support::eventually;
use crate::support::process::{Process, run, serve_variables};
use fit::Bundle;
pub use yaml::files_below;
use yaml::{documents_in, text_of};

/// The plain manifests of a Kustomize folder, as its `kustomization.yaml` lists them.
fn resources(folder: &str) -> Vec<Value> {
    let folder = format!("deploy/kustomize/{folder}");
    let listed = documents_in(&format!("{folder}/kustomization.yaml"));
    let listed = listed[0]["resources"].as_array().unwrap();
    listed
        .iter()
        .flat_map(|file| documents_in(&format!("{folder}/{}", file.as_str().unwrap())))
        .collect()
}

/// Everything that Kustomize can bring to a cluster, but for what an overlay changes.
fn everything() -> Bundle {
    let folders = ["base", "components/ingress", "components/monitoring"];
    Bundle(folders.into_iter().flat_map(resources).collect())
}

#[test]
fn the_kustomize_base_fits_the_program() {
    Bundle(resources("base")).fits_the_program();
}

#[test]
fn the_kustomize_components_fit_it_too() {
    let everything = everything();
    for kind in ["Ingress", "ServiceMonitor", "PrometheusRule"] {
        everything.one(kind);
    }
    everything.fits_the_program();
}

#[test]
fn every_manifest_is_listed_in_its_kustomization() {
    for folder in ["base", "components/ingress", "components/monitoring"] {
        let path = format!("deploy/kustomize/{folder}");
        let there = std::fs::read_dir(yaml::top().join(&path)).unwrap();
        // Each file holds one object; the kustomization itself is none of them.
        assert_eq!(resources(folder).len(), there.count() - 1, "{path}");
    }
}

#[test]
fn every_yaml_file_can_be_read() {
    let mut read = 0;
    for path in files_below("deploy") {
        let is_yaml = path.ends_with(".yaml") || path.ends_with(".yml");
        // Templates are no YAML before they are rendered.
        if is_yaml && !path.contains("/templates/") {
            assert!(!documents_in(&path).is_empty(), "{path}");
            read += 1;
        }
    }
    assert!(read > 15, "{read}");
}

#[test]
fn the_ten_steps_are_ten_and_each_is_checked() {
    let readme = text_of("deploy/README.md");
    let steps: Vec<&str> = readme.split("\n### ").skip(1).collect();
    let numbered = |step: &&&str| step.starts_with(|c: char| c.is_ascii_digit());
    let steps: Vec<&&str> = steps.iter().filter(numbered).collect();
    assert_eq!(steps.len(), 10);
    for (number, step) in (1..).zip(steps) {
        assert!(step.starts_with(&format!("{number}. ")), "{step}");
        assert!(step.contains("\nIt worked if "), "{step}");
    }
}

#[test]
fn every_path_of_the_commands_shown_exists() {
    let readme = text_of("deploy/README.md");
    let mut followed = 0;
    for line in crate::documents::shell_lines(&readme) {
        for word in line.split([' ', '=']) {
            // These are made by the steps themselves.
            let made = ["deploy/secrets", "deploy/kustomize/overlays/mine"];
            if word.starts_with("deploy/") && !made.iter().any(|made| word.starts_with(made)) {
                assert!(yaml::top().join(word).exists(), "{word} in {line}");
                followed += 1;
            }
        }
    }
    assert!(followed > 5, "{followed}");
}

#[test]
fn the_secret_that_is_made_is_the_one_that_is_mounted() {
    let readme = text_of("deploy/README.md");
    let secrets = resources("base");
    let deployment = secrets.iter().find(|it| it["kind"] == "Deployment");
    let volumes = deployment.unwrap()["spec"]["template"]["spec"]["volumes"].clone();
    let items = yaml::named(&volumes, "secrets")["secret"]["items"].clone();
    for item in items.as_array().unwrap() {
        let key = item["key"].as_str().unwrap();
        assert!(
            readme.contains(&format!("--from-file={key}=deploy/secrets/{key}")),
            "{key} is not in the Secret"
        );
    }
    assert!(readme.contains("kubectl -n cohort-bridge create secret generic cohort-bridge "));
}

#[tokio::test]
async fn health_tells_a_supervisor_how_the_service_is() {
    let folder = crate::support::fast_temp_dir();
    let ledger = folder.path().join("ledger.db");
    // Nobody answers there, and health does not depend on Flagsmith.
    let mut process = Process::serve(&serve_variables(&ledger, "http://127.0.0.1:1/api/v1/")).await;
    let admin = process.admin.to_string();
    for (flags, path) in [(&[][..], "livez"), (&["--ready"], "readyz")] {
        let arguments = [&["health", "--admin-listen", &admin], flags].concat();
        // More than once: on a starved machine an answer may take longer than health waits for it.
        let said = eventually("health says that all is well", async || {
            let ended = run(&arguments, &Default::default());
            (ended.code == Some(0)).then_some(ended.stdout)
        })
        .await;
        assert_eq!(said, format!("http://{admin}/{path} answered 200\n"));
    }
    process.kill();
    let variables = [("COHORT_BRIDGE_ADMIN_LISTEN".to_owned(), admin.clone())];
    let ended = run(&["health"], &variables.clone().into());
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(
        ended
            .stderr
            .contains(&format!("http://{admin}/livez cannot be reached"))
    );
    let ended = run(&["health", "--admin-listen", "9090"], &variables.into());
    assert_eq!(ended.code, Some(2), "{ended:?}");
}
