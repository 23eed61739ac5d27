//! What a training step gives to the objective of its stage.

use std::ops::Range;

use caption_metrics::cider::CiderReward;
use config::{Reward, Rewards};
use dataset::{DataSet, Split};
use proto::v1;
use run_assets::Evaluator;
use tch::Tensor;

use super::candidates::{CandidateContext, CandidateDropout};
use super::reward::{EncodedImages, EvaluatorReward, RewardModel};
use crate::captioner::{Captioner, GenerationConfig};
use crate::collective::Collective;
use crate::data::{Batch, Sample};
use crate::nn::DropoutMode;
use crate::phase_timer::{PhaseTimer, StepPhase};
use crate::run_models::RunModels;

/// A micro-batch: the part of this rank's share of a step for which an objective computes the loss
/// in one call.
pub struct StageBatch<'a> {
    /// The share.
    pub batch: &'a Batch,
    /// The indices in `batch.samples` of the samples that belong to the micro-batch.
    pub range: Range<usize>,
}

impl<'a> StageBatch<'a> {
    /// The samples of the micro-batch.
    #[must_use]
    pub fn samples(&self) -> &'a [Sample] {
        &self.batch.samples[self.range.clone()]
    }
}

/// What an objective may need besides a batch: models, data and the other ranks.
pub struct StepContext<'a> {
    /// The models, one of which is in training.
    pub models: &'a RunModels,
    /// The frozen copy of the captioner from the beginning of the stage; only in stages with
    /// rewards.
    pub reference: Option<&'a Captioner>,
    /// Images and captions of the run.
    pub data: &'a DataSet,
    /// CIDEr-D with the training captions as references; none if no stage rewards it.
    pub cider: Option<&'a CiderReward>,
    /// The other ranks.
    pub collective: &'a dyn Collective,
    /// The dropout of the model in training (the policy, in objectives with candidates) while its
    /// loss is computed.
    pub mode: DropoutMode,
    /// The settings of beam search and sampling.
    pub generation: GenerationConfig,
    /// The dropout while this step's candidates are generated; none if it is disabled.
    pub candidate_dropout: Option<CandidateDropout>,
    /// The maximal length of a caption in cross-entropy, in tokens.
    pub max_target_length: usize,
    /// Measures the time of each phase.
    pub timer: &'a PhaseTimer,
    /// Publishes what this rank is doing, for heartbeats.
    pub set_phase: &'a dyn Fn(v1::Phase),
}

impl StepContext<'_> {
    /// The reference captions of the samples.
    pub fn reference_captions<'b>(&'b self, batch: &StageBatch<'b>) -> impl Iterator<Item = &'b str> {
        let caption = |sample: &Sample| &self.data.split(Split::Train)[sample.image].captions[sample.caption];
        batch.samples().iter().map(caption).map(String::as_str)
    }

    /// The hidden states of the captioner's vision encoder,
    /// `[samples, vision tokens, vision width]`.
    pub fn hidden_states(&self, batch: &StageBatch<'_>) -> Tensor {
        self.timer.time(StepPhase::Vision, || self.models.hidden_states(batch.batch, batch.range.clone()))
    }

    /// Encodes the images of the samples, and calls `compute` with the captioner, these images, and
    /// the context that generates their candidates and rewards them by `rewards`.
    ///
    /// # Panics
    /// There is no reference: the settings of the stage's objective have no rewards.
    pub fn with_candidate_context<T>(
        &self,
        batch: &StageBatch<'_>,
        rewards: &Rewards,
        compute: impl FnOnce(&Captioner, &EncodedImages<'_>, &CandidateContext<'_>) -> T,
    ) -> T {
        let Self { models, timer, .. } = self;
        let reward_evaluators = models.evaluators.iter().filter(|evaluator| {
            let weight = rewards.get(&Reward::Evaluator(evaluator.name.clone()));
            weight.is_some_and(|weight| *weight != 0.0)
        });
        let reward_evaluators: Vec<&Evaluator> = reward_evaluators.collect();
        let evaluators: Vec<EvaluatorReward<'_>> =
            reward_evaluators.iter().map(|evaluator| EvaluatorReward::new(evaluator, models)).collect();
        let context = CandidateContext {
            reference: self.reference.expect("a stage with rewards has a reference"),
            reward_model: RewardModel { evaluators: &evaluators, cider: self.cider, weights: rewards },
            vocabulary: &models.captioner_vocabulary,
            generation: self.generation,
            candidate_dropout: self.candidate_dropout,
            timer,
        };
        let hidden = self.hidden_states(batch);
        let StageBatch { batch: all, range } = batch;
        let embed = |evaluator: &&Evaluator| models.embeddings(all, range.clone(), &hidden, evaluator.clip_index);
        let embeddings: Vec<Tensor> = timer.time(StepPhase::Vision, || reward_evaluators.iter().map(embed).collect());
        let indices: Vec<usize> = batch.samples().iter().map(|sample| sample.image).collect();
        let images = EncodedImages { hidden: &hidden, embeddings: &embeddings, indices: &indices };
        compute(&models.captioner, &images, &context)
    }
}
