//! The shutdown signal: SIGTERM, SIGINT or SIGHUP.

use anyhow::{Context, Result};
use cli_support::ShutdownSignals;
use tokio::sync::watch;

/// The reason for leaving in the worker's Leaving message.
pub const LEAVE_REASON: &str = "its process received a shutdown signal";

/// Returns a flag that becomes true at the first shutdown signal. A second one, except
/// SIGHUP, ends the process at once.
///
/// # Errors
/// The signal handlers cannot be installed.
pub fn listen() -> Result<watch::Receiver<bool>> {
    let mut signals = ShutdownSignals::listen().context("cannot listen for signals")?;
    let (sender, receiver) = watch::channel(false);
    tokio::spawn(async move {
        signals.received().await;
        tracing::info!("received a shutdown signal: leaving the run after the step in flight");
        sender.send_replace(true);
        signals.received_again().await;
        // 128 + SIGINT, as a shell reports a process that SIGINT ended.
        std::process::exit(130);
    });
    Ok(receiver)
}
