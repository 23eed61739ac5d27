//! The rows of feature stores: the outputs of the frozen vision encoders for a batch of images.

use std::ops::Range;

use image_features::Manifest;
use tch::{Device, Tensor};

use crate::data::{Batch, tensor_kind};
use crate::run_models::RunModels;
use crate::tensor_conversion;

/// The rows of the images `range` of a split, which are the samples of `batch`, as bytes. The row
/// of an image that could not be decoded is all zero, which no embedding is.
#[must_use]
pub fn encode(models: &RunModels, manifest: &Manifest, batch: &Batch, range: Range<usize>) -> Vec<u8> {
    let row_bytes = manifest.row_bytes();
    let mut rows = vec![0; row_bytes * range.len()];
    let count = batch.samples.len();
    if count == 0 {
        return rows;
    }
    let hidden = models.hidden_states(batch, 0..count);
    // CLIP 0 is the primary evaluator's.
    let clips = 0..=models.other_clips.len();
    let embeddings = clips.map(|clip_index| models.embeddings(batch, 0..count, &hidden, clip_index));
    let columns: Vec<Tensor> = std::iter::once(hidden.flatten(1, -1)).chain(embeddings).collect();
    let values = Tensor::cat(&columns, 1).to_kind(tensor_kind(manifest.dtype));
    let bytes = tensor_conversion::to_bytes(&values.to_device(Device::Cpu));
    for (sample, row) in batch.samples.iter().zip(bytes.chunks(row_bytes)) {
        rows[(sample.image - range.start) * row_bytes..][..row_bytes].copy_from_slice(row);
    }
    rows
}
