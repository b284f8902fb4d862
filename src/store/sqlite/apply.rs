//! Making a whole session true: who is a member, and what each destination therefore does not
//! know yet.

use rusqlite::{OptionalExtension, params};

use super::ledger::Ledger;
use super::sessions::effect_from;
use crate::clock::Millis;
use crate::store::{Applied, Chunk, CohortRef, Effect, SessionRef, StoreError, WholeSession};

/// Rows of the ledger that one chunk may look at. Replacing ten million by nobody must not become
/// one transaction.
const ROWS_A_CHUNK: usize = 4_096;

/// The people of a cohort behind one identifier and up to another, either of which may be missing.
/// A blob sorts behind every text; an OR in its place would walk to the cohort's end.
const RANGE: &str = "SELECT identifier, member FROM member
     WHERE cohort = ?1 AND identifier > coalesce(?2, '') AND identifier <= coalesce(?3, x'')
     ORDER BY identifier LIMIT ?4";

/// One person's change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) member: bool,
    /// What the ledger said before: `None` where it knew nothing.
    pub(super) was: Option<bool>,
}

impl Ledger {
    /// The session that waits to be applied.
    pub fn whole_session(&mut self) -> Result<Option<WholeSession>, StoreError> {
        let found = self
            .connection
            .prepare_cached(
                "SELECT id, cohort, effect, applied_through FROM session WHERE state = 1 ORDER BY id LIMIT 1",
            )?
            .query_row([], |row| {
                Ok(WholeSession {
                    session: SessionRef(row.get(0)?),
                    cohort: CohortRef(row.get(1)?),
                    effect: effect_from(row.get(2)?),
                    applied_through: row.get(3)?,
                    pages: Vec::new(),
                })
            })
            .optional()?;
        let Some(mut whole) = found else {
            return Ok(None);
        };
        whole.pages = self
            .connection
            .prepare_cached(
                "SELECT page FROM session_page JOIN session ON session.id = session WHERE session = ?1 AND page <= total_pages ORDER BY page",
            )?
            .query_map([whole.session.0], |row| row.get(0))?
            .collect::<Result<_, _>>()?;
        Ok(Some(whole))
    }

    /// Makes a piece of a session true.
    pub fn apply(&mut self, chunk: &Chunk, now: Millis) -> Result<Applied, StoreError> {
        let (changes, through) = match chunk.effect {
            Effect::Replace => self.compare(chunk)?,
            Effect::Add => (self.differences(chunk, true)?, None),
            Effect::Remove => (self.differences(chunk, false)?, None),
        };
        self.change_members(chunk.cohort, &changes)?;
        for destination in 0..self.destinations.len() {
            self.change_pending(destination, chunk.cohort, &changes, now)?;
        }
        let done_through = through
            .or_else(|| (!chunk.last).then(|| identifiers(chunk).last().map(String::from))?);
        match done_through {
            Some(identifier) => {
                self.connection
                    .prepare_cached("UPDATE session SET applied_through = ?2 WHERE id = ?1")?
                    .execute(params![chunk.session.0, identifier])?;
                Ok(Applied::Through(identifier))
            }
            None => {
                self.finish_session(chunk.session)?;
                Ok(Applied::Done)
            }
        }
    }

    /// Walks the chunk and the ledger side by side: whoever is in one and not in the other
    /// changes. Stops early, at the identifier returned, where the ledger has many more.
    fn compare(&self, chunk: &Chunk) -> Result<(Changes, Option<String>), StoreError> {
        let after = chunk.after.as_deref();
        let upto = if chunk.last {
            None
        } else {
            identifiers(chunk).last()
        };
        let mut statement = self.connection.prepare_cached(RANGE)?;
        let mut rows = statement.query(params![
            chunk.cohort.0,
            after,
            upto,
            i64::try_from(ROWS_A_CHUNK).unwrap_or(i64::MAX)
        ])?;
        let mut changes = Changes::default();
        let mut wanted = identifiers(chunk).peekable();
        let mut seen = 0;
        let mut last_row = None;
        while let Some(row) = rows.next()? {
            seen += 1;
            let identifier = row.get_ref(0)?.as_str().map_err(rusqlite::Error::from)?;
            let member: bool = row.get(1)?;
            while let Some(joiner) = wanted.next_if(|wanted| *wanted < identifier) {
                changes.push(
                    joiner,
                    Change {
                        member: true,
                        was: None,
                    },
                );
            }
            let stays = wanted.next_if(|wanted| *wanted == identifier).is_some();
            if stays != member {
                changes.push(
                    identifier,
                    Change {
                        member: stays,
                        was: Some(member),
                    },
                );
            }
            if seen == ROWS_A_CHUNK {
                last_row = Some(String::from(identifier));
            }
        }
        if last_row.is_none() {
            for joiner in wanted {
                changes.push(
                    joiner,
                    Change {
                        member: true,
                        was: None,
                    },
                );
            }
        }
        Ok((changes, last_row))
    }

    /// Who of the chunk is not yet in (or out of) the cohort.
    fn differences(&self, chunk: &Chunk, member: bool) -> Result<Changes, StoreError> {
        let mut known = self
            .connection
            .prepare_cached("SELECT member FROM member WHERE cohort = ?1 AND identifier = ?2")?;
        let mut changes = Changes::default();
        for identifier in identifiers(chunk) {
            let was: Option<bool> = known
                .query_row(params![chunk.cohort.0, identifier], |row| row.get(0))
                .optional()?;
            if was != Some(member) {
                changes.push(identifier, Change { member, was });
            }
        }
        Ok(changes)
    }

    fn change_members(&self, cohort: CohortRef, changes: &Changes) -> Result<(), StoreError> {
        let mut insert = self.connection.prepare_cached(
            "INSERT INTO member (cohort, identifier, member) VALUES (?1, ?2, ?3)",
        )?;
        let mut update = self.connection.prepare_cached(
            "UPDATE member SET member = ?3 WHERE cohort = ?1 AND identifier = ?2",
        )?;
        let (mut members, mut leavers) = (0_i64, 0_i64);
        for (identifier, change) in changes.iter() {
            let statement = if change.was.is_some() {
                &mut update
            } else {
                &mut insert
            };
            statement.execute(params![cohort.0, identifier, change.member])?;
            match change.member {
                true => {
                    members += 1;
                    leavers -= i64::from(change.was.is_some());
                }
                false => {
                    leavers += 1;
                    members -= i64::from(change.was.is_some());
                }
            }
        }
        self.connection
            .prepare_cached(
                "UPDATE cohort SET members = members + ?2, leavers = leavers + ?3 WHERE id = ?1",
            )?
            .execute(params![cohort.0, members, leavers])?;
        Ok(())
    }
}

fn identifiers(chunk: &Chunk) -> impl Iterator<Item = &str> {
    chunk.identifiers.iter().map(|entry| entry.identifier)
}

/// Changes in identifier order, their identifiers in one piece of memory.
#[derive(Default)]
pub(super) struct Changes {
    identifiers: String,
    changes: Vec<(usize, Change)>,
}

impl Changes {
    fn push(&mut self, identifier: &str, change: Change) {
        self.identifiers.push_str(identifier);
        self.changes.push((self.identifiers.len(), change));
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &Change)> {
        let mut start = 0;
        self.changes.iter().map(move |(end, change)| {
            let identifier = &self.identifiers[start..*end];
            start = *end;
            (identifier, change)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sqlite::ledger::connect;

    /// Without a bound on both sides, each piece of a full sync would walk to the cohort's end.
    #[test]
    fn a_piece_of_a_full_sync_reads_only_its_own_range() {
        let folder = tempfile::tempdir().unwrap();
        let connection = connect(&folder.path().join("ledger.db")).unwrap();
        connection
            .execute_batch(include_str!("../migrations/sqlite/0001_ledger.sql"))
            .unwrap();
        let plan: String = connection
            .query_row(
                &format!("EXPLAIN QUERY PLAN {RANGE}"),
                params![1, None::<&str>, Some("b"), 10],
                |row| row.get(3),
            )
            .unwrap();
        assert!(plan.contains("identifier>? AND identifier<?"), "{plan}");
        connection
            .execute_batch("INSERT INTO member VALUES (1, 'a', 1), (1, 'b', 1), (1, 'c', 0)")
            .unwrap();
        let found = |after: Option<&str>, upto: Option<&str>| -> Vec<String> {
            let mut statement = connection.prepare(RANGE).unwrap();
            let rows = statement.query_map(params![1, after, upto, 10], |row| row.get(0));
            rows.unwrap().collect::<Result<_, _>>().unwrap()
        };
        assert_eq!(found(None, None), ["a", "b", "c"]);
        assert_eq!(found(Some("a"), Some("b")), ["b"]);
    }
}
