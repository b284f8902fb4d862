//! What a whole session will do, decided before it does any of it: which layers are taken back, and
//! whether its removals are held.

use std::io;

use crate::cohort::Half;
use crate::roster::{Entry, PersonHash, Roster};
use crate::run::{Fate, Inquiry};
use crate::sorted::{Item, Items, Roles, Sorted, Sorter};
use crate::store::{
    Chunk, ChunkLayer, Effect, Judgement, MOST_LAYERS, OWN_ROLE, PagePeople, Recognised,
    SessionRef, Store, WholeSession,
};

use super::FoldError;

/// Pages read and handed to the sorter at a time.
const PAGES_A_SORT: usize = 64;

/// Bytes of people that are sorted sooner than another thread would begin with them: about a page.
const FEW_BYTES: usize = 32 * 1024;

/// People of whom removals are counted at a time.
const COUNTED_AT_ONCE: usize = 4_096;

/// The first bit of witnesses' roles; those below are layers'.
const FIRST_WITNESS: usize = MOST_LAYERS;

/// Witnesses told apart at most: as many as there are bits left.
const MOST_WITNESSES: usize = 16;

/// A session that was judged.
pub struct Plan {
    pub whole: WholeSession,
    judgement: Judgement,
    layers: Vec<ChunkLayer>,
    /// Of its own pages.
    pub recognised: Recognised,
}

/// Judges a whole session, unless an earlier process did, and sorts whoever has a part in it.
pub async fn make(store: &dyn Store, mut whole: WholeSession) -> Result<(Plan, Sorted), FoldError> {
    let judged = whole.judgement.take();
    let is_judged = judged.is_some();
    let fates = match &judged {
        Some(judgement) => judgement.fates.clone(),
        None => ask_witnesses(store, &whole).await?,
    };
    let mut plan = Plan::of(whole, judged.unwrap_or_default(), fates);
    let mut sorted = plan.sort(store).await?;
    if !is_judged {
        if plan.may_be_held() {
            plan.judgement.holds_removals = plan.exceeds_guard(store, &mut sorted).await?;
            sorted.rewind()?;
        }
        plan.write_down(store).await?;
    }
    Ok((plan, sorted))
}

impl Plan {
    fn of(whole: WholeSession, judgement: Judgement, fates: Vec<Fate>) -> Self {
        let is_any_dropped = fates.contains(&Fate::Dropped);
        // Where nobody is taken back, a further half lies on top of whatever is there.
        let has_say = is_any_dropped || !matches!(whole.effect, Effect::Half(_));
        let layers = whole.layers.iter().zip(&fates);
        let layers = layers.filter(|_| has_say);
        Plan {
            layers: layers
                .map(|(found, fate)| ChunkLayer {
                    session: found.session,
                    half: found.layer.half,
                    is_dropped: *fate == Fate::Dropped,
                })
                .collect(),
            judgement: Judgement { fates, ..judgement },
            whole,
            recognised: Recognised::new(),
        }
    }

    /// A piece of it.
    pub fn chunk(&self, people: Items, after: Option<String>, last: bool) -> Chunk {
        Chunk {
            session: self.whole.session,
            cohort: self.whole.cohort,
            effect: self.whole.effect,
            layers: self.layers.clone(),
            holds_removals: self.judgement.holds_removals,
            after,
            people,
            last,
            finishes: !self.places_people(),
            recognised: self.recognised.clone(),
        }
    }

    /// Whether the identifiers that it gives are noted once it is applied.
    pub fn places_people(&self) -> bool {
        self.whole.maps_people && self.whole.effect == Effect::Replace
    }

    async fn sort(&mut self, store: &dyn Store) -> Result<Sorted, FoldError> {
        let mut parts = vec![(self.whole.session, &self.whole.pages, OWN_ROLE)];
        for (index, layer) in self.layers.iter().enumerate() {
            let found = self
                .whole
                .layers
                .iter()
                .find(|found| found.session == layer.session);
            if let Some(found) = found {
                parts.push((found.session, &found.pages, 1 << index));
            }
        }
        let (sorted, recognised) = sort(store, parts).await?;
        self.recognised = recognised;
        Ok(sorted)
    }

    fn may_be_held(&self) -> bool {
        let is_removing =
            !self.whole.effect.brings_in() || self.layers.iter().any(|layer| layer.is_dropped);
        self.whole.guard.is_some() && is_removing
    }

    async fn exceeds_guard(
        &self,
        store: &dyn Store,
        sorted: &mut Sorted,
    ) -> Result<bool, FoldError> {
        let Some(guard) = self.whole.guard else {
            return Ok(false);
        };
        let mut removals = 0;
        let mut is_empty = true;
        let mut after: Option<String> = None;
        let mut people = Items::default();
        let mut last = false;
        loop {
            if people.is_empty() && !last {
                people = sorted.take(COUNTED_AT_ONCE, None)?;
                last = sorted.is_at_end()?;
                is_empty &= people.iter().all(|item| item.roles & OWN_ROLE == 0);
            }
            let chunk = self.chunk(people.clone(), after.clone(), last);
            let counted = store.count_removals(chunk).await?;
            removals += counted.removals;
            let Some(through) = counted.through else {
                break;
            };
            people = people.behind(&through);
            after = Some(through);
        }
        let empties = is_empty && self.whole.effect == Effect::Replace;
        Ok(guard.holds(removals, self.whole.population, empties))
    }

    /// Where nothing is decided but what the next process would decide again, nothing is written.
    async fn write_down(&self, store: &dyn Store) -> Result<(), FoldError> {
        let Judgement {
            fates,
            holds_removals,
        } = &self.judgement;
        let is_plain = fates.iter().all(|fate| *fate == Fate::Stays) && !holds_removals;
        if !is_plain || self.whole.guard.is_some() {
            let layers = self.whole.layers.iter().map(|found| found.session);
            store
                .judge(self.whole.session, layers.collect(), self.judgement.clone())
                .await?;
        }
        Ok(())
    }
}

/// What becomes of the layers that a half finds: the rules are those of [`crate::run`].
async fn ask_witnesses(store: &dyn Store, whole: &WholeSession) -> Result<Vec<Fate>, FoldError> {
    let layers: Vec<_> = whole.layers.iter().map(|found| found.layer).collect();
    let mut inquiry = Inquiry::into(layers.clone());
    let Effect::Half(own_half) = whole.effect else {
        return Ok(vec![Fate::Stays; layers.len()]);
    };
    if !layers.is_empty() {
        let mut parts = vec![(whole.session, &whole.pages, OWN_ROLE)];
        for (index, found) in whole.layers.iter().enumerate() {
            parts.push((found.session, &found.pages, 1 << index));
        }
        // Witnesses differ only in what they say and in which layers are older than they are.
        let mut words: Vec<(Half, i64, Vec<i64>)> = Vec::new();
        for witness in &whole.witnesses {
            let older: Vec<i64> = layers
                .iter()
                .map(|layer| layer.run)
                .filter(|run| *run < witness.run)
                .collect();
            let known = words
                .iter()
                .position(|(half, _, others)| *half == witness.half && *others == older);
            let word = known.unwrap_or_else(|| {
                words.push((witness.half, witness.run, older));
                words.len() - 1
            });
            if word < MOST_WITNESSES {
                let role = 1 << (FIRST_WITNESS + word);
                parts.push((witness.session, &witness.pages, role));
            }
        }
        let partners = layers
            .iter()
            .enumerate()
            .filter(|(_, layer)| layer.run == whole.run);
        let (mut sorted, _) = sort(store, parts).await?;
        loop {
            let people = sorted.take(COUNTED_AT_ONCE, None)?;
            if people.is_empty() {
                break;
            }
            for item in people.iter() {
                let named_by = item.roles & ((1 << FIRST_WITNESS) - 1);
                if item.roles & OWN_ROLE != 0 {
                    inquiry.hear(named_by, own_half, whole.run);
                }
                // What its partner confirmed stays confirmed.
                for (index, partner) in partners.clone() {
                    if named_by & (1 << index) != 0 {
                        inquiry.hear_partner(named_by, *partner);
                    }
                }
                for (word, (half, run, _)) in words.iter().enumerate().take(MOST_WITNESSES) {
                    if item.roles & (1 << (FIRST_WITNESS + word)) != 0 {
                        inquiry.hear(named_by, *half, *run);
                    }
                }
            }
        }
    }
    Ok(inquiry.verdict())
}

/// Sorts the people of some sessions; and who of the session's own was recognised.
async fn sort(
    store: &dyn Store,
    parts: Vec<(SessionRef, &Vec<u32>, Roles)>,
) -> Result<(Sorted, Recognised), FoldError> {
    let mut sorter = Sorter::default();
    let mut recognised = Recognised::new();
    let pages: Vec<(SessionRef, u32, Roles)> = parts
        .into_iter()
        .flat_map(|(session, pages, role)| pages.iter().map(move |page| (session, *page, role)))
        .collect();
    for pages in pages.chunks(PAGES_A_SORT) {
        let named = pages.iter().map(|(session, page, _)| (*session, *page));
        let people = store.page_people(named.collect()).await?;
        let mut rosters = Vec::with_capacity(pages.len());
        for ((_, _, role), people) in pages.iter().zip(people) {
            rosters.push((people.roster, *role));
            if *role == OWN_ROLE {
                for (reason, members) in people.recognised {
                    *recognised.entry(reason).or_default() += members;
                }
            }
        }
        let bytes = rosters.iter().map(|(page, _)| page.as_bytes().len()).sum();
        sorter = aside_if_many(bytes, move || {
            for (page, role) in &rosters {
                sorter.add(page, *role)?;
            }
            Ok(sorter)
        })
        .await?;
    }
    let bytes = sorter.bytes();
    Ok((aside_if_many(bytes, || sorter.finish()).await?, recognised))
}

/// The people of a full sync who have an identifier other than their distinct id, in the order of
/// persons: that of the table in which their identifiers are noted.
pub async fn by_person(store: &dyn Store, whole: &WholeSession) -> Result<Sorted, FoldError> {
    let mut sorter = Sorter::default();
    for pages in whole.pages.chunks(PAGES_A_SORT) {
        let named = pages.iter().map(|page| (whole.session, *page)).collect();
        for PagePeople { roster, .. } in store.page_people(named).await? {
            let mut swapped = Roster::default();
            for Entry { identifier, person } in roster.iter() {
                if let Some(person) = person {
                    let key = person_first(person, identifier);
                    swapped.push(Entry {
                        identifier: &key,
                        person: None,
                    });
                }
            }
            sorter.add(&swapped, OWN_ROLE)?;
        }
    }
    Ok(aside(|| sorter.finish()).await?)
}

fn person_first(person: PersonHash, identifier: &str) -> String {
    let mut key = String::with_capacity(2 * person.0.len() + identifier.len());
    for byte in person.0 {
        key.push_str(&format!("{byte:02x}"));
    }
    key.push_str(identifier);
    key
}

/// The opposite of [`person_first`].
pub fn person_and_identifier(item: Item<'_>) -> Option<(PersonHash, String)> {
    let mut person = PersonHash([0; 16]);
    let digits = 2 * person.0.len();
    for (index, byte) in person.0.iter_mut().enumerate() {
        *byte = u8::from_str_radix(item.identifier.get(2 * index..2 * index + 2)?, 16).ok()?;
    }
    Some((person, item.identifier.get(digits..)?.to_owned()))
}

/// Does on the spot what is soon done.
async fn aside_if_many<T: Send + 'static>(
    bytes: usize,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    if bytes <= FEW_BYTES {
        work()
    } else {
        aside(work).await
    }
}

/// Sorting takes seconds for a large session; delivery goes on beside it.
async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await?
}
