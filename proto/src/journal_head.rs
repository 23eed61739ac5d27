//! The head of a journal as text.

use crate::v1;

impl std::fmt::Display for v1::JournalHead {
    /// `NUMBER:HASH`, as `coordinator audit --head` reads it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.sequence, self.hash)
    }
}
