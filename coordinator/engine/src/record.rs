//! The records of a run: written to the journal, and converted to metrics.

use std::collections::BTreeMap;

use proto::v1;
use serde_json::{Value, json};

use crate::{
    checkpoint::Checkpoint,
    data::{DataChange, SplitSize},
    event_kind::EventKind,
    guard::TriggeredRule,
    membership::Machine,
    model_selection::EndDecision,
    outcome::Outcome,
    plan::Position,
    statistics::StepStatistics,
    types::WorkerId,
};

/// The source of the training state that a generation starts from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StateSource {
    /// A member, by its worker id.
    Member(WorkerId),
    /// A checkpoint, by its name.
    Checkpoint(String),
    /// The run's seed: newly initialized parameters.
    Seed,
}

impl std::fmt::Display for StateSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Member(worker_id) => write!(f, "worker {worker_id}"),
            Self::Checkpoint(name) => write!(f, "checkpoint {name}"),
            Self::Seed => f.write_str("seed"),
        }
    }
}

/// A record: what happened in the run, or will happen next, as the coordinator stores it in the
/// journal.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// A generation was formed, and its rendezvous begins. Durable before the coordinator sends the
    /// generation's number to any worker, so that no number is used twice.
    Formed {
        /// The number of the generation.
        generation: u64,
        /// The term of the coordinator process that formed it.
        term: u64,
        /// The worker id and machine of each member, in order of id.
        members: Vec<(WorkerId, Machine)>,
        /// Why the previous generation ended.
        cause: String,
        /// The position at which it starts.
        start: Position,
        /// The source of its initial state.
        source: StateSource,
    },
    /// All members of a generation are ready: training begins.
    Ready {
        /// The number of the generation.
        generation: u64,
        /// Whether the previous generation ended because of a failure.
        recovery: bool,
    },
    /// A generation ended.
    Ended {
        /// The number of the generation.
        generation: u64,
        /// Why it ended, as a message for display.
        reason: String,
    },
    /// A step was reported by all members, or by all that can still report.
    Step(StepStatistics),
    /// A checkpoint is complete. Durable before training continues.
    Saved(Checkpoint),
    /// The checkpoint with this name will be deleted. Durable before the deletion, so that the
    /// journal never lists a checkpoint that does not exist.
    Deleting(String),
    /// The checkpoint with this name cannot be used. Durable before another one is used instead.
    Damaged(String),
    /// An evaluation is complete. Durable before training continues: the end of a stage depends on
    /// it.
    Evaluated {
        /// The position of the state that was evaluated.
        position: Position,
        /// The last generation that took part.
        generation: u64,
        /// The number of the evaluation, whose captions the journal gets apart.
        evaluation: u64,
        /// Caption metrics over all images, by name.
        metrics: BTreeMap<String, f64>,
    },
    /// A guard rule has fired.
    Guard {
        /// The position of the step or evaluation.
        position: Position,
        /// The last generation at that time.
        generation: u64,
        /// The rule and the value.
        rule: TriggeredRule,
    },
    /// A worker attached, and is a member.
    Attached(Attachment),
    /// The run continues on other training data than those before the coordinator's restart.
    DataChanged {
        /// The change.
        change: DataChange,
        /// The size of the new training split.
        after: SplitSize,
    },
    /// A stage ended with an earlier state than its last one. Durable before the later states are
    /// deleted.
    StageEnded {
        /// The last generation of the stage.
        generation: u64,
        /// The state that the stage ended with, and why.
        end: EndDecision,
    },
    /// The guard or an operator paused the run. Durable before the run pauses.
    Paused {
        /// The position of the value that made a rule fire, or the committed position.
        position: Position,
        /// Why, as a message for display.
        reason: String,
    },
    /// An operator resumed the run. Durable before the run continues.
    Resumed {
        /// The committed position.
        position: Position,
        /// Why the run was paused, as a message for display.
        reason: String,
    },
    /// A generation starts at another position than the committed one: committed steps are given
    /// up, or steps that are not in the journal are adopted.
    HistoryMoved(HistoryMove),
    /// The run is complete or cannot continue, or the coordinator process stops. Durable if the run
    /// is complete, because workers do not reconnect after that: a coordinator without this record
    /// would wait for them.
    RunEnded {
        /// How it ended.
        outcome: Outcome,
        /// The committed position.
        position: Position,
        /// Why, as a message for display.
        reason: String,
        /// The name of the checkpoint with the result of a complete run.
        result: Option<String>,
    },
    /// An event that is only for people, and that no decision depends on. Not to be confused with
    /// an input of the state machine, [`Event`](crate::event::Event).
    Event {
        /// The kind.
        kind: EventKind,
        /// The details, as in the journal.
        detail: Value,
    },
}

/// A worker that attached.
#[derive(Clone, Debug, PartialEq)]
pub struct Attachment {
    /// The worker.
    pub worker_id: WorkerId,
    /// Host name or address of its machine.
    pub host: String,
    /// The description of its data.
    pub data_set: v1::DataSet,
    /// The position of the training state that it claims to hold.
    pub held_position: Option<Position>,
}

/// A move of the committed position by the start of a generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryMove {
    /// The committed position before.
    pub from: Position,
    /// The start of the generation.
    pub to: Position,
    /// The number of the generation.
    pub generation: u64,
    /// The source of its state.
    pub source: StateSource,
}

impl Record {
    /// Whether the record has to be on disk before the next action.
    #[must_use]
    pub fn must_be_durable(&self) -> bool {
        match self {
            Self::Formed { .. }
            | Self::Saved(_)
            | Self::Deleting(_)
            | Self::Damaged(_)
            | Self::Evaluated { .. }
            | Self::StageEnded { .. }
            | Self::Paused { .. }
            | Self::Resumed { .. }
            | Self::RunEnded { outcome: Outcome::Finished, .. } => true,
            Self::Ready { .. }
            | Self::Ended { .. }
            | Self::Step(_)
            | Self::Guard { .. }
            | Self::Attached(_)
            | Self::DataChanged { .. }
            | Self::HistoryMoved(_)
            | Self::RunEnded { .. }
            | Self::Event { .. } => false,
        }
    }

    /// The event for people that the record adds to the event log, with its kind and detail; none
    /// if it adds none.
    #[must_use]
    pub fn event(&self) -> Option<(EventKind, Value)> {
        let at = |position: &Position| json!({ "stage": position.stage, "step": position.step });
        let event = match self {
            Self::Event { kind, detail } => (*kind, detail.clone()),
            Self::Attached(attachment) => (EventKind::Attached, attachment.detail()),
            Self::DataChanged { change, after } => (EventKind::DataChanged, change.detail(*after)),
            Self::StageEnded { generation, end } => (EventKind::StageEndedEarly, end.detail(*generation)),
            Self::Paused { position, reason } => {
                let Position { stage, step } = position;
                (EventKind::Paused, json!({ "stage": stage, "step": step, "reason": reason }))
            }
            Self::Resumed { position, reason } => {
                (EventKind::Resumed, json!({ "at": position.to_string(), "reason": reason }))
            }
            Self::HistoryMoved(HistoryMove { from, to, generation, source }) => {
                let kind = if to < from { EventKind::RolledBack } else { EventKind::Adopted };
                let source = source.to_string();
                (kind, json!({ "from": at(from), "to": at(to), "generation": generation, "source": source }))
            }
            Self::RunEnded { outcome, position, reason, result } => {
                let mut detail = json!({ "at": position.to_string(), "reason": reason });
                let kind = match outcome {
                    Outcome::Finished => {
                        detail["result"] = json!(result);
                        EventKind::Finished
                    }
                    Outcome::Stopped => EventKind::Stopped,
                    Outcome::Failed(_) => EventKind::Failed,
                };
                (kind, detail)
            }
            Self::Formed { .. }
            | Self::Ready { .. }
            | Self::Ended { .. }
            | Self::Step(_)
            | Self::Saved(_)
            | Self::Deleting(_)
            | Self::Damaged(_)
            | Self::Evaluated { .. }
            | Self::Guard { .. } => return None,
        };
        Some(event)
    }
}

impl Attachment {
    fn detail(&self) -> Value {
        let Self { worker_id, host, data_set, held_position } = self;
        json!({
            "rank": worker_id,
            "host": host,
            "train_images": data_set.train_images,
            "train_captions": data_set.train_captions,
            "skipped_images": data_set.skipped_images,
            "validation_images": data_set.validation_images,
            "training_fingerprint": data_set.training_fingerprint,
            "validation_fingerprint": data_set.validation_fingerprint,
            "models_fingerprint": data_set.models_fingerprint,
            "holds": held_position.map(|position| position.to_string()),
        })
    }
}
