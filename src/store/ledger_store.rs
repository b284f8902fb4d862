//! The store over either database: one who writes, readers beside it.

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

use super::appender::Appender;
use super::database::{Connection, Postgres, Sqlite};
use super::ledger::inbox::InboxPage;
use super::ledger::state::Ledger;
use super::ledger::{actions, apply, pauses, people, read, resyncs, unproven, unwritten};
use super::readers::Readers;
use super::refusals::Refusals;
use super::writer::{Urgency, Writer};
use super::{
    Applied, Assembled, Chunk, Claims, CohortRef, CohortView, Counted, Database, DeadLetter,
    DeadLetterFilter, DestinationRules, HoldDecision, Judgement, MembershipView, PagePeople,
    PostgresUrl, Recognised, ResyncOrder, ResyncRoom, ResyncScope, ResyncStep, ResyncView,
    SessionRef, Settlement, SourceRules, Store, StoreError, Term, postgres, sqlite, terms,
};
use crate::calls::{CallOrder, CallsCounted};
use crate::canary::CanaryMemory;
use crate::clock::Millis;
use crate::cohort::{DestinationName, OnLeave, SourceName, Target, Wanted};
use crate::mixpanel::Page;
use crate::month::Month;
use crate::plan::Unwritten;
use crate::roster::PersonHash;
use crate::route::Routes;

/// SQLite before 3.51.3 can corrupt a database in WAL mode (the 'WAL-reset' bug).
const OLDEST_SQLITE: i32 = 3_051_003;

/// People that one transaction of an operator's order is about: a few milliseconds.
const PEOPLE_AT_ONCE: usize = 2_048;

/// The store.
pub struct LedgerStore {
    work: Writer,
    /// Where pages do not wait behind other work; for PostgreSQL.
    pages: Option<Appender>,
    readers: Readers,
    /// What is asked of a term, and said of it.
    beside: Readers,
    on_leave: HashMap<String, OnLeave>,
    identified_by: Arc<read::IdentifiedBy>,
    refusals: Refusals,
    ledger_id: String,
    log_hash_key: [u8; 32],
    /// Over when this is dropped.
    terms: CancellationToken,
    // Held for as long as the store lives.
    _lock: Option<File>,
}

impl LedgerStore {
    /// Opens the ledger wherever it is. To be called where blocking is allowed.
    ///
    /// # Errors
    /// As [`LedgerStore::open`] and [`LedgerStore::connect`].
    pub fn open_at(
        database: &Database,
        sources: Vec<SourceRules>,
        destinations: Vec<DestinationRules>,
        routes: Routes,
    ) -> Result<Self, StoreError> {
        match database {
            Database::Sqlite(path) => Self::open_routed(path, sources, destinations, routes),
            Database::Postgres(url) => Self::connect(url, sources, destinations, routes),
        }
    }

    /// Opens the ledger in a SQLite file, creates it where it is missing, and brings its schema up to
    /// date.
    ///
    /// # Errors
    /// [`StoreError::InUse`] while another process has it; [`StoreError::Newer`] where a newer
    /// program wrote it; [`StoreError::Moved`] where it was moved to a database;
    /// [`StoreError::OldSqlite`] for a library that is not to be trusted.
    pub fn open(
        path: &Path,
        sources: Vec<SourceRules>,
        destinations: Vec<DestinationRules>,
    ) -> Result<Self, StoreError> {
        Self::open_routed(path, sources, destinations, Routes::default())
    }

    /// The same, where not every cohort goes to every destination.
    ///
    /// # Errors
    /// As [`LedgerStore::open`].
    pub fn open_routed(
        path: &Path,
        sources: Vec<SourceRules>,
        destinations: Vec<DestinationRules>,
        routes: Routes,
    ) -> Result<Self, StoreError> {
        if rusqlite::version_number() < OLDEST_SQLITE {
            return Err(StoreError::OldSqlite(rusqlite::version().into()));
        }
        let lock = sqlite::lock(path)?;
        sqlite::make_private(path)?;
        let mut file = Sqlite::connect(path)?;
        sqlite::migrate(file.inner())?;
        if let Some(to) = sqlite::moved_to(file.inner())? {
            let path = path.display().to_string();
            return Err(StoreError::Moved { path, to });
        }
        let secrets = Secrets {
            ledger_id: sqlite::secret(file.inner(), "ledger_id")?,
            log_hash_key: sqlite::secret(file.inner(), "log_hash_key")?,
        };
        let connection = Connection::Sqlite(file);
        let rules = Rules::of(&sources, &destinations);
        let mut ledger = Ledger::new(connection, sources, destinations, routes)?;
        ledger.begin()?;
        ledger.begin_term()?;
        ledger.commit()?;
        let database = Database::Sqlite(path.into());
        Self::start(ledger, database, rules, secrets, Some(lock))
    }

    /// Opens the ledger in a PostgreSQL database, as `postgres://user:password@host/database`, and brings
    /// its schema up to date. Other processes may have it open. To be called where blocking is allowed.
    ///
    /// # Errors
    /// [`StoreError::Away`] where it cannot be reached; [`StoreError::Newer`] where a newer program
    /// wrote it; [`StoreError::Failed`] where the database does not keep what it says is written.
    pub fn connect(
        url: &PostgresUrl,
        sources: Vec<SourceRules>,
        destinations: Vec<DestinationRules>,
        routes: Routes,
    ) -> Result<Self, StoreError> {
        let (connection, secrets) = postgres::open(url)?;
        let rules = Rules::of(&sources, &destinations);
        let ledger = Ledger::new(connection, sources, destinations, routes)?;
        let database = Database::Postgres(Box::new(url.clone()));
        Self::start(ledger, database, rules, secrets, None)
    }

    fn start(
        ledger: Ledger,
        database: Database,
        rules: Rules,
        secrets: Secrets,
        lock: Option<File>,
    ) -> Result<Self, StoreError> {
        let io = |source| StoreError::Io {
            path: "a thread of the ledger".into(),
            source,
        };
        let refusals = Refusals::default();
        let pages = match &database {
            Database::Sqlite(_) => None,
            Database::Postgres(url) => {
                let postgres = Postgres::new(PostgresUrl::clone(url))?;
                Some(Appender::start(postgres, refusals.clone()).map_err(io)?)
            }
        };
        Ok(LedgerStore {
            work: Writer::start(ledger).map_err(io)?,
            pages,
            beside: Readers::one(database.clone()),
            readers: Readers::new(database),
            on_leave: rules.on_leave,
            identified_by: Arc::new(rules.identified_by),
            refusals,
            ledger_id: sqlite::hex(&secrets.ledger_id[..8]),
            log_hash_key: secrets.log_hash_key,
            terms: CancellationToken::new(),
            _lock: lock,
        })
    }

    async fn read<R, F>(&self, query: F) -> Result<R, StoreError>
    where
        R: Send + 'static,
        F: FnOnce(&Connection) -> Result<R, StoreError> + Send + 'static,
    {
        self.readers.read(query).await
    }

    /// What only the one does who folds and delivers.
    async fn work<R, F>(&self, job: F) -> Result<R, StoreError>
    where
        R: Send + 'static,
        F: FnOnce(&mut Ledger) -> Result<R, StoreError> + Send + 'static,
    {
        self.write(Ledger::must_lead, job, |_, _| {}).await
    }

    /// What an operator orders, whoever folds and delivers.
    async fn order<R, F>(&self, job: F) -> Result<R, StoreError>
    where
        R: Send + 'static,
        F: FnOnce(&mut Ledger) -> Result<R, StoreError> + Send + 'static,
    {
        self.write(Ledger::visit, job, |_, _| {}).await
    }

    /// Runs a job for which `enter` made the ledger ready.
    async fn write<R, J, C>(
        &self,
        enter: fn(&mut Ledger) -> Result<(), StoreError>,
        job: J,
        confirmed: C,
    ) -> Result<R, StoreError>
    where
        R: Send + 'static,
        J: FnOnce(&mut Ledger) -> Result<R, StoreError> + Send + 'static,
        C: FnOnce(&mut Ledger, &R) + Send + 'static,
    {
        let job = move |ledger: &mut Ledger| {
            enter(ledger)?;
            job(ledger)
        };
        self.work.write(Urgency::Work, job, confirmed).await
    }

    /// A statement that depends on nothing else.
    async fn write_beside<F>(&self, write: F) -> Result<(), StoreError>
    where
        F: FnOnce(&Connection) -> Result<(), StoreError> + Send + 'static,
    {
        if self.readers.is_shared() {
            return self.readers.read(write).await;
        }
        let write = move |ledger: &mut Ledger| write(&ledger.connection);
        self.work.write(Urgency::Page, write, |_, ()| {}).await
    }

    /// Repeats a job, each time in a transaction of its own, until one does less than it may; returns
    /// how much they did.
    async fn in_pieces<F>(&self, job: F) -> Result<u64, StoreError>
    where
        F: Fn(&mut Ledger) -> Result<usize, StoreError> + Send + Sync + 'static,
    {
        let job = Arc::new(job);
        let mut total = 0;
        loop {
            let job = Arc::clone(&job);
            let done = self.order(move |ledger| job(ledger)).await?;
            total += done as u64;
            if done < PEOPLE_AT_ONCE {
                return Ok(total);
            }
        }
    }
}

#[async_trait]
impl Store for LedgerStore {
    async fn lead(&self) -> Result<Term, StoreError> {
        terms::lead(&self.work, &self.beside, &self.terms).await
    }

    fn is_shared(&self) -> bool {
        self.readers.is_shared()
    }

    async fn append(&self, source: &SourceName, page: Page, now: Millis) -> Result<(), StoreError> {
        let page = InboxPage::new(source.clone(), page, now);
        if let Some(pages) = &self.pages {
            return pages.append(page).await;
        }
        let refusals = self.refusals.clone();
        self.work
            .write(
                Urgency::Page,
                move |ledger| {
                    // They came before it, and the page may be the very one that was refused.
                    let noted = refusals.write_down(ledger)?;
                    ledger.append(&page)?;
                    Ok(noted)
                },
                |_, noted| noted.keep(),
            )
            .await
            .map(drop)
    }

    fn note_refused(&self, source: &SourceName, page: &Page, now: Millis) {
        let refusal = InboxPage::refused(source.clone(), page, now);
        self.refusals.remember(refusal);
        if let Some(pages) = &self.pages {
            pages.note_refusals();
            return;
        }
        let refusals = self.refusals.clone();
        // Nobody waits for it: where it fails, the next page takes the refusal along.
        drop(self.work.order(
            Urgency::Work,
            move |ledger| refusals.write_down(ledger),
            |_, noted| noted.keep(),
        ));
    }

    async fn decide_held(
        &self,
        source: &SourceName,
        cohort_id: &str,
        decision: HoldDecision,
        _now: Millis,
    ) -> Result<Option<u64>, StoreError> {
        let (source, cohort_id) = (source.clone(), cohort_id.to_owned());
        self.order(move |ledger| {
            let Some(cohorts) = ledger.meant(&source, &cohort_id)? else {
                return Ok(None);
            };
            ledger.decide_held(&cohorts, decision).map(Some)
        })
        .await
    }

    async fn retire(
        &self,
        source: &SourceName,
        cohort_id: &str,
        _now: Millis,
    ) -> Result<Option<u64>, StoreError> {
        let (source, cohort_id) = (source.clone(), cohort_id.to_owned());
        self.order(move |ledger| {
            let Some(cohorts) = ledger.meant(&source, &cohort_id)? else {
                return Ok(None);
            };
            ledger.retire(&cohorts).map(Some)
        })
        .await
    }

    async fn forget(
        &self,
        identifier: &str,
        traits: bool,
        _now: Millis,
    ) -> Result<u64, StoreError> {
        let identifier = identifier.to_owned();
        self.order(move |ledger| ledger.order_erasure(&identifier, traits))
            .await
    }

    async fn has_sent_property(
        &self,
        source: &SourceName,
        property: &str,
    ) -> Result<bool, StoreError> {
        let (source, property) = (source.to_string(), property.to_owned());
        self.read(move |connection| {
            Ok(connection
                .prepare_cached(
                    "SELECT 1 FROM source_property WHERE source = ?1 AND property = ?2",
                )?
                .exists([source, property])?)
        })
        .await
    }

    async fn note_property(&self, source: &SourceName, property: &str) -> Result<(), StoreError> {
        let (source, property) = (source.to_string(), property.to_owned());
        self.write_beside(move |connection| {
            connection.execute(
                "INSERT INTO source_property (source, property) VALUES (?1, ?2) ON CONFLICT DO NOTHING",
                [source, property],
            )?;
            Ok(())
        })
        .await
    }

    async fn assemble(
        &self,
        pages: usize,
        people: usize,
        now: Millis,
    ) -> Result<Assembled, StoreError> {
        self.work(move |ledger| ledger.assemble(pages, people, now))
            .await
    }

    async fn waiting_pages(&self) -> Result<u64, StoreError> {
        self.read(read::waiting_pages).await
    }

    async fn page_people(
        &self,
        pages: Vec<(SessionRef, u32)>,
    ) -> Result<Vec<PagePeople>, StoreError> {
        self.read(move |connection| {
            let people = pages
                .iter()
                .map(|(session, page)| people::page_people(connection, *session, *page));
            people.collect()
        })
        .await
    }

    async fn rename_people(
        &self,
        session: SessionRef,
        page: u32,
        now: Millis,
    ) -> Result<(), StoreError> {
        self.work(move |ledger| ledger.rename_people(session, page, now))
            .await
    }

    async fn place_people(
        &self,
        cohort: CohortRef,
        people: Vec<(PersonHash, String)>,
    ) -> Result<(), StoreError> {
        self.work(move |ledger| ledger.place_people(cohort, &people))
            .await
    }

    async fn count_removals(&self, chunk: Chunk) -> Result<Counted, StoreError> {
        self.read(move |connection| apply::count_removals(connection, &chunk))
            .await
    }

    async fn judge(
        &self,
        session: SessionRef,
        layers: Vec<SessionRef>,
        judgement: Judgement,
    ) -> Result<(), StoreError> {
        self.work(move |ledger| ledger.judge(session, &layers, &judgement))
            .await
    }

    async fn apply(&self, chunk: Chunk, now: Millis) -> Result<Applied, StoreError> {
        self.work(move |ledger| ledger.apply(&chunk, now)).await
    }

    async fn finish(
        &self,
        session: SessionRef,
        recognised: Recognised,
        now: Millis,
    ) -> Result<(), StoreError> {
        self.work(move |ledger| ledger.finish(session, &recognised, now))
            .await
    }

    async fn adopt_keys(&self, now: Millis) -> Result<(), StoreError> {
        while self
            .work(move |ledger| ledger.adopt_keys(PEOPLE_AT_ONCE, now))
            .await?
        {}
        Ok(())
    }

    async fn exchange(
        &self,
        destination: &DestinationName,
        settle: Vec<Settlement>,
        after: Option<Arc<str>>,
        limit: usize,
        now: Millis,
    ) -> Result<Claims, StoreError> {
        let name = destination.clone();
        let ended: Vec<_> = settle
            .iter()
            .map(|settlement| Arc::clone(&settlement.claim.identifier))
            .collect();
        let exchanged = self
            .write(
                Ledger::must_lead,
                move |ledger| {
                    let destination = ledger.destination(&name)?;
                    let claims =
                        ledger.exchange(destination, &settle, after.as_deref(), limit, now)?;
                    Ok((destination, claims))
                },
                move |ledger, (destination, claims)| {
                    ledger.note_in_flight(*destination, &ended, &claims.claims, now);
                },
            )
            .await?;
        Ok(exchanged.1)
    }

    async fn follow_routes(&self, limit: usize, now: Millis) -> Result<bool, StoreError> {
        self.work(move |ledger| ledger.follow_routes(limit, now))
            .await
    }

    async fn count_calls(
        &self,
        destination: &DestinationName,
        order: CallOrder,
        now: Millis,
    ) -> Result<CallsCounted, StoreError> {
        let name = destination.clone();
        self.work(move |ledger| {
            let destination = ledger.destination(&name)?;
            ledger.count_calls(destination, order, now)
        })
        .await
    }

    async fn unproven_through(&self, destination: &DestinationName) -> Result<i64, StoreError> {
        let name = destination.clone();
        self.read(move |connection| unproven::unproven_through(connection, &name))
            .await
    }

    async fn proved(&self, destination: &DestinationName, through: i64) -> Result<(), StoreError> {
        loop {
            let name = destination.clone();
            let is_more_left = self
                .work(move |ledger| {
                    let destination = ledger.destination(&name)?;
                    ledger.proved(destination, through)
                })
                .await?;
            if !is_more_left {
                return Ok(());
            }
        }
    }

    async fn doubt(&self, destination: &DestinationName, now: Millis) -> Result<u64, StoreError> {
        let mut traits = 0;
        loop {
            let name = destination.clone();
            let doubted = self
                .work(move |ledger| {
                    let destination = ledger.destination(&name)?;
                    ledger.doubt_some(destination, now)
                })
                .await?;
            match doubted {
                Some(some) => traits += some,
                None => return Ok(traits),
            }
        }
    }

    async fn order_resync(
        &self,
        order: ResyncOrder,
        now: Millis,
    ) -> Result<Option<u64>, StoreError> {
        self.order(move |ledger| ledger.order_resync(&order, now))
            .await
    }

    async fn cancel_resync(&self, scope: ResyncScope) -> Result<Option<u64>, StoreError> {
        self.order(move |ledger| ledger.cancel_resync(&scope)).await
    }

    async fn resync_some(
        &self,
        destination: &DestinationName,
        room: ResyncRoom,
        now: Millis,
    ) -> Result<ResyncStep, StoreError> {
        let name = destination.clone();
        self.work(move |ledger| {
            let destination = ledger.destination(&name)?;
            ledger.resync_some(destination, &room, now)
        })
        .await
    }

    async fn resyncs(&self) -> Result<Vec<ResyncView>, StoreError> {
        self.read(resyncs::resyncs).await
    }

    async fn canary_memory(
        &self,
        destination: &DestinationName,
    ) -> Result<CanaryMemory, StoreError> {
        let name = destination.clone();
        self.read(move |connection| unproven::canary_memory(connection, &name))
            .await
    }

    async fn remember_canary(
        &self,
        destination: &DestinationName,
        memory: CanaryMemory,
    ) -> Result<(), StoreError> {
        let name = destination.clone();
        self.work(move |ledger| ledger.remember_canary(&name, &memory))
            .await
    }

    async fn cohorts(&self) -> Result<Vec<CohortView>, StoreError> {
        let identified_by = Arc::clone(&self.identified_by);
        self.read(move |connection| read::cohorts(connection, &identified_by))
            .await
    }

    async fn member(&self, identifier: &str) -> Result<Vec<MembershipView>, StoreError> {
        let identifier = identifier.to_owned();
        let on_leave = self.on_leave.clone();
        self.read(move |connection| {
            read::member(connection, &identifier, |destination, is_wanted| {
                Target::of(
                    Wanted::of(is_wanted),
                    on_leave.get(destination).copied().unwrap_or_default(),
                )
            })
        })
        .await
    }

    async fn dead_letters(&self, limit: usize) -> Result<Vec<DeadLetter>, StoreError> {
        self.read(move |connection| read::dead_letters(connection, limit))
            .await
    }

    async fn retry_dead_letters(
        &self,
        filter: DeadLetterFilter,
        now: Millis,
    ) -> Result<u64, StoreError> {
        let until = self.read(actions::youngest_dead_letter).await?.max(now);
        self.in_pieces(move |ledger| ledger.retry_dead_letters(&filter, PEOPLE_AT_ONCE, until, now))
            .await
    }

    async fn drop_dead_letters(
        &self,
        filter: DeadLetterFilter,
        now: Millis,
    ) -> Result<u64, StoreError> {
        let until = self.read(actions::youngest_dead_letter).await?.max(now);
        self.in_pieces(move |ledger| ledger.drop_dead_letters(&filter, PEOPLE_AT_ONCE, until))
            .await
    }

    async fn pause_cohort(
        &self,
        source: &SourceName,
        cohort_id: &str,
        pauses: bool,
        now: Millis,
    ) -> Result<Option<u64>, StoreError> {
        let (source, cohort_id) = (source.clone(), cohort_id.to_owned());
        self.order(move |ledger| {
            let Some(cohorts) = ledger.meant(&source, &cohort_id)? else {
                return Ok(None);
            };
            ledger.pause_cohorts(&cohorts, pauses, now).map(Some)
        })
        .await
    }

    async fn pause_destination(
        &self,
        destination: &DestinationName,
        pauses: bool,
        now: Millis,
    ) -> Result<Option<u64>, StoreError> {
        let name = destination.clone();
        self.order(move |ledger| ledger.pause_destination(&name, pauses, now))
            .await
    }

    async fn paused_destinations(&self) -> Result<Vec<DestinationName>, StoreError> {
        self.read(pauses::paused_destinations).await
    }

    async fn unwritten(&self, month: Month) -> Result<Unwritten, StoreError> {
        let on_leave = self.on_leave.clone();
        self.read(move |connection| unwritten::unwritten(connection, &on_leave, month))
            .await
    }

    async fn follow_pauses(&self, limit: usize) -> Result<bool, StoreError> {
        self.work(move |ledger| ledger.follow_pauses(limit)).await
    }

    fn ledger_id(&self) -> &str {
        &self.ledger_id
    }

    fn log_hash_key(&self) -> &[u8; 32] {
        &self.log_hash_key
    }

    async fn ready(&self) -> Result<(), StoreError> {
        // A write, so that a full or read-only disk shows.
        self.write_beside(|connection| {
            connection.execute(
                "INSERT INTO meta (key, value) VALUES ('ready', 1) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
                (),
            )?;
            Ok(())
        })
        .await
    }

    async fn close(&self) {
        if let Some(pages) = &self.pages {
            pages.close();
        }
        let resigned = self
            .work
            .write(Urgency::Work, Ledger::resign, |ledger, ()| {
                ledger.end_term()
            });
        if let Err(error) = resigned.await {
            tracing::warn!(%error, "the lead could not be given up: another replica waits for its end");
        }
        self.work.close();
        self.readers.close();
        self.beside.close();
    }
}

impl Drop for LedgerStore {
    fn drop(&mut self) {
        self.terms.cancel();
    }
}

/// Who a ledger is, and the key of its log.
pub(super) struct Secrets {
    pub(super) ledger_id: [u8; 32],
    pub(super) log_hash_key: [u8; 32],
}

/// What the store knows of the settings beside the ledger.
struct Rules {
    on_leave: HashMap<String, OnLeave>,
    identified_by: read::IdentifiedBy,
}

impl Rules {
    fn of(sources: &[SourceRules], destinations: &[DestinationRules]) -> Self {
        let on_leave = destinations
            .iter()
            .map(|rules| (rules.name.to_string(), rules.on_leave));
        let identified_by = sources
            .iter()
            .map(|rules| (rules.name.to_string(), Arc::clone(&rules.identified_by)));
        Rules {
            on_leave: on_leave.collect(),
            identified_by: identified_by.collect(),
        }
    }
}
