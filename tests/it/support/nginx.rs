//! An nginx before several replicas.

use std::net::SocketAddr;
use std::path::Path;

use super::daemon::{Daemon, Plan, on_a_free_port};
use super::programs::{folder_with, skip};
use super::{eventually, fast_temp_dir};

/// A reverse proxy that tries the next replica where one fails, as an ingress does.
pub struct Nginx {
    daemon: Daemon,
    address: SocketAddr,
}

impl Nginx {
    /// `None` where nginx is not installed.
    pub async fn start(upstreams: &[SocketAddr]) -> Option<Self> {
        let Some(folder) = folder_with(&["nginx"]) else {
            skip("nginx is not installed (Debian package nginx)");
            return None;
        };
        let program = folder.join("nginx").display().to_string();
        Some(on_a_free_port(async |port| Self::start_on(port, &program, upstreams).await).await)
    }

    async fn start_on(port: u16, program: &str, upstreams: &[SocketAddr]) -> Result<Self, String> {
        let folder = fast_temp_dir();
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        configure(folder.path(), address, upstreams);
        let here = folder.path().display().to_string();
        let serve = [program, "-p", &here, "-c", "nginx.conf"].map(str::to_owned);
        let nginx = Self {
            daemon: Daemon::new(Plan {
                folder,
                prepare: &[],
                serve: &serve,
                end: "TERM",
            }),
            address,
        };
        nginx.daemon.start().await;
        eventually("nginx listens", async || {
            // Written once the port is its own.
            let is_up = nginx.daemon.folder().join("nginx.pid").exists();
            if is_up {
                return Some(Ok(()));
            }
            let log = || Err(nginx.daemon.log());
            nginx.daemon.has_ended().then(log)
        })
        .await?;
        Ok(nginx)
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes the replicas as an ingress does, and waits until no new connection goes to the old
    /// ones. Requests under way go on.
    pub async fn set_upstreams(&self, upstreams: &[SocketAddr]) {
        let before = self.daemon.log().len();
        configure(self.daemon.folder(), self.address, upstreams);
        self.daemon.signal("HUP");
        eventually("nginx works by its new configuration", async || {
            let log = self.daemon.log();
            let said = &log[before..];
            assert!(!said.contains("[emerg]"), "{said}");
            // Of the old worker; the new one was started before.
            said.contains("gracefully shutting down").then_some(())
        })
        .await;
    }

    pub fn daemon(&self) -> &Daemon {
        &self.daemon
    }
}

/// Writes the configuration.
fn configure(folder: &Path, address: SocketAddr, upstreams: &[SocketAddr]) {
    let servers = upstreams
        .iter()
        .map(|it| format!("server {it} max_fails=0; "));
    let servers: String = servers.collect();
    let kinds = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
    let temporary: String = kinds
        .iter()
        .map(|kind| format!("{kind}_temp_path {kind}; "))
        .collect();
    let text = format!(
        "daemon off;
        worker_processes 1;
        pid nginx.pid;
        error_log stderr notice;
        events {{ worker_connections 1000; }}
        http {{
            access_log off;
            {temporary}
            client_max_body_size 0;
            upstream replicas {{ {servers} keepalive 32; }}
            server {{
                listen {address};
                location / {{
                    proxy_pass http://replicas;
                    proxy_http_version 1.1;
                    proxy_set_header Host $http_host;
                    proxy_set_header Connection '';
                    proxy_next_upstream error timeout http_503 non_idempotent;
                }}
            }}
        }}
        "
    );
    std::fs::write(folder.join("nginx.conf"), text).unwrap();
}
