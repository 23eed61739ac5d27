//! A simulated worker: joins and follows directives, but only simulates computing.

use std::{convert::Infallible, pin::pin, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail, ensure};
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

use crate::{
    load::LoadTest,
    messages::{self, StepReports},
    recorder::Recorder,
};

/// Maximal number of messages in the outbox of a worker.
const MAX_QUEUED_MESSAGES: usize = 16;
/// Maximal number of received directives that a worker has not executed yet.
const MAX_QUEUED_DIRECTIVES: usize = 16;

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

    let (outbox, outgoing) = mpsc::channel(MAX_QUEUED_MESSAGES);
    let worker = Worker { cluster, number, outbox };
    let attach = v1::Attach {
        session_token: reservation.session_token,
        store_address: format!("{host}:29500"),
        data_set: Some(messages::data_set()),
        ..Default::default()
    };
    worker.send(Message::Attach(attach)).await;
    let directives = client.session(ReceiverStream::new(outgoing)).await?.into_inner();
    drop(join_permit);
    let (queue, queued) = mpsc::channel(MAX_QUEUED_DIRECTIVES);
    let heartbeat_interval = Duration::from_millis(reservation.heartbeat_interval_ms.max(10));
    let mut receive = pin!(worker.receive_directives(directives, queue));
    tokio::select! {
        result = &mut receive => {
            result?;
            bail!("the coordinator closed the session");
        }
        result = worker.execute_directives(queued) => result?,
        never = worker.send_heartbeats(heartbeat_interval) => match never {},
    }
    // Waits until the coordinator closes the stream, so that the last message is delivered.
    _ = receive.await;
    Ok(())
}

struct Worker<'a> {
    cluster: &'a Cluster,
    /// The number of this worker in the load test; not its worker id, which the coordinator
    /// chooses.
    number: u32,
    outbox: mpsc::Sender<v1::WorkerMessage>,
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
        // Fails if the stream is closed; the task that receives directives reports the reason.
        _ = self.outbox.send(message).await;
    }

    /// Reads directives until the coordinator closes the stream.
    async fn receive_directives(
        &self,
        mut directives: Streaming<v1::Directive>,
        queue: mpsc::Sender<v1::Directive>,
    ) -> Result<()> {
        let recorder = &self.cluster.recorder;
        while let Some(directive) = directives.message().await? {
            if self.is_measured() {
                recorder.record_received(&directive);
            }
            match &directive.directive {
                Some(DirectiveKind::Rendezvous(_)) => recorder.record_rendezvous(),
                Some(DirectiveKind::Train(train)) => recorder.record_train(train),
                _ => {}
            }
            // Fails if the worker has finished or failed.
            _ = queue.send(directive).await;
        }
        Ok(())
    }

    /// Executes directives up to the end of the run.
    async fn execute_directives(&self, mut queued: mpsc::Receiver<v1::Directive>) -> Result<()> {
        let mut position = v1::Position::default();
        while let Some(v1::Directive { generation, directive }) = queued.recv().await {
            match directive {
                Some(DirectiveKind::Rendezvous(rendezvous)) => {
                    position = rendezvous.position.context("a rendezvous without a position")?;
                    self.send(Message::Ready(v1::Ready { generation, position: Some(position) })).await;
                }
                Some(DirectiveKind::Train(train)) => {
                    let expected = (position.stage, position.step);
                    ensure!((train.stage, train.first_step) == expected, "received {train:?} at {position:?}");
                    for _ in 0..train.steps {
                        self.simulate_step(&mut position).await;
                    }
                }
                Some(DirectiveKind::Evaluate(v1::Evaluate { evaluation, ranges })) => {
                    for range in ranges {
                        let (items, range) = (messages::evaluation_items(range), Some(range));
                        let more = false;
                        let items = v1::EvaluationItems { generation, evaluation, range, items, more };
                        self.send(Message::EvaluationItems(items)).await;
                    }
                }
                Some(DirectiveKind::Checkpoint(v1::Checkpoint { checkpoint, .. })) => {
                    let parameters_sha256 = "0".repeat(64);
                    let done = v1::CheckpointDone { generation, checkpoint, parameters_sha256 };
                    self.send(Message::CheckpointDone(done)).await;
                }
                Some(DirectiveKind::Finish(_)) => {
                    self.send(Message::Finished(v1::Finished {})).await;
                    return Ok(());
                }
                other => bail!("received an unexpected directive: {other:?}"),
            }
        }
        bail!("the coordinator closed the session")
    }

    async fn simulate_step(&self, position: &mut v1::Position) {
        let Cluster { load, all_reduce, step_reports, recorder, .. } = self.cluster;
        if !load.step_duration.is_zero() {
            time::sleep(load.step_duration).await;
        }
        all_reduce.wait().await;
        position.step += 1;
        recorder.record_report(position.step);
        let report = step_reports.step_done(self.number, *position, load.step_duration.as_secs_f64());
        self.send(Message::StepDone(report)).await;
    }

    /// Sends heartbeats until it is cancelled.
    async fn send_heartbeats(&self, interval: Duration) -> Infallible {
        let mut interval = time::interval(interval);
        loop {
            interval.tick().await;
            self.send(Message::Heartbeat(v1::Heartbeat::default())).await;
            self.cluster.recorder.record_heartbeat();
        }
    }
}
