//! What the stand-in knows: environments, identities and their traits, and what a call does there.

use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::BuildHasher;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde_json::Value;

use super::ask::Ask;
use super::fault::Faults;
use super::lock;
use super::reply::{self, Reply, Shown, View};
use super::traffic::Traffic;
use super::validate::{
    BulkRow, Identify, MAX_IDENTIFIER_CHARS, MAX_TRAIT_KEY_CHARS, SentTrait, overflows_index,
};

/// Locks an environment's identities are spread over, so that workers seldom meet.
const SHARDS: usize = 64;

/// One Flagsmith environment, and its organisation's settings.
#[derive(Clone, Debug)]
pub struct Environment {
    /// The public key.
    pub client_key: String,
    /// The secret key.
    pub server_key: String,
    /// Flags in every answer about an identity; about 315 bytes each.
    pub flags: usize,
    /// What is switched on at the start.
    pub switches: Vec<Switch>,
}

impl Default for Environment {
    /// Keys `client-key` and `ser.server-key`, one flag, client keys may set traits, traits are
    /// stored.
    fn default() -> Self {
        Environment {
            client_key: "client-key".to_owned(),
            server_key: "ser.server-key".to_owned(),
            flags: 1,
            switches: vec![Switch::ClientMaySetTraits, Switch::StoresTraits],
        }
    }
}

/// A setting of an environment or its organisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Switch {
    /// `allow_client_traits`: 'Allow client SDKs to set user traits'.
    ClientMaySetTraits,
    /// The organisation's `persist_trait_data`.
    StoresTraits,
    /// `hide_sensitive_data`.
    HidesSensitiveData,
    /// The organisation's `stop_serving_flags`.
    Stopped,
}

/// Which of its two keys a call came with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KeyKind {
    Client,
    Server,
}

#[derive(Debug)]
struct StoredTrait {
    id: u64,
    key: Box<str>,
    value: Value,
    /// How often it was written.
    writes: u64,
}

impl StoredTrait {
    fn write(&mut self, value: &Value) {
        self.value = value.clone();
        self.writes += 1;
    }
}

type Shard = HashMap<Box<str>, Vec<StoredTrait>>;

pub(super) struct LiveEnvironment {
    /// From 1.
    number: usize,
    client_key: String,
    server_key: String,
    flags: usize,
    switches: [AtomicBool; 4],
    hasher: RandomState,
    shards: Vec<Mutex<Shard>>,
    next_id: AtomicU64,
}

/// Everything behind the stand-in's port.
pub(super) struct World {
    pub environments: Vec<LiveEnvironment>,
    pub faults: Faults,
    pub traffic: Traffic,
    /// It is down, or about to be: nothing is answered.
    pub down: AtomicBool,
    late: Mutex<Vec<Ask<'static>>>,
}

impl World {
    pub fn new(environments: &[Environment]) -> Self {
        World {
            environments: (1..)
                .zip(environments)
                .map(|(number, environment)| LiveEnvironment::new(number, environment))
                .collect(),
            faults: Faults::default(),
            traffic: Traffic::default(),
            late: Mutex::default(),
            down: AtomicBool::new(false),
        }
    }

    pub fn environment(&self, key: &str) -> Option<(&LiveEnvironment, KeyKind)> {
        self.environments.iter().find_map(|environment| {
            if environment.server_key == key {
                Some((environment, KeyKind::Server))
            } else if environment.client_key == key {
                Some((environment, KeyKind::Client))
            } else {
                None
            }
        })
    }

    pub fn keep_late(&self, ask: Ask<'static>) {
        lock(&self.late).push(ask);
    }

    pub fn land_late_write(&self, at: usize) -> bool {
        let mut late = lock(&self.late);
        if at >= late.len() {
            return false;
        }
        let ask = late.remove(at);
        drop(late);
        ask.answer(self);
        true
    }

    pub fn land_late_writes(&self) -> usize {
        let late = std::mem::take(&mut *lock(&self.late));
        for ask in &late {
            ask.answer(self);
        }
        late.len()
    }
}

impl LiveEnvironment {
    fn new(number: usize, environment: &Environment) -> Self {
        let live = LiveEnvironment {
            number,
            client_key: environment.client_key.clone(),
            server_key: environment.server_key.clone(),
            flags: environment.flags,
            switches: Default::default(),
            hasher: RandomState::new(),
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            next_id: AtomicU64::new(1),
        };
        for &switch in &environment.switches {
            live.switch(switch, true);
        }
        live
    }

    pub fn switch(&self, switch: Switch, on: bool) {
        self.switches[switch as usize].store(on, Ordering::Release);
    }

    pub fn is(&self, switch: Switch) -> bool {
        self.switches[switch as usize].load(Ordering::Acquire)
    }

    /// Whether traits sent with this key are dropped.
    pub fn bars(&self, key: KeyKind) -> bool {
        key == KeyKind::Client && !self.is(Switch::ClientMaySetTraits)
    }

    fn view(&self) -> View {
        View {
            environment: self.number,
            flags: self.flags,
            hidden: self.is(Switch::HidesSensitiveData),
        }
    }

    fn shard(&self, identifier: &str) -> &Mutex<Shard> {
        let hash = self.hasher.hash_one(identifier);
        // Less than SHARDS, so it fits.
        &self.shards[(hash % SHARDS as u64) as usize]
    }

    fn next_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    pub fn identities(&self) -> BTreeMap<String, BTreeMap<String, Value>> {
        let mut all = BTreeMap::new();
        for shard in &self.shards {
            for (identifier, traits) in lock(shard).iter() {
                all.insert(identifier.to_string(), by_key(traits));
            }
        }
        all
    }

    /// How often each trait was written, over all identities.
    pub fn writes(&self) -> BTreeMap<String, u64> {
        let mut writes = BTreeMap::new();
        for shard in &self.shards {
            for stored in lock(shard).values().flatten() {
                *writes.entry(stored.key.to_string()).or_default() += stored.writes;
            }
        }
        writes
    }

    pub fn wipe(&self) {
        for shard in &self.shards {
            lock(shard).clear();
        }
    }

    pub fn identity(&self, identifier: &str) -> Option<BTreeMap<String, Value>> {
        let shard = lock(self.shard(identifier));
        shard.get(identifier).map(|traits| by_key(traits))
    }

    /// `GET identities/`: creates the identity where it is unknown, and does not trim.
    pub fn read(&self, identifier: &str) -> Reply {
        if identifier.contains('\0') || identifier.chars().count() > MAX_IDENTIFIER_CHARS {
            return Reply::page(500);
        }
        let mut shard = lock(self.shard(identifier));
        let traits = shard.entry(identifier.into()).or_default();
        let shown: Vec<Shown<'_>> = traits.iter().map(shown).collect();
        Reply::json(200, reply::identity(identifier, &shown, self.view()))
    }

    /// `POST identities/`, validated.
    pub fn identify(&self, key: KeyKind, mut ask: Identify<'_>) -> Reply {
        if self.bars(key) {
            ask.traits.clear();
        }
        let Some(identifier) = ask.identifier.as_deref() else {
            return self.identify_nobody(&ask);
        };
        if identifier.chars().count() > MAX_IDENTIFIER_CHARS || overflows_index(identifier) {
            return Reply::page(500);
        }
        if ask.transient {
            return self.show_unstored(identifier, &[], &ask);
        }
        let mut shard = lock(self.shard(identifier));
        let is_new = !shard.contains_key(identifier);
        let traits = shard.entry(identifier.into()).or_default();
        if self.bars(key) {
            return Reply::json(200, reply::identity(identifier, &[], self.view()));
        }
        if !self.is(Switch::StoresTraits) {
            return self.show_unstored(identifier, traits, &ask);
        }
        let sets = || {
            let stored = ask.traits.iter().filter(|sent| !sent.transient);
            stored.filter_map(|sent| Some((&*sent.key, sent.value.as_ref()?)))
        };
        if is_new {
            let mut keys = HashSet::new();
            if !sets().all(|(key, _)| keys.insert(key)) {
                return Reply::page(500);
            }
        }
        let before = traits.len();
        // A key created twice in one call keeps the first value but the answer shows the last.
        let mut losers: Vec<(&str, &Value)> = Vec::new();
        for (key, value) in sets() {
            match traits.iter().position(|stored| *stored.key == *key) {
                Some(at) if at < before => traits[at].write(value),
                Some(_) => losers.push((key, value)),
                None => traits.push(StoredTrait {
                    id: self.next_id(),
                    key: key.into(),
                    value: value.clone(),
                    writes: 1,
                }),
            }
        }
        let created: Vec<u64> = traits[before..].iter().map(|stored| stored.id).collect();
        let deletes =
            |key: &str| (ask.traits.iter()).any(|sent| sent.value.is_none() && sent.key == key);
        traits.retain(|stored| !deletes(&stored.key));
        let mut view: Vec<Shown<'_>> = traits.iter().map(shown).collect();
        for entry in &mut view {
            if let Some((_, value)) = losers.iter().rev().find(|(key, _)| *key == entry.key) {
                entry.value = value;
            }
            // Traits just created on a known identity are not read back.
            if !is_new && entry.id.is_some_and(|id| created.contains(&id)) {
                entry.id = None;
            }
        }
        overlay(&mut view, &ask, |sent| sent.transient);
        Reply::json(200, reply::identity(identifier, &view, self.view()))
    }

    /// A blank identifier: evaluated for nobody, under an invented one.
    fn identify_nobody(&self, ask: &Identify<'_>) -> Reply {
        let invented = if ask.traits.is_empty() {
            format!("{:032x}", fastrand::u128(..))
        } else {
            format!("{:032x}{:032x}", fastrand::u128(..), fastrand::u128(..))
        };
        let transient = Identify {
            transient: true,
            ..ask.clone()
        };
        self.show_unstored(&invented, &[], &transient)
    }

    /// The answer as if what was sent had been stored.
    fn show_unstored(&self, identifier: &str, stored: &[StoredTrait], ask: &Identify<'_>) -> Reply {
        let mut view: Vec<Shown<'_>> = stored.iter().map(shown).collect();
        overlay(&mut view, ask, |_| true);
        Reply::json(200, reply::identity(identifier, &view, self.view()))
    }

    /// The null rows of `PUT traits/bulk/`; they never create an identity.
    pub fn delete(&self, identifier: &str, key: &str) {
        if let Some(traits) = lock(self.shard(identifier)).get_mut(identifier) {
            traits.retain(|stored| *stored.key != *key);
        }
    }

    /// The set rows of `PUT traits/bulk/`, one identity after the other; `Err` where the database
    /// would refuse a row, as it does any of `refused`: what came before it is written, its
    /// identity was created.
    pub fn set_rows(&self, rows: &[BulkRow<'_>], refused: Option<&str>) -> Result<(), ()> {
        let mut order: Vec<&str> = Vec::new();
        let mut of_identity: HashMap<&str, Vec<&BulkRow<'_>>> = HashMap::new();
        for row in rows {
            let group = of_identity.entry(&row.identifier).or_default();
            if group.is_empty() {
                order.push(&row.identifier);
            }
            group.push(row);
        }
        for identifier in order {
            if overflows_index(identifier) {
                return Err(());
            }
            let mut shard = lock(self.shard(identifier));
            let traits = shard.entry(identifier.into()).or_default();
            let group = of_identity.remove(identifier).unwrap_or_default();
            let is_refused = refused == Some(identifier);
            if is_refused
                || group
                    .iter()
                    .any(|row| row.key.chars().count() > MAX_TRAIT_KEY_CHARS || row.overflows())
            {
                return Err(());
            }
            let before = traits.len();
            for row in group {
                match traits.iter().position(|stored| *stored.key == *row.key) {
                    Some(at) if at < before => traits[at].write(&row.value),
                    Some(_) => {}
                    None => traits.push(StoredTrait {
                        id: self.next_id(),
                        key: (&*row.key).into(),
                        value: row.value.clone(),
                        writes: 1,
                    }),
                }
            }
        }
        Ok(())
    }
}

fn by_key(traits: &[StoredTrait]) -> BTreeMap<String, Value> {
    traits
        .iter()
        .map(|stored| (stored.key.to_string(), stored.value.clone()))
        .collect()
}

fn shown(stored: &StoredTrait) -> Shown<'_> {
    Shown {
        id: Some(stored.id),
        key: &stored.key,
        value: &stored.value,
        transient: false,
    }
}

/// Lays what is sent and not stored over what is stored.
fn overlay<'a>(
    view: &mut Vec<Shown<'a>>,
    ask: &'a Identify<'_>,
    which: impl Fn(&SentTrait<'_>) -> bool,
) {
    for sent in ask.traits.iter().filter(|sent| which(sent)) {
        let key: &str = &sent.key;
        view.retain(|entry| entry.key != key);
        if let Some(value) = &sent.value {
            view.push(Shown {
                id: None,
                key,
                value,
                transient: sent.transient || ask.transient,
            });
        }
    }
}
