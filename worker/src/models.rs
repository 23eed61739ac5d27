//! The models of a run: which there are, what they start from, and what the frozen towers see of a batch.
//!
//! ```text
//!   images --> eyes or evaluator.vision --> hidden states --> captioner --> candidates
//!      \-----> evaluator.vision, pool ---> embeddings ---\                     |
//!                                     rewards <--- evaluator.text <--- text <--+
//! ```

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use features::Tower;
use runfile::{Objective, Precision, Preset, ProjectionInit, RunFile};
use sha2::{Digest, Sha256};
use tch::{Device, Kind, Tensor, no_grad};
use tokenizer::Vocabulary;
use weights::VisionArchitecture;
use weights::clip::LoraReading;
use weights::folder::{self, Folder};

use crate::captioner::{self, Captioner};
use crate::clip::{self, Clip, Eyes};
use crate::data::{Batch, Sizes, Views, normalise};
use crate::nn::{Backend, Mismatch};
use crate::seeds;
use crate::tensors;

/// What a model starts from.
enum Origin<T> {
    /// The run's seed.
    Seed(Preset),
    /// Weights that are there.
    Weights(T),
}

/// Opens the model folder `path`, which must be what a run or `worker import` has written, every byte of it.
///
/// # Errors
/// It is none, or is damaged.
pub fn open_folder(path: &Path) -> Result<Folder, String> {
    let folder = Folder::open(path).map_err(|error| error.to_string())?;
    storage::verify(path).map_err(|error| error.to_string())?;
    Ok(folder)
}

/// The vocabulary that a run begins with, if these are its training captions.
pub fn vocabulary<'a>(run: &RunFile, captions: impl Iterator<Item = &'a str>) -> Vocabulary {
    match run.vocabulary {
        runfile::Vocabulary::Full => Vocabulary::full(),
        runfile::Vocabulary::Corpus => Vocabulary::of_corpus(captions),
    }
}

/// What the models of a run start from, and stay if they are not trained.
pub struct Origins {
    seed: u64,
    precision: Precision,
    evaluator: Origin<weights::Clip>,
    captioner: Origin<Folder>,
    /// Of a captioner that starts from the seed.
    projection_init: ProjectionInit,
    /// CLIP weights of the captioner's own vision tower.
    vision: Option<weights::Clip>,
    /// Of the captioner.
    pub captioner_vocabulary: Arc<Vocabulary>,
    /// Of the evaluator.
    pub evaluator_vocabulary: Arc<Vocabulary>,
    /// What the captioner sees through, where that is a file and stays as it is.
    vision_tower: Option<Tower>,
    /// The evaluator, where that is a file and stays as it is.
    evaluator_tower: Option<Tower>,
}

impl Origins {
    /// Opens the weights that `run` names. What they do not bring with them has this `vocabulary`.
    ///
    /// # Errors
    /// A file is missing or holds no such model.
    pub fn open(run: &RunFile, vocabulary: Vocabulary) -> Result<Self, String> {
        let text = |error: weights::Error| error.to_string();
        let clip = |path: &Path| weights::Clip::open(path, &run.captioner.vision_clip).map_err(text);
        let (evaluator, evaluator_vocabulary) = match (&run.evaluator.weights, run.evaluator.preset) {
            (Some(path), _) => {
                let (clip, vocabulary) = folder::open_evaluator(path, &run.evaluator.clip).map_err(text)?;
                if path.is_dir() {
                    storage::verify(path).map_err(|error| error.to_string())?;
                }
                (Origin::Weights(clip), Some(Arc::new(Vocabulary::stored(&vocabulary))))
            }
            (None, preset) => (Origin::Seed(preset.ok_or("evaluator needs either `preset` or `weights`")?), None),
        };
        let captioner = match (&run.captioner.weights, run.captioner.preset) {
            (Some(path), _) => Origin::Weights(open_folder(path)?),
            (None, preset) => Origin::Seed(preset.ok_or("captioner needs either `preset` or `weights`")?),
        };
        let of_run = Arc::new(vocabulary);
        let captioner_vocabulary = match &captioner {
            Origin::Weights(folder) => Arc::new(Vocabulary::stored(&folder.manifest().vocabulary)),
            Origin::Seed(_) => Arc::clone(&of_run),
        };
        let evaluator_vocabulary = evaluator_vocabulary.unwrap_or(of_run);
        let vision = run.captioner.vision.as_deref().map(clip).transpose()?;
        let trained = run.stages.iter().any(|stage| stage.objective == Objective::Contrastive);
        let evaluator_tower = match &evaluator {
            Origin::Weights(clip) if !trained => Some(of_clip(clip)),
            _ => None,
        };
        let vision_tower = match (&vision, &captioner) {
            (Some(clip), _) => Some(of_clip(clip)),
            (None, Origin::Weights(folder)) => {
                let weights = folder.vision().map_err(text)?;
                let folder::VisionTower { architecture, lora, .. } = &folder.manifest().vision;
                Some(tower(weights.path(), weights.sha256(), architecture, *lora))
            }
            (None, Origin::Seed(_)) => evaluator_tower.clone(),
        };
        Ok(Self {
            seed: run.seed,
            precision: run.precision,
            evaluator,
            captioner,
            projection_init: run.captioner.projection_init,
            vision,
            captioner_vocabulary,
            evaluator_vocabulary,
            vision_tower,
            evaluator_tower,
        })
    }

    /// Where the towers' weights came from; none unless both stay as they were read.
    #[must_use]
    pub fn towers(&self) -> Option<[Tower; 2]> {
        Some([self.vision_tower.clone()?, self.evaluator_tower.clone()?])
    }

    /// SHA-256 (hex) over what every worker finds for itself and what therefore has to be the same for all: frozen weights, and
    /// vocabularies.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        for tower in [&self.vision_tower, &self.evaluator_tower].into_iter().flatten() {
            hash.update(&tower.sha256);
            hash.update(&tower.computation);
        }
        for vocabulary in [&self.captioner_vocabulary, &self.evaluator_vocabulary] {
            hash.update(serde_json::to_vec(&vocabulary.to_stored()).expect("a vocabulary is plain data"));
        }
        format!("{:x}", hash.finalize())
    }

    /// Whether the evaluator changes, or came from the seed, and so belongs into checkpoints.
    #[must_use]
    pub fn evaluator_is_own(&self) -> bool {
        self.evaluator_tower.is_none()
    }

    /// What a model folder with the captioner of `models` has to say.
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
            lora: self.vision_lora(),
            published_prefix: None,
        };
        let captioner = models.captioner.architecture().clone();
        let evaluator = self.evaluator_is_own().then(|| folder::Evaluator {
            architecture: models.evaluator.architecture().clone(),
            vocabulary: self.evaluator_vocabulary.to_stored(),
        });
        folder::Manifest::new(self.captioner_vocabulary.to_stored(), captioner, vision, evaluator)
    }

    /// Which of the LoRA factors of the captioner's vision tower are added, if it has some.
    fn vision_lora(&self) -> Option<LoraReading> {
        match (&self.vision, &self.captioner, &self.evaluator) {
            (Some(clip), ..) | (None, Origin::Seed(_), Origin::Weights(clip)) => clip.lora(),
            (None, Origin::Weights(folder), _) => folder.manifest().vision.lora,
            (None, Origin::Seed(_), Origin::Seed(_)) => None,
        }
    }

    /// The models as they are before any training.
    ///
    /// # Errors
    /// Weights do not fit their architecture, or the models do not fit each other.
    pub fn models(&self, device: Device) -> Result<Models, String> {
        let backend = Backend { device, precision: self.precision };
        let (evaluator, eyes) = (self.evaluator(backend)?, self.eyes(backend)?);
        let seen = eyes.as_ref().map_or_else(|| evaluator.architecture().tower(), |eyes| eyes.architecture().clone());
        let captioner = self.captioner(&seen, backend)?;
        Ok(Models { evaluator, eyes, captioner })
    }

    fn evaluator(&self, backend: Backend) -> Result<Clip, String> {
        match &self.evaluator {
            Origin::Seed(preset) => {
                let architecture = clip::preset(*preset, self.evaluator_vocabulary.pad() as usize);
                Ok(Clip::new(architecture, seeds::derive(self.seed, "evaluator"), backend))
            }
            Origin::Weights(clip) => {
                let values = tensors::from_weights(clip.tensors().map_err(|error| error.to_string())?);
                let made = Clip::with(clip.architecture().clone(), &values, backend);
                made.map_err(|mismatch| wrong(clip.path(), &mismatch))
            }
        }
    }

    fn eyes(&self, backend: Backend) -> Result<Option<Eyes>, String> {
        if let Some([vision, evaluator]) = self.towers()
            && (&vision.sha256, &vision.computation) == (&evaluator.sha256, &evaluator.computation)
        {
            // One file for both: what the evaluator sees need not be computed twice.
            return Ok(None);
        }
        match (&self.vision, &self.captioner) {
            (Some(clip), _) => {
                let values = tensors::from_weights(clip.tensors().map_err(|error| error.to_string())?);
                let made = Eyes::new(clip.architecture().tower(), &values, backend);
                made.map(Some).map_err(|mismatch| wrong(clip.path(), &mismatch))
            }
            (None, Origin::Weights(folder)) => open_eyes(folder, backend).map(Some),
            (None, Origin::Seed(_)) => Ok(None),
        }
    }

    fn captioner(&self, seen: &VisionArchitecture, backend: Backend) -> Result<Captioner, String> {
        match &self.captioner {
            Origin::Seed(preset) => {
                let vocabulary = self.captioner_vocabulary.size() as usize;
                let architecture = captioner::preset(*preset, seen.width(), seen.tokens(), vocabulary);
                Ok(Captioner::new(architecture, self.projection_init, seeds::derive(self.seed, "captioner"), backend))
            }
            Origin::Weights(folder) => open_captioner(folder, backend),
        }
    }
}

fn of_clip(clip: &weights::Clip) -> Tower {
    tower(clip.path(), clip.sha256(), &clip.architecture().tower(), clip.lora())
}

fn tower(path: &Path, sha256: String, architecture: &VisionArchitecture, lora: Option<LoraReading>) -> Tower {
    let (image_size, computation) = (architecture.image_size as u32, architecture.computation(lora));
    Tower { weights: path.to_owned(), sha256, image_size, computation }
}

/// The vision tower that a folder's captioner sees through.
///
/// # Errors
/// It is missing, or its tensors are not those of its architecture.
pub fn open_eyes(folder: &Folder, backend: impl Into<Backend>) -> Result<Eyes, String> {
    let text = |error: weights::Error| error.to_string();
    let weights = folder.vision().map_err(text)?;
    let values = tensors::from_weights(weights.tensors().map_err(text)?);
    let made = Eyes::new(folder.manifest().vision.architecture.clone(), &values, backend);
    made.map_err(|mismatch| wrong(weights.path(), &mismatch))
}

/// The captioner that a folder holds.
///
/// # Errors
/// Its tensors are not those of its architecture.
pub fn open_captioner(folder: &Folder, backend: impl Into<Backend>) -> Result<Captioner, String> {
    let values = tensors::from_weights(folder.captioner());
    let made = Captioner::with(folder.manifest().captioner.clone(), &values, backend);
    made.map_err(|mismatch| wrong(folder.path(), &mismatch))
}

fn wrong(path: &Path, mismatch: &Mismatch) -> String {
    format!("{}: {mismatch}", path.display())
}

/// The models of a run.
pub struct Models {
    /// Judges captions.
    pub evaluator: Clip,
    /// The captioner's own vision tower; none where it sees through the evaluator's.
    pub eyes: Option<Eyes>,
    /// Writes captions.
    pub captioner: Captioner,
}

impl Models {
    /// Sizes of the vision tower that the captioner sees through.
    #[must_use]
    pub fn seen(&self) -> VisionArchitecture {
        match &self.eyes {
            Some(eyes) => eyes.architecture().clone(),
            None => self.evaluator.architecture().tower(),
        }
    }

    /// Pixels that the two vision towers want.
    #[must_use]
    pub fn sizes(&self) -> Sizes {
        Sizes { captioner: self.seen().image_size as u32, evaluator: self.evaluator.architecture().image_size as u32 }
    }

    /// What the captioner sees of samples `range` of a batch: hidden states `[images, tokens, width]`.
    pub fn hidden(&self, batch: &Batch, range: Range<usize>) -> Tensor {
        let device = self.captioner.parameters().flat().device();
        match &batch.views {
            Views::Features { hidden, .. } => part(hidden, range, device),
            Views::Pixels { captioner, .. } => {
                let images = normalise(captioner, range, device, &self.seen().normalization);
                no_grad(|| match &self.eyes {
                    Some(eyes) => eyes.hidden(&images),
                    None => self.evaluator.vision.hidden(&images),
                })
            }
        }
    }

    /// The evaluator's unit embeddings of samples `range` of a batch, `[images, embedding]`. `hidden` is what the captioner
    /// sees of them.
    pub fn embeddings(&self, batch: &Batch, range: Range<usize>, hidden: &Tensor) -> Tensor {
        match &batch.views {
            Views::Features { embeddings, .. } => part(embeddings, range, hidden.device()),
            Views::Pixels { captioner, evaluator } => no_grad(|| match &self.eyes {
                None => self.evaluator.embed(hidden),
                Some(_) => {
                    let pixels = evaluator.as_ref().unwrap_or(captioner);
                    let images = self.normalise_for_evaluator(pixels, range);
                    self.evaluator.embed(&self.evaluator.vision.hidden(&images))
                }
            }),
        }
    }

    fn normalise_for_evaluator(&self, pixels: &Tensor, range: Range<usize>) -> Tensor {
        let device = self.evaluator.parameters().flat().device();
        normalise(pixels, range, device, &self.evaluator.architecture().normalization)
    }

    /// Normalised pixels `[images, 3, size, size]` of the generated pictures of samples `range` of a batch.
    ///
    /// # Errors
    /// The batch was prepared without them.
    pub fn generated_pixels(&self, batch: &Batch, range: Range<usize>) -> Result<Tensor, String> {
        let generated = batch.generated.as_ref().ok_or("the batch was prepared without generated pictures")?;
        Ok(self.normalise_for_evaluator(generated, range))
    }

    /// What the evaluator is trained on: normalised pixels `[images, 3, size, size]` of samples `range` of a batch.
    ///
    /// # Errors
    /// The batch comes from a feature store, which only frozen towers can use.
    pub fn evaluator_pixels(&self, batch: &Batch, range: Range<usize>) -> Result<Tensor, String> {
        match &batch.views {
            Views::Features { .. } => Err("data.features cannot be used in a contrastive stage".to_owned()),
            Views::Pixels { captioner, evaluator } => {
                Ok(self.normalise_for_evaluator(evaluator.as_ref().unwrap_or(captioner), range))
            }
        }
    }
}

/// Rows of a store's tensor in the type that models compute in.
fn part(rows: &Tensor, range: Range<usize>, device: Device) -> Tensor {
    rows.narrow(0, range.start as i64, range.len() as i64).to_device(device).to_kind(Kind::Float)
}

#[cfg(test)]
mod tests {
    use super::*;
    use weights::{Architecture, Text, Vision};

    /// Names and shapes of a model's parameters.
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
            let eyes = Eyes::new(architecture.tower(), &values.collect(), Device::Cpu).unwrap();
            assert_eq!(shapes(eyes.parameters()), architecture.tower().shapes().unwrap());
        }
        let architecture = captioner::preset(Preset::Tiny, 64, 65, 50);
        let captioner = Captioner::new(architecture.clone(), ProjectionInit::default(), 1, Device::Cpu);
        assert_eq!(shapes(captioner.parameters()), architecture.shapes().unwrap());
    }
}
