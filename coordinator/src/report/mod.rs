//! The report of a run, from its journal: as one self-contained HTML file, or as JSON.
//!
//! ```text
//!   journal ----- steps ------> curves -----.
//!      |                                    |
//!      |--------- captions ---> captions ---+--> Report --- page, chart --> HTML with charts (SVG)
//!      |                           ^        |       |
//!      '--- other records ---------|--------'       '------ serde --------> JSON
//!                                  | images
//!                         data set of the run
//! ```
//!
//! - `captions`: captions of the same images before and after a stage, with the images.
//! - `chart`: line charts as SVG.
//! - `curves`: the curves of a stage, with a bounded number of points.
//! - `page`: the HTML file.

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

use config::RunFile;
use dico_engine::{EventKind, WorkerId, checkpoint::Checkpoint, plan::Position};
use journal::{
    Error, Evaluation, EvaluationId, Event, GUARD_KIND, ReadOnlyJournal, RecordedCheckpoint, RunOutcome, StageEnd,
};
use metric_catalogue::Direction;
use serde::Serialize;

pub use captions::{CaptionedImage, Captions};
pub use curves::{Curve, Curves};

use crate::{
    audit::{self, Audit},
    step_metrics::{speed_metrics, training_metrics},
};

/// Maximal number of rows of a table. If there are more generations or events, the table lists the
/// last ones.
const MAX_TABLE_ROWS: usize = 200;

/// The data of a report.
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
    /// The time of the last event, step or evaluation.
    pub last_at: f64,
    /// How the run ended, or its present state.
    pub outcome: RunOutcome,
    /// The stages that have started.
    pub stages: Vec<Stage>,
    /// The evaluations with their scores.
    pub evaluations: Vec<EvaluationEntry>,
    /// Captions before and after the last stage that was evaluated.
    pub captions: Option<Captions>,
    /// The checkpoints that were not deleted.
    pub checkpoints: Vec<CheckpointEntry>,
    /// The failures and recoveries, and what they cost: seconds and steps.
    pub recoveries: Recoveries,
    /// The audit: samples, epochs, and the last generations.
    pub audit: Audit,
    /// When each of the generations in `audit` was formed.
    pub formed_at: Vec<f64>,
    /// The last guard rules that have fired.
    pub guard: Vec<EventEntry>,
    /// The last other events, except for workers that joined.
    pub events: Vec<EventEntry>,
    /// The machines of the workers.
    pub machines: Vec<MachineGroup>,
    /// The run file.
    pub settings: RunFile,
}

/// A stage that has started.
#[derive(Clone, Debug, Serialize)]
pub struct Stage {
    /// The number of the stage, from 0.
    pub number: u32,
    /// The name of the stage.
    pub name: String,
    /// The objective.
    pub objective: &'static str,
    /// The number of steps that the run file plans for the stage.
    pub wanted: u64,
    /// The number of steps that were applied and not given up.
    pub steps: u64,
    /// The number of samples of these steps.
    pub samples: u64,
    /// The number of samples per step.
    pub batch: u32,
    /// When its first step was recorded.
    pub from: f64,
    /// When its last step was recorded.
    pub to: f64,
    /// The end of the stage, if it ended with an earlier checkpoint than its last.
    pub end: Option<EarlyEnd>,
    /// The curves of its measurements, by name.
    pub curves: BTreeMap<&'static str, Curve>,
}

/// The end of a stage with an earlier checkpoint than its last.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EarlyEnd {
    /// The step of the checkpoint that the stage ended with. The next stage starts from it.
    pub step: u64,
    /// The name of the cause: `best_state`, `early_stopping` or `guard`.
    pub cause: &'static str,
    /// The reason, as a message for display.
    pub reason: String,
}

/// Where the captions come from that an evaluation scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Captioner {
    /// The captioner model.
    Model,
    /// Human annotators. A stage that trains the evaluator generates no captions; it scores each
    /// reference caption against the others of its image.
    People,
}

/// A row of the table of evaluations.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EvaluationEntry {
    /// The number of the evaluated stage.
    pub stage: u32,
    /// The name of the evaluated stage.
    pub stage_name: String,
    /// The number of steps of the stage that were applied before it.
    pub step: u64,
    /// When it was recorded.
    pub at: f64,
    /// Where its captions come from.
    pub captioner: Captioner,
    /// Whether the stage ended with the checkpoint of this step, although later steps were trained.
    pub is_selected: bool,
    /// Scores by name.
    pub scores: BTreeMap<String, f64>,
    /// Names of the metrics in which no other evaluation of the captioner model has a better score.
    /// Empty if there is no other one.
    pub best: BTreeSet<String>,
}

/// A row of the table of checkpoints: one that was not deleted.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CheckpointEntry {
    /// The name of the checkpoint.
    pub name: String,
    /// The SHA-256 (hex) of its parameters.
    pub parameters_sha256: String,
    /// When it was complete.
    pub at: f64,
    /// Whether it is the last checkpoint of a stage that ended with an earlier one.
    pub is_passed_over: bool,
}

/// The numbers of failures and recoveries, and what they cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Recoveries {
    /// The number of failures of workers.
    pub lost: u64,
    /// The number of recoveries: generations that continued after an earlier one, because a worker
    /// joined, left or failed.
    pub count: u64,
    /// Seconds from the end of the earlier generation to the first step of the next one, summed.
    pub seconds: f64,
    /// The longest of these times.
    pub longest: f64,
    /// The number of steps that were given up.
    pub given_up: u64,
}

/// A row of the tables of guard rules and events.
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
    /// The version of the `worker` program.
    pub version: String,
    /// The ids of the workers.
    #[serde(rename = "ranks")]
    pub worker_ids: BTreeSet<WorkerId>,
}

impl Report {
    /// Reads a journal. The run may be in progress.
    ///
    /// # Errors
    /// The journal cannot be read.
    pub fn read(journal: &ReadOnlyJournal) -> Result<Self, Error> {
        let settings = journal.run_file()?;
        let (events, mut audit) = (journal.events()?, audit::audit(journal)?);
        let (stages, evaluations) = (stages(journal, &settings)?, journal.evaluations(None)?);
        let (generations, begun_at) = (journal.generations()?, journal.created_at()?);
        let recoveries = Recoveries::of(&audit, &events);
        let times = events.iter().map(|event| event.at).chain(stages.iter().map(|stage| stage.to));
        let last_at = times.chain(evaluations.iter().map(|evaluation| evaluation.at)).fold(begun_at, f64::max);
        let earlier = audit.generations.len().saturating_sub(MAX_TABLE_ROWS);
        audit.generations.drain(..earlier);
        let entries = evaluation_entries(&settings, &stages, &evaluations);
        let captions = evaluations_to_compare(&entries).map(|(before, after)| {
            Captions::read(journal, &settings, before.map(|before| evaluations[before].id), evaluations[after].id)
        });
        Ok(Self {
            run: settings.name.clone(),
            version: env!("CARGO_PKG_VERSION"),
            made_at: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64()),
            begun_at,
            last_at,
            outcome: journal.outcome()?,
            captions: captions.transpose()?,
            evaluations: entries,
            stages,
            checkpoints: journal.checkpoints()?.into_iter().map(CheckpointEntry::from).collect(),
            recoveries,
            audit,
            formed_at: generations.iter().skip(earlier).map(|generation| generation.formed_at).collect(),
            guard: recent_events(&events, |kind| kind == GUARD_KIND),
            events: recent_events(&events, |kind| kind != GUARD_KIND && kind != EventKind::Attached.name()),
            machines: machine_groups(journal)?,
            settings,
        })
    }

    /// Renders the report as an HTML file.
    #[must_use]
    pub fn to_html(&self) -> String {
        page::page(self).into_string()
    }
}

impl From<&StageEnd> for EarlyEnd {
    fn from(StageEnd { position, cause, reason, .. }: &StageEnd) -> Self {
        Self { step: position.step, cause: cause.name(), reason: reason.clone() }
    }
}

impl Recoveries {
    fn of(audit: &Audit, events: &[Event]) -> Self {
        let lost = events.iter().filter(|event| event.kind == EventKind::Lost.name()).count() as u64;
        let mut recoveries = Self { lost, ..Self::default() };
        for generation in &audit.generations {
            recoveries.given_up += generation.given_up;
            if let Some(seconds) = generation.recovery_s {
                recoveries.count += 1;
                recoveries.seconds += seconds;
                recoveries.longest = recoveries.longest.max(seconds);
            }
        }
        recoveries
    }
}

impl From<RecordedCheckpoint> for CheckpointEntry {
    fn from(RecordedCheckpoint { checkpoint, at, is_in_present_history }: RecordedCheckpoint) -> Self {
        let Checkpoint { name, parameters_sha256, .. } = checkpoint;
        Self { name, parameters_sha256, at, is_passed_over: !is_in_present_history }
    }
}

/// Reads the stages that have started, with their curves.
fn stages(journal: &ReadOnlyJournal, settings: &RunFile) -> Result<Vec<Stage>, Error> {
    let ends = journal.stage_ends()?;
    let mut started: BTreeMap<u32, (Stage, Curves)> = BTreeMap::new();
    journal.for_each_step(Position::default(), |recorded| {
        let (Position { stage: number, step }, at) = (recorded.position, recorded.at);
        let Some(config) = settings.stages.get(number as usize) else { return };
        let (stage, curves) = started.entry(number).or_insert_with(|| {
            let stage = Stage {
                number,
                name: config.name.clone(),
                objective: config.objective.name(),
                wanted: config.steps,
                steps: 0,
                samples: 0,
                batch: config.batch,
                from: at,
                to: at,
                end: ends.iter().rfind(|end| end.position.stage == number).map(EarlyEnd::from),
                curves: BTreeMap::new(),
            };
            (stage, Curves::default())
        });
        stage.samples += recorded.samples;
        stage.steps = step;
        // A step that was given up and trained again is recorded after later steps.
        stage.from = stage.from.min(at);
        stage.to = stage.to.max(at);
        curves.add(step, training_metrics(&recorded).into_iter().chain(speed_metrics(&recorded)));
    })?;
    Ok(started.into_values().map(|(stage, curves)| Stage { curves: curves.all(), ..stage }).collect())
}

/// The indices of the two evaluations whose captions are compared. The second one is that of the
/// checkpoint that the last evaluated stage ended with, or else the last one. The first one is that
/// of the checkpoint that this stage started from, or else the earliest other one; `None` if there
/// is no other one.
fn evaluations_to_compare(entries: &[EvaluationEntry]) -> Option<(Option<usize>, usize)> {
    let model_evaluations = || (0..entries.len()).filter(|index| entries[*index].captioner == Captioner::Model);
    let last = model_evaluations().next_back()?;
    let stage = entries[last].stage;
    let after = model_evaluations()
        .rfind(|index| entries[*index].stage == stage && entries[*index].is_selected)
        .unwrap_or(last);
    let others = || model_evaluations().filter(|index| *index != after);
    let is_before = |index: &usize| (entries[*index].stage, entries[*index].step) <= (stage, 0);
    // The stage starts from the checkpoint that the previous stage ended with, which may not be the
    // last one of that stage.
    let before = others().rfind(is_before).map(|last| {
        let is_of_same_stage = |index: &usize| entries[*index].stage == entries[last].stage;
        others().filter(is_of_same_stage).find(|index| entries[*index].is_selected).unwrap_or(last)
    });
    Some((before.or_else(|| others().next()), after))
}

/// The evaluations, with the best score of each metric marked.
fn evaluation_entries(settings: &RunFile, stages: &[Stage], evaluations: &[Evaluation]) -> Vec<EvaluationEntry> {
    let captioner = |stage: u32| match settings.stages.get(stage as usize) {
        Some(stage) if stage.objective.trains_evaluator() => Captioner::People,
        _ => Captioner::Model,
    };
    let is_selected = |position: Position| {
        let stage = stages.iter().find(|stage| stage.number == position.stage);
        stage.and_then(|stage| stage.end.as_ref()).is_some_and(|end| end.step == position.step)
    };
    let model_evaluations =
        || evaluations.iter().filter(|evaluation| captioner(evaluation.id.position.stage) == Captioner::Model);
    let mut best: BTreeMap<String, f64> = BTreeMap::new();
    for (name, direction) in settings.scores() {
        let scores = model_evaluations().filter_map(|evaluation| evaluation.scores.get(&name)).copied();
        let best_score = match direction {
            Direction::HigherIsBetter => scores.reduce(f64::max),
            Direction::LowerIsBetter => scores.reduce(f64::min),
            Direction::Neutral => None,
        };
        best.extend(best_score.map(|score| (name, score)));
    }
    let has_several = model_evaluations().nth(1).is_some();
    let entry = |Evaluation { id: EvaluationId { position, .. }, at, scores, .. }: &Evaluation| {
        let captioner = captioner(position.stage);
        let is_best = |(name, score): (&String, &f64)| {
            has_several && captioner == Captioner::Model && best.get(name.as_str()) == Some(score)
        };
        let best = scores.iter().filter(|score| is_best(*score)).map(|(name, _)| name.clone()).collect();
        let stage_name =
            settings.stages.get(position.stage as usize).map_or_else(String::new, |stage| stage.name.clone());
        EvaluationEntry {
            stage: position.stage,
            stage_name,
            step: position.step,
            at: *at,
            captioner,
            is_selected: is_selected(*position),
            scores: scores.clone(),
            best,
        }
    };
    evaluations.iter().map(entry).collect()
}

/// The last events of the kinds that `is_listed` accepts, in order.
fn recent_events(events: &[Event], is_listed: impl Fn(&str) -> bool) -> Vec<EventEntry> {
    let mut recent: Vec<EventEntry> = events
        .iter()
        .rev()
        .filter(|event| is_listed(&event.kind))
        .take(MAX_TABLE_ROWS)
        .map(|Event { at, kind, detail }| EventEntry { at: *at, kind: kind.clone(), detail: detail.clone() })
        .collect();
    recent.reverse();
    recent
}

/// Groups the workers by host, device and version.
fn machine_groups(journal: &ReadOnlyJournal) -> Result<Vec<MachineGroup>, Error> {
    let mut machines: BTreeMap<[String; 3], BTreeSet<WorkerId>> = BTreeMap::new();
    for (machine, worker_id) in journal.machines()? {
        machines.entry(machine).or_default().insert(worker_id);
    }
    let machine =
        |([host, device, version], worker_ids): ([String; 3], _)| MachineGroup { host, device, version, worker_ids };
    Ok(machines.into_iter().map(machine).collect())
}
