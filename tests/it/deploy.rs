//! What is in `deploy/` agrees with the program, as far as a machine without a cluster can tell.
//!
//! What other people's programs have to say (Kubernetes' schemas, Helm, Kustomize, hadolint) is in
//! [`tools`] and [`rendered`], and skipped in words where they are not installed.

mod alerts;
mod chart;
mod compose;
mod fit;
mod image;
mod ledger;
mod ledger_page;
mod rendered;
mod tools;
mod yaml;

use std::collections::BTreeSet;

use serde_json::Value;

use crate::support::eventually;
use crate::support::process::{Process, run, serve_variables};
use fit::Bundle;
pub use yaml::files_below;
use yaml::{documents_in, list, text_of, word};

/// The files of a Kustomize folder, as its `kustomization.yaml` lists them.
fn listed(folder: &str, what: &str) -> Vec<String> {
    let kustomization = yaml::document_in(&format!("{folder}/kustomization.yaml"));
    let files = kustomization[what].as_array().into_iter().flatten();
    let files = files.filter_map(|entry| entry.as_str().or_else(|| entry["path"].as_str()));
    files
        .filter(|file| file.ends_with(".yaml"))
        .map(|file| format!("{folder}/{file}"))
        .collect()
}

/// The plain manifests of a Kustomize folder.
fn resources(folder: &str) -> Vec<Value> {
    let files = listed(&format!("deploy/kustomize/{folder}"), "resources");
    files.iter().flat_map(|file| documents_in(file)).collect()
}

/// Everything that Kustomize can bring to a cluster with SQLite, but for what an overlay changes.
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
    for folder in [
        "base",
        "base-postgresql",
        "components/autoscaling",
        "components/ingress",
        "components/monitoring",
    ] {
        let folder = format!("deploy/kustomize/{folder}");
        let mut files = ["resources", "patches"].map(|what| listed(&folder, what));
        let listed: BTreeSet<&String> = files.iter().flatten().collect();
        let there = files_below(&folder);
        let there = there
            .iter()
            .filter(|it| !it.ends_with("/kustomization.yaml"));
        assert_eq!(listed, there.collect(), "{folder}");
        for file in files[0].drain(..) {
            yaml::document_in(&file);
        }
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
fn the_steps_with_postgresql_are_checked_too() {
    let readme = text_of("deploy/README.md");
    let section = readme.split("\n## ").find(|it| it.starts_with("Several "));
    let steps: Vec<&str> = section.unwrap().split("\n### ").skip(1).collect();
    let relative = |step: &&&str| {
        ["Before ", "With ", "After "]
            .iter()
            .any(|at| step.starts_with(at))
    };
    let steps: Vec<&&str> = steps.iter().filter(relative).collect();
    assert_eq!(steps.len(), 4);
    for step in steps {
        assert!(step.contains("\nIt worked if "), "{step}");
    }
}

/// The Secrets that a pod's volume is made of, and their keys.
fn secrets_of(volume: &Value) -> Vec<(String, String)> {
    let sources = match volume.get("projected") {
        Some(projected) => list(&projected["sources"])
            .iter()
            .map(|source| &source["secret"])
            .collect(),
        None => vec![&volume["secret"]],
    };
    let mut keys = Vec::new();
    for source in sources {
        let name = source.get("name").or(source.get("secretName")).unwrap();
        for item in list(&source["items"]) {
            keys.push((word(name).to_owned(), word(&item["key"]).to_owned()));
        }
    }
    keys
}

#[test]
fn the_secrets_that_are_made_are_those_that_are_mounted() {
    let readme = text_of("deploy/README.md");
    for (file, volume) in [
        ("base/deployment.yaml", "secrets"),
        ("base-postgresql/deployment.yaml", "postgresql"),
    ] {
        let deployment = yaml::document_in(&format!("deploy/kustomize/{file}"));
        let volumes = &deployment["spec"]["template"]["spec"]["volumes"];
        let secrets = secrets_of(yaml::named(volumes, volume));
        assert!(secrets.len() > 1);
        for (secret, key) in secrets {
            let made = format!("kubectl -n cohort-bridge create secret generic {secret} ");
            let lines = readme.lines().find(|line| line.starts_with(&made));
            let from = lines.unwrap_or_else(|| panic!("{secret} is not made"));
            assert!(from.contains(&format!("--from-file={key}=")), "{key}");
        }
    }
}

/// The URLs of ledgers that the steps put into Secrets.
fn urls_shown() -> Vec<String> {
    let readme = text_of("deploy/README.md");
    let lines = crate::documents::shell_lines(&readme);
    let urls = lines
        .iter()
        .filter_map(|line| line.strip_prefix("printf 'postgres://"));
    urls.map(|rest| format!("postgres://{}", rest.split('\'').next().unwrap()))
        .collect()
}

#[test]
fn the_urls_shown_are_of_the_role_that_is_made() {
    let made = text_of("deploy/postgresql/role.sql");
    assert!(made.contains("\nCREATE ROLE cohort_bridge LOGIN PASSWORD :'password'"));
    assert!(made.contains("\nCREATE DATABASE cohort_bridge OWNER cohort_bridge "));
    for right in [
        "SUPERUSER",
        "CREATEDB",
        "CREATEROLE",
        "REPLICATION",
        "BYPASSRLS",
    ] {
        assert!(made.contains(&format!("NO{right}")), "{right}");
    }
    let urls = urls_shown();
    assert_eq!(urls.len(), 2);
    for url in &urls {
        // The password is put in by the shell.
        let url = url::Url::parse(&url.replace("%s", "secret")).unwrap();
        assert_eq!(
            (url.username(), url.path()),
            ("cohort_bridge", "/cohort_bridge")
        );
        assert_eq!(url.port().map(u64::from), Some(ledger::POSTGRESQL_PORT));
    }
}

#[test]
fn the_connections_counted_are_enough_for_all_replicas() {
    /// What a replica takes at most.
    const EACH: u64 = cohort_bridge::store::MOST_CONNECTIONS as u64;

    let readme = text_of("deploy/README.md");
    let readme: Vec<&str> = readme.split_whitespace().collect();
    let readme = readme.join(" ");
    let values = yaml::document_in("deploy/helm/cohort-bridge/values.yaml");
    let most = yaml::number(&values["autoscaling"]["maxReplicas"]);
    // A rollout adds one.
    let (two, most_of_all) = (EACH * 3, EACH * (most + 1));
    let said = format!(
        "`{EACH} × (replicas + 1)`, so {two} for two, and {most_of_all} for the {most} of the autoscaler's default"
    );
    assert!(readme.contains(&said), "{said}");
}

#[test]
fn the_authority_in_the_url_is_mounted() {
    let deployment = yaml::document_in("deploy/kustomize/base-postgresql/deployment.yaml");
    let bundle = Bundle(vec![deployment]);
    let urls = urls_shown();
    let of_a_cluster = urls.iter().filter(|url| !url.contains("@postgresql:"));
    let [url] = &of_a_cluster.collect::<Vec<_>>()[..] else {
        panic!("{urls:?}");
    };
    assert!(url.contains("?sslmode=verify-full&"), "{url}");
    let (_, path) = url.split_once("&sslrootcert=").unwrap();
    bundle.holds_a_secret(path);
    // And it is said where people look for it.
    assert!(text_of("deploy/helm/cohort-bridge/values.yaml").contains(path));
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
