//! Cross-entropy with teacher forcing: the negative log-probability of each token of a reference
//! caption, averaged over tokens. The end token counts. A caption that was cut at
//! `captioner.max_target_length` has no end token.

use std::collections::BTreeMap;

use config::CrossEntropy;
use tch::{Kind, Tensor};

use super::step_context::{StageBatch, StepContext};
use super::{LossError, LossOutput, Objective};
use crate::captioner::{CaptionBatch, Captioner};
use crate::nn::DropoutMode;

impl Objective for CrossEntropy {
    fn compute_loss(&self, batch: &StageBatch<'_>, context: &StepContext<'_>) -> Result<LossOutput, LossError> {
        let vocabulary = &context.models.captioner_vocabulary;
        let max_length = context.max_target_length;
        let texts = context.reference_captions(batch).map(|text| vocabulary.encode_target(text, max_length));
        let captions = CaptionBatch::new(&texts.collect::<Vec<_>>(), 1, context.models.device());
        let hidden = context.hidden_states(batch);
        Ok(compute_loss(&context.models.captioner, &hidden, &captions, context.mode))
    }
}

/// The loss of `captions`, one for each image of `vision` `[images, vision tokens, vision width]`.
#[must_use]
pub fn compute_loss(captioner: &Captioner, vision: &Tensor, captions: &CaptionBatch, mode: DropoutMode) -> LossOutput {
    let log_probabilities = captioner.token_log_probabilities(vision, captions, mode).values;
    let loss = -log_probabilities.sum(Kind::Float);
    let (loss_sum, tokens) = (loss.double_value(&[]), log_probabilities.numel());
    LossOutput {
        loss,
        loss_sum,
        weight: tokens as f64,
        tokens: tokens as u64,
        example: None,
        summaries: BTreeMap::new(),
    }
}

#[cfg(test)]
mod tests {
    use config::{Preset, ProjectionInit};
    use tch::{Device, no_grad};
    use tokenizer::Vocabulary;

    use super::*;
    use crate::captioner::preset;

    const VISION_TOKENS: usize = 4;
    const VISION_WIDTH: usize = 8;
    const CAPTION: &str = "a red circle and a blue square above a green star and a small grey cross";

    fn captioner(vocabulary: &Vocabulary) -> Captioner {
        let config = preset(Preset::Tiny, VISION_WIDTH, VISION_TOKENS, vocabulary.size() as usize);
        let seed = 1;
        Captioner::new(config, ProjectionInit::default(), seed, Device::Cpu)
    }

    fn vision() -> Tensor {
        Tensor::ones([1, VISION_TOKENS as i64, VISION_WIDTH as i64], (Kind::Float, Device::Cpu)) * 0.3
    }

    fn captions(tokens: Vec<i64>) -> CaptionBatch {
        let captions_per_image = 1;
        CaptionBatch::new(&[tokens], captions_per_image, Device::Cpu)
    }

    #[test]
    fn the_loss_of_a_cut_target_is_that_of_its_first_tokens() {
        let vocabulary = Vocabulary::of_corpus([CAPTION]);
        let captioner = captioner(&vocabulary);
        let uncut = captions(vocabulary.encode(CAPTION, 77));
        let token_values = captioner.token_log_probabilities(&vision(), &uncut, DropoutMode::Evaluate).values;
        let token_values = Vec::<f64>::try_from(token_values.to_kind(Kind::Double)).unwrap();
        // 16 words and the end token.
        assert_eq!(token_values.len(), 17);
        // The maximal length includes the begin token, which has no loss.
        for (max_length, tokens) in [(6, 5), (16, 15), (17, 16), (18, 17), (77, 17)] {
            let target = captions(vocabulary.encode_target(CAPTION, max_length));
            let actual = compute_loss(&captioner, &vision(), &target, DropoutMode::Evaluate);
            let expected = -token_values[..tokens].iter().sum::<f64>();
            assert!((actual.loss_sum - expected).abs() < 1e-4, "{max_length}: {} and {expected}", actual.loss_sum);
            assert_eq!((actual.weight, actual.tokens), (tokens as f64, tokens as u64), "{max_length}");
        }
    }

    #[test]
    fn with_a_uniform_distribution_the_loss_per_token_is_the_logarithm_of_the_vocabulary_size() {
        let vocabulary = Vocabulary::of_corpus([CAPTION]);
        let captioner = captioner(&vocabulary);
        // All logits are 0.
        no_grad(|| _ = captioner.parameters().flat().shallow_clone().zero_());
        captioner.parameters().refresh_working_copies();
        let long = [CAPTION; 30].join(" ");
        // The begin token and 76 tokens with a loss.
        let target = captions(vocabulary.encode_target(&long, 77));
        let actual = compute_loss(&captioner, &vision(), &target, DropoutMode::Evaluate);
        let expected = 76.0 * (vocabulary.size() as f64).ln();
        assert!((actual.loss_sum - expected).abs() < 1e-3, "{} and {expected}", actual.loss_sum);
        assert_eq!(actual.weight, 76.0);
    }
}
