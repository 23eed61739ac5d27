//! `worker correlate`: correlation of metrics with human judgements.

use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result};
use caption_metrics::correlation::{kendall_tau, pairwise_accuracy};
use caption_metrics::files::judgements::{JudgedCaption, Judgements};
use caption_metrics::{Item, Report};
use config::Scoring;
use dataset::DataSet;
use dataset::image_folder::ImageFolder;
use run_assets::open_metrics;
use serde_json::{Value, json};

use super::device_options::DeviceOptions;
use super::evaluator_argument::{EvaluatorArgument, named_evaluators};
use crate::clip_scorer::LoadedEvaluator;

/// The name of the column for all pairs together.
const ALL_CATEGORIES: &str = "all";

/// Measure how well metrics agree with human judgements of captions.
///
/// Needs a file of judgements, and the images for metrics of evaluators. Prints a table with a row
/// for each metric.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  worker correlate --judgements flickr8k.json --images flickr8k/images \\\n    \
                        --evaluator pac_s=clip_ViT-B-32.pth,family=openai --evaluator clip_s=ViT-B-32.pt\n\n\
                        The judgements are ratings of captions, in the format of CLIPScore and PAC-S for \
                        Flickr8k-Expert and Flickr8k-CF, {ID: {\"image_path\", \"ground_truth\": [...], \"human_judgement\": \
                        [{\"caption\", \"rating\"}, ...]}}; or [{\"image\", \"caption\", \"references\", \"rating\"}, ...]; or \
                        pairs, as in Pascal-50S: [{\"image\", \"captions\": [A, B], \"references\", \"preferred\": 0 or 1, \
                        \"category\"}, ...]. For ratings, the table has Kendall's tau-b and tau-c (times 100) of each \
                        metric. For pairs, it has the percentage of pairs whose preferred caption has the higher score; equal \
                        scores count half.")]
pub struct Correlate {
    /// File of human judgements.
    #[arg(long, value_name = "FILE")]
    judgements: PathBuf,
    /// Evaluator, as for `worker score`. May be repeated.
    #[arg(long = "evaluator", value_name = "NAME=FILE")]
    evaluators: Vec<EvaluatorArgument>,
    /// Folder of the images, which are matched by path or file name.
    #[arg(long, value_name = "DIR", required_unless_present = "text_only")]
    images: Option<PathBuf>,
    /// Compute only metrics that need no images.
    #[arg(long, conflicts_with = "evaluators")]
    text_only: bool,
    /// Folder in which to cache the evaluators' image embeddings.
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// Path of meteor-1.5.jar, which has METEOR's function words and synonyms.
    #[arg(long, value_name = "FILE", env = "DICO_METEOR_JAR")]
    meteor_jar: Option<PathBuf>,
    /// Path of METEOR's paraphrase-en.gz.
    #[arg(long, value_name = "FILE", env = "DICO_METEOR_PARAPHRASES")]
    meteor_paraphrases: Option<PathBuf>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: DeviceOptions,
}

/// The results by metric: the name and the value of each column.
type ResultTable = BTreeMap<String, Vec<(String, f64)>>;

impl Correlate {
    /// Runs the command.
    ///
    /// # Errors
    /// A file is missing or invalid.
    pub fn run(self) -> Result<()> {
        let device = self.device.initialize()?;
        let judgements = Judgements::read(&self.judgements)?;
        let captions = judgements.captions();
        let items: Vec<Item> = captions.iter().map(|judged| judged.item.clone()).collect();
        let (meteor_jar, meteor_paraphrases) = (self.meteor_jar.clone(), self.meteor_paraphrases.clone());
        let metrics = open_metrics(&Scoring { meteor_jar, meteor_paraphrases, spice_jar: None })?;
        let progress = cli_support::spinner(format!("scoring {} captions", items.len()));
        let mut report = metrics.score(&items);
        progress.finish_and_clear();
        report.notes.iter().for_each(|note| tracing::warn!("{note}"));
        if let Some(folder) = &self.images {
            let images = ImageFolder::open(folder)?;
            self.add_evaluator_scores(&images, &captions, &items, device, &mut report)?;
        }
        let results = match &judgements {
            Judgements::Ratings(rated) => {
                correlations(&report, &rated.iter().map(|(_, rating)| *rating).collect::<Vec<_>>())
            }
            Judgements::Pairs(pairs) => {
                accuracies(&report, &pairs.iter().map(|(_, category)| category.as_str()).collect::<Vec<_>>())
            }
        };
        self.print(&results, captions.len())
    }

    /// Adds the scores of all evaluators to the report.
    fn add_evaluator_scores(
        &self,
        folder: &ImageFolder,
        captions: &[&JudgedCaption],
        items: &[Item],
        device: tch::Device,
        report: &mut Report,
    ) -> Result<()> {
        let (mut files, mut image_indices) = (Vec::new(), HashMap::new());
        for judged in captions {
            if !image_indices.contains_key(judged.image.as_str()) {
                let path = folder.find([judged.image.as_str()]);
                let path = path.with_context(|| format!("there is no image {:?} in --images", judged.image))?;
                image_indices.insert(judged.image.as_str(), files.len());
                files.push((judged.image.clone(), path.to_owned()));
            }
        }
        for evaluator in named_evaluators(&self.evaluators, None)? {
            let scorer =
                LoadedEvaluator::open(&evaluator, device).with_context(|| format!("evaluator {}", evaluator.name))?;
            let bar = cli_support::progress_bar(files.len() as u64, "images");
            let data = DataSet::from_files(files.clone());
            let embeddings = scorer.embed_images(data, self.cache.as_deref(), |done| bar.set_position(done as u64));
            bar.finish_and_clear();
            let embeddings = embeddings?;
            let width = embeddings.len() / files.len();
            let image_embedding =
                |judged: &&JudgedCaption| &embeddings[image_indices[judged.image.as_str()] * width..][..width];
            let images: Vec<f32> = captions.iter().flat_map(image_embedding).copied().collect();
            let progress = cli_support::spinner("embedding captions");
            scorer.score(&images, items, |_| {}).add(&evaluator, report);
            progress.finish_and_clear();
        }
        Ok(())
    }

    fn print(&self, results: &ResultTable, captions: usize) -> Result<()> {
        if self.json {
            let metric = |(name, values): (&String, &Vec<(String, f64)>)| {
                let values: BTreeMap<&str, f64> = values.iter().map(|(name, value)| (name.as_str(), *value)).collect();
                (name.clone(), json!(values))
            };
            let metrics: serde_json::Map<String, Value> = results.iter().map(metric).collect();
            return super::print(format_args!("{}", json!({ "captions": captions, "metrics": metrics })));
        }
        let width = results.keys().map(String::len).max().unwrap_or(0);
        let columns: Vec<&String> = results.values().next().into_iter().flatten().map(|(name, _)| name).collect();
        let mut out = std::io::BufWriter::new(cli_support::stdout());
        write!(out, "{:width$}", "")?;
        columns.iter().try_for_each(|name| write!(out, "  {name:>10}"))?;
        writeln!(out)?;
        for (name, values) in results {
            write!(out, "{name:width$}")?;
            values.iter().try_for_each(|(_, value)| write!(out, "  {:>10.3}", 100.0 * value))?;
            writeln!(out)?;
        }
        out.flush()?;
        Ok(())
    }
}

/// Tau-b and tau-c of each metric. Metrics with the same score for all captions are left out.
fn correlations(report: &Report, ratings: &[f64]) -> ResultTable {
    let row = |(name, scores): (&caption_metrics::MetricName, &Vec<f64>)| {
        let [tau_b, tau_c] = kendall_tau(scores, ratings)?;
        Some((name.clone().into_owned(), vec![("tau_b".to_owned(), tau_b), ("tau_c".to_owned(), tau_c)]))
    };
    report.items.iter().filter_map(row).collect()
}

/// The accuracy of each metric in each category: the share of pairs in which the first caption, the
/// preferred one, has the higher score. Equal scores count half.
fn accuracies(report: &Report, categories: &[&str]) -> ResultTable {
    let mut names: Vec<&str> = categories.iter().copied().filter(|name| !name.is_empty()).collect();
    names.sort_unstable();
    names.dedup();
    names.push(ALL_CATEGORIES);
    let row = |(name, scores): (&caption_metrics::MetricName, &Vec<f64>)| {
        let category_accuracy = |category: &&str| {
            let pairs = scores.as_chunks::<2>().0.iter().zip(categories);
            let pairs = pairs.filter(|(_, pair_category)| *category == ALL_CATEGORIES || *pair_category == category);
            Some(((*category).to_owned(), pairwise_accuracy(pairs.map(|([first, second], _)| (*first, *second)))?))
        };
        (name.clone().into_owned(), names.iter().filter_map(category_accuracy).collect())
    };
    report.items.iter().map(row).collect()
}
