use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use anyhow::{Context, Result};
use runfile::RunFile;
use rusqlite::{Connection, OpenFlags};
use serde::Serialize;

/// The metrics of the summary, in the order of the table.
const METRICS: [&str; 8] =
    ["retrieval_r1", "pac_s", "details", "truthful", "grammatical", "mean_length", "cider", "bleu_4"];
/// Sample captions in the summary.
const SAMPLES: usize = 8;

/// The coordinator's record of a run; its tables are described in `coordinator/src/journal.rs`.
pub struct Journal(Connection);

/// One step as the journal has it.
pub struct Step {
    pub step: u64,
    pub loss: f64,
    /// 5%, 50% and 95% quantile and mean of the chosen candidates' reward, where the stage has rewards.
    pub reward: Option<[f64; 4]>,
}

impl Journal {
    pub fn open(path: &Path) -> Result<Self> {
        let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY);
        Ok(Self(connection.with_context(|| format!("cannot open {}", path.display()))?))
    }

    /// The steps of a stage, each as the last generation that did it reported.
    pub fn steps(&self, stage: usize) -> Result<Vec<Step>> {
        let query = "SELECT step, loss, summaries_json, MAX(generation) FROM steps WHERE stage = ?1 GROUP BY step ORDER BY step";
        let mut statement = self.0.prepare(query)?;
        let rows = statement.query_map([stage], |row| Ok((row.get(0)?, row.get::<_, Option<f64>>(1)?, row.get(2)?)))?;
        rows.map(|row| {
            let (step, loss, summaries): (u64, Option<f64>, String) = row?;
            let summaries: serde_json::Value = serde_json::from_str(&summaries)?;
            let number = |key| summaries["reward_chosen"][key].as_f64();
            let reward = ["p05", "p50", "p95", "mean"].map(number);
            let reward = match reward {
                [Some(low), Some(middle), Some(high), Some(mean)] => Some([low, middle, high, mean]),
                _ => None,
            };
            Ok(Step { step, loss: loss.unwrap_or(f64::NAN), reward })
        })
        .collect()
    }

    /// Step, generation and metrics of a stage's last evaluation.
    fn last_evaluation(&self, stage: usize) -> Result<(u64, u64, BTreeMap<String, f64>)> {
        let query = "SELECT step, generation, metrics_json FROM evaluations WHERE stage = ?1 ORDER BY step DESC, generation DESC";
        let row = self.0.query_row(query, [stage], |row| Ok((row.get(0)?, row.get(1)?, row.get::<_, String>(2)?)));
        let (step, generation, metrics) = row.with_context(|| format!("stage {stage} was never evaluated"))?;
        Ok((step, generation, serde_json::from_str(&metrics)?))
    }

    /// Captions and references of a stage's last evaluation, by image.
    fn captions(&self, stage: usize) -> Result<BTreeMap<String, (String, Vec<String>)>> {
        let (step, generation, _) = self.last_evaluation(stage)?;
        let query = "SELECT image, caption, references_json FROM evaluation_items WHERE stage = ?1 AND step = ?2 AND generation = ?3";
        let mut statement = self.0.prepare(query)?;
        let rows = statement.query_map(rusqlite::params![stage, step, generation], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get::<_, String>(2)?))
        })?;
        rows.map(|row| {
            let (image, caption, references) = row?;
            Ok((image, (caption, serde_json::from_str(&references)?)))
        })
        .collect()
    }
}

/// What came of a run: `summary.json`, and as text the table and samples.
#[derive(Serialize)]
pub struct Summary {
    workers: u32,
    wall_seconds: f64,
    stages: Vec<StageSummary>,
    samples: Vec<Sample>,
    parameters_sha256: BTreeMap<String, String>,
}

#[derive(Serialize)]
struct StageSummary {
    name: String,
    objective: &'static str,
    steps: u64,
    /// On validation images, which were never trained on.
    metrics: BTreeMap<String, f64>,
}

#[derive(Serialize)]
struct Sample {
    image: String,
    /// The stage's caption of the image, under the stage's name.
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
            let (steps, _, metrics) = journal.last_evaluation(number)?;
            Ok(StageSummary { name: stage.name.clone(), objective: stage.objective.name(), steps, metrics })
        });
        let captioned: Vec<usize> = (0..run.stages.len())
            .filter(|&number| run.stages[number].objective != runfile::Objective::Contrastive)
            .collect();
        let captions = captioned.iter().map(|&number| Ok((&run.stages[number].name, journal.captions(number)?)));
        let captions: Vec<_> = captions.collect::<Result<_>>()?;
        let first = captions.first().map(|(_, captions)| captions.iter().take(SAMPLES).collect::<Vec<_>>());
        let samples = first.unwrap_or_default().into_iter().map(|(image, (_, references))| Sample {
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
            // After the evaluator's stage, captions that people wrote are what is scored.
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
            for stage in self.stages.iter().filter_map(|stage| sample.captions.get_key_value(&stage.name)) {
                writeln!(f, "{:>10}: {}", stage.0, stage.1)?;
            }
        }
        let equal = self.parameters_sha256.values().collect::<std::collections::BTreeSet<_>>().len() == 1;
        let verdict = if equal { "the same" } else { "DIFFERENT" };
        write!(f, "\n{} workers, {:.0} s, {verdict} parameters on all", self.workers, self.wall_seconds)
    }
}
