//! The run: a state machine without clock, sockets, threads or randomness, as openraft's core or
//! etcd's raft. Events and the time are its input, [`Action`]s its output.
//!
//! ```text
//!   Event: Join, Attach, Message, Closed, Scored, Tick, Control, Shutdown
//!      |
//!      v
//!   Run ---- membership   worker ids, sessions and heartbeats
//!      |---- plan         the boundaries: checkpoints, evaluations, ends of stages
//!      |---- data         the identity of the training data, and its exchanges
//!      |---- generation   waiting -> forming -> running -> waiting -> ... -> over
//!      |---- admission    checks of workers that join, and their first state
//!      |---- membership_changes      membership changes: when a generation halts for a join or a leave
//!      |---- reach        evicts members that others cannot reach
//!      |---- progress     grants, boundaries, commits of the running generation (step_tracker, shares)
//!      |---- stalls       evicts members that make no progress
//!      |---- statistics   merging the reports of a step
//!      |---- checkpoint   states being saved, states on disk, and their retention
//!      |---- evaluation   captions (captions) and their scores
//!      |---- control      commands of operators
//!      |---- oversight    guard (guard), model selection (model_selection), and early stopping
//!      v
//!   Action: Admit, Done, Refuse, Send, Close, Record, Score, DeleteCheckpoint, Exit
//! ```
//!
//! Three points of the run matter: `committed` (applied by at least one member: the samples up to
//! here are consumed), `granted` (sent to the workers; at most `control.window` steps ahead), and
//! each member's own progress between the two. Every history that a worker can hold consumes each
//! sample up to its position exactly once, because state comes only from a member, a checkpoint or
//! the seed, and each of them names its point in the plan.

mod admission;
pub mod captions;
mod checkpoint;
mod control;
pub mod data;
mod evaluation;
mod generation;
pub mod guard;
pub mod lineage;
pub mod membership;
mod membership_changes;
pub mod model_selection;
mod oversight;
pub mod plan;
mod progress;
pub mod reach;
pub mod record;
pub mod shares;
#[cfg(test)]
pub(crate) mod simulation;
mod stalls;
pub mod statistics;
mod status;
pub mod step_tracker;
pub mod terms;
#[cfg(test)]
pub(crate) mod testing;
mod throughput;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::PathBuf,
    time::Duration,
};

use config::RunFile;
use proto::{v1, v1::worker_message::Message};
use serde_json::json;

use captions::Item;
use checkpoint::{FailedSave, Saving};
pub use control::Command;
use data::{DataChange, RunData};
use evaluation::Evaluation;
use generation::{Failures, Generation};
use guard::Guard;
use lineage::BranchPoints;
use membership::{MemberState, Membership, OverdueReason};
use model_selection::Scores;
use plan::{Boundaries, Place, Plan};
use reach::UnreachablePairs;
use record::{Checkpoint, EventKind, Record, RestoredRun};
use statistics::StepStatistics;
use terms::TermLog;
use throughput::Throughput;

/// Time since the coordinator started.
pub type Time = Duration;

/// How long the coordinator waits for its members to disconnect when the run is over.
const FAREWELL: Duration = Duration::from_secs(5);
/// Maximal length of a reason sent by a worker, in characters.
const MAX_REASON_LENGTH: usize = 500;

/// Identifies a pending request, so that the service can deliver its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// Identifies the stream (gRPC session) of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// An input of the state machine.
#[derive(Clone, Debug)]
pub enum Event {
    /// A worker asks to join.
    Join {
        /// For the answer.
        request: RequestId,
        /// The worker's address, for limits; for IPv6 the /64 prefix.
        address: IpAddr,
        /// A fresh random session token, used if the worker is admitted.
        token: String,
        /// The worker's request.
        join: v1::JoinRequest,
    },
    /// An admitted worker has opened its stream.
    Attach {
        /// The stream.
        session: SessionId,
        /// The stream's first message, with the session token.
        attach: v1::Attach,
    },
    /// A worker has sent a message on its stream.
    Message {
        /// The stream.
        session: SessionId,
        /// The message.
        message: Message,
    },
    /// A stream has closed.
    Closed {
        /// The stream.
        session: SessionId,
    },
    /// Saving the captions of an evaluation that is to be scored has failed, or has succeeded after
    /// a failure.
    CaptionsSaved {
        /// The number of the evaluation.
        evaluation: u64,
        /// Why saving failed, as a message to people.
        saved: Result<(), String>,
    },
    /// An evaluation is scored: the answer to [`Action::Score`].
    Scored {
        /// The number of the evaluation.
        evaluation: u64,
        /// Scores by name.
        metrics: BTreeMap<String, f64>,
        /// The items, with their own scores added.
        items: Vec<Item>,
    },
    /// Time has passed. Sent at regular intervals, so that missing heartbeats are noticed.
    Tick,
    /// An operator sends a command.
    Control {
        /// For the answer.
        request: RequestId,
        /// The command.
        command: Command,
    },
    /// The coordinator was asked to stop.
    Shutdown,
}

/// An output of the state machine. The service executes actions in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Admit a worker that asked to join.
    Admit {
        /// The join.
        request: RequestId,
        /// The answer.
        response: v1::JoinResponse,
    },
    /// Confirm a command: it is done, or will be.
    Done {
        /// The command's request.
        request: RequestId,
        /// What will happen, as a message to people.
        message: String,
    },
    /// Refuse a request.
    Refuse {
        /// The request: a join or a command.
        request: RequestId,
        /// The answer.
        refusal: Refusal,
    },
    /// Send a directive to a worker.
    Send {
        /// Its stream.
        session: SessionId,
        /// The directive.
        directive: v1::Directive,
    },
    /// Close a worker's stream after what was sent on it; with an error if one is given.
    Close {
        /// Its stream.
        session: SessionId,
        /// The error.
        refusal: Option<Refusal>,
    },
    /// Append a record to the journal. A [`Record::must_be_durable`] record is on disk before the
    /// next action is executed.
    Record(Record),
    /// Save the captions of an evaluation, score them, and report them with [`Event::Scored`].
    /// While they cannot be saved, report the reason with [`Event::CaptionsSaved`].
    Score {
        /// The number of the evaluation.
        evaluation: u64,
        /// Its items, by image name.
        items: Vec<Item>,
        /// The path of the file for the captions.
        captions: PathBuf,
    },
    /// Delete the checkpoint of this name.
    DeleteCheckpoint(String),
    /// Stop serving. Always the last action.
    Exit(Outcome),
}

/// How a coordinator process ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The run is complete.
    Finished,
    /// The coordinator was asked to stop; another one can resume the run.
    Stopped,
    /// The run cannot go on, for this reason.
    Failed(String),
}

/// A request that is refused, and why. Becomes a gRPC status or an HTTP error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The kind, which decides the gRPC status code.
    pub kind: RefusalKind,
    /// The reason, as a message to people.
    pub reason: String,
}

/// Kinds of refusals: the gRPC status codes of the same names, but for the last four.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalKind {
    /// The message is invalid.
    InvalidArgument,
    /// The peer speaks another version of the protocol, or the run's state does not allow the
    /// request.
    FailedPrecondition,
    /// A live worker has this id.
    AlreadyExists,
    /// The run has `workers.max` live workers.
    ResourceExhausted,
    /// The session token is unknown.
    Unauthenticated,
    /// The coordinator is about to stop.
    Unavailable,
    /// The run is over: `NOT_FOUND`.
    Over,
    /// The id belongs to a worker that may be dead or is about to leave: `ABORTED`. The worker
    /// retries.
    Held,
    /// The other members compute on another kind of device: `PERMISSION_DENIED`.
    OtherDevice,
    /// The worker's state is not part of the run's history, and it has to join with no state:
    /// `DATA_LOSS`.
    Disowned,
}

impl Refusal {
    pub(crate) fn new(kind: RefusalKind, reason: String) -> Self {
        Self { kind, reason }
    }
}

/// Why a worker's message breaks the protocol. The coordinator closes the worker's stream with it.
type ProtocolViolation = String;

/// The phase of the generation's life cycle; see [`generation`].
#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    /// No generation: waiting for members to join or to release the last one.
    Waiting,
    /// The members of a new generation meet (rendezvous).
    Forming,
    /// The members of the generation train.
    Running,
    /// The run is over; the coordinator waits until this time for its members to disconnect.
    Over { outcome: Outcome, until: Time },
}

/// The state of a run; see the [module](self).
#[derive(Debug)]
pub struct Run {
    /// Random and unique to the run.
    id: String,
    /// The random term of this coordinator process: see [`terms`].
    term: u64,
    /// Which term formed which generation.
    terms: TermLog,
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
    /// The furthest point that any generation was told to train to.
    horizon: Place,
    /// Decides which states belong to the present history.
    cuts: BranchPoints,
    committed: Place,
    /// Counts events of progress, to distinguish repeated failures with progress between them from
    /// a run that cannot go on.
    progress: u64,
    done: Boundaries,
    checkpoints: BTreeMap<Place, Checkpoint>,
    /// The last checkpoints of stages that ended with earlier states. Kept for the user; the run
    /// never resumes from them.
    passed_over: Vec<Checkpoint>,
    /// The checkpoint that is being saved.
    saving: Option<Saving>,
    /// Why the last attempt to save failed; none if it succeeded.
    unsaved: Option<FailedSave>,
    /// States that this coordinator has ordered a member to save.
    attempted: BTreeSet<Place>,
    /// Whether no earlier coordinator can have ordered a save: the run is fresh.
    first_life: bool,
    /// When a member that held a state was last lost; initially the coordinator's start.
    missed_since: Time,
    /// Names of checkpoints whose start an earlier coordinator recorded, but not their end.
    unfinished: BTreeSet<String>,
    /// The scores of evaluations of the present history.
    scores: Scores,
    /// The evaluation in progress.
    evaluation: Option<Evaluation>,
    /// Checks the values of the current stage against its bounds.
    guard: Guard,
    /// Why the run is paused, by the guard or an operator; none if it is not.
    paused: Option<String>,
    /// Number of the last evaluation or checkpoint directive.
    last_directive: u64,
    failures: Failures,
    /// Pairs of members that could not reach each other since the last generation was formed.
    complaints: UnreachablePairs,
    data_set: Option<RunData>,
    /// Earlier training data of the run, in order.
    exchanges: Vec<DataChange>,
    /// Whether the first worker may bring training data other than the data in the journal.
    may_exchange_data: bool,
    /// Why the last generation ended, and whether it failed.
    cause: (String, bool),
    latest: Option<StepStatistics>,
    throughput: Throughput,
    stopping: bool,
    exited: bool,
    actions: Vec<Action>,
}

impl Run {
    /// A run of a checked run file, resumed from the state that an earlier coordinator's journal
    /// gives. `term` is random and different for each coordinator process: see [`terms`].
    #[must_use]
    pub fn new(file: RunFile, restored: RestoredRun, term: u64) -> Self {
        let finished = Phase::Over { outcome: Outcome::Finished, until: Time::ZERO };
        let plan = Plan::new(&file, restored.ends);
        let mut run = Self {
            id: restored.run_id,
            term,
            terms: restored.terms,
            file_json: serde_json::to_string(&file).expect("a run file is plain data"),
            horizon: plan.horizon(restored.committed, &restored.done),
            plan,
            file,
            members: Membership::default(),
            phase: if restored.finished { finished } else { Phase::Waiting },
            generation: None,
            last_generation: restored.last_generation,
            cuts: restored.cuts,
            committed: restored.committed,
            progress: 0,
            done: restored.done,
            checkpoints: restored.checkpoints.into_iter().map(|checkpoint| (checkpoint.place, checkpoint)).collect(),
            passed_over: restored.passed_over,
            saving: None,
            unsaved: None,
            attempted: BTreeSet::new(),
            first_life: restored.last_generation == 0,
            missed_since: Time::ZERO,
            unfinished: restored.unfinished,
            scores: restored.scores,
            evaluation: None,
            guard: Guard::new(0, &[]),
            paused: restored.paused,
            // Workers may still be executing directives that an earlier coordinator numbered.
            last_directive: restored.last_generation << 32,
            failures: Failures::default(),
            complaints: UnreachablePairs::default(),
            data_set: restored.data_set.map(|data_set| RunData { source: None, data_set }),
            exchanges: restored.exchanges,
            may_exchange_data: false,
            cause: ("start".into(), false),
            latest: None,
            throughput: Throughput::default(),
            stopping: false,
            exited: false,
            actions: Vec::new(),
        };
        run.watch();
        for (place, means) in restored.measured {
            // Rules that fire here were acted upon when their values were new.
            run.guard.step(place, |metric| means.get(metric).copied());
        }
        run
    }

    /// The same run, except that the first worker may bring training data other than the run's
    /// before.
    #[must_use]
    pub fn exchanging_data(self) -> Self {
        Self { may_exchange_data: true, ..self }
    }

    /// The rules that fire when a step has measured this value.
    #[cfg(test)]
    pub(crate) fn on_measured(&mut self, place: Place, metric: &str, mean: f64) -> Vec<guard::TriggeredRule> {
        self.guard.step(place, |name| (name == metric).then_some(mean))
    }

    /// Handles an event. Returns the actions to execute, in order.
    pub fn on_event(&mut self, now: Time, event: Event) -> Vec<Action> {
        match event {
            Event::Join { request, address, token, join } => match self.join(now, address, &join, token) {
                Ok(response) => self.actions.push(Action::Admit { request, response }),
                Err(refusal) => self.actions.push(Action::Refuse { request, refusal }),
            },
            Event::Attach { session, attach } => {
                if let Err(refusal) = self.attach(now, session, attach) {
                    self.actions.push(Action::Close { session, refusal: Some(refusal) });
                }
            }
            Event::Message { session, message } => self.message(now, session, message),
            Event::Closed { session } => {
                if let Some(rank) = self.members.rank_of(session) {
                    match self.phase {
                        // It was told to leave.
                        Phase::Over { .. } => self.remove(now, rank, EventKind::Left, "the run is over"),
                        _ => self.lose(now, rank, "its stream closed"),
                    }
                }
            }
            Event::CaptionsSaved { evaluation, saved } => self.captions_saved(evaluation, saved),
            Event::Scored { evaluation, metrics, items } => self.scored(evaluation, metrics, items),
            Event::Tick => self.tick(now),
            Event::Control { request, command } => match self.control(command) {
                Ok(message) => self.actions.push(Action::Done { request, message }),
                Err(refusal) => self.actions.push(Action::Refuse { request, refusal }),
            },
            Event::Shutdown => self.stopping = true,
        }
        self.settle(now);
        std::mem::take(&mut self.actions)
    }

    fn heartbeat_timeout(&self) -> Duration {
        Duration::try_from_secs_f64(self.file.control.heartbeat_timeout).unwrap_or(Duration::MAX)
    }

    // ----------------------------------------------------------------------------------------------------- messages

    fn message(&mut self, now: Time, session: SessionId, message: Message) {
        // Not a member: its stream is being closed, and its last messages are ignored.
        let Some(rank) = self.members.rank_of(session) else { return };
        if let Some(member) = self.members.get_mut(rank) {
            member.heard = now;
        }
        if let Err(violation) = self.understand(now, rank, message) {
            let reason = format!("rank {rank} broke the protocol: {}", one_line(&violation));
            let refusal = Refusal::new(RefusalKind::InvalidArgument, reason.clone());
            self.actions.push(Action::Close { session, refusal: Some(refusal) });
            self.remove(now, rank, EventKind::Lost, &reason);
        }
    }

    fn understand(&mut self, now: Time, rank: u32, message: Message) -> Result<(), ProtocolViolation> {
        match message {
            Message::Attach(_) => Err("attached twice".into()),
            Message::Heartbeat(heartbeat) => {
                if let Some(reason) = heartbeat.position.as_ref().and_then(|position| self.impossible(position)) {
                    return Err(format!("it says where it cannot be: {reason}"));
                }
                if let Some(member) = self.members.get_mut(rank) {
                    member.beat(now, heartbeat.phase(), heartbeat.position);
                }
                Ok(())
            }
            Message::Ready(ready) => self.ready(rank, &ready),
            Message::StepDone(report) => self.step_done(now, rank, &report),
            Message::EvaluationItems(items) => {
                self.moves(now, rank);
                self.evaluation_items(rank, items)
            }
            Message::CheckpointDone(done) => {
                self.moves(now, rank);
                self.checkpoint_done(now, rank, done)
            }
            Message::Advanced(advanced) => self.advanced(rank, &advanced),
            Message::Idle(idle) => self.idle(now, rank, &idle),
            Message::Failed(failed) => self.failed(now, rank, &failed),
            Message::CheckpointFailed(failed) => {
                self.moves(now, rank);
                self.checkpoint_failed(now, rank, &failed)
            }
            Message::Leaving(leaving) => {
                self.leaving(rank, &leaving);
                Ok(())
            }
            Message::Finished(_) => {
                if let Some(member) = self.members.get(rank) {
                    self.actions.push(Action::Close { session: member.session, refusal: None });
                }
                self.remove(now, rank, EventKind::Left, "finished");
                Ok(())
            }
        }
    }

    // ------------------------------------------------------------------------------------------------------ leaving

    fn tick(&mut self, now: Time) {
        let heartbeat_timeout = self.heartbeat_timeout();
        self.members.expire(now);
        for (rank, overdue) in self.members.overdue(now, heartbeat_timeout) {
            match overdue {
                OverdueReason::Silent => {
                    let reason = format!("it was not heard for {} s", heartbeat_timeout.as_secs_f64());
                    let session = self.members.get(rank).map(|member| member.session);
                    self.lose(now, rank, &reason);
                    self.actions.extend(session.map(|session| Action::Close { session, refusal: None }));
                }
                OverdueReason::HoldingOn(generation) => {
                    self.evict(now, rank, &format!("it did not let go of generation {generation}"));
                }
            }
        }
        self.unstall(now);
    }

    /// Removes a member that failed.
    fn lose(&mut self, now: Time, rank: u32, why: &str) {
        self.remove(now, rank, EventKind::Lost, &format!("rank {rank} was lost: {why}"));
    }

    /// The name of the checkpoint with the final state of a finished run.
    fn result(&self) -> Option<&str> {
        self.checkpoints.get(&self.committed).map(|checkpoint| checkpoint.name.as_str())
    }

    /// Evicts a member: tells it to end with an error, and closes its stream.
    fn evict(&mut self, now: Time, rank: u32, reason: &str) {
        if let Some(member) = self.members.get(rank) {
            let session = member.session;
            self.leave(session, reason, false);
            self.actions.push(Action::Close { session, refusal: None });
        }
        self.remove(now, rank, EventKind::Lost, &format!("rank {rank} was sent away: {reason}"));
    }

    /// Removes a member, records the event, and ends the generation that it was in.
    fn remove(&mut self, now: Time, rank: u32, what: EventKind, reason: &str) {
        let Some(member) = self.members.remove(rank) else { return };
        self.event(what, json!({ "rank": rank, "host": member.machine.host, "reason": reason }));
        if self.last_generation == 0 && self.members.is_empty() {
            // Nothing was trained yet: the next worker may bring other data.
            self.data_set = None;
        }
        if member.position.is_some() {
            self.missed_since = now;
        }
        self.stops_saving(now, rank, None);
        if matches!(member.standing, MemberState::In(_)) {
            self.end_generation(now, reason, true);
        }
    }

    /// Tells a worker to end; without an error if `orderly`.
    fn leave(&mut self, session: SessionId, reason: &str, orderly: bool) {
        let leave = v1::directive::Directive::Leave(v1::Leave { reason: reason.to_owned(), orderly });
        self.send(session, self.last_generation, leave);
    }

    fn send(&mut self, session: SessionId, generation: u64, directive: v1::directive::Directive) {
        let directive = v1::Directive { generation, directive: Some(directive) };
        self.actions.push(Action::Send { session, directive });
    }

    // --------------------------------------------------------------------------------------------------------- ends

    /// Ends the run with this outcome: tells all workers, and waits for them to disconnect.
    fn conclude(&mut self, now: Time, outcome: Outcome) {
        let sessions: BTreeSet<SessionId> = self.members.iter().map(|(_, member)| member.session).collect();
        let stopping = match &self.unsaved {
            None => "the coordinator is shutting down".to_owned(),
            Some(unsaved) => {
                format!("the coordinator is shutting down, and the last steps are lost: {}", unsaved.reason)
            }
        };
        let all_is_saved = self.unsaved.is_none();
        for session in sessions {
            match &outcome {
                Outcome::Finished => {
                    self.send(session, self.last_generation, v1::directive::Directive::Finish(v1::Finish {}));
                }
                Outcome::Stopped => self.leave(session, &stopping, all_is_saved),
                Outcome::Failed(reason) => self.leave(session, &format!("the run has failed: {reason}"), false),
            }
        }
        let (what, reason) = match &outcome {
            Outcome::Finished => (EventKind::Finished, "the run is finished"),
            Outcome::Stopped => (EventKind::Stopped, stopping.as_str()),
            Outcome::Failed(reason) => (EventKind::Failed, reason.as_str()),
        };
        self.flush_statistics();
        self.saving = None;
        if let (Phase::Forming | Phase::Running, Some(generation)) = (&self.phase, &self.generation) {
            let (generation, reason) = (generation.number, reason.to_owned());
            self.record(Record::Ended { generation, reason });
        }
        let mut detail = json!({ "at": self.committed.to_string(), "reason": reason });
        if what == EventKind::Finished {
            detail["result"] = json!(self.result());
        }
        self.event(what, detail);
        self.phase = Phase::Over { outcome, until: now.saturating_add(FAREWELL) };
    }

    fn record(&mut self, record: Record) {
        self.actions.push(Action::Record(record));
    }

    fn event(&mut self, what: EventKind, detail: serde_json::Value) {
        self.record(Record::Event { what, detail });
    }

    /// Reconciles the run with its new state after an event: ends stages, releases members, forms
    /// and starts generations, sends directives.
    fn settle(&mut self, now: Time) {
        self.end_stage(now);
        if !matches!(self.phase, Phase::Over { .. }) {
            self.dismiss(now);
        }
        let idle = self.stopping && matches!(self.phase, Phase::Waiting | Phase::Forming);
        if idle && (self.unsaved.is_some() || self.indispensable().is_none()) {
            self.conclude(now, Outcome::Stopped);
        }
        match &self.phase {
            Phase::Waiting => self.try_form(now),
            Phase::Forming => self.try_run(now),
            Phase::Running => self.proceed(now),
            Phase::Over { .. } => {}
        }
        if let Phase::Over { outcome, until } = &self.phase
            && (self.members.is_empty() || now >= *until)
            && !self.exited
        {
            self.exited = true;
            let outcome = outcome.clone();
            if outcome == Outcome::Finished {
                // No generation will be formed any more.
                self.delete_unfinished();
            }
            self.actions.push(Action::Exit(outcome));
        }
    }
}

/// A worker's text as one line of limited length.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_REASON_LENGTH).collect()
}
