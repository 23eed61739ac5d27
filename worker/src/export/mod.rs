//! The files of an exported folder other than `config.json` and the weights: Python code, a
//! tokenizer, settings, and a model card. With them transformers loads the folder with `AutoModel`
//! and `AutoProcessor`.

use checkpoint_store::CheckpointMetadata;
use serde_json::{Value, json};
use tokenizer::SPECIAL_TOKENS;
use weights::model_folder::{self, ModelFolder};
use weights::{MODELING_MODULE, VisionConfig};

/// The Python module with the model's classes.
const MODELING: &str = include_str!("modeling_dico.py");
/// The Python module with the image processor.
const IMAGE_PROCESSING: &str = include_str!("image_processing_dico.py");
/// Example code for the model card; also in `docs/training.md`.
const SNIPPET: &str = include_str!("snippet.py");
/// The folder's name in [`SNIPPET`].
const SNIPPET_FOLDER: &str = "my-dico";
/// A class of transformers that combines any image processor with any tokenizer.
const PROCESSOR: &str = "VisionTextDualEncoderProcessor";
/// `PIL.Image.BICUBIC`.
const BICUBIC: u32 = 3;

/// The name and content of each file. `name` is the model's name; `metadata` is the run and step,
/// if the folder is a checkpoint.
#[must_use]
pub fn additional_files(
    folder: &ModelFolder,
    name: &str,
    metadata: Option<&CheckpointMetadata>,
) -> Vec<(String, Vec<u8>)> {
    let vocabulary = tokenizer::Vocabulary::from_manifest(&folder.manifest().vocabulary);
    let json = |value: Value| serde_json::to_vec_pretty(&value).expect("numbers and strings are JSON");
    vec![
        (format!("{MODELING_MODULE}.py"), MODELING.into()),
        ("image_processing_dico.py".to_owned(), IMAGE_PROCESSING.into()),
        ("preprocessor_config.json".to_owned(), json(preprocessor_config(folder))),
        ("tokenizer.json".to_owned(), vocabulary.tokenizer_json().to_string().into()),
        ("tokenizer_config.json".to_owned(), json(tokenizer_config(folder))),
        ("generation_config.json".to_owned(), json(generation_config(folder, &vocabulary))),
        ("README.md".to_owned(), model_card(folder, name, metadata).into()),
    ]
}

/// The settings of the image processor. They have the keys of transformers' own image processor for
/// CLIP, which can read them, too.
fn preprocessor_config(folder: &ModelFolder) -> Value {
    let VisionConfig { image_size: side, normalization, .. } = &folder.manifest().vision.config;
    // Conversion through text gives the shortest decimal number that rounds to the f32.
    let channels = |values: [f32; 3]| values.map(|value| value.to_string().parse::<f64>().unwrap_or_default());
    json!({
        "image_processor_type": "DicoImageProcessor",
        "auto_map": { "AutoImageProcessor": "image_processing_dico.DicoImageProcessor" },
        "processor_class": PROCESSOR,
        "do_convert_rgb": true,
        "do_resize": true,
        "size": { "shortest_edge": side },
        "resample": BICUBIC,
        "do_center_crop": true,
        "crop_size": { "height": side, "width": side },
        "do_rescale": true,
        "rescale_factor": 1.0 / 255.0,
        "do_normalize": true,
        "image_mean": channels(normalization.mean),
        "image_std": channels(normalization.std),
    })
}

fn tokenizer_config(folder: &ModelFolder) -> Value {
    let [begin, end, pad] = SPECIAL_TOKENS;
    json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "processor_class": PROCESSOR,
        "bos_token": begin,
        "eos_token": end,
        "pad_token": pad,
        "model_max_length": folder.manifest().captioner.positions,
        "clean_up_tokenization_spaces": false,
    })
}

/// The default settings of `worker caption`, but `max_length` is at most the captioner's positions.
fn generation_config(folder: &ModelFolder, vocabulary: &tokenizer::Vocabulary) -> Value {
    let defaults = config::Decoding::default();
    json!({
        "bos_token_id": vocabulary.begin_token(),
        "decoder_start_token_id": vocabulary.begin_token(),
        "eos_token_id": vocabulary.end_token(),
        "pad_token_id": vocabulary.pad_token(),
        "num_beams": defaults.beams,
        "max_length": folder.manifest().captioner.positions.min(defaults.max_length as usize),
        "length_penalty": defaults.length_penalty,
        "early_stopping": false,
    })
}

/// The model card.
fn model_card(folder: &ModelFolder, name: &str, metadata: Option<&CheckpointMetadata>) -> String {
    let manifest = folder.manifest();
    let sizes = &manifest.captioner;
    let origin = metadata.map_or_else(String::new, |CheckpointMetadata { run, stage_name, step, .. }| {
        format!("\nIt was saved in stage `{stage_name}` of run `{run}`, after step {step}.\n")
    });
    let vocabulary_note = match manifest.vocabulary {
        model_folder::Vocabulary::Full => String::new(),
        model_folder::Vocabulary::Subset(_) => format!(
            "- It knows those tokens of CLIP that its training captions contain. The tokenizer encodes every text:\n  \
             tokens that the captioner does not know have numbers from {} on, and it cannot embed them.\n",
            sizes.vocabulary_size
        ),
    };
    format!(
        "---\nlibrary_name: transformers\npipeline_tag: image-to-text\ntags:\n- image-captioning\n- dico\n---\n\n\
         # {name}\n\n\
         An image captioner with the architecture of [DiCO](https://arxiv.org/abs/2408.14547): a frozen CLIP vision\n\
         tower, a BERT encoder ({encoder} layers) and a GPT-2 decoder with cross-attention ({decoder} layers), {width}\n\
         wide, with a vocabulary of {vocabulary} tokens.\n{origin}\n\
         ```python\n{snippet}```\n\n\
         - Pixels are those of CLIP's own preprocessing. EXIF orientation is not applied.\n\
         - `worker caption` finds the same captions. From transformers 4.50 on, a beam search may end a little\n  \
         sooner, and in rare cases finds another one.\n{vocabulary_note}",
        encoder = sizes.encoder_layers,
        decoder = sizes.decoder_layers,
        width = sizes.width,
        vocabulary = sizes.vocabulary_size,
        snippet = SNIPPET.replace(SNIPPET_FOLDER, name),
    )
}
