//! Operator commands for a run in progress: pause, resume, checkpoint, evaluate, drain, stop.
//!
//! A requested checkpoint or evaluation becomes a boundary of the plan at the end of the granted
//! steps. Membership changes therefore do not affect it. The request is not in the journal: it is
//! lost if the coordinator restarts.

use serde_json::json;

use super::{
    Outcome, Phase, Refusal, RefusalKind, Run, WorkerId,
    plan::{Boundary, Position},
    record::EventKind,
};

/// The reason in events of an operator's commands.
const OPERATOR_REQUEST: &str = "an operator requested it";

/// A command of an operator, from `coordinator admin` or the HTTP API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Pause the run after the granted steps.
    Pause,
    /// Resume a paused run.
    Resume,
    /// Save the state that the run is about to reach.
    Checkpoint,
    /// Evaluate the state that the run is about to reach.
    Evaluate,
    /// Release the worker with this id after the step in flight.
    Drain(WorkerId),
    /// Save a checkpoint, then end the coordinator. Another coordinator can resume the run.
    Stop,
}

impl Run {
    /// Executes a command. Returns a message that says what will happen; refuses a command that the
    /// state of the run does not allow.
    pub(super) fn execute_command(&mut self, command: Command) -> Result<String, Refusal> {
        if command == Command::Stop && matches!(self.phase, Phase::Over { outcome: Outcome::Finished, .. }) {
            self.stop_requested = true;
            return Ok("the coordinator stops; the run is finished".into());
        }
        if let Some(refusal) = self.refusal_of_new_workers() {
            return Err(refusal);
        }
        let refuse = |reason: String| Err(Refusal::new(RefusalKind::FailedPrecondition, reason));
        match command {
            Command::Pause => match &self.pause_reason {
                Some(reason) => refuse(format!("the run is already paused: {reason}")),
                None => {
                    let (Position { stage, step }, reason) = (self.committed, OPERATOR_REQUEST.to_owned());
                    self.record_event(EventKind::Paused, json!({ "stage": stage, "step": step, "reason": reason }));
                    self.pause_reason = Some(reason);
                    Ok(format!("the run pauses at {}", self.next_state()))
                }
            },
            Command::Resume => match self.pause_reason.take() {
                None => refuse("the run is not paused: there is nothing to resume".into()),
                Some(reason) => {
                    self.throughput.interrupt();
                    let detail = json!({ "at": self.committed.to_string(), "reason": reason });
                    self.record_event(EventKind::Resumed, detail);
                    Ok("the run continues".into())
                }
            },
            Command::Checkpoint => {
                let at = self.next_state();
                if let Some(saved) = self.checkpoints.get(&at) {
                    return refuse(format!("{at} is already saved as {}", saved.name));
                }
                self.plan.request(Boundary::Checkpoint, at);
                Ok(format!("{at} will be saved"))
            }
            Command::Evaluate => {
                let at = self.next_state();
                if self.data.as_ref().is_some_and(|data| data.data_set.validation_images == 0) {
                    return refuse("the data have no validation split".into());
                }
                if self.passed_boundaries.contains(&(at, Boundary::Evaluation)) {
                    return refuse(format!("{at} is already evaluated"));
                }
                self.plan.request(Boundary::Evaluation, at);
                let when = if self.pause_reason.is_some() { " when the run is resumed" } else { "" };
                Ok(format!("{at} will be evaluated{when}"))
            }
            Command::Drain(worker_id) => {
                let Some(member) = self.members.get(worker_id) else {
                    return refuse(format!("worker {worker_id} is not attached"));
                };
                if member.leave_reason.is_some() {
                    return refuse(format!("worker {worker_id} is already leaving"));
                }
                self.request_leave(worker_id, OPERATOR_REQUEST.into());
                Ok(format!("worker {worker_id} leaves after the step in flight"))
            }
            Command::Stop => {
                self.stop_requested = true;
                Ok("the coordinator saves a checkpoint and stops; `coordinator serve` resumes the run".into())
            }
        }
    }

    /// Whether the coordinator was asked to stop.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.stop_requested
    }

    /// The position of the state that the run is about to reach: steps are granted up to here.
    pub(super) fn next_state(&self) -> Position {
        let running = self.generation.as_ref().filter(|_| self.phase == Phase::Running);
        running.map_or(self.committed, |generation| generation.granted)
    }
}
