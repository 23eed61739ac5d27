//! Invariants of the run as a whole: only faulty workers are evicted, the run makes progress, and a
//! finished run is complete.

use std::collections::BTreeSet;

use dico_engine::{SessionId, Time, plan::Position};

use super::{EVICTION_GRACE_PERIOD, PROGRESS_TIMEOUT};
use crate::simulation::{cluster::Cluster, network::Direction, worker::Worker};

impl Cluster {
    /// Asserts that only faulty workers are evicted for a stall or for missing heartbeats.
    pub(super) fn check_eviction(&self, detail: &serde_json::Value) {
        let (worker_id, reason) =
            (detail["rank"].as_u64(), detail["reason"].as_str().expect("an eviction has a reason"));
        let is_evicted =
            |worker: &&Worker| worker.worker_id.map(u64::from) == worker_id && detail["host"] == worker.host.as_str();
        let [has_stalled, has_missed_heartbeats] =
            [reason.contains("made no progress"), reason.contains("sent no message")];
        // There is nothing to check if the process has ended, or if it was evicted for another
        // reason.
        let Some((id, worker)) =
            self.workers.iter().find(|(_, worker)| is_evicted(worker)).filter(|_| has_stalled || has_missed_heartbeats)
        else {
            return;
        };
        let Some(session) = worker.session() else { return };
        let now = self.queue.now();
        let is_recent = |since: Time| now - since < self.scenario.heartbeat_timeout() + EVICTION_GRACE_PERIOD;
        let is_partitioned = [Direction::ToCoordinator, Direction::ToWorker, Direction::BetweenWorkers]
            .iter()
            .any(|direction| self.network.is_partitioned(*id, *direction));
        let is_faulty =
            worker.is_training_blocked || worker.is_suspended || is_partitioned || is_recent(worker.repaired_at);
        let may_miss_heartbeats = self.network.is_reset(session)
            || self.network.has_long_delays
            || is_recent(self.network.long_delays_ended_at);
        assert!(
            is_faulty || (has_missed_heartbeats && may_miss_heartbeats),
            "{id:?} was evicted without a fault: {reason}"
        );
    }

    /// Whether the run can make progress only after an operator has killed workers that hang. The
    /// coordinator does not evict a worker that hangs if no other member waits for it: if all
    /// members hang, or if there are fewer members than `workers.min`.
    fn needs_operator(&self) -> bool {
        let blocked_sessions: BTreeSet<Option<SessionId>> =
            self.workers.values().filter(|worker| worker.is_training_blocked).map(Worker::session).collect();
        let members = &self.state().members;
        let working = members.iter().filter(|(_, member)| !blocked_sessions.contains(&Some(member.session))).count();
        !blocked_sessions.is_empty() && (working == 0 || members.len() < self.scenario.file.workers.min as usize)
    }

    /// Asserts that the run makes progress while there are no faults.
    pub fn check_progress(&mut self) {
        let Some(engine) = &self.coordinator.engine else { return };
        let (incarnation, progress, since) = self.invariants.last_progress;
        let now = self.queue.now();
        if (incarnation, progress) != (self.coordinator.incarnation, engine.state().history.progress_count) {
            self.invariants.last_progress = (self.coordinator.incarnation, engine.state().history.progress_count, now);
            return;
        }
        let may_wait = self.faults.unrepaired_count > 0
            || self.needs_operator()
            || self.invariants.is_paused
            || !self.scenario.is_resumed;
        let since = since.max(self.invariants.last_fault_change_at);
        assert!(
            may_wait || now - since < PROGRESS_TIMEOUT,
            "the run made no progress within {PROGRESS_TIMEOUT:?}: {:?}",
            engine.state().status(self.coordinator.clock)
        );
    }

    /// Asserts that a run fails only for repeated failures, and only while there are faults.
    pub fn check_failure(&self, reason: &str) {
        let has_faults = self.faults.unrepaired_count > 0
            || self.queue.now() - self.invariants.last_fault_change_at < PROGRESS_TIMEOUT;
        let may_fail = !self.scenario.is_resumed || (has_faults && reason.contains("without progress"));
        assert!(may_fail, "the run failed: {reason}");
    }

    /// Asserts that a finished run has the expected checkpoints, evaluations and stage ends.
    pub fn check_end(&self) {
        self.check_disk();
        for (number, stage) in (0..).zip(&self.scenario.file.stages) {
            let end = self.stage_end(number);
            let was_evaluated = |step: u64| self.invariants.evaluated.contains_key(&Position { stage: number, step });
            for step in (0..=end).filter(|step| self.scenario.is_evaluated(stage, *step)) {
                // A stage that ended early need not be evaluated at its end.
                let ended_early = self.invariants.selected_steps.get(&number) == Some(&step);
                assert!(was_evaluated(step) || ended_early, "step {step} of stage {number} was not evaluated");
            }
        }
        let is_unplanned = |position: &&Position| {
            let is_requested = self.invariants.requested_evaluations.contains(position);
            position.step > self.stage_end(position.stage)
                || !is_requested
                    && !self.scenario.is_evaluated(&self.scenario.file.stages[position.stage as usize], position.step)
        };
        assert_eq!(
            self.invariants.evaluated.keys().find(is_unplanned),
            None,
            "a position was evaluated that is not in the plan"
        );
        if !self.invariants.has_damaged_checkpoint && self.invariants.requested_evaluations.is_empty() {
            self.scenario.check_selected_steps(&self.invariants.selected_steps);
        }
    }
}
