//! Compares the journal's checkpoints with those on disk.

use std::collections::BTreeSet;

use anyhow::{Context, bail, ensure};
use checkpoint_store::{JournalHead, Listing, Stamp};
use config::RunFile;
use tracing::warn;

use crate::{
    journal::{Journal, Recovery},
    run::{plan::Place, record::RestoredRun},
};

/// Removes checkpoints from the restored state that do not exist, and adds unknown ones as
/// unfinished: those that were being written or about to be deleted when the last coordinator
/// ended.
pub fn reconcile(file: &RunFile, restored: &mut RestoredRun, found: Listing) {
    let place = file.checkpoint_place();
    for checkpoints in [&mut restored.checkpoints, &mut restored.passed_over] {
        checkpoints.retain(|checkpoint| {
            let there = found.sealed.contains(&checkpoint.name);
            if !there {
                warn!(place, name = checkpoint.name, "a checkpoint in the journal is gone");
            }
            there
        });
    }
    let known = known(restored);
    let mut foreign = Vec::new();
    for name in found.sealed.iter().chain(&found.unsealed).filter(|name| !known.contains(*name)).cloned() {
        if place_of(file, &name).is_some() {
            restored.unfinished.insert(name);
        } else {
            foreign.push(name);
        }
    }
    foreign.extend(found.foreign);
    if let Some(first) = foreign.first() {
        warn!(place, count = foreign.len(), first, "this run did not write all that is among its checkpoints");
    }
}

fn known(restored: &RestoredRun) -> BTreeSet<String> {
    restored.checkpoints.iter().chain(&restored.passed_over).map(|checkpoint| checkpoint.name.clone()).collect()
}

/// The names of sealed checkpoints that may belong to the run of this file.
pub fn own<'a>(file: &RunFile, found: &'a Listing) -> Vec<&'a String> {
    found.sealed.iter().filter(|name| place_of(file, name).is_some()).collect()
}

/// The journal does not have the record under which a checkpoint was saved.
#[derive(Debug, thiserror::Error)]
#[error(
    "the journal is not the one that checkpoint {name} was saved under, in generation {generation} at record {head}: it is another \
     run's, an older copy, or was changed; bring the right one back, serve with --recover to go on from the newest sealed \
     checkpoint, or choose another output"
)]
pub struct Disagreement {
    /// The name of the checkpoint.
    name: String,
    /// The generation that saved it.
    generation: u64,
    /// The journal's head at that time.
    head: JournalHead,
}

/// Checks that the journal has the record that each of the run's checkpoints names. A checkpoint
/// that the journal does not know is the last save before a coordinator died, or one about to be
/// deleted; or else the journal is another one, or an older copy. Returns the names of checkpoints
/// from before a recovery, which are ignored.
///
/// # Errors
/// The checkpoint that contradicts the journal.
pub fn agree(
    file: &RunFile,
    journal: &Journal,
    restored: &RestoredRun,
    found: &Listing,
    stamp: impl Fn(&str) -> Result<Stamp, checkpoint_store::Error>,
) -> anyhow::Result<BTreeSet<String>> {
    let (known, former) = (known(restored), journal.former_run_ids()?);
    let mut left = BTreeSet::new();
    for name in own(file, found).into_iter().filter(|name| !known.contains(*name)) {
        let stamp = match stamp(name) {
            Ok(stamp) => stamp,
            // It can never be used, so it proves nothing.
            Err(error) if error.is_damage() => continue,
            Err(error) => return Err(error).context("checkpoints"),
        };
        if former.contains(&stamp.run_id) {
            left.insert(name.clone());
        } else if stamp.run_id != restored.run_id || !journal.contains(&stamp.journal)? {
            let (name, generation, head) = (name.clone(), stamp.generation, stamp.journal);
            return Err(Disagreement { name, generation, head }.into());
        }
    }
    Ok(left)
}

/// The checkpoints from which a run without a usable journal can be recovered.
///
/// # Errors
/// There is no checkpoint to resume from.
pub fn recovery(
    file: &RunFile,
    found: &Listing,
    stamp: impl Fn(&str) -> Result<Stamp, checkpoint_store::Error>,
) -> anyhow::Result<Recovery> {
    let place = file.checkpoint_place();
    let mut stamps = Vec::new();
    for name in own(file, found) {
        match stamp(name) {
            Ok(stamp) if stamp.checkpoint == *name && stamp.run == file.name => stamps.push(stamp),
            Ok(Stamp { run, checkpoint, .. }) => {
                warn!(name, run, checkpoint, "a checkpoint is left out: it is another's")
            }
            Err(error) if error.is_damage() => warn!(%error, "a checkpoint is left out"),
            Err(error) => return Err(error).context("checkpoints"),
        }
    }
    // Numbers of generations increase, also over a recovery.
    let age = |stamp: &&Stamp| (stamp.generation, stamp.stage, stamp.step);
    let Some(newest) = stamps.iter().max_by_key(age).cloned() else {
        bail!("there is no sealed checkpoint of run {} in {place} to go on from: choose another output", file.name);
    };
    ensure!(
        newest.sequence == checkpoint_store::Sequence::default(),
        "the training data of stage {} were exchanged, and only its journal knows in which order they are gone through: bring it back, \
         or begin a new run from checkpoint {}",
        newest.stage_name,
        newest.checkpoint
    );
    let run_ids = stamps.iter().map(|stamp| stamp.run_id.clone()).collect();
    let is_before = |stamp: &Stamp| (stamp.stage, stamp.step) <= (newest.stage, newest.step);
    let checkpoints = stamps.into_iter().filter(is_before).collect();
    Ok(Recovery { checkpoints, newest, run_ids })
}

/// The point of a checkpoint with this name; none if it is not a name of this run.
fn place_of(file: &RunFile, name: &str) -> Option<Place> {
    let (number, rest) = name.split_once('-')?;
    let stage = file.stages.get(number.parse::<usize>().ok()?)?;
    let rest = rest.strip_prefix(&stage.name)?.strip_prefix('-')?;
    let (step, attempt) = rest.split_once('.').map_or((rest, None), |(step, attempt)| (step, Some(attempt)));
    let attempt = attempt.map(str::parse).transpose().ok()?;
    let place = Place { stage: number.parse().ok()?, step: step.parse().ok()? };
    (place.step <= stage.steps && name == place.checkpoint_name(&stage.name, attempt)).then_some(place)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::{record::Checkpoint, testing};

    fn file() -> RunFile {
        testing::run_file(vec![testing::stage("a-1", 12, 8, Some(4), None)])
    }

    fn saved(step: u64) -> Checkpoint {
        let place = Place { stage: 0, step };
        let (run_id, name) = ("3fa2".into(), format!("0-a-1-{step:08}"));
        Checkpoint { place, generation: 1, run_id, name, parameters_sha256: "00".into() }
    }

    fn names<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
        names.map(str::to_owned).into()
    }

    #[test]
    fn what_is_gone_is_forgotten_and_what_is_left_over_remembered() {
        let (checkpoints, passed_over) = (vec![saved(4), saved(8)], vec![saved(12)]);
        let mut restored = RestoredRun { last_generation: 1, checkpoints, passed_over, ..RestoredRun::default() };
        let found = Listing {
            sealed: names(["0-a-1-00000002", "0-a-1-00000004", "0-a-1-00000012", "1-b-00000004", "notes"]),
            unsealed: names(["0-a-1-00000008", "0-a-1-00000013", "0-a-1-9"]),
            foreign: names(["notes.txt"]),
        };
        reconcile(&file(), &mut restored, found);
        assert_eq!((restored.checkpoints, restored.passed_over), (vec![saved(4)], vec![saved(12)]));
        assert_eq!(restored.unfinished.into_iter().collect::<Vec<_>>(), ["0-a-1-00000002", "0-a-1-00000008"]);
    }

    #[test]
    fn names_that_only_look_like_this_runs_are_not() {
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
        let known: Vec<_> = all.iter().filter(|name| place_of(&file(), name).is_some()).collect();
        assert_eq!(known, [&"0-a-1-00000012", &"0-a-1-00000012.7"]);
        for name in ["", "-", "0", "0-", "0-a-1", "0-a-1-", "0-a-1-+0000012", "0-a-1-99999999999999999999"] {
            assert_eq!(place_of(&file(), name), None, "{name}");
        }
    }
}
