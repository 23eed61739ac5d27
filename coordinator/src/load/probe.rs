//! Asks the coordinator something all the time, in the way of a heartbeat.

use std::{sync::Arc, time::Duration};

use proto::v1::{ResumeRequest, admin_client::AdminClient};
use tokio::time;
use tonic::{Code, transport::Channel};

use super::{account::Account, usage::Usage};

/// Between questions.
const EVERY: Duration = Duration::from_millis(50);

/// Asks whether the run is paused, for as long as there is an answer, and looks at what the coordinator's process uses. (The
/// question is put as a wish to resume, which is refused: it takes the same way, and its answer is short.)
pub async fn probe(mut admin: AdminClient<Channel>, process: u32, account: Arc<Account>) {
    let mut ticks = time::interval(EVERY);
    loop {
        // A question that comes late because the one before it took long counts from when it was due.
        let due = ticks.tick().await;
        if let Some(usage) = Usage::of(process) {
            account.used(usage);
        }
        match admin.resume(ResumeRequest {}).await {
            Err(status) if status.code() == Code::FailedPrecondition => account.probed(due.elapsed()),
            _ => return,
        }
    }
}
