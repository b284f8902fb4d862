//! Which runs of differences Mixpanel took for a success. Pure.
//!
//! # Why
//!
//! A *run* is one `add_members` half and one `remove_members` half, each a session of its own. Both
//! are differences against the last run that *Mixpanel* judged successful, and it never says which
//! that is. A run of which one page failed is computed again, from the same snapshot, half an hour
//! later; whoever had joined in it and left before the next one is then named in neither. Who
//! applies what arrives keeps that person for ever (a *ghost*), or loses one. So what a run did is
//! kept separate until it is known whether Mixpanel counts it.
//!
//! # The rules
//!
//! 1. A half takes effect when all its pages are there, as a *tentative* layer on the base. When
//!    its partner of the same run is whole too, the run is *accepted*; the accepted run before it
//!    becomes part of the base for good.
//! 2. When a half becomes whole and the same half of an earlier run is still tentative, Mixpanel did
//!    not accept that run: its layer is *dropped*. Not sooner, or traits would flap: most of its
//!    people are named again.
//! 3. Only where empty halves are sent is a missing partner a sign. Until a source has ever sent
//!    one, a half of whose partner nothing came is accepted when the same half is next whole;
//!    unless both name the same person, which differences of accepted runs never do.
//! 4. The accepted run is *undone*, exactly that one, where what comes after it contradicts it:
//!    members that it added are added again, or that it removed are removed again. Its last reply
//!    was lost. What says the opposite (members that it added are removed) confirms it instead, and
//!    with it every run before it.
//! 5. Sessions that never became whole are witnesses in 3 and 4, and so is a page that we refused:
//!    a run with a page whose last answer was ours and no 200 was not accepted.
//! 6. A whole full sync is the base, whatever was before. A difference whose run began after the
//!    full sync began lies on top of it; one that began before it is over.
//! 7. Where a person is in both halves, the half that became whole later has the last word. A page
//!    that stands alone (no session id or no `page_info`) is no half: it is believed at once.
//!
//! # Where a run begins
//!
//! Whether the halves share a session id, which comes first, and whether a restart has a new id is
//! not documented. A half belongs to the run under way where its partner there has the same session
//! id; else where that run has no such half yet, and the source was not silent for 10 minutes in
//! between ([`PAUSE`]: within a run the longest wait is Mixpanel's 60 s of retries, between runs it
//! is half an hour). A source that was seen to share ids between halves is held to it. Under the
//! ids of the run before, other content after such a silence is a run that began again: what was
//! not heard again since then is no part of it; and what was heard again, all of it and as it was, is
//! part of the run under way, where it belongs to no accepted run.
//!
//! | what comes | what becomes of it |
//! |---|---|
//! | add whole, remove whole | accepted |
//! | add whole, nothing; add whole | the first add dropped (rule 2), or accepted (rule 3) |
//! | add whole, remove cut off; add whole | the first add dropped |
//! | accepted; the next names nobody again | accepted for good |
//! | accepted; the next adds an added member again | undone |
//! | accepted; the next adds an added member again, but half of its pages never come | undone when any half is next whole |
//! | accepted; the next removes an added member | accepted for good |
//! | accepted, then we refuse a retry of its page | undone, unless the page comes once more |
//! | the same id, other content, 30 minutes later | the run began again: the old one is undone |
//! | the same id, the same content | nothing: a repeat |
//! | half of a run fails, the other half comes again as it was beside a new partner | accepted with that |
//! | full sync begins, difference, full sync whole | the full sync, and the difference on top |
//! | difference begins, full sync, rest of the difference | the full sync |
//!
//! What no rule can know: the reply to a run's very last page is lost, and the next run takes back
//! exactly what it did. That waits for the next full sync.

use std::time::Duration;

use crate::clock::{Millis, millis};
use crate::cohort::Half;

/// A silence of the source after which a run is over. Within a run, no page is more than Mixpanel's
/// 60 s of retries behind the one before it; between runs there are 30 minutes.
pub const PAUSE: Duration = Duration::from_secs(10 * 60);

/// A silence of the cohort after which its run is over though other cohorts of the source were
/// heard of: a little less than Mixpanel's 30 minutes from run to run.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(25 * 60);

/// What is known of how a source sends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Habits {
    /// It was seen to send a half with nobody in it.
    pub sends_empty_halves: bool,
    /// It was seen to give both halves of a run one session id.
    pub shares_session_ids: bool,
    /// When anything of it was last heard.
    pub heard_at: Millis,
    /// When it was heard again after the last silence of [`PAUSE`].
    pub awake_since: Millis,
}

impl Habits {
    /// Something of the source was heard.
    pub fn heard(&mut self, at: Millis) {
        if at - self.heard_at > millis(PAUSE) {
            self.awake_since = at;
        }
        self.heard_at = self.heard_at.max(at);
    }

    /// Whether a run last heard of at `heard_at` is over.
    pub fn is_over(&self, heard_at: Millis, at: Millis) -> bool {
        heard_at < self.awake_since || at - heard_at > millis(LONGEST_PAUSE)
    }
}

/// The run under way, as a half of which nothing came before sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnderWay {
    /// The source was silent since.
    pub is_over: bool,
    /// It has such a half already.
    pub has_half: bool,
    /// Whether its other half has the same session id; `None` where it has no other half.
    pub shares_id: Option<bool>,
}

impl UnderWay {
    /// Whether the half belongs to this run; else it begins the next.
    pub fn takes_in(self, habits: Habits) -> bool {
        if self.has_half {
            return false;
        }
        match self.shares_id {
            Some(true) => true,
            Some(false) if habits.shares_session_ids => false,
            Some(false) | None => !self.is_over,
        }
    }
}

/// A layer as the verdict sees it, before a further half takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layer {
    /// What it says.
    pub half: Half,
    /// Its run.
    pub run: i64,
    /// What is to be decided.
    pub question: Question,
}

/// What is to be decided of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// It is of the accepted run: should that be undone?
    Accepted {
        /// A page of it was refused, or its run began again.
        is_doubted: bool,
    },
    /// It is tentative.
    Tentative {
        /// The same half is whole again: was its run accepted after all?
        is_replaced: bool,
        /// It was not: its partner is missing, where that is a sign, or never became whole; or a
        /// page was refused, or its run began again.
        has_failed: bool,
    },
}

impl Question {
    fn has_failed(self) -> bool {
        matches!(
            self,
            Question::Tentative {
                has_failed: true,
                ..
            }
        )
    }
}

/// What becomes of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It stays a layer.
    Stays,
    /// It is taken back.
    Dropped,
    /// It is part of the base from now on.
    Settled,
    /// It stays a layer, and will be dropped when its half is whole again.
    Refuted,
}

/// The layers, and what the people of later sessions say for and against them.
#[derive(Clone, Debug)]
pub struct Inquiry {
    layers: Vec<Layer>,
    contradicted: Vec<bool>,
    confirmed: Vec<bool>,
}

impl Inquiry {
    /// An inquiry into layers in the order in which they became whole.
    pub fn into(layers: Vec<Layer>) -> Self {
        Inquiry {
            contradicted: vec![false; layers.len()],
            confirmed: vec![false; layers.len()],
            layers,
        }
    }

    /// A session of `run` names a person as `half`. The uppermost layer before that run that names
    /// the person (bit *n* of `named_by` for layer *n*) is contradicted where it says the same, for
    /// differences against it would not; and confirmed where it says the opposite.
    pub fn hear(&mut self, named_by: u32, half: Half, run: i64) {
        let asked = self.layers.iter().enumerate().rev().find(|(index, layer)| {
            named_by & (1 << index) != 0 && layer.run < run && !layer.question.has_failed()
        });
        if let Some((index, layer)) = asked {
            let verdicts = if layer.half == half {
                &mut self.contradicted
            } else {
                &mut self.confirmed
            };
            verdicts[index] = true;
        }
    }

    /// What becomes of each layer.
    pub fn verdict(&self) -> Vec<Fate> {
        let layers = || self.layers.iter().enumerate();
        let confirmed = layers().filter(|(index, _)| self.confirmed[*index]);
        // Whoever builds on a run says that it was accepted, and all before it.
        let confirmed_through = confirmed.map(|(_, layer)| layer.run).max();
        let is_undone = confirmed_through.is_none()
            && layers().any(|(index, layer)| match layer.question {
                Question::Accepted { is_doubted } => is_doubted || self.contradicted[index],
                Question::Tentative { .. } => false,
            });
        let is_confirmed = |layer: &Layer| confirmed_through.is_some_and(|run| layer.run <= run);
        let is_dropped = |index: usize, layer: &Layer| match layer.question {
            Question::Accepted { .. } => is_undone,
            Question::Tentative { has_failed, .. } => {
                // Had it been accepted, so would the run before it have been.
                has_failed || (!is_confirmed(layer) && (is_undone || self.contradicted[index]))
            }
        };
        let replaced = layers().filter(|(index, layer)| match layer.question {
            Question::Tentative { is_replaced, .. } => is_replaced && !is_dropped(*index, layer),
            Question::Accepted { .. } => false,
        });
        let settled_through = replaced
            .map(|(_, layer)| layer.run)
            .max()
            .max(confirmed_through);
        layers()
            .map(|(index, layer)| {
                let is_settled = settled_through.is_some_and(|run| layer.run <= run);
                match layer.question {
                    // Beneath what is settled nothing may be left.
                    Question::Tentative {
                        is_replaced: false, ..
                    } if is_dropped(index, layer) && !is_settled => Fate::Refuted,
                    _ if is_dropped(index, layer) => Fate::Dropped,
                    _ if is_settled => Fate::Settled,
                    _ => Fate::Stays,
                }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Millis = 60_000;

    #[test]
    fn a_silence_ends_a_run_and_other_cohorts_do_not_shorten_it() {
        let mut habits = Habits::default();
        habits.heard(100 * MINUTE);
        assert!(!habits.is_over(100 * MINUTE, 100 * MINUTE));
        habits.heard(105 * MINUTE);
        assert!(!habits.is_over(100 * MINUTE, 105 * MINUTE));
        // Another cohort is heard of all the time.
        for minute in 105..=126 {
            habits.heard(minute * MINUTE);
        }
        assert!(!habits.is_over(102 * MINUTE, 126 * MINUTE));
        assert!(habits.is_over(100 * MINUTE, 126 * MINUTE));
        habits.heard(137 * MINUTE);
        assert!(habits.is_over(126 * MINUTE, 137 * MINUTE));
    }

    #[test]
    fn which_run_a_half_belongs_to() {
        let run = UnderWay {
            is_over: false,
            has_half: false,
            shares_id: Some(false),
        };
        let any = Habits::default();
        let shares = Habits {
            shares_session_ids: true,
            ..any
        };
        assert!(run.takes_in(any));
        assert!(!run.takes_in(shares));
        assert!(
            !UnderWay {
                is_over: true,
                ..run
            }
            .takes_in(any)
        );
        assert!(
            !UnderWay {
                has_half: true,
                ..run
            }
            .takes_in(any)
        );
        let shared = UnderWay {
            is_over: true,
            shares_id: Some(true),
            ..run
        };
        assert!(shared.takes_in(shares));
        let restarted = UnderWay {
            has_half: true,
            ..shared
        };
        assert!(!restarted.takes_in(shares));
    }

    fn accepted(half: Half) -> Layer {
        Layer {
            half,
            run: 1,
            question: Question::Accepted { is_doubted: false },
        }
    }

    fn tentative(half: Half, is_replaced: bool, has_failed: bool) -> Layer {
        Layer {
            half,
            run: 2,
            question: Question::Tentative {
                is_replaced,
                has_failed,
            },
        }
    }

    fn replaced(has_failed: bool) -> Layer {
        tentative(Half::Add, true, has_failed)
    }

    fn verdict(layers: &[Layer], heard: &[(u32, Half, i64)]) -> Vec<Fate> {
        let mut inquiry = Inquiry::into(layers.to_vec());
        for (named_by, half, run) in heard {
            inquiry.hear(*named_by, *half, *run);
        }
        inquiry.verdict()
    }

    #[test]
    fn an_accepted_run_stays_until_it_is_contradicted() {
        let run = [accepted(Half::Add), accepted(Half::Remove)];
        assert_eq!(verdict(&run, &[]), [Fate::Stays; 2]);
        assert_eq!(verdict(&run, &[(0, Half::Add, 3)]), [Fate::Stays; 2]);
        assert_eq!(verdict(&run, &[(1, Half::Add, 3)]), [Fate::Dropped; 2]);
        assert_eq!(verdict(&run, &[(2, Half::Remove, 3)]), [Fate::Dropped; 2]);
        assert_eq!(verdict(&run, &[(1, Half::Remove, 3)]), [Fate::Settled; 2]);
        let both = [(1, Half::Add, 3), (2, Half::Add, 3)];
        assert_eq!(verdict(&run, &both), [Fate::Settled; 2]);
        let own = [(1, Half::Add, 1)];
        assert_eq!(verdict(&run, &own), [Fate::Stays; 2]);
    }

    #[test]
    fn a_doubted_run_is_undone() {
        let doubted = Layer {
            question: Question::Accepted { is_doubted: true },
            ..accepted(Half::Add)
        };
        assert_eq!(verdict(&[doubted], &[]), [Fate::Dropped]);
        assert_eq!(
            verdict(&[doubted, replaced(false)], &[]),
            [Fate::Dropped; 2]
        );
    }

    #[test]
    fn a_replaced_half_was_accepted_where_nothing_speaks_against_it() {
        let layers = [accepted(Half::Add), replaced(false)];
        assert_eq!(verdict(&layers, &[]), [Fate::Settled; 2]);
        assert_eq!(
            verdict(&layers, &[(2, Half::Add, 3)]),
            [Fate::Stays, Fate::Dropped],
        );
        assert_eq!(
            verdict(&layers, &[(2, Half::Remove, 3)]),
            [Fate::Settled; 2]
        );
        // Named by both: the later one has the say.
        assert_eq!(
            verdict(&layers, &[(3, Half::Add, 3)]),
            [Fate::Stays, Fate::Dropped]
        );
        assert_eq!(
            verdict(&[accepted(Half::Add), replaced(true)], &[(3, Half::Add, 3)]),
            [Fate::Dropped; 2]
        );
        assert_eq!(
            verdict(&[accepted(Half::Add), replaced(true)], &[]),
            [Fate::Stays, Fate::Dropped]
        );
    }

    #[test]
    fn the_other_half_waits_for_its_own_turn() {
        let other = tentative(Half::Remove, false, false);
        let layers = [accepted(Half::Add), other];
        assert_eq!(verdict(&layers, &[]), [Fate::Stays; 2]);
        assert_eq!(
            verdict(&layers, &[(2, Half::Remove, 3)]),
            [Fate::Stays, Fate::Refuted]
        );
        assert_eq!(verdict(&layers, &[(2, Half::Add, 3)]), [Fate::Settled; 2]);
        assert_eq!(
            verdict(&layers, &[(1, Half::Add, 3)]),
            [Fate::Dropped, Fate::Refuted]
        );
        // A later run that was accepted settles whatever was before it.
        let earlier = Layer { run: 1, ..other };
        assert_eq!(
            verdict(&[earlier, replaced(false)], &[]),
            [Fate::Settled; 2]
        );
    }
}
