//! A training step: one update of the stage's model, from the batch to the optimizer.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::time::Instant;

use config::{Precision, Stage};
use dataset::Split;
use proto::v1;
use summary_statistics::Summary;
use tch::{Kind, Tensor};

use super::Trainer;
use super::directive_error::DirectiveError;
use super::training_state::TrainingState;
use crate::collective::{Collective, CollectiveError};
use crate::data::Batch;
use crate::nn::{DropoutMode, GradientBuffer};
use crate::objective::candidates::CandidateDropout;
use crate::objective::step_context::{StageBatch, StepContext};
use crate::objective::{CandidateExample, LossOutput, Objective};
use crate::optimizer::{AveragedGradient, learning_rate_factor};
use crate::phase_timer::{PhaseTimer, StepPhase};
use crate::seeds;

impl Trainer {
    /// Executes one update of the stage's model. Returns its report without the position, and
    /// whether a rank has requested that the generation ends after this step.
    pub(super) fn train_step(&mut self, directive: &v1::Train) -> Result<(v1::StepDone, bool), DirectiveError> {
        let started_at = Instant::now();
        let position = self.position();
        let timer = PhaseTimer::default();
        timer.add(StepPhase::Wait, self.idle_since.take().map_or(0.0, |since| (started_at - since).as_secs_f64()));
        self.progress.set_phase(v1::Phase::Load);
        let batch = timer.time(StepPhase::Load, || {
            self.training_batches.next_batch(&self.run, &self.loader, directive, position.step)
        })?;
        if batch.skipped > 0 {
            tracing::warn!(
                stage = position.stage,
                step = position.step,
                skipped = batch.skipped,
                "images that could not be decoded were left out"
            );
        }

        self.progress.set_phase(v1::Phase::Compute);
        let rank = self.collective()?.rank();
        // Dropout depends only on seed, stage, step and rank, so that a resumed run draws the same
        // masks as an uninterrupted one with the same world size.
        let seed_numbers = [u64::from(position.stage), position.step, rank as u64];
        tch::manual_seed(seeds::combine(self.run.seed, &seed_numbers) as i64);
        let totals = self.forward_backward(position.stage as usize, &batch, &timer)?;

        self.progress.set_phase(v1::Phase::AllReduce);
        let gradient = self.all_reduce(position.stage as usize, totals.weight)?;
        timer.add(StepPhase::AllReduce, gradient.seconds);

        let step = position.step + 1;
        let update = self.optimizer_step(position.stage as usize, step, &gradient, &totals)?;
        let seconds = started_at.elapsed().as_secs_f64();
        let report = self.step_report(CompletedStep {
            rank,
            samples: batch.samples.len() as u32,
            totals,
            update,
            seconds,
            all_reduce_seconds: gradient.seconds,
            phase_seconds: timer.seconds_by_phase(seconds),
        });
        self.idle_since = Some(Instant::now());
        Ok((report, gradient.is_halt_requested))
    }

    /// The report of a completed step, without the position.
    fn step_report(&self, step: CompletedStep) -> v1::StepDone {
        let CompletedStep { rank, samples, totals, update, seconds, all_reduce_seconds, phase_seconds } = step;
        let example = totals.example.filter(|example| rank == 0 && has_finite_values(example));
        v1::StepDone {
            position: None,
            loss_sum: totals.loss_sum,
            loss_weight: totals.weight,
            samples,
            learning_rate: update.learning_rate,
            gradient_norm: update.gradient_norm,
            seconds,
            all_reduce_seconds,
            summaries: totals.summaries.iter().map(|(&name, summary)| (name.to_owned(), summary.into())).collect(),
            tokens: totals.tokens,
            phase_seconds,
            example: example.map(|example| self.example_report(example)),
        }
    }

    /// Converts an example for the report.
    fn example_report(&self, CandidateExample { image, candidates }: CandidateExample) -> v1::Example {
        let candidate = |(caption, reward, gamma)| v1::Candidate { caption, reward, gamma };
        let image = self.data.split(Split::Train)[image].name.clone();
        v1::Example { image, candidates: candidates.into_iter().map(candidate).collect() }
    }

    /// Forward and backward pass over a batch, one micro-batch at a time, which accumulates the
    /// gradients. If no image of this rank's share could be decoded, there are no micro-batches,
    /// except for the contrastive objective, in which all ranks exchange embeddings.
    fn forward_backward(&self, stage: usize, batch: &Batch, timer: &PhaseTimer) -> Result<LossTotals, DirectiveError> {
        let settings = &self.run.stages[stage];
        let gradient = self.training_state.trained_parameters(&settings.objective).gradient();
        _ = gradient.expect("the stage's model is in training").values.zero_();
        let mut totals = LossTotals::default();
        for micro_batch in micro_batches(settings, batch.samples.len()) {
            self.check_abandoned()?;
            let output = self.compute_loss(stage, batch, micro_batch, timer)?;
            // A share without images has no gradient if the temperature of the contrastive loss is
            // frozen.
            if output.loss.requires_grad() {
                output.loss.backward();
            }
            totals.add(output);
        }
        Ok(totals)
    }

    /// Sums gradient, weight and halt flag over all ranks. `weight` is this rank's [loss
    /// weight](LossTotals::weight).
    fn all_reduce(&mut self, stage: usize, weight: f64) -> Result<ReducedGradient, DirectiveError> {
        let parameters = self.training_state.trained_parameters(&self.run.stages[stage].objective);
        let mut gradient = parameters.gradient().expect("the stage's model is in training");
        // The halt flag is reduced with the gradient, so that all ranks stop after the same
        // step.
        let halt_flag = if self.protocol.flags().halt.is_raised() { 1.0 } else { 0.0 };
        gradient.extra.copy_(&Tensor::from_slice(&[weight, halt_flag]));
        let started_at = Instant::now();
        if let Err(error) = all_reduce_gradient(&mut gradient, self.collective()?, self.run.gradient_dtype) {
            self.training_state.reallocate_gradients();
            return Err(error.into());
        }
        let seconds = started_at.elapsed().as_secs_f64();
        let extra = Vec::<f32>::try_from(&gradient.extra).map_err(anyhow::Error::from)?;
        Ok(ReducedGradient {
            values: gradient.values,
            weight: f64::from(extra[0]),
            is_halt_requested: extra[1] > 0.0,
            seconds,
        })
    }

    /// Divides and clips the gradient, and applies update `step` (from 1) of the stage.
    fn optimizer_step(
        &mut self,
        stage: usize,
        step: u64,
        gradient: &ReducedGradient,
        totals: &LossTotals,
    ) -> Result<UpdateReport, DirectiveError> {
        let stage = &self.run.stages[stage];
        let learning_rate = stage.optimizer.learning_rate * learning_rate_factor(&stage.schedule, step, stage.steps);
        // All ranks have the same sum, so they agree on whether there is an update.
        let average = (gradient.weight > 0.0).then(|| AveragedGradient::new(&gradient.values, gradient.weight));
        let gradient_norm = average.as_ref().map_or(0.0, |average| average.norm);
        if !gradient_norm.is_finite() {
            let (name, loss) = (&stage.name, totals.loss_sum / totals.weight);
            return Err(DirectiveError::Fatal(format!(
                "the gradient of stage {name} is not finite at step {step} (loss {loss}): lower its learning rate"
            )));
        }
        match average {
            Some(average) => self.training_state.apply_update(&stage.objective, &average, step, learning_rate),
            None => tracing::warn!(
                stage = stage.name,
                step,
                "the step changes nothing: no image of its batch could be decoded"
            ),
        }
        Ok(UpdateReport { learning_rate, gradient_norm })
    }

    /// Forward pass: the loss of the samples `range`.
    fn compute_loss(
        &self,
        stage: usize,
        batch: &Batch,
        range: Range<usize>,
        timer: &PhaseTimer,
    ) -> Result<LossOutput, DirectiveError> {
        let TrainingState { models, reference, .. } = &self.training_state;
        let context = StepContext {
            models,
            reference: reference.as_ref(),
            weight_sources: &self.weight_sources,
            data: &self.data,
            cider: self.cider.as_ref(),
            collective: self.collective()?,
            device: self.device,
            mode: DropoutMode::Train { dropout: self.run.captioner.dropout },
            generation: self.generation_config(),
            candidate_dropout: self.candidate_dropout(),
            max_target_length: self.run.captioner.max_target_length as usize,
            timer,
            set_phase: &|phase| self.progress.set_phase(phase),
        };
        Ok(self.run.stages[stage].objective.compute_loss(&StageBatch { batch, range }, &context)?)
    }

    /// The dropout while this step's candidates are generated; none if it is disabled.
    fn candidate_dropout(&self) -> Option<CandidateDropout> {
        let probability = self.run.captioner.dropout;
        let v1::Position { stage, step, .. } = self.position();
        let seed = seeds::combine(seeds::derive(self.run.seed, "candidates"), &[u64::from(stage), step]);
        (self.run.decoding.candidate_dropout && probability > 0.0).then_some(CandidateDropout { probability, seed })
    }
}

/// Whether all numbers of an example are finite. Other examples are not reported.
fn has_finite_values(example: &CandidateExample) -> bool {
    example.candidates.iter().all(|(_, reward, gamma)| reward.is_finite() && gamma.is_finite())
}

/// The micro-batches of a share with this number of samples. If the objective needs the whole
/// batch, there is one, which may be empty: the other ranks wait for its embeddings.
fn micro_batches(settings: &Stage, samples: usize) -> Vec<Range<usize>> {
    if settings.objective.needs_whole_batch() {
        return std::iter::once(0..samples).collect();
    }
    let size = settings.micro_batch.map_or(samples, |size| size as usize).max(1);
    (0..samples).step_by(size).map(|begin| begin..samples.min(begin + size)).collect()
}

/// Sums a gradient and its extra values over all ranks, with the gradient in `gradient_dtype`.
fn all_reduce_gradient(
    gradient: &mut GradientBuffer,
    collective: &dyn Collective,
    gradient_dtype: Precision,
) -> Result<(), CollectiveError> {
    let GradientBuffer { buffer, values, extra } = gradient;
    match gradient_dtype {
        Precision::F32 => collective.all_reduce(buffer),
        Precision::Bf16 => {
            let bf16_values = values.to_kind(Kind::BFloat16);
            collective.all_reduce(&bf16_values)?;
            values.copy_(&bf16_values);
            // The weight has to be exact, so it is reduced in f32.
            collective.all_reduce(extra)
        }
    }
}

/// The gradient and the extra values, summed over all ranks.
struct ReducedGradient {
    /// The sum of the gradients, `[trained]`.
    values: Tensor,
    /// The sum of the loss weights, by which the gradient is divided.
    weight: f64,
    /// Whether a rank has requested to halt after this step.
    is_halt_requested: bool,
    /// The duration of the all-reduce on this rank.
    seconds: f64,
}

/// The learning rate and the gradient norm of an update, for the step's report.
struct UpdateReport {
    learning_rate: f64,
    /// Before clipping; 0 if there was no update.
    gradient_norm: f64,
}

/// The content of a step's report.
struct CompletedStep {
    rank: usize,
    /// Number of samples of this rank's share.
    samples: u32,
    totals: LossTotals,
    update: UpdateReport,
    /// The duration of the step, without the wait for its grant.
    seconds: f64,
    all_reduce_seconds: f64,
    phase_seconds: HashMap<String, f64>,
}

/// Sums over the micro-batches of this rank's share.
#[derive(Default)]
struct LossTotals {
    loss_sum: f64,
    /// The number of images or tokens of `loss_sum`.
    weight: f64,
    tokens: u64,
    /// The example of the first micro-batch that has one.
    example: Option<CandidateExample>,
    summaries: BTreeMap<&'static str, Summary>,
}

impl LossTotals {
    fn add(&mut self, output: LossOutput) {
        self.loss_sum += output.loss_sum;
        self.weight += output.weight;
        self.tokens += output.tokens;
        self.example = self.example.take().or(output.example);
        for (name, summary) in output.summaries {
            self.summaries.entry(name).or_default().merge(&summary);
        }
    }
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;
    use crate::nn::ParameterBuilder;

    /// Rank 0 of three ranks with identical tensors.
    struct IdenticalRanks;

    impl Collective for IdenticalRanks {
        fn rank(&self) -> usize {
            0
        }

        fn world_size(&self) -> usize {
            3
        }

        fn all_reduce(&self, tensor: &Tensor) -> Result<(), CollectiveError> {
            _ = tensor.shallow_clone().g_mul_scalar_(3.0);
            Ok(())
        }

        fn broadcast(&self, _: &Tensor, _: usize) -> Result<(), CollectiveError> {
            Err(CollectiveError::Failed("not used in this test".into()))
        }

        fn all_gather(&self, _: &Tensor) -> Result<Vec<Tensor>, CollectiveError> {
            Err(CollectiveError::Failed("not used in this test".into()))
        }
    }

    #[test]
    fn bf16_gradients_are_reduced_with_exact_weights() {
        let values = [1.0_f32, 0.003_141_592_7, -123_456.0];
        let reduced = |gradient_dtype| {
            let mut builder = ParameterBuilder::new(1, Device::Cpu);
            _ = builder.normal("vector", &[3], 1.0);
            let mut parameters = builder.finish();
            parameters.start_training(|_| true);
            let mut gradient = parameters.gradient().unwrap();
            gradient.values.copy_(&Tensor::from_slice(&values));
            gradient.extra.copy_(&Tensor::from_slice(&[1_000_003.0_f32, 1.0]));
            all_reduce_gradient(&mut gradient, &IdenticalRanks, gradient_dtype).unwrap();
            Vec::<f32>::try_from(parameters.gradient().unwrap().buffer).unwrap()
        };
        let (f32_sum, bf16_sum) = (reduced(Precision::F32), reduced(Precision::Bf16));
        assert_eq!(f32_sum, [3.0, 3.0 * values[1], 3.0 * values[2], 3_000_009.0, 3.0]);
        assert_eq!(bf16_sum[3..], f32_sum[3..]);
        assert_ne!(bf16_sum[1], f32_sum[1]);
        let is_close = |(bf16, f32): (&f32, &f32)| (bf16 - f32).abs() < 0.01 * f32.abs();
        assert!(bf16_sum.iter().zip(&f32_sum).all(is_close), "{bf16_sum:?}");
    }

    #[test]
    fn an_example_with_a_value_that_is_not_finite_is_not_reported() {
        let example = |reward, gamma| CandidateExample { image: 0, candidates: vec![(String::new(), reward, gamma)] };
        assert!(has_finite_values(&example(1.0, 0.0)));
        let invalid = [(f64::NAN, 0.0), (f64::INFINITY, 0.0), (1.0, f64::NAN), (1.0, f64::NEG_INFINITY)];
        assert!(invalid.into_iter().all(|(reward, gamma)| !has_finite_values(&example(reward, gamma))));
    }
}
