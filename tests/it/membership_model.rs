//! The rules of runs, naively: a set, a list of layers on top of it, and the obvious code. Nothing
//! is sorted, cut into pieces or remembered in marks; who is a member is looked up from the top.

use std::collections::{BTreeMap, BTreeSet};

use cohort_bridge::clock::Millis;
use cohort_bridge::cohort::Action;

const MINUTE: Millis = 60_000;

pub type People = BTreeSet<u8>;

/// A page, or the note that one was refused.
#[derive(Clone, Debug)]
pub struct Arrival {
    pub action: Action,
    /// Session id, page number, total pages; `None`: it stands alone.
    pub place: Option<(u8, u32, u32)>,
    pub people: People,
    pub is_refused: bool,
}

/// All cohorts of one source.
#[derive(Default)]
pub struct Model {
    pub cohorts: BTreeMap<u8, Cohort>,
    sends_empty: bool,
    shares_ids: bool,
    heard_at: Option<Millis>,
    awake_since: Millis,
}

#[derive(Default)]
pub struct Cohort {
    base: People,
    /// In the order in which they became whole.
    layers: Vec<Layer>,
    /// Whoever was named by anything that took effect.
    pub known: People,
    sessions: Vec<Session>,
    run: i64,
    run_heard_at: Millis,
    resumed_at: Millis,
    run_began_at: Millis,
    /// The first of the runs that the one under way repeats.
    began_again: Option<i64>,
    accepted_run: Option<i64>,
    is_doubted: bool,
    refused: BTreeSet<(Action, u8, u32)>,
    is_retired: bool,
    /// Whether it ever was.
    pub was_retired: bool,
}

#[derive(Clone)]
struct Layer {
    session: usize,
    run: i64,
    adds: bool,
    /// Whom its pages named.
    named: People,
    /// Of those, whom no page that stands alone named later.
    people: People,
    /// Of those, of whom a full sync beneath says the same.
    agreed: People,
    is_refuted: bool,
}

struct Session {
    action: Action,
    id: Option<u8>,
    run: i64,
    began_at: Millis,
    heard_at: Millis,
    total: u32,
    pages: BTreeMap<u32, (People, Millis)>,
    state: State,
    is_closed: bool,
    was_whole: bool,
    is_witness: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Open,
    Applied,
    Ended,
}

impl Session {
    fn is_complete(&self) -> bool {
        self.total > 0 && (1..=self.total).all(|page| self.pages.contains_key(&page))
    }

    fn everybody(&self) -> People {
        let pages = self.pages.iter().filter(|(page, _)| **page <= self.total);
        pages.flat_map(|(_, (people, _))| people.clone()).collect()
    }

    fn all_pages(&self) -> People {
        self.pages
            .values()
            .flat_map(|(people, _)| people.clone())
            .collect()
    }
}

impl Model {
    pub fn arrive(&mut self, cohort: u8, now: Millis, arrival: &Arrival) {
        match self.heard_at {
            Some(before) if now - before <= 10 * MINUTE => {}
            _ => self.awake_since = now,
        }
        self.heard_at = Some(now);
        let (awake_since, mut habits) = (self.awake_since, (self.sends_empty, self.shares_ids));
        self.cohorts
            .entry(cohort)
            .or_default()
            .arrive(now, awake_since, &mut habits, arrival);
        (self.sends_empty, self.shares_ids) = habits;
    }
}

impl Cohort {
    pub fn members(&self) -> People {
        self.known
            .iter()
            .copied()
            .filter(|person| self.is_member(*person))
            .collect()
    }

    pub fn is_member(&self, person: u8) -> bool {
        let top = self
            .layers
            .iter()
            .rfind(|layer| layer.people.contains(&person));
        top.map_or(self.base.contains(&person), |layer| layer.adds)
    }

    /// Everybody leaves, and only a full sync is heard from now on.
    pub fn retire(&mut self) {
        self.is_retired = true;
        self.was_retired = true;
        self.base.clear();
        self.layers.clear();
        for session in &mut self.sessions {
            session.state = State::Ended;
            session.is_closed = true;
            session.is_witness = false;
        }
        self.accepted_run = None;
        self.began_again = None;
        self.is_doubted = false;
    }

    fn arrive(
        &mut self,
        now: Millis,
        awake_since: Millis,
        (sends_empty, shares_ids): &mut (bool, bool),
        arrival: &Arrival,
    ) {
        let Arrival {
            action,
            place,
            people,
            is_refused,
        } = arrival;
        if self.is_retired && !(*action == Action::Members && place.is_some()) {
            return;
        }
        let Some((id, number, total)) = *place else {
            if !is_refused {
                self.hear_alone(*action, people);
            }
            return;
        };
        if *action == Action::Members {
            if !is_refused {
                self.hear_full(id, number, total, people, now, awake_since);
            }
            return;
        }
        let is_over = self.run_heard_at < awake_since || now - self.run_heard_at > 25 * MINUTE;
        if is_over {
            self.resumed_at = now;
        }
        self.run_heard_at = now;
        let is_empty = total == 1 && people.is_empty() && !is_refused;
        *sends_empty |= is_empty;

        let known = self.position(*action, id);
        if known.is_some_and(|at| self.sessions[at].is_closed) {
            return;
        }
        let at = match known {
            Some(at) => at,
            None => {
                let run = self.run_for(*action, id, is_over, shares_ids, now);
                self.supersede(*action);
                self.begin(*action, Some(id), total, run, now)
            }
        };
        if *is_refused {
            self.refused.insert((*action, id, number));
            return;
        }
        self.refused.remove(&(*action, id, number));
        let resumed_at = self.resumed_at;
        let session = &mut self.sessions[at];
        let held = session.pages.get(&number).map(|(held, _)| held);
        let is_repeat = held == Some(people) && session.total == total;
        let is_layer = session.state == State::Applied;
        let is_stale = session.began_at < resumed_at;
        if is_repeat && (is_layer || is_stale) {
            session.pages.insert(number, (people.clone(), now));
            self.accept_pair();
            return;
        }
        let at = if is_layer || is_stale {
            let session = &mut self.sessions[at];
            session.id = None;
            session.is_closed = true;
            if session.state == State::Open {
                session.state = State::Ended;
                session.is_witness = true;
            }
            let (old_run, mut pages) = (session.run, session.pages.clone());
            pages.retain(|page, (_, heard_at)| {
                let stays = if is_stale {
                    *heard_at >= resumed_at
                } else {
                    *page < number
                };
                *page != number && stays
            });
            let run = self.run_again(old_run, now);
            let new = self.begin(*action, Some(id), total, run, now);
            self.sessions[new].pages = pages;
            self.sessions[new].total = 0;
            new
        } else {
            at
        };
        let session = &mut self.sessions[at];
        if session
            .pages
            .get(&number)
            .is_some_and(|(held, _)| held != people)
        {
            session.pages.retain(|page, _| *page < number);
        }
        let is_news = !session.pages.contains_key(&number) || session.total != total;
        session.pages.insert(number, (people.clone(), now));
        session.total = total;
        if is_news && session.is_complete() {
            session.was_whole = true;
            self.take_effect(at, *sends_empty);
        }
    }

    fn position(&self, action: Action, id: u8) -> Option<usize> {
        self.sessions
            .iter()
            .position(|session| session.action == action && session.id == Some(id))
    }

    fn begin(
        &mut self,
        action: Action,
        id: Option<u8>,
        total: u32,
        run: i64,
        began_at: Millis,
    ) -> usize {
        self.refused
            .retain(|(of, under, _)| (*of, Some(*under)) != (action, id));
        self.sessions.push(Session {
            action,
            id,
            run,
            began_at,
            heard_at: began_at,
            total,
            pages: BTreeMap::new(),
            state: State::Open,
            is_closed: false,
            was_whole: false,
            is_witness: false,
        });
        self.sessions.len() - 1
    }

    fn hear_alone(&mut self, action: Action, people: &People) {
        for person in people {
            self.known.insert(*person);
            for layer in &mut self.layers {
                layer.people.remove(person);
            }
            if action == Action::RemoveMembers {
                self.base.remove(person);
            } else {
                self.base.insert(*person);
            }
        }
    }

    fn hear_full(
        &mut self,
        id: u8,
        number: u32,
        total: u32,
        people: &People,
        now: Millis,
        awake_since: Millis,
    ) {
        let known = self.position(Action::Members, id);
        if known.is_some_and(|at| self.sessions[at].is_closed) {
            return;
        }
        let at = known.unwrap_or_else(|| {
            for session in &mut self.sessions {
                if session.action == Action::Members {
                    session.state = State::Ended;
                    session.is_closed = true;
                }
            }
            self.run += 1;
            self.run_began_at = now;
            self.began_again = None;
            self.begin(Action::Members, Some(id), total, self.run, now)
        });
        let session = &mut self.sessions[at];
        if session.heard_at < awake_since || now - session.heard_at > 25 * MINUTE {
            session.began_at = now;
        }
        session.heard_at = now;
        let held = session.pages.get(&number).map(|(held, _)| held);
        if held == Some(people) && session.total == total {
            session.pages.insert(number, (people.clone(), now));
            return;
        }
        if held.is_some_and(|held| held != people) {
            let began_at = session.began_at;
            let is_old = session.pages[&number].1 < began_at;
            session.pages.retain(|page, (_, heard_at)| {
                if is_old {
                    *heard_at >= began_at
                } else {
                    *page < number
                }
            });
        }
        session.pages.insert(number, (people.clone(), now));
        session.total = total;
        session.state = State::Open;
        if !session.is_complete() {
            return;
        }
        session.state = State::Applied;
        let (run, people) = (session.run, session.everybody());
        self.is_retired = false;
        self.known.extend(&people);
        self.base = people;
        self.layers.retain(|layer| layer.run > run);
        for layer in &mut self.layers {
            let says_the_same = |person: &&u8| self.base.contains(person) == layer.adds;
            layer.agreed = layer.people.iter().filter(says_the_same).copied().collect();
        }
        for session in &mut self.sessions {
            if session.action != Action::Members && session.run < run {
                session.state = State::Ended;
                session.is_closed = true;
                session.is_witness = false;
            }
        }
        if self.accepted_run.is_some_and(|accepted| accepted < run) {
            self.accepted_run = None;
            self.is_doubted = false;
        }
        if self.began_again.is_some_and(|again| again < run) {
            self.began_again = None;
        }
    }

    fn run_for(
        &mut self,
        action: Action,
        id: u8,
        is_over: bool,
        shares_ids: &mut bool,
        now: Millis,
    ) -> i64 {
        let of_run = |session: &&Session| session.run == self.run;
        let partner = self
            .sessions
            .iter()
            .filter(of_run)
            .rfind(|session| session.action != action && session.action != Action::Members);
        let shares = partner.map(|partner| partner.id == Some(id));
        *shares_ids |= shares == Some(true);
        let has_half = self
            .sessions
            .iter()
            .filter(of_run)
            .any(|session| session.action == action || session.action == Action::Members);
        let belongs = match shares {
            _ if has_half || self.run == 0 => false,
            Some(true) => true,
            Some(false) if *shares_ids => false,
            _ => !is_over,
        };
        if !belongs {
            self.run += 1;
            self.run_began_at = now;
            self.began_again = None;
        }
        self.run
    }

    fn supersede(&mut self, action: Action) {
        for session in &mut self.sessions {
            if session.action == Action::Members && session.state == State::Applied {
                session.state = State::Ended;
                session.is_closed = true;
            }
            if session.action == action {
                session.is_witness |= session.state == State::Open;
                session.is_closed = true;
                if session.state == State::Open {
                    session.state = State::Ended;
                }
            }
        }
    }

    fn repeats(&self, run: i64) -> bool {
        run < self.run && self.began_again.is_some_and(|first| first <= run)
    }

    fn run_again(&mut self, run: i64, now: Millis) -> i64 {
        if !self.repeats(run) || self.run_began_at < self.resumed_at {
            let first = self
                .began_again
                .filter(|first| *first <= run)
                .unwrap_or(run);
            self.run += 1;
            self.run_began_at = now;
            self.began_again = Some(first);
            self.is_doubted |= self.accepted_run.is_some_and(|accepted| accepted >= first);
            self.accept_pair();
        }
        self.run
    }

    /// Halves of earlier runs of which everything was heard again belong to the run under way.
    fn rejoin(&mut self) {
        let heard_again = |session: &Session| {
            let mut pages = session.pages.range(..=session.total);
            session.state == State::Applied
                && session.action != Action::Members
                && !session.is_closed
                && pages.all(|(_, (_, heard_at))| *heard_at >= self.resumed_at)
        };
        let of_run = |session: &&Session| session.run == self.run;
        let is_heard = self.run_began_at >= self.resumed_at
            || self.sessions.iter().filter(of_run).any(heard_again);
        let taken: Vec<Action> = self
            .sessions
            .iter()
            .filter(of_run)
            .map(|session| session.action)
            .collect();
        let rejoins = |session: &Session| {
            heard_again(session)
                && session.run < self.run
                && (self.accepted_run != Some(session.run) || self.repeats(session.run))
                && !taken.contains(&session.action)
        };
        let joining: Vec<usize> = (0..self.sessions.len())
            .filter(|at| is_heard && rejoins(&self.sessions[*at]))
            .collect();
        for at in joining {
            self.sessions[at].run = self.run;
            for layer in &mut self.layers {
                if layer.session == at {
                    layer.run = self.run;
                }
            }
        }
    }

    fn is_refused(&self, run: i64) -> bool {
        self.sessions.iter().any(|session| {
            session.run == run
                && self
                    .refused
                    .iter()
                    .any(|(action, id, _)| *action == session.action && Some(*id) == session.id)
        })
    }

    /// A half is whole: judge what is there, then put it on top.
    fn take_effect(&mut self, at: usize, sends_empty: bool) {
        let (run, adds) = (
            self.sessions[at].run,
            self.sessions[at].action == Action::AddMembers,
        );
        let people = self.sessions[at].everybody();
        let mut words = vec![(adds, run, people.clone())];
        for session in self.sessions.iter().filter(|session| session.is_witness) {
            let adds = session.action == Action::AddMembers;
            words.push((adds, session.run, session.all_pages()));
        }
        let is_accepted = |layer: &Layer| self.accepted_run == Some(layer.run);
        let is_replaced = |layer: &Layer| !is_accepted(layer) && layer.adds == adds;
        let has_failed = |layer: &Layer| {
            !is_accepted(layer)
                && layer.run != run
                && (sends_empty
                    || layer.is_refuted
                    || self.repeats(layer.run)
                    || self.is_refused(layer.run)
                    || self
                        .sessions
                        .iter()
                        .any(|session| session.run == layer.run && !session.was_whole))
        };
        let (mut against, mut in_favour) = (BTreeSet::new(), BTreeSet::new());
        for (says, of_run, people) in &words {
            for person in people {
                let top = self.layers.iter().enumerate().rfind(|(_, layer)| {
                    layer.named.contains(person) && layer.run < *of_run && !has_failed(layer)
                });
                if let Some((index, layer)) = top {
                    if layer.adds == *says {
                        against.insert(index);
                    } else {
                        in_favour.insert(index);
                    }
                }
            }
        }
        let all = 0..self.layers.len();
        let confirmed = in_favour.iter().map(|index| self.layers[*index].run).max();
        let is_doubted =
            self.is_doubted || self.accepted_run.is_some_and(|run| self.is_refused(run));
        let is_undone = confirmed.is_none()
            && all.clone().any(|index| {
                is_accepted(&self.layers[index]) && (is_doubted || against.contains(&index))
            });
        let is_out = |index: usize| {
            let layer = &self.layers[index];
            let is_confirmed = confirmed.is_some_and(|run| layer.run <= run);
            if is_accepted(layer) {
                return is_undone;
            }
            has_failed(layer) || (!is_confirmed && (is_undone || against.contains(&index)))
        };
        let settled = all
            .clone()
            .filter(|index| is_replaced(&self.layers[*index]) && !is_out(*index))
            .map(|index| self.layers[index].run)
            .max()
            .max(confirmed);
        let mut dropped = BTreeSet::new();
        let mut refuted = BTreeSet::new();
        let mut settling = BTreeSet::new();
        for index in all {
            let layer = &self.layers[index];
            let is_settled = settled.is_some_and(|run| layer.run <= run);
            if is_out(index) && (is_accepted(layer) || is_replaced(layer) || is_settled) {
                dropped.insert(index);
            } else if is_out(index) {
                refuted.insert(index);
            } else if is_settled {
                settling.insert(index);
            }
        }

        let mut over = false;
        self.believe_what_lies_beneath();
        let layers = std::mem::take(&mut self.layers);
        for (index, layer) in layers.into_iter().enumerate() {
            if dropped.contains(&index) || settling.contains(&index) {
                let is_repeated = self.repeats(layer.run);
                let session = &mut self.sessions[layer.session];
                session.state = State::Ended;
                session.is_closed = true;
                if dropped.contains(&index) && is_repeated {
                    session.id = None;
                }
                if self.accepted_run == Some(layer.run) {
                    self.is_doubted = false;
                    over = true;
                }
            }
            if settling.contains(&index) {
                self.settle(&layer);
            } else if !dropped.contains(&index) {
                self.layers.push(Layer {
                    is_refuted: layer.is_refuted || refuted.contains(&index),
                    ..layer
                });
            }
        }
        if over {
            self.accepted_run = None;
        }
        for session in &mut self.sessions {
            session.is_witness = false;
        }
        self.known.extend(&people);
        self.sessions[at].state = State::Applied;
        self.layers.push(Layer {
            session: at,
            run,
            adds,
            named: people.clone(),
            people,
            agreed: People::new(),
            is_refuted: false,
        });
        self.accept_pair();
    }

    /// A difference says what Mixpanel's snapshot was: who is added was not in it. Unless a full sync
    /// came beneath.
    fn believe_what_lies_beneath(&mut self) {
        for layer in self.layers.iter().rev() {
            for person in &layer.people {
                if layer.adds == layer.agreed.contains(person) {
                    self.base.insert(*person);
                } else {
                    self.base.remove(person);
                }
            }
        }
    }

    /// A layer becomes part of the base: whatever lies on top still does.
    fn settle(&mut self, layer: &Layer) {
        for person in &layer.people {
            if layer.adds {
                self.base.insert(*person);
            } else {
                self.base.remove(person);
            }
        }
    }

    fn accept_pair(&mut self) {
        self.rejoin();
        let halves = self
            .layers
            .iter()
            .filter(|layer| layer.run == self.run && self.accepted_run != Some(layer.run))
            .filter(|layer| {
                let session = &self.sessions[layer.session];
                !self
                    .refused
                    .iter()
                    .any(|(action, id, _)| *action == session.action && Some(*id) == session.id)
            })
            .count();
        if halves < 2 {
            return;
        }
        let layers = std::mem::take(&mut self.layers);
        for layer in layers {
            if layer.run == self.run {
                self.layers.push(layer);
            } else {
                let session = &mut self.sessions[layer.session];
                session.state = State::Ended;
                session.is_closed = true;
                self.settle(&layer);
            }
        }
        self.accepted_run = Some(self.run);
        self.is_doubted = false;
    }
}
