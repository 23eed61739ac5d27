//! Reads checkpoints. A checkpoint is a model folder ([`weights::folder`]) with the rest of the
//! training state: a safetensors file for each of the run's own models, `optimizer.safetensors`
//! (both moments of Adam) and `state.json` (its [`Stamp`], which identifies the state). [`storage`]
//! stores checkpoints and detects damage.

use std::collections::BTreeMap;
use std::path::Path;

use checkpoint_store::{Checkpoints, Fetched, STAMP, Stamp};
use config::RunFile;
use proto::v1;
use tch::Tensor;
use tokenizer::Vocabulary;
use weights::Archive;

use super::state::State;
use super::{Stop, Trainer};
use crate::collective::CollectiveError;
use crate::models::WeightSources;
use crate::tensors;

/// The file with both moments of Adam.
pub const OPTIMIZER: &str = "optimizer.safetensors";
/// The prefixes of the moments' tensor names.
pub const MOMENTS: [&str; 2] = ["first", "second"];

/// The stamp in the model folder `folder`; none if it is not a checkpoint.
#[must_use]
pub fn stamp(folder: &Path) -> Option<Stamp> {
    serde_json::from_slice(&std::fs::read(folder.join(STAMP)).ok()?).ok()
}

/// Why a checkpoint is not the one that a generation is to start from; none if it is. A checksum
/// cannot tell that: a folder may be replaced by that of another checkpoint.
fn difference(stamp: &Stamp, order: &v1::Rendezvous) -> Option<String> {
    let Stamp { run_id, checkpoint, stage, step, parameters_sha256, .. } = stamp;
    let wanted = order.position.unwrap_or_default();
    if *run_id != order.checkpoint_run_id {
        return Some(format!("it is of another run: {run_id}"));
    }
    if *checkpoint != order.checkpoint {
        return Some(format!("it was saved as {checkpoint}"));
    }
    if (*stage, *step) != (wanted.stage, wanted.step) {
        let (stage_wanted, step_wanted) = (wanted.stage, wanted.step);
        return Some(format!("it has stage {stage} step {step}, not stage {stage_wanted} step {step_wanted}"));
    }
    let sha256 = &order.checkpoint_sha256;
    (parameters_sha256 != sha256)
        .then(|| format!("its parameters have SHA-256 {parameters_sha256}, the journal has {sha256}"))
}

impl Trainer {
    /// Loads the state from the checkpoint that `order` names. A damaged or wrong checkpoint leaves
    /// the present state unchanged.
    pub(super) fn read_checkpoint(&mut self, order: &v1::Rendezvous) -> Result<(), Stop> {
        let name = &order.checkpoint;
        let fetched = fetch(&self.checkpoints, name)?;
        let stamp = self.checkpoints.stamp(name).map_err(|error| stop(name, error))?;
        if let Some(reason) = difference(&stamp, order) {
            return Err(Stop::Damaged { checkpoint: name.clone(), reason });
        }
        restore(&mut self.state, &self.run, &self.sources, fetched.path(), &stamp)
            .map_err(|problem| Stop::Fatal(format!("cannot use checkpoint {name}: {problem}")))?;
        tracing::info!(name, "checkpoint read");
        Ok(())
    }
}

/// The vocabulary of a run's models, from its checkpoints; none if the run does not derive one from
/// its corpus, or has no checkpoint. Such a vocabulary stays the same when the training data are
/// corrected.
///
/// # Errors
/// The checkpoints cannot be read.
pub fn vocabulary(run: &RunFile, checkpoints: &Checkpoints) -> Result<Option<Vocabulary>, String> {
    if run.vocabulary == config::Vocabulary::Full || run.captioner.weights.is_some() {
        return Ok(None);
    }
    let text = |error: checkpoint_store::Error| format!("checkpoints: {error}");
    for name in checkpoints.list().map_err(text)?.sealed.iter().rev() {
        match checkpoints.read_file(name, weights::folder::MANIFEST) {
            Ok(manifest) => {
                let manifest: weights::folder::Manifest = serde_json::from_slice(&manifest)
                    .map_err(|error| format!("checkpoint {name}: {}: {error}", weights::folder::MANIFEST))?;
                return Ok(Some(Vocabulary::stored(&manifest.vocabulary)));
            }
            Err(error) if error.is_damage() => {}
            Err(error) => return Err(text(error)),
        }
    }
    Ok(None)
}

/// Fetches the checkpoint `name` and verifies its checksums.
fn fetch(checkpoints: &Checkpoints, name: &str) -> Result<Fetched, Stop> {
    checkpoints.read(name).map_err(|error| stop(name, error))
}

/// The consequence for the generation of a checkpoint `name` that cannot be read.
fn stop(name: &str, error: checkpoint_store::Error) -> Stop {
    let reason = error.to_string();
    match error {
        error if error.is_damage() => Stop::Damaged { checkpoint: name.to_owned(), reason },
        checkpoint_store::Error::Version { .. } | checkpoint_store::Error::Name { .. } => Stop::Fatal(reason),
        // Other errors may be transient: the next generation tries again.
        _ => Stop::CollectiveError(CollectiveError::Failed(reason)),
    }
}

/// Loads the checkpoint in `folder` into `state`. If it does not fit, `state` has no position
/// afterwards.
fn restore(
    state: &mut State,
    run: &RunFile,
    sources: &WeightSources,
    folder: &Path,
    stamp: &Stamp,
) -> Result<(), String> {
    let models = weights::folder::Folder::open(folder).map_err(|error| error.to_string())?;
    if models.manifest().vocabulary != sources.captioner_vocabulary.to_stored() {
        return Err("it was made with another vocabulary".to_owned());
    }
    let stage = run.stages.get(stamp.stage as usize).filter(|stage| stage.name == stamp.stage_name);
    let objective = stage.ok_or_else(|| format!("the run has no stage {}", stamp.stage_name))?.objective;
    state.enter_stage(run, stamp.stage as usize);
    for (model, parameters) in state.own() {
        let values = read_tensors(&folder.join(file_name(model)))?;
        parameters.load(&values).map_err(|mismatch| format!("{}: {mismatch}", file_name(model)))?;
    }
    let mut moments = read_tensors(&folder.join(OPTIMIZER))?;
    let trained = state.trained(objective);
    for (moment, buffer) in MOMENTS.into_iter().zip([&state.optimizer.first, &state.optimizer.second]) {
        let copied = trained.copy_trained(buffer, &take_prefix(&mut moments, moment));
        copied.map_err(|mismatch| format!("{OPTIMIZER}: {mismatch}"))?;
    }
    let found = state.parameters_sha256();
    if found != stamp.parameters_sha256 {
        let wanted = &stamp.parameters_sha256;
        return Err(format!("its parameters have SHA-256 {found}, not {wanted}"));
    }
    state.position = Some(v1::Position { stage: stamp.stage, step: stamp.step, generation: 0 });
    Ok(())
}

/// The file name of one of the run's own models.
pub fn file_name(model: &str) -> String {
    format!("{model}.safetensors")
}

/// Removes and returns the tensors with the prefix `prefix.`, under their names without it.
fn take_prefix(tensors: &mut BTreeMap<String, Tensor>, prefix: &str) -> BTreeMap<String, Tensor> {
    let names: Vec<String> = tensors
        .keys()
        .filter(|name| name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('.')))
        .cloned()
        .collect();
    let taken =
        names.into_iter().filter_map(|name| Some((name[prefix.len() + 1..].to_owned(), tensors.remove(&name)?)));
    taken.collect()
}

fn read_tensors(path: &Path) -> Result<BTreeMap<String, Tensor>, String> {
    let archive = Archive::open(path).map_err(|error| error.to_string())?;
    Ok(tensors::from_weights(archive.tensors()))
}

#[cfg(test)]
mod tests;
