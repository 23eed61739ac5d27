//! The state that all handlers of HTTP requests share.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use config::RunFile;
use dico_engine::Outcome;
use tokio::sync::mpsc;

use super::{curves::Curves, image_files::Images, journal_reader::JournalReader, viewers::Viewers};
use crate::service::{auth::Tokens, driver_input::DriverInput, refusals::Refusals};

/// The state that all handlers share.
pub struct AppState {
    pub(super) file: Arc<RunFile>,
    /// The driver's input channel.
    pub(super) driver: mpsc::Sender<DriverInput>,
    pub(super) tokens: Arc<Tokens>,
    pub(super) refusals: Refusals,
    pub(super) journal: JournalReader,
    /// The curves of all stages, as of the last update.
    curves: Mutex<Curves>,
    pub(super) images: Images,
    /// The open web pages.
    pub(super) viewers: Viewers,
}

impl AppState {
    /// The state for the run of a run file, whose journal is in `journal_folder`.
    pub fn new(
        file: RunFile,
        journal_folder: std::path::PathBuf,
        driver: mpsc::Sender<DriverInput>,
        tokens: Arc<Tokens>,
        refusals: Refusals,
    ) -> Self {
        // The version of the curves counts up from the time of the start. So it differs from the
        // versions of earlier coordinators, which started earlier.
        let curves_version = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
        Self {
            images: Images::new(file.data.clone()),
            file: Arc::new(file),
            driver,
            tokens,
            refusals,
            journal: JournalReader::new(journal_folder),
            curves: Mutex::new(Curves::new(curves_version)),
            viewers: Viewers::default(),
        }
    }

    /// The curves, locked.
    pub(super) fn curves(&self) -> MutexGuard<'_, Curves> {
        self.curves.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends the outcome of the coordinator process to all viewers.
    pub fn send_outcome(&self, outcome: &Outcome) {
        self.viewers.send_outcome(outcome);
    }
}
