//! The report of a run, from its journal: as one self-contained page, or as JSON.
//!
//! ```text
//!   journal --> Report (facts)  --> page (HTML), with charts (SVG)
//!                 |   |  '--------> JSON
//!                 |   '-- captions, with pictures from the run's data
//!                 '------ curves, in bounded memory
//! ```

mod captions;
mod chart;
mod curves;
mod page;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{SystemTime, UNIX_EPOCH},
};

use config::{Objective, RunFile};
use serde::{Deserialize, Serialize};
use statistics::names::Better;

pub use captions::{Captioned, Captions};
pub use curves::{Curve, Curves};

use crate::{
    audit::{self, Audit},
    happened::GUARD,
    journal::{
        Error,
        history::{Checkpoint, Evaluation, Event, Generation, History, MeasuredStep},
    },
    run::{plan::Place, record::EventKind},
};

/// Maximal number of rows for generations, and for events of one kind; of more, the last are
/// listed.
const MAX_ROWS: usize = 200;

/// The facts of a report.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The name of the run.
    pub run: String,
    /// The version of the program that made the report.
    pub version: &'static str,
    /// When the report was made. Times are in Unix seconds.
    pub made_at: f64,
    /// When the run was created.
    pub begun_at: f64,
    /// The time of the last record.
    pub last_at: f64,
    /// How the run ended, or its present state.
    pub outcome: Outcome,
    /// The stages that have begun.
    pub stages: Vec<Stage>,
    /// The evaluations with their scores.
    pub evaluations: Vec<EvaluationEntry>,
    /// Captions before and after the last stage that was evaluated.
    pub captions: Option<Captions>,
    /// The checkpoints that were not deleted.
    pub checkpoints: Vec<CheckpointEntry>,
    /// The cost of faults.
    pub recoveries: Recoveries,
    /// The audit: samples, epochs and generations; of very many generations only the last.
    pub audit: Audit,
    /// When each of these generations was formed.
    pub formed_at: Vec<f64>,
    /// The guard rules that have fired.
    pub guard: Vec<EventEntry>,
    /// Other events, except for workers that joined.
    pub events: Vec<EventEntry>,
    /// The machines of the workers.
    pub machines: Vec<MachineGroup>,
    /// The run file.
    pub settings: RunFile,
}

/// How a run ended, or its present state.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "state", content = "reason", rename_all = "snake_case")]
pub enum Outcome {
    /// All stages are done.
    Finished,
    /// The run cannot continue; the reason.
    Failed(String),
    /// The run is paused; the reason.
    Paused(String),
    /// The run is in progress, or its coordinator was stopped.
    Unfinished,
}

/// A stage that has begun.
#[derive(Clone, Debug, Serialize)]
pub struct Stage {
    /// The number of the stage, from 0.
    pub number: u32,
    /// The name of the stage.
    pub name: String,
    /// The objective.
    pub objective: &'static str,
    /// The number of steps in the run file.
    pub wanted: u64,
    /// The number of steps applied.
    pub steps: u64,
    /// The number of samples of these steps.
    pub samples: u64,
    /// The number of samples per step.
    pub batch: u32,
    /// When its first step was done.
    pub from: f64,
    /// When its last step was done.
    pub to: f64,
    /// The end of the stage, if that is not its last step.
    pub end: Option<End>,
    /// The curves of its measurements, by name.
    pub curves: BTreeMap<&'static str, Curve>,
}

/// The end of a stage with a state other than its last.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct End {
    /// The step of the state that the next stage starts from.
    pub step: u64,
    /// The reason.
    pub reason: String,
    /// Later states that a reader may have expected instead: the last one, and those with a better
    /// score.
    #[serde(default)]
    pub passed_over: Vec<LaterState>,
}

/// A state that a stage did not end with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LaterState {
    /// The step of the state.
    pub step: u64,
    /// Its score by the stage's metric.
    pub score: Option<f64>,
    /// Why it was not selected.
    pub reason: String,
}

/// The source of the captions that an evaluation scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Captioner {
    /// The model.
    Model,
    /// The references, each against the others of its image: in a stage that trains the evaluator.
    People,
}

/// An evaluation.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EvaluationEntry {
    /// The number of the state's stage.
    pub stage: u32,
    /// The name of the state's stage.
    pub stage_name: String,
    /// The number of steps of the stage that were applied.
    pub step: u64,
    /// When it was recorded.
    pub at: f64,
    /// The source of its captions.
    pub captioner: Captioner,
    /// Whether the stage ended with this state although it was trained further.
    pub is_selected: bool,
    /// Scores by name.
    pub scores: BTreeMap<String, f64>,
    /// Names of the scores in which no other evaluation of the model is better.
    pub best: BTreeSet<String>,
}

/// A checkpoint that was not deleted.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CheckpointEntry {
    /// The name of the checkpoint.
    pub name: String,
    /// The SHA-256 (hex) of its parameters.
    pub parameters_sha256: String,
    /// When it was complete.
    pub at: f64,
    /// Whether it is the last of a stage that ended with an earlier state.
    pub is_passed_over: bool,
}

/// The cost of faults.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Recoveries {
    /// The number of workers that failed.
    pub lost: u64,
    /// The number of recoveries: generations that replaced a failed one.
    pub count: u64,
    /// Seconds from the end of the failed generation to the next step, summed.
    pub seconds: f64,
    /// The longest of these times.
    pub longest: f64,
    /// The number of steps that were given up.
    pub given_up: u64,
}

/// An event.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EventEntry {
    /// When it was recorded.
    pub at: f64,
    /// The kind.
    pub kind: String,
    /// The details.
    pub detail: serde_json::Value,
}

/// The workers of one version on one device of one host.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct MachineGroup {
    /// The host.
    pub host: String,
    /// The device.
    pub device: String,
    /// The version of the worker.
    pub version: String,
    /// The ids of the workers.
    pub ranks: BTreeSet<u32>,
}

impl Report {
    /// Reads a journal, also that of a run in progress.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read(history: &History) -> Result<Self, Error> {
        let settings = history.run_file()?;
        let (events, mut audit) = (history.events()?, audit::audit(history)?);
        let (stages, evaluations) = (stages(history, &settings, &events)?, history.evaluations(None)?);
        let (generations, begun_at) = (history.generations()?, history.begun()?);
        let recoveries = Recoveries::of(&audit, &events);
        let outcome = Outcome::of(&events, &generations);
        let times = events.iter().map(|event| event.at).chain(stages.iter().map(|stage| stage.to));
        let last_at = times.chain(evaluations.iter().map(|evaluation| evaluation.at)).fold(begun_at, f64::max);
        let earlier = audit.generations.len().saturating_sub(MAX_ROWS);
        audit.generations.drain(..earlier);
        let evaluated = evaluated(&settings, &stages, &evaluations);
        let captions = compared(&evaluated).map(|(before, after)| {
            let before = before.map(|before| &evaluations[before]);
            Captions::read(history, &settings, before, &evaluations[after])
        });
        Ok(Self {
            run: settings.name.clone(),
            version: env!("CARGO_PKG_VERSION"),
            made_at: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64()),
            begun_at,
            last_at,
            outcome,
            captions: captions.transpose()?,
            evaluations: evaluated,
            stages,
            checkpoints: history.checkpoints()?.into_iter().map(CheckpointEntry::from).collect(),
            recoveries,
            audit,
            formed_at: generations.iter().skip(earlier).map(|generation| generation.formed_at).collect(),
            guard: happened(&events, |kind| kind == GUARD),
            events: happened(&events, |kind| kind != GUARD && kind != EventKind::Joined.name()),
            machines: machines(history)?,
            settings,
        })
    }

    /// The report as an HTML page.
    #[must_use]
    pub fn page(&self) -> String {
        page::page(self).into_string()
    }
}

impl Outcome {
    fn of(events: &[Event], generations: &[Generation]) -> Self {
        let formed = generations.last().map_or(f64::NEG_INFINITY, |generation| generation.formed_at);
        for Event { at, kind, detail } in events.iter().rev() {
            let reason = || detail["reason"].as_str().unwrap_or_default().to_owned();
            match kind {
                kind if kind == EventKind::Finished.name() => return Self::Finished,
                // A failed run may have been served again, and have continued.
                kind if kind == EventKind::Failed.name() && *at >= formed => return Self::Failed(reason()),
                kind if kind == EventKind::Paused.name() => return Self::Paused(reason()),
                kind if kind == EventKind::Resumed.name() => return Self::Unfinished,
                _ => {}
            }
        }
        Self::Unfinished
    }
}

impl Recoveries {
    fn of(audit: &Audit, events: &[Event]) -> Self {
        let lost = events.iter().filter(|event| event.kind == EventKind::Lost.name()).count() as u64;
        let mut recoveries = Self { lost, ..Self::default() };
        for life in &audit.generations {
            recoveries.given_up += life.given_up;
            if let Some(seconds) = life.recovery_s {
                recoveries.count += 1;
                recoveries.seconds += seconds;
                recoveries.longest = recoveries.longest.max(seconds);
            }
        }
        recoveries
    }
}

impl From<Checkpoint> for CheckpointEntry {
    fn from(Checkpoint { name, parameters_sha256, at, is_current, .. }: Checkpoint) -> Self {
        Self { name, parameters_sha256, at, is_passed_over: !is_current }
    }
}

fn stages(history: &History, settings: &RunFile, events: &[Event]) -> Result<Vec<Stage>, Error> {
    let mut begun: BTreeMap<u32, (Stage, Curves)> = BTreeMap::new();
    history.measured(Place::default(), |step| {
        let MeasuredStep { place: Place { stage: number, step, .. }, at, samples, learning, speed, .. } = step;
        let Some(wanted) = settings.stages.get(number as usize) else { return };
        let (stage, curves) = begun.entry(number).or_insert_with(|| {
            let stage = Stage {
                number,
                name: wanted.name.clone(),
                objective: wanted.objective.name(),
                wanted: wanted.steps,
                steps: 0,
                samples: 0,
                batch: wanted.batch,
                from: at,
                to: at,
                end: end(events, number),
                curves: BTreeMap::new(),
            };
            (stage, Curves::default())
        });
        stage.samples += samples;
        stage.steps = step;
        // A step that was lost and trained again is recorded after later steps.
        stage.from = stage.from.min(at);
        stage.to = stage.to.max(at);
        curves.add(step, learning.into_iter().chain(speed));
    })?;
    Ok(begun.into_values().map(|(stage, curves)| Stage { curves: curves.all(), ..stage }).collect())
}

fn end(events: &[Event], stage: u32) -> Option<End> {
    let ended = events.iter().rev().filter(|event| event.kind == EventKind::StageEnded.name());
    let mut own = ended.filter(|event| event.detail["stage"].as_u64() == Some(stage.into()));
    End::deserialize(&own.next()?.detail).ok()
}

/// The indices of the evaluations whose captions are compared: the state before the last evaluated
/// stage, and the one that it ended with.
fn compared(evaluated: &[EvaluationEntry]) -> Option<(Option<usize>, usize)> {
    let of_model = || (0..evaluated.len()).filter(|index| evaluated[*index].captioner == Captioner::Model);
    let last = of_model().next_back()?;
    let stage = evaluated[last].stage;
    let after =
        of_model().rfind(|index| evaluated[*index].stage == stage && evaluated[*index].is_selected).unwrap_or(last);
    let others = || of_model().filter(|index| *index != after);
    let is_before = |index: &usize| (evaluated[*index].stage, evaluated[*index].step) <= (stage, 0);
    // The next stage starts from the state that an earlier stage ended with, which may not be its
    // last.
    let before = others().rfind(is_before).map(|last| {
        let own = |index: &usize| evaluated[*index].stage == evaluated[last].stage;
        others().filter(own).find(|index| evaluated[*index].is_selected).unwrap_or(last)
    });
    Some((before.or_else(|| others().next()), after))
}

fn evaluated(settings: &RunFile, stages: &[Stage], evaluations: &[Evaluation]) -> Vec<EvaluationEntry> {
    let captioner = |stage: u32| match settings.stages.get(stage as usize).map(|stage| &stage.objective) {
        Some(Objective::Contrastive) => Captioner::People,
        _ => Captioner::Model,
    };
    let is_selected = |place: Place| {
        let stage = stages.iter().find(|stage| stage.number == place.stage);
        stage.and_then(|stage| stage.end.as_ref()).is_some_and(|end| end.step == place.step)
    };
    let of_model = || evaluations.iter().filter(|evaluation| captioner(evaluation.place.stage) == Captioner::Model);
    let mut best: BTreeMap<String, f64> = BTreeMap::new();
    for (name, better) in settings.scores() {
        let scores = of_model().filter_map(|evaluation| evaluation.scores.get(&name)).copied();
        let best_score = match better {
            Better::Higher => scores.reduce(f64::max),
            Better::Lower => scores.reduce(f64::min),
            Better::Neither => None,
        };
        best.extend(best_score.map(|score| (name, score)));
    }
    let several = of_model().nth(1).is_some();
    let evaluated = |Evaluation { place, at, scores, .. }: &Evaluation| {
        let captioner = captioner(place.stage);
        let is_best = |(name, score): (&String, &f64)| {
            several && captioner == Captioner::Model && best.get(name.as_str()) == Some(score)
        };
        let best = scores.iter().filter(|score| is_best(*score)).map(|(name, _)| name.clone()).collect();
        let stage_name = settings.stages.get(place.stage as usize).map_or_else(String::new, |stage| stage.name.clone());
        EvaluationEntry {
            stage: place.stage,
            stage_name,
            step: place.step,
            at: *at,
            captioner,
            is_selected: is_selected(*place),
            scores: scores.clone(),
            best,
        }
    };
    evaluations.iter().map(evaluated).collect()
}

fn happened(events: &[Event], which: impl Fn(&str) -> bool) -> Vec<EventEntry> {
    let mut happened: Vec<EventEntry> = events
        .iter()
        .rev()
        .filter(|event| which(&event.kind))
        .take(MAX_ROWS)
        .map(|Event { at, kind, detail }| EventEntry { at: *at, kind: kind.clone(), detail: detail.clone() })
        .collect();
    happened.reverse();
    happened
}

fn machines(history: &History) -> Result<Vec<MachineGroup>, Error> {
    let mut machines: BTreeMap<[String; 3], BTreeSet<u32>> = BTreeMap::new();
    for (machine, rank) in history.machines()? {
        machines.entry(machine).or_default().insert(rank);
    }
    let machine = |([host, device, version], ranks): ([String; 3], _)| MachineGroup { host, device, version, ranks };
    Ok(machines.into_iter().map(machine).collect())
}
