//! A training step: one update of the stage's model, from the batch to the optimizer. The trainer
//! and `worker bench step` execute the same step.

#[cfg(test)]
mod golden;

use std::ops::Range;
use std::time::Instant;

use caption_metrics::cider::CiderReward;
use config::{Precision, RunFile, Stage};
use dataset::DataSet;
use proto::v1;
use tch::{Kind, Tensor};
use worker_protocol::StopFlag;

use super::batches::TrainingBatches;
use super::completed_step::{CompletedStep, LossTotals};
use super::step_error::StepError;
use super::training_state::TrainingState;
use crate::captioner::GenerationConfig;
use crate::collective::{Collective, CollectiveError};
use crate::data::{Batch, DataLoader};
use crate::nn::{DropoutMode, GradientBuffer};
use crate::objective::candidates::CandidateDropout;
use crate::objective::step_context::{StageBatch, StepContext};
use crate::objective::{LossOutput, Objective};
use crate::optimizer::{AveragedGradient, learning_rate_factor};
use crate::phase_timer::{PhaseTimer, StepPhase};
use crate::seeds;

/// The next step of a run on this rank: everything that it reads and changes.
pub struct TrainingStep<'a> {
    /// The run file.
    pub run: &'a RunFile,
    /// The images and captions of the run.
    pub data: &'a DataSet,
    /// CIDEr-D with the training captions as references; none if no stage rewards it.
    pub cider: Option<&'a CiderReward>,
    /// Loads the batches.
    pub loader: &'a DataLoader,
    /// The batches of the rank.
    pub batches: &'a mut TrainingBatches,
    /// The parameters and the optimizer.
    pub state: &'a mut TrainingState,
    /// The position of the training state before the step.
    pub position: v1::Position,
    /// The settings of beam search and sampling.
    pub generation_config: GenerationConfig,
    /// The other ranks.
    pub collective: &'a dyn Collective,
    /// This rank's share of the step's samples.
    pub share: Range<u32>,
    /// Interrupts the step. Checked between micro-batches, because the coordinator evicts a member
    /// that does not release its generation.
    pub abandon: &'a StopFlag,
    /// Requests that all ranks stop after this step.
    pub halt: &'a StopFlag,
    /// Publishes what this rank is doing, for heartbeats.
    pub set_phase: &'a dyn Fn(v1::Phase),
    /// Measures the time of each phase.
    pub timer: &'a PhaseTimer,
}

impl<'a> TrainingStep<'a> {
    /// Executes the step. On success the training state is one step further than `position`.
    ///
    /// # Errors
    /// The generation was abandoned or has failed, the batch cannot be loaded, or the gradient is
    /// not finite. The parameters are unchanged.
    pub fn run(mut self) -> Result<CompletedStep, StepError> {
        let started_at = Instant::now();
        (self.set_phase)(v1::Phase::Load);
        let batch = self.load_batch()?;
        (self.set_phase)(v1::Phase::Compute);
        let totals = self.forward_backward(&batch)?;
        (self.set_phase)(v1::Phase::AllReduce);
        let gradient = self.all_reduce(totals.weight)?;
        let step = self.position.step + 1;
        let (learning_rate, gradient_norm) = self.optimizer_step(step, &gradient, &totals)?;
        Ok(CompletedStep {
            rank: self.collective.rank(),
            samples: batch.samples.len() as u32,
            totals,
            learning_rate,
            gradient_norm,
            seconds: started_at.elapsed().as_secs_f64(),
            is_halt_requested: gradient.is_halt_requested,
        })
    }

    fn stage(&self) -> &'a Stage {
        &self.run.stages[self.position.stage as usize]
    }

    /// This rank's share of the step's samples.
    fn load_batch(&mut self) -> Result<Batch, StepError> {
        let v1::Position { stage, step, .. } = self.position;
        let Self { run, loader, batches, share, timer, .. } = self;
        let batch = timer.time(StepPhase::Load, || batches.next_batch(run, loader, stage, step, share))?;
        if batch.skipped > 0 {
            let skipped = batch.skipped;
            tracing::warn!(stage, step, skipped, "images that could not be decoded were left out");
        }
        Ok(batch)
    }

    /// Forward and backward pass over a batch, one micro-batch at a time, which accumulates the
    /// gradients. If no image of this rank's share could be decoded, there are no micro-batches,
    /// except for the contrastive objective, in which all ranks exchange embeddings.
    fn forward_backward(&self, batch: &Batch) -> Result<LossTotals, StepError> {
        let stage = self.stage();
        // Dropout depends only on seed, stage, step and rank, so that a resumed run draws the same
        // masks as an uninterrupted one with the same world size.
        let v1::Position { stage: stage_index, step, .. } = self.position;
        let seed_numbers = [u64::from(stage_index), step, self.collective.rank() as u64];
        tch::manual_seed(seeds::combine(self.run.seed, &seed_numbers) as i64);
        let gradient = self.state.trained_parameters(&stage.objective).gradient();
        _ = gradient.expect("the stage's model is in training").values.zero_();
        let mut totals = LossTotals::default();
        for micro_batch in micro_batches(stage, batch.samples.len()) {
            if self.abandon.is_raised() {
                return Err(CollectiveError::Abandoned.into());
            }
            let output = self.compute_loss(batch, micro_batch)?;
            // A share without images has no gradient if the temperature of the contrastive loss is
            // frozen.
            if output.loss.requires_grad() {
                output.loss.backward();
            }
            totals.add(output);
        }
        Ok(totals)
    }

    /// Forward pass: the loss of the samples `range`.
    fn compute_loss(&self, batch: &Batch, range: Range<usize>) -> Result<LossOutput, StepError> {
        let context = StepContext {
            models: &self.state.models,
            reference: self.state.reference.as_ref(),
            data: self.data,
            cider: self.cider,
            collective: self.collective,
            mode: DropoutMode::Train { dropout: self.run.captioner.dropout },
            generation: self.generation_config,
            candidate_dropout: self.candidate_dropout(),
            max_target_length: self.run.captioner.max_target_length as usize,
            timer: self.timer,
            set_phase: self.set_phase,
        };
        Ok(self.stage().objective.compute_loss(&StageBatch { batch, range }, &context)?)
    }

    /// The dropout while this step's candidates are generated; none if it is disabled.
    fn candidate_dropout(&self) -> Option<CandidateDropout> {
        let probability = self.run.captioner.dropout;
        let v1::Position { stage, step, .. } = self.position;
        let seed = seeds::combine(seeds::derive(self.run.seed, "candidates"), &[u64::from(stage), step]);
        (self.run.decoding.candidate_dropout && probability > 0.0).then_some(CandidateDropout { probability, seed })
    }

    /// Sums gradient, weight and halt flag over all ranks. `weight` is this rank's [loss
    /// weight](LossTotals::weight).
    fn all_reduce(&mut self, weight: f64) -> Result<ReducedGradient, StepError> {
        let parameters = self.state.trained_parameters(&self.stage().objective);
        let mut gradient = parameters.gradient().expect("the stage's model is in training");
        // The halt flag is reduced with the gradient, so that all ranks stop after the same
        // step.
        let halt_flag = if self.halt.is_raised() { 1.0 } else { 0.0 };
        gradient.extra.copy_(&Tensor::from_slice(&[weight, halt_flag]));
        let (collective, gradient_dtype) = (self.collective, self.run.gradient_dtype);
        let reduce = || all_reduce_gradient(&mut gradient, collective, gradient_dtype);
        if let Err(error) = self.timer.time(StepPhase::AllReduce, reduce) {
            self.state.reallocate_gradients();
            return Err(error.into());
        }
        let extra = Vec::<f32>::try_from(&gradient.extra).map_err(anyhow::Error::from)?;
        let is_halt_requested = extra[1] > 0.0;
        Ok(ReducedGradient { values: gradient.values, weight: f64::from(extra[0]), is_halt_requested })
    }

    /// Divides and clips the gradient, and applies update `step` (from 1) of the stage. Returns the
    /// learning rate, and the norm of the gradient before clipping, 0 if there is no update.
    fn optimizer_step(
        &mut self,
        step: u64,
        gradient: &ReducedGradient,
        totals: &LossTotals,
    ) -> Result<(f64, f64), StepError> {
        let stage = self.stage();
        let learning_rate = stage.optimizer.learning_rate * learning_rate_factor(&stage.schedule, step, stage.steps);
        // All ranks have the same sum, so they agree on whether there is an update.
        let average = (gradient.weight > 0.0).then(|| AveragedGradient::new(&gradient.values, gradient.weight));
        let gradient_norm = average.as_ref().map_or(0.0, |average| average.norm);
        if !gradient_norm.is_finite() {
            let loss = totals.loss_sum / totals.weight;
            return Err(StepError::GradientNotFinite { stage: stage.name.clone(), step, loss });
        }
        match average {
            Some(average) => self.state.apply_update(&stage.objective, &average, step, learning_rate),
            None => tracing::warn!(
                stage = stage.name,
                step,
                "the step changes nothing: no image of its batch could be decoded"
            ),
        }
        Ok((learning_rate, gradient_norm))
    }
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
}
