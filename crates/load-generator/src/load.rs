//! Runs a load test: starts the coordinator, the latency probe and the workers, waits until the run
//! is complete, and computes the results.

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use proto::v1::admin_client::AdminClient;
use tokio::{
    sync::{Barrier, OnceCell, Semaphore},
    task::JoinSet,
};
use tonic::transport::Endpoint;

use crate::coordinator::TestCoordinator;
use crate::messages::StepReports;
use crate::recorder::Recorder;
use crate::report::Report;
use crate::usage::Usage;
use crate::worker::Cluster;

/// The parameters of a load test.
#[derive(Clone, Copy, Debug)]
pub struct LoadTest {
    /// The number of simulated workers.
    pub workers: u32,
    /// The number of steps to train.
    pub steps: u32,
    /// The minimal duration of a step.
    pub step_duration: Duration,
    /// The number of connections that the workers share.
    pub connections: u32,
}

impl LoadTest {
    /// Runs a coordinator under this load. Returns the results.
    ///
    /// # Errors
    /// The coordinator does not start or cannot be reached, it or a worker failed, or its journal
    /// cannot be read.
    pub async fn run(self) -> anyhow::Result<Report> {
        let coordinator = TestCoordinator::start(&self)?;
        let endpoint = Endpoint::from_shared(coordinator.url().clone())?.tcp_nodelay(true);
        let admin = AdminClient::new(endpoint.connect().await?);
        let recorder = Arc::new(Recorder::new());
        let cluster = Arc::new(Cluster {
            load: self,
            endpoint,
            channels: (0..self.connections).map(|_| OnceCell::new()).collect(),
            join_permits: Semaphore::new(crate::worker::MAX_CONCURRENT_JOINS),
            all_reduce: Barrier::new(self.workers as usize),
            step_reports: StepReports::new(),
            run: OnceCell::new(),
            recorder: Arc::clone(&recorder),
        });
        let probe = tokio::spawn(crate::latency_probe::run(admin, coordinator.process_id(), Arc::clone(&recorder)));
        let mut workers = JoinSet::new();
        for number in 0..self.workers {
            let cluster = Arc::clone(&cluster);
            let worker =
                async move { crate::worker::run(&cluster, number).await.with_context(|| format!("worker {number}")) };
            workers.spawn(worker);
        }
        while let Some(result) = workers.join_next().await {
            result??;
        }
        probe.abort();
        let journal = tokio::task::spawn_blocking(|| coordinator.finish()).await??;
        let own_usage = Usage::of(std::process::id()).unwrap_or_default();
        let window = config::Control::default().window;
        Ok(Report::new(self, window, &recorder.measurements(), journal, own_usage))
    }
}
