//! What the writing thread owns: the connection, and what it remembers between jobs.

use std::cell::OnceCell;
use std::collections::HashMap;
use std::sync::Arc;

use super::cohorts::CohortKey;
use super::express::Turn;
use super::lease::Lease;
use super::pauses::Parking;
use crate::clock::Millis;
use crate::cohort::{DestinationName, OnLeave, SourceName, Target, Told, Wanted};
use crate::route::Routes;
use crate::session::Session;
use crate::store::database::Connection;
use crate::store::{CohortRef, DestinationRules, SessionRef, SourceRules, StoreError, TraitRef};

/// The writer's state.
pub struct Ledger {
    /// The only connection that writes.
    pub connection: Connection,
    /// The destinations of the settings.
    pub destinations: Vec<DestinationState>,
    pub(super) routes: Routes,
    /// Whether a cohort was renamed, so that it may go elsewhere.
    pub(super) may_reroute: bool,
    pub(super) sources: HashMap<SourceName, SourceRules>,
    pub(super) cohorts: HashMap<CohortKey, CohortRef>,
    pub(super) traits: HashMap<CohortRef, TraitRef>,
    trait_keys: HashMap<TraitRef, Arc<str>>,
    /// The session that the last page went to: a full sync has ten thousand pages, one after the
    /// other, and reading back all held ones for each would be quadratic.
    pub(super) last_session: Option<(SessionRef, Session)>,
    /// Whether an operator's order may wait to be carried out: to look for one is to look at every
    /// cohort.
    pub(super) may_have_orders: bool,
    /// Read when it is first asked for.
    pub(super) parking: OnceCell<Parking>,
    pub(super) lease: Lease,
}

/// A destination as the ledger sees it.
pub struct DestinationState {
    /// Its number in this ledger.
    pub id: i64,
    /// Its rules.
    pub rules: DestinationRules,
    /// Identities with a call under way.
    pub in_flight: HashMap<Arc<str>, InFlight>,
    /// When this process first claimed: what an earlier one sent was sent before that.
    pub first_claim_at: Option<Millis>,
    /// Whose turn it is in the express lane.
    pub(super) express: Turn,
}

/// A call under way.
#[derive(Clone, Copy, Debug)]
pub struct InFlight {
    /// When it was claimed.
    pub claimed_at: Millis,
    /// A sweep found more to do for the identity and had to pass it over.
    pub passed_over: bool,
    /// What was known of it before the claim holds no longer.
    pub told_is_void: bool,
}

impl Ledger {
    /// Of a database that is up to date, in a transaction of its own. Before anything is done with it,
    /// [`Ledger::begin_term`].
    pub fn new(
        connection: Connection,
        sources: Vec<SourceRules>,
        destinations: Vec<DestinationRules>,
        routes: Routes,
    ) -> Result<Self, StoreError> {
        connection.begin()?;
        let mut known = Vec::new();
        for rules in destinations {
            let name = rules.name.to_string();
            connection.execute(
                "INSERT INTO destination (name) VALUES (?1) ON CONFLICT (name) DO NOTHING",
                [&name],
            )?;
            let number = connection.query_row(
                "SELECT id FROM destination WHERE name = ?1",
                [&name],
                |row| row.get(0),
            )?;
            known.push(DestinationState {
                id: number,
                rules,
                in_flight: HashMap::new(),
                first_claim_at: None,
                express: Turn::default(),
            });
        }
        connection.commit()?;
        Ok(Ledger {
            connection,
            destinations: known,
            routes,
            may_reroute: false,
            sources: sources
                .into_iter()
                .map(|source| (source.name.clone(), source))
                .collect(),
            cohorts: HashMap::new(),
            traits: HashMap::new(),
            trait_keys: HashMap::new(),
            last_session: None,
            may_have_orders: true,
            parking: OnceCell::new(),
            lease: Lease::default(),
        })
    }

    /// Begins to fold and deliver, with nothing remembered from before.
    pub fn begin_term(&mut self) -> Result<(), StoreError> {
        self.forget_cached();
        for state in &mut self.destinations {
            state.in_flight.clear();
            state.first_claim_at = None;
            state.express = Turn::default();
        }
        self.look_up_routes()
    }

    /// Drops what was remembered: a transaction that wrote it did not come about.
    pub fn forget_cached(&mut self) {
        self.cohorts.clear();
        self.traits.clear();
        self.trait_keys.clear();
        self.last_session = None;
        self.may_have_orders = true;
        self.parking.take();
    }

    /// The destination of that name.
    pub fn destination(&mut self, name: &DestinationName) -> Result<usize, StoreError> {
        self.destinations
            .iter()
            .position(|state| state.rules.name == *name)
            .ok_or_else(|| StoreError::Failed(format!("there is no destination {name}")))
    }

    /// The key of a trait.
    pub fn trait_key(&mut self, number: TraitRef) -> Result<Arc<str>, StoreError> {
        if let Some(key) = self.trait_keys.get(&number) {
            return Ok(Arc::clone(key));
        }
        let key: Arc<str> = self
            .connection
            .prepare_cached("SELECT key FROM trait WHERE id = ?1")?
            .query_row([number.0], |row| row.get::<String>(0))?
            .into();
        self.trait_keys.insert(number, Arc::clone(&key));
        Ok(key)
    }
}

/// `told` as stored: null unknown, 0 absent, 1 true, 2 false.
pub fn told_from(stored: Option<i64>) -> Told {
    match stored {
        Some(0) => Told::Known(Target::Absent),
        Some(1) => Told::Known(Target::True),
        Some(2) => Told::Known(Target::False),
        _ => Told::Unknown,
    }
}

/// The stored form of `told`.
pub fn told_stored(told: Told) -> Option<i64> {
    match told {
        Told::Unknown => None,
        Told::Known(Target::Absent) => Some(0),
        Told::Known(Target::True) => Some(1),
        Told::Known(Target::False) => Some(2),
    }
}

/// The bit of `target` in `sent`.
pub const fn sent_bit(target: Target) -> i64 {
    match target {
        Target::Absent => 1,
        Target::True => 2,
        Target::False => 4,
    }
}

/// What a destination was told of somebody without a `pending` row.
pub const fn settled(wanted: Wanted, on_leave: OnLeave) -> Told {
    Told::Known(Target::of(wanted, on_leave))
}

/// `wanted` as stored: 0 left, 1 member, 2 erased.
pub fn wanted_from(stored: i64) -> Wanted {
    match stored {
        0 => Wanted::Left,
        1 => Wanted::Member,
        _ => Wanted::Erased,
    }
}

/// The stored form of `wanted`.
pub const fn wanted_stored(wanted: Wanted) -> i64 {
    match wanted {
        Wanted::Left => 0,
        Wanted::Member => 1,
        Wanted::Erased => 2,
    }
}
