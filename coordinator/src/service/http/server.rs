//! HTTP connections, with limits on their number, on the time for the headers of a request, and on
//! the time for which a response may wait for the client to read. See [`limits`](super::limits) for
//! the other limits of a request.

use std::{io, time::Duration};

use axum::{Router, body::Body};
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{AbortHandle, JoinSet},
    time,
};
use tower::ServiceExt;
use tracing::warn;

use super::write_timeout::WriteTimeout;
use crate::service::{
    acceptor::Peer,
    fair_limit::FairLimit,
    refusals::{RefusalReason, Refusals},
};

/// Maximal number of open connections.
const MAX_CONNECTIONS: usize = 256;
/// Time limit for the headers of a request, and for the pause between two requests.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a response may wait for a client that does not read.
const WRITE_STALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Maximal size of the buffers of a connection, in bytes.
const MAX_BUFFER_BYTES: usize = 64 << 10;
/// Pause after an error of accept(2), e.g. because too many files are open.
const ACCEPT_RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Serves until `shutdown`, then until all pending requests are answered.
pub async fn serve(listener: TcpListener, routes: Router, refusals: Refusals, mut shutdown: watch::Receiver<()>) {
    let mut connections = JoinSet::new();
    let mut open = FairLimit::new(MAX_CONNECTIONS);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = shutdown.changed() => break,
            Some(_) = connections.join_next() => continue,
        };
        let (stream, peer) = match accepted {
            Ok((stream, peer)) => (stream, Peer(peer)),
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
            Err(error) => {
                warn!(%error, "cannot accept HTTP connections: retrying");
                time::sleep(ACCEPT_RETRY_INTERVAL).await;
                continue;
            }
        };
        let connection = connections.spawn(serve_connection(stream, peer, routes.clone(), shutdown.clone()));
        open.retain(|connection: &AbortHandle| !connection.is_finished());
        if let Some((peer, connection)) = open.insert(peer, connection) {
            let message = format_args!(
                "more than {MAX_CONNECTIONS} HTTP connections: closed the oldest of the address with the most"
            );
            refusals.record(peer.0, RefusalReason::TooManyConnections, message);
            connection.abort();
        }
    }
    while connections.join_next().await.is_some() {}
}

async fn serve_connection(stream: TcpStream, peer: Peer, routes: Router, mut shutdown: watch::Receiver<()>) {
    let service = service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(peer);
        routes.clone().oneshot(request.map(Body::new))
    });
    let mut protocol = http1::Builder::new();
    protocol.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT).max_buf_size(MAX_BUFFER_BYTES);
    let connection = protocol.serve_connection(TokioIo::new(WriteTimeout::new(stream, WRITE_STALL_TIMEOUT)), service);
    tokio::pin!(connection);
    // Errors of a connection are not logged: its peer caused them.
    tokio::select! {
        _ = connection.as_mut() => {}
        _ = shutdown.changed() => {
            connection.as_mut().graceful_shutdown();
            _ = connection.await;
        }
    }
}
