//! The service from outside.
mod contract;
mod documents;
mod flagsmith;
mod ledger_model;
mod support;
