//! Saves the captions of an evaluation as a file, then scores them. While they cannot be saved, the
//! run gets the reason, and waits.

use std::{path::PathBuf, sync::Arc, time::Duration};

use caption_metrics::Metrics;
use tokio::{sync::mpsc, time};
use tracing::warn;

use super::{captions, driver::Input, score};
use crate::run::{Event, captions::Item};

/// Interval between attempts to save captions.
const RETRY: Duration = Duration::from_secs(1);

/// The complete captions of an evaluation.
pub struct WrittenEvaluation {
    /// The number of the evaluation.
    pub evaluation: u64,
    /// All captions, by image name.
    pub items: Vec<Item>,
    /// The path of the file for them.
    pub path: PathBuf,
}

impl WrittenEvaluation {
    /// Saves and scores the captions, and sends the results to the driver.
    pub async fn examine(self, scoring: Arc<Metrics>, inputs: mpsc::Sender<Input>) {
        let Self { evaluation, items, path } = self;
        let items = Arc::new(items);
        let mut told = None;
        while let Err(reason) = save(path.clone(), Arc::clone(&items)).await {
            if told.as_ref() != Some(&reason) {
                tell(&inputs, Event::CaptionsSaved { evaluation, saved: Err(reason.clone()) }).await;
                told = Some(reason);
            }
            time::sleep(RETRY).await;
        }
        if told.is_some() {
            tell(&inputs, Event::CaptionsSaved { evaluation, saved: Ok(()) }).await;
        }
        let items = Arc::unwrap_or_clone(items);
        let scored = tokio::task::spawn_blocking(move || score::score(&scoring, items));
        let (metrics, items) = scored.await.unwrap_or_else(|panic| {
            // An evaluation without scores is better than a run that waits for ever.
            warn!(%panic, "an evaluation could not be scored");
            Default::default()
        });
        tell(&inputs, Event::Scored { evaluation, metrics, items }).await;
    }
}

/// Sends an event to the driver. Ignores failure: the coordinator is shutting down then.
async fn tell(inputs: &mpsc::Sender<Input>, event: Event) {
    _ = inputs.send(Input::Event(event)).await;
}

/// Saves captions. Fails with a message to people.
async fn save(path: PathBuf, items: Arc<Vec<Item>>) -> Result<(), String> {
    let saved = tokio::task::spawn_blocking(move || {
        captions::save(&path, &items).map_err(|error| format!("cannot save captions as {}: {error}", path.display()))
    });
    saved.await.unwrap_or_else(|panic| {
        warn!(%panic, "the captions of an evaluation could not be saved");
        Ok(())
    })
}
