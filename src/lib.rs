//! Mixpanel cohorts become boolean traits in Flagsmith.
#![forbid(unsafe_code)]

pub mod backoff;
pub mod clock;
pub mod cohort;
pub mod mixpanel;
pub mod rfc3339;
pub mod roster;
pub mod session;
pub mod signature;
pub mod sorted;
pub mod status;
pub mod store;
pub mod trait_key;
