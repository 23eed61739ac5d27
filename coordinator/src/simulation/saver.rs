//! The saver of a simulated worker: hashes and writes copies of the state, one at a time, while
//! training continues. It continues when the session ends, and a process that exits waits for it.

use std::collections::VecDeque;

use dico_engine::{SessionId, Time};
use proto::{v1, v1::worker_message::Message};
use rand::Rng;

use super::{
    ProcessId, UpdateHistory,
    cluster::{Cluster, SimEvent},
    training::digest,
    worker::{Activity, WakeReason},
};

/// A copy of the state, and the checkpoint directive for which it was taken.
#[derive(Debug)]
pub struct Save {
    generation: u64,
    /// The number of the directive.
    number: u64,
    /// The name of the checkpoint.
    name: String,
    /// The state.
    history: UpdateHistory,
    /// Whether the worker writes the copy (rank 0), or only hashes it.
    is_writer: bool,
    /// The session in which the directive arrived.
    session: Option<SessionId>,
}

/// The saves of a worker: the save in progress, then those that wait.
pub type SaveQueue = VecDeque<Save>;

impl Cluster {
    /// Passes a copy of the state to the saver. The training thread waits while an earlier save is
    /// in progress.
    pub fn enqueue_save(&mut self, id: ProcessId, checkpoint: v1::Checkpoint) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        let generation = worker.training.generation();
        let v1::Checkpoint { checkpoint: number, name, .. } = checkpoint;
        let (history, session) = (worker.history.clone(), worker.session());
        let is_writer = worker.rank == 0;
        let saves = self.savers.entry(id).or_default();
        saves.push_back(Save { generation, number, name, history, is_writer, session });
        if saves.len() > 1 {
            worker.activity = Activity::AwaitingSaver;
        } else {
            self.start_save(id);
        }
    }

    /// Starts the first save of the queue, if there is one.
    fn start_save(&mut self, id: ProcessId) {
        let Some(save) = self.savers.get(&id).and_then(VecDeque::front) else { return };
        let (is_writer, name) = (save.is_writer, save.name.clone());
        let max_duration = self.scenario.max_saving_time / if is_writer { 1 } else { 4 };
        if is_writer {
            self.start_checkpoint(name);
        }
        let duration = max_duration.mul_f64(self.rng.random_range(0.1..1.0));
        self.queue.schedule_after(duration, SimEvent::SaveDone { worker: id });
    }

    /// Completes the save in progress: reports it, starts the next one, and wakes the training
    /// thread if that waits for the saver.
    pub fn complete_save(&mut self, id: ProcessId) {
        let Some(saves) = self.savers.get_mut(&id) else { return };
        let Some(save) = saves.pop_front() else { return };
        let Save { generation, number: checkpoint, name, history, is_writer, session } = save;
        if is_writer {
            self.check_expected_checkpoint(session, &name);
        }
        let parameters_sha256 = digest(&history);
        let report = if is_writer && !self.complete_checkpoint(name, history) {
            let reason = "no space left on device".to_owned();
            Message::CheckpointFailed(v1::CheckpointFailed { generation, checkpoint, reason })
        } else {
            Message::CheckpointDone(v1::CheckpointDone { generation, checkpoint, parameters_sha256 })
        };
        self.report(id, report);
        self.start_save(id);
        let is_waiting = |activity: &Activity| matches!(activity, Activity::AwaitingSaver | Activity::Finishing);
        if let Some(worker) = self.workers.get_mut(&id).filter(|worker| is_waiting(&worker.activity)) {
            let wake_up = worker.wake_up;
            self.queue.schedule_after(
                Time::ZERO,
                SimEvent::TrainingWakeUp { worker: id, wake_up, reason: WakeReason::ActivityDone },
            );
        }
    }

    /// The directive number of the last save in a worker's queue.
    pub fn latest_save(&self, id: ProcessId) -> Option<u64> {
        self.savers.get(&id)?.back().map(|save| save.number)
    }

    /// Whether a worker has no save in progress.
    pub fn is_saver_idle(&self, id: ProcessId) -> bool {
        self.savers.get(&id).is_none_or(VecDeque::is_empty)
    }
}
