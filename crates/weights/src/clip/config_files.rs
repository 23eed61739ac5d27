//! Configuration files beside weights: `open_clip_config.json` in OpenCLIP's format, `config.json`
//! and `preprocessor_config.json` in transformers' format.
//!
//! Settings for computations that this project does not implement are refused by name.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::NameLayout;
use super::config::{ClipConfig, VisionBackbone};
use super::conventions::{Activation, Conventions, Normalization};
use crate::config_section::ConfigSection;
use crate::error::Error;
use crate::file::read_json;

/// OpenCLIP's file with the config of a model.
const OPEN_CLIP_CONFIG: &str = "open_clip_config.json";
/// transformers' file with the config of a model.
const HUGGING_FACE_CONFIG: &str = "config.json";
/// transformers' file with the settings of an image processor.
pub(crate) const PREPROCESSOR_CONFIG: &str = "preprocessor_config.json";

/// Settings of an OpenCLIP encoder that have no effect at inference.
const IGNORED_SETTINGS: [&str; 2] = ["patch_dropout", "output_tokens"];

/// The conventions from the configuration beside `weights` (a file or folder) for a model of these
/// sizes, and the path of that configuration.
pub(super) fn conventions_beside(
    weights: &Path,
    layout: NameLayout,
    clip: &ClipConfig,
) -> Result<Option<(Conventions, PathBuf)>, Error> {
    let Some(folder) = (if weights.is_dir() { Some(weights) } else { weights.parent() }) else { return Ok(None) };
    let file = |name: &str| Some(folder.join(name)).filter(|path| path.is_file());
    // A repository of Hugging Face may have both files, with weights in both layouts.
    let (open_clip, hugging_face) = (file(OPEN_CLIP_CONFIG), file(HUGGING_FACE_CONFIG));
    match (layout, open_clip, hugging_face) {
        (NameLayout::OpenAi, Some(path), _) | (NameLayout::HuggingFace, Some(path), None) => {
            Ok(Some((open_clip_conventions(&path, clip)?, path)))
        }
        (_, _, Some(path)) => {
            let conventions = hugging_face_conventions(&path, file(PREPROCESSOR_CONFIG).as_deref(), clip)?;
            Ok(conventions.map(|conventions| (conventions, path)))
        }
        (_, None, None) => Ok(None),
    }
}

/// `model_cfg` and `preprocess_cfg`, with OpenCLIP's defaults (`open_clip/model.py`,
/// `open_clip/transform.py`).
fn open_clip_conventions(path: &Path, clip: &ClipConfig) -> Result<Conventions, Error> {
    let config: Value = read_json(path)?;
    let root = ConfigSection::root(path, &config)?;
    let model = root.section("model_cfg")?;
    model.allow_only(&[
        "embed_dim",
        "vision_cfg",
        "text_cfg",
        "quick_gelu",
        "custom_text",
        "init_logit_scale",
        "init_logit_bias",
    ])?;
    model.require_equal("embed_dim", model.size("embed_dim", 0)?, "in the weights it", clip.embedding)?;
    let vision = model.section("vision_cfg")?;
    let supported = ["image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio", "pool_type"];
    vision.allow_only(&[&supported[..], &IGNORED_SETTINGS].concat())?;
    vision.require_one_of("pool_type", &[json!("tok")])?;
    vision.require_one_of("mlp_ratio", &[json!(4.0), json!(4)])?;
    vision.require_equal("image_size", vision.size("image_size", 224)?, "in the weights it", clip.image_size)?;
    let width = clip.vision_width();
    if let VisionBackbone::Transformer { patch_size, layers, .. } = clip.vision {
        vision.require_equal("width", vision.size("width", 768)?, "in the weights it", width)?;
        vision.require_equal("layers", vision.size("layers", 12)?, "in the weights it", layers)?;
        vision.require_equal("patch_size", vision.size("patch_size", 16)?, "in the weights it", patch_size)?;
    }
    let text = model.section("text_cfg")?;
    let supported = ["context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "pool_type", "pad_id"];
    text.allow_only(&[&supported[..], &IGNORED_SETTINGS].concat())?;
    text.require_one_of("pool_type", &[json!("argmax")])?;
    text.require_one_of("mlp_ratio", &[json!(4.0), json!(4)])?;
    text.require_equal("width", text.size("width", 512)?, "in the weights it", clip.text.width)?;
    text.require_equal("layers", text.size("layers", 12)?, "in the weights it", clip.text.layers)?;
    let activation = match model.get("quick_gelu") {
        None | Some(Value::Bool(false)) => Activation::Gelu,
        Some(Value::Bool(true)) => Activation::QuickGelu,
        Some(other) => return Err(model.error("quick_gelu", format!("is {other}; it has to be true or false"))),
    };
    let mut normalization = Normalization::default();
    if root.get("preprocess_cfg").is_some() {
        let preprocess = root.section("preprocess_cfg")?;
        preprocess.require_one_of("interpolation", &[json!("bicubic")])?;
        preprocess.require_one_of("resize_mode", &[json!("shortest")])?;
        preprocess.require_one_of("mode", &[json!("RGB")])?;
        normalization.mean = preprocess.channels("mean", normalization.mean)?;
        normalization.std = preprocess.channels("std", normalization.std)?;
    }
    let vision_heads = match clip.vision {
        VisionBackbone::Transformer { .. } => {
            let head_width = vision.size("head_width", 64)?;
            if !width.is_multiple_of(head_width) {
                return Err(vision.error("head_width", format!("is {head_width}, which does not divide {width}")));
            }
            width / head_width
        }
        // The attention pooling has heads of width 64 (`open_clip/model.py`,
        // `_build_vision_tower`).
        VisionBackbone::ResNet { width, .. } => width.saturating_mul(32) / 64,
    };
    Ok(Conventions {
        activation: Some(activation),
        mean: Some(normalization.mean),
        std: Some(normalization.std),
        vision_heads: Some(vision_heads),
        text_heads: Some(text.heads("heads", 8, clip.text.width)?),
        ..Conventions::default()
    })
}

/// The conventions from `vision_config` and `text_config` of a `CLIPModel`, with transformers'
/// defaults; none if the file is not the config of a CLIP.
fn hugging_face_conventions(
    path: &Path,
    preprocessor: Option<&Path>,
    clip: &ClipConfig,
) -> Result<Option<Conventions>, Error> {
    let config: Value = read_json(path)?;
    let root = ConfigSection::root(path, &config)?;
    if !["vision_config", "text_config"].iter().any(|section| root.get(section).is_some()) {
        return Ok(None);
    }
    let mut conventions = Conventions::default();
    let mut activations = Vec::new();
    for (section, heads) in
        [("vision_config", &mut conventions.vision_heads), ("text_config", &mut conventions.text_heads)]
    {
        if root.get(section).is_none() {
            activations.push(Activation::QuickGelu);
            continue;
        }
        let settings = root.section(section)?;
        settings.require_one_of("layer_norm_eps", &[json!(1e-5)])?;
        settings.require_one_of("hidden_act", &[json!("quick_gelu"), json!("gelu")])?;
        let is_gelu = settings.get("hidden_act") == Some(&json!("gelu"));
        activations.push(if is_gelu { Activation::Gelu } else { Activation::QuickGelu });
        let width = if section == "vision_config" { clip.vision_width() } else { clip.text.width };
        if settings.get("num_attention_heads").is_some() {
            *heads = Some(settings.heads("num_attention_heads", 12, width)?);
        }
    }
    if activations[0] != activations[1] {
        return Err(root.error("vision_config.hidden_act", "differs from text_config.hidden_act; not supported"));
    }
    conventions.activation = activations.first().copied();
    let normalization = preprocessor.map(read_image_processor).transpose()?.unwrap_or_default();
    (conventions.mean, conventions.std) = (Some(normalization.mean), Some(normalization.std));
    Ok(Some(conventions))
}

/// The normalization in `preprocessor_config.json`, with the defaults of transformers'
/// `CLIPImageProcessor`.
pub(crate) fn read_image_processor(path: &Path) -> Result<Normalization, Error> {
    let config: Value = read_json(path)?;
    let settings = ConfigSection::root(path, &config)?;
    // Pillow's constant for bicubic interpolation.
    settings.require_one_of("resample", &[json!(3)])?;
    let openai = Normalization::default();
    Ok(Normalization {
        mean: settings.channels("image_mean", openai.mean)?,
        std: settings.channels("image_std", openai.std)?,
    })
}
