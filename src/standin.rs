//! A stand-in for Flagsmith on a loopback port, shared by the demo, the tests and the benches.
//!
//! It answers the SDK's identities and bulk traits endpoints as Flagsmith Core 2.265.0 was
//! measured to, oddities included, and is held to recorded answers by a test. It can be told to
//! fail in every way a real one can ([`Fault`]), keeps count, and notices when two calls are in
//! flight for one identity. Not stood in for: segments beyond one rule, the flags' values, a list
//! or an object as a trait's value (kept as JSON text), the 60 s cache of settings.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use actix_web::dev::ServerHandle;
use actix_web::{App, HttpServer, web};
use serde_json::Value;
use tokio::sync::oneshot;

mod ask;
mod fault;
mod handler;
mod reply;
mod traffic;
mod validate;
mod world;

pub use fault::{Call, Fault};
pub use traffic::Endpoint;
use world::World;
pub use world::{Environment, Switch};

/// How often a stand-in that goes down looks whether its port is closed: far more often than it needs,
/// and not for ever, since somebody else may have taken the port.
const LOOKS_AT_A_CLOSED_PORT: usize = 10_000;

/// How a stand-in is started.
#[derive(Clone, Debug)]
pub struct StandInOptions {
    /// The port on 127.0.0.1; 0 takes a free one.
    pub port: u16,
    /// Threads that answer; one is right beside what is measured on two cores.
    pub workers: usize,
    /// How long an idle connection is kept; gunicorn's default is 2 s.
    pub keep_alive: Duration,
    /// What the keys give access to.
    pub environments: Vec<Environment>,
}

impl Default for StandInOptions {
    /// One worker, a free port, one ordinary environment.
    fn default() -> Self {
        StandInOptions {
            port: 0,
            workers: 1,
            keep_alive: Duration::from_secs(75),
            environments: vec![Environment::default()],
        }
    }
}

/// A running stand-in. Dropping it stops it.
pub struct StandIn {
    address: SocketAddr,
    options: StandInOptions,
    world: web::Data<World>,
    running: Mutex<Option<Running>>,
}

impl StandIn {
    /// Starts a stand-in on a thread of its own; no runtime is needed to call this.
    ///
    /// # Errors
    ///
    /// When the port cannot be had or a thread not be started.
    pub fn start(options: StandInOptions) -> io::Result<Self> {
        let world = web::Data::new(World::new(&options.environments));
        let (running, address) = serve(options.port, &options, world.clone())?;
        Ok(StandIn {
            address,
            options,
            world,
            running: Mutex::new(Some(running)),
        })
    }

    /// The base of its API: `http://127.0.0.1:PORT/api/v1/`.
    pub fn url(&self) -> String {
        format!("http://{}/api/v1/", self.address)
    }

    /// Where it listens, or listened.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Goes down at once: open connections break, new ones are refused. What was stored is kept
    /// for [`StandIn::resume`].
    pub async fn stop(&self) {
        let running = lock(&self.running).take();
        if let Some(running) = running {
            // The server's threads end in their own time; nothing is answered from here on.
            self.world.down.store(true, Ordering::SeqCst);
            running.handle.stop(false).await;
            // Resolves, or fails, when the thread has let go of the port.
            let _ = running.ended.await;
            for _ in 0..LOOKS_AT_A_CLOSED_PORT {
                if TcpStream::connect(self.address).is_err() {
                    break;
                }
                tokio::task::yield_now().await;
            }
        }
    }

    /// Comes back on the same port with the same state; does nothing while it is up.
    ///
    /// # Errors
    ///
    /// When the port has been taken in the meantime.
    pub fn resume(&self) -> io::Result<()> {
        let mut running = lock(&self.running);
        if running.is_none() {
            self.world.down.store(false, Ordering::SeqCst);
            *running = Some(serve(self.address.port(), &self.options, self.world.clone())?.0);
        }
        Ok(())
    }

    /// Everything stored in the first environment: traits by identifier and key.
    pub fn identities(&self) -> BTreeMap<String, BTreeMap<String, Value>> {
        self.world.environments[0].identities()
    }

    /// Everything stored in the environment of this key; nothing where the key is unknown.
    pub fn identities_of(&self, key: &str) -> BTreeMap<String, BTreeMap<String, Value>> {
        self.world
            .environment(key)
            .map(|(environment, _)| environment.identities())
            .unwrap_or_default()
    }

    /// The stored traits of one identity of the first environment.
    pub fn identity(&self, identifier: &str) -> Option<BTreeMap<String, Value>> {
        self.world.environments[0].identity(identifier)
    }

    /// Forgets everything stored in the environment of this key, as when it is made anew.
    pub fn wipe(&self, key: &str) {
        if let Some((environment, _)) = self.world.environment(key) {
            environment.wipe();
        }
    }

    /// Turns a setting of the environment of this key on or off; takes effect at once.
    pub fn switch(&self, key: &str, switch: Switch, on: bool) {
        if let Some((environment, _)) = self.world.environment(key) {
            environment.switch(switch, on);
        }
    }

    /// How many calls ended how, since the start or [`StandIn::forget_calls`]. Status 0 counts
    /// those that got no answer.
    pub fn calls(&self) -> BTreeMap<(Endpoint, u16), u64> {
        self.world.traffic.calls()
    }

    /// How many calls an endpoint had, however they ended.
    pub fn calls_to(&self, endpoint: Endpoint) -> u64 {
        let calls = self.calls();
        let of_endpoint = calls.iter().filter(|((at, _), _)| *at == endpoint);
        of_endpoint.map(|(_, count)| count).sum()
    }

    /// How many calls wrote each trait that is stored in the first environment.
    pub fn calls_by_trait(&self) -> BTreeMap<String, u64> {
        self.world.environments[0].writes()
    }

    /// Sets all counts, the record of [`StandIn::max_in_flight`] included, back to zero.
    pub fn forget_calls(&self) {
        self.world.traffic.forget();
    }

    /// The most calls that were ever in flight at once for one identity, seen from here: from a
    /// request's arrival to its answer. Calls overlap visibly only under a [`Fault`] that delays.
    pub fn max_in_flight_per_identity(&self) -> usize {
        self.world.traffic.max_per_identity()
    }

    /// The most calls that were ever in flight at once; as
    /// [`StandIn::max_in_flight_per_identity`].
    pub fn max_in_flight(&self) -> usize {
        self.world.traffic.max_in_all()
    }

    /// The next calls, to whichever endpoint, meet these faults, one each, in turn.
    pub fn script(&self, faults: impl IntoIterator<Item = Fault>) {
        self.world.faults.script(faults);
    }

    /// From now on `rule` says which fault a call meets, after any script has run out.
    pub fn fault_for(&self, rule: impl Fn(&Call<'_>) -> Option<Fault> + Send + Sync + 'static) {
        self.world.faults.set_rule(Some(Arc::new(rule)));
    }

    /// From now on every call meets `fault`.
    pub fn fault(&self, fault: Fault) {
        self.fault_for(move |_| Some(fault.clone()));
    }

    /// No more faults. Calls already held stay held.
    pub fn clear_faults(&self) {
        self.world.faults.clear();
    }

    /// Returns once at least `count` calls are held by [`Fault::Hold`], [`Fault::Hang`] or
    /// [`Fault::LandLate`].
    pub async fn held(&self, count: usize) {
        self.world.faults.wait_for_held(count).await;
    }

    /// Lets every call go that [`Fault::Hold`] holds now.
    pub fn release(&self) {
        self.world.faults.release();
    }

    /// Applies one write of those that [`Fault::LandLate`] and [`Fault::CloseAndLandLate`] keep
    /// back, counted from the oldest; whether there are so many.
    pub fn land_late_write(&self, at: usize) -> bool {
        self.world.land_late_write(at)
    }

    /// Applies every write that [`Fault::LandLate`] kept back, in order of arrival, and returns
    /// how many there were.
    pub fn land_late_writes(&self) -> usize {
        self.world.land_late_writes()
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        if let Some(running) = lock(&self.running).take() {
            // The command is sent by the call; waiting for its end is not needed.
            drop(running.handle.stop(false));
        }
    }
}

struct Running {
    handle: ServerHandle,
    ended: oneshot::Receiver<()>,
}

/// Binds and serves on a new thread, with a runtime of its own that no caller's runtime slows.
fn serve(
    port: u16,
    options: &StandInOptions,
    world: web::Data<World>,
) -> io::Result<(Running, SocketAddr)> {
    let (started, start) = std::sync::mpsc::channel();
    let (end, ended) = oneshot::channel();
    let workers = options.workers.max(1);
    let keep_alive = options.keep_alive;
    let run = move || -> io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            let server = HttpServer::new(move || {
                App::new()
                    .app_data(world.clone())
                    .default_service(web::to(handler::handle))
            })
            .on_connect(handler::keep_wire)
            .workers(workers)
            .keep_alive(keep_alive)
            .client_request_timeout(Duration::ZERO)
            .disable_signals()
            .bind((Ipv4Addr::LOCALHOST, port))?;
            let address = server.addrs().first().copied();
            let server = server.run();
            let _ = started.send((server.handle(), address));
            server.await
        })
    };
    let thread = thread::Builder::new()
        .name("stand-in".to_owned())
        .spawn(move || {
            let result = run();
            let _ = end.send(());
            result
        })?;
    match start.recv() {
        Ok((handle, Some(address))) => Ok((Running { handle, ended }, address)),
        Ok((_, None)) => Err(io::Error::other("the stand-in listens nowhere")),
        // It ended before it served, so its result says why.
        Err(_) => match thread.join() {
            Ok(Err(error)) => Err(error),
            _ => Err(io::Error::other("the stand-in did not start")),
        },
    }
}

/// A panic elsewhere must not hide what is behind the lock from the test that reports it.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
