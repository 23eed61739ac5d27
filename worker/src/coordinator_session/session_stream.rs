//! One session: the bidirectional gRPC stream between worker and coordinator, from the Attach
//! message to its end.

use std::time::Duration;

use proto::v1::{self, directive::Directive as DirectiveKind, worker_message::Message};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};
use transport::Connector;
use worker_protocol::{DirectiveEffect, ReportEffect, Session};

use super::coordinator_client::{MAX_REASON_CHARS, client};
use super::joining::MIN_HEARTBEAT_INTERVAL;
use super::membership::Membership;
use super::shutdown::LEAVE_REASON;
use super::training_thread::{REPORT_QUEUE_CAPACITY, TrainingThread};
use crate::errors;

/// How long a coordinator may take to accept a session or a message, unless the heartbeat timeout
/// is longer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the coordinator may take to close a stream.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// How a session ended.
pub enum SessionEnd {
    /// The run is complete.
    Finished,
    /// This worker left: after a shutdown signal, because the run does not need it, or because the
    /// coordinator stops; the reason.
    Left(String),
    /// This worker cannot continue; the reason.
    Failed(String),
    /// The connection was lost; the reason.
    Disconnected(String),
    /// The worker's state is not on the lineage of the coordinator's run; the reason.
    StateRejected(String),
}

/// Runs one session, from Attach to its end.
pub async fn run_session(
    connector: &Connector,
    membership: &Membership,
    attach: v1::Attach,
    training: &mut TrainingThread,
    mut shutdown: watch::Receiver<bool>,
) -> SessionEnd {
    let (outgoing, messages) = mpsc::channel(REPORT_QUEUE_CAPACITY);
    let heartbeat_timeout = membership.heartbeat_timeout;
    let send = async |message| {
        let sent = outgoing.send(v1::WorkerMessage { message: Some(message) });
        tokio::time::timeout(heartbeat_timeout.max(ANSWER_TIMEOUT), sent).await.map(|sent| sent.is_ok())
    };
    // The queue has room for the first message.
    _ = send(Message::Attach(attach)).await;
    let session = async {
        let channel = connector.open_channel(heartbeat_timeout).await?;
        client(channel).session(ReceiverStream::new(messages)).await
    };
    let mut directives = match tokio::time::timeout(heartbeat_timeout.max(ANSWER_TIMEOUT), session).await {
        Ok(Ok(response)) => response.into_inner(),
        Ok(Err(status)) => return session_end(&status),
        Err(_) => return SessionEnd::Disconnected("the coordinator does not answer".to_owned()),
    };
    let mut heartbeat = tokio::time::interval(membership.heartbeat_interval.max(MIN_HEARTBEAT_INTERVAL));
    loop {
        let message = tokio::select! {
            directive = directives.message() => match directive {
                Ok(Some(directive)) => match training.protocol.on_directive(directive) {
                    Ok(DirectiveEffect::None) => continue,
                    Ok(DirectiveEffect::Execute(command)) => {
                        training.send(command);
                        continue;
                    }
                    Ok(DirectiveEffect::Leave { reason, is_expected }) => return end_after_leave(&reason, is_expected),
                    Err(violation) => {
                        _ = send(training.protocol.violation_report(&violation)).await;
                        return close(outgoing, directives, SessionEnd::Failed(violation.to_string())).await;
                    }
                },
                Ok(None) => return SessionEnd::Disconnected("stream closed".to_owned()),
                Err(status) => return session_end(&status),
            },
            report = training.next_report() => match report {
                Some(ReportEffect::Send(report)) => report,
                Some(ReportEffect::SendLast(report)) => {
                    let is_finished = matches!(report, Message::Finished(_));
                    _ = send(report).await;
                    let end = match is_finished {
                        true => SessionEnd::Finished,
                        false => SessionEnd::Failed(errors::one_line(&training.exit_error().await)),
                    };
                    // Closing this side tells the coordinator that no more messages follow.
                    return close(outgoing, directives, end).await;
                }
                Some(ReportEffect::Discard | ReportEffect::Released) => continue,
                None => return SessionEnd::Failed(errors::one_line(&training.exit_error().await)),
            },
            Ok(_) = shutdown.wait_for(|requested| *requested), if !training.protocol.has_announced_leave() => {
                training.protocol.announce_leave(LEAVE_REASON)
            }
            _ = heartbeat.tick() => Message::Heartbeat(training.progress.heartbeat()),
        };
        let Ok(sent) = send(message).await else {
            return SessionEnd::Disconnected("the coordinator does not read messages".to_owned());
        };
        if !sent {
            // The coordinator has closed the stream. A Leave may still be unread.
            return read_remaining_directives(directives, &training.protocol).await;
        }
    }
}

/// Reads the rest of a stream that the coordinator has closed, which may end with a Leave.
async fn read_remaining_directives(mut directives: tonic::Streaming<v1::Directive>, protocol: &Session) -> SessionEnd {
    let leave = async {
        while let Ok(Some(directive)) = directives.message().await {
            if let Some(DirectiveKind::Leave(leave)) = directive.directive {
                return Some(leave);
            }
        }
        None
    };
    match tokio::time::timeout(CLOSE_TIMEOUT, leave).await {
        Ok(Some(leave)) => end_after_leave(&leave.reason, protocol.is_expected(&leave)),
        _ => SessionEnd::Disconnected("stream closed".to_owned()),
    }
}

/// How a session ends after a Leave with this reason; `is_expected` is whether this worker wanted
/// to leave, or no state is lost.
fn end_after_leave(reason: &str, is_expected: bool) -> SessionEnd {
    let reason = cli_support::one_line(reason, MAX_REASON_CHARS);
    if is_expected { SessionEnd::Left(reason) } else { SessionEnd::Failed(reason) }
}

/// Closes this side of the stream and waits up to [`CLOSE_TIMEOUT`] for the coordinator to close
/// its side, so that the last message is delivered.
async fn close(
    outgoing: mpsc::Sender<v1::WorkerMessage>,
    mut directives: tonic::Streaming<v1::Directive>,
    end: SessionEnd,
) -> SessionEnd {
    drop(outgoing);
    let closed = async { while let Ok(Some(_)) = directives.message().await {} };
    _ = tokio::time::timeout(CLOSE_TIMEOUT, closed).await;
    end
}

/// How a session ends with this status.
fn session_end(status: &Status) -> SessionEnd {
    let reason = cli_support::one_line(status.message(), MAX_REASON_CHARS);
    match status.code() {
        // The coordinator has refused this worker, and would refuse it again.
        Code::InvalidArgument
        | Code::FailedPrecondition
        | Code::NotFound
        | Code::PermissionDenied
        | Code::OutOfRange => SessionEnd::Failed(reason),
        Code::DataLoss => SessionEnd::StateRejected(reason),
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

    /// A coordinator that sends these directives in each session, and then closes it.
    #[derive(Clone)]
    struct ScriptedCoordinator(Vec<DirectiveKind>);

    #[tonic::async_trait]
    impl Coordinator for ScriptedCoordinator {
        type SessionStream = ReceiverStream<Result<v1::Directive, Status>>;

        async fn join(&self, _: Request<v1::JoinRequest>) -> Result<Response<v1::JoinResponse>, Status> {
            Err(Status::unavailable("not used in this test"))
        }

        async fn session(
            &self,
            _: Request<Streaming<v1::WorkerMessage>>,
        ) -> Result<Response<Self::SessionStream>, Status> {
            let (directives, stream) = mpsc::channel(self.0.len().max(1));
            for kind in &self.0 {
                let directive = v1::Directive { generation: 1, directive: Some(kind.clone()) };
                directives.try_send(Ok(directive)).expect("the channel has room for all");
            }
            Ok(Response::new(ReceiverStream::new(stream)))
        }
    }

    /// How the session ends after these directives for a worker that can no longer send.
    async fn end_after(directives: &[DirectiveKind], is_leaving: bool) -> SessionEnd {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = Server::builder().add_service(CoordinatorServer::new(ScriptedCoordinator(directives.to_vec())));
        let served = tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        let channel = Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
        let (_outgoing, messages) = mpsc::channel(1);
        let session = CoordinatorClient::new(channel).session(ReceiverStream::new(messages)).await;
        let mut protocol = Session::new(config::testing::run_file(vec![]), "3fa2".to_owned(), 0);
        if is_leaving {
            protocol.announce_leave(LEAVE_REASON);
        }
        let end = read_remaining_directives(session.unwrap().into_inner(), &protocol).await;
        served.abort();
        end
    }

    #[tokio::test]
    async fn a_leave_is_read_from_a_stream_that_cannot_be_written() {
        let leave = |orderly| DirectiveKind::Leave(v1::Leave { reason: "drained".into(), orderly });
        let abandon = DirectiveKind::Abandon(v1::Abandon::default());
        assert!(matches!(end_after(&[leave(true)], false).await, SessionEnd::Left(reason) if reason == "drained"));
        assert!(matches!(end_after(&[abandon.clone(), leave(true)], false).await, SessionEnd::Left(_)));
        assert!(matches!(end_after(&[leave(false)], false).await, SessionEnd::Failed(reason) if reason == "drained"));
        // A worker that has sent Leaving ends without an error.
        assert!(matches!(end_after(&[leave(false)], true).await, SessionEnd::Left(_)));
        assert!(matches!(end_after(&[abandon], false).await, SessionEnd::Disconnected(_)));
        assert!(matches!(end_after(&[], true).await, SessionEnd::Disconnected(_)));
    }
}
