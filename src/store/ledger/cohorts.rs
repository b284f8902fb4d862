//! Cohorts, sources and trait keys as they are kept.

use super::state::Ledger;
use crate::clock::Millis;
use crate::cohort::SourceName;
use crate::run::Habits;
use crate::store::database::{OptionalRow, params};
use crate::store::{CohortRef, SourceRules, StoreError, TraitRef};
use crate::trait_key::{CANARY, Naming};

/// What names a cohort in Mixpanel.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CohortKey {
    /// The connection.
    pub source: SourceName,
    /// The project.
    pub project_id: String,
    /// The cohort.
    pub cohort_id: String,
}

/// `cohort.standing`: followed.
pub const FOLLOWED: i64 = 0;
/// `cohort.standing`: retired; everybody leaves.
pub const RETIRING: i64 = 1;
/// `cohort.standing`: everybody has left, and is forgotten once that is delivered.
pub const LEFT: i64 = 2;
/// `cohort.standing`: nobody is remembered.
pub const FORGOTTEN: i64 = 3;

/// Where the runs of a cohort stand.
#[derive(Clone, Copy, Debug)]
pub struct Book {
    /// Whether pages take effect.
    pub is_followed: bool,
    /// The run under way; 0 before the first.
    pub run: i64,
    /// When a half of it was last heard of.
    pub run_heard_at: Millis,
    /// When the cohort was heard of again after a run was over.
    pub resumed_at: Millis,
    /// When it began.
    pub run_began_at: Millis,
    /// The first of the runs that the one under way repeats under their ids.
    pub began_again: Option<i64>,
    /// Whether a run of one half is not all there: the source sent empty halves when it was last
    /// heard of.
    pub misses_partner: bool,
}

impl Book {
    /// Whether the run under way repeats that run under its ids: that one has failed.
    pub fn repeats(&self, run: i64) -> bool {
        run < self.run && self.began_again.is_some_and(|first| first <= run)
    }
}

impl Ledger {
    /// Notes that something of a source was heard; how it sends.
    pub(super) fn hear_source(
        &self,
        source: &SourceName,
        at: Millis,
    ) -> Result<Habits, StoreError> {
        let known = self.habits(source)?;
        let mut habits = known.unwrap_or_default();
        habits.heard(at);
        if known.is_none() {
            habits.awake_since = at;
        }
        self.connection
            .prepare_cached(
                "INSERT INTO source (name, heard_at, awake_since) VALUES (?1, ?2, ?3)
                 ON CONFLICT (name) DO UPDATE SET heard_at = excluded.heard_at, awake_since = excluded.awake_since",
            )?
            .execute(params![&*source.0, habits.heard_at, habits.awake_since])?;
        Ok(habits)
    }

    pub(super) fn habits(&self, source: &SourceName) -> Result<Option<Habits>, StoreError> {
        Ok(self
            .connection
            .prepare_cached(
                "SELECT sends_empty_halves, shares_session_ids, heard_at, awake_since, reuses_session_ids FROM source WHERE name = ?1",
            )?
            .query_row([&*source.0], |row| {
                Ok(Habits {
                    sends_empty_halves: row.get(0)?,
                    shares_session_ids: row.get(1)?,
                    reuses_session_ids: row.get(4)?,
                    heard_at: row.get(2)?,
                    awake_since: row.get(3)?,
                })
            })
            .optional()?)
    }

    /// Remembers for ever that a source sends empty halves.
    pub(super) fn note_empty_halves(&self, source: &SourceName) -> Result<(), StoreError> {
        self.connection
            .prepare_cached("UPDATE source SET sends_empty_halves = 1 WHERE name = ?1")?
            .execute([&*source.0])?;
        Ok(())
    }

    /// Remembers for ever that the halves of a run share their session id.
    pub(super) fn note_shared_ids(&self, source: &SourceName) -> Result<(), StoreError> {
        self.connection
            .prepare_cached("UPDATE source SET shares_session_ids = 1 WHERE name = ?1")?
            .execute([&*source.0])?;
        Ok(())
    }

    /// Remembers for ever that a run begins again under its session ids.
    pub(super) fn note_reused_ids(&self, source: &SourceName) -> Result<(), StoreError> {
        self.connection
            .prepare_cached("UPDATE source SET reuses_session_ids = 1 WHERE name = ?1")?
            .execute([&*source.0])?;
        Ok(())
    }

    /// Where the runs of a cohort stand.
    pub(super) fn book(&self, cohort: CohortRef) -> Result<Book, StoreError> {
        Ok(self
            .connection
            .prepare_cached(
                "SELECT standing, run, run_heard_at, resumed_at, began_again, misses_partner, run_began_at FROM cohort WHERE id = ?1",
            )?
            .query_row([cohort.0], |row| {
                Ok(Book {
                    is_followed: row.get::<i64>(0)? == FOLLOWED,
                    run: row.get(1)?,
                    run_heard_at: row.get(2)?,
                    resumed_at: row.get(3)?,
                    began_again: row.get(4)?,
                    misses_partner: row.get(5)?,
                    run_began_at: row.get(6)?,
                })
            })?)
    }

    /// The cohort's number; a cohort that is new is written down with a trait key of its own.
    pub(super) fn cohort(
        &mut self,
        key: &CohortKey,
        name: Option<&str>,
        identified_by: &str,
        heard_at: Millis,
    ) -> Result<CohortRef, StoreError> {
        let known = match self.cohorts.get(key) {
            Some(cohort) => Some(*cohort),
            None => self.find_cohort(key)?,
        };
        let cohort = match known {
            Some(cohort) => {
                self.hear_cohort(key, cohort, name, heard_at)?;
                cohort
            }
            None => self.create_cohort(key, name.unwrap_or_default(), identified_by, heard_at)?,
        };
        self.cohorts.insert(key.clone(), cohort);
        Ok(cohort)
    }

    fn find_cohort(&self, key: &CohortKey) -> Result<Option<CohortRef>, StoreError> {
        Ok(self
            .connection
            .prepare_cached(
                "SELECT id FROM cohort WHERE source = ?1 AND project_id = ?2 AND cohort_id = ?3",
            )?
            .query_row(
                params![&*key.source.0, key.project_id, key.cohort_id],
                |row| row.get(0).map(CohortRef),
            )
            .optional()?)
    }

    fn hear_cohort(
        &mut self,
        key: &CohortKey,
        cohort: CohortRef,
        name: Option<&str>,
        heard_at: Millis,
    ) -> Result<(), StoreError> {
        self.connection
            .prepare_cached(
                "UPDATE cohort SET last_heard_at = ?2 WHERE id = ?1 AND last_heard_at < ?2",
            )?
            .execute(params![cohort.0, heard_at])?;
        let Some(name) = name else {
            return Ok(());
        };
        let former: Option<String> = self
            .connection
            .prepare_cached(
                "UPDATE cohort SET former_name = name, name = ?2 WHERE id = ?1 AND name <> ?2 RETURNING former_name",
            )?
            .query_row(params![cohort.0, name], |row| row.get(0))
            .optional()?;
        if let Some(former) = former {
            tracing::info!(
                source = %key.source, cohort_id = %key.cohort_id, name, former_name = former,
                "cohort renamed in Mixpanel; its trait key stays"
            );
            self.follow_renamed(cohort, key, name)?;
        }
        Ok(())
    }

    fn create_cohort(
        &mut self,
        key: &CohortKey,
        name: &str,
        identified_by: &str,
        heard_at: Millis,
    ) -> Result<CohortRef, StoreError> {
        let number = self.trait_for(key, name)?;
        let shown = if name.is_empty() {
            &key.cohort_id
        } else {
            name
        };
        let cohort = CohortRef(self.connection.query_row(
            "INSERT INTO cohort (source, project_id, cohort_id, name, trait, identified_by, last_heard_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) RETURNING id",
            params![&*key.source.0, key.project_id, key.cohort_id, shown, number.0, identified_by, heard_at],
            |row| row.get(0),
        )?);
        self.connection.execute(
            "UPDATE trait SET cohort = ?2 WHERE id = ?1",
            [number.0, cohort.0],
        )?;
        self.follow_new(cohort, key, shown, heard_at)?;
        let trait_key = self.trait_key(number)?;
        tracing::info!(source = %key.source, cohort_id = %key.cohort_id, %trait_key, "cohort first heard of");
        Ok(cohort)
    }

    /// The trait of a new cohort: the one that the settings give, else one that nobody ever had.
    fn trait_for(&self, key: &CohortKey, name: &str) -> Result<TraitRef, StoreError> {
        let rules = self.sources.get(&key.source);
        if let Some(explicit) = rules.and_then(|rules| explicit_key(rules, key)) {
            // That nobody else has it was seen to when the ledger was opened.
            return self.trait_named(explicit);
        }
        let mut taken = self
            .connection
            .prepare_cached("SELECT 1 FROM trait WHERE key = ?1")?;
        let template = rules
            .map(|rules| rules.trait_key.clone())
            .unwrap_or_default();
        let is_given = |candidate: &str| {
            let all = self.sources.values().flat_map(|rules| &rules.explicit_keys);
            all.into_iter()
                .any(|explicit| explicit.trait_key == candidate)
        };
        let mut failed = None;
        let trait_key = template.key_for(
            Naming {
                name,
                id: &key.cohort_id,
                project: &key.project_id,
                source: &key.source.0,
            },
            |candidate| {
                candidate == CANARY
                    || is_given(candidate)
                    || taken.exists([candidate]).unwrap_or_else(|error| {
                        failed = Some(error);
                        false
                    })
            },
        );
        match failed {
            Some(error) => Err(error.into()),
            None => self.trait_named(&trait_key),
        }
    }

    /// The trait of that key; a new one where there is none.
    pub(super) fn trait_named(&self, key: &str) -> Result<TraitRef, StoreError> {
        self.connection.execute(
            "INSERT INTO trait (key) VALUES (?1) ON CONFLICT (key) DO NOTHING",
            [key],
        )?;
        Ok(self
            .connection
            .query_row("SELECT id FROM trait WHERE key = ?1", [key], |row| {
                row.get(0).map(TraitRef)
            })?)
    }

    /// The trait that stands for a cohort.
    pub(super) fn trait_of(&mut self, cohort: CohortRef) -> Result<TraitRef, StoreError> {
        if let Some(number) = self.traits.get(&cohort) {
            return Ok(*number);
        }
        let number = self
            .connection
            .prepare_cached("SELECT trait FROM cohort WHERE id = ?1")?
            .query_row([cohort.0], |row| row.get(0).map(TraitRef))?;
        self.traits.insert(cohort, number);
        Ok(number)
    }

    /// The cohorts of that name (of several projects, possibly).
    pub fn cohorts_named(
        &self,
        source: &SourceName,
        cohort_id: &str,
    ) -> Result<Vec<CohortRef>, StoreError> {
        Ok(self
            .connection
            .prepare_cached("SELECT id FROM cohort WHERE source = ?1 AND cohort_id = ?2")?
            .query_map(params![&*source.0, cohort_id], |row| {
                row.get(0).map(CohortRef)
            })?
            .collect::<Result<_, _>>()?)
    }

    /// Every cohort.
    pub fn all_cohorts(&self) -> Result<Vec<CohortRef>, StoreError> {
        Ok(self
            .connection
            .prepare_cached("SELECT id FROM cohort")?
            .query_map((), |row| row.get(0).map(CohortRef))?
            .collect::<Result<_, _>>()?)
    }
}

/// The key that the settings give to a cohort.
pub fn explicit_key<'a>(rules: &'a SourceRules, key: &CohortKey) -> Option<&'a str> {
    rules
        .explicit_keys
        .iter()
        .find(|explicit| {
            explicit.cohort_id == key.cohort_id
                && explicit
                    .project_id
                    .as_ref()
                    .is_none_or(|project_id| *project_id == key.project_id)
        })
        .map(|explicit| explicit.trait_key.as_str())
}
