//! Prefix trees of token sequences: common prefixes of an image's captions are stored and computed
//! once.
//!
//! ```text
//! a man on a horse          a - man - on - a - horse
//! a man on a brown horse                     \ brown - horse
//! a man rides a horse             \ rides - a - horse
//! ```
//!
//! A causal transformer computes the same hidden state for a token in all sequences with the same
//! prefix. So a node needs only its position and an attention mask for its ancestors.

use std::collections::HashMap;

use tch::{Device, Tensor};

use crate::nn::pad_to_mask_alignment;

/// The prefix tree (trie) of some token sequences.
pub struct PrefixTree {
    nodes: Vec<Node>,
    /// The indices of each sequence's nodes, in order of position.
    pub paths: Vec<Vec<usize>>,
}

struct Node {
    token: i64,
    position: usize,
    /// None for the first token of a sequence.
    parent: Option<usize>,
}

impl PrefixTree {
    /// Builds the tree of `sequences`. Parents come before their children.
    pub fn build<'a>(sequences: impl IntoIterator<Item = &'a [i64]>) -> Self {
        let mut nodes: Vec<Node> = Vec::new();
        let mut children = HashMap::new();
        let mut paths = Vec::new();
        for sequence in sequences {
            let mut path = Vec::with_capacity(sequence.len());
            for (position, &token) in sequence.iter().enumerate() {
                let parent = path.last().copied();
                let node = *children.entry((parent, token)).or_insert_with(|| {
                    nodes.push(Node { token, position, parent });
                    nodes.len() - 1
                });
                path.push(node);
            }
            paths.push(path);
        }
        Self { nodes, paths }
    }

    /// The number of nodes.
    pub fn size(&self) -> usize {
        self.nodes.len()
    }
}

/// A batch of prefix trees, padded to the same number of nodes: the input of a transformer.
pub struct PrefixTreeBatch {
    /// The tokens, `[trees, nodes]`, padded with zeros at the end.
    pub ids: Tensor,
    /// The position of each node in its sequences, `[trees, nodes]`.
    pub positions: Tensor,
    /// The attention mask, `[trees, 1, nodes, nodes]`: 0 for a node itself and for its ancestors,
    /// minus infinity for all others.
    pub mask: Tensor,
    /// The number of nodes of each tree, including padding.
    pub length: usize,
}

impl PrefixTreeBatch {
    /// Pads `trees` to the size of the largest of them, on a GPU rounded up to a multiple of 8, at
    /// which attention does not copy the mask.
    pub fn new<'a>(trees: impl IntoIterator<Item = &'a PrefixTree>, device: Device) -> Self {
        let trees: Vec<&PrefixTree> = trees.into_iter().collect();
        let largest = trees.iter().map(|tree| tree.size()).max().unwrap_or(0);
        let length = pad_to_mask_alignment(largest, device);
        let [mut ids, mut positions] = [(); 2].map(|()| vec![0_i64; trees.len() * length]);
        let mut mask = vec![f32::NEG_INFINITY; trees.len() * length * length];
        for (number, tree) in trees.iter().enumerate() {
            let rows = &mut mask[number * length * length..][..length * length];
            for (index, node) in tree.nodes.iter().enumerate() {
                ids[number * length + index] = node.token;
                positions[number * length + index] = node.position as i64;
                if let Some(parent) = node.parent {
                    rows.copy_within(parent * length..(parent + 1) * length, index * length);
                }
                rows[index * length + index] = 0.0;
            }
            // Padding attends to itself: a softmax over no keys would be NaN.
            (tree.size()..length).for_each(|index| rows[index * length + index] = 0.0);
        }
        let (count, nodes) = (trees.len() as i64, length as i64);
        let tensor = |values: &[i64]| Tensor::from_slice(values).view([count, nodes]).to_device(device);
        let mask = Tensor::from_slice(&mask).view([count, 1, nodes, nodes]).to_device(device);
        Self { ids: tensor(&ids), positions: tensor(&positions), mask, length }
    }

    /// The index of node `node` of tree `tree` in the flattened batch, `[trees * nodes]`.
    pub fn flat_index(&self, tree: usize, node: usize) -> i64 {
        (tree * self.length + node) as i64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{nn, testing};

    fn batch() -> (Vec<PrefixTree>, PrefixTreeBatch) {
        let groups: [&[&[i64]]; 2] = [&[&[7, 1, 2], &[7, 1, 3, 4], &[7, 1, 2]], &[&[7, 5]]];
        let trees: Vec<PrefixTree> = groups.iter().map(|group| PrefixTree::build(group.iter().copied())).collect();
        let batch = PrefixTreeBatch::new(&trees, testing::device());
        (trees, batch)
    }

    #[test]
    fn common_prefixes_share_nodes() {
        let (trees, batch) = batch();
        assert_eq!(trees[0].paths, [vec![0, 1, 2], vec![0, 1, 3, 4], vec![0, 1, 2]]);
        assert_eq!((trees[0].size(), trees[1].size()), (5, 2));
        let flat = |tensor: &Tensor| Vec::<i64>::try_from(tensor.narrow(1, 0, 5).flatten(0, -1)).unwrap();
        assert_eq!(flat(&batch.ids), [7, 1, 2, 3, 4, 7, 5, 0, 0, 0]);
        assert_eq!(flat(&batch.positions), [0, 1, 2, 2, 3, 0, 1, 0, 0, 0]);
        assert_eq!(batch.flat_index(1, 1), batch.length as i64 + 1);
    }

    #[test]
    fn trees_are_padded_to_the_largest_and_on_gpus_to_a_multiple_of_8() {
        let length = || PrefixTreeBatch::new(&[PrefixTree::build([&[7, 1, 2][..]])], Device::Cpu).length;
        assert_eq!((length(), nn::with_forced_gpu_path(length)), (3, 8));
    }

    #[test]
    fn a_node_attends_to_itself_and_its_ancestors() {
        let (_, batch) = batch();
        let attended = batch.mask.narrow(2, 0, 5).narrow(3, 0, 5).eq(0.0).to_kind(tch::Kind::Int64);
        let rows = |tree: i64| Vec::<Vec<i64>>::try_from(attended.get(tree).get(0)).unwrap();
        let expected = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 0, 1, 0], [1, 1, 0, 1, 1]];
        assert_eq!(rows(0), expected);
        assert_eq!(rows(1), [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 1]]);
    }
}
