//! Symmetric InfoNCE (Radford et al. 2021): each image is to find its caption among the whole batch's, and each caption its
//! image.

use std::collections::BTreeMap;

use tch::{Kind, Tensor, no_grad};

use super::Outcome;
use crate::collective::{Broken, Collective};

/// The loss of this rank's unit embeddings, both `[share, embedding]`, against those of all ranks; `scale` is the factor
/// from cosine to logit.
///
/// Every rank computes the loss of the whole batch, in which only its own embeddings carry gradients. The sum of the ranks'
/// gradients is then the exact gradient, negatives on other ranks included.
///
/// # Errors
/// The collective broke.
pub fn outcome(
    images: &Tensor,
    texts: &Tensor,
    scale: &Tensor,
    collective: &dyn Collective,
) -> Result<Outcome, Broken> {
    let share = images.size()[0];
    let (images, texts) = (gather(images, collective)?, gather(texts, collective)?);
    // All ranks see the same gradient of the scale, and theirs will be added up.
    let part = 1.0 / collective.world_size() as f64;
    let scale = scale * part + scale.detach() * (1.0 - part);
    let loss = symmetric_cross_entropy(&(images.matmul(&texts.transpose(0, 1)) * scale));
    let batch = images.size()[0] as f64;
    let loss_sum = loss.double_value(&[]) * share as f64 / batch;
    Ok(Outcome { loss, loss_sum, weight: share as f64, summaries: BTreeMap::new() })
}

/// Sum over pairs of half the cross-entropy of rows and half that of columns; `logits` is `[pairs, pairs]`.
fn symmetric_cross_entropy(logits: &Tensor) -> Tensor {
    let own = logits.diagonal(0, 0, 1);
    let rows = logits.logsumexp(1, false) - &own;
    let columns = logits.logsumexp(0, false) - &own;
    (rows + columns).sum(Kind::Float) * 0.5
}

/// All ranks' rows, in order of rank; only this rank's carry gradients. Shares may differ in size.
fn gather(own: &Tensor, collective: &dyn Collective) -> Result<Tensor, Broken> {
    let share = own.size()[0];
    let counts = collective.all_gather(&Tensor::from_slice(&[share]).to_device(own.device()))?;
    let counts: Vec<i64> = counts.iter().map(|count| count.int64_value(&[0])).collect();
    let most = counts.iter().copied().max().unwrap_or(share);
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
    use tch::Device;

    use super::*;

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
        let loss = symmetric_cross_entropy(&Tensor::from_slice(&flat).view([3, 3]));
        assert!((loss.double_value(&[]) - expected).abs() < 1e-6);
    }

    /// A world whose other rank is at hand: gathers what it was given.
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
        fn all_reduce(&self, _: &Tensor) -> Result<(), Broken> {
            Ok(())
        }
        fn broadcast(&self, _: &Tensor, _: usize) -> Result<(), Broken> {
            Ok(())
        }
        fn all_gather(&self, tensor: &Tensor) -> Result<Vec<Tensor>, Broken> {
            let mut both = vec![self.other.borrow_mut().remove(0)];
            both.insert(self.rank, tensor.shallow_clone());
            Ok(both)
        }
    }

    #[test]
    fn the_ranks_gradients_add_up_to_that_of_one_rank_with_the_whole_batch() {
        tch::manual_seed(5);
        let random = |rows| Tensor::randn([rows, 4], (Kind::Float, Device::Cpu));
        let (images, texts) = (random(5), random(5));
        let gradients = |images: &Tensor, texts: &Tensor, collective: &dyn Collective| {
            let leaves = [images, texts].map(|tensor| tensor.detach().copy().set_requires_grad(true));
            let scale = Tensor::from(3.0_f32).set_requires_grad(true);
            let outcome = outcome(&leaves[0], &leaves[1], &scale, collective).unwrap();
            outcome.loss.backward();
            let [images, texts] = leaves.map(|leaf| leaf.grad());
            (images, texts, scale.grad(), outcome.loss_sum)
        };
        let whole = gradients(&images, &texts, &crate::collective::Solo);
        // Three samples here, two there.
        let part = |tensor: &Tensor, rank: usize| tensor.narrow(0, 3 * rank as i64, 3 - rank as i64);
        let shares = [0, 1].map(|rank| {
            let other = 1 - rank;
            let count = || Tensor::from_slice(&[3 - other as i64]);
            let padded = |tensor: &Tensor| part(tensor, other).constant_pad_nd([0, 0, 0, other as i64]);
            let queue = vec![count(), padded(&images), count(), padded(&texts)];
            gradients(&part(&images, rank), &part(&texts, rank), &Pair { rank, other: queue.into() })
        });
        let close = |a: &Tensor, b: &Tensor| assert!(a.allclose(b, 1e-5, 1e-6, false), "{a} is not {b}");
        close(&Tensor::cat(&[&shares[0].0, &shares[1].0], 0), &whole.0);
        close(&Tensor::cat(&[&shares[0].1, &shares[1].1], 0), &whole.1);
        close(&(&shares[0].2 + &shares[1].2), &whole.2);
        assert!((shares[0].3 + shares[1].3 - whole.3).abs() < 1e-4);
    }
}
