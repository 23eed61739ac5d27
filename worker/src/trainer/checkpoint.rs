//! A checkpoint is a model folder ([`weights::folder`]) with what it takes to go on: a safetensors file for each of the run's
//! own models, `optimizer.safetensors` (both moments) and `state.json` (where in the run it was taken). It appears under its
//! name only when it is complete.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Component, Path, PathBuf};

use proto::v1;
use serde::{Deserialize, Serialize};
use tch::Tensor;
use weights::Archive;

use super::{Stop, Trainer};
use crate::tensors;

/// Raised when older programs cannot read newer checkpoints.
const FORMAT: u32 = 2;
const STATE: &str = "state.json";
const OPTIMIZER: &str = "optimizer.safetensors";

#[derive(Serialize, Deserialize)]
struct Place {
    format: u32,
    run: String,
    stage: u32,
    stage_name: String,
    step: u64,
    parameters_sha256: String,
}

impl Trainer {
    /// Writes the state as the checkpoint `name`.
    pub(super) fn write_checkpoint(&self, name: &str) -> Result<(), Stop> {
        let folder = self.checkpoint_folder(name)?;
        self.write(&folder).map_err(|problem| Stop::Fatal(format!("cannot write checkpoint {name}: {problem}")))?;
        tracing::info!(name, "checkpoint written");
        Ok(())
    }

    fn checkpoint_folder(&self, name: &str) -> Result<PathBuf, Stop> {
        let mut parts = Path::new(name).components();
        match (parts.next(), parts.next()) {
            (Some(Component::Normal(part)), None) if part == name => Ok(self.run.output.join("checkpoints").join(name)),
            _ => Err(Stop::Fatal(format!("{name:?} is no name of a checkpoint"))),
        }
    }

    fn write(&self, folder: &Path) -> Result<(), String> {
        let text = |error: std::io::Error| error.to_string();
        let parent = folder.parent().ok_or("a folder needs a parent")?;
        std::fs::create_dir_all(parent).map_err(text)?;
        let scratch = crate::files::scratch(folder);
        remove(&scratch).map_err(text)?;
        std::fs::create_dir(&scratch).map_err(text)?;
        let manifest = self.origins.manifest(&self.state.models);
        manifest.write(&scratch).map_err(|error| error.to_string())?;
        for (model, parameters) in self.state.own() {
            write_tensors(&scratch.join(file_name(model)), parameters.named())?;
        }
        let position = self.state.position.unwrap_or_default();
        let stage = &self.run.stages[position.stage as usize];
        let trained = self.state.trained(stage.objective);
        let moments = [("first", &self.state.optimizer.first), ("second", &self.state.optimizer.second)];
        let moments = moments.into_iter().flat_map(|(moment, buffer)| {
            trained.views(buffer).map(move |(name, view)| (format!("{moment}.{name}"), view))
        });
        write_tensors(&scratch.join(OPTIMIZER), moments)?;
        let place = Place {
            format: FORMAT,
            run: self.run.name.clone(),
            stage: position.stage,
            stage_name: stage.name.clone(),
            step: position.step,
            parameters_sha256: self.state.parameters_sha256(),
        };
        let file = File::create(scratch.join(STATE)).map_err(text)?;
        serde_json::to_writer_pretty(&file, &place).map_err(|error| error.to_string())?;
        file.sync_all().map_err(text)?;
        remove(folder).map_err(text)?;
        std::fs::rename(&scratch, folder).map_err(text)?;
        File::open(parent).and_then(|parent| parent.sync_all()).map_err(text)
    }

    /// Takes over the state that the checkpoint `name` holds.
    pub(super) fn read_checkpoint(&mut self, name: &str) -> Result<(), Stop> {
        let folder = self.checkpoint_folder(name)?;
        self.read(&folder).map_err(|problem| Stop::Fatal(format!("cannot read checkpoint {name}: {problem}")))?;
        tracing::info!(name, "checkpoint read");
        Ok(())
    }

    fn read(&mut self, folder: &Path) -> Result<(), String> {
        let place = std::fs::read(folder.join(STATE)).map_err(|error| format!("{STATE}: {error}"))?;
        let place: Place = serde_json::from_slice(&place).map_err(|error| format!("{STATE}: {error}"))?;
        if place.format != FORMAT {
            return Err(format!("it has format {}, this program reads {FORMAT}", place.format));
        }
        let models = weights::folder::Folder::open(folder).map_err(|error| error.to_string())?;
        if models.manifest().vocabulary != self.origins.captioner_vocabulary.to_stored() {
            return Err("it was made with another vocabulary".to_owned());
        }
        let stage = self.run.stages.get(place.stage as usize).filter(|stage| stage.name == place.stage_name);
        let objective = stage.ok_or_else(|| format!("the run has no stage {}", place.stage_name))?.objective;
        self.state.enter_stage(&self.run, place.stage as usize);
        for (model, parameters) in self.state.own() {
            let values = read_tensors(&folder.join(file_name(model)))?;
            let copied = parameters.copy_into(parameters.flat(), &values);
            copied.map_err(|mismatch| format!("{}: {mismatch}", file_name(model)))?;
        }
        let mut moments = read_tensors(&folder.join(OPTIMIZER))?;
        let trained = self.state.trained(objective);
        for (moment, buffer) in [("first", &self.state.optimizer.first), ("second", &self.state.optimizer.second)] {
            let copied = trained.copy_into(buffer, &take_prefix(&mut moments, moment));
            copied.map_err(|mismatch| format!("{OPTIMIZER}: {mismatch}"))?;
        }
        let found = self.state.parameters_sha256();
        if found != place.parameters_sha256 {
            let wanted = place.parameters_sha256;
            return Err(format!("it is damaged: its parameters have SHA-256 {found}, not {wanted}"));
        }
        self.state.position = Some(v1::Position { stage: place.stage, step: place.step, generation: 0 });
        Ok(())
    }
}

fn file_name(model: &str) -> String {
    format!("{model}.safetensors")
}

fn remove(folder: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
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

fn write_tensors(
    path: &Path,
    tensors: impl Iterator<Item = (impl Into<String>, impl std::borrow::Borrow<Tensor>)>,
) -> Result<(), String> {
    let tensors: Vec<_> = tensors.map(|(name, tensor)| (name.into(), tensors::to_weights(tensor.borrow()))).collect();
    weights::write_safetensors(path, &tensors).map_err(|error| error.to_string())
}

fn read_tensors(path: &Path) -> Result<BTreeMap<String, Tensor>, String> {
    let archive = Archive::open(path).map_err(|error| error.to_string())?;
    Ok(tensors::from_weights(archive.tensors()))
}
