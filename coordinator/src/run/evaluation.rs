//! Evaluations: collects captions of the validation images from the members, then has them scored.
//!
//! An evaluation belongs to the run, not to a generation. When a generation ends during one and the
//! next starts from the same state, the members write only the captions that are missing, and
//! scores in progress are still used. If the next generation starts from another state, the
//! evaluation is cancelled, because its state is given up.

use std::collections::BTreeMap;

use proto::{v1, v1::directive::Directive};
use serde_json::json;

use super::{
    Action, ProtocolViolation, Run,
    captions::{self, Captions, Images, Item, ReportableScores},
    plan::{Boundary, Place},
    progress::PendingBoundary,
    record::{EventKind, Record},
};

/// The evaluation in progress.
#[derive(Debug)]
pub(super) struct Evaluation {
    /// The number of the evaluation in directives.
    number: u64,
    /// The state that is evaluated.
    place: Place,
    /// The captions that the members wrote; none once they are being scored.
    captions: Option<Captions>,
    /// Why the captions cannot be saved; none if they can. The run waits until they can.
    pub unsaved: Option<String>,
}

impl Run {
    /// Starts or resumes the evaluation of the state at `place`: assigns the captions that are
    /// missing to members, or waits for the scores.
    pub(super) fn evaluate(&mut self, place: Place) {
        if self.evaluation.is_none() {
            let images = self.data_set.as_ref().map_or(0, |known| known.data_set.validation_images);
            let captions = Some(Captions::new(images, ReportableScores::of(&self.file)));
            self.evaluation = Some(Evaluation { number: self.next_directive(), place, captions, unsaved: None });
        }
        let Some(evaluation) = &mut self.evaluation else { return };
        if let Some(captions) = &mut evaluation.captions {
            captions.restart();
        }
        let (number, missing) = (evaluation.number, evaluation.captions.as_ref().map(Captions::missing));
        let Some(missing) = missing.filter(|missing| !missing.is_empty()) else {
            self.await_scores();
            return;
        };
        let Some(generation) = &mut self.generation else { return };
        let world = generation.members.len() as u32;
        let share = |index| captions::share(&missing, world, index);
        let ranks = (0..).zip(&generation.members);
        let asked = ranks.map(|(index, rank)| (*rank, share(index).iter().copied().collect())).collect();
        generation.awaiting = Some(PendingBoundary::Captions { asked });
        self.tell(|index, _| {
            let ranges = share(index).iter().map(|range| (*range).into()).collect();
            Directive::Evaluate(v1::Evaluate { evaluation: number, ranges })
        });
    }

    /// Waits for the scores of the complete captions. Requests them unless that was done before.
    fn await_scores(&mut self) {
        if let Some(generation) = &mut self.generation {
            generation.awaiting = Some(PendingBoundary::Scores);
        }
        let Some(Evaluation { number, place, captions, .. }) = &mut self.evaluation else { return };
        let (evaluation, place, Some(written)) = (*number, *place, captions.take()) else { return };
        let items = written.into_items();
        let captions = self.file.captions_folder().join(format!("{}.json", self.name_of(place)));
        self.actions.push(Action::Score { evaluation, items, captions });
    }

    pub(super) fn evaluation_items(&mut self, rank: u32, report: v1::EvaluationItems) -> Result<(), ProtocolViolation> {
        if !self.is_current(rank, report.generation)? {
            return Ok(());
        }
        let awaiting = self.generation.as_mut().and_then(|generation| generation.awaiting.as_mut());
        let under_way = self.evaluation.as_mut().filter(|evaluation| evaluation.number == report.evaluation);
        let captions = under_way.and_then(|evaluation| evaluation.captions.as_mut());
        let (Some(PendingBoundary::Captions { asked }), Some(captions)) = (awaiting, captions) else {
            return Err(format!("evaluation {} is not under way", report.evaluation));
        };
        let range = Images::from(report.range.ok_or("captions without a range")?);
        if !asked
            .get_mut(&rank)
            .is_some_and(|asked| if report.more { asked.contains(&range) } else { asked.remove(&range) })
        {
            let Images { begin, end } = range;
            return Err(format!("captions of the images {begin}..{end} that it was not asked for, or sent already"));
        }
        captions.add(range, report.items, report.more)?;
        if captions.complete() {
            self.await_scores();
        }
        Ok(())
    }

    /// Handles [`super::Event::CaptionsSaved`]: saving the captions fails, or works again.
    pub(super) fn captions_saved(&mut self, number: u64, saved: Result<(), String>) {
        // None: the state was given up meanwhile.
        let Some(evaluation) = self.evaluation.as_mut().filter(|evaluation| evaluation.number == number) else {
            return;
        };
        let at = evaluation.place.to_string();
        let before = std::mem::replace(&mut evaluation.unsaved, saved.err());
        match (&before, &evaluation.unsaved) {
            (None, Some(reason)) => {
                let detail = json!({ "at": at, "reason": reason });
                self.event(EventKind::SaveFailed, detail);
            }
            (Some(reason), None) => {
                let detail = json!({ "at": at, "reason": reason });
                self.event(EventKind::SavedAgain, detail);
            }
            _ => {}
        }
    }

    pub(super) fn scored(&mut self, number: u64, metrics: BTreeMap<String, f64>, items: Vec<Item>) {
        // None: the state was given up meanwhile.
        let Some(evaluation) = self.evaluation.take_if(|evaluation| evaluation.number == number) else { return };
        let place = evaluation.place;
        if let Some(generation) = &mut self.generation {
            generation.awaiting.take_if(|awaiting| matches!(awaiting, PendingBoundary::Scores));
        }
        self.done.insert((place, Boundary::Evaluation));
        self.progress += 1;
        // The guard's actions are recorded first: a coordinator that restarts does not repeat a
        // recorded evaluation.
        self.guard_evaluation(place, &metrics);
        self.scores.insert(place, metrics.clone());
        self.record(Record::Evaluated { place, generation: self.last_generation, metrics, items });
    }

    /// Cancels the evaluation if its state is given up.
    pub(super) fn keep_evaluation(&mut self, start: Place) {
        self.evaluation.take_if(|evaluation| evaluation.place != start);
    }
}
