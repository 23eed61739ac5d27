//! The training thread: executes the coordinator's directives in order, and reports the results.
//!
//! ```text
//!   session (tokio)                      training thread (libtorch)
//!     | -- TrainerCommand::Execute ------> | rendezvous, train, evaluate, checkpoint, advance
//!     | <----------------- reports ------- | Ready, StepDone, EvaluationItems, ..., Idle
//!     | -- abandon.raise() --------------> | releases the generation, also during a wait
//!     | -- halt.raise() -----------------> | ends the generation after the step in flight
//!     |                                    | -- SaveRequest --> checkpoint saver (a thread)
//!     | <-- reports: CheckpointDone, CheckpointFailed ------------- |
//! ```
//!
//! | file | content |
//! |---|---|
//! | `commands` | the session's commands and stop flags for the thread, the thread's reports and progress |
//! | `directive_error` | why a directive was not completed |
//! | `step` | a training step: losses, all-reduce, update |
//! | `batches` | the samples of this rank's share of a step, and prefetching |
//! | `evaluation` | the Evaluate directive |
//! | `training_state` | parameters, optimizer moments and position, and their synchronization between ranks |
//! | `snapshot` | a copy of the training state, which is written while training continues |
//! | `checkpoint_saver` | the thread that writes snapshots as checkpoints |
//! | `checkpoint` | loads checkpoints |
//! | `reachability` | whether the peers that a Rendezvous lists can be reached |

mod batches;
mod checkpoint;
mod checkpoint_saver;
mod commands;
mod directive_error;
mod evaluation;
mod reachability;
mod snapshot;
mod step;
mod training_state;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use anyhow::Context;
use caption_metrics::cider::CiderReward;
use checkpoint_store::{Checkpoints, JournalHead, SampleSequence};
use config::RunFile;
use dataset::{DataSet, Split};
use object_storage::Access;
use proto::v1::{self, directive::Directive as DirectiveKind, worker_message::Message};
use tch::Device;
use tokenizer::MAX_TOKEN_BYTES;

use crate::captioner::GenerationConfig;
use crate::collective::{Collective, CollectiveError, RendezvousParameters, StopFlag};
use crate::data::{BatchSource, DataLoader};
use crate::feature_stores;
use crate::host_memory;
use crate::run_models::{self, WeightSources};
use batches::TrainingBatches;
pub use checkpoint::checkpoint_metadata;
pub use checkpoint_saver::PendingSaves;
use checkpoint_saver::{CheckpointSaver, SaveRequest};
pub use commands::{GenerationFlags, ReportSender, TrainerCommand, TrainingProgress, is_applied_in_place};
use directive_error::DirectiveError;
use snapshot::{CheckpointOrigin, Snapshot};
use training_state::TrainingState;

/// How long a rank waits for the other ranks in a rendezvous.
const RENDEZVOUS_TIMEOUT: Duration = Duration::from_secs(60);
/// Number of threads that decode and preprocess batches.
const LOADING_THREADS: usize = 2;

/// How the training thread ended.
#[derive(Debug, PartialEq, Eq)]
pub enum TrainerExit {
    /// The run is complete; the SHA-256 of this worker's parameters.
    Finished(String),
    /// The session closed the command channel.
    Closed,
    /// This worker cannot continue, for this reason.
    Failed(String),
}

/// The state of the training thread: models, data, and the collective of the current generation.
pub struct Trainer {
    run: RunFile,
    /// The run's id.
    run_id: String,
    device: Device,
    /// The address at which the other ranks connect to this one.
    host: IpAddr,
    data: Arc<DataSet>,
    /// The scenes of the synthetic data set, if the images are from it.
    scenes: Option<synthetic_data::Scenes>,
    weight_sources: WeightSources,
    /// CIDEr-D with the document frequencies of the training captions, if a stage rewards it.
    cider: Option<CiderReward>,
    loader: DataLoader,
    training_batches: TrainingBatches,
    training_state: TrainingState,
    /// None between generations.
    collective: Option<Box<dyn Collective>>,
    /// The flags of the current generation.
    abandon: StopFlag,
    halt: StopFlag,
    /// When the last step ended, if the thread has only waited for a Train directive since.
    idle_since: Option<Instant>,
    /// The number of the last generation that this worker has released.
    released_generation: u64,
    progress: TrainingProgress,
    reports: ReportSender,
    checkpoints: Arc<Checkpoints>,
    checkpoint_saver: CheckpointSaver,
}

impl Trainer {
    /// Loads the data and builds the models of `run`, which has the id `run_id`, on `device`.
    ///
    /// # Errors
    /// Data, weights or checkpoints cannot be read, or do not fit the run file.
    pub fn new(
        run: RunFile,
        run_id: String,
        device: Device,
        host: IpAddr,
        progress: TrainingProgress,
        reports: ReportSender,
    ) -> anyhow::Result<Self> {
        let data = Arc::new(DataSet::load_for(&run)?);
        let scenes = run.data.scenes.as_deref().map(synthetic_data::Scenes::load).transpose()?;
        let checkpoints = Checkpoints::open(&run.checkpoint_location(), &Access::from_environment());
        let checkpoints = Arc::new(checkpoints.context("checkpoints")?);
        let captions = data.split(Split::Train).iter().flat_map(|item| &item.captions).map(String::as_str);
        let vocabulary = match checkpoint::saved_vocabulary(&run, &checkpoints)? {
            Some(vocabulary) => vocabulary,
            None => run_models::initial_vocabulary(&run, captions),
        };
        let weight_sources = WeightSources::open(&run, vocabulary)?;
        let training_state = TrainingState::new(&run, &weight_sources, device)?;
        run.check_positions(training_state.models.captioner.config().positions)?;
        let max_caption_bytes = run.decoding.max_length as usize * MAX_TOKEN_BYTES;
        let embedding_width = weight_sources.evaluation_embedding_width(&training_state.models);
        data.check_evaluation(embedding_width, max_caption_bytes)?;
        let feature_stores = feature_stores::open_stores(&run, &data, &weight_sources, &training_state.models)?;
        let skip_corrupt = run.data.skip_corrupt;
        let source = BatchSource {
            data: Arc::clone(&data),
            sizes: training_state.models.image_sizes(),
            feature_stores,
            skip_corrupt,
        };
        let cider = run.stages.iter().any(|stage| stage.objective.has_cider_reward()).then(|| {
            CiderReward::new(&data.split(Split::Train).iter().map(|item| item.captions.clone()).collect::<Vec<_>>())
        });
        let training_batches = TrainingBatches::new(Arc::clone(&data));
        let checkpoint_saver = CheckpointSaver::start(Arc::clone(&checkpoints), reports.clone());
        progress.set_phase(v1::Phase::Idle);
        Ok(Self {
            run,
            run_id,
            device,
            host,
            data,
            scenes,
            weight_sources,
            cider,
            loader: DataLoader::new(source, LOADING_THREADS),
            training_batches,
            training_state,
            collective: None,
            abandon: StopFlag::default(),
            halt: StopFlag::default(),
            idle_since: None,
            released_generation: 0,
            progress,
            reports,
            checkpoints,
            checkpoint_saver,
        })
    }

    /// The handle with which the session waits for saves before the process ends.
    #[must_use]
    pub fn pending_saves(&self) -> PendingSaves {
        self.checkpoint_saver.pending_saves().clone()
    }

    /// The description of the data and of the models' frozen parts, for the coordinator.
    #[must_use]
    pub fn data_set(&self) -> v1::DataSet {
        v1::DataSet {
            train_images: self.data.split(Split::Train).len() as u64,
            train_captions: self.data.train_caption_count(),
            skipped_images: self.data.skipped_images().len() as u64,
            training_fingerprint: self.data.training_sha256(),
            validation_images: self.data.split(Split::Validation).len() as u64,
            validation_fingerprint: self.data.validation_sha256(),
            models_fingerprint: self.weight_sources.fingerprint(),
        }
    }

    /// Executes commands until the run is complete, the session closes the channel, or this worker
    /// cannot continue.
    pub fn run(mut self, commands: &Receiver<TrainerCommand>) -> TrainerExit {
        while let Ok(command) = commands.recv() {
            let (directive, flags) = match command {
                TrainerCommand::Execute { directive, flags } => (directive, flags),
                TrainerCommand::ApplySettings(run) => {
                    self.training_state.configure_optimizer(&run);
                    self.run = *run;
                    continue;
                }
            };
            let (generation, kind) = directive.into_parts();
            // Directives that were in the channel when this thread released their generation are
            // obsolete.
            if generation <= self.released_generation && !matches!(kind, DirectiveKind::Abandon(_)) {
                continue;
            }
            if let DirectiveKind::Rendezvous(_) = &kind {
                (self.abandon, self.halt) = (flags.abandon, flags.halt);
            }
            if !matches!(kind, DirectiveKind::Train(_)) {
                self.idle_since = None;
            }
            match self.execute(generation, kind) {
                Ok(false) => {}
                Ok(true) => return TrainerExit::Finished(self.training_state.parameters_sha256()),
                Err(DirectiveError::Collective(CollectiveError::Abandoned)) => self.release_generation(generation),
                Err(DirectiveError::Halted) => {
                    self.release_generation(generation);
                    self.report_idle(generation);
                }
                Err(DirectiveError::Collective(CollectiveError::Failed(reason))) => {
                    self.fail_generation(v1::Failed { generation, reason, ..Default::default() });
                }
                Err(DirectiveError::UnreachablePeers(unreachable_workers)) => {
                    let reason = format!("cannot reach the workers {unreachable_workers:?}");
                    self.fail_generation(v1::Failed { generation, reason, unreachable_workers, ..Default::default() });
                }
                Err(DirectiveError::UnusableCheckpoint { checkpoint: damaged_checkpoint, reason }) => {
                    self.fail_generation(v1::Failed { generation, reason, damaged_checkpoint, ..Default::default() });
                }
                Err(DirectiveError::Fatal(reason)) => {
                    self.release_generation(generation);
                    self.send_report(Message::Failed(v1::Failed {
                        generation,
                        reason: reason.clone(),
                        fatal: true,
                        ..Default::default()
                    }));
                    return TrainerExit::Failed(reason);
                }
            }
            self.progress.set_phase(v1::Phase::Idle);
        }
        TrainerExit::Closed
    }

    /// Executes one directive. Returns true when the run is complete.
    fn execute(&mut self, generation: u64, kind: DirectiveKind) -> Result<bool, DirectiveError> {
        match kind {
            DirectiveKind::Rendezvous(rendezvous) => self.rendezvous(generation, &rendezvous)?,
            DirectiveKind::Train(directive) => self.train(generation, &directive)?,
            DirectiveKind::Evaluate(directive) => {
                self.progress.set_phase(v1::Phase::Evaluate);
                self.evaluate(generation, &directive)?;
                host_memory::trim();
            }
            DirectiveKind::Checkpoint(v1::Checkpoint { checkpoint, name, journal }) => {
                self.progress.set_phase(v1::Phase::Checkpoint);
                let is_writer = self.collective()?.rank() == 0;
                let origin = is_writer.then(|| self.checkpoint_origin(generation, journal.unwrap_or_default()));
                let snapshot = Snapshot::take(&self.training_state, &self.run, &self.weight_sources, origin)?;
                self.checkpoint_saver.save(SaveRequest { generation, checkpoint, name, snapshot })?;
            }
            DirectiveKind::Advance(v1::Advance { stage }) => {
                self.training_state.enter_stage(&self.run, stage as usize);
                self.record_position(generation);
                self.send_report(Message::Advanced(v1::Advanced { generation, stage }));
            }
            DirectiveKind::Abandon(_) => {
                self.release_generation(generation);
                self.report_idle(generation);
            }
            DirectiveKind::Finish(_) => {
                // The coordinator does not read reports after Finished.
                self.checkpoint_saver.pending_saves().wait();
                self.send_report(Message::Finished(v1::Finished {}));
                return Ok(true);
            }
            // The session handles these.
            DirectiveKind::Leave(_) | DirectiveKind::Halt(_) => {}
        }
        Ok(false)
    }

    /// When and by which run a checkpoint of the present training state is saved.
    fn checkpoint_origin(
        &self,
        generation: u64,
        v1::JournalHead { sequence, hash }: v1::JournalHead,
    ) -> CheckpointOrigin {
        let stage = self.training_state.position.unwrap_or_default().stage;
        let v1::SequenceStart { step, epoch } = self.training_batches.sequence_start(stage);
        CheckpointOrigin {
            run_id: self.run_id.clone(),
            generation,
            journal: JournalHead { record_number: sequence, hash },
            sequence: SampleSequence { step, epoch },
        }
    }

    /// Forms a generation: connects to the other ranks, and synchronizes the training state.
    fn rendezvous(&mut self, generation: u64, directive: &v1::Rendezvous) -> Result<(), DirectiveError> {
        self.progress.set_phase(v1::Phase::Rendezvous);
        let (rank, world_size) = (directive.rank as usize, directive.world_size as usize);
        // `protocol` guarantees that a Rendezvous has a position.
        let position = directive.position.unwrap_or_default();
        self.training_batches.set_sequence_start(position.stage, directive.sequence_start.unwrap_or_default());
        self.collective = None;
        let unreachable = reachability::unreachable_peers(&directive.peers);
        if !unreachable.is_empty() {
            return Err(DirectiveError::UnreachablePeers(unreachable));
        }
        let parameters = RendezvousParameters {
            tcp_store_address: &directive.store_address,
            generation,
            term: directive.term,
            rank,
            world_size,
            timeout: RENDEZVOUS_TIMEOUT,
            abandon: self.abandon.clone(),
        };
        let collective = parameters.connect(self.device, self.host)?;
        let source_rank = match (directive.source_rank, directive.checkpoint.as_str()) {
            (Some(source_rank), _) => source_rank as usize,
            // The initial state, which all ranks compute from the seed.
            (None, "") => {
                if !self.training_state.is_initial {
                    self.training_state = TrainingState::new(&self.run, &self.weight_sources, self.device)?;
                }
                0
            }
            // A checkpoint, which rank 0 loads.
            (None, _) => {
                if rank == 0 {
                    checkpoint::load_checkpoint(
                        &mut self.training_state,
                        &self.run,
                        &self.weight_sources,
                        &self.checkpoints,
                        directive,
                    )?;
                }
                0
            }
        };
        if let Err(error) = self.training_state.synchronize(&self.run, position, source_rank, collective.as_ref()) {
            if self.training_state.position.is_none() {
                // The failed broadcast may still write to the tensors of the old training state.
                self.training_state = TrainingState::new(&self.run, &self.weight_sources, self.device)?;
            }
            return Err(error.into());
        }
        self.collective = Some(collective);
        self.record_position(generation);
        tracing::info!(generation, rank, world_size, stage = position.stage, step = position.step, "generation formed");
        self.send_report(Message::Ready(v1::Ready { generation, position: self.training_state.position }));
        Ok(())
    }

    /// Executes the steps of a Train directive.
    fn train(&mut self, generation: u64, directive: &v1::Train) -> Result<(), DirectiveError> {
        let position = self.training_state.position.unwrap_or_default();
        if directive.stage != position.stage || directive.first_step != position.step {
            let reason = format!("the directive {directive:?} does not start at the worker's position {position:?}");
            return Err(CollectiveError::Failed(reason).into());
        }
        for _ in 0..directive.steps {
            let is_halt_requested = self.train_step(generation, directive)?;
            if is_halt_requested {
                return Err(DirectiveError::Halted);
            }
        }
        Ok(())
    }

    /// Fails if the generation was abandoned. Called during long operations, because the
    /// coordinator evicts a member that does not release its generation.
    fn check_abandoned(&self) -> Result<(), DirectiveError> {
        if self.abandon.is_raised() { Err(CollectiveError::Abandoned.into()) } else { Ok(()) }
    }

    fn collective(&self) -> Result<&dyn Collective, DirectiveError> {
        let missing = || CollectiveError::Failed("the directive needs a generation, but there is none".into()).into();
        self.collective.as_deref().ok_or_else(missing)
    }

    /// Releases the generation, and reports that it has failed on this worker.
    fn fail_generation(&mut self, failed: v1::Failed) {
        let generation = failed.generation;
        self.release_generation(generation);
        self.send_report(Message::Failed(failed));
        self.report_idle(generation);
    }

    /// Reports that this worker has released a generation. No more reports on the generation
    /// follow, except on a checkpoint that is being saved.
    fn report_idle(&self, generation: u64) {
        let (position, saving) = (self.training_state.position, self.checkpoint_saver.pending_saves().latest());
        self.send_report(Message::Idle(v1::Idle { generation, position, saving }));
    }

    fn release_generation(&mut self, generation: u64) {
        self.collective = None;
        self.released_generation = self.released_generation.max(generation);
        // The training state has no position if its synchronization was interrupted.
        self.progress.update(|heartbeat| heartbeat.position = self.training_state.position);
    }

    /// Records that the training state was last changed in `generation`, and publishes its position
    /// for heartbeats.
    fn record_position(&mut self, generation: u64) {
        if let Some(position) = &mut self.training_state.position {
            position.generation = generation;
        }
        self.progress.update(|heartbeat| heartbeat.position = self.training_state.position);
    }

    fn send_report(&self, message: Message) {
        // Fails if the session has ended. Then the command channel is closed, which ends the
        // thread.
        _ = self.reports.blocking_send(message);
    }

    fn generation_config(&self) -> GenerationConfig {
        GenerationConfig::new(&self.run.decoding, &self.weight_sources.captioner_vocabulary)
    }
}
