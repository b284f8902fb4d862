//! What the benches share: a lean load generator, the real binary, and quantiles.
#![allow(dead_code)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cohort_bridge::standin::{Endpoint, StandIn};

pub const AUTH: &str = "bench:secret";
/// base64 of [`AUTH`].
const AUTH_BASE64: &str = "YmVuY2g6c2VjcmV0";

/// One keep-alive connection that sends prepared requests.
pub struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    pub fn to(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("the service listens");
        stream.set_nodelay(true).expect("a socket option");
        Connection {
            stream,
            buffer: vec![0; 64 * 1024],
        }
    }

    /// Sends the request and returns the status and the body.
    pub fn send(&mut self, request: &[u8]) -> (u16, String) {
        self.stream.write_all(request).expect("the service reads");
        let mut filled = 0;
        loop {
            let read = self
                .stream
                .read(&mut self.buffer[filled..])
                .expect("the service answers");
            assert!(read > 0, "the connection was closed");
            filled += read;
            let text = String::from_utf8_lossy(&self.buffer[..filled]);
            if let Some(end) = text.find("\r\n\r\n") {
                let length: usize = text[..end]
                    .lines()
                    .find_map(|line| {
                        line.to_ascii_lowercase()
                            .strip_prefix("content-length: ")
                            .map(String::from)
                    })
                    .and_then(|length| length.trim().parse().ok())
                    .unwrap_or(0);
                if filled >= end + 4 + length {
                    let status = text[9..12].parse().expect("a status");
                    return (status, text[end + 4..].to_string());
                }
                if self.buffer.len() < end + 4 + length {
                    self.buffer.resize(end + 4 + length, 0);
                }
            }
        }
    }
}

/// A webhook request.
pub fn webhook(body: &str) -> Vec<u8> {
    format!(
        "POST /webhooks/mixpanel HTTP/1.1\r\nhost: bench\r\nauthorization: Basic {AUTH_BASE64}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

pub fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n").into_bytes()
}

/// How the identifiers of a bench look.
#[derive(Clone, Copy)]
pub enum Ids {
    /// `usr_00000042`
    Sequential,
    /// Like a UUID, in no order.
    Random,
}

pub fn identifier(ids: Ids, number: usize) -> String {
    match ids {
        Ids::Sequential => format!("usr_{number:08}"),
        Ids::Random => {
            // SplitMix64: as good as random, and the same in every run.
            let mix = |seed: u64| {
                let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
                z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
                z ^ (z >> 31)
            };
            let (a, b) = (mix(number as u64), mix(number as u64 ^ 0xffff_0000_0000));
            format!(
                "{:08x}-{:04x}-4{:03x}-a{:03x}-{:012x}",
                a >> 32,
                (a >> 16) & 0xffff,
                a & 0xfff,
                (b >> 48) & 0xfff,
                b & 0xffff_ffff_ffff
            )
        }
    }
}

/// Page `page` (from 1) of a session, with what Mixpanel sends of a person by default.
pub fn page(
    action: &str,
    cohort: &str,
    session: &str,
    page: usize,
    total: usize,
    members: usize,
    ids: Ids,
) -> String {
    let first = (page - 1) * members;
    let people: Vec<_> = (first..first + members).collect();
    page_of(action, cohort, session, (page, total), &people, ids)
}

/// A page of whoever has these numbers.
pub fn page_of(
    action: &str,
    cohort: &str,
    session: &str,
    (page, total): (usize, usize),
    people: &[usize],
    ids: Ids,
) -> String {
    let mut body = format!(
        r#"{{"action":"{action}","parameters":{{"mixpanel_project_id":"2914407","mixpanel_cohort_id":"{cohort}","mixpanel_cohort_name":"Bench {cohort}","mixpanel_session_id":"{session}","page_info":{{"total_pages":{total},"page_count":{page}}},"members":["#
    );
    for (at, number) in people.iter().enumerate() {
        if at > 0 {
            body.push(',');
        }
        let id = identifier(ids, *number);
        body.push_str(&format!(
            r#"{{"mixpanel_distinct_id":"{id}","email":"{id}@bench.example","first_name":"Ines","last_name":"Calado"}}"#
        ));
    }
    body.push_str("]}}");
    body
}

/// A quantile of sorted times, in milliseconds.
pub fn quantile_ms(sorted: &[Duration], quantile: f64) -> f64 {
    let at = ((sorted.len() as f64 * quantile) as usize).min(sorted.len() - 1);
    sorted[at].as_secs_f64() * 1_000.0
}

/// The real binary, serving.
pub struct Service {
    child: Child,
    pub webhook: SocketAddr,
    pub admin: SocketAddr,
    pub started_in: Duration,
}

impl Service {
    pub fn start(ledger: &Path, flagsmith: &str) -> Self {
        Self::start_with(ledger, flagsmith, &[])
    }

    /// With more settings, by variable.
    pub fn start_with(ledger: &Path, flagsmith: &str, settings: &[(&str, &str)]) -> Self {
        let binary = Command::new(env!("CARGO_BIN_EXE_cohort-bridge"));
        Self::start_as(binary, ledger, flagsmith, settings)
    }

    /// By a command that ends in the binary: a tool that watches it, say.
    pub fn start_as(
        mut command: Command,
        ledger: &Path,
        flagsmith: &str,
        settings: &[(&str, &str)],
    ) -> Self {
        let (webhook, admin) = (free_port(), free_port());
        let begun = Instant::now();
        let child = command
            .arg("serve")
            .env("DATABASE_URL", database_url(ledger))
            .env("COHORT_BRIDGE_LISTEN", webhook.to_string())
            .env("COHORT_BRIDGE_ADMIN_LISTEN", admin.to_string())
            .env("COHORT_BRIDGE_WEBHOOK_BASIC_AUTH", AUTH)
            .env("COHORT_BRIDGE_FLAGSMITH_API_URL", flagsmith)
            .env("COHORT_BRIDGE_FLAGSMITH_ENVIRONMENT_KEY", "ser.server-key")
            .env("RUST_LOG", "warn")
            .envs(settings.iter().copied())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the binary starts");
        loop {
            if let Ok(stream) = TcpStream::connect(admin) {
                drop(stream);
                if Connection::to(admin).send(&get("/readyz")).0 == 200 {
                    break;
                }
            }
            std::thread::yield_now();
        }
        Service {
            child,
            webhook,
            admin,
            started_in: begun.elapsed(),
        }
    }

    /// Resident memory in bytes.
    pub fn resident(&self) -> u64 {
        std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))
            .unwrap_or_default()
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .and_then(|line| {
                line.trim()
                    .trim_end_matches(" kB")
                    .trim()
                    .parse::<u64>()
                    .ok()
            })
            .unwrap_or(0)
            * 1024
    }

    /// The highest resident memory so far, in bytes.
    pub fn peak_resident(&self) -> u64 {
        std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))
            .unwrap_or_default()
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))
            .and_then(|line| {
                line.trim()
                    .trim_end_matches(" kB")
                    .trim()
                    .parse::<u64>()
                    .ok()
            })
            .unwrap_or(0)
            * 1024
    }

    /// Seconds of processor time so far.
    pub fn cpu_seconds(&self) -> f64 {
        let stat =
            std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap_or_default();
        let fields: Vec<&str> = stat
            .rsplit(')')
            .next()
            .unwrap_or("")
            .split_whitespace()
            .collect();
        let ticks: f64 = [11, 12]
            .iter()
            .filter_map(|at| fields.get(*at)?.parse::<f64>().ok())
            .sum();
        ticks / 100.0
    }

    pub fn json(&self, path: &str) -> serde_json::Value {
        let (_, body) = Connection::to(self.admin).send(&get(path));
        serde_json::from_str(&body).unwrap_or_default()
    }

    pub fn terminate(mut self) {
        let _ = Command::new("kill")
            .arg(self.child.id().to_string())
            .status();
        let _ = self.child.wait();
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn free_port() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .expect("a free port")
}

/// A folder on the disk that the build uses: a ledger in memory would flatter.
pub fn disk_folder() -> tempfile::TempDir {
    let target = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    tempfile::tempdir_in(target).expect("a folder under target")
}

/// A ledger in which these many identities are pending: received and folded while Flagsmith was
/// down.
pub fn fill(ledger: &Path, identities: usize) {
    let service = Service::start(ledger, "http://127.0.0.1:9/api/v1/");
    let pages = identities / 1_000;
    let mut connection = Connection::to(service.webhook);
    for number in 1..=pages {
        let body = page(
            "members",
            "bench",
            "bench",
            number,
            pages,
            1_000,
            Ids::Sequential,
        );
        assert_eq!(connection.send(&webhook(&body)).0, 200);
    }
    while service.json("/api/v1/status")["backlog"] != 0 {
        std::thread::sleep(Duration::from_millis(20));
    }
    service.terminate();
}

/// Calls a second, from now until the stand-in was written to so many times.
pub fn rate_until(standin: &StandIn, calls: usize) -> f64 {
    let begun = Instant::now();
    let at_start = standin.calls_to(Endpoint::Write);
    let mut reached = at_start;
    while reached < calls as u64 {
        std::thread::sleep(Duration::from_millis(1));
        reached = standin.calls_to(Endpoint::Write);
    }
    (reached - at_start) as f64 / begun.elapsed().as_secs_f64()
}

pub fn is_pending(service: &Service) -> bool {
    service.json("/api/v1/cohorts")["cohorts"][0]["destinations"][0]["pending"] != 0
}

/// Where the ledger is: in that file, or where `BENCH_DATABASE_URL` says (an empty PostgreSQL database,
/// for one run).
pub fn database_url(ledger: &std::path::Path) -> String {
    std::env::var("BENCH_DATABASE_URL").unwrap_or_else(|_| format!("sqlite://{}", ledger.display()))
}
