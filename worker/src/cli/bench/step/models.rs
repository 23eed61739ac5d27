//! The models of the measured steps: of the size of the paper's models, with random weights.

use std::sync::Arc;

use clap::ValueEnum;
use config::{NamedEvaluator, Preset, ProjectionInit};
use run_assets::Evaluator;
use tch::Tensor;
use tokenizer::Vocabulary;
use weights::{ClipConfig, TextConfig, VisionBackbone};

use crate::captioner::{self, Captioner};
use crate::clip::{self, Clip, VisionEncoder};
use crate::nn::Backend;
use crate::run_models::{CaptionerVisionEncoder, RunModels};

/// The seeds of the random weights.
const VISION_SEED: u64 = 1;
const EVALUATOR_SEED: u64 = 2;
const CAPTIONER_SEED: u64 = 3;

/// The size of a CLIP vision encoder.
#[derive(Clone, Copy, ValueEnum)]
pub enum VisionEncoderPreset {
    /// ViT-B/32.
    #[value(name = "vit-b-32")]
    VitB32,
    /// ViT-L/14.
    #[value(name = "vit-l-14")]
    VitL14,
    /// ResNet-50.
    #[value(name = "rn50")]
    Rn50,
}

impl VisionEncoderPreset {
    /// A CLIP with this vision encoder. Its text encoder is minimal, because it is not used.
    fn config(self) -> ClipConfig {
        let vision = match self {
            Self::VitB32 => VisionBackbone::Transformer { patch_size: 32, width: 768, layers: 12, heads: 12 },
            Self::VitL14 => VisionBackbone::Transformer { patch_size: 14, width: 1024, layers: 24, heads: 16 },
            Self::Rn50 => VisionBackbone::ResNet { blocks: [3, 4, 6, 3], width: 64, heads: 32 },
        };
        let text = TextConfig { width: 64, layers: 1, heads: 1, context_length: 1, vocabulary_size: 1 };
        ClipConfig::new(224, vision, text, 64)
    }

    fn build(self, backend: Backend) -> VisionEncoder {
        let clip = Clip::new(self.config(), VISION_SEED, backend);
        let parameters = clip.parameters().named_parameters();
        let values = parameters.map(|(name, tensor): (&str, &Tensor)| (name.to_owned(), tensor.shallow_clone()));
        let vision_encoder = VisionEncoder::new(clip.config().vision_config(), &values.collect(), backend);
        vision_encoder.expect("the parameters are those of this config")
    }
}

/// Builds the models: a captioner with a vision encoder of its own, and one evaluator with the
/// settings `evaluator`.
pub fn build(
    vision: VisionEncoderPreset,
    captioner_vocabulary: Vocabulary,
    evaluator: &NamedEvaluator<'_>,
    backend: Backend,
) -> RunModels {
    let vision_encoder = vision.build(backend);
    let vision = vision_encoder.config();
    let vocabulary_size = captioner_vocabulary.size() as usize;
    let config = captioner::preset(Preset::Dico, vision.width(), vision.sequence_length(), vocabulary_size);
    RunModels {
        primary_clip: build_evaluator(backend),
        other_clips: Vec::new(),
        captioner: Captioner::new(config, ProjectionInit::default(), CAPTIONER_SEED, backend),
        vision: CaptionerVisionEncoder::Separate(Box::new(vision_encoder)),
        captioner_vocabulary: Arc::new(captioner_vocabulary),
        evaluators: vec![Evaluator::new(evaluator, Arc::new(Vocabulary::full()), 0)],
    }
}

/// Builds the CLIP of the evaluator.
pub fn build_evaluator(backend: Backend) -> Clip {
    Clip::new(clip::preset(Preset::Dico, Vocabulary::full().pad_token() as usize), EVALUATOR_SEED, backend)
}
