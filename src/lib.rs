//! Mixpanel cohorts become boolean traits in Flagsmith.
//!
//! A page comes in at the front door, is written down, and is answered. Later it is folded into
//! what is known. Later still, what Flagsmith does not know yet is delivered. The rooms meet only
//! at the [`store`].
//!
//! # The way of a page
//!
//! 1. [Authenticate](http::authenticate::Authentic): no handler sees a body that did not prove
//!    who sent it.
//! 2. [Receive](http::receive::receive): its time depends on neither the ledger nor Flagsmith.
//! 3. [Parse](mixpanel::parse): only the identifiers are kept.
//! 4. [Append](store::Store::append) to the inbox; on disk before the answer.
//! 5. [Assemble](store::Store::assemble) pages into a [`session`].
//! 6. [Judge](run) which runs Mixpanel counts, and [apply](store::Store::apply) the whole session in
//!    the [`fold`].
//! 7. [Claim](store::Store::exchange) identities whose traits are not as wanted.
//! 8. [Write](flagsmith::Flagsmith::write) all changed traits of one identity in one call, or those
//!    of many [in bulk](flagsmith::Flagsmith::write_bulk).
//! 9. [Settle](store::Settlement): what was proved is known, the rest is asserted again.
#![forbid(unsafe_code)]

pub mod app;
pub mod backoff;
pub mod calls;
pub mod canary;
pub mod check;
pub mod cli;
pub mod clock;
pub mod cohort;
pub mod config;
pub mod demo;
pub mod dispatch;
pub mod flagsmith;
pub mod fold;
pub mod gate;
pub mod guard;
pub mod health;
pub mod http;
pub mod layers;
pub mod leading;
pub mod logging;
pub mod meter;
pub mod metrics;
pub mod mixpanel;
pub mod month;
pub mod moving;
pub mod number;
pub mod operator;
pub mod pace;
pub mod plan;
pub mod planner;
pub mod rate;
pub mod replay;
pub mod rfc3339;
pub mod roster;
pub mod route;
pub mod run;
pub mod secrets;
pub mod session;
pub mod sharing;
pub mod signature;
pub mod sorted;
pub mod standin;
pub mod status;
pub mod store;
pub mod trait_key;
pub mod unproven;
