//! The shell around the run: turns calls into events, and actions into messages, records and metrics.
//!
//! ```text
//!   workers ==gRPC==> grpc --Input--> driver --Event--> run::Run
//!      ^                                |  <--Action------'
//!      '======== directives ============|
//!                                       |--Record--> recorder (a thread; SQLite)
//!                                       |--Record--> metrics --> http <-- Prometheus
//!                                       '--items---> captions, score (a blocking thread) --Event--> driver
//! ```

mod captions;
mod driver;
mod grpc;
mod http;
mod metrics;
mod recorder;
mod score;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use runfile::RunFile;
use storage::Checkpoints;
use tokio::{net::TcpListener, sync::mpsc, sync::watch, time};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;

use crate::{
    journal::Journal,
    run::{Outcome, Run, record::Restored},
};
use driver::Driver;
use metrics::Metrics;
use recorder::Recorder;

/// Inputs that may wait for the driver; those who send more are held up.
const WAITING_INPUTS: usize = 4096;
/// How long open connections may take to close when everything is said, in seconds.
const CLOSING: time::Duration = time::Duration::from_secs(1);

/// What a coordinator is made of.
pub struct Service {
    /// The run file.
    pub file: RunFile,
    /// What an earlier coordinator left.
    pub restored: Restored,
    /// Where the run is recorded.
    pub journal: Journal,
    /// Where states are saved, for those that are to be deleted.
    pub checkpoints: Checkpoints,
    /// Scores captions of evaluations.
    pub scoring: scoring::Metrics,
    /// Where workers and `coordinator status` come in.
    pub grpc: TcpListener,
    /// Where Prometheus and health checks come in.
    pub http: TcpListener,
}

/// Asks a coordinator to stop.
#[derive(Clone, Debug)]
pub struct Stop(mpsc::Sender<driver::Input>);

impl Stop {
    /// Lets the coordinator save, say goodbye and exit.
    pub async fn stop(&self) {
        // Nobody listens any more: it has stopped already.
        _ = self.0.send(driver::Input::Shutdown).await;
    }
}

impl Service {
    /// Serves until the run is over. The first part can ask it to stop, the second does the work.
    pub fn start(self) -> (Stop, impl Future<Output = anyhow::Result<Outcome>>) {
        let (inputs, waiting) = mpsc::channel(WAITING_INPUTS);
        let stop = Stop(inputs.clone());
        (stop, self.serve(inputs, waiting))
    }

    async fn serve(
        self,
        inputs: mpsc::Sender<driver::Input>,
        waiting: mpsc::Receiver<driver::Input>,
    ) -> anyhow::Result<Outcome> {
        let mut metrics = Metrics::new(&self.file);
        let run = Run::new(self.file, self.restored);
        // Whoever asks first is told how the run stands, too.
        metrics.publish(&run.status(time::Duration::ZERO), run.samples_committed(), run.best());
        let (readiness, ready) = watch::channel(run.readiness());
        let (over, closing) = watch::channel(());
        let closed = |mut closing: watch::Receiver<()>| async move { _ = closing.changed().await };

        let http = axum::serve(self.http, http::routes(metrics.handle(), ready));
        let http = tokio::spawn(http.with_graceful_shutdown(closed(closing.clone())).into_future());
        let incoming = TcpListenerStream::new(self.grpc);
        let grpc = grpc::Grpc::new(inputs.clone());
        let grpc = Server::builder()
            .tcp_nodelay(true)
            .add_service(proto::v1::coordinator_server::CoordinatorServer::new(grpc.clone()))
            .add_service(proto::v1::admin_server::AdminServer::new(grpc))
            .serve_with_incoming_shutdown(incoming, closed(closing));
        let grpc = tokio::spawn(grpc);

        let (scoring, checkpoints) = (Arc::new(self.scoring), Arc::new(self.checkpoints));
        let driver =
            Driver { run, recorder: Recorder::start(self.journal), metrics, scoring, readiness, checkpoints, inputs };
        let outcome = driver.drive(waiting).await;
        drop(over);
        // What is left are connections whose peers do not close them: they are cut.
        _ = time::timeout(CLOSING, async { _ = tokio::join!(grpc, http) }).await;
        outcome
    }
}
