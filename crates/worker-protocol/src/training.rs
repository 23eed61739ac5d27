//! The side of the training thread: which work it does next, when it stops, and what it reports.
//!
//! The thread takes a [`Command`], does the [`Work`] that it requires, tells the state machine how
//! the work ended, sends the reports, and goes on with the next work, if there is any:
//!
//! ```text
//!   Rendezvous ---> formed           Step ---> step_applied     CopyState ---> state_copied
//!   EnterStage ---> stage_entered    Caption ---> captioned     AwaitSaves ---> saves_completed
//!   Release ---> released            any of them ---> failed, abandoned or cannot_continue
//! ```
//!
//! A generation that ends, for whatever reason, ends in [`Work::Release`]. An Abandon that is
//! noticed in the middle of other work releases the generation without a report: the Abandon
//! directive follows in the queue, and its report says that the worker is idle.

use proto::v1::{self, directive::Directive as DirectiveKind, worker_message::Message};

use crate::{Command, GenerationFlags};

/// What the training thread has to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Work {
    /// Leave the former collective, connect to the other ranks, and agree on the training state.
    Rendezvous(v1::Rendezvous),
    /// Train the step after the present position, on this worker's share of the batch. The
    /// directive may grant further steps.
    Step(v1::Train),
    /// Caption the first of these ranges of images; the others are likely to follow.
    Caption(v1::Evaluate),
    /// Copy the training state, and pass the copy to the saver.
    CopyState(v1::Checkpoint),
    /// Enter this stage, at step 0.
    EnterStage(u32),
    /// Leave the collective.
    Release,
    /// Wait until the saver has completed all saves: the run is complete.
    AwaitSaves,
}

/// Why a generation has failed on this worker.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GenerationFailure {
    /// The reason, in one line.
    pub reason: String,
    /// The name of the checkpoint that could not be used, if that is the failure.
    pub damaged_checkpoint: String,
    /// The worker ids of the peers that could not be reached, if that is the failure.
    pub unreachable_workers: Vec<u32>,
}

/// The reports to send, and what to do then.
#[derive(Debug, Default, PartialEq)]
#[must_use]
pub struct Response {
    /// The reports, in order.
    pub reports: Vec<Message>,
    /// The next work; none if the thread waits for the next command.
    pub work: Option<Work>,
}

/// How the work of a worker ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TrainingEnd {
    /// The run is complete.
    Finished,
    /// This worker cannot continue, for this reason.
    Failed(String),
}

/// What is reported when the generation is released.
#[derive(Debug)]
enum AfterRelease {
    /// Nothing: the Abandon directive follows.
    Nothing,
    /// That the worker is idle.
    Idle,
    /// That the generation has failed, and that the worker is idle.
    Failed(GenerationFailure),
    /// That the worker cannot continue.
    CannotContinue(String),
}

/// The side of the training thread of one worker.
#[derive(Debug)]
pub struct Training {
    /// The generation of the last command, and its flags.
    generation: u64,
    flags: GenerationFlags,
    /// The last generation that this worker has released.
    released_generation: u64,
    /// The position of the training state; none if there is no complete one.
    position: Option<v1::Position>,
    /// The work in progress.
    work: Option<Work>,
    after_release: AfterRelease,
    end: Option<TrainingEnd>,
}

impl Default for Training {
    fn default() -> Self {
        Self {
            generation: 0,
            flags: GenerationFlags::default(),
            released_generation: 0,
            position: None,
            work: None,
            after_release: AfterRelease::Nothing,
            end: None,
        }
    }
}

impl Training {
    /// The position of the training state; none if the worker has no complete one.
    #[must_use]
    pub fn position(&self) -> Option<v1::Position> {
        self.position
    }

    /// The generation of the last command.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The flags of that generation.
    #[must_use]
    pub fn flags(&self) -> &GenerationFlags {
        &self.flags
    }

    /// The work in progress.
    #[must_use]
    pub fn work(&self) -> Option<&Work> {
        self.work.as_ref()
    }

    /// How the work ended; none while there may be more.
    #[must_use]
    pub fn end(&self) -> Option<&TrainingEnd> {
        self.end.as_ref()
    }

    /// Whether a command is obsolete: this worker has released its generation. A Finish never is,
    /// because the run can end when the last generation has failed.
    #[must_use]
    pub fn is_obsolete(&self, command: &Command) -> bool {
        let is_of_generation =
            !matches!(command.directive.kind(), DirectiveKind::Abandon(_) | DirectiveKind::Finish(_));
        is_of_generation && command.directive.generation() <= self.released_generation
    }

    /// Begins a command, after the one before is done.
    pub fn begin(&mut self, command: Command) -> Response {
        if self.is_obsolete(&command) {
            return Response::default();
        }
        let Command { directive, flags } = command;
        let (generation, kind) = directive.into_parts();
        (self.generation, self.flags) = (generation, flags);
        match kind {
            DirectiveKind::Rendezvous(rendezvous) => self.go_on(vec![], Work::Rendezvous(rendezvous)),
            DirectiveKind::Train(train) => self.begin_steps(train),
            DirectiveKind::Evaluate(evaluate) if evaluate.ranges.is_empty() => Response::default(),
            DirectiveKind::Evaluate(evaluate) => self.go_on_unless_abandoned(vec![], Work::Caption(evaluate)),
            DirectiveKind::Checkpoint(checkpoint) => self.go_on(vec![], Work::CopyState(checkpoint)),
            DirectiveKind::Advance(v1::Advance { stage }) => self.go_on(vec![], Work::EnterStage(stage)),
            DirectiveKind::Abandon(_) => self.release(vec![], AfterRelease::Idle),
            DirectiveKind::Finish(_) => self.go_on(vec![], Work::AwaitSaves),
            // The session handles these.
            DirectiveKind::Leave(_) | DirectiveKind::Halt(_) => Response::default(),
        }
    }

    /// The training state was replaced or overwritten during a rendezvous: it has this position, or
    /// none if it is incomplete.
    pub fn replace_state(&mut self, position: Option<v1::Position>) {
        self.position = position;
    }

    /// The generation is formed: this rank has the generation's initial training state.
    pub fn formed(&mut self) -> Response {
        let Some(Work::Rendezvous(rendezvous)) = self.work.take() else { return Response::default() };
        // The checks of directives guarantee that a Rendezvous has a position.
        self.move_to(rendezvous.position.unwrap_or_default());
        let ready = v1::Ready { generation: self.generation, position: self.position };
        Response { reports: vec![Message::Ready(ready)], work: None }
    }

    /// A step's update is applied. `report` is the report without the position;
    /// `is_halt_requested` is whether a rank has requested in the step's all-reduce that the
    /// generation ends after it.
    pub fn step_applied(&mut self, report: v1::StepDone, is_halt_requested: bool) -> Response {
        let Some(Work::Step(train)) = self.work.take() else { return Response::default() };
        let position = self.position.unwrap_or_default();
        self.move_to(v1::Position { step: position.step + 1, ..position });
        let reports = vec![Message::StepDone(v1::StepDone { position: self.position, ..report })];
        if is_halt_requested {
            return self.release(reports, AfterRelease::Idle);
        }
        if position.step + 1 == train.first_step + u64::from(train.steps) {
            return Response { reports, work: None };
        }
        self.go_on_unless_abandoned(reports, Work::Step(train))
    }

    /// The first of the remaining ranges is captioned. `parts` are its items, as many as fit into
    /// one message each.
    pub fn captioned(&mut self, parts: Vec<Vec<v1::EvaluationItem>>) -> Response {
        let Some(Work::Caption(mut evaluate)) = self.work.take() else { return Response::default() };
        if evaluate.ranges.is_empty() {
            return Response::default();
        }
        let range = Some(evaluate.ranges.remove(0));
        let (generation, evaluation) = (self.generation, evaluate.evaluation);
        let last = parts.len().saturating_sub(1);
        let report = |(index, items)| {
            let more = index < last;
            Message::EvaluationItems(v1::EvaluationItems { generation, evaluation, range, items, more })
        };
        let reports = parts.into_iter().enumerate().map(report).collect();
        if evaluate.ranges.is_empty() {
            return Response { reports, work: None };
        }
        if self.flags.halt.is_raised() && !self.flags.abandon.is_raised() {
            return self.release(reports, AfterRelease::Idle);
        }
        self.go_on_unless_abandoned(reports, Work::Caption(evaluate))
    }

    /// The training state is copied, and the saver has the copy.
    pub fn state_copied(&mut self) -> Response {
        self.work = None;
        Response::default()
    }

    /// The stage is entered.
    pub fn stage_entered(&mut self) -> Response {
        let Some(Work::EnterStage(stage)) = self.work.take() else { return Response::default() };
        self.move_to(v1::Position { stage, step: 0, generation: self.generation });
        let advanced = v1::Advanced { generation: self.generation, stage };
        Response { reports: vec![Message::Advanced(advanced)], work: None }
    }

    /// The collective is left. `saving` is the number of the latest save that the saver has not
    /// completed.
    pub fn released(&mut self, saving: Option<u64>) -> Response {
        self.work = None;
        let generation = self.generation;
        self.released_generation = self.released_generation.max(generation);
        let idle = Message::Idle(v1::Idle { generation, position: self.position, saving });
        let reports = match std::mem::replace(&mut self.after_release, AfterRelease::Nothing) {
            AfterRelease::Nothing => vec![],
            AfterRelease::Idle => vec![idle],
            AfterRelease::Failed(GenerationFailure { reason, damaged_checkpoint, unreachable_workers }) => {
                let fatal = false;
                let failed = v1::Failed { generation, reason, fatal, damaged_checkpoint, unreachable_workers };
                vec![Message::Failed(failed), idle]
            }
            AfterRelease::CannotContinue(reason) => {
                self.end = Some(TrainingEnd::Failed(reason.clone()));
                vec![Message::Failed(v1::Failed { generation, reason, fatal: true, ..Default::default() })]
            }
        };
        Response { reports, work: None }
    }

    /// All saves are completed.
    pub fn saves_completed(&mut self) -> Response {
        self.work = None;
        self.end = Some(TrainingEnd::Finished);
        Response { reports: vec![Message::Finished(v1::Finished {})], work: None }
    }

    /// The work ended early, because the generation was abandoned.
    pub fn abandoned(&mut self) -> Response {
        self.release(vec![], AfterRelease::Nothing)
    }

    /// The generation has failed on this worker, which can take part in the next one.
    pub fn failed(&mut self, failure: GenerationFailure) -> Response {
        self.release(vec![], AfterRelease::Failed(failure))
    }

    /// This worker cannot continue, for this reason.
    pub fn cannot_continue(&mut self, reason: String) -> Response {
        self.release(vec![], AfterRelease::CannotContinue(reason))
    }

    fn begin_steps(&mut self, train: v1::Train) -> Response {
        let position = self.position.unwrap_or_default();
        if (train.stage, train.first_step) != (position.stage, position.step) {
            let reason = format!("the directive {train:?} does not start at the worker's position {position:?}");
            return self.failed(GenerationFailure { reason, ..Default::default() });
        }
        self.go_on_unless_abandoned(vec![], Work::Step(train))
    }

    fn go_on_unless_abandoned(&mut self, reports: Vec<Message>, work: Work) -> Response {
        match self.flags.abandon.is_raised() {
            true => self.release(reports, AfterRelease::Nothing),
            false => self.go_on(reports, work),
        }
    }

    fn release(&mut self, reports: Vec<Message>, after_release: AfterRelease) -> Response {
        self.after_release = after_release;
        self.go_on(reports, Work::Release)
    }

    fn go_on(&mut self, reports: Vec<Message>, work: Work) -> Response {
        self.work = Some(work.clone());
        Response { reports, work: Some(work) }
    }

    /// The training state was last changed in the present generation, and is at this position.
    fn move_to(&mut self, position: v1::Position) {
        self.position = Some(v1::Position { generation: self.generation, ..position });
    }
}

#[cfg(test)]
mod tests;
