//! A light worker: joins and follows directives, but only simulates computing.

use std::{convert::Infallible, pin::pin, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use proto::{
    PROTOCOL_VERSION,
    v1::{self, coordinator_client::CoordinatorClient, directive::Directive as Kind, worker_message::Message},
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
    account::Recorder,
    load::Load,
    script::{self, Script},
};

/// Maximal number of messages that wait for the network.
const WAITING_MESSAGES: usize = 16;
/// Maximal number of directives that wait for the worker.
const WAITING_DIRECTIVES: usize = 16;

/// Maximal number of concurrent joins: the coordinator limits the reservations of one address.
pub const MAX_CONCURRENT_JOINS: usize = 16;
/// Pause before a worker retries a join.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// The state that all workers share.
pub struct Cluster {
    /// The parameters of the load test.
    pub load: Load,
    /// The endpoint of the coordinator.
    pub endpoint: Endpoint,
    /// The connections to it.
    pub channels: Vec<OnceCell<Channel>>,
    /// Permits to join, each held until the session is open.
    pub joining: Semaphore,
    /// The simulated all-reduce at the end of a step.
    pub all_reduce: Barrier,
    /// The prepared messages.
    pub script: Script,
    /// The measurements.
    pub account: Arc<Recorder>,
}

/// Takes part in the run until it is complete.
///
/// # Errors
/// The coordinator refuses the worker, or ends the session before the run is complete.
pub async fn work(cluster: &Cluster, number: u32) -> Result<()> {
    let channel = &cluster.channels[number as usize % cluster.channels.len()];
    let channel = channel.get_or_try_init(|| cluster.endpoint.connect()).await.context("cannot connect")?;
    let mut client = CoordinatorClient::new(channel.clone());
    let host = format!("10.{}.{}.{}", number >> 16, number >> 8 & 255, number & 255);
    let join = v1::JoinRequest {
        protocol_version: PROTOCOL_VERSION,
        rank: None,
        host: host.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        device: "none".to_owned(),
        ..Default::default()
    };
    let joining = cluster.joining.acquire().await?;
    let place = loop {
        match client.join(join.clone()).await {
            Err(status) if status.code() == Code::Aborted => time::sleep(RETRY_PAUSE).await,
            answer => break answer?.into_inner(),
        }
    };
    cluster.account.joined();

    let (outgoing, messages) = mpsc::channel(WAITING_MESSAGES);
    let worker = Worker { cluster, number, outgoing };
    let attach = v1::Attach {
        session_token: place.session_token,
        store_address: format!("{host}:29500"),
        data_set: Some(script::data_set()),
        ..Default::default()
    };
    worker.say(Message::Attach(attach)).await;
    let directives = client.session(ReceiverStream::new(messages)).await?.into_inner();
    drop(joining);
    let (orders, ordered) = mpsc::channel(WAITING_DIRECTIVES);
    let heartbeat = Duration::from_millis(place.heartbeat_interval_ms.max(10));
    let mut listen = pin!(worker.listen(directives, orders));
    tokio::select! {
        ended = &mut listen => {
            ended?;
            bail!("the coordinator closed the session");
        }
        finished = worker.execute(ordered) => finished?,
        never = worker.beat(heartbeat) => match never {},
    }
    // Waits until the coordinator closes the stream, so that the last message is delivered.
    _ = listen.await;
    Ok(())
}

struct Worker<'a> {
    cluster: &'a Cluster,
    number: u32,
    outgoing: mpsc::Sender<v1::WorkerMessage>,
}

impl Worker<'_> {
    /// Whether this worker's messages are measured: all workers send and receive equally many
    /// bytes.
    fn is_counted(&self) -> bool {
        self.number == 0
    }

    async fn say(&self, message: Message) {
        // Only some workers write captions.
        let is_counted = self.is_counted() && !matches!(message, Message::EvaluationItems(_));
        let message = v1::WorkerMessage { message: Some(message) };
        if is_counted {
            self.cluster.account.sent(&message);
        }
        // Fails if the stream is closed; the task that reads it gets the reason.
        _ = self.outgoing.send(message).await;
    }

    /// Reads directives until the coordinator closes the stream.
    async fn listen(
        &self,
        mut directives: Streaming<v1::Directive>,
        orders: mpsc::Sender<v1::Directive>,
    ) -> Result<()> {
        let account = &self.cluster.account;
        while let Some(directive) = directives.message().await? {
            if self.is_counted() {
                account.received(&directive);
            }
            match &directive.directive {
                Some(Kind::Rendezvous(_)) => account.met(),
                Some(Kind::Train(train)) => account.granted(train),
                _ => {}
            }
            // Fails if the worker has finished or failed.
            _ = orders.send(directive).await;
        }
        Ok(())
    }

    /// Executes directives up to the end of the run.
    async fn execute(&self, mut orders: mpsc::Receiver<v1::Directive>) -> Result<()> {
        let mut position = v1::Position::default();
        while let Some(v1::Directive { generation, directive }) = orders.recv().await {
            match directive {
                Some(Kind::Rendezvous(meet)) => {
                    position = meet.position.context("a rendezvous without a position")?;
                    self.say(Message::Ready(v1::Ready { generation, position: Some(position) })).await;
                }
                Some(Kind::Train(train)) => {
                    let expected = (position.stage, position.step);
                    ensure!((train.stage, train.first_step) == expected, "told to {train:?} at {position:?}");
                    for _ in 0..train.steps {
                        self.step(&mut position).await;
                    }
                }
                Some(Kind::Evaluate(v1::Evaluate { evaluation, ranges })) => {
                    for range in ranges {
                        let (items, range) = (script::captions(range), Some(range));
                        let more = false;
                        let items = v1::EvaluationItems { generation, evaluation, range, items, more };
                        self.say(Message::EvaluationItems(items)).await;
                    }
                }
                Some(Kind::Checkpoint(v1::Checkpoint { checkpoint, .. })) => {
                    let parameters_sha256 = "0".repeat(64);
                    let done = v1::CheckpointDone { generation, checkpoint, parameters_sha256 };
                    self.say(Message::CheckpointDone(done)).await;
                }
                Some(Kind::Finish(_)) => {
                    self.say(Message::Finished(v1::Finished {})).await;
                    return Ok(());
                }
                other => bail!("told what does not happen in a run without trouble: {other:?}"),
            }
        }
        bail!("the coordinator closed the session")
    }

    async fn step(&self, position: &mut v1::Position) {
        let Cluster { load, all_reduce, script, account, .. } = self.cluster;
        if !load.step.is_zero() {
            time::sleep(load.step).await;
        }
        all_reduce.wait().await;
        position.step += 1;
        account.reported(position.step);
        let done = script.step_done(self.number, *position, load.step.as_secs_f64());
        self.say(Message::StepDone(done)).await;
    }

    /// Sends heartbeats.
    async fn beat(&self, interval: Duration) -> Infallible {
        let mut interval = time::interval(interval);
        loop {
            interval.tick().await;
            self.say(Message::Heartbeat(v1::Heartbeat::default())).await;
            self.cluster.account.beat();
        }
    }
}
