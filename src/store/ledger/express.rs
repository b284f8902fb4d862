//! The express lane: what must not wait until the sweep comes by.
//!
//! The sweep goes through everything pending in the order of identifiers, so behind a million it
//! may take hours to come to somebody. The lane is an index of a few rows of `pending`, by trait:
//!
//! - every removal: that somebody keeps what was taken away weighs more than that somebody waits;
//! - joins, while less than [`OWN_BACKLOG`] of the trait are pending, and after that those of a small
//!   change;
//! - whatever was to be tried again or looked at again at a certain time;
//! - a few dead letters that somebody wants retried.
//!
//! A first sync of millions stays out of it but for its beginning, and so pays for no index. Up to
//! three of four identities of a batch come from the lane: the traits take turns, so that a large
//! change of one cohort does not delay a small one of another; within a trait removals go first, and
//! keep one place in eight free for joins; among equals the newest goes first, since a queue that
//! grows faster than it is served would make everybody late. Nobody is lost: the sweep passes the
//! rows of the lane too, and comes to whom newer ones always overtake.
//!
//! A row leaves the index with its deletion. That it is being called for is not written down there:
//! whoever is under way is passed over, and is on the lane still when the process is killed.

use std::collections::HashSet;
use std::sync::Arc;

use super::state::{Ledger, wanted_stored};
use super::sweep::Row;
use crate::backoff::is_due;
use crate::clock::Millis;
use crate::cohort::Wanted;
use crate::store::database::{OptionalRow, params};
use crate::store::{SessionRef, StoreError, TraitRef};

/// Joins of a trait that are pending at most while every new one enters the lane: a minute or two of
/// a small Flagsmith, and next to nothing of a large first sync.
const OWN_BACKLOG: usize = 8_192;

/// Members of a session at most whose joins enter the lane though the trait's backlog is large.
const SMALL_SESSION: usize = 4_096;

/// Pages of such a session at most. Mixpanel puts a thousand members on one.
const SMALL_SESSION_PAGES: usize = 8;

/// Joins of a chunk at most that are few, however large their session: an unchanged cohort has hardly
/// any, and one that is new has as many as the fold takes at once, which is this at least.
pub(super) const FEW: usize = 255;

/// Joins that the lane of a trait holds at least before it takes no more.
const LANE_HOLDS: usize = 2 * OWN_BACKLOG;

/// Rows of `backlog` that are added up at most. Where changes trickle in it has one for each second,
/// and then it is no large sync that the lane must be spared.
const SECONDS_LOOKED_AT: usize = 64;

/// Rows of one queue at most that are passed over beside those under way.
const PASSED_OVER: usize = 256;

/// Of so many places of a trait, removals leave one to joins.
const JOINS_ONE_IN: usize = 8;

/// What takes turns.
#[derive(Debug, Default)]
pub(super) struct Turn {
    /// The traits behind this one come first.
    after: Option<TraitRef>,
    /// Counts the batches.
    batch: usize,
}

/// Which changes of a chunk enter the lane, and from when on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    places_for_joins: usize,
    now: Millis,
}

impl Entry {
    /// Of the next one of whom this is wanted.
    pub(super) fn next(&mut self, wanted: Wanted) -> Option<Millis> {
        if wanted == Wanted::Member {
            self.places_for_joins = self.places_for_joins.checked_sub(1)?;
        }
        Some(self.now)
    }
}

/// Identities taken from the lane, with all that is pending of them.
#[derive(Default)]
pub(super) struct Express {
    pub(super) found: Vec<(Arc<str>, Vec<Row>)>,
    identifiers: HashSet<Arc<str>>,
}

impl Express {
    pub(super) fn len(&self) -> usize {
        self.found.len()
    }

    pub(super) fn contains(&self, identifier: &str) -> bool {
        self.identifiers.contains(identifier)
    }
}

/// Where identities are taken from: those of a trait to whom one thing is to happen.
struct Queue<'a> {
    destination: usize,
    number: TraitRef,
    wanted: Wanted,
    now: Millis,
    /// Their calls have just ended.
    settled: &'a HashSet<&'a str>,
}

impl Ledger {
    /// Whether a session is small enough that all its joins may enter the lane.
    pub(super) fn is_small(&self, session: SessionRef) -> Result<bool, StoreError> {
        Ok(self
            .connection
            .prepare_cached(
                "SELECT 1 FROM session WHERE id = ?1 AND total_pages <= ?2
                 AND (SELECT sum(received) FROM session_page p JOIN inbox i ON i.seq = p.inbox_seq WHERE p.session = ?1) <= ?3",
            )?
            .exists(params![session.0, SMALL_SESSION_PAGES, SMALL_SESSION])?)
    }

    /// Which changes of a chunk with so many joins enter the lane.
    pub(super) fn express_entry(
        &self,
        destination: i64,
        number: TraitRef,
        joins: usize,
        is_small_session: bool,
        now: Millis,
    ) -> Result<Entry, StoreError> {
        let places_for_joins = if joins == 0 {
            0
        } else if (is_small_session || joins <= FEW) && !self.is_lane_full(destination, number)? {
            joins
        } else {
            OWN_BACKLOG.saturating_sub(self.joins_pending(destination, number)?)
        };
        Ok(Entry {
            places_for_joins,
            now,
        })
    }

    fn joins_pending(&self, destination: i64, number: TraitRef) -> Result<usize, StoreError> {
        Ok(self
            .connection
            .prepare_cached(
                "SELECT CAST(coalesce(sum(rows), 0) AS BIGINT) FROM (SELECT rows FROM backlog WHERE destination = ?1 AND trait = ?2 AND wanted = ?3 LIMIT ?4) AS newest",
            )?
            .query_row(
                params![destination, number.0, wanted_stored(Wanted::Member), SECONDS_LOOKED_AT],
                |row| row.get(0),
            )?)
    }

    fn is_lane_full(&self, destination: i64, number: TraitRef) -> Result<bool, StoreError> {
        Ok(self
            .connection
            .prepare_cached(
                "SELECT 1 FROM pending INDEXED BY pending_express
                 WHERE destination = ?1 AND trait = ?2 AND wanted = ?3 AND express_at IS NOT NULL LIMIT 1 OFFSET ?4",
            )?
            .exists(params![
                self.home(destination, number, Wanted::Member)?,
                number.0,
                wanted_stored(Wanted::Member),
                LANE_HOLDS - 1
            ])?)
    }

    /// Reads at most `most` identities of the lane that are due.
    pub(super) fn take_express(
        &mut self,
        destination: usize,
        most: usize,
        now: Millis,
        settled: &HashSet<&str>,
    ) -> Result<Express, StoreError> {
        let mut express = Express::default();
        let traits = self.express_traits(destination, most)?;
        let Some(last) = traits.last() else {
            return Ok(express);
        };
        let turn = &mut self.destinations[destination].express;
        // Where all of them have a place, each is the first in turn.
        turn.after = Some(if traits.len() < most {
            traits[0]
        } else {
            *last
        });
        turn.batch = turn.batch.wrapping_add(1);
        let batch = turn.batch;
        // What one trait leaves of its share is another's.
        for share in [most.div_ceil(traits.len()), most] {
            for number in &traits {
                let share = share.min(most - express.len());
                let for_joins = (share + batch % JOINS_ONE_IN) / JOINS_ONE_IN;
                let mut left = share;
                for (wanted, kept) in [
                    (Wanted::Erased, for_joins),
                    (Wanted::Left, for_joins),
                    (Wanted::Member, 0),
                    (Wanted::Left, 0),
                ] {
                    if self.is_parked(*number, wanted)? {
                        continue;
                    }
                    let queue = Queue {
                        destination,
                        number: *number,
                        wanted,
                        now,
                        settled,
                    };
                    let places = left.saturating_sub(kept);
                    left -= self.take_queue(&queue, places, &mut express)?;
                }
            }
        }
        Ok(express)
    }

    /// At most `most` traits with anything on the lane, in turn.
    fn express_traits(&self, destination: usize, most: usize) -> Result<Vec<TraitRef>, StoreError> {
        let state = &self.destinations[destination];
        let first_after = state.express.after.map_or(i64::MIN, |number| number.0);
        let mut next = self.connection.prepare_cached(
            "SELECT trait FROM pending INDEXED BY pending_express
             WHERE destination = ?1 AND trait > ?2 AND trait <= ?3 AND express_at IS NOT NULL ORDER BY trait LIMIT 1",
        )?;
        let mut traits = Vec::new();
        for (mut after, through) in [(first_after, i64::MAX), (i64::MIN, first_after)] {
            while traits.len() < most {
                let found = next.query_row(params![state.id, after, through], |row| row.get(0));
                let Some(number) = found.optional()? else {
                    break;
                };
                after = number;
                traits.push(TraitRef(after));
            }
        }
        Ok(traits)
    }

    /// Takes at most `places` identities of a queue; how many there were.
    fn take_queue(
        &self,
        queue: &Queue<'_>,
        places: usize,
        express: &mut Express,
    ) -> Result<usize, StoreError> {
        if places == 0 {
            return Ok(0);
        }
        let state = &self.destinations[queue.destination];
        let mut statement = self.connection.prepare_cached(
            "SELECT identifier FROM pending INDEXED BY pending_express
             WHERE destination = ?1 AND trait = ?2 AND wanted = ?3 AND express_at <= ?4 ORDER BY express_at DESC LIMIT ?5",
        )?;
        let before = express.len();
        let may_look_at = state.in_flight.len() + express.len() + places + PASSED_OVER;
        let mut not_due: HashSet<Arc<str>> = HashSet::new();
        while express.len() - before < places {
            let mut candidates: Vec<Arc<str>> = Vec::new();
            let wanted = places - (express.len() - before);
            let queued = params![
                state.id,
                queue.number.0,
                wanted_stored(queue.wanted),
                queue.now - state.rules.linger_ms,
                may_look_at
            ];
            statement.scan(queued, |row| {
                let identifier = row.text(0)?;
                let is_busy =
                    state.in_flight.contains_key(identifier) && !queue.settled.contains(identifier);
                if !is_busy && !express.contains(identifier) && !not_due.contains(identifier) {
                    candidates.push(identifier.into());
                }
                Ok::<_, StoreError>(candidates.len() < wanted)
            })?;
            if candidates.is_empty() {
                break;
            }
            let rows = self.rows_of(queue.destination, &candidates)?;
            for (identifier, of_identity) in candidates.into_iter().zip(rows) {
                if of_identity.iter().any(|row| is_due(row.due_at, queue.now)) {
                    express.identifiers.insert(Arc::clone(&identifier));
                    express.found.push((identifier, of_identity));
                } else {
                    not_due.insert(identifier);
                }
            }
        }
        Ok(express.len() - before)
    }
}
