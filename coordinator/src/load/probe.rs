//! Asks the coordinator something all the time, in the way of a heartbeat.

use std::{sync::Arc, time::Duration};

use proto::v1::{Command, ControlRequest, admin_client::AdminClient};
use tokio::{task::JoinSet, time};
use tonic::{Code, transport::Channel};

use super::{account::Account, usage::Usage};

/// Between questions.
const EVERY: Duration = Duration::from_millis(50);

/// Asks whether the run is paused, and looks at what the coordinator's process uses, until it is dropped. (The question is
/// put as a wish to resume, which is refused: it takes the same way, and its answer is short.)
pub async fn probe(admin: AdminClient<Channel>, process: u32, account: Arc<Account>) {
    let mut ticks = time::interval(EVERY);
    // Each on a task of its own: no question waits for the answer to the one before it.
    let mut questions = JoinSet::new();
    loop {
        let due = ticks.tick().await;
        if let Some(usage) = Usage::of(process) {
            account.used(usage);
        }
        let (mut admin, account) = (admin.clone(), Arc::clone(&account));
        questions.spawn(async move {
            // Any other answer comes from a coordinator that goes.
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
