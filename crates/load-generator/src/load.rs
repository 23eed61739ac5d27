use std::{sync::Arc, time::Duration};

use anyhow::Context;
use proto::v1::admin_client::AdminClient;
use tokio::{
    sync::{Barrier, OnceCell, Semaphore},
    task::JoinSet,
};
use tonic::transport::Endpoint;

use crate::account::Recorder;
use crate::daemon::Daemon;
use crate::report::Report;
use crate::script::Script;
use crate::usage::Usage;
use crate::worker::Cluster;

/// The parameters of a load test.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// The number of light workers.
    pub workers: u32,
    /// The number of steps to train.
    pub steps: u32,
    /// The minimal duration of a step.
    pub step: Duration,
    /// The number of connections that the workers share.
    pub connections: u32,
}

impl Load {
    /// Runs a coordinator with this load. Returns the results.
    ///
    /// # Errors
    /// The coordinator or a worker has failed.
    pub async fn run(self) -> anyhow::Result<Report> {
        let daemon = Daemon::start(&self)?;
        let endpoint = Endpoint::from_shared(daemon.url().to_owned())?.tcp_nodelay(true);
        let admin = AdminClient::new(endpoint.connect().await?);
        let account = Arc::new(Recorder::new());
        let cluster = Arc::new(Cluster {
            load: self,
            endpoint,
            channels: (0..self.connections).map(|_| OnceCell::new()).collect(),
            joining: Semaphore::new(crate::worker::MAX_CONCURRENT_JOINS),
            all_reduce: Barrier::new(self.workers as usize),
            script: Script::new(),
            account: Arc::clone(&account),
        });
        let probe = tokio::spawn(crate::probe::probe(admin, daemon.process(), Arc::clone(&account)));
        let mut workers = JoinSet::new();
        for number in 0..self.workers {
            let cluster = Arc::clone(&cluster);
            let work =
                async move { crate::worker::work(&cluster, number).await.with_context(|| format!("worker {number}")) };
            workers.spawn(work);
        }
        while let Some(ended) = workers.join_next().await {
            ended??;
        }
        probe.abort();
        let recorded = tokio::task::spawn_blocking(|| daemon.finish()).await??;
        let workers = Usage::of(std::process::id()).unwrap_or_default();
        let window = config::Control::default().window;
        Ok(Report::new(self, window, &account.seen(), recorded, workers))
    }
}
