//! What is worth remembering: written to the journal, turned into metrics, and read back when a coordinator restarts.

use std::collections::{BTreeMap, BTreeSet};

use proto::v1;

use super::{
    best::Scores,
    captions::Item,
    cuts::Cuts,
    data::Exchange,
    guard::Firing,
    membership::Machine,
    plan::{Boundaries, Ends, Place},
    statistics::StepStatistics,
    terms::TermLog,
};

/// Means of what was measured in a step, by name.
pub type Means = BTreeMap<String, f64>;

/// Where a generation takes its state from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A member, by its identity rank.
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

/// A saved state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checkpoint {
    /// The point of the run.
    pub place: Place,
    /// The generation that saved it.
    pub generation: u64,
    /// What the run was named when it did.
    pub run_id: String,
    /// What it is called among the run's checkpoints.
    pub name: String,
    /// What all ranks said of their parameters.
    pub parameters_sha256: String,
}

/// Something that happened, besides steps, checkpoints and the like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Happening {
    /// A worker attached.
    Joined,
    /// A member is gone.
    Lost,
    /// A member wants to go.
    Leaving,
    /// A member ended as it should.
    Left,
    /// Committed steps were given up.
    RolledBack,
    /// Steps that nobody reported turned out to be applied.
    Adopted,
    /// A state could not be saved: the run holds.
    SaveFailed,
    /// States can be saved again: the run goes on.
    SavedAgain,
    /// A checkpoint cannot be used.
    Damaged,
    /// The ranks' parameters differ.
    Diverged,
    /// A stage ended with an earlier state than its last. Its cause says whether later states are given up or not selected.
    StageEnded,
    /// The guard has paused the run.
    Paused,
    /// Somebody let a paused run go on.
    Resumed,
    /// The run is complete.
    Finished,
    /// The run cannot go on.
    Failed,
    /// The coordinator was asked to stop.
    Stopped,
    /// The run continues with other settings.
    SettingsChanged,
    /// The data of a split are others than those of the workers before the coordinator was started again.
    DataChanged,
    /// The journal took the place of one that was lost or damaged.
    Recovered,
}

impl Happening {
    /// All kinds.
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

    /// Whether people should look into it.
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

    /// Its name in the journal.
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

/// One thing to remember.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// A generation was formed. Durable before anybody hears of it, so that no number is used twice.
    Formed {
        /// Its number.
        generation: u64,
        /// The term of the coordinator process that formed it.
        term: u64,
        /// Who is in it: identity rank and machine, in order of rank.
        members: Vec<(u32, Machine)>,
        /// Why the one before it ended.
        cause: String,
        /// Where it starts.
        start: Place,
        /// Whose state it starts from.
        source: Source,
    },
    /// All members of a generation are ready.
    Ready {
        /// Its number.
        generation: u64,
        /// Whether the one before it was broken by a failure.
        recovery: bool,
    },
    /// A generation ended.
    Ended {
        /// Its number.
        generation: u64,
        /// Why.
        reason: String,
    },
    /// A step was reported by all members, or by all that could.
    Step(StepStatistics),
    /// A checkpoint is complete. Durable before training goes on.
    Saved(Checkpoint),
    /// A checkpoint is about to be deleted. Durable before it is: the journal must not promise what is gone.
    Deleted(String),
    /// A checkpoint cannot be used. Durable before another serves in its place.
    Damaged(String),
    /// An evaluation is complete. Durable before training goes on: where a stage ends depends on it.
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
    /// A rule of the guard was broken.
    Guard {
        /// The step or the evaluation that broke it.
        place: Place,
        /// Which rule, and how.
        firing: Firing,
    },
    /// Something else happened. Decisions are durable before they are acted upon.
    Event {
        /// What.
        what: Happening,
        /// Its particulars.
        detail: serde_json::Value,
    },
}

impl Record {
    /// Whether what follows must wait until the record is on disk.
    #[must_use]
    pub fn must_be_durable(&self) -> bool {
        match self {
            Self::Formed { .. } | Self::Saved(_) | Self::Deleted(_) | Self::Damaged(_) | Self::Evaluated { .. } => true,
            // Workers that were told that the run is finished do not come back: a coordinator that has forgotten
            // it would wait for them.
            Self::Event { what: Happening::Finished, .. } => true,
            Self::Event { what, .. } => matches!(what, Happening::StageEnded | Happening::Paused | Happening::Resumed),
            Self::Ready { .. } | Self::Ended { .. } | Self::Step(_) | Self::Guard { .. } => false,
        }
    }
}

/// What a coordinator knows of its run from an earlier life.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Restored {
    /// Names the run; random.
    pub run_id: String,
    /// Which term formed which generation.
    pub terms: TermLog,
    /// The number of the last generation; 0 of none.
    pub last_generation: u64,
    /// Which states are of the present history.
    pub cuts: Cuts,
    /// What was committed.
    pub committed: Place,
    /// Checkpoints that are not deleted, in order.
    pub checkpoints: Vec<Checkpoint>,
    /// Of each stage that ended with an earlier state the last checkpoint.
    pub passed_over: Vec<Checkpoint>,
    /// Names of what else is kept that this run wrote: checkpoints that were not complete, or were to be deleted. Found where
    /// they are kept; the journal knows nothing of them.
    pub unfinished: BTreeSet<String>,
    /// Boundaries that the present history has behind it.
    pub done: Boundaries,
    /// Scores of the present history's evaluations.
    pub scores: Scores,
    /// Means of what was measured in the last steps of the stage that the run is in, as many as its guard needs to go on.
    pub measured: Vec<(Place, Means)>,
    /// Stages that ended early.
    pub ends: Ends,
    /// Why the run is paused, if it is.
    pub paused: Option<String>,
    /// What the workers trained on, if any ever attached.
    pub data_set: Option<v1::DataSet>,
    /// What they trained on before, in order.
    pub exchanges: Vec<Exchange>,
    /// Whether the run is complete.
    pub finished: bool,
}
