//! What a destination does not know yet, as changes of membership make it.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use super::apply::Changes;
use super::membership::{Change, Standing};
use super::rows::Insert;
use super::state::{Ledger, settled, told_from, told_stored, wanted_from, wanted_stored};
use crate::clock::Millis;
use crate::cohort::{OnLeave, Target, Told, Wanted};
use crate::store::database::{Value, nothing, params};
use crate::store::{StoreError, TraitRef};

/// What most of a first sync is inserted with.
static INSERT_PENDING: LazyLock<Insert<8>> = LazyLock::new(|| {
    Insert::into("pending (destination, identifier, trait, wanted, told, since, sent, late_until)")
});

/// The same, where some enter the express lane.
static INSERT_EXPRESS: LazyLock<Insert<9>> = LazyLock::new(|| {
    Insert::into(
        "pending (destination, identifier, trait, wanted, told, since, sent, late_until, express_at)",
    )
});

impl Ledger {
    pub(super) fn change_pending(
        &mut self,
        destination: usize,
        number: TraitRef,
        changes: &Changes,
        now: Millis,
    ) -> Result<(), StoreError> {
        let state = &self.destinations[destination];
        let (id, on_leave) = (state.id, state.rules.on_leave);
        let has_dead = self
            .connection
            .prepare_cached("SELECT 1 FROM dead_letter WHERE destination = ?1 LIMIT 1")?
            .exists([id])?;
        let has_strangers = self.has_strangers(id, number)?;
        // Of whom nothing was known there is nothing to look up.
        let may_be_held = |change: Change| has_strangers || change.was.is_some();
        let named = |is_asked: &dyn Fn(Change) -> bool| -> Vec<&str> {
            let asked = changes.traits().filter(|(_, change)| is_asked(*change));
            asked.map(|(identifier, _)| identifier).collect()
        };
        let held_rows = self.pending_rows(id, &named(&may_be_held), number)?;
        let dead_rows = self.take_all_dead(id, &named(&|_| has_dead), number)?;
        let (mut held_rows, mut dead_rows) = (held_rows.into_iter(), dead_rows.into_iter());
        let joins = changes
            .traits()
            .filter(|(_, change)| change.now.is_some_and(Standing::is_wanted));
        let mut entry =
            self.express_entry(id, number, joins.count(), changes.of_small_session, now)?;
        let mut tally = Tally::new(id);
        let mut unheard = Vec::new();
        let mut again = Vec::new();
        for (identifier, change) in changes.traits() {
            let wanted = Wanted::of(change.now.is_some_and(Standing::is_wanted));
            let dead = dead_rows.next().flatten();
            let held = match may_be_held(change) {
                true => held_rows.next().flatten(),
                false => None,
            };
            match held {
                Some(held) => again.push(Again {
                    identifier,
                    number,
                    wanted,
                    express_at: entry.next(wanted),
                    held,
                }),
                None => {
                    let told = match dead {
                        Some(_) => Told::Unknown,
                        None => told_before(change, wanted, on_leave),
                    };
                    if told.needs_write(Target::of(wanted, on_leave)) {
                        unheard.push(Unheard {
                            identifier,
                            wanted,
                            told,
                            late: dead.unwrap_or_default(),
                            express_at: entry.next(wanted),
                        });
                        tally.add(number, wanted, now, 1);
                    }
                }
            }
        }
        self.change_held(id, &again, on_leave, &mut tally)?;
        self.insert_all_pending(id, number, &unheard, now)?;
        self.count(&tally)
    }

    /// Whether people of whom the trait's cohort knows nothing may have rows: somebody was erased, or
    /// the trait was another cohort's, or its own before that was forgotten.
    fn has_strangers(&self, destination: i64, number: TraitRef) -> Result<bool, StoreError> {
        Ok(self
            .connection
            .prepare_cached(
                "SELECT 1 FROM meta WHERE key = 'strangers:' || ?2
                 UNION ALL SELECT 1 FROM pending WHERE destination = ?1 AND wanted = 2 LIMIT 1",
            )?
            .exists([destination, number.0])?)
    }

    /// People change again before the destination heard of the last change.
    pub(super) fn change_held(
        &self,
        destination: i64,
        again: &[Again<'_>],
        on_leave: OnLeave,
        tally: &mut Tally,
    ) -> Result<(), StoreError> {
        let (mut settled, mut changed) = (Vec::new(), Vec::new());
        for again in again {
            let (held, wanted) = (&again.held, again.wanted);
            let needs_write = held.told.needs_write(Target::of(wanted, on_leave));
            if held.told.needs_write(Target::of(held.wanted, on_leave)) {
                tally.add(again.number, held.wanted, held.since, -1);
            }
            if needs_write {
                tally.add(again.number, wanted, held.since, 1);
            }
            if needs_write || held.late_until.is_some() {
                // A change goes out at once, but where the last call failed; a value that is right
                // already waits for the end of its watch.
                changed.push((again, held.late_until.filter(|_| !needs_write)));
            } else {
                settled.push(again);
            }
        }
        self.connection.each_of(
            "DELETE FROM pending WHERE destination = ?1 AND identifier = ?2 AND trait = ?3",
            &settled,
            |again| {
                [
                    again.held.place.into(),
                    again.identifier.into(),
                    again.number.0.into(),
                ]
            },
            nothing,
        )?;
        self.connection.each_of(
            "UPDATE pending SET wanted = ?4, due_at = CASE WHEN error IS NULL THEN ?5 ELSE due_at END,
                    express_at = coalesce(CASE WHEN error IS NULL OR due_at IS NULL OR due_at < ?6 THEN ?6 WHEN ?6 IS NOT NULL THEN due_at END, express_at)
             WHERE destination = ?1 AND identifier = ?2 AND trait = ?3",
            &changed,
            |(again, watched_until)| {
                [
                    again.held.place.into(),
                    again.identifier.into(),
                    again.number.0.into(),
                    wanted_stored(again.wanted).into(),
                    (*watched_until).into(),
                    watched_until.or(again.express_at).into(),
                ]
            },
            nothing,
        )?;
        for (again, _) in changed {
            let Again {
                identifier,
                number,
                wanted,
                ..
            } = *again;
            self.bring_home(destination, again.held.place, identifier, number, wanted)?;
        }
        Ok(())
    }

    pub(super) fn pending_row(
        &self,
        destination: i64,
        identifier: &str,
        number: TraitRef,
    ) -> Result<Option<Held>, StoreError> {
        let mut rows = self.pending_rows(destination, &[identifier], number)?;
        Ok(rows.pop().flatten())
    }

    /// What is pending of a trait of each of these people.
    fn pending_rows(
        &self,
        destination: i64,
        identifiers: &[&str],
        number: TraitRef,
    ) -> Result<Vec<Option<Held>>, StoreError> {
        let mut rows = vec![None; identifiers.len()];
        // What is parked stands elsewhere.
        let places = match self.parking()?.knows(number) {
            true => &[destination, -destination][..],
            false => &[destination][..],
        };
        for place in places {
            self.connection.each_of(
                "SELECT wanted, told, since, late_until FROM pending WHERE destination = ?1 AND identifier = ?2 AND trait = ?3",
                identifiers,
                |identifier| [(*place).into(), (*identifier).into(), number.0.into()],
                |at, row| {
                    rows[at] = Some(Held {
                        place: *place,
                        wanted: wanted_from(row.get(0)?),
                        told: told_from(row.get(1)?),
                        since: row.get(2)?,
                        late_until: row.get(3)?,
                    });
                    Ok::<_, StoreError>(())
                },
            )?;
        }
        Ok(rows)
    }

    /// Writes down that a destination does not know something.
    pub(super) fn insert_pending(
        &mut self,
        destination: i64,
        number: TraitRef,
        unheard: Unheard<'_>,
        since: Millis,
    ) -> Result<(), StoreError> {
        self.insert_all_pending(destination, number, &[unheard], since)
    }

    fn insert_all_pending(
        &mut self,
        destination: i64,
        number: TraitRef,
        unheard: &[Unheard<'_>],
        since: Millis,
    ) -> Result<(), StoreError> {
        let parked = self.home(destination, number, Wanted::Member)?;
        let home = |row: &Unheard<'_>| match row.wanted {
            Wanted::Erased => destination,
            Wanted::Member | Wanted::Left => parked,
        };
        if unheard.iter().any(|row| row.express_at.is_some()) {
            INSERT_EXPRESS.all(&self.connection, unheard, |row| {
                row.values(home(row), number, since)
            })?;
        } else {
            INSERT_PENDING.all(&self.connection, unheard, |row| {
                let values = row.values(home(row), number, since);
                std::array::from_fn(|at| values[at])
            })?;
        }
        let state = self
            .destinations
            .iter_mut()
            .find(|state| state.id == destination);
        let Some(state) = state else {
            return Ok(());
        };
        for row in unheard.iter().filter(|row| row.late.sent.is_some()) {
            // To a sweep it would look like part of a call that is under way.
            if let Some(call) = state.in_flight.get_mut(row.identifier) {
                call.passed_over = true;
            }
        }
        Ok(())
    }

    pub(super) fn take_dead(
        &self,
        destination: i64,
        identifier: &str,
        number: TraitRef,
    ) -> Result<Option<Late>, StoreError> {
        let mut taken = self.take_all_dead(destination, &[identifier], number)?;
        Ok(taken.pop().flatten())
    }

    /// Takes the dead letters of a trait of each of these people out.
    fn take_all_dead(
        &self,
        destination: i64,
        identifiers: &[&str],
        number: TraitRef,
    ) -> Result<Vec<Option<Late>>, StoreError> {
        let mut taken = vec![None; identifiers.len()];
        self.connection.each_of(
            "DELETE FROM dead_letter WHERE destination = ?1 AND identifier = ?2 AND trait = ?3 RETURNING sent, late_until",
            identifiers,
            |identifier| [destination.into(), (*identifier).into(), number.0.into()],
            |at, row| {
                taken[at] = Some(Late {
                    sent: row.get(0)?,
                    until: row.get(1)?,
                });
                Ok::<_, StoreError>(())
            },
        )?;
        Ok(taken)
    }

    /// Brings the counts of `backlog` into step.
    pub(super) fn count(&self, tally: &Tally) -> Result<(), StoreError> {
        let mut add = self.connection.prepare_cached(
            "INSERT INTO backlog (destination, trait, wanted, since_seconds, rows) VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT (destination, trait, wanted, since_seconds) DO UPDATE SET rows = backlog.rows + excluded.rows",
        )?;
        let mut drop_empty = self.connection.prepare_cached(
            "DELETE FROM backlog WHERE destination = ?1 AND trait = ?2 AND wanted = ?3 AND since_seconds = ?4 AND rows <= 0",
        )?;
        for ((number, wanted, since_seconds), rows) in &tally.rows {
            if *rows == 0 {
                continue;
            }
            add.execute(params![
                tally.destination,
                number.0,
                wanted,
                since_seconds,
                rows
            ])?;
            if *rows < 0 {
                drop_empty.execute(params![tally.destination, number.0, wanted, since_seconds])?;
            }
        }
        Ok(())
    }
}

/// What the destination knew before a change, where nothing is pending.
fn told_before(change: Change, wanted: Wanted, on_leave: OnLeave) -> Told {
    match (change.was, wanted) {
        (Some(was), _) => settled(Wanted::of(was.is_wanted()), on_leave),
        // Somebody new: there is no such trait yet.
        (None, Wanted::Member) => Told::Known(Target::Absent),
        // A leaver of whom nothing is known: the ledger that made the trait may have been lost.
        (None, Wanted::Left | Wanted::Erased) => Told::Unknown,
    }
}

/// A change that a destination did not hear of.
pub(super) struct Unheard<'a> {
    pub(super) identifier: &'a str,
    pub(super) wanted: Wanted,
    pub(super) told: Told,
    pub(super) late: Late,
    /// Since when it is on the [express lane](super::express), where it is.
    pub(super) express_at: Option<Millis>,
}

impl Unheard<'_> {
    /// The values of its row, in the order of [`INSERT_EXPRESS`].
    fn values(&self, destination: i64, number: TraitRef, since: Millis) -> [Value<'_>; 9] {
        [
            destination.into(),
            self.identifier.into(),
            number.0.into(),
            wanted_stored(self.wanted).into(),
            told_stored(self.told).into(),
            since.into(),
            self.late.sent.into(),
            self.late.until.into(),
            self.express_at.into(),
        ]
    }
}

/// Somebody who changes again before the destination heard of the last change.
pub(super) struct Again<'a> {
    pub(super) identifier: &'a str,
    pub(super) number: TraitRef,
    pub(super) wanted: Wanted,
    pub(super) express_at: Option<Millis>,
    pub(super) held: Held,
}

/// What calls without a known end may still bring about.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Late {
    /// The bits of the states sent.
    pub(super) sent: Option<i64>,
    /// Until when they may.
    pub(super) until: Option<Millis>,
}

/// A `pending` row, as far as a change needs it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    /// The destination's number in it.
    place: i64,
    pub(super) wanted: Wanted,
    pub(super) told: Told,
    pub(super) since: Millis,
    late_until: Option<Millis>,
}

/// Differences of `backlog`'s counts, gathered over one transaction.
pub(super) struct Tally {
    destination: i64,
    /// By trait, what is wanted as stored, and age in seconds.
    rows: BTreeMap<(TraitRef, i64, i64), i64>,
}

impl Tally {
    pub(super) fn new(destination: i64) -> Self {
        Tally {
            destination,
            rows: BTreeMap::new(),
        }
    }

    pub(super) fn add(&mut self, number: TraitRef, wanted: Wanted, since: Millis, rows: i64) {
        *self
            .rows
            .entry((number, wanted_stored(wanted), since.div_euclid(1_000)))
            .or_default() += rows;
    }
}
