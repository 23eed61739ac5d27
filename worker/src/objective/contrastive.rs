//! Symmetric InfoNCE (Radford et al. 2021): each image has to identify its caption among those of
//! the whole batch, and each caption its image. PAC-S (Sarto et al. 2023) adds two weighted losses
//! of the same form: generated images with the real captions, and the real images with generated
//! captions.

use std::collections::BTreeMap;

use tch::{Kind, Tensor, no_grad};

use super::Outcome;
use crate::collective::{Collective, CollectiveError};

/// This rank's unit embeddings, all `[share, embedding]`. The share may be empty.
pub struct Pairs {
    /// The number of the captions' tokens.
    pub tokens: u64,
    /// Embeddings of the images.
    pub images: Tensor,
    /// Embeddings of their captions.
    pub texts: Tensor,
    /// Embeddings of generated images for the same captions, and the weight of their loss.
    pub generated_images: Option<(Tensor, f64)>,
    /// Embeddings of generated captions for the same images, and the weight of their loss.
    pub generated_texts: Option<(Tensor, f64)>,
}

/// The loss of this rank's pairs against those of all ranks; `scale` is the factor from cosine to
/// logit.
///
/// Each rank computes the loss of the whole batch, in which only its own embeddings have gradients.
/// The sum of the ranks' gradients is then the exact gradient, including negatives on other ranks.
///
/// # Errors
/// The collective has failed.
pub fn outcome(pairs: &Pairs, scale: &Tensor, collective: &dyn Collective) -> Result<Outcome, CollectiveError> {
    let share = pairs.images.size()[0];
    let (images, texts) = (gather(&pairs.images, collective)?, gather(&pairs.texts, collective)?);
    // All ranks compute the same gradient of the scale, and their gradients will be summed.
    let part = 1.0 / collective.world_size() as f64;
    let scale = scale * part + scale.detach() * (1.0 - part);
    let of =
        |images: &Tensor, texts: &Tensor| symmetric_cross_entropy(&(images.matmul(&texts.transpose(0, 1)) * &scale));
    let mut loss = of(&images, &texts);
    if let Some((generated, weight)) = &pairs.generated_images {
        loss += of(&gather(generated, collective)?, &texts) * *weight;
    }
    if let Some((generated, weight)) = &pairs.generated_texts {
        loss += of(&images, &gather(generated, collective)?) * *weight;
    }
    let batch = images.size()[0];
    let loss_sum = if batch == 0 { 0.0 } else { loss.double_value(&[]) * share as f64 / batch as f64 };
    Ok(Outcome {
        loss,
        loss_sum,
        weight: share as f64,
        tokens: pairs.tokens,
        example: None,
        summaries: BTreeMap::new(),
    })
}

/// The sum over pairs of half the cross-entropy of rows and half that of columns; `logits` is
/// `[pairs, pairs]`.
fn symmetric_cross_entropy(logits: &Tensor) -> Tensor {
    let own = logits.diagonal(0, 0, 1);
    let rows = logits.logsumexp(1, false) - &own;
    let columns = logits.logsumexp(0, false) - &own;
    (rows + columns).sum(Kind::Float) * 0.5
}

/// The rows of all ranks, in order of rank; only this rank's have gradients. Shares may differ in
/// size, and may be empty.
fn gather(own: &Tensor, collective: &dyn Collective) -> Result<Tensor, CollectiveError> {
    let share = own.size()[0];
    let counts = collective.all_gather(&Tensor::from_slice(&[share]).to_device(own.device()))?;
    let counts: Vec<i64> = counts.iter().map(|count| count.int64_value(&[0])).collect();
    let most = counts.iter().copied().max().unwrap_or(share);
    if most == 0 {
        return Ok(own.shallow_clone());
    }
    let padded = no_grad(|| own.detach().constant_pad_nd([0, 0, 0, most - share]));
    let mut parts = collective.all_gather(&padded)?;
    for (part, &count) in parts.iter_mut().zip(&counts) {
        *part = part.narrow(0, 0, count);
    }
    parts[collective.rank()] = own.shallow_clone();
    Ok(Tensor::cat(&parts, 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn the_loss_is_that_of_a_double_precision_computation_by_hand() {
        let logits: [[f64; 3]; 3] = [[2.0, -1.0, 0.5], [0.0, 1.5, 1.0], [-0.5, 0.25, 3.0]];
        let mut expected = 0.0;
        for (i, row) in logits.iter().enumerate() {
            let total = |scores: [f64; 3]| scores.iter().map(|x| x.exp()).sum::<f64>().ln();
            let column = logits.map(|row| row[i]);
            expected += 0.5 * (total(*row) - row[i]) + 0.5 * (total(column) - row[i]);
        }
        let flat: Vec<f64> = logits.into_iter().flatten().collect();
        let loss = symmetric_cross_entropy(&Tensor::from_slice(&flat).view([3, 3]).to_device(testing::device()));
        assert!((loss.double_value(&[]) - expected).abs() < 1e-6);
    }

    /// One of two ranks, which gathers tensors that the test provides for the other.
    struct Pair {
        rank: usize,
        other: std::cell::RefCell<Vec<Tensor>>,
    }

    impl Collective for Pair {
        fn rank(&self) -> usize {
            self.rank
        }
        fn world_size(&self) -> usize {
            2
        }
        fn all_reduce(&self, _: &Tensor) -> Result<(), CollectiveError> {
            Ok(())
        }
        fn broadcast(&self, _: &Tensor, _: usize) -> Result<(), CollectiveError> {
            Ok(())
        }
        fn all_gather(&self, tensor: &Tensor) -> Result<Vec<Tensor>, CollectiveError> {
            let mut both = vec![self.other.borrow_mut().remove(0)];
            both.insert(self.rank, tensor.shallow_clone());
            Ok(both)
        }
    }

    #[test]
    fn the_ranks_gradients_add_up_to_that_of_one_rank_with_the_whole_batch() {
        tch::manual_seed(5);
        // Images, texts, generated images, generated texts.
        let all: [Tensor; 4] = std::array::from_fn(|_| Tensor::randn([5, 4], testing::floats()));
        let gradients = |tensors: [Tensor; 4], collective: &dyn Collective| {
            let leaves = tensors.map(|tensor| tensor.detach().copy().set_requires_grad(true));
            let scale = Tensor::from(3.0_f32).to_device(testing::device()).set_requires_grad(true);
            let [images, texts, generated_images, generated_texts] = [0, 1, 2, 3].map(|i| leaves[i].shallow_clone());
            let pairs = Pairs {
                tokens: 0,
                images,
                texts,
                generated_images: Some((generated_images, 0.5)),
                generated_texts: Some((generated_texts, 0.25)),
            };
            let outcome = outcome(&pairs, &scale, collective).unwrap();
            outcome.loss.backward();
            (leaves.map(|leaf| leaf.grad()), scale.grad(), outcome.loss_sum)
        };
        let whole = gradients([0, 1, 2, 3].map(|i| all[i].shallow_clone()), &crate::collective::Solo);
        let close = |a: &Tensor, b: &Tensor| assert!(a.allclose(b, 1e-5, 1e-6, false), "{a} is not {b}");
        // Three samples here and two there; then all here and none there.
        for sizes in [[3_i64, 2], [5, 0]] {
            let most = sizes[0];
            let part = |tensor: &Tensor, rank: usize| tensor.narrow(0, sizes[0] * rank as i64, sizes[rank]);
            let shares = [0, 1].map(|rank| {
                let other = 1 - rank;
                let count = || Tensor::from_slice(&[sizes[other]]).to_device(testing::device());
                let padded = |tensor: &Tensor| part(tensor, other).constant_pad_nd([0, 0, 0, most - sizes[other]]);
                let queue: Vec<Tensor> = all.iter().flat_map(|tensor| [count(), padded(tensor)]).collect();
                gradients([0, 1, 2, 3].map(|i| part(&all[i], rank)), &Pair { rank, other: queue.into() })
            });
            for (i, expected) in whole.0.iter().enumerate() {
                let found = [0, 1].map(|rank: usize| match sizes[rank] {
                    0 => Tensor::zeros([0, 4], testing::floats()),
                    _ => shares[rank].0[i].shallow_clone(),
                });
                close(&Tensor::cat(&found, 0), expected);
            }
            close(&(&shares[0].1 + &shares[1].1), &whole.1);
            assert!((shares[0].2 + shares[1].2 - whole.2).abs() < 1e-4);
        }
    }

    #[test]
    fn a_batch_without_samples_has_neither_loss_nor_gradient() {
        let nothing = || Tensor::zeros([0, 4], testing::floats());
        let scale = Tensor::from(3.0_f32).to_device(testing::device()).set_requires_grad(true);
        let pairs = Pairs {
            tokens: 0,
            images: nothing(),
            texts: nothing(),
            generated_images: Some((nothing(), 0.5)),
            generated_texts: Some((nothing(), 0.25)),
        };
        // The other rank's share is empty, too.
        let queue = (0..4).map(|_| Tensor::from_slice(&[0_i64]).to_device(testing::device())).collect::<Vec<_>>();
        let outcome = outcome(&pairs, &scale, &Pair { rank: 1, other: queue.into() }).unwrap();
        outcome.loss.backward();
        assert_eq!((outcome.loss_sum, outcome.weight, scale.grad().double_value(&[])), (0.0, 0.0, 0.0));
    }

    #[test]
    fn generated_pairs_are_losses_of_their_own() {
        tch::manual_seed(6);
        let random = || Tensor::randn([4, 3], testing::floats());
        let (images, texts, drawn, written) = (random(), random(), random(), random());
        let clone = |tensor: &Tensor| tensor.shallow_clone();
        let loss = |images: &Tensor, texts: &Tensor, generated_images, generated_texts| {
            let pairs =
                Pairs { tokens: 0, images: clone(images), texts: clone(texts), generated_images, generated_texts };
            outcome(&pairs, &Tensor::from(2.0_f32).to_device(testing::device()), &crate::collective::Solo)
                .unwrap()
                .loss_sum
        };
        let found = loss(&images, &texts, Some((clone(&drawn), 0.05)), Some((clone(&written), 0.1)));
        let plain = |images: &Tensor, texts: &Tensor| loss(images, texts, None, None);
        let expected = plain(&images, &texts) + 0.05 * plain(&drawn, &texts) + 0.1 * plain(&images, &written);
        assert!((found - expected).abs() < 1e-4, "{found} is not {expected}");
    }
}
