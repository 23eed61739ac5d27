//! Evaluations: collects captions of the validation images from the members, then has them scored.
//!
//! An evaluation belongs to the run, not to a generation. When a generation ends during one and the
//! next starts from the same state, the members report only the captions that are missing, and
//! scores in progress are still used. If the next generation starts from another state, the
//! evaluation is cancelled, because its state is given up.

use std::collections::BTreeMap;

use proto::{v1, v1::directive::Directive};
use serde_json::json;

use super::{
    Action, ProtocolViolation, Rank, Run, WorkerId,
    captions::{self, Captions, ImageRange, Item, ReportableScores},
    plan::{Boundary, Position},
    progress::PendingBoundary,
    record::{EventKind, Record},
};

/// The evaluation in progress.
#[derive(Debug)]
pub(super) struct Evaluation {
    /// The number of the evaluation in directives.
    number: u64,
    /// The state that is evaluated.
    position: Position,
    /// The captions that the members reported; none while they are being scored.
    captions: Option<Captions>,
    /// Why the captions cannot be saved; none if they can. The run waits until they can.
    pub save_error: Option<String>,
}

impl Run {
    /// Starts or resumes the evaluation of the state at `position`: assigns the captions that are
    /// missing to members, or waits for the scores.
    pub(super) fn start_evaluation(&mut self, position: Position) {
        if self.evaluation.is_none() {
            let images = self.data.as_ref().map_or(0, |data| data.data_set.validation_images);
            let captions = Some(Captions::new(images, ReportableScores::of_run(&self.file)));
            let number = self.next_directive_number();
            self.evaluation = Some(Evaluation { number, position, captions, save_error: None });
        }
        let Some(evaluation) = &mut self.evaluation else { return };
        if let Some(captions) = &mut evaluation.captions {
            captions.discard_partial_ranges();
        }
        let (number, missing) = (evaluation.number, evaluation.captions.as_ref().map(Captions::missing_ranges));
        let Some(missing) = missing.filter(|missing| !missing.is_empty()) else {
            self.request_scores();
            return;
        };
        let Some(generation) = &mut self.generation else { return };
        let world_size = generation.members.len() as u32;
        let share = |rank| captions::share(&missing, world_size, rank);
        let ranks = (0..).map(Rank).zip(&generation.members);
        let pending = ranks.map(|(rank, worker_id)| (*worker_id, share(rank).iter().copied().collect())).collect();
        generation.pending_boundary = Some(PendingBoundary::Captions { pending });
        self.broadcast(|rank, _| {
            let ranges = share(rank).iter().map(|range| (*range).into()).collect();
            Directive::Evaluate(v1::Evaluate { evaluation: number, ranges })
        });
    }

    /// Waits for the scores of the complete captions. Requests them unless that was done before.
    fn request_scores(&mut self) {
        if let Some(generation) = &mut self.generation {
            generation.pending_boundary = Some(PendingBoundary::Scores);
        }
        let Some(Evaluation { number, position, captions, .. }) = &mut self.evaluation else { return };
        let (evaluation, position, Some(complete)) = (*number, *position, captions.take()) else { return };
        let items = complete.into_items();
        let captions = self.file.captions_folder().join(format!("{}.json", self.state_name(position)));
        self.actions.push(Action::Score { evaluation, items, captions });
    }

    /// Handles `EvaluationItems`: a member reports captions of a range.
    pub(super) fn handle_evaluation_items(
        &mut self,
        worker_id: WorkerId,
        report: v1::EvaluationItems,
    ) -> Result<(), ProtocolViolation> {
        if !self.is_current_generation(worker_id, report.generation)? {
            return Ok(());
        }
        let boundary = self.generation.as_mut().and_then(|generation| generation.pending_boundary.as_mut());
        let evaluation = self.evaluation.as_mut().filter(|evaluation| evaluation.number == report.evaluation);
        let captions = evaluation.and_then(|evaluation| evaluation.captions.as_mut());
        let (Some(PendingBoundary::Captions { pending }), Some(captions)) = (boundary, captions) else {
            return Err(format!("evaluation {} is not in progress", report.evaluation));
        };
        let range = ImageRange::from(report.range.ok_or("captions without a range")?);
        let is_pending = pending
            .get_mut(&worker_id)
            .is_some_and(|pending| if report.more { pending.contains(&range) } else { pending.remove(&range) });
        if !is_pending {
            let ImageRange { begin, end } = range;
            return Err(format!("captions of the images {begin}..{end}, which it was not assigned or sent already"));
        }
        captions.add(range, report.items, report.more)?;
        if captions.is_complete() {
            self.request_scores();
        }
        Ok(())
    }

    /// Handles [`super::Event::CaptionsSaved`]: saving the captions fails, or works again.
    pub(super) fn handle_captions_saved(&mut self, number: u64, saved: Result<(), String>) {
        // The evaluation is gone if its state was given up meanwhile.
        let Some(evaluation) = self.evaluation.as_mut().filter(|evaluation| evaluation.number == number) else {
            return;
        };
        let at = evaluation.position.to_string();
        let before = std::mem::replace(&mut evaluation.save_error, saved.err());
        match (&before, &evaluation.save_error) {
            (None, Some(reason)) => {
                let detail = json!({ "at": at, "reason": reason });
                self.record_event(EventKind::SaveFailed, detail);
            }
            (Some(reason), None) => {
                let detail = json!({ "at": at, "reason": reason });
                self.record_event(EventKind::SavedAgain, detail);
            }
            _ => {}
        }
    }

    /// Handles [`super::Event::Scored`]: completes the evaluation.
    pub(super) fn handle_scores(&mut self, number: u64, metrics: BTreeMap<String, f64>, items: Vec<Item>) {
        // The evaluation is gone if its state was given up meanwhile.
        let Some(evaluation) = self.evaluation.take_if(|evaluation| evaluation.number == number) else { return };
        let position = evaluation.position;
        if let Some(generation) = &mut self.generation {
            generation.pending_boundary.take_if(|boundary| matches!(boundary, PendingBoundary::Scores));
        }
        self.passed_boundaries.insert((position, Boundary::Evaluation));
        self.progress_count += 1;
        // The guard's actions are recorded first: a coordinator that restarts does not repeat a
        // recorded evaluation.
        self.check_evaluation(position, &metrics);
        self.scores.insert(position, metrics.clone());
        self.record(Record::Evaluated { position, generation: self.last_generation, metrics, items });
    }

    /// Cancels the evaluation if its state is given up.
    pub(super) fn cancel_outdated_evaluation(&mut self, start: Position) {
        self.evaluation.take_if(|evaluation| evaluation.position != start);
    }
}
