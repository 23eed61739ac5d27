//! A checkpoint is a model folder ([`weights::folder`]) with what it takes to go on: a safetensors file for each of the run's
//! own models, `optimizer.safetensors` (both moments) and `state.json` (where in the run it was taken). How it is kept, and
//! how damage to it is found, is the business of [`storage`].

use std::collections::BTreeMap;
use std::path::Path;

use proto::v1;
use runfile::RunFile;
use serde::{Deserialize, Serialize};
use storage::{Checkpoints, Fetched};
use tch::Tensor;
use tokenizer::Vocabulary;
use weights::Archive;

use super::state::State;
use super::{Stop, Trainer};
use crate::collective::Broken;
use crate::models::Origins;
use crate::tensors;

/// Raised when older programs cannot read newer checkpoints.
pub const FORMAT: u32 = 3;
/// Where in the run it was taken.
pub const STATE: &str = "state.json";
/// Both moments.
pub const OPTIMIZER: &str = "optimizer.safetensors";
/// What the moments' names begin with.
pub const MOMENTS: [&str; 2] = ["first", "second"];

/// What `state.json` says.
#[derive(Clone, Serialize, Deserialize)]
pub struct Place {
    /// [`FORMAT`], or that of an older program.
    pub format: u32,
    /// Name of the run.
    pub run: String,
    /// What tells it apart from others of that name; empty in older formats.
    #[serde(default)]
    pub run_id: String,
    /// What the checkpoint is called; empty in older formats.
    #[serde(default)]
    pub checkpoint: String,
    /// Position of the stage in the run file.
    pub stage: u32,
    /// Name of the stage.
    pub stage_name: String,
    /// Steps of the stage that were applied.
    pub step: u64,
    /// Over all parameters of the run's own models.
    pub parameters_sha256: String,
}

impl Place {
    /// Where the model folder `folder` was saved in a run; none if it is no checkpoint.
    #[must_use]
    pub fn of(folder: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(folder.join(STATE)).ok()?).ok()
    }

    /// What the checkpoint in `folder` says of itself.
    fn read(folder: &Path) -> Result<Self, String> {
        let place = std::fs::read(folder.join(STATE)).map_err(|error| format!("{STATE}: {error}"))?;
        let place: Self = serde_json::from_slice(&place).map_err(|error| format!("{STATE}: {error}"))?;
        if place.format != FORMAT {
            return Err(format!("it has format {}, this program reads {FORMAT}", place.format));
        }
        Ok(place)
    }

    /// Why it is not what a generation of the run `run_id` is to start from, if so: folders can be exchanged for one another, and
    /// every byte of them is still what was written.
    fn differs(&self, run_id: &str, order: &v1::Rendezvous) -> Option<String> {
        let Self { checkpoint, stage, step, parameters_sha256, .. } = self;
        let wanted = order.position.unwrap_or_default();
        if self.run_id != run_id {
            return Some(format!("it is of another run: {}", self.run_id));
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
}

impl Trainer {
    /// Takes over the state that the checkpoint `order` names. One that is damaged, or of another state than it should be, changes
    /// nothing here.
    pub(super) fn read_checkpoint(&mut self, order: &v1::Rendezvous) -> Result<(), Stop> {
        let name = &order.checkpoint;
        let fetched = fetch(&self.checkpoints, name)?;
        let fatal = |problem| Stop::Fatal(format!("cannot use checkpoint {name}: {problem}"));
        let place = Place::read(fetched.path()).map_err(fatal)?;
        if let Some(reason) = place.differs(&self.run_id, order) {
            return Err(Stop::Damaged { checkpoint: name.clone(), reason });
        }
        restore(&mut self.state, &self.run, &self.origins, fetched.path(), &place).map_err(fatal)?;
        tracing::info!(name, "checkpoint read");
        Ok(())
    }
}

/// The vocabulary that a run's models were made with, as its checkpoints have it; none where none matters or there is no checkpoint. A
/// vocabulary of the corpus stays what it was when the training data are mended.
///
/// # Errors
/// The checkpoints cannot be read.
pub fn vocabulary(run: &RunFile, checkpoints: &Checkpoints) -> Result<Option<Vocabulary>, String> {
    if run.vocabulary == runfile::Vocabulary::Full || run.captioner.weights.is_some() {
        return Ok(None);
    }
    let text = |error: storage::Error| format!("checkpoints: {error}");
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

/// The checkpoint `name`, every byte of which is what was written.
fn fetch(checkpoints: &Checkpoints, name: &str) -> Result<Fetched, Stop> {
    checkpoints.read(name).map_err(|error| {
        let reason = error.to_string();
        match error {
            error if error.is_damage() => Stop::Damaged { checkpoint: name.to_owned(), reason },
            storage::Error::Version { .. } | storage::Error::Name { .. } => Stop::Fatal(reason),
            // What cannot be reached now may be reached by the next generation.
            _ => Stop::Broken(Broken::Failed(reason)),
        }
    })
}

/// Gives `state` what the checkpoint in `folder` holds. When that does not fit, `state` is none any more.
fn restore(state: &mut State, run: &RunFile, origins: &Origins, folder: &Path, place: &Place) -> Result<(), String> {
    let models = weights::folder::Folder::open(folder).map_err(|error| error.to_string())?;
    if models.manifest().vocabulary != origins.captioner_vocabulary.to_stored() {
        return Err("it was made with another vocabulary".to_owned());
    }
    let stage = run.stages.get(place.stage as usize).filter(|stage| stage.name == place.stage_name);
    let objective = stage.ok_or_else(|| format!("the run has no stage {}", place.stage_name))?.objective;
    state.enter_stage(run, place.stage as usize);
    for (model, parameters) in state.own() {
        let values = read_tensors(&folder.join(file_name(model)))?;
        parameters.load(&values).map_err(|mismatch| format!("{}: {mismatch}", file_name(model)))?;
    }
    let mut moments = read_tensors(&folder.join(OPTIMIZER))?;
    let trained = state.trained(objective);
    for (moment, buffer) in MOMENTS.into_iter().zip([&state.optimizer.first, &state.optimizer.second]) {
        let copied = trained.copy_into(buffer, &take_prefix(&mut moments, moment));
        copied.map_err(|mismatch| format!("{OPTIMIZER}: {mismatch}"))?;
    }
    let found = state.parameters_sha256();
    if found != place.parameters_sha256 {
        let wanted = &place.parameters_sha256;
        return Err(format!("its parameters have SHA-256 {found}, not {wanted}"));
    }
    state.position = Some(v1::Position { stage: place.stage, step: place.step, generation: 0 });
    Ok(())
}

/// The file of one of the run's own models.
pub fn file_name(model: &str) -> String {
    format!("{model}.safetensors")
}

/// The tensors whose name begins with `prefix` and a dot, under the rest of it.
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
