//! The batches of a rank: which samples of the training split belong to its share of a step, and
//! prefetching.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use anyhow::Result;
use config::{RunFile, SampleKind};
use dataset::{DataSet, Split};
use proto::v1;

use crate::data::{Batch, DataLoader, PendingBatch, Sample, permutation};
use crate::seeds;

/// Number of batches that are loaded at a time, including the batch of the present step.
const PREFETCHED_BATCHES: u64 = 4;

/// What identifies a batch: stage, step, and begin and end of this rank's share of the step's
/// samples.
type BatchKey = (u32, u64, u32, u32);

/// The batches of a rank in training.
pub struct TrainingBatches {
    data: Arc<DataSet>,
    /// The samples of cross-entropy.
    caption_pairs: CaptionPairs,
    /// A stage, and the start of its current sequence of samples. The sequences of other stages
    /// start at step 0.
    sequence_start: (u32, v1::SequenceStart),
    /// Batches that are being loaded, in order of step.
    prefetched: VecDeque<(BatchKey, PendingBatch)>,
}

impl TrainingBatches {
    /// Batches of the training split of `data`. The sequences of all stages start at step 0.
    pub fn new(data: Arc<DataSet>) -> Self {
        Self {
            caption_pairs: CaptionPairs::new(data.split(Split::Train).iter().map(|item| item.captions.len())),
            data,
            sequence_start: (0, v1::SequenceStart::default()),
            prefetched: VecDeque::new(),
        }
    }

    /// The share `share` of step `step` of a stage of `run`. Starts to load the same share of the
    /// following steps.
    ///
    /// # Errors
    /// A sample of the share cannot be loaded.
    pub fn next_batch(
        &mut self,
        run: &RunFile,
        loader: &DataLoader,
        stage: u32,
        step: u64,
        share: &Range<u32>,
    ) -> Result<Batch> {
        let batch_key = |step| (stage, step, share.start, share.end);
        if self.prefetched.front().is_some_and(|(first, _)| *first != batch_key(step)) {
            self.prefetched.clear();
        }
        let stage = &run.stages[stage as usize];
        let next_step = step + self.prefetched.len() as u64;
        let end = stage.steps.min(step + PREFETCHED_BATCHES).max(step + 1);
        for step in next_step..end {
            let samples = self.samples(run, batch_key(step));
            let contrastive = stage.objective.contrastive();
            let has_generated_images = contrastive.is_some_and(|settings| settings.generated_images > 0.0);
            let pending = if has_generated_images {
                loader.load_with_generated(samples)
            } else {
                loader.load_training_samples(samples)
            };
            self.prefetched.push_back((batch_key(step), pending));
        }
        let (_, pending) = self.prefetched.pop_front().expect("this step's batch is being loaded");
        pending.wait()
    }

    /// The start of a stage's current sequence of samples.
    pub fn sequence_start(&self, stage: u32) -> v1::SequenceStart {
        let (stage_of_sequence, start) = self.sequence_start;
        if stage_of_sequence == stage { start } else { v1::SequenceStart::default() }
    }

    /// Sets the start of a stage's current sequence of samples. If it changes, discards the batches
    /// that are being loaded.
    pub fn set_sequence_start(&mut self, stage: u32, start: v1::SequenceStart) {
        if self.sequence_start != (stage, start) {
            self.sequence_start = (stage, start);
            self.prefetched.clear();
        }
    }

    /// The samples of a batch. An epoch of cross-entropy has each pair of image and caption once.
    /// An epoch of the other objectives has each image once. The contrastive objective uses the
    /// captions of an image in turn, one in each epoch.
    fn samples(&self, run: &RunFile, (stage, step, begin, end): BatchKey) -> Vec<Sample> {
        let settings = &run.stages[stage as usize];
        let permutation_key = seeds::combine(run.seed, &[u64::from(stage)]);
        let v1::SequenceStart { step: first_step, epoch: first_epoch } = self.sequence_start(stage);
        let batch_start = (step - first_step) * u64::from(settings.batch);
        let images = self.data.split(Split::Train);
        let indices = batch_start + u64::from(begin)..batch_start + u64::from(end);
        match settings.objective.samples() {
            SampleKind::Caption => {
                let pairs = &self.caption_pairs;
                let pair = |index| permutation::epoch_and_sample(pairs.total(), first_epoch, index, permutation_key).1;
                let mut samples: Vec<Sample> = indices.map(|index| pairs.sample(pair(index))).collect();
                // Loss and gradient are sums over the share, so the order within it is free.
                // Micro-batches of captions with similar lengths need less padding.
                samples.sort_by_key(|sample| images[sample.image].captions[sample.caption].len());
                samples
            }
            SampleKind::Image => indices
                .map(|index| {
                    let (epoch, image) =
                        permutation::epoch_and_sample(images.len() as u64, first_epoch, index, permutation_key);
                    // Objectives that reward candidates use no captions, and accept images without.
                    let captions = images[image as usize].captions.len().max(1) as u64;
                    let caption = epoch.wrapping_add(seeds::combine(permutation_key, &[image])) % captions;
                    Sample { image: image as usize, caption: caption as usize }
                })
                .collect(),
        }
    }
}

/// The pairs of image and caption of the training split, numbered image by image.
struct CaptionPairs {
    /// The index of the first pair of each image; the last element is the count of all pairs.
    first_pairs: Vec<u64>,
}

impl CaptionPairs {
    /// Numbers the pairs of images with these numbers of captions.
    fn new(captions_per_image: impl Iterator<Item = usize>) -> Self {
        let mut first_pairs = vec![0];
        let mut total = 0;
        first_pairs.extend(captions_per_image.map(|count| {
            total += count as u64;
            total
        }));
        Self { first_pairs }
    }

    fn total(&self) -> u64 {
        *self.first_pairs.last().expect("the list begins with 0")
    }

    fn sample(&self, pair: u64) -> Sample {
        let image = self.first_pairs.partition_point(|&first_pair| first_pair <= pair) - 1;
        Sample { image, caption: (pair - self.first_pairs[image]) as usize }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_numbered_image_by_image() {
        let pairs = CaptionPairs::new([2, 1, 3].into_iter());
        let all: Vec<_> = (0..pairs.total()).map(|pair| pairs.sample(pair)).map(|s| (s.image, s.caption)).collect();
        assert_eq!(all, [(0, 0), (0, 1), (1, 0), (2, 0), (2, 1), (2, 2)]);
    }
}
