//! Free space of the disks that the coordinator uses, as metrics. Queried on a separate thread,
//! because a disk that does not respond must not block the coordinator.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use metrics::Gauge;
use tokio::time;
use tracing::warn;

/// Interval between queries.
const EVERY: Duration = Duration::from_secs(10);

/// A folder with the gauges of its disk's size and free space, in bytes.
pub struct Disk {
    /// The folder.
    pub folder: PathBuf,
    /// Size and free space.
    pub gauges: [Gauge; 2],
}

/// Updates the gauges until the future is dropped.
pub async fn watch(disks: Vec<Disk>) {
    let mut ticks = time::interval(EVERY);
    let mut disks = disks;
    loop {
        ticks.tick().await;
        let looked = tokio::task::spawn_blocking(move || {
            disks.iter().for_each(look);
            disks
        });
        match looked.await {
            Ok(back) => disks = back,
            Err(panic) => {
                warn!(%panic, "disks are not looked after any more");
                return;
            }
        }
    }
}

fn look(disk: &Disk) {
    // The folder does not exist: nothing to report.
    let Ok(found) = room(&disk.folder) else { return };
    disk.gauges.iter().zip(found).for_each(|(gauge, bytes)| gauge.set(bytes));
}

/// The size of a folder's disk, and the space available to this process, in bytes.
fn room(folder: &Path) -> rustix::io::Result<[f64; 2]> {
    let found = rustix::fs::statvfs(folder)?;
    Ok([found.f_blocks, found.f_bavail].map(|blocks| blocks as f64 * found.f_frsize as f64))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_disk_is_as_large_as_df_says() {
        let folder = tempfile::tempdir().unwrap();
        let [size, free] = room(folder.path()).unwrap();
        let df = Command::new("df").args(["--output=size", "--block-size=1"]).arg(folder.path()).output().unwrap();
        let said = String::from_utf8(df.stdout).unwrap();
        assert_eq!(said.lines().last().unwrap().trim().parse(), Ok(size));
        assert!(0.0 < free && free <= size, "{free} of {size}");
    }
}
