//! Audit of checkpoints: whether the checkpoints on disk are those in the journal.

use checkpoint_store::{Checkpoints, Error, Stamp};

use crate::{
    checkpoints,
    journal::{self, history::History},
    run::record::Checkpoint,
};

/// The differences between a run's checkpoints and its journal, as messages. Reads the stamp of
/// each checkpoint and checks it against the seal; the other files are checked when they are used.
///
/// # Errors
/// Journal or checkpoints cannot be read.
pub fn compare(history: &History, kept: &Checkpoints) -> anyhow::Result<Vec<String>> {
    let (file, found, known) = (history.run_file()?, kept.list()?, history.kept_checkpoints()?);
    let mut problems = Vec::new();
    for checkpoint in &known {
        let name = &checkpoint.name;
        match kept.stamp(name) {
            Ok(stamp) => problems.extend(difference(history, checkpoint, &stamp)?),
            Err(Error::Missing { .. }) => problems.push(format!("checkpoint {name} is missing")),
            Err(error) => problems.push(error.to_string()),
        }
    }
    let is_known = |name: &str| known.iter().any(|checkpoint| checkpoint.name == name);
    let former = history.former_run_ids()?;
    for name in checkpoints::own(&file, &found).into_iter().filter(|name| !is_known(name)) {
        match kept.stamp(name) {
            Ok(stamp) if former.contains(&stamp.run_id) => {}
            Ok(stamp) if stamp.run_id != history.run_id()? || !history.contains(&stamp.journal)? => {
                problems.push(format!(
                    "checkpoint {name} was saved under another journal than this, at record {}",
                    stamp.journal
                ));
            }
            // The last save before a coordinator died, or one that was about to be deleted.
            _ => {}
        }
    }
    Ok(problems)
}

/// How a checkpoint differs from the journal; none if it does not.
fn difference(history: &History, known: &Checkpoint, stamp: &Stamp) -> Result<Option<String>, journal::Error> {
    let Checkpoint { place, generation, run_id, name, parameters_sha256 } = known;
    let same = [
        ("run", stamp.run_id == *run_id),
        ("name", stamp.checkpoint == *name),
        ("stage", stamp.stage == place.stage),
        ("step", stamp.step == place.step),
        ("generation", stamp.generation == *generation),
        ("hash of the parameters", stamp.parameters_sha256 == *parameters_sha256),
        // Checkpoints from before a recovery were saved under another journal.
        ("journal", *run_id != history.run_id()? || history.contains(&stamp.journal)?),
    ];
    let differs: Vec<&str> = same.into_iter().filter(|(_, same)| !same).map(|(what, _)| what).collect();
    Ok((!differs.is_empty())
        .then(|| format!("checkpoint {name} is of another {} than the journal says", differs.join(", "))))
}
