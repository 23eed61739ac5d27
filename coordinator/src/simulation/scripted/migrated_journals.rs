//! Journals that commit e9add16 wrote, of version 3, are migrated, and their runs continue to the
//! end. The README of `coordinator/tests/journals-of-version-3` describes the journals.

use std::path::{Path, PathBuf};

use config::{CutCandidates, RunFile, TextReading};
use dico_engine::{
    Outcome,
    lineage::BranchPoints,
    plan::{Boundary, Position},
    restored::RestoredRun,
};
use journal::{AcceptedChanges, Error, Journal, ReadOnlyJournal};
use rusqlite::Connection;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{
    audit::audit,
    simulation::{cluster::Cluster, scenario::Scenario},
};

/// The names of the journals, for each of the stages in which a run can be stopped.
const NAMES: [&str; 13] = [
    "adopted",
    "early-stopped",
    "failures-killed",
    "finished",
    "first-stage",
    "first-stage-killed",
    "paused",
    "paused-before-the-start",
    "paused-by-guard-and-resumed",
    "rolled-back",
    "second-stage",
    "stage-end",
    "stage-end-killed",
];

/// A journal of version 3 in a folder of its own.
struct EarlierJournal {
    folder: tempfile::TempDir,
    /// What the coordinator that wrote the journal would have restored, and the salt of its
    /// simulation.
    expected: Value,
}

impl EarlierJournal {
    fn load(name: &str) -> Self {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/journals-of-version-3");
        let read = |extension: &str| std::fs::read_to_string(source.join(name).with_extension(extension)).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let journal = Self { folder, expected: serde_json::from_str(&read("json")).unwrap() };
        journal.connection().execute_batch(&read("sql")).unwrap();
        journal
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("journal.sqlite")
    }

    fn connection(&self) -> Connection {
        Connection::open(self.path()).unwrap()
    }

    /// The recorded run file, with the present defaults of the settings that version 3 did not
    /// have.
    fn run_file(&self) -> RunFile {
        let query = "SELECT run_file_json FROM run";
        let json: String = self.connection().query_row(query, [], |row| row.get(0)).unwrap();
        serde_json::from_str(&json).unwrap()
    }

    /// The recorded run file, with the values by which version 3 trained.
    fn completed_run_file(&self) -> RunFile {
        let mut file = self.run_file();
        file.captioner.max_target_length = 30;
        let evaluator = file.evaluator.as_mut().unwrap();
        (evaluator.cut_candidates, evaluator.text) = (CutCandidates::Closed, TextReading::AsIs);
        file
    }

    fn open(&self) -> Result<Journal, Error> {
        Journal::open(self.folder.path(), &self.completed_run_file())
    }

    /// The message with which the journal is refused. Asserts that it is one line, and that the
    /// journal stays as it is.
    fn refusal(&self, file: &RunFile) -> String {
        let before = contents(&self.connection());
        let message = Journal::open(self.folder.path(), file).unwrap_err().to_string();
        assert_eq!(contents(&self.connection()), before, "{message}");
        assert!(!message.contains('\n'), "{message}");
        message
    }
}

/// The version, the tables and all rows of a database, as text.
fn contents(connection: &Connection) -> Vec<String> {
    let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
    let schema = "SELECT name, sql FROM sqlite_schema ORDER BY name";
    let mut contents = vec![version.to_string()];
    let names = "SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name";
    let names: Vec<String> =
        connection.prepare(names).unwrap().query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
    for query in std::iter::once(schema.to_owned()).chain(names.iter().map(|name| format!("SELECT * FROM {name}"))) {
        let mut statement = connection.prepare(&query).unwrap();
        let columns = statement.column_count();
        let mut rows = statement.query([]).unwrap();
        while let Some(row) = rows.next().unwrap() {
            contents.push(format!("{:?}", (0..columns).map(|column| row.get_ref(column).unwrap()).collect::<Vec<_>>()));
        }
    }
    contents
}

/// A restored run in the form in which the fixtures have it.
fn description(restored: &RestoredRun) -> Value {
    let position = |position: &Position| json!([position.stage, position.step]);
    let boundaries = |kind: Boundary| -> Value {
        restored.passed_boundaries.iter().filter(|(_, other)| *other == kind).map(|(at, _)| position(at)).collect()
    };
    let checkpoint = |checkpoint: &dico_engine::checkpoint::Checkpoint| {
        json!({
            "position": position(&checkpoint.position),
            "generation": checkpoint.generation,
            "name": checkpoint.name,
            "parameters_sha256": checkpoint.parameters_sha256,
        })
    };
    let data_set = restored.data_set.as_ref().map(|data_set| {
        json!({
            "train_images": data_set.train_images,
            "train_captions": data_set.train_captions,
            "skipped_images": data_set.skipped_images,
            "validation_images": data_set.validation_images,
        })
    });
    json!({
        "last_generation": restored.last_generation,
        "committed": position(&restored.committed),
        "checkpoints": restored.checkpoints.iter().map(checkpoint).collect::<Value>(),
        "saved": boundaries(Boundary::Checkpoint),
        "evaluated": boundaries(Boundary::Evaluation),
        "scores": restored.scores.iter().map(|(at, scores)| json!([position(at), scores])).collect::<Value>(),
        "stage_ends": restored.selected_steps.iter().map(|(stage, step)| json!([stage, step])).collect::<Value>(),
        "pause_reason": restored.pause_reason,
        "data_set": data_set,
        "is_finished": restored.is_finished,
    })
}

#[test]
fn each_run_is_restored_as_the_coordinator_that_wrote_it_would_have_restored_it() {
    for name in NAMES {
        let earlier = EarlierJournal::load(name);
        let mut expected = earlier.expected["restored"].clone();
        let branch_points = expected.as_object_mut().unwrap().remove("branch_points").unwrap();
        let restored = earlier.open().unwrap_or_else(|error| panic!("{name}: {error}")).restore().unwrap();
        assert_eq!(description(&restored), expected, "{name}");
        let mut points = BranchPoints::default();
        for point in branch_points.as_array().unwrap() {
            let number = |index: usize| point[index].as_u64().unwrap();
            points.add(number(0), Position { stage: number(1) as u32, step: number(2) });
        }
        assert_eq!(restored.branch_points, points, "{name}");
        // What version 3 did not have.
        assert!(!restored.run_id.is_empty());
        assert!(restored.checkpoints.iter().all(|checkpoint| checkpoint.run_id.is_empty()));
        for generation in 1..=restored.last_generation {
            assert_eq!(restored.term_log.term_of(generation), Some(0), "{name}");
        }
        assert_eq!((restored.rollbacks, restored.data_changes), Default::default(), "{name}");
        // The coordinator ended before it recorded the deletion of the last state of its stage,
        // which is kept now.
        let kept: &[&str] = if name == "stage-end-killed" { &["0-xe-00000012"] } else { &[] };
        let superseded: Vec<&str> = restored.superseded_checkpoints.iter().map(|saved| saved.name.as_str()).collect();
        assert_eq!(superseded, kept, "{name}");
        if let Some(data_set) = restored.data_set {
            assert_eq!(data_set.training_fingerprint + &data_set.models_fingerprint, "");
        }
    }
}

#[test]
fn each_run_continues_to_its_end_and_its_audit_is_clean() {
    for name in NAMES {
        let earlier = EarlierJournal::load(name);
        let salt = earlier.expected["salt"].as_u64().unwrap();
        let scenario =
            Scenario { salt, decodable_image_stride: 25, ..Scenario::without_faults(earlier.completed_run_file()) };
        let mut cluster = Cluster::from_journal(earlier.folder.path(), scenario);
        if cluster.invariants.is_paused {
            cluster.resume();
        }
        if name != "finished" {
            cluster.start_member();
        }
        cluster.run_until(|cluster| cluster.outcome.is_some());
        assert_eq!(cluster.outcome, Some(Outcome::Finished), "{name}");
        cluster.check_end();
        let samples: u64 = cluster.committed_positions().iter().map(|position| batch(&cluster, position)).sum();
        let audit = audit(&cluster.take_journal()).unwrap();
        assert!(audit.clean && audit.finished, "{name}: {audit:?}");
        // Steps beyond a selected state count as trained, too.
        let not_selected = audit.selections.iter().map(|selection| (selection.trained - selection.step) * 8);
        assert_eq!(audit.samples.committed, samples + not_selected.sum::<u64>(), "{name}");
        assert_eq!((audit.samples.missing, audit.samples.repeated), (0, 0), "{name}");
    }
}

/// The batch size of the step that reached a position.
fn batch(cluster: &Cluster, position: &Position) -> u64 {
    cluster.scenario.file.stages[position.stage as usize].batch.into()
}

#[test]
fn records_with_another_form_are_converted() {
    let earlier = EarlierJournal::load("failures-killed");
    let old = earlier.connection();
    let texts = |connection: &Connection, query: &str| -> Vec<String> {
        let mut statement = connection.prepare(query).unwrap();
        statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    };
    let sources = texts(&old, "SELECT source FROM generations ORDER BY number");
    let moves = "SELECT detail_json ->> '$.source' FROM events WHERE kind IN ('rollback', 'adopted') ORDER BY rowid";
    let moves = texts(&old, moves);
    assert!(sources.iter().chain(&moves).any(|source| source.starts_with("checkpoint ")), "{sources:?} {moves:?}");
    drop(old);
    drop(earlier.open().unwrap());
    let new = earlier.connection();
    let renamed = |sources: Vec<String>| -> Vec<String> {
        sources.into_iter().map(|source| source.replacen("rank ", "worker ", 1)).collect()
    };
    assert_eq!(texts(&new, "SELECT source FROM generations ORDER BY number"), renamed(sources));
    assert_eq!(texts(&new, "SELECT source FROM history_moves ORDER BY number"), renamed(moves));

    for (name, cause) in
        [("stage-end-killed", "best_state"), ("early-stopped", "early_stopping"), ("rolled-back", "guard")]
    {
        let earlier = EarlierJournal::load(name);
        drop(earlier.open().unwrap());
        assert_eq!(texts(&earlier.connection(), "SELECT cause FROM stage_ends"), [cause], "{name}");
    }
}

#[test]
fn the_journal_before_the_migration_is_kept_and_the_event_names_it() {
    let earlier = EarlierJournal::load("second-stage");
    let before = contents(&earlier.connection());
    // An interrupted migration and a journal that was refused have left copies.
    let copy = earlier.folder.path().join("journal.sqlite.version-3");
    std::fs::write(&copy, "a journal that was refused").unwrap();
    std::fs::write(copy.with_extension("version-3.partial"), "a part").unwrap();
    let records: i64 = {
        let count = "SELECT 1 + (SELECT count(*) + count(ready_at) + count(ended_at) FROM generations)
            + (SELECT count(*) FROM steps) + (SELECT count(*) + count(deleted) FROM checkpoints)
            + (SELECT count(*) FROM evaluations) + (SELECT count(*) FROM events)";
        earlier.connection().query_row(count, [], |row| row.get(0)).unwrap()
    };
    let journal = earlier.open().unwrap().into_read_only();
    assert_eq!(contents(&Connection::open(&copy).unwrap()), before);
    let event = journal.events().unwrap().pop().unwrap();
    assert_eq!(event.kind, "migrated");
    let sha256 = format!("{:x}", Sha256::digest(std::fs::read(&copy).unwrap()));
    let expected = json!({
        "from_version": 3,
        "to_version": 7,
        "copy": "journal.sqlite.version-3",
        "copy_sha256": sha256,
        "records_without_hash": records,
    });
    assert_eq!(event.detail, expected);
    let mut files: Vec<_> =
        std::fs::read_dir(earlier.folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    files.sort();
    assert!(!files.iter().any(|name| name.to_string_lossy().contains("partial")), "{files:?}");
}

#[test]
fn the_run_file_has_to_keep_the_values_by_which_version_3_trained() {
    let earlier = EarlierJournal::load("second-stage");
    let Err(Error::Settings(error)) = Journal::open(earlier.folder.path(), &earlier.run_file()) else { panic!() };
    let explanation = error.explanation();
    for change in [
        "captioner.max_target_length: 30 -> 77",
        r#"evaluator.cut_candidates: "closed" -> "as_released""#,
        r#"evaluator.text: "as_is" -> "clip_tokenize""#,
        "restore the old values",
    ] {
        assert!(explanation.contains(change), "{explanation}");
    }
    let open = |accept| Journal::open_with_changes(earlier.folder.path(), &earlier.completed_run_file(), accept);
    drop(open(AcceptedChanges::Free).unwrap());
    assert_eq!(ReadOnlyJournal::open(earlier.folder.path()).unwrap().run_file().unwrap(), earlier.completed_run_file());
}

/// Changes of a journal, each with a part of the message with which it is refused.
const CONTRADICTIONS: [(&str, &str); 14] = [
    ("DELETE FROM steps WHERE (stage, step) = (0, 7)", "has stage 0 step 8 after stage 0 step 6"),
    ("UPDATE steps SET step = 99 WHERE (stage, step) = (1, 2)", "after stage 1"),
    ("UPDATE steps SET generation = 40 WHERE (stage, step) = (1, 2)", "generation 40, which was never formed"),
    ("UPDATE steps SET loss = 'x' WHERE step = 3", "steps.loss has an invalid value"),
    ("UPDATE steps SET summaries_json = '{' WHERE step = 3", "steps.summaries_json has an invalid value"),
    ("UPDATE evaluations SET metrics_json = CAST(x'ff' AS TEXT)", "evaluations.metrics_json has an invalid value"),
    ("DELETE FROM evaluations", "has captions, but no scores"),
    ("DELETE FROM generations WHERE number = 1", "generation 1 is missing"),
    ("UPDATE generations SET step = 3 WHERE number = 2", "generation 2 starts at stage 0 step 3"),
    ("UPDATE run SET seed = 7", "name or seed"),
    ("UPDATE run SET run_file_json = '{}'", "its run file: missing field"),
    ("DELETE FROM run", "it has 0 run files"),
    ("UPDATE events SET detail_json = '{}' WHERE kind = 'joined'", "of the kind joined lacks a part"),
    ("CREATE TABLE more (x)", "its tables are not those of version 3"),
];

#[test]
fn a_journal_that_contradicts_itself_is_refused() {
    for (change, expected) in CONTRADICTIONS {
        let earlier = EarlierJournal::load("failures-killed");
        let file = earlier.completed_run_file();
        earlier.connection().execute_batch(change).unwrap();
        let message = earlier.refusal(&file);
        let path = earlier.path();
        for words in [path.to_str().unwrap(), "version 3 cannot be migrated", expected, "restore an intact copy"] {
            assert!(message.contains(words), "{change}: {message}");
        }
    }
}

#[test]
fn a_journal_with_a_changed_byte_is_refused_or_its_records_are_whole() {
    let intact = EarlierJournal::load("first-stage");
    let file = intact.completed_run_file();
    let bytes = std::fs::read(intact.path()).unwrap();
    let mut refused = 0;
    for index in (0..bytes.len()).step_by(503) {
        let folder = tempfile::tempdir().unwrap();
        let mut changed = bytes.clone();
        changed[index] ^= 0x55;
        std::fs::write(folder.path().join("journal.sqlite"), changed).unwrap();
        match Journal::open(folder.path(), &file) {
            Err(error) => {
                assert!(!error.to_string().contains('\n'), "byte {index}: {error}");
                refused += 1;
            }
            // The byte is unused, or is a part of a value that nothing else depends on.
            Ok(journal) => {
                let journal = journal.into_read_only();
                assert_eq!(journal.verify().unwrap().count, 0, "byte {index}");
                assert!(audit(&journal).is_ok(), "byte {index}");
            }
        }
    }
    assert!(refused > 0);
}

#[test]
fn a_run_within_a_stage_that_rewards_cider_is_refused() {
    let reward_cider = "UPDATE run SET run_file_json = json_set(run_file_json, '$.stages[1].objective', 'scst',
        '$.stages[1].scst.reward', json('{\"cider\":1.0}'))";
    let load = |name: &str| {
        let earlier = EarlierJournal::load(name);
        earlier.connection().execute_batch(reward_cider).unwrap();
        earlier
    };
    let earlier = load("second-stage");
    let message = earlier.refusal(&earlier.completed_run_file());
    assert!(message.contains("stage dico rewards CIDEr-D, which counts the end token now"), "{message}");
    // The stage has not begun, or is over.
    for name in ["first-stage", "stage-end", "finished"] {
        assert!(load(name).open().is_ok(), "{name}");
    }
}

#[test]
fn versions_between_those_that_are_migrated_are_refused() {
    let earlier = EarlierJournal::load("first-stage");
    for version in [1, 2, 4, 5, 8] {
        earlier.connection().pragma_update(None, "user_version", version).unwrap();
        let message = earlier.refusal(&earlier.completed_run_file());
        let found = format!("the journal has version {version}, this program reads and writes version 7");
        assert!(message.contains(&found) && message.contains("migrates versions 3 and 6"), "{message}");
    }
}
