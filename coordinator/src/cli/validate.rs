//! `coordinator validate`: checks a run file, and the files and data that it names.

mod images;
mod sizes;

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use clap::Args;
use config::{RunFile, Stage};
use dataset::{DataSet, Split};
use image_features::{Dtype, EncoderDescription, Manifest, RowFormat, Store};
use serde_json::json;
use tokenizer::{MAX_TOKEN_BYTES, Vocabulary};
use weights::model_folder::{self, ModelFolder};
use weights::{ClipWeights, Conventions, VisionConfig};

use images::Images;

/// Check a run file, and the files and data that it names.
///
/// Checks that all files and images exist and fit together, and decodes up to 1,000 images of each
/// split (none if the run has a feature store). Starts no run and needs no coordinator. Prints
/// `OK`, the plan of the run, the models and data, and warnings. If images cannot be used, it lists
/// all of them.
///
/// Fails (exit status 1) if the run cannot start with this run file.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  coordinator validate --config configs/demo.yaml\n  \
                        coordinator validate --config configs/coco-vit-l14.yaml --decode-all --json")]
pub struct ValidateCommand {
    /// The run file.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Decode all images, not only some of each split.
    #[arg(long)]
    decode_all: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl ValidateCommand {
    /// Checks the run file and prints the result.
    pub fn run(self) -> anyhow::Result<()> {
        let (file, warnings) = RunFile::load_with_warnings(&self.config)?;
        let warnings: Vec<String> = warnings.iter().map(ToString::to_string).collect();
        let (images, descriptions) = self.check(&file).with_context(|| self.config.display().to_string())?;
        let mut out = cli_support::stdout();
        if self.json {
            let mut printed = json!({
                "run": file.name, "plan": plan_summary(&file), "found": descriptions, "warnings": warnings, "settings": file,
            });
            if let (Some(printed), serde_json::Value::Object(images)) = (printed.as_object_mut(), images.json()) {
                printed.extend(images);
            }
            writeln!(out, "{printed}")?;
            return Ok(());
        }
        writeln!(out, "OK: {}: {}", file.name, plan_summary(&file))?;
        descriptions.iter().try_for_each(|line| writeln!(out, "    {line}"))?;
        warnings.iter().try_for_each(|line| writeln!(out, "    warning: {line}"))?;
        Ok(())
    }

    /// Checks all that the run file names. Returns the images, and descriptions of data and files
    /// in lines for people.
    fn check(&self, file: &RunFile) -> anyhow::Result<(Images, Vec<String>)> {
        let mut images = Images::inspect(&file.data, self.decode_all)?;
        images.check_usable(self.json)?;
        let progress = cli_support::spinner("checking the files of the run file");
        let (stores, file_descriptions) = check_files(file, &images.data)?;
        progress.finish_and_clear();
        for (split, store) in &stores {
            images.add_undecodable_rows(*split, store);
        }
        images.check_usable(self.json)?;
        let descriptions = images.summary().into_iter().chain(file_descriptions).collect();
        Ok((images, descriptions))
    }
}

/// Opens the caption metrics with the files of the key `scoring`.
///
/// # Errors
/// A file is missing or damaged.
pub(super) fn open_metrics(scoring: &config::Scoring) -> anyhow::Result<caption_metrics::Metrics> {
    let config::Scoring { meteor_jar, meteor_paraphrases, spice_jar } = scoring;
    let files = caption_metrics::MetricFiles::new([meteor_jar, meteor_paraphrases, spice_jar]);
    caption_metrics::Metrics::open(&files).context("scoring")
}

/// Feature stores with their splits.
type SplitStores = Vec<(Split, Store)>;

/// Checks the files of a run file other than images. Returns the feature stores, and descriptions
/// of the files in lines for people.
fn check_files(file: &RunFile, data: &DataSet) -> anyhow::Result<(SplitStores, Vec<String>)> {
    if let Some(scenes) = &file.data.scenes {
        ensure!(scenes.is_file(), "data.scenes: there is no file {}", scenes.display());
    }
    open_metrics(&file.scoring)?;
    checkpoint_store::check_writable(&file.checkpoint_location(), &object_storage::Access::from_environment())
        .context("checkpoints")?;
    // A corpus vocabulary has all tokens of the training captions, so these have as many tokens
    // with it as with the full vocabulary.
    let mut vocabulary = Vocabulary::full();
    data.check_complete(file).context("data")?;
    let mut stores = Vec::new();
    let mut descriptions: Vec<String> = data.notes().iter().map(|note| format!("data: {note}")).collect();
    let mut evaluators: Vec<ClipWeights> = Vec::new();
    let mut embedding_size = 0;
    for named in file.named_evaluators() {
        embedding_size += named.settings.preset.map_or(0, config::Preset::evaluator_embedding_size);
        let Some(path) = &named.settings.weights else { continue };
        let clip = open_evaluator(path, &named.settings.clip).with_context(|| format!("{}.weights", named.key()))?;
        embedding_size += clip.config().embedding;
        let (name, score) = (named.name, named.score().name());
        descriptions.push(format!(
            "evaluator {name} ({score}): {}, vision encoder with {}",
            clip.path().display(),
            describe_vision_output(&clip.config().vision_config())
        ));
        descriptions.extend(clip.description().map(|line| format!("  {line}")));
        if !evaluators.iter().any(|other| other.is_same_model(&clip)) {
            evaluators.push(clip);
        }
    }
    // `named_evaluators` begins with the primary one.
    let primary_has_weights = file.primary_evaluator().settings.weights.is_some();
    let primary = evaluators.first().filter(|_| primary_has_weights);
    // The captioner's vision encoder: its configuration, and its description in feature stores.
    let mut vision = primary.map(|clip| (clip.config().vision_config(), describe_encoder(clip)));
    if let Some(path) = &file.captioner.vision_encoder {
        let clip = open_clip(path, &file.captioner.vision_clip).context("captioner.vision_encoder")?;
        descriptions.push(format!(
            "captioner: vision encoder {} with {}",
            path.display(),
            describe_vision_output(&clip.config().vision_config())
        ));
        descriptions.extend(clip.description().map(|line| format!("  {line}")));
        vision = Some((clip.config().vision_config(), describe_encoder(&clip)));
    }
    if let Some(path) = &file.captioner.weights {
        let (config, encoder, own_vocabulary) = open_captioner(file, path).context("captioner.weights")?;
        descriptions.push(format!(
            "captioner: {}, vision encoder with {}",
            path.display(),
            describe_vision_output(&config)
        ));
        vision = Some((config, encoder));
        vocabulary = own_vocabulary;
    }
    data.check_evaluation(embedding_size, file.decoding.max_length as usize * MAX_TOKEN_BYTES).context("data")?;
    descriptions.extend(sizes::describe_sizes(file, data, &vocabulary));
    if let (Some(folder), Some(vision)) = (&file.data.features, &vision) {
        stores = open_stores(folder, data, &evaluators, vision).context("data.features")?;
        descriptions.push(format!("features: {}", folder.display()));
    }
    Ok((stores, descriptions))
}

/// Opens an evaluator and checks its files.
fn open_evaluator(path: &Path, conventions: &Conventions) -> anyhow::Result<ClipWeights> {
    let (clip, _) = model_folder::open_evaluator(path, conventions)?;
    if path.is_dir() && path.join(model_folder::MANIFEST_FILE).is_file() {
        checkpoint_store::verify_folder(path)?;
    }
    clip.tensors()?;
    Ok(clip)
}

/// Opens the weights of a CLIP model and checks its tensors.
fn open_clip(path: &Path, conventions: &Conventions) -> anyhow::Result<ClipWeights> {
    let clip = ClipWeights::open(path, conventions)?;
    clip.tensors()?;
    Ok(clip)
}

/// The description by which a feature store identifies a vision encoder.
fn describe_encoder(clip: &ClipWeights) -> EncoderDescription {
    let (image_size, computation) =
        (clip.config().image_size as u32, clip.config().vision_config().differences_from_openai(clip.lora()));
    EncoderDescription { weights: clip.path().to_owned(), sha256: clip.sha256(), image_size, computation }
}

/// Opens the model folder of a captioner: a checkpoint of another run, or the result of `worker
/// import`. Returns its vision encoder and vocabulary.
fn open_captioner(file: &RunFile, path: &Path) -> anyhow::Result<(VisionConfig, EncoderDescription, Vocabulary)> {
    let folder = ModelFolder::open(path)?;
    checkpoint_store::verify_folder(path)?;
    let manifest = folder.manifest();
    let vision = folder.vision()?;
    let config = manifest.vision.config.clone();
    file.check_positions(manifest.captioner.positions)?;
    let (image_size, computation) = (config.image_size as u32, config.differences_from_openai(manifest.vision.lora));
    let encoder =
        EncoderDescription { weights: vision.path().to_owned(), sha256: vision.sha256(), image_size, computation };
    Ok((config, encoder, Vocabulary::from_manifest(&manifest.vocabulary)))
}

/// Opens the feature stores of the training and validation splits.
fn open_stores(
    folder: &Path,
    data: &DataSet,
    evaluators: &[ClipWeights],
    (config, vision): &(VisionConfig, EncoderDescription),
) -> anyhow::Result<SplitStores> {
    let open = |split: Split| -> anyhow::Result<(Split, Store)> {
        let images = (data.split(split).len() as u64, data.names_sha256(split));
        let embedding_size = evaluators.iter().map(|clip| clip.config().embedding).sum();
        let shape = [config.sequence_length(), config.width(), embedding_size];
        let rows = RowFormat { shape: shape.map(|size| size as u64), dtype: Dtype::F32 };
        let encoders = (vision.clone(), evaluators.iter().map(describe_encoder).collect());
        let expected =
            Manifest::new(split.name().to_owned(), images, data.preprocessing().description(), encoders, rows);
        Ok((split, Store::open(&folder.join(split.name()), &expected)?))
    };
    [Split::Train, Split::Validation].into_iter().map(open).collect()
}

/// The shape of a vision encoder's output, as text.
fn describe_vision_output(vision: &VisionConfig) -> String {
    format!("{} hidden states of {} at {} pixels", vision.sequence_length(), vision.width(), vision.image_size)
}

/// The stages and the number of workers, in one line.
fn plan_summary(file: &RunFile) -> String {
    let stage = |stage: &Stage| {
        let Stage { name, objective, steps, batch, .. } = stage;
        format!("{name} ({}, {steps} steps of {batch})", objective.name())
    };
    let stages: Vec<String> = file.stages.iter().map(stage).collect();
    format!("{}; {} to {} workers", stages.join(", "), file.workers.min, file.workers.max)
}
