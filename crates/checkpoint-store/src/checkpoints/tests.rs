//! Tests of checkpoints in folders and in a bucket of a fake server, and of failures.

use object_store::RetryConfig;
use object_store::aws::AmazonS3Builder;
use s3_test_server::Bucket;

use super::*;

const NAME: &str = "0-xe-00000004";
const SMALL: &[u8] = b"{}";

/// More than two parts.
fn large() -> Vec<u8> {
    (0..2 * PART + 4321).map(|at| (at % 251) as u8).collect()
}

fn fill(files: &mut Files) -> Result<(), Error> {
    files.add("small.json", [SMALL.to_vec()])?;
    files.add("empty", Vec::<Vec<u8>>::new())?;
    let large = large();
    files.add("large.bin", large.chunks(1 << 20).map(<[u8]>::to_vec))
}

fn in_folder(folder: &Path) -> Checkpoints {
    Checkpoints::open(folder.to_str().unwrap(), &AmazonS3Builder::new().into()).unwrap()
}

fn in_bucket(bucket: &Bucket) -> Checkpoints {
    let retry = RetryConfig { max_retries: 0, ..RetryConfig::default() };
    Checkpoints::open("s3://data/runs/a", &bucket.settings().with_retry(retry).into()).unwrap()
}

fn names<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.map(str::to_owned).into()
}

fn assert_whole(checkpoints: &Checkpoints) {
    let fetched = checkpoints.read(NAME).unwrap();
    for (file, content) in [("small.json", SMALL), ("empty", b""), ("large.bin", &large())] {
        assert!(std::fs::read(fetched.path().join(file)).unwrap() == content, "{file}");
    }
}

/// Writes, reads, lists, overwrites and deletes.
fn lives_and_dies(checkpoints: &Checkpoints) {
    assert_eq!(checkpoints.list().unwrap(), Listing::default());
    assert!(matches!(checkpoints.read(NAME), Err(Error::Missing { .. })));
    checkpoints.delete(NAME).unwrap();

    checkpoints.write(NAME, fill).unwrap();
    assert_whole(checkpoints);
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
fn a_checkpoint_lives_and_dies_in_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    lives_and_dies(&in_folder(&folder.path().join("new/ä folder")));
    let url = format!("file://{}/other%20folder", folder.path().display());
    lives_and_dies(&Checkpoints::open(&url, &Access::environment()).unwrap());
    assert!(folder.path().join("other folder/1-dico-00000000/checkpoint.json").is_file());
}

#[test]
fn a_checkpoint_lives_and_dies_in_a_bucket() {
    let bucket = Bucket::start();
    let checkpoints = in_bucket(&bucket);
    lives_and_dies(&checkpoints);
    assert_eq!(bucket.uploads(), (1, 0), "only what is large is uploaded in parts");
    let left: Vec<_> = bucket.objects().into_keys().collect();
    let of_the_other = ["checkpoint.json", "other"].map(|file| format!("data/runs/a/1-dico-00000000/{file}"));
    assert_eq!(left, of_the_other);
}

#[test]
fn a_copy_from_a_bucket_is_gone_with_its_last_use() {
    let bucket = Bucket::start();
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

/// A checkpoint after an earlier one.
fn two(checkpoints: &Checkpoints) {
    checkpoints.write("0-xe-00000002", |files| files.add("a", [vec![1]])).unwrap();
    checkpoints.write(NAME, fill).unwrap();
}

#[test]
fn a_file_that_was_cut_or_changed_or_lost_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = in_folder(folder.path());
    two(&checkpoints);
    let large = large();
    for (file, content) in [("small.json", SMALL), ("large.bin", &large), (seal::FILE, &[])] {
        let path = folder.path().join(NAME).join(file);
        let content = if content.is_empty() { std::fs::read(&path).unwrap() } else { content.to_vec() };
        for length in [0, content.len() / 2, content.len() - 1] {
            std::fs::write(&path, &content[..length]).unwrap();
            assert_damaged(&checkpoints, file);
        }
        for at in [0, content.len() / 2, content.len() - 1] {
            let mut flipped = content.clone();
            flipped[at] ^= 0x10;
            std::fs::write(&path, flipped).unwrap();
            assert_damaged(&checkpoints, file);
        }
        std::fs::write(&path, [&content[..], b"!"].concat()).unwrap();
        assert_damaged(&checkpoints, file);
        std::fs::remove_file(&path).unwrap();
        assert_damaged(&checkpoints, file);
        std::fs::write(&path, content).unwrap();
        assert_whole(&checkpoints);
    }
    std::fs::write(folder.path().join(NAME).join("empty"), b"!").unwrap();
    assert_damaged(&checkpoints, "empty has 1 bytes, 0 were written");
}

#[test]
fn damage_in_a_bucket_is_named() {
    let bucket = Bucket::start();
    let checkpoints = in_bucket(&bucket);
    two(&checkpoints);
    for (name, content) in bucket.objects().into_iter().filter(|(name, _)| name.contains(NAME)) {
        let file = name.rsplit_once('/').unwrap().1;
        if !content.is_empty() {
            bucket.put(&name, content[..content.len() - 1].to_vec());
            assert_damaged(&checkpoints, file);
            bucket.put(&name, content.iter().map(|byte| byte ^ 1).collect());
            assert_damaged(&checkpoints, file);
        }
        bucket.put(&name, content);
        assert_whole(&checkpoints);
    }
}

#[test]
fn a_seal_as_large_as_a_disk_is_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = in_folder(folder.path());
    two(&checkpoints);
    let seal = File::options().write(true).open(folder.path().join(NAME).join(seal::FILE)).unwrap();
    seal.set_len(1 << 40).unwrap();
    assert_damaged(&checkpoints, "longer than");
}

#[test]
fn what_was_not_finished_and_what_is_foreign_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = in_folder(folder.path());
    two(&checkpoints);
    let there = |path: &str| folder.path().join(path);
    std::fs::remove_file(there(NAME).join(seal::FILE)).unwrap();
    // As left by an interrupted upload.
    std::fs::create_dir(there("0-xe-00000006")).unwrap();
    std::fs::write(there("0-xe-00000006/captioner.safetensors#1"), b"half").unwrap();
    std::fs::write(there("notes.txt"), b"mine").unwrap();
    std::fs::create_dir(there("my notes")).unwrap();
    let no_text = std::os::unix::ffi::OsStrExt::from_bytes(b"\xff".as_slice());
    std::fs::create_dir(folder.path().join::<&std::ffi::OsStr>(no_text)).unwrap();
    let listing = Listing {
        sealed: names(["0-xe-00000002"]),
        unsealed: names([NAME, "0-xe-00000006"]),
        foreign: names(["notes.txt", "my notes", "\u{fffd}"]),
    };
    assert_eq!(checkpoints.list().unwrap(), listing);
    listing.unsealed.iter().for_each(|name| checkpoints.delete(name).unwrap());
    assert_eq!(checkpoints.list().unwrap(), Listing { unsealed: BTreeSet::new(), ..listing });
    assert_eq!(std::fs::read(there("notes.txt")).unwrap(), b"mine");

    let bucket = Bucket::start();
    let checkpoints = in_bucket(&bucket);
    two(&checkpoints);
    bucket.put("data/runs/a/0-xe-00000006/part", vec![1]);
    bucket.put("data/runs/a/notes.txt", vec![1]);
    bucket.put("data/runs/ab/0-xe-00000009/checkpoint.json", vec![1]);
    let listing = Listing {
        sealed: names(["0-xe-00000002", NAME]),
        unsealed: names(["0-xe-00000006"]),
        foreign: names(["notes.txt"]),
    };
    assert_eq!(checkpoints.list().unwrap(), listing);
}

#[test]
fn names_do_not_lead_elsewhere() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = in_folder(&folder.path().join("checkpoints"));
    let mine = folder.path().join("mine");
    std::fs::create_dir(&mine).unwrap();
    let absolute = mine.to_str().unwrap();
    for name in ["../mine", absolute, "..", ".", "", "a/../../mine", "a/b", "a\\b", "..\\mine", "%2e%2e", "a\0"] {
        let named = |done: Result<(), Error>| assert!(matches!(done, Err(Error::Name { .. })), "{name:?}: {done:?}");
        named(checkpoints.delete(name));
        named(checkpoints.read(name).map(|_| ()));
        named(checkpoints.write(name, |_| Ok(())));
        named(checkpoints.write("a", |files| files.add(name, [vec![1]])));
    }
    named_twice(&checkpoints);
    assert!(mine.is_dir());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    assert_eq!(checkpoints.list().unwrap(), Listing::default());
}

/// A file may not have the seal's name, and no two files may have the same name.
fn named_twice(checkpoints: &Checkpoints) {
    for files in [["a", "a"], ["a", seal::FILE]] {
        let written = checkpoints.write("a", |to| files.iter().try_for_each(|file| to.add(file, [vec![1]])));
        assert!(matches!(written, Err(Error::Name { .. })), "{written:?}");
    }
}

#[test]
fn of_a_failed_upload_nothing_is_left() {
    let bucket = Bucket::start();
    let checkpoints = in_bucket(&bucket);
    let large = large();
    let chunks = large.chunks(1 << 20).enumerate().map(|(at, chunk)| {
        // During the second part.
        if at == 12 {
            bucket.refuse_writes();
        }
        chunk.to_vec()
    });
    let error = checkpoints.write(NAME, |files| {
        files.add("small.json", [SMALL.to_vec()])?;
        files.add("large.bin", chunks)
    });
    let error = error.unwrap_err();
    assert!(matches!(error, Error::Store { .. }), "{error}");
    assert!(error.to_string().starts_with("s3://data/runs/a/0-xe-00000004/large.bin: access denied (403)"), "{error}");
    assert_eq!(bucket.uploads(), (1, 0));
    assert!(bucket.objects().is_empty());
}

#[test]
fn a_place_that_cannot_be_used_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, b"").unwrap();
    let access = AmazonS3Builder::new().into();
    for place in [&file, &file.join("below")] {
        let place = place.to_str().unwrap();
        let error = Checkpoints::open(place, &access).and_then(|checkpoints| checkpoints.list()).unwrap_err();
        assert!(error.to_string().starts_with(&format!("{place}: ")), "{error}");
        let error = check_writable(place, &access).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{place}: ")), "{error}");
    }
    let new = folder.path().join("new/folder");
    check_writable(new.to_str().unwrap(), &access).unwrap();
    assert!(!folder.path().join("new").exists(), "looking leaves nothing");

    let bucket = Bucket::start();
    let access = bucket.settings().into();
    check_writable("s3://data/runs/a", &access).unwrap();
    assert!(bucket.objects().is_empty());
    bucket.refuse_writes();
    let error = check_writable("s3://data/runs/a", &access).unwrap_err().to_string();
    assert!(error.starts_with("s3://data/runs/a: access denied (403)"), "{error}");
    let error = Checkpoints::open("s3://forbidden/a", &access).unwrap().list().unwrap_err().to_string();
    assert!(error.starts_with("s3://forbidden/a: ") && error.contains("403"), "{error}");
}

/// A file system of this size in bytes, until it is dropped.
struct SmallDisk(TempDir);

impl SmallDisk {
    /// None if this process may not mount.
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
fn a_full_disk_is_told_and_the_checkpoint_before_stays() {
    let Some(disk) = SmallDisk::mount(3 * PART) else { return };
    let checkpoints = in_folder(disk.0.path());
    checkpoints.write("0-xe-00000002", |files| files.add("a", [vec![1]])).unwrap();
    let hoard = disk.0.path().join("hoard");
    std::fs::write(&hoard, vec![1; PART]).unwrap();
    let error = checkpoints.write(NAME, fill).unwrap_err();
    assert!(matches!(error, Error::NoRoom { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("0-xe-00000004/large.bin: no room is left (No space left on device"), "{text}");
    assert_eq!(checkpoints.list().unwrap().unsealed, BTreeSet::new());
    assert!(!disk.0.path().join(NAME).exists());
    checkpoints.read("0-xe-00000002").unwrap();

    std::fs::remove_file(hoard).unwrap();
    checkpoints.write(NAME, fill).unwrap();
    assert_whole(&checkpoints);
}
