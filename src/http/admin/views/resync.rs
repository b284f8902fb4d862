//! The JSON of the calls about writing again.

use serde::{Deserialize, Deserializer, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::store::ResyncView;

/// The body of the calls that have something written again; a missing key means no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResyncRate {
    /// Calls a second that this may cause at most, below what the destination takes; fractions too.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "above_nought"
    )]
    #[schema(exclusive_minimum = 0)]
    pub max_calls_per_second: Option<f64>,
}

fn above_nought<'de, D: Deserializer<'de>>(rate: D) -> Result<Option<f64>, D::Error> {
    match Option::<f64>::deserialize(rate)? {
        Some(rate) if rate.is_nan() || rate <= 0.0 || rate.is_infinite() => Err(
            serde::de::Error::custom("max_calls_per_second must be more than 0"),
        ),
        rate => Ok(rate),
    }
}

/// The query of the calls about one cohort.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ResyncQuery {
    /// Only at this destination; else wherever the cohort goes.
    pub destination: Option<String>,
}

/// The answer to the calls that have something written again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Pending {
    /// Traits that will be written again, by the cohorts' counters. They become pending little by
    /// little.
    pub pending: u64,
}

/// The answer to the calls that cancel that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Cancelled {
    /// Traits that will not be written again. Whatever an order of everything still reaches is not
    /// among them.
    pub cancelled: u64,
}

/// What is being written again at a destination.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ResyncReply {
    /// Traits written again.
    pub done: u64,
    /// Traits that there were when it was ordered.
    pub of: u64,
    /// Which cohort's; null: everything is.
    #[schema(required)]
    pub cohort: Option<ResyncOf>,
    /// Calls a second that it may cause at most; null: as many as the destination takes.
    #[schema(required)]
    pub max_calls_per_second: Option<f64>,
    /// Orders that wait behind it.
    pub waiting: u64,
}

/// A cohort that is being written again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ResyncOf {
    /// Its source.
    pub source: String,
    /// Mixpanel's id.
    pub cohort_id: String,
}

impl From<&ResyncView> for ResyncReply {
    fn from(view: &ResyncView) -> Self {
        ResyncReply {
            done: view.done,
            of: view.of,
            cohort: view.cohort.as_ref().map(|(source, cohort_id)| ResyncOf {
                source: source.to_string(),
                cohort_id: cohort_id.clone(),
            }),
            max_calls_per_second: view.max_calls_per_second,
            waiting: view.waiting,
        }
    }
}
