//! The service around the state machine [`Engine`]: converts calls to events, and actions to
//! messages, records and metrics.
//!
//! ```text
//!   workers ==gRPC==> acceptor --> auth --> grpc --DriverInput--> driver --Event--> Engine
//!      ^                 |          |        |                    |    <--Action-------'
//!      |                 '- refused peers and calls -> refusals   |
//!      |                                                          |
//!      '==================== directives ==========================|
//!                                                                 |--Record--> recorder (thread)
//!                                                                 |               '--> journal (SQLite)
//!                                                                 |--Record--> metrics --> http
//!                                                                 |
//!                                                                 '--captions--> evaluations
//!                                                                      ^             |
//!                                                                      '--- Event ---'
//! ```
//!
//! - `acceptor`, `auth`, `grpc`: the gRPC port: connections, tokens, calls.
//! - `driver`: the task that owns the run. `driver_input`: its inputs. `clock`: the run's time.
//! - `recorder`: the thread that writes the journal.
//! - `readiness`: whether the run and the journal are ready.
//! - `evaluations`: saves captions (`caption_files`) and scores them (`caption_scores`).
//! - `http`: the HTTP port: web page, metrics, probes.
//! - `metrics`: the Prometheus metrics. `disk_space`: metrics of free disk space.
//! - `final_scrape`: waits for a last scrape of the metrics before the coordinator exits.
//! - `refusals`: counts and logs refused peers and calls. `log_limit`: limits the log lines.
//! - `fair_limit`: limits on connections and streams that clients share fairly.

mod acceptor;
mod auth;
mod caption_files;
mod caption_scores;
mod clock;
mod disk_space;
mod driver;
mod driver_input;
mod evaluations;
mod fair_limit;
mod final_scrape;
mod grpc;
mod http;
mod log_limit;
mod metrics;
mod readiness;
mod recorder;
mod refusals;
#[cfg(test)]
mod tests;

use std::{path::PathBuf, sync::Arc};

use axum::middleware;
use checkpoint_store::Checkpoints;
use config::RunFile;
use dico_engine::{Engine, Outcome};
use journal::Journal;
use proto::v1::{admin_server::AdminServer, coordinator_server::CoordinatorServer};
use rustls::ServerConfig;
use tokio::{net::TcpListener, sync::mpsc, sync::watch, time};
use tonic::{service::Routes, transport::Server};

use acceptor::Acceptor;
use auth::AuthLayer;
pub use auth::Tokens;
use disk_space::Disk;
use driver::Driver;
use driver_input::DriverInput;
use final_scrape::ScrapeTracker;
use http::{AllowedHosts, AppState};
use metrics::Metrics;
use recorder::Recorder;

/// Capacity of the driver's input channel. Senders wait while it is full.
const MAX_QUEUED_INPUTS: usize = 4096;
/// How long the servers may take to close their connections when the coordinator exits.
const CLOSE_TIMEOUT: time::Duration = time::Duration::from_secs(1);
/// Maximal number of concurrent calls on one connection.
const MAX_CALLS_PER_CONNECTION: u32 = 128;
/// Maximal total size of a call's headers, in bytes. The longest header is the one with the token.
const MAX_HEADER_BYTES: u32 = 16 << 10;
/// HTTP/2 keepalive: the server pings a peer after this time without traffic.
const KEEPALIVE_INTERVAL: time::Duration = time::Duration::from_secs(30);
/// A peer that does not answer a ping within this time is disconnected.
const KEEPALIVE_TIMEOUT: time::Duration = time::Duration::from_secs(20);

/// All that a coordinator needs to serve a run.
pub struct Service {
    /// The run file.
    pub file: RunFile,
    /// The run, as restored from the journal.
    pub engine: Engine,
    /// The run's journal.
    pub journal: Journal,
    /// The journal's folder.
    pub journal_folder: PathBuf,
    /// The run's checkpoints. The service deletes those that are no longer needed.
    pub checkpoints: Checkpoints,
    /// Computes the scores of captions.
    pub scoring: caption_metrics::Metrics,
    /// The listener of the gRPC port, for workers and for the operator's commands.
    pub grpc: TcpListener,
    /// The listener of the HTTP port, for Prometheus, probes and browsers.
    pub http: TcpListener,
    /// TLS and tokens.
    pub security: Security,
    /// Whether to keep serving when the run is finished, until an operator stops the coordinator.
    pub stay: bool,
}

/// The access control of a coordinator. By default every peer may join, and every peer on this
/// machine may send commands over gRPC.
#[derive(Clone, Default)]
pub struct Security {
    /// The TLS settings; `None` for plain text.
    pub tls: Option<Arc<ServerConfig>>,
    /// The tokens that calls require.
    pub tokens: Tokens,
}

/// A handle that stops a coordinator.
#[derive(Clone, Debug)]
pub struct StopHandle(mpsc::Sender<DriverInput>);

impl StopHandle {
    /// Requests that the coordinator saves a checkpoint, releases its workers and exits.
    pub async fn stop(&self) {
        // Fails if the coordinator has stopped already.
        _ = self.0.send(DriverInput::Shutdown).await;
    }
}

impl Service {
    /// Starts the service. The future serves until the handle or an operator stops the coordinator,
    /// or until the run is over. [`Service::stay`] keeps it serving when the run is finished.
    pub fn start(self) -> (StopHandle, impl Future<Output = anyhow::Result<Outcome>>) {
        let (inputs, queue) = mpsc::channel(MAX_QUEUED_INPUTS);
        let stop = StopHandle(inputs.clone());
        (stop, self.serve(inputs, queue))
    }

    async fn serve(
        self,
        inputs: mpsc::Sender<DriverInput>,
        queue: mpsc::Receiver<DriverInput>,
    ) -> anyhow::Result<Outcome> {
        let mut metrics = Metrics::new(&self.file);
        let Security { tls, tokens } = self.security;
        let (tokens, refusals) = (Arc::new(tokens), metrics.refusals());
        let app_state = AppState::new(
            self.file.clone(),
            self.journal_folder.clone(),
            inputs.clone(),
            Arc::clone(&tokens),
            refusals.clone(),
        );
        let engine = self.engine;
        // Metrics and readiness are available from the first request on.
        metrics.publish(engine.state());
        let (run_readiness, run_readiness_receiver) = watch::channel(engine.state().readiness());
        let (journal_readiness, journal_readiness_receiver) = watch::channel(Ok(()));
        // Dropping the sender shuts the servers down.
        let (shutdown_sender, shutdown) = watch::channel(());
        let shutdown_received = |mut shutdown: watch::Receiver<()>| async move { _ = shutdown.changed().await };

        let app_state = Arc::new(app_state);
        tokio::spawn(http::send_updates(Arc::clone(&app_state), shutdown_received(shutdown.clone())));
        let scrape_tracker = ScrapeTracker::new();
        let grpc_port = self.grpc.local_addr().map_or(0, |address| address.port());
        let allowed_hosts = AllowedHosts::for_server(self.http.local_addr()?);
        let readiness = [journal_readiness_receiver.clone(), run_readiness_receiver];
        let routes = http::routes(Arc::clone(&app_state), metrics.handle(), readiness, grpc_port, allowed_hosts);
        let routes = scrape_tracker.track(routes);
        let http_server = tokio::spawn(http::serve(self.http, routes, refusals.clone(), shutdown.clone()));
        let acceptor = Acceptor { listener: self.grpc, tls, refusals: refusals.clone() };
        let auth_layer = AuthLayer { tokens, refusals: refusals.clone() };
        let (status_at_stop, status_at_stop_receiver) = watch::channel(None);
        let grpc_services =
            grpc::Grpc::new(inputs.clone(), refusals.clone(), journal_readiness_receiver, status_at_stop_receiver);
        let workers =
            CoordinatorServer::new(grpc_services.clone()).max_decoding_message_size(proto::MAX_BYTES_TO_COORDINATOR);
        let routes = Routes::new(workers).add_service(AdminServer::new(grpc_services)).into_axum_router();
        let routes = routes.layer(middleware::from_fn_with_state(auth_layer, auth::authorize));
        let grpc_server = Server::builder()
            .max_concurrent_streams(MAX_CALLS_PER_CONNECTION)
            .http2_max_header_list_size(MAX_HEADER_BYTES)
            .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
            .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
            .add_routes(routes.into())
            .serve_with_incoming_shutdown(acceptor.start(), shutdown_received(shutdown));
        let grpc_server = tokio::spawn(grpc_server);

        let folders =
            [("state", Some(self.journal_folder)), ("checkpoints", self.checkpoints.folder().map(Into::into))];
        let disks =
            folders.into_iter().filter_map(|(name, folder)| Some(Disk { folder: folder?, gauges: metrics.disk(name) }));
        let disk_watch = tokio::spawn(disk_space::watch(disks.collect()));
        let (scoring, checkpoints) = (Arc::new(self.scoring), Arc::new(self.checkpoints));
        let recorder = Recorder::start(self.journal, journal_readiness);
        let driver = Driver {
            engine,
            recorder,
            metrics,
            refusals,
            scoring,
            readiness: run_readiness,
            checkpoints,
            inputs,
            status_at_stop,
            stay: self.stay,
        };
        let outcome = driver.drive(queue).await;
        if let Ok(outcome) = &outcome {
            app_state.send_outcome(outcome);
        }
        disk_watch.abort();
        if let (false, Ok(Outcome::Finished | Outcome::Failed(_))) = (self.stay, &outcome) {
            scrape_tracker.wait_for_final_scrape().await;
        }
        drop(shutdown_sender);
        // After the timeout, connections that their peers keep open are dropped.
        _ = time::timeout(CLOSE_TIMEOUT, async { _ = tokio::join!(grpc_server, http_server) }).await;
        outcome
    }
}
