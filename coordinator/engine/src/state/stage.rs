//! The current stage: its guard, and the pause that the guard or an operator has ordered.

use crate::{
    guard::{Guard, TriggeredRule},
    model_selection::{BestState, StageView},
    plan::Position,
    state::{checkpoints::Checkpoints, history::History},
};

/// The guard of the current stage, the rules that have fired, and whether the run is paused.
#[derive(Debug)]
pub struct StageState {
    /// Checks the values of the stage against its bounds.
    pub guard: Guard,
    /// The rules that have fired in the present history of the stage, each with the position of the
    /// step or evaluation.
    pub firings: Vec<(Position, TriggeredRule)>,
    /// Why the guard or an operator has paused the run; none while it is not paused.
    pub pause_reason: Option<String>,
}

impl StageState {
    /// Restarts the guard for the stage of the last committed state, from the recorded scores and
    /// the rules that have fired up to that state.
    pub fn restart_guard(&mut self, history: &History) {
        let committed = history.committed;
        self.firings.retain(|(position, _)| position.stage == committed.stage && *position <= committed);
        self.guard = Guard::new(committed.stage, &history.plan.stage(committed).guard);
        for (position, scores) in history.scores.iter().filter(|(position, _)| position.stage == committed.stage) {
            // The actions of rules that fire here were executed when their scores were new.
            self.guard.check_evaluation(*position, |metric| scores.get(metric).copied());
        }
        self.firings.iter().for_each(|(position, rule)| self.guard.disqualify(*position, rule));
    }

    /// The stage with its scores and checkpoints.
    #[must_use]
    pub fn view<'a>(&'a self, history: &'a History, checkpoints: &'a Checkpoints) -> StageView<'a> {
        StageView {
            stage: history.plan.stage(Position { stage: self.guard.stage(), step: 0 }),
            guard: &self.guard,
            scores: &history.scores,
            checkpoints: &checkpoints.saved,
            passed_boundaries: &history.passed_boundaries,
        }
    }

    /// The metric of the stage, and its best state by that metric.
    #[must_use]
    pub fn best_state<'a>(
        &'a self,
        history: &'a History,
        checkpoints: &'a Checkpoints,
    ) -> Option<(&'a str, BestState)> {
        let view = self.view(history, checkpoints);
        Some((view.stage.metric.as_deref()?, view.best_state()?))
    }
}
