//! Walking through the people of several cohorts at once, in the order of identifiers: whatever a
//! destination should hold of somebody becomes pending together, and so costs one call.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use crate::cohort::Wanted;
use crate::store::database::{Connection, params};
use crate::store::{CohortRef, StoreError, TraitRef};

/// People of one cohort that are read at first; twice as many each time more are needed, so that of
/// a hundred cohorts with a few people each not a hundred pieces are read.
const FIRST_READ: usize = 16;

/// People of one cohort that are read at a time at most.
const MOST_READ: usize = 1_024;

/// A cohort that is walked through.
pub(super) struct Walked {
    pub(super) cohort: CohortRef,
    pub(super) number: TraitRef,
    /// Everybody up to here is left out.
    pub(super) after: Option<String>,
}

/// One person, and what is wanted of their traits.
pub(super) struct Person {
    pub(super) identifier: String,
    pub(super) traits: Vec<(TraitRef, Wanted)>,
}

/// The people of one cohort who were read and not yet taken.
struct Feed {
    walked: Walked,
    read: VecDeque<(String, Wanted)>,
    next_read: usize,
    is_at_end: bool,
}

impl Feed {
    fn head(&self) -> Option<String> {
        self.read.front().map(|(identifier, _)| identifier.clone())
    }

    fn fill(&mut self, connection: &Connection) -> Result<(), StoreError> {
        if !self.read.is_empty() || self.is_at_end {
            return Ok(());
        }
        let rows = connection
            .prepare_cached(
                "SELECT identifier, max(CASE WHEN standing > 0 THEN 1 ELSE 0 END) FROM member WHERE cohort = ?1 AND identifier > coalesce(?2, '')
                 GROUP BY identifier ORDER BY identifier LIMIT ?3",
            )?
            .query_map(
                params![self.walked.cohort.0, self.walked.after, self.next_read as i64],
                |row| Ok((row.get::<String>(0)?, Wanted::of(row.get(1)?))),
            )?
            .collect::<Result<VecDeque<_>, _>>()?;
        self.is_at_end = rows.len() < self.next_read;
        self.next_read = (self.next_read * 2).min(MOST_READ);
        if let Some((last, _)) = rows.back() {
            self.walked.after = Some(last.clone());
        }
        self.read = rows;
        Ok(())
    }
}

/// The next people, `rows` traits at most, but one person at least; and whether nobody follows.
pub(super) fn next_people(
    connection: &Connection,
    cohorts: Vec<Walked>,
    rows: usize,
) -> Result<(Vec<Person>, bool), StoreError> {
    let mut feeds = Vec::with_capacity(cohorts.len());
    let mut heads = BinaryHeap::with_capacity(cohorts.len());
    for (at, walked) in cohorts.into_iter().enumerate() {
        let mut feed = Feed {
            walked,
            read: VecDeque::new(),
            next_read: FIRST_READ.min(rows + 1),
            is_at_end: false,
        };
        feed.fill(connection)?;
        heads.extend(feed.head().map(|first| Reverse((first, at))));
        feeds.push(feed);
    }
    let mut people: Vec<Person> = Vec::new();
    let mut taken = 0;
    while let Some(Reverse((identifier, _))) = heads.peek() {
        let mut person = Person {
            identifier: identifier.clone(),
            traits: Vec::new(),
        };
        while let Some((identifier, at)) = heads.peek().map(|Reverse((who, at))| (who, *at))
            && *identifier == person.identifier
        {
            heads.pop();
            let feed = &mut feeds[at];
            if let Some((_, wanted)) = feed.read.pop_front() {
                person.traits.push((feed.walked.number, wanted));
            }
            feed.fill(connection)?;
            heads.extend(feed.head().map(|next| Reverse((next, at))));
        }
        taken += person.traits.len();
        if taken > rows && !people.is_empty() {
            return Ok((people, false));
        }
        people.push(person);
    }
    Ok((people, true))
}
