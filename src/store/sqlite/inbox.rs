//! The inbox: pages written down, and taken in order into their sessions.

use rusqlite::{OptionalExtension, Row, params};

use super::ledger::{CohortKey, Ledger};
use crate::clock::{Millis, millis};
use crate::cohort::{Action, SourceName};
use crate::mixpanel::{Page, PageInfo};
use crate::roster::Roster;
use crate::session::{Fingerprint, Placement, Session, State};
use crate::store::{Assembled, CohortRef, Effect, SESSION_EXPIRES, SessionRef, StoreError};

/// A page on its way into the inbox, in the form in which it lies there.
pub struct InboxPage {
    source: SourceName,
    page: Page,
    roster: Roster,
    fingerprint: Fingerprint,
    received_at: Millis,
}

impl InboxPage {
    /// Encodes a page. Done by the caller, so that the writing thread only writes.
    pub fn new(source: SourceName, page: Page, received_at: Millis) -> Self {
        let roster = Roster::from_sorted(page.identifiers.iter().map(String::as_str));
        InboxPage {
            source,
            fingerprint: roster.fingerprint(),
            roster,
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
            roster,
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
                roster.as_bytes(),
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

    /// A newer session of an action ends the older ones of that action.
    fn supersede(&mut self, cohort: CohortRef, waiting: &Waiting) -> Result<(), StoreError> {
        let ended = self
            .connection
            .prepare_cached(
                "UPDATE session SET state = 3 WHERE cohort = ?1 AND action = ?2 AND session_id IS NOT NULL AND state IN (0, 2) RETURNING session_id, state",
            )?
            .query_map(params![cohort.0, waiting.action.as_str()], |row| row.get::<_, String>(0))?
            .collect::<Result<Vec<_>, _>>()?;
        for older in ended {
            tracing::debug!(session = older, "session is over: a newer one began");
        }
        Ok(())
    }

    /// An export that starts again after its session expired may keep its id; its pages are news.
    fn forget_expired(
        &self,
        cohort: CohortRef,
        waiting: &Waiting,
        session_id: &str,
    ) -> Result<(), StoreError> {
        let silent_since = waiting.received_at - millis(SESSION_EXPIRES);
        self.connection
            .prepare_cached(
                "UPDATE session SET session_id = NULL
                 WHERE cohort = ?1 AND action = ?2 AND session_id = ?3 AND state = 3 AND heard_at < ?4",
            )?
            .execute(params![
                cohort.0,
                waiting.action.as_str(),
                session_id,
                silent_since
            ])?;
        Ok(())
    }

    fn find_session(
        &mut self,
        cohort: CohortRef,
        action: Action,
        session_id: &str,
    ) -> Result<Option<(SessionRef, Session)>, StoreError> {
        let found = self
            .connection
            .prepare_cached(
                "SELECT id, state, total_pages FROM session WHERE cohort = ?1 AND action = ?2 AND session_id = ?3",
            )?
            .query_row(params![cohort.0, action.as_str(), session_id], |row| {
                Ok((SessionRef(row.get(0)?), row.get::<_, i64>(1)?, row.get::<_, u32>(2)?))
            })
            .optional()?;
        let Some((number, state, total)) = found else {
            return Ok(None);
        };
        let pages = match self.last_session.take() {
            Some((last, session)) if last == number => session.pages,
            _ => self
                .connection
                .prepare_cached("SELECT page, fingerprint FROM session_page WHERE session = ?1")?
                .query_map([number.0], |row| Ok((row.get(0)?, row.get(1)?)))?
                .collect::<Result<_, _>>()?,
        };
        let session = Session {
            state: state_from(state),
            total,
            pages,
        };
        Ok(Some((number, session)))
    }

    fn insert_session(
        &self,
        cohort: CohortRef,
        waiting: &Waiting,
        state: State,
        effect: Effect,
        total: u32,
    ) -> Result<SessionRef, StoreError> {
        // A page that stands alone may carry a session id; it is no part of that session.
        let session_id = waiting.page_info.and(waiting.session_id.as_deref());
        self.connection
            .prepare_cached(
                "INSERT INTO session (cohort, action, session_id, state, effect, total_pages, heard_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            )?
            .execute(params![
                cohort.0,
                waiting.action.as_str(),
                session_id,
                stored_state(state),
                stored_effect(effect),
                total,
                waiting.received_at,
            ])?;
        Ok(SessionRef(self.connection.last_insert_rowid()))
    }

    fn hold(&self, session: SessionRef, page: u32, waiting: &Waiting) -> Result<(), StoreError> {
        self.connection
            .prepare_cached("INSERT INTO session_page (session, page, fingerprint, inbox_seq) VALUES (?1, ?2, ?3, ?4)")?
            .execute(params![session.0, page, &waiting.fingerprint[..], waiting.seq])?;
        Ok(())
    }

    fn mark_completed(&self, session: SessionRef, now: Millis) -> Result<(), StoreError> {
        self.connection
            .prepare_cached("UPDATE session SET state = 1, completed_at = ?2, applied_through = NULL WHERE id = ?1")?
            .execute(params![session.0, now])?;
        Ok(())
    }

    /// A session has taken effect. Its pages stay until a newer one begins, so that a page that
    /// comes again with other people finds the others.
    pub(super) fn finish_session(&self, session: SessionRef) -> Result<(), StoreError> {
        self.connection
            .prepare_cached(
                "UPDATE session SET state = CASE WHEN session_id IS NULL THEN 3 ELSE 2 END, applied_through = NULL WHERE id = ?1",
            )?
            .execute([session.0])?;
        Ok(())
    }

    fn drop_page(&self, seq: i64) -> Result<(), StoreError> {
        self.connection
            .prepare_cached("DELETE FROM inbox WHERE seq = ?1")?
            .execute([seq])?;
        Ok(())
    }

    fn drop_pages_from(&self, session: SessionRef, page: u32) -> Result<(), StoreError> {
        self.connection
            .prepare_cached("DELETE FROM inbox WHERE seq IN (SELECT inbox_seq FROM session_page WHERE session = ?1 AND page >= ?2)")?
            .execute(params![session.0, page])?;
        self.connection
            .prepare_cached("DELETE FROM session_page WHERE session = ?1 AND page >= ?2")?
            .execute(params![session.0, page])?;
        Ok(())
    }

    /// Ends silent sessions, and drops what ended ones still hold, a little at a time.
    pub fn tidy(&mut self, limit: usize, now: Millis) -> Result<usize, StoreError> {
        let silent_since = now - millis(SESSION_EXPIRES);
        let expired = self
            .connection
            .prepare_cached("UPDATE session SET state = 3 WHERE state IN (0, 2) AND heard_at < ?1")?
            .execute([silent_since])?;
        let held = self
            .connection
            .prepare_cached(
                "SELECT p.session, p.page, p.inbox_seq FROM session s JOIN session_page p ON p.session = s.id WHERE s.state = 3 LIMIT ?1",
            )?
            .query_map([i64::try_from(limit).unwrap_or(i64::MAX)], |row| {
                Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?))
            })?
            .collect::<Result<Vec<_>, _>>()?;
        for (session, page, seq) in &held {
            self.drop_page(*seq)?;
            self.connection
                .prepare_cached("DELETE FROM session_page WHERE session = ?1 AND page = ?2")?
                .execute([session, page])?;
        }
        // The mark of an ended session is what makes its late pages harmless; they are not later
        // than a session may be silent.
        let forgotten = self
            .connection
            .prepare_cached(
                "DELETE FROM session WHERE state = 3 AND (heard_at < ?1 OR session_id IS NULL)
                 AND NOT EXISTS (SELECT 1 FROM session_page WHERE session = session.id)
                 AND id <> (SELECT max(id) FROM session AS other WHERE other.cohort = session.cohort)",
            )?
            .execute([silent_since])?;
        Ok(expired + held.len() + forgotten)
    }
}

/// A page in the inbox, without its people.
struct Waiting {
    seq: i64,
    cohort: CohortKey,
    cohort_name: Option<String>,
    action: Action,
    session_id: Option<String>,
    page_info: Option<PageInfo>,
    received_at: Millis,
    fingerprint: Fingerprint,
    is_empty: bool,
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

fn stored_state(state: State) -> i64 {
    match state {
        State::Open => 0,
        State::Whole => 1,
        State::Applied => 2,
        State::Ended => 3,
    }
}

fn state_from(stored: i64) -> State {
    match stored {
        0 => State::Open,
        1 => State::Whole,
        2 => State::Applied,
        _ => State::Ended,
    }
}

fn stored_effect(effect: Effect) -> i64 {
    match effect {
        Effect::Replace => 0,
        Effect::Add => 1,
        Effect::Remove => 2,
    }
}

/// An effect as stored.
pub fn effect_from(stored: i64) -> Effect {
    match stored {
        0 => Effect::Replace,
        1 => Effect::Add,
        _ => Effect::Remove,
    }
}
