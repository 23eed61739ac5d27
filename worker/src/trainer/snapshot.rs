//! A snapshot: a copy of the training state between two steps, which the saver hashes and writes
//! while training continues.
//!
//! Training waits only for the copy in memory. For the paper's captioner (with its reference and
//! both moments) and a trained evaluator, 1.4 GB, the copy took 0.8 s on a busy CPU. Hashing takes
//! as long, and writing to a disk three times as long. Rank 0 needs that much additional memory
//! while the checkpoint is written. The other ranks copy the parameters only.

use anyhow::{Context, Result};
use checkpoint_store::{CheckpointMetadata, Checkpoints, JournalHead, METADATA_FILE, METADATA_FORMAT, SampleSequence};
use config::RunFile;
use proto::v1;
use run_assets::WeightSources;
use sha2::{Digest, Sha256};
use tch::{Device, Kind, Tensor};
use weights::model_folder;

use super::checkpoint::{MOMENT_PREFIXES, OPTIMIZER_FILE, model_file_name};
use super::training_state::TrainingState;
use crate::tensor_conversion;

/// The number of elements that are converted to bytes at a time.
const CHUNK_ELEMENTS: i64 = 1 << 20;

/// A copy of the training state.
pub struct Snapshot {
    /// The parameters of the run's own models, in the order of [`TrainingState::own_models`].
    models: Vec<SafetensorsContent>,
    /// The other files of a checkpoint; only on the rank that writes it.
    non_model_files: Option<NonModelFiles>,
}

/// When and by which run a checkpoint is saved, for its metadata.
#[derive(Clone)]
pub struct CheckpointOrigin {
    /// The run's id.
    pub run_id: String,
    /// The generation that saves the checkpoint.
    pub generation: u64,
    /// The position of the training state.
    pub position: v1::Position,
    /// The head of the coordinator's journal when the save was ordered.
    pub journal: JournalHead,
    /// The start of the stage's current sequence of samples.
    pub sequence: SampleSequence,
}

/// The content of a safetensors file before it is written.
struct SafetensorsContent {
    /// The name of the file.
    name: String,
    header: Vec<u8>,
    /// The values of all tensors, in the order of the header.
    buffers: Vec<Tensor>,
}

/// The files of a checkpoint besides the models.
struct NonModelFiles {
    moments: SafetensorsContent,
    /// The model folder's manifest as JSON.
    manifest: Vec<u8>,
    /// The metadata, without the checkpoint's name and the parameters' hash.
    metadata: CheckpointMetadata,
}

impl Snapshot {
    /// Copies the parameters, for their hash, and with `origin` everything that a checkpoint needs.
    ///
    /// # Errors
    /// The parameters do not fit into a safetensors file: two have one name, or one is too large.
    pub fn take(
        state: &TrainingState,
        run: &RunFile,
        weight_sources: &WeightSources,
        origin: Option<CheckpointOrigin>,
    ) -> Result<Self> {
        let models = state.own_models().map(|(model, parameters)| {
            let header = weights::safetensors_header(names_and_shapes(parameters.named_parameters(), ""))?;
            anyhow::Ok(SafetensorsContent {
                name: model_file_name(model),
                header,
                buffers: vec![copy_to_cpu(parameters.flat())],
            })
        });
        let models = models.collect::<Result<_>>()?;
        let Some(CheckpointOrigin { run_id, generation, position, journal, sequence }) = origin else {
            return Ok(Self { models, non_model_files: None });
        };
        let stage = &run.stages[position.stage as usize];
        let parameters = state.trained_parameters(&stage.objective);
        let names = MOMENT_PREFIXES
            .into_iter()
            .flat_map(|moment| names_and_shapes(parameters.named_trained_parameters(), moment));
        let moments = SafetensorsContent {
            name: OPTIMIZER_FILE.to_owned(),
            header: weights::safetensors_header(names)?,
            buffers: vec![copy_to_cpu(&state.optimizer.first_moment), copy_to_cpu(&state.optimizer.second_moment)],
        };
        let metadata = CheckpointMetadata {
            format: METADATA_FORMAT,
            run: run.name.clone(),
            run_id,
            checkpoint: String::new(),
            stage: position.stage,
            stage_name: stage.name.clone(),
            step: position.step,
            parameters_sha256: String::new(),
            generation,
            journal,
            sequence,
        };
        let manifest = state.models.manifest(weight_sources).to_json()?;
        Ok(Self { models, non_model_files: Some(NonModelFiles { moments, manifest, metadata }) })
    }

    /// The SHA-256 of all parameters of the run's own models, equal to
    /// [`TrainingState::parameters_sha256`] when the snapshot was taken.
    pub fn parameters_sha256(&self) -> String {
        let mut hash = Sha256::new();
        self.models.iter().flat_map(SafetensorsContent::tensor_bytes).for_each(|bytes| hash.update(bytes));
        format!("{:x}", hash.finalize())
    }

    /// Writes the checkpoint `name`, if this rank is the writer.
    ///
    /// # Errors
    /// The checkpoint cannot be written; then no file of it remains.
    pub fn write(&self, checkpoints: &Checkpoints, name: &str, parameters_sha256: &str) -> Result<()> {
        let Some(NonModelFiles { moments, manifest, metadata }) = &self.non_model_files else { return Ok(()) };
        let (checkpoint, parameters_sha256) = (name.to_owned(), parameters_sha256.to_owned());
        let metadata = CheckpointMetadata { checkpoint, parameters_sha256, ..metadata.clone() };
        let metadata = serde_json::to_vec_pretty(&metadata).context(METADATA_FILE)?;
        checkpoints.write(name, |files| {
            files.add(model_folder::MANIFEST_FILE, [manifest.clone()])?;
            for file in self.models.iter().chain([moments]) {
                files.add(&file.name, std::iter::once(file.header.clone()).chain(file.tensor_bytes()))?;
            }
            files.add(METADATA_FILE, [metadata])
        })?;
        Ok(())
    }
}

impl SafetensorsContent {
    /// The buffers as bytes, in chunks.
    fn tensor_bytes(&self) -> impl Iterator<Item = Vec<u8>> {
        self.buffers.iter().flat_map(|buffer| {
            let length = buffer.numel() as i64;
            let starts = (0..length).step_by(CHUNK_ELEMENTS as usize);
            starts.map(move |start| {
                tensor_conversion::to_bytes(&buffer.narrow(0, start, CHUNK_ELEMENTS.min(length - start)))
            })
        })
    }
}

/// Names and shapes of the tensors in a buffer with the layout of `parameters`. Names get the
/// prefix `prefix.`, unless `prefix` is empty.
fn names_and_shapes<'a>(
    parameters: impl Iterator<Item = (&'a str, &'a Tensor)>,
    prefix: &str,
) -> Vec<(String, Vec<usize>)> {
    let full_name = |name: &str| if prefix.is_empty() { name.to_owned() } else { format!("{prefix}.{name}") };
    let shape = |tensor: &Tensor| tensor.size().iter().map(|&length| length as usize).collect();
    parameters.map(|(name, tensor)| (full_name(name), shape(tensor))).collect()
}

/// A copy of a buffer in CPU memory. Copies a buffer on the CPU, too.
fn copy_to_cpu(buffer: &Tensor) -> Tensor {
    let (non_blocking, always_copy) = (false, true);
    buffer.to_device_(Device::Cpu, Kind::Float, non_blocking, always_copy)
}
