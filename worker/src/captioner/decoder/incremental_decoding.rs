//! Step-by-step decoding without CUDA graphs: on a CPU, and with dropout also on a GPU.

use tch::Tensor;

use super::gpt2::{Gpt2Model, KeyValueCache};
use crate::captioner::beam::NextTokenLogits;
use crate::nn::DropoutMode;

/// The captions of a search, their attention masks and their KV cache.
pub struct IncrementalDecoding<'a> {
    model: &'a Gpt2Model,
    cache: KeyValueCache,
    beams: i64,
    mode: DropoutMode,
    /// For each beam, the attention mask over its image's nodes: 0 for the nodes of its caption,
    /// minus infinity elsewhere.
    mask_rows: Vec<Vec<f32>>,
    /// The number of tokens that each beam has, begin token included.
    length: i64,
}

impl<'a> IncrementalDecoding<'a> {
    /// See [`Decoder::start_decoding`](super::Decoder::start_decoding).
    pub fn new(model: &'a Gpt2Model, memory: &Tensor, beams: i64, max_length: i64, mode: DropoutMode) -> Self {
        let rows = (memory.size()[0] * beams) as usize;
        let cache = model.new_cache(memory, max_length * beams);
        Self { model, cache, beams, mode, mask_rows: vec![Vec::new(); rows], length: 0 }
    }

    /// Appends a node to each beam. Returns the attention mask, `[images, 1, beams, nodes]`.
    fn append_nodes(&mut self, beam_indices: Option<&[i64]>) -> Tensor {
        if let Some(indices) = beam_indices {
            self.mask_rows = indices.iter().map(|&row| self.mask_rows[row as usize].clone()).collect();
        }
        let beams = self.beams as usize;
        for (row, mask) in self.mask_rows.iter_mut().enumerate() {
            mask.extend((0..beams).map(|beam| if beam == row % beams { 0.0 } else { f32::NEG_INFINITY }));
        }
        self.length += 1;
        let images = self.mask_rows.len() as i64 / self.beams;
        Tensor::from_slice(&self.mask_rows.concat()).view([images, 1, self.beams, self.length * self.beams])
    }
}

impl NextTokenLogits for IncrementalDecoding<'_> {
    fn next_token_logits(&mut self, tokens: &[i64], beam_indices: Option<&[i64]>) -> Tensor {
        let position = self.length;
        let working = &self.model.output_projection().working;
        let (kind, device) = (working.kind(), working.device());
        let mask = self.append_nodes(beam_indices).to_device(device).to_kind(kind);
        let tokens = Tensor::from_slice(tokens).view([-1, self.beams]).to_device(device);
        self.model.logits(&self.model.step(&tokens, position, &mask, &self.cache, self.mode))
    }
}
