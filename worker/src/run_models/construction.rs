//! Construction of models from their weights.

use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use config::RunFile;
use run_assets::{WeightSource, WeightSources};
use tch::Device;
use weights::clip::is_lora_factor;
use weights::model_folder::ModelFolder;
use weights::{ClipWeights, VisionConfig};

use super::{CaptionerVisionEncoder, RunModels};
use crate::captioner::{self, Captioner};
use crate::clip::{self, Clip, TrainableParts, VisionEncoder};
use crate::nn::{Backend, ParameterMismatchError};
use crate::{seeds, tensor_conversion};

impl RunModels {
    /// Builds the models of `run` with their initial parameters.
    ///
    /// # Errors
    /// Weights do not fit their config, or the models do not fit each other.
    pub fn build(run: &RunFile, weights: &WeightSources, device: Device) -> Result<Self> {
        let backend = Backend { device, precision: run.compute_dtype };
        let primary_clip = build_primary_clip(run, weights, backend)?;
        let other_clips = weights
            .other_clips
            .iter()
            .map(|source| open_clip(&source.weights, backend).with_context(|| source.key.clone()))
            .collect::<Result<Vec<Clip>>>()?;
        let vision = match weights.shared_vision_encoder() {
            Some(index) => CaptionerVisionEncoder::SharedWithEvaluator(index),
            None => CaptionerVisionEncoder::Separate(Box::new(build_vision_encoder(weights, backend)?)),
        };
        let vision_config = match &vision {
            CaptionerVisionEncoder::Separate(vision_encoder) => vision_encoder.config().clone(),
            CaptionerVisionEncoder::SharedWithEvaluator(0) => primary_clip.config().vision_config(),
            CaptionerVisionEncoder::SharedWithEvaluator(index) => other_clips[index - 1].config().vision_config(),
        };
        let captioner = build_captioner(run, weights, &vision_config, backend)?;
        let (captioner_vocabulary, evaluators) = (weights.captioner_vocabulary.clone(), weights.evaluators.clone());
        Ok(Self { primary_clip, other_clips, vision, captioner, captioner_vocabulary, evaluators })
    }
}

fn build_primary_clip(run: &RunFile, weights: &WeightSources, backend: Backend) -> Result<Clip> {
    let (seed, trainable_parts) = (seeds::derive(run.seed, "evaluator"), TrainableParts::of_run(run));
    match &weights.primary_clip {
        WeightSource::Seed(preset) => {
            let config = clip::preset(*preset, weights.evaluators[0].vocabulary.pad_token() as usize);
            Ok(Clip::trainable(config, seed, backend, &trainable_parts))
        }
        WeightSource::Weights(source) => {
            let clip = open_trainable_clip(&source.weights, seed, backend, &trainable_parts);
            clip.with_context(|| source.key.clone())
        }
    }
}

/// Builds a CLIP with these weights, whose parts `trainable_parts` a run trains. LoRA factors are
/// initialized from `seed`.
fn open_trainable_clip(
    weights: &ClipWeights,
    seed: u64,
    backend: Backend,
    trainable_parts: &TrainableParts,
) -> Result<Clip> {
    let values = tensor_conversion::from_weights(weights.tensors()?);
    let clip = Clip::trainable_from_tensors(weights.config().clone(), &values, seed, backend, trainable_parts);
    let clip = clip.map_err(|error| mismatch_error(weights.path(), &error))?;
    let has_factors = clip.parameters().named_parameters().any(|(name, _)| is_lora_factor(name));
    if trainable_parts.lora.is_some() && !has_factors {
        bail!("{}: has none of the weights that trainable.lora.targets names", weights.path().display());
    }
    Ok(clip)
}

/// Builds a frozen CLIP with these weights.
///
/// # Errors
/// The weights cannot be read, or do not fit their config.
pub fn open_clip(weights: &ClipWeights, backend: impl Into<Backend>) -> Result<Clip> {
    let values = tensor_conversion::from_weights(weights.tensors()?);
    let clip = Clip::from_tensors(weights.config().clone(), &values, backend);
    clip.map_err(|error| mismatch_error(weights.path(), &error))
}

/// Builds the captioner's vision encoder, which no evaluator has.
fn build_vision_encoder(weights: &WeightSources, backend: Backend) -> Result<VisionEncoder> {
    match (&weights.vision_encoder, &weights.captioner) {
        (Some(source), _) => {
            let tensors = source.weights.tensors().with_context(|| source.key.clone())?;
            let values = tensor_conversion::from_weights(tensors);
            let vision_encoder = VisionEncoder::new(source.weights.config().vision_config(), &values, backend);
            vision_encoder.map_err(|error| mismatch_error(source.weights.path(), &error))
        }
        (None, WeightSource::Weights(folder)) => open_vision_encoder(folder, backend),
        (None, WeightSource::Seed(_)) => {
            unreachable!("a captioner from the seed without vision_encoder uses the primary evaluator's")
        }
    }
}

fn build_captioner(
    run: &RunFile,
    weights: &WeightSources,
    vision: &VisionConfig,
    backend: Backend,
) -> Result<Captioner> {
    match &weights.captioner {
        WeightSource::Seed(preset) => {
            let vocabulary = weights.captioner_vocabulary.size() as usize;
            let config = captioner::preset(*preset, vision.width(), vision.sequence_length(), vocabulary);
            let seed = seeds::derive(run.seed, "captioner");
            Ok(Captioner::new(config, run.captioner.projection_init, seed, backend))
        }
        WeightSource::Weights(folder) => open_captioner(folder, backend),
    }
}

/// Builds the vision encoder of a model folder's captioner.
///
/// # Errors
/// It is missing, or its tensors do not fit its config.
pub fn open_vision_encoder(folder: &ModelFolder, backend: impl Into<Backend>) -> Result<VisionEncoder> {
    let weights = folder.vision()?;
    let values = tensor_conversion::from_weights(weights.tensors()?);
    let vision_encoder = VisionEncoder::new(folder.manifest().vision.config.clone(), &values, backend);
    vision_encoder.map_err(|error| mismatch_error(weights.path(), &error))
}

/// Builds the captioner of a model folder.
///
/// # Errors
/// Its tensors do not fit its config.
pub fn open_captioner(folder: &ModelFolder, backend: impl Into<Backend>) -> Result<Captioner> {
    let values = tensor_conversion::from_weights(folder.captioner());
    let captioner = Captioner::from_tensors(folder.manifest().captioner.clone(), &values, backend);
    captioner.map_err(|error| mismatch_error(folder.path(), &error))
}

/// The error of weights at `path` that do not fit their config.
fn mismatch_error(path: &Path, error: &ParameterMismatchError) -> anyhow::Error {
    anyhow!("{}: {error}", path.display())
}
