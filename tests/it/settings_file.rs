//! Several sources and destinations from a settings file, with the real binary.

use std::path::PathBuf;

use cohort_bridge::standin::{Fault, StandIn, StandInOptions, Switch};
use serde_json::{Value, json};

use crate::support::process::{Process, Variables, run, serve_variables};
use crate::support::service::client;
use crate::support::{environment, eventually, fast_temp_dir, pages};

struct Setup {
    folder: tempfile::TempDir,
    variables: Variables,
    /// Each with an environment of its own.
    one: StandIn,
    other: StandIn,
}

fn stand_in() -> StandIn {
    let environments = vec![environment(
        "main",
        &[Switch::ClientMaySetTraits, Switch::StoresTraits],
    )];
    StandIn::start(StandInOptions {
        environments,
        ..StandInOptions::default()
    })
    .unwrap()
}

const SOURCES: &str = "
[[sources]]
name = 'us'
basic_auth = 'us:secret-1'
[[sources]]
name = 'eu'
basic_auth_file = 'eu.password'
trait_key = 'eu_{id}'
";

impl Setup {
    fn new() -> Self {
        let folder = fast_temp_dir();
        std::fs::write(folder.path().join("eu.password"), "eu:secret-2\n").unwrap();
        std::fs::write(folder.path().join("env.key"), "ser.main\n").unwrap();
        let (one, other) = (stand_in(), stand_in());
        let mut variables = serve_variables(&folder.path().join("ledger.db"), &one.url());
        for secret in ["WEBHOOK_BASIC_AUTH", "FLAGSMITH_ENVIRONMENT_KEY"] {
            variables.remove(&format!("COHORT_BRIDGE_{secret}"));
        }
        let file = folder.path().join("settings.toml").display().to_string();
        variables.insert("COHORT_BRIDGE_CONFIG".into(), file);
        Setup {
            folder,
            variables,
            one,
            other,
        }
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("settings.toml")
    }

    /// Writes the settings file: the sources, these destinations, and whatever else.
    fn write(&self, destinations: &[&str], rest: &str) {
        let tables = destinations.iter().map(|name| {
            let stand_in = match *name {
                "one" => &self.one,
                _ => &self.other,
            };
            let url = stand_in.url();
            format!("[[destinations]]\nname = '{name}'\napi_url = '{url}'\nenvironment_key_file = 'env.key'\n")
        });
        let text = SOURCES.to_owned() + &tables.collect::<String>() + rest;
        std::fs::write(self.file(), text).unwrap();
    }
}

async fn send(process: &Process, path: &str, auth: &str, page: &Value) -> u16 {
    let (user, password) = auth.split_once(':').unwrap();
    let request = client()
        .post(format!("{}{path}", process.webhook_url()))
        .basic_auth(user, Some(password))
        .body(page.to_string());
    request.send().await.unwrap().status().as_u16()
}

/// Waits until an environment holds that trait.
async fn held(stand_in: &StandIn, person: &str, key: &str) {
    eventually(key, async || {
        let identity = stand_in.identity(person)?;
        (identity.get(key) == Some(&json!(true))).then_some(())
    })
    .await;
}

fn full(cohort: &str, session: &str, people: &[&str]) -> Value {
    pages::page("members", cohort, session, (1, 1), people)
}

#[tokio::test(flavor = "multi_thread")]
async fn each_source_has_its_webhook_and_its_rules() {
    let setup = Setup::new();
    setup.write(&["one"], "");
    let mut process = Process::serve(&setup.variables).await;
    let page = full("7", "s", &["ann"]);
    assert_eq!(send(&process, "/us", "us:secret-1", &page).await, 200);
    assert_eq!(send(&process, "/eu", "eu:secret-2", &page).await, 200);
    assert_eq!(send(&process, "/eu", "us:secret-1", &page).await, 401);
    assert_eq!(send(&process, "/asia", "us:secret-1", &page).await, 404);
    assert_eq!(send(&process, "", "us:secret-1", &page).await, 404);
    held(&setup.one, "ann", "mixpanel_cohort_7").await;
    held(&setup.one, "ann", "eu_7").await;
    process.terminate();
    assert_eq!(process.ended().await, Some(0));
    let output = process.output();
    assert!(!output.contains("secret-") && !output.contains("ser.main"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destination_that_runs_dry_or_is_paused_is_not_called_and_delays_no_other() {
    let setup = Setup::new();
    let calls = || setup.other.calls().values().sum::<u64>();
    setup.write(&["one", "other"], "dry_run = true\n");
    let mut process = Process::serve(&setup.variables).await;
    let page = full("7", "s", &["ann"]);
    assert_eq!(send(&process, "/us", "us:secret-1", &page).await, 200);
    held(&setup.one, "ann", "mixpanel_cohort_7").await;
    let admin = process.admin_url("/");
    let plan = run(&["plan", "--admin-url", &admin], &Variables::new());
    assert_eq!(plan.code, Some(0), "{}", plan.stderr);
    assert!(plan.stdout.contains("dry run"), "{}", plan.stdout);
    let pause = ["pause", "--destination", "other", "--admin-url", &admin];
    let paused = run(&pause, &Variables::new());
    assert_eq!(paused.stdout.trim(), "paused: 1 trait waits");
    let unknown = ["pause", "us", "8", "--admin-url", &admin];
    let unknown = run(&unknown, &Variables::new());
    assert_eq!(unknown.code, Some(1));
    assert!(
        unknown.stderr.contains("/api/v1/cohorts"),
        "{}",
        unknown.stderr
    );

    process.kill();
    setup.write(&["one", "other"], "");
    let process = Process::serve(&setup.variables).await;
    let page = full("7", "t", &["ann", "bob"]);
    assert_eq!(send(&process, "/us", "us:secret-1", &page).await, 200);
    held(&setup.one, "bob", "mixpanel_cohort_7").await;
    assert_eq!(calls(), 0);
    let admin = process.admin_url("/");
    let resume = ["resume", "--destination", "other", "--admin-url", &admin];
    let resumed = run(&resume, &Variables::new());
    assert_eq!(resumed.stdout.trim(), "resumed: 2 traits to be written");
    held(&setup.other, "bob", "mixpanel_cohort_7").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destination_that_hangs_or_is_halted_delays_no_other() {
    for fault in [Fault::Hang, Fault::unknown_key()] {
        let setup = Setup::new();
        setup.other.fault(fault);
        setup.write(&["other", "one"], "");
        let process = Process::serve(&setup.variables).await;
        for (session, person) in [("s", "ann"), ("t", "bob")] {
            let page = full("7", session, &[person]);
            assert_eq!(send(&process, "/us", "us:secret-1", &page).await, 200);
            held(&setup.one, person, "mixpanel_cohort_7").await;
        }
        eventually("one knows of both, the other of neither", async || {
            let cohorts = process.get("/api/v1/cohorts").await.json();
            let there = &cohorts["cohorts"][0]["destinations"];
            let pending = |at: usize| (there[at]["name"].clone(), there[at]["pending"].clone());
            let wanted = ((json!("other"), json!(2)), (json!("one"), json!(0)));
            ((pending(0), pending(1)) == wanted).then_some(())
        })
        .await;
        let left = setup.one.identity("ann").unwrap();
        assert_eq!(left["mixpanel_cohort_7"], json!(false));
        assert_eq!(setup.other.identity("ann"), None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destination_added_later_is_brought_up_though_killed_in_the_middle() {
    let setup = Setup::new();
    setup.write(&["one"], "");
    let mut process = Process::serve(&setup.variables).await;
    let everybody = pages::people("usr", 5_000);
    let everybody: Vec<_> = everybody.iter().map(String::as_str).collect();
    assert_eq!(
        send(&process, "/us", "us:secret-1", &full("7", "s", &everybody)).await,
        200
    );
    eventually("delivered", async || {
        (setup.one.identities().len() >= 5_000).then_some(())
    })
    .await;
    process.terminate();
    assert_eq!(process.ended().await, Some(0));

    setup.write(&["one", "other"], "");
    let killed = Process::serve(&setup.variables).await;
    eventually("some are delivered", async || {
        (setup.other.identities().len() > 50).then_some(())
    })
    .await;
    drop(killed);
    let _process = Process::serve(&setup.variables).await;
    eventually("all are delivered", async || {
        let people = setup.other.identities();
        let traits = people
            .iter()
            .filter(|(_, traits)| traits.contains_key("mixpanel_cohort_7"));
        (traits.count() == 5_000).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn check_says_where_cohorts_go_and_what_the_next_start_changes() {
    let setup = Setup::new();
    setup.write(&["one"], "");
    let mut process = Process::serve(&setup.variables).await;
    for cohort in ["7", "8"] {
        let page = full(cohort, "s", &["ann"]);
        assert_eq!(send(&process, "/us", "us:secret-1", &page).await, 200);
        held(&setup.one, "ann", &format!("mixpanel_cohort_{cohort}")).await;
    }
    let plain = run(&["check"], &setup.variables);
    assert_eq!(plain.code, Some(0), "{plain:?}");
    assert!(!plain.stdout.contains("route"), "{}", plain.stdout);

    let routes = "[[routes]]\ncohort_ids = ['7']\ndestinations = ['other']\n";
    setup.write(&["one", "other"], routes);
    for is_running in [true, false] {
        if !is_running {
            process.terminate();
            assert_eq!(process.ended().await, Some(0));
        }
        let check = run(&["check"], &setup.variables);
        assert_eq!(check.code, Some(0), "{check:?}");
        for row in [
            "destination one: no route leads there",
            "destination one: 0 cohort(s); the next start drops what is pending of 2 that go there no longer; their traits stay as they are",
            "destination other: 1 cohort(s); the next start brings up 1 of them from the ledger",
            "cohort 8 of source us (8): no route leads it anywhere",
        ] {
            assert!(check.stdout.contains(row), "{row}: {}", check.stdout);
        }
    }
    let mut process = Process::serve(&setup.variables).await;
    held(&setup.other, "ann", "mixpanel_cohort_7").await;
    let dropped = "the settings lead these cohorts there no longer: what is pending is dropped, and traits stay as they are";
    let line = process.line(dropped).await;
    assert_eq!(
        (&line["destination"], &line["cohorts"]),
        (&json!("one"), &json!(2))
    );
    let page = process.get("/").await.text;
    assert!(page.contains("goes nowhere"), "{page}");
    let identity = setup.one.identity("ann").unwrap();
    assert_eq!(identity["mixpanel_cohort_8"], json!(true), "as it was");
}

#[test]
fn whatever_is_wrong_with_the_file_ends_with_2_and_shows_no_secret() {
    let setup = Setup::new();
    setup.write(
        &["one", "one"],
        "[[sources]]\nname = 'x'\nbasic_auth = 'secret-3'\n[[routes]]\ndestinations = ['nowhere']\nsecret = 'x'\n",
    );
    for command in ["serve", "check"] {
        let ended = run(&[command], &setup.variables);
        assert_eq!(ended.code, Some(2), "{ended:?}");
        for fault in [
            "line 14: this destination is on line 10 already",
            "line 19: basic_auth cannot be used",
            "line 21: destinations cannot be \"nowhere\": there is no such destination: write one",
            "line 22: \"secret\" is not known in [[routes]]",
        ] {
            assert!(ended.stderr.contains(fault), "{fault}: {}", ended.stderr);
        }
        assert!(!ended.stderr.contains("secret-"), "{}", ended.stderr);
    }
}
