//! Parsers of input that a user or a peer controls, each as a function of bytes.
//!
//! `tests/fuzz` runs them under cargo-fuzz with coverage guidance, which needs a nightly compiler;
//! `tests/mutations.rs` feeds them mutated examples on the stable one. A target may refuse its
//! input in any way but a panic, an abort or an unbounded allocation.

use std::io::{Cursor, Write};
use std::path::Path;
use std::sync::OnceLock;

use dico_coordinator::audit::audit;
use dico_coordinator::report::Report;
use journal::{EventCursor, ReadOnlyJournal, testing};
use tempfile::TempDir;
use zip::write::SimpleFileOptions;

/// The run file of the example journal.
const EXAMPLE_RUN: &str = "
name: example
output: /nowhere
workers: { min: 1, max: 2 }
data: { karpathy: { annotations: annotations.json, images: images } }
captioner: { weights: none }
evaluator: { weights: none }
stages: [{ name: dico, objective: dico, steps: 9, batch: 8, optimizer: { learning_rate: 1.0e-3 } }]
";

/// The name of a target, and the function that parses an input.
pub type Target = (&'static str, fn(&[u8]));

/// All targets. `tests/fuzz/fuzz_targets` has a file for each.
pub const TARGETS: [Target; 8] = [
    ("pickle", pickle),
    ("torch_archive", torch_archive),
    ("safetensors", safetensors),
    ("tar_index", tar_index),
    ("image", image),
    ("run_file", run_file),
    ("journal", journal),
    ("journal_json", journal_json),
];

fn temporary_folder() -> TempDir {
    tempfile::tempdir().expect("a temporary folder can be created")
}

fn open_archive(name: &str, bytes: &[u8]) {
    let folder = temporary_folder();
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).expect("the temporary folder can be written");
    if let Ok(archive) = weights::Archive::open(&path) {
        for (name, tensor) in archive.tensors() {
            _ = (name, tensor.bytes.len());
        }
        _ = weights::ClipWeights::open(&path, &weights::Conventions::default());
    }
}

/// The pickle of a PyTorch archive, `data.pkl`, with one storage of 64 bytes.
pub fn pickle(bytes: &[u8]) {
    let mut archive = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let stored = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (name, content) in [("archive/data.pkl", bytes), ("archive/data/0", &[0; 64]), ("archive/version", b"3\n")] {
        archive.start_file(name, stored).expect("a file can be added");
        archive.write_all(content).expect("memory can be written");
    }
    let archive = archive.finish().expect("an archive can be finished").into_inner();
    open_archive("weights.pt", &archive);
}

/// A whole PyTorch archive or TorchScript file: ZIP directory, pickles and storages.
pub fn torch_archive(bytes: &[u8]) {
    open_archive("weights.pt", bytes);
}

/// A safetensors file.
pub fn safetensors(bytes: &[u8]) {
    open_archive("weights.safetensors", bytes);
}

/// A WebDataset shard: tar headers, PAX records, captions in JSON and text, images.
pub fn tar_index(bytes: &[u8]) {
    let folder = temporary_folder();
    let path = folder.path().join("shard.tar");
    std::fs::write(&path, bytes).expect("the temporary folder can be written");
    let pattern = path.to_string_lossy().into_owned();
    let webdataset = config::WebDataset { train: pattern.clone(), validation: pattern, test: None };
    let settings = config::Data { webdataset: Some(webdataset), skip_corrupt: true, ..config::Data::default() };
    _ = dataset::DataSet::load_usable(&settings);
}

/// An encoded image.
pub fn image(bytes: &[u8]) {
    _ = image_preprocess::check(Cursor::new(bytes));
    _ = image_preprocess::preprocess(bytes, 32);
    _ = image_preprocess::orientation(bytes);
}

/// A run file, as YAML from a user and as JSON from a coordinator.
pub fn run_file(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    _ = config::RunFile::parse(Path::new("run.yaml"), text);
    _ = config::RunFile::from_json(text);
}

/// Reads a journal for the audit and the report, and all of its typed records.
fn read(journal: &ReadOnlyJournal) {
    _ = audit(journal);
    _ = Report::read(journal);
    _ = journal.lineage();
    _ = journal.attached_workers();
    _ = journal.settings_changes();
    _ = journal.guard_firings();
    _ = journal.latest_events(9);
    _ = journal.events_since(&mut EventCursor::default());
    _ = journal.recorded_steps(Default::default(), 9);
}

/// A journal's SQLite file.
pub fn journal(bytes: &[u8]) {
    let folder = temporary_folder();
    std::fs::write(folder.path().join("journal.sqlite"), bytes).expect("the temporary folder can be written");
    if let Ok(journal) = ReadOnlyJournal::open(folder.path()) {
        read(&journal);
    }
}

/// The example journal with this text in the JSON columns of `events`, `steps` and `generations`.
pub fn journal_json(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let folder = temporary_folder();
    std::fs::write(folder.path().join("journal.sqlite"), example_journal())
        .expect("the temporary folder can be written");
    testing::replace_json(folder.path(), text);
    if let Ok(journal) = ReadOnlyJournal::open(folder.path()) {
        read(&journal);
    }
}

/// The SQLite file of a journal with two generations, some steps and events.
pub fn example_journal() -> &'static [u8] {
    static EXAMPLE: OnceLock<Vec<u8>> = OnceLock::new();
    EXAMPLE.get_or_init(|| {
        let folder = temporary_folder();
        let run = config::RunFile::parse(Path::new("run.yaml"), EXAMPLE_RUN).expect("the example is a run file");
        testing::write_example(folder.path(), &run);
        std::fs::read(folder.path().join("journal.sqlite")).expect("the journal can be read")
    })
}
