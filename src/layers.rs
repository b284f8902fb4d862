//! What a person's membership is, when halves of runs lie on top of each other. Pure.
//!
//! The last accepted run and every tentative half are *layers* on top of the base: each says of the
//! people it names that they are in (`add_members`) or out (`remove_members`). The ledger keeps the
//! sum only. A layer that is taken back must leave everybody as they would be without it, so for
//! each person it is known what lies beneath: the opposite of what the lowest layer says. For
//! Mixpanel sends differences, and who is added was not in its snapshot, whatever the ledger holds:
//! where the two are not of one mind, the snapshot is what the next differences are made against.
//! Only a full sync that lies beneath a layer knows better; where it agrees with the layer, the
//! layer has a [`Mark`] for the person, which is rare enough to be a table of its own.

use crate::cohort::Half;

/// What is remembered of a layer and a person whom it names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// The full sync beneath says the same: taking the layer back changes nothing.
    FoundSo,
    /// A page that stands alone spoke later: the layer says nothing of the person any more.
    Struck,
}

/// A layer that names the person.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Named {
    /// What it says.
    pub half: Half,
    /// What is remembered.
    pub mark: Option<Mark>,
    /// Whether it is taken back now.
    pub is_dropped: bool,
}

/// What the session at hand says of the person.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// Nothing: only a layer names the person.
    None,
    /// One half of a run.
    Half(Half),
    /// A whole full sync: who is in it is in the cohort, and nobody else.
    Full {
        /// Whether the person is in it.
        is_in: bool,
    },
    /// A page that stands alone.
    Alone(Half),
}

/// The membership of a person who `is_member` now, under `layers` that name them, in the order in
/// which they became whole, and under what the session at hand says. The layers' marks are brought
/// up to date.
pub fn settle(is_member: bool, layers: &mut [Named], word: Word) -> bool {
    let base = match word {
        Word::Full { is_in } => is_in,
        Word::None | Word::Half(_) | Word::Alone(_) => base(is_member, layers),
    };
    match word {
        Word::Half(half) => return half.is_member(),
        Word::Alone(half) => {
            for layer in layers {
                layer.mark = Some(Mark::Struck);
            }
            return half.is_member();
        }
        Word::Full { is_in } => {
            for layer in layers.iter_mut().filter(|layer| !layer.is_struck()) {
                layer.mark = (layer.half.is_member() == is_in).then_some(Mark::FoundSo);
            }
        }
        Word::None => {}
    }
    layers
        .iter()
        .rfind(|layer| !layer.is_dropped && !layer.is_struck())
        .map_or(base, |layer| layer.half.is_member())
}

/// The membership beneath all layers.
fn base(is_member: bool, layers: &[Named]) -> bool {
    let lowest = layers.iter().find(|layer| !layer.is_struck());
    lowest.map_or(is_member, |layer| {
        layer.half.is_member() == (layer.mark == Some(Mark::FoundSo))
    })
}

impl Named {
    fn is_struck(&self) -> bool {
        self.mark == Some(Mark::Struck)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Naively: what Mixpanel's snapshot was, and what was said since, as it came.
    #[derive(Default)]
    struct Naive {
        base: bool,
        said: Vec<Said>,
    }

    struct Said {
        half: Half,
        is_struck: bool,
        /// What the snapshot holds where nothing else was said before.
        before: bool,
    }

    impl Naive {
        fn member(&self) -> bool {
            let top = self.said.iter().rfind(|said| !said.is_struck);
            top.map_or(self.base, |said| said.half.is_member())
        }

        fn take_back(&mut self, drops: &[bool]) {
            if let Some(first) = self.said.iter().find(|said| !said.is_struck) {
                self.base = first.before;
            }
            let mut drops = drops.iter();
            self.said.retain(|_| drops.next() != Some(&true));
        }
    }

    #[derive(Clone, Debug)]
    enum Op {
        Half(Half, Vec<bool>),
        Drop(Vec<bool>),
        Full(bool),
        Alone(Half),
    }

    fn op() -> impl Strategy<Value = Op> {
        let half = || prop_oneof![Just(Half::Add), Just(Half::Remove)];
        prop_oneof![
            4 => (half(), prop::collection::vec(any::<bool>(), 8)).prop_map(|(half, drops)| Op::Half(half, drops)),
            1 => prop::collection::vec(any::<bool>(), 8).prop_map(Op::Drop),
            1 => any::<bool>().prop_map(Op::Full),
            1 => half().prop_map(Op::Alone),
        ]
    }

    proptest! {
        #[test]
        fn layers_can_be_taken_back_in_any_order(ops in prop::collection::vec(op(), 1..30)) {
            let mut naive = Naive::default();
            let mut member = false;
            let mut layers: Vec<Named> = Vec::new();
            for op in ops {
                match &op {
                    Op::Half(half, drops) => {
                        for (layer, is_dropped) in layers.iter_mut().zip(drops) {
                            layer.is_dropped = *is_dropped;
                        }
                        member = settle(member, &mut layers, Word::Half(*half));
                        layers.retain(|layer| !layer.is_dropped);
                        layers.push(Named { half: *half, mark: None, is_dropped: false });
                        naive.take_back(drops);
                        naive.said.push(Said { half: *half, is_struck: false, before: !half.is_member() });
                    }
                    Op::Drop(drops) => {
                        for (layer, is_dropped) in layers.iter_mut().zip(drops) {
                            layer.is_dropped = *is_dropped;
                        }
                        member = settle(member, &mut layers, Word::None);
                        layers.retain(|layer| !layer.is_dropped);
                        naive.take_back(drops);
                    }
                    Op::Full(is_in) => {
                        member = settle(member, &mut layers, Word::Full { is_in: *is_in });
                        naive.base = *is_in;
                        for said in &mut naive.said {
                            said.before = *is_in;
                        }
                    }
                    Op::Alone(half) => {
                        member = settle(member, &mut layers, Word::Alone(*half));
                        naive.base = half.is_member();
                        for said in &mut naive.said {
                            said.is_struck = true;
                        }
                    }
                }
                prop_assert_eq!(member, naive.member());
                // The oldest may become part of the base at any time.
                if layers.len() > 4 {
                    layers.remove(0);
                    let said = naive.said.remove(0);
                    if !said.is_struck {
                        naive.base = said.half.is_member();
                    }
                }
            }
        }
    }
}
