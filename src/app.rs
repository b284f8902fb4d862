//! The service as a whole: built, bound, run until it is told to stop.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use actix_web::dev::Server;
use actix_web::middleware::from_fn;
use actix_web::{App as Actix, HttpServer, web};
use anyhow::{Context, anyhow};
use futures_util::FutureExt;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::clock::{Clock, millis};
use crate::config::{Destination, Settings, Source};
use crate::dispatch::{Delivery, Parts};
use crate::flagsmith::Flagsmith;
use crate::http::admin::AdminAccess;
use crate::http::authenticate::{BODY_DEADLINE, Intake, Sources};
use crate::http::receive::{Receiver, ReceiverParts};
use crate::http::{self, Admin, Detached};
use crate::leading::Leader;
use crate::logging::IdentifierHash;
use crate::metrics::Metrics;
use crate::plan::Terms;
use crate::planner::Planner;
use crate::secrets::{InForce, Secrets};
use crate::sharing::Sharing;
use crate::status::{BACKLOG_LIMIT_PAGES, DestinationHealth, Health};
use crate::store::LedgerStore;
use crate::store::{DestinationRules, SourceRules, Store};

/// Threads that answer webhooks: taking a page in is parsing, which a third thread on two cores
/// would not make faster.
const MOST_WEBHOOK_WORKERS: usize = 4;

/// How long a client may take to send the head of a request.
const HEAD_DEADLINE: Duration = Duration::from_secs(10);

/// A service that is bound and not yet running.
pub struct App {
    webhook: SocketAddr,
    admin: SocketAddr,
    webhook_server: Server,
    admin_server: Server,
    shutdown_grace: Duration,
    clock: Arc<dyn Clock>,
    health: Arc<Health>,
    detached: Detached,
    store: Arc<dyn Store>,
    leader: Leader,
    leader_failed: oneshot::Receiver<anyhow::Error>,
    sharing: Option<Arc<Sharing>>,
    in_force: InForce,
    secrets: Option<Secrets>,
}

impl App {
    /// Opens the ledger and binds both listeners.
    ///
    /// # Errors
    /// Whatever keeps the service from starting, with what to do about it.
    pub async fn build(settings: Settings, clock: Arc<dyn Clock>) -> anyhow::Result<Self> {
        let store = open_store(&settings).await?;
        App::over(store, settings, clock).await
    }

    /// Binds both listeners, over a ledger that is open.
    ///
    /// # Errors
    /// As [`App::build`].
    pub async fn over(
        store: Arc<dyn Store>,
        settings: Settings,
        clock: Arc<dyn Clock>,
    ) -> anyhow::Result<Self> {
        warn_of_few_files(&settings);
        let is_shared = store.is_shared();
        if !is_shared {
            store.adopt_keys(clock.now()).await?;
        }
        let metrics = Arc::new(Metrics::new().context("metrics cannot be registered")?);
        let health = Arc::new(Health::new(BACKLOG_LIMIT_PAGES));
        health.pages_found(store.waiting_pages().await?);
        if is_shared {
            health.stands_by();
        }
        let detached = Detached::on(tokio::runtime::Handle::current());

        let paused = store.paused_destinations().await?;
        let mut deliveries = Vec::new();
        let mut keys = Vec::new();
        let mut destinations = Vec::new();
        let mut planned = Vec::new();
        for destination in &settings.destinations {
            let destination_health = Arc::new(DestinationHealth::new(destination.name.clone()));
            destination_health.set_paused(paused.contains(&destination.name));
            if destination.dry_run {
                destination_health.set_dry_run();
            }
            destinations.push(Arc::clone(&destination_health));
            planned.push((Terms::from(&**destination), Arc::clone(&destination_health)));
            let counters = metrics.destination(&destination.name);
            let calls = counters.clone();
            let client = Flagsmith::new(destination)?
                .observed_by(move |call| calls.call_ended(call.status, call.elapsed));
            let (delivery, rekey) = Delivery::new(Parts {
                store: Arc::clone(&store),
                clock: Arc::clone(&clock),
                destination: Arc::clone(destination),
                client,
                health: destination_health,
                metrics: counters,
                hash: IdentifierHash::new(store.log_hash_key()),
            });
            deliveries.push(delivery);
            keys.push((destination.name.clone(), rekey));
        }

        let planner = Arc::new(Planner::new(
            Arc::clone(&store),
            Arc::clone(&clock),
            planned,
        ));
        let sharing = is_shared.then(|| {
            Arc::new(Sharing {
                store: Arc::clone(&store),
                clock: Arc::clone(&clock),
                health: Arc::clone(&health),
                destinations: destinations.clone(),
            })
        });
        let (tell_failed, leader_failed) = oneshot::channel();
        let leader = Leader {
            store: Arc::clone(&store),
            clock: Arc::clone(&clock),
            health: Arc::clone(&health),
            destinations: destinations.clone(),
            deliveries,
            planner: Arc::clone(&planner),
            sharing: sharing.clone(),
            failed: Some(tell_failed),
        };
        let sources = Arc::new(Sources::new(settings.sources.iter().cloned()));
        let intake = web::Data::new(Intake {
            sources: Arc::clone(&sources),
            max_body_bytes: settings.max_body_bytes,
            body_deadline: BODY_DEADLINE,
            clock: Arc::clone(&clock),
        });
        let receiver = web::Data::new(Receiver::new(ReceiverParts {
            store: Arc::clone(&store),
            clock: Arc::clone(&clock),
            health: Arc::clone(&health),
            metrics: Arc::clone(&metrics),
            detached: detached.clone(),
        }));
        let workers = std::thread::available_parallelism()
            .map_or(1, usize::from)
            .min(MOST_WEBHOOK_WORKERS)
            .min(settings.max_connections);
        let listener = bind(settings.listen, "COHORT_BRIDGE_LISTEN")?;
        let webhook = listener.local_addr()?;
        let webhook_server = HttpServer::new(move || {
            let (intake, receiver) = (intake.clone(), receiver.clone());
            Actix::new()
                .wrap(from_fn(http::closing))
                .wrap(from_fn(http::request_id))
                .configure(|config| http::configure_webhook(config, intake, receiver))
        })
        .workers(workers)
        .max_connections(settings.max_connections / workers)
        .client_request_timeout(HEAD_DEADLINE)
        .shutdown_timeout(settings.shutdown_grace.as_secs())
        .disable_signals()
        .listen(listener)?
        .run();

        let listener = bind(settings.admin_listen, "COHORT_BRIDGE_ADMIN_LISTEN")?;
        let admin_address = listener.local_addr()?;
        let access = AdminAccess::new(settings.admin_token.as_ref(), admin_address);
        let access = Arc::new(access);
        let admin = web::Data::new(Admin {
            store: Arc::clone(&store),
            clock: Arc::clone(&clock),
            health: Arc::clone(&health),
            destinations,
            metrics: Arc::clone(&metrics),
            planner,
            detached: detached.clone(),
            access: Arc::clone(&access),
        });
        let admin_server = HttpServer::new(move || {
            let admin = admin.clone();
            Actix::new()
                .wrap(from_fn(http::request_id))
                .configure(|config| http::configure_admin(config, admin))
        })
        .workers(1)
        .shutdown_timeout(1)
        .disable_signals()
        .listen(listener)?
        .run();

        Ok(App {
            webhook,
            admin: admin_address,
            webhook_server,
            admin_server,
            shutdown_grace: settings.shutdown_grace,
            in_force: InForce {
                clock: Arc::clone(&clock),
                health: Arc::clone(&health),
                metrics,
                sources,
                access,
                keys,
                warnings: settings.warnings,
            },
            clock,
            health,
            detached,
            store,
            leader,
            leader_failed,
            sharing,
            secrets: None,
        })
    }

    /// Has secret files looked at again while it runs.
    pub fn keeping_up(mut self, secrets: Secrets) -> Self {
        self.secrets = Some(secrets);
        self
    }

    /// Where webhooks are taken in.
    pub fn webhook_address(&self) -> SocketAddr {
        self.webhook
    }

    /// Where health, metrics, status page and admin API are.
    pub fn admin_address(&self) -> SocketAddr {
        self.admin
    }

    /// Runs until `stop`: the listeners all the time, fold and delivery [while this process
    /// leads](crate::leading). Then: not ready, no new pages, what is in flight is finished, what is
    /// claimed is given back, the ledger is closed.
    ///
    /// # Errors
    /// Where a listener or a loop fails.
    pub async fn run_until(self, stop: CancellationToken) -> anyhow::Result<()> {
        tracing::info!(webhook = %self.webhook, admin = %self.admin, ledger = self.store.ledger_id(), "cohort-bridge is up");
        let webhook = self.webhook_server.handle();
        let admin = self.admin_server.handle();
        let mut webhook_server = tokio::spawn(self.webhook_server);
        let admin_server = tokio::spawn(self.admin_server);
        let loops = CancellationToken::new();
        let mut running = JoinSet::new();
        running.spawn(self.leader.run(loops.clone()));
        if let Some(sharing) = self.sharing {
            running.spawn(sharing.follow(loops.clone()).map(Ok));
        }
        if let Some(secrets) = self.secrets {
            running.spawn(secrets.keep_up(self.in_force, loops.clone()).map(Ok));
        }

        let failed = tokio::select! {
            () = stop.cancelled() => None,
            ended = &mut webhook_server => Some(anyhow!("the webhook listener ended: {ended:?}")),
            Ok(error) = self.leader_failed => Some(error),
            ended = running.join_next() => Some(match ended {
                Some(Ok(Err(error))) => error,
                ended => anyhow!("a loop of the service ended: {ended:?}"),
            }),
        };
        let deadline = self.clock.now() + millis(self.shutdown_grace);
        tracing::info!("stopping: no new pages");
        self.health.shut_down();
        loops.cancel();
        let finish = async {
            webhook.stop(true).await;
            self.detached.finish().await;
            while running.join_next().await.is_some() {}
        };
        tokio::select! {
            () = finish => {}
            () = self.clock.sleep_until(deadline) => {
                tracing::warn!("the grace is over: calls still under way will be made again");
                running.abort_all();
            }
        }
        admin.stop(false).await;
        self.store.close().await;
        admin_server.abort();
        tracing::info!("stopped");
        failed.map_or(Ok(()), Err)
    }
}

/// Beside connections: the ledger's files, listeners, timers.
const OTHER_FILES: usize = 64;

/// Every connection is an open file. Where the system allows fewer than the settings, strangers who
/// connect could use up what the admin listener and the ledger need.
fn warn_of_few_files(settings: &Settings) {
    let calls: usize = settings
        .destinations
        .iter()
        .map(|destination| destination.max_in_flight)
        .sum();
    let wanted = settings.max_connections + calls + OTHER_FILES;
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let allowed = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<usize>().ok());
    if let Some(allowed) = allowed.filter(|allowed| *allowed < wanted) {
        tracing::warn!(
            allowed_files = allowed,
            wanted_files = wanted,
            "the system allows fewer open files than the settings may need: raise it (ulimit -n, LimitNOFILE) or lower --max-connections"
        );
    }
}

/// The ledger of the settings.
pub(crate) async fn open_store(settings: &Settings) -> anyhow::Result<Arc<dyn Store>> {
    let sources = all_source_rules(settings);
    let destinations = settings
        .destinations
        .iter()
        .map(|destination| destination_rules(destination))
        .collect();
    let routes = settings.routes.clone();
    let database = settings.database.clone();
    let opening = tokio::task::spawn_blocking(move || {
        LedgerStore::open_at(&database, sources, destinations, routes)
    });
    let store = opening.await?.with_context(|| {
        let database = &settings.database;
        format!("the ledger {database} cannot be opened (DATABASE_URL)")
    })?;
    Ok(Arc::new(store))
}

/// What the ledger needs to know of the sources of the settings.
pub(crate) fn all_source_rules(settings: &Settings) -> Vec<SourceRules> {
    let sources = settings.sources.iter();
    sources.map(|source| source_rules(source)).collect()
}

fn source_rules(source: &Source) -> SourceRules {
    SourceRules {
        name: source.name.clone(),
        trait_key: source.trait_key.clone(),
        explicit_keys: source.explicit_keys.clone(),
        identified_by: source.identifier.describe(),
        hold_removals_above: source.hold_removals_above,
    }
}

fn destination_rules(destination: &Destination) -> DestinationRules {
    DestinationRules {
        name: destination.name.clone(),
        on_leave: destination.on_leave,
        linger_ms: millis(destination.linger),
        late_write_ms: millis(destination.late_write_window),
    }
}

fn bind(address: SocketAddr, variable: &str) -> anyhow::Result<TcpListener> {
    let listener = TcpListener::bind(address)
        .with_context(|| format!("cannot listen on {address}: choose another with {variable}"))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}
