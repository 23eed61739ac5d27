//! A cluster whose run continues from a journal on disk. No worker holds a state, and each
//! checkpoint has the update history that the journal describes.

use std::{collections::BTreeMap, path::Path};

use dico_engine::{checkpoint::Checkpoint, plan::Position};
use journal::{Journal, ReadOnlyJournal};

use super::{
    Update, UpdateHistory,
    cluster::{Cluster, Trace},
    coordinator::Coordinator,
    invariants::Invariants,
    scenario::Scenario,
    training::digest,
};

impl Cluster {
    /// A cluster whose coordinator has started with the journal in `folder`. The scores of the
    /// scenario have to be those of the journal's evaluations.
    pub fn from_journal(folder: &Path, scenario: Scenario) -> Self {
        let journal = Journal::open(folder, &scenario.file).expect("the journal is that of the scenario");
        let restored = journal.restore().expect("the journal is intact");
        let mut cluster = Self::without_coordinator(0, Trace::Off, |_| scenario);
        let records = ReadOnlyJournal::open(folder).expect("the journal exists");
        let committed = update_history(&records, restored.committed, restored.last_generation);
        for Checkpoint { position, generation, name, parameters_sha256, .. } in
            restored.checkpoints.iter().chain(&restored.superseded_checkpoints)
        {
            let history = update_history(&records, *position, *generation);
            assert_eq!(digest(&history), *parameters_sha256, "checkpoint {name} has another state");
            cluster.disk.checkpoints.insert(name.clone(), history);
        }
        let generations = records.generations().expect("the journal is intact");
        let starts = generations.iter().map(|generation| (generation.number, generation.start));
        cluster.invariants = Invariants::resumed(&restored, starts.collect(), committed);
        cluster.coordinator = Coordinator::with_journal(journal);
        cluster.start_coordinator();
        cluster
    }
}

/// The updates that led to the state at a position that this generation has reached, in order. An
/// update that was not reported, but adopted, belongs to the generation before the one that adopted
/// it.
fn update_history(journal: &ReadOnlyJournal, position: Position, generation: u64) -> UpdateHistory {
    let branch_points = journal.branch_points().expect("the journal is intact");
    let is_given_up = |update: &Update| {
        let later = branch_points.iter().filter(|(first, _)| (update.generation + 1..=generation).contains(first));
        later.into_iter().any(|(_, start)| *start < update.position)
    };
    let steps = journal.steps().expect("the journal is intact").into_iter();
    let reported = steps.map(|step| Update { position: step.position, generation: step.generation });
    let moves = journal.history_moves().expect("the journal is intact").into_iter();
    let adopted = moves.filter(|moved| moved.to.stage == moved.from.stage).flat_map(|moved| {
        let steps = moved.from.step + 1..=moved.to.step;
        steps.map(move |step| Update { position: Position { step, ..moved.to }, generation: moved.generation - 1 })
    });
    let is_part =
        |update: &Update| update.position <= position && update.generation <= generation && !is_given_up(update);
    let history: BTreeMap<Position, Update> =
        adopted.chain(reported).filter(is_part).map(|update| (update.position, update)).collect();
    history.into_values().collect()
}
