//! The run: a state machine without clock, sockets, threads or randomness, like openraft's core or
//! etcd's raft. Its inputs are [`Event`]s and the time, its outputs are [`Action`]s.
//!
//! The *training state* at a position is what a checkpoint saves and a rendezvous copies between
//! workers: parameters, optimizer moments and the position. In this module, *the state at a
//! position* always means the training state.
//!
//! ```text
//!   Event: Join, Attach, Message, Closed, CaptionSaveAttempted, Scored, Tick, Control, Shutdown
//!      |
//!      v
//!   Run ---- messages            checks and dispatches the messages of workers
//!      |---- admission           checks workers that join, and the training state that they bring
//!      |---- membership          worker ids, sessions and heartbeats
//!      |---- failure_detection   removes members that fail, and evicts members
//!      |---- reachability        evicts members that other members cannot connect to
//!      |---- stall_detection     evicts members that make no progress
//!      |---- generation          waiting -> forming -> running -> waiting -> ... -> over
//!      |---- membership_changes  halts a generation for a worker that joins or leaves
//!      |---- plan                the boundaries: checkpoints, evaluations, ends of stages
//!      |---- data                the identity of the training data, and its changes
//!      |---- progress            grants steps, executes boundaries, commits steps
//!      |       |---- step_tracker  the position of each member
//!      |       '---- shares        the division of a batch among ranks
//!      |---- statistics          merges the reports of a step
//!      |---- throughput          seconds per step, and the time to the end of the stage
//!      |---- checkpoint          saves the training state, and deletes old checkpoints
//!      |---- evaluation          collects captions, and requests their scores
//!      |       '---- captions      the reported captions, checked against limits
//!      |---- stage_end           ends stages
//!      |       |---- guard           rules that warn, pause the run, or roll back the stage
//!      |       '---- model_selection the best state of a stage, and early stopping
//!      |---- lineage             which states belong to the present history
//!      |---- term_log            which coordinator process formed which generation
//!      |---- control             executes commands of operators
//!      '---- status              the answers to status requests and to the readiness probe
//!      |
//!      v
//!   Action: Admit, Accept, Refuse, Send, Close, Record, Score, DeleteCheckpoint, Exit
//!
//!   types: ids and ranks      events: Event and Action      refusal: refused requests
//!   record: what the journal stores                         violation: invalid messages
//!   simulation, testing: tests
//! ```
//!
//! Three positions of the run matter. `committed` is the furthest position that at least one member
//! has applied and reported: the samples up to it are consumed. `granted` is the position up to
//! which the workers were ordered to train: at most `control.window` steps beyond the last step
//! that all members have reported. The third is the own position of each member of the generation.
//! It is at most `granted`, and at most one step or stage change behind `committed`, because a
//! member applies a step only after all members have entered the all-reduce of that step. The
//! training state of a worker comes only from another member, from a checkpoint or from the seed,
//! and each of them names its position in the plan. Therefore every training state has consumed
//! each sample up to its position exactly once.

mod admission;
pub mod captions;
mod checkpoint;
mod control;
pub mod data;
mod evaluation;
mod events;
mod failure_detection;
mod generation;
pub mod guard;
pub mod lineage;
pub mod membership;
mod membership_changes;
mod messages;
pub mod model_selection;
pub mod plan;
mod progress;
mod reachability;
pub mod record;
mod refusal;
pub mod shares;
#[cfg(test)]
pub(crate) mod simulation;
mod stage_end;
mod stall_detection;
pub mod statistics;
mod status;
pub mod step_tracker;
pub mod term_log;
#[cfg(test)]
pub(crate) mod testing;
mod throughput;
mod types;
mod violation;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use config::RunFile;
use proto::v1;
use serde_json::json;

use checkpoint::{FailedSave, SaveInProgress};
pub use control::Command;
use data::{DataChange, RunData};
use evaluation::Evaluation;
pub use events::{Action, Event, Outcome};
use generation::{FailureCounter, Generation, GenerationEnd};
use guard::Guard;
use lineage::BranchPoints;
use membership::Membership;
use model_selection::Scores;
use plan::{Boundaries, Plan, Position};
use reachability::UnreachablePairs;
use record::{Checkpoint, EventKind, Record, RestoredRun};
pub use refusal::{Refusal, RefusalKind};
use statistics::StepStatistics;
pub use status::NotReady;
use term_log::TermLog;
use throughput::Throughput;
pub use types::{Rank, RequestId, SessionId, Time, WorkerId};
pub use violation::ProtocolViolation;

/// How long the coordinator waits for its members to disconnect when the run is over.
const DISCONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A reason sent by a worker is cut to this number of characters.
const MAX_REASON_CHARS: usize = 500;

/// The phase of the run's life cycle, which is also that of its generation; see [`generation`].
#[derive(Clone, Debug, PartialEq, Eq)]
enum RunPhase {
    /// No generation: waiting for members to join or to release the last one.
    Waiting,
    /// The members of a new generation are in their rendezvous.
    Forming,
    /// The members of the generation train.
    Running,
    /// The run is finished or has failed, or this coordinator process stops. It waits until this
    /// time for its members to disconnect.
    Over { outcome: Outcome, until: Time },
}

/// The state of a run; see the [module](self).
#[derive(Debug)]
pub struct Run {
    /// The run's id: random and unique.
    id: String,
    /// The term of this coordinator process, a random number; see [`term_log`].
    term: u64,
    /// Which term formed which generation.
    term_log: TermLog,
    file: RunFile,
    /// The run file as JSON, as it is sent to workers.
    file_json: String,
    plan: Plan,
    members: Membership,
    phase: RunPhase,
    /// The generation that forms or runs; while waiting, the one that ended last, whose reports may
    /// still arrive.
    generation: Option<Generation>,
    /// Number of the last generation.
    last_generation: u64,
    /// The furthest position that workers may have reached: steps are granted up to here.
    max_granted_position: Position,
    /// Decides which states belong to the present history.
    branch_points: BranchPoints,
    /// The furthest position that a member has applied and reported.
    committed: Position,
    /// Incremented with each committed position, saved checkpoint, completed evaluation and
    /// discarded damaged checkpoint. A run whose generations keep failing while this number does
    /// not change cannot continue, and fails.
    progress_count: u64,
    /// The boundaries that the present history has passed.
    passed_boundaries: Boundaries,
    checkpoints: BTreeMap<Position, Checkpoint>,
    /// The last checkpoint of each stage that ended with an earlier state. It is kept for the user;
    /// the run never resumes from it.
    superseded_checkpoints: Vec<Checkpoint>,
    /// The save in progress.
    saving: Option<SaveInProgress>,
    /// The last attempt to save, if it failed.
    failed_save: Option<FailedSave>,
    /// The positions whose states this coordinator process has ordered the members to save.
    save_attempts: BTreeSet<Position>,
    /// Whether the run had no generation before this coordinator process, so that no earlier
    /// process can have ordered a save.
    is_fresh: bool,
    /// When a member with a training state was last removed; initially the coordinator's start.
    state_holder_removed_at: Time,
    /// Names of checkpoints that an earlier coordinator process began to save or delete, and did
    /// not finish.
    unfinished_checkpoints: BTreeSet<String>,
    /// The scores of the present history's evaluations.
    scores: Scores,
    /// The evaluation in progress.
    evaluation: Option<Evaluation>,
    /// Checks the values of the current stage against its bounds.
    guard: Guard,
    /// Why the guard or an operator has paused the run; none while it is not paused.
    pause_reason: Option<String>,
    /// The number of the last evaluation or checkpoint directive.
    last_directive: u64,
    /// Counts failed generations, to end a run that cannot continue.
    failure_counter: FailureCounter,
    /// Pairs of members that could not reach each other since the last generation was formed.
    unreachable_pairs: UnreachablePairs,
    /// The identity of the workers' data; none before the first worker of a new run attaches.
    data: Option<RunData>,
    /// Changes of the training data, in order.
    data_changes: Vec<DataChange>,
    /// Whether the first worker may have training data other than the data in the journal
    /// (`serve --accept-changes`).
    accepts_changed_data: bool,
    /// How the last generation ended.
    last_end: GenerationEnd,
    /// The statistics of the last recorded step.
    latest_step: Option<StepStatistics>,
    /// The measured seconds per step of the current stage.
    throughput: Throughput,
    /// Whether the coordinator was asked to stop.
    stop_requested: bool,
    /// Whether [`Action::Exit`] was sent.
    has_exited: bool,
    /// The actions of the event that is being handled.
    actions: Vec<Action>,
}

impl Run {
    /// A run of a checked run file, resumed from the state that an earlier coordinator's journal
    /// gives. `term` is random and different for each coordinator process: see [`term_log`].
    #[must_use]
    pub fn new(file: RunFile, restored: RestoredRun, term: u64) -> Self {
        let finished = RunPhase::Over { outcome: Outcome::Finished, until: Time::ZERO };
        let plan = Plan::new(&file, restored.selected_steps);
        let by_position = |checkpoint: Checkpoint| (checkpoint.position, checkpoint);
        let mut run = Self {
            id: restored.run_id,
            term,
            term_log: restored.term_log,
            file_json: serde_json::to_string(&file).expect("a run file is plain data"),
            max_granted_position: plan.max_granted_position(restored.committed, &restored.passed_boundaries),
            plan,
            file,
            members: Membership::default(),
            phase: if restored.is_finished { finished } else { RunPhase::Waiting },
            generation: None,
            last_generation: restored.last_generation,
            branch_points: restored.branch_points,
            committed: restored.committed,
            progress_count: 0,
            passed_boundaries: restored.passed_boundaries,
            checkpoints: restored.checkpoints.into_iter().map(by_position).collect(),
            superseded_checkpoints: restored.superseded_checkpoints,
            saving: None,
            failed_save: None,
            save_attempts: BTreeSet::new(),
            is_fresh: restored.last_generation == 0,
            state_holder_removed_at: Time::ZERO,
            unfinished_checkpoints: restored.unfinished_checkpoints,
            scores: restored.scores,
            evaluation: None,
            guard: Guard::new(0, &[]),
            pause_reason: restored.pause_reason,
            // Workers may still execute directives of an earlier coordinator process. Their numbers
            // must not be used again.
            last_directive: restored.last_generation << 32,
            failure_counter: FailureCounter::default(),
            unreachable_pairs: UnreachablePairs::default(),
            data: restored.data_set.map(|data_set| RunData { reported_by: None, data_set }),
            data_changes: restored.data_changes,
            accepts_changed_data: false,
            last_end: GenerationEnd { reason: "start".into(), is_failure: false },
            latest_step: None,
            throughput: Throughput::default(),
            stop_requested: false,
            has_exited: false,
            actions: Vec::new(),
        };
        run.restart_guard();
        for (position, means) in restored.step_means {
            // Rules that fire here also fired in an earlier coordinator process, which executed
            // their actions.
            run.guard.check_step(position, |metric| means.get(metric).copied());
        }
        run
    }

    /// The same run, except that the first worker may have training data other than the data in the
    /// journal.
    #[must_use]
    pub fn accepting_changed_data(self) -> Self {
        Self { accepts_changed_data: true, ..self }
    }

    /// The guard rules that fire on this value of a step.
    #[cfg(test)]
    pub(crate) fn check_step_value(
        &mut self,
        position: Position,
        metric: &str,
        mean: f64,
    ) -> Vec<guard::TriggeredRule> {
        self.guard.check_step(position, |name| (name == metric).then_some(mean))
    }

    /// Handles an event. Returns the actions to execute, in order.
    pub fn on_event(&mut self, now: Time, event: Event) -> Vec<Action> {
        match event {
            Event::Join { request, address, generated_join_key, join } => {
                match self.handle_join(now, address, &join, generated_join_key) {
                    Ok(response) => self.actions.push(Action::Admit { request, response }),
                    Err(refusal) => self.actions.push(Action::Refuse { request, refusal }),
                }
            }
            Event::Attach { session, attach } => {
                if let Err(refusal) = self.handle_attach(now, session, attach) {
                    self.actions.push(Action::Close { session, refusal: Some(refusal) });
                }
            }
            Event::Message { session, message } => self.handle_message(now, session, message),
            Event::Closed { session } => self.handle_closed(now, session),
            Event::CaptionSaveAttempted { evaluation, error } => self.handle_caption_save_attempt(evaluation, error),
            Event::Scored { evaluation, metrics, items } => self.handle_scores(evaluation, metrics, items),
            Event::Tick => self.check_timeouts(now),
            Event::Control { request, command } => match self.execute_command(command) {
                Ok(message) => self.actions.push(Action::Accept { request, message }),
                Err(refusal) => self.actions.push(Action::Refuse { request, refusal }),
            },
            Event::Shutdown => self.stop_requested = true,
        }
        self.reconcile(now);
        std::mem::take(&mut self.actions)
    }

    /// Reconciles the run after an event: ends stages, releases leaving members, forms and starts
    /// generations, sends directives, ends the run.
    fn reconcile(&mut self, now: Time) {
        self.try_end_stage(now);
        if !matches!(self.phase, RunPhase::Over { .. }) {
            self.release_leaving_members(now);
        }
        let can_stop = self.stop_requested && matches!(self.phase, RunPhase::Waiting | RunPhase::Forming);
        if can_stop && (self.failed_save.is_some() || self.holder_about_to_leave().is_none()) {
            self.end_run(now, Outcome::Stopped);
        }
        match &self.phase {
            RunPhase::Waiting => self.try_form_generation(now),
            RunPhase::Forming => self.try_start_training(now),
            RunPhase::Running => self.send_due_directives(now),
            RunPhase::Over { .. } => {}
        }
        if let RunPhase::Over { outcome, until } = &self.phase
            && (self.members.is_empty() || now >= *until)
            && !self.has_exited
        {
            self.has_exited = true;
            let outcome = outcome.clone();
            if outcome == Outcome::Finished {
                // No generation will be formed any more.
                self.delete_unfinished_checkpoints();
            }
            self.actions.push(Action::Exit(outcome));
        }
    }

    /// Ends the run, or only this coordinator process, with this outcome: informs all members, and
    /// waits for them to disconnect.
    fn end_run(&mut self, now: Time, outcome: Outcome) {
        let sessions: BTreeSet<SessionId> = self.members.iter().map(|(_, member)| member.session).collect();
        let stop_reason = match &self.failed_save {
            None => "the coordinator is shutting down".to_owned(),
            Some(failed) => {
                format!("the coordinator is shutting down, and the last steps are lost: {}", failed.reason)
            }
        };
        let are_all_steps_saved = self.failed_save.is_none();
        for session in sessions {
            match &outcome {
                Outcome::Finished => {
                    self.send(session, self.last_generation, v1::directive::Directive::Finish(v1::Finish {}));
                }
                Outcome::Stopped => self.send_leave(session, &stop_reason, are_all_steps_saved),
                Outcome::Failed(reason) => {
                    let is_orderly = false;
                    self.send_leave(session, &format!("the run has failed: {reason}"), is_orderly);
                }
            }
        }
        let (kind, reason) = match &outcome {
            Outcome::Finished => (EventKind::Finished, "the run is finished"),
            Outcome::Stopped => (EventKind::Stopped, stop_reason.as_str()),
            Outcome::Failed(reason) => (EventKind::Failed, reason.as_str()),
        };
        self.flush_statistics();
        self.saving = None;
        if let (RunPhase::Forming | RunPhase::Running, Some(generation)) = (&self.phase, &self.generation) {
            let (generation, reason) = (generation.number, reason.to_owned());
            self.record(Record::Ended { generation, reason });
        }
        let mut detail = json!({ "at": self.committed.to_string(), "reason": reason });
        if kind == EventKind::Finished {
            detail["result"] = json!(self.result_checkpoint());
        }
        self.record_event(kind, detail);
        self.phase = RunPhase::Over { outcome, until: now.saturating_add(DISCONNECT_TIMEOUT) };
    }

    /// The name of the checkpoint at the committed position: of a finished run, its final state.
    fn result_checkpoint(&self) -> Option<&str> {
        self.checkpoints.get(&self.committed).map(|checkpoint| checkpoint.name.as_str())
    }

    fn heartbeat_timeout(&self) -> Duration {
        Duration::try_from_secs_f64(self.file.control.heartbeat_timeout).unwrap_or(Duration::MAX)
    }

    fn send(&mut self, session: SessionId, generation: u64, directive: v1::directive::Directive) {
        let directive = v1::Directive { generation, directive: Some(directive) };
        self.actions.push(Action::Send { session, directive });
    }

    fn record(&mut self, record: Record) {
        self.actions.push(Action::Record(record));
    }

    fn record_event(&mut self, kind: EventKind, detail: serde_json::Value) {
        self.record(Record::Event { kind, detail });
    }
}

/// A text from a worker as one line of at most [`MAX_REASON_CHARS`] characters; the rest is cut.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_REASON_CHARS).collect()
}
