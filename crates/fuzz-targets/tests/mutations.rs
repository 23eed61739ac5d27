//! Feeds each target with mutated examples: a smoke test of what cargo-fuzz does with coverage.
//!
//! `FUZZ_INPUTS` sets the number of inputs of each target. A panic names the target and the number
//! of the input; the input is a function of both.

use std::fmt::Write;
use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use fuzz_targets::{TARGETS, example_journal};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// The default number of inputs of each target.
const INPUTS: u64 = 400;
/// Bytes at the limits of signed and unsigned numbers.
const EDGES: [u8; 6] = [0, 1, 0x7F, 0x80, 0xFE, 0xFF];

#[test]
fn no_mutated_example_panics() {
    let inputs = std::env::var("FUZZ_INPUTS").map_or(INPUTS, |text| text.parse().expect("FUZZ_INPUTS is a number"));
    let mut failures = String::new();
    for (index, (name, target)) in TARGETS.into_iter().enumerate() {
        let examples = examples(name);
        for number in 0..inputs {
            let mut random = ChaCha8Rng::seed_from_u64(((index as u64) << 32) + number);
            let input = mutated(&examples[number as usize % examples.len()], &mut random);
            if catch_unwind(AssertUnwindSafe(|| target(&input))).is_err() {
                writeln!(failures, "{name}: input {number} of {} bytes", input.len()).unwrap();
            }
        }
    }
    assert!(failures.is_empty(), "these panicked:\n{failures}");
}

/// One to eight changes: bytes replaced, removed, inserted or repeated, or the end cut off.
fn mutated(example: &[u8], random: &mut ChaCha8Rng) -> Vec<u8> {
    let mut bytes = example.to_vec();
    for _ in 0..random.random_range(1..=8_u32) {
        if bytes.is_empty() {
            break;
        }
        let at = random.random_range(0..bytes.len());
        let length = random.random_range(1..=16_usize).min(bytes.len() - at);
        match random.random_range(0..7_u32) {
            0 => bytes[at] ^= 1 << random.random_range(0..8_u32),
            1 => bytes[at] = EDGES[random.random_range(0..EDGES.len())],
            2 => bytes[at..at + length].fill(EDGES[random.random_range(0..EDGES.len())]),
            3 => drop(bytes.drain(at..at + length)),
            4 => _ = bytes.splice(at..at, std::iter::repeat_with(|| random.random()).take(length)).count(),
            5 => {
                let repeated = bytes[at..at + length].to_vec();
                _ = bytes.splice(at..at, repeated).count();
            }
            _ => bytes.truncate(at),
        }
    }
    bytes
}

/// Valid inputs of a target.
fn examples(target: &str) -> Vec<Vec<u8>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let read = |path: &str| std::fs::read(root.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
    let all = |folder: &str, extension: &str| -> Vec<Vec<u8>> {
        let entries = std::fs::read_dir(root.join(folder)).unwrap().map(|entry| entry.unwrap().path());
        let mut paths: Vec<_> =
            entries.filter(|path| path.extension().is_some_and(|found| found == extension)).collect();
        paths.sort();
        paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
    };
    let archives = || all("crates/weights/tests/golden", "pt");
    match target {
        "pickle" => archives().iter().flat_map(|archive| pickles(archive)).collect(),
        "torch_archive" => archives(),
        "safetensors" => vec![safetensors(r#"{"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}"#, 16)],
        "tar_index" => vec![shard()],
        "image" => [all("tests/golden/images", "jpg"), all("tests/golden/images", "png")].concat(),
        "run_file" => {
            let run = config::RunFile::load(&root.join("configs/demo.yaml")).unwrap();
            vec![read("configs/demo.yaml"), read("configs/coco-vit-l14.yaml"), serde_json::to_vec(&run).unwrap()]
        }
        "journal" => vec![example_journal().to_vec()],
        "journal_json" => [
            r#"{"stage":0,"step":2,"generation":1,"cause":"best_state","passed_over":[{"step":3,"score":0.5}]}"#,
            r#"{"kl":{"count":8,"mean":0.5,"p05":0.1},"reward_chosen":{"mean":1e308}}"#,
            r#"[{"rank":0,"host":"a","version":"0.1.0","device":"cpu"}]"#,
        ]
        .map(|text| text.as_bytes().to_vec())
        .to_vec(),
        other => panic!("{other} has no examples"),
    }
}

/// The pickles in a PyTorch archive.
fn pickles(archive: &[u8]) -> Vec<Vec<u8>> {
    let mut archive = zip::ZipArchive::new(Cursor::new(archive)).unwrap();
    let names = (0..archive.len()).map(|index| archive.by_index(index).unwrap().name().unwrap().into_owned());
    let names: Vec<String> = names.collect::<Vec<_>>().into_iter().filter(|name| name.ends_with(".pkl")).collect();
    let read = |name: String| {
        let mut bytes = Vec::new();
        std::io::copy(&mut archive.by_name(&name).unwrap(), &mut bytes).unwrap();
        bytes
    };
    names.into_iter().map(read).collect()
}

/// A safetensors file with this header and `data_bytes` zeros.
fn safetensors(header: &str, data_bytes: usize) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![0; data_bytes]].concat()
}

/// A shard of two samples, one with its captions in JSON.
fn shard() -> Vec<u8> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/images");
    let image = std::fs::read(root.join("jpeg_420.jpg")).unwrap();
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in [
        ("000.jpg", &image[..]),
        ("000.txt", b"a dog on a sofa"),
        ("001.jpg", &image),
        ("001.json", br#"{"captions":["a cat"],"image_id":7}"#),
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, content).unwrap();
    }
    builder.into_inner().unwrap()
}
