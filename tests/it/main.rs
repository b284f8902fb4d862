//! The service from outside.
mod contract;
mod delivery;
mod disk_full;
mod documents;
mod flagsmith;
mod fold;
mod front_door;
mod kills;
mod ledger;
mod ledger_model;
mod mixpanel;
mod operations;
mod sessions;
mod simulation;
mod support;
