//! Halves of runs as they are held: which run a page belongs to, what began again, and when a run
//! is accepted. The rules are those of [`crate::run`].

use super::cohorts::Book;
use super::inbox::Waiting;
use super::sessions::Found;
use super::state::Ledger;
use crate::clock::Millis;
use crate::cohort::{Action, Half};
use crate::mixpanel::PageInfo;
use crate::run::{Habits, UNDOABLE_RUNS, UnderWay};
use crate::session::{Placement, State};
use crate::store::database::{OptionalRow, params};
use crate::store::{CohortRef, SessionRef, StoreError};

/// Which pages of a half that begins again need not come again.
#[derive(Clone, Copy)]
enum Stays {
    /// Those below the page with which it begins: what comes again without a silence before it is a
    /// new pass, and comes from the top.
    Below(u32),
    /// Those that were heard, as they were, since the silence.
    HeardSince(Millis),
}

impl Half {
    /// The action that it is.
    pub(super) const fn action(self) -> Action {
        match self {
            Half::Add => Action::AddMembers,
            Half::Remove => Action::RemoveMembers,
        }
    }
}

impl Ledger {
    /// A page of one half of a run, or the note that it was refused; whether a session is whole.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn take_half(
        &mut self,
        waiting: &Waiting,
        cohort: CohortRef,
        half: Half,
        session_id: &str,
        info: PageInfo,
        mut book: Book,
        habits: Habits,
        now: Millis,
    ) -> Result<bool, StoreError> {
        let is_over = habits.is_over(book.run_heard_at, waiting.received_at);
        if is_over {
            book.resumed_at = waiting.received_at;
        }
        let is_empty_half = info.total == 1 && waiting.received == 0 && !waiting.is_refused;
        self.connection
            .prepare_cached("UPDATE cohort SET run_heard_at = ?2, resumed_at = ?3, misses_partner = ?4 WHERE id = ?1")?
            .execute(params![
                cohort.0,
                waiting.received_at,
                book.resumed_at,
                habits.sends_empty_halves || is_empty_half
            ])?;
        if is_empty_half && !habits.sends_empty_halves {
            self.note_empty_halves(&waiting.cohort.source)?;
        }
        self.forget_expired(cohort, waiting, session_id)?;
        let found = match self.find_session(cohort, waiting.action, session_id)? {
            Some(found) if found.is_closed => return self.drop_late(waiting, info),
            Some(found) => found,
            None => {
                let run =
                    self.run_for(waiting, cohort, half, session_id, &book, habits, is_over)?;
                self.supersede(cohort, waiting.action)?;
                self.end_full_syncs(cohort, false)?;
                self.open_session(waiting, cohort, info, run)?
            }
        };
        self.connection
            .prepare_cached("UPDATE session SET heard_at = ?2 WHERE id = ?1 AND heard_at < ?2")?
            .execute(params![found.number.0, waiting.received_at])?;
        if waiting.is_refused {
            // Another replica may have taken it in since, and written that down first.
            if !self.was_taken_in_since(found.number, info.number, waiting.received_at)? {
                self.note_refusal(cohort, waiting.action, session_id, info.number, waiting)?;
            }
            self.drop_page(waiting.seq)?;
            return Ok(false);
        }
        self.clear_refusal(cohort, waiting.action, session_id, info.number)?;
        let is_layer = matches!(found.session.state, State::Tentative | State::Accepted);
        let is_repeat = found
            .session
            .repeats(info.number, info.total, waiting.fingerprint);
        let is_stale = found.began_at < book.resumed_at;
        if is_repeat && (is_layer || is_stale) {
            self.hear_again(&found, cohort, info, waiting)?;
            self.drop_page(waiting.seq)?;
            return Ok(false);
        }
        if is_stale
            && !habits.reuses_session_ids
            && found
                .session
                .is_changed_by(info.number, info.total, waiting.fingerprint)
        {
            self.note_reused_ids(&waiting.cohort.source)?;
        }
        let found = if is_stale || is_layer {
            let stays = if is_stale {
                Stays::HeardSince(book.resumed_at)
            } else {
                Stays::Below(info.number)
            };
            self.begin_again(found, stays, waiting, cohort, info, &mut book)?
        } else {
            found
        };
        let Found {
            number,
            mut session,
            ..
        } = found;
        let placement = session.receive(info.number, info.total, waiting.fingerprint);
        self.place(number, waiting, info, placement, &session)?;
        if placement == Placement::Drop {
            self.touch(number, info.number, waiting.received_at)?;
        }
        let is_whole = session.state == State::Whole;
        self.last_session = Some((number, session));
        if !is_whole {
            return Ok(false);
        }
        self.mark_whole(number, waiting.seq, now)?;
        if is_empty_half && self.finds_nothing_to_judge(cohort)? {
            // A heartbeat, or the partner of another half: nobody to apply.
            self.finish_session(number, now)?;
            return Ok(false);
        }
        Ok(true)
    }

    /// The run of a half of which nothing came before.
    #[allow(clippy::too_many_arguments)]
    fn run_for(
        &mut self,
        waiting: &Waiting,
        cohort: CohortRef,
        half: Half,
        session_id: &str,
        book: &Book,
        habits: Habits,
        is_over: bool,
    ) -> Result<i64, StoreError> {
        let partner: Option<Option<String>> = self
            .connection
            .prepare_cached(
                "SELECT session_id FROM session WHERE cohort = ?1 AND run = ?2 AND action = ?3 ORDER BY id DESC LIMIT 1",
            )?
            .query_row(
                params![cohort.0, book.run, half.partner().action().as_str()],
                |row| row.get(0),
            )
            .optional()?;
        let shares_id = partner.map(|partner| partner.as_deref() == Some(session_id));
        if shares_id == Some(true) && !habits.shares_session_ids {
            self.note_shared_ids(&waiting.cohort.source)?;
        }
        let under_way = UnderWay {
            is_over,
            has_half: book.run == 0 || self.run_has(cohort, book.run, waiting.action)?,
            shares_id,
        };
        if under_way.takes_in(habits) {
            Ok(book.run)
        } else {
            self.begin_run(cohort, None, waiting.received_at)
        }
    }

    /// Whether a run has such a half, or is a full sync.
    fn run_has(&self, cohort: CohortRef, run: i64, action: Action) -> Result<bool, StoreError> {
        Ok(self
            .connection
            .prepare_cached(
                "SELECT 1 FROM session WHERE cohort = ?1 AND run = ?2 AND action IN (?3, 'members')",
            )?
            .exists(params![cohort.0, run, action.as_str()])?)
    }

    /// The next run; `again`: the first of the runs whose ids it repeats.
    pub(super) fn begin_run(
        &mut self,
        cohort: CohortRef,
        again: Option<i64>,
        at: Millis,
    ) -> Result<i64, StoreError> {
        if let Some(first) = again {
            self.connection
                .prepare_cached(
                    "UPDATE session SET is_doubted = 1 WHERE cohort = ?1 AND state = 4 AND action <> 'members' AND run >= ?2",
                )?
                .execute(params![cohort.0, first])?;
        }
        Ok(self
            .connection
            .prepare_cached(
                "UPDATE cohort SET run = run + 1, began_again = ?2, run_began_at = ?3 WHERE id = ?1 RETURNING run",
            )?
            .query_row(params![cohort.0, again, at], |row| row.get(0))?)
    }

    /// Whatever comes under the ids of `run` with other content belongs to a run of its own: the one
    /// under way where that began so since the silence, else the next.
    fn run_again(
        &mut self,
        cohort: CohortRef,
        run: i64,
        book: &mut Book,
        at: Millis,
    ) -> Result<i64, StoreError> {
        if !book.repeats(run) || book.run_began_at < book.resumed_at {
            let first = book
                .began_again
                .filter(|first| *first <= run)
                .unwrap_or(run);
            book.run = self.begin_run(cohort, Some(first), at)?;
            book.began_again = Some(first);
            book.run_began_at = at;
            self.accept_if_pair(cohort)?;
        }
        Ok(book.run)
    }

    /// A half begins again, in a run of its own. The old one stays as a layer until the new one is
    /// whole, or as a witness.
    fn begin_again(
        &mut self,
        old: Found,
        stays: Stays,
        waiting: &Waiting,
        cohort: CohortRef,
        info: PageInfo,
        book: &mut Book,
    ) -> Result<Found, StoreError> {
        self.connection
            .prepare_cached(
                "UPDATE session SET session_id = NULL, is_closed = 1,
                        is_witness = CASE state WHEN 0 THEN 1 ELSE 0 END, state = CASE state WHEN 0 THEN 3 ELSE state END
                 WHERE id = ?1",
            )?
            .execute([old.number.0])?;
        let run = self.run_again(cohort, old.run, book, waiting.received_at)?;
        let mut new = self.open_session(waiting, cohort, info, run)?;
        let (below, heard_since) = match stays {
            Stays::Below(page) => (page, Millis::MIN),
            Stays::HeardSince(at) => (u32::MAX, at),
        };
        self.connection
            .prepare_cached(
                "INSERT INTO session_page (session, page, fingerprint, inbox_seq, heard_at)
                 SELECT ?2, page, fingerprint, inbox_seq, heard_at FROM session_page
                 WHERE session = ?1 AND page < ?3 AND page <> ?4 AND heard_at >= ?5",
            )?
            .execute(params![
                old.number.0,
                new.number.0,
                below,
                info.number,
                heard_since
            ])?;
        new.session.pages = self.pages_held(new.number)?;
        Ok(new)
    }

    pub(super) fn touch(
        &self,
        session: SessionRef,
        page: u32,
        at: Millis,
    ) -> Result<(), StoreError> {
        self.connection
            .prepare_cached(
                "UPDATE session_page SET heard_at = ?3 WHERE session = ?1 AND page = ?2",
            )?
            .execute(params![session.0, page, at])?;
        Ok(())
    }

    /// A page of a layer comes again as it was.
    fn hear_again(
        &mut self,
        found: &Found,
        cohort: CohortRef,
        info: PageInfo,
        waiting: &Waiting,
    ) -> Result<(), StoreError> {
        self.touch(found.number, info.number, waiting.received_at)?;
        // A refusal may have been all that was in the way.
        self.accept_if_pair(cohort)
    }

    /// Halves of earlier runs of which every page was heard again since the silence are part of the
    /// run under way, where that was begun or all heard again since then: halves of the runs that
    /// began again, those that were never accepted, and those that were only because their partner
    /// was left out. A full sync is no run that has halves.
    fn rejoin_all(&mut self, cohort: CohortRef) -> Result<(), StoreError> {
        let book = self.book(cohort)?;
        self.connection
            .prepare_cached(
                "WITH again AS (
                     SELECT id, run, state FROM session
                     WHERE cohort = ?1 AND action <> 'members' AND state IN (2, 4) AND is_closed = 0
                       AND NOT EXISTS (SELECT 1 FROM session_page AS page
                                       WHERE page.session = session.id AND page.page <= session.total_pages AND page.heard_at < ?3))
                 UPDATE session SET run = ?2, state = 2, is_doubted = 0
                 WHERE id IN (SELECT id FROM again
                              WHERE run < ?2 AND (state = 2 OR run >= ?4
                                  OR EXISTS (SELECT 1 FROM session AS partner
                                             WHERE partner.cohort = ?1 AND partner.run = again.run AND partner.is_left_out = 1)))
                   AND (?5 >= ?3 OR EXISTS (SELECT 1 FROM again WHERE run = ?2))
                   AND NOT EXISTS (SELECT 1 FROM session AS other
                                   WHERE other.cohort = ?1 AND other.run = ?2 AND other.action IN (session.action, 'members'))",
            )?
            .execute(params![
                cohort.0,
                book.run,
                book.resumed_at,
                book.began_again,
                book.run_began_at
            ])?;
        Ok(())
    }

    /// Accepts the run under way where both its halves took effect and no page of it was refused.
    pub(super) fn accept_if_pair(&mut self, cohort: CohortRef) -> Result<(), StoreError> {
        self.rejoin_all(cohort)?;
        let halves: Vec<i64> = self
            .connection
            .prepare_cached(
                "SELECT id FROM session WHERE cohort = ?1 AND state = 2 AND run = (SELECT run FROM cohort WHERE id = ?1)
                   AND NOT EXISTS (SELECT 1 FROM refusal
                                   WHERE refusal.cohort = ?1 AND refusal.action = session.action AND refusal.session_id = session.session_id)",
            )?
            .query_map([cohort.0], |row| row.get(0))?
            .collect::<Result<_, _>>()?;
        if halves.len() < 2 {
            return Ok(());
        }
        for half in halves {
            self.connection
                .prepare_cached("UPDATE session SET state = 4 WHERE id = ?1")?
                .execute([half])?;
        }
        self.connection
            .prepare_cached("UPDATE cohort SET runs_accepted = runs_accepted + 1 WHERE id = ?1")?
            .execute([cohort.0])?;
        self.settle_oldest(cohort)
    }

    /// What was accepted before the last [`UNDOABLE_RUNS`] is part of the base; from beneath, so that
    /// nothing is left below it.
    fn settle_oldest(&mut self, cohort: CohortRef) -> Result<(), StoreError> {
        let oldest: Option<i64> = self
            .connection
            .prepare_cached(
                "SELECT DISTINCT run FROM session WHERE cohort = ?1 AND state = 4 AND action <> 'members'
                 ORDER BY run DESC LIMIT 1 OFFSET ?2",
            )?
            .query_row(params![cohort.0, UNDOABLE_RUNS], |row| row.get(0))
            .optional()?;
        let Some(oldest) = oldest else {
            return Ok(());
        };
        let layers: Vec<(i64, i64, i64)> = self
            .connection
            .prepare_cached(
                "SELECT id, state, run FROM session WHERE cohort = ?1 AND state IN (2, 4) AND action <> 'members' ORDER BY whole_at_seq, id",
            )?
            .query_map([cohort.0], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
            .collect::<Result<_, _>>()?;
        let beneath = layers
            .iter()
            .take_while(|(_, state, run)| *state == 4 && *run <= oldest);
        for (id, _, _) in beneath {
            self.connection
                .prepare_cached("UPDATE session SET state = 3, is_closed = 1 WHERE id = ?1")?
                .execute([id])?;
        }
        Ok(())
    }

    fn was_taken_in_since(
        &self,
        session: SessionRef,
        page: u32,
        at: Millis,
    ) -> Result<bool, StoreError> {
        Ok(self
            .connection
            .prepare_cached(
                "SELECT 1 FROM session_page WHERE session = ?1 AND page = ?2 AND heard_at > ?3",
            )?
            .exists(params![session.0, page, at])?)
    }

    fn note_refusal(
        &self,
        cohort: CohortRef,
        action: Action,
        session_id: &str,
        page: u32,
        waiting: &Waiting,
    ) -> Result<(), StoreError> {
        self.connection
            .prepare_cached(
                "INSERT INTO refusal (cohort, action, session_id, page, refused_at) VALUES (?1, ?2, ?3, ?4, ?5)
                 ON CONFLICT (cohort, action, session_id, page) DO UPDATE SET refused_at = excluded.refused_at",
            )?
            .execute(params![cohort.0, action.as_str(), session_id, page, waiting.received_at])?;
        Ok(())
    }

    fn clear_refusal(
        &self,
        cohort: CohortRef,
        action: Action,
        session_id: &str,
        page: u32,
    ) -> Result<(), StoreError> {
        self.connection
            .prepare_cached(
                "DELETE FROM refusal WHERE cohort = ?1 AND action = ?2 AND session_id = ?3 AND page = ?4",
            )?
            .execute(params![cohort.0, action.as_str(), session_id, page])?;
        Ok(())
    }
}
