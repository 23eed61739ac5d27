use config::{Coco, CocoSplit, Data, Karpathy};
use image::{Rgb, RgbImage};

use super::*;

/// A folder with Karpathy annotations of these images: split, name, whether the file exists.
fn karpathy(images: &[(&str, &str, bool)]) -> (tempfile::TempDir, Data) {
    let folder = tempfile::tempdir().unwrap();
    let entries = images.iter().map(|(split, name, exists)| {
        if *exists {
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
fn images_in_files_are_loaded_and_read() {
    let images =
        [("train", "a.png", true), ("restval", "b.png", true), ("val", "c.png", true), ("test", "d.png", true)];
    let (_folder, settings) = karpathy(&images);
    let data_set = DataSet::load(&settings).unwrap();
    assert_eq!(Split::ALL.map(|split| data_set.split(split).len()), [2, 1, 1]);
    assert_eq!((data_set.train_caption_count(), data_set.skipped_images()), (4, &[][..]));
    for split in Split::ALL {
        for item in data_set.split(split) {
            assert_eq!(data_set.pixels(item, 4).unwrap(), [1, 2, 3].repeat(16));
        }
    }
}

#[test]
fn validation_files_are_listed_without_being_read() {
    let (folder, settings) = karpathy(&[("train", "a.png", true), ("val", "b.png", false), ("test", "c.png", true)]);
    let files = validation_files(&settings).unwrap();
    assert_eq!(files, [("b.png".to_owned(), folder.path().join("b.png"))].into());
    let tars = config::WebDataset { train: "a.tar".into(), validation: "b.tar".into(), test: None };
    let tars = Data { webdataset: Some(tars), ..Data::default() };
    assert!(validation_files(&tars).unwrap().is_empty(), "images in tars are not files of their own");
}

#[test]
fn training_and_validation_splits_have_separate_fingerprints() {
    let fingerprints = |images: &[(&str, &str, bool)]| {
        let data = DataSet::load(&karpathy(images).1).unwrap();
        (data.training_sha256(), data.validation_sha256())
    };
    let first = fingerprints(&[("train", "a.png", true), ("val", "b.png", true)]);
    assert_eq!((first.0.len(), first.1.len()), (64, 64));
    assert_eq!(first, fingerprints(&[("train", "a.png", true), ("val", "b.png", true), ("test", "c.png", true)]));
    let more = fingerprints(&[("train", "a.png", true), ("val", "b.png", true), ("val", "c.png", true)]);
    assert!(more.0 == first.0 && more.1 != first.1);
    let other = fingerprints(&[("train", "c.png", true), ("val", "b.png", true)]);
    assert!(other.0 != first.0 && other.1 == first.1);
}

#[test]
fn missing_images_are_an_error_or_skipped() {
    let (_folder, mut settings) = karpathy(&[
        ("train", "a.png", true),
        ("train", "gone.png", false),
        ("val", "b.png", true),
        ("test", "x.png", false),
    ]);
    let error = DataSet::load(&settings).unwrap_err().to_string();
    assert!(error.contains("gone.png") && error.contains("skip_corrupt"), "{error}");
    settings.skip_corrupt = true;
    let data_set = DataSet::load(&settings).unwrap();
    assert_eq!(
        (data_set.skipped_images().len(), data_set.split(Split::Train).len(), data_set.split(Split::Test).len()),
        (2, 1, 0)
    );
}

#[test]
fn a_split_without_images_is_an_error() {
    for (images, expected) in [
        ([("train", "a.png", true), ("val", "b.png", false)], "split `val`; images left out: 1, the first of them "),
        ([("val", "a.png", true), ("test", "b.png", true)], "split `train`"),
    ] {
        let (_folder, mut settings) = karpathy(&images);
        settings.skip_corrupt = true;
        let error = DataSet::load(&settings).unwrap_err().to_string();
        assert!(error.contains(&format!("no usable image in {expected}")), "{error}");
    }
}

#[test]
fn coco_is_loaded_from_one_file_per_split() {
    let folder = tempfile::tempdir().unwrap();
    RgbImage::new(2, 2).save(folder.path().join("a.png")).unwrap();
    let annotations = folder.path().join("captions.json");
    let text = r#"{"images": [{"id": 1, "file_name": "a.png"}], "annotations": [{"image_id": 1, "caption": "A"}]}"#;
    std::fs::write(&annotations, text).unwrap();
    let split = CocoSplit { annotations, images: folder.path().to_owned() };
    let coco = Some(Coco { train: split.clone(), validation: split, test: None });
    let data_set = DataSet::load(&Data { coco, ..Data::default() }).unwrap();
    assert_eq!(Split::ALL.map(|split| data_set.split(split).len()), [1, 1, 0]);
}

/// Damages the pixels of a PNG; its header and end stay valid.
fn damage_pixels(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let pixels = bytes.windows(4).position(|name| name == b"IDAT").unwrap() + 6;
    bytes[pixels] ^= 0xFF;
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn images_with_equal_file_names_are_named_by_path() {
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
    let data_set = DataSet::load(&settings).unwrap();
    assert_eq!(data_set.split(Split::Validation).len(), 2);
}

#[test]
fn a_split_without_captions_is_an_error_only_if_the_run_needs_them() {
    let folder = tempfile::tempdir().unwrap();
    RgbImage::new(2, 2).save(folder.path().join("a.png")).unwrap();
    let split = |name: &str, annotations: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, format!(r#"{{"images": [{{"id": 1, "file_name": "a.png"}}]{annotations}}}"#)).unwrap();
        CocoSplit { annotations: path, images: folder.path().to_owned() }
    };
    let good = split("good.json", r#", "annotations": [{"image_id": 1, "caption": "A"}]"#);
    let captionless = split("captionless.json", "");
    let load = |train: &CocoSplit, validation: &CocoSplit, objective: &str| {
        let coco = Coco { train: train.clone(), validation: validation.clone(), test: Some(captionless.clone()) };
        let mut run = run(objective);
        run.data = Data { coco: Some(coco), ..Data::default() };
        let test = DataSet::load_split(&run.data, Split::Test).unwrap();
        assert_eq!(Split::ALL.map(|split| test.split(split).len()), [0, 0, 1]);
        let data = DataSet::load(&run.data).unwrap();
        data.check_complete(&run).map(|()| data).map_err(|error| error.to_string())
    };
    let data_set = load(&good, &good, "cross_entropy").unwrap();
    assert_eq!(Split::ALL.map(|split| data_set.lacks_captions(split)), [false, false, true]);
    let data_set = load(&captionless, &captionless, "dico").unwrap();
    assert_eq!((data_set.split(Split::Train).len(), data_set.train_caption_count()), (1, 0));
    load(&good, &captionless, "cross_entropy").unwrap();
    let error = load(&captionless, &good, "cross_entropy").unwrap_err();
    let expected = "captionless.json: split `train` has no captions: stage `only` (cross_entropy) trains on them";
    assert!(error.ends_with(expected), "{error}");
    let error = load(&good, &captionless, "dico, metric: ref_pac_s").unwrap_err();
    assert!(
        error.contains("captionless.json: split `val` has no captions: stage `only` watches `ref_pac_s`"),
        "{error}"
    );
}

/// A run with one stage.
fn run(objective: &str) -> config::RunFile {
    let text = format!(
        "name: test\noutput: /nowhere\nworkers: {{ min: 1, max: 1 }}\n\
         data: {{ karpathy: {{ annotations: a.json, images: a }} }}\ncaptioner: {{ weights: a }}\n\
         evaluator: {{ weights: a }}\nstages:\n  \
         - {{ name: only, steps: 1, batch: 1, optimizer: {{ learning_rate: 1.0 }}, objective: {objective} }}\n"
    );
    config::RunFile::parse(Path::new("run.yaml"), &text).unwrap()
}

#[test]
fn images_without_captions_and_missing_images_are_all_skipped() {
    let (folder, settings) = karpathy(&[
        ("train", "a.png", true),
        ("train", "b.png", true),
        ("train", "c.png", true),
        ("train", "gone.png", false),
        ("val", "v.png", true),
    ]);
    let annotations = folder.path().join("dataset.json");
    let mut text = std::fs::read_to_string(&annotations).unwrap();
    for name in ["b.png", "c.png"] {
        text = text.replace(&format!(r#"[{{"raw": "of {name}"}}, {{"raw": "a"}}]"#), "[]");
    }
    std::fs::write(&annotations, text).unwrap();
    let data_set = DataSet::load_usable(&settings).unwrap();
    let bad: Vec<&str> = data_set.skipped_images().iter().map(|bad| bad.location.rsplit('/').next().unwrap()).collect();
    assert_eq!((bad, data_set.split(Split::Train).len()), (vec!["b.png", "c.png", "gone.png"], 1));
    let error = DataSet::load(&settings).unwrap_err().to_string();
    assert!(error.contains("b.png: no sentences, others of split `train` have some, and 2 more images"), "{error}");
    assert_eq!(DataSet::load(&Data { skip_corrupt: true, ..settings }).unwrap().split(Split::Train).len(), 1);
}

#[test]
fn the_error_of_an_empty_split_names_unknown_splits() {
    let (folder, settings) = karpathy(&[("train", "a.png", true), ("evaluation", "b.png", true)]);
    let error = DataSet::load(&settings).unwrap_err().to_string();
    assert!(error.contains("no usable image in split `val`; ") && error.contains("split `evaluation`"), "{error}");
    drop(folder);
}

#[test]
fn a_truncated_image_is_found_when_the_data_set_is_loaded() {
    let (folder, mut settings) =
        karpathy(&[("train", "a.png", true), ("train", "b.png", true), ("val", "c.png", true)]);
    let path = folder.path().join("a.png");
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 20]).unwrap();
    let error = DataSet::load(&settings).unwrap_err().to_string();
    assert!(error.contains("a.png: ") && error.contains("data.skip_corrupt"), "{error}");
    settings.skip_corrupt = true;
    let data_set = DataSet::load(&settings).unwrap();
    assert_eq!((data_set.split(Split::Train).len(), data_set.skipped_images()[0].split), (1, Split::Train));
}

#[test]
fn damaged_pixels_are_an_error_when_the_image_is_decoded() {
    let (folder, settings) = karpathy(&[("train", "a.png", true), ("val", "b.png", true)]);
    damage_pixels(&folder.path().join("a.png"));
    let data_set = DataSet::load(&settings).unwrap();
    let item = &data_set.split(Split::Train)[0];
    assert!(data_set.read(item).is_ok());
    let error = data_set.pixels(item, 4).unwrap_err();
    assert!(error.is_image_error() && error.to_string().contains("a.png: "), "{error}");
    let text = error.with_remedy();
    assert!(text.contains("a.png: ") && text.contains("data.skip_corrupt"), "{text}");
}

#[test]
fn undecodable_images_are_all_found() {
    let names: Vec<String> = (0..40).map(|number| format!("{number:02}.png")).collect();
    let images: Vec<_> =
        names.iter().map(|name| ("train", name.as_str(), true)).chain([("val", "v.png", true)]).collect();
    let (folder, settings) = karpathy(&images);
    let bad = [3, 17, 39];
    bad.iter().for_each(|&at: &usize| damage_pixels(&folder.path().join(&names[at])));
    let data_set = DataSet::load_usable(&settings).unwrap();
    assert!(data_set.skipped_images().is_empty());
    let decoded = std::sync::atomic::AtomicUsize::new(0);
    let all: Vec<usize> = (0..40).collect();
    let on_decoded = || _ = decoded.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let undecodable = data_set.undecodable_images(Split::Train, &all, 3, on_decoded).unwrap();
    let locations: Vec<String> = bad.iter().map(|&at| folder.path().join(&names[at]).display().to_string()).collect();
    assert_eq!(undecodable.iter().map(|bad| bad.location.clone()).collect::<Vec<_>>(), locations);
    assert_eq!(decoded.into_inner(), 40);
    assert!(data_set.undecodable_images(Split::Train, &[0, 38], 3, || ()).unwrap().is_empty());
}

#[test]
fn images_with_unusable_generated_images_are_skipped() {
    let (_folder, mut settings) = karpathy(&[
        ("train", "a.png", true),
        ("train", "b.png", true),
        ("train", "c.png", true),
        ("val", "v.png", true),
    ]);
    let generated = tempfile::tempdir().unwrap();
    RgbImage::new(2, 2).save(generated.path().join("a.png")).unwrap();
    std::fs::write(generated.path().join("b.png"), "no image").unwrap();
    settings.positives = Some(config::Positives { images: Some(generated.path().into()), captions: None });
    let error = DataSet::load(&settings).unwrap_err().to_string();
    assert!(error.contains("b.png: generated image: ") && error.contains("data.skip_corrupt"), "{error}");
    settings.skip_corrupt = true;
    let data_set = DataSet::load(&settings).unwrap();
    assert_eq!((data_set.split(Split::Train).len(), data_set.skipped_images().len()), (1, 2));
    assert!(data_set.generated_pixels(0, 4).is_ok());
}

/// The EXIF segment of a JPEG, with this orientation.
fn exif(orientation: u8) -> Vec<u8> {
    let exif =
        [&b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0"[..], &[orientation, 0, 0, 0, 0, 0, 0]].concat();
    let length = u16::try_from(exif.len() + 2).unwrap().to_be_bytes();
    [&[0xFF, 0xE1], &length[..], &exif].concat()
}

#[test]
fn unusual_images_are_counted_and_exif_orientation_is_applied_on_request() {
    let (folder, mut settings) =
        karpathy(&[("train", "a.jpg", true), ("train", "g.png", true), ("val", "v.png", true)]);
    let path = folder.path().join("a.jpg");
    RgbImage::from_fn(32, 32, |x, _| Rgb([if x < 16 { 255 } else { 0 }; 3])).save(&path).unwrap();
    let plain = std::fs::read(&path).unwrap();
    std::fs::write(&path, [&plain[..2], &exif(3), &plain[2..]].concat()).unwrap();
    let grey = image::ImageBuffer::from_pixel(2, 2, image::Luma([300_u16]));
    grey.save(folder.path().join("g.png")).unwrap();

    let data_set = DataSet::load(&settings).unwrap();
    let [exif_rotated, greyscale] = [&path, &folder.path().join("g.png")].map(|path| vec![path.display().to_string()]);
    assert_eq!(*data_set.unusual_images(), UnusualImages { exif_rotated, greyscale_16_bit: greyscale });
    let warnings: Vec<String> = data_set.warnings().collect();
    assert!(warnings[0].contains("1 images have an EXIF orientation") && warnings[0].contains("a.jpg"), "{warnings:?}");
    assert!(warnings[1].contains("16 bits") && warnings[1].contains("g.png"), "{warnings:?}");
    let first = |data_set: &DataSet| data_set.pixels(&data_set.split(Split::Train)[0], 8).unwrap()[0];
    assert!(first(&data_set) > 250);

    settings.exif = true;
    let rotated = DataSet::load(&settings).unwrap();
    assert!(first(&rotated) < 5);
    assert_eq!(rotated.warnings().count(), 1, "an applied orientation causes no warning");
    assert_ne!(data_set.preprocessing(), rotated.preprocessing());
}

#[test]
fn settings_without_annotations_are_refused() {
    assert!(DataSet::load(&Data::default()).unwrap_err().to_string().contains("exactly one of"));
}

#[test]
fn split_names_are_parsed_with_their_synonyms() {
    for split in Split::ALL {
        assert_eq!(split.to_string().parse(), Ok(split));
    }
    for name in ["val", "valid", "validation", "dev", "Val", "DEV"] {
        assert_eq!(name.parse(), Ok(Split::Validation));
    }
    assert_eq!(("training".parse(), "testing".parse()), (Ok(Split::Train), Ok(Split::Test)));
    assert_eq!(
        "rest".parse::<Split>().unwrap_err().to_string(),
        "unknown split `rest`: expected one of `train`, `val` (or `validation`, `dev`), `test`"
    );
}
