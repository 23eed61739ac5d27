//! The engine: passes each event to its handler, applies the effects, and reconciles the run.
//!
//! Reconciling is a loop: apply the effects of handlers, in order; then make the first change that
//! is due; repeat until nothing changes. A handler may call one on a lower floor, such as that of
//! membership, and never one in a circle; `tests/module-cycles/check` checks that.

use std::collections::{BTreeMap, BTreeSet};

use config::RunFile;
use proto::v1::{self, directive::Directive, worker_message::Message};

use crate::{
    action::Action,
    decision::{BoundaryStatus, Decision, Next, RetryStatus, Save, Stored, View, decide},
    event::Event,
    event_kind::EventKind,
    handler::{
        admission::AdmissionHandler,
        control,
        evaluation::EvaluationHandler,
        failure_detection::{StallHandler, remove_overdue},
        generation::{GenerationHandler, next_generation},
        membership::MembershipHandler,
        membership_changes::{is_save_only, reason_to_halt, release_leaving_members, state_holders},
        reachability::{evict_unreachable, record_unreachable},
        saving::SavingHandler,
        stage::StageHandler,
        training::{TrainingHandler, grantable_steps, record_incomplete_steps, record_step},
    },
    outcome::Outcome,
    output::{Effect, Output},
    plan::NextAction,
    record::Record,
    refusal::{Refusal, RefusalKind},
    restored::RestoredRun,
    settings::Settings,
    state::{
        State,
        generations::{Generation, PendingBoundary, RunPhase},
    },
    types::{SessionId, Time, WorkerId},
    violation::{ProtocolViolation, one_line},
};

/// How long the coordinator waits for its members to disconnect when the run is over.
const DISCONNECT_TIMEOUT: Time = Time::from_secs(5);
/// Upper bound of the changes that one event causes. Each change makes progress towards a state in
/// which nothing is due, so an event causes far fewer. If the bound is reached nevertheless, a
/// release build continues at the next event.
const MAX_CHANGES_PER_EVENT: usize = 100_000;

/// The state machine of a run.
#[derive(Debug)]
pub struct Engine {
    state: State,
    /// The actions of the event that is being handled, and the effects to apply.
    output: Output,
    /// Whether [`Action::Exit`] was sent.
    has_exited: bool,
}

impl Engine {
    /// A run of a checked run file, resumed from the state that an earlier coordinator's journal
    /// gives. `term` is random and different for each coordinator process: see
    /// [`term_log`](crate::term_log).
    #[must_use]
    pub fn new(file: RunFile, mut restored: RestoredRun, term: u64) -> Self {
        let file_json = serde_json::to_string(&file).expect("a run file is plain data");
        let settings = Settings { run_id: std::mem::take(&mut restored.run_id), term, file, file_json };
        Self { state: State::new(settings, restored), output: Output::default(), has_exited: false }
    }

    /// The same run, except that the first worker may have training data other than the data in the
    /// journal.
    #[must_use]
    pub fn accepting_changed_data(mut self) -> Self {
        self.state.data.accepts_changes = true;
        self
    }

    /// The state of the run.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Handles an event. Returns the actions to execute, in order.
    pub fn on_event(&mut self, now: Time, event: Event) -> Vec<Action> {
        let Self { state, output, .. } = self;
        match event {
            Event::Join { request, address, generated_join_key, join } => {
                match AdmissionHandler::new(state, output).join(now, address, &join, generated_join_key) {
                    Ok(response) => output.push_action(Action::Admit { request, response }),
                    Err(refusal) => output.push_action(Action::Refuse { request, refusal }),
                }
            }
            Event::Attach { session, attach } => {
                if let Err(refusal) = AdmissionHandler::new(state, output).attach(now, session, attach) {
                    output.push_action(Action::Close { session, refusal: Some(refusal) });
                }
            }
            Event::Message { session, message } => self.handle_message(now, session, message),
            Event::Violation { session, violation } => self.handle_violation(now, session, &violation),
            Event::CaptionsKept { range } => EvaluationHandler::new(state, output).captions_kept(range),
            Event::Closed { session } => MembershipHandler::new(state, output).session_closed(now, session),
            Event::CaptionSaveAttempted { evaluation, error } => {
                EvaluationHandler::new(state, output).caption_save_attempted(evaluation, error);
            }
            Event::Scored { evaluation, metrics } => self.handle_scores(evaluation, metrics),
            Event::Tick => {
                remove_overdue(state, output, now);
                self.apply_effects(now);
                StallHandler::new(&mut self.state, &mut self.output).check(now);
            }
            Event::Control { request, command } => match control::execute(state, output, command) {
                Ok(message) => output.push_action(Action::Accept { request, message }),
                Err(refusal) => output.push_action(Action::Refuse { request, refusal }),
            },
            Event::Shutdown => state.is_stopping = true,
        }
        self.reconcile(now);
        self.output.take_actions()
    }

    /// Handles a message of a worker.
    fn handle_message(&mut self, now: Time, session: SessionId, message: Message) {
        // A session that is being closed has no member. Its last messages are ignored.
        let Some(worker_id) = self.state.members.worker_id_of(session) else { return };
        if let Some(member) = self.state.members.get_mut(worker_id) {
            member.last_message_at = now;
        }
        if let Err(violation) = self.dispatch_message(now, worker_id, message) {
            self.handle_violation(now, session, &violation);
        }
    }

    /// Ends the session of a worker that has violated the protocol.
    fn handle_violation(&mut self, now: Time, session: SessionId, violation: &ProtocolViolation) {
        if let Some(worker_id) = self.state.members.worker_id_of(session) {
            let reason = format!("worker {worker_id} violated the protocol: {}", one_line(&violation.to_string()));
            let refusal = Refusal::new(RefusalKind::InvalidArgument, reason.clone());
            self.output.push_action(Action::Close { session, refusal: Some(refusal) });
            MembershipHandler::new(&mut self.state, &mut self.output).remove(now, worker_id, EventKind::Lost, &reason);
        }
    }

    fn dispatch_message(&mut self, now: Time, worker_id: WorkerId, message: Message) -> Result<(), ProtocolViolation> {
        let Self { state, output, .. } = self;
        match message {
            Message::Attach(_) => Err(ProtocolViolation::new("it attached twice")),
            Message::Heartbeat(heartbeat) => {
                let last = state.generations.last_number;
                let position = heartbeat.position.as_ref();
                if let Some(reason) = position.and_then(|position| state.history.position_error(position, last)) {
                    return Err(ProtocolViolation::new(format!("it reported an impossible position: {reason}")));
                }
                state.members.record_heartbeat(now, worker_id, &heartbeat);
                Ok(())
            }
            Message::Ready(ready) => GenerationHandler::new(state, output).ready(worker_id, &ready),
            Message::StepDone(report) => TrainingHandler::new(state, output).step_done(now, worker_id, &report),
            Message::EvaluationItems(items) => {
                state.members.record_progress(now, worker_id);
                EvaluationHandler::new(state, output).items(worker_id, &items)
            }
            Message::CheckpointDone(done) => {
                state.members.record_progress(now, worker_id);
                SavingHandler::new(state, output).done(worker_id, done)
            }
            Message::CheckpointFailed(failed) => {
                state.members.record_progress(now, worker_id);
                SavingHandler::new(state, output).save_failed(now, worker_id, &failed)
            }
            Message::Advanced(advanced) => TrainingHandler::new(state, output).advanced(worker_id, &advanced),
            Message::Idle(idle) => GenerationHandler::new(state, output).idle(now, worker_id, &idle),
            Message::Failed(failed) => self.handle_failure(now, worker_id, &failed),
            Message::Leaving(leaving) => {
                MembershipHandler::new(state, output).leaving(worker_id, &leaving);
                Ok(())
            }
            Message::Finished(_) => {
                MembershipHandler::new(state, output).finished(now, worker_id);
                Ok(())
            }
        }
    }

    /// Handles `Failed`: a member reports a failure.
    fn handle_failure(&mut self, now: Time, worker_id: WorkerId, failed: &v1::Failed) -> Result<(), ProtocolViolation> {
        let Self { state, output, .. } = self;
        state.generations.check_exists(failed.generation)?;
        let is_current = GenerationHandler::new(state, output).is_in_active_generation(worker_id, failed.generation);
        if is_current && !failed.damaged_checkpoint.is_empty() {
            let reason = one_line(&failed.reason);
            SavingHandler::new(state, output).discard_damaged(worker_id, &failed.damaged_checkpoint, &reason)?;
        }
        record_unreachable(&mut state.generations, &state.members, worker_id, failed);
        let failure = GenerationHandler::new(state, output).member_failed(now, worker_id, failed);
        if failure.is_fatal {
            let mut handler = MembershipHandler::new(state, output);
            handler.close_session(worker_id);
            handler.remove(now, worker_id, EventKind::Lost, &failure.reason);
        }
        if failure.must_end_run {
            // After the removal: the save in progress may be complete without the member.
            let reason = format!("generations keep failing without progress: {}", failure.reason);
            output.add_effect(Effect::EndRun(Outcome::Failed(reason)));
        }
        Ok(())
    }

    /// Handles [`Event::Scored`]: completes the evaluation.
    fn handle_scores(&mut self, evaluation: u64, metrics: BTreeMap<String, f64>) {
        let Self { state, output, .. } = self;
        let Some(position) = EvaluationHandler::new(state, output).complete(evaluation) else { return };
        // The guard's actions are recorded before the evaluation. In the other order, a coordinator
        // that crashes between the two records would find the evaluation in the journal after its
        // restart, would not repeat it, and would never execute the actions.
        StageHandler::new(state, output).check_evaluation(position, &metrics);
        EvaluationHandler::new(state, output).record(evaluation, position, metrics);
    }

    /// Applies effects and makes changes until nothing is due.
    fn reconcile(&mut self, now: Time) {
        self.apply_effects(now);
        for _ in 0..MAX_CHANGES_PER_EVENT {
            if !self.make_change(now) {
                return;
            }
            self.apply_effects(now);
        }
        debug_assert!(false, "the run does not come to rest: {:?}", self.state);
    }

    /// Applies the effects of handlers, and the effects of these.
    fn apply_effects(&mut self, now: Time) {
        while let Some(effect) = self.output.take_effect() {
            let Self { state, output, .. } = self;
            match effect {
                Effect::Evict { worker_id, reason } => {
                    MembershipHandler::new(state, output).evict(now, worker_id, &reason);
                }
                Effect::MemberRemoved { worker_id, was_in_generation, reason } => {
                    let unfinished_save = None;
                    SavingHandler::new(state, output).exclude_member(worker_id, unfinished_save);
                    if was_in_generation {
                        GenerationHandler::new(state, output).end(now, &reason, true);
                    }
                }
                Effect::GenerationReleased { worker_id, unfinished_save } => {
                    SavingHandler::new(state, output).exclude_member(worker_id, unfinished_save);
                }
                Effect::EndGeneration { reason, is_failure } => {
                    GenerationHandler::new(state, output).end(now, &reason, is_failure);
                }
                Effect::GenerationFormed { start } => {
                    EvaluationHandler::new(state, output).cancel_outdated(start);
                    let mut saving = SavingHandler::new(state, output);
                    saving.cancel_beyond(start);
                    saving.delete_unfinished();
                }
                Effect::StepMerged(step) => {
                    StageHandler::new(state, output).check_step(&step);
                    record_step(&mut state.measurements, output, *step);
                }
                Effect::StageEnded { position } => SavingHandler::new(state, output).end_stage(position),
                Effect::EndRun(outcome) => self.end_run(now, outcome),
            }
        }
    }

    /// Makes the first change that is due. Returns false if none is due.
    fn make_change(&mut self, now: Time) -> bool {
        let Self { state, output, .. } = self;
        if let RunPhase::Over { outcome, until } = &state.generations.phase {
            let (outcome, until) = (outcome.clone(), *until);
            self.try_exit(now, outcome, until);
            return false;
        }
        if StageHandler::new(state, output).try_end() || release_leaving_members(state, output, now) {
            return true;
        }
        let can_stop = state.is_stopping && state.generations.phase != RunPhase::Running;
        if can_stop && !must_save_before_stop(state) {
            output.add_effect(Effect::EndRun(Outcome::Stopped));
            return true;
        }
        match &state.generations.phase {
            RunPhase::Waiting => self.try_form_generation(now),
            RunPhase::Forming => GenerationHandler::new(state, output).try_start_training(),
            RunPhase::Running => self.continue_training(now),
            RunPhase::Over { .. } => false,
        }
    }

    /// Forms the next generation if enough members have joined and all members have released the
    /// last generation.
    fn try_form_generation(&mut self, now: Time) -> bool {
        let Self { state, output, .. } = self;
        if !state.members.are_all_idle() {
            return false;
        }
        if evict_unreachable(state, output) {
            return true;
        }
        let Some((members, start)) = next_generation(state, now) else { return false };
        GenerationHandler::new(state, output).form(members, start);
        true
    }

    /// Executes the next decision for the running generation. Returns false if it is to wait.
    fn continue_training(&mut self, now: Time) -> bool {
        let Self { state, output, .. } = self;
        let Some(generation) = state.generations.running() else { return false };
        let granted = generation.granted;
        let next = state.history.plan.next_action(granted, &state.history.passed_boundaries);
        let halt_reason = reason_to_halt(state, generation);
        let view = view_of(state, generation, next, halt_reason.is_some(), now);
        match decide(&view) {
            Decision::Wait => return false,
            Decision::Halt => GenerationHandler::new(state, output).halt(halt_reason.unwrap_or_default()),
            Decision::EndHalted => {
                let reason = generation.halt_reason.clone().unwrap_or_default();
                output.add_effect(Effect::EndGeneration { reason, is_failure: false });
            }
            Decision::EndSaved => {
                output.add_effect(Effect::EndGeneration { reason: "all members leave".into(), is_failure: false });
            }
            Decision::Finish => output.add_effect(Effect::EndRun(Outcome::Finished)),
            Decision::Stop => output.add_effect(Effect::EndRun(Outcome::Stopped)),
            Decision::Save => SavingHandler::new(state, output).start(),
            Decision::ForgetFailedSave => SavingHandler::new(state, output).forget_failure(granted),
            Decision::Evaluate => EvaluationHandler::new(state, output).start(),
            Decision::Train => {
                if let NextAction::Train { steps } = next {
                    let steps = grantable_steps(&state.settings, generation, steps);
                    TrainingHandler::new(state, output).grant_steps(steps);
                }
            }
            Decision::Advance => {
                if let NextAction::Advance { stage } = next {
                    TrainingHandler::new(state, output).begin_stage(stage);
                }
            }
        }
        true
    }

    /// Ends the run, or only this coordinator process, with this outcome: informs all members, and
    /// waits for them to disconnect.
    fn end_run(&mut self, now: Time, outcome: Outcome) {
        let Self { state, output, .. } = self;
        if state.generations.is_over() {
            return;
        }
        let failed_save = state.checkpoints.failed.as_ref();
        let stop_reason = failed_save.map_or("the coordinator is shutting down".to_owned(), |failed| {
            format!("the coordinator is shutting down, and the last steps are lost: {}", failed.reason)
        });
        let are_all_steps_saved = failed_save.is_none();
        // The records come first: a worker that has received Finish does not reconnect.
        let reason = match &outcome {
            Outcome::Finished => "the run is finished".to_owned(),
            Outcome::Stopped => stop_reason.clone(),
            Outcome::Failed(reason) => reason.clone(),
        };
        record_incomplete_steps(&mut state.generations, &mut state.measurements, output);
        state.checkpoints.in_progress = None;
        if let Some(generation) = state.generations.current.as_ref().filter(|_| state.generations.is_active()) {
            output.record(Record::Ended { generation: generation.number, reason: reason.clone() });
        }
        let result = state.result_checkpoint().map(str::to_owned).filter(|_| outcome == Outcome::Finished);
        let position = state.history.committed;
        output.record(Record::RunEnded { outcome: outcome.clone(), position, reason, result });
        let last_generation = state.generations.last_number;
        let sessions: BTreeSet<SessionId> = state.members.iter().map(|(_, member)| member.session).collect();
        for session in sessions {
            match &outcome {
                Outcome::Finished => output.send(session, last_generation, Directive::Finish(v1::Finish {})),
                Outcome::Stopped => output.send_leave(session, last_generation, &stop_reason, are_all_steps_saved),
                Outcome::Failed(reason) => {
                    output.send_leave(session, last_generation, &format!("the run has failed: {reason}"), false);
                }
            }
        }
        state.generations.phase = RunPhase::Over { outcome, until: now.saturating_add(DISCONNECT_TIMEOUT) };
    }

    /// Ends the coordinator process, once, if its members have disconnected or had the time to.
    fn try_exit(&mut self, now: Time, outcome: Outcome, until: Time) {
        if self.has_exited || !(self.state.members.is_empty() || now >= until) {
            return;
        }
        self.has_exited = true;
        if outcome == Outcome::Finished {
            // No generation will be formed any more.
            SavingHandler::new(&mut self.state, &mut self.output).delete_unfinished();
        }
        self.output.push_action(Action::Exit(outcome));
    }
}

/// Whether a state would be lost if the coordinator stopped now. If a save has failed, the
/// coordinator stops nevertheless.
fn must_save_before_stop(state: &State) -> bool {
    state.checkpoints.failed.is_none() && state_holders(state).holder_about_to_leave().is_some()
}

/// What the decision for a running generation depends on.
fn view_of(state: &State, generation: &Generation, next: NextAction, must_halt: bool, now: Time) -> View {
    let State { settings, members, history, checkpoints, stage, .. } = state;
    let granted = generation.granted;
    View {
        next: match next {
            NextAction::Train { steps } => {
                Next::Train { is_grantable: grantable_steps(settings, generation, steps) > 0 }
            }
            NextAction::Checkpoint => Next::Checkpoint,
            NextAction::Evaluate => Next::Evaluate,
            NextAction::Advance { .. } => Next::Advance,
            NextAction::Finish => Next::Finish,
        },
        are_steps_reported: generation.all_steps_reported(),
        boundary: match &generation.pending_boundary {
            None => BoundaryStatus::None,
            Some(PendingBoundary::Scores) => BoundaryStatus::Scores,
            Some(_) => BoundaryStatus::Members,
        },
        is_halting: generation.halt_reason.is_some(),
        must_halt,
        is_paused: stage.pause_reason.is_some(),
        is_stopping: state.is_stopping,
        save: match checkpoints.saving_position() {
            None => Save::None,
            Some(position) if position == granted => Save::OfGranted,
            Some(_) => Save::OfOther,
        },
        failed_save: match &checkpoints.failed {
            None => RetryStatus::None,
            Some(failed) if now < failed.retry_at => RetryStatus::RetryLater,
            Some(_) => RetryStatus::RetryNow,
        },
        stored: match checkpoints.saved.contains_key(&granted) {
            true => Stored::Checkpoint,
            false if checkpoints.can_restore(granted) => Stored::Seed,
            false => Stored::No,
        },
        is_save_only: is_save_only(members, generation),
        must_wait_for_save: history.plan.stage(granted).metric.is_some(),
    }
}

#[cfg(test)]
mod tests;
