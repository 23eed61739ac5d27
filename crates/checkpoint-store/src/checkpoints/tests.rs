//! Tests of checkpoints in folders and in a bucket of an S3 test server, and of failures.

use object_store::RetryConfig;
use object_store::aws::AmazonS3Builder;
use s3_test_server::S3TestServer;

use super::*;

const NAME: &str = "0-xe-00000004";
const SMALL_CONTENT: &[u8] = b"{}";

/// The content of a file of more than two parts.
fn large_content() -> Vec<u8> {
    (0..2 * PART_BYTES + 4321).map(|index| (index % 251) as u8).collect()
}

/// Writes the files that [`assert_intact`] expects.
fn fill(files: &mut CheckpointWriter) -> Result<(), Error> {
    files.add("small.json", [SMALL_CONTENT.to_vec()])?;
    files.add("empty", Vec::<Vec<u8>>::new())?;
    let large = large_content();
    files.add("large.bin", large.chunks(1 << 20).map(<[u8]>::to_vec))
}

fn in_folder(folder: &Path) -> Checkpoints {
    Checkpoints::open(folder.to_str().unwrap(), &AmazonS3Builder::new().into()).unwrap()
}

fn in_bucket(bucket: &S3TestServer) -> Checkpoints {
    let retry = RetryConfig { max_retries: 0, ..RetryConfig::default() };
    Checkpoints::open("s3://data/runs/a", &bucket.settings().with_retry(retry).into()).unwrap()
}

fn names<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.map(str::to_owned).into()
}

/// Asserts that the checkpoint `NAME` has the files of [`fill`].
fn assert_intact(checkpoints: &Checkpoints) {
    let fetched = checkpoints.read(NAME).unwrap();
    for (file, content) in [("small.json", SMALL_CONTENT), ("empty", b""), ("large.bin", &large_content())] {
        assert!(std::fs::read(fetched.path().join(file)).unwrap() == content, "{file}");
    }
}

/// Checks that a checkpoint can be written, read, listed, overwritten and deleted.
fn check_lifecycle(checkpoints: &Checkpoints) {
    assert_eq!(checkpoints.list().unwrap(), Listing::default());
    assert!(matches!(checkpoints.read(NAME), Err(Error::Missing { .. })));
    checkpoints.delete(NAME).unwrap();

    checkpoints.write(NAME, fill).unwrap();
    assert_intact(checkpoints);
    checkpoints.write("1-dico-00000000", |files| files.add("other", [vec![1]])).unwrap();
    assert_eq!(checkpoints.list().unwrap().sealed, names([NAME, "1-dico-00000000"]));
    checkpoints.write(NAME, |files| files.add("new", [vec![2]])).unwrap();
    let fetched = checkpoints.read(NAME).unwrap();
    assert_eq!(std::fs::read(fetched.path().join("new")).unwrap(), [2]);
    assert!(!fetched.path().join("large.bin").exists());

    checkpoints.delete(NAME).unwrap();
    assert_eq!(checkpoints.list().unwrap(), Listing { sealed: names(["1-dico-00000000"]), ..Listing::default() });
}

#[test]
fn checkpoints_in_a_folder_are_written_read_listed_and_deleted() {
    let folder = tempfile::tempdir().unwrap();
    check_lifecycle(&in_folder(&folder.path().join("new/ä folder")));
    let url = format!("file://{}/other%20folder", folder.path().display());
    check_lifecycle(&Checkpoints::open(&url, &Access::from_environment()).unwrap());
    assert!(folder.path().join("other folder/1-dico-00000000/checkpoint.json").is_file());
}

#[test]
fn checkpoints_in_a_bucket_are_written_read_listed_and_deleted() {
    let bucket = S3TestServer::start();
    let checkpoints = in_bucket(&bucket);
    check_lifecycle(&checkpoints);
    assert_eq!(bucket.multipart_uploads(), (1, 0), "only the large file is uploaded in parts");
    let remaining: Vec<_> = bucket.objects().into_keys().collect();
    let expected = ["checkpoint.json", "other"].map(|file| format!("data/runs/a/1-dico-00000000/{file}"));
    assert_eq!(remaining, expected);
}

#[test]
fn the_local_copy_of_a_checkpoint_is_deleted_when_dropped() {
    let bucket = S3TestServer::start();
    let checkpoints = in_bucket(&bucket);
    checkpoints.write(NAME, fill).unwrap();
    let fetched = checkpoints.read(NAME).unwrap();
    let path = fetched.path().to_owned();
    assert!(path.is_dir());
    drop(fetched);
    assert!(!path.exists());
}

/// Asserts that reading reports damage, and that the earlier checkpoint can still be read.
fn assert_damaged(checkpoints: &Checkpoints, problem: &str) {
    let error = checkpoints.read(NAME).unwrap_err();
    assert!(error.is_damage(), "{error}");
    let text = error.to_string();
    assert!(text.contains(NAME) && text.contains(problem), "{text} does not say {problem}");
    checkpoints.read("0-xe-00000002").unwrap();
}

/// Writes an earlier checkpoint, then `NAME`.
fn write_two(checkpoints: &Checkpoints) {
    checkpoints.write("0-xe-00000002", |files| files.add("a", [vec![1]])).unwrap();
    checkpoints.write(NAME, fill).unwrap();
}

#[test]
fn truncated_changed_and_missing_files_are_damage() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = in_folder(folder.path());
    write_two(&checkpoints);
    let large = large_content();
    for (file, content) in [("small.json", SMALL_CONTENT), ("large.bin", &large), (seal::SEAL_FILE, &[])] {
        let path = folder.path().join(NAME).join(file);
        let content = if content.is_empty() { std::fs::read(&path).unwrap() } else { content.to_vec() };
        for length in [0, content.len() / 2, content.len() - 1] {
            std::fs::write(&path, &content[..length]).unwrap();
            assert_damaged(&checkpoints, file);
        }
        for index in [0, content.len() / 2, content.len() - 1] {
            let mut flipped = content.clone();
            flipped[index] ^= 0x10;
            std::fs::write(&path, flipped).unwrap();
            assert_damaged(&checkpoints, file);
        }
        std::fs::write(&path, [&content[..], b"!"].concat()).unwrap();
        assert_damaged(&checkpoints, file);
        std::fs::remove_file(&path).unwrap();
        assert_damaged(&checkpoints, file);
        std::fs::write(&path, content).unwrap();
        assert_intact(&checkpoints);
    }
    std::fs::write(folder.path().join(NAME).join("empty"), b"!").unwrap();
    assert_damaged(&checkpoints, "empty has 1 bytes, 0 were written");
}

#[test]
fn changed_and_truncated_objects_in_a_bucket_are_damage() {
    let bucket = S3TestServer::start();
    let checkpoints = in_bucket(&bucket);
    write_two(&checkpoints);
    for (name, content) in bucket.objects().into_iter().filter(|(name, _)| name.contains(NAME)) {
        let file = name.rsplit_once('/').unwrap().1;
        if !content.is_empty() {
            bucket.put(&name, content[..content.len() - 1].to_vec());
            assert_damaged(&checkpoints, file);
            bucket.put(&name, content.iter().map(|byte| byte ^ 1).collect());
            assert_damaged(&checkpoints, file);
        }
        bucket.put(&name, content);
        assert_intact(&checkpoints);
    }
}

#[test]
fn a_too_large_seal_is_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = in_folder(folder.path());
    write_two(&checkpoints);
    let seal = File::options().write(true).open(folder.path().join(NAME).join(seal::SEAL_FILE)).unwrap();
    seal.set_len(1 << 40).unwrap();
    assert_damaged(&checkpoints, "longer than");
}

#[test]
fn metadata_of_the_format_before_are_read_and_have_no_origin() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = in_folder(folder.path());
    let metadata = |format: u64| {
        let text = format!(
            r#"{{"format":{format},"run":"a","stage":1,"stage_name":"dico","step":3,"parameters_sha256":"00ff"}}"#
        );
        checkpoints.write(NAME, |files| files.add(crate::METADATA_FILE, [text.into_bytes()])).unwrap();
        checkpoints.metadata(NAME)
    };
    let earlier = metadata(2).unwrap();
    assert_eq!((earlier.stage, earlier.step, earlier.parameters_sha256.as_str()), (1, 3, "00ff"));
    assert!(!earlier.has_origin() && metadata(3).unwrap().has_origin());
    for format in [1, 4] {
        assert!(matches!(metadata(format), Err(Error::Version { found, .. }) if found == format));
    }
}

#[test]
fn incomplete_checkpoints_and_other_files_are_listed_separately() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = in_folder(folder.path());
    write_two(&checkpoints);
    let path = |name: &str| folder.path().join(name);
    std::fs::remove_file(path(NAME).join(seal::SEAL_FILE)).unwrap();
    // The remains of an interrupted upload.
    std::fs::create_dir(path("0-xe-00000006")).unwrap();
    std::fs::write(path("0-xe-00000006/captioner.safetensors#1"), b"half").unwrap();
    std::fs::write(path("notes.txt"), b"mine").unwrap();
    std::fs::create_dir(path("my notes")).unwrap();
    let not_unicode = std::os::unix::ffi::OsStrExt::from_bytes(b"\xff".as_slice());
    std::fs::create_dir(folder.path().join::<&std::ffi::OsStr>(not_unicode)).unwrap();
    let listing = Listing {
        sealed: names(["0-xe-00000002"]),
        unsealed: names([NAME, "0-xe-00000006"]),
        not_checkpoints: names(["notes.txt", "my notes", "\u{fffd}"]),
    };
    assert_eq!(checkpoints.list().unwrap(), listing);
    listing.unsealed.iter().for_each(|name| checkpoints.delete(name).unwrap());
    assert_eq!(checkpoints.list().unwrap(), Listing { unsealed: BTreeSet::new(), ..listing });
    assert_eq!(std::fs::read(path("notes.txt")).unwrap(), b"mine");

    let bucket = S3TestServer::start();
    let checkpoints = in_bucket(&bucket);
    write_two(&checkpoints);
    bucket.put("data/runs/a/0-xe-00000006/part", vec![1]);
    bucket.put("data/runs/a/notes.txt", vec![1]);
    bucket.put("data/runs/ab/0-xe-00000009/checkpoint.json", vec![1]);
    let listing = Listing {
        sealed: names(["0-xe-00000002", NAME]),
        unsealed: names(["0-xe-00000006"]),
        not_checkpoints: names(["notes.txt"]),
    };
    assert_eq!(checkpoints.list().unwrap(), listing);
}

#[test]
fn names_that_lead_out_of_the_location_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = in_folder(&folder.path().join("checkpoints"));
    let mine = folder.path().join("mine");
    std::fs::create_dir(&mine).unwrap();
    let absolute = mine.to_str().unwrap();
    for name in ["../mine", absolute, "..", ".", "", "a/../../mine", "a/b", "a\\b", "..\\mine", "%2e%2e", "a\0"] {
        let assert_refused =
            |result: Result<(), Error>| assert!(matches!(result, Err(Error::Name { .. })), "{name:?}: {result:?}");
        assert_refused(checkpoints.delete(name));
        assert_refused(checkpoints.read(name).map(|_| ()));
        assert_refused(checkpoints.write(name, |_| Ok(())));
        assert_refused(checkpoints.write("a", |files| files.add(name, [vec![1]])));
    }
    assert_unique_names(&checkpoints);
    assert!(mine.is_dir());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    assert_eq!(checkpoints.list().unwrap(), Listing::default());
}

/// Asserts that no file can have the seal's name, and no two files the same name.
fn assert_unique_names(checkpoints: &Checkpoints) {
    for files in [["a", "a"], ["a", seal::SEAL_FILE]] {
        let written = checkpoints.write("a", |writer| files.iter().try_for_each(|file| writer.add(file, [vec![1]])));
        assert!(matches!(written, Err(Error::Name { .. })), "{written:?}");
    }
}

#[test]
fn a_failed_upload_leaves_no_object() {
    let bucket = S3TestServer::start();
    let checkpoints = in_bucket(&bucket);
    let large = large_content();
    let chunks = large.chunks(1 << 20).enumerate().map(|(number, chunk)| {
        // During the second part.
        if number == 12 {
            bucket.deny_writes();
        }
        chunk.to_vec()
    });
    let error = checkpoints.write(NAME, |files| {
        files.add("small.json", [SMALL_CONTENT.to_vec()])?;
        files.add("large.bin", chunks)
    });
    let error = error.unwrap_err();
    assert!(matches!(error, Error::Store { .. }), "{error}");
    assert!(error.to_string().starts_with("s3://data/runs/a/0-xe-00000004/large.bin: access denied (403)"), "{error}");
    assert_eq!(bucket.multipart_uploads(), (1, 0));
    assert!(bucket.objects().is_empty());
}

#[test]
fn an_unusable_location_is_an_error_with_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, b"").unwrap();
    let access = AmazonS3Builder::new().into();
    for location in [&file, &file.join("below")] {
        let location = location.to_str().unwrap();
        let error = Checkpoints::open(location, &access).and_then(|checkpoints| checkpoints.list()).unwrap_err();
        assert!(error.to_string().starts_with(&format!("{location}: ")), "{error}");
        let error = check_writable(location, &access).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{location}: ")), "{error}");
    }
    let new = folder.path().join("new/folder");
    check_writable(new.to_str().unwrap(), &access).unwrap();
    assert!(!folder.path().join("new").exists(), "the check leaves nothing behind");

    let bucket = S3TestServer::start();
    let access = bucket.settings().into();
    check_writable("s3://data/runs/a", &access).unwrap();
    assert!(bucket.objects().is_empty());
    bucket.deny_writes();
    let error = check_writable("s3://data/runs/a", &access).unwrap_err().to_string();
    assert!(error.starts_with("s3://data/runs/a: access denied (403)"), "{error}");
    let error = Checkpoints::open("s3://forbidden/a", &access).unwrap().list().unwrap_err().to_string();
    assert!(error.starts_with("s3://forbidden/a: ") && error.contains("403"), "{error}");
}

/// A mounted file system of a given size, unmounted when it is dropped.
struct SmallDisk(TempDir);

impl SmallDisk {
    /// Mounts a file system of `bytes`; none if this process may not mount.
    fn mount(bytes: usize) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mount = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"])
            .arg(folder.path())
            .output();
        match mount {
            Ok(output) if output.status.success() => Some(Self(folder)),
            denied => {
                eprintln!("SKIPPED: a full disk needs a file system that this process may not mount: {denied:?}");
                None
            }
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        std::process::Command::new("umount").arg(self.0.path()).status().unwrap();
    }
}

#[test]
fn a_full_disk_is_an_error_and_earlier_checkpoints_stay() {
    let Some(disk) = SmallDisk::mount(3 * PART_BYTES) else { return };
    let checkpoints = in_folder(disk.0.path());
    checkpoints.write("0-xe-00000002", |files| files.add("a", [vec![1]])).unwrap();
    let filler = disk.0.path().join("filler");
    std::fs::write(&filler, vec![1; PART_BYTES]).unwrap();
    let error = checkpoints.write(NAME, fill).unwrap_err();
    assert!(matches!(error, Error::StorageFull { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("0-xe-00000004/large.bin: no space is left (No space left on device"), "{text}");
    assert_eq!(checkpoints.list().unwrap().unsealed, BTreeSet::new());
    assert!(!disk.0.path().join(NAME).exists());
    checkpoints.read("0-xe-00000002").unwrap();

    std::fs::remove_file(filler).unwrap();
    checkpoints.write(NAME, fill).unwrap();
    assert_intact(&checkpoints);
}
