use std::path::{Path, PathBuf};

use dataset::{DataSet, Item, Split};
use runfile::{Objective, RunFile, Scoring};
use scoring::files::{Captions, ReferenceImage};
use scoring::{Files, Metrics};

use super::report::Print;

#[derive(clap::Args)]
#[command(after_help = "Examples:\n  worker score --config run.yaml --split val\n  \
                        worker score --config run.yaml --split test --candidates captions.json\n  \
                        worker score --references captions_val2014.json --candidates results.json\n  \
                        worker score --references refs.json --candidates cands.json --json > scores.json\n  \
                        worker score --references dataset_coco.json --split val --candidates results.json\n  \
                        caption-images | worker score --references refs.json --candidates -\n\n\
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
        let (captions, of_run) = match (&self.config, &self.references, &self.candidates) {
            (Some(config), ..) => self.of_run(config)?,
            (None, Some(references), Some(candidates)) => {
                let captions = Captions::read(references, candidates, self.split.map(Split::name));
                (captions.map_err(|error| error.to_string())?, Scoring::default())
            }
            (None, ..) => return Err("give --references and --candidates, or --config".to_owned()),
        };
        let Self { meteor_jar, meteor_paraphrases, spice_jar, .. } = self;
        let files = Files::new([
            &meteor_jar.or(of_run.meteor_jar),
            &meteor_paraphrases.or(of_run.meteor_paraphrases),
            &spice_jar.or(of_run.spice_jar),
        ]);
        let metrics = Metrics::open(&files).map_err(|error| error.to_string())?;
        let progress = terminal::spinner(format!("scoring {} captions", captions.ids.len()));
        let report = captions.score(&metrics);
        progress.finish_and_clear();
        self.print.print(&report, &captions.ids)
    }

    /// Captions with the references of a run's data, and the files that its metrics need.
    fn of_run(&self, config: &Path) -> Result<(Captions, Scoring), String> {
        let run = RunFile::load(config).map_err(|error| error.to_string())?;
        let split = self.split.unwrap_or(Split::Validation);
        let candidates = match &self.candidates {
            Some(candidates) => candidates.clone(),
            None => newest_captions(&run, split)?,
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
        Ok((captions, run.scoring))
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
