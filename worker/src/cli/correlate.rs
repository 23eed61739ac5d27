use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::path::PathBuf;

use caption_metrics::correlation::{accuracy, kendall};
use caption_metrics::files::judgements::{JudgedCaption, Judgements};
use caption_metrics::{Files, Item, Metrics, Report};
use dataset::DataSet;
use dataset::image_folder::ImageFolder;
use serde_json::{Value, json};

use super::device::Compute;
use super::evaluator::{self, EvaluatorArgument};
use crate::caption_scorer::CaptionScorer;

/// The category of all pairs together.
const ALL: &str = "all";

#[derive(clap::Args)]
#[command(after_help = "Example:\n  worker correlate --judgements flickr8k.json --images flickr8k/images \\\n    \
                        --evaluator pac_s=clip_ViT-B-32.pth,family=openai --evaluator clip_s=ViT-B-32.pt\n\n\
                        The judgements are ratings of captions, in the form in which CLIPScore and PAC-S distribute \
                        Flickr8k-Expert and Flickr8k-CF, {ID: {\"image_path\", \"ground_truth\": [...], \"human_judgement\": \
                        [{\"caption\", \"rating\"}, ...]}}; or [{\"image\", \"caption\", \"references\", \"rating\"}, ...]; or \
                        pairs, as of Pascal-50S: [{\"image\", \"captions\": [A, B], \"references\", \"preferred\": 0 or 1, \
                        \"category\"}, ...]. For ratings it prints Kendall's tau-b and tau-c (times 100) of each metric; for \
                        pairs, in how many (percent) the preferred caption has the higher score. Equal scores count half.")]
pub struct Correlate {
    /// What people think of captions.
    #[arg(long, value_name = "FILE")]
    judgements: PathBuf,
    /// An evaluator: see `worker score`. May be given several times.
    #[arg(long = "evaluator", value_name = "NAME=FILE")]
    evaluators: Vec<EvaluatorArgument>,
    /// Folder of the images, which are found by path or file name.
    #[arg(long, value_name = "DIR", required_unless_present = "text_only")]
    images: Option<PathBuf>,
    /// Only look at metrics that compare texts.
    #[arg(long, conflicts_with = "evaluators")]
    text_only: bool,
    /// Keep the evaluators' embeddings of images in this folder, and take those that are there.
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// meteor-1.5.jar: METEOR's function words and synonyms.
    #[arg(long, value_name = "FILE", env = "DICO_METEOR_JAR")]
    meteor_jar: Option<PathBuf>,
    /// METEOR's paraphrase-en.gz.
    #[arg(long, value_name = "FILE", env = "DICO_METEOR_PARAPHRASES")]
    meteor_paraphrases: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    compute: Compute,
}

impl Correlate {
    pub fn run(self) -> Result<(), String> {
        let device = self.compute.prepare()?;
        let text = |error: caption_metrics::Error| error.to_string();
        let judgements = Judgements::read(&self.judgements).map_err(text)?;
        let captions = judgements.captions();
        let items: Vec<Item> = captions.iter().map(|judged| judged.item.clone()).collect();
        let files = Files::new([&self.meteor_jar, &self.meteor_paraphrases, &None]);
        let metrics = Metrics::open(&files).map_err(text)?;
        let progress = cli_support::spinner(format!("scoring {} captions", items.len()));
        let mut report = metrics.score(&items);
        progress.finish_and_clear();
        report.notes.iter().for_each(|note| tracing::warn!("{note}"));
        if let Some(folder) = &self.images {
            let images = ImageFolder::open(folder).map_err(|error| error.to_string())?;
            self.score_by_evaluators(&images, &captions, &items, device, &mut report)?;
        }
        let found = match &judgements {
            Judgements::Ratings(rated) => {
                correlations(&report, &rated.iter().map(|(_, rating)| *rating).collect::<Vec<_>>())
            }
            Judgements::Pairs(pairs) => {
                accuracies(&report, &pairs.iter().map(|(_, category)| category.as_str()).collect::<Vec<_>>())
            }
        };
        self.print(&found, captions.len())
    }

    /// Adds the scores of all evaluators.
    fn score_by_evaluators(
        &self,
        folder: &ImageFolder,
        captions: &[&JudgedCaption],
        items: &[Item],
        device: tch::Device,
        report: &mut Report,
    ) -> Result<(), String> {
        let (mut files, mut numbers) = (Vec::new(), HashMap::new());
        for judged in captions {
            if !numbers.contains_key(judged.image.as_str()) {
                let path = folder.find([judged.image.as_str()]);
                let path = path.ok_or_else(|| format!("there is no image {:?} in --images", judged.image))?;
                numbers.insert(judged.image.as_str(), files.len());
                files.push((judged.image.clone(), path.to_owned()));
            }
        }
        for evaluator in evaluator::named(&self.evaluators, None)? {
            let scorer = CaptionScorer::open(&evaluator, device)
                .map_err(|problem| format!("evaluator {}: {problem}", evaluator.name))?;
            let bar = cli_support::bar(files.len() as u64, "images");
            let data = DataSet::of_images(files.clone());
            let embedded = scorer.embed_images(data, self.cache.as_deref(), |done| bar.set_position(done as u64));
            bar.finish_and_clear();
            let embedded = embedded?;
            let width = embedded.len() / files.len();
            let of_caption = |judged: &&JudgedCaption| &embedded[numbers[judged.image.as_str()] * width..][..width];
            let images: Vec<f32> = captions.iter().flat_map(of_caption).copied().collect();
            let progress = cli_support::spinner("reading captions");
            scorer.score(&images, items, |_| {}).add(&evaluator, report);
            progress.finish_and_clear();
        }
        Ok(())
    }

    fn print(&self, found: &BTreeMap<String, Vec<(String, f64)>>, captions: usize) -> Result<(), String> {
        if self.json {
            let metric = |(name, values): (&String, &Vec<(String, f64)>)| {
                let values: BTreeMap<&str, f64> = values.iter().map(|(name, value)| (name.as_str(), *value)).collect();
                (name.clone(), json!(values))
            };
            let metrics: serde_json::Map<String, Value> = found.iter().map(metric).collect();
            return super::print(format_args!("{}", json!({ "captions": captions, "metrics": metrics })));
        }
        let width = found.keys().map(String::len).max().unwrap_or(0);
        let columns: Vec<&String> = found.values().next().into_iter().flatten().map(|(name, _)| name).collect();
        let mut out = std::io::BufWriter::new(cli_support::out());
        let mut table = || -> std::io::Result<()> {
            write!(out, "{:width$}", "")?;
            columns.iter().try_for_each(|name| write!(out, "  {name:>10}"))?;
            writeln!(out)?;
            for (name, values) in found {
                write!(out, "{name:width$}")?;
                values.iter().try_for_each(|(_, value)| write!(out, "  {:>10.3}", 100.0 * value))?;
                writeln!(out)?;
            }
            out.flush()
        };
        table().map_err(|error| error.to_string())
    }
}

/// Tau-b and tau-c of each metric whose scores are not all the same.
fn correlations(report: &Report, ratings: &[f64]) -> BTreeMap<String, Vec<(String, f64)>> {
    let of = |(name, scores): (&caption_metrics::Name, &Vec<f64>)| {
        let [tau_b, tau_c] = kendall(scores, ratings)?;
        Some((name.clone().into_owned(), vec![("tau_b".to_owned(), tau_b), ("tau_c".to_owned(), tau_c)]))
    };
    report.items.iter().filter_map(of).collect()
}

/// Of each metric, in what share of the pairs of each category the first caption has the higher score.
fn accuracies(report: &Report, categories: &[&str]) -> BTreeMap<String, Vec<(String, f64)>> {
    let mut names: Vec<&str> = categories.iter().copied().filter(|name| !name.is_empty()).collect();
    names.sort_unstable();
    names.dedup();
    names.push(ALL);
    let of = |(name, scores): (&caption_metrics::Name, &Vec<f64>)| {
        let share = |category: &&str| {
            let pairs = scores.as_chunks::<2>().0.iter().zip(categories);
            let own =
                pairs.filter(|(_, own)| *category == ALL || *own == category).map(|([one, other], _)| (*one, *other));
            Some(((*category).to_owned(), accuracy(own)?))
        };
        (name.clone().into_owned(), names.iter().filter_map(share).collect())
    };
    report.items.iter().map(of).collect()
}
