//! Limits of a request, and extractors that refuse a request with a JSON error.
//!
//! | part | limit | if it is exceeded |
//! |---|---|---|
//! | headers, and the pause between two requests | 30 s, see [`server`](super::server) | the connection is closed |
//! | body | [`BODY_TIMEOUT`], [`MAX_BODY_BYTES`] | 408, 413 |
//! | time until the response begins | [`RESPONSE_TIMEOUT`] | 503 |
//! | a response that the client does not read | 30 s, see [`write_timeout`](super::write_timeout) | the connection is closed |

use std::time::Duration;

use axum::{
    body::Bytes,
    extract::{FromRequest, FromRequestParts, Query, Request},
    http::{StatusCode, request::Parts},
    middleware::Next,
    response::{IntoResponse, Response},
};
use serde::de::DeserializeOwned;
use tokio::time;

use super::error::HttpError;

/// Maximal size of a request's body, in bytes. The longest valid body is that of `drain`, which has
/// a worker id.
pub const MAX_BODY_BYTES: usize = 1 << 10;
/// How long the body of a request may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a request, with its body, may take until its response begins.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);

/// Middleware that ends a request whose response does not begin in time. The duration of the
/// response has no limit, because streams do not end.
pub async fn limit_response_time(request: Request, next: Next) -> Response {
    time::timeout(RESPONSE_TIMEOUT, next.run(request)).await.unwrap_or_else(|_| {
        let seconds = RESPONSE_TIMEOUT.as_secs();
        let message = format!("the coordinator did not answer within {seconds} s: see /readyz, and try again");
        HttpError::new(StatusCode::SERVICE_UNAVAILABLE, message).into_response()
    })
}

/// The body of a request, which is at most [`MAX_BODY_BYTES`] long and arrives within
/// [`BODY_TIMEOUT`].
pub struct RequestBody(pub Bytes);

impl<S: Send + Sync> FromRequest<S> for RequestBody {
    type Rejection = HttpError;

    async fn from_request(request: Request, state: &S) -> Result<Self, HttpError> {
        let message = match time::timeout(BODY_TIMEOUT, Bytes::from_request(request, state)).await {
            Ok(Ok(bytes)) => return Ok(Self(bytes)),
            Ok(Err(rejection)) if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE => {
                let message = format!("the body of a request has at most {MAX_BODY_BYTES} bytes");
                return Err(HttpError::new(StatusCode::PAYLOAD_TOO_LARGE, message));
            }
            Ok(Err(rejection)) => return Err(HttpError::new(rejection.status(), rejection.body_text())),
            Err(_) => format!("the body of the request did not arrive within {} s", BODY_TIMEOUT.as_secs()),
        };
        Err(HttpError::new(StatusCode::REQUEST_TIMEOUT, message))
    }
}

/// The query parameters of a request.
pub struct QueryParameters<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for QueryParameters<T> {
    type Rejection = HttpError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, HttpError> {
        let parameters = Query::<T>::from_request_parts(parts, state).await;
        parameters
            .map(|Query(parameters)| Self(parameters))
            .map_err(|rejection| HttpError::new(rejection.status(), rejection.body_text()))
    }
}
