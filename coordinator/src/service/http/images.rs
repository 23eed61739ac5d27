//! Images of evaluations. A client names an evaluation and the index of an image in it. The journal
//! gives the image's name.

use std::sync::Arc;

use axum::{
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
};
use serde::Deserialize;

use super::{app_state::AppState, error::HttpError, limits::QueryParameters, records};

/// The query parameters of `GET /api/image`.
#[derive(Deserialize)]
pub struct ImageQuery {
    evaluation: String,
    index: u32,
}

/// `GET /api/image`.
pub async fn image(
    State(app_state): State<Arc<AppState>>,
    QueryParameters(query): QueryParameters<ImageQuery>,
) -> Result<impl IntoResponse, HttpError> {
    let not_found = |message: String| HttpError::new(StatusCode::NOT_FOUND, message);
    let evaluation = records::parse_evaluation_id(&query.evaluation)?;
    let name = app_state.journal.query(move |journal| journal.image_name(evaluation, query.index.into())).await?;
    let name = name.ok_or_else(|| not_found("the evaluation has no image of this index".into()))?;
    let (media_type, bytes) =
        app_state.images.read(&name).await.map_err(|error| not_found(format!("{name}: {error}")))?;
    // The browser may cache the image, because an evaluation does not change.
    Ok(([(header::CONTENT_TYPE, media_type), (header::CACHE_CONTROL, "private, max-age=3600")], bytes))
}
