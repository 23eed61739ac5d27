/// Maximal length of an error message of a store, in characters; the rest is cut off.
const MAX_MESSAGE_CHARS: usize = 400;

/// A location that cannot be parsed.
#[derive(Debug, thiserror::Error)]
#[error("{location}: {problem}")]
pub struct LocationError {
    /// The path or URL.
    pub location: String,
    /// The problem with it.
    pub problem: String,
}

/// The message of a store's error in one line, with a remedy if there is one.
#[must_use]
pub fn describe_error(error: &object_store::Error) -> String {
    use object_store::Error as StoreError;
    let message = match error {
        StoreError::NotFound { .. } => return "not found".to_owned(),
        StoreError::PermissionDenied { .. } => {
            return "access denied (403): check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket's policy"
                .to_owned();
        }
        StoreError::Unauthenticated { .. } => {
            return "not authenticated (401): check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY".to_owned();
        }
        StoreError::Generic { source, .. } => source.to_string(),
        other => other.to_string(),
    };
    let words: Vec<&str> = message.split_whitespace().collect();
    words.join(" ").chars().take(MAX_MESSAGE_CHARS).collect()
}
