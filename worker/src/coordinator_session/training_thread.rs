//! The session's handle of the training thread: starts the thread, sends it directives, and
//! receives its reports.

use std::net::IpAddr;
use std::sync::mpsc as blocking;
use std::time::Duration;

use anyhow::{Result, anyhow};
use config::RunFile;
use proto::v1::{self, directive::Directive as DirectiveKind, worker_message::Message};
use tch::Device;
use tokio::sync::{mpsc, oneshot};

use super::membership::Membership;
use crate::protocol::{CheckedDirective, ProtocolChecker, ProtocolViolation};
use crate::trainer::{
    GenerationFlags, PendingSaves, Trainer, TrainerCommand, TrainerExit, TrainingProgress, is_applied_in_place,
};

/// Number of reports that can wait for the network. The training thread blocks when the queue is
/// full.
pub const REPORT_QUEUE_CAPACITY: usize = 256;

/// The outcome of applying the settings of a restarted coordinator.
pub enum SettingsOutcome {
    /// The settings apply from the next generation on.
    Applied,
    /// Data and models have to be loaded again, for this reason: a changed setting requires it, or
    /// the coordinator serves another run.
    ReloadRequired(String),
}

/// The outcome of releasing a generation.
pub enum ReleaseOutcome {
    /// The generation is released. The training state has this position, if it has one.
    Idle(Option<v1::Position>),
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
    /// Checks directives before the thread gets them.
    protocol_checker: ProtocolChecker,
    /// Receives how the thread ended.
    exit: oneshot::Receiver<TrainerExit>,
    /// The generation of the last Rendezvous, and its flags.
    generation: u64,
    flags: GenerationFlags,
    /// The term of that generation: the coordinator process that formed it.
    term: u64,
    /// The run's settings.
    run: RunFile,
    /// The run's id.
    run_id: String,
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
            protocol_checker: ProtocolChecker::new(&run, data_set.validation_images),
            data_set,
            pending_saves,
            progress,
            commands,
            reports,
            exit,
            generation: 0,
            flags: GenerationFlags::default(),
            term: 0,
            run,
            run_id: membership.run_id.clone(),
        })
    }

    /// Applies the settings that a restarted coordinator has sent, between generations.
    pub fn apply_settings(&mut self, membership: &Membership) -> SettingsOutcome {
        if self.run_id != membership.run_id {
            let reason = "the coordinator serves another run, which cannot use this worker's state".to_owned();
            return SettingsOutcome::ReloadRequired(reason);
        }
        let run = membership.run.clone();
        let changes = config::changes(&self.run, &run);
        if changes.is_empty() {
            return SettingsOutcome::Applied;
        }
        let changed = changes.iter().map(|change| change.key.as_str()).collect::<Vec<_>>().join(", ");
        if !changes.iter().all(is_applied_in_place) {
            return SettingsOutcome::ReloadRequired(format!("the coordinator has new settings: {changed}"));
        }
        tracing::info!(changed, "continuing with the coordinator's new settings");
        // If the thread has ended, `exit_error` returns why.
        _ = self.commands.send(TrainerCommand::ApplySettings(Box::new(run.clone())));
        self.protocol_checker.configure(&run);
        self.run = run;
        SettingsOutcome::Applied
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

    /// Checks a directive, and sends it to the thread; a Halt only raises a flag.
    ///
    /// # Errors
    /// The directive violates the protocol.
    pub fn execute(&mut self, directive: v1::Directive) -> Result<(), ProtocolViolation> {
        let Some(directive) = self.protocol_checker.check(directive)? else { return Ok(()) };
        match directive.kind() {
            DirectiveKind::Rendezvous(rendezvous) => {
                (self.generation, self.term) = (directive.generation(), rendezvous.term);
                self.flags = GenerationFlags::default();
            }
            DirectiveKind::Abandon(_) => self.flags.abandon.raise(),
            DirectiveKind::Halt(_) => {
                self.halt();
                return Ok(());
            }
            _ => {}
        }
        self.send_directive(directive);
        Ok(())
    }

    /// The number of the generation of the last Rendezvous; 0 before the first.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The term of that generation.
    pub fn term(&self) -> u64 {
        self.term
    }

    /// Waits for the next report of the thread; none if the thread has ended.
    pub async fn next_report(&mut self) -> Option<Message> {
        let report = self.reports.recv().await;
        report.iter().for_each(|report| self.protocol_checker.record_report(report));
        report
    }

    fn send_directive(&self, directive: CheckedDirective) {
        let command = TrainerCommand::Execute { directive: Box::new(directive), flags: self.flags.clone() };
        // If the thread has ended, `exit_error` returns why.
        _ = self.commands.send(command);
    }

    /// Ends the current generation after the step in flight.
    pub fn halt(&self) {
        self.flags.halt.raise();
    }

    /// Releases the current generation without a directive of the coordinator. The step in flight
    /// completes if the other members complete it within `timeout`: they may have lost the
    /// coordinator, too.
    ///
    /// # Errors
    /// The thread has ended.
    pub async fn release_generation(&mut self, timeout: Duration) -> Result<ReleaseOutcome> {
        self.halt();
        self.send_directive(CheckedDirective::abandon(self.generation));
        if let Ok(outcome) = tokio::time::timeout(timeout, self.wait_for_release()).await {
            return outcome;
        }
        self.flags.abandon.raise();
        self.wait_for_release().await
    }

    /// Waits until the thread has released the generation.
    async fn wait_for_release(&mut self) -> Result<ReleaseOutcome> {
        loop {
            match self.next_report().await {
                // An Idle of an earlier generation may still be queued.
                Some(Message::Idle(idle)) if idle.generation >= self.generation => {
                    return Ok(ReleaseOutcome::Idle(idle.position));
                }
                Some(Message::Finished(_)) => return Ok(ReleaseOutcome::Finished),
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
