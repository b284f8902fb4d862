//! Sessions as they are held: found, superseded, filled, ended and tidied away.

use std::collections::BTreeMap;

use super::inbox::Waiting;
use super::state::Ledger;
use crate::clock::{Millis, millis};
use crate::cohort::{Action, Half};
use crate::mixpanel::PageInfo;
use crate::run::Habits;
use crate::session::{Fingerprint, Placement, Session, State};
use crate::store::database::{OptionalRow, params};
use crate::store::{CohortRef, Effect, SESSION_EXPIRES, SessionRef, StoreError};

/// Pages that ended sessions still hold.
pub const PAGES_TO_DROP: &str = "SELECT p.session, p.page, p.inbox_seq FROM session s
     JOIN session_page p ON p.session = s.id WHERE s.state = 3 AND s.is_witness = 0 LIMIT ?1";

/// A session and what else is known of it.
pub(super) struct Found {
    pub(super) number: SessionRef,
    pub(super) session: Session,
    pub(super) run: i64,
    /// When it was first heard of; of a full sync: since the last silence.
    pub(super) began_at: Millis,
    /// When it was last heard of.
    pub(super) heard_at: Millis,
    /// No page changes it any more.
    pub(super) is_closed: bool,
}

impl Ledger {
    /// A page of a full sync.
    pub(super) fn take_full(
        &mut self,
        waiting: &Waiting,
        cohort: CohortRef,
        session_id: &str,
        info: PageInfo,
        habits: Habits,
        now: Millis,
    ) -> Result<bool, StoreError> {
        self.forget_expired(cohort, waiting, session_id)?;
        let found = match self.find_session(cohort, waiting.action, session_id)? {
            Some(found) if found.is_closed => {
                return self.drop_late(waiting, info);
            }
            Some(found) => found,
            None => {
                self.end_full_syncs(cohort, true)?;
                let run = self.begin_run(cohort, None, waiting.received_at)?;
                self.open_session(waiting, cohort, info, run)?
            }
        };
        let (number, was) = (found.number, found.session.state);
        let mut session = found.session;
        let mut pass_began_at = found.began_at;
        if habits.is_over(found.heard_at, waiting.received_at) {
            pass_began_at = waiting.received_at;
            self.begin_pass(number, pass_began_at)?;
        }
        let held = session.pages.get(&info.number);
        if held.is_some_and(|held| *held != waiting.fingerprint) {
            // Other content after a silence: it began again from the top, in whatever order.
            self.drop_pages_heard_before(number, pass_began_at)?;
            session.pages = self.pages_held(number)?;
            session.state = State::Open;
        }
        let placement = session.receive(info.number, info.total, waiting.fingerprint);
        self.place(number, waiting, info, placement, &session)?;
        self.touch(number, info.number, waiting.received_at)?;
        let became_whole =
            session.state == State::Whole && (was != State::Whole || placement != Placement::Drop);
        self.last_session = Some((number, session));
        if became_whole {
            self.mark_whole(number, waiting.seq, now)?;
        }
        Ok(became_whole)
    }

    fn begin_pass(&self, session: SessionRef, at: Millis) -> Result<(), StoreError> {
        self.connection
            .prepare_cached("UPDATE session SET began_at = ?2 WHERE id = ?1")?
            .execute(params![session.0, at])?;
        Ok(())
    }

    fn drop_pages_heard_before(&self, session: SessionRef, at: Millis) -> Result<(), StoreError> {
        let dropped: Vec<i64> = self
            .connection
            .prepare_cached(
                "DELETE FROM session_page WHERE session = ?1 AND heard_at < ?2 RETURNING inbox_seq",
            )?
            .query_map(params![session.0, at], |row| row.get(0))?
            .collect::<Result<_, _>>()?;
        dropped.into_iter().try_for_each(|seq| self.drop_page(seq))
    }

    /// Holds or drops a page as its session has it, and writes down where the session stands.
    pub(super) fn place(
        &mut self,
        number: SessionRef,
        waiting: &Waiting,
        info: PageInfo,
        placement: Placement,
        session: &Session,
    ) -> Result<(), StoreError> {
        match placement {
            Placement::Drop => self.drop_page(waiting.seq)?,
            Placement::Hold { replaces } => {
                if replaces {
                    self.drop_pages_from(number, info.number)?;
                }
                self.hold(number, info.number, waiting)?;
            }
        }
        self.connection
            .prepare_cached(
                "UPDATE session SET state = ?2, total_pages = ?3, heard_at = CASE WHEN heard_at < ?4 THEN ?4 ELSE heard_at END WHERE id = ?1",
            )?
            .execute(params![number.0, stored_state(session.state), info.total, waiting.received_at])?;
        Ok(())
    }

    /// A page of a session that is over.
    pub(super) fn drop_late(
        &mut self,
        waiting: &Waiting,
        info: PageInfo,
    ) -> Result<bool, StoreError> {
        tracing::info!(
            source = %waiting.cohort.source, cohort_id = %waiting.cohort.cohort_id,
            session = waiting.session_id, page = info.number,
            "a page of a session that is over changes nothing"
        );
        self.drop_page(waiting.seq)?;
        Ok(false)
    }

    /// A session of which nothing came before.
    pub(super) fn open_session(
        &mut self,
        waiting: &Waiting,
        cohort: CohortRef,
        info: PageInfo,
        run: i64,
    ) -> Result<Found, StoreError> {
        self.forget_refusals(cohort, waiting)?;
        let effect = Effect::of(waiting.action);
        let number = self.insert_session(cohort, waiting, State::Open, effect, info.total, run)?;
        Ok(Found {
            number,
            session: Session::new(),
            run,
            began_at: waiting.received_at,
            heard_at: waiting.received_at,
            is_closed: false,
        })
    }

    /// What was refused of an earlier pass under the same id may have no place in this one.
    fn forget_refusals(&self, cohort: CohortRef, waiting: &Waiting) -> Result<(), StoreError> {
        self.connection
            .prepare_cached(
                "DELETE FROM refusal WHERE cohort = ?1 AND action = ?2 AND session_id = ?3",
            )?
            .execute(params![
                cohort.0,
                waiting.action.as_str(),
                waiting.session_id
            ])?;
        Ok(())
    }

    /// A newer session of a half ends the unfinished older ones, which stay as witnesses; no page
    /// changes those that took effect.
    pub(super) fn supersede(
        &mut self,
        cohort: CohortRef,
        action: Action,
    ) -> Result<(), StoreError> {
        self.connection
            .prepare_cached(
                "UPDATE session SET state = 3, is_closed = 1, is_witness = 1
                 WHERE cohort = ?1 AND action = ?2 AND session_id IS NOT NULL AND state = 0",
            )?
            .execute(params![cohort.0, action.as_str()])?;
        self.connection
            .prepare_cached(
                "UPDATE session SET is_closed = 1 WHERE cohort = ?1 AND action = ?2 AND state IN (2, 4)",
            )?
            .execute(params![cohort.0, action.as_str()])?;
        Ok(())
    }

    /// Full syncs that took effect are over once a difference comes; unfinished ones too, once a
    /// newer full sync begins.
    pub(super) fn end_full_syncs(
        &mut self,
        cohort: CohortRef,
        unfinished_too: bool,
    ) -> Result<(), StoreError> {
        self.connection
            .prepare_cached(
                "UPDATE session SET state = 3, is_closed = 1
                 WHERE cohort = ?1 AND action = 'members' AND (state = 4 OR (?2 <> 0 AND state = 0))",
            )?
            .execute(params![cohort.0, unfinished_too])?;
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
    ) -> Result<Option<Found>, StoreError> {
        let found = self
            .connection
            .prepare_cached(
                "SELECT id, state, total_pages, run, is_closed, began_at, heard_at FROM session WHERE cohort = ?1 AND action = ?2 AND session_id = ?3",
            )?
            .query_row(params![cohort.0, action.as_str(), session_id], |row| {
                Ok((
                    SessionRef(row.get(0)?),
                    row.get::<i64>(1)?,
                    row.get::<u32>(2)?,
                    row.get::<i64>(3)?,
                    row.get::<bool>(4)?,
                    row.get::<Millis>(5)?,
                    row.get::<Millis>(6)?,
                ))
            })
            .optional()?;
        let Some((number, state, total, run, is_closed, began_at, heard_at)) = found else {
            return Ok(None);
        };
        let pages = match self.last_session.take() {
            Some((last, session)) if last == number => session.pages,
            _ => self.pages_held(number)?,
        };
        let state = state_from(state);
        Ok(Some(Found {
            number,
            session: Session {
                state,
                total,
                pages,
            },
            run,
            began_at,
            heard_at,
            is_closed: is_closed || state == State::Ended,
        }))
    }

    pub(super) fn pages_held(
        &self,
        session: SessionRef,
    ) -> Result<BTreeMap<u32, Fingerprint>, StoreError> {
        Ok(self
            .connection
            .prepare_cached("SELECT page, fingerprint FROM session_page WHERE session = ?1")?
            .query_map([session.0], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<Result<_, _>>()?)
    }

    pub(super) fn insert_session(
        &self,
        cohort: CohortRef,
        waiting: &Waiting,
        state: State,
        effect: Effect,
        total: u32,
        run: i64,
    ) -> Result<SessionRef, StoreError> {
        // A page that stands alone may carry a session id; it is no part of that session.
        let session_id = waiting.page_info.and(waiting.session_id.as_deref());
        let session = self
            .connection
            .prepare_cached(
                "INSERT INTO session (cohort, action, session_id, state, effect, total_pages, heard_at, began_at, run) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?7, ?8) RETURNING id",
            )?
            .query_row(
                params![
                    cohort.0,
                    waiting.action.as_str(),
                    session_id,
                    stored_state(state),
                    stored_effect(effect),
                    total,
                    waiting.received_at,
                    run,
                ],
                |row| row.get(0),
            )?;
        Ok(SessionRef(session))
    }

    pub(super) fn hold(
        &self,
        session: SessionRef,
        page: u32,
        waiting: &Waiting,
    ) -> Result<(), StoreError> {
        self.connection
            .prepare_cached("INSERT INTO session_page (session, page, fingerprint, inbox_seq, heard_at) VALUES (?1, ?2, ?3, ?4, ?5)")?
            .execute(params![session.0, page, &waiting.fingerprint[..], waiting.seq, waiting.received_at])?;
        Ok(())
    }

    /// All pages are there: it waits to take effect.
    pub(super) fn mark_whole(
        &self,
        session: SessionRef,
        seq: i64,
        now: Millis,
    ) -> Result<(), StoreError> {
        self.connection
            .prepare_cached(
                "UPDATE session SET state = 1, completed_at = ?2, whole_at_seq = ?3, is_judged = 0, holds = 0, applied_through = NULL WHERE id = ?1",
            )?
            .execute(params![session.0, now, seq])?;
        Ok(())
    }

    pub(super) fn drop_page(&self, seq: i64) -> Result<(), StoreError> {
        self.connection
            .prepare_cached("DELETE FROM inbox WHERE seq = ?1 AND NOT EXISTS (SELECT 1 FROM session_page WHERE inbox_seq = ?1)")?
            .execute([seq])?;
        Ok(())
    }

    pub(super) fn drop_pages_from(&self, session: SessionRef, page: u32) -> Result<(), StoreError> {
        let dropped: Vec<i64> = self
            .connection
            .prepare_cached(
                "DELETE FROM session_page WHERE session = ?1 AND page >= ?2 RETURNING inbox_seq",
            )?
            .query_map(params![session.0, page], |row| row.get(0))?
            .collect::<Result<_, _>>()?;
        for seq in dropped {
            self.drop_page(seq)?;
        }
        Ok(())
    }

    /// Ends silent sessions, and drops what ended ones still hold, a little at a time.
    pub fn tidy(&mut self, limit: usize, now: Millis) -> Result<usize, StoreError> {
        let closed = self.close_runs(now)?;
        let silent_since = now - millis(SESSION_EXPIRES);
        let expired = self
            .connection
            .prepare_cached(
                "UPDATE session SET state = 3, is_closed = 1 WHERE (state = 0 OR (state = 4 AND action = 'members')) AND heard_at < ?1",
            )?
            .execute([silent_since])?;
        let released = self
            .connection
            .prepare_cached(
                "UPDATE session SET is_witness = 0 WHERE is_witness = 1 AND state = 3 AND heard_at < ?1",
            )?
            .execute([silent_since])?;
        let held = self
            .connection
            .prepare_cached(PAGES_TO_DROP)?
            .query_map([i64::try_from(limit).unwrap_or(i64::MAX)], |row| {
                Ok((row.get::<i64>(0)?, row.get::<i64>(1)?, row.get::<i64>(2)?))
            })?
            .collect::<Result<Vec<_>, _>>()?;
        for (session, page, seq) in &held {
            self.connection
                .prepare_cached("DELETE FROM session_page WHERE session = ?1 AND page = ?2")?
                .execute([session, page])?;
            self.drop_page(*seq)?;
        }
        let marks = self
            .connection
            .prepare_cached(
                "DELETE FROM layer_mark WHERE (session, identifier, person) IN (
                     SELECT m.session, m.identifier, m.person FROM session s JOIN layer_mark m ON m.session = s.id WHERE s.state = 3 LIMIT ?1)",
            )?
            .execute([i64::try_from(limit).unwrap_or(i64::MAX)])?;
        // The mark of an ended session is what makes its late pages harmless; they are not later
        // than a session may be silent.
        let forgotten = self
            .connection
            .prepare_cached(
                "DELETE FROM session WHERE state = 3 AND is_witness = 0 AND (heard_at < ?1 OR session_id IS NULL)
                 AND NOT EXISTS (SELECT 1 FROM session_page WHERE session = session.id)
                 AND NOT EXISTS (SELECT 1 FROM layer_mark WHERE session = session.id)
                 AND id <> (SELECT max(id) FROM session AS other WHERE other.cohort = session.cohort)",
            )?
            .execute([silent_since])?;
        let refusals = self
            .connection
            .prepare_cached("DELETE FROM refusal WHERE refused_at < ?1")?
            .execute([silent_since])?;
        let left = self.forget_retired(limit)?;
        Ok(closed + expired + released + held.len() + marks + forgotten + refusals + left)
    }
}

pub(super) fn stored_state(state: State) -> i64 {
    match state {
        State::Open => 0,
        State::Whole => 1,
        State::Tentative => 2,
        State::Ended => 3,
        State::Accepted => 4,
    }
}

fn state_from(stored: i64) -> State {
    match stored {
        0 => State::Open,
        1 => State::Whole,
        2 => State::Tentative,
        4 => State::Accepted,
        _ => State::Ended,
    }
}

/// An effect as stored; 0 to 2 are as old as the table.
pub(super) fn stored_effect(effect: Effect) -> i64 {
    match effect {
        Effect::Replace => 0,
        Effect::Alone(Half::Add) => 1,
        Effect::Alone(Half::Remove) => 2,
        Effect::Half(Half::Add) => 3,
        Effect::Half(Half::Remove) => 4,
    }
}

/// An effect as stored.
pub fn effect_from(stored: i64) -> Effect {
    match stored {
        0 => Effect::Replace,
        1 => Effect::Alone(Half::Add),
        2 => Effect::Alone(Half::Remove),
        3 => Effect::Half(Half::Add),
        _ => Effect::Half(Half::Remove),
    }
}
