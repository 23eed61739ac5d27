//! The Evaluate directive: captions images of the validation split.

use config::Objective;
use dataset::Split;
use proto::v1::{self, worker_message::Message};

use super::{Stop, Trainer};
use crate::caption_evaluator::{CaptionEvaluator, Writer};

impl Trainer {
    /// Captions the ranges of the validation split that are assigned to this worker, and reports
    /// each when it is done. After a stage that trained the evaluator, evaluates the reference
    /// captions instead.
    pub(super) fn evaluate(&self, generation: u64, order: &v1::Evaluate) -> Result<(), Stop> {
        let stage = self.state.position.unwrap_or_default().stage as usize;
        let evaluator = CaptionEvaluator {
            run: &self.run,
            models: &self.state.models,
            sources: &self.sources,
            data: &self.data,
            split: Split::Validation,
            scenes: self.scenes.as_ref(),
            writer: match self.run.stages[stage].objective {
                Objective::Contrastive => Writer::People,
                _ => Writer::Captioner,
            },
        };
        let ranges = order.ranges.iter().map(|range| range.begin as usize..range.end as usize);
        let (mut left, mut skipped) = (order.ranges.len(), 0);
        for (range, batch) in self.loader.ranges(Split::Validation, ranges) {
            self.not_abandoned()?;
            let batch = batch?;
            skipped += batch.skipped;
            let items = evaluator.items(&batch);
            let range = Some(v1::ImageRange { begin: range.start as u64, end: range.end as u64 });
            let evaluation = order.evaluation;
            let parts = proto::parts(items);
            let last = parts.len() - 1;
            for (number, items) in parts.into_iter().enumerate() {
                let more = number < last;
                let items = v1::EvaluationItems { generation, evaluation, range, items, more };
                self.report(Message::EvaluationItems(items));
            }
            left -= 1;
            if left > 0 && self.halt.is_raised() {
                return Err(Stop::Halted);
            }
        }
        if skipped > 0 {
            tracing::warn!(skipped, "images of the validation split that could not be decoded were left out");
        }
        Ok(())
    }
}
