//! A simulated worker: joins, and follows directives as every worker does (`worker-protocol`), but
//! only simulates computing.

use std::{convert::Infallible, pin::pin, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail};
use config::RunFile;
use proto::{
    PROTOCOL_VERSION,
    v1::{self, coordinator_client::CoordinatorClient, directive::Directive as DirectiveKind, worker_message::Message},
};
use tokio::{
    sync::{Barrier, OnceCell, Semaphore, mpsc},
    time,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Code, Streaming,
    transport::{Channel, Endpoint},
};
use worker_protocol::{Command, DirectiveEffect, ReportEffect, Session, Training, Work};

use crate::{
    load::LoadTest,
    messages::{self, StepReports},
    recorder::Recorder,
};

/// Maximal number of messages in the outbox of a worker.
const MAX_QUEUED_MESSAGES: usize = 16;

/// Maximal number of workers that are between `Join` and an open session. It is below the
/// coordinator's limit of 32 reservations of one IP address, beyond which workers have to retry.
pub const MAX_CONCURRENT_JOINS: usize = 16;
/// The delay before a worker retries a join.
const JOIN_RETRY_DELAY: Duration = Duration::from_millis(20);

/// What all simulated workers share.
pub struct Cluster {
    /// The parameters of the load test.
    pub load: LoadTest,
    /// The endpoint of the coordinator.
    pub endpoint: Endpoint,
    /// The connections to the coordinator.
    pub channels: Vec<OnceCell<Channel>>,
    /// Permits to join, each held until the session is open.
    pub join_permits: Semaphore,
    /// The simulated all-reduce at the end of a step.
    pub all_reduce: Barrier,
    /// The pool from which workers take the summaries of their step reports.
    pub step_reports: StepReports,
    /// The run's settings, from the first response to a join.
    pub run: OnceCell<RunFile>,
    /// The measurements.
    pub recorder: Arc<Recorder>,
}

/// Takes part in the run until it is complete.
///
/// # Errors
/// The coordinator refuses the worker, or ends the session before the run is complete.
pub async fn run(cluster: &Cluster, number: u32) -> Result<()> {
    let channel = &cluster.channels[number as usize % cluster.channels.len()];
    let channel = channel.get_or_try_init(|| cluster.endpoint.connect()).await.context("cannot connect")?;
    let mut client = CoordinatorClient::new(channel.clone());
    let host = format!("10.{}.{}.{}", number >> 16, number >> 8 & 255, number & 255);
    let join = v1::JoinRequest {
        protocol_version: PROTOCOL_VERSION,
        worker_id: None,
        host: host.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        device: "none".to_owned(),
        ..Default::default()
    };
    let join_permit = cluster.join_permits.acquire().await?;
    let reservation = loop {
        match client.join(join.clone()).await {
            // The coordinator asks the worker to retry.
            Err(status) if status.code() == Code::Aborted => time::sleep(JOIN_RETRY_DELAY).await,
            response => break response?.into_inner(),
        }
    };
    cluster.recorder.record_join();

    let run = cluster.run.get_or_try_init(async || RunFile::from_json(&reservation.run_file)).await;
    let run = run.context("the coordinator's run file")?.clone();
    let data_set = messages::data_set();
    let protocol = Session::new(run, reservation.run_id, data_set.validation_images);
    let (outbox, outgoing) = mpsc::channel(MAX_QUEUED_MESSAGES);
    let mut worker = Worker { cluster, number, outbox, protocol };
    let attach = worker.protocol.attach(reservation.session_token, format!("{host}:29500"), data_set);
    worker.send(Message::Attach(attach)).await;
    let directives = client.session(ReceiverStream::new(outgoing)).await?.into_inner();
    drop(join_permit);
    let heartbeat_interval = Duration::from_millis(reservation.heartbeat_interval_ms.max(10));
    worker.run_session(directives, heartbeat_interval).await
}

struct Worker<'a> {
    cluster: &'a Cluster,
    /// The number of this worker in the load test; not its worker id, which the coordinator
    /// chooses.
    number: u32,
    outbox: mpsc::Sender<v1::WorkerMessage>,
    protocol: Session,
}

impl Worker<'_> {
    /// Whether this worker's messages are measured. Apart from captions, all workers send and
    /// receive nearly the same number of bytes, so one is enough.
    fn is_measured(&self) -> bool {
        self.number == 0
    }

    async fn send(&self, message: Message) {
        // Captions are not measured: workers caption different numbers of images, some of them
        // none.
        let is_measured = self.is_measured() && !matches!(message, Message::EvaluationItems(_));
        let message = v1::WorkerMessage { message: Some(message) };
        if is_measured {
            self.cluster.recorder.record_sent(&message);
        }
        // Fails if the stream is closed; the directives' stream has the reason.
        _ = self.outbox.send(message).await;
    }

    /// Passes directives to the training task and its reports back, and sends heartbeats, until the
    /// run is complete.
    async fn run_session(
        mut self,
        mut directives: Streaming<v1::Directive>,
        heartbeat_interval: Duration,
    ) -> Result<()> {
        let (cluster, number) = (self.cluster, self.number);
        // Not bounded: the protocol limits the directives that a worker has not executed.
        let (commands, queued) = mpsc::unbounded_channel();
        let (report_sender, mut reports) = mpsc::channel(MAX_QUEUED_MESSAGES);
        let mut training = pin!(train(cluster, number, queued, report_sender));
        let mut heartbeat = time::interval(heartbeat_interval);
        loop {
            tokio::select! {
                directive = directives.message() => {
                    let directive = directive?.context("the coordinator closed the session")?;
                    self.record(&directive);
                    match self.protocol.on_directive(directive)? {
                        // Fails if the training task has ended.
                        DirectiveEffect::Execute(command) => _ = commands.send(command),
                        DirectiveEffect::None => {}
                        DirectiveEffect::Leave { reason, .. } => bail!("was evicted: {reason}"),
                    }
                }
                Some(report) = reports.recv() => match self.protocol.on_report(report) {
                    ReportEffect::Send(report) => self.send(report).await,
                    ReportEffect::SendLast(report) => {
                        self.send(report).await;
                        break;
                    }
                    ReportEffect::Discard | ReportEffect::Released => {}
                },
                result = &mut training => match result? {},
                _ = heartbeat.tick() => {
                    self.send(Message::Heartbeat(v1::Heartbeat::default())).await;
                    cluster.recorder.record_heartbeat();
                }
            }
        }
        // Waits until the coordinator closes the stream, so that the last message is delivered.
        drop(self.outbox);
        while let Ok(Some(_)) = directives.message().await {}
        Ok(())
    }

    /// Records the receipt of a directive.
    fn record(&self, directive: &v1::Directive) {
        let recorder = &self.cluster.recorder;
        if self.is_measured() {
            recorder.record_received(directive);
        }
        match &directive.directive {
            Some(DirectiveKind::Rendezvous(_)) => recorder.record_rendezvous(),
            Some(DirectiveKind::Train(train)) => recorder.record_train(train),
            _ => {}
        }
    }
}

/// Does the work of worker `number` without computing anything. Returns only with an error.
async fn train(
    cluster: &Cluster,
    number: u32,
    mut commands: mpsc::UnboundedReceiver<Command>,
    outbox: mpsc::Sender<Message>,
) -> Result<Infallible> {
    let mut protocol = Training::default();
    loop {
        let Some(command) = commands.recv().await else { return std::future::pending().await };
        let mut response = protocol.begin(command);
        loop {
            for report in response.reports {
                outbox.send(report).await?;
            }
            let Some(work) = response.work else { break };
            response = match work {
                Work::Rendezvous(_) => protocol.formed(),
                Work::Step(_) => {
                    let report = cluster.simulate_step(number, protocol.position().unwrap_or_default().step + 1).await;
                    let is_halt_requested = false;
                    protocol.step_applied(report, is_halt_requested)
                }
                Work::Caption(evaluate) => protocol.captioned(vec![messages::evaluation_items(evaluate.ranges[0])]),
                Work::CopyState(v1::Checkpoint { checkpoint, .. }) => {
                    let (generation, parameters_sha256) = (protocol.generation(), "0".repeat(64));
                    let done = v1::CheckpointDone { generation, checkpoint, parameters_sha256 };
                    outbox.send(Message::CheckpointDone(done)).await?;
                    protocol.state_copied()
                }
                Work::EnterStage(_) => protocol.stage_entered(),
                Work::Release => {
                    bail!("released generation {}: all workers have to stay to the end", protocol.generation())
                }
                Work::AwaitSaves => protocol.saves_completed(),
            };
        }
    }
}

impl Cluster {
    /// Waits for the duration of a step, and for all workers. Returns the report of step `step`
    /// without the position.
    async fn simulate_step(&self, number: u32, step: u64) -> v1::StepDone {
        let Self { load, all_reduce, step_reports, recorder, .. } = self;
        if !load.step_duration.is_zero() {
            time::sleep(load.step_duration).await;
        }
        all_reduce.wait().await;
        recorder.record_report(step);
        step_reports.step_done(number, step, load.step_duration.as_secs_f64())
    }
}
