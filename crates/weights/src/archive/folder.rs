//! Model folders in the layouts of Hugging Face and OpenCLIP.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};

use serde::Deserialize;

use super::{Archive, locate_tensors};
use crate::error::Error;
use crate::file::{MappedFile, read_json};

/// Maximal number of shards: the largest public models have some hundred.
const MAX_SHARDS: usize = 1024;

/// The files with weights or a shard index, in order of preference.
const WEIGHT_FILES: [&str; 6] = [
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
];

/// The index of a sharded model: the shard of each tensor.
#[derive(Deserialize)]
struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

/// Opens the folder `path`.
pub fn open(path: &Path) -> Result<Archive, Error> {
    let name = WEIGHT_FILES
        .into_iter()
        .find(|name| path.join(name).exists())
        .ok_or_else(|| Error::invalid(path, format!("has no weights: none of {} exists", WEIGHT_FILES.join(", "))))?;
    let file = path.join(name);
    let mut archive = Archive { path: path.to_owned(), files: Vec::new(), tensors: BTreeMap::new() };
    if name.ends_with(".json") {
        add_shards(&mut archive, &file)?;
    } else {
        let file = MappedFile::open(&file)?;
        let tensors = locate_tensors(file.path(), file.bytes())?;
        archive.add_file(file, tensors)?;
    }
    archive.check_total_size()?;
    Ok(archive)
}

fn add_shards(archive: &mut Archive, index: &Path) -> Result<(), Error> {
    let ShardIndex { weight_map } = read_json(index)?;
    let shards: BTreeSet<&str> = weight_map.values().map(String::as_str).collect();
    if shards.len() > MAX_SHARDS {
        return Err(Error::invalid(index, format!("names more than {MAX_SHARDS} shards")));
    }
    for shard in shards {
        // Follows symbolic links, which download caches use.
        if !matches!(Path::new(shard).components().collect::<Vec<_>>().as_slice(), [Component::Normal(_)]) {
            return Err(Error::invalid(index, format!("the shard {shard} leads out of the folder")));
        }
        let file = MappedFile::open(&archive.path.join(shard))?;
        let mut tensors = locate_tensors(file.path(), file.bytes())?;
        tensors.retain(|tensor| weight_map.get(&tensor.name).is_some_and(|name| name == shard));
        archive.add_file(file, tensors)?;
    }
    match weight_map.iter().find(|(name, _)| !archive.tensors.contains_key(*name)) {
        Some((name, shard)) => Err(Error::tensor(index, name, format!("is not in its shard {shard}"))),
        None => Ok(()),
    }
}
