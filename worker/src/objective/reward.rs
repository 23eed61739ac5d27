//! What a candidate is worth: the evaluator's score of it, its CIDEr-D against the image's captions, or a weighted sum.

use runfile::{EvaluatorScore, Reward, Rewards};
use scoring::cider::Cider;
use tch::{Kind, Tensor};
use tokenizer::Vocabulary;

use super::candidates::Images;
use crate::clip::{self, Clip};

/// Rewards candidates.
#[derive(Clone, Copy)]
pub struct Judge<'a> {
    /// Scores a text against an image.
    pub evaluator: &'a Clip,
    /// Of the evaluator.
    pub vocabulary: &'a Vocabulary,
    /// Which score that is.
    pub score: EvaluatorScore,
    /// Put before every candidate that the evaluator reads.
    pub prefix: &'a str,
    /// The training captions; there where CIDEr-D is rewarded.
    pub cider: Option<&'a Cider>,
    /// What is rewarded.
    pub weights: &'a Rewards,
}

impl Judge<'_> {
    /// The rewards of each image's candidates, equally many for all, `[images, candidates]`.
    pub fn rewards(&self, images: &Images<'_>, candidates: &[Vec<String>]) -> Tensor {
        let count = images.numbers.len() as i64;
        let each = candidates.first().map_or(0, Vec::len) as i64;
        let mut total = Tensor::zeros([count, each], (Kind::Float, images.embeddings.device()));
        for (reward, &weight) in self.weights {
            let value = match reward {
                Reward::ClipS | Reward::PacS => self.evaluator_scores(images.embeddings, candidates),
                Reward::Cider => self.cider(images, candidates),
            };
            total += value.view([count, each]) * weight;
        }
        total
    }

    /// `[images, candidates]`.
    fn evaluator_scores(&self, embeddings: &Tensor, candidates: &[Vec<String>]) -> Tensor {
        let most = self.evaluator.architecture().text.context_length;
        // Through text, as any evaluator would read it: its tokens need not be the captioner's.
        let texts = candidates.iter().flatten().map(|text| format!("{}{text}", self.prefix));
        let texts: Vec<Vec<i64>> = texts.map(|text| self.vocabulary.encode(&text, most)).collect();
        let (images, width) = embeddings.size2().expect("embeddings are [images, embedding]");
        let each = candidates.first().map_or(1, Vec::len);
        let texts = self.evaluator.text.embed(&texts, each).view([images, -1, width]);
        clip::score(&embeddings.unsqueeze(1), &texts, self.score.factor())
    }

    fn cider(&self, images: &Images<'_>, candidates: &[Vec<String>]) -> Tensor {
        let cider = self.cider.expect("a stage that rewards CIDEr-D begins with the training captions");
        let rewards = images.numbers.iter().zip(candidates).flat_map(|(&image, texts)| cider.rewards(image, texts));
        let rewards: Vec<f32> = rewards.map(|reward| reward as f32).collect();
        Tensor::from_slice(&rewards).to_device(images.embeddings.device())
    }
}
