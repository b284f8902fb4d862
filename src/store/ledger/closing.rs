//! Runs that are over: the half that was left out, and what comes again of halves that were taken
//! back. The rules are those of [`crate::run`].

use super::cohorts::Book;
use super::sessions::stored_effect;
use super::state::Ledger;
use crate::clock::{Millis, millis};
use crate::cohort::{Action, Half, SourceName};
use crate::run::{LONGEST_PAUSE, PAUSE};
use crate::store::database::{OptionalRow, params};
use crate::store::{CohortRef, Effect, SESSION_EXPIRES, SessionRef, StoreError};

impl Ledger {
    /// A run that is over and of which one half came: the other was left out, where empty ones are,
    /// and is taken for sent with nobody in it. Whether that has to be applied first.
    pub(super) fn close_run(
        &mut self,
        cohort: CohortRef,
        book: &Book,
        now: Millis,
    ) -> Result<bool, StoreError> {
        // What it may have had beside the one half is forgotten after that.
        let is_forgotten = now - book.run_began_at > millis(SESSION_EXPIRES);
        if book.misses_partner || is_forgotten {
            return Ok(false);
        }
        let Some((half, whole_at_seq)) = self.only_half(cohort, book.run)? else {
            return Ok(false);
        };
        let partner = half.partner();
        if self.is_heard_of_under_old_id(cohort, partner.action(), book)? {
            return Ok(false);
        }
        let session = self
            .connection
            .prepare_cached(
                "INSERT INTO session (cohort, action, state, effect, total_pages, heard_at, began_at, completed_at, whole_at_seq, run, is_closed, is_left_out)
                 VALUES (?1, ?2, 1, ?3, 1, ?4, ?4, ?4, ?5, ?6, 1, 1) RETURNING id",
            )?
            .query_row(
                params![
                    cohort.0,
                    partner.action().as_str(),
                    stored_effect(Effect::Half(partner)),
                    now,
                    whole_at_seq,
                    book.run
                ],
                |row| row.get(0),
            )?;
        if self.finds_nothing_to_judge(cohort)? {
            self.finish_session(SessionRef(session), now)?;
            return Ok(false);
        }
        Ok(true)
    }

    /// The one half of a run of which anything came, where it took effect and is not accepted.
    fn only_half(&self, cohort: CohortRef, run: i64) -> Result<Option<(Half, i64)>, StoreError> {
        let found: Option<(String, i64)> = self
            .connection
            .prepare_cached(
                "SELECT action, whole_at_seq FROM session AS half
                 WHERE cohort = ?1 AND run = ?2 AND action <> 'members' AND state = 2
                   AND (SELECT count(*) FROM session WHERE cohort = ?1 AND run = ?2 AND action <> 'members') = 1",
            )?
            .query_row(params![cohort.0, run], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        Ok(found.and_then(|(action, whole_at_seq)| {
            let half = Action::parse(&action).and_then(Half::of)?;
            Some((half, whole_at_seq))
        }))
    }

    /// Whether something of such a half came in this run, if only a page that we refused, under the id
    /// of an earlier run.
    fn is_heard_of_under_old_id(
        &self,
        cohort: CohortRef,
        action: Action,
        book: &Book,
    ) -> Result<bool, StoreError> {
        Ok(self
            .connection
            .prepare_cached(
                "SELECT 1 FROM session WHERE cohort = ?1 AND action = ?2 AND run < ?3 AND heard_at >= ?4
                   AND session_id IS NOT NULL AND is_closed = 0",
            )?
            .exists(params![
                cohort.0,
                action.as_str(),
                book.run,
                book.run_began_at
            ])?)
    }

    /// Closes whatever runs are over by now; how many.
    pub(super) fn close_runs(&mut self, now: Millis) -> Result<usize, StoreError> {
        let open: Vec<(CohortRef, SourceName)> = self
            .connection
            .prepare_cached(
                "SELECT c.id, c.source FROM session AS s JOIN cohort AS c ON c.id = s.cohort AND c.run = s.run
                 WHERE s.state = 2 AND c.misses_partner = 0 AND c.standing = 0
                   AND (SELECT count(*) FROM session WHERE cohort = c.id AND run = c.run AND action <> 'members') = 1",
            )?
            .query_map((), |row| {
                let source: String = row.get(1)?;
                Ok((CohortRef(row.get(0)?), SourceName::from(source.as_str())))
            })?
            .collect::<Result<_, _>>()?;
        let mut closed = 0;
        for (cohort, source) in open {
            let book = self.book(cohort)?;
            let heard_at = self
                .habits(&source)?
                .map_or(Millis::MIN, |habits| habits.heard_at);
            let is_silent = now - heard_at > millis(PAUSE);
            let is_over = is_silent || now - book.run_heard_at > millis(LONGEST_PAUSE);
            if is_over && self.close_run(cohort, &book, now)? {
                closed += 1;
            }
        }
        Ok(closed)
    }

    /// A half was taken back whose pages come again under its id: those that came since the silence,
    /// and were not refused, are part of the run under way.
    pub(super) fn take_up_again(
        &mut self,
        cohort: CohortRef,
        old: SessionRef,
        book: &Book,
    ) -> Result<(), StoreError> {
        let found: Option<(String, String)> = self
            .connection
            .prepare_cached(
                "SELECT action, session_id FROM session WHERE id = ?1 AND session_id IS NOT NULL",
            )?
            .query_row([old.0], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        let Some((action, session_id)) = found else {
            return Ok(());
        };
        self.connection
            .prepare_cached("UPDATE session SET session_id = NULL WHERE id = ?1")?
            .execute([old.0])?;
        let pages: Vec<u32> = self
            .connection
            .prepare_cached(
                "SELECT page FROM session_page WHERE session = ?1 AND heard_at >= ?2
                   AND NOT EXISTS (SELECT 1 FROM refusal AS r
                                   WHERE r.cohort = ?3 AND r.action = ?4 AND r.session_id = ?5 AND r.page = session_page.page)",
            )?
            .query_map(
                params![old.0, book.resumed_at, cohort.0, action, session_id],
                |row| row.get(0),
            )?
            .collect::<Result<_, _>>()?;
        if pages.is_empty() {
            return Ok(());
        }
        let new: i64 = self
            .connection
            .prepare_cached(
                "INSERT INTO session (cohort, action, session_id, state, effect, total_pages, heard_at, began_at, run)
                 SELECT cohort, action, ?2, 0, effect, total_pages, heard_at, ?3, ?4 FROM session WHERE id = ?1 RETURNING id",
            )?
            .query_row(
                params![old.0, session_id, book.resumed_at, book.run],
                |row| row.get(0),
            )?;
        for page in pages {
            self.connection
                .prepare_cached(
                    "INSERT INTO session_page (session, page, fingerprint, inbox_seq, heard_at)
                     SELECT ?2, page, fingerprint, inbox_seq, heard_at FROM session_page WHERE session = ?1 AND page = ?3",
                )?
                .execute(params![old.0, new, page])?;
        }
        self.connection
            .prepare_cached(
                "DELETE FROM refusal WHERE cohort = ?1 AND action = ?2 AND session_id = ?3",
            )?
            .execute(params![cohort.0, action, session_id])?;
        Ok(())
    }
}
