//! `config.json` in transformers' format.
//!
//! transformers omits settings that have their class's default, so each has its default here too
//! (`CLIPVisionConfig`, `BertConfig`, `GPT2Config`). Settings for computations that this project
//! does not implement are refused.

use std::path::Path;

use serde_json::{Value, json};

use super::{CaptionerArchitecture, VisionArchitecture};
use crate::clip::{Activation, Vision};
use crate::error::Error;
use crate::folder::Vocabulary;
use crate::settings::Section;

/// The key for the tokens of a captioner with a subset of CLIP's tokens, as CLIP's numbers.
const TOKENS: &str = "clip_tokens";
/// The module with the model's Python code, beside `config.json`.
pub const MODELING_MODULE: &str = "modeling_dico";

/// The configs in the `config` of the file `path`.
pub fn read(path: &Path, config: &Value) -> Result<(CaptionerArchitecture, VisionArchitecture), Error> {
    let top = Section::top(path, config)?;
    top.require("model_type", &[json!("vision-encoder-decoder")])?;
    let encoder = top.section("encoder")?;
    let vision = vision(&encoder)?;
    let bert = encoder.section("encoder")?;
    let gpt2 = top.section("decoder")?;
    check_bert(&bert)?;
    check_gpt2(&gpt2)?;
    let width = bert.size("hidden_size", 768)?;
    bert.agree("hidden_size", width, "decoder.n_embd", gpt2.size("n_embd", 768)?)?;
    let heads = bert.heads("num_attention_heads", 12, width)?;
    bert.agree("num_attention_heads", heads, "decoder.n_head", gpt2.heads("n_head", 12, width)?)?;
    let vision_width = vision.vision.hidden_width();
    if vision_width == width {
        let problem = "equals the width of the vision tower, so there is no projection between them; not supported";
        return Err(bert.wrong("hidden_size", problem));
    }
    let captioner = CaptionerArchitecture {
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
    let tokens = vision.vision.tokens(vision.image_size);
    if tokens > captioner.encoder_positions {
        let problem = format!("is less than the {tokens} positions of the vision tower");
        return Err(bert.wrong("max_position_embeddings", problem));
    }
    Ok((captioner, vision))
}

/// The tokens of a captioner of `size` tokens, from the `config` of the file `path`.
pub fn vocabulary(path: &Path, config: &Value, size: usize) -> Result<Vocabulary, Error> {
    let wrong = |problem: String| Error::setting(path, TOKENS, problem);
    let vocabulary = match config.get(TOKENS) {
        None => Vocabulary::Full,
        Some(tokens) => {
            let tokens = serde::Deserialize::deserialize(tokens).map_err(|error| wrong(error.to_string()))?;
            Vocabulary::Tokens(tokens)
        }
    };
    vocabulary.check().map_err(|problem| wrong(problem.to_owned()))?;
    let known = vocabulary.size();
    if known != size {
        let problem = format!("is {size}, but the vocabulary has {known} tokens");
        return Err(Error::setting(path, "decoder.vocab_size", problem));
    }
    Ok(vocabulary)
}

/// Adds to a `config.json` what [`MODELING_MODULE`] and imports need besides sizes: the location of
/// the code, the captioner's tokens if they are a subset of CLIP's, and whether the tensors of the
/// vision encoder are nested below `vision_model`.
pub fn complete(config: &mut Value, vocabulary: &Vocabulary, vision_is_nested: bool) {
    let mut insert = |section: &str, key: &str, value: Value| {
        if let Some(settings) = config.pointer_mut(section).and_then(Value::as_object_mut) {
            settings.insert(key.to_owned(), value);
        }
    };
    let model = format!("{MODELING_MODULE}.DicoCaptioner");
    let configuration = format!("{MODELING_MODULE}.DicoConfig");
    let classes = json!({ "AutoConfig": configuration, "AutoModel": model, "AutoModelForImageTextToText": model });
    insert("", "auto_map", classes);
    if let Vocabulary::Tokens(tokens) = vocabulary {
        insert("", TOKENS, json!(tokens));
    }
    if vision_is_nested {
        insert("/encoder", "vision_model_nested", json!(true));
    }
}

fn vision(encoder: &Section<'_>) -> Result<VisionArchitecture, Error> {
    let mut tower = encoder.section("vision_encoder")?;
    tower.require("model_type", &[json!("clip_vision_model"), json!("clip")])?;
    // Some versions store the config of the whole CLIP.
    if tower.get("vision_config").is_some() {
        tower = tower.section("vision_config")?;
    }
    tower.require("hidden_act", &[json!("quick_gelu"), json!("gelu")])?;
    let is_gelu = tower.get("hidden_act") == Some(&json!("gelu"));
    tower.require("layer_norm_eps", &[json!(1e-5)])?;
    tower.require("num_channels", &[json!(3)])?;
    let width = tower.size("hidden_size", 768)?;
    tower.agree("intermediate_size", tower.size("intermediate_size", 3072)?, "4 times hidden_size", 4 * width)?;
    let (image_size, patch_size) = (tower.size("image_size", 224)?, tower.size("patch_size", 32)?);
    if image_size < patch_size {
        return Err(tower.wrong("image_size", "is less than patch_size"));
    }
    let layers = tower.size("num_hidden_layers", 12)?;
    let heads = tower.heads("num_attention_heads", 12, width)?;
    let vision = Vision::Transformer { patch_size, width, layers, heads };
    let activation = if is_gelu { Activation::Gelu } else { Activation::QuickGelu };
    Ok(VisionArchitecture { activation, ..VisionArchitecture::new(image_size, vision) })
}

fn check_bert(bert: &Section<'_>) -> Result<(), Error> {
    bert.require("model_type", &[json!("bert")])?;
    bert.require("hidden_act", &[json!("gelu")])?;
    bert.require("layer_norm_eps", &[json!(1e-12)])?;
    bert.require("position_embedding_type", &[json!("absolute")])?;
    bert.require("type_vocab_size", &[json!(2)])?;
    bert.require("is_decoder", &[json!(false)])?;
    bert.require("add_cross_attention", &[json!(false)])
}

fn check_gpt2(gpt2: &Section<'_>) -> Result<(), Error> {
    gpt2.require("model_type", &[json!("gpt2")])?;
    gpt2.require("activation_function", &[json!("gelu_new")])?;
    gpt2.require("layer_norm_epsilon", &[json!(1e-5)])?;
    gpt2.require("scale_attn_weights", &[json!(true)])?;
    gpt2.require("scale_attn_by_inverse_layer_idx", &[json!(false)])?;
    gpt2.require("reorder_and_upcast_attn", &[json!(false)])?;
    gpt2.require("tie_word_embeddings", &[json!(true)])?;
    gpt2.require("cross_attention_hidden_size", &[Value::Null])?;
    match gpt2.get("add_cross_attention") {
        Some(Value::Bool(true)) => Ok(()),
        _ => Err(gpt2.wrong("add_cross_attention", "has to be true")),
    }
}

/// A `config.json` with which transformers loads a captioner of these sizes.
///
/// The encoder's word embeddings, which are never used, are declared for a vocabulary of one token;
/// begin, end and pad tokens are the vocabulary's last three.
#[must_use]
pub fn config_json(captioner: &CaptionerArchitecture, vision: &VisionArchitecture) -> Value {
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

/// A ResNet, which Hugging Face's CLIP does not have, is described by the settings that both kinds
/// of encoder have.
fn vision_json(VisionArchitecture { image_size, vision, activation, .. }: &VisionArchitecture) -> Value {
    let width = vision.hidden_width();
    let mut settings = json!({
        "model_type": "clip_vision_model",
        "hidden_size": width,
        "image_size": image_size,
        "num_channels": 3,
        "hidden_act": activation,
        "layer_norm_eps": 1e-5,
    });
    if let (Some(settings), Vision::Transformer { patch_size, layers, heads, .. }) = (settings.as_object_mut(), vision)
    {
        settings.insert("intermediate_size".to_owned(), json!(width.saturating_mul(4)));
        settings.insert("patch_size".to_owned(), json!(patch_size));
        settings.insert("num_hidden_layers".to_owned(), json!(layers));
        settings.insert("num_attention_heads".to_owned(), json!(heads));
    }
    settings
}
