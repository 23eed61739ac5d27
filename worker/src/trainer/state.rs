use proto::v1;
use runfile::{Objective, RunFile};
use sha2::{Digest, Sha256};
use tch::{Device, Tensor, no_grad};

use crate::captioner::{self, Captioner};
use crate::clip::{self, Clip};
use crate::collective::{Broken, Collective};
use crate::nn::Parameters;
use crate::optimizer::Adam;
use crate::seeds;

/// Everything that training changes: what a newcomer has to be given and a checkpoint has to hold.
pub struct State {
    /// The last update applied; none before the first generation.
    pub position: Option<v1::Position>,
    pub clip_config: clip::Config,
    pub evaluator: Clip,
    captioner_config: captioner::Config,
    pub captioner: Captioner,
    /// The captioner as it was when a DiCO stage began.
    pub reference: Option<Captioner>,
    /// Of the model that the stage trains.
    pub optimizer: Adam,
    stage: usize,
    device: Device,
}

impl State {
    /// The state that `run`'s seed gives, at the beginning of its first stage.
    pub fn new(run: &RunFile, vocabulary_size: i64, device: Device) -> Self {
        let clip_config = clip::Config::preset(run.evaluator.preset, vocabulary_size);
        let vision = (clip_config.vision.width, clip_config.vision_tokens());
        let captioner_config = captioner::Config::preset(run.captioner.preset, vision, vocabulary_size);
        let evaluator = Clip::new(&clip_config, seeds::derive(run.seed, "evaluator"), device);
        let captioner = Captioner::new(&captioner_config, seeds::derive(run.seed, "captioner"), device);
        let optimizer = Adam::new(evaluator.parameters(), &run.stages[0].optimizer);
        let mut state = Self {
            position: None,
            clip_config,
            evaluator,
            captioner_config,
            captioner,
            reference: None,
            optimizer,
            stage: 0,
            device,
        };
        state.enter_stage(run, 0);
        state.position = None;
        state
    }

    /// Goes back to what the seed gives.
    pub fn reset(&mut self, run: &RunFile) {
        *self = Self::new(run, self.clip_config.vocabulary_size, self.device);
    }

    /// Begins stage `stage` at step 0: its model is trained, with fresh moments, and all else is frozen.
    pub fn enter_stage(&mut self, run: &RunFile, stage: usize) {
        let settings = &run.stages[stage];
        self.evaluator.parameters_mut().stop_training();
        self.captioner.parameters_mut().stop_training();
        self.reference = (settings.objective == Objective::Dico).then(|| {
            let reference = Captioner::new(&self.captioner_config, 0, self.device);
            no_grad(|| reference.parameters().flat().shallow_clone().copy_(self.captioner.parameters().flat()));
            reference
        });
        self.stage = stage;
        let generation = self.position.unwrap_or_default().generation;
        self.position = Some(v1::Position { stage: stage as u32, step: 0, generation });
        match settings.objective {
            Objective::Contrastive => self.evaluator.parameters_mut().start_training(),
            Objective::CrossEntropy | Objective::Dico => self.captioner.parameters_mut().start_training(),
        }
        self.optimizer = Adam::new(self.trained(settings.objective), &settings.optimizer);
    }

    /// The parameters that `objective` trains.
    pub fn trained(&self, objective: Objective) -> &Parameters {
        match objective {
            Objective::Contrastive => self.evaluator.parameters(),
            Objective::CrossEntropy | Objective::Dico => self.captioner.parameters(),
        }
    }

    /// Update number `step` (from 1) of the model that `objective` trains.
    pub fn update(&mut self, objective: Objective, gradient: &Tensor, step: u64, learning_rate: f64) {
        let trained = match objective {
            Objective::Contrastive => self.evaluator.parameters(),
            Objective::CrossEntropy | Objective::Dico => self.captioner.parameters(),
        };
        self.optimizer.update(trained, gradient, step, learning_rate);
    }

    /// Models by name, in order.
    pub fn models(&self) -> impl Iterator<Item = (&'static str, &Parameters)> {
        let reference = self.reference.as_ref().map(|reference| ("reference", reference.parameters()));
        [("evaluator", self.evaluator.parameters()), ("captioner", self.captioner.parameters())]
            .into_iter()
            .chain(reference)
    }

    fn buffers(&self) -> Vec<&Tensor> {
        let models = self.models().map(|(_, parameters)| parameters.flat());
        models.chain([&self.optimizer.first, &self.optimizer.second]).collect()
    }

    /// Takes over the state of rank `source`, which is at `position`. Nothing is sent where all ranks are there already.
    pub fn adopt(
        &mut self,
        run: &RunFile,
        position: v1::Position,
        source: usize,
        collective: &dyn Collective,
    ) -> Result<(), Broken> {
        let here = self.position.is_some_and(|own| own == position);
        let flag = Tensor::from_slice(&[i64::from(!here)]).to_device(self.device);
        collective.all_reduce(&flag)?;
        if flag.int64_value(&[0]) > 0 {
            if self.stage != position.stage as usize {
                self.enter_stage(run, position.stage as usize);
            }
            no_grad(|| self.buffers().into_iter().try_for_each(|buffer| collective.broadcast(buffer, source)))?;
        }
        self.position = Some(position);
        Ok(())
    }

    /// SHA-256 over all parameters of all models.
    pub fn parameters_sha256(&self) -> String {
        let mut hash = Sha256::new();
        for (_, parameters) in self.models() {
            parameters.hash_into(&mut hash);
        }
        format!("{:x}", hash.finalize())
    }
}
