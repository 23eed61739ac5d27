//! WebDataset's tars (<https://github.com/webdataset/webdataset>) of images with captions, in
//! folders or buckets.

use std::collections::BTreeMap;
use std::path::Path;

use config::WebDataset;
use object_io::Access;

use crate::index::{CAPTION_KEYS, Sample, Unknown};
use crate::names::coco_id;
use crate::shards::Shards;
use crate::store::Stores;
use crate::{BadImage, DataSet, Error, ImageRef, Item, Split, braces, names};

/// Maximal number of unknown extensions that are named.
const MAX_NAMED: usize = 5;

/// Loads the `wanted` splits that `settings` names, without invalid samples.
///
/// # Errors
/// A pattern or tar has a wrong format, or cannot be read.
pub fn load(settings: &WebDataset, wanted: &[Split], access: Access) -> Result<DataSet, Error> {
    let patterns = [
        (Split::Train, Some(&settings.train)),
        (Split::Validation, Some(&settings.validation)),
        (Split::Test, settings.test.as_ref()),
    ];
    let mut tars = Vec::new();
    let mut owners = Vec::new();
    for (split, pattern) in patterns {
        let Some(pattern) = pattern.filter(|_| wanted.contains(&split)) else { continue };
        let names = braces::expand(pattern).map_err(|problem| Error::format(pattern, problem))?;
        owners.resize(owners.len() + names.len(), split);
        tars.extend(names);
    }
    let (shards, indices) = Shards::open(Stores::new(access)?, &tars)?;
    let mut found: Vec<(Split, usize, Vec<Sample>)> = Vec::with_capacity(tars.len());
    let mut unknown: BTreeMap<(usize, String), Unknown> = BTreeMap::new();
    for (shard, (split, index)) in owners.into_iter().zip(indices).enumerate() {
        for (extension, Unknown { members, first }) in index.unknown {
            let first = || Unknown { members: 0, first: format!("{first} in {}", tars[shard]) };
            unknown.entry((split as usize, extension)).or_insert_with(first).members += members;
        }
        found.push((split, shard, index.samples));
    }
    let mut data = DataSet { shards: Some(shards), ..DataSet::default() };
    for split in Split::ALL {
        let of_split = unknown.iter().filter(|((of, _), _)| *of == split as usize);
        let of_split: Vec<_> = of_split.map(|((_, extension), unknown)| (extension.as_str(), unknown)).collect();
        data.splits.notes.extend(not_read(split, &of_split));
    }
    let silent = Split::ALL.map(|split| without_captions(split, &found));
    for split in Split::ALL.into_iter().filter(|split| silent[*split as usize]) {
        let samples = || found.iter().filter(|(of, ..)| *of == split).flat_map(|(.., samples)| samples);
        let keyed = samples().find(|sample| !sample.keys.is_empty());
        let note = keyed.map(|sample| format!("split `{split}`: {}: {}", sample.key, no_captions(&sample.keys)));
        data.splits.notes.extend(note);
    }
    for (split, shard, samples) in found {
        for sample in samples {
            let (place, oddities) = (format!("{} in {}", sample.key, tars[shard]), sample.oddities);
            match item(shard, sample, silent[split as usize]) {
                Ok(item) => data.add(split, item, Ok(oddities)),
                Err(problem) => data.left_out.push(BadImage { split, place, problem }),
            }
        }
    }
    let tar_of = |item: &Item| match &item.image {
        ImageRef::Member(member) => tars.get(Shards::tar_of(member)).map_or("", String::as_str),
        ImageRef::File(_) => "",
    };
    let file_name =
        |tar: &str| Path::new(tar).file_name().map_or_else(String::new, |name| name.to_string_lossy().into());
    names::settle(
        &mut data.splits,
        &[&|item| format!("{}/{}", file_name(tar_of(item)), item.path()), &|item| {
            format!("{}/{}", tar_of(item), item.path())
        }],
    );
    Ok(data)
}

/// Whether no valid sample of a split has captions.
fn without_captions(split: Split, found: &[(Split, usize, Vec<Sample>)]) -> bool {
    let mut samples = found.iter().filter(|(of, ..)| *of == split).flat_map(|(.., samples)| samples);
    samples.all(|sample| sample.captions.is_empty())
}

/// A note on members with unknown extensions; none if there are none.
fn not_read(split: Split, unknown: &[(&str, &Unknown)]) -> Option<String> {
    if unknown.is_empty() {
        return None;
    }
    let all: u64 = unknown.iter().map(|(_, unknown)| unknown.members).sum();
    let named = unknown.iter().take(MAX_NAMED).map(|(extension, Unknown { members, first })| {
        let extension =
            if extension.is_empty() { "no extension".to_owned() } else { format!("extension `{extension}`") };
        format!("{members} with {extension} ({first} for one)")
    });
    let named = named.collect::<Vec<_>>().join(", ");
    let others = if unknown.len() > MAX_NAMED { ", and others" } else { "" };
    let rule =
        "the extension is all that follows the first dot of a file name; known are jpg, jpeg, png, webp, txt and json";
    Some(format!("split `{split}`: {all} members of its tars are not read: {named}{others}; {rule}"))
}

/// The image of a sample, or the reason why it has none. `silent`: captions are not expected.
fn item(shard: usize, sample: Sample, silent: bool) -> Result<Item, String> {
    let Sample { key, image, captions, id, keys, problem, .. } = sample;
    match (image, problem) {
        (_, Some(problem)) => Err(problem),
        (None, None) => Err("captions without an image".to_owned()),
        (Some(_), None) if captions.is_empty() && !silent => Err(no_captions(&keys)),
        (Some(extent), None) => {
            let id = id.or_else(|| coco_id(&key));
            let item = Item::new(&key, captions, ImageRef::Member(Shards::member(shard, extent)));
            Ok(Item { id, ..item })
        }
    }
}

/// The problem of an image without captions whose `.json`, if there is one, has these keys.
fn no_captions(keys: &[String]) -> String {
    if keys.is_empty() {
        return "an image without captions".to_owned();
    }
    let quoted = |keys: &[&str]| keys.iter().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", ");
    let found: Vec<&str> = keys.iter().map(String::as_str).collect();
    format!(
        "an image without captions: its .json has the keys {}, and none of {} is a text or a list of texts",
        quoted(&found),
        quoted(&CAPTION_KEYS)
    )
}

#[cfg(test)]
mod tests;
