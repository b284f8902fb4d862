//! Sessions as they are held: found, superseded, filled, ended and tidied away.

use rusqlite::{OptionalExtension, params};

use super::inbox::Waiting;
use super::ledger::Ledger;
use crate::clock::{Millis, millis};
use crate::cohort::Action;
use crate::session::{Session, State};
use crate::store::{CohortRef, Effect, SESSION_EXPIRES, SessionRef, StoreError};

impl Ledger {
    /// A newer session of an action ends the older ones of that action.
    pub(super) fn supersede(
        &mut self,
        cohort: CohortRef,
        waiting: &Waiting,
    ) -> Result<(), StoreError> {
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
    pub(super) fn forget_expired(
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

    pub(super) fn find_session(
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

    pub(super) fn insert_session(
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

    pub(super) fn hold(
        &self,
        session: SessionRef,
        page: u32,
        waiting: &Waiting,
    ) -> Result<(), StoreError> {
        self.connection
            .prepare_cached("INSERT INTO session_page (session, page, fingerprint, inbox_seq) VALUES (?1, ?2, ?3, ?4)")?
            .execute(params![session.0, page, &waiting.fingerprint[..], waiting.seq])?;
        Ok(())
    }

    pub(super) fn mark_completed(
        &self,
        session: SessionRef,
        now: Millis,
    ) -> Result<(), StoreError> {
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

    pub(super) fn drop_page(&self, seq: i64) -> Result<(), StoreError> {
        self.connection
            .prepare_cached("DELETE FROM inbox WHERE seq = ?1")?
            .execute([seq])?;
        Ok(())
    }

    pub(super) fn drop_pages_from(&self, session: SessionRef, page: u32) -> Result<(), StoreError> {
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

pub(super) fn stored_state(state: State) -> i64 {
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
