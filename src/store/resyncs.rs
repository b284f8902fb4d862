//! Writing again what a destination was told already: what is ordered, and how far it is.

use crate::cohort::{DestinationName, SourceName};

/// What is to be written again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ResyncScope {
    /// The traits of one cohort.
    Cohort {
        /// The cohort's source.
        source: SourceName,
        /// Mixpanel's id of it.
        cohort_id: String,
        /// At this destination alone; `None`: wherever the cohort goes.
        destination: Option<DestinationName>,
    },
    /// The traits of every cohort that goes to a destination.
    Destination(DestinationName),
}

/// An order to write again.
#[derive(Clone, Debug, PartialEq)]
pub struct ResyncOrder {
    /// What.
    pub scope: ResyncScope,
    /// Calls a second that it may cause at most; `None`: as many as the destination takes.
    pub max_calls_per_second: Option<f64>,
}

/// How much may be made pending now.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ResyncRoom {
    /// The rate that this is meant for.
    pub max_calls_per_second: Option<f64>,
    /// Identities to be called for.
    pub identities: usize,
    /// Traits; so many are looked at, too.
    pub rows: usize,
    /// Nothing where so many identities are pending that an order made pending; not asked for
    /// [`usize::MAX`].
    pub identities_ahead: usize,
    /// Nothing where so many of their traits are; not asked for [`usize::MAX`].
    pub rows_ahead: usize,
}

/// What a step of a destination's orders came to.
#[derive(Clone, Debug, PartialEq)]
pub enum ResyncStep {
    /// There is no order.
    Idle,
    /// The next order has this rate: the room was meant for another.
    Paced(Option<f64>),
    /// Whatever was made pending has to be delivered first.
    Full,
    /// A piece was made pending.
    BroughtUp {
        /// The order, where this was its first piece.
        begun: Option<ResyncView>,
        /// Identities to be called for who were not before.
        identities: usize,
        /// Their traits.
        rows: usize,
    },
    /// All of an order was written, or was given up as a dead letter.
    Ended(ResyncView),
}

/// How far the orders of a destination are.
#[derive(Clone, Debug, PartialEq)]
pub struct ResyncView {
    /// Which destination.
    pub destination: DestinationName,
    /// The source and Mixpanel's id of the cohort that is being written again; `None`: everything is.
    pub cohort: Option<(SourceName, String)>,
    /// Calls a second that it may cause at most.
    pub max_calls_per_second: Option<f64>,
    /// Traits written again.
    pub done: u64,
    /// Traits that there were when it was ordered.
    pub of: u64,
    /// Orders that wait behind it.
    pub waiting: u64,
}
