//! The names of CLIP's tensors in Hugging Face's layout and in OpenAI's.

use crate::renaming::Renamed;

/// Names of the vision encoder outside its blocks: Hugging Face's below `vision_model.`, OpenAI's
/// below `visual.`.
const VISION: [(&str, &str); 7] = [
    ("embeddings.class_embedding", "class_embedding"),
    ("embeddings.patch_embedding.weight", "conv1.weight"),
    ("embeddings.position_embedding.weight", "positional_embedding"),
    // Sic, in Hugging Face's layout.
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

/// Projections that OpenAI stores in one tensor, in their order in it.
const PROJECTIONS: [&str; 3] = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"];

/// Non-parameters that files contain, by the last part of their names.
const BOOKKEEPING: [&str; 6] =
    ["position_ids", "num_batches_tracked", "input_resolution", "context_length", "vocab_size", "attn_mask"];

/// Whether a tensor is not a parameter.
pub(crate) fn is_bookkeeping(name: &str) -> bool {
    BOOKKEEPING.contains(&name.rsplit('.').next().unwrap_or(name))
}

/// Removes the prefix that OpenCLIP adds to the text encoder of some models (`CustomTextCLIP`).
pub(super) fn from_open_clip(name: &str) -> &str {
    name.strip_prefix("text.").unwrap_or(name)
}

/// The renaming of a tensor of Hugging Face's `CLIPModel`; an unknown one keeps its name.
pub(super) fn from_hugging_face(name: &str) -> Renamed {
    if is_bookkeeping(name) {
        return Renamed::Dropped;
    }
    let renamed = match name {
        "visual_projection.weight" => Some(Renamed::Transposed("visual.proj".to_owned())),
        "text_projection.weight" => Some(Renamed::Transposed("text_projection".to_owned())),
        _ => name
            .strip_prefix("vision_model.")
            .and_then(vision_from_hugging_face)
            .or_else(|| name.strip_prefix("text_model.").and_then(text_from_hugging_face)),
    };
    renamed.unwrap_or_else(|| Renamed::Whole(name.to_owned()))
}

/// The renaming of a tensor of Hugging Face's `CLIPVisionTransformer`; none if it is not one of
/// these.
pub(crate) fn vision_from_hugging_face(name: &str) -> Option<Renamed> {
    match VISION.iter().find(|(theirs, _)| *theirs == name) {
        Some((_, ours)) => Some(Renamed::Whole(format!("visual.{ours}"))),
        None => block_from_hugging_face(name, "visual.transformer.resblocks"),
    }
}

fn text_from_hugging_face(name: &str) -> Option<Renamed> {
    match TEXT.iter().find(|(theirs, _)| *theirs == name) {
        Some((_, ours)) => Some(Renamed::Whole((*ours).to_owned())),
        None => block_from_hugging_face(name, "transformer.resblocks"),
    }
}

fn block_from_hugging_face(name: &str, blocks: &str) -> Option<Renamed> {
    let (number, rest) = name.strip_prefix("encoder.layers.")?.split_once('.')?;
    let (module, kind) = rest.rsplit_once('.')?;
    if !matches!(kind, "weight" | "bias") {
        return None;
    }
    if let Some(part) = PROJECTIONS.iter().position(|projection| *projection == module) {
        return Some(Renamed::Third(format!("{blocks}.{number}.attn.in_proj_{kind}"), part));
    }
    let (_, ours) = BLOCK.iter().find(|(theirs, _)| *theirs == module)?;
    Some(Renamed::Whole(format!("{blocks}.{number}.{ours}.{kind}")))
}

/// The names in Hugging Face's layout for a tensor of OpenAI's vision transformer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Returned {
    /// One tensor of this name.
    Whole(String),
    /// Three tensors of these names, each a third of the rows.
    Thirds([String; 3]),
}

/// The inverse of [`vision_from_hugging_face`].
pub(crate) fn vision_to_hugging_face(name: &str) -> Option<Returned> {
    let name = name.strip_prefix("visual.")?;
    if let Some((theirs, _)) = VISION.iter().find(|(_, ours)| *ours == name) {
        return Some(Returned::Whole((*theirs).to_owned()));
    }
    let (number, rest) = name.strip_prefix("transformer.resblocks.")?.split_once('.')?;
    let block = format!("encoder.layers.{number}");
    if let Some(kind @ ("weight" | "bias")) = rest.strip_prefix("attn.in_proj_") {
        return Some(Returned::Thirds(PROJECTIONS.map(|projection| format!("{block}.{projection}.{kind}"))));
    }
    let (module, kind) = rest.rsplit_once('.').filter(|(_, kind)| matches!(*kind, "weight" | "bias"))?;
    let (theirs, _) = BLOCK.iter().find(|(_, ours)| *ours == module)?;
    Some(Returned::Whole(format!("{block}.{theirs}.{kind}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn going_to_hugging_face_and_back_changes_nothing() {
        let block = ["ln_1.weight", "attn.out_proj.bias", "ln_2.bias", "mlp.c_fc.weight", "mlp.c_proj.weight"];
        let names = block.map(|name| format!("visual.transformer.resblocks.11.{name}")).into_iter();
        for name in names.chain(VISION.iter().map(|(_, ours)| format!("visual.{ours}"))) {
            let Some(Returned::Whole(there)) = vision_to_hugging_face(&name) else {
                panic!("{name} has no name there")
            };
            assert_eq!(vision_from_hugging_face(&there), Some(Renamed::Whole(name)));
        }
        let joined = "visual.transformer.resblocks.3.attn.in_proj_bias".to_owned();
        let Some(Returned::Thirds(parts)) = vision_to_hugging_face(&joined) else { panic!("it is not taken apart") };
        for (number, part) in parts.iter().enumerate() {
            assert_eq!(vision_from_hugging_face(part), Some(Renamed::Third(joined.clone(), number)));
        }
    }

    #[test]
    fn what_is_unknown_keeps_its_name() {
        for name in ["vision_model.encoder.layers.0.gate.weight", "vision_model.encoder.layers.0", "x", "text_model."] {
            assert_eq!(from_hugging_face(name), Renamed::Whole(name.to_owned()));
        }
        assert_eq!(vision_to_hugging_face("visual.proj"), None);
        assert_eq!(vision_to_hugging_face("visual.transformer.resblocks.0.attn.in_proj_scale"), None);
        assert_eq!(from_hugging_face("text_model.embeddings.position_ids"), Renamed::Dropped);
    }
}
