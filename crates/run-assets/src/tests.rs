//! Tests with small weights, whose values are all equal.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use checkpoint_store::Checkpoints;
use config::RunFile;
use dataset::{DataSet, Split};
use image_features::{Dtype, Writer};
use object_storage::Access;
use tempfile::TempDir;
use tokenizer::Vocabulary;
use weights::clip::{LORA_ALPHA, lora_factor_names};
use weights::model_folder::{self, Manifest, TrainedEvaluator, VisionEncoder};
use weights::{CaptionerConfig, ClipConfig, Shapes, Tensor, TextConfig, VisionBackbone};

use super::*;

const WIDTH: usize = 8;
const EMBEDDING: usize = 6;
/// The number of positions of the captioner.
const POSITIONS: usize = 40;

/// A run that starts from weights. `FOLDER` is its folder.
const RUN: &str = "
name: test
output: FOLDER/run
workers: { min: 1, max: 1 }
data:
  karpathy: { annotations: FOLDER/dataset.json, images: FOLDER }
  features: FOLDER/features
captioner: { weights: FOLDER/captioner }
evaluator: { weights: FOLDER/evaluator.safetensors, clip: { family: openai, vision_heads: 2, text_heads: 2 } }
stages:
  - { name: dico, objective: dico, steps: 9, batch: 4, optimizer: { learning_rate: 1.0e-3 } }
";

fn clip_config(vocabulary_size: usize) -> ClipConfig {
    let vision = VisionBackbone::Transformer { patch_size: 2, width: WIDTH, layers: 1, heads: 2 };
    let text = TextConfig { width: WIDTH, layers: 1, heads: 2, context_length: 5, vocabulary_size };
    ClipConfig::new(4, vision, text, EMBEDDING)
}

fn write_weights(path: &Path, shapes: Shapes) {
    let tensor = |shape: Vec<usize>| {
        let bytes = Cow::Owned(0.5_f32.to_le_bytes().repeat(shape.iter().product()));
        Tensor { dtype: weights::Dtype::F32, shape, bytes }
    };
    let tensors: Vec<_> = shapes.into_iter().map(|(name, shape)| (name, tensor(shape))).collect();
    weights::write_safetensors(path, &tensors).unwrap();
}

/// Writes a checkpoint of a run that has trained LoRA factors of its evaluator, whose vision
/// encoder the captioner uses.
fn write_checkpoint(folder: &Path) {
    std::fs::create_dir(folder).unwrap();
    let vocabulary = model_folder::Vocabulary::Subset(vec![3, 17]);
    let evaluator = clip_config(vocabulary.size() - 1);
    let captioner = CaptionerConfig {
        vision_width: WIDTH,
        width: 4,
        heads: 2,
        encoder_layers: 1,
        encoder_inner: 6,
        encoder_positions: 9,
        decoder_layers: 1,
        decoder_inner: 10,
        positions: POSITIONS,
        vocabulary_size: vocabulary.size(),
    };
    write_weights(&folder.join(model_folder::CAPTIONER_FILE), captioner.shapes().unwrap());
    let mut shapes = evaluator.shapes().unwrap();
    let weight = "visual.transformer.resblocks.0.mlp.c_fc.weight";
    let [outputs, inputs] = shapes[weight][..] else { panic!("{weight} is no matrix") };
    let [a, b] = lora_factor_names(weight);
    shapes.extend([(a, vec![1, inputs]), (b, vec![outputs, 1]), (LORA_ALPHA.to_owned(), vec![])]);
    write_weights(&folder.join(model_folder::EVALUATOR_FILE), shapes);
    let vision = VisionEncoder {
        config: evaluator.vision_config(),
        path: model_folder::EVALUATOR_FILE.into(),
        sha256: None,
        // The file that the run began with had no factors.
        lora: None,
        upstream_prefix: None,
    };
    let trained = TrainedEvaluator { config: evaluator, vocabulary: vocabulary.clone() };
    Manifest::new(vocabulary, captioner, vision, Some(trained)).write(folder).unwrap();
    checkpoint_store::seal_folder(folder).unwrap();
}

/// A folder with the files that [`RUN`] names, except for feature stores.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let image = |name: &str, split: &str| {
        format!(r#"{{"filename": "{name}", "split": "{split}", "sentences": [{{"raw": "a red circle"}}]}}"#)
    };
    let images = [image("a.png", "train"), image("b.png", "val"), image("c.png", "test")].join(",");
    std::fs::write(path("dataset.json"), format!(r#"{{"images": [{images}]}}"#)).unwrap();
    let full = Vocabulary::full().size() as usize - 1;
    write_weights(&path("evaluator.safetensors"), clip_config(full).shapes().unwrap());
    write_checkpoint(&path("captioner"));
    folder
}

fn run(folder: &TempDir, replace: &[(&str, &str)]) -> RunFile {
    let text = replace.iter().fold(RUN.to_owned(), |text, (from, to)| {
        assert!(text.contains(from), "{from}");
        text.replace(from, to)
    });
    RunFile::parse(Path::new("run.yaml"), &text.replace("FOLDER", &folder.path().display().to_string())).unwrap()
}

fn sources(run: &RunFile) -> WeightSources {
    WeightSources::open(run, Vocabulary::full()).map_err(|error| error.to_string()).unwrap()
}

/// The error of opening the assets to train `run`.
fn training_error(run: &RunFile) -> String {
    let data = Arc::new(DataSet::load(&run.data).unwrap());
    RunAssets::with_training_data(run, data, Vocabulary::full()).err().unwrap().to_string()
}

/// Writes the feature store of a split.
fn store_features(run: &RunFile, split: Split) -> PathBuf {
    let data = DataSet::load(&run.data).unwrap();
    let manifest = expected_manifest(&data, split, &sources(run), Dtype::F16).unwrap();
    let folder = store_path(run.data.features.as_deref().unwrap(), split);
    let row = vec![1; manifest.row_bytes()];
    Writer::open(&folder, manifest).unwrap().append(&row).unwrap();
    folder
}

#[test]
fn the_message_of_an_error_begins_with_the_key_of_the_asset() {
    let folder = folder();
    std::fs::write(folder.path().join("scenes.json"), "[]").unwrap();
    let captioner = ("weights: FOLDER/captioner", "preset: tiny, vision_encoder: FOLDER/dataset.json");
    let by_name = "evaluators: { clip_s: { weights: FOLDER/nowhere.pt } }\nstages:";
    let too_long = format!("decoding: {{ max_length: {} }}\nstages:", POSITIONS + 1);
    for (replace, key, problem) in [
        (&[("FOLDER/evaluator.", "FOLDER/nowhere.")][..], "evaluator.weights: ", "nowhere.safetensors: No such file"),
        (&[("stages:", by_name)], "evaluators.clip_s.weights: ", "nowhere.pt: No such file"),
        (&[("FOLDER/captioner", "FOLDER")], "captioner.weights: ", "is not a model folder"),
        (&[("stages:", &too_long)], "captioner.weights: ", "the captioner has 40 positions"),
        (&[captioner, ("objective: dico", "objective: cross_entropy")], "captioner.vision_encoder: ", "dataset.json"),
        (&[("  features:", "  scenes: FOLDER/scenes.json\n  features:")], "data.scenes: ", "scenes.json"),
        (&[("  features:", "  scenes: FOLDER/none.json\n  features:")], "data.scenes: ", "none.json: No such file"),
        (&[("FOLDER/features", "FOLDER/nowhere")], "data.features: ", "nowhere/train"),
    ] {
        let error = training_error(&run(&folder, replace));
        assert!(error.starts_with(key) && error.contains(problem), "{error}");
    }
    let scoring = config::Scoring { meteor_jar: Some("nowhere.jar".into()), ..Default::default() };
    let error = open_metrics(&scoring).err().unwrap().to_string();
    assert!(error.starts_with("scoring: nowhere.jar: "), "{error}");
}

#[test]
fn the_encoder_of_a_checkpoint_is_described_with_the_factors_in_its_file() {
    let folder = folder();
    let evaluator = "evaluator: { weights: FOLDER/captioner }";
    let line = RUN.lines().find(|line| line.starts_with("evaluator:")).unwrap();
    let sources = sources(&run(&folder, &[(line, evaluator)]));
    let (vision, evaluators) = sources.frozen_encoders().unwrap();
    assert!(vision.computation.contains("LoRA"), "{}", vision.computation);
    assert_eq!((evaluators.len(), &evaluators[0].computation), (1, &vision.computation));
    // One encoder computes the hidden states and the embeddings.
    assert_eq!(sources.shared_vision_encoder(), Some(0));
}

#[test]
fn evaluators_with_the_same_weights_share_a_clip() {
    let folder = folder();
    let clip = "clip: { family: openai, vision_heads: 2, text_heads: 2 }";
    let same = format!("evaluators: {{ clip_s: {{ weights: FOLDER/evaluator.safetensors, {clip} }} }}\nstages:");
    let other = "evaluators: { clip_s: { weights: FOLDER/captioner } }\nstages:";
    for (evaluators, distinct) in [(same.as_str(), 1), (other, 2)] {
        let sources = sources(&run(&folder, &[("stages:", evaluators)]));
        let indices: Vec<usize> = sources.evaluators.iter().map(|evaluator| evaluator.clip_index).collect();
        assert_eq!(indices, [0, distinct - 1]);
        let widths = (sources.embedding_width(), sources.evaluation_embedding_width());
        assert_eq!(widths, (distinct * EMBEDDING, 2 * EMBEDDING));
        assert_eq!(sources.frozen_encoders().unwrap().1.len(), distinct);
        sources.check_tensors().map_err(|error| error.to_string()).unwrap();
    }
}

#[test]
fn an_evaluator_that_the_run_trains_or_initializes_has_no_features() {
    let folder = folder();
    let contrastive =
        "  - { name: pac, objective: contrastive, steps: 9, batch: 4, optimizer: { learning_rate: 1.0e-3 } }\n";
    let line = RUN.lines().find(|line| line.starts_with("evaluator:")).unwrap();
    let preset = "evaluator: { preset: tiny }";
    let features = "  features: FOLDER/features\n";
    let stages = format!("stages:\n{contrastive}");
    for (replace, width) in [
        (&[("stages:\n", stages.as_str()), (features, "")][..], EMBEDDING),
        (&[("stages:\n", &stages), (features, ""), (line, preset)], config::Preset::Tiny.evaluator_embedding_size()),
    ] {
        let run = run(&folder, replace);
        let sources = sources(&run);
        assert!(sources.saves_evaluator() && sources.frozen_encoders().is_none());
        assert_eq!((sources.embedding_width(), sources.evaluation_embedding_width()), (width, width));
        let data = DataSet::load_annotations(&run.data, Split::Train).unwrap();
        let error = expected_manifest(&data, Split::Train, &sources, Dtype::F32).unwrap_err().to_string();
        assert!(error.contains("only of frozen vision encoders"), "{error}");
    }
}

#[test]
fn an_evaluation_opens_only_the_feature_store_of_its_split() {
    let folder = folder();
    let run = run(&folder, &[]);
    store_features(&run, Split::Validation);
    let stores = |split| {
        let assets = RunAssets::for_evaluation(&run, split).map_err(|error| error.to_string()).unwrap();
        assert_eq!(
            Split::ALL.map(|other| assets.data.split(other).len()),
            Split::ALL.map(|other| usize::from(other == split))
        );
        Split::ALL.map(|split| assets.feature_stores.get(split).is_some())
    };
    assert_eq!(stores(Split::Validation), [false, true, false]);
    // Images of the test split are encoded.
    assert_eq!(stores(Split::Test), [false; 3]);
    assert!(training_error(&run).contains("features/train"));
    store_features(&run, Split::Train);
    let checkpoints = Checkpoints::open(&run.checkpoint_location(), &Access::from_environment()).unwrap();
    let assets = RunAssets::for_training(&run, &checkpoints).map_err(|error| error.to_string()).unwrap();
    assert_eq!(
        assets.feature_stores.iter().map(|(split, _)| split).collect::<Vec<_>>(),
        [Split::Train, Split::Validation]
    );
    // Encoding opens no store, because it writes them.
    let to_encode = RunAssets::for_encoding(&run).map_err(|error| error.to_string()).unwrap();
    assert_eq!(to_encode.feature_stores.iter().count(), 0);
}

#[test]
fn a_corpus_vocabulary_is_that_of_the_newest_readable_checkpoint() {
    let folder = folder();
    let replace = [
        ("weights: FOLDER/captioner", "preset: tiny"),
        ("objective: dico", "objective: cross_entropy"),
        ("stages:", "vocabulary: corpus\nstages:"),
    ];
    let run = run(&folder, &replace);
    let checkpoints = Checkpoints::open(&run.checkpoint_location(), &Access::from_environment()).unwrap();
    let saved = || saved_vocabulary(&run, &checkpoints).map_err(|error| error.to_string());
    let data = DataSet::load(&run.data).unwrap();
    let initial = initial_vocabulary(&run, &data);
    assert!(saved().unwrap().is_none());
    assert_eq!(initial.decode(&initial.encode("a red circle", 77)[1..]), "a red circle");
    let manifest = std::fs::read(folder.path().join("captioner").join(model_folder::MANIFEST_FILE)).unwrap();
    let write = |name: &str, manifest: &[u8]| {
        checkpoints.write(name, |files| files.add(model_folder::MANIFEST_FILE, [manifest.to_vec()])).unwrap();
    };
    write("0-xe-00000001", &manifest);
    assert_eq!(saved().unwrap().unwrap().to_manifest(), model_folder::Vocabulary::Subset(vec![3, 17]));
    write("0-xe-00000002", b"{}");
    let error = saved().err().unwrap();
    assert!(error.starts_with("checkpoints: 0-xe-00000002: models.json: "), "{error}");
    // A damaged checkpoint is skipped.
    let damaged = run.output.join("checkpoints/0-xe-00000002").join(model_folder::MANIFEST_FILE);
    std::fs::write(damaged, "{ }").unwrap();
    assert!(saved().unwrap().is_some());
}
