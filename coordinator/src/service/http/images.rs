//! Images of evaluations. A client names an evaluation and an index in it; the journal and the data
//! set's annotations determine the file.

use std::{
    collections::HashMap,
    fmt::Display,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
};

use axum::{
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
};
use config::Data;
use serde::Deserialize;
use tokio::sync::{OnceCell, Semaphore};
use tracing::warn;

use super::{AppState, Problem, limits::QueryParameters, records};

/// Maximal size of an image that is served, in bytes.
const MAX_BYTES: u64 = 16 << 20;
/// Maximal number of images that are read at a time.
const AT_ONCE: usize = 4;

/// Finds and reads the images of the validation split.
pub struct Pictures {
    data: Data,
    /// Paths by image name. Read on the first request, because annotations can be large.
    files: OnceCell<HashMap<String, PathBuf>>,
    places: Semaphore,
}

/// The query parameters of the request.
#[derive(Deserialize)]
pub struct ImageQuery {
    evaluation: String,
    index: u32,
}

impl Pictures {
    /// The images of this data set.
    pub fn new(data: Data) -> Self {
        Self { data, files: OnceCell::new(), places: Semaphore::new(AT_ONCE) }
    }

    /// The media type and the bytes of an image.
    async fn read(&self, name: &str) -> Result<(&'static str, Vec<u8>), String> {
        let _place = self.places.acquire().await.map_err(|error| error.to_string())?;
        let files = self.files.get_or_init(|| index(self.data.clone())).await;
        let path = files.get(name).ok_or("it is not in a folder that this coordinator sees")?.clone();
        let bytes = tokio::task::spawn_blocking(move || bounded(&path)).await;
        let bytes = bytes.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
        Ok((kind(&bytes).ok_or("it is neither JPEG nor PNG nor WebP")?, bytes))
    }
}

/// The paths of the images by name; empty if the annotations cannot be read, which is logged once.
async fn index(data: Data) -> HashMap<String, PathBuf> {
    let said = |error: &dyn Display| warn!(%error, "images of evaluations cannot be shown");
    match tokio::task::spawn_blocking(move || dataset::validation_files(&data)).await {
        Ok(Ok(files)) => return files,
        Ok(Err(error)) => said(&error),
        Err(panic) => said(&panic),
    }
    HashMap::new()
}

fn bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(io::Error::other(format!("it has more than {MAX_BYTES} bytes")));
    }
    Ok(bytes)
}

/// The media type by the first bytes. Formats that can contain scripts are not accepted.
fn kind(bytes: &[u8]) -> Option<&'static str> {
    match bytes {
        [0xff, 0xd8, 0xff, ..] => Some("image/jpeg"),
        [0x89, b'P', b'N', b'G', ..] => Some("image/png"),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Some("image/webp"),
        _ => None,
    }
}

/// `GET /api/image`.
pub async fn answer(
    State(desk): State<Arc<AppState>>,
    QueryParameters(asked): QueryParameters<ImageQuery>,
) -> Result<impl IntoResponse, Problem> {
    let absent = |why: String| Problem::new(StatusCode::NOT_FOUND, why);
    let evaluation = records::evaluation(&asked.evaluation)?;
    let name = desk.journal.ask(move |history| history.image(evaluation, asked.index.into())).await?;
    let name = name.ok_or_else(|| absent("the evaluation has no such image".into()))?;
    let (kind, bytes) = desk.pictures.read(&name).await.map_err(|why| absent(format!("{name}: {why}")))?;
    // Cacheable: an evaluation does not change.
    Ok(([(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "private, max-age=3600")], bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_browser_would_run_is_an_image() {
        for text in ["<svg xmlns=\"http://www.w3.org/2000/svg\"><script/></svg>", "<html>", "RIFF", ""] {
            assert_eq!(kind(text.as_bytes()), None, "{text}");
        }
        assert_eq!(kind(b"RIFF\x10\0\0\0WEBPVP8 "), Some("image/webp"));
    }

    #[test]
    fn a_file_that_is_too_large_is_not_read() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(MAX_BYTES + 1).unwrap();
        assert!(bounded(file.path()).unwrap_err().to_string().contains("more than"));
    }
}
