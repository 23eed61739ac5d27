use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context, Result};
use config::RunFile;
use demos::journal::Journal;
use serde::Serialize;

/// The metrics of the summary, in the order of the table.
const METRICS: [&str; 8] =
    ["retrieval_r1", "pac_s", "details", "truthful", "grammatical", "mean_length", "cider", "bleu_4"];
/// The number of images with sample captions.
const SAMPLES: usize = 8;

/// The results of a run: `summary.json`. Its `Display` is a table of scores with sample captions.
#[derive(Serialize)]
pub struct Summary {
    workers: u32,
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
    /// The step of the stage's last evaluation.
    steps: u64,
    /// Scores of the validation split after the stage, by name.
    metrics: BTreeMap<String, f64>,
}

#[derive(Serialize)]
struct Sample {
    image: String,
    /// The caption of each stage, by the stage's name.
    #[serde(flatten)]
    captions: BTreeMap<String, String>,
    references: Vec<String>,
}

impl Summary {
    pub fn new(
        run: &RunFile,
        journal: &Journal,
        wall_seconds: f64,
        parameters_sha256: BTreeMap<String, String>,
    ) -> Result<Self> {
        let stages = run.stages.iter().enumerate().map(|(number, stage)| {
            let last = journal.evaluations(number)?.pop();
            let last = last.with_context(|| format!("stage {} was never evaluated", stage.name))?;
            let (name, objective) = (stage.name.clone(), stage.objective.name());
            Ok(StageSummary { name, objective, steps: last.step, metrics: last.metrics })
        });
        let captioning: Vec<usize> =
            (0..run.stages.len()).filter(|&number| !run.stages[number].objective.trains_evaluator()).collect();
        let captions = captioning.iter().map(|&number| Ok((&run.stages[number].name, journal.captions(number)?)));
        let captions: Vec<_> = captions.collect::<Result<_>>()?;
        let sampled = captions.first().map(|(_, captions)| captions.iter().take(SAMPLES).collect::<Vec<_>>());
        let samples = sampled.unwrap_or_default().into_iter().map(|(image, (_, references))| Sample {
            image: image.clone(),
            captions: captions
                .iter()
                .filter_map(|(stage, captions)| Some(((*stage).clone(), captions.get(image)?.0.clone())))
                .collect(),
            references: references.clone(),
        });
        Ok(Self {
            workers: run.workers.max,
            wall_seconds,
            samples: samples.collect(),
            stages: stages.collect::<Result<_>>()?,
            parameters_sha256,
        })
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
        for metric in METRICS {
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
