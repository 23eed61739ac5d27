//! The recorder: a thread that writes the journal, so that only actions that need durability wait
//! for the disk.

use std::time::Duration;

use checkpoint_store::JournalHead;
use tokio::sync::{mpsc, oneshot, watch};

use super::http::Readiness;
use crate::{
    journal::{Error, Journal},
    run::record::Record,
};

/// Maximal number of records that wait for the disk; the driver waits beyond it.
const WAITING_RECORDS: usize = 8192;
/// Interval between attempts to write.
const RETRY: Duration = Duration::from_secs(1);
/// Maximal number of records in one transaction.
const BATCH: usize = 1024;

enum WriteRequest {
    Write(Box<Record>),
    /// Reply with the last record when everything before is on disk.
    Sync(oneshot::Sender<JournalHead>),
}

/// The handle of the thread.
pub struct Recorder {
    orders: mpsc::Sender<WriteRequest>,
    thread: Option<std::thread::JoinHandle<Result<(), Error>>>,
    /// The last record; none while records wait for the disk.
    head: Option<JournalHead>,
}

impl Recorder {
    /// Starts the thread. While the disk is full, `readiness` has the reason.
    pub fn start(journal: Journal, readiness: watch::Sender<Readiness>) -> Self {
        let (orders, waiting) = mpsc::channel(WAITING_RECORDS);
        let head = Some(journal.head());
        Self { orders, thread: Some(std::thread::spawn(move || write(journal, waiting, &readiness))), head }
    }

    /// Queues a record. Fails if the thread has ended.
    pub async fn write(&mut self, record: Record) -> Result<(), Error> {
        self.head = None;
        match self.orders.send(WriteRequest::Write(Box::new(record))).await {
            Ok(()) => Ok(()),
            Err(_) => self.broken(),
        }
    }

    /// Waits until all records are on disk.
    pub async fn sync(&mut self) -> Result<(), Error> {
        let (answer, answered) = oneshot::channel();
        if self.orders.send(WriteRequest::Sync(answer)).await.is_err() {
            return self.broken();
        }
        match answered.await {
            Ok(head) => self.head = Some(head),
            Err(_) => return self.broken(),
        }
        Ok(())
    }

    /// Waits until all records are on disk. Returns the last one.
    pub async fn head(&mut self) -> Result<JournalHead, Error> {
        if self.head.is_none() {
            self.sync().await?;
        }
        Ok(self.head.clone().unwrap_or_default())
    }

    /// Waits until all records are on disk and the journal is closed.
    pub async fn finish(mut self) -> Result<(), Error> {
        self.sync().await?;
        drop(self.orders);
        let thread = self.thread.take();
        let join = move || thread.map(std::thread::JoinHandle::join);
        match tokio::task::spawn_blocking(join).await {
            Ok(Some(Ok(result))) => result,
            Ok(Some(Err(panic))) => std::panic::resume_unwind(panic),
            // The thread ended before; its error was reported then.
            Ok(None) | Err(_) => Ok(()),
        }
    }

    /// The error for which the thread has ended; it ends by itself only when it cannot write.
    fn broken(&mut self) -> Result<(), Error> {
        match self.thread.take().map(std::thread::JoinHandle::join) {
            Some(Ok(result)) => result,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => Ok(()),
        }
    }
}

fn write(
    mut journal: Journal,
    mut waiting: mpsc::Receiver<WriteRequest>,
    readiness: &watch::Sender<Readiness>,
) -> Result<(), Error> {
    let mut orders = Vec::new();
    while waiting.blocking_recv_many(&mut orders, BATCH) > 0 {
        let (mut records, mut answers) = (Vec::new(), Vec::new());
        for order in orders.drain(..) {
            match order {
                WriteRequest::Write(record) => records.push(*record),
                WriteRequest::Sync(answer) => answers.push(answer),
            }
        }
        if !records.is_empty() {
            insist(&mut journal, &records, readiness)?;
        }
        // The client may have given up.
        answers.into_iter().for_each(|answer| _ = answer.send(journal.head()));
    }
    Ok(())
}

/// Retries until the records are written: a full disk holds the run, and no record is lost.
fn insist(journal: &mut Journal, records: &[Record], readiness: &watch::Sender<Readiness>) -> Result<(), Error> {
    while let Err(error) = journal.write(records) {
        if !error.may_pass() {
            return Err(error);
        }
        let reason = format!("{error}: the run holds until it can be written (make room where the journal is)");
        tracing::warn!("{reason}");
        _ = readiness.send_replace(Err(format!("paused: {reason}")));
        std::thread::sleep(RETRY);
    }
    readiness.send_if_modified(|readiness| std::mem::replace(readiness, Ok(())).is_err());
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{path::Path, process::Command, time::Duration};

    use serde_json::json;

    use super::*;
    use crate::run::{record::EventKind, testing};

    /// A file system of one MiB.
    struct SmallDisk(tempfile::TempDir);

    impl SmallDisk {
        fn mount() -> Option<Self> {
            let folder = tempfile::tempdir().unwrap();
            let mount =
                Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(folder.path()).output();
            if mount.as_ref().is_ok_and(|output| output.status.success()) {
                return Some(Self(folder));
            }
            eprintln!("SKIPPED: a full disk needs a file system that this process may not mount: {mount:?}");
            None
        }
    }

    impl Drop for SmallDisk {
        fn drop(&mut self) {
            Command::new("umount").arg(self.0.path()).status().unwrap();
        }
    }

    fn events(state: &Path) -> usize {
        crate::journal::history::History::open(state).unwrap().events().unwrap().len()
    }

    #[tokio::test]
    async fn a_full_disk_holds_until_there_is_room_and_nothing_is_lost() {
        let Some(disk) = SmallDisk::mount() else { return };
        let state = disk.0.path().join("state");
        let journal = Journal::open(&state, &testing::run_file(vec![testing::stage("a", 2, 8, None, None)])).unwrap();
        let hoard = disk.0.path().join("hoard");
        std::fs::write(&hoard, vec![1; 700 << 10]).unwrap();
        let (readiness, mut ready) = watch::channel(Ok(()));
        let mut recorder = Recorder::start(journal, readiness);
        let detail = json!({ "reason": "x".repeat(100 << 10) });
        for _ in 0..5 {
            let record = Record::Event { what: EventKind::Lost, detail: detail.clone() };
            recorder.write(record).await.unwrap();
        }
        ready.wait_for(Result::is_err).await.unwrap();
        let reason = ready.borrow().clone().unwrap_err();
        assert!(reason.contains("full") && reason.contains("make room"), "{reason}");
        std::fs::remove_file(hoard).unwrap();
        tokio::time::timeout(Duration::from_secs(60), recorder.sync()).await.unwrap().unwrap();
        assert_eq!(events(&state), 5);
    }
}
