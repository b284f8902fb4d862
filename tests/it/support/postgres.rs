//! A PostgreSQL server for tests.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::OnceCell;
use tokio_postgres::{Client, Config, NoTls};

use super::daemon::{Daemon, Plan, on_a_free_port};
use super::programs::{folder_with, skip};
use super::{eventually, fast_temp_dir};

/// The role that owns the databases: an ordinary one, as the service should have.
pub const ROLE: &str = "bridge";

const SUPERUSER: &str = "postgres";

/// A server with data, port and socket of its own.
pub struct Postgres {
    daemon: Daemon,
    port: u16,
    /// The way in for the superuser.
    superuser: Config,
    databases: AtomicU64,
}

impl Postgres {
    /// The one that tests share, each with a database of its own. Who stops a server starts one for
    /// himself.
    pub async fn shared() -> Option<&'static Self> {
        static SHARED: OnceCell<Postgres> = OnceCell::const_new();
        // Without PostgreSQL every test says so, not only the first.
        let start = async || Self::start().await.ok_or(());
        SHARED.get_or_try_init(start).await.ok()
    }

    /// `None` where PostgreSQL is not installed.
    pub async fn start() -> Option<Self> {
        Self::start_with(&[]).await
    }

    /// One with these settings besides. By default a commit is as durable as the folder is.
    pub async fn start_with(settings: &[(&str, &str)]) -> Option<Self> {
        let Some(programs) = folder_with(&["initdb", "postgres"]) else {
            skip("PostgreSQL is not installed (Debian package postgresql)");
            return None;
        };
        Some(on_a_free_port(async |port| Self::start_on(port, &programs, settings).await).await)
    }

    async fn start_on(
        port: u16,
        programs: &Path,
        settings: &[(&str, &str)],
    ) -> Result<Self, String> {
        // Small segments keep a folder in memory small.
        let options = format!(
            "--username={SUPERUSER} --pgdata=data --auth=trust --no-locale --encoding=UTF8 --no-sync \
             --wal-segsize=1"
        );
        let prepare = ("initdb", options);
        let postgres = Self::prepared(port, programs, prepare, settings).await?;
        let role = format!("CREATE ROLE {ROLE} LOGIN");
        postgres.execute(&role).await;
        Ok(postgres)
    }

    /// Another server that follows this one, and without whose word nothing is committed here any more.
    pub async fn standby(&self) -> Self {
        let programs = folder_with(&["pg_basebackup", "postgres"]).expect("this one was started");
        let options = format!(
            "--username={SUPERUSER} --host={} --port={} --pgdata=data --write-recovery-conf \
             --checkpoint=fast --no-sync",
            self.daemon.folder().display(),
            self.port
        );
        let standby = on_a_free_port(async |port| {
            let prepare = ("pg_basebackup", options.clone());
            Self::prepared(port, &programs, prepare, &[]).await
        })
        .await;
        for setting in [
            "ALTER SYSTEM SET synchronous_standby_names = '*'",
            "SELECT pg_reload_conf()",
        ] {
            self.execute(setting).await;
        }
        eventually("the standby follows", async || {
            let client = connect(&self.superuser).await.ok()?;
            let following = "SELECT 1 FROM pg_stat_replication WHERE sync_state = 'sync'";
            (!client.query(following, &[]).await.ok()?.is_empty()).then_some(())
        })
        .await;
        standby
    }

    /// Has a standby be a primary.
    pub async fn promote(&self) {
        self.execute("SELECT pg_promote()").await;
    }

    /// Has every transaction from now on only read.
    pub async fn only_read(&self) {
        self.execute("ALTER SYSTEM SET default_transaction_read_only = on")
            .await;
        self.execute("SELECT pg_reload_conf()").await;
    }

    async fn prepared(
        port: u16,
        programs: &Path,
        (preparing, options): (&str, String),
        settings: &[(&str, &str)],
    ) -> Result<Self, String> {
        let folder = roomy_temp_dir();
        let at = |name: &str| programs.join(name).display().to_string();
        let mut prepare = vec![at(preparing)];
        prepare.extend(options.split_whitespace().map(str::to_owned));

        let mut serve = vec![at("postgres"), "-D".to_owned(), "data".to_owned()];
        let (port_text, sockets) = (port.to_string(), folder.path().display().to_string());
        let own = [
            ("listen_addresses", "127.0.0.1"),
            ("port", &port_text),
            ("unix_socket_directories", &sockets),
            ("max_connections", "200"),
            // Within the folder, so that nothing stays outside.
            ("dynamic_shared_memory_type", "mmap"),
        ];
        for (name, value) in own.iter().chain(settings) {
            serve.extend(["-c".to_owned(), format!("{name}={value}")]);
        }
        // By the socket in the folder: on the port another server might answer.
        let mut superuser = Config::new();
        superuser.host_path(folder.path()).port(port);
        superuser.user(SUPERUSER).dbname("postgres");
        let daemon = Daemon::new(Plan {
            folder,
            prepare: &prepare,
            serve: &serve,
            end: "QUIT",
        });
        let postgres = Self {
            daemon,
            port,
            superuser,
            databases: AtomicU64::new(0),
        };
        postgres.up().await?;
        Ok(postgres)
    }

    /// Starts it and waits until it answers; else what it wrote.
    async fn up(&self) -> Result<(), String> {
        self.daemon.start().await;
        eventually("PostgreSQL answers", async || {
            match connect(&self.superuser).await {
                Ok(_) => Some(Ok(())),
                Err(_) if self.daemon.has_ended() => Some(Err(self.daemon.log())),
                Err(_) => None,
            }
        })
        .await
    }

    async fn execute(&self, statement: &str) {
        let client = connect(&self.superuser).await.unwrap();
        client.batch_execute(statement).await.unwrap();
    }

    /// A new empty database, for as long as it is kept.
    pub async fn fresh_database(&self) -> Database {
        let number = self.databases.fetch_add(1, Ordering::Relaxed);
        let name = format!("test_{number}");
        // Unlike the default, template0 can be copied by many at a time.
        let create = format!("CREATE DATABASE {name} OWNER {ROLE} TEMPLATE template0");
        self.execute(&create).await;
        Database {
            url: self.url_of(&name),
            name,
            superuser: self.superuser.clone(),
        }
    }

    fn url_of(&self, database: &str) -> String {
        format!("postgres://{ROLE}@127.0.0.1:{}/{database}", self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Orderly, but without waiting for those who are connected.
    pub async fn stop(&self) {
        self.daemon.signal("INT");
        self.daemon.ended().await;
    }

    /// As after a power cut: it must recover from its log when it starts again.
    pub async fn kill(&self) {
        self.daemon.signal("QUIT");
        self.daemon.ended().await;
    }

    /// After `stop` or `kill`: with the same port and data.
    pub async fn start_again(&self) {
        self.up().await.expect("PostgreSQL starts again");
    }

    pub async fn restart(&self) {
        self.stop().await;
        self.start_again().await;
    }

    pub fn daemon(&self) -> &Daemon {
        &self.daemon
    }
}

/// A database of a test's own. Dropping it drops it in the server.
pub struct Database {
    name: String,
    url: String,
    superuser: Config,
}

impl Database {
    pub fn url(&self) -> &str {
        &self.url
    }

    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Database {
    /// Without waiting, since nobody depends on it: it is for the room that it takes.
    fn drop(&mut self) {
        let drop = format!("DROP DATABASE {} WITH (FORCE)", self.name);
        let superuser = self.superuser.clone();
        std::thread::spawn(move || {
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = runtime.enable_all().build().unwrap();
            runtime.block_on(async {
                // The server may be gone.
                if let Ok(client) = connect(&superuser).await {
                    let _ = client.batch_execute(&drop).await;
                }
            });
        });
    }
}

async fn connect(config: &Config) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = config.connect(NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// A client of its own to a database.
pub async fn connected(url: &str) -> Client {
    connect(&url.parse().unwrap()).await.unwrap()
}

/// In memory only where there is plenty: in a container it may be 64 MB, which two databases fill.
fn roomy_temp_dir() -> tempfile::TempDir {
    let folder = fast_temp_dir();
    let df = Command::new("df").arg("-Pk").arg(folder.path()).output();
    let available = df.ok().and_then(|df| {
        let table = String::from_utf8(df.stdout).ok()?;
        let kilobytes = table.lines().nth(1)?.split_whitespace().nth(3)?;
        kilobytes.parse::<u64>().ok()
    });
    if available.is_some_and(|kilobytes| kilobytes > 1 << 20) {
        return folder;
    }
    tempfile::tempdir().expect("a temporary directory")
}
