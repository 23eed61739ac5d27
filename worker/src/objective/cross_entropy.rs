//! Cross-entropy with teacher forcing: the negative log-probability of each token of a reference
//! caption, averaged over tokens. The end token counts. A caption that was cut at
//! `captioner.max_target_length` has no end token.

use std::collections::BTreeMap;

use tch::{Kind, Tensor};

use super::LossOutput;
use crate::captioner::{CaptionBatch, Captioner};
use crate::nn::DropoutMode;

/// The loss of `captions`, one for each image of `vision` `[images, vision tokens, vision width]`.
#[must_use]
pub fn compute_loss(captioner: &Captioner, vision: &Tensor, captions: &CaptionBatch, mode: DropoutMode) -> LossOutput {
    let tokens = captioner.token_log_probabilities(vision, captions, mode).values;
    let loss = -tokens.sum(Kind::Float);
    let (loss_sum, weight) = (loss.double_value(&[]), tokens.numel() as f64);
    LossOutput { loss, loss_sum, weight, tokens: tokens.numel() as u64, example: None, summaries: BTreeMap::new() }
}

#[cfg(test)]
mod tests {
    use config::{Preset, ProjectionInit};
    use tch::{Device, no_grad};
    use tokenizer::Vocabulary;

    use super::*;
    use crate::captioner::preset;

    const CAPTION: &str = "a red circle and a blue square above a green star and a small grey cross";

    fn captioner(vocabulary: &Vocabulary) -> Captioner {
        let config = preset(Preset::Tiny, 8, 4, vocabulary.size() as usize);
        Captioner::new(config, ProjectionInit::default(), 1, Device::Cpu)
    }

    fn vision() -> Tensor {
        Tensor::ones([1, 4, 8], (Kind::Float, Device::Cpu)) * 0.3
    }

    fn captions(tokens: Vec<i64>) -> CaptionBatch {
        CaptionBatch::new(&[tokens], 1, Device::Cpu)
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
        let target = captions(vocabulary.encode_target(&long, 77));
        let actual = compute_loss(&captioner, &vision(), &target, DropoutMode::Evaluate);
        let expected = 76.0 * (vocabulary.size() as f64).ln();
        assert!((actual.loss_sum - expected).abs() < 1e-3, "{} and {expected}", actual.loss_sum);
        assert_eq!(actual.weight, 76.0);
    }
}
