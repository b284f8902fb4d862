//! What a page does to its session. Pure.
//!
//! A *session* is the set of pages that carry one `mixpanel_session_id` for one source, project,
//! cohort and action. It takes effect when pages 1 to `total_pages` are all there.
//!
//! | what comes | what it does |
//! |---|---|
//! | a page that is not held | it is held |
//! | a page that is held with the same people | nothing |
//! | a page that is held with other people | a new pass: it replaces the old one, pages below it stay, pages above it must come again |
//! | another `total_pages` | the latest counts; held pages stay |
//! | the last missing page | the session is whole: it takes effect |
//! | a change after it took effect | it is open again, and takes effect again when it is whole; a half of a [`run`](crate::run) then begins a run of its own |
//! | a page of a session that a newer one superseded | nothing: its state of the world is older than what is known |
//! | a page of a session that expired | it begins the session again, from nothing |
//!
//! Why not 'the highest page number is there': pages are lost, repeated and reordered, and a full
//! sync with a hole in it proves nothing about who left.
//!
//! Why a new pass keeps the pages below: Mixpanel starts again from the top, so when page *n*
//! comes with other people, the pages before it have come again too (with the same people, or
//! they would have been replaced), and those behind it are still of the old pass.
//!
//! A newer session supersedes an unfinished older one of the same action only: the halves of one
//! run (`add_members`, `remove_members`) may interleave.

use std::collections::BTreeMap;

/// A fingerprint of a page's people.
pub type Fingerprint = [u8; 16];

/// Where a session stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Pages are missing.
    Open,
    /// All pages are there; it waits to take effect.
    Whole,
    /// Half of a run: it took effect, and may be taken back.
    Tentative,
    /// It took effect, and so did its partner where it has one.
    Accepted,
    /// Superseded, expired, taken back, or part of the base for good: nothing changes it any more.
    Ended,
}

/// A session as it is held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// Where it stands.
    pub state: State,
    /// `total_pages`, the latest heard.
    pub total: u32,
    /// What is held, by page number.
    pub pages: BTreeMap<u32, Fingerprint>,
}

/// What to do with a page that arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// It is held already, or too late: drop it.
    Drop,
    /// Hold it; where it `replaces` one, drop that and all pages above it.
    Hold {
        /// Whether it begins a new pass.
        replaces: bool,
    },
}

impl Session {
    /// A session of which nothing came yet.
    pub fn new() -> Self {
        Session {
            state: State::Open,
            total: 0,
            pages: BTreeMap::new(),
        }
    }

    /// Takes in page `number` of `total`.
    pub fn receive(&mut self, number: u32, total: u32, fingerprint: Fingerprint) -> Placement {
        if self.state == State::Ended {
            return Placement::Drop;
        }
        let placement = match self.pages.get(&number) {
            Some(held) if *held == fingerprint => Placement::Drop,
            Some(_) => {
                self.pages.split_off(&number);
                Placement::Hold { replaces: true }
            }
            None => Placement::Hold { replaces: false },
        };
        if placement == Placement::Drop && total == self.total {
            return placement;
        }
        self.pages.insert(number, fingerprint);
        self.total = total;
        self.state = if self.is_complete() {
            State::Whole
        } else {
            State::Open
        };
        placement
    }

    /// Whether the page is held, and nothing else is new on it.
    pub fn repeats(&self, number: u32, total: u32, fingerprint: Fingerprint) -> bool {
        self.total == total && self.pages.get(&number) == Some(&fingerprint)
    }

    /// Whether what is held says otherwise.
    pub fn is_changed_by(&self, number: u32, total: u32, fingerprint: Fingerprint) -> bool {
        let held = self.pages.get(&number);
        (self.total != 0 && self.total != total) || held.is_some_and(|held| *held != fingerprint)
    }

    /// How many of the pages that count are held.
    pub fn pages_received(&self) -> u32 {
        // At most `total`, which is a u32.
        self.pages.range(1..=self.total).count() as u32
    }

    fn is_complete(&self) -> bool {
        let held = u32::try_from(self.pages.len()).unwrap_or(u32::MAX);
        self.total > 0 && held >= self.total && self.pages_received() == self.total
    }
}

impl Default for Session {
    fn default() -> Self {
        Session::new()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A: Fingerprint = [1; 16];
    const B: Fingerprint = [2; 16];
    const DROP: Placement = Placement::Drop;
    const HOLD: Placement = Placement::Hold { replaces: false };
    const REPLACE: Placement = Placement::Hold { replaces: true };

    fn walk(pages: &[(u32, u32, Fingerprint, Placement, State)]) -> Session {
        let mut session = Session::new();
        for (step, (number, total, fingerprint, placement, state)) in pages.iter().enumerate() {
            assert_eq!(
                session.receive(*number, *total, *fingerprint),
                *placement,
                "step {step}"
            );
            assert_eq!(session.state, *state, "step {step}");
        }
        session
    }

    #[test]
    fn any_order_and_repeats() {
        walk(&[
            (3, 3, A, HOLD, State::Open),
            (1, 3, A, HOLD, State::Open),
            (3, 3, A, DROP, State::Open),
            (2, 3, A, HOLD, State::Whole),
        ]);
    }

    #[test]
    fn the_highest_page_is_not_completeness() {
        walk(&[(1, 3, A, HOLD, State::Open), (3, 3, A, HOLD, State::Open)]);
    }

    #[test]
    fn the_latest_total_counts_and_held_pages_stay() {
        walk(&[
            (1, 2, A, HOLD, State::Open),
            (2, 3, A, HOLD, State::Open),
            (3, 3, A, HOLD, State::Whole),
        ]);
        walk(&[
            (1, 3, A, HOLD, State::Open),
            (2, 3, A, HOLD, State::Open),
            (2, 2, A, DROP, State::Whole),
        ]);
    }

    #[test]
    fn a_changed_page_begins_a_new_pass() {
        let session = walk(&[
            (1, 3, A, HOLD, State::Open),
            (2, 3, A, HOLD, State::Open),
            (1, 3, B, REPLACE, State::Open),
            (3, 3, A, HOLD, State::Open),
            (2, 3, A, HOLD, State::Whole),
        ]);
        assert_eq!(session.pages[&1], B);
        walk(&[
            (1, 2, A, HOLD, State::Open),
            (2, 2, A, HOLD, State::Whole),
            (2, 2, B, REPLACE, State::Whole),
        ]);
    }

    #[test]
    fn an_applied_session_opens_again_only_for_news() {
        let mut session = walk(&[(1, 2, A, HOLD, State::Open), (2, 2, A, HOLD, State::Whole)]);
        session.state = State::Accepted;
        assert_eq!(session.receive(1, 2, A), DROP);
        assert_eq!(session.state, State::Accepted);
        assert_eq!(session.receive(1, 2, B), REPLACE);
        assert_eq!(session.state, State::Open);
        assert_eq!(session.receive(2, 2, A), HOLD);
        assert_eq!(session.state, State::Whole);
    }

    #[test]
    fn an_ended_session_stays_ended() {
        let mut session = Session {
            state: State::Ended,
            ..Session::new()
        };
        assert_eq!(session.receive(1, 1, A), DROP);
        assert_eq!(session.state, State::Ended);
    }

    proptest! {
        /// The obvious model: a list of passes, looked at as a whole.
        #[test]
        fn whole_exactly_when_every_page_of_the_pass_is_there(
            arrivals in prop::collection::vec((1_u32..6, 1_u32..6, 0_u8..2), 1..40)
        ) {
            let mut session = Session::new();
            let mut held: Vec<(u32, u8)> = Vec::new();
            for (number, total, content) in arrivals {
                session.receive(number, total, [content; 16]);
                if held.contains(&(number, 1 - content)) {
                    held.retain(|(page, _)| *page < number);
                }
                held.retain(|(page, _)| *page != number);
                held.push((number, content));
                let whole = (1..=total).all(|page| held.iter().any(|(number, _)| *number == page));
                prop_assert_eq!(session.state == State::Whole, whole);
            }
        }
    }
}
