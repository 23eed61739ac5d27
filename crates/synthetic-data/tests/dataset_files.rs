//! The files of a synthetic data set.

use std::fs;
use std::path::Path;

use serde_json::Value;
use synthetic_data::{Error, Scenes, SplitSizes, check_caption, write_dataset};
use tempfile::tempdir;

const SEED: u64 = 7;

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// The name and the bytes of every file below a folder, in alphabetical order.
fn contents(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(contents(&path));
        } else {
            files.push((path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(&path).unwrap()));
        }
    }
    files.sort();
    files
}

#[test]
fn a_data_set_is_complete_and_its_captions_are_truthful() {
    let folder = tempdir().unwrap();
    let mut reported = Vec::new();
    let sizes = write_dataset(folder.path(), 50, SEED, |done| reported.push(done)).unwrap();
    assert_eq!(sizes, SplitSizes { train: 40, val: 5, test: 5 });
    assert_eq!(reported, (1..=50).collect::<Vec<_>>());

    let scenes = Scenes::load(&folder.path().join("scenes.json")).unwrap();
    assert_eq!(scenes.len(), 50);
    assert_eq!(scenes.get("000050.jpg"), None);
    let dataset = json(&folder.path().join("dataset.json"));
    let images = dataset["images"].as_array().unwrap();
    assert_eq!(images.len(), 50);
    let mut next_sentence = 0;
    for (index, image) in images.iter().enumerate() {
        assert_eq!(image["imgid"], index);
        assert_eq!(image["filepath"], "");
        assert_eq!(
            image["split"],
            if index < 40 {
                "train"
            } else if index < 45 {
                "val"
            } else {
                "test"
            }
        );
        let name = image["filename"].as_str().unwrap();
        let pixels = image::open(folder.path().join("images").join(name)).unwrap();
        assert_eq!((pixels.width(), pixels.height(), pixels.color().channel_count()), (64, 64, 3));

        let sentences = image["sentences"].as_array().unwrap();
        assert_eq!(sentences.len(), 5);
        for (sentence, sentid) in sentences.iter().zip(image["sentids"].as_array().unwrap()) {
            assert_eq!(sentence["sentid"], next_sentence);
            assert_eq!(sentid, next_sentence);
            next_sentence += 1;
            assert_eq!(sentence["imgid"], index);
            let raw = sentence["raw"].as_str().unwrap();
            assert!(check_caption(raw, scenes.get(name).unwrap()).truthful, "{name}: {raw}");
            let tokens: Vec<_> =
                sentence["tokens"].as_array().unwrap().iter().map(|token| token.as_str().unwrap()).collect();
            assert_eq!(tokens.join(" "), raw);
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_bytes() {
    let [one, same, other] = [7, 7, 8].map(|seed| {
        let folder = tempdir().unwrap();
        write_dataset(folder.path(), 20, seed, |_| {}).unwrap();
        contents(folder.path())
    });
    assert_eq!(one.len(), 22, "20 images and two JSON files");
    assert!(one == same);
    assert!(one.iter().zip(&other).all(|(one, other)| one.0 == other.0 && one.1 != other.1));
}

#[test]
fn the_first_images_do_not_depend_on_the_number_of_images() {
    let (few, many) = (tempdir().unwrap(), tempdir().unwrap());
    write_dataset(few.path(), 3, SEED, |_| {}).unwrap();
    write_dataset(many.path(), 9, SEED, |_| {}).unwrap();
    let images_in = |folder: &Path| contents(&folder.join("images"));
    assert!(images_in(few.path())[..] == images_in(many.path())[..3]);
}

#[test]
fn split_sizes_and_image_counts_are_bounded() {
    let write_images = |images| write_dataset(tempdir().unwrap().path(), images, SEED, |_| {});
    assert_eq!(write_images(3).unwrap(), SplitSizes { train: 1, val: 1, test: 1 });
    assert_eq!(write_images(19).unwrap(), SplitSizes { train: 17, val: 1, test: 1 });
    assert!(matches!(write_images(2), Err(Error::ImageCount { requested: 2 })));
    assert!(matches!(write_images(1_000_000), Err(Error::ImageCount { .. })));
}

#[test]
fn a_failed_write_leaves_no_dataset_json() {
    let folder = tempdir().unwrap();
    write_dataset(folder.path(), 5, SEED, |_| {}).unwrap();
    // A folder that has the path of an image.
    let obstacle = folder.path().join("images/000003.jpg");
    fs::remove_file(&obstacle).unwrap();
    fs::create_dir(&obstacle).unwrap();
    let error = write_dataset(folder.path(), 5, SEED, |_| {}).unwrap_err().to_string();
    assert!(error.contains("000003.jpg"), "{error}");
    assert!(!folder.path().join("dataset.json").exists());
}

#[test]
fn invalid_scenes_are_refused_with_the_path() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("scenes.json");
    let error = || Scenes::load(&path).unwrap_err().to_string();
    assert!(error().contains("scenes.json: "), "missing");
    let object = |x: u32| format!(r#"{{"shape":"star","colour":"red","size":"large","x":{x},"y":1}}"#);
    for (text, problem) in [
        ("{".to_owned(), "EOF"),
        (r#"{"a.jpg":{}}"#.to_owned(), "missing field `objects`"),
        (r#"{"a.jpg":{"objects":[]}}"#.to_owned(), "2 or 3 objects, not 0"),
        (format!(r#"{{"a.jpg":{{"objects":[{},{}]}}}}"#, object(1), object(2)), "same shape"),
        (format!(r#"{{"a.jpg":{{"objects":[{},{}]}}}}"#, object(64), object(2)), "outside"),
        (format!(r#"{{"a.jpg":{{"objects":[{},{}]}}}}"#, object(300), object(2)), "300"),
        (r#"{"a.jpg":{"objects":[{"shape":"blob"}]}}"#.to_owned(), "unknown variant `blob`"),
        ("[".repeat(100_000), "line 1"),
    ] {
        fs::write(&path, text).unwrap();
        assert!(error().contains("scenes.json: ") && error().contains(problem), "{}", error());
    }
}
