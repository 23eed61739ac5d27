//! Size and free space of the disks that the coordinator uses, as metrics. A separate thread
//! queries the disks, because a disk that does not respond must not block the coordinator.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use metrics::Gauge;
use tokio::time;
use tracing::warn;

/// Interval between queries.
const QUERY_INTERVAL: Duration = Duration::from_secs(10);

/// A folder, and the gauges for the size and the free space of its disk, in bytes.
pub struct Disk {
    /// The folder.
    pub folder: PathBuf,
    /// The gauges: size, then free space.
    pub gauges: [Gauge; 2],
}

/// Updates the gauges every [`QUERY_INTERVAL`] until the future is dropped.
pub async fn watch(disks: Vec<Disk>) {
    let mut ticks = time::interval(QUERY_INTERVAL);
    let mut disks = disks;
    loop {
        ticks.tick().await;
        let query = tokio::task::spawn_blocking(move || {
            disks.iter().for_each(update_gauges);
            disks
        });
        match query.await {
            Ok(queried) => disks = queried,
            Err(panic) => {
                warn!(%panic, "cannot query free disk space any more: the metrics of disks are not updated");
                return;
            }
        }
    }
}

fn update_gauges(disk: &Disk) {
    // The folder may not exist yet. The gauges keep their values.
    let Ok(size_and_free) = size_and_free(&disk.folder) else { return };
    disk.gauges.iter().zip(size_and_free).for_each(|(gauge, bytes)| gauge.set(bytes));
}

/// The size of a folder's disk, and the space available to this process, in bytes.
fn size_and_free(folder: &Path) -> rustix::io::Result<[f64; 2]> {
    let stat = rustix::fs::statvfs(folder)?;
    Ok([stat.f_blocks, stat.f_bavail].map(|blocks| blocks as f64 * stat.f_frsize as f64))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn size_equals_the_output_of_df() {
        let folder = tempfile::tempdir().unwrap();
        let [size, free] = size_and_free(folder.path()).unwrap();
        let df = Command::new("df").args(["--output=size", "--block-size=1"]).arg(folder.path()).output().unwrap();
        let stdout = String::from_utf8(df.stdout).unwrap();
        assert_eq!(stdout.lines().last().unwrap().trim().parse(), Ok(size));
        assert!(0.0 < free && free <= size, "{free} of {size}");
    }
}
