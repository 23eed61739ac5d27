//! Kinds of events in the event log.

/// The kinds of events in the event log, which is for people. Each event has a JSON detail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// A worker attached, and is a member.
    Attached,
    /// A member failed, as the glossary has it: its session closed without a leave, no message of
    /// it arrived for the heartbeat timeout, or the coordinator evicted it.
    Lost,
    /// A member announced that it leaves.
    Leaving,
    /// A member left without a failure.
    Left,
    /// Committed steps were given up, because no holder of their state is left. A rollback, which
    /// is the guard's, is [`Self::StageEndedEarly`].
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
    /// The journal of an earlier version was migrated.
    Migrated,
}

impl EventKind {
    /// All kinds of events.
    pub const ALL: [Self; 20] = [
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
        Self::Migrated,
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
            Self::Migrated,
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
            Self::Migrated => "migrated",
            Self::SettingsChanged => "settings_changed",
        }
    }
}
