//! The thread that writes the journal, so that nobody waits for the disk who need not.

use tokio::sync::{mpsc, oneshot};

use crate::{
    journal::{Error, Journal},
    run::record::Record,
};

/// Records that may wait for the disk; beyond that the driver waits.
const WAITING_RECORDS: usize = 8192;
/// Records in one transaction at most.
const BATCH: usize = 1024;

enum Order {
    Write(Box<Record>),
    /// Answer when everything before is on disk.
    Sync(oneshot::Sender<()>),
}

/// The way to the journal.
pub struct Recorder {
    orders: mpsc::Sender<Order>,
    thread: Option<std::thread::JoinHandle<Result<(), Error>>>,
}

impl Recorder {
    /// Starts the thread.
    pub fn start(journal: Journal) -> Self {
        let (orders, waiting) = mpsc::channel(WAITING_RECORDS);
        Self { orders, thread: Some(std::thread::spawn(move || write(journal, waiting))) }
    }

    /// Writes a record some time soon, after all before it.
    pub async fn write(&mut self, record: Record) -> Result<(), Error> {
        match self.orders.send(Order::Write(Box::new(record))).await {
            Ok(()) => Ok(()),
            Err(_) => self.broken(),
        }
    }

    /// Waits until all records are on disk.
    pub async fn sync(&mut self) -> Result<(), Error> {
        let (answer, answered) = oneshot::channel();
        if self.orders.send(Order::Sync(answer)).await.is_err() || answered.await.is_err() {
            return self.broken();
        }
        Ok(())
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
            // Ended before; what for was said then.
            Ok(None) | Err(_) => Ok(()),
        }
    }

    /// Why the thread ended; it only does so by itself when it could not write.
    fn broken(&mut self) -> Result<(), Error> {
        match self.thread.take().map(std::thread::JoinHandle::join) {
            Some(Ok(result)) => result,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => Ok(()),
        }
    }
}

fn write(mut journal: Journal, mut waiting: mpsc::Receiver<Order>) -> Result<(), Error> {
    let mut orders = Vec::new();
    while waiting.blocking_recv_many(&mut orders, BATCH) > 0 {
        let (mut records, mut answers) = (Vec::new(), Vec::new());
        for order in orders.drain(..) {
            match order {
                Order::Write(record) => records.push(*record),
                Order::Sync(answer) => answers.push(answer),
            }
        }
        if !records.is_empty() {
            journal.write(&records)?;
        }
        // Who no longer waits needs no answer.
        answers.into_iter().for_each(|answer| _ = answer.send(()));
    }
    Ok(())
}
