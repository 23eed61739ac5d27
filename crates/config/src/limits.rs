//! Maximal numbers and sizes of a data set's images and texts.
//!
//! The limits are far above any real data. The coordinator stores names, captions and embeddings
//! that workers send, so their sizes must be bounded. Coordinator, worker and `coordinator
//! validate` check them when they load the data, so a correct worker never exceeds them.

/// Maximal number of captions of an image, which are the references of an evaluation.
pub const MAX_CAPTIONS: usize = 1_000;
/// Maximal length of an image's name or a caption, in bytes.
pub const MAX_TEXT_BYTES: usize = 64 << 10;
/// Maximal number of images in the validation split.
pub const MAX_VALIDATION_IMAGES: u64 = 1 << 22;
/// Maximal dimension of an evaluator's embeddings.
pub const MAX_EMBEDDING_SIZE: usize = 1 << 16;
/// Maximal size of one evaluation's items in the coordinator's memory, in bytes; see
/// [`evaluation_item_bytes`].
pub const MAX_EVALUATION_BYTES: usize = 4 << 30;

/// The size in memory of an evaluation's item without its texts and embeddings, in bytes: the names
/// and values of all scores, and the struct itself.
const ITEM_OVERHEAD_BYTES: usize = 1 << 10;
/// The size of a text without its content, in bytes.
const TEXT_OVERHEAD_BYTES: usize = size_of::<String>();

/// The size of an evaluation's item in the coordinator's memory, in bytes. `text_bytes` are the
/// lengths of its texts, `embedding_values` is the number of values in its embeddings.
#[must_use]
pub fn evaluation_item_bytes(text_bytes: impl Iterator<Item = usize>, embedding_values: usize) -> usize {
    ITEM_OVERHEAD_BYTES
        + text_bytes.map(|bytes| TEXT_OVERHEAD_BYTES + bytes).sum::<usize>()
        + embedding_values * size_of::<f32>()
}
