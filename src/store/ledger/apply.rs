//! Making a whole session true: who is a member, and what each destination therefore does not
//! know yet.

use std::iter::Peekable;
use std::sync::LazyLock;

use super::membership::{Change, Person, Standing, decide};
use super::rows::Insert;
use super::state::Ledger;
use crate::clock::Millis;
use crate::layers::Mark;
use crate::roster::PersonHash;
use crate::sorted::Item;
use crate::store::database::{BEHIND_ALL, Connection, OptionalRow, nothing, params};
use crate::store::{Applied, Chunk, ChunkLayer, CohortRef, Counted, Effect, StoreError};

/// Rows of the ledger that one chunk may look at. Replacing ten million by nobody must not become
/// one transaction.
const ROWS_A_CHUNK: usize = 4_096;

/// The people of a cohort behind one identifier and up to another.
const RANGE: &str = "SELECT identifier, person, standing FROM member
     WHERE cohort = ?1 AND identifier > ?2 AND identifier <= ?3
     ORDER BY identifier, person LIMIT ?4";

/// The people behind one identifier.
const BEHIND: &str = "SELECT person, standing FROM member WHERE cohort = ?1 AND identifier = ?2";

/// New people.
static INSERT_MEMBERS: LazyLock<Insert<4>> =
    LazyLock::new(|| Insert::into("member (cohort, identifier, person, standing)"));

impl Ledger {
    /// Makes a piece of a session true.
    pub fn apply(&mut self, chunk: &Chunk, now: Millis) -> Result<Applied, StoreError> {
        let is_whole = self
            .connection
            .prepare_cached("SELECT 1 FROM session WHERE id = ?1 AND state = 1")?
            .exists([chunk.session.0])?;
        if !is_whole {
            // The cohort was retired meanwhile.
            return Ok(Applied::Done);
        }
        let (mut changes, through) = work_out(&self.connection, chunk)?;
        changes.of_small_session = self.is_small(chunk.session)?;
        self.write_marks(chunk, &changes)?;
        self.change_cohort(chunk.cohort, &changes, now)?;
        if chunk.holds_removals {
            self.note_hold(chunk, now)?;
        }
        let done_through = through
            .or_else(|| (!chunk.last).then(|| chunk.people.last_identifier().map(String::from))?);
        match done_through {
            Some(identifier) => {
                self.connection
                    .prepare_cached("UPDATE session SET applied_through = ?2 WHERE id = ?1")?
                    .execute(params![chunk.session.0, identifier])?;
                Ok(Applied::Through(identifier))
            }
            None => {
                if chunk.finishes {
                    self.finish(chunk.session, &chunk.recognised, now)?;
                }
                Ok(Applied::Done)
            }
        }
    }

    /// Writes changed people down, and what each destination therefore does not know.
    pub(super) fn change_cohort(
        &mut self,
        cohort: CohortRef,
        changes: &Changes,
        now: Millis,
    ) -> Result<(), StoreError> {
        self.write_people(cohort, changes)?;
        self.count_people(cohort, changes)?;
        if changes
            .traits
            .iter()
            .any(|(_, change)| change.moves_trait())
        {
            let number = self.trait_of(cohort)?;
            for destination in 0..self.destinations.len() {
                if self.following(destination, cohort)?.hears() {
                    self.change_pending(destination, number, changes, now)?;
                }
            }
        }
        Ok(())
    }

    fn write_people(&self, cohort: CohortRef, changes: &Changes) -> Result<(), StoreError> {
        let (mut joined, mut changed, mut gone) = (Vec::new(), Vec::new(), Vec::new());
        for row in &changes.rows {
            let identifier = changes.identifier(row.identifier);
            let person = stored_person(&row.person);
            match (row.was, row.now) {
                (None, Some(now)) => joined.push((identifier, person, now)),
                (Some(_), Some(now)) => changed.push((identifier, person, now)),
                (_, None) => gone.push((identifier, person)),
            }
        }
        self.connection.each_of(
            "UPDATE member SET standing = ?4 WHERE cohort = ?1 AND identifier = ?2 AND person = ?3",
            &changed,
            |(identifier, person, now)| {
                [
                    cohort.0.into(),
                    (*identifier).into(),
                    (*person).into(),
                    now.stored().into(),
                ]
            },
            nothing,
        )?;
        self.connection.each_of(
            "DELETE FROM member WHERE cohort = ?1 AND identifier = ?2 AND person = ?3",
            &gone,
            |(identifier, person)| [cohort.0.into(), (*identifier).into(), (*person).into()],
            nothing,
        )?;
        INSERT_MEMBERS.all(&self.connection, &joined, |(identifier, person, now)| {
            [
                cohort.0.into(),
                (*identifier).into(),
                (*person).into(),
                now.stored().into(),
            ]
        })
    }

    fn count_people(&self, cohort: CohortRef, changes: &Changes) -> Result<(), StoreError> {
        let mut count = [0_i64; 4];
        for (_, change) in &changes.traits {
            if let Some(was) = change.was {
                count[was as usize] -= 1;
            }
            if let Some(now) = change.now {
                count[now as usize] += 1;
            }
        }
        if count != [0; 4] {
            self.connection
                .prepare_cached(
                    "UPDATE cohort SET members = members + ?2, leavers = leavers + ?3, held = held + ?4, kept = kept + ?5,
                            held_session = CASE WHEN held + ?4 = 0 THEN NULL ELSE held_session END,
                            held_since = CASE WHEN held + ?4 = 0 THEN NULL ELSE held_since END
                     WHERE id = ?1",
                )?
                .execute(params![
                    cohort.0,
                    count[Standing::Member as usize],
                    count[Standing::Left as usize],
                    count[Standing::Held as usize],
                    count[Standing::Kept as usize],
                ])?;
        }
        Ok(())
    }

    fn write_marks(&self, chunk: &Chunk, changes: &Changes) -> Result<(), StoreError> {
        for mark in &changes.marks {
            let session = chunk.layers[mark.layer].session;
            let identifier = changes.identifier(mark.identifier);
            let person = stored_person(&mark.person);
            match mark.mark {
                Some(mark) => self
                    .connection
                    .prepare_cached(
                        "INSERT INTO layer_mark (session, identifier, person, mark) VALUES (?1, ?2, ?3, ?4)
                         ON CONFLICT (session, identifier, person) DO UPDATE SET mark = excluded.mark",
                    )?
                    .execute(params![session.0, identifier, person, stored_mark(mark)])?,
                None => self
                    .connection
                    .prepare_cached(
                        "DELETE FROM layer_mark WHERE session = ?1 AND identifier = ?2 AND person = ?3",
                    )?
                    .execute(params![session.0, identifier, person])?,
            };
        }
        Ok(())
    }

    /// Names the session as the last one that would remove whoever is held.
    fn note_hold(&self, chunk: &Chunk, now: Millis) -> Result<(), StoreError> {
        let noted = self
            .connection
            .prepare_cached(
                "UPDATE cohort SET held_since = CASE WHEN held_session IS NULL THEN ?2 ELSE held_since END,
                        held_session = coalesce((SELECT session_id FROM session WHERE id = ?3), '')
                 WHERE id = ?1 AND held > 0 RETURNING held_since = ?2, source, cohort_id, held",
            )?
            .query_row(params![chunk.cohort.0, now, chunk.session.0], |row| {
                Ok((row.get::<bool>(0)?, row.get::<String>(1)?, row.get::<String>(2)?, row.get::<i64>(3)?))
            })
            .optional()?;
        if let Some((true, source, cohort_id, held)) = noted {
            tracing::warn!(
                source,
                cohort_id,
                held,
                "removals are held: more people would lose the trait than --hold-removals-above allows; approve or discard them"
            );
        }
        Ok(())
    }
}

/// The people behind one identifier, as the ledger has them.
pub(super) fn people_behind(
    connection: &Connection,
    cohort: CohortRef,
    identifier: &str,
) -> Result<Vec<Person>, StoreError> {
    let mut known = behind_each(connection, cohort, &[identifier])?;
    Ok(known.pop().unwrap_or_default())
}

/// The same of each of many identifiers.
fn behind_each(
    connection: &Connection,
    cohort: CohortRef,
    identifiers: &[&str],
) -> Result<Vec<Vec<Person>>, StoreError> {
    let mut known: Vec<Vec<Person>> = identifiers.iter().map(|_| Vec::new()).collect();
    connection.each_of(
        BEHIND,
        identifiers,
        |identifier| [cohort.0.into(), (*identifier).into()],
        |at, row| {
            let person = person_from(row.blob(0)?);
            known[at].push(Person::known(person, Standing::from_stored(row.get(1)?)));
            Ok::<_, StoreError>(())
        },
    )?;
    for people in &mut known {
        people.sort_by_key(|person| person.person);
    }
    Ok(known)
}

/// Consecutive people of a cohort; identifiers in one piece of memory.
#[derive(Default)]
struct Range {
    identifiers: String,
    rows: Vec<(usize, Option<PersonHash>, Standing)>,
    /// The ledger has more of them, behind the last one.
    goes_on: bool,
}

impl Range {
    /// Those whom a piece of a full sync is about, all of an identifier or none.
    fn read(connection: &Connection, chunk: &Chunk) -> Result<Self, StoreError> {
        let upto = match chunk.last {
            true => BEHIND_ALL.as_str(),
            false => chunk.people.last_identifier().unwrap_or(""),
        };
        let after = chunk.after.as_deref().unwrap_or("");
        let mut most = ROWS_A_CHUNK + 1;
        let mut statement = connection.prepare_cached(RANGE)?;
        loop {
            let mut range = Range::default();
            statement.scan(params![chunk.cohort.0, after, upto, most], |row| {
                range.identifiers.push_str(row.text(0)?);
                let person = person_from(row.blob(1)?);
                let standing = Standing::from_stored(row.get(2)?);
                range.rows.push((range.identifiers.len(), person, standing));
                Ok::<_, StoreError>(true)
            })?;
            if range.rows.len() < most {
                return Ok(range);
            }
            if range.drop_last_identifier() {
                range.goes_on = true;
                return Ok(range);
            }
            most *= 2;
        }
    }

    /// Perhaps not all of its people were read. Whether there is another one.
    fn drop_last_identifier(&mut self) -> bool {
        let last = self.rows().last().map(|(identifier, ..)| identifier);
        let kept = self
            .rows()
            .take_while(|(identifier, ..)| Some(*identifier) != last)
            .count();
        self.rows.truncate(kept);
        kept > 0
    }

    fn rows(&self) -> impl Iterator<Item = (&str, Option<PersonHash>, Standing)> {
        let starts = std::iter::once(0).chain(self.rows.iter().map(|(end, ..)| *end));
        let rows = self.rows.iter().zip(starts);
        rows.map(|((end, person, standing), start)| {
            (&self.identifiers[start..*end], *person, *standing)
        })
    }
}

/// How many people a piece of a session would take the trait from.
pub fn count_removals(connection: &Connection, chunk: &Chunk) -> Result<Counted, StoreError> {
    let (changes, through) = work_out(connection, chunk)?;
    let removals = changes
        .traits
        .iter()
        .filter(|(_, change)| change.is_removal());
    Ok(Counted {
        removals: removals.count() as u64,
        through: through
            .or_else(|| (!chunk.last).then(|| chunk.people.last_identifier().map(String::from))?),
    })
}

/// What a piece of a session changes. Stops early, at the identifier returned, where the ledger has
/// many more people than the piece.
fn work_out(
    connection: &Connection,
    chunk: &Chunk,
) -> Result<(Changes, Option<String>), StoreError> {
    let marked = marked_layers(connection, &chunk.layers)?;
    let mut work = Work {
        connection,
        chunk,
        marked,
        changes: Changes::default(),
        people: Vec::new(),
    };
    let through = match chunk.effect {
        Effect::Replace => work.walk()?,
        Effect::Half(_) | Effect::Alone(_) => {
            work.look_up()?;
            None
        }
    };
    Ok((work.changes, through))
}

/// Which of the layers have any mark at all; hardly ever one.
fn marked_layers(connection: &Connection, layers: &[ChunkLayer]) -> Result<Vec<bool>, StoreError> {
    let mut is_marked =
        connection.prepare_cached("SELECT 1 FROM layer_mark WHERE session = ?1 LIMIT 1")?;
    layers
        .iter()
        .map(|layer| Ok(is_marked.exists([layer.session.0])?))
        .collect()
}

struct Work<'a> {
    connection: &'a Connection,
    chunk: &'a Chunk,
    marked: Vec<bool>,
    changes: Changes,
    /// Those behind the identifier at hand; kept to be used again.
    people: Vec<Person>,
}

impl Work<'_> {
    /// A full sync: walks the ledger and the chunk side by side.
    fn walk(&mut self) -> Result<Option<String>, StoreError> {
        let chunk = self.chunk;
        let ledger = Range::read(self.connection, chunk)?;
        let mut items = chunk.people.iter().peekable();
        let mut current = String::new();
        for (identifier, person, standing) in ledger.rows() {
            if identifier != current {
                self.name_before(&mut items, &mut current, Some(identifier))?;
                current.clear();
                current.push_str(identifier);
            }
            self.people.push(Person::known(person, standing));
        }
        if ledger.goes_on {
            self.name_up_to(&mut items, &mut current)?;
            return Ok(Some(current));
        }
        self.name_before(&mut items, &mut current, None)?;
        Ok(None)
    }

    /// Names everybody of the chunk before an identifier, beginning with the `current` one, whose
    /// rows are there already; `current` is the last one then.
    fn name_before<'a>(
        &mut self,
        items: &mut Peekable<impl Iterator<Item = Item<'a>>>,
        current: &mut String,
        before: Option<&str>,
    ) -> Result<(), StoreError> {
        while let Some(item) =
            items.next_if(|item| before.is_none_or(|before| item.identifier < before))
        {
            if item.identifier != current {
                self.end_identifier(current)?;
                current.clear();
                current.push_str(item.identifier);
            }
            self.name_or_stand_in(item)?;
        }
        self.end_identifier(current)
    }

    /// Names everybody of the chunk up to the `current` identifier.
    fn name_up_to<'a>(
        &mut self,
        items: &mut Peekable<impl Iterator<Item = Item<'a>>>,
        current: &mut String,
    ) -> Result<(), StoreError> {
        while let Some(item) = items.next_if(|item| item.identifier == current) {
            self.name_or_stand_in(item)?;
        }
        self.end_identifier(current)
    }

    /// A difference: looks up whom it names.
    fn look_up(&mut self) -> Result<(), StoreError> {
        let chunk = self.chunk;
        let mut named: Vec<&str> = chunk.people.iter().map(|item| item.identifier).collect();
        named.dedup();
        let known = behind_each(self.connection, chunk.cohort, &named)?;
        let mut items = chunk.people.iter().peekable();
        for (identifier, people) in named.into_iter().zip(known) {
            self.people.extend(people);
            while let Some(item) = items.next_if(|next| next.identifier == identifier) {
                self.name_or_stand_in(item)?;
            }
            self.end_identifier(identifier)?;
        }
        Ok(())
    }

    /// Names somebody whom the ledger may know under another guise, from when the settings had
    /// another property identify: a row without a person is whoever comes first by that identifier,
    /// and so is, for a full sync without people, the first row with one; who leaves without a
    /// person is everybody who goes by it.
    fn name_or_stand_in(&mut self, item: Item<'_>) -> Result<(), StoreError> {
        let is_known = self.people.iter().any(|known| known.person == item.person);
        if !is_known && (item.person.is_some() || self.chunk.effect == Effect::Replace) {
            let stand_in = self
                .people
                .iter_mut()
                .find(|known| known.roles == 0 && known.person.is_none() == item.person.is_some());
            if let Some(stand_in) = stand_in {
                stand_in.person = item.person;
            }
        } else if !is_known && self.chunk.effect.takes_away() {
            let everybody: Vec<_> = self.people.iter().map(|known| known.person).collect();
            for person in &everybody {
                self.name(Item {
                    person: *person,
                    ..item
                })?;
            }
            if !everybody.is_empty() {
                return Ok(());
            }
        }
        self.name(item)
    }

    fn name(&mut self, item: Item<'_>) -> Result<(), StoreError> {
        let marks = self.marks(item)?;
        let known = self
            .people
            .iter()
            .position(|known| known.person == item.person);
        let index = known.unwrap_or_else(|| {
            self.people.push(Person::unknown(item.person));
            self.people.len() - 1
        });
        self.people[index].roles |= item.roles;
        self.people[index].marks = marks;
        Ok(())
    }

    fn marks(&self, item: Item<'_>) -> Result<Vec<Option<Mark>>, StoreError> {
        if !self.marked.contains(&true) {
            return Ok(Vec::new());
        }
        let mut statement = self.connection.prepare_cached(
            "SELECT mark FROM layer_mark WHERE session = ?1 AND identifier = ?2 AND person = ?3",
        )?;
        let mut marks = Vec::with_capacity(self.chunk.layers.len());
        for (layer, is_marked) in self.chunk.layers.iter().zip(&self.marked) {
            let key = params![
                layer.session.0,
                item.identifier,
                stored_person(&item.person)
            ];
            let mark = statement.query_row(key, |row| row.get(0)).optional()?;
            marks.push(mark.filter(|_| *is_marked).and_then(mark_from));
        }
        Ok(marks)
    }

    /// All of an identifier's people are there: what changes?
    fn end_identifier(&mut self, identifier: &str) -> Result<(), StoreError> {
        let chunk = self.chunk;
        for person in &mut self.people {
            decide(person, chunk.effect, &chunk.layers, chunk.holds_removals);
        }
        if !self.people.is_empty() {
            self.changes.push(identifier, &self.people);
            self.people.clear();
        }
        Ok(())
    }
}

/// What a piece changes, in identifier order; identifiers in one piece of memory.
#[derive(Default)]
pub(super) struct Changes {
    identifiers: String,
    ends: Vec<usize>,
    pub(super) rows: Vec<RowChange>,
    pub(super) traits: Vec<(usize, Change)>,
    pub(super) marks: Vec<MarkChange>,
    /// Destinations may hear of it before what has been pending for longer.
    pub(super) of_small_session: bool,
}

/// A changed row.
pub(super) struct RowChange {
    identifier: usize,
    person: Option<PersonHash>,
    was: Option<Standing>,
    now: Option<Standing>,
}

/// A changed mark of a layer.
pub(super) struct MarkChange {
    identifier: usize,
    person: Option<PersonHash>,
    layer: usize,
    mark: Option<Mark>,
}

impl Changes {
    /// Adds whatever changes of an identifier's people.
    pub(super) fn push(&mut self, identifier: &str, people: &[Person]) {
        let index = self.ends.len();
        for person in people {
            let mut row = |person, was, now| {
                if was != now {
                    self.rows.push(RowChange {
                        identifier: index,
                        person,
                        was,
                        now,
                    });
                }
            };
            if person.stored_as == person.person {
                row(person.person, person.was, person.now);
            } else {
                row(person.stored_as, person.was, None);
                row(person.person, None, person.now);
            }
            for (layer, mark) in &person.new_marks {
                self.marks.push(MarkChange {
                    identifier: index,
                    person: person.person,
                    layer: *layer,
                    mark: *mark,
                });
            }
        }
        let change = Change::of(people);
        if change.was != change.now {
            self.traits.push((index, change));
        }
        self.identifiers.push_str(identifier);
        self.ends.push(self.identifiers.len());
    }

    /// The identifier of that number.
    pub(super) fn identifier(&self, index: usize) -> &str {
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.identifiers[start..self.ends[index]]
    }

    /// The traits that destinations have to hear of.
    pub(super) fn traits(&self) -> impl Iterator<Item = (&str, Change)> {
        self.traits
            .iter()
            .filter(|(_, change)| change.moves_trait())
            .map(|(index, change)| (self.identifier(*index), *change))
    }
}

/// A person as stored: empty where the identifier is the person.
pub(super) fn stored_person(person: &Option<PersonHash>) -> &[u8] {
    person.as_ref().map_or(&[], |person| &person.0)
}

/// The stored form read back.
pub(super) fn person_from(stored: &[u8]) -> Option<PersonHash> {
    stored.try_into().ok().map(PersonHash)
}

fn stored_mark(mark: Mark) -> i64 {
    match mark {
        Mark::FoundSo => 1,
        Mark::Struck => 2,
    }
}

fn mark_from(stored: i64) -> Option<Mark> {
    match stored {
        1 => Some(Mark::FoundSo),
        2 => Some(Mark::Struck),
        _ => None,
    }
}
