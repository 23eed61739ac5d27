//! Being asked to go: SIGTERM or SIGINT.

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Why the coordinator is told that this worker leaves.
pub const REASON: &str = "its process was asked to end";

/// Turns true when this process is asked to end; asked again, it ends at once.
///
/// # Errors
/// What the system says.
pub fn wish() -> Result<watch::Receiver<bool>, String> {
    let listen = |kind| signal(kind).map_err(|error| format!("cannot listen for signals: {error}"));
    let (mut terminate, mut interrupt) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    let (tell, told) = watch::channel(false);
    tokio::spawn(async move {
        let mut asked = async || {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        asked().await;
        tracing::info!("asked to end: leaving the run after the step in flight");
        tell.send_replace(true);
        asked().await;
        // As a shell reports a process that SIGINT ended.
        std::process::exit(130);
    });
    Ok(told)
}
