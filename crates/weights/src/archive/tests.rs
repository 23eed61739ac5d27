use proptest::prelude::*;

use super::pickle::pickler::{Pickler, StorageView};
use super::*;
use crate::test_util::{peak_allocation, sequential_tensor, values, zip};
use crate::write_safetensors;

const VIEW: StorageView<'_> =
    StorageView { class: "FloatStorage", key: "0", elements: 6, offset: 0, shape: &[2, 3], strides: &[3, 1] };

/// A file as `torch.save` writes it: a state dict over one storage with the numbers 0 to 5.
fn torch_file(views: &[(&str, StorageView<'_>)]) -> Vec<u8> {
    let pickle = Pickler::new().state_dict(views).finish();
    let storage = sequential_tensor(&[6], 0).bytes.into_owned();
    zip(&[("m/data.pkl", &pickle), ("m/byteorder", b"little"), ("m/data/0", &storage), ("m/version", b"3\n")])
}

fn open_bytes(bytes: &[u8]) -> Result<Archive, Error> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights");
    std::fs::write(&path, bytes).unwrap();
    Archive::open(&path)
}

fn problem(bytes: &[u8]) -> String {
    let text = open_bytes(bytes).map(|archive| archive.path).unwrap_err().to_string();
    assert!(text.contains("weights: ") && !text.contains('\n'), "{text}");
    text
}

#[test]
fn tensors_of_a_torch_file_are_read() {
    let transposed = StorageView { shape: &[3, 2], strides: &[1, 3], ..VIEW };
    let tail = StorageView { offset: 4, shape: &[2], strides: &[1], ..VIEW };
    let repeated = StorageView { offset: 5, shape: &[2, 2], strides: &[0, 0], ..VIEW };
    let scalar = StorageView { offset: 3, shape: &[], strides: &[], ..VIEW };
    let empty = StorageView { shape: &[0, 7], strides: &[7, 1], ..VIEW };
    let archive = open_bytes(&torch_file(&[
        ("tail", tail),
        ("all", VIEW),
        ("transposed", transposed),
        ("repeated", repeated),
        ("scalar", scalar),
        ("empty", empty),
    ]))
    .unwrap();
    let names: Vec<&str> = archive.names().collect();
    assert_eq!(names, ["all", "empty", "repeated", "scalar", "tail", "transposed"]);
    let values_of = |name: &str| values(&archive.get(name).unwrap());
    assert_eq!(values_of("all"), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    assert_eq!(values_of("transposed"), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
    assert_eq!(values_of("tail"), [4.0, 5.0]);
    assert_eq!(values_of("repeated"), [5.0; 4]);
    assert_eq!(values_of("scalar"), [3.0]);
    assert!(values_of("empty").is_empty());
    assert_eq!((archive.dtype("transposed"), archive.shape("transposed")), (Some(Dtype::F32), Some(&[3, 2][..])));
    assert!(matches!(archive.get("all").unwrap().bytes, Cow::Borrowed(_)));
    assert!(archive.get("other").is_none() && archive.shape("other").is_none());
}

#[test]
fn the_hash_of_an_archive_is_that_of_its_file() {
    let folder = folder_of(&[("abc.safetensors", &[&[8, 0, 0, 0, 0, 0, 0, 0], &b"{}      "[..]].concat())]);
    let archive = Archive::open(&folder.path().join("abc.safetensors")).unwrap();
    assert_eq!(archive.sha256(), "9bbcbf73561f6bc5d0a17ea6a2081feed2d1304e87602d8c502d9a5c4bd85576");
}

#[test]
fn written_safetensors_can_be_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let flags = Tensor { dtype: Dtype::Bool, shape: vec![3], bytes: Cow::Borrowed(&[1, 0, 1]) };
    let tensors = [
        ("b".to_owned(), sequential_tensor(&[2, 2], 7)),
        ("a".to_owned(), flags),
        ("c".to_owned(), sequential_tensor(&[], 3)),
    ];
    write_safetensors(&path, &tensors).unwrap();
    let archive = Archive::open(&path).unwrap();
    assert_eq!(archive.names().collect::<Vec<_>>(), ["a", "b", "c"]);
    for (name, tensor) in &tensors {
        assert_eq!(archive.get(name).as_ref(), Some(tensor));
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "another file remains");
}

#[test]
fn a_tensor_that_extends_beyond_its_storage_is_refused() {
    for view in [
        StorageView { shape: &[7], strides: &[1], ..VIEW },
        StorageView { offset: 1, ..VIEW },
        StorageView { strides: &[4, 1], ..VIEW },
        StorageView { strides: &[i64::MAX, 1], ..VIEW },
        StorageView { offset: i64::MAX, ..VIEW },
        StorageView { shape: &[i64::MAX, 3], strides: &[0, 0], ..VIEW },
        StorageView { class: "DoubleStorage", elements: 3, shape: &[4], strides: &[1], ..VIEW },
    ] {
        let text = problem(&torch_file(&[("a", view)]));
        assert!(text.ends_with("a: extends beyond its storage 0"), "{text}");
    }
    assert!(
        problem(&torch_file(&[("a", StorageView { elements: 7, ..VIEW })])).ends_with("a: its storage 0 is truncated")
    );
    assert!(
        problem(&torch_file(&[("a", StorageView { key: "../1", ..VIEW })])).ends_with("its storage ../1 is missing")
    );
}

#[test]
fn tensors_much_larger_than_their_file_are_refused() {
    let shape = &[1 << 20, 1 << 10];
    let (text, peak_bytes) =
        peak_allocation(|| problem(&torch_file(&[("a", StorageView { shape, strides: &[0, 0], ..VIEW })])));
    assert!(
        text.ends_with("would take more than 8 times its size") && peak_bytes < 1 << 20,
        "{text} took {peak_bytes} bytes"
    );
    let names: Vec<String> = (0..1000).map(|number| number.to_string()).collect();
    let storage = vec![0; 1 << 16];
    let view = StorageView { class: "ByteStorage", elements: 1 << 16, shape: &[1 << 16], strides: &[1], ..VIEW };
    let views: Vec<_> = names.iter().map(|name| (name.as_str(), view)).collect();
    let pickle = Pickler::new().state_dict(&views).finish();
    let text = problem(&zip(&[("m/data.pkl", &pickle), ("m/data/0", &storage)]));
    assert!(text.ends_with("would take more than 8 times its size"), "{text}");
}

#[test]
fn compressed_and_big_endian_archives_are_refused() {
    let pickle = Pickler::new().state_dict(&[("a", VIEW)]).finish();
    let mut bytes = zip(&[("m/data.pkl", &pickle), ("m/data/0", &[0; 24])]);
    // The compression method is at offset 8 of a local header and at offset 10 of a directory
    // entry.
    for (magic, method_offset) in [(b"PK\x03\x04", 8), (b"PK\x01\x02", 10)] {
        let headers: Vec<usize> = (0..bytes.len() - 4).filter(|&at| bytes[at..at + 4] == *magic).collect();
        assert_eq!(headers.len(), 2);
        bytes[headers[1] + method_offset] = 8;
    }
    let text = problem(&bytes);
    assert!(text.ends_with("m/data/0 is compressed, which PyTorch never does"), "{text}");
    let big_endian = zip(&[("m/data.pkl", &pickle), ("m/byteorder", b"big"), ("m/data/0", &[0; 24])]);
    assert!(problem(&big_endian).contains("is big-endian"));
}

#[test]
fn other_formats_are_refused_with_a_remedy() {
    let mut tar = vec![b'x'; 512];
    tar[257..262].copy_from_slice(b"ustar");
    let magic_number = [0x80, 2, 0x8a, 10, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19, b'.'];
    for legacy in [&tar[..], &magic_number] {
        assert!(problem(legacy).ends_with("save it again with torch.save of PyTorch 1.6 or later"));
    }
    assert!(problem(b"").ends_with("is neither safetensors nor a file of PyTorch 1.6 or later"));
    assert!(problem(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n").contains("git lfs pull"));
    assert!(problem(&zip(&[("word/document.xml", b"<x/>")])).contains("without data.pkl"));
    assert!(problem(&zip(&[("a/data.pkl", b"."), ("b/data.pkl", b".")])).contains("more than one data.pkl"));
    assert!(problem(b"PK\x03\x04").contains("damaged ZIP archive"));
    let folder = tempfile::tempdir().unwrap();
    let missing = Archive::open(&folder.path().join("none.pt")).map(|_| ()).unwrap_err().to_string();
    assert!(missing.contains("none.pt: ") && missing.contains("No such file"), "{missing}");
}

#[test]
fn a_pickle_that_calls_code_is_refused() {
    let pickle = Pickler::new().global("os", "system").text("true").op(0x85).op(b'R').finish();
    let text = problem(&zip(&[("m/data.pkl", &pickle)]));
    assert!(text.contains("refused: the pickle refers to the global os.system, which no tensor needs"), "{text}");
}

#[test]
fn a_name_with_control_characters_is_refused() {
    assert!(problem(&torch_file(&[("a\nb", VIEW)])).contains("a\u{fffd}b: has control characters"));
}

fn folder_of(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in files {
        std::fs::write(folder.path().join(name), content).unwrap();
    }
    folder
}

#[test]
fn a_folder_of_shards_is_one_archive() {
    let (first, second) = (torch_file(&[("a", VIEW), ("x", VIEW)]), torch_file(&[("b", VIEW)]));
    let index = br#"{"metadata": {}, "weight_map": {"a": "1.bin", "b": "2.bin"}}"#;
    let folder = folder_of(&[("2.bin", &second), ("1.bin", &first), ("pytorch_model.bin.index.json", index)]);
    let archive = Archive::open(folder.path()).unwrap();
    assert_eq!(archive.names().collect::<Vec<_>>(), ["a", "b"]);
    let together = Sha256::digest([first, second].concat());
    assert_eq!(archive.sha256(), together.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
}

#[test]
fn a_folder_prefers_safetensors() {
    let folder = folder_of(&[("pytorch_model.bin", &torch_file(&[("pickled", VIEW)]))]);
    assert_eq!(Archive::open(folder.path()).unwrap().names().collect::<Vec<_>>(), ["pickled"]);
    write_safetensors(&folder.path().join("model.safetensors"), &[("safe".to_owned(), sequential_tensor(&[1], 0))])
        .unwrap();
    assert_eq!(Archive::open(folder.path()).unwrap().names().collect::<Vec<_>>(), ["safe"]);
}

#[test]
fn an_invalid_shard_index_is_refused() {
    let error = |index: &str| {
        let shard = torch_file(&[("a", VIEW)]);
        let folder = folder_of(&[("1.bin", &shard), ("pytorch_model.bin.index.json", index.as_bytes())]);
        Archive::open(folder.path()).map(|_| ()).unwrap_err().to_string()
    };
    for name in ["../1.bin", "/1.bin", "x/1.bin", "..", ""] {
        let text = error(&format!(r#"{{"weight_map": {{"a": "{name}"}}}}"#));
        assert!(text.contains("leads out of the folder"), "{text}");
    }
    assert!(error(r#"{"weight_map": {"b": "1.bin"}}"#).ends_with("b: is not in its shard 1.bin"));
    assert!(error(r#"{"weight_map": 3}"#).contains("line 1 column"));
    assert!(error(&format!(r#"{{"metadata": {}"#, "[".repeat(100_000))).contains("line 1 column"));
    let empty = tempfile::tempdir().unwrap();
    assert!(Archive::open(empty.path()).map(|_| ()).unwrap_err().to_string().contains("none of model.safetensors"));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn changed_files_cause_no_panic_and_no_large_allocation(
        file in prop::sample::select(valid_files()),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        truncation in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = file;
        for (index, byte) in changes {
            let index = index.index(bytes.len());
            bytes[index] = byte;
        }
        bytes.truncate(truncation.map_or(bytes.len(), |length| length.index(bytes.len())));
        check_untrusted(&bytes)?;
    }

    #[test]
    fn arbitrary_bytes_cause_no_panic_and_no_large_allocation(
        start in prop::sample::select(vec![&b""[..], b"PK\x03\x04", b"\x20\0\0\0\0\0\0\0{"]),
        bytes in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        check_untrusted(&[start, &bytes].concat())?;
    }
}

/// A valid file of each format.
fn valid_files() -> Vec<Vec<u8>> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    write_safetensors(
        &path,
        &[("a".to_owned(), sequential_tensor(&[2, 3], 0)), ("b".to_owned(), sequential_tensor(&[4], 0))],
    )
    .unwrap();
    let transposed = StorageView { shape: &[3, 2], strides: &[1, 3], ..VIEW };
    let torchscript = include_bytes!("../../tests/golden/torchscript.pt").to_vec();
    vec![std::fs::read(path).unwrap(), torch_file(&[("a", VIEW), ("b", transposed)]), torchscript]
}

/// Checks that opening `bytes` and reading all tensors neither panics nor allocates much more than
/// their length.
fn check_untrusted(bytes: &[u8]) -> Result<(), TestCaseError> {
    let ((), peak_bytes) = peak_allocation(|| {
        if let Ok(archive) = open_bytes(bytes) {
            for name in archive.names() {
                assert!(archive.get(name).is_some());
            }
        }
    });
    prop_assert!(peak_bytes < 400_000 + 500 * bytes.len(), "took {peak_bytes} bytes for {}", bytes.len());
    Ok(())
}
