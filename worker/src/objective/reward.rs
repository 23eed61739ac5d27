//! The reward model: a candidate's reward is a weighted sum of evaluators' scores, CIDEr-D against
//! the image's captions, and a penalty for a missing end token.

use caption_metrics::cider::{Candidate, CiderReward};
use config::{CutCandidates, EvaluatorScore, Reward, Rewards, TextReading};
use run_assets::Evaluator;
use tch::{Kind, Tensor};
use tokenizer::Vocabulary;

use crate::clip::{self, Clip};
use crate::run_models::RunModels;

/// The encoded images of a batch.
#[derive(Clone, Copy)]
pub struct EncodedImages<'a> {
    /// Hidden states of the captioner's vision encoder, `[images, vision tokens, vision width]`.
    pub hidden: &'a Tensor,
    /// Unit embeddings by each evaluator of the reward, each `[images, embedding]`.
    pub embeddings: &'a [Tensor],
    /// The indices of the images in the training split.
    pub indices: &'a [usize],
}

/// Computes the rewards of candidates.
#[derive(Clone, Copy)]
pub struct RewardModel<'a> {
    /// The evaluators with a weight other than 0, in the order of [`EncodedImages::embeddings`].
    pub evaluators: &'a [EvaluatorReward<'a>],
    /// CIDEr-D with the training captions as references; none if its weight is 0.
    pub cider: Option<&'a CiderReward>,
    /// The weight of each reward. Evaluators that are not listed have weight 0.
    pub weights: &'a Rewards,
}

/// The reward that one evaluator gives: its score of a candidate.
#[derive(Clone, Copy)]
pub struct EvaluatorReward<'a> {
    /// The name of the reward.
    pub name: &'a str,
    /// The CLIP model that compares texts with images.
    pub clip: &'a Clip,
    /// The evaluator's vocabulary.
    pub vocabulary: &'a Vocabulary,
    /// The score to which its cosines are converted.
    pub score: EvaluatorScore,
    /// The text before each candidate, e.g. "A photo depicts".
    pub prefix: &'a str,
    /// How candidates are tokenized for the evaluator.
    pub text: TextReading,
    /// How candidates without an end token are tokenized.
    pub cut_candidates: CutCandidates,
}

impl<'a> EvaluatorReward<'a> {
    /// The reward by `evaluator` of a run with these models.
    pub fn new(evaluator: &'a Evaluator, models: &'a RunModels) -> Self {
        Self {
            name: &evaluator.name,
            clip: models.clip(evaluator.clip_index),
            vocabulary: &evaluator.vocabulary,
            score: evaluator.score,
            prefix: &evaluator.settings.reward_prefix,
            text: evaluator.settings.reward_text,
            cut_candidates: evaluator.settings.cut_candidates,
        }
    }

    /// The scores of candidates, equally many for each image, `[images, candidates]`. `embeddings`
    /// are the image embeddings, `[images, embedding]`.
    fn scores(&self, embeddings: &Tensor, candidates: &[Vec<Candidate>]) -> Tensor {
        let max_length = self.clip.config().text.context_length;
        // The evaluator's tokens may differ from the captioner's, so candidates are tokenized
        // again.
        let encode = |Candidate { text, has_end_token }: &Candidate| match (has_end_token, self.cut_candidates) {
            // The published code reads the embedding of a cut candidate at the begin token, which
            // attends to no other token.
            (false, CutCandidates::AsReleased) => vec![self.vocabulary.begin_token()],
            _ => clip::tokenize(self.vocabulary, self.text, &format!("{}{text}", self.prefix), max_length),
        };
        let texts: Vec<Vec<i64>> = candidates.iter().flatten().map(encode).collect();
        let (images, width) = embeddings.size2().expect("embeddings are [images, embedding]");
        let per_image = candidates.first().map_or(1, Vec::len);
        let texts = self.clip.text.embed(&texts, per_image).view([images, -1, width]);
        clip::clip_score(&embeddings.unsqueeze(1), &texts, self.score.factor())
    }
}

impl RewardModel<'_> {
    /// The rewards of each image's candidates, equally many for all, `[images, candidates]`.
    pub fn rewards(&self, images: &EncodedImages<'_>, candidates: &[Vec<Candidate>]) -> Tensor {
        let count = images.indices.len() as i64;
        let per_image = candidates.first().map_or(0, Vec::len) as i64;
        let mut total = Tensor::zeros([count, per_image], (Kind::Float, images.hidden.device()));
        for (reward, &weight) in self.weights {
            let value = match reward {
                Reward::Evaluator(name) => {
                    let mut evaluators = self.evaluators.iter().zip(images.embeddings);
                    let Some((evaluator, embeddings)) = evaluators.find(|(evaluator, _)| evaluator.name == name) else {
                        continue;
                    };
                    evaluator.scores(embeddings, candidates)
                }
                Reward::Cider => self.cider_rewards(images, candidates),
                Reward::MissingEnd => missing_end_flags(candidates).to_device(total.device()),
            };
            total += value.view([count, per_image]) * weight;
        }
        total
    }

    /// CIDEr-D of the candidates, `[images * candidates]`.
    fn cider_rewards(&self, images: &EncodedImages<'_>, candidates: &[Vec<Candidate>]) -> Tensor {
        let cider = self.cider.expect("a stage with a reward by CIDEr-D has the training captions");
        let image_rewards = |(&image, candidates): (&usize, &Vec<Candidate>)| cider.rewards(image, candidates);
        let rewards = images.indices.iter().zip(candidates).flat_map(image_rewards);
        let rewards: Vec<f32> = rewards.map(|reward| reward as f32).collect();
        Tensor::from_slice(&rewards).to_device(images.hidden.device())
    }
}

/// 1 for each candidate without an end token, 0 for the others, `[images * candidates]`.
fn missing_end_flags(candidates: &[Vec<Candidate>]) -> Tensor {
    let missing: Vec<f32> =
        candidates.iter().flatten().map(|candidate| f32::from(u8::from(!candidate.has_end_token))).collect();
    Tensor::from_slice(&missing)
}

#[cfg(test)]
mod tests {
    use config::{Preset, Rewards};
    use tch::Device;

    use super::*;

    fn by_pac_s() -> Reward {
        EvaluatorScore::PacS.into()
    }

    fn candidate(text: &str, has_end_token: bool) -> Candidate {
        Candidate { text: text.to_owned(), has_end_token }
    }

    /// A CLIP that two evaluators share, and CIDEr-D with the captions of two images.
    struct Fixture {
        vocabulary: Vocabulary,
        clip: Clip,
        cider: CiderReward,
    }

    impl Fixture {
        fn new() -> Self {
            let vocabulary = Vocabulary::of_corpus(["a red circle and a blue star"]);
            let clip = Clip::new(clip::preset(Preset::Tiny, vocabulary.pad_token() as usize), 1, Device::Cpu);
            let cider = CiderReward::new(&[vec!["a red circle".to_owned()], vec!["a blue star".to_owned()]]);
            Self { vocabulary, clip, cider }
        }

        /// Rewards of two images with two candidates each, by `weights`.
        fn rewards(&self, weights: &Rewards, candidates: &[Vec<Candidate>]) -> Vec<Vec<f64>> {
            self.rewards_with(CutCandidates::Closed, weights, candidates)
        }

        fn rewards_with(
            &self,
            cut_candidates: CutCandidates,
            weights: &Rewards,
            candidates: &[Vec<Candidate>],
        ) -> Vec<Vec<f64>> {
            let evaluator = |name, score| EvaluatorReward {
                name,
                clip: &self.clip,
                vocabulary: &self.vocabulary,
                score,
                prefix: "",
                text: TextReading::AsIs,
                cut_candidates,
            };
            let evaluators = [evaluator("pac_s", EvaluatorScore::PacS), evaluator("judge", EvaluatorScore::ClipS)];
            let model = RewardModel { evaluators: &evaluators, cider: Some(&self.cider), weights };
            let embedding = self.clip.config().embedding as i64;
            let embeddings = || Tensor::ones([2, embedding], (Kind::Float, Device::Cpu)) / (embedding as f64).sqrt();
            // The second evaluator's image embeddings are the negated ones of the first.
            let embeddings = [embeddings(), -embeddings()];
            let images = EncodedImages { hidden: &embeddings[0], embeddings: &embeddings, indices: &[0, 1] };
            let rewards = tch::no_grad(|| model.rewards(&images, candidates));
            Vec::try_from(rewards).expect("rewards are [images, candidates]")
        }
    }

    #[test]
    fn the_penalty_of_a_missing_end_adds_to_other_rewards() {
        let candidates = [
            vec![candidate("a red circle", true), candidate("a blue star and a", false)],
            vec![candidate("a red", false), candidate("", true)],
        ];
        let fixture = Fixture::new();
        for other in [by_pac_s(), Reward::Cider] {
            let without = fixture.rewards(&Rewards::from([(other.clone(), 2.0)]), &candidates);
            let with = fixture.rewards(&Rewards::from([(other.clone(), 2.0), (Reward::MissingEnd, -0.5)]), &candidates);
            for (image, penalties) in [[0.0, 0.5], [0.5, 0.0]].into_iter().enumerate() {
                for (number, penalty) in penalties.into_iter().enumerate() {
                    let difference = without[image][number] - with[image][number];
                    assert!((difference - penalty).abs() < 1e-6, "{other:?}: {without:?}, {with:?}");
                }
            }
        }
    }

    #[test]
    fn each_evaluator_uses_its_own_weight_and_embeddings() {
        let candidates = [
            vec![candidate("a red circle", true), candidate("a blue star", true)],
            vec![candidate("a red star", true), candidate("a circle", true)],
        ];
        let fixture = Fixture::new();
        let rewards = |weights: &[(&str, f64)]| {
            let weights = weights.iter().map(|(name, weight)| (Reward::from((*name).to_owned()), *weight)).collect();
            fixture.rewards(&weights, &candidates).concat()
        };
        let (pac_s, judge) = (rewards(&[("pac_s", 1.0)]), rewards(&[("judge", 1.0)]));
        // With negated embeddings, one evaluator's score is positive where the other's is not.
        assert!(pac_s.iter().zip(&judge).all(|(one, other)| (*one > 0.0) != (*other > 0.0)), "{pac_s:?}, {judge:?}");
        let both = rewards(&[("pac_s", 0.5), ("judge", 2.0), ("cider", 0.0)]);
        for (both, (pac_s, judge)) in both.iter().zip(pac_s.iter().zip(&judge)) {
            assert!((both - (0.5 * pac_s + 2.0 * judge)).abs() < 1e-6);
        }
        assert_eq!(rewards(&[("another", 1.0)]), [0.0; 4]);
    }

    #[test]
    fn as_released_all_cut_candidates_of_an_image_get_the_same_reward() {
        let weights = Rewards::from([(by_pac_s(), 1.0)]);
        let candidates = |has_end_token: bool| {
            [
                vec![candidate("a red circle", true), candidate("a blue star and a", has_end_token)],
                vec![candidate("a red", has_end_token), candidate("a blue star", true)],
            ]
        };
        let fixture = Fixture::new();
        let closed = fixture.rewards(&weights, &candidates(false));
        assert_eq!(
            closed,
            fixture.rewards(&weights, &candidates(true)),
            "cut candidates are rewarded as if they had ended"
        );
        let as_released = fixture.rewards_with(CutCandidates::AsReleased, &weights, &candidates(false));
        assert_eq!(as_released[0][1], as_released[1][0], "the images are the same, and the texts are empty");
        assert_eq!((as_released[0][0], as_released[1][1]), (closed[0][0], closed[1][1]));
        let ended = fixture.rewards_with(CutCandidates::AsReleased, &weights, &candidates(true));
        assert_eq!(ended, closed);
    }

    #[test]
    fn cider_gives_a_higher_reward_to_candidates_with_an_end_token() {
        let candidates = [
            vec![candidate("a red circle", true), candidate("a red circle", false)],
            vec![candidate("a blue star", true), candidate("a blue star", false)],
        ];
        let actual = Fixture::new().rewards(&Rewards::from([(Reward::Cider, 1.0)]), &candidates);
        for rewards in actual {
            assert!((rewards[0] - 10.0).abs() < 1e-5 && rewards[1] < 9.0, "{rewards:?}");
        }
    }
}
