use proptest::prelude::*;

use super::pickle::assembler::{Assembler, Piece};
use super::*;
use crate::testing::{counting, most_taken, values, zip};
use crate::write_safetensors;

const PIECE: Piece<'_> =
    Piece { class: "FloatStorage", key: "0", elements: 6, offset: 0, shape: &[2, 3], strides: &[3, 1] };

/// What `torch.save` writes for a state dict over one storage of the numbers 0 to 5.
fn torch_file(pieces: &[(&str, Piece<'_>)]) -> Vec<u8> {
    let pickle = Assembler::new().state_dict(pieces).end();
    let storage = counting(&[6], 0).bytes.into_owned();
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
    let across = Piece { shape: &[3, 2], strides: &[1, 3], ..PIECE };
    let tail = Piece { offset: 4, shape: &[2], strides: &[1], ..PIECE };
    let repeated = Piece { offset: 5, shape: &[2, 2], strides: &[0, 0], ..PIECE };
    let scalar = Piece { offset: 3, shape: &[], strides: &[], ..PIECE };
    let empty = Piece { shape: &[0, 7], strides: &[7, 1], ..PIECE };
    let archive = open_bytes(&torch_file(&[
        ("tail", tail),
        ("whole", PIECE),
        ("across", across),
        ("repeated", repeated),
        ("scalar", scalar),
        ("empty", empty),
    ]))
    .unwrap();
    let names: Vec<&str> = archive.names().collect();
    assert_eq!(names, ["across", "empty", "repeated", "scalar", "tail", "whole"]);
    let of = |name: &str| values(&archive.get(name).unwrap());
    assert_eq!(of("whole"), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    assert_eq!(of("across"), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
    assert_eq!(of("tail"), [4.0, 5.0]);
    assert_eq!(of("repeated"), [5.0; 4]);
    assert_eq!(of("scalar"), [3.0]);
    assert!(of("empty").is_empty());
    assert_eq!((archive.dtype("across"), archive.shape("across")), (Some(Dtype::F32), Some(&[3, 2][..])));
    assert!(matches!(archive.get("whole").unwrap().bytes, Cow::Borrowed(_)));
    assert!(archive.get("other").is_none() && archive.shape("other").is_none());
}

#[test]
fn the_sum_is_that_of_the_file() {
    let folder = folder_of(&[("abc.safetensors", &[&[8, 0, 0, 0, 0, 0, 0, 0], &b"{}      "[..]].concat())]);
    let archive = Archive::open(&folder.path().join("abc.safetensors")).unwrap();
    assert_eq!(archive.sha256(), "9bbcbf73561f6bc5d0a17ea6a2081feed2d1304e87602d8c502d9a5c4bd85576");
}

#[test]
fn safetensors_are_read_back_as_they_were_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let flags = Tensor { dtype: Dtype::Bool, shape: vec![3], bytes: Cow::Borrowed(&[1, 0, 1]) };
    let tensors = [("b".to_owned(), counting(&[2, 2], 7)), ("a".to_owned(), flags), ("c".to_owned(), counting(&[], 3))];
    write_safetensors(&path, &tensors).unwrap();
    let archive = Archive::open(&path).unwrap();
    assert_eq!(archive.names().collect::<Vec<_>>(), ["a", "b", "c"]);
    for (name, tensor) in &tensors {
        assert_eq!(archive.get(name).as_ref(), Some(tensor));
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left there");
}

#[test]
fn a_tensor_that_leaves_its_storage_is_refused() {
    for piece in [
        Piece { shape: &[7], strides: &[1], ..PIECE },
        Piece { offset: 1, ..PIECE },
        Piece { strides: &[4, 1], ..PIECE },
        Piece { strides: &[i64::MAX, 1], ..PIECE },
        Piece { offset: i64::MAX, ..PIECE },
        Piece { shape: &[i64::MAX, 3], strides: &[0, 0], ..PIECE },
        Piece { class: "DoubleStorage", elements: 3, shape: &[4], strides: &[1], ..PIECE },
    ] {
        let text = problem(&torch_file(&[("a", piece)]));
        assert!(text.ends_with("a: reaches out of its storage 0"), "{text}");
    }
    assert!(problem(&torch_file(&[("a", Piece { elements: 7, ..PIECE })])).ends_with("a: its storage 0 is cut short"));
    assert!(problem(&torch_file(&[("a", Piece { key: "../1", ..PIECE })])).ends_with("its storage ../1 is missing"));
}

#[test]
fn a_tensor_that_repeats_an_element_without_end_is_refused() {
    let shape = &[1 << 20, 1 << 10];
    let (text, taken) = most_taken(|| problem(&torch_file(&[("a", Piece { shape, strides: &[0, 0], ..PIECE })])));
    assert!(text.ends_with("would take more than 8 times its bytes") && taken < 1 << 20, "{text} took {taken} bytes");
    let shared: Vec<String> = (0..1000).map(|number| number.to_string()).collect();
    let large = vec![0; 1 << 16];
    let piece = Piece { class: "ByteStorage", elements: 1 << 16, shape: &[1 << 16], strides: &[1], ..PIECE };
    let pieces: Vec<_> = shared.iter().map(|name| (name.as_str(), piece)).collect();
    let pickle = Assembler::new().state_dict(&pieces).end();
    let text = problem(&zip(&[("m/data.pkl", &pickle), ("m/data/0", &large)]));
    assert!(text.ends_with("would take more than 8 times its bytes"), "{text}");
}

#[test]
fn compressed_and_big_endian_archives_are_refused() {
    let pickle = Assembler::new().state_dict(&[("a", PIECE)]).end();
    let mut bytes = zip(&[("m/data.pkl", &pickle), ("m/data/0", &[0; 24])]);
    // The method stands at 8 in a file's own header and at 10 in the directory's.
    for (magic, place) in [(b"PK\x03\x04", 8), (b"PK\x01\x02", 10)] {
        let headers: Vec<usize> = (0..bytes.len() - 4).filter(|&at| bytes[at..at + 4] == *magic).collect();
        assert_eq!(headers.len(), 2);
        bytes[headers[1] + place] = 8;
    }
    let text = problem(&bytes);
    assert!(text.ends_with("m/data/0 is compressed, which PyTorch never does"), "{text}");
    let other = zip(&[("m/data.pkl", &pickle), ("m/byteorder", b"big"), ("m/data/0", &[0; 24])]);
    assert!(problem(&other).contains("is big-endian"));
}

#[test]
fn other_formats_are_named_with_the_remedy() {
    let mut tar = vec![b'x'; 512];
    tar[257..262].copy_from_slice(b"ustar");
    let number = [0x80, 2, 0x8a, 10, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19, b'.'];
    for legacy in [&tar[..], &number] {
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
fn an_attempt_to_run_code_is_refused_with_the_name_of_the_file() {
    let pickle = Assembler::new().global("os", "system").text("true").op(0x85).op(b'R').end();
    let text = problem(&zip(&[("m/data.pkl", &pickle)]));
    assert!(text.contains("refused: the pickle asks for os.system, which is no tensor"), "{text}");
}

#[test]
fn a_name_with_control_characters_is_refused() {
    assert!(problem(&torch_file(&[("a\nb", PIECE)])).contains("a\u{fffd}b: has control characters"));
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
    let (first, second) = (torch_file(&[("a", PIECE), ("x", PIECE)]), torch_file(&[("b", PIECE)]));
    let index = br#"{"metadata": {}, "weight_map": {"a": "1.bin", "b": "2.bin"}}"#;
    let folder = folder_of(&[("2.bin", &second), ("1.bin", &first), ("pytorch_model.bin.index.json", index)]);
    let archive = Archive::open(folder.path()).unwrap();
    assert_eq!(archive.names().collect::<Vec<_>>(), ["a", "b"]);
    let together = Sha256::digest([first, second].concat());
    assert_eq!(archive.sha256(), together.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
}

#[test]
fn a_folder_prefers_safetensors() {
    let folder = folder_of(&[("pytorch_model.bin", &torch_file(&[("pickled", PIECE)]))]);
    assert_eq!(Archive::open(folder.path()).unwrap().names().collect::<Vec<_>>(), ["pickled"]);
    write_safetensors(&folder.path().join("model.safetensors"), &[("safe".to_owned(), counting(&[1], 0))]).unwrap();
    assert_eq!(Archive::open(folder.path()).unwrap().names().collect::<Vec<_>>(), ["safe"]);
}

#[test]
fn an_index_that_does_not_fit_is_refused() {
    let of = |index: &str| {
        let shard = torch_file(&[("a", PIECE)]);
        let folder = folder_of(&[("1.bin", &shard), ("pytorch_model.bin.index.json", index.as_bytes())]);
        Archive::open(folder.path()).map(|_| ()).unwrap_err().to_string()
    };
    for name in ["../1.bin", "/1.bin", "x/1.bin", "..", ""] {
        let text = of(&format!(r#"{{"weight_map": {{"a": "{name}"}}}}"#));
        assert!(text.contains("leads out of the folder"), "{text}");
    }
    assert!(of(r#"{"weight_map": {"b": "1.bin"}}"#).ends_with("b: is not in its shard 1.bin"));
    assert!(of(r#"{"weight_map": 3}"#).contains("line 1 column"));
    assert!(of(&format!(r#"{{"metadata": {}"#, "[".repeat(100_000))).contains("line 1 column"));
    let empty = tempfile::tempdir().unwrap();
    assert!(Archive::open(empty.path()).map(|_| ()).unwrap_err().to_string().contains("looked for model.safetensors"));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn no_change_to_a_good_file_makes_it_panic_or_take_much(
        file in prop::sample::select(good_files()),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = file;
        for (place, byte) in changes {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        bytes.truncate(cut.map_or(bytes.len(), |cut| cut.index(bytes.len())));
        check_hostile(&bytes)?;
    }

    #[test]
    fn no_bytes_make_it_panic_or_take_much(
        start in prop::sample::select(vec![&b""[..], b"PK\x03\x04", b"\x20\0\0\0\0\0\0\0{"]),
        bytes in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        check_hostile(&[start, &bytes].concat())?;
    }
}

/// One of each format.
fn good_files() -> Vec<Vec<u8>> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    write_safetensors(&path, &[("a".to_owned(), counting(&[2, 3], 0)), ("b".to_owned(), counting(&[4], 0))]).unwrap();
    let across = Piece { shape: &[3, 2], strides: &[1, 3], ..PIECE };
    let torchscript = include_bytes!("../../tests/golden/torchscript.pt").to_vec();
    vec![std::fs::read(path).unwrap(), torch_file(&[("a", PIECE), ("b", across)]), torchscript]
}

fn check_hostile(bytes: &[u8]) -> Result<(), TestCaseError> {
    let ((), taken) = most_taken(|| {
        if let Ok(archive) = open_bytes(bytes) {
            for name in archive.names() {
                assert!(archive.get(name).is_some());
            }
        }
    });
    prop_assert!(taken < 400_000 + 500 * bytes.len(), "took {taken} bytes for {}", bytes.len());
    Ok(())
}
