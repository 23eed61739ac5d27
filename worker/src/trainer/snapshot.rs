//! A copy of the state, taken between two steps, which is hashed and written while training goes on.
//!
//! The training thread stands still for one copy in memory and for nothing else. Of the paper's captioner (with its reference
//! and both moments) and an evaluator that the run trained, 1.4 GB, that took 0.8 s on a busy CPU, where hashing it takes as long
//! again and writing it to a disk three times as long. Rank 0 needs as much memory besides for as long as the writing takes; the
//! other ranks copy the parameters only.

use runfile::RunFile;
use sha2::{Digest, Sha256};
use storage::{Checkpoints, JournalHead, STAMP, STAMP_FORMAT, Sequence, Stamp};
use tch::{Device, Kind, Tensor};
use weights::folder;

use super::checkpoint::{MOMENTS, OPTIMIZER, file_name};
use super::state::State;
use crate::models::Origins;
use crate::tensors;

/// Values that are turned into bytes at a time.
const CHUNK: i64 = 1 << 20;

/// The copy.
pub struct Snapshot {
    /// The run's own models, in order.
    models: Vec<Values>,
    /// What is written besides, by rank 0 of a generation.
    rest: Option<Rest>,
}

/// What a checkpoint is written for.
#[derive(Clone)]
pub struct Origin {
    /// Names the run.
    pub run_id: String,
    /// The generation.
    pub generation: u64,
    /// Where the coordinator's journal is.
    pub journal: JournalHead,
    /// Where the stage's sequence of samples begins.
    pub sequence: Sequence,
}

/// A file of tensors: how it starts, and the buffers that follow.
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
    /// Copies what is to be hashed and, where `origin` says for what it is to be written, all else.
    ///
    /// # Errors
    /// A name in the state cannot be written to a file.
    pub fn take(state: &State, run: &RunFile, origins: &Origins, origin: Option<Origin>) -> Result<Self, String> {
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
        let manifest = origins.manifest(&state.models).to_json().map_err(text)?;
        Ok(Self { models, rest: Some(Rest { moments, manifest, stamp }) })
    }

    /// SHA-256 over all parameters of the run's own models, as [`State::parameters_sha256`] was when the copy was taken.
    pub fn parameters_sha256(&self) -> String {
        let mut hash = Sha256::new();
        self.models.iter().flat_map(Values::bytes).for_each(|bytes| hash.update(bytes));
        format!("{:x}", hash.finalize())
    }

    /// Writes the checkpoint `name`, if that is for this rank to do.
    ///
    /// # Errors
    /// It cannot be written; then nothing of it is there.
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
    /// What follows the start, piece by piece.
    fn bytes(&self) -> impl Iterator<Item = Vec<u8>> {
        self.buffers.iter().flat_map(|buffer| {
            let length = buffer.numel() as i64;
            let starts = (0..length).step_by(CHUNK as usize);
            starts.map(move |start| tensors::bytes(&buffer.narrow(0, start, CHUNK.min(length - start))))
        })
    }
}

/// Names and shapes of a buffer that is laid out like `parameters`, whose names begin with `prefix` and a dot.
fn shapes<'a>(parameters: impl Iterator<Item = (&'a str, &'a Tensor)>, prefix: &str) -> Vec<(String, Vec<usize>)> {
    let full = |name: &str| if prefix.is_empty() { name.to_owned() } else { format!("{prefix}.{name}") };
    let shape = |tensor: &Tensor| tensor.size().iter().map(|&side| side as usize).collect();
    parameters.map(|(name, tensor)| (full(name), shape(tensor))).collect()
}

/// Of its own, in this machine's memory, whatever device the buffer is on.
fn copy(buffer: &Tensor) -> Tensor {
    buffer.to_device_(Device::Cpu, Kind::Float, false, true)
}
