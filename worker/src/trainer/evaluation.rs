//! The Evaluate directive: captions this rank's images of the validation split, and scores the
//! captions.

use config::TrainedModel;
use dataset::Split;
use proto::v1::{self, worker_message::Message};

use super::Trainer;
use super::directive_error::DirectiveError;
use crate::split_evaluation::{EvaluatedCaptions, SplitEvaluation};

impl Trainer {
    /// Captions the ranges of the validation split that are assigned to this worker, and reports
    /// each range when it is done. In a stage that trains the evaluator, evaluates the reference
    /// captions instead. A halt ends the evaluation after the range in flight.
    pub(super) fn evaluate(&self, generation: u64, directive: &v1::Evaluate) -> Result<(), DirectiveError> {
        let stage = self.training_state.position.unwrap_or_default().stage as usize;
        let split_evaluation = SplitEvaluation {
            run: &self.run,
            models: &self.training_state.models,
            weight_sources: &self.weight_sources,
            data: &self.data,
            split: Split::Validation,
            scenes: self.scenes.as_ref(),
            captions: match self.run.stages[stage].objective.trains() {
                TrainedModel::Evaluator => EvaluatedCaptions::References,
                TrainedModel::Captioner => EvaluatedCaptions::Captioner,
            },
        };
        let ranges = directive.ranges.iter().map(|range| range.begin as usize..range.end as usize);
        let (mut remaining_ranges, mut skipped) = (directive.ranges.len(), 0);
        for (range, batch) in self.loader.load_ranges(Split::Validation, ranges) {
            self.check_abandoned()?;
            let batch = batch?;
            skipped += batch.skipped;
            let items = split_evaluation.evaluate_batch(&batch);
            let range = Some(v1::ImageRange { begin: range.start as u64, end: range.end as u64 });
            let evaluation = directive.evaluation;
            let messages = proto::split_items(items);
            let last = messages.len() - 1;
            for (index, items) in messages.into_iter().enumerate() {
                let more = index < last;
                let items = v1::EvaluationItems { generation, evaluation, range, items, more };
                self.send_report(Message::EvaluationItems(items));
            }
            remaining_ranges -= 1;
            if remaining_ranges > 0 && self.halt.is_raised() {
                return Err(DirectiveError::Halted);
            }
        }
        if skipped > 0 {
            tracing::warn!(skipped, "images of the validation split that could not be decoded were left out");
        }
        Ok(())
    }
}
