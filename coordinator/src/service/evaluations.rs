//! Saves the captions of an evaluation as a file, then scores them. While the captions cannot be
//! saved, the run is paused, and its status has the reason.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use caption_metrics::Metrics;
use dico_engine::Event;
use tokio::{sync::mpsc, time};
use tracing::warn;

use crate::captions::EvaluationItem;

use super::{caption_files::write_captions, caption_scores::score_captions, driver_input::DriverInput};

/// Interval between attempts to save captions.
const SAVE_RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// The complete captions of an evaluation.
pub struct CompletedEvaluation {
    /// The number of the evaluation.
    pub evaluation: u64,
    /// All captions, sorted by image name.
    pub items: Vec<EvaluationItem>,
    /// The path of the file for the captions.
    pub path: PathBuf,
}

impl CompletedEvaluation {
    /// Saves and scores the captions, and sends the results to the driver.
    pub async fn save_and_score(self, scoring: Arc<Metrics>, inputs: mpsc::Sender<DriverInput>) {
        let Self { evaluation, items, path } = self;
        let items = Arc::new(items);
        // The reason that was sent to the run. It is sent again only when it changes.
        let mut reported_reason = None;
        while let Err(error) = save_captions(path.clone(), Arc::clone(&items)).await {
            let reason = error.to_string();
            if reported_reason.as_ref() != Some(&reason) {
                send_event(&inputs, Event::CaptionSaveAttempted { evaluation, error: Some(reason.clone()) }).await;
                reported_reason = Some(reason);
            }
            time::sleep(SAVE_RETRY_INTERVAL).await;
        }
        if reported_reason.is_some() {
            send_event(&inputs, Event::CaptionSaveAttempted { evaluation, error: None }).await;
        }
        let items = Arc::unwrap_or_clone(items);
        let scored = tokio::task::spawn_blocking(move || score_captions(&scoring, items));
        let (metrics, captions) = scored.await.unwrap_or_else(|panic| {
            // Without a result the run would wait for ever.
            warn!(%panic, "cannot score an evaluation: it is recorded without scores");
            Default::default()
        });
        // Fails while the coordinator is shutting down.
        _ = inputs.send(DriverInput::Scored { evaluation, metrics, captions }).await;
    }
}

/// Sends an event to the driver. Ignores a failure, because the coordinator is shutting down then.
async fn send_event(inputs: &mpsc::Sender<DriverInput>, event: Event) {
    _ = inputs.send(DriverInput::Event(event)).await;
}

/// The captions of an evaluation cannot be saved.
#[derive(Debug, thiserror::Error)]
#[error("cannot save captions as {}: {source}", path.display())]
struct SaveCaptionsError {
    path: PathBuf,
    source: io::Error,
}

async fn save_captions(path: PathBuf, items: Arc<Vec<EvaluationItem>>) -> Result<(), SaveCaptionsError> {
    let saved = tokio::task::spawn_blocking(move || {
        write_captions(&path, &items).map_err(|source| SaveCaptionsError { path, source })
    });
    saved.await.unwrap_or_else(|panic| {
        // A retry would panic again: the run continues without the file.
        warn!(%panic, "cannot save the captions of an evaluation");
        Ok(())
    })
}
