//! Which part of the captioner a published tensor belongs to.

use crate::archive::Archive;
use crate::clip::names::{is_bookkeeping, vision_from_hugging_face};
use crate::renaming::Renamed;

/// What stands before the names of the vision tower.
pub const VISION_PREFIX: &str = "encoder.vision_encoder.";
/// The same where the tower was saved in its `CLIPVisionModel`.
pub const WRAPPED_VISION_PREFIX: &str = "encoder.vision_encoder.vision_model.";

/// The decoder's word embeddings.
pub const WORDS: &str = "decoder.transformer.wte.weight";
/// The decoder's projection to its vocabulary, tied to [`WORDS`].
pub const OUTPUT: &str = "decoder.lm_head.weight";

/// Part of the captioner.
pub enum Part {
    /// The vision tower, and what becomes of the tensor there.
    Vision(Renamed),
    /// Encoder or decoder, or unknown.
    Captioner,
    /// Nothing that is computed with.
    Unused,
}

/// What stands before the names of the vision tower in `archive`.
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

/// GPT-2 keeps its causal mask, and the number that stands for what is masked, in every block.
fn is_mask(name: &str) -> bool {
    let block = name.strip_prefix("decoder.transformer.h.").and_then(|rest| rest.split_once('.'));
    let masks = ["attn.bias", "attn.masked_bias", "crossattention.bias", "crossattention.masked_bias"];
    block.is_some_and(|(_, rest)| masks.contains(&rest))
}
