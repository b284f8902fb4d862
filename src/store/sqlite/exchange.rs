//! Delivery's half of the ledger: settle the calls that ended, claim the identities that are due.

use std::collections::HashSet;
use std::sync::Arc;

use rusqlite::{OptionalExtension, params};

use super::apply::{Late, Tally};
use super::ledger::{InFlight, Ledger, sent_bit, told_from, told_stored};
use crate::backoff::is_due;
use crate::clock::Millis;
use crate::cohort::{OnLeave, Target, Told};
use crate::store::{Claim, ClaimedTrait, Claims, CohortRef, Outcome, Settlement, StoreError};

/// Rows that one claim may look at: where nearly everything waits for a later time, the sweep goes
/// on in the next transaction.
const ROWS_A_CLAIM: usize = 16_384;

/// A `pending` row during a claim.
struct Row {
    cohort: CohortRef,
    member: bool,
    sent: i64,
    late_until: Option<Millis>,
    attempts: u32,
    due_at: Millis,
    told: Told,
}

impl Row {
    /// Whether a call under way for the identity carries what is wanted here.
    fn is_being_sent(&self, on_leave: OnLeave) -> bool {
        let wanted = Target::of(self.member, on_leave);
        self.told == Told::Unknown && self.sent & sent_bit(wanted) != 0
    }
}

/// The earlier of two times, where there are any.
fn soonest(one: Option<Millis>, other: Option<Millis>) -> Option<Millis> {
    one.into_iter().chain(other).min()
}

impl Ledger {
    /// Settles what ended, then claims what is due. Whatever is claimed is unknown from now on: a
    /// kill cannot make it look written.
    pub fn exchange(
        &mut self,
        destination: usize,
        settle: &[Settlement],
        after: Option<&str>,
        limit: usize,
        now: Millis,
    ) -> Result<Claims, StoreError> {
        let left_due = self.settle(destination, settle, now)?;
        if limit == 0 {
            return Ok(Claims {
                next_due: left_due,
                ..Claims::default()
            });
        }
        let settled: HashSet<&str> = settle
            .iter()
            .map(|settlement| &*settlement.claim.identifier)
            .collect();
        let Swept {
            found,
            resume_after,
            next_due,
            passed_over,
        } = self.sweep(destination, after, limit, now, &settled)?;
        let in_flight = &mut self.destinations[destination].in_flight;
        for identifier in passed_over {
            if let Some(call) = in_flight.get_mut(&identifier) {
                call.passed_over = true;
            }
        }
        let mut claims = Vec::with_capacity(found.len());
        for (identifier, rows) in &found {
            claims.extend(self.claim(destination, identifier, rows, now)?);
        }
        Ok(Claims {
            claims,
            resume_after,
            next_due: soonest(next_due, left_due),
        })
    }

    /// Reads identities that are due, in order.
    fn sweep(
        &self,
        destination: usize,
        after: Option<&str>,
        limit: usize,
        now: Millis,
        settled: &HashSet<&str>,
    ) -> Result<Swept, StoreError> {
        let state = &self.destinations[destination];
        let mut statement = self.connection.prepare_cached(
            "SELECT identifier, cohort, member, sent, late_until, attempts, due_at, since, told FROM pending
             WHERE destination = ?1 AND identifier > coalesce(?2, '') ORDER BY identifier, cohort",
        )?;
        let mut rows = statement.query(params![state.id, after])?;
        let mut sweep = Sweep::new(limit, now, state.rules.on_leave);
        let mut seen = 0;
        while let Some(row) = rows.next()? {
            let identifier = row.get_ref(0)?.as_str().map_err(rusqlite::Error::from)?;
            if !sweep.is_current(identifier) {
                let full = sweep.close() || seen >= ROWS_A_CLAIM;
                if full {
                    sweep.swept.resume_after = sweep.last_seen;
                    return Ok(sweep.swept);
                }
                // In flight, and not just settled: its settlement will bring it back.
                let busy =
                    state.in_flight.contains_key(identifier) && !settled.contains(identifier);
                sweep.open(identifier, busy);
            }
            seen += 1;
            let since: Millis = row.get(7)?;
            let due_at: Option<Millis> = row.get(6)?;
            sweep.rows.push(Row {
                cohort: CohortRef(row.get(1)?),
                member: row.get(2)?,
                sent: row.get::<_, Option<i64>>(3)?.unwrap_or(0),
                late_until: row.get(4)?,
                attempts: row.get(5)?,
                due_at: due_at.unwrap_or(since + state.rules.linger_ms),
                told: told_from(row.get(8)?),
            });
        }
        sweep.close();
        Ok(sweep.swept)
    }

    fn claim(
        &mut self,
        destination: usize,
        identifier: &Arc<str>,
        rows: &[Row],
        now: Millis,
    ) -> Result<Option<Claim>, StoreError> {
        let (id, on_leave, earlier_calls_land_until) = {
            let state = &mut self.destinations[destination];
            let first_claim_at = *state.first_claim_at.get_or_insert(now);
            (
                state.id,
                state.rules.on_leave,
                first_claim_at + state.rules.late_write_ms,
            )
        };
        let mut traits = Vec::with_capacity(rows.len());
        let mut attempts = 0;
        for row in rows {
            let target = Target::of(row.member, on_leave);
            if !row.told.needs_write(target) {
                // Only watched, in case an older call lands after all.
                if row.late_until.is_none_or(|until| is_due(until, now)) {
                    self.delete_pending(id, identifier, row.cohort)?;
                }
                continue;
            }
            // What an earlier process sent has no known end either.
            let late_until = if row.sent == 0 {
                row.late_until
            } else {
                row.late_until.max(Some(earlier_calls_land_until))
            };
            self.connection
                .prepare_cached(
                    "UPDATE pending SET told = NULL, sent = ?4, late_until = ?5 WHERE destination = ?1 AND identifier = ?2 AND cohort = ?3",
                )?
                .execute(params![id, identifier, row.cohort.0, row.sent | sent_bit(target), late_until])?;
            attempts = attempts.max(row.attempts);
            let trait_key = self.trait_key(row.cohort)?;
            traits.push(ClaimedTrait {
                cohort: row.cohort,
                trait_key,
                target,
                told: row.told,
            });
        }
        Ok((!traits.is_empty()).then(|| Claim {
            identifier: Arc::clone(identifier),
            traits,
            attempts,
        }))
    }

    /// Settles calls; gives back when the first of what is left of them is due.
    fn settle(
        &mut self,
        destination: usize,
        settlements: &[Settlement],
        now: Millis,
    ) -> Result<Option<Millis>, StoreError> {
        let mut tally = Tally::new(self.destinations[destination].id);
        let mut left_due = None;
        for settlement in settlements {
            let identifier = &*settlement.claim.identifier;
            let call = self.destinations[destination].in_flight.get(identifier);
            let mut more_to_do = call.is_some_and(|call| call.passed_over);
            for claimed in &settlement.claim.traits {
                let done = self.settle_trait(
                    destination,
                    identifier,
                    claimed,
                    &settlement.outcome,
                    now,
                    &mut tally,
                )?;
                more_to_do |= !done;
            }
            if more_to_do {
                left_due = soonest(left_due, self.due_of(destination, identifier)?);
            }
        }
        self.count(&tally)?;
        Ok(left_due)
    }

    /// Settles one trait; whether its row is gone, as it nearly always is.
    fn settle_trait(
        &self,
        destination: usize,
        identifier: &str,
        claimed: &ClaimedTrait,
        outcome: &Outcome,
        now: Millis,
        tally: &mut Tally,
    ) -> Result<bool, StoreError> {
        match outcome {
            Outcome::Written { may_land_late } => {
                if !may_land_late
                    && let Some(since) = self.delete_as_written(destination, identifier, claimed)?
                {
                    let member = claimed.target == Target::True;
                    tally.add(claimed.cohort, member, since, -1);
                    return Ok(true);
                }
                self.settle_written(destination, identifier, claimed, *may_land_late, now, tally)?;
            }
            Outcome::Retry {
                due_at,
                counts,
                may_land_late,
                error,
            } => {
                let late_until =
                    may_land_late.then(|| now + self.destinations[destination].rules.late_write_ms);
                self.settle_retry(
                    destination,
                    identifier,
                    claimed.cohort,
                    *due_at,
                    *counts,
                    late_until,
                    error,
                )?;
            }
            Outcome::Unsent => self.settle_unsent(destination, identifier, claimed, tally)?,
            Outcome::Dead { error } => {
                self.settle_dead(destination, identifier, claimed, error, now, tally)?;
            }
        }
        Ok(false)
    }

    /// The short way of [`Ledger::settle_written`], in one statement: the person did not change
    /// meanwhile, and no other call may still land. Gives back since when the row was pending.
    fn delete_as_written(
        &self,
        destination: usize,
        identifier: &str,
        claimed: &ClaimedTrait,
    ) -> Result<Option<Millis>, StoreError> {
        Ok(self
            .connection
            .prepare_cached(
                "DELETE FROM pending WHERE destination = ?1 AND identifier = ?2 AND cohort = ?3
                 AND member = ?4 AND sent = ?5 AND late_until IS NULL RETURNING since",
            )?
            .query_row(
                params![
                    self.destinations[destination].id,
                    identifier,
                    claimed.cohort.0,
                    claimed.target == Target::True,
                    sent_bit(claimed.target)
                ],
                |row| row.get(0),
            )
            .optional()?)
    }

    /// When the first row of an identity is due.
    fn due_of(&self, destination: usize, identifier: &str) -> Result<Option<Millis>, StoreError> {
        let state = &self.destinations[destination];
        Ok(self
            .connection
            .prepare_cached(
                "SELECT min(coalesce(due_at, since + ?3)) FROM pending WHERE destination = ?1 AND identifier = ?2",
            )?
            .query_row(params![state.id, identifier, state.rules.linger_ms], |row| row.get(0))?)
    }

    /// The destination holds the value. Usually that is all; it is not where the person changed
    /// meanwhile, or where an older call may still land on top: then the row stays until that is
    /// no longer possible.
    fn settle_written(
        &self,
        destination: usize,
        identifier: &str,
        claimed: &ClaimedTrait,
        may_land_late: bool,
        now: Millis,
        tally: &mut Tally,
    ) -> Result<(), StoreError> {
        let state = &self.destinations[destination];
        let key = params![state.id, identifier, claimed.cohort.0];
        let Some((member, since, sent, late_until)) = self
            .connection
            .prepare_cached(
                "SELECT member, since, sent, late_until FROM pending WHERE destination = ?1 AND identifier = ?2 AND cohort = ?3",
            )?
            .query_row(key, |row| {
                Ok((
                    row.get::<_, bool>(0)?,
                    row.get::<_, Millis>(1)?,
                    row.get::<_, Option<i64>>(2)?.unwrap_or(0),
                    row.get::<_, Option<Millis>>(3)?,
                ))
            })
            .optional()?
        else {
            // The person was erased while the call was under way.
            return Ok(());
        };
        let claimed_at = state
            .in_flight
            .get(identifier)
            .map_or(now, |call| call.claimed_at);
        let late_until = late_until
            .filter(|until| !is_due(*until, claimed_at))
            .max(may_land_late.then(|| now + state.rules.late_write_ms));
        let told = Told::Known(claimed.target);
        let wanted = Target::of(member, state.rules.on_leave);
        // What is wanted by now goes out at once; what only has to be looked at again waits.
        let due_at = late_until.filter(|_| !told.needs_write(wanted));
        let overwritable = late_until.is_some() && sent & !sent_bit(claimed.target) != 0;
        if overwritable {
            self.connection
                .prepare_cached(
                    "UPDATE pending SET due_at = ?4, late_until = ?5, attempts = 0, error = NULL WHERE destination = ?1 AND identifier = ?2 AND cohort = ?3",
                )?
                .execute(params![state.id, identifier, claimed.cohort.0, due_at, late_until])?;
            return Ok(());
        }
        if told.needs_write(wanted) || late_until.is_some() {
            self.connection
                .prepare_cached(
                    "UPDATE pending SET told = ?4, sent = ?5, late_until = ?6, due_at = ?7, attempts = 0, error = NULL
                     WHERE destination = ?1 AND identifier = ?2 AND cohort = ?3",
                )?
                .execute(params![
                    state.id,
                    identifier,
                    claimed.cohort.0,
                    told_stored(told),
                    late_until.map(|_| sent_bit(claimed.target)),
                    late_until,
                    due_at,
                ])?;
        } else {
            self.delete_pending(state.id, identifier, claimed.cohort)?;
        }
        if !told.needs_write(wanted) {
            tally.add(claimed.cohort, member, since, -1);
        }
        Ok(())
    }

    pub(super) fn delete_pending(
        &self,
        destination: i64,
        identifier: &str,
        cohort: CohortRef,
    ) -> Result<(), StoreError> {
        self.connection
            .prepare_cached(
                "DELETE FROM pending WHERE destination = ?1 AND identifier = ?2 AND cohort = ?3",
            )?
            .execute(params![destination, identifier, cohort.0])?;
        Ok(())
    }

    #[allow(clippy::too_many_arguments)]
    fn settle_retry(
        &self,
        destination: usize,
        identifier: &str,
        cohort: CohortRef,
        due_at: Millis,
        counts: bool,
        late_until: Option<Millis>,
        error: &str,
    ) -> Result<(), StoreError> {
        // Where this call left nothing behind and none before it did, nothing can land late.
        self.connection
            .prepare_cached(
                "UPDATE pending SET due_at = ?4, attempts = attempts + ?5, error = ?6,
                        late_until = coalesce(?7, late_until),
                        sent = CASE WHEN coalesce(?7, late_until) IS NULL THEN NULL ELSE sent END
                 WHERE destination = ?1 AND identifier = ?2 AND cohort = ?3",
            )?
            .execute(params![
                self.destinations[destination].id,
                identifier,
                cohort.0,
                due_at,
                counts,
                error,
                late_until
            ])?;
        Ok(())
    }

    /// No call was made, so what was known is known again.
    fn settle_unsent(
        &self,
        destination: usize,
        identifier: &str,
        claimed: &ClaimedTrait,
        tally: &mut Tally,
    ) -> Result<(), StoreError> {
        let state = &self.destinations[destination];
        let left = self
            .connection
            .prepare_cached(
                "UPDATE pending SET told = ?4,
                        sent = CASE WHEN ?4 IS NOT NULL AND late_until IS NULL THEN NULL ELSE sent END
                 WHERE destination = ?1 AND identifier = ?2 AND cohort = ?3
                 RETURNING member, since",
            )?
            .query_row(
                params![
                    state.id,
                    identifier,
                    claimed.cohort.0,
                    told_stored(claimed.told)
                ],
                |row| Ok((row.get::<_, bool>(0)?, row.get::<_, Millis>(1)?)),
            )
            .optional()?;
        if let Some((member, since)) = left {
            // The person changed back meanwhile: there is nothing left to say.
            if !claimed
                .told
                .needs_write(Target::of(member, state.rules.on_leave))
            {
                tally.add(claimed.cohort, member, since, -1);
            }
        }
        Ok(())
    }

    fn settle_dead(
        &self,
        destination: usize,
        identifier: &str,
        claimed: &ClaimedTrait,
        error: &str,
        now: Millis,
        tally: &mut Tally,
    ) -> Result<(), StoreError> {
        let id = self.destinations[destination].id;
        let removed = self
            .connection
            .prepare_cached(
                "DELETE FROM pending WHERE destination = ?1 AND identifier = ?2 AND cohort = ?3 RETURNING member, since, sent, late_until",
            )?
            .query_row(params![id, identifier, claimed.cohort.0], |row| {
                let late = Late {
                    sent: row.get(2)?,
                    until: row.get(3)?,
                };
                Ok((row.get::<_, bool>(0)?, row.get::<_, Millis>(1)?, late))
            })
            .optional()?;
        if let Some((member, since, late)) = removed {
            tally.add(claimed.cohort, member, since, -1);
            self.connection
                .prepare_cached(
                    "INSERT OR REPLACE INTO dead_letter (destination, identifier, cohort, member, since, error, sent, late_until) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
                )?
                .execute(params![id, identifier, claimed.cohort.0, member, now, error, late.sent, late.until])?;
        }
        Ok(())
    }

    /// After the commit: what is no longer, and what is now, under way.
    pub fn note_in_flight(
        &mut self,
        destination: usize,
        ended: &[Arc<str>],
        claims: &[Claim],
        now: Millis,
    ) {
        let in_flight = &mut self.destinations[destination].in_flight;
        for identifier in ended {
            in_flight.remove(identifier);
        }
        for claim in claims {
            in_flight.insert(
                Arc::clone(&claim.identifier),
                InFlight {
                    claimed_at: now,
                    passed_over: false,
                },
            );
        }
    }
}

/// What a sweep found.
#[derive(Default)]
struct Swept {
    /// Identities that are due.
    found: Vec<(Arc<str>, Vec<Row>)>,
    /// Where it stopped; `None` at the end.
    resume_after: Option<Arc<str>>,
    /// When the first of what is not due will be.
    next_due: Option<Millis>,
    /// Identities with a call under way of whom there is more to say.
    passed_over: Vec<Arc<str>>,
}

/// Groups rows by identity and keeps those that are due.
struct Sweep {
    swept: Swept,
    limit: usize,
    now: Millis,
    on_leave: OnLeave,
    last_seen: Option<Arc<str>>,
    rows: Vec<Row>,
    busy: bool,
}

impl Sweep {
    fn new(limit: usize, now: Millis, on_leave: OnLeave) -> Self {
        Sweep {
            swept: Swept::default(),
            limit,
            now,
            on_leave,
            last_seen: None,
            rows: Vec::new(),
            busy: false,
        }
    }

    fn is_current(&self, identifier: &str) -> bool {
        !self.rows.is_empty() && self.last_seen.as_deref() == Some(identifier)
    }

    fn open(&mut self, identifier: &str, busy: bool) {
        self.last_seen = Some(identifier.into());
        self.busy = busy;
    }

    /// Ends the current identity; whether no more fit.
    fn close(&mut self) -> bool {
        let rows = std::mem::take(&mut self.rows);
        if let Some(identifier) = self.last_seen.as_ref().filter(|_| !rows.is_empty()) {
            if self.busy {
                if rows.iter().any(|row| !row.is_being_sent(self.on_leave)) {
                    self.swept.passed_over.push(Arc::clone(identifier));
                }
                return false;
            }
            // A row that is only watched stays though another row of the identity is due.
            let later = rows
                .iter()
                .map(|row| row.due_at)
                .filter(|at| !is_due(*at, self.now));
            self.swept.next_due = soonest(self.swept.next_due, later.min());
            if rows.iter().any(|row| is_due(row.due_at, self.now)) {
                self.swept.found.push((Arc::clone(identifier), rows));
            }
        }
        self.swept.found.len() >= self.limit
    }
}
