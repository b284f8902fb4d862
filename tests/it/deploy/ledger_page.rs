//! `LEDGER.md` and the manifests that it has applied.

use cohort_bridge::cli::{self, Command};
use cohort_bridge::config::{Environment, MigrateSettings};
use serde_json::Value;

use super::fit::{Bundle, is_among};
use super::yaml::{document_in, list, named, text_of, top, word};
use super::{image, resources};
use crate::documents::shell_lines;

const PAGE: &str = "deploy/LEDGER.md";

#[test]
fn every_step_can_be_checked() {
    let page = text_of(PAGE);
    let mut steps = 0;
    for step in page.split("\n### ").skip(1) {
        let step = step.split("\n## ").next().unwrap();
        let words: Vec<&str> = step.split_whitespace().collect();
        assert!(words.join(" ").contains("It worked "), "{step}");
        steps += 1;
    }
    assert!(steps > 15, "{steps}");
}

#[test]
fn every_path_of_its_commands_exists() {
    let mut followed = 0;
    for line in shell_lines(&text_of(PAGE)) {
        for path in line.split([' ', '=', '"', ')']) {
            if path.starts_with("deploy/") && !path.starts_with("deploy/secrets/") {
                assert!(top().join(path).exists(), "{path} in {line}");
                followed += 1;
            }
        }
    }
    assert!(followed >= 3, "{followed}");
}

/// Of a pod that is in a cluster for a while: what the service's has, as far as it is the same.
fn is_like_the_services(pod: &Value, labels: &Value) {
    let base = Bundle(resources("base"));
    let service = base.pod();
    for what in [
        "securityContext",
        "automountServiceAccountToken",
        "enableServiceLinks",
    ] {
        assert_eq!(pod[what], service[what], "{what}");
    }
    let [container] = list(&pod["containers"]) else {
        panic!("{pod}");
    };
    assert_eq!(
        container["securityContext"],
        base.container()["securityContext"]
    );
    let mount = named(&container["volumeMounts"], "ledger");
    assert_eq!(mount["mountPath"], image::volume());
    let ledger = named(&pod["volumes"], "ledger");
    assert_eq!(ledger, named(&service["volumes"], "ledger"));
    // Else pages would be sent to it.
    for service in base.all("Service") {
        assert!(!is_among(&service["spec"]["selector"], labels), "{labels}");
    }
}

#[test]
fn the_shell_beside_the_ledger_is_one_that_the_cluster_lets_in() {
    let pod = document_in("deploy/ledger/pod.yaml");
    is_like_the_services(&pod["spec"], &pod["metadata"]["labels"]);
    let page = text_of(PAGE);
    let name = word(&pod["metadata"]["name"]);
    let exec = format!("kubectl -n cohort-bridge exec {name} -- ");
    assert!(page.matches(&exec).count() > 3);
    let base = Bundle(resources("base"));
    let term = &pod["spec"]["affinity"]["podAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
        [0]["podAffinityTerm"];
    let near = &term["labelSelector"]["matchLabels"];
    assert!(is_among(near, base.pod_labels()), "{near}");
}

#[test]
fn the_job_moves_the_services_ledger_into_the_services_database() {
    let job = document_in("deploy/ledger/move.yaml");
    let template = &job["spec"]["template"];
    let pod = &template["spec"];
    is_like_the_services(pod, &template["metadata"]["labels"]);
    let container = &list(&pod["containers"])[0];
    let base = Bundle(resources("base"));
    assert_eq!(container["image"], base.container()["image"]);

    let arguments = list(&container["args"]).iter().map(word);
    let line = std::iter::once("cohort-bridge").chain(arguments);
    let Command::MigrateStore(args) = cli::try_parse_from(line).unwrap().command else {
        panic!("{container}");
    };
    // The file that the variable names is one of the Secret's.
    let variables = list(&container["env"]).iter();
    let (mut settings, mut file) = (Vec::new(), None);
    for variable in variables {
        let (name, value) = (word(&variable["name"]), word(&variable["value"]));
        match name {
            "COHORT_BRIDGE_TO_FILE" => file = Some(value.to_owned()),
            _ => settings.push((name.to_owned(), value.to_owned())),
        }
    }
    let file = file.unwrap();
    let mount = named(&container["volumeMounts"], "postgresql");
    let key = file.strip_prefix(&format!("{}/", word(&mount["mountPath"])));
    let secret = &named(&pod["volumes"], "postgresql")["secret"];
    let keys = list(&secret["items"]).iter().map(|it| word(&it["path"]));
    let keys: Vec<&str> = keys.collect();
    assert!(keys.contains(&key.unwrap()), "{file}");
    let readme = text_of("deploy/README.md");
    let made = format!("create secret generic {} ", word(&secret["secretName"]));
    assert!(readme.contains(&made), "{made}");
    // And the authority is where the URL says.
    assert!(readme.contains(&format!("sslrootcert={}/ca.crt", word(&mount["mountPath"]))));
    assert!(keys.contains(&"ca.crt"));

    let to = "postgres://cohort_bridge@127.0.0.1/cohort_bridge".to_owned();
    settings.push(("COHORT_BRIDGE_TO".to_owned(), to));
    let environment: Environment = settings.into_iter().collect();
    let settings = MigrateSettings::from_args(&args, &environment).unwrap();
    let url = &named(&base.container()["env"], "DATABASE_URL")["value"];
    let path = word(url).strip_prefix("sqlite://").unwrap();
    assert_eq!(settings.from.to_str(), Some(path));
}
