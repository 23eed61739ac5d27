//! The current stage: its guard, and the pause that the guard or an operator has ordered.

use crate::{
    guard::{Guard, TriggeredRule},
    model_selection::{BestState, StageView},
    plan::Position,
    state::{checkpoints::Checkpoints, history::History},
};

/// The guard of the current stage, the rollbacks that it has ordered, and whether the run is
/// paused.
#[derive(Debug)]
pub struct StageState {
    /// Checks the values of the stage against its bounds.
    pub guard: Guard,
    /// The rules with `action: rollback` that have fired, each with the position of the step or
    /// evaluation. Those of a coordinator process before may be beyond the committed position: the
    /// record of a rule is written before that of its step.
    pub rollbacks: Vec<(Position, TriggeredRule)>,
    /// Why the guard or an operator has paused the run; none while it is not paused.
    pub pause_reason: Option<String>,
}

impl StageState {
    /// Restarts the guard for the stage of the last committed state, from the recorded scores and
    /// the rollbacks up to that state.
    pub fn restart_guard(&mut self, history: &History) {
        let committed = history.committed;
        self.guard = Guard::new(committed.stage, &history.plan.stage(committed).guard);
        for (position, scores) in history.scores.iter().filter(|(position, _)| position.stage == committed.stage) {
            // The actions of rules that fire here were executed when their scores were new.
            self.guard.check_evaluation(*position, |metric| scores.get(metric).copied());
        }
        self.disqualify(committed);
    }

    /// Applies the rollbacks of the guard's stage up to `committed`.
    pub fn disqualify(&mut self, committed: Position) {
        let stage = self.guard.stage();
        let is_current = |(position, _): &&(Position, TriggeredRule)| position.stage == stage && *position <= committed;
        self.rollbacks.iter().filter(is_current).for_each(|(position, rule)| self.guard.disqualify(*position, rule));
    }

    /// Forgets the rollbacks beyond the start of a generation: their steps are not part of the
    /// history.
    pub fn forget_rollbacks_beyond(&mut self, start: Position) {
        self.rollbacks.retain(|(position, _)| *position <= start);
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

#[cfg(test)]
mod tests {
    use config::{GuardAction, Rule, testing};

    use super::*;
    use crate::{
        lineage::BranchPoints,
        model_selection::Scores,
        plan::{Boundaries, Plan, SelectedSteps},
    };

    fn at(step: u64) -> Position {
        Position { stage: 0, step }
    }

    /// The history of a run of one stage, with this rule, up to `committed`.
    fn history(above: f64, action: GuardAction, committed: u64) -> History {
        let mut stage = testing::stage("a", 50, 8, None, None);
        stage.guard = vec![Rule { metric: "kl".into(), above: Some(above), below: None, for_: 3, action }];
        History {
            plan: Plan::new(&testing::run_file(vec![stage]), SelectedSteps::new()),
            committed: at(committed),
            max_granted_position: at(committed),
            branch_points: BranchPoints::default(),
            passed_boundaries: Boundaries::new(),
            scores: Scores::new(),
            progress_count: 0,
        }
    }

    /// The stage of a run in which `kl` was above 2 in steps 4 to 6, so that a rule fired at step
    /// 6.
    fn restarted(history: &History) -> StageState {
        let (value, bound, is_above, first_position) = (3.0, 2.0, true, at(3));
        let rule = TriggeredRule {
            metric: "kl".into(),
            value,
            bound,
            action: GuardAction::Rollback,
            is_above,
            first_position,
        };
        let mut stage = StageState { guard: Guard::new(0, &[]), rollbacks: vec![(at(6), rule)], pause_reason: None };
        stage.restart_guard(history);
        stage
    }

    #[test]
    fn a_rollback_counts_as_soon_as_its_step_is_part_of_the_history() {
        let mut history = history(2.0, GuardAction::Rollback, 5);
        let mut stage = restarted(&history);
        assert!(stage.guard.is_qualified(at(5)), "the record of step 6 is lost");
        // A member holds step 6: it is adopted.
        history.committed = at(6);
        stage.forget_rollbacks_beyond(at(6));
        stage.disqualify(at(6));
        assert!(stage.guard.is_qualified(at(2)) && !stage.guard.is_qualified(at(3)));
        // The run goes back to step 4, as after the loss of all workers.
        stage.forget_rollbacks_beyond(at(4));
        history.committed = at(4);
        stage.restart_guard(&history);
        assert!(stage.guard.is_qualified(at(4)));
    }

    #[test]
    fn a_rollback_does_not_count_if_the_user_has_changed_its_rule() {
        let is_qualified = |above, action| restarted(&history(above, action, 9)).guard.is_qualified(at(9));
        assert!(!is_qualified(2.0, GuardAction::Rollback));
        assert!(is_qualified(5.0, GuardAction::Rollback));
        assert!(is_qualified(2.0, GuardAction::Warn));
    }
}
