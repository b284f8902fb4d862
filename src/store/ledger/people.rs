//! People whose identifier is another property than the distinct id: who goes by which.

use std::collections::BTreeSet;

use super::apply::{Changes, people_behind, stored_person};
use super::inbox::set_aside_from;
use super::membership::{Person, Standing};
use super::state::Ledger;
use crate::clock::Millis;
use crate::cohort::Action;
use crate::mixpanel::SetAside;
use crate::roster::{Entry, PersonHash, Roster};
use crate::store::database::{Connection, OptionalRow, params};
use crate::store::{CohortRef, PagePeople, Recognised, SessionRef, StoreError};

/// A held page.
pub const HELD_PAGE: &str = "SELECT s.cohort, s.action, i.maps_people, i.roster, i.set_aside FROM session s
     JOIN session_page p ON p.session = s.id JOIN inbox i ON i.seq = p.inbox_seq WHERE s.id = ?1 AND p.page = ?2";

/// The people of one held page, as the ledger knows them: see
/// [`Store::page_people`](crate::store::Store::page_people).
pub fn page_people(
    connection: &Connection,
    session: SessionRef,
    page: u32,
) -> Result<PagePeople, StoreError> {
    let (cohort, action, maps_people, roster, set_aside) = connection
        .prepare_cached(HELD_PAGE)?
        .query_row(params![session.0, page], |row| {
            Ok((
                CohortRef(row.get(0)?),
                row.get::<String>(1)?,
                row.get::<bool>(2)?,
                row.get::<Vec<u8>>(3)?,
                row.get::<String>(4)?,
            ))
        })?;
    let roster = Roster::from_bytes(roster)?;
    if !maps_people {
        return Ok(PagePeople {
            roster,
            ..PagePeople::default()
        });
    }
    let is_full = Action::parse(&action) == Some(Action::Members);
    let mut people: BTreeSet<(String, Option<PersonHash>)> = BTreeSet::new();
    let mut recognised = 0;
    for Entry { identifier, person } in roster.iter() {
        let known = match person {
            Some(person) if !is_full || identifier.is_empty() => {
                identifier_of(connection, cohort, person)?
            }
            _ => None,
        };
        recognised += u64::from(identifier.is_empty() && known.is_some());
        let identifier = known.unwrap_or_else(|| identifier.to_owned());
        if !identifier.is_empty() {
            people.insert((identifier, person));
        }
    }
    let people = people.iter().map(|(identifier, person)| Entry {
        identifier,
        person: *person,
    });
    Ok(PagePeople {
        roster: Roster::from_sorted(people),
        recognised: by_reason(recognised, &set_aside),
    })
}

/// Of a page it is known how many were set aside for each reason, and not who for which. The first
/// is that the property is missing, which is why somebody known would be without it.
fn by_reason(mut recognised: u64, set_aside: &str) -> Recognised {
    set_aside_from(set_aside)
        .filter_map(|(word, members)| {
            let members = u64::try_from(members).ok()?.min(recognised);
            recognised -= members;
            Some((SetAside::parse(word)?, members))
        })
        .filter(|(_, members)| *members > 0)
        .collect()
}

fn identifier_of(
    connection: &Connection,
    cohort: CohortRef,
    person: PersonHash,
) -> Result<Option<String>, StoreError> {
    Ok(connection
        .prepare_cached("SELECT identifier FROM holder WHERE cohort = ?1 AND person = ?2")?
        .query_row(params![cohort.0, &person.0[..]], |row| row.get(0))
        .optional()?)
}

impl Ledger {
    /// Takes over the identifiers that a page gives. Whoever has another one now takes their
    /// standing with them.
    pub fn rename_people(
        &mut self,
        session: SessionRef,
        page: u32,
        now: Millis,
    ) -> Result<(), StoreError> {
        let (cohort, roster) = self
            .connection
            .prepare_cached(
                "SELECT s.cohort, i.roster FROM session s
                 JOIN session_page p ON p.session = s.id JOIN inbox i ON i.seq = p.inbox_seq WHERE s.id = ?1 AND p.page = ?2",
            )?
            .query_row(params![session.0, page], |row| {
                Ok((CohortRef(row.get(0)?), row.get::<Vec<u8>>(1)?))
            })?;
        let roster = Roster::from_bytes(roster)?;
        for Entry { identifier, person } in roster.iter() {
            let Some(person) = person.filter(|_| !identifier.is_empty()) else {
                continue;
            };
            let known = identifier_of(&self.connection, cohort, person)?;
            if known.as_deref() == Some(identifier) {
                continue;
            }
            if let Some(former) = known {
                self.rename(cohort, person, &former, identifier, now)?;
            }
            self.place_people(cohort, &[(person, identifier.to_owned())])?;
        }
        Ok(())
    }

    fn rename(
        &mut self,
        cohort: CohortRef,
        person: PersonHash,
        former: &str,
        identifier: &str,
        now: Millis,
    ) -> Result<(), StoreError> {
        let mut changes = Changes::default();
        let mut behind_former = people_behind(&self.connection, cohort, former)?;
        let Some(leaving) = behind_former
            .iter_mut()
            .find(|known| known.person == Some(person))
        else {
            return Ok(());
        };
        let standing = leaving.was;
        // The trait under the old identifier is not theirs any more, and may be somebody's.
        leaving.now = Some(Standing::Left);
        let mut behind = people_behind(&self.connection, cohort, identifier)?;
        match behind.iter_mut().find(|known| known.person == Some(person)) {
            Some(known) => known.now = standing,
            None => behind.push(Person {
                now: standing,
                ..Person::unknown(Some(person))
            }),
        }
        // Destinations take changes in identifier order.
        let mut both = [(former, behind_former), (identifier, behind)];
        both.sort_by(|left, right| left.0.cmp(right.0));
        for (identifier, people) in &both {
            changes.push(identifier, people);
        }
        self.rename_marks(cohort, former, identifier, stored_person(&Some(person)))?;
        self.change_cohort(cohort, &changes, now)
    }

    fn rename_marks(
        &self,
        cohort: CohortRef,
        former: &str,
        identifier: &str,
        person: &[u8],
    ) -> Result<(), StoreError> {
        let marks = params![cohort.0, former, identifier, person];
        // A mark that stood under both names is the former one's.
        self.connection
            .prepare_cached(
                "DELETE FROM layer_mark WHERE identifier = ?3 AND person = ?4
                 AND session IN (SELECT s.id FROM session s JOIN layer_mark m ON m.session = s.id
                                 WHERE s.cohort = ?1 AND m.identifier = ?2 AND m.person = ?4)",
            )?
            .execute(marks)?;
        self.connection
            .prepare_cached(
                "UPDATE layer_mark SET identifier = ?3 WHERE identifier = ?2 AND person = ?4
                 AND session IN (SELECT id FROM session WHERE cohort = ?1)",
            )?
            .execute(marks)?;
        Ok(())
    }

    /// A session has taken effect. Whoever is recognised was counted as set aside with its pages.
    pub fn finish(
        &mut self,
        session: SessionRef,
        recognised: &Recognised,
        now: Millis,
    ) -> Result<(), StoreError> {
        let cohort = self
            .connection
            .prepare_cached("SELECT cohort FROM session WHERE id = ?1 AND state = 1")?
            .query_row([session.0], |row| row.get::<i64>(0))
            .optional()?;
        let Some(cohort) = cohort else {
            // It was retired meanwhile.
            return Ok(());
        };
        self.finish_session(session, now)?;
        for (reason, members) in recognised {
            self.connection
                .prepare_cached(
                    "UPDATE set_aside SET members = members - ?3 WHERE cohort = ?1 AND reason = ?2",
                )?
                .execute(params![cohort, reason.as_str(), members])?;
        }
        if !recognised.is_empty() {
            self.connection
                .prepare_cached("DELETE FROM set_aside WHERE cohort = ?1 AND members <= 0")?
                .execute([cohort])?;
        }
        Ok(())
    }

    /// Notes who goes by which identifier.
    pub fn place_people(
        &mut self,
        cohort: CohortRef,
        people: &[(PersonHash, String)],
    ) -> Result<(), StoreError> {
        let mut place = self.connection.prepare_cached(
            "INSERT INTO holder (cohort, person, identifier) VALUES (?1, ?2, ?3)
             ON CONFLICT (cohort, person) DO UPDATE SET identifier = excluded.identifier WHERE holder.identifier <> excluded.identifier",
        )?;
        for (person, identifier) in people {
            place.execute(params![cohort.0, &person.0[..], identifier])?;
        }
        Ok(())
    }
}
