//! The Train directive: one update of the stage's model, from a batch to the optimizer.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::time::Instant;

use config::{Objective, Precision, Reward, Stage};
use dataset::Split;
use proto::v1;
use statistics::Summary;
use tch::{Kind, Tensor};

use super::state::State;
use super::{Stop, Trainer};
use crate::captioner::Captions;
use crate::collective::{Collective, CollectiveError};
use crate::data::{Batch, Pending, Sample, permutation};
use crate::models::Evaluator;
use crate::nn::{Gradient, Mode};
use crate::objective::candidates::{CandidateDropout, Context, Images};
use crate::objective::reward::{EvaluatorReward, RewardModel};
use crate::objective::{Example, Outcome, contrastive, cross_entropy, dico, scst};
use crate::optimizer::{AveragedGradient, rate};
use crate::phase_timer::{PhaseTimer, StepPhase};
use crate::seeds;

/// Number of batches that are decoded ahead of the step that needs them.
const AHEAD: u64 = 4;

/// The key of a batch: stage, step and this rank's share (begin and end).
type BatchKey = (u32, u64, u32, u32);

/// Batches that are being prefetched, in order of step.
#[derive(Default)]
pub struct PrefetchedBatches(VecDeque<(BatchKey, Pending)>);

impl Trainer {
    /// Executes one update of the stage's model. Also returns whether a rank has asked for this
    /// step to be the generation's last.
    pub(super) fn step(&mut self, generation: u64, window: &v1::Train) -> Result<(v1::StepDone, bool), Stop> {
        let started = Instant::now();
        let position = self.state.position.unwrap_or_default();
        self.not_abandoned()?;
        let timer = PhaseTimer::default();
        timer.add(StepPhase::Wait, self.rested.take().map_or(0.0, |since| (started - since).as_secs_f64()));
        self.progress.phase(v1::Phase::Load);
        let batch = timer.time(StepPhase::Load, || self.next_batch(window, position.step))?;
        if batch.skipped > 0 {
            tracing::warn!(
                stage = position.stage,
                step = position.step,
                skipped = batch.skipped,
                "images that could not be decoded were left out"
            );
        }
        self.progress.phase(v1::Phase::Compute);
        let rank = self.collective()?.rank();
        // Dropout depends on the step alone, so that a resumed run draws the same masks as an
        // uninterrupted one.
        let numbers = [u64::from(position.stage), position.step, rank as u64];
        tch::manual_seed(seeds::combine(self.run.seed, &numbers) as i64);
        let total = self.accumulate(position.stage as usize, &batch, &timer)?;

        self.progress.phase(v1::Phase::AllReduce);
        let stage = &self.run.stages[position.stage as usize];
        let trained = self.state.trained(stage.objective);
        let mut gradient = trained.gradient().expect("the stage's model is in training");
        // The halt flag travels with the gradients, so that all ranks learn of it in the same step.
        let halting = if self.halt.is_raised() { 1.0 } else { 0.0 };
        gradient.extra.copy_(&Tensor::from_slice(&[total.weight, halting]));
        let reducing = Instant::now();
        if let Err(broken) = sum(&mut gradient, self.collective()?, self.run.gradient_dtype) {
            self.state.renew_gradients();
            return Err(broken.into());
        }
        let all_reduce_seconds = reducing.elapsed().as_secs_f64();
        timer.add(StepPhase::AllReduce, all_reduce_seconds);

        let extra = Vec::<f32>::try_from(&gradient.extra).map_err(|error| error.to_string())?;
        let (weight, halting) = (f64::from(extra[0]), extra[1] > 0.0);
        let step = position.step + 1;
        let learning_rate = stage.optimizer.learning_rate * rate(&stage.schedule, step, stage.steps);
        // All ranks have the same sum, so they agree on whether there is an update.
        let average = (weight > 0.0).then(|| AveragedGradient::new(&gradient.values, weight));
        let norm = average.as_ref().map_or(0.0, |average| average.norm);
        if !norm.is_finite() {
            let (name, loss) = (&stage.name, total.loss_sum / total.weight);
            return Err(Stop::Fatal(format!(
                "the gradient of stage {name} is not finite at step {step} (loss {loss}): lower its learning rate"
            )));
        }
        match average {
            Some(average) => self.state.update(stage.objective, &average, step, learning_rate),
            None => tracing::warn!(
                stage = stage.name,
                step,
                "the step changes nothing: no image of its batch could be decoded"
            ),
        }
        self.state.position = Some(v1::Position { step, ..position });
        self.moved(generation);
        let seconds = started.elapsed().as_secs_f64();
        let done = v1::StepDone {
            position: self.state.position,
            loss_sum: total.loss_sum,
            loss_weight: total.weight,
            samples: batch.samples.len() as u32,
            learning_rate,
            gradient_norm: norm,
            seconds,
            all_reduce_seconds,
            summaries: total.summaries.iter().map(|(&name, summary)| (name.to_owned(), summary.into())).collect(),
            tokens: total.tokens,
            phase_seconds: timer.of(seconds),
            example: total.example.filter(|example| rank == 0 && is_finite(example)).map(|example| self.told(example)),
        };
        self.rested = Some(Instant::now());
        Ok((done, halting))
    }

    /// Converts an example for the report.
    fn told(&self, Example { image, candidates }: Example) -> v1::Example {
        let candidate = |(caption, reward, gamma)| v1::Candidate { caption, reward, gamma };
        let image = self.data.split(Split::Train)[image].name.clone();
        v1::Example { image, candidates: candidates.into_iter().map(candidate).collect() }
    }

    /// This rank's batch of step `step`. Starts to prefetch the batches after it.
    fn next_batch(&mut self, window: &v1::Train, step: u64) -> Result<Batch, Stop> {
        let place = |step| (window.stage, step, window.share_begin, window.share_end);
        if self.ahead.0.front().is_some_and(|(first, _)| *first != place(step)) {
            self.ahead.0.clear();
        }
        let started = step + self.ahead.0.len() as u64;
        let last = self.run.stages[window.stage as usize].steps.min(step + AHEAD);
        for step in started..last.max(step + 1) {
            let samples = self.samples(place(step));
            let settings = &self.run.stages[window.stage as usize];
            let generated = settings.objective == Objective::Contrastive && settings.contrastive.generated_images > 0.0;
            let pending =
                if generated { self.loader.train_with_generated(samples) } else { self.loader.train(samples) };
            self.ahead.0.push_back((place(step), pending));
        }
        let (_, pending) = self.ahead.0.pop_front().expect("at least this step's batch was started");
        Ok(pending.wait()?)
    }

    /// The start of a stage's current sequence of samples.
    pub(super) fn sequence_start(&self, stage: u32) -> v1::SequenceStart {
        let (of, start) = self.sequence_start;
        if of == stage { start } else { v1::SequenceStart::default() }
    }

    /// The samples of a batch. Cross-entropy goes through all pairs of image and caption; the other
    /// objectives go through all images, the contrastive one with another caption of an image in
    /// each epoch.
    fn samples(&self, (stage, step, begin, end): BatchKey) -> Vec<Sample> {
        let settings = &self.run.stages[stage as usize];
        let key = seeds::combine(self.run.seed, &[u64::from(stage)]);
        let v1::SequenceStart { step: start, epoch: first } = self.sequence_start(stage);
        let cursor = (step - start) * u64::from(settings.batch);
        let images = self.data.split(Split::Train);
        let indices = cursor + u64::from(begin)..cursor + u64::from(end);
        match settings.objective {
            Objective::CrossEntropy => {
                let pair = |index| permutation::sample(self.pairs.total(), first, index, key).1;
                let mut samples: Vec<Sample> = indices.map(|index| self.pairs.sample(pair(index))).collect();
                // The order within a share is free: captions of similar length need little padding.
                samples.sort_by_key(|sample| images[sample.image].captions[sample.caption].len());
                samples
            }
            Objective::Contrastive | Objective::Scst | Objective::Dico => indices
                .map(|index| {
                    let (epoch, image) = permutation::sample(images.len() as u64, first, index, key);
                    // An image without captions is allowed if only candidates are scored.
                    let captions = images[image as usize].captions.len().max(1) as u64;
                    let caption = epoch.wrapping_add(seeds::combine(key, &[image])) % captions;
                    Sample { image: image as usize, caption: caption as usize }
                })
                .collect(),
        }
    }

    /// Accumulates the gradients of a batch, one micro-batch at a time. If no image of this rank's
    /// share could be decoded, there is nothing to add, except that the contrastive objective has
    /// to take part in the collective operations of its ranks.
    fn accumulate(&self, stage: usize, batch: &Batch, timer: &PhaseTimer) -> Result<Total, Stop> {
        let settings = &self.run.stages[stage];
        let gradient = self.state.trained(settings.objective).gradient();
        _ = gradient.expect("the stage's model is in training").values.zero_();
        let mut total = Total::default();
        for part in parts(settings, batch.samples.len()) {
            self.not_abandoned()?;
            let outcome = self.outcome(stage, batch, part, timer)?;
            // A share without images has no gradient if the temperature of the contrastive loss is
            // frozen.
            if outcome.loss.requires_grad() {
                outcome.loss.backward();
            }
            total.add(outcome);
        }
        Ok(total)
    }

    fn outcome(&self, stage: usize, batch: &Batch, range: Range<usize>, timer: &PhaseTimer) -> Result<Outcome, Stop> {
        let settings = &self.run.stages[stage];
        let mode = Mode::Train { dropout: self.run.captioner.dropout };
        match settings.objective {
            Objective::Contrastive => self.contrastive(settings, batch, range),
            Objective::CrossEntropy => {
                let vocabulary = &self.sources.captioner_vocabulary;
                let most = self.run.captioner.max_target_length as usize;
                let texts = self.captions(batch, range.clone()).map(|text| vocabulary.encode_target(text, most));
                let captions = Captions::new(&texts.collect::<Vec<_>>(), 1, self.device);
                let models = &self.state.models;
                let hidden = timer.time(StepPhase::Vision, || models.hidden(batch, range));
                Ok(cross_entropy::outcome(&models.captioner, &hidden, &captions, mode))
            }
            Objective::Scst | Objective::Dico => Ok(self.rewarded(settings, batch, range, mode, timer)),
        }
    }

    /// The reference captions of the samples `range`.
    fn captions<'a>(&'a self, batch: &'a Batch, range: Range<usize>) -> impl Iterator<Item = &'a str> {
        let caption = |sample: &Sample| &self.data.split(Split::Train)[sample.image].captions[sample.caption];
        batch.samples[range].iter().map(caption).map(String::as_str)
    }

    fn contrastive(&self, settings: &Stage, batch: &Batch, range: Range<usize>) -> Result<Outcome, Stop> {
        let (models, vocabulary) = (&self.state.models, self.sources.evaluator_vocabulary());
        let evaluator = &models.evaluator;
        let most = evaluator.architecture().text.context_length;
        let encode = |text: &str| vocabulary.encode(text, most);
        let nothing = || Tensor::zeros([0, evaluator.architecture().embedding as i64], (Kind::Float, self.device));
        let embed_texts = |texts: &[Vec<i64>]| match texts {
            [] => nothing(),
            _ => evaluator.text.embed(texts, 1),
        };
        let embed_images = |pixels: &Tensor| match pixels.size()[0] {
            0 => nothing(),
            _ => evaluator.embed(&evaluator.vision.hidden(pixels)),
        };
        let config::Contrastive { generated_images, generated_captions, .. } = settings.contrastive;
        let texts: Vec<Vec<i64>> = self.captions(batch, range.clone()).map(encode).collect();
        let pairs = contrastive::Pairs {
            tokens: texts.iter().map(|text| text.len() as u64).sum(),
            images: embed_images(&models.evaluator_pixels(batch, range.clone())?),
            texts: embed_texts(&texts),
            generated_images: match generated_images {
                0.0 => None,
                weight => Some((embed_images(&models.generated_pixels(batch, range.clone())?), weight)),
            },
            generated_texts: match generated_captions {
                0.0 => None,
                weight => {
                    let generated = batch.samples[range].iter().map(|sample| {
                        let captions = self.data.generated_captions(sample.image);
                        encode(&captions[sample.caption % captions.len()])
                    });
                    Some((embed_texts(&generated.collect::<Vec<_>>()), weight))
                }
            },
        };
        // The ranks wait for each other here, too.
        self.progress.phase(v1::Phase::AllReduce);
        let outcome = contrastive::outcome(&pairs, &evaluator.logit_scale(), self.collective()?);
        self.progress.phase(v1::Phase::Compute);
        Ok(outcome?)
    }

    /// The dropout while this step's candidates are generated; none if it is disabled.
    fn candidate_dropout(&self) -> Option<CandidateDropout> {
        let probability = self.run.captioner.dropout;
        let v1::Position { stage, step, .. } = self.state.position.unwrap_or_default();
        let seed = seeds::combine(seeds::derive(self.run.seed, "candidates"), &[u64::from(stage), step]);
        (self.run.decoding.candidate_dropout && probability > 0.0).then_some(CandidateDropout { probability, seed })
    }

    /// The loss of an objective that rewards the policy's own captions.
    fn rewarded(
        &self,
        settings: &Stage,
        batch: &Batch,
        range: Range<usize>,
        mode: Mode,
        timer: &PhaseTimer,
    ) -> Outcome {
        let State { models, reference, .. } = &self.state;
        let rewards = match settings.objective {
            Objective::Scst => &settings.scst.reward,
            _ => &settings.dico.reward,
        };
        let rewarded = self.sources.evaluators.iter().filter(|evaluator| {
            let weight = rewards.get(&Reward::Evaluator(evaluator.name.clone()));
            weight.is_some_and(|weight| *weight != 0.0)
        });
        let rewarded: Vec<&Evaluator> = rewarded.collect();
        let evaluators: Vec<EvaluatorReward<'_>> =
            rewarded.iter().map(|evaluator| EvaluatorReward::of(evaluator, models)).collect();
        let reward_model = RewardModel { evaluators: &evaluators, cider: self.cider.as_ref(), weights: rewards };
        let context = Context {
            reference: reference.as_ref().expect("such a stage begins with a reference"),
            reward_model,
            vocabulary: &self.sources.captioner_vocabulary,
            search: self.search(),
            candidate_dropout: self.candidate_dropout(),
            timer,
        };
        let hidden = timer.time(StepPhase::Vision, || models.hidden(batch, range.clone()));
        let embed = |evaluator: &&Evaluator| models.embeddings(batch, range.clone(), &hidden, evaluator.clip);
        let embeddings: Vec<Tensor> = timer.time(StepPhase::Vision, || rewarded.iter().map(embed).collect());
        let numbers: Vec<usize> = batch.samples[range].iter().map(|sample| sample.image).collect();
        let images = Images { hidden: &hidden, embeddings: &embeddings, numbers: &numbers };
        match settings.objective {
            Objective::Scst => scst::outcome(&models.captioner, &images, &context, &settings.scst, mode),
            _ => dico::outcome(&models.captioner, &images, &context, &settings.dico, mode),
        }
    }
}

/// Whether all numbers of an example are finite; others are not reported.
fn is_finite(example: &Example) -> bool {
    example.candidates.iter().all(|(_, reward, gamma)| reward.is_finite() && gamma.is_finite())
}

/// The micro-batches of a share with this number of samples. A contrastive share is always one,
/// though it may be empty: the other ranks wait for its embeddings.
fn parts(settings: &Stage, samples: usize) -> Vec<Range<usize>> {
    if settings.objective == Objective::Contrastive {
        return std::iter::once(0..samples).collect();
    }
    let part = settings.micro_batch.map_or(samples, |part| part as usize).max(1);
    (0..samples).step_by(part).map(|from| from..samples.min(from + part)).collect()
}

/// Sums a gradient over all ranks, together with the extra values.
fn sum(gradient: &mut Gradient, collective: &dyn Collective, wire: Precision) -> Result<(), CollectiveError> {
    let Gradient { whole, values, extra } = gradient;
    match wire {
        Precision::F32 => collective.all_reduce(whole),
        Precision::Bf16 => {
            let short = values.to_kind(Kind::BFloat16);
            collective.all_reduce(&short)?;
            values.copy_(&short);
            // Counts have to be exact: they are reduced in f32.
            collective.all_reduce(extra)
        }
    }
}

/// Sums over the micro-batches of a batch.
#[derive(Default)]
struct Total {
    loss_sum: f64,
    weight: f64,
    tokens: u64,
    example: Option<Example>,
    summaries: BTreeMap<&'static str, Summary>,
}

impl Total {
    fn add(&mut self, outcome: Outcome) {
        self.loss_sum += outcome.loss_sum;
        self.weight += outcome.weight;
        self.tokens += outcome.tokens;
        self.example = self.example.take().or(outcome.example);
        for (name, summary) in outcome.summaries {
            self.summaries.entry(name).or_default().merge(&summary);
        }
    }
}

/// An index of a split's pairs of image and caption.
pub struct Pairs {
    /// The number of pairs before each image; the last element is the total.
    before: Vec<u64>,
}

impl Pairs {
    /// An index of images with these numbers of captions.
    pub fn new(captions: impl Iterator<Item = usize>) -> Self {
        let mut before = vec![0];
        let mut total = 0;
        before.extend(captions.map(|count| {
            total += count as u64;
            total
        }));
        Self { before }
    }

    fn total(&self) -> u64 {
        *self.before.last().expect("there is always the zero at the front")
    }

    fn sample(&self, pair: u64) -> Sample {
        let image = self.before.partition_point(|&before| before <= pair) - 1;
        Sample { image, caption: (pair - self.before[image]) as usize }
    }
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;
    use crate::nn::Builder;

    /// One of three ranks with equal values.
    struct Alike;

    impl Collective for Alike {
        fn rank(&self) -> usize {
            0
        }

        fn world_size(&self) -> usize {
            3
        }

        fn all_reduce(&self, tensor: &Tensor) -> Result<(), CollectiveError> {
            _ = tensor.shallow_clone().g_mul_scalar_(3.0);
            Ok(())
        }

        fn broadcast(&self, _: &Tensor, _: usize) -> Result<(), CollectiveError> {
            Err(CollectiveError::Failed("not asked for here".into()))
        }

        fn all_gather(&self, _: &Tensor) -> Result<Vec<Tensor>, CollectiveError> {
            Err(CollectiveError::Failed("not asked for here".into()))
        }
    }

    #[test]
    fn gradients_travel_in_16_bits_but_counts_in_32() {
        let values = [1.0_f32, 0.003_141_592_7, -123_456.0];
        let summed = |wire| {
            let mut builder = Builder::new(1, Device::Cpu);
            _ = builder.normal("vector", &[3], 1.0);
            let mut parameters = builder.finish();
            parameters.start_training(|_| true);
            let mut gradient = parameters.gradient().unwrap();
            gradient.values.copy_(&Tensor::from_slice(&values));
            gradient.extra.copy_(&Tensor::from_slice(&[1_000_003.0_f32, 1.0]));
            sum(&mut gradient, &Alike, wire).unwrap();
            Vec::<f32>::try_from(parameters.gradient().unwrap().whole).unwrap()
        };
        let (exact, short) = (summed(Precision::F32), summed(Precision::Bf16));
        assert_eq!(exact, [3.0, 3.0 * values[1], 3.0 * values[2], 3_000_009.0, 3.0]);
        assert_eq!(short[3..], exact[3..]);
        assert_ne!(short[1], exact[1]);
        assert!(short.iter().zip(&exact).all(|(short, exact)| (short - exact).abs() < 0.01 * exact.abs()), "{short:?}");
    }

    #[test]
    fn an_example_without_numbers_is_told_to_nobody() {
        let example = |reward, gamma| Example { image: 0, candidates: vec![(String::new(), reward, gamma)] };
        assert!(is_finite(&example(1.0, 0.0)));
        let broken = [(f64::NAN, 0.0), (f64::INFINITY, 0.0), (1.0, f64::NAN), (1.0, f64::NEG_INFINITY)];
        assert!(broken.into_iter().all(|(reward, gamma)| !is_finite(&example(reward, gamma))));
    }

    #[test]
    fn pairs_are_numbered_image_by_image() {
        let pairs = Pairs::new([2, 1, 3].into_iter());
        let all: Vec<_> = (0..pairs.total()).map(|pair| pairs.sample(pair)).map(|s| (s.image, s.caption)).collect();
        assert_eq!(all, [(0, 0), (0, 1), (1, 0), (2, 0), (2, 1), (2, 2)]);
    }
}
