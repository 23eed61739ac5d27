//! The channels between session and training thread: the session's commands, and the thread's
//! reports and progress.

use std::sync::{Arc, Mutex, PoisonError};

use config::RunFile;
use proto::v1::{self, worker_message::Message};

/// A command of the session to the training thread.
pub enum TrainerCommand {
    /// Execute a directive of the coordinator.
    Execute(Box<worker_protocol::Command>),
    /// Apply changed settings of the same run. Sent between generations.
    ApplySettings(Box<RunFile>),
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
