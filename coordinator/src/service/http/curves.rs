//! Curves of a run in bounded memory: aggregates the journal's steps into buckets.
//!
//! A stage has at most [`MAX_BUCKETS`] buckets; when there would be more, each two neighbours are
//! merged. Memory and the time of an answer are therefore the same for a stage of any length.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::Serialize;
use statistics::names;

use crate::{
    journal::{
        Error,
        browse::{Distribution, NUMBERS, Recorded},
        history::History,
    },
    run::{
        lineage::{Lineage, Selection, StateFate},
        plan::Place,
    },
};

/// Maximal number of buckets of a stage, and of its recent steps.
pub const MAX_BUCKETS: usize = 512;
/// Maximal number of steps read in one query.
const CHUNK: usize = 4096;
/// Distributions whose quantiles are shown.
const WITH_QUANTILES: [&str; 2] = [names::REWARD_CHOSEN, names::REWARD_REJECTED];
const QUANTILES: [&str; 5] = ["p05", "p25", "p50", "p75", "p95"];
/// The number of series: a step's numbers, the means of its distributions, and some quantiles.
const SERIES: usize = NUMBERS.len() + names::ALL.len() + WITH_QUANTILES.len() * QUANTILES.len();

/// The name of a series, and whether its minimum and maximum are shown: those of quantiles are not.
fn name(series: usize) -> (String, bool) {
    match (NUMBERS.get(series), series.checked_sub(NUMBERS.len())) {
        (Some(number), _) => ((*number).to_owned(), true),
        (None, Some(mean)) if mean < names::ALL.len() => (names::ALL[mean].to_owned(), true),
        (None, _) => {
            let quantile = series - NUMBERS.len() - names::ALL.len();
            let (of, quantile) = (WITH_QUANTILES[quantile / QUANTILES.len()], QUANTILES[quantile % QUANTILES.len()]);
            (format!("{of}.{quantile}"), false)
        }
    }
}

fn values(step: &Recorded) -> [Option<f64>; SERIES] {
    let of = |name: &str| step.summaries.get(name);
    let means = names::ALL.into_iter().map(|name| of(name)?.mean);
    let quantiles = WITH_QUANTILES.into_iter().flat_map(|name| match of(name) {
        Some(Distribution { p05, p25, p50, p75, p95, .. }) => [*p05, *p25, *p50, *p75, *p95],
        None => [None; QUANTILES.len()],
    });
    let mut values = step.numbers.into_iter().chain(means).chain(quantiles);
    std::array::from_fn(|_| values.next().flatten())
}

/// The aggregate of one series in a bucket.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct BucketAggregate {
    count: u32,
    sum: f64,
    min: f64,
    max: f64,
}

impl BucketAggregate {
    fn of(value: Option<f64>) -> Self {
        value.map_or_else(Self::default, |value| Self { count: 1, sum: value, min: value, max: value })
    }

    fn merge(&mut self, other: &Self) {
        if self.count == 0 {
            *self = *other;
        } else if other.count > 0 {
            self.count += other.count;
            self.sum += other.sum;
            self.min = self.min.min(other.min);
            self.max = self.max.max(other.max);
        }
    }

    fn mean(&self) -> f64 {
        self.sum / f64::from(self.count)
    }
}

/// The aggregate of consecutive steps.
#[derive(Clone, Debug, PartialEq)]
struct Bucket {
    first: u64,
    last: u64,
    /// When the last step was recorded.
    at: f64,
    cells: [BucketAggregate; SERIES],
}

impl Bucket {
    fn of(step: &Recorded) -> Self {
        let Place { step: number, .. } = step.place;
        Self { first: number, last: number, at: step.at, cells: values(step).map(BucketAggregate::of) }
    }

    fn merge(&mut self, later: &Self) {
        (self.last, self.at) = (later.last, later.at);
        self.cells.iter_mut().zip(&later.cells).for_each(|(cell, other)| cell.merge(other));
    }

    fn slot(&self, width: u64) -> u64 {
        self.first.saturating_sub(1) / width
    }
}

/// The curves of a stage.
#[derive(Clone, Debug)]
struct StageCurves {
    /// The number of steps per bucket.
    width: u64,
    buckets: Vec<Bucket>,
    /// The last steps, one per bucket.
    recent: VecDeque<Bucket>,
}

impl StageCurves {
    fn new() -> Self {
        Self { width: 1, buckets: Vec::new(), recent: VecDeque::new() }
    }

    fn add(&mut self, step: Bucket) {
        if self.recent.len() == MAX_BUCKETS {
            self.recent.pop_front();
        }
        self.recent.push_back(step.clone());
        self.put(step);
        while self.buckets.len() > MAX_BUCKETS {
            self.width *= 2;
            for bucket in std::mem::take(&mut self.buckets) {
                self.put(bucket);
            }
        }
    }

    fn put(&mut self, bucket: Bucket) {
        match self.buckets.last_mut() {
            Some(last) if last.slot(self.width) == bucket.slot(self.width) => last.merge(&bucket),
            _ => self.buckets.push(bucket),
        }
    }

    /// Removes all steps beyond `step`, and the buckets that contain some of them. Returns the last
    /// step that is left.
    fn cut(&mut self, step: u64) -> u64 {
        self.buckets.retain(|bucket| bucket.last <= step);
        let left = self.buckets.last().map_or(0, |bucket| bucket.last);
        self.recent.retain(|bucket| bucket.last <= left);
        left
    }
}

/// The requested part of a stage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Span {
    /// The whole stage, in buckets.
    #[default]
    Whole,
    /// The last [`MAX_BUCKETS`] steps, one per bucket.
    Recent,
}

/// The version of the curves. A client with the same `era` gets only later data, as a delta.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Version {
    /// Incremented when data that were sent are no longer valid.
    pub era: u64,
    /// The number of steps added since then.
    pub steps: u64,
}

/// An answer, full or delta: columns of equal length with one element per bucket.
#[derive(Debug, Serialize)]
pub struct CurveDelta {
    stage: u32,
    span: Span,
    #[serde(flatten)]
    version: Version,
    /// The maximal number of steps per bucket.
    width: u64,
    /// Whether this is a delta, which replaces the client's data from its first bucket on;
    /// otherwise it replaces all of them.
    continues: bool,
    /// The first step of each bucket.
    first: Vec<u64>,
    /// The last step of each bucket.
    last: Vec<u64>,
    /// When that was recorded, in Unix seconds.
    at: Vec<f64>,
    /// Series by name, without those for which the stage has no values.
    series: BTreeMap<String, Columns>,
}

/// The columns of a series, rounded for display; null where there is no value.
#[derive(Debug, Serialize)]
struct Columns {
    mean: Vec<Option<f32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    min: Option<Vec<Option<f32>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max: Option<Vec<Option<f32>>>,
}

/// The client's cursor. If it does not fit the present curves, the client gets a full answer.
#[derive(Clone, Copy, Debug, Default)]
pub struct CurveCursor {
    /// The era of the client's data.
    pub era: u64,
    /// The number of steps per bucket.
    pub width: u64,
    /// The first step of the client's last bucket, which may have grown since; 0 if it has no data.
    pub from: u64,
}

/// A batch read from the journal.
#[derive(Default)]
pub struct CurveBatch {
    /// The starts of generations and the ends of stages.
    pub cuts: BTreeSet<(u64, Place)>,
    /// The stages that ended with their best state.
    pub selections: BTreeSet<Selection>,
    /// Steps beyond those that were read before.
    pub steps: Vec<Recorded>,
}

/// The curves of all stages.
#[derive(Debug)]
pub struct Curves {
    courses: BTreeMap<u32, StageCurves>,
    cuts: BTreeSet<(u64, Place)>,
    /// The last step that was read.
    reached: Place,
    version: Version,
}

impl Curves {
    /// Empty curves. `era` has to differ from the eras of earlier coordinators.
    pub fn new(era: u64) -> Self {
        let version = Version { era, steps: 0 };
        Self { courses: BTreeMap::new(), cuts: BTreeSet::new(), reached: Place::default(), version }
    }

    /// The present version.
    pub fn version(&self) -> Version {
        self.version
    }

    /// The query for the next batch.
    pub fn next(&self) -> impl FnOnce(&History) -> Result<CurveBatch, Error> + use<> {
        let reached = self.reached;
        move |history| {
            let (cuts, selections) = (history.cuts()?, history.selections()?);
            Ok(CurveBatch { cuts, selections, steps: history.recorded(reached, CHUNK)? })
        }
    }

    /// Adds a batch. Returns whether there may be more.
    pub fn take(&mut self, CurveBatch { cuts: known, selections, steps }: CurveBatch) -> bool {
        let cut = known.difference(&self.cuts).map(|(_, place)| *place).min();
        self.cuts = known;
        if let Some(place) = cut.filter(|place| *place < self.reached) {
            self.cut(place);
            return true;
        }
        let lineage = Lineage::new(&self.cuts, &selections);
        let more = steps.len() == CHUNK;
        let is_shown = |step: &Recorded| lineage.fate(step.place, step.generation) != StateFate::GivenUp;
        let mut steps = steps.into_iter().filter(is_shown).peekable();
        while let Some(step) = steps.next() {
            self.reached = step.place;
            // If a step was recorded more than once, the last record counts.
            if steps.peek().is_none_or(|later| later.place != step.place) {
                self.courses.entry(step.place.stage).or_insert_with(StageCurves::new).add(Bucket::of(&step));
                self.version.steps += 1;
            }
        }
        more
    }

    fn cut(&mut self, place: Place) {
        self.courses.retain(|stage, _| *stage <= place.stage);
        let step = self.courses.get_mut(&place.stage).map_or(0, |course| course.cut(place.step));
        self.reached = Place { stage: place.stage, step };
        self.version = Version { era: self.version.era + 1, steps: 0 };
    }

    /// The data of a stage that the client does not have.
    pub fn piece(&self, stage: u32, span: Span, held: CurveCursor) -> CurveDelta {
        let none = StageCurves::new();
        let course = self.courses.get(&stage).unwrap_or(&none);
        let width = if span == Span::Whole { course.width } else { 1 };
        let mut buckets: Vec<&Bucket> = match span {
            Span::Whole => course.buckets.iter().collect(),
            Span::Recent => course.recent.iter().collect(),
        };
        // A delta begins with the client's last bucket: without it there is no delta.
        let same = (held.era, held.width) == (self.version.era, width);
        let last_held = buckets.iter().position(|bucket| same && bucket.first == held.from);
        let continues = last_held.is_some();
        buckets.drain(..last_held.unwrap_or(0));
        let column = |series: usize, of: fn(&BucketAggregate) -> f64| {
            let value = |bucket: &&Bucket| {
                let cell = &bucket.cells[series];
                (cell.count > 0).then(|| of(cell) as f32).filter(|value| value.is_finite())
            };
            buckets.iter().map(value).collect::<Vec<_>>()
        };
        let columns = |series: usize| {
            let (name, extremes) = name(series);
            let extreme = |of| (extremes && width > 1).then(|| column(series, of));
            let mean = column(series, BucketAggregate::mean);
            let some = mean.iter().any(Option::is_some);
            some.then(|| (name, Columns { mean, min: extreme(|cell| cell.min), max: extreme(|cell| cell.max) }))
        };
        CurveDelta {
            stage,
            span,
            version: self.version,
            width,
            continues,
            first: buckets.iter().map(|bucket| bucket.first).collect(),
            last: buckets.iter().map(|bucket| bucket.last).collect(),
            at: buckets.iter().map(|bucket| bucket.at).collect(),
            series: (0..SERIES).filter_map(columns).collect(),
        }
    }
}
