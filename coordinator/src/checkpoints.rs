//! Compares the checkpoints in the journal with the stored ones when a coordinator starts. Finds
//! the checkpoints from which a run without a usable journal can be recovered.

use std::collections::BTreeSet;

use anyhow::{Context, bail, ensure};
use checkpoint_store::{CheckpointMetadata, JournalHead, Listing};
use config::RunFile;
use dico_engine::{checkpoint::Checkpoint, plan::Position, restored::RestoredRun};
use journal::{Journal, RecoveryCheckpoints};
use proto::v1;
use tracing::warn;

/// Removes checkpoints that are not stored with a seal from the restored run. Adds stored
/// checkpoints that the restored run does not have as unfinished: when the last coordinator ended,
/// they were being written, were not recorded yet, or were about to be deleted.
pub fn reconcile(file: &RunFile, restored: &mut RestoredRun, listing: Listing) {
    let location = file.checkpoint_location();
    for checkpoints in [&mut restored.checkpoints, &mut restored.superseded_checkpoints] {
        checkpoints.retain(|checkpoint| {
            let exists = listing.sealed.contains(&checkpoint.name);
            if !exists {
                warn!(location, name = checkpoint.name, "a checkpoint of the journal does not exist any more");
            }
            exists
        });
    }
    let recorded = recorded_names(restored);
    // Entries whose names no checkpoint of this run can have.
    let mut not_of_this_run = Vec::new();
    for name in listing.sealed.iter().chain(&listing.unsealed).filter(|name| !recorded.contains(*name)).cloned() {
        if parse_checkpoint_name(file, &name).is_some() {
            restored.unfinished_checkpoints.insert(name);
        } else {
            not_of_this_run.push(name);
        }
    }
    not_of_this_run.extend(listing.not_checkpoints);
    if let Some(first) = not_of_this_run.first() {
        warn!(
            location,
            count = not_of_this_run.len(),
            first,
            "the checkpoint location holds entries that this run did not write"
        );
    }
}

/// The names of the restored run's checkpoints. The journal has not recorded their deletion.
fn recorded_names(restored: &RestoredRun) -> BTreeSet<String> {
    restored
        .checkpoints
        .iter()
        .chain(&restored.superseded_checkpoints)
        .map(|checkpoint| checkpoint.name.clone())
        .collect()
}

/// The names of the sealed checkpoints that have the form of names of this run: see
/// [`parse_checkpoint_name`].
pub fn checkpoint_names_of_run<'a>(file: &RunFile, listing: &'a Listing) -> Vec<&'a String> {
    listing.sealed.iter().filter(|name| parse_checkpoint_name(file, name).is_some()).collect()
}

/// A checkpoint was saved under another journal. Its metadata have another run id, or name a record
/// that this journal does not contain.
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
    /// The last record of the journal under which it was saved, when the save began.
    head: v1::JournalHead,
}

/// Checks that the stored checkpoints belong to this journal: the metadata of a checkpoint name the
/// record that was the journal's last one when the save began, and this journal must contain that
/// record. Otherwise this journal is that of another run, or an older copy.
///
/// Only checkpoints that the restored run does not have need this check. They are stored without a
/// record if the coordinator ended between a save and its record, or between the record of a
/// deletion and the deletion. Returns the names of checkpoints that are ignored: those from before
/// a recovery ([`Journal::recover`]), and those whose metadata have no record
/// ([`CheckpointMetadata::has_origin`]).
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
    for name in checkpoint_names_of_run(file, listing).into_iter().filter(|name| !recorded.contains(*name)) {
        let metadata = match read_metadata(name) {
            Ok(metadata) => metadata,
            // A damaged checkpoint can never be used, so it need not belong to this journal.
            Err(error) if error.is_damage() => continue,
            Err(error) => return Err(error).context("checkpoints"),
        };
        if former_run_ids.contains(&metadata.run_id) || !metadata.has_origin() {
            ignored.insert(name.clone());
        } else if metadata.run_id != restored.run_id || !journal.contains(&journal_head(&metadata))? {
            let (name, generation, head) = (name.clone(), metadata.generation, journal_head(&metadata));
            return Err(JournalMismatchError { name, generation, head }.into());
        }
    }
    Ok(ignored)
}

/// Finds the checkpoints from which a run can be recovered if its journal is lost or damaged.
///
/// # Errors
/// There is no checkpoint to resume from, one cannot be read, or the training data changed in the
/// stage of the newest one.
pub fn find_recovery_checkpoints(
    file: &RunFile,
    listing: &Listing,
    read_metadata: impl Fn(&str) -> Result<CheckpointMetadata, checkpoint_store::Error>,
) -> anyhow::Result<RecoveryCheckpoints> {
    let location = file.checkpoint_location();
    let mut all_metadata = Vec::new();
    for name in checkpoint_names_of_run(file, listing) {
        match read_metadata(name) {
            Ok(metadata) if metadata.checkpoint == *name && metadata.run == file.name => all_metadata.push(metadata),
            Ok(CheckpointMetadata { run, checkpoint, .. }) => {
                warn!(name, run, checkpoint, "a checkpoint is ignored: it belongs to another run");
            }
            Err(error) if error.is_damage() => warn!(%error, "a checkpoint is ignored: it is damaged"),
            Err(error) => return Err(error).context("checkpoints"),
        }
    }
    // Generation numbers also increase across a recovery.
    let recency = |metadata: &&CheckpointMetadata| (metadata.generation, metadata.stage, metadata.step);
    let Some(newest) = all_metadata.iter().max_by_key(recency).cloned() else {
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
    let (lost_head, newest) = (journal_head(&newest), saved_checkpoint(newest));
    let mut checkpoints: Vec<Checkpoint> = all_metadata.into_iter().map(saved_checkpoint).collect();
    checkpoints.retain(|checkpoint| checkpoint.position <= newest.position);
    Ok(RecoveryCheckpoints { checkpoints, newest, lost_head, run_ids })
}

/// The head of the journal that a checkpoint's metadata name.
pub fn journal_head(metadata: &CheckpointMetadata) -> v1::JournalHead {
    let JournalHead { record_number, hash } = metadata.journal.clone();
    v1::JournalHead { sequence: record_number, hash }
}

/// The checkpoint with these metadata, as the journal lists it.
fn saved_checkpoint(metadata: CheckpointMetadata) -> Checkpoint {
    Checkpoint {
        position: Position { stage: metadata.stage, step: metadata.step },
        generation: metadata.generation,
        run_id: metadata.run_id,
        name: metadata.checkpoint,
        parameters_sha256: metadata.parameters_sha256,
    }
}

/// Parses the position of a checkpoint from its name, for example `0-pretrain-00000120` or, for a
/// new attempt in generation 7 to save it, `0-pretrain-00000120.7`. `None` if no checkpoint of this
/// run can have this name.
fn parse_checkpoint_name(file: &RunFile, name: &str) -> Option<Position> {
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
    use config::testing;

    fn file() -> RunFile {
        let (steps, batch, checkpoint_every, evaluate_every) = (12, 8, Some(4), None);
        testing::run_file(vec![testing::stage("a-1", steps, batch, checkpoint_every, evaluate_every)])
    }

    fn checkpoint_at(step: u64) -> Checkpoint {
        let position = Position { stage: 0, step };
        let (run_id, name) = ("3fa2".into(), format!("0-a-1-{step:08}"));
        Checkpoint { position, generation: 1, run_id, name, parameters_sha256: "00".into() }
    }

    fn names<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
        names.map(str::to_owned).into()
    }

    #[test]
    fn missing_checkpoints_are_removed_and_unrecorded_ones_are_unfinished() {
        let (checkpoints, superseded_checkpoints) = (vec![checkpoint_at(4), checkpoint_at(8)], vec![checkpoint_at(12)]);
        let mut restored =
            RestoredRun { last_generation: 1, checkpoints, superseded_checkpoints, ..RestoredRun::default() };
        let listing = Listing {
            sealed: names(["0-a-1-00000002", "0-a-1-00000004", "0-a-1-00000012", "1-b-00000004", "notes"]),
            unsealed: names(["0-a-1-00000008", "0-a-1-00000013", "0-a-1-9"]),
            not_checkpoints: names(["notes.txt"]),
        };
        reconcile(&file(), &mut restored, listing);
        assert_eq!(
            (restored.checkpoints, restored.superseded_checkpoints),
            (vec![checkpoint_at(4)], vec![checkpoint_at(12)])
        );
        assert_eq!(
            restored.unfinished_checkpoints.into_iter().collect::<Vec<_>>(),
            ["0-a-1-00000002", "0-a-1-00000008"]
        );
    }

    #[test]
    fn names_that_no_checkpoint_of_the_run_can_have_are_rejected() {
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
        let accepted: Vec<_> = all.iter().filter(|name| parse_checkpoint_name(&file(), name).is_some()).collect();
        assert_eq!(accepted, [&"0-a-1-00000012", &"0-a-1-00000012.7"]);
        for name in ["", "-", "0", "0-", "0-a-1", "0-a-1-", "0-a-1-+0000012", "0-a-1-99999999999999999999"] {
            assert_eq!(parse_checkpoint_name(&file(), name), None, "{name}");
        }
    }
}
