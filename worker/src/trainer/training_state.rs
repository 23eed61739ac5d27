//! The training state: parameters and optimizer moments, and its synchronization between ranks.

use config::{Objective, RunFile, TrainedModel};
use run_assets::WeightSources;
use sha2::{Digest, Sha256};
use tch::{Device, Tensor, no_grad};

use crate::captioner::Captioner;
use crate::collective::{Collective, CollectiveError};
use crate::nn::Parameters;
use crate::optimizer::{Adam, AveragedGradient};
use crate::run_models::RunModels;

/// What a training state contains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// The initial state, which every rank computes from the run's seed.
    Initial,
    /// The state at a position of the run.
    Complete,
    /// A mixture of two states, after an interrupted synchronization.
    Incomplete,
}

/// Everything that training changes: the models' parameters and the optimizer's moments. A rank
/// that joins receives it from another rank, and a checkpoint stores it. Its position in the run is
/// known to [`worker_protocol::Training`].
pub struct TrainingState {
    /// What it contains.
    pub content: Content,
    /// The models.
    pub models: RunModels,
    /// The reference policy: the captioner at the beginning of the stage. Only in stages that
    /// reward the captioner's own captions.
    pub reference: Option<Captioner>,
    /// The optimizer of the model that the stage trains.
    pub optimizer: Adam,
    /// Whether checkpoints include the evaluator: its parameters differ from those in the file that
    /// every worker reads.
    saves_evaluator: bool,
    /// The stage that determines the trained model and the optimizer.
    stage: usize,
}

impl TrainingState {
    /// The initial state, at the beginning of `run`'s first stage.
    ///
    /// # Errors
    /// The weights do not fit the models, or the models do not fit each other.
    pub fn new(run: &RunFile, weight_sources: &WeightSources, device: Device) -> anyhow::Result<Self> {
        let models = RunModels::build(run, weight_sources, device)?;
        Ok(Self::of_models(run, models, weight_sources.saves_evaluator()))
    }

    /// The state with these models, at the beginning of `run`'s first stage. Checkpoints include
    /// the evaluator if `saves_evaluator` is true.
    #[must_use]
    pub fn of_models(run: &RunFile, models: RunModels, saves_evaluator: bool) -> Self {
        // Replaced when the first stage is entered, which selects the trained model.
        let optimizer = Adam::new(models.captioner.parameters(), &run.stages[0].optimizer);
        let mut state =
            Self { content: Content::Initial, models, reference: None, optimizer, saves_evaluator, stage: 0 };
        state.enter_stage(run, 0);
        state
    }

    /// Enters stage `stage` at step 0: the trained parameters get zero moments, and all other
    /// parameters are frozen. In a stage with rewards the reference policy is a copy of the
    /// captioner.
    pub fn enter_stage(&mut self, run: &RunFile, stage: usize) {
        let settings = &run.stages[stage];
        self.models.primary_clip.parameters_mut().stop_training();
        self.models.captioner.parameters_mut().stop_training();
        self.reference = settings.objective.is_rewarded().then(|| self.models.captioner.frozen_copy());
        self.stage = stage;
        match settings.objective.contrastive() {
            Some(contrastive) => self.models.primary_clip.start_training(&contrastive.trainable),
            None => self.models.captioner.parameters_mut().start_training(|_| true),
        }
        self.optimizer = Adam::new(self.trained_parameters(&settings.objective), &settings.optimizer);
    }

    /// Applies the optimizer settings of `run`; keeps the moments.
    pub fn configure_optimizer(&mut self, run: &RunFile) {
        let settings = &run.stages[self.stage];
        let trained = trained_parameters(&self.models, &settings.objective);
        self.optimizer.set_config(trained, &settings.optimizer);
    }

    /// The parameters of the model that `objective` trains. Some of them may be frozen.
    pub fn trained_parameters(&self, objective: &Objective) -> &Parameters {
        trained_parameters(&self.models, objective)
    }

    /// Allocates new gradients after a failed all-reduce, which may still write to the old ones.
    pub fn reallocate_gradients(&mut self) {
        self.models.primary_clip.parameters_mut().reallocate_gradient();
        self.models.captioner.parameters_mut().reallocate_gradient();
    }

    /// Applies update `step` (from 1) to the model that `objective` trains.
    pub fn apply_update(
        &mut self,
        objective: &Objective,
        gradient: &AveragedGradient<'_>,
        step: u64,
        learning_rate: f64,
    ) {
        let trained = trained_parameters(&self.models, objective);
        self.optimizer.update(trained, gradient, step, learning_rate);
    }

    /// The run's own models by name, in a fixed order: the models whose parameters differ from
    /// those in the files that every worker reads.
    pub fn own_models(&self) -> impl Iterator<Item = (&'static str, &Parameters)> {
        let evaluator = self.saves_evaluator.then(|| ("evaluator", self.models.primary_clip.parameters()));
        let captioner = ("captioner", self.models.captioner.parameters());
        let reference = self.reference.as_ref().map(|reference| ("reference", reference.parameters()));
        evaluator.into_iter().chain([captioner]).chain(reference)
    }

    /// The buffers of the run's own models and of the optimizer.
    fn buffers(&self) -> Vec<&Tensor> {
        let models = self.own_models().map(|(_, parameters)| parameters.flat());
        models.chain([&self.optimizer.first_moment, &self.optimizer.second_moment]).collect()
    }

    /// Broadcasts the state of rank `source_rank`, which is in stage `stage`, to all ranks, unless
    /// all of them have it: `has_state` is whether this rank has.
    ///
    /// # Errors
    /// A collective operation fails. The state may then be [`Content::Incomplete`].
    pub fn synchronize(
        &mut self,
        run: &RunFile,
        stage: usize,
        has_state: bool,
        source_rank: usize,
        collective: &dyn Collective,
    ) -> Result<(), CollectiveError> {
        let stale_ranks = Tensor::from_slice(&[i64::from(!has_state)]).to_device(self.optimizer.first_moment.device());
        collective.all_reduce(&stale_ranks)?;
        if stale_ranks.int64_value(&[0]) > 0 {
            if self.stage != stage {
                self.enter_stage(run, stage);
            }
            if collective.rank() != source_rank {
                // If the source fails during the broadcast, the buffers are a mixture of two
                // states.
                self.content = Content::Incomplete;
            }
            no_grad(|| self.buffers().into_iter().try_for_each(|buffer| collective.broadcast(buffer, source_rank)))?;
            self.own_models().for_each(|(_, parameters)| parameters.refresh_working_copies());
        }
        self.content = Content::Complete;
        Ok(())
    }

    /// The SHA-256 of all parameters of the run's own models.
    pub fn parameters_sha256(&self) -> String {
        let mut hash = Sha256::new();
        for (_, parameters) in self.own_models() {
            parameters.hash_into(&mut hash);
        }
        format!("{:x}", hash.finalize())
    }
}

fn trained_parameters<'a>(models: &'a RunModels, objective: &Objective) -> &'a Parameters {
    match objective.trains() {
        TrainedModel::Evaluator => models.primary_clip.parameters(),
        TrainedModel::Captioner => models.captioner.parameters(),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::path::Path;

    use tokenizer::Vocabulary;

    use super::*;
    use crate::testing;

    const RUN: &str = "
name: test
output: /nowhere
workers: { min: 1, max: 2 }
data: { karpathy: { annotations: annotations.json, images: images } }
vocabulary: corpus
captioner: { preset: tiny }
evaluator: { preset: tiny }
stages:
  - { name: xe, objective: cross_entropy, steps: 9, batch: 4, optimizer: { learning_rate: 1.0e-3 } }
  - { name: dico, objective: { dico: { reward: { cider: 1 } } }, steps: 9, batch: 4, optimizer: { learning_rate: 1.0e-3 } }
";

    /// Rank 1 of two ranks. Rank 0 fails after it has broadcast this number of buffers.
    struct FailingBroadcast(Cell<usize>);

    /// More than a training state has: the broadcast succeeds.
    const MAX_BUFFERS: usize = 100;

    impl Collective for FailingBroadcast {
        fn rank(&self) -> usize {
            1
        }

        fn world_size(&self) -> usize {
            2
        }

        fn all_reduce(&self, _: &Tensor) -> Result<(), CollectiveError> {
            Ok(())
        }

        fn broadcast(&self, tensor: &Tensor, _: usize) -> Result<(), CollectiveError> {
            let remaining = self.0.get().checked_sub(1);
            self.0.set(remaining.ok_or_else(|| CollectiveError::Failed("the source failed".into()))?);
            _ = tensor.shallow_clone().fill_(0.5);
            Ok(())
        }

        fn all_gather(&self, _: &Tensor) -> Result<Vec<Tensor>, CollectiveError> {
            Err(CollectiveError::Failed("not used in this test".into()))
        }
    }

    #[test]
    fn bf16_copies_are_refreshed_after_a_synchronization() {
        let run = RunFile::parse(Path::new("test.yaml"), &format!("{RUN}precision: bf16\n")).unwrap();
        let weight_sources = WeightSources::open(&run, Vocabulary::of_corpus(["a red circle"])).unwrap();
        let mut state = TrainingState::new(&run, &weight_sources, testing::device()).unwrap();
        let current = |state: &TrainingState| {
            state.own_models().map(|(_, parameters)| parameters.has_current_working_copy()).collect::<Vec<_>>()
        };
        assert_eq!(current(&state), [true; 2]);
        state.synchronize(&run, 1, false, 0, &FailingBroadcast(Cell::new(MAX_BUFFERS))).unwrap();
        assert_eq!(current(&state), [true; 3]);
        // The reference policy gets current copies, too.
        state.enter_stage(&run, 1);
        assert_eq!(current(&state), [true; 3]);
        assert!(state.models.captioner.parameters().flat().eq(0.5).all().int64_value(&[]) == 1);
    }

    #[test]
    fn a_rank_that_joins_has_moments_of_the_trained_parameters_only() {
        let stage = "stages:\n  - { name: part, objective: { contrastive: { trainable: { lora: { rank: 2 } } } }, \
                     steps: 9, batch: 4, optimizer: { learning_rate: 1.0e-3 } }\n";
        let run = RunFile::parse(Path::new("test.yaml"), &RUN.replace("stages:\n", stage)).unwrap();
        let weight_sources = WeightSources::open(&run, Vocabulary::of_corpus(["a red circle"])).unwrap();
        let mut state = TrainingState::new(&run, &weight_sources, testing::device()).unwrap();
        let moments =
            |state: &TrainingState| [&state.optimizer.first_moment, &state.optimizer.second_moment].map(Tensor::numel);
        let factor_moments = moments(&state);
        state.enter_stage(&run, 1);
        assert_eq!(moments(&state), [state.models.captioner.parameters().flat().numel(); 2]);
        state.synchronize(&run, 0, false, 0, &FailingBroadcast(Cell::new(MAX_BUFFERS))).unwrap();
        assert_eq!((state.content, moments(&state)), (Content::Complete, factor_moments));
        let evaluator = state.models.primary_clip.parameters();
        assert_eq!(evaluator.flat_trained().numel(), factor_moments[0]);
        assert!(factor_moments[0] > 0 && factor_moments[0] < evaluator.flat().numel() / 2);
        let is_filled = |buffer: &Tensor| buffer.eq(0.5).all().int64_value(&[]) == 1;
        assert!(is_filled(evaluator.flat()) && is_filled(&state.optimizer.first_moment));
    }

    #[test]
    fn a_state_is_incomplete_after_an_interrupted_synchronization() {
        let run = RunFile::parse(Path::new("test.yaml"), RUN).unwrap();
        let weight_sources = WeightSources::open(&run, Vocabulary::of_corpus(["a red circle"])).unwrap();
        for received in 0..3 {
            let mut state = TrainingState::new(&run, &weight_sources, testing::device()).unwrap();
            assert_eq!(state.content, Content::Initial);
            assert!(state.synchronize(&run, 1, false, 0, &FailingBroadcast(Cell::new(received))).is_err());
            assert_eq!(state.content, Content::Incomplete, "{received} buffers received");
        }
        let mut state = TrainingState::new(&run, &weight_sources, testing::device()).unwrap();
        state.synchronize(&run, 1, false, 0, &FailingBroadcast(Cell::new(MAX_BUFFERS))).unwrap();
        assert_eq!(state.content, Content::Complete);
    }
}
