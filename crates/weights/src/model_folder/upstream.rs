//! Converts the captioner of a model folder to the upstream layout, for exports.

use super::{ModelFolder, UNUSED_TENSORS_FILE, UPSTREAM_CONFIG_FILE, VisionWeights};
use crate::captioner::{WRAPPED_VISION_PREFIX, add_export_settings};
use crate::file::read_json;
use crate::{Archive, Dtype, Error, Tensor, VISION_PREFIX, upstream_config_json, vision_to_upstream};

impl ModelFolder {
    /// The files that an import keeps so that an export equals the imported folder: the upstream
    /// `config.json`, and the tensors that no computation uses. None if the folder is not an
    /// import.
    ///
    /// # Errors
    /// The files exist but cannot be read.
    pub fn imported_files(&self) -> Result<Option<(serde_json::Value, Archive)>, Error> {
        let (config, tensors) = (self.path.join(UPSTREAM_CONFIG_FILE), self.path.join(UNUSED_TENSORS_FILE));
        if !config.is_file() || !tensors.is_file() {
            return Ok(None);
        }
        Ok(Some((read_json(&config)?, Archive::open(&tensors)?)))
    }

    /// This folder's captioner in the upstream layout: `config.json` and all tensors. The tensors
    /// of an import are bitwise equal to the imported ones; unused tensors of a captioner that this
    /// project trained are zero. `imported` is the result of
    /// [`imported_files`](Self::imported_files).
    ///
    /// A captioner with a corpus vocabulary keeps it, with the same token ids, and config.json
    /// lists its tokens. Additional rows for the other tokens would change its captions: the output
    /// has no bias that could exclude a token, and every row takes part in the softmax.
    ///
    /// # Errors
    /// The tensors of the vision encoder are malformed, or that layout has no vision encoder of
    /// this kind.
    pub fn to_upstream<'a>(
        &'a self,
        vision: &'a VisionWeights,
        imported: Option<&'a (serde_json::Value, Archive)>,
    ) -> Result<(serde_json::Value, Vec<(String, Tensor<'a>)>), Error> {
        let vision: Vec<_> = vision.tensors()?.into_iter().filter(|(name, _)| is_in_upstream_encoder(name)).collect();
        let mut tensors = self.captioner();
        let prefix = self.manifest.vision.upstream_prefix.as_deref().unwrap_or(VISION_PREFIX);
        tensors.extend(vision_to_upstream(vision, prefix)?);
        let mut config = match imported {
            Some((config, unused)) => {
                tensors.extend(unused.tensors());
                config.clone()
            }
            None => {
                tensors.extend(self.unused_tensors());
                upstream_config_json(&self.manifest.captioner, &self.manifest.vision.config)
            }
        };
        add_export_settings(&mut config, &self.manifest.vocabulary, prefix == WRAPPED_VISION_PREFIX);
        tensors.sort_by(|(a, _), (b, _)| a.cmp(b));
        Ok((config, tensors))
    }

    /// The tensors of the upstream layout that no computation uses: the output projection, which is
    /// tied to the token embedding, and zeros for the parameters of the BERT that no layer reads.
    fn unused_tensors(&self) -> Vec<(String, Tensor<'_>)> {
        let width = self.manifest.captioner.width;
        let zeros = |name: &str, shape: Vec<usize>| {
            let bytes = vec![0; shape.iter().product::<usize>() * Dtype::F32.size()];
            (format!("encoder.encoder.{name}"), Tensor { dtype: Dtype::F32, shape, bytes: bytes.into() })
        };
        let token_embedding = self.captioner.get("decoder.transformer.wte.weight");
        token_embedding
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

/// Whether a CLIP's tensor is part of the vision encoder of the upstream layout, which ends with
/// the last layer norm.
fn is_in_upstream_encoder(name: &str) -> bool {
    name.starts_with("visual.") && name != "visual.proj"
}
