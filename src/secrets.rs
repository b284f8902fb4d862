//! Secret files are looked at while the service runs, and what changed is put in force.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;

use crate::clock::{Clock, Millis, millis};
use crate::cohort::DestinationName;
use crate::config::{News, RefusedFile, SecretFile, SecretFiles, Settings};
use crate::dispatch::Rekey;
use crate::http::admin::AdminAccess;
use crate::http::authenticate::Sources;
use crate::metrics::Metrics;
use crate::status::{Health, RefusedSecret};

/// How often files are looked at. Kubernetes itself takes about a minute to change a mounted secret.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// How long a new content must stand before it is judged: who writes a file in place needs a moment
/// between emptying it and the end of what is to stand in it.
const STANDS_AFTER: Duration = Duration::from_secs(1);

/// Where secrets are in force.
pub struct InForce {
    /// For the deadlines.
    pub clock: Arc<dyn Clock>,
    /// Where it is told what is refused.
    pub health: Arc<Health>,
    /// Where it is counted.
    pub metrics: Arc<Metrics>,
    /// Who may send webhooks.
    pub sources: Arc<Sources>,
    /// Who may call the admin API.
    pub access: Arc<AdminAccess>,
    /// The key of each destination.
    pub keys: Vec<(DestinationName, Rekey)>,
    /// What was warned of at the start.
    pub warnings: Vec<String>,
}

/// The files and who is told of them.
pub struct Secrets {
    files: Arc<Mutex<SecretFiles>>,
    /// Somebody wants them looked at at once.
    wanted: Arc<Notify>,
}

impl Secrets {
    /// These files; looked at every now and then, and whenever `wanted` says so.
    pub fn new(files: SecretFiles, wanted: Arc<Notify>) -> Self {
        Secrets {
            files: Arc::new(Mutex::new(files)),
            wanted,
        }
    }

    /// Looks until `stop`.
    pub async fn keep_up(self, mut in_force: InForce, stop: CancellationToken) {
        let clock = Arc::clone(&in_force.clock);
        let looking = async {
            if held(&self.files).is_empty() {
                return std::future::pending().await;
            }
            loop {
                tokio::select! {
                    () = clock.sleep_until(clock.now() + millis(LOOK_EVERY)) => {}
                    () = self.wanted.notified() => {
                        tracing::info!("SIGHUP: the secret files are looked at");
                    }
                }
                let seen = self.apart(|files| files.look()).await;
                let seen = match seen {
                    Some(seen) if held(&self.files).is_news(&seen) => seen,
                    _ => continue,
                };
                clock.sleep_until(clock.now() + millis(STANDS_AFTER)).await;
                let judged = self.apart(move |files| {
                    let again = files.look();
                    files.judge(&seen, &again)
                });
                if let Some(news) = judged.await {
                    in_force.take(news, held(&self.files).refused());
                }
            }
        };
        tokio::select! {
            () = looking => {}
            () = stop.cancelled() => {}
        }
    }

    /// Does what may take long on a thread of its own, which a file system that hangs keeps; neither
    /// the service nor its end waits for it.
    async fn apart<T: Send + 'static>(
        &self,
        act: impl FnOnce(&mut SecretFiles) -> T + Send + 'static,
    ) -> Option<T> {
        let (done, result) = oneshot::channel();
        let files = Arc::clone(&self.files);
        let spawned = std::thread::Builder::new()
            .name("secrets".to_owned())
            // Nobody waits for it where the service stops meanwhile.
            .spawn(move || drop(done.send(act(&mut held(&files)))));
        if let Err(error) = spawned {
            tracing::error!(%error, "secret files cannot be looked at: no thread can be started");
        }
        result.await.ok()
    }
}

fn held(files: &Mutex<SecretFiles>) -> MutexGuard<'_, SecretFiles> {
    files.lock().unwrap_or_else(PoisonError::into_inner)
}

impl InForce {
    fn take<'r>(&mut self, news: News, refused: impl Iterator<Item = &'r RefusedFile>) {
        for SecretFile { setting, path } in &news.restored {
            tracing::info!(%setting, file = %path.display(), "a secret file holds again what is in force");
        }
        for SecretFile { setting, path } in &news.for_the_next_start {
            tracing::warn!(%setting, file = %path.display(), "a file that is read at the start alone is not as it was then: a restart is needed for it to count");
        }
        for RefusedFile { file, reason } in &news.refused {
            self.metrics.secret_refused();
            tracing::error!(setting = %file.setting, file = %file.path.display(), %reason, "a secret file cannot be used: the secret before it stays in force");
        }
        self.health
            .set_refused_secrets(self.told(refused, self.clock.now()));
        let Some(settings) = news.settings else {
            return;
        };
        self.put_in_force(settings);
        for SecretFile { setting, path } in &news.taken {
            tracing::info!(%setting, file = %path.display(), "a secret changed: the new one is in force");
        }
    }

    fn put_in_force(&mut self, settings: Settings) {
        self.sources.replace(settings.sources);
        if let Some(token) = &settings.admin_token {
            self.access.set_token(token);
        }
        for destination in &settings.destinations {
            let mut keys = self.keys.iter();
            if let Some((_, rekey)) = keys.find(|(name, _)| *name == destination.name) {
                rekey.to(&destination.environment_key);
            }
        }
        for warning in &settings.warnings {
            if !self.warnings.contains(warning) {
                tracing::warn!("{warning}");
            }
        }
        self.warnings = settings.warnings;
    }

    /// What is refused, each since it was first.
    fn told<'r>(
        &self,
        refused: impl Iterator<Item = &'r RefusedFile>,
        now: Millis,
    ) -> Vec<RefusedSecret> {
        let before = self.health.refused_secrets();
        let told = refused.map(|RefusedFile { file, reason }| {
            let path = file.path.display().to_string();
            let since = before.iter().find(|refused| refused.file == path);
            RefusedSecret {
                setting: file.setting.clone(),
                since: since.map_or(now, |refused| refused.since),
                file: path,
                reason: reason.clone(),
            }
        });
        told.collect()
    }
}
