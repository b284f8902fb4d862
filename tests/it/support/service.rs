//! The whole service in the test's process: real listeners, a real ledger, a clock that the test
//! moves.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cohort_bridge::app::App;
use cohort_bridge::cli::ServeArgs;
use cohort_bridge::clock::{Clock, ManualClock, Millis};
use cohort_bridge::cohort::SourceName;
use cohort_bridge::config::{Destination, LogFormat, SecretFiles, Settings, Source};
use cohort_bridge::http::authenticate::Credentials;
use cohort_bridge::mixpanel::IdentifierRules;
use cohort_bridge::secrets::Secrets;
use cohort_bridge::standin::{Endpoint, Environment, StandIn, StandInOptions};
use cohort_bridge::store::StoreError;
use cohort_bridge::trait_key::TraitKeyTemplate;
use reqwest::header::HeaderMap;
use serde_json::Value;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::process::{Variables, serve_variables};
use super::{destination, eventually, fast_temp_dir, shared_ledger};

/// When every test begins.
pub const START: Millis = 1_800_000_000_000;

/// Who sends.
pub const USER: &str = "mixpanel";
/// With which password.
pub const PASSWORD: &str = "pass:word";

/// What a test may want otherwise.
pub struct Setup {
    pub source: Source,
    pub more_sources: Vec<Source>,
    pub destination: Destination,
    pub max_connections: usize,
    pub max_body_bytes: usize,
}

/// A running service and what stands around it.
pub struct Service {
    pub stand_in: Arc<StandIn>,
    pub clock: ManualClock,
    pub webhook: SocketAddr,
    pub admin: SocketAddr,
    http: reqwest::Client,
    stop: CancellationToken,
    running: JoinHandle<anyhow::Result<()>>,
    folder: tempfile::TempDir,
}

/// An answer of either listener.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub text: String,
}

impl Answer {
    pub async fn of(response: reqwest::Response) -> Self {
        Answer {
            status: response.status().as_u16(),
            headers: response.headers().clone(),
            text: response.text().await.unwrap(),
        }
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("not JSON: {self:?}"))
    }
}

/// A client that no proxy variable of the machine leads astray.
pub fn client() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().build().unwrap()
}

/// A source that takes these credentials.
pub fn source(name: &str, credentials: Credentials) -> Source {
    Source {
        name: SourceName::from(name),
        credentials,
        identifier: IdentifierRules::default(),
        trait_key: TraitKeyTemplate::default(),
        explicit_keys: Vec::new(),
        hold_removals_above: None,
    }
}

/// A stand-in with one ordinary environment.
pub fn stand_in() -> StandIn {
    StandIn::start(StandInOptions::default()).unwrap()
}

/// The ordinary service before an ordinary stand-in.
pub async fn spawn_plain_app() -> Service {
    spawn_app(stand_in(), |_| {}).await
}

/// Starts a service on free ports with a fresh ledger, after `change` changed what it differs in.
pub async fn spawn_app(stand_in: StandIn, change: impl FnOnce(&mut Setup)) -> Service {
    let clock = ManualClock::at(START);
    start(fast_temp_dir(), Arc::new(stand_in), clock, change).await
}

async fn start(
    folder: tempfile::TempDir,
    stand_in: Arc<StandIn>,
    clock: ManualClock,
    change: impl FnOnce(&mut Setup),
) -> Service {
    let settings = settings(&folder, &stand_in, change);
    run(folder, stand_in, clock, settings, |app| app).await
}

/// The settings of a service whose ledger is in that folder.
pub fn settings(
    folder: &tempfile::TempDir,
    stand_in: &StandIn,
    change: impl FnOnce(&mut Setup),
) -> Settings {
    let credentials = Credentials::parse_basic(&format!("{USER}:{PASSWORD}")).unwrap();
    let mut setup = Setup {
        source: source("default", credentials),
        more_sources: Vec::new(),
        destination: destination(&stand_in.url(), &Environment::default().server_key),
        max_connections: 64,
        max_body_bytes: 1024 * 1024,
    };
    change(&mut setup);
    let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let sources = std::iter::once(setup.source).chain(setup.more_sources);
    Settings {
        listen: loopback,
        admin_listen: loopback,
        admin_token: None,
        database: shared_ledger::place_of(&folder.path().join("ledger.db")),
        sources: sources.map(Arc::new).collect(),
        destinations: vec![Arc::new(setup.destination)],
        routes: Default::default(),
        max_connections: setup.max_connections,
        max_body_bytes: setup.max_body_bytes,
        shutdown_grace: Duration::from_secs(5),
        log_format: LogFormat::Text,
        log_filter: "off".into(),
        warnings: Vec::new(),
    }
}

/// Starts a service on free ports with a fresh ledger, with these settings by variable, whose files
/// it looks at again; at once when told so.
pub async fn spawn_app_of_files(
    stand_in: &Arc<StandIn>,
    variables: &Variables,
) -> (Service, Arc<Notify>) {
    let folder = fast_temp_dir();
    let (settings, secrets, wanted) = settings_of_files(&folder, stand_in, variables);
    let clock = ManualClock::at(START);
    let keeping_up = |app: App| app.keeping_up(secrets);
    let service = run(folder, Arc::clone(stand_in), clock, settings, keeping_up).await;
    (service, wanted)
}

/// The same by variable, and what looks at their files.
pub fn settings_of_files(
    folder: &tempfile::TempDir,
    stand_in: &StandIn,
    variables: &Variables,
) -> (Settings, Secrets, Arc<Notify>) {
    let mut all = serve_variables(&folder.path().join("ledger.db"), &stand_in.url());
    all.retain(|name, _| !variables.contains_key(&format!("{name}_FILE")));
    all.extend(variables.clone());
    let environment = all.into_iter().collect();
    let (settings, files) = SecretFiles::read(ServeArgs::default(), environment).unwrap();
    let wanted = Arc::new(Notify::new());
    let secrets = Secrets::new(files, Arc::clone(&wanted));
    (settings, secrets, wanted)
}

async fn run(
    folder: tempfile::TempDir,
    stand_in: Arc<StandIn>,
    clock: ManualClock,
    settings: Settings,
    prepare: impl FnOnce(App) -> App,
) -> Service {
    // Another test that starts a process holds a copy of the lock between fork and exec.
    let app = eventually("the ledger is free", async || {
        match App::build(settings.clone(), Arc::new(clock.clone())).await {
            Err(error) if is_in_use(&error) => None,
            built => Some(built.unwrap()),
        }
    })
    .await;
    serve(folder, stand_in, clock, prepare(app))
}

/// Runs what is built.
pub fn serve(
    folder: tempfile::TempDir,
    stand_in: Arc<StandIn>,
    clock: ManualClock,
    app: App,
) -> Service {
    let stop = CancellationToken::new();
    Service {
        stand_in,
        clock,
        webhook: app.webhook_address(),
        admin: app.admin_address(),
        http: client(),
        stop: stop.clone(),
        running: tokio::spawn(app.run_until(stop)),
        folder,
    }
}

fn is_in_use(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<StoreError>();
    matches!(error, Some(StoreError::InUse { .. }))
}

impl Service {
    pub fn webhook_url(&self) -> String {
        format!("http://{}/webhooks/mixpanel", self.webhook)
    }

    pub fn ledger(&self) -> PathBuf {
        self.folder.path().join("ledger.db")
    }

    /// Sends a body with headers of its own.
    pub async fn post_with(&self, headers: HeaderMap, body: String) -> Answer {
        let request = self.http.post(self.webhook_url());
        Answer::of(request.headers(headers).body(body).send().await.unwrap()).await
    }

    /// `GET` of the admin listener, by whom that token makes an operator.
    pub async fn get_as(&self, token: &str, path: &str) -> Answer {
        let url = format!("http://{}{path}", self.admin);
        let request = self.http.get(url).bearer_auth(token);
        Answer::of(request.send().await.unwrap()).await
    }

    /// Sends a body as Mixpanel does.
    pub async fn post(&self, body: impl Into<Vec<u8>>) -> Answer {
        let request = self.http.post(self.webhook_url());
        let request = request
            .basic_auth(USER, Some(PASSWORD))
            .header("content-type", "application/json")
            .body(body.into());
        Answer::of(request.send().await.unwrap()).await
    }

    /// Sends a page that must be taken in.
    pub async fn send(&self, page: &Value) {
        let answer = self.post(page.to_string()).await;
        assert_eq!(answer.status, 200, "{answer:?} to {page}");
        assert_eq!(answer.json()["status"], "success");
        assert_eq!(answer.json()["action"], page["action"]);
    }

    /// `GET` of the admin listener.
    pub async fn get(&self, path: &str) -> Answer {
        let url = format!("http://{}{path}", self.admin);
        Answer::of(self.http.get(url).send().await.unwrap()).await
    }

    /// `POST` of the admin listener, without a body.
    pub async fn order(&self, path: &str) -> Value {
        let url = format!("http://{}{path}", self.admin);
        let answer = Answer::of(self.http.post(url).send().await.unwrap()).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()
    }

    pub async fn cohorts(&self) -> Vec<Value> {
        let reply = self.get("/api/v1/cohorts").await.json();
        reply["cohorts"].as_array().unwrap().clone()
    }

    /// State and reason of the one destination.
    pub async fn destination(&self) -> (String, String) {
        let status = self.get("/api/v1/status").await.json();
        let destination = &status["destinations"][0];
        let text = |field: &str| destination[field].as_str().unwrap_or_default().to_owned();
        (text("state"), text("reason"))
    }

    pub async fn dead_letters(&self) -> Vec<Value> {
        let reply = self.get("/api/v1/dead-letters").await.json();
        reply["dead_letters"]
            .as_array()
            .unwrap_or_else(|| panic!("{reply}"))
            .clone()
    }

    /// Whether every page found its place.
    pub async fn is_folded(&self) -> bool {
        self.get("/api/v1/status").await.json()["backlog"] == 0
    }

    /// Whether nothing is left to fold or to deliver.
    pub async fn is_settled(&self) -> bool {
        self.is_folded().await
            && self.cohorts().await.iter().all(|cohort| {
                let destinations = cohort["destinations"].as_array().unwrap();
                destinations.iter().all(|delivery| delivery["pending"] == 0)
            })
    }

    /// Traits that the first destination was not told of, over all cohorts.
    pub async fn pending(&self) -> u64 {
        let cohorts = self.cohorts().await;
        let pending = cohorts
            .iter()
            .filter_map(|cohort| cohort["destinations"][0]["pending"].as_u64());
        pending.sum()
    }

    pub async fn folded(&self) {
        eventually("every page folded", async || {
            self.is_folded().await.then_some(())
        })
        .await;
    }

    /// Waits until nothing is left to do; the clock stands still.
    pub async fn settled(&self) {
        eventually("everything delivered", async || {
            self.is_settled().await.then_some(())
        })
        .await;
    }

    /// As [`Service::settled`], while time passes.
    pub async fn settled_in_time(&self) {
        self.time_passes("everything delivered", async || self.is_settled().await)
            .await;
    }

    /// Lets a quarter of a second pass at each look until `condition` holds.
    pub async fn time_passes(&self, what: &str, mut condition: impl AsyncFnMut() -> bool) {
        eventually(what, async || {
            if condition().await {
                return Some(());
            }
            self.clock.advance(Duration::from_millis(250));
            None
        })
        .await;
    }

    /// Waits for the canary of the start, then forgets all calls so far.
    pub async fn canary_is_done(&self) {
        eventually("the canary is read back", async || {
            // Looked at before, and read back after.
            (self.stand_in.calls_to(Endpoint::Read) >= 2).then_some(())
        })
        .await;
        self.stand_in.forget_calls();
    }

    /// The value of a person's trait in Flagsmith: `None` where there is none.
    pub fn stored(&self, person: &str, key: &str) -> Option<bool> {
        self.stand_in.identity(person)?.get(key)?.as_bool()
    }

    /// Milliseconds since the start.
    pub fn elapsed_ms(&self) -> Millis {
        self.clock.now() - START
    }

    /// Stops in an orderly way and starts again over the same ledger, with other settings.
    pub async fn restarted(self, change: impl FnOnce(&mut Setup)) -> Service {
        let (stand_in, clock) = (Arc::clone(&self.stand_in), self.clock.clone());
        start(self.stop().await, stand_in, clock, change).await
    }

    /// What ended it, without being stopped.
    pub async fn failed(self) -> String {
        self.running.await.unwrap().unwrap_err().to_string()
    }

    /// Stops in an orderly way; gives back the ledger's folder.
    pub async fn stop(self) -> tempfile::TempDir {
        self.stop.cancel();
        self.running.await.unwrap().unwrap();
        self.folder
    }
}
