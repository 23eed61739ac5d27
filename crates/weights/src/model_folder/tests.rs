use proptest::prelude::*;

use super::*;
use crate::captioner::WRAPPED_VISION_PREFIX;
use crate::test_util::write_tensors_of_shapes;
use crate::{CaptionerConfig, VisionBackbone, VisionConfig};

fn manifest() -> Manifest {
    let captioner = CaptionerConfig {
        vision_width: 8,
        width: 4,
        heads: 2,
        encoder_layers: 1,
        encoder_inner: 6,
        encoder_positions: 9,
        decoder_layers: 1,
        decoder_inner: 10,
        positions: 7,
        vocabulary_size: 5,
    };
    let backbone = VisionBackbone::Transformer { patch_size: 2, width: 8, layers: 1, heads: 2 };
    let config = VisionConfig::new(4, backbone);
    let vision = VisionEncoder { config, path: VISION_FILE.into(), sha256: None, lora: None, upstream_prefix: None };
    Manifest::new(Vocabulary::Subset(vec![3, 17]), captioner, vision, None)
}

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let manifest = manifest();
    manifest.write(folder.path()).unwrap();
    let shapes = |shapes: crate::Shapes| shapes.into_iter().collect::<Vec<_>>();
    write_tensors_of_shapes(&folder.path().join(CAPTIONER_FILE), &shapes(manifest.captioner.shapes().unwrap()));
    write_tensors_of_shapes(&folder.path().join(VISION_FILE), &shapes(manifest.vision.config.shapes().unwrap()));
    folder
}

/// The error of opening a folder after `change` of its manifest.
fn problem(change: impl FnOnce(&mut Manifest)) -> String {
    let folder = folder();
    let mut manifest = manifest();
    change(&mut manifest);
    manifest.write(folder.path()).unwrap();
    let opened = ModelFolder::open(folder.path()).and_then(|folder| folder.vision().map(|_| ()));
    opened.unwrap_err().to_string()
}

#[test]
fn a_written_folder_can_be_opened() {
    let folder = folder();
    let opened = ModelFolder::open(folder.path()).unwrap();
    assert_eq!(*opened.manifest(), manifest());
    assert_eq!(opened.vision().unwrap().tensors().unwrap().len(), 17);
    assert!(opened.imported_files().unwrap().is_none());
}

#[test]
fn an_exported_config_has_the_code_location_and_the_token_ids() {
    let folder = folder();
    let opened = ModelFolder::open(folder.path()).unwrap();
    let vision = opened.vision().unwrap();
    let (config, _) = opened.to_upstream(&vision, None).unwrap();
    assert_eq!(config["auto_map"]["AutoModel"], "modeling_dico.DicoCaptioner");
    assert_eq!(config["clip_tokens"], serde_json::json!([3, 17]));
    assert_eq!(config["decoder"]["vocab_size"], 5);
    assert_eq!(config["encoder"].get("vision_model_nested"), None);

    // An import's config and tensors are exported unchanged, and its vision encoder keeps its
    // names.
    let mut manifest = manifest();
    manifest.vision.upstream_prefix = Some(WRAPPED_VISION_PREFIX.to_owned());
    manifest.write(folder.path()).unwrap();
    let opened = ModelFolder::open(folder.path()).unwrap();
    let unused = [("encoder.encoder.pooler.dense.bias".to_owned(), vec![4])];
    write_tensors_of_shapes(&folder.path().join(UNUSED_TENSORS_FILE), &unused);
    let imported = serde_json::json!({ "encoder": { "own": 1 }, "auto_map": { "AutoModel": "theirs.Model" } });
    std::fs::write(folder.path().join(UPSTREAM_CONFIG_FILE), imported.to_string()).unwrap();
    let imported_files = opened.imported_files().unwrap();
    let (config, tensors) = opened.to_upstream(&vision, imported_files.as_ref()).unwrap();
    assert_eq!(config["encoder"], serde_json::json!({ "own": 1, "vision_model_nested": true }));
    assert_eq!(config["auto_map"]["AutoModel"], "modeling_dico.DicoCaptioner");
    let names: Vec<_> = tensors.iter().map(|(name, _)| name.as_str()).collect();
    assert!(names.contains(&"encoder.vision_encoder.vision_model.pre_layrnorm.bias"), "{names:?}");
    assert!(names.contains(&unused[0].0.as_str()), "{names:?}");

    // An invalid config is left unchanged.
    std::fs::write(folder.path().join(UPSTREAM_CONFIG_FILE), "[]").unwrap();
    let (config, _) = opened.to_upstream(&vision, opened.imported_files().unwrap().as_ref()).unwrap();
    assert_eq!(config, serde_json::json!([]));
}

#[test]
fn a_captioner_is_untrained_while_its_last_layer_norm_is_unchanged() {
    let folder = folder();
    let open = || ModelFolder::open(folder.path()).unwrap();
    assert!(!open().is_captioner_untrained());
    let ones = 1.0_f32.to_le_bytes().repeat(4);
    let mut changed = ones.clone();
    changed[3] += 1;
    for (weight, bias, is_untrained) in [(&ones, [0; 16], true), (&changed, [0; 16], false), (&ones, [1; 16], false)] {
        let opened = open();
        let mut tensors: Vec<_> =
            opened.captioner().into_iter().map(|(name, tensor)| (name, tensor.into_owned())).collect();
        for (name, tensor) in &mut tensors {
            match name.as_str() {
                "decoder.transformer.ln_f.weight" => tensor.bytes = weight.clone().into(),
                "decoder.transformer.ln_f.bias" => tensor.bytes = bias.to_vec().into(),
                _ => {}
            }
        }
        crate::write_safetensors(&folder.path().join(CAPTIONER_FILE), &tensors).unwrap();
        assert_eq!(open().is_captioner_untrained(), is_untrained);
    }
}

#[test]
fn a_manifest_that_differs_from_the_files_is_refused() {
    let too_wide = problem(|manifest| manifest.captioner.decoder_inner = 1 << 40);
    assert!(
        too_wide.contains("misshapen: decoder.transformer.h.0.mlp.c_fc.bias [10], not [1099511627776]"),
        "{too_wide}"
    );
    assert!(problem(|manifest| manifest.captioner.encoder_layers = usize::MAX).contains("layers are more than"));
    assert!(problem(|manifest| manifest.captioner.heads = 0).contains("0 heads cannot share a width of 4"));
    assert!(problem(|manifest| manifest.vision.path = "../vision.safetensors".into()).contains("must be a file of"));
    assert!(problem(|manifest| manifest.vision.config.image_size = 6).contains("10 hidden states of 8"));
    assert!(problem(|manifest| manifest.vocabulary = Vocabulary::Full).contains("has 49409 tokens"));
    let descending = problem(|manifest| manifest.vocabulary = Vocabulary::Subset(vec![17, 3]));
    assert!(descending.contains("vocabulary: must ascend"), "{descending}");
    let missing_file = problem(|manifest| {
        manifest.vision.path = "/nowhere/ViT-L-14.pt".into();
        manifest.vision.sha256 = Some("0".into());
    });
    assert!(missing_file.contains("/nowhere/ViT-L-14.pt"), "{missing_file}");
}

proptest! {
    #[test]
    fn arbitrary_manifests_cause_no_panic(text in ".*", index in 0..400_usize, byte: u8) {
        let folder = folder();
        let path = folder.path().join(MANIFEST_FILE);
        let mut mutated = std::fs::read(&path).unwrap();
        let index = index % mutated.len();
        mutated[index] = byte;
        for content in [text.into_bytes(), mutated, b"[".repeat(100_000)] {
            std::fs::write(&path, content).unwrap();
            // Most manifests are refused; some mutations are valid.
            _ = ModelFolder::open(folder.path()).and_then(|folder| folder.vision().map(|_| ()));
        }
    }
}
