//! The result of a training step, for its report.

use std::collections::BTreeMap;

use dataset::{DataSet, Split};
use proto::v1;
use summary_statistics::Summary;

use crate::objective::{CandidateExample, LossOutput};
use crate::phase_timer::{PhaseTimer, StepPhase};

/// A step that this rank has completed, with the statistics of the rank's share.
pub struct CompletedStep {
    /// The rank.
    pub rank: usize,
    /// The number of samples of the rank's share.
    pub samples: u32,
    /// The sums over the share.
    pub totals: LossTotals,
    /// The learning rate of the update.
    pub learning_rate: f64,
    /// The L2 norm of the mean gradient before clipping; 0 if there was no update.
    pub gradient_norm: f64,
    /// The duration of the step in seconds, without the wait for its grant.
    pub seconds: f64,
    /// Whether a rank has requested that all ranks stop after this step.
    pub is_halt_requested: bool,
}

impl CompletedStep {
    /// The report of the step, without the position. Rank 0 adds its example, if all numbers of it
    /// are finite. `timer` has the time of each phase.
    #[must_use]
    pub fn into_report(self, data: &DataSet, timer: &PhaseTimer) -> v1::StepDone {
        let Self { rank, samples, totals, learning_rate, gradient_norm, seconds, .. } = self;
        let example = totals.example.filter(|example| rank == 0 && has_finite_values(example));
        v1::StepDone {
            position: None,
            loss_sum: totals.loss_sum,
            loss_weight: totals.weight,
            samples,
            learning_rate,
            gradient_norm,
            seconds,
            all_reduce_seconds: timer.seconds(StepPhase::AllReduce),
            summaries: totals.summaries.iter().map(|(&name, summary)| (name.to_owned(), summary.into())).collect(),
            tokens: totals.tokens,
            phase_seconds: timer.seconds_by_phase(seconds),
            example: example.map(|example| example_message(example, data)),
        }
    }
}

/// Sums over the micro-batches of this rank's share.
#[derive(Default)]
pub struct LossTotals {
    /// The sum of the loss.
    pub loss_sum: f64,
    /// The number of images or tokens of `loss_sum`.
    pub weight: f64,
    /// The number of caption tokens.
    pub tokens: u64,
    /// The example of the first micro-batch that has one.
    pub example: Option<CandidateExample>,
    /// Summaries over the samples, by name.
    pub summaries: BTreeMap<&'static str, Summary>,
}

impl LossTotals {
    /// Adds the result of a micro-batch.
    pub fn add(&mut self, output: LossOutput) {
        self.loss_sum += output.loss_sum;
        self.weight += output.weight;
        self.tokens += output.tokens;
        self.example = self.example.take().or(output.example);
        for (name, summary) in output.summaries {
            self.summaries.entry(name).or_default().merge(&summary);
        }
    }
}

/// Whether all numbers of an example are finite. Other examples are not reported.
fn has_finite_values(example: &CandidateExample) -> bool {
    example.candidates.iter().all(|(_, reward, gamma)| reward.is_finite() && gamma.is_finite())
}

/// Converts an example for the report.
fn example_message(CandidateExample { image, candidates }: CandidateExample, data: &DataSet) -> v1::Example {
    let candidate = |(caption, reward, gamma)| v1::Candidate { caption, reward, gamma };
    let image = data.split(Split::Train)[image].name.clone();
    v1::Example { image, candidates: candidates.into_iter().map(candidate).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_example_with_a_value_that_is_not_finite_is_not_reported() {
        let example = |reward, gamma| CandidateExample { image: 0, candidates: vec![(String::new(), reward, gamma)] };
        assert!(has_finite_values(&example(1.0, 0.0)));
        let invalid = [(f64::NAN, 0.0), (f64::INFINITY, 0.0), (1.0, f64::NAN), (1.0, f64::NEG_INFINITY)];
        assert!(invalid.into_iter().all(|(reward, gamma)| !has_finite_values(&example(reward, gamma))));
    }
}
