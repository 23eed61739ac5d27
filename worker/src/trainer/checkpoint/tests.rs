//! Tests of saving a training state as a checkpoint, and of loading it.

use std::path::Path;

use checkpoint_store::{JournalHead, METADATA_FORMAT, SampleSequence};
use object_storage::Access;
use tch::{Device, no_grad};
use tokenizer::Vocabulary;

use super::*;
use crate::trainer::snapshot::{CheckpointOrigin, Snapshot};

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
  - { name: dico, objective: { dico: { reward: { cider: 1 } } }, steps: 9, batch: 4, optimizer: { learning_rate: 1.0e-3 } }
";
const NAME: &str = "1-dico-00000003";
const RUN_ID: &str = "3fa2";

/// A run with a folder for its checkpoints.
struct TestRun {
    run: RunFile,
    weight_sources: WeightSources,
    checkpoints: Checkpoints,
    folder: tempfile::TempDir,
}

impl TestRun {
    fn new() -> Self {
        Self::from_text(RUN)
    }

    fn from_text(run: &str) -> Self {
        let run = RunFile::parse(Path::new("test.yaml"), run).unwrap();
        let weight_sources = WeightSources::open(&run, Vocabulary::of_corpus(["a red circle"])).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::open(folder.path().to_str().unwrap(), &Access::from_environment()).unwrap();
        Self { run, weight_sources, checkpoints, folder }
    }

    fn initial_state(&self) -> TrainingState {
        TrainingState::new(&self.run, &self.weight_sources, Device::Cpu).unwrap()
    }

    /// A training state in the second stage whose values all differ from the initial values.
    fn trained_state(&self) -> TrainingState {
        let mut state = self.initial_state();
        state.enter_stage(&self.run, 1);
        fill_with_distinct_values(&state);
        state
    }

    fn save(&self, snapshot: &Snapshot) -> String {
        let sha256 = snapshot.parameters_sha256();
        snapshot.write(&self.checkpoints, NAME, &sha256).unwrap();
        sha256
    }
}

fn checkpoint_origin() -> CheckpointOrigin {
    let journal = JournalHead { record_number: 17, hash: "ab".repeat(32) };
    CheckpointOrigin {
        run_id: RUN_ID.to_owned(),
        generation: 4,
        position: v1::Position { stage: 1, step: 3, generation: 4 },
        journal,
        sequence: SampleSequence { step: 2, epoch: 1 },
    }
}

fn buffers(state: &TrainingState) -> Vec<&Tensor> {
    let models = state.own_models().map(|(_, parameters)| parameters.flat());
    models.chain([&state.optimizer.first_moment, &state.optimizer.second_moment]).collect()
}

fn fill(buffer: &Tensor, value: f64) {
    no_grad(|| _ = buffer.shallow_clone().fill_(value));
}

/// Fills each buffer with its index plus 0.25.
fn fill_with_distinct_values(state: &TrainingState) {
    buffers(state).into_iter().enumerate().for_each(|(index, buffer)| fill(buffer, index as f64 + 0.25));
}

#[test]
fn training_does_not_change_a_snapshot() {
    let test_run = TestRun::new();
    let mut state = test_run.trained_state();
    let writers_snapshot =
        Snapshot::take(&state, &test_run.run, &test_run.weight_sources, Some(checkpoint_origin())).unwrap();
    let other_snapshot = Snapshot::take(&state, &test_run.run, &test_run.weight_sources, None).unwrap();
    let sha256 = state.parameters_sha256();

    buffers(&state).into_iter().for_each(|buffer| fill(buffer, -1.0));
    state.enter_stage(&test_run.run, 0);
    assert_ne!(state.parameters_sha256(), sha256);
    assert_eq!([&writers_snapshot, &other_snapshot].map(Snapshot::parameters_sha256), [sha256.clone(), sha256.clone()]);

    test_run.save(&writers_snapshot);
    let mut restored_state = test_run.initial_state();
    let fetched = test_run.checkpoints.read(NAME).unwrap();
    restore_state(
        &mut restored_state,
        &test_run.run,
        &test_run.weight_sources,
        fetched.path(),
        &test_run.checkpoints.metadata(NAME).unwrap(),
    )
    .unwrap();
    assert_eq!(restored_state.parameters_sha256(), sha256);
    assert_eq!(restored_state.content, Content::Complete);
    for (restored, saved) in buffers(&restored_state).into_iter().zip(buffers(&test_run.trained_state())) {
        assert_eq!(restored, saved);
    }
    // A checkpoint is a model folder: other commands and runs can read it.
    let models = weights::model_folder::ModelFolder::open(fetched.path()).unwrap();
    assert_eq!(models.manifest().vocabulary, test_run.weight_sources.captioner_vocabulary.to_manifest());
}

#[test]
fn ranks_other_than_the_writer_write_no_files() {
    let test_run = TestRun::new();
    let snapshot = Snapshot::take(&test_run.trained_state(), &test_run.run, &test_run.weight_sources, None).unwrap();
    test_run.save(&snapshot);
    assert_eq!(test_run.checkpoints.list().unwrap(), checkpoint_store::Listing::default());
}

#[test]
fn damaged_and_unreachable_checkpoints_have_different_errors() {
    let test_run = TestRun::new();
    let state = test_run.trained_state();
    test_run.save(&Snapshot::take(&state, &test_run.run, &test_run.weight_sources, Some(checkpoint_origin())).unwrap());
    let files: Vec<_> =
        std::fs::read_dir(test_run.folder.path().join(NAME)).unwrap().map(|e| e.unwrap().path()).collect();
    // Three models, moments, manifest, metadata and seal.
    assert_eq!(files.len(), 7, "{files:?}");
    for file in files {
        let content = std::fs::read(&file).unwrap();
        let mut flipped = content.clone();
        flipped[content.len() / 3] ^= 1;
        for damaged in [&flipped, &content[..content.len() - 1]] {
            std::fs::write(&file, damaged).unwrap();
            let Err(DirectiveError::UnusableCheckpoint { checkpoint, reason }) =
                fetch_checkpoint(&test_run.checkpoints, NAME)
            else {
                panic!("{file:?}")
            };
            assert_eq!(checkpoint, NAME);
            assert!(reason.contains(file.file_name().unwrap().to_str().unwrap()), "{reason}");
        }
        std::fs::write(&file, content).unwrap();
    }
    assert!(fetch_checkpoint(&test_run.checkpoints, NAME).is_ok());
    assert!(matches!(
        fetch_checkpoint(&test_run.checkpoints, "1-dico-00000009"),
        Err(DirectiveError::UnusableCheckpoint { .. })
    ));
    assert!(matches!(fetch_checkpoint(&test_run.checkpoints, "../run"), Err(DirectiveError::Fatal(_))));
    let seal = test_run.folder.path().join(NAME).join("checkpoint.json");
    std::fs::remove_file(&seal).unwrap();
    // A symbolic link to itself is an I/O error, not damage.
    std::os::unix::fs::symlink(&seal, &seal).unwrap();
    assert!(matches!(
        fetch_checkpoint(&test_run.checkpoints, NAME),
        Err(DirectiveError::Collective(CollectiveError::Failed(_)))
    ));
}

#[test]
fn a_checkpoint_of_another_vocabulary_or_stage_is_refused() {
    let test_run = TestRun::new();
    test_run.save(
        &Snapshot::take(&test_run.trained_state(), &test_run.run, &test_run.weight_sources, Some(checkpoint_origin()))
            .unwrap(),
    );
    let fetched = test_run.checkpoints.read(NAME).unwrap();
    let saved = test_run.checkpoints.metadata(NAME).unwrap();
    let refusal = |run: &RunFile, weight_sources: &WeightSources| {
        restore_state(&mut test_run.initial_state(), run, weight_sources, fetched.path(), &saved)
            .unwrap_err()
            .to_string()
    };
    let other = WeightSources::open(&test_run.run, Vocabulary::of_corpus(["a blue square"])).unwrap();
    assert!(refusal(&test_run.run, &other).contains("another vocabulary"));
    let mut renamed = test_run.run.clone();
    renamed.stages[1].name = "other".into();
    assert!(refusal(&renamed, &test_run.weight_sources).contains("no stage dico"));
}

#[test]
fn an_intact_checkpoint_of_another_state_is_refused() {
    let test_run = TestRun::new();
    let sha256 = test_run.save(
        &Snapshot::take(&test_run.trained_state(), &test_run.run, &test_run.weight_sources, Some(checkpoint_origin()))
            .unwrap(),
    );
    let saved = test_run.checkpoints.metadata(NAME).unwrap();
    assert_eq!(
        (saved.generation, &saved.journal, saved.sequence),
        (4, &checkpoint_origin().journal, checkpoint_origin().sequence)
    );
    let rendezvous = |run_id: &str, name: &str, stage, step, checkpoint_sha256: &str| v1::Rendezvous {
        checkpoint: name.into(),
        checkpoint_run_id: run_id.into(),
        checkpoint_sha256: checkpoint_sha256.into(),
        position: Some(v1::Position { stage, step, generation: 9 }),
        ..Default::default()
    };
    assert_eq!(metadata_mismatch(&saved, &rendezvous(RUN_ID, NAME, 1, 3, &sha256)), None);
    for (rendezvous, expected) in [
        (rendezvous("77", NAME, 1, 3, &sha256), "another run: 3fa2"),
        (rendezvous(RUN_ID, "1-dico-00000006", 1, 3, &sha256), "saved as 1-dico-00000003"),
        (rendezvous(RUN_ID, NAME, 1, 6, &sha256), "stage 1 step 3, not stage 1 step 6"),
        (rendezvous(RUN_ID, NAME, 0, 3, &sha256), "stage 1 step 3, not stage 0 step 3"),
        (rendezvous(RUN_ID, NAME, 1, 3, "00"), "the journal has 00"),
        (rendezvous(RUN_ID, NAME, 1, 3, ""), "the journal has "),
    ] {
        let reason = metadata_mismatch(&saved, &rendezvous).unwrap();
        assert!(reason.contains(expected), "{reason}");
    }
    // Metadata of format 2 have no id of the run and no name, nor has a migrated journal for them.
    let earlier = CheckpointMetadata { format: 2, run_id: String::new(), checkpoint: String::new(), ..saved };
    assert_eq!(metadata_mismatch(&earlier, &rendezvous("", NAME, 1, 3, &sha256)), None);
    for (rendezvous, expected) in [
        (rendezvous(RUN_ID, NAME, 1, 3, &sha256), "another run"),
        (rendezvous("", NAME, 1, 6, &sha256), "stage 1 step 3, not stage 1 step 6"),
        (rendezvous("", NAME, 1, 3, "00"), "the journal has 00"),
    ] {
        let reason = metadata_mismatch(&earlier, &rendezvous).unwrap();
        assert!(reason.contains(expected), "{reason}");
    }
    let nameless = CheckpointMetadata { format: METADATA_FORMAT, ..earlier };
    assert!(metadata_mismatch(&nameless, &rendezvous("", NAME, 1, 3, &sha256)).is_some());
}

#[test]
fn only_moments_of_trained_parameters_are_saved() {
    let stage = |name: &str, trainable: &str| {
        format!(
            "  - {{ name: {name}, objective: {{ contrastive: {{ trainable: {trainable} }} }}, steps: 9, batch: 4, \
             optimizer: {{ learning_rate: 1.0e-3 }} }}\n"
        )
    };
    let stages = [("all", "all"), ("projections", "projections"), ("factors", "{ lora: { rank: 2, targets: [mlp] } }")];
    let stages: String = stages.map(|(name, trainable)| stage(name, trainable)).concat();
    let head = RUN.split_once("stages:\n").unwrap().0;
    let test_run = TestRun::from_text(&format!("{head}stages:\n{stages}"));
    let is_factor = |name: &str| weights::clip::is_lora_factor(name);
    let is_projection = |name: &str| ["visual.proj", "text_projection"].contains(&name);
    for (stage, is_trained) in [
        (0, &(|name: &str| !is_factor(name) && name != weights::clip::LORA_ALPHA) as &dyn Fn(&str) -> bool),
        (1, &is_projection),
        (2, &is_factor),
    ] {
        let mut state = test_run.initial_state();
        state.enter_stage(&test_run.run, stage);
        fill_with_distinct_values(&state);
        let name = format!("{stage}-00000003");
        let position = v1::Position { stage: stage as u32, step: 3, generation: 4 };
        let origin = CheckpointOrigin { position, ..checkpoint_origin() };
        let snapshot = Snapshot::take(&state, &test_run.run, &test_run.weight_sources, Some(origin)).unwrap();
        snapshot.write(&test_run.checkpoints, &name, &snapshot.parameters_sha256()).unwrap();

        let fetched = test_run.checkpoints.read(&name).unwrap();
        let evaluator = Archive::open(&fetched.path().join(model_file_name("evaluator"))).unwrap();
        let moments = Archive::open(&fetched.path().join(OPTIMIZER_FILE)).unwrap();
        let all: Vec<&str> = evaluator.names().collect();
        let expected = MOMENT_PREFIXES
            .into_iter()
            .flat_map(|moment| all.iter().filter(|name| is_trained(name)).map(move |name| format!("{moment}.{name}")));
        let expected: Vec<String> = expected.collect();
        // Two moments per trained tensor; some tensors are not trained.
        assert!(expected.len() >= 4 && all.len() > expected.len() / 2);
        assert_eq!(moments.names().collect::<Vec<_>>(), expected);

        let mut restored_state = test_run.initial_state();
        let metadata = test_run.checkpoints.metadata(&name).unwrap();
        restore_state(&mut restored_state, &test_run.run, &test_run.weight_sources, fetched.path(), &metadata).unwrap();
        assert_eq!(restored_state.parameters_sha256(), state.parameters_sha256());
        for (restored, saved) in buffers(&restored_state).into_iter().zip(buffers(&state)) {
            assert_eq!(restored, saved);
        }
    }
}
