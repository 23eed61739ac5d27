use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use caption_metrics::results::{self, Captioned};
use caption_metrics::{Files, ImageEvaluation, Item, Metrics};
use config::{Captioner, RunFile};
use dataset::{DataSet, Split};
use proto::{EVALUATION_RANGE, v1};
use tch::Device;
use weights::Conventions;

use super::device::Compute;
use super::report::Print;
use crate::caption_evaluator::{CaptionEvaluator, Writer};
use crate::data::{Loader, Source};
use crate::feature_source;
use crate::models::{self, WeightSources};

/// Threads that prepare batches.
const LOADING_THREADS: usize = 2;

#[derive(clap::Args)]
#[command(after_help = "Example: worker evaluate --checkpoint runs/demo/checkpoints/2-dico-00000050 --config \
                        configs/demo.yaml --split test\n\nThe run file says which data, which evaluator and how captions \
                        are searched; the scores are those of an evaluation during training by workers with as many threads. \
                        A split without captions (for an evaluation server) has scores that need no references; --captions \
                        writes what the server takes. Where images have domains, as those of nocaps, each domain has \
                        scores, too.")]
pub struct Evaluate {
    /// A checkpoint, or a folder that `worker import` made.
    #[arg(long, value_name = "DIR")]
    checkpoint: PathBuf,
    /// The run file.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Which split: train, val or test.
    #[arg(long, default_value = "test", value_name = "SPLIT")]
    split: Split,
    #[command(flatten)]
    print: Print,
    /// Write the captions, too, as a file of COCO results.
    #[arg(long, value_name = "FILE")]
    captions: Option<PathBuf>,
    #[command(flatten)]
    compute: Compute,
}

impl Evaluate {
    pub fn run(self) -> Result<(), String> {
        let device = self.compute.prepare()?;
        let run = self.run_of_checkpoint()?;
        let config::Scoring { meteor_jar, meteor_paraphrases, spice_jar } = &run.scoring;
        let files = Files::new([meteor_jar, meteor_paraphrases, spice_jar]);
        let metrics = Metrics::open(&files).map_err(|error| error.to_string())?;
        let data = Arc::new(self.data(&run)?);
        let items = self.examine(&run, &data, device)?;
        if let Some(path) = &self.captions {
            let captioned = |item: &'_ v1::EvaluationItem| Captioned::new(item.image_id, &item.image, &item.caption);
            let captions: Vec<Captioned> = items.iter().map(captioned).collect();
            results::write(path, &captions).map_err(|error| format!("{}: {error}", path.display()))?;
        }
        let (names, examined): (Vec<String>, Vec<ImageEvaluation>) = items.into_iter().map(examined).unzip();
        let progress = cli_support::spinner(format!("scoring {} captions", names.len()));
        let mut report = metrics.evaluate(&examined);
        let known: HashMap<&str, Option<&'static str>> =
            data.split(self.split).iter().map(|item| (item.name.as_str(), item.domain)).collect();
        let domains: Vec<Option<&'static str>> =
            names.iter().map(|name| known.get(name.as_str()).copied().flatten()).collect();
        let items: Vec<Item> = examined.into_iter().map(|one| one.item).collect();
        metrics.add_domains(&items, &domains, &mut report);
        progress.finish_and_clear();
        self.print.print(&report, &names)
    }

    /// The run file, with the checkpoint's captioner in the place of its own, and nothing to be trained.
    fn run_of_checkpoint(&self) -> Result<RunFile, String> {
        let mut run = RunFile::load(&self.config).map_err(|error| error.to_string())?;
        let weights = Some(self.checkpoint.clone());
        run.captioner = Captioner {
            preset: None,
            weights,
            vision_encoder: None,
            vision_clip: Conventions::default(),
            ..run.captioner
        };
        let trained = run.trains_evaluator();
        let evaluator = run.primary_evaluator_mut();
        if evaluator.preset.take().is_some() || trained {
            evaluator.weights = Some(self.checkpoint.clone());
            evaluator.clip = Conventions::default();
        }
        run.stages.clear();
        run.data.positives = None;
        Ok(run)
    }

    /// The split alone, unless features of the validation split are read: their stores belong to the whole data set.
    fn data(&self, run: &RunFile) -> Result<DataSet, String> {
        let stored = run.data.features.is_some() && self.split != Split::Test;
        let data = if stored { DataSet::load(&run.data) } else { DataSet::load_split(&run.data, self.split) };
        data.map_err(|error| error.to_string())
    }

    /// All images of the split, sorted by name as the coordinator does: sums depend on the order.
    fn examine(&self, run: &RunFile, data: &Arc<DataSet>, device: Device) -> Result<Vec<v1::EvaluationItem>, String> {
        let scenes = run.data.scenes.as_deref().map(synthetic_data::Scenes::load).transpose();
        let scenes = scenes.map_err(|error| error.to_string())?;
        let images = data.split(self.split).len();
        if images == 0 {
            return Err(format!("split `{}` has no images", self.split));
        }
        let sources = WeightSources::open(run, models::vocabulary(run, std::iter::empty()))?;
        let models = sources.models(device)?;
        run.check_positions(models.captioner.architecture().positions)?;
        let stores =
            if self.split == Split::Test { None } else { feature_source::stores(run, data, &sources, &models)? };
        let skip_corrupt = run.data.skip_corrupt;
        let source = Source { data: Arc::clone(data), sizes: models.sizes(), stores, skip_corrupt };
        let loader = Loader::new(source, LOADING_THREADS);
        let evaluator = CaptionEvaluator {
            run,
            models: &models,
            sources: &sources,
            data,
            split: self.split,
            scenes: scenes.as_ref(),
            writer: Writer::Captioner,
        };
        let bar = cli_support::bar(images as u64, "images");
        let range = EVALUATION_RANGE as usize;
        let ranges = (0..images).step_by(range).map(|from| from..images.min(from + range));
        let mut items = Vec::with_capacity(images);
        let mut skipped = 0;
        for (range, batch) in loader.ranges(self.split, ranges) {
            let batch = batch?;
            skipped += batch.skipped;
            items.extend(evaluator.items(&batch));
            bar.set_position(range.end as u64);
        }
        if skipped > 0 {
            tracing::warn!("{skipped} of {images} images could not be decoded and were left out");
        }
        bar.finish_and_clear();
        if items.is_empty() {
            return Err(format!("no image of split `{}` can be decoded", self.split));
        }
        items.sort_by(|a, b| a.image.cmp(&b.image));
        Ok(items)
    }
}

fn examined(item: v1::EvaluationItem) -> (String, ImageEvaluation) {
    let v1::EvaluationItem { image, caption, references, scores, embeddings, .. } = item;
    let item = Item { candidate: caption, references };
    let by_evaluator =
        |v1::Embeddings { prefix, image, text }: v1::Embeddings| (prefix, caption_metrics::Embeddings { image, text });
    let embeddings = embeddings.into_iter().map(by_evaluator).collect();
    (image, ImageEvaluation { item, scores: scores.into_iter().collect(), embeddings })
}
