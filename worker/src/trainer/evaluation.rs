//! The Evaluate directive: captions this rank's images of the validation split, and scores the
//! captions.

use config::TrainedModel;
use dataset::Split;
use proto::v1;
use worker_protocol::{Response, Work};

use super::Trainer;
use super::directive_error::DirectiveError;
use crate::split_evaluation::{EvaluatedCaptions, SplitEvaluation};

impl Trainer {
    /// Captions ranges of the validation split, and reports each when it is done, until the next
    /// work is another. In a stage that trains the evaluator, evaluates the reference captions
    /// instead.
    pub(super) fn evaluate(&mut self, directive: &v1::Evaluate) -> Result<Response, DirectiveError> {
        let stage = self.position().stage as usize;
        let split_evaluation = SplitEvaluation {
            run: &self.run,
            models: &self.training_state.models,
            data: &self.data,
            split: Split::Validation,
            scenes: self.scenes.as_ref(),
            captions: match self.run.stages[stage].objective.trains() {
                TrainedModel::Evaluator => EvaluatedCaptions::References,
                TrainedModel::Captioner => EvaluatedCaptions::Captioner,
            },
        };
        let ranges = directive.ranges.iter().map(|range| range.begin as usize..range.end as usize);
        let mut skipped = 0;
        let mut response = Response::default();
        for (_, batch) in self.loader.load_ranges(Split::Validation, ranges) {
            let batch = batch?;
            skipped += batch.skipped;
            let items = split_evaluation.evaluate_batch(&batch);
            response = self.protocol.captioned(proto::split_items(items));
            if !matches!(response.work, Some(Work::Caption(_))) {
                break;
            }
            for report in std::mem::take(&mut response.reports) {
                // As in `send_reports`.
                _ = self.reports.blocking_send(report);
            }
        }
        if skipped > 0 {
            tracing::warn!(skipped, "images of the validation split that could not be decoded were left out");
        }
        Ok(response)
    }
}
