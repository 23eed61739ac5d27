//! Beam search as in transformers' `generate` (`num_beams = num_return_sequences = k`,
//! `early_stopping = False`). Each step considers 2k candidates of each image. A finished caption's
//! score is its log-probability divided by a power of its length. The search of an image ends when
//! k captions are finished, and the best candidate would not get a higher score than the worst of
//! them if it ended at its present length.
//!
//! This is the behavior of transformers up to 4.49 (`BeamSearchScorer`). From 4.50 on, only
//! candidates that continue are compared with the worst finished caption, so that a search may end
//! slightly earlier.

use tch::Tensor;

use super::generation_config::GenerationConfig;
use crate::nn;

/// A caption that beam search or sampling returned.
#[derive(Clone, Debug, PartialEq)]
pub struct Hypothesis {
    /// The tokens without the begin token; with the end token, unless the caption was cut at the
    /// length limit.
    pub tokens: Vec<i64>,
    /// The log-probability, divided by the number of `tokens` to the power of the length penalty.
    /// (Beam search adds 1 for a cut caption with [`GenerationConfig::cut_length_includes_bos`].)
    pub score: f64,
}

/// A language model that is decoded step by step. Its rows are the `images * beams` captions that
/// are decoded in parallel.
pub trait NextTokenLogits {
    /// Appends `tokens` `[rows]` to the captions. Returns the next-token logits `[rows,
    /// vocabulary]`, in 32 bits. With `beam_indices` `[rows]`, row i first becomes a copy of row
    /// `beam_indices[i]` (`beam_idx` in transformers).
    fn next_token_logits(&mut self, tokens: &[i64], beam_indices: Option<&[i64]>) -> Tensor;

    /// Like [`NextTokenLogits::next_token_logits`], but returns only the `count` most likely tokens
    /// of each row.
    fn top_tokens(&mut self, tokens: &[i64], beam_indices: Option<&[i64]>, count: i64) -> TopTokens {
        let (log_probabilities, tokens) = top_log_probabilities(&self.next_token_logits(tokens, beam_indices), count);
        TopTokens {
            per_row: tokens.size()[1] as usize,
            log_probabilities: Vec::try_from(log_probabilities.flatten(0, 1)).expect("log-probabilities are f32"),
            tokens: Vec::try_from(tokens.flatten(0, 1)).expect("indices are i64"),
        }
    }
}

/// The most likely next tokens of each row, best first.
pub struct TopTokens {
    /// The log-probabilities of the tokens, `[rows * per_row]`.
    pub log_probabilities: Vec<f32>,
    /// The tokens, `[rows * per_row]`.
    pub tokens: Vec<i64>,
    /// The number of tokens per row: the requested number, or the vocabulary size if that is
    /// smaller.
    pub per_row: usize,
}

/// The log-probabilities of the `count` most likely tokens of each row of `logits`
/// `[rows, vocabulary]`, best first, and the tokens. Both are `[rows, count]`, or
/// `[rows, vocabulary]` if the vocabulary is smaller than `count`.
pub fn top_log_probabilities(logits: &Tensor, count: i64) -> (Tensor, Tensor) {
    // The logsumexp alone is cheaper than the whole log-softmax.
    let (best, tokens) = logits.topk(logits.size()[1].min(count), 1, true, false);
    (best - nn::logsumexp(logits).unsqueeze(1), tokens)
}

/// The best `generation.beams` captions of each of `images` images, best first.
pub fn beam_search(
    model: &mut dyn NextTokenLogits,
    images: usize,
    generation: &GenerationConfig,
) -> Vec<Vec<Hypothesis>> {
    let k = generation.beams;
    let mut beams_by_image: Vec<ImageBeams> = (0..images).map(|_| ImageBeams::new(generation)).collect();
    let mut beam_indices: Option<Vec<i64>> = None;
    for length in 1..generation.max_length {
        let open_beams = || beams_by_image.iter().flat_map(|image_beams| &image_beams.open_beams);
        let last_token = |beam: &Beam| *beam.tokens.last().unwrap_or(&generation.bos_token_id);
        let tokens: Vec<i64> = open_beams().map(last_token).collect();
        let beam_scores: Vec<f32> = open_beams().map(|beam| beam.log_probability).collect();
        // The best candidates of an image are among the best of each beam.
        let top_tokens = model.top_tokens(&tokens, beam_indices.as_deref(), 2 * k as i64);
        let candidates = best_candidates(&top_tokens, &beam_scores, k);
        let mut next_beam_indices = Vec::with_capacity(images * k);
        for (image, (image_beams, candidates)) in beams_by_image.iter_mut().zip(candidates).enumerate() {
            let continued_beams = image_beams.advance(candidates, length, generation);
            next_beam_indices.extend(continued_beams.into_iter().map(|beam| (image * k + beam) as i64));
        }
        if beams_by_image.iter().all(|image_beams| image_beams.is_done) {
            break;
        }
        beam_indices = Some(next_beam_indices);
    }
    beams_by_image.into_iter().map(|image_beams| image_beams.finish(generation)).collect()
}

/// A beam of an image and a token that may be appended to it.
struct BeamCandidate {
    /// The log-probability of the beam with the token.
    log_probability: f32,
    /// The index of the beam among the beams of its image.
    beam: usize,
    token: i64,
}

/// The 2k best candidates of each image, best first. At most k of them end, so k always remain
/// open. `beam_scores` are the log-probabilities of the beams, `[images * k]`.
fn best_candidates(top_tokens: &TopTokens, beam_scores: &[f32], k: usize) -> Vec<Vec<BeamCandidate>> {
    let TopTokens { log_probabilities, tokens, per_row } = top_tokens;
    // For each row: the log-probability of the beam with each of its top tokens, and the token.
    let rows = log_probabilities.chunks(*per_row).zip(tokens.chunks(*per_row)).zip(beam_scores);
    let scored_rows: Vec<Vec<(f32, i64)>> = rows
        .map(|((top, tokens), beam_score)| top.iter().map(|own| own + beam_score).zip(tokens.iter().copied()).collect())
        .collect();
    let best_of_image = |rows: &[Vec<(f32, i64)>]| {
        let scored = rows.iter().enumerate().flat_map(|(beam, row)| row.iter().map(move |&scored| (beam, scored)));
        let candidates = scored.map(|(beam, (log_probability, token))| BeamCandidate { log_probability, beam, token });
        let mut candidates: Vec<BeamCandidate> = candidates.collect();
        candidates.sort_by(|a, b| b.log_probability.total_cmp(&a.log_probability).then(a.token.cmp(&b.token)));
        candidates.truncate(2 * k);
        candidates
    };
    scored_rows.chunks(k).map(best_of_image).collect()
}

/// A partial caption.
#[derive(Clone)]
struct Beam {
    tokens: Vec<i64>,
    log_probability: f32,
}

/// The beams of one image.
struct ImageBeams {
    /// The k beams that can be continued.
    open_beams: Vec<Beam>,
    /// At most k finished captions, best first.
    finished_captions: Vec<Hypothesis>,
    /// Whether the search of this image has ended (see the module's documentation).
    is_done: bool,
}

impl ImageBeams {
    fn new(generation: &GenerationConfig) -> Self {
        // All beams start with the same token: only the first may be chosen in the first step.
        let beam = |i| Beam { tokens: Vec::new(), log_probability: if i == 0 { 0.0 } else { -1e9 } };
        Self { open_beams: (0..generation.beams).map(beam).collect(), finished_captions: Vec::new(), is_done: false }
    }

    /// Processes the step's candidates, best first, which make captions of `length` tokens. Returns
    /// the index of the beam that each new open beam continues.
    fn advance(&mut self, candidates: Vec<BeamCandidate>, length: usize, generation: &GenerationConfig) -> Vec<usize> {
        if self.is_done {
            return (0..generation.beams).collect();
        }
        let mut open = Vec::with_capacity(generation.beams);
        let mut continued_beams = Vec::with_capacity(generation.beams);
        let mut best = f32::NEG_INFINITY;
        for (number, candidate) in candidates.into_iter().enumerate() {
            best = best.max(candidate.log_probability);
            let mut tokens = self.open_beams[candidate.beam].tokens.clone();
            tokens.push(candidate.token);
            if candidate.token == generation.eos_token_id {
                // `generate` ignores ends that are not among the k best candidates.
                if number < generation.beams {
                    self.add_finished(tokens, score(candidate.log_probability, length, generation), generation);
                }
            } else if open.len() < generation.beams {
                open.push(Beam { tokens, log_probability: candidate.log_probability });
                continued_beams.push(candidate.beam);
            }
        }
        self.open_beams = open;
        let best_score = score(best, length, generation);
        self.is_done = self.finished_captions.len() == generation.beams
            && self.finished_captions[generation.beams - 1].score >= best_score;
        continued_beams
    }

    fn add_finished(&mut self, tokens: Vec<i64>, score: f64, generation: &GenerationConfig) {
        let index = self.finished_captions.partition_point(|other| other.score >= score);
        self.finished_captions.insert(index, Hypothesis { tokens, score });
        self.finished_captions.truncate(generation.beams);
    }

    /// Returns the best captions. If the search reached the length limit, open beams count as
    /// finished.
    fn finish(mut self, generation: &GenerationConfig) -> Vec<Hypothesis> {
        if !self.is_done {
            for beam in std::mem::take(&mut self.open_beams) {
                let length = beam.tokens.len() + usize::from(generation.cut_length_includes_bos);
                self.add_finished(beam.tokens, score(beam.log_probability, length, generation), generation);
            }
        }
        self.finished_captions
    }
}

/// The score of a caption: its log-probability, divided by its length to the power of the length
/// penalty (`BeamHypotheses.add` in transformers).
pub(super) fn score(log_probability: f32, length: usize, generation: &GenerationConfig) -> f64 {
    f64::from(log_probability) / (length as f64).powf(generation.length_penalty)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{seeds, testing};

    const BEGIN: i64 = 3;
    const END: i64 = 0;
    const VOCABULARY: usize = 4;

    fn config(beams: usize, max_length: usize, length_penalty: f64) -> GenerationConfig {
        GenerationConfig {
            beams,
            max_length,
            length_penalty,
            cut_length_includes_bos: false,
            bos_token_id: BEGIN,
            eos_token_id: END,
        }
    }

    /// A toy language model: the log-probabilities of the next token, a fixed function of the image
    /// and of all tokens so far.
    fn next_log_probabilities(seed: u64, image: usize, prefix: &[i64]) -> Vec<f32> {
        let prefix_hash =
            prefix.iter().fold(seeds::combine(seed, &[image as u64]), |s, &t| seeds::combine(s, &[t as u64]));
        let logits = (0..VOCABULARY).map(|t| (seeds::combine(prefix_hash, &[t as u64]) % 1000) as f32 / 250.0);
        let logits: Vec<f32> = logits.collect();
        let log_normalizer = logits.iter().map(|x| x.exp()).sum::<f32>().ln();
        logits.iter().map(|x| x - log_normalizer).collect()
    }

    struct ToyModel {
        seed: u64,
        beams: usize,
        /// The tokens of each row, begin token included.
        rows: Vec<Vec<i64>>,
    }

    impl NextTokenLogits for ToyModel {
        fn next_token_logits(&mut self, tokens: &[i64], beam_indices: Option<&[i64]>) -> Tensor {
            if let Some(indices) = beam_indices {
                self.rows = indices.iter().map(|&row| self.rows[row as usize].clone()).collect();
            }
            self.rows.iter_mut().zip(tokens).for_each(|(row, &token)| row.push(token));
            let rows = self.rows.iter().enumerate();
            let values = rows.flat_map(|(row, prefix)| next_log_probabilities(self.seed, row / self.beams, prefix));
            let values: Vec<f32> = values.collect();
            Tensor::from_slice(&values).view([self.rows.len() as i64, VOCABULARY as i64]).to_device(testing::device())
        }
    }

    /// All captions that end or reach the limit, with scores, best first.
    fn exhaustive_search(seed: u64, image: usize, settings: &GenerationConfig) -> Vec<Hypothesis> {
        let mut all = Vec::new();
        let mut open = vec![(vec![BEGIN], 0.0_f32)];
        while let Some((prefix, sum)) = open.pop() {
            for (token, log_probability) in next_log_probabilities(seed, image, &prefix).into_iter().enumerate() {
                let mut tokens = prefix.clone();
                tokens.push(token as i64);
                if token as i64 == END || tokens.len() == settings.max_length {
                    let tokens = tokens[1..].to_vec();
                    let score = score(sum + log_probability, tokens.len(), settings);
                    all.push(Hypothesis { tokens, score });
                } else {
                    open.push((tokens, sum + log_probability));
                }
            }
        }
        all.sort_by(|a, b| b.score.total_cmp(&a.score));
        all
    }

    fn search(seed: u64, images: usize, settings: &GenerationConfig) -> Vec<Vec<Hypothesis>> {
        let rows = vec![Vec::new(); images * settings.beams];
        beam_search(&mut ToyModel { seed, beams: settings.beams, rows }, images, settings)
    }

    #[test]
    fn beam_search_with_enough_beams_equals_exhaustive_search() {
        // Before the last step at most 3 x 3 x 3 = 27 prefixes are open, so that none is pruned.
        // The last step keeps the 40 best of its captions, and the 10 best ones are compared.
        let (beams, max_length, images) = (40, 5, 3);
        for (seed, length_penalty) in [(1, 1.0), (2, 0.0), (3, 2.0), (4, 1.0)] {
            let settings = config(beams, max_length, length_penalty);
            for (image, actual) in search(seed, images, &settings).into_iter().enumerate() {
                let expected = exhaustive_search(seed, image, &settings);
                for (actual, expected) in actual.iter().zip(&expected).take(10) {
                    assert_eq!(actual.tokens, expected.tokens);
                    assert!((actual.score - expected.score).abs() < 1e-5);
                }
            }
        }
    }

    #[test]
    fn beam_search_with_one_beam_is_greedy_search() {
        let (seed, max_length) = (9, 6);
        let settings = config(1, max_length, 1.0);
        let mut prefix = vec![BEGIN];
        while prefix.len() < max_length && (prefix.len() == 1 || prefix[prefix.len() - 1] != END) {
            let next = next_log_probabilities(seed, 0, &prefix);
            prefix.push((0..VOCABULARY).max_by(|&a, &b| next[a].total_cmp(&next[b])).unwrap() as i64);
        }
        assert_eq!(search(seed, 1, &settings)[0][0].tokens, prefix[1..]);
    }

    #[test]
    fn beam_search_of_an_image_does_not_depend_on_the_rest_of_the_batch() {
        let settings = config(3, 8, 1.0);
        let seed = 5;
        let together = search(seed, 4, &settings);
        assert!(together.iter().all(|actual| actual.len() == 3));
        let alone = search(seed, 1, &settings);
        assert_eq!(together[0], alone[0]);
    }
}
