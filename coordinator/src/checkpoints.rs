//! What the journal says of checkpoints, held against what is kept.

use std::collections::BTreeSet;

use anyhow::ensure;
use runfile::RunFile;
use storage::Listing;
use tracing::warn;

use crate::run::{plan::Place, record::Restored};

/// Forgets checkpoints that are not there, and remembers what is there but is no checkpoint that the journal knows: what was
/// being written when the last coordinator ended, or was to be deleted.
///
/// # Errors
/// The journal is new, and there are whole checkpoints: those of another run would be taken for this one's remains.
pub fn reconcile(file: &RunFile, restored: &mut Restored, found: Listing) -> anyhow::Result<()> {
    let place = file.checkpoint_place();
    let sealed: BTreeSet<&String> = found.sealed.iter().filter(|name| place_of(file, name).is_some()).collect();
    if restored.last_generation == 0
        && let Some(first) = sealed.first()
    {
        ensure!(
            false,
            "checkpoints: {place} holds those of another run, such as {first}: choose another place, remove them, or serve \
             with the --state of the run that wrote them"
        );
    }
    for checkpoints in [&mut restored.checkpoints, &mut restored.passed_over] {
        checkpoints.retain(|checkpoint| {
            let there = found.sealed.contains(&checkpoint.name);
            if !there {
                warn!(place, name = checkpoint.name, "a checkpoint in the journal is gone");
            }
            there
        });
    }
    let known = restored.checkpoints.iter().chain(&restored.passed_over);
    let known: BTreeSet<&String> = known.map(|checkpoint| &checkpoint.name).collect();
    let mut foreign = Vec::new();
    for name in found.sealed.iter().chain(&found.unsealed).filter(|name| !known.contains(name)).cloned() {
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
    Ok(())
}

/// The point of the run that a checkpoint of this name is of, if one of this run can be called so.
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
        Checkpoint { place, generation: 1, name: format!("0-a-1-{step:08}"), parameters_sha256: "00".into() }
    }

    fn names<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
        names.map(str::to_owned).into()
    }

    #[test]
    fn what_is_gone_is_forgotten_and_what_is_left_over_remembered() {
        let (checkpoints, passed_over) = (vec![saved(4), saved(8)], vec![saved(12)]);
        let mut restored = Restored { last_generation: 1, checkpoints, passed_over, ..Restored::default() };
        let found = Listing {
            sealed: names(["0-a-1-00000002", "0-a-1-00000004", "0-a-1-00000012", "1-b-00000004", "notes"]),
            unsealed: names(["0-a-1-00000008", "0-a-1-00000013", "0-a-1-9"]),
            foreign: names(["notes.txt"]),
        };
        reconcile(&file(), &mut restored, found).unwrap();
        assert_eq!((restored.checkpoints, restored.passed_over), (vec![saved(4)], vec![saved(12)]));
        assert_eq!(restored.unfinished.into_iter().collect::<Vec<_>>(), ["0-a-1-00000002", "0-a-1-00000008"]);
    }

    #[test]
    fn another_runs_checkpoints_are_not_touched() {
        let found = || Listing { sealed: names(["0-a-1-00000004"]), ..Listing::default() };
        let error = reconcile(&file(), &mut Restored::default(), found()).unwrap_err().to_string();
        assert!(error.contains("0-a-1-00000004") && error.contains("--state"), "{error}");
        let unsealed = Listing { unsealed: found().sealed, ..Listing::default() };
        let mut restored = Restored::default();
        reconcile(&file(), &mut restored, unsealed).unwrap();
        assert_eq!(restored.unfinished.into_iter().collect::<Vec<_>>(), ["0-a-1-00000004"]);
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
