//! Work that a client's reset must not stop half-way.

use std::future::Future;

use tokio::runtime::Handle;
use tokio::task::JoinError;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, Span};

/// Runs work apart from the connection that asked for it: a client that goes away drops the
/// handler in the middle of an await, not the work.
#[derive(Clone, Debug)]
pub struct Detached {
    runtime: Handle,
    tasks: TaskTracker,
}

impl Detached {
    /// Work runs on `runtime`, which must outlive the HTTP workers.
    pub fn on(runtime: Handle) -> Self {
        Detached {
            runtime,
            tasks: TaskTracker::new(),
        }
    }

    /// Runs `work` to its end, whether or not this future is kept.
    ///
    /// # Errors
    ///
    /// `work` panicked, or the runtime stopped.
    pub async fn run<W>(&self, work: W) -> Result<W::Output, JoinError>
    where
        W: Future + Send + 'static,
        W::Output: Send + 'static,
    {
        self.tasks
            .spawn_on(work.instrument(Span::current()), &self.runtime)
            .await
    }

    /// Returns once all work has ended. Call it after the listeners have stopped.
    pub async fn finish(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn work_ends_though_nobody_waits_for_it() {
        let detached = Detached::on(Handle::current());
        let (go, gate) = oneshot::channel::<()>();
        let (done, mut ended) = oneshot::channel();
        let asked = detached.run(async move {
            gate.await.unwrap();
            done.send(()).unwrap();
        });
        assert!(asked.now_or_never().is_none());
        go.send(()).unwrap();
        detached.finish().await;
        ended.try_recv().unwrap();
    }
}
