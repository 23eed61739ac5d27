//! The recorder: a thread that writes the journal, so that the driver waits for the disk only where
//! a record must be durable, or while the queue of records is full.

use std::time::Duration;

use dico_engine::{NotReady, record::Record};
use journal::{Error, EvaluatedCaption, Journal};
use proto::v1::{JournalHead, RunState};
use tokio::sync::{mpsc, oneshot, watch};

use super::readiness::Readiness;

/// Capacity of the queue of records. The driver waits while it is full.
const MAX_QUEUED_RECORDS: usize = 8192;
/// Interval between attempts to write the same records.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// Maximal number of records in one transaction.
const MAX_RECORDS_PER_TRANSACTION: usize = 1024;

/// A request to the recorder's thread.
enum WriteRequest {
    /// Captions of an evaluation, by its number.
    StageCaptions(u64, Vec<EvaluatedCaption>),
    Write(Box<Record>),
    /// Reply with the journal's head when all earlier records are on disk.
    Sync(oneshot::Sender<JournalHead>),
}

/// The handle of the recorder's thread.
pub struct Recorder {
    requests: mpsc::Sender<WriteRequest>,
    thread: Option<std::thread::JoinHandle<Result<(), Error>>>,
    /// The number and hash of the journal's last record; `None` from a write to the next sync.
    head: Option<JournalHead>,
}

impl Recorder {
    /// Starts the thread. While the journal cannot be written, `readiness` has the reason.
    pub fn start(journal: Journal, readiness: watch::Sender<Readiness>) -> Self {
        let (requests, queue) = mpsc::channel(MAX_QUEUED_RECORDS);
        let head = Some(journal.head());
        Self { requests, thread: Some(std::thread::spawn(move || serve_requests(journal, queue, &readiness))), head }
    }

    /// Queues a record.
    ///
    /// # Errors
    /// The thread has ended because the journal cannot be written.
    pub async fn write(&mut self, record: Record) -> Result<(), Error> {
        self.head = None;
        self.send(WriteRequest::Write(Box::new(record))).await
    }

    /// Queues the captions of an evaluation, before the evaluation's record.
    ///
    /// # Errors
    /// The thread has ended because the journal cannot be written.
    pub async fn stage_captions(&mut self, evaluation: u64, captions: Vec<EvaluatedCaption>) -> Result<(), Error> {
        self.send(WriteRequest::StageCaptions(evaluation, captions)).await
    }

    async fn send(&mut self, request: WriteRequest) -> Result<(), Error> {
        match self.requests.send(request).await {
            Ok(()) => Ok(()),
            Err(_) => self.thread_result(),
        }
    }

    /// Waits until all queued records are on disk.
    pub async fn sync(&mut self) -> Result<(), Error> {
        let (reply, response) = oneshot::channel();
        if self.requests.send(WriteRequest::Sync(reply)).await.is_err() {
            return self.thread_result();
        }
        match response.await {
            Ok(head) => self.head = Some(head),
            Err(_) => return self.thread_result(),
        }
        Ok(())
    }

    /// Waits until all records are on disk. Returns the journal's head.
    pub async fn head(&mut self) -> Result<JournalHead, Error> {
        if self.head.is_none() {
            self.sync().await?;
        }
        Ok(self.head.clone().unwrap_or_default())
    }

    /// Waits until all records are on disk and the journal is closed.
    pub async fn finish(mut self) -> Result<(), Error> {
        self.sync().await?;
        drop(self.requests);
        let thread = self.thread.take();
        let join = move || thread.map(std::thread::JoinHandle::join);
        match tokio::task::spawn_blocking(join).await {
            Ok(Some(Ok(result))) => result,
            Ok(Some(Err(panic))) => std::panic::resume_unwind(panic),
            // An earlier call has returned the thread's result.
            Ok(None) | Err(_) => Ok(()),
        }
    }

    /// The result of the thread, which has ended. It ends by itself only when it cannot write.
    fn thread_result(&mut self) -> Result<(), Error> {
        match self.thread.take().map(std::thread::JoinHandle::join) {
            Some(Ok(result)) => result,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => Ok(()),
        }
    }
}

/// Serves requests until all senders are dropped.
fn serve_requests(
    mut journal: Journal,
    mut queue: mpsc::Receiver<WriteRequest>,
    readiness: &watch::Sender<Readiness>,
) -> Result<(), Error> {
    let mut requests = Vec::new();
    while queue.blocking_recv_many(&mut requests, MAX_RECORDS_PER_TRANSACTION) > 0 {
        let (mut records, mut replies) = (Vec::new(), Vec::new());
        for request in requests.drain(..) {
            match request {
                WriteRequest::StageCaptions(evaluation, captions) => journal.stage_captions(evaluation, captions),
                WriteRequest::Write(record) => records.push(*record),
                WriteRequest::Sync(reply) => replies.push(reply),
            }
        }
        if !records.is_empty() {
            write_with_retry(&mut journal, &records, readiness)?;
        }
        // Fails if the driver no longer waits.
        replies.into_iter().for_each(|reply| _ = reply.send(journal.head()));
    }
    Ok(())
}

/// Writes records. Retries after a transient error, so that a full disk pauses the run and no
/// record is lost.
///
/// # Errors
/// The error is not transient.
fn write_with_retry(
    journal: &mut Journal,
    records: &[Record],
    readiness: &watch::Sender<Readiness>,
) -> Result<(), Error> {
    while let Err(error) = journal.write(records) {
        if !error.is_transient() {
            return Err(error);
        }
        let reason = format!("{error}: the run is paused until the journal can be written (free space on its disk)");
        tracing::warn!("{reason}");
        _ = readiness.send_replace(Err(NotReady { state: RunState::Paused, reason }));
        std::thread::sleep(RETRY_INTERVAL);
    }
    readiness.send_if_modified(|readiness| std::mem::replace(readiness, Ok(())).is_err());
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{path::Path, process::Command, time::Duration};

    use serde_json::json;

    use super::*;
    use config::testing;
    use dico_engine::EventKind;

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
            eprintln!("SKIPPED: this process may not mount the file system that the test fills: {mount:?}");
            None
        }
    }

    impl Drop for SmallDisk {
        fn drop(&mut self) {
            Command::new("umount").arg(self.0.path()).status().unwrap();
        }
    }

    fn count_events(state: &Path) -> usize {
        journal::ReadOnlyJournal::open(state).unwrap().events().unwrap().len()
    }

    #[tokio::test]
    async fn writes_to_a_full_disk_are_retried_and_no_record_is_lost() {
        let Some(disk) = SmallDisk::mount() else { return };
        let state = disk.0.path().join("state");
        let journal = Journal::open(&state, &testing::run_file(vec![testing::stage("a", 2, 8, None, None)])).unwrap();
        let filler = disk.0.path().join("filler");
        std::fs::write(&filler, vec![1; 700 << 10]).unwrap();
        let (readiness, mut receiver) = watch::channel(Ok(()));
        let mut recorder = Recorder::start(journal, readiness);
        let detail = json!({ "reason": "x".repeat(100 << 10) });
        for _ in 0..5 {
            let record = Record::Event { kind: EventKind::Lost, detail: detail.clone() };
            recorder.write(record).await.unwrap();
        }
        receiver.wait_for(Result::is_err).await.unwrap();
        let reason = receiver.borrow().clone().unwrap_err().to_string();
        assert!(reason.contains("full") && reason.contains("free space"), "{reason}");
        std::fs::remove_file(filler).unwrap();
        tokio::time::timeout(Duration::from_secs(60), recorder.sync()).await.unwrap().unwrap();
        assert_eq!(count_events(&state), 5);
    }
}
