//! The run: a state machine without clock, sockets, threads or randomness, as openraft's core or
//! etcd's raft. Events and the time are its input, [`Action`]s its output.
//!
//! ```text
//!   Event: Join, Attach, Message, Closed, CaptionsSaved, Scored, Tick, Control, Shutdown
//!      |
//!      v
//!   Run ---- messages            messages of workers
//!      |---- membership          worker ids, sessions and heartbeats
//!      |---- admission           checks of workers that join, and of their state
//!      |---- failure_detection   removes members that are silent, evicted or leaving
//!      |---- plan                the boundaries: checkpoints, evaluations, ends of stages
//!      |---- data                the identity of the training data, and its changes
//!      |---- generation          waiting -> forming -> running -> waiting -> ... -> over
//!      |---- membership_changes  when a generation halts for a join or a leave
//!      |---- reachability        evicts members that others cannot reach
//!      |---- stall_detection     evicts members that make no progress
//!      |---- progress            grants, boundaries, commits (step_tracker, shares)
//!      |---- statistics          merges the reports of a step
//!      |---- checkpoint          saves in progress, saved states, and their retention
//!      |---- evaluation          captions (captions) and their scores
//!      |---- control             commands of operators
//!      |---- stage_end           guard (guard), model selection (model_selection), early stopping
//!      v
//!   Action: Admit, Done, Refuse, Send, Close, Record, Score, DeleteCheckpoint, Exit
//! ```
//!
//! Three positions of the run matter: `committed` (applied by at least one member: the samples up
//! to here are consumed), `granted` (sent to the workers; at most `control.window` steps ahead),
//! and each member's own progress between the two. Every history that a worker can hold consumes
//! each sample up to its position exactly once, because state comes only from a member, a
//! checkpoint or the seed, and each of them names its position in the plan.

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
use term_log::TermLog;
use throughput::Throughput;
pub use types::{Rank, RequestId, SessionId, Time, WorkerId};

/// How long the coordinator waits for its members to disconnect when the run is over.
const DISCONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximal length of a reason sent by a worker, in characters.
const MAX_REASON_CHARS: usize = 500;

/// Why a worker's message violates the protocol. The coordinator closes the worker's stream with
/// it.
type ProtocolViolation = String;

/// The phase of the generation's life cycle; see [`generation`].
#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    /// No generation: waiting for members to join or to release the last one.
    Waiting,
    /// The members of a new generation are in their rendezvous.
    Forming,
    /// The members of the generation train.
    Running,
    /// The run is over; the coordinator waits until this time for its members to disconnect.
    Over { outcome: Outcome, until: Time },
}

/// The state of a run; see the [module](self).
#[derive(Debug)]
pub struct Run {
    /// The run's id: random and unique.
    id: String,
    /// The random term of this coordinator process: see [`term_log`].
    term: u64,
    /// Which term formed which generation.
    term_log: TermLog,
    file: RunFile,
    /// The run file as sent to workers.
    file_json: String,
    plan: Plan,
    members: Membership,
    phase: Phase,
    /// The generation that forms or runs; while waiting, the one that ended last, whose reports may
    /// still arrive.
    generation: Option<Generation>,
    /// Number of the last generation.
    last_generation: u64,
    /// The furthest position that workers may have reached: steps are granted up to here.
    horizon: Position,
    /// Decides which states belong to the present history.
    branch_points: BranchPoints,
    committed: Position,
    /// Counts events of progress, to distinguish repeated failures with progress between them from
    /// a run that cannot continue.
    progress_count: u64,
    /// The boundaries that the present history has passed.
    passed_boundaries: Boundaries,
    checkpoints: BTreeMap<Position, Checkpoint>,
    /// The last checkpoints of stages that ended with earlier states. Kept for the user; the run
    /// never resumes from them.
    unselected_checkpoints: Vec<Checkpoint>,
    /// The save in progress.
    saving: Option<SaveInProgress>,
    /// The last attempt to save, if it failed.
    failed_save: Option<FailedSave>,
    /// Positions of states that this coordinator has ordered the members to save.
    save_attempts: BTreeSet<Position>,
    /// Whether the run is fresh: no earlier coordinator can have ordered a save.
    is_fresh: bool,
    /// When a member with a training state was last removed; initially the coordinator's start.
    holder_lost_at: Time,
    /// Names of checkpoints that an earlier coordinator began to save or delete, and did not
    /// finish.
    unfinished_checkpoints: BTreeSet<String>,
    /// The scores of evaluations of the present history.
    scores: Scores,
    /// The evaluation in progress.
    evaluation: Option<Evaluation>,
    /// Checks the values of the current stage against its bounds.
    guard: Guard,
    /// Why the guard or an operator has paused the run; none if it is not paused.
    pause_reason: Option<String>,
    /// Number of the last evaluation or checkpoint directive.
    last_directive: u64,
    failure_counter: FailureCounter,
    /// Pairs of members that could not reach each other since the last generation was formed.
    unreachable_pairs: UnreachablePairs,
    /// The data of the workers; none before the first worker of a fresh run.
    data: Option<RunData>,
    /// Changes of the training data, in order.
    data_changes: Vec<DataChange>,
    /// Whether the first worker may bring training data other than the data in the journal.
    accepts_changed_data: bool,
    /// How the last generation ended.
    last_end: GenerationEnd,
    /// The statistics of the last recorded step.
    latest_step: Option<StepStatistics>,
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
        let finished = Phase::Over { outcome: Outcome::Finished, until: Time::ZERO };
        let plan = Plan::new(&file, restored.stage_ends);
        let by_position = |checkpoint: Checkpoint| (checkpoint.position, checkpoint);
        let mut run = Self {
            id: restored.run_id,
            term,
            term_log: restored.term_log,
            file_json: serde_json::to_string(&file).expect("a run file is plain data"),
            horizon: plan.horizon(restored.committed, &restored.passed_boundaries),
            plan,
            file,
            members: Membership::default(),
            phase: if restored.is_finished { finished } else { Phase::Waiting },
            generation: None,
            last_generation: restored.last_generation,
            branch_points: restored.branch_points,
            committed: restored.committed,
            progress_count: 0,
            passed_boundaries: restored.passed_boundaries,
            checkpoints: restored.checkpoints.into_iter().map(by_position).collect(),
            unselected_checkpoints: restored.unselected_checkpoints,
            saving: None,
            failed_save: None,
            save_attempts: BTreeSet::new(),
            is_fresh: restored.last_generation == 0,
            holder_lost_at: Time::ZERO,
            unfinished_checkpoints: restored.unfinished_checkpoints,
            scores: restored.scores,
            evaluation: None,
            guard: Guard::new(0, &[]),
            pause_reason: restored.pause_reason,
            // Workers may still be executing directives that an earlier coordinator numbered.
            last_directive: restored.last_generation << 32,
            failure_counter: FailureCounter::default(),
            unreachable_pairs: UnreachablePairs::default(),
            data: restored.data_set.map(|data_set| RunData { source: None, data_set }),
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
            // The actions of rules that fire here were executed when their values were new.
            run.guard.check_step(position, |metric| means.get(metric).copied());
        }
        run
    }

    /// The same run, except that the first worker may bring training data other than the data in
    /// the journal.
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
            Event::Join { request, address, token, join } => match self.handle_join(now, address, &join, token) {
                Ok(response) => self.actions.push(Action::Admit { request, response }),
                Err(refusal) => self.actions.push(Action::Refuse { request, refusal }),
            },
            Event::Attach { session, attach } => {
                if let Err(refusal) = self.handle_attach(now, session, attach) {
                    self.actions.push(Action::Close { session, refusal: Some(refusal) });
                }
            }
            Event::Message { session, message } => self.handle_message(now, session, message),
            Event::Closed { session } => self.handle_closed(now, session),
            Event::CaptionsSaved { evaluation, saved } => self.handle_captions_saved(evaluation, saved),
            Event::Scored { evaluation, metrics, items } => self.handle_scores(evaluation, metrics, items),
            Event::Tick => self.check_timeouts(now),
            Event::Control { request, command } => match self.execute_command(command) {
                Ok(message) => self.actions.push(Action::Done { request, message }),
                Err(refusal) => self.actions.push(Action::Refuse { request, refusal }),
            },
            Event::Shutdown => self.stop_requested = true,
        }
        self.reconcile(now);
        std::mem::take(&mut self.actions)
    }

    /// Reconciles the run with its new state after an event: ends stages, releases members, forms
    /// and starts generations, sends directives.
    fn reconcile(&mut self, now: Time) {
        self.try_end_stage(now);
        if !matches!(self.phase, Phase::Over { .. }) {
            self.release_leaving_members(now);
        }
        let can_stop = self.stop_requested && matches!(self.phase, Phase::Waiting | Phase::Forming);
        if can_stop && (self.failed_save.is_some() || self.leaving_sole_holder().is_none()) {
            self.end_run(now, Outcome::Stopped);
        }
        match &self.phase {
            Phase::Waiting => self.try_form_generation(now),
            Phase::Forming => self.try_start_training(now),
            Phase::Running => self.send_due_directives(now),
            Phase::Over { .. } => {}
        }
        if let Phase::Over { outcome, until } = &self.phase
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

    /// Ends the run with this outcome: tells all workers, and waits for them to disconnect.
    fn end_run(&mut self, now: Time, outcome: Outcome) {
        let sessions: BTreeSet<SessionId> = self.members.iter().map(|(_, member)| member.session).collect();
        let stop_reason = match &self.failed_save {
            None => "the coordinator is shutting down".to_owned(),
            Some(failed) => {
                format!("the coordinator is shutting down, and the last steps are lost: {}", failed.reason)
            }
        };
        let is_all_saved = self.failed_save.is_none();
        for session in sessions {
            match &outcome {
                Outcome::Finished => {
                    self.send(session, self.last_generation, v1::directive::Directive::Finish(v1::Finish {}));
                }
                Outcome::Stopped => self.send_leave(session, &stop_reason, is_all_saved),
                Outcome::Failed(reason) => self.send_leave(session, &format!("the run has failed: {reason}"), false),
            }
        }
        let (kind, reason) = match &outcome {
            Outcome::Finished => (EventKind::Finished, "the run is finished"),
            Outcome::Stopped => (EventKind::Stopped, stop_reason.as_str()),
            Outcome::Failed(reason) => (EventKind::Failed, reason.as_str()),
        };
        self.flush_statistics();
        self.saving = None;
        if let (Phase::Forming | Phase::Running, Some(generation)) = (&self.phase, &self.generation) {
            let (generation, reason) = (generation.number, reason.to_owned());
            self.record(Record::Ended { generation, reason });
        }
        let mut detail = json!({ "at": self.committed.to_string(), "reason": reason });
        if kind == EventKind::Finished {
            detail["result"] = json!(self.result_checkpoint());
        }
        self.record_event(kind, detail);
        self.phase = Phase::Over { outcome, until: now.saturating_add(DISCONNECT_TIMEOUT) };
    }

    /// The name of the checkpoint with the final state of a finished run.
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

/// A worker's text as one line of limited length.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_REASON_CHARS).collect()
}
