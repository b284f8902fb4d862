//! Secrets that change while the service runs.

use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use cohort_bridge::clock::{Clock, Millis};
use cohort_bridge::signature::SigningSecret;
use cohort_bridge::standin::{Call, Endpoint, Fault, StandIn};
use reqwest::header::HeaderMap;
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::support::pages::{key, page_without_info, people};
use crate::support::process::{Process, Variables, serve_variables};
use crate::support::service::{Answer, Service, client, spawn_app_of_files};
use crate::support::{eventually, fast_temp_dir, ordinary_stand_in};

const BASIC: &str = "COHORT_BRIDGE_WEBHOOK_BASIC_AUTH_FILE";
const SIGNING: &str = "COHORT_BRIDGE_WEBHOOK_SIGNING_SECRET_FILE";
const TOKEN: &str = "COHORT_BRIDGE_ADMIN_TOKEN_FILE";
const KEY: &str = "COHORT_BRIDGE_FLAGSMITH_ENVIRONMENT_KEY_FILE";

const SECRETS: [&str; 2] = [
    "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD",
    "whsec_YWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFh",
];

/// Two environments; each has a server key and a client key that may write.
fn stand_in() -> Arc<StandIn> {
    ordinary_stand_in(&["main", "other"])
}

/// Files that hold one setting each, by its variable.
struct Files(tempfile::TempDir);

impl Files {
    fn new(texts: &[(&str, &str)]) -> Self {
        let files = Files(fast_temp_dir());
        for (variable, text) in texts {
            files.write(variable, text);
        }
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, variable: &str, text: &str) {
        std::fs::write(self.path(variable), text).unwrap();
    }

    fn variables(&self) -> Variables {
        let names = std::fs::read_dir(self.0.path()).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let names = names.filter(|name| name.starts_with("COHORT_BRIDGE_"));
        names
            .map(|name| (name.clone(), self.path(&name).display().to_string()))
            .collect()
    }
}

struct Setup {
    files: Files,
    service: Service,
    wanted: Arc<Notify>,
}

async fn start(stand_in: &Arc<StandIn>, texts: &[(&str, &str)]) -> Setup {
    let files = Files::new(&[&[(KEY, "ser.main")], texts].concat());
    let (service, wanted) = spawn_app_of_files(stand_in, &files.variables()).await;
    Setup {
        files,
        service,
        wanted,
    }
}

impl Setup {
    async fn refused(&self) -> Vec<Value> {
        let status = self.service.get("/api/v1/status").await.json();
        status["refused_secrets"].as_array().unwrap().clone()
    }

    async fn has_metric(&self, line: &str) -> bool {
        let text = self.service.get("/metrics").await.text;
        text.lines().any(|found| found == line)
    }

    /// Sends a page with a Basic pair.
    async fn send_as(&self, pair: &str) -> u16 {
        let mut headers = HeaderMap::new();
        let value = format!("Basic {}", BASE64_STANDARD.encode(pair));
        headers.insert("authorization", value.parse().unwrap());
        self.service.post_with(headers, page()).await.status
    }

    /// Sends a page signed with a secret.
    async fn send_signed(&self, secret: &str) -> u16 {
        let (seconds, body) = (self.service.clock.now() / 1_000, page());
        let signature =
            SigningSecret::parse(secret)
                .unwrap()
                .sign("msg_1", seconds, body.as_bytes());
        let mut headers = HeaderMap::new();
        headers.insert("webhook-id", "msg_1".parse().unwrap());
        headers.insert("webhook-timestamp", seconds.into());
        headers.insert("webhook-signature", signature.parse().unwrap());
        self.service.post_with(headers, body).await.status
    }

    async fn asked_as(&self, token: &str) -> u16 {
        let answer = self.service.get_as(token, "/api/v1/dead-letters").await;
        answer.status
    }
}

fn page() -> String {
    page_without_info("add_members", "c", &["ann"]).to_string()
}

/// Whatever may be used goes from the old to both and to the new, and is never turned away meanwhile.
async fn rolls(
    setup: &Setup,
    variable: &str,
    [old, new]: [&str; 2],
    mut used: impl AsyncFnMut(&str) -> u16,
) {
    assert_eq!((used(old).await, used(new).await), (200, 401));
    setup.files.write(variable, &format!("{old}\n{new}\n"));
    let both = async || {
        assert_eq!(used(old).await, 200);
        used(new).await == 200
    };
    setup.service.time_passes("both are taken", both).await;
    setup.files.write(variable, new);
    let only_new = async || {
        assert_eq!(used(new).await, 200);
        used(old).await == 401
    };
    setup.service.time_passes("the old is not", only_new).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_basic_pair_is_rolled_without_a_request_refused() {
    let setup = start(&stand_in(), &[(BASIC, "mix:old")]).await;
    let used = async |pair: &str| setup.send_as(pair).await;
    rolls(&setup, BASIC, ["mix:old", "mix:new"], used).await;
    setup.service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signing_secret_is_rolled_without_a_request_refused() {
    let setup = start(&stand_in(), &[(BASIC, "m:p"), (SIGNING, SECRETS[0])]).await;
    let used = async |secret: &str| setup.send_signed(secret).await;
    rolls(&setup, SIGNING, SECRETS, used).await;
    assert_eq!(setup.send_as("m:p").await, 200, "it was not touched");
    setup.service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_admin_token_takes_the_place_of_the_one_before() {
    let setup = start(&stand_in(), &[(TOKEN, "old\n")]).await;
    assert_eq!(setup.asked_as("old").await, 200);
    assert_eq!(setup.asked_as("new").await, 401);
    setup.files.write(TOKEN, "new\n");
    let taken = async || setup.asked_as("new").await == 200;
    setup.service.time_passes("the new one", taken).await;
    assert_eq!(setup.asked_as("old").await, 401);
    setup.service.stop().await;
}

/// A running service that told everybody, and whose first canary is done.
async fn told(stand_in: &Arc<StandIn>, everybody: &[String]) -> Setup {
    let setup = start(stand_in, &[(TOKEN, "old")]).await;
    eventually("the first canary", async || {
        (stand_in.calls_to(Endpoint::Read) >= 2).then_some(())
    })
    .await;
    add(&setup, everybody).await;
    setup.service.settled_in_time().await;
    stand_in.forget_calls();
    setup
}

async fn add(setup: &Setup, people: &[String]) {
    let page = page_without_info("add_members", "c", people);
    setup.service.send(&page).await;
}

fn has_all(stand_in: &StandIn, environment: &str, people: &[String]) -> bool {
    let there = stand_in.identities_of(environment);
    let told = |person| there.get(person)?.get(&key("c"));
    people
        .iter()
        .all(|person| told(person) == Some(&json!(true)))
}

#[tokio::test(flavor = "multi_thread")]
async fn another_key_of_the_same_environment_has_nothing_written_again() {
    let stand_in = stand_in();
    let everybody = people("p", 50);
    let setup = told(&stand_in, &everybody).await;
    for another in ["client-main", "ser.main"] {
        stand_in.forget_calls();
        setup.files.write(KEY, another);
        let judged = async || stand_in.calls_to(Endpoint::Read) >= 2;
        setup.service.time_passes("a canary at once", judged).await;
    }
    let more = people("q", 7);
    add(&setup, &more).await;
    setup.service.settled_in_time().await;
    assert!(has_all(&stand_in, "ser.main", &more));
    assert_eq!(stand_in.calls_by_trait()[&key("c")], 57);
    let status = setup.service.get("/api/v1/status").await.json();
    assert_eq!(status["destinations"][0]["warning"], Value::Null);
    assert_eq!(status["destinations"][0]["state"], "ok");
    assert!(setup.service.elapsed_ms() < minutes(15), "no other canary");
    setup.service.stop().await;
}

fn minutes(minutes: Millis) -> Millis {
    minutes * 60_000
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_of_another_environment_has_everything_written_there() {
    let stand_in = stand_in();
    let everybody = people("p", 50);
    let setup = told(&stand_in, &everybody).await;
    setup.files.write(KEY, "ser.other");
    let all_there = async || has_all(&stand_in, "ser.other", &everybody);
    setup.service.time_passes("all there", all_there).await;
    let status = setup.service.get("/api/v1/status").await.json();
    let warning = status["destinations"][0]["warning"].as_str().unwrap();
    assert!(warning.contains("Everything is written again"), "{warning}");
    let more = people("q", 7);
    add(&setup, &more).await;
    setup.service.settled_in_time().await;
    assert!(has_all(&stand_in, "ser.other", &more));
    assert!(!has_all(&stand_in, "ser.main", &more[..1]));

    // And back: what was said meanwhile was said elsewhere.
    setup.files.write(KEY, "ser.main");
    let back = async || has_all(&stand_in, "ser.main", &more);
    setup.service.time_passes("all there again", back).await;
    setup.service.settled_in_time().await;

    // What was said of the key before is not said of another one to the same environment.
    setup.files.write(KEY, "client-main");
    let silent = async || {
        let status = setup.service.get("/api/v1/status").await.json();
        status["destinations"][0]["warning"].is_null()
    };
    setup.service.time_passes("no warning", silent).await;
    assert!(setup.service.elapsed_ms() < minutes(15), "no other canary");
    setup.service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_under_way_ends_before_delivery_begins_with_another_key() {
    let stand_in = stand_in();
    let setup = told(&stand_in, &people("p", 3)).await;
    stand_in.fault_for(|call: &Call<'_>| call.is_about("ann").then_some(Fault::Hold));
    add(&setup, &["ann".to_owned()]).await;
    let calling = async || is_calling(&setup).await;
    setup.service.time_passes("a call", calling).await;
    setup.files.write(KEY, "client-main");
    setup.files.write(TOKEN, "new");
    let taken = async || setup.asked_as("new").await == 200;
    setup.service.time_passes("another key", taken).await;
    assert!(is_calling(&setup).await);
    // The front door does not notice.
    let more = people("q", 7);
    add(&setup, &more).await;
    stand_in.clear_faults();
    stand_in.release();
    setup.service.settled_in_time().await;
    assert!(has_all(&stand_in, "ser.main", &more));
    assert!(has_all(&stand_in, "ser.main", &["ann".to_owned()]));
    let traits = stand_in.calls_by_trait();
    assert_eq!(traits[&key("c")], 3 + 8, "each was called for once");
    setup.service.stop().await;
}

async fn is_calling(setup: &Setup) -> bool {
    let status = setup.service.get("/api/v1/status").await.json();
    status["destinations"][0]["in_flight"] == 1
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destination_that_halted_for_its_key_goes_on_with_a_good_one() {
    let stand_in = stand_in();
    let setup = start(&stand_in, &[(KEY, "ser.revoked")]).await;
    let halted = async || setup.service.destination().await.0 == "halted";
    setup.service.time_passes("halted", halted).await;
    let everybody = people("p", 5);
    add(&setup, &everybody).await;
    setup.files.write(KEY, "ser.main");
    let all_there = async || has_all(&stand_in, "ser.main", &everybody);
    setup.service.time_passes("all there", all_there).await;
    assert_eq!(setup.service.destination().await.0, "ok");
    setup.service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_used_is_refused_and_told_until_it_is_mended() {
    let setup = start(&stand_in(), &[(BASIC, "mix:old")]).await;
    assert_eq!(setup.refused().await, [] as [Value; 0]);
    assert!(setup.has_metric("cohort_bridge_secrets_refused 0").await);
    let path = setup.files.path(BASIC);
    let bad: [(&str, &dyn Fn()); 4] = [
        ("no colon", &|| setup.files.write(BASIC, "mixnew")),
        ("it is empty", &|| setup.files.write(BASIC, "")),
        ("No such file", &|| std::fs::remove_file(&path).unwrap()),
        ("not a regular file", &|| {
            symlink("/dev/zero", &path).unwrap()
        }),
    ];
    for (failures, (words, spoil)) in (1..).zip(bad) {
        spoil();
        let told = async || match &setup.refused().await[..] {
            [refused] => refused["reason"].as_str().unwrap().contains(words),
            _ => false,
        };
        setup.service.time_passes(words, told).await;
        // Looked at again and again, and told once.
        setup.service.clock.advance(Duration::from_secs(60));
        let counted = format!("cohort_bridge_secret_reload_failures_total {failures}");
        assert!(setup.has_metric(&counted).await, "{counted}");
        assert!(setup.has_metric("cohort_bridge_secrets_refused 1").await);
        assert_eq!(setup.send_as("mix:old").await, 200);
    }
    let refused = &setup.refused().await[0];
    assert_eq!(refused["setting"], BASIC);
    assert_eq!(refused["file"], path.display().to_string());
    let page = setup.service.get("/").await.text;
    assert!(
        page.contains("Refused secrets") && page.contains(BASIC),
        "{page}"
    );
    assert!(!page.contains("mixnew"));

    std::fs::remove_file(&path).unwrap();
    setup.files.write(BASIC, "mix:new");
    let healed = async || setup.send_as("mix:new").await == 200;
    setup.service.time_passes("healed", healed).await;
    assert_eq!(setup.send_as("mix:old").await, 401);
    assert_eq!(setup.refused().await, [] as [Value; 0]);
    assert!(setup.has_metric("cohort_bridge_secrets_refused 0").await);
    setup.service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mounted_secret_is_followed_when_kubernetes_turns_it_over() {
    let files = Files::new(&[]);
    let mount = |version: &str, pair: &str| {
        std::fs::create_dir(files.path(version)).unwrap();
        std::fs::write(files.path(version).join("pair"), pair).unwrap();
        symlink(version, files.path("..data_tmp")).unwrap();
        std::fs::rename(files.path("..data_tmp"), files.path("..data")).unwrap();
    };
    mount("..1", "mix:old");
    symlink("..data/pair", files.path(BASIC)).unwrap();
    let (service, wanted) = spawn_app_of_files(&stand_in(), &files.variables()).await;
    mount("..2", "mix:new");
    std::fs::remove_dir_all(files.path("..1")).unwrap();
    let files = Files(fast_temp_dir());
    let setup = Setup {
        files,
        service,
        wanted,
    };
    let taken = async || setup.send_as("mix:new").await == 200;
    setup.service.time_passes("followed", taken).await;
    assert_eq!(setup.send_as("mix:old").await, 401);
    setup.service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_cannot_wait_has_them_looked_at_at_once() {
    let setup = start(&stand_in(), &[(BASIC, "mix:old")]).await;
    setup.files.write(BASIC, "mix:new");
    setup.wanted.notify_one();
    let taken = async || setup.send_as("mix:new").await == 200;
    setup.service.time_passes("taken", taken).await;
    assert!(setup.service.elapsed_ms() < 10_000, "before the next look");
    setup.service.stop().await;
}

const SETTINGS: &str = "
[[sources]]
name = 'us'
basic_auth_file = 'us.password'
[[sources]]
name = 'eu'
basic_auth = 'eu:secret-1'
[[destinations]]
name = 'one'
environment_key_file = 'one.key'
[[destinations]]
name = 'two'
environment_key_file = 'two.key'
";

#[tokio::test(flavor = "multi_thread")]
async fn a_hangup_signal_has_the_files_of_the_settings_file_looked_at() {
    let stand_in = stand_in();
    let files = Files::new(&[
        ("settings.toml", SETTINGS),
        ("us.password", "us:secret-1\n"),
        ("one.key", "ser.main\n"),
        ("two.key", "ser.other\n"),
    ]);
    let ledger = fast_temp_dir();
    let mut variables = serve_variables(&ledger.path().join("ledger.db"), &stand_in.url());
    for secret in ["WEBHOOK_BASIC_AUTH", "FLAGSMITH_ENVIRONMENT_KEY"] {
        variables.remove(&format!("COHORT_BRIDGE_{secret}"));
    }
    let file = files.path("settings.toml").display().to_string();
    variables.insert("COHORT_BRIDGE_CONFIG".into(), file);
    let mut process = Process::serve(&variables).await;
    let sent = async |process: &Process, path: &str, pair: &str| {
        let (user, password) = pair.split_once(':').unwrap();
        let request = client().post(format!("{}{path}", process.webhook_url()));
        let request = request.basic_auth(user, Some(password)).body(page());
        Answer::of(request.send().await.unwrap()).await.status
    };
    assert_eq!(sent(&process, "/us", "us:secret-1").await, 200);

    files.write("us.password", "us:secret-2\n");
    files.write("two.key", "secret 3");
    files.write(
        "settings.toml",
        "[[sources]]\nname = 'us'\nbasic_auth = 'secret-4'\n",
    );
    process.signal("HUP");
    process.line("SIGHUP: the secret files are looked at").await;
    let taken = process
        .line("a secret changed: the new one is in force")
        .await;
    assert_eq!(taken["setting"], "basic_auth_file of [[sources]]");
    let refused = "a secret file cannot be used: the secret before it stays in force";
    let refused = process.line(refused).await;
    assert_eq!(refused["level"], "ERROR");
    assert!(refused["file"].as_str().unwrap().ends_with("two.key"));
    let restart = "a file that is read at the start alone is not as it was then: a restart is needed for it to count";
    assert_eq!(process.line(restart).await["level"], "WARN");
    assert_eq!(sent(&process, "/us", "us:secret-2").await, 200);
    assert_eq!(sent(&process, "/us", "us:secret-1").await, 401);
    assert_eq!(sent(&process, "/eu", "eu:secret-1").await, 200);
    // Another key of the one environment: the other destination is not touched.
    files.write("one.key", "client-main");
    process.signal("HUP");
    let begun = process
        .line("delivery begins with the new environment key")
        .await;
    assert_eq!(begun["destination"], "one");
    process.settled().await;
    process.terminate();
    assert_eq!(process.ended().await, Some(0));
    let output = process.output();
    assert!(
        !output.contains("secret-") && !output.contains("secret 3"),
        "{output}"
    );
    assert!(!output.contains("ser.main") && !output.contains("ser.other"));
    let begun = output.matches("delivery begins with the new environment key");
    assert_eq!(begun.count(), 1);
}
