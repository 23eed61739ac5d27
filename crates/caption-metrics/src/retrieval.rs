//! Caption-to-image retrieval: how well a caption's embedding finds its image among all images of a
//! set, as in papers on CLIP-based rewards.

use crate::Scores;

/// The number of parallel sums of a dot product, so that the compiler can vectorize it.
const LANES: usize = 16;
/// The size of a block of image embeddings, in bytes. A block is compared with all texts before the
/// next block, so that it stays in the cache.
const BLOCK_BYTES: usize = 128 << 10;

/// The retrieval rank of each caption's own image among all images, by the dot product of
/// embeddings: 1 plus the number of images that are strictly more similar to the caption, so that
/// ties do not worsen the rank. `texts` and `images` contain embeddings of `width` numbers and
/// length 1, one after the other; caption i belongs to image i.
///
/// A similarity of NaN counts against the caption. Products are summed in f32 in an order that
/// depends on `width` only.
///
/// # Panics
/// `width` is 0, or `texts` and `images` do not contain the same number of whole embeddings.
#[must_use]
pub fn ranks(texts: &[f32], images: &[f32], width: usize) -> Vec<usize> {
    assert!(width > 0 && texts.len() == images.len() && texts.len().is_multiple_of(width), "texts and images differ");
    let own_similarity: Vec<f32> =
        texts.chunks_exact(width).zip(images.chunks_exact(width)).map(|(text, image)| dot(text, image)).collect();
    let mut ranks = vec![1; own_similarity.len()];
    let images_per_block = (BLOCK_BYTES / size_of::<f32>()).div_ceil(width);
    for (block_index, images) in images.chunks(images_per_block * width).enumerate() {
        for (caption, text) in texts.chunks_exact(width).enumerate() {
            let is_more_similar = |&(index, image): &(usize, &[f32])| {
                let is_less_or_equal = dot(text, image) <= own_similarity[caption];
                !is_less_or_equal && block_index * images_per_block + index != caption
            };
            ranks[caption] += images.chunks_exact(width).enumerate().filter(is_more_similar).count();
        }
    }
    ranks
}

/// Recall at 1, 5 and 10, and the mean reciprocal rank (all 0 to 1), by metric.
#[must_use]
pub fn scores(ranks: &[usize]) -> [(&'static str, Scores); 4] {
    let scores_of = |value: &dyn Fn(usize) -> f64| Scores::mean(ranks.iter().map(|&rank| value(rank)).collect());
    let recall = |limit: usize| scores_of(&|rank| f64::from(u8::from(rank <= limit)));
    [
        ("retrieval_r1", recall(1)),
        ("retrieval_r5", recall(5)),
        ("retrieval_r10", recall(10)),
        ("retrieval_mrr", scores_of(&|rank| 1.0 / rank as f64)),
    ]
}

fn dot(left: &[f32], right: &[f32]) -> f32 {
    let (left, left_rest) = left.as_chunks::<LANES>();
    let (right, right_rest) = right.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for (left, right) in left.iter().zip(right) {
        for lane in 0..LANES {
            sums[lane] += left[lane] * right[lane];
        }
    }
    for (sum, (left, right)) in sums.iter_mut().zip(left_rest.iter().zip(right_rest)) {
        *sum += left * right;
    }
    sums.iter().sum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_own_image_is_ranked_among_all_images() {
        // The second text is closest to the third image, then to the first, then to its own.
        let texts = [1.0, 0.0, 0.8, 0.6, 0.0, 1.0];
        let images = [1.0, 0.0, 0.0, 1.0, 0.6, 0.8];
        // 0.8 and 0.96 against 0.6; 1.0 against 0.8.
        assert_eq!(ranks(&texts, &images, 2), [1, 3, 2]);
    }

    #[test]
    fn ties_do_not_worsen_ranks_but_nan_does() {
        assert_eq!(ranks(&[1.0, 1.0], &[1.0, 1.0], 1), [1, 1]);
        assert_eq!(ranks(&[f32::NAN, 1.0, 1.0], &[1.0, f32::NAN, 1.0], 1), [3, 3, 2]);
        assert_eq!(ranks(&[], &[], 3), [0; 0]);
    }

    #[test]
    #[should_panic(expected = "texts and images differ")]
    fn different_numbers_of_embeddings_cause_a_panic() {
        let _ = ranks(&[1.0, 2.0], &[1.0], 1);
    }

    #[test]
    fn recalls_follow_from_ranks() {
        let [r1, r5, r10, mrr] = scores(&[1, 5, 10, 20]);
        assert_eq!(r1, ("retrieval_r1", Scores { corpus: 0.25, items: vec![1.0, 0.0, 0.0, 0.0] }));
        assert_eq!((r5.1.corpus, r10.1.corpus), (0.5, 0.75));
        assert_eq!(mrr.1.items, [1.0, 0.2, 0.1, 0.05]);
        assert!(scores(&[]).iter().all(|(_, scores)| scores.corpus == 0.0));
    }

    proptest! {
        /// Small whole numbers, whose products are exact in any order.
        #[test]
        fn ranks_equal_those_by_sorting(
            (width, numbers) in (1_usize..40).prop_flat_map(|width| {
                (Just(width), proptest::collection::vec((-2_i8..=2, -2_i8..=2), width * 9))
            })
        ) {
            let texts: Vec<f32> = numbers.iter().map(|&(text, _)| text.into()).collect();
            let images: Vec<f32> = numbers.iter().map(|&(_, image)| image.into()).collect();
            for (caption, rank) in ranks(&texts, &images, width).into_iter().enumerate() {
                let text = &texts[caption * width..][..width];
                let similarity = |image: &[f32]| text.iter().zip(image).map(|(t, i)| t * i).sum::<f32>();
                let mut all: Vec<f32> = images.chunks(width).map(similarity).collect();
                let own = all[caption];
                all.sort_by(|a, b| b.total_cmp(a));
                prop_assert_eq!(rank, 1 + all.iter().position(|&value| value == own).unwrap());
            }
        }
    }

    #[test]
    fn ranks_do_not_depend_on_blocks() {
        // More images than a block holds, with similarities that fall in order of distance.
        let (width, number) = (1 << 12, 20);
        let mut images = vec![0.0; width * number];
        for (index, image) in images.chunks_exact_mut(width).enumerate() {
            let angle = index as f32 / 100.0;
            (image[0], image[width - 1]) = (angle.cos(), angle.sin());
        }
        let mut texts = vec![0.0; width * number];
        texts.chunks_exact_mut(width).for_each(|text| text[0] = 1.0);
        assert_eq!(ranks(&texts, &images, width), (1..=number).collect::<Vec<_>>());
    }
}
