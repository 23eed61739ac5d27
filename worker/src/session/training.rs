use std::net::IpAddr;
use std::sync::mpsc as blocking;
use std::time::Duration;

use proto::v1::{self, directive::Directive as Kind, worker_message::Message};
use runfile::RunFile;
use tch::Device;
use tokio::sync::{mpsc, oneshot};

use super::REPORTS;
use super::place::Place;
use crate::protocol::{Checked, Protocol, Violation};
use crate::trainer::{End, Flags, Order, Progress, Saving, Trainer, is_applied_in_place};

/// What a worker has that let go of its generation.
pub enum Held {
    /// The state of the run at this point, if any.
    State(Option<v1::Position>),
    /// The result: the run was complete.
    Result,
}

/// The training thread, seen from here.
pub struct Training {
    /// What it trains on.
    pub data_set: v1::DataSet,
    saving: Saving,
    /// What it is doing.
    pub progress: Progress,
    orders: blocking::Sender<Order>,
    reports: mpsc::Receiver<Message>,
    /// What was said so far.
    protocol: Protocol,
    end: oneshot::Receiver<End>,
    /// The latest generation that this worker was told of, and its flags.
    generation: u64,
    flags: Flags,
    /// The term of that generation: the coordinator process that formed it.
    term: u64,
    /// The run's settings.
    run: RunFile,
    /// Names the run.
    run_id: String,
}

impl Training {
    /// Starts the thread and waits until data and models are loaded.
    pub async fn start(place: &Place, device: Device, host: IpAddr) -> Result<Self, String> {
        let run = place.run.clone();
        let progress = Progress::default();
        let (orders, received) = blocking::channel();
        let (sender, reports) = mpsc::channel(REPORTS);
        let (loaded, loading) = oneshot::channel();
        let (ended, end) = oneshot::channel();
        let (shared, settings, run_id) = (progress.clone(), run.clone(), place.run_id.clone());
        std::thread::spawn(move || {
            // A session that is gone needs no answer.
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
    /// Why data and models have to be loaded again: some settings take effect only then, or it is another run.
    pub fn take_settings(&mut self, place: &Place) -> Result<(), String> {
        if self.run_id != place.run_id {
            return Err("the coordinator has another run: the state that was held is of no use to it".to_owned());
        }
        let run = place.run.clone();
        let changes = runfile::changes(&self.run, &run);
        if changes.is_empty() {
            return Ok(());
        }
        let changed = changes.iter().map(|change| change.key.as_str()).collect::<Vec<_>>().join(", ");
        if !changes.iter().all(is_applied_in_place) {
            return Err(format!("the coordinator has new settings: {changed}"));
        }
        tracing::info!(changed, "continuing with the coordinator's new settings");
        // A thread that has ended says so through `end`.
        _ = self.orders.send(Order::Settings(Box::new(run.clone())));
        self.protocol.configure(&run);
        self.run = run;
        Ok(())
    }

    /// Loads data and models again with the settings that a restarted coordinator has sent. The state is lost.
    ///
    /// # Errors
    /// What is wrong with the data or the models.
    pub async fn restart(&mut self, place: &Place, device: Device, host: IpAddr) -> Result<(), String> {
        self.saved().await;
        // The thread ends when no orders can come, which frees the memory of its models for the new ones.
        self.orders = blocking::channel().0;
        self.end().await;
        *self = Self::start(place, device, host).await?;
        Ok(())
    }

    /// Checks a directive, and passes it on.
    ///
    /// # Errors
    /// It makes no sense.
    pub fn order(&mut self, directive: v1::Directive) -> Result<(), Violation> {
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

    /// The generation that this worker was told of last; 0 before the first.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The term of that generation.
    pub fn term(&self) -> u64 {
        self.term
    }

    /// What it has to say next; none if it has ended.
    pub async fn report(&mut self) -> Option<Message> {
        let report = self.reports.recv().await;
        report.iter().for_each(|report| self.protocol.note(report));
        report
    }

    fn pass_on(&self, directive: Checked) {
        // A thread that has ended says so through `end`.
        _ = self.orders.send(Order::Directive { directive: Box::new(directive), flags: self.flags.clone() });
    }

    /// Ends the present generation after what is in flight.
    pub fn halt(&self) {
        self.flags.halt.raise();
    }

    /// Ends the present generation from this side. The step in flight is finished if the others do their part within `patience`:
    /// they may have lost the coordinator, too.
    pub async fn let_go(&mut self, patience: Duration) -> Result<Held, String> {
        self.halt();
        self.pass_on(Checked::abandon(self.generation));
        if let Ok(held) = tokio::time::timeout(patience, self.held()).await {
            return held;
        }
        self.flags.abandon.raise();
        self.held().await
    }

    /// The state that is held once the generation is let go of.
    async fn held(&mut self) -> Result<Held, String> {
        loop {
            match self.report().await {
                // One of an earlier generation may still be on its way.
                Some(Message::Idle(idle)) if idle.generation >= self.generation => {
                    return Ok(Held::State(idle.position));
                }
                Some(Message::Finished(_)) => return Ok(Held::Result),
                Some(_) => {}
                None => return Err(self.why_ended().await),
            }
        }
    }

    /// How it ended.
    pub async fn end(&mut self) -> End {
        (&mut self.end).await.unwrap_or(End::Closed)
    }

    /// Waits for checkpoints that are being saved: they would not become whole without this process.
    pub async fn saved(&self) {
        let saving = self.saving.clone();
        // It only fails where the runtime is gone, and with it the process.
        _ = tokio::task::spawn_blocking(move || saving.wait()).await;
    }

    /// Why it ended.
    pub async fn why_ended(&mut self) -> String {
        match self.end().await {
            End::Failed(reason) => reason,
            _ => training_died(),
        }
    }
}

/// Why a worker ends whose training thread is gone without a word.
pub fn training_died() -> String {
    "the training thread died".to_owned()
}
