//! The weight sources of a run's models: which files they are read from, and which of them share
//! weights.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use config::{EvaluatorScore, NamedEvaluator, Precision, Preset, ProjectionInit, RunFile};
use image_features::EncoderDescription;
use sha2::{Digest, Sha256};
use tch::Device;
use tokenizer::Vocabulary;
use weights::clip::{LoraReading, is_lora_factor};
use weights::model_folder::{self, ModelFolder};
use weights::{ClipWeights, VisionConfig};

use super::open_weights::{build_clip, mismatch_error};
use super::{CaptionerVisionEncoder, RunModels, open_captioner, open_evaluator, open_folder, open_vision_encoder};
use crate::captioner::{self, Captioner};
use crate::clip::{self, Clip, TrainableParts, VisionEncoder};
use crate::nn::Backend;
use crate::seeds;
use crate::tensor_conversion;

/// The source of a model's initial parameters.
enum WeightSource<T> {
    /// Random initialization from the run's seed.
    Seed(Preset),
    /// Weights from a file or folder.
    Weights(T),
}

/// An evaluator of a run, with its vocabulary.
pub struct Evaluator {
    /// Its name in rewards, which is also the name of its metric.
    pub name: String,
    /// The name of its metric that includes references.
    pub reference_metric: String,
    /// The name prefix of its retrieval metrics.
    pub retrieval_prefix: String,
    /// The score that its cosines are converted to.
    pub score: EvaluatorScore,
    /// Its settings in the run file, e.g. how it tokenizes texts.
    pub settings: config::Evaluator,
    /// Its vocabulary.
    pub vocabulary: Arc<Vocabulary>,
    /// The index of its CLIP, for [`RunModels::clip`]. Frozen evaluators with the same weights
    /// share a CLIP.
    pub clip_index: usize,
}

impl Evaluator {
    fn new(evaluator: &NamedEvaluator<'_>, vocabulary: Arc<Vocabulary>, clip_index: usize) -> Self {
        Self {
            name: evaluator.name.to_owned(),
            reference_metric: evaluator.reference_metric(),
            retrieval_prefix: evaluator.retrieval_prefix(),
            score: evaluator.score(),
            settings: evaluator.settings.clone(),
            vocabulary,
            clip_index,
        }
    }
}

/// The initial vocabulary of a run with these training captions.
pub fn initial_vocabulary<'a>(run: &RunFile, captions: impl Iterator<Item = &'a str>) -> Vocabulary {
    match run.vocabulary {
        config::Vocabulary::Full => Vocabulary::full(),
        config::Vocabulary::Corpus => Vocabulary::of_corpus(captions),
    }
}

/// The weight sources of a run's models: their initial parameters, which frozen models keep.
pub struct WeightSources {
    seed: u64,
    precision: Precision,
    /// The primary evaluator.
    evaluator: WeightSource<ClipWeights>,
    /// The distinct CLIPs of the other evaluators; all are frozen.
    other_clips: Vec<ClipWeights>,
    /// The parts of the primary evaluator that the run trains separately.
    trainable_parts: TrainableParts,
    /// The captioner; a model folder also has a vision encoder and a vocabulary.
    captioner: WeightSource<ModelFolder>,
    /// The initialization of the projection, for a captioner that starts from the seed.
    projection_init: ProjectionInit,
    /// The CLIP weights that `captioner.vision_encoder` names; without them the captioner uses the
    /// vision encoder of its model folder or, if it has none, of the primary evaluator.
    vision: Option<ClipWeights>,
    /// Which LoRA factors of the captioner's vision encoder are added, if it has any.
    vision_lora: Option<LoraReading>,
    /// The captioner's vocabulary.
    pub captioner_vocabulary: Arc<Vocabulary>,
    /// All evaluators, the primary one first.
    pub evaluators: Vec<Evaluator>,
    /// The captioner's vision encoder, if it has weights from a file and stays frozen.
    frozen_vision: Option<EncoderDescription>,
    /// The primary evaluator, if it has weights from a file and stays frozen.
    frozen_evaluator: Option<EncoderDescription>,
}

impl WeightSources {
    /// Opens the weights that `run` names. Models without a vocabulary of their own get
    /// `vocabulary`.
    ///
    /// # Errors
    /// A file is missing, or does not contain a model of the required kind.
    pub fn open(run: &RunFile, vocabulary: Vocabulary) -> Result<Self> {
        let primary = run.primary_evaluator();
        let (evaluator, evaluator_vocabulary) = match (&primary.settings.weights, primary.settings.preset) {
            (Some(path), _) => {
                let (clip, vocabulary) = open_evaluator(path, &primary.settings.clip)?;
                (WeightSource::Weights(clip), Some(Arc::new(vocabulary)))
            }
            (None, preset) => {
                (WeightSource::Seed(preset.context("evaluator needs either `preset` or `weights`")?), None)
            }
        };
        let captioner = match (&run.captioner.weights, run.captioner.preset) {
            (Some(path), _) => WeightSource::Weights(open_folder(path)?),
            (None, preset) => WeightSource::Seed(preset.context("captioner needs either `preset` or `weights`")?),
        };
        let run_vocabulary = Arc::new(vocabulary);
        let captioner_vocabulary = match &captioner {
            WeightSource::Weights(folder) => Arc::new(Vocabulary::from_manifest(&folder.manifest().vocabulary)),
            WeightSource::Seed(_) => Arc::clone(&run_vocabulary),
        };
        let evaluator_vocabulary = evaluator_vocabulary.unwrap_or(run_vocabulary);
        let vision_path = run.captioner.vision_encoder.as_deref();
        let vision = vision_path.map(|path| ClipWeights::open(path, &run.captioner.vision_clip)).transpose()?;
        let frozen_primary = match &evaluator {
            WeightSource::Weights(clip) if !run.trains_evaluator() => Some(clip),
            _ => None,
        };
        let frozen_evaluator = frozen_primary.map(describe_encoder);
        let mut evaluators = vec![Evaluator::new(&primary, evaluator_vocabulary, 0)];
        let mut other_clips: Vec<ClipWeights> = Vec::new();
        for named in &run.named_evaluators()[1..] {
            let path = named.settings.weights.as_deref().with_context(|| format!("{} needs weights", named.key()))?;
            let (clip, vocabulary) =
                open_evaluator(path, &named.settings.clip).map_err(|error| anyhow!("{}: {error}", named.key()))?;
            let index = match frozen_primary.filter(|primary| primary.is_same_model(&clip)) {
                Some(_) => Some(0),
                None => other_clips.iter().position(|other| other.is_same_model(&clip)).map(|other| other + 1),
            };
            let index = index.unwrap_or_else(|| {
                other_clips.push(clip);
                other_clips.len()
            });
            evaluators.push(Evaluator::new(named, Arc::new(vocabulary), index));
        }
        let (frozen_vision, vision_lora) = match (&vision, &captioner, &evaluator) {
            (Some(clip), ..) => (Some(describe_encoder(clip)), clip.lora()),
            (None, WeightSource::Weights(folder), _) => {
                let (weights, config) = (folder.vision()?, &folder.manifest().vision.config);
                let lora = weights.lora();
                (Some(encoder_description(weights.path(), weights.sha256(), config, lora)), lora)
            }
            (None, WeightSource::Seed(_), WeightSource::Weights(clip)) => (frozen_evaluator.clone(), clip.lora()),
            (None, WeightSource::Seed(_), WeightSource::Seed(_)) => (None, None),
        };
        Ok(Self {
            seed: run.seed,
            precision: run.compute_dtype,
            evaluator,
            other_clips,
            trainable_parts: TrainableParts::of_run(run),
            captioner,
            projection_init: run.captioner.projection_init,
            vision,
            vision_lora,
            captioner_vocabulary,
            evaluators,
            frozen_vision,
            frozen_evaluator,
        })
    }

    /// The primary evaluator's vocabulary.
    #[must_use]
    pub fn evaluator_vocabulary(&self) -> &Arc<Vocabulary> {
        &self.evaluators[0].vocabulary
    }

    /// The sources of the captioner's vision encoder and of the evaluators' models; none unless all
    /// of them stay frozen.
    #[must_use]
    pub fn frozen_encoders(&self) -> Option<(EncoderDescription, Vec<EncoderDescription>)> {
        let primary = self.frozen_evaluator.clone()?;
        let evaluators = std::iter::once(primary).chain(self.other_clips.iter().map(describe_encoder));
        Some((self.frozen_vision.clone()?, evaluators.collect()))
    }

    /// The total width of an image's embeddings by all evaluators, as evaluations report them; a
    /// CLIP that evaluators share counts once per evaluator.
    #[must_use]
    pub fn evaluation_embedding_width(&self, models: &RunModels) -> usize {
        self.evaluators.iter().map(|evaluator| models.clip(evaluator.clip_index).config().embedding).sum()
    }

    /// The SHA-256 (hex) of the frozen encoders' checksums and computation, and of the
    /// vocabularies. Each worker loads them by itself, and they have to be equal on all workers.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        let other_encoders: Vec<EncoderDescription> = self.other_clips.iter().map(describe_encoder).collect();
        for encoder in [&self.frozen_vision, &self.frozen_evaluator].into_iter().flatten().chain(&other_encoders) {
            hash.update(&encoder.sha256);
            hash.update(&encoder.computation);
        }
        let evaluator_vocabularies = self.evaluators.iter().map(|evaluator| &evaluator.vocabulary);
        for vocabulary in std::iter::once(&self.captioner_vocabulary).chain(evaluator_vocabularies) {
            hash.update(serde_json::to_vec(&vocabulary.to_manifest()).expect("a vocabulary is plain data"));
        }
        format!("{:x}", hash.finalize())
    }

    /// Whether checkpoints include the primary evaluator: it is trained, or was initialized from
    /// the seed.
    #[must_use]
    pub fn saves_evaluator(&self) -> bool {
        self.frozen_evaluator.is_none()
    }

    /// The manifest of a model folder with the captioner of `models`.
    #[must_use]
    pub fn manifest(&self, models: &RunModels) -> model_folder::Manifest {
        let (path, sha256) = match &self.frozen_vision {
            Some(encoder) => (encoder.weights.clone(), Some(encoder.sha256.clone())),
            None => (PathBuf::from(model_folder::EVALUATOR_FILE), None),
        };
        let vision = model_folder::VisionEncoder {
            config: models.vision_config(),
            path,
            sha256,
            lora: self.vision_lora,
            upstream_prefix: None,
        };
        let captioner = models.captioner.config().clone();
        let evaluator = self.saves_evaluator().then(|| model_folder::TrainedEvaluator {
            config: models.primary_clip.config().clone(),
            vocabulary: self.evaluator_vocabulary().to_manifest(),
        });
        model_folder::Manifest::new(self.captioner_vocabulary.to_manifest(), captioner, vision, evaluator)
    }

    /// Builds the models with their initial parameters.
    ///
    /// # Errors
    /// Weights do not fit their config, or the models do not fit each other.
    pub fn build_models(&self, device: Device) -> Result<RunModels> {
        let backend = Backend { device, precision: self.precision };
        let evaluator = self.build_evaluator(backend)?;
        let other_clips =
            self.other_clips.iter().map(|clip| build_clip(clip, backend)).collect::<Result<Vec<Clip>>>()?;
        let vision = match self.shared_vision_encoder() {
            Some(index) => CaptionerVisionEncoder::SharedWithEvaluator(index),
            None => CaptionerVisionEncoder::Separate(Box::new(self.build_vision_encoder(backend)?)),
        };
        let vision_config = match &vision {
            CaptionerVisionEncoder::Separate(vision_encoder) => vision_encoder.config().clone(),
            CaptionerVisionEncoder::SharedWithEvaluator(0) => evaluator.config().vision_config(),
            CaptionerVisionEncoder::SharedWithEvaluator(index) => other_clips[index - 1].config().vision_config(),
        };
        let captioner = self.build_captioner(&vision_config, backend)?;
        Ok(RunModels { primary_clip: evaluator, other_clips, vision, captioner })
    }

    fn build_evaluator(&self, backend: Backend) -> Result<Clip> {
        let (seed, trainable_parts) = (seeds::derive(self.seed, "evaluator"), &self.trainable_parts);
        match &self.evaluator {
            WeightSource::Seed(preset) => {
                let config = clip::preset(*preset, self.evaluator_vocabulary().pad_token() as usize);
                Ok(Clip::trainable(config, seed, backend, trainable_parts))
            }
            WeightSource::Weights(clip) => {
                let values = tensor_conversion::from_weights(clip.tensors()?);
                let evaluator =
                    Clip::trainable_from_tensors(clip.config().clone(), &values, seed, backend, trainable_parts);
                let evaluator = evaluator.map_err(|error| mismatch_error(clip.path(), &error))?;
                let has_factors = evaluator.parameters().named_parameters().any(|(name, _)| is_lora_factor(name));
                if trainable_parts.lora.is_some() && !has_factors {
                    let path = clip.path().display();
                    bail!("{path}: has none of the weights that trainable.lora.targets names");
                }
                Ok(evaluator)
            }
        }
    }

    /// The index of the evaluators' CLIP whose vision encoder the captioner uses, if any: the
    /// primary one if the captioner has no vision encoder of its own; else a frozen CLIP with the
    /// weights of the captioner's vision encoder, so that images are not encoded twice.
    fn shared_vision_encoder(&self) -> Option<usize> {
        let own = match (&self.vision, &self.captioner) {
            (None, WeightSource::Seed(_)) => return Some(0),
            _ => self.frozen_vision.as_ref()?,
        };
        let is_same =
            |encoder: &EncoderDescription| (&encoder.sha256, &encoder.computation) == (&own.sha256, &own.computation);
        if self.frozen_evaluator.as_ref().is_some_and(is_same) {
            return Some(0);
        }
        self.other_clips.iter().position(|clip| is_same(&describe_encoder(clip))).map(|other| other + 1)
    }

    fn build_vision_encoder(&self, backend: Backend) -> Result<VisionEncoder> {
        match (&self.vision, &self.captioner) {
            (Some(clip), _) => {
                let values = tensor_conversion::from_weights(clip.tensors()?);
                let vision_encoder = VisionEncoder::new(clip.config().vision_config(), &values, backend);
                vision_encoder.map_err(|error| mismatch_error(clip.path(), &error))
            }
            (None, WeightSource::Weights(folder)) => open_vision_encoder(folder, backend),
            (None, WeightSource::Seed(_)) => {
                unreachable!("a captioner from the seed without vision_encoder uses the primary evaluator's")
            }
        }
    }

    fn build_captioner(&self, vision: &VisionConfig, backend: Backend) -> Result<Captioner> {
        match &self.captioner {
            WeightSource::Seed(preset) => {
                let vocabulary = self.captioner_vocabulary.size() as usize;
                let config = captioner::preset(*preset, vision.width(), vision.sequence_length(), vocabulary);
                Ok(Captioner::new(config, self.projection_init, seeds::derive(self.seed, "captioner"), backend))
            }
            WeightSource::Weights(folder) => open_captioner(folder, backend),
        }
    }
}

/// The source of a CLIP's vision encoder, for feature stores.
fn describe_encoder(clip: &ClipWeights) -> EncoderDescription {
    encoder_description(clip.path(), clip.sha256(), &clip.config().vision_config(), clip.lora())
}

fn encoder_description(
    path: &Path,
    sha256: String,
    config: &VisionConfig,
    lora: Option<LoraReading>,
) -> EncoderDescription {
    let (image_size, computation) = (config.image_size as u32, config.differences_from_openai(lora));
    EncoderDescription { weights: path.to_owned(), sha256, image_size, computation }
}
