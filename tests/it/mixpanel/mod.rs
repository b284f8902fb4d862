//! A simulated Mixpanel, in virtual time.
//!
//! It follows the documented protocol: every 30 minutes a sync of the cohort as it is then, as
//! differences against the snapshot of the last sync that *it* judged successful; page after page,
//! each tried again 5 times within 60 s; a sync of which a page never got its 200 has failed,
//! leaves the snapshot alone, and starts from the top at the next run; a snapshot lives 3 days,
//! after that the whole cohort is sent. What is not documented is a [`knobs::Knobs`]; what goes
//! wrong on the way is a [`network::Faults`].
//!
//! [`connection::Connection`] drives one cohort into a [`connection::Receiver`];
//! [`evidence::History`] remembers what was sent and what of it arrived, and tells for each person
//! who ends wrong whether the receiver could have known.

pub mod connection;
pub mod evidence;
pub mod knobs;
pub mod network;
pub mod protocol;
