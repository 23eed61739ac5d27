use std::collections::BTreeMap;

use serde_json::json;

use super::*;
use crate::clip::names::{HuggingFaceNames, vision_to_hugging_face};
use crate::test_util::{sequential_tensor, values, write_tensors_of_shapes};

fn sizes() -> (CaptionerConfig, VisionConfig) {
    let captioner = CaptionerConfig {
        vision_width: 8,
        width: 4,
        heads: 2,
        encoder_layers: 1,
        encoder_inner: 6,
        encoder_positions: 9,
        decoder_layers: 2,
        decoder_inner: 10,
        positions: 7,
        vocabulary_size: 11,
    };
    let backbone = VisionBackbone::Transformer { patch_size: 2, width: 8, layers: 1, heads: 2 };
    (captioner, VisionConfig::new(4, backbone))
}

/// The upstream names and the shapes of the tensors of a captioner of [`sizes`]; `prefix` is that
/// of its vision encoder.
fn shapes(prefix: &str) -> Vec<(String, Vec<usize>)> {
    let (captioner, vision) = sizes();
    let mut shapes: Vec<(String, Vec<usize>)> = captioner.shapes().unwrap().into_iter().collect();
    let unused = [
        ("encoder.encoder.embeddings.word_embeddings.weight", vec![1, 4]),
        ("encoder.encoder.embeddings.position_ids", vec![1, 9]),
        ("encoder.encoder.pooler.dense.weight", vec![4, 4]),
        ("decoder.transformer.h.0.attn.bias", vec![1, 1, 7, 7]),
        ("decoder.transformer.h.1.crossattention.masked_bias", vec![]),
    ];
    shapes.extend(unused.map(|(name, shape)| (name.to_owned(), shape)));
    let mut vision_shapes = vision.shapes().unwrap();
    vision_shapes.extend(["weight", "bias"].map(|part| (format!("visual.ln_post.{part}"), vec![8])));
    for (name, mut shape) in vision_shapes {
        match vision_to_hugging_face(&name).unwrap() {
            HuggingFaceNames::Single(name) => shapes.push((format!("{prefix}{name}"), shape)),
            HuggingFaceNames::QueryKeyValue(names) => {
                shape[0] /= 3;
                shapes.extend(names.into_iter().map(|name| (format!("{prefix}{name}"), shape.clone())));
            }
        }
    }
    shapes.push((format!("{prefix}embeddings.position_ids"), vec![1, 5]));
    shapes
}

fn folder(config: &Value, shapes: &[(String, Vec<usize>)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    write_tensors_of_shapes(&folder.path().join("model.safetensors"), shapes);
    folder
}

fn open(config: &Value, shapes: &[(String, Vec<usize>)]) -> Result<UpstreamFolder, Error> {
    UpstreamFolder::open(folder(config, shapes).path())
}

fn config() -> Value {
    let (captioner, vision) = sizes();
    upstream_config_json(&captioner, &vision)
}

fn problem(config: &Value, shapes: &[(String, Vec<usize>)]) -> String {
    open(config, shapes).map(|_| ()).unwrap_err().to_string()
}

#[test]
fn an_imported_folder_is_exported_byte_for_byte() {
    for prefix in [VISION_PREFIX, "encoder.vision_encoder.vision_model."] {
        let original_folder = folder(&config(), &shapes(prefix));
        let upstream = UpstreamFolder::open(original_folder.path()).unwrap();
        assert_eq!((upstream.captioner(), upstream.vision()), (&sizes().0, &sizes().1));
        assert_eq!((upstream.config(), upstream.vision_prefix()), (&config(), prefix));
        let vision: BTreeMap<_, _> = upstream.vision_tensors().unwrap().into_iter().collect();
        assert!(vision.keys().all(|name| name.starts_with("visual.")));
        assert_eq!(vision["visual.transformer.resblocks.0.attn.in_proj_weight"].shape, [24, 8]);
        let captioner: Vec<String> = upstream.captioner_tensors().into_iter().map(|(name, _)| name).collect();
        assert_eq!(captioner.len(), sizes().0.shapes().unwrap().len());
        assert!(captioner.contains(&"decoder.transformer.h.0.attn.c_attn.bias".to_owned()));
        let unused: Vec<String> = upstream.unused_tensors().into_iter().map(|(name, _)| name).collect();
        assert_eq!(
            unused,
            [
                "decoder.transformer.h.0.attn.bias",
                "decoder.transformer.h.1.crossattention.masked_bias",
                "encoder.encoder.embeddings.position_ids",
                "encoder.encoder.embeddings.word_embeddings.weight",
                "encoder.encoder.pooler.dense.weight",
                &format!("{prefix}embeddings.position_ids"),
            ]
        );
        let mut tensors = vision_to_upstream(vision.into_iter().collect(), upstream.vision_prefix()).unwrap();
        tensors.extend(upstream.captioner_tensors());
        tensors.extend(upstream.unused_tensors());
        let export = tempfile::tempdir().unwrap();
        let path = export.path().join("model.safetensors");
        write_safetensors(&path, &tensors).unwrap();
        let original = std::fs::read(original_folder.path().join("model.safetensors")).unwrap();
        assert!(std::fs::read(path).unwrap() == original, "the file is the same, byte for byte");
    }
}

#[test]
fn missing_word_embeddings_are_read_from_the_tied_output() {
    let mut tied = shapes(VISION_PREFIX);
    let index = tied.iter().position(|(name, _)| name == WORD_EMBEDDINGS).unwrap();
    for (name, _) in &mut tied {
        if name == WORD_EMBEDDINGS {
            *name = LM_HEAD.to_owned();
        }
    }
    let upstream = open(&config(), &tied).unwrap();
    let captioner: BTreeMap<_, _> = upstream.captioner_tensors().into_iter().collect();
    assert_eq!(values(&captioner[WORD_EMBEDDINGS]), values(&sequential_tensor(&[11, 4], 1000 * index)));
    let mut untied = shapes(VISION_PREFIX);
    untied.push((LM_HEAD.to_owned(), vec![11, 4]));
    assert!(
        problem(&config(), &untied).contains("decoder.lm_head.weight: differs from decoder.transformer.wte.weight")
    );
}

#[test]
fn a_config_that_differs_from_the_weights_is_refused() {
    for (pointer, value, expected) in [
        (
            "/decoder/n_layer",
            3,
            "missing: decoder.transformer.h.2.attn.c_attn.bias, decoder.transformer.h.2.attn.c_attn.weight",
        ),
        ("/encoder/encoder/num_hidden_layers", 2, "missing: encoder.encoder.encoder.layer.1.attention"),
        ("/encoder/vision_encoder/num_hidden_layers", 9, "missing: visual.transformer.resblocks.1.attn"),
        ("/decoder/vocab_size", 1 << 20, "misshapen: decoder.transformer.wte.weight [11, 4], not [1048576, 4]"),
        ("/decoder/n_inner", 11, "decoder.transformer.h.1.mlp.c_fc.weight [4, 10], not [4, 11]"),
        ("/decoder/n_positions", 8, "decoder.transformer.wpe.weight [7, 4], not [8, 4]"),
        ("/encoder/vision_encoder/image_size", 2, "visual.positional_embedding [5, 8], not [2, 8]"),
        ("/encoder/vision_encoder/patch_size", 1, "is less than the 17 positions of the vision encoder"),
    ] {
        let mut config = config();
        *config.pointer_mut(pointer).unwrap() = json!(value);
        let text = problem(&config, &shapes(VISION_PREFIX));
        assert!(text.contains(expected), "{text}");
    }
    let mut without_projection = shapes(VISION_PREFIX);
    without_projection.retain(|(name, _)| name != "encoder.vis_enc_to_enc_proj.weight");
    assert!(problem(&config(), &without_projection).ends_with("missing: encoder.vis_enc_to_enc_proj.weight"));
}

#[test]
fn unsupported_settings_are_refused_by_name() {
    for (section, key, value) in [
        ("", "model_type", json!("bert")),
        ("/decoder", "activation_function", json!("relu")),
        ("/decoder", "layer_norm_epsilon", json!(1e-6)),
        ("/decoder", "reorder_and_upcast_attn", json!(true)),
        ("/decoder", "scale_attn_by_inverse_layer_idx", json!(true)),
        ("/decoder", "cross_attention_hidden_size", json!(1024)),
        ("/decoder", "add_cross_attention", json!(false)),
        ("/decoder", "tie_word_embeddings", json!(false)),
        ("/decoder", "n_embd", json!(8)),
        ("/decoder", "n_head", json!(3)),
        ("/decoder", "n_layer", json!(-1)),
        ("/decoder", "n_layer", json!(0)),
        ("/decoder", "n_positions", json!(1e3)),
        ("/decoder", "vocab_size", json!(u64::MAX)),
        ("/encoder/encoder", "hidden_act", json!("gelu_new")),
        ("/encoder/encoder", "position_embedding_type", json!("relative_key")),
        ("/encoder/vision_encoder", "hidden_act", json!("relu")),
        ("/encoder/vision_encoder", "layer_norm_eps", json!(1e-6)),
        ("/encoder/vision_encoder", "intermediate_size", json!(31)),
        ("/encoder/vision_encoder", "num_attention_heads", json!(3)),
    ] {
        let mut config = config();
        config.pointer_mut(section).unwrap()[key] = value;
        let text = problem(&config, &shapes(VISION_PREFIX));
        let full_key = format!(
            "config.json: {}{key}: ",
            section.trim_start_matches('/').replace('/', ".") + if section.is_empty() { "" } else { "." }
        );
        // Sizes of the decoder that differ from the encoder's are reported under the encoder's key.
        assert!(text.contains(&full_key) || (key.starts_with("n_") && text.contains("decoder.")), "{full_key} {text}");
    }
    let mut config = config();
    config["encoder"]["encoder"]["hidden_size"] = json!(8);
    config["decoder"]["n_embd"] = json!(8);
    let text = problem(&config, &shapes(VISION_PREFIX));
    assert!(text.contains("encoder.encoder.hidden_size: equals the width of the vision encoder"), "{text}");
    config["encoder"].as_object_mut().unwrap().remove("vision_encoder");
    assert!(problem(&config, &shapes(VISION_PREFIX)).contains("encoder.vision_encoder: is missing"));
    assert!(problem(&json!([]), &shapes(VISION_PREFIX)).contains("is not a JSON object"));
}

#[test]
fn omitted_settings_have_the_defaults_of_transformers() {
    let config = json!({
        "model_type": "vision-encoder-decoder",
        "encoder": {"vision_encoder": {"vision_config": {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16}}, "encoder": {}},
        "decoder": {"add_cross_attention": true, "n_inner": null},
    });
    let (captioner, vision) = config::read("config.json".as_ref(), &config).unwrap();
    let expected = CaptionerConfig {
        vision_width: 1024,
        width: 768,
        heads: 12,
        encoder_layers: 12,
        encoder_inner: 3072,
        encoder_positions: 512,
        decoder_layers: 12,
        decoder_inner: 3072,
        positions: 1024,
        vocabulary_size: 50_257,
    };
    assert_eq!(captioner, expected);
    assert_eq!((vision.image_size, vision.sequence_length()), (224, 50));
}

#[test]
fn begin_end_and_pad_tokens_are_the_last_three() {
    let (mut captioner, vision) = sizes();
    captioner.vocabulary_size = 49_409;
    let config = upstream_config_json(&captioner, &vision);
    let tokens = ["bos_token_id", "eos_token_id", "pad_token_id"].map(|key| config["decoder"][key].as_u64());
    assert_eq!(tokens, [Some(49_406), Some(49_407), Some(49_408)]);
}

#[test]
fn a_config_lists_the_token_ids_of_a_corpus_vocabulary() {
    let vocabulary = |tokens: Option<Value>| {
        let mut config = config();
        if let Some(tokens) = tokens {
            config["clip_tokens"] = tokens;
        }
        open(&config, &shapes(VISION_PREFIX)).unwrap().vocabulary().map_err(|error| error.to_string())
    };
    let listed = [2, 3, 5, 8, 13, 21, 34, 55];
    assert_eq!(vocabulary(Some(json!(listed))).unwrap(), Vocabulary::Subset(listed.to_vec()));
    for (tokens, expected) in [
        (None, "decoder.vocab_size: is 11, but the vocabulary has 49409 tokens"),
        (Some(json!([1, 2])), "decoder.vocab_size: is 11, but the vocabulary has 5 tokens"),
        (Some(json!([2, 1])), "clip_tokens: must ascend"),
        (Some(json!([49_406])), "clip_tokens: must leave begin and end out"),
        (Some(json!("all")), "clip_tokens: invalid type"),
        (Some(json!([-1])), "clip_tokens: invalid value"),
    ] {
        let problem = vocabulary(tokens).unwrap_err();
        assert!(problem.contains(expected), "{problem}");
    }
}

#[test]
fn tensors_that_cannot_be_exported_are_errors() {
    let result = vision_to_upstream(
        vec![("visual.layer1.0.conv1.weight".to_owned(), sequential_tensor(&[1], 0))],
        VISION_PREFIX,
    );
    assert!(result.unwrap_err().to_string().starts_with("visual.layer1.0.conv1.weight: is not a tensor of"));
    let name = "visual.transformer.resblocks.0.attn.in_proj_bias".to_owned();
    let text = vision_to_upstream(vec![(name, sequential_tensor(&[4], 0))], VISION_PREFIX).unwrap_err().to_string();
    assert!(text.ends_with("cannot be split into query, key and value"));
    assert_eq!(vision_to_upstream(vec![("visual.proj".to_owned(), sequential_tensor(&[1], 0))], "").unwrap(), []);
}

#[test]
fn a_failed_write_leaves_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let broken = Tensor { shape: vec![3], ..sequential_tensor(&[2], 0) };
    let text = write_safetensors(&path, &[("a".to_owned(), broken)]).unwrap_err().to_string();
    assert!(text.ends_with("a: has 8 bytes, which do not match the shape [3]"), "{text}");
    let twice = [("a".to_owned(), sequential_tensor(&[2], 0)), ("a".to_owned(), sequential_tensor(&[2], 0))];
    assert!(write_safetensors(&path, &twice).unwrap_err().to_string().ends_with("a: occurs twice"));
    std::fs::create_dir(&path).unwrap();
    assert!(write_safetensors(&path, &twice[..1]).is_err());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "only the folder at the path remains");
}

#[test]
fn a_file_written_as_header_and_tensors_is_valid_safetensors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pieces.safetensors");
    let shapes = [("b", vec![2, 1]), ("a", vec![]), ("empty", vec![0])];
    let named = shapes.clone().map(|(name, shape)| (name.to_owned(), shape));
    let mut file = safetensors_header(named).unwrap();
    assert_eq!(file.len() % 8, 0);
    [1.5_f32, -2.0, 3.0].iter().for_each(|value| file.extend(value.to_le_bytes()));
    std::fs::write(&path, file).unwrap();
    let archive = Archive::open(&path).unwrap();
    let tensors: BTreeMap<_, _> = archive.tensors().into_iter().collect();
    assert_eq!((&tensors["b"].shape, &tensors["a"].shape), (&shapes[0].1, &shapes[1].1));
    assert_eq!(tensors["b"].bytes[..4], 1.5_f32.to_le_bytes());
    assert_eq!(tensors["a"].bytes[..], 3.0_f32.to_le_bytes());
    let twice = ["a", "a"].map(|name| (name.to_owned(), vec![1]));
    assert!(safetensors_header(twice).unwrap_err().to_string().contains("a: occurs twice"));
    assert!(safetensors_header([("a".to_owned(), vec![usize::MAX, 2])]).unwrap_err().to_string().contains("larger"));
}
