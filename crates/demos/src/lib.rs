//! Coordinators and workers on this machine, for the demo and the comparison.
//!
//! ```text
//! cluster.rs   synthesizes data, starts and watches the processes
//! progress.rs  shows progress
//! ```

pub mod cluster;
pub mod progress;

use tokio::signal::unix::{SignalKind, signal};

/// Waits for SIGTERM or SIGINT, then returns an error.
///
/// # Errors
/// Always.
pub async fn interrupted<T>() -> anyhow::Result<T> {
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = terminate.recv() => {}
        result = tokio::signal::ctrl_c() => result?,
    }
    anyhow::bail!("interrupted")
}
