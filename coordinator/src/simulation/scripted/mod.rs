//! Tests of one scenario each, without random faults.
//!
//! Stages are written as `testing::stage(NAME, STEPS, BATCH, CHECKPOINT_EVERY, EVALUATE_EVERY)`.

mod commands;
mod evaluation;
mod false_claims;
mod guard;
mod membership;
mod migrated_journals;
mod model_selection;
mod recovery;

use config::RunFile;
use dico_engine::{
    Action, Command, EventKind, Outcome, Time,
    plan::Position,
    record::{Record, StateSource},
    state::generations::PendingBoundary,
};
use journal::EvaluatedCaption;
use proto::v1;

use super::{
    ProcessId,
    cluster::{Cluster, Trace},
    scenario::Scenario,
    worker::Worker,
};

/// The maximal virtual time in which a condition of a test must become true.
const MAX_WAIT: Time = Time::from_secs(600);

impl Cluster {
    /// A cluster without faults for a run file.
    fn from_run_file(file: RunFile) -> Self {
        Self::from_scenario(Scenario::without_faults(file))
    }

    /// A cluster with seed 0.
    fn from_scenario(scenario: Scenario) -> Self {
        Self::new(0, Trace::Off, |_| scenario)
    }

    /// Starts a worker, and runs until it is a member.
    fn start_member(&mut self) -> ProcessId {
        let host = format!("host {}", self.last_process_id + 1);
        let id = self.start_worker(host, None);
        self.run_until(|cluster| cluster.is_member(id));
        id
    }

    /// Whether a worker is a member of the run.
    fn is_member(&self, id: ProcessId) -> bool {
        let session = self.workers.get(&id).and_then(Worker::session);
        session.is_some_and(|session| self.state().members.worker_id_of(session).is_some())
    }

    /// Runs until a condition is true.
    fn run_until(&mut self, condition: impl Fn(&Self) -> bool) {
        let end = self.queue.now() + MAX_WAIT;
        while !condition(self) {
            assert!(self.step(end), "the condition did not become true within {MAX_WAIT:?}");
        }
    }

    /// Runs for this virtual time.
    fn run_for(&mut self, time: Time) {
        let end = self.queue.now() + time;
        while self.step(end) {}
    }

    /// Runs until the run is finished.
    fn run_to_end(&mut self) {
        self.run_until(|cluster| cluster.outcome.is_some());
        assert_eq!(self.outcome, Some(Outcome::Finished));
        self.check_disk();
    }

    /// Sends an operator's command to resume the run.
    fn resume(&mut self) {
        self.send_command(Command::Resume);
    }

    fn status(&self) -> v1::StatusResponse {
        self.state().status(self.coordinator.clock)
    }

    /// The positions of the updates that led to the committed state, in order. Updates after the
    /// state that a stage has ended with are not included.
    fn committed_positions(&self) -> Vec<Position> {
        self.invariants.committed.iter().map(|update| update.position).collect()
    }

    /// The names of the checkpoints on disk, in order.
    fn checkpoint_names(&self) -> Vec<&str> {
        self.disk.checkpoints.keys().map(String::as_str).collect()
    }

    /// The number of records for which `matches` is true.
    fn count_records(&self, matches: impl Fn(&Record) -> bool) -> usize {
        self.coordinator.records.iter().filter(|record| matches(record)).count()
    }

    /// The number of recorded events of a kind.
    fn count_events(&self, kind: EventKind) -> usize {
        self.count_records(|record| record.event().is_some_and(|(recorded, _)| recorded == kind))
    }

    /// The start and the source of each generation.
    fn generation_starts(&self) -> Vec<(Position, StateSource)> {
        let formed = |record: &Record| match record {
            Record::Formed { start, source, .. } => Some((*start, source.clone())),
            _ => None,
        };
        self.coordinator.records.iter().filter_map(formed).collect()
    }

    /// The position and the captions of each evaluation.
    fn evaluations(&self) -> Vec<(Position, Vec<EvaluatedCaption>)> {
        let evaluated = |record: &Record| match record {
            Record::Evaluated { position, evaluation, .. } => {
                Some((*position, self.coordinator.scored_captions[evaluation].clone()))
            }
            _ => None,
        };
        self.coordinator.records.iter().filter_map(evaluated).collect()
    }

    /// Whether the run waits for the scores of an evaluation.
    fn is_scoring(&self) -> bool {
        let awaiting =
            self.state().generations.current.as_ref().and_then(|generation| generation.pending_boundary.as_ref());
        matches!(awaiting, Some(PendingBoundary::Scores))
    }
}

fn position_at(stage: u32, step: u64) -> Position {
    Position { stage, step }
}

/// The session token of the worker that these actions admit; empty if they admit no worker.
pub fn session_token_of(actions: &[Action]) -> String {
    let token = |action: &Action| match action {
        Action::Admit { response, .. } => Some(response.session_token.clone()),
        _ => None,
    };
    actions.iter().find_map(token).unwrap_or_default()
}
