//! Tests of the reports on saved checkpoints, and of waiting for them.

use std::path::Path;

use checkpoint_store::{JournalHead, SampleSequence};
use config::RunFile;
use object_storage::Access;
use run_assets::WeightSources;
use tch::Device;
use tokenizer::Vocabulary;

use super::*;
use crate::trainer::snapshot::CheckpointOrigin;
use crate::trainer::training_state::TrainingState;

const RUN: &str = "
name: test
output: /nowhere
workers: { min: 1, max: 2 }
data: { karpathy: { annotations: annotations.json, images: images } }
vocabulary: corpus
captioner: { preset: tiny }
evaluator: { preset: tiny }
stages:
  - { name: xe, objective: cross_entropy, steps: 9, batch: 4, optimizer: { learning_rate: 1.0e-3 } }
";

#[test]
fn successful_and_failed_saves_are_reported() {
    let run = RunFile::parse(Path::new("test.yaml"), RUN).unwrap();
    let weight_sources = WeightSources::open(&run, Vocabulary::of_corpus(["a red circle"])).unwrap();
    let state = TrainingState::new(&run, &weight_sources, Device::Cpu).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("checkpoints");
    let checkpoints = Arc::new(Checkpoints::open(path.to_str().unwrap(), &Access::from_environment()).unwrap());
    let (sender, mut reports) = tokio::sync::mpsc::channel(8);
    let saver = CheckpointSaver::start(Arc::clone(&checkpoints), sender);
    let save = |checkpoint, name: &str, is_writer: bool| {
        let origin = CheckpointOrigin {
            run_id: "3fa2".to_owned(),
            generation: 3,
            position: v1::Position::default(),
            journal: JournalHead::default(),
            sequence: SampleSequence::default(),
        };
        let snapshot = Snapshot::take(&state, &run, &weight_sources, is_writer.then_some(origin)).unwrap();
        saver.save(SaveRequest { generation: 3, checkpoint, name: name.to_owned(), snapshot }).unwrap();
    };
    save(1, "0-xe-00000004", true);
    save(2, "0-xe-00000008", false);
    saver.pending_saves().wait();
    assert_eq!(checkpoints.list().unwrap().sealed.into_iter().collect::<Vec<_>>(), ["0-xe-00000004"]);
    // A file at the path of the checkpoint folder makes saves fail.
    std::fs::remove_dir_all(&path).unwrap();
    std::fs::write(&path, b"").unwrap();
    save(3, "0-xe-00000009", true);
    saver.pending_saves().wait();
    drop(saver);

    let parameters_sha256 = state.parameters_sha256();
    for checkpoint in [1, 2] {
        let parameters_sha256 = parameters_sha256.clone();
        let done = v1::CheckpointDone { generation: 3, checkpoint, parameters_sha256 };
        assert_eq!(reports.blocking_recv(), Some(Message::CheckpointDone(done)));
    }
    let Some(Message::CheckpointFailed(failed)) = reports.blocking_recv() else {
        panic!("the failure is not reported")
    };
    assert_eq!((failed.generation, failed.checkpoint), (3, 3));
    assert!(failed.reason.contains("0-xe-00000009"), "{}", failed.reason);
    assert_eq!(reports.blocking_recv(), None);
}
