//! Being asked to go: SIGTERM, SIGINT or SIGHUP.

use terminal::EndSignals;
use tokio::sync::watch;

/// Why the coordinator is told that this worker leaves.
pub const REASON: &str = "its process was asked to end";

/// Turns true when this process is asked to end; asked again, it ends at once.
///
/// # Errors
/// What the system says.
pub fn wish() -> Result<watch::Receiver<bool>, String> {
    let mut signals = EndSignals::listen().map_err(|error| format!("cannot listen for signals: {error}"))?;
    let (tell, told) = watch::channel(false);
    tokio::spawn(async move {
        signals.asked().await;
        tracing::info!("asked to end: leaving the run after the step in flight");
        tell.send_replace(true);
        signals.asked_again().await;
        // As a shell reports a process that SIGINT ended.
        std::process::exit(130);
    });
    Ok(told)
}
