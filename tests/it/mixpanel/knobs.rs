//! What Mixpanel's documentation leaves open.

/// One choice for each open question. All of them must be got along with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Knobs {
    /// Both halves of a run carry the same session id.
    pub one_session_id: bool,
    /// A sync that starts again after a failure keeps its session id.
    pub same_id_on_restart: bool,
    /// `remove_members` goes before `add_members`.
    pub removes_first: bool,
    /// The first contact is `add_members` with everybody, not `members`.
    pub first_contact_adds: bool,
    /// Ids are JSON numbers (members' above 2^53), not strings.
    pub number_ids: bool,
    /// The numbers of `page_info` are strings.
    pub quoted_page_info: bool,
    /// A half with nobody in it is not sent. Documented is that it is; not everybody saw it.
    pub leaves_out_empty_halves: bool,
    /// When one half has failed, the other is still sent.
    pub goes_on_after_failure: bool,
}

impl Knobs {
    /// Every combination.
    pub fn all() -> impl Iterator<Item = Knobs> {
        (0..=u8::MAX).map(Knobs::from_bits)
    }

    /// The combination in which bit *n* turns the *n*th knob.
    pub fn from_bits(bits: u8) -> Self {
        let bit = |number: u8| bits & (1 << number) != 0;
        Knobs {
            one_session_id: bit(0),
            same_id_on_restart: bit(1),
            removes_first: bit(2),
            first_contact_adds: bit(3),
            number_ids: bit(4),
            quoted_page_info: bit(5),
            leaves_out_empty_halves: bit(6),
            goes_on_after_failure: bit(7),
        }
    }
}
