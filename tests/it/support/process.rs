//! The real binary.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use serde_json::Value;

use super::eventually;
use super::service::{Answer, PASSWORD, USER, client};
use super::shared_ledger::{self, database_url};

/// Settings by variable.
pub type Variables = BTreeMap<String, String>;

/// The settings of a service on free ports, in words for `serve`.
pub fn serve_variables(ledger: &Path, api_url: &str) -> Variables {
    let set = [
        ("DATABASE_URL", database_url(ledger)),
        ("COHORT_BRIDGE_LISTEN", "127.0.0.1:0".to_owned()),
        ("COHORT_BRIDGE_ADMIN_LISTEN", "127.0.0.1:0".to_owned()),
        (
            "COHORT_BRIDGE_WEBHOOK_BASIC_AUTH",
            format!("{USER}:{PASSWORD}"),
        ),
        ("COHORT_BRIDGE_FLAGSMITH_API_URL", api_url.to_owned()),
        (
            "COHORT_BRIDGE_FLAGSMITH_ENVIRONMENT_KEY",
            "ser.server-key".to_owned(),
        ),
        ("COHORT_BRIDGE_LINGER", "0ms".to_owned()),
        ("COHORT_BRIDGE_LOG_FORMAT", "json".to_owned()),
    ];
    set.into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

/// How a command ended.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

fn command(arguments: &[&str], variables: &Variables) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cohort-bridge"));
    command
        .args(arguments)
        .env_clear()
        .envs(variables)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stdin(Stdio::null());
    command
}

/// Runs a command to its end.
pub fn run(arguments: &[&str], variables: &Variables) -> Ended {
    let output = command(arguments, variables).output().unwrap();
    Ended {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Starts a command; what it writes can be read while it runs.
pub fn spawn(arguments: &[&str], variables: &Variables) -> Child {
    let mut command = command(arguments, variables);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

/// A running `serve`. Dropping it kills it.
pub struct Process {
    child: Child,
    output: Arc<Mutex<String>>,
    pub webhook: SocketAddr,
    pub admin: SocketAddr,
}

impl Process {
    /// Starts the service and waits until it is ready.
    pub async fn serve(variables: &Variables) -> Self {
        if let Some(url) = variables.get("DATABASE_URL") {
            shared_ledger::expire_lease_of_the_killed(url);
        }
        let mut child = command(&["serve"], variables)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let output = Arc::new(Mutex::new(String::new()));
        keep(child.stdout.take().unwrap(), Arc::clone(&output));
        keep(child.stderr.take().unwrap(), Arc::clone(&output));
        let unbound = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut process = Process {
            child,
            output,
            webhook: unbound,
            admin: unbound,
        };
        let line = process.line("cohort-bridge is up").await;
        process.webhook = line["webhook"].as_str().unwrap().parse().unwrap();
        process.admin = line["admin"].as_str().unwrap().parse().unwrap();
        let http = client();
        eventually("the service is ready", async || {
            let ready = http.get(process.admin_url("/readyz")).send().await.ok()?;
            (ready.status() == 200).then_some(())
        })
        .await;
        process
    }

    /// Everything written so far, to standard output and standard error.
    pub fn output(&self) -> String {
        self.output.lock().unwrap().clone()
    }

    /// Waits for the log line with this message.
    pub async fn line(&mut self, message: &str) -> Value {
        eventually(message, async || {
            let found = self.output().lines().find_map(|line| {
                let line: Value = serde_json::from_str(line).ok()?;
                (line["message"] == message).then_some(line)
            });
            if found.is_none()
                && let Some(status) = self.child.try_wait().unwrap()
            {
                panic!("ended with {status}: {}", self.output());
            }
            found
        })
        .await
    }

    pub fn webhook_url(&self) -> String {
        format!("http://{}/webhooks/mixpanel", self.webhook)
    }

    pub fn admin_url(&self, path: &str) -> String {
        format!("http://{}{path}", self.admin)
    }

    pub async fn get(&self, path: &str) -> Answer {
        Answer::of(client().get(self.admin_url(path)).send().await.unwrap()).await
    }

    /// Waits until nothing is left to fold or to deliver.
    pub async fn settled(&self) {
        eventually("everything delivered", async || {
            let status = self.get("/api/v1/status").await.json();
            let cohorts = self.get("/api/v1/cohorts").await.json();
            let cohorts = cohorts["cohorts"].as_array()?;
            let delivered = cohorts
                .iter()
                .all(|cohort| cohort["destinations"][0]["pending"] == 0);
            (status["backlog"] == 0 && delivered).then_some(())
        })
        .await;
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM; does not wait.
    pub fn terminate(&self) {
        self.signal("TERM");
    }

    /// Sends a signal.
    pub fn signal(&self, name: &str) {
        let kill = format!("kill -{name} {}", self.child.id());
        let status = Command::new("sh").args(["-c", &kill]).status().unwrap();
        assert!(status.success());
    }

    /// Waits for the end; the exit code.
    pub async fn ended(&mut self) -> Option<i32> {
        eventually("the process ends", async || self.child.try_wait().unwrap())
            .await
            .code()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn keep(stream: impl Read + Send + 'static, output: Arc<Mutex<String>>) {
    std::thread::spawn(move || {
        let mut lines = BufReader::new(stream);
        let mut line = Vec::new();
        while lines
            .read_until(b'\n', &mut line)
            .is_ok_and(|read| read > 0)
        {
            let text = String::from_utf8_lossy(&line).into_owned();
            output.lock().unwrap().push_str(&text);
            line.clear();
        }
    });
}
