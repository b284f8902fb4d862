//! Servers of other people that a test starts for itself. None outlives the tests.

use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use super::eventually;

/// How a server is run, in a folder of its own.
pub struct Plan<'a> {
    pub folder: tempfile::TempDir,
    /// What is run once, before the first start; nothing if empty.
    pub prepare: &'a [String],
    /// The server, in the foreground.
    pub serve: &'a [String],
    /// The signal at which it ends soon, and its children with it.
    pub end: &'a str,
}

/// A server that can be stopped and started again. It ends, and its folder goes, when this is
/// dropped or the process of the tests ends, in whatever way.
pub struct Daemon {
    folder: PathBuf,
    /// A shell that is the server's parent. It ends the server and removes the folder at the end of
    /// its standard input, which comes even when the tests are killed. The kernel's own signal at a
    /// parent's death would not do: it comes when the thread ends that started the server, which
    /// is a test's, and nobody would remove the folder. It signals until the server has ended: one
    /// that has only just been started does not listen yet.
    keeper: Child,
    orders: Mutex<Option<ChildStdin>>,
    pid: AtomicU32,
}

impl Daemon {
    /// Prepares the server and does not start it yet.
    pub fn new(plan: Plan<'_>) -> Self {
        let folder = plan.folder.path().to_owned();
        let script = format!(
            "{prepare} </dev/null >log 2>&1
            while read -r order; do
                case $order in
                    start) wait; {serve} </dev/null >>log 2>&1 & server=$!; echo $server >pid ;;
                    *) kill -$order $server ;;
                esac
            done
            while [ -n \"$server\" ]; do kill -{end} $server; sleep 0.1; done &
            wait $server
            kill $!
            cd /
            rm -rf {removed}",
            prepare = if plan.prepare.is_empty() {
                ":".to_owned()
            } else {
                quoted(plan.prepare)
            },
            serve = quoted(plan.serve),
            end = plan.end,
            removed = quoted(&[folder.display().to_string()]),
        );
        let mut command = Command::new("sh");
        // A group of its own: an interrupt at the terminal is for the tests, and their end is what
        // the keeper waits for.
        command
            .args(["-c", &script])
            .current_dir(&folder)
            .process_group(0)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        // PostgreSQL and PgBouncer refuse to run as root. The keeper is switched along with them,
        // for it to be allowed to signal them.
        if folder.metadata().unwrap().uid() == 0 {
            let (user, group) = unprivileged();
            give_to_servers(&folder);
            command.uid(user).gid(group);
        }
        let mut keeper = command.spawn().expect("a shell");
        let orders = Mutex::new(keeper.stdin.take());
        // From here on it is the keeper's.
        let _ = plan.folder.keep();
        Self {
            folder,
            keeper,
            orders,
            pid: AtomicU32::new(0),
        }
    }

    /// Starts the server, which must not be running, and does not wait until it is ready.
    pub async fn start(&self) {
        assert!(self.has_ended(), "it runs");
        let file = self.folder.join("pid");
        let _ = std::fs::remove_file(&file);
        self.order("start");
        let pid = eventually("a server's process", async || {
            let text = std::fs::read_to_string(&file).ok()?;
            text.strip_suffix('\n')?.parse().ok()
        })
        .await;
        self.pid.store(pid, Ordering::Relaxed);
    }

    /// Sends a signal.
    pub fn signal(&self, name: &str) {
        self.order(name);
    }

    fn order(&self, order: &str) {
        let mut orders = self.orders.lock().unwrap();
        let orders = orders.as_mut().expect("it is open until this is dropped");
        writeln!(orders, "{order}").expect("the keeper listens");
    }

    /// Whether it is not running: it was never started, or it ended, though the keeper may not
    /// have looked yet.
    pub fn has_ended(&self) -> bool {
        let pid = self.pid();
        pid == 0 || !is_running(pid)
    }

    /// Waits for the end of the server.
    pub async fn ended(&self) {
        eventually("a server ends", async || self.has_ended().then_some(())).await;
    }

    /// The server's process.
    pub fn pid(&self) -> u32 {
        self.pid.load(Ordering::Relaxed)
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What it wrote to standard output and standard error.
    pub fn log(&self) -> String {
        let log = std::fs::read(self.folder.join("log")).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        drop(self.orders.lock().unwrap().take());
        let _ = self.keeper.wait();
        // Where the keeper may not remove an entry of the folder above.
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Whether there is such a process, and not only its remains.
pub fn is_running(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
    // The state stands after the name, which may hold anything.
    stat.is_ok_and(|stat| {
        stat.rsplit_once(") ")
            .is_some_and(|(_, rest)| !rest.starts_with('Z'))
    })
}

/// Starts servers on free ports until one is up. A port that was free is another's now and then.
///
/// # Panics
/// Where none comes up; with what the last one wrote.
pub async fn on_a_free_port<T>(mut start: impl AsyncFnMut(u16) -> Result<T, String>) -> T {
    let mut said = String::new();
    for _ in 0..5 {
        match start(free_port()).await {
            Ok(started) => return started,
            Err(log) => said = log,
        }
    }
    panic!("a server does not start: {said}");
}

/// A port that nobody listens on. It lies below those that the kernel gives to outgoing
/// connections: one of those could have taken it by the time a server comes back to it.
fn free_port() -> u16 {
    loop {
        let port = fastrand::u16(10_000..32_768);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Words of a shell command.
fn quoted(words: &[String]) -> String {
    let quoted = words.iter().map(|word| word.replace('\'', r"'\''"));
    quoted.map(|word| format!("'{word}' ")).collect()
}

/// Lets servers read a file or folder of a test: those of root belong to the user that they run as.
pub fn give_to_servers(path: &Path) {
    if path.metadata().unwrap().uid() == 0 {
        let (user, group) = unprivileged();
        chown(path, Some(user), Some(group)).unwrap();
    }
}

/// User and group for what must not run as root.
fn unprivileged() -> (u32, u32) {
    let accounts = std::fs::read_to_string("/etc/passwd").unwrap();
    let account = |wanted: &str| {
        accounts.lines().find_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            (fields[0] == wanted)
                .then(|| Some((fields.get(2)?.parse().ok()?, fields.get(3)?.parse().ok()?)))?
        })
    };
    account("postgres")
        .or_else(|| account("nobody"))
        .expect("a user who is not root")
}
