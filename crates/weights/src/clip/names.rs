//! The names of CLIP's tensors in Hugging Face's layout and in OpenAI's.

use crate::tensor_mapping::TensorTarget;

/// Names of the vision encoder outside its blocks: Hugging Face's below `vision_model.`, OpenAI's
/// below `visual.`.
const VISION: [(&str, &str); 7] = [
    ("embeddings.class_embedding", "class_embedding"),
    ("embeddings.patch_embedding.weight", "conv1.weight"),
    ("embeddings.position_embedding.weight", "positional_embedding"),
    // The spelling is Hugging Face's.
    ("pre_layrnorm.weight", "ln_pre.weight"),
    ("pre_layrnorm.bias", "ln_pre.bias"),
    ("post_layernorm.weight", "ln_post.weight"),
    ("post_layernorm.bias", "ln_post.bias"),
];

/// Names of the text encoder outside its blocks: Hugging Face's below `text_model.`, OpenAI's at
/// the top.
const TEXT: [(&str, &str); 4] = [
    ("embeddings.token_embedding.weight", "token_embedding.weight"),
    ("embeddings.position_embedding.weight", "positional_embedding"),
    ("final_layer_norm.weight", "ln_final.weight"),
    ("final_layer_norm.bias", "ln_final.bias"),
];

/// Modules of a block of either encoder, except for the attention projections.
const BLOCK: [(&str, &str); 5] = [
    ("layer_norm1", "ln_1"),
    ("self_attn.out_proj", "attn.out_proj"),
    ("layer_norm2", "ln_2"),
    ("mlp.fc1", "mlp.c_fc"),
    ("mlp.fc2", "mlp.c_proj"),
];

/// The projections that OpenAI stacks in one tensor, in this order.
const PROJECTIONS: [&str; 3] = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"];

/// Buffers and other tensors that are not parameters, by the last component of their names.
const BUFFERS: [&str; 6] =
    ["position_ids", "num_batches_tracked", "input_resolution", "context_length", "vocab_size", "attn_mask"];

/// Whether a tensor is not a parameter.
pub(crate) fn is_buffer(name: &str) -> bool {
    BUFFERS.contains(&name.rsplit('.').next().unwrap_or(name))
}

/// Removes the prefix that OpenCLIP adds to the text encoder of some models (`CustomTextCLIP`).
pub(super) fn from_open_clip(name: &str) -> &str {
    name.strip_prefix("text.").unwrap_or(name)
}

/// The target of a tensor of Hugging Face's `CLIPModel`; an unknown tensor keeps its name.
pub(super) fn from_hugging_face(name: &str) -> TensorTarget {
    if is_buffer(name) {
        return TensorTarget::Dropped;
    }
    let target = match name {
        "visual_projection.weight" => Some(TensorTarget::Transposed("visual.proj".to_owned())),
        "text_projection.weight" => Some(TensorTarget::Transposed("text_projection".to_owned())),
        _ => name
            .strip_prefix("vision_model.")
            .and_then(vision_from_hugging_face)
            .or_else(|| name.strip_prefix("text_model.").and_then(text_from_hugging_face)),
    };
    target.unwrap_or_else(|| TensorTarget::Renamed(name.to_owned()))
}

/// The target of a tensor of Hugging Face's `CLIPVisionTransformer`; none if the tensor is unknown.
pub(crate) fn vision_from_hugging_face(name: &str) -> Option<TensorTarget> {
    match VISION.iter().find(|(hugging_face, _)| *hugging_face == name) {
        Some((_, openai)) => Some(TensorTarget::Renamed(format!("visual.{openai}"))),
        None => block_from_hugging_face(name, "visual.transformer.resblocks"),
    }
}

fn text_from_hugging_face(name: &str) -> Option<TensorTarget> {
    match TEXT.iter().find(|(hugging_face, _)| *hugging_face == name) {
        Some((_, openai)) => Some(TensorTarget::Renamed((*openai).to_owned())),
        None => block_from_hugging_face(name, "transformer.resblocks"),
    }
}

fn block_from_hugging_face(name: &str, blocks: &str) -> Option<TensorTarget> {
    let (number, rest) = name.strip_prefix("encoder.layers.")?.split_once('.')?;
    let (module, kind) = rest.rsplit_once('.')?;
    if !matches!(kind, "weight" | "bias") {
        return None;
    }
    if let Some(part) = PROJECTIONS.iter().position(|projection| *projection == module) {
        return Some(TensorTarget::StackedPart(format!("{blocks}.{number}.attn.in_proj_{kind}"), part));
    }
    let (_, openai) = BLOCK.iter().find(|(hugging_face, _)| *hugging_face == module)?;
    Some(TensorTarget::Renamed(format!("{blocks}.{number}.{openai}.{kind}")))
}

/// The names in Hugging Face's layout for a tensor of OpenAI's vision transformer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum HuggingFaceNames {
    /// The name of one tensor.
    Single(String),
    /// The names of the query, key and value projections, each a third of the rows.
    QueryKeyValue([String; 3]),
}

/// The inverse of [`vision_from_hugging_face`]; none if Hugging Face's vision transformer has no
/// such tensor.
pub(crate) fn vision_to_hugging_face(name: &str) -> Option<HuggingFaceNames> {
    let name = name.strip_prefix("visual.")?;
    if let Some((hugging_face, _)) = VISION.iter().find(|(_, openai)| *openai == name) {
        return Some(HuggingFaceNames::Single((*hugging_face).to_owned()));
    }
    let (number, rest) = name.strip_prefix("transformer.resblocks.")?.split_once('.')?;
    let block = format!("encoder.layers.{number}");
    if let Some(kind @ ("weight" | "bias")) = rest.strip_prefix("attn.in_proj_") {
        return Some(HuggingFaceNames::QueryKeyValue(
            PROJECTIONS.map(|projection| format!("{block}.{projection}.{kind}")),
        ));
    }
    let (module, kind) = rest.rsplit_once('.').filter(|(_, kind)| matches!(*kind, "weight" | "bias"))?;
    let (hugging_face, _) = BLOCK.iter().find(|(_, openai)| *openai == module)?;
    Some(HuggingFaceNames::Single(format!("{block}.{hugging_face}.{kind}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unchanged_after_conversion_to_hugging_face_and_back() {
        let block = ["ln_1.weight", "attn.out_proj.bias", "ln_2.bias", "mlp.c_fc.weight", "mlp.c_proj.weight"];
        let names = block.map(|name| format!("visual.transformer.resblocks.11.{name}")).into_iter();
        for name in names.chain(VISION.iter().map(|(_, openai)| format!("visual.{openai}"))) {
            let Some(HuggingFaceNames::Single(converted)) = vision_to_hugging_face(&name) else {
                panic!("{name} has no name in Hugging Face's layout")
            };
            assert_eq!(vision_from_hugging_face(&converted), Some(TensorTarget::Renamed(name)));
        }
        let stacked = "visual.transformer.resblocks.3.attn.in_proj_bias".to_owned();
        let Some(HuggingFaceNames::QueryKeyValue(parts)) = vision_to_hugging_face(&stacked) else {
            panic!("{stacked} is not split")
        };
        for (number, part) in parts.iter().enumerate() {
            assert_eq!(vision_from_hugging_face(part), Some(TensorTarget::StackedPart(stacked.clone(), number)));
        }
    }

    #[test]
    fn unknown_tensors_keep_their_names() {
        for name in ["vision_model.encoder.layers.0.gate.weight", "vision_model.encoder.layers.0", "x", "text_model."] {
            assert_eq!(from_hugging_face(name), TensorTarget::Renamed(name.to_owned()));
        }
        assert_eq!(vision_to_hugging_face("visual.proj"), None);
        assert_eq!(vision_to_hugging_face("visual.transformer.resblocks.0.attn.in_proj_scale"), None);
        assert_eq!(from_hugging_face("text_model.embeddings.position_ids"), TensorTarget::Dropped);
    }
}
