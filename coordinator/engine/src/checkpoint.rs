//! Checkpoints as the journal lists them.

use crate::plan::Position;

/// A complete checkpoint, as the journal lists it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checkpoint {
    /// The position of the training state that it contains.
    pub position: Position,
    /// The generation that saved it.
    pub generation: u64,
    /// The run's id at that time; a recovered run gets a new one.
    pub run_id: String,
    /// Its name among the run's checkpoints; see [`Position::checkpoint_name`].
    pub name: String,
    /// The SHA-256 of the parameters, as reported by all members.
    pub parameters_sha256: String,
}
