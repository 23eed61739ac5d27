//! The results of the demo, as a table and as `summary.json`.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context, Result};
use config::RunFile;
use journal::{Caption, Evaluation, EvaluationId, ReadOnlyJournal, StateFate};
use serde::Serialize;

/// The metrics of the printed table, in its order; `summary.json` has all metrics. `details`
/// (statements per caption), `truthful` and `grammatical` (shares of captions) are checked against
/// the scenes of the synthetic data set. `mean_length` is in words.
const TABLE_METRICS: [&str; 8] =
    ["retrieval_r1", "pac_s", "details", "truthful", "grammatical", "mean_length", "cider", "bleu_4"];
/// The number of images with sample captions.
const SAMPLES: usize = 8;

/// The results of a run: `summary.json`. Its `Display` is a table of scores with sample captions.
#[derive(Serialize)]
pub struct Summary {
    workers: u32,
    /// Wall-clock seconds of the demo, with the synthesis of the data set.
    wall_seconds: f64,
    stages: Vec<StageSummary>,
    samples: Vec<Sample>,
    /// The SHA-256 of each worker's parameters, by worker id.
    parameters_sha256: BTreeMap<String, String>,
}

#[derive(Serialize)]
struct StageSummary {
    name: String,
    objective: &'static str,
    /// The step of the state that the stage ended with.
    steps: u64,
    /// The scores of this state on the validation split, by name.
    metrics: BTreeMap<String, f64>,
}

#[derive(Serialize)]
struct Sample {
    /// The name of the image.
    image: String,
    /// The caption of each stage, by the stage's name.
    #[serde(flatten)]
    captions: BTreeMap<String, String>,
    references: Vec<String>,
}

impl Summary {
    /// The results of the run of which `journal` is the journal.
    ///
    /// # Errors
    /// A stage was never evaluated, or the journal cannot be read.
    pub fn new(
        run: &RunFile,
        journal: &ReadOnlyJournal,
        wall_seconds: f64,
        parameters_sha256: BTreeMap<String, String>,
    ) -> Result<Self> {
        let evaluations = journal.evaluations(None)?;
        // Of the state that the stage ended with.
        let last_of_stage = |number: u32| {
            let is_final = |evaluation: &&Evaluation| {
                evaluation.id.position.stage == number && evaluation.fate == StateFate::Current
            };
            evaluations.iter().rfind(is_final)
        };
        let mut stages = Vec::new();
        // The last evaluation of each stage that trains the captioner, with the stage's name.
        let mut captioned: Vec<(&str, EvaluationId)> = Vec::new();
        for (number, stage) in (0..).zip(&run.stages) {
            let Evaluation { id, scores, .. } =
                last_of_stage(number).with_context(|| format!("stage {} was never evaluated", stage.name))?;
            let (name, objective) = (stage.name.clone(), stage.objective.name());
            stages.push(StageSummary { name, objective, steps: id.position.step, metrics: scores.clone() });
            if !stage.objective.trains_evaluator() {
                captioned.push((&stage.name, *id));
            }
        }
        let mut samples = Vec::new();
        if let Some((_, first)) = captioned.first() {
            for Caption { image, references, .. } in journal.captions(*first, u32::MAX)?.into_iter().take(SAMPLES) {
                let mut captions = BTreeMap::new();
                for (stage, evaluation) in &captioned {
                    let caption = journal.caption(*evaluation, &image)?;
                    captions.extend(caption.map(|caption| ((*stage).to_owned(), caption.caption)));
                }
                samples.push(Sample { image, captions, references });
            }
        }
        Ok(Self { workers: run.workers.max, wall_seconds, samples, stages, parameters_sha256 })
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\n{:<14}", "")?;
        for stage in &self.stages {
            // The evaluation after the evaluator's stage scores the reference captions.
            let heading = if stage.objective == "contrastive" { "references" } else { &stage.name };
            write!(f, "{heading:>12}")?;
        }
        writeln!(f)?;
        for metric in TABLE_METRICS {
            write!(f, "{metric:<14}")?;
            for stage in &self.stages {
                match stage.metrics.get(metric) {
                    Some(value) => write!(f, "{value:>12.3}")?,
                    None => write!(f, "{:>12}", "-")?,
                }
            }
            writeln!(f)?;
        }
        for sample in &self.samples {
            writeln!(f, "\n{}", sample.image)?;
            let captions = self.stages.iter().filter_map(|stage| sample.captions.get_key_value(&stage.name));
            for (stage_name, caption) in captions {
                writeln!(f, "{stage_name:>10}: {caption}")?;
            }
        }
        let equal = self.parameters_sha256.values().collect::<std::collections::BTreeSet<_>>().len() == 1;
        let comparison = if equal { "the same" } else { "DIFFERENT" };
        write!(f, "\n{} workers, {:.0} s, {comparison} parameters on all", self.workers, self.wall_seconds)
    }
}
