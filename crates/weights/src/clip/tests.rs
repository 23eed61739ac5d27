use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::test_util::{sequential_tensor, values, write_tensors_of_shapes};
use crate::write_safetensors;

/// The shapes of a text encoder of OpenAI's vocabulary, and of the logit scale.
fn text_shapes(width: usize, layers: usize, embedding: usize) -> Shapes {
    let mut shapes = Shapes::from([
        ("positional_embedding".to_owned(), vec![77, width]),
        ("token_embedding.weight".to_owned(), vec![49_408, width]),
        ("ln_final.weight".to_owned(), vec![width]),
        ("text_projection".to_owned(), vec![width, embedding]),
        ("logit_scale".to_owned(), vec![]),
    ]);
    shapes.extend((0..layers).map(|n| (format!("transformer.resblocks.{n}.ln_1.weight"), vec![width])));
    shapes
}

/// The shapes of a CLIP with a vision transformer, from which its sizes are derived.
fn vit_shapes(width: usize, layers: usize, patch: usize, image: usize, text_width: usize) -> Shapes {
    let mut shapes = text_shapes(text_width, 12, text_width);
    shapes.insert("visual.conv1.weight".to_owned(), vec![width, 3, patch, patch]);
    shapes.insert("visual.positional_embedding".to_owned(), vec![(image / patch).pow(2) + 1, width]);
    shapes.extend((0..layers).map(|n| (format!("visual.transformer.resblocks.{n}.ln_1.weight"), vec![width])));
    shapes
}

/// [`vit_shapes`] of OpenAI's ViT-B/32.
fn vit_b_32_shapes() -> Shapes {
    let (width, layers, patch, image, text_width) = (768, 12, 32, 224, 512);
    vit_shapes(width, layers, patch, image, text_width)
}

/// The config of OpenAI's model with these shapes.
fn openai_config(shapes: &Shapes) -> ClipConfig {
    let mut config = ClipConfig::from_shapes(shapes).unwrap();
    Conventions::openai().or(&Conventions::default()).complete(Path::new("x"), &mut config).unwrap();
    config
}

/// Opens a file with OpenAI's conventions.
fn open(path: &Path) -> Result<ClipWeights, Error> {
    ClipWeights::open(path, &Conventions::openai())
}

#[test]
fn sizes_of_openai_transformers_are_derived_from_shapes() {
    for (width, layers, patch, image, text_width, sequence_length) in [
        (768, 12, 32, 224, 512, 50),
        (768, 12, 16, 224, 512, 197),
        (1024, 24, 14, 224, 768, 257),
        (1024, 24, 14, 336, 768, 577),
    ] {
        let config = openai_config(&vit_shapes(width, layers, patch, image, text_width));
        let vision = VisionBackbone::Transformer { patch_size: patch, width, layers, heads: width / 64 };
        let text = TextConfig {
            width: text_width,
            layers: 12,
            heads: text_width / 64,
            context_length: 77,
            vocabulary_size: 49_408,
        };
        assert_eq!(config, ClipConfig::new(image, vision, text, text_width));
        assert_eq!((config.vision_width(), config.vision_sequence_length()), (width, sequence_length));
    }
}

#[test]
fn sizes_of_openai_resnets_are_derived_from_shapes() {
    let mut shapes = text_shapes(512, 12, 1024);
    shapes.insert("visual.attnpool.positional_embedding".to_owned(), vec![50, 2048]);
    for (stage, blocks) in [(1, 3), (2, 4), (3, 6), (4, 3)] {
        let name = |block| format!("visual.layer{stage}.{block}.conv1.weight");
        shapes.extend((0..blocks).map(|block| (name(block), vec![64 << (stage - 1), 64, 1, 1])));
    }
    let config = openai_config(&shapes);
    assert_eq!(config.vision, VisionBackbone::ResNet { blocks: [3, 4, 6, 3], width: 64, heads: 32 });
    assert_eq!((config.image_size, config.embedding, config.text.width), (224, 1024, 512));
    assert_eq!((config.vision_width(), config.vision_sequence_length()), (2048, 49));
}

#[test]
fn impossible_shapes_are_refused_with_the_tensor() {
    for (name, shape, expected) in [
        ("visual.conv1.weight", vec![768, 3, 32], "visual.conv1.weight: has shape [768, 3, 32]"),
        ("visual.conv1.weight", vec![768, 3, 32, 0], "none of them empty"),
        ("visual.positional_embedding", vec![51, 768], "has 51 positions"),
        ("visual.positional_embedding", vec![1, 768], "has 1 positions"),
        ("visual.transformer.resblocks.13.ln_1.weight", vec![768], "visual.transformer.resblocks.12: is missing"),
        ("token_embedding.weight", vec![usize::MAX, 0], "token_embedding.weight: has shape"),
        ("visual.conv1.weight", vec![64, 3, 32, usize::MAX], "visual.conv1.weight: is too large"),
    ] {
        let mut shapes = vit_b_32_shapes();
        shapes.insert(name.to_owned(), shape);
        let error = ClipConfig::from_shapes(&shapes).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let mut shapes = vit_b_32_shapes();
    shapes.remove("ln_final.weight");
    assert_eq!(ClipConfig::from_shapes(&shapes).unwrap_err().to_string(), "ln_final.weight: is missing");
}

/// Names and shapes of a Hugging Face model with one layer per encoder.
fn hugging_face() -> Vec<(String, Vec<usize>)> {
    let mut shapes = vec![
        ("logit_scale".to_owned(), vec![]),
        ("text_projection.weight".to_owned(), vec![2, 64]),
        ("visual_projection.weight".to_owned(), vec![2, 64]),
        ("text_model.embeddings.token_embedding.weight".to_owned(), vec![9, 64]),
        ("text_model.embeddings.position_embedding.weight".to_owned(), vec![5, 64]),
        ("text_model.embeddings.position_ids".to_owned(), vec![1, 5]),
        ("text_model.final_layer_norm.weight".to_owned(), vec![64]),
        ("text_model.final_layer_norm.bias".to_owned(), vec![64]),
        ("vision_model.embeddings.class_embedding".to_owned(), vec![64]),
        ("vision_model.embeddings.patch_embedding.weight".to_owned(), vec![64, 3, 2, 2]),
        ("vision_model.embeddings.position_embedding.weight".to_owned(), vec![5, 64]),
    ];
    for norm in ["pre_layrnorm", "post_layernorm"] {
        shapes.extend(["weight", "bias"].map(|kind| (format!("vision_model.{norm}.{kind}"), vec![64])));
    }
    for encoder in ["text", "vision"] {
        let block = format!("{encoder}_model.encoder.layers.0");
        for module in ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"] {
            shapes.push((format!("{block}.{module}.weight"), vec![64, 64]));
            shapes.push((format!("{block}.{module}.bias"), vec![64]));
        }
        for (module, shape) in [("layer_norm1", vec![64]), ("layer_norm2", vec![64]), ("mlp.fc1", vec![256, 64])] {
            shapes.push((format!("{block}.{module}.weight"), shape.clone()));
            shapes.push((format!("{block}.{module}.bias"), vec![shape[0]]));
        }
        shapes.push((format!("{block}.mlp.fc2.weight"), vec![64, 256]));
        shapes.push((format!("{block}.mlp.fc2.bias"), vec![64]));
    }
    shapes
}

#[test]
fn hugging_face_tensors_are_read_under_openai_names() {
    let folder = tempfile::tempdir().unwrap();
    let shapes = hugging_face();
    write_tensors_of_shapes(&folder.path().join("model.safetensors"), &shapes);
    let clip = open(folder.path()).unwrap();
    assert_eq!(clip.config().vision, VisionBackbone::Transformer { patch_size: 2, width: 64, layers: 1, heads: 1 });
    assert_eq!((clip.config().image_size, clip.config().embedding), (4, 2));
    let tensors: BTreeMap<String, Tensor<'_>> = clip.tensors().unwrap().into_iter().collect();
    let original = |name: &str| {
        let index = shapes.iter().position(|(other, _)| other == name).unwrap();
        sequential_tensor(&shapes[index].1, index * 1000)
    };
    assert_eq!(tensors.len(), 38);
    assert!(!tensors.keys().any(|name| name.contains("_model.") || name.contains("position_ids")));
    assert_eq!(tensors["visual.conv1.weight"], original("vision_model.embeddings.patch_embedding.weight"));
    assert_eq!(tensors["positional_embedding"], original("text_model.embeddings.position_embedding.weight"));
    assert_eq!(tensors["visual.ln_pre.bias"], original("vision_model.pre_layrnorm.bias"));
    let block = "transformer.resblocks.0";
    assert_eq!(tensors[&format!("{block}.mlp.c_proj.weight")], original("text_model.encoder.layers.0.mlp.fc2.weight"));
    let joined = values(&tensors[&format!("visual.{block}.attn.in_proj_weight")]);
    let parts =
        ["q", "k", "v"].map(|p| values(&original(&format!("vision_model.encoder.layers.0.self_attn.{p}_proj.weight"))));
    assert_eq!(joined, parts.concat());
    assert_eq!(tensors[&format!("{block}.attn.in_proj_bias")].shape, [192]);
    assert_eq!(Some(tensors["visual.proj"].clone()), original("visual_projection.weight").transposed());
    assert_eq!(tensors["text_projection"].shape, [64, 2]);
}

#[test]
fn a_missing_query_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let mut shapes = hugging_face();
    shapes.retain(|(name, _)| name != "text_model.encoder.layers.0.self_attn.q_proj.bias");
    write_tensors_of_shapes(&folder.path().join("model.safetensors"), &shapes);
    let text = open(folder.path()).map(|_| ()).unwrap_err().to_string();
    assert!(text.contains("transformer.resblocks.0.attn.in_proj_bias: needs a query, a key and a value"), "{text}");
}

/// The config of a small CLIP with OpenAI's conventions.
fn small() -> ClipConfig {
    let vision = VisionBackbone::Transformer { patch_size: 2, width: 64, layers: 2, heads: 1 };
    let text = TextConfig { width: 64, layers: 1, heads: 1, context_length: 5, vocabulary_size: 9 };
    ClipConfig::new(4, vision, text, 64)
}

#[test]
fn openai_tensors_are_read_without_buffers() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("clip.safetensors");
    for prefix in ["", "module."] {
        let mut shapes = small().shapes().unwrap();
        for name in ["input_resolution", "visual.bn1.num_batches_tracked"] {
            shapes.insert(name.to_owned(), vec![1]);
        }
        let tensors: Vec<_> =
            shapes.iter().map(|(name, shape)| (format!("{prefix}{name}"), sequential_tensor(shape, 0))).collect();
        write_safetensors(&path, &tensors).unwrap();
        let clip = open(&path).unwrap();
        assert_eq!(*clip.config(), small());
        let names: Vec<String> = clip.tensors().unwrap().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names.len(), shapes.len() - 2);
        assert!(names.contains(&"visual.conv1.weight".to_owned()));
        assert_eq!(clip.sha256(), Archive::open(&path).unwrap().sha256());
    }
}

#[test]
fn missing_extra_and_misshapen_tensors_are_listed_in_one_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("clip.safetensors");
    let mut shapes = small().shapes().unwrap();
    shapes.remove("visual.ln_pre.bias");
    shapes.remove("transformer.resblocks.0.mlp.c_fc.weight");
    shapes.insert("extra.weight".to_owned(), vec![1]);
    shapes.insert("visual.ln_post.weight".to_owned(), vec![65]);
    write_tensors_of_shapes(&path, &shapes.into_iter().collect::<Vec<_>>());
    let text = open(&path).map(|_| ()).unwrap_err().to_string();
    let expected = "missing: transformer.resblocks.0.mlp.c_fc.weight, visual.ln_pre.bias; extra: extra.weight; \
                    misshapen: visual.ln_post.weight [65], not [64]";
    assert!(text.ends_with(expected), "{text}");
}

#[test]
fn other_models_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("other.safetensors");
    write_safetensors(&path, &[("conv1.weight".to_owned(), sequential_tensor(&[1], 0))]).unwrap();
    let text = open(&path).map(|_| ()).unwrap_err().to_string();
    assert!(text.contains("other.safetensors: is not a CLIP"), "{text}");
}

/// A temporary folder with a model, and configuration files beside it.
struct WeightsFolder(tempfile::TempDir);

impl WeightsFolder {
    fn new(shapes: &[(String, Vec<usize>)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        write_tensors_of_shapes(&folder.path().join("model.safetensors"), shapes);
        Self(folder)
    }

    fn with(self, name: &str, config: serde_json::Value) -> Self {
        std::fs::write(self.0.path().join(name), config.to_string()).unwrap();
        self
    }

    /// Opens the model without conventions.
    fn open(&self) -> Result<ClipWeights, String> {
        self.open_with(&Conventions::default())
    }

    fn open_with(&self, conventions: &Conventions) -> Result<ClipWeights, String> {
        ClipWeights::open(self.0.path(), conventions).map_err(|error| error.to_string())
    }

    fn problem(&self) -> String {
        self.open().map(|_| ()).unwrap_err()
    }
}

fn names_and_shapes(config: &ClipConfig) -> Vec<(String, Vec<usize>)> {
    config.shapes().unwrap().into_iter().collect()
}

#[test]
fn conventions_are_read_from_a_hugging_face_config() {
    let config = |hidden_act: &str, heads: usize| {
        json!({
            "vision_config": { "hidden_act": hidden_act, "num_attention_heads": heads },
            "text_config": { "hidden_act": hidden_act },
        })
    };
    let clip = WeightsFolder::new(&hugging_face()).with("config.json", config("gelu", 16)).open().unwrap();
    assert_eq!((clip.config().activation, clip.config().vision.heads()), (Activation::Gelu, 16));
    assert_eq!(clip.config().normalization, Normalization::default());
    let halves = json!({ "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.25, 0.5], "resample": 3 });
    let folder = WeightsFolder::new(&hugging_face()).with("config.json", config("quick_gelu", 1));
    let clip = folder.with("preprocessor_config.json", halves).open().unwrap();
    assert_eq!(clip.config().normalization, Normalization { mean: [0.5; 3], std: [0.5, 0.25, 0.5] });
    assert!(clip.conventions_source().ends_with("config.json"));

    let refused = |config: serde_json::Value| WeightsFolder::new(&hugging_face()).with("config.json", config).problem();
    let text = refused(config("relu", 1));
    assert!(text.ends_with(r#"hidden_act: is "relu"; only "quick_gelu" or "gelu" is supported"#), "{text}");
    let text = refused(json!({ "vision_config": { "hidden_act": "gelu" }, "text_config": {} }));
    assert!(text.contains("vision_config.hidden_act: differs from text_config.hidden_act"), "{text}");
    assert!(refused(config("gelu", 7)).contains("is 7, which does not divide 64"));
    let nearest = json!({ "resample": 0 });
    let folder = WeightsFolder::new(&hugging_face()).with("config.json", config("gelu", 1));
    assert!(folder.with("preprocessor_config.json", nearest).problem().contains("resample: is 0"));
}

/// The sizes of [`small`] as OpenCLIP writes them.
fn open_clip(quick_gelu: bool, head_width: usize) -> serde_json::Value {
    json!({
        "model_cfg": {
            "embed_dim": 64,
            "quick_gelu": quick_gelu,
            "vision_cfg": { "image_size": 4, "layers": 2, "width": 64, "patch_size": 2, "head_width": head_width },
            "text_cfg": { "context_length": 5, "vocab_size": 9, "width": 64, "heads": 2, "layers": 1 },
        },
        "preprocess_cfg": { "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bicubic" },
    })
}

#[test]
fn conventions_are_read_from_an_open_clip_config() {
    for (quick_gelu, activation) in [(false, Activation::Gelu), (true, Activation::QuickGelu)] {
        let config = open_clip(quick_gelu, 16);
        let clip =
            WeightsFolder::new(&names_and_shapes(&small())).with("open_clip_config.json", config).open().unwrap();
        let config = clip.config();
        assert_eq!((config.activation, config.vision.heads(), config.text.heads), (activation, 4, 2));
        assert_eq!(config.normalization, Normalization { mean: [0.5; 3], std: [0.5; 3] });
    }
    let refused = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut config = open_clip(false, 16);
        change(&mut config);
        WeightsFolder::new(&names_and_shapes(&small())).with("open_clip_config.json", config).problem()
    };
    let vision = |key: &'static str, value: serde_json::Value| {
        refused(&|config| config["model_cfg"]["vision_cfg"][key] = value.clone())
    };
    assert!(vision("layers", json!(3)).contains("vision_cfg.layers: is 3, but in the weights it is 2"));
    assert!(vision("timm_model_name", json!("x")).contains("vision_cfg.timm_model_name: is not supported"));
    assert!(vision("attentional_pool", json!(true)).contains("attentional_pool: is not supported"));
    assert!(vision("head_width", json!(48)).contains("head_width: is 48, which does not divide 64"));
    let text = refused(&|config| config["model_cfg"]["text_cfg"]["no_causal_mask"] = json!(true));
    assert!(text.contains("text_cfg.no_causal_mask: is not supported"), "{text}");
    let text = refused(&|config| config["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = json!("timm/ViT-B-16-SigLIP"));
    assert!(text.contains("text_cfg.hf_tokenizer_name: is not supported"), "{text}");
    let text = refused(&|config| config["preprocess_cfg"]["interpolation"] = json!("bilinear"));
    assert!(text.contains("preprocess_cfg.interpolation: is \"bilinear\""), "{text}");
}

#[test]
fn tensors_of_open_clip_custom_text_encoders_are_read() {
    let is_text = |name: &str| !name.starts_with("visual.") && name != "logit_scale";
    let custom =
        |(name, shape): (String, Vec<usize>)| (if is_text(&name) { format!("text.{name}") } else { name }, shape);
    let shapes: Vec<_> = names_and_shapes(&small()).into_iter().map(custom).collect();
    let clip = WeightsFolder::new(&shapes).with("open_clip_config.json", open_clip(false, 64)).open().unwrap();
    let names: Vec<String> = clip.tensors().unwrap().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, names_and_shapes(&small()).into_iter().map(|(name, _)| name).collect::<Vec<_>>());
}

#[test]
fn weights_without_conventions_are_refused_unless_the_user_sets_them() {
    let bare = WeightsFolder::new(&names_and_shapes(&small()));
    let text = bare.problem();
    for key in ["family: openai", "open_clip_config.json", "activation", "mean", "std", "vision_heads", "text_heads"] {
        assert!(text.contains(key), "{key} is not in: {text}");
    }
    assert_eq!(*bare.open_with(&Conventions::openai()).unwrap().config(), small());
    let mut conventions =
        Conventions { activation: Some(Activation::Gelu), mean: Some([0.5; 3]), ..Conventions::default() };
    assert!(bare.open_with(&conventions).is_err(), "std is not set");
    conventions.std = Some([0.5; 3]);
    let expected = ClipConfig {
        activation: Activation::Gelu,
        normalization: Normalization { mean: [0.5; 3], std: [0.5; 3] },
        ..small()
    };
    assert_eq!(*bare.open_with(&conventions).unwrap().config(), expected);
    conventions.vision_heads = Some(4);
    assert_eq!(bare.open_with(&conventions).unwrap().config().vision.heads(), 4);
    for (key, conventions) in [
        ("heads", Conventions { vision_heads: Some(7), ..conventions.clone() }),
        ("heads", Conventions { text_heads: Some(0), ..conventions.clone() }),
        ("std", Conventions { std: Some([0.5, 0.0, 0.5]), ..conventions.clone() }),
        ("std", Conventions { std: Some([f32::NAN; 3]), ..conventions.clone() }),
    ] {
        assert!(bare.open_with(&conventions).map(|_| ()).unwrap_err().contains(key));
    }
    // OpenAI's files have these scalars beside the parameters.
    let scalars = ["input_resolution", "context_length", "vocab_size"].map(|name| (name.to_owned(), vec![]));
    let openai_file = WeightsFolder::new(&names_and_shapes(&small()).into_iter().chain(scalars).collect::<Vec<_>>());
    assert_eq!(*openai_file.open().unwrap().config(), small());
}

#[test]
fn the_config_of_another_model_in_the_folder_is_not_used() {
    let scalars = ["input_resolution", "context_length", "vocab_size"].map(|name| (name.to_owned(), vec![]));
    let shapes = names_and_shapes(&small()).into_iter().chain(scalars).collect::<Vec<_>>();
    let openai_file = WeightsFolder::new(&shapes).with("open_clip_config.json", open_clip(false, 16)).open().unwrap();
    assert_eq!((openai_file.config(), openai_file.conventions_source()), (&small(), "OpenAI's own file"));
    // A config of other sizes, as beside PAC-S.
    let mut other = open_clip(false, 16);
    other["model_cfg"]["vision_cfg"]["layers"] = json!(24);
    let folder = WeightsFolder::new(&names_and_shapes(&small())).with("open_clip_config.json", other);
    assert!(folder.problem().contains("vision_cfg.layers"));
    assert_eq!(*folder.open_with(&Conventions::openai()).unwrap().config(), small());
}

#[test]
fn heads_of_wide_encoders_are_never_guessed() {
    let vision = VisionBackbone::Transformer { patch_size: 2, width: 1280, layers: 1, heads: 16 };
    let wide = ClipConfig { activation: Activation::Gelu, ..ClipConfig::new(4, vision, small().text, 8) };
    let folder = WeightsFolder::new(&names_and_shapes(&wide));
    let Normalization { mean, std } = Normalization::default();
    let conventions =
        Conventions { activation: Some(Activation::Gelu), mean: Some(mean), std: Some(std), ..Conventions::default() };
    let text = folder.open_with(&conventions).map(|_| ()).unwrap_err();
    assert!(text.contains("vision_heads (its vision encoder is 1280 wide)"), "{text}");
    let clip = folder.open_with(&Conventions { vision_heads: Some(16), ..conventions }).unwrap();
    assert_eq!(*clip.config(), wide);
}

#[test]
fn separate_lora_factors_are_scaled_by_alpha() {
    let module = "transformer.resblocks.0.mlp.c_proj";
    let weight = format!("{module}.weight");
    let mut shapes = names_and_shapes(&small());
    shapes.extend([(format!("{module}.lora_A"), vec![2, 256]), (format!("{module}.lora_B"), vec![64, 2])]);
    let mut tensors: Vec<_> =
        shapes.iter().enumerate().map(|(i, (name, shape))| (name.clone(), sequential_tensor(shape, i))).collect();
    tensors.push((LORA_ALPHA.to_owned(), sequential_tensor(&[], 8)));
    let folder = tempfile::tempdir().unwrap();
    let [trained, separate] = ["trained.safetensors", "separate.safetensors"].map(|name| folder.path().join(name));
    write_safetensors(&trained, &tensors).unwrap();
    let trained = ClipWeights::open_with_config(&trained, small()).unwrap();
    write_safetensors(&separate, &trained.tensors_and_factors().unwrap()).unwrap();
    assert!(Archive::open(&separate).unwrap().shape(LORA_ALPHA).is_none());
    let merged = Conventions { lora: Some(LoraReading::Merged), ..Conventions::openai() };
    let separate = ClipWeights::open(&separate, &merged).unwrap();
    let weight_of = |clip: &ClipWeights| {
        let tensors = clip.tensors().unwrap();
        tensors.iter().find(|(name, _)| *name == weight).map(|(_, tensor)| values(tensor)).unwrap()
    };
    let (actual, expected) = (weight_of(&separate), weight_of(&trained));
    assert!(actual.iter().zip(&expected).all(|(actual, expected)| (actual - expected).abs() <= 1e-6 * expected.abs()));
    let (_, plain) = tensors.iter().find(|(name, _)| *name == weight).unwrap();
    // W[0][0] + alpha / rank (B[0][0] A[0][0] + B[0][1] A[1][0]).
    let [a, b] = [&tensors[tensors.len() - 3].1, &tensors[tensors.len() - 2].1].map(values);
    assert_eq!(expected[0], values(plain)[0] + 8.0 / 2.0 * (b[0] * a[0] + b[1] * a[256]));

    for wrong in [sequential_tensor(&[], 0), sequential_tensor(&[2], 1)] {
        let path = folder.path().join("wrong.safetensors");
        tensors.last_mut().unwrap().1 = wrong;
        write_safetensors(&path, &tensors).unwrap();
        let problem = ClipWeights::open_with_config(&path, small()).unwrap().tensors().unwrap_err().to_string();
        assert!(problem.contains("lora_alpha: is not a number above 0"), "{problem}");
    }
}

#[test]
fn the_lora_reading_selects_the_factors_that_are_added() {
    let block = "transformer.resblocks.0";
    let mut shapes = names_and_shapes(&small());
    for (module, [outputs, inputs]) in [
        (format!("{block}.attn.in_proj_weight_lora"), [192, 64]),
        (format!("{block}.attn.out_proj.lora"), [64, 64]),
        (format!("{block}.mlp.c_fc.lora"), [256, 64]),
        ("visual.conv1.lora".to_owned(), [128, 6]),
    ] {
        // The factors of a kernel of two by two have twice the rank.
        let rank = if module.contains("conv1") { 8 } else { 4 };
        shapes.push((format!("{module}_A"), vec![rank, inputs]));
        shapes.push((format!("{module}_B"), vec![outputs, rank]));
    }
    let folder = WeightsFolder::new(&shapes);
    let changed_tensors = |lora: LoraReading| {
        let clip = folder.open_with(&Conventions { lora: Some(lora), ..Conventions::openai() }).unwrap();
        assert_eq!(clip.lora(), Some(lora));
        let plain = Archive::open(folder.0.path()).unwrap();
        let tensors = clip.tensors().unwrap();
        assert_eq!(tensors.len(), names_and_shapes(&small()).len());
        let differs = |(name, tensor): &(String, Tensor<'_>)| plain.get(name).as_ref() != Some(tensor);
        tensors.iter().filter(|tensor| differs(tensor)).map(|(name, _)| name.clone()).collect::<Vec<_>>()
    };
    let attention_weights = ["attn.in_proj_weight", "attn.out_proj.weight"].map(|name| format!("{block}.{name}"));
    let with_convolution =
        |names: &[String]| names.iter().cloned().chain(["visual.conv1.weight".into()]).collect::<Vec<_>>();
    assert_eq!(changed_tensors(LoraReading::AsReleased), with_convolution(&attention_weights));
    let all = [&attention_weights[..], &[format!("{block}.mlp.c_fc.weight")]].concat();
    assert_eq!(changed_tensors(LoraReading::Merged), with_convolution(&all));

    let mut without_factor_b = shapes.clone();
    without_factor_b.retain(|(name, _)| name != "visual.conv1.lora_B");
    let text = WeightsFolder::new(&without_factor_b)
        .open_with(&Conventions::openai())
        .unwrap()
        .tensors()
        .unwrap_err()
        .to_string();
    assert!(text.contains("visual.conv1.weight: has no LoRA factor B"), "{text}");
    shapes.push(("visual.ln_9.lora_A".to_owned(), vec![4, 4]));
    let text = WeightsFolder::new(&shapes).open_with(&Conventions::openai()).map(|_| ()).unwrap_err();
    assert!(text.contains("visual.ln_9.weight: has LoRA factors, but is not a weight of the model"), "{text}");
}

fn dimension_length() -> impl Strategy<Value = usize> {
    prop_oneof![4 => 0..200_usize, 2 => Just(64), 1 => Just(usize::MAX), 1 => any::<usize>()]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_shapes_cause_no_panic(
        changed_shapes in prop::collection::vec(
            (any::<prop::sample::Index>(), prop::collection::vec(dimension_length(), 0..5)),
            0..4,
        ),
        resnet in any::<bool>(),
    ) {
        let (width, layers, patch, image, text_width) = (64, 2, 2, 4, 64);
        let mut all = vit_shapes(width, layers, patch, image, text_width);
        if resnet {
            all.insert("visual.layer1.0.conv1.weight".to_owned(), vec![64, 64, 1, 1]);
            all.insert("visual.attnpool.positional_embedding".to_owned(), vec![50, 2048]);
        }
        let names: Vec<String> = all.keys().cloned().collect();
        all.extend(changed_shapes.into_iter().map(|(name, shape)| (name.get(&names).clone(), shape)));
        if let Ok(config) = ClipConfig::from_shapes(&all) {
            prop_assert!(config.vision_sequence_length() > 0 && config.vision_width() > 0 && config.text.heads > 0);
        }
    }
}
