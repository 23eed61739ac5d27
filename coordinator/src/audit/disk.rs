//! Whether the checkpoints that are kept are those that the journal tells of.

use storage::{Checkpoints, Error, Stamp};

use crate::{
    checkpoints,
    journal::{self, history::History},
    run::record::Checkpoint,
};

/// What is wrong with the checkpoints of a run. Of each of them the stamp is read and what the seal says of it is checked; the other
/// files are checked when they are used.
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
            // What was saved last before a coordinator died, or was to be deleted.
            _ => {}
        }
    }
    Ok(problems)
}

/// In what a checkpoint differs from the journal.
fn difference(history: &History, known: &Checkpoint, stamp: &Stamp) -> Result<Option<String>, journal::Error> {
    let Checkpoint { place, generation, run_id, name, parameters_sha256 } = known;
    let same = [
        ("run", stamp.run_id == *run_id),
        ("name", stamp.checkpoint == *name),
        ("stage", stamp.stage == place.stage),
        ("step", stamp.step == place.step),
        ("generation", stamp.generation == *generation),
        ("hash of the parameters", stamp.parameters_sha256 == *parameters_sha256),
        // Of checkpoints from before a recovery the journal is not this one.
        ("journal", *run_id != history.run_id()? || history.contains(&stamp.journal)?),
    ];
    let differs: Vec<&str> = same.into_iter().filter(|(_, same)| !same).map(|(what, _)| what).collect();
    Ok((!differs.is_empty())
        .then(|| format!("checkpoint {name} is of another {} than the journal says", differs.join(", "))))
}
