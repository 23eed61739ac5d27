//! The published layout of a model folder's captioner, for exports.

use super::{ModelFolder, PUBLISHED_CONFIG_FILE, PUBLISHED_TENSORS_FILE, VisionWeights};
use crate::captioner::{WRAPPED_VISION_PREFIX, add_export_settings};
use crate::file::read_json;
use crate::{Archive, Dtype, Error, Tensor, VISION_PREFIX, config_json, vision_to_released};

impl ModelFolder {
    /// The files of an import that an exact export needs: the published config, and the tensors
    /// that no computation uses.
    ///
    /// # Errors
    /// The files exist but cannot be read.
    pub fn released(&self) -> Result<Option<(serde_json::Value, Archive)>, Error> {
        let (config, tensors) = (self.path.join(PUBLISHED_CONFIG_FILE), self.path.join(PUBLISHED_TENSORS_FILE));
        if !config.is_file() || !tensors.is_file() {
            return Ok(None);
        }
        Ok(Some((read_json(&config)?, Archive::open(&tensors)?)))
    }

    /// The published layout of this folder's captioner: config.json and all tensors. The tensors of
    /// an import are bitwise equal to the imported ones; unused tensors of a captioner that this
    /// project trained are zero. `imported` is the result of [`released`](Self::released).
    ///
    /// A captioner with a corpus vocabulary keeps it, with the same token ids, and config.json
    /// lists its tokens. Additional rows for the other tokens would change its captions: the output
    /// has no bias that could exclude a token, and every row takes part in the softmax.
    ///
    /// # Errors
    /// The vision encoder is not part of that layout, or a file cannot be read.
    pub fn to_released<'a>(
        &'a self,
        vision: &'a VisionWeights,
        imported: Option<&'a (serde_json::Value, Archive)>,
    ) -> Result<(serde_json::Value, Vec<(String, Tensor<'a>)>), Error> {
        let vision: Vec<_> = vision.tensors()?.into_iter().filter(|(name, _)| is_in_published_encoder(name)).collect();
        let mut tensors = self.captioner();
        let prefix = self.manifest.vision.published_prefix.as_deref().unwrap_or(VISION_PREFIX);
        tensors.extend(vision_to_released(vision, prefix)?);
        let mut config = match imported {
            Some((config, unused)) => {
                tensors.extend(unused.tensors());
                config.clone()
            }
            None => {
                tensors.extend(self.unused_tensors());
                config_json(&self.manifest.captioner, &self.manifest.vision.config)
            }
        };
        add_export_settings(&mut config, &self.manifest.vocabulary, prefix == WRAPPED_VISION_PREFIX);
        tensors.sort_by(|(a, _), (b, _)| a.cmp(b));
        Ok((config, tensors))
    }

    /// The other tensors of the published layout: the output, which is tied to the token embedding,
    /// and unused parameters of the BERT.
    fn unused_tensors(&self) -> Vec<(String, Tensor<'_>)> {
        let width = self.manifest.captioner.width;
        let zeros = |name: &str, shape: Vec<usize>| {
            let bytes = vec![0; shape.iter().product::<usize>() * Dtype::F32.size()];
            (format!("encoder.encoder.{name}"), Tensor { dtype: Dtype::F32, shape, bytes: bytes.into() })
        };
        let output = self.captioner.get("decoder.transformer.wte.weight");
        output
            .map(|tensor| ("decoder.lm_head.weight".to_owned(), tensor))
            .into_iter()
            .chain([
                zeros("embeddings.word_embeddings.weight", vec![1, width]),
                zeros("pooler.dense.weight", vec![width, width]),
                zeros("pooler.dense.bias", vec![width]),
            ])
            .collect()
    }
}

/// Whether a CLIP's tensor is part of the published layout's encoder, which ends with the last
/// layer norm.
fn is_in_published_encoder(name: &str) -> bool {
    name.starts_with("visual.") && name != "visual.proj"
}
