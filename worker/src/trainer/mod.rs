//! The training thread: executes the coordinator's directives in order, and reports the results.
//!
//! ```text
//!   session (tokio)                      training thread (libtorch)
//!     | -- Order::Directive -------------> | rendezvous, train, evaluate, checkpoint, advance
//!     | <----------------- reports ------- | Ready, StepDone, EvaluationItems, ..., Idle
//!     | -- abandon.raise() --------------> | ends a wait in the collective at once
//!     | -- halt.raise() -----------------> | ends the generation after the step in flight, on all ranks
//!     |                                    | -- Save{snapshot} --> saver (a thread)
//!     | <-- CheckpointDone, CheckpointFailed ------------------------ |
//! ```

mod checkpoint;
mod evaluation;
mod reach;
mod saver;
mod snapshot;
mod state;
mod step;

use std::net::IpAddr;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use caption_metrics::cider::Cider;
use checkpoint_store::{Checkpoints, JournalHead, Sequence};
use config::{Change, Mutability, Objective, Reward, RunFile, Stage};
use dataset::{DataSet, Split};
use object_io::Access;
use proto::v1::{self, directive::Directive as Kind, worker_message::Message};
use tch::Device;
use tokenizer::MAX_TOKEN_BYTES;

use crate::captioner::Search;
use crate::collective::{Collective, CollectiveError, Flag, RendezvousPlan};
use crate::data::{Loader, Source};
use crate::feature_source;
use crate::memory;
use crate::models::{self, WeightSources};
use crate::protocol::CheckedDirective;
pub use checkpoint::stamp;
pub use saver::Saving;
use saver::{Save, Saver};
use snapshot::{Origin, Snapshot};
use state::State;
use step::{Pairs, PrefetchedBatches};

/// How long the members of a generation wait for each other in a rendezvous before they report
/// failure.
const MEETING_PATIENCE: Duration = Duration::from_secs(60);
/// Number of threads that decode and preprocess batches.
const LOADING_THREADS: usize = 2;

/// A message of the session to the training thread.
pub enum Order {
    /// A directive of the coordinator.
    Directive {
        /// The directive.
        directive: Box<CheckedDirective>,
        /// The flags of the directive's generation.
        flags: Flags,
    },
    /// Changed settings of the same run, all of which [`is_applied_in_place`] accepts. Sent between
    /// generations.
    Settings(Box<RunFile>),
}

/// Whether a change of a setting takes effect without loading data and models again.
#[must_use]
pub fn is_applied_in_place(Change { key, mutability, .. }: &Change) -> bool {
    let is_loaded = |loaded| key.strip_prefix(loaded).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
    // Before its first generation a run may change in every respect, and the coordinator may have
    // another run.
    *mutability != Mutability::Fixed
        && !["data", "compute_dtype", "output", "checkpoints.url"].into_iter().any(is_loaded)
}

/// Signals of the session to the training thread within a generation.
#[derive(Clone, Debug, Default)]
pub struct Flags {
    /// Release the generation at once.
    pub abandon: Flag,
    /// Release the generation after the step in flight.
    pub halt: Flag,
}

/// The content of heartbeats: written by the training thread, read by the session.
#[derive(Clone, Default)]
pub struct Progress(Arc<Mutex<v1::Heartbeat>>);

impl Progress {
    /// The latest heartbeat.
    #[must_use]
    pub fn heartbeat(&self) -> v1::Heartbeat {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update(&self, change: impl FnOnce(&mut v1::Heartbeat)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn phase(&self, phase: v1::Phase) {
        self.update(|beat| beat.phase = phase.into());
    }
}

/// The channel for reports to the session.
pub type Reports = tokio::sync::mpsc::Sender<Message>;

/// Why a directive was not completed.
enum Stop {
    /// The generation has failed; the worker can join the next one.
    CollectiveError(CollectiveError),
    /// The generation was halted.
    Halted,
    /// The rendezvous failed because these peers, by worker id, are unreachable.
    Unreachable(Vec<u32>),
    /// The generation has failed because its checkpoint is damaged; the next one may use another.
    Damaged { checkpoint: String, reason: String },
    /// This worker cannot continue.
    Fatal(String),
}

impl From<CollectiveError> for Stop {
    fn from(broken: CollectiveError) -> Self {
        Self::CollectiveError(broken)
    }
}

impl From<String> for Stop {
    fn from(reason: String) -> Self {
        Self::Fatal(reason)
    }
}

/// How the training thread ended.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// The run is complete; has the SHA-256 of this worker's parameters.
    Finished(String),
    /// The session closed the order channel.
    Closed,
    /// This worker cannot continue, for this reason.
    Failed(String),
}

/// Models, data, and the collective of the current generation.
pub struct Trainer {
    run: RunFile,
    /// The run's id.
    run_id: String,
    device: Device,
    host: IpAddr,
    data: Arc<DataSet>,
    pairs: Pairs,
    scenes: Option<synthetic_data::Scenes>,
    sources: WeightSources,
    /// The document frequencies of the training captions, if a stage rewards CIDEr-D.
    cider: Option<Cider>,
    loader: Loader,
    ahead: PrefetchedBatches,
    /// A stage number, and the start of its current sequence of samples. Other stages start at step
    /// 0.
    sequence_start: (u32, v1::SequenceStart),
    state: State,
    collective: Option<Box<dyn Collective>>,
    abandon: Flag,
    halt: Flag,
    /// When the last step ended, if the thread has only waited since.
    rested: Option<Instant>,
    /// The number of the last generation that this worker has released.
    let_go: u64,
    progress: Progress,
    reports: Reports,
    checkpoints: Arc<Checkpoints>,
    saver: Saver,
}

impl Trainer {
    /// Loads the data and builds the models of `run`, which has the id `run_id`, on `device`.
    ///
    /// # Errors
    /// The data or the weights are invalid; the message names the file.
    pub fn new(
        run: RunFile,
        run_id: String,
        device: Device,
        host: IpAddr,
        progress: Progress,
        reports: Reports,
    ) -> Result<Self, String> {
        let data = Arc::new(DataSet::load_for(&run).map_err(|error| error.to_string())?);
        let scenes = run
            .data
            .scenes
            .as_deref()
            .map(synthetic_data::Scenes::load)
            .transpose()
            .map_err(|error| error.to_string())?;
        let checkpoints = Checkpoints::open(&run.checkpoint_place(), &Access::environment());
        let checkpoints = Arc::new(checkpoints.map_err(|error| format!("checkpoints: {error}"))?);
        let captions = data.split(Split::Train).iter().flat_map(|item| &item.captions).map(String::as_str);
        let vocabulary = match checkpoint::vocabulary(&run, &checkpoints)? {
            Some(vocabulary) => vocabulary,
            None => models::vocabulary(&run, captions),
        };
        let sources = WeightSources::open(&run, vocabulary)?;
        let state = State::new(&run, &sources, device)?;
        run.check_positions(state.models.captioner.architecture().positions)?;
        let longest_caption = run.decoding.max_length as usize * MAX_TOKEN_BYTES;
        let embedding = sources.embedding_numbers(&state.models);
        data.check_evaluation(embedding, longest_caption).map_err(|error| error.to_string())?;
        let stores = feature_source::stores(&run, &data, &sources, &state.models)?;
        let skip_corrupt = run.data.skip_corrupt;
        let source = Source { data: Arc::clone(&data), sizes: state.models.sizes(), stores, skip_corrupt };
        let cider = run.stages.iter().any(rewards_cider).then(|| {
            Cider::new(&data.split(Split::Train).iter().map(|item| item.captions.clone()).collect::<Vec<_>>())
        });
        let pairs = Pairs::new(data.split(Split::Train).iter().map(|item| item.captions.len()));
        let saver = Saver::start(Arc::clone(&checkpoints), reports.clone());
        progress.phase(v1::Phase::Idle);
        Ok(Self {
            run,
            run_id,
            device,
            host,
            data,
            pairs,
            scenes,
            sources,
            cider,
            loader: Loader::new(source, LOADING_THREADS),
            ahead: PrefetchedBatches::default(),
            sequence_start: (0, v1::SequenceStart::default()),
            state,
            collective: None,
            abandon: Flag::default(),
            halt: Flag::default(),
            rested: None,
            let_go: 0,
            progress,
            reports,
            checkpoints,
            saver,
        })
    }

    /// The handle to wait for checkpoints that are being saved, before the process ends.
    #[must_use]
    pub fn saving(&self) -> Saving {
        self.saver.saving().clone()
    }

    /// The description of the data and of the models' sources, for the coordinator.
    #[must_use]
    pub fn data_set(&self) -> v1::DataSet {
        v1::DataSet {
            train_images: self.data.split(Split::Train).len() as u64,
            train_captions: self.data.train_captions(),
            skipped_images: self.data.left_out().len() as u64,
            training_fingerprint: self.data.training_sha256(),
            validation_images: self.data.split(Split::Validation).len() as u64,
            validation_fingerprint: self.data.validation_sha256(),
            models_fingerprint: self.sources.fingerprint(),
        }
    }

    /// Executes orders until the run is complete, the session closes the channel, or this worker
    /// cannot continue.
    pub fn run(mut self, orders: &Receiver<Order>) -> End {
        while let Ok(order) = orders.recv() {
            let (directive, flags) = match order {
                Order::Directive { directive, flags } => (directive, flags),
                Order::Settings(run) => {
                    self.state.configure_optimizer(&run);
                    self.run = *run;
                    continue;
                }
            };
            let (generation, kind) = directive.into_parts();
            if generation <= self.let_go && !matches!(kind, Kind::Abandon(_)) {
                continue;
            }
            if let Kind::Rendezvous(_) = &kind {
                (self.abandon, self.halt) = (flags.abandon, flags.halt);
            }
            if !matches!(kind, Kind::Train(_)) {
                self.rested = None;
            }
            match self.execute(generation, kind) {
                Ok(false) => {}
                Ok(true) => return End::Finished(self.state.parameters_sha256()),
                Err(Stop::CollectiveError(CollectiveError::Abandoned)) => self.leave_generation(generation),
                Err(Stop::Halted) => {
                    self.leave_generation(generation);
                    self.report_idle(generation);
                }
                Err(Stop::CollectiveError(CollectiveError::Failed(reason))) => {
                    self.fail(v1::Failed { generation, reason, ..Default::default() });
                }
                Err(Stop::Unreachable(unreachable)) => {
                    let reason = format!("cannot reach rank {unreachable:?}");
                    self.fail(v1::Failed { generation, reason, unreachable, ..Default::default() });
                }
                Err(Stop::Damaged { checkpoint: damaged_checkpoint, reason }) => {
                    self.fail(v1::Failed { generation, reason, damaged_checkpoint, ..Default::default() });
                }
                Err(Stop::Fatal(reason)) => {
                    self.leave_generation(generation);
                    self.report(Message::Failed(v1::Failed {
                        generation,
                        reason: reason.clone(),
                        fatal: true,
                        ..Default::default()
                    }));
                    return End::Failed(reason);
                }
            }
            self.progress.phase(v1::Phase::Idle);
        }
        End::Closed
    }

    /// Executes one directive. Returns true when the run is complete.
    fn execute(&mut self, generation: u64, kind: Kind) -> Result<bool, Stop> {
        match kind {
            Kind::Rendezvous(rendezvous) => self.rendezvous(generation, &rendezvous)?,
            Kind::Train(window) => self.train(generation, &window)?,
            Kind::Evaluate(order) => {
                self.progress.phase(v1::Phase::Evaluate);
                self.evaluate(generation, &order)?;
                memory::give_back();
            }
            Kind::Checkpoint(v1::Checkpoint { checkpoint, name, journal }) => {
                self.progress.phase(v1::Phase::Checkpoint);
                let writes = self.collective()?.rank() == 0;
                let origin = writes.then(|| self.origin(generation, journal.unwrap_or_default()));
                let snapshot = Snapshot::take(&self.state, &self.run, &self.sources, origin)?;
                self.saver.save(Save { generation, checkpoint, name, snapshot })?;
            }
            Kind::Advance(v1::Advance { stage }) => {
                self.state.enter_stage(&self.run, stage as usize);
                self.moved(generation);
                self.report(Message::Advanced(v1::Advanced { generation, stage }));
            }
            Kind::Abandon(_) => {
                self.leave_generation(generation);
                self.report_idle(generation);
            }
            Kind::Finish(_) => {
                // Reports after Finished are not read.
                self.saver.saving().wait();
                self.report(Message::Finished(v1::Finished {}));
                return Ok(true);
            }
            // The session handles these.
            Kind::Leave(_) | Kind::Halt(_) => {}
        }
        Ok(false)
    }

    /// The identity of the present state, for its checkpoint.
    fn origin(&self, generation: u64, v1::JournalHead { sequence, hash }: v1::JournalHead) -> Origin {
        let stage = self.state.position.unwrap_or_default().stage;
        let v1::SequenceStart { step, epoch } = self.sequence_start(stage);
        Origin {
            run_id: self.run_id.clone(),
            generation,
            journal: JournalHead { sequence, hash },
            sequence: Sequence { step, epoch },
        }
    }

    fn rendezvous(&mut self, generation: u64, order: &v1::Rendezvous) -> Result<(), Stop> {
        self.progress.phase(v1::Phase::Rendezvous);
        let (rank, world_size) = (order.rank as usize, order.world_size as usize);
        // `protocol` guarantees that a rendezvous has one.
        let position = order.position.unwrap_or_default();
        let sequence_start = (position.stage, order.sequence_start.unwrap_or_default());
        if self.sequence_start != sequence_start {
            self.sequence_start = sequence_start;
            self.ahead = PrefetchedBatches::default();
        }
        self.collective = None;
        let unreachable = reach::unreachable(&order.peers);
        if !unreachable.is_empty() {
            return Err(Stop::Unreachable(unreachable));
        }
        let meeting = RendezvousPlan {
            store_address: &order.store_address,
            generation,
            term: order.term,
            rank,
            world_size,
            patience: MEETING_PATIENCE,
            abandon: self.abandon.clone(),
        };
        let collective = meeting.hold(self.device, self.host)?;
        let source = match (order.source_rank, order.checkpoint.as_str()) {
            (Some(source), _) => source as usize,
            (None, "") => {
                if !self.state.untouched {
                    self.state = State::new(&self.run, &self.sources, self.device)?;
                }
                0
            }
            (None, _) => {
                if rank == 0 {
                    self.read_checkpoint(order)?;
                }
                0
            }
        };
        if let Err(broken) = self.state.adopt(&self.run, position, source, collective.as_ref()) {
            if self.state.position.is_none() {
                // The abandoned broadcast may still write to the old state's memory.
                self.state = State::new(&self.run, &self.sources, self.device)?;
            }
            return Err(broken.into());
        }
        self.collective = Some(collective);
        self.moved(generation);
        tracing::info!(generation, rank, world_size, stage = position.stage, step = position.step, "generation formed");
        self.report(Message::Ready(v1::Ready { generation, position: self.state.position }));
        Ok(())
    }

    fn train(&mut self, generation: u64, window: &v1::Train) -> Result<(), Stop> {
        let position = self.state.position.unwrap_or_default();
        if window.stage != position.stage || window.first_step != position.step {
            let reason = format!("told to train from {window:?} at {position:?}");
            return Err(Stop::CollectiveError(CollectiveError::Failed(reason)));
        }
        for _ in 0..window.steps {
            let (done, halting) = self.step(generation, window)?;
            self.report(Message::StepDone(done));
            if halting {
                return Err(Stop::Halted);
            }
        }
        Ok(())
    }

    /// Fails if the generation was abandoned. Called during long work, because the coordinator
    /// evicts a member that does not release its generation.
    fn not_abandoned(&self) -> Result<(), Stop> {
        if self.abandon.is_raised() { Err(CollectiveError::Abandoned.into()) } else { Ok(()) }
    }

    fn collective(&self) -> Result<&dyn Collective, Stop> {
        let missing = || Stop::CollectiveError(CollectiveError::Failed("directive outside a generation".into()));
        self.collective.as_deref().ok_or_else(missing)
    }

    /// Reports that the generation has failed here, and releases it.
    fn fail(&mut self, failed: v1::Failed) {
        let generation = failed.generation;
        self.leave_generation(generation);
        self.report(Message::Failed(failed));
        self.report_idle(generation);
    }

    /// Reports that no more reports on a generation follow, except on a checkpoint that is being
    /// saved.
    fn report_idle(&self, generation: u64) {
        let (position, saving) = (self.state.position, self.saver.saving().latest());
        self.report(Message::Idle(v1::Idle { generation, position, saving }));
    }

    fn leave_generation(&mut self, generation: u64) {
        self.collective = None;
        self.let_go = self.let_go.max(generation);
        // There is no position if the state of another rank was received only in part.
        self.progress.update(|beat| beat.position = self.state.position);
    }

    /// Records that the state was last changed in `generation`.
    fn moved(&mut self, generation: u64) {
        if let Some(position) = &mut self.state.position {
            position.generation = generation;
        }
        self.progress.update(|beat| beat.position = self.state.position);
    }

    fn report(&self, message: Message) {
        // Fails if the session is gone; then the closed order channel ends the thread.
        _ = self.reports.blocking_send(message);
    }

    fn search(&self) -> Search {
        Search::new(&self.run.decoding, &self.sources.captioner_vocabulary)
    }
}

fn rewards_cider(stage: &Stage) -> bool {
    let rewards = match stage.objective {
        Objective::Dico => &stage.dico.reward,
        Objective::Scst => &stage.scst.reward,
        Objective::Contrastive | Objective::CrossEntropy => return false,
    };
    rewards.contains_key(&Reward::Cider)
}
