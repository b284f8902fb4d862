//! The inbox: pages written down, and taken in order into their sessions.

use std::sync::LazyLock;

use super::cohorts::CohortKey;
use super::state::Ledger;
use crate::clock::Millis;
use crate::cohort::{Action, Half, SourceName};
use crate::mixpanel::{Page, PageInfo, SetAside};
use crate::roster::Roster;
use crate::session::{Fingerprint, State};
use crate::store::database::{DatabaseError, OptionalRow, Row, ToValue, Value};
use crate::store::{Assembled, CohortRef, Effect, StoreError};

/// A page on its way into the inbox, in the form in which it lies there.
pub struct InboxPage {
    source: SourceName,
    page: Page,
    fingerprint: Fingerprint,
    received_at: Millis,
    maps_people: bool,
    is_refused: bool,
}

impl InboxPage {
    /// Gets a page ready. Done by the caller, so that the writing thread only writes.
    pub fn new(source: SourceName, page: Page, received_at: Millis) -> Self {
        let maps_people = page.roster.iter().any(|entry| entry.person.is_some());
        InboxPage {
            source,
            fingerprint: page.roster.fingerprint(),
            maps_people,
            page,
            received_at,
            is_refused: false,
        }
    }

    /// The note that a page was answered with our own trouble; without its people.
    pub fn refused(source: SourceName, page: &Page, at: Millis) -> Self {
        let page = Page {
            roster: Roster::default(),
            cohort_name: None,
            set_aside: Vec::new(),
            ..page.clone()
        };
        InboxPage {
            is_refused: true,
            ..InboxPage::new(source, page, at)
        }
    }
}

/// The columns of the inbox that a page fills.
pub const COLUMNS: [&str; 16] = [
    "source",
    "project_id",
    "cohort_id",
    "cohort_name",
    "action",
    "session_id",
    "page",
    "total_pages",
    "received_at",
    "fingerprint",
    "roster",
    "identified_by",
    "received",
    "set_aside",
    "is_refused",
    "maps_people",
];

impl InboxPage {
    /// How many members could not be used, as stored.
    pub fn set_aside(&self) -> String {
        stored_set_aside(&self.page.set_aside)
    }

    /// What it fills the [`COLUMNS`] with.
    pub fn values<'a>(&'a self, set_aside: &'a str) -> [Value<'a>; COLUMNS.len()] {
        let page = &self.page;
        let page_info = page.page_info;
        let integer = |number: i64| Value::Integer(Some(number));
        [
            Value::Text(Some(&self.source.0)),
            page.project_id.to_value(),
            page.cohort_id.to_value(),
            page.cohort_name.to_value(),
            Value::Text(Some(page.action.as_str())),
            page.session_id.to_value(),
            Value::Integer(page_info.map(|info| info.number.into())),
            Value::Integer(page_info.map(|info| info.total.into())),
            integer(self.received_at),
            Value::Blob(Some(&self.fingerprint)),
            Value::Blob(Some(page.roster.as_bytes())),
            Value::Text(Some(&page.identified_by)),
            page.members_received.to_value(),
            Value::Text(Some(set_aside)),
            self.is_refused.to_value(),
            self.maps_people.to_value(),
        ]
    }

    /// Bytes, about, that it takes.
    pub fn bytes(&self) -> usize {
        256 + self.page.roster.as_bytes().len()
    }
}

impl Ledger {
    /// Writes a page down.
    pub fn append(&mut self, inbox_page: &InboxPage) -> Result<(), StoreError> {
        static INSERT: LazyLock<String> = LazyLock::new(|| {
            let numbers: Vec<_> = (1..=COLUMNS.len()).map(|at| format!("?{at}")).collect();
            format!(
                "INSERT INTO inbox ({}) VALUES ({})",
                COLUMNS.join(", "),
                numbers.join(", ")
            )
        });
        let set_aside = inbox_page.set_aside();
        self.connection
            .prepare_cached(&INSERT)?
            .execute(&inbox_page.values(&set_aside)[..])?;
        Ok(())
    }

    /// Looks for what the fold has to do next: see [`Store::assemble`](crate::store::Store::assemble).
    pub fn assemble(
        &mut self,
        pages: usize,
        people: usize,
        now: Millis,
    ) -> Result<Assembled, StoreError> {
        let assembled = self.find_work(pages, people, now)?;
        Ok(Assembled {
            may_reroute: std::mem::take(&mut self.may_reroute),
            ..assembled
        })
    }

    fn find_work(
        &mut self,
        pages: usize,
        people: usize,
        now: Millis,
    ) -> Result<Assembled, StoreError> {
        // What an operator ordered was ordered before whatever comes now.
        if self.carry_out(people, now)? {
            return Ok(Assembled {
                carried_out: true,
                ..Assembled::default()
            });
        }
        let whole = self.whole_session()?.map(Box::new);
        if whole.is_some() {
            return Ok(Assembled {
                whole,
                ..Assembled::default()
            });
        }
        let taken = self.take_pages(pages, now)?;
        Ok(Assembled {
            tidied: taken.pages == 0 && taken.whole.is_none() && self.tidy(pages, now)? > 0,
            ..taken
        })
    }

    /// Takes pages into their sessions, in order, until one makes a session whole.
    fn take_pages(&mut self, limit: usize, now: Millis) -> Result<Assembled, StoreError> {
        let mut assembled = Assembled::default();
        let mut taken_through = self.taken_through()?;
        while assembled.pages < limit && assembled.whole.is_none() {
            let Some(waiting) = self.next_waiting(taken_through)? else {
                break;
            };
            let (seq, is_refused) = (waiting.seq, waiting.is_refused);
            match self.take(waiting, now)? {
                Taken::Waits => {
                    assembled.whole = self.whole_session()?.map(Box::new);
                    break;
                }
                Taken::Whole => assembled.whole = self.whole_session()?.map(Box::new),
                Taken::Held => {}
            }
            taken_through = seq;
            assembled.pages += 1;
            assembled.notes += usize::from(is_refused);
        }
        if assembled.pages > 0 {
            self.connection
                .prepare_cached(
                    "INSERT INTO meta (key, value) VALUES ('taken_through', ?1) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
                )?
                .execute([taken_through])?;
        }
        Ok(assembled)
    }

    fn taken_through(&self) -> Result<i64, StoreError> {
        Ok(self
            .connection
            .prepare_cached("SELECT CAST(value AS BIGINT) FROM meta WHERE key = 'taken_through'")?
            .query_row((), |row| row.get(0))
            .optional()?
            .unwrap_or(0))
    }

    fn next_waiting(&self, after: i64) -> Result<Option<Waiting>, StoreError> {
        Ok(self
            .connection
            .prepare_cached(
                "SELECT seq, source, project_id, cohort_id, cohort_name, action, session_id, page, total_pages, received_at, fingerprint, length(roster) = 0, identified_by, received, is_refused
                 FROM inbox WHERE seq > ?1 ORDER BY seq LIMIT 1",
            )?
            .query_row([after], Waiting::from_row)
            .optional()?)
    }

    /// Takes one page into its session.
    fn take(&mut self, waiting: Waiting, now: Millis) -> Result<Taken, StoreError> {
        let habits = self.hear_source(&waiting.cohort.source, waiting.received_at)?;
        let cohort = self.cohort(
            &waiting.cohort,
            waiting.cohort_name.as_deref(),
            &waiting.identified_by,
            waiting.received_at,
        )?;
        let half = Half::of(waiting.action);
        let place = waiting.session_id.clone().zip(waiting.page_info);
        let book = self.book(cohort)?;
        let is_full_sync = half.is_none() && place.is_some();
        if !book.is_followed && !is_full_sync {
            tracing::info!(
                source = %waiting.cohort.source, cohort_id = %waiting.cohort.cohort_id,
                action = %waiting.action, members = waiting.received,
                "page set aside: the cohort is retired, and only a whole full sync brings it back"
            );
            self.drop_page(waiting.seq)?;
            return Ok(Taken::Held);
        }
        if book.is_followed
            && habits.is_over(book.run_heard_at, waiting.received_at)
            && self.close_run(cohort, &book, now)?
        {
            return Ok(Taken::Waits);
        }
        let is_whole = match (half, place) {
            (_, None) => self.take_alone(&waiting, cohort, now)?,
            (None, Some(_)) if waiting.is_refused => {
                self.drop_page(waiting.seq)?;
                false
            }
            (None, Some((session_id, info))) => {
                self.take_full(&waiting, cohort, &session_id, info, habits, now)?
            }
            (Some(half), Some((session_id, info))) => {
                self.take_half(&waiting, cohort, half, &session_id, info, book, habits, now)?
            }
        };
        Ok(if is_whole { Taken::Whole } else { Taken::Held })
    }

    /// A page without a session or without a place in it is complete in itself.
    fn take_alone(
        &mut self,
        waiting: &Waiting,
        cohort: CohortRef,
        now: Millis,
    ) -> Result<bool, StoreError> {
        if waiting.action == Action::Members {
            tracing::warn!(
                source = %waiting.cohort.source,
                cohort_id = %waiting.cohort.cohort_id,
                "a full sync without page_info or session id only adds: nothing proves that all its pages came, so nobody leaves"
            );
        }
        if waiting.is_empty || waiting.is_refused {
            self.drop_page(waiting.seq)?;
            return Ok(false);
        }
        let effect = Effect::of_page_alone(waiting.action);
        let session = self.insert_session(cohort, waiting, State::Whole, effect, 1, 0)?;
        self.hold(session, 1, waiting)?;
        self.mark_whole(session, waiting.seq, now)?;
        Ok(true)
    }
}

/// What became of a page of the inbox.
enum Taken {
    /// It was taken, and made a session whole.
    Whole,
    /// It was taken.
    Held,
    /// It was not: the run before it is over, and what that leaves is to be applied first.
    Waits,
}

/// A page in the inbox, without its people.
pub(super) struct Waiting {
    pub(super) seq: i64,
    pub(super) cohort: CohortKey,
    pub(super) cohort_name: Option<String>,
    pub(super) action: Action,
    pub(super) session_id: Option<String>,
    pub(super) page_info: Option<PageInfo>,
    pub(super) received_at: Millis,
    pub(super) fingerprint: Fingerprint,
    /// Nobody on it can be used.
    pub(super) is_empty: bool,
    pub(super) identified_by: String,
    /// Members, usable or not.
    pub(super) received: i64,
    pub(super) is_refused: bool,
}

impl Waiting {
    fn from_row(row: &Row<'_>) -> Result<Self, DatabaseError> {
        let action: String = row.get(5)?;
        let number: Option<u32> = row.get(7)?;
        let total: Option<u32> = row.get(8)?;
        Ok(Waiting {
            seq: row.get(0)?,
            cohort: CohortKey {
                source: SourceName::from(row.get::<String>(1)?.as_str()),
                project_id: row.get(2)?,
                cohort_id: row.get(3)?,
            },
            cohort_name: row.get(4)?,
            action: action_from(&action)?,
            session_id: row.get(6)?,
            page_info: number
                .zip(total)
                .map(|(number, total)| PageInfo { number, total }),
            received_at: row.get(9)?,
            fingerprint: row.get(10)?,
            is_empty: row.get(11)?,
            identified_by: row.get(12)?,
            received: row.get(13)?,
            is_refused: row.get(14)?,
        })
    }
}

/// An action as stored.
pub fn action_from(word: &str) -> Result<Action, DatabaseError> {
    Action::parse(word).ok_or_else(|| DatabaseError::Damaged(format!("{word:?} is no action")))
}

/// How many members a page could not use, as stored: `missing 3,blank 1`.
fn stored_set_aside(set_aside: &[(SetAside, usize)]) -> String {
    let words: Vec<_> = set_aside
        .iter()
        .map(|(reason, members)| format!("{} {members}", reason.as_str()))
        .collect();
    words.join(",")
}

/// The stored form read back, as reasons' words.
pub(super) fn set_aside_from(stored: &str) -> impl Iterator<Item = (&str, i64)> {
    stored.split(',').filter_map(|word| {
        let (reason, members) = word.split_once(' ')?;
        Some((reason, members.parse().ok()?))
    })
}
