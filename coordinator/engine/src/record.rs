//! The records of a run: written to the journal, and converted to metrics.

use std::collections::BTreeMap;

use crate::{
    captions::EvaluationItem, checkpoint::Checkpoint, guard::TriggeredRule, membership::Machine, plan::Position,
    statistics::StepStatistics, types::WorkerId,
};

/// The source of the training state that a generation starts from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StateSource {
    /// A member, by its worker id.
    Member(WorkerId),
    /// A checkpoint, by its name.
    Checkpoint(String),
    /// The run's seed: newly initialized parameters.
    Seed,
}

impl std::fmt::Display for StateSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Member(worker_id) => write!(f, "worker {worker_id}"),
            Self::Checkpoint(name) => write!(f, "checkpoint {name}"),
            Self::Seed => f.write_str("seed"),
        }
    }
}

/// The kinds of [`Record::Event`]. The journal stores an event as the name of its kind and a detail
/// in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// A worker attached, and is a member.
    Attached,
    /// A member failed or was evicted.
    Lost,
    /// A member announced that it leaves.
    Leaving,
    /// A member left without a failure.
    Left,
    /// Committed steps were given up.
    RolledBack,
    /// The run moved forward: members had applied steps that are not in the journal, because their
    /// reports or records were lost.
    Adopted,
    /// A checkpoint, or the captions of an evaluation, could not be saved: training waits.
    SaveFailed,
    /// What could not be saved is saved: training continues.
    SavedAgain,
    /// A checkpoint cannot be used.
    Damaged,
    /// The members' parameters differ.
    Diverged,
    /// A stage ended with an earlier state than its last one. The detail `cause` is the name of an
    /// [`EndCause`](crate::model_selection::EndCause).
    StageEndedEarly,
    /// The guard or an operator paused the run.
    Paused,
    /// An operator resumed the run.
    Resumed,
    /// The run is complete.
    Finished,
    /// The run cannot continue.
    Failed,
    /// The coordinator stopped before the end of the run, because it was asked to.
    Stopped,
    /// The run continues with changed settings in its run file.
    SettingsChanged,
    /// The data of a split differ from those before the coordinator's restart.
    DataChanged,
    /// The journal replaces one that was lost or damaged.
    Recovered,
}

impl EventKind {
    /// All kinds of events.
    pub const ALL: [Self; 19] = [
        Self::Attached,
        Self::Lost,
        Self::Leaving,
        Self::Left,
        Self::RolledBack,
        Self::Adopted,
        Self::SaveFailed,
        Self::SavedAgain,
        Self::Damaged,
        Self::Diverged,
        Self::StageEndedEarly,
        Self::Paused,
        Self::Resumed,
        Self::Finished,
        Self::Failed,
        Self::Stopped,
        Self::SettingsChanged,
        Self::DataChanged,
        Self::Recovered,
    ];

    /// Whether an operator should investigate it.
    #[must_use]
    pub fn needs_attention(self) -> bool {
        let routine = [
            Self::Attached,
            Self::Leaving,
            Self::Left,
            Self::StageEndedEarly,
            Self::Resumed,
            Self::SavedAgain,
            Self::Finished,
            Self::SettingsChanged,
            Self::DataChanged,
        ];
        !routine.contains(&self)
    }

    /// The name in the journal.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Attached => "joined",
            Self::Lost => "lost",
            Self::Leaving => "leaving",
            Self::Left => "left",
            Self::SaveFailed => "save_failed",
            Self::SavedAgain => "saved_again",
            Self::Damaged => "checkpoint_damaged",
            Self::RolledBack => "rollback",
            Self::Adopted => "adopted",
            Self::Diverged => "divergence",
            Self::StageEndedEarly => "stage_ended",
            Self::Paused => "paused",
            Self::Resumed => "resumed",
            Self::Finished => "finished",
            Self::Failed => "failed",
            Self::Stopped => "stopped",
            Self::DataChanged => "data_changed",
            Self::Recovered => "recovered",
            Self::SettingsChanged => "settings_changed",
        }
    }
}

/// A record: what happened in the run, or will happen next, as the coordinator stores it in the
/// journal.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// A generation was formed, and its rendezvous begins. Durable before the coordinator sends the
    /// generation's number to any worker, so that no number is used twice.
    Formed {
        /// The number of the generation.
        generation: u64,
        /// The term of the coordinator process that formed it.
        term: u64,
        /// The worker id and machine of each member, in order of id.
        members: Vec<(WorkerId, Machine)>,
        /// Why the previous generation ended.
        cause: String,
        /// The position at which it starts.
        start: Position,
        /// The source of its initial state.
        source: StateSource,
    },
    /// All members of a generation are ready: training begins.
    Ready {
        /// The number of the generation.
        generation: u64,
        /// Whether the previous generation ended because of a failure.
        recovery: bool,
    },
    /// A generation ended.
    Ended {
        /// The number of the generation.
        generation: u64,
        /// Why it ended, as a message for display.
        reason: String,
    },
    /// A step was reported by all members, or by all that can still report.
    Step(StepStatistics),
    /// A checkpoint is complete. Durable before training continues.
    Saved(Checkpoint),
    /// The checkpoint with this name will be deleted. Durable before the deletion, so that the
    /// journal never lists a checkpoint that does not exist.
    Deleting(String),
    /// The checkpoint with this name cannot be used. Durable before another one is used instead.
    Damaged(String),
    /// An evaluation is complete. Durable before training continues: the end of a stage depends on
    /// it.
    Evaluated {
        /// The position of the state that was evaluated.
        position: Position,
        /// The last generation that took part.
        generation: u64,
        /// Caption metrics over all images, by name.
        metrics: BTreeMap<String, f64>,
        /// All captions, sorted by image name.
        items: Vec<EvaluationItem>,
    },
    /// A guard rule has fired.
    Guard {
        /// The position of the step or evaluation.
        position: Position,
        /// The rule and the value.
        rule: TriggeredRule,
    },
    /// An event in the course of the run; not to be confused with an input of the state machine,
    /// [`Event`](crate::event::Event). Some kinds are durable: see [`Self::must_be_durable`].
    Event {
        /// The kind.
        kind: EventKind,
        /// The details, as in the journal.
        detail: serde_json::Value,
    },
}

impl Record {
    /// Whether the record has to be on disk before the next action.
    #[must_use]
    pub fn must_be_durable(&self) -> bool {
        match self {
            Self::Formed { .. } | Self::Saved(_) | Self::Deleting(_) | Self::Damaged(_) | Self::Evaluated { .. } => {
                true
            }
            // Workers do not reconnect after the end of the run: a coordinator without this record
            // would wait for them.
            Self::Event { kind: EventKind::Finished, .. } => true,
            Self::Event { kind, .. } => {
                matches!(kind, EventKind::StageEndedEarly | EventKind::Paused | EventKind::Resumed)
            }
            Self::Ready { .. } | Self::Ended { .. } | Self::Step(_) | Self::Guard { .. } => false,
        }
    }
}
