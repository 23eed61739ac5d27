//! Whole data sets, from folders and from a bucket that a small server in this process pretends to be.

use std::io::Cursor;
use std::path::Path;

use image::{ImageFormat, Rgb, RgbImage};
use object_store::aws::AmazonS3Builder;
use s3_test_server::Bucket;

use super::*;

const INDEX: &str = ".index.json";

fn png(colour: u8) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    RgbImage::from_pixel(6, 4, Rgb([colour, 0, 9])).write_to(&mut bytes, ImageFormat::Png).unwrap();
    bytes.into_inner()
}

fn tar(members: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, content) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, path, &content[..]).unwrap();
    }
    tar.into_inner().unwrap()
}

/// Two samples, whose colours are `first` and the next.
fn pair(first: u8) -> Vec<u8> {
    let members = (first..first + 2).flat_map(|colour| {
        let json = format!(r#"["caption {colour}", "another of {colour}"]"#);
        [(format!("{colour:06}.png"), png(colour)), (format!("{colour:06}.json"), json.into_bytes())]
    });
    tar(&members.collect::<Vec<_>>())
}

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for first in [0, 2, 4] {
        std::fs::write(folder.path().join(format!("coco-{:03}.tar", first / 2)), pair(first)).unwrap();
    }
    std::fs::write(folder.path().join("val.tar"), pair(10)).unwrap();
    folder
}

fn settings(start: &str) -> WebDataset {
    WebDataset { train: format!("{start}/coco-{{000..002}}.tar"), validation: format!("{start}/val.tar"), test: None }
}

fn here(folder: &Path) -> WebDataset {
    settings(folder.to_str().unwrap())
}

fn load_local(settings: &WebDataset) -> Result<DataSet, Error> {
    load(settings, &Split::ALL, AmazonS3Builder::new().into())
}

fn names(set: &DataSet, split: Split) -> String {
    set.split(split).iter().map(|item| item.name.as_str()).collect::<Vec<_>>().join(" ")
}

fn assert_readable(set: &DataSet) {
    std::thread::scope(|scope| {
        for split in Split::ALL {
            for item in set.split(split) {
                scope.spawn(move || {
                    let colour: u8 = item.name.parse().unwrap();
                    assert_eq!(set.read(item).unwrap(), png(colour));
                    assert_eq!(set.pixels(item, 2).unwrap()[..3], [colour, 0, 9]);
                });
            }
        }
    });
}

#[test]
fn tars_in_a_folder_are_read_at_random() {
    let folder = folder();
    let settings = WebDataset { test: Some(format!("{}/val.tar", folder.path().display())), ..here(folder.path()) };
    let set = load_local(&settings).unwrap();
    assert_eq!(names(&set, Split::Train), "000000 000001 000002 000003 000004 000005");
    assert_eq!(
        (names(&set, Split::Validation), names(&set, Split::Test)),
        ("000010 000011".into(), "000010 000011".into())
    );
    assert_eq!(set.split(Split::Train)[3].captions, ["caption 3", "another of 3"]);
    assert_eq!((set.train_captions(), set.left_out()), (12, &[][..]));
    assert_readable(&set);
}

#[test]
fn a_kept_index_is_used_while_the_tar_is_the_same() {
    let folder = folder();
    let first = load_local(&here(folder.path())).unwrap();
    let kept = folder.path().join(format!("val.tar{INDEX}"));
    let text = std::fs::read_to_string(&kept).unwrap();
    std::fs::write(&kept, text.replace("caption 10", "a kept caption")).unwrap();
    let again = load_local(&here(folder.path())).unwrap();
    assert_eq!(again.split(Split::Validation)[0].captions[0], "a kept caption");
    assert_ne!(again.validation_sha256(), first.validation_sha256());

    let tar = folder.path().join("val.tar");
    std::fs::write(&tar, [pair(10), vec![0; 512]].concat()).unwrap();
    let fresh = load_local(&here(folder.path())).unwrap();
    assert_eq!(fresh.validation_sha256(), first.validation_sha256());
    assert!(first.read(&first.split(Split::Validation)[0]).unwrap_err().to_string().contains("has changed since"));
}

#[test]
fn an_index_that_lies_is_named() {
    let folder = folder();
    load_local(&here(folder.path())).unwrap();
    let kept = folder.path().join(format!("val.tar{INDEX}"));
    let text = std::fs::read_to_string(&kept).unwrap().replace("\"offset\":512", "\"offset\":99999999");
    std::fs::write(&kept, text).unwrap();
    let error = load_local(&here(folder.path())).unwrap_err().to_string();
    assert!(error.contains("val.tar.index.json") && error.contains("outside of the tar"), "{error}");
}

#[test]
fn an_index_that_cannot_be_kept_does_no_harm() {
    let folder = folder();
    // A folder in its place cannot be replaced by a file.
    std::fs::create_dir_all(folder.path().join(format!("val.tar{INDEX}/x"))).unwrap();
    assert_readable(&load_local(&here(folder.path())).unwrap());
}

#[test]
fn broken_samples_are_named_or_left_out() {
    let folder = folder();
    let broken = [("000001.png".to_owned(), png(1)), ("000002.txt".to_owned(), b"a".to_vec())];
    std::fs::write(folder.path().join("coco-001.tar"), tar(&broken)).unwrap();
    let mut data = config::Data { webdataset: Some(here(folder.path())), ..config::Data::default() };
    let error = DataSet::load(&data).unwrap_err().to_string();
    assert!(error.contains("000001 in ") && error.contains("coco-001.tar: an image without captions"), "{error}");
    assert!(error.contains("and 1 more images") && error.contains("data.skip_corrupt"), "{error}");
    data.skip_corrupt = true;
    let set = DataSet::load(&data).unwrap();
    assert_eq!((set.left_out().len(), set.split(Split::Train).len()), (2, 4));
}

/// A sample of each path, all of one colour, with one caption.
fn samples(keys: &[&str]) -> Vec<u8> {
    let members =
        keys.iter().flat_map(|key| [(format!("{key}.png"), png(1)), (format!("{key}.txt"), key.as_bytes().to_vec())]);
    tar(&members.collect::<Vec<_>>())
}

#[test]
fn equal_keys_of_two_tars_are_two_images() {
    let folder = folder();
    let place = folder.path().display();
    std::fs::create_dir(folder.path().join("b")).unwrap();
    for (tar, keys) in [("a0.tar", ["0", "1"]), ("a1.tar", ["0", "2"]), ("b/a1.tar", ["0", "3"])] {
        std::fs::write(folder.path().join(tar), samples(&keys)).unwrap();
    }
    let named = |validation: String| {
        let set = load_local(&WebDataset { validation, ..here(folder.path()) }).unwrap();
        let item = &set.split(Split::Validation)[0];
        (names(&set, Split::Validation), item.known_as().map(str::to_owned).collect::<Vec<_>>())
    };
    let (found, known) = named(format!("{place}/a{{0,1}}.tar"));
    assert_eq!(found, "a0.tar/0 a0.tar/1 a1.tar/0 a1.tar/2");
    assert_eq!(known, ["a0.tar/0"]);
    let (found, _) = named(format!("{place}/{{,b/}}a1.tar"));
    assert_eq!(found, format!("{place}/a1.tar/0 {place}/a1.tar/2 {place}/b/a1.tar/0 {place}/b/a1.tar/3"));
    let (found, _) = named(format!("{place}/{{a0,a0}}.tar"));
    assert_eq!(found, format!("{place}/a0.tar/0 {place}/a0.tar/1 {place}/a0.tar/0 #2 {place}/a0.tar/1 #2"));
}

#[test]
fn ids_are_those_of_coco() {
    let folder = folder();
    let tar = folder.path().join("val.tar");
    let ids = |keys: &[&str]| {
        std::fs::write(&tar, samples(keys)).unwrap();
        let set = load_local(&here(folder.path())).unwrap();
        let ids: Vec<_> = set.split(Split::Validation).iter().map(|item| item.id).collect();
        (ids, set.notes().join(" "))
    };
    let keys = ["177828__COCO_val2014_000000379613", "COCO_val2014_000000000042", "000000000007"];
    assert_eq!(ids(&keys), (vec![Some(379_613), Some(42), Some(7)], String::new()));
    // Two captions of one image, each with a key of its own.
    let (found, notes) = ids(&["1__COCO_val2014_000000379613", "2__COCO_val2014_000000379613"]);
    assert_eq!(found, [None, None]);
    assert!(notes.contains(
        "split `val`: 1__COCO_val2014_000000379613 and 2__COCO_val2014_000000379613 both have the id 379613"
    ));
}

#[test]
fn members_that_are_not_read_are_counted_and_named() {
    let folder = folder();
    let (good, lost) = ([("a.png".into(), png(1)), ("a.txt".into(), b"a".to_vec())], ["photo.0.jpg", "photo.0.txt"]);
    let lost = lost.map(|name| (name.to_owned(), png(1)));
    std::fs::write(folder.path().join("val.tar"), tar(&[&good[..], &lost].concat())).unwrap();
    let set = load_local(&here(folder.path())).unwrap();
    let [note] = set.notes() else { panic!("{:?}", set.notes()) };
    let start = "split `val`: 2 members of its tars are not read: 1 with extension `0.jpg` (photo.0.jpg in ";
    assert!(note.starts_with(start) && note.contains("1 with extension `0.txt`"), "{note}");
    // From the kept index, too.
    assert_eq!(load_local(&here(folder.path())).unwrap().notes(), set.notes());
}

#[test]
fn only_a_split_that_has_no_captions_at_all_may_have_images_without() {
    let folder = folder();
    let path = folder.path().join("val.tar");
    let silent = [("a.png".to_owned(), png(1)), ("b.png".to_owned(), png(1))];
    std::fs::write(&path, tar(&silent)).unwrap();
    let set = load_local(&here(folder.path())).unwrap();
    assert_eq!((names(&set, Split::Validation), set.left_out().len()), ("a b".into(), 0));
    std::fs::write(&path, tar(&[&silent[..], &[("a.txt".to_owned(), b"a".to_vec())]].concat())).unwrap();
    let left_out = || {
        let set = load_local(&here(folder.path())).unwrap();
        set.left_out().iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let [of_validation] = &left_out()[..] else { panic!("{:?}", left_out()) };
    assert!(of_validation.starts_with("b in ") && of_validation.ends_with("an image without captions"));
    std::fs::write(folder.path().join("coco-000.tar"), tar(&silent)).unwrap();
    let of_training = left_out().iter().filter(|line| line.contains("coco-000.tar: an image without captions")).count();
    assert_eq!(of_training, 2);
}

#[test]
fn truncated_and_missing_tars_are_named() {
    let folder = folder();
    let tar = folder.path().join("coco-001.tar");
    std::fs::write(&tar, &pair(2)[..1000]).unwrap();
    let error = load_local(&here(folder.path())).unwrap_err().to_string();
    assert!(error.contains("coco-001.tar: ") && error.contains("truncated?"), "{error}");
    std::fs::remove_file(&tar).unwrap();
    let error = load_local(&here(folder.path())).unwrap_err().to_string();
    assert!(error.ends_with("coco-001.tar: not found"), "{error}");
}

#[test]
fn patterns_and_urls_that_make_no_sense_are_named() {
    for (train, expected) in [
        ("/tmp/{a.tar", "without its counterpart"),
        ("/tmp/{0..999999}.tar", "100000 names"),
        ("https://bucket/a.tar", "neither a path nor of the form s3://"),
        ("s3://bucket", "neither a path nor of the form s3://"),
        ("s3:///a.tar", "neither a path nor of the form s3://"),
        ("s3://bucket/../a.tar", "s3://bucket/../a.tar"),
        ("/nowhere/at/all/a.tar", "folder /nowhere/at/all"),
    ] {
        let settings = WebDataset { train: train.to_owned(), validation: train.to_owned(), test: None };
        let error = load_local(&settings).unwrap_err().to_string();
        assert!(error.starts_with(train) && error.contains(expected), "{error}");
    }
}

#[test]
fn paths_with_dots_blanks_and_links_are_followed() {
    let folder = folder();
    let other = folder.path().join("ä folder%20#1");
    std::fs::create_dir(&other).unwrap();
    std::fs::rename(folder.path().join("val.tar"), other.join("val 100%.tar")).unwrap();
    let validation = format!("{}/../ä folder%20#1/val 100%.tar", other.display());
    let set = load_local(&WebDataset { validation, ..here(folder.path()) }).unwrap();
    assert_readable(&set);
    assert!(other.join(format!("val 100%.tar{INDEX}")).is_file());
}

fn access(bucket: &Bucket) -> Access {
    bucket.settings().into()
}

fn filled() -> Bucket {
    let bucket = Bucket::start();
    for first in [0, 2, 4] {
        bucket.put(&format!("data/a b/coco-{:03}.tar", first / 2), pair(first));
    }
    bucket.put("data/a b/val.tar", pair(10));
    bucket
}

#[test]
fn tars_in_a_bucket_are_read_like_those_in_a_folder() {
    let bucket = filled();
    let settings = settings("s3://data/a b");
    let set = load(&settings, &Split::ALL, access(&bucket)).unwrap();
    let fingerprints = |set: &DataSet| (set.training_sha256(), set.validation_sha256());
    assert_eq!(fingerprints(&set), fingerprints(&load_local(&here(folder().path())).unwrap()));
    assert_readable(&set);
    assert_eq!(bucket.whole_reads(".tar"), 4);

    let again = load(&settings, &Split::ALL, access(&bucket)).unwrap();
    assert_eq!(fingerprints(&again), fingerprints(&set));
    assert_eq!((bucket.whole_reads(".tar"), bucket.whole_reads(INDEX)), (4, 4));
    assert_readable(&again);

    bucket.put("data/a b/val.tar", [pair(10), vec![0; 512]].concat());
    let error = set.read(&set.split(Split::Validation)[0]).unwrap_err().to_string();
    assert!(error.contains("s3://data/a b/val.tar: has changed since"), "{error}");
}

#[test]
fn a_server_that_stumbles_is_asked_again() {
    let bucket = filled();
    let set = load(&settings("s3://data/a b"), &Split::ALL, access(&bucket)).unwrap();
    bucket.fail_next(1);
    assert_eq!(set.read(&set.split(Split::Train)[0]).unwrap(), png(0));
    assert_eq!(bucket.failures(), 1);
}

#[test]
fn what_is_missing_or_denied_is_named_by_its_url() {
    let bucket = filled();
    let error = load(&settings("s3://data/elsewhere"), &Split::ALL, access(&bucket)).unwrap_err().to_string();
    assert_eq!(error, "s3://data/elsewhere/coco-000.tar: not found");
    let error = load(&settings("s3://data/forbidden"), &Split::ALL, access(&bucket)).unwrap_err().to_string();
    assert!(error.starts_with("s3://data/forbidden/coco-000.tar: access denied (403)"), "{error}");
    assert!(!error.contains('\n'), "{error}");
}

#[test]
fn a_bucket_that_takes_nothing_is_read_all_the_same() {
    let bucket = filled();
    bucket.refuse_writes();
    assert_readable(&load(&settings("s3://data/a b"), &Split::ALL, access(&bucket)).unwrap());
    load(&settings("s3://data/a b"), &Split::ALL, access(&bucket)).unwrap();
    assert_eq!(bucket.whole_reads(".tar"), 8);
}

#[test]
fn a_set_may_be_dropped_by_asynchronous_code() {
    let folder = folder();
    let set = load_local(&here(folder.path())).unwrap();
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async { drop(set) });
}
