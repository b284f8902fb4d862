//! A PostgreSQL that would lose what it acknowledged is not used.

use super::variables;
use crate::support::eventually;
use crate::support::pages::page_without_info;
use crate::support::postgres::{Postgres, ROLE};
use crate::support::process::{Process, run};
use crate::support::service::{Answer, PASSWORD, USER, client, stand_in};

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_loses_acknowledged_pages_is_refused_at_the_start() {
    for setting in ["fsync", "synchronous_commit", "full_page_writes"] {
        let Some(postgres) = Postgres::start_with(&[(setting, "off")]).await else {
            return;
        };
        let database = postgres.fresh_database().await;
        let variables = variables(database.url(), &stand_in(), &[]);
        let ended = tokio::task::spawn_blocking(move || run(&["serve"], &variables));
        let ended = ended.await.unwrap();
        assert_eq!(ended.code, Some(1), "{ended:?}");
        let words = format!("PostgreSQL runs with {setting} = off");
        assert!(ended.stderr.contains(&words), "{ended:?}");
        assert!(ended.stderr.contains("set it to on"), "{ended:?}");
    }
}

/// Somebody changes it while the service runs.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_becomes_careless_is_refused_at_the_next_connection() {
    let Some(postgres) = Postgres::start().await else {
        return;
    };
    let database = postgres.fresh_database().await;
    let service = Process::serve(&variables(database.url(), &stand_in(), &[])).await;
    let send = async || {
        let page = page_without_info("add_members", "c", &["ann"]).to_string();
        let request = client().post(service.webhook_url());
        let request = request.basic_auth(USER, Some(PASSWORD)).body(page);
        Answer::of(request.send().await.unwrap()).await
    };
    assert_eq!(send().await.status, 200);
    let role = |what: &str| format!("ALTER ROLE {ROLE} {what} synchronous_commit");
    let alter = async |what: &str| {
        let sql = match what {
            "SET" => format!("{} = off", role("SET")),
            _ => role("RESET"),
        };
        // A role may change its own settings.
        let own = crate::support::postgres::connected(database.url()).await;
        own.batch_execute(&sql).await.unwrap();
        postgres.restart().await;
    };
    alter("SET").await;
    eventually("pages are refused for that reason", async || {
        let answer = send().await;
        assert_eq!(answer.status, 503, "{answer:?}");
        let said = service.output();
        said.contains("PostgreSQL runs with synchronous_commit = off")
            .then_some(())
    })
    .await;
    assert_eq!(service.get("/readyz").await.status, 503);
    alter("RESET").await;
    eventually("pages are taken in again", async || {
        (send().await.status == 200).then_some(())
    })
    .await;
}
