//! Oversight: what the guard sees is acted upon, and a stage that is to end elsewhere than where it stands is ended.
//!
//! Three things end a stage early or with an earlier state: its best state was not its last, patience has run out, a rule
//! was broken that calls for it. All of them are the same: [`Known::end`](super::best::Known::end) names a place, and the
//! next generation starts from the checkpoint there, with the stage behind it. Later states are given up where the guard
//! has decided so; else they were trained, but not selected, and stay in all records. The last state of a stage stays
//! saved in either case. The decision follows from what is remembered (scores, rules), so that a coordinator that dies
//! before it has taken it takes it when it is back.

use std::collections::BTreeMap;

use runfile::GuardAction;
use serde_json::json;
use statistics::Summary;

use super::{
    Phase, Run, Time,
    best::{Best, End, EndCause, Known, PassedOver},
    guard::{Firing, Guard},
    plan::Place,
    record::{Happening, Record},
    statistics::StepStatistics,
};

impl Run {
    /// What is known of the present stage.
    pub(super) fn known(&self) -> Known<'_> {
        let at = Place { stage: self.guard.stage(), step: 0 };
        let stage = self.plan.stage(at);
        Known { stage, guard: &self.guard, scores: &self.scores, checkpoints: &self.checkpoints, done: &self.done }
    }

    /// The metric and the best state of the present stage.
    #[must_use]
    pub fn best(&self) -> Option<(&str, Best)> {
        let known = self.known();
        Some((known.stage.metric.as_deref()?, known.best()?))
    }

    /// Watches over the stage that the run is in, as if nothing was seen of it but what is remembered.
    pub(super) fn watch(&mut self) {
        let at = self.committed;
        self.guard = Guard::new(at.stage, &self.plan.stage(at).guard);
        for (place, scores) in self.scores.iter().filter(|(place, _)| place.stage == at.stage) {
            // What fires was acted upon when it was new.
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

    fn heed(&mut self, place: Place, observe: impl FnOnce(&mut Guard) -> Vec<Firing>) {
        if place.stage != self.guard.stage() || self.plan.has_ended(place.stage) {
            return;
        }
        for firing in observe(&mut self.guard) {
            let (action, reason) = (firing.action, format!("{firing} at {place}"));
            self.record(Record::Guard { place, firing });
            if action == GuardAction::Pause && self.paused.is_none() {
                self.event(Happening::Paused, json!({ "stage": place.stage, "step": place.step, "reason": reason }));
                self.paused = Some(reason);
            }
        }
    }

    /// Ends the present stage elsewhere than where it stands, if that is due. A paused run waits with it.
    pub(super) fn end_stage(&mut self, now: Time) {
        let ended = self.plan.has_ended(self.guard.stage());
        // What is being saved, or cannot be at the moment, may be what it ends with.
        let saving = self.unsaved.is_some() || self.saving.as_ref().is_some_and(|saving| saving.wanted);
        if ended || saving || self.paused.is_some() || matches!(self.phase, Phase::Over { .. }) {
            return;
        }
        let Some(End { place, cause, reason, passed_over }) = self.known().end() else { return };
        let last = self.known().last_after(place);
        self.plan.end(place);
        self.cuts.cut(self.last_generation + 1, place);
        self.evaluation = None;
        let described = |PassedOver { place, score, reason }: PassedOver| json!({ "step": place.step, "score": score, "reason": reason });
        let detail = json!({
            "stage": place.stage,
            "step": place.step,
            "generation": self.last_generation,
            "cause": cause.name(),
            "reason": reason,
            "passed_over": passed_over.into_iter().map(described).collect::<Vec<_>>(),
        });
        self.event(Happening::StageEnded, detail);
        self.passed_over.extend(last.and_then(|last| self.checkpoints.remove(&last)));
        self.delete_checkpoints(|other| *other > place);
        self.saves_up_to(place);
        if cause != EndCause::Guard {
            // The later steps are not lost: they count as trained, and the run goes on from here.
            self.committed = place;
        }
        let name = &self.plan.stage(place).name;
        let reason = format!("stage {name} ends with its state at step {}: {reason}", place.step);
        self.end_generation(now, &reason, false);
    }
}
