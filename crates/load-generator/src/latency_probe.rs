//! The latency probe: sends requests to the coordinator continuously, which pass through the same
//! queue of the coordinator as heartbeats.

use std::{sync::Arc, time::Duration};

use proto::v1::{Command, ControlRequest, admin_client::AdminClient};
use tokio::{task::JoinSet, time};
use tonic::{Code, transport::Channel};

use crate::{recorder::Recorder, usage::Usage};

/// The interval between requests.
const INTERVAL: Duration = Duration::from_millis(50);

/// Sends requests, and reads the resource usage of the coordinator's process, until this future is
/// dropped. Each request is to resume the run, which the coordinator refuses, so it changes nothing
/// and the response is short.
pub async fn run(admin: AdminClient<Channel>, process_id: u32, recorder: Arc<Recorder>) {
    let mut ticks = time::interval(INTERVAL);
    // Each request has its own task, so it does not wait for the previous response.
    let mut requests = JoinSet::new();
    loop {
        let due_at = ticks.tick().await;
        if let Some(usage) = Usage::of(process_id) {
            recorder.record_usage(usage);
        }
        let (mut admin, recorder) = (admin.clone(), Arc::clone(&recorder));
        requests.spawn(async move {
            // Any other response comes from a coordinator that is shutting down.
            let resume = ControlRequest { command: Command::Resume.into(), worker_id: 0 };
            if let Err(status) = admin.control(resume).await
                && status.code() == Code::FailedPrecondition
            {
                recorder.record_probe(due_at.elapsed());
            }
        });
        while requests.try_join_next().is_some() {}
    }
}
