//! The part of the captioner that a published tensor belongs to.

use crate::archive::Archive;
use crate::clip::names::{is_bookkeeping, vision_from_hugging_face};
use crate::renaming::Renamed;

/// The prefix of the vision encoder's names.
pub const VISION_PREFIX: &str = "encoder.vision_encoder.";
/// The prefix if the encoder was saved inside its `CLIPVisionModel`.
pub const WRAPPED_VISION_PREFIX: &str = "encoder.vision_encoder.vision_model.";

/// The decoder's word embeddings.
pub const WORDS: &str = "decoder.transformer.wte.weight";
/// The decoder's projection to its vocabulary, tied to [`WORDS`].
pub const OUTPUT: &str = "decoder.lm_head.weight";

/// A part of the captioner.
pub enum Part {
    /// The vision encoder, with the new name of the tensor.
    Vision(Renamed),
    /// Encoder or decoder, or unknown.
    Captioner,
    /// Not used by any computation.
    Unused,
}

/// The prefix of the vision encoder's names in `archive`.
pub fn vision_prefix(archive: &Archive) -> &'static str {
    let wrapped = archive.names().any(|name| name.starts_with(WRAPPED_VISION_PREFIX));
    if wrapped { WRAPPED_VISION_PREFIX } else { VISION_PREFIX }
}

/// The part that a tensor belongs to.
pub fn part(name: &str, vision_prefix: &str) -> Part {
    if is_unused(name) {
        return Part::Unused;
    }
    match name.strip_prefix(vision_prefix).and_then(vision_from_hugging_face) {
        Some(renamed) => Part::Vision(renamed),
        None => Part::Captioner,
    }
}

fn is_unused(name: &str) -> bool {
    let embeddings = ["word_embeddings.weight", "position_ids", "token_type_ids"];
    name == OUTPUT
        || name.starts_with("encoder.encoder.pooler.")
        || name.strip_prefix("encoder.encoder.embeddings.").is_some_and(|rest| embeddings.contains(&rest))
        || (name.starts_with(VISION_PREFIX) && is_bookkeeping(name))
        || is_mask(name)
}

/// Whether a tensor is a causal mask of GPT-2, or the value of masked scores, which each block has.
fn is_mask(name: &str) -> bool {
    let block = name.strip_prefix("decoder.transformer.h.").and_then(|rest| rest.split_once('.'));
    let masks = ["attn.bias", "attn.masked_bias", "crossattention.bias", "crossattention.masked_bias"];
    block.is_some_and(|(_, rest)| masks.contains(&rest))
}
