//! How the sizes of a run file go with those of its data.

use std::thread;

use config::{Objective, RunFile, Stage};
use dataset::{DataSet, Split};
use tokenizer::Vocabulary;

/// What is worth knowing of lengths and batches, in lines for people.
pub fn lines(file: &RunFile, data: &DataSet, vocabulary: &Vocabulary) -> Vec<String> {
    let (target, search) = (file.captioner.max_target_length, file.decoding.max_length);
    let captions: Vec<&str> =
        data.split(Split::Train).iter().flat_map(|item| &item.captions).map(String::as_str).collect();
    let [longer_than_target, longer_than_search] = longer(&captions, vocabulary, [target, search]);
    let lengths = format!(
        "captions: of {} training captions {longer_than_target} are longer than captioner.max_target_length ({target} tokens; \
         they are learned up to there), {longer_than_search} than decoding.max_length ({search} tokens; no generated caption is \
         longer)",
        captions.len()
    );
    let batches = file.stages.iter().filter_map(|stage| repeats(stage, data));
    std::iter::once(lengths).chain(batches).collect()
}

/// How many of some captions have more tokens than each of `limits`, begin and end included.
fn longer(captions: &[&str], vocabulary: &Vocabulary, limits: [u32; 2]) -> [usize; 2] {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let count = |captions: &[&str]| {
        let mut longer = [0; 2];
        for caption in captions {
            let length = vocabulary.length(caption);
            for (longer, limit) in longer.iter_mut().zip(limits) {
                *longer += usize::from(length > limit as usize);
            }
        }
        longer
    };
    thread::scope(|scope| {
        let parts = captions.chunks(captions.len().div_ceil(threads).max(1));
        let parts: Vec<_> = parts.map(|part| scope.spawn(move || count(part))).collect();
        let counts = parts.into_iter().map(|part| part.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        counts.fold([0; 2], |[a, b], [c, d]| [a + c, b + d])
    })
}

/// What a stage trains on more than once in a step, if it does.
fn repeats(stage: &Stage, data: &DataSet) -> Option<String> {
    let (samples, of) = match stage.objective {
        Objective::CrossEntropy => (data.train_captions(), "captions"),
        Objective::Contrastive | Objective::Scst | Objective::Dico => (data.split(Split::Train).len() as u64, "images"),
    };
    let Stage { name, batch, .. } = stage;
    let warning = || {
        format!("stage {name}: its batch of {batch} is more than the {samples} training {of}: a step has some twice")
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
        assert_eq!(longer(&captions, &vocabulary, [77, 30]), [2, 4]);
        assert_eq!(longer(&[], &vocabulary, [77, 30]), [0, 0]);
    }
}
