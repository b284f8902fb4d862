//! A PgBouncer before a test's PostgreSQL.

use super::daemon::{Daemon, Plan, on_a_free_port};
use super::postgres::{Database, Postgres, ROLE};
use super::programs::{folder_with, skip};
use super::{eventually, fast_temp_dir};

/// One that gives each transaction a connection, not each client.
pub struct PgBouncer {
    daemon: Daemon,
    port: u16,
}

impl PgBouncer {
    /// `None` where PgBouncer is not installed.
    pub async fn start(postgres: &Postgres) -> Option<Self> {
        Self::start_with(postgres, 20).await
    }

    /// One that has so many connections to a database at most.
    pub async fn start_with(postgres: &Postgres, connections: usize) -> Option<Self> {
        let Some(folder) = folder_with(&["pgbouncer"]) else {
            skip("PgBouncer is not installed (Debian package pgbouncer)");
            return None;
        };
        let program = folder.join("pgbouncer").display().to_string();
        let started = on_a_free_port(async |port| {
            Self::start_on(port, &program, postgres, connections).await
        });
        Some(started.await)
    }

    async fn start_on(
        port: u16,
        program: &str,
        postgres: &Postgres,
        connections: usize,
    ) -> Result<Self, String> {
        let folder = fast_temp_dir();
        let settings = format!(
            "[databases]\n\
             * = host=127.0.0.1 port={}\n\
             [pgbouncer]\n\
             listen_addr = 127.0.0.1\n\
             listen_port = {port}\n\
             unix_socket_dir =\n\
             auth_type = trust\n\
             auth_file = users\n\
             pool_mode = transaction\n\
             default_pool_size = {connections}\n\
             max_client_conn = 500\n",
            postgres.port()
        );
        std::fs::write(folder.path().join("pgbouncer.ini"), settings).unwrap();
        std::fs::write(folder.path().join("users"), format!("\"{ROLE}\" \"\"\n")).unwrap();
        let bouncer = Self {
            daemon: Daemon::new(Plan {
                folder,
                prepare: &[],
                serve: &[program.to_owned(), "pgbouncer.ini".to_owned()],
                end: "TERM",
            }),
            port,
        };
        bouncer.daemon.start().await;
        eventually("PgBouncer is up", async || {
            let log = bouncer.daemon.log();
            if log.contains("process up") {
                return Some(Ok(()));
            }
            bouncer.daemon.has_ended().then_some(Err(log))
        })
        .await?;
        Ok(bouncer)
    }

    /// The way to a database of the server behind it.
    pub fn url_of(&self, database: &Database) -> String {
        let name = database.name();
        format!("postgres://{ROLE}@127.0.0.1:{}/{name}", self.port)
    }

    pub fn daemon(&self) -> &Daemon {
        &self.daemon
    }
}
