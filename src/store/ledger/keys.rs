//! Trait keys pass from cohort to cohort, as the settings file says.
//!
//! For each trait that changes hands, every destination is told what its new cohort makes of each
//! person of the old one and of the new one. Old and new key of a person go in one call, so nobody
//! has both. A walk, a piece a transaction, each written down: a kill goes on where it was.
//! Nothing else may be done to the ledger before it is over.

use super::apply::people_behind;
use super::cohorts::{CohortKey, explicit_key};
use super::membership::{Change, Standing};
use super::pending::{Again, Tally, Unheard};
use super::routes::Following;
use super::state::{Ledger, settled};
use crate::clock::Millis;
use crate::cohort::{SourceName, Target, Told, Wanted};
use crate::store::database::{Connection, OptionalRow, params};
use crate::store::{CohortRef, Database, KeyChange, SourceRules, StoreError, TraitRef};

/// A cohort and its trait.
struct Owner {
    cohort: CohortRef,
    key: CohortKey,
    name: String,
    number: TraitRef,
    trait_key: String,
}

/// A cohort that the settings give another key than it has.
struct Planned {
    owner: Owner,
    key: String,
}

/// A trait that changes hands.
struct Move {
    number: TraitRef,
    from: Option<CohortRef>,
    to: Option<CohortRef>,
    after: Option<String>,
}

impl Ledger {
    /// Does a piece of what it takes to give cohorts the keys of the settings; whether more is to
    /// be done.
    ///
    /// # Errors
    /// [`StoreError::KeyTaken`] where a key belongs to a cohort that keeps it.
    pub fn adopt_keys(&mut self, limit: usize, now: Millis) -> Result<bool, StoreError> {
        if let Some(trait_move) = self.next_move()? {
            self.move_some(&trait_move, limit, now)?;
            return Ok(true);
        }
        let moved = self.hand_over(now)?;
        self.traits.clear();
        let planned = self.plan_moves()?;
        Ok(moved || planned)
    }

    /// Writes down which traits change hands; whether any do.
    fn plan_moves(&mut self) -> Result<bool, StoreError> {
        let changes = changes(&self.connection, self.sources.values())?;
        for Planned { owner, key } in &changes {
            let number = self.trait_named(key)?;
            self.plan(owner.number, None, Some(owner.cohort))?;
            tracing::info!(
                source = %owner.key.source, cohort_id = %owner.key.cohort_id,
                former_trait_key = owner.trait_key, trait_key = key,
                "the settings give the cohort another trait key: the old one leaves"
            );
            self.plan(number, Some(owner.cohort), None)?;
        }
        Ok(!changes.is_empty())
    }

    fn plan(
        &self,
        number: TraitRef,
        to: Option<CohortRef>,
        from: Option<CohortRef>,
    ) -> Result<(), StoreError> {
        self.connection
            .prepare_cached(
                "INSERT INTO key_move (trait, from_cohort, to_cohort) VALUES (?1, ?2, ?3)
                 ON CONFLICT (trait) DO UPDATE SET from_cohort = coalesce(key_move.from_cohort, excluded.from_cohort), to_cohort = coalesce(key_move.to_cohort, excluded.to_cohort)",
            )?
            .execute(params![number.0, from.map(|cohort| cohort.0), to.map(|cohort| cohort.0)])?;
        Ok(())
    }

    fn next_move(&self) -> Result<Option<Move>, StoreError> {
        Ok(self
            .connection
            .prepare_cached(
                "SELECT trait, from_cohort, to_cohort, walked_through FROM key_move WHERE is_done = 0 LIMIT 1",
            )?
            .query_row((), |row| {
                Ok(Move {
                    number: TraitRef(row.get(0)?),
                    from: row.get::<Option<i64>>(1)?.map(CohortRef),
                    to: row.get::<Option<i64>>(2)?.map(CohortRef),
                    after: row.get(3)?,
                })
            })
            .optional()?)
    }

    fn move_some(
        &mut self,
        trait_move: &Move,
        limit: usize,
        now: Millis,
    ) -> Result<(), StoreError> {
        let identifiers: Vec<String> = self
            .connection
            .prepare_cached(
                "SELECT identifier FROM (
                     SELECT * FROM (SELECT DISTINCT identifier FROM member WHERE cohort = ?1 AND identifier > coalesce(?3, '') ORDER BY identifier LIMIT ?4) AS here
                     UNION
                     SELECT * FROM (SELECT DISTINCT identifier FROM member WHERE cohort = ?2 AND identifier > coalesce(?3, '') ORDER BY identifier LIMIT ?4) AS there
                 ) AS both_of_them ORDER BY identifier LIMIT ?4",
            )?
            .query_map(
                params![
                    trait_move.from.map(|cohort| cohort.0),
                    trait_move.to.map(|cohort| cohort.0),
                    trait_move.after,
                    i64::try_from(limit).unwrap_or(i64::MAX)
                ],
                |row| row.get(0),
            )?
            .collect::<Result<_, _>>()?;
        for destination in 0..self.destinations.len() {
            let mut tally = Tally::new(self.destinations[destination].id);
            for identifier in &identifiers {
                self.move_person(destination, trait_move, identifier, &mut tally, now)?;
            }
            self.count(&tally)?;
        }
        self.connection
            .prepare_cached(
                "UPDATE key_move SET walked_through = coalesce(?2, walked_through), is_done = ?3 WHERE trait = ?1",
            )?
            .execute(params![
                trait_move.number.0,
                identifiers.last(),
                identifiers.len() < limit
            ])?;
        Ok(())
    }

    fn move_person(
        &mut self,
        destination: usize,
        trait_move: &Move,
        identifier: &str,
        tally: &mut Tally,
        now: Millis,
    ) -> Result<(), StoreError> {
        let state = &self.destinations[destination];
        let (id, on_leave) = (state.id, state.rules.on_leave);
        let of = |cohort: Option<CohortRef>| match cohort {
            Some(cohort) => self.following(destination, cohort),
            None => Ok(Following::Never),
        };
        let (former, latter) = (of(trait_move.from)?, of(trait_move.to)?);
        if !former.hears() && !latter.hears() {
            return Ok(());
        }
        let was = match former {
            Following::Never => None,
            _ => self.standing_in(trait_move.from, identifier)?,
        };
        let is = match latter.hears() {
            true => self.standing_in(trait_move.to, identifier)?,
            false => None,
        };
        let wanted = Wanted::of(is.is_some_and(Standing::is_wanted));
        let dead = self.take_dead(id, identifier, trait_move.number)?;
        if let Some(held) = self.pending_row(id, identifier, trait_move.number)? {
            return self.change_held(
                id,
                &[Again {
                    identifier,
                    number: trait_move.number,
                    wanted,
                    express_at: None,
                    held,
                }],
                on_leave,
                tally,
            );
        }
        let told = match (dead, was, former) {
            (None, Some(was), Following::Always) => settled(Wanted::of(was.is_wanted()), on_leave),
            (None, None, _) => Told::Known(Target::Absent),
            _ => Told::Unknown,
        };
        // Whoever has no such trait, and should not have it, needs no call to say so.
        let is_fine = wanted == Wanted::Left && told == Told::Known(Target::Absent);
        if told.needs_write(Target::of(wanted, on_leave)) && !is_fine {
            let unheard = Unheard {
                identifier,
                wanted,
                told,
                late: dead.unwrap_or_default(),
                express_at: None,
            };
            self.insert_pending(id, trait_move.number, unheard, now)?;
            tally.add(trait_move.number, wanted, now, 1);
        }
        Ok(())
    }

    fn standing_in(
        &self,
        cohort: Option<CohortRef>,
        identifier: &str,
    ) -> Result<Option<Standing>, StoreError> {
        let Some(cohort) = cohort else {
            return Ok(None);
        };
        let people = people_behind(&self.connection, cohort, identifier)?;
        Ok(Change::of(&people).was)
    }

    /// All walks are over: the traits are their new cohorts'. Whether there were any.
    fn hand_over(&mut self, now: Millis) -> Result<bool, StoreError> {
        // Until the new trait is delivered, whoever lacks it may still be in the cohort.
        self.connection.execute(
            "UPDATE cohort SET trait = (SELECT trait FROM key_move WHERE to_cohort = cohort.id),
                    first_applied_at = CASE WHEN first_applied_at < ?1 THEN ?1 ELSE first_applied_at END
             WHERE id IN (SELECT to_cohort FROM key_move WHERE to_cohort IS NOT NULL)",
            [now],
        )?;
        // What nobody takes over stays with whose it was: its leavers are still to be delivered.
        self.connection.execute(
            "UPDATE trait SET cohort = (SELECT to_cohort FROM key_move WHERE key_move.trait = trait.id)
             WHERE id IN (SELECT trait FROM key_move WHERE to_cohort IS NOT NULL)",
            (),
        )?;
        self.connection.execute(
            "INSERT INTO meta (key, value) SELECT 'strangers:' || trait, 1 FROM key_move WHERE from_cohort IS NOT NULL
             ON CONFLICT (key) DO NOTHING",
            (),
        )?;
        let moves = self.connection.execute("DELETE FROM key_move", ())?;
        if moves > 0 {
            self.look_up_pauses()?;
        }
        Ok(moves > 0)
    }
}

/// What the next start would change in the trait keys of a ledger that may be in use; changes
/// nothing.
///
/// # Errors
/// [`StoreError::KeyTaken`] where that start would fail.
pub fn key_changes(
    database: &Database,
    sources: &[SourceRules],
) -> Result<Vec<KeyChange>, StoreError> {
    let connection = database.reader()?;
    let changes = changes(&connection, sources)?;
    Ok(changes
        .into_iter()
        .map(|Planned { owner, key }| KeyChange {
            source: owner.key.source,
            cohort_id: owner.key.cohort_id,
            name: owner.name,
            former_key: owner.trait_key,
            key,
        })
        .collect())
}

/// The cohorts that are to have other keys, where nobody else keeps those.
fn changes<'a>(
    connection: &Connection,
    sources: impl IntoIterator<Item = &'a SourceRules>,
) -> Result<Vec<Planned>, StoreError> {
    let sources: Vec<_> = sources.into_iter().collect();
    let given = |owner: &Owner| {
        let rules = sources.iter().find(|rules| rules.name == owner.key.source);
        explicit_key(rules?, &owner.key)
    };
    let mut keep = Vec::new();
    let mut changes = Vec::new();
    for owner in owners(connection)? {
        match given(&owner).filter(|key| **key != *owner.trait_key) {
            Some(key) => changes.push(Planned {
                key: key.to_owned(),
                owner,
            }),
            None => keep.push(owner),
        }
    }
    for rules in &sources {
        for explicit in &rules.explicit_keys {
            let is_theirs = |owner: &Owner| {
                owner.key.source == rules.name
                    && explicit_key(rules, &owner.key) == Some(&explicit.trait_key)
            };
            let holder = keep
                .iter()
                .find(|owner| owner.trait_key == explicit.trait_key);
            if let Some(holder) = holder.filter(|holder| !is_theirs(holder)) {
                return Err(StoreError::KeyTaken {
                    key: explicit.trait_key.clone(),
                    cohort: format!("cohort {} of source {}", explicit.cohort_id, rules.name),
                    holder: format!(
                        "cohort {} of source {} ({})",
                        holder.key.cohort_id, holder.key.source, holder.name
                    ),
                });
            }
        }
    }
    Ok(changes)
}

fn owners(connection: &Connection) -> Result<Vec<Owner>, StoreError> {
    Ok(connection
        .prepare_cached(
            "SELECT c.id, c.source, c.project_id, c.cohort_id, c.name, c.trait, t.key FROM cohort c JOIN trait t ON t.id = c.trait",
        )?
        .query_map((), |row| {
            Ok(Owner {
                cohort: CohortRef(row.get(0)?),
                key: CohortKey {
                    source: SourceName::from(row.get::<String>(1)?.as_str()),
                    project_id: row.get(2)?,
                    cohort_id: row.get(3)?,
                },
                name: row.get(4)?,
                number: TraitRef(row.get(5)?),
                trait_key: row.get(6)?,
            })
        })?
        .collect::<Result<_, _>>()?)
}
