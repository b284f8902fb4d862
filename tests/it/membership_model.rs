//! The rules of runs, naively: a set, a list of layers on top of it, and the obvious code. Nothing
//! is sorted, cut into pieces or remembered in marks; who is a member is looked up from the top.

use std::collections::{BTreeMap, BTreeSet};

use cohort_bridge::clock::Millis;
use cohort_bridge::cohort::Action;

const MINUTE: Millis = 60_000;

/// Accepted runs that can be undone.
const UNDOABLE_RUNS: usize = 3;

pub type People = BTreeSet<u8>;

/// A page, or the note that one was refused.
#[derive(Clone, Debug)]
pub struct Arrival {
    pub action: Action,
    /// Session id, page number, total pages; `None`: it stands alone.
    pub place: Option<(u32, u32, u32)>,
    pub people: People,
    pub is_refused: bool,
}

/// All cohorts of one source.
#[derive(Default)]
pub struct Model {
    pub cohorts: BTreeMap<u8, Cohort>,
    sends_empty: bool,
    shares_ids: bool,
    reuses_ids: bool,
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
    /// The source sent empty halves when the run was last heard of.
    misses_partner: bool,
    refused: BTreeSet<(Action, u32, u32)>,
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
    is_accepted: bool,
    is_doubted: bool,
}

struct Session {
    action: Action,
    id: Option<u32>,
    run: i64,
    began_at: Millis,
    heard_at: Millis,
    total: u32,
    pages: BTreeMap<u32, (People, Millis)>,
    state: State,
    is_closed: bool,
    was_whole: bool,
    is_witness: bool,
    is_left_out: bool,
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
        let awake_since = self.awake_since;
        let mut habits = (self.sends_empty, self.shares_ids, self.reuses_ids);
        self.cohorts
            .entry(cohort)
            .or_default()
            .arrive(now, awake_since, &mut habits, arrival);
        (self.sends_empty, self.shares_ids, self.reuses_ids) = habits;
    }
}

impl Model {
    /// Time passes, and nothing comes.
    pub fn rest(&mut self, now: Millis) {
        let source_is_silent = self.heard_at.is_some_and(|at| now - at > 10 * MINUTE);
        for cohort in self.cohorts.values_mut() {
            if source_is_silent || now - cohort.run_heard_at > 25 * MINUTE {
                cohort.close(now, self.reuses_ids);
            }
        }
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
        self.began_again = None;
    }

    fn arrive(
        &mut self,
        now: Millis,
        awake_since: Millis,
        (sends_empty, shares_ids, reuses_ids): &mut (bool, bool, bool),
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
        let is_over = self.run_heard_at < awake_since || now - self.run_heard_at > 25 * MINUTE;
        if is_over {
            self.close(now, *reuses_ids);
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
        if is_over {
            self.resumed_at = now;
        }
        self.run_heard_at = now;
        let is_empty = total == 1 && people.is_empty() && !is_refused;
        *sends_empty |= is_empty;
        self.misses_partner = *sends_empty;

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
        self.sessions[at].heard_at = now;
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
        if is_stale {
            let says_otherwise = held.is_some_and(|held| held != people);
            *reuses_ids |= says_otherwise || (session.total != 0 && session.total != total);
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
            self.take_effect(at, *reuses_ids);
        }
    }

    fn position(&self, action: Action, id: u32) -> Option<usize> {
        self.sessions
            .iter()
            .position(|session| session.action == action && session.id == Some(id))
    }

    fn begin(
        &mut self,
        action: Action,
        id: Option<u32>,
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
            is_left_out: false,
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
        id: u32,
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
            // Nothing stays of before the silence, and of this pass what lies below the page.
            session
                .pages
                .retain(|page, (_, heard_at)| *heard_at >= began_at && (is_old || *page < number));
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
        if self.began_again.is_some_and(|again| again < run) {
            self.began_again = None;
        }
    }

    fn run_for(
        &mut self,
        action: Action,
        id: u32,
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
            for layer in &mut self.layers {
                layer.is_doubted |= layer.is_accepted && layer.run >= first;
            }
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
        let is_accepted = |at: usize| {
            let mut layers = self.layers.iter();
            layers.any(|layer| layer.session == at && layer.is_accepted)
        };
        let rejoins = |at: usize| {
            let session = &self.sessions[at];
            heard_again(session)
                && session.run < self.run
                && (!is_accepted(at) || self.repeats(session.run) || self.is_half(session.run))
                && !taken.contains(&session.action)
                && !taken.contains(&Action::Members)
        };
        let joining: Vec<usize> = (0..self.sessions.len())
            .filter(|at| is_heard && rejoins(*at))
            .collect();
        for at in joining {
            self.sessions[at].run = self.run;
            for layer in &mut self.layers {
                if layer.session == at {
                    layer.run = self.run;
                    layer.is_accepted = false;
                    layer.is_doubted = false;
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
    fn take_effect(&mut self, at: usize, reuses_ids: bool) {
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
        let has_failed = |layer: &Layer| !layer.is_accepted && layer.run != run;
        let (mut against, mut in_favour) = (BTreeSet::new(), BTreeSet::new());
        for (says, of_run, people) in &words {
            for person in people {
                let top = self.layers.iter().rfind(|layer| {
                    layer.named.contains(person) && layer.run < *of_run && !has_failed(layer)
                });
                if let Some(layer) = top {
                    if layer.adds == *says {
                        against.insert(layer.run);
                    } else {
                        in_favour.insert(layer.run);
                    }
                }
            }
        }
        // What its partner confirmed stays confirmed.
        for partner in self.layers.iter().filter(|layer| layer.run == run) {
            for person in &partner.named {
                let top = self.layers.iter().rfind(|layer| {
                    layer.named.contains(person) && layer.run < run && !has_failed(layer)
                });
                if let Some(layer) = top.filter(|layer| layer.adds != partner.adds) {
                    in_favour.insert(layer.run);
                }
            }
        }
        let completes = self
            .layers
            .iter()
            .any(|layer| layer.run == run && layer.adds != adds);
        let is_out = |layer: &Layer| {
            if layer.is_accepted {
                (layer.is_doubted || self.is_refused(layer.run) || against.contains(&layer.run))
                    && !in_favour.contains(&layer.run)
            } else {
                layer.run != run && (completes || layer.adds == adds)
            }
        };
        let dropped: BTreeSet<usize> = (0..self.layers.len())
            .filter(|index| is_out(&self.layers[*index]))
            .collect();

        let out_again: BTreeSet<usize> = dropped
            .iter()
            .copied()
            .filter(|index| {
                let layer = &self.layers[*index];
                self.repeats(layer.run)
                    || (self.is_refused(layer.run)
                        && (reuses_ids || self.is_under_way(layer.session)))
            })
            .collect();
        self.believe_what_lies_beneath();
        let layers = std::mem::take(&mut self.layers);
        let mut again = Vec::new();
        for (index, layer) in layers.into_iter().enumerate() {
            if dropped.contains(&index) {
                let is_repeated = out_again.contains(&index);
                let session = &mut self.sessions[layer.session];
                session.state = State::Ended;
                session.is_closed = true;
                if is_repeated {
                    again.push((
                        session.action,
                        session.id.take(),
                        session.total,
                        session.pages.clone(),
                    ));
                }
            } else {
                self.layers.push(layer);
            }
        }
        for (action, id, total, mut pages) in again {
            pages.retain(|page, (_, heard_at)| {
                *heard_at >= self.resumed_at
                    && !id.is_some_and(|id| self.refused.contains(&(action, id, *page)))
            });
            if id.is_some() && !pages.is_empty() && self.position(action, id.unwrap()).is_none() {
                let (run, began_at) = (self.run, self.resumed_at);
                let new = self.begin(action, id, total, run, began_at);
                self.sessions[new].pages = pages;
            }
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
            is_accepted: false,
            is_doubted: false,
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
            .filter(|layer| layer.run == self.run && !layer.is_accepted)
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
        for layer in &mut self.layers {
            layer.is_accepted |= layer.run == self.run;
        }
        self.end_oldest();
    }

    /// What was accepted long ago is part of the base.
    fn end_oldest(&mut self) {
        let accepted = self.layers.iter().filter(|layer| layer.is_accepted);
        let runs: BTreeSet<i64> = accepted.map(|layer| layer.run).collect();
        let Some(oldest) = runs.into_iter().rev().nth(UNDOABLE_RUNS) else {
            return;
        };
        while self
            .layers
            .first()
            .is_some_and(|layer| layer.is_accepted && layer.run <= oldest)
        {
            let layer = self.layers.remove(0);
            let session = &mut self.sessions[layer.session];
            session.state = State::Ended;
            session.is_closed = true;
            self.settle(&layer);
        }
    }

    /// Whether the run under way has the session's id.
    fn is_under_way(&self, at: usize) -> bool {
        let id = self.sessions[at].id;
        let mut sessions = self.sessions.iter();
        id.is_some() && sessions.any(|session| session.run == self.run && session.id == id)
    }

    /// Whether the other half of the run was left out.
    fn is_half(&self, run: i64) -> bool {
        let mut sessions = self.sessions.iter();
        sessions.any(|session| session.run == run && session.is_left_out)
    }

    /// A half that was left out of a run that is over counts as sent with nobody in it.
    fn close(&mut self, now: Millis, reuses_ids: bool) {
        if self.misses_partner || now - self.run_began_at > 3 * 24 * 60 * MINUTE {
            return;
        }
        let of_run: Vec<_> = self
            .sessions
            .iter()
            .filter(|session| session.run == self.run && session.action != Action::Members)
            .collect();
        let [only] = of_run[..] else { return };
        if only.state != State::Applied {
            return;
        }
        let (action, run) = (only.action, self.run);
        if self
            .layers
            .iter()
            .any(|layer| layer.run == run && layer.is_accepted)
        {
            return;
        }
        let partner = if action == Action::AddMembers {
            Action::RemoveMembers
        } else {
            Action::AddMembers
        };
        let is_partner_there = self.sessions.iter().any(|session| {
            session.action == partner
                && session.heard_at >= self.run_began_at
                && session.id.is_some()
                && session.run < run
                && !session.is_closed
        });
        if is_partner_there {
            return;
        }
        let at = self.begin(partner, None, 1, run, now);
        self.sessions[at].pages.insert(1, (People::new(), now));
        self.sessions[at].was_whole = true;
        self.sessions[at].is_closed = true;
        self.sessions[at].is_left_out = true;
        self.take_effect(at, reuses_ids);
    }
}
