//! Tests of a state's way to a snapshot, to a folder, and back to a state.

use std::path::Path;

use checkpoint_store::{JournalHead, Sequence};
use object_io::Access;
use tch::{Device, no_grad};

use super::*;
use crate::trainer::snapshot::{Origin, Snapshot};

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
  - { name: dico, objective: dico, dico: { reward: { cider: 1 } }, steps: 9, batch: 4, optimizer: { learning_rate: 1.0e-3 } }
";
const NAME: &str = "1-dico-00000003";
const RUN_ID: &str = "3fa2";

struct Place {
    run: RunFile,
    sources: WeightSources,
    checkpoints: Checkpoints,
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self::of(RUN)
    }

    fn of(run: &str) -> Self {
        let run = RunFile::parse(Path::new("test.yaml"), run).unwrap();
        let sources = WeightSources::open(&run, Vocabulary::of_corpus(["a red circle"])).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::open(folder.path().to_str().unwrap(), &Access::environment()).unwrap();
        Self { run, sources, checkpoints, folder }
    }

    fn start(&self) -> State {
        State::new(&self.run, &self.sources, Device::Cpu).unwrap()
    }

    /// A state in the second stage whose values all differ from the initial ones.
    fn trained(&self) -> State {
        let mut state = self.start();
        state.enter_stage(&self.run, 1);
        state.position = Some(v1::Position { stage: 1, step: 3, generation: 4 });
        for (at, buffer) in buffers(&state).into_iter().enumerate() {
            fill(buffer, at as f64 + 0.25);
        }
        state
    }

    fn save(&self, snapshot: &Snapshot) -> String {
        let sha256 = snapshot.parameters_sha256();
        snapshot.write(&self.checkpoints, NAME, &sha256).unwrap();
        sha256
    }
}

fn origin() -> Origin {
    let journal = JournalHead { sequence: 17, hash: "ab".repeat(32) };
    Origin { run_id: RUN_ID.to_owned(), generation: 4, journal, sequence: Sequence { step: 2, epoch: 1 } }
}

fn buffers(state: &State) -> Vec<&Tensor> {
    let models = state.own().map(|(_, parameters)| parameters.flat());
    models.chain([&state.optimizer.first, &state.optimizer.second]).collect()
}

fn fill(buffer: &Tensor, value: f64) {
    no_grad(|| _ = buffer.shallow_clone().fill_(value));
}

#[test]
fn a_snapshot_is_not_changed_by_training_that_goes_on() {
    let place = Place::new();
    let mut state = place.trained();
    let whole = Snapshot::take(&state, &place.run, &place.sources, Some(origin())).unwrap();
    let hashed = Snapshot::take(&state, &place.run, &place.sources, None).unwrap();
    let sha256 = state.parameters_sha256();

    buffers(&state).into_iter().for_each(|buffer| fill(buffer, -1.0));
    state.enter_stage(&place.run, 0);
    assert_ne!(state.parameters_sha256(), sha256);
    assert_eq!((whole.parameters_sha256(), hashed.parameters_sha256()), (sha256.clone(), sha256.clone()));

    place.save(&whole);
    let mut back = place.start();
    let fetched = place.checkpoints.read(NAME).unwrap();
    restore(&mut back, &place.run, &place.sources, fetched.path(), &place.checkpoints.stamp(NAME).unwrap()).unwrap();
    assert_eq!(back.parameters_sha256(), sha256);
    assert_eq!(back.position, Some(v1::Position { stage: 1, step: 3, generation: 0 }));
    for (back, was) in buffers(&back).into_iter().zip(buffers(&place.trained())) {
        assert_eq!(back, was);
    }
    // The model folder, for captioning, export and other runs.
    let models = weights::folder::Folder::open(fetched.path()).unwrap();
    assert_eq!(models.manifest().vocabulary, place.sources.captioner_vocabulary.to_stored());
}

#[test]
fn ranks_that_do_not_write_leave_nothing() {
    let place = Place::new();
    let snapshot = Snapshot::take(&place.trained(), &place.run, &place.sources, None).unwrap();
    place.save(&snapshot);
    assert_eq!(place.checkpoints.list().unwrap(), checkpoint_store::Listing::default());
}

#[test]
fn a_damaged_checkpoint_is_named_and_told_from_one_that_cannot_be_reached() {
    let place = Place::new();
    let state = place.trained();
    place.save(&Snapshot::take(&state, &place.run, &place.sources, Some(origin())).unwrap());
    let files: Vec<_> = std::fs::read_dir(place.folder.path().join(NAME)).unwrap().map(|e| e.unwrap().path()).collect();
    // Three models, moments, manifest, stamp and seal.
    assert_eq!(files.len(), 7, "{files:?}");
    for file in files {
        let content = std::fs::read(&file).unwrap();
        let mut flipped = content.clone();
        flipped[content.len() / 3] ^= 1;
        for damaged in [&flipped, &content[..content.len() - 1]] {
            std::fs::write(&file, damaged).unwrap();
            let Err(Stop::Damaged { checkpoint, reason }) = fetch(&place.checkpoints, NAME) else { panic!("{file:?}") };
            assert_eq!(checkpoint, NAME);
            assert!(reason.contains(file.file_name().unwrap().to_str().unwrap()), "{reason}");
        }
        std::fs::write(&file, content).unwrap();
    }
    assert!(fetch(&place.checkpoints, NAME).is_ok());
    assert!(matches!(fetch(&place.checkpoints, "1-dico-00000009"), Err(Stop::Damaged { .. })));
    assert!(matches!(fetch(&place.checkpoints, "../run"), Err(Stop::Fatal(_))));
    let seal = place.folder.path().join(NAME).join("checkpoint.json");
    std::fs::remove_file(&seal).unwrap();
    // A symbolic link to itself is an I/O error, not damage.
    std::os::unix::fs::symlink(&seal, &seal).unwrap();
    assert!(matches!(fetch(&place.checkpoints, NAME), Err(Stop::CollectiveError(CollectiveError::Failed(_)))));
}

#[test]
fn what_is_whole_but_does_not_fit_is_refused() {
    let place = Place::new();
    place.save(&Snapshot::take(&place.trained(), &place.run, &place.sources, Some(origin())).unwrap());
    let fetched = place.checkpoints.read(NAME).unwrap();
    let saved = place.checkpoints.stamp(NAME).unwrap();
    let refusal = |run: &RunFile, sources: &WeightSources| {
        restore(&mut place.start(), run, sources, fetched.path(), &saved).unwrap_err()
    };
    let other = WeightSources::open(&place.run, Vocabulary::of_corpus(["a blue square"])).unwrap();
    assert!(refusal(&place.run, &other).contains("another vocabulary"));
    let mut renamed = place.run.clone();
    renamed.stages[1].name = "other".into();
    assert!(refusal(&renamed, &place.sources).contains("no stage dico"));
}

#[test]
fn what_is_whole_but_another_state_is_seen() {
    let place = Place::new();
    let sha256 = place.save(&Snapshot::take(&place.trained(), &place.run, &place.sources, Some(origin())).unwrap());
    let saved = place.checkpoints.stamp(NAME).unwrap();
    assert_eq!((saved.generation, &saved.journal, saved.sequence), (4, &origin().journal, origin().sequence));
    let order = |run_id: &str, name: &str, stage, step, checkpoint_sha256: &str| v1::Rendezvous {
        checkpoint: name.into(),
        checkpoint_run_id: run_id.into(),
        checkpoint_sha256: checkpoint_sha256.into(),
        position: Some(v1::Position { stage, step, generation: 9 }),
        ..Default::default()
    };
    assert_eq!(difference(&saved, &order(RUN_ID, NAME, 1, 3, &sha256)), None);
    for (order, expected) in [
        (order("77", NAME, 1, 3, &sha256), "another run: 3fa2"),
        (order(RUN_ID, "1-dico-00000006", 1, 3, &sha256), "saved as 1-dico-00000003"),
        (order(RUN_ID, NAME, 1, 6, &sha256), "stage 1 step 3, not stage 1 step 6"),
        (order(RUN_ID, NAME, 0, 3, &sha256), "stage 1 step 3, not stage 0 step 3"),
        (order(RUN_ID, NAME, 1, 3, "00"), "the journal has 00"),
        (order(RUN_ID, NAME, 1, 3, ""), "the journal has "),
    ] {
        let reason = difference(&saved, &order).unwrap();
        assert!(reason.contains(expected), "{reason}");
    }
}

#[test]
fn of_what_a_stage_does_not_train_no_moments_are_saved() {
    let stage = |name: &str, trainable: &str| {
        format!(
            "  - {{ name: {name}, objective: contrastive, contrastive: {{ trainable: {trainable} }}, steps: 9, batch: 4, \
             optimizer: {{ learning_rate: 1.0e-3 }} }}\n"
        )
    };
    let stages = [("all", "all"), ("parts", "projections"), ("factors", "{ lora: { rank: 2, targets: [mlp] } }")];
    let stages: String = stages.map(|(name, trainable)| stage(name, trainable)).concat();
    let head = RUN.split_once("stages:\n").unwrap().0;
    let place = Place::of(&format!("{head}stages:\n{stages}"));
    let is_factor = |name: &str| weights::clip::is_lora_factor(name);
    let is_projection = |name: &str| ["visual.proj", "text_projection"].contains(&name);
    for (at, is_trained) in [
        (0, &(|name: &str| !is_factor(name) && name != weights::clip::LORA_ALPHA) as &dyn Fn(&str) -> bool),
        (1, &is_projection),
        (2, &is_factor),
    ] {
        let mut state = place.start();
        state.enter_stage(&place.run, at);
        state.position = Some(v1::Position { stage: at as u32, step: 3, generation: 4 });
        buffers(&state).into_iter().enumerate().for_each(|(at, buffer)| fill(buffer, at as f64 + 0.25));
        let name = format!("{at}-00000003");
        let snapshot = Snapshot::take(&state, &place.run, &place.sources, Some(origin())).unwrap();
        snapshot.write(&place.checkpoints, &name, &snapshot.parameters_sha256()).unwrap();

        let fetched = place.checkpoints.read(&name).unwrap();
        let evaluator = Archive::open(&fetched.path().join(file_name("evaluator"))).unwrap();
        let moments = Archive::open(&fetched.path().join(OPTIMIZER)).unwrap();
        let all: Vec<&str> = evaluator.names().collect();
        let expected = MOMENTS
            .into_iter()
            .flat_map(|moment| all.iter().filter(|name| is_trained(name)).map(move |name| format!("{moment}.{name}")));
        let expected: Vec<String> = expected.collect();
        assert!(expected.len() >= 4 && all.len() > expected.len() / 2);
        assert_eq!(moments.names().collect::<Vec<_>>(), expected);

        let mut back = place.start();
        let stamp = place.checkpoints.stamp(&name).unwrap();
        restore(&mut back, &place.run, &place.sources, fetched.path(), &stamp).unwrap();
        assert_eq!(back.parameters_sha256(), state.parameters_sha256());
        for (back, was) in buffers(&back).into_iter().zip(buffers(&state)) {
            assert_eq!(back, was);
        }
    }
}
