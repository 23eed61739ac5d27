//! Symmetric InfoNCE (Radford et al. 2021, figure 3): each image has to identify its caption among
//! those of the whole batch, and each caption its image. PAC-S (Sarto et al. 2023, section 3) adds
//! two weighted losses of the same form: generated images with the real captions, and the real
//! images with generated captions.

use std::collections::BTreeMap;

use config::Contrastive;
use proto::v1;
use tch::{Kind, Tensor, no_grad};

use super::step_context::{StageBatch, StepContext};
use super::{LossError, LossOutput, Objective};
use crate::collective::{Collective, CollectiveError};

/// The unit embeddings of this rank's share of the batch, all `[share, embedding]`. The share may
/// be empty.
pub struct ContrastivePairs {
    /// The number of tokens of the captions, begin and end tokens included.
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

impl Objective for Contrastive {
    fn compute_loss(&self, batch: &StageBatch<'_>, context: &StepContext<'_>) -> Result<LossOutput, LossError> {
        let evaluator = &context.models.primary_clip;
        let pairs = embed_pairs(self, batch, context)?;
        // The loss gathers the embeddings of all ranks.
        (context.set_phase)(v1::Phase::AllReduce);
        let output = compute_loss(&pairs, &evaluator.logit_scale(), context.collective);
        (context.set_phase)(v1::Phase::Compute);
        Ok(output?)
    }
}

/// Embeds the images and captions of `batch`, and the generated ones that have a weight.
fn embed_pairs(
    settings: &Contrastive,
    batch: &StageBatch<'_>,
    context: &StepContext<'_>,
) -> anyhow::Result<ContrastivePairs> {
    let (models, vocabulary) = (context.models, context.models.evaluator_vocabulary());
    let evaluator = &models.primary_clip;
    let max_length = evaluator.config().text.context_length;
    let encode = |text: &str| vocabulary.encode(text, max_length);
    let no_embeddings = || Tensor::zeros([0, evaluator.config().embedding as i64], (Kind::Float, models.device()));
    let embed_texts = |texts: &[Vec<i64>]| match texts {
        [] => no_embeddings(),
        _ => evaluator.text.embed(texts, 1),
    };
    let embed_images = |pixels: &Tensor| match pixels.size()[0] {
        0 => no_embeddings(),
        _ => evaluator.image_embeddings(&evaluator.vision.hidden_states(pixels)),
    };
    let texts: Vec<Vec<i64>> = context.reference_captions(batch).map(encode).collect();
    let StageBatch { batch: all, range } = batch;
    Ok(ContrastivePairs {
        tokens: texts.iter().map(|text| text.len() as u64).sum(),
        images: embed_images(&models.evaluator_pixels(all, range.clone())?),
        texts: embed_texts(&texts),
        generated_images: match settings.generated_images {
            0.0 => None,
            weight => Some((embed_images(&models.generated_pixels(all, range.clone())?), weight)),
        },
        generated_texts: match settings.generated_captions {
            0.0 => None,
            weight => {
                let generated = batch.samples().iter().map(|sample| {
                    let captions = context.data.generated_captions(sample.image);
                    encode(&captions[sample.caption % captions.len()])
                });
                Some((embed_texts(&generated.collect::<Vec<_>>()), weight))
            }
        },
    })
}

/// The loss of this rank's pairs, with the pairs of all ranks as negatives. `logit_scale` is the
/// factor from cosine to logit, a scalar.
///
/// Each rank computes the loss of the whole batch, in which only its own embeddings have gradients.
/// So the sum of the ranks' gradients is the exact gradient, including negatives on other ranks.
///
/// # Errors
/// The collective has failed.
pub fn compute_loss(
    pairs: &ContrastivePairs,
    logit_scale: &Tensor,
    collective: &dyn Collective,
) -> Result<LossOutput, CollectiveError> {
    let share = pairs.images.size()[0];
    let (images, texts) = (gather_embeddings(&pairs.images, collective)?, gather_embeddings(&pairs.texts, collective)?);
    // All ranks compute the same gradient of the scale, and their gradients will be summed: each
    // keeps only its fraction.
    let gradient_fraction = 1.0 / collective.world_size() as f64;
    let scale = logit_scale * gradient_fraction + logit_scale.detach() * (1.0 - gradient_fraction);
    let info_nce =
        |images: &Tensor, texts: &Tensor| symmetric_cross_entropy(&(images.matmul(&texts.transpose(0, 1)) * &scale));
    let mut loss = info_nce(&images, &texts);
    if let Some((generated, weight)) = &pairs.generated_images {
        loss += info_nce(&gather_embeddings(generated, collective)?, &texts) * *weight;
    }
    if let Some((generated, weight)) = &pairs.generated_texts {
        loss += info_nce(&images, &gather_embeddings(generated, collective)?) * *weight;
    }
    let batch = images.size()[0];
    let loss_sum = if batch == 0 { 0.0 } else { loss.double_value(&[]) * share as f64 / batch as f64 };
    Ok(LossOutput {
        loss,
        loss_sum,
        weight: share as f64,
        tokens: pairs.tokens,
        example: None,
        summaries: BTreeMap::new(),
    })
}

/// The sum over pairs of the mean of two cross-entropies, of the row and of the column of each
/// pair. `logits` is `[pairs, pairs]`; the result is a scalar.
fn symmetric_cross_entropy(logits: &Tensor) -> Tensor {
    let matching = logits.diagonal(0, 0, 1);
    let rows = logits.logsumexp(1, false) - &matching;
    let columns = logits.logsumexp(0, false) - &matching;
    (rows + columns).sum(Kind::Float) * 0.5
}

/// The embeddings of all ranks, in order of rank, `[batch, embedding]`. `own` is
/// `[share, embedding]`; only these rows have gradients. Shares may differ in size, and may be
/// empty.
fn gather_embeddings(own: &Tensor, collective: &dyn Collective) -> Result<Tensor, CollectiveError> {
    let share = own.size()[0];
    let counts = collective.all_gather(&Tensor::from_slice(&[share]).to_device(own.device()))?;
    let counts: Vec<i64> = counts.iter().map(|count| count.int64_value(&[0])).collect();
    let largest = counts.iter().copied().max().unwrap_or(share);
    if largest == 0 {
        return Ok(own.shallow_clone());
    }
    let padded = no_grad(|| own.detach().constant_pad_nd([0, 0, 0, largest - share]));
    let mut shares = collective.all_gather(&padded)?;
    for (share, &count) in shares.iter_mut().zip(&counts) {
        *share = share.narrow(0, 0, count);
    }
    shares[collective.rank()] = own.shallow_clone();
    Ok(Tensor::cat(&shares, 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn the_loss_equals_a_double_precision_computation() {
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

    /// One of two ranks, with the tensors that it receives from the other rank.
    struct OneOfTwoRanks {
        rank: usize,
        received: std::cell::RefCell<Vec<Tensor>>,
    }

    impl Collective for OneOfTwoRanks {
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
            let mut both = vec![self.received.borrow_mut().remove(0)];
            both.insert(self.rank, tensor.shallow_clone());
            Ok(both)
        }
    }

    #[test]
    fn the_sum_of_the_ranks_gradients_equals_the_gradient_of_one_rank_with_the_whole_batch() {
        tch::manual_seed(5);
        // Images, texts, generated images, generated texts.
        let all: [Tensor; 4] = std::array::from_fn(|_| Tensor::randn([5, 4], testing::f32_options()));
        let gradients = |tensors: [Tensor; 4], collective: &dyn Collective| {
            let leaves = tensors.map(|tensor| tensor.detach().copy().set_requires_grad(true));
            let scale = Tensor::from(3.0_f32).to_device(testing::device()).set_requires_grad(true);
            let [images, texts, generated_images, generated_texts] = [0, 1, 2, 3].map(|i| leaves[i].shallow_clone());
            let pairs = ContrastivePairs {
                tokens: 0,
                images,
                texts,
                generated_images: Some((generated_images, 0.5)),
                generated_texts: Some((generated_texts, 0.25)),
            };
            let output = compute_loss(&pairs, &scale, collective).unwrap();
            output.loss.backward();
            (leaves.map(|leaf| leaf.grad()), scale.grad(), output.loss_sum)
        };
        let whole = gradients([0, 1, 2, 3].map(|i| all[i].shallow_clone()), &crate::collective::SingleRankCollective);
        let close = |a: &Tensor, b: &Tensor| assert!(a.allclose(b, 1e-5, 1e-6, false), "{a} is not {b}");
        // Shares of three and two samples, and of five and none.
        for sizes in [[3_i64, 2], [5, 0]] {
            let largest = sizes[0];
            let part = |tensor: &Tensor, rank: usize| tensor.narrow(0, sizes[0] * rank as i64, sizes[rank]);
            let shares = [0, 1].map(|rank| {
                let other = 1 - rank;
                let count = || Tensor::from_slice(&[sizes[other]]).to_device(testing::device());
                let padded = |tensor: &Tensor| part(tensor, other).constant_pad_nd([0, 0, 0, largest - sizes[other]]);
                let queue: Vec<Tensor> = all.iter().flat_map(|tensor| [count(), padded(tensor)]).collect();
                gradients([0, 1, 2, 3].map(|i| part(&all[i], rank)), &OneOfTwoRanks { rank, received: queue.into() })
            });
            for (i, expected) in whole.0.iter().enumerate() {
                let actual = [0, 1].map(|rank: usize| match sizes[rank] {
                    0 => Tensor::zeros([0, 4], testing::f32_options()),
                    _ => shares[rank].0[i].shallow_clone(),
                });
                close(&Tensor::cat(&actual, 0), expected);
            }
            close(&(&shares[0].1 + &shares[1].1), &whole.1);
            assert!((shares[0].2 + shares[1].2 - whole.2).abs() < 1e-4);
        }
    }

    #[test]
    fn a_batch_without_samples_has_neither_loss_nor_gradient() {
        let nothing = || Tensor::zeros([0, 4], testing::f32_options());
        let scale = Tensor::from(3.0_f32).to_device(testing::device()).set_requires_grad(true);
        let pairs = ContrastivePairs {
            tokens: 0,
            images: nothing(),
            texts: nothing(),
            generated_images: Some((nothing(), 0.5)),
            generated_texts: Some((nothing(), 0.25)),
        };
        // The share of the other rank is also empty.
        let queue = (0..4).map(|_| Tensor::from_slice(&[0_i64]).to_device(testing::device())).collect::<Vec<_>>();
        let output = compute_loss(&pairs, &scale, &OneOfTwoRanks { rank: 1, received: queue.into() }).unwrap();
        output.loss.backward();
        assert_eq!((output.loss_sum, output.weight, scale.grad().double_value(&[])), (0.0, 0.0, 0.0));
    }

    #[test]
    fn generated_pairs_add_weighted_losses() {
        tch::manual_seed(6);
        let random = || Tensor::randn([4, 3], testing::f32_options());
        let (images, texts, generated_images, generated_texts) = (random(), random(), random(), random());
        let clone = |tensor: &Tensor| tensor.shallow_clone();
        let loss = |images: &Tensor, texts: &Tensor, generated_images, generated_texts| {
            let pairs = ContrastivePairs {
                tokens: 0,
                images: clone(images),
                texts: clone(texts),
                generated_images,
                generated_texts,
            };
            compute_loss(
                &pairs,
                &Tensor::from(2.0_f32).to_device(testing::device()),
                &crate::collective::SingleRankCollective,
            )
            .unwrap()
            .loss_sum
        };
        let actual =
            loss(&images, &texts, Some((clone(&generated_images), 0.05)), Some((clone(&generated_texts), 0.1)));
        let plain = |images: &Tensor, texts: &Tensor| loss(images, texts, None, None);
        let expected =
            plain(&images, &texts) + 0.05 * plain(&generated_images, &texts) + 0.1 * plain(&images, &generated_texts);
        assert!((actual - expected).abs() < 1e-4, "{actual} is not {expected}");
    }
}
