//! The Compose files: one replica with SQLite, and two with PostgreSQL.

use std::collections::BTreeSet;

use cohort_bridge::cli::{self, Command};
use cohort_bridge::config::{Database, Environment, Settings};
use cohort_bridge::health;
use serde_json::{Value, json};

use super::fit::{secret_for, stand_in_file};
use super::image::{self, question, seconds};
use super::ledger::is_a_file;
use super::yaml::{document_in, list, text_of, word};

const SQLITE: &str = "deploy/docker-compose.yml";
const POSTGRESQL: &str = "deploy/docker-compose.postgresql.yml";

/// Each with how many replicas it has.
const FILES: [(&str, usize); 2] = [(SQLITE, 1), (POSTGRESQL, 2)];

/// The services of a file that run the program.
fn bridges(compose: &Value) -> Vec<(&String, &Value)> {
    let services = compose["services"].as_object().unwrap().iter();
    services
        .filter(|(name, _)| name.starts_with("cohort-bridge"))
        .collect()
}

fn names(values: &Value) -> BTreeSet<String> {
    list(values).iter().map(|it| word(it).to_owned()).collect()
}

/// What `serve` makes of a service's variables, and the secrets that they name.
fn settings_of(service: &Value) -> (Settings, BTreeSet<String>) {
    let folder = tempfile::tempdir().unwrap();
    let mut variables = image::variables();
    let mut from_files = BTreeSet::new();
    for (name, value) in service["environment"].as_object().unwrap() {
        let mut value = word(value).to_owned();
        if name.ends_with("_FILE") {
            let secret = value
                .strip_prefix("/run/secrets/")
                .expect("where Compose mounts it")
                .to_owned();
            value = stand_in_file(folder.path(), &secret, &secret_for(&secret));
            from_files.insert(secret);
        }
        variables.push((name.clone(), value));
    }
    let parsed = cli::try_parse_from(["cohort-bridge", "serve"]);
    let Command::Serve(args) = parsed.unwrap().command else {
        panic!("serve is serve");
    };
    // The container's beat the image's.
    let environment: Environment = variables.into_iter().collect();
    let settings = Settings::from_args(&args, &environment);
    let settings = settings.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(settings.warnings, Vec::<String>::new());
    (settings, from_files)
}

/// Where a service's ports are published: the machine's address and the container's port.
fn published(service: &Value) -> Vec<(String, u16)> {
    let ports = list(&service["ports"]).iter();
    ports
        .map(|it| {
            let (there, here) = word(it).rsplit_once(':').unwrap();
            (there.to_owned(), here.parse().unwrap())
        })
        .collect()
}

#[test]
fn the_services_fit_the_program() {
    for (file, count) in FILES {
        let compose = document_in(file);
        let bridges = bridges(&compose);
        assert_eq!(bridges.len(), count, "{file}");
        let mut taken = BTreeSet::new();
        for (name, service) in bridges {
            let (settings, from_files) = settings_of(service);
            assert_eq!(names(&service["secrets"]), from_files, "{name}");
            let ports = [settings.listen, settings.admin_listen].map(|it| it.port());
            let published = published(service);
            assert_eq!(published.iter().map(|it| it.1).collect::<Vec<_>>(), ports);
            for (there, _) in published {
                // Neither is for the internet.
                assert!(there.starts_with("127.0.0.1:"), "{there}");
                assert!(taken.insert(there), "twice");
            }
            let patience = seconds(word(&service["stop_grace_period"]));
            assert!(patience > settings.shutdown_grace);
        }
    }
}

#[test]
fn secrets_are_the_files_that_the_steps_make() {
    let readme = text_of("deploy/README.md");
    for (file, _) in FILES {
        let compose = document_in(file);
        let services = compose["services"].as_object().unwrap().values();
        let used: BTreeSet<String> = services.flat_map(|it| names(&it["secrets"])).collect();
        let secrets = compose["secrets"].as_object().unwrap();
        assert_eq!(used, secrets.keys().cloned().collect(), "{file}");
        for (secret, source) in secrets {
            assert_eq!(word(&source["file"]), format!("secrets/{secret}"));
            assert!(
                readme.contains(&format!("> deploy/secrets/{secret}")),
                "{secret} is not made"
            );
        }
    }
}

#[test]
fn one_replica_keeps_its_ledger_on_the_volume() {
    let compose = document_in(SQLITE);
    let service = &compose["services"]["cohort-bridge"];
    let (settings, _) = settings_of(service);
    let url = word(&service["environment"]["DATABASE_URL"]);
    let ledger = url.strip_prefix("sqlite://").unwrap();
    assert!(matches!(&settings.database, Database::Sqlite(it) if it == ledger));
    let volume = image::volume();
    assert_eq!(ledger.rsplit_once('/').unwrap().0, volume);
    assert_eq!(
        list(&service["volumes"]),
        [Value::from(format!("ledger:{volume}"))]
    );
    assert!(compose["volumes"]["ledger"].is_object());
    assert_eq!(word(&service["environment"]["TMPDIR"]), volume);
}

#[test]
fn two_replicas_share_the_ledger_of_postgresql() {
    let compose = document_in(POSTGRESQL);
    for (name, service) in bridges(&compose) {
        let (settings, _) = settings_of(service);
        assert!(!is_a_file(&settings), "{name}");
        assert_eq!(
            service["depends_on"],
            json!({"postgresql": {"condition": "service_healthy"}})
        );
        // Nothing that it keeps, and nothing that both write to.
        let volume = image::volume();
        assert_eq!(list(&service["volumes"]), [Value::from(&*volume)]);
        assert_eq!(word(&service["environment"]["TMPDIR"]), volume);
    }
    // Both are the same but for the ports.
    let alike: Vec<Value> = bridges(&compose)
        .into_iter()
        .map(|(_, service)| {
            let mut service = service.clone();
            service.as_object_mut().unwrap().remove("ports");
            service.as_object_mut().unwrap().remove("build");
            service
        })
        .collect();
    assert_eq!(alike[0], alike[1]);
}

#[test]
fn the_database_of_compose_keeps_what_was_acknowledged() {
    let compose = document_in(POSTGRESQL);
    let database = &compose["services"]["postgresql"];
    let image = word(&database["image"]);
    let (name, digest) = image.split_once("@sha256:").expect("a digest");
    assert!(
        name.contains("postgres:"),
        "{name} tells nobody what it was"
    );
    assert!(digest.len() == 64 && digest.chars().all(|c| c.is_ascii_hexdigit()));
    // Whatever is said to the server could loosen what it promises: the program refuses such a one.
    for loose in ["command", "entrypoint"] {
        assert_eq!(database.get(loose), None);
    }
    assert_eq!(database.get("ports"), None, "nobody else asks it");
    let text = text_of(POSTGRESQL);
    for setting in ["fsync", "synchronous_commit", "full_page_writes"] {
        assert!(!text.contains(setting), "{setting}");
    }
    let kept = list(&database["volumes"]).iter().map(word);
    let kept: Vec<&str> = kept.collect();
    assert!(kept.contains(&"database:/var/lib/postgresql/data"));
    for volume in kept {
        let (from, _) = volume.split_once(':').unwrap();
        match from.strip_prefix("./") {
            Some(file) => assert!(super::yaml::top().join("deploy").join(file).is_file()),
            None => assert!(compose["volumes"][from].is_object(), "{from}"),
        }
    }
    let check: Vec<&str> = list(&database["healthcheck"]["test"])
        .iter()
        .map(word)
        .collect();
    // By TCP: the server that makes the role listens on the socket alone.
    assert_eq!(check[..4], ["CMD", "pg_isready", "-h", "127.0.0.1"]);
}

#[test]
fn a_service_may_do_little() {
    for (file, _) in FILES {
        let compose = document_in(file);
        let mut built = 0;
        for (_, service) in bridges(&compose) {
            let image = format!("cohort-bridge:{}", env!("CARGO_PKG_VERSION"));
            assert_eq!(service["image"], image);
            assert_eq!(service["user"], format!("{0}:{0}", image::uid()));
            assert_eq!(service["read_only"], true);
            assert_eq!(service["cap_drop"], json!(["ALL"]));
            assert_eq!(service["security_opt"], json!(["no-new-privileges:true"]));
            if let Some(build) = service.get("build") {
                assert_eq!(build["dockerfile"], image::DOCKERFILE);
                built += 1;
            }

            let check = &service["healthcheck"];
            let command: Vec<&str> = list(&check["test"]).iter().map(word).collect();
            assert_eq!(command[0], "CMD");
            assert!(question(&command[1..]).ready);
            assert!(seconds(word(&check["timeout"])) > health::LIMIT);
        }
        assert_eq!(built, 1, "{file}");
    }
}
