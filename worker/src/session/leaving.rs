//! The shutdown signal: SIGTERM, SIGINT or SIGHUP.

use cli_support::EndSignals;
use tokio::sync::watch;

/// The reason for leaving that the coordinator is told.
pub const REASON: &str = "its process was asked to end";

/// Becomes true at the first signal to end. A second signal ends the process at once.
///
/// # Errors
/// The signal handlers cannot be installed.
pub fn wish() -> Result<watch::Receiver<bool>, String> {
    let mut signals = EndSignals::listen().map_err(|error| format!("cannot listen for signals: {error}"))?;
    let (tell, told) = watch::channel(false);
    tokio::spawn(async move {
        signals.asked().await;
        tracing::info!("asked to end: leaving the run after the step in flight");
        tell.send_replace(true);
        signals.asked_again().await;
        // 128 + SIGINT, as a shell reports a process that SIGINT ended.
        std::process::exit(130);
    });
    Ok(told)
}
