//! TLS to PostgreSQL.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use cohort_bridge::route::Routes;
use cohort_bridge::store::{LedgerStore, PostgresUrl, SourceRules, Store};

use super::variables;
use crate::support::daemon::give_to_servers;
use crate::support::fast_temp_dir;
use crate::support::front::Authority;
use crate::support::postgres::{Postgres, ROLE, connected};
use crate::support::process::{Process, run};
use crate::support::service::stand_in;
use crate::support::stores::destination;

/// A server of the name `localhost`, and its files.
struct Encrypted {
    postgres: Postgres,
    folder: tempfile::TempDir,
}

fn path(folder: &Path, name: &str) -> String {
    folder.join(name).display().to_string()
}

impl Encrypted {
    async fn start() -> Option<Self> {
        let (authority, folder) = (Authority::new(), fast_temp_dir());
        let (certificate, key) = authority.issue(&["localhost"]);
        give_to_servers(folder.path());
        for (name, text) in [
            ("ca.pem", authority.pem()),
            ("another.pem", Authority::new().pem()),
            ("server.pem", certificate),
            ("server.key", key),
        ] {
            let file = folder.path().join(name);
            std::fs::write(&file, text).unwrap();
            std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
            give_to_servers(&file);
        }
        let postgres = Postgres::start_with(&[
            ("ssl", "on"),
            ("ssl_cert_file", &path(folder.path(), "server.pem")),
            ("ssl_key_file", &path(folder.path(), "server.key")),
        ])
        .await?;
        Some(Encrypted { postgres, folder })
    }

    fn url(&self, host: &str, database: &str, options: &str) -> String {
        let options = options.replace("FOLDER", &self.folder.path().display().to_string());
        let port = self.postgres.port();
        format!("postgres://{ROLE}:hush@{host}:{port}/{database}{options}")
    }
}

/// Opens the ledger there; no host is of this network.
async fn open(url: &str) -> Result<LedgerStore, String> {
    let url = PostgresUrl::parse(url, |_| false)?;
    let opening = move || {
        let (sources, destinations) = (SourceRules::named("default"), destination("default"));
        LedgerStore::connect(&url, vec![sources], vec![destinations], Routes::default())
    };
    let opened = tokio::task::spawn_blocking(opening).await.unwrap();
    opened.map_err(|error| error.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_proves_who_it_is() {
    let Some(encrypted) = Encrypted::start().await else {
        return;
    };
    let database = encrypted.postgres.fresh_database().await;
    let name = database.name();
    for options in [
        "?sslmode=verify-full&sslrootcert=FOLDER/ca.pem",
        "?sslmode=require&sslrootcert=FOLDER/ca.pem",
        "?sslrootcert=FOLDER/ca.pem",
    ] {
        let store = open(&encrypted.url("localhost", name, options))
            .await
            .unwrap();
        store.ready().await.unwrap();
        let encrypted_ones =
            "SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)
                              WHERE application_name = 'cohort-bridge'";
        let observer = connected(database.url()).await;
        let row = observer.query_one(encrypted_ones, &[]).await.unwrap();
        assert!(row.get::<_, bool>(0), "{options}");
        store.close().await;
    }
    for (host, options, words) in [
        (
            "localhost",
            "?sslrootcert=FOLDER/another.pem",
            "invalid peer certificate",
        ),
        // Whoever has only the authorities of the machine.
        ("localhost", "?sslmode=verify-full", "UnknownIssuer"),
        ("localhost", "", "UnknownIssuer"),
        (
            "127.0.0.1",
            "?sslrootcert=FOLDER/ca.pem",
            "not valid for name",
        ),
        (
            "localhost",
            "?sslrootcert=FOLDER/none.pem",
            "none.pem (sslrootcert)",
        ),
    ] {
        let refused = open(&encrypted.url(host, name, options)).await;
        let said = refused.map(drop).unwrap_err();
        assert!(said.contains(words), "{host} {options}: {said}");
        assert!(!said.contains("hush"), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_tls_is_used_only_where_that_is_wanted() {
    let Some(postgres) = Postgres::shared().await else {
        return;
    };
    let database = postgres.fresh_database().await;
    let plain = format!("{}?sslmode=disable", database.url());
    open(&plain).await.unwrap().ready().await.unwrap();
    for options in ["", "?sslmode=require"] {
        let refused = open(&format!("{}{options}", database.url())).await;
        let said = refused.map(drop).unwrap_err();
        assert!(said.contains("does not support TLS"), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_binary_speaks_tls_or_says_why_not() {
    let Some(encrypted) = Encrypted::start().await else {
        return;
    };
    let database = encrypted.postgres.fresh_database().await;
    let stand_in = stand_in();
    let with = |authority: &str| {
        let options = format!("?sslmode=verify-full&sslrootcert=FOLDER/{authority}");
        let url = encrypted.url("localhost", database.name(), &options);
        variables(&url, &stand_in, &[])
    };
    let service = Process::serve(&with("ca.pem")).await;
    assert_eq!(service.get("/readyz").await.status, 200);
    assert!(!service.output().contains("hush"));
    let wrong = with("another.pem");
    let ended = tokio::task::spawn_blocking(move || run(&["serve"], &wrong));
    let ended = ended.await.unwrap();
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(
        ended.stderr.contains("invalid peer certificate"),
        "{ended:?}"
    );
    assert!(ended.stderr.contains("DATABASE_URL"), "{ended:?}");
    assert!(!ended.stderr.contains("hush"), "{ended:?}");
}
