//! `worker score`: scores captions against references and images.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use caption_metrics::Report;
use caption_metrics::files::{CaptionSet, ReferenceImage};
use config::{RunFile, Scoring};
use dataset::image_folder::ImageFolder;
use dataset::{DataSet, Item, Split};
use run_assets::open_metrics;
use tch::Device;

use super::device_options::DeviceOptions;
use super::evaluator_argument::{EvaluatorArgument, named_evaluators};
use super::score_output::ScoreOutput;
use crate::clip_scorer::LoadedEvaluator;

/// Score captions against references, as pycocoevalcap does, and against images.
///
/// Needs a file of captions and one of references, or a run file. Prints a table of scores.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  worker score --config run.yaml --split val\n  \
                        worker score --config run.yaml --split test --candidates captions.json\n  \
                        worker score --references captions_val2014.json --candidates results.json\n  \
                        worker score --references refs.json --candidates cands.json --json > scores.json\n  \
                        worker score --references dataset_coco.json --split val --candidates results.json\n  \
                        caption-images | worker score --references refs.json --candidates -\n  \
                        worker score --references captions_val2014.json --candidates results.json --images val2014 \\\n    \
                        --evaluator pac_s=clip_ViT-B-32.pth,family=openai --evaluator clip_s=ViT-B-32.pt\n\n\
                        Each file may be {\"ID\": [\"caption\", ...]}, {\"ID\": \"caption\"}, COCO annotations or COCO results. \
                        References may also be Karpathy's JSON, or the data of a run file. Images are matched by id, name, \
                        path or file name: by the first of these with which every candidate has references. Only images with \
                        a candidate are scored. Images with domains, as in nocaps, also get scores for each domain. \
                        References that VizWiz marks as rejected or precanned are ignored.")]
pub struct Score {
    /// File of reference captions; `-` reads standard input.
    #[arg(long, value_name = "FILE", required_unless_present = "config")]
    references: Option<PathBuf>,
    /// Run file: the references are the captions of a split of its data, and its `scoring` section
    /// names the files of METEOR and SPICE.
    #[arg(long, value_name = "FILE", conflicts_with = "references")]
    config: Option<PathBuf>,
    /// File of captions to score, one per image; `-` reads standard input [default with --config:
    /// the newest captions of the run].
    #[arg(long, value_name = "FILE", required_unless_present = "config")]
    candidates: Option<PathBuf>,
    /// Split of the run file's data or of Karpathy's JSON: train, val or test [default: val with
    /// --config, otherwise test].
    #[arg(long, value_name = "SPLIT")]
    split: Option<Split>,
    /// Also score with an evaluator: pac_s=FILE or clip_s=FILE with CLIP weights. Settings of the
    /// CLIP that the file does not have come after it, as in
    /// `pac_s=clip_ViT-B-32.pth,family=openai`.
    /// NAME=FILE.yaml reads the `evaluator` section of a run file, and `run` uses the evaluators of
    /// --config. May be repeated.
    #[arg(long = "evaluator", value_name = "NAME=FILE")]
    evaluators: Vec<EvaluatorArgument>,
    /// Folder of the images, which are matched by path, file name or id [default with --config: the
    /// images of its data].
    #[arg(long, value_name = "DIR", requires = "evaluators")]
    images: Option<PathBuf>,
    /// Folder in which to cache the evaluators' image embeddings.
    #[arg(long, value_name = "DIR", requires = "evaluators")]
    cache: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceOptions,
    #[command(flatten)]
    output: ScoreOutput,
    /// Path of meteor-1.5.jar, which has METEOR's function words and synonyms.
    #[arg(long, value_name = "FILE", env = "DICO_METEOR_JAR")]
    meteor_jar: Option<PathBuf>,
    /// Path of METEOR's paraphrase-en.gz.
    #[arg(long, value_name = "FILE", env = "DICO_METEOR_PARAPHRASES")]
    meteor_paraphrases: Option<PathBuf>,
    /// Path of spice-1.0.jar, with the Stanford models in the folder `lib` beside it. Needs Java.
    #[arg(long, value_name = "FILE")]
    spice_jar: Option<PathBuf>,
}

impl Score {
    /// Runs the command.
    ///
    /// # Errors
    /// A file is missing or invalid, or captions have no references or images.
    pub fn run(self) -> Result<()> {
        // Metrics that only need text do not use libtorch.
        let device = if self.evaluators.is_empty() { Device::Cpu } else { self.device.initialize()? };
        let (captions, run) = match (&self.config, &self.references, &self.candidates) {
            (Some(config), ..) => {
                let run = RunFile::load(config)?;
                (self.captions_with_run_references(config, &run)?, Some(run))
            }
            (None, Some(references), Some(candidates)) => {
                (CaptionSet::read(references, candidates, self.split.map(Split::name))?, None)
            }
            (None, ..) => bail!("pass --references and --candidates, or --config"),
        };
        let metrics = open_metrics(&self.metric_files(run.as_ref()))?;
        let progress = cli_support::spinner(format!("scoring {} captions", captions.ids.len()));
        let mut report = captions.score(&metrics);
        progress.finish_and_clear();
        self.add_evaluator_scores(&captions, run.as_ref(), device, &mut report)?;
        self.output.print(&report, &captions.ids)
    }

    /// The files of METEOR and SPICE: those of the options, otherwise those of the run file.
    fn metric_files(&self, run: Option<&RunFile>) -> Scoring {
        let Scoring { meteor_jar, meteor_paraphrases, spice_jar } =
            run.map(|run| run.scoring.clone()).unwrap_or_default();
        Scoring {
            meteor_jar: self.meteor_jar.clone().or(meteor_jar),
            meteor_paraphrases: self.meteor_paraphrases.clone().or(meteor_paraphrases),
            spice_jar: self.spice_jar.clone().or(spice_jar),
        }
    }

    /// Adds the scores of all evaluators to the report.
    fn add_evaluator_scores(
        &self,
        captions: &CaptionSet,
        run: Option<&RunFile>,
        device: Device,
        report: &mut Report,
    ) -> Result<()> {
        for evaluator in named_evaluators(&self.evaluators, run)? {
            let scorer =
                LoadedEvaluator::open(&evaluator, device).with_context(|| format!("evaluator {}", evaluator.name))?;
            let data = self.load_images(captions, run)?;
            let bar = cli_support::progress_bar(captions.ids.len() as u64, "images");
            let images = scorer.embed_images(data, self.cache.as_deref(), |done| bar.set_position(done as u64));
            bar.finish_and_clear();
            let images = images?;
            let progress = cli_support::spinner("embedding captions");
            let scores = scorer.score(&images, &captions.items, |_| {});
            scores.add(&evaluator, report);
            scores.add_retrieval(&evaluator, &images, report);
            progress.finish_and_clear();
        }
        Ok(())
    }

    /// The images of the captions as the test split of a data set, in the order of the captions.
    fn load_images(&self, captions: &CaptionSet, run: Option<&RunFile>) -> Result<DataSet> {
        let check_complete = |source: &str, missing: &[&String]| {
            if let [first, ..] = missing {
                bail!("{source}: there is no image of {} captions, for example of {first:?}", missing.len());
            }
            Ok(())
        };
        if let Some(folder) = &self.images {
            let images = ImageFolder::open(folder)?;
            let names = captions.images.iter().zip(&captions.ids).map(|(image, id)| {
                [&image.path, &image.name, &image.id].into_iter().flatten().chain([id]).map(String::as_str)
            });
            let paths: Vec<Option<&Path>> = names.map(|names| images.find(names)).collect();
            let missing = paths.iter().zip(&captions.ids).filter(|(path, _)| path.is_none()).map(|(_, id)| id);
            check_complete(&folder.display().to_string(), &missing.collect::<Vec<_>>())?;
            let files = captions.ids.iter().cloned().zip(paths.into_iter().flatten().map(Path::to_owned));
            return Ok(DataSet::from_files(files.collect()));
        }
        let run = run.context("--evaluator needs the images: pass --images or --config")?;
        let split = self.split.unwrap_or(Split::Validation);
        let data = DataSet::load_split(&run.data, split)?;
        let index_by_name: HashMap<&str, usize> =
            data.split(split).iter().enumerate().map(|(index, item)| (item.name.as_str(), index)).collect();
        let index = |image: &caption_metrics::files::ImageNames| index_by_name.get(image.name.as_deref()?).copied();
        let indices: Vec<Option<usize>> = captions.images.iter().map(index).collect();
        let missing = indices.iter().zip(&captions.ids).filter(|(index, _)| index.is_none()).map(|(_, id)| id);
        check_complete(&format!("split `{split}`"), &missing.collect::<Vec<_>>())?;
        let order: Vec<usize> = indices.into_iter().flatten().collect();
        Ok(data.select(split, &order).into_test_split(split))
    }

    /// The candidates, with references from the run file's data.
    fn captions_with_run_references(&self, config: &Path, run: &RunFile) -> Result<CaptionSet> {
        let split = self.split.unwrap_or(Split::Validation);
        let candidates = match &self.candidates {
            Some(candidates) => candidates.clone(),
            None => newest_captions(run, split)?,
        };
        let data = DataSet::load_annotations(&run.data, split)?;
        data.notes().iter().for_each(|note| tracing::warn!("{note}"));
        if data.lacks_captions(split) {
            let config = config.display();
            bail!("{config}: split `{split}` has no captions: there is nothing to score against");
        }
        let images = data.split(split).iter().map(reference_image).collect();
        let mut captions = CaptionSet::with_references(config, images, &candidates)?;
        if self.candidates.is_none() {
            captions.notes.insert(0, format!("the captions are from {}", candidates.display()));
        }
        Ok(captions)
    }
}

fn reference_image(item: &Item) -> ReferenceImage {
    let Item { name, id, captions, domain, .. } = item;
    let path = item.path().to_owned();
    ReferenceImage { id: *id, name: name.clone(), path, captions: captions.clone(), domain: *domain }
}

/// The file with the captions of the newest evaluation of the captioner in `run`.
fn newest_captions(run: &RunFile, split: Split) -> Result<PathBuf> {
    let remedy = "name a file with --candidates (`worker evaluate --captions FILE` writes the captions of any split)";
    if split != Split::Validation {
        bail!("the captions that a run writes are of the split `val`, not of `{split}`: {remedy}");
    }
    let folder = run.captions_folder();
    let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    // An evaluation in a contrastive stage scores reference captions.
    let has_generated_captions =
        |stage: usize| run.stages.get(stage).is_some_and(|stage| !stage.objective.trains_evaluator());
    let evaluations = names.filter_map(|name| Some((stage_and_step(&name)?, name)));
    let newest = evaluations.filter(|((stage, _), _)| has_generated_captions(*stage)).max();
    let missing = || format!("{}: there are no captions of the captioner yet: {remedy}", folder.display());
    newest.map(|(_, name)| folder.join(name)).with_context(missing)
}

/// Stage and step from the name of a file of captions, `STAGE-NAME-STEP.json`.
fn stage_and_step(file_name: &str) -> Option<(usize, u64)> {
    let (stage, rest) = file_name.strip_suffix(".json")?.split_once('-')?;
    let (_, step) = rest.rsplit_once('-')?;
    Some((stage.parse().ok()?, step.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: &str = "
name: test
output: OUTPUT
workers: { min: 1, max: 2 }
data: { karpathy: { annotations: annotations.json, images: images } }
captioner: { preset: tiny }
evaluator: { preset: tiny }
stages:
  - { name: clip, objective: contrastive, steps: 9, batch: 4, optimizer: { learning_rate: 1.0e-3 } }
  - { name: xe, objective: cross_entropy, steps: 9, batch: 4, optimizer: { learning_rate: 1.0e-3 } }
  - { name: dico-1, objective: dico, steps: 9, batch: 4, optimizer: { learning_rate: 1.0e-3 } }
";

    #[test]
    fn the_newest_captions_of_the_captioner_are_the_default_candidates() {
        let folder = tempfile::tempdir().unwrap();
        let text = RUN.replace("OUTPUT", &folder.path().display().to_string());
        let run = RunFile::parse(Path::new("run.yaml"), &text).unwrap();
        let missing = newest_captions(&run, Split::Validation).unwrap_err().to_string();
        assert!(missing.contains("captions: there are no captions of the captioner yet: name a file"), "{missing}");
        std::fs::create_dir(run.captions_folder()).unwrap();
        for name in [
            "2-dico-1-00000020.json",
            "2-dico-1-00000100.json",
            "2-dico-1-100000000.json",
            "1-xe-99999999999.json",
            "0-clip-00000009.json",
            "2-dico-1-999999999.json.partial",
            "notes.json",
            "7-other-00000001.json",
        ] {
            std::fs::write(run.captions_folder().join(name), "").unwrap();
        }
        let newest = newest_captions(&run, Split::Validation).unwrap();
        assert_eq!(newest, run.captions_folder().join("2-dico-1-100000000.json"));
        let other = newest_captions(&run, Split::Test).unwrap_err().to_string();
        assert!(other.contains("are of the split `val`, not of `test`: name a file with --candidates"), "{other}");
    }
}
