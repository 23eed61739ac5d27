//! Changed settings: compares the run file with the one in the journal, and records or refuses the
//! changes.

use config::{Mutability, RunFile, changes, continuation};
use dico_engine::{event_kind::EventKind, restored::RestoredRun};
use serde_json::json;

use super::{
    AcceptedChanges, Error, Journal, SettingsError,
    write::{now, write_event, write_run_file, write_settings_change},
};

impl Journal {
    /// Replaces the `recorded` run file (JSON) by `file` and records the changes, if `accept`
    /// allows all of them or the run has no generation yet.
    pub(super) fn apply_settings(
        &mut self,
        recorded: &str,
        file: &RunFile,
        accept: AcceptedChanges,
    ) -> Result<(), Error> {
        let recorded: RunFile = serde_json::from_str(recorded).map_err(|error| Error::RunFile(error.to_string()))?;
        let changes = changes(&recorded, file);
        if changes.is_empty() {
            return Ok(());
        }
        let restored = self.restore()?;
        let strictest_allowed = match accept {
            AcceptedChanges::Free => Mutability::Free,
            AcceptedChanges::NextStep => Mutability::NextStep,
        };
        // All settings may change before the first generation: nothing is trained yet.
        let has_begun = restored.last_generation > 0;
        if has_begun && changes.iter().any(|change| change.mutability > strictest_allowed) {
            let continuation = last_checkpoint(&recorded, &restored).map(|path| continuation(&recorded, &path));
            return Err(Error::Settings(Box::new(SettingsError { changes, continuation })));
        }
        let position = restored.committed;
        let detail = json!({ "stage": position.stage, "step": position.step, "changes": changes });
        let (transaction, mut chain) = (self.connection.transaction()?, self.chain.clone());
        write_run_file(&transaction, &mut chain, file, &restored.run_id)?;
        write_settings_change(&transaction, &mut chain, position, &detail["changes"], now())?;
        write_event(&transaction, &mut chain, EventKind::SettingsChanged.name(), &detail)?;
        transaction.commit()?;
        self.chain = chain;
        for change in &changes {
            tracing::info!(from = %position, "setting changed: {change}");
        }
        Ok(())
    }
}

/// The folder or URL of the run's last checkpoint.
fn last_checkpoint(file: &RunFile, restored: &RestoredRun) -> Option<String> {
    let location = file.checkpoint_location();
    let name = &restored.checkpoints.last()?.name;
    Some(format!("{}/{name}", location.strip_prefix("file://").unwrap_or(&location)))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use rusqlite::Connection;

    use super::*;
    use crate::journal::read_only::ReadOnlyJournal;
    use config::testing;
    use dico_engine::plan::Position;
    use dico_engine::{
        checkpoint::Checkpoint,
        record::{Record, StateSource},
    };

    fn file() -> RunFile {
        let (steps, batch, checkpoint_every, evaluate_every) = (20, 4, Some(5), Some(5));
        testing::run_file(vec![testing::stage("a", steps, batch, checkpoint_every, evaluate_every)])
    }

    /// Writes to the journal at this path, or to a new one, that the run has saved step 5.
    fn write_journal(path: &Path) {
        let mut journal = Journal::new(Connection::open(path).unwrap(), &file()).unwrap();
        let at = |step| Position { stage: 0, step };
        let formed = |generation, start, source| Record::Formed {
            generation,
            term: 0,
            members: vec![],
            cause: "start".into(),
            start,
            source,
        };
        let name = "0-a-00000005".to_owned();
        let saved = Checkpoint { position: at(5), generation: 1, name: name.clone(), ..Checkpoint::default() };
        let records = [
            formed(1, at(0), StateSource::Seed),
            Record::Saved(saved),
            formed(2, at(5), StateSource::Checkpoint(name)),
        ];
        journal.write(&records).unwrap();
    }

    fn open(path: &Path, file: &RunFile, accept: AcceptedChanges) -> Result<Journal, Error> {
        Journal::new_with_changes(Connection::open(path).unwrap(), file, accept)
    }

    /// The error of an attempt to open the journal with this run file.
    fn settings_error(path: &Path, file: &RunFile, accept: AcceptedChanges) -> SettingsError {
        match open(path, file, accept) {
            Err(Error::Settings(error)) => *error,
            other => panic!("the run file should be refused: {other:?}"),
        }
    }

    /// The details of the recorded `settings_changed` events.
    fn recorded_changes(path: &Path) -> Vec<serde_json::Value> {
        let journal = ReadOnlyJournal::new(Connection::open(path).unwrap()).unwrap();
        let events = journal.events().unwrap();
        events.into_iter().filter(|event| event.kind == "settings_changed").map(|event| event.detail).collect()
    }

    #[test]
    fn a_change_from_the_next_step_on_is_applied_and_recorded_when_accepted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal.sqlite");
        write_journal(&path);
        let mut changed = file();
        changed.stages[0].optimizer.learning_rate = 1e-4;
        changed.stages[0].patience = Some(3);
        let error = settings_error(&path, &changed, AcceptedChanges::Free);
        assert!(!error.is_other_run());
        let explanation = error.explanation();
        for words in [
            "stages[0].optimizer.learning_rate: 0.001 -> 0.0001",
            "stages[0].patience: absent -> 3",
            "--accept-changes",
        ] {
            assert!(explanation.contains(words), "{words}: {explanation}");
        }
        assert_eq!(recorded_changes(&path), Vec::<serde_json::Value>::new());

        drop(open(&path, &changed, AcceptedChanges::NextStep).unwrap());
        let expected = json!({ "stage": 0, "step": 5, "changes": [
            { "key": "stages[0].optimizer.learning_rate", "old": 0.001, "new": 0.0001, "mutability": "next_step" },
            { "key": "stages[0].patience", "old": null, "new": 3, "mutability": "next_step" },
        ] });
        assert_eq!(recorded_changes(&path), [expected]);
        // The journal has the new run file now.
        drop(open(&path, &changed, AcceptedChanges::Free).unwrap());
        assert_eq!(recorded_changes(&path).len(), 1);
        let stored = ReadOnlyJournal::new(Connection::open(&path).unwrap()).unwrap().run_file().unwrap();
        assert_eq!(stored, changed);
        assert!(open(&path, &file(), AcceptedChanges::Free).is_err());
    }

    #[test]
    fn a_change_that_makes_another_run_is_refused_with_the_lines_for_a_new_run_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal.sqlite");
        write_journal(&path);
        let mut other = file();
        (other.seed, other.stages[0].optimizer.learning_rate) = (1, 1e-4);
        for accept in [AcceptedChanges::Free, AcceptedChanges::NextStep] {
            let error = settings_error(&path, &other, accept);
            let line = error.to_string();
            assert!(line.contains("another seed;") && line.contains("another output"), "{line}");
            let explanation = error.explanation();
            for words in [
                "seed: 0 -> 1 (another value makes another run)",
                "stages[0].optimizer.learning_rate: 0.001 -> 0.0001",
                "captioner: { weights: \"/nowhere/checkpoints/0-a-00000005\" }",
            ] {
                assert!(explanation.contains(words), "{words}: {explanation}");
            }
        }
        // A metric with other paraphrase tables is another metric of the same name.
        let mut other_tables = file();
        other_tables.scoring.meteor_paraphrases = Some("paraphrase-en.gz".into());
        assert!(settings_error(&path, &other_tables, AcceptedChanges::NextStep).is_other_run());
        assert_eq!(recorded_changes(&path), Vec::<serde_json::Value>::new());
    }

    #[test]
    fn control_settings_may_change_freely_and_all_settings_may_change_before_the_run_begins() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal.sqlite");
        let other = RunFile { name: "other".into(), seed: 1, ..file() };
        drop(open(&path, &other, AcceptedChanges::Free).unwrap());
        write_journal(&path);
        assert_eq!(recorded_changes(&path).len(), 1);
        let mut changed = file();
        changed.control.heartbeat_timeout = 60.0;
        drop(open(&path, &changed, AcceptedChanges::Free).unwrap());
        assert_eq!(recorded_changes(&path)[1]["changes"][0]["key"], "control.heartbeat_timeout");
    }
}
