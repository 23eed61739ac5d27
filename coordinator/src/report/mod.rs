//! What came of a run, from its journal: as one page that needs nothing else, or as JSON.
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

use runfile::{Objective, RunFile};
use serde::{Deserialize, Serialize};
use statistics::names::Better;

pub use captions::{Captioned, Captions};
pub use curves::{Curve, Curves};

use crate::{
    audit::{self, Audit},
    happened::GUARD,
    journal::{
        Error,
        history::{Checkpoint, Evaluation, Event, Generation, History, Measured},
    },
    run::{plan::Place, record::Happening},
};

/// Events of one kind, and generations, that are told one by one; of more the last are.
const MOST_ROWS: usize = 200;

/// What came of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Name of the run.
    pub run: String,
    /// Version of the program that made the report.
    pub version: &'static str,
    /// When it was made, in Unix seconds; and so on.
    pub made_at: f64,
    /// When the run was begun.
    pub begun_at: f64,
    /// When the last thing happened.
    pub last_at: f64,
    /// How it ended, or stands.
    pub outcome: Outcome,
    /// Stages that were begun.
    pub stages: Vec<Stage>,
    /// Scores.
    pub evaluations: Vec<Evaluated>,
    /// Captions before and after the last stage that was evaluated.
    pub captions: Option<Captions>,
    /// Checkpoints that are left.
    pub checkpoints: Vec<Saved>,
    /// What faults have cost.
    pub recoveries: Recoveries,
    /// Samples, epochs and generations; of very many generations the last.
    pub audit: Audit,
    /// When each of these generations was formed.
    pub formed_at: Vec<f64>,
    /// Rules of the guard that were broken.
    pub guard: Vec<Happened>,
    /// What else happened, but workers that came.
    pub events: Vec<Happened>,
    /// Who took part.
    pub machines: Vec<Machine>,
    /// The run file.
    pub settings: RunFile,
}

/// How a run ended, or stands.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "state", content = "reason", rename_all = "snake_case")]
pub enum Outcome {
    /// All stages are done.
    Finished,
    /// It cannot go on.
    Failed(String),
    /// It waits for somebody to let it go on.
    Paused(String),
    /// It is under way, or its coordinator was stopped.
    Unfinished,
}

/// A stage that was begun.
#[derive(Clone, Debug, Serialize)]
pub struct Stage {
    /// Its number, from 0.
    pub number: u32,
    /// Its name.
    pub name: String,
    /// What it minimises.
    pub objective: &'static str,
    /// Steps that the run file wants.
    pub wanted: u64,
    /// Steps that are applied.
    pub steps: u64,
    /// Samples that these trained on.
    pub samples: u64,
    /// Samples of a step.
    pub batch: u32,
    /// When its first step was done.
    pub from: f64,
    /// When its last step was done.
    pub to: f64,
    /// Where it ended, if that is not its last step.
    pub end: Option<End>,
    /// What was measured, by name.
    pub curves: BTreeMap<&'static str, Curve>,
}

/// Where a stage ended, if that is not its last step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct End {
    /// The step of the state that the next stage starts from.
    pub step: u64,
    /// Why.
    pub reason: String,
    /// Later states that a reader may have expected instead: the last one, and those with a better score.
    #[serde(default)]
    pub passed_over: Vec<PassedOver>,
}

/// A state that a stage did not end with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PassedOver {
    /// Its step.
    pub step: u64,
    /// Its score by the stage's metric.
    pub score: Option<f64>,
    /// Why it was passed over.
    pub reason: String,
}

/// Whose captions an evaluation scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Captioner {
    /// The model's.
    Model,
    /// The references, each against the others of its image: in a stage that trains the evaluator.
    People,
}

/// An evaluation.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Evaluated {
    /// The state that was evaluated.
    pub stage: u32,
    /// Name of its stage.
    pub stage_name: String,
    /// Steps of the stage that were applied.
    pub step: u64,
    /// When.
    pub at: f64,
    /// Whose captions were scored.
    pub captioner: Captioner,
    /// Whether the stage ended with this state although it was trained further.
    pub is_selected: bool,
    /// Scores by name.
    pub scores: BTreeMap<String, f64>,
    /// Names of the scores that no other evaluation of the model has better.
    pub best: BTreeSet<String>,
}

/// A checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Saved {
    /// What it is called.
    pub name: String,
    /// SHA-256 (hex) over its parameters.
    pub parameters_sha256: String,
    /// When it was complete.
    pub at: f64,
    /// Whether it is the last of a stage that ended with an earlier state.
    pub is_passed_over: bool,
}

/// What faults have cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Recoveries {
    /// Workers that were lost.
    pub lost: u64,
    /// Times that a generation took over from another.
    pub count: u64,
    /// Seconds from the end of the one to the next step, summed.
    pub seconds: f64,
    /// The longest of these.
    pub longest: f64,
    /// Steps that were given up.
    pub given_up: u64,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Happened {
    /// When.
    pub at: f64,
    /// What.
    pub kind: String,
    /// Its particulars.
    pub detail: serde_json::Value,
}

/// Workers of one version on one kind of device of one host.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Machine {
    /// The host.
    pub host: String,
    /// The device.
    pub device: String,
    /// The version of the worker.
    pub version: String,
    /// Identities of the workers.
    pub ranks: BTreeSet<u32>,
}

impl Report {
    /// Reads a journal, which may be that of a run that goes on.
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
        let earlier = audit.generations.len().saturating_sub(MOST_ROWS);
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
            checkpoints: history.checkpoints()?.into_iter().map(Saved::from).collect(),
            recoveries,
            audit,
            formed_at: generations.iter().skip(earlier).map(|generation| generation.formed_at).collect(),
            guard: happened(&events, |kind| kind == GUARD),
            events: happened(&events, |kind| kind != GUARD && kind != Happening::Joined.name()),
            machines: machines(history)?,
            settings,
        })
    }

    /// The page.
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
                kind if kind == Happening::Finished.name() => return Self::Finished,
                // Served again, a run that had failed may have gone on.
                kind if kind == Happening::Failed.name() && *at >= formed => return Self::Failed(reason()),
                kind if kind == Happening::Paused.name() => return Self::Paused(reason()),
                kind if kind == Happening::Resumed.name() => return Self::Unfinished,
                _ => {}
            }
        }
        Self::Unfinished
    }
}

impl Recoveries {
    fn of(audit: &Audit, events: &[Event]) -> Self {
        let lost = events.iter().filter(|event| event.kind == Happening::Lost.name()).count() as u64;
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

impl From<Checkpoint> for Saved {
    fn from(Checkpoint { name, parameters_sha256, at, is_current, .. }: Checkpoint) -> Self {
        Self { name, parameters_sha256, at, is_passed_over: !is_current }
    }
}

fn stages(history: &History, settings: &RunFile, events: &[Event]) -> Result<Vec<Stage>, Error> {
    let mut begun: BTreeMap<u32, (Stage, Curves)> = BTreeMap::new();
    history.measured(Place::default(), |step| {
        let Measured { place: Place { stage: number, step, .. }, at, samples, learning, speed, .. } = step;
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
        // What was trained again, for it was lost, comes later than what follows it.
        stage.from = stage.from.min(at);
        stage.to = stage.to.max(at);
        curves.add(step, learning.into_iter().chain(speed));
    })?;
    Ok(begun.into_values().map(|(stage, curves)| Stage { curves: curves.all(), ..stage }).collect())
}

fn end(events: &[Event], stage: u32) -> Option<End> {
    let ended = events.iter().rev().filter(|event| event.kind == Happening::StageEnded.name());
    let mut own = ended.filter(|event| event.detail["stage"].as_u64() == Some(stage.into()));
    End::deserialize(&own.next()?.detail).ok()
}

/// Which evaluations' captions are shown side by side: what went into the last stage that was evaluated, and what it ended with.
fn compared(evaluated: &[Evaluated]) -> Option<(Option<usize>, usize)> {
    let of_model = || (0..evaluated.len()).filter(|index| evaluated[*index].captioner == Captioner::Model);
    let last = of_model().next_back()?;
    let stage = evaluated[last].stage;
    let after =
        of_model().rfind(|index| evaluated[*index].stage == stage && evaluated[*index].is_selected).unwrap_or(last);
    let others = || of_model().filter(|index| *index != after);
    let is_before = |index: &usize| (evaluated[*index].stage, evaluated[*index].step) <= (stage, 0);
    // What went on of an earlier stage is the state that it ended with, which need not be its last.
    let before = others().rfind(is_before).map(|last| {
        let own = |index: &usize| evaluated[*index].stage == evaluated[last].stage;
        others().filter(own).find(|index| evaluated[*index].is_selected).unwrap_or(last)
    });
    Some((before.or_else(|| others().next()), after))
}

fn evaluated(settings: &RunFile, stages: &[Stage], evaluations: &[Evaluation]) -> Vec<Evaluated> {
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
        Evaluated {
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

fn happened(events: &[Event], which: impl Fn(&str) -> bool) -> Vec<Happened> {
    let mut happened: Vec<Happened> = events
        .iter()
        .rev()
        .filter(|event| which(&event.kind))
        .take(MOST_ROWS)
        .map(|Event { at, kind, detail }| Happened { at: *at, kind: kind.clone(), detail: detail.clone() })
        .collect();
    happened.reverse();
    happened
}

fn machines(history: &History) -> Result<Vec<Machine>, Error> {
    let mut machines: BTreeMap<[String; 3], BTreeSet<u32>> = BTreeMap::new();
    for (machine, rank) in history.machines()? {
        machines.entry(machine).or_default().insert(rank);
    }
    let machine = |([host, device, version], ranks): ([String; 3], _)| Machine { host, device, version, ranks };
    Ok(machines.into_iter().map(machine).collect())
}
