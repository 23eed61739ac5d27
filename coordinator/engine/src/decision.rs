//! Decides what happens next in a running generation: a pure function from a small view of the run
//! to one decision.
//!
//! The table is [`decide`]: one row a case, the first row that matches applies. The engine executes
//! the decision, builds a new view, and decides again, until the decision is to wait.

/// What the decision depends on. *The granted position* is the one up to which the generation was
/// ordered to train.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    /// The plan's next action at the granted position.
    pub next: Next,
    /// Whether all members have reported all granted steps.
    pub are_steps_reported: bool,
    /// The boundary directive that is being executed.
    pub boundary: BoundaryStatus,
    /// Whether the members were ordered to halt.
    pub is_halting: bool,
    /// Whether a worker joins or leaves, or the coordinator stops, so that the generation has to
    /// halt.
    pub must_halt: bool,
    /// Whether the guard or an operator has paused the run.
    pub is_paused: bool,
    /// Whether the coordinator was asked to stop.
    pub is_stopping: bool,
    /// The save in progress.
    pub save: Save,
    /// The last attempt to save, if it failed.
    pub failed_save: RetryStatus,
    /// Where the state at the granted position can be restored from without a member.
    pub stored: Stored,
    /// Whether the generation exists only to save its state: its members leave afterwards.
    pub is_save_only: bool,
    /// Whether the stage may end with the state that is being saved, so that training waits for the
    /// save.
    pub must_wait_for_save: bool,
}

/// The kind of the plan's next action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// To train. Steps may be granted if the members have reported enough of the earlier ones.
    Train {
        /// Whether at least one step may be granted now.
        is_grantable: bool,
    },
    /// To save the state.
    Checkpoint,
    /// To evaluate the state.
    Evaluate,
    /// To begin the next stage.
    Advance,
    /// The run is complete.
    Finish,
}

/// Who executes a boundary directive at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BoundaryStatus {
    /// No boundary directive is being executed.
    None,
    /// The members write captions or enter the next stage.
    Members,
    /// The coordinator scores captions; no member is involved.
    Scores,
}

/// The save in progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Save {
    /// No state is being saved.
    None,
    /// The state at the granted position.
    OfGranted,
    /// The state at another position: an earlier one, or after a rollback a later one whose save is
    /// cancelled.
    OfOther,
}

/// The last attempt to save, if it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryStatus {
    /// It did not fail.
    None,
    /// It failed, and the time of the next attempt has not come.
    RetryLater,
    /// It failed, and the next attempt is due.
    RetryNow,
}

/// Where a state can be restored from without a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// Only members hold it.
    No,
    /// The run's seed: it is the state before the first step.
    Seed,
    /// A checkpoint.
    Checkpoint,
}

/// What happens next in a running generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Nothing, until the next event.
    Wait,
    /// The members are ordered to halt after the step in flight.
    Halt,
    /// The generation ends: it was ordered to halt, and has no work in flight.
    EndHalted,
    /// The generation ends: its state is saved, and its members leave.
    EndSaved,
    /// The run is finished.
    Finish,
    /// The coordinator process stops.
    Stop,
    /// The state at the granted position is saved.
    Save,
    /// A failed save needs no retry: the state at the granted position has a checkpoint.
    ForgetFailedSave,
    /// More steps are granted.
    Train,
    /// The state at the granted position is evaluated.
    Evaluate,
    /// The next stage begins.
    Advance,
}

/// The decision for a running generation. The order of the rows is their precedence:
///
/// 1. A complete run finishes, also if workers join or leave.
/// 2. A membership change halts the generation. A stage change is finished first; of captions, each
///    member finishes the range in flight.
/// 3. A coordinator that stops saves the state. If that fails it stops nevertheless: the operator
///    sees the reason, and the next coordinator process resumes from the last checkpoint.
/// 4. After a failed save no step is granted until a save succeeds.
/// 5. A paused run saves its state and waits.
/// 6. Otherwise the plan is followed. Directives are queued: a boundary does not wait for the
///    reports of the steps before it.
#[must_use]
pub fn decide(view: &View) -> Decision {
    use Decision as D;
    match view {
        View { next: Next::Finish, is_paused: false, are_steps_reported: true, save: Save::None, .. } => D::Finish,
        View { next: Next::Finish, is_paused: false, .. } => D::Wait,

        View { must_halt: true, is_halting: false, .. } => D::Halt,
        View { boundary: BoundaryStatus::Members, .. } => D::Wait,

        View { is_stopping: true, are_steps_reported: false, .. } => D::Wait,
        View { is_stopping: true, failed_save: RetryStatus::RetryLater | RetryStatus::RetryNow, .. } => D::Stop,
        View { is_stopping: true, save: Save::OfGranted | Save::OfOther, .. } => D::Wait,
        View { is_stopping: true, stored: Stored::No, .. } => D::Save,
        View { is_stopping: true, .. } => D::Stop,

        View { is_halting: true, are_steps_reported: true, .. } => D::EndHalted,
        View { is_halting: true, .. } => D::Wait,

        View { failed_save: RetryStatus::RetryLater, .. } => D::Wait,
        View { failed_save: RetryStatus::RetryNow, are_steps_reported: false, .. } => D::Wait,
        View { failed_save: RetryStatus::RetryNow, save: Save::OfGranted | Save::OfOther, .. } => D::Wait,
        View { failed_save: RetryStatus::RetryNow, stored: Stored::Checkpoint, .. } => D::ForgetFailedSave,
        View { failed_save: RetryStatus::RetryNow, .. } => D::Save,

        View { is_save_only: true, save: Save::None, stored: Stored::No, .. } => D::Save,
        View { is_save_only: true, save: Save::None, are_steps_reported: true, .. } => D::EndSaved,
        View { is_save_only: true, .. } => D::Wait,

        View { is_paused: true, save: Save::None, stored: Stored::No, .. } => D::Save,
        View { is_paused: true, .. } => D::Wait,

        // The next generation can use the scores, so membership changes do not wait for them, but
        // the plan does.
        View { boundary: BoundaryStatus::Scores, .. } => D::Wait,

        View { next: Next::Train { .. }, save: Save::OfGranted, must_wait_for_save: true, .. } => D::Wait,
        View { next: Next::Train { is_grantable: false }, .. } => D::Wait,
        View { next: Next::Train { is_grantable: true }, .. } => D::Train,

        // One state is saved at a time, and a stage begins with no save of the one before.
        View { next: Next::Checkpoint | Next::Advance, save: Save::OfGranted | Save::OfOther, .. } => D::Wait,
        View { next: Next::Checkpoint, .. } => D::Save,
        View { next: Next::Evaluate, .. } => D::Evaluate,
        View { next: Next::Advance, .. } => D::Advance,
    }
}

#[cfg(test)]
mod tests;
