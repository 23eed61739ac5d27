//! Operator commands for a run in progress: pause, resume, checkpoint, evaluate, drain, stop.
//!
//! A requested checkpoint or evaluation becomes a boundary of the plan at the end of the granted
//! steps. Therefore it takes place even if members join or leave before. The request is not in the
//! journal: it is lost if the coordinator restarts.

use serde_json::json;

use super::{
    Outcome, Refusal, RefusalKind, Run, RunPhase, WorkerId,
    plan::{Boundary, Position},
    record::EventKind,
};

/// The reason in the records of events that an operator's command caused.
const OPERATOR_REQUEST: &str = "an operator requested it";

/// A command of an operator, from a subcommand such as `coordinator pause` or from the HTTP API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Pause the run after the granted steps.
    Pause,
    /// Resume a paused run.
    Resume,
    /// Save the state at the end of the granted steps.
    Checkpoint,
    /// Evaluate the state at the end of the granted steps.
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
        if command == Command::Stop && matches!(self.phase, RunPhase::Over { outcome: Outcome::Finished, .. }) {
            self.stop_requested = true;
            return Ok("the coordinator stops; the run is finished".into());
        }
        if let Some(refusal) = self.refusal_if_ending() {
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
                    Ok(format!("the run pauses at {}", self.end_of_granted_steps()))
                }
            },
            Command::Resume => match self.pause_reason.take() {
                None => refuse("the run is not paused: there is nothing to resume".into()),
                Some(reason) => {
                    self.throughput.reset_timer();
                    let detail = json!({ "at": self.committed.to_string(), "reason": reason });
                    self.record_event(EventKind::Resumed, detail);
                    Ok("the run continues".into())
                }
            },
            Command::Checkpoint => {
                let position = self.end_of_granted_steps();
                if let Some(saved) = self.checkpoints.get(&position) {
                    return refuse(format!("{position} is already saved as {}", saved.name));
                }
                self.plan.add_requested_boundary(Boundary::Checkpoint, position);
                Ok(format!("{position} will be saved"))
            }
            Command::Evaluate => {
                let position = self.end_of_granted_steps();
                if self.data.as_ref().is_some_and(|data| data.data_set.validation_images == 0) {
                    return refuse("the data have no validation split".into());
                }
                if self.passed_boundaries.contains(&(position, Boundary::Evaluation)) {
                    return refuse(format!("{position} is already evaluated"));
                }
                self.plan.add_requested_boundary(Boundary::Evaluation, position);
                let when = if self.pause_reason.is_some() { " when the run is resumed" } else { "" };
                Ok(format!("{position} will be evaluated{when}"))
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

    /// The position up to which steps are granted; the committed position if no generation runs.
    pub(super) fn end_of_granted_steps(&self) -> Position {
        let running_generation = self.generation.as_ref().filter(|_| self.phase == RunPhase::Running);
        running_generation.map_or(self.committed, |generation| generation.granted)
    }
}
