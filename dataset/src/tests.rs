use image::{Rgb, RgbImage};
use runfile::{Coco, CocoSplit, Data, Karpathy};

use super::*;

/// A folder of Karpathy's annotations with these images: split, name, whether the file is there and sound.
fn karpathy(images: &[(&str, &str, bool)]) -> (tempfile::TempDir, Data) {
    let folder = tempfile::tempdir().unwrap();
    let entries = images.iter().map(|(split, name, sound)| {
        if *sound {
            RgbImage::from_pixel(5, 7, Rgb([1, 2, 3])).save(folder.path().join(name)).unwrap();
        }
        format!(
            r#"{{"filename": "{name}", "split": "{split}", "sentences": [{{"raw": "of {name}"}}, {{"raw": "a"}}]}}"#
        )
    });
    let text = format!(r#"{{"images": [{}]}}"#, entries.collect::<Vec<_>>().join(","));
    let annotations = folder.path().join("dataset.json");
    std::fs::write(&annotations, text).unwrap();
    let karpathy = Some(Karpathy { annotations, images: folder.path().to_owned() });
    (folder, Data { karpathy, ..Data::default() })
}

#[test]
fn a_set_of_files_is_loaded_and_read() {
    let images =
        [("train", "a.png", true), ("restval", "b.png", true), ("val", "c.png", true), ("test", "d.png", true)];
    let (_folder, settings) = karpathy(&images);
    let set = DataSet::load(&settings).unwrap();
    assert_eq!(Split::ALL.map(|split| set.split(split).len()), [2, 1, 1]);
    assert_eq!((set.train_captions(), set.skipped()), (4, 0));
    for split in Split::ALL {
        for item in set.split(split) {
            assert_eq!(set.pixels(item, 4).unwrap(), [1, 2, 3].repeat(16));
        }
    }
}

#[test]
fn files_of_the_validation_split_are_found_by_their_names_without_being_looked_at() {
    let (folder, settings) = karpathy(&[("train", "a.png", true), ("val", "b.png", false), ("test", "c.png", true)]);
    let files = validation_files(&settings).unwrap();
    assert_eq!(files, [("b.png".to_owned(), folder.path().join("b.png"))].into());
    let tars = runfile::WebDataset { train: "a.tar".into(), validation: "b.tar".into(), test: None };
    let tars = Data { webdataset: Some(tars), ..Data::default() };
    assert!(validation_files(&tars).unwrap().is_empty(), "images in tars are no files");
}

#[test]
fn the_fingerprint_covers_training_and_validation() {
    let fingerprint = |images: &[(&str, &str, bool)]| DataSet::load(&karpathy(images).1).unwrap().fingerprint();
    let first = fingerprint(&[("train", "a.png", true), ("val", "b.png", true)]);
    assert_eq!(first.len(), 64);
    assert_eq!(first, fingerprint(&[("train", "a.png", true), ("val", "b.png", true), ("test", "c.png", true)]));
    assert_ne!(first, fingerprint(&[("train", "b.png", true), ("val", "a.png", true)]));
    assert_ne!(first, fingerprint(&[("train", "a.png", true), ("val", "b.png", true), ("val", "c.png", true)]));
}

#[test]
fn missing_images_are_named_or_counted() {
    let (_folder, mut settings) = karpathy(&[
        ("train", "a.png", true),
        ("train", "gone.png", false),
        ("val", "b.png", true),
        ("test", "x.png", false),
    ]);
    let error = DataSet::load(&settings).unwrap_err().to_string();
    assert!(error.contains("gone.png") && error.contains("skip_corrupt"), "{error}");
    settings.skip_corrupt = true;
    let set = DataSet::load(&settings).unwrap();
    assert_eq!((set.skipped(), set.split(Split::Train).len(), set.split(Split::Test).len()), (2, 1, 0));
}

#[test]
fn a_split_without_images_is_named() {
    for (images, split) in [
        ([("train", "a.png", true), ("val", "b.png", false)], "val"),
        ([("val", "a.png", true), ("test", "b.png", true)], "train"),
    ] {
        let (_folder, mut settings) = karpathy(&images);
        settings.skip_corrupt = true;
        let error = DataSet::load(&settings).unwrap_err().to_string();
        assert!(error.ends_with(&format!("no usable image in split `{split}`")), "{error}");
    }
}

#[test]
fn coco_is_loaded_from_a_file_a_split() {
    let folder = tempfile::tempdir().unwrap();
    RgbImage::new(2, 2).save(folder.path().join("a.png")).unwrap();
    let annotations = folder.path().join("captions.json");
    let text = r#"{"images": [{"id": 1, "file_name": "a.png"}], "annotations": [{"image_id": 1, "caption": "A"}]}"#;
    std::fs::write(&annotations, text).unwrap();
    let split = CocoSplit { annotations, images: folder.path().to_owned() };
    let coco = Some(Coco { train: split.clone(), validation: split, test: None });
    let set = DataSet::load(&Data { coco, ..Data::default() }).unwrap();
    assert_eq!(Split::ALL.map(|split| set.split(split).len()), [1, 1, 0]);
}

#[test]
fn images_of_one_file_name_are_found_by_their_paths() {
    let (folder, settings) = karpathy(&[("train", "t.png", true), ("val", "0.png", true)]);
    for part in ["a", "b"] {
        std::fs::create_dir(folder.path().join(part)).unwrap();
        std::fs::copy(folder.path().join("0.png"), folder.path().join(part).join("0.png")).unwrap();
    }
    let annotations = folder.path().join("dataset.json");
    let text = std::fs::read_to_string(&annotations).unwrap();
    let doubled = text.replace(
        r#"{"filename": "0.png""#,
        r#"{"filename": "0.png", "filepath": "b", "split": "val", "sentences": [{"raw": "b"}]}, {"filepath": "a", "filename": "0.png""#,
    );
    std::fs::write(&annotations, doubled).unwrap();
    let expected = ["a/0.png", "b/0.png"].map(|name| (name.to_owned(), folder.path().join(name)));
    assert_eq!(validation_files(&settings).unwrap(), expected.into());
    let set = DataSet::load(&settings).unwrap();
    assert_eq!(set.split(Split::Validation).len(), 2);
}

#[test]
fn only_splits_that_are_neither_trained_nor_validated_on_may_be_without_captions() {
    let folder = tempfile::tempdir().unwrap();
    RgbImage::new(2, 2).save(folder.path().join("a.png")).unwrap();
    let split = |name: &str, annotations: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, format!(r#"{{"images": [{{"id": 1, "file_name": "a.png"}}]{annotations}}}"#)).unwrap();
        CocoSplit { annotations: path, images: folder.path().to_owned() }
    };
    let good = split("good.json", r#", "annotations": [{"image_id": 1, "caption": "A"}]"#);
    let silent = split("silent.json", "");
    let load = |train: &CocoSplit, validation: &CocoSplit| {
        let coco = Coco { train: train.clone(), validation: validation.clone(), test: Some(silent.clone()) };
        let settings = Data { coco: Some(coco), ..Data::default() };
        let test = DataSet::load_split(&settings, Split::Test).unwrap();
        assert_eq!(Split::ALL.map(|split| test.split(split).len()), [0, 0, 1]);
        DataSet::load(&settings).map_err(|error| error.to_string())
    };
    assert_eq!(load(&good, &good).unwrap().split(Split::Test)[0].captions, [""; 0]);
    let error = load(&silent, &good).unwrap_err();
    assert!(error.ends_with("silent.json: split `train` has no captions: training needs captions"), "{error}");
    let error = load(&good, &silent).unwrap_err();
    assert!(error.contains("silent.json: split `val` has no captions: evaluations during training"), "{error}");
}

#[test]
fn a_split_that_is_empty_because_nothing_was_understood_says_so() {
    let (folder, settings) = karpathy(&[("train", "a.png", true), ("validation", "b.png", true)]);
    let error = DataSet::load(&settings).unwrap_err().to_string();
    assert!(error.contains("no usable image in split `val`; ") && error.contains("split `validation`"), "{error}");
    drop(folder);
}

#[test]
fn damage_behind_a_sound_header_is_named_when_it_is_met() {
    let (folder, settings) = karpathy(&[("train", "a.png", true), ("val", "b.png", true)]);
    let path = folder.path().join("a.png");
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 20]).unwrap();
    let set = DataSet::load(&settings).unwrap();
    let item = &set.split(Split::Train)[0];
    assert!(set.read(item).is_ok());
    let error = set.pixels(item, 4).unwrap_err().to_string();
    assert!(error.contains("a.png: ") && !error.contains("skip_corrupt"), "{error}");
}

#[test]
fn settings_without_a_source_are_refused() {
    assert!(DataSet::load(&Data::default()).unwrap_err().to_string().contains("exactly one of"));
}

#[test]
fn splits_are_named_as_in_annotations() {
    for split in Split::ALL {
        assert_eq!(split.to_string().parse(), Ok(split));
    }
    assert_eq!("validation".parse(), Ok(Split::Validation));
    assert_eq!(
        "dev".parse::<Split>().unwrap_err().to_string(),
        "unknown split `dev`: expected one of `train`, `val`, `test`"
    );
}
