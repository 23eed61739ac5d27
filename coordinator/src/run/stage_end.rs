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

use std::collections::BTreeMap;

use config::GuardAction;
use serde_json::json;
use summary_statistics::Summary;

use super::{
    Run, RunPhase, Time,
    guard::{Guard, TriggeredRule},
    model_selection::{BestState, EndCause, EndDecision, LaterState, StageView},
    plan::Position,
    record::{EventKind, Record},
    statistics::StepStatistics,
};

impl Run {
    /// The current stage with its scores, guard and checkpoints.
    pub(super) fn stage_view(&self) -> StageView<'_> {
        let start = Position { stage: self.guard.stage(), step: 0 };
        StageView {
            stage: self.plan.stage(start),
            guard: &self.guard,
            scores: &self.scores,
            checkpoints: &self.checkpoints,
            passed_boundaries: &self.passed_boundaries,
        }
    }

    /// The metric of the current stage, and its best state by that metric.
    #[must_use]
    pub fn best_state(&self) -> Option<(&str, BestState)> {
        let view = self.stage_view();
        Some((view.stage.metric.as_deref()?, view.best_state()?))
    }

    /// Restarts the guard for the stage of the last committed state, from the recorded scores
    /// alone.
    pub(super) fn restart_guard(&mut self) {
        let committed = self.committed;
        self.guard = Guard::new(committed.stage, &self.plan.stage(committed).guard);
        for (position, scores) in self.scores.iter().filter(|(position, _)| position.stage == committed.stage) {
            // The actions of rules that fire here were executed when their scores were new.
            self.guard.check_evaluation(*position, |metric| scores.get(metric).copied());
        }
    }

    /// Checks the statistics of a step against the guard's rules.
    pub(super) fn check_step(&mut self, step: &StepStatistics) {
        let mean = |metric: &str| step.summaries.get(metric).filter(|summary| summary.count() > 0).map(Summary::mean);
        self.apply_rules(step.position, |guard| guard.check_step(step.position, mean));
    }

    /// Checks the scores of an evaluation against the guard's rules.
    pub(super) fn check_evaluation(&mut self, position: Position, scores: &BTreeMap<String, f64>) {
        let score = |metric: &str| scores.get(metric).copied();
        self.apply_rules(position, |guard| guard.check_evaluation(position, score));
    }

    /// Records the rules that fire, and pauses the run if one of them has `action: pause`.
    fn apply_rules(&mut self, position: Position, check: impl FnOnce(&mut Guard) -> Vec<TriggeredRule>) {
        if position.stage != self.guard.stage() || self.plan.has_ended_early(position.stage) {
            return;
        }
        for rule in check(&mut self.guard) {
            let (action, reason) = (rule.action, format!("{rule} at {position}"));
            self.record(Record::Guard { position, rule });
            if action == GuardAction::Pause && self.pause_reason.is_none() {
                let detail = json!({ "stage": position.stage, "step": position.step, "reason": reason });
                self.record_event(EventKind::Paused, detail);
                self.pause_reason = Some(reason);
            }
        }
    }

    /// Ends the current stage with an earlier state if that is due. Does nothing while the run is
    /// paused.
    pub(super) fn try_end_stage(&mut self, now: Time) {
        let has_ended_early = self.plan.has_ended_early(self.guard.stage());
        // The state that is being saved, or that cannot be saved at the moment, may turn out to be
        // the one with which the stage ends.
        let is_saving = self.saving.as_ref().is_some_and(|saving| !saving.is_cancelled);
        let must_wait = is_saving || self.failed_save.is_some() || self.pause_reason.is_some();
        if has_ended_early || must_wait || matches!(self.phase, RunPhase::Over { .. }) {
            return;
        }
        let Some(EndDecision { position, cause, reason, later_states }) = self.stage_view().end_decision() else {
            return;
        };
        let last_saved = self.stage_view().last_saved_after(position);
        self.plan.end_stage(position);
        self.branch_points.add(self.last_generation + 1, position);
        self.evaluation = None;
        let describe = |state: LaterState| {
            let LaterState { position, score, reason } = state;
            json!({ "step": position.step, "score": score, "reason": reason })
        };
        let detail = json!({
            "stage": position.stage,
            "step": position.step,
            "generation": self.last_generation,
            "cause": cause.name(),
            "reason": reason,
            // The journal's name of `later_states`.
            "passed_over": later_states.into_iter().map(describe).collect::<Vec<_>>(),
        });
        self.record_event(EventKind::StageEndedEarly, detail);
        self.superseded_checkpoints.extend(last_saved.and_then(|position| self.checkpoints.remove(&position)));
        self.delete_checkpoints(|other| *other > position);
        self.cancel_save_beyond(position);
        if cause != EndCause::Guard {
            // Model selection gives up no committed steps: the later steps count as trained. After
            // a rollback, `committed` stays at the later steps, and the next generation records
            // that they are given up.
            self.committed = position;
        }
        let name = &self.plan.stage(position).name;
        let reason = format!("stage {name} ends with its state at step {}: {reason}", position.step);
        let is_failure = false;
        self.end_generation(now, &reason, is_failure);
    }
}
