//! Captions as prefix trees, for computing their log-probabilities.

use std::collections::HashMap;

use tch::{Device, Tensor};

use crate::prefix_tree::{PrefixTree, PrefixTreeBatch};

/// Captions whose log-probabilities are computed: equally many for each image. Each has a begin
/// token, and an end token unless it was cut at the length limit.
pub struct CaptionBatch {
    /// The inputs: all tokens of each caption except the last, one prefix tree per image.
    pub(super) inputs: PrefixTreeBatch,
    /// The indices of the nodes in the flattened `inputs`, without padding, `[nodes]`.
    pub(super) node_indices: Tensor,
    /// For each distinct prediction (node, next token): the node, as an index into `node_indices`,
    /// `[predictions]`.
    pub(super) prediction_nodes: Tensor,
    /// The next token of each prediction, `[predictions]`.
    pub(super) prediction_targets: Tensor,
    /// For each token after the begin tokens, in order of caption and position: its prediction, as
    /// an index into `prediction_nodes`, `[tokens]`.
    token_predictions: Tensor,
    /// The index of each token's caption, `[tokens]`.
    token_captions: Tensor,
    caption_count: i64,
}

impl CaptionBatch {
    /// The captions `sequences`; each `per_image` consecutive ones belong to one image.
    #[must_use]
    pub fn new(sequences: &[Vec<i64>], per_image: usize, device: Device) -> Self {
        let image_captions = sequences.chunks(per_image);
        let tree =
            |captions: &[Vec<i64>]| PrefixTree::build(captions.iter().map(|caption| without_last_token(caption)));
        let trees: Vec<PrefixTree> = image_captions.clone().map(tree).collect();
        let inputs = PrefixTreeBatch::new(&trees, device);
        let mut node_indices = Vec::new();
        let [mut prediction_nodes, mut targets, mut token_predictions, mut token_captions] =
            [(); 4].map(|()| Vec::<i64>::new());
        let mut prediction_indices = HashMap::new();
        for (image, (captions, tree)) in image_captions.zip(&trees).enumerate() {
            let first_node = node_indices.len();
            node_indices.extend((0..tree.size()).map(|node| inputs.flat_index(image, node)));
            for (number, (caption, path)) in captions.iter().zip(&tree.paths).enumerate() {
                for (&node, &target) in path.iter().zip(&caption[1..]) {
                    let node = (first_node + node) as i64;
                    token_predictions.push(*prediction_indices.entry((node, target)).or_insert_with(|| {
                        prediction_nodes.push(node);
                        targets.push(target);
                        prediction_nodes.len() as i64 - 1
                    }));
                    token_captions.push((image * per_image + number) as i64);
                }
            }
        }
        let tensor = |values: Vec<i64>| Tensor::from_slice(&values).to_device(device);
        Self {
            inputs,
            node_indices: tensor(node_indices),
            prediction_nodes: tensor(prediction_nodes),
            prediction_targets: tensor(targets),
            token_predictions: tensor(token_predictions),
            token_captions: tensor(token_captions),
            caption_count: sequences.len() as i64,
        }
    }

    /// Expands one value per distinct prediction, `[predictions]`, to one value per token.
    pub(super) fn per_token(&self, values: &Tensor) -> TokenValues {
        TokenValues {
            values: values.index_select(0, &self.token_predictions),
            token_captions: self.token_captions.shallow_clone(),
            caption_count: self.caption_count,
        }
    }
}

fn without_last_token(caption: &[i64]) -> &[i64] {
    &caption[..caption.len().saturating_sub(1)]
}

/// One value for each token of some captions, without their begin tokens.
pub struct TokenValues {
    /// The values in order of caption and position, `[tokens]`.
    pub values: Tensor,
    /// The index of each value's caption, `[tokens]`.
    pub token_captions: Tensor,
    caption_count: i64,
}

impl TokenValues {
    /// The sum over each caption's tokens, `[captions]`.
    pub fn sums(&self) -> Tensor {
        let zeros = Tensor::zeros([self.caption_count], (self.values.kind(), self.values.device()));
        zeros.index_add(0, &self.token_captions, &self.values)
    }
}
