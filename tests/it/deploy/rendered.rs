//! What Helm makes of the chart, and that it is what Kustomize makes of its folders.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::fit::Bundle;
use super::tools::{assert_valid, kustomized, rendered};
use super::yaml::{documents, list, named, text_of};

pub const BASE: &str = "deploy/kustomize/base";
pub const BASE_POSTGRESQL: &str = "deploy/kustomize/base-postgresql";

/// `kustomization.yaml` with everything in it, with SQLite and with PostgreSQL.
pub const OVERLAY: &str = "deploy/kustomize/overlays/example";
pub const OVERLAY_POSTGRESQL: &str = "deploy/kustomize/overlays/example-postgresql";

/// The values that make of the chart what the example overlay makes of the bases.
fn as_the_overlay() -> Value {
    json!({
        "image": {"repository": "registry.example.com/cohort-bridge"},
        "settings": {"flagsmith-api-url": "https://edge.api.flagsmith.com/api/v1/"},
        "ingress": {"enabled": true},
        "monitoring": {"serviceMonitor": {"enabled": true}, "alerts": {"enabled": true}},
    })
}

/// The same of the example overlay with PostgreSQL.
fn as_the_overlay_with_postgresql() -> Value {
    let mut values = as_the_overlay();
    values["postgresql"] = json!({"enabled": true});
    values["autoscaling"] = json!({"enabled": true});
    values
}

/// Puts what is known by its name in an order: Kustomize merges lists in one of its own.
fn in_order(list: &mut Value, key: &str) {
    if let Some(list) = list.as_array_mut() {
        list.sort_by_key(|it| it[key].as_str().unwrap().to_owned());
    }
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
        if thing["kind"] == "Deployment" {
            let pod = &mut thing["spec"]["template"]["spec"];
            in_order(&mut pod["volumes"], "name");
            let container = &mut pod["containers"][0];
            in_order(&mut container["env"], "name");
            in_order(&mut container["volumeMounts"], "mountPath");
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

/// Holds what Helm makes of these values to the program, to Kubernetes and to a Kustomize folder.
fn assert_helm_makes(values: &Value, folder: &str) {
    let Some(helm) = rendered(values) else {
        return;
    };
    let helm = helm.unwrap();
    helm.fits_the_program();
    assert_valid(&helm);
    if let Some(kustomize) = kustomized(folder) {
        assert_same(&helm, &kustomize);
    }
}

#[test]
fn helm_makes_by_default_what_the_base_is() {
    assert_helm_makes(&json!({}), BASE);
}

#[test]
fn helm_makes_with_everything_what_the_example_overlay_is() {
    assert_helm_makes(&as_the_overlay(), OVERLAY);
}

#[test]
fn helm_makes_with_postgresql_what_the_base_with_it_is() {
    let values = json!({"postgresql": {"enabled": true}});
    assert_helm_makes(&values, BASE_POSTGRESQL);
    let Some(helm) = rendered(&values) else {
        return;
    };
    assert_eq!(helm.unwrap().one("Deployment")["spec"]["replicas"], 2);
}

#[test]
fn helm_makes_with_postgresql_and_everything_what_its_example_overlay_is() {
    let values = as_the_overlay_with_postgresql();
    assert_helm_makes(&values, OVERLAY_POSTGRESQL);
    if let Some(helm) = rendered(&values) {
        helm.unwrap().one("HorizontalPodAutoscaler");
    }
}

#[test]
fn helm_passes_on_what_values_say_of_postgresql() {
    let values = json!({
        "fullnameOverride": "flags",
        "postgresql": {
            "enabled": true,
            "existingSecret": "mine",
            "urlKey": "uri",
            "caSecret": "mine-ca",
            "caKey": "tls.crt",
            "temporarySize": "4Gi",
        },
        "replicaCount": 3,
        "topologySpread": "DoNotSchedule",
        "networkPolicy": {"postgresql": [{"ipBlock": {"cidr": "10.1.0.0/16"}}]},
    });
    let Some(helm) = rendered(&values) else {
        return;
    };
    let helm = helm.unwrap();
    helm.fits_the_program();
    assert_valid(&helm);
    let deployment = &helm.one("Deployment")["spec"];
    assert_eq!(deployment["replicas"], 3);
    let pod = &deployment["template"]["spec"];
    for constraint in list(&pod["topologySpreadConstraints"]) {
        assert_eq!(constraint["whenUnsatisfiable"], "DoNotSchedule");
    }
    let temporary = named(&pod["volumes"], "temporary");
    assert_eq!(temporary["emptyDir"]["sizeLimit"], "4Gi");
    let sources = &named(&pod["volumes"], "postgresql")["projected"]["sources"];
    assert_eq!(
        sources,
        &json!([
            {"secret": {"name": "mine", "items": [{"key": "uri", "path": "database-url"}]}},
            {"secret": {"name": "mine-ca", "items": [{"key": "tls.crt", "path": "ca.crt"}]}},
        ])
    );
    let outward = &helm.one("NetworkPolicy")["spec"]["egress"][2]["to"];
    assert_eq!(outward, &json!([{"ipBlock": {"cidr": "10.1.0.0/16"}}]));

    // A server whose certificate a public authority signed.
    let values = json!({"postgresql": {"enabled": true, "caKey": ""}, "replicaCount": 1});
    let helm = rendered(&values).expect("it was there").unwrap();
    helm.fits_the_program();
    assert_valid(&helm);
    assert!(!helm.one("Deployment").to_string().contains("ca.crt"));
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
    let shown = readme.split("```yaml\n").skip(1);
    let shown = shown.map(|rest| documents(rest.split("```").next().unwrap())[0].clone());
    let [values, besides] = &shown.collect::<Vec<_>>()[..] else {
        panic!("one file, and what is added to it");
    };
    let mut both = values.clone();
    for (key, value) in besides.as_object().unwrap() {
        match both.get_mut(key).and_then(Value::as_object_mut) {
            Some(table) => table.extend(value.as_object().unwrap().clone()),
            None => both[key] = value.clone(),
        }
    }
    for (values, shares_a_ledger) in [(values, false), (&both, true)] {
        if let Some(helm) = rendered(values) {
            let helm = helm.unwrap();
            helm.fits_the_program();
            assert_valid(&helm);
            helm.one("Ingress");
            assert_eq!(helm.shares_a_ledger(), shares_a_ledger);
        }
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
        // Two cannot share a file.
        (json!({"replicaCount": 2}), "replicaCount"),
        (
            json!({"postgresql": {"enabled": false}, "replicaCount": 2}),
            "replicaCount",
        ),
        (json!({"autoscaling": {"enabled": true}}), "autoscaling"),
        // And what shares PostgreSQL has no volume.
        (
            json!({"postgresql": {"enabled": true}, "persistence": {"existingClaim": "mine"}}),
            "existingClaim",
        ),
        (
            json!({"postgresql": {"enabled": true}, "persistence": {"storageClass": "fast"}}),
            "storageClass",
        ),
        (
            json!({"postgresql": {"enabled": true}, "replicaCount": 0}),
            "replicaCount",
        ),
        (json!({"postgresql": {"url": "postgres://u:p@h/d"}}), "url"),
        (json!({"topologySpread": "Never"}), "topologySpread"),
        (json!({"autoscaling": {"minReplicas": 1}}), "minReplicas"),
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
