//! The models of a run: their sources, their construction, and the outputs of the frozen encoders
//! for a batch.
//!
//! ```text
//!   images --> vision encoder ------------> hidden states --> captioner --> candidates
//!      \-----> each evaluator's vision ---> embeddings ---\                     |
//!                                     rewards <--- evaluator's text <-- text <--+
//! ```

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use config::{EvaluatorScore, NamedEvaluator, Precision, Preset, ProjectionInit, RunFile};
use feature_store::Tower;
use sha2::{Digest, Sha256};
use tch::{Device, Kind, Tensor, no_grad};
use tokenizer::Vocabulary;
use weights::clip::{LoraReading, is_lora_factor};
use weights::folder::{self, Folder};
use weights::{Conventions, VisionArchitecture};

use crate::captioner::{self, Captioner};
use crate::clip::{self, Clip, Trainables, VisionEncoder};
use crate::data::{Batch, BatchImages, Sizes, normalise};
use crate::nn::{Backend, Mismatch};
use crate::seeds;
use crate::tensors;

/// The source of a model's initial parameters.
enum WeightSource<T> {
    /// Random initialization from the run's seed.
    Seed(Preset),
    /// Weights from a file or folder.
    Weights(T),
}

/// Opens the model folder `path`, written by a run or by `worker import`, and verifies its
/// checksums.
///
/// # Errors
/// It is not a model folder, or it is damaged.
pub fn open_folder(path: &Path) -> Result<Folder, String> {
    let folder = Folder::open(path).map_err(|error| error.to_string())?;
    checkpoint_store::verify(path).map_err(|error| error.to_string())?;
    Ok(folder)
}

/// Opens the CLIP at `path`, a file or a checkpoint of a run, with its vocabulary. Verifies the
/// checksums of a checkpoint.
///
/// # Errors
/// It is not a CLIP, its conventions are unknown, or it is damaged.
pub fn open_evaluator(path: &Path, said: &Conventions) -> Result<(weights::Clip, Vocabulary), String> {
    let (clip, vocabulary) = folder::open_evaluator(path, said).map_err(|error| error.to_string())?;
    if path.is_dir() && path.join(folder::MANIFEST).is_file() {
        checkpoint_store::verify(path).map_err(|error| error.to_string())?;
    }
    Ok((clip, Vocabulary::stored(&vocabulary)))
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
    /// How it tokenizes texts.
    pub settings: config::Evaluator,
    /// Its vocabulary.
    pub vocabulary: Arc<Vocabulary>,
    /// The index of its model, for [`Models::clip`]: evaluators with the same weights share one.
    pub clip: usize,
}

impl Evaluator {
    fn new(evaluator: &NamedEvaluator<'_>, vocabulary: Arc<Vocabulary>, clip: usize) -> Self {
        Self {
            name: evaluator.name.to_owned(),
            reference_metric: evaluator.reference_metric(),
            retrieval_prefix: evaluator.retrieval_prefix(),
            score: evaluator.score(),
            settings: evaluator.settings.clone(),
            vocabulary,
            clip,
        }
    }
}

/// The initial vocabulary of a run with these training captions.
pub fn vocabulary<'a>(run: &RunFile, captions: impl Iterator<Item = &'a str>) -> Vocabulary {
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
    evaluator: WeightSource<weights::Clip>,
    /// The distinct models of the other evaluators; all are frozen.
    further: Vec<weights::Clip>,
    /// The parts of the evaluator that the run trains separately.
    trainables: Trainables,
    captioner: WeightSource<Folder>,
    /// The initialization of the projection, for a captioner that starts from the seed.
    projection_init: ProjectionInit,
    /// The CLIP weights of the captioner's own vision encoder; none if it shares an evaluator's.
    vision: Option<weights::Clip>,
    /// Which LoRA factors of the captioner's vision encoder are added, if it has any.
    vision_lora: Option<LoraReading>,
    /// The captioner's vocabulary.
    pub captioner_vocabulary: Arc<Vocabulary>,
    /// All evaluators, the primary one first.
    pub evaluators: Vec<Evaluator>,
    /// The captioner's vision encoder, if it is a file and stays frozen.
    vision_tower: Option<Tower>,
    /// The primary evaluator, if it is a file and stays frozen.
    evaluator_tower: Option<Tower>,
}

impl WeightSources {
    /// Opens the weights that `run` names. Models without a vocabulary of their own get this
    /// `vocabulary`.
    ///
    /// # Errors
    /// A file is missing, or does not have such a model.
    pub fn open(run: &RunFile, vocabulary: Vocabulary) -> Result<Self, String> {
        let text = |error: weights::Error| error.to_string();
        let clip = |path: &Path| weights::Clip::open(path, &run.captioner.vision_clip).map_err(text);
        let primary = run.primary_evaluator();
        let (evaluator, evaluator_vocabulary) = match (&primary.settings.weights, primary.settings.preset) {
            (Some(path), _) => {
                let (clip, vocabulary) = open_evaluator(path, &primary.settings.clip)?;
                (WeightSource::Weights(clip), Some(Arc::new(vocabulary)))
            }
            (None, preset) => (WeightSource::Seed(preset.ok_or("evaluator needs either `preset` or `weights`")?), None),
        };
        let captioner = match (&run.captioner.weights, run.captioner.preset) {
            (Some(path), _) => WeightSource::Weights(open_folder(path)?),
            (None, preset) => WeightSource::Seed(preset.ok_or("captioner needs either `preset` or `weights`")?),
        };
        let of_run = Arc::new(vocabulary);
        let captioner_vocabulary = match &captioner {
            WeightSource::Weights(folder) => Arc::new(Vocabulary::stored(&folder.manifest().vocabulary)),
            WeightSource::Seed(_) => Arc::clone(&of_run),
        };
        let evaluator_vocabulary = evaluator_vocabulary.unwrap_or(of_run);
        let vision = run.captioner.vision_encoder.as_deref().map(clip).transpose()?;
        let evaluator_tower = match &evaluator {
            WeightSource::Weights(clip) if !run.trains_evaluator() => Some(of_clip(clip)),
            _ => None,
        };
        let mut evaluators = vec![Evaluator::new(&primary, evaluator_vocabulary, 0)];
        let mut further: Vec<weights::Clip> = Vec::new();
        for named in &run.named_evaluators()[1..] {
            let path = named.settings.weights.as_deref().ok_or_else(|| format!("{} needs weights", named.key()))?;
            let (clip, vocabulary) =
                open_evaluator(path, &named.settings.clip).map_err(|problem| format!("{}: {problem}", named.key()))?;
            let frozen = match &evaluator {
                WeightSource::Weights(primary) if !run.trains_evaluator() => Some(primary),
                _ => None,
            };
            let shared = match frozen.filter(|primary| primary.is_same_model(&clip)) {
                Some(_) => Some(0),
                None => further.iter().position(|other| other.is_same_model(&clip)).map(|number| number + 1),
            };
            let number = shared.unwrap_or_else(|| {
                further.push(clip);
                further.len()
            });
            evaluators.push(Evaluator::new(named, Arc::new(vocabulary), number));
        }
        let (vision_tower, vision_lora) = match (&vision, &captioner, &evaluator) {
            (Some(clip), ..) => (Some(of_clip(clip)), clip.lora()),
            (None, WeightSource::Weights(folder), _) => {
                let (weights, architecture) = (folder.vision().map_err(text)?, &folder.manifest().vision.architecture);
                let lora = weights.lora();
                (Some(tower(weights.path(), weights.sha256(), architecture, lora)), lora)
            }
            (None, WeightSource::Seed(_), WeightSource::Weights(clip)) => (evaluator_tower.clone(), clip.lora()),
            (None, WeightSource::Seed(_), WeightSource::Seed(_)) => (None, None),
        };
        Ok(Self {
            seed: run.seed,
            precision: run.compute_dtype,
            evaluator,
            further,
            trainables: Trainables::of(run),
            captioner,
            projection_init: run.captioner.projection_init,
            vision,
            vision_lora,
            captioner_vocabulary,
            evaluators,
            vision_tower,
            evaluator_tower,
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
    pub fn towers(&self) -> Option<(Tower, Vec<Tower>)> {
        let primary = self.evaluator_tower.clone()?;
        let evaluators = std::iter::once(primary).chain(self.further.iter().map(of_clip));
        Some((self.vision_tower.clone()?, evaluators.collect()))
    }

    /// The total width of an image's embeddings by all evaluators; a model counts once per
    /// evaluator.
    #[must_use]
    pub fn embedding_numbers(&self, models: &Models) -> usize {
        self.evaluators.iter().map(|evaluator| models.clip(evaluator.clip).architecture().embedding).sum()
    }

    /// The SHA-256 (hex) of everything that each worker loads by itself and that has to be equal on
    /// all workers: frozen weights, and vocabularies.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        let further: Vec<Tower> = self.further.iter().map(of_clip).collect();
        for tower in [&self.vision_tower, &self.evaluator_tower].into_iter().flatten().chain(&further) {
            hash.update(&tower.sha256);
            hash.update(&tower.computation);
        }
        let of_evaluators = self.evaluators.iter().map(|evaluator| &evaluator.vocabulary);
        for vocabulary in std::iter::once(&self.captioner_vocabulary).chain(of_evaluators) {
            hash.update(serde_json::to_vec(&vocabulary.to_stored()).expect("a vocabulary is plain data"));
        }
        format!("{:x}", hash.finalize())
    }

    /// Whether the evaluator changes or was initialized from the seed, and so belongs in
    /// checkpoints.
    #[must_use]
    pub fn evaluator_is_own(&self) -> bool {
        self.evaluator_tower.is_none()
    }

    /// The manifest of a model folder with the captioner of `models`.
    #[must_use]
    pub fn manifest(&self, models: &Models) -> folder::Manifest {
        let (path, sha256) = match &self.vision_tower {
            Some(tower) => (tower.weights.clone(), Some(tower.sha256.clone())),
            None => (PathBuf::from(folder::EVALUATOR), None),
        };
        let vision = folder::VisionTower {
            architecture: models.seen(),
            path,
            sha256,
            lora: self.vision_lora,
            published_prefix: None,
        };
        let captioner = models.captioner.architecture().clone();
        let evaluator = self.evaluator_is_own().then(|| folder::Evaluator {
            architecture: models.evaluator.architecture().clone(),
            vocabulary: self.evaluator_vocabulary().to_stored(),
        });
        folder::Manifest::new(self.captioner_vocabulary.to_stored(), captioner, vision, evaluator)
    }

    /// The models before any training.
    ///
    /// # Errors
    /// Weights do not fit their config, or the models do not fit each other.
    pub fn models(&self, device: Device) -> Result<Models, String> {
        let backend = Backend { device, precision: self.precision };
        let evaluator = self.evaluator(backend)?;
        let further = self.further.iter().map(|clip| build(clip, backend)).collect::<Result<Vec<Clip>, _>>()?;
        let vision = match self.shared_tower() {
            Some(number) => CaptionerVision::OfEvaluator(number),
            None => CaptionerVision::Own(Box::new(self.vision_encoder(backend)?)),
        };
        let seen = match &vision {
            CaptionerVision::Own(vision_encoder) => vision_encoder.architecture().clone(),
            CaptionerVision::OfEvaluator(0) => evaluator.architecture().tower(),
            CaptionerVision::OfEvaluator(number) => further[number - 1].architecture().tower(),
        };
        let captioner = self.captioner(&seen, backend)?;
        Ok(Models { evaluator, further, vision, captioner })
    }

    fn evaluator(&self, backend: Backend) -> Result<Clip, String> {
        let (seed, parts) = (seeds::derive(self.seed, "evaluator"), &self.trainables);
        match &self.evaluator {
            WeightSource::Seed(preset) => {
                let architecture = clip::preset(*preset, self.evaluator_vocabulary().pad() as usize);
                Ok(Clip::trainable(architecture, seed, backend, parts))
            }
            WeightSource::Weights(clip) => {
                let values = tensors::from_weights(clip.tensors().map_err(|error| error.to_string())?);
                let made = Clip::trainable_with(clip.architecture().clone(), &values, seed, backend, parts);
                let made = made.map_err(|mismatch| wrong(clip.path(), &mismatch))?;
                let has_factors = made.parameters().named().any(|(name, _)| is_lora_factor(name));
                if parts.lora.is_some() && !has_factors {
                    let path = clip.path().display();
                    return Err(format!("{path}: has none of the weights that trainable.lora.targets names"));
                }
                Ok(made)
            }
        }
    }

    /// The index of the evaluator whose vision encoder the captioner uses: the primary one unless
    /// the captioner has its own, or else one with the same weights, so that images are not encoded
    /// twice.
    fn shared_tower(&self) -> Option<usize> {
        let own = match (&self.vision, &self.captioner) {
            (None, WeightSource::Seed(_)) => return Some(0),
            _ => self.vision_tower.as_ref()?,
        };
        let is_own = |tower: &Tower| (&tower.sha256, &tower.computation) == (&own.sha256, &own.computation);
        if self.evaluator_tower.as_ref().is_some_and(is_own) {
            return Some(0);
        }
        self.further.iter().position(|clip| is_own(&of_clip(clip))).map(|number| number + 1)
    }

    fn vision_encoder(&self, backend: Backend) -> Result<VisionEncoder, String> {
        match (&self.vision, &self.captioner) {
            (Some(clip), _) => {
                let values = tensors::from_weights(clip.tensors().map_err(|error| error.to_string())?);
                let made = VisionEncoder::new(clip.architecture().tower(), &values, backend);
                made.map_err(|mismatch| wrong(clip.path(), &mismatch))
            }
            (None, WeightSource::Weights(folder)) => open_vision_encoder(folder, backend),
            (None, WeightSource::Seed(_)) => unreachable!("such a captioner uses the primary evaluator's tower"),
        }
    }

    fn captioner(&self, seen: &VisionArchitecture, backend: Backend) -> Result<Captioner, String> {
        match &self.captioner {
            WeightSource::Seed(preset) => {
                let vocabulary = self.captioner_vocabulary.size() as usize;
                let architecture = captioner::preset(*preset, seen.width(), seen.tokens(), vocabulary);
                Ok(Captioner::new(architecture, self.projection_init, seeds::derive(self.seed, "captioner"), backend))
            }
            WeightSource::Weights(folder) => open_captioner(folder, backend),
        }
    }
}

fn build(clip: &weights::Clip, backend: Backend) -> Result<Clip, String> {
    let values = tensors::from_weights(clip.tensors().map_err(|error| error.to_string())?);
    Clip::with(clip.architecture().clone(), &values, backend).map_err(|mismatch| wrong(clip.path(), &mismatch))
}

fn of_clip(clip: &weights::Clip) -> Tower {
    tower(clip.path(), clip.sha256(), &clip.architecture().tower(), clip.lora())
}

fn tower(path: &Path, sha256: String, architecture: &VisionArchitecture, lora: Option<LoraReading>) -> Tower {
    let (image_size, computation) = (architecture.image_size as u32, architecture.computation(lora));
    Tower { weights: path.to_owned(), sha256, image_size, computation }
}

/// The vision encoder of a model folder's captioner.
///
/// # Errors
/// It is missing, or its tensors do not fit its config.
pub fn open_vision_encoder(folder: &Folder, backend: impl Into<Backend>) -> Result<VisionEncoder, String> {
    let text = |error: weights::Error| error.to_string();
    let weights = folder.vision().map_err(text)?;
    let values = tensors::from_weights(weights.tensors().map_err(text)?);
    let made = VisionEncoder::new(folder.manifest().vision.architecture.clone(), &values, backend);
    made.map_err(|mismatch| wrong(weights.path(), &mismatch))
}

/// The captioner of a model folder.
///
/// # Errors
/// Its tensors do not fit its config.
pub fn open_captioner(folder: &Folder, backend: impl Into<Backend>) -> Result<Captioner, String> {
    let values = tensors::from_weights(folder.captioner());
    let made = Captioner::with(folder.manifest().captioner.clone(), &values, backend);
    made.map_err(|mismatch| wrong(folder.path(), &mismatch))
}

fn wrong(path: &Path, mismatch: &Mismatch) -> String {
    format!("{}: {mismatch}", path.display())
}

/// The captioner's vision encoder.
pub enum CaptionerVision {
    /// An encoder of its own.
    Own(Box<VisionEncoder>),
    /// The encoder of the evaluators' model with this index.
    OfEvaluator(usize),
}

/// The models of a run.
pub struct Models {
    /// The primary evaluator's model.
    pub evaluator: Clip,
    /// The models of the other evaluators.
    pub further: Vec<Clip>,
    /// The captioner's vision tower.
    pub vision: CaptionerVision,
    /// The captioner.
    pub captioner: Captioner,
}

impl Models {
    /// The evaluators' model with this index; 0 is the primary one.
    #[must_use]
    pub fn clip(&self, number: usize) -> &Clip {
        number.checked_sub(1).map_or(&self.evaluator, |number| &self.further[number])
    }

    /// All models of evaluators, in order of index.
    fn clips(&self) -> impl Iterator<Item = &Clip> {
        std::iter::once(&self.evaluator).chain(&self.further)
    }

    /// The total width of an image's embeddings by all models of evaluators.
    #[must_use]
    pub fn embedding_numbers(&self) -> usize {
        self.clips().map(|clip| clip.architecture().embedding).sum()
    }

    /// The config of the captioner's vision encoder.
    #[must_use]
    pub fn seen(&self) -> VisionArchitecture {
        match &self.vision {
            CaptionerVision::Own(vision_encoder) => vision_encoder.architecture().clone(),
            CaptionerVision::OfEvaluator(number) => self.clip(*number).architecture().tower(),
        }
    }

    /// The image sizes that the vision encoders require.
    #[must_use]
    pub fn sizes(&self) -> Sizes {
        let all = self.clips().map(image_size).chain([self.seen().image_size as u32]).collect();
        Sizes { all, generated: image_size(&self.evaluator) }
    }

    /// The captioner's hidden states of the samples `range` of a batch, `[images, tokens, width]`.
    pub fn hidden(&self, batch: &Batch, range: Range<usize>) -> Tensor {
        let device = self.captioner.parameters().flat().device();
        match &batch.views {
            BatchImages::Features { hidden, .. } => part(hidden, range, device),
            BatchImages::Pixels(pixels) => {
                let seen = self.seen();
                let images = normalise(&pixels[&(seen.image_size as u32)], range, device, &seen.normalization);
                no_grad(|| match &self.vision {
                    CaptionerVision::Own(vision_encoder) => vision_encoder.hidden(&images),
                    CaptionerVision::OfEvaluator(number) => self.clip(*number).vision.hidden(&images),
                })
            }
        }
    }

    /// Unit embeddings of the samples `range` of a batch by the evaluators' model with this index,
    /// `[images, embedding]`. `hidden` are their hidden states for the captioner.
    pub fn embeddings(&self, batch: &Batch, range: Range<usize>, hidden: &Tensor, number: usize) -> Tensor {
        let clip = self.clip(number);
        match (&batch.views, &self.vision) {
            (BatchImages::Features { embeddings, .. }, _) => {
                let before: usize = self.clips().take(number).map(|clip| clip.architecture().embedding).sum();
                let own = embeddings.narrow(1, before as i64, clip.architecture().embedding as i64);
                part(&own, range, hidden.device())
            }
            (BatchImages::Pixels(_), CaptionerVision::OfEvaluator(shared)) if *shared == number => {
                no_grad(|| clip.embed(hidden))
            }
            (BatchImages::Pixels(pixels), _) => no_grad(|| {
                let images = normalise_for(clip, &pixels[&image_size(clip)], range);
                clip.embed(&clip.vision.hidden(&images))
            }),
        }
    }

    /// Normalized pixels `[images, 3, size, size]` of the generated images of the samples `range`
    /// of a batch.
    ///
    /// # Errors
    /// The batch was prepared without them.
    pub fn generated_pixels(&self, batch: &Batch, range: Range<usize>) -> Result<Tensor, String> {
        let generated = batch.generated.as_ref().ok_or("the batch was prepared without generated pictures")?;
        Ok(normalise_for(&self.evaluator, generated, range))
    }

    /// Normalized pixels `[images, 3, size, size]` of the samples `range` of a batch, to train the
    /// evaluator on.
    ///
    /// # Errors
    /// The batch comes from a feature store, which requires frozen encoders.
    pub fn evaluator_pixels(&self, batch: &Batch, range: Range<usize>) -> Result<Tensor, String> {
        match &batch.views {
            BatchImages::Features { .. } => Err("data.features cannot be used in a contrastive stage".to_owned()),
            BatchImages::Pixels(pixels) => {
                Ok(normalise_for(&self.evaluator, &pixels[&image_size(&self.evaluator)], range))
            }
        }
    }
}

fn image_size(clip: &Clip) -> u32 {
    clip.architecture().image_size as u32
}

/// Normalizes images `range` of bytes `[batch, size, size, 3]` for `clip`, to `[images, 3, size,
/// size]`.
fn normalise_for(clip: &Clip, pixels: &Tensor, range: Range<usize>) -> Tensor {
    normalise(pixels, range, clip.parameters().flat().device(), &clip.architecture().normalization)
}

/// Rows of a feature store's tensor, in the models' type.
fn part(rows: &Tensor, range: Range<usize>, device: Device) -> Tensor {
    rows.narrow(0, range.start as i64, range.len() as i64).to_device(device).to_kind(Kind::Float)
}

#[cfg(test)]
mod tests {
    use super::*;
    use weights::{Architecture, Text, Vision};

    /// The names and shapes of a model's parameters.
    fn shapes(parameters: &crate::nn::Parameters) -> weights::Shapes {
        let size = |tensor: &Tensor| tensor.size().iter().map(|&side| side as usize).collect();
        parameters.named().map(|(name, tensor)| (name.to_owned(), size(tensor))).collect()
    }

    #[test]
    fn models_have_the_parameters_that_weights_are_checked_for() {
        let text = Text { width: 64, layers: 1, heads: 1, context_length: 5, vocabulary_size: 7 };
        for vision in [
            Vision::Transformer { patch_size: 4, width: 64, layers: 2, heads: 1 },
            Vision::ResNet { blocks: [2, 1, 1, 1], width: 8, heads: 4 },
        ] {
            let architecture = Architecture::new(32, vision, text.clone(), 6);
            let clip = Clip::new(architecture.clone(), 1, Device::Cpu);
            assert_eq!(shapes(clip.parameters()), architecture.shapes().unwrap());
            let values = clip.parameters().named().map(|(name, tensor)| (name.to_owned(), tensor.shallow_clone()));
            let vision_encoder = VisionEncoder::new(architecture.tower(), &values.collect(), Device::Cpu).unwrap();
            assert_eq!(shapes(vision_encoder.parameters()), architecture.tower().shapes().unwrap());
        }
        let architecture = captioner::preset(Preset::Tiny, 64, 65, 50);
        let captioner = Captioner::new(architecture.clone(), ProjectionInit::default(), 1, Device::Cpu);
        assert_eq!(shapes(captioner.parameters()), architecture.shapes().unwrap());
    }
}
