//! The start of the records of a recovered journal, which does not have the run's beginning.

use journal::Recovery;
use serde::Serialize;

/// The checkpoint from which a run with a recovered journal resumed. Earlier steps are not
/// recorded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RecoveryStart {
    /// The name of the checkpoint.
    pub checkpoint: String,
    /// The generation that saved it.
    pub generation: u64,
}

impl From<&Recovery> for RecoveryStart {
    fn from(Recovery { checkpoint, generation, .. }: &Recovery) -> Self {
        Self { checkpoint: checkpoint.clone(), generation: *generation }
    }
}
