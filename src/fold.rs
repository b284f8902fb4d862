//! The fold: pages become sessions, and whole sessions become membership.
//!
//! One step is bounded and testable; the loop round it only waits. A kill between two steps is
//! harmless: the session remembers how far it was applied, and its pages are still in the inbox.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use self::plan::Plan;
use crate::clock::{Clock, millis};
use crate::sorted::{Items, Sorted};
use crate::status::Health;
use crate::store::{
    Applied, Assembled, Chunk, CohortRef, Recognised, SessionRef, Store, StoreError, WholeSession,
};

mod plan;

/// Pages taken into sessions, or dropped, in one transaction.
const PAGES_A_STEP: usize = 128;

/// People applied in one transaction at first.
const FIRST_CHUNK: usize = 2_048;

/// People applied in one transaction at least and at most.
const CHUNKS: std::ops::RangeInclusive<usize> = 256..=16_384;

/// How long one transaction of the fold should take: short, since the front door waits behind it.
const CHUNK_TIME: Duration = Duration::from_millis(12);

/// People that one piece of an operator's order is about.
const ORDERED_PEOPLE: usize = 2_048;

/// People whose identifiers are noted in one transaction.
const PLACED_AT_ONCE: usize = 4_096;

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
    work: Option<Work>,
    /// Found with the last piece of a session.
    next: Option<Assembled>,
    chunk: usize,
    is_fixed: bool,
    /// Whether cohorts may have to be followed elsewhere.
    may_reroute: bool,
    /// Whether the last step was about that: it takes turns with pages.
    rerouted: bool,
}

/// A whole session on its way into the ledger.
enum Work {
    /// It is to be judged.
    Beginning(Box<WholeSession>),
    /// Its people become members or leave.
    Applying(Box<Applying>),
    /// The identifiers that it gives are noted.
    Placing {
        session: SessionRef,
        cohort: CohortRef,
        sorted: Sorted,
        recognised: Recognised,
    },
}

struct Applying {
    plan: Plan,
    /// `None` while the next piece is read beside the writer.
    sorted: Option<Sorted>,
    reading: Option<JoinHandle<io::Result<(Sorted, Items)>>>,
    /// Read, not yet applied.
    next: Items,
    /// Whether nothing is left to read.
    is_exhausted: bool,
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
    Sort(#[from] io::Error),
}

impl Fold {
    /// A fold that first finishes what an earlier process began.
    pub fn new(store: Arc<dyn Store>, clock: Arc<dyn Clock>) -> Self {
        Fold {
            store,
            clock,
            work: None,
            next: None,
            chunk: FIRST_CHUNK,
            is_fixed: false,
            may_reroute: true,
            rerouted: false,
        }
    }

    /// Applies sessions in pieces of so many people, however long that takes; for tests that want
    /// many pieces.
    pub fn in_pieces_of(self, people: usize) -> Self {
        Fold {
            chunk: people,
            is_fixed: true,
            ..self
        }
    }

    /// Does one bounded piece of work.
    ///
    /// # Errors
    /// Where the store fails; the step can be repeated.
    pub async fn step(&mut self) -> Result<Step, FoldError> {
        if self.may_reroute && !self.rerouted {
            self.may_reroute = self.follow_routes().await?;
            self.rerouted = self.may_reroute;
            if self.rerouted {
                return Ok(Step::Busy { pages: 0 });
            }
        }
        self.rerouted = false;
        if let Some(work) = self.work.take() {
            let is_left_out = work.is_left_out();
            self.work = match work {
                Work::Beginning(whole) => Some(self.begin(*whole).await?),
                Work::Applying(applying) => self.apply_some(*applying).await?,
                Work::Placing {
                    session,
                    cohort,
                    sorted,
                    recognised,
                } => self.place_some(session, cohort, sorted, recognised).await?,
            };
            // The page that made the session whole counted as waiting until now.
            let pages = usize::from(self.work.is_none() && !is_left_out);
            return Ok(Step::Busy { pages });
        }
        let assembled = match self.next.take() {
            Some(assembled) => assembled,
            None => self.assemble().await?,
        };
        self.may_reroute |= assembled.may_reroute;
        if !assembled.is_anything() {
            self.may_reroute |= self.follow_routes().await?;
            return Ok(if self.may_reroute {
                Step::Busy { pages: 0 }
            } else {
                Step::Idle
            });
        }
        let Some(whole) = assembled.whole else {
            let pages = assembled.pages - assembled.notes;
            return Ok(Step::Busy { pages });
        };
        if assembled.pages == 0 {
            self.work = Some(self.begin(*whole).await?);
            return Ok(Step::Busy { pages: 0 });
        }
        let waits = usize::from(!whole.is_left_out);
        self.work = Some(Work::Beginning(whole));
        // The page that made it whole counts once it is applied.
        let pages = assembled.pages - assembled.notes - waits;
        Ok(Step::Busy { pages })
    }

    /// Does a piece of what changes of routes and pauses bring about; whether there was any.
    async fn follow_routes(&self) -> Result<bool, StoreError> {
        let now = self.clock.now();
        Ok(self.store.follow_routes(ORDERED_PEOPLE, now).await?
            || self.store.follow_pauses(ORDERED_PEOPLE).await?)
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
        let mut was_busy = true;
        while !stop.is_cancelled() {
            let rest = match self.step().await {
                Ok(Step::Busy { pages }) => {
                    health.pages_folded(pages);
                    health.ledger_changed();
                    was_busy = true;
                    continue;
                }
                Ok(Step::Idle) => {
                    if std::mem::take(&mut was_busy) {
                        health.fold_rests();
                    }
                    TIDY_EVERY
                }
                // The term is over, which is said once.
                Err(FoldError::Store(StoreError::NotLeading)) if stop.is_cancelled() => break,
                Err(error) => {
                    tracing::error!(%error, "folding waits: the ledger cannot be written");
                    self.work = None;
                    AFTER_FAILURE
                }
            };
            let until = self.clock.now() + millis(rest);
            tokio::select! {
                () = health.fold_is_wanted() => {}
                () = self.clock.sleep_until(until) => {}
                () = stop.cancelled() => {}
            }
        }
    }

    async fn begin(&self, whole: WholeSession) -> Result<Work, FoldError> {
        if whole.maps_people && whole.effect.brings_in() {
            for page in &whole.pages {
                let now = self.clock.now();
                self.store.rename_people(whole.session, *page, now).await?;
            }
        }
        let through = whole.applied_through.clone();
        let (plan, sorted) = plan::make(&*self.store, whole).await?;
        Ok(Work::Applying(Box::new(Applying {
            plan,
            sorted: Some(sorted),
            reading: None,
            next: Items::default(),
            is_exhausted: false,
            through,
        })))
    }

    async fn apply_some(&mut self, mut applying: Applying) -> Result<Option<Work>, FoldError> {
        if applying.next.is_empty() && !applying.is_exhausted {
            applying.read(self.chunk).await?;
        }
        applying.read_ahead(self.chunk);
        let chunk = applying.plan.chunk(
            applying.next.clone(),
            applying.through.clone(),
            applying.is_exhausted,
        );
        let applied = self.apply(chunk).await?;
        match applied {
            Applied::Done if applying.plan.places_people() => {
                let sorted = plan::by_person(&*self.store, &applying.plan.whole).await?;
                Ok(Some(Work::Placing {
                    session: applying.plan.whole.session,
                    cohort: applying.plan.whole.cohort,
                    sorted,
                    recognised: applying.plan.recognised,
                }))
            }
            Applied::Done => Ok(None),
            Applied::Through(through) => {
                applying.next = match applying.next.last_identifier() {
                    Some(last) if *last > *through => applying.next.behind(&through),
                    _ => Items::default(),
                };
                applying.through = Some(through);
                Ok(Some(Work::Applying(Box::new(applying))))
            }
        }
    }

    async fn apply(&mut self, chunk: Chunk) -> Result<Applied, StoreError> {
        let now = self.clock.now();
        if !chunk.last || !chunk.finishes {
            let (people, start) = (chunk.people.len(), Instant::now());
            let applied = self.store.apply(chunk, now).await?;
            self.adapt(people, start.elapsed());
            return Ok(applied);
        }
        // Asked together, both are one transaction: most sessions are small.
        let (applied, next) = tokio::join!(self.store.apply(chunk, now), self.assemble());
        if let Ok(Applied::Done) = applied {
            // A failure shows when it is asked again, and so does what arrives meanwhile.
            self.next = next.ok().filter(Assembled::is_anything);
        }
        applied
    }

    async fn assemble(&self) -> Result<Assembled, StoreError> {
        let now = self.clock.now();
        self.store.assemble(PAGES_A_STEP, ORDERED_PEOPLE, now).await
    }

    async fn place_some(
        &mut self,
        session: SessionRef,
        cohort: CohortRef,
        mut sorted: Sorted,
        recognised: Recognised,
    ) -> Result<Option<Work>, FoldError> {
        let people = sorted.take(PLACED_AT_ONCE, None)?;
        if people.is_empty() {
            let now = self.clock.now();
            self.store.finish(session, recognised, now).await?;
            return Ok(None);
        }
        let people = people.iter().filter_map(plan::person_and_identifier);
        self.store.place_people(cohort, people.collect()).await?;
        Ok(Some(Work::Placing {
            session,
            cohort,
            sorted,
            recognised,
        }))
    }

    /// Brings the size of a chunk to where one takes about [`CHUNK_TIME`].
    fn adapt(&mut self, people: usize, took: Duration) {
        if self.is_fixed {
            return;
        }
        if took > CHUNK_TIME {
            self.chunk = (self.chunk / 2).max(*CHUNKS.start());
        } else if people == self.chunk && took < CHUNK_TIME / 2 {
            self.chunk = (self.chunk * 2).min(*CHUNKS.end());
        }
    }
}

impl Work {
    /// Whether no page brought it about.
    fn is_left_out(&self) -> bool {
        match self {
            Work::Beginning(whole) => whole.is_left_out,
            Work::Applying(applying) => applying.plan.whole.is_left_out,
            Work::Placing { .. } => false,
        }
    }
}

impl Applying {
    /// Reads the next piece, or waits for it.
    async fn read(&mut self, limit: usize) -> io::Result<()> {
        if let Some(reading) = self.reading.take() {
            let (sorted, items) = reading.await??;
            self.sorted = Some(sorted);
            self.next = items;
        } else if let Some(sorted) = &mut self.sorted {
            self.next = sorted.take(limit, self.through.as_deref())?;
        }
        self.is_exhausted = match &mut self.sorted {
            Some(sorted) => sorted.is_at_end()?,
            None => true,
        };
        Ok(())
    }

    /// Has the piece after the next one read while the next one is applied.
    fn read_ahead(&mut self, limit: usize) {
        if self.reading.is_some() || self.is_exhausted {
            return;
        }
        if let Some(mut sorted) = self.sorted.take() {
            self.reading = Some(tokio::task::spawn_blocking(move || {
                let items = sorted.take(limit, None)?;
                Ok((sorted, items))
            }));
        }
    }
}
