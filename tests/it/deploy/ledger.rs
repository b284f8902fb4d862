//! Where the ledger is, and so how many replicas there may be: one with a file on a volume, several
//! with PostgreSQL.

use cohort_bridge::config::{Database, Settings};
use serde_json::{Value, json};

use super::fit::{Bundle, is_among};
use super::image;
use super::yaml::{list, named, number, word};

/// What PostgreSQL listens on, where nobody says otherwise.
pub const POSTGRESQL_PORT: u64 = 5432;

/// Whether the ledger is a file, which two processes cannot share.
pub fn is_a_file(settings: &Settings) -> bool {
    matches!(settings.database, Database::Sqlite(_))
}

impl Bundle {
    /// Whether its replicas share a ledger, which is in PostgreSQL then.
    pub fn shares_a_ledger(&self) -> bool {
        let variables = list(&self.container()["env"]);
        variables.iter().any(|it| it["name"] == "DATABASE_URL_FILE")
    }

    pub fn as_many_as_its_ledger_bears(&self, settings: &Settings) {
        assert_eq!(is_a_file(settings), !self.shares_a_ledger());
        if self.shares_a_ledger() {
            self.several_replicas();
            self.autoscaling();
            self.nothing_is_kept_on_a_volume();
        } else {
            self.one_process_a_ledger();
            self.ledger_is_on_the_volume(settings);
        }
        let temporary = named(&self.container()["env"], "TMPDIR");
        // The root is read-only; whatever the image has there is covered.
        assert_eq!(temporary["value"], image::volume());
    }

    fn one_process_a_ledger(&self) {
        let deployment = &self.one("Deployment")["spec"];
        assert_eq!(deployment["replicas"], 1);
        assert_eq!(deployment["strategy"], json!({"type": "Recreate"}));
        for kind in ["PodDisruptionBudget", "HorizontalPodAutoscaler"] {
            assert!(self.all(kind).is_empty(), "{kind}");
        }
        for mode in list(&self.one("PersistentVolumeClaim")["spec"]["accessModes"]) {
            assert!(word(mode).starts_with("ReadWriteOnce"), "{mode}");
        }
    }

    fn ledger_is_on_the_volume(&self, settings: &Settings) {
        let url = &named(&self.container()["env"], "DATABASE_URL")["value"];
        let path = word(url).strip_prefix("sqlite://").unwrap();
        assert!(matches!(&settings.database, Database::Sqlite(it) if it == path));
        let (mount, file) = self.mount(path);
        assert!(!file.contains('/'), "the folder would have to be made");
        assert_eq!(mount.get("readOnly"), None);
        assert_eq!(mount["mountPath"], image::volume());
        let volume = named(&self.pod()["volumes"], word(&mount["name"]));
        let claim = word(&volume["persistentVolumeClaim"]["claimName"]);
        assert_eq!(self.one("PersistentVolumeClaim")["metadata"]["name"], claim);
    }

    fn several_replicas(&self) {
        let deployment = &self.one("Deployment")["spec"];
        // An old one goes only when a new one takes pages in.
        let rolling = json!({"maxUnavailable": 0, "maxSurge": 1});
        let strategy = json!({"type": "RollingUpdate", "rollingUpdate": rolling});
        assert_eq!(deployment["strategy"], strategy);

        let budget = &self.one("PodDisruptionBudget")["spec"];
        assert_eq!(budget["maxUnavailable"], 1);
        assert_eq!(budget["unhealthyPodEvictionPolicy"], "AlwaysAllow");
        self.selects_the_pods(&budget["selector"]);

        let spread = list(&self.pod()["topologySpreadConstraints"]);
        let keys: Vec<&str> = spread.iter().map(|it| word(&it["topologyKey"])).collect();
        assert_eq!(
            keys,
            ["kubernetes.io/hostname", "topology.kubernetes.io/zone"]
        );
        for constraint in spread {
            assert_eq!(constraint["maxSkew"], 1);
            self.selects_the_pods(&constraint["labelSelector"]);
            // The new ones must find room beside the old ones.
            assert_eq!(constraint["matchLabelKeys"], json!(["pod-template-hash"]));
        }
    }

    fn selects_the_pods(&self, selector: &Value) {
        assert!(
            is_among(&selector["matchLabels"], self.pod_labels()),
            "{selector}"
        );
        assert_eq!(selector, &self.one("Deployment")["spec"]["selector"]);
    }

    fn autoscaling(&self) {
        let deployment = self.one("Deployment");
        let replicas = deployment["spec"].get("replicas");
        let [scaler] = self.all("HorizontalPodAutoscaler")[..] else {
            assert!(number(replicas.expect("one of the two says how many")) > 0);
            return;
        };
        assert_eq!(replicas, None, "each `apply` would undo what it decided");
        let scaler = &scaler["spec"];
        let target = json!({
            "apiVersion": deployment["apiVersion"],
            "kind": "Deployment",
            "name": deployment["metadata"]["name"],
        });
        assert_eq!(scaler["scaleTargetRef"], target);
        let (fewest, most) = (
            number(&scaler["minReplicas"]),
            number(&scaler["maxReplicas"]),
        );
        assert!(fewest >= 2 && most > fewest, "{fewest} to {most}");
        let [metric] = list(&scaler["metrics"]) else {
            panic!("{scaler}");
        };
        assert_eq!(metric["resource"]["name"], "cpu");
        // A leader that folds uses about a core, and more replicas do not help it.
        let each = word(&metric["resource"]["target"]["averageValue"]);
        let millicores: u64 = each.strip_suffix('m').unwrap().parse().unwrap();
        assert!(millicores * fewest > 1_000, "{each}");
    }

    fn nothing_is_kept_on_a_volume(&self) {
        assert!(self.all("PersistentVolumeClaim").is_empty());
        let volumes = list(&self.pod()["volumes"]);
        for volume in volumes {
            assert_eq!(volume.get("persistentVolumeClaim"), None);
        }
        let path = format!("{}/file", image::volume());
        let (mount, _) = self.mount(&path);
        assert_eq!(mount.get("readOnly"), None);
        let volume = named(&self.pod()["volumes"], word(&mount["name"]));
        // Without a limit it could fill the node's disk.
        assert!(volume["emptyDir"]["sizeLimit"].is_string(), "{volume}");
    }
}
