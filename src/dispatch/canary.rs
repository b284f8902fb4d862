//! The canary: proves now and then that a written trait stays, and what was written with it.
//!
//! Delivery does not wait for the first one: what is counted as written meanwhile is written again
//! where that one finds that nothing stays.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use secrecy::ExposeSecret;
use tokio_util::sync::CancellationToken;

use super::{AFTER_FAILURE, Dispatch};
use crate::canary::{
    CANARY_AGAIN, CanaryMemory, Environment, Marks, SETTINGS_SPREAD_IN, Why, Writer, is_mended,
    value,
};
use crate::clock::{Millis, millis};
use crate::config::Destination;
use crate::flagsmith::Storage;
use crate::gate::Signal;
use crate::store::{ResyncOrder, ResyncScope, StoreError};

/// How long a warning of an environment that is not as it should be is shown, in milliseconds.
const WARNED_FOR: Millis = 24 * 3_600_000;

/// What is known of the canaries so far.
pub(super) struct Watch {
    memory: CanaryMemory,
    marks: Marks,
    /// Since when a canary stays again, after none did.
    good_since: Option<Millis>,
    /// What the last canary was read back as, where that was not what was written.
    unseen: Option<Option<String>>,
    /// Whether a canary was good since the start.
    had_a_good_one: bool,
    /// When the last warning was given.
    warned_at: Option<Millis>,
}

impl Watch {
    fn new(memory: CanaryMemory) -> Self {
        Watch {
            memory,
            marks: Marks::default(),
            good_since: None,
            unseen: None,
            had_a_good_one: false,
            warned_at: None,
        }
    }
}

impl Dispatch {
    /// Proves now and then that a written trait stays: at the start, every interval, after many
    /// writes, and where an answer is suspicious.
    pub(super) async fn send_canaries(self: Arc<Self>, mut watch: Watch, stop: CancellationToken) {
        let mut pauses = self.health.pauses();
        while !stop.is_cancelled() {
            if self.health.is_paused() {
                self.health.set_next_canary(None);
            }
            tokio::select! {
                resumed = pauses.wait_for(|paused| !paused) => drop(resumed),
                () = stop.cancelled() => break,
            }
            let asked_at = self.clock.now();
            self.health.set_next_canary(None);
            let again = match self.ask_canary(&mut watch).await {
                Ok(again) => again,
                Err(error) => {
                    self.tell_ledger_failed(&error, "the canary waits: the ledger failed");
                    AFTER_FAILURE
                }
            };
            let next_at = self.clock.now() + again;
            self.health.set_next_canary(Some(next_at));
            let suspicion = async {
                self.suspicion.notified().await;
                // The clock may have been set back.
                let from = asked_at.min(self.clock.now());
                self.clock.sleep_until(from + millis(CANARY_AGAIN)).await;
            };
            tokio::select! {
                () = self.clock.sleep_until(next_at) => {}
                () = self.proof_wanted.notified() => {}
                () = suspicion => {}
                () = stop.cancelled() => {}
            }
        }
    }

    /// What is known of earlier canaries; `None` where it is stopped. Where they found that nothing
    /// stays, delivery begins halted.
    pub(super) async fn recall_canaries(&self, stop: &CancellationToken) -> Option<Watch> {
        let mut memory = loop {
            if stop.is_cancelled() {
                return None;
            }
            match self.store.canary_memory(&self.destination.name).await {
                Ok(memory) => break memory,
                Err(error) => {
                    self.tell_ledger_failed(&error, "delivery waits: the ledger cannot be read");
                }
            }
            tokio::select! {
                () = self.clock.sleep_until(self.clock.now() + AFTER_FAILURE) => {}
                () = stop.cancelled() => {}
            }
        };
        if let Some(reason) = &memory.doubted {
            self.halt_for_canary(reason);
        }
        let Destination {
            api_url,
            environment_key,
            ..
        } = &*self.destination;
        let settings = format!("{api_url} {}", environment_key.expose_secret());
        memory.settings_are(self.hash.of(&settings).to_string());
        Some(Watch::new(memory))
    }

    /// Sends one canary and draws the conclusions; how long until the next.
    async fn ask_canary(&self, watch: &mut Watch) -> Result<Millis, StoreError> {
        let destination = &self.destination.name;
        let began = self.clock.now();
        // Before it is sent: it proves nothing about what is written after it.
        let mark = self.store.unproven_through(destination).await?;
        watch.marks.take(began, mark);
        match self.client.canary().await {
            Ok(shown) => self.judge_environment(watch, shown.as_deref()).await?,
            Err(Storage::Unreachable { error, .. }) => {
                tracing::debug!(%destination, %error, "canary not answered");
                return Ok(millis(CANARY_AGAIN));
            }
            // Writing it will tell more.
            Err(_) => {}
        }
        let value = value(self.canary_writer(), watch.memory.number + 1, began);
        let found = self.client.probe_storage(&value).await;
        let unseen = watch.unseen.take();
        match found {
            Storage::Stays => self.canary_stays(watch, began, false).await,
            Storage::StaysBlank => self.canary_stays(watch, began, true).await,
            Storage::NotStored { reason } => self.nothing_stays(watch, reason).await,
            Storage::Unseen { shown, error } if unseen.as_ref() == Some(&shown) => {
                let reason = format!(
                    "{error}, time and again: something before Flagsmith answers in its place (a proxy, a cache, a mock), or keeps the reads from it; let the calls through to Flagsmith (COHORT_BRIDGE_FLAGSMITH_API_URL)"
                );
                watch.unseen = Some(shown);
                self.nothing_stays(watch, reason).await
            }
            Storage::Unseen { shown, error } => {
                tracing::warn!(%destination, %error, "the canary does not show: it is asked again");
                watch.unseen = Some(shown);
                Ok(millis(CANARY_AGAIN))
            }
            Storage::Fails { reason } => {
                watch.good_since = None;
                self.halt_for_canary(&reason);
                Ok(millis(CANARY_AGAIN))
            }
            // Delivery itself will notice; the canary only has to be asked again.
            Storage::Unreachable { error, .. } => {
                tracing::debug!(%destination, %error, "canary not answered");
                Ok(millis(CANARY_AGAIN))
            }
        }
    }

    fn canary_writer(&self) -> Writer<'_> {
        Writer {
            ledger: self.store.ledger_id(),
            destination: &self.destination.name.0,
        }
    }

    /// What the canary that is there says before another is written over it.
    async fn judge_environment(
        &self,
        watch: &mut Watch,
        shown: Option<&str>,
    ) -> Result<(), StoreError> {
        let ledger = self.store.ledger_id();
        let writer = self.canary_writer();
        let environment = watch.memory.judge(writer, shown, !watch.had_a_good_one);
        if environment == Environment::Known {
            // Whatever was found meanwhile was not the environment's: a proxy answered, say.
            watch.memory.found = None;
        }
        match environment {
            Environment::Known | Environment::Same => {
                let now = self.clock.now();
                if watch.warned_at.is_some_and(|at| now - at > WARNED_FOR) {
                    watch.warned_at = None;
                    self.health.warn(None);
                }
            }
            Environment::Other(why) => {
                if watch.memory.found.is_none() {
                    // Before the canary is overwritten: a kill must not forget it.
                    watch.memory.found = Some(why);
                    self.remember(watch).await?;
                }
            }
            Environment::Shared { with } => {
                let warning = if with == ledger {
                    format!(
                        "two bridges share this environment, with copies of one ledger ({ledger}): stop one, for each undoes what the other writes"
                    )
                } else {
                    format!(
                        "two bridges share this environment: their ledgers are {ledger} (this one) and {with}. Where both have a trait key, each undoes what the other writes: give each an environment of its own, or stop one"
                    )
                };
                self.warn(watch, &warning);
            }
        }
        Ok(())
    }

    fn warn(&self, watch: &mut Watch, warning: &str) {
        tracing::warn!(destination = %self.destination.name, "{warning}");
        self.health.warn(Some(warning.into()));
        watch.warned_at = Some(self.clock.now());
    }

    /// The environment proved to be another one: it is told everything.
    async fn follow(&self, watch: &mut Watch, why: Why) -> Result<(), StoreError> {
        let order = ResyncOrder {
            scope: ResyncScope::Destination(self.destination.name.clone()),
            max_calls_per_second: None,
        };
        self.store.order_resync(order, self.clock.now()).await?;
        self.health.resync_ordered();
        self.warn(watch, &format!("{why}. Everything is written again"));
        watch.memory.followed(why);
        Ok(())
    }

    async fn canary_stays(
        &self,
        watch: &mut Watch,
        began: Millis,
        blank: bool,
    ) -> Result<Millis, StoreError> {
        let destination = &self.destination.name;
        self.blank_is_stored.store(blank, Ordering::Relaxed);
        watch.had_a_good_one = true;
        self.health.canary_stayed(began);
        match watch.memory.found.clone() {
            // Nothing is shown there, so nothing is missed.
            Some(Why::Empty) if blank => watch.memory.found = None,
            Some(why) => self.follow(watch, why).await?,
            None => {}
        }
        if !blank {
            watch.memory.succeeded();
        }
        self.remember(watch).await?;
        if let Some(reason) = watch.memory.doubted.clone() {
            // Calls that were under way may have ended since.
            self.write_again(watch).await?;
            let since = *watch.good_since.get_or_insert(began);
            if !is_mended(since, began) {
                self.halt_for_canary(&format!(
                    "{reason} (By now a canary stays. Delivery goes on when canaries have stayed for {} s, the time that all of Flagsmith's processes need to notice.)",
                    SETTINGS_SPREAD_IN.as_secs()
                ));
                return Ok(millis(CANARY_AGAIN));
            }
            watch.memory.doubted = None;
            self.remember(watch).await?;
        }
        watch.good_since = None;
        if let Some(through) = watch.marks.proved_by(began) {
            self.store.proved(destination, through).await?;
        }
        let mut desk = self.desk();
        desk.canary_succeeded();
        self.tell_state(self.state(&desk.gate));
        drop(desk);
        self.news.notify_one();
        self.work.notify_waiters();
        Ok(millis(self.destination.canary_interval))
    }

    /// Whatever counted as written since the last proof was not: delivery halts, and all of it is
    /// pending again.
    async fn nothing_stays(&self, watch: &mut Watch, reason: String) -> Result<Millis, StoreError> {
        self.halt_for_canary(&reason);
        watch.good_since = None;
        watch.memory.doubted = Some(reason);
        // First of all: a kill before the last of it is pending must not forget the doubt.
        self.remember(watch).await?;
        self.write_again(watch).await?;
        Ok(millis(CANARY_AGAIN))
    }

    async fn write_again(&self, watch: &mut Watch) -> Result<(), StoreError> {
        watch.marks.clear();
        let destination = &self.destination.name;
        let traits = self.store.doubt(destination, self.clock.now()).await?;
        if traits > 0 {
            self.asserted_again.notify_one();
            tracing::warn!(%destination, traits, "what counted as written since the last good canary may not be stored: it is written again");
        }
        Ok(())
    }

    async fn remember(&self, watch: &Watch) -> Result<(), StoreError> {
        let memory = watch.memory.clone();
        self.store
            .remember_canary(&self.destination.name, memory)
            .await
    }

    fn halt_for_canary(&self, reason: &str) {
        let mut desk = self.desk();
        let signal = Signal::Halt {
            reason: reason.into(),
            canary: true,
        };
        desk.record(signal, self.clock.now());
        self.tell_state(self.state(&desk.gate));
        drop(desk);
        self.news.notify_one();
    }
}
