//! The training thread: does the work that [`worker_protocol::Training`] derives from the
//! coordinator's directives, and sends its reports.
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
//! | `commands` | the session's commands for the thread, the thread's reports and progress |
//! | `directive_error` | why a piece of work was not completed |
//! | `step` | a training step: losses, all-reduce, update |
//! | `completed_step` | the result of a step, and its report |
//! | `step_error` | why a step was not completed |
//! | `batches` | the samples of this rank's share of a step, and prefetching |
//! | `evaluation` | the Evaluate directive |
//! | `training_state` | parameters and optimizer moments, and their synchronization between ranks |
//! | `snapshot` | a copy of the training state, which is written while training continues |
//! | `checkpoint_saver` | the thread that writes snapshots as checkpoints |
//! | `checkpoint` | loads checkpoints |
//! | `reachability` | whether the peers that a Rendezvous lists can be reached |

mod batches;
mod checkpoint;
mod checkpoint_saver;
mod commands;
mod completed_step;
mod directive_error;
mod evaluation;
mod reachability;
mod snapshot;
mod step;
mod step_error;
mod training;
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
use proto::v1::{self, worker_message::Message};
use run_assets::{RunAssets, WeightSources};
use tch::Device;
use worker_protocol::{GenerationFailure, Response, Training, TrainingEnd, Work};

use crate::captioner::GenerationConfig;
use crate::collective::{Collective, CollectiveError, RendezvousParameters};
use crate::data::{BatchSource, DataLoader, LOADING_THREADS};
use crate::host_memory;
pub use batches::TrainingBatches;
pub use checkpoint::checkpoint_metadata;
pub use checkpoint_saver::PendingSaves;
use checkpoint_saver::{CheckpointSaver, SaveRequest};
pub use commands::{ReportSender, TrainerCommand, TrainingProgress};
pub use completed_step::{CompletedStep, LossTotals};
use directive_error::DirectiveError;
use snapshot::{CheckpointOrigin, Snapshot};
pub use step::TrainingStep;
pub use step_error::StepError;
use training_state::Content;
pub use training_state::TrainingState;

/// How long a rank waits for the other ranks in a rendezvous.
const RENDEZVOUS_TIMEOUT: Duration = Duration::from_secs(60);

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
    /// Which work comes next, and what is reported.
    protocol: Training,
    /// When the last step ended, if the thread has only waited for a Train directive since.
    idle_since: Option<Instant>,
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
        let checkpoints = Checkpoints::open(&run.checkpoint_location(), &Access::from_environment());
        let checkpoints = Arc::new(checkpoints.context("checkpoints")?);
        let RunAssets { data, scenes, weights: weight_sources, feature_stores } =
            RunAssets::for_training(&run, &checkpoints)?;
        let training_state = TrainingState::new(&run, &weight_sources, device)?;
        let (sizes, skip_corrupt) = (training_state.models.image_sizes(), run.data.skip_corrupt);
        let source = BatchSource { data: Arc::clone(&data), sizes, feature_stores, skip_corrupt };
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
            protocol: Training::default(),
            idle_since: None,
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
            match command {
                TrainerCommand::Execute(command) => {
                    let response = self.protocol.begin(*command);
                    self.follow(response);
                }
                TrainerCommand::ApplySettings(run) => {
                    self.training_state.configure_optimizer(&run);
                    self.run = *run;
                }
            }
            match self.protocol.end() {
                Some(TrainingEnd::Finished) => {
                    return TrainerExit::Finished(self.training_state.parameters_sha256());
                }
                Some(TrainingEnd::Failed(reason)) => return TrainerExit::Failed(reason.clone()),
                None => self.progress.set_phase(v1::Phase::Idle),
            }
        }
        TrainerExit::Closed
    }

    /// Sends the reports and does the work of a response, and of those to it, until there is no
    /// more work.
    fn follow(&mut self, mut response: Response) {
        loop {
            self.send_reports(response.reports);
            let Some(work) = response.work else { return };
            response = self.perform(work).unwrap_or_else(|error| self.response_to_error(error));
        }
    }

    /// Does a piece of work.
    fn perform(&mut self, work: Work) -> Result<Response, DirectiveError> {
        if !matches!(work, Work::Step(_)) {
            self.idle_since = None;
        }
        match work {
            Work::Rendezvous(directive) => {
                self.progress.set_phase(v1::Phase::Rendezvous);
                self.rendezvous(&directive)?;
                Ok(self.protocol.formed())
            }
            Work::Step(directive) => {
                let (report, is_halt_requested) = self.train_step(&directive)?;
                Ok(self.protocol.step_applied(report, is_halt_requested))
            }
            Work::Caption(directive) => {
                self.progress.set_phase(v1::Phase::Evaluate);
                let response = self.evaluate(&directive);
                host_memory::trim();
                response
            }
            Work::CopyState(directive) => {
                self.progress.set_phase(v1::Phase::Checkpoint);
                self.save(directive)?;
                Ok(self.protocol.state_copied())
            }
            Work::EnterStage(stage) => {
                self.training_state.enter_stage(&self.run, stage as usize);
                Ok(self.protocol.stage_entered())
            }
            Work::Release => {
                self.collective = None;
                Ok(self.protocol.released(self.checkpoint_saver.pending_saves().latest()))
            }
            Work::AwaitSaves => {
                // The coordinator does not read reports after Finished.
                self.checkpoint_saver.pending_saves().wait();
                Ok(self.protocol.saves_completed())
            }
        }
    }

    fn response_to_error(&mut self, error: DirectiveError) -> Response {
        let failure = match error {
            DirectiveError::Collective(CollectiveError::Abandoned) => return self.protocol.abandoned(),
            DirectiveError::Fatal(reason) => return self.protocol.cannot_continue(reason),
            DirectiveError::Collective(CollectiveError::Failed(reason)) => {
                GenerationFailure { reason, ..Default::default() }
            }
            DirectiveError::UnreachablePeers(unreachable_workers) => GenerationFailure {
                reason: format!("cannot reach the workers {unreachable_workers:?}"),
                unreachable_workers,
                ..Default::default()
            },
            DirectiveError::UnusableCheckpoint { checkpoint: damaged_checkpoint, reason } => {
                GenerationFailure { reason, damaged_checkpoint, ..Default::default() }
            }
        };
        self.protocol.failed(failure)
    }

    /// Copies the training state, and passes the copy to the saver.
    fn save(&self, v1::Checkpoint { checkpoint, name, journal }: v1::Checkpoint) -> Result<(), DirectiveError> {
        let is_writer = self.collective()?.rank() == 0;
        let origin = is_writer.then(|| self.checkpoint_origin(journal.unwrap_or_default()));
        let snapshot = Snapshot::take(&self.training_state, &self.run, &self.weight_sources, origin)?;
        let generation = self.protocol.generation();
        Ok(self.checkpoint_saver.save(SaveRequest { generation, checkpoint, name, snapshot })?)
    }

    /// When and by which run a checkpoint of the present training state is saved.
    fn checkpoint_origin(&self, v1::JournalHead { sequence, hash }: v1::JournalHead) -> CheckpointOrigin {
        let position = self.position();
        let v1::SequenceStart { step, epoch } = self.training_batches.sequence_start(position.stage);
        CheckpointOrigin {
            run_id: self.run_id.clone(),
            generation: self.protocol.generation(),
            position,
            journal: JournalHead { record_number: sequence, hash },
            sequence: SampleSequence { step, epoch },
        }
    }

    /// Forms a generation: connects to the other ranks, and synchronizes the training state.
    fn rendezvous(&mut self, directive: &v1::Rendezvous) -> Result<(), DirectiveError> {
        let (rank, world_size) = (directive.rank as usize, directive.world_size as usize);
        // The checks of directives guarantee that a Rendezvous has a position.
        let position = directive.position.unwrap_or_default();
        self.training_batches.set_sequence_start(position.stage, directive.sequence_start.unwrap_or_default());
        self.collective = None;
        let unreachable = reachability::unreachable_peers(&directive.peers);
        if !unreachable.is_empty() {
            return Err(DirectiveError::UnreachablePeers(unreachable));
        }
        let generation = self.protocol.generation();
        let parameters = RendezvousParameters {
            tcp_store_address: &directive.store_address,
            generation,
            term: directive.term,
            rank,
            world_size,
            timeout: RENDEZVOUS_TIMEOUT,
            abandon: self.protocol.flags().abandon.clone(),
        };
        let collective = parameters.connect(self.device, self.host)?;
        let source_rank = self.prepare_state(directive)?;
        let (stage, has_state) = (position.stage as usize, self.protocol.position() == Some(position));
        let synchronized =
            self.training_state.synchronize(&self.run, stage, has_state, source_rank, collective.as_ref());
        if let Err(error) = synchronized {
            if self.training_state.content == Content::Incomplete {
                // The failed broadcast may still write to the tensors of the old training state.
                self.build_initial_state()?;
            }
            return Err(error.into());
        }
        self.collective = Some(collective);
        tracing::info!(generation, rank, world_size, stage = position.stage, step = position.step, "generation formed");
        Ok(())
    }

    /// Prepares the training state that the other ranks copy, if this rank provides it. Returns the
    /// rank that does.
    fn prepare_state(&mut self, directive: &v1::Rendezvous) -> Result<usize, DirectiveError> {
        match (directive.source_rank, directive.checkpoint.as_str()) {
            (Some(source_rank), _) => return Ok(source_rank as usize),
            // The initial state, which all ranks compute from the seed.
            (None, "") if self.training_state.content != Content::Initial => self.build_initial_state()?,
            // A checkpoint, which rank 0 loads.
            (None, checkpoint) if !checkpoint.is_empty() && directive.rank == 0 => {
                let Self { training_state, run, weight_sources, checkpoints, .. } = self;
                checkpoint::load_checkpoint(training_state, run, weight_sources, checkpoints, directive)?;
                let position = directive.position.unwrap_or_default();
                self.protocol.replace_state(Some(v1::Position { generation: 0, ..position }));
            }
            (None, _) => {}
        }
        Ok(0)
    }

    /// Replaces the training state with the initial one.
    fn build_initial_state(&mut self) -> Result<(), DirectiveError> {
        self.training_state = TrainingState::new(&self.run, &self.weight_sources, self.device)?;
        self.protocol.replace_state(None);
        Ok(())
    }

    /// The position of the training state; the beginning of the run if it has none.
    fn position(&self) -> v1::Position {
        self.protocol.position().unwrap_or_default()
    }

    fn collective(&self) -> Result<&dyn Collective, DirectiveError> {
        self.collective.as_deref().ok_or_else(DirectiveError::no_generation)
    }

    /// Publishes the position for heartbeats, and sends the reports.
    fn send_reports(&self, reports: Vec<Message>) {
        self.progress.update(|heartbeat| heartbeat.position = self.protocol.position());
        for report in reports {
            // Fails if the session has ended. Then the command channel is closed, which ends the
            // thread.
            _ = self.reports.blocking_send(report);
        }
    }

    fn generation_config(&self) -> GenerationConfig {
        GenerationConfig::new(&self.run.decoding, &self.weight_sources.captioner_vocabulary)
    }
}
