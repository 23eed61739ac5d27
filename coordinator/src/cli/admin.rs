//! How subcommands ask a running coordinator.

use std::time::Duration;

use anyhow::Context;
use clap::Args;
use proto::v1::admin_client::AdminClient;
use tonic::transport::{Channel, Endpoint};

/// How long the coordinator may take to answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A running coordinator.
#[derive(Debug, Args)]
pub struct Admin {
    /// Where the coordinator listens.
    #[arg(long, value_name = "URL", env = "DICO_COORDINATOR", default_value = "http://127.0.0.1:7070")]
    coordinator: String,
}

impl Admin {
    /// Asks it something, and waits for the answer.
    pub fn ask<T>(
        &self,
        question: impl AsyncFnOnce(AdminClient<Channel>) -> Result<tonic::Response<T>, tonic::Status>,
    ) -> anyhow::Result<T> {
        tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
            let endpoint = Endpoint::from_shared(self.coordinator.clone()).context("--coordinator")?.timeout(TIMEOUT);
            let channel = endpoint.connect_timeout(TIMEOUT).connect().await;
            let channel = channel.with_context(|| format!("no coordinator answers at {}", self.coordinator))?;
            let answer = question(AdminClient::new(channel)).await;
            Ok(answer.map_err(|status| anyhow::anyhow!("{}: {}", self.coordinator, status.message()))?.into_inner())
        })
    }
}
