//! Loads complete data sets from folders, and from a bucket of an S3 test server in this process.

use std::io::Cursor;
use std::path::Path;

use image::{ImageFormat, Rgb, RgbImage};
use object_store::aws::AmazonS3Builder;
use s3_test_server::S3TestServer;

use super::*;

const INDEX_SUFFIX: &str = ".index.json";

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

/// A tar of two samples, whose colours are `first` and `first + 1`.
fn two_samples_tar(first: u8) -> Vec<u8> {
    let members = (first..first + 2).flat_map(|colour| {
        let json = format!(r#"["caption {colour}", "another of {colour}"]"#);
        [(format!("{colour:06}.png"), png(colour)), (format!("{colour:06}.json"), json.into_bytes())]
    });
    tar(&members.collect::<Vec<_>>())
}

fn folder_of_tars() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for first in [0, 2, 4] {
        std::fs::write(folder.path().join(format!("coco-{:03}.tar", first / 2)), two_samples_tar(first)).unwrap();
    }
    std::fs::write(folder.path().join("val.tar"), two_samples_tar(10)).unwrap();
    folder
}

fn settings_at(location: &str) -> WebDataset {
    WebDataset {
        train: format!("{location}/coco-{{000..002}}.tar"),
        validation: format!("{location}/val.tar"),
        test: None,
    }
}

fn settings_for(folder: &Path) -> WebDataset {
    settings_at(folder.to_str().unwrap())
}

fn load_local(settings: &WebDataset) -> Result<DataSet, Error> {
    load(settings, &Split::ALL, AmazonS3Builder::new().into())
}

fn names(data_set: &DataSet, split: Split) -> String {
    data_set.split(split).iter().map(|item| item.name.as_str()).collect::<Vec<_>>().join(" ")
}

fn assert_readable(data_set: &DataSet) {
    std::thread::scope(|scope| {
        for split in Split::ALL {
            for item in data_set.split(split) {
                scope.spawn(move || {
                    let colour: u8 = item.name.parse().unwrap();
                    assert_eq!(data_set.read(item).unwrap(), png(colour));
                    assert_eq!(data_set.pixels(item, 2).unwrap()[..3], [colour, 0, 9]);
                });
            }
        }
    });
}

#[test]
fn images_of_tars_in_a_folder_are_read_in_any_order() {
    let folder = folder_of_tars();
    let settings =
        WebDataset { test: Some(format!("{}/val.tar", folder.path().display())), ..settings_for(folder.path()) };
    let data_set = load_local(&settings).unwrap();
    assert_eq!(names(&data_set, Split::Train), "000000 000001 000002 000003 000004 000005");
    assert_eq!(
        (names(&data_set, Split::Validation), names(&data_set, Split::Test)),
        ("000010 000011".into(), "000010 000011".into())
    );
    assert_eq!(data_set.split(Split::Train)[3].captions, ["caption 3", "another of 3"]);
    assert_eq!((data_set.train_caption_count(), data_set.skipped_images()), (12, &[][..]));
    assert_readable(&data_set);
}

#[test]
fn a_stored_index_is_used_until_the_tar_changes() {
    let folder = folder_of_tars();
    let first = load_local(&settings_for(folder.path())).unwrap();
    let index_file = folder.path().join(format!("val.tar{INDEX_SUFFIX}"));
    let text = std::fs::read_to_string(&index_file).unwrap();
    std::fs::write(&index_file, text.replace("caption 10", "a stored caption")).unwrap();
    let reloaded = load_local(&settings_for(folder.path())).unwrap();
    assert_eq!(reloaded.split(Split::Validation)[0].captions[0], "a stored caption");
    assert_ne!(reloaded.validation_sha256(), first.validation_sha256());

    let tar = folder.path().join("val.tar");
    std::fs::write(&tar, [two_samples_tar(10), vec![0; 512]].concat()).unwrap();
    let fresh = load_local(&settings_for(folder.path())).unwrap();
    assert_eq!(fresh.validation_sha256(), first.validation_sha256());
    assert!(first.read(&first.split(Split::Validation)[0]).unwrap_err().to_string().contains("has changed since"));
}

#[test]
fn an_invalid_index_is_an_error_with_its_path() {
    let folder = folder_of_tars();
    load_local(&settings_for(folder.path())).unwrap();
    let index_file = folder.path().join(format!("val.tar{INDEX_SUFFIX}"));
    let text = std::fs::read_to_string(&index_file).unwrap().replace("\"offset\":512", "\"offset\":99999999");
    std::fs::write(&index_file, text).unwrap();
    let error = load_local(&settings_for(folder.path())).unwrap_err().to_string();
    assert!(error.contains("val.tar.index.json") && error.contains("outside of the tar"), "{error}");
}

#[test]
fn an_index_that_cannot_be_written_is_ignored() {
    let folder = folder_of_tars();
    // A file cannot replace the folder at its path.
    std::fs::create_dir_all(folder.path().join(format!("val.tar{INDEX_SUFFIX}/x"))).unwrap();
    assert_readable(&load_local(&settings_for(folder.path())).unwrap());
}

#[test]
fn invalid_samples_are_errors_or_skipped() {
    let folder = folder_of_tars();
    let broken = [("000001.png".to_owned(), png(1)), ("000002.txt".to_owned(), b"a".to_vec())];
    std::fs::write(folder.path().join("coco-001.tar"), tar(&broken)).unwrap();
    let mut data = config::Data { webdataset: Some(settings_for(folder.path())), ..config::Data::default() };
    let error = DataSet::load(&data).unwrap_err().to_string();
    assert!(error.contains("000001 in ") && error.contains("coco-001.tar: an image without captions"), "{error}");
    assert!(error.contains("and 1 more images") && error.contains("data.skip_corrupt"), "{error}");
    data.skip_corrupt = true;
    let data_set = DataSet::load(&data).unwrap();
    assert_eq!((data_set.skipped_images().len(), data_set.split(Split::Train).len()), (2, 4));
}

/// A tar with one sample per key, all of one colour, with one caption.
fn samples_tar(keys: &[&str]) -> Vec<u8> {
    let members =
        keys.iter().flat_map(|key| [(format!("{key}.png"), png(1)), (format!("{key}.txt"), key.as_bytes().to_vec())]);
    tar(&members.collect::<Vec<_>>())
}

#[test]
fn samples_with_equal_keys_in_two_tars_are_two_images() {
    let folder = folder_of_tars();
    let root = folder.path().display();
    std::fs::create_dir(folder.path().join("b")).unwrap();
    for (tar, keys) in [("a0.tar", ["0", "1"]), ("a1.tar", ["0", "2"]), ("b/a1.tar", ["0", "3"])] {
        std::fs::write(folder.path().join(tar), samples_tar(&keys)).unwrap();
    }
    let load_names = |validation: String| {
        let data_set = load_local(&WebDataset { validation, ..settings_for(folder.path()) }).unwrap();
        let item = &data_set.split(Split::Validation)[0];
        (names(&data_set, Split::Validation), item.aliases().map(str::to_owned).collect::<Vec<_>>())
    };
    let (names, aliases) = load_names(format!("{root}/a{{0,1}}.tar"));
    assert_eq!(names, "a0.tar/0 a0.tar/1 a1.tar/0 a1.tar/2");
    assert_eq!(aliases, ["a0.tar/0"]);
    let (names, _) = load_names(format!("{root}/{{,b/}}a1.tar"));
    assert_eq!(names, format!("{root}/a1.tar/0 {root}/a1.tar/2 {root}/b/a1.tar/0 {root}/b/a1.tar/3"));
    let (names, _) = load_names(format!("{root}/{{a0,a0}}.tar"));
    assert_eq!(names, format!("{root}/a0.tar/0 {root}/a0.tar/1 {root}/a0.tar/0 #2 {root}/a0.tar/1 #2"));
}

#[test]
fn ids_are_coco_ids_of_keys() {
    let folder = folder_of_tars();
    let tar = folder.path().join("val.tar");
    let ids = |keys: &[&str]| {
        std::fs::write(&tar, samples_tar(keys)).unwrap();
        let data_set = load_local(&settings_for(folder.path())).unwrap();
        let ids: Vec<_> = data_set.split(Split::Validation).iter().map(|item| item.id).collect();
        (ids, data_set.notes().join(" "))
    };
    let keys = ["177828__COCO_val2014_000000379613", "COCO_val2014_000000000042", "000000000007"];
    assert_eq!(ids(&keys), (vec![Some(379_613), Some(42), Some(7)], String::new()));
    // Two captions of one image, each with its own key.
    let (duplicate_ids, notes) = ids(&["1__COCO_val2014_000000379613", "2__COCO_val2014_000000379613"]);
    assert_eq!(duplicate_ids, [None, None]);
    assert!(notes.contains(
        "split `val`: 1__COCO_val2014_000000379613 and 2__COCO_val2014_000000379613 both have the id 379613"
    ));
}

#[test]
fn members_with_unknown_extensions_are_noted() {
    let folder = folder_of_tars();
    let (known, unknown) =
        ([("a.png".into(), png(1)), ("a.txt".into(), b"a".to_vec())], ["photo.0.jpg", "photo.0.txt"]);
    let unknown = unknown.map(|name| (name.to_owned(), png(1)));
    std::fs::write(folder.path().join("val.tar"), tar(&[&known[..], &unknown].concat())).unwrap();
    let data_set = load_local(&settings_for(folder.path())).unwrap();
    let [note] = data_set.notes() else { panic!("{:?}", data_set.notes()) };
    let start = "split `val`: 2 members of its tars are not read: 1 with extension `0.jpg` (photo.0.jpg in ";
    assert!(note.starts_with(start) && note.contains("1 with extension `0.txt`"), "{note}");
    // The note also comes from a stored index.
    assert_eq!(load_local(&settings_for(folder.path())).unwrap().notes(), data_set.notes());
}

#[test]
fn captions_may_be_missing_only_for_all_images_of_a_split() {
    let folder = folder_of_tars();
    let path = folder.path().join("val.tar");
    let captionless = [("a.png".to_owned(), png(1)), ("b.png".to_owned(), png(1))];
    std::fs::write(&path, tar(&captionless)).unwrap();
    let data_set = load_local(&settings_for(folder.path())).unwrap();
    assert_eq!((names(&data_set, Split::Validation), data_set.skipped_images().len()), ("a b".into(), 0));
    std::fs::write(&path, tar(&[&captionless[..], &[("a.txt".to_owned(), b"a".to_vec())]].concat())).unwrap();
    let skipped = || {
        let data_set = load_local(&settings_for(folder.path())).unwrap();
        data_set.skipped_images().iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let [validation_line] = &skipped()[..] else { panic!("{:?}", skipped()) };
    assert!(validation_line.starts_with("b in ") && validation_line.ends_with("an image without captions"));
    std::fs::write(folder.path().join("coco-000.tar"), tar(&captionless)).unwrap();
    let training_lines =
        skipped().iter().filter(|line| line.contains("coco-000.tar: an image without captions")).count();
    assert_eq!(training_lines, 2);
}

#[test]
fn truncated_and_missing_tars_are_errors_with_their_path() {
    let folder = folder_of_tars();
    let tar = folder.path().join("coco-001.tar");
    std::fs::write(&tar, &two_samples_tar(2)[..1000]).unwrap();
    let error = load_local(&settings_for(folder.path())).unwrap_err().to_string();
    assert!(error.contains("coco-001.tar: ") && error.contains("truncated?"), "{error}");
    std::fs::remove_file(&tar).unwrap();
    let error = load_local(&settings_for(folder.path())).unwrap_err().to_string();
    assert!(error.ends_with("coco-001.tar: not found"), "{error}");
}

#[test]
fn invalid_patterns_and_urls_are_errors() {
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
fn paths_with_dots_spaces_and_percent_signs_are_read() {
    let folder = folder_of_tars();
    let other = folder.path().join("ä folder%20#1");
    std::fs::create_dir(&other).unwrap();
    std::fs::rename(folder.path().join("val.tar"), other.join("val 100%.tar")).unwrap();
    let validation = format!("{}/../ä folder%20#1/val 100%.tar", other.display());
    let data_set = load_local(&WebDataset { validation, ..settings_for(folder.path()) }).unwrap();
    assert_readable(&data_set);
    assert!(other.join(format!("val 100%.tar{INDEX_SUFFIX}")).is_file());
}

fn access(bucket: &S3TestServer) -> Access {
    bucket.settings().into()
}

fn bucket_of_tars() -> S3TestServer {
    let bucket = S3TestServer::start();
    for first in [0, 2, 4] {
        bucket.put(&format!("data/a b/coco-{:03}.tar", first / 2), two_samples_tar(first));
    }
    bucket.put("data/a b/val.tar", two_samples_tar(10));
    bucket
}

#[test]
fn tars_in_a_bucket_are_read_like_those_in_a_folder() {
    let bucket = bucket_of_tars();
    let settings = settings_at("s3://data/a b");
    let data_set = load(&settings, &Split::ALL, access(&bucket)).unwrap();
    let fingerprints = |data_set: &DataSet| (data_set.training_sha256(), data_set.validation_sha256());
    assert_eq!(fingerprints(&data_set), fingerprints(&load_local(&settings_for(folder_of_tars().path())).unwrap()));
    assert_readable(&data_set);
    assert_eq!(bucket.full_read_count(".tar"), 4);

    let reloaded = load(&settings, &Split::ALL, access(&bucket)).unwrap();
    assert_eq!(fingerprints(&reloaded), fingerprints(&data_set));
    assert_eq!((bucket.full_read_count(".tar"), bucket.full_read_count(INDEX_SUFFIX)), (4, 4));
    assert_readable(&reloaded);

    bucket.put("data/a b/val.tar", [two_samples_tar(10), vec![0; 512]].concat());
    let error = data_set.read(&data_set.split(Split::Validation)[0]).unwrap_err().to_string();
    assert!(error.contains("s3://data/a b/val.tar: has changed since"), "{error}");
}

#[test]
fn a_failed_request_is_retried() {
    let bucket = bucket_of_tars();
    let data_set = load(&settings_at("s3://data/a b"), &Split::ALL, access(&bucket)).unwrap();
    bucket.fail_next_requests(1);
    assert_eq!(data_set.read(&data_set.split(Split::Train)[0]).unwrap(), png(0));
    assert_eq!(bucket.failed_requests(), 1);
}

#[test]
fn errors_name_the_url_of_a_missing_or_forbidden_object() {
    let bucket = bucket_of_tars();
    let error = load(&settings_at("s3://data/elsewhere"), &Split::ALL, access(&bucket)).unwrap_err().to_string();
    assert_eq!(error, "s3://data/elsewhere/coco-000.tar: not found");
    let error = load(&settings_at("s3://data/forbidden"), &Split::ALL, access(&bucket)).unwrap_err().to_string();
    assert!(error.starts_with("s3://data/forbidden/coco-000.tar: access denied (403)"), "{error}");
    assert!(!error.contains('\n'), "{error}");
}

#[test]
fn a_read_only_bucket_is_read_without_stored_indices() {
    let bucket = bucket_of_tars();
    bucket.deny_writes();
    assert_readable(&load(&settings_at("s3://data/a b"), &Split::ALL, access(&bucket)).unwrap());
    load(&settings_at("s3://data/a b"), &Split::ALL, access(&bucket)).unwrap();
    assert_eq!(bucket.full_read_count(".tar"), 8);
}

#[test]
fn a_data_set_can_be_dropped_in_asynchronous_code() {
    let folder = folder_of_tars();
    let data_set = load_local(&settings_for(folder.path())).unwrap();
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async { drop(data_set) });
}
