//! The service from outside.
mod contract;
mod documents;
mod flagsmith;
mod fold;
mod ledger_model;
mod support;
