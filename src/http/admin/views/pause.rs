//! The answer to pausing and resuming.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The answer to `pause` and `resume`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PauseReply {
    /// Whether it is paused now.
    pub paused: bool,
    /// Traits that wait, or that will be written.
    pub pending: u64,
}
