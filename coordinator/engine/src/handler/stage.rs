//! Ends of stages: executes early stopping, model selection and the actions of the guard.
//!
//! A stage ends with an earlier state than its last one for one of three reasons: its best state is
//! not its last, its `patience` has run out (early stopping), or a guard rule with `action:
//! rollback` has fired. All three use one mechanism: [`StageView::end_decision`] names a position,
//! the next generation starts from the checkpoint at that position, and the plan continues with the
//! next stage. If the guard ended the stage, the steps after the position are given up. Otherwise
//! these steps count as trained, and stay in all records. The checkpoint of the stage's last state
//! is kept in both cases. The decision depends only on recorded data (scores and rules). Therefore
//! a coordinator that restarts before it has executed the decision reaches the same decision again.
//!
//! [`StageView::end_decision`]: crate::model_selection::StageView::end_decision

use std::collections::BTreeMap;

use config::GuardAction;
use summary_statistics::Summary;

use crate::{
    guard::{Guard, TriggeredRule},
    model_selection::{EndCause, EndDecision},
    output::{Effect, Output},
    plan::Position,
    record::Record,
    state::{
        State, checkpoints::Checkpoints, evaluation::Evaluation, generations::Generations, history::History,
        stage::StageState,
    },
    statistics::StepStatistics,
};

/// Checks the values of the current stage, and ends it.
pub struct StageHandler<'a> {
    stage: &'a mut StageState,
    history: &'a mut History,
    generations: &'a Generations,
    checkpoints: &'a Checkpoints,
    evaluation: &'a mut Option<Evaluation>,
    output: &'a mut Output,
}

impl<'a> StageHandler<'a> {
    pub fn new(state: &'a mut State, output: &'a mut Output) -> Self {
        let State { stage, history, generations, checkpoints, evaluation, .. } = state;
        Self { stage, history, generations, checkpoints, evaluation, output }
    }

    /// Checks the statistics of a step against the guard's rules.
    pub fn check_step(&mut self, step: &StepStatistics) {
        let mean = |metric: &str| step.summaries.get(metric).filter(|summary| summary.count() > 0).map(Summary::mean);
        self.apply_rules(step.position, |guard| guard.check_step(step.position, mean));
    }

    /// Checks the scores of an evaluation against the guard's rules.
    pub fn check_evaluation(&mut self, position: Position, scores: &BTreeMap<String, f64>) {
        let score = |metric: &str| scores.get(metric).copied();
        self.apply_rules(position, |guard| guard.check_evaluation(position, score));
    }

    /// Records the rules that fire, and pauses the run if one of them has `action: pause`.
    fn apply_rules(&mut self, position: Position, check: impl FnOnce(&mut Guard) -> Vec<TriggeredRule>) {
        if position.stage != self.stage.guard.stage() || self.history.plan.has_ended_early(position.stage) {
            return;
        }
        let triggered_rules = check(&mut self.stage.guard);
        // All rules are recorded before the pause, which is durable: a coordinator that crashes
        // after the pause finds all of them in the journal.
        for rule in triggered_rules.iter().cloned() {
            let generation = self.generations.last_number;
            if rule.action == GuardAction::Rollback {
                self.stage.rollbacks.push((position, rule.clone()));
            }
            self.output.record(Record::Guard { position, generation, rule });
        }
        let pause = triggered_rules.iter().find(|rule| rule.action == GuardAction::Pause);
        if let Some(rule) = pause.filter(|_| self.stage.pause_reason.is_none()) {
            let reason = format!("{rule} at {position}");
            self.output.record(Record::Paused { position, reason: reason.clone() });
            self.stage.pause_reason = Some(reason);
        }
    }

    /// Ends the current stage with an earlier state if that is due. Returns whether it was due.
    pub fn try_end(&mut self) -> bool {
        if !self.may_end() {
            return false;
        }
        let Some(end) = self.stage.view(self.history, self.checkpoints).end_decision() else { return false };
        let EndDecision { position, cause, ref reason, .. } = end;
        let name = &self.history.plan.stage(position).name;
        let reason = format!("stage {name} ends with its state at step {}: {reason}", position.step);
        self.output.record(Record::StageEnded { generation: self.generations.last_number, end });
        self.history.plan.end_stage(position);
        self.history.branch_points.add(self.generations.last_number + 1, position);
        *self.evaluation = None;
        if cause != EndCause::Guard {
            // Model selection gives up no committed steps: the later steps count as trained. After
            // a rollback, `committed` stays at the later steps, and the next generation records
            // that they are given up.
            self.history.committed = position;
        }
        self.output.add_effect(Effect::StageEnded { position });
        self.output.add_effect(Effect::EndGeneration { reason, is_failure: false });
        true
    }

    /// Whether the current stage may end now. It does not end while the run is paused.
    fn may_end(&self) -> bool {
        let Checkpoints { in_progress, failed, .. } = self.checkpoints;
        // The state that is being saved, or that cannot be saved at the moment, may turn out to be
        // the one with which the stage ends.
        let is_saving = in_progress.as_ref().is_some_and(|saving| !saving.is_cancelled);
        let must_wait = is_saving || failed.is_some() || self.stage.pause_reason.is_some();
        !must_wait && !self.history.plan.has_ended_early(self.stage.guard.stage()) && !self.generations.is_over()
    }
}
