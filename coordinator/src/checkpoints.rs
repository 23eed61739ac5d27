//! Compares the journal's checkpoints with the stored ones, and finds those from which a run
//! without a usable journal can be recovered.

use std::collections::BTreeSet;

use anyhow::{Context, bail, ensure};
use checkpoint_store::{CheckpointMetadata, JournalHead, Listing};
use config::RunFile;
use tracing::warn;

use crate::{
    journal::{Journal, Recovery},
    run::{plan::Position, record::RestoredRun},
};

/// Removes checkpoints that do not exist from the restored state. Adds checkpoints that the journal
/// does not have as unfinished: they were being written, or about to be deleted, when the last
/// coordinator ended.
pub fn reconcile(file: &RunFile, restored: &mut RestoredRun, listing: Listing) {
    let location = file.checkpoint_place();
    for checkpoints in [&mut restored.checkpoints, &mut restored.unselected_checkpoints] {
        checkpoints.retain(|checkpoint| {
            let exists = listing.sealed.contains(&checkpoint.name);
            if !exists {
                warn!(location, name = checkpoint.name, "a checkpoint of the journal does not exist any more");
            }
            exists
        });
    }
    let recorded = recorded_names(restored);
    let mut foreign = Vec::new();
    for name in listing.sealed.iter().chain(&listing.unsealed).filter(|name| !recorded.contains(*name)).cloned() {
        if position_of_name(file, &name).is_some() {
            restored.unfinished_checkpoints.insert(name);
        } else {
            foreign.push(name);
        }
    }
    foreign.extend(listing.foreign);
    if let Some(first) = foreign.first() {
        warn!(
            location,
            count = foreign.len(),
            first,
            "the checkpoint location holds entries that this run did not write"
        );
    }
}

/// The names of the checkpoints in the journal.
fn recorded_names(restored: &RestoredRun) -> BTreeSet<String> {
    restored
        .checkpoints
        .iter()
        .chain(&restored.unselected_checkpoints)
        .map(|checkpoint| checkpoint.name.clone())
        .collect()
}

/// The sealed checkpoints with names that the run of this file gives.
pub fn names_of_run<'a>(file: &RunFile, listing: &'a Listing) -> Vec<&'a String> {
    listing.sealed.iter().filter(|name| position_of_name(file, name).is_some()).collect()
}

/// A checkpoint names a last record of the journal that this journal does not have.
#[derive(Debug, thiserror::Error)]
#[error(
    "the journal is not the one that checkpoint {name} was saved under, in generation {generation} at record {head}: it belongs \
     to another run, is an older copy, or was changed; restore the right journal, serve with --recover to resume from the newest \
     sealed checkpoint, or choose another output"
)]
pub struct JournalMismatchError {
    /// The name of the checkpoint.
    name: String,
    /// The generation that saved it.
    generation: u64,
    /// The journal's head at that time.
    head: JournalHead,
}

/// Checks that the journal has the record that each of the run's checkpoints names. A checkpoint
/// that the journal does not have is the last save before a coordinator died, or one that was about
/// to be deleted. Otherwise the journal is another one, or an older copy. Returns the names of
/// checkpoints from before a recovery, which are ignored.
///
/// # Errors
/// [`JournalMismatchError`] if a checkpoint contradicts the journal. A checkpoint or the journal
/// cannot be read.
pub fn check_against_journal(
    file: &RunFile,
    journal: &Journal,
    restored: &RestoredRun,
    listing: &Listing,
    read_metadata: impl Fn(&str) -> Result<CheckpointMetadata, checkpoint_store::Error>,
) -> anyhow::Result<BTreeSet<String>> {
    let (recorded, former_run_ids) = (recorded_names(restored), journal.former_run_ids()?);
    let mut ignored = BTreeSet::new();
    for name in names_of_run(file, listing).into_iter().filter(|name| !recorded.contains(*name)) {
        let metadata = match read_metadata(name) {
            Ok(metadata) => metadata,
            // A damaged checkpoint can never be used, so it proves nothing.
            Err(error) if error.is_damage() => continue,
            Err(error) => return Err(error).context("checkpoints"),
        };
        if former_run_ids.contains(&metadata.run_id) {
            ignored.insert(name.clone());
        } else if metadata.run_id != restored.run_id || !journal.contains(&metadata.journal)? {
            let (name, generation, head) = (name.clone(), metadata.generation, metadata.journal);
            return Err(JournalMismatchError { name, generation, head }.into());
        }
    }
    Ok(ignored)
}

/// Finds the checkpoints from which a run without a usable journal can be recovered.
///
/// # Errors
/// There is no checkpoint to resume from.
pub fn find_recovery(
    file: &RunFile,
    listing: &Listing,
    read_metadata: impl Fn(&str) -> Result<CheckpointMetadata, checkpoint_store::Error>,
) -> anyhow::Result<Recovery> {
    let location = file.checkpoint_place();
    let mut all_metadata = Vec::new();
    for name in names_of_run(file, listing) {
        match read_metadata(name) {
            Ok(metadata) if metadata.checkpoint == *name && metadata.run == file.name => all_metadata.push(metadata),
            Ok(CheckpointMetadata { run, checkpoint, .. }) => {
                warn!(name, run, checkpoint, "a checkpoint is ignored: it belongs to another run")
            }
            Err(error) if error.is_damage() => warn!(%error, "a checkpoint is ignored: it is damaged"),
            Err(error) => return Err(error).context("checkpoints"),
        }
    }
    // Generation numbers also increase across a recovery.
    let age = |metadata: &&CheckpointMetadata| (metadata.generation, metadata.stage, metadata.step);
    let Some(newest) = all_metadata.iter().max_by_key(age).cloned() else {
        bail!("{location} has no sealed checkpoint of run {} to resume from: choose another output", file.name);
    };
    ensure!(
        newest.sequence == checkpoint_store::SampleSequence::default(),
        "the training data of stage {} were replaced during the run, and only the lost journal has their order: restore the journal, \
         or start a new run from checkpoint {}",
        newest.stage_name,
        newest.checkpoint
    );
    let run_ids = all_metadata.iter().map(|metadata| metadata.run_id.clone()).collect();
    let is_before = |metadata: &CheckpointMetadata| (metadata.stage, metadata.step) <= (newest.stage, newest.step);
    let checkpoints = all_metadata.into_iter().filter(is_before).collect();
    Ok(Recovery { checkpoints, newest, run_ids })
}

/// The position of a checkpoint by its name; `None` if the run of this file does not give this
/// name.
fn position_of_name(file: &RunFile, name: &str) -> Option<Position> {
    let (number, rest) = name.split_once('-')?;
    let stage = file.stages.get(number.parse::<usize>().ok()?)?;
    let rest = rest.strip_prefix(&stage.name)?.strip_prefix('-')?;
    let (step, attempt) = rest.split_once('.').map_or((rest, None), |(step, attempt)| (step, Some(attempt)));
    let attempt = attempt.map(str::parse).transpose().ok()?;
    let position = Position { stage: number.parse().ok()?, step: step.parse().ok()? };
    (position.step <= stage.steps && name == position.checkpoint_name(&stage.name, attempt)).then_some(position)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::{record::Checkpoint, testing};

    fn file() -> RunFile {
        testing::run_file(vec![testing::stage("a-1", 12, 8, Some(4), None)])
    }

    fn saved(step: u64) -> Checkpoint {
        let position = Position { stage: 0, step };
        let (run_id, name) = ("3fa2".into(), format!("0-a-1-{step:08}"));
        Checkpoint { position, generation: 1, run_id, name, parameters_sha256: "00".into() }
    }

    fn names<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
        names.map(str::to_owned).into()
    }

    #[test]
    fn missing_checkpoints_are_removed_and_unrecorded_ones_are_unfinished() {
        let (checkpoints, unselected_checkpoints) = (vec![saved(4), saved(8)], vec![saved(12)]);
        let mut restored =
            RestoredRun { last_generation: 1, checkpoints, unselected_checkpoints, ..RestoredRun::default() };
        let listing = Listing {
            sealed: names(["0-a-1-00000002", "0-a-1-00000004", "0-a-1-00000012", "1-b-00000004", "notes"]),
            unsealed: names(["0-a-1-00000008", "0-a-1-00000013", "0-a-1-9"]),
            foreign: names(["notes.txt"]),
        };
        reconcile(&file(), &mut restored, listing);
        assert_eq!((restored.checkpoints, restored.unselected_checkpoints), (vec![saved(4)], vec![saved(12)]));
        assert_eq!(
            restored.unfinished_checkpoints.into_iter().collect::<Vec<_>>(),
            ["0-a-1-00000002", "0-a-1-00000008"]
        );
    }

    #[test]
    fn names_that_the_run_does_not_give_are_rejected() {
        let all = [
            "0-a-1-00000012",
            "0-a-1-00000012.7",
            "0-a-1-00000012.x",
            "0-a-1-00000012.07",
            "0-a-1-00000013",
            "0-a-1-12",
            "00-a-1-00000012",
            "1-a-1-00000012",
            "0-a-00000012",
        ];
        let accepted: Vec<_> = all.iter().filter(|name| position_of_name(&file(), name).is_some()).collect();
        assert_eq!(accepted, [&"0-a-1-00000012", &"0-a-1-00000012.7"]);
        for name in ["", "-", "0", "0-", "0-a-1", "0-a-1-", "0-a-1-+0000012", "0-a-1-99999999999999999999"] {
            assert_eq!(position_of_name(&file(), name), None, "{name}");
        }
    }
}
