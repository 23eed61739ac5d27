//! Statistics of steps: merges the reports of the members on their shares into one report for the
//! step.

use std::collections::BTreeMap;

use config::limits::MAX_TEXT_BYTES;
use metric_catalogue::names;
use proto::v1;
use summary_statistics::Summary;

use crate::{plan::Position, types::WorkerId, violation::ProtocolViolation};

/// Maximal number of candidates of an example. Run files allow fewer beams, so correct workers send
/// fewer candidates.
const MAX_CANDIDATES: usize = 1024;

/// The statistics of a step, merged over the shares of the members that have reported it.
#[derive(Clone, Debug, PartialEq)]
pub struct StepStatistics {
    /// The position that the step reached.
    pub position: Position,
    /// The generation that trained it.
    pub generation: u64,
    /// The sum of the loss over all images or tokens.
    pub loss_sum: f64,
    /// The number of these images or tokens: the loss is the sum divided by this number.
    pub loss_weight: f64,
    /// The number of samples.
    pub samples: u64,
    /// The number of tokens with a loss.
    pub tokens: u64,
    /// The learning rate of the update.
    pub learning_rate: f64,
    /// The norm of the gradient, before clipping.
    pub gradient_norm: f64,
    /// The duration for the slowest member, in seconds.
    pub seconds: f64,
    /// The longest time that a member spent in the all-reduce, in seconds.
    pub all_reduce_seconds: f64,
    /// Distributions over all samples of the step, by name in `metric_catalogue::TRAINING_METRICS`.
    pub summaries: BTreeMap<&'static str, Summary>,
    /// The duration of each phase of the step, summed over members, in seconds, by name in
    /// `metric_catalogue::names::PHASES`.
    pub phase_seconds: BTreeMap<&'static str, f64>,
    /// The candidates of one image with their rewards and weights, if the objective has candidates.
    pub example: Option<v1::Example>,
    /// The compute times of the members.
    pub compute_times: ComputeTimes,
}

/// How long the members took to compute a step, without the all-reduce.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ComputeTimes {
    /// The slowest member, and its time in seconds.
    slowest: (WorkerId, f64),
    /// The sum over all members, in seconds.
    total_seconds: f64,
    member_count: u32,
}

impl ComputeTimes {
    fn of_member(worker_id: WorkerId, seconds: f64) -> Self {
        Self { slowest: (worker_id, seconds), total_seconds: seconds, member_count: 1 }
    }

    fn merge(&mut self, other: Self) {
        if other.slowest.1 > self.slowest.1 {
            self.slowest = other.slowest;
        }
        self.total_seconds += other.total_seconds;
        self.member_count += other.member_count;
    }

    /// The slowest member, and how many seconds longer than the average of the others it took. None
    /// for a single member.
    #[must_use]
    pub fn straggler_lag(&self) -> Option<(WorkerId, f64)> {
        let (worker_id, seconds) = self.slowest;
        let others = self.member_count.checked_sub(1).filter(|others| *others > 0)?;
        Some((worker_id, seconds - (self.total_seconds - seconds) / f64::from(others)))
    }
}

impl StepStatistics {
    /// Reads the report of a member.
    ///
    /// # Errors
    /// A correct worker cannot have sent it.
    pub fn from_report(
        worker_id: WorkerId,
        report: &v1::StepDone,
        position: &v1::Position,
    ) -> Result<Self, ProtocolViolation> {
        let mut summaries = BTreeMap::new();
        for (reported, summary) in &report.summaries {
            let name = metric_catalogue::TRAINING_METRICS.into_iter().find(|name| name == reported);
            let name =
                name.ok_or_else(|| ProtocolViolation::new(format!("unknown summary `{}`", reported.escape_debug())))?;
            summaries.insert(
                name,
                Summary::try_from(summary).map_err(|error| ProtocolViolation::new(format!("`{name}` is a {error}")))?,
            );
        }
        let mut phase_seconds = BTreeMap::new();
        for (reported, seconds) in &report.phase_seconds {
            let phase = names::PHASES.into_iter().find(|phase| phase == reported);
            let phase =
                phase.ok_or_else(|| ProtocolViolation::new(format!("unknown phase `{}`", reported.escape_debug())))?;
            phase_seconds.insert(phase, *seconds);
        }
        if report.example.as_ref().is_some_and(|example| !is_valid_example(example)) {
            return Err(ProtocolViolation::new(
                "an example with too many candidates, too long texts, or numbers that are not finite",
            ));
        }
        let non_negative = [report.seconds, report.all_reduce_seconds, report.loss_weight];
        if phase_seconds.values().chain(&non_negative).any(|value| !value.is_finite() || *value < 0.0) {
            return Err(ProtocolViolation::new("the seconds and weight of a step must be finite and not negative"));
        }
        Ok(Self {
            position: position.into(),
            generation: position.generation,
            loss_sum: report.loss_sum,
            loss_weight: report.loss_weight,
            samples: report.samples.into(),
            tokens: report.tokens,
            learning_rate: report.learning_rate,
            gradient_norm: report.gradient_norm,
            seconds: report.seconds,
            all_reduce_seconds: report.all_reduce_seconds,
            summaries,
            phase_seconds,
            example: report.example.clone(),
            compute_times: ComputeTimes::of_member(worker_id, (report.seconds - report.all_reduce_seconds).max(0.0)),
        })
    }

    /// The loss per image or token; none if no image of the batch could be decoded.
    #[must_use]
    pub fn loss(&self) -> Option<f64> {
        (self.loss_weight > 0.0).then(|| self.loss_sum / self.loss_weight)
    }

    /// The mean reward of the chosen candidates; none if the objective has no rewards.
    #[must_use]
    pub fn reward(&self) -> Option<f64> {
        self.summaries.get(names::REWARD_CHOSEN).filter(|summary| summary.count() > 0).map(Summary::mean)
    }

    /// Samples per second; a sample is an image, or a caption for cross-entropy.
    #[must_use]
    pub fn images_per_second(&self) -> f64 {
        if self.seconds > 0.0 { self.samples as f64 / self.seconds } else { 0.0 }
    }

    /// Tokens per second.
    #[must_use]
    pub fn tokens_per_second(&self) -> f64 {
        if self.seconds > 0.0 { self.tokens as f64 / self.seconds } else { 0.0 }
    }

    /// The time of the average member by phase, in seconds.
    pub fn phases(&self) -> impl Iterator<Item = (&'static str, f64)> {
        let members = f64::from(self.compute_times.member_count);
        self.phase_seconds.iter().map(move |(phase, seconds)| (*phase, seconds / members))
    }

    fn merge(&mut self, other: Self) {
        self.loss_sum += other.loss_sum;
        self.loss_weight += other.loss_weight;
        self.samples += other.samples;
        self.tokens = self.tokens.saturating_add(other.tokens);
        // All ranks apply the same update, so their gradient norms are equal. If one differs, the
        // maximum is more likely to show it than the first value.
        self.gradient_norm = self.gradient_norm.max(other.gradient_norm);
        self.seconds = self.seconds.max(other.seconds);
        self.all_reduce_seconds = self.all_reduce_seconds.max(other.all_reduce_seconds);
        self.compute_times.merge(other.compute_times);
        self.example = self.example.take().or(other.example);
        for (phase, seconds) in other.phase_seconds {
            *self.phase_seconds.entry(phase).or_default() += seconds;
        }
        for (name, summary) in other.summaries {
            self.summaries.entry(name).or_default().merge(&summary);
        }
    }
}

/// Whether an example is small enough to be stored and shown, and has only finite numbers. Correct
/// workers send only such examples.
fn is_valid_example(example: &v1::Example) -> bool {
    let is_short = |text: &str| text.len() <= MAX_TEXT_BYTES;
    let is_valid = |candidate: &v1::Candidate| {
        is_short(&candidate.caption) && candidate.reward.is_finite() && candidate.gamma.is_finite()
    };
    is_short(&example.image) && example.candidates.len() <= MAX_CANDIDATES && example.candidates.iter().all(is_valid)
}

/// Merges the members' reports of each step. Holds the steps that some members of the generation
/// have reported and others have not. The number of these steps is bounded, because steps are
/// granted at most `control.window` beyond the last step that all members have reported.
#[derive(Debug, Default)]
pub struct StepMerger {
    /// The number of reports and the merged statistics of each step.
    pending: BTreeMap<Position, (usize, StepStatistics)>,
}

impl StepMerger {
    /// Adds one member's report. Returns the step's statistics once all `world_size` members have
    /// reported it.
    pub fn add(&mut self, world_size: usize, report: StepStatistics) -> Option<StepStatistics> {
        let position = report.position;
        let report_count = match self.pending.get_mut(&position) {
            Some((count, step)) => {
                step.merge(report);
                *count += 1;
                *count
            }
            None => {
                self.pending.insert(position, (1, report));
                1
            }
        };
        if report_count < world_size { None } else { self.pending.remove(&position).map(|(_, step)| step) }
    }

    /// Removes and returns, in order, the statistics of the steps that will get no further reports.
    pub fn drain(&mut self) -> impl Iterator<Item = StepStatistics> + use<> {
        std::mem::take(&mut self.pending).into_values().map(|(_, step)| step)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(loss_sum: f64, rewards: &[f64]) -> v1::StepDone {
        v1::StepDone {
            loss_sum,
            loss_weight: 2.0,
            samples: 2,
            seconds: loss_sum,
            tokens: 10,
            phase_seconds: [("learn".into(), loss_sum)].into(),
            summaries: [("reward_chosen".into(), (&Summary::of(rewards.iter().copied())).into())].into(),
            ..v1::StepDone::default()
        }
    }

    #[test]
    fn reports_of_all_members_are_merged() {
        let at = v1::Position { stage: 0, step: 1, generation: 1 };
        let mut merger = StepMerger::default();
        let read = |id, report: &v1::StepDone| StepStatistics::from_report(WorkerId(id), report, &at).unwrap();
        assert_eq!(merger.add(2, read(7, &report(1.0, &[0.2, 0.4]))), None);
        let step = merger.add(2, read(5, &report(3.0, &[0.6, 0.8]))).unwrap();
        assert_eq!(step.compute_times.straggler_lag(), Some((WorkerId(5), 2.0)));
        assert_eq!(ComputeTimes::of_member(WorkerId(5), 2.0).straggler_lag(), None, "a single member has no lag");
        assert_eq!((step.loss(), step.samples, step.seconds), (Some(1.0), 4, 3.0));
        assert_eq!((step.tokens_per_second(), step.phases().collect::<Vec<_>>()), (20.0 / 3.0, vec![("learn", 2.0)]));
        assert!((step.reward().unwrap() - 0.5).abs() < 1e-12);
        assert_eq!(merger.drain().count(), 0);
        assert_eq!(read(7, &v1::StepDone::default()).loss(), None, "no image of the batch could be decoded");
    }

    #[test]
    fn an_example_with_the_longest_texts_and_most_beams_is_accepted() {
        let text = || "ü".repeat(MAX_TEXT_BYTES / 2);
        let candidates = vec![v1::Candidate { caption: text(), reward: 1e30, gamma: 0.0 }; 64];
        let example = Some(v1::Example { image: text(), candidates });
        let report = v1::StepDone { example, ..Default::default() };
        StepStatistics::from_report(WorkerId(0), &report, &v1::Position::default()).unwrap();
    }

    #[test]
    fn invalid_reports_are_refused() {
        let at = v1::Position::default();
        let unknown_summary =
            v1::StepDone { summaries: [("x".into(), v1::Summary::default())].into(), ..Default::default() };
        let inconsistent_summary = v1::StepDone {
            summaries: [("kl".into(), v1::Summary { count: 1, ..Default::default() })].into(),
            ..Default::default()
        };
        let long_candidate = v1::Candidate { caption: "a ".repeat(MAX_TEXT_BYTES), ..Default::default() };
        let example = Some(v1::Example { image: String::new(), candidates: vec![long_candidate] });
        let long_example = v1::StepDone { example, ..Default::default() };
        let unknown_phase = v1::StepDone { phase_seconds: [("nap".into(), 1.0)].into(), ..Default::default() };
        let invalid_duration = v1::StepDone { seconds: f64::NAN, ..Default::default() };
        for report in [unknown_summary, inconsistent_summary, long_example, unknown_phase, invalid_duration] {
            StepStatistics::from_report(WorkerId(0), &report, &at).unwrap_err();
        }
    }
}
