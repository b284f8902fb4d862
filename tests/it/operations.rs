//! The real binary: settings, commands, signals, what it shows of itself and what it never shows.

use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use cohort_bridge::demo::FIXTURES;
use cohort_bridge::standin::{Fault, StandIn, StandInOptions, Switch};
use serde_json::{Value, json};

use crate::support::pages::{key, page_without_info};
use crate::support::process::{Process, Variables, run, serve_variables};
use crate::support::service::{Answer, PASSWORD, USER, client, stand_in};
use crate::support::shared_ledger;
use crate::support::{calls_are_held, environment, eventually, fast_temp_dir};

const SIGNING_SECRET: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";

fn changed(variables: &Variables, changes: &[(&str, &str)]) -> Variables {
    let mut variables = variables.clone();
    for (name, value) in changes {
        variables.insert((*name).to_owned(), (*value).to_owned());
    }
    variables
}

async fn post(process: &Process, page: &Value) -> Answer {
    let request = client()
        .post(process.webhook_url())
        .basic_auth(USER, Some(PASSWORD))
        .body(page.to_string());
    Answer::of(request.send().await.unwrap()).await
}

/// Runs an operator's command against a running service.
fn operate(process: &Process, arguments: &[&str]) -> String {
    let url = process.admin_url("/");
    let ended = run(
        arguments,
        &changed(&Variables::new(), &[("COHORT_BRIDGE_ADMIN_URL", &url)]),
    );
    assert_eq!(ended.code, Some(0), "{arguments:?}: {ended:?}");
    ended.stdout
}

/// Flag, variable and default of every setting of `serve`, as dashboards and manifests know them.
const SETTINGS: &[(&str, &str, &str)] = &[
    ("--listen", "COHORT_BRIDGE_LISTEN", "0.0.0.0:8080"),
    (
        "--admin-listen",
        "COHORT_BRIDGE_ADMIN_LISTEN",
        "127.0.0.1:9090",
    ),
    ("--admin-token", "COHORT_BRIDGE_ADMIN_TOKEN", "none"),
    (
        "--database-url",
        "DATABASE_URL",
        "sqlite://cohort-bridge.db",
    ),
    (
        "--webhook-basic-auth",
        "COHORT_BRIDGE_WEBHOOK_BASIC_AUTH",
        "none",
    ),
    (
        "--webhook-signing-secret",
        "COHORT_BRIDGE_WEBHOOK_SIGNING_SECRET",
        "none",
    ),
    ("--allow-unauthenticated", "flag only", "off"),
    (
        "--flagsmith-api-url",
        "COHORT_BRIDGE_FLAGSMITH_API_URL",
        "https://edge.api.flagsmith.com/api/v1/",
    ),
    (
        "--flagsmith-environment-key",
        "COHORT_BRIDGE_FLAGSMITH_ENVIRONMENT_KEY",
        "required",
    ),
    (
        "--identifier-property",
        "COHORT_BRIDGE_IDENTIFIER_PROPERTY",
        "mixpanel_distinct_id",
    ),
    (
        "--trait-key",
        "COHORT_BRIDGE_TRAIT_KEY",
        "mixpanel_cohort_{name}",
    ),
    ("--flagsmith-kind", "COHORT_BRIDGE_FLAGSMITH_KIND", "sdk"),
    ("--anonymous", "COHORT_BRIDGE_ANONYMOUS", "skip"),
    (
        "--hold-removals-above",
        "COHORT_BRIDGE_HOLD_REMOVALS_ABOVE",
        "none",
    ),
    ("--on-leave", "COHORT_BRIDGE_ON_LEAVE", "false"),
    (
        "--late-write-window",
        "COHORT_BRIDGE_LATE_WRITE_WINDOW",
        "60s",
    ),
    ("--blank-echo", "COHORT_BRIDGE_BLANK_ECHO", "halt"),
    ("--canary-interval", "COHORT_BRIDGE_CANARY_INTERVAL", "15m"),
    ("--max-connections", "COHORT_BRIDGE_MAX_CONNECTIONS", "4096"),
    ("--linger", "COHORT_BRIDGE_LINGER", "1s"),
    ("--max-in-flight", "COHORT_BRIDGE_MAX_IN_FLIGHT", "64"),
    (
        "--max-calls-per-second",
        "COHORT_BRIDGE_MAX_CALLS_PER_SECOND",
        "none",
    ),
    ("--call-budget", "COHORT_BRIDGE_CALL_BUDGET", "none"),
    ("--dry-run", "COHORT_BRIDGE_DRY_RUN", "false"),
    ("--max-body-size", "COHORT_BRIDGE_MAX_BODY_SIZE", "16MiB"),
    ("--shutdown-grace", "COHORT_BRIDGE_SHUTDOWN_GRACE", "25s"),
    ("--log-format", "COHORT_BRIDGE_LOG_FORMAT", "json"),
    ("--config", "COHORT_BRIDGE_CONFIG", "none"),
];

#[test]
fn help_names_every_setting_with_variable_and_default() {
    let help = run(&["serve", "--help"], &Variables::new());
    assert_eq!(help.code, Some(0));
    // One line a setting, however the terminal would break them.
    let text = help.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
    for (at, (flag, variable, default)) in SETTINGS.iter().enumerate() {
        let begins = format!(" {flag} ");
        let from = text
            .find(&begins)
            .unwrap_or_else(|| panic!("{flag}: {text}"));
        let until = text[from + begins.len()..]
            .find(']')
            .map(|end| {
                text[from + begins.len() + end..]
                    .find(" --")
                    .map_or(text.len(), |more| from + begins.len() + end + more)
            })
            .unwrap_or(text.len());
        let section = &text[from..until];
        assert!(section.contains(variable), "{at} {flag}: {section}");
        assert!(section.contains(default), "{at} {flag}: {section}");
    }
    for (_, variable, _) in SETTINGS {
        let secret = ["TOKEN", "AUTH", "SECRET", "KEY", "DATABASE_URL"]
            .iter()
            .any(|ending| variable.ends_with(ending));
        if secret && *variable != "COHORT_BRIDGE_TRAIT_KEY" {
            assert!(text.contains(&format!("{variable}_FILE")), "{variable}");
        }
    }
    for command in [
        "demo",
        "replay",
        "check",
        "dead-letters",
        "resync",
        "retire",
        "held-removals",
        "cohorts",
        "member",
        "forget",
    ] {
        let overview = run(&["--help"], &Variables::new()).stdout;
        assert!(overview.contains(&format!("  {command} ")), "{overview}");
        assert_eq!(run(&[command, "--help"], &Variables::new()).code, Some(0));
    }
}

#[test]
fn all_faults_of_the_settings_are_told_at_once_and_no_secret() {
    let folder = fast_temp_dir();
    let good = serve_variables(
        &folder.path().join("ledger.db"),
        "http://127.0.0.1:1/api/v1/",
    );
    let faults = [
        ("COHORT_BRIDGE_LISTEN", "nowhere"),
        ("COHORT_BRIDGE_WEBHOOK_BASIC_AUTH", "onlyhushhush"),
        ("COHORT_BRIDGE_WEBHOOK_SIGNING_SECRET", "whsec_hushhush"),
        ("COHORT_BRIDGE_FLAGSMITH_API_URL", "ftp://hushhush@x"),
        ("COHORT_BRIDGE_FLAGSMITH_ENVIRONMENT_KEY", "hush\nhush"),
        ("DATABASE_URL", "mysql://user:hushhush@db/x"),
        ("COHORT_BRIDGE_LINGER", "soon"),
        ("COHORT_BRIDGE_MAX_IN_FLIGHT", "0"),
        ("COHORT_BRIDGE_MAX_BODY_SIZE", "16 apples"),
        ("COHORT_BRIDGE_ON_LEAVE", "forget"),
        ("COHORT_BRIDGE_ANONYMOUS", "maybe"),
        ("COHORT_BRIDGE_BLANK_ECHO", "shrug"),
        ("COHORT_BRIDGE_FLAGSMITH_KIND", "bulk"),
        ("COHORT_BRIDGE_TRAIT_KEY", "{nome}"),
        ("COHORT_BRIDGE_LOG_FORMAT", "xml"),
        ("COHORT_BRIDGE_MAX_IN_FLIHGT", "64"),
        ("RUST_LOG", "inof"),
    ];
    for command in ["serve", "check"] {
        let ended = run(&[command], &changed(&good, &faults));
        assert_eq!(ended.code, Some(2), "{ended:?}");
        for (variable, _) in faults {
            assert!(
                ended.stderr.contains(variable),
                "{variable}: {}",
                ended.stderr
            );
        }
        assert!(!ended.stderr.contains("hush"), "{}", ended.stderr);
        assert!(!ended.stdout.contains("hush"), "{}", ended.stdout);
    }
    assert!(
        !folder.path().join("ledger.db").exists(),
        "nothing was begun"
    );

    let mut nothing = good.clone();
    nothing.remove("COHORT_BRIDGE_WEBHOOK_BASIC_AUTH");
    nothing.remove("COHORT_BRIDGE_FLAGSMITH_ENVIRONMENT_KEY");
    let ended = run(&["serve"], &nothing);
    assert_eq!(ended.code, Some(2));
    assert!(
        ended.stderr.contains("COHORT_BRIDGE_WEBHOOK_BASIC_AUTH"),
        "{}",
        ended.stderr
    );
    assert!(
        ended
            .stderr
            .contains("COHORT_BRIDGE_FLAGSMITH_ENVIRONMENT_KEY")
    );
    assert_eq!(run(&["serve", "--lisen", "x"], &good).code, Some(2));
    assert_eq!(run(&["srve"], &good).code, Some(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_may_come_from_files_and_kubernetes_may_inject() {
    let folder = fast_temp_dir();
    let stand_in = stand_in();
    let mut variables = serve_variables(&folder.path().join("ledger.db"), &stand_in.url());
    for name in [
        "COHORT_BRIDGE_WEBHOOK_BASIC_AUTH",
        "COHORT_BRIDGE_FLAGSMITH_ENVIRONMENT_KEY",
    ] {
        let value = variables.remove(name).unwrap();
        let file = folder.path().join(name);
        std::fs::write(&file, format!("{value}\n")).unwrap();
        variables.insert(format!("{name}_FILE"), file.display().to_string());
    }
    let variables = changed(
        &variables,
        &[
            ("COHORT_BRIDGE_SERVICE_HOST", "10.0.0.1"),
            ("COHORT_BRIDGE_PORT_8080_TCP_ADDR", "10.0.0.1"),
        ],
    );
    let process = Process::serve(&variables).await;
    assert_eq!(
        post(&process, &page_without_info("add_members", "c", &["ann"]))
            .await
            .status,
        200
    );
    process.settled().await;
    assert!(stand_in.identity("ann").is_some());

    let gone = changed(
        &variables,
        &[(
            "COHORT_BRIDGE_FLAGSMITH_ENVIRONMENT_KEY_FILE",
            "/nowhere/key",
        )],
    );
    let ended = run(&["check"], &gone);
    assert_eq!(ended.code, Some(2));
    assert!(
        ended
            .stderr
            .contains("COHORT_BRIDGE_FLAGSMITH_ENVIRONMENT_KEY_FILE"),
        "{}",
        ended.stderr
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_start_on_the_same_ledger_is_refused() {
    if shared_ledger::is_wanted() {
        // There several replicas share one.
        return;
    }
    let folder = fast_temp_dir();
    let stand_in = stand_in();
    let variables = serve_variables(&folder.path().join("ledger.db"), &stand_in.url());
    let mut process = Process::serve(&variables).await;
    let second = run(&["serve"], &variables);
    assert_eq!(second.code, Some(1), "{second:?}");
    assert!(
        second.stderr.contains("in use by another cohort-bridge"),
        "{}",
        second.stderr
    );
    assert!(second.stderr.contains("DATABASE_URL"), "{}", second.stderr);
    assert_eq!(
        post(&process, &page_without_info("add_members", "c", &["ann"]))
            .await
            .status,
        200
    );
    process.settled().await;
    // A lock that a killed process leaves behind bars nobody.
    process.kill();
    let again = Process::serve(&variables).await;
    assert_eq!(
        again.get("/api/v1/cohorts").await.json()["cohorts"][0]["members"],
        1
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_finishes_what_is_in_flight_and_exits_0() {
    let folder = fast_temp_dir();
    let stand_in = stand_in();
    let variables = serve_variables(&folder.path().join("ledger.db"), &stand_in.url());
    let mut process = Process::serve(&variables).await;
    stand_in.fault_for(|call| (call.identifier == "ann").then_some(Fault::Hold));
    assert_eq!(
        post(&process, &page_without_info("add_members", "c", &["ann"]))
            .await
            .status,
        200
    );
    calls_are_held(&stand_in, 1).await;
    process.terminate();
    let http = client();
    eventually("not ready", async || {
        match http.get(process.admin_url("/readyz")).send().await {
            Ok(answer) => (answer.status() == 503).then_some(()),
            Err(_) => Some(()),
        }
    })
    .await;
    let closed = eventually("no new pages", async || {
        let request = http
            .post(process.webhook_url())
            .basic_auth(USER, Some(PASSWORD))
            .body(page_without_info("add_members", "c", &["bob"]).to_string());
        match request.send().await {
            Ok(answer) if answer.status() == 200 => None,
            Ok(answer) => Some(Some(answer.status().as_u16())),
            Err(_) => Some(None),
        }
    })
    .await;
    assert!(matches!(closed, None | Some(503)), "{closed:?}");
    assert!(process.is_running(), "a call is in flight");
    stand_in.release();
    assert_eq!(process.ended().await, Some(0));
    assert!(TcpStream::connect(process.webhook).is_err());
    let stored = stand_in.identity("ann").unwrap();
    assert_eq!(stored.get(&key("c")), Some(&json!(true)));
    // What was finished was settled as well: nothing is called again.
    stand_in.clear_faults();
    let pending = "SELECT count(*) FROM pending WHERE identifier = 'ann'";
    let ledger = folder.path().join("ledger.db");
    assert_eq!(shared_ledger::number(&ledger, pending), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_grace_ends_what_does_not_end() {
    let folder = fast_temp_dir();
    let stand_in = stand_in();
    let variables = changed(
        &serve_variables(&folder.path().join("ledger.db"), &stand_in.url()),
        &[("COHORT_BRIDGE_SHUTDOWN_GRACE", "1s")],
    );
    let mut process = Process::serve(&variables).await;
    stand_in.fault_for(|call| (call.identifier == "ann").then_some(Fault::Hang));
    post(&process, &page_without_info("add_members", "c", &["ann"])).await;
    calls_are_held(&stand_in, 1).await;
    process.terminate();
    let ended = tokio::time::timeout(Duration::from_secs(10), process.ended()).await;
    assert_eq!(ended.expect("within the grace, generously"), Some(0));
    // It is written all the same, by the next one.
    stand_in.clear_faults();
    let again = Process::serve(&changed(
        &variables,
        &[("COHORT_BRIDGE_LATE_WRITE_WINDOW", "1s")],
    ))
    .await;
    again.settled().await;
    assert_eq!(
        stand_in.identity("ann").unwrap().get(&key("c")),
        Some(&json!(true))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn health_and_metrics_have_their_names() {
    let folder = fast_temp_dir();
    let stand_in = stand_in();
    let process = Process::serve(&serve_variables(
        &folder.path().join("ledger.db"),
        &stand_in.url(),
    ))
    .await;
    post(
        &process,
        &page_without_info("add_members", "c", &["ann", " padded"]),
    )
    .await;
    process.settled().await;
    assert_eq!(process.get("/livez").await.status, 200);
    assert_eq!(process.get("/readyz").await.status, 200);
    let page = process.get("/").await;
    assert_eq!(page.status, 200);
    assert!(page.text.contains("mixpanel_cohort_c"), "{}", page.text);
    let metrics = process.get("/metrics").await.text;
    for name in [
        "cohort_bridge_webhook_requests_total{action=\"add_members\",source=\"default\",status=\"200\"} 1",
        "cohort_bridge_webhook_request_duration_seconds_bucket",
        "cohort_bridge_members_received_total{action=\"add_members\",source=\"default\"} 2",
        "cohort_bridge_members_set_aside_total{reason=\"padded\",source=\"default\"} 1",
        "cohort_bridge_trait_writes_total{destination=\"default\",outcome=\"written\"} 1",
        "cohort_bridge_flagsmith_requests_total{destination=\"default\",status=\"200\"}",
        "cohort_bridge_flagsmith_request_duration_seconds",
        "cohort_bridge_pending{destination=\"default\"} 0",
        "cohort_bridge_dead{destination=\"default\"} 0",
        "cohort_bridge_oldest_pending_seconds{destination=\"default\"} 0",
        "cohort_bridge_last_heard_timestamp_seconds{cohort_id=\"c\",source=\"default\"}",
        "cohort_bridge_destination_halted{destination=\"default\"} 0",
    ] {
        assert!(metrics.contains(name), "{name}:\n{metrics}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_name_nobody_and_no_secret_even_at_trace() {
    let folder = fast_temp_dir();
    let stand_in = stand_in();
    let variables = changed(
        &serve_variables(&folder.path().join("ledger.db"), &stand_in.url()),
        &[
            ("RUST_LOG", "trace"),
            ("COHORT_BRIDGE_WEBHOOK_SIGNING_SECRET", SIGNING_SECRET),
            ("COHORT_BRIDGE_ADMIN_TOKEN", "admin-token-for-the-test"),
        ],
    );
    let mut process = Process::serve(&variables).await;
    stand_in.fault_for(|call| match call.identifier {
        "secret-person-bad" => Some(Fault::answer(
            400,
            r#"{"identifier":["secret-person-bad"]}"#,
        )),
        "secret-person-sick" => Some(Fault::status(500)),
        _ => None,
    });
    let people = [
        "secret-person-ann",
        "secret-person-bad",
        "secret-person-sick",
        " secret-person-padded",
    ];
    let page = page_without_info("add_members", "c", &people);
    assert_eq!(post(&process, &page).await.status, 200);
    let http = client();
    // Refused in every way, with people in path, header and body.
    for (path, password) in [("", "wrong-password-1"), ("/nobody-of-this-name", PASSWORD)] {
        let request = http.post(format!("{}{path}", process.webhook_url()));
        let request = request
            .basic_auth(USER, Some(password))
            .body(page.to_string());
        assert!(request.send().await.unwrap().status().is_client_error());
    }
    let broken = page.to_string().replace(
        "\"add_members\"",
        "\"add_members\",\"action\":\"secret-person-x\"",
    );
    let request = http
        .post(process.webhook_url())
        .basic_auth(USER, Some(PASSWORD))
        .body(broken);
    assert_eq!(request.send().await.unwrap().status(), 400);
    eventually("ann is written, bad is dead", async || {
        let cohort = process.get("/api/v1/cohorts").await.json()["cohorts"][0].clone();
        let delivery = &cohort["destinations"][0];
        (delivery["written"] == 1 && delivery["dead"] == 1).then_some(())
    })
    .await;
    let request = http.get(process.admin_url("/api/v1/members/secret-person-ann"));
    let member = Answer::of(
        request
            .bearer_auth("admin-token-for-the-test")
            .send()
            .await
            .unwrap(),
    )
    .await;
    assert_eq!(member.json()["cohorts"][0]["member"], true);
    assert_eq!(
        process
            .get("/api/v1/members/secret-person-ann")
            .await
            .status,
        401
    );
    process.terminate();
    assert_eq!(process.ended().await, Some(0));

    let output = process.output();
    let mut lines = 0;
    let mut recorded = None;
    for line in output.lines() {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("not JSON: {line}"));
        lines += 1;
        if line["message"] == "page recorded" {
            recorded = Some(line);
        }
    }
    assert!(lines > 5, "{output}");
    let recorded = recorded.expect("a line for the page");
    assert_eq!(recorded["members"], 4);
    assert_eq!(recorded["set_aside"], 1);
    let has_request_id = recorded.to_string().contains("request_id");
    assert!(has_request_id, "{recorded}");
    assert!(
        output.contains("dead letter"),
        "the dead person is told of, by hash"
    );
    let basic = "bWl4cGFuZWw6cGFzczp3b3Jk";
    for secret in [
        "secret-person",
        "mail.example",
        "Forename",
        "Surname",
        PASSWORD,
        basic,
        "wrong-password",
        "ser.server-key",
        "C2FVsBQIhrscChlQIMV",
        "admin-token-for-the-test",
    ] {
        assert!(!output.contains(secret), "{secret} in the log:\n{output}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn check_says_whether_a_written_trait_stays() {
    let folder = fast_temp_dir();
    let stand_in = StandIn::start(StandInOptions {
        environments: vec![
            environment("main", &[Switch::StoresTraits]),
            environment("forgetful", &[]),
        ],
        ..StandInOptions::default()
    })
    .unwrap();
    let variables = serve_variables(&folder.path().join("ledger.db"), &stand_in.url());
    let with_key = |key| {
        changed(
            &variables,
            &[("COHORT_BRIDGE_FLAGSMITH_ENVIRONMENT_KEY", key)],
        )
    };

    let good = run(&["check"], &with_key("ser.main"));
    assert_eq!(good.code, Some(0), "{good:?}");
    assert!(good.stdout.contains("read back"), "{}", good.stdout);
    assert!(
        good.stdout.contains("cohort_bridge_canary"),
        "it names the identity"
    );
    let known: Vec<_> = stand_in.identities().into_keys().collect();
    assert_eq!(known, ["cohort_bridge_check"]);
    let tables = "SELECT count(*) FROM pending";
    let ledger = folder.path().join("ledger.db");
    assert_eq!(
        shared_ledger::number(&ledger, tables),
        0,
        "the ledger is migrated"
    );

    for (key, reason) in [
        ("ser.nobody", "COHORT_BRIDGE_FLAGSMITH_ENVIRONMENT_KEY"),
        ("ser.forgetful", "stores no traits"),
        ("client-main", "use a server-side key"),
    ] {
        let bad = run(&["check"], &with_key(key));
        assert_eq!(bad.code, Some(1), "{key}: {bad:?}");
        assert!(bad.stdout.contains(reason), "{key}: {}", bad.stdout);
        assert!(!bad.stdout.contains(key), "{key}: {}", bad.stdout);
    }
    stand_in.stop().await;
    let down = run(&["check"], &with_key("ser.main"));
    assert_eq!(down.code, Some(1));
    assert!(down.stdout.contains("cannot be reached"), "{}", down.stdout);
}

#[tokio::test(flavor = "multi_thread")]
async fn replay_of_the_fixtures_succeeds_and_of_the_refused_fails() {
    let folder = fast_temp_dir();
    let stand_in = stand_in();
    let variables = changed(
        &serve_variables(&folder.path().join("ledger.db"), &stand_in.url()),
        &[("COHORT_BRIDGE_WEBHOOK_SIGNING_SECRET", SIGNING_SECRET)],
    );
    let process = Process::serve(&variables).await;
    let url = process.webhook_url();
    let replay = |path: &str, proof: &[&str]| {
        let arguments = [&["replay", "--url", &url], proof, &[path]].concat();
        run(&arguments, &Variables::new())
    };
    let basic = ["--basic-auth", "mixpanel:pass:word"];
    // First, since a property that was never sent is refused only until it was.
    let refused = replay("fixtures/refused", &basic);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    let readme = std::fs::read_to_string("fixtures/README.md").unwrap();
    let (_, table) = readme.split_once("## refused/").unwrap();
    let files = names("fixtures/refused");
    assert!(files.len() >= 12);
    for file in &files {
        assert!(
            table.contains(&format!("| `{file}` | ")),
            "{file} is not explained"
        );
        let line = refused
            .stdout
            .lines()
            .find(|line| line.contains(file.as_str()));
        let line = line.unwrap_or_else(|| panic!("{file}: {}", refused.stdout));
        assert!(line.contains("400"), "{line}");
    }
    let explained = table.lines().filter(|line| line.starts_with("| `")).count();
    assert_eq!(explained, files.len());
    assert_eq!(
        process.get("/api/v1/cohorts").await.json()["cohorts"],
        json!([])
    );

    assert_eq!(
        replay("fixtures", &["--basic-auth", "mixpanel:wrong"]).code,
        Some(1)
    );
    let ended = replay("fixtures", &basic);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    process.settled().await;
    assert_ends_as_the_fixtures_say(&process, &stand_in).await;
    let signed = replay("fixtures", &["--signing-secret", SIGNING_SECRET]);
    assert_eq!(signed.code, Some(0), "{signed:?}");
}

/// The file names of a folder's payloads, in order.
fn names(folder: &str) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(folder))
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_type().unwrap().is_file())
        .map(|entry| entry.file_name().into_string().unwrap())
        .filter(|name| name != "README.md")
        .collect();
    names.sort();
    names
}

/// The table 'How it ends' of the fixtures' README: cohort, members, leavers.
fn ends() -> Vec<(String, u64, u64)> {
    let readme = std::fs::read_to_string("fixtures/README.md").unwrap();
    let (_, table) = readme.split_once("How it ends").unwrap();
    let rows = table.split("## refused").next().unwrap().lines();
    rows.filter_map(|row| {
        let mut cells = row.split('|').skip(1).map(str::trim);
        let cohort = cells.next()?;
        let members = cells.next()?.parse().ok()?;
        let left = cells.next()?.parse().ok()?;
        Some((cohort.to_owned(), members, left))
    })
    .collect()
}

async fn assert_ends_as_the_fixtures_say(process: &Process, stand_in: &StandIn) {
    let reply = process.get("/api/v1/cohorts").await.json();
    let cohorts = reply["cohorts"].as_array().unwrap();
    let ends = ends();
    assert_eq!(cohorts.len(), ends.len());
    let identities = stand_in.identities();
    for (id, members, left) in ends {
        let cohort = cohorts.iter().find(|cohort| cohort["cohort_id"] == *id);
        let cohort = cohort.unwrap_or_else(|| panic!("{id}"));
        let key = cohort["trait_key"].as_str().unwrap();
        let count = |value: bool| {
            let with = identities
                .values()
                .filter(|traits| traits.get(key) == Some(&json!(value)));
            with.count() as u64
        };
        assert_eq!((count(true), count(false)), (members, left), "{id} {key}");
        assert_eq!(cohort["members"], members, "{id}");
    }
}

#[test]
fn the_demo_shows_every_cohort_of_the_fixtures_and_exits_0() {
    let demo = run(&["demo"], &Variables::new());
    assert_eq!(demo.code, Some(0), "{demo:?}");
    assert!(demo.stdout.contains("trait key"), "{}", demo.stdout);
    let (_, table) = demo.stdout.split_once("trait key").unwrap();
    let mut rows: Vec<(u64, u64)> = table
        .lines()
        .filter(|line| line.starts_with("mixpanel_cohort_"))
        .map(|line| {
            let mut cells = line
                .split_whitespace()
                .skip(1)
                .map(|cell| cell.parse().unwrap_or(u64::MAX));
            (cells.next().unwrap(), cells.next().unwrap())
        })
        .collect();
    let mut expected: Vec<_> = ends()
        .into_iter()
        .map(|(_, members, left)| (members, left))
        .collect();
    rows.sort_unstable();
    expected.sort_unstable();
    assert_eq!(rows, expected, "{}", demo.stdout);
    assert!(!demo.stdout.contains("  missing:"), "{}", demo.stdout);
}

#[test]
fn the_demo_carries_the_very_fixtures() {
    let carried: Vec<_> = FIXTURES
        .iter()
        .map(|(name, _)| (*name).to_owned())
        .collect();
    assert_eq!(carried, names("fixtures"));
    for (name, content) in FIXTURES {
        let file = std::fs::read(Path::new("fixtures").join(name)).unwrap();
        assert!(content.as_bytes() == file, "{name}");
    }
    let readme = std::fs::read_to_string("fixtures/README.md").unwrap();
    for name in names("fixtures") {
        let row = readme
            .lines()
            .find(|line| line.starts_with(&format!("| `{name}` |")));
        let row = row.unwrap_or_else(|| panic!("{name} has no provenance"));
        assert!(
            ["docs", "seen", "variant"]
                .iter()
                .any(|from| row.contains(&format!("| {from} |"))),
            "{row}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_sees_cohorts_people_and_dead_letters() {
    let folder = fast_temp_dir();
    let stand_in = stand_in();
    let variables = serve_variables(&folder.path().join("ledger.db"), &stand_in.url());
    // What is written again is watched for so long.
    let window = ("COHORT_BRIDGE_LATE_WRITE_WINDOW", "1s");
    let process = Process::serve(&changed(&variables, &[window])).await;
    stand_in.fault_for(|call| {
        (call.identifier == "bad").then(|| Fault::answer(400, r#"{"x":["no"]}"#))
    });
    post(
        &process,
        &page_without_info("add_members", "c", &["ann", "bad"]),
    )
    .await;
    process.settled().await;

    let cohorts = operate(&process, &["cohorts"]);
    assert!(cohorts.contains("mixpanel_cohort_c"), "{cohorts}");
    let json: Value = serde_json::from_str(&operate(&process, &["cohorts", "--json"])).unwrap();
    assert_eq!(json["cohorts"][0]["members"], 2);
    let ann = operate(&process, &["member", "ann"]);
    assert!(
        ann.contains("mixpanel_cohort_c") && ann.contains("written"),
        "{ann}"
    );
    let bad = operate(&process, &["member", "bad"]);
    assert!(bad.contains("dead") && bad.contains("400"), "{bad}");
    let letters = operate(&process, &["dead-letters", "list"]);
    assert!(
        letters.contains("bad") && !letters.contains("ann"),
        "{letters}"
    );

    stand_in.clear_faults();
    operate(&process, &["dead-letters", "retry", "--identifier", "ann"]);
    process.settled().await;
    assert!(stand_in.identity("bad").is_none(), "it was not meant");
    operate(&process, &["dead-letters", "retry", "--identifier", "bad"]);
    process.settled().await;
    assert_eq!(
        stand_in.identity("bad").unwrap().get(&key("c")),
        Some(&json!(true))
    );
    assert!(!operate(&process, &["dead-letters", "list"]).contains("bad"));

    stand_in.forget_calls();
    operate(&process, &["resync", "default", "c"]);
    process.settled().await;
    assert_eq!(
        stand_in.calls().into_values().sum::<u64>(),
        2,
        "both again, and nothing else"
    );

    stand_in.fault_for(|call| {
        (call.identifier == "bad").then(|| Fault::answer(400, r#"{"x":["no"]}"#))
    });
    post(
        &process,
        &page_without_info("remove_members", "c", &["bad"]),
    )
    .await;
    process.settled().await;
    operate(&process, &["dead-letters", "drop"]);
    assert!(!operate(&process, &["dead-letters", "list"]).contains("bad"));

    let nowhere = run(
        &["cohorts", "--admin-url", "http://127.0.0.1:1/"],
        &Variables::new(),
    );
    assert_eq!(nowhere.code, Some(1));
}
