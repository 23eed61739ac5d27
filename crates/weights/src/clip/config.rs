//! Configuration files beside weights: `open_clip_config.json` in OpenCLIP's format, `config.json`
//! and `preprocessor_config.json` in transformers' format.
//!
//! Settings for computations that this project does not implement are refused by name.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::Layout;
use super::architecture::{Architecture, Vision};
use super::conventions::{Activation, Conventions, Normalization};
use crate::error::Error;
use crate::file::read_json;
use crate::settings::Section;

const OPEN_CLIP: &str = "open_clip_config.json";
const HUGGING_FACE: &str = "config.json";
pub(crate) const PREPROCESSOR: &str = "preprocessor_config.json";

/// Settings of an OpenCLIP encoder that have no effect at evaluation.
const HARMLESS: [&str; 2] = ["patch_dropout", "output_tokens"];

/// The conventions from the configuration beside `weights` (a file or folder) for a model of these
/// sizes, and the path of that configuration.
pub(super) fn beside(
    weights: &Path,
    layout: Layout,
    architecture: &Architecture,
) -> Result<Option<(Conventions, PathBuf)>, Error> {
    let Some(folder) = (if weights.is_dir() { Some(weights) } else { weights.parent() }) else { return Ok(None) };
    let file = |name: &str| Some(folder.join(name)).filter(|path| path.is_file());
    // A repository may have both, with weights in both layouts.
    let (open_clip, hugging_face) = (file(OPEN_CLIP), file(HUGGING_FACE));
    match (layout, open_clip, hugging_face) {
        (Layout::OpenAi, Some(path), _) | (Layout::HuggingFace, Some(path), None) => {
            Ok(Some((open_clip_conventions(&path, architecture)?, path)))
        }
        (_, _, Some(path)) => {
            let found = hugging_face_conventions(&path, file(PREPROCESSOR).as_deref(), architecture)?;
            Ok(found.map(|conventions| (conventions, path)))
        }
        (_, None, None) => Ok(None),
    }
}

/// `model_cfg` and `preprocess_cfg`, with OpenCLIP's defaults (`open_clip/model.py`, `open_clip/transform.py`).
fn open_clip_conventions(path: &Path, architecture: &Architecture) -> Result<Conventions, Error> {
    let config: Value = read_json(path)?;
    let top = Section::top(path, &config)?;
    let model = top.section("model_cfg")?;
    model.only(&[
        "embed_dim",
        "vision_cfg",
        "text_cfg",
        "quick_gelu",
        "custom_text",
        "init_logit_scale",
        "init_logit_bias",
    ])?;
    model.agree("embed_dim", model.size("embed_dim", 0)?, "in the weights it", architecture.embedding)?;
    let vision = model.section("vision_cfg")?;
    let known = ["image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio", "pool_type"];
    vision.only(&[&known[..], &HARMLESS].concat())?;
    vision.require("pool_type", &[json!("tok")])?;
    vision.require("mlp_ratio", &[json!(4.0), json!(4)])?;
    vision.agree("image_size", vision.size("image_size", 224)?, "in the weights it", architecture.image_size)?;
    let width = architecture.vision_width();
    if let Vision::Transformer { patch_size, layers, .. } = architecture.vision {
        vision.agree("width", vision.size("width", 768)?, "in the weights it", width)?;
        vision.agree("layers", vision.size("layers", 12)?, "in the weights it", layers)?;
        vision.agree("patch_size", vision.size("patch_size", 16)?, "in the weights it", patch_size)?;
    }
    let text = model.section("text_cfg")?;
    let known = ["context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "pool_type", "pad_id"];
    text.only(&[&known[..], &HARMLESS].concat())?;
    text.require("pool_type", &[json!("argmax")])?;
    text.require("mlp_ratio", &[json!(4.0), json!(4)])?;
    text.agree("width", text.size("width", 512)?, "in the weights it", architecture.text.width)?;
    text.agree("layers", text.size("layers", 12)?, "in the weights it", architecture.text.layers)?;
    let quick = match model.get("quick_gelu") {
        None | Some(Value::Bool(false)) => Activation::Gelu,
        Some(Value::Bool(true)) => Activation::QuickGelu,
        Some(other) => return Err(model.wrong("quick_gelu", format!("is {other}; true or false are known"))),
    };
    let mut normalization = Normalization::default();
    if top.get("preprocess_cfg").is_some() {
        let preprocess = top.section("preprocess_cfg")?;
        preprocess.require("interpolation", &[json!("bicubic")])?;
        preprocess.require("resize_mode", &[json!("shortest")])?;
        preprocess.require("mode", &[json!("RGB")])?;
        normalization.mean = preprocess.channels("mean", normalization.mean)?;
        normalization.std = preprocess.channels("std", normalization.std)?;
    }
    let vision_heads = match architecture.vision {
        Vision::Transformer { .. } => {
            let head_width = vision.size("head_width", 64)?;
            if !width.is_multiple_of(head_width) {
                return Err(vision.wrong("head_width", format!("is {head_width}, which does not divide {width}")));
            }
            width / head_width
        }
        // The attention pooling has heads of width 64 (`open_clip/model.py`,
        // `_build_vision_tower`).
        Vision::ResNet { width, .. } => width.saturating_mul(32) / 64,
    };
    Ok(Conventions {
        activation: Some(quick),
        mean: Some(normalization.mean),
        std: Some(normalization.std),
        vision_heads: Some(vision_heads),
        text_heads: Some(text.heads("heads", 8, architecture.text.width)?),
        ..Conventions::default()
    })
}

/// The conventions from `vision_config` and `text_config` of a `CLIPModel`, with transformers'
/// defaults; none if the file is of another model.
fn hugging_face_conventions(
    path: &Path,
    preprocessor: Option<&Path>,
    architecture: &Architecture,
) -> Result<Option<Conventions>, Error> {
    let config: Value = read_json(path)?;
    let top = Section::top(path, &config)?;
    if !["vision_config", "text_config"].iter().any(|tower| top.get(tower).is_some()) {
        return Ok(None);
    }
    let mut found = Conventions::default();
    let mut activations = Vec::new();
    for (tower, heads) in [("vision_config", &mut found.vision_heads), ("text_config", &mut found.text_heads)] {
        if top.get(tower).is_none() {
            activations.push(Activation::QuickGelu);
            continue;
        }
        let settings = top.section(tower)?;
        settings.require("layer_norm_eps", &[json!(1e-5)])?;
        settings.require("hidden_act", &[json!("quick_gelu"), json!("gelu")])?;
        let is_gelu = settings.get("hidden_act") == Some(&json!("gelu"));
        activations.push(if is_gelu { Activation::Gelu } else { Activation::QuickGelu });
        let width = if tower == "vision_config" { architecture.vision_width() } else { architecture.text.width };
        if settings.get("num_attention_heads").is_some() {
            *heads = Some(settings.heads("num_attention_heads", 12, width)?);
        }
    }
    if activations[0] != activations[1] {
        return Err(top.wrong("vision_config.hidden_act", "differs from text_config.hidden_act; not supported"));
    }
    found.activation = activations.first().copied();
    let normalization = preprocessor.map(image_processor).transpose()?.unwrap_or_default();
    (found.mean, found.std) = (Some(normalization.mean), Some(normalization.std));
    Ok(Some(found))
}

/// The normalization in `preprocessor_config.json`, with the defaults of transformers'
/// `CLIPImageProcessor`.
pub(crate) fn image_processor(path: &Path) -> Result<Normalization, Error> {
    let config: Value = read_json(path)?;
    let settings = Section::top(path, &config)?;
    // Pillow's number of bicubic interpolation.
    settings.require("resample", &[json!(3)])?;
    let openai = Normalization::default();
    Ok(Normalization {
        mean: settings.channels("image_mean", openai.mean)?,
        std: settings.channels("image_std", openai.std)?,
    })
}
