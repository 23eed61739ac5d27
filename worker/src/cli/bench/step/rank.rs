//! A rank of the measurement: what a worker's trainer needs for a step, with random weights and
//! synthetic images.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use config::RunFile;
use dataset::{DataSet, Split};
use proto::v1;
use run_assets::FeatureStores;
use tempfile::TempDir;
use worker_protocol::StopFlag;

use super::data;
use crate::captioner::GenerationConfig;
use crate::collective::Collective;
use crate::data::{BatchSource, DataLoader, LOADING_THREADS};
use crate::phase_timer::PhaseTimer;
use crate::run_models::RunModels;
use crate::trainer::{CompletedStep, StepError, TrainingBatches, TrainingState, TrainingStep};

/// Maximal number of different images. Larger batches contain images more than once.
const MAX_IMAGES: usize = 64;

/// A rank, at its position in the run.
pub struct Rank<'a> {
    run: RunFile,
    data: Arc<DataSet>,
    loader: DataLoader,
    batches: TrainingBatches,
    state: TrainingState,
    position: v1::Position,
    generation_config: GenerationConfig,
    collective: &'a dyn Collective,
    /// The images and the feature store, which are deleted with the rank.
    _folder: TempDir,
}

impl<'a> Rank<'a> {
    /// A rank at the beginning of `run`, which has one stage, and no data yet. Writes images, and
    /// with `cached_features` a feature store of them.
    ///
    /// # Errors
    /// The temporary folder cannot be written.
    pub fn new(
        mut run: RunFile,
        models: RunModels,
        generation_config: GenerationConfig,
        cached_features: bool,
        collective: &'a dyn Collective,
    ) -> Result<Self> {
        let folder = tempfile::tempdir().context("cannot create a temporary folder")?;
        run.data = data::write_images(folder.path(), MAX_IMAGES.min(run.stages[0].batch as usize))?;
        let data = Arc::new(DataSet::load_split(&run.data, Split::Train)?);
        let loader = loader(&data, &models, cached_features.then(|| folder.path().join("features")).as_deref())?;
        Ok(Self {
            batches: TrainingBatches::new(Arc::clone(&data)),
            state: TrainingState::of_models(&run, models, false),
            position: v1::Position::default(),
            run,
            data,
            loader,
            generation_config,
            collective,
            _folder: folder,
        })
    }

    /// The models.
    pub fn models(&self) -> &RunModels {
        &self.state.models
    }

    /// The settings of beam search.
    pub fn generation_config(&self) -> &GenerationConfig {
        &self.generation_config
    }

    /// Executes the next step, with an equal share of the batch for each rank.
    ///
    /// # Errors
    /// Another rank has failed.
    pub fn train_step(&mut self, timer: &PhaseTimer) -> Result<CompletedStep, StepError> {
        let (rank, world_size) = (self.collective.rank() as u32, self.collective.world_size() as u32);
        let share = self.run.stages[0].batch / world_size;
        let step = TrainingStep {
            run: &self.run,
            data: &self.data,
            cider: None,
            loader: &self.loader,
            batches: &mut self.batches,
            state: &mut self.state,
            position: self.position,
            generation_config: self.generation_config,
            collective: self.collective,
            share: rank * share..(rank + 1) * share,
            abandon: &StopFlag::default(),
            halt: &StopFlag::default(),
            set_phase: &|_: v1::Phase| {},
            timer,
        };
        let completed = step.run()?;
        self.position.step += 1;
        Ok(completed)
    }
}

/// The loader of the training images, or of their features in the store `features`, which it
/// writes.
fn loader(data: &Arc<DataSet>, models: &RunModels, features: Option<&Path>) -> Result<DataLoader> {
    let loader = |feature_stores| {
        let source =
            BatchSource { data: Arc::clone(data), sizes: models.image_sizes(), feature_stores, skip_corrupt: false };
        DataLoader::new(source, LOADING_THREADS)
    };
    let images = loader(FeatureStores::default());
    match features {
        Some(folder) => Ok(loader(data::store_features(models, &images, data.split(Split::Train).len(), folder)?)),
        None => Ok(images),
    }
}
