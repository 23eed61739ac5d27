//! A checkpoint is a folder: `models.safetensors` (every model under its name), `optimizer.safetensors` (both moments) and
//! `state.json` (where in the run it was taken, and the vocabulary). It appears under its name only when it is complete.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use proto::v1;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use super::{Stop, Trainer};

/// Raised when older programs cannot read newer checkpoints.
const FORMAT: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Manifest {
    format: u32,
    run: String,
    stage: u32,
    stage_name: String,
    step: u64,
    parameters_sha256: String,
    /// CLIP's number of each of the models' tokens, without begin, end and pad.
    vocabulary: Vec<u16>,
}

impl Trainer {
    /// Writes the state to the folder `path` and returns it.
    pub(super) fn write_checkpoint(&self, path: &str) -> Result<String, Stop> {
        let folder = Path::new(path);
        if !folder.starts_with(&self.run.output) || path.contains("..") {
            return Err(Stop::Fatal(format!("told to write to {path}, outside {}", self.run.output.display())));
        }
        let failed = |error: std::io::Error| Stop::Fatal(format!("cannot write checkpoint {path}: {error}"));
        self.write(folder).map_err(failed)?;
        tracing::info!(path, "checkpoint written");
        Ok(path.to_owned())
    }

    fn write(&self, folder: &Path) -> std::io::Result<()> {
        let parent = folder.parent().ok_or_else(|| std::io::Error::other("a folder needs a parent"))?;
        std::fs::create_dir_all(parent)?;
        let scratch = folder.with_extension("partial");
        remove(&scratch)?;
        std::fs::create_dir(&scratch)?;
        let models = self.state.models().flat_map(|(model, parameters)| {
            parameters.named().map(move |(name, tensor)| (format!("{model}.{name}"), tensor.shallow_clone()))
        });
        write_tensors(&scratch.join("models.safetensors"), models)?;
        let position = self.state.position.unwrap_or_default();
        let stage = &self.run.stages[position.stage as usize];
        let trained = self.state.trained(stage.objective);
        let moments = [("first", &self.state.optimizer.first), ("second", &self.state.optimizer.second)];
        let moments = moments.into_iter().flat_map(|(moment, buffer)| {
            trained.views(buffer).map(move |(name, view)| (format!("{moment}.{name}"), view))
        });
        write_tensors(&scratch.join("optimizer.safetensors"), moments)?;
        let manifest = Manifest {
            format: FORMAT,
            run: self.run.name.clone(),
            stage: position.stage,
            stage_name: stage.name.clone(),
            step: position.step,
            parameters_sha256: self.state.parameters_sha256(),
            vocabulary: self.vocabulary.tokens().to_vec(),
        };
        let file = File::create(scratch.join("state.json"))?;
        serde_json::to_writer_pretty(&file, &manifest)?;
        file.sync_all()?;
        remove(folder)?;
        std::fs::rename(&scratch, folder)?;
        File::open(parent)?.sync_all()
    }

    /// Takes over the state that the folder `path` holds.
    pub(super) fn read_checkpoint(&mut self, path: &str) -> Result<(), Stop> {
        self.read(Path::new(path))
            .map_err(|problem| Stop::Fatal(format!("cannot read checkpoint {path}: {problem}")))?;
        tracing::info!(path, "checkpoint read");
        Ok(())
    }

    fn read(&mut self, folder: &Path) -> Result<(), String> {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let manifest = std::fs::read(folder.join("state.json")).map_err(|error| format!("state.json: {error}"))?;
        let manifest: Manifest = serde_json::from_slice(&manifest).map_err(|error| format!("state.json: {error}"))?;
        if manifest.format != FORMAT {
            return Err(format!("it has format {}, this program reads {FORMAT}", manifest.format));
        }
        if manifest.vocabulary != self.vocabulary.tokens() {
            return Err("it was made with another vocabulary".to_owned());
        }
        let stage = self.run.stages.get(manifest.stage as usize).filter(|stage| stage.name == manifest.stage_name);
        let objective = stage.ok_or_else(|| format!("the run has no stage {}", manifest.stage_name))?.objective;
        self.state.enter_stage(&self.run, manifest.stage as usize);
        let mut models = read_tensors(&folder.join("models.safetensors"))?;
        for (model, parameters) in self.state.models() {
            let values = take_prefix(&mut models, model);
            parameters.copy_into(parameters.flat(), &values).map_err(|error| text(&error))?;
        }
        let mut moments = read_tensors(&folder.join("optimizer.safetensors"))?;
        let trained = self.state.trained(objective);
        for (moment, buffer) in [("first", &self.state.optimizer.first), ("second", &self.state.optimizer.second)] {
            let values = take_prefix(&mut moments, moment);
            trained.copy_into(buffer, &values).map_err(|error| text(&error))?;
        }
        let found = self.state.parameters_sha256();
        if found != manifest.parameters_sha256 {
            return Err(format!(
                "it is damaged: its parameters have SHA-256 {found}, not {}",
                manifest.parameters_sha256
            ));
        }
        self.state.position = Some(v1::Position { stage: manifest.stage, step: manifest.step, generation: 0 });
        Ok(())
    }
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

fn write_tensors(path: &Path, tensors: impl Iterator<Item = (String, Tensor)>) -> std::io::Result<()> {
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = tensors
        .map(|(name, tensor)| {
            let tensor = tensor.to_device(Device::Cpu).contiguous();
            let mut bytes = vec![0; tensor.numel() * 4];
            tensor.copy_data_u8(&mut bytes, tensor.numel());
            (name, tensor.size().iter().map(|&side| side as usize).collect(), bytes)
        })
        .collect();
    let views = tensors.iter().map(|(name, shape, bytes)| {
        let view = TensorView::new(Dtype::F32, shape.clone(), bytes).expect("bytes and shape come from one tensor");
        (name.as_str(), view)
    });
    let file = File::create(path)?;
    safetensors::serialize_to_file(views, None, path).map_err(std::io::Error::other)?;
    file.sync_all()
}

fn read_tensors(path: &Path) -> Result<BTreeMap<String, Tensor>, String> {
    let named = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let bytes = std::fs::read(path).map_err(|error| named(&error))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|error| named(&error))?;
    let tensors = file.iter().map(|(name, view)| {
        if view.dtype() != Dtype::F32 {
            return Err(named(&format!("{name} is {:?}, not F32", view.dtype())));
        }
        let shape: Vec<i64> = view.shape().iter().map(|&side| side as i64).collect();
        Ok((name.to_owned(), Tensor::from_data_size(view.data(), &shape, Kind::Float)))
    });
    tensors.collect()
}
