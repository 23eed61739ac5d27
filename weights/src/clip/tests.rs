use std::collections::BTreeMap;

use proptest::prelude::*;

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

#[test]
fn sizes_of_the_published_transformers_are_found() {
    for (width, layers, patch, image, text, tokens) in [
        (768, 12, 32, 224, 512, 50),
        (768, 12, 16, 224, 512, 197),
        (1024, 24, 14, 224, 768, 257),
        (1024, 24, 14, 336, 768, 577),
    ] {
        let found = Architecture::from_shapes(&vit_shapes(width, layers, patch, image, text)).unwrap();
        let vision = Vision::Transformer { patch_size: patch, width, layers, heads: width / 64 };
        let context = Text { width: text, layers: 12, heads: text / 64, context_length: 77, vocabulary_size: 49_408 };
        assert_eq!(found, Architecture { image_size: image, vision, text: context, embedding: text });
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
    let found = Architecture::from_shapes(&shapes).unwrap();
    assert_eq!(found.vision, Vision::ResNet { blocks: [3, 4, 6, 3], width: 64, heads: 32 });
    assert_eq!((found.image_size, found.embedding, found.text.width), (224, 1024, 512));
    assert_eq!((found.vision_width(), found.vision_tokens()), (2048, 49));
}

#[test]
fn sizes_that_make_no_sense_are_refused_by_tensor() {
    for (name, shape, expected) in [
        ("visual.conv1.weight", vec![768, 3, 32], "visual.conv1.weight: has shape [768, 3, 32]"),
        ("visual.conv1.weight", vec![768, 3, 32, 0], "none of them empty"),
        ("visual.conv1.weight", vec![100, 3, 32, 32], "visual.conv1.weight: makes for a width of 100"),
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
    let clip = Clip::open(folder.path()).unwrap();
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
    let text = Clip::open(folder.path()).map(|_| ()).unwrap_err().to_string();
    assert!(text.contains("transformer.resblocks.0.attn.in_proj_bias: needs a query, a key and a value"), "{text}");
}

fn small() -> Architecture {
    let vision = Vision::Transformer { patch_size: 2, width: 64, layers: 2, heads: 1 };
    let text = Text { width: 64, layers: 1, heads: 1, context_length: 5, vocabulary_size: 9 };
    Architecture { image_size: 4, vision, text, embedding: 64 }
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
        let clip = Clip::open(&path).unwrap();
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
    let text = Clip::open(&path).map(|_| ()).unwrap_err().to_string();
    let expected = "missing: transformer.resblocks.0.mlp.c_fc.weight, visual.ln_pre.bias; extra: extra.weight; \
                    misshapen: visual.ln_post.weight [65], not [64]";
    assert!(text.ends_with(expected), "{text}");
}

#[test]
fn what_is_no_clip_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("other.safetensors");
    write_safetensors(&path, &[("conv1.weight".to_owned(), counting(&[1], 0))]).unwrap();
    let text = Clip::open(&path).map(|_| ()).unwrap_err().to_string();
    assert!(text.contains("other.safetensors: is no CLIP"), "{text}");
}

#[test]
fn a_model_of_hugging_faces_that_computes_otherwise_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    write_shapes(&folder.path().join("model.safetensors"), &hugging_face());
    let open = |config: &str| {
        std::fs::write(folder.path().join("config.json"), config).unwrap();
        Clip::open(folder.path()).map(|_| ()).map_err(|error| error.to_string())
    };
    assert_eq!(open(r#"{"vision_config": {"hidden_act": "quick_gelu", "num_attention_heads": 1}}"#), Ok(()));
    let text = open(r#"{"text_config": {"hidden_act": "gelu"}}"#).unwrap_err();
    assert!(text.ends_with(r#"text_config.hidden_act: is "gelu"; only "quick_gelu" is supported"#), "{text}");
    let text = open(r#"{"vision_config": {"num_attention_heads": 16}}"#).unwrap_err();
    assert!(text.ends_with("vision_config.num_attention_heads: is 16; only 1 is supported"), "{text}");
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
