use std::collections::HashMap;
use std::path::{Path, PathBuf};

use caption_metrics::files::{Captions, ReferenceImage};
use caption_metrics::{Files, Metrics, Report};
use config::{Objective, RunFile, Scoring};
use dataset::image_folder::ImageFolder;
use dataset::{DataSet, Item, Split};
use tch::Device;

use super::device::Compute;
use super::evaluator::{self, EvaluatorArgument};
use super::report::Print;
use crate::caption_scorer::CaptionScorer;

#[derive(clap::Args)]
#[command(after_help = "Examples:\n  worker score --config run.yaml --split val\n  \
                        worker score --config run.yaml --split test --candidates captions.json\n  \
                        worker score --references captions_val2014.json --candidates results.json\n  \
                        worker score --references refs.json --candidates cands.json --json > scores.json\n  \
                        worker score --references dataset_coco.json --split val --candidates results.json\n  \
                        caption-images | worker score --references refs.json --candidates -\n  \
                        worker score --references captions_val2014.json --candidates results.json --images val2014 \\\n    \
                        --evaluator pac_s=clip_ViT-B-32.pth,family=openai --evaluator clip_s=ViT-B-32.pt\n\n\
                        Both files may be {\"ID\": [\"caption\", ...]}, {\"ID\": \"caption\"}, COCO's annotations or COCO's \
                        results; references may also be Karpathy's JSON, or the data of a run file. Images are matched by id, \
                        name, path or file name: by the first of these in which every candidate has references. Scored are \
                        the images that have a candidate. Where images have domains, as those of nocaps, each domain has \
                        scores, too. References that VizWiz marks as rejected or precanned are left out.")]
pub struct Score {
    /// The human captions of each image; `-` reads standard input.
    #[arg(long, value_name = "FILE", required_unless_present = "config")]
    references: Option<PathBuf>,
    /// A run file: the references are the captions of a split of its data, and `scoring` names
    /// METEOR's and SPICE's files.
    #[arg(long, value_name = "FILE", conflicts_with = "references")]
    config: Option<PathBuf>,
    /// One caption of each image, to be scored; `-` reads standard input. With --config, by default
    /// the newest captions that the run wrote.
    #[arg(long, value_name = "FILE", required_unless_present = "config")]
    candidates: Option<PathBuf>,
    /// Which split of a run file's data or of Karpathy's JSON: train, val or test [default: val
    /// with --config, else test].
    #[arg(long, value_name = "SPLIT")]
    split: Option<Split>,
    /// Score by an evaluator, too: pac_s=FILE or clip_s=FILE with CLIP weights; what they do not say of
    /// themselves follows, as in `pac_s=clip_ViT-B-32.pth,family=openai`. NAME=FILE.yaml reads what a
    /// run file has under `evaluator`; `run` is the run file's own. May be given several times.
    #[arg(long = "evaluator", value_name = "NAME=FILE")]
    evaluators: Vec<EvaluatorArgument>,
    /// Folder of the images, which are found by path, file name or id. With --config, by default the
    /// images of its data.
    #[arg(long, value_name = "DIR", requires = "evaluators")]
    images: Option<PathBuf>,
    /// Keep the evaluators' embeddings of images in this folder, and take those that are there.
    #[arg(long, value_name = "DIR", requires = "evaluators")]
    cache: Option<PathBuf>,
    #[command(flatten)]
    compute: Compute,
    #[command(flatten)]
    print: Print,
    /// meteor-1.5.jar: METEOR's function words and synonyms.
    #[arg(long, value_name = "FILE", env = "DICO_METEOR_JAR")]
    meteor_jar: Option<PathBuf>,
    /// METEOR's paraphrase-en.gz.
    #[arg(long, value_name = "FILE", env = "DICO_METEOR_PARAPHRASES")]
    meteor_paraphrases: Option<PathBuf>,
    /// spice-1.0.jar, with the Stanford models in `lib` beside it; needs Java.
    #[arg(long, value_name = "FILE")]
    spice_jar: Option<PathBuf>,
}

impl Score {
    pub fn run(self) -> Result<(), String> {
        // Text metrics need neither device nor libtorch's threads.
        let device = if self.evaluators.is_empty() { Device::Cpu } else { self.compute.prepare()? };
        let (captions, of_run) = match (&self.config, &self.references, &self.candidates) {
            (Some(config), ..) => {
                let run = RunFile::load(config).map_err(|error| error.to_string())?;
                (self.of_run(config, &run)?, Some(run))
            }
            (None, Some(references), Some(candidates)) => {
                let captions = Captions::read(references, candidates, self.split.map(Split::name));
                (captions.map_err(|error| error.to_string())?, None)
            }
            (None, ..) => return Err("give --references and --candidates, or --config".to_owned()),
        };
        let Scoring { meteor_jar, meteor_paraphrases, spice_jar } =
            of_run.as_ref().map(|run| run.scoring.clone()).unwrap_or_default();
        let files = Files::new([
            &self.meteor_jar.clone().or(meteor_jar),
            &self.meteor_paraphrases.clone().or(meteor_paraphrases),
            &self.spice_jar.clone().or(spice_jar),
        ]);
        let metrics = Metrics::open(&files).map_err(|error| error.to_string())?;
        let progress = cli_support::spinner(format!("scoring {} captions", captions.ids.len()));
        let mut report = captions.score(&metrics);
        progress.finish_and_clear();
        self.score_by_evaluators(&captions, of_run.as_ref(), device, &mut report)?;
        self.print.print(&report, &captions.ids)
    }

    /// Adds the scores of all evaluators.
    fn score_by_evaluators(
        &self,
        captions: &Captions,
        run: Option<&RunFile>,
        device: Device,
        report: &mut Report,
    ) -> Result<(), String> {
        for evaluator in evaluator::named(&self.evaluators, run)? {
            let scorer = CaptionScorer::open(&evaluator, device)
                .map_err(|problem| format!("evaluator {}: {problem}", evaluator.name))?;
            let data = self.pictures(captions, run)?;
            let bar = cli_support::bar(captions.ids.len() as u64, "images");
            let images = scorer.embed_images(data, self.cache.as_deref(), |done| bar.set_position(done as u64));
            bar.finish_and_clear();
            let images = images?;
            let progress = cli_support::spinner("reading captions");
            let scores = scorer.score(&images, &captions.items, |_| {});
            scores.add(&evaluator, report);
            scores.add_retrieval(&evaluator, &images, report);
            progress.finish_and_clear();
        }
        Ok(())
    }

    /// The images of the captions, in their order, as the test split.
    fn pictures(&self, captions: &Captions, run: Option<&RunFile>) -> Result<DataSet, String> {
        let missing = |place: &str, missing: &[&String]| match missing {
            [] => Ok(()),
            [first, ..] => {
                Err(format!("{place}: there is no image of {} captions, of {first:?} for one", missing.len()))
            }
        };
        if let Some(folder) = &self.images {
            let images = ImageFolder::open(folder).map_err(|error| error.to_string())?;
            let names = captions.images.iter().zip(&captions.ids).map(|(image, id)| {
                [&image.path, &image.name, &image.id].into_iter().flatten().chain([id]).map(String::as_str)
            });
            let found: Vec<Option<&Path>> = names.map(|names| images.find(names)).collect();
            let absent = found.iter().zip(&captions.ids).filter(|(path, _)| path.is_none()).map(|(_, id)| id);
            missing(&folder.display().to_string(), &absent.collect::<Vec<_>>())?;
            let files = captions.ids.iter().cloned().zip(found.into_iter().flatten().map(Path::to_owned));
            return Ok(DataSet::of_images(files.collect()));
        }
        let run = run.ok_or("--evaluator needs --images or --config: it looks at the images")?;
        let split = self.split.unwrap_or(Split::Validation);
        let data = DataSet::load_split(&run.data, split).map_err(|error| error.to_string())?;
        let numbers: HashMap<&str, usize> =
            data.split(split).iter().enumerate().map(|(number, item)| (item.name.as_str(), number)).collect();
        let number = |image: &caption_metrics::files::Names| numbers.get(image.name.as_deref()?).copied();
        let found: Vec<Option<usize>> = captions.images.iter().map(number).collect();
        let absent = found.iter().zip(&captions.ids).filter(|(number, _)| number.is_none()).map(|(_, id)| id);
        missing(&format!("split `{split}`"), &absent.collect::<Vec<_>>())?;
        let order: Vec<usize> = found.into_iter().flatten().collect();
        Ok(data.select(split, &order).as_test(split))
    }

    /// Captions with the references of a run's data.
    fn of_run(&self, config: &Path, run: &RunFile) -> Result<Captions, String> {
        let split = self.split.unwrap_or(Split::Validation);
        let candidates = match &self.candidates {
            Some(candidates) => candidates.clone(),
            None => newest_captions(run, split)?,
        };
        let data = DataSet::annotated(&run.data, split).map_err(|error| error.to_string())?;
        data.notes().iter().for_each(|note| tracing::warn!("{note}"));
        if data.lacks_captions(split) {
            let config = config.display();
            return Err(format!("{config}: split `{split}` has no captions: there is nothing to score against"));
        }
        let images = data.split(split).iter().map(reference_image).collect();
        let mut captions = Captions::compare(config, images, &candidates).map_err(|error| error.to_string())?;
        if self.candidates.is_none() {
            captions.notes.insert(0, format!("the captions are those of {}", candidates.display()));
        }
        Ok(captions)
    }
}

fn reference_image(item: &Item) -> ReferenceImage {
    let Item { name, id, captions, domain, .. } = item;
    let path = item.path().to_owned();
    ReferenceImage { id: *id, name: name.clone(), path, captions: captions.clone(), domain: *domain }
}

/// The file of the last evaluation of a captioner that `run` wrote.
fn newest_captions(run: &RunFile, split: Split) -> Result<PathBuf, String> {
    let remedy = "name a file with --candidates (`worker evaluate --captions FILE` writes one of any split)";
    if split != Split::Validation {
        return Err(format!("the captions that a run writes are of the split `val`, not of `{split}`: {remedy}"));
    }
    let folder = run.captions_folder();
    let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    // After a stage that trains the evaluator, the captions are those that people wrote.
    let is_captioner =
        |stage: usize| run.stages.get(stage).is_some_and(|stage| stage.objective != Objective::Contrastive);
    let evaluations = names.filter_map(|name| Some((evaluation(&name)?, name)));
    let newest = evaluations.filter(|((stage, _), _)| is_captioner(*stage)).max();
    let missing = || format!("{}: there are no captions of the captioner yet: {remedy}", folder.display());
    newest.map(|(_, name)| folder.join(name)).ok_or_else(missing)
}

/// Stage and step of the evaluation that a file of captions, `STAGE-NAME-STEP.json`, is of.
fn evaluation(file_name: &str) -> Option<(usize, u64)> {
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
    fn the_newest_captions_of_the_captioner_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let text = RUN.replace("OUTPUT", &folder.path().display().to_string());
        let run = RunFile::parse(Path::new("run.yaml"), &text).unwrap();
        let missing = newest_captions(&run, Split::Validation).unwrap_err();
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
        let other = newest_captions(&run, Split::Test).unwrap_err();
        assert!(other.contains("are of the split `val`, not of `test`: name a file with --candidates"), "{other}");
    }
}
