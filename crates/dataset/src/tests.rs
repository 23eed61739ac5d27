use config::{Coco, CocoSplit, Data, Karpathy};
use image::{Rgb, RgbImage};

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
    assert_eq!((set.train_captions(), set.left_out()), (4, &[][..]));
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
    let tars = config::WebDataset { train: "a.tar".into(), validation: "b.tar".into(), test: None };
    let tars = Data { webdataset: Some(tars), ..Data::default() };
    assert!(validation_files(&tars).unwrap().is_empty(), "images in tars are no files");
}

#[test]
fn training_and_validation_have_fingerprints_of_their_own() {
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
    assert_eq!((set.left_out().len(), set.split(Split::Train).len(), set.split(Split::Test).len()), (2, 1, 0));
}

#[test]
fn a_split_without_images_is_named() {
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

/// A PNG with a sound header and end whose pixels are damaged.
fn damage(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let pixels = bytes.windows(4).position(|name| name == b"IDAT").unwrap() + 6;
    bytes[pixels] ^= 0xFF;
    std::fs::write(path, bytes).unwrap();
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
fn a_split_may_be_without_captions_where_the_run_needs_none() {
    let folder = tempfile::tempdir().unwrap();
    RgbImage::new(2, 2).save(folder.path().join("a.png")).unwrap();
    let split = |name: &str, annotations: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, format!(r#"{{"images": [{{"id": 1, "file_name": "a.png"}}]{annotations}}}"#)).unwrap();
        CocoSplit { annotations: path, images: folder.path().to_owned() }
    };
    let good = split("good.json", r#", "annotations": [{"image_id": 1, "caption": "A"}]"#);
    let silent = split("silent.json", "");
    let load = |train: &CocoSplit, validation: &CocoSplit, objective: &str| {
        let coco = Coco { train: train.clone(), validation: validation.clone(), test: Some(silent.clone()) };
        let mut run = run(objective);
        run.data = Data { coco: Some(coco), ..Data::default() };
        let test = DataSet::load_split(&run.data, Split::Test).unwrap();
        assert_eq!(Split::ALL.map(|split| test.split(split).len()), [0, 0, 1]);
        let loaded = DataSet::load_for(&run).map_err(|error| error.to_string());
        let complete = DataSet::survey(&run.data).unwrap().complete(&run).map_err(|error| error.to_string());
        assert_eq!(loaded.as_ref().err(), complete.as_ref().err());
        loaded
    };
    let set = load(&good, &good, "cross_entropy").unwrap();
    assert_eq!(Split::ALL.map(|split| set.lacks_captions(split)), [false, false, true]);
    let set = load(&silent, &silent, "dico").unwrap();
    assert_eq!((set.split(Split::Train).len(), set.train_captions()), (1, 0));
    load(&good, &silent, "cross_entropy").unwrap();
    let error = load(&silent, &good, "cross_entropy").unwrap_err();
    let expected = "silent.json: split `train` has no captions: stage `only` (cross_entropy) trains on them";
    assert!(error.ends_with(expected), "{error}");
    let error = load(&good, &silent, "dico, metric: ref_pac_s").unwrap_err();
    assert!(error.contains("silent.json: split `val` has no captions: stage `only` watches `ref_pac_s`"), "{error}");
}

/// A run of one stage.
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
fn all_images_without_captions_are_found_beside_those_that_are_missing() {
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
    let set = DataSet::survey(&settings).unwrap();
    let bad: Vec<&str> = set.left_out().iter().map(|bad| bad.place.rsplit('/').next().unwrap()).collect();
    assert_eq!((bad, set.split(Split::Train).len()), (vec!["b.png", "c.png", "gone.png"], 1));
    let error = DataSet::load(&settings).unwrap_err().to_string();
    assert!(error.contains("b.png: no sentences, others of split `train` have some, and 2 more images"), "{error}");
    assert_eq!(DataSet::load(&Data { skip_corrupt: true, ..settings }).unwrap().split(Split::Train).len(), 1);
}

#[test]
fn a_split_that_is_empty_because_nothing_was_understood_says_so() {
    let (folder, settings) = karpathy(&[("train", "a.png", true), ("evaluation", "b.png", true)]);
    let error = DataSet::load(&settings).unwrap_err().to_string();
    assert!(error.contains("no usable image in split `val`; ") && error.contains("split `evaluation`"), "{error}");
    drop(folder);
}

#[test]
fn an_image_that_is_cut_off_is_found_at_once() {
    let (folder, mut settings) =
        karpathy(&[("train", "a.png", true), ("train", "b.png", true), ("val", "c.png", true)]);
    let path = folder.path().join("a.png");
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 20]).unwrap();
    let error = DataSet::load(&settings).unwrap_err().to_string();
    assert!(error.contains("a.png: ") && error.contains("data.skip_corrupt"), "{error}");
    settings.skip_corrupt = true;
    let set = DataSet::load(&settings).unwrap();
    assert_eq!((set.split(Split::Train).len(), set.left_out()[0].split), (1, Split::Train));
}

#[test]
fn damage_behind_a_sound_header_is_named_when_it_is_met() {
    let (folder, settings) = karpathy(&[("train", "a.png", true), ("val", "b.png", true)]);
    damage(&folder.path().join("a.png"));
    let set = DataSet::load(&settings).unwrap();
    let item = &set.split(Split::Train)[0];
    assert!(set.read(item).is_ok());
    let error = set.pixels(item, 4).unwrap_err();
    assert!(error.is_of_image() && error.to_string().contains("a.png: "), "{error}");
    let text = error.with_remedy();
    assert!(text.contains("a.png: ") && text.contains("data.skip_corrupt"), "{text}");
}

#[test]
fn all_images_that_cannot_be_decoded_are_found_by_decoding() {
    let names: Vec<String> = (0..40).map(|number| format!("{number:02}.png")).collect();
    let images: Vec<_> =
        names.iter().map(|name| ("train", name.as_str(), true)).chain([("val", "v.png", true)]).collect();
    let (folder, settings) = karpathy(&images);
    let bad = [3, 17, 39];
    bad.iter().for_each(|&at: &usize| damage(&folder.path().join(&names[at])));
    let set = DataSet::survey(&settings).unwrap();
    assert!(set.left_out().is_empty());
    let done = std::sync::atomic::AtomicUsize::new(0);
    let all: Vec<usize> = (0..40).collect();
    let tell = || _ = done.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let found = set.try_decoding(Split::Train, &all, 3, tell).unwrap();
    let places: Vec<String> = bad.iter().map(|&at| folder.path().join(&names[at]).display().to_string()).collect();
    assert_eq!(found.iter().map(|bad| bad.place.clone()).collect::<Vec<_>>(), places);
    assert_eq!(done.into_inner(), 40);
    assert!(set.try_decoding(Split::Train, &[0, 38], 3, || ()).unwrap().is_empty());
}

#[test]
fn generated_images_that_cannot_be_used_leave_their_image_out() {
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
    let set = DataSet::load(&settings).unwrap();
    assert_eq!((set.split(Split::Train).len(), set.left_out().len()), (1, 2));
    assert!(set.generated_pixels(0, 4).is_ok());
}

/// The EXIF segment of a JPEG, with this orientation.
fn exif(orientation: u8) -> Vec<u8> {
    let exif =
        [&b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0"[..], &[orientation, 0, 0, 0, 0, 0, 0]].concat();
    let length = u16::try_from(exif.len() + 2).unwrap().to_be_bytes();
    [&[0xFF, 0xE1], &length[..], &exif].concat()
}

#[test]
fn odd_images_are_counted_and_photos_turned_if_that_is_wanted() {
    let (folder, mut settings) =
        karpathy(&[("train", "a.jpg", true), ("train", "g.png", true), ("val", "v.png", true)]);
    let path = folder.path().join("a.jpg");
    RgbImage::from_fn(32, 32, |x, _| Rgb([if x < 16 { 255 } else { 0 }; 3])).save(&path).unwrap();
    let plain = std::fs::read(&path).unwrap();
    std::fs::write(&path, [&plain[..2], &exif(3), &plain[2..]].concat()).unwrap();
    let grey = image::ImageBuffer::from_pixel(2, 2, image::Luma([300_u16]));
    grey.save(folder.path().join("g.png")).unwrap();

    let set = DataSet::load(&settings).unwrap();
    let [turned, grey] = [&path, &folder.path().join("g.png")].map(|path| vec![path.display().to_string()]);
    assert_eq!(*set.odd(), OddImages { turned, grey_of_16_bits: grey });
    let warnings: Vec<String> = set.warnings().collect();
    assert!(warnings[0].contains("1 images have an EXIF orientation") && warnings[0].contains("a.jpg"), "{warnings:?}");
    assert!(warnings[1].contains("16 bits") && warnings[1].contains("g.png"), "{warnings:?}");
    let first = |set: &DataSet| set.pixels(&set.split(Split::Train)[0], 8).unwrap()[0];
    assert!(first(&set) > 250);

    settings.exif = true;
    let turned = DataSet::load(&settings).unwrap();
    assert!(first(&turned) < 5);
    assert_eq!(turned.warnings().count(), 1, "what is applied is no reason to warn");
    assert_ne!(set.preprocessing(), turned.preprocessing());
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
    for name in ["val", "valid", "validation", "dev", "Val", "DEV"] {
        assert_eq!(name.parse(), Ok(Split::Validation));
    }
    assert_eq!(("training".parse(), "testing".parse()), (Ok(Split::Train), Ok(Split::Test)));
    assert_eq!(
        "rest".parse::<Split>().unwrap_err().to_string(),
        "unknown split `rest`: expected one of `train`, `val` (or `validation`, `dev`), `test`"
    );
}
