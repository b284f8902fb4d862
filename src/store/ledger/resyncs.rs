//! Orders to write again what a destination was told: a row of `resync` each, walked a piece a
//! transaction, so that a kill goes on where it was.
//!
//! An order of everything walks through the people of all cohorts that go there, one person after
//! the other. Orders of single cohorts go before it, and whom they reached it leaves out; it takes the
//! place of those that were given before it. So nobody is written twice for one order, whatever
//! else is ordered.
//!
//! An order of a cohort that is paused is not walked until it is resumed, and others go on. Such a
//! cohort an order of everything leaves behind, as an order of its own at the same rate: what it made
//! pending would be put aside, and all of it be called for at once after the resumption.
//!
//! A trait that an order made pending, or found so, has the order's number in `pending.resync` until it
//! is written: these are what is ahead.

use super::pending::Tally;
use super::state::Ledger;
use super::walk::{Person, Walked, next_people};
use crate::clock::Millis;
use crate::cohort::{DestinationName, SourceName};
use crate::store::database::{Connection, DatabaseError, OptionalRow, Row, params};
use crate::store::{
    CohortRef, ResyncOrder, ResyncRoom, ResyncScope, ResyncStep, ResyncView, StoreError,
};

/// The cohort of an order of everything.
const EVERYTHING: i64 = 0;

const WALKED_THROUGH: i64 = 0;
const ALL_PENDING: i64 = 1;
const WRITTEN: i64 = 2;
const CANCELLED: i64 = 3;

/// Of one order, traits ahead that whoever asks how far it is has counted at most; a few pieces.
const MOST_COUNTED: i64 = 8_192;

/// An order that was not cancelled.
struct Order {
    id: i64,
    cohort: i64,
    walked_through: Option<String>,
    is_begun: bool,
    is_walked: bool,
    /// As if all that was brought up were written: to count what is ahead takes long.
    view: ResyncView,
}

/// Columns that [`Order::read`] reads, and where they are.
const ORDERS: &str = "SELECT r.id, r.cohort, r.walked_through, d.name, c.source, c.cohort_id, r.calls_per_second,
            r.brought_up, r.total, r.state
     FROM resync r JOIN destination d ON d.id = r.destination LEFT JOIN cohort c ON c.id = r.cohort";

impl Order {
    fn read(row: &Row<'_>) -> Result<Self, DatabaseError> {
        let source: Option<String> = row.get(4)?;
        let cohort_id: Option<String> = row.get(5)?;
        let (brought_up, total): (u64, u64) = (row.get(7)?, row.get(8)?);
        let is_walked = row.get::<i64>(9)? != WALKED_THROUGH;
        Ok(Order {
            id: row.get(0)?,
            cohort: row.get(1)?,
            walked_through: row.get(2)?,
            is_begun: brought_up > 0,
            is_walked,
            view: ResyncView {
                destination: DestinationName::from(row.get::<String>(3)?.as_str()),
                cohort: source
                    .map(|source| SourceName::from(source.as_str()))
                    .zip(cohort_id),
                max_calls_per_second: row.get(6)?,
                done: brought_up,
                of: if is_walked {
                    brought_up
                } else {
                    total.max(brought_up)
                },
                waiting: 0,
            },
        })
    }
}

/// How far the orders of each destination are that has any.
pub fn resyncs(connection: &Connection) -> Result<Vec<ResyncView>, StoreError> {
    let mut views: Vec<ResyncView> = Vec::new();
    let orders = connection
        .prepare_cached(&format!(
            "{ORDERS} WHERE r.state IN (0, 1)
             ORDER BY r.destination, r.state = 0 AND c.paused_at IS NOT NULL, r.state, r.cohort = 0, r.id"
        ))?
        .query_map((), Order::read)?
        .collect::<Result<Vec<_>, _>>()?;
    for order in orders {
        match views.last_mut() {
            Some(first) if first.destination == order.view.destination => {
                first.waiting += u64::from(!order.is_walked);
            }
            _ => {
                let ahead = ahead_of(connection, order.id)?;
                views.push(ResyncView {
                    done: order.view.done.saturating_sub(ahead),
                    ..order.view
                });
            }
        }
    }
    Ok(views)
}

/// How many traits that an order made pending are so still, as far as they are counted.
fn ahead_of(connection: &Connection, order: i64) -> Result<u64, StoreError> {
    Ok(connection
        .prepare_cached(
            "SELECT count(*) FROM (SELECT 1 FROM resync r CROSS JOIN pending p INDEXED BY pending_resync
                 ON p.destination IN (r.destination, -r.destination) AND p.resync = r.id WHERE r.id = ?1 LIMIT ?2) AS left_over",
        )?
        .query_row([order, MOST_COUNTED], |row| row.get(0))?)
}

impl Ledger {
    /// Writes an order down; how many traits it is about, `None` where there is no such cohort.
    pub fn order_resync(
        &mut self,
        order: &ResyncOrder,
        now: Millis,
    ) -> Result<Option<u64>, StoreError> {
        let rate = order.max_calls_per_second;
        let Some(pairs) = self.pairs_of(&order.scope)? else {
            return Ok(None);
        };
        let mut traits = 0;
        for (destination, cohort) in pairs {
            let total = self.traits_of(destination, cohort)?;
            if cohort == EVERYTHING {
                // It begins behind them, and reaches all that they do.
                self.drop_resyncs(destination)?;
            }
            self.connection
                .prepare_cached(
                    "INSERT INTO resync (destination, cohort, ordered_at, calls_per_second, total) VALUES (?1, ?2, ?3, ?4, ?5)
                     ON CONFLICT (destination, cohort) DO UPDATE SET ordered_at = excluded.ordered_at, calls_per_second = excluded.calls_per_second,
                         total = excluded.total, state = 0, walked_through = NULL, brought_up = 0,
                         reached_through = (SELECT max(through) FROM (SELECT coalesce(resync.reached_through, '') AS through
                                            UNION ALL SELECT coalesce(resync.walked_through, '')) AS reached)",
                )?
                .execute(params![destination, cohort, now, rate, total])?;
            self.leave_paused_behind(destination)?;
            traits += total;
        }
        Ok(Some(traits))
    }

    /// Cancels orders as far as they were not walked; how many traits are not reached, and `None`
    /// where there is no such cohort.
    pub fn cancel_resync(&mut self, scope: &ResyncScope) -> Result<Option<u64>, StoreError> {
        let Some(pairs) = self.pairs_of(scope)? else {
            return Ok(None);
        };
        let mut traits = 0;
        for (destination, cohort) in pairs {
            if cohort == EVERYTHING {
                traits += self.not_reached(destination, cohort)?;
                self.drop_resyncs(destination)?;
            } else if self.is_everything_walked(destination)? {
                traits += self.passed_by(destination, cohort)?;
                // Whom it reached are left out by that one still.
                self.connection
                    .prepare_cached("UPDATE resync SET state = ?3 WHERE destination = ?1 AND cohort = ?2 AND state = 0")?
                    .execute(params![destination, cohort, CANCELLED])?;
            } else {
                traits += self.not_reached(destination, cohort)?;
                self.connection
                    .prepare_cached(
                        "DELETE FROM resync WHERE destination = ?1 AND cohort = ?2 AND state = 0",
                    )?
                    .execute(params![destination, cohort])?;
            }
        }
        Ok(Some(traits))
    }

    /// Destinations and cohorts that a scope means, by number.
    fn pairs_of(&mut self, scope: &ResyncScope) -> Result<Option<Vec<(i64, i64)>>, StoreError> {
        match scope {
            ResyncScope::Destination(name) => {
                let destination = self.destination(name)?;
                Ok(Some(vec![(self.destinations[destination].id, EVERYTHING)]))
            }
            ResyncScope::Cohort {
                source,
                cohort_id,
                destination: only,
            } => {
                let Some(cohorts) = self.meant(source, cohort_id)? else {
                    return Ok(None);
                };
                let mut pairs = Vec::new();
                for (at, state) in self.destinations.iter().enumerate() {
                    if only.as_ref().is_some_and(|only| *only != state.rules.name) {
                        continue;
                    }
                    for &cohort in &cohorts {
                        if self.following(at, cohort)?.hears() {
                            pairs.push((state.id, cohort.0));
                        }
                    }
                }
                Ok(Some(pairs))
            }
        }
    }

    /// Traits that a destination was told of.
    fn traits_of(&self, destination: i64, cohort: i64) -> Result<u64, StoreError> {
        Ok(self
            .connection
            .prepare_cached(
                "SELECT CAST(coalesce(sum(c.members + c.leavers + c.held + c.kept), 0) AS BIGINT) FROM route r JOIN cohort c ON c.id = r.cohort
                 WHERE r.destination = ?1 AND r.state IN (1, 2) AND (?2 = 0 OR c.id = ?2)",
            )?
            .query_row([destination, cohort], |row| row.get(0))?)
    }

    fn not_reached(&self, destination: i64, cohort: i64) -> Result<u64, StoreError> {
        Ok(self
            .connection
            .prepare_cached(
                "SELECT CAST(coalesce(sum(total - brought_up), 0) AS BIGINT) FROM resync
                 WHERE destination = ?1 AND state = 0 AND total > brought_up AND (cohort = ?2 OR ?2 = 0
                     AND NOT EXISTS (SELECT 1 FROM resync WHERE destination = ?1 AND cohort = 0 AND state = 0))",
            )?
            .query_row([destination, cohort], |row| row.get(0))?)
    }

    /// Traits that an order of a cohort did not reach yet, and that the order of everything which is
    /// being walked will not reach either: it is beyond them.
    fn passed_by(&self, destination: i64, cohort: i64) -> Result<u64, StoreError> {
        Ok(self
            .connection
            .prepare_cached(
                "SELECT count(DISTINCT m.identifier) FROM resync o CROSS JOIN resync e ON e.destination = o.destination
                 CROSS JOIN member m ON m.cohort = o.cohort AND m.identifier > coalesce(o.walked_through, '')
                     AND (m.identifier <= e.walked_through OR m.identifier <= o.reached_through)
                 WHERE o.destination = ?1 AND o.cohort = ?2 AND o.state = 0 AND e.cohort = 0 AND e.state = 0",
            )?
            .query_row([destination, cohort], |row| row.get(0))?)
    }

    /// Makes orders of their own of the paused cohorts that the order of everything, where there is
    /// one, would still walk through.
    fn leave_paused_behind(&self, destination: i64) -> Result<(), StoreError> {
        // One that was cancelled was left to the order of everything: from where that stands.
        self.connection
            .prepare_cached(
                "INSERT INTO resync (destination, cohort, ordered_at, calls_per_second, walked_through, total)
                     SELECT e.destination, c.id, e.ordered_at, e.calls_per_second, e.walked_through,
                            CASE WHEN e.walked_through IS NULL THEN c.members + c.leavers + c.held + c.kept
                            ELSE (SELECT count(DISTINCT identifier) FROM member WHERE cohort = c.id AND identifier > e.walked_through) END
                     FROM resync e JOIN route r ON r.destination = e.destination AND r.state IN (1, 2) JOIN cohort c ON c.id = r.cohort
                     WHERE e.destination = ?1 AND e.cohort = 0 AND e.state = 0 AND c.paused_at IS NOT NULL
                     AND NOT EXISTS (SELECT 1 FROM resync WHERE destination = e.destination AND cohort = c.id AND state <> ?2)
                 ON CONFLICT (destination, cohort) DO UPDATE SET ordered_at = excluded.ordered_at, calls_per_second = excluded.calls_per_second,
                     total = excluded.total, state = 0, brought_up = 0,
                     walked_through = (SELECT max(through) FROM (SELECT resync.walked_through AS through
                                           UNION ALL SELECT nullif(resync.reached_through, '')
                                           UNION ALL SELECT excluded.walked_through) AS reached)",
            )?
            .execute([destination, CANCELLED])?;
        Ok(())
    }

    /// Whether everything is being walked through.
    fn is_everything_walked(&self, destination: i64) -> Result<bool, StoreError> {
        Ok(self
            .connection
            .prepare_cached(
                "SELECT 1 FROM resync WHERE destination = ?1 AND cohort = 0 AND state = 0",
            )?
            .exists([destination])?)
    }

    fn drop_resyncs(&self, destination: i64) -> Result<(), StoreError> {
        self.connection
            .prepare_cached("DELETE FROM resync WHERE destination = ?1")?
            .execute([destination])?;
        Ok(())
    }

    /// A step of a destination's orders.
    pub fn resync_some(
        &mut self,
        destination: usize,
        room: &ResyncRoom,
        now: Millis,
    ) -> Result<ResyncStep, StoreError> {
        let id = self.destinations[destination].id;
        if let Some(ended) = self.end_resync(id)? {
            return Ok(ResyncStep::Ended(ended));
        }
        let next = self
            .connection
            .prepare_cached(&format!(
                "{ORDERS} WHERE r.destination = ?1 AND r.state = 0 AND c.paused_at IS NULL ORDER BY r.cohort = 0, r.id LIMIT 1"
            ))?
            .query_row([id], Order::read)
            .optional()?;
        let Some(order) = next else {
            let is_any_ahead = self
                .connection
                .prepare_cached("SELECT 1 FROM resync WHERE destination = ?1")?
                .exists([id])?;
            return Ok(match is_any_ahead {
                true => ResyncStep::Full,
                false => ResyncStep::Idle,
            });
        };
        if order.view.max_calls_per_second != room.max_calls_per_second {
            return Ok(ResyncStep::Paced(order.view.max_calls_per_second));
        }
        if room.rows == 0 {
            return Ok(ResyncStep::Full);
        }
        if self.is_enough_ahead(id, room)? {
            return Ok(ResyncStep::Full);
        }
        self.walk_some(destination, order, room, now)
    }

    /// Whether as much is ahead as may be. No more than that is counted: each piece asks.
    fn is_enough_ahead(&self, destination: i64, room: &ResyncRoom) -> Result<bool, StoreError> {
        for (what, most) in [
            ("1", room.rows_ahead),
            ("DISTINCT identifier", room.identities_ahead),
        ] {
            if most == usize::MAX {
                continue;
            }
            let ahead: usize = self
                .connection
                .prepare_cached(&format!(
                    "SELECT count(*) FROM (SELECT {what} FROM pending INDEXED BY pending_resync
                     WHERE destination = ?1 AND resync IS NOT NULL LIMIT ?2) AS ahead",
                ))?
                .query_row(params![destination, most], |row| row.get(0))?;
            if ahead >= most {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Makes a piece of an order pending.
    fn walk_some(
        &mut self,
        destination: usize,
        order: Order,
        room: &ResyncRoom,
        now: Millis,
    ) -> Result<ResyncStep, StoreError> {
        self.leave_paused_behind(self.destinations[destination].id)?;
        let cohorts = self.cohorts_of(destination, &order)?;
        let (people, mut is_last) = next_people(&self.connection, cohorts, room.rows)?;
        let mut tally = Tally::new(self.destinations[destination].id);
        let (mut identities, mut rows, mut walked) = (0, 0, 0);
        let mut walked_through = None;
        for person in &people {
            if identities == room.identities {
                is_last = false;
                break;
            }
            let new = self.write_again(destination, &order, person, now, &mut tally)?;
            rows += new;
            identities += usize::from(new > 0);
            walked += person.traits.len();
            walked_through = Some(&person.identifier);
        }
        self.count(&tally)?;
        let state = if is_last { ALL_PENDING } else { WALKED_THROUGH };
        self.connection
            .prepare_cached(
                "UPDATE resync SET walked_through = coalesce(?2, walked_through), brought_up = brought_up + ?3, state = ?4 WHERE id = ?1",
            )?
            .execute(params![order.id, walked_through, walked, state])?;
        Ok(ResyncStep::BroughtUp {
            begun: (!order.is_begun).then_some(order.view),
            identities,
            rows,
        })
    }

    /// The cohorts that an order walks through, from where it stands.
    fn cohorts_of(&mut self, destination: usize, order: &Order) -> Result<Vec<Walked>, StoreError> {
        // Whatever the destination hears nothing of is asserted anew should it be led there again.
        let cohorts = self
            .connection
            .prepare_cached(
                "SELECT r.cohort, (SELECT max(through) FROM (SELECT coalesce(o.walked_through, '') AS through
                                                UNION ALL SELECT coalesce(o.reached_through, '')) AS reached)
                 FROM route r
                 JOIN cohort c ON c.id = r.cohort AND c.paused_at IS NULL
                 LEFT JOIN resync o ON o.destination = r.destination AND o.cohort = r.cohort AND o.id <> ?3
                 WHERE r.destination = ?1 AND r.state IN (1, 2) AND (?2 = 0 OR r.cohort = ?2)",
            )?
            .query_map(
                params![self.destinations[destination].id, order.cohort, order.id],
                |row| Ok((CohortRef(row.get(0)?), row.get::<String>(1)?)),
            )?
            .collect::<Result<Vec<_>, _>>()?;
        let walked = cohorts.into_iter().map(|(cohort, reached)| {
            Ok(Walked {
                cohort,
                number: self.trait_of(cohort)?,
                after: Some(reached).max(order.walked_through.clone()),
            })
        });
        walked.collect()
    }

    /// Makes all of one person pending; how many traits were not so already.
    fn write_again(
        &mut self,
        destination: usize,
        order: &Order,
        person: &Person,
        now: Millis,
        tally: &mut Tally,
    ) -> Result<usize, StoreError> {
        let identifier = &person.identifier;
        let mut new = 0;
        for &(number, wanted) in &person.traits {
            let waited_already =
                self.assert_again(destination, identifier, number, wanted, now, tally)?;
            new += usize::from(!waited_already);
            // At once: there is no company to wait for, all of the person comes together. Only a
            // call that failed is not made again before its time.
            let due_at = (!waited_already).then_some(now);
            let id = self.destinations[destination].id;
            self.connection
                .prepare_cached(
                    "UPDATE pending SET resync = ?4, due_at = coalesce(due_at, ?5) WHERE destination = ?1 AND identifier = ?2 AND trait = ?3",
                )?
                .execute(params![
                    self.found_at(id, identifier, number)?,
                    identifier,
                    number.0,
                    order.id,
                    due_at
                ])?;
        }
        Ok(new)
    }

    /// Ends an order all of which was made pending and of which nothing is any more.
    fn end_resync(&self, destination: i64) -> Result<Option<ResyncView>, StoreError> {
        let is_everything_walked = self.is_everything_walked(destination)?;
        if !is_everything_walked {
            self.connection
                .prepare_cached("DELETE FROM resync WHERE destination = ?1 AND state IN (?2, ?3)")?
                .execute([destination, WRITTEN, CANCELLED])?;
        }
        let ended = self
            .connection
            .prepare_cached(&format!(
                "{ORDERS} WHERE r.destination = ?1 AND r.state = 1
                 AND NOT EXISTS (SELECT 1 FROM pending INDEXED BY pending_resync
                                 WHERE destination IN (r.destination, -r.destination) AND resync = r.id) LIMIT 1"
            ))?
            .query_row([destination], Order::read)
            .optional()?;
        let Some(Order { id, view, .. }) = ended else {
            return Ok(None);
        };
        if is_everything_walked {
            self.connection
                .prepare_cached("UPDATE resync SET state = ?2 WHERE id = ?1")?
                .execute([id, WRITTEN])?;
        } else {
            self.connection
                .prepare_cached("DELETE FROM resync WHERE id = ?1")?
                .execute([id])?;
        }
        Ok(Some(view))
    }
}
