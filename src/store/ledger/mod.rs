//! The ledger's rules, in SQL: what pages make true, what destinations do not know yet, what is
//! claimed and settled.
//!
//! Everything here runs in a transaction of the one who writes, or reads beside it.

pub(super) mod actions;
pub(super) mod apply;
mod calls;
mod closing;
mod cohorts;
mod erasures;
mod exchange;
mod express;
pub(super) mod inbox;
pub(super) mod keys;
pub(super) mod leads;
pub(super) mod lease;
mod membership;
mod orders;
pub(super) mod pauses;
mod pending;
pub(super) mod people;
pub(super) mod read;
pub mod resyncs;
mod routes;
mod rows;
mod runs;
pub(super) mod sessions;
mod settle;
pub(super) mod state;
mod sweep;
pub(super) mod unproven;
pub mod unwritten;
mod verdicts;
mod walk;
