//! A snapshot: a copy of the state between two steps, which is hashed and written while training
//! goes on.
//!
//! Training waits only for one copy in memory. For the paper's captioner (with its reference and
//! both moments) and a trained evaluator, 1.4 GB, the copy took 0.8 s on a busy CPU; hashing takes
//! as long again, and writing to a disk three times as long. Rank 0 needs that much additional
//! memory while the checkpoint is written; the other ranks copy the parameters only.

use checkpoint_store::{Checkpoints, JournalHead, STAMP, STAMP_FORMAT, Sequence, Stamp};
use config::RunFile;
use sha2::{Digest, Sha256};
use tch::{Device, Kind, Tensor};
use weights::folder;

use super::checkpoint::{MOMENTS, OPTIMIZER, file_name};
use super::state::State;
use crate::models::WeightSources;
use crate::tensors;

/// The number of values that are converted to bytes at a time.
const CHUNK: i64 = 1 << 20;

/// The copy of a state.
pub struct Snapshot {
    /// The parameters of the run's own models, in order.
    models: Vec<Values>,
    /// The rest of a checkpoint; only on the rank that writes it.
    rest: Option<Rest>,
}

/// The identity of a state, for its checkpoint's stamp.
#[derive(Clone)]
pub struct Origin {
    /// The run's id.
    pub run_id: String,
    /// The generation that saves it.
    pub generation: u64,
    /// The head of the coordinator's journal when the save was ordered.
    pub journal: JournalHead,
    /// The start of the stage's current sequence of samples.
    pub sequence: Sequence,
}

/// A safetensors file: its name, header and buffers.
struct Values {
    file: String,
    start: Vec<u8>,
    buffers: Vec<Tensor>,
}

struct Rest {
    moments: Values,
    manifest: Vec<u8>,
    stamp: Stamp,
}

impl Snapshot {
    /// Copies the parameters, for their hash; and if `origin` is given, everything that a
    /// checkpoint needs.
    /// # Errors
    /// The state has a name that cannot be written to a file.
    pub fn take(state: &State, run: &RunFile, sources: &WeightSources, origin: Option<Origin>) -> Result<Self, String> {
        let text = |error: weights::Error| error.to_string();
        let models = state.own().map(|(model, parameters)| {
            let start = weights::safetensors_start(shapes(parameters.named(), "")).map_err(text)?;
            Ok::<_, String>(Values { file: file_name(model), start, buffers: vec![copy(parameters.flat())] })
        });
        let models = models.collect::<Result<_, _>>()?;
        let Some(Origin { run_id, generation, journal, sequence }) = origin else {
            return Ok(Self { models, rest: None });
        };
        let position = state.position.unwrap_or_default();
        let stage = &run.stages[position.stage as usize];
        let trained = state.trained(stage.objective);
        let named = MOMENTS.into_iter().flat_map(|moment| shapes(trained.named_trained(), moment));
        let moments = Values {
            file: OPTIMIZER.to_owned(),
            start: weights::safetensors_start(named).map_err(text)?,
            buffers: vec![copy(&state.optimizer.first), copy(&state.optimizer.second)],
        };
        let stamp = Stamp {
            format: STAMP_FORMAT,
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
        let manifest = sources.manifest(&state.models).to_json().map_err(text)?;
        Ok(Self { models, rest: Some(Rest { moments, manifest, stamp }) })
    }

    /// The SHA-256 of all parameters of the run's own models, equal to [`State::parameters_sha256`]
    /// when the snapshot was taken.
    pub fn parameters_sha256(&self) -> String {
        let mut hash = Sha256::new();
        self.models.iter().flat_map(Values::bytes).for_each(|bytes| hash.update(bytes));
        format!("{:x}", hash.finalize())
    }

    /// Writes the checkpoint `name`, if this rank is the writer.
    ///
    /// # Errors
    /// It cannot be written; then no part of it remains.
    pub fn write(&self, checkpoints: &Checkpoints, name: &str, parameters_sha256: &str) -> Result<(), String> {
        let Some(Rest { moments, manifest, stamp }) = &self.rest else { return Ok(()) };
        let (checkpoint, parameters_sha256) = (name.to_owned(), parameters_sha256.to_owned());
        let stamp = Stamp { checkpoint, parameters_sha256, ..stamp.clone() };
        let stamp = serde_json::to_vec_pretty(&stamp).map_err(|error| format!("{STAMP}: {error}"))?;
        let written = checkpoints.write(name, |files| {
            files.add(folder::MANIFEST, [manifest.clone()])?;
            for values in self.models.iter().chain([moments]) {
                files.add(&values.file, std::iter::once(values.start.clone()).chain(values.bytes()))?;
            }
            files.add(STAMP, [stamp])
        });
        written.map_err(|error| error.to_string())
    }
}

impl Values {
    /// The buffers as bytes, in chunks.
    fn bytes(&self) -> impl Iterator<Item = Vec<u8>> {
        self.buffers.iter().flat_map(|buffer| {
            let length = buffer.numel() as i64;
            let starts = (0..length).step_by(CHUNK as usize);
            starts.map(move |start| tensors::bytes(&buffer.narrow(0, start, CHUNK.min(length - start))))
        })
    }
}

/// Names and shapes of a buffer with the layout of `parameters`; `prefix.` is prepended to the
/// names.
fn shapes<'a>(parameters: impl Iterator<Item = (&'a str, &'a Tensor)>, prefix: &str) -> Vec<(String, Vec<usize>)> {
    let full = |name: &str| if prefix.is_empty() { name.to_owned() } else { format!("{prefix}.{name}") };
    let shape = |tensor: &Tensor| tensor.size().iter().map(|&side| side as usize).collect();
    parameters.map(|(name, tensor)| (full(name), shape(tensor))).collect()
}

/// A copy of a buffer in CPU memory, whatever its device.
fn copy(buffer: &Tensor) -> Tensor {
    buffer.to_device_(Device::Cpu, Kind::Float, false, true)
}
