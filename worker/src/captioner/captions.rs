//! Captions as prefix trees, for computing their log-probabilities.

use std::collections::HashMap;

use tch::{Device, Tensor};

use crate::prefix_tree::{PrefixTrees, Tree};

/// Captions to be scored: equally many for each image, each with begin and end tokens.
pub struct Captions {
    /// The inputs: all tokens of each caption but the last, one prefix tree per image.
    pub(super) inputs: PrefixTrees,
    /// The indices of the nodes in `inputs`, without padding, `[nodes]`.
    pub(super) nodes: Tensor,
    /// The distinct predictions: the node after which a token is predicted, as an index of `nodes`,
    /// `[pairs]`.
    pub(super) after: Tensor,
    /// The predicted token, `[pairs]`.
    pub(super) targets: Tensor,
    /// The index in the predictions of each token of the captions, in order of caption and
    /// position, `[tokens]`.
    pairs: Tensor,
    /// The caption of each token, `[tokens]`.
    row: Tensor,
    rows: i64,
}

impl Captions {
    /// From token sequences; each `each` consecutive ones belong to one image.
    #[must_use]
    pub fn new(sequences: &[Vec<i64>], each: usize, device: Device) -> Self {
        let of_images = sequences.chunks(each);
        let trees: Vec<Tree> =
            of_images.clone().map(|captions| Tree::build(captions.iter().map(|caption| inputs(caption)))).collect();
        let forest = PrefixTrees::new(&trees, device);
        let mut nodes = Vec::new();
        let [mut after, mut targets, mut pairs, mut row] = [(); 4].map(|()| Vec::<i64>::new());
        let mut known = HashMap::new();
        for (image, (captions, tree)) in of_images.zip(&trees).enumerate() {
            let first = nodes.len();
            nodes.extend((0..tree.size()).map(|node| forest.place(image, node)));
            for (number, (caption, path)) in captions.iter().zip(&tree.paths).enumerate() {
                for (&node, &target) in path.iter().zip(&caption[1..]) {
                    let node = (first + node) as i64;
                    pairs.push(*known.entry((node, target)).or_insert_with(|| {
                        after.push(node);
                        targets.push(target);
                        after.len() as i64 - 1
                    }));
                    row.push((image * each + number) as i64);
                }
            }
        }
        let [nodes, after, targets, pairs, row] =
            [nodes, after, targets, pairs, row].map(|values| Tensor::from_slice(&values).to_device(device));
        Self { inputs: forest, nodes, after, targets, pairs, row, rows: sequences.len() as i64 }
    }

    /// Expands values per prediction, `[pairs]`, to values per token.
    pub(super) fn pack(&self, values: &Tensor) -> Packed {
        Packed { values: values.index_select(0, &self.pairs), row: self.row.shallow_clone(), rows: self.rows }
    }
}

fn inputs(caption: &[i64]) -> &[i64] {
    &caption[..caption.len().saturating_sub(1)]
}

/// One value for each token of some captions, without their begin tokens.
pub struct Packed {
    /// The values in order of caption and position, `[tokens]`.
    pub values: Tensor,
    /// The caption of each value, `[tokens]`.
    pub row: Tensor,
    rows: i64,
}

impl Packed {
    /// The sum over each caption's tokens, `[captions]`.
    pub fn sums(&self) -> Tensor {
        Tensor::zeros([self.rows], (self.values.kind(), self.values.device())).index_add(0, &self.row, &self.values)
    }
}
