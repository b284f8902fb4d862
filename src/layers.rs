//! What a person's membership is, when halves of runs lie on top of each other. Pure.
//!
//! The last accepted run and every tentative half are *layers* on top of the base: each says of the
//! people it names that they are in (`add_members`) or out (`remove_members`). The ledger keeps the
//! sum only. A layer that is taken back must leave everybody as they would be without it, so for
//! each person it is known what lies beneath: the opposite of what the layer says, for Mixpanel
//! sends differences. Where that is not so, the layer has a [`Mark`] for the person, which is rare
//! enough to be a table of its own.

use crate::cohort::Half;

/// What is remembered of a layer and a person whom it names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// The person was already as the layer says: taking it back changes nothing.
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

/// What becomes of the person.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Whether they are a member.
    pub member: bool,
    /// What is to be remembered of the session at hand, where it becomes a layer.
    pub mark: Option<Mark>,
}

/// The membership of a person who `is_member` now, under `layers` that name them, in the order in
/// which they became whole, and under what the session at hand says. The layers' marks are brought
/// up to date.
pub fn settle(is_member: bool, layers: &mut [Named], word: Word) -> Outcome {
    let mut member = match word {
        Word::Full { is_in } => is_in,
        Word::None | Word::Half(_) | Word::Alone(_) => beneath(is_member, layers),
    };
    for layer in layers.iter_mut().filter(|layer| !layer.is_dropped) {
        if layer.mark != Some(Mark::Struck) {
            let says = layer.half.is_member();
            layer.mark = (member == says).then_some(Mark::FoundSo);
            member = says;
        }
    }
    match word {
        Word::None | Word::Full { .. } => Outcome { member, mark: None },
        Word::Half(half) => Outcome {
            member: half.is_member(),
            mark: (member == half.is_member()).then_some(Mark::FoundSo),
        },
        Word::Alone(half) => {
            for layer in layers.iter_mut() {
                layer.mark = Some(Mark::Struck);
            }
            Outcome {
                member: half.is_member(),
                mark: None,
            }
        }
    }
}

/// The membership beneath all layers.
fn beneath(is_member: bool, layers: &[Named]) -> bool {
    layers
        .iter()
        .rev()
        .fold(is_member, |member, layer| match layer.mark {
            None => !layer.half.is_member(),
            Some(Mark::FoundSo | Mark::Struck) => member,
        })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Naively: the base, and the layers as they came; the membership is looked up from the top.
    #[derive(Default)]
    struct Naive {
        base: bool,
        layers: Vec<(Half, bool)>,
    }

    impl Naive {
        fn member(&self) -> bool {
            let top = self.layers.iter().rfind(|(_, is_struck)| !is_struck);
            top.map_or(self.base, |(half, _)| half.is_member())
        }
    }

    #[derive(Clone, Debug)]
    enum Op {
        Half(Half, Vec<bool>),
        Full(bool),
        Alone(Half),
    }

    fn op() -> impl Strategy<Value = Op> {
        let half = || prop_oneof![Just(Half::Add), Just(Half::Remove)];
        prop_oneof![
            4 => (half(), prop::collection::vec(any::<bool>(), 8)).prop_map(|(half, drops)| Op::Half(half, drops)),
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
                let word = match &op {
                    Op::Half(half, drops) => {
                        let mut kept = drops.iter();
                        for (layer, is_dropped) in layers.iter_mut().zip(drops) {
                            layer.is_dropped = *is_dropped;
                        }
                        naive.layers.retain(|_| kept.next() != Some(&true));
                        Word::Half(*half)
                    }
                    Op::Full(is_in) => {
                        naive.base = *is_in;
                        Word::Full { is_in: *is_in }
                    }
                    Op::Alone(half) => Word::Alone(*half),
                };
                let outcome = settle(member, &mut layers, word);
                member = outcome.member;
                layers.retain(|layer| !layer.is_dropped);
                match op {
                    Op::Half(half, _) => {
                        layers.push(Named { half, mark: outcome.mark, is_dropped: false });
                        naive.layers.push((half, false));
                    }
                    Op::Full(_) => {}
                    Op::Alone(half) => {
                        naive.base = half.is_member();
                        for layer in &mut naive.layers {
                            layer.1 = true;
                        }
                    }
                }
                prop_assert_eq!(member, naive.member());
                // The oldest may become part of the base at any time.
                if layers.len() > 4 {
                    layers.remove(0);
                    let (half, is_struck) = naive.layers.remove(0);
                    if !is_struck {
                        naive.base = half.is_member();
                    }
                }
            }
        }
    }
}
