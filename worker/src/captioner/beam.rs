//! Beam search as Hugging Face `generate` does it (`num_beams = num_return_sequences = k`,
//! `early_stopping = False`): 2k candidates per step, finished captions scored by log-probability
//! over length, and an end as soon as no candidate can beat the worst finished one.
//!
//! This is the behavior of transformers up to 4.49 (`BeamSearchScorer`). From 4.50 on a search ends
//! when the best candidate *that continues* cannot, which is slightly earlier.

use tch::Tensor;

use super::Search;
use crate::nn;

/// A caption found by beam search or sampling.
#[derive(Clone, Debug, PartialEq)]
pub struct Hypothesis {
    /// The tokens without the begin token; with the end token, unless cut at the length limit.
    pub tokens: Vec<i64>,
    /// The log-probability, divided by the length to the power of the length penalty.
    pub score: f64,
}

/// A language model that is decoded step by step, for `images * beams` captions in parallel.
pub trait Steps {
    /// Appends `tokens` (`[rows]`) to all captions. Returns the next-token logits `[rows,
    /// vocabulary]`, in 32 bits. If `sources` is given, row i first becomes a copy of row
    /// `sources[i]`.
    fn next(&mut self, tokens: &[i64], sources: Option<&[i64]>) -> Tensor;

    /// Like [`Steps::next`], but returns only the `count` likeliest tokens.
    fn likeliest(&mut self, tokens: &[i64], sources: Option<&[i64]>, count: i64) -> TopTokens {
        let (log_probabilities, tokens) = likeliest(&self.next(tokens, sources), count);
        TopTokens {
            each: tokens.size()[1] as usize,
            log_probabilities: Vec::try_from(log_probabilities.flatten(0, 1)).expect("log-probabilities are f32"),
            tokens: Vec::try_from(tokens.flatten(0, 1)).expect("indices are i64"),
        }
    }
}

/// The most likely next tokens of each caption, best first.
pub struct TopTokens {
    /// `[rows * each]`.
    pub log_probabilities: Vec<f32>,
    /// `[rows * each]`.
    pub tokens: Vec<i64>,
    /// The number of tokens per caption: the requested number, or the vocabulary size if that is
    /// smaller.
    pub each: usize,
}

/// The log-probabilities of the `count` likeliest tokens of each row of `logits`
/// `[rows, vocabulary]`, best first, and the tokens. Both are `[rows, count]`, or
/// `[rows, vocabulary]` if the vocabulary is smaller.
pub fn likeliest(logits: &Tensor, count: i64) -> (Tensor, Tensor) {
    // The normalizer alone is cheaper than the whole log-softmax.
    let (best, tokens) = logits.topk(logits.size()[1].min(count), 1, true, false);
    (best - nn::log_normalisers(logits).unsqueeze(1), tokens)
}

/// The best `search.beams` captions of each of `images` images, best first.
pub fn search(steps: &mut dyn Steps, images: usize, search: &Search) -> Vec<Vec<Hypothesis>> {
    let k = search.beams;
    let mut states: Vec<Image> = (0..images).map(|_| Image::new(search)).collect();
    let mut sources: Option<Vec<i64>> = None;
    for length in 1..search.max_length {
        let open = || states.iter().flat_map(|state| &state.open);
        let tokens: Vec<i64> = open().map(|beam| *beam.tokens.last().unwrap_or(&search.begin)).collect();
        let sums: Vec<f32> = open().map(|beam| beam.log_probability).collect();
        // The best candidates of an image are among the best of each beam.
        let following = following(&steps.likeliest(&tokens, sources.as_deref(), 2 * k as i64), &sums, k);
        let mut next_origins = Vec::with_capacity(images * k);
        for (image, (state, candidates)) in states.iter_mut().zip(following).enumerate() {
            let from = state.advance(candidates, length, search);
            next_origins.extend(from.into_iter().map(|beam| (image * k + beam) as i64));
        }
        if states.iter().all(|state| state.done) {
            break;
        }
        sources = Some(next_origins);
    }
    states.into_iter().map(|state| state.finish(search)).collect()
}

struct Candidate {
    log_probability: f32,
    beam: usize,
    token: i64,
}

/// The 2k best candidates of each image, best first. At most k of them end, so k always remain
/// open. `sums` are the log-probabilities of the beams, `[images * k]`.
fn following(likeliest: &TopTokens, sums: &[f32], k: usize) -> Vec<Vec<Candidate>> {
    let TopTokens { log_probabilities, tokens, each } = likeliest;
    let rows = log_probabilities.chunks(*each).zip(tokens.chunks(*each)).zip(sums);
    let of_rows: Vec<Vec<(f32, i64)>> = rows
        .map(|((best, tokens), sum)| best.iter().map(|own| own + sum).zip(tokens.iter().copied()).collect())
        .collect();
    let of_image = |rows: &[Vec<(f32, i64)>]| {
        let all = rows.iter().enumerate().flat_map(|(beam, row)| row.iter().map(move |&own| (beam, own)));
        let all = all.map(|(beam, (log_probability, token))| Candidate { log_probability, beam, token });
        let mut all: Vec<Candidate> = all.collect();
        all.sort_by(|a, b| b.log_probability.total_cmp(&a.log_probability).then(a.token.cmp(&b.token)));
        all.truncate(2 * k);
        all
    };
    of_rows.chunks(k).map(of_image).collect()
}

#[derive(Clone)]
struct Beam {
    tokens: Vec<i64>,
    log_probability: f32,
}

/// The beams of one image.
struct Image {
    open: Vec<Beam>,
    /// Best first, at most k.
    finished: Vec<Hypothesis>,
    done: bool,
}

impl Image {
    fn new(search: &Search) -> Self {
        // All beams start with the same token: only the first may be chosen in the first step.
        let beam = |i| Beam { tokens: Vec::new(), log_probability: if i == 0 { 0.0 } else { -1e9 } };
        Self { open: (0..search.beams).map(beam).collect(), finished: Vec::new(), done: false }
    }

    /// Processes the step's candidates, best first, which make captions of `length` tokens. Returns
    /// the beam that each open beam continues.
    fn advance(&mut self, candidates: Vec<Candidate>, length: usize, search: &Search) -> Vec<usize> {
        if self.done {
            return (0..search.beams).collect();
        }
        let mut open = Vec::with_capacity(search.beams);
        let mut sources = Vec::with_capacity(search.beams);
        let mut best = f32::NEG_INFINITY;
        for (rank, candidate) in candidates.into_iter().enumerate() {
            best = best.max(candidate.log_probability);
            let mut tokens = self.open[candidate.beam].tokens.clone();
            tokens.push(candidate.token);
            if candidate.token == search.end {
                // `generate` ignores ends that are not among the k best candidates.
                if rank < search.beams {
                    self.add(tokens, score(candidate.log_probability, length, search), search);
                }
            } else if open.len() < search.beams {
                open.push(Beam { tokens, log_probability: candidate.log_probability });
                sources.push(candidate.beam);
            }
        }
        self.open = open;
        let attainable = score(best, length, search);
        self.done = self.finished.len() == search.beams && self.finished[search.beams - 1].score >= attainable;
        sources
    }

    fn add(&mut self, tokens: Vec<i64>, score: f64, search: &Search) {
        let place = self.finished.partition_point(|other| other.score >= score);
        self.finished.insert(place, Hypothesis { tokens, score });
        self.finished.truncate(search.beams);
    }

    /// Finishes the search at the length limit, where open beams count as finished.
    fn finish(mut self, search: &Search) -> Vec<Hypothesis> {
        if !self.done {
            for beam in std::mem::take(&mut self.open) {
                let length = beam.tokens.len() + usize::from(search.cut_length_includes_bos);
                self.add(beam.tokens, score(beam.log_probability, length, search), search);
            }
        }
        self.finished
    }
}

pub(super) fn score(log_probability: f32, length: usize, search: &Search) -> f64 {
    f64::from(log_probability) / (length as f64).powf(search.length_penalty)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{seeds, testing};

    const BEGIN: i64 = 3;
    const END: i64 = 0;
    const VOCABULARY: usize = 4;

    fn search_for(beams: usize, max_length: usize, length_penalty: f64) -> Search {
        Search { beams, max_length, length_penalty, cut_length_includes_bos: false, begin: BEGIN, end: END }
    }

    /// A toy language model: the next token's distribution is a fixed function of all tokens so
    /// far.
    fn distribution(seed: u64, image: usize, prefix: &[i64]) -> Vec<f32> {
        let state = prefix.iter().fold(seeds::combine(seed, &[image as u64]), |s, &t| seeds::combine(s, &[t as u64]));
        let logits = (0..VOCABULARY).map(|t| (seeds::combine(state, &[t as u64]) % 1000) as f32 / 250.0);
        let logits: Vec<f32> = logits.collect();
        let total = logits.iter().map(|x| x.exp()).sum::<f32>().ln();
        logits.iter().map(|x| x - total).collect()
    }

    struct Toy {
        seed: u64,
        beams: usize,
        rows: Vec<Vec<i64>>,
    }

    impl Steps for Toy {
        fn next(&mut self, tokens: &[i64], sources: Option<&[i64]>) -> Tensor {
            if let Some(sources) = sources {
                self.rows = sources.iter().map(|&row| self.rows[row as usize].clone()).collect();
            }
            self.rows.iter_mut().zip(tokens).for_each(|(row, &token)| row.push(token));
            let rows = self.rows.iter().enumerate();
            let values: Vec<f32> =
                rows.flat_map(|(row, prefix)| distribution(self.seed, row / self.beams, prefix)).collect();
            Tensor::from_slice(&values).view([self.rows.len() as i64, VOCABULARY as i64]).to_device(testing::device())
        }
    }

    /// All captions that end or reach the limit, with scores, best first.
    fn exhaustive(seed: u64, image: usize, settings: &Search) -> Vec<Hypothesis> {
        let mut all = Vec::new();
        let mut open = vec![(vec![BEGIN], 0.0_f32)];
        while let Some((prefix, sum)) = open.pop() {
            for (token, log_probability) in distribution(seed, image, &prefix).into_iter().enumerate() {
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

    fn run(seed: u64, images: usize, settings: &Search) -> Vec<Vec<Hypothesis>> {
        let mut toy = Toy { seed, beams: settings.beams, rows: vec![Vec::new(); images * settings.beams] };
        search(&mut toy, images, settings)
    }

    #[test]
    fn a_search_wide_enough_finds_what_an_exhaustive_one_finds() {
        // At most 3 x 3 x 3 = 27 prefixes can be open, so no candidate is ever pruned.
        for (seed, length_penalty) in [(1, 1.0), (2, 0.0), (3, 2.0), (4, 1.0)] {
            let settings = search_for(40, 5, length_penalty);
            for (image, found) in run(seed, 3, &settings).into_iter().enumerate() {
                let expected = exhaustive(seed, image, &settings);
                for (found, expected) in found.iter().zip(&expected).take(10) {
                    assert_eq!(found.tokens, expected.tokens);
                    assert!((found.score - expected.score).abs() < 1e-5);
                }
            }
        }
    }

    #[test]
    fn one_beam_is_greedy_search() {
        let settings = search_for(1, 6, 1.0);
        let mut prefix = vec![BEGIN];
        while prefix.len() < 6 && (prefix.len() == 1 || prefix[prefix.len() - 1] != END) {
            let next = distribution(9, 0, &prefix);
            prefix.push((0..VOCABULARY).max_by(|&a, &b| next[a].total_cmp(&next[b])).unwrap() as i64);
        }
        assert_eq!(run(9, 1, &settings)[0][0].tokens, prefix[1..]);
    }

    #[test]
    fn images_of_a_batch_do_not_disturb_each_other() {
        let settings = search_for(3, 8, 1.0);
        let together = run(5, 4, &settings);
        assert!(together.iter().all(|found| found.len() == 3));
        let alone = run(5, 1, &settings);
        assert_eq!(together[0], alone[0]);
    }
}
