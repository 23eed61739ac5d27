//! The weight sources of a run's models: which files they are read from, and which of them share
//! weights.

use std::path::Path;
use std::sync::Arc;

use config::{NamedEvaluator, Preset, RunFile};
use image_features::EncoderDescription;
use sha2::{Digest, Sha256};
use tokenizer::Vocabulary;
use weights::clip::LoraReading;
use weights::model_folder::ModelFolder;
use weights::{ClipWeights, VisionConfig};

use crate::{Error, Evaluator, open_evaluator, open_folder};

/// The key of the captioner's model folder in a run file.
const CAPTIONER_KEY: &str = "captioner.weights";
/// The key of the CLIP whose vision encoder the captioner uses.
const VISION_ENCODER_KEY: &str = "captioner.vision_encoder";

/// The source of a model's initial parameters.
pub enum WeightSource<T> {
    /// Random initialization from the run's seed.
    Seed(Preset),
    /// Weights from a file or folder.
    Weights(T),
}

/// An opened CLIP that a run file names.
pub struct ClipSource {
    /// The key of the run file, for messages.
    pub key: String,
    /// The weights.
    pub weights: ClipWeights,
}

impl ClipSource {
    /// The description of the vision encoder in feature stores.
    fn description(&self) -> EncoderDescription {
        let Self { weights, .. } = self;
        describe_encoder(weights.path(), weights.sha256(), &weights.config().vision_config(), weights.lora())
    }
}

/// The captioner's vision encoder, if it has weights.
struct VisionSource {
    config: VisionConfig,
    /// Which LoRA factors of the file are added, if it has any.
    lora: Option<LoraReading>,
    /// Its description in feature stores; none if the run trains it.
    frozen: Option<EncoderDescription>,
}

/// The weight sources of a run's models: their initial parameters, which frozen models keep.
pub struct WeightSources {
    /// The CLIP of the primary evaluator.
    pub primary_clip: WeightSource<ClipSource>,
    /// The distinct CLIPs of the other evaluators; all are frozen.
    pub other_clips: Vec<ClipSource>,
    /// The captioner; a model folder also has a vision encoder and a vocabulary.
    pub captioner: WeightSource<ModelFolder>,
    /// The CLIP that `captioner.vision_encoder` names; without it the captioner uses the vision
    /// encoder of its model folder or, if it has none, of the primary evaluator.
    pub vision_encoder: Option<ClipSource>,
    /// The captioner's vocabulary.
    pub captioner_vocabulary: Arc<Vocabulary>,
    /// All evaluators, the primary one first.
    pub evaluators: Vec<Evaluator>,
    vision: Option<VisionSource>,
    /// The primary evaluator, if it has weights from a file and stays frozen.
    frozen_evaluator: Option<EncoderDescription>,
}

impl WeightSources {
    /// Opens the weights that `run` names. Models without a vocabulary of their own get
    /// `vocabulary`.
    ///
    /// # Errors
    /// A file is missing, or does not contain a model of the required kind; or the captioner has
    /// too few positions for the run's captions.
    pub fn open(run: &RunFile, vocabulary: Vocabulary) -> Result<Self, Error> {
        let run_vocabulary = Arc::new(vocabulary);
        let primary = run.primary_evaluator();
        let (primary_clip, primary_vocabulary) = match (&primary.settings.weights, primary.settings.preset) {
            (None, Some(preset)) => (WeightSource::Seed(preset), Arc::clone(&run_vocabulary)),
            _ => {
                let (clip, vocabulary) = open_clip_of(&primary)?;
                (WeightSource::Weights(clip), vocabulary)
            }
        };
        let captioner = match (&run.captioner.weights, run.captioner.preset) {
            (Some(path), _) => WeightSource::Weights(open_captioner_folder(run, path)?),
            (None, Some(preset)) => WeightSource::Seed(preset),
            (None, None) => return Err(Error::NoModel { key: "captioner".to_owned() }),
        };
        let captioner_vocabulary = match &captioner {
            WeightSource::Weights(folder) => Arc::new(Vocabulary::from_manifest(&folder.manifest().vocabulary)),
            WeightSource::Seed(_) => run_vocabulary,
        };
        let vision_encoder = run.captioner.vision_encoder.as_deref().map(|path| {
            let weights = ClipWeights::open(path, &run.captioner.vision_clip);
            weights.map(|weights| ClipSource { key: VISION_ENCODER_KEY.to_owned(), weights })
        });
        let vision_encoder = vision_encoder.transpose().map_err(Error::weights(VISION_ENCODER_KEY))?;
        let frozen_primary = match &primary_clip {
            WeightSource::Weights(clip) if !run.trains_evaluator() => Some(clip),
            _ => None,
        };
        let (evaluators, other_clips) = open_other_evaluators(run, frozen_primary)?;
        let evaluators = std::iter::once(Evaluator::new(&primary, primary_vocabulary, 0)).chain(evaluators).collect();
        let frozen_evaluator = frozen_primary.map(ClipSource::description);
        let vision = match (&vision_encoder, &captioner, &primary_clip) {
            (Some(clip), ..) => Some(VisionSource {
                config: clip.weights.config().vision_config(),
                lora: clip.weights.lora(),
                frozen: Some(clip.description()),
            }),
            (None, WeightSource::Weights(folder), _) => Some(vision_of_folder(folder)?),
            (None, WeightSource::Seed(_), WeightSource::Weights(clip)) => Some(VisionSource {
                config: clip.weights.config().vision_config(),
                lora: clip.weights.lora(),
                frozen: frozen_evaluator.clone(),
            }),
            (None, WeightSource::Seed(_), WeightSource::Seed(_)) => None,
        };
        Ok(Self {
            primary_clip,
            other_clips,
            captioner,
            vision_encoder,
            captioner_vocabulary,
            evaluators,
            vision,
            frozen_evaluator,
        })
    }

    /// Reads all tensors, as a worker does when it builds the models.
    ///
    /// # Errors
    /// Tensors of a model do not fit together.
    pub fn check_tensors(&self) -> Result<(), Error> {
        let primary = match &self.primary_clip {
            WeightSource::Weights(clip) => Some(clip),
            WeightSource::Seed(_) => None,
        };
        let mut clips = primary.into_iter().chain(&self.other_clips).chain(&self.vision_encoder);
        clips.try_for_each(|clip| clip.weights.tensors().map(drop).map_err(Error::weights(&clip.key)))?;
        match &self.captioner {
            WeightSource::Weights(folder) => {
                let tensors = folder.vision().and_then(|vision| vision.tensors().map(drop));
                tensors.map_err(Error::weights(CAPTIONER_KEY))
            }
            WeightSource::Seed(_) => Ok(()),
        }
    }

    /// The weights of the CLIP with this index (see [`Evaluator::clip_index`]); none if it starts
    /// from the seed.
    ///
    /// # Panics
    /// If there is no such CLIP.
    #[must_use]
    pub fn clip(&self, index: usize) -> Option<&ClipWeights> {
        match (index.checked_sub(1), &self.primary_clip) {
            (Some(other), _) => Some(&self.other_clips[other].weights),
            (None, WeightSource::Weights(clip)) => Some(&clip.weights),
            (None, WeightSource::Seed(_)) => None,
        }
    }

    /// The width of the embeddings by the CLIP with this index.
    fn clip_embedding_width(&self, index: usize) -> usize {
        match (index.checked_sub(1), &self.primary_clip) {
            (Some(other), _) => self.other_clips[other].weights.config().embedding,
            (None, WeightSource::Weights(clip)) => clip.weights.config().embedding,
            (None, WeightSource::Seed(preset)) => preset.evaluator_embedding_size(),
        }
    }

    /// The total width of an image's embeddings by all CLIPs of evaluators; a CLIP that evaluators
    /// share counts once.
    #[must_use]
    pub fn embedding_width(&self) -> usize {
        (0..=self.other_clips.len()).map(|index| self.clip_embedding_width(index)).sum()
    }

    /// The total width of an image's embeddings by all evaluators, as evaluations report them; a
    /// CLIP that evaluators share counts once per evaluator.
    #[must_use]
    pub fn evaluation_embedding_width(&self) -> usize {
        self.evaluators.iter().map(|evaluator| self.clip_embedding_width(evaluator.clip_index)).sum()
    }

    /// The config of the captioner's vision encoder; none if it starts from the seed.
    #[must_use]
    pub fn vision_config(&self) -> Option<&VisionConfig> {
        self.vision.as_ref().map(|vision| &vision.config)
    }

    /// Which LoRA factors of the captioner's vision encoder are added, if its file has any.
    #[must_use]
    pub fn vision_lora(&self) -> Option<LoraReading> {
        self.vision.as_ref().and_then(|vision| vision.lora)
    }

    /// The captioner's vision encoder, if it has weights from a file and stays frozen.
    #[must_use]
    pub fn frozen_vision(&self) -> Option<&EncoderDescription> {
        self.vision.as_ref().and_then(|vision| vision.frozen.as_ref())
    }

    /// The sources of the captioner's vision encoder and of the evaluators' models; none unless all
    /// of them stay frozen.
    #[must_use]
    pub fn frozen_encoders(&self) -> Option<(EncoderDescription, Vec<EncoderDescription>)> {
        let primary = self.frozen_evaluator.clone()?;
        let evaluators = std::iter::once(primary).chain(self.other_clips.iter().map(ClipSource::description));
        Some((self.frozen_vision()?.clone(), evaluators.collect()))
    }

    /// The index of the evaluators' CLIP whose vision encoder the captioner uses, if any: the
    /// primary one if the captioner has no vision encoder of its own; else a frozen CLIP with the
    /// weights of the captioner's vision encoder, so that images are not encoded twice.
    #[must_use]
    pub fn shared_vision_encoder(&self) -> Option<usize> {
        let own = match (&self.vision_encoder, &self.captioner) {
            (None, WeightSource::Seed(_)) => return Some(0),
            _ => self.frozen_vision()?,
        };
        let is_same =
            |encoder: &EncoderDescription| (&encoder.sha256, &encoder.computation) == (&own.sha256, &own.computation);
        if self.frozen_evaluator.as_ref().is_some_and(is_same) {
            return Some(0);
        }
        self.other_clips.iter().position(|clip| is_same(&clip.description())).map(|other| other + 1)
    }

    /// The SHA-256 (hex) of the frozen encoders' checksums and computation, and of the
    /// vocabularies. Each worker loads them by itself, and they have to be equal on all workers.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        let other_encoders: Vec<EncoderDescription> = self.other_clips.iter().map(ClipSource::description).collect();
        let own_encoders = [self.frozen_vision(), self.frozen_evaluator.as_ref()];
        for encoder in own_encoders.into_iter().flatten().chain(&other_encoders) {
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
}

/// Opens the CLIP of an evaluator, with its vocabulary.
fn open_clip_of(evaluator: &NamedEvaluator<'_>) -> Result<(ClipSource, Arc<Vocabulary>), Error> {
    let config::Evaluator { weights, clip, .. } = evaluator.settings;
    let path = weights.as_deref().ok_or_else(|| Error::NoModel { key: evaluator.key() })?;
    let key = format!("{}.weights", evaluator.key());
    let (weights, vocabulary) = open_evaluator(path, clip).map_err(Error::weights(&key))?;
    Ok((ClipSource { key, weights }, Arc::new(vocabulary)))
}

/// Opens the evaluators besides the primary one, and their distinct CLIPs. An evaluator with the
/// weights of `frozen_primary`, the CLIP of a frozen primary evaluator, shares that CLIP.
fn open_other_evaluators(
    run: &RunFile,
    frozen_primary: Option<&ClipSource>,
) -> Result<(Vec<Evaluator>, Vec<ClipSource>), Error> {
    let (mut evaluators, mut clips) = (Vec::new(), Vec::<ClipSource>::new());
    for named in &run.named_evaluators()[1..] {
        let (clip, vocabulary) = open_clip_of(named)?;
        let is_same = |other: &ClipSource| other.weights.is_same_model(&clip.weights);
        let index = match frozen_primary.filter(|primary| is_same(primary)) {
            Some(_) => Some(0),
            None => clips.iter().position(is_same).map(|other| other + 1),
        };
        let index = index.unwrap_or_else(|| {
            clips.push(clip);
            clips.len()
        });
        evaluators.push(Evaluator::new(named, vocabulary, index));
    }
    Ok((evaluators, clips))
}

/// Opens the model folder of the captioner.
fn open_captioner_folder(run: &RunFile, path: &Path) -> Result<ModelFolder, Error> {
    let folder = open_folder(path).map_err(Error::weights(CAPTIONER_KEY))?;
    run.check_positions(folder.manifest().captioner.positions).map_err(Error::Positions)?;
    Ok(folder)
}

/// The vision encoder of a captioner's model folder.
fn vision_of_folder(folder: &ModelFolder) -> Result<VisionSource, Error> {
    let weights = folder.vision().map_err(Error::weights(CAPTIONER_KEY))?;
    let (config, lora) = (folder.manifest().vision.config.clone(), weights.lora());
    let frozen = Some(describe_encoder(weights.path(), weights.sha256(), &config, lora));
    Ok(VisionSource { config, lora, frozen })
}

/// The description of a frozen vision encoder in feature stores.
fn describe_encoder(
    path: &Path,
    sha256: String,
    config: &VisionConfig,
    lora: Option<LoraReading>,
) -> EncoderDescription {
    let (image_size, computation) = (config.image_size as u32, config.differences_from_openai(lora));
    EncoderDescription { weights: path.to_owned(), sha256, image_size, computation }
}
