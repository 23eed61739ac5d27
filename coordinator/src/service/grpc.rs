//! The gRPC services: every call becomes an input of the driver.

use std::{
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
    sync::{mpsc, oneshot},
    time,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming};

use super::driver::{Input, Line};
use crate::run::{Event, Refusal, RefusalKind, SessionId};

/// Directives that may wait for a worker; one that lets more wait is gone.
const WAITING_DIRECTIVES: usize = 1024;
/// How long a fresh stream may take to say whose it is.
const ATTACH_WITHIN: Duration = Duration::from_secs(30);

/// Both services.
#[derive(Clone)]
pub struct Grpc {
    driver: mpsc::Sender<Input>,
    last: Arc<AtomicU64>,
}

impl Grpc {
    /// Services that speak to this driver.
    pub fn new(driver: mpsc::Sender<Input>) -> Self {
        Self { driver, last: Arc::default() }
    }

    fn next(&self) -> u64 {
        self.last.fetch_add(1, Ordering::Relaxed) + 1
    }

    async fn ask<T>(&self, input: impl FnOnce(oneshot::Sender<T>) -> Input) -> Result<T, Status> {
        let over = || Status::unavailable("the coordinator is shutting down");
        let (reply, answer) = oneshot::channel();
        self.driver.send(input(reply)).await.map_err(|_| over())?;
        answer.await.map_err(|_| over())
    }
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
        };
        Self::new(code, refusal.reason)
    }
}

type Directives = Pin<Box<dyn Stream<Item = Result<v1::Directive, Status>> + Send>>;

#[tonic::async_trait]
impl Coordinator for Grpc {
    type SessionStream = Directives;

    async fn join(&self, request: Request<v1::JoinRequest>) -> Result<Response<v1::JoinResponse>, Status> {
        let token = token().map_err(|error| Status::internal(format!("no random numbers: {error}")))?;
        let join = request.into_inner();
        let request = self.next();
        let answer = self.ask(|reply| Input::Join { request, token, join, reply }).await?;
        Ok(Response::new(answer?))
    }

    async fn session(&self, request: Request<Streaming<v1::WorkerMessage>>) -> Result<Response<Directives>, Status> {
        // Answered at once: what is wrong with the first message is said in the stream, so that a worker need not send it
        // before it has read the headers.
        let (outbound, directives) = mpsc::channel(WAITING_DIRECTIVES);
        let session = SessionId(self.next());
        tokio::spawn(listen(self.driver.clone(), session, request.into_inner(), outbound));
        Ok(Response::new(Box::pin(ReceiverStream::new(directives))))
    }
}

#[tonic::async_trait]
impl Admin for Grpc {
    async fn status(&self, _: Request<v1::StatusRequest>) -> Result<Response<v1::StatusResponse>, Status> {
        Ok(Response::new(self.ask(|reply| Input::Status { reply }).await?))
    }

    async fn resume(&self, _: Request<v1::ResumeRequest>) -> Result<Response<v1::ResumeResponse>, Status> {
        let request = self.next();
        self.ask(|reply| Input::Resume { request, reply }).await??;
        Ok(Response::new(v1::ResumeResponse {}))
    }
}

/// Tells the driver what comes in on a stream, until either of them ends it.
async fn listen(
    driver: mpsc::Sender<Input>,
    session: SessionId,
    mut inbound: Streaming<v1::WorkerMessage>,
    outbound: mpsc::Sender<Result<v1::Directive, Status>>,
) {
    let first = match time::timeout(ATTACH_WITHIN, inbound.message()).await {
        Ok(Ok(message)) => message.and_then(|message| message.message),
        Ok(Err(_)) => return,
        Err(_) => None,
    };
    let Some(WorkerSays::Attach(attach)) = first else {
        // It may be gone already; then nobody is interested.
        _ = outbound.send(Err(Status::invalid_argument("the first message of a session must be Attach"))).await;
        return;
    };
    let (hold, mut dropped) = oneshot::channel();
    let line = Line { outbound, _hold: hold };
    if driver.send(Input::Attach { session, attach, line }).await.is_err() {
        return;
    }
    loop {
        let message = tokio::select! {
            message = inbound.message() => message,
            // The driver has ended the session.
            _ = &mut dropped => return,
        };
        let event = match message {
            Ok(Some(v1::WorkerMessage { message: Some(message) })) => Event::Message { session, message },
            // Of a newer worker; versions that must not be mixed are told apart at join.
            Ok(Some(v1::WorkerMessage { message: None })) => continue,
            Ok(None) | Err(_) => Event::Closed { session },
        };
        let closed = matches!(event, Event::Closed { .. });
        if driver.send(Input::Event(event)).await.is_err() || closed {
            return;
        }
    }
}

/// 128 random bits as hex.
fn token() -> std::io::Result<String> {
    let mut bytes = [0; 16];
    std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut bytes)?;
    Ok(format!("{:032x}", u128::from_le_bytes(bytes)))
}
