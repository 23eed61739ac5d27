//! Pixels against Pillow and torchvision: see `tests/parity`.

use std::collections::BTreeMap;
use std::path::PathBuf;

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
}

/// `DICO_PARITY` names a folder of more images: see `make parity`.
fn folder() -> PathBuf {
    let folder = std::env::var_os("DICO_PARITY").map(PathBuf::from);
    folder.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden")).join("images")
}

#[test]
fn golden_pixels_are_within_one_level_of_pillow_and_torchvision() {
    let folder = folder();
    let golden: Golden = serde_json::from_slice(&std::fs::read(folder.join("images.json")).unwrap()).unwrap();
    assert!(golden.images.len() >= 30);
    let mut wrong = Vec::new();
    for Image { file, expected } in &golden.images {
        let encoded = std::fs::read(folder.join(file)).unwrap();
        for (&size, name) in expected {
            let expected = image::open(folder.join(name)).unwrap().into_rgb8();
            assert_eq!(expected.dimensions(), (size, size), "{name}");
            let found = dataset::preprocess::square(&encoded, size).unwrap();
            let difference = found.iter().zip(expected.as_raw()).map(|(&a, &b)| a.abs_diff(b)).max().unwrap();
            if difference > 1 {
                wrong.push(format!("{name}: {difference}"));
            }
        }
    }
    assert!(wrong.is_empty(), "more than one level apart: {wrong:?}");
}
