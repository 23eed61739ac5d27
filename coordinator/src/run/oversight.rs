//! Oversight: carries out early stopping, model selection and the actions of the guard.
//!
//! A stage ends early or with an earlier state for one of three reasons: its best state is not its
//! last, its `patience` has run out (early stopping), or a guard rule with that action has fired.
//! All three work alike: [`StageView::end`](super::model_selection::StageView::end) names a place, and the next
//! generation starts from the checkpoint there, with the stage behind it. Later states are given up
//! if the guard decided so; otherwise they were trained, but not selected, and stay in all records.
//! The last state of a stage stays saved in either case. The decision follows from recorded data
//! (scores, rules), so a coordinator that restarts before it has acted reaches the same decision.

use std::collections::BTreeMap;

use config::GuardAction;
use serde_json::json;
use statistics::Summary;

use super::{
    Phase, Run, Time,
    guard::{Guard, TriggeredRule},
    model_selection::{BestState, End, EndCause, LaterState, StageView},
    plan::Place,
    record::{EventKind, Record},
    statistics::StepStatistics,
};

impl Run {
    /// The current stage with its scores, guard and checkpoints.
    pub(super) fn known(&self) -> StageView<'_> {
        let at = Place { stage: self.guard.stage(), step: 0 };
        let stage = self.plan.stage(at);
        StageView { stage, guard: &self.guard, scores: &self.scores, checkpoints: &self.checkpoints, done: &self.done }
    }

    /// The metric and the best state of the current stage.
    #[must_use]
    pub fn best(&self) -> Option<(&str, BestState)> {
        let known = self.known();
        Some((known.stage.metric.as_deref()?, known.best()?))
    }

    /// Restarts the guard for the stage of the last committed state, from the recorded scores
    /// alone.
    pub(super) fn watch(&mut self) {
        let at = self.committed;
        self.guard = Guard::new(at.stage, &self.plan.stage(at).guard);
        for (place, scores) in self.scores.iter().filter(|(place, _)| place.stage == at.stage) {
            // Rules that fire here were acted upon when their scores were new.
            self.guard.evaluation(*place, |metric| scores.get(metric).copied());
        }
    }

    pub(super) fn guard_step(&mut self, step: &StepStatistics) {
        let mean = |metric: &str| step.summaries.get(metric).filter(|summary| summary.count() > 0).map(Summary::mean);
        self.heed(step.place, |guard| guard.step(step.place, mean));
    }

    pub(super) fn guard_evaluation(&mut self, place: Place, scores: &BTreeMap<String, f64>) {
        self.heed(place, |guard| guard.evaluation(place, |metric| scores.get(metric).copied()));
    }

    fn heed(&mut self, place: Place, observe: impl FnOnce(&mut Guard) -> Vec<TriggeredRule>) {
        if place.stage != self.guard.stage() || self.plan.has_ended(place.stage) {
            return;
        }
        for firing in observe(&mut self.guard) {
            let (action, reason) = (firing.action, format!("{firing} at {place}"));
            self.record(Record::Guard { place, firing });
            if action == GuardAction::Pause && self.paused.is_none() {
                self.event(EventKind::Paused, json!({ "stage": place.stage, "step": place.step, "reason": reason }));
                self.paused = Some(reason);
            }
        }
    }

    /// Ends the current stage with an earlier state if that is due. Does nothing while the run is
    /// paused.
    pub(super) fn end_stage(&mut self, now: Time) {
        let ended = self.plan.has_ended(self.guard.stage());
        // The stage may end with the state that is being saved, or that cannot be saved at the
        // moment.
        let saving = self.unsaved.is_some() || self.saving.as_ref().is_some_and(|saving| saving.wanted);
        if ended || saving || self.paused.is_some() || matches!(self.phase, Phase::Over { .. }) {
            return;
        }
        let Some(End { place, cause, reason, passed_over }) = self.known().end() else { return };
        let last = self.known().last_after(place);
        self.plan.end(place);
        self.cuts.cut(self.last_generation + 1, place);
        self.evaluation = None;
        let described = |LaterState { place, score, reason }: LaterState| json!({ "step": place.step, "score": score, "reason": reason });
        let detail = json!({
            "stage": place.stage,
            "step": place.step,
            "generation": self.last_generation,
            "cause": cause.name(),
            "reason": reason,
            "passed_over": passed_over.into_iter().map(described).collect::<Vec<_>>(),
        });
        self.event(EventKind::StageEnded, detail);
        self.passed_over.extend(last.and_then(|last| self.checkpoints.remove(&last)));
        self.delete_checkpoints(|other| *other > place);
        self.saves_up_to(place);
        if cause != EndCause::Guard {
            // The later steps are not lost: they count as trained, and the run continues from here.
            self.committed = place;
        }
        let name = &self.plan.stage(place).name;
        let reason = format!("stage {name} ends with its state at step {}: {reason}", place.step);
        self.end_generation(now, &reason, false);
    }
}
