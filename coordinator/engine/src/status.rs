//! The run's status, for the CLI, the HTTP API and the metrics.

use proto::{v1, v1::RunState};

use crate::{
    membership::{Member, MemberState, MemberThroughput},
    model_selection::BestState,
    outcome::Outcome,
    state::{State, generations::RunPhase},
    statistics::StepStatistics,
    types::{Time, WorkerId},
};

/// Maximal number of worker ids in a message that lists members.
const MAX_LISTED_IDS: usize = 8;

/// Why a run is not ready: no generation trains, and the run is not complete.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{state}: {reason}")]
pub struct NotReady {
    /// The run's state.
    pub state: RunState,
    /// The reason for that state.
    pub reason: String,
}

impl State {
    /// The run's status with all members.
    #[must_use]
    pub fn status(&self, now: Time) -> v1::StatusResponse {
        let member = |(worker_id, member): (WorkerId, &Member)| v1::Member {
            worker_id: worker_id.0,
            host: member.machine.host.clone(),
            device: member.machine.device.clone(),
            phase: member.phase.into(),
            position: member.position,
            seconds_since_heard: now.saturating_sub(member.last_message_at).as_secs_f64(),
            images_per_second: member.throughput.images_per_second,
            tokens_per_second: member.throughput.tokens_per_second,
            compute_seconds: member.throughput.compute_seconds,
        };
        let example = self.measurements.latest_step.as_ref().and_then(|step| step.example.clone());
        let members = self.members.iter().map(member).collect();
        v1::StatusResponse { members, example, ..self.status_summary() }
    }

    /// The members with ids below `limit`, with their throughput.
    pub fn members_below(&self, limit: WorkerId) -> impl Iterator<Item = (WorkerId, MemberThroughput)> {
        let members = self.members.iter().take_while(move |(worker_id, _)| *worker_id < limit);
        members.map(|(worker_id, member)| (worker_id, member.throughput))
    }

    /// The number of members.
    #[must_use]
    pub fn member_count(&self) -> usize {
        self.members.len()
    }

    /// The run's status without the list of members and without the example of candidates.
    #[must_use]
    pub fn status_summary(&self) -> v1::StatusResponse {
        let stage = self.history.plan.stage(self.history.committed);
        let (state, reason) = self.run_state();
        let steps = self.history.plan.steps(self.history.committed.stage);
        let lag = self.measurements.latest_step.as_ref().and_then(|step| step.compute_times.straggler_lag());
        v1::StatusResponse {
            run_id: self.settings.run_id.clone(),
            run: self.settings.file.name.clone(),
            state: state.into(),
            generation: self.generations.last_number,
            stage: self.history.committed.stage,
            stage_name: stage.name.clone(),
            step: self.history.committed.step,
            steps,
            loss: self.measurements.latest_step.as_ref().and_then(StepStatistics::loss).unwrap_or(0.0),
            reward: self.measurements.latest_step.as_ref().and_then(StepStatistics::reward),
            images_per_second: self.measurements.latest_step.as_ref().map_or(0.0, StepStatistics::images_per_second),
            members: Vec::new(),
            reason,
            slowest_worker: lag.map(|(worker_id, _)| worker_id.0),
            lag_seconds: lag.map_or(0.0, |(_, seconds)| seconds),
            tokens_per_second: self.measurements.latest_step.as_ref().map_or(0.0, StepStatistics::tokens_per_second),
            seconds_left: self.measurements.throughput.seconds_until(self.history.committed, steps),
            min_workers: self.settings.file.workers.min,
            example: None,
        }
    }

    /// The answer to the readiness probe: the run is ready if a generation trains, or if the run is
    /// complete.
    ///
    /// # Errors
    /// The run is not ready.
    pub fn readiness(&self) -> Result<(), NotReady> {
        match self.run_state() {
            (RunState::Running | RunState::Finished, _) => Ok(()),
            (state, reason) => Err(NotReady { state, reason }),
        }
    }

    /// The number of samples that training has consumed and committed.
    #[must_use]
    pub fn samples_committed(&self) -> u64 {
        self.history.plan.samples_before(self.history.committed)
    }

    /// The metric of the current stage, and its best state by that metric.
    #[must_use]
    pub fn best_state(&self) -> Option<(&str, BestState)> {
        self.stage.best_state(&self.history, &self.checkpoints)
    }

    /// The name of the checkpoint at the committed position: of a finished run, its final state.
    #[must_use]
    pub fn result_checkpoint(&self) -> Option<&str> {
        self.checkpoints.saved.get(&self.history.committed).map(|checkpoint| checkpoint.name.as_str())
    }

    /// The run's state as operators see it, and the reason for it; the reason may be empty.
    fn run_state(&self) -> (RunState, String) {
        match (&self.generations.phase, &self.stage.pause_reason) {
            (RunPhase::Waiting | RunPhase::Forming | RunPhase::Running, Some(reason)) => {
                (RunState::Paused, reason.clone())
            }
            (RunPhase::Waiting, None) => (RunState::Waiting, self.waiting_reason()),
            (RunPhase::Forming, None) => {
                let ready = self.generations.current.as_ref().map_or(0, |generation| generation.ready_members.len());
                (RunState::Forming, format!("{ready} of {} members are ready", self.members.len()))
            }
            (RunPhase::Running, None) => match self.save_error() {
                Some(reason) => (RunState::Paused, format!("{reason}; the coordinator retries every few seconds")),
                None => (RunState::Running, String::new()),
            },
            (RunPhase::Over { outcome: Outcome::Finished, .. }, _) => {
                let result = self.result_checkpoint().map(|name| format!("its result is checkpoint {name}"));
                (RunState::Finished, result.unwrap_or_default())
            }
            (RunPhase::Over { outcome: Outcome::Failed(reason), .. }, _) => (RunState::Failed, reason.clone()),
            (RunPhase::Over { outcome: Outcome::Stopped, .. }, _) => {
                (RunState::Waiting, "the coordinator is shutting down".into())
            }
        }
    }

    /// Why a checkpoint or captions cannot be saved; none if they can.
    fn save_error(&self) -> Option<&str> {
        let checkpoint = self.checkpoints.failed.as_ref().map(|failed| &failed.reason);
        let captions = || self.evaluation.as_ref().and_then(|evaluation| evaluation.save_error.as_ref());
        checkpoint.or_else(captions).map(String::as_str)
    }

    /// Why no generation is formed at the moment.
    fn waiting_reason(&self) -> String {
        let (members, min) = (self.members.staying_count(), self.settings.file.workers.min as usize);
        if members < min {
            return format!("{members} of at least {min} workers are attached");
        }
        if self.members.are_all_idle() {
            let committed = self.history.committed;
            return format!(
                "a worker that holds {committed} may still reconnect; without it the run resumes from an earlier state"
            );
        }
        let is_not_idle = |(_, member): &(WorkerId, &Member)| member.state != MemberState::Idle;
        let mut non_idle_ids = self.members.iter().filter(is_not_idle).map(|(worker_id, _)| worker_id.to_string());
        let listed: Vec<String> = non_idle_ids.by_ref().take(MAX_LISTED_IDS).collect();
        let others = match non_idle_ids.count() {
            0 => String::new(),
            others => format!(" and {others} others"),
        };
        let subject = if listed.len() == 1 { "worker" } else { "workers" };
        let verb = if listed.len() == 1 { "has" } else { "have" };
        let (ids, generation) = (listed.join(", "), self.generations.last_number);
        format!("{subject} {ids}{others} {verb} not released generation {generation} yet")
    }
}
