//! Read access to the journal for HTTP handlers. Queries run on blocking threads, independently of
//! the recorder, which writes.

use std::path::PathBuf;

use axum::http::StatusCode;
use journal::{Error, ReadOnlyJournal};
use tokio::sync::Semaphore;

use super::error::HttpError;

/// Maximal number of concurrent queries. Further queries wait.
const MAX_CONCURRENT_QUERIES: usize = 4;

/// Runs queries on the journal.
pub struct JournalReader {
    journal_folder: PathBuf,
    /// Limits the number of concurrent queries.
    permits: Semaphore,
}

impl JournalReader {
    /// A reader of the journal in this folder.
    pub fn new(journal_folder: PathBuf) -> Self {
        Self { journal_folder, permits: Semaphore::new(MAX_CONCURRENT_QUERIES) }
    }

    /// Runs a query.
    ///
    /// # Errors
    /// The journal cannot be read.
    pub async fn query<T: Send + 'static>(
        &self,
        query: impl FnOnce(&ReadOnlyJournal) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, HttpError> {
        let unavailable = |message: String| HttpError::new(StatusCode::SERVICE_UNAVAILABLE, message);
        let _permit = self.permits.acquire().await.map_err(|error| unavailable(error.to_string()))?;
        let folder = self.journal_folder.clone();
        let result = tokio::task::spawn_blocking(move || query(&ReadOnlyJournal::open(&folder)?)).await;
        result.map_err(|error| unavailable(error.to_string()))?.map_err(|error| unavailable(error.to_string()))
    }
}
