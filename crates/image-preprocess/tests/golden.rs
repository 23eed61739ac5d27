//! Compares pixels with those of Pillow, torchvision and transformers, which `tests/parity` wrote.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use image_preprocess::{CropOffset, Preprocessing};
use serde::Deserialize;

/// The images and their expected pixels.
#[derive(Deserialize)]
struct Golden {
    images: Vec<Image>,
}

#[derive(Deserialize)]
struct Image {
    file: String,
    /// The expected pixels by size.
    expected: BTreeMap<u32, String>,
    /// The expected pixels by size with a crop offset that is rounded down, where they differ.
    floor: BTreeMap<u32, String>,
}

/// `DICO_PARITY` names a folder of more images: see `make parity`.
fn folder() -> PathBuf {
    let folder = std::env::var_os("DICO_PARITY").map(PathBuf::from);
    folder.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden")).join("images")
}

#[test]
fn pixels_are_within_one_level_of_pillow_and_torchvision() {
    let (folder, images) = load_golden();
    assert!(images.len() >= 30);
    let pairs = images.iter().flat_map(|image| image.expected.iter().map(|(&size, name)| (&image.file, size, name)));
    let mismatches = find_mismatches(&folder, pairs, Preprocessing::default());
    assert!(mismatches.is_empty(), "pixels differ by more than one level: {mismatches:?}");
}

#[test]
fn crop_offsets_are_rounded_down_as_in_transformers() {
    let (folder, images) = load_golden();
    let floor = Preprocessing { crop_offset: CropOffset::Floor, ..Preprocessing::default() };
    let differing =
        || images.iter().flat_map(|image| image.floor.iter().map(|(&size, name)| (&image.file, size, name)));
    assert!(differing().count() >= 3);
    // Where they do not differ, the pixels are those of torchvision.
    let with_floor_offsets = |image: &Image| {
        let expected = image.expected.iter().map(|(size, name)| (*size, image.floor.get(size).unwrap_or(name).clone()));
        (image.file.clone(), expected.collect::<BTreeMap<_, _>>())
    };
    let all: Vec<_> = images.iter().map(with_floor_offsets).collect();
    let pairs = all.iter().flat_map(|(file, expected)| expected.iter().map(move |(&size, name)| (file, size, name)));
    let mismatches = find_mismatches(&folder, pairs, floor);
    assert!(mismatches.is_empty(), "pixels differ by more than one level: {mismatches:?}");
    let mismatches = find_mismatches(&folder, differing(), Preprocessing::default());
    assert_eq!(
        mismatches.len(),
        differing().count(),
        "the other rounding gives the same pixels for some of these: {mismatches:?}"
    );
}

fn load_golden() -> (PathBuf, Vec<Image>) {
    let folder = folder();
    let golden: Golden = serde_json::from_slice(&std::fs::read(folder.join("images.json")).unwrap()).unwrap();
    (folder, golden.images)
}

/// Preprocesses files to sizes and compares them with files of expected pixels. Returns those that
/// differ by more than one level.
fn find_mismatches<'a>(
    folder: &Path,
    images: impl Iterator<Item = (&'a String, u32, &'a String)>,
    preprocessing: Preprocessing,
) -> Vec<String> {
    let mut mismatches = Vec::new();
    for (file, size, name) in images {
        let encoded = std::fs::read(folder.join(file)).unwrap();
        let expected = image::open(folder.join(name)).unwrap().into_rgb8();
        assert_eq!(expected.dimensions(), (size, size), "{name}");
        let found = preprocessing.apply(&encoded, size).unwrap();
        let difference = found.iter().zip(expected.as_raw()).map(|(&a, &b)| a.abs_diff(b)).max().unwrap();
        if difference > 1 {
            mismatches.push(format!("{name}: {difference}"));
        }
    }
    mismatches
}
