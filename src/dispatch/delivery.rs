//! Delivery that outlives its environment key.
//!
//! Another key may lead to another environment. That is found out by whoever begins to deliver: by a
//! first canary that is judged as such, with nothing taken for proved before. So a new key ends
//! delivery as a stop of the service does, and begins it again as a start does, for the one
//! destination; a key that changed under calls and canaries would leave each of them to ask which one
//! it was made with.
//!
//! It outlives terms as well: a key that is handed in while another process delivers is the one that
//! the next term begins with.

use std::sync::Arc;

use secrecy::{ExposeSecret, SecretString};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Dispatch, Parts};
use crate::config::Destination;
use crate::status::Health;
use crate::store::Term;

/// Delivers to one destination, with one key after the other.
pub struct Delivery {
    parts: Parts,
    keys: watch::Receiver<SecretString>,
}

/// Where another key of a destination is handed in.
pub struct Rekey(watch::Sender<SecretString>);

impl Rekey {
    /// From now on this key; nothing happens where it is the one of before.
    pub fn to(&self, key: &SecretString) {
        self.0.send_if_modified(|held| {
            let is_other = held.expose_secret() != key.expose_secret();
            if is_other {
                *held = key.clone();
            }
            is_other
        });
    }
}

impl Delivery {
    /// Delivery that was not begun yet, with the key of `parts`.
    pub fn new(parts: Parts) -> (Self, Rekey) {
        let (rekey, keys) = watch::channel(parts.destination.environment_key.clone());
        (Delivery { parts, keys }, Rekey(rekey))
    }

    /// Delivers until `stop`, in that term; then there it is for the next one.
    pub async fn run(mut self, health: Arc<Health>, term: Term, stop: CancellationToken) -> Self {
        let key = self.keys.borrow_and_update().clone();
        if key.expose_secret() != self.parts.destination.environment_key.expose_secret() {
            self.parts = self.parts.with_key(key);
        }
        loop {
            let ends = stop.child_token();
            let dispatch = Arc::new(Dispatch::within(self.parts.clone(), term.clone()));
            let run = dispatch.run(health.ledger_changes(), ends.clone());
            tokio::pin!(run);
            let key = tokio::select! {
                () = &mut run => return self,
                key = another(&mut self.keys) => key,
            };
            let name = &self.parts.destination.name;
            tracing::info!(destination = %name, "the environment key changed: calls under way end, then delivery begins again with the new one");
            ends.cancel();
            run.await;
            if stop.is_cancelled() {
                return self;
            }
            self.parts = self.parts.with_key(key);
        }
    }
}

/// The next key. Where nobody hands one in, there is none.
async fn another(keys: &mut watch::Receiver<SecretString>) -> SecretString {
    if keys.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
    keys.borrow_and_update().clone()
}

impl Parts {
    fn with_key(&self, key: SecretString) -> Parts {
        let name = &self.destination.name;
        let client = match self.client.with_key(&key) {
            Ok(client) => client,
            // What no header may hold is refused where it is read.
            Err(error) => {
                tracing::error!(destination = %name, %error, "delivery goes on with the environment key of before");
                return self.clone();
            }
        };
        self.health.begin_again();
        tracing::info!(destination = %name, "delivery begins with the new environment key");
        Parts {
            client,
            destination: Arc::new(Destination {
                environment_key: key,
                ..Destination::clone(&self.destination)
            }),
            ..self.clone()
        }
    }
}
