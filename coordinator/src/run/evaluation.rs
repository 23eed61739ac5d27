//! Evaluations: collects captions of the validation images from the members, then has them scored.
//!
//! An evaluation belongs to the run, not to a generation. When a generation ends during an
//! evaluation and the next generation starts from the same state, the evaluation continues: members
//! report only the captions that are missing, and scores that are being computed are used. If the
//! next generation starts from another state, the evaluated state is given up and the evaluation is
//! cancelled.

use std::collections::BTreeMap;

use proto::{v1, v1::directive::Directive};
use serde_json::json;

use super::{
    Action, ProtocolViolation, Rank, Run, WorkerId,
    captions::{self, Captions, EvaluationItem, ImageRange, ReportableScores},
    plan::{Boundary, Position},
    progress::PendingBoundary,
    record::{EventKind, Record},
};

/// The evaluation in progress.
#[derive(Debug)]
pub(super) struct Evaluation {
    /// The number of the evaluation; directives and reports contain it.
    number: u64,
    /// The position of the state that is evaluated.
    position: Position,
    /// The captions that the members have reported so far; none once they are complete and are
    /// being scored.
    captions: Option<Captions>,
    /// Why the captions cannot be saved; none if they can. Until they are saved, the evaluation is
    /// not complete and the run waits.
    pub save_error: Option<String>,
}

impl Run {
    /// Starts or continues the evaluation of the state at `position`: assigns the missing ranges of
    /// images to members, or waits for the scores if no range is missing.
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
        let share = |rank| captions::share_of_rank(&missing, world_size, rank);
        let ranks = (0..).map(Rank).zip(&generation.members);
        let pending = ranks.map(|(rank, worker_id)| (*worker_id, share(rank).iter().copied().collect())).collect();
        generation.pending_boundary = Some(PendingBoundary::Captions { pending });
        self.broadcast(|rank, _| {
            let ranges = share(rank).iter().map(|range| (*range).into()).collect();
            Directive::Evaluate(v1::Evaluate { evaluation: number, ranges })
        });
    }

    /// Waits for the scores of the complete captions. Requests the scores unless they were
    /// requested before.
    fn request_scores(&mut self) {
        if let Some(generation) = &mut self.generation {
            generation.pending_boundary = Some(PendingBoundary::Scores);
        }
        let Some(Evaluation { number, position, captions, .. }) = &mut self.evaluation else { return };
        let (evaluation, position, Some(complete)) = (*number, *position, captions.take()) else { return };
        let items = complete.into_items();
        let captions_file = self.file.captions_folder().join(format!("{}.json", self.state_name(position)));
        self.actions.push(Action::Score { evaluation, items, captions_file });
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
            return Err(ProtocolViolation::new(format!("evaluation {} is not in progress", report.evaluation)));
        };
        let range = ImageRange::from(report.range.ok_or_else(|| ProtocolViolation::new("captions without a range"))?);
        let is_pending = pending
            .get_mut(&worker_id)
            .is_some_and(|pending| if report.more { pending.contains(&range) } else { pending.remove(&range) });
        if !is_pending {
            let ImageRange { begin, end } = range;
            return Err(ProtocolViolation::new(format!(
                "captions of the images {begin}..{end}, which were not assigned to it, or which it has sent before"
            )));
        }
        captions.add(range, report.items, report.more)?;
        if captions.is_complete() {
            self.request_scores();
        }
        Ok(())
    }

    /// Handles [`super::Event::CaptionSaveAttempted`]: saving the captions has failed, or has
    /// succeeded after a failure.
    pub(super) fn handle_caption_save_attempt(&mut self, number: u64, error: Option<String>) {
        // There is no evaluation any more if its state was given up in the meantime.
        let Some(evaluation) = self.evaluation.as_mut().filter(|evaluation| evaluation.number == number) else {
            return;
        };
        let position = evaluation.position.to_string();
        let previous_error = std::mem::replace(&mut evaluation.save_error, error);
        match (&previous_error, &evaluation.save_error) {
            (None, Some(reason)) => {
                let detail = json!({ "at": position, "reason": reason });
                self.record_event(EventKind::SaveFailed, detail);
            }
            (Some(reason), None) => {
                let detail = json!({ "at": position, "reason": reason });
                self.record_event(EventKind::SavedAgain, detail);
            }
            _ => {}
        }
    }

    /// Handles [`super::Event::Scored`]: completes the evaluation.
    pub(super) fn handle_scores(&mut self, number: u64, metrics: BTreeMap<String, f64>, items: Vec<EvaluationItem>) {
        // There is no evaluation any more if its state was given up in the meantime.
        let Some(evaluation) = self.evaluation.take_if(|evaluation| evaluation.number == number) else { return };
        let position = evaluation.position;
        if let Some(generation) = &mut self.generation {
            generation.pending_boundary.take_if(|boundary| matches!(boundary, PendingBoundary::Scores));
        }
        self.passed_boundaries.insert((position, Boundary::Evaluation));
        self.progress_count += 1;
        // The guard's actions are recorded before the evaluation. In the other order, a coordinator
        // that crashes between the two records would find the evaluation in the journal after its
        // restart, would not repeat it, and would never execute the actions.
        self.check_evaluation(position, &metrics);
        self.scores.insert(position, metrics.clone());
        self.record(Record::Evaluated { position, generation: self.last_generation, metrics, items });
    }

    /// Cancels the evaluation if the next generation starts from another state.
    pub(super) fn cancel_outdated_evaluation(&mut self, start: Position) {
        self.evaluation.take_if(|evaluation| evaluation.position != start);
    }
}
