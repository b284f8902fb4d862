//! A whole session from the day it is whole until it has taken effect: what it finds, what is
//! decided, and what it leaves behind.

use std::collections::BTreeMap;

use super::cohorts::Book;
use super::inbox::set_aside_from;
use super::sessions::effect_from;
use super::state::Ledger;
use crate::clock::Millis;
use crate::cohort::{Action, Half, SourceName};
use crate::run::{Fate, Layer, Question};
use crate::store::database::{DatabaseError, OptionalRow, params};
use crate::store::{
    CohortRef, Effect, FoundLayer, Judgement, MOST_LAYERS, SessionRef, StoreError, WholeSession,
    Witness,
};

/// A layer as it is held.
struct Held {
    session: SessionRef,
    half: Half,
    run: i64,
    is_accepted: bool,
    is_doubted: bool,
}

/// What a session that has taken effect was.
struct Finished {
    cohort: CohortRef,
    effect: Effect,
    run: i64,
}

fn half_of(action: &str) -> Result<Half, DatabaseError> {
    Action::parse(action)
        .and_then(Half::of)
        .ok_or_else(|| DatabaseError::Damaged(format!("{action:?} is no half of a run")))
}

impl Ledger {
    /// The session that waits to take effect; the one that became whole first.
    pub fn whole_session(&mut self) -> Result<Option<WholeSession>, StoreError> {
        let found = self
            .connection
            .prepare_cached(
                "SELECT s.id, s.cohort, s.effect, s.applied_through, s.run, s.is_judged, s.holds, c.source, c.members + c.held + c.kept, s.is_left_out
                 FROM session s JOIN cohort c ON c.id = s.cohort WHERE s.state = 1 ORDER BY s.whole_at_seq LIMIT 1",
            )?
            .query_row((), |row| {
                let judged: bool = row.get(5)?;
                Ok((
                    WholeSession {
                        session: SessionRef(row.get(0)?),
                        cohort: CohortRef(row.get(1)?),
                        effect: effect_from(row.get(2)?),
                        applied_through: row.get(3)?,
                        run: row.get(4)?,
                        is_left_out: row.get(9)?,
                        pages: Vec::new(),
                        layers: Vec::new(),
                        witnesses: Vec::new(),
                        judgement: judged.then_some(Judgement {
                            fates: Vec::new(),
                            holds_removals: row.get(6)?,
                        }),
                        guard: None,
                        population: row.get(8)?,
                        maps_people: false,
                    },
                    SourceName::from(row.get::<String>(7)?.as_str()),
                ))
            })
            .optional()?;
        let Some((mut whole, source)) = found else {
            return Ok(None);
        };
        whole.pages = self.pages_of(whole.session)?;
        whole.guard = self
            .sources
            .get(&source)
            .and_then(|rules| rules.hold_removals_above);
        whole.maps_people = self.maps_people(whole.cohort, whole.session)?;
        whole.layers = self.layers_for(&whole)?;
        if matches!(whole.effect, Effect::Half(_)) && !whole.layers.is_empty() {
            whole.witnesses = self.witnesses(whole.cohort)?;
        }
        if let Some(judgement) = &mut whole.judgement {
            for layer in &whole.layers {
                let fate: Option<i64> = self
                    .connection
                    .prepare_cached("SELECT fate FROM fate WHERE session = ?1 AND layer = ?2")?
                    .query_row([whole.session.0, layer.session.0], |row| row.get(0))
                    .optional()?;
                judgement.fates.push(match fate {
                    None => Fate::Stays,
                    Some(_) => Fate::Dropped,
                });
            }
        }
        Ok(Some(whole))
    }

    fn pages_of(&self, session: SessionRef) -> Result<Vec<u32>, StoreError> {
        Ok(self
            .connection
            .prepare_cached(
                "SELECT page FROM session_page JOIN session ON session.id = session WHERE session = ?1 AND page <= total_pages ORDER BY page",
            )?
            .query_map([session.0], |row| row.get(0))?
            .collect::<Result<_, _>>()?)
    }

    /// Whether anybody of the cohort or of the session has an identifier other than the distinct id.
    fn maps_people(&self, cohort: CohortRef, session: SessionRef) -> Result<bool, StoreError> {
        let is_known = self
            .connection
            .prepare_cached("SELECT 1 FROM holder WHERE cohort = ?1 LIMIT 1")?
            .exists([cohort.0])?;
        if is_known {
            return Ok(true);
        }
        Ok(self
            .connection
            .prepare_cached(
                "SELECT 1 FROM session_page JOIN inbox ON seq = inbox_seq WHERE session = ?1 AND maps_people = 1 LIMIT 1",
            )?
            .exists([session.0])?)
    }

    fn held_layers(&self, cohort: CohortRef, but: SessionRef) -> Result<Vec<Held>, StoreError> {
        let mut layers: Vec<Held> = self
            .connection
            .prepare_cached(
                "SELECT id, action, run, state, is_doubted FROM session
                 WHERE cohort = ?1 AND state IN (2, 4) AND action <> 'members' AND id <> ?2 ORDER BY whole_at_seq, id",
            )?
            .query_map([cohort.0, but.0], |row| {
                Ok(Held {
                    session: SessionRef(row.get(0)?),
                    half: half_of(&row.get::<String>(1)?)?,
                    run: row.get(2)?,
                    is_accepted: row.get::<i64>(3)? == 4,
                    is_doubted: row.get(4)?,
                })
            })?
            .collect::<Result<_, _>>()?;
        // There are never so many; the oldest would simply stay as they are.
        let excess = layers.len().saturating_sub(MOST_LAYERS);
        layers.drain(..excess);
        Ok(layers)
    }

    fn layers_for(&self, whole: &WholeSession) -> Result<Vec<FoundLayer>, StoreError> {
        let held = self.held_layers(whole.cohort, whole.session)?;
        if held.is_empty() {
            return Ok(Vec::new());
        }
        let completes = held
            .iter()
            .any(|layer| layer.run == whole.run && Effect::Half(layer.half) != whole.effect);
        let mut found = Vec::with_capacity(held.len());
        for layer in held {
            let question = match whole.effect {
                // What began before it is over: its effect is in the full sync.
                Effect::Replace if layer.run < whole.run => continue,
                Effect::Replace | Effect::Alone(_) => Question::None,
                Effect::Half(half) => self.question(whole, half, &layer, completes)?,
            };
            found.push(FoundLayer {
                pages: self.pages_of(layer.session)?,
                session: layer.session,
                layer: Layer {
                    half: layer.half,
                    run: layer.run,
                    question,
                },
            });
        }
        Ok(found)
    }

    fn question(
        &self,
        whole: &WholeSession,
        half: Half,
        layer: &Held,
        completes: bool,
    ) -> Result<Question, StoreError> {
        if layer.is_accepted {
            return Ok(Question::Accepted {
                is_doubted: layer.is_doubted || self.is_refused(whole.cohort, layer.run)?,
            });
        }
        Ok(if layer.run == whole.run {
            Question::None
        } else {
            Question::Failed {
                is_replaced: completes || layer.half == half,
            }
        })
    }

    /// Whether the last answer to a page of the run was our own trouble.
    fn is_refused(&self, cohort: CohortRef, run: i64) -> Result<bool, StoreError> {
        Ok(self
            .connection
            .prepare_cached(
                "SELECT 1 FROM session s JOIN refusal r ON r.cohort = s.cohort AND r.action = s.action AND r.session_id = s.session_id
                 WHERE s.cohort = ?1 AND s.run = ?2",
            )?
            .exists([cohort.0, run])?)
    }

    /// Whether the run under way has the session's id.
    fn is_id_under_way(&self, session: SessionRef, book: &Book) -> Result<bool, StoreError> {
        Ok(self
            .connection
            .prepare_cached(
                "SELECT 1 FROM session old JOIN session new ON new.cohort = old.cohort AND new.session_id = old.session_id
                 WHERE old.id = ?1 AND new.run = ?2",
            )?
            .exists([session.0, book.run])?)
    }

    fn witnesses(&self, cohort: CohortRef) -> Result<Vec<Witness>, StoreError> {
        let found = self
            .connection
            .prepare_cached(
                "SELECT id, action, run FROM session WHERE cohort = ?1 AND is_witness = 1",
            )?
            .query_map([cohort.0], |row| {
                Ok(Witness {
                    session: SessionRef(row.get(0)?),
                    half: half_of(&row.get::<String>(1)?)?,
                    run: row.get(2)?,
                    pages: Vec::new(),
                })
            })?
            .collect::<Result<Vec<_>, _>>()?;
        found
            .into_iter()
            .map(|witness| {
                let pages = self
                    .connection
                    .prepare_cached("SELECT page FROM session_page WHERE session = ?1")?
                    .query_map([witness.session.0], |row| row.get(0))?
                    .collect::<Result<_, _>>()?;
                Ok(Witness { pages, ..witness })
            })
            .collect()
    }

    /// Whether an empty half of the run under way can take effect without being judged: it names nobody,
    /// so all that could be decided is decided by what is there.
    pub(super) fn finds_nothing_to_judge(&self, cohort: CohortRef) -> Result<bool, StoreError> {
        let is_there = self
            .connection
            .prepare_cached(
                "SELECT 1 FROM session AS s JOIN cohort AS c ON c.id = s.cohort
                 WHERE s.cohort = ?1 AND (s.is_witness = 1 OR (s.state = 2 AND s.run <> c.run)
                     OR (s.state = 4 AND s.action <> 'members'
                         AND (s.is_doubted = 1 OR EXISTS (SELECT 1 FROM refusal AS r
                             WHERE r.cohort = ?1 AND r.action = s.action AND r.session_id = s.session_id))))",
            )?
            .exists([cohort.0])?;
        Ok(!is_there)
    }

    /// Writes down what becomes of a session and of the layers that it finds.
    pub fn judge(
        &mut self,
        session: SessionRef,
        layers: &[SessionRef],
        judgement: &Judgement,
    ) -> Result<(), StoreError> {
        for (layer, fate) in layers.iter().zip(&judgement.fates) {
            if *fate == Fate::Stays {
                continue;
            }
            self.connection
                .prepare_cached(
                    "INSERT INTO fate (session, layer, fate) VALUES (?1, ?2, 1) ON CONFLICT (session, layer) DO UPDATE SET fate = excluded.fate",
                )?
                .execute([session.0, layer.0])?;
        }
        self.connection
            .prepare_cached(
                "UPDATE session SET is_judged = 1, holds = ?2 WHERE id = ?1 AND state = 1",
            )?
            .execute(params![session.0, judgement.holds_removals])?;
        Ok(())
    }

    /// A session has taken effect. The pages of a half stay while it can be taken back, those of a
    /// full sync until something newer begins, so that a page that comes again with other people
    /// finds the others.
    pub fn finish_session(&mut self, session: SessionRef, now: Millis) -> Result<(), StoreError> {
        let finished = self
            .connection
            .prepare_cached("SELECT cohort, effect, run FROM session WHERE id = ?1 AND state = 1")?
            .query_row([session.0], |row| {
                Ok(Finished {
                    cohort: CohortRef(row.get(0)?),
                    effect: effect_from(row.get(1)?),
                    run: row.get(2)?,
                })
            })
            .optional()?;
        // A cohort that was retired meanwhile ended it.
        let Some(Finished {
            cohort,
            effect,
            run,
        }) = finished
        else {
            return Ok(());
        };
        self.note_set_aside(cohort, session, effect)?;
        let state = match effect {
            Effect::Replace => {
                self.become_base(cohort, session, run)?;
                4
            }
            Effect::Half(_) => {
                self.carry_out_fates(cohort, session)?;
                2
            }
            Effect::Alone(_) => 3,
        };
        self.connection
            .prepare_cached("UPDATE session SET state = ?2, applied_through = NULL WHERE id = ?1")?
            .execute([session.0, state])?;
        self.connection
            .prepare_cached(
                "UPDATE cohort SET first_applied_at = coalesce(first_applied_at, ?2) WHERE id = ?1",
            )?
            .execute([cohort.0, now])?;
        if matches!(effect, Effect::Half(_)) {
            self.accept_if_pair(cohort)?;
        }
        Ok(())
    }

    /// A full sync took effect: whatever began before it is over.
    fn become_base(
        &mut self,
        cohort: CohortRef,
        session: SessionRef,
        run: i64,
    ) -> Result<(), StoreError> {
        self.connection
            .prepare_cached(
                "UPDATE session SET state = 3, is_closed = 1, is_witness = 0
                 WHERE cohort = ?1 AND action <> 'members' AND run < ?2 AND (state IN (0, 2, 4) OR is_witness = 1)",
            )?
            .execute([cohort.0, run])?;
        let identified_by: Vec<String> = self
            .connection
            .prepare_cached(
                "SELECT DISTINCT identified_by FROM session_page JOIN inbox ON seq = inbox_seq WHERE session = ?1 LIMIT 2",
            )?
            .query_map([session.0], |row| row.get(0))?
            .collect::<Result<_, _>>()?;
        self.connection
            .prepare_cached(
                "UPDATE cohort SET standing = 0, identified_by = coalesce(?3, identified_by),
                        began_again = CASE WHEN began_again < ?2 THEN NULL ELSE began_again END
                 WHERE id = ?1",
            )?
            .execute(params![
                cohort.0,
                run,
                (identified_by.len() == 1).then(|| &identified_by[0])
            ])?;
        Ok(())
    }

    fn carry_out_fates(
        &mut self,
        cohort: CohortRef,
        session: SessionRef,
    ) -> Result<(), StoreError> {
        let dropped = self
            .connection
            .prepare_cached(
                "DELETE FROM fate WHERE session = ?1 RETURNING layer,
                     (SELECT run FROM session WHERE id = layer), (SELECT state FROM session WHERE id = layer)",
            )?
            .query_map([session.0], |row| {
                Ok((SessionRef(row.get(0)?), row.get::<i64>(1)?, row.get::<i64>(2)? == 4))
            })?
            .collect::<Result<Vec<_>, _>>()?;
        let book = self.book(cohort)?;
        let source: String = self
            .connection
            .prepare_cached("SELECT source FROM cohort WHERE id = ?1")?
            .query_row([cohort.0], |row| row.get(0))?;
        let reuses_ids = self
            .habits(&SourceName::from(source.as_str()))?
            .is_some_and(|habits| habits.reuses_session_ids);
        let mut again = Vec::new();
        let mut undone = BTreeMap::new();
        for (layer, run, was_accepted) in dropped {
            let comes_again = reuses_ids || self.is_id_under_way(layer, &book)?;
            if book.repeats(run) || (comes_again && self.is_refused(cohort, run)?) {
                again.push(layer);
            }
            undone.insert(run, was_accepted);
            self.connection
                .prepare_cached("UPDATE session SET state = 3, is_closed = 1 WHERE id = ?1")?
                .execute([layer.0])?;
        }
        for layer in again {
            self.take_up_again(cohort, layer, &book)?;
        }
        for (run, was_accepted) in undone {
            let column = if was_accepted {
                "runs_undone"
            } else {
                "runs_dropped"
            };
            self.count_run(cohort, column)?;
            self.say_dropped(cohort, run, was_accepted)?;
        }
        self.connection
            .prepare_cached(
                "UPDATE session SET is_witness = 0 WHERE cohort = ?1 AND is_witness = 1",
            )?
            .execute([cohort.0])?;
        Ok(())
    }

    fn count_run(&self, cohort: CohortRef, column: &'static str) -> Result<(), StoreError> {
        self.connection
            .prepare_cached(&format!(
                "UPDATE cohort SET {column} = {column} + 1 WHERE id = ?1"
            ))?
            .execute([cohort.0])?;
        Ok(())
    }

    fn say_dropped(
        &self,
        cohort: CohortRef,
        run: i64,
        was_accepted: bool,
    ) -> Result<(), StoreError> {
        let (source, cohort_id): (String, String) = self
            .connection
            .prepare_cached("SELECT source, cohort_id FROM cohort WHERE id = ?1")?
            .query_row([cohort.0], |row| Ok((row.get(0)?, row.get(1)?)))?;
        tracing::info!(
            source,
            cohort_id,
            run,
            was_accepted,
            "a run that Mixpanel does not count was taken back"
        );
        Ok(())
    }

    /// Members that cannot have the trait: of the last full sync, and of all who joined since.
    fn note_set_aside(
        &self,
        cohort: CohortRef,
        session: SessionRef,
        effect: Effect,
    ) -> Result<(), StoreError> {
        if effect == Effect::Replace {
            self.connection
                .prepare_cached("DELETE FROM set_aside WHERE cohort = ?1")?
                .execute([cohort.0])?;
        } else if !matches!(effect, Effect::Half(Half::Add) | Effect::Alone(Half::Add)) {
            return Ok(());
        }
        let mut pages = self.connection.prepare_cached(
            "SELECT set_aside FROM session_page JOIN inbox ON seq = inbox_seq WHERE session = ?1 AND set_aside <> ''",
        )?;
        let mut add = self.connection.prepare_cached(
            "INSERT INTO set_aside (cohort, reason, members) VALUES (?1, ?2, ?3)
             ON CONFLICT (cohort, reason) DO UPDATE SET members = set_aside.members + excluded.members",
        )?;
        for stored in pages.query_map([session.0], |row| row.get::<String>(0))? {
            let stored = stored?;
            for (reason, members) in set_aside_from(&stored) {
                add.execute(params![cohort.0, reason, members])?;
            }
        }
        Ok(())
    }
}
