//! Curves of a run in bounded memory: aggregates the journal's steps into buckets.
//!
//! A stage has at most [`MAX_BUCKETS`] buckets. When it outgrows them, each bucket is merged with
//! its neighbour, which doubles the number of steps per bucket. Memory and the size of an answer
//! are therefore bounded for a stage of any length.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use dico_engine::{
    lineage::{Lineage, ModelSelection, StateFate},
    plan::Position,
};
use journal::{Distribution, Error, ReadOnlyJournal, RecordedStep};
use metric_catalogue::names;
use serde::Serialize;

use crate::buckets::{Aggregate, Bucket, Buckets, Merge};

/// Maximal number of buckets of a whole stage, and of its recent steps.
pub const MAX_BUCKETS: usize = 512;
/// Maximal number of steps read in one query.
const MAX_STEPS_PER_QUERY: usize = 4096;
/// The names of the series of a step's scalars.
const STEP_SCALARS: [&str; 7] =
    ["loss", "learning_rate", "gradient_norm", "seconds", "all_reduce_seconds", "images_per_second", "lag_seconds"];
/// Distributions that have series of their quantiles.
const QUANTILE_DISTRIBUTIONS: [&str; 2] = [names::REWARD_CHOSEN, names::REWARD_REJECTED];
/// The quantiles of a [`Distribution`], as in the names of their series.
const QUANTILES: [&str; 5] = ["p05", "p25", "p50", "p75", "p95"];
/// The number of series: a step's scalars, the means of its distributions, and some quantiles.
const SERIES_COUNT: usize =
    STEP_SCALARS.len() + metric_catalogue::TRAINING_METRICS.len() + QUANTILE_DISTRIBUTIONS.len() * QUANTILES.len();

/// The name of the series with this index, and whether it has a minimum and a maximum. Series of
/// quantiles have none.
fn series_name(series: usize) -> (String, bool) {
    match (STEP_SCALARS.get(series), series.checked_sub(STEP_SCALARS.len())) {
        (Some(scalar), _) => ((*scalar).to_owned(), true),
        (None, Some(metric)) if metric < metric_catalogue::TRAINING_METRICS.len() => {
            (metric_catalogue::TRAINING_METRICS[metric].to_owned(), true)
        }
        (None, _) => {
            let quantile = series - STEP_SCALARS.len() - metric_catalogue::TRAINING_METRICS.len();
            let (distribution, quantile) =
                (QUANTILE_DISTRIBUTIONS[quantile / QUANTILES.len()], QUANTILES[quantile % QUANTILES.len()]);
            (format!("{distribution}.{quantile}"), false)
        }
    }
}

/// The values of a step, in the order of the series.
fn series_values(step: &RecordedStep) -> [Option<f64>; SERIES_COUNT] {
    // In the order of `STEP_SCALARS`.
    let scalars = [
        step.loss,
        step.learning_rate,
        step.gradient_norm,
        step.seconds,
        step.all_reduce_seconds,
        step.samples_per_second(),
        step.lag_seconds,
    ];
    let distribution = |name: &str| step.summaries.get(name);
    let means = metric_catalogue::TRAINING_METRICS.into_iter().map(|name| distribution(name)?.mean);
    let quantiles = QUANTILE_DISTRIBUTIONS.into_iter().flat_map(|name| match distribution(name) {
        Some(Distribution { p05, p25, p50, p75, p95, .. }) => [*p05, *p25, *p50, *p75, *p95],
        None => [None; QUANTILES.len()],
    });
    let mut values = scalars.into_iter().chain(means).chain(quantiles);
    std::array::from_fn(|_| values.next().flatten())
}

/// The values of consecutive steps.
#[derive(Clone, Debug, PartialEq)]
struct StepValues {
    /// When the last of the steps was recorded, in Unix seconds.
    at: f64,
    /// The aggregates, in the order of the series.
    aggregates: [Aggregate; SERIES_COUNT],
}

impl StepValues {
    fn of_step(step: &RecordedStep) -> Self {
        Self { at: step.at, aggregates: series_values(step).map(Aggregate::of) }
    }
}

impl Merge for StepValues {
    fn merge(&mut self, later: &Self) {
        self.at = later.at;
        self.aggregates.iter_mut().zip(&later.aggregates).for_each(|(aggregate, later)| aggregate.merge(later));
    }
}

/// The curves of a stage.
#[derive(Clone, Debug)]
struct StageCurves {
    buckets: Buckets<StepValues>,
    /// The last [`MAX_BUCKETS`] steps, each in its own bucket.
    recent: VecDeque<Bucket<StepValues>>,
}

impl StageCurves {
    fn new() -> Self {
        Self { buckets: Buckets::new(MAX_BUCKETS), recent: VecDeque::new() }
    }

    fn add_step(&mut self, step: u64, values: StepValues) {
        if self.recent.len() == MAX_BUCKETS {
            self.recent.pop_front();
        }
        self.recent.push_back(Bucket::of_step(step, values.clone()));
        self.buckets.add_step(step, values);
    }

    /// Removes all steps beyond `step`, and each bucket that contains one of them. Returns the last
    /// remaining step; 0 if none remains.
    fn truncate(&mut self, step: u64) -> u64 {
        let last_step = self.buckets.truncate(step);
        self.recent.retain(|bucket| bucket.last <= last_step);
        last_step
    }
}

/// Which steps of a stage a client requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum StepRange {
    /// The whole stage, in at most [`MAX_BUCKETS`] buckets.
    #[default]
    Full,
    /// The last [`MAX_BUCKETS`] steps, one per bucket.
    Recent,
}

/// The version of the curves of all stages. A client with the same `version` gets only later data,
/// as a delta.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct CurvesVersion {
    /// Incremented when steps are removed, because clients may have them.
    pub version: u64,
    /// The number of steps that were added since this version began.
    pub steps: u64,
}

/// An answer to a client, with all data or with a delta: columns of equal length with one element
/// per bucket.
#[derive(Debug, Serialize)]
pub struct CurvesAnswer {
    stage: u32,
    range: StepRange,
    #[serde(flatten)]
    version: CurvesVersion,
    /// The maximal number of steps per bucket.
    bucket_size: u64,
    /// Whether this is a delta, which replaces the client's data from the first bucket of the delta
    /// on. Otherwise the answer replaces all data of the client.
    is_delta: bool,
    /// The first step of each bucket.
    first: Vec<u64>,
    /// The last step of each bucket.
    last: Vec<u64>,
    /// When the last step of each bucket was recorded, in Unix seconds.
    at: Vec<f64>,
    /// Series by name, without those for which the stage has no values.
    series: BTreeMap<String, Columns>,
}

/// The columns of a series, rounded to single precision; null where there is no value.
#[derive(Debug, Serialize)]
struct Columns {
    mean: Vec<Option<f32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    min: Option<Vec<Option<f32>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max: Option<Vec<Option<f32>>>,
}

/// What the client has. If its data do not match the present curves, the client gets all data.
#[derive(Clone, Copy, Debug, Default)]
pub struct CurveCursor {
    /// The version of the client's data.
    pub version: u64,
    /// The maximal number of steps per bucket of the client's data.
    pub bucket_size: u64,
    /// The first step of the client's last bucket, which may have grown since. 0 if the client has
    /// no data.
    pub from_step: u64,
}

/// The result of one query of the journal.
#[derive(Default)]
pub struct CurveUpdate {
    /// The starts of generations and the ends of stages: where the history may branch. Each has the
    /// number of the first generation that continues from there.
    pub branch_points: BTreeSet<(u64, Position)>,
    /// The stages that ended with their best state.
    pub selections: BTreeSet<ModelSelection>,
    /// Steps beyond those that the curves have.
    pub steps: Vec<RecordedStep>,
}

/// The curves of all stages.
#[derive(Debug)]
pub struct Curves {
    stages: BTreeMap<u32, StageCurves>,
    branch_points: BTreeSet<(u64, Position)>,
    /// The position of the last step that the curves have. Later steps are not read yet.
    last_read: Position,
    version: CurvesVersion,
}

impl Curves {
    /// Empty curves. `version` has to differ from the versions of earlier coordinators, because
    /// clients may have their data.
    pub fn new(version: u64) -> Self {
        let version = CurvesVersion { version, steps: 0 };
        Self { stages: BTreeMap::new(), branch_points: BTreeSet::new(), last_read: Position::default(), version }
    }

    /// The present version.
    pub fn version(&self) -> CurvesVersion {
        self.version
    }

    /// The query for the next update.
    pub fn next_query(&self) -> impl FnOnce(&ReadOnlyJournal) -> Result<CurveUpdate, Error> + use<> {
        let last_read = self.last_read;
        move |journal| {
            let (branch_points, selections) = (journal.branch_points()?, journal.selections()?);
            let steps = journal.recorded_steps(last_read, MAX_STEPS_PER_QUERY)?;
            Ok(CurveUpdate { branch_points, selections, steps })
        }
    }

    /// Applies an update. Returns whether the journal may have more steps.
    pub fn apply(&mut self, CurveUpdate { branch_points, selections, steps }: CurveUpdate) -> bool {
        let new_branch_points = branch_points.difference(&self.branch_points);
        let first_new_branch = new_branch_points.map(|(_, position)| *position).min();
        self.branch_points = branch_points;
        if let Some(position) = first_new_branch.filter(|position| *position < self.last_read) {
            self.truncate(position);
            return true;
        }
        let lineage = Lineage::new(&self.branch_points, &selections);
        let has_more = steps.len() == MAX_STEPS_PER_QUERY;
        let is_shown = |step: &RecordedStep| lineage.fate(step.position, step.generation) != StateFate::GivenUp;
        let mut steps = steps.into_iter().filter(is_shown).peekable();
        while let Some(step) = steps.next() {
            self.last_read = step.position;
            // If a step was recorded more than once, the last record counts.
            if steps.peek().is_none_or(|later| later.position != step.position) {
                self.stages
                    .entry(step.position.stage)
                    .or_insert_with(StageCurves::new)
                    .add_step(step.position.step, StepValues::of_step(&step));
                self.version.steps += 1;
            }
        }
        has_more
    }

    /// Removes all steps beyond `position`.
    fn truncate(&mut self, position: Position) {
        self.stages.retain(|stage, _| *stage <= position.stage);
        let step = self.stages.get_mut(&position.stage).map_or(0, |curves| curves.truncate(position.step));
        self.last_read = Position { stage: position.stage, step };
        self.version = CurvesVersion { version: self.version.version + 1, steps: 0 };
    }

    /// The answer to a client: the data of a stage that the client does not have.
    pub fn answer(&self, stage: u32, range: StepRange, cursor: CurveCursor) -> CurvesAnswer {
        let empty = StageCurves::new();
        let curves = self.stages.get(&stage).unwrap_or(&empty);
        let bucket_size = if range == StepRange::Full { curves.buckets.bucket_size() } else { 1 };
        let mut buckets: Vec<&Bucket<StepValues>> = match range {
            StepRange::Full => curves.buckets.as_slice().iter().collect(),
            StepRange::Recent => curves.recent.iter().collect(),
        };
        // A delta begins with the client's last bucket. If the curves no longer have it, the answer
        // has all data.
        let is_same_version = (cursor.version, cursor.bucket_size) == (self.version.version, bucket_size);
        let delta_start = buckets.iter().position(|bucket| is_same_version && bucket.first == cursor.from_step);
        let is_delta = delta_start.is_some();
        buckets.drain(..delta_start.unwrap_or(0));
        let column = |series: usize, statistic: fn(&Aggregate) -> f64| {
            let value = |bucket: &&Bucket<StepValues>| {
                let aggregate = &bucket.content.aggregates[series];
                (aggregate.count > 0).then(|| statistic(aggregate) as f32).filter(|value| value.is_finite())
            };
            buckets.iter().map(value).collect::<Vec<_>>()
        };
        let columns = |series: usize| {
            let (name, has_extremes) = series_name(series);
            let extreme = |statistic| (has_extremes && bucket_size > 1).then(|| column(series, statistic));
            let mean = column(series, Aggregate::mean);
            let has_values = mean.iter().any(Option::is_some);
            has_values.then(|| {
                (
                    name,
                    Columns { mean, min: extreme(|aggregate| aggregate.min), max: extreme(|aggregate| aggregate.max) },
                )
            })
        };
        CurvesAnswer {
            stage,
            range,
            version: self.version,
            bucket_size,
            is_delta,
            first: buckets.iter().map(|bucket| bucket.first).collect(),
            last: buckets.iter().map(|bucket| bucket.last).collect(),
            at: buckets.iter().map(|bucket| bucket.content.at).collect(),
            series: (0..SERIES_COUNT).filter_map(columns).collect(),
        }
    }
}
