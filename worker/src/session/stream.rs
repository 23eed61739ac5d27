//! One session: a stream to the coordinator, from Attach to its end.

use std::time::Duration;

use proto::v1::{self, directive::Directive as Kind, worker_message::Message};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};
use transport::Link;

use super::joining::MIN_HEARTBEAT;
use super::place::Membership;
use super::training::Training;
use super::{MAX_REASON_CHARS, REPORTS, client, leaving};
use crate::protocol::ProtocolViolation;

/// How long a coordinator may take to accept a session or a message, unless the heartbeat timeout
/// is longer.
const ANSWER: Duration = Duration::from_secs(10);
/// How long the coordinator may take to close a stream.
const FAREWELL: Duration = Duration::from_secs(5);

/// How a session ended.
pub enum SessionEnd {
    /// The run is complete.
    Finished,
    /// This worker was released, after a shutdown signal or because it is not needed; the reason.
    Left(String),
    /// This worker cannot continue; the reason.
    Failed(String),
    /// The connection broke; the reason.
    Disconnected(String),
    /// The worker's state is not part of the coordinator's run; the reason.
    Disowned(String),
}

/// Runs one session, from Attach to its end.
pub async fn serve(
    link: &Link,
    place: &Membership,
    attach: v1::Attach,
    training: &mut Training,
    mut wish: watch::Receiver<bool>,
) -> SessionEnd {
    let (outgoing, messages) = mpsc::channel(REPORTS);
    let heartbeat_timeout = place.heartbeat_timeout;
    let send = async |message| {
        let sent = outgoing.send(v1::WorkerMessage { message: Some(message) });
        tokio::time::timeout(heartbeat_timeout.max(ANSWER), sent).await.map(|sent| sent.is_ok())
    };
    // There is room for the first message.
    _ = send(Message::Attach(attach)).await;
    let session = async {
        let channel = link.stay(heartbeat_timeout).await?;
        client(channel).session(ReceiverStream::new(messages)).await
    };
    let mut directives = match tokio::time::timeout(heartbeat_timeout.max(ANSWER), session).await {
        Ok(Ok(response)) => response.into_inner(),
        Ok(Err(status)) => return broken(&status),
        Err(_) => return SessionEnd::Disconnected("the coordinator does not answer".to_owned()),
    };
    let mut heartbeat = tokio::time::interval(place.heartbeat.max(MIN_HEARTBEAT));
    let (mut finished, mut leaves) = (false, false);
    loop {
        let message = tokio::select! {
            directive = directives.message() => match directive {
                Ok(Some(v1::Directive { directive: Some(Kind::Leave(leave)), .. })) => return left(&leave, leaves),
                Ok(Some(directive)) => match training.order(directive) {
                    Ok(()) => continue,
                    Err(violation) => {
                        _ = send(failed(&violation, training.generation())).await;
                        return close(outgoing, directives, SessionEnd::Failed(violation.to_string())).await;
                    }
                },
                Ok(None) | Err(_) if finished => return SessionEnd::Finished,
                Ok(None) => return SessionEnd::Disconnected("stream closed".to_owned()),
                Err(status) => return broken(&status),
            },
            report = training.report(), if !finished => match report {
                Some(report) => {
                    finished = matches!(report, Message::Finished(_));
                    report
                }
                None => return SessionEnd::Failed(training.why_ended().await),
            },
            Ok(_) = wish.wait_for(|wish| *wish), if !leaves => {
                leaves = true;
                training.halt();
                Message::Leaving(v1::Leaving { reason: leaving::REASON.to_owned() })
            }
            _ = heartbeat.tick() => Message::Heartbeat(training.progress.heartbeat()),
        };
        let fatal = matches!(&message, Message::Failed(failed) if failed.fatal);
        let Ok(sent) = send(message).await else {
            return SessionEnd::Disconnected("the coordinator does not listen".to_owned());
        };
        if finished {
            // Closing this side tells the coordinator that no more messages follow.
            return close(outgoing, directives, SessionEnd::Finished).await;
        }
        if fatal {
            let reason = training.why_ended().await;
            return close(outgoing, directives, SessionEnd::Failed(reason)).await;
        }
        if !sent {
            // The coordinator has closed the stream, perhaps after a Leave that was not read yet.
            return last_words(directives, leaves).await;
        }
    }
}

/// Reads the rest of a closed stream: whether the coordinator told this worker to leave.
async fn last_words(mut directives: tonic::Streaming<v1::Directive>, leaves: bool) -> SessionEnd {
    let leave = async {
        while let Ok(Some(directive)) = directives.message().await {
            if let Some(Kind::Leave(leave)) = directive.directive {
                return Some(leave);
            }
        }
        None
    };
    match tokio::time::timeout(FAREWELL, leave).await {
        Ok(Some(leave)) => left(&leave, leaves),
        _ => SessionEnd::Disconnected("stream closed".to_owned()),
    }
}

/// How a session ends after a Leave; `leaves` is whether this worker had asked to leave.
fn left(leave: &v1::Leave, leaves: bool) -> SessionEnd {
    let reason = cli_support::one_line(&leave.reason, MAX_REASON_CHARS);
    if leaves || leave.orderly { SessionEnd::Left(reason) } else { SessionEnd::Failed(reason) }
}

/// The report that the coordinator has broken the protocol.
fn failed(violation: &ProtocolViolation, generation: u64) -> Message {
    Message::Failed(v1::Failed { generation, reason: violation.to_string(), fatal: true, ..Default::default() })
}

/// Closes this side of the stream and waits up to [`FAREWELL`] for the coordinator to close its
/// side, so that the last message is delivered.
async fn close(
    outgoing: mpsc::Sender<v1::WorkerMessage>,
    mut directives: tonic::Streaming<v1::Directive>,
    over: SessionEnd,
) -> SessionEnd {
    drop(outgoing);
    let drained = async { while let Ok(Some(_)) = directives.message().await {} };
    _ = tokio::time::timeout(FAREWELL, drained).await;
    over
}

fn broken(status: &Status) -> SessionEnd {
    let reason = cli_support::one_line(status.message(), MAX_REASON_CHARS);
    match status.code() {
        // The coordinator has refused this worker, and would refuse it again.
        Code::InvalidArgument
        | Code::FailedPrecondition
        | Code::NotFound
        | Code::PermissionDenied
        | Code::OutOfRange => SessionEnd::Failed(reason),
        Code::DataLoss => SessionEnd::Disowned(reason),
        _ => SessionEnd::Disconnected(reason),
    }
}

#[cfg(test)]
mod tests {
    use proto::v1::coordinator_client::CoordinatorClient;
    use proto::v1::coordinator_server::{Coordinator, CoordinatorServer};
    use tokio::net::TcpListener;
    use tokio_stream::wrappers::TcpListenerStream;
    use tonic::transport::{Channel, Server};
    use tonic::{Request, Response, Streaming};

    use super::*;

    /// A coordinator that sends these directives in each session, and closes it.
    #[derive(Clone)]
    struct Says(Vec<Kind>);

    #[tonic::async_trait]
    impl Coordinator for Says {
        type SessionStream = ReceiverStream<Result<v1::Directive, Status>>;

        async fn join(&self, _: Request<v1::JoinRequest>) -> Result<Response<v1::JoinResponse>, Status> {
            Err(Status::unavailable("nobody joins here"))
        }

        async fn session(
            &self,
            _: Request<Streaming<v1::WorkerMessage>>,
        ) -> Result<Response<Self::SessionStream>, Status> {
            let (said, stream) = mpsc::channel(self.0.len().max(1));
            for kind in &self.0 {
                let directive = v1::Directive { generation: 1, directive: Some(kind.clone()) };
                said.try_send(Ok(directive)).expect("there is room for all");
            }
            Ok(Response::new(ReceiverStream::new(stream)))
        }
    }

    /// How the session ends for a worker that can no longer send, after these directives.
    async fn after(said: &[Kind], leaves: bool) -> SessionEnd {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = Server::builder().add_service(CoordinatorServer::new(Says(said.to_vec())));
        let served = tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        let channel = Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
        let (_outgoing, messages) = mpsc::channel(1);
        let session = CoordinatorClient::new(channel).session(ReceiverStream::new(messages)).await;
        let over = last_words(session.unwrap().into_inner(), leaves).await;
        served.abort();
        over
    }

    #[tokio::test]
    async fn a_leave_is_heeded_though_nothing_can_be_sent_any_more() {
        let leave = |orderly| Kind::Leave(v1::Leave { reason: "drained".into(), orderly });
        let before = Kind::Abandon(v1::Abandon::default());
        assert!(matches!(after(&[leave(true)], false).await, SessionEnd::Left(reason) if reason == "drained"));
        assert!(matches!(after(&[before.clone(), leave(true)], false).await, SessionEnd::Left(_)));
        assert!(matches!(after(&[leave(false)], false).await, SessionEnd::Failed(reason) if reason == "drained"));
        // No error for a worker that wanted to leave.
        assert!(matches!(after(&[leave(false)], true).await, SessionEnd::Left(_)));
        assert!(matches!(after(&[before], false).await, SessionEnd::Disconnected(_)));
        assert!(matches!(after(&[], true).await, SessionEnd::Disconnected(_)));
    }
}
