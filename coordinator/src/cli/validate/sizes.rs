//! Compares the limits of caption lengths, and the batch sizes, of a run file with its data.

use std::thread;

use config::{RunFile, SampleKind, Stage};
use dataset::{DataSet, Split};
use tokenizer::Vocabulary;

/// Describes caption lengths and batch sizes, in lines for people.
pub fn describe_sizes(file: &RunFile, data: &DataSet, vocabulary: &Vocabulary) -> Vec<String> {
    let (max_target, max_generated) = (file.captioner.max_target_length, file.decoding.max_length);
    let captions: Vec<&str> =
        data.split(Split::Train).iter().flat_map(|item| &item.captions).map(String::as_str).collect();
    let [longer_than_target, longer_than_generated] = count_longer(&captions, vocabulary, [max_target, max_generated]);
    let lengths = format!(
        "captions: {longer_than_target} of {} training captions are longer than captioner.max_target_length ({max_target} tokens; \
         cross_entropy stages truncate them), {longer_than_generated} are longer than decoding.max_length ({max_generated} tokens; no generated \
         caption is longer)",
        captions.len()
    );
    let batches = file.stages.iter().filter_map(|stage| repetition_warning(stage, data));
    std::iter::once(lengths).chain(batches).collect()
}

/// Counts the captions with more tokens than each of `limits`. The start and end tokens count.
fn count_longer(captions: &[&str], vocabulary: &Vocabulary, limits: [u32; 2]) -> [usize; 2] {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let count = |captions: &[&str]| {
        let mut longer = [0; 2];
        for caption in captions {
            let length = vocabulary.token_count(caption);
            for (longer, limit) in longer.iter_mut().zip(limits) {
                *longer += usize::from(length > limit as usize);
            }
        }
        longer
    };
    thread::scope(|scope| {
        let chunks = captions.chunks(captions.len().div_ceil(threads).max(1));
        let handles: Vec<_> = chunks.map(|chunk| scope.spawn(move || count(chunk))).collect();
        let counts =
            handles.into_iter().map(|handle| handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        counts.fold([0; 2], |sum, counts| [sum[0] + counts[0], sum[1] + counts[1]])
    })
}

/// A warning if every step of the stage contains a sample more than once.
fn repetition_warning(stage: &Stage, data: &DataSet) -> Option<String> {
    let kind = stage.objective.samples();
    let (samples, unit) = match kind {
        SampleKind::Caption => (data.train_caption_count(), kind.plural()),
        SampleKind::Image => (data.split(Split::Train).len() as u64, kind.plural()),
    };
    let Stage { name, batch, .. } = stage;
    let warning = || {
        format!(
            "stage {name}: its batch of {batch} is more than the {samples} training {unit}: each step contains some of \
             them more than once"
        )
    };
    (u64::from(*batch) > samples).then(warning)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn captions_are_counted_by_their_tokens() {
        let caption = |words: usize| "circle ".repeat(words);
        let captions: Vec<String> = [0, 1, 28, 29, 75, 76, 500].map(caption).into();
        let captions: Vec<&str> = captions.iter().map(String::as_str).collect();
        let vocabulary = Vocabulary::full();
        assert_eq!(count_longer(&captions, &vocabulary, [77, 30]), [2, 4]);
        assert_eq!(count_longer(&[], &vocabulary, [77, 30]), [0, 0]);
    }
}
