//! What was sent and what of it arrived: for each person who ends wrong, whether the receiver could
//! have known.
//!
//! A person ends wrong because a run that Mixpanel judged failed took effect here. The runs to
//! blame are the failed ones that say of the person what is wrongly held. If each of them betrayed
//! itself in what reached the receiver, the evidence was there.

use std::collections::BTreeSet;

use cohort_bridge::cohort::Action;

use super::knobs::Knobs;
use super::protocol::{Person, Sync};

/// One page of one half of one run, each counted from 0.
#[derive(Clone, Copy, Debug)]
pub struct PageId {
    pub run: usize,
    pub half: usize,
    pub page: usize,
}

/// How the receiver could have known that somebody is held wrongly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Evidence {
    /// A half of the failed run never became whole, or never came.
    HalfMissing,
    /// The receiver itself refused a page of the failed run for good.
    Refused,
    /// A later run against the same snapshot says again what the failed run had said.
    Contradicted,
    /// None: a page of the failed run arrived after a later run had begun, and nothing on it tells
    /// how old it is.
    Stray,
    /// None: the whole run arrived, its last reply was lost, and no later run contradicts it.
    Silent,
    /// None: of a half of the failed run nothing arrived, where empty halves are left out: it looks as
    /// if there had been nobody in it, and no later run contradicts the other half.
    Unseen,
    /// None: what the later runs say again they say under the failed run's own id and as it said it,
    /// which looks like a repeat on the way.
    Repeat,
    /// None: an accepted run kept the id of the failed one before it, and a relay brought its pages
    /// in another order; which of them are the old run's cannot be told.
    Shuffled,
    /// Neither a failed run nor a relay is to blame. A fault of the receiver.
    Unexplained,
}

impl Evidence {
    /// Whether the messages held it.
    pub fn was_there(self) -> bool {
        self < Evidence::Stray
    }
}

/// Somebody who is in the cohort in one place and not in the other.
#[derive(Clone, Copy, Debug)]
pub struct Wrong {
    /// Who; for the message of a failed assertion.
    #[allow(dead_code)]
    pub person: Person,
    /// Whether they are a member here and not in Mixpanel.
    pub is_ghost: bool,
    /// How it could have been known.
    pub evidence: Evidence,
}

/// Everything that happened on a connection.
pub struct History {
    knobs: Knobs,
    runs: Vec<Run>,
}

struct Run {
    is_full: bool,
    is_accepted: bool,
    halves: Vec<HalfSent>,
}

struct HalfSent {
    action: Action,
    people: BTreeSet<Person>,
    pages: Vec<PageSent>,
    is_relayed: bool,
}

struct PageSent {
    people: Vec<Person>,
    /// Before the next run began.
    arrived_in_time: bool,
    /// After the next run began.
    arrived_as_stray: bool,
    /// At its last attempt.
    is_refused: bool,
}

impl History {
    /// Nothing happened yet.
    pub fn new(knobs: Knobs) -> Self {
        History {
            knobs,
            runs: Vec::new(),
        }
    }

    /// A run begins; returns its number.
    pub fn begin(&mut self, sync: &Sync) -> usize {
        let halves = sync.halves.iter().map(|half| HalfSent {
            action: half.action,
            people: half.pages.iter().flatten().copied().collect(),
            pages: half.pages.iter().map(|page| PageSent::of(page)).collect(),
            is_relayed: false,
        });
        self.runs.push(Run {
            is_full: sync.is_full,
            is_accepted: false,
            halves: halves.collect(),
        });
        self.runs.len() - 1
    }

    /// A run ends.
    pub fn conclude(&mut self, run: usize, is_accepted: bool) {
        self.runs[run].is_accepted = is_accepted;
    }

    /// A relay brings a half, in any order.
    pub fn relayed(&mut self, run: usize, half: usize) {
        self.runs[run].halves[half].is_relayed = true;
    }

    /// A page was refused.
    pub fn refused(&mut self, page: PageId) {
        self.page(page).is_refused = true;
    }

    /// A page arrived.
    pub fn arrived(&mut self, id: PageId) {
        let is_stray = id.run + 1 < self.runs.len();
        let page = self.page(id);
        page.is_refused = false;
        if is_stray {
            page.arrived_as_stray |= !page.arrived_in_time;
        } else {
            page.arrived_in_time = true;
        }
    }

    /// Whether anything arrived of the session of this page.
    pub fn is_heard_of(&self, id: PageId) -> bool {
        let half = &self.runs[id.run].halves[id.half];
        half.pages.iter().any(PageSent::arrived)
    }

    /// Whether the last run was a full sync.
    pub fn last_was_full(&self) -> bool {
        self.runs.last().is_some_and(|run| run.is_full)
    }

    /// Who is wrong after the last run, and whether it could have been known.
    pub fn judge(&self, there: &BTreeSet<Person>, here: &BTreeSet<Person>) -> Vec<Wrong> {
        there
            .symmetric_difference(here)
            .map(|&person| {
                let is_ghost = here.contains(&person);
                Wrong {
                    person,
                    is_ghost,
                    evidence: self.evidence(person, is_ghost),
                }
            })
            .collect()
    }

    /// The weakest evidence of the runs to blame.
    fn evidence(&self, person: Person, is_ghost: bool) -> Evidence {
        (0..self.runs.len())
            .filter(|&run| !self.runs[run].is_accepted && self.runs[run].says(person, is_ghost))
            .filter_map(|run| self.betrayal(run))
            .max()
            .unwrap_or(if self.is_shuffled(person, !is_ghost) {
                Evidence::Shuffled
            } else {
                Evidence::Unexplained
            })
    }

    /// Whether the accepted run that last said so of the person may be shuffled with a failed one.
    fn is_shuffled(&self, person: Person, is_member: bool) -> bool {
        let said = (1..self.runs.len())
            .rfind(|&run| self.runs[run].is_accepted && self.runs[run].says(person, is_member));
        said.is_some_and(|run| {
            self.knobs.same_id_on_restart
                && !self.runs[run - 1].is_accepted
                && self.runs[run].halves.iter().any(|half| half.is_relayed)
        })
    }

    /// How a failed run shows that it failed; `None` where nothing of it arrived.
    fn betrayal(&self, number: usize) -> Option<Evidence> {
        let run = &self.runs[number];
        if !run.pages().any(PageSent::arrived) {
            return None;
        }
        // All runs up to the next that is accepted start from the same snapshot as this one.
        let last = (number + 1..self.runs.len()).find(|&later| self.runs[later].is_accepted);
        let same_snapshot = number + 1..last.map_or(self.runs.len(), |last| last + 1);
        let later = &self.runs[same_snapshot];
        let is_repeated = later.iter().any(|later| later.repeats(run, |_, _| true));
        let has_news = |half: &HalfSent, earlier: &HalfSent| {
            !self.knobs.same_id_on_restart || half.people != earlier.people
        };
        // Once anything differs, it is plain that the run began again.
        let began_again = self.knobs.same_id_on_restart
            && later.iter().any(|later| later.differs_under_its_id(run));
        let is_contradicted = began_again || later.iter().any(|later| later.repeats(run, has_news));
        Some(if run.pages().any(|page| page.arrived_as_stray) {
            Evidence::Stray
        } else if run.pages().any(|page| page.is_refused) {
            Evidence::Refused
        } else if run.halves.iter().any(|half| self.is_visibly_missing(half)) {
            Evidence::HalfMissing
        } else if is_contradicted {
            Evidence::Contradicted
        } else if self.knobs.same_id_on_restart && is_repeated {
            Evidence::Repeat
        } else if run.pages().any(|page| !page.arrived()) {
            Evidence::Unseen
        } else {
            Evidence::Silent
        })
    }

    /// A half of which nothing came is missed only where empty ones are sent too.
    fn is_visibly_missing(&self, half: &HalfSent) -> bool {
        let arrived = half
            .pages
            .iter()
            .filter(|page| page.arrived_in_time)
            .count();
        arrived < half.pages.len() && (arrived > 0 || !self.knobs.leaves_out_empty_halves)
    }

    fn page(&mut self, id: PageId) -> &mut PageSent {
        &mut self.runs[id.run].halves[id.half].pages[id.page]
    }
}

impl Run {
    fn pages(&self) -> impl Iterator<Item = &PageSent> {
        self.halves.iter().flat_map(|half| &half.pages)
    }

    /// Whether the run says of the person that they are (not) a member.
    fn says(&self, person: Person, is_member: bool) -> bool {
        self.halves.iter().any(|half| {
            let is_named = half.people.contains(&person);
            match half.action {
                Action::Members => is_named == is_member,
                Action::AddMembers => is_named && is_member,
                Action::RemoveMembers => is_named && !is_member,
            }
        })
    }

    /// Whether what arrived of this run names somebody whom what arrived of the same half of the
    /// other named.
    fn repeats(&self, other: &Run, counts: impl Fn(&HalfSent, &HalfSent) -> bool) -> bool {
        self.halves.iter().any(|half| {
            let named = half.named_in_time();
            other.halves.iter().any(|earlier| {
                half.action != Action::Members
                    && half.action == earlier.action
                    && !named.is_disjoint(&earlier.named_in_time())
                    && counts(half, earlier)
            })
        })
    }

    /// Whether a page of this run arrived that the same half of the other did not have.
    fn differs_under_its_id(&self, other: &Run) -> bool {
        self.halves.iter().any(|half| {
            other.halves.iter().any(|earlier| {
                let mut arrived = half
                    .pages
                    .iter()
                    .enumerate()
                    .filter(|(_, page)| page.arrived_in_time);
                half.action == earlier.action
                    && earlier.pages.iter().any(PageSent::arrived)
                    && arrived.any(|(index, page)| {
                        half.pages.len() != earlier.pages.len()
                            || earlier.pages[index].people != page.people
                    })
            })
        })
    }
}

impl HalfSent {
    /// Whom the pages named that arrived in time.
    fn named_in_time(&self) -> BTreeSet<Person> {
        let arrived = self.pages.iter().filter(|page| page.arrived_in_time);
        arrived.flat_map(|page| &page.people).copied().collect()
    }
}

impl PageSent {
    fn of(people: &[Person]) -> Self {
        PageSent {
            people: people.to_vec(),
            arrived_in_time: false,
            arrived_as_stray: false,
            is_refused: false,
        }
    }

    fn arrived(&self) -> bool {
        self.arrived_in_time || self.arrived_as_stray
    }
}
