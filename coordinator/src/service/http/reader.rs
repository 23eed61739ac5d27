//! Read access to the journal for HTTP handlers: a few concurrent queries on blocking threads,
//! beside the writer.

use std::path::PathBuf;

use axum::http::StatusCode;
use tokio::sync::Semaphore;

use super::Problem;
use crate::journal::{Error, history::History};

/// Maximal number of concurrent queries; others wait.
const AT_ONCE: usize = 4;

/// Runs queries on the journal.
pub struct Reader {
    state: PathBuf,
    places: Semaphore,
}

impl Reader {
    /// A reader of the journal in the folder `state`.
    pub fn new(state: PathBuf) -> Self {
        Self { state, places: Semaphore::new(AT_ONCE) }
    }

    /// Runs a query. Fails if the journal cannot be read.
    pub async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&History) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Problem> {
        let unread = |why: String| Problem::new(StatusCode::SERVICE_UNAVAILABLE, why);
        let _place = self.places.acquire().await.map_err(|error| unread(error.to_string()))?;
        let state = self.state.clone();
        let answer = tokio::task::spawn_blocking(move || question(&History::open(&state)?)).await;
        answer.map_err(|error| unread(error.to_string()))?.map_err(|error| unread(error.to_string()))
    }
}
