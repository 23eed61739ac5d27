//! The invariants of a run, as assertions after each event, record and update.
//!
//! A state is the list of all updates that led to it, each with the generation that applied it. Two
//! states are therefore equal only if their parameters would be bitwise equal. The committed
//! history is such a list, too.

mod coordinator;
mod progress;
mod workers;

use std::collections::{BTreeMap, BTreeSet};

use dico_engine::{
    SessionId, Time,
    plan::{Position, SelectedSteps},
    record::Record,
    restored::RestoredRun,
};
use proto::v1::directive::Directive;

use super::{
    Update, UpdateHistory,
    cluster::{Cluster, Trace},
    disk::Disk,
};

/// The time within which a run without faults must make progress. A worker takes less to release a
/// generation or to enter a rendezvous.
const PROGRESS_TIMEOUT: Time = Time::from_secs(300);

/// The coordinator may still evict a worker for a fault within the heartbeat timeout and this time
/// after the repair.
const EVICTION_GRACE_PERIOD: Time = Time::from_secs(5);

/// What the simulation has observed of the run: in the coordinator's records, in directives, and in
/// the updates of workers. The assertions compare the run with these observations. They survive
/// restarts of the coordinator.
#[derive(Clone, Debug, Default)]
pub struct Invariants {
    /// The generation that forms or runs, by the records.
    pub current_generation: Option<u64>,
    last_generation: u64,
    /// The term of the last generation.
    last_term: u64,
    /// The position at which each generation starts.
    generation_starts: BTreeMap<u64, Position>,
    /// The update history of the committed state.
    pub committed: UpdateHistory,
    /// The committed position.
    committed_position: Position,
    /// The state of the member of each generation that is at the furthest position.
    generation_states: BTreeMap<u64, UpdateHistory>,
    /// The directives that members of each generation have begun, in order, without the fields that
    /// differ between members: ranks, shares, peers and ranges.
    generation_directives: BTreeMap<u64, Vec<Directive>>,
    /// The state that the worker of each session last reported.
    pub reported_states: BTreeMap<SessionId, Option<UpdateHistory>>,
    /// The evaluated states of the present history: the number of their updates, and whether they
    /// may be evaluated again.
    pub evaluated: BTreeMap<Position, (usize, bool)>,
    /// For each stage that has ended early: the step of the state that it ended with.
    pub selected_steps: SelectedSteps,
    /// Whether the run is paused.
    pub is_paused: bool,
    /// The positions at which an operator has requested an evaluation.
    pub requested_evaluations: BTreeSet<Position>,
    /// Whether the run is finished or has failed.
    pub is_over: bool,
    /// The position of the state with which a stage has ended early, until the next generation
    /// starts from it.
    /// The states beyond it are given up.
    given_up_after: Option<Position>,
    /// Whether the journal records that the next generation gives up committed steps.
    has_recorded_rollback: bool,
    /// The number of the coordinator process, its progress count, and the time at which one of the
    /// two last changed.
    last_progress: (u64, u64, Time),
    /// The time at which a fault was last injected or repaired.
    pub last_fault_change_at: Time,
    /// The number of generations that were formed.
    pub generations_formed: u64,
    /// The number of steps that at least one member has applied. A step that was given up and
    /// trained again counts twice.
    pub steps_trained: u64,
    /// The number of committed steps that were given up.
    pub steps_given_up: u64,
    /// The names of recorded checkpoints that are neither deleted nor damaged.
    checkpoints: BTreeMap<Position, String>,
    /// Whether a checkpoint is lost: then a stage may be unable to end with its best state.
    pub has_damaged_checkpoint: bool,
}

/// The positions of all updates of a history.
fn positions(history: &[Update]) -> Vec<Position> {
    history.iter().map(|update| update.position).collect()
}

/// The length of the common prefix of two histories.
fn common_prefix_len(one: &[Update], other: &[Update]) -> usize {
    one.iter().zip(other).take_while(|(one, other)| one == other).count()
}

/// The part of a history up to a position.
fn prefix_up_to(history: &[Update], end: Position) -> &[Update] {
    &history[..history.partition_point(|update| update.position <= end)]
}

impl Invariants {
    /// The invariants of a run that resumes from a backup. Only checkpoints on `disk` remain.
    fn restored_from_backup(self, disk: &Disk) -> Self {
        let (last_progress, last_fault_change_at, current_generation, reported_states) = Default::default();
        let mut restored = Self { last_progress, last_fault_change_at, current_generation, reported_states, ..self };
        let recorded = restored.checkpoints.len();
        restored.checkpoints.retain(|_, name| disk.checkpoints.contains_key(name));
        restored.has_damaged_checkpoint |= restored.checkpoints.len() < recorded;
        restored
    }
}

impl Invariants {
    /// The invariants of a run that resumes from a journal. `restored` is the state that the
    /// journal describes, `generation_starts` the position at which each generation has started,
    /// and `committed` the update history of the committed state.
    pub fn resumed(
        restored: &RestoredRun,
        generation_starts: BTreeMap<u64, Position>,
        committed: UpdateHistory,
    ) -> Self {
        let may_repeat = false;
        let evaluated = restored.scores.keys().map(|position| {
            let updates = prefix_up_to(&committed, *position).len();
            (*position, (updates, may_repeat))
        });
        let checkpoints = restored.checkpoints.iter().chain(&restored.superseded_checkpoints);
        Self {
            last_generation: restored.last_generation,
            generation_starts,
            committed_position: restored.committed,
            evaluated: evaluated.collect(),
            selected_steps: restored.selected_steps.clone(),
            is_paused: restored.pause_reason.is_some(),
            checkpoints: checkpoints.map(|saved| (saved.position, saved.name.clone())).collect(),
            committed,
            ..Self::default()
        }
    }
}

/// A copy of the journal, with the invariants and checkpoints at the time of the copy.
pub struct Backup {
    records: Vec<Record>,
    invariants: Invariants,
    checkpoints: BTreeMap<String, UpdateHistory>,
}

impl Backup {
    /// Whether the copy knows all checkpoints on disk. If not, a coordinator refuses the copy.
    pub fn matches_disk(&self, cluster: &Cluster) -> bool {
        let is_recorded = |name: &String| self.invariants.checkpoints.values().any(|recorded| recorded == name);
        let mut on_disk = cluster.disk.checkpoints.iter();
        on_disk.all(|(name, state)| is_recorded(name) && self.checkpoints.get(name) == Some(state))
    }
}

impl Cluster {
    /// Copies the present journal.
    pub fn back_up_journal(&self) -> Backup {
        let (records, checkpoints) = (self.coordinator.records.clone(), self.disk.checkpoints.clone());
        Backup { records, invariants: self.invariants.clone(), checkpoints }
    }

    /// A cluster whose coordinator starts with an older copy of this cluster's journal. Its workers
    /// take over the states of this cluster's workers.
    pub fn restore_backup(self, backup: Backup, seed: u64, trace: Trace) -> Self {
        let Self { scenario, disk, workers, run_id, .. } = self;
        let mut cluster = Self::without_coordinator(seed, trace, |_| scenario);
        cluster.coordinator.records = backup.records;
        cluster.disk = disk;
        cluster.disk.is_full = false;
        cluster.invariants = backup.invariants.restored_from_backup(&cluster.disk);
        let machines = cluster.scenario.machines.len();
        (cluster.run_id, cluster.is_restored_from_backup) = (run_id, true);
        cluster.former_workers = workers.into_values().filter(|worker| !worker.is_finishing()).take(machines).collect();
        cluster.start_coordinator();
        cluster
    }

    /// The positions of all steps up to a position of the run, in order.
    pub fn steps_to(&self, end: Position) -> Vec<Position> {
        let steps = |stage: u32, count: u64| (1..=count).map(move |step| Position { stage, step });
        let earlier_stages = (0..end.stage).flat_map(|stage| steps(stage, self.stage_end(stage)));
        earlier_stages.chain(steps(end.stage, end.step)).collect()
    }

    /// The position at which the run ends.
    pub fn run_end(&self) -> Position {
        let last = self.scenario.file.stages.len() as u32 - 1;
        Position { stage: last, step: self.stage_end(last) }
    }

    /// The step with which a stage has ended, or will end.
    fn stage_end(&self, stage: u32) -> u64 {
        let planned_steps = self.scenario.file.stages[stage as usize].steps;
        self.invariants.selected_steps.get(&stage).copied().unwrap_or(planned_steps)
    }
}
