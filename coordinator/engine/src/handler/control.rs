//! Operator commands for a run in progress: pause, resume, checkpoint, evaluate, drain, stop.
//!
//! A requested checkpoint or evaluation becomes a boundary of the plan at the end of the granted
//! steps. Therefore it takes place even if members join or leave before. The request is not in the
//! journal: it is lost if the coordinator restarts.

use crate::{
    command::Command,
    handler::{admission::refusal_if_ending, membership::MembershipHandler},
    outcome::Outcome,
    output::Output,
    plan::{Boundary, Position},
    record::Record,
    refusal::{Refusal, RefusalKind},
    state::{State, generations::RunPhase},
    types::WorkerId,
};

/// The reason in the records of events that an operator's command caused.
const OPERATOR_REQUEST: &str = "an operator requested it";

/// Executes a command. Returns a message that says what will happen.
///
/// # Errors
/// The state of the run does not allow the command.
pub fn execute(state: &mut State, output: &mut Output, command: Command) -> Result<String, Refusal> {
    let is_finished = matches!(state.generations.phase, RunPhase::Over { outcome: Outcome::Finished, .. });
    if command == Command::Stop && is_finished {
        state.is_stopping = true;
        return Ok("the coordinator stops; the run is finished".into());
    }
    if let Some(refusal) = refusal_if_ending(&state.generations, state.is_stopping) {
        return Err(refusal);
    }
    match command {
        Command::Pause => pause(state, output),
        Command::Resume => resume(state, output),
        Command::Checkpoint => request_checkpoint(state),
        Command::Evaluate => request_evaluation(state),
        Command::Drain(worker_id) => drain(state, output, worker_id),
        Command::Stop => {
            state.is_stopping = true;
            Ok("the coordinator saves a checkpoint and stops; `coordinator serve` resumes the run".into())
        }
    }
}

/// The position up to which steps are granted; the committed position if no generation runs.
#[must_use]
pub fn end_of_granted_steps(state: &State) -> Position {
    state.generations.running().map_or(state.history.committed, |generation| generation.granted)
}

fn pause(state: &mut State, output: &mut Output) -> Result<String, Refusal> {
    if let Some(reason) = &state.stage.pause_reason {
        return refuse(format!("the run is already paused: {reason}"));
    }
    let (position, reason) = (state.history.committed, OPERATOR_REQUEST.to_owned());
    output.record(Record::Paused { position, reason: reason.clone() });
    state.stage.pause_reason = Some(reason);
    Ok(format!("the run pauses at {}", end_of_granted_steps(state)))
}

fn resume(state: &mut State, output: &mut Output) -> Result<String, Refusal> {
    let Some(reason) = state.stage.pause_reason.take() else {
        return refuse("the run is not paused: there is nothing to resume".into());
    };
    state.measurements.throughput.reset_timer();
    output.record(Record::Resumed { position: state.history.committed, reason });
    Ok("the run continues".into())
}

fn request_checkpoint(state: &mut State) -> Result<String, Refusal> {
    let position = end_of_granted_steps(state);
    if let Some(saved) = state.checkpoints.saved.get(&position) {
        return refuse(format!("{position} is already saved as {}", saved.name));
    }
    state.history.plan.add_requested_boundary(Boundary::Checkpoint, position);
    Ok(format!("{position} will be saved"))
}

fn request_evaluation(state: &mut State) -> Result<String, Refusal> {
    let position = end_of_granted_steps(state);
    if state.data.description.is_some() && state.data.validation_images() == 0 {
        return refuse("the data have no validation split".into());
    }
    if state.history.passed_boundaries.contains(&(position, Boundary::Evaluation)) {
        return refuse(format!("{position} is already evaluated"));
    }
    state.history.plan.add_requested_boundary(Boundary::Evaluation, position);
    let when = if state.stage.pause_reason.is_some() { " when the run is resumed" } else { "" };
    Ok(format!("{position} will be evaluated{when}"))
}

fn drain(state: &mut State, output: &mut Output, worker_id: WorkerId) -> Result<String, Refusal> {
    let Some(member) = state.members.get(worker_id) else {
        return refuse(format!("worker {worker_id} is not attached"));
    };
    if member.leave_reason.is_some() {
        return refuse(format!("worker {worker_id} is already leaving"));
    }
    MembershipHandler::new(state, output).request_leave(worker_id, OPERATOR_REQUEST.into());
    Ok(format!("worker {worker_id} leaves after the step in flight"))
}

fn refuse(reason: String) -> Result<String, Refusal> {
    Err(Refusal::new(RefusalKind::FailedPrecondition, reason))
}
