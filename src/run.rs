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
//!    its partner of the same run is whole too, the run is *accepted*.
//! 2. A tentative half whose run is behind us was not accepted: it is *dropped* when the same half
//!    of a later run is whole, or when both halves of a later run are. Not sooner, or traits would
//!    flap: most of its people are named again.
//! 3. Where empty halves are left out, a half alone may be a whole run. Until a source has ever sent
//!    an empty half, a run of which one half is whole, and of whose partner nothing came, is taken
//!    as if the partner had been sent with nobody in it, once the run is over; rules 1 and 2 do the
//!    rest.
//! 4. Every mention of a person tells what Mixpanel's snapshot says of them: who is added was not in
//!    it, who is removed was. So of two mentions of one person, with none in between, the earlier
//!    run was accepted if they say the opposite, and was not if they say the same. One person who
//!    says the same *contradicts* the run, one who says the opposite *confirms* it. An accepted run
//!    that is contradicted and not confirmed is *undone*, and no other with it. The last three
//!    accepted runs ([`UNDOABLE_RUNS`]) can be; what is older is part of the base for good.
//! 5. Sessions that never became whole are mentions too. A run with a page whose last answer was
//!    ours and no 200 was not accepted, nor one whose ids come again with other content; unless
//!    somebody confirms it.
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
//! | add whole, nothing; add whole | the first add dropped (rule 2), or accepted where empty halves are left out (rule 3) |
//! | add whole, remove cut off; add whole | the first add dropped |
//! | add whole, remove cut off; remove whole, and no add where empty halves are left out | the first add dropped once the second run is over |
//! | accepted; the next names nobody again | stays, and is part of the base three runs later |
//! | accepted; the next adds an added member again | undone |
//! | accepted; another; a third adds a member that the first added | the first undone, the second stays |
//! | accepted; the next adds an added member again, but half of its pages never come | undone when any half is next whole |
//! | accepted; the next removes an added member | confirmed |
//! | accepted, then we refuse a retry of its page | undone, unless the page comes once more |
//! | the same id, other content, 30 minutes later | the run began again: the old one is undone; pages that came again before that was known are part of the new one |
//! | the same id, the same content | nothing: a repeat |
//! | half of a run fails, the other half comes again as it was beside a new partner | accepted with that |
//! | full sync begins, difference, full sync whole | the full sync, and the difference on top |
//! | difference begins, full sync, rest of the difference | the full sync |
//!
//! What no rule can know: the reply to a run's very last page is lost, and the next run takes back
//! exactly what it did; or one half never comes at all where empty ones are left out, and the other is
//! taken back before it is sent again. That waits for the next full sync.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::clock::{Millis, millis};
use crate::cohort::Half;

/// A silence of the source after which a run is over. Within a run, no page is more than Mixpanel's
/// 60 s of retries behind the one before it; between runs there are 30 minutes.
pub const PAUSE: Duration = Duration::from_secs(10 * 60);

/// A silence of the cohort after which its run is over though other cohorts of the source were
/// heard of: a little less than Mixpanel's 30 minutes from run to run.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(25 * 60);

/// Accepted runs that can be undone. Most are contradicted by the very next; where that one has
/// failed as well, by one of those after it.
pub const UNDOABLE_RUNS: u32 = 3;

/// What is known of how a source sends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Habits {
    /// It was seen to send a half with nobody in it.
    pub sends_empty_halves: bool,
    /// It was seen to give both halves of a run one session id.
    pub shares_session_ids: bool,
    /// It was seen to begin a run again under its session ids.
    pub reuses_session_ids: bool,
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
    /// Nothing: it is the other half of the same run, or what comes is no half.
    None,
    /// It is of an accepted run: should that be undone?
    Accepted {
        /// A page of it was refused, or its run began again.
        is_doubted: bool,
    },
    /// It is tentative, and its run is behind us.
    Failed {
        /// The same half is whole again, or both are: it goes now.
        is_replaced: bool,
    },
}

/// What becomes of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It stays a layer.
    Stays,
    /// It is taken back.
    Dropped,
}

/// The layers, and what the people of later sessions say for and against their runs.
#[derive(Clone, Debug)]
pub struct Inquiry {
    layers: Vec<Layer>,
    contradicted: BTreeSet<i64>,
    confirmed: BTreeSet<i64>,
}

impl Inquiry {
    /// An inquiry into layers in the order in which they became whole.
    pub fn into(layers: Vec<Layer>) -> Self {
        Inquiry {
            layers,
            contradicted: BTreeSet::new(),
            confirmed: BTreeSet::new(),
        }
    }

    /// A session of `run` names a person as `half`. The uppermost layer before that run that names
    /// the person (bit *n* of `named_by` for layer *n*) is contradicted where it says the same, for
    /// differences against it would not; and confirmed where it says the opposite.
    pub fn hear(&mut self, named_by: u32, half: Half, run: i64) {
        match self.asked(named_by, run) {
            Some(layer) if layer.half == half => self.contradicted.insert(layer.run),
            Some(layer) => self.confirmed.insert(layer.run),
            None => false,
        };
    }

    /// As [`Inquiry::hear`], of the other half of the same run, which had its say when it took
    /// effect: what it confirmed stays confirmed.
    pub fn hear_partner(&mut self, named_by: u32, partner: Layer) {
        if let Some(layer) = self.asked(named_by, partner.run)
            && layer.half != partner.half
        {
            self.confirmed.insert(layer.run);
        }
    }

    fn asked(&self, named_by: u32, run: i64) -> Option<Layer> {
        let mut layers = self.layers.iter().enumerate().rev();
        let asked = layers.find(|(index, layer)| {
            named_by & (1 << index) != 0
                && layer.run < run
                && !matches!(layer.question, Question::Failed { .. })
        });
        asked.map(|(_, layer)| *layer)
    }

    /// What becomes of each layer.
    pub fn verdict(&self) -> Vec<Fate> {
        let is_dropped = |layer: &Layer| match layer.question {
            Question::None => false,
            Question::Accepted { is_doubted } => {
                (is_doubted || self.contradicted.contains(&layer.run))
                    && !self.confirmed.contains(&layer.run)
            }
            Question::Failed { is_replaced } => is_replaced,
        };
        let fate = |layer| {
            if is_dropped(layer) {
                Fate::Dropped
            } else {
                Fate::Stays
            }
        };
        self.layers.iter().map(fate).collect()
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

    fn accepted(run: i64, half: Half) -> Layer {
        Layer {
            half,
            run,
            question: Question::Accepted { is_doubted: false },
        }
    }

    fn failed(is_replaced: bool) -> Layer {
        Layer {
            half: Half::Add,
            run: 2,
            question: Question::Failed { is_replaced },
        }
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
        let run = [accepted(1, Half::Add), accepted(1, Half::Remove)];
        assert_eq!(verdict(&run, &[]), [Fate::Stays; 2]);
        assert_eq!(verdict(&run, &[(0, Half::Add, 3)]), [Fate::Stays; 2]);
        assert_eq!(verdict(&run, &[(1, Half::Add, 3)]), [Fate::Dropped; 2]);
        assert_eq!(verdict(&run, &[(2, Half::Remove, 3)]), [Fate::Dropped; 2]);
        assert_eq!(verdict(&run, &[(1, Half::Remove, 3)]), [Fate::Stays; 2]);
        let both = [(1, Half::Add, 3), (2, Half::Add, 3)];
        assert_eq!(verdict(&run, &both), [Fate::Stays; 2]);
        let own = [(1, Half::Add, 1)];
        assert_eq!(verdict(&run, &own), [Fate::Stays; 2]);
    }

    #[test]
    fn each_run_is_judged_by_itself() {
        let runs = [
            accepted(1, Half::Add),
            accepted(2, Half::Add),
            accepted(3, Half::Remove),
        ];
        assert_eq!(
            verdict(&runs, &[(1, Half::Add, 4)]),
            [Fate::Dropped, Fate::Stays, Fate::Stays]
        );
        // Named by two of them: the later one is asked.
        assert_eq!(
            verdict(&runs, &[(3, Half::Add, 4), (1, Half::Remove, 4)]),
            [Fate::Stays, Fate::Dropped, Fate::Stays]
        );
        assert_eq!(
            verdict(&runs, &[(5, Half::Add, 4)]),
            [Fate::Stays; 3],
            "confirmed"
        );
    }

    #[test]
    fn a_doubted_run_is_undone_unless_somebody_confirms_it() {
        let doubted = Layer {
            question: Question::Accepted { is_doubted: true },
            ..accepted(1, Half::Add)
        };
        assert_eq!(verdict(&[doubted], &[]), [Fate::Dropped]);
        assert_eq!(verdict(&[doubted], &[(1, Half::Remove, 3)]), [Fate::Stays]);
    }

    #[test]
    fn a_failed_half_goes_when_it_is_replaced_and_has_no_say() {
        assert_eq!(verdict(&[failed(false)], &[]), [Fate::Stays]);
        assert_eq!(verdict(&[failed(true)], &[]), [Fate::Dropped]);
        let layers = [accepted(1, Half::Add), failed(true)];
        // Named by both: what failed is passed over.
        assert_eq!(verdict(&layers, &[(3, Half::Add, 3)]), [Fate::Dropped; 2]);
        assert_eq!(
            verdict(&layers, &[(3, Half::Remove, 3)]),
            [Fate::Stays, Fate::Dropped]
        );
        let partner = Layer {
            question: Question::None,
            ..accepted(3, Half::Add)
        };
        assert_eq!(verdict(&[partner], &[(1, Half::Add, 3)]), [Fate::Stays]);
    }

    #[test]
    fn what_the_partner_confirmed_stays_confirmed() {
        let partner = Layer {
            question: Question::None,
            ..accepted(3, Half::Remove)
        };
        let layers = [accepted(1, Half::Add), accepted(2, Half::Remove), partner];
        let mut inquiry = Inquiry::into(layers.to_vec());
        inquiry.hear(1, Half::Add, 3);
        assert_eq!(inquiry.verdict()[0], Fate::Dropped);
        inquiry.hear_partner(0b101, partner);
        assert_eq!(inquiry.verdict(), [Fate::Stays; 3]);
        // It had its say against them when it took effect.
        inquiry.hear_partner(0b110, partner);
        assert_eq!(inquiry.verdict(), [Fate::Stays; 3]);
    }
}
