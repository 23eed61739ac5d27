//! A light worker: joins, and does what it is told, but only pretends to compute.

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

use super::{
    Load,
    account::Account,
    script::{self, Script},
};

/// Messages that may wait for the network before the worker does.
const WAITING_MESSAGES: usize = 16;
/// Directives that may wait for the worker.
const WAITING_DIRECTIVES: usize = 16;

/// Workers that join at once; the coordinator limits how many of one address have yet to attach.
pub const MAX_CONCURRENT_JOINS: usize = 16;
/// Pause before a worker asks again that was told to.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// What all workers share.
pub struct Cluster {
    /// The load that they are.
    pub load: Load,
    /// The coordinator.
    pub endpoint: Endpoint,
    /// Connections to it.
    pub channels: Vec<OnceCell<Channel>>,
    /// Permits to join, held until the session is open.
    pub joining: Semaphore,
    /// Where all wait for each other at the end of a step.
    pub all_reduce: Barrier,
    /// What they say.
    pub script: Script,
    /// What they see.
    pub account: Arc<Account>,
}

/// Takes part in the run until it is complete.
///
/// # Errors
/// The coordinator refuses the worker, or does not lead it to the end of the run.
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
    // Until the coordinator closes or cuts the stream, so that the last message is not lost.
    _ = listen.await;
    Ok(())
}

struct Worker<'a> {
    cluster: &'a Cluster,
    number: u32,
    outgoing: mpsc::Sender<v1::WorkerMessage>,
}

impl Worker<'_> {
    /// Whether one worker's messages are counted: as many bytes are sent by and to each.
    fn is_counted(&self) -> bool {
        self.number == 0
    }

    async fn say(&self, message: Message) {
        // Captions are few workers' business.
        let is_counted = self.is_counted() && !matches!(message, Message::EvaluationItems(_));
        let message = v1::WorkerMessage { message: Some(message) };
        if is_counted {
            self.cluster.account.sent(&message);
        }
        // The stream is closed when this fails; whoever listens to it is told why.
        _ = self.outgoing.send(message).await;
    }

    /// Takes in directives until the coordinator closes the stream.
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
            // It has finished or failed when this fails.
            _ = orders.send(directive).await;
        }
        Ok(())
    }

    /// Does what it is told, up to the end of the run.
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
