//! The inbox: pages written down, and taken in order into their sessions.

use rusqlite::{OptionalExtension, Row, params};

use super::ledger::{CohortKey, Ledger};
use super::sessions::stored_state;
use crate::clock::Millis;
use crate::cohort::{Action, SourceName};
use crate::mixpanel::{Page, PageInfo};
use crate::session::{Fingerprint, Placement, Session, State};
use crate::store::{Assembled, CohortRef, Effect, StoreError};

/// A page on its way into the inbox, in the form in which it lies there.
pub struct InboxPage {
    source: SourceName,
    page: Page,
    fingerprint: Fingerprint,
    received_at: Millis,
}

impl InboxPage {
    /// Fingerprints a page. Done by the caller, so that the writing thread only writes.
    pub fn new(source: SourceName, page: Page, received_at: Millis) -> Self {
        InboxPage {
            source,
            fingerprint: page.roster.fingerprint(),
            page,
            received_at,
        }
    }
}

impl Ledger {
    /// Writes a page down.
    pub fn append(&mut self, inbox_page: &InboxPage) -> Result<(), StoreError> {
        let InboxPage {
            source,
            page,
            fingerprint,
            received_at,
        } = inbox_page;
        self.connection
            .prepare_cached(
                "INSERT INTO inbox (source, project_id, cohort_id, cohort_name, action, session_id, page, total_pages, received_at, fingerprint, roster)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
            )?
            .execute(params![
                &*source.0,
                page.project_id,
                page.cohort_id,
                page.cohort_name,
                page.action.as_str(),
                page.session_id,
                page.page_info.map(|info| info.number),
                page.page_info.map(|info| info.total),
                received_at,
                &fingerprint[..],
                page.roster.as_bytes(),
            ])?;
        Ok(())
    }

    /// Takes pages into their sessions, in order, until one makes a session whole.
    pub fn assemble(&mut self, limit: usize, now: Millis) -> Result<Assembled, StoreError> {
        let mut assembled = Assembled::default();
        let mut taken_through = self.taken_through()?;
        while assembled.pages < limit && !assembled.whole {
            let Some(waiting) = self.next_waiting(taken_through)? else {
                break;
            };
            taken_through = waiting.seq;
            assembled.pages += 1;
            assembled.whole = self.take(waiting, now)?;
        }
        if assembled.pages > 0 {
            self.connection
                .prepare_cached(
                    "INSERT OR REPLACE INTO meta (key, value) VALUES ('taken_through', ?1)",
                )?
                .execute([taken_through])?;
        }
        Ok(assembled)
    }

    fn taken_through(&self) -> Result<i64, StoreError> {
        Ok(self
            .connection
            .prepare_cached("SELECT value FROM meta WHERE key = 'taken_through'")?
            .query_row([], |row| row.get(0))
            .optional()?
            .unwrap_or(0))
    }

    fn next_waiting(&self, after: i64) -> Result<Option<Waiting>, StoreError> {
        Ok(self
            .connection
            .prepare_cached(
                "SELECT seq, source, project_id, cohort_id, cohort_name, action, session_id, page, total_pages, received_at, fingerprint, length(roster) = 0
                 FROM inbox WHERE seq > ?1 ORDER BY seq LIMIT 1",
            )?
            .query_row([after], Waiting::from_row)
            .optional()?)
    }

    /// Takes one page into its session; whether that made the session whole.
    fn take(&mut self, waiting: Waiting, now: Millis) -> Result<bool, StoreError> {
        let cohort = self.cohort(
            waiting.cohort.clone(),
            waiting.cohort_name.as_deref(),
            waiting.received_at,
        )?;
        match (waiting.session_id.as_deref(), waiting.page_info) {
            (Some(session_id), Some(info)) => {
                self.take_into_session(&waiting, cohort, session_id, info, now)
            }
            _ => self.take_alone(&waiting, cohort, now),
        }
    }

    /// A page without a session or without a place in it is complete in itself.
    fn take_alone(
        &mut self,
        waiting: &Waiting,
        cohort: CohortRef,
        now: Millis,
    ) -> Result<bool, StoreError> {
        if waiting.action == Action::Members {
            tracing::warn!(
                source = %waiting.cohort.source,
                cohort_id = %waiting.cohort.cohort_id,
                "a full sync without page_info or session id only adds: nothing proves that all its pages came, so nobody leaves"
            );
        }
        if waiting.is_empty {
            self.drop_page(waiting.seq)?;
            return Ok(false);
        }
        let effect = Effect::of(waiting.action, false);
        let session = self.insert_session(cohort, waiting, State::Whole, effect, 1)?;
        self.hold(session, 1, waiting)?;
        self.mark_completed(session, now)?;
        Ok(true)
    }

    fn take_into_session(
        &mut self,
        waiting: &Waiting,
        cohort: CohortRef,
        session_id: &str,
        info: PageInfo,
        now: Millis,
    ) -> Result<bool, StoreError> {
        self.forget_expired(cohort, waiting, session_id)?;
        let (number, mut session) = match self.find_session(cohort, waiting.action, session_id)? {
            Some(found) => found,
            None => {
                self.supersede(cohort, waiting)?;
                let effect = Effect::of(waiting.action, true);
                (
                    self.insert_session(cohort, waiting, State::Open, effect, info.total)?,
                    Session::new(),
                )
            }
        };
        let was = session.state;
        let placement = session.receive(info.number, info.total, waiting.fingerprint);
        match placement {
            Placement::Drop => {
                if session.state == State::Ended {
                    tracing::info!(
                        source = %waiting.cohort.source, cohort_id = %waiting.cohort.cohort_id,
                        session = session_id, page = info.number,
                        "a page of a session that is over changes nothing"
                    );
                }
                self.drop_page(waiting.seq)?;
            }
            Placement::Hold { replaces } => {
                if replaces {
                    self.drop_pages_from(number, info.number)?;
                }
                self.hold(number, info.number, waiting)?;
            }
        }
        if session.state != State::Ended {
            self.connection
                .prepare_cached(
                    "UPDATE session SET state = ?2, total_pages = ?3, heard_at = max(heard_at, ?4) WHERE id = ?1",
                )?
                .execute(params![number.0, stored_state(session.state), info.total, waiting.received_at])?;
        }
        let became_whole =
            session.state == State::Whole && (was != State::Whole || placement != Placement::Drop);
        self.last_session = Some((number, session));
        if !became_whole {
            return Ok(false);
        }
        self.mark_completed(number, now)?;
        if waiting.action != Action::Members && info.total == 1 && waiting.is_empty {
            // A heartbeat: nothing to apply.
            self.finish_session(number)?;
            return Ok(false);
        }
        Ok(true)
    }
}

/// A page in the inbox, without its people.
pub(super) struct Waiting {
    pub(super) seq: i64,
    pub(super) cohort: CohortKey,
    pub(super) cohort_name: Option<String>,
    pub(super) action: Action,
    pub(super) session_id: Option<String>,
    pub(super) page_info: Option<PageInfo>,
    pub(super) received_at: Millis,
    pub(super) fingerprint: Fingerprint,
    pub(super) is_empty: bool,
}

impl Waiting {
    fn from_row(row: &Row<'_>) -> rusqlite::Result<Self> {
        let action: String = row.get(5)?;
        let number: Option<u32> = row.get(7)?;
        let total: Option<u32> = row.get(8)?;
        Ok(Waiting {
            seq: row.get(0)?,
            cohort: CohortKey {
                source: SourceName::from(row.get::<_, String>(1)?.as_str()),
                project_id: row.get(2)?,
                cohort_id: row.get(3)?,
            },
            cohort_name: row.get(4)?,
            action: action_from(5, &action)?,
            session_id: row.get(6)?,
            page_info: number
                .zip(total)
                .map(|(number, total)| PageInfo { number, total }),
            received_at: row.get(9)?,
            fingerprint: row.get(10)?,
            is_empty: row.get(11)?,
        })
    }
}

/// An action as stored.
pub fn action_from(column: usize, word: &str) -> rusqlite::Result<Action> {
    Action::parse(word).ok_or_else(|| {
        rusqlite::Error::FromSqlConversionFailure(
            column,
            rusqlite::types::Type::Text,
            format!("{word:?} is no action").into(),
        )
    })
}
