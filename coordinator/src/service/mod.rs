//! The service around the run: turns calls into events, and actions into messages, records and
//! metrics.
//!
//! ```text
//!   workers ==gRPC==> door -> access -> grpc --Input--> driver --Event--> run::Run
//!      ^               |        |        |                |  <--Action------'
//!      |               '--------'--------'--> refusals    |
//!      '======== directives ==============================|
//!                                                         |--Record--> recorder (a thread; SQLite)
//!                                                         |--Record--> metrics --> http <-- Prometheus, the page
//!                                                         '--items---> evaluations (captions, score) --Event--> driver
//! ```

mod access;
mod captions;
mod clock;
mod disk;
mod door;
mod driver;
mod evaluations;
mod fair_limit;
mod grpc;
mod http;
mod log_limit;
mod metrics;
mod recorder;
mod refusals;
mod score;
mod scrapes;
#[cfg(test)]
mod tests;

use std::{path::PathBuf, sync::Arc};

use axum::middleware;
use checkpoint_store::Checkpoints;
use config::RunFile;
use proto::v1::{admin_server::AdminServer, coordinator_server::CoordinatorServer};
use rustls::ServerConfig;
use tokio::{net::TcpListener, sync::mpsc, sync::watch, time};
use tonic::{service::Routes, transport::Server};

use crate::{
    journal::Journal,
    run::{Outcome, Run},
};
use access::AuthLayer;
pub use access::Tokens;
use disk::Disk;
use door::Acceptor;
use driver::Driver;
use http::{AllowedHosts, AppState};
use metrics::Metrics;
use recorder::Recorder;
use scrapes::Scrapes;

/// Maximal number of inputs that wait for the driver; senders wait beyond it.
const WAITING_INPUTS: usize = 4096;
/// How long open connections may take to close after the last answer.
const CLOSING: time::Duration = time::Duration::from_secs(1);
/// Maximal number of concurrent calls on one connection.
const MAX_STREAMS: u32 = 128;
/// Maximal size of a call's headers, in bytes; the token is the longest one.
const MAX_HEADERS: u32 = 16 << 10;
/// HTTP/2 keepalive: after this time without traffic the peer is pinged, and it has this long to
/// answer.
const ASKED_AFTER: [time::Duration; 2] = [time::Duration::from_secs(30), time::Duration::from_secs(20)];

/// The parts of a coordinator.
pub struct Service {
    /// The run file.
    pub file: RunFile,
    /// The run, as restored from the journal.
    pub run: Run,
    /// The run's journal.
    pub journal: Journal,
    /// The journal's folder.
    pub state: PathBuf,
    /// The run's checkpoints, to delete those that are no longer needed.
    pub checkpoints: Checkpoints,
    /// Computes the scores of captions.
    pub scoring: caption_metrics::Metrics,
    /// The listener for workers and the admin CLI (gRPC).
    pub grpc: TcpListener,
    /// The listener for Prometheus, probes and browsers (HTTP).
    pub http: TcpListener,
    /// TLS and tokens.
    pub security: Security,
    /// Whether to keep serving when the run is finished, until an operator stops the coordinator.
    pub stay: bool,
}

/// The access control of a coordinator. By default every peer may join, and every peer on this
/// machine may send commands.
#[derive(Clone, Default)]
pub struct Security {
    /// The TLS settings; none for plain text.
    pub tls: Option<Arc<ServerConfig>>,
    /// The tokens that calls require.
    pub tokens: Tokens,
}

/// A handle that stops a coordinator.
#[derive(Clone, Debug)]
pub struct StopHandle(mpsc::Sender<driver::Input>);

impl StopHandle {
    /// Asks the coordinator to save, release its workers and exit.
    pub async fn stop(&self) {
        // Fails if it has stopped already.
        _ = self.0.send(driver::Input::Shutdown).await;
    }
}

impl Service {
    /// Starts the service. The handle stops it; the future serves until the run is over.
    pub fn start(self) -> (StopHandle, impl Future<Output = anyhow::Result<Outcome>>) {
        let (inputs, waiting) = mpsc::channel(WAITING_INPUTS);
        let stop = StopHandle(inputs.clone());
        (stop, self.serve(inputs, waiting))
    }

    async fn serve(
        self,
        inputs: mpsc::Sender<driver::Input>,
        waiting: mpsc::Receiver<driver::Input>,
    ) -> anyhow::Result<Outcome> {
        let mut metrics = Metrics::new(&self.file);
        let Security { tls, tokens } = self.security;
        let (tokens, refusals) = (Arc::new(tokens), metrics.refusals());
        let desk =
            AppState::new(self.file.clone(), self.state.clone(), inputs.clone(), Arc::clone(&tokens), refusals.clone());
        let run = self.run;
        // Metrics and readiness are available from the first request on.
        metrics.publish(&run);
        let (readiness, ready) = watch::channel(run.readiness());
        let (writable, disk) = watch::channel(Ok(()));
        let (over, closing) = watch::channel(());
        let closed = |mut closing: watch::Receiver<()>| async move { _ = closing.changed().await };

        let desk = Arc::new(desk);
        tokio::spawn(Arc::clone(&desk).keep(closed(closing.clone())));
        let scrapes = Scrapes::new();
        let grpc_port = self.grpc.local_addr().map_or(0, |address| address.port());
        let hosts = AllowedHosts::of(self.http.local_addr()?);
        let routes = http::routes(Arc::clone(&desk), metrics.handle(), [disk.clone(), ready], grpc_port, hosts);
        let routes = scrapes.noted(routes);
        let http = tokio::spawn(http::serve(self.http, routes, refusals.clone(), closing.clone()));
        let door = Acceptor { listener: self.grpc, tls, refusals: refusals.clone() };
        let reception = AuthLayer { tokens, refusals: refusals.clone() };
        let (ended, last_status) = watch::channel(None);
        let grpc = grpc::Grpc::new(inputs.clone(), refusals.clone(), disk, last_status);
        let workers = CoordinatorServer::new(grpc.clone()).max_decoding_message_size(proto::MAX_BYTES_TO_COORDINATOR);
        let routes = Routes::new(workers).add_service(AdminServer::new(grpc)).into_axum_router();
        let routes = routes.layer(middleware::from_fn_with_state(reception, access::receive));
        let [idle, patience] = ASKED_AFTER.map(Some);
        let grpc = Server::builder()
            .max_concurrent_streams(MAX_STREAMS)
            .http2_max_header_list_size(MAX_HEADERS)
            .http2_keepalive_interval(idle)
            .http2_keepalive_timeout(patience)
            .add_routes(routes.into())
            .serve_with_incoming_shutdown(door.open(), closed(closing));
        let grpc = tokio::spawn(grpc);

        let folders = [("state", Some(self.state)), ("checkpoints", self.checkpoints.folder().map(Into::into))];
        let disks =
            folders.into_iter().filter_map(|(what, folder)| Some(Disk { folder: folder?, gauges: metrics.disk(what) }));
        let watch = tokio::spawn(disk::watch(disks.collect()));
        let (scoring, checkpoints) = (Arc::new(self.scoring), Arc::new(self.checkpoints));
        let recorder = Recorder::start(self.journal, writable);
        let driver = Driver {
            run,
            recorder,
            metrics,
            refusals,
            scoring,
            readiness,
            checkpoints,
            inputs,
            ended,
            stay: self.stay,
        };
        let outcome = driver.drive(waiting).await;
        if let Ok(outcome) = &outcome {
            desk.farewell(outcome);
        }
        watch.abort();
        if let (false, Ok(Outcome::Finished | Outcome::Failed(_))) = (self.stay, &outcome) {
            scrapes.one_more().await;
        }
        drop(over);
        // Connections that their peers do not close are cut.
        _ = time::timeout(CLOSING, async { _ = tokio::join!(grpc, http) }).await;
        outcome
    }
}
