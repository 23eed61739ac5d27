//! Loads the training state from checkpoints. A checkpoint is a model folder
//! ([`weights::model_folder`]) with the rest of the training state: a safetensors file for each of
//! the run's own models, `optimizer.safetensors` (both moments of Adam) and `state.json`
//! ([`CheckpointMetadata`], which identifies the checkpoint). [`checkpoint_store`] stores
//! checkpoints and detects damage.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use checkpoint_store::{CheckpointMetadata, Checkpoints, METADATA_FILE, VerifiedCheckpoint};
use config::RunFile;
use proto::v1;
use run_assets::WeightSources;
use tch::Tensor;
use weights::Archive;

use super::directive_error::DirectiveError;
use super::training_state::{Content, TrainingState};
use crate::collective::CollectiveError;
use crate::tensor_conversion;

/// The file with both moments of Adam.
pub const OPTIMIZER_FILE: &str = "optimizer.safetensors";
/// The prefixes of the moments' tensor names in [`OPTIMIZER_FILE`].
pub const MOMENT_PREFIXES: [&str; 2] = ["first", "second"];

/// The metadata in the model folder `folder`; none if it is not a checkpoint.
#[must_use]
pub fn checkpoint_metadata(folder: &Path) -> Option<CheckpointMetadata> {
    serde_json::from_slice(&std::fs::read(folder.join(METADATA_FILE)).ok()?).ok()
}

/// Why a checkpoint is not the one from which the generation starts; none if it is. The checksums
/// in a folder also match if the folder was replaced by the folder of another checkpoint.
fn metadata_mismatch(metadata: &CheckpointMetadata, directive: &v1::Rendezvous) -> Option<String> {
    let CheckpointMetadata { run_id, checkpoint, stage, step, parameters_sha256, .. } = metadata;
    let expected = directive.position.unwrap_or_default();
    if *run_id != directive.checkpoint_run_id {
        return Some(format!("it is of another run: {run_id}"));
    }
    if metadata.has_origin() && *checkpoint != directive.checkpoint {
        return Some(format!("it was saved as {checkpoint}"));
    }
    if (*stage, *step) != (expected.stage, expected.step) {
        let v1::Position { stage: expected_stage, step: expected_step, .. } = expected;
        return Some(format!("it has stage {stage} step {step}, not stage {expected_stage} step {expected_step}"));
    }
    let sha256 = &directive.checkpoint_sha256;
    (parameters_sha256 != sha256)
        .then(|| format!("its parameters have SHA-256 {parameters_sha256}, the journal has {sha256}"))
}

/// Loads the training state from the checkpoint that `directive` names, which is at the position of
/// the directive. `state` is unchanged if the checkpoint cannot be read, or is not the expected
/// one. Other errors are fatal.
pub(super) fn load_checkpoint(
    state: &mut TrainingState,
    run: &RunFile,
    weight_sources: &WeightSources,
    checkpoints: &Checkpoints,
    directive: &v1::Rendezvous,
) -> Result<(), DirectiveError> {
    let name = &directive.checkpoint;
    let fetched = fetch_checkpoint(checkpoints, name)?;
    let metadata = checkpoints.metadata(name).map_err(|error| directive_error(name, error))?;
    if let Some(reason) = metadata_mismatch(&metadata, directive) {
        return Err(DirectiveError::UnusableCheckpoint { checkpoint: name.clone(), reason });
    }
    restore_state(state, run, weight_sources, fetched.path(), &metadata)
        .with_context(|| format!("cannot use checkpoint {name}"))?;
    tracing::info!(name, "checkpoint loaded");
    Ok(())
}

/// Fetches the checkpoint `name` and verifies its checksums.
fn fetch_checkpoint(checkpoints: &Checkpoints, name: &str) -> Result<VerifiedCheckpoint, DirectiveError> {
    checkpoints.read(name).map_err(|error| directive_error(name, error))
}

/// The error of the Rendezvous directive if the checkpoint `name` cannot be read.
fn directive_error(name: &str, error: checkpoint_store::Error) -> DirectiveError {
    let reason = error.to_string();
    match error {
        error if error.is_damage() => DirectiveError::UnusableCheckpoint { checkpoint: name.to_owned(), reason },
        checkpoint_store::Error::Version { .. } | checkpoint_store::Error::Name { .. } => DirectiveError::Fatal(reason),
        // Other errors may be transient: the next generation tries again.
        _ => DirectiveError::Collective(CollectiveError::Failed(reason)),
    }
}

/// Loads the checkpoint in `folder` into `state`. If the checkpoint does not fit, `state` may be
/// partly overwritten: the error is fatal.
fn restore_state(
    state: &mut TrainingState,
    run: &RunFile,
    weight_sources: &WeightSources,
    folder: &Path,
    metadata: &CheckpointMetadata,
) -> Result<()> {
    let models = weights::model_folder::ModelFolder::open(folder)?;
    if models.manifest().vocabulary != weight_sources.captioner_vocabulary.to_manifest() {
        bail!("it was saved with another vocabulary");
    }
    let stage = run.stages.get(metadata.stage as usize).filter(|stage| stage.name == metadata.stage_name);
    let objective = &stage.ok_or_else(|| anyhow!("the run has no stage {}", metadata.stage_name))?.objective;
    state.content = Content::Incomplete;
    state.enter_stage(run, metadata.stage as usize);
    for (model, parameters) in state.own_models() {
        let values = read_tensors(&folder.join(model_file_name(model)))?;
        parameters.load(&values).with_context(|| model_file_name(model))?;
    }
    let mut moments = read_tensors(&folder.join(OPTIMIZER_FILE))?;
    let parameters = state.trained_parameters(objective);
    for (moment, buffer) in
        MOMENT_PREFIXES.into_iter().zip([&state.optimizer.first_moment, &state.optimizer.second_moment])
    {
        let copied = parameters.copy_into_trained_layout(buffer, &take_prefix(&mut moments, moment));
        copied.context(OPTIMIZER_FILE)?;
    }
    let (sha256, expected) = (state.parameters_sha256(), &metadata.parameters_sha256);
    if sha256 != *expected {
        bail!("its parameters have SHA-256 {sha256}, not {expected}");
    }
    state.content = Content::Complete;
    Ok(())
}

/// The file name of one of the run's own models.
pub fn model_file_name(model: &str) -> String {
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

fn read_tensors(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    let archive = Archive::open(path)?;
    Ok(tensor_conversion::from_weights(archive.tensors()))
}

#[cfg(test)]
mod tests;
