//! The names of a captioner's tensors in the upstream layout.

use crate::archive::Archive;
use crate::clip::names::{is_buffer, vision_from_hugging_face};
use crate::tensor_mapping::TensorTarget;

/// The prefix of the vision encoder's upstream names.
pub const VISION_PREFIX: &str = "encoder.vision_encoder.";
/// The prefix if the encoder was saved inside its `CLIPVisionModel`.
pub const WRAPPED_VISION_PREFIX: &str = "encoder.vision_encoder.vision_model.";

/// The decoder's word embeddings.
pub const WORD_EMBEDDINGS: &str = "decoder.transformer.wte.weight";
/// The decoder's projection to its vocabulary, tied to [`WORD_EMBEDDINGS`].
pub const LM_HEAD: &str = "decoder.lm_head.weight";

/// How a tensor of the upstream layout is used.
pub enum TensorRole {
    /// A parameter of the vision encoder, with its name in OpenAI's layout.
    Vision(TensorTarget),
    /// A parameter of encoder or decoder, or an unknown tensor.
    Captioner,
    /// Not used by any computation.
    Unused,
}

/// The prefix of the vision encoder's names in `archive`.
pub fn vision_prefix(archive: &Archive) -> &'static str {
    let is_wrapped = archive.names().any(|name| name.starts_with(WRAPPED_VISION_PREFIX));
    if is_wrapped { WRAPPED_VISION_PREFIX } else { VISION_PREFIX }
}

/// How the tensor `name` is used.
pub fn tensor_role(name: &str, vision_prefix: &str) -> TensorRole {
    if is_unused(name) {
        return TensorRole::Unused;
    }
    match name.strip_prefix(vision_prefix).and_then(vision_from_hugging_face) {
        Some(target) => TensorRole::Vision(target),
        None => TensorRole::Captioner,
    }
}

fn is_unused(name: &str) -> bool {
    let embeddings = ["word_embeddings.weight", "position_ids", "token_type_ids"];
    name == LM_HEAD
        || name.starts_with("encoder.encoder.pooler.")
        || name.strip_prefix("encoder.encoder.embeddings.").is_some_and(|rest| embeddings.contains(&rest))
        || (name.starts_with(VISION_PREFIX) && is_buffer(name))
        || is_mask(name)
}

/// Whether a tensor is a causal mask of a GPT-2 block, or the value of masked scores.
fn is_mask(name: &str) -> bool {
    let block = name.strip_prefix("decoder.transformer.h.").and_then(|rest| rest.split_once('.'));
    let masks = ["attn.bias", "attn.masked_bias", "crossattention.bias", "crossattention.masked_bias"];
    block.is_some_and(|(_, rest)| masks.contains(&rest))
}
