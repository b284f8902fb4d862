//! What becomes of the people behind one identifier. Pure.
//!
//! A trait is `true` while any person who goes by its identifier is a member. So everything is
//! worked out an identifier at a time: its rows in the ledger and what the sessions say of it go
//! in, changed rows and at most one change of the trait come out.

use crate::layers::{Mark, Named, settle};
use crate::roster::PersonHash;
use crate::sorted::Roles;
use crate::store::{ChunkLayer, Effect, OWN_ROLE};

/// What a person is to a cohort, as stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// Left it.
    Left,
    /// Left it; the trait stays by an operator's decision.
    Kept,
    /// Left it; the trait stays until an operator decides.
    Held,
    /// In it.
    Member,
}

impl Standing {
    /// As stored.
    pub fn from_stored(stored: i64) -> Self {
        match stored {
            0 => Standing::Left,
            1 => Standing::Member,
            2 => Standing::Held,
            _ => Standing::Kept,
        }
    }

    /// The stored form.
    pub const fn stored(self) -> i64 {
        match self {
            Standing::Left => 0,
            Standing::Member => 1,
            Standing::Held => 2,
            Standing::Kept => 3,
        }
    }

    /// Whether the trait is `true`.
    pub fn is_wanted(self) -> bool {
        self != Standing::Left
    }

    fn is_member(self) -> bool {
        self == Standing::Member
    }
}

/// A person behind the identifier at hand.
#[derive(Clone, Debug)]
pub struct Person {
    /// Who; `None`: the identifier is the person.
    pub person: Option<PersonHash>,
    /// Under whom the row is kept, where there is one; another where nobody was known behind the
    /// identifier until now.
    pub stored_as: Option<PersonHash>,
    /// Before; `None` where nothing was known.
    pub was: Option<Standing>,
    /// After.
    pub now: Option<Standing>,
    /// In which of the sessions they are named.
    pub roles: Roles,
    /// What the layers' marks were, by layer.
    pub marks: Vec<Option<Mark>>,
    /// What they are now, where that differs: the layer and the mark.
    pub new_marks: Vec<(usize, Option<Mark>)>,
}

impl Person {
    /// Somebody of whom the ledger says so.
    pub fn known(person: Option<PersonHash>, was: Standing) -> Self {
        Person {
            was: Some(was),
            now: Some(was),
            ..Person::unknown(person)
        }
    }

    /// Somebody of whom the ledger knows nothing.
    pub fn unknown(person: Option<PersonHash>) -> Self {
        Person {
            person,
            stored_as: person,
            was: None,
            now: None,
            roles: 0,
            marks: Vec::new(),
            new_marks: Vec::new(),
        }
    }
}

/// Lets the sessions speak of one person.
pub fn decide(person: &mut Person, effect: Effect, layers: &[ChunkLayer], holds_removals: bool) {
    let word = effect.word(person.roles & OWN_ROLE != 0);
    let is_named = person.roles != 0;
    if !is_named && effect != Effect::Replace {
        return;
    }
    let mut named: Vec<Named> = Vec::new();
    let mut indexes: Vec<usize> = Vec::new();
    for (index, layer) in layers.iter().enumerate() {
        if person.roles & (1 << index) != 0 {
            indexes.push(index);
            named.push(Named {
                half: layer.half,
                mark: person.marks.get(index).copied().flatten(),
                is_dropped: layer.is_dropped,
            });
        }
    }
    let is_member = person.was.is_some_and(Standing::is_member);
    let is_member = settle(is_member, &mut named, word);
    for (index, layer) in indexes.into_iter().zip(&named) {
        let before = person.marks.get(index).copied().flatten();
        if !layer.is_dropped && layer.mark != before {
            person.new_marks.push((index, layer.mark));
        }
    }
    person.now = match (is_member, person.was) {
        (true, _) => Some(Standing::Member),
        // Nothing is known, and nobody says that they left: a layer that is taken back, say.
        (false, None) if person.roles & OWN_ROLE == 0 => None,
        (false, None) => Some(Standing::Left),
        (false, Some(Standing::Left)) => Some(Standing::Left),
        (false, Some(Standing::Member)) if holds_removals => Some(Standing::Held),
        (false, Some(Standing::Member)) => Some(Standing::Left),
        // A full sync makes every hold moot, and is judged by the guard itself.
        (false, Some(_)) if effect == Effect::Replace && holds_removals => Some(Standing::Held),
        (false, Some(_)) if effect == Effect::Replace => Some(Standing::Left),
        (false, Some(held)) => Some(held),
    };
}

/// What an identifier is to a cohort: the most that any of its people is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// Before; `None` where nothing was known.
    pub was: Option<Standing>,
    /// After.
    pub now: Option<Standing>,
}

impl Change {
    /// Of an identifier's people.
    pub fn of(people: &[Person]) -> Self {
        Change {
            was: people.iter().filter_map(|person| person.was).max(),
            now: people.iter().filter_map(|person| person.now).max(),
        }
    }

    /// Whether a destination has to hear of it.
    pub fn moves_trait(self) -> bool {
        let (was, now) = (
            self.was.map(Standing::is_wanted),
            self.now.map(Standing::is_wanted),
        );
        now.is_some() && was != now
    }

    /// Whether the trait is taken away.
    pub fn is_removal(self) -> bool {
        self.was.is_some_and(Standing::is_wanted) && !self.now.is_some_and(Standing::is_wanted)
    }
}
