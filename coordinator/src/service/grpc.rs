//! The gRPC services: each call becomes an input of the driver.

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use dico_engine::{Command, Event, SessionId, WorkerId};
use futures::Stream;
use proto::v1::{self, admin_server::Admin, coordinator_server::Coordinator, worker_message::Message};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{
    acceptor::Peer,
    driver_input::{DriverInput, SessionHandle},
    fair_limit::StreamLimit,
    readiness::Readiness,
    refusals::{RefusalReason, Refusals},
};
use crate::random_ids;

/// Maximal number of directives that wait for a worker to read them. Beyond it the worker is
/// disconnected.
const MAX_QUEUED_DIRECTIVES: usize = 1024;
/// Time limit for the first message of a session, Attach.
const ATTACH_TIMEOUT: Duration = Duration::from_secs(30);
/// Maximal number of sessions without Attach. Workers send Attach at once; the limit bounds the
/// memory that other clients can make the coordinator use.
const MAX_UNATTACHED_SESSIONS: usize = 1024;

/// Maximal number of open [`Admin::watch`] streams. The limit is low because clients need no token
/// to open one, and each stream polls the driver.
pub(super) const MAX_WATCH_STREAMS: usize = 64;
/// How long an update on a watch stream may wait for the client to read.
const WATCH_STALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Minimal interval between two updates on a watch stream.
const MIN_WATCH_INTERVAL: Duration = Duration::from_millis(50);

/// Time limit of a status request: the driver may be waiting for its disk.
const STATUS_TIMEOUT: Duration = Duration::from_secs(3);

/// The implementation of both services.
#[derive(Clone)]
pub struct Grpc {
    driver: mpsc::Sender<DriverInput>,
    refusals: Refusals,
    /// Whether the journal can be written. While it cannot, the driver may not answer, and the
    /// error of a status request has the reason.
    journal_readiness: watch::Receiver<Readiness>,
    /// The status when the driver stopped; `None` until then.
    status_at_stop: watch::Receiver<Option<v1::StatusResponse>>,
    last_session_id: Arc<AtomicU64>,
    /// Sessions that have not sent Attach.
    unattached: Arc<StreamLimit>,
    watch_streams: Arc<StreamLimit>,
}

impl Grpc {
    /// Services that pass calls to this driver.
    pub fn new(
        driver: mpsc::Sender<DriverInput>,
        refusals: Refusals,
        journal_readiness: watch::Receiver<Readiness>,
        status_at_stop: watch::Receiver<Option<v1::StatusResponse>>,
    ) -> Self {
        let unattached = Arc::new(StreamLimit::new(MAX_UNATTACHED_SESSIONS));
        let watch_streams = Arc::new(StreamLimit::new(MAX_WATCH_STREAMS));
        let last_session_id = Arc::default();
        Self { driver, refusals, journal_readiness, status_at_stop, last_session_id, unattached, watch_streams }
    }

    fn next_session_id(&self) -> SessionId {
        SessionId(self.last_session_id.fetch_add(1, Ordering::Relaxed) + 1)
    }

    /// The present status; after the driver has stopped, the status at that time.
    async fn current_status(&self) -> Result<v1::StatusResponse, Status> {
        match time::timeout(STATUS_TIMEOUT, self.send_request(|reply| DriverInput::Status { reply })).await {
            Ok(Ok(status)) => Ok(status),
            Ok(Err(shutting_down)) => self.status_at_stop.borrow().clone().ok_or(shutting_down),
            Err(_) => {
                let not_ready = self.journal_readiness.borrow().clone().err();
                let reason = not_ready.map_or_else(|| "it is busy".to_owned(), |not_ready| not_ready.to_string());
                Err(Status::unavailable(format!("the coordinator does not answer: {reason}")))
            }
        }
    }

    /// Sends a request to the driver and waits for its reply.
    async fn send_request<T>(&self, input: impl FnOnce(oneshot::Sender<T>) -> DriverInput) -> Result<T, Status> {
        let shutting_down = || Status::unavailable("the coordinator is shutting down");
        let (reply, answer) = oneshot::channel();
        self.driver.send(input(reply)).await.map_err(|_| shutting_down())?;
        answer.await.map_err(|_| shutting_down())
    }
}

/// The peer of a call.
fn peer_of<T>(request: &Request<T>) -> Result<Peer, Status> {
    request.extensions().get().copied().ok_or_else(|| Status::internal("the call has no peer address"))
}

/// The stream of directives to a worker.
type Directives = Pin<Box<dyn Stream<Item = Result<v1::Directive, Status>> + Send>>;

#[tonic::async_trait]
impl Coordinator for Grpc {
    type SessionStream = Directives;

    async fn join(&self, request: Request<v1::JoinRequest>) -> Result<Response<v1::JoinResponse>, Status> {
        let generated_join_key = random_ids::random_hex_id()
            .map_err(|error| Status::internal(format!("cannot generate a random join key: {error}")))?;
        let (address, join) = (peer_of(&request)?.client_address(), request.into_inner());
        let answer = self.send_request(|reply| DriverInput::Join { address, generated_join_key, join, reply }).await?;
        Ok(Response::new(answer?))
    }

    async fn session(&self, request: Request<Streaming<v1::WorkerMessage>>) -> Result<Response<Directives>, Status> {
        // The call is answered before its first message arrives, so that the worker gets the
        // response headers at once. An error in that message is reported on the stream.
        let (outbound, directives) = mpsc::channel(MAX_QUEUED_DIRECTIVES);
        let peer = peer_of(&request)?;
        let evicted = self.unattached.open(peer);
        let (driver, refusals, id) = (self.driver.clone(), self.refusals.clone(), self.next_session_id());
        let session = Session { driver, refusals, id, peer: peer.0, inbound: request.into_inner() };
        tokio::spawn(session.serve(outbound, evicted));
        Ok(Response::new(Box::pin(ReceiverStream::new(directives))))
    }
}

#[tonic::async_trait]
impl Admin for Grpc {
    type WatchStream = ReceiverStream<Result<v1::StatusResponse, Status>>;

    async fn status(&self, _: Request<v1::StatusRequest>) -> Result<Response<v1::StatusResponse>, Status> {
        self.current_status().await.map(Response::new)
    }

    async fn watch(&self, request: Request<v1::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let peer = peer_of(&request)?;
        let interval = Duration::from_millis(request.into_inner().interval_ms.into()).max(MIN_WATCH_INTERVAL);
        let limit_reached = || {
            Status::resource_exhausted(format!(
                "{MAX_WATCH_STREAMS} clients watch this run, which is the limit: stop one of them, or try again later"
            ))
        };
        let mut evicted = self.watch_streams.try_open(peer).ok_or_else(limit_reached)?;
        let (updates, stream) = mpsc::channel(1);
        let grpc = self.clone();
        tokio::spawn(async move {
            let mut status_at_stop = grpc.status_at_stop.clone();
            loop {
                let has_stopped = status_at_stop.borrow_and_update().is_some();
                // A client that does not read its stream is treated as disconnected.
                let sent = updates.send_timeout(grpc.current_status().await, WATCH_STALL_TIMEOUT).await;
                if sent.is_err() || has_stopped {
                    return;
                }
                tokio::select! {
                    () = time::sleep(interval) => {}
                    Ok(()) = status_at_stop.changed() => {}
                    () = updates.closed() => return,
                    _ = &mut evicted => {
                        // Fails if the client does not read its stream.
                        _ = updates.try_send(Err(limit_reached()));
                        return;
                    }
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn control(&self, request: Request<v1::ControlRequest>) -> Result<Response<v1::ControlResponse>, Status> {
        let request = request.into_inner();
        let command = match request.command() {
            v1::Command::Pause => Command::Pause,
            v1::Command::Resume => Command::Resume,
            v1::Command::Checkpoint => Command::Checkpoint,
            v1::Command::Evaluate => Command::Evaluate,
            v1::Command::Drain => Command::Drain(WorkerId(request.worker_id)),
            v1::Command::Stop => Command::Stop,
            v1::Command::Unspecified => {
                return Err(Status::invalid_argument("unknown command: the client may be newer than this coordinator"));
            }
        };
        let message = self.send_request(|reply| DriverInput::Control { command, reply }).await??;
        Ok(Response::new(v1::ControlResponse { message }))
    }
}

/// The task that reads the messages of a worker's session and passes them to the driver.
struct Session {
    driver: mpsc::Sender<DriverInput>,
    refusals: Refusals,
    id: SessionId,
    peer: SocketAddr,
    inbound: Streaming<v1::WorkerMessage>,
}

impl Session {
    /// Waits for Attach, then passes the worker's messages to the driver until the session ends.
    async fn serve(
        mut self,
        outbound: mpsc::Sender<Result<v1::Directive, Status>>,
        mut evicted: oneshot::Receiver<()>,
    ) {
        let first = tokio::select! {
            first = time::timeout(ATTACH_TIMEOUT, self.inbound.message()) => first,
            _ = &mut evicted => {
                let message = "too many sessions wait for their first message, Attach, and this was the oldest of its \
                               address: send Attach when the session opens";
                Ok(Err(Status::resource_exhausted(message)))
            }
        };
        let error = match first {
            Ok(Ok(Some(v1::WorkerMessage { message: Some(Message::Attach(attach)) }))) => {
                // The session no longer counts toward MAX_UNATTACHED_SESSIONS.
                drop(evicted);
                return self.forward_messages(outbound, attach).await;
            }
            Ok(Ok(None)) => return,
            Ok(Err(status)) => status,
            Ok(Ok(Some(_))) | Err(_) => Status::invalid_argument("the first message of a session must be Attach"),
        };
        if self.record_if_refusal(&error) {
            // Fails if the worker has disconnected.
            _ = outbound.send(Err(error)).await;
        }
    }

    async fn forward_messages(mut self, outbound: mpsc::Sender<Result<v1::Directive, Status>>, attach: v1::Attach) {
        let (session, peer) = (self.id, self.peer);
        let (close_on_drop, mut closed_by_driver) = oneshot::channel();
        // This task keeps a weak sender, so that the stream of directives ends when the driver
        // drops the handle.
        let handle = SessionHandle { peer, directives: outbound.clone(), _close_on_drop: close_on_drop };
        let outbound = outbound.downgrade();
        if self.driver.send(DriverInput::Attach { session, attach, handle }).await.is_err() {
            return;
        }
        loop {
            let message = tokio::select! {
                message = self.inbound.message() => message,
                _ = &mut closed_by_driver => return,
            };
            let event = match message {
                Ok(Some(v1::WorkerMessage { message: Some(message) })) => Event::Message { session, message },
                // A kind of message that this coordinator does not know: the worker is newer, but
                // has the same protocol version.
                Ok(Some(v1::WorkerMessage { message: None })) => continue,
                Ok(None) => Event::Closed { session },
                Err(status) => {
                    if let Some(outbound) = outbound.upgrade().filter(|_| self.record_if_refusal(&status)) {
                        // Fails if the worker does not read its stream.
                        _ = outbound.try_send(Err(status));
                    }
                    Event::Closed { session }
                }
            };
            let is_closed = matches!(event, Event::Closed { .. });
            if self.driver.send(DriverInput::Event(event)).await.is_err() || is_closed {
                return;
            }
        }
    }

    /// Logs and counts the error of a session as a refusal, if the error is about a message and not
    /// about the connection. Returns whether it is about a message.
    fn record_if_refusal(&self, status: &Status) -> bool {
        // tonic's errors about messages have no source, and its errors about connections have one.
        let is_refusal = std::error::Error::source(status).is_none();
        if is_refusal {
            self.refusals.record(self.peer, RefusalReason::from_session_status(status.code()), status.message());
        }
        is_refusal
    }
}
