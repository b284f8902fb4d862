//! The fold: pages become sessions, and whole sessions become membership.
//!
//! One step is bounded and testable; the loop round it only waits. A kill between two steps is
//! harmless: the session remembers how far it was applied, and its pages are still in the inbox.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::clock::{Clock, millis};
use crate::roster::Roster;
use crate::sorted::{Sorted, Sorter};
use crate::status::Health;
use crate::store::{Applied, Chunk, Store, StoreError, WholeSession};

/// Pages taken into sessions in one transaction.
const PAGES_A_STEP: usize = 128;

/// People applied in one transaction at first.
const FIRST_CHUNK: usize = 2_048;

/// People applied in one transaction at least and at most.
const CHUNKS: std::ops::RangeInclusive<usize> = 256..=16_384;

/// How long one transaction of the fold should take: short, since the front door waits behind it.
const CHUNK_TIME: Duration = Duration::from_millis(12);

/// Pages handed to the sorter at a time.
const PAGES_A_SORT: usize = 64;

/// Dropped pages a step.
const TIDY_PAGES: usize = 128;

/// How often a quiet fold looks for sessions that expired.
const TIDY_EVERY: Duration = Duration::from_secs(60);

/// How long to wait after the store failed.
const AFTER_FAILURE: Duration = Duration::from_secs(1);

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// There is nothing to do.
    Idle,
    /// Something was done, and there may be more.
    Busy {
        /// Pages that found their place in the ledger.
        pages: usize,
    },
}

/// Folds pages into the ledger.
pub struct Fold {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    applying: Option<Applying>,
    chunk: usize,
    may_be_whole: bool,
}

/// A whole session on its way into the ledger.
struct Applying {
    whole: WholeSession,
    sorted: Sorted,
    /// Taken from `sorted`, not yet applied.
    next: Roster,
    /// Whether nothing is left in `sorted`.
    exhausted: bool,
    through: Option<String>,
}

/// A step failed; nothing is lost, and the next one does the same again.
#[derive(Debug, thiserror::Error)]
pub enum FoldError {
    /// The ledger.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The temporary file of a large session.
    #[error("the people of a session could not be sorted: {0}")]
    Sort(#[from] std::io::Error),
}

impl Fold {
    /// A fold that first finishes what an earlier process began.
    pub fn new(store: Arc<dyn Store>, clock: Arc<dyn Clock>) -> Self {
        Fold {
            store,
            clock,
            applying: None,
            chunk: FIRST_CHUNK,
            may_be_whole: true,
        }
    }

    /// Does one bounded piece of work.
    ///
    /// # Errors
    /// Where the store fails; the step can be repeated.
    pub async fn step(&mut self) -> Result<Step, FoldError> {
        if let Some(applying) = self.applying.take() {
            self.applying = self.apply_some(applying).await?;
            // The page that made the session whole counts as waiting until now.
            let pages = usize::from(self.applying.is_none());
            return Ok(Step::Busy { pages });
        }
        if self.may_be_whole {
            if let Some(whole) = self.store.whole_session().await? {
                self.applying = Some(self.sort(whole).await?);
                return Ok(Step::Busy { pages: 0 });
            }
            self.may_be_whole = false;
        }
        let assembled = self.store.assemble(PAGES_A_STEP, self.clock.now()).await?;
        self.may_be_whole = assembled.whole;
        if assembled.pages > 0 {
            return Ok(Step::Busy {
                pages: assembled.pages - usize::from(assembled.whole),
            });
        }
        let tidied = self.store.tidy(TIDY_PAGES, self.clock.now()).await?;
        Ok(if tidied > 0 {
            Step::Busy { pages: 0 }
        } else {
            Step::Idle
        })
    }

    /// Steps until nothing is left to do.
    ///
    /// # Errors
    /// As [`Fold::step`].
    pub async fn run_until_idle(&mut self) -> Result<(), FoldError> {
        while self.step().await? != Step::Idle {}
        Ok(())
    }

    /// Steps until `stop`, and rests while there is nothing to do.
    pub async fn run(mut self, health: Arc<Health>, stop: CancellationToken) {
        while !stop.is_cancelled() {
            let rest = match self.step().await {
                Ok(Step::Busy { pages }) => {
                    health.pages_folded(pages);
                    health.ledger_changed();
                    continue;
                }
                Ok(Step::Idle) => TIDY_EVERY,
                Err(error) => {
                    tracing::error!(%error, "folding waits: the ledger cannot be written");
                    self.applying = None;
                    self.may_be_whole = true;
                    AFTER_FAILURE
                }
            };
            let until = self.clock.now() + millis(rest);
            tokio::select! {
                () = health.page_arrived() => {}
                () = self.clock.sleep_until(until) => {}
                () = stop.cancelled() => {}
            }
        }
    }

    async fn sort(&self, whole: WholeSession) -> Result<Applying, FoldError> {
        let mut sorter = Sorter::default();
        for pages in whole.pages.chunks(PAGES_A_SORT) {
            let mut rosters = Vec::with_capacity(pages.len());
            for page in pages {
                rosters.push(self.store.page_roster(whole.session, *page).await?);
            }
            sorter = aside(move || {
                rosters.iter().try_for_each(|page| sorter.add(page))?;
                Ok(sorter)
            })
            .await?;
        }
        Ok(Applying {
            through: whole.applied_through.clone(),
            sorted: aside(|| sorter.finish()).await?,
            next: Roster::default(),
            exhausted: false,
            whole,
        })
    }

    async fn apply_some(&mut self, mut applying: Applying) -> Result<Option<Applying>, FoldError> {
        if applying.next.is_empty() && !applying.exhausted {
            applying.next = applying
                .sorted
                .take(self.chunk, applying.through.as_deref())?;
            applying.exhausted = applying.next.len() < self.chunk;
        }
        let chunk = Chunk {
            session: applying.whole.session,
            cohort: applying.whole.cohort,
            effect: applying.whole.effect,
            after: applying.through.clone(),
            last: applying.exhausted,
            identifiers: applying.next.clone(),
        };
        let (people, start) = (chunk.identifiers.len(), Instant::now());
        let applied = self.store.apply(chunk, self.clock.now()).await?;
        self.adapt(people, start.elapsed());
        match applied {
            Applied::Done => {
                self.may_be_whole = true;
                Ok(None)
            }
            Applied::Through(through) => {
                applying.next = Roster::from_sorted(
                    applying
                        .next
                        .iter()
                        .filter(|entry| entry.identifier > &*through),
                );
                applying.through = Some(through);
                Ok(Some(applying))
            }
        }
    }

    /// Brings the size of a chunk to where one takes about [`CHUNK_TIME`].
    fn adapt(&mut self, people: usize, took: Duration) {
        if took > CHUNK_TIME {
            self.chunk = (self.chunk / 2).max(*CHUNKS.start());
        } else if people == self.chunk && took < CHUNK_TIME / 2 {
            self.chunk = (self.chunk * 2).min(*CHUNKS.end());
        }
    }
}

/// Sorting takes seconds for a large session; delivery goes on beside it.
async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await?
}
