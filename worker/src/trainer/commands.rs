//! The channels between session and training thread: the session's commands and signals, and the
//! thread's reports and progress.

use std::sync::{Arc, Mutex, PoisonError};

use config::{Change, Mutability, RunFile};
use proto::v1::{self, worker_message::Message};

use crate::collective::StopFlag;
use crate::protocol::CheckedDirective;

/// A command of the session to the training thread.
pub enum TrainerCommand {
    /// Execute a directive of the coordinator.
    Execute {
        /// The directive.
        directive: Box<CheckedDirective>,
        /// The flags of the directive's generation.
        flags: GenerationFlags,
    },
    /// Apply changed settings of the same run, all of which [`is_applied_in_place`] accepts. Sent
    /// between generations.
    ApplySettings(Box<RunFile>),
}

/// Whether a change of a setting takes effect without loading data and models again.
#[must_use]
pub fn is_applied_in_place(Change { key, mutability, .. }: &Change) -> bool {
    let is_in = |section: &str| key.strip_prefix(section).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
    // Before the first generation, `coordinator serve` accepts changes of fixed settings, too.
    *mutability != Mutability::Fixed && !["data", "compute_dtype", "output", "checkpoints.url"].into_iter().any(is_in)
}

/// Signals of the session to the training thread, for one generation.
#[derive(Clone, Debug, Default)]
pub struct GenerationFlags {
    /// Release the generation at once.
    pub abandon: StopFlag,
    /// Release the generation after the step in flight.
    pub halt: StopFlag,
}

/// The sending side of the channel for reports to the session.
pub type ReportSender = tokio::sync::mpsc::Sender<Message>;

/// The content of heartbeats: written by the training thread, read by the session.
#[derive(Clone, Default)]
pub struct TrainingProgress(Arc<Mutex<v1::Heartbeat>>);

impl TrainingProgress {
    /// The content of the next heartbeat.
    #[must_use]
    pub fn heartbeat(&self) -> v1::Heartbeat {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn update(&self, change: impl FnOnce(&mut v1::Heartbeat)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub(super) fn set_phase(&self, phase: v1::Phase) {
        self.update(|heartbeat| heartbeat.phase = phase.into());
    }
}
