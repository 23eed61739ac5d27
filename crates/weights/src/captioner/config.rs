//! `config.json` of the upstream layout, in transformers' format. Model types and keys are those of
//! transformers, except that `vision-encoder-encoder`, `encoder.vision_encoder` and
//! `encoder.encoder` are from the code of DiCO's release; `worker/src/export/modeling_dico.py`
//! registers them for exports.
//!
//! transformers omits settings that equal the default of their class, so this module has the same
//! defaults (`CLIPVisionConfig`, `BertConfig`, `GPT2Config`). Settings for computations that this
//! project does not implement are refused.

use std::path::Path;

use serde_json::{Value, json};

use super::{CaptionerConfig, VisionConfig};
use crate::clip::{Activation, VisionBackbone};
use crate::config_section::ConfigSection;
use crate::error::Error;
use crate::model_folder::Vocabulary;

/// The key of the list of a captioner's tokens, as their ids in CLIP's vocabulary. Exports of this
/// project have the key if the vocabulary is a subset of CLIP's; the release of DiCO's authors does
/// not.
const TOKEN_IDS_KEY: &str = "clip_tokens";
/// The Python module with the code of the model, which exports contain beside `config.json`.
pub const MODELING_MODULE: &str = "modeling_dico";

/// The configs of captioner and vision encoder from `config`, the content of the file `path`.
pub fn read(path: &Path, config: &Value) -> Result<(CaptionerConfig, VisionConfig), Error> {
    let root = ConfigSection::root(path, config)?;
    root.require_one_of("model_type", &[json!("vision-encoder-decoder")])?;
    let encoder = root.section("encoder")?;
    let vision = read_vision(&encoder)?;
    let bert = encoder.section("encoder")?;
    let gpt2 = root.section("decoder")?;
    check_bert(&bert)?;
    check_gpt2(&gpt2)?;
    let width = bert.size("hidden_size", 768)?;
    bert.require_equal("hidden_size", width, "decoder.n_embd", gpt2.size("n_embd", 768)?)?;
    let heads = bert.heads("num_attention_heads", 12, width)?;
    bert.require_equal("num_attention_heads", heads, "decoder.n_head", gpt2.heads("n_head", 12, width)?)?;
    let vision_width = vision.width();
    if vision_width == width {
        let problem = "equals the width of the vision encoder, so there is no projection between them; not supported";
        return Err(bert.error("hidden_size", problem));
    }
    let captioner = CaptionerConfig {
        vision_width,
        width,
        heads,
        encoder_layers: bert.size("num_hidden_layers", 12)?,
        encoder_inner: bert.size("intermediate_size", 3072)?,
        encoder_positions: bert.size("max_position_embeddings", 512)?,
        decoder_layers: gpt2.size("n_layer", 12)?,
        decoder_inner: gpt2.size("n_inner", 4 * width)?,
        positions: gpt2.size("n_positions", 1024)?,
        vocabulary_size: gpt2.size("vocab_size", 50_257)?,
    };
    let positions = vision.sequence_length();
    if positions > captioner.encoder_positions {
        let problem = format!("is less than the {positions} positions of the vision encoder");
        return Err(bert.error("max_position_embeddings", problem));
    }
    Ok((captioner, vision))
}

/// The vocabulary in `config`, the content of the file `path`, for a captioner with `size` tokens.
pub fn read_vocabulary(path: &Path, config: &Value, size: usize) -> Result<Vocabulary, Error> {
    let error = |problem: String| Error::setting(path, TOKEN_IDS_KEY, problem);
    let vocabulary = match config.get(TOKEN_IDS_KEY) {
        None => Vocabulary::Full,
        Some(ids) => {
            let ids = serde::Deserialize::deserialize(ids)
                .map_err(|problem: serde_json::Error| error(problem.to_string()))?;
            Vocabulary::Subset(ids)
        }
    };
    vocabulary.check().map_err(|problem| error(problem.to_string()))?;
    let actual_size = vocabulary.size();
    if actual_size != size {
        let problem = format!("is {size}, but the vocabulary has {actual_size} tokens");
        return Err(Error::setting(path, "decoder.vocab_size", problem));
    }
    Ok(vocabulary)
}

/// Adds the settings of a `config.json` that [`MODELING_MODULE`] and imports need besides sizes:
/// the location of the code, the ids of the vocabulary if it is a subset of CLIP's, and whether the
/// tensors of the vision encoder are nested below `vision_model`.
pub fn add_export_settings(config: &mut Value, vocabulary: &Vocabulary, vision_is_nested: bool) {
    let mut insert = |section: &str, key: &str, value: Value| {
        if let Some(settings) = config.pointer_mut(section).and_then(Value::as_object_mut) {
            settings.insert(key.to_owned(), value);
        }
    };
    let model = format!("{MODELING_MODULE}.DicoCaptioner");
    let configuration = format!("{MODELING_MODULE}.DicoConfig");
    let classes = json!({ "AutoConfig": configuration, "AutoModel": model, "AutoModelForImageTextToText": model });
    insert("", "auto_map", classes);
    if let Vocabulary::Subset(ids) = vocabulary {
        insert("", TOKEN_IDS_KEY, json!(ids));
    }
    if vision_is_nested {
        insert("/encoder", "vision_model_nested", json!(true));
    }
}

fn read_vision(encoder: &ConfigSection<'_>) -> Result<VisionConfig, Error> {
    let mut settings = encoder.section("vision_encoder")?;
    settings.require_one_of("model_type", &[json!("clip_vision_model"), json!("clip")])?;
    // Some versions of transformers store the config of the whole CLIP, with that of its vision
    // encoder under `vision_config`.
    if settings.get("vision_config").is_some() {
        settings = settings.section("vision_config")?;
    }
    settings.require_one_of("hidden_act", &[json!("quick_gelu"), json!("gelu")])?;
    let is_gelu = settings.get("hidden_act") == Some(&json!("gelu"));
    settings.require_one_of("layer_norm_eps", &[json!(1e-5)])?;
    settings.require_one_of("num_channels", &[json!(3)])?;
    let width = settings.size("hidden_size", 768)?;
    settings.require_equal(
        "intermediate_size",
        settings.size("intermediate_size", 3072)?,
        "4 times hidden_size",
        4 * width,
    )?;
    let (image_size, patch_size) = (settings.size("image_size", 224)?, settings.size("patch_size", 32)?);
    if image_size < patch_size {
        return Err(settings.error("image_size", "is less than patch_size"));
    }
    let layers = settings.size("num_hidden_layers", 12)?;
    let heads = settings.heads("num_attention_heads", 12, width)?;
    let backbone = VisionBackbone::Transformer { patch_size, width, layers, heads };
    let activation = if is_gelu { Activation::Gelu } else { Activation::QuickGelu };
    Ok(VisionConfig { activation, ..VisionConfig::new(image_size, backbone) })
}

fn check_bert(bert: &ConfigSection<'_>) -> Result<(), Error> {
    bert.require_one_of("model_type", &[json!("bert")])?;
    bert.require_one_of("hidden_act", &[json!("gelu")])?;
    bert.require_one_of("layer_norm_eps", &[json!(1e-12)])?;
    bert.require_one_of("position_embedding_type", &[json!("absolute")])?;
    bert.require_one_of("type_vocab_size", &[json!(2)])?;
    bert.require_one_of("is_decoder", &[json!(false)])?;
    bert.require_one_of("add_cross_attention", &[json!(false)])
}

fn check_gpt2(gpt2: &ConfigSection<'_>) -> Result<(), Error> {
    gpt2.require_one_of("model_type", &[json!("gpt2")])?;
    gpt2.require_one_of("activation_function", &[json!("gelu_new")])?;
    gpt2.require_one_of("layer_norm_epsilon", &[json!(1e-5)])?;
    gpt2.require_one_of("scale_attn_weights", &[json!(true)])?;
    gpt2.require_one_of("scale_attn_by_inverse_layer_idx", &[json!(false)])?;
    gpt2.require_one_of("reorder_and_upcast_attn", &[json!(false)])?;
    gpt2.require_one_of("tie_word_embeddings", &[json!(true)])?;
    gpt2.require_one_of("cross_attention_hidden_size", &[Value::Null])?;
    match gpt2.get("add_cross_attention") {
        Some(Value::Bool(true)) => Ok(()),
        _ => Err(gpt2.error("add_cross_attention", "has to be true")),
    }
}

/// The settings in the `config.json` of a captioner of these sizes. transformers does not know the
/// type of its encoder: [`add_export_settings`] adds what it needs to load the captioner.
///
/// The encoder, a BERT, reads hidden states instead of words and never uses its word embeddings, so
/// its `vocab_size` is 1. The last three tokens of the decoder's vocabulary are the begin, end and
/// pad tokens.
#[must_use]
pub fn upstream_config_json(captioner: &CaptionerConfig, vision: &VisionConfig) -> Value {
    let [pad, end, begin] = [1, 2, 3].map(|from_end| captioner.vocabulary_size.saturating_sub(from_end));
    json!({
        "model_type": "vision-encoder-decoder",
        "is_encoder_decoder": true,
        "tie_word_embeddings": false,
        "bos_token_id": begin,
        "eos_token_id": end,
        "pad_token_id": pad,
        "decoder_start_token_id": begin,
        "encoder": {
            "model_type": "vision-encoder-encoder",
            "hidden_size": captioner.width,
            "vision_encoder": vision_json(vision),
            "encoder": {
                "model_type": "bert",
                "vocab_size": 1,
                "pad_token_id": 0,
                "hidden_size": captioner.width,
                "num_hidden_layers": captioner.encoder_layers,
                "num_attention_heads": captioner.heads,
                "intermediate_size": captioner.encoder_inner,
                "max_position_embeddings": captioner.encoder_positions,
                "type_vocab_size": 2,
                "hidden_act": "gelu",
                "layer_norm_eps": 1e-12,
                "position_embedding_type": "absolute",
            },
        },
        "decoder": {
            "model_type": "gpt2",
            "is_decoder": true,
            "add_cross_attention": true,
            "vocab_size": captioner.vocabulary_size,
            "n_positions": captioner.positions,
            "n_embd": captioner.width,
            "n_layer": captioner.decoder_layers,
            "n_head": captioner.heads,
            "n_inner": captioner.decoder_inner,
            "activation_function": "gelu_new",
            "layer_norm_epsilon": 1e-5,
            "bos_token_id": begin,
            "eos_token_id": end,
            "pad_token_id": pad,
        },
    })
}

/// The settings of the vision encoder, in transformers' names. transformers' CLIP has no ResNet:
/// for a ResNet, the settings of transformer layers are left out.
fn vision_json(config: &VisionConfig) -> Value {
    let VisionConfig { image_size, backbone, activation, .. } = config;
    let width = config.width();
    let mut settings = json!({
        "model_type": "clip_vision_model",
        "hidden_size": width,
        "image_size": image_size,
        "num_channels": 3,
        "hidden_act": activation,
        "layer_norm_eps": 1e-5,
    });
    if let (Some(settings), VisionBackbone::Transformer { patch_size, layers, heads, .. }) =
        (settings.as_object_mut(), backbone)
    {
        settings.insert("intermediate_size".to_owned(), json!(width.saturating_mul(4)));
        settings.insert("patch_size".to_owned(), json!(patch_size));
        settings.insert("num_hidden_layers".to_owned(), json!(layers));
        settings.insert("num_attention_heads".to_owned(), json!(heads));
    }
    settings
}
