//! The service from outside.
mod contract;
mod flagsmith;
mod ledger_model;
mod support;
