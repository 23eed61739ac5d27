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

use futures::Stream;
use proto::v1::{self, admin_server::Admin, coordinator_server::Coordinator, worker_message::Message as WorkerSays};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming};

use super::{
    door::Peer,
    driver::{Input, Outbox},
    fair_limit::StreamLimit,
    http::Readiness,
    refusals::{Reason, Refusals},
};
use crate::{
    random,
    run::{Command, Event, Refusal, RefusalKind, SessionId},
};

/// Maximal number of directives that wait for a worker to read; beyond it the worker counts as
/// lost.
const WAITING_DIRECTIVES: usize = 1024;
/// How long a new stream may take until its first message, Attach.
const ATTACH_WITHIN: Duration = Duration::from_secs(30);
/// Maximal number of streams without Attach. Workers send it at once; the limit bounds the memory
/// that other clients can make the coordinator use.
const MAX_UNATTACHED: usize = 1024;

/// The read-only calls.
pub const STATUS_PATHS: [&str; 2] = ["/dico.v1.Admin/Status", "/dico.v1.Admin/Watch"];

/// Maximal number of open [`Admin::watch`] streams. They need no token, and each one polls the run.
pub(super) const MAX_WATCHES: usize = 64;
/// How long an answer on such a stream may wait for the client to read.
const WATCH_STALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Minimal interval between two answers on a stream.
const MIN_INTERVAL: Duration = Duration::from_millis(50);

/// How long a status request may wait while the coordinator waits for its disk.
const STATUS_WITHIN: Duration = Duration::from_secs(3);

/// The implementation of both services.
#[derive(Clone)]
pub struct Grpc {
    driver: mpsc::Sender<Input>,
    refusals: Refusals,
    /// The reason to report when the driver does not answer.
    readiness: watch::Receiver<Readiness>,
    /// The final status of the run.
    ended: watch::Receiver<Option<v1::StatusResponse>>,
    /// The last session id.
    last: Arc<AtomicU64>,
    /// Sessions without Attach.
    unattached: Arc<StreamLimit>,
    watches: Arc<StreamLimit>,
}

impl Grpc {
    /// Services for this driver.
    pub fn new(
        driver: mpsc::Sender<Input>,
        refusals: Refusals,
        readiness: watch::Receiver<Readiness>,
        ended: watch::Receiver<Option<v1::StatusResponse>>,
    ) -> Self {
        let unattached = Arc::new(StreamLimit::new(MAX_UNATTACHED));
        let watches = Arc::new(StreamLimit::new(MAX_WATCHES));
        Self { driver, refusals, readiness, ended, last: Arc::default(), unattached, watches }
    }

    fn next(&self) -> u64 {
        self.last.fetch_add(1, Ordering::Relaxed) + 1
    }

    async fn look(&self) -> Result<v1::StatusResponse, Status> {
        match time::timeout(STATUS_WITHIN, self.ask(|reply| Input::Status { reply })).await {
            Ok(Ok(status)) => Ok(status),
            Ok(Err(gone)) => self.ended.borrow().clone().ok_or(gone),
            Err(_) => {
                let reason = self.readiness.borrow().clone().err().unwrap_or_else(|| "it is busy".into());
                Err(Status::unavailable(format!("the coordinator does not answer: {reason}")))
            }
        }
    }

    async fn ask<T>(&self, input: impl FnOnce(oneshot::Sender<T>) -> Input) -> Result<T, Status> {
        let over = || Status::unavailable("the coordinator is shutting down");
        let (reply, answer) = oneshot::channel();
        self.driver.send(input(reply)).await.map_err(|_| over())?;
        answer.await.map_err(|_| over())
    }
}

/// The peer of a call.
fn peer_of<T>(request: &Request<T>) -> Result<Peer, Status> {
    request.extensions().get().copied().ok_or_else(|| Status::internal("a call that came through no connection"))
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let code = match refusal.kind {
            RefusalKind::InvalidArgument => Code::InvalidArgument,
            RefusalKind::FailedPrecondition => Code::FailedPrecondition,
            RefusalKind::AlreadyExists => Code::AlreadyExists,
            RefusalKind::ResourceExhausted => Code::ResourceExhausted,
            RefusalKind::Unauthenticated => Code::Unauthenticated,
            RefusalKind::Unavailable => Code::Unavailable,
            RefusalKind::Over => Code::NotFound,
            RefusalKind::Held => Code::Aborted,
            RefusalKind::OtherDevice => Code::PermissionDenied,
            RefusalKind::Disowned => Code::DataLoss,
        };
        Self::new(code, refusal.reason)
    }
}

type Directives = Pin<Box<dyn Stream<Item = Result<v1::Directive, Status>> + Send>>;

#[tonic::async_trait]
impl Coordinator for Grpc {
    type SessionStream = Directives;

    async fn join(&self, request: Request<v1::JoinRequest>) -> Result<Response<v1::JoinResponse>, Status> {
        let token = random::name().map_err(|error| Status::internal(format!("no random numbers: {error}")))?;
        let (address, join) = (peer_of(&request)?.client_address(), request.into_inner());
        let answer = self.ask(|reply| Input::Join { address, token, join, reply }).await?;
        Ok(Response::new(answer?))
    }

    async fn session(&self, request: Request<Streaming<v1::WorkerMessage>>) -> Result<Response<Directives>, Status> {
        // Answered at once: an error in the first message is reported in the stream, so that a
        // worker does not have to send it before it gets the response headers.
        let (outbound, directives) = mpsc::channel(WAITING_DIRECTIVES);
        let peer = peer_of(&request)?;
        let evicted = self.unattached.open(peer);
        let (driver, refusals, id) = (self.driver.clone(), self.refusals.clone(), SessionId(self.next()));
        let session = Session { driver, refusals, id, peer: peer.0, inbound: request.into_inner() };
        tokio::spawn(session.listen(outbound, evicted));
        Ok(Response::new(Box::pin(ReceiverStream::new(directives))))
    }
}

#[tonic::async_trait]
impl Admin for Grpc {
    type WatchStream = ReceiverStream<Result<v1::StatusResponse, Status>>;

    async fn status(&self, _: Request<v1::StatusRequest>) -> Result<Response<v1::StatusResponse>, Status> {
        self.look().await.map(Response::new)
    }

    async fn watch(&self, request: Request<v1::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let peer = peer_of(&request)?;
        let interval = Duration::from_millis(request.into_inner().interval_ms.into()).max(MIN_INTERVAL);
        let busy = || {
            Status::resource_exhausted(format!("{MAX_WATCHES} others watch this run: end one of them, or try again"))
        };
        let mut evicted = self.watches.try_open(peer).ok_or_else(busy)?;
        let (answers, stream) = mpsc::channel(1);
        let grpc = self.clone();
        tokio::spawn(async move {
            let mut ended = grpc.ended.clone();
            loop {
                let is_over = ended.borrow_and_update().is_some();
                // A client that does not read its stream counts as disconnected, too.
                if answers.send_timeout(grpc.look().await, WATCH_STALL_TIMEOUT).await.is_err() || is_over {
                    return;
                }
                tokio::select! {
                    () = time::sleep(interval) => {}
                    Ok(()) = ended.changed() => {}
                    () = answers.closed() => return,
                    _ = &mut evicted => {
                        // A client that does not read is not told.
                        _ = answers.try_send(Err(busy()));
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
            v1::Command::Drain => Command::Drain(request.rank),
            v1::Command::Stop => Command::Stop,
            v1::Command::Unspecified => {
                return Err(Status::invalid_argument("this coordinator does not know such a command"));
            }
        };
        let message = self.ask(|reply| Input::Control { command, reply }).await??;
        Ok(Response::new(v1::ControlResponse { message }))
    }
}

/// The stream of a worker.
struct Session {
    driver: mpsc::Sender<Input>,
    refusals: Refusals,
    id: SessionId,
    peer: SocketAddr,
    inbound: Streaming<v1::WorkerMessage>,
}

impl Session {
    /// Passes the worker's messages to the driver, until one of them ends the session.
    async fn listen(
        mut self,
        outbound: mpsc::Sender<Result<v1::Directive, Status>>,
        mut evicted: oneshot::Receiver<()>,
    ) {
        let first = tokio::select! {
            first = time::timeout(ATTACH_WITHIN, self.inbound.message()) => first,
            _ = &mut evicted => {
                let why = "too many sessions have yet to attach, and this was the oldest of its address: attach at once";
                Ok(Err(Status::resource_exhausted(why)))
            }
        };
        let refused = match first {
            Ok(Ok(Some(v1::WorkerMessage { message: Some(WorkerSays::Attach(attach)) }))) => {
                drop(evicted);
                return self.attached(outbound, attach).await;
            }
            Ok(Ok(None)) => return,
            Ok(Err(status)) => status,
            Ok(Ok(Some(_))) | Err(_) => Status::invalid_argument("the first message of a session must be Attach"),
        };
        if self.is_refusal(&refused) {
            // The worker may have disconnected.
            _ = outbound.send(Err(refused)).await;
        }
    }

    async fn attached(mut self, outbound: mpsc::Sender<Result<v1::Directive, Status>>, attach: v1::Attach) {
        let (session, peer) = (self.id, self.peer);
        let (hold, mut dropped) = oneshot::channel();
        // A weak sender, so that the stream ends when the driver drops the outbox.
        let line = Outbox { peer, outbound: outbound.clone(), _hold: hold };
        let outbound = outbound.downgrade();
        if self.driver.send(Input::Attach { session, attach, line }).await.is_err() {
            return;
        }
        loop {
            let message = tokio::select! {
                message = self.inbound.message() => message,
                // The driver has ended the session.
                _ = &mut dropped => return,
            };
            let event = match message {
                Ok(Some(v1::WorkerMessage { message: Some(message) })) => Event::Message { session, message },
                // A message of a newer worker; incompatible versions are refused when they join.
                Ok(Some(v1::WorkerMessage { message: None })) => continue,
                Ok(None) => Event::Closed { session },
                Err(status) => {
                    if let Some(outbound) = outbound.upgrade().filter(|_| self.is_refusal(&status)) {
                        // A worker that does not read its stream is not told.
                        _ = outbound.try_send(Err(status));
                    }
                    Event::Closed { session }
                }
            };
            let closed = matches!(event, Event::Closed { .. });
            if self.driver.send(Input::Event(event)).await.is_err() || closed {
                return;
            }
        }
    }

    /// Whether a stream's error is about a message, not about the connection. Then it is logged and
    /// counted as a refusal.
    fn is_refusal(&self, status: &Status) -> bool {
        // tonic's errors about messages have no source; those about connections have one.
        let refused = std::error::Error::source(status).is_none();
        if refused {
            self.refusals.note(self.peer, Reason::of_session(status.code()), status.message());
        }
        refused
    }
}
