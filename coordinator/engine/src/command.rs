//! Commands of operators.

use crate::types::WorkerId;

/// A command of an operator, from a subcommand such as `coordinator pause` or from the HTTP API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Pause the run after the granted steps.
    Pause,
    /// Resume a paused run.
    Resume,
    /// Save the state at the end of the granted steps.
    Checkpoint,
    /// Evaluate the state at the end of the granted steps.
    Evaluate,
    /// Release the worker with this id after the step in flight.
    Drain(WorkerId),
    /// Save a checkpoint, then end the coordinator. Another coordinator can resume the run.
    Stop,
}
