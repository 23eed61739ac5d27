//! The models of a run: their construction, and the outputs of the frozen encoders for a batch. An
//! evaluator is a CLIP: its vision encoder and its text encoder map images and texts to embeddings.
//!
//! ```text
//!   images --> captioner's vision encoder --> hidden states --> captioner --> candidate captions
//!      |                                                                             |
//!      '-----> each evaluator's vision encoder --> image embeddings --.              |
//!                                                                     v              v
//!                                             rewards <-- cosine <-- text embeddings, by
//!                                                                    each evaluator's text encoder
//! ```

mod construction;

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use run_assets::{Evaluator, WeightSources};
use tch::{Device, Kind, Tensor, no_grad};
use tokenizer::Vocabulary;
use weights::{VisionConfig, model_folder};

pub use construction::{open_captioner, open_clip, open_vision_encoder};

use crate::captioner::Captioner;
use crate::clip::{Clip, VisionEncoder};
use crate::data::{Batch, BatchImages, ImageSizes, normalize};

/// The captioner's vision encoder.
pub enum CaptionerVisionEncoder {
    /// An encoder that only the captioner uses.
    Separate(Box<VisionEncoder>),
    /// The vision encoder of an evaluator's CLIP; its index for [`RunModels::clip`].
    SharedWithEvaluator(usize),
}

/// The models of a run: the captioner, and the evaluators with their CLIP models; and the
/// vocabularies.
pub struct RunModels {
    /// The CLIP of the primary evaluator, which is the only evaluator that a run can train.
    pub primary_clip: Clip,
    /// The distinct CLIPs of the other evaluators.
    pub other_clips: Vec<Clip>,
    /// The captioner's vision encoder.
    pub vision: CaptionerVisionEncoder,
    /// The captioner.
    pub captioner: Captioner,
    /// The captioner's vocabulary.
    pub captioner_vocabulary: Arc<Vocabulary>,
    /// All evaluators, the primary one first.
    pub evaluators: Vec<Evaluator>,
}

impl RunModels {
    /// The device of all models.
    #[must_use]
    pub fn device(&self) -> Device {
        self.captioner.parameters().flat().device()
    }

    /// The primary evaluator's vocabulary.
    #[must_use]
    pub fn evaluator_vocabulary(&self) -> &Vocabulary {
        &self.evaluators[0].vocabulary
    }

    /// The CLIP with this index; 0 is the CLIP of the primary evaluator.
    #[must_use]
    pub fn clip(&self, index: usize) -> &Clip {
        index.checked_sub(1).map_or(&self.primary_clip, |index| &self.other_clips[index])
    }

    /// All CLIPs of evaluators, in order of index.
    fn clips(&self) -> impl Iterator<Item = &Clip> {
        std::iter::once(&self.primary_clip).chain(&self.other_clips)
    }

    /// The config of the captioner's vision encoder.
    #[must_use]
    pub fn vision_config(&self) -> VisionConfig {
        match &self.vision {
            CaptionerVisionEncoder::Separate(vision_encoder) => vision_encoder.config().clone(),
            CaptionerVisionEncoder::SharedWithEvaluator(index) => self.clip(*index).config().vision_config(),
        }
    }

    /// The image sizes that the vision encoders require.
    #[must_use]
    pub fn image_sizes(&self) -> ImageSizes {
        let all_encoders = self.clips().map(image_size).chain([self.vision_config().image_size as u32]).collect();
        ImageSizes { all_encoders, generated_images: image_size(&self.primary_clip) }
    }

    /// The manifest of a model folder with the captioner, for checkpoints. The models were built
    /// from `weights`.
    #[must_use]
    pub fn manifest(&self, weights: &WeightSources) -> model_folder::Manifest {
        let (path, sha256) = match weights.frozen_vision() {
            Some(encoder) => (encoder.weights.clone(), Some(encoder.sha256.clone())),
            None => (PathBuf::from(model_folder::EVALUATOR_FILE), None),
        };
        let config = self.vision_config();
        let vision =
            model_folder::VisionEncoder { config, path, sha256, lora: weights.vision_lora(), upstream_prefix: None };
        let captioner = self.captioner.config().clone();
        let evaluator = weights.saves_evaluator().then(|| model_folder::TrainedEvaluator {
            config: self.primary_clip.config().clone(),
            vocabulary: self.evaluator_vocabulary().to_manifest(),
        });
        model_folder::Manifest::new(self.captioner_vocabulary.to_manifest(), captioner, vision, evaluator)
    }

    /// Hidden states of the samples `range` of a batch by the captioner's vision encoder, `[images,
    /// tokens, width]`.
    pub fn hidden_states(&self, batch: &Batch, range: Range<usize>) -> Tensor {
        let device = self.device();
        match &batch.images {
            BatchImages::Features { hidden, .. } => feature_rows(hidden, range, device),
            BatchImages::Pixels(pixels) => {
                let config = self.vision_config();
                let images = normalize(&pixels[&(config.image_size as u32)], range, device, &config.normalization);
                no_grad(|| match &self.vision {
                    CaptionerVisionEncoder::Separate(vision_encoder) => vision_encoder.hidden_states(&images),
                    CaptionerVisionEncoder::SharedWithEvaluator(index) => {
                        self.clip(*index).vision.hidden_states(&images)
                    }
                })
            }
        }
    }

    /// Unit embeddings of the samples `range` of a batch by the CLIP with the index `clip_index`,
    /// `[images, embedding]`. `hidden` `[images, tokens, width]` are the hidden states of the same
    /// samples by the captioner's vision encoder.
    pub fn embeddings(&self, batch: &Batch, range: Range<usize>, hidden: &Tensor, clip_index: usize) -> Tensor {
        let clip = self.clip(clip_index);
        match (&batch.images, &self.vision) {
            (BatchImages::Features { embeddings, .. }, _) => {
                let offset: usize = self.clips().take(clip_index).map(|clip| clip.config().embedding).sum();
                let own = embeddings.narrow(1, offset as i64, clip.config().embedding as i64);
                feature_rows(&own, range, hidden.device())
            }
            (BatchImages::Pixels(_), CaptionerVisionEncoder::SharedWithEvaluator(shared)) if *shared == clip_index => {
                no_grad(|| clip.image_embeddings(hidden))
            }
            (BatchImages::Pixels(pixels), _) => no_grad(|| {
                let images = normalize_for(clip, &pixels[&image_size(clip)], range);
                clip.image_embeddings(&clip.vision.hidden_states(&images))
            }),
        }
    }

    /// Normalized pixels `[images, 3, size, size]` of the generated images of the samples `range`
    /// of a batch.
    ///
    /// # Errors
    /// The batch was prepared without generated images.
    pub fn generated_pixels(&self, batch: &Batch, range: Range<usize>) -> Result<Tensor> {
        let generated = batch.generated_images.as_ref().context("the batch was prepared without generated images")?;
        Ok(normalize_for(&self.primary_clip, generated, range))
    }

    /// Normalized pixels `[images, 3, size, size]` of the samples `range` of a batch, to train the
    /// evaluator on.
    ///
    /// # Errors
    /// The batch comes from a feature store, which requires frozen encoders.
    pub fn evaluator_pixels(&self, batch: &Batch, range: Range<usize>) -> Result<Tensor> {
        match &batch.images {
            BatchImages::Features { .. } => bail!("data.features cannot be used in a contrastive stage"),
            BatchImages::Pixels(pixels) => {
                Ok(normalize_for(&self.primary_clip, &pixels[&image_size(&self.primary_clip)], range))
            }
        }
    }
}

fn image_size(clip: &Clip) -> u32 {
    clip.config().image_size as u32
}

/// Normalizes the images `range` of `pixels`, bytes `[batch, size, size, 3]`, for `clip`. Returns
/// `[images, 3, size, size]`.
fn normalize_for(clip: &Clip, pixels: &Tensor, range: Range<usize>) -> Tensor {
    normalize(pixels, range, clip.parameters().flat().device(), &clip.config().normalization)
}

/// The rows `range` of a feature store's tensor, in 32 bits on `device`; the other dimensions stay
/// the same.
fn feature_rows(rows: &Tensor, range: Range<usize>, device: Device) -> Tensor {
    rows.narrow(0, range.start as i64, range.len() as i64).to_device(device).to_kind(Kind::Float)
}

#[cfg(test)]
mod tests {
    use config::{Preset, ProjectionInit};
    use weights::{ClipConfig, TextConfig, VisionBackbone};

    use super::*;
    use crate::captioner;

    /// The names and shapes of a model's parameters.
    fn shapes(parameters: &crate::nn::Parameters) -> weights::Shapes {
        let size = |tensor: &Tensor| tensor.size().iter().map(|&side| side as usize).collect();
        parameters.named_parameters().map(|(name, tensor)| (name.to_owned(), size(tensor))).collect()
    }

    #[test]
    fn models_have_the_parameters_that_the_weights_crate_requires() {
        let text = TextConfig { width: 64, layers: 1, heads: 1, context_length: 5, vocabulary_size: 7 };
        for vision in [
            VisionBackbone::Transformer { patch_size: 4, width: 64, layers: 2, heads: 1 },
            VisionBackbone::ResNet { blocks: [2, 1, 1, 1], width: 8, heads: 4 },
        ] {
            let config = ClipConfig::new(32, vision, text.clone(), 6);
            let clip = Clip::new(config.clone(), 1, Device::Cpu);
            assert_eq!(shapes(clip.parameters()), config.shapes().unwrap());
            let parameters = clip.parameters().named_parameters();
            let values = parameters.map(|(name, tensor)| (name.to_owned(), tensor.shallow_clone()));
            let vision_encoder = VisionEncoder::new(config.vision_config(), &values.collect(), Device::Cpu).unwrap();
            assert_eq!(shapes(vision_encoder.parameters()), config.vision_config().shapes().unwrap());
        }
        let config = captioner::preset(Preset::Tiny, 64, 65, 50);
        let captioner = Captioner::new(config.clone(), ProjectionInit::default(), 1, Device::Cpu);
        assert_eq!(shapes(captioner.parameters()), config.shapes().unwrap());
    }
}
