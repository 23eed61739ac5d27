//! What a coordinator process reads back from the journal of an earlier one.

use std::collections::{BTreeMap, BTreeSet};

use proto::v1;

use crate::{
    checkpoint::Checkpoint,
    data::DataChange,
    guard::TriggeredRule,
    lineage::BranchPoints,
    model_selection::Scores,
    plan::{Boundaries, Position, SelectedSteps},
    term_log::TermLog,
};

/// The means of a step's measurements, by name.
pub type StepMeans = BTreeMap<String, f64>;

/// The state of a run as read from the journal of an earlier coordinator.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RestoredRun {
    /// The run's id; random.
    pub run_id: String,
    /// Which term (coordinator process) formed which generation.
    pub term_log: TermLog,
    /// The number of the last generation; 0 if there was none.
    pub last_generation: u64,
    /// Decides which states belong to the present history.
    pub branch_points: BranchPoints,
    /// The furthest committed position.
    pub committed: Position,
    /// Checkpoints that are not deleted, in order.
    pub checkpoints: Vec<Checkpoint>,
    /// The last checkpoint of each stage that ended with an earlier state.
    pub superseded_checkpoints: Vec<Checkpoint>,
    /// Names of further checkpoints of this run that are incomplete or were about to be deleted.
    /// Found by listing the checkpoint folder; the journal does not have them.
    pub unfinished_checkpoints: BTreeSet<String>,
    /// The boundaries that the present history has passed.
    pub passed_boundaries: Boundaries,
    /// The scores of the present history's evaluations.
    pub scores: Scores,
    /// The means of the last steps of the current stage, as many as its guard needs.
    pub step_means: Vec<(Position, StepMeans)>,
    /// The stages that ended early, each with the step of the state that it ended with.
    pub selected_steps: SelectedSteps,
    /// The guard rules with `action: rollback` that have fired in the present history, each with
    /// the position of the step or evaluation.
    pub rollbacks: Vec<(Position, TriggeredRule)>,
    /// Why the run is paused; none if it is not.
    pub pause_reason: Option<String>,
    /// The fingerprints and sizes of the workers' data; none if no worker has ever attached.
    pub data_set: Option<v1::DataSet>,
    /// Changes of the training data, in order.
    pub data_changes: Vec<DataChange>,
    /// Whether the run is complete.
    pub is_finished: bool,
}
