//! The sweep through what is pending: which identities are due.

use std::collections::HashSet;
use std::sync::Arc;

use super::exchange::soonest;
use super::state::{Ledger, sent_bit, told_from, wanted_from};
use crate::backoff::is_due;
use crate::clock::Millis;
use crate::cohort::{OnLeave, Target, Told, Wanted};
use crate::store::database::{self, DatabaseError, params};
use crate::store::{StoreError, TraitRef};

/// Rows that one claim may look at: where nearly everything waits for a later time, the sweep goes
/// on in the next transaction.
const ROWS_A_CLAIM: usize = 16_384;

/// A `pending` row during a claim.
pub(super) struct Row {
    pub(super) number: TraitRef,
    pub(super) wanted: Wanted,
    pub(super) sent: i64,
    pub(super) late_until: Option<Millis>,
    pub(super) attempts: u32,
    pub(super) due_at: Millis,
    pub(super) told: Told,
}

impl Row {
    /// Reads `identifier, trait, wanted, sent, late_until, attempts, due_at, since, told`.
    fn read(row: &database::Row<'_>, linger_ms: Millis) -> Result<Self, DatabaseError> {
        let since: Millis = row.get(7)?;
        let due_at: Option<Millis> = row.get(6)?;
        Ok(Row {
            number: TraitRef(row.get(1)?),
            wanted: wanted_from(row.get(2)?),
            sent: row.get::<Option<i64>>(3)?.unwrap_or(0),
            late_until: row.get(4)?,
            attempts: row.get(5)?,
            due_at: due_at.unwrap_or(since + linger_ms),
            told: told_from(row.get(8)?),
        })
    }

    /// Whether a call under way for the identity carries what is wanted here.
    fn is_being_sent(&self, on_leave: OnLeave) -> bool {
        let target = Target::of(self.wanted, on_leave);
        self.told == Told::Unknown && self.sent & sent_bit(target) != 0
    }
}

/// What a sweep found.
#[derive(Default)]
pub(super) struct Swept {
    /// Identities that are due.
    pub(super) found: Vec<(Arc<str>, Vec<Row>)>,
    /// Where it stopped; `None` at the end.
    pub(super) resume_after: Option<Arc<str>>,
    /// When the first of what is not due will be.
    pub(super) next_due: Option<Millis>,
    /// Identities with a call under way of whom there is more to say.
    pub(super) passed_over: Vec<Arc<str>>,
}

/// Groups rows by identity and keeps those that are due.
struct Sweep {
    swept: Swept,
    limit: usize,
    now: Millis,
    on_leave: OnLeave,
    last_seen: Option<Arc<str>>,
    /// The one before that.
    before: Option<Arc<str>>,
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
            before: None,
            rows: Vec::new(),
            busy: false,
        }
    }

    fn is_current(&self, identifier: &str) -> bool {
        self.last_seen.as_deref() == Some(identifier)
    }

    fn open(&mut self, identifier: &str, busy: bool) {
        self.before = self.last_seen.replace(identifier.into());
        self.busy = busy;
    }

    /// Ends with the identity before the current one; not where there is none.
    fn stop_before_the_last(&mut self) -> bool {
        self.rows.clear();
        self.swept.resume_after = self.before.take();
        self.swept.resume_after.is_some()
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

impl Ledger {
    /// Reads identities that are due, in order.
    pub(super) fn sweep(
        &self,
        destination: usize,
        after: Option<&str>,
        limit: usize,
        now: Millis,
        settled: &HashSet<&str>,
    ) -> Result<Swept, StoreError> {
        let state = &self.destinations[destination];
        let mut statement = self.connection.prepare_cached(
            "SELECT identifier, trait, wanted, sent, late_until, attempts, due_at, since, told FROM pending
             WHERE destination = ?1 AND identifier > coalesce(?2, '') ORDER BY identifier, trait LIMIT ?3",
        )?;
        let parking = self.parking()?;
        let mut most_rows = if self.connection.is_shared() {
            // There they are read and sent, wanted or not.
            (limit * 8).clamp(1_024, ROWS_A_CLAIM)
        } else {
            ROWS_A_CLAIM
        };
        loop {
            let mut sweep = Sweep::new(limit, now, state.rules.on_leave);
            let (mut seen, mut is_full) = (0, false);
            statement.scan(params![state.id, after, most_rows], |row| {
                let identifier = row.text(0)?;
                if !sweep.is_current(identifier) {
                    is_full = sweep.close();
                    if is_full {
                        return Ok(false);
                    }
                    // In flight, and not just settled: its settlement will bring it back.
                    let busy =
                        state.in_flight.contains_key(identifier) && !settled.contains(identifier);
                    sweep.open(identifier, busy);
                }
                seen += 1;
                let row = Row::read(row, state.rules.linger_ms)?;
                if !parking.holds(row.number, row.wanted) {
                    sweep.rows.push(row);
                }
                Ok::<_, StoreError>(true)
            })?;
            if is_full {
                sweep.swept.resume_after = sweep.last_seen;
            } else if seen < most_rows {
                sweep.close();
            } else if sweep.stop_before_the_last() {
                // Perhaps not all of the last one's rows were read.
            } else {
                most_rows *= 2;
                continue;
            }
            return Ok(sweep.swept);
        }
    }

    /// All rows of each of these identities that may be called for, by trait.
    pub(super) fn rows_of(
        &self,
        destination: usize,
        identifiers: &[Arc<str>],
    ) -> Result<Vec<Vec<Row>>, StoreError> {
        let state = &self.destinations[destination];
        let parking = self.parking()?;
        let mut found: Vec<Vec<Row>> = identifiers.iter().map(|_| Vec::new()).collect();
        self.connection.each_of(
            "SELECT identifier, trait, wanted, sent, late_until, attempts, due_at, since, told FROM pending
             WHERE destination = ?1 AND identifier = ?2",
            identifiers,
            |identifier| [state.id.into(), (&**identifier).into()],
            |at, row| {
                let row = Row::read(row, state.rules.linger_ms)?;
                if !parking.holds(row.number, row.wanted) {
                    found[at].push(row);
                }
                Ok::<_, StoreError>(())
            },
        )?;
        for rows in &mut found {
            rows.sort_by_key(|row| row.number);
        }
        Ok(found)
    }
}
