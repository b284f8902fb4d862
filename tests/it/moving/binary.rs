//! The commands themselves.

use std::io::{BufRead, BufReader};

use crate::support::fast_temp_dir;
use crate::support::pages::{page, people};
use crate::support::postgres::Postgres;
use crate::support::process::{Ended, Process, Variables, run, serve_variables, spawn};
use crate::support::service::{client, stand_in};
use crate::support::{eventually, service};

use super::file_of;

/// Runs a command over a ledger that another test's child may hold for a moment.
async fn run_free(arguments: &[&str], variables: &Variables) -> Ended {
    eventually("the ledger is free", async || {
        let ended = run(arguments, variables);
        (!ended.stderr.contains("is in use by another")).then_some(ended)
    })
    .await
}

fn variables(set: &[(&str, String)]) -> Variables {
    let set = set.iter().cloned();
    set.map(|(name, value)| (name.to_owned(), value)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_in_the_middle_is_survived() {
    let Some((stores, database)) = file_of(200_000).await else {
        return;
    };
    let settings = variables(&[
        (
            "DATABASE_URL",
            format!("sqlite://{}", stores.file().display()),
        ),
        ("COHORT_BRIDGE_TO", database.url().to_owned()),
    ]);
    let mut killed = 0;
    // A line a table, when its first piece is there. The thirteenth has the members, in twenty pieces: it
    // is killed in the middle of them, and again as soon as it has gone on.
    for lines in [1, 5, 13, 1, 1, 1] {
        let mut child = spawn(&["migrate-store"], &settings);
        let told = BufReader::new(child.stderr.take().unwrap()).lines();
        let told: Vec<String> = told.map_while(Result::ok).take(lines).collect();
        child.kill().unwrap();
        let is_over = child.wait().unwrap().success();
        killed += usize::from(told.len() == lines && !is_over);
    }
    // One may find the lock with another test's child.
    assert!(killed >= 4, "{killed}");
    let ended = run_free(&["migrate-store"], &settings).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let lines: Vec<&str> = ended.stdout.lines().collect();
    let tables = lines.iter().filter(|line| line.ends_with(" same")).count();
    assert_eq!(tables, 25, "{}", ended.stdout);
    assert!(!ended.stdout.contains("DIFFERENT"));
    assert!(!ended.stderr.contains("PGERR"), "{}", ended.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_moves_house() {
    let Some(postgres) = Postgres::shared().await else {
        return;
    };
    let folder = fast_temp_dir();
    let stand_in = stand_in();
    let ledger = folder.path().join("ledger.db");
    let mut before = serve_variables(&ledger, &stand_in.url());
    before.insert(
        "DATABASE_URL".into(),
        format!("sqlite://{}", ledger.display()),
    );
    let send = async |process: &Process, session: &str, names: &[String]| {
        let page = page("members", "c", session, (1, 1), names);
        let request = client().post(format!("http://{}/webhooks/mixpanel", process.webhook));
        let request = request.basic_auth(service::USER, Some(service::PASSWORD));
        let answer = request.body(page.to_string()).send().await.unwrap();
        assert_eq!(answer.status(), 200);
    };
    let is_told = async |person: &str, value: bool| {
        eventually("it is told", async || {
            let identity = stand_in.identity(person)?;
            (identity.get("mixpanel_cohort_c")? == value).then_some(())
        })
        .await;
    };
    let everybody = people("p", 20);
    let mut process = Process::serve(&before).await;
    send(&process, "first", &everybody).await;
    is_told(&everybody[19], true).await;

    let database = postgres.fresh_database().await;
    let secret = folder.path().join("database-url");
    std::fs::write(&secret, format!("{}\n", database.url())).unwrap();
    let from = format!("sqlite://{}", ledger.display());
    let moving = variables(&[("COHORT_BRIDGE_TO_FILE", secret.display().to_string())]);
    let arguments = ["migrate-store", "--from", &from];
    let in_use = run(&arguments, &moving);
    assert_eq!(in_use.code, Some(1), "{in_use:?}");
    assert!(in_use.stderr.contains("in use by another cohort-bridge"));
    process.terminate();
    assert_eq!(process.ended().await, Some(0));

    let moved = run_free(&arguments, &moving).await;
    assert_eq!(moved.code, Some(0), "{moved:?}");
    assert!(moved.stdout.contains("set DATABASE_URL to that database"));
    let again = run_free(&arguments, &moving).await;
    assert_eq!(again.code, Some(0), "{again:?}");
    assert!(again.stdout.contains("is moved already"), "{again:?}");
    let refused = run_free(&["serve"], &before).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.stderr.contains("was moved to"), "{refused:?}");
    assert!(refused.stderr.contains("migrate-store --take-back"));

    let mut after = before.clone();
    after.insert("DATABASE_URL".into(), database.url().to_owned());
    let process = Process::serve(&after).await;
    send(&process, "second", &everybody[..10]).await;
    is_told(&everybody[19], false).await;
    drop(process);

    let back = run_free(&["migrate-store", "--take-back"], &before).await;
    assert_eq!(back.code, Some(0), "{back:?}");
    let process = Process::serve(&before).await;
    let admin = variables(&[(
        "COHORT_BRIDGE_ADMIN_URL",
        format!("http://{}", process.admin),
    )]);
    let ordered = run(&["resync", "--destination", "default"], &admin);
    assert_eq!(ordered.code, Some(0), "{ordered:?}");
    send(&process, "third", &everybody).await;
    is_told(&everybody[19], true).await;
}

#[test]
fn wrong_settings_are_told_apart_from_failures() {
    let none = Variables::new();
    let nowhere = ["migrate-store", "--from", "sqlite:///nowhere/ledger.db"];
    let ended = run(&nowhere, &none);
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert!(ended.stderr.contains("--to (COHORT_BRIDGE_TO) is required"));
    let to = variables(&[("COHORT_BRIDGE_TO", "postgres://u:hush@127.0.0.1:1/d".into())]);
    let ended = run(&nowhere, &to);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(
        ended
            .stderr
            .contains("there is no ledger /nowhere/ledger.db")
    );
    assert!(!ended.stderr.contains("hush"));
}
