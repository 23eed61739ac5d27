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

    use config::{Change, testing};
    use dico_engine::{
        checkpoint::Checkpoint,
        plan::Position,
        record::{Record, StateSource},
    };

    use super::*;
    use crate::{ReadOnlyJournal, SettingsChange};

    fn file() -> RunFile {
        let (steps, batch, checkpoint_every, evaluate_every) = (20, 4, Some(5), Some(5));
        testing::run_file(vec![testing::stage("a", steps, batch, checkpoint_every, evaluate_every)])
    }

    /// Writes to the journal in this folder, or to a new one, that the run has saved step 5.
    fn write_journal(folder: &Path) {
        let mut journal = Journal::open(folder, &file()).unwrap();
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

    /// The error of an attempt to open the journal with this run file.
    fn settings_error(folder: &Path, file: &RunFile, accept: AcceptedChanges) -> SettingsError {
        match Journal::open_with_changes(folder, file, accept) {
            Err(Error::Settings(error)) => *error,
            other => panic!("the run file should be refused: {other:?}"),
        }
    }

    /// The recorded changes of settings, each with its position.
    fn recorded_changes(folder: &Path) -> Vec<(Position, Vec<Change>)> {
        let changes = ReadOnlyJournal::open(folder).unwrap().settings_changes().unwrap();
        changes.into_iter().map(|SettingsChange { position, changes, .. }| (position, changes)).collect()
    }

    #[test]
    fn a_change_from_the_next_step_on_is_applied_and_recorded_when_accepted() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        write_journal(folder);
        let mut changed = file();
        changed.stages[0].optimizer.learning_rate = 1e-4;
        changed.stages[0].patience = Some(3);
        let error = settings_error(folder, &changed, AcceptedChanges::Free);
        assert!(!error.is_other_run());
        let explanation = error.explanation();
        for words in [
            "stages[0].optimizer.learning_rate: 0.001 -> 0.0001",
            "stages[0].patience: absent -> 3",
            "--accept-changes",
        ] {
            assert!(explanation.contains(words), "{words}: {explanation}");
        }
        assert!(recorded_changes(folder).is_empty());

        drop(Journal::open_with_changes(folder, &changed, AcceptedChanges::NextStep).unwrap());
        let change = |key: &str, old, new| Change { key: key.into(), old, new, mutability: Mutability::NextStep };
        let changes = vec![
            change("stages[0].optimizer.learning_rate", json!(0.001), json!(0.0001)),
            change("stages[0].patience", json!(null), json!(3)),
        ];
        let position = Position { stage: 0, step: 5 };
        assert_eq!(recorded_changes(folder), [(position, changes.clone())]);
        // People see the same change in the event log.
        let event = ReadOnlyJournal::open(folder).unwrap().events().unwrap().pop().unwrap();
        let expected = json!({ "stage": 0, "step": 5, "changes": changes });
        assert_eq!((event.kind.as_str(), event.detail), ("settings_changed", expected));
        // The journal has the new run file now.
        drop(Journal::open(folder, &changed).unwrap());
        assert_eq!(recorded_changes(folder).len(), 1);
        assert_eq!(ReadOnlyJournal::open(folder).unwrap().run_file().unwrap(), changed);
        assert!(Journal::open(folder, &file()).is_err());
    }

    #[test]
    fn a_change_that_makes_another_run_is_refused_with_the_lines_for_a_new_run_file() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        write_journal(folder);
        let mut other = file();
        (other.seed, other.stages[0].optimizer.learning_rate) = (1, 1e-4);
        for accept in [AcceptedChanges::Free, AcceptedChanges::NextStep] {
            let error = settings_error(folder, &other, accept);
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
        assert!(settings_error(folder, &other_tables, AcceptedChanges::NextStep).is_other_run());
        assert!(recorded_changes(folder).is_empty());
    }

    #[test]
    fn control_settings_may_change_freely_and_all_settings_may_change_before_the_run_begins() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let other = RunFile { name: "other".into(), seed: 1, ..file() };
        drop(Journal::open(folder, &other).unwrap());
        write_journal(folder);
        let keys = |(position, changes): &(Position, Vec<Change>)| {
            (*position, changes.iter().map(|change| change.key.clone()).collect::<Vec<_>>())
        };
        let before_the_run = (Position::default(), vec!["name".to_owned(), "seed".to_owned()]);
        assert_eq!(recorded_changes(folder).iter().map(keys).collect::<Vec<_>>(), [before_the_run]);
        let mut changed = file();
        changed.control.heartbeat_timeout = 60.0;
        drop(Journal::open(folder, &changed).unwrap());
        let at_step_5 = (Position { stage: 0, step: 5 }, vec!["control.heartbeat_timeout".to_owned()]);
        assert_eq!(recorded_changes(folder).iter().map(keys).next_back(), Some(at_step_5));
    }
}
