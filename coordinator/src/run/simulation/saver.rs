//! The saver of a simulated worker: hashes and writes copies of the state, one at a time, while
//! training goes on. It continues after its session has ended, and the process waits for it.

use std::collections::VecDeque;

use proto::{v1, v1::worker_message::Message};
use rand::Rng;

use super::{
    History, WorkerId,
    training::digest,
    worker::{Activity, Wake},
    world::{SimEvent, SimWorld},
};
use crate::run::{SessionId, Time};

/// A copy of the state, and the directive that it was taken for.
#[derive(Debug)]
pub struct Save {
    generation: u64,
    number: u64,
    name: String,
    history: History,
    /// Rank 0 writes; the others only hash.
    writes: bool,
    /// The session of the directive.
    session: Option<SessionId>,
}

/// The queue of a saver: the save in progress, then those that wait.
pub type Saves = VecDeque<Save>;

impl SimWorld {
    /// The training thread passes a copy to the saver. It waits while the saver is busy.
    pub fn hand_over(&mut self, id: WorkerId, generation: u64, checkpoint: v1::Checkpoint) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        let v1::Checkpoint { checkpoint: number, name, .. } = checkpoint;
        let (history, session) = (worker.history.clone(), worker.session());
        let writes = worker.rank_within == 0;
        let saves = self.savers.entry(id).or_default();
        saves.push_back(Save { generation, number, name, history, writes, session });
        if saves.len() > 1 {
            worker.doing = Activity::HandingOver;
        } else {
            self.begin_save(id);
        }
    }

    fn begin_save(&mut self, id: WorkerId) {
        let Some(save) = self.savers.get(&id).and_then(VecDeque::front) else { return };
        let (writes, name) = (save.writes, save.name.clone());
        let most = self.scenario.saving / if writes { 1 } else { 4 };
        if writes {
            self.begin_checkpoint(name);
        }
        let takes = most.mul_f64(self.rng.random_range(0.1..1.0));
        self.agenda.after(takes, SimEvent::Saved { worker: id });
    }

    /// The saver has finished a copy.
    pub fn saved(&mut self, id: WorkerId) {
        let Some(saves) = self.savers.get_mut(&id) else { return };
        let Some(save) = saves.pop_front() else { return };
        let Save { generation, number: checkpoint, name, history, writes, session } = save;
        if writes {
            self.check_awaited(session, &name);
        }
        let parameters_sha256 = digest(&history);
        let report = if writes && !self.end_checkpoint(name, history) {
            let reason = "no space left on device".to_owned();
            Message::CheckpointFailed(v1::CheckpointFailed { generation, checkpoint, reason })
        } else {
            Message::CheckpointDone(v1::CheckpointDone { generation, checkpoint, parameters_sha256 })
        };
        self.report(id, report);
        self.begin_save(id);
        let waits = |doing: &Activity| matches!(doing, Activity::HandingOver | Activity::Finishing);
        if let Some(worker) = self.workers.get_mut(&id).filter(|worker| waits(&worker.doing)) {
            let task = worker.task;
            self.agenda.after(Time::ZERO, SimEvent::Training { worker: id, task, wake: Wake::Done });
        }
    }

    /// The latest save in progress of a worker.
    pub fn saving(&self, id: WorkerId) -> Option<u64> {
        self.savers.get(&id)?.back().map(|save| save.number)
    }

    /// Whether all copies of a worker are saved.
    pub fn has_saved(&self, id: WorkerId) -> bool {
        self.savers.get(&id).is_none_or(VecDeque::is_empty)
    }
}
