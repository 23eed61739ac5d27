//! The records of a run: written to the journal, converted to metrics, and read back when a
//! coordinator restarts.

use std::collections::{BTreeMap, BTreeSet};

use proto::v1;

use super::{
    captions::Item,
    data::DataChange,
    guard::TriggeredRule,
    lineage::BranchPoints,
    membership::Machine,
    model_selection::Scores,
    plan::{Boundaries, Place, StageEnds},
    statistics::StepStatistics,
    terms::TermLog,
};

/// The means of a step's measurements, by name.
pub type StepMeans = BTreeMap<String, f64>;

/// The source of a generation's initial state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A member, by its worker id.
    Member(u32),
    /// A checkpoint, by its name.
    Checkpoint(String),
    /// The run's seed.
    Seed,
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Member(rank) => write!(f, "rank {rank}"),
            Self::Checkpoint(name) => write!(f, "checkpoint {name}"),
            Self::Seed => f.write_str("seed"),
        }
    }
}

/// A complete checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checkpoint {
    /// The point of the run that it holds.
    pub place: Place,
    /// The generation that saved it.
    pub generation: u64,
    /// The run's id at that time; a recovered run gets a new one.
    pub run_id: String,
    /// Its name among the run's checkpoints; see [`Place::checkpoint_name`].
    pub name: String,
    /// The SHA-256 of the parameters, as reported by all members.
    pub parameters_sha256: String,
}

/// The kind of an event: a record other than those with variants of their own in [`Record`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// A worker attached, and is a member.
    Joined,
    /// A member failed: it disconnected, was silent or was evicted.
    Lost,
    /// A member announced that it leaves.
    Leaving,
    /// A member left in order.
    Left,
    /// Committed steps were given up.
    RolledBack,
    /// Steps that no member had reported turned out to be applied.
    Adopted,
    /// A state could not be saved: training is held.
    SaveFailed,
    /// States can be saved again: training continues.
    SavedAgain,
    /// A checkpoint cannot be used.
    Damaged,
    /// The members' parameters differ.
    Diverged,
    /// A stage ended with an earlier state than its last. The cause says whether later states are
    /// given up or not selected.
    StageEnded,
    /// The guard or an operator paused the run.
    Paused,
    /// An operator resumed the run.
    Resumed,
    /// The run is complete.
    Finished,
    /// The run cannot go on.
    Failed,
    /// The coordinator was asked to stop.
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
        Self::Joined,
        Self::Lost,
        Self::Leaving,
        Self::Left,
        Self::RolledBack,
        Self::Adopted,
        Self::SaveFailed,
        Self::SavedAgain,
        Self::Damaged,
        Self::Diverged,
        Self::StageEnded,
        Self::Paused,
        Self::Resumed,
        Self::Finished,
        Self::Failed,
        Self::Stopped,
        Self::SettingsChanged,
        Self::DataChanged,
        Self::Recovered,
    ];

    /// Whether an operator should look into it.
    #[must_use]
    pub fn is_trouble(self) -> bool {
        let good = [
            Self::Joined,
            Self::Leaving,
            Self::Left,
            Self::StageEnded,
            Self::Resumed,
            Self::SavedAgain,
            Self::Finished,
            Self::SettingsChanged,
            Self::DataChanged,
        ];
        !good.contains(&self)
    }

    /// The name in the journal.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Joined => "joined",
            Self::Lost => "lost",
            Self::Leaving => "leaving",
            Self::Left => "left",
            Self::SaveFailed => "save_failed",
            Self::SavedAgain => "saved_again",
            Self::Damaged => "checkpoint_damaged",
            Self::RolledBack => "rollback",
            Self::Adopted => "adopted",
            Self::Diverged => "divergence",
            Self::StageEnded => "stage_ended",
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

/// A record: one fact that the coordinator stores.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// A generation was formed. Durable before any worker is told, so that no number is used twice.
    Formed {
        /// The number of the generation.
        generation: u64,
        /// The term of the coordinator process that formed it.
        term: u64,
        /// The worker id and machine of each member, in order of id.
        members: Vec<(u32, Machine)>,
        /// Why the previous generation ended.
        cause: String,
        /// The point at which it starts.
        start: Place,
        /// The source of its initial state.
        source: Source,
    },
    /// All members of a generation are ready.
    Ready {
        /// The number of the generation.
        generation: u64,
        /// Whether the previous generation ended by failure.
        recovery: bool,
    },
    /// A generation ended.
    Ended {
        /// The number of the generation.
        generation: u64,
        /// Why.
        reason: String,
    },
    /// A step was reported by all members, or by all that can report.
    Step(StepStatistics),
    /// A checkpoint is complete. Durable before training continues.
    Saved(Checkpoint),
    /// A checkpoint is about to be deleted. Durable before the deletion, so that the journal lists
    /// no checkpoint that is gone.
    Deleted(String),
    /// A checkpoint cannot be used. Durable before another one is used instead.
    Damaged(String),
    /// An evaluation is complete. Durable before training continues: the end of a stage depends on
    /// it.
    Evaluated {
        /// The state that was evaluated.
        place: Place,
        /// The last generation that took part.
        generation: u64,
        /// Scores by name.
        metrics: BTreeMap<String, f64>,
        /// All items, by image name.
        items: Vec<Item>,
    },
    /// A guard rule has fired.
    Guard {
        /// The point of the step or evaluation that broke the rule.
        place: Place,
        /// The rule and the value.
        firing: TriggeredRule,
    },
    /// An event of another kind. Decisions are durable before they are carried out.
    Event {
        /// The kind.
        what: EventKind,
        /// The details, as in the journal.
        detail: serde_json::Value,
    },
}

impl Record {
    /// Whether the record has to be on disk before the next action.
    #[must_use]
    pub fn must_be_durable(&self) -> bool {
        match self {
            Self::Formed { .. } | Self::Saved(_) | Self::Deleted(_) | Self::Damaged(_) | Self::Evaluated { .. } => true,
            // Workers that were told that the run is finished do not come back: a coordinator
            // without this record would wait for them.
            Self::Event { what: EventKind::Finished, .. } => true,
            Self::Event { what, .. } => matches!(what, EventKind::StageEnded | EventKind::Paused | EventKind::Resumed),
            Self::Ready { .. } | Self::Ended { .. } | Self::Step(_) | Self::Guard { .. } => false,
        }
    }
}

/// The state of a run as read from the journal of an earlier coordinator.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RestoredRun {
    /// The run's id; random.
    pub run_id: String,
    /// Which term formed which generation.
    pub terms: TermLog,
    /// The number of the last generation; 0 if there was none.
    pub last_generation: u64,
    /// Decides which states belong to the present history.
    pub cuts: BranchPoints,
    /// The furthest committed point.
    pub committed: Place,
    /// Checkpoints that are not deleted, in order.
    pub checkpoints: Vec<Checkpoint>,
    /// The last checkpoint of each stage that ended with an earlier state.
    pub passed_over: Vec<Checkpoint>,
    /// Names of other files of this run in the checkpoint folder: checkpoints that are incomplete
    /// or were to be deleted. Found by listing that folder; the journal does not have them.
    pub unfinished: BTreeSet<String>,
    /// The boundaries that the present history has passed.
    pub done: Boundaries,
    /// The scores of the present history's evaluations.
    pub scores: Scores,
    /// The means of the last steps of the current stage, as many as its guard needs.
    pub measured: Vec<(Place, StepMeans)>,
    /// The stages that ended early.
    pub ends: StageEnds,
    /// Why the run is paused; none if it is not.
    pub paused: Option<String>,
    /// The description of the workers' data; none if no worker ever attached.
    pub data_set: Option<v1::DataSet>,
    /// Earlier training data, in order.
    pub exchanges: Vec<DataChange>,
    /// Whether the run is complete.
    pub finished: bool,
}
