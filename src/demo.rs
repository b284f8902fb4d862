//! `cohort-bridge demo`: the whole way on one machine, without an account.
//!
//! Everything is real but Flagsmith: the listener, authentication, the ledger on disk, delivery
//! over HTTP. The stand-in answers as Flagsmith was measured to.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use secrecy::SecretString;
use serde::Deserialize;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::app::App;
use crate::clock::{Clock, Millis, SystemClock};
use crate::cohort::{DestinationName, OnLeave, SourceName};
use crate::config::{BlankEcho, Database, Destination, Kind, LogFormat, Settings, Source};
use crate::http::authenticate::{Credentials, DEFAULT_SOURCE};
use crate::mixpanel::IdentifierRules;
use crate::replay::Replay;
use crate::standin::{Endpoint, Environment, StandIn, StandInOptions};
use crate::trait_key::TraitKeyTemplate;

/// The fixtures, carried in the binary so that the demo runs anywhere.
pub const FIXTURES: &[(&str, &str)] = &include!("demo/fixtures.in");

/// How long everything may take before the demo gives up, in milliseconds.
const PATIENCE_MS: Millis = 60_000;

/// How often the demo looks whether everything is written, in milliseconds.
const LOOK_EVERY_MS: Millis = 50;

/// A cohort as `GET /api/v1/cohorts` tells of it.
#[derive(Debug, Deserialize)]
struct Cohort {
    name: String,
    trait_key: String,
    members: u64,
    destinations: Vec<Delivery>,
}

#[derive(Debug, Deserialize)]
struct Delivery {
    written: u64,
    pending: u64,
    dead: u64,
}

#[derive(Debug, Deserialize)]
struct Cohorts {
    cohorts: Vec<Cohort>,
}

#[derive(Debug, Deserialize)]
struct Status {
    backlog: u64,
}

/// Runs the demo and prints what came of it. Returns whether everything that the fixtures say is
/// in the stand-in. With `stay` the service stays up until `stop`.
///
/// # Errors
/// Where a part cannot be started or nothing comes to an end.
pub async fn demo(
    stay: bool,
    stop: CancellationToken,
    out: &mut (dyn Write + Send),
) -> anyhow::Result<bool> {
    let folder = tempfile::tempdir().context("no temporary folder for the ledger")?;
    let fixtures = folder.path().join("fixtures");
    unpack(&fixtures).context("the fixtures cannot be unpacked")?;
    let standin =
        StandIn::start(StandInOptions::default()).context("the stand-in Flagsmith cannot start")?;
    let password = fastrand::u128(..);
    let pair = format!("mixpanel:{password:032x}");
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let app = App::build(
        settings(folder.path(), &standin, &pair)?,
        Arc::clone(&clock),
    )
    .await?;
    let (webhook, admin) = (app.webhook_address(), app.admin_address());
    let stop_service = CancellationToken::new();
    let service = tokio::spawn(app.run_until(stop_service.clone()));

    writeln!(
        out,
        "webhook listener  http://{webhook}/webhooks/mixpanel (HTTP Basic)"
    )?;
    writeln!(out, "status page       http://{admin}/")?;
    writeln!(out, "stand-in          {}\n", standin.url())?;
    let replay = Replay {
        url: format!("http://{webhook}/webhooks/mixpanel").parse()?,
        basic_auth: Some(pair.parse()?),
        signing_secret: None,
        rate: None,
        shown_from: Some(folder.path().to_owned()),
        clock: Arc::clone(&clock),
    };
    let summary = replay.run(&[fixtures], out).await?;
    let cohorts = settled(&admin, clock.as_ref()).await?;
    let complete = report(&cohorts, &standin, out)? && summary.is_success();

    if stay {
        writeln!(
            out,
            "\nThe service stays up: http://{admin}/ (Ctrl-C ends it)"
        )?;
        out.flush()?;
        stop.cancelled().await;
    }
    stop_service.cancel();
    service.await.context("the service panicked")??;
    standin.stop().await;
    Ok(complete)
}

fn unpack(folder: &Path) -> std::io::Result<()> {
    std::fs::create_dir(folder)?;
    FIXTURES
        .iter()
        .try_for_each(|(name, content)| std::fs::write(folder.join(name), content))
}

fn settings(folder: &Path, standin: &StandIn, pair: &str) -> anyhow::Result<Settings> {
    let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let source = Source {
        name: SourceName::from(DEFAULT_SOURCE),
        credentials: Credentials::parse_basic(pair)?,
        identifier: IdentifierRules::default(),
        trait_key: TraitKeyTemplate::default(),
        explicit_keys: Vec::new(),
        hold_removals_above: None,
    };
    let destination = Destination {
        name: DestinationName::from("stand-in"),
        api_url: standin.url().parse()?,
        authorities: None,
        environment_key: SecretString::from(Environment::default().server_key),
        kind: Kind::Sdk,
        on_leave: OnLeave::False,
        blank_echo: BlankEcho::Halt,
        linger: Duration::from_millis(200),
        max_in_flight: 16,
        max_calls_per_second: None,
        call_budget: None,
        dry_run: false,
        late_write_window: Duration::from_secs(60),
        canary_interval: Duration::from_secs(15 * 60),
    };
    Ok(Settings {
        listen: loopback,
        admin_listen: loopback,
        admin_token: None,
        database: Database::Sqlite(folder.join("cohort-bridge.db")),
        sources: vec![Arc::new(source)],
        destinations: vec![Arc::new(destination)],
        routes: Default::default(),
        max_connections: 64,
        max_body_bytes: 16 * 1024 * 1024,
        shutdown_grace: Duration::from_secs(5),
        log_format: LogFormat::Text,
        log_filter: "warn".into(),
        warnings: Vec::new(),
    })
}

/// Waits until nothing is left to fold or to deliver.
async fn settled(admin: &SocketAddr, clock: &dyn Clock) -> anyhow::Result<Vec<Cohort>> {
    let client = reqwest::Client::builder().no_proxy().build()?;
    let give_up_at = clock.now() + PATIENCE_MS;
    let base = format!("http://{admin}/api/v1");
    while clock.now() < give_up_at {
        let status: Status = client
            .get(format!("{base}/status"))
            .send()
            .await?
            .json()
            .await?;
        let known: Cohorts = client
            .get(format!("{base}/cohorts"))
            .send()
            .await?
            .json()
            .await?;
        let mut deliveries = known.cohorts.iter().flat_map(|cohort| &cohort.destinations);
        if status.backlog == 0 && deliveries.all(|delivery| delivery.pending == 0) {
            return Ok(known.cohorts);
        }
        clock.sleep_until(clock.now() + LOOK_EVERY_MS).await;
    }
    bail!("not everything was written within a minute")
}

/// Compares what the service says with what the stand-in holds, cohort by cohort.
fn report(
    cohorts: &[Cohort],
    standin: &StandIn,
    out: &mut (dyn Write + Send),
) -> anyhow::Result<bool> {
    let stored = traits_stored(standin);
    let calls = standin.calls_by_trait();
    let width = cohorts
        .iter()
        .map(|cohort| cohort.trait_key.len())
        .max()
        .unwrap_or(0);
    writeln!(out, "\n{:width$}  true  false  calls  cohort", "trait key")?;
    let mut complete = true;
    for cohort in cohorts {
        let (members, leavers) = stored.get(&cohort.trait_key).copied().unwrap_or_default();
        let key_calls = calls.get(&cohort.trait_key).copied().unwrap_or_default();
        writeln!(
            out,
            "{:width$}  {members:4}  {leavers:5}  {key_calls:5}  {}",
            cohort.trait_key, cohort.name
        )?;
        let delivered = cohort
            .destinations
            .iter()
            .all(|delivery| delivery.written == cohort.members && delivery.dead == 0);
        if members != cohort.members || !delivered {
            writeln!(
                out,
                "  missing: {} members, {members} in the stand-in",
                cohort.members
            )?;
            complete = false;
        }
    }
    writeln!(
        out,
        "\n{} calls to Flagsmith, one an identity however many of its cohorts changed (and the canary's)",
        standin.calls_to(Endpoint::Write)
    )?;
    Ok(complete && !cohorts.is_empty())
}

/// How many identities hold each trait as `true` and as `false`.
fn traits_stored(standin: &StandIn) -> BTreeMap<String, (u64, u64)> {
    let mut counts: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    for (key, value) in standin.identities().into_values().flatten() {
        let count = counts.entry(key).or_default();
        match value {
            Value::Bool(true) => count.0 += 1,
            Value::Bool(false) => count.1 += 1,
            _ => {}
        }
    }
    counts
}
