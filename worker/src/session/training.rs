//! The session's handle of the training thread: starts it, passes it directives, and reads its
//! reports.

use std::net::IpAddr;
use std::sync::mpsc as blocking;
use std::time::Duration;

use config::RunFile;
use proto::v1::{self, directive::Directive as Kind, worker_message::Message};
use tch::Device;
use tokio::sync::{mpsc, oneshot};

use super::REPORTS;
use super::place::Membership;
use crate::protocol::{CheckedDirective, Protocol, ProtocolViolation};
use crate::trainer::{End, Flags, Order, Progress, Saving, Trainer, is_applied_in_place};

/// The state of a worker that has released its generation.
pub enum ReleasedState {
    /// The training state at this point; none if there is none.
    State(Option<v1::Position>),
    /// The final result: the run was complete.
    Result,
}

/// The handle of the training thread.
pub struct Training {
    /// The description of the data that it trains on.
    pub data_set: v1::DataSet,
    saving: Saving,
    /// Its activity, for heartbeats.
    pub progress: Progress,
    orders: blocking::Sender<Order>,
    reports: mpsc::Receiver<Message>,
    /// The state of the protocol, for checks of directives.
    protocol: Protocol,
    end: oneshot::Receiver<End>,
    /// The latest generation that this worker was told of, and its flags.
    generation: u64,
    flags: Flags,
    /// The term of that generation: the coordinator process that formed it.
    term: u64,
    /// The run's settings.
    run: RunFile,
    /// The run's id.
    run_id: String,
}

impl Training {
    /// Starts the thread. Waits until data and models are loaded; fails if they cannot be.
    pub async fn start(place: &Membership, device: Device, host: IpAddr) -> Result<Self, String> {
        let run = place.run.clone();
        let progress = Progress::default();
        let (orders, received) = blocking::channel();
        let (sender, reports) = mpsc::channel(REPORTS);
        let (loaded, loading) = oneshot::channel();
        let (ended, end) = oneshot::channel();
        let (shared, settings, run_id) = (progress.clone(), run.clone(), place.run_id.clone());
        std::thread::spawn(move || {
            // Fails if the session was dropped meanwhile.
            match Trainer::new(settings, run_id, device, host, shared, sender) {
                Err(problem) => _ = loaded.send(Err(problem)),
                Ok(trainer) => {
                    _ = loaded.send(Ok((trainer.data_set(), trainer.saving())));
                    _ = ended.send(trainer.run(&received));
                }
            }
        });
        let (data_set, saving) = loading.await.map_err(|_| training_died())??;
        Ok(Self {
            protocol: Protocol::new(&run, data_set.validation_images),
            data_set,
            saving,
            progress,
            orders,
            reports,
            end,
            generation: 0,
            flags: Flags::default(),
            term: 0,
            run,
            run_id: place.run_id.clone(),
        })
    }

    /// Takes the settings that a restarted coordinator has sent, between generations.
    ///
    /// # Errors
    /// Why data and models have to be loaded again: a changed setting requires it, or it is another
    /// run.
    pub fn take_settings(&mut self, place: &Membership) -> Result<(), String> {
        if self.run_id != place.run_id {
            return Err("the coordinator has another run: the state that was held is of no use to it".to_owned());
        }
        let run = place.run.clone();
        let changes = config::changes(&self.run, &run);
        if changes.is_empty() {
            return Ok(());
        }
        let changed = changes.iter().map(|change| change.key.as_str()).collect::<Vec<_>>().join(", ");
        if !changes.iter().all(is_applied_in_place) {
            return Err(format!("the coordinator has new settings: {changed}"));
        }
        tracing::info!(changed, "continuing with the coordinator's new settings");
        // If the thread has ended, `end` has the reason.
        _ = self.orders.send(Order::Settings(Box::new(run.clone())));
        self.protocol.configure(&run);
        self.run = run;
        Ok(())
    }

    /// Loads data and models again with the settings of a restarted coordinator. The state is lost.
    ///
    /// # Errors
    /// The data or the models are invalid.
    pub async fn restart(&mut self, place: &Membership, device: Device, host: IpAddr) -> Result<(), String> {
        self.saved().await;
        // The thread ends when its order channel is closed. That frees the memory of its models for
        // the new ones.
        self.orders = blocking::channel().0;
        self.end().await;
        *self = Self::start(place, device, host).await?;
        Ok(())
    }

    /// Checks a directive, and passes it to the thread.
    ///
    /// # Errors
    /// The directive breaks the protocol.
    pub fn order(&mut self, directive: v1::Directive) -> Result<(), ProtocolViolation> {
        let Some(directive) = self.protocol.check(directive)? else { return Ok(()) };
        match directive.kind() {
            Kind::Rendezvous(order) => {
                (self.generation, self.term) = (directive.generation(), order.term);
                self.flags = Flags::default();
            }
            Kind::Abandon(_) => self.flags.abandon.raise(),
            Kind::Halt(_) => {
                self.halt();
                return Ok(());
            }
            _ => {}
        }
        self.pass_on(directive);
        Ok(())
    }

    /// The number of the last generation that this worker was told of; 0 before the first.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The term of that generation.
    pub fn term(&self) -> u64 {
        self.term
    }

    /// The next report of the thread; none if it has ended.
    pub async fn report(&mut self) -> Option<Message> {
        let report = self.reports.recv().await;
        report.iter().for_each(|report| self.protocol.note(report));
        report
    }

    fn pass_on(&self, directive: CheckedDirective) {
        // If the thread has ended, `end` has the reason.
        _ = self.orders.send(Order::Directive { directive: Box::new(directive), flags: self.flags.clone() });
    }

    /// Ends the current generation after the step in flight.
    pub fn halt(&self) {
        self.flags.halt.raise();
    }

    /// Releases the current generation without an order of the coordinator. The step in flight is
    /// finished if the other members finish it within `patience`: they may have lost the
    /// coordinator, too.
    pub async fn let_go(&mut self, patience: Duration) -> Result<ReleasedState, String> {
        self.halt();
        self.pass_on(CheckedDirective::abandon(self.generation));
        if let Ok(held) = tokio::time::timeout(patience, self.held()).await {
            return held;
        }
        self.flags.abandon.raise();
        self.held().await
    }

    /// Waits until the generation is released. Returns the state that is kept.
    async fn held(&mut self) -> Result<ReleasedState, String> {
        loop {
            match self.report().await {
                // A report on an earlier generation may still be queued.
                Some(Message::Idle(idle)) if idle.generation >= self.generation => {
                    return Ok(ReleasedState::State(idle.position));
                }
                Some(Message::Finished(_)) => return Ok(ReleasedState::Result),
                Some(_) => {}
                None => return Err(self.why_ended().await),
            }
        }
    }

    /// Waits until the thread has ended. Returns how.
    pub async fn end(&mut self) -> End {
        (&mut self.end).await.unwrap_or(End::Closed)
    }

    /// Waits for checkpoints that are being saved: they need this process to be completed.
    pub async fn saved(&self) {
        let saving = self.saving.clone();
        // Fails only if the runtime is shutting down.
        _ = tokio::task::spawn_blocking(move || saving.wait()).await;
    }

    /// Waits until the thread has ended. Returns the reason.
    pub async fn why_ended(&mut self) -> String {
        match self.end().await {
            End::Failed(reason) => reason,
            _ => training_died(),
        }
    }
}

/// The error for a training thread that ended without a reason, as by a panic.
pub fn training_died() -> String {
    "the training thread died".to_owned()
}
