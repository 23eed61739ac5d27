//! Coordinators and workers on this machine, for the demo and the comparison.
//!
//! ```text
//! cluster.rs   starts and watches the processes
//! progress.rs  shows progress
//! journal.rs   reads the results
//! ```

pub mod cluster;
pub mod journal;
pub mod progress;

use tokio::signal::unix::{SignalKind, signal};

/// Ends with an error when the program gets a signal to end.
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
