use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::json;

use super::architecture::Shapes;
use super::*;
use crate::testing::{counting, values, write_shapes};
use crate::write_safetensors;

/// Shapes of a text tower and what both towers share.
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

fn vit_shapes(width: usize, layers: usize, patch: usize, image: usize, text: usize) -> Shapes {
    let mut shapes = text_shapes(text, 12, text);
    shapes.insert("visual.conv1.weight".to_owned(), vec![width, 3, patch, patch]);
    shapes.insert("visual.positional_embedding".to_owned(), vec![(image / patch).pow(2) + 1, width]);
    shapes.extend((0..layers).map(|n| (format!("visual.transformer.resblocks.{n}.ln_1.weight"), vec![width])));
    shapes
}

/// The architecture of OpenAI's model of these shapes.
fn openais(shapes: &Shapes) -> Architecture {
    let mut found = Architecture::from_shapes(shapes).unwrap();
    Conventions::openai().over(&Conventions::default()).complete(Path::new("x"), &mut found).unwrap();
    found
}

/// Opens a file that is said to follow OpenAI's conventions.
fn open(path: &Path) -> Result<Clip, Error> {
    Clip::open(path, &Conventions::openai())
}

#[test]
fn sizes_of_the_published_transformers_are_found() {
    for (width, layers, patch, image, text, tokens) in [
        (768, 12, 32, 224, 512, 50),
        (768, 12, 16, 224, 512, 197),
        (1024, 24, 14, 224, 768, 257),
        (1024, 24, 14, 336, 768, 577),
    ] {
        let found = openais(&vit_shapes(width, layers, patch, image, text));
        let vision = Vision::Transformer { patch_size: patch, width, layers, heads: width / 64 };
        let context = Text { width: text, layers: 12, heads: text / 64, context_length: 77, vocabulary_size: 49_408 };
        assert_eq!(found, Architecture::new(image, vision, context, text));
        assert_eq!((found.vision_width(), found.vision_tokens()), (width, tokens));
    }
}

#[test]
fn sizes_of_the_published_resnet_are_found() {
    let mut shapes = text_shapes(512, 12, 1024);
    shapes.insert("visual.attnpool.positional_embedding".to_owned(), vec![50, 2048]);
    for (stage, blocks) in [(1, 3), (2, 4), (3, 6), (4, 3)] {
        let name = |block| format!("visual.layer{stage}.{block}.conv1.weight");
        shapes.extend((0..blocks).map(|block| (name(block), vec![64 << (stage - 1), 64, 1, 1])));
    }
    let found = openais(&shapes);
    assert_eq!(found.vision, Vision::ResNet { blocks: [3, 4, 6, 3], width: 64, heads: 32 });
    assert_eq!((found.image_size, found.embedding, found.text.width), (224, 1024, 512));
    assert_eq!((found.vision_width(), found.vision_tokens()), (2048, 49));
}

#[test]
fn sizes_that_make_no_sense_are_refused_by_tensor() {
    for (name, shape, expected) in [
        ("visual.conv1.weight", vec![768, 3, 32], "visual.conv1.weight: has shape [768, 3, 32]"),
        ("visual.conv1.weight", vec![768, 3, 32, 0], "none of them empty"),
        ("visual.positional_embedding", vec![51, 768], "has 51 positions"),
        ("visual.positional_embedding", vec![1, 768], "has 1 positions"),
        ("visual.transformer.resblocks.13.ln_1.weight", vec![768], "visual.transformer.resblocks.12: is missing"),
        ("token_embedding.weight", vec![usize::MAX, 0], "token_embedding.weight: has shape"),
        ("visual.conv1.weight", vec![64, 3, 32, usize::MAX], "visual.conv1.weight: is too large"),
    ] {
        let mut shapes = vit_shapes(768, 12, 32, 224, 512);
        shapes.insert(name.to_owned(), shape);
        let (tensor, problem) = Architecture::from_shapes(&shapes).unwrap_err();
        assert!(format!("{tensor}: {problem}").contains(expected), "{tensor}: {problem}");
    }
    let mut shapes = vit_shapes(768, 12, 32, 224, 512);
    shapes.remove("ln_final.weight");
    assert_eq!(Architecture::from_shapes(&shapes), Err(("ln_final.weight".to_owned(), "is missing".to_owned())));
}

/// Names and shapes of a Hugging Face model of one layer a tower.
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
    for tower in ["text", "vision"] {
        let block = format!("{tower}_model.encoder.layers.0");
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
fn hugging_faces_layout_is_read_under_openais_names() {
    let folder = tempfile::tempdir().unwrap();
    let shapes = hugging_face();
    write_shapes(&folder.path().join("model.safetensors"), &shapes);
    let clip = open(folder.path()).unwrap();
    assert_eq!(clip.architecture().vision, Vision::Transformer { patch_size: 2, width: 64, layers: 1, heads: 1 });
    assert_eq!((clip.architecture().image_size, clip.architecture().embedding), (4, 2));
    let tensors: BTreeMap<String, Tensor<'_>> = clip.tensors().unwrap().into_iter().collect();
    let old = |name: &str| {
        let number = shapes.iter().position(|(old, _)| old == name).unwrap();
        counting(&shapes[number].1, number * 1000)
    };
    assert_eq!(tensors.len(), 38);
    assert!(!tensors.keys().any(|name| name.contains("_model.") || name.contains("position_ids")));
    assert_eq!(tensors["visual.conv1.weight"], old("vision_model.embeddings.patch_embedding.weight"));
    assert_eq!(tensors["positional_embedding"], old("text_model.embeddings.position_embedding.weight"));
    assert_eq!(tensors["visual.ln_pre.bias"], old("vision_model.pre_layrnorm.bias"));
    let block = "transformer.resblocks.0";
    assert_eq!(tensors[&format!("{block}.mlp.c_proj.weight")], old("text_model.encoder.layers.0.mlp.fc2.weight"));
    let joined = values(&tensors[&format!("visual.{block}.attn.in_proj_weight")]);
    let parts =
        ["q", "k", "v"].map(|p| values(&old(&format!("vision_model.encoder.layers.0.self_attn.{p}_proj.weight"))));
    assert_eq!(joined, parts.concat());
    assert_eq!(tensors[&format!("{block}.attn.in_proj_bias")].shape, [192]);
    assert_eq!(Some(tensors["visual.proj"].clone()), old("visual_projection.weight").transposed());
    assert_eq!(tensors["text_projection"].shape, [64, 2]);
}

#[test]
fn a_missing_query_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let mut shapes = hugging_face();
    shapes.retain(|(name, _)| name != "text_model.encoder.layers.0.self_attn.q_proj.bias");
    write_shapes(&folder.path().join("model.safetensors"), &shapes);
    let text = open(folder.path()).map(|_| ()).unwrap_err().to_string();
    assert!(text.contains("transformer.resblocks.0.attn.in_proj_bias: needs a query, a key and a value"), "{text}");
}

fn small() -> Architecture {
    let vision = Vision::Transformer { patch_size: 2, width: 64, layers: 2, heads: 1 };
    let text = Text { width: 64, layers: 1, heads: 1, context_length: 5, vocabulary_size: 9 };
    Architecture::new(4, vision, text, 64)
}

#[test]
fn openais_layout_is_read_as_it_is_but_for_bookkeeping() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("clip.safetensors");
    for prefix in ["", "module."] {
        let mut shapes = small().shapes().unwrap();
        for name in ["input_resolution", "visual.bn1.num_batches_tracked"] {
            shapes.insert(name.to_owned(), vec![1]);
        }
        let tensors: Vec<_> =
            shapes.iter().map(|(name, shape)| (format!("{prefix}{name}"), counting(shape, 0))).collect();
        write_safetensors(&path, &tensors).unwrap();
        let clip = open(&path).unwrap();
        assert_eq!(*clip.architecture(), small());
        let names: Vec<String> = clip.tensors().unwrap().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names.len(), shapes.len() - 2);
        assert!(names.contains(&"visual.conv1.weight".to_owned()));
        assert_eq!(clip.sha256(), Archive::open(&path).unwrap().sha256());
    }
}

#[test]
fn everything_missing_extra_and_misshapen_is_told_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("clip.safetensors");
    let mut shapes = small().shapes().unwrap();
    shapes.remove("visual.ln_pre.bias");
    shapes.remove("transformer.resblocks.0.mlp.c_fc.weight");
    shapes.insert("extra.weight".to_owned(), vec![1]);
    shapes.insert("visual.ln_post.weight".to_owned(), vec![65]);
    write_shapes(&path, &shapes.into_iter().collect::<Vec<_>>());
    let text = open(&path).map(|_| ()).unwrap_err().to_string();
    let expected = "missing: transformer.resblocks.0.mlp.c_fc.weight, visual.ln_pre.bias; extra: extra.weight; \
                    misshapen: visual.ln_post.weight [65], not [64]";
    assert!(text.ends_with(expected), "{text}");
}

#[test]
fn what_is_no_clip_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("other.safetensors");
    write_safetensors(&path, &[("conv1.weight".to_owned(), counting(&[1], 0))]).unwrap();
    let text = open(&path).map(|_| ()).unwrap_err().to_string();
    assert!(text.contains("other.safetensors: is no CLIP"), "{text}");
}

/// A folder with a model of these shapes, and configurations beside it.
struct Published(tempfile::TempDir);

impl Published {
    fn new(shapes: &[(String, Vec<usize>)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        write_shapes(&folder.path().join("model.safetensors"), shapes);
        Self(folder)
    }

    fn with(self, name: &str, config: serde_json::Value) -> Self {
        std::fs::write(self.0.path().join(name), config.to_string()).unwrap();
        self
    }

    /// Opens it with nothing said of it.
    fn open(&self) -> Result<Clip, String> {
        self.open_with(&Conventions::default())
    }

    fn open_with(&self, said: &Conventions) -> Result<Clip, String> {
        Clip::open(self.0.path(), said).map_err(|error| error.to_string())
    }

    fn problem(&self) -> String {
        self.open().map(|_| ()).unwrap_err()
    }
}

fn named(architecture: &Architecture) -> Vec<(String, Vec<usize>)> {
    architecture.shapes().unwrap().into_iter().collect()
}

#[test]
fn hugging_faces_configuration_says_what_its_tensors_do_not() {
    let config = |hidden_act: &str, heads: usize| {
        json!({
            "vision_config": { "hidden_act": hidden_act, "num_attention_heads": heads },
            "text_config": { "hidden_act": hidden_act },
        })
    };
    let clip = Published::new(&hugging_face()).with("config.json", config("gelu", 16)).open().unwrap();
    assert_eq!((clip.architecture().activation, clip.architecture().vision.heads()), (Activation::Gelu, 16));
    assert_eq!(clip.architecture().normalization, Normalization::default());
    let halves = json!({ "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.25, 0.5], "resample": 3 });
    let published = Published::new(&hugging_face()).with("config.json", config("quick_gelu", 1));
    let clip = published.with("preprocessor_config.json", halves).open().unwrap();
    assert_eq!(clip.architecture().normalization, Normalization { mean: [0.5; 3], std: [0.5, 0.25, 0.5] });
    assert!(clip.source().ends_with("config.json"));

    let refused = |config: serde_json::Value| Published::new(&hugging_face()).with("config.json", config).problem();
    let text = refused(config("relu", 1));
    assert!(text.ends_with(r#"hidden_act: is "relu"; only "quick_gelu" or "gelu" is supported"#), "{text}");
    let text = refused(json!({ "vision_config": { "hidden_act": "gelu" }, "text_config": {} }));
    assert!(text.contains("vision_config.hidden_act: differs from text_config.hidden_act"), "{text}");
    assert!(refused(config("gelu", 7)).contains("is 7, which does not divide 64"));
    let nearest = json!({ "resample": 0 });
    let published = Published::new(&hugging_face()).with("config.json", config("gelu", 1));
    assert!(published.with("preprocessor_config.json", nearest).problem().contains("resample: is 0"));
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
fn open_clips_configuration_says_what_its_tensors_do_not() {
    for (quick_gelu, activation) in [(false, Activation::Gelu), (true, Activation::QuickGelu)] {
        let config = open_clip(quick_gelu, 16);
        let clip = Published::new(&named(&small())).with("open_clip_config.json", config).open().unwrap();
        let found = clip.architecture();
        assert_eq!((found.activation, found.vision.heads(), found.text.heads), (activation, 4, 2));
        assert_eq!(found.normalization, Normalization { mean: [0.5; 3], std: [0.5; 3] });
    }
    let refused = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut config = open_clip(false, 16);
        change(&mut config);
        Published::new(&named(&small())).with("open_clip_config.json", config).problem()
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
fn the_names_of_open_clips_custom_text_towers_are_read() {
    let text = |name: &str| !name.starts_with("visual.") && name != "logit_scale";
    let custom = |(name, shape): (String, Vec<usize>)| (if text(&name) { format!("text.{name}") } else { name }, shape);
    let shapes: Vec<_> = named(&small()).into_iter().map(custom).collect();
    let clip = Published::new(&shapes).with("open_clip_config.json", open_clip(false, 64)).open().unwrap();
    let names: Vec<String> = clip.tensors().unwrap().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, named(&small()).into_iter().map(|(name, _)| name).collect::<Vec<_>>());
}

#[test]
fn weights_that_say_nothing_of_themselves_are_refused_until_somebody_does() {
    let bare = Published::new(&named(&small()));
    let text = bare.problem();
    for key in ["family: openai", "open_clip_config.json", "activation", "mean", "std", "vision_heads", "text_heads"] {
        assert!(text.contains(key), "{key} is not in: {text}");
    }
    assert_eq!(*bare.open_with(&Conventions::openai()).unwrap().architecture(), small());
    let mut said = Conventions { activation: Some(Activation::Gelu), mean: Some([0.5; 3]), ..Conventions::default() };
    assert!(bare.open_with(&said).is_err(), "its std is not said");
    said.std = Some([0.5; 3]);
    let expected = Architecture {
        activation: Activation::Gelu,
        normalization: Normalization { mean: [0.5; 3], std: [0.5; 3] },
        ..small()
    };
    assert_eq!(*bare.open_with(&said).unwrap().architecture(), expected);
    said.vision_heads = Some(4);
    assert_eq!(bare.open_with(&said).unwrap().architecture().vision.heads(), 4);
    for (key, said) in [
        ("heads", Conventions { vision_heads: Some(7), ..said.clone() }),
        ("heads", Conventions { text_heads: Some(0), ..said.clone() }),
        ("std", Conventions { std: Some([0.5, 0.0, 0.5]), ..said.clone() }),
        ("std", Conventions { std: Some([f32::NAN; 3]), ..said.clone() }),
    ] {
        assert!(bare.open_with(&said).map(|_| ()).unwrap_err().contains(key));
    }
    // Whatever OpenAI exported has these beside its parameters.
    let own = ["input_resolution", "context_length", "vocab_size"].map(|name| (name.to_owned(), vec![]));
    let own = Published::new(&named(&small()).into_iter().chain(own).collect::<Vec<_>>());
    assert_eq!(*own.open().unwrap().architecture(), small());
}

#[test]
fn the_configuration_of_another_model_in_the_folder_changes_nothing() {
    let own = ["input_resolution", "context_length", "vocab_size"].map(|name| (name.to_owned(), vec![]));
    let own = named(&small()).into_iter().chain(own).collect::<Vec<_>>();
    let openais = Published::new(&own).with("open_clip_config.json", open_clip(false, 16)).open().unwrap();
    assert_eq!((openais.architecture(), openais.source()), (&small(), "OpenAI's own file"));
    // Of PAC-S, whose sizes it does not even have.
    let mut other = open_clip(false, 16);
    other["model_cfg"]["vision_cfg"]["layers"] = json!(24);
    let beside = Published::new(&named(&small())).with("open_clip_config.json", other);
    assert!(beside.problem().contains("vision_cfg.layers"));
    assert_eq!(*beside.open_with(&Conventions::openai()).unwrap().architecture(), small());
}

#[test]
fn heads_of_wide_towers_are_never_guessed() {
    let vision = Vision::Transformer { patch_size: 2, width: 1280, layers: 1, heads: 16 };
    let wide = Architecture { activation: Activation::Gelu, ..Architecture::new(4, vision, small().text, 8) };
    let published = Published::new(&named(&wide));
    let Normalization { mean, std } = Normalization::default();
    let said =
        Conventions { activation: Some(Activation::Gelu), mean: Some(mean), std: Some(std), ..Conventions::default() };
    let text = published.open_with(&said).map(|_| ()).unwrap_err();
    assert!(text.contains("vision_heads (its vision encoder is 1280 wide)"), "{text}");
    let found = published.open_with(&Conventions { vision_heads: Some(16), ..said }).unwrap();
    assert_eq!(*found.architecture(), wide);
}

#[test]
fn factors_apart_have_alpha_in_them() {
    let module = "transformer.resblocks.0.mlp.c_proj";
    let weight = format!("{module}.weight");
    let mut shapes = named(&small());
    shapes.extend([(format!("{module}.lora_A"), vec![2, 256]), (format!("{module}.lora_B"), vec![64, 2])]);
    let mut tensors: Vec<_> =
        shapes.iter().enumerate().map(|(i, (name, shape))| (name.clone(), counting(shape, i))).collect();
    tensors.push((LORA_ALPHA.to_owned(), counting(&[], 8)));
    let folder = tempfile::tempdir().unwrap();
    let [trained, apart] = ["trained.safetensors", "apart.safetensors"].map(|name| folder.path().join(name));
    write_safetensors(&trained, &tensors).unwrap();
    let trained = Clip::of(&trained, small()).unwrap();
    write_safetensors(&apart, &trained.tensors_and_factors().unwrap()).unwrap();
    assert!(Archive::open(&apart).unwrap().shape(LORA_ALPHA).is_none());
    let merged = Conventions { lora: Some(LoraReading::Merged), ..Conventions::openai() };
    let apart = Clip::open(&apart, &merged).unwrap();
    let of = |clip: &Clip| {
        let tensors = clip.tensors().unwrap();
        tensors.iter().find(|(name, _)| *name == weight).map(|(_, tensor)| values(tensor)).unwrap()
    };
    let (found, expected) = (of(&apart), of(&trained));
    assert!(found.iter().zip(&expected).all(|(found, expected)| (found - expected).abs() <= 1e-6 * expected.abs()));
    let (_, plain) = tensors.iter().find(|(name, _)| *name == weight).unwrap();
    // W[0][0] + alpha / rank (B[0][0] A[0][0] + B[0][1] A[1][0]).
    let [a, b] = [&tensors[tensors.len() - 3].1, &tensors[tensors.len() - 2].1].map(values);
    assert_eq!(expected[0], values(plain)[0] + 8.0 / 2.0 * (b[0] * a[0] + b[1] * a[256]));

    for wrong in [counting(&[], 0), counting(&[2], 1)] {
        let path = folder.path().join("wrong.safetensors");
        tensors.last_mut().unwrap().1 = wrong;
        write_safetensors(&path, &tensors).unwrap();
        let problem = Clip::of(&path, small()).unwrap().tensors().unwrap_err().to_string();
        assert!(problem.contains("lora_alpha: is no number above 0"), "{problem}");
    }
}

#[test]
fn lora_factors_are_added_as_the_reading_says() {
    let block = "transformer.resblocks.0";
    let mut shapes = named(&small());
    for (module, [outputs, inputs]) in [
        (format!("{block}.attn.in_proj_weight_lora"), [192, 64]),
        (format!("{block}.attn.out_proj.lora"), [64, 64]),
        (format!("{block}.mlp.c_fc.lora"), [256, 64]),
        ("visual.conv1.lora".to_owned(), [128, 6]),
    ] {
        // A kernel of two by two has twice the rank.
        let rank = if module.contains("conv1") { 8 } else { 4 };
        shapes.push((format!("{module}_A"), vec![rank, inputs]));
        shapes.push((format!("{module}_B"), vec![outputs, rank]));
    }
    let published = Published::new(&shapes);
    let changed = |lora: LoraReading| {
        let clip = published.open_with(&Conventions { lora: Some(lora), ..Conventions::openai() }).unwrap();
        assert_eq!(clip.lora(), Some(lora));
        let plain = Archive::open(published.0.path()).unwrap();
        let tensors = clip.tensors().unwrap();
        assert_eq!(tensors.len(), named(&small()).len());
        let differs = |(name, tensor): &(String, Tensor<'_>)| plain.get(name).as_ref() != Some(tensor);
        tensors.iter().filter(|tensor| differs(tensor)).map(|(name, _)| name.clone()).collect::<Vec<_>>()
    };
    let released = ["attn.in_proj_weight", "attn.out_proj.weight"].map(|name| format!("{block}.{name}"));
    let with_convolution =
        |names: &[String]| names.iter().cloned().chain(["visual.conv1.weight".into()]).collect::<Vec<_>>();
    assert_eq!(changed(LoraReading::AsReleased), with_convolution(&released));
    let all = [&released[..], &[format!("{block}.mlp.c_fc.weight")]].concat();
    assert_eq!(changed(LoraReading::Merged), with_convolution(&all));

    let mut halved = shapes.clone();
    halved.retain(|(name, _)| name != "visual.conv1.lora_B");
    let text = Published::new(&halved).open_with(&Conventions::openai()).unwrap().tensors().unwrap_err().to_string();
    assert!(text.contains("visual.conv1.weight: has no LoRA factor B"), "{text}");
    shapes.push(("visual.ln_9.lora_A".to_owned(), vec![4, 4]));
    let text = Published::new(&shapes).open_with(&Conventions::openai()).map(|_| ()).unwrap_err();
    assert!(text.contains("visual.ln_9.weight: has LoRA factors, and is no weight of the model"), "{text}");
}

fn side() -> impl Strategy<Value = usize> {
    prop_oneof![4 => 0..200_usize, 2 => Just(64), 1 => Just(usize::MAX), 1 => any::<usize>()]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_shapes_make_it_panic(
        shapes in prop::collection::vec((any::<prop::sample::Index>(), prop::collection::vec(side(), 0..5)), 0..4),
        resnet in any::<bool>(),
    ) {
        let mut all = vit_shapes(64, 2, 2, 4, 64);
        if resnet {
            all.insert("visual.layer1.0.conv1.weight".to_owned(), vec![64, 64, 1, 1]);
            all.insert("visual.attnpool.positional_embedding".to_owned(), vec![50, 2048]);
        }
        let names: Vec<String> = all.keys().cloned().collect();
        all.extend(shapes.into_iter().map(|(name, shape)| (name.get(&names).clone(), shape)));
        if let Ok(found) = Architecture::from_shapes(&all) {
            prop_assert!(found.vision_tokens() > 0 && found.vision_width() > 0 && found.text.heads > 0);
        }
    }
}
