//! Sampling of captions, token by token.

use tch::{Kind, Tensor};

use super::beam::{Hypothesis, NextTokenLogits, score};
use super::generation_config::GenerationConfig;

/// Samples `generation.beams` independent captions for each of `images` images from the model's
/// distribution.
pub fn sample(model: &mut dyn NextTokenLogits, images: usize, generation: &GenerationConfig) -> Vec<Vec<Hypothesis>> {
    let rows = images * generation.beams;
    let mut captions: Vec<Vec<i64>> = vec![Vec::new(); rows];
    let mut sums = vec![0.0_f32; rows];
    let has_ended = |caption: &Vec<i64>| caption.last() == Some(&generation.eos_token_id);
    for _ in 1..generation.max_length {
        if captions.iter().all(has_ended) {
            break;
        }
        // Captions that have ended stay in the batch: additional rows cost less than changing
        // shapes.
        let last: Vec<i64> =
            captions.iter().map(|caption| *caption.last().unwrap_or(&generation.bos_token_id)).collect();
        let log_probabilities = model.next_token_logits(&last, None).log_softmax(-1, Kind::Float);
        let tokens = log_probabilities.exp().multinomial(1, false);
        let chosen_log_probabilities = log_probabilities.gather(1, &tokens, false);
        let flat = |tensor: &Tensor| tensor.squeeze_dim(1);
        let tokens = Vec::<i64>::try_from(flat(&tokens)).expect("tokens are i64");
        let chosen_log_probabilities =
            Vec::<f32>::try_from(flat(&chosen_log_probabilities)).expect("log-probabilities are f32");
        for (row, caption) in captions.iter_mut().enumerate().filter(|(_, caption)| !has_ended(caption)) {
            caption.push(tokens[row]);
            sums[row] += chosen_log_probabilities[row];
        }
    }
    let mut hypotheses = captions
        .into_iter()
        .zip(sums)
        .map(|(tokens, sum)| Hypothesis { score: score(sum, tokens.len(), generation), tokens });
    (0..images).map(|_| hypotheses.by_ref().take(generation.beams).collect()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    const END: i64 = 0;

    /// A model whose distribution does not depend on the earlier tokens: the end token has
    /// probability 1/2, token 1 has 1/3, and token 2 has 1/6.
    struct ConstantModel {
        rows: i64,
    }

    impl NextTokenLogits for ConstantModel {
        fn next_token_logits(&mut self, tokens: &[i64], beam_indices: Option<&[i64]>) -> Tensor {
            assert!(tokens.len() as i64 == self.rows && beam_indices.is_none());
            Tensor::from_slice(&[1.0_f32 / 2.0, 1.0 / 3.0, 1.0 / 6.0])
                .log()
                .repeat([self.rows, 1])
                .to_device(testing::device())
        }
    }

    #[test]
    fn captions_are_sampled_with_their_probabilities() {
        tch::manual_seed(3);
        let (images, samples_per_image) = (2, 4000);
        let samples = images * samples_per_image;
        let generation = GenerationConfig {
            beams: samples_per_image,
            max_length: 4,
            length_penalty: 0.0,
            cut_length_includes_bos: false,
            bos_token_id: 3,
            eos_token_id: END,
        };
        let actual = sample(&mut ConstantModel { rows: samples as i64 }, images, &generation);
        assert_eq!(actual.iter().map(Vec::len).collect::<Vec<_>>(), [samples_per_image; 2]);
        let all = || actual.iter().flatten();
        assert!(all().all(|caption| caption.tokens.len() == 3 || caption.tokens.last() == Some(&END)));
        assert!(all().all(|caption| caption.tokens.iter().rev().skip(1).all(|&token| token != END)));
        for (tokens, probability) in [(&[END][..], 0.5), (&[1, END], 1.0 / 6.0), (&[1, 2, END], 1.0 / 36.0)] {
            let matching: Vec<_> = all().filter(|caption| caption.tokens == tokens).collect();
            let frequency = matching.len() as f64 / samples as f64;
            let deviation = f64::sqrt(probability * (1.0 - probability) / samples as f64);
            assert!((frequency - probability).abs() < 4.0 * deviation, "{tokens:?}: {frequency} is not {probability}");
            assert!((matching[0].score - f64::ln(probability)).abs() < 1e-5);
        }
    }
}
