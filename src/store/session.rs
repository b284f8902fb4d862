//! A session as the fold sees it: whole, with the layers that it finds, and piece by piece.

use std::collections::BTreeMap;

use super::{CohortRef, SessionRef};
use crate::cohort::{Action, Half};
use crate::guard::RemovalGuard;
use crate::layers::Word;
use crate::mixpanel::SetAside;
use crate::roster::Roster;
use crate::run::{self, Fate};
use crate::sorted::{Items, Roles};

/// What the fold had to do: see [`Store::assemble`](super::Store::assemble).
#[derive(Clone, Debug, Default)]
pub struct Assembled {
    /// Whether a piece of an operator's order was carried out, and nothing else.
    pub carried_out: bool,
    /// Pages taken, and notes of refused ones.
    pub pages: usize,
    /// Of those, notes.
    pub notes: usize,
    /// The session that waits for [`Store::apply`](super::Store::apply); the last of the pages made it whole, where any
    /// were taken.
    pub whole: Option<Box<WholeSession>>,
    /// Whether there was something to tidy, and nothing else to do.
    pub tidied: bool,
    /// Whether a cohort was renamed, so that there may be something for [`Store::follow_routes`](super::Store::follow_routes).
    pub may_reroute: bool,
}

impl Assembled {
    /// Whether there was anything to do.
    pub fn is_anything(&self) -> bool {
        self.carried_out || self.pages > 0 || self.whole.is_some() || self.tidied
    }
}

/// A session all of whose pages are there.
#[derive(Clone, Debug)]
pub struct WholeSession {
    /// Its number.
    pub session: SessionRef,
    /// Its cohort.
    pub cohort: CohortRef,
    /// What it does to the cohort.
    pub effect: Effect,
    /// Its run.
    pub run: i64,
    /// Whether nobody sent it: the half of a run that was left out, because there is nobody in it.
    pub is_left_out: bool,
    /// Everything up to and with this identifier has been applied.
    pub applied_through: Option<String>,
    /// Numbers of its pages, ascending.
    pub pages: Vec<u32>,
    /// The halves of runs that it finds, in the order in which they became whole.
    pub layers: Vec<FoundLayer>,
    /// Sessions that never became whole, and may speak against the layers.
    pub witnesses: Vec<Witness>,
    /// What becomes of it and of the layers; `None` before it was judged.
    pub judgement: Option<Judgement>,
    /// When its removals are to be held.
    pub guard: Option<RemovalGuard>,
    /// People whose trait is wanted before it takes effect.
    pub population: u64,
    /// Whether its people may have other identifiers than their distinct ids.
    pub maps_people: bool,
}

/// Half of a run that took effect and may be taken back.
#[derive(Clone, Debug)]
pub struct FoundLayer {
    /// Its number.
    pub session: SessionRef,
    /// Numbers of its pages.
    pub pages: Vec<u32>,
    /// What it says and what is asked of it.
    pub layer: run::Layer,
}

/// A session that ended before it was whole.
#[derive(Clone, Debug)]
pub struct Witness {
    /// Its number.
    pub session: SessionRef,
    /// Numbers of its pages.
    pub pages: Vec<u32>,
    /// What it says.
    pub half: Half,
    /// Its run.
    pub run: i64,
}

/// What is decided once before a session takes effect; kept, so that a kill in the middle changes
/// nothing about it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Judgement {
    /// What becomes of each layer, in order.
    pub fates: Vec<Fate>,
    /// Whether those who leave keep their trait until somebody decides.
    pub holds_removals: bool,
}

/// What a whole session does to a cohort.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The session's people are the cohort.
    Replace,
    /// One half of a run.
    Half(Half),
    /// A page that stands alone: its people are (not) in the cohort.
    Alone(Half),
}

impl Effect {
    /// The effect of a session that is told by its pages.
    pub fn of(action: Action) -> Self {
        Half::of(action).map_or(Effect::Replace, Effect::Half)
    }

    /// The effect of a page that stands alone; one of a full sync, which cannot prove to be
    /// everything, only adds.
    pub fn of_page_alone(action: Action) -> Self {
        Effect::Alone(Half::of(action).unwrap_or(Half::Add))
    }

    /// Whether it is a difference that says of its people that they are in.
    pub fn brings_in(self) -> bool {
        matches!(self, Effect::Half(Half::Add) | Effect::Alone(Half::Add))
    }

    /// Whether it is a difference that says of its people that they are out.
    pub fn takes_away(self) -> bool {
        matches!(
            self,
            Effect::Half(Half::Remove) | Effect::Alone(Half::Remove)
        )
    }

    /// What it says of somebody who is (not) in the session.
    pub fn word(self, is_in: bool) -> Word {
        match self {
            Effect::Replace => Word::Full { is_in },
            Effect::Half(half) if is_in => Word::Half(half),
            Effect::Alone(half) if is_in => Word::Alone(half),
            Effect::Half(_) | Effect::Alone(_) => Word::None,
        }
    }
}

/// The role of the session's own people in its chunks; layer *n* of the chunk has bit *n*.
pub const OWN_ROLE: Roles = 1 << 31;

/// Layers that a session can find at most: two of each accepted run that can be undone, two tentative
/// ones of earlier runs and one of its own, and some to be safe.
pub const MOST_LAYERS: usize = 12;

/// A piece of a whole session, in key order.
#[derive(Clone, Debug)]
pub struct Chunk {
    /// The session.
    pub session: SessionRef,
    /// Its cohort.
    pub cohort: CohortRef,
    /// What it does.
    pub effect: Effect,
    /// The layers that have a say, in order.
    pub layers: Vec<ChunkLayer>,
    /// Whether those who leave keep their trait until somebody decides.
    pub holds_removals: bool,
    /// Where the piece begins: behind this identifier.
    pub after: Option<String>,
    /// The people of the piece, ascending.
    pub people: Items,
    /// Whether nobody follows.
    pub last: bool,
    /// Whether the session has taken effect with it: else [`Store::finish`](super::Store::finish) says so.
    pub finishes: bool,
    /// Of all its pages.
    pub recognised: Recognised,
}

/// A layer as a chunk needs it.
#[derive(Clone, Copy, Debug)]
pub struct ChunkLayer {
    /// Its session.
    pub session: SessionRef,
    /// What it says.
    pub half: Half,
    /// Whether it is taken back.
    pub is_dropped: bool,
}

/// Members without a usable identifier who are known by another page, by the reason for which they
/// would be set aside.
pub type Recognised = BTreeMap<SetAside, u64>;

/// The people of a held page.
#[derive(Clone, Debug, Default)]
pub struct PagePeople {
    /// Whoever has an identifier.
    pub roster: Roster,
    /// Those of them whose identifier is not the page's.
    pub recognised: Recognised,
}

/// How far a chunk was applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Applied {
    /// To its end, and that of the session.
    Done,
    /// Everything up to and with this identifier is done.
    Through(String),
}

/// How many people a chunk would take the trait from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counted {
    /// People who leave.
    pub removals: u64,
    /// How far was counted; `None`: to the end.
    pub through: Option<String>,
}
