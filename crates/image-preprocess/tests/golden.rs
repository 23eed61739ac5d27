//! Pixels against Pillow, torchvision and transformers: see `tests/parity`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use image_preprocess::{CropOffset, Preprocessing};
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    images: Vec<Image>,
}

#[derive(Deserialize)]
struct Image {
    file: String,
    /// The expected pixels by size.
    expected: BTreeMap<u32, String>,
    /// Those of an extractor that rounds the offset of the crop down, where they differ.
    floor: BTreeMap<u32, String>,
}

/// `DICO_PARITY` names a folder of more images: see `make parity`.
fn folder() -> PathBuf {
    let folder = std::env::var_os("DICO_PARITY").map(PathBuf::from);
    folder.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden")).join("images")
}

#[test]
fn golden_pixels_are_within_one_level_of_pillow_and_torchvision() {
    let (folder, images) = golden();
    assert!(images.len() >= 30);
    let pairs = images.iter().flat_map(|image| image.expected.iter().map(|(&size, name)| (&image.file, size, name)));
    let wrong = far_from_expected(&folder, pairs, Preprocessing::default());
    assert!(wrong.is_empty(), "more than one level apart: {wrong:?}");
}

#[test]
fn offsets_are_rounded_down_as_in_the_extractor_of_transformers() {
    let (folder, images) = golden();
    let floor = Preprocessing { crop_offset: CropOffset::Floor, ..Preprocessing::default() };
    let differing =
        || images.iter().flat_map(|image| image.floor.iter().map(|(&size, name)| (&image.file, size, name)));
    assert!(differing().count() >= 3);
    // Where they do not differ, the pixels are those of torchvision.
    let of_image = |image: &Image| {
        let expected = image.expected.iter().map(|(size, name)| (*size, image.floor.get(size).unwrap_or(name).clone()));
        (image.file.clone(), expected.collect::<BTreeMap<_, _>>())
    };
    let all: Vec<_> = images.iter().map(of_image).collect();
    let pairs = all.iter().flat_map(|(file, expected)| expected.iter().map(move |(&size, name)| (file, size, name)));
    let wrong = far_from_expected(&folder, pairs, floor);
    assert!(wrong.is_empty(), "more than one level apart: {wrong:?}");
    let wrong = far_from_expected(&folder, differing(), Preprocessing::default());
    assert_eq!(wrong.len(), differing().count(), "the other rounding makes other pixels of these: {wrong:?}");
}

fn golden() -> (PathBuf, Vec<Image>) {
    let folder = folder();
    let golden: Golden = serde_json::from_slice(&std::fs::read(folder.join("images.json")).unwrap()).unwrap();
    (folder, golden.images)
}

/// Of each file, the size and the file of the expected pixels: which differ by more than one level.
fn far_from_expected<'a>(
    folder: &Path,
    images: impl Iterator<Item = (&'a String, u32, &'a String)>,
    preprocessing: Preprocessing,
) -> Vec<String> {
    let mut wrong = Vec::new();
    for (file, size, name) in images {
        let encoded = std::fs::read(folder.join(file)).unwrap();
        let expected = image::open(folder.join(name)).unwrap().into_rgb8();
        assert_eq!(expected.dimensions(), (size, size), "{name}");
        let found = preprocessing.square(&encoded, size).unwrap();
        let difference = found.iter().zip(expected.as_raw()).map(|(&a, &b)| a.abs_diff(b)).max().unwrap();
        if difference > 1 {
            wrong.push(format!("{name}: {difference}"));
        }
    }
    wrong
}
