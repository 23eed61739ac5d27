//! Cross-entropy with teacher forcing: the negative log-probability of each token of a reference
//! caption, averaged over tokens. The end token counts, unless the caption was cut at
//! `captioner.max_target_length`: then it has none.

use std::collections::BTreeMap;

use tch::{Kind, Tensor};

use super::Outcome;
use crate::captioner::{Captioner, Captions};
use crate::nn::Mode;

/// The loss of `captions`, one for each image of `vision`.
#[must_use]
pub fn outcome(captioner: &Captioner, vision: &Tensor, captions: &Captions, mode: Mode) -> Outcome {
    let tokens = captioner.token_log_probabilities(vision, captions, mode).values;
    let loss = -tokens.sum(Kind::Float);
    let (loss_sum, weight) = (loss.double_value(&[]), tokens.numel() as f64);
    Outcome { loss, loss_sum, weight, tokens: tokens.numel() as u64, example: None, summaries: BTreeMap::new() }
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
        let architecture = preset(Preset::Tiny, 8, 4, vocabulary.size() as usize);
        Captioner::new(architecture, ProjectionInit::default(), 1, Device::Cpu)
    }

    fn vision() -> Tensor {
        Tensor::ones([1, 4, 8], (Kind::Float, Device::Cpu)) * 0.3
    }

    fn captions(tokens: Vec<i64>) -> Captions {
        Captions::new(&[tokens], 1, Device::Cpu)
    }

    #[test]
    fn a_cut_target_loses_its_first_tokens_alone() {
        let vocabulary = Vocabulary::of_corpus([CAPTION]);
        let captioner = captioner(&vocabulary);
        let whole = captions(vocabulary.encode(CAPTION, 77));
        let each = captioner.token_log_probabilities(&vision(), &whole, Mode::Evaluate).values;
        let each = Vec::<f64>::try_from(each.to_kind(Kind::Double)).unwrap();
        // 16 words and the end token.
        assert_eq!(each.len(), 17);
        for (most, learned) in [(6, 5), (16, 15), (17, 16), (18, 17), (77, 17)] {
            let target = captions(vocabulary.encode_target(CAPTION, most));
            let found = outcome(&captioner, &vision(), &target, Mode::Evaluate);
            let expected = -each[..learned].iter().sum::<f64>();
            assert!((found.loss_sum - expected).abs() < 1e-4, "{most}: {} and {expected}", found.loss_sum);
            assert_eq!((found.weight, found.tokens), (learned as f64, learned as u64), "{most}");
        }
    }

    #[test]
    fn a_captioner_that_knows_nothing_loses_the_logarithm_of_the_vocabulary_a_token() {
        let vocabulary = Vocabulary::of_corpus([CAPTION]);
        let captioner = captioner(&vocabulary);
        // All logits are 0.
        no_grad(|| _ = captioner.parameters().flat().shallow_clone().zero_());
        captioner.parameters().changed();
        let long = [CAPTION; 30].join(" ");
        let target = captions(vocabulary.encode_target(&long, 77));
        let found = outcome(&captioner, &vision(), &target, Mode::Evaluate);
        let expected = 76.0 * (vocabulary.size() as f64).ln();
        assert!((found.loss_sum - expected).abs() < 1e-3, "{} and {expected}", found.loss_sum);
        assert_eq!(found.weight, 76.0);
    }
}
