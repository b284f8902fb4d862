//! Kubernetes objects against the program: whatever rendered them, all of this must hold.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use cohort_bridge::cli::{self, Command};
use cohort_bridge::config::{Environment, Settings};
use cohort_bridge::http::admin::openapi;
use serde_json::{Value, json};
use utoipa::OpenApi;

use super::image;
use super::ledger::POSTGRESQL_PORT;
use super::yaml::{list, named, number, word};

/// The path below which the webhook listener answers, as `replay` knows it.
const WEBHOOKS: &str = "/webhooks/mixpanel";

/// A body of the settings file that stands for anybody's.
const SETTINGS_FILE: &str = "[[sources]]\nname = \"default\"\nbasic_auth = \"mixpanel:secret\"\n\
                             [[destinations]]\nname = \"default\"\nenvironment_key = \"ser.secret\"\n";

/// Objects that come to a cluster together.
pub struct Bundle(pub Vec<Value>);

impl Bundle {
    pub fn all(&self, kind: &str) -> Vec<&Value> {
        self.0.iter().filter(|it| it["kind"] == kind).collect()
    }

    pub fn one(&self, kind: &str) -> &Value {
        let all = self.all(kind);
        assert_eq!(all.len(), 1, "{kind}: {all:?}");
        all[0]
    }

    pub fn pod(&self) -> &Value {
        &self.one("Deployment")["spec"]["template"]["spec"]
    }

    pub fn container(&self) -> &Value {
        let containers = list(&self.pod()["containers"]);
        assert_eq!(containers.len(), 1);
        &containers[0]
    }

    pub fn pod_labels(&self) -> &Value {
        &self.one("Deployment")["spec"]["template"]["metadata"]["labels"]
    }

    /// Holds every name and number to what the program says.
    pub fn fits_the_program(&self) {
        let settings = self.settings();
        assert_eq!(settings.warnings, Vec::<String>::new());
        self.as_many_as_its_ledger_bears(&settings);
        self.ports_and_probes(&settings);
        self.time_to_stop(&settings);
        self.restricted();
        self.versions();
        self.services();
        self.network_policy(&settings);
        self.all("Ingress")
            .iter()
            .for_each(|it| self.ingress(it, &settings));
        self.all("ServiceMonitor")
            .iter()
            .for_each(|it| self.service_monitor(it));
    }

    /// What `serve` makes of the container's arguments and variables; panics with its faults.
    pub fn settings(&self) -> Settings {
        let container = self.container();
        let arguments = list(&container["args"]).iter().map(word);
        let parsed = cli::try_parse_from(["cohort-bridge"].into_iter().chain(arguments));
        let Command::Serve(args) = parsed.unwrap().command else {
            panic!("the container does not serve");
        };
        let files = tempfile::tempdir().unwrap();
        let mut variables: BTreeMap<String, String> = BTreeMap::new();
        for variable in list(&container["env"]) {
            let name = word(&variable["name"]).to_owned();
            let ours = name.starts_with("COHORT_BRIDGE_");
            let known = ["DATABASE_URL", "DATABASE_URL_FILE", "TMPDIR", "RUST_LOG"];
            assert!(ours || known.contains(&&*name), "{name}");
            let mut value = word(&variable["value"]).to_owned();
            if name == "COHORT_BRIDGE_CONFIG" {
                value = stand_in_file(files.path(), "settings.toml", SETTINGS_FILE);
                self.mount(word(&variable["value"]));
            } else if name.ends_with("_FILE") && name != "COHORT_BRIDGE_CA_FILE" {
                let file = word(&variable["value"]);
                let (_, key) = file.rsplit_once('/').unwrap();
                self.holds_a_secret(file);
                value = stand_in_file(files.path(), key, &secret_for(key));
            }
            assert_eq!(variables.insert(name.clone(), value), None, "{name} twice");
        }
        assert!(
            variables.contains_key("COHORT_BRIDGE_ADMIN_TOKEN_FILE"),
            "anybody in the cluster could change things"
        );
        // Whatever the container leaves out is as the image says.
        for (name, value) in image::variables() {
            variables.entry(name).or_insert(value);
        }
        let environment: Environment = variables.into_iter().collect();
        Settings::from_args(&args, &environment).unwrap_or_else(|error| panic!("{error}"))
    }

    /// The mount that a path lies in, and the rest of the path.
    pub fn mount<'a>(&self, path: &'a str) -> (&Value, &'a str) {
        let mounts = list(&self.container()["volumeMounts"]);
        let found = mounts.iter().find_map(|mount| {
            let below = path.strip_prefix(word(&mount["mountPath"]))?;
            Some((mount, below.strip_prefix('/')?))
        });
        found.unwrap_or_else(|| panic!("{path} is not mounted"))
    }

    /// Holds a path to a key of a Secret that is mounted there.
    pub fn holds_a_secret(&self, path: &str) {
        let (mount, file) = self.mount(path);
        assert_eq!(mount["readOnly"], true);
        let volume = named(&self.pod()["volumes"], word(&mount["name"]));
        let (mode, sources) = match volume.get("projected") {
            Some(projected) => {
                let sources = list(&projected["sources"]).iter();
                let sources = sources.map(|source| &source["secret"]).collect();
                (&projected["defaultMode"], sources)
            }
            None => (&volume["secret"]["defaultMode"], vec![&volume["secret"]]),
        };
        // Readable by way of fsGroup, and by nobody else.
        assert_eq!(number(mode), 0o440);
        let items = sources.iter().flat_map(|source| list(&source["items"]));
        let mounted = items.filter(|item| item["path"] == file);
        assert_eq!(mounted.count(), 1, "{path}");
    }

    fn ports_and_probes(&self, settings: &Settings) {
        let container = self.container();
        let ports = &container["ports"];
        assert_eq!(list(ports).len(), 2);
        for (name, address) in [
            ("webhook", settings.listen),
            ("admin", settings.admin_listen),
        ] {
            let port = &named(ports, name)["containerPort"];
            assert_eq!(number(port), u64::from(address.port()), "{name}");
            assert!(address.ip().is_unspecified(), "{name} is for the pod alone");
        }
        for (probe, path) in [
            ("startupProbe", "/livez"),
            ("livenessProbe", "/livez"),
            ("readinessProbe", "/readyz"),
        ] {
            let asked = &container[probe]["httpGet"];
            assert_eq!(asked, &json!({"path": path, "port": "admin"}), "{probe}");
            assert!(is_a_path_of_the_admin_listener(path), "{path}");
            assert!(number(&container[probe]["timeoutSeconds"]) > 1, "{probe}");
        }
    }

    fn time_to_stop(&self, settings: &Settings) {
        let sleep = number(&self.container()["lifecycle"]["preStop"]["sleep"]["seconds"]);
        let patience = number(&self.pod()["terminationGracePeriodSeconds"]);
        let needed = Duration::from_secs(sleep) + settings.shutdown_grace;
        assert!(sleep > 0);
        assert!(Duration::from_secs(patience) > needed, "{patience} s");
    }

    /// What Pod Security's `restricted` asks for, and a read-only root.
    fn restricted(&self) {
        let (pod, container) = (self.pod(), self.container());
        let context = &pod["securityContext"];
        let uid = image::uid();
        for id in ["runAsUser", "runAsGroup", "fsGroup"] {
            assert_eq!(number(&context[id]), uid, "{id} is not the image's");
        }
        assert_eq!(context["runAsNonRoot"], true);
        assert_eq!(context["seccompProfile"], json!({"type": "RuntimeDefault"}));
        let expected = json!({
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"]},
        });
        assert_eq!(container["securityContext"], expected);
        assert_eq!(pod["automountServiceAccountToken"], false);
        assert_eq!(pod["enableServiceLinks"], false);
        let account = self.one("ServiceAccount");
        assert_eq!(account["metadata"]["name"], pod["serviceAccountName"]);
        for amount in ["requests", "limits"] {
            assert!(
                container["resources"][amount]["memory"].is_string(),
                "{amount}"
            );
        }
    }

    fn versions(&self) {
        let version = env!("CARGO_PKG_VERSION");
        let image = word(&self.container()["image"]);
        assert!(
            image.ends_with(&format!("cohort-bridge:{version}")),
            "{image}"
        );
        for thing in &self.0 {
            let labels = &thing["metadata"]["labels"];
            assert_eq!(labels["app.kubernetes.io/version"], version, "{thing}");
        }
    }

    fn services(&self) {
        let mut targets = Vec::new();
        for service in self.all("Service") {
            let spec = &service["spec"];
            assert!(is_among(&spec["selector"], self.pod_labels()), "{service}");
            assert_eq!(spec["type"], "ClusterIP");
            let ports = list(&spec["ports"]);
            assert_eq!(ports.len(), 1, "webhook and admin are apart");
            let target = word(&ports[0]["targetPort"]);
            named(&self.container()["ports"], target);
            assert_eq!(
                service["metadata"]["labels"]["app.kubernetes.io/component"],
                target
            );
            targets.push(target);
        }
        targets.sort_unstable();
        assert_eq!(targets, ["admin", "webhook"]);
    }

    fn network_policy(&self, settings: &Settings) {
        let policy = &self.one("NetworkPolicy")["spec"];
        assert!(is_among(
            &policy["podSelector"]["matchLabels"],
            self.pod_labels()
        ));
        assert_eq!(policy["policyTypes"], json!(["Ingress", "Egress"]));
        let ports_of = |rule: &Value, whom: &str| {
            assert!(!list(&rule[whom]).is_empty(), "anybody: {rule}");
            list(&rule["ports"])
                .iter()
                .map(|port| port["port"].clone())
                .collect::<Vec<_>>()
        };
        let inward = list(&policy["ingress"])
            .iter()
            .map(|rule| ports_of(rule, "from"));
        let inward: Vec<_> = inward.collect();
        assert_eq!(inward, [[json!("webhook")], [json!("admin")]]);
        for port in inward.iter().flatten() {
            named(&self.container()["ports"], word(port));
        }
        let outward = list(&policy["egress"])
            .iter()
            .map(|rule| ports_of(rule, "to"));
        let flagsmith = settings.destinations[0].api_url.port_or_known_default();
        let mut expected = vec![vec![json!(53), json!(53)], vec![json!(flagsmith.unwrap())]];
        if self.shares_a_ledger() {
            expected.push(vec![json!(POSTGRESQL_PORT)]);
        }
        assert_eq!(outward.collect::<Vec<_>>(), expected);
    }

    fn ingress(&self, ingress: &Value, settings: &Settings) {
        let size = word(
            &ingress["metadata"]["annotations"]["nginx.ingress.kubernetes.io/proxy-body-size"],
        );
        let mebibytes: usize = size.strip_suffix('m').unwrap().parse().unwrap();
        assert_eq!(mebibytes * 1024 * 1024, settings.max_body_bytes);
        let rules = list(&ingress["spec"]["rules"]);
        for rule in rules {
            for path in list(&rule["http"]["paths"]) {
                assert_eq!(
                    (word(&path["path"]), word(&path["pathType"])),
                    (WEBHOOKS, "Prefix")
                );
                let backend = &path["backend"]["service"];
                let services = self.all("Service");
                let mut named_so = services
                    .iter()
                    .filter(|it| it["metadata"]["name"] == backend["name"]);
                let service = named_so.next().expect("the Service is there");
                let port = named(&service["spec"]["ports"], word(&backend["port"]["name"]));
                assert_eq!(
                    port["targetPort"], "webhook",
                    "admin is not for the internet"
                );
            }
        }
        let hosts: Vec<&Value> = rules.iter().map(|rule| &rule["host"]).collect();
        let certified = list(&ingress["spec"]["tls"])
            .iter()
            .flat_map(|tls| list(&tls["hosts"]));
        assert_eq!(hosts, certified.collect::<Vec<_>>());
    }

    fn service_monitor(&self, monitor: &Value) {
        let selector = &monitor["spec"]["selector"]["matchLabels"];
        let services = self.all("Service");
        let selected = services
            .iter()
            .filter(|it| is_among(selector, &it["metadata"]["labels"]));
        let selected: Vec<_> = selected.collect();
        assert_eq!(selected.len(), 1, "{selector}");
        for endpoint in list(&monitor["spec"]["endpoints"]) {
            let port = named(&selected[0]["spec"]["ports"], word(&endpoint["port"]));
            assert_eq!(port["targetPort"], "admin");
            assert!(is_a_path_of_the_admin_listener(word(&endpoint["path"])));
        }
    }
}

/// What a secret of that name may hold.
pub fn secret_for(key: &str) -> String {
    let secret = match key {
        "database-url" => return ledger_url(),
        "webhook-basic-auth" => "mixpanel:secret",
        "webhook-signing-secret" => "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD",
        _ => "ser.secret",
    };
    secret.to_owned()
}

/// A URL of a ledger in PostgreSQL.
fn ledger_url() -> String {
    format!(
        "postgres://cohort_bridge:secret@postgresql.example.com:{POSTGRESQL_PORT}/cohort_bridge?sslmode=verify-full"
    )
}

pub fn stand_in_file(folder: &Path, name: &str, content: &str) -> String {
    let path = folder.join(name);
    fs::write(&path, content).unwrap();
    path.display().to_string()
}

/// Whether all these labels are among those.
pub fn is_among(labels: &Value, those: &Value) -> bool {
    let labels = labels.as_object().expect("labels");
    !labels.is_empty() && labels.iter().all(|(key, value)| those[key] == *value)
}

fn is_a_path_of_the_admin_listener(path: &str) -> bool {
    let document = serde_json::to_value(openapi::Document::openapi()).unwrap();
    document["paths"][path]["get"].is_object()
}
