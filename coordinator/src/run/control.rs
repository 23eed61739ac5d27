//! Operator commands for a run in progress: pause, resume, checkpoint, evaluate, drain, stop.
//!
//! A requested checkpoint or evaluation becomes a boundary of the plan at the end of the granted
//! steps. Membership changes therefore do not affect it. It is not in the journal: a coordinator
//! that restarts forgets it.

use serde_json::json;

use super::{
    Outcome, Phase, Refusal, RefusalKind, Run,
    plan::{Boundary, Place},
    record::EventKind,
};

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
    Drain(u32),
    /// Save a checkpoint, then end the coordinator. Another coordinator can resume the run.
    Stop,
}

impl Run {
    /// Executes a command. Returns a message that says what will happen; refuses a command that the
    /// state of the run does not allow.
    pub(super) fn control(&mut self, command: Command) -> Result<String, Refusal> {
        if command == Command::Stop && matches!(self.phase, Phase::Over { outcome: Outcome::Finished, .. }) {
            self.stopping = true;
            return Ok("the coordinator stops; the run is finished".into());
        }
        if let Some(refusal) = self.closed_to_workers() {
            return Err(refusal);
        }
        let no = |reason: String| Err(Refusal::new(RefusalKind::FailedPrecondition, reason));
        match command {
            Command::Pause => match &self.paused {
                Some(reason) => no(format!("the run is paused already: {reason}")),
                None => {
                    let (Place { stage, step }, reason) = (self.committed, "somebody asked for it".to_owned());
                    self.event(EventKind::Paused, json!({ "stage": stage, "step": step, "reason": reason }));
                    self.paused = Some(reason);
                    Ok(format!("the run pauses at {}", self.ahead()))
                }
            },
            Command::Resume => match self.paused.take() {
                None => no("the run is not paused: there is nothing to resume".into()),
                Some(reason) => {
                    self.throughput.interrupt();
                    self.event(EventKind::Resumed, json!({ "at": self.committed.to_string(), "reason": reason }));
                    Ok("the run goes on".into())
                }
            },
            Command::Checkpoint => {
                let at = self.ahead();
                if let Some(saved) = self.checkpoints.get(&at) {
                    return no(format!("{at} is saved already: {}", saved.name));
                }
                self.plan.ask(Boundary::Checkpoint, at);
                Ok(format!("{at} will be saved"))
            }
            Command::Evaluate => {
                let at = self.ahead();
                if self.data_set.as_ref().is_some_and(|known| known.data_set.validation_images == 0) {
                    return no("the data has no validation split".into());
                }
                if self.done.contains(&(at, Boundary::Evaluation)) {
                    return no(format!("{at} is evaluated already"));
                }
                self.plan.ask(Boundary::Evaluation, at);
                let when = if self.paused.is_some() { ", once the run is resumed" } else { "" };
                Ok(format!("{at} will be evaluated{when}"))
            }
            Command::Drain(rank) => {
                let Some(member) = self.members.get(rank) else {
                    return no(format!("no worker of rank {rank} is attached"));
                };
                if member.leaving.is_some() {
                    return no(format!("rank {rank} is on its way out already"));
                }
                self.wants_to_go(rank, "somebody asked for it".into());
                Ok(format!("rank {rank} goes after the step in flight"))
            }
            Command::Stop => {
                self.stopping = true;
                Ok("the coordinator saves and stops; served again, the run goes on".into())
            }
        }
    }

    /// Whether the coordinator was asked to stop.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.stopping
    }

    /// The point up to which steps are granted: the state that the run is about to reach.
    pub(super) fn ahead(&self) -> Place {
        let running = self.generation.as_ref().filter(|_| self.phase == Phase::Running);
        running.map_or(self.committed, |generation| generation.granted)
    }
}
