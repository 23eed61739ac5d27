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
    door::Peer,
    fair_limit::FairLimit,
    refusals::{Reason, Refusals},
};

/// Maximal number of open connections.
const MAX_CONNECTIONS: usize = 256;
/// Time limit for the headers of a request, and for the pause between two requests.
const ASKED_WITHIN: Duration = Duration::from_secs(30);
/// How long a response may wait for a client that does not read.
const WRITE_STALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Maximal size of the buffers of a connection, in bytes.
const BUFFER: usize = 64 << 10;
/// Pause after an error of accept(2), e.g. because too many files are open.
const RECOVERY: Duration = Duration::from_secs(1);

/// Serves until `closing`, then until all pending requests are answered.
pub async fn serve(listener: TcpListener, routes: Router, refusals: Refusals, mut closing: watch::Receiver<()>) {
    let mut connections = JoinSet::new();
    let mut open = FairLimit::new(MAX_CONNECTIONS);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = closing.changed() => break,
            Some(_) = connections.join_next() => continue,
        };
        let (stream, peer) = match accepted {
            Ok((stream, peer)) => (stream, Peer(peer)),
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
            Err(error) => {
                warn!(%error, "cannot accept HTTP connections for the moment");
                time::sleep(RECOVERY).await;
                continue;
            }
        };
        let connection = connections.spawn(attend(stream, peer, routes.clone(), closing.clone()));
        open.retain(|connection: &AbortHandle| !connection.is_finished());
        if let Some((peer, connection)) = open.insert(peer, connection) {
            let why = format_args!(
                "more than {MAX_CONNECTIONS} HTTP connections: closed the oldest of the address with the most"
            );
            refusals.note(peer.0, Reason::Busy, why);
            connection.abort();
        }
    }
    while connections.join_next().await.is_some() {}
}

async fn attend(stream: TcpStream, peer: Peer, routes: Router, mut closing: watch::Receiver<()>) {
    let service = service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(peer);
        routes.clone().oneshot(request.map(Body::new))
    });
    let mut protocol = http1::Builder::new();
    protocol.timer(TokioTimer::new()).header_read_timeout(ASKED_WITHIN).max_buf_size(BUFFER);
    let connection = protocol.serve_connection(TokioIo::new(WriteTimeout::new(stream, WRITE_STALL_TIMEOUT)), service);
    tokio::pin!(connection);
    // Errors of a connection are not logged: its peer caused them.
    tokio::select! {
        _ = connection.as_mut() => {}
        _ = closing.changed() => {
            connection.as_mut().graceful_shutdown();
            _ = connection.await;
        }
    }
}
