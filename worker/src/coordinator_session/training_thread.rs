//! The session's handle of the training thread: starts the thread, sends it directives, and
//! receives its reports.

use std::net::IpAddr;
use std::sync::mpsc as blocking;
use std::time::Duration;

use anyhow::{Result, anyhow};
use proto::v1::{self, worker_message::Message};
use tch::Device;
use tokio::sync::{mpsc, oneshot};
use worker_protocol::{Command, Continuation, ReportEffect, Session};

use super::membership::Membership;
use crate::trainer::{PendingSaves, Trainer, TrainerCommand, TrainerExit, TrainingProgress};

/// Number of reports that can wait for the network. The training thread blocks when the queue is
/// full.
pub const REPORT_QUEUE_CAPACITY: usize = 256;

/// The outcome of releasing a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReleaseOutcome {
    /// The generation is released.
    Released,
    /// The run was complete already.
    Finished,
}

/// The handle of the training thread.
pub struct TrainingThread {
    /// The description of the data and of the models' frozen parts, for the coordinator.
    pub data_set: v1::DataSet,
    pending_saves: PendingSaves,
    /// The thread's current phase and position, for heartbeats.
    pub progress: TrainingProgress,
    commands: blocking::Sender<TrainerCommand>,
    reports: mpsc::Receiver<Message>,
    /// What the session does with directives and reports.
    pub protocol: Session,
    /// Receives how the thread ended.
    exit: oneshot::Receiver<TrainerExit>,
}

impl TrainingThread {
    /// Starts the thread, and waits until it has loaded data and models.
    ///
    /// # Errors
    /// The data or the models are invalid.
    pub async fn start(membership: &Membership, device: Device, host: IpAddr) -> Result<Self> {
        let run = membership.run.clone();
        let progress = TrainingProgress::default();
        let (commands, command_receiver) = blocking::channel();
        let (report_sender, reports) = mpsc::channel(REPORT_QUEUE_CAPACITY);
        let (loaded_sender, loaded) = oneshot::channel();
        let (exit_sender, exit) = oneshot::channel();
        let (thread_progress, thread_run, run_id) = (progress.clone(), run.clone(), membership.run_id.clone());
        std::thread::spawn(move || {
            // Sending fails if the session was dropped meanwhile.
            match Trainer::new(thread_run, run_id, device, host, thread_progress, report_sender) {
                Err(error) => _ = loaded_sender.send(Err(error)),
                Ok(trainer) => {
                    _ = loaded_sender.send(Ok((trainer.data_set(), trainer.pending_saves())));
                    _ = exit_sender.send(trainer.run(&command_receiver));
                }
            }
        });
        let (data_set, pending_saves) = loaded.await.map_err(|_| training_thread_panicked())??;
        Ok(Self {
            protocol: Session::new(run, membership.run_id.clone(), data_set.validation_images),
            data_set,
            pending_saves,
            progress,
            commands,
            reports,
            exit,
        })
    }

    /// Continues with the settings of a coordinator that this worker has joined again. Returns why
    /// data and models have to be loaded again, if they have to.
    pub fn apply_settings(&mut self, membership: &Membership) -> Option<String> {
        match self.protocol.continue_with(&membership.run, &membership.run_id) {
            Continuation::Unchanged => None,
            Continuation::Changed(changed) => {
                tracing::info!(changed, "continuing with the coordinator's new settings");
                // If the thread has ended, `exit_error` returns why.
                _ = self.commands.send(TrainerCommand::ApplySettings(Box::new(membership.run.clone())));
                None
            }
            Continuation::Reload(reason) => Some(reason),
        }
    }

    /// Loads data and models again with the settings of a restarted coordinator. The training state
    /// is lost.
    ///
    /// # Errors
    /// The data or the models are invalid.
    pub async fn restart(&mut self, membership: &Membership, device: Device, host: IpAddr) -> Result<()> {
        self.wait_for_saves().await;
        // The thread ends when its command channel is closed. That frees the memory of its models
        // for the new ones.
        self.commands = blocking::channel().0;
        self.wait_for_exit().await;
        *self = Self::start(membership, device, host).await?;
        Ok(())
    }

    /// Sends a command to the thread.
    pub fn send(&self, command: Command) {
        // If the thread has ended, `exit_error` returns why.
        _ = self.commands.send(TrainerCommand::Execute(Box::new(command)));
    }

    /// Waits for the next report of the thread, and returns what follows from it; none if the
    /// thread has ended.
    pub async fn next_report(&mut self) -> Option<ReportEffect> {
        let report = self.reports.recv().await?;
        Some(self.protocol.on_report(report))
    }

    /// Releases the generation of a lost session. The step in flight completes if the other members
    /// complete it within `timeout`: they may have lost the coordinator, too.
    ///
    /// # Errors
    /// The thread has ended.
    pub async fn release_generation(&mut self, timeout: Duration) -> Result<ReleaseOutcome> {
        let command = self.protocol.on_disconnect();
        self.send(command);
        if let Ok(outcome) = tokio::time::timeout(timeout, self.wait_for_release()).await {
            return outcome;
        }
        self.protocol.on_release_timeout();
        self.wait_for_release().await
    }

    /// Waits until the thread has released the generation.
    async fn wait_for_release(&mut self) -> Result<ReleaseOutcome> {
        loop {
            match self.next_report().await {
                Some(ReportEffect::Released) => return Ok(ReleaseOutcome::Released),
                Some(ReportEffect::SendLast(Message::Finished(_))) => return Ok(ReleaseOutcome::Finished),
                Some(_) => {}
                None => return Err(self.exit_error().await),
            }
        }
    }

    /// Waits until the thread has ended. Returns `Closed` also if the thread panicked.
    pub async fn wait_for_exit(&mut self) -> TrainerExit {
        (&mut self.exit).await.unwrap_or(TrainerExit::Closed)
    }

    /// Waits for checkpoints that are being saved. They would be lost if this process ended.
    pub async fn wait_for_saves(&self) {
        let pending_saves = self.pending_saves.clone();
        // Fails only if the runtime is shutting down.
        _ = tokio::task::spawn_blocking(move || pending_saves.wait()).await;
    }

    /// Waits until the thread has ended. Returns the error that ended it.
    pub async fn exit_error(&mut self) -> anyhow::Error {
        match self.wait_for_exit().await {
            TrainerExit::Failed(reason) => anyhow!(reason),
            _ => training_thread_panicked(),
        }
    }
}

/// The error for a training thread that ended without a result.
pub fn training_thread_panicked() -> anyhow::Error {
    anyhow!("the training thread panicked")
}
