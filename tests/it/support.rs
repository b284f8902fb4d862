//! What the tests share.

pub mod bench;
pub mod bridge;
pub mod daemon;
pub mod front;
pub mod ledger;
pub mod nginx;
pub mod noting;
pub mod pages;
pub mod pgbouncer;
pub mod postgres;
pub mod process;
pub mod programs;
pub mod resyncs;
pub mod routed;
pub mod service;
pub mod shared;
pub mod shared_ledger;
pub mod stores;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use cohort_bridge::cohort::OnLeave;
use cohort_bridge::config::{BlankEcho, Destination, Kind};
use cohort_bridge::route::Routes;
use cohort_bridge::standin::{Environment, StandIn, StandInOptions, Switch};
use cohort_bridge::store::LedgerStore;
use cohort_bridge::store::{DestinationRules, SourceRules, StoreError};

/// A temporary directory, in memory where the machine has one: for tests that are about logic, not
/// about the disk.
pub fn fast_temp_dir() -> tempfile::TempDir {
    let memory = std::path::Path::new("/dev/shm");
    if memory.is_dir()
        && let Ok(dir) = tempfile::tempdir_in(memory)
    {
        return dir;
    }
    tempfile::tempdir().expect("a temporary directory")
}

/// An answer as it came over the wire.
#[derive(Debug)]
pub struct RawAnswer {
    pub status: u16,
    pub content_type: String,
    pub location: Option<String>,
    pub body: Vec<u8>,
}

/// One request on a connection of its own, written by hand: no HTTP library tidies it up.
pub fn raw(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(String, String)],
    body: &[u8],
) -> RawAnswer {
    let mut connection = TcpStream::connect(address).unwrap();
    let mut request = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n");
    let is_chunked = headers.iter().any(|(name, _)| name == "Transfer-Encoding");
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    if !is_chunked && method != "GET" {
        request.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    request.push_str("\r\n");
    let mut bytes = request.into_bytes();
    if is_chunked {
        bytes.extend(format!("{:x}\r\n", body.len()).bytes());
        bytes.extend_from_slice(body);
        bytes.extend_from_slice(b"\r\n0\r\n\r\n");
    } else {
        bytes.extend_from_slice(body);
    }
    connection.write_all(&bytes).unwrap();
    let mut answer = Vec::new();
    connection.read_to_end(&mut answer).unwrap();
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
    let head = String::from_utf8(answer[..end].to_vec()).unwrap();
    let field = |wanted: &str| {
        head.lines().skip(1).find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            name.eq_ignore_ascii_case(wanted).then(|| value.to_owned())
        })
    };
    RawAnswer {
        status: head.split(' ').nth(1).unwrap().parse().unwrap(),
        content_type: field("content-type").unwrap_or_default(),
        location: field("location"),
        body: answer[end + 4..].to_vec(),
    }
}

/// A destination at this address with this key; everything else at its plainest.
pub fn destination(url: &str, key: &str) -> Destination {
    Destination {
        name: "default".into(),
        api_url: url.parse().unwrap(),
        authorities: None,
        environment_key: key.into(),
        kind: Kind::Sdk,
        on_leave: OnLeave::False,
        blank_echo: BlankEcho::Halt,
        linger: Duration::ZERO,
        max_in_flight: 8,
        max_calls_per_second: None,
        call_budget: None,
        dry_run: false,
        late_write_window: Duration::from_secs(60),
        canary_interval: Duration::from_secs(900),
    }
}

/// An environment with keys `client-NAME` and `ser.NAME`.
pub fn environment(name: &str, switches: &[Switch]) -> Environment {
    Environment {
        client_key: format!("client-{name}"),
        server_key: format!("ser.{name}"),
        switches: switches.to_vec(),
        ..Environment::default()
    }
}

/// A stand-in with ordinary environments of these names: each key may write, and what is written
/// stays.
pub fn ordinary_stand_in(names: &[&str]) -> std::sync::Arc<StandIn> {
    let switches = [Switch::StoresTraits, Switch::ClientMaySetTraits];
    let environments = names.iter().map(|name| environment(name, &switches));
    let options = StandInOptions {
        environments: environments.collect(),
        ..StandInOptions::default()
    };
    std::sync::Arc::new(StandIn::start(options).unwrap())
}

/// A stand-in with one environment of each kind.
pub fn stand_in_of_all_kinds() -> StandIn {
    use Switch::{ClientMaySetTraits, HidesSensitiveData, Stopped, StoresTraits};
    StandIn::start(StandInOptions {
        environments: vec![
            environment("main", &[ClientMaySetTraits, StoresTraits]),
            environment("barred", &[StoresTraits]),
            environment(
                "hiding",
                &[ClientMaySetTraits, StoresTraits, HidesSensitiveData],
            ),
            environment("hiding-barred", &[StoresTraits, HidesSensitiveData]),
            environment("forgetful", &[ClientMaySetTraits]),
            environment(
                "forgetful-hiding",
                &[ClientMaySetTraits, HidesSensitiveData],
            ),
            environment("stopped", &[ClientMaySetTraits, StoresTraits, Stopped]),
        ],
        ..StandInOptions::default()
    })
    .unwrap()
}

/// How long a condition may take to come true; far more than any should need, since the machine
/// may be busy with other things.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// How often a condition is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(4);

/// The same over PostgreSQL, where each statement is a question to another process: a clock that moves
/// with every look would outrun it.
const LOOK_AT_POSTGRES_EVERY: Duration = Duration::from_millis(25);

/// Looks again and again until `look` finds something.
///
/// # Panics
/// Where it found nothing for [`PATIENCE`], twice as long over PostgreSQL.
pub async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let (every, patience) = match shared_ledger::is_wanted() {
        true => (LOOK_AT_POSTGRES_EVERY, 2 * PATIENCE),
        false => (LOOK_EVERY, PATIENCE),
    };
    let looking = async {
        let mut interval = tokio::time::interval(every);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            if let Some(found) = look().await {
                return found;
            }
        }
    };
    match tokio::time::timeout(patience, looking).await {
        Ok(found) => found,
        Err(_) => panic!("waited in vain: {what}"),
    }
}

/// Waits until the stand-in holds so many calls, and not for ever.
pub async fn calls_are_held(stand_in: &StandIn, calls: usize) {
    let held = tokio::time::timeout(2 * PATIENCE, stand_in.held(calls)).await;
    assert!(held.is_ok(), "waited in vain: {calls} calls held");
}

/// Opens a ledger once it is free: another test that starts a process holds a copy of the lock
/// between fork and exec.
pub fn open_ledger(
    path: &std::path::Path,
    source: SourceRules,
    destination: DestinationRules,
) -> std::sync::Arc<LedgerStore> {
    open_routed_ledger(path, vec![source], vec![destination], Routes::default())
}

/// The same, with as many sources and destinations as there are.
pub fn open_routed_ledger(
    path: &std::path::Path,
    sources: Vec<SourceRules>,
    destinations: Vec<DestinationRules>,
    routes: Routes,
) -> std::sync::Arc<LedgerStore> {
    if shared_ledger::is_wanted() {
        let store = shared_ledger::open(path, sources, destinations, routes);
        return std::sync::Arc::new(store);
    }
    let begun = std::time::Instant::now();
    loop {
        let (sources, destinations) = (sources.clone(), destinations.clone());
        match LedgerStore::open_routed(path, sources, destinations, routes.clone()) {
            Err(StoreError::InUse { .. }) if begun.elapsed() < PATIENCE => std::thread::yield_now(),
            opened => return std::sync::Arc::new(opened.expect("the ledger opens")),
        }
    }
}
