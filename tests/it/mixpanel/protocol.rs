//! What Mixpanel sends and when it takes it for received: a cohort, its snapshot, and the syncs
//! that follow from them. No network.

use std::collections::BTreeSet;

use cohort_bridge::clock::Millis;
use cohort_bridge::cohort::Action;
use fastrand::Rng;
use serde_json::{Value, json};

use super::knobs::Knobs;

/// A person, by number.
pub type Person = u64;

/// How long the snapshot of the last successful sync lives: 3 days.
pub const SNAPSHOT_LIVES_MS: Millis = 3 * 24 * 3_600_000;

/// Numeric ids start here: no double can hold the odd ones.
const FIRST_NUMERIC_ID: u64 = (1 << 53) + 1;

/// People who may ever be in the cohort. Few, so that the same ones come and go again and again.
const POPULATION: Person = 30;

/// One cohort of one Mixpanel connection.
pub struct Mixpanel {
    knobs: Knobs,
    page_size: usize,
    cohort: BTreeSet<Person>,
    snapshot: Option<Snapshot>,
    /// Whether the next sync without a snapshot is a full one whatever the first contact is.
    resumes_in_full: bool,
    export: u32,
}

/// The cohort as the last successful sync sent it.
struct Snapshot {
    taken_at: Millis,
    cohort: BTreeSet<Person>,
}

/// One run: what is to be sent for one state of the cohort.
pub struct Sync {
    /// Whether it is the whole cohort.
    pub is_full: bool,
    /// The cohort when the run began.
    pub cohort: BTreeSet<Person>,
    /// What is sent, in order: the one session of a full sync, or the differences.
    pub halves: Vec<Half>,
    began_at: Millis,
}

/// One session of a run.
pub struct Half {
    /// What it asks for.
    pub action: Action,
    /// Its people, by page. Never without a page.
    pub pages: Vec<Vec<Person>>,
    session_id: String,
}

impl Mixpanel {
    /// A cohort with some people in it, of which nothing was sent yet.
    pub fn new(knobs: Knobs, rng: &mut Rng) -> Self {
        Mixpanel {
            knobs,
            page_size: rng.usize(2..6),
            cohort: (0..POPULATION).filter(|_| rng.bool()).collect(),
            snapshot: None,
            resumes_in_full: false,
            export: 0,
        }
    }

    /// The knobs it was made with.
    pub fn knobs(&self) -> Knobs {
        self.knobs
    }

    /// Who is in the cohort now.
    pub fn cohort(&self) -> &BTreeSet<Person> {
        &self.cohort
    }

    /// Everybody who can be in it.
    pub fn population() -> impl Iterator<Item = Person> {
        0..POPULATION
    }

    /// People come and go. Often nobody does, sometimes many do.
    pub fn churn(&mut self, rng: &mut Rng) {
        let share = [0.0, 0.03, 0.1, 0.3][rng.usize(0..4)];
        for person in Mixpanel::population() {
            if rng.f64() < share && !self.cohort.remove(&person) {
                self.cohort.insert(person);
            }
        }
    }

    /// Somebody disconnects the cohort and connects it again: the next sync is a full one.
    pub fn reconnect(&mut self) {
        self.snapshot = None;
        self.resumes_in_full = true;
    }

    /// What is to be sent now.
    pub fn begin(&mut self, now: Millis) -> Sync {
        if let Some(snapshot) = &self.snapshot
            && now - snapshot.taken_at > SNAPSHOT_LIVES_MS
        {
            self.reconnect();
        }
        let base = match &self.snapshot {
            Some(snapshot) => Some(snapshot.cohort.clone()),
            None if self.resumes_in_full || !self.knobs.first_contact_adds => None,
            None => Some(BTreeSet::new()),
        };
        if !self.knobs.same_id_on_restart {
            self.export += 1;
        }
        let halves = match &base {
            None => vec![self.half(Action::Members, &self.cohort)],
            Some(base) => {
                let joined = self.cohort.difference(base).copied().collect();
                let left = base.difference(&self.cohort).copied().collect();
                let mut halves = vec![
                    self.half(Action::AddMembers, &joined),
                    self.half(Action::RemoveMembers, &left),
                ];
                if self.knobs.removes_first {
                    halves.reverse();
                }
                if self.knobs.leaves_out_empty_halves {
                    halves.retain(|half| half.pages.iter().any(|page| !page.is_empty()));
                }
                halves
            }
        };
        Sync {
            is_full: base.is_none(),
            cohort: self.cohort.clone(),
            halves,
            began_at: now,
        }
    }

    /// The end of a run: whether every page got its 200.
    pub fn conclude(&mut self, sync: Sync, is_accepted: bool) {
        if !is_accepted {
            return;
        }
        self.snapshot = Some(Snapshot {
            taken_at: sync.began_at,
            cohort: sync.cohort,
        });
        if self.knobs.same_id_on_restart {
            self.export += 1;
        }
    }

    fn half(&self, action: Action, people: &BTreeSet<Person>) -> Half {
        let people: Vec<_> = people.iter().copied().collect();
        let mut pages: Vec<_> = people.chunks(self.page_size).map(<[_]>::to_vec).collect();
        if pages.is_empty() {
            pages.push(Vec::new());
        }
        let session_id = if self.knobs.one_session_id {
            format!("export-{}", self.export)
        } else {
            format!("export-{}-{action}", self.export)
        };
        Half {
            action,
            pages,
            session_id,
        }
    }

    /// The request for one page of a half, counted from 0.
    pub fn body(&self, half: &Half, page: usize) -> Vec<u8> {
        let number = |number: u64| match self.knobs.quoted_page_info {
            true => json!(number.to_string()),
            false => json!(number),
        };
        let id = |id: u64| match self.knobs.number_ids {
            true => json!(id),
            false => json!(id.to_string()),
        };
        let members: Vec<_> = half.pages[page]
            .iter()
            .map(|person| {
                let distinct_id: Value = match self.knobs.number_ids {
                    true => json!(FIRST_NUMERIC_ID + person),
                    false => json!(self.identifier(*person)),
                };
                json!({"mixpanel_distinct_id": distinct_id, "email": "p@mail.example"})
            })
            .collect();
        let body = json!({
            "action": half.action.as_str(),
            "parameters": {
                "mixpanel_project_id": id(2_914_407),
                "mixpanel_cohort_id": id(5_518_203),
                "mixpanel_cohort_name": "Trial power users",
                "mixpanel_cohort_description": "",
                "mixpanel_session_id": half.session_id,
                "page_info": {
                    "total_pages": number(half.pages.len() as u64),
                    "page_count": number(page as u64 + 1),
                },
                "members": members,
            },
        });
        body.to_string().into_bytes()
    }

    /// The id of a person, as text.
    pub fn identifier(&self, person: Person) -> String {
        match self.knobs.number_ids {
            true => (FIRST_NUMERIC_ID + person).to_string(),
            false => format!("usr_{person}"),
        }
    }
}
