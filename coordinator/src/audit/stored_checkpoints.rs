//! Audit of checkpoints: compares the checkpoints in the run's folder or bucket with those in the
//! journal.

use checkpoint_store::{CheckpointMetadata, Checkpoints, Error};
use dico_engine::checkpoint::Checkpoint;
use journal::ReadOnlyJournal;

use crate::checkpoints::{self, journal_head};

/// Describes the differences between a run's checkpoints and its journal. Reads the metadata of
/// each checkpoint and checks it against the seal. The other files of a checkpoint are checked when
/// a run resumes from it.
///
/// # Errors
/// Journal or checkpoints cannot be read.
pub fn checkpoint_problems(journal: &ReadOnlyJournal, stored: &Checkpoints) -> anyhow::Result<Vec<String>> {
    let (file, listing, recorded) = (journal.run_file()?, stored.list()?, journal.kept_checkpoints()?);
    let mut problems = Vec::new();
    for checkpoint in &recorded {
        let name = &checkpoint.name;
        match stored.metadata(name) {
            Ok(metadata) => problems.extend(difference(journal, checkpoint, &metadata)?),
            Err(Error::Missing { .. }) => problems.push(format!("checkpoint {name} is missing")),
            Err(error) => problems.push(error.to_string()),
        }
    }
    let is_recorded = |name: &str| recorded.iter().any(|checkpoint| checkpoint.name == name);
    let former_run_ids = journal.former_run_ids()?;
    for name in checkpoints::checkpoint_names_of_run(&file, &listing).into_iter().filter(|name| !is_recorded(name)) {
        match stored.metadata(name) {
            Ok(metadata) if former_run_ids.contains(&metadata.run_id) || !metadata.has_origin() => {}
            Ok(metadata) if metadata.run_id != journal.run_id()? || !journal.contains(&journal_head(&metadata))? => {
                problems.push(format!(
                    "checkpoint {name} was saved under another journal than this one, at record {}",
                    journal_head(&metadata)
                ));
            }
            // The coordinator ended after this checkpoint was saved and before it was recorded, or
            // after its deletion was recorded and before it was deleted. If its metadata cannot be
            // read, the run cannot use it.
            _ => {}
        }
    }
    Ok(problems)
}

/// Describes how a checkpoint differs from its record; `None` if it does not.
fn difference(
    journal: &ReadOnlyJournal,
    recorded: &Checkpoint,
    metadata: &CheckpointMetadata,
) -> Result<Option<String>, journal::Error> {
    let Checkpoint { position, generation, run_id, name, parameters_sha256 } = recorded;
    let has_no_origin = !metadata.has_origin();
    let comparisons = [
        ("run", metadata.run_id == *run_id),
        ("name", has_no_origin || metadata.checkpoint == *name),
        ("stage", metadata.stage == position.stage),
        ("step", metadata.step == position.step),
        ("generation", has_no_origin || metadata.generation == *generation),
        ("hash of the parameters", metadata.parameters_sha256 == *parameters_sha256),
        // Checkpoints from before a recovery were saved under another journal.
        ("journal", *run_id != journal.run_id()? || journal.contains(&journal_head(metadata))?),
    ];
    let differing: Vec<&str> =
        comparisons.into_iter().filter(|(_, is_equal)| !is_equal).map(|(field, _)| field).collect();
    Ok((!differing.is_empty())
        .then(|| format!("checkpoint {name} has another {} than the journal records", differing.join(", "))))
}
