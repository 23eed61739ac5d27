//! `coordinator validate`: checks a run file, and the files and data that it names.

mod images;
mod sizes;

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use clap::Args;
use config::{RunFile, Stage};
use dataset::DataSet;
use run_assets::{Evaluator, RunAssets, WeightSources};
use serde_json::json;
use tokenizer::Vocabulary;
use weights::{ClipWeights, VisionConfig};

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
        let (assets, asset_descriptions) = check_assets(file, &images.data)?;
        progress.finish_and_clear();
        for (split, store) in assets.feature_stores.iter() {
            images.add_undecodable_rows(split, store);
        }
        images.check_usable(self.json)?;
        let descriptions = images.summary().into_iter().chain(asset_descriptions).collect();
        Ok((images, descriptions))
    }
}

/// Opens the assets of a run, and checks them as workers do. Returns the assets, and descriptions
/// of them in lines for people.
fn check_assets(file: &RunFile, data: &Arc<DataSet>) -> anyhow::Result<(RunAssets, Vec<String>)> {
    run_assets::open_metrics(&file.scoring)?;
    checkpoint_store::check_writable(&file.checkpoint_location(), &object_storage::Access::from_environment())
        .context("checkpoints")?;
    // A corpus vocabulary has all tokens of the training captions, so these have as many tokens
    // with it as with the full vocabulary.
    let assets = RunAssets::with_training_data(file, Arc::clone(data), Vocabulary::full())?;
    assets.weights.check_tensors()?;
    let notes = data.notes().iter().map(|note| format!("data: {note}"));
    let sizes = sizes::describe_sizes(file, data, &assets.weights.captioner_vocabulary);
    let features = file.data.features.iter().map(|folder| format!("features: {}", folder.display()));
    let descriptions = notes.chain(describe_weights(file, &assets.weights)).chain(sizes).chain(features).collect();
    Ok((assets, descriptions))
}

/// Describes the models that have weights, in lines for people.
fn describe_weights(file: &RunFile, weights: &WeightSources) -> Vec<String> {
    let mut descriptions = Vec::new();
    let mut describe = |model: String, clip: &ClipWeights| {
        descriptions.push(format!("{model} with {}", describe_vision_output(&clip.config().vision_config())));
        descriptions.extend(clip.description().map(|line| format!("  {line}")));
    };
    for Evaluator { name, score, clip_index, .. } in &weights.evaluators {
        let Some(clip) = weights.clip(*clip_index) else { continue };
        describe(format!("evaluator {name} ({}): {}, vision encoder", score.name(), clip.path().display()), clip);
    }
    if let Some(clip) = &weights.vision_encoder {
        describe(format!("captioner: vision encoder {}", clip.weights.path().display()), &clip.weights);
    }
    if let (Some(path), Some(vision)) = (&file.captioner.weights, weights.vision_config()) {
        let output = describe_vision_output(vision);
        descriptions.push(format!("captioner: {}, vision encoder with {output}", path.display()));
    }
    descriptions
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
