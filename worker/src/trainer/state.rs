//! The training state: models, optimizer and position, and how it moves between ranks.

use config::{Objective, RunFile};
use proto::v1;
use sha2::{Digest, Sha256};
use tch::{Device, Tensor, no_grad};

use crate::captioner::Captioner;
use crate::collective::{Collective, CollectiveError};
use crate::models::{Models, WeightSources};
use crate::nn::Parameters;
use crate::optimizer::{Adam, AveragedGradient};

/// Everything that training changes: the part of a worker that a joining rank receives and a
/// checkpoint stores.
pub struct State {
    /// The last applied update; none before the first generation, and while another rank's state is
    /// being received.
    pub position: Option<v1::Position>,
    /// Whether the models are unchanged since initialization.
    pub untouched: bool,
    pub models: Models,
    /// The reference policy: the captioner at the beginning of the stage. Only in stages that
    /// reward the captioner's own captions.
    pub reference: Option<Captioner>,
    /// The optimizer of the model that the stage trains.
    pub optimizer: Adam,
    /// Whether the evaluator differs from the file that every worker reads.
    evaluator_is_own: bool,
    stage: usize,
}

impl State {
    /// The initial state, at the beginning of `run`'s first stage.
    ///
    /// # Errors
    /// The weights do not fit the models, or the models do not fit each other.
    pub fn new(run: &RunFile, sources: &WeightSources, device: Device) -> Result<Self, String> {
        let models = sources.models(device)?;
        // Replaced when the first stage is entered, which selects the trained model.
        let optimizer = Adam::new(models.captioner.parameters(), &run.stages[0].optimizer);
        let evaluator_is_own = sources.evaluator_is_own();
        let mut state =
            Self { position: None, untouched: true, models, reference: None, optimizer, evaluator_is_own, stage: 0 };
        state.enter_stage(run, 0);
        state.position = None;
        Ok(state)
    }

    /// Enters stage `stage` at step 0: the trained parameters get zero moments, and all others are
    /// frozen.
    pub fn enter_stage(&mut self, run: &RunFile, stage: usize) {
        let settings = &run.stages[stage];
        self.models.evaluator.parameters_mut().stop_training();
        self.models.captioner.parameters_mut().stop_training();
        self.reference = settings.objective.is_rewarded().then(|| self.models.captioner.copy());
        self.stage = stage;
        let generation = self.position.unwrap_or_default().generation;
        self.position = Some(v1::Position { stage: stage as u32, step: 0, generation });
        match settings.objective {
            Objective::Contrastive => self.models.evaluator.start_training(&settings.contrastive.trainable),
            _ => self.models.captioner.parameters_mut().start_training(|_| true),
        }
        self.optimizer = Adam::new(self.trained(settings.objective), &settings.optimizer);
    }

    /// Takes the settings of the optimizer from `run`; keeps its moments.
    pub fn configure_optimizer(&mut self, run: &RunFile) {
        let settings = &run.stages[self.stage];
        let trained = match settings.objective {
            Objective::Contrastive => self.models.evaluator.parameters(),
            _ => self.models.captioner.parameters(),
        };
        self.optimizer.configure(trained, &settings.optimizer);
    }

    /// The parameters of the model that `objective` trains, in whole or in part.
    pub fn trained(&self, objective: Objective) -> &Parameters {
        match objective {
            Objective::Contrastive => self.models.evaluator.parameters(),
            _ => self.models.captioner.parameters(),
        }
    }

    /// Allocates new gradients after a failed all-reduce, which may still write to the old ones.
    pub fn renew_gradients(&mut self) {
        self.models.evaluator.parameters_mut().renew_gradient();
        self.models.captioner.parameters_mut().renew_gradient();
    }

    /// Applies update `step` (from 1) to the model that `objective` trains.
    pub fn update(&mut self, objective: Objective, gradient: &AveragedGradient<'_>, step: u64, learning_rate: f64) {
        let trained = match objective {
            Objective::Contrastive => self.models.evaluator.parameters(),
            _ => self.models.captioner.parameters(),
        };
        self.optimizer.update(trained, gradient, step, learning_rate);
    }

    /// The run's own models by name, in order: those that differ from a file that every worker has.
    pub fn own(&self) -> impl Iterator<Item = (&'static str, &Parameters)> {
        let evaluator = self.evaluator_is_own.then(|| ("evaluator", self.models.evaluator.parameters()));
        let captioner = ("captioner", self.models.captioner.parameters());
        let reference = self.reference.as_ref().map(|reference| ("reference", reference.parameters()));
        evaluator.into_iter().chain([captioner]).chain(reference)
    }

    fn buffers(&self) -> Vec<&Tensor> {
        let models = self.own().map(|(_, parameters)| parameters.flat());
        models.chain([&self.optimizer.first, &self.optimizer.second]).collect()
    }

    /// Receives the state of rank `source`, which is at `position`, by broadcast. Sends nothing if
    /// all ranks are there already.
    pub fn adopt(
        &mut self,
        run: &RunFile,
        position: v1::Position,
        source: usize,
        collective: &dyn Collective,
    ) -> Result<(), CollectiveError> {
        let here = self.position.is_some_and(|own| own == position);
        let flag = Tensor::from_slice(&[i64::from(!here)]).to_device(self.optimizer.first.device());
        collective.all_reduce(&flag)?;
        if flag.int64_value(&[0]) > 0 {
            if self.stage != position.stage as usize {
                self.enter_stage(run, position.stage as usize);
            }
            if collective.rank() != source {
                // If the source dies now, the buffers are a mixture of two states, which must not
                // be used.
                self.position = None;
                self.untouched = false;
            }
            no_grad(|| self.buffers().into_iter().try_for_each(|buffer| collective.broadcast(buffer, source)))?;
            self.own().for_each(|(_, parameters)| parameters.changed());
        }
        self.position = Some(position);
        self.untouched = false;
        Ok(())
    }

    /// The SHA-256 of all parameters of the run's own models.
    pub fn parameters_sha256(&self) -> String {
        let mut hash = Sha256::new();
        for (_, parameters) in self.own() {
            parameters.hash_into(&mut hash);
        }
        format!("{:x}", hash.finalize())
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
  - { name: dico, objective: dico, dico: { reward: { cider: 1 } }, steps: 9, batch: 4, optimizer: { learning_rate: 1.0e-3 } }
";

    /// Rank 1 of two, whose source dies after this number of buffers.
    struct Dying(Cell<usize>);

    impl Collective for Dying {
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
            let left = self.0.get().checked_sub(1).ok_or_else(|| CollectiveError::Failed("the source died".into()))?;
            self.0.set(left);
            _ = tensor.shallow_clone().fill_(0.5);
            Ok(())
        }

        fn all_gather(&self, _: &Tensor) -> Result<Vec<Tensor>, CollectiveError> {
            Err(CollectiveError::Failed("not asked for here".into()))
        }
    }

    #[test]
    fn what_arrives_is_what_products_of_16_bits_read() {
        let run = RunFile::parse(Path::new("test.yaml"), &format!("{RUN}precision: bf16\n")).unwrap();
        let sources = WeightSources::open(&run, Vocabulary::of_corpus(["a red circle"])).unwrap();
        let mut state = State::new(&run, &sources, testing::device()).unwrap();
        let current = |state: &State| state.own().map(|(_, parameters)| parameters.is_current()).collect::<Vec<_>>();
        assert_eq!(current(&state), [true; 2]);
        let target = v1::Position { stage: 1, step: 3, generation: 4 };
        state.adopt(&run, target, 0, &Dying(Cell::new(100))).unwrap();
        assert_eq!(current(&state), [true; 3]);
        // The reference of a stage is a copy.
        state.enter_stage(&run, 1);
        assert_eq!(current(&state), [true; 3]);
        assert!(state.models.captioner.parameters().flat().eq(0.5).all().int64_value(&[]) == 1);
    }

    #[test]
    fn who_joins_a_stage_that_trains_a_part_has_moments_of_that_part() {
        let stage = "stages:\n  - { name: part, objective: contrastive, contrastive: { trainable: { lora: { rank: 2 } } }, \
                     steps: 9, batch: 4, optimizer: { learning_rate: 1.0e-3 } }\n";
        let run = RunFile::parse(Path::new("test.yaml"), &RUN.replace("stages:\n", stage)).unwrap();
        let sources = WeightSources::open(&run, Vocabulary::of_corpus(["a red circle"])).unwrap();
        let mut state = State::new(&run, &sources, testing::device()).unwrap();
        let moments = |state: &State| [&state.optimizer.first, &state.optimizer.second].map(Tensor::numel);
        let of_factors = moments(&state);
        state.enter_stage(&run, 1);
        assert_eq!(moments(&state), [state.models.captioner.parameters().flat().numel(); 2]);
        let target = v1::Position { stage: 0, step: 3, generation: 4 };
        state.adopt(&run, target, 0, &Dying(Cell::new(100))).unwrap();
        assert_eq!((state.position, moments(&state)), (Some(target), of_factors));
        let evaluator = state.models.evaluator.parameters();
        assert_eq!(evaluator.trained().numel(), of_factors[0]);
        assert!(of_factors[0] > 0 && of_factors[0] < evaluator.flat().numel() / 2);
        let is_filled = |buffer: &Tensor| buffer.eq(0.5).all().int64_value(&[]) == 1;
        assert!(is_filled(evaluator.flat()) && is_filled(&state.optimizer.first));
    }

    #[test]
    fn a_state_that_arrived_in_part_is_no_state() {
        let run = RunFile::parse(Path::new("test.yaml"), RUN).unwrap();
        let sources = WeightSources::open(&run, Vocabulary::of_corpus(["a red circle"])).unwrap();
        let target = v1::Position { stage: 1, step: 3, generation: 4 };
        for arrived in 0..3 {
            let mut state = State::new(&run, &sources, testing::device()).unwrap();
            assert!(state.untouched && state.position.is_none());
            state.position = Some(v1::Position { stage: 0, step: 2, generation: 3 });
            assert!(state.adopt(&run, target, 0, &Dying(Cell::new(arrived))).is_err());
            assert_eq!((state.position, state.untouched), (None, false), "{arrived} buffers arrived");
        }
        let mut state = State::new(&run, &sources, testing::device()).unwrap();
        state.adopt(&run, target, 0, &Dying(Cell::new(100))).unwrap();
        assert_eq!((state.position, state.untouched), (Some(target), false));
    }
}
