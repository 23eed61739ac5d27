//! `worker evaluate`: captions a split with a checkpoint, and scores the captions.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use caption_metrics::results::{self, CaptionResult};
use caption_metrics::{ImageEvaluation, Item};
use config::{Captioner, RunFile};
use dataset::Split;
use proto::{IMAGES_PER_EVALUATION_RANGE, v1};
use run_assets::{RunAssets, open_metrics};
use tch::Device;
use weights::Conventions;

use super::device_options::DeviceOptions;
use super::score_output::ScoreOutput;
use crate::data::{BatchSource, DataLoader, LOADING_THREADS};
use crate::run_models::RunModels;
use crate::split_evaluation::{EvaluatedCaptions, SplitEvaluation};

/// Caption a split with a checkpoint, and score the captions.
///
/// Needs the checkpoint, and a run file with its data and evaluators. Prints a table of scores.
#[derive(clap::Args)]
#[command(after_help = "Example: worker evaluate --checkpoint runs/demo/checkpoints/2-dico-00000050 --config \
                        configs/demo.yaml --split test\n\nThe run file names the data, the evaluators and the settings of beam \
                        search. The scores equal those of an evaluation during training by workers with the same number of \
                        threads. A split without captions (for an evaluation server) gets only scores without references; \
                        --captions writes the file for the server. Images with domains, as in nocaps, also get scores for \
                        each domain.")]
pub struct Evaluate {
    /// Checkpoint, or model folder of `worker import`.
    #[arg(long, value_name = "DIR")]
    checkpoint: PathBuf,
    /// Run file.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Split to caption: train, val or test.
    #[arg(long, default_value = "test", value_name = "SPLIT")]
    split: Split,
    #[command(flatten)]
    output: ScoreOutput,
    /// Also write the captions to this file, as COCO results.
    #[arg(long, value_name = "FILE")]
    captions: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceOptions,
}

impl Evaluate {
    /// Runs the command.
    ///
    /// # Errors
    /// A file is missing or invalid, or no image can be decoded.
    pub fn run(self) -> Result<()> {
        let device = self.device.initialize()?;
        let run = self.run_file()?;
        let metrics = open_metrics(&run.scoring)?;
        let assets = RunAssets::for_evaluation(&run, self.split)?;
        let data = Arc::clone(&assets.data);
        let items = self.caption_split(&run, assets, device)?;
        if let Some(path) = &self.captions {
            let caption_result =
                |item: &'_ v1::EvaluationItem| CaptionResult::new(item.image_id, &item.image, &item.caption);
            let captions: Vec<CaptionResult> = items.iter().map(caption_result).collect();
            results::write(path, &captions).with_context(|| path.display().to_string())?;
        }
        let (names, evaluations): (Vec<String>, Vec<ImageEvaluation>) = items.into_iter().map(image_evaluation).unzip();
        let progress = cli_support::spinner(format!("scoring {} captions", names.len()));
        let mut report = metrics.evaluate(&evaluations);
        let domain_by_name: HashMap<&str, Option<&'static str>> =
            data.split(self.split).iter().map(|item| (item.name.as_str(), item.domain)).collect();
        let domains: Vec<Option<&'static str>> =
            names.iter().map(|name| domain_by_name.get(name.as_str()).copied().flatten()).collect();
        let items: Vec<Item> = evaluations.into_iter().map(|evaluation| evaluation.item).collect();
        metrics.add_domains(&items, &domains, &mut report);
        progress.finish_and_clear();
        self.output.print(&report, &names)
    }

    /// The run file with the checkpoint's captioner instead of its own, and without stages. The
    /// evaluator is the checkpoint's, too, if the run trains it or starts it from the seed.
    fn run_file(&self) -> Result<RunFile> {
        let mut run = RunFile::load(&self.config)?;
        let weights = Some(self.checkpoint.clone());
        run.captioner = Captioner {
            preset: None,
            weights,
            vision_encoder: None,
            vision_clip: Conventions::default(),
            ..run.captioner
        };
        let trains_evaluator = run.trains_evaluator();
        let evaluator = run.primary_evaluator_mut();
        if evaluator.preset.take().is_some() || trains_evaluator {
            evaluator.weights = Some(self.checkpoint.clone());
            evaluator.clip = Conventions::default();
        }
        run.stages.clear();
        run.data.positives = None;
        Ok(run)
    }

    /// Captions all images of the split. The items are sorted by name, as in the coordinator: sums
    /// of floating-point numbers depend on the order.
    fn caption_split(&self, run: &RunFile, assets: RunAssets, device: Device) -> Result<Vec<v1::EvaluationItem>> {
        let RunAssets { data, scenes, weights, feature_stores } = assets;
        let images = data.split(self.split).len();
        let models = RunModels::build(run, &weights, device)?;
        let skip_corrupt = run.data.skip_corrupt;
        let source = BatchSource { data: Arc::clone(&data), sizes: models.image_sizes(), feature_stores, skip_corrupt };
        let loader = DataLoader::new(source, LOADING_THREADS);
        let split_evaluation = SplitEvaluation {
            run,
            models: &models,
            data: &data,
            split: self.split,
            scenes: scenes.as_ref(),
            captions: EvaluatedCaptions::Captioner,
        };
        let bar = cli_support::progress_bar(images as u64, "images");
        let range_length = IMAGES_PER_EVALUATION_RANGE as usize;
        let ranges = (0..images).step_by(range_length).map(|begin| begin..images.min(begin + range_length));
        let mut items = Vec::with_capacity(images);
        let mut skipped = 0;
        for (range, batch) in loader.load_ranges(self.split, ranges) {
            let batch = batch?;
            skipped += batch.skipped;
            items.extend(split_evaluation.evaluate_batch(&batch));
            bar.set_position(range.end as u64);
        }
        if skipped > 0 {
            tracing::warn!("{skipped} of {images} images could not be decoded and were left out");
        }
        bar.finish_and_clear();
        if items.is_empty() {
            bail!("no image of split `{}` can be decoded", self.split);
        }
        items.sort_by(|a, b| a.image.cmp(&b.image));
        Ok(items)
    }
}

/// The name of an image, and its caption with the references, scores and embeddings that metrics
/// need.
fn image_evaluation(item: v1::EvaluationItem) -> (String, ImageEvaluation) {
    let v1::EvaluationItem { image, caption, references, scores, embeddings, .. } = item;
    let item = Item { candidate: caption, references };
    let named_embeddings =
        |v1::Embeddings { prefix, image, text }: v1::Embeddings| (prefix, caption_metrics::Embeddings { image, text });
    let embeddings = embeddings.into_iter().map(named_embeddings).collect();
    (image, ImageEvaluation { item, scores: scores.into_iter().collect(), embeddings })
}
