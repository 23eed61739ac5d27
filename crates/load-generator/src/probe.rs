//! The probe: sends requests to the coordinator continuously, through the same queue as heartbeats.

use std::{sync::Arc, time::Duration};

use proto::v1::{Command, ControlRequest, admin_client::AdminClient};
use tokio::{task::JoinSet, time};
use tonic::{Code, transport::Channel};

use crate::{account::Recorder, usage::Usage};

/// Interval of requests.
const EVERY: Duration = Duration::from_millis(50);

/// Sends requests and reads the resource usage of the coordinator's process, until it is dropped.
/// (The request is to resume the run, which is refused: it takes the same way, and its answer is
/// short.)
pub async fn probe(admin: AdminClient<Channel>, process: u32, account: Arc<Recorder>) {
    let mut ticks = time::interval(EVERY);
    // Each one in its own task: no request waits for the answer to the one before.
    let mut questions = JoinSet::new();
    loop {
        let due = ticks.tick().await;
        if let Some(usage) = Usage::of(process) {
            account.used(usage);
        }
        let (mut admin, account) = (admin.clone(), Arc::clone(&account));
        questions.spawn(async move {
            // Any other answer comes from a coordinator that is shutting down.
            let resume = ControlRequest { command: Command::Resume.into(), rank: 0 };
            if let Err(status) = admin.control(resume).await
                && status.code() == Code::FailedPrecondition
            {
                account.probed(due.elapsed());
            }
        });
        while questions.try_join_next().is_some() {}
    }
}
