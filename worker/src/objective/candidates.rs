//! What DiCO and self-critical training share: captions that the policy itself proposes, what they are worth, and how likely
//! the policy and the reference find them.

use std::collections::{BTreeMap, HashSet};

use scoring::cider::Candidate;
use statistics::{Summary, names};
use tch::{Device, Kind, Tensor, no_grad};
use tokenizer::Vocabulary;

use super::reward::RewardModel;
use crate::captioner::beam::Hypothesis;
use crate::captioner::{Captioner, Captions, Search};
use crate::laps::{Lap, Laps};
use crate::nn::Mode;
use crate::seeds;

/// The images of a batch.
#[derive(Clone, Copy)]
pub struct Images<'a> {
    /// What the captioner sees of them, `[images, vision tokens, vision width]`.
    pub hidden: &'a Tensor,
    /// Unit embeddings of them by each evaluator that is rewarded, `[images, embedding]`.
    pub embeddings: &'a [Tensor],
    /// Their numbers in the training split.
    pub numbers: &'a [usize],
}

/// What fine-tuning needs besides the policy.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// The policy as it was when the stage began.
    pub reference: &'a Captioner,
    /// Rewards candidates.
    pub reward_model: RewardModel<'a>,
    /// Of policy and reference.
    pub vocabulary: &'a Vocabulary,
    /// How candidates are searched.
    pub search: Search,
    /// Dropout while they are; none where they are generated as captions are in evaluations.
    pub candidate_dropout: Option<CandidateDropout>,
    /// Where the time goes.
    pub laps: &'a Laps,
}

/// Dropout while candidates are generated.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CandidateDropout {
    /// That an activation is dropped; above 0 and below 1.
    pub probability: f64,
    /// The step's. The masks of an image follow from this seed and its number, whichever rank has
    /// the image.
    pub seed: u64,
}

/// [`Captioner::search`] or [`Captioner::sample`].
type Generate = fn(&Captioner, &Tensor, &Search, Mode) -> Vec<Vec<Hypothesis>>;

impl CandidateDropout {
    /// Each image by itself, after seeding libtorch's generators for it. What is drawn afterwards
    /// follows from what was drawn before, whatever the images.
    fn candidates(
        self,
        policy: &Captioner,
        images: &Images<'_>,
        search: &Search,
        generate: Generate,
    ) -> Vec<Vec<Hypothesis>> {
        let mode = Mode::Train { dropout: self.probability };
        let next_seed = Tensor::randint(i64::MAX, [1], (Kind::Int64, Device::Cpu)).int64_value(&[0]);
        let of_image = |(at, &number): (usize, &usize)| {
            tch::manual_seed(seeds::combine(self.seed, &[number as u64]) as i64);
            generate(policy, &images.hidden.narrow(0, at as i64, 1), search, mode)
        };
        let found = images.numbers.iter().enumerate().flat_map(of_image).collect();
        tch::manual_seed(next_seed);
        found
    }
}

impl Context<'_> {
    /// The captions that the policy proposes for each image.
    pub fn candidates(&self, policy: &Captioner, images: &Images<'_>, generate: Generate) -> Vec<Vec<Hypothesis>> {
        self.laps.time(Lap::Search, || match self.candidate_dropout {
            None => generate(policy, images.hidden, &self.search, Mode::Evaluate),
            Some(dropout) => dropout.candidates(policy, images, &self.search, generate),
        })
    }

    /// What each image's candidates are worth, `[images, candidates]`.
    pub fn rewards(&self, images: &Images<'_>, candidates: &[Vec<Hypothesis>]) -> Tensor {
        self.laps.time(Lap::Reward, || no_grad(|| self.reward_model.rewards(images, &self.decode(candidates))))
    }

    /// What each image's candidates say, and whether they ended.
    pub fn decode(&self, candidates: &[Vec<Hypothesis>]) -> Vec<Vec<Candidate>> {
        let candidate = |found| decode(found, self.vocabulary);
        candidates.iter().map(|of_image| of_image.iter().map(candidate).collect()).collect()
    }
}

/// Candidates with all that the objectives want to know of them, equally many for each image.
pub struct Candidates {
    found: Vec<Vec<Hypothesis>>,
    /// `[images, candidates]`.
    pub rewards: Tensor,
    /// Log-probability under the policy, summed over tokens; carries gradients. `[images, candidates]`.
    pub policy: Tensor,
    /// Log-probability under the reference. `[images, candidates]`.
    pub reference: Tensor,
}

impl Candidates {
    /// Rewards the captions that were `found`, and asks policy and reference for their log-probabilities.
    #[must_use]
    pub fn new(
        found: Vec<Vec<Hypothesis>>,
        policy: &Captioner,
        images: &Images<'_>,
        context: &Context<'_>,
        mode: Mode,
    ) -> Self {
        let rewards = context.rewards(images, &found);
        let (count, each) = rewards.size2().expect("rewards are [images, candidates]");
        let begin = context.vocabulary.begin();
        let sequence = |found: &Hypothesis| std::iter::once(begin).chain(found.tokens.iter().copied()).collect();
        let sequences: Vec<Vec<i64>> = found.iter().flatten().map(sequence).collect();
        let captions = Captions::new(&sequences, each as usize, images.hidden.device());
        let log_probabilities = |captioner: &Captioner, mode| {
            captioner.token_log_probabilities(images.hidden, &captions, mode).sums().view([count, each])
        };
        let reference = || no_grad(|| log_probabilities(context.reference, Mode::Evaluate));
        let reference = context.laps.time(Lap::Reference, reference);
        Self { found, rewards, policy: log_probabilities(policy, mode), reference }
    }

    /// Tokens of all, ends included.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.found.iter().flatten().map(|candidate| candidate.tokens.len() as u64).sum()
    }

    /// Images, and candidates of each.
    #[must_use]
    pub fn size(&self) -> (i64, i64) {
        self.rewards.size2().expect("rewards are [images, candidates]")
    }

    /// What the first image's candidates say.
    pub fn first(&self) -> &[Hypothesis] {
        &self.found[0]
    }

    /// The best candidate of each image, of several the first: its reward and its number, both `[images, 1]`.
    pub fn best(&self) -> (Tensor, Tensor) {
        self.rewards.max_dim(1, true)
    }

    /// Distributions of what is of interest whatever the objective.
    #[must_use]
    pub fn summaries(&self) -> BTreeMap<&'static str, Summary> {
        let (images, each) = self.size();
        // In this machine's memory, as a GPU would be waited for at each number.
        let [rewards, policy, reference] =
            [&self.rewards, &self.policy, &self.reference].map(|tensor| tensor.detach().to_device(Device::Cpu));
        let (chosen, number) = rewards.max_dim(1, true);
        let is_rejected = rewards.ones_like().scatter_value(1, &number, 0.0).to_kind(Kind::Bool);
        let rejected = rewards.masked_select(&is_rejected);
        let chosen = chosen.squeeze_dim(1);
        let per_token = values(&(policy - reference)).into_iter().zip(self.lengths());
        let mut summaries = BTreeMap::from([
            (names::REWARD_CHOSEN, Summary::of(values(&chosen))),
            (names::REWARD_REJECTED, Summary::of(values(&rejected))),
            (names::KL, Summary::of(per_token.map(|(sum, length)| sum / length))),
            (names::CAPTION_LENGTH, Summary::of(self.lengths())),
            (names::REPETITION, Summary::of(self.found.iter().flatten().map(repetition))),
        ]);
        if each > 1 {
            let mean_rejected = rejected.view([images, each - 1]).mean_dim(1, false, rejected.kind());
            summaries.insert(names::REWARD_MARGIN, Summary::of(values(&(chosen - mean_rejected))));
        }
        summaries
    }

    fn lengths(&self) -> impl Iterator<Item = f64> {
        self.found.iter().flatten().map(|candidate| candidate.tokens.len() as f64)
    }
}

fn decode(found: &Hypothesis, vocabulary: &Vocabulary) -> Candidate {
    Candidate { text: vocabulary.decode(&found.tokens), ended: found.tokens.last() == Some(&vocabulary.end()) }
}

/// A tensor's values, in order.
pub(super) fn values(tensor: &Tensor) -> Vec<f64> {
    Vec::<f64>::try_from(tensor.detach().to_kind(Kind::Double).flatten(0, -1)).expect("a flat tensor of doubles")
}

/// Share of tokens that repeat an earlier one.
fn repetition(candidate: &Hypothesis) -> f64 {
    let distinct: HashSet<i64> = candidate.tokens.iter().copied().collect();
    1.0 - distinct.len() as f64 / candidate.tokens.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use runfile::{Preset, ProjectionInit};

    use super::*;
    use crate::{captioner, testing};

    /// Candidates of images with these numbers, and the number that is drawn next. Images whose
    /// numbers end with the same digit look the same.
    fn with_dropout(policy: &Captioner, seed: u64, numbers: &[usize], generate: Generate) -> (Vec<Vec<Vec<i64>>>, f64) {
        let hidden = numbers.iter().map(|&number| {
            tch::manual_seed(number as i64 % 10);
            Tensor::randn([4, 8], testing::floats())
        });
        let hidden = Tensor::stack(&hidden.collect::<Vec<_>>(), 0);
        let images = Images { hidden: &hidden, embeddings: &[], numbers };
        let decoding = runfile::Decoding { beams: 3, max_length: 8, ..runfile::Decoding::default() };
        let search = Search { begin: 38, end: 39, ..Search::new(&decoding, &Vocabulary::full()) };
        tch::manual_seed(5);
        let found = CandidateDropout { probability: 0.5, seed }.candidates(policy, &images, &search, generate);
        let tokens = found.into_iter().map(|of_image| of_image.into_iter().map(|found| found.tokens).collect());
        (tokens.collect(), Tensor::rand([1], testing::floats()).double_value(&[0]))
    }

    #[test]
    fn dropout_follows_from_step_and_image_whichever_rank_has_the_image() {
        const TEST: &str =
            "objective::candidates::tests::dropout_follows_from_step_and_image_whichever_rank_has_the_image";
        testing::alone(TEST, || testing::each_code_path(check_dropout));
    }

    fn check_dropout() {
        let policy = captioner::preset(Preset::Tiny, 8, 4, 40);
        let policy = Captioner::new(policy, ProjectionInit::default(), 1, testing::device());
        for generate in [Captioner::search, Captioner::sample] as [Generate; 2] {
            let candidates = |seed, numbers: &[usize]| with_dropout(&policy, seed, numbers, generate);
            let (together, drawn) = candidates(1, &[3, 4, 5]);
            let (other_share, drawn_there) = candidates(1, &[5, 3]);
            assert_eq!(other_share, [together[2].clone(), together[0].clone()]);
            assert_eq!(drawn, drawn_there, "what is drawn next does not follow from the images");
            // Another step, and another image that looks the same.
            assert_ne!(candidates(2, &[3]).0[0], together[0]);
            assert_ne!(candidates(1, &[13]).0[0], together[0]);
        }
    }

    #[test]
    fn a_candidate_has_ended_if_its_last_token_is_the_end_token() {
        let vocabulary = Vocabulary::of_corpus(["a red circle"]);
        let tokens = vocabulary.encode("a red", 77)[1..].to_vec();
        let cut = tokens[..tokens.len() - 1].to_vec();
        let found = [tokens, cut, vec![vocabulary.end()], vec![]];
        let found = found.map(|tokens| decode(&Hypothesis { tokens, score: 0.0 }, &vocabulary));
        let expected = [("a red", true), ("a red", false), ("", true), ("", false)];
        assert_eq!(found, expected.map(|(text, ended)| Candidate { text: text.to_owned(), ended }));
    }

    #[test]
    fn repetition_counts_tokens_seen_before() {
        let candidate = |tokens: &[i64]| Hypothesis { tokens: tokens.to_vec(), score: 0.0 };
        assert_eq!(repetition(&candidate(&[1, 2, 1, 1])), 0.5);
        assert_eq!(repetition(&candidate(&[])), 1.0);
    }

    #[test]
    fn summaries_tell_the_chosen_from_the_rejected() {
        let hypothesis = |length: usize| Hypothesis { tokens: (0..length as i64).collect(), score: 0.0 };
        let candidates = Candidates {
            found: vec![vec![hypothesis(2), hypothesis(4)], vec![hypothesis(1), hypothesis(1)]],
            rewards: Tensor::from_slice(&[0.25_f32, 0.75, 0.5, 0.5]).view([2, 2]),
            policy: Tensor::from_slice(&[-2.0_f32, -4.0, -1.0, -3.0]).view([2, 2]),
            reference: Tensor::from_slice(&[-3.0_f32, -2.0, -1.0, -2.0]).view([2, 2]),
        };
        let summaries = candidates.summaries();
        let mean = |name: &str| summaries[name].mean();
        assert_eq!((mean(names::REWARD_CHOSEN), mean(names::REWARD_REJECTED)), (0.625, 0.375));
        assert_eq!((mean(names::REWARD_MARGIN), mean(names::CAPTION_LENGTH)), (0.25, 2.0));
        // (1 / 2, -2 / 4, 0 / 1, -1 / 1)
        assert_eq!(mean(names::KL), -0.25);
    }
}
