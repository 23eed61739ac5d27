//! The journal as those who look at the run read it: beside its writer, a few at once, on threads that may block.

use std::path::PathBuf;

use axum::http::StatusCode;
use tokio::sync::Semaphore;

use super::Problem;
use crate::journal::{Error, history::History};

/// Questions that are read at once; others wait.
const AT_ONCE: usize = 4;

/// The way to the journal for those who only read.
pub struct Reader {
    state: PathBuf,
    places: Semaphore,
}

impl Reader {
    /// Of the journal in the folder `state`.
    pub fn new(state: PathBuf) -> Self {
        Self { state, places: Semaphore::new(AT_ONCE) }
    }

    /// Asks the journal.
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
