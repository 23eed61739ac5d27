//! What handlers produce: actions for the service, and effects for the engine.

use std::collections::VecDeque;

use proto::v1::{self, directive::Directive};
use serde_json::Value;

use crate::{
    action::Action,
    event_kind::EventKind,
    outcome::Outcome,
    plan::Position,
    record::Record,
    statistics::StepStatistics,
    types::{SessionId, WorkerId},
};

/// A consequence of a change that is applied after the handler has returned. The engine applies
/// effects one by one, in order, before it decides anything else; see
/// [`Engine`](crate::Engine).
#[derive(Debug)]
pub(crate) enum Effect {
    /// A member has to be evicted.
    Evict {
        /// The member.
        worker_id: WorkerId,
        /// Why, as a message for display.
        reason: String,
    },
    /// A member was removed.
    MemberRemoved {
        /// The worker that was the member.
        worker_id: WorkerId,
        /// Whether it was in a generation and had not begun to release it.
        was_in_generation: bool,
        /// Why, as a message for display.
        reason: String,
    },
    /// A member has released its generation. It will not report on the save in progress, unless it
    /// still executes that save.
    GenerationReleased {
        /// The member.
        worker_id: WorkerId,
        /// The number of the save that it still executes.
        unfinished_save: Option<u64>,
    },
    /// The generation has to end.
    EndGeneration {
        /// Why, as a message for display.
        reason: String,
        /// Whether it ends because of a failure.
        is_failure: bool,
    },
    /// A generation was formed: the history continues from this position.
    GenerationFormed {
        /// The position.
        start: Position,
    },
    /// A step was reported by all members.
    StepMerged(Box<StepStatistics>),
    /// A stage ended with the state at this position. Later states of the stage are not used.
    StageEnded {
        /// The position.
        position: Position,
    },
    /// The run, or this coordinator process, has to end.
    EndRun(Outcome),
}

/// Collects the actions and effects of handlers.
#[derive(Debug, Default)]
pub(crate) struct Output {
    actions: Vec<Action>,
    effects: VecDeque<Effect>,
}

impl Output {
    /// Adds an action.
    pub fn push_action(&mut self, action: Action) {
        self.actions.push(action);
    }

    /// Adds an effect.
    pub fn add_effect(&mut self, effect: Effect) {
        self.effects.push_back(effect);
    }

    /// Sends a directive in a session. `generation` is the generation that it belongs to.
    pub fn send(&mut self, session: SessionId, generation: u64, directive: Directive) {
        let directive = v1::Directive { generation, directive: Some(directive) };
        self.push_action(Action::Send { session, directive });
    }

    /// Orders a worker to exit; without an error if `is_orderly`.
    pub fn send_leave(&mut self, session: SessionId, last_generation: u64, reason: &str, is_orderly: bool) {
        let leave = v1::Leave { reason: reason.to_owned(), orderly: is_orderly };
        self.send(session, last_generation, Directive::Leave(leave));
    }

    /// Closes a session without an error.
    pub fn close(&mut self, session: SessionId) {
        self.push_action(Action::Close { session, refusal: None });
    }

    /// Appends a record to the journal.
    pub fn record(&mut self, record: Record) {
        self.push_action(Action::Record(record));
    }

    /// Appends an event to the journal.
    pub fn record_event(&mut self, kind: EventKind, detail: Value) {
        self.record(Record::Event { kind, detail });
    }

    /// The next effect to apply.
    pub fn take_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// The actions so far. None of them is returned twice.
    pub fn take_actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }
}
